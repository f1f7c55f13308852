/* Optimiser: GPT-2's initialisation, the learning-rate schedule, gradient clipping and AdamW.
 *
 * Constants are those of the GPT-3 paper (Brown et al. 2020, appendix B): beta 0.9 / 0.95, decay 0.1 (on matrices
 * only), clipping at norm 1, cosine decay to a tenth. */
#include <math.h>

#include "train/internal.h"

enum { BLOCK = 65536 /* floats of a work item */ };

static const float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, decay = 0.1f, clip = 1.0f;

/* ---- initial values ---- */

/* Two independent normal values from one counter (Box & Muller 1958). */
static void normal_pair(uint64_t seed, uint64_t stream, uint64_t counter, float deviation, float out[2]) {
  uint64_t bits = ust_train_hash(seed, stream, counter);
  double u = ((double)(bits >> 32) + 0.5) * 0x1p-32, v = ((double)(bits & 0xffffffffu) + 0.5) * 0x1p-32;
  double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586 * v;
  out[0] = deviation * (float)(radius * cos(angle));
  out[1] = deviation * (float)(radius * sin(angle));
}

/* Matrices N(0, 0.02), those that write to the residual stream smaller by sqrt(2 layers); gains 1, biases 0. */
void ust_train_initialise(ust_gpt2_train *model, uint64_t seed) {
  enum { STREAM_VALUES = 1000 };
#pragma omp parallel for schedule(dynamic) num_threads(model->threads)
  for (int i = 0; i < model->parameter_count; i++) {
    const ust_parameter *p = &model->parameters[i];
    float *values = model->values + p->offset;
    size_t count = (size_t)p->rows * (size_t)p->cols;
    bool residual = strstr(p->name, "attn_output.weight") || strstr(p->name, "ffn_down.weight");
    float deviation = residual ? 0.02f / sqrtf(2.0f * (float)model->config.layers) : 0.02f;
    bool gain = !p->matrix && strstr(p->name, "norm.weight");
    for (size_t at = 0; at < count; at += 2) {
      float pair[2] = {gain, gain};
      if (p->matrix) normal_pair(seed, STREAM_VALUES + (uint64_t)i, at, deviation, pair);
      values[at] = pair[0];
      if (at + 1 < count) values[at + 1] = pair[1];
    }
  }
}

/* ---- one step ---- */

/* Linear warm-up over the first fiftieth, then a cosine down to a tenth. `step` counts from 0. */
float ust_train_rate(int step, int steps, float rate) {
  int warm = UST_MAX(1, steps / 50);
  if (step < warm) return rate * (float)(step + 1) / (float)warm;
  double done = (double)(step - warm) / (double)UST_MAX(1, steps - warm);
  return (float)(rate * (0.1 + 0.45 * (1.0 + cos(3.141592653589793 * done))));
}

size_t ust_train_partials(const ust_gpt2_train *model) {
  return (model->size + BLOCK - 1) / BLOCK;
}

static double gradient_norm(const ust_train_run *run) {
  const ust_gpt2_train *m = run->model;
  size_t blocks = ust_train_partials(m);
#pragma omp parallel for num_threads(m->threads)
  for (size_t b = 0; b < blocks; b++)
    run->partial[b] = m->kernels->sum_squares(m->gradients + b * BLOCK, UST_MIN(BLOCK, m->size - b * BLOCK));
  double sum = 0;
  for (size_t b = 0; b < blocks; b++) sum += run->partial[b];
  return sqrt(sum);
}

bool ust_train_update(ust_train_run *run) {
  ust_gpt2_train *m = run->model;
  double norm = gradient_norm(run);
  if (!isfinite(norm)) return false;
  float scale = norm > clip ? (float)(clip / norm) : 1.0f;
  float rate = ust_train_rate(run->step, run->options->steps, run->options->rate);
  float correction1 = (float)(1.0 - pow(beta1, run->step + 1)), correction2 = (float)(1.0 - pow(beta2, run->step + 1));
  for (int i = 0; i < m->parameter_count; i++) {
    const ust_parameter *p = &m->parameters[i];
    size_t count = (size_t)p->rows * (size_t)p->cols;
#pragma omp parallel for num_threads(m->threads) if (count > BLOCK)
    for (size_t at = 0; at < count; at += BLOCK) {
      size_t from = p->offset + at;
      m->kernels->adamw(m->values + from, m->gradients + from, run->moments + from, run->moments + m->size + from,
                        UST_MIN(BLOCK, count - at), scale, rate, beta1, beta2, epsilon, p->matrix ? decay : 0.0f,
                        correction1, correction2);
    }
  }
  ust_gpt2_train_pack(m);
  run->step++;
  return true;
}
