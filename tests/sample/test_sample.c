/* The rule of choice: the generator against published vectors, the draws against the softmax, and the fast
 * ranking against a naive one that computes and sorts everything, bit for bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "sample/noise.h"
#include "sample/sample.h"

/* ---- a random source of our own ---- */

static uint64_t state = 1;
static uint32_t random_word(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  uint64_t x = state ^ state >> 33;
  return (uint32_t)(x * 0xff51afd7ed558ccdu >> 32);
}
static double uniform(void) {
  return (random_word() + 0.5) * 0x1p-32;
}
static float normal(void) {
  return (float)(sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
}

static ust_sampler *sampler_of(int vocabulary) {
  ust_sampler *sampler;
  assert_int_equal(ust_sampler_create(vocabulary, &sampler, NULL), UNDERSTUDY_OK);
  return sampler;
}

/* ---- Philox ---- */

static void naive_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]}, k[2] = {key[0], key[1]};
  for (int round = 0; round < 10; round++) {
    uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k[1], (uint32_t)a};
    memcpy(c, next, sizeof c);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  memcpy(out, c, sizeof c);
}

/* Known answers published with Random123 (philox4x32, 10 rounds). */
static void test_philox(void **unused) {
  (void)unused;
  static const uint32_t known[3][10] = {{0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,
                                         0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0,
                                         0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (int i = 0; i < 3; i++) {
    const uint32_t *row = known[i];
    philox4x32_ctr_t counter = {{row[0], row[1], row[2], row[3]}};
    philox4x32_key_t key = {{row[4], row[5]}};
    philox4x32_ctr_t got = philox4x32_R(10, counter, key);
    assert_memory_equal(got.v, row + 6, 16);
    uint32_t naive[4];
    naive_philox(row, row + 4, naive);
    assert_memory_equal(naive, row + 6, 16);
  }
}

/* The noise is what sample.h says: counter, key, word and formula. */
static void test_noise(void **unused) {
  (void)unused;
  state = 2;
  for (int i = 0; i < 2000; i++) {
    uint64_t seed = (uint64_t)random_word() << 32 | random_word(), position = seed * 31 >> (i % 60);
    int32_t token = (int32_t)(random_word() >> (1 + i % 20));
    uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), (uint32_t)token / 4, UST_NOISE_TAG};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, words[4];
    naive_philox(counter, key, words);
    float expected = (float)-log(-log((words[token % 4] + 0.5) * 0x1p-32));
    float got = ust_sample_noise(seed, position, token);
    assert_memory_equal(&got, &expected, sizeof got);
  }
}

static void check_bound(uint32_t x) {
  float g = ust_noise_gumbel(x), bound = ust_noise_bound((ust_noise_u4){0, x, 0, 0})[1];
  assert_true(isfinite(g) && bound >= g);
  if (g > 3 && ~x > 100) assert_true(bound < g + 0.15f); /* near enough to rule tokens out */
}

static void test_bound(void **unused) {
  (void)unused;
  state = 3;
  for (uint32_t i = 0; i < 100000; i++) {
    check_bound(i);
    check_bound(~i);
    check_bound(random_word());
  }
  for (int shift = 0; shift < 32; shift++)
    for (int d = -2; d <= 2; d++) check_bound(~(((uint32_t)1 << shift) + (uint32_t)d));
}

/* ---- a naive ranking ---- */

typedef struct item {
  int32_t token;
  float scaled, score;
} item;

static int by_scaled(const void *a, const void *b) {
  const item *x = a, *y = b;
  if (x->scaled != y->scaled) return x->scaled < y->scaled ? 1 : -1;
  return x->token < y->token ? -1 : 1;
}
static int by_score(const void *a, const void *b) {
  const item *x = a, *y = b;
  if (x->score != y->score) return x->score < y->score ? 1 : -1;
  return x->token < y->token ? -1 : 1;
}

/* Fills items with the allowed tokens in order, *denominator with the sum of e^(scaled - top) over all. */
static int naive_rank(const understudy_sampling *s, const float *logits, int vocabulary, uint64_t position, item *items,
                      double *denominator) {
  int count = 0, kept;
  bool greedy = s->temperature == 0;
  for (int t = 0; t < vocabulary; t++) {
    float scaled = logits[t] * (greedy ? 1.0f : 1.0f / s->temperature);
    if (scaled == INFINITY) scaled = 3.40282347e38f;
    if (scaled > -INFINITY) items[count++] = (item){.token = t, .scaled = scaled};
  }
  qsort(items, (size_t)count, sizeof *items, by_scaled);
  *denominator = 0;
  for (int i = 0; i < count; i++) *denominator += exp((double)items[i].scaled - (double)items[0].scaled);
  if (!greedy) {
    if (s->top_k > 0) count = UST_MIN(count, s->top_k);
    double total = 0, sum = 0;
    for (int i = 0; i < count; i++) total += exp((double)items[i].scaled - (double)items[0].scaled);
    for (kept = 0; kept < count && (s->top_p == 1 || kept == 0 || sum < total * (double)s->top_p); kept++)
      sum += exp((double)items[kept].scaled - (double)items[0].scaled);
    count = kept;
    if (s->min_p > 0)
      while (items[count - 1].scaled < items[0].scaled + logf(s->min_p)) count--;
  }
  for (int i = 0; i < count; i++)
    items[i].score = items[i].scaled + (greedy ? 0 : ust_sample_noise(s->seed, position, items[i].token));
  qsort(items, (size_t)count, sizeof *items, by_score);
  return count;
}

static void fill_logits(float *logits, int vocabulary, int kind) {
  float spread = (float[]){0.3f, 1, 3, 10, 40}[random_word() % 5];
  for (int t = 0; t < vocabulary; t++) {
    float x = normal() * spread;
    if (kind == 1) x = roundf(x);              /* many ties */
    if (kind == 2) x = (float)t * spread / 16; /* rising: every token is a record */
    if (kind == 3) x = -fabsf(x) * x * x;      /* a long tail */
    if (kind == 4 && random_word() % 3 == 0) x = (float[]){NAN, -INFINITY, -0.0f, 0}[random_word() % 4];
    if (kind == 5 && random_word() % 40 == 0) x = (float[]){INFINITY, 3e38f, -3e38f, NAN}[random_word() % 4];
    if (kind == 6) x = 2.5f;
    logits[t] = x;
  }
}

static void check_against_naive(const understudy_sampling *s, const float *logits, int vocabulary, uint64_t position,
                                ust_sampler *sampler, int max) {
  static item items[4096];
  static ust_ranked out[4097], one[1];
  double denominator;
  int expected = naive_rank(s, logits, vocabulary, position, items, &denominator);
  int got = ust_sampler_rank(sampler, s, logits, position, max, out);
  assert_int_equal(ust_sampler_rank(sampler, s, logits, position, 1, one), 1);
  assert_int_equal(one[0].token, out[0].token);
  assert_memory_equal(&one[0].score, &out[0].score, sizeof(float));
  if (expected == 0) {
    assert_true(got == 1 && out[0].token == 0 && out[0].score == -INFINITY);
    return;
  }
  assert_int_equal(got, UST_MIN(expected, max));
  for (int i = 0; i < got; i++) {
    assert_int_equal(out[i].token, items[i].token);
    assert_true(out[i].score == items[i].score);
  }
}

static void test_naive(void **unused) {
  (void)unused;
  state = 4;
  static float logits[4096];
  for (int i = 0; i < 4000; i++) {
    int vocabulary = i % 50 == 0 ? 4096 - (int)(random_word() % 9) : 1 + (int)(random_word() % (i % 2 ? 20 : 300));
    ust_sampler *sampler = sampler_of(vocabulary);
    fill_logits(logits, vocabulary, i % 7);
    understudy_sampling s = {.temperature = (float[]){0, 0.3f, 0.7f, 1, 1.5f, 30}[random_word() % 6],
                             .top_k = (int[]){0, 0, 1, 5, 50, 1000000}[random_word() % 6],
                             .top_p = (float[]){1, 1, 0.05f, 0.613f, 0.9317f}[random_word() % 5],
                             .min_p = (float[]){0, 0, 0, 0.03f, 0.5f, 1}[random_word() % 6],
                             .seed = random_word()};
    if (i % 7 == 1 || i % 7 == 6) s.top_p = 1; /* whole groups of ties: sums may meet the limit exactly */
    int max = (int[]){1, 2, 8, 64, 4097}[random_word() % 5];
    check_against_naive(&s, logits, vocabulary, (uint64_t)random_word() << (i % 32), sampler, max);
    ust_sampler_free(sampler);
  }
}

/* ---- penalties ---- */

static void test_penalties(void **unused) {
  (void)unused;
  enum { V = 40, LONGEST = 60 };
  state = 6;
  ust_sampler *sampler = sampler_of(V);
  float logits[V], expected[V];
  int32_t text[LONGEST], path[LONGEST];
  for (int i = 0; i < 500; i++) {
    fill_logits(logits, V, i % 7);
    ust_before before = {text, path, (int)(random_word() % LONGEST), (int)(random_word() % LONGEST)};
    int times[V] = {0};
    for (int k = 0; k < before.count; k++) times[text[k] = (int32_t)(random_word() % V)]++;
    for (int k = 0; k < before.depth; k++) times[path[k] = (int32_t)(random_word() % (V / 4))]++;
    understudy_sampling s = {.temperature = 1,
                             .top_p = 1,
                             .repetition_penalty = (float[]){0, 1, 1.3f, 0.5f}[random_word() % 4],
                             .frequency_penalty = (float[]){0, 0.25f, -1}[random_word() % 3],
                             .presence_penalty = (float[]){0, 1.5f, -0.5f}[random_word() % 3]};
    for (int t = 0; t < V; t++) {
      expected[t] = logits[t];
      if (times[t] && s.repetition_penalty > 0)
        expected[t] = logits[t] > 0 ? logits[t] / s.repetition_penalty : logits[t] * s.repetition_penalty;
      if (times[t]) expected[t] = expected[t] - s.frequency_penalty * (float)times[t] - s.presence_penalty;
      assert_int_equal(ust_before_times(&before, t), times[t]);
    }
    bool none =
        (s.repetition_penalty == 0 || s.repetition_penalty == 1) && s.frequency_penalty == 0 && s.presence_penalty == 0;
    assert_int_equal(ust_sampling_penalises(&s), !none);
    const float *penalised = ust_sampler_penalised(sampler, &s, logits, &before);
    if (none) assert_ptr_equal(penalised, logits);
    for (int t = 0; t < V; t++) assert_true(penalised[t] == expected[t] || (isnan(penalised[t]) && isnan(expected[t])));
    check_against_naive(&s, penalised, V, random_word(), sampler, 8);
  }
  ust_sampler_free(sampler);
}

/* ---- the distribution ---- */

enum { SMALL = 12, DRAWS = 40000 };

static double chi_square(const understudy_sampling *sampling, const float *logits, int *cells) {
  ust_sampler *sampler = sampler_of(SMALL);
  static item items[SMALL];
  double denominator, total = 0, statistic = 0;
  int allowed = naive_rank(sampling, logits, SMALL, 0, items, &denominator), seen[SMALL] = {0};
  for (int i = 0; i < allowed; i++) total += exp((double)items[i].scaled);
  for (uint64_t position = 0; position < DRAWS; position++) {
    ust_ranked choice;
    ust_sampler_rank(sampler, sampling, logits, position, 1, &choice);
    seen[choice.token]++;
  }
  int counted = 0;
  for (int i = 0; i < allowed; i++) {
    double expected = DRAWS * exp((double)items[i].scaled) / total, off = seen[items[i].token] - expected;
    statistic += off * off / expected;
    counted += seen[items[i].token];
  }
  assert_int_equal(counted, DRAWS); /* nothing outside the filters */
  *cells = allowed;
  ust_sampler_free(sampler);
  return statistic;
}

static void test_distribution(void **unused) {
  (void)unused;
  static const float logits[SMALL] = {1.0f, 0.2f, 2.0f, -1.0f, 0.7f, 1.5f, -0.4f, 0.0f, 2.2f, 0.9f, -0.8f, 1.1f};
  static const understudy_sampling cases[] = {
      {.temperature = 1, .top_p = 1, .seed = 1},
      {.temperature = 0.5f, .top_p = 1, .seed = 2},
      {.temperature = 2, .top_p = 1, .seed = 0x123456789abcdefu},
      {.temperature = 1, .top_k = 5, .top_p = 1, .seed = 4},
      {.temperature = 1, .top_p = 0.8f, .seed = 5},
      {.temperature = 0.8f, .top_p = 1, .min_p = 0.2f, .seed = 6},
      {.temperature = 1.3f, .top_k = 9, .top_p = 0.9f, .min_p = 0.1f, .seed = 7},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int cells;
    double statistic = chi_square(&cases[i], logits, &cells), freedom = cells - 1;
    /* 99.9% quantile by Wilson and Hilferty's approximation */
    double a = 2 / (9 * freedom), limit = freedom * pow(1 - a + 3.09 * sqrt(a), 3);
    print_message("chi-square, case %zu: %.2f, %.0f degrees of freedom, limit %.2f\n", i, statistic, freedom, limit);
    assert_true(freedom >= 2 && statistic < limit);
  }
}

/* Two models that nearly agree pick the same token far more often with shared noise than with independent draws. */
static void test_coupling(void **unused) {
  (void)unused;
  enum { V = 500, TRIALS = 2000 };
  state = 5;
  ust_sampler *sampler = sampler_of(V);
  static float target[V], draft[V];
  understudy_sampling same = {.temperature = 1, .top_p = 1, .seed = 9}, other = same;
  other.seed = 10;
  int shared = 0, independent = 0;
  for (int i = 0; i < TRIALS; i++) {
    for (int t = 0; t < V; t++) {
      target[t] = 3 * normal();
      draft[t] = target[t] + 0.3f * normal();
    }
    ust_ranked a, b, c;
    ust_sampler_rank(sampler, &same, target, (uint64_t)i, 1, &a);
    ust_sampler_rank(sampler, &same, draft, (uint64_t)i, 1, &b);
    ust_sampler_rank(sampler, &other, draft, (uint64_t)i, 1, &c);
    shared += a.token == b.token;
    independent += a.token == c.token;
  }
  print_message("agreement of %d: shared noise %d, independent %d\n", TRIALS, shared, independent);
  assert_true(shared > TRIALS * 7 / 10 && shared > 3 * independent);
  ust_sampler_free(sampler);
}

/* ---- edges ---- */

static void test_edges(void **unused) {
  (void)unused;
  ust_sampler *sampler = sampler_of(6);
  ust_ranked out[9];
  understudy_sampling greedy = {.top_p = 1}, hot = {.temperature = 1, .top_p = 1, .seed = 3};
  const float ties[6] = {1, 5, 5, -0.0f, 0.0f, 5};
  assert_int_equal(ust_sampler_rank(sampler, &greedy, ties, 0, 9, out), 6);
  const int order[6] = {1, 2, 5, 0, 3, 4};
  for (int i = 0; i < 6; i++) assert_int_equal(out[i].token, order[i]);
  assert_true(out[0].score == 5);

  const float none[6] = {-INFINITY, -INFINITY, NAN, -INFINITY, NAN, -INFINITY};
  const understudy_sampling filters = {.temperature = 1, .top_k = 2, .top_p = 0.5f, .min_p = 0.5f};
  const understudy_sampling *all[3] = {&greedy, &hot, &filters};
  for (int i = 0; i < 3; i++) {
    assert_int_equal(ust_sampler_rank(sampler, all[i], none, 0, 8, out), 1);
    assert_true(out[0].token == 0);
  }
  const float infinite[6] = {NAN, 0, INFINITY, -INFINITY, INFINITY, 1};
  for (int i = 0; i < 3; i++) {
    assert_true(ust_sampler_rank(sampler, all[i], infinite, 0, 8, out) >= 1);
    assert_int_equal(out[0].token, 2);
  }
  /* A vanishing temperature is greedy, not an overflow. */
  understudy_sampling cold = {.temperature = 1e-38f, .top_p = 1};
  const float large[6] = {100, 300, 200, 299, 0, -5};
  ust_sampler_rank(sampler, &cold, large, 0, 1, out);
  assert_int_equal(out[0].token, 1);
  ust_sampler_free(sampler);
}

static void test_check(void **unused) {
  (void)unused;
  understudy_error err;
  understudy_sampling good = {.temperature = 0, .top_p = 1}, bad;
  assert_int_equal(ust_sampling_check(&good, &err), UNDERSTUDY_OK);
#define REFUSED(field, value)                                                                                          \
  bad = good;                                                                                                          \
  bad.field = value;                                                                                                   \
  assert_int_equal(ust_sampling_check(&bad, &err), UNDERSTUDY_ERROR_ARGUMENT);                                         \
  assert_non_null(strstr(err.message, #field))
  REFUSED(temperature, -1);
  REFUSED(temperature, NAN);
  REFUSED(temperature, INFINITY);
  REFUSED(top_k, -1);
  REFUSED(top_p, 0);
  REFUSED(top_p, 1.01f);
  REFUSED(top_p, NAN);
  REFUSED(min_p, -0.1f);
  REFUSED(min_p, 1.1f);
  REFUSED(min_p, NAN);
  REFUSED(repetition_penalty, -0.5f);
  REFUSED(repetition_penalty, INFINITY);
  REFUSED(frequency_penalty, NAN);
  REFUSED(frequency_penalty, 1001);
  REFUSED(presence_penalty, -INFINITY);
  ust_sampler *sampler;
  assert_int_equal(ust_sampler_create(0, &sampler, &err), UNDERSTUDY_ERROR_ARGUMENT);
  assert_null(sampler);
}

/* ---- time, for the reader of the log ---- */

static void test_time(void **unused) {
  (void)unused;
  enum { V = 50257, ROUNDS = 30 };
  static float logits[V];
  state = 6;
  for (int t = 0; t < V; t++) logits[t] = 2.5f * normal() - 30;
  ust_sampler *sampler = sampler_of(V);
  static const understudy_sampling cases[] = {
      {.top_p = 1},
      {.temperature = 1, .top_k = 50, .top_p = 1},
      {.temperature = 1, .top_k = 50, .top_p = 0.9f},
      {.temperature = 1, .top_p = 1},
      {.temperature = 1, .top_p = 0.9f},
  };
  static const char *const names[] = {"greedy", "top-k 50", "top-k 50, top-p 0.9", "T = 1", "top-p 0.9"};
  for (int i = 0; i < 5; i++)
    for (int max = 1; max <= 8; max += 7) {
      ust_ranked out[8];
      uint64_t best = UINT64_MAX;
      for (int r = 0; r < ROUNDS; r++) {
        uint64_t start = ust_clock_ns();
        ust_sampler_rank(sampler, &cases[i], logits, (uint64_t)r, max, out);
        best = UST_MIN(best, ust_clock_ns() - start);
      }
      print_message("rank %d of %d, %-20s %7.1f us\n", max, V, names[i], (double)best / 1000);
    }
  ust_sampler_free(sampler);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_philox),   cmocka_unit_test(test_noise),     cmocka_unit_test(test_bound),
      cmocka_unit_test(test_naive),    cmocka_unit_test(test_penalties), cmocka_unit_test(test_distribution),
      cmocka_unit_test(test_coupling), cmocka_unit_test(test_edges),     cmocka_unit_test(test_check),
      cmocka_unit_test(test_time),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
