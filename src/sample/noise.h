/* noise: Gumbel noise as a function of (seed, position, token), and a bound of it that costs no logarithm.
 *
 * Philox4x32-10 (Salmon et al. 2011, Random123) turns a counter and a key into four random words, so the noise of
 * any token at any position can be had alone, in any order, by target and drafts alike. The counter is
 * (position low, position high, token/4, TAG), the key is the seed, and token%4 picks the word. */
#ifndef UST_SAMPLE_NOISE_H
#define UST_SAMPLE_NOISE_H

#include <Random123/philox.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { UST_NOISE_TAG = 0x474d424c }; /* keeps this use of a seed apart from any other */

typedef uint32_t ust_noise_u4 __attribute__((vector_size(16)));
typedef int32_t ust_noise_i4 __attribute__((vector_size(16)));
typedef float ust_noise_f4 __attribute__((vector_size(16)));

/* The words of tokens 4*group … 4*group+3. */
static inline ust_noise_u4 ust_noise_words(uint64_t seed, uint64_t position, uint32_t group) {
  philox4x32_ctr_t counter = {{(uint32_t)position, (uint32_t)(position >> 32), group, UST_NOISE_TAG}};
  philox4x32_key_t key = {{(uint32_t)seed, (uint32_t)(seed >> 32)}};
  philox4x32_ctr_t words = philox4x32_R(10, counter, key);
  return (ust_noise_u4){words.v[0], words.v[1], words.v[2], words.v[3]};
}

/* G = -log(-log(u)), u = (x + 1/2) / 2^32: between -3.14 and 22.88. */
static inline float ust_noise_gumbel(uint32_t x) {
  return (float)-log(-log((x + 0.5) * 0x1p-32));
}

/* At least ust_noise_gumbel(x), for four words. With v = 1-u we have -log(u) = -log(1-v) >= v, so G <= -log(v), and
 * v = (~x + 1/2) / 2^32 >= (floor(~x/2) + 1/4) / 2^31. The bits of a positive float, read as an integer, are
 * 2^23 (127 + log2 of it) with the logarithm's curve replaced by its chords, which lie below the curve: that bounds
 * log2(v) from below. The last term covers the rounding of the conversions (below 2e-5 together). */
static inline ust_noise_f4 ust_noise_bound(ust_noise_u4 x) {
  ust_noise_f4 half = __builtin_convertvector((ust_noise_i4)(~x >> 1), ust_noise_f4) + 0.25f;
  ust_noise_f4 bits = __builtin_convertvector((ust_noise_i4)half, ust_noise_f4);
  return 0.69314718f * (158.0f - bits * 0x1p-23f) + 1e-4f;
}

#endif
