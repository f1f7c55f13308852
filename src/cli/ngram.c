/* understudy ngram: fits a trigram on text a draft model writes, a corpus, or both. The draft's own text tells
 * what the draft is likely to say next, which is what the n-gram is asked.
 *
 * Text number i is the draft's text of seed `seed` + i. Texts are written a round at a time, each by one thread,
 * and counted in their order: the file does not depend on how many threads there are or which was first. */
#include <omp.h>

#include "cli/cli.h"
#include "ngram/ngram.h"

enum { PIECE_BYTES = 1 << 20, CORPUS_LIMIT = 1 << 30, SEQUENCE_TOKENS = 512, ROUND = 128 };

typedef struct ngram_options {
  ust_cli_models models;
  understudy_sampling sampling;
  const char *corpus, *output;
  int tokens, max_mb;
  bool quiet;
} ngram_options;

/* ---- text the draft writes ---- */

typedef struct sequence {
  int32_t tokens[SEQUENCE_TOKENS]; /* the end-of-text token, then what follows it */
  size_t count;
} sequence;

typedef struct scribe {
  const ngram_options *options;
  const understudy_engine *engine;
  understudy_engine_info info;
  int threads, longest;         /* longest: tokens of a sequence at most, its first one included */
  understudy_session **sessions; /* [threads] */
  sequence *round;              /* [ROUND] */
  uint64_t begin_ns;
  int64_t written; /* tokens, by all threads */
} scribe;

typedef struct writing {
  scribe *scribe;
  sequence *sequence;
} writing;

static bool show_progress(const scribe *s, int64_t written) {
  double seconds = (double)(ust_clock_ns() - s->begin_ns) * 1e-9, rate = (double)written / seconds;
  int left = rate > 0 ? (int)UST_MIN((double)(s->options->tokens - written) / rate, 3e8) : 0;
  char text[96];
  snprintf(text, sizeof text, "writing text  %.0f tokens/s  %d:%02d:%02d left", rate, left / 3600, left / 60 % 60,
           left % 60);
  return ust_cli_progress(NULL, text, (uint64_t)written, (uint64_t)s->options->tokens);
}

static bool keep(void *user, int32_t token, const char *bytes, size_t length, understudy_origin origin) {
  (void)bytes, (void)length, (void)origin;
  const writing *w = user;
  w->sequence->tokens[w->sequence->count++] = token;
  int64_t written;
#pragma omp atomic capture
  written = ++w->scribe->written;
  if (omp_get_thread_num() == 0) show_progress(w->scribe, UST_MIN(written, (int64_t)w->scribe->options->tokens));
  return ust_cli_stopped();
}

static understudy_status write_sequence(scribe *s, understudy_session *session, uint64_t index, sequence *out,
                                        understudy_error *err) {
  understudy_sampling sampling = s->options->sampling;
  sampling.seed += index;
  writing w = {s, out};
  out->tokens[0] = s->info.end_token;
  out->count = 1;
  UST_TRY(understudy_session_reset(session, &sampling, err));
  UST_TRY(understudy_session_prompt(session, out->tokens, 1, NULL, NULL, err));
  UST_TRY(understudy_session_generate(session, s->longest - 1, keep, &w, NULL, err));
  return ust_cli_stopped() ? ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped") : UNDERSTUDY_OK;
}

/* Sequences [first, first+count) into s->round. */
static understudy_status write_round(scribe *s, uint64_t first, int count, understudy_error *err) {
  understudy_status status = UNDERSTUDY_OK;
#pragma omp parallel for schedule(dynamic) num_threads(s->threads)
  for (int i = 0; i < count; i++) {
    understudy_error inner;
    understudy_status mine = UNDERSTUDY_ERROR_CANCELLED;
    if (!ust_cli_stopped())
      mine = write_sequence(s, s->sessions[omp_get_thread_num()], first + (uint64_t)i, &s->round[i], &inner);
    else
      ust_error(&inner, mine, "stopped");
    if (mine == UNDERSTUDY_OK) continue;
#pragma omp critical(ust_cli_ngram)
    {
      status = mine;
      *err = inner;
    }
  }
  return status;
}

/* A round never holds more sequences than are needed even if all are of full length. */
static understudy_status count_sequences(scribe *s, ust_ngram_fit *fit, understudy_error *err) {
  int64_t counted = 0, wanted = s->options->tokens;
  for (uint64_t first = 0; counted < wanted;) {
    int64_t needed = (wanted - counted + s->longest - 2) / (s->longest - 1);
    int count = (int)UST_MIN(needed, (int64_t)ROUND);
    s->written = counted;
    UST_TRY(write_round(s, first, count, err));
    for (int i = 0; i < count; i++) {
      size_t room = (size_t)(wanted - counted) + 1, tokens = UST_MIN(s->round[i].count, room);
      UST_TRY(ust_ngram_fit_add(fit, s->round[i].tokens, tokens, err));
      counted += (int64_t)UST_MAX(tokens - 1, 1u); /* an empty text counts, so that the loop ends */
    }
    first += (uint64_t)count;
  }
  return UNDERSTUDY_OK;
}

static understudy_status create_sessions(scribe *s, understudy_error *err) {
  s->round = ust_alloc(ROUND * sizeof *s->round);
  s->sessions = ust_alloc((size_t)s->threads * sizeof(understudy_session *));
  if (!s->round || !s->sessions) return ust_error_memory(err, ROUND * sizeof *s->round, "texts");
  for (int i = 0; i < s->threads; i++)
    UST_TRY(understudy_session_create(s->engine, UNDERSTUDY_PLAIN, &s->options->sampling, &s->sessions[i], err));
  return UNDERSTUDY_OK;
}

static understudy_status add_generated(const ngram_options *o, ust_ngram_fit *fit, understudy_error *err) {
  ust_cli_models models = o->models;
  models.threads = 1; /* a session each, instead of all threads in one */
  understudy_engine *engine;
  UST_TRY(ust_cli_open(&models, &engine, err));
  scribe s = {.options = o, .engine = engine, .begin_ns = ust_clock_ns()};
  understudy_engine_get_info(engine, &s.info);
  s.threads = o->models.threads ? o->models.threads : ust_thread_count();
  s.longest = UST_MIN(s.info.context, SEQUENCE_TOKENS);
  understudy_status status = UNDERSTUDY_OK;
  if (s.info.end_token < 0)
    status = ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                       "%s: found no end-of-text token, expected one to start texts from", models.model);
  else if (s.longest < 2)
    status = ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: found a context of 1, expected at least 2", models.model);
  if (status == UNDERSTUDY_OK) status = create_sessions(&s, err);
  if (status == UNDERSTUDY_OK) status = count_sequences(&s, fit, err);
  for (int i = 0; s.sessions && i < s.threads; i++) understudy_session_close(s.sessions[i]);
  ust_free(s.sessions);
  ust_free(s.round);
  understudy_engine_close(engine);
  return status;
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
      {UST_TEXT("corpus", 0, &o.corpus, "FILE", "text to count instead of the draft's, or with --tokens\nbesides it; a zero byte ends a document; '-': stdin")},
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
      .notes = "The draft's texts start from its end-of-text token and are up to 512 tokens long. The same command\n"
               "writes the same file, whatever the number of threads.",
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
