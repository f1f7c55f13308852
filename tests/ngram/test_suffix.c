/* Suffixes of the text so far against a brute-force search, on random and degenerate text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "ngram/ngram.h"

enum { LONGEST = 8, RECENT = 32, CAPACITY = 600 };

static uint64_t state = 1;
static uint32_t random_word(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  uint64_t x = state ^ state >> 33;
  return (uint32_t)(x * 0xff51afd7ed558ccdu >> 32);
}

/* Longest suffix first; of one suffix the most frequent among its newest RECENT successors, then the newest. */
static int naive_candidates(const int32_t *text, int count, const int32_t *extra, int extra_count, int max,
                            ust_ngram_candidate *out) {
  static int32_t all[CAPACITY + 64];
  int known = count + extra_count, found = 0;
  memcpy(all, text, (size_t)count * sizeof *all);
  if (extra_count) memcpy(all + count, extra, (size_t)extra_count * sizeof *all);
  for (int length = UST_MIN(LONGEST, known); length >= 1; length--) {
    int32_t next[RECENT];
    int times[RECENT], distinct = 0, seen = 0;
    for (int place = count - 1; place >= length && seen < RECENT; place--) {
      if (memcmp(text + place - length, all + known - length, (size_t)length * sizeof *text) != 0) continue;
      seen++;
      bool old = false;
      for (int i = 0; i < found && !old; i++) old = out[i].token == text[place];
      if (old) continue;
      int i = 0;
      while (i < distinct && next[i] != text[place]) i++;
      if (i == distinct) {
        next[distinct] = text[place];
        times[distinct++] = 0;
      }
      times[i]++;
    }
    for (int taken = 0; taken < distinct && found < max; taken++) {
      int best = 0;
      for (int i = 1; i < distinct; i++)
        if (times[i] > times[best]) best = i;
      out[found++] = (ust_ngram_candidate){.token = next[best], .order = length};
      times[best] = 0;
    }
  }
  return found;
}

static void check(const ust_suffixes *suffixes, const int32_t *text, int count, const int32_t *extra, int extra_count,
                  int max) {
  ust_ngram_candidate got[64], expected[64];
  int found = ust_suffixes_candidates(suffixes, extra, extra_count, max, got);
  assert_int_equal(found, naive_candidates(text, count, extra, extra_count, max, expected));
  double sum = 0;
  for (int i = 0; i < found; i++) {
    assert_int_equal(got[i].token, expected[i].token);
    assert_int_equal(got[i].order, expected[i].order);
    assert_int_equal(got[i].source, UST_SOURCE_CONTEXT);
    assert_true(got[i].probability > 0 && got[i].probability < 1);
    if (i > 0 && got[i].order == got[i - 1].order) assert_true(got[i].probability <= got[i - 1].probability);
    sum += (double)got[i].probability;
  }
  assert_true(sum <= 1 + 1e-6);
}

static ust_suffixes *suffixes_of(int capacity) {
  ust_suffixes *suffixes;
  assert_int_equal(ust_suffixes_create(capacity, &suffixes, NULL), UNDERSTUDY_OK);
  return suffixes;
}

static void test_brute_force(void **unused) {
  (void)unused;
  state = 3;
  static int32_t text[CAPACITY];
  ust_suffixes *suffixes = suffixes_of(CAPACITY);
  for (int round = 0; round < 24; round++) {
    int alphabet = (int[]){1, 2, 3, 8, 60, 50257}[round % 6];
    ust_suffixes_reset(suffixes); /* nothing of the last round may be left */
    check(suffixes, text, 0, NULL, 0, 8);
    for (int count = 0; count < CAPACITY; count++) {
      text[count] = (int32_t)(random_word() % (uint32_t)alphabet);
      if (count > 40 && random_word() % 50) text[count] = text[count - 17 - round]; /* repeats itself */
      ust_suffixes_append(suffixes, text[count]);
      int32_t extra[12];
      int extra_count = count % 3 ? 0 : (int)(random_word() % 12);
      for (int i = 0; i < extra_count; i++)
        extra[i] = i < count && random_word() % 4 ? text[random_word() % 2 ? i : count - i] : (int32_t)random_word();
      check(suffixes, text, count + 1, extra, extra_count, (int[]){1, 2, 8, 40}[random_word() % 4]);
    }
    ust_suffixes_append(suffixes, 77); /* full: left out */
    check(suffixes, text, CAPACITY, NULL, 0, 8);
  }
  ust_suffixes_free(suffixes);
}

/* The estimate grows with the length of the match and with how often it was seen. */
static void test_probability(void **unused) {
  (void)unused;
  ust_ngram_candidate one[4], other[4];
  ust_suffixes *suffixes = suffixes_of(100);
  for (int repeat = 0; repeat < 2; repeat++)
    for (int i = 0; i < 10; i++) ust_suffixes_append(suffixes, i);
  int32_t unrelated_then_3[] = {50, 3};
  assert_int_equal(ust_suffixes_candidates(suffixes, NULL, 0, 4, one), 1); /* … 8 9 → 0 */
  assert_int_equal(ust_suffixes_candidates(suffixes, unrelated_then_3, 2, 4, other), 1);
  assert_true(one[0].token == 0 && one[0].order == 8 && other[0].token == 4 && other[0].order == 1);
  assert_true(one[0].probability > other[0].probability);
  for (int i = 0; i < 10; i++) ust_suffixes_append(suffixes, i);
  assert_int_equal(ust_suffixes_candidates(suffixes, NULL, 0, 4, other), 1);
  assert_true(other[0].token == 0 && other[0].probability > one[0].probability);
  ust_suffixes_free(suffixes);
}

static void test_create(void **unused) {
  (void)unused;
  ust_suffixes *suffixes;
  assert_int_equal(ust_suffixes_create(0, &suffixes, NULL), UNDERSTUDY_ERROR_ARGUMENT);
  assert_null(suffixes);
  assert_int_equal(ust_suffixes_create((1 << 28) + 1, &suffixes, NULL), UNDERSTUDY_ERROR_ARGUMENT);
  ust_suffixes_free(NULL);
  suffixes = suffixes_of(1);
  ust_suffixes_append(suffixes, 5);
  ust_suffixes_append(suffixes, 6);
  ust_ngram_candidate out[2];
  assert_int_equal(ust_suffixes_candidates(suffixes, NULL, 0, 2, out), 0);
  ust_suffixes_free(suffixes);
}

static void test_time(void **unused) {
  (void)unused;
  enum { COUNT = 10000 };
  static const char *const names[] = {"one token", "two by turns", "all different", "random of 10"};
  ust_suffixes *suffixes = suffixes_of(32768);
  for (int kind = 0; kind < 4; kind++) {
    ust_suffixes_reset(suffixes);
    ust_ngram_candidate out[8];
    uint64_t append_ns = 0, lookup_ns = 0;
    for (int i = 0; i < COUNT; i++) {
      int32_t token = kind == 0 ? 5 : kind == 1 ? i % 2 : kind == 2 ? i : (int32_t)(random_word() % 10);
      uint64_t start = ust_clock_ns();
      ust_suffixes_append(suffixes, token);
      uint64_t middle = ust_clock_ns();
      ust_suffixes_candidates(suffixes, NULL, 0, 8, out);
      append_ns += middle - start;
      lookup_ns += ust_clock_ns() - middle;
    }
    print_message("%-14s append %.2f us, look-up %.2f us\n", names[kind], (double)append_ns / COUNT / 1e3,
                  (double)lookup_ns / COUNT / 1e3);
    assert_true(append_ns < 200000ull * COUNT && lookup_ns < 200000ull * COUNT); /* never grows with the text */
  }
  ust_suffixes_free(suffixes);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_brute_force),
      cmocka_unit_test(test_probability),
      cmocka_unit_test(test_create),
      cmocka_unit_test(test_time),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
