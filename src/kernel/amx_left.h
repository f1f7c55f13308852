/* Products whose left operand too lies in tiles, for training, where both operands are made for one product of
 * hundreds of rows: a tile of rows 1 KiB apart from the next loads without the cache-set conflicts of rows a whole
 * activation apart. Included by amx.c.
 *
 * Layout of a left operand: [rows/16][inputs/32][16 rows][32 inputs] bf16. */
#ifndef UST_KERNEL_AMX_LEFT_H
#define UST_KERNEL_AMX_LEFT_H

enum { AHEAD = 2 * TILE /* bytes of tiles asked for before their use: two steps of the loop over inputs */ };

#define PREFETCH(hint, from, step, count)                                                                              \
  for (size_t line = 0; line < (count); line++) _mm_prefetch((const char *)(from) + line * (step), hint)

static inline uint16_t *left_tile(const ust_left *left, int row, int input) {
  return (uint16_t *)left->data + ((size_t)(row / 16) * (left->inputs / 32) + input / 32) * (TILE / 2);
}

static void amx_left_pack(ust_left *left, int row, const float *x, size_t x_stride, int rows) {
  for (int r = 0; r < rows; r++) {
    const float *from = x + (size_t)r * x_stride;
    uint16_t *to = left_tile(left, row + r, 0) + (row + r) % 16 * 32;
    for (int k = 0; k < left->inputs; k += 32, to += TILE / 2)
      _mm512_store_si512((void *)to, row_pairs(_mm512_loadu_ps(from + k), _mm512_loadu_ps(from + k + 16)));
  }
}

static void amx_left_pack_transposed(ust_left *left, int input, const float *x, size_t x_stride, int inputs) {
  for (int k = 0; k < inputs; k += 32)
    for (int row = 0; row < left->rows; row += 16)
      transpose_block(x + (size_t)k * x_stride + row, x_stride, left_tile(left, row, input + k), 32);
}

/* 32 rows of the left operand times a panel, added to sum tiles 0-3 */
static inline void left_sums(const char *upper, const char *lower, const char *left, const char *right, int blocks) {
  for (size_t at = 0; at < (size_t)blocks * TILE; at += TILE) {
    PREFETCH(_MM_HINT_T0, upper + at + AHEAD, 64, 16u);
    PREFETCH(_MM_HINT_T0, lower + at + AHEAD, 64, 16u);
    PREFETCH(_MM_HINT_T0, left + at + AHEAD, 64, 16u);
    PREFETCH(_MM_HINT_T0, right + at + AHEAD, 64, 16u);
    _tile_loadd(6, left + at, 64);
    _tile_loadd(4, upper + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + at, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, lower + at, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

static void amx_left_matmul(const ust_matrix *w, int panel, int panel_end, const ust_left *x, int row, int rows,
                            const float *bias, ust_epilogue epilogue, float *y, size_t y_stride) {
  const product m = {.w = w, .y_stride = y_stride, .bias = bias, .epilogue = epilogue, .y = (char *)y};
  int blocks = block_count(w->cols);
  configure(16, 16);
  for (int p = panel; p < panel_end; p++)
    for (int r = 0; r < rows; r += 32) {
      float *to = y + (size_t)r * y_stride + (size_t)p * UST_PANEL;
      if (!bias && epilogue == UST_ADD)
        tiles_load(to, y_stride, true);
      else
        tiles_zero(true);
      left_sums((const char *)left_tile(x, row + r, 0), (const char *)left_tile(x, row + r + 16, 0), strip_of(w, 2 * p),
                strip_of(w, 2 * p + 1), blocks);
      if (!bias) {
        tiles_store(to, y_stride, true);
        continue;
      }
      float c[32][UST_PANEL] __attribute__((aligned(64)));
      tiles_store(c[0], UST_PANEL, true);
      finish(&m, p, r, 32, c);
    }
}

static void left_fill(ust_kernels *table) {
  table->left_pack = amx_left_pack;
  table->left_pack_transposed = amx_left_pack_transposed;
  table->left_matmul = amx_left_matmul;
}

#endif
