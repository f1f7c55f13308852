/* measure: what the machine can do, what a model's pass costs, and the roofline chart of both. */
#ifndef UST_MEASURE_H
#define UST_MEASURE_H

#include "base/base.h"
#include "kernel/kernel.h"
#include "model/model.h"

/* ---- machine.c ---- */

typedef struct ust_machine {
  double read_gb_per_s, peak_tflop_per_s;
} ust_machine;

/* Reads of memory far larger than the caches, and the matmul kernel on a matrix that fits L2, both with
 * `threads` threads; the best of several runs, about a second in all. */
understudy_status ust_measure_machine(const ust_kernels *kernels, int threads, ust_machine *out, understudy_error *err);

/* ---- passes.c ---- */

typedef struct ust_pass_cost {
  int rows, context;
  double ms;
} ust_pass_cost;

enum { UST_PASS_COSTS = 14 };

/* Times the model's forward pass over trees of 1 … 64 rows after 128 and 900 committed tokens (as many as its
 * context has room for). Fills at most UST_PASS_COSTS entries. */
understudy_status ust_measure_passes(const ust_model *model, ust_pass_cost out[UST_PASS_COSTS], int *count,
                                     understudy_progress_fn progress, void *user, understudy_error *err);

/* ---- chart.c ---- */

typedef struct ust_chart_roof {
  char label[64];
  double read_gb_per_s, peak_tflop_per_s;
} ust_chart_roof;

typedef struct ust_chart_dot {
  char label[64];
  double flop_per_byte, flop_per_s;
  bool reference; /* somebody else's measurement: drawn hollow */
} ust_chart_dot;

enum { UST_CHART_DOTS = 8, UST_CHART_ROOFS = 2 };

typedef struct ust_chart {
  char title[128];
  ust_chart_roof roofs[UST_CHART_ROOFS]; /* the first is this machine */
  ust_chart_dot dots[UST_CHART_DOTS];
  int roof_count, dot_count;
} ust_chart;

/* Draws a log-log chart with gnuplot into `path` (.svg or .png by its extension) and writes its figures to the
 * same name with .csv. */
understudy_status ust_measure_chart(const ust_chart *chart, const char *path, understudy_error *err);

#endif
