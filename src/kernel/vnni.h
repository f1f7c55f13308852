/* Products with quantised matrices on 512-bit vectors (VPDPBUSD: unsigned by signed bytes, four to a sum), for any
 * number of rows at the avx512 level and few at the amx level. Layouts: quantised.h.
 *
 * The weights are made unsigned by adding 128 or 8 (Q4K's are), which the negative sum of the block's integers, as the
 * first term, takes away again. */
#ifndef UST_KERNEL_VNNI_H
#define UST_KERNEL_VNNI_H

#include "kernel/bf16_layout.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* ---- rows to integers ---- */

/* 16 activations. */
ALWAYS_INLINE __m512 activation_lanes(const activation *x) {
  if (sizeof *x == 4) return _mm512_loadu_ps(x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x)), 16));
}

static void vnni_integers(const void *x, size_t x_stride, int rows, int cols, int row, int row_end, void *out) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  integers to = integers_at(out, rows, cols);
  int n = UST_ROUND_UP(cols, UST_BLOCK);
  for (int r = row; r < (row_end == rows ? to.groups * to.height : row_end); r++) {
    const activation *from = (const activation *)x + (size_t)r * x_stride;
    size_t at = integers_line(&to, r);
    for (int b = 0; b < to.blocks; b++, at += (size_t)to.height) {
      __m128i *line = (__m128i *)(void *)(to.lines + at * UST_BLOCK);
      const bool empty = r >= rows || b * UST_BLOCK >= n;
      const __m512 low = empty ? _mm512_setzero_ps() : activation_lanes(from + b * UST_BLOCK);
      const __m512 high = empty ? _mm512_setzero_ps() : activation_lanes(from + b * UST_BLOCK + 16);
      __m512i most = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                                      _mm512_and_si512(_mm512_castps_si512(high), magnitude));
      float inverse;
      to.scales[at] = integers_scale((uint32_t)_mm512_reduce_max_epi32(most), &inverse);
      __mmask16 any = inverse == 0 ? 0 : 0xffff;
      __m512i left = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(low, _mm512_set1_ps(inverse)));
      __m512i right = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(high, _mm512_set1_ps(inverse)));
      _mm_store_si128(line, _mm512_cvtepi32_epi8(left));
      _mm_store_si128(line + 1, _mm512_cvtepi32_epi8(right));
      to.sums[at] = -_mm512_reduce_add_epi32(_mm512_add_epi32(left, right));
    }
  }
}

/* ---- products ---- */

/* Scales, and minima for Q4K, of block `block` of a strip. */
typedef struct block_scales {
  __m512 scale, minimum;
} block_scales;

ALWAYS_INLINE __m512 f16_lanes(const char *from) {
  return _mm512_cvtph_ps(_mm256_load_si256((const void *)from));
}
ALWAYS_INLINE __m512 byte_lanes(const char *from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const void *)from)));
}
/* `from`: the block's scales. */
ALWAYS_INLINE block_scales scales_of(ust_format format, const char *strip, const char *from, int block) {
  if (format != UST_FORMAT_Q4K) return (block_scales){f16_lanes(from), _mm512_setzero_ps()};
  const char *both = strip + (size_t)(block / 8) * Q_LINE;
  return (block_scales){_mm512_mul_ps(f16_lanes(both), byte_lanes(from)),
                        _mm512_mul_ps(f16_lanes(both + 32), byte_lanes(from + 16))};
}

/* sum + scale * t (- minimum * the line's sum of integers), for a line of a row with this scale */
ALWAYS_INLINE __m512 add_block(ust_format format, __m512 sum, __m512i t, block_scales s, const int32_t *negative,
                               const float *scale) {
  const __m512 of_row = _mm512_set1_ps(*scale);
  sum = _mm512_fmadd_ps(_mm512_mul_ps(s.scale, of_row), _mm512_cvtepi32_ps(t), sum);
  if (format == UST_FORMAT_Q4K)
    sum = _mm512_fmadd_ps(_mm512_mul_ps(s.minimum, of_row), _mm512_cvtepi32_ps(_mm512_set1_epi32(*negative)), sum);
  return sum;
}

/* Four inputs of 16 columns, unsigned. */
ALWAYS_INLINE __m512i quad_lanes(ust_format format, const char *lines, int quad) {
  __m512i line = _mm512_load_si512((const void *)(lines + quad % quantised_lines(format) * Q_LINE));
  if (format == UST_FORMAT_Q8) return _mm512_xor_si512(line, _mm512_set1_epi8((char)0x80));
  if (quad >= 4) line = _mm512_srli_epi16(line, 4);
  return _mm512_and_si512(line, _mm512_set1_epi8(15));
}

ALWAYS_INLINE __m512i four_bytes(const int8_t *from) {
  int32_t bytes;
  memcpy(&bytes, from, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

enum { STRIPS = 4 /* most strips multiplied side by side */, FAR_STREAMS = 8 };

/* What comes into the second-level cache meanwhile: FAR_STREAMS pieces `apart` bytes from each other, `lines` of each a
 * block, until a piece is through. */
typedef struct far_streams {
  const char *at, *end; /* of the first */
  size_t apart;
  int lines;
} far_streams;

static const char nothing_far[1];
#define NOTHING_FAR ((far_streams){.at = nothing_far, .end = nothing_far})

static inline far_streams far_of(const char *begin, size_t bytes, int blocks) {
  if (!begin) return NOTHING_FAR;
  size_t apart = bytes / FAR_STREAMS, lines = (apart + Q_LINE - 1) / Q_LINE;
  return (far_streams){begin, begin + apart, apart, (int)((lines + (size_t)blocks - 1) / (size_t)blocks)};
}
/* The `part`th of `parts` shares of a block's requests. */
ALWAYS_INLINE void far_request(const far_streams *far, int part, int parts) {
  for (int s = part; s < FAR_STREAMS && far->at < far->end; s += parts)
    for (int l = 0; l < far->lines; l++) _mm_prefetch(far->at + (size_t)s * far->apart + l * Q_LINE, _MM_HINT_T1);
}
ALWAYS_INLINE void far_advance(far_streams *far) {
  far->at += far->lines * Q_LINE;
}

/* c[r][16 s ...] = rows `row`... of x times strip s. */
ALWAYS_INLINE void vnni_sums(ust_format format, int strips, int rows, const char *const strip[], far_streams far,
                             size_t head, const integers *x, int row, float *c, size_t c_stride) {
  const int shift = format == UST_FORMAT_Q8 ? 7 : 3;
  const size_t height = (size_t)x->height, pair_bytes = quantised_pair(format);
  const size_t first = integers_line(x, row);
  const char *pairs[STRIPS];
  __m512 sum[STRIPS][UST_INTEGER_FEW];
#pragma GCC unroll 4
  for (int s = 0; s < strips; s++) {
    pairs[s] = strip[s] + head;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[s][r] = _mm512_setzero_ps();
  }
  for (int b = 0; b < x->blocks; b++) {
    const size_t at = first + (size_t)b * height;
    const int8_t *line = x->lines + at * UST_BLOCK;
    const size_t scales = (size_t)(b % 2) * 32;
    const size_t lines = Q_LINE + (size_t)(b % 2) * (size_t)quantised_lines(format) * Q_LINE;
    __m512i t[STRIPS][UST_INTEGER_FEW];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      __m512i start = _mm512_setzero_si512();
      if (format != UST_FORMAT_Q4K) start = _mm512_slli_epi32(_mm512_set1_epi32(x->sums[at + (size_t)r]), shift);
#pragma GCC unroll 4
      for (int s = 0; s < strips; s++) t[s][r] = start;
    }
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; quad++) {
      far_request(&far, quad, 8);
#pragma GCC unroll 4
      for (int s = 0; s < strips; s++) {
        __m512i weights = quad_lanes(format, pairs[s] + lines, quad);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
          t[s][r] = _mm512_dpbusd_epi32(t[s][r], weights, four_bytes(line + r * UST_BLOCK + quad * 4));
      }
    }
    far_advance(&far);
#pragma GCC unroll 4
    for (int s = 0; s < strips; s++) {
      block_scales of = scales_of(format, strip[s], pairs[s] + scales, b);
#pragma GCC unroll 8
      for (int r = 0; r < rows; r++)
        sum[s][r] = add_block(format, sum[s][r], t[s][r], of, x->sums + at + r, x->scales + at + r);
      if (b % 2) pairs[s] += pair_bytes;
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < strips; s++)
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) _mm512_storeu_ps(c + (size_t)r * c_stride + s * STRIP, sum[s][r]);
}

/* Up to UST_INTEGER_FEW rows: two panels for one row, one otherwise; of many rows one strip after the other, as their
 * sums fill the registers. */
ALWAYS_INLINE void vnni_rows(ust_format format, int panels, const char *const strip[], far_streams far, size_t head,
                             const integers *x, int row, int rows, float *c, size_t c_stride) {
#define SIDE_BY_SIDE(n)                                                                                                \
  case n:                                                                                                              \
    vnni_sums(format, 2, n, strip, far, head, x, row, c, c_stride);                                                    \
    break
#define ONE_BY_ONE(n)                                                                                                  \
  case n:                                                                                                              \
    vnni_sums(format, 1, n, strip, far, head, x, row, c, c_stride);                                                    \
    vnni_sums(format, 1, n, strip + 1, NOTHING_FAR, head, x, row, c + STRIP, c_stride);                                \
    break
  if (panels == 2) {
    vnni_sums(format, 4, 1, strip, far, head, x, row, c, c_stride);
    return;
  }
  switch (rows) {
    SIDE_BY_SIDE(1);
    SIDE_BY_SIDE(2);
    SIDE_BY_SIDE(3);
    SIDE_BY_SIDE(4);
    SIDE_BY_SIDE(5);
    SIDE_BY_SIDE(6);
    ONE_BY_ONE(7);
    ONE_BY_ONE(8);
  }
#undef SIDE_BY_SIDE
#undef ONE_BY_ONE
}

/* Rows of x from `row` on, in one group, times panel `panel`, or for one row alone two panels: c[row][c_stride]. */
static void vnni_panels(const ust_matrix *w, int panel, int panels, far_streams far, const integers *x, int row,
                        int rows, float *c, size_t c_stride) {
  const char *strip[STRIPS] = {0};
  for (int s = 0; s < 2 * panels; s++) strip[s] = strip_of(w, 2 * panel + s);
  size_t head = quantised_head(w->format, w->cols);
  if (w->format == UST_FORMAT_Q8)
    vnni_rows(UST_FORMAT_Q8, panels, strip, far, head, x, row, rows, c, c_stride);
  else if (w->format == UST_FORMAT_Q4)
    vnni_rows(UST_FORMAT_Q4, panels, strip, far, head, x, row, rows, c, c_stride);
  else
    vnni_rows(UST_FORMAT_Q4K, panels, strip, far, head, x, row, rows, c, c_stride);
}

#undef ALWAYS_INLINE

#endif
