/* Learned successors: the newest knowledge of a context comes back, others' does not; and what a look-up costs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "speculate/learned.h"

static ust_learned *create(void **unused) {
  (void)unused;
  ust_learned *learned;
  assert_int_equal(ust_learned_create(&learned, NULL), UNDERSTUDY_OK);
  return learned;
}

static void newest_comes_back(void **state) {
  ust_learned *learned = create(state);
  const ust_ranked old[] = {{7, 2.0f}, {8, 1.0f}}, now[] = {{9, 3.0f}, {7, 3.0f}, {5, 2.0f}, {4, -1.0f}, {3, -2.0f}};
  ust_ngram_candidate out[8];
  assert_int_equal(ust_learned_candidates(learned, 0, 0, 8, out), 0);
  ust_learned_add(learned, 1, 2, old, 2);
  assert_int_equal(ust_learned_candidates(learned, 1, 2, 8, out), 2);
  assert_true(out[0].token == 7 && out[1].token == 8 && out[0].order == 0 && out[0].source == UST_SOURCE_CONTEXT);
  ust_learned_add(learned, 1, 2, now, 5);
  assert_int_equal(ust_learned_candidates(learned, 1, 2, 8, out), UST_LEARNED);
  float sum = 0;
  for (int i = 0; i < UST_LEARNED; i++) {
    assert_int_equal(out[i].token, now[i].token);
    sum += out[i].probability;
  }
  assert_float_equal(sum, 1, 1e-6);
  assert_true(out[0].probability == out[1].probability && out[1].probability > out[2].probability);
  assert_int_equal(ust_learned_candidates(learned, 1, 2, 1, out), 1);
  assert_int_equal(ust_learned_candidates(learned, 2, 1, 8, out), 0);
  assert_int_equal(ust_learned_candidates(learned, -1, 2, 8, out), 0);
  ust_learned_free(learned);
}

/* However many contexts came: what is found is right, and recent ones are found. */
static void newer_take_older_places(void **state) {
  ust_learned *learned = create(state);
  enum { CONTEXTS = 100000, RECENT = 1000 };
  ust_ngram_candidate out[8];
  for (int i = 0; i < CONTEXTS; i++) {
    const ust_ranked top[] = {{i + 1, 0}};
    ust_learned_add(learned, i / 300, i, top, 1);
  }
  int found = 0, recent = 0;
  uint64_t start = ust_clock_ns();
  for (int i = 0; i < CONTEXTS; i++)
    if (ust_learned_candidates(learned, i / 300, i, 8, out) > 0) {
      found++;
      recent += i >= CONTEXTS - RECENT;
      if (out[0].token != i + 1) fail_msg("context %d: found %d", i, out[0].token);
    }
  print_message("a look-up: %.0f ns\n", (double)(ust_clock_ns() - start) / CONTEXTS);
  assert_true(found > 8000 && found <= 1 << 14);
  assert_true(recent > RECENT * 95 / 100);
  ust_learned_free(learned);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(newest_comes_back), cmocka_unit_test(newer_take_older_places)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
