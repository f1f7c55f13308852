/* Number formats: IEEE half and GGUF's Q8_0 blocks. */
#include <math.h>

#include "kernel/kernel.h"

float ust_f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 1023u;
  union {
    uint32_t u;
    float f;
  } bits;
  if (exponent == 0) { /* zero and subnormals: fraction * 2^-24 */
    bits.f = (float)fraction * 0x1p-24f;
    bits.u |= sign;
  } else if (exponent == 31) {
    bits.u = sign | 0x7f800000u | fraction << 13;
  } else {
    bits.u = sign | (exponent + 112u) << 23 | fraction << 13;
  }
  return bits.f;
}

uint16_t ust_f32_to_f16(float f) {
  union {
    float f;
    uint32_t u;
  } bits = {.f = f};
  uint16_t sign = (uint16_t)(bits.u >> 16 & 0x8000u);
  uint32_t magnitude = bits.u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);  /* NaN */
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds past the largest half */
  if (magnitude < 0x38800000u) {                                   /* subnormal half or zero */
    bits.u = magnitude;
    return (uint16_t)(sign | (uint16_t)lrintf(bits.f * 0x1p24f));
  }
  uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

void ust_q8_quantize(const float *x, ust_q8_block *block) {
  float most = 0;
  for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[i]));
  float scale = most / 127.0f;
  float inverse = scale > 0 ? 1.0f / scale : 0;
  block->scale = ust_f32_to_f16(scale);
  for (int i = 0; i < 32; i++) block->q[i] = (int8_t)fmaxf(-127, fminf(127, roundf(x[i] * inverse)));
}
