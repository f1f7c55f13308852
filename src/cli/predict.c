/* understudy bench --predict: what a recorded run would give on another machine, after showing how well the same
 * arithmetic tells what was measured on the machine that recorded it. */
#include <math.h>

#include "cli/cli.h"

static const double DOUBTFUL = 0.3; /* an error of the check worth a word */

static double plain_rate(const ust_bench *run, const ust_device *device) {
  for (int i = 0; i < run->mode_count; i++)
    if (strcmp(run->modes[i].name, "plain") == 0) return ust_measure_predict(run, &run->modes[i], device).tokens_per_s;
  return 0;
}

/* Returns the largest error, as a share of what was measured. */
static double print_check(const ust_bench *run) {
  double worst = 0;
  ust_device here = {"this machine", run->read_gb_per_s, run->peak_tflop_per_s, 0, 0, false};
  printf("tokens/s on the machine of the run (%.4g GB/s, %.3g TFLOP/s, no fixed cost of a pass)\n", here.read_gb_per_s,
         here.peak_tflop_per_s);
  printf("%-12s %12s %12s %8s\n", "mode", "measured", "predicted", "error");
  for (int i = 0; i < run->mode_count; i++) {
    const ust_bench_mode *mode = &run->modes[i];
    double measured = mode->tokens / mode->seconds, predicted = ust_measure_predict(run, mode, &here).tokens_per_s;
    double error = predicted / measured - 1;
    printf("%-12s %12.1f %12.1f %+6.0f %%\n", mode->name, measured, predicted, 100 * error);
    worst = fmax(worst, fabs(error));
  }
  return worst;
}

/* The row counts that took a twentieth of the run's passes' time or more, all modes together. */
static void print_check_of_rows(const ust_bench *run) {
  ust_device here = {"this machine", run->read_gb_per_s, run->peak_tflop_per_s, 0, 0, false};
  double passes[UST_BENCH_ROWS] = {0}, seconds[UST_BENCH_ROWS] = {0}, all = 0;
  for (int i = 0; i < run->mode_count; i++)
    for (int p = 0; p < run->modes[i].pass_counts; p++) {
      double rows = run->modes[i].passes[p].rows;
      if (rows >= UST_BENCH_ROWS) continue;
      passes[(int)rows] += run->modes[i].passes[p].passes;
      seconds[(int)rows] += run->modes[i].passes[p].seconds;
      all += run->modes[i].passes[p].seconds;
    }
  if (all > 0) printf("\n%-12s %12s %12s %8s\n", "target rows", "ms a pass", "predicted", "error");
  for (int rows = 1; rows < UST_BENCH_ROWS; rows++) {
    if (!(passes[rows] > 0 && seconds[rows] > all / 20)) continue;
    double measured = seconds[rows] / passes[rows], predicted = ust_measure_predict_pass(run, rows, &here);
    printf("%-12d %12.4g %12.4g %+6.0f %%\n", rows, 1e3 * measured, 1e3 * predicted, 100 * (predicted / measured - 1));
  }
}

static void print_device(const ust_bench *run, const ust_device *device) {
  double plain = plain_rate(run, device);
  printf("\npredicted on %s (%.4g GB/s, %.4g TFLOP/s, %.4g us a pass), and ms a token by stage\n", device->label,
         device->read_gb_per_s, device->peak_tflop_per_s, device->pass_us);
  printf("%-12s %12s %12s %12s %8s %8s\n", "mode", "tokens/s", "speed-up", "target", "draft", "host");
  bool rough = false;
  for (int i = 0; i < run->mode_count; i++) {
    const ust_bench_mode *mode = &run->modes[i];
    ust_prediction p = ust_measure_predict(run, mode, device);
    double ms = 1e3 / mode->tokens;
    printf("%-12s %12.1f ", mode->name, p.tokens_per_s);
    if (plain > 0)
      printf("%11.2fx", p.tokens_per_s / plain);
    else
      printf("%12s", "-");
    printf(" %12.3f %8.3f %8.3f\n", p.target_s * ms, p.draft_s * ms, p.host_s * ms);
    rough = rough || mode->pass_counts == 0;
  }
  if (rough)
    printf("\nThe file has no passes by rows: all work is counted as the target's, in passes of equal size.\n");
}

understudy_status ust_cli_print_prediction(const char *device_text, const char *bench, understudy_error *err) {
  ust_device device;
  ust_bench run;
  if (!device_text) return UNDERSTUDY_OK;
  UST_TRY(ust_measure_device(device_text, &device, err));
  UST_TRY(ust_measure_read_bench(bench, &run, err));
  UST_TRY(ust_measure_check_bench(&run, bench, err));
  const double worst = print_check(&run);
  print_check_of_rows(&run);
  if (worst > DOUBTFUL)
    printf("\nUp to %.0f %% off on the run's own machine: expect no better of what follows.\n", 100 * worst);
  print_device(&run, &device);
  return UNDERSTUDY_OK;
}

bool ust_cli_check_predict(const char *device, const char *file, int *code) {
  ust_device parsed;
  understudy_error err = {0};
  if (!device) return true;
  if (ust_measure_device(device, &parsed, &err) != UNDERSTUDY_OK)
    *code = ust_cli_usage("bench", "--predict: %s", err.message);
  else if (!file)
    *code = ust_cli_usage("bench", "--predict: found neither --from FILE nor --json FILE to record to");
  else
    return true;
  return false;
}

bool ust_cli_predicts_only(int argc, char **argv) {
  bool predicts = false, runs = false;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--from") == 0 || strncmp(argv[i], "--from=", 7) == 0) return true;
    predicts = predicts || strncmp(argv[i], "--predict", 9) == 0;
    runs = runs || strncmp(argv[i], "--prompts", 9) == 0 || strncmp(argv[i], "--model", 7) == 0 ||
           strncmp(argv[i], "-m", 2) == 0;
  }
  return predicts && !runs;
}

int ust_cli_predict(int argc, char **argv) {
  const char *device = NULL, *from = NULL;
  bool quiet = false; /* there is nothing to be quiet about */
  ust_option options[] = {UST_OPTIONS_PREDICT(&device, &from), UST_OPTIONS_QUIET(&quiet), UST_OPTIONS_END};
  options[0].required = options[1].required = true;
  const ust_cli_help help = {
      .command = "bench",
      .usage = "bench --predict DEVICE --from FILE",
      .about = "What the run recorded in a 'bench --json' file would give on another machine.",
      .notes = "With --from nothing is run, so the options of a run are not taken.",
      .example = "understudy bench --predict rtx4090 --from bench.json",
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (!ust_cli_no_more("bench", argc, argv, optind, &code)) return code;
  if (!ust_cli_check_predict(device, from, &code)) return code;
  understudy_error err = {0};
  return ust_cli_print_prediction(device, from, &err) == UNDERSTUDY_OK ? UST_EXIT_OK : ust_cli_fail(&err);
}
