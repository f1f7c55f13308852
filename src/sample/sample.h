/* sample: from logits to the choice at a position. One rule for greedy and sampled decoding, target and drafts:
 *
 *     argmax over allowed t of  logit[t]/T + G(seed, position, t)        greedy (T = 0): argmax of logit[t]
 *
 * with Gumbel noise G = -log(-log(u)), u from Philox4x32-10 (Random123) keyed by seed, position and token. That
 * is exact sampling from softmax(logits/T) over the allowed tokens. Ties go to the lowest id. Allowed: top-k,
 * then top-p, then min-p, each computed from logits/T. Penalties change the logits before all that. */
#ifndef UST_SAMPLE_H
#define UST_SAMPLE_H

#include "base/base.h"

/* A candidate in the order of the rule. */
typedef struct ust_ranked {
  int32_t token;
  float score; /* logit/T + G (greedy: the logit) */
} ust_ranked;

/* Scratch for rankings of one vocabulary; one per thread of use. */
typedef struct ust_sampler ust_sampler;
understudy_status ust_sampler_create(int vocabulary, ust_sampler **sampler, understudy_error *err);
void ust_sampler_free(ust_sampler *sampler);

/* Refuses parameters out of range (temperature < 0 or not finite, top_k < 0, top_p not in (0, 1], min_p not in
 * [0, 1], repetition_penalty not in [0, 1000], the other penalties not in [-1000, 1000]) naming the parameter. */
understudy_status ust_sampling_check(const understudy_sampling *sampling, understudy_error *err);

/* The first `max` candidates of the rule at `position` (absolute, of the token to be chosen), best first;
 * returns how many there are (fewer when fewer are allowed; at least 1). NaN logits count as -inf. The choice
 * is ranking 1. Allocates nothing. */
int ust_sampler_rank(ust_sampler *sampler, const understudy_sampling *sampling, const float *logits, uint64_t position,
                     int max, ust_ranked *out);

/* The tokens before a position, in two runs: a text and a path through the tree behind it. */
typedef struct ust_before {
  const int32_t *text, *path; /* [count], [depth] */
  int count, depth;
} ust_before;

/* Do the parameters penalise anything? */
bool ust_sampling_penalises(const understudy_sampling *sampling);
/* The logit of a token that stands `times` > 0 times before its position. Repetition penalty: Keskar et al. 2019, for
 * logits of either sign. */
float ust_sample_penalise(const understudy_sampling *sampling, float logit, int times);
int ust_before_times(const ust_before *before, int32_t token);
/* What to rank in place of logits[vocabulary]: these themselves, or a copy with the penalties that is valid until the
 * sampler's next. Ids in *before are in the vocabulary. */
const float *ust_sampler_penalised(ust_sampler *sampler, const understudy_sampling *sampling, const float *logits,
                                   const ust_before *before);

/* G(seed, position, token) */
float ust_sample_noise(uint64_t seed, uint64_t position, int32_t token);

#endif
