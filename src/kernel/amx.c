/* The AMX level: bf16 activations, matmul and attention on 16 x 16 tiles of f32 sums (TDPBF16PS).
 *
 * A tile product treats each row by itself and takes the inputs in order, 32 at a time, so a row has the same
 * bits in a pass of 1 row and of 64. Quantised matrices: amx_integers.h. */
#include "kernel/kernel.h"

#include <immintrin.h>

typedef uint16_t activation;
static inline activation to_activation(float x) {
  return ust_f32_to_bf16(x);
}
#include "kernel/rows.h"
#include "kernel/training.h"
#include "kernel/bf16_layout.h"
#include "kernel/vnni.h"

/* ---- tiles: 0-3 sums, 4-5 rows of x, 6-7 weights ---- */

/* gcc's tile intrinsics do not tell the compiler what memory they read (gcc 12: a load reads nothing, a configuration
 * its first 8 bytes), so what was just written for them is fenced by hand. */
static inline void written(void) {
  __asm__ volatile("" ::: "memory");
}

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

static void release(void) {
  _tile_release();
}

/* ---- 16 lanes ---- */

/* 2^x for x <= 127, relative error below 3e-7: the power of two, and on [-1/2, 1/2] the polynomial of degree 5
 * that meets it at Chebyshev's points. */
static inline __m512 exp2_lanes(__m512 x) {
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(0.00133908634f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00967603192f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0555035711f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240221075f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693147188f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.00000008f));
  return _mm512_scalef_ps(p, whole);
}

/* row_gelu() */
static inline __m512 gelu_lanes(__m512 x) {
  __m512 square = _mm512_mul_ps(x, x);
  __m512 inner = _mm512_fmadd_ps(square, _mm512_set1_ps(-0.102943240f), _mm512_set1_ps(-2.30220820f));
  __m512 exponent = _mm512_mul_ps(x, inner); /* kept where neither e nor its inverse is denormal */
  exponent = _mm512_max_ps(_mm512_min_ps(exponent, _mm512_set1_ps(100.0f)), _mm512_set1_ps(-100.0f));
  __m512 e = exp2_lanes(exponent);
  __m512 y = _mm512_add_ps(e, _mm512_set1_ps(1.0f)), inverse = _mm512_rcp14_ps(y);
  inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(y, inverse, _mm512_set1_ps(2.0f))); /* Newton */
  return _mm512_mul_ps(x, inverse);
}

/* ---- matmul ----
 *
 * A panel meets up to 32 rows at a time: two strips by two tiles of rows, so that each tile loaded serves two
 * products. While a panel is multiplied, the next one comes into the second-level cache, evenly over the panel's work
 * however many rows there are. The requests lie between the tile instructions: a core has few line buffers, and a run
 * of requests holds up all that follows it (twice the time at 64 rows). */

/* What comes into the second-level cache meanwhile: `lines` of each of STREAMS pieces `apart` bytes from each other per
 * block. Each stream draws the hardware's own prefetching along: eight read a fifth faster than two. */
enum { STREAMS = 8 };

typedef struct ahead {
  const char *at;
  size_t apart;
  int lines;
} ahead;

/* The `part`th of `parts` equal shares of one block's requests. */
static inline __attribute__((always_inline)) void request(int part, int parts, const ahead *far) {
  for (int s = part; s < STREAMS; s += parts)
    for (int l = 0; l < far->lines; l++) _mm_prefetch(far->at + (size_t)s * far->apart + l * 64, _MM_HINT_T1);
}

/* Adds the product of up to 32 rows of x and `blocks` blocks of a panel's two strips to sum tiles 0-3. `lower`: there
 * are more than 16 rows. */
static inline __attribute__((always_inline)) void strip_sums(const char *left, const char *right, int blocks,
                                                             const uint16_t *x, size_t stride, ahead far, bool lower) {
  const int parts = lower ? 8 : 5;
  for (int b = 0; b < blocks; b++, left += TILE, right += TILE, x += BLOCK) {
    _tile_loadd(6, left, 64);
    request(0, parts, &far);
    _tile_loadd(7, right, 64);
    request(1, parts, &far);
    _tile_loadd(4, x, stride * 2);
    request(2, parts, &far);
    _tile_dpbf16ps(0, 4, 6);
    request(3, parts, &far);
    _tile_dpbf16ps(1, 4, 7);
    request(4, parts, &far);
    if (lower) {
      _tile_loadd(5, x + 16 * stride, stride * 2);
      request(5, parts, &far);
      _tile_dpbf16ps(2, 5, 6);
      request(6, parts, &far);
      _tile_dpbf16ps(3, 5, 7);
      request(7, parts, &far);
    }
    far.at += far.lines * 64;
  }
}

static void tiles_zero(bool bottom) {
  _tile_zero(0);
  _tile_zero(1);
  if (bottom) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

static void tiles_load(const float *y, size_t stride, bool bottom) {
  written();
  _tile_loadd(0, y, stride * 4);
  _tile_loadd(1, y + STRIP, stride * 4);
  if (bottom) {
    _tile_loadd(2, y + 16 * stride, stride * 4);
    _tile_loadd(3, y + 16 * stride + STRIP, stride * 4);
  }
}

static void tiles_store(float *y, size_t stride, bool bottom) {
  _tile_stored(0, y, stride * 4);
  _tile_stored(1, y + STRIP, stride * 4);
  if (bottom) {
    _tile_stored(2, y + 16 * stride, stride * 4);
    _tile_stored(3, y + 16 * stride + STRIP, stride * 4);
  }
}

/* What a call multiplies and where the sums go. */
typedef struct product {
  const ust_matrix *w;
  int panel, panel_end;
  const uint16_t *x;
  size_t x_stride, y_stride;
  const float *bias;
  ust_epilogue epilogue;
  char *y;
} product;

/* Bias and epilogue of a panel's sums. */
static void finish(const product *m, int panel, int row, int rows, float c[][UST_PANEL]) {
  const float *bias = m->bias ? m->bias + (size_t)panel * UST_PANEL : NULL;
  __m512 first = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
  __m512 second = bias ? _mm512_loadu_ps(bias + 16) : _mm512_setzero_ps();
  for (int r = 0; r < rows; r++) {
    size_t at = (size_t)(row + r) * m->y_stride + (size_t)panel * UST_PANEL;
    if (m->epilogue == UST_GELU) {
      __m512 low = gelu_lanes(_mm512_add_ps(_mm512_load_ps(c[r]), first));
      __m512 high = gelu_lanes(_mm512_add_ps(_mm512_load_ps(c[r] + 16), second));
      _mm512_storeu_si512((uint16_t *)(void *)m->y + at, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    } else {
      row_finish(c[r], bias, m->epilogue, m->y, at);
    }
  }
}

/* Panel `panel` and up to 32 rows from `row` on, which is chunk `chunk` of `chunks` of the rows. Without a bias, sums
 * go to y (or start from it) directly. */
static inline __attribute__((always_inline)) void whole_panel(const product *m, int panel, int row, int rows, int chunk,
                                                              int chunks) {
  bool bottom = rows > 16, direct = !m->bias && m->epilogue != UST_GELU;
  float *y = (float *)(void *)m->y + (size_t)row * m->y_stride + (size_t)panel * UST_PANEL;
  int blocks = block_count(m->w->cols);
  const char *left = strip_of(m->w, 2 * panel), *right = left + (size_t)blocks * TILE;
  const uint16_t *x = m->x + (size_t)row * m->x_stride;
  const char *after = panel_after(m->w, panel, m->panel, m->panel_end);
  ahead far = {0};
  if (after) {
    const size_t strip = panel + 1 < m->panel_end ? (size_t)(right - left) : strip_bytes(m->w->next);
    far.apart = 2 * strip / STREAMS;
    size_t lines = (far.apart / 64 + (size_t)chunks - 1) / (size_t)chunks;
    far.lines = (int)((lines + (size_t)blocks - 1) / (size_t)blocks);
    far.at = after + (size_t)chunk * lines * 64;
  }
  if (direct && m->epilogue == UST_ADD)
    tiles_load(y, m->y_stride, bottom);
  else
    tiles_zero(bottom);
  if (bottom)
    strip_sums(left, right, blocks, x, m->x_stride, far, true);
  else
    strip_sums(left, right, blocks, x, m->x_stride, far, false);
  if (direct) {
    tiles_store(y, m->y_stride, bottom);
    return;
  }
  float c[32][UST_PANEL] __attribute__((aligned(64)));
  tiles_store(c[0], UST_PANEL, bottom);
  finish(m, panel, row, rows, c);
}

/* Each panel meets all rows before the next one. */
static void by_panels(const product *m, int rows) {
  int whole = rows / 32 * 32, rest = rows - whole, chunks = (rows + 31) / 32;
  if (!rest) configure(16, 16);
  if (!whole) configure(UST_MIN(rest, 16), UST_MAX(0, rest - 16));
  for (int p = m->panel; p < m->panel_end; p++) {
    if (whole && rest) configure(16, 16);
    for (int r = 0; r < whole; r += 32) whole_panel(m, p, r, 32, r / 32, chunks);
    if (whole && rest) configure(UST_MIN(rest, 16), UST_MAX(0, rest - 16));
    if (rest) whole_panel(m, p, whole, rest, chunks - 1, chunks);
  }
}

#include "kernel/amx_integers.h"

static void matmul(const ust_matrix *w, int panel, int panel_end, const void *x, size_t x_stride, int rows,
                   const float *bias, ust_epilogue epilogue, void *y, size_t y_stride) {
  const product m = {.w = w,
                     .panel = panel,
                     .panel_end = panel_end,
                     .x = x,
                     .x_stride = x_stride,
                     .y_stride = y_stride,
                     .bias = bias,
                     .epilogue = epilogue,
                     .y = y};
  if (ust_is_quantised(w->format))
    matmul_quantised(&m, (void *)(uintptr_t)x, rows);
  else
    by_panels(&m, rows);
}

#include "kernel/amx_left.h"

#include "kernel/amx_attention.h"

void ust_amx_fill(ust_kernels *table) {
  rows_fill(table);
  training_fill(table);
  bf16_layout_fill(table);
  left_fill(table);
  table->integers_bytes = integers_bytes;
  table->integers = vnni_integers;
  table->matmul = matmul;
  table->attention_scratch = attention_scratch;
  table->attention = attention;
  table->release = release;
}
