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

/* Reads of memory far larger than the caches, and the bf16 product of training on operands that fit L2, both with
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

/* ---- device.c ---- */

/* A machine as a roofline sees it. */
typedef struct ust_device {
  char label[64];
  double read_gb_per_s, peak_tflop_per_s;
  double f32_tflop_per_s; /* without the matrix unit; 0: not known, or the same */
  double pass_us;         /* fixed cost of a forward pass: launches, barriers */
  bool paper;             /* where the paper's figures were measured */
} ust_device;

/* The names of the known devices. */
#define UST_DEVICE_NAMES "rtx4090 rtx3090 a100 h100 m2-ultra epyc-9654 xeon-8480 pi5"
#define UST_DEVICE_FIGURES "1008GB/s,165TFLOP/s,130us"

/* A known device by name, or figures: bandwidth and peak, and possibly a fixed cost per pass, in any order and with
 * these units: GB/s TB/s, GFLOP/s TFLOP/s, us ms. */
understudy_status ust_measure_device(const char *text, ust_device *out, understudy_error *err);

/* ---- bench_file.c ---- */

enum { UST_BENCH_MODES = 16, UST_BENCH_ROWS = 128 };

/* What a 'bench --json' file holds of one mode; what it does not say is 0. */
typedef struct ust_bench_mode {
  char name[32];
  double tokens, seconds, tokens_per_s, target_passes, bytes_per_token, flop_per_s, flop_per_byte;
  double draft_passes;
  double host_s; /* looking candidates up, choosing tokens, planning: outside the passes */
  struct {
    double rows, passes, seconds;
  } passes[UST_BENCH_ROWS]; /* target passes by rows */
  int pass_counts;
} ust_bench_mode;

typedef struct ust_bench {
  char isa[32], architecture[32];
  int threads;
  double read_gb_per_s, peak_tflop_per_s; /* measured in the bench's own run */
  double parameters, weight_bytes;
  ust_bench_mode modes[UST_BENCH_MODES];
  int mode_count;
} ust_bench;

/* Reads a file written by 'bench --json', which holds at least one mode. Fields may be missing, not of a wrong type. */
understudy_status ust_measure_read_bench(const char *path, ust_bench *out, understudy_error *err);

/* ---- predict.c ---- */

typedef struct ust_prediction {
  double tokens_per_s;
  double target_s, draft_s, host_s; /* where the time of the recorded tokens would go */
} ust_prediction;

/* An error naming `path` when the run lacks what a prediction needs. */
understudy_status ust_measure_check_bench(const ust_bench *run, const char *path, understudy_error *err);
/* Seconds of one of the run's target passes of so many rows on `device`. */
double ust_measure_predict_pass(const ust_bench *run, double rows, const ust_device *device);
/* The recorded passes of one mode, each taking max(bytes / bandwidth, FLOP / peak) + fixed cost on `device`. */
ust_prediction ust_measure_predict(const ust_bench *run, const ust_bench_mode *mode, const ust_device *device);

/* ---- products.c ---- */

typedef struct ust_product_cost {
  const char *shape, *format; /* "qkv", "bf16" */
  int inputs, outputs, rows;
  double ms, gb_per_s, tflop_per_s;
  ust_machine machine; /* measured just before */
  double share;        /* of its bound max(bytes / bandwidth, FLOP / peak) */
} ust_product_cost;

/* Sees one result, those of a matrix in order of rows from 1 on; true stops. */
typedef bool (*ust_product_visit)(void *user, const ust_product_cost *cost);

/* Times the matrix products of a GPT-2 Large pass, weights streamed from memory, by format and rows. About 25 s. */
understudy_status ust_measure_products(const ust_kernels *kernels, int threads, ust_product_visit visit, void *user,
                                       understudy_error *err);

/* ---- chart.c, gnuplot.c ---- */

typedef struct ust_chart_dot {
  char label[64];
  double flop_per_byte, flop_per_s;
  bool reference; /* somebody else's measurement: drawn hollow */
} ust_chart_dot;

enum { UST_CHART_DOTS = UST_BENCH_MODES, UST_CHART_PANELS = 2 };

/* One machine's roof and the dots measured under it. */
typedef struct ust_chart_panel {
  char title[128];
  ust_device device;
  ust_chart_dot dots[UST_CHART_DOTS];
  int dot_count;
} ust_chart_panel;

typedef struct ust_chart {
  ust_chart_panel panels[UST_CHART_PANELS]; /* side by side, with the same axes */
  int panel_count;
} ust_chart;

/* The gnuplot commands that draw the chart into `output`. */
void ust_measure_chart_script(const ust_chart *chart, bool png, const char *output, ust_buffer *script);
/* The name of a chart's figures: its own with .csv for the last four characters. Freed by the caller; NULL: no
 * memory. */
char *ust_measure_csv_name(const char *chart_path);
/* Whether gnuplot can be started, for the chart at `path`; else UNSUPPORTED. */
understudy_status ust_measure_check_gnuplot(const char *path, understudy_error *err);
/* Whether the name's end, .svg or .png, says what to draw. */
bool ust_measure_drawable(const char *path);
/* Draws a log-log chart with gnuplot into `path` (.svg or .png by its extension) and writes its figures beside it. */
understudy_status ust_measure_chart(const ust_chart *chart, const char *path, understudy_error *err);

#endif
