/* How the avx2, avx512 and amx levels hold matrices, keys and values, for their files.
 *
 * Matrix: strips of 16 output columns, two to a panel. A BF16 strip is a run of k-blocks of 32 inputs, and a block is
 * one AMX tile, [16 input pairs][16 columns][2] bf16 = 1 KiB. Quantised strips: quantised.h.
 * Keys and values of a head, dim = head_dim rounded up to 32: keys in blocks of 16 slots, [slot/16][dim/2][16][2]
 * bf16, then values by pairs of slots, [slot/2][dim][2] bf16: both are tiles too. */
#ifndef UST_KERNEL_LAYOUT_H
#define UST_KERNEL_LAYOUT_H

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

static size_t layout_matrix_bytes(ust_format format, int rows, int cols) {
  if (ust_is_quantised(format)) return quantised_bytes(format, rows, cols);
  return (size_t)UST_ROUND_UP(rows, UST_PANEL) / STRIP * (size_t)block_count(cols) * TILE;
}

/* Two inputs of a strip make a line of pairs. */
static void layout_pack_inputs(const ust_matrix *m, int input, const float *x, size_t x_stride, int inputs) {
  for (int k = 0; k < inputs; k += 2)
    for (int r = 0; r < m->rows; r += STRIP) {
      const float *even = x + (size_t)k * x_stride + r, *odd = even + x_stride;
      uint32_t *line = (uint32_t *)(uintptr_t)strip_of(m, r / STRIP) + (size_t)(input + k) / 2 * STRIP;
      for (int c = 0; c < STRIP; c++) line[c] = ust_f32_to_bf16(even[c]) | (uint32_t)ust_f32_to_bf16(odd[c]) << 16;
    }
}

static void layout_unpack_row(const ust_matrix *m, int row, float *out) {
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

/* ---- keys and values ---- */

static inline int kv_dim(int head_dim) {
  return UST_ROUND_UP(head_dim, 32);
}
static inline uint16_t *kv_values(void *kv, int slots, int dim) {
  return (uint16_t *)kv + (size_t)slots * dim;
}

static size_t layout_kv_bytes(int slots, int head_dim) {
  return 2 * (size_t)slots * kv_dim(head_dim) * 2;
}

static void layout_kv_move(void *kv, int slots, int head_dim, int from, int to) {
  int dim = kv_dim(head_dim);
  uint16_t *keys = kv, *values = kv_values(kv, slots, dim);
  for (int d = 0; d < dim; d++) {
    size_t pair = (size_t)(d / 2) * 32 + d % 2;
    keys[(size_t)(to / 16) * 16 * dim + (to % 16) * 2 + pair] =
        keys[(size_t)(from / 16) * 16 * dim + (from % 16) * 2 + pair];
    values[(size_t)(to / 2) * 2 * dim + to % 2 + d * 2] = values[(size_t)(from / 2) * 2 * dim + from % 2 + d * 2];
  }
}

static inline void layout_fill(ust_kernels *table) {
  table->matrix_bytes = layout_matrix_bytes;
  table->pack_blocks = quantised_pack;
  table->unpack_row = layout_unpack_row;
  table->pack_inputs = layout_pack_inputs;
  table->kv_bytes = layout_kv_bytes;
  table->kv_move = layout_kv_move;
}

#endif
