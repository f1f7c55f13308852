/* The training pass against PyTorch's autograd (tests/fixtures/train/make.py): activations, gradients and a
 * distilling gradient tensor by tensor, then ten AdamW losses; in f32 at the scalar level and in bf16 at every level
 * this machine has. Then: any number of threads gives the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "model/gpt2_train.h"
#include "support/random_model.h"

enum { WINDOW = 32, SEQUENCES = 2, TOKENS = WINDOW * SEQUENCES, STEPS = 10 };
/* Of a model whose matrices, features, tokens and vocabulary are cut into several blocks, the last ones not whole. */
enum { WIDE_WINDOW = 96, WIDE_SEQUENCES = 3, WIDE_TOKENS = WIDE_WINDOW * WIDE_SEQUENCES };

static const ust_config shape = {.architecture = "gpt2",
                                 .vocabulary = 97,
                                 .context = 40,
                                 .width = 64,
                                 .layers = 2,
                                 .heads = 2,
                                 .feed_forward = 160,
                                 .norm_epsilon = 1e-5f,
                                 .bos = -1,
                                 .eos = -1};

static char *fixture;
static size_t fixture_size;

/* The floats of one record. */
static const float *record(const char *kind, const char *name, size_t count) {
  char wanted[96];
  snprintf(wanted, sizeof wanted, "%s%s", kind, name);
  for (char *at = fixture; at < fixture + fixture_size;) {
    char *bar = strchr(at, '|');
    assert_non_null(bar);
    char *end;
    size_t rows = strtoul(bar + 1, &end, 10), cols = strtoul(end, &end, 10);
    assert_int_equal(*end, '\n');
    if ((size_t)(bar - at) == strlen(wanted) && memcmp(at, wanted, strlen(wanted)) == 0) {
      assert_int_equal(rows * cols, count);
      float *values = malloc(count * sizeof *values);
      memcpy(values, end + 1, count * sizeof *values);
      return values;
    }
    at = end + 1 + rows * cols * sizeof(float);
  }
  fail_msg("no record '%s'", wanted);
  return NULL;
}

/* Prints and fails when |got - expected| > bound * |expected| (Euclidean norms over the tensor). */
static void compare(const char *kind, const char *name, const float *got, size_t count, double bound) {
  const float *expected = record(kind, name, count);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < count; i++) {
    difference += ((double)got[i] - expected[i]) * ((double)got[i] - expected[i]);
    norm += (double)expected[i] * expected[i];
  }
  free((void *)(uintptr_t)expected);
  double relative = sqrt(difference / norm);
  if (!(relative <= bound)) fail_msg("%s%s: relative error %g, expected at most %g", kind, name, relative, bound);
}

static void load_values(ust_gpt2_train *m, const char *kind) {
  for (int i = 0; i < m->parameter_count; i++) {
    const ust_parameter *p = &m->parameters[i];
    size_t count = (size_t)p->rows * (size_t)p->cols;
    const float *values = record(kind, p->name, count);
    memcpy(m->values + p->offset, values, count * sizeof *values);
    free((void *)(uintptr_t)values);
  }
  ust_gpt2_train_pack(m);
  ust_gpt2_train_candidates(m, NULL, NULL, 0);
}

static void load_integers(const char *name, int32_t *out) {
  const float *values = record("", name, TOKENS);
  for (int i = 0; i < TOKENS; i++) out[i] = (int32_t)values[i];
  free((void *)(uintptr_t)values);
}

typedef struct batch {
  int32_t ids[TOKENS], labels[TOKENS], positions[TOKENS];
} batch;

static batch load_batch(void) {
  batch b;
  load_integers("ids", b.ids);
  load_integers("labels", b.labels);
  load_integers("positions", b.positions);
  return b;
}

static ust_gpt2_train *create(ust_isa isa, ust_format format, int threads, bool trains) {
  ust_gpt2_train *m;
  understudy_error err;
  if (ust_gpt2_train_create(&shape, ust_kernels_get(isa, NULL), format, WINDOW, SEQUENCES, threads, trains, &m, &err))
    fail_msg("%s", err.message);
  return m;
}

static void compare_activations(const ust_gpt2_train *m, double bound) {
  size_t narrow = (size_t)TOKENS * shape.width, wide = (size_t)TOKENS * shape.feed_forward;
  for (int l = 0; l < shape.layers; l++) {
    const ust_kept *k = &m->kept[l];
    const struct {
      const char *name;
      const float *values;
      size_t count;
    } kept[] = {{"input", k->input, narrow},
                {"norm1", k->norm1, narrow},
                {"qkv", k->qkv, 3 * narrow},
                {"attention", k->attention, narrow},
                {"middle", k->middle, narrow},
                {"norm2", k->norm2, narrow},
                {"up", k->up, wide}};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
      char name[64];
      snprintf(name, sizeof name, "blk.%d.%s", l, kept[i].name);
      compare("activation ", name, kept[i].values, kept[i].count, bound);
    }
  }
  compare("activation ", "last", m->last, narrow, bound);
  compare("activation ", "last_norm", m->last_norm, narrow, bound);
}

static void compare_gradients(const ust_gpt2_train *m, const char *kind, const char *only, double bound) {
  for (int i = 0; i < m->parameter_count; i++) {
    const ust_parameter *p = &m->parameters[i];
    if (only && strcmp(only, p->name) != 0) continue;
    compare(kind, p->name, m->gradients + p->offset, (size_t)p->rows * (size_t)p->cols, bound);
  }
}

static void zero_gradients(ust_gpt2_train *m) {
  memset(m->gradients, 0, m->size * sizeof *m->gradients);
}

static void adamw_step(ust_gpt2_train *m, float *moments, int step) {
  for (int i = 0; i < m->parameter_count; i++) {
    const ust_parameter *p = &m->parameters[i];
    m->kernels->adamw(m->values + p->offset, m->gradients + p->offset, moments + p->offset,
                      moments + m->size + p->offset, (size_t)p->rows * (size_t)p->cols, 1, 3e-3f, 0.9f, 0.95f, 1e-8f,
                      p->matrix ? 0.1f : 0.0f, 1 - powf(0.9f, (float)step), 1 - powf(0.95f, (float)step));
  }
}

static void check_level(ust_isa isa, ust_format format, double bound, double curve_bound) {
  batch b = load_batch();
  ust_gpt2_train *m = create(isa, format, 2, true), *teacher = create(isa, format, 2, false);
  load_values(m, "value ");
  ust_gpt2_train_forward(m, b.ids, b.positions, SEQUENCES);
  ust_gpt2_train_loss(m, b.labels);
  compare_activations(m, bound);
  compare("", "loss", m->loss, TOKENS, bound);
  ust_gpt2_train_backward(m, b.labels, 1.0f / TOKENS, NULL);
  compare_gradients(m, "gradient ", NULL, bound);

  load_values(teacher, "teacher ");
  ust_gpt2_train_forward(teacher, b.ids, b.positions, SEQUENCES);
  ust_gpt2_train_loss(teacher, b.labels);
  zero_gradients(m);
  ust_gpt2_train_backward(m, b.labels, 1.0f / TOKENS, teacher);
  compare("", "kl", m->kl, TOKENS, bound);
  compare_gradients(m, "distill ", "token_embd.weight", bound);
  compare_gradients(m, "distill ", "blk.0.attn_qkv.weight", bound);
  compare_gradients(m, "distill ", "blk.1.ffn_down.bias", bound);

  float *moments = calloc(2 * m->size, sizeof *moments);
  const float *curve = record("", "curve", STEPS);
  for (int step = 0; step < STEPS; step++) {
    ust_gpt2_train_forward(m, b.ids, b.positions, SEQUENCES);
    double loss = ust_gpt2_train_loss(m, b.labels) / TOKENS;
    if (!(fabs(loss - curve[step]) <= curve_bound * curve[step]))
      fail_msg("step %d: loss %g, expected %g within a relative %g", step, loss, (double)curve[step], curve_bound);
    zero_gradients(m);
    ust_gpt2_train_backward(m, b.labels, 1.0f / TOKENS, NULL);
    adamw_step(m, moments, step + 1);
    ust_gpt2_train_pack(m);
    ust_gpt2_train_candidates(m, NULL, NULL, 0);
  }
  free((void *)(uintptr_t)curve);
  free(moments);
  ust_gpt2_train_free(m);
  ust_gpt2_train_free(teacher);
}

static void test_f32(void **state) {
  (void)state;
  check_level(UST_ISA_SCALAR, UST_FORMAT_F32, 1e-4, 1e-4);
}

/* bf16 keeps 8 bits of a product's factors, a relative 2^-9 each: tensors agree within 2 %, losses within 1 %. */
static void test_bf16(void **state) {
  (void)state;
  for (int isa = 0; isa < UST_ISA_COUNT; isa++)
    if (ust_kernels_get((ust_isa)isa, NULL)) check_level((ust_isa)isa, UST_FORMAT_BF16, 2e-2, 1e-2);
}

static const ust_config wide_shape = {.architecture = "gpt2",
                                      .vocabulary = 1100,
                                      .context = WIDE_WINDOW,
                                      .width = 352,
                                      .layers = 1,
                                      .heads = 11,
                                      .feed_forward = 704,
                                      .norm_epsilon = 1e-5f,
                                      .bos = -1,
                                      .eos = -1};

typedef struct wide_batch {
  int32_t ids[WIDE_TOKENS], labels[WIDE_TOKENS], positions[WIDE_TOKENS];
} wide_batch;

static double wide_loss(ust_gpt2_train *m, const wide_batch *b) {
  ust_gpt2_train_pack(m);
  ust_gpt2_train_candidates(m, NULL, NULL, 0);
  ust_gpt2_train_forward(m, b->ids, b->positions, WIDE_SEQUENCES);
  return ust_gpt2_train_loss(m, b->labels);
}

/* A model of random values (matrices and biases within 0.1, gains within that of 1), a batch, and the gradients. */
static ust_gpt2_train *create_wide(ust_isa isa, ust_format format, int threads, wide_batch *b) {
  ust_gpt2_train *m;
  understudy_error err;
  if (ust_gpt2_train_create(&wide_shape, ust_kernels_get(isa, NULL), format, WIDE_WINDOW, WIDE_SEQUENCES, threads, true,
                            &m, &err))
    fail_msg("%s", err.message);
  uint64_t random = 1;
  for (int i = 0; i < m->parameter_count; i++) {
    const ust_parameter *p = &m->parameters[i];
    bool gain = strstr(p->name, "norm.weight") != NULL;
    for (size_t k = 0; k < (size_t)p->rows * (size_t)p->cols; k++)
      m->values[p->offset + k] = (float)gain + 0.1f * random_unit(&random);
  }
  for (int t = 0; t < WIDE_TOKENS; t++) {
    b->ids[t] = random_below(&random, wide_shape.vocabulary);
    b->labels[t] = random_below(&random, wide_shape.vocabulary);
    b->positions[t] = t % WIDE_WINDOW;
  }
  wide_loss(m, b);
  ust_gpt2_train_backward(m, b->labels, 1.0f / WIDE_TOKENS, NULL);
  return m;
}

/* Along a random direction in each tensor, the loss changes by what the gradient says. */
static void test_differences(void **state) {
  (void)state;
  wide_batch b;
  ust_gpt2_train *m = create_wide(UST_ISA_SCALAR, UST_FORMAT_F32, 2, &b);
  float *values = malloc(m->size * sizeof *values), *direction = malloc(m->size * sizeof *direction);
  memcpy(values, m->values, m->size * sizeof *values);
  uint64_t random = 2;
  for (int i = 0; i < m->parameter_count; i++) {
    const ust_parameter *p = &m->parameters[i];
    size_t count = (size_t)p->rows * (size_t)p->cols;
    const float *gradient = m->gradients + p->offset, *before = values + p->offset;
    double slope = 0, size = 0, loss[2];
    for (size_t k = 0; k < count; k++) {
      direction[k] = random_below(&random, 2) ? 1.0f : -1.0f;
      slope += (double)direction[k] * (double)gradient[k];
      size += (double)gradient[k] * (double)gradient[k];
    }
    size = sqrt(size);
    float step = (float)(1e-4 / size); /* the sum over tokens changes by about a thirtieth of a nat */
    for (int side = 0; side < 2; side++) {
      for (size_t k = 0; k < count; k++) m->values[p->offset + k] = before[k] + (side ? step : -step) * direction[k];
      loss[side] = wide_loss(m, &b) / WIDE_TOKENS;
    }
    memcpy(m->values + p->offset, before, count * sizeof *before);
    double found = (loss[1] - loss[0]) / (2 * (double)step);
    if (!(fabs(found - slope) <= 0.02 * size))
      fail_msg("%s: the loss changes by %g, expected %g (of %g)", p->name, found, slope, size);
  }
  free(direction);
  free(values);
  ust_gpt2_train_free(m);
}

/* Every level's gradients in bf16 are those of the scalar level in f32 within 2 %. */
static void test_levels(void **state) {
  (void)state;
  wide_batch b;
  ust_gpt2_train *reference = create_wide(UST_ISA_SCALAR, UST_FORMAT_F32, 2, &b);
  for (int isa = 0; isa < UST_ISA_COUNT; isa++) {
    if (!ust_kernels_get((ust_isa)isa, NULL)) continue;
    ust_gpt2_train *m = create_wide((ust_isa)isa, UST_FORMAT_BF16, 2, &b);
    for (int i = 0; i < m->parameter_count; i++) {
      const ust_parameter *p = &m->parameters[i];
      double difference = 0, size = 0;
      for (size_t k = p->offset; k < p->offset + (size_t)p->rows * (size_t)p->cols; k++) {
        difference += pow((double)m->gradients[k] - (double)reference->gradients[k], 2);
        size += pow((double)reference->gradients[k], 2);
      }
      if (!(sqrt(difference / size) <= 2e-2))
        fail_msg("%s: gradient of %s: relative error %g, expected at most 0.02", m->kernels->name, p->name,
                 sqrt(difference / size));
    }
    ust_gpt2_train_free(m);
  }
  ust_gpt2_train_free(reference);
}

static void test_threads(void **state) {
  (void)state;
  wide_batch b;
  ust_gpt2_train *m[3];
  for (int t = 0; t < 3; t++) {
    m[t] = create_wide(ust_kernels_best(), UST_FORMAT_BF16, t + 1, &b);
    assert_memory_equal(m[t]->loss, m[0]->loss, WIDE_TOKENS * sizeof(float));
    assert_memory_equal(m[t]->gradients, m[0]->gradients, m[0]->size * sizeof(float));
  }
  for (int t = 0; t < 3; t++) ust_gpt2_train_free(m[t]);
}

static void test_shapes(void **state) {
  (void)state;
  ust_gpt2_train *m;
  understudy_error err;
  ust_config odd = shape;
  odd.heads = 4;
  assert_int_equal(ust_gpt2_train_create(&odd, ust_kernels_get(UST_ISA_SCALAR, NULL), UST_FORMAT_F32, WINDOW, SEQUENCES,
                                         1, true, &m, &err),
                   UNDERSTUDY_ERROR_ARGUMENT);
  assert_non_null(strstr(err.message, "head size is 16, expected a multiple of 32"));
}

int main(void) {
  understudy_error err;
  if (ust_file_slurp(FIXTURES "/train/gpt2_train.bin", 1 << 24, &fixture, &fixture_size, &err)) {
    fprintf(stderr, "%s\n", err.message);
    return 1;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_f32),    cmocka_unit_test(test_bf16),    cmocka_unit_test(test_differences),
      cmocka_unit_test(test_levels), cmocka_unit_test(test_threads), cmocka_unit_test(test_shapes),
  };
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  ust_free(fixture);
  return failed;
}
