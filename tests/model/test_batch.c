/* Many texts at once: every text's logits have the bits of the text decoded alone, whatever the others are and
 * however often places are begun again; the temperature divides them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "support/random_model.h"

enum { VOCABULARY = 1500, CONTEXT = 80, TEXTS = 37, PASSES = 60 };

/* Gathers whole rows. */
typedef struct gathered {
  float *logits; /* [TEXTS, VOCABULARY] */
  int visits[2];
} gathered;

static void gather(void *user, int thread, int block, int first, int count, float *logits) {
  gathered *g = user;
  (void)thread;
  assert(first == block * UST_LOGIT_BLOCK);
#pragma omp atomic
  g->visits[block]++;
  for (int t = 0; t < TEXTS; t++)
    memcpy(g->logits + (size_t)t * VOCABULARY + first, logits + (size_t)t * UST_LOGIT_STRIDE,
           (size_t)count * sizeof(float));
}

typedef struct fixture {
  ust_model *model;
  ust_timeline *alone;
  gathered found;
  float *reference;
  bool quantised; /* a batch rounds such weights to bf16 */
} fixture;

/* Logits after the last token of `text`. */
static void decode_alone(fixture *f, const int32_t *text, int count) {
  const int32_t root = 0, parent = -1;
  ust_timeline_truncate(f->alone, 0);
  for (int i = 0; i < count; i++) {
    ust_model_forward(f->alone, text + i, &parent, 1, NULL, f->reference);
    ust_timeline_commit(f->alone, &root, 1);
  }
}

static void check_texts(fixture *f) {
  static int32_t text[TEXTS][CONTEXT];
  int count[TEXTS] = {0};
  uint64_t state = 5;
  ust_batch *batch;
  assert_int_equal(ust_batch_create(f->model, TEXTS, CONTEXT, 1, &batch, NULL), UNDERSTUDY_OK);
  for (int pass = 0; pass < PASSES; pass++) {
    int32_t tokens[TEXTS];
    for (int t = 0; t < TEXTS; t++) {
      if (count[t] == CONTEXT || random_below(&state, 40) == 0) {
        ust_batch_restart(batch, t);
        count[t] = 0;
      }
      tokens[t] = text[t][count[t]++] = random_below(&state, VOCABULARY);
    }
    f->found.visits[0] = f->found.visits[1] = 0;
    ust_batch_forward(batch, tokens, gather, &f->found);
    assert_true(f->found.visits[0] == 1 && f->found.visits[1] == 1);
    if (pass % 20 && pass != PASSES - 1) continue;
    for (int t = 0; t < TEXTS; t += 1 + random_below(&state, 16)) {
      decode_alone(f, text[t], count[t]);
      const float *found = f->found.logits + (size_t)t * VOCABULARY;
      if (!f->quantised) assert_memory_equal(found, f->reference, VOCABULARY * sizeof(float));
      for (int i = 0; i < VOCABULARY; i++) assert_true(fabsf(found[i] - f->reference[i]) < 0.1f);
    }
  }
  ust_batch_free(batch);

  assert_int_equal(ust_batch_create(f->model, TEXTS, CONTEXT, 1.5f, &batch, NULL), UNDERSTUDY_OK);
  int32_t tokens[TEXTS] = {3};
  ust_batch_forward(batch, tokens, gather, &f->found);
  decode_alone(f, tokens, 1);
  for (int i = 0; i < VOCABULARY; i++) /* bf16 rounds before the last product */
    assert_true(fabsf(1.5f * f->found.logits[i] - f->reference[i]) < 0.1f);
  ust_batch_free(batch);
}

static void texts_do_not_depend_on_company(void **unused) {
  (void)unused;
  for (int isa = 0; isa < UST_ISA_COUNT; isa++) {
    if (!ust_kernels_get((ust_isa)isa, NULL)) continue;
    for (int variant = 0; variant < 3; variant++) {
      random_model shape = {
          VOCABULARY,           CONTEXT,
          variant ? 80 : 64,    2,
          variant ? 5 : 1,      variant == 0 ? UST_TYPE_Q8_0 : variant == 1 ? UST_TYPE_BF16 : UST_TYPE_F32,
          (uint64_t)(29 + isa), 0.15f};
      fixture f = {.quantised = variant == 0, .model = random_model_open(&shape, (ust_isa)isa, 1 + variant % 2)};
      assert_int_equal(ust_timeline_create(f.model, CONTEXT, 1, &f.alone, NULL), UNDERSTUDY_OK);
      f.found.logits = ust_alloc(TEXTS * VOCABULARY * sizeof(float));
      f.reference = ust_alloc(ust_model_logit_stride(f.model) * sizeof(float));
      check_texts(&f);
      ust_free(f.found.logits);
      ust_free(f.reference);
      ust_timeline_free(f.alone);
      ust_model_close(f.model);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(texts_do_not_depend_on_company)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
