/* Number formats: IEEE half, and GGUF's blocks of Q8_0, Q4_0 and Q4_K. */
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

void ust_q4_quantize(const float *x, ust_q4_block *block) {
  float most = 0, magnitude = 0;
  for (int i = 0; i < UST_BLOCK; i++)
    if (fabsf(x[i]) > magnitude) {
      magnitude = fabsf(x[i]);
      most = x[i];
    }
  float scale = most / -8, inverse = scale != 0 ? 1.0f / scale : 0;
  block->scale = ust_f32_to_f16(scale);
  for (int i = 0; i < UST_BLOCK / 2; i++) {
    int low = (int)fminf(15, fmaxf(0, x[i] * inverse + 8.5f));
    int high = (int)fminf(15, fmaxf(0, x[i + 16] * inverse + 8.5f));
    block->q[i] = (uint8_t)(low | high << 4);
  }
}

/* The 6-bit scale and minimum of run i: four whole ones of each, then the low halves of the others, whose upper two
 * bits lie above the whole ones. */
static void q4k_parts(const uint8_t *parts, int i, ust_run *run) {
  if (i < 4) {
    run->scale_part = parts[i] & 63;
    run->minimum_part = parts[i + 4] & 63;
  } else {
    run->scale_part = (uint8_t)((parts[i + 4] & 15) | parts[i - 4] >> 6 << 4);
    run->minimum_part = (uint8_t)(parts[i + 4] >> 4 | parts[i] >> 6 << 4);
  }
}

void ust_run_load(ust_format format, const void *row, int index, ust_run *run) {
  *run = (ust_run){0};
  if (format == UST_FORMAT_Q8) {
    const ust_q8_block *block = (const ust_q8_block *)row + index;
    run->scale = block->scale;
    for (int i = 0; i < UST_BLOCK; i++) run->q[i] = (uint8_t)(block->q[i] + 128);
  } else if (format == UST_FORMAT_Q4) {
    const ust_q4_block *block = (const ust_q4_block *)row + index;
    run->scale = block->scale;
    for (int i = 0; i < UST_BLOCK; i++) run->q[i] = (uint8_t)(block->q[i % 16] >> i / 16 * 4 & 15);
  } else {
    const ust_q4k_block *block = (const ust_q4k_block *)row + index / 8;
    const uint8_t *q = block->q + index % 8 / 2 * UST_BLOCK;
    run->scale = block->scale;
    run->minimum = block->minimum;
    q4k_parts(block->parts, index % 8, run);
    for (int i = 0; i < UST_BLOCK; i++) run->q[i] = (uint8_t)(q[i] >> index % 2 * 4 & 15);
  }
}

void ust_run_values(ust_format format, const ust_run *run, float values[UST_BLOCK]) {
  float scale = ust_f16_to_f32(run->scale), minimum = (format == UST_FORMAT_Q8 ? -128 : -8) * scale;
  if (format == UST_FORMAT_Q4K) {
    scale *= (float)run->scale_part;
    minimum = -(ust_f16_to_f32(run->minimum) * (float)run->minimum_part);
  }
  for (int i = 0; i < UST_BLOCK; i++) values[i] = scale * (float)run->q[i] + minimum;
}
