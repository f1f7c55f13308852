/* Products whose left operand too lies in tiles, for training, where both operands are made for one product of
 * hundreds of rows: a tile of rows 1 KiB apart from the next loads without the cache-set conflicts of rows a whole
 * activation apart. Included by amx.c.
 *
 * Layout of a left operand: [rows/16][inputs/32][16 rows][32 inputs] bf16. */
#ifndef UST_KERNEL_AMX_LEFT_H
#define UST_KERNEL_AMX_LEFT_H

static inline uint16_t *left_tile(const ust_left *left, int row, int input) {
  return (uint16_t *)left->data + ((size_t)(row / 16) * (left->inputs / 32) + input / 32) * (TILE / 2);
}

static void amx_left_pack(const ust_left *left, int input, const float *x, size_t x_stride, int inputs) {
  for (int r = 0; r < left->rows; r++) {
    const float *from = x + (size_t)r * x_stride;
    uint16_t *to = left_tile(left, r, input) + r % 16 * 32;
    for (int k = 0; k < inputs; k += 32, to += TILE / 2)
      _mm512_store_si512((void *)to, row_pairs(_mm512_loadu_ps(from + k), _mm512_loadu_ps(from + k + 16)));
  }
}

/* y[c][r] = x[r][c] for 32 rows x 16 columns: pairs of rows become words, words are transposed. */
static inline void transpose_block(const float *x, size_t x_stride, uint16_t *y, size_t y_stride) {
  __m512i words[16];
  for (int r = 0; r < 16; r++)
    words[r] =
        pair_bf16(_mm512_loadu_ps(x + (size_t)(2 * r) * x_stride), _mm512_loadu_ps(x + (size_t)(2 * r + 1) * x_stride));
  transpose16(words);
  for (int c = 0; c < 16; c++) _mm512_storeu_si512(y + (size_t)c * y_stride, words[c]);
}

static void amx_left_pack_transposed(const ust_left *left, int input, const float *x, size_t x_stride, int inputs) {
  for (int k = 0; k < inputs; k += 32)
    for (int row = 0; row < left->rows; row += 16)
      transpose_block(x + (size_t)k * x_stride + row, x_stride, left_tile(left, row, input + k), 32);
}

/* 32 rows of the left operand times a panel, added to sum tiles 0-3. Meanwhile the 32 rows from `next` on, where the
 * following sums go, come into the first-level cache, and `lines` of `far` for each block into the second. */
static inline void left_sums(const char *upper, const char *lower, const char *left, const char *right, int blocks,
                             const float *next, size_t next_stride, const char *far, int lines) {
  const int share = (32 + blocks - 1) / blocks;
  int asked = 0;
  for (size_t at = 0; at < (size_t)blocks * TILE; at += TILE) {
    _tile_loadd(6, left + at, 64);
    _tile_loadd(4, upper + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    for (int l = 0; l < lines; l++) _mm_prefetch(far + l * 64, _MM_HINT_T1);
    far += lines * 64;
    _tile_loadd(7, right + at, 64);
    _tile_dpbf16ps(1, 4, 7);
    for (int end = UST_MIN(32, asked + share); asked < end; asked++) {
      _mm_prefetch((const char *)(next + (size_t)asked * next_stride), _MM_HINT_T0);
      _mm_prefetch((const char *)(next + (size_t)asked * next_stride + STRIP), _MM_HINT_T0);
    }
    _tile_loadd(5, lower + at, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

/* While a panel meets the rows, the panel behind it comes nearer: the next of w or of the piece packed after it. */
static void amx_left_matmul(const ust_matrix *w, const ust_left *x, int input, const float *bias, bool add, float *y,
                            size_t y_stride) {
  int blocks = block_count(w->cols), panels = w->rows / UST_PANEL, groups = x->rows / 32;
  const int lines = (2 * TILE / 64 + groups - 1) / groups; /* of the panel behind, for each block of a group of rows */
  configure(16, 16);
  for (int p = 0; p < panels; p++) {
    const char *left = strip_of(w, 2 * p), *right = strip_of(w, 2 * p + 1), *far = right + (right - left);
    for (int r = 0; r < x->rows; r += 32, far += (size_t)blocks * (size_t)lines * 64) {
      float *to = y + (size_t)r * y_stride + (size_t)p * UST_PANEL;
      if (add)
        tiles_load(to, y_stride, true);
      else if (bias)
        tiles_load(bias + (size_t)p * UST_PANEL, 0, true); /* every row of the tiles */
      else
        tiles_zero(true);
      const float *next = r + 32 < x->rows ? to + 32 * y_stride : p + 1 < panels ? y + (size_t)(p + 1) * UST_PANEL : y;
      left_sums((const char *)left_tile(x, r, input), (const char *)left_tile(x, r + 16, input), left, right, blocks,
                next, y_stride, far, lines);
      tiles_store(to, y_stride, true);
    }
  }
}

static void left_fill(ust_kernels *table) {
  table->left_pack = amx_left_pack;
  table->left_pack_transposed = amx_left_pack_transposed;
  table->left_matmul = amx_left_matmul;
}

#endif
