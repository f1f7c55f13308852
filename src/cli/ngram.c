/* understudy ngram: fits a trigram on text a draft model writes, a corpus, or both. The draft's own text tells
 * what the draft is likely to say next, which is what the n-gram is asked. */
#include <stdlib.h>

#include "cli/cli.h"
#include "ngram/ngram.h"

enum { PIECE_BYTES = 1 << 20, CORPUS_LIMIT = 1 << 30, SEQUENCE_TOKENS = 512 };

typedef struct ngram_options {
  ust_cli_models models;
  understudy_sampling sampling;
  const char *corpus, *output;
  int tokens, max_mb;
  bool quiet;
} ngram_options;

/* ---- text the draft writes ---- */

typedef struct sequence {
  int32_t tokens[SEQUENCE_TOKENS];
  size_t count;
} sequence;

static bool keep(void *user, int32_t token, const char *bytes, size_t length, understudy_origin origin) {
  (void)bytes, (void)length, (void)origin;
  sequence *s = user;
  s->tokens[s->count++] = token;
  return s->count == SEQUENCE_TOKENS || ust_cli_stopped();
}

/* One sequence from the end-of-text token on. */
static understudy_status generate_text(understudy_session *session, const understudy_sampling *sampling, int32_t start,
                                       int most, sequence *s, understudy_error *err) {
  UST_TRY(understudy_session_reset(session, sampling, err));
  UST_TRY(understudy_session_prompt(session, &start, 1, NULL, NULL, err));
  s->tokens[0] = start;
  s->count = 1;
  return understudy_session_generate(session, most, keep, s, NULL, err);
}

static understudy_status count_generated(const ngram_options *o, ust_ngram_fit *fit, understudy_session *session,
                                         int32_t start, understudy_error *err) {
  understudy_sampling sampling = o->sampling;
  sequence s;
  for (int64_t done = 0; done < o->tokens; sampling.seed++) {
    if (ust_cli_progress(NULL, "writing text", (uint64_t)done, (uint64_t)o->tokens))
      return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped");
    int most = (int)UST_MIN((int64_t)SEQUENCE_TOKENS - 1, o->tokens - done);
    UST_TRY(generate_text(session, &sampling, start, most, &s, err));
    UST_TRY(ust_ngram_fit_add(fit, s.tokens, s.count, err));
    done += (int64_t)UST_MAX(s.count - 1, 1u); /* an empty text counts, so that the loop ends */
  }
  return UNDERSTUDY_OK;
}

static understudy_status add_generated(const ngram_options *o, ust_ngram_fit *fit, understudy_error *err) {
  understudy_engine *engine;
  understudy_session *session = NULL;
  understudy_engine_info info;
  ust_cli_models models = o->models;
  UST_TRY(ust_cli_open(&models, &engine, err));
  understudy_engine_get_info(engine, &info);
  understudy_status status =
      info.end_token >= 0
          ? understudy_session_create(engine, UNDERSTUDY_PLAIN, &o->sampling, &session, err)
          : ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                      "%s: found no end-of-text token, expected one to start texts from", o->models.model);
  if (status == UNDERSTUDY_OK) status = count_generated(o, fit, session, info.end_token, err);
  understudy_session_close(session);
  understudy_engine_close(engine);
  return status;
}

/* ---- a corpus ---- */

/* One document, in pieces that end at a line's end; n-grams do not cross pieces. */
static understudy_status add_document(const char *text, size_t size, const ust_tokenizer *tokenizer, ust_ngram_fit *fit,
                                      understudy_error *err) {
  for (size_t from = 0, length; from < size; from += length) {
    length = UST_MIN(size - from, (size_t)PIECE_BYTES);
    const char *newline = from + length < size ? memrchr(text + from, '\n', length) : NULL;
    if (newline) length = (size_t)(newline - (text + from)) + 1;
    int32_t *tokens;
    size_t count;
    UST_TRY(ust_tokenizer_encode(tokenizer, text + from, length, false, &tokens, &count, err));
    understudy_status status = ust_ngram_fit_add(fit, tokens, count, err);
    ust_free(tokens);
    UST_TRY(status);
  }
  return UNDERSTUDY_OK;
}

static understudy_status add_corpus(const char *path, const ust_tokenizer *tokenizer, ust_ngram_fit *fit,
                                    understudy_error *err) {
  char *text;
  size_t size;
  UST_TRY(ust_file_slurp(path, CORPUS_LIMIT, &text, &size, err));
  understudy_status status = UNDERSTUDY_OK;
  for (size_t from = 0; from < size && status == UNDERSTUDY_OK;) {
    size_t length = strlen(text + from); /* a zero byte ends each document, and the last one too */
    if (ust_cli_progress(NULL, "reading the corpus", from, size))
      status = ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped");
    else
      status = add_document(text + from, length, tokenizer, fit, err);
    from += length + 1;
  }
  ust_free(text);
  return status;
}

/* ---- the command ---- */

static understudy_status fit_ngram(const ngram_options *o, understudy_error *err) {
  ust_tokenizer *tokenizer = NULL;
  ust_ngram_fit *fit = NULL;
  UST_TRY(ust_cli_check_output(o->output, err));
  UST_TRY(ust_cli_tokenizer(o->models.model, NULL, &tokenizer, err));
  understudy_status status = ust_ngram_fit_create((int)ust_tokenizer_vocabulary(tokenizer)->count,
                                                  ust_tokenizer_fingerprint(tokenizer), &fit, err);
  if (status == UNDERSTUDY_OK && o->corpus) status = add_corpus(o->corpus, tokenizer, fit, err);
  if (status == UNDERSTUDY_OK && o->tokens > 0) status = add_generated(o, fit, err);
  ust_cli_progress_clear();
  if (status == UNDERSTUDY_OK) status = ust_ngram_fit_write(fit, o->output, (size_t)o->max_mb * 1000000, err);
  ust_ngram_fit_free(fit);
  ust_tokenizer_free(tokenizer);
  return status;
}

int ust_cli_ngram(int argc, char **argv) {
  ngram_options o = {.sampling = {.temperature = 1.5f, .top_p = 1}, .tokens = -1, .max_mb = 4};
  const ust_option options[] = {
      {UST_TEXT("model", 'm', &o.models.model, "DRAFT", "the draft model; with --corpus alone, its vocabulary"),
       .required = true},
      {UST_TEXT("output", 'o', &o.output, "FILE", "the n-gram file to write"), .required = true},
      UST_OPTIONS_TOKENS(&o.tokens, "tokens the draft writes [1000000; 0 with --corpus]"),
      {UST_TEXT("corpus", 0, &o.corpus, "FILE", "text to count; zero bytes separate its documents")},
      {UST_REAL("temperature", &o.sampling.temperature, "T", "of the draft's text [1.5]", 0, 1e30),
       .expected = "a finite number, 0 or more"},
      UST_OPTIONS_SEED(&o.sampling.seed),
      {UST_INT("max-mb", 0, &o.max_mb, "N", "prune the file to N MB; 0: no limit [4]", 0, 100000)},
      UST_OPTIONS_MACHINE(&o.models),
      UST_OPTIONS_QUIET(&o.quiet),
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "ngram",
      .usage = "ngram -m DRAFT [--tokens N] [--corpus FILE] -o FILE",
      .about = "Fits a Katz back-off trigram on text the draft writes, a corpus, or both; it drafts for the draft.",
      .example = "understudy ngram -m draft.gguf --tokens 5000000 -o draft.ngram",
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (!ust_cli_no_more("ngram", argc, argv, optind, &code)) return code;
  if (o.tokens < 0) o.tokens = o.corpus ? 0 : 1000000;
  if (o.tokens == 0 && !o.corpus) return ust_cli_usage("ngram", "--tokens: found 0, expected more, or a --corpus");
  ust_cli_set_quiet(o.quiet);
  ust_cli_catch_signals();
  understudy_error err = {0};
  return fit_ngram(&o, &err) == UNDERSTUDY_OK ? UST_EXIT_OK : ust_cli_fail(&err);
}
