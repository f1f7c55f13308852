/* The AVX-512 and AMX instructions that src/kernel uses, in plain C, so that a processor with AVX2 alone can test the
 * levels above it. Found before the compiler's header of this name, which it includes, when avx512.c and amx.c are
 * compiled for tests; it has what those two files use, by the definitions of Intel's Software Developer's Manual.
 *
 * What differs from the hardware: VRCP14PS is exact to its 14 bits instead of within them, and floating-point
 * exception flags are nobody's. */
#ifndef UST_TESTS_EMULATED_IMMINTRIN_H
#define UST_TESTS_EMULATED_IMMINTRIN_H

#include_next <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef union emulated_vector {
  __m512 floats;
  __m512i integers;
  __m512bh halves;
  float f32[16];
  int32_t i32[16];
  uint32_t u32[16];
  uint16_t u16[32];
  int8_t i8[64];
  uint8_t u8[64];
  uint64_t u64[8];
} emulated_vector;

/* Not inlined: with optimisation the kernels' unrolled loops of such calls take minutes to compile, so their file is
 * compiled without, and these functions with it where the compiler can. */
#ifdef __clang__
#define EMULATED static __attribute__((noinline, unused))
#else
#define EMULATED static __attribute__((noinline, unused, optimize("O2")))
#endif

/* ---- memory and constants ---- */

EMULATED __m512 emulated_load_ps(const void *from) {
  emulated_vector v;
  memcpy(&v, from, sizeof v);
  return v.floats;
}
EMULATED __m512i emulated_load_si512(const void *from) {
  emulated_vector v;
  memcpy(&v, from, sizeof v);
  return v.integers;
}
EMULATED void emulated_store_ps(void *to, __m512 v) {
  memcpy(to, &v, sizeof v);
}
EMULATED void emulated_store_si512(void *to, __m512i v) {
  memcpy(to, &v, sizeof v);
}
EMULATED const void *emulated_aligned(const void *at) {
  if ((uintptr_t)at % 64) __builtin_trap(); /* general protection */
  return at;
}
EMULATED __m512 emulated_maskz_loadu_ps(__mmask16 mask, const void *from) {
  emulated_vector v = {.i32 = {0}};
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) memcpy(&v.f32[i], (const char *)from + 4 * i, 4);
  return v.floats;
}
EMULATED __m512 emulated_mask_i32gather_ps(__m512 from, __mmask16 mask, __m512i index, const void *base, int scale) {
  emulated_vector v = {.floats = from}, at = {.integers = index};
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) memcpy(&v.f32[i], (const char *)base + (ptrdiff_t)at.i32[i] * scale, 4);
  return v.floats;
}
EMULATED void emulated_i32scatter_epi32(void *base, __m512i index, __m512i value, int scale) {
  emulated_vector v = {.integers = value}, at = {.integers = index};
  for (int i = 0; i < 16; i++) memcpy((char *)base + (ptrdiff_t)at.i32[i] * scale, &v.i32[i], 4);
}
EMULATED __m512 emulated_set1_ps(float x) {
  emulated_vector v;
  for (int i = 0; i < 16; i++) v.f32[i] = x;
  return v.floats;
}
EMULATED __m512i emulated_set1_epi32(int32_t x) {
  emulated_vector v;
  for (int i = 0; i < 16; i++) v.i32[i] = x;
  return v.integers;
}
EMULATED __m512i emulated_set1_epi8(char x) {
  emulated_vector v;
  memset(&v, x, sizeof v);
  return v.integers;
}

/* ---- lane by lane ---- */

/* Names a function of one, two or three vectors whose lane i of `lane` is `value`; a, b, c are the operands. */
#define EMULATED_1(name, result, argument, lane, count, value)                                                         \
  EMULATED result emulated_##name(argument x) {                                                                        \
    emulated_vector a, v;                                                                                              \
    memcpy(&a, &x, sizeof a);                                                                                          \
    for (int i = 0; i < (count); i++) v.lane[i] = (value);                                                             \
    result y;                                                                                                          \
    memcpy(&y, &v, sizeof y);                                                                                          \
    return y;                                                                                                          \
  }
#define EMULATED_2(name, type, lane, count, value)                                                                     \
  EMULATED type emulated_##name(type x, type y) {                                                                      \
    emulated_vector a, b, v;                                                                                           \
    memcpy(&a, &x, sizeof a);                                                                                          \
    memcpy(&b, &y, sizeof b);                                                                                          \
    for (int i = 0; i < (count); i++) v.lane[i] = (value);                                                             \
    memcpy(&x, &v, sizeof x);                                                                                          \
    return x;                                                                                                          \
  }
#define EMULATED_3(name, value)                                                                                        \
  EMULATED __m512 emulated_##name(__m512 x, __m512 y, __m512 z) {                                                      \
    emulated_vector a = {.floats = x}, b = {.floats = y}, c = {.floats = z}, v;                                        \
    for (int i = 0; i < 16; i++) v.f32[i] = (value);                                                                   \
    return v.floats;                                                                                                   \
  }

EMULATED_2(add_ps, __m512, f32, 16, a.f32[i] + b.f32[i])
EMULATED_2(sub_ps, __m512, f32, 16, a.f32[i] - b.f32[i])
EMULATED_2(mul_ps, __m512, f32, 16, a.f32[i] * b.f32[i])
EMULATED_2(max_ps, __m512, f32, 16, a.f32[i] > b.f32[i] ? a.f32[i] : b.f32[i])
EMULATED_2(min_ps, __m512, f32, 16, a.f32[i] < b.f32[i] ? a.f32[i] : b.f32[i])
EMULATED_2(scalef_ps, __m512, f32, 16, scalbnf(a.f32[i], (int)fmaxf(-1000, fminf(1000, floorf(b.f32[i])))))
EMULATED_1(sqrt_ps, __m512, __m512, f32, 16, sqrtf(a.f32[i]))
EMULATED_1(rint_ps, __m512, __m512, f32, 16, rintf(a.f32[i]))
EMULATED_3(fmadd_ps, fmaf(a.f32[i], b.f32[i], c.f32[i]))
EMULATED_3(fnmadd_ps, fmaf(-a.f32[i], b.f32[i], c.f32[i]))

EMULATED_2(add_epi32, __m512i, u32, 16, a.u32[i] + b.u32[i])
EMULATED_2(mullo_epi32, __m512i, u32, 16, a.u32[i] * b.u32[i])
EMULATED_2(max_epi32, __m512i, i32, 16, a.i32[i] > b.i32[i] ? a.i32[i] : b.i32[i])
EMULATED_2(sub_epi8, __m512i, u8, 64, (uint8_t)(a.u8[i] - b.u8[i]))
EMULATED_2(and_si512, __m512i, u64, 8, a.u64[i] & b.u64[i])
EMULATED_2(or_si512, __m512i, u64, 8, a.u64[i] | b.u64[i])
EMULATED_2(xor_si512, __m512i, u64, 8, a.u64[i] ^ b.u64[i])

EMULATED __m512i emulated_slli_epi32(__m512i x, int shift) {
  emulated_vector v = {.integers = x};
  for (int i = 0; i < 16; i++) v.u32[i] <<= shift;
  return v.integers;
}
EMULATED __m512i emulated_srli_epi32(__m512i x, int shift) {
  emulated_vector v = {.integers = x};
  for (int i = 0; i < 16; i++) v.u32[i] >>= shift;
  return v.integers;
}
EMULATED __m512i emulated_srli_epi16(__m512i x, int shift) {
  emulated_vector v = {.integers = x};
  for (int i = 0; i < 32; i++) v.u16[i] = (uint16_t)(v.u16[i] >> shift);
  return v.integers;
}
/* The reciprocal, cut to 14 bits. */
EMULATED __m512 emulated_rcp14_ps(__m512 x) {
  emulated_vector v = {.floats = x};
  for (int i = 0; i < 16; i++) {
    v.f32[i] = 1 / v.f32[i];
    v.u32[i] &= ~0x1ffu;
  }
  return v.floats;
}
EMULATED __m512i emulated_dpbusd_epi32(__m512i sum, __m512i x, __m512i y) {
  emulated_vector v = {.integers = sum}, a = {.integers = x}, b = {.integers = y};
  for (int i = 0; i < 16; i++)
    for (int j = 4 * i; j < 4 * i + 4; j++) v.i32[i] += a.u8[j] * b.i8[j];
  return v.integers;
}

/* ---- masks ---- */

EMULATED __m512 emulated_mask_mov_ps(__m512 other, __mmask16 mask, __m512 x) {
  emulated_vector v = {.floats = other}, a = {.floats = x};
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) v.u32[i] = a.u32[i];
  return v.floats;
}
EMULATED __m512i emulated_mask_mov_epi16(__m512i other, __mmask32 mask, __m512i x) {
  emulated_vector v = {.integers = other}, a = {.integers = x};
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1) v.u16[i] = a.u16[i];
  return v.integers;
}

/* ---- conversions ---- */

EMULATED_1(cvtepi32_ps, __m512, __m512i, f32, 16, (float)a.i32[i])
EMULATED __m512i emulated_maskz_cvtps_epi32(__mmask16 mask, __m512 x) {
  emulated_vector a = {.floats = x}, v;
  for (int i = 0; i < 16; i++) {
    const bool fits = a.f32[i] >= -0x1p31f && a.f32[i] < 0x1p31f;
    v.i32[i] = !(mask >> i & 1) ? 0 : fits ? (int32_t)rintf(a.f32[i]) : INT32_MIN;
  }
  return v.integers;
}
EMULATED __m128i emulated_cvtepi32_epi8(__m512i x) {
  emulated_vector a = {.integers = x};
  uint8_t y[16];
  for (int i = 0; i < 16; i++) y[i] = (uint8_t)a.u32[i];
  return _mm_loadu_si128((const void *)y);
}
EMULATED __m256i emulated_cvtepi32_epi16(__m512i x) {
  emulated_vector a = {.integers = x};
  uint16_t y[16];
  for (int i = 0; i < 16; i++) y[i] = (uint16_t)a.u32[i];
  return _mm256_loadu_si256((const void *)y);
}
EMULATED __m512i emulated_cvtepu8_epi32(__m128i x) {
  uint8_t a[16];
  emulated_vector v;
  memcpy(a, &x, sizeof a);
  for (int i = 0; i < 16; i++) v.u32[i] = a[i];
  return v.integers;
}
EMULATED __m512i emulated_cvtepu16_epi32(__m256i x) {
  uint16_t a[16];
  emulated_vector v;
  memcpy(a, &x, sizeof a);
  for (int i = 0; i < 16; i++) v.u32[i] = a[i];
  return v.integers;
}
EMULATED __m512 emulated_cvtph_ps(__m256i x) {
  uint16_t a[16];
  emulated_vector v;
  memcpy(a, &x, sizeof a);
  for (int i = 0; i < 16; i++) v.f32[i] = _cvtsh_ss(a[i]);
  return v.floats;
}
/* Nearest even; NaN stays NaN, a denormal becomes zero. */
EMULATED uint16_t emulated_bf16(uint32_t x) {
  const uint32_t magnitude = x & 0x7fffffff;
  if (magnitude > 0x7f800000) return (uint16_t)(x >> 16 | 0x40);
  if (magnitude < 0x00800000) return (uint16_t)(x >> 16 & 0x8000);
  return (uint16_t)((x + 0x7fff + (x >> 16 & 1)) >> 16);
}
EMULATED __m512bh emulated_cvtne2ps_pbh(__m512 high, __m512 low) {
  emulated_vector a = {.floats = low}, b = {.floats = high}, v;
  for (int i = 0; i < 16; i++) {
    v.u16[i] = emulated_bf16(a.u32[i]);
    v.u16[16 + i] = emulated_bf16(b.u32[i]);
  }
  return v.halves;
}
EMULATED __m256bh emulated_cvtneps_pbh(__m512 x) {
  emulated_vector a = {.floats = x};
  uint16_t half[16];
  for (int i = 0; i < 16; i++) half[i] = emulated_bf16(a.u32[i]);
  __m256bh y;
  memcpy(&y, half, sizeof y);
  return y;
}

/* ---- across lanes ---- */

EMULATED __m512i emulated_inserti64x4(__m512i x, __m256i half, int which) {
  memcpy((char *)&x + 32 * which, &half, sizeof half);
  return x;
}
EMULATED __m512i emulated_from_256(__m256i low) {
  __m512i x = {0};
  memcpy(&x, &low, sizeof low);
  return x;
}
EMULATED __m512i emulated_shuffle_i32x4(__m512i x, __m512i y, int which) {
  emulated_vector a = {.integers = x}, b = {.integers = y}, v;
  for (int quarter = 0; quarter < 4; quarter++, which >>= 2)
    memcpy(v.u32 + 4 * quarter, (quarter < 2 ? a.u32 : b.u32) + 4 * (which & 3), 16);
  return v.integers;
}
/* Words of `bytes` bytes of the lower or upper halves of each quarter, of x and y in turn. */
EMULATED __m512i emulated_unpack(__m512i x, __m512i y, size_t bytes, bool upper) {
  __m512i v;
  for (size_t quarter = 0; quarter < 64; quarter += 16)
    for (size_t at = 0; at < 8; at += bytes) {
      const size_t from = quarter + (upper ? 8 : 0) + at;
      memcpy((char *)&v + quarter + 2 * at, (const char *)&x + from, bytes);
      memcpy((char *)&v + quarter + 2 * at + bytes, (const char *)&y + from, bytes);
    }
  return v;
}
/* Halves upon each other, in the order compilers sum and compare. */
EMULATED float emulated_reduce_add_ps(__m512 x) {
  emulated_vector v = {.floats = x};
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; i++) v.f32[i] += v.f32[i + n];
  return v.f32[0];
}
EMULATED float emulated_reduce_max_ps(__m512 x) {
  emulated_vector v = {.floats = x};
  for (int i = 1; i < 16; i++) v.f32[0] = v.f32[0] > v.f32[i] ? v.f32[0] : v.f32[i];
  return v.f32[0];
}
EMULATED int32_t emulated_reduce_add_epi32(__m512i x) {
  emulated_vector v = {.integers = x};
  for (int i = 1; i < 16; i++) v.u32[0] += v.u32[i];
  return v.i32[0];
}
EMULATED int32_t emulated_reduce_max_epi32(__m512i x) {
  emulated_vector v = {.integers = x};
  for (int i = 1; i < 16; i++) v.i32[0] = v.i32[0] > v.i32[i] ? v.i32[0] : v.i32[i];
  return v.i32[0];
}

/* ---- tiles ---- */

enum { EMULATED_ROWS = 16, EMULATED_ROW_BYTES = 64 };

typedef union emulated_tile {
  uint8_t u8[EMULATED_ROWS][EMULATED_ROW_BYTES];
  int8_t i8[EMULATED_ROWS][EMULATED_ROW_BYTES];
  uint32_t u32[EMULATED_ROWS][EMULATED_ROW_BYTES / 4];
  int32_t i32[EMULATED_ROWS][EMULATED_ROW_BYTES / 4];
  float f32[EMULATED_ROWS][EMULATED_ROW_BYTES / 4];
} emulated_tile;

static _Thread_local struct {
  int rows[8], row_bytes[8]; /* 0: not configured */
  emulated_tile tile[8];
} emulated_tiles;

EMULATED void emulated_tile_release(void) {
  memset(&emulated_tiles, 0, sizeof emulated_tiles);
}
/* An invalid use is an invalid instruction there, and a trap here. */
EMULATED void emulated_check(bool valid) {
  if (!valid) __builtin_trap();
}
EMULATED void emulated_tile_loadconfig(const void *config) {
  uint8_t bytes[64];
  memcpy(bytes, config, sizeof bytes);
  emulated_check(bytes[0] == 1 && bytes[1] == 0);
  emulated_tile_release();
  for (int t = 0; t < 8; t++) {
    uint16_t row_bytes;
    memcpy(&row_bytes, bytes + 16 + 2 * t, sizeof row_bytes);
    emulated_tiles.rows[t] = bytes[48 + t];
    emulated_tiles.row_bytes[t] = row_bytes;
    emulated_check(bytes[48 + t] <= EMULATED_ROWS && row_bytes <= EMULATED_ROW_BYTES && !bytes[48 + t] == !row_bytes);
  }
}
EMULATED emulated_tile *emulated_configured(int t) {
  emulated_check(emulated_tiles.rows[t] > 0);
  return &emulated_tiles.tile[t];
}
EMULATED void emulated_tile_zero(int t) {
  memset(emulated_configured(t), 0, sizeof(emulated_tile));
}
EMULATED void emulated_tile_loadd(int t, const void *base, size_t stride) {
  emulated_tile_zero(t);
  for (int r = 0; r < emulated_tiles.rows[t]; r++)
    memcpy(emulated_tiles.tile[t].u8[r], (const char *)base + (size_t)r * stride, (size_t)emulated_tiles.row_bytes[t]);
}
EMULATED void emulated_tile_stored(int t, void *base, size_t stride) {
  const emulated_tile *from = emulated_configured(t);
  for (int r = 0; r < emulated_tiles.rows[t]; r++)
    memcpy((char *)base + (size_t)r * stride, from->u8[r], (size_t)emulated_tiles.row_bytes[t]);
}
/* Whether c [rows, 16] += a [rows, words] b [words, 16] may be asked for (narrower sums nobody uses). */
EMULATED void emulated_check_product(int c, int a, int b) {
  emulated_configured(a), emulated_configured(b), emulated_configured(c);
  emulated_check(emulated_tiles.rows[a] == emulated_tiles.rows[c]);
  emulated_check(emulated_tiles.row_bytes[a] == 4 * emulated_tiles.rows[b]);
  emulated_check(emulated_tiles.row_bytes[b] == EMULATED_ROW_BYTES &&
                 emulated_tiles.row_bytes[c] == EMULATED_ROW_BYTES);
}

typedef union emulated_pair {
  uint32_t u32[2];
  float f32[2];
} emulated_pair;

static inline __attribute__((always_inline)) emulated_pair emulated_widen(uint32_t halves) {
  return (emulated_pair){{halves << 16, halves & 0xffff0000u}};
}

/* Even and odd inputs are summed apart, each product and sum rounded once together. */
EMULATED void emulated_half_products(int rows, int pairs, const emulated_tile *a, const emulated_tile *b,
                                     emulated_tile *c) {
  for (int r = 0; r < rows; r++) {
    float even[16] = {0}, odd[16] = {0};
    for (int k = 0; k < pairs; k++) {
      const emulated_pair x = emulated_widen(a->u32[r][k]);
      for (int n = 0; n < 16; n++) {
        const emulated_pair y = emulated_widen(b->u32[k][n]);
        even[n] = fmaf(x.f32[0], y.f32[0], even[n]);
        odd[n] = fmaf(x.f32[1], y.f32[1], odd[n]);
      }
    }
    for (int n = 0; n < 16; n++) c->f32[r][n] += even[n] + odd[n];
  }
}
/* Denormals are zero, going in and coming out. */
EMULATED void emulated_tile_dpbf16ps(int c, int a, int b) {
  emulated_check_product(c, a, b);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
  emulated_half_products(emulated_tiles.rows[c], emulated_tiles.rows[b], &emulated_tiles.tile[a],
                         &emulated_tiles.tile[b], &emulated_tiles.tile[c]);
  _mm_setcsr(before);
}
EMULATED void emulated_tile_dpbssd(int c, int a, int b) {
  emulated_check_product(c, a, b);
  const emulated_tile *x = &emulated_tiles.tile[a], *y = &emulated_tiles.tile[b];
  for (int r = 0; r < emulated_tiles.rows[c]; r++)
    for (int k = 0; k < emulated_tiles.rows[b]; k++)
      for (int n = 0; n < EMULATED_ROW_BYTES / 4; n++)
        for (int j = 0; j < 4; j++) emulated_tiles.tile[c].i32[r][n] += x->i8[r][4 * k + j] * y->i8[k][4 * n + j];
}

/* ---- the instructions' names, some of them macros in the compiler's header ---- */

#undef _mm512_i32scatter_epi32
#undef _mm512_inserti64x4
#undef _mm512_mask_i32gather_ps
#undef _mm512_roundscale_ps
#undef _mm512_shuffle_i32x4
#undef _mm512_slli_epi32
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero

#define _mm512_add_epi32 emulated_add_epi32
#define _mm512_add_ps emulated_add_ps
#define _mm512_and_si512 emulated_and_si512
#define _mm512_castps_si512(x) ((__m512i)(x))
#define _mm512_castsi256_si512 emulated_from_256
#define _mm512_castsi512_ps(x) ((__m512)(x))
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh
#define _mm512_cvtneps_pbh emulated_cvtneps_pbh
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_dpbusd_epi32 emulated_dpbusd_epi32
#define _mm512_fmadd_ps emulated_fmadd_ps
#define _mm512_fnmadd_ps emulated_fnmadd_ps
#define _mm512_i32scatter_epi32 emulated_i32scatter_epi32
#define _mm512_inserti64x4 emulated_inserti64x4
#define _mm512_load_ps(from) emulated_load_ps(emulated_aligned(from))
#define _mm512_load_si512(from) emulated_load_si512(emulated_aligned(from))
#define _mm512_loadu_ps emulated_load_ps
#define _mm512_loadu_si512 emulated_load_si512
#define _mm512_mask_i32gather_ps emulated_mask_i32gather_ps
#define _mm512_mask_max_ps(other, mask, a, b) emulated_mask_mov_ps(other, mask, emulated_max_ps(a, b))
#define _mm512_mask_mov_epi16 emulated_mask_mov_epi16
#define _mm512_maskz_cvtps_epi32 emulated_maskz_cvtps_epi32
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_maskz_mov_epi16(mask, x) emulated_mask_mov_epi16(emulated_set1_epi32(0), mask, x)
#define _mm512_maskz_mov_ps(mask, x) emulated_mask_mov_ps(emulated_set1_ps(0), mask, x)
#define _mm512_max_epi32 emulated_max_epi32
#define _mm512_max_ps emulated_max_ps
#define _mm512_min_ps emulated_min_ps
#define _mm512_mul_ps emulated_mul_ps
#define _mm512_mullo_epi32 emulated_mullo_epi32
#define _mm512_or_si512 emulated_or_si512
#define _mm512_rcp14_ps emulated_rcp14_ps
#define _mm512_reduce_add_epi32 emulated_reduce_add_epi32
#define _mm512_reduce_add_ps emulated_reduce_add_ps
#define _mm512_reduce_max_epi32 emulated_reduce_max_epi32
#define _mm512_reduce_max_ps emulated_reduce_max_ps
#define _mm512_roundscale_ps(x, how)                                                                                   \
  (emulated_check((how) == (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)), emulated_rint_ps(x))
#define _mm512_scalef_ps emulated_scalef_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm512_set1_epi8 emulated_set1_epi8
#define _mm512_set1_ps emulated_set1_ps
#define _mm512_set_epi32(p, o, n, m, l, k, j, i, h, g, f, e, d, c, b, a)                                               \
  (((const emulated_vector){.i32 = {a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p}}).integers)
#define _mm512_setzero_ps() emulated_set1_ps(0)
#define _mm512_setzero_si512() emulated_set1_epi32(0)
#define _mm512_shuffle_i32x4 emulated_shuffle_i32x4
#define _mm512_slli_epi32 emulated_slli_epi32
#define _mm512_sqrt_ps emulated_sqrt_ps
#define _mm512_srli_epi16 emulated_srli_epi16
#define _mm512_srli_epi32 emulated_srli_epi32
#define _mm512_store_ps(to, x) emulated_store_ps((void *)(uintptr_t)emulated_aligned(to), x)
#define _mm512_store_si512(to, x) emulated_store_si512((void *)(uintptr_t)emulated_aligned(to), x)
#define _mm512_storeu_ps emulated_store_ps
#define _mm512_storeu_si512 emulated_store_si512
#define _mm512_sub_epi8 emulated_sub_epi8
#define _mm512_sub_ps emulated_sub_ps
#define _mm512_unpackhi_epi32(x, y) emulated_unpack(x, y, 4, true)
#define _mm512_unpackhi_epi64(x, y) emulated_unpack(x, y, 8, true)
#define _mm512_unpacklo_epi32(x, y) emulated_unpack(x, y, 4, false)
#define _mm512_unpacklo_epi64(x, y) emulated_unpack(x, y, 8, false)
#define _mm512_xor_si512 emulated_xor_si512
#define _tile_dpbf16ps emulated_tile_dpbf16ps
#define _tile_dpbssd emulated_tile_dpbssd
#define _tile_loadconfig emulated_tile_loadconfig
#define _tile_loadd emulated_tile_loadd
#define _tile_release emulated_tile_release
#define _tile_stored emulated_tile_stored
#define _tile_zero emulated_tile_zero

#endif
