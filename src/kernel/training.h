/* Elementwise and row operations of training, written once in GNU C vectors of 16 floats and included by every
 * level's file, so that each level compiles them with its own flags (four SSE registers at the scalar level, one
 * register at AVX-512). Reductions keep 16 partial sums and fold them in a fixed order: a result depends on the
 * level, never on where a row lies or which thread works on it. */
#ifndef UST_KERNEL_TRAINING_H
#define UST_KERNEL_TRAINING_H

#include <float.h>
#include <math.h>

#include "kernel/kernel.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi" /* the vectors below never cross a real call */

#define TRAINING_INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(64)));
typedef int32_t lanes_int __attribute__((vector_size(64)));
typedef float lanes_unaligned __attribute__((vector_size(64), aligned(4), may_alias));

TRAINING_INLINE lanes lanes_fill(float value) {
  return (lanes){0} + value;
}

/* 16 values from x, or the first `count` of them with `rest` behind. */
TRAINING_INLINE lanes lanes_load(const float *x, size_t count, float rest) {
  if (count >= 16) return (lanes) * (const lanes_unaligned *)x;
  lanes value = lanes_fill(rest);
  for (size_t i = 0; i < count; i++) value[i] = x[i];
  return value;
}

TRAINING_INLINE void lanes_store(float *y, size_t count, lanes value) {
  if (count >= 16)
    *(lanes_unaligned *)y = (lanes_unaligned)value;
  else
    for (size_t i = 0; i < count; i++) y[i] = value[i];
}

TRAINING_INLINE lanes lanes_pick(lanes_int mask, lanes yes, lanes no) {
  return (lanes)(((lanes_int)yes & mask) | ((lanes_int)no & ~mask));
}
TRAINING_INLINE lanes lanes_max(lanes a, lanes b) {
  return lanes_pick(a > b, a, b);
}
TRAINING_INLINE lanes lanes_min(lanes a, lanes b) {
  return lanes_pick(a < b, a, b);
}

TRAINING_INLINE lanes lanes_fma(lanes a, lanes b, lanes c) {
#if defined(__AVX512F__)
  return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

TRAINING_INLINE lanes lanes_sqrt(const lanes x) {
#if defined(__AVX512F__)
  return (lanes)_mm512_sqrt_ps((__m512)x);
#else
  lanes root;
  for (int i = 0; i < 16; i++) root[i] = sqrtf(x[i]);
  return root;
#endif
}

TRAINING_INLINE float lanes_sum(lanes x) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

TRAINING_INLINE float lanes_most(lanes x) {
  float most = x[0];
  for (int i = 1; i < 16; i++) most = x[i] > most ? x[i] : most;
  return most;
}

/* e^x within 2 ulp for -87 <= x <= 88, clamped outside: x = n ln 2 + r, a polynomial in r with the coefficients of
 * Cephes' expf, times 2^n put together from its bits. */
TRAINING_INLINE lanes lanes_exp(lanes x) {
  const lanes shift = lanes_fill(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
  x = lanes_min(lanes_max(x, lanes_fill(-87.0f)), lanes_fill(88.0f));
  lanes shifted = lanes_fma(x, lanes_fill(1.44269504f), shift);
  lanes n = shifted - shift;
  lanes r = lanes_fma(n, lanes_fill(-0.693359375f), x);
  r = lanes_fma(n, lanes_fill(2.12194440e-4f), r);
  lanes p = lanes_fill(1.9875691500e-4f);
  p = lanes_fma(p, r, lanes_fill(1.3981999507e-3f));
  p = lanes_fma(p, r, lanes_fill(8.3334519073e-3f));
  p = lanes_fma(p, r, lanes_fill(4.1665795894e-2f));
  p = lanes_fma(p, r, lanes_fill(1.6666665459e-1f));
  p = lanes_fma(p, r, lanes_fill(5.0000001201e-1f));
  p = lanes_fma(p, r * r, r) + 1.0f;
  lanes_int power = ((lanes_int)shifted - (lanes_int)shift + 127) << 23;
  return p * (lanes)power;
}

#define GELU_OUTER 0.79788456080286536f /* sqrt(2 / pi) */
#define GELU_INNER 0.044715f

/* gelu_tanh(x) = x/2 (1 + tanh u) = x / (1 + e^(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3); this is the factor. */
TRAINING_INLINE lanes gelu_factor(lanes x) {
  lanes u = x * lanes_fma(x * x, lanes_fill(GELU_OUTER * GELU_INNER), lanes_fill(GELU_OUTER));
  return 1.0f / (lanes_exp(-2.0f * u) + 1.0f);
}

static void training_gelu(const float *x, float *y, size_t n) {
  for (size_t i = 0; i < n; i += 16) {
    lanes value = lanes_load(x + i, n - i, 0);
    lanes_store(y + i, n - i, value * gelu_factor(value));
  }
}

/* d/dx x s(x) = s + x s (1 - s) 2 u' */
static void training_gelu_backward(const float *x, const float *dy, float *dx, float *y, size_t n) {
  for (size_t i = 0; i < n; i += 16) {
    lanes value = lanes_load(x + i, n - i, 0), factor = gelu_factor(value);
    lanes twice_slope = lanes_fma(value * value, lanes_fill(6 * GELU_OUTER * GELU_INNER), lanes_fill(2 * GELU_OUTER));
    lanes slope = lanes_fma(value * factor * (1.0f - factor), twice_slope, factor);
    lanes_store(dx + i, n - i, lanes_load(dy + i, n - i, 0) * slope);
    lanes_store(y + i, n - i, value * factor);
  }
}

/* y = (x - mean) rstd gain + bias, rstd = 1 / sqrt(mean of squared deviations + epsilon) */
static void training_layer_norm(const float *x, const float *gain, const float *bias, int n, float epsilon, float *y,
                                float *mean, float *rstd) {
  size_t count = (size_t)n;
  lanes sum = lanes_fill(0);
  for (size_t i = 0; i < count; i += 16) sum += lanes_load(x + i, count - i, 0);
  *mean = lanes_sum(sum) / (float)n;
  sum = lanes_fill(0);
  for (size_t i = 0; i < count; i += 16) {
    lanes deviation = lanes_load(x + i, count - i, *mean) - *mean;
    sum = lanes_fma(deviation, deviation, sum);
  }
  *rstd = 1.0f / sqrtf(lanes_sum(sum) / (float)n + epsilon);
  for (size_t i = 0; i < count; i += 16) {
    lanes normal = (lanes_load(x + i, count - i, 0) - *mean) * *rstd;
    lanes scale = lanes_load(gain + i, count - i, 0), shift = lanes_load(bias + i, count - i, 0);
    lanes_store(y + i, count - i, lanes_fma(normal, scale, shift));
  }
}

/* With normal = (x - mean) rstd and d = dy gain:
 * dx += rstd (d - mean(d) - normal mean(d normal)); dgain += dy normal; dbias += dy */
static void training_layer_norm_backward(const float *x, const float *gain, float mean, float rstd, const float *dy,
                                         int n, float *dx, float *dgain, float *dbias) {
  size_t count = (size_t)n;
  lanes sum = lanes_fill(0), sum_normal = lanes_fill(0);
  for (size_t i = 0; i < count; i += 16) {
    lanes given = lanes_load(dy + i, count - i, 0), normal = (lanes_load(x + i, count - i, mean) - mean) * rstd;
    lanes d = given * lanes_load(gain + i, count - i, 0);
    sum += d;
    sum_normal = lanes_fma(d, normal, sum_normal);
    lanes_store(dgain + i, count - i, lanes_fma(given, normal, lanes_load(dgain + i, count - i, 0)));
    lanes_store(dbias + i, count - i, lanes_load(dbias + i, count - i, 0) + given);
  }
  float average = lanes_sum(sum) / (float)n, average_normal = lanes_sum(sum_normal) / (float)n;
  for (size_t i = 0; i < count; i += 16) {
    lanes normal = (lanes_load(x + i, count - i, mean) - mean) * rstd;
    lanes d = lanes_load(dy + i, count - i, 0) * lanes_load(gain + i, count - i, 0);
    lanes_store(dx + i, count - i, lanes_load(dx + i, count - i, 0) + rstd * (d - average - normal * average_normal));
  }
}

static void training_softmax(float *x, int n, int stride, float scale) {
  size_t count = (size_t)n;
  lanes most = lanes_fill(-FLT_MAX);
  for (size_t i = 0; i < count; i += 16) most = lanes_max(most, lanes_load(x + i, count - i, -FLT_MAX));
  float shift = lanes_most(most);
  lanes sum = lanes_fill(0);
  for (size_t i = 0; i < count; i += 16) {
    lanes e = lanes_exp((lanes_load(x + i, count - i, 0) - shift) * scale);
    lanes_store(x + i, count - i, e);
    sum += lanes_load(x + i, count - i, 0);
  }
  float factor = 1.0f / lanes_sum(sum);
  for (size_t i = 0; i < count; i += 16) lanes_store(x + i, count - i, lanes_load(x + i, count - i, 0) * factor);
  memset(x + n, 0, (size_t)(stride - n) * sizeof *x);
}

/* d[n] = scale p (d - sum(p d)); the rest of the row of `stride` zeroed */
static void training_softmax_backward(const float *p, float *d, int n, int stride, float scale) {
  size_t count = (size_t)n;
  lanes sum = lanes_fill(0);
  for (size_t i = 0; i < count; i += 16)
    sum = lanes_fma(lanes_load(p + i, count - i, 0), lanes_load(d + i, count - i, 0), sum);
  float total = lanes_sum(sum);
  for (size_t i = 0; i < count; i += 16)
    lanes_store(d + i, count - i, scale * lanes_load(p + i, count - i, 0) * (lanes_load(d + i, count - i, 0) - total));
  memset(d + n, 0, (size_t)(stride - n) * sizeof *d);
}

/* Takes n more logits into a running maximum and sum of exp(x - maximum); starts from -FLT_MAX and 0. */
static void training_log_sum_exp(const float *x, int n, float *maximum, float *sum) {
  size_t count = (size_t)n;
  lanes most = lanes_fill(*maximum);
  for (size_t i = 0; i < count; i += 16) most = lanes_max(most, lanes_load(x + i, count - i, -FLT_MAX));
  float shift = lanes_most(most);
  lanes total = lanes_fill(0);
  for (size_t i = 0; i + 16 <= count; i += 16) total += lanes_exp(lanes_load(x + i, 16, 0) - shift);
  if (count % 16) {
    float rest[16] = {0};
    size_t first = count - count % 16;
    lanes_store(rest, count % 16, lanes_exp(lanes_load(x + first, count % 16, 0) - shift));
    total += lanes_load(rest, 16, 0);
  }
  *sum = *sum * expf(*maximum - shift) + lanes_sum(total);
  *maximum = shift;
}

/* logits x[n] -> scale exp(x - log_sum) */
static void training_probabilities(float *x, int n, float log_sum, float scale) {
  size_t count = (size_t)n;
  for (size_t i = 0; i < count; i += 16)
    lanes_store(x + i, count - i, scale * lanes_exp(lanes_load(x + i, count - i, 0) - log_sum));
}

/* Student logits x[n] and teacher logits t[n] -> x = scale (q - p) with q, p their probabilities;
 * returns sum of p log(p / q) over the n. */
static float training_distill(float *x, const float *t, int n, float x_log_sum, float t_log_sum, float scale) {
  size_t count = (size_t)n;
  lanes sum = lanes_fill(0);
  for (size_t i = 0; i < count; i += 16) {
    lanes log_q = lanes_load(x + i, count - i, 0) - x_log_sum;
    lanes log_p = lanes_load(t + i, count - i, -FLT_MAX / 4) - t_log_sum;
    lanes p = lanes_exp(log_p);
    if (count - i >= 16)
      sum = lanes_fma(p, log_p - log_q, sum);
    else
      for (size_t j = 0; j < count - i; j++) sum[j] += p[j] * (log_p[j] - log_q[j]);
    lanes_store(x + i, count - i, scale * (lanes_exp(log_q) - p));
  }
  return lanes_sum(sum);
}

/* y[n] += x[n] */
static void training_add(const float *x, float *y, size_t n) {
  for (size_t i = 0; i < n; i += 16)
    lanes_store(y + i, n - i, lanes_load(y + i, n - i, 0) + lanes_load(x + i, n - i, 0));
}

/* Blocks of 4096 are summed in f32, the blocks in f64. */
static double training_sum_squares(const float *x, size_t n) {
  double total = 0;
  for (size_t start = 0; start < n; start += 4096) {
    size_t end = UST_MIN(n, start + 4096);
    lanes sum = lanes_fill(0);
    for (size_t i = start; i < end; i += 16) {
      lanes value = lanes_load(x + i, end - i, 0);
      sum = lanes_fma(value, value, sum);
    }
    total += lanes_sum(sum);
  }
  return total;
}

/* Loshchilov & Hutter 2019: g = gradient_scale gradient; m, v are g's and g^2's running means;
 * weight -= rate (m / correction1 / (sqrt(v / correction2) + epsilon) + decay weight) */
static void training_adamw(float *weight, const float *gradient, float *m, float *v, size_t n, float gradient_scale,
                           float rate, float beta1, float beta2, float epsilon, float decay, float correction1,
                           float correction2) {
  float inverse1 = 1.0f / correction1, inverse2 = 1.0f / correction2;
  for (size_t i = 0; i < n; i += 16) {
    lanes g = lanes_load(gradient + i, n - i, 0) * gradient_scale, w = lanes_load(weight + i, n - i, 0);
    lanes first = beta1 * lanes_load(m + i, n - i, 0) + (1.0f - beta1) * g;
    lanes second = beta2 * lanes_load(v + i, n - i, 0) + (1.0f - beta2) * g * g;
    lanes step = first * inverse1 / (lanes_sqrt(second * inverse2) + epsilon) + decay * w;
    lanes_store(m + i, n - i, first);
    lanes_store(v + i, n - i, second);
    lanes_store(weight + i, n - i, w - rate * step);
  }
}

static void training_fill(ust_kernels *table) {
  table->gelu = training_gelu;
  table->gelu_backward = training_gelu_backward;
  table->layer_norm_train = training_layer_norm;
  table->layer_norm_backward = training_layer_norm_backward;
  table->softmax = training_softmax;
  table->softmax_backward = training_softmax_backward;
  table->log_sum_exp = training_log_sum_exp;
  table->probabilities = training_probabilities;
  table->distill = training_distill;
  table->add = training_add;
  table->sum_squares = training_sum_squares;
  table->adamw = training_adamw;
}

#endif
