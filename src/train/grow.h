/* grow: a small GPT-2 rewritten in a larger GPT-2's shape that computes the same function. */
#ifndef UST_TRAIN_GROW_H
#define UST_TRAIN_GROW_H

#include "weights/weights.h"

/* The shapes of the GPT-2 family: "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"; false for another name. */
bool ust_train_family_shape(const char *name, int *layers, int *width, int *heads);

/* The configuration `small` has after growing to that shape: vocabulary, context and the rest kept. An error
 * naming `path` when the shape cannot hold it. */
understudy_status ust_train_grow_config(const ust_config *small, const char *path, const char *like, ust_config *big,
                                        understudy_error *err);

/* Declares and writes every tensor of `big`; keys are the caller's, before; commit is the caller's, after. */
understudy_status ust_train_grow(const ust_weights *small, const ust_config *big, ust_type type,
                                 ust_gguf_writer *writer, understudy_progress_fn progress, void *user,
                                 understudy_error *err);

#endif
