/* Products with quantised matrices, for amx.c: few rows by vnni.h, more on tiles of integer sums (TDPBSSD).
 *
 * A tile of weights is a block of 32 inputs of 16 columns, 8 rows of 4 inputs; 16 or 12 rows of integers are a tile.
 * A block's two tiles of weights (a panel's strips) meet one group of rows after the other. The two products of a group
 * wait in their tiles while the next ones are made, go to the first-level cache, and are scaled and added to their
 * rows' sums while the ones after are made. */
#ifndef UST_KERNEL_AMX_INTEGERS_H
#define UST_KERNEL_AMX_INTEGERS_H

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { MOST_GROUPS = 4 /* of rows that meet a block one after the other: their sums stay in the first-level cache */ };

/* Tiles 0 and 1: products of the left and the right strip, 2 and 3: those of every second group; 4, 5: integers;
 * 6, 7: weights. */
static void configure_integers(int rows) {
  tile_config config __attribute__((aligned(64))) = {.palette = 1};
  for (int t = 0; t < 8; t++) {
    config.row_bytes[t] = t == 4 || t == 5 ? UST_BLOCK : 64;
    config.rows[t] = (uint8_t)(t < 6 ? rows : UST_BLOCK / 4);
  }
  written();
  _tile_loadconfig(&config);
}

/* Lines of two strips still to be asked for, into the first-level cache. */
typedef struct requests {
  const char *at[2], *end;
  int each; /* at a time */
} requests;

ALWAYS_INLINE void ask(requests *q) {
  for (int i = 0; i < q->each && q->at[0] < q->end; i++, q->at[0] += Q_LINE, q->at[1] += Q_LINE) {
    _mm_prefetch(q->at[0], _MM_HINT_T0);
    _mm_prefetch(q->at[1], _MM_HINT_T0);
  }
}

/* The products of a group of rows with a block of a panel's strips, and what becomes of them. */
typedef struct made {
  block_scales of[2];
  const int32_t *negative;
  const float *scale;
  float *c; /* [height][UST_PANEL] */
} made;

ALWAYS_INLINE void add_products(ust_format format, int height, int32_t part[2][16][16], const made *p) {
#pragma GCC unroll 16
  for (int r = 0; r < height; r++)
#pragma GCC unroll 2
    for (int s = 0; s < 2; s++) {
      float *c = p->c + r * UST_PANEL + s * STRIP;
      __m512i t = _mm512_load_si512((const void *)part[s][r]);
      _mm512_store_ps(c, add_block(format, _mm512_load_ps(c), t, p->of[s], p->negative + r, p->scale + r));
    }
}

/* A pair's blocks of four bits as tiles of bytes with a sign (Q4K's have none). */
ALWAYS_INLINE void widen(ust_format format, const char *pair, char *tiles) {
  const __m512i ones = _mm512_set1_epi8(15), zero = _mm512_set1_epi8(format == UST_FORMAT_Q4 ? 8 : 0);
  for (int b = 0; b < 2; b++, tiles += 8 * Q_LINE)
#pragma GCC unroll 4
    for (int l = 0; l < 4; l++) {
      __m512i line = _mm512_load_si512((const void *)(pair + Q_LINE * (1 + 4 * b + l)));
      __m512i low = _mm512_and_si512(line, ones), high = _mm512_and_si512(_mm512_srli_epi16(line, 4), ones);
      _mm512_store_si512((void *)(tiles + l * Q_LINE), _mm512_sub_epi8(low, zero));
      _mm512_store_si512((void *)(tiles + (4 + l) * Q_LINE), _mm512_sub_epi8(high, zero));
    }
}

/* A panel and `groups` groups of rows from `row` on, into c. far: what comes into the second-level cache meanwhile. */
ALWAYS_INLINE void tile_panel(ust_format format, int height, const ust_matrix *w, int panel, const integers *x, int row,
                              int groups, far_streams far, float c[][UST_PANEL]) {
  char wide[2][2][16 * Q_LINE] __attribute__((aligned(64))); /* of this pair and the next */
  int32_t part[2][2][16][16] __attribute__((aligned(64)));   /* of groups in turn, of the left and the right strip */
  made in_tiles = {0}, in_part = {0};
  int turn = 0;
  const size_t head = quantised_head(format, w->cols), pair = quantised_pair(format);
  const size_t lines = (size_t)height * UST_BLOCK;
  const char *strip[2] = {strip_of(w, 2 * panel), strip_of(w, 2 * panel + 1)};
  const char *pairs[2] = {strip[0] + head, strip[1] + head};
  memset(c[0], 0, (size_t)groups * (size_t)height * sizeof *c);
  for (int s = 0; s < 2 && format != UST_FORMAT_Q8; s++) widen(format, pairs[s], wide[0][s]);
  for (int b = 0; b < x->blocks; b++) {
    requests near = {.at = {pairs[0] + pair, pairs[1] + pair}, .end = pairs[0] + 2 * pair};
    near.each = (int)(pair / Q_LINE) / (2 * groups) + 1;
    if (b % 2 == 0 && b + 2 < x->blocks && format != UST_FORMAT_Q8)
      for (int s = 0; s < 2; s++) widen(format, pairs[s] + pair, wide[(b / 2 + 1) % 2][s]);
    if (b % 2)
      for (int s = 0; s < 2; s++) near.at[s] += (size_t)(near.each * groups) * Q_LINE;
    const size_t at = format == UST_FORMAT_Q8 ? Q_LINE + (size_t)(b % 2) * 8 * Q_LINE : (size_t)(b % 2) * 8 * Q_LINE;
    written();
    _tile_loadd(6, (format == UST_FORMAT_Q8 ? pairs[0] : wide[b / 2 % 2][0]) + at, Q_LINE);
    _tile_loadd(7, (format == UST_FORMAT_Q8 ? pairs[1] : wide[b / 2 % 2][1]) + at, Q_LINE);
    const block_scales of[2] = {scales_of(format, strip[0], pairs[0] + (size_t)(b % 2) * 32, b),
                                scales_of(format, strip[1], pairs[1] + (size_t)(b % 2) * 32, b)};
    for (int g = 0; g < groups; g++) {
      const size_t first = integers_line(x, row + g * height) + (size_t)b * (size_t)height;
      const int8_t *line = x->lines + first * UST_BLOCK;
#define MAKE(left, right, rows_tile, made_left, made_right, to)                                                        \
  do {                                                                                                                 \
    _tile_zero(left);                                                                                                  \
    _tile_loadd(rows_tile, line, UST_BLOCK);                                                                           \
    _tile_dpbssd(left, rows_tile, 6);                                                                                  \
    _tile_zero(right);                                                                                                 \
    _tile_dpbssd(right, rows_tile, 7);                                                                                 \
    if (in_tiles.c) {                                                                                                  \
      _tile_stored(made_left, (to)[0][0], 64);                                                                         \
      _tile_stored(made_right, (to)[1][0], 64);                                                                        \
    }                                                                                                                  \
  } while (0)
      if (turn)
        MAKE(2, 3, 5, 0, 1, part[0]);
      else
        MAKE(0, 1, 4, 2, 3, part[1]);
#undef MAKE
      for (size_t l = 0; l < lines; l += Q_LINE) _mm_prefetch((const char *)line + 2 * lines + l, _MM_HINT_T0);
      ask(&near);
      far_request(&far, g, groups);
      if (in_part.c) add_products(format, height, part[turn], &in_part);
      in_part = in_tiles;
      in_tiles = (made){{of[0], of[1]}, x->sums + first, x->scales + first, c[g * height]};
      turn = !turn;
    }
    far_advance(&far);
    if (b % 2)
      for (int s = 0; s < 2; s++) pairs[s] += pair;
  }
  if (in_part.c) add_products(format, height, part[turn], &in_part);
  if (turn) {
    _tile_stored(0, part[0][0][0], 64);
    _tile_stored(1, part[0][1][0], 64);
    add_products(format, height, part[0], &in_tiles);
  } else {
    _tile_stored(2, part[1][0][0], 64);
    _tile_stored(3, part[1][1][0], 64);
    add_products(format, height, part[1], &in_tiles);
  }
}

#define TILE_PANEL(format)                                                                                             \
  if (x->height == 16)                                                                                                 \
    tile_panel(format, 16, m->w, panel, x, row, groups, far, c);                                                       \
  else                                                                                                                 \
    tile_panel(format, 12, m->w, panel, x, row, groups, far, c)

/* More than UST_INTEGER_FEW rows of one panel. */
static void tile_rows(const product *m, int panel, const integers *x, int rows) {
  float c[MOST_GROUPS * 16][UST_PANEL] __attribute__((aligned(64)));
  const char *after = panel_after(m->w, panel, m->panel, m->panel_end);
  size_t after_strip = !after || panel + 1 < m->panel_end ? strip_bytes(m->w) : strip_bytes(m->w->next);
  for (int row = 0; row < rows; row += MOST_GROUPS * x->height) {
    int groups = UST_MIN(MOST_GROUPS, x->groups - row / x->height), count = UST_MIN(rows - row, groups * x->height);
    far_streams far = far_of(row == 0 ? after : NULL, 2 * after_strip, x->blocks);
    if (m->w->format == UST_FORMAT_Q8) {
      TILE_PANEL(UST_FORMAT_Q8);
    } else if (m->w->format == UST_FORMAT_Q4) {
      TILE_PANEL(UST_FORMAT_Q4);
    } else {
      TILE_PANEL(UST_FORMAT_Q4K);
    }
    finish(m, panel, row, count, c);
  }
}
#undef TILE_PANEL

static void few_rows(const product *m, const integers *x, int rows) {
  float c[UST_INTEGER_FEW][2 * UST_PANEL] __attribute__((aligned(64)));
  for (int p = m->panel, panels; p < m->panel_end; p += panels) {
    panels = rows == 1 && p + 1 < m->panel_end ? 2 : 1;
    const char *after = panel_after(m->w, p + panels - 1, m->panel, m->panel_end);
    size_t after_strip = p + panels < m->panel_end || !after ? strip_bytes(m->w) : strip_bytes(m->w->next);
    vnni_panels(m->w, p, panels, far_of(after, 2 * (size_t)panels * after_strip, x->blocks), x, 0, rows, c[0],
                panels * UST_PANEL);
    for (int i = 0; i < panels; i++) /* two panels only of one row */
      finish(m, p + i, 0, rows, (float(*)[UST_PANEL])(void *)(c[0] + i * UST_PANEL));
  }
}

static void matmul_quantised(const product *m, void *integer_rows, int rows) {
  const integers x = integers_at(integer_rows, rows, m->w->cols);
  if (rows <= UST_INTEGER_FEW) {
    few_rows(m, &x, rows);
    return;
  }
  configure_integers(x.height);
  for (int p = m->panel; p < m->panel_end; p++) tile_rows(m, p, &x, rows);
}

#undef ALWAYS_INLINE

#endif
