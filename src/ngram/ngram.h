/* ngram: the bottom stage's knowledge. A static Katz back-off trigram in a file (Katz 1987, Good-Turing
 * discounts), and what can be learned from the text so far: successors of its suffixes. */
#ifndef UST_NGRAM_H
#define UST_NGRAM_H

#include "base/base.h"

typedef enum ust_ngram_source { UST_SOURCE_CONTEXT, UST_SOURCE_FILE } ust_ngram_source;

typedef struct ust_ngram_candidate {
  int32_t token;
  float probability; /* estimate that this token follows */
  int order;         /* tokens of context it was found with */
  ust_ngram_source source;
} ust_ngram_candidate;

/* ---- the file ---- */

typedef struct ust_ngram ust_ngram; /* immutable, shared */

/* Loads a file and checks it whole (checksum, version, ranges, the tokenizer's fingerprint and vocabulary). */
understudy_status ust_ngram_open(const char *path, int vocabulary, uint64_t fingerprint, ust_ngram **ngram,
                                 understudy_error *err);
void ust_ngram_close(ust_ngram *ngram);
size_t ust_ngram_bytes(const ust_ngram *ngram); /* in memory */
/* log P(token | before, last); before/last -1: unknown (text start). Sums to one over the vocabulary. */
double ust_ngram_logprob(const ust_ngram *ngram, int32_t before, int32_t last, int32_t token);
/* The `max` likeliest successors of (before, last), best first, trigram successors and those of the back-off merged
 * by probability. Returns how many: `max`, or the whole vocabulary. */
int ust_ngram_candidates(const ust_ngram *ngram, int32_t before, int32_t last, int max, ust_ngram_candidate *out);

/* ---- fitting ---- */

typedef struct ust_ngram_fit ust_ngram_fit;
understudy_status ust_ngram_fit_create(int vocabulary, uint64_t fingerprint, ust_ngram_fit **fit,
                                       understudy_error *err);
/* Counts one text (n-grams do not cross calls). */
understudy_status ust_ngram_fit_add(ust_ngram_fit *fit, const int32_t *tokens, size_t count, understudy_error *err);
/* Discounts, prunes the least useful entries until the file is at most max_bytes (0: no limit), writes. */
understudy_status ust_ngram_fit_write(ust_ngram_fit *fit, const char *path, size_t max_bytes, understudy_error *err);
uint64_t ust_ngram_fit_tokens(const ust_ngram_fit *fit); /* counted so far */
void ust_ngram_fit_free(ust_ngram_fit *fit);

/* ---- the text so far ---- */

/* Remembers, for every suffix of 1 … 8 tokens of the text, what followed it: the newest 32 times. All memory is
 * allocated at create, 100 to 164 bytes a token of `capacity`; tokens beyond `capacity` are not remembered. */
typedef struct ust_suffixes ust_suffixes;
understudy_status ust_suffixes_create(int capacity, ust_suffixes **suffixes, understudy_error *err);
void ust_suffixes_free(ust_suffixes *suffixes);
void ust_suffixes_reset(ust_suffixes *suffixes);
void ust_suffixes_append(ust_suffixes *suffixes, int32_t token);
/* Up to `max` successors of the text + `extra` (hypothetical tokens after it), longest suffix first, each token
 * once; returns how many. */
int ust_suffixes_candidates(const ust_suffixes *suffixes, const int32_t *extra, int extra_count, int max,
                            ust_ngram_candidate *out);

#endif
