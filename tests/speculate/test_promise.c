/* The promise: the text of every mode equals plain decoding, token for token, whatever drafts for it.
 *
 * Random models, prompts, seeds, temperatures, filters and penalties; drafts that agree always, sometimes and never;
 * one and three threads; prompts and texts in pieces; every kernel level of this machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "speculate/decode.h"
#include "support/random_model.h"

enum { VOCABULARY = 97, CONTEXT = 128, LENGTH = 48 };

typedef struct text {
  int count;
  int32_t tokens[CONTEXT];
} text;

static bool keep(void *user, int32_t token, understudy_origin origin) {
  (void)origin;
  text *t = user;
  t->tokens[t->count++] = token;
  return false;
}

/* Makes every pass look free, so that the largest trees are grown, however wrong the candidates. */
static void free_of_charge(ust_planner *planner) {
  for (int i = 0; i < planner->target_cost.points; i++) planner->target_cost.seconds[i] = 0;
  for (int i = 0; i < planner->draft_cost.points; i++) planner->draft_cost.seconds[i] = 0;
}

/* Every sum that can be had in two ways is the same both ways. */
static void check_sums(const understudy_stats *stats, const ust_details *details) {
  uint64_t tokens = 0, passes = 0, rows = 0, scored = 0, accepted = 0;
  for (int origin = 0; origin < UST_DETAIL_ORIGINS; origin++) tokens += stats->accepted[origin];
  for (int i = 0; i < UST_DETAIL_ROWS; i++) {
    passes += details->rows[i];
    rows += details->rows[i] * (uint64_t)i;
  }
  for (int depth = 0; depth < UST_DETAIL_DEPTHS; depth++) {
    assert_true(details->depth[depth].accepted <= UST_MIN(details->depth[depth].proposed, stats->target_passes));
    scored += details->depth[depth].proposed;
    accepted += details->depth[depth].accepted;
  }
  assert_int_equal(tokens, stats->tokens);
  assert_int_equal(passes, stats->target_passes);
  assert_int_equal(rows, stats->target_rows);
  assert_int_equal(scored, stats->target_rows - stats->target_passes);
  assert_int_equal(accepted, stats->tokens - stats->accepted[UNDERSTUDY_FROM_TARGET]);
  for (int origin = 1; origin < UST_DETAIL_ORIGINS; origin++) {
    uint64_t hits = 0;
    for (int rank = 0; rank < UST_DETAIL_RANKS; rank++) hits += details->rank[origin][rank].accepted;
    assert_true(hits >= stats->accepted[origin] && hits <= stats->tokens + stats->target_passes);
  }
  assert_true(stats->target_seconds + stats->draft_seconds + details->text_seconds + details->choice_seconds <=
              stats->seconds);
}

/* With `random` the prompt comes in pieces and the text in steps of random limits. */
static understudy_stats generate(const ust_decoder_options *options, bool free_passes, const int32_t *prompt,
                                 int prompt_count, uint64_t *random, text *out) {
  ust_decoder *decoder;
  understudy_error err = {0};
  assert_int_equal(ust_decoder_create(options, &decoder, &err), UNDERSTUDY_OK);
  if (free_passes) free_of_charge(ust_decoder_planner(decoder));
  for (int fed = 0, piece; fed < prompt_count; fed += piece) {
    piece = random ? 1 + random_below(random, prompt_count - fed) : prompt_count;
    assert_int_equal(ust_decoder_prompt(decoder, prompt + fed, piece, NULL, NULL, &err), UNDERSTUDY_OK);
  }
  out->count = 0;
  for (bool end = false; out->count < LENGTH && !end;) {
    int limit = LENGTH - out->count;
    if (random && random_below(random, 2)) limit = 1 + random_below(random, limit);
    end = ust_decoder_step(decoder, limit, keep, out).end;
  }
  understudy_stats stats;
  ust_decoder_stats(decoder, &stats);
  check_sums(&stats, ust_decoder_details(decoder));
  assert_int_equal(ust_decoder_count(decoder), prompt_count + out->count);
  ust_decoder_free(decoder);
  return stats;
}

/* An n-gram file of random text: its guesses are wrong on purpose. */
static ust_ngram *random_ngram(uint64_t seed) {
  char path[64];
  understudy_error err = {0};
  ust_ngram_fit *fit;
  ust_ngram *ngram;
  int32_t words[400];
  for (int i = 0; i < 400; i++) words[i] = random_below(&seed, i % 3 ? 12 : VOCABULARY);
  snprintf(path, sizeof path, "/tmp/understudy-test-%d.ngram", (int)getpid());
  assert_int_equal(ust_ngram_fit_create(VOCABULARY, 7, &fit, &err), UNDERSTUDY_OK);
  assert_int_equal(ust_ngram_fit_add(fit, words, 400, &err), UNDERSTUDY_OK);
  assert_int_equal(ust_ngram_fit_write(fit, path, 0, &err), UNDERSTUDY_OK);
  ust_ngram_fit_free(fit);
  assert_int_equal(ust_ngram_open(path, VOCABULARY, 7, &ngram, &err), UNDERSTUDY_OK);
  unlink(path);
  return ngram;
}

static const understudy_sampling samplings[] = {
    {.temperature = 0, .top_p = 1},
    {.temperature = 1, .top_p = 1, .top_k = 10, .seed = 1},
    {.temperature = 0.6f, .top_p = 0.9f, .seed = 2},
    {.temperature = 1.5f, .top_p = 1, .min_p = 0.02f, .seed = 3},
    {.temperature = 0, .top_p = 1, .repetition_penalty = 1.2f, .frequency_penalty = 0.05f},
    {.temperature = 0.8f, .top_p = 0.95f, .seed = 4, .frequency_penalty = 0.3f, .presence_penalty = -0.2f},
};

static void check_level(ust_isa isa, uint64_t seed) {
  static const ust_type types[] = {UST_TYPE_Q8_0, UST_TYPE_Q4_0, UST_TYPE_BF16};
  random_model shape = {VOCABULARY, CONTEXT, 32, 2, 1, types[seed % 3], seed, 0.2f};
  random_model other = shape, small = {VOCABULARY, 64, 32, 1, 2, UST_TYPE_F32, seed + 2, 0.3f};
  other.seed = seed + 1;
  ust_model *target = random_model_open(&shape, isa, 1), *three = random_model_open(&shape, isa, 3);
  ust_model *drafts[] = {NULL, target, random_model_open(&other, isa, 1), random_model_open(&small, isa, 1)};
  ust_ngram *ngram = random_ngram(seed);
  uint64_t state = seed;
  for (size_t s = 0; s < sizeof samplings / sizeof *samplings; s++) {
    int32_t prompt[30];
    int prompt_count = 1 + random_below(&state, 30);
    for (int i = 0; i < prompt_count; i++) prompt[i] = random_below(&state, VOCABULARY);
    ust_decoder_options options = {.target = target, .context = CONTEXT, .end_token = -1, .sampling = samplings[s]};
    options.sampling.seed += seed;
    text plain, speculated;
    generate(&options, false, prompt, prompt_count, NULL, &plain);
    assert_int_equal(plain.count, LENGTH);
    for (int trial = 0; trial < 4; trial++) {
      int d = trial,
          stages = random_below(&state, 3); /* each draft; without, with half and with all of the text stage */
      if (d == 0 && stages == 0) stages = 2;
      options.target = (d + stages) % 2 ? three : target;
      options.draft = drafts[d];
      options.text = stages > 0;
      options.ngram = stages > 1 ? ngram : NULL;
      options.noise = random_below(&state, 2) ? UST_NOISE_SHARED : (ust_draft_noise)random_below(&state, 3);
      options.shape = (ust_shape){random_below(&state, 3) ? 0 : 1 + random_below(&state, 9), random_below(&state, 4)};
      bool free_passes = random_below(&state, 4) > 0;
      bool pieces = trial != 1 || random_below(&state, 2);
      understudy_stats stats =
          generate(&options, free_passes, prompt, prompt_count, pieces ? &state : NULL, &speculated);
      if (speculated.count != plain.count || memcmp(speculated.tokens, plain.tokens, sizeof(int32_t) * LENGTH) != 0)
        fail_msg("level %s, seed %llu, sampling %zu, draft %d, stages %d: the text differs from plain decoding",
                 ust_isa_name(isa), (unsigned long long)seed, s, d, stages);
      if (d == 1 && free_passes && !pieces && options.noise == UST_NOISE_SHARED && options.shape.length == 0)
        assert_true(stats.target_passes < LENGTH / 3); /* a draft that is the target must help */
    }
  }
  ust_model_close(target);
  ust_model_close(three);
  ust_model_close(drafts[2]);
  ust_model_close(drafts[3]);
  ust_ngram_close(ngram);
}

static void text_equals_plain(void **unused) {
  (void)unused;
  for (int isa = 0; isa < UST_ISA_COUNT; isa++)
    if (ust_kernels_get((ust_isa)isa, NULL))
      for (uint64_t seed = 1; seed <= 2; seed++) check_level((ust_isa)isa, 1000 * seed);
}

/* A step that may commit few tokens drafts for no more than these. */
static void short_limits_draft_little(void **unused) {
  (void)unused;
  random_model shape = {VOCABULARY, CONTEXT, 32, 1, 1, UST_TYPE_BF16, 5, 0.2f};
  ust_model *target = random_model_open(&shape, ust_kernels_best(), 1);
  ust_decoder_options options = {
      .target = target, .draft = target, .context = CONTEXT, .end_token = -1, .sampling = samplings[1]};
  ust_decoder *decoder;
  understudy_error err;
  text t = {0};
  int32_t prompt = 3;
  assert_int_equal(ust_decoder_create(&options, &decoder, &err), UNDERSTUDY_OK);
  free_of_charge(ust_decoder_planner(decoder));
  assert_int_equal(ust_decoder_prompt(decoder, &prompt, 1, NULL, NULL, &err), UNDERSTUDY_OK);
  understudy_stats stats;
  for (int i = 0; i < 8; i++) assert_int_equal(ust_decoder_step(decoder, 1, keep, &t).count, 1);
  ust_decoder_stats(decoder, &stats);
  assert_true(stats.draft_passes == 0 && stats.target_rows == 8);
  for (int i = 0; i < 8; i++) ust_decoder_step(decoder, 2, keep, &t); /* one level: the root alone is evaluated */
  ust_decoder_stats(decoder, &stats);
  assert_true(stats.draft_passes >= 1 && stats.draft_passes <= 8);
  assert_int_equal(stats.target_passes, 16);
  ust_decoder_free(decoder);
  ust_model_close(target);
}

/* A stop asked for by the callback ends the text after that token in every mode. */
static bool stop_at_seven(void *user, int32_t token, understudy_origin origin) {
  keep(user, token, origin);
  return ((text *)user)->count == 7;
}

static void callback_stops_exactly(void **unused) {
  (void)unused;
  random_model shape = {VOCABULARY, CONTEXT, 64, 2, 2, UST_TYPE_BF16, 5, 0.2f};
  ust_model *target = random_model_open(&shape, ust_kernels_best(), 1);
  ust_decoder_options options = {
      .target = target, .draft = target, .text = true, .context = CONTEXT, .end_token = -1, .sampling = samplings[0]};
  ust_decoder *decoder;
  understudy_error err;
  text t = {0};
  int32_t prompt = 3;
  assert_int_equal(ust_decoder_create(&options, &decoder, &err), UNDERSTUDY_OK);
  assert_int_equal(ust_decoder_prompt(decoder, &prompt, 1, NULL, NULL, &err), UNDERSTUDY_OK);
  while (!ust_decoder_step(decoder, 50, stop_at_seven, &t).end) {
  }
  assert_int_equal(t.count, 7);
  assert_int_equal(ust_decoder_count(decoder), 8);
  ust_decoder_free(decoder);
  ust_model_close(target);
}

/* The context fills to its last position and no further; the end token ends the text unreported. */
static void context_and_end_token(void **unused) {
  (void)unused;
  random_model shape = {VOCABULARY, 64, 64, 1, 2, UST_TYPE_BF16, 9, 0.2f};
  ust_model *target = random_model_open(&shape, ust_kernels_best(), 1);
  int32_t prompt[4] = {1, 2, 3, 4};
  text all = {0}, cut = {0};
  understudy_error err;
  for (int draft = 0; draft < 2; draft++) {
    ust_decoder_options options = {
        .target = target, .draft = draft ? target : NULL, .context = 64, .end_token = -1, .sampling = samplings[1]};
    ust_decoder *decoder;
    assert_int_equal(ust_decoder_create(&options, &decoder, &err), UNDERSTUDY_OK);
    assert_int_equal(ust_decoder_prompt(decoder, prompt, 4, NULL, NULL, &err), UNDERSTUDY_OK);
    all.count = 0;
    for (ust_step step = {0}; !step.end;) {
      step = ust_decoder_step(decoder, 1000, keep, &all);
      assert_true(step.count > 0); /* the step that fills the context says so */
    }
    assert_int_equal(all.count, 60);
    ust_decoder_free(decoder);
    options.end_token = all.tokens[20];
    assert_int_equal(ust_decoder_create(&options, &decoder, &err), UNDERSTUDY_OK);
    assert_int_equal(ust_decoder_prompt(decoder, prompt, 4, NULL, NULL, &err), UNDERSTUDY_OK);
    cut.count = 0;
    while (!ust_decoder_step(decoder, 1000, keep, &cut).end) {
    }
    int first = 0;
    while (all.tokens[first] != options.end_token) first++;
    assert_int_equal(cut.count, first);
    assert_memory_equal(cut.tokens, all.tokens, sizeof(int32_t) * (size_t)first);
    ust_decoder_free(decoder);
  }
  ust_model_close(target);
}

/* A draft whose context the text has outgrown is not asked any more, and nothing is learned from that. */
static void short_draft_retires(void **unused) {
  (void)unused;
  random_model shape = {VOCABULARY, CONTEXT, 32, 1, 1, UST_TYPE_BF16, 5, 0.2f}, small = shape;
  small.context = 32;
  ust_model *target = random_model_open(&shape, ust_kernels_best(), 1);
  ust_model *draft = random_model_open(&small, ust_kernels_best(), 1);
  ust_decoder_options options = {
      .target = target, .draft = draft, .text = true, .context = CONTEXT, .end_token = -1, .sampling = samplings[1]};
  ust_decoder *decoder;
  understudy_error err;
  understudy_stats before, after;
  text t = {0};
  int32_t prompt[] = {3, 4, 5};
  assert_int_equal(ust_decoder_create(&options, &decoder, &err), UNDERSTUDY_OK);
  assert_int_equal(ust_decoder_prompt(decoder, prompt, 3, NULL, NULL, &err), UNDERSTUDY_OK);
  while (ust_decoder_count(decoder) <= 32) ust_decoder_step(decoder, 4, keep, &t);
  const ust_planner planner = *ust_decoder_planner(decoder);
  ust_decoder_stats(decoder, &before);
  while (!ust_decoder_step(decoder, 4, keep, &t).end) {
  }
  ust_decoder_stats(decoder, &after);
  assert_int_equal(after.draft_passes, before.draft_passes);
  assert_memory_equal(&ust_decoder_planner(decoder)->draft_cost, &planner.draft_cost, sizeof planner.draft_cost);
  assert_memory_equal(ust_decoder_planner(decoder)->evaluated, planner.evaluated, sizeof planner.evaluated);
  ust_decoder_free(decoder);
  ust_model_close(draft);
  ust_model_close(target);
}

static bool cancel(void *user, const char *what, uint64_t done, uint64_t total) {
  (void)user, (void)what, (void)done, (void)total;
  return true;
}

/* Cancels at the report that *user counts down to; 0: never. */
static bool cancel_at(void *user, const char *what, uint64_t done, uint64_t total) {
  int *left = user;
  assert_string_equal(what, "prompt");
  assert_true(done <= total && total == 2 * 299);
  return --*left == 0;
}

/* A prompt or a score that was cancelled leaves a decoder that goes on to write the same text, and whichever model has
 * yet to read it, its reading is not decoding's work. */
static void cancelling_loses_nothing(void **unused) {
  (void)unused;
  enum { REPORTS = 4 }; /* of 256 tokens and the rest, by target and draft */
  static const ust_shape chain = {.length = 4};
  random_model shape = {VOCABULARY, 400, 32, 1, 1, UST_TYPE_BF16, 21, 0.2f};
  ust_model *target = random_model_open(&shape, ust_kernels_best(), 1);
  ust_decoder_options options = {.target = target,
                                 .draft = target,
                                 .text = true,
                                 .context = 400,
                                 .end_token = -1,
                                 .sampling = samplings[1],
                                 .shape = chain};
  int32_t prompt[300];
  float logprobs[299];
  uint64_t state = 4, rows = 0;
  text texts[REPORTS + 1] = {0};
  understudy_error err;
  for (int i = 0; i < 300; i++) prompt[i] = random_below(&state, VOCABULARY);
  for (int run = 0; run <= REPORTS; run++) {
    ust_decoder *decoder;
    int left = run;
    assert_int_equal(ust_decoder_create(&options, &decoder, &err), UNDERSTUDY_OK);
    if (run == 1) {
      assert_int_equal(ust_decoder_score(decoder, prompt, 300, logprobs, cancel, NULL, &err),
                       UNDERSTUDY_ERROR_CANCELLED);
      assert_int_equal(ust_decoder_count(decoder), 0);
    }
    assert_int_equal(ust_decoder_prompt(decoder, prompt, 300, cancel_at, &left, &err),
                     run ? UNDERSTUDY_ERROR_CANCELLED : UNDERSTUDY_OK);
    assert_int_equal(left, run ? 0 : -REPORTS);
    understudy_stats stats;
    ust_decoder_stats(decoder, &stats);
    assert_true(stats.draft_passes == 0 && stats.bytes == 0);
    while (texts[run].count < LENGTH && !ust_decoder_step(decoder, LENGTH - texts[run].count, keep, &texts[run]).end) {
    }
    assert_int_equal(texts[run].count, LENGTH);
    assert_memory_equal(&texts[run], &texts[0], sizeof texts[0]);
    ust_decoder_stats(decoder, &stats);
    if (run == 0) rows = stats.draft_rows;
    assert_true(stats.draft_rows == rows && rows > 0);
    ust_decoder_free(decoder);
  }
  ust_model_close(target);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(text_equals_plain),      cmocka_unit_test(short_limits_draft_little),
      cmocka_unit_test(callback_stops_exactly), cmocka_unit_test(context_and_end_token),
      cmocka_unit_test(short_draft_retires),    cmocka_unit_test(cancelling_loses_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
