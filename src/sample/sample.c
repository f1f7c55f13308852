/* The rule of choice: filters, and the first few tokens by logit/T + noise.
 *
 * Every filter keeps a prefix of the tokens in the order (scaled logit descending, id ascending), so the allowed
 * set is one number: the key of the last token kept. With top-k only the survivors are ever looked at again;
 * without a filter a cheap bound of the noise rules out nearly all tokens before a logarithm is taken. */
#include <float.h>
#include <math.h>

#include "base/base.h"
#include "sample/noise.h"
#include "sample/sample.h"

typedef ust_noise_f4 f4;
typedef ust_noise_i4 i4;
typedef ust_noise_u4 u4;

enum { BLOCK = 64, BUCKETS = 1024, BUCKETS_A_NAT = 32 };

/* Below this temperature any difference between two logits outweighs the noise, and logit/T may overflow: greedy. */
static const float COLD = 1e-20f;

/* No word gives more noise than 33 ln 2 = 22.874. */
static const float HIGHEST_NOISE = 22.875f;

struct ust_sampler {
  int vocabulary;
  uint64_t *keys;   /* [vocabulary] tokens kept so far, or a heap of them */
  float *penalised; /* [vocabulary] */
  int32_t *times;   /* [vocabulary] zero between calls */
  double bucket[BUCKETS];
};

/* ---- the arithmetic of the rule, in one place ---- */

/* logit/T: inverse is 1/T rounded to float. NaN counts as -inf, +inf as the largest float, -0 as 0. */
static inline float scale(float logit, float inverse) {
  float scaled = logit * inverse;
  if (!(scaled >= -FLT_MAX)) return -INFINITY;
  return scaled > FLT_MAX ? FLT_MAX : scaled + 0.0f;
}

static inline float score_of(float scaled, uint32_t word) {
  return scaled + ust_noise_gumbel(word);
}

float ust_sample_noise(uint64_t seed, uint64_t position, int32_t token) {
  u4 words = ust_noise_words(seed, position, (uint32_t)token >> 2);
  return ust_noise_gumbel(words[token & 3]);
}

/* ---- keys: a larger key is a likelier token, or an equally likely one of lower id ---- */

static inline uint64_t key_of(float scaled, int32_t token) {
  uint32_t bits;
  memcpy(&bits, &scaled, sizeof bits);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return (uint64_t)bits << 32 | (uint32_t)~token;
}

static inline int32_t key_token(uint64_t key) {
  return (int32_t) ~(uint32_t)key;
}

static inline float key_scaled(uint64_t key) {
  uint32_t bits = (uint32_t)(key >> 32);
  bits = bits >> 31 ? bits & 0x7fffffffu : ~bits;
  float scaled;
  memcpy(&scaled, &bits, sizeof scaled);
  return scaled;
}

/* Moves heap[at] down to its place; the smallest key is at the root. */
static void sift(uint64_t *heap, int count, int at) {
  uint64_t key = heap[at];
  for (int child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= key) break;
    heap[at] = heap[child];
  }
  heap[at] = key;
}

static void heapify(uint64_t *heap, int count) {
  for (int i = count / 2 - 1; i >= 0; i--) sift(heap, count, i);
}

/* ---- passes over the vocabulary ---- */

static inline f4 max4(f4 a, f4 b) { /* NaN in a: b */
  i4 greater = a > b;
  return (f4)((greater & (i4)a) | (~greater & (i4)b));
}

static inline f4 load4(const float *from) {
  f4 v;
  memcpy(&v, from, sizeof v);
  return v;
}

/* The largest of BLOCK logits, NaN left out. */
static float block_max(const float *logits) {
  const f4 none = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  f4 a = none, b = none;
  for (int i = 0; i < BLOCK; i += 8) {
    a = max4(load4(logits + i), a);
    b = max4(load4(logits + i + 4), b);
  }
  a = max4(a, b);
  float low = a[0] > a[1] ? a[0] : a[1], high = a[2] > a[3] ? a[2] : a[3];
  return low > high ? low : high;
}

/* The first token of the largest logit; 0 when there is none above -inf. */
static int32_t argmax(const float *logits, int vocabulary) {
  float best = -INFINITY;
  int best_block = 0, whole = vocabulary / BLOCK * BLOCK;
  for (int i = 0; i < whole; i += BLOCK) {
    float largest = block_max(logits + i);
    if (largest > best) {
      best = largest;
      best_block = i;
    }
  }
  int32_t token = 0;
  float seen = -INFINITY;
  for (int i = best_block; i < UST_MIN(best_block + BLOCK, whole); i++)
    if (logits[i] > seen) seen = logits[token = i];
  for (int i = whole; i < vocabulary; i++)
    if (logits[i] > seen) seen = logits[token = i];
  return token;
}

/* e^x for x <= 0 to 2e-7 of its value, 0 below -80 and for NaN: 2^n by the exponent, the rest by a polynomial
 * (Taylor's series of 2^f, |f| <= 1/2). */
static inline f4 exp4(f4 x) {
  const f4 zero = {0}, magic = zero + 12582912.0f; /* adding 1.5 * 2^23 rounds to a whole number */
  i4 in_range = x > zero - 80.0f;
  x = (f4)((i4)x & in_range);
  x = (f4)((i4)x & (x < zero));
  f4 t = x * 1.44269504f, shifted = t + magic, f = t - (shifted - magic);
  f4 p = zero + 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return (f4)(((u4)p + ((u4)shifted << 23)) & (u4)in_range);
}

/* e^(scaled - top), of one token or of four */
static inline float weight_of(float scaled, float top) {
  f4 x = {scaled - top};
  return exp4(x)[0];
}

static inline f4 weights4(const float *logits, float inverse, float top) {
  return exp4(load4(logits) * inverse - top);
}

/* Fills `keys` with the k likeliest tokens above -inf, the least likely of them first; returns how many. A min-heap
 * of the best so far: whole blocks below its root are skipped. */
static int select_top(uint64_t *keys, const float *logits, int vocabulary, float inverse, int k) {
  int count = 0;
  float bar = -INFINITY; /* later tokens must exceed it: at a tie the earlier, lower id stays */
  for (int i = 0; i < vocabulary; i += BLOCK) {
    if (i + BLOCK <= vocabulary && !(scale(block_max(logits + i), inverse) > bar)) continue;
    for (int t = i; t < UST_MIN(i + BLOCK, vocabulary); t++) {
      float scaled = scale(logits[t], inverse);
      if (!(scaled > bar)) continue;
      keys[count < k ? count++ : 0] = key_of(scaled, t);
      if (count < k) continue;
      if (bar == -INFINITY)
        heapify(keys, k);
      else
        sift(keys, k, 0);
      bar = key_scaled(keys[0]);
    }
  }
  if (count < k) heapify(keys, count);
  return count;
}

/* ---- filters ---- */

/* Takes the likeliest of `keys` one by one until their weights and `sum` reach `need`; returns the last one's key.
 * The keys stay, in another order. */
static uint64_t walk(uint64_t *keys, int count, float top, double sum, double need) {
  uint64_t last = 0;
  for (int i = 0; i < count; i++) keys[i] = ~keys[i]; /* the likeliest becomes the smallest */
  heapify(keys, count);
  for (int left = count; left > 0 && (sum < need || last == 0);) {
    last = ~keys[0];
    sum += (double)weight_of(key_scaled(last), top);
    left--;
    uint64_t taken = keys[0];
    keys[0] = keys[left];
    keys[left] = taken;
    sift(keys, left, 0);
  }
  for (int i = 0; i < count; i++) keys[i] = ~keys[i];
  return last;
}

/* Distance below the likeliest token in steps of 1/32 nat: rises as the scaled logit falls. */
static inline int bucket_of(float scaled, float top) {
  float depth = (top - scaled) * BUCKETS_A_NAT;
  return depth < BUCKETS - 1 ? (int)depth : BUCKETS - 1;
}

/* Sums the weights of four tokens by bucket. */
static inline void add_to_buckets(double *bucket, const float *logits, float inverse, float top) {
  f4 scaled = load4(logits) * inverse, weight = weights4(logits, inverse, top);
  for (int i = 0; i < 4; i++)
    if (weight[i] > 0) bucket[bucket_of(scaled[i] < top ? scaled[i] : top, top)] += (double)weight[i];
}

/* Top-p over the whole vocabulary: sums by bucket find the one where the cut falls, and only that one is ordered. */
static uint64_t nucleus(ust_sampler *sampler, const float *logits, float inverse, float top, float top_p) {
  double *bucket = sampler->bucket, total = 0, sum = 0;
  memset(sampler->bucket, 0, sizeof sampler->bucket);
  int vocabulary = sampler->vocabulary, whole = vocabulary / 4 * 4;
  for (int t = 0; t < whole; t += 4) add_to_buckets(bucket, logits + t, inverse, top);
  float rest[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  memcpy(rest, logits + whole, (size_t)(vocabulary - whole) * sizeof *rest);
  add_to_buckets(bucket, rest, inverse, top);
  for (int b = 0; b < BUCKETS; b++) total += bucket[b];
  int cut = 0;
  while (cut < BUCKETS - 1 && sum + bucket[cut] < total * (double)top_p) sum += bucket[cut++];
  int count = 0;
  for (int t = 0; t < vocabulary; t++) {
    float scaled = scale(logits[t], inverse);
    if (scaled > -INFINITY && bucket_of(scaled, top) == cut) sampler->keys[count++] = key_of(scaled, t);
  }
  return walk(sampler->keys, count, top, sum, total * (double)top_p);
}

/* Applies top-k, top-p and min-p. Returns the number of tokens in sampler->keys, or -1: every token is allowed. */
static int filter(ust_sampler *sampler, const understudy_sampling *sampling, const float *logits, float inverse,
                  float top) {
  uint64_t cut = 0, *keys = sampler->keys;
  int count = -1, kept = 0;
  if (sampling->top_k > 0 && sampling->top_k < sampler->vocabulary)
    count = select_top(keys, logits, sampler->vocabulary, inverse, sampling->top_k);
  if (sampling->top_p < 1 && count < 0) {
    cut = nucleus(sampler, logits, inverse, top, sampling->top_p);
  } else if (sampling->top_p < 1) {
    double total = 0;
    for (int i = 0; i < count; i++) total += (double)weight_of(key_scaled(keys[i]), top);
    cut = walk(keys, count, top, 0, total * (double)sampling->top_p);
  }
  if (sampling->min_p > 0) {
    uint64_t least = key_of(top + logf(sampling->min_p), INT32_MAX);
    cut = UST_MAX(cut, least);
  }
  if (cut == 0) return count;
  if (count >= 0) {
    for (int i = 0; i < count; i++)
      if (keys[i] >= cut) keys[kept++] = keys[i];
    return kept;
  }
  float lowest = key_scaled(cut);
  for (int t = 0; t < sampler->vocabulary; t++) {
    float scaled = scale(logits[t], inverse);
    if (scaled >= lowest && key_of(scaled, t) >= cut) keys[kept++] = key_of(scaled, t);
  }
  return kept;
}

/* ---- ranking ---- */

/* The best so far, in order. A score below `bar` cannot enter. */
typedef struct ranking {
  ust_ranked *out;
  int count, max;
  float bar;
} ranking;

static void rank_add(ranking *ranked, int32_t token, float score) {
  int at = ranked->count;
  if (at == ranked->max) {
    const ust_ranked *last = &ranked->out[at - 1];
    if (score < last->score || (score == last->score && token > last->token)) return;
    at--;
  } else {
    ranked->count++;
  }
  for (; at > 0; at--) {
    const ust_ranked *other = &ranked->out[at - 1];
    if (other->score > score || (other->score == score && other->token < token)) break;
    ranked->out[at] = *other;
  }
  ranked->out[at] = (ust_ranked){.token = token, .score = score};
  if (ranked->count == ranked->max) ranked->bar = ranked->out[ranked->max - 1].score;
}

static inline bool any(i4 mask) {
  int64_t halves[2];
  memcpy(halves, &mask, sizeof halves);
  return (halves[0] | halves[1]) != 0;
}

/* Adds those of tokens group … group+3 that can enter. The others are ruled out by the bound of their noise, which
 * changes nothing: the bound is a float at least as large as the noise and rounding is monotone, so scaled + bound
 * >= scaled + noise as computed, and a sum strictly below the bar (which never falls) stays below it; where the sums
 * are equal the score is computed in full. The bar starts at the lowest float, which leaves out -inf and NaN. */
static inline void consider(ranking *ranked, const float *logits, float inverse, int32_t group, int32_t likeliest,
                            u4 words) {
  i4 possible = load4(logits) * inverse + ust_noise_bound(words) >= ranked->bar;
  if (!any(possible)) return;
  for (int i = 0; i < 4; i++)
    if (possible[i] && group + i != likeliest)
      rank_add(ranked, group + i, score_of(scale(logits[i], inverse), words[i]));
}

static void rank_all(ranking *ranked, const float *logits, int vocabulary, float inverse, int32_t likeliest,
                     uint64_t seed, uint64_t position) {
  /* The likeliest token first, so that the bar stands high from the start. */
  u4 words = ust_noise_words(seed, position, (uint32_t)likeliest >> 2);
  rank_add(ranked, likeliest, score_of(scale(logits[likeliest], inverse), words[likeliest & 3]));
  int group = 0;
  for (; group + 4 <= vocabulary; group += 4) {
    if (!any(load4(logits + group) * inverse + HIGHEST_NOISE >= ranked->bar)) continue;
    consider(ranked, logits + group, inverse, group, likeliest, ust_noise_words(seed, position, (uint32_t)group >> 2));
  }
  float rest[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  memcpy(rest, logits + group, (size_t)(vocabulary - group) * sizeof *rest);
  consider(ranked, rest, inverse, group, likeliest, ust_noise_words(seed, position, (uint32_t)group >> 2));
}

static void rank_kept(ranking *ranked, const uint64_t *keys, int count, uint64_t seed, uint64_t position) {
  for (int i = 0; i < count; i++) {
    int32_t token = key_token(keys[i]);
    u4 words = ust_noise_words(seed, position, (uint32_t)token >> 2);
    rank_add(ranked, token, score_of(key_scaled(keys[i]), words[token & 3]));
  }
}

int ust_sampler_rank(ust_sampler *sampler, const understudy_sampling *sampling, const float *logits, uint64_t position,
                     int max, ust_ranked *out) {
  assert(max >= 1);
  int vocabulary = sampler->vocabulary;
  bool greedy = sampling->temperature < COLD; /* filters never remove the likeliest token: nothing to do for them */
  float inverse = greedy ? 1.0f : 1.0f / sampling->temperature;
  int32_t likeliest = argmax(logits, vocabulary);
  float top = scale(logits[likeliest], inverse);
  ranking ranked = {.out = out, .max = UST_MIN(max, vocabulary), .bar = -FLT_MAX};

  if (top == -INFINITY || (greedy && max == 1)) { /* nothing allowed: token 0 */
    *out = (ust_ranked){.token = likeliest, .score = top};
    return 1;
  }
  if (greedy) {
    int count = select_top(sampler->keys, logits, vocabulary, inverse, ranked.max);
    for (int i = 0; i < count; i++) rank_add(&ranked, key_token(sampler->keys[i]), key_scaled(sampler->keys[i]));
  } else {
    int count = filter(sampler, sampling, logits, inverse, top);
    if (count < 0)
      rank_all(&ranked, logits, vocabulary, inverse, likeliest, sampling->seed, position);
    else
      rank_kept(&ranked, sampler->keys, count, sampling->seed, position);
  }
  return ranked.count;
}

/* ---- penalties ---- */

bool ust_sampling_penalises(const understudy_sampling *s) {
  return (s->repetition_penalty != 0 && s->repetition_penalty != 1) || s->frequency_penalty != 0 ||
         s->presence_penalty != 0;
}

float ust_sample_penalise(const understudy_sampling *s, float logit, int times) {
  if (s->repetition_penalty != 0) logit = logit > 0 ? logit / s->repetition_penalty : logit * s->repetition_penalty;
  return logit - s->frequency_penalty * (float)times - s->presence_penalty;
}

static int times_in(const int32_t *tokens, int count, int32_t token) {
  int times = 0;
  for (int i = 0; i < count; i++) times += tokens[i] == token;
  return times;
}

int ust_before_times(const ust_before *before, int32_t token) {
  return times_in(before->text, before->count, token) + times_in(before->path, before->depth, token);
}

static void penalise_run(ust_sampler *sampler, const understudy_sampling *sampling, const int32_t *tokens, int count) {
  for (int i = 0; i < count; i++) {
    int32_t token = tokens[i];
    if (sampler->times[token] == 0) continue; /* done */
    sampler->penalised[token] = ust_sample_penalise(sampling, sampler->penalised[token], sampler->times[token]);
    sampler->times[token] = 0;
  }
}

const float *ust_sampler_penalised(ust_sampler *sampler, const understudy_sampling *sampling, const float *logits,
                                   const ust_before *before) {
  if (!ust_sampling_penalises(sampling)) return logits;
  memcpy(sampler->penalised, logits, (size_t)sampler->vocabulary * sizeof *logits);
  for (int i = 0; i < before->count; i++) sampler->times[before->text[i]]++;
  for (int i = 0; i < before->depth; i++) sampler->times[before->path[i]]++;
  penalise_run(sampler, sampling, before->text, before->count);
  penalise_run(sampler, sampling, before->path, before->depth);
  return sampler->penalised;
}

/* ---- parameters and scratch ---- */

understudy_status ust_sampling_check(const understudy_sampling *sampling, understudy_error *err) {
  const understudy_status bad = UNDERSTUDY_ERROR_ARGUMENT;
  if (!(sampling->temperature >= 0 && sampling->temperature <= FLT_MAX))
    return ust_error(err, bad, "temperature is %g, expected a finite number of at least 0",
                     (double)sampling->temperature);
  if (sampling->top_k < 0) return ust_error(err, bad, "top_k is %d, expected at least 0", sampling->top_k);
  if (!(sampling->top_p > 0 && sampling->top_p <= 1))
    return ust_error(err, bad, "top_p is %g, expected 0 to 1", (double)sampling->top_p);
  if (!(sampling->min_p >= 0 && sampling->min_p <= 1))
    return ust_error(err, bad, "min_p is %g, expected 0 to 1", (double)sampling->min_p);
  if (!(sampling->repetition_penalty >= 0 && sampling->repetition_penalty <= 1000))
    return ust_error(err, bad, "repetition_penalty is %g, expected 0 to 1000", (double)sampling->repetition_penalty);
  if (!(fabsf(sampling->frequency_penalty) <= 1000))
    return ust_error(err, bad, "frequency_penalty is %g, expected -1000 to 1000", (double)sampling->frequency_penalty);
  if (!(fabsf(sampling->presence_penalty) <= 1000))
    return ust_error(err, bad, "presence_penalty is %g, expected -1000 to 1000", (double)sampling->presence_penalty);
  return UNDERSTUDY_OK;
}

understudy_status ust_sampler_create(int vocabulary, ust_sampler **sampler, understudy_error *err) {
  *sampler = NULL;
  if (vocabulary < 1)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "vocabulary is %d, expected at least 1", vocabulary);
  ust_sampler *made = ust_alloc(sizeof *made);
  if (!made) return ust_error_memory(err, sizeof *made, "a sampler");
  made->vocabulary = vocabulary;
  size_t count = (size_t)vocabulary;
  made->keys = ust_alloc(count * sizeof *made->keys);
  made->penalised = ust_alloc(count * sizeof *made->penalised);
  made->times = ust_alloc(count * sizeof *made->times);
  if (!made->keys || !made->penalised || !made->times) {
    ust_sampler_free(made);
    return ust_error_memory(err, count * (sizeof *made->keys + sizeof *made->penalised + sizeof *made->times),
                            "a sampler");
  }
  *sampler = made;
  return UNDERSTUDY_OK;
}

void ust_sampler_free(ust_sampler *sampler) {
  if (!sampler) return;
  ust_free(sampler->keys);
  ust_free(sampler->penalised);
  ust_free(sampler->times);
  ust_free(sampler);
}
