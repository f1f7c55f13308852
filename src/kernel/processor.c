/* Which levels this processor has. A level needs its CPUID bits, the operating system's consent to save its registers
 * (XCR0) and, for AMX, the kernel's permission to use the tiles; asking for it again is harmless. */
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel/kernel.h"

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

const char *ust_isa_missing(ust_isa isa) {
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
