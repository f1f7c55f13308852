/* A processor whose levels above avx2 are emulated: has them all if it has avx2. */
#include "kernel/kernel.h"

const char *ust_isa_missing(ust_isa isa) {
  if (isa == UST_ISA_SCALAR || __builtin_cpu_supports("avx2")) return NULL;
  return "the processor has no AVX2";
}
