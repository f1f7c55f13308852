/* The JSON report of run and bench, and what both need to make one. */
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "measure/measure.h"

static const char *const mode_names[] = {"plain", "speculative", "staged"};

const char *ust_cli_mode_name(understudy_mode mode) {
  return mode_names[mode];
}

understudy_mode ust_cli_mode(const char *word) {
  for (int mode = 0; mode < 3; mode++)
    if (strcmp(word, mode_names[mode]) == 0) return (understudy_mode)mode;
  return UNDERSTUDY_STAGED;
}

understudy_status ust_cli_open(const ust_cli_models *models, understudy_engine **engine, understudy_error *err) {
  understudy_engine_options options = {
      .target = models->model,
      .draft = models->draft,
      .ngram = models->ngram,
      .isa = models->isa,
      .threads = models->threads,
      .context = models->context,
      .progress = ust_cli_progress,
  };
  understudy_status status = understudy_engine_open(&options, engine, err);
  ust_cli_progress_clear();
  return status;
}

/* ---- JSON ---- */

understudy_status ust_cli_check_output(const char *path, understudy_error *err) {
  if (!path) return UNDERSTUDY_OK;
  if (ust_is_directory(path))
    return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot write: is a directory, expected a file", path);
  struct stat info;
  if (stat(path, &info) == 0 && !S_ISREG(info.st_mode) && access(path, W_OK) == 0)
    return UNDERSTUDY_OK; /* opening a pipe and closing it would end its reader's input */
  ust_writer writer;
  UST_TRY(ust_writer_open(&writer, path, err));
  ust_writer_abandon(&writer);
  return UNDERSTUDY_OK;
}

static int write_piece(const char *data, size_t size, void *writer) {
  ust_writer_write(writer, data, size);
  return 0;
}

understudy_status ust_cli_write_json(const char *path, json_t *root, understudy_error *err) {
  if (!root) return ust_error_memory(err, 0, "a JSON document");
  ust_writer writer;
  understudy_status status = ust_writer_open(&writer, path, err);
  if (status == UNDERSTUDY_OK) {
    int failure = json_dump_callback(root, write_piece, &writer, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    ust_writer_write(&writer, "\n", 1);
    if (failure) {
      ust_writer_abandon(&writer);
      status = ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: a value cannot be written as JSON", path);
    } else {
      status = ust_writer_commit(&writer, err);
    }
  }
  json_decref(root);
  return status;
}

static double ratio(double a, double b) {
  return b > 0 ? a / b : 0;
}

/* `plain` is NULL when plain decoding was not run: the comparison is then null. */
static json_t *mode_json(const ust_mode_result *result, const ust_mode_result *plain) {
  const understudy_stats *s = &result->stats;
  double bytes_per_token = ratio(s->bytes, (double)s->tokens);
  json_t *compared = json_null();
  if (plain) {
    double plain_bytes = ratio(plain->stats.bytes, (double)plain->stats.tokens);
    compared = json_real(result == plain ? 1.0 : ratio(bytes_per_token, plain_bytes));
  }
  return json_pack(
      "{s:s, s:I, s:f, s:f, s:I, s:f, s:f, s:o, s:f, s:f, s:{s:I, s:I, s:I}, s:s}", "mode", mode_names[result->mode],
      "tokens", (json_int_t)s->tokens, "seconds", s->seconds, "tokens_per_s", ratio((double)s->tokens, s->seconds),
      "target_passes", (json_int_t)s->target_passes, "tokens_per_pass",
      ratio((double)s->tokens, (double)s->target_passes), "bytes_per_token", bytes_per_token, "bytes_vs_plain",
      compared, "flop_per_s", ratio(s->flop, s->seconds), "flop_per_byte", ratio(s->flop, s->bytes), "accepted",
      "draft", (json_int_t)s->accepted[UNDERSTUDY_FROM_DRAFT], "ngram", (json_int_t)s->accepted[UNDERSTUDY_FROM_NGRAM],
      "context", (json_int_t)s->accepted[UNDERSTUDY_FROM_CONTEXT], "text_sha256", result->sha256);
}

/* A float as the shortest decimal that gives it back: 0.9, not 0.899999976. */
static double shortest(float value) {
  char text[32];
  double back = value;
  for (int digits = 1; digits <= 9; digits++) {
    snprintf(text, sizeof text, "%.*g", digits, (double)value);
    if (sscanf(text, "%lf", &back) == 1 && (float)back == value) return back;
  }
  return value;
}

static json_t *sampling_json(const understudy_sampling *sampling) {
  json_t *root = json_pack("{s:f, s:i, s:f, s:I}", "temperature", shortest(sampling->temperature), "top_k",
                           sampling->top_k, "top_p", shortest(sampling->top_p), "seed", (json_int_t)sampling->seed);
  if (root && sampling->min_p > 0) json_object_set_new(root, "min_p", json_real(shortest(sampling->min_p)));
  return root;
}

understudy_status ust_cli_write_report(const char *path, const understudy_engine *engine, const char *target,
                                       const understudy_sampling *sampling, const ust_mode_result *results, int count,
                                       bool identical, understudy_error *err) {
  understudy_engine_info info;
  understudy_engine_get_info(engine, &info);
  ust_isa isa = UST_ISA_SCALAR;
  ust_isa_parse(info.isa, &isa);
  ust_machine machine;
  UST_TRY(ust_measure_machine(ust_kernels_get(isa, NULL), info.threads, &machine, err));

  json_t *modes = json_array();
  for (int i = 0; i < count; i++)
    json_array_append_new(modes, mode_json(&results[i], results[0].mode == UNDERSTUDY_PLAIN ? results : NULL));
  json_t *root =
      json_pack("{s:s, s:i, s:{s:f, s:f}, s:{s:s%, s:s, s:I, s:I}, s:o, s:o, s:b}", "isa", info.isa, "threads",
                info.threads, "machine", "read_gb_per_s", machine.read_gb_per_s, "peak_tflop_per_s",
                machine.peak_tflop_per_s, "target", "path", target, strlen(target), "architecture", info.architecture,
                "parameters", (json_int_t)info.parameters, "weight_bytes", (json_int_t)info.weight_bytes, "sampling",
                sampling_json(sampling), "modes", modes, "outputs_identical", (int)identical);
  if (!root) return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: the report cannot be written as JSON", path);
  return ust_cli_write_json(path, root, err);
}
