/* Row operations of every kernel level against double-precision references: layer norm, conversion to
 * activations, and the elementwise and row operations of training. */
#include "kernel/check.h"

#include <float.h>

static int odd_length(void) {
  return pick(0, 3) ? pick(1, 130) : PICK_OF(256, 320, 321, 1280, 1599);
}

static double norm_input(const float *x, int n, double epsilon, double *mean, double *rstd, double *most) {
  double sum = 0, squares = 0;
  *most = 0;
  for (int i = 0; i < n; i++) sum += (double)x[i], *most = fmax(*most, fabs((double)x[i]));
  *mean = sum / n;
  for (int i = 0; i < n; i++) squares += ((double)x[i] - *mean) * ((double)x[i] - *mean);
  return *rstd = 1 / sqrt(squares / n + epsilon);
}

#define CLOSE(got, want, bound, ...)                                                                                   \
  do {                                                                                                                 \
    double got_ = (got), want_ = (want), bound_ = (bound);                                                             \
    CHECK(fabs(got_ - want_) <= bound_, __VA_ARGS__);                                                                  \
  } while (0)

/* ---- activations ---- */

static void layer_norm(const ust_kernels *kernels) {
  for (int trial = 0; trial < 80; trial++) {
    int n = odd_length();
    float *x = fenced_floats((size_t)n), *gain = fenced_floats((size_t)n), *bias = fenced_floats((size_t)n);
    float offset = uniform(-5, 5), size = ldexpf(1, pick(-6, 6)), epsilon = 1e-5f;
    fill_uniform(x, (size_t)n, offset - size, offset + size);
    fill_uniform(gain, (size_t)n, -2, 2);
    fill_uniform(bias, (size_t)n, -1, 1);
    int stride = UST_ROUND_UP(n, 32);
    void *y = fenced((size_t)stride * kernels->activation_size);
    float *y_train = fenced_floats((size_t)n), *mean_rstd = fenced_floats(2);
    kernels->layer_norm(x, gain, bias, n, epsilon, y);
    kernels->layer_norm_train(x, gain, bias, n, epsilon, y_train, mean_rstd, mean_rstd + 1);
    double mean, rstd, most;
    norm_input(x, n, (double)epsilon, &mean, &rstd, &most);
    for (int i = 0; i < n; i++) {
      double want = ((double)x[i] - mean) * rstd * (double)gain[i] + (double)bias[i];
      double bound =
          1e-6 * (most * rstd + fabs((double)x[i] - mean) * rstd * (1 + most * rstd)) * fabs((double)gain[i]) +
          1e-6 * fabs((double)bias[i]);
      double got = load_activation(kernels, y, (size_t)i);
      CLOSE(got, want, bound + activation_error(kernels) * fabs(want),
            "%s: layer_norm of %d, element %d: %.9g, expected %.9g", kernels->name, n, i, got, want);
      CLOSE(y_train[i], want, bound, "%s: layer_norm_train of %d, element %d", kernels->name, n, i);
    }
    CLOSE(mean_rstd[0], mean, 1e-6 * most, "%s: mean of %d", kernels->name, n);
    CLOSE(mean_rstd[1], rstd, 2e-6 * rstd * (1 + most * rstd), "%s: 1/deviation of %d", kernels->name, n);
    for (int i = n; i < stride; i++)
      CHECK(load_activation(kernels, y, (size_t)i) == 0, "%s: layer_norm of %d left its tail", kernels->name, n);
    fenced_release("layer_norm");
  }
}
LEVEL_TEST(layer_norm)

/* An f32 of any size, now and then a special one. */
static float any_float(void) {
  float special[] = {0, -0.0f, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, FLT_MIN, 1.00390625f, 1.01171875f};
  return pick(0, 9) ? ldexpf(uniform(-2, 2), pick(-100, 100)) : special[pick(0, 8)];
}

static void convert(const ust_kernels *kernels) {
  for (int trial = 0; trial < 80; trial++) {
    int n = odd_length(), stride = UST_ROUND_UP(n, 32);
    float *x = fenced_floats((size_t)n);
    for (int i = 0; i < n; i++) x[i] = any_float();
    void *y = fenced((size_t)stride * kernels->activation_size);
    kernels->convert(x, n, y);
    for (int i = 0; i < stride; i++) {
      float want = i < n ? to_activation_value(kernels, x[i]) : 0, got = load_activation(kernels, y, (size_t)i);
      CHECK(memcmp(&want, &got, sizeof got) == 0, "%s: convert of %d, element %d: %.9g", kernels->name, n, i,
            (double)got);
    }
    x[0] = NAN;
    kernels->convert(x, n, y);
    CHECK(isnan(load_activation(kernels, y, 0)), "%s: convert lost a NaN", kernels->name);
    fenced_release("convert");
  }
}
LEVEL_TEST(convert)

/* ---- training ---- */

/* A left operand made from rows and one made from their transpose give what matmul gives for the same rows. */
static void left_operands(const ust_kernels *kernels) {
  for (int trial = 0; trial < 20; trial++) {
    int rows = 32 * pick(1, 4), inputs = 32 * pick(1, 5), outputs = 32 * pick(1, 3);
    int first = 32 * pick(0, rows / 32 - 1), count = rows - first;
    size_t x_stride = (size_t)(inputs + pick(0, 40)), y_stride = (size_t)(outputs + 32 * pick(0, 1));
    float *x = fenced_floats((size_t)rows * x_stride), *across = fenced_floats((size_t)inputs * (size_t)rows);
    float *weights = fenced_floats((size_t)outputs * (size_t)inputs), *bias = fenced_floats((size_t)outputs);
    float *weights_across = fenced_floats((size_t)outputs * (size_t)inputs);
    fill_uniform(x, (size_t)rows * x_stride, -1, 1);
    fill_uniform(weights, (size_t)outputs * (size_t)inputs, -1, 1);
    fill_uniform(bias, (size_t)outputs, -1, 1);
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < inputs; k++)
        across[(size_t)k * (size_t)rows + (size_t)r] = x[(size_t)r * x_stride + (size_t)k];
    ust_matrix w = {.format = UST_FORMAT_BF16, .rows = outputs, .cols = inputs};
    w.bytes = kernels->matrix_bytes(w.format, outputs, inputs);
    w.data = fenced(w.bytes);
    kernels->pack(&w, 0, outputs, weights, (size_t)inputs, 1);

    size_t left_bytes = (size_t)rows * (size_t)inputs * kernels->activation_size;
    ust_left left[2];
    for (int i = 0; i < 2; i++) left[i] = (ust_left){.data = fenced(left_bytes), .rows = rows, .inputs = inputs};
    int cut = 32 * pick(0, inputs / 32); /* both made in two pieces */
    for (int piece = 0; piece < 2; piece++) {
      int from = piece ? cut : 0, width = piece ? inputs - cut : cut;
      kernels->left_pack(&left[0], from, x + from, x_stride, width);
      ust_left low = ust_left_from(kernels, &left[1], 0, first), high = ust_left_from(kernels, &left[1], first, count);
      kernels->left_pack_transposed(&low, from, across + (size_t)from * (size_t)rows, (size_t)rows, width);
      kernels->left_pack_transposed(&high, from, across + (size_t)from * (size_t)rows + first, (size_t)rows, width);
    }
    CHECK(memcmp(left[0].data, left[1].data, left_bytes) == 0, "%s: left operand %d x %d differs from its transpose's",
          kernels->name, rows, inputs);

    char *plain = fenced(left_bytes);
    for (int r = 0; r < rows; r++)
      kernels->convert(x + (size_t)r * x_stride, inputs, plain + (size_t)r * (size_t)inputs * kernels->activation_size);
    float *want = fenced_floats((size_t)count * y_stride), *got = fenced_floats((size_t)count * y_stride);
    ust_left seen = ust_left_from(kernels, &left[0], first, count);
    for (int way = 0; way < 3; way++) { /* from nothing, from a bias, added to what stands there */
      for (int i = 0; i < count; i++)
        for (size_t c = 0; c < y_stride; c++) {
          float before = way == 1 && c < (size_t)outputs ? bias[c] : (float)pick(-9, 9);
          want[(size_t)i * y_stride + c] = got[(size_t)i * y_stride + c] = before;
        }
      kernels->matmul(&w, 0, outputs / UST_PANEL, plain + (size_t)first * (size_t)inputs * kernels->activation_size,
                      (size_t)inputs, count, NULL, way ? UST_ADD : UST_STORE, want, y_stride);
      kernels->left_matmul(&w, &seen, 0, way == 1 ? bias : NULL, way == 2, got, y_stride);
      CHECK(memcmp(want, got, (size_t)count * y_stride * sizeof *got) == 0,
            "%s: left_matmul of rows %d to %d, %d inputs, %d outputs, way %d", kernels->name, first, rows, inputs,
            outputs, way);
    }
    for (int k = 0; k < inputs; k++)
      for (int o = 0; o < outputs; o++)
        weights_across[(size_t)k * (size_t)outputs + (size_t)o] = weights[(size_t)o * (size_t)inputs + (size_t)k];
    ust_matrix whole = w;
    whole.data = fenced(w.bytes);
    kernels->pack_inputs(&whole, cut, weights_across + (size_t)cut * (size_t)outputs, (size_t)outputs, inputs - cut);
    kernels->pack_inputs(&whole, 0, weights_across, (size_t)outputs, cut);
    CHECK(memcmp(w.data, whole.data, w.bytes) == 0, "%s: a matrix of %d x %d differs from its transpose's",
          kernels->name, outputs, inputs);

    for (int piece = 0; piece < 2 && cut > 0 && cut < inputs; piece++) { /* a sum over inputs in two pieces */
      int from = piece ? cut : 0, width = piece ? inputs - cut : cut;
      ust_matrix part = {.format = UST_FORMAT_BF16, .rows = outputs, .cols = width};
      part.bytes = kernels->matrix_bytes(part.format, outputs, width);
      part.data = fenced(part.bytes);
      kernels->pack(&part, 0, outputs, weights + from, (size_t)inputs, 1);
      kernels->matmul(&part, 0, outputs / UST_PANEL,
                      plain + ((size_t)first * (size_t)inputs + (size_t)from) * kernels->activation_size,
                      (size_t)inputs, count, NULL, piece ? UST_ADD : UST_STORE, want, y_stride);
      kernels->left_matmul(&part, &seen, from, NULL, piece, got, y_stride);
    }
    for (int i = 0; i < count; i++)
      CHECK(memcmp(want + (size_t)i * y_stride, got + (size_t)i * y_stride, (size_t)outputs * sizeof *got) == 0,
            "%s: left_matmul of %d inputs in two pieces, cut at %d", kernels->name, inputs, cut);
    kernels->release();
    fenced_release("left_operands");
  }
}
LEVEL_TEST(left_operands)

static void gelu(const ust_kernels *kernels) {
  for (int trial = 0; trial < 60; trial++) {
    size_t n = (size_t)odd_length();
    float *x = fenced_floats(n), *y = fenced_floats(n), *dy = fenced_floats(n), *dx = fenced_floats(n);
    float *again = fenced_floats(n);
    float size = (float[]){0.01f, 1, 5, 30}[pick(0, 3)];
    fill_uniform(x, n, -size, size);
    fill_uniform(dy, n, -1, 1);
    kernels->gelu(x, y, n);
    kernels->gelu_backward(x, dy, dx, again, n);
    CHECK(memcmp(y, again, n * sizeof *y) == 0, "%s: gelu_backward's gelu of %zu values differs", kernels->name, n);
    for (size_t i = 0; i < n; i++) {
      double v = x[i], want = gelu_reference(v), u = sqrt(2 / 3.14159265358979323846) * (v + 0.044715 * v * v * v);
      double slope = 0.5 * (1 + tanh(u)) +
                     0.5 * v / (cosh(u) * cosh(u)) * sqrt(2 / 3.14159265358979323846) * (1 + 3 * 0.044715 * v * v);
      CLOSE(y[i], want, 2e-6 * fmin(1, fabs(v)) + 1e-6 * fabs(want), "%s: gelu(%.9g) = %.9g", kernels->name, v,
            (double)y[i]);
      CLOSE(dx[i], (double)dy[i] * slope, 5e-6 * fabs((double)dy[i]), "%s: gelu'(%.9g) * %.9g = %.9g", kernels->name, v,
            (double)dy[i], (double)dx[i]);
    }
    kernels->gelu_backward(x, dy, dy, again, n);
    CHECK(memcmp(dx, dy, n * sizeof *dx) == 0, "%s: gelu_backward in place", kernels->name);
    fenced_release("gelu");
  }
}
LEVEL_TEST(gelu)

static void layer_norm_backward(const ust_kernels *kernels) {
  for (int trial = 0; trial < 60; trial++) {
    int n = odd_length();
    size_t count = (size_t)n;
    float *x = fenced_floats(count), *gain = fenced_floats(count), *dy = fenced_floats(count), *d[3], *before[3];
    fill_uniform(x, count, -2, 3);
    fill_uniform(gain, count, -2, 2);
    fill_uniform(dy, count, -1, 1);
    for (int i = 0; i < 3; i++) {
      d[i] = fenced_floats(count);
      before[i] = fenced_floats(count);
      fill_uniform(d[i], count, -1, 1);
      memcpy(before[i], d[i], count * sizeof(float));
    }
    double mean, rstd, most, sum = 0, sum_normal = 0;
    norm_input(x, n, 1e-5, &mean, &rstd, &most);
    float mean_f = (float)mean, rstd_f = (float)rstd;
    kernels->layer_norm_backward(x, gain, mean_f, rstd_f, dy, n, d[0], d[1], d[2]);
    for (int i = 0; i < n; i++) {
      double g = (double)dy[i] * (double)gain[i];
      sum += g;
      sum_normal += g * ((double)x[i] - (double)mean_f) * (double)rstd_f;
    }
    for (int i = 0; i < n; i++) {
      double normal = ((double)x[i] - (double)mean_f) * (double)rstd_f, g = (double)dy[i] * (double)gain[i];
      double dx = (double)rstd_f * (g - sum / n - normal * sum_normal / n);
      CLOSE(d[0][i], (double)before[0][i] + dx, 4e-6 * (1 + (double)rstd_f * (4 + fabs(normal) * 4)),
            "%s: layer_norm_backward of %d, dx[%d]", kernels->name, n, i);
      CLOSE(d[1][i], (double)before[1][i] + (double)dy[i] * normal, 1e-6 * (1 + fabs(normal)),
            "%s: layer_norm_backward of %d, dgain[%d]", kernels->name, n, i);
      CLOSE(d[2][i], (double)before[2][i] + (double)dy[i], 1e-6, "%s: layer_norm_backward of %d, dbias[%d]",
            kernels->name, n, i);
    }
    fenced_release("layer_norm_backward");
  }
}
LEVEL_TEST(layer_norm_backward)

static double log_sum(const float *x, int n) {
  double most = -INFINITY, sum = 0;
  for (int i = 0; i < n; i++) most = fmax(most, (double)x[i]);
  for (int i = 0; i < n; i++) sum += exp((double)x[i] - most);
  return most + log(sum);
}

/* softmax, its gradient, and the pieces of a cross entropy over a split vocabulary */
static void softmax(const ust_kernels *kernels) {
  for (int trial = 0; trial < 60; trial++) {
    int n = odd_length(), stride = UST_ROUND_UP(n, 32), split = pick(0, n);
    size_t count = (size_t)n;
    float size = (float[]){0.1f, 5, 30}[pick(0, 2)], offset = uniform(-20, 20), scale = uniform(0.1f, 2);
    float factor = uniform(0.1f, 2);
    float *x = fenced_floats((size_t)stride), *logits = fenced_floats(count), *d = fenced_floats((size_t)stride);
    float *gradient = fenced_floats(count), *again = fenced_floats(count);
    fill_uniform(logits, count, offset - size, offset + size);
    fill_uniform(gradient, count, -1, 1);
    for (size_t i = 0; i < count; i++) x[i] = logits[i] / factor;
    memcpy(again, logits, count * sizeof(float));
    memcpy(d, gradient, count * sizeof(float));
    double want_log = log_sum(logits, n), dot = 0, rounding = 2e-6 + 3e-7 * (double)(size + fabsf(offset));
    float maximum = -FLT_MAX, sum = 0;
    kernels->softmax(x, n, stride, factor);
    kernels->softmax_backward(x, d, n, stride, factor);
    kernels->log_sum_exp(logits, split, &maximum, &sum);
    kernels->log_sum_exp(logits + split, n - split, &maximum, &sum);
    CLOSE((double)maximum + log((double)sum), want_log, 2e-6 * (1 + fabs(want_log)), "%s: log_sum_exp of %d + %d",
          kernels->name, split, n - split);
    kernels->probabilities(again, n, (float)want_log, scale);
    for (int i = 0; i < n; i++) dot += exp((double)logits[i] - want_log) * (double)gradient[i];
    for (int i = 0; i < stride; i++) {
      double p = i < n ? exp((double)logits[i] - want_log) : 0;
      CLOSE(x[i], p, p * rounding + 1e-30, "%s: softmax of %d, element %d", kernels->name, n, i);
      CLOSE(d[i], i < n ? (double)factor * p * ((double)gradient[i] - dot) : 0, p * 8 * rounding + 1e-30,
            "%s: softmax_backward of %d, element %d", kernels->name, n, i);
      if (i < n)
        CLOSE(again[i], (double)scale * p, (double)scale * p * rounding + 1e-30, "%s: probabilities of %d, element %d",
              kernels->name, n, i);
    }
    fenced_release("softmax");
  }
}
LEVEL_TEST(softmax)

static void distill(const ust_kernels *kernels) {
  for (int trial = 0; trial < 60; trial++) {
    int n = odd_length();
    size_t count = (size_t)n;
    float *x = fenced_floats(count), *t = fenced_floats(count), *before = fenced_floats(count);
    fill_uniform(x, count, -8, 8);
    fill_uniform(t, count, -8, 8);
    memcpy(before, x, count * sizeof(float));
    float x_log = (float)log_sum(x, n), t_log = (float)log_sum(t, n), scale = uniform(0.1f, 1);
    double got = kernels->distill(x, t, n, x_log, t_log, scale), divergence = 0, sum_abs = 0;
    for (int i = 0; i < n; i++) {
      double log_q = (double)before[i] - (double)x_log, log_p = (double)t[i] - (double)t_log;
      divergence += exp(log_p) * (log_p - log_q);
      sum_abs += exp(log_p) * (1 + fabs(log_p - log_q));
      double want = (double)scale * (exp(log_q) - exp(log_p));
      CLOSE(x[i], want, 1e-5 * (exp(log_q) + exp(log_p)), "%s: distill of %d, element %d", kernels->name, n, i);
    }
    CLOSE(got, divergence, 1e-5 * sum_abs, "%s: distill of %d: divergence %.9g, expected %.9g", kernels->name, n, got,
          divergence);
    fenced_release("distill");
  }
}
LEVEL_TEST(distill)

static void sums(const ust_kernels *kernels) {
  for (int trial = 0; trial < 40; trial++) {
    size_t n = trial % 8 ? (size_t)odd_length() : (size_t)pick(4000, 13000);
    float *x = fenced_floats(n), *y = fenced_floats(n), *before = fenced_floats(n);
    fill_uniform(x, n, -3, 3);
    fill_uniform(y, n, -3, 3);
    memcpy(before, y, n * sizeof(float));
    double want = 0, got = kernels->sum_squares(x, n);
    kernels->add(x, y, n);
    for (size_t i = 0; i < n; i++) {
      want += (double)x[i] * (double)x[i];
      CHECK(y[i] == before[i] + x[i], "%s: add of %zu, element %zu", kernels->name, n, i);
    }
    CLOSE(got, want, 2e-6 * want, "%s: sum_squares of %zu: %.9g, expected %.9g", kernels->name, n, got, want);
    fenced_release("sums");
  }
}
LEVEL_TEST(sums)

static void adamw(const ust_kernels *kernels) {
  for (int trial = 0; trial < 40; trial++) {
    size_t n = (size_t)odd_length();
    float *w = fenced_floats(n), *g = fenced_floats(n), *m = fenced_floats(n), *v = fenced_floats(n), *old[3];
    fill_uniform(w, n, -1, 1);
    fill_uniform(g, n, -1, 1);
    fill_uniform(m, n, -0.1f, 0.1f);
    fill_uniform(v, n, 0, 0.1f);
    for (int i = 0; i < 3; i++) memcpy(old[i] = fenced_floats(n), (float *[]){w, m, v}[i], n * sizeof(float));
    float scale = uniform(0.1f, 1), rate = 1e-3f, beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f,
          decay = pick(0, 1) ? 0.1f : 0;
    float correction1 = 1 - powf(beta1, 3), correction2 = 1 - powf(beta2, 3);
    kernels->adamw(w, g, m, v, n, scale, rate, beta1, beta2, epsilon, decay, correction1, correction2);
    for (size_t i = 0; i < n; i++) {
      double grad = (double)g[i] * (double)scale;
      double first = (double)beta1 * (double)old[1][i] + (1 - (double)beta1) * grad;
      double second = (double)beta2 * (double)old[2][i] + (1 - (double)beta2) * grad * grad;
      double step = first / (double)correction1 / (sqrt(second / (double)correction2) + (double)epsilon);
      double want = (double)old[0][i] - (double)rate * (step + (double)decay * (double)old[0][i]);
      CLOSE(m[i], first, 1e-6 * (fabs((double)old[1][i]) + fabs(grad)), "%s: adamw of %zu, m[%zu]", kernels->name, n,
            i);
      CLOSE(v[i], second, 1e-6 * second + 1e-12, "%s: adamw of %zu, v[%zu]", kernels->name, n, i);
      CLOSE(w[i], want, 2e-7 * fabs(want) + 5e-6 * (double)rate * (1 + fabs(step)),
            "%s: adamw of %zu, weight[%zu]: %.9g, expected %.9g", kernels->name, n, i, (double)w[i], want);
    }
    fenced_release("adamw");
  }
}
LEVEL_TEST(adamw)

int main(int argc, char **argv) {
  start(argc, argv);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(layer_norm_every_level),
      cmocka_unit_test(convert_every_level),
      cmocka_unit_test(left_operands_every_level),
      cmocka_unit_test(gelu_every_level),
      cmocka_unit_test(layer_norm_backward_every_level),
      cmocka_unit_test(softmax_every_level),
      cmocka_unit_test(distill_every_level),
      cmocka_unit_test(sums_every_level),
      cmocka_unit_test(adamw_every_level),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
