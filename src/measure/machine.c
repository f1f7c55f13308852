/* The machine's two limits: how fast it reads memory, and how fast the kernel multiplies what is already near.
 *
 * Both take the best of several runs: other work on the machine can only make a run slower. */
#include <omp.h>

#include "measure/measure.h"

enum {
  READ_BYTES = 512 << 20, /* far beyond any last-level cache share */
  READ_RUNS = 5,
  READ_NS = 200000000, /* begin no further run after this */
  PEAK_OUTPUTS = 256,  /* 256 x 1024 bf16 = 512 KiB: stays in L2 */
  PEAK_INPUTS = 1024,
  PEAK_ROWS = 64,
  PEAK_RUNS = 8,
  PEAK_RUN_NS = 12000000
};

/* ---- reading ---- */

/* Folds `words` words as `streams` sequential streams side by side, a cache line of each in turn: prefetchers
 * of different machines like different numbers of streams. */
static uint64_t read_streams(const uint64_t *data, size_t words, int streams) {
  size_t length = words / (size_t)streams / 8 * 8;
  uint64_t fold[8] = {0};
  for (size_t at = 0; at < length; at += 8)
    for (int s = 0; s < streams; s++) {
      const uint64_t *line = data + (size_t)s * length + at;
      for (int i = 0; i < 8; i++) fold[i] ^= line[i];
    }
  uint64_t all = 0;
  for (int i = 0; i < 8; i++) all ^= fold[i];
  return all;
}

static double read_once(const uint64_t *data, size_t words, int streams, int threads, uint64_t *sink) {
  size_t share = words / (size_t)threads;
  uint64_t fold = 0, begin = ust_clock_ns();
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(^ : fold)
  for (int t = 0; t < threads; t++) fold ^= read_streams(data + (size_t)t * share, share, streams);
  uint64_t end = ust_clock_ns();
  *sink ^= fold;
  return (double)(share * (size_t)threads * 8) / (double)UST_MAX(end - begin, 1u);
}

static understudy_status measure_reading(int threads, double *gb_per_s, understudy_error *err) {
  uint64_t *data = ust_alloc(READ_BYTES); /* zeroed: every page is really there */
  if (!data) return ust_error_memory(err, READ_BYTES, "measuring memory");
  static volatile uint64_t kept;
  uint64_t sink = 0;
  *gb_per_s = 0;
  for (int streams = 1; streams <= 8; streams *= 2) {
    uint64_t begin = ust_clock_ns();
    for (int run = 0; run < READ_RUNS && ust_clock_ns() - begin < READ_NS; run++) {
      double speed = read_once(data, READ_BYTES / 8, streams, threads, &sink);
      *gb_per_s = UST_MAX(*gb_per_s, speed);
    }
  }
  kept = sink;
  (void)kept;
  ust_free(data);
  return UNDERSTUDY_OK;
}

/* ---- multiplying ---- */

typedef struct peak_work {
  ust_matrix matrix;
  char *x;  /* activation [PEAK_ROWS, PEAK_INPUTS] */
  float *y; /* [PEAK_ROWS, PEAK_OUTPUTS] */
} peak_work;

static bool make_work(const ust_kernels *kernels, peak_work *work) {
  work->matrix = (ust_matrix){.format = UST_FORMAT_BF16, .rows = PEAK_OUTPUTS, .cols = PEAK_INPUTS};
  work->matrix.bytes = kernels->matrix_bytes(UST_FORMAT_BF16, PEAK_OUTPUTS, PEAK_INPUTS);
  work->matrix.data = ust_alloc(work->matrix.bytes);
  work->x = ust_alloc((size_t)PEAK_ROWS * PEAK_INPUTS * kernels->activation_size);
  work->y = ust_alloc((size_t)PEAK_ROWS * PEAK_OUTPUTS * sizeof *work->y);
  if (!work->matrix.data || !work->x || !work->y) return false;
  float row[PEAK_INPUTS];
  for (int i = 0; i < PEAK_INPUTS; i++) row[i] = 0.01f * (float)(i % 17 - 8);
  for (int i = 0; i < PEAK_OUTPUTS; i += UST_PANEL) kernels->pack(&work->matrix, i, UST_PANEL, row, 0, 1);
  for (int i = 0; i < PEAK_ROWS; i++)
    kernels->convert(row, PEAK_INPUTS, work->x + (size_t)i * PEAK_INPUTS * kernels->activation_size);
  return true;
}

static void free_work(peak_work *work) {
  ust_free(work->matrix.data);
  ust_free(work->x);
  ust_free(work->y);
}

/* FLOP per nanosecond of one thread while all of them multiply. */
static double multiply_run(const ust_kernels *kernels, const peak_work *work) {
  uint64_t begin = ust_clock_ns(), now = begin;
  int64_t times = 0;
  while (now - begin < PEAK_RUN_NS) {
    kernels->matmul(&work->matrix, 0, PEAK_OUTPUTS / UST_PANEL, work->x, PEAK_INPUTS, PEAK_ROWS, NULL, UST_STORE,
                    work->y, PEAK_OUTPUTS);
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
    if (kernels->release) kernels->release();
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
