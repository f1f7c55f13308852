/* Cost curves: measured within their budget, the same again from the cache, measured again when the cache is not as
 * it was written. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include <cmocka.h>

#include "speculate/cost.h"
#include "support/random_model.h"

static const char key[] = "understudy pass costs, version 1\nsome processor\nsome model\n";

static ust_cost example(void) {
  ust_cost cost = {0};
  ust_cost_add(&cost, 32, 0.1123);
  ust_cost_add(&cost, 1, 0.07);
  ust_cost_add(&cost, 16, 0.0800000001);
  return cost;
}

static bool same(const ust_cost *a, const ust_cost *b) {
  bool equal = a->points == b->points;
  for (int i = 0; equal && i < a->points; i++)
    equal = a->rows[i] == b->rows[i] && a->seconds[i] - b->seconds[i] < 1e-9 && b->seconds[i] - a->seconds[i] < 1e-9;
  return equal;
}

static void curve(void **unused) {
  (void)unused;
  ust_cost cost = example();
  assert_int_equal(cost.points, 3);
  assert_true(ust_cost_of(&cost, 1) == 0.07 && ust_cost_of(&cost, 32) == 0.1123);
  assert_true(ust_cost_of(&cost, 64) == 2 * 0.1123); /* nothing known there: the worst */
  assert_float_equal(ust_cost_of(&cost, 24), (0.08 + 0.1123) / 2, 1e-6);
  ust_cost_add(&cost, 16, 0.09);
  assert_int_equal(cost.points, 3);
  for (int i = 0; i < 200; i++) ust_cost_observe(&cost, 16, 0.18); /* twice as slow: all is, like row counts most */
  assert_float_equal(ust_cost_of(&cost, 16), 0.18, 1e-3);
  assert_true(ust_cost_of(&cost, 1) > 1.3 * 0.07 && ust_cost_of(&cost, 1) < 2 * 0.07);
  for (int i = 0; i < 700; i++) ust_cost_fade(&cost);
  assert_true(ust_cost_of(&cost, 16) < 0.05);
}

/* What one busy moment at the start made of a curve: while there are passes of one row only, their speed says nothing
 * of what rows cost beside it, but the price of further rows fades; and so a second row is tried again. */
static void busy_start_is_forgotten(void **unused) {
  (void)unused;
  ust_cost cost = {0};
  ust_cost_add(&cost, 1, 0.07);
  ust_cost_add(&cost, 2, 0.30);
  ust_cost_add(&cost, 8, 0.33);
  for (int i = 0; i < 1000; i++) ust_cost_observe(&cost, 1, 0.035); /* quiet again */
  assert_float_equal(ust_cost_of(&cost, 1), 0.035, 1e-3);
  assert_float_equal(ust_cost_of(&cost, 8) / ust_cost_of(&cost, 1), 0.33 / 0.07, 1e-3);
  for (int i = 0; i < 100; i++) ust_cost_fade_rows(&cost, 0.03);
  assert_float_equal(ust_cost_of(&cost, 1), 0.035, 1e-3);
  assert_true(ust_cost_of(&cost, 2) / ust_cost_of(&cost, 1) < 1.2);
  assert_true(ust_cost_of(&cost, 2) >= ust_cost_of(&cost, 1) && ust_cost_of(&cost, 8) >= ust_cost_of(&cost, 2));
}

/* ---- measuring ---- */

typedef struct clockwork {
  int passes[128];
  double seconds, row, part; /* that a pass takes, and each row more; this part of it is done */
  int disturbed;             /* the one pass that takes ten times as long */
} clockwork;

static double tick(void *user, int rows) {
  clockwork *c = user;
  c->passes[rows]++;
  double seconds = c->seconds + c->row * (rows - 1);
  if (--c->disturbed == 0) seconds *= 10;
  struct timespec pause = {.tv_nsec = (long)(seconds * c->part * 1e9)};
  nanosleep(&pause, NULL);
  return seconds;
}

static void measuring_ends(void **unused) {
  (void)unused;
  const int order[] = {1, 32, 16, 64, 8};
  clockwork slow = {.seconds = 0.05, .part = 1}, quick = {.seconds = 0.02, .row = 0.001, .part = 0.001, .disturbed = 2};
  ust_cost cost = {0};
  ust_cost_measure(&cost, order, 5, 100, tick, &slow, 0.001); /* two points, come what may */
  assert_int_equal(cost.points, 2);
  assert_true(slow.passes[1] == 1 && slow.passes[32] == 1 && slow.passes[16] == 0);
  ust_cost_measure(&cost, order, 5, 100, tick, &slow, 0.19); /* the third, but a fourth would go beyond */
  assert_int_equal(cost.points, 3);
  assert_true(slow.passes[1] == 2 && slow.passes[16] == 1 && slow.passes[64] == 0);
  cost = (ust_cost){0};
  ust_cost_measure(&cost, order, 5, 40, tick, &quick,
                   10); /* parts of passes, all counts in turns, the largest left out */
  assert_int_equal(cost.points, 4);
  assert_true(quick.passes[16] == 8 && quick.passes[64] == 0);
  for (int i = 0; i < 4; i++) assert_float_equal(cost.seconds[i], 0.02 + 0.001 * (cost.rows[i] - 1), 1e-9);
  cost = (ust_cost){0};
  quick.disturbed = 2;
  ust_cost_measure(&cost, (const int[]){1, 4}, 2, 40, tick, &quick,
                   0); /* each once: ten times as long is not believed */
  assert_float_equal(cost.seconds[1], 4 * cost.seconds[0], 1e-9);
  cost = (ust_cost){0};
  ust_cost_measure(&cost, order, 5, 1, tick, &quick, 10); /* room for one row */
  assert_int_equal(cost.points, 1);
}

/* Another day, another speed: the curve keeps its shape, and what is measured now stands beside what is scaled. */
static void speeds_change(void **unused) {
  (void)unused;
  const int order[] = {1, 8};
  clockwork clock = {.seconds = 0.01, .part = 0.01};
  ust_cost cost = {0};
  ust_cost_add(&cost, 1, 0.1);
  ust_cost_add(&cost, 8, 0.2);
  ust_cost_add(&cost, 64, 0.8);
  ust_cost_measure(&cost, order, 1, 100, tick, &clock, 0.001);
  assert_int_equal(cost.points, 3);
  const double scaled[] = {0.01, 0.02, 0.08};
  for (int i = 0; i < 3; i++) assert_float_equal(cost.seconds[i], scaled[i], 1e-9);
  ust_cost_measure(&cost, order, 2, 100, tick, &clock, 10); /* 8 rows take what 1 takes: half way there */
  assert_float_equal(cost.seconds[0], 0.01, 1e-9);
  assert_float_equal(cost.seconds[1], 0.01414, 1e-4);
}

/* A curve from elsewhere, of other row counts, has no room in this one. */
static void other_row_counts_are_dropped(void **unused) {
  (void)unused;
  const int order[UST_COST_POINTS] = {1, 8, 32, 16, 64, 4, 2, 6, 12, 48};
  clockwork clock = {.seconds = 0.001, .part = 0.01};
  ust_cost cost = {0};
  for (int i = 0; i < UST_COST_POINTS; i++) ust_cost_add(&cost, 1 + 2 * i, 0.1);
  ust_cost_measure(&cost, order, UST_COST_POINTS, 100, tick, &clock, 10);
  assert_int_equal(cost.points, UST_COST_POINTS);
  assert_true(cost.rows[1] == 2 && cost.rows[UST_COST_POINTS - 1] == 64);
}

/* ---- the file ---- */

static char directory[] = "/tmp/understudy-cost-XXXXXX", file[512];

static int make_directory(void **unused) {
  (void)unused;
  return mkdtemp(directory) ? 0 : -1;
}

/* Finds the one file in the directory. */
static void find_file(void) {
  DIR *listing = opendir(directory);
  int count = 0;
  for (struct dirent *entry; (entry = readdir(listing));)
    if (entry->d_name[0] != '.') {
      snprintf(file, sizeof file, "%s/%s", directory, entry->d_name);
      count++;
    }
  closedir(listing);
  assert_int_equal(count, 1);
}

static int remove_directory(void **unused) {
  (void)unused;
  unlink(file);
  return rmdir(directory);
}

static void write_file(const char *data, size_t size) {
  FILE *stream = fopen(file, "wb");
  assert_int_equal(fwrite(data, 1, size, stream), size);
  fclose(stream);
}

static void damage_is_noticed(void **unused) {
  (void)unused;
  ust_cost cost = example(), back;
  assert_false(ust_cost_load(&back, directory, key));
  assert_false(ust_cost_load(&back, NULL, key));
  ust_cost_save(&cost, directory, key);
  find_file();
  assert_true(ust_cost_load(&back, directory, key));
  assert_true(same(&cost, &back) && back.drift == 1);
  assert_false(ust_cost_load(&back, directory, "another key\n"));

  char *good;
  size_t size;
  assert_int_equal(ust_file_slurp(file, 4096, &good, &size, NULL), UNDERSTUDY_OK);
  for (size_t length = 0; length < size; length++) { /* cut anywhere */
    write_file(good, length);
    assert_false(ust_cost_load(&back, directory, key));
    assert_int_equal(back.points, 0);
  }
  for (size_t at = 0; at < size; at++) /* any byte changed */
    for (int bit = 0; bit < 8; bit++) {
      good[at] ^= (char)(1 << bit);
      write_file(good, size);
      assert_false(ust_cost_load(&back, directory, key));
      good[at] ^= (char)(1 << bit);
    }
  char *large = calloc(1, 100000);
  write_file(large, 100000);
  assert_false(ust_cost_load(&back, directory, key));
  free(large);
  unlink(file);
  assert_int_equal(mkdir(file, 0700), 0); /* not even a file; and in the way of writing one */
  assert_false(ust_cost_load(&back, directory, key));
  ust_cost_save(&cost, directory, key);
  rmdir(file);
  assert_int_equal(mkfifo(file, 0600), 0); /* waits for nobody */
  assert_false(ust_cost_load(&back, directory, key));
  ust_cost_save(&cost, directory, key);
  unlink(file);
  free(good);
}

/* Lines no measurement gives, under a right checksum. */
static void nonsense_is_refused(void **unused) {
  (void)unused;
  ust_cost back;
  for (int i = 0; i < 4; i++) {
    ust_cost cost = {.points = 2, .rows = {1, 8}, .seconds = {1, 2}, .drift = 1};
    if (i == 0) cost.rows[0] = -1;
    if (i == 1) cost.rows[1] = 1;
    if (i == 2) cost.seconds[0] = -1;
    if (i == 3) cost.points = 0;
    ust_cost_save(&cost, directory, key);
    assert_false(ust_cost_load(&back, directory, key));
  }
}

static void keys_tell_models_apart(void **unused) {
  (void)unused;
  random_model one = {97, 64, 32, 1, 1, UST_TYPE_BF16, 1, 0.2f}, two = one;
  two.type = UST_TYPE_Q8_0;
  ust_model *a = random_model_open(&one, ust_kernels_best(), 1), *b = random_model_open(&two, ust_kernels_best(), 1),
            *c = random_model_open(&one, ust_kernels_best(), 2);
  char keys[5][UST_COST_KEY];
  ust_cost_key(a, "amx", "target", keys[0]);
  ust_cost_key(b, "amx", "target", keys[1]);
  ust_cost_key(c, "amx", "target", keys[2]);
  ust_cost_key(a, "avx2", "target", keys[3]);
  ust_cost_key(a, "amx", "draft", keys[4]);
  for (int i = 0; i < 5; i++)
    for (int j = 0; j < i; j++) assert_string_not_equal(keys[i], keys[j]);
  ust_model_close(a);
  ust_model_close(b);
  ust_model_close(c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(curve),
      cmocka_unit_test(busy_start_is_forgotten),
      cmocka_unit_test(measuring_ends),
      cmocka_unit_test(speeds_change),
      cmocka_unit_test(other_row_counts_are_dropped),
      cmocka_unit_test(damage_is_noticed),
      cmocka_unit_test(nonsense_is_refused),
      cmocka_unit_test(keys_tell_models_apart),
  };
  return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
