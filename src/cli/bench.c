/* understudy bench: the paper's tables for the user's models. Plain, speculative and staged decoding write the
 * same prompts' continuations, prompt by prompt in turn, so that drift of the machine hits all alike; every
 * text is compared token by token. */
#include <stdlib.h>
#include <sys/stat.h>

#include "cli/cli.h"

enum { MODES = 3, LANES = MODES + UST_VARIANTS - 1 };

/* Experiments by their names in --variants and in the report. */
static const char *const variant_names[UST_VARIANTS] = {NULL,          "chain",   "tree",     "no-context",
                                                        "independent", "context", "likeliest"};
#define VARIANT_NAMES "chain, tree, no-context, independent, context, likeliest"

typedef struct bench_options {
  ust_cli_models models;
  understudy_sampling sampling;
  const char *prompts, *json, *variants, *predict, *from;
  int limit, tokens;
  bool quiet;
} bench_options;

/* One mode's session and what it wrote last. */
typedef struct lane {
  ust_mode_result result;
  understudy_session *session;
  ust_sha256 sha, prompt_sha;
  int32_t *tokens; /* [count] of the current prompt */
  size_t count, capacity;
  bool out_of_memory;
} lane;

/* A prompt's tokens. */
typedef struct tokenized {
  int32_t *tokens;
  size_t count;
} tokenized;

typedef struct bench {
  const bench_options *options;
  understudy_engine *engine;
  ust_prompts prompts;
  tokenized *tokenized; /* [prompts.count] */
  lane lanes[LANES];
  int lane_count;
  size_t done;      /* prompts that every mode has written */
  size_t differing; /* those whose texts differ between modes */
} bench;

static bool keep_token(void *user, int32_t token, const char *bytes, size_t length, understudy_origin origin) {
  (void)origin;
  lane *l = user;
  ust_cli_sha256_add(&l->sha, bytes, length);
  ust_cli_sha256_add(&l->prompt_sha, bytes, length);
  if (l->count == l->capacity) {
    size_t capacity = l->capacity ? 2 * l->capacity : 256;
    int32_t *grown = realloc(l->tokens, capacity * sizeof *grown);
    if (!grown) {
      l->out_of_memory = true;
      return true;
    }
    l->tokens = grown;
    l->capacity = capacity;
  }
  l->tokens[l->count++] = token;
  return ust_cli_stopped();
}

static understudy_status write_one(bench *b, lane *l, size_t index, understudy_error *err) {
  const tokenized *prompt = &b->tokenized[index];
  UST_TRY(understudy_session_reset(l->session, NULL, err));
  UST_TRY(understudy_session_prompt(l->session, prompt->tokens, prompt->count, NULL, NULL, err));
  l->count = 0;
  ust_prompt_result *result = &l->result.prompts[index];
  understudy_stats before;
  understudy_session_get_stats(l->session, &before);
  ust_cli_sha256_start(&l->prompt_sha);
  UST_TRY(understudy_session_generate(l->session, b->options->tokens, keep_token, l, NULL, err));
  understudy_session_get_stats(l->session, &result->stats);
  result->stats = ust_cli_stats_since(&before, &result->stats);
  ust_cli_sha256_finish(&l->prompt_sha, result->sha256);
  if (l->out_of_memory) return ust_error_memory(err, l->capacity * sizeof *l->tokens, "generated tokens");
  if (ust_cli_stopped()) return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped");
  return UNDERSTUDY_OK;
}

/* The figures of the prompts so far, which every mode has written. */
static void keep_figures(lane *l, size_t prompts) {
  understudy_session_get_stats(l->session, &l->result.stats);
  l->result.details = *ust_session_details(l->session);
  l->result.prompt_count = prompts;
  ust_sha256 sha = l->sha;
  ust_cli_sha256_finish(&sha, l->result.sha256);
}

static bool same_text(const lane *a, const lane *b) {
  return a->count == b->count && (a->count == 0 || memcmp(a->tokens, b->tokens, a->count * sizeof *a->tokens) == 0);
}

static understudy_status tokenize(bench *b, size_t index, understudy_error *err) {
  understudy_engine_info info;
  understudy_engine_get_info(b->engine, &info);
  const ust_text *prompt = &b->prompts.items[index];
  tokenized *t = &b->tokenized[index];
  understudy_error problem;
  understudy_status status =
      ust_cli_prompt_tokens(b->engine, prompt->data, prompt->size, &t->tokens, &t->count, &problem);
  if (status != UNDERSTUDY_OK)
    return ust_error(err, status, "%s: prompt %zu: %.300s", b->options->prompts, index + 1, problem.message);
  if (t->count > (size_t)info.context)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: prompt %zu: %zu tokens, expected at most %d (the context)",
                     b->options->prompts, index + 1, t->count, info.context);
  return UNDERSTUDY_OK;
}

/* Before anything is measured, so that no prompt ends a long run. */
static understudy_status tokenize_all(bench *b, understudy_error *err) {
  size_t size = b->prompts.count * sizeof *b->tokenized;
  b->tokenized = ust_alloc(size);
  if (!b->tokenized) return ust_error_memory(err, size, "prompts");
  for (size_t i = 0; i < b->prompts.count; i++) UST_TRY(tokenize(b, i, err));
  return UNDERSTUDY_OK;
}

static understudy_status bench_prompt(bench *b, size_t index, understudy_error *err) {
  understudy_status status = UNDERSTUDY_OK;
  for (int i = 0; i < b->lane_count && status == UNDERSTUDY_OK; i++) {
    ust_cli_progress(NULL, "benchmarking", index * (size_t)b->lane_count + (size_t)i,
                     b->prompts.count * (size_t)b->lane_count);
    status = write_one(b, &b->lanes[i], index, err);
  }
  bool same = true;
  for (int i = 1; i < b->lane_count; i++) same = same && same_text(&b->lanes[0], &b->lanes[i]);
  if (status == UNDERSTUDY_OK && !same) b->differing++;
  if (status == UNDERSTUDY_OK) b->done++;
  for (int i = 0; i < b->lane_count && status == UNDERSTUDY_OK; i++) keep_figures(&b->lanes[i], b->done);
  return status;
}

static void print_table(const bench *b) {
  understudy_engine_info info;
  understudy_engine_get_info(b->engine, &info);
  printf("%s, %.1f M parameters, %.0f MB of weights; %s kernels, %d thread%s\n", info.architecture,
         (double)info.parameters / 1e6, (double)info.weight_bytes / 1e6, info.isa, info.threads,
         info.threads == 1 ? "" : "s");
  const understudy_sampling *s = &b->options->sampling;
  printf("%zu prompt%s, up to %d tokens each, ", b->done, b->done == 1 ? "" : "s", b->options->tokens);
  if (s->temperature > 0)
    printf("temperature %g, top-k %d, top-p %g, seed %llu", (double)s->temperature, s->top_k, (double)s->top_p,
           (unsigned long long)s->seed);
  else
    printf("greedy");
  if (s->temperature > 0 && s->min_p > 0) printf(", min-p %g", (double)s->min_p);
  if (s->repetition_penalty != 0 && s->repetition_penalty != 1)
    printf(", repetition penalty %g", (double)s->repetition_penalty);
  if (s->frequency_penalty != 0) printf(", frequency penalty %g", (double)s->frequency_penalty);
  if (s->presence_penalty != 0) printf(", presence penalty %g", (double)s->presence_penalty);
  printf("\n\n");
  printf("%-12s %8s %8s %11s %6s %9s %6s %6s %5s\n", "mode", "tokens/s", "speed-up", "tokens/pass", "bytes",
         "FLOP/byte", "draft", "n-gram", "text");
  const understudy_stats *plain = &b->lanes[0].result.stats;
  double plain_rate = plain->seconds > 0 ? (double)plain->tokens / plain->seconds : 0;
  double plain_bytes = plain->tokens ? plain->bytes / (double)plain->tokens : 0;
  for (int i = 0; i < b->lane_count; i++) {
    const understudy_stats *t = &b->lanes[i].result.stats;
    double rate = t->seconds > 0 ? (double)t->tokens / t->seconds : 0;
    double bytes = t->tokens ? t->bytes / (double)t->tokens : 0;
    printf("%-12s %8.1f %7.2fx %11.2f %6.2f %9.1f", b->lanes[i].result.name, rate,
           plain_rate > 0 ? rate / plain_rate : 0, t->target_passes ? (double)t->tokens / (double)t->target_passes : 0,
           plain_bytes > 0 ? bytes / plain_bytes : 0, t->bytes > 0 ? t->flop / t->bytes : 0);
    static const understudy_origin stages[] = {UNDERSTUDY_FROM_DRAFT, UNDERSTUDY_FROM_NGRAM, UNDERSTUDY_FROM_CONTEXT};
    for (int stage = 0; stage < 3; stage++)
      printf(" %*.0f %%", stage == 2 ? 3 : 4,
             t->tokens ? 100.0 * (double)t->accepted[stages[stage]] / (double)t->tokens : 0);
    putchar('\n');
  }
  if (b->differing)
    printf("\ntexts identical: NO, %zu of %zu prompts differ\n", b->differing, b->done);
  else
    printf("\ntexts identical: yes\n");
}

/* Is `name` among the comma-separated words? */
static bool listed(const char *words, const char *name) {
  size_t length = strlen(name);
  for (const char *word = words; word; word = strchr(word, ','), word += word != NULL)
    if (strncmp(word, name, length) == 0 && (word[length] == ',' || word[length] == 0)) return true;
  return false;
}

/* The first word that is no experiment's name; NULL: all are. */
static const char *unknown_variant(const char *words, int *length) {
  for (const char *word = words; word; word = strchr(word, ','), word += word != NULL) {
    bool known = false;
    *length = (int)strcspn(word, ",");
    for (int v = 1; v < UST_VARIANTS; v++)
      known = known || (strncmp(word, variant_names[v], (size_t)*length) == 0 && variant_names[v][*length] == 0);
    if (!known) return word;
  }
  return NULL;
}

static understudy_status open_lane(bench *b, const char *name, understudy_mode mode, ust_variant variant,
                                   understudy_error *err) {
  lane *l = &b->lanes[b->lane_count++];
  size_t size = b->prompts.count * sizeof *l->result.prompts;
  l->result.name = name;
  l->result.prompts = ust_alloc(size);
  l->result.prompt_count = b->prompts.count;
  if (!l->result.prompts) return ust_error_memory(err, size, "the prompts' figures");
  ust_cli_sha256_start(&l->sha);
  if (variant) return ust_session_create_variant(b->engine, variant, &b->options->sampling, &l->session, err);
  return understudy_session_create(b->engine, mode, &b->options->sampling, &l->session, err);
}

static understudy_status open_lanes(bench *b, understudy_error *err) {
  for (int mode = 0; mode < MODES; mode++)
    if (mode != UNDERSTUDY_SPECULATIVE || b->options->models.draft)
      UST_TRY(open_lane(b, ust_cli_mode_name((understudy_mode)mode), (understudy_mode)mode, UST_VARIANT_NONE, err));
  for (int v = 1; v < UST_VARIANTS; v++)
    if (listed(b->options->variants, variant_names[v]))
      UST_TRY(open_lane(b, variant_names[v], UNDERSTUDY_STAGED, (ust_variant)v, err));
  return UNDERSTUDY_OK;
}

static understudy_status run_bench(bench *b, understudy_error *err) {
  UST_TRY(ust_cli_check_output(b->options->json, &b->options->models, b->options->prompts, err));
  UST_TRY(ust_cli_prompts_load(b->options->prompts, (size_t)b->options->limit, &b->prompts, err));
  UST_TRY(ust_cli_open(&b->options->models, &b->engine, err));
  UST_TRY(tokenize_all(b, err));
  UST_TRY(open_lanes(b, err));
  understudy_status stopped = UNDERSTUDY_OK;
  while (b->done < b->prompts.count && stopped == UNDERSTUDY_OK) stopped = bench_prompt(b, b->done, err);
  ust_cli_progress_clear();
  if (b->done == 0 || (stopped != UNDERSTUDY_OK && stopped != UNDERSTUDY_ERROR_CANCELLED)) return stopped;
  ust_mode_result results[LANES];
  for (int i = 0; i < b->lane_count; i++) results[i] = b->lanes[i].result;
  print_table(b);
  if (stopped != UNDERSTUDY_OK || !b->options->json) return stopped; /* a file tells of whole runs only */
  return ust_cli_write_report(b->options->json, b->engine, &b->options->models, &b->options->sampling, results,
                              b->lane_count, b->differing == 0, NULL, err);
}

int ust_cli_bench(int argc, char **argv) {
  if (ust_cli_predicts_only(argc, argv)) return ust_cli_predict(argc, argv);
  bench_options o = {.sampling = {.top_p = 1, .repetition_penalty = 1}, .tokens = 128};
  const ust_option options[] = {
      UST_OPTIONS_MODEL(&o.models),
      UST_OPTIONS_DRAFTS(&o.models),
      {UST_TEXT("prompts", 0, &o.prompts, "FILE",
                "JSON lines with a 'prompt' field, plain or gzip, or one prompt as plain text"),
       .required = true},
      {UST_INT("limit", 0, &o.limit, "K", "the first K prompts only [all]", 1, UST_INT_MOST)},
      {UST_TEXT("variants", 0, &o.variants, "LIST", "experiments to run beside, separated by commas: " VARIANT_NAMES)},
      UST_OPTIONS_TOKENS(&o.tokens, "most tokens to write for each prompt [128]", 1),
      UST_OPTIONS_SAMPLING(&o.sampling),
      UST_OPTIONS_CONTEXT(&o.models, UST_HELP_CONTEXT),
      UST_OPTIONS_MACHINE(&o.models),
      UST_OPTIONS_JSON(&o.json),
      UST_OPTIONS_PREDICT(&o.predict, &o.from),
      UST_OPTIONS_QUIET(&o.quiet),
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "bench",
      .usage = "bench -m TARGET [-d DRAFT] [--ngram FILE] --prompts FILE [options]\n"
               "bench --predict DEVICE --from FILE",
      .about = "Plain, speculative (with -d) and staged decoding (with all there is, as 'run' does) side by side, "
               "and whether all their texts are the same.",
      .notes = "Bytes count the weights and the KV cache every stage reads. Exits 1 if any text differs. "
               "Ctrl-C prints the table of the prompts finished so far, and exits 1.\n\nExperiments:\n"
               "  chain: a tree that is always a chain of 4\n  tree: a tree that is always one shape of 4 such chains\n"
               "  no-context: drafting without the text so far\n  context: drafting from the text so far alone\n"
               "  independent: drafts rank their candidates with noise of another seed\n"
               "  likeliest: drafts rank their candidates without noise",
      .example =
          "understudy bench -m gpt2-large/ -d draft.gguf --ngram draft.ngram \\\n    --prompts humaneval.jsonl.gz",
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (!ust_cli_no_more("bench", argc, argv, optind, &code)) return code;
  struct stat info;
  if (!ust_cli_check_predict(o.predict, o.json, &code)) return code;
  if (o.predict && stat(o.json, &info) == 0 && !S_ISREG(info.st_mode))
    return ust_cli_usage("bench", "--json: found %.200s, expected a regular file: --predict reads it again", o.json);
  int length;
  const char *unknown = unknown_variant(o.variants, &length);
  if (unknown)
    return ust_cli_usage("bench", "--variants: found '%.*s', expected some of " VARIANT_NAMES, length, unknown);
  ust_cli_set_quiet(o.quiet);
  ust_cli_note_sampling(&o.sampling);
  ust_cli_catch_signals();
  bench b = {.options = &o};
  understudy_error err = {0};
  understudy_status status = run_bench(&b, &err);
  if (status == UNDERSTUDY_OK) status = ust_cli_print_prediction(o.predict, o.json, &err);
  if (status != UNDERSTUDY_OK) {
    code = ust_cli_fail(&err);
  } else if (b.differing) {
    fprintf(stderr, "understudy: %zu of %zu prompts: found texts that differ between modes, expected the same\n",
            b.differing, b.done);
    code = UST_EXIT_FAILURE;
  } else {
    code = UST_EXIT_OK;
  }
  for (int i = 0; i < LANES; i++) {
    understudy_session_close(b.lanes[i].session);
    ust_free(b.lanes[i].result.prompts);
    free(b.lanes[i].tokens);
  }
  for (size_t i = 0; b.tokenized && i < b.prompts.count; i++) understudy_free(b.tokenized[i].tokens);
  ust_free(b.tokenized);
  understudy_engine_close(b.engine);
  ust_cli_prompts_free(&b.prompts);
  return code;
}
