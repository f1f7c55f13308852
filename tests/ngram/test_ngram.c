/* The Katz file: probabilities against a brute-force Katz, sums of one before and after pruning, the likeliest
 * successors against a full sort, and every kind of damaged or foreign file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "ngram/internal.h"

enum { FINGERPRINT = 0x1234567 };

static char directory[] = "/tmp/understudy-ngram-XXXXXX", path[64];

static uint64_t state = 1;
static uint32_t random_word(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  uint64_t x = state ^ state >> 33;
  return (uint32_t)(x * 0xff51afd7ed558ccdu >> 32);
}

/* Text of Zipf-like tokens in which a token leans on the one before it. */
static int32_t *make_text(int vocabulary, size_t count) {
  int32_t *text = malloc(count * sizeof *text);
  assert_non_null(text);
  for (size_t i = 0; i < count; i++) {
    double u = (random_word() + 0.5) * 0x1p-32;
    int rank = (int)(pow(vocabulary + 1.0, u) - 1);
    int shift = i > 0 && random_word() % 3 ? text[i - 1] * 7 + (i > 1 && random_word() % 2 ? text[i - 2] : 0) : 0;
    text[i] = (rank + shift) % vocabulary;
  }
  return text;
}

static ust_ngram_fit *fit_of(int vocabulary, const int32_t *text, size_t count) {
  ust_ngram_fit *fit;
  assert_int_equal(ust_ngram_fit_create(vocabulary, FINGERPRINT, &fit, NULL), UNDERSTUDY_OK);
  assert_int_equal(ust_ngram_fit_add(fit, text, count, NULL), UNDERSTUDY_OK);
  return fit;
}

static ust_ngram *open_good(int vocabulary) {
  understudy_error err = {0};
  ust_ngram *ngram;
  if (ust_ngram_open(path, vocabulary, FINGERPRINT, &ngram, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  return ngram;
}

static ust_ngram *written(ust_ngram_fit *fit, int vocabulary, size_t max_bytes) {
  understudy_error err = {0};
  if (ust_ngram_fit_write(fit, path, max_bytes, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  return open_good(vocabulary);
}

static char *read_file(size_t *size) {
  char *data;
  assert_int_equal(ust_file_slurp(path, 1 << 30, &data, size, NULL), UNDERSTUDY_OK);
  return data;
}

static void write_file(const char *data, size_t size) {
  unlink(path); /* some file systems flush a file that is truncated and written again */
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, size, file), size);
  fclose(file);
}

static double sum_of(const ust_ngram *ngram, int vocabulary, int before, int last) {
  double sum = 0;
  for (int t = 0; t < vocabulary; t++) sum += exp(ust_ngram_logprob(ngram, before, last, t));
  return sum;
}

/* ---- brute force ---- */

enum { MOST = 24 };

typedef struct naive {
  int vocabulary;
  bool good_turing[2];
  double one[MOST], two[MOST][MOST], three[MOST][MOST][MOST]; /* P(token), P(token | last), P(token | last, before) */
} naive;

static double rounded(double p) {
  return exp(-fmax(1, ceil(-log(p) * 2048)) / 2048);
}

/* Fills in[0 … vocabulary-1] from counts over a lower order, as Katz does. */
static void naive_context(int vocabulary, const int *count, const double *discounted, const double *lower, double *in) {
  double seen = 0, kept = 0, sum = 0, rest = 0;
  int listed = 0;
  for (int t = 0; t < vocabulary; t++)
    if (count[t] > 0) {
      seen += count[t];
      kept += discounted[count[t]];
      listed++;
    }
  if (seen - kept < 0.01) seen++;
  int dropped = -1;
  for (int t = 0; t < vocabulary; t++) in[t] = count[t] > 0 ? rounded(discounted[count[t]] / seen) : 0;
  if (listed == vocabulary) { /* the least likely, of the highest id, is left to the back-off */
    for (int t = 0; t < vocabulary; t++)
      if (dropped < 0 || in[t] <= in[dropped]) dropped = t;
    in[dropped] = 0;
  }
  for (int t = 0; t < vocabulary; t++) {
    sum += in[t];
    if (in[t] == 0) rest += lower[t];
  }
  for (int t = 0; t < vocabulary; t++)
    if (in[t] == 0) in[t] = (1 - sum) / rest * lower[t];
}

/* discounted[r] for every r up to `most`; says whether Good-Turing's are in use. */
static bool naive_discounts(const int *counts, size_t size, int most, double *discounted) {
  double n[8] = {0};
  for (size_t i = 0; i < size; i++)
    if (counts[i] < 8) n[counts[i]]++;
  bool valid = true;
  for (int r = 0; r <= most; r++) discounted[r] = r;
  for (int r = 1; r <= 5; r++) {
    double share = 6 * n[6] / n[1], ratio = ((r + 1) * n[r + 1] / n[r] / r - share) / (1 - share);
    valid = valid && n[r] > 0 && share < 1 && ratio > 0 && ratio <= 1;
    discounted[r] = ratio * r;
  }
  for (int r = 1; r <= most && !valid; r++) discounted[r] = r - (n[1] > 0 && n[2] > 0 ? n[1] / (n[1] + 2 * n[2]) : 0.5);
  return valid;
}

static naive *naive_fit(int vocabulary, const int32_t *text, size_t count) {
  static int one[MOST], two[MOST][MOST], three[MOST][MOST][MOST];
  naive *model = calloc(1, sizeof *model);
  double *discounted = calloc(count + 8, sizeof *discounted), sum = 0;
  assert_true(model && discounted);
  memset(one, 0, sizeof one);
  memset(two, 0, sizeof two);
  memset(three, 0, sizeof three);
  for (size_t i = 0; i < count; i++) {
    one[text[i]]++;
    if (i > 0) two[text[i - 1]][text[i]]++;
    if (i > 1) three[text[i - 1]][text[i - 2]][text[i]]++;
  }
  model->vocabulary = vocabulary;
  for (int t = 0; t < vocabulary; t++)
    sum += model->one[t] = rounded((one[t] + 0.5) / ((double)count + 0.5 * vocabulary));
  for (int t = 0; t < vocabulary; t++) model->one[t] /= sum;
  model->good_turing[0] = naive_discounts(two[0], MOST * MOST, (int)count, discounted);
  for (int v = 0; v < vocabulary; v++) naive_context(vocabulary, two[v], discounted, model->one, model->two[v]);
  model->good_turing[1] = naive_discounts(three[0][0], MOST * MOST * MOST, (int)count, discounted);
  for (int v = 0; v < vocabulary; v++)
    for (int u = 0; u < vocabulary; u++)
      naive_context(vocabulary, three[v][u], discounted, model->two[v], model->three[v][u]);
  free(discounted);
  return model;
}

static void test_brute_force(void **unused) {
  (void)unused;
  /* probabilities are kept as floats */
  static const struct {
    int vocabulary;
    size_t count;
  } cases[] = {{1, 50}, {2, 1}, {2, 300}, {5, 2}, {5, 40}, {6, 5000}, {20, 400}, {24, 3000}, {24, 20000}, {9, 0}};
  int good = 0, fallback = 0;
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    state = 100 + c;
    int vocabulary = cases[c].vocabulary;
    int32_t *text = make_text(vocabulary, cases[c].count + 1);
    ust_ngram_fit *fit = fit_of(vocabulary, text, cases[c].count);
    ust_ngram *ngram = written(fit, vocabulary, 0);
    naive *model = naive_fit(vocabulary, text, cases[c].count);
    good += model->good_turing[0] + model->good_turing[1];
    fallback += !model->good_turing[0] + !model->good_turing[1];
    for (int t = 0; t < vocabulary; t++) {
      assert_true(fabs(exp(ust_ngram_logprob(ngram, -1, -1, t)) - model->one[t]) < 2e-7);
      assert_true(fabs(exp(ust_ngram_logprob(ngram, 0, -1, t)) - model->one[t]) < 2e-7);
      for (int v = 0; v < vocabulary; v++) {
        assert_true(fabs(exp(ust_ngram_logprob(ngram, -1, v, t)) - model->two[v][t]) < 2e-7);
        for (int u = 0; u < vocabulary; u++)
          assert_true(fabs(exp(ust_ngram_logprob(ngram, u, v, t)) - model->three[v][u][t]) < 2e-7);
      }
    }
    assert_true(ust_ngram_logprob(ngram, 0, 0, -1) == -INFINITY && ust_ngram_logprob(ngram, 0, 0, 99) == -INFINITY);
    free(model);
    free(text);
    ust_ngram_close(ngram);
    ust_ngram_fit_free(fit);
  }
  print_message("Good-Turing discounts in %d of the fits, absolute ones in %d\n", good, fallback);
  assert_true(good >= 2 && fallback >= 2);
}

/* ---- sums, pruning, candidates ---- */

static void check_candidates(const ust_ngram *ngram, int vocabulary, int before, int last, int max) {
  static ust_ngram_candidate out[4096];
  static double all[4096];
  int found = ust_ngram_candidates(ngram, before, last, max, out);
  assert_int_equal(found, UST_MIN(max, vocabulary));
  for (int t = 0; t < vocabulary; t++) all[t] = exp(ust_ngram_logprob(ngram, before, last, t));
  for (int i = 0; i < found; i++) {
    double p = all[out[i].token];
    assert_true(p > 0); /* not listed before */
    assert_true(fabs((double)out[i].probability - p) < 1e-6 * p);
    assert_int_equal(out[i].source, UST_SOURCE_FILE);
    assert_true(out[i].order >= 0 && out[i].order <= 2);
    for (int t = 0; t < vocabulary; t++) assert_true(all[t] <= p * (1 + 1e-9)); /* the likeliest of the rest */
    all[out[i].token] = 0;
  }
}

static void test_sums_and_pruning(void **unused) {
  (void)unused;
  enum { V = 1000, COUNT = 60000 };
  state = 7;
  int32_t *text = make_text(V, COUNT);
  ust_ngram_fit *fit = fit_of(V, text, COUNT);
  double before_pruning = 0;
  static const size_t limits[] = {0, 150000, 40000, 6000, 2200, 2 * V + 48};
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
    ust_ngram *ngram = written(fit, V, limits[i]);
    size_t size;
    free(read_file(&size));
    if (limits[i]) assert_true(size <= limits[i] && size + 64 >= limits[i]);
    double score = 0;
    for (int j = 2; j < 20000; j++) score += ust_ngram_logprob(ngram, text[j - 2], text[j - 1], text[j]) / 20000;
    print_message("limit %6zu: %6zu bytes, mean log-probability %.3f\n", limits[i], size, score);
    if (i == 0) before_pruning = score;
    assert_true(score <= before_pruning + 0.05 && score > -log(V) - 1);
    for (int j = 0; j < 300; j++) {
      int last = j == 0 ? -1 : j == 1 ? V + 5 : j % 3 ? text[random_word() % COUNT] : (int)(random_word() % V);
      size_t at = random_word() % (COUNT - 1);
      int before = j % 5 == 0 ? -1 : j % 5 == 1 ? (int)(random_word() % V) : text[at];
      if (j % 5 > 2) last = text[at + 1];
      assert_true(fabs(sum_of(ngram, V, before, last) - 1) < 1e-9);
      if (j < 60) check_candidates(ngram, V, before, last, j % 4 == 0 ? V + 3 : 1 + j % 9);
    }
    ust_ngram_close(ngram);
  }
  understudy_error err;
  assert_int_equal(ust_ngram_fit_write(fit, path, 2000, &err), UNDERSTUDY_ERROR_ARGUMENT);
  assert_non_null(strstr(err.message, "2048"));
  ust_ngram_fit_free(fit);
  free(text);
}

/* N-grams do not cross texts; several texts and writes add up; ids of more than 16 bits. */
static void test_texts(void **unused) {
  (void)unused;
  const int32_t a[] = {1, 2, 3}, b[] = {70000, 2, 3, 99999}, outside[] = {5, 100000};
  ust_ngram_fit *fit = fit_of(100000, a, 3);
  understudy_error err;
  assert_int_equal(ust_ngram_fit_add(fit, outside, 2, &err), UNDERSTUDY_ERROR_ARGUMENT);
  assert_non_null(strstr(err.message, "token 1 of the text is 100000, expected 0 to 99999"));
  ust_ngram_close(written(fit, 100000, 0));
  assert_int_equal(ust_ngram_fit_add(fit, b, 4, NULL), UNDERSTUDY_OK);
  ust_ngram *ngram = written(fit, 100000, 0);
  ust_ngram_candidate out[3];
  assert_int_equal(ust_ngram_candidates(ngram, 70000, 2, 3, out), 3);
  assert_true(out[0].token == 3 && out[0].order == 2);
  assert_int_equal(ust_ngram_candidates(ngram, 2, 3, 1, out), 1);
  assert_true(out[0].token == 99999 && out[0].order == 2);
  assert_true(exp(ust_ngram_logprob(ngram, 2, 3, 70000)) < 1e-3); /* 3 ended one text, 70000 began the next */
  assert_true(fabs(sum_of(ngram, 100000, 2, 3) - 1) < 1e-9);
  ust_ngram_close(ngram);
  ust_ngram_fit_free(fit);
}

/* ---- bad files ---- */

/* Opening fails with one line that names the file; returns it. */
static const char *refused(int vocabulary, uint64_t fingerprint) {
  static understudy_error err;
  ust_ngram *ngram;
  assert_int_not_equal(ust_ngram_open(path, vocabulary, fingerprint, &ngram, &err), UNDERSTUDY_OK);
  assert_null(ngram);
  assert_non_null(strstr(err.message, path));
  assert_null(strchr(err.message, '\n'));
  return err.message;
}

static char *small_file(size_t *size) {
  state = 11;
  int32_t *text = make_text(12, 60);
  ust_ngram_fit *fit = fit_of(12, text, 60);
  ust_ngram_close(written(fit, 12, 0));
  ust_ngram_fit_free(fit);
  free(text);
  return read_file(size);
}

static void test_damage(void **unused) {
  (void)unused;
  size_t size;
  char *data = small_file(&size);
  print_message("small file: %zu bytes\n", size);
  assert_in_range(size, 200, 1500);
  for (size_t prefix = 0; prefix < size; prefix++) {
    write_file(data, prefix);
    refused(12, FINGERPRINT);
  }
  for (size_t bit = 0; bit < 8 * size; bit++) {
    data[bit / 8] ^= (char)(1 << bit % 8);
    write_file(data, size);
    refused(12, FINGERPRINT);
    data[bit / 8] ^= (char)(1 << bit % 8);
  }
  char *longer = calloc(1, size + 1);
  memcpy(longer, data, size);
  write_file(longer, size + 1);
  refused(12, FINGERPRINT);
  write_file(data, size);
  ust_ngram_close(open_good(12));
  free(longer);
  free(data);
}

/* Damage with a checksum that matches: whatever is accepted must still be a probability distribution. */
static void test_forged(void **unused) {
  (void)unused;
  size_t size;
  char *data = small_file(&size), *forged = malloc(size);
  int accepted = 0;
  for (int i = 0; i < 3000; i++) {
    memcpy(forged, data, size);
    for (uint32_t n = 0; n <= random_word() % 3; n++) forged[12 + random_word() % (size - 20)] = (char)random_word();
    uint64_t sum = ust_hash(UST_HASH_START, forged, size - 8);
    ust_ngram_put((unsigned char *)forged + size - 8, sum, 8);
    write_file(forged, size);
    ust_ngram *ngram;
    if (ust_ngram_open(path, 12, FINGERPRINT, &ngram, NULL) != UNDERSTUDY_OK) continue;
    accepted++;
    for (int last = -1; last < 12; last++) assert_true(fabs(sum_of(ngram, 12, last % 5, last) - 1) < 1e-9);
    ust_ngram_close(ngram);
  }
  print_message("forged files: %d of 3000 are valid\n", accepted);
  free(forged);
  free(data);
}

/* Successors that cover all but 1e-14 of the lower order: 1 minus their sum would be mostly rounding. */
static void test_tiny_rest(void **unused) {
  (void)unused;
  const int32_t text[] = {0, 1, 0, 0, 1, 1, 0, 1};
  ust_ngram_fit *fit = fit_of(3, text, 8); /* token 2 is never seen */
  ust_ngram_close(written(fit, 3, 0));
  ust_ngram_fit_free(fit);
  size_t size;
  char *data = read_file(&size);
  ust_ngram_put((unsigned char *)data + UST_NGRAM_HEADER + 4, UST_NGRAM_MOST_COST, 2);
  ust_ngram_put((unsigned char *)data + size - 8, ust_hash(UST_HASH_START, data, size - 8), 8);
  write_file(data, size);
  ust_ngram *ngram = open_good(3);
  assert_true(ust_ngram_logprob(ngram, -1, -1, 2) < -30);
  for (int last = -1; last < 3; last++)
    for (int before = -1; before < 3; before++) assert_true(fabs(sum_of(ngram, 3, before, last) - 1) < 1e-9);
  ust_ngram_close(ngram);
  free(data);
}

static void test_foreign(void **unused) {
  (void)unused;
  size_t size;
  char *data = small_file(&size);
  assert_non_null(strstr(refused(12, FINGERPRINT + 1), "another tokenizer"));
  assert_non_null(strstr(refused(13, FINGERPRINT), "another tokenizer"));
  data[8] = 2;
  write_file(data, size);
  assert_non_null(strstr(refused(12, FINGERPRINT), "newer"));
  write_file("<!DOCTYPE html><html>", 21);
  assert_non_null(strstr(refused(12, FINGERPRINT), "not an n-gram file"));
  unlink(path);
  refused(12, FINGERPRINT);
  free(data);
  ust_ngram_fit *fit;
  ust_ngram *ngram;
  assert_int_equal(ust_ngram_fit_create(0, 0, &fit, NULL), UNDERSTUDY_ERROR_ARGUMENT);
  assert_int_equal(ust_ngram_fit_create((1 << 20) + 1, 0, &fit, NULL), UNDERSTUDY_ERROR_ARGUMENT);
  assert_int_equal(ust_ngram_open(directory, 12, 0, &ngram, NULL), UNDERSTUDY_ERROR_IO);
  const int32_t text[] = {1};
  fit = fit_of(12, text, 1);
  understudy_error err;
  assert_int_equal(ust_ngram_fit_write(fit, "/nowhere/at/all", 0, &err), UNDERSTUDY_ERROR_IO);
  assert_non_null(strstr(err.message, "/nowhere/at/all"));
  ust_ngram_fit_free(fit);
}

/* ---- time, for the reader of the log ---- */

static void test_time(void **unused) {
  (void)unused;
#if defined(__SANITIZE_ADDRESS__)
  enum { COUNT = 200000 };
#else
  enum { COUNT = 2000000 };
#endif
  enum { V = 50257, LOOKUPS = 100000 };
  state = 5;
  int32_t *text = make_text(V, COUNT);
  uint64_t start = ust_clock_ns();
  ust_ngram_fit *fit = fit_of(V, text, COUNT);
  double count_s = (double)(ust_clock_ns() - start) / 1e9;
  start = ust_clock_ns();
  assert_int_equal(ust_ngram_fit_write(fit, path, 4 << 20, NULL), UNDERSTUDY_OK);
  double write_s = (double)(ust_clock_ns() - start) / 1e9;
  start = ust_clock_ns();
  ust_ngram *ngram = open_good(V);
  double open_s = (double)(ust_clock_ns() - start) / 1e9;
  ust_ngram_candidate out[8];
  int found = 0;
  double lookup_us = INFINITY; /* the best thousand: other programs run here too */
  for (int i = 2; i < LOOKUPS + 2;) {
    start = ust_clock_ns();
    for (int j = 0; j < 1000; j++, i++) found += ust_ngram_candidates(ngram, text[i - 2], text[i - 1], 8, out);
    lookup_us = fmin(lookup_us, (double)(ust_clock_ns() - start) / 1e6);
  }
  print_message("%d tokens: counted in %.2f s, written (4 MB) in %.2f s, opened in %.2f s as %.1f MB, "
                "8 candidates in %.2f us\n",
                COUNT, count_s, write_s, open_s, (double)ust_ngram_bytes(ngram) / 1e6, lookup_us);
  assert_int_equal(found, 8 * LOOKUPS);
  ust_ngram_close(ngram);
  ust_ngram_fit_free(fit);
  free(text);
}

static int make_directory(void **unused) {
  (void)unused;
  if (!mkdtemp(directory)) return 1;
  snprintf(path, sizeof path, "%s/small.ngram", directory);
  return 0;
}

static int remove_directory(void **unused) {
  (void)unused;
  unlink(path);
  return rmdir(directory); /* fails when a temporary file was left */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_brute_force), cmocka_unit_test(test_sums_and_pruning),
      cmocka_unit_test(test_texts),       cmocka_unit_test(test_damage),
      cmocka_unit_test(test_forged),      cmocka_unit_test(test_tiny_rest),
      cmocka_unit_test(test_foreign),     cmocka_unit_test(test_time),
  };
  return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
