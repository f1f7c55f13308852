/* understudy roofline: measures the machine, and with -m a model's passes, and draws the roofline chart with a
 * bench's dots and, beside them, a known device with the dots the paper reports for it. */
#include <math.h>

#include "cli/cli.h"
#include "measure/measure.h"

typedef struct roofline_options {
  ust_cli_models models;
  const char *bench, *device, *json, *output;
  bool quiet;
} roofline_options;

/* Memory bandwidth, and dense f16 tensor throughput with f32 accumulation. */
static const struct {
  const char *name, *label;
  double gb_per_s, tflop_per_s;
  bool paper; /* the paper's device */
} devices[] = {
    {"rtx4090", "RTX 4090", 1008, 165.2, true}, /* NVIDIA Ada GPU Architecture whitepaper, appendix A */
    {"rtx3090", "RTX 3090", 936, 71, false},    /* NVIDIA Ampere GA102 GPU Architecture whitepaper */
    {"a100", "A100 40 GB", 1555, 312, false},   /* NVIDIA A100 data sheet */
    {"h100", "H100 SXM", 3350, 989, false},     /* NVIDIA H100 data sheet, without sparsity */
};
enum { DEVICES = sizeof devices / sizeof devices[0] };

static void add_dot(ust_chart *chart, const char *label, double flop_per_byte, double flop_per_s, bool reference) {
  if (chart->dot_count == UST_CHART_DOTS) return;
  ust_chart_dot *dot = &chart->dots[chart->dot_count++];
  *dot = (ust_chart_dot){.flop_per_byte = flop_per_byte, .flop_per_s = flop_per_s, .reference = reference};
  snprintf(dot->label, sizeof dot->label, "%s", label);
}

static void add_device(ust_chart *chart, const char *name) {
  for (int i = 0; name && i < DEVICES; i++) {
    if (strcmp(name, devices[i].name) != 0) continue;
    ust_chart_roof *roof = &chart->roofs[chart->roof_count++];
    *roof = (ust_chart_roof){.read_gb_per_s = devices[i].gb_per_s, .peak_tflop_per_s = devices[i].tflop_per_s};
    snprintf(roof->label, sizeof roof->label, "%s", devices[i].label);
    if (!devices[i].paper) continue;
    add_dot(chart, "paper: plain", 1, 2e11, true); /* Spector & Ré 2023, arXiv 2308.04623, GPT-2-L on an RTX 4090 */
    add_dot(chart, "paper: staged", 30, 8e11, true);
  }
}

/* ---- the bench's dots ---- */

static understudy_status add_mode(ust_chart *chart, const char *path, const json_t *mode, understudy_error *err) {
  const json_t *name = json_object_get(mode, "mode"), *rate = json_object_get(mode, "tokens_per_s");
  const json_t *per_byte = json_object_get(mode, "flop_per_byte"), *per_s = json_object_get(mode, "flop_per_s");
  if (!json_is_string(name) || !json_is_number(rate) || !(json_number_value(per_byte) > 0) ||
      !(json_number_value(per_s) > 0))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: modes: expected entries with mode, tokens_per_s, flop_per_byte and flop_per_s above 0", path);
  char label[64];
  snprintf(label, sizeof label, "%.24s, %.1f tokens/s", json_string_value(name), json_number_value(rate));
  add_dot(chart, label, json_number_value(per_byte), json_number_value(per_s), false);
  return UNDERSTUDY_OK;
}

static understudy_status add_bench(ust_chart *chart, const char *path, understudy_error *err) {
  char *data;
  size_t size;
  UST_TRY(ust_file_slurp(path, 1 << 24, &data, &size, err));
  json_error_t problem;
  json_t *root = json_loadb(data, size, 0, &problem);
  ust_free(data);
  if (!root)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: line %d: not JSON: %s", path, problem.line, problem.text);
  const json_t *modes = json_object_get(root, "modes");
  understudy_status status = UNDERSTUDY_OK;
  if (!json_is_array(modes) || json_array_size(modes) == 0)
    status = ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: found no modes, expected a file written by 'understudy bench --json'", path);
  for (size_t i = 0; i < json_array_size(modes) && status == UNDERSTUDY_OK; i++)
    status = add_mode(chart, path, json_array_get(modes, i), err);
  /* The dots belong under the roof measured in their own run: a shared machine is another one an hour later. */
  const json_t *machine = json_object_get(root, "machine");
  double read = json_number_value(json_object_get(machine, "read_gb_per_s"));
  double peak = json_number_value(json_object_get(machine, "peak_tflop_per_s"));
  if (read > 0 && peak > 0) chart->roofs[0] = (ust_chart_roof){"this machine", read, peak};
  const json_t *target = json_object_get(root, "target");
  const char *architecture = json_string_value(json_object_get(target, "architecture"));
  if (architecture)
    snprintf(chart->title, sizeof chart->title, "%.32s, %.0f M parameters: ", architecture,
             json_number_value(json_object_get(target, "parameters")) / 1e6);
  json_decref(root);
  return status;
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
  printf("%s kernels, %d thread%s: reads %.1f GB/s, multiplies %.2f TFLOP/s, ridge at %.0f FLOP/byte\n", kernels->name,
         threads, threads == 1 ? "" : "s", machine->read_gb_per_s, machine->peak_tflop_per_s,
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
                                        understudy_error *err) {
  json_t *passes = json_array();
  for (int i = 0; i < count; i++)
    json_array_append_new(
        passes, json_pack("{s:i, s:i, s:f}", "rows", costs[i].rows, "context", costs[i].context, "ms", costs[i].ms));
  return ust_cli_write_json(path,
                            json_pack("{s:s, s:i, s:f, s:f, s:o}", "isa", kernels->name, "threads", threads,
                                      "read_gb_per_s", machine->read_gb_per_s, "peak_tflop_per_s",
                                      machine->peak_tflop_per_s, "pass_ms", passes),
                            err);
}

static understudy_status choose_kernels(const char *isa_name, const ust_kernels **kernels, understudy_error *err) {
  ust_isa isa = ust_kernels_best();
  const char *reason = "not built in";
  if (isa_name) ust_isa_parse(isa_name, &isa);
  *kernels = ust_kernels_get(isa, &reason);
  if (*kernels) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "--isa %s: %s; the best here is %s", ust_isa_name(isa), reason,
                   ust_isa_name(ust_kernels_best()));
}

static understudy_status roofline(const roofline_options *o, understudy_error *err) {
  const ust_kernels *kernels;
  int threads = o->models.threads ? o->models.threads : ust_thread_count();
  ust_chart chart = {.roof_count = 1};
  ust_machine machine;
  ust_pass_cost costs[UST_PASS_COSTS];
  int count = 0;
  UST_TRY(ust_cli_check_output(o->json, err));
  UST_TRY(ust_cli_check_output(o->output, err));
  UST_TRY(choose_kernels(o->models.isa, &kernels, err));
  if (o->bench) UST_TRY(add_bench(&chart, o->bench, err));
  UST_TRY(measure(o, kernels, threads, &machine, costs, &count, err));
  print_measured(kernels, threads, &machine, costs, count);
  if (o->json) UST_TRY(write_measured(o->json, kernels, threads, &machine, costs, count, err));
  if (o->json && !o->output) return UNDERSTUDY_OK;

  if (!chart.roofs[0].read_gb_per_s)
    chart.roofs[0] = (ust_chart_roof){"this machine", machine.read_gb_per_s, machine.peak_tflop_per_s};
  add_device(&chart, o->device);
  size_t used = strlen(chart.title);
  snprintf(chart.title + used, sizeof chart.title - used, "%s kernels, %d thread%s", kernels->name, threads,
           threads == 1 ? "" : "s");
  const char *output = o->output ? o->output : "roofline.svg";
  UST_TRY(ust_measure_chart(&chart, output, err));
  ust_cli_note("chart in %s, its figures beside it as .csv", output);
  return UNDERSTUDY_OK;
}

static bool drawable(const char *path) {
  size_t length = strlen(path);
  return length > 4 && (strcmp(path + length - 4, ".svg") == 0 || strcmp(path + length - 4, ".png") == 0);
}

int ust_cli_roofline(int argc, char **argv) {
  roofline_options o = {0};
  const ust_option options[] = {
      {UST_TEXT("model", 'm', &o.models.model, "TARGET", "also time this model's passes by rows and context")},
      {UST_TEXT("bench", 0, &o.bench, "FILE",
                "draw the dots of a 'bench --json' file,\nunder the roof measured in its run")},
      {UST_CHOICE("device", &o.device, "rtx4090|rtx3090|a100|h100",
                  "draw a known device's line; rtx4090: the paper's dots too")},
      {UST_TEXT("output", 'o', &o.output, "FILE",
                "the chart, .svg or .png [roofline.svg; none with --json\nalone]; its figures beside it as .csv")},
      UST_OPTIONS_JSON(&o.json),
      UST_OPTIONS_MACHINE(&o.models),
      UST_OPTIONS_QUIET(&o.quiet),
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "roofline",
      .usage = "roofline [-m TARGET] [--bench FILE] [--device NAME] [-o FILE]",
      .about = "Measures how fast this machine reads and multiplies, and draws its roofline chart (with gnuplot).",
      .example = "understudy roofline -m gpt2-large/ --bench bench.json --device rtx4090 -o roofline.svg",
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (!ust_cli_no_more("roofline", argc, argv, optind, &code)) return code;
  if (o.output && !drawable(o.output))
    return ust_cli_usage("roofline", "--output: found '%.120s', expected a name that ends in .svg or .png", o.output);
  ust_cli_set_quiet(o.quiet);
  ust_cli_catch_signals();
  understudy_error err = {0};
  return roofline(&o, &err) == UNDERSTUDY_OK ? UST_EXIT_OK : ust_cli_fail(&err);
}
