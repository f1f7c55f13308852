/* The AMX level: bf16 activations, matmul and attention on 16 x 16 tiles of f32 sums (TDPBF16PS).
 *
 * A tile product treats each row by itself and takes the inputs in order, 32 at a time, so a row has the same
 * bits in a pass of 1 row and of 64. Q8 blocks are widened to bf16 tiles in the first-level cache. */
#include "kernel/kernel.h"

#include <immintrin.h>

typedef uint16_t activation;
static inline activation to_activation(float x) { return ust_f32_to_bf16(x); }
#include "kernel/rows.h"
#include "kernel/training.h"
#include "kernel/bf16_layout.h"

/* ---- tiles: 0-3 sums, 4-5 rows of x, 6-7 weights ---- */

/* gcc's tile intrinsics do not tell the compiler what memory they read (gcc 12: a load reads nothing, a configuration
 * its first 8 bytes), so what was just written for them is fenced by hand. */
static inline void written(void) { __asm__ volatile("" ::: "memory"); }

typedef struct tile_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tile_config;

/* Sums 0,1 (and x tile 4) have `top` rows, sums 2,3 (and x tile 5) `bottom`; weight tiles are full. */
static void configure(int top, int bottom) {
  tile_config config __attribute__((aligned(64))) = {.palette = 1};
  const int rows[8] = {top, top, bottom, bottom, top, bottom, 16, 16};
  for (int t = 0; t < 8; t++)
    if (rows[t]) {
      config.row_bytes[t] = 64;
      config.rows[t] = (uint8_t)rows[t];
    }
  written();
  _tile_loadconfig(&config);
}

static void release(void) { _tile_release(); }

/* A Q8 block as a bf16 tile. */
static inline void widen(const char *block, uint8_t *tile) {
  __m512 low, high;
  q8_scales(block, &low, &high);
  for (int pair = 0; pair < BLOCK / 2; pair++) {
    const char *q = block + 32 + pair * 32;
    __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)q)));
    __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(q + 16))));
    __m512bh both = _mm512_cvtne2ps_pbh(_mm512_mul_ps(b, high), _mm512_mul_ps(a, low));
    _mm512_store_si512((void *)(tile + pair * 64), (__m512i)both);
  }
}

enum { AHEAD = 4096 /* bytes a strip is prefetched ahead of its use */ };

static inline void prefetch(const char *at, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(at + AHEAD + i, _MM_HINT_T0);
}

/* The sums of up to 32 rows and one panel: c[32][32]. `bottom` 0: the second 16 rows are absent. */
static inline __attribute__((always_inline)) void panel_sums(const ust_matrix *w, int panel, const uint16_t *x,
                                                             size_t x_stride, bool bottom, ust_format format,
                                                             float c[][UST_PANEL]) {
  uint8_t wide[2][TILE] __attribute__((aligned(64)));
  int blocks = block_count(w);
  size_t step = block_bytes(format), x_bytes = x_stride * 2;
  const char *left = strip_of(w, 2 * panel), *right = strip_of(w, 2 * panel + 1);
  const uint16_t *lower = x + 16 * x_stride;
  _tile_zero(0);
  _tile_zero(1);
  if (bottom) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int b = 0; b < blocks; b++, left += step, right += step) {
    prefetch(left, step);
    prefetch(right, step);
    if (format == UST_FORMAT_Q8) {
      widen(left, wide[0]);
      widen(right, wide[1]);
      written();
      _tile_loadd(6, wide[0], 64);
      _tile_loadd(7, wide[1], 64);
    } else {
      _tile_loadd(6, left, 64);
      _tile_loadd(7, right, 64);
    }
    _tile_loadd(4, x + (size_t)b * BLOCK, x_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (bottom) {
      _tile_loadd(5, lower + (size_t)b * BLOCK, x_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c[0], UST_PANEL * 4);
  _tile_stored(1, c[0] + STRIP, UST_PANEL * 4);
  if (bottom) {
    _tile_stored(2, c[16], UST_PANEL * 4);
    _tile_stored(3, c[16] + STRIP, UST_PANEL * 4);
  }
}

/* Rows in groups of 32; all panels for each group of rows when x is large, all groups for each panel when the
 * weights are: the panel then comes from memory once. */
static void matmul_group(const ust_matrix *w, int panel, const uint16_t *x, size_t x_stride, int rows, const float *bias,
                         ust_epilogue epilogue, void *y, size_t y_stride, size_t row) {
  float c[32][UST_PANEL] __attribute__((aligned(64)));
  if (w->format == UST_FORMAT_Q8) {
    if (rows > 16)
      panel_sums(w, panel, x, x_stride, true, UST_FORMAT_Q8, c);
    else
      panel_sums(w, panel, x, x_stride, false, UST_FORMAT_Q8, c);
  } else {
    if (rows > 16)
      panel_sums(w, panel, x, x_stride, true, UST_FORMAT_BF16, c);
    else
      panel_sums(w, panel, x, x_stride, false, UST_FORMAT_BF16, c);
  }
  for (int r = 0; r < rows; r++)
    row_finish(c[r], bias ? bias + (size_t)panel * UST_PANEL : NULL, epilogue, y,
               (row + (size_t)r) * y_stride + (size_t)panel * UST_PANEL);
}

static void matmul(const ust_matrix *w, int panel, int panel_end, const void *x, size_t x_stride, int rows,
                   const float *bias, ust_epilogue epilogue, void *y, size_t y_stride) {
  int whole = rows / 32 * 32, rest = rows - whole;
  if (whole) {
    configure(16, 16);
    for (int p = panel; p < panel_end; p++)
      for (int r = 0; r < whole; r += 32)
        matmul_group(w, p, (const uint16_t *)x + (size_t)r * x_stride, x_stride, 32, bias, epilogue, y, y_stride, (size_t)r);
  }
  if (rest) {
    configure(UST_MIN(rest, 16), UST_MAX(0, rest - 16));
    for (int p = panel; p < panel_end; p++)
      matmul_group(w, p, (const uint16_t *)x + (size_t)whole * x_stride, x_stride, rest, bias, epilogue, y, y_stride,
                   (size_t)whole);
  }
}

/* ---- attention ----
 *
 * Scores: every slot's key against 16 rows by tiles (a score depends on its row and key alone), then brought
 * into position order. Values: whole blocks of 32 positions below 32*floor((position - UST_TREE_DEPTH) / 32),
 * which lie in slot order for any tree, go through the tiles with zeros where a row's edge is earlier than its
 * neighbours'; the positions after that edge are added one at a time. The edge depends on the position alone. */

enum { QUERIES = 16 };

static inline size_t score_stride(int slots) { return (size_t)UST_ROUND_UP(slots, 32) + 16; }
static inline int tile_edge(int keys) { return UST_MAX(0, (keys - 1 - UST_TREE_DEPTH)) / 32 * 32; }

static size_t attention_scratch(int rows, int slots, int head_dim) {
  (void)rows;
  size_t dim = (size_t)kv_dim(head_dim), stride = score_stride(slots);
  return QUERIES * stride * 4 + QUERIES * stride * 2 + QUERIES * dim * 2 + QUERIES * dim * 4 + 64 * 4;
}

/* s[r][slot] for 16 rows; queries: bf16 [16, dim] */
static void scores(const uint16_t *keys, int dim, int slot_end, const uint16_t *queries, float *s, size_t s_stride) {
  for (int slot = 0; slot < slot_end; slot += 32) {
    const uint16_t *left = keys + (size_t)slot * dim, *right = left + (size_t)16 * dim;
    _tile_zero(0);
    _tile_zero(1);
    for (int d = 0; d < dim; d += 32) {
      _tile_loadd(4, queries + d, dim * 2);
      _tile_loadd(6, left + (size_t)d * 16, 64);
      _tile_loadd(7, right + (size_t)d * 16, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, s + slot, s_stride * 4);
    _tile_stored(1, s + slot + 16, s_stride * 4);
  }
}

/* sums[r][dim] = probabilities bf16 [16, p_stride] x values, over positions 0 … edge */
static void tile_values(const uint16_t *values, int dim, int edge, const uint16_t *p, size_t p_stride, float *sums) {
  for (int d = 0; d < dim; d += 32) {
    _tile_zero(0);
    _tile_zero(1);
    for (int at = 0; at < edge; at += 32) {
      const uint16_t *block = values + (size_t)at * dim + 2 * d;
      _tile_loadd(4, p + at, p_stride * 2);
      _tile_loadd(6, block, dim * 4);
      _tile_loadd(7, block + 32, dim * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, sums + d, dim * 4);
    _tile_stored(1, sums + d + 16, dim * 4);
  }
}

static void attention(const void *kv, int slots, int head_dim, const ust_attention_rows *rows, const float *q,
                      size_t q_stride, void *out, size_t out_stride, void *scratch) {
  int dim = kv_dim(head_dim);
  const uint16_t *keys = kv, *values = keys + (size_t)slots * dim;
  size_t stride = score_stride(slots);
  float *s = scratch, *sums = s + QUERIES * stride;
  uint16_t *p = (uint16_t *)(sums + QUERIES * dim), *queries = p + QUERIES * stride;
  float inverse[QUERIES], scale = 1.0f / sqrtf((float)head_dim);
  for (int r0 = 0; r0 < rows->rows; r0 += QUERIES) {
    int count = UST_MIN(QUERIES, rows->rows - r0), slot_end = 0, edge = 0;
    configure(count, 0);
    for (int r = 0; r < count; r++) {
      row_convert(q + (size_t)(r0 + r) * q_stride, head_dim, queries + r * dim);
      slot_end = UST_MAX(slot_end, row_slot(rows, r0 + r, rows->keys[r0 + r] - 1) + 1);
      edge = UST_MAX(edge, tile_edge(rows->keys[r0 + r]));
    }
    written();
    scores(keys, dim, slot_end, queries, s, stride);
    for (int r = 0; r < count; r++) {
      float *row = s + (size_t)r * stride;
      int own_edge = tile_edge(rows->keys[r0 + r]);
      row_order(row, rows, r0 + r);
      inverse[r] = 1.0f / row_softmax(row, rows->keys[r0 + r], scale);
      for (int i = 0; i < own_edge; i++) p[r * stride + i] = to_activation(row[i]);
      for (int i = own_edge; i < edge; i++) p[r * stride + i] = 0;
    }
    written();
    tile_values(values, dim, edge, p, stride, sums);
    for (int r = 0; r < count; r++) {
      int n = rows->keys[r0 + r];
      float *sum = sums + r * dim;
      values_add(values, dim, rows, r0 + r, s + (size_t)r * stride, tile_edge(n), n, sum);
      activation *to = (activation *)out + (size_t)(r0 + r) * out_stride;
      for (int d = 0; d < head_dim; d++) to[d] = to_activation(sum[d] * inverse[r]);
    }
  }
}

void ust_amx_fill(ust_kernels *table) {
  rows_fill(table);
  training_fill(table);
  layout_fill(table);
  table->matmul = matmul;
  table->attention_scratch = attention_scratch;
  table->attention = attention;
  table->release = release;
}
