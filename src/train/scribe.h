/* scribe: text that a model writes by itself, by the million tokens: what an n-gram of its habits is fitted on. */
#ifndef UST_TRAIN_SCRIBE_H
#define UST_TRAIN_SCRIBE_H

#include "weights/weights.h"

typedef struct ust_scribe_options {
  const ust_weights *weights;
  const ust_kernels *kernels;
  int threads;
  int vocabulary;    /* tokens it may choose from: ids below it */
  int32_t end_token; /* every text starts with it; a text that writes it is finished */
  int64_t tokens;    /* to write, the first one of each text not counted */
  float temperature; /* above 0 */
  uint64_t seed;
  /* A text, its first token included; finished, or the last piece of its row when the tokens are written. */
  understudy_status (*take)(void *user, const int32_t *tokens, size_t count, understudy_error *err);
  bool (*progress)(void *user, int64_t written); /* after every pass; true: stop here */
  void *user;
} ust_scribe_options;

/* Writes; *written is options->tokens unless stopped, and what was written then is a run's of that many tokens.
 * What is written depends on weights, kernels' level and the options, not on threads. */
understudy_status ust_scribe_write(const ust_scribe_options *options, int64_t *written, understudy_error *err);

#endif
