/* understudy ngram: fits a trigram on text a draft model writes, a corpus, or both. The draft's own text tells
 * what the draft is likely to say next, which is what the n-gram is asked.
 *
 * Stopped, it fits what has been written so far, unless that would replace a file: an hour of text is not thrown away,
 * and the same command with that number of --tokens makes the same file. */
#include <unistd.h>

#include "cli/cli.h"
#include "ngram/ngram.h"
#include "train/scribe.h"

enum { PIECE_BYTES = 1 << 20, CORPUS_LIMIT = 1 << 30, TRIGRAM_TOKENS = 3 };

typedef struct ngram_options {
  ust_cli_models models;
  float temperature;
  uint64_t seed;
  const char *corpus, *output;
  int tokens, max_mb;
  bool quiet;
} ngram_options;

/* ---- text the draft writes ---- */

typedef struct reading {
  ust_ngram_fit *fit;
  int64_t tokens;
  uint64_t begin_ns;
} reading;

static understudy_status take_text(void *user, const int32_t *tokens, size_t count, understudy_error *err) {
  const reading *r = user;
  return ust_ngram_fit_add(r->fit, tokens, count, err);
}

static bool show_progress(void *user, int64_t written) {
  const reading *r = user;
  double seconds = ust_seconds_since(r->begin_ns);
  char text[64];
  snprintf(text, sizeof text, "writing text  %.0f tokens/s", (double)written / seconds);
  return ust_cli_progress(NULL, text, (uint64_t)written, (uint64_t)r->tokens);
}

/* How the draft is to write, or why it cannot. */
static understudy_status prepare(const ngram_options *o, const ust_weights *weights, const ust_tokenizer *tokenizer,
                                 reading *r, ust_scribe_options *options, understudy_error *err) {
  const ust_vocabulary *vocabulary = ust_tokenizer_vocabulary(tokenizer);
  *options = (ust_scribe_options){.weights = weights,
                                  .vocabulary = (int)vocabulary->count,
                                  .end_token = vocabulary->eos,
                                  .tokens = o->tokens,
                                  .temperature = o->temperature,
                                  .seed = o->seed,
                                  .take = take_text,
                                  .progress = show_progress,
                                  .user = r};
  if (options->end_token < 0)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                     "%s: found no end-of-text token, expected one to start texts from", o->models.model);
  return ust_cli_machine(&o->models, &options->kernels, &options->threads, err);
}

/* ---- a corpus ---- */

/* Documents end at a zero byte; a long one is taken in pieces that end at a line's end. n-grams do not cross either. */
static size_t piece_length(const char *text, size_t size) {
  size_t length = strnlen(text, UST_MIN(size, (size_t)PIECE_BYTES));
  if (length == size || text[length] == 0) return length;
  const char *newline = memrchr(text, '\n', length);
  return newline ? (size_t)(newline - text) + 1 : length;
}

static understudy_status add_piece(const char *text, size_t length, const ust_tokenizer *tokenizer, ust_ngram_fit *fit,
                                   understudy_error *err) {
  int32_t *tokens;
  size_t count;
  UST_TRY(ust_tokenizer_encode(tokenizer, text, length, false, &tokens, &count, err));
  understudy_status status = ust_ngram_fit_add(fit, tokens, count, err);
  ust_free(tokens);
  return status;
}

static understudy_status add_corpus(const char *path, const ust_tokenizer *tokenizer, ust_ngram_fit *fit,
                                    understudy_error *err) {
  char *text;
  size_t size;
  UST_TRY(ust_input_slurp(path, CORPUS_LIMIT, &text, &size, err));
  understudy_status status = UNDERSTUDY_OK;
  for (size_t from = 0; from < size && status == UNDERSTUDY_OK;) {
    size_t length = piece_length(text + from, size - from);
    if (ust_cli_progress(NULL, "reading the corpus", from, size))
      status = ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped");
    else
      status = add_piece(text + from, length, tokenizer, fit, err);
    from += length;
    if (from < size && text[from] == 0) from++;
  }
  ust_free(text);
  if (status == UNDERSTUDY_OK && ust_ngram_fit_tokens(fit) < TRIGRAM_TOKENS)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %llu tokens of text, expected at least %d", path,
                     (unsigned long long)ust_ngram_fit_tokens(fit), TRIGRAM_TOKENS);
  return status;
}

/* ---- the command ---- */

static understudy_status count_all(const ngram_options *o, const ust_weights *weights, const ust_tokenizer *tokenizer,
                                   ust_ngram_fit *fit, understudy_error *err) {
  int64_t written = 0, wanted = o->tokens;
  reading r = {.fit = fit, .tokens = wanted};
  ust_scribe_options how;
  if (wanted > 0) UST_TRY(prepare(o, weights, tokenizer, &r, &how, err)); /* before a corpus is counted for nothing */
  uint64_t begin_ns = ust_clock_ns();
  if (o->corpus) UST_TRY(add_corpus(o->corpus, tokenizer, fit, err));
  const uint64_t of_corpus = ust_ngram_fit_tokens(fit);
  uint64_t corpus_ns = r.begin_ns = ust_clock_ns();
  if (wanted > 0) UST_TRY(ust_scribe_write(&how, &written, err)); /* less than was wanted when the user stops it */
  uint64_t end_ns = ust_clock_ns();
  ust_cli_progress_clear();
  if (written < wanted && access(o->output, F_OK) == 0)
    return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped after %lld of %d tokens; %s is left as it was",
                     (long long)written, o->tokens, o->output);
  UST_TRY(ust_ngram_fit_write(fit, o->output, (size_t)o->max_mb * 1000000, err));
  const double fitting = ust_seconds_since(end_ns);
  if (written < wanted)
    return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped after %lld of %d tokens; %s is fitted on those",
                     (long long)written, o->tokens, o->output);
  const double counting = (double)(corpus_ns - begin_ns) * 1e-9, writing = (double)(end_ns - corpus_ns) * 1e-9;
  if (o->corpus)
    ust_cli_note("%s: %llu tokens of the corpus counted in %.1f s", o->output, (unsigned long long)of_corpus, counting);
  if (wanted > 0)
    ust_cli_note("%s: %lld tokens of text written in %.1f s, %.0f a second", o->output, (long long)written, writing,
                 (double)written / writing);
  ust_cli_note("%s: fitted in %.1f s", o->output, fitting);
  return UNDERSTUDY_OK;
}

static understudy_status fit_ngram(const ngram_options *o, understudy_error *err) {
  ust_weights *weights = NULL;
  ust_tokenizer *tokenizer = NULL;
  ust_ngram_fit *fit = NULL;
  UST_TRY(ust_cli_check_output(o->output, &o->models, o->corpus, err));
  understudy_status status = UNDERSTUDY_OK;
  if (o->tokens > 0) status = ust_weights_open(o->models.model, &weights, err);
  if (status == UNDERSTUDY_OK) status = ust_cli_tokenizer(o->models.model, weights, &tokenizer, err);
  if (status == UNDERSTUDY_OK)
    status = ust_ngram_fit_create((int)ust_tokenizer_vocabulary(tokenizer)->count, ust_tokenizer_fingerprint(tokenizer),
                                  &fit, err);
  if (status == UNDERSTUDY_OK) status = count_all(o, weights, tokenizer, fit, err);
  ust_cli_progress_clear();
  ust_ngram_fit_free(fit);
  ust_tokenizer_free(tokenizer);
  ust_weights_close(weights);
  return status;
}

int ust_cli_ngram(int argc, char **argv) {
  ngram_options o = {.temperature = 1.5f, .tokens = -1, .max_mb = 20};
  const ust_option options[] = {
      {UST_TEXT("model", 'm', &o.models.model, "DRAFT", "the draft model; with --corpus alone, its vocabulary"),
       .required = true},
      {UST_TEXT("output", 'o', &o.output, "FILE", "the n-gram file to write"), .required = true},
      UST_OPTIONS_TOKENS(&o.tokens, "tokens the draft writes [1000000; 0 with --corpus]", 0),
      {UST_TEXT("corpus", 0, &o.corpus, "FILE",
                "text to count instead of the draft's, or with --tokens besides it; a zero byte ends a document; '-': "
                "stdin")},
      {UST_REAL("temperature", &o.temperature, "T", "of the draft's text, at least 0.01 [1.5]", 0.01, 1e30),
       .expected = "a number from 0.01 to 1e30"},
      UST_OPTIONS_SEED(&o.seed),
      {UST_INT("max-mb", 0, &o.max_mb, "N", "prune the file to N MB; 0: no limit [20]", 0, 100000)},
      UST_OPTIONS_MACHINE(&o.models),
      UST_OPTIONS_QUIET(&o.quiet),
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "ngram",
      .usage = "ngram -m DRAFT [--tokens N] [--corpus FILE] -o FILE",
      .about = "Fits a Katz back-off trigram on text the draft writes, a corpus, or both; it drafts for the draft.",
      .notes = "The draft's texts start from its end-of-text token and are up to 256 tokens long. The same command "
               "writes the same file, whatever the number of threads. Stopped by Ctrl-C while the draft "
               "writes, it fits what there is so far, unless FILE exists. Memory: up to 30 MB for each million tokens.",
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
