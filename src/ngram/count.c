/* Counting n-grams by sorting. Keys collect in a buffer; a full buffer is radix-sorted and becomes a run of distinct
 * keys with counts, and a run is merged with its neighbour as soon as that is at most twice its size, as in a
 * log-structured merge tree. All memory is read in order, 12 bytes a distinct key stay (24 while the last two runs
 * merge), and the result is sorted by context, which is the order the file wants. */
#include <stdlib.h>

#include "base/base.h"
#include "ngram/internal.h"

enum { PENDING = 1 << 19, RADIX_BITS = 11 };

understudy_status ust_ngram_counter_init(ust_ngram_counter *counter, int key_bits, understudy_error *err) {
  *counter = (ust_ngram_counter){.key_bits = key_bits};
  size_t size = PENDING * sizeof(uint64_t);
  counter->pending = malloc(size);
  counter->scratch = malloc(size);
  if (counter->pending && counter->scratch) return UNDERSTUDY_OK;
  ust_ngram_counter_free(counter);
  return ust_error_memory(err, size, "n-gram counts");
}

static void run_free(ust_ngram_run *run) {
  free(run->keys);
  free(run->counts);
  *run = (ust_ngram_run){0};
}

void ust_ngram_counter_free(ust_ngram_counter *counter) {
  free(counter->pending);
  free(counter->scratch);
  for (int i = 0; i < counter->run_count; i++) run_free(&counter->runs[i]);
  *counter = (ust_ngram_counter){0};
}

static understudy_status run_alloc(ust_ngram_run *run, size_t size, understudy_error *err) {
  *run =
      (ust_ngram_run){.keys = malloc((size + 1) * sizeof(uint64_t)), .counts = malloc((size + 1) * sizeof(uint32_t))};
  if (run->keys && run->counts) return UNDERSTUDY_OK;
  run_free(run);
  return ust_error_memory(err, (size + 1) * (sizeof(uint64_t) + sizeof(uint32_t)), "n-gram counts");
}

/* Gives back what was allocated beyond the run's size; keeping it is no error. */
static void run_trim(ust_ngram_run *run) {
  uint64_t *keys = realloc(run->keys, (run->size + 1) * sizeof *keys);
  if (keys) run->keys = keys;
  uint32_t *counts = realloc(run->counts, (run->size + 1) * sizeof *counts);
  if (counts) run->counts = counts;
}

static uint32_t add_counts(uint32_t a, uint32_t b) {
  return a > UINT32_MAX - b ? UINT32_MAX : a + b;
}

/* Sorts `count` keys, least significant digit first; returns where they ended up: `keys` or `scratch`. */
static uint64_t *radix_sort(uint64_t *keys, uint64_t *scratch, size_t count, int key_bits) {
  for (int shift = 0; shift < key_bits; shift += RADIX_BITS) {
    size_t start[(1 << RADIX_BITS) + 1] = {0};
    const uint64_t mask = (1 << RADIX_BITS) - 1;
    for (size_t i = 0; i < count; i++) start[(keys[i] >> shift & mask) + 1]++;
    for (size_t digit = 0; digit < mask; digit++) start[digit + 1] += start[digit];
    for (size_t i = 0; i < count; i++) scratch[start[keys[i] >> shift & mask]++] = keys[i];
    uint64_t *swap = keys;
    keys = scratch;
    scratch = swap;
  }
  return keys;
}

/* Turns the pending keys into a run. */
static understudy_status flush(ust_ngram_counter *counter, understudy_error *err) {
  if (counter->pending_count == 0) return UNDERSTUDY_OK;
  ust_ngram_run run;
  UST_TRY(run_alloc(&run, counter->pending_count, err));
  const uint64_t *sorted = radix_sort(counter->pending, counter->scratch, counter->pending_count, counter->key_bits);
  for (size_t i = 0; i < counter->pending_count; i++) {
    if (run.size == 0 || sorted[i] != run.keys[run.size - 1]) {
      run.keys[run.size] = sorted[i];
      run.counts[run.size++] = 1;
    } else {
      run.counts[run.size - 1]++;
    }
  }
  run_trim(&run);
  counter->runs[counter->run_count++] = run;
  counter->pending_count = 0;
  return UNDERSTUDY_OK;
}

/* Merges the last two runs. */
static understudy_status merge_last(ust_ngram_counter *counter, understudy_error *err) {
  ust_ngram_run *a = &counter->runs[counter->run_count - 2], *b = a + 1, out;
  UST_TRY(run_alloc(&out, a->size + b->size, err));
  size_t i = 0, j = 0;
  while (i < a->size || j < b->size) {
    bool from_a = j == b->size || (i < a->size && a->keys[i] <= b->keys[j]);
    bool both = from_a && i < a->size && j < b->size && a->keys[i] == b->keys[j];
    out.keys[out.size] = from_a ? a->keys[i] : b->keys[j];
    out.counts[out.size++] = both ? add_counts(a->counts[i], b->counts[j]) : from_a ? a->counts[i] : b->counts[j];
    i += from_a;
    j += both || !from_a;
  }
  run_free(a);
  run_free(b);
  run_trim(&out);
  *a = out;
  counter->run_count--;
  return UNDERSTUDY_OK;
}

understudy_status ust_ngram_counter_add(ust_ngram_counter *counter, uint64_t key, understudy_error *err) {
  if (counter->pending_count == PENDING) {
    UST_TRY(flush(counter, err));
    while (counter->run_count > 1 &&
           counter->runs[counter->run_count - 2].size <= 2 * counter->runs[counter->run_count - 1].size)
      UST_TRY(merge_last(counter, err));
  }
  counter->pending[counter->pending_count++] = key;
  return UNDERSTUDY_OK;
}

understudy_status ust_ngram_counter_finish(ust_ngram_counter *counter, understudy_error *err) {
  UST_TRY(flush(counter, err));
  if (counter->run_count == 0) {
    UST_TRY(run_alloc(&counter->runs[0], 0, err));
    counter->run_count = 1;
  }
  while (counter->run_count > 1) UST_TRY(merge_last(counter, err));
  return UNDERSTUDY_OK;
}
