/* The forward pass against Hugging Face transformers: every logit of tests/fixtures/gpt2-tiny (computed there in
 * double precision), from every format we read or write and at every kernel level of this machine; and the greedy
 * continuations.
 *
 * Where the bounds come from. The weights are bf16 numbers, so F32, BF16 and F16 files hold the same model, and what
 * differs from the reference is only what a level rounds on the way (F16 loses bits of weights below 2^-17, at most
 * 2^-25: nothing here):
 *
 *   scalar, avx2   all f32: 1e-4 at most
 *   avx512         keys and values kept in bf16: 2 roundings a layer
 *   amx            all inputs of products in bf16: two norms, q, k, v, probabilities, heads and hidden values, 8 a
 *                  layer, and the last norm
 *
 * Rounding to 8 significant bits is an error of at most 2^-8 of a value, 2^-8/sqrt(3) in the root mean square. Each
 * rounding so adds an independent error of that share of what it feeds, at most of the whole residual stream, whose
 * shares the logits inherit: with n roundings the errors' root mean square is at most sqrt(n) 2^-8/sqrt(3) of the
 * logits'. The largest of 36900 nearly normal errors of unequal spread is less than 8 times that.
 *
 * A Q8_0 weight is off by up to half a step, the largest of its 32 over 127: for normal weights, whose largest of 32
 * is about 2.1 deviations, 2.1/127/sqrt(12) = 0.5 % in the root mean square, and its value is rounded to bf16, less
 * than 2^-8/sqrt(3). Ten products and look-ups in a row (4 a layer, tokens in, tokens out) are ten such errors; in the
 * nine products the activations too become 8-bit integers, which are nine more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "model/model.h"

enum { LAYERS = 2, CONTEXT = 64 };

/* ---- the fixture ---- */

typedef struct prompt {
  int32_t tokens[CONTEXT], greedy[CONTEXT];
  int count, greedy_count, first_row;
} prompt;

static struct {
  int vocabulary, rows, prompt_count;
  prompt prompts[8];
  float *logits; /* [rows, vocabulary] */
  double rms;    /* of the logits about each row's mean: a constant added to a row means nothing */
} fixture;

static int integer(const json_t *object, const char *name) {
  return (int)json_integer_value(json_object_get(object, name));
}

static int integers(const json_t *array, int32_t *out) {
  int count = (int)json_array_size(array);
  for (int i = 0; i < count && i < CONTEXT; i++) out[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
  return count;
}

static double spread_of(const float *row, int n) {
  double mean = 0, sum = 0;
  for (int i = 0; i < n; i++) mean += (double)row[i] / n;
  for (int i = 0; i < n; i++) sum += ((double)row[i] - mean) * ((double)row[i] - mean);
  return sum;
}

static int read_fixture(void **state) {
  (void)state;
  json_t *root = json_load_file(FIXTURES "/gpt2-tiny/expected.json", 0, NULL);
  const json_t *prompts = json_object_get(root, "prompts");
  fixture.vocabulary = integer(root, "vocabulary");
  fixture.rows = integer(root, "rows");
  fixture.prompt_count = (int)json_array_size(prompts);
  for (int i = 0; i < fixture.prompt_count; i++) {
    const json_t *from = json_array_get(prompts, (size_t)i);
    prompt *p = &fixture.prompts[i];
    p->count = integers(json_object_get(from, "tokens"), p->tokens);
    p->greedy_count = integers(json_object_get(from, "greedy"), p->greedy);
    p->first_row = integer(from, "first_row");
  }
  json_decref(root);
  size_t size;
  understudy_error err;
  char *data;
  if (ust_file_slurp(FIXTURES "/gpt2-tiny/logits.bin", 1 << 24, &data, &size, &err) != UNDERSTUDY_OK) return -1;
  fixture.logits = (float *)(void *)data;
  for (int r = 0; r < fixture.rows; r++)
    fixture.rms += spread_of(fixture.logits + (size_t)r * (size_t)fixture.vocabulary, fixture.vocabulary);
  fixture.rms = sqrt(fixture.rms / fixture.rows / fixture.vocabulary);
  return fixture.rows > 100 && size == (size_t)fixture.rows * (size_t)fixture.vocabulary * sizeof(float) ? 0 : -1;
}

static int forget_fixture(void **state) {
  (void)state;
  ust_free(fixture.logits);
  return 0;
}

/* ---- formats ---- */

typedef enum format { F32_FOLDER, BF16_SHARDS, F32_GGUF, BF16_GGUF, F16_GGUF, Q8_GGUF, FORMATS } format;
static const char *const format_names[FORMATS] = {"F32 directory", "BF16 shards", "F32 GGUF",
                                                  "BF16 GGUF",     "F16 GGUF",    "Q8_0 GGUF"};
static const ust_type gguf_types[FORMATS] = {
    [F32_GGUF] = UST_TYPE_F32, [BF16_GGUF] = UST_TYPE_BF16, [F16_GGUF] = UST_TYPE_F16, [Q8_GGUF] = UST_TYPE_Q8_0};

static ust_weights *open_weights(const char *path) {
  understudy_error err;
  ust_weights *weights;
  if (ust_weights_open(path, &weights, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  return weights;
}

/* Every matrix but the positions in `type`, as `understudy quantize` does. */
static void convert(const ust_weights *from, ust_type type, const char *path) {
  understudy_error err;
  ust_gguf_writer *writer;
  assert_int_equal(ust_gguf_create(path, &writer, &err), UNDERSTUDY_OK);
  ust_gguf_config(writer, ust_weights_config(from), type);
  for (size_t i = 0; i < ust_weights_count(from); i++) {
    const ust_tensor *t = ust_weights_tensor(from, i);
    bool plain = t->rows == 1 || strcmp(t->name, "position_embd.weight") == 0;
    ust_gguf_declare(writer, t->name, plain ? UST_TYPE_F32 : type, t->rows, t->cols);
  }
  for (size_t i = 0; i < ust_weights_count(from); i++) {
    const ust_tensor *t = ust_weights_tensor(from, i);
    float *rows = malloc(t->rows * t->cols * sizeof *rows);
    assert_non_null(rows);
    assert_int_equal(ust_weights_read_rows(from, t, 0, t->rows, rows, &err), UNDERSTUDY_OK);
    ust_gguf_rows(writer, rows, t->rows);
    free(rows);
  }
  if (ust_gguf_commit(writer, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
}

static ust_model *open_model(format f, ust_isa isa) {
  ust_weights *weights = open_weights(f == BF16_SHARDS ? FIXTURES "/gpt2-tiny/sharded" : FIXTURES "/gpt2-tiny");
  if (f >= F32_GGUF) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/understudy-reference-%d.gguf", (int)getpid());
    convert(weights, gguf_types[f], path);
    ust_weights_close(weights);
    weights = open_weights(path);
    unlink(path);
  }
  understudy_error err;
  ust_model *model;
  if (ust_model_open(weights, ust_kernels_get(isa, NULL), 1, NULL, NULL, &model, &err) != UNDERSTUDY_OK)
    fail_msg("%s: %s", format_names[f], err.message);
  ust_weights_close(weights);
  return model;
}

/* ---- logits ---- */

/* Feeds a chain of tokens after what is committed, commits it, and copies the logits without their padding. */
static void feed(ust_timeline *timeline, const ust_model *model, const int32_t *tokens, int count, float *logits) {
  int32_t chain[CONTEXT], path[CONTEXT];
  size_t stride = ust_model_logit_stride(model);
  float *padded = ust_alloc((size_t)count * stride * sizeof *padded);
  assert_non_null(padded);
  for (int i = 0; i < count; i++) {
    chain[i] = i - 1;
    path[i] = i;
  }
  ust_model_forward(timeline, tokens, chain, count, NULL, padded);
  ust_timeline_commit(timeline, path, count);
  for (int i = 0; i < count; i++)
    memcpy(logits + (size_t)(i * fixture.vocabulary), padded + (size_t)i * stride,
           (size_t)fixture.vocabulary * sizeof(float));
  ust_free(padded);
}

static ust_timeline *new_timeline(const ust_model *model) {
  understudy_error err;
  ust_timeline *timeline;
  assert_int_equal(ust_timeline_create(model, CONTEXT, CONTEXT, &timeline, &err), UNDERSTUDY_OK);
  return timeline;
}

/* Every prompt's logits, in pieces of up to `piece` tokens: [rows, vocabulary]. */
static float *all_logits(const ust_model *model, int piece) {
  float *logits = malloc((size_t)fixture.rows * (size_t)fixture.vocabulary * sizeof *logits);
  assert_non_null(logits);
  ust_timeline *timeline = new_timeline(model);
  for (int i = 0; i < fixture.prompt_count; i++) {
    const prompt *p = &fixture.prompts[i];
    ust_timeline_truncate(timeline, 0);
    for (int at = 0; at < p->count; at += piece)
      feed(timeline, model, p->tokens + at, UST_MIN(piece, p->count - at),
           logits + (size_t)((p->first_row + at) * fixture.vocabulary));
  }
  ust_timeline_free(timeline);
  return logits;
}

static void check_errors(const float *logits, ust_isa isa, format f) {
  size_t count = (size_t)fixture.rows * (size_t)fixture.vocabulary;
  double sum = 0, most = 0;
  for (size_t i = 0; i < count; i++) {
    double error = fabs((double)logits[i] - (double)fixture.logits[i]);
    sum += error * error;
    most = error > most || isnan(error) ? error : most;
  }
  double rms = sqrt(sum / (double)count);
  double rounding = 0x1p-8 / sqrt(3), weight = f == Q8_GGUF ? 2.1 / 127 / sqrt(12) : 0;
  double roundings = isa == UST_ISA_AMX ? 8 * LAYERS + 1 : isa >= UST_ISA_AVX2 ? 2 * LAYERS : 0;
  if (f == Q8_GGUF) roundings += 4 * LAYERS + 2;
  double expected = fixture.rms * sqrt(roundings * rounding * rounding + (8 * LAYERS + 3) * weight * weight);
  double rms_bound = UST_MAX(expected, 1e-5), bound = UST_MAX(8 * expected, 1e-4);
  print_message("%-6s %-13s error: rms %.2e of %.2e, most %.2e of %.2e\n", ust_isa_name(isa), format_names[f], rms,
                rms_bound, most, bound);
  assert_true(rms <= rms_bound);
  assert_true(most <= bound);
}

/* A finer file is the same model: the same bits, also when the prompt comes in pieces. */
static void logits_agree(void **state) {
  (void)state;
  size_t bytes = (size_t)fixture.rows * (size_t)fixture.vocabulary * sizeof(float);
  print_message("logits: rms %.3f\n", fixture.rms);
  for (int isa = 0; isa < UST_ISA_COUNT; isa++) {
    if (!ust_kernels_get((ust_isa)isa, NULL)) continue;
    float *first = NULL;
    for (int f = 0; f < FORMATS; f++) {
      ust_model *model = open_model((format)f, (ust_isa)isa);
      float *logits = all_logits(model, f == BF16_SHARDS ? 7 : CONTEXT);
      ust_model_close(model);
      check_errors(logits, (ust_isa)isa, (format)f);
      if (first && f != Q8_GGUF && f != F16_GGUF) assert_memory_equal(logits, first, bytes);
      if (first)
        free(logits);
      else
        first = logits;
    }
    free(first);
  }
}

/* ---- greedy ---- */

static int32_t likeliest(const float *logits) {
  int best = 0;
  for (int i = 1; i < fixture.vocabulary; i++)
    if (logits[i] > logits[best]) best = i;
  return best;
}

static void greedy_agrees(void **state) {
  (void)state;
  ust_model *model = open_model(F32_FOLDER, UST_ISA_SCALAR);
  ust_timeline *timeline = new_timeline(model);
  float *logits = malloc((size_t)(CONTEXT * fixture.vocabulary) * sizeof *logits);
  assert_non_null(logits);
  int compared = 0;
  for (int i = 0; i < fixture.prompt_count; i++) {
    const prompt *p = &fixture.prompts[i];
    ust_timeline_truncate(timeline, 0);
    feed(timeline, model, p->tokens, p->count, logits);
    int32_t next = likeliest(logits + (size_t)((p->count - 1) * fixture.vocabulary));
    for (int g = 0; g < p->greedy_count; g++, compared++) {
      assert_int_equal(next, p->greedy[g]);
      feed(timeline, model, &next, 1, logits);
      next = likeliest(logits);
    }
  }
  assert_int_equal(compared, 48);
  free(logits);
  ust_timeline_free(timeline);
  ust_model_close(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(logits_agree), cmocka_unit_test(greedy_agrees)};
  return cmocka_run_group_tests(tests, read_fixture, forget_fixture);
}
