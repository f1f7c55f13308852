/* Fitting a Katz back-off trigram (Katz 1987): counts, Good-Turing discounts, pruning, the file.
 *
 * P(w|u,v) = D(c(u,v,w)) / c(u,v) for trigrams kept, else backoff(u,v) P(w|v), and likewise for bigrams over a
 * unigram in which every token counts half a time more. D takes from rare n-grams what unseen ones get. Pruning ranks
 * n-grams by their weighted difference (Seymore and Rosenfeld 1996): D(c) (ln P(w|context) - ln of what the back-off
 * would say instead), and drops the least until the file fits. */
#include <stdlib.h>

#include "base/base.h"
#include "ngram/internal.h"

enum { BIGRAM, TRIGRAM, LEVELS };
enum { RARE = 5 }; /* counts up to it are discounted, as in Katz's paper */
enum { RANKS = 65536, RANKS_A_DOUBLING = 1024, LOWEST_DOUBLING = -20 };

struct ust_ngram_fit {
  int vocabulary, id_bits;
  uint64_t fingerprint;
  uint64_t *unigrams, total; /* [vocabulary] and their sum */
  /* Keys are (last, token) and (last, before, token), id_bits each: sorted as the file's contexts are. */
  ust_ngram_counter counter[LEVELS];
};

understudy_status ust_ngram_fit_create(int vocabulary, uint64_t fingerprint, ust_ngram_fit **fit,
                                       understudy_error *err) {
  *fit = NULL;
  if (vocabulary < 1 || vocabulary > UST_NGRAM_MOST_TOKENS)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "vocabulary is %d, expected 1 to %d for an n-gram", vocabulary,
                     UST_NGRAM_MOST_TOKENS);
  ust_ngram_fit *made = ust_alloc(sizeof *made);
  if (!made) return ust_error_memory(err, sizeof *made, "n-gram counts");
  made->vocabulary = vocabulary;
  made->fingerprint = fingerprint;
  for (made->id_bits = 1; 1 << made->id_bits < vocabulary;) made->id_bits++;
  size_t size = (size_t)vocabulary * sizeof *made->unigrams;
  made->unigrams = ust_alloc(size);
  understudy_status status = made->unigrams ? UNDERSTUDY_OK : ust_error_memory(err, size, "n-gram counts");
  for (int level = 0; level < LEVELS && status == UNDERSTUDY_OK; level++)
    status = ust_ngram_counter_init(&made->counter[level], (level + 2) * made->id_bits, err);
  if (status != UNDERSTUDY_OK)
    ust_ngram_fit_free(made);
  else
    *fit = made;
  return status;
}

void ust_ngram_fit_free(ust_ngram_fit *fit) {
  if (!fit) return;
  for (int level = 0; level < LEVELS; level++) ust_ngram_counter_free(&fit->counter[level]);
  ust_free(fit->unigrams);
  ust_free(fit);
}

understudy_status ust_ngram_fit_add(ust_ngram_fit *fit, const int32_t *tokens, size_t count, understudy_error *err) {
  for (size_t i = 0; i < count; i++)
    if (tokens[i] < 0 || tokens[i] >= fit->vocabulary)
      return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "token %zu of the text is %d, expected 0 to %d", i, tokens[i],
                       fit->vocabulary - 1);
  int bits = fit->id_bits;
  for (size_t i = 0; i < count; i++) {
    uint64_t token = (uint64_t)tokens[i];
    fit->unigrams[token]++;
    fit->total++;
    if (i < 1) continue;
    uint64_t last = (uint64_t)tokens[i - 1];
    UST_TRY(ust_ngram_counter_add(&fit->counter[BIGRAM], last << bits | token, err));
    if (i < 2) continue;
    uint64_t before = (uint64_t)tokens[i - 2];
    UST_TRY(ust_ngram_counter_add(&fit->counter[TRIGRAM], (last << bits | before) << bits | token, err));
  }
  return UNDERSTUDY_OK;
}

uint64_t ust_ngram_fit_tokens(const ust_ngram_fit *fit) {
  return fit->total;
}

/* ---- discounts ---- */

/* What an n-gram seen r times counts: ratio[r] * r for rare ones, r - `off` for all. */
typedef struct discounts {
  double ratio[RARE + 1], off;
} discounts;

/* Katz's ratio is (g/r - m) / (1 - m): n[r] is the number of n-grams seen r times, g = (r+1) n[r+1] / n[r] Good and
 * Turing's count, m = (RARE+1) n[RARE+1] / n[1]. On little or odd text the ratios leave (0, 1]; then every count loses
 * the same n1 / (n1 + 2 n2) instead (absolute discounting; Ney, Essen and Kneser 1994), or one half where n1 or n2 is
 * zero. */
static discounts find_discounts(const ust_ngram_run *run) {
  double n[RARE + 2] = {0};
  for (size_t i = 0; i < run->size; i++)
    if (run->counts[i] <= RARE + 1) n[run->counts[i]]++;
  discounts d = {.off = 0};
  double m = n[1] > 0 ? (RARE + 1) * n[RARE + 1] / n[1] : 1;
  bool valid = m < 1;
  for (int r = 1; r <= RARE && valid; r++) {
    d.ratio[r] = n[r] > 0 ? ((r + 1) * n[r + 1] / (r * n[r]) - m) / (1 - m) : 0;
    valid = d.ratio[r] > 0 && d.ratio[r] <= 1;
  }
  if (valid) return d;
  for (int r = 1; r <= RARE; r++) d.ratio[r] = 1;
  d.off = n[1] > 0 && n[2] > 0 ? n[1] / (n[1] + 2 * n[2]) : 0.5;
  return d;
}

static double discounted(const discounts *d, uint32_t count) {
  return (count <= RARE ? d->ratio[count] * count : count) - d->off;
}

/* ---- contexts ---- */

/* The end of the context that begins at `from`. */
static size_t context_end(const ust_ngram_run *run, size_t from, int bits) {
  size_t to = from;
  while (to < run->size && run->keys[to] >> bits == run->keys[from] >> bits) to++;
  return to;
}

/* What a context's discounted counts are divided by: its count, and one more where every successor is too frequent
 * to be discounted, which would leave nothing for the others. */
static double denominator(const ust_ngram_run *run, const discounts *d, size_t from, size_t to) {
  double seen = 0, kept = 0;
  for (size_t i = from; i < to; i++) {
    seen += run->counts[i];
    kept += discounted(d, run->counts[i]);
  }
  return seen - kept < 0.01 ? seen + 1 : seen;
}

static double unigram_probability(const ust_ngram_fit *fit, size_t token) {
  return ((double)fit->unigrams[token] + 0.5) / ((double)fit->total + 0.5 * fit->vocabulary);
}

/* ---- pruning ---- */

/* Weighted differences on a log scale; 0: the back-off says it at least as well. */
typedef struct ranks {
  uint16_t *of[LEVELS];
} ranks;

static uint16_t rank_of(double difference) {
  if (!(difference > 0)) return 0;
  double rank = (log2(difference) - LOWEST_DOUBLING) * RANKS_A_DOUBLING;
  return (uint16_t)(rank < 0 ? 0 : rank >= RANKS - 1 ? RANKS - 1 : rank);
}

/* P(w | last) for one `last`: explicit where owner[w] is last + 1, else backoff * unigram. */
typedef struct lower_order {
  uint32_t *owner;     /* [vocabulary] */
  double *probability; /* [vocabulary] */
  double backoff;
} lower_order;

static double backoff_weight(double kept, double covered) {
  return (1 - kept) / UST_MAX(1 - covered, 1e-12);
}

static void rank_bigrams(const ust_ngram_fit *fit, const discounts *d, size_t from, size_t to, lower_order *lower,
                         uint16_t *rank) {
  const ust_ngram_run *run = fit->counter[BIGRAM].runs;
  uint64_t mask = ((uint64_t)1 << fit->id_bits) - 1;
  double whole = denominator(run, d, from, to), kept = 0, covered = 0;
  for (size_t i = from; i < to; i++) {
    size_t token = run->keys[i] & mask;
    lower->owner[token] = (uint32_t)(run->keys[i] >> fit->id_bits) + 1;
    lower->probability[token] = discounted(d, run->counts[i]) / whole;
    kept += lower->probability[token];
    covered += unigram_probability(fit, token);
  }
  lower->backoff = backoff_weight(kept, covered);
  for (size_t i = from; i < to; i++) {
    size_t token = run->keys[i] & mask;
    double instead = lower->backoff * unigram_probability(fit, token);
    rank[i] = rank_of(discounted(d, run->counts[i]) * log(lower->probability[token] / instead));
  }
}

static void rank_trigrams(const ust_ngram_fit *fit, const discounts *d, size_t from, size_t to,
                          const lower_order *lower, uint16_t *rank) {
  const ust_ngram_run *run = fit->counter[TRIGRAM].runs;
  uint64_t mask = ((uint64_t)1 << fit->id_bits) - 1;
  uint32_t last = (uint32_t)(run->keys[from] >> 2 * fit->id_bits);
  double whole = denominator(run, d, from, to), backoff = 1;
  for (int pass = 0; pass < 2; pass++) { /* first the back-off weight, then the differences */
    double kept = 0, covered = 0;
    for (size_t i = from; i < to; i++) {
      size_t token = run->keys[i] & mask;
      double instead = lower->owner[token] == last + 1 ? lower->probability[token]
                                                       : lower->backoff * unigram_probability(fit, token);
      double probability = discounted(d, run->counts[i]) / whole;
      kept += probability;
      covered += instead;
      if (pass) rank[i] = rank_of(discounted(d, run->counts[i]) * log(probability / (backoff * instead)));
    }
    backoff = backoff_weight(kept, covered);
  }
}

/* Ranks every n-gram. A trigram's `last` always has bigrams, so both lists are walked together. */
static void rank_all(const ust_ngram_fit *fit, const discounts *d, lower_order *lower, const ranks *ranked) {
  const ust_ngram_run *bigrams = fit->counter[BIGRAM].runs, *trigrams = fit->counter[TRIGRAM].runs;
  size_t tri = 0;
  for (size_t from = 0, to; from < bigrams->size; from = to) {
    to = context_end(bigrams, from, fit->id_bits);
    rank_bigrams(fit, &d[BIGRAM], from, to, lower, ranked->of[BIGRAM]);
    uint64_t last = bigrams->keys[from] >> fit->id_bits;
    for (size_t end; tri < trigrams->size && trigrams->keys[tri] >> 2 * fit->id_bits == last; tri = end) {
      end = context_end(trigrams, tri, fit->id_bits);
      rank_trigrams(fit, &d[TRIGRAM], tri, end, lower, ranked->of[TRIGRAM]);
    }
  }
}

/* Bytes of the file when only ranks of at least `least` are kept. */
static uint64_t file_bytes(const ust_ngram_fit *fit, const ranks *ranked, int least) {
  size_t id = ust_ngram_id_size(fit->vocabulary);
  uint64_t bytes = UST_NGRAM_HEADER + UST_NGRAM_CHECKSUM + 2 * (uint64_t)fit->vocabulary;
  for (int level = 0; level < LEVELS; level++) {
    const ust_ngram_run *run = fit->counter[level].runs;
    uint64_t context = UINT64_MAX;
    for (size_t i = 0; i < run->size; i++) {
      if (ranked->of[level][i] < least) continue;
      bytes += id + 2;
      if (run->keys[i] >> fit->id_bits != context) bytes += id * (size_t)(level + 2);
      context = run->keys[i] >> fit->id_bits;
    }
  }
  return bytes;
}

/* Fills `ranked` and finds the lowest rank with which the file has at most max_bytes. */
static understudy_status find_least(const ust_ngram_fit *fit, const discounts *d, size_t max_bytes, const char *path,
                                    const ranks *ranked, int *least, understudy_error *err) {
  uint64_t smallest = UST_NGRAM_HEADER + UST_NGRAM_CHECKSUM + 2 * (uint64_t)fit->vocabulary;
  if (max_bytes < smallest)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT,
                     "%s: limit of %zu bytes, expected at least %llu with this vocabulary", path, max_bytes,
                     (unsigned long long)smallest);
  size_t size = (size_t)fit->vocabulary;
  lower_order lower = {.owner = ust_alloc(size * sizeof *lower.owner),
                       .probability = ust_alloc(size * sizeof *lower.probability)};
  understudy_status status = UNDERSTUDY_OK;
  if (lower.owner && lower.probability)
    rank_all(fit, d, &lower, ranked);
  else
    status = ust_error_memory(err, size * 12, "n-gram pruning");
  ust_free(lower.owner);
  ust_free(lower.probability);
  UST_TRY(status);
  int fits = RANKS, low = 0; /* with RANKS nothing is kept */
  while (low < fits) {
    int middle = (low + fits) / 2;
    if (file_bytes(fit, ranked, middle) <= max_bytes)
      fits = middle;
    else
      low = middle + 1;
  }
  *least = fits;
  return UNDERSTUDY_OK;
}

/* ---- the file ---- */

/* One level's arrays, encoded. */
typedef struct section {
  ust_buffer last, before, successors, tokens, costs;
  uint64_t contexts, entries;
} section;

typedef struct entry {
  uint32_t token;
  uint16_t cost;
} entry;

static int likeliest_first(const void *a, const void *b) {
  const entry *x = a, *y = b;
  if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
  return x->token < y->token ? -1 : x->token > y->token;
}

static bool append_number(ust_buffer *buffer, uint64_t value, size_t size) {
  unsigned char bytes[8];
  ust_ngram_put(bytes, value, size);
  return ust_buffer_append(buffer, bytes, size);
}

/* Appends one context with what is kept of it; false: out of memory. */
static bool emit_context(const ust_ngram_fit *fit, int level, uint64_t context, entry *kept, size_t count,
                         section *out) {
  size_t id = ust_ngram_id_size(fit->vocabulary);
  qsort(kept, count, sizeof *kept, likeliest_first);
  /* A context that has seen the whole vocabulary drops its last successor, so that the back-off has a taker. */
  if (count == (size_t)fit->vocabulary) count--;
  if (count == 0) return true;
  out->contexts++;
  out->entries += count;
  uint64_t mask = ((uint64_t)1 << fit->id_bits) - 1;
  bool ok = append_number(&out->last, level == TRIGRAM ? context >> fit->id_bits : context, id);
  if (level == TRIGRAM) ok = ok && append_number(&out->before, context & mask, id);
  ok = ok && append_number(&out->successors, count, id);
  for (size_t i = 0; i < count && ok; i++)
    ok = append_number(&out->tokens, kept[i].token, id) && append_number(&out->costs, kept[i].cost, 2);
  return ok;
}

/* Encodes one level. `rank` NULL: everything is kept. `kept` has room for the vocabulary. */
static bool emit_level(const ust_ngram_fit *fit, int level, const discounts *d, const uint16_t *rank, int least,
                       entry *kept, section *out) {
  const ust_ngram_run *run = fit->counter[level].runs;
  uint64_t mask = ((uint64_t)1 << fit->id_bits) - 1;
  for (size_t from = 0, to; from < run->size; from = to) {
    to = context_end(run, from, fit->id_bits);
    double whole = denominator(run, d, from, to);
    size_t count = 0;
    for (size_t i = from; i < to; i++)
      if (!rank || rank[i] >= least)
        kept[count++] = (entry){.token = (uint32_t)(run->keys[i] & mask),
                                .cost = ust_ngram_cost(discounted(d, run->counts[i]) / whole)};
    if (!emit_context(fit, level, run->keys[from] >> fit->id_bits, kept, count, out)) return false;
  }
  return true;
}

static void write_summed(ust_writer *writer, uint64_t *sum, const void *data, size_t size) {
  *sum = ust_hash(*sum, data, size);
  ust_writer_write(writer, data, size);
}

static understudy_status write_file(const ust_ngram_fit *fit, const section *sections, const char *path,
                                    understudy_error *err) {
  if (sections[BIGRAM].entries > UINT32_MAX || sections[TRIGRAM].entries > UINT32_MAX)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: more than 2^32 n-grams; set a size limit", path);
  ust_writer writer;
  UST_TRY(ust_writer_open(&writer, path, err));
  unsigned char header[UST_NGRAM_HEADER] = UST_NGRAM_MAGIC;
  uint64_t sum = UST_HASH_START;
  ust_ngram_put(header + 8, UST_NGRAM_VERSION, 4);
  ust_ngram_put(header + 12, (uint64_t)fit->vocabulary, 4);
  ust_ngram_put(header + 16, fit->fingerprint, 8);
  for (int level = 0; level < LEVELS; level++) {
    ust_ngram_put(header + 24 + 4 * level, sections[level].contexts, 4);
    ust_ngram_put(header + 32 + 4 * level, sections[level].entries, 4);
  }
  write_summed(&writer, &sum, header, sizeof header);
  for (int t = 0; t < fit->vocabulary; t++) {
    unsigned char cost[2];
    ust_ngram_put(cost, ust_ngram_cost(unigram_probability(fit, (size_t)t)), 2);
    write_summed(&writer, &sum, cost, 2);
  }
  for (int level = 0; level < LEVELS; level++) {
    const section *s = &sections[level];
    const ust_buffer *parts[] = {&s->last, &s->before, &s->successors, &s->tokens, &s->costs};
    for (int i = 0; i < 5; i++) write_summed(&writer, &sum, parts[i]->data, parts[i]->size);
  }
  unsigned char checksum[UST_NGRAM_CHECKSUM];
  ust_ngram_put(checksum, sum, sizeof checksum);
  ust_writer_write(&writer, checksum, sizeof checksum);
  return ust_writer_commit(&writer, err);
}

static void section_free(section *s) {
  ust_buffer *parts[] = {&s->last, &s->before, &s->successors, &s->tokens, &s->costs};
  for (int i = 0; i < 5; i++) ust_buffer_free(parts[i]);
}

/* Prunes, encodes and writes; `ranked` is allocated where there is a limit. */
static understudy_status write_fitted(const ust_ngram_fit *fit, const char *path, size_t max_bytes, const ranks *ranked,
                                      entry *kept, understudy_error *err) {
  discounts d[LEVELS];
  for (int level = 0; level < LEVELS; level++) d[level] = find_discounts(fit->counter[level].runs);
  int least = 0;
  if (max_bytes) UST_TRY(find_least(fit, d, max_bytes, path, ranked, &least, err));
  section sections[LEVELS];
  memset(sections, 0, sizeof sections);
  bool ok = true;
  for (int level = 0; level < LEVELS && ok; level++)
    ok = emit_level(fit, level, &d[level], max_bytes ? ranked->of[level] : NULL, least, kept, &sections[level]);
  understudy_status status = ok ? write_file(fit, sections, path, err)
                                : ust_error_memory(err, sections[TRIGRAM].tokens.size, "an n-gram file");
  for (int level = 0; level < LEVELS; level++) section_free(&sections[level]);
  return status;
}

understudy_status ust_ngram_fit_write(ust_ngram_fit *fit, const char *path, size_t max_bytes, understudy_error *err) {
  for (int level = 0; level < LEVELS; level++) UST_TRY(ust_ngram_counter_finish(&fit->counter[level], err));
  ranks ranked = {{NULL}};
  entry *kept = ust_alloc((size_t)fit->vocabulary * sizeof *kept);
  bool complete = kept != NULL;
  for (int level = 0; level < LEVELS && max_bytes; level++) {
    ranked.of[level] = ust_alloc(fit->counter[level].runs[0].size * sizeof(uint16_t));
    complete = complete && ranked.of[level];
  }
  understudy_status status = complete ? write_fitted(fit, path, max_bytes, &ranked, kept, err)
                                      : ust_error_memory(err, fit->counter[TRIGRAM].runs[0].size * 2, "n-gram pruning");
  for (int level = 0; level < LEVELS; level++) ust_free(ranked.of[level]);
  ust_free(kept);
  return status;
}
