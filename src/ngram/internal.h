/* ngram internals: the file's layout, its checksum and its unit of probability, and the counter used for fitting.
 *
 * The file, little endian, arrays one after another without padding; `id` is 2 bytes where the vocabulary is at most
 * 65536 tokens, else 4:
 *     "USTNGRAM"  u32 version  u32 vocabulary  u64 fingerprint  u32 contexts[2]  u32 entries[2]
 *     u16 cost[vocabulary]                                                  unigrams
 *     id last[contexts]  id before[contexts] (trigrams only)  id successors[contexts]    bigrams, then trigrams:
 *     id token[entries]  u16 cost[entries]                                  contexts ascending by (last, before),
 *     u64 checksum of all bytes before it                                   successors of each likeliest first
 * A cost is -ln(probability) in steps of 1/2048. Explicit probabilities are rounded down, so that those of a context
 * sum to less than one; what they leave is handed to the back-off when the file is read, from the rounded numbers. */
#ifndef UST_NGRAM_INTERNAL_H
#define UST_NGRAM_INTERNAL_H

#include <math.h>

#include "ngram/ngram.h"

#define UST_NGRAM_MAGIC "USTNGRAM"
enum {
  UST_NGRAM_VERSION = 1,
  UST_NGRAM_HEADER = 40,
  UST_NGRAM_CHECKSUM = 8,
  UST_NGRAM_MOST_TOKENS = 1 << 20, /* three ids fit 60 bits */
  UST_NGRAM_COSTS_A_NAT = 2048,
  UST_NGRAM_MOST_COST = 65535
};

static inline size_t ust_ngram_id_size(int vocabulary) {
  return vocabulary <= 65536 ? 2 : 4;
}

static inline uint16_t ust_ngram_cost(double probability) {
  double cost = ceil(-log(probability) * UST_NGRAM_COSTS_A_NAT);
  return (uint16_t)(cost < 1 ? 1 : cost > UST_NGRAM_MOST_COST ? UST_NGRAM_MOST_COST : cost);
}

static inline double ust_ngram_probability(uint16_t cost) {
  return exp(cost * (-1.0 / UST_NGRAM_COSTS_A_NAT));
}

/* The low `size` bytes of a number, lowest first. */
static inline void ust_ngram_put(unsigned char *to, uint64_t value, size_t size) {
  for (size_t i = 0; i < size; i++) to[i] = (unsigned char)(value >> 8 * i);
}
static inline uint64_t ust_ngram_get(const unsigned char *from, size_t size) {
  if (size == 2) return (uint64_t)(from[0] | from[1] << 8); /* nearly everything in a file; one load */
  uint64_t value = 0;
  for (size_t i = 0; i < size; i++) value |= (uint64_t)from[i] << 8 * i;
  return value;
}

/* ---- counting (count.c) ---- */

/* Distinct keys in ascending order, and how often each came. */
typedef struct ust_ngram_run {
  uint64_t *keys;
  uint32_t *counts;
  size_t size;
} ust_ngram_run;

/* Counts 64-bit keys by sorting: a full buffer becomes a run, runs of similar size are merged. */
typedef struct ust_ngram_counter {
  uint64_t *pending, *scratch;
  size_t pending_count;
  int key_bits;
  ust_ngram_run runs[64];
  int run_count;
} ust_ngram_counter;

understudy_status ust_ngram_counter_init(ust_ngram_counter *counter, int key_bits, understudy_error *err);
void ust_ngram_counter_free(ust_ngram_counter *counter);
understudy_status ust_ngram_counter_add(ust_ngram_counter *counter, uint64_t key, understudy_error *err);
/* Brings everything into runs[0] (an empty run when nothing was added). More may be added afterwards. */
understudy_status ust_ngram_counter_finish(ust_ngram_counter *counter, understudy_error *err);

#endif
