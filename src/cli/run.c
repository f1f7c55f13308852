/* understudy run: continues a text. The answer's bytes go to stdout as they are committed, the figures to stderr. */
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"

typedef struct run_options {
  ust_cli_models models;
  understudy_sampling sampling;
  const char *mode, *file, *json;
  int tokens;
  bool quiet, color, explain;
} run_options;

typedef struct output {
  ust_sha256 sha;
  bool tinted;
  int shown;          /* origin whose colour is on */
  char last;          /* byte written last */
  json_t *tokens;     /* the answer's ids; NULL: nobody wants them */
  json_t *pieces;     /* the answer's text by who found it; NULL as well */
  ust_buffer waiting; /* bytes of a piece that ends inside a UTF-8 character */
  understudy_origin waiting_origin;
} output;

/* The target's own tokens keep the terminal's colour. */
static const char *const tints[] = {"\033[0m", "\033[32m", "\033[36m", "\033[33m"};

/* Bytes at the end of `text` that begin a UTF-8 character and do not complete it. */
static size_t unfinished(const char *text, size_t length) {
  for (size_t back = 1; back <= UST_MIN(length, (size_t)3); back++) {
    unsigned char byte = (unsigned char)text[length - back];
    if ((byte & 0xc0) == 0x80) continue;
    size_t needs = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return needs > back ? back : 0;
  }
  return 0;
}

static void flush_piece(output *out) {
  json_t *text = ust_cli_json_text(out->waiting.data, out->waiting.size);
  json_array_append_new(out->pieces,
                        json_pack("{s:o, s:s}", "text", text, "from", ust_cli_origin_name(out->waiting_origin)));
  out->waiting.size = 0;
}

/* A token whose last character goes on in the next one is one piece with it. */
static void add_piece(output *out, int32_t token, const char *bytes, size_t length, understudy_origin origin) {
  json_array_append_new(out->tokens, json_integer(token));
  if (out->waiting.size == 0) out->waiting_origin = origin;
  if (length == 0 || !ust_buffer_append(&out->waiting, bytes, length)) return;
  if (!unfinished(out->waiting.data, out->waiting.size)) flush_piece(out);
}

/* Colour changes only where a token does not begin inside a UTF-8 character. */
static bool write_token(void *user, int32_t token, const char *bytes, size_t length, understudy_origin origin) {
  output *out = user;
  ust_cli_sha256_add(&out->sha, bytes, length);
  if (out->pieces) add_piece(out, token, bytes, length, origin);
  bool inside = length && ((unsigned char)bytes[0] & 0xc0) == 0x80;
  if (out->tinted && out->shown != (int)origin && !inside) {
    fputs(tints[0], stdout);
    if (origin != UNDERSTUDY_FROM_TARGET) fputs(tints[origin], stdout);
    out->shown = (int)origin;
  }
  fwrite(bytes, 1, length, stdout);
  if (length) out->last = bytes[length - 1];
  return !ust_cli_flush() || ust_cli_stopped();
}

/* ---- --explain ---- */

typedef struct explainer {
  const output *out;
  int step;
} explainer;

static void explain_step(void *user, const ust_step_report *r) {
  explainer *e = user;
  if (isatty(STDOUT_FILENO) && e->out->last != '\n') fputc('\n', stderr); /* not in the midst of the answer */
  if (e->step++ % 20 == 0)
    ust_cli_note("     rows planned           draft's tokens milliseconds   tokens found\n"
                 "step all draft n-gram text pass row likely planned   took  all draft n-gram text");
  int rows = 0;
  for (int i = 0; i < UST_DETAIL_ORIGINS; i++) rows += r->rows_from[i];
  ust_cli_note("%4d %3d %5d %6d %4d %4d %3d %6.2f %7.2f %6.2f  %3d %5d %6d %4d", e->step, rows,
               r->rows_from[UNDERSTUDY_FROM_DRAFT], r->rows_from[UNDERSTUDY_FROM_NGRAM],
               r->rows_from[UNDERSTUDY_FROM_CONTEXT], r->draft_passes, r->draft_rows, r->expected_tokens,
               r->predicted_seconds * 1e3, r->seconds * 1e3, r->tokens, r->tokens_from[UNDERSTUDY_FROM_DRAFT],
               r->tokens_from[UNDERSTUDY_FROM_NGRAM], r->tokens_from[UNDERSTUDY_FROM_CONTEXT]);
}

static void print_statistics(const understudy_stats *s, const run_options *o) {
  double per_pass = s->target_passes ? (double)s->tokens / (double)s->target_passes : 0;
  double per_s = s->seconds > 0 ? (double)s->tokens / s->seconds : 0;
  ust_cli_note("%llu token%s in %.2f s: %.1f tokens/s, %.2f tokens/pass, %s%s", (unsigned long long)s->tokens,
               s->tokens == 1 ? "" : "s", s->seconds, per_s, per_pass, o->mode, ust_cli_stopped() ? ", stopped" : "");
  if (strcmp(o->mode, "plain") == 0) return;
  char draft[32] = "", ngram[32] = "", text[32] = "";
  if (o->models.draft)
    snprintf(draft, sizeof draft, ", draft %llu", (unsigned long long)s->accepted[UNDERSTUDY_FROM_DRAFT]);
  const bool staged = strcmp(o->mode, "staged") == 0;
  if (staged && o->models.ngram)
    snprintf(ngram, sizeof ngram, ", n-gram %llu", (unsigned long long)s->accepted[UNDERSTUDY_FROM_NGRAM]);
  if (staged)
    snprintf(text, sizeof text, ", text so far %llu", (unsigned long long)s->accepted[UNDERSTUDY_FROM_CONTEXT]);
  ust_cli_note("found by: target %llu%s%s%s", (unsigned long long)s->accepted[UNDERSTUDY_FROM_TARGET], draft, ngram,
               text);
}

/* The answer and the figures may go to the same place, a terminal by way of a pipe or one file. */
static bool same_place(void) {
  struct stat out, err;
  if (fstat(STDOUT_FILENO, &out) != 0 || fstat(STDERR_FILENO, &err) != 0) return false;
  if (out.st_dev == err.st_dev && out.st_ino == err.st_ino) return true;
  return isatty(STDERR_FILENO) && S_ISFIFO(out.st_mode);
}

static understudy_status feed_prompt(const understudy_engine *engine, understudy_session *session, const char *text,
                                     size_t length, understudy_error *err) {
  int32_t *tokens = NULL;
  size_t count = 0;
  UST_TRY(ust_cli_prompt_tokens(engine, text, length, &tokens, &count, err));
  understudy_status status = understudy_session_prompt(session, tokens, count, ust_cli_progress, NULL, err);
  understudy_free(tokens);
  ust_cli_progress_clear();
  return status;
}

/* What ended the answer. */
static const char *why_ended(const run_options *o, const understudy_engine *engine, const understudy_session *session,
                             const understudy_stats *stats) {
  understudy_engine_info info;
  understudy_engine_get_info(engine, &info);
  if (ust_cli_stopped()) return "stopped";
  if (stats->tokens == (uint64_t)o->tokens) return "length";
  return understudy_session_length(session) == (size_t)info.context ? "context" : "end of text";
}

static understudy_status report(const run_options *o, const understudy_engine *engine, understudy_session *session,
                                output *out, understudy_error *err) {
  ust_prompt_result prompt;
  ust_mode_result result = {.name = o->mode, .prompts = &prompt, .prompt_count = 1};
  understudy_session_get_stats(session, &result.stats);
  bool glued = !isatty(STDOUT_FILENO) && out->last && out->last != '\n' && same_place();
  if (glued) ust_cli_note("%s", "");
  print_statistics(&result.stats, o);
  if (!o->json) return UNDERSTUDY_OK;
  result.details = *ust_session_details(session);
  prompt.stats = result.stats;
  ust_cli_sha256_finish(&out->sha, result.sha256);
  memcpy(prompt.sha256, result.sha256, sizeof prompt.sha256);
  if (out->waiting.size) flush_piece(out);
  json_t *answer = json_pack("{s:s, s:O, s:O}", "ended", why_ended(o, engine, session, &result.stats), "tokens",
                             out->tokens, "pieces", out->pieces);
  return ust_cli_write_report(o->json, engine, &o->models, &o->sampling, &result, 1, true, answer, err);
}

/* Writes the answer; stopping it, even before it begins, is no failure. */
static understudy_status generate(const run_options *o, const understudy_engine *engine, understudy_session *session,
                                  const char *text, size_t length, output *out, understudy_error *err) {
  explainer explain = {.out = out};
  understudy_engine_info info;
  int count = 0;
  understudy_engine_get_info(engine, &info);
  understudy_status status = feed_prompt(engine, session, text, length, err);
  if (status == UNDERSTUDY_ERROR_CANCELLED && ust_cli_stopped()) return UNDERSTUDY_OK;
  if (status != UNDERSTUDY_OK) return status;
  if (o->explain && !o->quiet) ust_session_watch(session, explain_step, &explain);
  status = understudy_session_generate(session, o->tokens, write_token, out, &count, err);
  if (out->tinted && out->shown != UNDERSTUDY_FROM_TARGET) fputs(tints[0], stdout);
  if (isatty(STDOUT_FILENO) && out->last != '\n') putchar('\n');
  if (count < o->tokens && understudy_session_length(session) == (size_t)info.context)
    ust_cli_note("the context is full: %d token%s", info.context, info.context == 1 ? "" : "s");
  return status;
}

static understudy_status answer(const run_options *o, const understudy_engine *engine, understudy_session *session,
                                const char *text, size_t length, understudy_error *err) {
  output out = {.tinted = ust_cli_color(o->color), .pieces = o->json ? json_array() : NULL};
  if (o->json) out.tokens = json_array();
  ust_cli_sha256_start(&out.sha);
  understudy_status status = generate(o, engine, session, text, length, &out, err);
  if (status == UNDERSTUDY_OK && ust_cli_flush()) status = report(o, engine, session, &out, err);
  json_decref(out.pieces);
  json_decref(out.tokens);
  ust_buffer_free(&out.waiting);
  return status;
}

static int run(const run_options *o, const char *text, size_t length) {
  understudy_error err = {0};
  understudy_engine *engine = NULL;
  understudy_session *session = NULL;
  ust_cli_catch_signals();
  understudy_status status = ust_cli_check_output(o->json, &o->models, o->file, &err);
  if (status == UNDERSTUDY_OK) status = ust_cli_open(&o->models, &engine, &err);
  if (status == UNDERSTUDY_OK)
    status = understudy_session_create(engine, ust_cli_mode(o->mode), &o->sampling, &session, &err);
  if (status == UNDERSTUDY_OK) status = answer(o, engine, session, text, length, &err);
  understudy_session_close(session);
  understudy_engine_close(engine);
  return status == UNDERSTUDY_OK ? UST_EXIT_OK : ust_cli_fail(&err);
}

int ust_cli_run(int argc, char **argv) {
  run_options o = {.sampling = {.top_p = 1, .repetition_penalty = 1}, .mode = "staged", .tokens = 256};
  const ust_option options[] = {
      UST_OPTIONS_MODEL(&o.models),
      UST_OPTIONS_DRAFTS(&o.models),
      UST_OPTIONS_TOKENS(&o.tokens, "most tokens to write [256]", 0),
      UST_OPTIONS_SAMPLING(&o.sampling),
      {UST_CHOICE(
          "mode", &o.mode, "plain|speculative|staged",
          "what drafts: nothing, the draft model, or all there is [staged]; it changes the speed, never the text")},
      {UST_TEXT("file", 'f', &o.file, "FILE", "read the prompt from a file ('-': standard input)")},
      UST_OPTIONS_CONTEXT(&o.models, UST_HELP_CONTEXT),
      UST_OPTIONS_MACHINE(&o.models),
      UST_OPTIONS_JSON(&o.json),
      {UST_FLAG("color", 0, &o.color,
                "tint tokens by who found them, even in a pipe or with NO_COLOR (on a terminal the default): green "
                "draft, cyan n-gram, yellow context, the target's own plain")},
      {UST_FLAG(
          "explain", 0, &o.explain,
          "a line on stderr for each step: rows of the target's pass and who proposed them (one is the text's last "
          "token); the draft's passes and rows; tokens the planner thought likely, milliseconds it planned and the "
          "step took; tokens found, by whom (one is the target's own)")},
      UST_OPTIONS_QUIET(&o.quiet),
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "run",
      .usage = "run -m TARGET [-d DRAFT] [--ngram FILE] [options]\n[PROMPT | -f FILE | < FILE]",
      .about = "Continues the prompt and prints what follows it. Drafts make it faster and never change a byte.",
      .notes = "The text ends after -n tokens, at the model's end-of-text token, or when the context is full. An empty "
               "prompt starts a text from the model's end-of-text token. A prompt that begins with '-' "
               "goes after '--'. Ctrl-C while the model evaluates the prompt or writes stops it, "
               "prints the figures and exits 0.",
      .example = "understudy run -m gpt2-large/ -d draft.gguf -n 128 \"def fibonacci(n):\"",
  };
  int code;
  char *text;
  size_t length;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (strcmp(o.mode, "speculative") == 0 && !o.models.draft)
    return ust_cli_usage("run", "--mode speculative: found no draft, expected one with -d, --draft");
  if (o.explain && o.quiet) return ust_cli_usage("run", "--explain: found --quiet too, expected one of them");
  if (!ust_cli_text("run", argc, argv, optind, o.file, &text, &length, &code)) return code;
  ust_cli_set_quiet(o.quiet);
  ust_cli_note_sampling(&o.sampling);
  code = run(&o, text, length);
  ust_free(text);
  return code;
}
