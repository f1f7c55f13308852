/* A model writing by itself: the tokens come with the probabilities of the model's softmax, number of threads and
 * being stopped change nothing, texts begin and end as promised. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "support/random_model.h"
#include "train/scribe.h"

enum { VOCABULARY = 2100, WORDS = 2050, CONTEXT = 12, END = 7 };

static ust_weights *weights;
static char path[64];

typedef struct notebook {
  int32_t *tokens; /* texts one after the other */
  size_t count, texts;
  int first[WORDS]; /* how often a text began with each token */
  int64_t stop_after;
} notebook;

static understudy_status take(void *user, const int32_t *tokens, size_t count, understudy_error *err) {
  notebook *n = user;
  (void)err;
  assert_in_range(count, 2, CONTEXT + 1);
  assert_int_equal(tokens[0], END);
  for (size_t i = 1; i < count; i++) {
    assert_in_range(tokens[i], 0, WORDS - 1);
    assert_true(tokens[i] != END || i == count - 1);
  }
  n->tokens = realloc(n->tokens, (n->count + count) * sizeof *n->tokens);
  memcpy(n->tokens + n->count, tokens, count * sizeof *tokens);
  n->count += count;
  n->texts++;
  n->first[tokens[1]]++;
  return UNDERSTUDY_OK;
}

static bool progress(void *user, int64_t written) {
  const notebook *n = user;
  return n->stop_after && written >= n->stop_after;
}

static notebook write_texts(int64_t tokens, uint64_t seed, int threads, float temperature, int64_t stop_after) {
  notebook n = {.stop_after = stop_after};
  ust_scribe_options options = {weights,     ust_kernels_get(ust_kernels_best(), NULL),
                                threads,     WORDS,
                                END,         tokens,
                                temperature, seed,
                                take,        progress,
                                &n};
  int64_t written;
  understudy_error err = {0};
  if (ust_scribe_write(&options, &written, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  assert_int_equal((int64_t)(n.count - n.texts), written);
  assert_true(stop_after ? written >= stop_after && written < tokens : written == tokens);
  return n;
}

static void assert_same(notebook *a, notebook *b) {
  assert_int_equal(a->count, b->count);
  assert_memory_equal(a->tokens, b->tokens, a->count * sizeof *a->tokens);
  free(b->tokens);
}

static void same_command_same_text(void **unused) {
  (void)unused;
  notebook a = write_texts(3001, 1, 1, 1.5f, 0), b = write_texts(3001, 1, 2, 1.5f, 0);
  assert_same(&a, &b);
  b = write_texts(3001, 2, 2, 1.5f, 0);
  assert_true(a.count != b.count || memcmp(a.tokens, b.tokens, a.count * sizeof *a.tokens) != 0);
  free(a.tokens);
  free(b.tokens);
  b = write_texts(1000000, 3, 2, 1.5f, 1000);
  a = write_texts((int64_t)(b.count - b.texts), 3, 1, 1.5f, 0);
  assert_same(&a, &b);
  free(a.tokens);
  a = write_texts(1, 1, 2, 1.5f, 0); /* fewer tokens than places */
  assert_int_equal(a.count, 2);
  free(a.tokens);
}

/* First tokens against softmax(logits / T): chi-squared over cells of expected counts of 25 or more. */
static void tokens_follow_the_softmax(void **unused) {
  (void)unused;
  const ust_kernels *kernels = ust_kernels_get(ust_kernels_best(), NULL);
  const float temperature = 0.7f;
  ust_model *model;
  ust_timeline *timeline;
  assert_int_equal(ust_model_open(weights, kernels, 1, NULL, NULL, &model, NULL), UNDERSTUDY_OK);
  assert_int_equal(ust_timeline_create(model, CONTEXT, 1, &timeline, NULL), UNDERSTUDY_OK);
  float *logits = ust_alloc(ust_model_logit_stride(model) * sizeof *logits);
  const int32_t end = END, parent = -1;
  ust_model_forward(timeline, &end, &parent, 1, NULL, logits);
  double whole = 0, chi = 0, expected = 0;
  for (int t = 0; t < WORDS; t++) whole += exp((double)(logits[t] / temperature));
  notebook n = write_texts(40000, 11, 2, temperature, 0);
  int cells = 0, observed = 0;
  for (int t = 0; t < WORDS; t++) {
    expected += (double)n.texts * exp((double)(logits[t] / temperature)) / whole;
    observed += n.first[t];
    if (expected < 25 && t < WORDS - 1) continue;
    chi += (observed - expected) * (observed - expected) / fmax(expected, 1);
    cells++;
    expected = observed = 0;
  }
  double sigmas = (chi - (cells - 1)) / sqrt(2.0 * (cells - 1));
  print_message("%zu first tokens in %d cells: chi-squared %.0f, %.1f sigma\n", n.texts, cells, chi, sigmas);
  assert_true(cells > 30 && fabs(sigmas) < 5);
  free(n.tokens);
  ust_free(logits);
  ust_timeline_free(timeline);
  ust_model_close(model);
}

static void a_small_vocabulary_is_refused(void **unused) {
  (void)unused;
  ust_scribe_options options = {.weights = weights,
                                .kernels = ust_kernels_get(ust_kernels_best(), NULL),
                                .threads = 1,
                                .vocabulary = VOCABULARY + 1,
                                .end_token = END,
                                .tokens = 10,
                                .temperature = 1};
  int64_t written;
  understudy_error err;
  assert_int_equal(ust_scribe_write(&options, &written, &err), UNDERSTUDY_ERROR_FORMAT);
  assert_non_null(strstr(err.message, path));
  assert_non_null(strstr(err.message, "2101"));
}

static int open_weights(void **unused) {
  (void)unused;
  random_model shape = {VOCABULARY, CONTEXT, 64, 2, 2, UST_TYPE_Q8_0, 3, 0.4f};
  snprintf(path, sizeof path, "/tmp/understudy-scribe-%d.gguf", (int)getpid());
  return random_model_write(&shape, path, NULL) != UNDERSTUDY_OK ||
         ust_weights_open(path, &weights, NULL) != UNDERSTUDY_OK;
}

static int close_weights(void **unused) {
  (void)unused;
  ust_weights_close(weights);
  return unlink(path);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(same_command_same_text),
                                     cmocka_unit_test(tokens_follow_the_softmax),
                                     cmocka_unit_test(a_small_vocabulary_is_refused)};
  return cmocka_run_group_tests(tests, open_weights, close_weights);
}
