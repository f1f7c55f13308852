/* bench: what `test_kernels --bench` measures: matmul at the shapes of GPT-2-L, from memory, by level, format, rows
 * and threads. Each measurement walks over copies of the matrix that are larger than the caches together, as a pass
 * over a model does; the fastest matrix counts, so that a busy machine disturbs little. */
#ifndef UST_TESTS_KERNEL_BENCH_H
#define UST_TESTS_KERNEL_BENCH_H

#include <omp.h>

#include "kernel/check.h"

static const struct {
  int cols, rows;
  const char *name;
} bench_shapes[] = {
    {1280, 3840, "qkv"}, {1280, 1280, "out"}, {1280, 5120, "up"}, {5120, 1280, "down"}, {1280, 50257, "logits"}};

static const char *const bench_formats[] = {"bf16", "q8", "f32", "q4", "q4k"};

enum { BENCH_WALK = 160 << 20 /* bytes of copies */, BENCH_ROUNDS = 3, BENCH_MOST_ROWS = 256 };
#define BENCH_SECONDS 0.3

/* Seconds of one pass of `rows` rows over one matrix: the fastest of those that fit into BENCH_SECONDS. */
static double bench_matmul(const ust_kernels *kernels, const ust_matrix *copies, int count, int rows, int threads,
                           const void *x, size_t x_stride, float *y, size_t y_stride) {
  int panels = (int)(y_stride / UST_PANEL);
  bool quantised = ust_is_quantised(copies->format);
  char *integers = quantised ? ust_alloc(kernels->integers_bytes(rows, copies->cols)) : NULL;
  double best = 1e9, begun = omp_get_wtime(), stop = begun + BENCH_SECONDS;
  for (int i = 0; i < BENCH_ROUNDS * count && (i < 2 || omp_get_wtime() < stop); i++) {
    double started = omp_get_wtime();
#pragma omp parallel num_threads(threads)
    {
      int me = omp_get_thread_num(), all = omp_get_num_threads();
      int first = (int)((long)panels * me / all), end = (int)((long)panels * (me + 1) / all);
      if (quantised) {
        int row = rows * me / all, row_end = rows * (me + 1) / all;
        kernels->integers(x, x_stride, rows, copies->cols, row, row_end, integers);
#pragma omp barrier
      }
      if (first < end)
        kernels->matmul(&copies[i % count], first, end, quantised ? integers : x, x_stride, rows, NULL, UST_STORE, y,
                        y_stride);
    }
    best = fmin(best, omp_get_wtime() - started);
  }
#pragma omp parallel num_threads(threads)
  kernels->release();
  ust_free(integers);
  return best;
}

static int bench_shape(const ust_kernels *kernels, int shape, ust_format format) {
  int cols = bench_shapes[shape].cols, outputs = bench_shapes[shape].rows;
  size_t x_stride = (size_t)UST_ROUND_UP(cols, 32), y_stride = (size_t)UST_ROUND_UP(outputs, UST_PANEL);
  size_t bytes = kernels->matrix_bytes(format, outputs, cols), blocks = x_stride / 32;
  int count = UST_MIN(MOST_BUFFERS, UST_MAX(1, (int)(BENCH_WALK / bytes)));
  ust_matrix copies[MOST_BUFFERS];
  for (int i = 0; i < count; i++) {
    copies[i] = (ust_matrix){.format = format, .rows = outputs, .cols = cols, .bytes = bytes, .data = ust_alloc(bytes)};
    if (!copies[i].data) return print_error("out of memory\n"), 1;
  }
  float source[32 * 32];
  fill_uniform(source, 32 * 32, -1, 1);
  static unsigned char row[32 * 160 * sizeof(ust_q8_block)];
  for (size_t b = 0; b < 32 * blocks; b++) {
    if (format == UST_FORMAT_Q8) ust_q8_quantize(source + b % 32 * 32, (ust_q8_block *)(void *)row + b);
    if (format == UST_FORMAT_Q4) ust_q4_quantize(source + b % 32 * 32, (ust_q4_block *)(void *)row + b);
  }
  for (size_t b = 0; format == UST_FORMAT_Q4K && b < 32 * blocks / 8; b++) {
    ust_q4k_block *block = (ust_q4k_block *)(void *)row + b;
    for (size_t i = 0; i < sizeof *block; i++) ((unsigned char *)block)[i] = (unsigned char)random_bits();
    block->scale = block->minimum = 0x1000;
  }
  for (int r = 0; r < outputs; r += UST_PANEL) {
    int n = UST_MIN(UST_PANEL, outputs - r);
    if (ust_is_quantised(format))
      kernels->pack_blocks(&copies[0], r, n, row);
    else
      kernels->pack(&copies[0], r, n, source, 1, 0);
  }
  for (int i = 1; i < count; i++) memcpy(copies[i].data, copies[0].data, bytes);
  void *x = random_activations(kernels, BENCH_MOST_ROWS, cols, x_stride);
  float *y = ust_alloc(BENCH_MOST_ROWS * y_stride * sizeof(float));
  static const int row_counts[] = {1, 8, 16, 32, 64, 256};
  for (int threads = 1; threads <= 2; threads++)
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
      int rows = row_counts[i];
      if (kernels->isa == UST_ISA_SCALAR && rows > 8) break;
      double seconds = bench_matmul(kernels, copies, count, rows, threads, x, x_stride, y, y_stride);
      printf("%-7s %-5s %-7s %5d x %-6d %4d rows %d thr %9.3f ms %7.1f GB/s %7.3f TFLOP/s\n", kernels->name,
             bench_formats[format], bench_shapes[shape].name, cols, outputs, rows, threads, seconds * 1e3,
             (double)bytes / seconds * 1e-9, 2.0 * rows * cols * outputs / seconds * 1e-12);
      fflush(stdout);
    }
  for (int i = 0; i < count; i++) ust_free(copies[i].data);
  ust_free(y);
  fenced_release("bench");
  return 0;
}

/* `level` NULL: every level. */
static int bench(const char *level) {
  int failed = 0;
  for (int isa = 0; isa < UST_ISA_COUNT; isa++) {
    const ust_kernels *kernels = ust_kernels_get((ust_isa)isa, NULL);
    if (!kernels || (level && strcmp(level, kernels->name) != 0)) continue;
    for (int shape = 0; shape < (int)(sizeof bench_shapes / sizeof *bench_shapes) && !failed; shape++)
      for (int format = 0; format <= UST_FORMAT_Q4K && !failed; format++)
        if (format != UST_FORMAT_F32) failed = bench_shape(kernels, shape, (ust_format)format);
  }
  return failed;
}

#endif
