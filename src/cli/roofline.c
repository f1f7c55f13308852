/* understudy roofline: measures the machine, with -m a model's passes and with --kernels its products, and draws the
 * roofline chart with a bench's dots and, beside it, another device with the dots the paper reports for it. */

#include "cli/cli.h"

typedef struct roofline_options {
  ust_cli_models models;
  const char *bench, *device_text, *json, *output;
  ust_device device;
  bool kernels, quiet;
} roofline_options;

static void add_dot(ust_chart_panel *panel, const char *label, double flop_per_byte, double flop_per_s,
                    bool reference) {
  ust_chart_dot *dot = &panel->dots[panel->dot_count++];
  *dot = (ust_chart_dot){.flop_per_byte = flop_per_byte, .flop_per_s = flop_per_s, .reference = reference};
  snprintf(dot->label, sizeof dot->label, "%s", label);
}

static void add_device(ust_chart *chart, const ust_device *device) {
  ust_chart_panel *panel = &chart->panels[chart->panel_count++];
  panel->device = *device;
  snprintf(panel->title, sizeof panel->title, "%s", device->label);
  if (!device->paper) return;
  /* Spector & Ré 2023, arXiv 2308.04623, figure of the roofline: GPT-2 Large on an RTX 4090 */
  add_dot(panel, "the paper: plain", 1, 2e11, true);
  add_dot(panel, "the paper: staged", 30, 8e11, true);
}

static understudy_status add_bench(ust_chart_panel *panel, const char *path, const ust_bench *run,
                                   understudy_error *err) {
  for (int i = 0; i < run->mode_count; i++) {
    const ust_bench_mode *mode = &run->modes[i];
    if (!(mode->tokens_per_s > 0 && mode->flop_per_byte > 0 && mode->flop_per_s > 0))
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: modes: %s: expected tokens_per_s, flop_per_byte and flop_per_s above 0", path, mode->name);
    char label[64];
    snprintf(label, sizeof label, "%s, %.1f tokens/s", mode->name, mode->tokens_per_s);
    add_dot(panel, label, mode->flop_per_byte, mode->flop_per_s, false);
  }
  return UNDERSTUDY_OK;
}

/* This machine as it was in the bench's own run, or else as just measured: a shared machine is another one an hour
 * later. */
static void add_machine(ust_chart_panel *panel, const ust_bench *run, const ust_machine *machine, const char *isa,
                        int threads) {
  bool recorded = run->read_gb_per_s > 0 && run->peak_tflop_per_s > 0;
  panel->device = (ust_device){"this machine",
                               recorded ? run->read_gb_per_s : machine->read_gb_per_s,
                               recorded ? run->peak_tflop_per_s : machine->peak_tflop_per_s,
                               0,
                               0,
                               false};
  if (run->isa[0]) isa = run->isa;
  if (run->threads) threads = run->threads;
  char model[64] = "";
  if (run->architecture[0])
    snprintf(model, sizeof model, ": %s, %.0f M parameters", run->architecture, run->parameters / 1e6);
  snprintf(panel->title, sizeof panel->title, "this machine%s, %s kernels, %d thread%s", model, isa, threads,
           threads == 1 ? "" : "s");
}

/* ---- measuring ---- */

/* Opens the model first: what is wrong with it should not take a second of measuring to say. */
static understudy_status measure(const roofline_options *o, const ust_kernels *kernels, int threads,
                                 ust_machine *machine, ust_pass_cost *costs, int *count, understudy_error *err) {
  ust_weights *weights;
  ust_model *model = NULL;
  understudy_status status = UNDERSTUDY_OK;
  if (o->models.model) {
    UST_TRY(ust_weights_open(o->models.model, &weights, err));
    status = ust_model_open(weights, kernels, threads, ust_cli_progress, NULL, &model, err);
    ust_weights_close(weights);
  }
  if (status == UNDERSTUDY_OK) status = ust_measure_machine(kernels, threads, machine, err);
  if (status == UNDERSTUDY_OK && ust_cli_stopped()) status = ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped");
  if (status == UNDERSTUDY_OK && model) status = ust_measure_passes(model, costs, count, ust_cli_progress, NULL, err);
  ust_model_close(model);
  ust_cli_progress_clear();
  return status;
}

static void print_measured(const ust_kernels *kernels, int threads, const ust_machine *machine,
                           const ust_pass_cost *costs, int count) {
  printf("%s kernels, %d thread%s: %.1f GB/s of reads, %.2f TFLOP/s, ridge at %.0f FLOP/byte\n", kernels->name, threads,
         threads == 1 ? "" : "s", machine->read_gb_per_s, machine->peak_tflop_per_s,
         machine->peak_tflop_per_s * 1e3 / machine->read_gb_per_s);
  for (int i = 0; i < count; i++) {
    if (i == 0 || costs[i].context != costs[i - 1].context)
      printf("\npass after %d tokens\n  rows        ms   x 1 row\n", costs[i].context);
    int first = i;
    while (first && costs[first - 1].context == costs[i].context) first--;
    printf("  %4d %9.2f %9.2f\n", costs[i].rows, costs[i].ms, costs[first].ms > 0 ? costs[i].ms / costs[first].ms : 0);
  }
}

static understudy_status write_measured(const char *path, const ust_kernels *kernels, int threads,
                                        const ust_machine *machine, const ust_pass_cost *costs, int count,
                                        json_t *products, understudy_error *err) {
  json_t *passes = json_array();
  for (int i = 0; i < count; i++)
    json_array_append_new(
        passes, json_pack("{s:i, s:i, s:f}", "rows", costs[i].rows, "context", costs[i].context, "ms", costs[i].ms));
  return ust_cli_write_json(path,
                            json_pack("{s:s, s:i, s:f, s:f, s:o, s:O*}", "isa", kernels->name, "threads", threads,
                                      "read_gb_per_s", machine->read_gb_per_s, "peak_tflop_per_s",
                                      machine->peak_tflop_per_s, "pass_ms", passes, "products", products),
                            err);
}

/* Prints one product and adds it to the report's list. */
static bool show_product(void *products, const ust_product_cost *cost) {
  if (cost->rows == 1)
    printf("\n%s %s, %d x %d; the machine just before: %.1f GB/s, %.2f TFLOP/s%s\n"
           "  rows        ms      GB/s   TFLOP/s   of bound\n",
           cost->format, cost->shape, cost->inputs, cost->outputs, cost->machine.read_gb_per_s,
           cost->machine.peak_tflop_per_s, strcmp(cost->format, "bf16") == 0 ? "" : " in bf16");
  printf("  %4d %9.3f %9.1f %9.3f %8.0f %%\n", cost->rows, cost->ms, cost->gb_per_s, cost->tflop_per_s,
         100 * cost->share);
  json_array_append_new(products, json_pack("{s:s, s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f}", "format", cost->format,
                                            "shape", cost->shape, "inputs", cost->inputs, "outputs", cost->outputs,
                                            "rows", cost->rows, "ms", cost->ms, "gb_per_s", cost->gb_per_s,
                                            "tflop_per_s", cost->tflop_per_s, "share_of_bound", cost->share));
  return !ust_cli_flush() || ust_cli_stopped();
}

/* All that is written: the JSON, the chart and its figures. */
static understudy_status check_outputs(const roofline_options *o, const char *chart, understudy_error *err) {
  char *csv = chart ? ust_measure_csv_name(chart) : NULL;
  const char *outputs[] = {o->json, chart, csv};
  understudy_status status = ust_cli_check_distinct(outputs, 3, err);
  for (int i = 0; i < 3 && status == UNDERSTUDY_OK; i++)
    status = ust_cli_check_output(outputs[i], &o->models, o->bench, err);
  free(csv);
  return status;
}

static understudy_status roofline(const roofline_options *o, understudy_error *err) {
  const ust_kernels *kernels;
  int threads;
  ust_chart chart = {.panel_count = 1};
  ust_bench run = {0};
  ust_machine machine;
  ust_pass_cost costs[UST_PASS_COSTS];
  int count = 0;
  const bool draws = o->bench || o->device_text || !(o->json || o->kernels); /* asked for, or nothing else was */
  const char *output = !o->output && draws ? "roofline.svg" : o->output;
  UST_TRY(check_outputs(o, output, err));
  if (output) UST_TRY(ust_measure_check_gnuplot(output, err)); /* before half a minute of measuring */
  UST_TRY(ust_cli_machine(&o->models, &kernels, &threads, err));
  if (o->bench) UST_TRY(ust_measure_read_bench(o->bench, &run, err));
  if (o->bench) UST_TRY(add_bench(&chart.panels[0], o->bench, &run, err));
  UST_TRY(measure(o, kernels, threads, &machine, costs, &count, err));
  print_measured(kernels, threads, &machine, costs, count);
  json_t *products = o->kernels ? json_array() : NULL;
  understudy_status status = UNDERSTUDY_OK;
  if (o->kernels) status = ust_measure_products(kernels, threads, show_product, products, err);
  if (status == UNDERSTUDY_OK && o->json)
    status = write_measured(o->json, kernels, threads, &machine, costs, count, products, err);
  json_decref(products);
  if (status != UNDERSTUDY_OK || !output) return status;

  add_machine(&chart.panels[0], &run, &machine, kernels->name, threads);
  if (o->device_text) add_device(&chart, &o->device);
  UST_TRY(ust_measure_chart(&chart, output, err));
  ust_cli_note("chart in %s, its figures beside it as .csv", output);
  return UNDERSTUDY_OK;
}

int ust_cli_roofline(int argc, char **argv) {
  roofline_options o = {0};
  const ust_option options[] = {
      {UST_TEXT("model", 'm', &o.models.model, "TARGET", "also time this model's passes by rows and context")},
      {UST_TEXT("bench", 0, &o.bench, "FILE",
                "draw the dots of a 'bench --json' file, under the roof measured in its run")},
      {UST_TEXT("device", 0, &o.device_text, "DEVICE",
                "beside it, draw another machine's roof:\n" UST_CLI_DEVICES "\nrtx4090: with the paper's dots")},
      {UST_FLAG("kernels", 0, &o.kernels, "time the matrix products of a GPT-2 Large pass (25 s)")},
      {UST_TEXT("output", 'o', &o.output, "FILE",
                "the chart, .svg or .png [roofline.svg; none where --json or --kernels is given without --bench and "
                "--device]; its figures beside it as "
                ".csv")},
      UST_OPTIONS_JSON(&o.json),
      UST_OPTIONS_MACHINE(&o.models),
      UST_OPTIONS_QUIET(&o.quiet),
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "roofline",
      .usage = "roofline [-m TARGET] [--bench FILE] [--device DEVICE] [--kernels] [-o FILE]",
      .about = "Measures how fast this machine reads and multiplies, and draws its roofline chart (with gnuplot).",
      .example = "understudy roofline -m gpt2-large/ --bench bench.json --device rtx4090 \\\n    -o roofline.svg",
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (!ust_cli_no_more("roofline", argc, argv, optind, &code)) return code;
  if (o.output && !ust_measure_drawable(o.output))
    return ust_cli_usage("roofline", "--output: found '%.120s', expected a name that ends in .svg or .png", o.output);
  understudy_error err = {0};
  if (o.device_text && ust_measure_device(o.device_text, &o.device, &err) != UNDERSTUDY_OK)
    return ust_cli_usage("roofline", "--device: %s", err.message);
  ust_cli_set_quiet(o.quiet);
  ust_cli_catch_signals();
  const understudy_status status = roofline(&o, &err);
  return status == UNDERSTUDY_OK || !ust_cli_flush() ? UST_EXIT_OK : ust_cli_fail(&err); /* of stdout, main tells */
}
