/* Matrices as the avx2, avx512 and amx levels hold them, for their files: strips of 16 output columns, two to a panel.
 *
 * A BF16 strip is a run of k-blocks of 32 inputs, and a block is one AMX tile, [16 input pairs][16 columns][2] bf16 =
 * 1 KiB. Quantised strips: quantised.h. */
#ifndef UST_KERNEL_STRIPS_H
#define UST_KERNEL_STRIPS_H

#include "kernel/kernel.h"
#include "kernel/quantised.h"

enum { STRIP = Q_COLUMNS, BLOCK = UST_BLOCK, TILE = 1024 };

static inline int block_count(int cols) {
  return UST_ROUND_UP(cols, BLOCK) / BLOCK;
}
static inline size_t strip_bytes(const ust_matrix *m) {
  return ust_is_quantised(m->format) ? quantised_strip(m->format, m->cols) : (size_t)block_count(m->cols) * TILE;
}
static inline const char *strip_of(const ust_matrix *m, int strip) {
  return (const char *)m->data + (size_t)strip * strip_bytes(m);
}

static size_t strips_matrix_bytes(ust_format format, int rows, int cols) {
  if (ust_is_quantised(format)) return quantised_bytes(format, rows, cols);
  return (size_t)UST_ROUND_UP(rows, UST_PANEL) / STRIP * (size_t)block_count(cols) * TILE;
}

static void strips_unpack_row(const ust_matrix *m, int row, float *out) {
  if (ust_is_quantised(m->format)) {
    quantised_unpack_row(m, row, out);
    return;
  }
  const char *strip = strip_of(m, row / STRIP);
  for (int k = 0; k < m->cols; k++) {
    const uint16_t *block = (const uint16_t *)(const void *)(strip + (size_t)(k / BLOCK) * TILE);
    out[k] = ust_bf16_to_f32(block[k % BLOCK / 2 * 2 * STRIP + row % STRIP * 2 + k % 2]);
  }
}

static inline void strips_fill(ust_kernels *table) {
  table->matrix_bytes = strips_matrix_bytes;
  table->pack_blocks = quantised_pack;
  table->unpack_row = strips_unpack_row;
}

#endif
