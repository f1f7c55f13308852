/* The kernel benchmark: the matrix products of a GPT-2 Large pass, each streaming its weights from memory, against the
 * bound that the machine's measured bandwidth and peak set.
 *
 * As in a pass over a model, a walk goes over copies of the matrix that no cache holds together; the best walk counts,
 * since other work on the machine can only make one slower. */
#include <math.h>
#include <omp.h>

#include "measure/measure.h"

static const struct {
  const char *name;
  int inputs, outputs;
} shapes[] = {
    {"qkv", 1280, 3840}, {"out", 1280, 1280}, {"up", 1280, 5120}, {"down", 5120, 1280}, {"logits", 1280, 50257}};
static const struct {
  const char *name;
  ust_format format;
} formats[] = {{"bf16", UST_FORMAT_BF16}, {"q8", UST_FORMAT_Q8}, {"q4", UST_FORMAT_Q4}};
static const int row_counts[] = {1, 8, 16, 32, 64};
enum {
  SHAPES = sizeof shapes / sizeof shapes[0],
  FORMATS = sizeof formats / sizeof formats[0],
  ROW_COUNTS = sizeof row_counts / sizeof row_counts[0],
  MOST_ROWS = 64,
  MOST_INPUTS = 5120,
  MOST_OUTPUTS = 50272,   /* in whole panels */
  WALK_BYTES = 512 << 20, /* far beyond any last-level cache share */
  LEAST_WALKS = 2,
  WALKS_NS = 150000000 /* begin no further walk after this */
};

typedef struct work {
  const ust_kernels *kernels;
  int threads;
  char *weights;        /* WALK_BYTES: copies of one matrix, one after another */
  ust_q8_block *blocks; /* [UST_PANEL, MOST_INPUTS / 32], source of quantised matrices */
  ust_q4_block *blocks4;
  char *x;        /* activation [MOST_ROWS, MOST_INPUTS] */
  char *integers; /* the same for quantised matrices */
  float *y;       /* [MOST_ROWS, MOST_OUTPUTS] */
} work;

static bool make_work(work *w) {
  enum { BLOCKS = UST_PANEL * MOST_INPUTS / 32 };
  size_t row = (size_t)MOST_INPUTS * w->kernels->activation_size;
  w->weights = ust_alloc(WALK_BYTES);
  w->blocks = ust_alloc(BLOCKS * sizeof *w->blocks);
  w->blocks4 = ust_alloc(BLOCKS * sizeof *w->blocks4);
  w->x = ust_alloc(MOST_ROWS * row);
  w->integers = ust_alloc(w->kernels->integers_bytes(MOST_ROWS, MOST_INPUTS));
  w->y = ust_alloc((size_t)MOST_ROWS * MOST_OUTPUTS * sizeof *w->y);
  if (!w->weights || !w->blocks || !w->blocks4 || !w->x || !w->integers || !w->y) return false;
  float values[MOST_INPUTS];
  for (int i = 0; i < MOST_INPUTS; i++) values[i] = 0.01f * (float)(i % 17 - 8);
  for (int i = 0; i < BLOCKS; i++) {
    ust_q8_quantize(values + i % 17, &w->blocks[i]);
    ust_q4_quantize(values + i % 17, &w->blocks4[i]);
  }
  for (int i = 0; i < MOST_ROWS; i++) w->kernels->convert(values, MOST_INPUTS, w->x + (size_t)i * row);
  return true;
}

static void free_work(work *w) {
  ust_free(w->weights);
  ust_free(w->blocks);
  ust_free(w->blocks4);
  ust_free(w->integers);
  ust_free(w->x);
  ust_free(w->y);
}

static void pack_panel(const work *w, ust_matrix *matrix, int row) {
  float values[UST_PANEL]; /* every input of an output gets the same weight */
  for (int i = 0; i < UST_PANEL; i++) values[i] = 0.01f * (float)(i % 13 - 6);
  int count = UST_MIN(UST_PANEL, matrix->rows - row);
  if (matrix->format == UST_FORMAT_Q8)
    w->kernels->pack_blocks(matrix, row, count, w->blocks);
  else if (matrix->format == UST_FORMAT_Q4)
    w->kernels->pack_blocks(matrix, row, count, w->blocks4);
  else
    w->kernels->pack(matrix, row, count, values, 1, 0);
}

/* Fills the memory with one matrix over and over; the number of copies. */
static int fill_weights(const work *w, ust_matrix *matrix) {
  for (int row = 0; row < matrix->rows; row += UST_PANEL) pack_panel(w, matrix, row);
  int copies = (int)(WALK_BYTES / matrix->bytes);
  for (int i = 1; i < copies; i++) memcpy(w->weights + (size_t)i * matrix->bytes, w->weights, matrix->bytes);
  return copies;
}

/* One product after the other, threads meeting after each. */
static uint64_t walk(const work *w, const ust_matrix *matrix, int copies, int rows) {
  int panels = (matrix->rows + UST_PANEL - 1) / UST_PANEL;
  uint64_t begin = ust_clock_ns();
#pragma omp parallel num_threads(w->threads)
  {
    int me = omp_get_thread_num(), all = omp_get_num_threads();
    int first = (int)((int64_t)panels * me / all), end = (int)((int64_t)panels * (me + 1) / all);
    const void *x = w->x;
    if (ust_is_quantised(matrix->format)) x = w->integers;
    for (int i = 0; i < copies; i++) {
      if (ust_is_quantised(matrix->format)) {
        w->kernels->integers(w->x, (size_t)matrix->cols, rows, matrix->cols, (int)((int64_t)rows * me / all),
                             (int)((int64_t)rows * (me + 1) / all), w->integers);
#pragma omp barrier
      }
      ust_matrix copy = *matrix;
      copy.data = w->weights + (size_t)i * matrix->bytes;
      if (first < end)
        w->kernels->matmul(&copy, first, end, x, (size_t)matrix->cols, rows, NULL, UST_STORE, w->y,
                           (size_t)panels * UST_PANEL);
#pragma omp barrier
    }
    w->kernels->release();
  }
  return ust_clock_ns() - begin;
}

static ust_product_cost time_product(const work *w, const ust_machine *machine, const ust_matrix *matrix, int copies,
                                     int rows) {
  uint64_t best = UINT64_MAX, begin = ust_clock_ns();
  for (int i = 0; i < LEAST_WALKS || ust_clock_ns() - begin < WALKS_NS; i++) {
    uint64_t time = walk(w, matrix, copies, rows);
    best = UST_MIN(best, time);
  }
  double ns = (double)UST_MAX(best, 1u) / copies, flop = 2.0 * rows * matrix->cols * matrix->rows;
  double bytes = (double)matrix->bytes;
  double bound_ns = fmax(bytes / machine->read_gb_per_s, flop / (machine->peak_tflop_per_s * 1e3));
  return (ust_product_cost){.inputs = matrix->cols,
                            .outputs = matrix->rows,
                            .rows = rows,
                            .ms = ns / 1e6,
                            .gb_per_s = bytes / ns,
                            .tflop_per_s = flop / ns / 1e3,
                            .machine = *machine,
                            .share = bound_ns / ns};
}

/* One matrix at every number of rows, and the bound measured just before: a shared machine is another one a few
 * seconds later. */
static understudy_status time_matrix(const work *w, int shape, int format, ust_product_visit visit, void *user,
                                     understudy_error *err) {
  ust_matrix matrix = {.format = formats[format].format, .rows = shapes[shape].outputs, .cols = shapes[shape].inputs};
  matrix.bytes = UST_ROUND_UP(w->kernels->matrix_bytes(matrix.format, matrix.rows, matrix.cols), 64);
  matrix.data = w->weights;
  int copies = fill_weights(w, &matrix);
  ust_machine machine;
  UST_TRY(ust_measure_machine(w->kernels, w->threads, &machine, err));
  for (int r = 0; r < ROW_COUNTS; r++) {
    ust_product_cost cost = time_product(w, &machine, &matrix, copies, row_counts[r]);
    cost.shape = shapes[shape].name;
    cost.format = formats[format].name;
    if (visit(user, &cost)) return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped");
  }
  return UNDERSTUDY_OK;
}

understudy_status ust_measure_products(const ust_kernels *kernels, int threads, ust_product_visit visit, void *user,
                                       understudy_error *err) {
  work w = {.kernels = kernels, .threads = threads};
  understudy_status status = make_work(&w) ? UNDERSTUDY_OK : ust_error_memory(err, WALK_BYTES, "the kernel benchmark");
  for (int f = 0; f < FORMATS; f++)
    for (int s = 0; s < SHAPES && status == UNDERSTUDY_OK; s++) status = time_matrix(&w, s, f, visit, user, err);
  free_work(&w);
  return status;
}
