/* Candidates: the tokens a micro-batch's loss is taken over. The logits of 50,000 tokens cost more than the layers of
 * a small model, and nearly all of the corpus is written with a few thousand of them. So the most frequent tokens and
 * the micro-batch's own labels always count, and of the rest one in SHARE is drawn to stand for SHARE like it
 * (importance sampling: Bengio & Senecal 2003). Held-out losses are taken over all tokens.
 *
 * The draw is a function of seed and micro-batch number: resuming needs no state. */
#include <math.h>
#include <stdlib.h>

#include "train/internal.h"

enum { FREQUENT = 4096, SHARE = 16, STREAM_CANDIDATES = 4 };

typedef struct counted {
  size_t count;
  int32_t id;
} counted;

static int most_first(const void *left, const void *right) {
  const counted *a = left, *b = right;
  if (a->count != b->count) return a->count < b->count ? 1 : -1;
  return (a->id > b->id) - (a->id < b->id);
}

understudy_status ust_candidates_open(const ust_corpus *corpus, int vocabulary, ust_candidates *c,
                                      understudy_error *err) {
  size_t n = (size_t)vocabulary;
  counted *counts = calloc(n, sizeof *counts);
  c->vocabulary = vocabulary;
  c->frequent = UST_MIN(FREQUENT, vocabulary);
  c->ids = ust_alloc(n * sizeof *c->ids);
  c->logs = ust_alloc(n * sizeof *c->logs);
  c->certain = ust_alloc(n);
  if (!counts || !c->ids || !c->logs || !c->certain) {
    free(counts);
    return ust_error_memory(err, n * (sizeof *counts + sizeof *c->ids + sizeof *c->logs + 1), "candidates");
  }
  for (int32_t t = 0; t < vocabulary; t++) counts[t].id = t;
  for (size_t i = 0; i < corpus->count; i++) counts[corpus->tokens[i]].count++;
  qsort(counts, n, sizeof *counts, most_first);
  for (int i = 0; i < c->frequent; i++) c->ids[i] = counts[i].id;
  for (int i = 0; i < c->frequent; i++) c->certain[c->ids[i]] = 1;
  free(counts);
  return UNDERSTUDY_OK;
}

void ust_candidates_free(ust_candidates *c) {
  ust_free(c->ids);
  ust_free(c->logs);
  ust_free(c->certain);
  *c = (ust_candidates){0};
}

int ust_candidates_draw(ust_candidates *c, uint64_t seed, uint64_t index, const int32_t *labels, int tokens) {
  enum { LABEL = 2 };
  int count = c->frequent;
  for (int i = 0; i < tokens; i++)
    if (!c->certain[labels[i]]) {
      c->certain[labels[i]] = LABEL;
      c->logs[count] = 0;
      c->ids[count++] = labels[i];
    }
  uint64_t key = ust_train_hash(seed, STREAM_CANDIDATES, index);
  for (int32_t t = 0; t < c->vocabulary; t++)
    if (!c->certain[t] && ust_train_mix(key ^ (uint64_t)t) % SHARE == 0) {
      c->logs[count] = logf(SHARE);
      c->ids[count++] = t;
    }
  for (int i = 0; i < tokens; i++)
    if (c->certain[labels[i]] == LABEL) c->certain[labels[i]] = 0;
  return count;
}
