/* learned: what the target thought of last after two tokens, from its own logits. A table of fixed size: newer
 * contexts take the places of older ones. */
#ifndef UST_SPECULATE_LEARNED_H
#define UST_SPECULATE_LEARNED_H

#include "ngram/ngram.h"
#include "sample/sample.h"

enum { UST_LEARNED = 4 }; /* successors kept of a context */

typedef struct ust_learned ust_learned;
understudy_status ust_learned_create(ust_learned **learned, understudy_error *err);
void ust_learned_free(ust_learned *learned);
/* The target's likeliest tokens after (before, last), best first, scores being logits. before -1: none. */
void ust_learned_add(ust_learned *learned, int32_t before, int32_t last, const ust_ranked *top, int count);
/* Up to `max` of them, of order 0; returns how many. */
int ust_learned_candidates(const ust_learned *learned, int32_t before, int32_t last, int max, ust_ngram_candidate *out);

#endif
