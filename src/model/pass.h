/* pass: the rows of one forward pass of a GPT-2, and the steps that are the same whosever rows they are: nodes of a
 * token tree (forward.c) or one token each of many texts (batch.c). Those two bring the attention, which alone
 * depends on it.
 *
 * One parallel region a pass; threads share out panels of outputs, heads and rows, and meet at a barrier after
 * each step, so no sum is ever divided between them. */
#ifndef UST_MODEL_PASS_H
#define UST_MODEL_PASS_H

#include "base/barrier.h"
#include "model/gpt2.h"

typedef struct ust_pass {
  const ust_model *model;
  const ust_layer *layers; /* the model's, or with other matrices of the same shapes */
  const ust_matrix *words; /* the output matrix */
  float *residual, *qkv;   /* f32 [rows, width], [rows, 3 width] */
  char *norm, *heads;      /* activation [rows, width] */
  char *hidden;            /* activation [rows, feed_forward] */
  char *integers; /* norm, heads or hidden as a product with a quantised matrix takes it; NULL: there is none */
  char *scratch;  /* [threads, scratch_bytes] for attention */
  size_t scratch_bytes;
  size_t bytes; /* of all buffers, had or not */
  ust_barrier barrier;
} ust_pass;

/* One thread of those that make a pass, and its part of some work. */
typedef struct ust_member {
  int thread, threads;
} ust_member;
typedef struct ust_share {
  int begin, end;
} ust_share;

static inline ust_share ust_share_of(int n, ust_member me) {
  return (ust_share){(int)((int64_t)n * me.thread / me.threads), (int)((int64_t)n * (me.thread + 1) / me.threads)};
}

/* Buffers for `rows` rows, of which attention takes `together` at a time over up to `slots` slots. False: out of
 * memory, and what there is must still be freed. `layers` and `words` are borrowed. */
bool ust_pass_init(ust_pass *pass, const ust_model *model, const ust_layer *layers, const ust_matrix *words, int rows,
                   int together, int slots);
void ust_pass_free(ust_pass *pass);

/* ---- inside a parallel region, every function called by all its threads with the same arguments ---- */

/* Comes first. */
ust_member ust_pass_enter(ust_pass *pass);
/* residual = the tokens' rows of the embedding, plus those of their positions keys[i] - 1. */
void ust_pass_embed(ust_pass *pass, const int32_t *tokens, const int32_t *keys, int rows, ust_member me);
/* qkv, of the residual, for attention. */
void ust_pass_before_attention(ust_pass *pass, int layer, int rows, ust_member me);
/* The residual behind the layer, of what attention left in `heads`. */
void ust_pass_after_attention(ust_pass *pass, int layer, int rows, ust_member me);
/* norm = the layer norm of the residual. */
void ust_pass_normalise(ust_pass *pass, const float *gain, const float *bias, int rows, ust_member me);
/* y = norm * words^T; f32 rows y_stride apart. No barrier follows. */
void ust_pass_words(ust_pass *pass, int rows, float *y, int y_stride, ust_member me);

#endif
