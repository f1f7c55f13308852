/* The AVX-512 level (F, BW, VL, DQ, VNNI): f32 activations, bf16 keys and values, products and sums in f32 lanes.
 * Each output is one chain of fused multiply-adds over the inputs in order, whatever the number of rows. */
#include "kernel/kernel.h"

typedef float activation;
static inline activation to_activation(float x) {
  return x;
}
#include "kernel/rows.h"
#include "kernel/training.h"

#include "kernel/vnni.h"

enum { GROUP = 8 /* rows that share one load of the weights: 16 accumulators */ };

static inline __attribute__((always_inline)) void matmul_group(const ust_matrix *w, int panel, const float *x,
                                                               size_t x_stride, int rows, float sums[][UST_PANEL]) {
  int blocks = block_count(w->cols);
  const char *left = strip_of(w, 2 * panel), *right = strip_of(w, 2 * panel + 1);
  __m512 acc[GROUP][2];
  for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  for (int b = 0; b < blocks; b++, left += TILE, right += TILE) {
    const float *in = x + (size_t)b * BLOCK;
#pragma GCC unroll 4
    for (int pair = 0; pair < BLOCK / 2; pair++) {
      __m512i words[2] = {_mm512_load_si512((const void *)(left + pair * 64)),
                          _mm512_load_si512((const void *)(right + pair * 64))};
      for (int r = 0; r < rows; r++) {
        __m512 a = _mm512_set1_ps(in[(size_t)r * x_stride + 2 * pair]);
        __m512 c = _mm512_set1_ps(in[(size_t)r * x_stride + 2 * pair + 1]);
        acc[r][0] = _mm512_fmadd_ps(a, pair_even(words[0]), acc[r][0]);
        acc[r][1] = _mm512_fmadd_ps(a, pair_even(words[1]), acc[r][1]);
        acc[r][0] = _mm512_fmadd_ps(c, pair_odd(words[0]), acc[r][0]);
        acc[r][1] = _mm512_fmadd_ps(c, pair_odd(words[1]), acc[r][1]);
      }
    }
  }
  for (int r = 0; r < rows; r++) {
    _mm512_storeu_ps(sums[r], acc[r][0]);
    _mm512_storeu_ps(sums[r] + STRIP, acc[r][1]);
  }
}

#define GROUP_OF(n)                                                                                                    \
  case n:                                                                                                              \
    matmul_group(w, panel, x, x_stride, n, sums);                                                                      \
    break;

static void matmul_rows(const ust_matrix *w, int panel, const float *x, size_t x_stride, int rows,
                        float sums[][UST_PANEL]) {
  switch (rows) {
    GROUP_OF(1)
    GROUP_OF(2)
    GROUP_OF(3)
    GROUP_OF(4)
    GROUP_OF(5)
    GROUP_OF(6)
    GROUP_OF(7)
    GROUP_OF(8)
  }
}

/* Rows of a quantised matrix's product, in groups of integers(); each panel meets all of them. */
static void matmul_quantised(const ust_matrix *w, int panel, int panel_end, void *integer_rows, int rows,
                             const float *bias, ust_epilogue epilogue, void *y, size_t y_stride) {
  const integers x = integers_at(integer_rows, rows, w->cols);
  const int step = x.height == 12 ? 6 : UST_INTEGER_FEW;
  float sums[UST_INTEGER_FEW][2 * UST_PANEL];
  for (int p = panel, panels; p < panel_end; p += panels) {
    panels = rows == 1 && p + 1 < panel_end ? 2 : 1;
    const char *after = panel_after(w, p + panels - 1, panel, panel_end);
    size_t after_strip = p + panels < panel_end || !after ? strip_bytes(w) : strip_bytes(w->next);
    for (int r = 0, count; r < rows; r += count) {
      count = UST_MIN(step, UST_MIN(rows - r, x.height - r % x.height));
      far_streams far = far_of(r == 0 ? after : NULL, 2 * (size_t)panels * after_strip, x.blocks);
      vnni_panels(w, p, panels, far, &x, r, count, sums[0], 2 * UST_PANEL);
      for (int i = 0; i < count * panels; i++) {
        int at = p + i / count;
        row_finish(sums[i % count] + i / count * UST_PANEL, bias ? bias + (size_t)at * UST_PANEL : NULL, epilogue, y,
                   (size_t)(r + i % count) * y_stride + (size_t)at * UST_PANEL);
      }
    }
  }
}

static void matmul(const ust_matrix *w, int panel, int panel_end, const void *x, size_t x_stride, int rows,
                   const float *bias, ust_epilogue epilogue, void *y, size_t y_stride) {
  float sums[GROUP][UST_PANEL];
  if (ust_is_quantised(w->format)) {
    matmul_quantised(w, panel, panel_end, (void *)(uintptr_t)x, rows, bias, epilogue, y, y_stride);
    return;
  }
  for (int p = panel; p < panel_end; p++)
    for (int r0 = 0; r0 < rows; r0 += GROUP) {
      int count = UST_MIN(GROUP, rows - r0);
      matmul_rows(w, p, (const float *)x + (size_t)r0 * x_stride, x_stride, count, sums);
      for (int r = 0; r < count; r++)
        row_finish(sums[r], bias ? bias + (size_t)p * UST_PANEL : NULL, epilogue, y,
                   (size_t)(r0 + r) * y_stride + (size_t)p * UST_PANEL);
    }
}

/* ---- attention: 4 rows at a time against 16 keys in lanes ---- */

enum { QUERIES = 4 };

static inline size_t score_stride(int slots) {
  return (size_t)UST_ROUND_UP(slots, 32) + 16;
}

static size_t attention_scratch(int rows, int slots, int head_dim) {
  (void)rows;
  return (QUERIES * score_stride(slots) + (size_t)(QUERIES + 1) * kv_dim(head_dim)) * sizeof(float);
}

/* s[r][slot] = q[r] . key, for slots up to `slot_end` */
static void scores(const uint16_t *keys, int dim, int slot_end, const float *q, int count, float *s, size_t s_stride) {
  for (int block = 0; block * 16 < slot_end; block++) {
    const uint16_t *key = keys + (size_t)block * 16 * dim;
    __m512 acc[QUERIES];
    for (int r = 0; r < QUERIES; r++) acc[r] = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += 2) {
      __m512i pair = _mm512_loadu_si512(key + (size_t)d * 16);
      __m512 even = pair_even(pair), odd = pair_odd(pair);
      for (int r = 0; r < QUERIES; r++) {
        acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r * dim + d]), even, acc[r]);
        acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r * dim + d + 1]), odd, acc[r]);
      }
    }
    for (int r = 0; r < count; r++) _mm512_storeu_ps(s + (size_t)r * s_stride + block * 16, acc[r]);
  }
}

static void attention(const void *kv, int slots, int head_dim, const ust_attention_rows *rows, const float *q,
                      size_t q_stride, void *out, size_t out_stride, void *scratch) {
  int dim = kv_dim(head_dim);
  const uint16_t *keys = kv, *values = keys + (size_t)slots * dim;
  size_t s_stride = score_stride(slots);
  float *s = scratch, *queries = s + QUERIES * s_stride, *sum = queries + QUERIES * dim;
  float scale = 1.0f / sqrtf((float)head_dim);
  for (int r0 = 0; r0 < rows->rows; r0 += QUERIES) {
    int count = UST_MIN(QUERIES, rows->rows - r0), slot_end = 0;
    memset(queries, 0, (size_t)QUERIES * dim * sizeof(float));
    for (int r = 0; r < count; r++) {
      memcpy(queries + r * dim, q + (size_t)(r0 + r) * q_stride, (size_t)head_dim * sizeof(float));
      slot_end = UST_MAX(slot_end, row_slot(rows, r0 + r, rows->keys[r0 + r] - 1) + 1);
    }
    scores(keys, dim, slot_end, queries, count, s, s_stride);
    for (int r = 0; r < count; r++) {
      float *row = s + (size_t)r * s_stride;
      int n = rows->keys[r0 + r];
      row_order(row, rows, r0 + r);
      float inverse = 1.0f / row_softmax(row, n, scale);
      memset(sum, 0, (size_t)dim * sizeof(float));
      values_add(values, dim, rows, r0 + r, row, 0, n, sum);
      activation *to = (activation *)out + (size_t)(r0 + r) * out_stride;
      for (int d = 0; d < head_dim; d++) to[d] = to_activation(sum[d] * inverse);
    }
  }
}

void ust_avx512_fill(ust_kernels *table) {
  rows_fill(table);
  training_fill(table);
  bf16_layout_fill(table);
  table->integers_bytes = integers_bytes;
  table->integers = vnni_integers;
  table->matmul = matmul;
  table->attention_scratch = attention_scratch;
  table->attention = attention;
}
