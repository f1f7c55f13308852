/* model: architectures. Forward passes of GPT-2 over a token tree, with its KV cache.
 *
 * A model is immutable and shared. A timeline is one text in progress: committed tokens at slots 0 … n-1 of the
 * KV cache (slot == position), then tree nodes in the slots after them, in the order they were evaluated. */
#ifndef UST_MODEL_H
#define UST_MODEL_H

#include "kernel/kernel.h"
#include "weights/weights.h"

enum { UST_TREE_NODES = 256 }; /* most tree nodes a timeline holds besides committed tokens */

typedef struct ust_model ust_model;
typedef struct ust_timeline ust_timeline;

/* Reads and packs the weights for `kernels` with `threads` threads. The weights may be closed afterwards. */
understudy_status ust_model_open(const ust_weights *weights, const ust_kernels *kernels, int threads,
                                 understudy_progress_fn progress, void *user, ust_model **model, understudy_error *err);
void ust_model_close(ust_model *model);

const ust_config *ust_model_config(const ust_model *model);
uint64_t ust_model_parameters(const ust_model *model);
/* Bytes one pass reads: all matrices, without the embedding rows. */
uint64_t ust_model_weight_bytes(const ust_model *model);
/* Bytes of keys and values of one position, all layers. */
uint64_t ust_model_kv_bytes(const ust_model *model);
/* Arithmetic of a pass over `rows` rows with `keys` keys, of which `wanted` give logits. */
double ust_model_pass_flop(const ust_model *model, int rows, int wanted, int keys);
int ust_model_threads(const ust_model *model);

/* Room for `context` committed tokens plus UST_TREE_NODES; a pass takes at most max_rows rows, no more than that. */
understudy_status ust_timeline_create(const ust_model *model, int context, int max_rows, ust_timeline **timeline,
                                      understudy_error *err);
void ust_timeline_free(ust_timeline *timeline);
int ust_timeline_committed(const ust_timeline *timeline);
int ust_timeline_nodes(const ust_timeline *timeline);

/* One pass over `rows` new tree nodes: tokens[i] hangs under node parents[i] (index among the timeline's nodes,
 * those of this call counting on from ust_timeline_nodes(); -1: the last committed token). Parents come before
 * children. logits: f32 [count of wanted rows, ust_model_logit_stride()], the rows for which want[i] (NULL: all),
 * in order; NULL: none. */
void ust_model_forward(ust_timeline *timeline, const int32_t *tokens, const int32_t *parents, int rows,
                       const bool *want, float *logits);
size_t ust_model_logit_stride(const ust_model *model);
/* One pass over tokens[0 … count-1] as the next of the text, which are committed; there are no nodes before or after.
 * logits: f32 [count, ust_model_logit_stride()]; NULL: none. */
void ust_timeline_append(ust_timeline *timeline, const int32_t *tokens, int count, float *logits);

/* For timing what passes cost: a part of the work of a pass over a chain of `rows` tokens, on an empty timeline that
 * stays empty. The layers from *part on, the logits (f32 [rows, ust_model_logit_stride()]) as the one after the last,
 * and so round again, until `bytes` of weights were read or all were. Moves *part on; returns the bytes. */
uint64_t ust_model_rehearse(ust_timeline *timeline, int rows, uint64_t bytes, int *part, float *logits);

/* Makes the nodes path[0 … count-1] (a chain from the root down) committed and drops all others. */
void ust_timeline_commit(ust_timeline *timeline, const int32_t *path, int count);
/* Forgets committed tokens from `count` on, and all nodes. */
void ust_timeline_truncate(ust_timeline *timeline, int count);

/* ---- many short texts at once, for a model that writes by the million tokens ---- */

enum { UST_LOGIT_BLOCK = 1024 /* of the vocabulary */, UST_LOGIT_STRIDE = UST_LOGIT_BLOCK + 32 };

typedef struct ust_batch ust_batch;

/* `texts` empty texts of up to `context` tokens each. */
understudy_status ust_batch_create(const ust_model *model, int texts, int context, float temperature, ust_batch **batch,
                                   understudy_error *err);
void ust_batch_free(ust_batch *batch);
/* Takes the logits of tokens first … first+count-1 for every text, divided by the temperature: f32
 * [texts, UST_LOGIT_STRIDE], which it may overwrite. first is block * UST_LOGIT_BLOCK. */
typedef void (*ust_logits_fn)(void *user, int thread, int block, int first, int count, float *logits);
/* One pass: appends tokens[i] to text i, for every text, and calls `visit` once for each block of the vocabulary, on
 * the model's threads. At temperature 1 logits have the bits ust_model_forward() gives, but for quantised
 * matrices, which a batch rounds to bf16. */
void ust_batch_forward(ust_batch *batch, const int32_t *tokens, ust_logits_fn visit, void *user);
/* Makes one text empty again. */
void ust_batch_restart(ust_batch *batch, int text);

#endif
