/* The kernel table: which levels this machine and build have, and the finished table of each.
 *
 * A level needs its CPUID bits, the operating system's consent to save its registers (XCR0) and, for AMX, the
 * kernel's permission to use the tiles, which is asked for once per process. */
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

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

static uint64_t enabled_state(void) {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static bool has(unsigned have, unsigned want) {
  return (have & want) == want;
}

/* NULL: the level can run here; else why not. */
static const char *missing(ust_isa isa) {
  if (isa == UST_ISA_SCALAR) return NULL;
  unsigned eax, ebx1, ecx1, edx1, ebx7, ecx7, edx7, ebx71, ecx71, edx71, eax71 = 0;
  if (!__get_cpuid(1, &eax, &ebx1, &ecx1, &edx1) || !__get_cpuid_count(7, 0, &eax, &ebx7, &ecx7, &edx7))
    return "the processor does not report its features";
  __get_cpuid_count(7, 1, &eax71, &ebx71, &ecx71, &edx71);
  uint64_t state = enabled_state();
  if (!has(ecx1, bit_FMA | bit_F16C) || !has(ebx7, bit_AVX2)) return "the processor has no AVX2, FMA and F16C";
  if ((state & 0x6) != 0x6) return "the operating system does not save AVX registers";
  if (isa == UST_ISA_AVX2) return NULL;
  if (!has(ebx7, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ) || !has(ecx7, bit_AVX512VNNI))
    return "the processor has no AVX-512 F, BW, VL, DQ and VNNI";
  if ((state & 0xe6) != 0xe6) return "the operating system does not save AVX-512 registers";
  if (isa == UST_ISA_AVX512) return NULL;
  if (!has(edx7, 1u << 22 | 1u << 24 | 1u << 25) || !has(eax71, 1u << 5))
    return "the processor has no AMX-BF16, AMX-INT8 and AVX512-BF16";
  if ((state & 0x60000) != 0x60000) return "the operating system does not save AMX tiles";
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) return "the kernel does not permit AMX tiles";
  return NULL;
}

const ust_kernels *ust_kernels_get(ust_isa isa, const char **reason) {
  static ust_kernels tables[UST_ISA_COUNT];
  static int ready[UST_ISA_COUNT]; /* guarded by the critical section */
  const char *why = missing(isa);
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
    if (!missing((ust_isa)isa)) best = isa;
  return (ust_isa)best;
}
