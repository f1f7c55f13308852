/* The kernel table: the finished table of each level this machine has, and their names. */
#include "kernel/kernel.h"

static const char *const names[UST_ISA_COUNT] = {"scalar", "avx2", "avx512", "amx"};

const char *ust_isa_name(ust_isa isa) {
  return names[isa];
}

bool ust_isa_parse(const char *name, ust_isa *isa) {
  for (int i = 0; i < UST_ISA_COUNT; i++)
    if (strcmp(name, names[i]) == 0) {
      *isa = (ust_isa)i;
      return true;
    }
  return false;
}

const ust_kernels *ust_kernels_get(ust_isa isa, const char **reason) {
  static ust_kernels tables[UST_ISA_COUNT];
  static int ready[UST_ISA_COUNT]; /* guarded by the critical section */
  const char *why = ust_isa_missing(isa);
  if (reason) *reason = why;
  if (why) return NULL;
#pragma omp critical(ust_kernels)
  if (!ready[isa]) {
    ust_kernels *table = &tables[isa];
    ust_scalar_fill(table);
    if (isa >= UST_ISA_AVX2) ust_avx2_fill(table);
    if (isa >= UST_ISA_AVX512) ust_avx512_fill(table);
    if (isa >= UST_ISA_AMX) ust_amx_fill(table);
    table->isa = isa;
    table->name = names[isa];
    ready[isa] = 1;
  }
  return &tables[isa];
}

understudy_status ust_kernels_choose(const char *name, const ust_kernels **kernels, understudy_error *err) {
  const ust_isa best = ust_kernels_best();
  ust_isa isa = best;
  const char *reason;
  if (name && !ust_isa_parse(name, &isa))
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "isa: found '%s', expected scalar, avx2, avx512 or amx", name);
  *kernels = ust_kernels_get(isa, &reason);
  if (*kernels) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "isa: %s cannot run here: %s; the best here is %s", names[isa],
                   reason, names[best]);
}

ust_isa ust_kernels_best(void) {
  int best = UST_ISA_SCALAR;
  for (int isa = UST_ISA_AVX2; isa < UST_ISA_COUNT; isa++)
    if (!ust_isa_missing((ust_isa)isa)) best = isa;
  return (ust_isa)best;
}
