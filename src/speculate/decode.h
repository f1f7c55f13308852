/* decode: the one loop. A decoder owns one text in progress on a target model, the stages that draft for it and
 * the planner that weighs them. The text depends on the target, the prompt and the sampling parameters alone. */
#ifndef UST_SPECULATE_DECODE_H
#define UST_SPECULATE_DECODE_H

#include "base/details.h"
#include "model/model.h"
#include "ngram/ngram.h"
#include "sample/sample.h"
#include "speculate/planner.h"

typedef struct ust_decoder ust_decoder;

/* The noise drafts rank their candidates with. */
typedef enum ust_draft_noise { UST_NOISE_SHARED, UST_NOISE_OTHER, UST_NOISE_NONE } ust_draft_noise;

typedef struct ust_decoder_options {
  const ust_model *target;
  const ust_model *draft; /* NULL: no draft stage */
  const ust_ngram *ngram; /* NULL: no file */
  bool text;              /* use the text so far */
  int context;            /* tokens the text may hold; at most the target's context */
  int end_token;          /* ends generation, is not reported; -1: none */
  const char *isa;        /* names the kernels in use; with `cache` only */
  const char *cache;      /* a directory that keeps what passes cost; NULL: measured anew */
  understudy_sampling sampling;
  ust_draft_noise noise; /* this and the shape are for experiments */
  ust_shape shape;
} ust_decoder_options;

/* Allocates everything and, when there is any stage, finds out what passes cost: a fraction of a second, whatever the
 * cache knows. */
understudy_status ust_decoder_create(const ust_decoder_options *options, ust_decoder **decoder, understudy_error *err);
void ust_decoder_free(ust_decoder *decoder);
void ust_decoder_reset(ust_decoder *decoder, const understudy_sampling *sampling);

/* Appends text. Ids must be valid and within the context; fails when `progress` cancels. */
understudy_status ust_decoder_prompt(ust_decoder *decoder, const int32_t *tokens, int count,
                                     understudy_progress_fn progress, void *user, understudy_error *err);

/* Receives each token as it is decided; returns true to stop after it. */
typedef bool (*ust_emit_fn)(void *user, int32_t token, understudy_origin origin);

typedef struct ust_step {
  int count; /* tokens committed */
  bool end;  /* the end token was chosen, the context is full, or `emit` stopped */
} ust_step;

/* One step of the loop: commits 1 … limit tokens (0 only with `end`). The text must not be empty. */
ust_step ust_decoder_step(ust_decoder *decoder, int limit, ust_emit_fn emit, void *user);

/* Log-probabilities of tokens[1 … count-1] given those before, in windows of the context; resets the text. */
understudy_status ust_decoder_score(ust_decoder *decoder, const int32_t *tokens, size_t count, float *logprobs,
                                    understudy_progress_fn progress, void *user, understudy_error *err);

/* What the decoder believes of costs and acceptance; a test may set it to force any trees. */
ust_planner *ust_decoder_planner(ust_decoder *decoder);
int ust_decoder_count(const ust_decoder *decoder); /* tokens in the text */
void ust_decoder_stats(const ust_decoder *decoder, understudy_stats *stats);
const ust_details *ust_decoder_details(ust_decoder *decoder);
/* The last step's. */
const ust_step_report *ust_decoder_report(const ust_decoder *decoder);
void ust_decoder_reset_stats(ust_decoder *decoder);

#endif
