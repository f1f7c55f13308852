/* The JSON report of run and bench, and what both need to make one. */
#include <stdlib.h>
#include <sys/stat.h>

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

/* Where measurements of this machine are kept between runs: the user's cache, as the XDG base directory specification
 * places it. NULL: nowhere. */
static const char *cache_directory(void) {
  static char path[4096];
  const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  bool given = cache && cache[0] == '/';
  if (!given && (!home || home[0] != '/')) return NULL;
  int length = snprintf(path, sizeof path - sizeof "/understudy", "%s%s", given ? cache : home, given ? "" : "/.cache");
  if (length < 0 || (size_t)length >= sizeof path - sizeof "/understudy") return NULL;
  mkdir(path, 0700);
  strcat(path, "/understudy");
  mkdir(path, 0700);
  return path;
}

understudy_status ust_cli_open(const ust_cli_models *models, understudy_engine **engine, understudy_error *err) {
  understudy_engine_options options = {
      .target = models->model,
      .draft = models->draft,
      .ngram = models->ngram,
      .isa = models->isa,
      .threads = models->threads,
      .context = models->context,
      .cache = cache_directory(),
      .progress = ust_cli_progress,
  };
  understudy_status status = understudy_engine_open(&options, engine, err);
  ust_cli_progress_clear();
  return status;
}

understudy_status ust_cli_machine(const ust_cli_models *models, const ust_kernels **kernels, int *threads,
                                  understudy_error *err) {
  *threads = models->threads ? models->threads : ust_thread_count();
  return ust_kernels_choose(models->isa, kernels, err);
}

/* ---- JSON ---- */

json_t *ust_cli_json_text(const char *text, size_t length) {
  json_t *string = json_stringn(text, length);
  if (string) return string;
  ust_buffer clean = {0};
  for (size_t i = 0; i < length;) {
    size_t take = UST_MIN((size_t)4, length - i);
    json_t *character = NULL;
    while (take > 0 && !(character = json_stringn(text + i, take))) take--;
    json_decref(character);
    ust_buffer_append(&clean, take ? text + i : "\xef\xbf\xbd", take ? take : 3);
    i += take ? take : 1;
  }
  string = json_stringn(clean.data ? clean.data : "", clean.size);
  ust_buffer_free(&clean);
  return string;
}

/* A path, or null. */
static json_t *json_path(const char *path) {
  return path ? ust_cli_json_text(path, strlen(path)) : json_null();
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

understudy_stats ust_cli_stats_since(const understudy_stats *a, const understudy_stats *b) {
  understudy_stats since = *b;
  since.tokens -= a->tokens;
  since.target_passes -= a->target_passes;
  since.draft_passes -= a->draft_passes;
  since.target_rows -= a->target_rows;
  since.draft_rows -= a->draft_rows;
  since.seconds -= a->seconds;
  since.target_seconds -= a->target_seconds;
  since.draft_seconds -= a->draft_seconds;
  since.prompt_seconds -= a->prompt_seconds;
  since.bytes -= a->bytes;
  since.flop -= a->flop;
  for (int i = 0; i < 4; i++) since.accepted[i] -= a->accepted[i];
  return since;
}

static const char *const origin_names[UST_DETAIL_ORIGINS] = {"target", "draft", "ngram", "context"};

const char *ust_cli_origin_name(understudy_origin origin) {
  return origin_names[origin];
}

static json_t *prompts_json(const ust_mode_result *result) {
  json_t *list = json_array();
  for (size_t i = 0; i < result->prompt_count; i++) {
    const ust_prompt_result *p = &result->prompts[i];
    json_array_append_new(list, json_pack("{s:I, s:I, s:f, s:I, s:s}", "prompt", (json_int_t)i, "tokens",
                                          (json_int_t)p->stats.tokens, "seconds", p->stats.seconds, "target_passes",
                                          (json_int_t)p->stats.target_passes, "text_sha256", p->sha256));
  }
  return list;
}

static json_t *depth_json(const ust_details *d) {
  json_t *list = json_array();
  for (int depth = 1; depth < UST_DETAIL_DEPTHS; depth++)
    if (d->depth[depth].proposed)
      json_array_append_new(list, json_pack("{s:i, s:I, s:I}", "depth", depth, "proposed",
                                            (json_int_t)d->depth[depth].proposed, "accepted",
                                            (json_int_t)d->depth[depth].accepted));
  return list;
}

static json_t *ranks_json(const ust_details *d) {
  json_t *list = json_array();
  for (int origin = UNDERSTUDY_FROM_DRAFT; origin < UST_DETAIL_ORIGINS; origin++)
    for (int rank = 0; rank < UST_DETAIL_RANKS; rank++) {
      const ust_tally *t = &d->rank[origin][rank];
      if (t->proposed)
        json_array_append_new(list,
                              json_pack("{s:s, s:i, s:I, s:I}", "stage", origin_names[origin], "rank", rank, "proposed",
                                        (json_int_t)t->proposed, "accepted", (json_int_t)t->accepted));
    }
  return list;
}

static json_t *rows_json(const ust_details *d) {
  json_t *list = json_array();
  for (int rows = 1; rows < UST_DETAIL_ROWS; rows++)
    if (d->rows[rows])
      json_array_append_new(list, json_pack("{s:i, s:I, s:f}", "rows", rows, "passes", (json_int_t)d->rows[rows],
                                            "seconds", d->row_seconds[rows]));
  return list;
}

/* What is left of the steps' time is planning: growing the tree, learning from the outcome, committing. */
static json_t *time_json(const understudy_stats *s, const ust_details *d) {
  double planning = s->seconds - s->target_seconds - s->draft_seconds - d->text_seconds - d->choice_seconds;
  return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "prompt_s", s->prompt_seconds, "target_s", s->target_seconds,
                   "draft_s", s->draft_seconds, "ngram_s", d->text_seconds, "choice_s", d->choice_seconds, "planning_s",
                   UST_MAX(planning, 0.0));
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
  json_t *mode = json_pack(
      "{s:s, s:I, s:f, s:f, s:I, s:f, s:f, s:o, s:f, s:f, s:{s:I, s:I, s:I}, s:s}", "mode", result->name, "tokens",
      (json_int_t)s->tokens, "seconds", s->seconds, "tokens_per_s", ratio((double)s->tokens, s->seconds),
      "target_passes", (json_int_t)s->target_passes, "tokens_per_pass",
      ratio((double)s->tokens, (double)s->target_passes), "bytes_per_token", bytes_per_token, "bytes_vs_plain",
      compared, "flop_per_s", ratio(s->flop, s->seconds), "flop_per_byte", ratio(s->flop, s->bytes), "accepted",
      "draft", (json_int_t)s->accepted[UNDERSTUDY_FROM_DRAFT], "ngram", (json_int_t)s->accepted[UNDERSTUDY_FROM_NGRAM],
      "context", (json_int_t)s->accepted[UNDERSTUDY_FROM_CONTEXT], "text_sha256", result->sha256);
  json_t *more = json_pack("{s:o, s:o, s:o, s:o, s:{s:I, s:I}, s:o}", "per_prompt", prompts_json(result), "depth",
                           depth_json(&result->details), "ranks", ranks_json(&result->details), "rows",
                           rows_json(&result->details), "stage_passes", "draft", (json_int_t)s->draft_passes,
                           "draft_rows", (json_int_t)s->draft_rows, "time", time_json(s, &result->details));
  if (mode && more) json_object_update(mode, more);
  json_decref(more);
  return mode;
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
  return json_pack("{s:f, s:i, s:f, s:f, s:f, s:f, s:f, s:I}", "temperature", shortest(sampling->temperature), "top_k",
                   sampling->top_k, "top_p", shortest(sampling->top_p), "min_p", shortest(sampling->min_p),
                   "repetition_penalty", shortest(sampling->repetition_penalty), "frequency_penalty",
                   shortest(sampling->frequency_penalty), "presence_penalty", shortest(sampling->presence_penalty),
                   "seed", (json_int_t)sampling->seed);
}

understudy_status ust_cli_write_report(const char *path, const understudy_engine *engine, const ust_cli_models *models,
                                       const understudy_sampling *sampling, const ust_mode_result *results, int count,
                                       bool identical, json_t *answer, understudy_error *err) {
  understudy_engine_info info;
  understudy_engine_get_info(engine, &info);
  ust_isa isa = UST_ISA_SCALAR;
  ust_isa_parse(info.isa, &isa);
  ust_machine machine;
  understudy_status status = ust_measure_machine(ust_kernels_get(isa, NULL), info.threads, &machine, err);
  if (status != UNDERSTUDY_OK) {
    json_decref(answer);
    return status;
  }
  bool has_plain = strcmp(results[0].name, mode_names[UNDERSTUDY_PLAIN]) == 0;
  json_t *modes = json_array();
  for (int i = 0; i < count; i++) json_array_append_new(modes, mode_json(&results[i], has_plain ? results : NULL));
  json_t *root =
      json_pack("{s:s, s:s, s:i, s:i, s:{s:f, s:f}, s:{s:o, s:s, s:I, s:I}, s:o, s:o, s:o, s:o, s:b}", "version",
                understudy_version(), "isa", info.isa, "threads", info.threads, "context", info.context, "machine",
                "read_gb_per_s", machine.read_gb_per_s, "peak_tflop_per_s", machine.peak_tflop_per_s, "target", "path",
                json_path(models->model), "architecture", info.architecture, "parameters", (json_int_t)info.parameters,
                "weight_bytes", (json_int_t)info.weight_bytes, "draft", json_path(models->draft), "ngram",
                json_path(models->ngram), "sampling", sampling_json(sampling), "modes", modes, "outputs_identical",
                (int)identical);
  if (root && answer) json_object_update(root, answer);
  json_decref(answer);
  return ust_cli_write_json(path, root, err);
}
