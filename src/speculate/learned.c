/* Successors learned from the target's logits: a hash table of buckets of two, the newer first. */
#include <math.h>

#include "speculate/learned.h"

enum { BUCKETS = 1 << 13, WAYS = 2 };

typedef struct entry {
  int32_t before, last;
  int32_t tokens[UST_LEARNED];
  float probability[UST_LEARNED];
  int count; /* 0: empty */
} entry;

struct ust_learned {
  entry entries[BUCKETS][WAYS];
};

understudy_status ust_learned_create(ust_learned **learned, understudy_error *err) {
  *learned = ust_alloc(sizeof **learned);
  return *learned ? UNDERSTUDY_OK : ust_error_memory(err, sizeof **learned, "learned successors");
}

void ust_learned_free(ust_learned *learned) {
  ust_free(learned);
}

static int bucket_of(int32_t before, int32_t last) {
  uint64_t hash = ((uint64_t)(uint32_t)before << 32 | (uint32_t)last) * 0x9e3779b97f4a7c15u;
  return (int)((hash ^ hash >> 29) >> 7 & (BUCKETS - 1));
}

void ust_learned_add(ust_learned *learned, int32_t before, int32_t last, const ust_ranked *top, int count) {
  entry *bucket = learned->entries[bucket_of(before, last)];
  if (bucket[0].before != before || bucket[0].last != last) bucket[1] = bucket[0];
  bucket[0] = (entry){.before = before, .last = last, .count = UST_MIN(count, UST_LEARNED)};
  float sum = 0;
  for (int i = 0; i < bucket[0].count; i++) {
    bucket[0].tokens[i] = top[i].token;
    bucket[0].probability[i] = expf(top[i].score - top[0].score);
    sum += bucket[0].probability[i];
  }
  for (int i = 0; i < bucket[0].count; i++) bucket[0].probability[i] /= sum;
}

int ust_learned_candidates(const ust_learned *learned, int32_t before, int32_t last, int max,
                           ust_ngram_candidate *out) {
  const entry *bucket = learned->entries[bucket_of(before, last)];
  for (int way = 0; way < WAYS; way++) {
    const entry *e = &bucket[way];
    if (e->count == 0 || e->before != before || e->last != last) continue;
    int count = UST_MIN(max, e->count);
    for (int i = 0; i < count; i++)
      out[i] =
          (ust_ngram_candidate){.token = e->tokens[i], .probability = e->probability[i], .source = UST_SOURCE_CONTEXT};
    return count;
  }
  return 0;
}
