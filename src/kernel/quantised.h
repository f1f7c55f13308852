/* Quantised matrices and the integers they are multiplied with, for every level's file.
 *
 * 32 activations of a row become integers of -127 to 127 with one scale, as GGUF's Q8_0 keeps weights; a block of 32
 * inputs of them and of a weight then has an integer sum, exact in any order, and only what follows is rounded: sum *
 * (scale of the weights * scale of the activations), for Q4K less the integers' sum * (minimum * scale of the
 * activations), added block after block. So every level, and every number of rows, gives the same bits for the same x.
 *
 * Weights: strips of 16 output columns; a strip is a head and a run of pairs of blocks. A pair is 64 bytes of scales,
 * [2][16] f16 (Q4K: [2] times 16 scales and 16 minima of 6 bits, a byte each), then [2][lines] of 64 bytes: a line
 * holds 4 inputs of each column, [16][4]. Q8: 8 lines of int8. Q4, Q4K: 4 lines, line k with inputs 4k... in the low
 * halves of its bytes and inputs 16 + 4k... in the high ones. The head is empty but for Q4K: for each 256 inputs [16]
 * f16 scales, [16] f16 minima. Bytes a weight: Q8 1.0625, Q4 0.5625, Q4K 0.578.
 *
 * Rows: groups of up to 16, [group][block][height rows] lines of 32 int8; then for each line the negative of its sum;
 * then for each its scale. Rows that only fill a group are zeros where tiles read them (vnni.h), and unset at the other
 * levels. */
#ifndef UST_KERNEL_QUANTISED_H
#define UST_KERNEL_QUANTISED_H

#include <math.h>

#include "kernel/kernel.h"

enum { Q_COLUMNS = 16, Q_LINE = 64 };

/* Blocks of a row, in whole pairs. */
static inline int quantised_blocks(int cols) {
  return UST_ROUND_UP(cols, 2 * UST_BLOCK) / UST_BLOCK;
}
static inline size_t quantised_head(ust_format format, int cols) {
  return format == UST_FORMAT_Q4K ? (size_t)UST_ROUND_UP(cols, 256) / 256 * Q_LINE : 0;
}
static inline int quantised_lines(ust_format format) {
  return format == UST_FORMAT_Q8 ? 8 : 4;
}
static inline size_t quantised_pair(ust_format format) {
  return Q_LINE + 2 * (size_t)quantised_lines(format) * Q_LINE;
}
static inline size_t quantised_strip(ust_format format, int cols) {
  return quantised_head(format, cols) + (size_t)quantised_blocks(cols) / 2 * quantised_pair(format);
}
/* Where the scales and the lines of a block lie, from the end of its strip's head. */
static inline size_t quantised_scales_at(ust_format format, int block) {
  return (size_t)(block / 2) * quantised_pair(format) + (size_t)(block % 2) * 32;
}
static inline size_t quantised_lines_at(ust_format format, int block) {
  return (size_t)(block / 2) * quantised_pair(format) + Q_LINE +
         (size_t)(block % 2) * (size_t)quantised_lines(format) * Q_LINE;
}

static __attribute__((unused)) size_t quantised_bytes(ust_format format, int rows, int cols) {
  return (size_t)UST_ROUND_UP(rows, UST_PANEL) / Q_COLUMNS * quantised_strip(format, cols);
}

/* Writes the run of one column. */
static void quantised_put(ust_format format, char *strip, size_t head, int block, int column, const ust_run *run) {
  char *scales = strip + head + quantised_scales_at(format, block);
  uint8_t *q = (uint8_t *)strip + head + quantised_lines_at(format, block) + column * 4;
  if (format == UST_FORMAT_Q4K) {
    if (block % 8 == 0) {
      uint16_t *both = (uint16_t *)(void *)(strip + (size_t)(block / 8) * Q_LINE);
      both[column] = run->scale;
      both[Q_COLUMNS + column] = run->minimum;
    }
    scales[column] = (char)run->scale_part;
    scales[Q_COLUMNS + column] = (char)run->minimum_part;
  } else {
    ((uint16_t *)(void *)scales)[column] = run->scale;
  }
  for (int i = 0; i < quantised_lines(format) * 4; i++)
    q[i / 4 * Q_LINE + i % 4] = (uint8_t)(format == UST_FORMAT_Q8 ? run->q[i] ^ 0x80 : run->q[i] | run->q[i + 16] << 4);
}

/* The same for the block of a column that GGUF stores in the order of the lines, Q8's or Q4's. */
static inline void quantised_copy(ust_format format, char *strip, int block, int column, const void *blocks) {
  const ust_q8_block *q8 = (const ust_q8_block *)blocks + block;
  const ust_q4_block *q4 = (const ust_q4_block *)blocks + block;
  const char *from = format == UST_FORMAT_Q8 ? (const char *)q8->q : (const char *)q4->q;
  char *to = strip + quantised_lines_at(format, block) + column * 4;
  for (int line = 0; line < quantised_lines(format); line++) memcpy(to + line * Q_LINE, from + line * 4, 4);
  memcpy(strip + quantised_scales_at(format, block) + column * 2, format == UST_FORMAT_Q8 ? &q8->scale : &q4->scale, 2);
}

/* The inverse of quantised_put(). */
static void quantised_get(ust_format format, const char *strip, size_t head, int block, int column, ust_run *run) {
  const char *scales = strip + head + quantised_scales_at(format, block);
  const uint8_t *q = (const uint8_t *)strip + head + quantised_lines_at(format, block) + column * 4;
  *run = (ust_run){.scale = ((const uint16_t *)(const void *)scales)[column]};
  if (format == UST_FORMAT_Q4K) {
    const uint16_t *both = (const uint16_t *)(const void *)(strip + (size_t)(block / 8) * Q_LINE);
    *run = (ust_run){
        both[column], both[Q_COLUMNS + column], (uint8_t)scales[column], (uint8_t)scales[Q_COLUMNS + column], {0}};
  }
  for (int i = 0; i < UST_BLOCK; i++)
    if (format == UST_FORMAT_Q8)
      run->q[i] = q[i / 4 * Q_LINE + i % 4] ^ 0x80;
    else
      run->q[i] = q[i % 16 / 4 * Q_LINE + i % 4] >> i / 16 * 4 & 15;
}

static void quantised_pack(ust_matrix *m, int row, int count, const void *source) {
  int blocks = UST_ROUND_UP(m->cols, UST_BLOCK) / UST_BLOCK, inputs = ust_block_inputs(m->format);
  size_t row_bytes = (size_t)(UST_ROUND_UP(m->cols, inputs) / inputs) * ust_block_bytes(m->format);
  size_t head = quantised_head(m->format, m->cols), strip_bytes = quantised_strip(m->format, m->cols);
  for (int r = row; r < UST_ROUND_UP(row + count, UST_PANEL); r++) {
    char *strip = (char *)m->data + (size_t)(r / Q_COLUMNS) * strip_bytes;
    for (int b = 0; b < quantised_blocks(m->cols); b++) {
      ust_run run = {0};
      if (r < row + count && b < blocks && m->format != UST_FORMAT_Q4K) {
        quantised_copy(m->format, strip, b, r % Q_COLUMNS, (const char *)source + (size_t)(r - row) * row_bytes);
        continue;
      }
      if (r < row + count && b < blocks)
        ust_run_load(m->format, (const char *)source + (size_t)(r - row) * row_bytes, b, &run);
      quantised_put(m->format, strip, head, b, r % Q_COLUMNS, &run);
    }
  }
}

static void quantised_unpack_row(const ust_matrix *m, int row, float *out) {
  size_t head = quantised_head(m->format, m->cols);
  const char *strip = (const char *)m->data + (size_t)(row / Q_COLUMNS) * quantised_strip(m->format, m->cols);
  for (int b = 0; b * UST_BLOCK < m->cols; b++) {
    ust_run run;
    float values[UST_BLOCK];
    quantised_get(m->format, strip, head, b, row % Q_COLUMNS, &run);
    ust_run_values(m->format, &run, values);
    for (int i = 0; i < UST_MIN(UST_BLOCK, m->cols - b * UST_BLOCK); i++) out[b * UST_BLOCK + i] = values[i];
  }
}

/* ---- rows ---- */

/* Where what belongs to `rows` rows of integers lies. */
typedef struct integers {
  int height, groups, blocks;
  int8_t *lines;
  int32_t *sums;
  float *scales;
} integers;

/* Up to UST_INTEGER_FEW rows are one group; more are divided evenly into groups of 12 or 16, as whole tiles. */
static inline integers integers_shape(int rows, int cols) {
  integers x = {.height = rows, .groups = 1, .blocks = quantised_blocks(cols)};
  if (rows > UST_INTEGER_FEW) {
    x.groups = (rows + 15) / 16;
    x.height = (rows + x.groups - 1) / x.groups <= 12 ? 12 : 16;
  }
  return x;
}
static inline integers integers_at(void *data, int rows, int cols) {
  integers x = integers_shape(rows, cols);
  size_t lines = (size_t)x.groups * (size_t)x.height * (size_t)x.blocks;
  x.lines = data;
  x.sums = (int32_t *)(void *)(x.lines + lines * UST_BLOCK);
  x.scales = (float *)(void *)(x.sums + lines);
  return x;
}
/* Line (sum, scale) of a row's first block; the next block's is x->height further on. */
static inline size_t integers_line(const integers *x, int row) {
  return (size_t)(row / x->height) * (size_t)x->blocks * (size_t)x->height + (size_t)(row % x->height);
}

static __attribute__((unused)) size_t integers_bytes(int rows, int cols) {
  integers x = integers_shape(rows, cols);
  size_t lines = (size_t)x.groups * (size_t)x.height * (size_t)x.blocks;
  return UST_ROUND_UP(lines * (UST_BLOCK * sizeof *x.lines + sizeof *x.sums + sizeof *x.scales), 64);
}

/* The scale of a block whose largest magnitude has these bits, and its inverse. A block too small to invert counts as
 * zeros; infinite values and NaN make every product NaN. */
static inline float integers_scale(uint32_t most, float *inverse) {
  union {
    uint32_t u;
    float f;
  } bits = {.u = most};
  *inverse = 0;
  if (bits.u >= 0x7f800000u) return NAN;
  if (bits.f < 0x1p-100f) return 0;
  *inverse = 127 / bits.f;
  return bits.f / 127;
}

/* A block of up to 32 f32 values as integers. Returns their sum. */
static inline int32_t integers_of_block(const float *x, int count, int8_t *line, float *scale) {
  uint32_t most = 0;
  int32_t sum = 0;
  float inverse;
  union {
    float f;
    uint32_t u;
    int32_t i;
  } bits;
  for (int i = 0; i < count; i++) {
    bits.f = x[i];
    most = UST_MAX(most, bits.u & 0x7fffffffu);
  }
  *scale = integers_scale(most, &inverse);
  for (int i = 0; i < UST_BLOCK; i++) {
    bits.f = (i < count && inverse != 0 ? x[i] * inverse : 0) + 0x1.8p23f; /* to the nearest integer */
    int32_t value = bits.i - 0x4b400000;
    line[i] = (int8_t)value;
    sum += value;
  }
  return sum;
}

static __attribute__((unused)) void integers_of_floats(const void *x, size_t x_stride, int rows, int cols, int row,
                                                       int row_end, void *out) {
  integers to = integers_at(out, rows, cols);
  for (int r = row; r < row_end; r++) {
    const float *from = (const float *)x + (size_t)r * x_stride;
    size_t at = integers_line(&to, r);
    for (int b = 0; b < to.blocks; b++, at += (size_t)to.height) {
      int count = UST_MAX(0, UST_MIN(UST_BLOCK, cols - b * UST_BLOCK));
      to.sums[at] = -integers_of_block(from + b * UST_BLOCK, count, to.lines + at * UST_BLOCK, &to.scales[at]);
    }
  }
}

#endif
