/* A recorded bench run replayed on another machine's roofline: the same passes with the same rows bring the same
 * tokens (the promise makes the text independent of the machine's speed); only what a pass costs changes.
 *
 *   seconds of a pass = max(bytes / bandwidth, FLOP / peak) + fixed cost
 *
 * The file gives sums of bytes and FLOP over all stages. Plain decoding is target passes of one row, which gives the
 * target's KV bytes and FLOP per row; the rest of a mode's sums is its draft's. */
#include <math.h>

#include "measure/measure.h"

static double pass_seconds(const ust_device *device, double bytes, double flop) {
  return fmax(bytes / (device->read_gb_per_s * 1e9), flop / (device->peak_tflop_per_s * 1e12)) + device->pass_us / 1e6;
}

static double mode_bytes(const ust_bench_mode *mode) {
  return mode->bytes_per_token * mode->tokens;
}
static double mode_flop(const ust_bench_mode *mode) {
  return mode->flop_per_s * mode->seconds;
}

/* What the target reads in a pass and computes for a row. */
static void target_pass(const ust_bench *run, double *bytes, double *row_flop) {
  *bytes = run->weight_bytes;
  *row_flop = 2 * run->parameters;
  for (int i = 0; i < run->mode_count; i++) {
    const ust_bench_mode *mode = &run->modes[i];
    if (strcmp(mode->name, "plain") != 0) continue;
    *bytes = mode_bytes(mode) / mode->target_passes;
    *row_flop = mode_flop(mode) / mode->target_passes;
  }
}

double ust_measure_predict_pass(const ust_bench *run, double rows, const ust_device *device) {
  double bytes, row_flop;
  target_pass(run, &bytes, &row_flop);
  return pass_seconds(device, bytes, rows * row_flop);
}

/* Without a record of rows and draft passes: every target pass takes an equal share of all bytes and FLOP. */
static void predict_roughly(const ust_bench_mode *mode, const ust_device *device, ust_prediction *out) {
  double passes = mode->target_passes;
  out->target_s = passes * pass_seconds(device, mode_bytes(mode) / passes, mode_flop(mode) / passes);
}

static void predict_passes(const ust_bench *run, const ust_bench_mode *mode, const ust_device *device,
                           ust_prediction *out) {
  double bytes, row_flop, rows = 0;
  target_pass(run, &bytes, &row_flop);
  for (int i = 0; i < mode->pass_counts; i++) {
    out->target_s += mode->passes[i].passes * pass_seconds(device, bytes, mode->passes[i].rows * row_flop);
    rows += mode->passes[i].passes * mode->passes[i].rows;
  }
  if (mode->draft_passes <= 0) return;
  double draft_bytes = fmax(mode_bytes(mode) - mode->target_passes * bytes, 0) / mode->draft_passes;
  double draft_flop = fmax(mode_flop(mode) - rows * row_flop, 0) / mode->draft_passes;
  out->draft_s = mode->draft_passes * pass_seconds(device, draft_bytes, draft_flop);
}

ust_prediction ust_measure_predict(const ust_bench *run, const ust_bench_mode *mode, const ust_device *device) {
  ust_prediction out = {.host_s = mode->host_s};
  if (mode->pass_counts)
    predict_passes(run, mode, device, &out);
  else
    predict_roughly(mode, device, &out);
  out.tokens_per_s = mode->tokens / (out.target_s + out.draft_s + out.host_s);
  return out;
}

static understudy_status need(const char *path, const char *object, const char *field, double value,
                              understudy_error *err) {
  if (value > 0) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: %s: found nothing or 0, expected a number above 0", path,
                   object, field);
}

understudy_status ust_measure_check_bench(const ust_bench *run, const char *path, understudy_error *err) {
  UST_TRY(need(path, "machine", "read_gb_per_s", run->read_gb_per_s, err));
  UST_TRY(need(path, "machine", "peak_tflop_per_s", run->peak_tflop_per_s, err));
  UST_TRY(need(path, "target", "parameters", run->parameters, err));
  UST_TRY(need(path, "target", "weight_bytes", run->weight_bytes, err));
  for (int i = 0; i < run->mode_count; i++) {
    const ust_bench_mode *mode = &run->modes[i];
    char name[64];
    snprintf(name, sizeof name, "modes: %s", mode->name);
    UST_TRY(need(path, name, "tokens", mode->tokens, err));
    UST_TRY(need(path, name, "seconds", mode->seconds, err));
    UST_TRY(need(path, name, "target_passes", mode->target_passes, err));
    UST_TRY(need(path, name, "bytes_per_token", mode->bytes_per_token, err));
    UST_TRY(need(path, name, "flop_per_s", mode->flop_per_s, err));
  }
  return UNDERSTUDY_OK;
}
