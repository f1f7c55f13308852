/* gpt2_train: the loss over the vocabulary and where the backward pass starts.
 *
 * The logits of a micro-batch never exist all at once: the candidates are taken UST_TRAIN_VOCAB at a time.
 * The first run over the blocks finds each token's log-sum-exp and its label's logit; the second computes the
 * block's logits again, turns them into gradients and adds their two products. A teacher's logits are made in
 * the same way, block by block, from its last hidden states, so that distilling sees its distribution over
 * the same candidates. */
#include <float.h>
#include <math.h>

#include "model/gpt2_train.h"

/* Candidates of a block. */
static int block_count(const ust_gpt2_train *m, int block) {
  return UST_MIN(UST_TRAIN_VOCAB, m->candidates - block * UST_TRAIN_VOCAB);
}

/* logits[rows, UST_TRAIN_LOGITS] of one block of the candidates, for tokens from `first` on */
static void block_logits(const ust_gpt2_train *m, int block, int first, int rows, float *logits) {
  const ust_packed *w = &m->vocabulary[block].forward;
  ust_left tokens = ust_left_from(m->kernels, &m->last_rows, first, rows);
  ust_gpt2_multiply(m, w, 0, w->whole.rows, &tokens, m->candidate_log + (size_t)block * UST_TRAIN_VOCAB, false, logits,
                    UST_TRAIN_LOGITS);
}

static void loss_rows(ust_gpt2_train *m, const int32_t *labels, int first) {
  int rows = ust_gpt2_block_rows(m, first);
  float *logits = ust_gpt2_scratch_of(m)->wide;
  float most[UST_TRAIN_ROWS], sum[UST_TRAIN_ROWS], own[UST_TRAIN_ROWS];
  for (int r = 0; r < rows; r++) {
    most[r] = -FLT_MAX;
    sum[r] = own[r] = 0;
  }
  for (int block = 0; block < m->vocabulary_blocks; block++) {
    int count = block_count(m, block);
    block_logits(m, block, first, rows, logits);
    for (int r = 0; r < rows; r++) {
      const float *row = logits + (size_t)r * UST_TRAIN_LOGITS;
      int label = m->place[labels[first + r]] - block * UST_TRAIN_VOCAB;
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
    for (int b = 0; b < ust_gpt2_row_blocks(m); b++) loss_rows(m, labels, b * UST_TRAIN_ROWS);
    m->kernels->release();
  }
  double total = 0;
  for (int t = 0; t < m->tokens; t++) total += m->loss[t];
  return total;
}

/* What the gradient of a token's logits is made of. */
typedef struct goal {
  const int32_t *labels;
  float scale;
  const ust_gpt2_train *teacher;
} goal;

/* scale (q - p), q the model's probabilities, p the teacher's or 1 for the label, for one block
 * of the candidates and a block of rows; and the first of its products, with the token matrix, into d_norm. */
static void logit_gradient_rows(ust_gpt2_train *m, const goal *of, int block, int first) {
  const ust_kernels *k = m->kernels;
  ust_gpt2_scratch *s = ust_gpt2_scratch_of(m);
  const ust_packed *back = &m->vocabulary[block].backward;
  int rows = ust_gpt2_block_rows(m, first), count = block_count(m, block), padded = back->whole.cols;
  block_logits(m, block, first, rows, s->wide);
  if (of->teacher) block_logits(of->teacher, block, first, rows, s->wide2);
  for (int r = 0; r < rows; r++) {
    float *row = s->wide + (size_t)r * UST_TRAIN_LOGITS;
    int t = first + r;
    if (of->teacher) {
      m->kl[t] += k->distill(row, s->wide2 + (size_t)r * UST_TRAIN_LOGITS, count, m->log_sum[t],
                             of->teacher->log_sum[t], of->scale);
    } else {
      int label = m->place[of->labels[t]] - block * UST_TRAIN_VOCAB;
      k->probabilities(row, count, m->log_sum[t], of->scale);
      if (label >= 0 && label < count) row[label] -= of->scale;
    }
    for (int i = count; i < padded; i++) row[i] = 0;
  }
  ust_left left = {.data = s->rows, .rows = rows, .inputs = padded};
  k->left_pack(&left, 0, s->wide, UST_TRAIN_LOGITS, padded);
  ust_gpt2_multiply(m, back, 0, back->whole.rows, &left, NULL, true, m->d_norm + (size_t)first * m->config.width,
                    (size_t)m->config.width);
  k->left_pack_transposed(&m->from_width.dy, first, s->wide, UST_TRAIN_LOGITS, rows);
}

/* The second product: `rows` rows from `first` on of the token matrix' gradient that belong to the block's
 * candidates. */
static void token_matrix_gradient(ust_gpt2_train *m, int block, int first, int rows) {
  size_t w = (size_t)m->config.width;
  int count = block_count(m, block);
  ust_left dy = ust_left_from(m->kernels, &m->from_width.dy, first, rows);
  float *dw = ust_gpt2_scratch_of(m)->wide;
  ust_gpt2_multiply(m, &m->from_width.x, 0, m->config.width, &dy, NULL, false, dw, w);
  for (int i = 0; i < rows && first + i < count; i++)
    m->kernels->add(dw + (size_t)i * w,
                    ust_gpt2_gradient(m, UST_TOKENS) + (size_t)m->candidate[block * UST_TRAIN_VOCAB + first + i] * w,
                    w);
}

/* By all threads of a parallel region together. */
static void vocabulary_backward(ust_gpt2_train *m, const goal *of) {
  size_t w = (size_t)m->config.width;
  ust_gpt2_gradient_start(m, &m->from_width, 0);
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    int first = b * UST_TRAIN_ROWS, rows = ust_gpt2_block_rows(m, first);
    size_t at = (size_t)first * w, count = (size_t)rows * w;
    ust_gpt2_gradient_take_x(m, &m->from_width, first, rows, 0, m->config.width, m->last_norm + at, w);
    memset(m->d_norm + at, 0, count * sizeof(float));
    memset(m->d_stream + at, 0, count * sizeof(float));
    memset(m->kl + first, 0, (size_t)rows * sizeof(float));
  }
  for (int block = 0; block < m->vocabulary_blocks; block++) {
    int all = m->vocabulary[block].forward.whole.rows, high = ust_gpt2_even(all, UST_TRAIN_GRADIENT_ROWS);
    ust_gpt2_gradient_start(m, &m->from_width, all);
#pragma omp for schedule(dynamic)
    for (int b = 0; b < ust_gpt2_row_blocks(m); b++) logit_gradient_rows(m, of, block, b * UST_TRAIN_ROWS);
#pragma omp for schedule(dynamic)
    for (int first = 0; first < all; first += high) token_matrix_gradient(m, block, first, UST_MIN(high, all - first));
  }
}

double ust_gpt2_train_backward(ust_gpt2_train *m, const int32_t *labels, float scale, const ust_gpt2_train *teacher) {
  goal of = {.labels = labels, .scale = scale, .teacher = teacher};
#pragma omp parallel num_threads(m->threads)
  {
    vocabulary_backward(m, &of);
    ust_gpt2_norm_backward(m, m->last, m->last_mean, m->last_rstd, ust_gpt2_layer(m->config.layers, 0));
    ust_gpt2_layers_backward(m);
    m->kernels->release();
  }
  double total = 0;
  for (int t = 0; teacher && t < m->tokens; t++) total += m->kl[t];
  return total;
}
