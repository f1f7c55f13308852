/* train: making a GPT-2 from text: corpus, AdamW, checkpoints, and distilling from a teacher.
 *
 * The weights after step N are a pure function of options, corpus and instruction-set level: neither the number of
 * threads nor stopping and resuming changes a bit. */
#ifndef UST_TRAIN_H
#define UST_TRAIN_H

#include "kernel/kernel.h"
#include "tokenizer/tokenizer.h"
#include "weights/weights.h"

enum { UST_TRAIN_WINDOW = 256 /* tokens of a training sequence */ };

typedef struct ust_train_progress {
  int step, steps;
  double loss;    /* of this step's batch, nats per token */
  double kl;      /* KL(teacher || model) of the batch; NAN without a teacher */
  double heldout; /* cross-entropy on held-out text; NAN unless measured at this step */
  double rate;
  double tokens_per_s;
  double seconds_left;
} ust_train_progress;

typedef struct ust_train_options {
  const char *corpus;  /* text, documents separated by zero bytes */
  const char *heldout; /* the same, never trained on; NULL: none */
  const ust_tokenizer *tokenizer;
  /* NULL: train on the text; else learn what the teacher thinks of it, and (unless `start`) start as the teacher made
   * smaller where the shape allows */
  const ust_weights *teacher;
  /* a GPT-2 whose values the run starts from, of its width, layers, heads and context; NULL: see above, or random */
  const ust_weights *start;
  int width, layers, heads, context;
  int steps, batch;       /* batch: tokens of a step, rounded down to whole windows */
  float rate;             /* highest learning rate */
  uint64_t seed;          /* of random values and the order of the text */
  const char *checkpoint; /* written every two minutes, at the end and when stopped; resumed from; NULL: none */
  const char *output;     /* GGUF */
  ust_type type;          /* of the matrices in it */
  const char *log;        /* CSV, a line a step; NULL: none */
  const ust_kernels *kernels;
  int threads;
  void (*progress)(void *user, const ust_train_progress *progress); /* after every step; NULL: none */
  bool (*stop)(void *user); /* asked several times a step: true ends the run, checkpoint written; NULL: never */
  void *user;
} ust_train_options;

/* Does the shape allow that a draft starts as its teacher made smaller: heads of its size, and nothing wider? */
bool ust_train_starts_as_teacher(const ust_train_options *options);
/* Trains and writes the output. CANCELLED when stopped: the checkpoint then holds the last whole step. */
understudy_status ust_train(const ust_train_options *options, understudy_error *err);

#endif
