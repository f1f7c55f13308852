/* gpt2_train: the loss over the vocabulary and where the backward pass starts.
 *
 * The logits of a micro-batch never exist all at once: the token matrix is taken UST_TRAIN_VOCAB rows at a time.
 * The first run over the blocks finds each token's log-sum-exp and its label's logit; the second computes the
 * block's logits again, turns them into gradients and adds their two products. A teacher's logits are made in
 * the same way, block by block, from its last hidden states, so that distilling sees its whole distribution. */
#include <float.h>
#include <math.h>
#include <omp.h>

#include "model/gpt2_train.h"

static int row_blocks(const ust_gpt2_train *m) {
  return (m->tokens + UST_TRAIN_ROWS - 1) / UST_TRAIN_ROWS;
}

/* logits[rows, UST_TRAIN_LOGITS] of one block of the vocabulary, for tokens from `first` on */
static void block_logits(const ust_gpt2_train *m, int block, int first, int rows, float *logits) {
  const ust_matrix *w = &m->vocabulary[block].forward;
  size_t width = (size_t)m->config.width;
  const char *x = (const char *)m->last_rows + (size_t)first * width * m->kernels->activation_size;
  m->kernels->matmul(w, 0, ust_train_panels(w), x, width, rows, NULL, UST_STORE, logits, UST_TRAIN_LOGITS);
}

static void loss_rows(ust_gpt2_train *m, const int32_t *labels, int first) {
  int rows = UST_MIN(UST_TRAIN_ROWS, m->tokens - first);
  float *logits = m->scratch[omp_get_thread_num()].wide;
  float most[UST_TRAIN_ROWS], sum[UST_TRAIN_ROWS], own[UST_TRAIN_ROWS];
  for (int r = 0; r < rows; r++) {
    most[r] = -FLT_MAX;
    sum[r] = own[r] = 0;
  }
  for (int block = 0; block < m->vocabulary_blocks; block++) {
    int count = m->vocabulary[block].forward.rows;
    block_logits(m, block, first, rows, logits);
    for (int r = 0; r < rows; r++) {
      const float *row = logits + (size_t)r * UST_TRAIN_LOGITS;
      int label = labels[first + r] - block * UST_TRAIN_VOCAB;
      m->kernels->log_sum_exp(row, count, &most[r], &sum[r]);
      if (label >= 0 && label < count) own[r] = row[label];
    }
  }
  for (int r = 0; r < rows; r++) {
    m->log_sum[first + r] = most[r] + logf(sum[r]);
    m->loss[first + r] = m->log_sum[first + r] - own[r];
  }
}

double ust_gpt2_train_loss(ust_gpt2_train *m, const int32_t *labels) {
#pragma omp parallel num_threads(m->threads)
  {
#pragma omp for schedule(dynamic)
    for (int b = 0; b < row_blocks(m); b++) loss_rows(m, labels, b * UST_TRAIN_ROWS);
    m->kernels->release();
  }
  double total = 0;
  for (int t = 0; t < m->tokens; t++) total += m->loss[t];
  return total;
}

/* What the gradient of a token's logits is made of. */
typedef struct goal {
  const int32_t *labels;
  float scale, soft;
  const ust_gpt2_train *teacher;
} goal;

/* scale (q - (1 - soft) onehot(label) - soft p), q and p the model's and the teacher's probabilities, for one block
 * of the vocabulary and a block of rows; and the first of its products, with the token matrix, into d_norm. */
static void logit_gradient_rows(ust_gpt2_train *m, const goal *of, int block, int first) {
  const ust_kernels *k = m->kernels;
  ust_train_scratch *s = &m->scratch[omp_get_thread_num()];
  const ust_matrix *back = &m->vocabulary[block].backward;
  int rows = UST_MIN(UST_TRAIN_ROWS, m->tokens - first), count = back->cols;
  block_logits(m, block, first, rows, s->wide);
  if (of->teacher) block_logits(of->teacher, block, first, rows, s->wide2);
  for (int r = 0; r < rows; r++) {
    float *row = s->wide + (size_t)r * UST_TRAIN_LOGITS;
    int t = first + r, label = of->labels[t] - block * UST_TRAIN_VOCAB;
    if (of->teacher)
      m->kl[t] += k->distill(row, s->wide2 + (size_t)r * UST_TRAIN_LOGITS, count, m->log_sum[t],
                             of->teacher->log_sum[t], of->scale, of->soft);
    else
      k->probabilities(row, count, m->log_sum[t], of->scale);
    if (label >= 0 && label < count) row[label] -= of->scale * (1.0f - of->soft);
    k->convert(row, count, (char *)s->rows + (size_t)r * UST_TRAIN_LOGITS * k->activation_size);
  }
  k->matmul(back, 0, ust_train_panels(back), s->rows, UST_TRAIN_LOGITS, rows, NULL, UST_ADD,
            m->d_norm + (size_t)first * m->config.width, (size_t)m->config.width);
  k->convert_transposed(s->wide, UST_TRAIN_LOGITS, rows, count,
                        (char *)m->transposed + (size_t)first * k->activation_size, m->transposed_stride);
}

enum { GRADIENT_ROWS = 128 };

/* The second product: the block's rows of the token matrix' gradient. */
static void token_matrix_gradient(ust_gpt2_train *m, int block, int item) {
  size_t w = (size_t)m->config.width;
  int first = item * GRADIENT_ROWS, rows = UST_MIN(GRADIENT_ROWS, m->vocabulary[block].forward.rows - first);
  if (rows <= 0) return;
  const char *x = (const char *)m->transposed + (size_t)first * m->transposed_stride * m->kernels->activation_size;
  float *dw = ust_train_gradient(m, UST_TOKENS) + ((size_t)block * UST_TRAIN_VOCAB + (size_t)first) * w;
  m->kernels->matmul(&m->inputs, 0, ust_train_panels(&m->inputs), x, m->transposed_stride, rows, NULL, UST_ADD, dw, w);
}

/* By all threads of a parallel region together. */
static void vocabulary_backward(ust_gpt2_train *m, const goal *of) {
  size_t w = (size_t)m->config.width;
#pragma omp single
  {
    m->inputs.rows = m->config.width;
    m->inputs.cols = m->tokens;
    memset(m->d_norm, 0, (size_t)m->tokens * w * sizeof(float));
    memset(m->d_stream, 0, (size_t)m->tokens * w * sizeof(float));
    memset(m->kl, 0, (size_t)m->tokens * sizeof(float));
  }
#pragma omp for schedule(dynamic)
  for (int p = 0; p < m->config.width / UST_PANEL; p++)
    m->kernels->pack(&m->inputs, p * UST_PANEL, UST_PANEL, m->last_norm + (size_t)p * UST_PANEL, 1, w);
  for (int block = 0; block < m->vocabulary_blocks; block++) {
#pragma omp for schedule(dynamic)
    for (int b = 0; b < row_blocks(m); b++) logit_gradient_rows(m, of, block, b * UST_TRAIN_ROWS);
#pragma omp for schedule(dynamic)
    for (int i = 0; i < UST_TRAIN_VOCAB / GRADIENT_ROWS; i++) token_matrix_gradient(m, block, i);
  }
}

double ust_gpt2_train_backward(ust_gpt2_train *m, const int32_t *labels, float scale, float soft,
                               const ust_gpt2_train *teacher) {
  goal of = {.labels = labels, .scale = scale, .soft = soft, .teacher = teacher};
#pragma omp parallel num_threads(m->threads)
  {
    vocabulary_backward(m, &of);
    ust_train_norm_backward(m, m->last, m->last_mean, m->last_rstd, ust_train_layer(m->config.layers, 0));
    ust_train_layers_backward(m);
    m->kernels->release();
  }
  double total = 0;
  for (int t = 0; teacher && t < m->tokens; t++) total += m->kl[t];
  return total;
}
