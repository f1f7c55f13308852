/* The n-gram file in memory: reading with every check, probabilities, the likeliest successors.
 *
 * Nothing in the file is trusted: its size must be what the header says before anything is allocated, the checksum
 * must match, and every id, order and sum is checked. Back-off weights are computed here, from the rounded
 * probabilities, so that each context sums to one whatever was pruned. */
#include <stdlib.h>

#include "base/base.h"
#include "ngram/internal.h"

enum { BIGRAM, TRIGRAM, LEVELS };

/* Contexts of one length and their successors, likeliest first. */
typedef struct level {
  uint32_t contexts, entries;
  uint64_t *key;    /* [contexts] last << 32 | before */
  uint32_t *start;  /* [contexts + 1] first successor of each */
  double *backoff;  /* [contexts] */
  int32_t *token;   /* [entries] */
  uint16_t *cost;   /* [entries] */
  uint32_t *slots;  /* [slot_count] hash table: context + 1 */
  uint32_t slot_count;
} level;

struct ust_ngram {
  int vocabulary;
  double *unigram;  /* [vocabulary] */
  int32_t *ordered; /* [vocabulary] tokens, likeliest first */
  level levels[LEVELS];
  size_t bytes;
};

/* ---- reading ---- */

/* The file's bytes, and what its errors are about. */
typedef struct reading {
  const char *path;
  unsigned char *data;
  size_t size, at;
  size_t id_size;
  understudy_error *err;
} reading;

static understudy_status bad(const reading *r, const char *what) {
  return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: %s", r->path, what);
}

static uint64_t take(reading *r, size_t size) {
  uint64_t value = ust_ngram_get(r->data + r->at, size);
  r->at += size;
  return value;
}

static size_t expected_size(uint64_t vocabulary, const uint64_t *contexts, const uint64_t *entries, size_t id) {
  uint64_t size = UST_NGRAM_HEADER + UST_NGRAM_CHECKSUM + 2 * vocabulary; /* counts are 32 bits: sums cannot wrap */
  for (int i = 0; i < LEVELS; i++) size += contexts[i] * id * (uint64_t)(i + 2) + entries[i] * (id + 2);
  return size;
}

/* Reads the whole file after checking its header against its size. */
static understudy_status read_whole(const ust_file *file, reading *r, int vocabulary) {
  unsigned char header[UST_NGRAM_HEADER];
  size_t there = file->size < sizeof header ? (size_t)file->size : sizeof header;
  UST_TRY(ust_file_read(file, 0, header, there, r->err));
  if (there < 12 || memcmp(header, UST_NGRAM_MAGIC, 8) != 0)
    return bad(r, "is not an n-gram file of understudy (expected to begin with " UST_NGRAM_MAGIC ")");
  uint64_t version = ust_ngram_get(header + 8, 4), found = 0, contexts[LEVELS], entries[LEVELS];
  if (version != UST_NGRAM_VERSION)
    return ust_error(r->err, version > UST_NGRAM_VERSION ? UNDERSTUDY_ERROR_UNSUPPORTED : UNDERSTUDY_ERROR_FORMAT,
                     "%s: n-gram file of version %llu%s, expected version %d", r->path, (unsigned long long)version,
                     version > UST_NGRAM_VERSION ? ", newer than this program" : "", UST_NGRAM_VERSION);
  if (there < sizeof header) return bad(r, "ends inside the header");
  found = ust_ngram_get(header + 12, 4);
  r->id_size = found <= 65536 ? 2 : 4;
  for (int i = 0; i < LEVELS; i++) {
    contexts[i] = ust_ngram_get(header + 24 + 4 * i, 4);
    entries[i] = ust_ngram_get(header + 32 + 4 * i, 4);
  }
  uint64_t expected = expected_size(found, contexts, entries, r->id_size);
  if (file->size != expected)
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: has %llu bytes, expected %llu by its header", r->path,
                     (unsigned long long)file->size, (unsigned long long)expected);
  if (found != (uint64_t)vocabulary)
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: vocabulary of %llu tokens, expected %d: made for another tokenizer", r->path,
                     (unsigned long long)found, vocabulary);
  r->size = (size_t)expected;
  r->data = malloc(r->size);
  if (!r->data) return ust_error_memory(r->err, r->size, r->path);
  return ust_file_read(file, 0, r->data, r->size, r->err);
}

static understudy_status check_identity(reading *r, uint64_t fingerprint) {
  size_t body = r->size - UST_NGRAM_CHECKSUM;
  uint64_t sum = ust_ngram_checksum(UST_NGRAM_CHECKSUM_START, r->data, body);
  if (sum != ust_ngram_get(r->data + body, UST_NGRAM_CHECKSUM))
    return bad(r, "checksum does not match: the file is damaged");
  uint64_t found = ust_ngram_get(r->data + 16, 8);
  if (found != fingerprint)
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: made for another tokenizer (fingerprint %016llx, expected %016llx)", r->path,
                     (unsigned long long)found, (unsigned long long)fingerprint);
  return UNDERSTUDY_OK;
}

static void *allocate(ust_ngram *ngram, size_t count, size_t size) {
  ngram->bytes += count * size;
  return ust_alloc(count * size);
}

/* Reads a level's contexts: ascending, and their successors' numbers add up. */
static understudy_status read_contexts(reading *r, ust_ngram *ngram, int which) {
  level *l = &ngram->levels[which];
  uint64_t vocabulary = (uint64_t)ngram->vocabulary, sum = 0;
  for (uint32_t i = 0; i < l->contexts; i++) l->key[i] = take(r, r->id_size) << 32;
  for (uint32_t i = 0; i < l->contexts && which == TRIGRAM; i++) l->key[i] |= take(r, r->id_size);
  for (uint32_t i = 0; i < l->contexts; i++) {
    uint64_t successors = take(r, r->id_size);
    if (l->key[i] >> 32 >= vocabulary || (uint32_t)l->key[i] >= vocabulary)
      return bad(r, "context with a token outside the vocabulary");
    if (i > 0 && l->key[i] <= l->key[i - 1]) return bad(r, "contexts out of order");
    if (successors == 0 || successors >= vocabulary) return bad(r, "context with no successor or too many");
    l->start[i] = (uint32_t)sum;
    sum += successors;
    if (sum > l->entries) break;
  }
  if (sum != l->entries) return bad(r, "numbers of successors do not add up");
  l->start[l->contexts] = l->entries;
  return UNDERSTUDY_OK;
}

/* Reads a level's successors: likeliest first, each once. `seen` has room for the vocabulary. */
static understudy_status read_successors(reading *r, ust_ngram *ngram, int which, uint32_t *seen) {
  level *l = &ngram->levels[which];
  for (uint32_t i = 0; i < l->entries; i++) l->token[i] = (int32_t)take(r, r->id_size);
  for (uint32_t i = 0; i < l->entries; i++) l->cost[i] = (uint16_t)take(r, 2);
  memset(seen, 0, (size_t)ngram->vocabulary * sizeof *seen);
  for (uint32_t c = 0; c < l->contexts; c++) {
    double sum = 0;
    for (uint32_t i = l->start[c]; i < l->start[c + 1]; i++) {
      if (l->token[i] < 0 || l->token[i] >= ngram->vocabulary) return bad(r, "successor outside the vocabulary");
      if (seen[l->token[i]] == c + 1) return bad(r, "successor listed twice");
      if (i > l->start[c] && l->cost[i] < l->cost[i - 1]) return bad(r, "successors out of order");
      seen[l->token[i]] = c + 1;
      sum += ust_ngram_probability(l->cost[i]);
    }
    if (!(sum < 1)) return bad(r, "probabilities of a context reach one");
  }
  return UNDERSTUDY_OK;
}

static uint32_t slot_of(const level *l, uint64_t key) {
  uint64_t hash = key * 0x9e3779b97f4a7c15u;
  return (uint32_t)(hash >> 32) & (l->slot_count - 1);
}

static understudy_status read_level(reading *r, ust_ngram *ngram, int which, uint32_t *seen) {
  level *l = &ngram->levels[which];
  for (l->slot_count = 2; l->slot_count < 2 * (uint64_t)l->contexts && l->slot_count < 1u << 31;) l->slot_count *= 2;
  l->key = allocate(ngram, l->contexts, sizeof *l->key);
  l->start = allocate(ngram, (size_t)l->contexts + 1, sizeof *l->start);
  l->backoff = allocate(ngram, l->contexts, sizeof *l->backoff);
  l->token = allocate(ngram, l->entries, sizeof *l->token);
  l->cost = allocate(ngram, l->entries, sizeof *l->cost);
  l->slots = allocate(ngram, l->slot_count, sizeof *l->slots);
  if (!l->key || !l->start || !l->backoff || !l->token || !l->cost || !l->slots)
    return ust_error_memory(r->err, ngram->bytes, r->path);
  UST_TRY(read_contexts(r, ngram, which));
  UST_TRY(read_successors(r, ngram, which, seen));
  for (uint32_t c = 0; c < l->contexts; c++) {
    uint32_t slot = slot_of(l, l->key[c]);
    while (l->slots[slot]) slot = (slot + 1) & (l->slot_count - 1);
    l->slots[slot] = c + 1;
  }
  return UNDERSTUDY_OK;
}

/* ---- unigrams and back-off weights ---- */

static int cheapest_first(const void *a, const void *b) {
  const uint32_t *x = a, *y = b; /* cost, token */
  if (x[0] != y[0]) return x[0] < y[0] ? -1 : 1;
  return x[1] < y[1] ? -1 : x[1] > y[1];
}

static understudy_status read_unigrams(reading *r, ust_ngram *ngram) {
  size_t count = (size_t)ngram->vocabulary;
  ngram->unigram = allocate(ngram, count, sizeof *ngram->unigram);
  ngram->ordered = allocate(ngram, count, sizeof *ngram->ordered);
  uint32_t *pairs = ust_alloc(count * 2 * sizeof *pairs);
  if (!ngram->unigram || !ngram->ordered || !pairs) {
    ust_free(pairs);
    return ust_error_memory(r->err, ngram->bytes, r->path);
  }
  double sum = 0;
  for (size_t i = 0; i < count; i++) {
    pairs[2 * i] = (uint32_t)take(r, 2);
    pairs[2 * i + 1] = (uint32_t)i;
    ngram->unigram[i] = ust_ngram_probability((uint16_t)pairs[2 * i]);
    sum += ngram->unigram[i];
  }
  for (size_t i = 0; i < count; i++) ngram->unigram[i] /= sum;
  qsort(pairs, count, 2 * sizeof *pairs, cheapest_first);
  for (size_t i = 0; i < count; i++) ngram->ordered[i] = (int32_t)pairs[2 * i + 1];
  ust_free(pairs);
  return UNDERSTUDY_OK;
}

/* P(w | last) of one `last`: explicit[w] where owner[w] is its bigram context + 1, else what the back-off says. Both
 * arrays are [vocabulary]. */
typedef struct lower_order {
  const ust_ngram *ngram;
  uint32_t *owner, context; /* context + 1 of `last`, 0: it has none */
  double *explicit, backoff;
} lower_order;

static double lower_probability(const lower_order *lower, int32_t token) {
  if (lower->context && lower->owner[token] == lower->context) return lower->explicit[token];
  return lower->backoff * lower->ngram->unigram[token];
}

/* What one context hands to its back-off: what its successors leave, over what the lower order gives to all other
 * tokens. That is 1 minus what it gives to the successors, unless so little is left that the difference would be
 * rounding: then it is added up. `listed` marks the successors meanwhile. */
static double backoff_weight(const level *l, uint32_t context, const lower_order *lower, unsigned char *listed) {
  double kept = 0, covered = 0;
  for (uint32_t i = l->start[context]; i < l->start[context + 1]; i++) {
    kept += ust_ngram_probability(l->cost[i]);
    covered += lower_probability(lower, l->token[i]);
  }
  double rest = 1 - covered;
  if (rest < 1e-4) {
    for (uint32_t i = l->start[context]; i < l->start[context + 1]; i++) listed[l->token[i]] = 1;
    rest = 0;
    for (int32_t t = 0; t < lower->ngram->vocabulary; t++)
      if (!listed[t]) rest += lower_probability(lower, t);
    for (uint32_t i = l->start[context]; i < l->start[context + 1]; i++) listed[l->token[i]] = 0;
  }
  return (1 - kept) / rest;
}

static int64_t find(const level *l, uint64_t key) {
  for (uint32_t slot = slot_of(l, key); l->slots[slot]; slot = (slot + 1) & (l->slot_count - 1))
    if (l->key[l->slots[slot] - 1] == key) return l->slots[slot] - 1;
  return -1;
}

/* Bigram weights rest on unigrams, trigram weights on bigrams; contexts are in order of `last`, so that the bigrams
 * of each are spread out once. */
static void find_backoffs(ust_ngram *ngram, uint32_t *owner, double *explicit, unsigned char *listed) {
  level *bi = &ngram->levels[BIGRAM], *tri = &ngram->levels[TRIGRAM];
  lower_order unigrams = {.ngram = ngram, .backoff = 1};
  for (uint32_t c = 0; c < bi->contexts; c++) bi->backoff[c] = backoff_weight(bi, c, &unigrams, listed);
  memset(owner, 0, (size_t)ngram->vocabulary * sizeof *owner);
  lower_order lower = {.ngram = ngram, .owner = owner, .explicit = explicit};
  for (uint32_t c = 0; c < tri->contexts; c++) {
    uint64_t last = tri->key[c] >> 32 << 32;
    if (c == 0 || tri->key[c - 1] >> 32 << 32 != last) {
      int64_t below = find(bi, last);
      lower.context = (uint32_t)(below + 1);
      lower.backoff = below < 0 ? 1 : bi->backoff[below];
      for (uint32_t i = below < 0 ? 0 : bi->start[below]; below >= 0 && i < bi->start[below + 1]; i++) {
        owner[bi->token[i]] = lower.context;
        explicit[bi->token[i]] = ust_ngram_probability(bi->cost[i]);
      }
    }
    tri->backoff[c] = backoff_weight(tri, c, &lower, listed);
  }
}

/* ---- opening ---- */

static understudy_status load(reading *r, ust_ngram *ngram) {
  r->at = UST_NGRAM_HEADER;
  for (int i = 0; i < LEVELS; i++) {
    ngram->levels[i].contexts = (uint32_t)ust_ngram_get(r->data + 24 + 4 * i, 4);
    ngram->levels[i].entries = (uint32_t)ust_ngram_get(r->data + 32 + 4 * i, 4);
  }
  size_t count = (size_t)ngram->vocabulary;
  uint32_t *owner = ust_alloc(count * sizeof *owner);
  double *explicit = ust_alloc(count * sizeof *explicit);
  unsigned char *listed = ust_alloc(count);
  understudy_status status =
    owner && explicit && listed ? UNDERSTUDY_OK : ust_error_memory(r->err, count * 13, r->path);
  if (status == UNDERSTUDY_OK) status = read_unigrams(r, ngram);
  for (int i = 0; i < LEVELS && status == UNDERSTUDY_OK; i++) status = read_level(r, ngram, i, owner);
  if (status == UNDERSTUDY_OK) find_backoffs(ngram, owner, explicit, listed);
  ust_free(owner);
  ust_free(explicit);
  ust_free(listed);
  return status;
}

understudy_status ust_ngram_open(const char *path, int vocabulary, uint64_t fingerprint, ust_ngram **ngram,
                                 understudy_error *err) {
  *ngram = NULL;
  if (vocabulary < 1 || vocabulary > UST_NGRAM_MOST_TOKENS)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: vocabulary of %d tokens, expected 1 to %d", path, vocabulary,
                     UST_NGRAM_MOST_TOKENS);
  ust_file file;
  UST_TRY(ust_file_open(&file, path, err));
  reading r = {.path = path, .err = err};
  understudy_status status = read_whole(&file, &r, vocabulary);
  ust_file_close(&file);
  if (status == UNDERSTUDY_OK) status = check_identity(&r, fingerprint);
  ust_ngram *made = NULL;
  if (status == UNDERSTUDY_OK) {
    made = ust_alloc(sizeof *made);
    status = made ? UNDERSTUDY_OK : ust_error_memory(err, sizeof *made, path);
  }
  if (made) {
    made->vocabulary = vocabulary;
    made->bytes = sizeof *made;
    status = load(&r, made);
  }
  free(r.data);
  if (status == UNDERSTUDY_OK)
    *ngram = made;
  else
    ust_ngram_close(made);
  return status;
}

void ust_ngram_close(ust_ngram *ngram) {
  if (!ngram) return;
  for (int i = 0; i < LEVELS; i++) {
    level *l = &ngram->levels[i];
    void *parts[] = {l->key, l->start, l->backoff, l->token, l->cost, l->slots};
    for (int j = 0; j < 6; j++) ust_free(parts[j]);
  }
  ust_free(ngram->unigram);
  ust_free(ngram->ordered);
  ust_free(ngram);
}

size_t ust_ngram_bytes(const ust_ngram *ngram) { return ngram->bytes; }

/* ---- look-up ---- */

/* Finds the contexts of (before, last); -1 where there is none. */
static void find_contexts(const ust_ngram *ngram, int32_t before, int32_t last, int64_t context[LEVELS]) {
  context[BIGRAM] = context[TRIGRAM] = -1;
  if (last < 0 || last >= ngram->vocabulary) return;
  context[BIGRAM] = find(&ngram->levels[BIGRAM], (uint64_t)last << 32);
  if (before < 0 || before >= ngram->vocabulary) return;
  context[TRIGRAM] = find(&ngram->levels[TRIGRAM], (uint64_t)last << 32 | (uint64_t)before);
}

/* Where a context lists a token; -1: nowhere. */
static int64_t place_of(const level *l, int64_t context, int32_t token) {
  if (context < 0) return -1;
  for (uint32_t i = l->start[context]; i < l->start[context + 1]; i++)
    if (l->token[i] == token) return i;
  return -1;
}

double ust_ngram_logprob(const ust_ngram *ngram, int32_t before, int32_t last, int32_t token) {
  if (token < 0 || token >= ngram->vocabulary) return -INFINITY;
  int64_t context[LEVELS];
  find_contexts(ngram, before, last, context);
  double weight = 1;
  for (int which = TRIGRAM; which >= BIGRAM; which--) {
    const level *l = &ngram->levels[which];
    int64_t place = place_of(l, context[which], token);
    if (place >= 0) return log(weight * ust_ngram_probability(l->cost[place]));
    if (context[which] >= 0) weight *= l->backoff[context[which]];
  }
  return log(weight * ngram->unigram[token]);
}

/* One order's successors on their way into a merge: `head` is the probability of tokens[0], 0 at the end. */
typedef struct stream {
  const int32_t *tokens;
  const uint16_t *costs; /* NULL: unigrams */
  uint32_t left;
  double weight, head;
} stream;

static void find_head(const ust_ngram *ngram, stream *s) {
  if (s->left == 0)
    s->head = 0;
  else
    s->head = s->weight * (s->costs ? ust_ngram_probability(*s->costs) : ngram->unigram[*s->tokens]);
}

/* Whether a context of a higher order lists the token: then the lower order has no say. */
static bool covered(const ust_ngram *ngram, const int64_t context[LEVELS], int order, int32_t token) {
  for (int which = order; which < LEVELS; which++)
    if (place_of(&ngram->levels[which], context[which], token) >= 0) return true;
  return false;
}

int ust_ngram_candidates(const ust_ngram *ngram, int32_t before, int32_t last, int max, ust_ngram_candidate *out) {
  int64_t context[LEVELS];
  find_contexts(ngram, before, last, context);
  stream streams[LEVELS + 1] = {{0}}; /* by order: unigrams, bigrams, trigrams */
  double weight = 1;
  for (int which = TRIGRAM; which >= BIGRAM; which--) {
    if (context[which] < 0) continue;
    const level *l = &ngram->levels[which];
    uint32_t from = l->start[context[which]], to = l->start[context[which] + 1];
    streams[which + 1] = (stream){l->token + from, l->cost + from, to - from, weight, 0};
    weight *= l->backoff[context[which]];
  }
  streams[0] = (stream){ngram->ordered, NULL, (uint32_t)ngram->vocabulary, weight, 0};
  for (int order = 0; order <= LEVELS; order++) find_head(ngram, &streams[order]);
  int found = 0;
  while (found < max) {
    int best = LEVELS;
    for (int order = LEVELS - 1; order >= 0; order--)
      if (streams[order].head > streams[best].head) best = order;
    stream *s = &streams[best];
    if (s->left == 0) break;
    if (!covered(ngram, context, best, *s->tokens))
      out[found++] = (ust_ngram_candidate){
        .token = *s->tokens, .probability = (float)s->head, .order = best, .source = UST_SOURCE_FILE};
    s->tokens++;
    if (s->costs) s->costs++;
    s->left--;
    find_head(ngram, s);
  }
  return found;
}
