/* train, between its own files: corpus, run, optimiser, checkpoint, export. */
#ifndef UST_TRAIN_INTERNAL_H
#define UST_TRAIN_INTERNAL_H

#include "model/gpt2_train.h"
#include "train/train.h"

/* ---- random numbers: splitmix64's finaliser (Steele, Lea & Flood 2014) as a hash of a counter ---- */

static inline uint64_t ust_train_mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}
static inline uint64_t ust_train_hash(uint64_t seed, uint64_t stream, uint64_t counter) {
  return ust_train_mix(ust_train_mix(ust_train_mix(seed) ^ stream) ^ counter);
}

/* 64-bit checksum of `size` bytes continued from `state`; any change within one 8-byte word changes it. */
uint64_t ust_train_checksum(uint64_t state, const void *data, size_t size);

/* ---- corpus.c ---- */

typedef struct ust_corpus {
  int32_t *tokens; /* documents, the end token after each */
  size_t count;
  uint64_t fingerprint;
} ust_corpus;

understudy_status ust_corpus_load(const char *path, const ust_train_options *options, ust_corpus *corpus,
                                  understudy_error *err);
void ust_corpus_free(ust_corpus *corpus);
/* Window number `index` of the endless sequence a seed stands for: UST_TRAIN_WINDOW ids, labels and positions. */
void ust_corpus_window(const ust_corpus *corpus, uint64_t seed, uint64_t index, int context, int32_t *ids,
                       int32_t *labels, int32_t *positions);
/* Window `index` of `count` spread evenly, at positions from 0 on. */
void ust_corpus_heldout(const ust_corpus *corpus, size_t index, size_t count, int32_t *ids, int32_t *labels,
                        int32_t *positions);
/* Windows that do not overlap. */
size_t ust_corpus_windows(const ust_corpus *corpus);

/* ---- candidates.c ---- */

typedef struct ust_candidates {
  int vocabulary, frequent;
  int32_t *ids;     /* [vocabulary]: the frequent ones, then those of the last draw */
  float *logs;      /* [vocabulary]: what is added to each one's logit */
  uint8_t *certain; /* [vocabulary]: counts in every draw */
} ust_candidates;

/* After a failure too, free is called. */
understudy_status ust_candidates_open(const ust_corpus *corpus, int vocabulary, ust_candidates *candidates,
                                      understudy_error *err);
void ust_candidates_free(ust_candidates *candidates);
/* Fills ids and logs for micro-batch number `index` of the run with these labels; returns how many. */
int ust_candidates_draw(ust_candidates *candidates, uint64_t seed, uint64_t index, const int32_t *labels, int tokens);

/* ---- a run ---- */

typedef struct ust_train_run {
  const ust_train_options *options;
  ust_config config;
  ust_corpus corpus, heldout;
  ust_candidates candidates;
  uint64_t teacher_fingerprint, start_fingerprint; /* 0: none */
  ust_gpt2_train *model, *teacher;
  float *moments;  /* [2][model->size]: running means of gradient and squared gradient */
  double *partial; /* [blocks of the gradient]: sums of squares */
  int step;        /* steps done */
} ust_train_run;

/* ---- inherit.c ---- */

/* Initial values from the teacher's, which is packed and stays as it is. A draft that is wider, has more heads, heads
 * of another size or a wider feed-forward keeps its random ones. */
understudy_status ust_train_inherit(ust_train_run *run, understudy_error *err);

/* ---- optimiser.c ---- */

void ust_train_initialise(ust_gpt2_train *model, uint64_t seed);
size_t ust_train_partials(const ust_gpt2_train *model);
float ust_train_rate(int step, int steps, float rate);
/* Clips the gradients, applies step run->step (counted from 0) and packs the weights. */
bool ust_train_update(ust_train_run *run);

/* ---- checkpoint.c ---- */

understudy_status ust_checkpoint_write(const ust_train_run *run, understudy_error *err);
/* Nothing happens when the file does not exist. */
understudy_status ust_checkpoint_read(ust_train_run *run, understudy_error *err);

/* ---- files.c ---- */

understudy_status ust_train_export(const ust_train_run *run, understudy_error *err);
understudy_status ust_train_load_teacher(ust_train_run *run, int max_sequences, understudy_error *err);
/* The values of options->start into the model. */
understudy_status ust_train_load_start(ust_train_run *run, understudy_error *err);
/* Opens the CSV log, keeping the lines of an earlier run up to run->step. */
understudy_status ust_train_log_open(const ust_train_run *run, FILE **log, understudy_error *err);
understudy_status ust_train_log_line(FILE *log, const char *path, const ust_train_progress *p, understudy_error *err);

#endif
