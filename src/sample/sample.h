/* sample: from logits to the choice at a position. One rule for greedy and sampled decoding, target and drafts:
 *
 *     argmax over allowed t of  logit[t]/T + G(seed, position, t)        greedy (T = 0): argmax of logit[t]
 *
 * with Gumbel noise G = -log(-log(u)), u from Philox4x32-10 (Random123) keyed by seed, position and token. That
 * is exact sampling from softmax(logits/T) over the allowed tokens. Ties go to the lowest id. Allowed: top-k,
 * then top-p, then min-p, each computed from logits/T. */
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
 * [0, 1]) naming the parameter. */
understudy_status ust_sampling_check(const understudy_sampling *sampling, understudy_error *err);

/* The first `max` candidates of the rule at `position` (absolute, of the token to be chosen), best first;
 * returns how many there are (fewer when fewer are allowed; at least 1). NaN logits count as -inf. The choice
 * is ranking 1. Allocates nothing. */
int ust_sampler_rank(ust_sampler *sampler, const understudy_sampling *sampling, const float *logits, uint64_t position,
                     int max, ust_ranked *out);

/* G(seed, position, token) */
float ust_sample_noise(uint64_t seed, uint64_t position, int32_t token);

#endif
