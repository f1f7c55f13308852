/* Growing: the large model gives the small one's logits, at every position, and refuses what it cannot hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "model/model.h"
#include "train/grow.h"

enum { WIDTH = 64, VOCABULARY = 70, CONTEXT = 32, LAYERS = 2, TOKENS = 20 };

static uint32_t random_state = 12345;
/* A value bf16 holds exactly, so that a bf16 file of the grown model holds it too. */
static float random_value(float scale) {
  random_state = random_state * 1664525u + 1013904223u;
  return ust_bf16_to_f32(ust_f32_to_bf16(scale * ((float)(random_state >> 8) / 8388608.0f - 1.0f)));
}

static void declare_layer(ust_gguf_writer *writer, int layer) {
  static const struct {
    const char *name;
    int rows, cols;
  } parts[] = {{"attn_norm.weight", 1, 1}, {"attn_norm.bias", 1, 1},     {"attn_qkv.weight", 3, 1},
               {"attn_qkv.bias", 1, 3},    {"attn_output.weight", 1, 1}, {"attn_output.bias", 1, 1},
               {"ffn_norm.weight", 1, 1},  {"ffn_norm.bias", 1, 1},      {"ffn_up.weight", 4, 1},
               {"ffn_up.bias", 1, 4},      {"ffn_down.weight", 1, 4},    {"ffn_down.bias", 1, 1}};
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
    char name[64];
    bool vector = !strstr(parts[i].name, "weight") || strstr(parts[i].name, "norm");
    snprintf(name, sizeof name, "blk.%d.%s", layer, parts[i].name);
    ust_gguf_declare(writer, name, UST_TYPE_F32, (uint64_t)(vector ? 1 : parts[i].rows * WIDTH),
                     (uint64_t)parts[i].cols * WIDTH);
  }
}

/* A random model; gains around one. */
static void write_small(const char *path, const ust_config *config) {
  understudy_error err = {0};
  ust_gguf_writer *writer;
  assert_int_equal(ust_gguf_create(path, &writer, &err), UNDERSTUDY_OK);
  ust_gguf_config(writer, config, UST_TYPE_F32);
  ust_gguf_declare(writer, "token_embd.weight", UST_TYPE_F32, VOCABULARY, WIDTH);
  ust_gguf_declare(writer, "position_embd.weight", UST_TYPE_F32, CONTEXT, WIDTH);
  ust_gguf_declare(writer, "output_norm.weight", UST_TYPE_F32, 1, WIDTH);
  ust_gguf_declare(writer, "output_norm.bias", UST_TYPE_F32, 1, WIDTH);
  for (int layer = 0; layer < LAYERS; layer++) declare_layer(writer, layer);
  float row[4 * WIDTH];
  const int layer_rows[][2] = {{1, 1}, {1, 1}, {192, 1}, {1, 3}, {64, 1}, {1, 1},
                               {1, 1}, {1, 1}, {256, 1}, {1, 4}, {64, 4}, {1, 1}};
  const int outer_rows[][2] = {{VOCABULARY, 1}, {CONTEXT, 1}, {1, 1}, {1, 1}};
  for (int part = 0; part < 4 + LAYERS * 12; part++) {
    const int *shape = part < 4 ? outer_rows[part] : layer_rows[(part - 4) % 12];
    bool gain = part == 2 || (part >= 4 && ((part - 4) % 12 == 0 || (part - 4) % 12 == 6));
    for (int r = 0; r < shape[0]; r++) {
      for (int c = 0; c < shape[1] * WIDTH; c++) row[c] = (gain ? 1.0f : 0.0f) + random_value(0.3f);
      ust_gguf_rows(writer, row, 1);
    }
  }
  assert_int_equal(ust_gguf_commit(writer, &err), UNDERSTUDY_OK);
}

/* Logits [TOKENS, VOCABULARY] of a fixed text at the scalar level. */
static void logits_of(const char *path, float *out) {
  understudy_error err = {0};
  ust_weights *weights;
  ust_model *model;
  ust_timeline *timeline;
  if (ust_weights_open(path, &weights, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  const ust_kernels *kernels = ust_kernels_get(UST_ISA_SCALAR, NULL);
  if (ust_model_open(weights, kernels, 1, NULL, NULL, &model, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  ust_weights_close(weights);
  assert_int_equal(ust_timeline_create(model, CONTEXT, TOKENS, &timeline, &err), UNDERSTUDY_OK);
  int32_t tokens[TOKENS], parents[TOKENS];
  for (int i = 0; i < TOKENS; i++) {
    tokens[i] = i * 37 % VOCABULARY;
    parents[i] = i - 1;
  }
  size_t stride = ust_model_logit_stride(model);
  float *logits = ust_alloc(TOKENS * stride * sizeof *logits);
  assert_non_null(logits);
  ust_model_forward(timeline, tokens, parents, TOKENS, NULL, logits);
  for (int i = 0; i < TOKENS; i++) memcpy(out + i * VOCABULARY, logits + (size_t)i * stride, VOCABULARY * sizeof *out);
  ust_free(logits);
  ust_timeline_free(timeline);
  ust_model_close(model);
}

static ust_config small_config(void) {
  return (ust_config){.architecture = "gpt2",
                      .name = "small",
                      .vocabulary = VOCABULARY,
                      .context = CONTEXT,
                      .width = WIDTH,
                      .layers = LAYERS,
                      .heads = 1,
                      .feed_forward = 4 * WIDTH,
                      .norm_epsilon = 1e-5f,
                      .bos = -1,
                      .eos = -1};
}

static void grow_file(const char *from, const char *to, int repeat, int layers, ust_type type) {
  understudy_error err = {0};
  ust_weights *weights;
  ust_gguf_writer *writer;
  assert_int_equal(ust_weights_open(from, &weights, &err), UNDERSTUDY_OK);
  ust_config big = *ust_weights_config(weights);
  big.width *= repeat;
  big.heads *= repeat;
  big.feed_forward *= repeat;
  big.layers = layers;
  assert_int_equal(ust_gguf_create(to, &writer, &err), UNDERSTUDY_OK);
  ust_gguf_config(writer, &big, type);
  if (ust_train_grow(weights, &big, type, writer, NULL, NULL, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  if (ust_gguf_commit(writer, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  ust_weights_close(weights);
}

static float largest_difference(const float *a, const float *b) {
  float most = 0;
  for (int i = 0; i < TOKENS * VOCABULARY; i++) {
    assert_true(isfinite(a[i]) && isfinite(b[i]));
    most = fmaxf(most, fabsf(a[i] - b[i]));
  }
  return most;
}

static void same_logits(void **state) {
  (void)state;
  static float small[TOKENS * VOCABULARY], big[TOKENS * VOCABULARY];
  char folder[] = "/tmp/understudy-grow-XXXXXX", from[64], to[64];
  assert_non_null(mkdtemp(folder));
  snprintf(from, sizeof from, "%s/small.gguf", folder);
  snprintf(to, sizeof to, "%s/big.gguf", folder);
  ust_config config = small_config();
  write_small(from, &config);
  logits_of(from, small);
  float spread = 0;
  for (int i = 0; i < TOKENS * VOCABULARY; i++) spread = fmaxf(spread, fabsf(small[i]));
  assert_true(spread > 1);

  /* Layers alone change no bit; repeating changes the order of sums, and threes round each weight once more. */
  const struct {
    int repeat, layers;
    ust_type type;
    float bound;
  } cases[] = {{1, LAYERS, UST_TYPE_F32, 0},
               {1, LAYERS + 3, UST_TYPE_BF16, 0},
               {2, LAYERS, UST_TYPE_F32, 1e-5f},
               {4, LAYERS + 1, UST_TYPE_BF16, 1e-5f},
               {3, LAYERS + 1, UST_TYPE_F32, 1e-5f}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    grow_file(from, to, cases[i].repeat, cases[i].layers, cases[i].type);
    logits_of(to, big);
    float difference = largest_difference(small, big);
    if (!(difference <= cases[i].bound * spread))
      fail_msg("repeat %d, %d layers: logits differ by %g of %g", cases[i].repeat, cases[i].layers, (double)difference,
               (double)spread);
  }
  unlink(from);
  unlink(to);
  rmdir(folder);
}

static void shapes(void **state) {
  (void)state;
  understudy_error err = {0};
  ust_config small = small_config(), big;
  assert_int_equal(ust_train_grow_config(&small, "s.gguf", "gpt2-large", &big, &err), UNDERSTUDY_OK);
  assert_int_equal(big.layers, 36);
  assert_int_equal(big.width, 1280);
  assert_int_equal(big.heads, 20);
  assert_int_equal(big.feed_forward, 5120);
  assert_int_equal(big.context, CONTEXT);
  assert_int_equal(big.vocabulary, VOCABULARY);

  assert_int_equal(ust_train_grow_config(&small, "s.gguf", "gpt3", &big, &err), UNDERSTUDY_ERROR_ARGUMENT);
  const struct {
    int width, heads, layers, feed_forward;
  } bad[] = {{192, 3, 2, 768}, {64, 2, 2, 256}, {64, 1, 37, 256}, {64, 1, 2, 128}, {0, 0, 2, 0}};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    small.width = bad[i].width;
    small.heads = bad[i].heads;
    small.layers = bad[i].layers;
    small.feed_forward = bad[i].feed_forward;
    assert_int_equal(ust_train_grow_config(&small, "s.gguf", "gpt2-large", &big, &err), UNDERSTUDY_ERROR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "s.gguf: found "));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(same_logits), cmocka_unit_test(shapes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
