/* The machine's two limits: how fast it reads memory, and how fast the level's fastest bf16 product, that of
 * training, multiplies what is already near.
 *
 * Both take the best of several runs: other work on the machine can only make a run slower. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "measure/measure.h"

enum {
  READ_BYTES = 512 << 20, /* far beyond any last-level cache share; where memory is short, */
  READ_BYTES_LEAST = 128 << 20,
  LINE = 64,
  BEST_WAYS = 3, /* ways of reading that run again */
  BEST_ROUNDS = 4,
  PEAK_OUTPUTS = 128, /* weights and rows of 80 KiB in bf16 stay in the second-level cache, a panel in the first */
  PEAK_INPUTS = 320,
  PEAK_ROWS = 128,
  PEAK_RUNS = 8,
  PEAK_RUN_NS = 12000000
};

/* ---- reading ---- */

/* A way of reading: sequential streams side by side, a cache line of each in turn, each asked for `ahead` bytes before
 * it is needed (0: left to the hardware). Memories and prefetchers differ in what they like. */
typedef struct way {
  int streams, ahead;
  double gb_per_s; /* best so far */
} way;

static const int stream_counts[] = {1, 2, 4, 8}, distances[] = {0, 512, 2048, 4096};
enum {
  STREAM_COUNTS = sizeof stream_counts / sizeof stream_counts[0],
  DISTANCES = sizeof distances / sizeof distances[0],
  WAYS = STREAM_COUNTS * DISTANCES
};

/* Takes one word of each line: memory hands over whole lines, and the core should not be what limits. */
static uint64_t read_streams(const char *data, size_t size, const way *how) {
  size_t length = size / (size_t)how->streams / LINE * LINE;
  uint64_t fold = 0;
  for (size_t at = 0; at < length; at += LINE)
    for (int s = 0; s < how->streams; s++) {
      const char *line = data + (size_t)s * length + at;
      if (how->ahead) __builtin_prefetch(line + how->ahead); /* past the end: harmless */
      uint64_t word;
      memcpy(&word, line, sizeof word);
      fold ^= word;
    }
  return fold;
}

static void read_once(const char *data, size_t bytes, int threads, way *how, uint64_t *sink) {
  size_t share = bytes / (size_t)threads / LINE * LINE;
  uint64_t fold = 0, begin = ust_clock_ns();
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(^ : fold)
  for (int t = 0; t < threads; t++) fold ^= read_streams(data + (size_t)t * share, share, how);
  uint64_t end = ust_clock_ns();
  *sink ^= fold;
  how->gb_per_s = fmax(how->gb_per_s, (double)(share * (size_t)threads) / (double)UST_MAX(end - begin, 1u));
}

static int faster(const void *a, const void *b) {
  double x = ((const way *)a)->gb_per_s, y = ((const way *)b)->gb_per_s;
  return (x < y) - (x > y);
}

/* Every way once, then the fastest ways in turn. */
static understudy_status measure_reading(int threads, double *gb_per_s, understudy_error *err) {
  size_t bytes = READ_BYTES;
  char *data; /* zeroed: every page is really there */
  while (!(data = ust_alloc(bytes)) && bytes > READ_BYTES_LEAST) bytes /= 2;
  if (!data) return ust_error_memory(err, bytes, "measuring memory");
  static volatile uint64_t kept;
  uint64_t sink = 0;
  way ways[WAYS];
  for (int i = 0; i < WAYS; i++) {
    ways[i] = (way){stream_counts[i / DISTANCES], distances[i % DISTANCES], 0};
    read_once(data, bytes, threads, &ways[i], &sink);
  }
  qsort(ways, WAYS, sizeof *ways, faster);
  for (int round = 0; round < BEST_ROUNDS; round++)
    for (int i = 0; i < BEST_WAYS; i++) read_once(data, bytes, threads, &ways[i], &sink);
  *gb_per_s = 0;
  for (int i = 0; i < BEST_WAYS; i++) *gb_per_s = fmax(*gb_per_s, ways[i].gb_per_s);
  kept = sink;
  (void)kept;
  ust_free(data);
  return UNDERSTUDY_OK;
}

/* ---- multiplying ---- */

typedef struct peak_work {
  ust_matrix matrix;
  ust_left x; /* [PEAK_ROWS, PEAK_INPUTS] */
  float *y;   /* [PEAK_ROWS, PEAK_OUTPUTS] */
} peak_work;

static bool make_work(const ust_kernels *kernels, peak_work *work) {
  work->matrix = (ust_matrix){.format = UST_FORMAT_BF16, .rows = PEAK_OUTPUTS, .cols = PEAK_INPUTS};
  work->matrix.bytes = kernels->matrix_bytes(UST_FORMAT_BF16, PEAK_OUTPUTS, PEAK_INPUTS);
  work->matrix.data = ust_alloc(work->matrix.bytes);
  work->x = (ust_left){.rows = PEAK_ROWS, .inputs = PEAK_INPUTS};
  work->x.data = ust_alloc((size_t)PEAK_ROWS * PEAK_INPUTS * kernels->activation_size);
  work->y = ust_alloc((size_t)PEAK_ROWS * PEAK_OUTPUTS * sizeof *work->y);
  if (!work->matrix.data || !work->x.data || !work->y) return false;
  float row[PEAK_INPUTS];
  for (int i = 0; i < PEAK_INPUTS; i++) row[i] = 0.01f * (float)(i % 17 - 8);
  for (int i = 0; i < PEAK_OUTPUTS; i += UST_PANEL) kernels->pack(&work->matrix, i, UST_PANEL, row, 0, 1);
  kernels->left_pack(&work->x, 0, row, 0, PEAK_INPUTS);
  return true;
}

static void free_work(peak_work *work) {
  ust_free(work->matrix.data);
  ust_free(work->x.data);
  ust_free(work->y);
}

/* FLOP per nanosecond of one thread while all of them multiply. */
static double multiply_run(const ust_kernels *kernels, const peak_work *work) {
  uint64_t begin = ust_clock_ns(), now = begin;
  int64_t times = 0;
  while (now - begin < PEAK_RUN_NS) {
    kernels->left_matmul(&work->matrix, &work->x, 0, NULL, false, work->y, PEAK_OUTPUTS);
    times++;
    now = ust_clock_ns();
  }
  return 2.0 * PEAK_ROWS * PEAK_INPUTS * PEAK_OUTPUTS * (double)times / (double)(now - begin);
}

static understudy_status measure_peak(const ust_kernels *kernels, int threads, double *tflop_per_s,
                                      understudy_error *err) {
  double best = 0, together = 0;
  bool failed = false;
#pragma omp parallel num_threads(threads) reduction(|| : failed)
  {
    peak_work work = {0};
    failed = !make_work(kernels, &work);
    for (int run = 0; run < PEAK_RUNS; run++) {
#pragma omp barrier
      double speed = failed ? 0 : multiply_run(kernels, &work);
#pragma omp atomic
      together += speed;
#pragma omp barrier
#pragma omp single
      {
        best = UST_MAX(best, together);
        together = 0;
      }
    }
    free_work(&work);
    kernels->release();
  }
  if (failed) return ust_error_memory(err, (size_t)threads << 20, "measuring arithmetic");
  *tflop_per_s = best / 1e3;
  return UNDERSTUDY_OK;
}

understudy_status ust_measure_machine(const ust_kernels *kernels, int threads, ust_machine *out,
                                      understudy_error *err) {
  *out = (ust_machine){0};
  UST_TRY(measure_reading(threads, &out->read_gb_per_s, err));
  return measure_peak(kernels, threads, &out->peak_tflop_per_s, err);
}
