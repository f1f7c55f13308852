/* understudy: a large language model's answer, several times sooner and never a byte different.
 *
 * The public API of libunderstudy. Two opaque objects:
 *   engine   opened models, packed weights, tokenizer: immutable after opening, shared between threads;
 *   session  one timeline of text: KV cache, token tree, statistics: used by one thread at a time, and not by the
 *            callbacks it calls: these may ask its length and statistics, nothing else.
 *
 * Every function that can fail returns an understudy_status and takes, last, an understudy_error owned by the
 * caller (NULL allowed) that receives one line saying what was found and what was expected. NULL where an object or a
 * place for a result is required is UNDERSTUDY_ERROR_ARGUMENT, and on failure objects to be created are NULL. The
 * library never exits, aborts, prints or reads the environment; its OpenMP runtime does end the process when threads
 * cannot be started. Calls need 256 kB of stack and the default floating-point environment (rounding to nearest, no
 * traps). A child made by fork() must not call the library: OpenMP's threads are not in it, and it would wait for
 * them. */
#ifndef UNDERSTUDY_H
#define UNDERSTUDY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define UNDERSTUDY_API __attribute__((visibility("default")))
#else
#define UNDERSTUDY_API
#endif

typedef enum understudy_status {
  UNDERSTUDY_OK = 0,
  UNDERSTUDY_ERROR_ARGUMENT,    /* a value the caller gave is out of range or does not fit */
  UNDERSTUDY_ERROR_IO,          /* a file could not be opened, read or written */
  UNDERSTUDY_ERROR_FORMAT,      /* a file's content is not what its format requires */
  UNDERSTUDY_ERROR_UNSUPPORTED, /* valid, but not something this build or machine can do */
  UNDERSTUDY_ERROR_MEMORY,      /* an allocation failed */
  UNDERSTUDY_ERROR_CANCELLED    /* a callback asked to stop */
} understudy_status;

typedef struct understudy_error {
  understudy_status status;
  char message[512]; /* one line, no newline, always terminated; empty when status is OK */
} understudy_error;

/* Reports progress of a long operation: `done` of `total` steps of `what` (a model's path while it is opened, "prompt",
 * "scoring"). Returns true to cancel. Called from the thread that called the library. */
typedef bool (*understudy_progress_fn)(void *user, const char *what, uint64_t done, uint64_t total);

/* ---- engine ------------------------------------------------------------------------------------------- */

typedef struct understudy_engine understudy_engine;

typedef struct understudy_engine_options {
  const char *target; /* a GGUF file or a Hugging Face directory; required */
  const char *draft;  /* the same, for the draft model; NULL: none */
  const char *ngram;  /* an n-gram file written by `understudy ngram`; NULL: none */
  const char *isa;    /* "scalar", "avx2", "avx512", "amx"; NULL: the best this machine has */
  int threads;        /* 0: the physical cores this process may use */
  int context;        /* tokens a session may hold; 0: the target's own */
  const char *cache;  /* an existing directory for small files that keep what passes cost on this machine, with which
                         later sessions' measurements are averaged; whatever is wrong with it is no error; NULL: none */
  understudy_progress_fn progress; /* may be NULL */
  void *user;
} understudy_engine_options;

/* Opens the models. On success *engine is owned by the caller and freed with understudy_engine_close(). */
UNDERSTUDY_API understudy_status understudy_engine_open(const understudy_engine_options *options,
                                                        understudy_engine **engine, understudy_error *err);
/* Frees an engine; every session made from it must be closed before. NULL is allowed. */
UNDERSTUDY_API void understudy_engine_close(understudy_engine *engine);

typedef struct understudy_engine_info {
  const char *isa;           /* kernel level in use */
  int threads;
  int context;               /* tokens a session holds at most */
  int vocabulary;            /* token ids are 0 … vocabulary-1 */
  int end_token;             /* the end-of-text token, -1: none */
  const char *architecture;  /* "gpt2" */
  uint64_t parameters;       /* of the target */
  uint64_t weight_bytes;     /* of the target, in memory, read once a pass */
  uint64_t draft_parameters; /* 0: no draft */
  uint64_t draft_weight_bytes;
  bool has_draft, has_ngram;
} understudy_engine_info;

/* Fills *info; the strings live as long as the engine (of NULL: zeros, end_token -1). Any thread. */
UNDERSTUDY_API void understudy_engine_get_info(const understudy_engine *engine, understudy_engine_info *info);

/* ---- text and tokens ---------------------------------------------------------------------------------- */

/* Splits `text` (any bytes, `length` of them) into token ids. With `special`, special-token strings in the
 * text become their tokens; otherwise they are plain text. *tokens is malloc'ed, freed by the caller with
 * understudy_free(). Any thread. */
UNDERSTUDY_API understudy_status understudy_tokenize(const understudy_engine *engine, const char *text,
                                                     size_t length, bool special, int32_t **tokens,
                                                     size_t *count, understudy_error *err);
/* The bytes of one token; NULL for an id outside the vocabulary. The bytes live as long as the engine and are
 * not zero-terminated. Any thread. */
UNDERSTUDY_API const char *understudy_token_bytes(const understudy_engine *engine, int32_t token,
                                                  size_t *length);
/* Frees memory the library handed out. NULL is allowed. */
UNDERSTUDY_API void understudy_free(void *memory);

/* ---- session ------------------------------------------------------------------------------------------ */

typedef struct understudy_session understudy_session;

/* What finds candidate tokens. It changes the speed, never the text. */
typedef enum understudy_mode {
  UNDERSTUDY_PLAIN,       /* the target alone */
  UNDERSTUDY_SPECULATIVE, /* the draft model drafts for the target */
  UNDERSTUDY_STAGED       /* everything the engine has: draft model, n-gram file, the text so far */
} understudy_mode;

/* The text is a function of the target's weights, the prompt and these parameters. */
typedef struct understudy_sampling {
  float temperature; /* 0: greedy */
  int top_k;         /* keep the k likeliest tokens; 0: all */
  float top_p;       /* keep the likeliest tokens that together reach this probability; 0 or 1: all */
  float min_p;       /* drop tokens less likely than this share of the likeliest; 0: none */
  uint64_t seed;
  /* What changes the logits of tokens that stand in the text so far, the prompt included, before all else: */
  float repetition_penalty; /* positive logits are divided by it, others multiplied; 0 or 1: none */
  float frequency_penalty;  /* subtracted for each time the token stands there; 0: none */
  float presence_penalty;   /* subtracted once; 0: none */
} understudy_sampling;

/* Creates a session. `sampling` NULL: greedy. All memory it needs is allocated here; unless the mode is plain, it also
 * times a few passes of the models, for about 0.3 seconds (longer on a busy machine). A session is made to be reset. */
UNDERSTUDY_API understudy_status understudy_session_create(const understudy_engine *engine, understudy_mode mode,
                                                           const understudy_sampling *sampling,
                                                           understudy_session **session, understudy_error *err);
/* Frees a session. NULL is allowed. Not from a callback of the session, where it does nothing. */
UNDERSTUDY_API void understudy_session_close(understudy_session *session);

/* Forgets the text and, when `sampling` is not NULL, takes new sampling parameters. Statistics stay, and what the
 * session has learned: costs, acceptance, and what the target thought likeliest after which two tokens. */
UNDERSTUDY_API understudy_status understudy_session_reset(understudy_session *session,
                                                          const understudy_sampling *sampling, understudy_error *err);

/* Which stage found a token. */
typedef enum understudy_origin {
  UNDERSTUDY_FROM_TARGET,  /* the target's own choice, nobody proposed it */
  UNDERSTUDY_FROM_DRAFT,   /* the draft model */
  UNDERSTUDY_FROM_NGRAM,   /* the n-gram file */
  UNDERSTUDY_FROM_CONTEXT  /* the text so far */
} understudy_origin;

/* Receives each token as it is decided, in order. Returns true to stop after it: the timeline then ends with it,
 * however many tokens the step had found. */
typedef bool (*understudy_token_fn)(void *user, int32_t token, const char *bytes, size_t length,
                                    understudy_origin origin);

/* Appends `count` prompt tokens to the timeline. Fails with ARGUMENT, and changes nothing, when they do not
 * fit the context or an id is outside the vocabulary. `progress` may be NULL; when it cancels, the tokens are part of
 * the timeline all the same and what is left of their evaluation is done by the next call. */
UNDERSTUDY_API understudy_status understudy_session_prompt(understudy_session *session, const int32_t *tokens,
                                                           size_t count, understudy_progress_fn progress,
                                                           void *user, understudy_error *err);

/* Tokens in the timeline: the prompt's and those generated (in a token callback, those of earlier steps). At the
 * engine's context it is full. */
UNDERSTUDY_API size_t understudy_session_length(const understudy_session *session);

/* Generates up to `max_tokens` tokens, fewer at a full context, when `token` returns true, or else at the end token
 * (which is not reported). The timeline must hold at least one token: to start a text from nothing, prompt with the end
 * token. *generated (NULL allowed) receives their number. */
UNDERSTUDY_API understudy_status understudy_session_generate(understudy_session *session, int max_tokens,
                                                             understudy_token_fn token, void *user,
                                                             int *generated, understudy_error *err);

/* Sums since the session was created or its statistics were reset. Prompt processing counts in prompt_seconds alone. */
typedef struct understudy_stats {
  uint64_t tokens, target_passes, draft_passes;
  uint64_t target_rows, draft_rows;    /* rows evaluated in those passes */
  double seconds, target_seconds, draft_seconds, prompt_seconds;
  double bytes;                        /* weights and KV read by every stage */
  double flop;                         /* arithmetic of the target's and the draft's passes */
  uint64_t accepted[4];                /* tokens by understudy_origin */
} understudy_stats;

/* Fills *stats (a NULL session's are zero). */
UNDERSTUDY_API void understudy_session_get_stats(const understudy_session *session, understudy_stats *stats);
/* Sets all sums to zero. NULL is allowed. */
UNDERSTUDY_API void understudy_session_reset_stats(understudy_session *session);

/* Natural-log probability the target gives each of tokens[1 … count-1] after those before it, in windows of
 * the context; logprobs has room for count-1 values. The timeline is reset. */
UNDERSTUDY_API understudy_status understudy_session_score(understudy_session *session, const int32_t *tokens,
                                                          size_t count, float *logprobs,
                                                          understudy_progress_fn progress, void *user,
                                                          understudy_error *err);

/* "0.1.0" */
UNDERSTUDY_API const char *understudy_version(void);
/* The best kernel level this machine has: "scalar", "avx2", "avx512" or "amx". */
UNDERSTUDY_API const char *understudy_best_isa(void);

#ifdef __cplusplus
}
#endif
#endif
