/* Row operations every level shares: portable C that each level's file includes and so compiles with its own
 * instruction set. The includer defines `activation`, its matmul input type, and `to_activation(float)`.
 *
 * Sums run in 16 fixed lanes that are folded in a fixed order, so their bits depend on the row alone. */
#ifndef UST_KERNEL_ROWS_H
#define UST_KERNEL_ROWS_H

#include <math.h>

#include "kernel/kernel.h"

enum { LANES = 16 };

/* e^x for x <= 88, relative error about 2e-7: range reduction by ln 2, then a polynomial (Cephes' expf). */
static inline float row_exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  float n = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
  union {
    float f;
    int32_t i;
  } power = {.f = n};
  n -= 12582912.0f;
  float r = x - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  union {
    int32_t i;
    float f;
  } scale = {.i = (int32_t)(((uint32_t)power.i - 0x4b400000u + 127u) << 23)};
  return p * scale.f;
}

/* GPT-2's gelu: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + e^(-2 sqrt(2/pi) (…))). */
static inline float row_gelu(float x) {
  float u = -1.5957691216057308f * (x + 0.044715f * x * x * x);
  return x / (1.0f + row_exp(u));
}

static inline float row_fold(const float *lane) {
  float eight[8], four[4];
  for (int i = 0; i < 8; i++) eight[i] = lane[i] + lane[i + 8];
  for (int i = 0; i < 4; i++) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

static float row_sum(const float *x, int n) {
  float lane[LANES] = {0};
  int i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int l = 0; l < LANES; l++) lane[l] += x[i + l];
  for (int l = 0; i + l < n; l++) lane[l] += x[i + l];
  return row_fold(lane);
}

static float row_sum_of_squares(const float *x, float mean, int n) {
  float lane[LANES] = {0};
  int i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int l = 0; l < LANES; l++) lane[l] += (x[i + l] - mean) * (x[i + l] - mean);
  for (int l = 0; i + l < n; l++) lane[l] += (x[i + l] - mean) * (x[i + l] - mean);
  return row_fold(lane);
}

static void row_layer_norm(const float *x, const float *gain, const float *bias, int n, float epsilon, void *y) {
  activation *out = y;
  float mean = row_sum(x, n) / (float)n;
  float rstd = 1.0f / sqrtf(row_sum_of_squares(x, mean, n) / (float)n + epsilon);
  for (int i = 0; i < n; i++) out[i] = to_activation((x[i] - mean) * rstd * gain[i] + bias[i]);
  for (int i = n; i < UST_ROUND_UP(n, 32); i++) out[i] = 0;
}

static void row_convert(const float *x, int n, void *y) {
  activation *out = y;
  for (int i = 0; i < n; i++) out[i] = to_activation(x[i]);
  for (int i = n; i < UST_ROUND_UP(n, 32); i++) out[i] = 0;
}

/* Scores in position order -> unnormalised probabilities in place; returns their sum. Entries from n up to the
 * next multiple of 32 become zero. Lanes go by position, so that a row's sum does not depend on its company. */
__attribute__((unused)) static float row_softmax(float *s, int n, float scale) {
  float lane[LANES], most = s[0];
  for (int l = 0; l < LANES; l++) lane[l] = most;
  int at = 0;
  for (; at + LANES <= n; at += LANES)
    for (int l = 0; l < LANES; l++) lane[l] = s[at + l] > lane[l] ? s[at + l] : lane[l];
  for (; at < n; at++) most = s[at] > most ? s[at] : most;
  for (int l = 0; l < LANES; l++) most = lane[l] > most ? lane[l] : most;
  for (int i = 0; i < n; i++) s[i] = row_exp((s[i] - most) * scale);
  for (int i = n; i < UST_ROUND_UP(n, 32); i++) s[i] = 0;
  return row_sum(s, n);
}

/* Brings the scores of a row from slot order into position order: path slots ascend and lie at or after their
 * positions, so moving upwards in place never overwrites a score still needed. */
__attribute__((unused)) static void row_order(float *s, const ust_attention_rows *rows, int row) {
  const int32_t *path = rows->path + (size_t)row * rows->path_stride;
  for (int p = rows->identity[row]; p < rows->keys[row]; p++) s[p] = s[path[p - rows->identity[row]]];
}

/* The slot of position p of a row. */
static inline int row_slot(const ust_attention_rows *rows, int row, int p) {
  int identity = rows->identity[row];
  return p < identity ? p : rows->path[(size_t)row * rows->path_stride + p - identity];
}

/* Writes 32 columns of one row: v = sums (+ bias), then the epilogue. */
static inline void row_finish(const float *sum, const float *bias, ust_epilogue epilogue, void *y, size_t at) {
  float v[UST_PANEL];
  if (bias)
    for (int i = 0; i < UST_PANEL; i++) v[i] = sum[i] + bias[i];
  else
    for (int i = 0; i < UST_PANEL; i++) v[i] = sum[i];
  if (epilogue == UST_GELU) {
    activation *out = (activation *)y + at;
    for (int i = 0; i < UST_PANEL; i++) out[i] = to_activation(row_gelu(v[i]));
  } else if (epilogue == UST_ADD) {
    float *out = (float *)y + at;
    for (int i = 0; i < UST_PANEL; i++) out[i] += v[i];
  } else {
    float *out = (float *)y + at;
    for (int i = 0; i < UST_PANEL; i++) out[i] = v[i];
  }
}

/* ---- left operands of training products: plain rows, for levels with no order of their own ---- */

static void matmul(const ust_matrix *w, int panel, int panel_end, const void *x, size_t x_stride, int rows,
                   const float *bias, ust_epilogue epilogue, void *y, size_t y_stride);

static void row_left_pack(const ust_left *left, int input, const float *x, size_t x_stride, int inputs) {
  for (int r = 0; r < left->rows; r++)
    row_convert(x + (size_t)r * x_stride, inputs, (activation *)left->data + (size_t)r * left->inputs + input);
}

/* By squares of 16: a line of either side is met once. */
static void row_left_pack_transposed(const ust_left *left, int input, const float *x, size_t x_stride, int inputs) {
  activation *to = (activation *)left->data + input;
  for (int k = 0; k < inputs; k += 16)
    for (int row = 0; row < left->rows; row += 16)
      for (int r = row; r < row + 16; r++)
        for (int i = k; i < k + 16; i++)
          to[(size_t)r * left->inputs + i] = to_activation(x[(size_t)i * x_stride + (size_t)r]);
}

static void row_left_matmul(const ust_matrix *w, const ust_left *x, int input, const float *bias, bool add, float *y,
                            size_t y_stride) {
  matmul(w, 0, w->rows / UST_PANEL, (const activation *)x->data + input, (size_t)x->inputs, x->rows, bias,
         add ? UST_ADD : UST_STORE, y, y_stride);
}

static inline void rows_fill(ust_kernels *table) {
  table->left_pack = row_left_pack;
  table->left_pack_transposed = row_left_pack_transposed;
  table->left_matmul = row_left_matmul;
  table->activation_size = sizeof(activation);
  table->layer_norm = row_layer_norm;
  table->convert = row_convert;
}

#endif
