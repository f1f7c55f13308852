/* understudy eval: how well a model predicts a text. The end-of-text token is put in front, so that the text's
 * first token is predicted too and bits per byte count every byte. */
#include <math.h>

#include "cli/cli.h"

typedef struct eval_options {
  ust_cli_models models;
  const char *file, *json;
  bool quiet;
} eval_options;

typedef struct scored {
  size_t tokens, bytes;
  float *logprobs; /* [tokens] */
  double nll;      /* nats */
} scored;

static understudy_status score_tokens(const understudy_engine *engine, int32_t *tokens, size_t count, scored *out,
                                      understudy_error *err) {
  out->tokens = count - 1;
  out->logprobs = ust_alloc(out->tokens * sizeof *out->logprobs);
  if (!out->logprobs) return ust_error_memory(err, out->tokens * sizeof *out->logprobs, "log-probabilities");
  understudy_session *session;
  UST_TRY(understudy_session_create(engine, UNDERSTUDY_PLAIN, NULL, &session, err));
  understudy_status status =
      understudy_session_score(session, tokens, count, out->logprobs, ust_cli_progress, NULL, err);
  understudy_session_close(session);
  ust_cli_progress_clear();
  for (size_t i = 0; i < out->tokens && status == UNDERSTUDY_OK; i++) out->nll -= (double)out->logprobs[i];
  return status;
}

static understudy_status score_text(const understudy_engine *engine, const char *text, size_t length, scored *out,
                                    understudy_error *err) {
  understudy_engine_info info;
  understudy_engine_get_info(engine, &info);
  int32_t *tokens = NULL;
  size_t count = 0;
  UST_TRY(understudy_tokenize(engine, text, length, false, &tokens, &count, err));
  bool start = info.end_token >= 0;
  int32_t *all = ust_alloc((count + 1) * sizeof *all);
  understudy_status status = UNDERSTUDY_OK;
  if (!all) {
    status = ust_error_memory(err, (count + 1) * sizeof *all, "tokens");
  } else if (count + (start ? 1 : 0) < 2) {
    status = ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "the text has %zu tokens, expected at least %d", count,
                       start ? 1 : 2);
  } else {
    all[0] = info.end_token;
    memcpy(all + (start ? 1 : 0), tokens, count * sizeof *all);
    out->bytes = length;
    if (!start) { /* nothing predicts the first token: its bytes do not count */
      size_t first = 0;
      understudy_token_bytes(engine, tokens[0], &first);
      out->bytes -= first;
    }
    status = score_tokens(engine, all, count + (start ? 1 : 0), out, err);
  }
  ust_free(all);
  understudy_free(tokens);
  return status;
}

static double perplexity(const scored *s) {
  return exp(s->nll / (double)s->tokens);
}
static double bits_per_byte(const scored *s) {
  return s->nll / log(2) / (double)s->bytes;
}

/* A model whose sums overflow gives no score. */
static understudy_status check_finite(const eval_options *o, const scored *s, understudy_error *err) {
  for (size_t i = 0; i < s->tokens; i++)
    if (!isfinite(s->logprobs[i]))
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: log-probability of token %zu: found %g, expected a finite number", o->models.model, i,
                       (double)s->logprobs[i]);
  if (!isfinite(perplexity(s)))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: perplexity: found %g nats a token, expected at most 700",
                     o->models.model, s->nll / (double)s->tokens);
  return UNDERSTUDY_OK;
}

static understudy_status write_scores(const eval_options *o, const scored *s, understudy_error *err) {
  json_t *logprobs = json_array();
  for (size_t i = 0; i < s->tokens; i++) json_array_append_new(logprobs, json_real((double)s->logprobs[i]));
  return ust_cli_write_json(o->json,
                            json_pack("{s:o, s:I, s:I, s:f, s:f, s:f, s:o}", "model",
                                      ust_cli_json_text(o->models.model, strlen(o->models.model)), "tokens",
                                      (json_int_t)s->tokens, "bytes", (json_int_t)s->bytes, "nll_nats", s->nll,
                                      "perplexity", perplexity(s), "bits_per_byte", bits_per_byte(s), "logprobs",
                                      logprobs),
                            err);
}

static int evaluate(const eval_options *o, const char *text, size_t length) {
  understudy_error err = {0};
  understudy_engine *engine = NULL;
  scored s = {0};
  ust_cli_catch_signals();
  understudy_status status = ust_cli_check_output(o->json, &o->models, o->file, &err);
  if (status == UNDERSTUDY_OK) status = ust_cli_open(&o->models, &engine, &err);
  if (status == UNDERSTUDY_OK) status = score_text(engine, text, length, &s, &err);
  if (status == UNDERSTUDY_OK) status = check_finite(o, &s, &err);
  if (status == UNDERSTUDY_OK)
    printf(
        "tokens          %zu\nbytes           %zu\nnats in all     %.4f\nperplexity      %.4f\nbits per byte   %.4f\n",
        s.tokens, s.bytes, s.nll, perplexity(&s), bits_per_byte(&s));
  if (status == UNDERSTUDY_OK && o->json) status = write_scores(o, &s, &err);
  ust_free(s.logprobs);
  understudy_engine_close(engine);
  return status == UNDERSTUDY_OK ? UST_EXIT_OK : ust_cli_fail(&err);
}

int ust_cli_eval(int argc, char **argv) {
  eval_options o = {0};
  const ust_option options[] = {
      UST_OPTIONS_MODEL(&o.models),
      {UST_TEXT("file", 'f', &o.file, "FILE", "the text ('-': standard input)")},
      UST_OPTIONS_CONTEXT(&o.models, "tokens of a window [the model's whole context]"),
      UST_OPTIONS_MACHINE(&o.models),
      {UST_TEXT("json", 0, &o.json, "FILE", "write the figures and each token's log-probability")},
      UST_OPTIONS_QUIET(&o.quiet),
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "eval",
      .usage = "eval -m TARGET [options] [TEXT | -f FILE | < FILE]",
      .about = "Perplexity and bits per byte of a text under a model.",
      .notes = "The text is taken to follow the model's end-of-text token, so its first token counts too. "
               "Longer texts than the context are read in windows.",
      .example = "understudy eval -m gpt2-large/ -f held-out.txt --json scores.json",
  };
  int code;
  char *text;
  size_t length;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (!ust_cli_text("eval", argc, argv, optind, o.file, &text, &length, &code)) return code;
  ust_cli_set_quiet(o.quiet);
  code = evaluate(&o, text, length);
  ust_free(text);
  return code;
}
