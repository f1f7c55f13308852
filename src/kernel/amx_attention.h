/* Attention at the amx level, up to 32 rows at a time. Included by amx.c.
 *
 * Scores: every slot's key by tiles (a score depends on its row and key alone), then brought into position order.
 * Values: positions below position - UST_TREE_DEPTH, which lie in slot order for any tree, go through the tiles, with
 * zeros from a row's edge on; the positions after the edge are added one at a time. The edge depends on the position
 * alone. The values come into the second-level cache while the rows' exponentials are taken. */
#ifndef UST_KERNEL_AMX_ATTENTION_H
#define UST_KERNEL_AMX_ATTENTION_H

enum { QUERIES = 32 };

/* Odd numbers of cache lines, so that the rows spread over the sets of the first level. */
static inline size_t score_stride(int slots) {
  return (size_t)UST_ROUND_UP(slots, 32) + 16;
}
static inline size_t weight_stride(int slots) {
  return ((size_t)UST_ROUND_UP(slots, 32) / 32 | 1) * 32;
}
static inline int tile_edge(int keys) {
  return UST_MAX(0, keys - 1 - UST_TREE_DEPTH);
}

/* Scratch memory of a call. */
typedef struct attention_space {
  float *scores, *sums, *window; /* [QUERIES, score_stride], [QUERIES, dim], [slots, dim] */
  uint16_t *weights, *queries;   /* [QUERIES, weight_stride], [QUERIES, dim] */
  size_t score_stride, weight_stride;
} attention_space;

static size_t attention_layout(int slots, int dim, attention_space *space, char *memory) {
  size_t d = (size_t)dim, scores = QUERIES * score_stride(slots), sums = QUERIES * d, window = (size_t)slots * d;
  size_t weights = QUERIES * weight_stride(slots), queries = QUERIES * d;
  if (space) {
    *space = (attention_space){.score_stride = score_stride(slots), .weight_stride = weight_stride(slots)};
    space->scores = (float *)(void *)memory;
    space->sums = space->scores + scores;
    space->window = space->sums + sums;
    space->weights = (uint16_t *)(void *)(space->window + window);
    space->queries = space->weights + weights;
  }
  return (scores + sums + window) * 4 + (weights + queries) * 2;
}

static size_t attention_scratch(int rows, int slots, int head_dim) {
  (void)rows;
  return attention_layout(slots, kv_dim(head_dim), NULL, NULL);
}

/* One step of 32 keys or of 32 output coordinates: up to 32 rows of `a` by two tiles. */
static inline __attribute__((always_inline)) void tile_step(const uint16_t *a, size_t a_stride, const void *left,
                                                            const void *right, size_t b_bytes, bool bottom) {
  _tile_loadd(6, left, b_bytes);
  _tile_loadd(7, right, b_bytes);
  _tile_loadd(4, a, a_stride * 2);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if (bottom) {
    _tile_loadd(5, a + 16 * a_stride, a_stride * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

/* scores[r][slot] of up to 32 queries */
static inline __attribute__((always_inline)) void scores(const uint16_t *keys, int dim, int slot_end,
                                                         const attention_space *space, bool bottom) {
  const char *end = (const char *)(keys + (size_t)UST_ROUND_UP(slot_end, 32) * dim);
  for (int slot = 0; slot < slot_end; slot += 32) {
    const uint16_t *left = keys + (size_t)slot * dim, *right = left + (size_t)16 * dim;
    const char *near = UST_MIN((const char *)left + 2 * 64 * dim, end);
    tiles_zero(bottom);
    for (int d = 0; d < dim; d += 32) {
      tile_step(space->queries + d, (size_t)dim, left + (size_t)d * 16, right + (size_t)d * 16, 64, bottom);
      for (int l = 0; l < 32; l++, near += 64) _mm_prefetch(near, _MM_HINT_T0);
    }
    tiles_store(space->scores + slot, space->score_stride, bottom);
  }
}

/* The 32 positions before `end` as rows below `edge` may see them: later ones are zero, since what lies there may be a
 * sibling's, and no weight, not even none, makes nothing of an infinite value. */
static const uint16_t *last_values(const uint16_t *values, int dim, int edge, int end, uint16_t *copy) {
  const uint16_t *block = values + (size_t)(end - 32) * (size_t)dim;
  if (edge == end) return block;
  for (int pair = 0; pair < 16; pair++) {
    const int left = edge - (end - 32) - 2 * pair;
    const __m512i mask = _mm512_set1_epi32(left >= 2 ? -1 : left == 1 ? 0xffff : 0);
    for (int at = 2 * pair * dim; at < 2 * (pair + 1) * dim; at += 32)
      _mm512_storeu_si512(copy + at, _mm512_and_si512(mask, _mm512_loadu_si512(block + at)));
  }
  return copy;
}

/* sums[r][dim] = weights x values, over positions 0 … end, a multiple of 32; the last 32 from `last` */
static inline __attribute__((always_inline)) void tile_values(const uint16_t *values, const uint16_t *last, int dim,
                                                              int end, const attention_space *space, bool bottom) {
  for (int d = 0; d < dim; d += 32) {
    tiles_zero(bottom);
    for (int at = 0; at < end; at += 32) {
      const uint16_t *block = (at + 32 < end ? values + (size_t)at * dim : last) + 2 * d;
      tile_step(space->weights + at, space->weight_stride, block, block + 32, (size_t)dim * 4, bottom);
    }
    tiles_store(space->sums + d, (size_t)dim, bottom);
  }
}

/* 16 of a row's scores -> e^(…) in place, zeros from the `left`th on. */
static inline __m512 softmax_lanes(float *s, __m512 factor, __m512 shift, int left) {
  __m512 e = exp2_lanes(_mm512_fmadd_ps(_mm512_loadu_ps(s), factor, shift));
  if (left < 16) e = _mm512_maskz_mov_ps((__mmask16)((1u << UST_MAX(0, left)) - 1), e);
  _mm512_storeu_ps(s, e);
  return e;
}

/* Scores of n positions -> e^(scale (score - the largest)) in place, and below `edge` as bf16 weights, zeros from
 * there to `end`, a multiple of 32. Returns the sum. Lanes go by position, so that a row's sum does not depend on
 * its company. `lines` of `far` per 32 positions come into the second-level cache meanwhile. */
static float softmax(float *s, int n, float scale, uint16_t *weights, int edge, int end, const char *far, int lines) {
  __m512 most = _mm512_set1_ps(s[0]), sum = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    __mmask16 in = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
    most = _mm512_mask_max_ps(most, in, most, _mm512_loadu_ps(s + i));
  }
  float factor = scale * 1.44269504f, largest = _mm512_reduce_max_ps(most);
  __m512 factors = _mm512_set1_ps(factor), shift = _mm512_set1_ps(-largest * factor);
  for (int i = 0; i < UST_MAX(n, end); i += 32) {
    __m512 low = softmax_lanes(s + i, factors, shift, n - i),
           high = softmax_lanes(s + i + 16, factors, shift, n - i - 16);
    sum = _mm512_add_ps(_mm512_add_ps(sum, low), high);
    if (i >= end) continue;
    for (int l = 0; l < lines; l++, far += 64) _mm_prefetch(far, _MM_HINT_T1);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    if (edge - i < 32) both = _mm512_maskz_mov_epi16((__mmask32)((1ull << UST_MAX(0, edge - i)) - 1), both);
    _mm512_store_si512(weights + i, both);
  }
  return _mm512_reduce_add_ps(sum);
}

/* out[c] = (sums[c] + weight x value of positions edge … n-1, one after the other) * inverse, for 16 * vectors
 * coordinates; `window` holds the values of slots from `low` on. */
static inline __attribute__((always_inline)) void window_columns(const float *window, int low, int dim,
                                                                 const ust_attention_rows *rows, int row,
                                                                 const float *weights, int edge, const float *sums,
                                                                 float inverse, uint16_t *out, const int vectors) {
  __m512 acc[4];
  for (int i = 0; i < vectors; i++) acc[i] = _mm512_loadu_ps(sums + 16 * i);
  for (int at = edge; at < rows->keys[row]; at++) {
    const float *value = window + (size_t)(row_slot(rows, row, at) - low) * dim;
    __m512 weight = _mm512_set1_ps(weights[at]);
    for (int i = 0; i < vectors; i++) acc[i] = _mm512_fmadd_ps(weight, _mm512_loadu_ps(value + 16 * i), acc[i]);
  }
  for (int i = 0; i < vectors; i++)
    _mm256_storeu_si256((void *)(out + 16 * i),
                        (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(acc[i], _mm512_set1_ps(inverse))));
}

/* The values of slots low … end-1 as f32 rows. */
static void widen_values(const uint16_t *values, int dim, int low, int end, float *window) {
  for (int slot = low; slot < end; slot++, window += dim)
    for (int d = 0; d < dim; d += 16) {
      __m512i pairs = _mm512_loadu_si512(values + (size_t)(slot / 2) * 2 * dim + 2 * d);
      _mm512_storeu_ps(window + d, slot % 2 ? pair_odd(pairs) : pair_even(pairs));
    }
}

/* What a group of rows has in common. */
typedef struct attention_group {
  int first, count;
  int slot_end; /* after the last slot any row sees */
  int low;      /* the first slot any row adds by itself */
  int edge;     /* after the last position that goes through the tiles in any row */
} attention_group;

static attention_group describe_group(const ust_attention_rows *rows, int first) {
  attention_group g = {.first = first, .count = UST_MIN(QUERIES, rows->rows - first), .low = INT32_MAX};
  for (int r = first; r < first + g.count; r++) {
    g.slot_end = UST_MAX(g.slot_end, row_slot(rows, r, rows->keys[r] - 1) + 1);
    g.low = UST_MIN(g.low, tile_edge(rows->keys[r]));
    g.edge = UST_MAX(g.edge, tile_edge(rows->keys[r]));
  }
  return g;
}

static inline __attribute__((always_inline)) void attend_group(const uint16_t *keys, const uint16_t *values,
                                                               int head_dim, const ust_attention_rows *rows,
                                                               attention_group g, const float *q, size_t q_stride,
                                                               uint16_t *out, size_t out_stride,
                                                               const attention_space *space, bool bottom) {
  int dim = kv_dim(head_dim), end = UST_ROUND_UP(g.edge, 32);
  float inverse[QUERIES], scale = 1.0f / sqrtf((float)head_dim);
  configure(UST_MIN(g.count, 16), UST_MAX(0, g.count - 16));
  for (int r = 0; r < g.count; r++)
    row_convert(q + (size_t)(g.first + r) * q_stride, head_dim, space->queries + (size_t)r * dim);
  written();
  scores(keys, dim, g.slot_end, space, bottom);
  written();
  /* The values come meanwhile: of each 32 positions' lines, every row asks for its share. */
  int lines = (dim + g.count - 1) / g.count;
  for (int r = 0; r < g.count; r++) {
    float *row = space->scores + (size_t)r * space->score_stride;
    int n = rows->keys[g.first + r];
    const char *far = (const char *)values + (size_t)r * (size_t)lines * 64 * (size_t)(end / 32);
    row_order(row, rows, g.first + r);
    inverse[r] =
        1.0f / softmax(row, n, scale, space->weights + (size_t)r * space->weight_stride, tile_edge(n), end, far, lines);
  }
  const uint16_t *last = end ? last_values(values, dim, g.edge, end, (uint16_t *)(void *)space->window) : NULL;
  written();
  tile_values(values, last, dim, end, space, bottom);
  written();
  widen_values(values, dim, g.low, g.slot_end, space->window);
  for (int r = 0; r < g.count; r++) {
    const float *weights = space->scores + (size_t)r * space->score_stride, *sums = space->sums + (size_t)r * dim;
    uint16_t head[64], *to = out + (size_t)(g.first + r) * out_stride;
    int edge = tile_edge(rows->keys[g.first + r]);
    for (int d = 0; d < dim; d += 64) {
      int count = UST_MIN(64, head_dim - d);
      if (dim - d >= 64)
        window_columns(space->window + d, g.low, dim, rows, g.first + r, weights, edge, sums + d, inverse[r], head, 4);
      else
        window_columns(space->window + d, g.low, dim, rows, g.first + r, weights, edge, sums + d, inverse[r], head, 2);
      memcpy(to + d, head, (size_t)count * sizeof *to);
    }
  }
}

static void attention(const void *kv, int slots, int head_dim, const ust_attention_rows *rows, const float *q,
                      size_t q_stride, void *out, size_t out_stride, void *scratch) {
  const uint16_t *keys = kv, *values = keys + (size_t)slots * kv_dim(head_dim);
  attention_space space;
  attention_layout(slots, kv_dim(head_dim), &space, scratch);
  for (int first = 0; first < rows->rows; first += QUERIES) {
    attention_group g = describe_group(rows, first);
    if (g.count > 16)
      attend_group(keys, values, head_dim, rows, g, q, q_stride, out, out_stride, &space, true);
    else
      attend_group(keys, values, head_dim, rows, g, q, q_stride, out, out_stride, &space, false);
  }
}

#endif
