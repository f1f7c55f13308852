/* layout.h's matrices, keys and values written and read with AVX-512, for the files of the avx512 and amx levels. */
#ifndef UST_KERNEL_BF16_LAYOUT_H
#define UST_KERNEL_BF16_LAYOUT_H

#include <immintrin.h>

#include "kernel/layout.h"

/* The left strip of the panel a thread meets after `panel`: of the same matrix, or the first of its share of the
 * next. */
static inline const char *panel_after(const ust_matrix *w, int panel, int begin, int end) {
  if (panel + 1 < end) return strip_of(w, 2 * (panel + 1));
  if (!w->next) return NULL;
  int64_t panels = UST_ROUND_UP(w->rows, UST_PANEL) / UST_PANEL,
          next = UST_ROUND_UP(w->next->rows, UST_PANEL) / UST_PANEL;
  return strip_of(w->next, 2 * (int)(next * begin / panels));
}

/* f32 whose upper halves are the values rounded to the nearest bf16, ties to even. */
static inline __m512i round_bf16(__m512 x) {
  __m512i bits = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
}

/* Two rows of 16 f32 (inputs k and k+1 of 16 columns) -> 16 pairs. */
static inline __m512i pair_bf16(__m512 even, __m512 odd) {
  return _mm512_or_si512(_mm512_srli_epi32(round_bf16(even), 16),
                         _mm512_and_si512(round_bf16(odd), _mm512_set1_epi32((int)0xffff0000)));
}

static inline __m512 pair_even(__m512i pair) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
}
static inline __m512 pair_odd(__m512i pair) {
  return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
}

/* 16 x 16 words of 32 bits, transposed in place. */
static inline void transpose16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) { /* r[i + 4 g]: word i of each quarter, rows 4g … 4g+3 */
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

/* 32 consecutive f32 -> 16 pairs */
static inline __m512i row_pairs(__m512 low, __m512 high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bf16(low), 16))),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bf16(high), 16)), 1);
}

/* A whole block of 16 columns x 32 inputs whose inputs are consecutive in the source. */
static inline void pack_block(const float *source, size_t row_stride, char *to) {
  __m512i rows[16];
  for (int r = 0; r < 16; r++)
    rows[r] = row_pairs(_mm512_loadu_ps(source + (size_t)r * row_stride),
                        _mm512_loadu_ps(source + (size_t)r * row_stride + 16));
  transpose16(rows);
  for (int r = 0; r < 16; r++) _mm512_store_si512((void *)(to + 64 * r), rows[r]);
}

/* A block of 16 columns whose columns, not inputs, are consecutive in the source. */
static inline void pack_block_across(const float *source, size_t col_stride, char *to) {
  for (int k = 0; k < BLOCK; k += 2, to += 64)
    _mm512_store_si512((void *)to, pair_bf16(_mm512_loadu_ps(source + (size_t)k * col_stride),
                                             _mm512_loadu_ps(source + (size_t)(k + 1) * col_stride)));
}

static void bf16_pack_inputs(const ust_matrix *m, int input, const float *x, size_t x_stride, int inputs) {
  for (int k = 0; k < inputs; k += BLOCK)
    for (int r = 0; r < m->rows; r += STRIP)
      pack_block_across(x + (size_t)k * x_stride + r, x_stride,
                        (char *)(uintptr_t)strip_of(m, r / STRIP) + (size_t)(input + k) / BLOCK * TILE);
}

static void layout_pack(ust_matrix *m, int row, int count, const float *source, size_t row_stride, size_t col_stride) {
  int blocks = block_count(m->cols), last = UST_ROUND_UP(row + count, UST_PANEL);
  __m512i rows16 = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                      _mm512_set1_epi32((int)row_stride));
  for (int r = row; r < last; r += STRIP) {
    int valid = UST_MAX(0, UST_MIN(STRIP, row + count - r));
    __mmask16 mask = (__mmask16)((1u << valid) - 1);
    const float *from = source + (size_t)(r - row) * row_stride;
    char *to = (char *)m->data + (size_t)(r / STRIP) * blocks * TILE;
    int k = 0;
    if (col_stride == 1 && valid == STRIP)
      for (; k + BLOCK <= m->cols; k += BLOCK, to += TILE) pack_block(from + k, row_stride, to);
    for (; k < blocks * BLOCK; k += 2, to += 64) {
      __m512 value[2];
      for (int i = 0; i < 2; i++) {
        const float *column = from + (size_t)(k + i) * col_stride;
        if (k + i >= m->cols)
          value[i] = _mm512_setzero_ps();
        else if (row_stride == 1)
          value[i] = _mm512_maskz_loadu_ps(mask, column);
        else
          value[i] = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, rows16, column, 4);
      }
      _mm512_store_si512((void *)to, pair_bf16(value[0], value[1]));
    }
  }
}

/* ---- keys and values ---- */

/* 16 coordinates from `d` on; zeros past the head's last. */
static inline __m512 head_lanes(const float *x, int d, int head_dim) {
  int left = UST_MAX(0, UST_MIN(16, head_dim - d));
  return _mm512_maskz_loadu_ps((__mmask16)((1u << left) - 1), x + d);
}

static void layout_kv_store(void *kv, int slots, int head_dim, int slot, const float *k, const float *v) {
  int dim = kv_dim(head_dim);
  uint16_t *key = (uint16_t *)kv + (size_t)(slot / 16) * 16 * dim + (slot % 16) * 2;
  uint16_t *value = kv_values(kv, slots, dim) + (size_t)(slot / 2) * 2 * dim;
  const __m512i every16 = _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 4);
  __mmask32 half = slot % 2 ? 0xaaaaaaaau : 0x55555555u;
  for (int d = 0; d < dim; d += 32, key += 16 * 32)
    _mm512_i32scatter_epi32(key, every16, row_pairs(head_lanes(k, d, head_dim), head_lanes(k, d + 16, head_dim)), 4);
  for (int d = 0; d < dim; d += 16, value += 32) {
    __m512 x = head_lanes(v, d, head_dim);
    _mm512_storeu_si512(value, _mm512_mask_mov_epi16(_mm512_loadu_si512(value), half, pair_bf16(x, x)));
  }
}

/* sum[dim] += p[i] * value of position i, one position after the other from `begin` to `end`. Up to 4 vectors
 * of 16 coordinates at a time stay in registers. */
static inline void values_add(const uint16_t *values, int dim, const ust_attention_rows *rows, int row, const float *p,
                              int begin, int end, float *sum) {
  for (int d = 0; d < dim; d += 64) {
    int vectors = UST_MIN(4, (dim - d) / 16);
    __m512 acc[4];
    for (int i = 0; i < vectors; i++) acc[i] = _mm512_loadu_ps(sum + d + 16 * i);
    for (int at = begin; at < end; at++) {
      int slot = row_slot(rows, row, at);
      const uint16_t *pairs = values + (size_t)(slot / 2) * 2 * dim + 2 * d;
      __m512 weight = _mm512_set1_ps(p[at]);
      if (slot % 2)
        for (int i = 0; i < vectors; i++)
          acc[i] = _mm512_fmadd_ps(weight, pair_odd(_mm512_loadu_si512(pairs + 32 * i)), acc[i]);
      else
        for (int i = 0; i < vectors; i++)
          acc[i] = _mm512_fmadd_ps(weight, pair_even(_mm512_loadu_si512(pairs + 32 * i)), acc[i]);
    }
    for (int i = 0; i < vectors; i++) _mm512_storeu_ps(sum + d + 16 * i, acc[i]);
  }
}

static inline void bf16_layout_fill(ust_kernels *table) {
  layout_fill(table);
  table->pack = layout_pack;
  table->pack_inputs = bf16_pack_inputs;
  table->kv_store = layout_kv_store;
}

#endif
