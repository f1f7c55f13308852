/* The AVX2 + FMA level: f32 activations, keys and values; bf16 weights widened to f32 in registers, and quantised ones
 * multiplied as bytes (avx2_integers.h).
 *
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
#include "kernel/strips.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

static void pack(ust_matrix *m, int row, int count, const float *source, size_t row_stride, size_t col_stride) {
  for (int r0 = row; r0 < row + count; r0 += STRIP) {
    int columns = UST_MIN(STRIP, row + count - r0), blocks = block_count(m->cols);
    const float *from = source + (size_t)(r0 - row) * row_stride;
    uint16_t *to = (uint16_t *)(uintptr_t)strip_of(m, r0 / STRIP);
    if (m->cols % BLOCK || columns < STRIP) memset(to, 0, strip_bytes(m));
    for (int k = 0; k < m->cols; k++)
      for (int c = 0; c < columns; c++)
        to[k / 2 * 2 * STRIP + c * 2 + k % 2] = ust_f32_to_bf16(from[(size_t)c * row_stride + (size_t)k * col_stride]);
    to += (size_t)blocks * TILE / sizeof *to;
    if (r0 + STRIP >= row + count && r0 / STRIP % 2 == 0) memset(to, 0, strip_bytes(m)); /* the panel's other strip */
  }
}

/* ---- matmul ----
 *
 * One or two rows are bound by memory, and hardware reads more of it in four or two streams than in one, and best left
 * alone: the strips of one or two panels lie side by side. More rows take the strips one after the other, since their
 * sums fill the registers, and ask for what follows early: a group of rows in one pass over the strip, more groups in
 * as many passes, for which the strip stays in the second-level cache. */

enum {
  GROUP = 6,             /* rows whose sums the registers hold */
  INTEGER_GROUP = 4,     /* and whose integer sums they hold; groups of quantised.h consist of such */
  MOST_ROWS = 16 * GROUP /* rows that share one reading of a panel */
};

/* What the multiplication of a strip asks for on the way, requests_of() times a block: the line of `at`, which moves on by
 * `step` bytes. One group of rows asks for what comes DISTANCE bytes later, several share out the next strip. */
enum { DISTANCE = 4096 };
typedef struct ahead {
  const char *at;
  size_t step;
} ahead;
ALWAYS_INLINE int requests_of(ust_format format) {
  return format == UST_FORMAT_BF16 ? BLOCK / 2 : 8;
}

/* c[r][16 s ...] = `rows` rows of x times strips that lie `apart` from each other. */
ALWAYS_INLINE void bf16_sums(int strips, int rows, const char *strip, size_t apart, ahead next, int blocks,
                             const float *x, size_t x_stride, float *c, size_t c_stride) {
  enum { PAIRS = 4 /* at a time */ };
  const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
  const float *row[GROUP];
  __m256 sum[4][GROUP][2];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
    row[r] = x + (size_t)r * x_stride;
#pragma GCC unroll 4
    for (int s = 0; s < strips; s++) sum[s][r][0] = sum[s][r][1] = _mm256_setzero_ps();
  }
  for (int pair = 0; pair < blocks * BLOCK / 2; pair += PAIRS, strip += PAIRS * Q_LINE) {
#pragma GCC unroll 8
    for (int k = 0; k < 2 * PAIRS; k++) {
      if (strips == 1 && k % 2 == 0) {
        _mm_prefetch(next.at, _MM_HINT_T0);
        next.at += next.step;
      }
#pragma GCC unroll 4
      for (int s = 0; s < strips; s++) {
        const __m256i *line = (const __m256i *)(const void *)(strip + (size_t)s * apart + k / 2 * Q_LINE);
        __m256i left = _mm256_load_si256(line), right = _mm256_load_si256(line + 1);
        left = k % 2 ? _mm256_and_si256(left, upper) : _mm256_slli_epi32(left, 16);
        right = k % 2 ? _mm256_and_si256(right, upper) : _mm256_slli_epi32(right, 16);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
          __m256 of_row = _mm256_broadcast_ss(row[r] + k);
          sum[s][r][0] = _mm256_fmadd_ps(of_row, _mm256_castsi256_ps(left), sum[s][r][0]);
          sum[s][r][1] = _mm256_fmadd_ps(of_row, _mm256_castsi256_ps(right), sum[s][r][1]);
        }
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) row[r] += 2 * PAIRS;
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int s = 0; s < strips; s++) {
      _mm256_storeu_ps(c + (size_t)r * c_stride + s * STRIP, sum[s][r][0]);
      _mm256_storeu_ps(c + (size_t)r * c_stride + s * STRIP + 8, sum[s][r][1]);
    }
}

#include "kernel/avx2_integers.h"

/* What a call multiplies. */
typedef struct product {
  const ust_matrix *w;
  const float *x; /* BF16 */
  size_t x_stride;
  integers integers; /* quantised */
} product;

/* c[r][16 s ...] = rows `row` ... of x times strips from `strip` on. */
typedef void group_sums(const product *of, int strip, int row, ahead next, float *c);

#define GROUP_NAME(format, strips, rows) sums_##format##_##strips##_##rows
#define GROUP_SUMS(format, strips, rows)                                                                               \
  static void GROUP_NAME(format, strips, rows)(const product *of, int strip, int row, ahead next, float *c) {          \
    const char *at = strip_of(of->w, strip);                                                                           \
    const size_t apart = strip_bytes(of->w), c_stride = (strips) > 2 ? (strips) * STRIP : UST_PANEL;                   \
    if (UST_FORMAT_##format == UST_FORMAT_BF16)                                                                        \
      bf16_sums(strips, rows, at, apart, next, block_count(of->w->cols), of->x + (size_t)row * of->x_stride,           \
                of->x_stride, c, c_stride);                                                                            \
    else                                                                                                               \
      integer_sums(UST_FORMAT_##format, strips, rows, at, apart, next, quantised_head(UST_FORMAT_##format,             \
                   of->w->cols), &of->integers, row, c, c_stride);                                                     \
  }
#define EVERY_GROUP(format)                                                                                            \
  GROUP_SUMS(format, 4, 1)                                                                                             \
  GROUP_SUMS(format, 2, 1)                                                                                             \
  GROUP_SUMS(format, 2, 2)                                                                                             \
  GROUP_SUMS(format, 1, 1)                                                                                             \
  GROUP_SUMS(format, 1, 2)                                                                                             \
  GROUP_SUMS(format, 1, 3)                                                                                             \
  GROUP_SUMS(format, 1, 4)                                                                                             \
  GROUP_SUMS(format, 1, 5)                                                                                             \
  GROUP_SUMS(format, 1, 6)
EVERY_GROUP(BF16)
EVERY_GROUP(Q8)
EVERY_GROUP(Q4)
EVERY_GROUP(Q4K)

/* How a format's panels are multiplied. */
typedef struct groups {
  group_sums *two_panels, *side_by_side[2], *one_by_one[GROUP]; /* of 1, 2 ... rows */
} groups;

#define GROUPS_OF(format)                                                                                              \
  {GROUP_NAME(format, 4, 1),                                                                                           \
   {GROUP_NAME(format, 2, 1), GROUP_NAME(format, 2, 2)},                                                               \
   {GROUP_NAME(format, 1, 1), GROUP_NAME(format, 1, 2), GROUP_NAME(format, 1, 3), GROUP_NAME(format, 1, 4),            \
    GROUP_NAME(format, 1, 5), GROUP_NAME(format, 1, 6)}}
static const groups groups_of[] = {[UST_FORMAT_BF16] = GROUPS_OF(BF16),
                                   [UST_FORMAT_Q8] = GROUPS_OF(Q8),
                                   [UST_FORMAT_Q4] = GROUPS_OF(Q4),
                                   [UST_FORMAT_Q4K] = GROUPS_OF(Q4K)};

/* sums[row][output] of `panels` panels, [output] of two for a single row. */
static void panel_sums(const product *of, int panel, int panels, int row, int rows, float *sums) {
  const ust_format format = of->w->format;
  const groups *how = &groups_of[format];
  if (panels == 2) {
    how->two_panels(of, 2 * panel, row, (ahead){0}, sums);
    return;
  }
  if (rows <= 2) {
    how->side_by_side[rows - 1](of, 2 * panel, row, (ahead){0}, sums);
    return;
  }
  const int most = format == UST_FORMAT_BF16 ? GROUP : INTEGER_GROUP, count = (rows + most - 1) / most;
  const size_t bytes = strip_bytes(of->w), requests = (size_t)block_count(of->w->cols) * (size_t)requests_of(format);
  const size_t step = bytes / requests;
  const char *strip = strip_of(of->w, 2 * panel);
  for (int s = 0; s < 2; s++, strip += bytes)
    for (int g = 0, r = 0; g < count; g++, r += most) {
      ahead next = {strip + DISTANCE, step};
      if (count > 1) next = (ahead){strip + bytes + (size_t)g * bytes / (size_t)count, step / (size_t)count + 1};
      how->one_by_one[UST_MIN(most, rows - r) - 1](of, 2 * panel + s, row + r, next, sums + r * UST_PANEL + s * STRIP);
    }
}

static void matmul(const ust_matrix *w, int panel, int panel_end, const void *x, size_t x_stride, int rows,
                   const float *bias, ust_epilogue epilogue, void *y, size_t y_stride) {
  float sums[MOST_ROWS][UST_PANEL];
  product of = {.w = w, .x = x, .x_stride = x_stride};
  if (ust_is_quantised(w->format)) of.integers = integers_at((void *)(uintptr_t)x, rows, w->cols);
  for (int p = panel, panels; p < panel_end; p += panels) {
    panels = rows == 1 && p + 1 < panel_end ? 2 : 1;
    for (int r0 = 0, count; r0 < rows; r0 += count) {
      count = UST_MIN(MOST_ROWS, rows - r0);
      panel_sums(&of, p, panels, r0, count, sums[0]);
      for (int i = 0; i < count * panels; i++) {
        int at = p + i / count;
        row_finish(sums[i], bias ? bias + (size_t)at * UST_PANEL : NULL, epilogue, y,
                   (size_t)(r0 + i % count) * y_stride + (size_t)at * UST_PANEL);
      }
    }
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
  strips_fill(table);
  table->pack = pack;
  table->integers_bytes = integers_bytes;
  table->integers = to_integers;
  table->matmul = matmul;
  table->kv_bytes = kv_bytes;
  table->kv_store = kv_store;
  table->kv_move = kv_move;
  table->attention_scratch = attention_scratch;
  table->attention = attention;
}
