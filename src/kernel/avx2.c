/* The AVX2 + FMA level: f32 activations, bf16 keys and values. bf16 is widened to f32 in registers; quantised weights
 * are multiplied as bytes (avx2_integers.h). Attention: avx2_attention.h.
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
#include "kernel/layout.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* ---- packing ---- */

/* 8 f32 whose upper halves are the values rounded to the nearest bf16, ties to even. */
ALWAYS_INLINE __m256i round_bf16(const float *x) {
  __m256i bits = _mm256_loadu_si256((const void *)x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
}

/* 16 inputs of 8 columns that are consecutive in the source -> half of 8 lines. */
static void pack_lines(const float *source, size_t row_stride, char *to) {
  __m256i pairs[8], t[8];
  for (int c = 0; c < 8; c++) {
    __m256i low = _mm256_srli_epi32(round_bf16(source + (size_t)c * row_stride), 16);
    __m256i high = _mm256_srli_epi32(round_bf16(source + (size_t)c * row_stride + 8), 16);
    pairs[c] = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
  }
  for (int i = 0; i < 8; i += 2) { /* transposes 8 x 8 pairs */
    t[i] = _mm256_unpacklo_epi32(pairs[i], pairs[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(pairs[i], pairs[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; k++) {
      pairs[i + 2 * k] = _mm256_unpacklo_epi64(t[i + k], t[i + 2 + k]);
      pairs[i + 2 * k + 1] = _mm256_unpackhi_epi64(t[i + k], t[i + 2 + k]);
    }
  for (int i = 0; i < 4; i++) {
    _mm256_store_si256((void *)(to + i * Q_LINE), _mm256_permute2x128_si256(pairs[i], pairs[i + 4], 0x20));
    _mm256_store_si256((void *)(to + (i + 4) * Q_LINE), _mm256_permute2x128_si256(pairs[i], pairs[i + 4], 0x31));
  }
}

/* The first `count` columns of a strip, inputs from `k` on. */
static void pack_columns(char *strip, int count, int k, int cols, const float *source, size_t row_stride,
                         size_t col_stride) {
  uint16_t *to = (uint16_t *)(void *)strip;
  for (; k < cols; k++)
    for (int c = 0; c < count; c++)
      to[k / 2 * 2 * STRIP + c * 2 + k % 2] = ust_f32_to_bf16(source[(size_t)c * row_stride + (size_t)k * col_stride]);
}

static void pack(ust_matrix *m, int row, int count, const float *source, size_t row_stride, size_t col_stride) {
  for (int r = row; r < UST_ROUND_UP(row + count, UST_PANEL); r += STRIP) {
    const int columns = UST_MAX(0, UST_MIN(STRIP, row + count - r));
    const float *from = source + (size_t)(r - row) * row_stride;
    char *strip = (char *)(uintptr_t)strip_of(m, r / STRIP);
    int k = 0;
    if (m->cols % BLOCK || columns < STRIP) memset(strip, 0, strip_bytes(m));
    if (col_stride == 1 && columns == STRIP)
      for (; k + 16 <= m->cols; k += 16)
        for (int c = 0; c < STRIP; c += 8)
          pack_lines(from + (size_t)c * row_stride + k, row_stride, strip + k / 2 * Q_LINE + c * 4);
    pack_columns(strip, columns, k, m->cols, from, row_stride, col_stride);
  }
}

/* ---- matmul ----
 *
 * One row is bound by memory, and the hardware reads more of it in four streams than in one, and best left alone: the
 * strips of two panels lie side by side. More rows take the strips one after the other, since their sums fill the
 * registers: each group of rows passes over a strip, the later ones in the second-level cache, and asks for its part of
 * the next one. */

enum {
  GROUP = 6,             /* rows whose sums the registers hold */
  INTEGER_GROUP = 4,     /* and whose integer sums they hold; groups of quantised.h consist of such */
  MOST_ROWS = 16 * GROUP /* rows that share one reading of a panel */
};

/* What the multiplication of a strip asks for on the way, in two streams: for each two lines (of quantised weights,
 * quads) the line of `at` and the one `apart` bytes from it; then `at` moves on by `step` bytes. */
typedef struct ahead {
  const char *at;
  size_t apart, step;
} ahead;

/* Strips of 16 columns, side by side, `apart` bytes from each other; each consists of `pairs` lines, a multiple of
 * PAIRS, `line_bytes` from each other, that hold two inputs of every column: [16][2] bf16. */
enum { PAIRS = 4 /* at a time */ };
typedef struct bf16_strips {
  const char *at;
  size_t apart, line_bytes;
  int pairs;
} bf16_strips;

/* c[r][16 s ...] = `rows` rows of x times strips. */
ALWAYS_INLINE void bf16_sums(int strips, int rows, bf16_strips of, ahead next, const float *x, size_t x_stride,
                             float *c, size_t c_stride) {
  const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
  const float *row[GROUP];
  __m256 sum[4][GROUP][2];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
    row[r] = x + (size_t)r * x_stride;
#pragma GCC unroll 4
    for (int s = 0; s < strips; s++) sum[s][r][0] = sum[s][r][1] = _mm256_setzero_ps();
  }
  for (int pair = 0; pair < of.pairs; pair += PAIRS, of.at += PAIRS * of.line_bytes) {
#pragma GCC unroll 8
    for (int k = 0; k < 2 * PAIRS; k++) {
      if (strips == 1 && k % 2 == 0) {
        _mm_prefetch(k % 4 ? next.at + next.apart : next.at, _MM_HINT_T0);
        if (k % 4) next.at += next.step;
      }
#pragma GCC unroll 4
      for (int s = 0; s < strips; s++) {
        const __m256i *line =
            (const __m256i *)(const void *)(of.at + (size_t)s * of.apart + (size_t)(k / 2) * of.line_bytes);
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

/* Functions for each number of strips and of rows, so that sums stay in registers. */
/* clang-format off */
#define INTEGER_GROUPS(GROUP_OF)                                                                                       \
  GROUP_OF(4, 1) GROUP_OF(2, 1) GROUP_OF(1, 1) GROUP_OF(1, 2) GROUP_OF(1, 3) GROUP_OF(1, 4)
#define EVERY_GROUP(GROUP_OF) INTEGER_GROUPS(GROUP_OF) GROUP_OF(1, 5) GROUP_OF(1, 6)
#define INTEGER_TABLE(name) {{name(1, 1), name(1, 2), name(1, 3), name(1, 4)}, {name(2, 1)}, {name(4, 1)}}
#define EVERY_TABLE(name)                                                                                              \
  {{name(1, 1), name(1, 2), name(1, 3), name(1, 4), name(1, 5), name(1, 6)}, {name(2, 1)}, {name(4, 1)}}
/* clang-format on */
enum { STRIP_COUNTS = 3 /* 1, 2, 4 */ };

#define BF16_NAME(strips, rows) bf16_##strips##_##rows
#define BF16_GROUP(strips, rows)                                                                                       \
  static void BF16_NAME(strips, rows)(bf16_strips of, ahead next, const float *x, size_t x_stride, float *c,           \
                                      size_t c_stride) {                                                               \
    bf16_sums(strips, rows, of, next, x, x_stride, c, c_stride);                                                       \
  }
EVERY_GROUP(BF16_GROUP)
typedef void bf16_group(bf16_strips of, ahead next, const float *x, size_t x_stride, float *c, size_t c_stride);
static bf16_group *const bf16_groups[STRIP_COUNTS][GROUP] = EVERY_TABLE(BF16_NAME);

#include "kernel/avx2_integers.h"

/* What a call multiplies. */
typedef struct product {
  const ust_matrix *w;
  const float *x; /* BF16 */
  size_t x_stride;
  integers integers; /* quantised */
} product;

/* c[r][16 s ...] = rows `row` ... of x times strips from `strip` on. */
static void group_sums(const product *of, int strips, int rows, int strip, int row, ahead next, float *c) {
  const size_t bytes = strip_bytes(of->w), c_stride = strips == 4 ? 2 * UST_PANEL : UST_PANEL;
  const char *at = strip_of(of->w, strip);
  if (of->w->format == UST_FORMAT_BF16)
    bf16_groups[strips / 2][rows - 1]((bf16_strips){at, bytes, Q_LINE, block_count(of->w->cols) * BLOCK / 2}, next,
                                      of->x + (size_t)row * of->x_stride, of->x_stride, c, c_stride);
  else
    integer_groups[of->w->format][strips / 2][rows - 1](at, bytes, next, quantised_head(of->w->format, of->w->cols),
                                                        &of->integers, row, c, c_stride);
}

/* sums[row][output] of `panels` panels, [output] of two for a single row. */
static void panel_sums(const product *of, int panel, int panels, int row, int rows, float *sums) {
  if (rows == 1) {
    group_sums(of, 2 * panels, 1, 2 * panel, row, (ahead){0}, sums);
    return;
  }
  const bool bf16 = of->w->format == UST_FORMAT_BF16;
  const int limit = bf16 ? GROUP : INTEGER_GROUP, groups = (rows + limit - 1) / limit;
  const int most = bf16 || rows <= UST_INTEGER_FEW ? (rows + groups - 1) / groups : limit;
  const size_t bytes = strip_bytes(of->w), share = bytes / 2 / (size_t)groups;
  const size_t requests = (size_t)block_count(of->w->cols) * (bf16 ? BLOCK / 2 : 8) / 2;
  for (int s = 0; s < 2; s++) {
    const char *after = strip_of(of->w, 2 * panel + s) + bytes;
    for (int g = 0, r = 0; r < rows; g++, r += most)
      group_sums(of, 1, UST_MIN(most, rows - r), 2 * panel + s, row + r,
                 (ahead){after + (size_t)g * share, bytes / 2, (share + requests - 1) / requests},
                 sums + r * UST_PANEL + s * STRIP);
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

#include "kernel/avx2_attention.h"

void ust_avx2_fill(ust_kernels *table) {
  rows_fill(table);
  training_fill(table);
  layout_fill(table);
  table->pack = pack;
  table->integers_bytes = integers_bytes;
  table->integers = to_integers;
  table->matmul = matmul;
  table->kv_store = kv_store;
  table->attention_scratch = attention_scratch;
  table->attention = attention;
}
