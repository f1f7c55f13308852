/* Candidates of a micro-batch: the labels and the frequent tokens always, each once; of the rest a drawn share whose
 * weights make up for those not drawn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "train/internal.h"

enum { VOCABULARY = 20000, TOKENS = 100000, LABELS = 64 };

static ust_candidates candidates;
static int32_t text[TOKENS], labels[LABELS];
static uint8_t seen[VOCABULARY];

static int setup(void **state) {
  (void)state;
  understudy_error err;
  for (int i = 0; i < TOKENS; i++) text[i] = i % (i % 3 ? 9000 : VOCABULARY); /* tokens below 9000 are frequent */
  const ust_corpus corpus = {.tokens = text, .count = TOKENS};
  for (int i = 0; i < LABELS; i++) labels[i] = 10000 + 7 * (i % 48); /* some of them twice */
  return ust_candidates_open(&corpus, VOCABULARY, &candidates, &err);
}

static int teardown(void **state) {
  (void)state;
  ust_candidates_free(&candidates);
  return 0;
}

static void test_draw(void **state) {
  (void)state;
  for (uint64_t index = 0; index < 20; index++) {
    int count = ust_candidates_draw(&candidates, 1, index, labels, LABELS);
    memset(seen, 0, sizeof seen);
    double stands_for = 0;
    for (int i = 0; i < count; i++) {
      assert_in_range(candidates.ids[i], 0, VOCABULARY - 1);
      assert_int_equal(seen[candidates.ids[i]], 0);
      seen[candidates.ids[i]] = 1;
      stands_for += exp((double)candidates.logs[i]);
    }
    for (int i = 0; i < LABELS; i++) assert_int_equal(seen[labels[i]], 1);
    for (int i = 0; i < candidates.frequent; i++) {
      assert_true(candidates.ids[i] < 9000);
      assert_true(candidates.logs[i] == 0);
    }
    assert_true(count < VOCABULARY * 3 / 4);
    /* some 15,900 tokens are drawn one in sixteen: the sum's deviation is 16 sqrt(15900 / 16 * 15 / 16) = 488 */
    assert_true(fabs(stands_for - VOCABULARY) < 5 * 488);
  }
}

static void test_repeats(void **state) {
  (void)state;
  static int32_t first[VOCABULARY];
  int count = ust_candidates_draw(&candidates, 1, 5, labels, LABELS);
  memcpy(first, candidates.ids, (size_t)count * sizeof *first);
  int other = ust_candidates_draw(&candidates, 1, 6, labels, LABELS);
  assert_false(other == count && memcmp(first, candidates.ids, (size_t)count * sizeof *first) == 0);
  assert_int_equal(ust_candidates_draw(&candidates, 1, 5, labels, LABELS), count);
  assert_memory_equal(first, candidates.ids, (size_t)count * sizeof *first);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_draw), cmocka_unit_test(test_repeats)};
  return cmocka_run_group_tests(tests, setup, teardown);
}
