/* The n-gram file in memory: reading with every check, probabilities, the likeliest successors.
 *
 * Nothing in the file is trusted: its size must be what the header says before anything is allocated, the checksum
 * must match, and every id, order and sum is checked. Back-off weights are computed here, from the rounded
 * probabilities, so that each context sums to one whatever was pruned. */
#include <math.h>
#include <stdlib.h>

#include "base/base.h"
#include "ngram/internal.h"

enum { BIGRAM, TRIGRAM, LEVELS };

/* A look-up finds the caches full of a model's weights, so what it reads together lies together. */
typedef struct context {
  uint64_t key; /* last << 32 | before */
  double backoff;
  uint32_t first, end; /* its successors */
} context;

typedef struct successor {
  int32_t token;
  float probability;
} successor;

/* Contexts of one length and their successors, likeliest first. */
typedef struct level {
  uint32_t context_count, successor_count;
  context *contexts;
  successor *successors;
  uint32_t *slots; /* [slot_count] hash table: context + 1 */
  uint32_t slot_count;
} level;

struct ust_ngram {
  int vocabulary;
  double *unigram;    /* [vocabulary] */
  successor *ordered; /* [vocabulary] all tokens, likeliest first */
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
  double coarse[256], fine[256]; /* probabilities of the upper and the lower byte of a cost */
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

static double take_probability(reading *r) {
  uint64_t cost = take(r, 2);
  return r->coarse[cost >> 8] * r->fine[cost & 255];
}

/* Rounded down, so that what adds up to less than one still does. */
static float take_float(reading *r) {
  const double exact = take_probability(r);
  const float rounded = (float)exact;
  return (double)rounded > exact ? nextafterf(rounded, 0) : rounded;
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
  uint64_t sum = ust_hash(UST_HASH_START, r->data, body);
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
  for (uint32_t i = 0; i < l->context_count; i++) l->contexts[i].key = take(r, r->id_size) << 32;
  for (uint32_t i = 0; i < l->context_count && which == TRIGRAM; i++) l->contexts[i].key |= take(r, r->id_size);
  for (uint32_t i = 0; i < l->context_count; i++) {
    context *c = &l->contexts[i];
    uint64_t successors = take(r, r->id_size);
    if (c->key >> 32 >= vocabulary || (uint32_t)c->key >= vocabulary)
      return bad(r, "context with a token outside the vocabulary");
    if (i > 0 && c->key <= c[-1].key) return bad(r, "contexts out of order");
    if (successors == 0 || successors >= vocabulary) return bad(r, "context with no successor or too many");
    c->first = (uint32_t)sum;
    sum += successors;
    if (sum > l->successor_count) break;
    c->end = (uint32_t)sum;
  }
  return sum == l->successor_count ? UNDERSTUDY_OK : bad(r, "numbers of successors do not add up");
}

/* Reads a level's successors: likeliest first, each once. `seen` has room for the vocabulary. */
static understudy_status read_successors(reading *r, ust_ngram *ngram, int which, uint32_t *seen) {
  level *l = &ngram->levels[which];
  for (uint32_t i = 0; i < l->successor_count; i++) l->successors[i].token = (int32_t)take(r, r->id_size);
  for (uint32_t i = 0; i < l->successor_count; i++) l->successors[i].probability = take_float(r);
  memset(seen, 0, (size_t)ngram->vocabulary * sizeof *seen);
  for (uint32_t c = 0; c < l->context_count; c++) {
    double sum = 0;
    for (uint32_t i = l->contexts[c].first; i < l->contexts[c].end; i++) {
      const successor *s = &l->successors[i];
      if (s->token < 0 || s->token >= ngram->vocabulary) return bad(r, "successor outside the vocabulary");
      if (seen[s->token] == c + 1) return bad(r, "successor listed twice");
      if (i > l->contexts[c].first && s->probability > s[-1].probability) return bad(r, "successors out of order");
      seen[s->token] = c + 1;
      sum += (double)s->probability;
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
  const uint32_t most = 1u << 30; /* half of the slots stay free */
  if (l->context_count > most)
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: found %u contexts, expected at most %u", r->path,
                     l->context_count, most);
  for (l->slot_count = 2; l->slot_count < 2 * l->context_count;) l->slot_count *= 2;
  l->contexts = allocate(ngram, l->context_count, sizeof *l->contexts);
  l->successors = allocate(ngram, l->successor_count, sizeof *l->successors);
  l->slots = allocate(ngram, l->slot_count, sizeof *l->slots);
  if (!l->contexts || !l->successors || !l->slots) return ust_error_memory(r->err, ngram->bytes, r->path);
  UST_TRY(read_contexts(r, ngram, which));
  UST_TRY(read_successors(r, ngram, which, seen));
  for (uint32_t c = 0; c < l->context_count; c++) {
    uint32_t slot = slot_of(l, l->contexts[c].key);
    while (l->slots[slot]) slot = (slot + 1) & (l->slot_count - 1);
    l->slots[slot] = c + 1;
  }
  return UNDERSTUDY_OK;
}

/* ---- unigrams and back-off weights ---- */

static int likeliest_first(const void *a, const void *b) {
  const successor *x = a, *y = b;
  if (x->probability != y->probability) return x->probability > y->probability ? -1 : 1;
  return x->token < y->token ? -1 : x->token > y->token;
}

static understudy_status read_unigrams(reading *r, ust_ngram *ngram) {
  size_t count = (size_t)ngram->vocabulary;
  ngram->unigram = allocate(ngram, count, sizeof *ngram->unigram);
  ngram->ordered = allocate(ngram, count, sizeof *ngram->ordered);
  if (!ngram->unigram || !ngram->ordered) return ust_error_memory(r->err, ngram->bytes, r->path);
  double sum = 0;
  for (size_t i = 0; i < count; i++) {
    ngram->unigram[i] = take_probability(r);
    sum += ngram->unigram[i];
  }
  for (size_t i = 0; i < count; i++) {
    ngram->unigram[i] /= sum;
    ngram->ordered[i] = (successor){.token = (int32_t)i, .probability = (float)ngram->unigram[i]};
  }
  qsort(ngram->ordered, count, sizeof *ngram->ordered, likeliest_first);
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
static double backoff_weight(const level *l, const context *c, const lower_order *lower, unsigned char *listed) {
  const successor *first = l->successors + c->first, *end = l->successors + c->end;
  double kept = 0, covered = 0;
  for (const successor *s = first; s < end; s++) {
    kept += (double)s->probability;
    covered += lower_probability(lower, s->token);
  }
  double rest = 1 - covered;
  if (rest < 1e-4) {
    for (const successor *s = first; s < end; s++) listed[s->token] = 1;
    rest = 0;
    for (int32_t t = 0; t < lower->ngram->vocabulary; t++)
      if (!listed[t]) rest += lower_probability(lower, t);
    for (const successor *s = first; s < end; s++) listed[s->token] = 0;
  }
  return (1 - kept) / rest;
}

static const context *find(const level *l, uint64_t key) {
  for (uint32_t slot = slot_of(l, key); l->slots[slot]; slot = (slot + 1) & (l->slot_count - 1))
    if (l->contexts[l->slots[slot] - 1].key == key) return &l->contexts[l->slots[slot] - 1];
  return NULL;
}

/* Bigram weights rest on unigrams, trigram weights on bigrams; contexts are in order of `last`, so that the bigrams
 * of each are spread out once. */
static void find_backoffs(ust_ngram *ngram, uint32_t *owner, double *explicit, unsigned char *listed) {
  level *bi = &ngram->levels[BIGRAM], *tri = &ngram->levels[TRIGRAM];
  lower_order unigrams = {.ngram = ngram, .backoff = 1};
  for (uint32_t c = 0; c < bi->context_count; c++)
    bi->contexts[c].backoff = backoff_weight(bi, &bi->contexts[c], &unigrams, listed);
  memset(owner, 0, (size_t)ngram->vocabulary * sizeof *owner);
  lower_order lower = {.ngram = ngram, .owner = owner, .explicit = explicit};
  for (uint32_t i = 0; i < tri->context_count; i++) {
    context *c = &tri->contexts[i];
    uint64_t last = c->key >> 32 << 32;
    if (i == 0 || c[-1].key >> 32 << 32 != last) {
      const context *below = find(bi, last);
      lower.context = below ? (uint32_t)(below - bi->contexts) + 1 : 0;
      lower.backoff = below ? below->backoff : 1;
      for (uint32_t s = below ? below->first : 0; below && s < below->end; s++) {
        owner[bi->successors[s].token] = lower.context;
        explicit[bi->successors[s].token] = (double)bi->successors[s].probability;
      }
    }
    c->backoff = backoff_weight(tri, c, &lower, listed);
  }
}

/* ---- opening ---- */

static understudy_status load(reading *r, ust_ngram *ngram) {
  r->at = UST_NGRAM_HEADER;
  for (int i = 0; i < LEVELS; i++) {
    ngram->levels[i].context_count = (uint32_t)ust_ngram_get(r->data + 24 + 4 * i, 4);
    ngram->levels[i].successor_count = (uint32_t)ust_ngram_get(r->data + 32 + 4 * i, 4);
  }
  for (int i = 0; i < 256; i++) {
    r->coarse[i] = ust_ngram_probability((uint16_t)(i << 8));
    r->fine[i] = ust_ngram_probability((uint16_t)i);
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
    ust_free(l->contexts);
    ust_free(l->successors);
    ust_free(l->slots);
  }
  ust_free(ngram->unigram);
  ust_free(ngram->ordered);
  ust_free(ngram);
}

size_t ust_ngram_bytes(const ust_ngram *ngram) {
  return ngram->bytes;
}

/* ---- look-up ---- */

/* Finds the contexts of (before, last); NULL where there is none. */
static void find_contexts(const ust_ngram *ngram, int32_t before, int32_t last, const context *found[LEVELS]) {
  found[BIGRAM] = found[TRIGRAM] = NULL;
  if (last < 0 || last >= ngram->vocabulary) return;
  const level *bi = &ngram->levels[BIGRAM], *tri = &ngram->levels[TRIGRAM];
  uint64_t key = (uint64_t)last << 32;
  bool both = before >= 0 && before < ngram->vocabulary;
  if (both) __builtin_prefetch(&tri->slots[slot_of(tri, key | (uint64_t)before)]); /* while the bigram is found */
  found[BIGRAM] = find(bi, key);
  if (both) found[TRIGRAM] = find(tri, key | (uint64_t)before);
}

/* Where a context (NULL: none) lists a token; NULL: nowhere. */
static const successor *place_of(const level *l, const context *c, int32_t token) {
  for (uint32_t i = c ? c->first : 0; c && i < c->end; i++)
    if (l->successors[i].token == token) return &l->successors[i];
  return NULL;
}

double ust_ngram_logprob(const ust_ngram *ngram, int32_t before, int32_t last, int32_t token) {
  if (token < 0 || token >= ngram->vocabulary) return -INFINITY;
  const context *found[LEVELS];
  find_contexts(ngram, before, last, found);
  double weight = 1;
  for (int which = TRIGRAM; which >= BIGRAM; which--) {
    const successor *place = place_of(&ngram->levels[which], found[which], token);
    if (place) return log(weight * (double)place->probability);
    if (found[which]) weight *= found[which]->backoff;
  }
  return log(weight * ngram->unigram[token]);
}

/* One order's successors on their way into a merge: `head` is the probability of the next one, 0 at the end. */
typedef struct stream {
  const successor *next, *end;
  double weight, head;
} stream;

static void find_head(stream *s) {
  s->head = s->next == s->end ? 0 : s->weight * (double)s->next->probability;
}

/* Whether a context of a higher order lists the token: then the lower order has no say. */
static bool covered(const ust_ngram *ngram, const context *const found[LEVELS], int order, int32_t token) {
  for (int which = order; which < LEVELS; which++)
    if (place_of(&ngram->levels[which], found[which], token)) return true;
  return false;
}

int ust_ngram_candidates(const ust_ngram *ngram, int32_t before, int32_t last, int max, ust_ngram_candidate *out) {
  const context *found[LEVELS];
  find_contexts(ngram, before, last, found);
  stream streams[LEVELS + 1] = {{0}}; /* by order: unigrams, bigrams, trigrams */
  double weight = 1;
  for (int which = TRIGRAM; which >= BIGRAM; which--) {
    if (!found[which]) continue;
    const successor *all = ngram->levels[which].successors;
    streams[which + 1] = (stream){all + found[which]->first, all + found[which]->end, weight, 0};
    weight *= found[which]->backoff;
  }
  streams[0] = (stream){ngram->ordered, ngram->ordered + ngram->vocabulary, weight, 0};
  for (int order = 0; order <= LEVELS; order++) find_head(&streams[order]);
  int count = 0;
  while (count < max) {
    int best = LEVELS;
    for (int order = LEVELS - 1; order >= 0; order--)
      if (streams[order].head > streams[best].head) best = order;
    stream *s = &streams[best];
    if (s->next == s->end) break;
    if (!covered(ngram, found, best, s->next->token))
      out[count++] = (ust_ngram_candidate){
          .token = s->next->token, .probability = (float)s->head, .order = best, .source = UST_SOURCE_FILE};
    s->next++;
    find_head(s);
  }
  return count;
}
