/* The public functions, and the one place where rooms are wired together: an engine is two models, a tokenizer
 * and an n-gram file; a session is a decoder. */
#include <stdlib.h>

#include "base/details.h"
#include "kernel/kernel.h"
#include "model/model.h"
#include "ngram/ngram.h"
#include "sample/sample.h"
#include "speculate/decode.h"
#include "tokenizer/tokenizer.h"
#include "weights/weights.h"

struct understudy_engine {
  const ust_kernels *kernels;
  int threads, context;
  ust_model *target, *draft;
  ust_tokenizer *tokenizer;
  ust_ngram *ngram;
  char architecture[32];
  char *cache; /* NULL: none */
};

struct understudy_session {
  const understudy_engine *engine;
  ust_decoder *decoder;
  ust_step_fn step; /* told of every step; NULL: nobody */
  void *step_user;
  bool busy; /* with a call that may be calling back */
};

const char *understudy_version(void) {
  return UNDERSTUDY_VERSION;
}
const char *understudy_best_isa(void) {
  return ust_isa_name(ust_kernels_best());
}
void understudy_free(void *memory) {
  ust_free(memory);
}

static void clear(understudy_error *err) {
  if (err) *err = (understudy_error){0};
}

/* A public function's argument that must not be NULL. */
#define REQUIRE(err, pointer, name)                                                                                    \
  do {                                                                                                                 \
    if (!(pointer)) return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, name ": found NULL, expected a pointer");         \
  } while (0)

/* A session in the middle of a call can do nothing else. */
#define REQUIRE_IDLE(err, session)                                                                                     \
  do {                                                                                                                 \
    if ((session)->busy)                                                                                               \
      return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "session: found a call from its own callback, expected none");  \
  } while (0)

/* ---- engine ---- */

/* The tokenizer a model brings: a directory's files or GGUF's metadata. */
static understudy_status open_tokenizer(const ust_weights *weights, ust_tokenizer **tokenizer, understudy_error *err) {
  const char *path = ust_weights_path(weights);
  const ust_config *config = ust_weights_config(weights);
  if (ust_weights_is_directory(weights))
    return ust_tokenizer_load_for(path, config->vocabulary, config->bos, config->eos, tokenizer, err);
  ust_vocabulary vocabulary;
  UST_TRY(ust_weights_vocabulary(weights, &vocabulary, err));
  return ust_tokenizer_create(&vocabulary, path, tokenizer, err);
}

/* A model's files, opened and checked; its weights are read last. */
typedef struct opened {
  ust_weights *weights;
  ust_tokenizer *tokenizer;
} opened;

static void close_files(opened *files) {
  ust_weights_close(files->weights);
  ust_tokenizer_free(files->tokenizer);
}

/* Opens a model and its tokenizer; the vocabularies of both must agree. */
static understudy_status open_files(const char *path, opened *files, understudy_error *err) {
  UST_TRY(ust_weights_open(path, &files->weights, err));
  UST_TRY(open_tokenizer(files->weights, &files->tokenizer, err));
  const size_t found = ust_tokenizer_vocabulary(files->tokenizer)->count;
  const int most = ust_weights_config(files->weights)->vocabulary;
  if (found <= (size_t)most) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: the tokenizer has %zu tokens, expected at most the model's %d",
                   path, found, most);
}

static understudy_status check_draft(const understudy_engine_options *options, const opened *target,
                                     const opened *draft, understudy_error *err) {
  if (ust_tokenizer_fingerprint(draft->tokenizer) == ust_tokenizer_fingerprint(target->tokenizer) &&
      ust_weights_config(draft->weights)->vocabulary == ust_weights_config(target->weights)->vocabulary)
    return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: the draft's vocabulary differs, expected that of %s",
                   options->draft, options->target);
}

static understudy_status open_model(const understudy_engine_options *options, const understudy_engine *engine,
                                    const opened *files, ust_model **model, understudy_error *err) {
  return ust_model_open(files->weights, engine->kernels, engine->threads, options->progress, options->user, model, err);
}

/* What can be refused is refused before weights are read. */
static understudy_status open_all(const understudy_engine_options *options, understudy_engine *engine, opened *target,
                                  opened *draft, understudy_error *err) {
  if (!options->target)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "target: found none, expected a model file or directory");
  if (options->threads < 0 || options->threads > 1024)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "threads: found %d, expected 0 to 1024", options->threads);
  UST_TRY(ust_kernels_choose(options->isa, &engine->kernels, err));
  engine->threads = options->threads ? options->threads : ust_thread_count();
  UST_TRY(open_files(options->target, target, err));
  const ust_config *config = ust_weights_config(target->weights);
  engine->context = options->context ? options->context : config->context;
  if (engine->context < 1 || engine->context > config->context)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "context: found %d, expected 1 to the model's %d",
                     options->context, config->context);
  snprintf(engine->architecture, sizeof engine->architecture, "%s", config->architecture);
  if (options->draft) UST_TRY(open_files(options->draft, draft, err));
  if (options->draft) UST_TRY(check_draft(options, target, draft, err));
  if (options->ngram)
    UST_TRY(ust_ngram_open(options->ngram, (int)ust_tokenizer_vocabulary(target->tokenizer)->count,
                           ust_tokenizer_fingerprint(target->tokenizer), &engine->ngram, err));
  if (options->cache && !(engine->cache = strdup(options->cache)))
    return ust_error_memory(err, strlen(options->cache), "a path");
  UST_TRY(open_model(options, engine, target, &engine->target, err));
  return options->draft ? open_model(options, engine, draft, &engine->draft, err) : UNDERSTUDY_OK;
}

understudy_status understudy_engine_open(const understudy_engine_options *options, understudy_engine **engine,
                                         understudy_error *err) {
  clear(err);
  REQUIRE(err, engine, "engine");
  *engine = NULL;
  REQUIRE(err, options, "options");
  understudy_engine *e = ust_alloc(sizeof *e);
  if (!e) return ust_error_memory(err, sizeof *e, "an engine");
  opened target = {0}, draft = {0};
  understudy_status status = open_all(options, e, &target, &draft, err);
  e->tokenizer = target.tokenizer;
  target.tokenizer = NULL;
  close_files(&target);
  close_files(&draft);
  if (status != UNDERSTUDY_OK) {
    understudy_engine_close(e);
    return status;
  }
  *engine = e;
  return UNDERSTUDY_OK;
}

void understudy_engine_close(understudy_engine *e) {
  if (!e) return;
  ust_model_close(e->target);
  ust_model_close(e->draft);
  ust_tokenizer_free(e->tokenizer);
  ust_ngram_close(e->ngram);
  free(e->cache);
  ust_free(e);
}

void understudy_engine_get_info(const understudy_engine *e, understudy_engine_info *info) {
  if (!info) return;
  if (!e) {
    *info = (understudy_engine_info){.end_token = -1};
    return;
  }
  *info = (understudy_engine_info){
      .isa = e->kernels->name,
      .threads = e->threads,
      .context = e->context,
      .vocabulary = ust_model_config(e->target)->vocabulary,
      .end_token = ust_tokenizer_vocabulary(e->tokenizer)->eos,
      .architecture = e->architecture,
      .parameters = ust_model_parameters(e->target),
      .weight_bytes = ust_model_weight_bytes(e->target),
      .draft_parameters = e->draft ? ust_model_parameters(e->draft) : 0,
      .draft_weight_bytes = e->draft ? ust_model_weight_bytes(e->draft) : 0,
      .has_draft = e->draft != NULL,
      .has_ngram = e->ngram != NULL,
  };
}

/* ---- text and tokens ---- */

understudy_status understudy_tokenize(const understudy_engine *e, const char *text, size_t length, bool special,
                                      int32_t **tokens, size_t *count, understudy_error *err) {
  clear(err);
  REQUIRE(err, tokens, "tokens");
  REQUIRE(err, count, "count");
  *tokens = NULL;
  *count = 0;
  REQUIRE(err, e, "engine");
  if (length) REQUIRE(err, text, "text");
  return ust_tokenizer_encode(e->tokenizer, text ? text : "", length, special, tokens, count, err);
}

const char *understudy_token_bytes(const understudy_engine *e, int32_t token, size_t *length) {
  size_t unwanted;
  return e ? ust_tokenizer_bytes(e->tokenizer, token, length ? length : &unwanted) : NULL;
}

/* ---- session ---- */

/* A structure of zeros is greedy, too. */
static understudy_sampling without_gaps(understudy_sampling sampling) {
  if (sampling.top_p == 0) sampling.top_p = 1;
  if (sampling.repetition_penalty == 0) sampling.repetition_penalty = 1;
  return sampling;
}

/* All the engine has, drafting for the target. */
static ust_decoder_options staged(const understudy_engine *e) {
  return (ust_decoder_options){
      .target = e->target,
      .draft = e->draft,
      .ngram = e->ngram,
      .text = true,
      .context = e->context,
      .end_token = ust_tokenizer_vocabulary(e->tokenizer)->eos,
      .isa = e->kernels->name,
      .cache = e->cache,
  };
}

static understudy_status create_session(const understudy_engine *e, ust_decoder_options *options,
                                        const understudy_sampling *sampling, understudy_session **session,
                                        understudy_error *err) {
  options->sampling = without_gaps(sampling ? *sampling : (understudy_sampling){0});
  UST_TRY(ust_sampling_check(&options->sampling, err));
  understudy_session *s = ust_alloc(sizeof *s);
  if (!s) return ust_error_memory(err, sizeof *s, "a session");
  s->engine = e;
  understudy_status status = ust_decoder_create(options, &s->decoder, err);
  if (status != UNDERSTUDY_OK) {
    ust_free(s);
    return status;
  }
  *session = s;
  return UNDERSTUDY_OK;
}

understudy_status understudy_session_create(const understudy_engine *e, understudy_mode mode,
                                            const understudy_sampling *sampling, understudy_session **session,
                                            understudy_error *err) {
  clear(err);
  REQUIRE(err, session, "session");
  *session = NULL;
  REQUIRE(err, e, "engine");
  if (mode != UNDERSTUDY_PLAIN && mode != UNDERSTUDY_SPECULATIVE && mode != UNDERSTUDY_STAGED)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "mode: found %d, expected plain, speculative or staged",
                     (int)mode);
  if (mode == UNDERSTUDY_SPECULATIVE && !e->draft)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "mode: speculative needs a draft model, found none");
  ust_decoder_options options = staged(e);
  if (mode == UNDERSTUDY_PLAIN) options.draft = NULL;
  if (mode != UNDERSTUDY_STAGED) {
    options.ngram = NULL;
    options.text = false;
  }
  return create_session(e, &options, sampling, session, err);
}

understudy_status ust_session_create_variant(const understudy_engine *e, ust_variant variant,
                                             const understudy_sampling *sampling, understudy_session **session,
                                             understudy_error *err) {
  clear(err);
  ust_decoder_options options = staged(e);
  switch (variant) {
  case UST_VARIANT_CHAIN:
    options.shape = (ust_shape){.length = 4};
    break;
  case UST_VARIANT_TREE:
    options.shape = (ust_shape){.length = 4, .turns = 1};
    break;
  case UST_VARIANT_NO_CONTEXT:
    options.text = false;
    break;
  case UST_VARIANT_INDEPENDENT:
    options.noise = UST_NOISE_OTHER;
    break;
  case UST_VARIANT_LIKELIEST:
    options.noise = UST_NOISE_NONE;
    break;
  case UST_VARIANT_CONTEXT:
    options.draft = NULL;
    options.ngram = NULL;
    break;
  default:
    break;
  }
  return create_session(e, &options, sampling, session, err);
}

void understudy_session_close(understudy_session *s) {
  if (!s || s->busy) return;
  ust_decoder_free(s->decoder);
  ust_free(s);
}

understudy_status understudy_session_reset(understudy_session *s, const understudy_sampling *sampling,
                                           understudy_error *err) {
  clear(err);
  REQUIRE(err, s, "session");
  REQUIRE_IDLE(err, s);
  understudy_sampling whole = without_gaps(sampling ? *sampling : (understudy_sampling){0});
  UST_TRY(ust_sampling_check(&whole, err));
  ust_decoder_reset(s->decoder, sampling ? &whole : NULL);
  return UNDERSTUDY_OK;
}

/* Every id inside the vocabulary? */
static understudy_status check_tokens(const understudy_session *s, const int32_t *tokens, size_t count,
                                      understudy_error *err) {
  int vocabulary = ust_model_config(s->engine->target)->vocabulary;
  for (size_t i = 0; i < count; i++)
    if (tokens[i] < 0 || tokens[i] >= vocabulary)
      return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "token %zu: found id %d, expected 0 to %d", i, tokens[i],
                       vocabulary - 1);
  return UNDERSTUDY_OK;
}

size_t understudy_session_length(const understudy_session *s) {
  return s ? (size_t)ust_decoder_count(s->decoder) : 0;
}

understudy_status understudy_session_prompt(understudy_session *s, const int32_t *tokens, size_t count,
                                            understudy_progress_fn progress, void *user, understudy_error *err) {
  clear(err);
  REQUIRE(err, s, "session");
  REQUIRE_IDLE(err, s);
  if (count) REQUIRE(err, tokens, "tokens");
  size_t held = (size_t)ust_decoder_count(s->decoder), context = (size_t)s->engine->context;
  if (count > context && held == 0)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "prompt: %zu tokens, expected at most the context's %zu", count,
                     context);
  if (count > context - held)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT,
                     "prompt: %zu tokens, expected at most %zu (context %zu, %zu in use)", count, context - held,
                     context, held);
  UST_TRY(check_tokens(s, tokens, count, err));
  s->busy = true;
  understudy_status status = ust_decoder_prompt(s->decoder, tokens, (int)count, progress, user, err);
  s->busy = false;
  return status;
}

/* The caller's token callback and what it needs. */
typedef struct listener {
  const ust_tokenizer *tokenizer;
  understudy_token_fn token;
  void *user;
} listener;

static bool emit(void *user, int32_t token, understudy_origin origin) {
  const listener *l = user;
  size_t length = 0;
  const char *bytes = ust_tokenizer_bytes(l->tokenizer, token, &length);
  return l->token && l->token(l->user, token, bytes ? bytes : "", length, origin);
}

understudy_status understudy_session_generate(understudy_session *s, int max_tokens, understudy_token_fn token,
                                              void *user, int *generated, understudy_error *err) {
  clear(err);
  int count = 0;
  if (generated) *generated = 0;
  REQUIRE(err, s, "session");
  REQUIRE_IDLE(err, s);
  if (max_tokens < 0)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "max_tokens: found %d, expected 0 or more", max_tokens);
  if (ust_decoder_count(s->decoder) == 0)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "generate: the text is empty, expected at least one prompt token");
  listener to = {s->engine->tokenizer, token, user};
  s->busy = true;
  for (bool end = ust_decoder_count(s->decoder) == s->engine->context; !end && count < max_tokens;) {
    ust_step step = ust_decoder_step(s->decoder, max_tokens - count, emit, &to);
    count += step.count;
    end = step.end;
    if (s->step) s->step(s->step_user, ust_decoder_report(s->decoder));
  }
  s->busy = false;
  if (generated) *generated = count;
  return UNDERSTUDY_OK;
}

void understudy_session_get_stats(const understudy_session *s, understudy_stats *stats) {
  if (stats) *stats = (understudy_stats){0};
  if (s && stats) ust_decoder_stats(s->decoder, stats);
}
const ust_details *ust_session_details(const understudy_session *s) {
  return ust_decoder_details(s->decoder);
}
void ust_session_watch(understudy_session *s, ust_step_fn step, void *user) {
  s->step = step;
  s->step_user = user;
}
void understudy_session_reset_stats(understudy_session *s) {
  if (s && !s->busy) ust_decoder_reset_stats(s->decoder);
}

understudy_status understudy_session_score(understudy_session *s, const int32_t *tokens, size_t count, float *logprobs,
                                           understudy_progress_fn progress, void *user, understudy_error *err) {
  clear(err);
  REQUIRE(err, s, "session");
  REQUIRE_IDLE(err, s);
  if (count) REQUIRE(err, tokens, "tokens");
  if (count > 1) REQUIRE(err, logprobs, "logprobs");
  UST_TRY(check_tokens(s, tokens, count, err));
  s->busy = true;
  understudy_status status = ust_decoder_score(s->decoder, tokens, count, logprobs, progress, user, err);
  s->busy = false;
  return status;
}
