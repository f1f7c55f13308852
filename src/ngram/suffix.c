/* The text so far: for every suffix of 1 … 8 tokens, where it stood before and what followed.
 *
 * For each length an open-addressing table maps a context to the newest place where it was followed by something, and
 * `older` links that place to the one before it, as in the chains of an LZ77 compressor, except that a chain
 * holds places of one context only. Appending costs 8 insertions; a look-up reads at most RECENT links a length,
 * so neither depends on the text's length or on how often it repeats itself. */
#include "base/base.h"
#include "ngram/ngram.h"

enum { LONGEST = 8, RECENT = 32, NOWHERE = 0 };

typedef struct table {
  uint32_t *newest; /* [slots] place + 1 */
  uint32_t *older;  /* [capacity] of a place: place + 1 */
} table;

struct ust_suffixes {
  int capacity, count;
  uint32_t slots; /* a power of two, at least twice the capacity */
  int32_t *text;  /* [capacity] */
  table of_length[LONGEST];
};

understudy_status ust_suffixes_create(int capacity, ust_suffixes **suffixes, understudy_error *err) {
  *suffixes = NULL;
  if (capacity < 1 || capacity > 1 << 28)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "context is %d tokens, expected 1 to %d", capacity, 1 << 28);
  ust_suffixes *made = ust_alloc(sizeof *made);
  if (!made) return ust_error_memory(err, sizeof *made, "context suffixes");
  made->capacity = capacity;
  for (made->slots = 2; made->slots < 2 * (uint32_t)capacity;) made->slots *= 2;
  made->text = ust_alloc((size_t)capacity * sizeof *made->text);
  bool complete = made->text != NULL;
  for (int i = 0; i < LONGEST; i++) {
    made->of_length[i].newest = ust_alloc(made->slots * sizeof(uint32_t));
    made->of_length[i].older = ust_alloc((size_t)capacity * sizeof(uint32_t));
    complete = complete && made->of_length[i].newest && made->of_length[i].older;
  }
  if (!complete) {
    size_t bytes = (made->slots + (size_t)capacity) * LONGEST * sizeof(uint32_t);
    ust_suffixes_free(made);
    return ust_error_memory(err, bytes, "context suffixes");
  }
  *suffixes = made;
  return UNDERSTUDY_OK;
}

void ust_suffixes_free(ust_suffixes *suffixes) {
  if (!suffixes) return;
  for (int i = 0; i < LONGEST; i++) {
    ust_free(suffixes->of_length[i].newest);
    ust_free(suffixes->of_length[i].older);
  }
  ust_free(suffixes->text);
  ust_free(suffixes);
}

void ust_suffixes_reset(ust_suffixes *suffixes) {
  for (int i = 0; i < LONGEST; i++) memset(suffixes->of_length[i].newest, 0, suffixes->slots * sizeof(uint32_t));
  suffixes->count = 0;
}

/* Folds one more token, further back, into a context's hash. */
static inline uint64_t fold(uint64_t hash, int32_t token) {
  hash = (hash ^ (uint32_t)token) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 29;
}

/* The slot of the context recent[0 … length-1], newest token first, or the empty slot where it would go. Tables are
 * at most half full, so there is one. */
static uint32_t find_slot(const ust_suffixes *suffixes, int length, uint64_t hash, const int32_t *recent) {
  const uint32_t *newest = suffixes->of_length[length - 1].newest;
  uint32_t slot = (uint32_t)(hash >> 7) & (suffixes->slots - 1);
  for (; newest[slot] != NOWHERE; slot = (slot + 1) & (suffixes->slots - 1)) {
    const int32_t *place = suffixes->text + (newest[slot] - 1);
    int same = 0;
    while (same < length && place[-1 - same] == recent[same]) same++;
    if (same == length) break;
  }
  return slot;
}

void ust_suffixes_append(ust_suffixes *suffixes, int32_t token) {
  if (suffixes->count == suffixes->capacity) return;
  int place = suffixes->count++;
  suffixes->text[place] = token;
  int32_t recent[LONGEST];
  uint64_t hash = 0;
  for (int length = 1; length <= UST_MIN(LONGEST, place); length++) {
    recent[length - 1] = suffixes->text[place - length];
    hash = fold(hash, recent[length - 1]);
    table *t = &suffixes->of_length[length - 1];
    uint32_t slot = find_slot(suffixes, length, hash, recent);
    t->older[place] = t->newest[slot];
    t->newest[slot] = (uint32_t)place + 1;
  }
}

/* What followed one context, newest first. */
typedef struct successors {
  int32_t token[RECENT];
  int times[RECENT];
  int distinct, total;
} successors;

static bool listed(const ust_ngram_candidate *out, int count, int32_t token) {
  for (int i = 0; i < count; i++)
    if (out[i].token == token) return true;
  return false;
}

/* Collects from the chain that starts at `link`, without the tokens already in out[0 … found-1]. */
static void collect(const ust_suffixes *suffixes, int length, uint32_t link, const ust_ngram_candidate *out, int found,
                    successors *next) {
  const uint32_t *older = suffixes->of_length[length - 1].older;
  next->distinct = next->total = 0;
  for (int seen = 0; link != NOWHERE && seen < RECENT; seen++, link = older[link - 1]) {
    int32_t token = suffixes->text[link - 1];
    int i = 0;
    while (i < next->distinct && next->token[i] != token) i++;
    if (i == next->distinct) {
      if (listed(out, found, token)) continue;
      next->token[next->distinct] = token;
      next->times[next->distinct++] = 0;
    }
    next->times[i]++;
    next->total++;
  }
}

/* Appends the successors to out, most frequent first, the newer first among equals. As in PPM with exclusion and
 * Witten and Bell's escape: of the probability `left` that longer contexts did not claim, a token seen c of n times
 * gets c / (n + e d) with d distinct tokens; e = 2/length, because what follows a long match is nearly always what
 * followed it before. */
static int append_candidates(successors *next, int length, double *left, int found, int max, ust_ngram_candidate *out) {
  double escape = 2.0 * next->distinct / length, whole = next->total + escape;
  for (int taken = 0; taken < next->distinct && found < max; taken++) {
    int best = 0;
    for (int i = 1; i < next->distinct; i++)
      if (next->times[i] > next->times[best]) best = i;
    out[found++] = (ust_ngram_candidate){.token = next->token[best],
                                         .probability = (float)(*left * next->times[best] / whole),
                                         .order = length,
                                         .source = UST_SOURCE_CONTEXT};
    next->times[best] = 0;
  }
  *left *= escape / whole;
  return found;
}

int ust_suffixes_candidates(const ust_suffixes *suffixes, const int32_t *extra, int extra_count, int max,
                            ust_ngram_candidate *out) {
  int32_t recent[LONGEST];
  uint64_t hash[LONGEST] = {0};
  int known = UST_MIN(LONGEST, extra_count + suffixes->count), found = 0;
  for (int i = 0; i < known; i++) {
    recent[i] = i < extra_count ? extra[extra_count - 1 - i] : suffixes->text[suffixes->count - 1 - (i - extra_count)];
    hash[i] = fold(i ? hash[i - 1] : 0, recent[i]);
  }
  double left = 1;
  for (int length = known; length >= 1 && found < max; length--) {
    uint32_t slot = find_slot(suffixes, length, hash[length - 1], recent);
    uint32_t link = suffixes->of_length[length - 1].newest[slot];
    if (link == NOWHERE) continue;
    successors next;
    collect(suffixes, length, link, out, found, &next);
    if (next.distinct > 0) found = append_candidates(&next, length, &left, found, max, out);
  }
  return found;
}
