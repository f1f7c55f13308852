/* The AVX2 + FMA level: f32 activations, keys and values; weights widened to f32 in registers
 * (one or two rows) or in the first-level cache (more).
 *
 * Matrix: panels of 32 output columns, each a run of k-blocks of 32 inputs. A BF16 block is [16 input pairs]
 * [32 columns][2] bf16 = 2 KiB. Quantised ones: quantised.h.
 * Keys of a head: [slot/8][head_dim][8 slots] f32; values: [slot][head_dim rounded up to 8] f32.
 *
 * Every output is one chain of fused multiply-adds over the inputs in order, so that a row has the same bits in
 * any company. */
#include "kernel/kernel.h"

#include <immintrin.h>

typedef float activation;
static inline activation to_activation(float x) {
  return x;
}
#include "kernel/rows.h"
#include "kernel/training.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
  BLOCK = 32,                         /* inputs of a block */
  BF16_BLOCK = BLOCK * UST_PANEL * 2, /* bytes */
  CHUNK = 4,             /* blocks widened at a time: 16 KiB of f32 */
  GROUP = 6,             /* rows that share one load of the weights */
  MOST_ROWS = 16 * GROUP /* rows that share one widening */
};

typedef int16_t integer;
#include "kernel/quantised.h"

/* ---- matrices ---- */

static int block_count(int cols) {
  return UST_ROUND_UP(cols, BLOCK) / BLOCK;
}

static size_t matrix_bytes(ust_format format, int rows, int cols) {
  if (ust_is_quantised(format)) return quantised_bytes(format, rows, cols);
  return (size_t)UST_ROUND_UP(rows, UST_PANEL) / UST_PANEL * (size_t)block_count(cols) * BF16_BLOCK;
}

static unsigned char *panel_of(const ust_matrix *m, int panel) {
  return (unsigned char *)m->data + (size_t)panel * (size_t)block_count(m->cols) * BF16_BLOCK;
}

/* Where input k of a column lies among the [pair][column][2] values of its block. */
static inline int place(int k, int column) {
  return k / 2 * 2 * UST_PANEL + column * 2 + k % 2;
}

static void pack(ust_matrix *m, int row, int count, const float *source, size_t row_stride, size_t col_stride) {
  for (int r0 = row; r0 < row + count; r0 += UST_PANEL) {
    int columns = UST_MIN(UST_PANEL, row + count - r0);
    const float *from = source + (size_t)(r0 - row) * row_stride;
    for (int b = 0; b < block_count(m->cols); b++) {
      uint16_t *to = (uint16_t *)(void *)(panel_of(m, r0 / UST_PANEL) + (size_t)b * BF16_BLOCK);
      int inputs = UST_MIN(BLOCK, m->cols - b * BLOCK);
      if (inputs < BLOCK || columns < UST_PANEL) memset(to, 0, BF16_BLOCK);
      for (int k = 0; k < inputs; k++)
        for (int c = 0; c < columns; c++)
          to[place(k, c)] = ust_f32_to_bf16(from[(size_t)c * row_stride + (size_t)(b * BLOCK + k) * col_stride]);
    }
  }
}

static void unpack_row(const ust_matrix *m, int row, float *out) {
  if (ust_is_quantised(m->format)) {
    quantised_unpack_row(m, row, out);
    return;
  }
  const unsigned char *panel = panel_of(m, row / UST_PANEL);
  for (int k = 0; k < m->cols; k++) {
    const uint16_t *block = (const uint16_t *)(const void *)(panel + (size_t)(k / BLOCK) * BF16_BLOCK);
    out[k] = ust_bf16_to_f32(block[place(k % BLOCK, row % UST_PANEL)]);
  }
}

/* ---- matmul ---- */

/* An input pair of 8 columns of a block as f32: inputs k and k+1. */
ALWAYS_INLINE void load_pair(const unsigned char *block, int pair, int column, __m256 *even, __m256 *odd) {
  __m256i both = _mm256_load_si256((const void *)(block + (pair * UST_PANEL + column) * 4));
  *even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  *odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
}

/* One block -> wide[32 inputs][32 columns]. */
ALWAYS_INLINE void widen(const unsigned char *block, float *wide) {
  for (int c = 0; c < UST_PANEL; c += 8) {
    __m256 even, odd;
#pragma GCC unroll 4
    for (int pair = 0; pair < BLOCK / 2; pair++) {
      load_pair(block, pair, c, &even, &odd);
      _mm256_store_ps(wide + 2 * pair * UST_PANEL + c, even);
      _mm256_store_ps(wide + (2 * pair + 1) * UST_PANEL + c, odd);
    }
  }
}

/* One or two rows: weights go from memory through registers straight into the sums, so that reading never pauses. */
ALWAYS_INLINE void few_sums(const unsigned char *block, int cols, const float *x, size_t x_stride, int rows,
                            float (*sums)[UST_PANEL]) {
  __m256 acc[2][4], even, odd;
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < 4; v++) acc[r][v] = _mm256_setzero_ps();
  for (int b = 0; b < block_count(cols); b++, block += BF16_BLOCK, x += BLOCK) {
#pragma GCC unroll 4
    for (int pair = 0; pair < BLOCK / 2; pair++)
      for (int v = 0; v < 4; v++) {
        load_pair(block, pair, 8 * v, &even, &odd);
        for (int r = 0; r < rows; r++) {
          acc[r][v] = _mm256_fmadd_ps(_mm256_broadcast_ss(x + (size_t)r * x_stride + 2 * pair), even, acc[r][v]);
          acc[r][v] = _mm256_fmadd_ps(_mm256_broadcast_ss(x + (size_t)r * x_stride + 2 * pair + 1), odd, acc[r][v]);
        }
      }
  }
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < 4; v++) _mm256_store_ps(sums[r] + 8 * v, acc[r][v]);
}

/* sums[row][0 … 16) += x[row][0 … inputs) wide, for `rows` rows. */
ALWAYS_INLINE void group_sums(const float *x, size_t x_stride, int rows, const float *wide, int inputs,
                              float (*sums)[UST_PANEL]) {
  __m256 acc[GROUP][2];
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < 2; v++) acc[r][v] = _mm256_load_ps(sums[r] + 8 * v);
  for (int k = 0; k < inputs; k++, wide += UST_PANEL) {
    __m256 left = _mm256_load_ps(wide), right = _mm256_load_ps(wide + 8);
    for (int r = 0; r < rows; r++) {
      __m256 a = _mm256_broadcast_ss(x + (size_t)r * x_stride + k);
      acc[r][0] = _mm256_fmadd_ps(a, left, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(a, right, acc[r][1]);
    }
  }
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < 2; v++) _mm256_store_ps(sums[r] + 8 * v, acc[r][v]);
}

/* Up to 6 rows; half a panel at a time fits its sums into registers. */
static void group_of(const float *x, size_t x_stride, int rows, const float *wide, int inputs,
                     float (*sums)[UST_PANEL]) {
  for (int half = 0; half < 2; half++) {
    const float *columns = wide + 16 * half;
    float(*to)[UST_PANEL] = (float(*)[UST_PANEL])(void *)(sums[0] + 16 * half);
    if (rows == 1)
      group_sums(x, x_stride, 1, columns, inputs, to);
    else if (rows == 2)
      group_sums(x, x_stride, 2, columns, inputs, to);
    else if (rows == 3)
      group_sums(x, x_stride, 3, columns, inputs, to);
    else if (rows == 4)
      group_sums(x, x_stride, 4, columns, inputs, to);
    else if (rows == 5)
      group_sums(x, x_stride, 5, columns, inputs, to);
    else
      group_sums(x, x_stride, 6, columns, inputs, to);
  }
}

ALWAYS_INLINE void many_sums(const unsigned char *block, int cols, const float *x, size_t x_stride, int rows,
                             float (*sums)[UST_PANEL]) {
  int blocks = block_count(cols);
  float wide[CHUNK * BLOCK * UST_PANEL] __attribute__((aligned(64)));
  memset(sums, 0, (size_t)rows * sizeof(*sums));
  for (int b0 = 0; b0 < blocks; b0 += CHUNK) {
    int count = UST_MIN(CHUNK, blocks - b0);
    for (int b = 0; b < count; b++, block += BF16_BLOCK) widen(block, wide + b * BLOCK * UST_PANEL);
    for (int r = 0; r < rows; r += GROUP)
      group_of(x + (size_t)r * x_stride + b0 * BLOCK, x_stride, UST_MIN(GROUP, rows - r), wide, count * BLOCK,
               sums + r);
  }
}

static void panel_sums(const ust_matrix *w, int panel, const float *x, size_t x_stride, int rows,
                       float (*sums)[UST_PANEL]) {
  const unsigned char *from = panel_of(w, panel);
  if (rows == 1)
    few_sums(from, w->cols, x, x_stride, 1, sums);
  else if (rows == 2)
    few_sums(from, w->cols, x, x_stride, 2, sums);
  else
    many_sums(from, w->cols, x, x_stride, rows, sums);
}

#include "kernel/avx2_integers.h"

static void matmul(const ust_matrix *w, int panel, int panel_end, const void *x, size_t x_stride, int rows,
                   const float *bias, ust_epilogue epilogue, void *y, size_t y_stride) {
  float sums[MOST_ROWS][UST_PANEL] __attribute__((aligned(64)));
  for (int p = panel; p < panel_end; p++)
    for (int r0 = 0; r0 < rows; r0 += MOST_ROWS) {
      int count = UST_MIN(MOST_ROWS, rows - r0);
      if (ust_is_quantised(w->format))
        quantised_sums(w, p, (void *)(uintptr_t)x, r0, count, rows, sums);
      else
        panel_sums(w, p, (const float *)x + (size_t)r0 * x_stride, x_stride, count, sums);
      for (int r = 0; r < count; r++)
        row_finish(sums[r], bias ? bias + (size_t)p * UST_PANEL : NULL, epilogue, y,
                   (size_t)(r0 + r) * y_stride + (size_t)p * UST_PANEL);
    }
}

/* ---- keys and values ---- */

static inline size_t kv_dim(int head_dim) {
  return (size_t)UST_ROUND_UP(head_dim, 8);
}
static inline float *key_of(const void *kv, int head_dim, int slot) {
  return (float *)kv + (size_t)(slot / 8) * 8 * kv_dim(head_dim) + slot % 8;
}
static inline float *value_of(const void *kv, int slots, int head_dim, int slot) {
  return (float *)kv + (size_t)(slots + slot) * kv_dim(head_dim);
}

static size_t kv_bytes(int slots, int head_dim) {
  return 2 * (size_t)slots * kv_dim(head_dim) * sizeof(float);
}

static void kv_store(void *kv, int slots, int head_dim, int slot, const float *k, const float *v) {
  float *key = key_of(kv, head_dim, slot);
  for (int d = 0; d < head_dim; d++) key[d * 8] = k[d];
  memcpy(value_of(kv, slots, head_dim, slot), v, (size_t)head_dim * sizeof(float));
}

static void kv_move(void *kv, int slots, int head_dim, int from, int to) {
  const float *key_from = key_of(kv, head_dim, from);
  float *key_to = key_of(kv, head_dim, to);
  for (int d = 0; d < head_dim; d++) key_to[d * 8] = key_from[d * 8];
  memmove(value_of(kv, slots, head_dim, to), value_of(kv, slots, head_dim, from), (size_t)head_dim * sizeof(float));
}

/* ---- attention: 4 rows at a time against 16 keys in lanes ---- */

enum { QUERIES = 4 };

static size_t attention_scratch(int rows, int slots, int head_dim) {
  (void)rows;
  return (QUERIES * (size_t)UST_ROUND_UP(slots, 32) + kv_dim(head_dim)) * sizeof(float);
}

/* s[r][slot] = q[r] . key, for slots up to `slot_end` */
ALWAYS_INLINE void scores(const void *kv, int head_dim, int slot_end, const float *q, size_t q_stride, int rows,
                          float *s, size_t s_stride) {
  size_t next = 8 * kv_dim(head_dim);
  for (int slot = 0; slot < slot_end; slot += 16) {
    const float *keys = key_of(kv, head_dim, slot);
    __m256 acc[QUERIES][2];
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (int d = 0; d < head_dim; d++) {
      __m256 left = _mm256_load_ps(keys + 8 * d), right = _mm256_load_ps(keys + next + 8 * d);
      for (int r = 0; r < rows; r++) {
        __m256 a = _mm256_broadcast_ss(q + (size_t)r * q_stride + d);
        acc[r][0] = _mm256_fmadd_ps(a, left, acc[r][0]);
        acc[r][1] = _mm256_fmadd_ps(a, right, acc[r][1]);
      }
    }
    for (int r = 0; r < rows; r++) {
      _mm256_store_ps(s + (size_t)r * s_stride + slot, acc[r][0]);
      _mm256_store_ps(s + (size_t)r * s_stride + slot + 8, acc[r][1]);
    }
  }
}

/* sum[8*vectors] = sum of p[i] times coordinates of position i's value, in position order */
ALWAYS_INLINE void add_values(const float *values, size_t dim, const ust_attention_rows *rows, int row, const float *p,
                              int vectors, float *sum) {
  __m256 acc[8];
  for (int v = 0; v < vectors; v++) acc[v] = _mm256_setzero_ps();
  for (int i = 0; i < rows->keys[row]; i++) {
    const float *value = values + (size_t)row_slot(rows, row, i) * dim;
    __m256 weight = _mm256_broadcast_ss(p + i);
    for (int v = 0; v < vectors; v++) acc[v] = _mm256_fmadd_ps(weight, _mm256_load_ps(value + 8 * v), acc[v]);
  }
  for (int v = 0; v < vectors; v++) _mm256_store_ps(sum + 8 * v, acc[v]);
}

static void attention(const void *kv, int slots, int head_dim, const ust_attention_rows *rows, const float *q,
                      size_t q_stride, void *out, size_t out_stride, void *scratch) {
  size_t s_stride = (size_t)UST_ROUND_UP(slots, 32), dim = kv_dim(head_dim);
  float *s = scratch, *sum = s + QUERIES * s_stride, scale = 1.0f / sqrtf((float)head_dim);
  const float *values = value_of(kv, slots, head_dim, 0);
  for (int r0 = 0; r0 < rows->rows; r0 += QUERIES) {
    int count = UST_MIN(QUERIES, rows->rows - r0), slot_end = 0;
    for (int r = r0; r < r0 + count; r++) slot_end = UST_MAX(slot_end, row_slot(rows, r, rows->keys[r] - 1) + 1);
    if (count == QUERIES)
      scores(kv, head_dim, slot_end, q + (size_t)r0 * q_stride, q_stride, QUERIES, s, s_stride);
    else
      for (int r = 0; r < count; r++)
        scores(kv, head_dim, slot_end, q + (size_t)(r0 + r) * q_stride, q_stride, 1, s + (size_t)r * s_stride,
               s_stride);
    for (int r = 0; r < count; r++) {
      float *row = s + (size_t)r * s_stride;
      row_order(row, rows, r0 + r);
      float inverse = 1.0f / row_softmax(row, rows->keys[r0 + r], scale);
      size_t d = 0;
      for (; d + 64 <= dim; d += 64) add_values(values + d, dim, rows, r0 + r, row, 8, sum + d);
      for (; d + 16 <= dim; d += 16) add_values(values + d, dim, rows, r0 + r, row, 2, sum + d);
      for (; d < dim; d += 8) add_values(values + d, dim, rows, r0 + r, row, 1, sum + d);
      float *to = (float *)out + (size_t)(r0 + r) * out_stride;
      for (int i = 0; i < head_dim; i++) to[i] = sum[i] * inverse;
    }
  }
}

void ust_avx2_fill(ust_kernels *table) {
  rows_fill(table);
  training_fill(table);
  table->matrix_bytes = matrix_bytes;
  table->pack = pack;
  table->pack_blocks = quantised_pack;
  table->integers_bytes = integers_bytes;
  table->integers = to_integers;
  table->unpack_row = unpack_row;
  table->matmul = matmul;
  table->kv_bytes = kv_bytes;
  table->kv_store = kv_store;
  table->kv_move = kv_move;
  table->attention_scratch = attention_scratch;
  table->attention = attention;
}
