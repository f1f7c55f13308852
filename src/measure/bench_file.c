/* Reads what 'understudy bench --json' wrote. A field that is missing reads as 0, and whoever needs it says so; one of
 * a wrong type or range is an error that names it. */
#include <jansson.h>
#include <math.h>

#include "measure/measure.h"

enum { FILE_MOST = 1 << 26 };
static const double number_most = 1e30; /* products and quotients of such numbers stay finite */

/* Where a value lies, for errors: the file and the path of the object inside it. */
typedef struct place {
  const char *path, *object;
} place;

static const char *type_name(const json_t *value) {
  static const char *const names[] = {"an object", "an array", "text", "a number", "a number", "true", "false", "null"};
  return value ? names[json_typeof(value)] : "nothing";
}

static understudy_status wrong(const place *at, const char *field, const json_t *found, const char *expected,
                               understudy_error *err) {
  if (json_is_number(found))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s%s: found %g, expected %s", at->path, at->object, field,
                     json_number_value(found), expected);
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s%s: found %s, expected %s", at->path, at->object, field,
                   type_name(found), expected);
}

static understudy_status read_number(const place *at, const json_t *object, const char *field, double *out,
                                     understudy_error *err) {
  const json_t *value = json_object_get(object, field);
  *out = 0;
  if (!value) return UNDERSTUDY_OK;
  double number = json_number_value(value);
  if (!json_is_number(value) || !(number >= 0 && number <= number_most))
    return wrong(at, field, value, "a number from 0 to 1e30", err);
  *out = number;
  return UNDERSTUDY_OK;
}

/* A name made of letters, digits and ". _ -": it goes into labels and tables as it is. */
static understudy_status read_word(const place *at, const json_t *object, const char *field, char out[32],
                                   understudy_error *err) {
  const json_t *value = json_object_get(object, field);
  out[0] = 0;
  if (!value) return UNDERSTUDY_OK;
  const char *text = json_is_string(value) ? json_string_value(value) : "";
  size_t length = json_string_length(value);
  size_t good = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
  if (length == 0 || length > 31 || good != length)
    return wrong(at, field, value, "a word of 1 to 31 letters, digits and . _ -", err);
  memcpy(out, text, length + 1);
  return UNDERSTUDY_OK;
}

static understudy_status read_object(const place *at, const json_t *object, const char *field, const json_t **out,
                                     understudy_error *err) {
  *out = json_object_get(object, field);
  if (*out && !json_is_object(*out)) return wrong(at, field, *out, "an object", err);
  return UNDERSTUDY_OK;
}

static understudy_status read_passes(const place *at, const json_t *object, ust_bench_mode *mode,
                                     understudy_error *err) {
  const json_t *list = json_object_get(object, "rows");
  if (!list) return UNDERSTUDY_OK;
  if (!json_is_array(list) || json_array_size(list) > UST_BENCH_ROWS)
    return wrong(at, "rows", list, "an array of at most 128 entries", err);
  char name[96];
  snprintf(name, sizeof name, "%srows: ", at->object);
  place inside = {at->path, name};
  double passes = 0;
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *entry = json_array_get(list, i);
    double rows;
    if (!json_is_object(entry)) return wrong(at, "rows", entry, "entries with rows and passes", err);
    UST_TRY(read_number(&inside, entry, "rows", &rows, err));
    if (rows < 1) return wrong(&inside, "rows", json_object_get(entry, "rows"), "1 or more", err);
    mode->passes[i].rows = rows;
    UST_TRY(read_number(&inside, entry, "passes", &mode->passes[i].passes, err));
    UST_TRY(read_number(&inside, entry, "seconds", &mode->passes[i].seconds, err));
    passes += mode->passes[i].passes;
  }
  mode->pass_counts = (int)json_array_size(list);
  if (mode->pass_counts && fabs(passes - mode->target_passes) > 0.5)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: %srows: found %.0f passes in all, expected %.0f (target_passes)", at->path, at->object,
                     passes, mode->target_passes);
  return UNDERSTUDY_OK;
}

static understudy_status read_mode(const char *path, const json_t *object, ust_bench_mode *mode,
                                   understudy_error *err) {
  place at = {path, "modes: "};
  if (!json_is_object(object)) return wrong(&at, "entry", object, "an object", err);
  UST_TRY(read_word(&at, object, "mode", mode->name, err));
  if (!mode->name[0]) return wrong(&at, "mode", NULL, "its name", err);
  char name[64];
  snprintf(name, sizeof name, "modes: %s: ", mode->name);
  at.object = name;
  const struct {
    const char *field;
    double *to;
  } numbers[] = {
      {"tokens", &mode->tokens},
      {"seconds", &mode->seconds},
      {"tokens_per_s", &mode->tokens_per_s},
      {"target_passes", &mode->target_passes},
      {"bytes_per_token", &mode->bytes_per_token},
      {"flop_per_s", &mode->flop_per_s},
      {"flop_per_byte", &mode->flop_per_byte},
  };
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
    UST_TRY(read_number(&at, object, numbers[i].field, numbers[i].to, err));
  UST_TRY(read_passes(&at, object, mode, err));
  const json_t *stages, *time;
  double looking, choosing, planning;
  UST_TRY(read_object(&at, object, "stage_passes", &stages, err));
  UST_TRY(read_object(&at, object, "time", &time, err));
  UST_TRY(read_number(&at, stages, "draft", &mode->draft_passes, err));
  UST_TRY(read_number(&at, time, "ngram_s", &looking, err));
  UST_TRY(read_number(&at, time, "choice_s", &choosing, err));
  UST_TRY(read_number(&at, time, "planning_s", &planning, err));
  mode->host_s = looking + choosing + planning;
  return UNDERSTUDY_OK;
}

static understudy_status read_run(const char *path, const json_t *root, ust_bench *run, understudy_error *err) {
  const json_t *modes = json_object_get(root, "modes"), *machine, *target;
  place top = {path, ""}, in_machine = {path, "machine: "}, in_target = {path, "target: "};
  if (!json_is_array(modes) || json_array_size(modes) == 0)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: found no modes, expected a file written by 'understudy bench --json'", path);
  if (json_array_size(modes) > UST_BENCH_MODES)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found %zu modes, expected at most %d", path,
                     json_array_size(modes), UST_BENCH_MODES);
  double threads;
  UST_TRY(read_object(&top, root, "machine", &machine, err));
  UST_TRY(read_object(&top, root, "target", &target, err));
  UST_TRY(read_word(&top, root, "isa", run->isa, err));
  UST_TRY(read_number(&top, root, "threads", &threads, err));
  run->threads = (int)fmin(threads, 1e6);
  UST_TRY(read_number(&in_machine, machine, "read_gb_per_s", &run->read_gb_per_s, err));
  UST_TRY(read_number(&in_machine, machine, "peak_tflop_per_s", &run->peak_tflop_per_s, err));
  UST_TRY(read_word(&in_target, target, "architecture", run->architecture, err));
  UST_TRY(read_number(&in_target, target, "parameters", &run->parameters, err));
  UST_TRY(read_number(&in_target, target, "weight_bytes", &run->weight_bytes, err));
  for (size_t i = 0; i < json_array_size(modes); i++)
    UST_TRY(read_mode(path, json_array_get(modes, i), &run->modes[run->mode_count++], err));
  return UNDERSTUDY_OK;
}

understudy_status ust_measure_read_bench(const char *path, ust_bench *out, understudy_error *err) {
  *out = (ust_bench){0};
  char *data;
  size_t size;
  UST_TRY(ust_file_slurp(path, FILE_MOST, &data, &size, err));
  json_error_t problem;
  json_t *root = json_loadb(data, size, JSON_REJECT_DUPLICATES, &problem);
  ust_free(data);
  if (!root)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: line %d: not JSON: %s", path, problem.line, problem.text);
  understudy_status status = read_run(path, root, out, err);
  json_decref(root);
  return status;
}
