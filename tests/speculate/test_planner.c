/* What the planner believes: priors give way to what is seen, knowledge fades, fixed shapes are what they say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "speculate/planner.h"

static ust_planner planner;

static void records_follow_the_text(void **unused) {
  (void)unused;
  ust_planner_init(&planner);
  ust_record *r = &planner.draft_covers;
  assert_float_equal(ust_record_chance(r, 1), 0.8f, 1e-6);
  for (int i = 0; i < 400; i++) ust_record_observe(r, true);
  assert_true(ust_record_chance(r, 1) > 0.99f);
  for (int i = 0; i < 60; i++) ust_record_observe(r, false); /* another kind of text */
  assert_true(ust_record_chance(r, 1) < 0.4f);
  for (int i = 0; i < 400; i++) ust_record_observe(r, false);
  assert_true(ust_record_chance(r, 1) < 0.001f); /* no prior keeps a useless stage alive */
  for (int i = 0; i < 20; i++) ust_record_fade(r);
  assert_true(ust_record_chance(r, 1) < 0.01f); /* nor is it tried at every turn */
  for (int i = 0; i < 3000; i++) ust_record_fade(r);
  assert_true(ust_record_chance(r, 1) > 0.4f); /* but one day again */
}

static void priors_are_probabilities(void **unused) {
  (void)unused;
  ust_planner_init(&planner);
  for (int known = 0; known < 2; known++)
    for (int gap = 0; gap < UST_GAPS; gap++)
      for (int rank = 0; rank < UST_CANDIDATES; rank++) {
        float chance = ust_record_chance(&planner.draft_hits[ust_draft_cell(known, rank, gap)], 1);
        float first = ust_record_chance(&planner.draft_hits[ust_draft_cell(known, 0, gap)], 1);
        assert_true(chance > 0 && chance < 1 && (rank == 0 || first + chance < 1));
      }
  for (int i = 0; i < 60; i++)
    ust_record_observe(&planner.draft_covers, true); /* better than was thought, but no more */
  float scale = ust_planner_scale(&planner.draft_covers);
  assert_true(scale > 1.2f);
  assert_true(ust_record_chance(&planner.draft_hits[ust_draft_cell(false, 0, UST_GAPS - 1)], scale) <= 1);
}

/* A tree with three children everywhere, the later the likelier. */
static void grow(ust_tree *tree, int node, int levels) {
  for (int i = 0; i < 3 && levels > 0; i++) {
    int child = ust_tree_add(tree, node, i, 0.2f + 0.1f * (float)i, UNDERSTUDY_FROM_DRAFT);
    grow(tree, child, levels - 1);
  }
}

static int fitting(const ust_tree *tree, ust_shape shape) {
  int count = 0;
  for (int node = 1; node < tree->count; node++) {
    bool fits = ust_tree_fits(tree, node, &shape);
    if (fits)
      assert_true(shape.length == 0 || tree->nodes[node].parent == 0 ||
                  ust_tree_fits(tree, tree->nodes[node].parent, &shape));
    count += fits;
  }
  return count;
}

static void shapes(void **unused) {
  (void)unused;
  static ust_tree tree;
  ust_tree_start(&tree, 0);
  grow(&tree, 0, 5);
  assert_int_equal(fitting(&tree, (ust_shape){0}), tree.count - 1);
  assert_int_equal(fitting(&tree, (ust_shape){.length = 4}), 4);
  assert_int_equal(fitting(&tree, (ust_shape){.length = 4, .turns = 1}), 4 + 4 + 3 + 2); /* four chains */
  assert_int_equal(fitting(&tree, (ust_shape){.length = 1, .turns = 1}), 1);
}

/* Random prices that rise in steps, reaches that fall: the search that stops early ends where a full one does. */
static void hope_ends_in_time(void **unused) {
  (void)unused;
  uint64_t random = 7;
#define UNIFORM() ((double)((random = random * 6364136223846793005u + 1442695040888963407u) >> 40) * 0x1p-24)
  int spared = 0;
  for (int trial = 0; trial < 2000; trial++) {
    double price[UST_TARGET_ROWS + 1] = {0}, reach[UST_TARGET_ROWS + 1] = {0}, expected = 0, full = 0;
    price[1] = 1;
    for (int n = 2; n <= UST_TARGET_ROWS; n++) price[n] = price[n - 1] + (UNIFORM() < 0.2 ? UNIFORM() : 0);
    reach[2] = UNIFORM();
    for (int n = 3; n <= UST_TARGET_ROWS; n++) reach[n] = reach[n - 1] * (0.6 + 0.4 * UNIFORM());
    double best = full = -price[1];
    for (int n = 2; n <= UST_TARGET_ROWS; n++) full = UST_MAX(full, (expected += reach[n]) - price[n]);
    expected = 0;
    for (int n = 2; n <= UST_TARGET_ROWS; n++) {
      if (!ust_planner_hopes(price, n - 1, UST_TARGET_ROWS, expected, reach[n], best)) {
        spared++;
        break;
      }
      best = UST_MAX(best, (expected += reach[n]) - price[n]);
    }
    assert_float_equal(best, full, 1e-12);
  }
  assert_true(spared > 1000);
#undef UNIFORM
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(records_follow_the_text),
      cmocka_unit_test(priors_are_probabilities),
      cmocka_unit_test(shapes),
      cmocka_unit_test(hope_ends_in_time),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
