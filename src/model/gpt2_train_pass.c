/* gpt2_train: forward and backward pass of the embeddings, layers and norms.
 *
 * One parallel region a layer forward, one for the whole way back; within it, work items are blocks of UST_TRAIN_ROWS
 * tokens (norms, linear layers), a block of a matrix' gradient, or a head of a sequence (attention, its matrices made
 * anew in the backward pass from queries and keys). */
#include <math.h>

#include "model/gpt2_train.h"

/* Rows x [rows, n] as a left operand, in the memory given. */
static ust_left left_rows(const ust_gpt2_train *m, const float *x, int n, int rows, void *memory) {
  ust_left left = {.data = memory, .rows = rows, .inputs = n};
  m->kernels->left_pack(&left, 0, x, (size_t)n, n);
  return left;
}

/* y[rows, outputs] = x[rows, inputs] w^T + bias, or added to what stands there (and no bias) */
static void linear_rows(const ust_gpt2_train *m, const ust_packed *w, const float *x, int rows, const float *bias,
                        bool add, float *y) {
  ust_left left = left_rows(m, x, w->whole.cols, rows, ust_gpt2_scratch_of(m)->rows);
  ust_gpt2_multiply(m, w, 0, w->whole.rows, &left, bias, add, y, (size_t)w->whole.rows);
}

/* y[rows, n] = x + bias */
static void add_bias(const ust_gpt2_train *m, const float *x, const float *bias, int rows, int n, float *y) {
  memcpy(y, x, (size_t)rows * (size_t)n * sizeof *y);
  for (int r = 0; r < rows; r++) m->kernels->add(bias, y + (size_t)r * (size_t)n, (size_t)n);
}

static void norm_rows(const ust_gpt2_train *m, const float *x, int gain, int rows, float *y, float *mean, float *rstd) {
  int w = m->config.width;
  for (int r = 0; r < rows; r++)
    m->kernels->layer_norm_train(x + (size_t)r * w, ust_gpt2_value(m, gain), ust_gpt2_value(m, gain + 1), w,
                                 m->config.norm_epsilon, y + (size_t)r * w, mean + r, rstd + r);
}

/* ---- attention ---- */

/* A head's rows of one sequence: queries, keys and values, or their gradients. */
typedef struct head {
  int dim, width;
  size_t stride; /* of the rows of q, k and v */
  float *q, *k, *v;
} head;

static head head_of(const ust_gpt2_train *m, float *qkv, int item) {
  int dim = m->config.width / m->config.heads, sequence = item / m->config.heads, index = item % m->config.heads;
  size_t stride = 3 * (size_t)m->config.width;
  float *q = qkv + (size_t)sequence * m->window * stride + (size_t)index * dim;
  return (head){.dim = dim,
                .width = m->config.width,
                .stride = stride,
                .q = q,
                .k = q + m->config.width,
                .v = q + 2 * m->config.width};
}
/* The head's columns of [tokens, width]. */
static float *head_output(const ust_gpt2_train *m, const head *h, float *rows, int item) {
  return rows + (size_t)(item / m->config.heads) * m->window * h->width + (size_t)(item % m->config.heads) * h->dim;
}

/* A matrix of source[window, dims], or of its transpose. */
static const ust_matrix *pack_head(const ust_gpt2_train *m, const float *source, size_t stride, int dims,
                                   bool transposed) {
  ust_matrix *matrix = &ust_gpt2_scratch_of(m)->matrix;
  matrix->rows = transposed ? dims : m->window;
  matrix->cols = transposed ? m->window : dims;
  if (transposed)
    m->kernels->pack_inputs(matrix, 0, source, stride, m->window);
  else
    m->kernels->pack(matrix, 0, m->window, source, stride, 1);
  return matrix;
}

/* y[window, window] = x[window, dims] w^T below the diagonal; above it, what a block of queries covers. */
static void causal_product(const ust_gpt2_train *m, const ust_matrix *w, const float *x, size_t stride, float *y) {
  ust_left left = {.data = ust_gpt2_scratch_of(m)->head_rows, .rows = m->window, .inputs = w->cols};
  m->kernels->left_pack(&left, 0, x, stride, w->cols);
  for (int r = 0; r < m->window; r += UST_TRAIN_QUERIES) {
    ust_left queries = ust_left_from(m->kernels, &left, r, UST_MIN(UST_TRAIN_QUERIES, m->window - r));
    ust_matrix seen = *w;
    seen.rows = r + queries.rows;
    m->kernels->left_matmul(&seen, &queries, 0, NULL, false, y + (size_t)r * m->window, (size_t)m->window);
  }
}

/* s->square = softmax(causal q k^T scale) */
static void attention_matrix(const ust_gpt2_train *m, const head *h, float scale, ust_gpt2_scratch *s) {
  causal_product(m, pack_head(m, h->k, h->stride, h->dim, false), h->q, h->stride, s->square);
  for (int i = 0; i < m->window; i++) m->kernels->softmax(s->square + (size_t)i * m->window, i + 1, m->window, scale);
}

/* y[window, dims] = square w^T, or its transpose's product */
static void square_product(const ust_gpt2_train *m, const float *square, bool transposed, const ust_matrix *w, float *y,
                           size_t y_stride) {
  size_t window = (size_t)m->window;
  ust_left left = {.data = ust_gpt2_scratch_of(m)->square_rows, .rows = m->window, .inputs = m->window};
  if (transposed)
    m->kernels->left_pack_transposed(&left, 0, square, window, m->window);
  else
    m->kernels->left_pack(&left, 0, square, window, m->window);
  m->kernels->left_matmul(w, &left, 0, NULL, false, y, y_stride);
}

static float attention_scale(const head *h) {
  return 1.0f / sqrtf((float)h->dim);
}

static void attention_forward(const ust_gpt2_train *m, const ust_kept *kept, int item) {
  ust_gpt2_scratch *s = ust_gpt2_scratch_of(m);
  head h = head_of(m, kept->qkv, item);
  attention_matrix(m, &h, attention_scale(&h), s);
  square_product(m, s->square, false, pack_head(m, h.v, h.stride, h.dim, true),
                 head_output(m, &h, kept->attention, item), (size_t)h.width);
}

/* With P the softmax, o = P v, S = q k^T scale:
 * dv = P^T do, dP = do v^T, dS = scale P (dP - rowsum(P dP)), dq = dS k, dk = dS^T q */
static void attention_backward(const ust_gpt2_train *m, const ust_kept *kept, int item) {
  ust_gpt2_scratch *s = ust_gpt2_scratch_of(m);
  head h = head_of(m, kept->qkv, item), d = head_of(m, m->d_qkv, item);
  const float *d_out = head_output(m, &h, m->d_attention, item);
  float scale = attention_scale(&h);
  attention_matrix(m, &h, scale, s);
  square_product(m, s->square, true, pack_head(m, d_out, (size_t)h.width, h.dim, true), d.v, d.stride);
  causal_product(m, pack_head(m, h.v, h.stride, h.dim, false), d_out, (size_t)h.width, s->square2);
  for (int i = 0; i < m->window; i++) {
    size_t row = (size_t)i * (size_t)m->window;
    m->kernels->softmax_backward(s->square + row, s->square2 + row, i + 1, m->window, scale);
  }
  square_product(m, s->square2, true, pack_head(m, h.q, h.stride, h.dim, true), d.k, d.stride);
  square_product(m, s->square2, false, pack_head(m, h.k, h.stride, h.dim, true), d.q, d.stride);
}

/* ---- forward ---- */

static void embed(const ust_gpt2_train *m, float *x) {
  size_t w = (size_t)m->config.width;
  const float *tokens = ust_gpt2_value(m, UST_TOKENS), *positions = ust_gpt2_value(m, UST_POSITIONS);
#pragma omp for
  for (int t = 0; t < m->tokens; t++) {
    memcpy(x + t * w, tokens + m->ids[t] * w, w * sizeof *x);
    m->kernels->add(positions + m->positions[t] * w, x + t * w, w);
  }
}

/* output[rows, width] = middle + bias + gelu(norm2 up^T + bias) down^T, features a few columns at a time */
static void features_forward(const ust_gpt2_train *m, int l, int first, int rows, float *output) {
  const ust_kept *kept = &m->kept[l];
  const ust_packed *up = &ust_gpt2_linear(m, l, UST_UP)->forward, *down = &ust_gpt2_linear(m, l, UST_DOWN)->forward;
  const float *up_bias = ust_gpt2_value(m, ust_gpt2_layer(l, UST_UP_BIAS));
  ust_gpt2_scratch *s = ust_gpt2_scratch_of(m);
  int w = m->config.width, f = m->config.feed_forward;
  size_t narrow = (size_t)first * (size_t)w;
  ust_left read = left_rows(m, kept->norm2 + narrow, w, rows, s->rows);
  ust_left features = {.data = s->features, .rows = rows, .inputs = f};
  for (int at = 0; at < f; at += UST_TRAIN_COLUMNS) {
    int count = UST_MIN(UST_TRAIN_COLUMNS, f - at);
    float *values = kept->up + (size_t)first * (size_t)f + at;
    ust_gpt2_multiply(m, up, at, count, &read, up_bias + at, false, values, (size_t)f);
    for (int r = 0; r < rows; r++)
      m->kernels->gelu(values + (size_t)r * (size_t)f, s->wide + (size_t)r * (size_t)count, (size_t)count);
    m->kernels->left_pack(&features, at, s->wide, (size_t)count, count);
  }
  add_bias(m, kept->middle + narrow, ust_gpt2_value(m, ust_gpt2_layer(l, UST_DOWN_BIAS)), rows, w, output);
  ust_gpt2_multiply(m, down, 0, w, &features, NULL, true, output, (size_t)w);
}

/* Everything of a layer after attention, for a block of rows. */
static void feed_forward_rows(const ust_gpt2_train *m, int l, int first, float *output) {
  const ust_kept *kept = &m->kept[l];
  size_t at = (size_t)first * (size_t)m->config.width;
  int rows = ust_gpt2_block_rows(m, first);
  add_bias(m, kept->input + at, ust_gpt2_value(m, ust_gpt2_layer(l, UST_OUT_BIAS)), rows, m->config.width,
           kept->middle + at);
  linear_rows(m, &ust_gpt2_linear(m, l, UST_OUT)->forward, kept->attention + at, rows, NULL, true, kept->middle + at);
  norm_rows(m, kept->middle + at, ust_gpt2_layer(l, UST_NORM2_GAIN), rows, kept->norm2 + at, kept->mean2 + first,
            kept->rstd2 + first);
  features_forward(m, l, first, rows, output + at);
}

static void layer_forward(const ust_gpt2_train *m, int l) {
  const ust_kept *kept = &m->kept[l];
  float *output = l + 1 < m->config.layers ? m->kept[l + 1].input : m->last;
  size_t w = (size_t)m->config.width;
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    int first = b * UST_TRAIN_ROWS, rows = ust_gpt2_block_rows(m, first);
    norm_rows(m, kept->input + first * w, ust_gpt2_layer(l, UST_NORM1_GAIN), rows, kept->norm1 + first * w,
              kept->mean1 + first, kept->rstd1 + first);
    linear_rows(m, &ust_gpt2_linear(m, l, UST_QKV)->forward, kept->norm1 + first * w, rows,
                ust_gpt2_value(m, ust_gpt2_layer(l, UST_QKV_BIAS)), false, kept->qkv + first * 3 * w);
  }
#pragma omp for schedule(dynamic)
  for (int i = 0; i < m->sequences * m->config.heads; i++) attention_forward(m, kept, i);
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) feed_forward_rows(m, l, b * UST_TRAIN_ROWS, output);
}

void ust_gpt2_train_start(ust_gpt2_train *m, const int32_t *ids, const int32_t *positions, int sequences) {
  m->sequences = sequences;
  m->tokens = sequences * m->window;
  memcpy(m->ids, ids, (size_t)m->tokens * sizeof *ids);
  memcpy(m->positions, positions, (size_t)m->tokens * sizeof *positions);
  m->last_rows.rows = m->tokens;
#pragma omp parallel num_threads(m->threads)
  embed(m, m->kept[0].input);
}

void ust_gpt2_train_layer(ust_gpt2_train *m, int layer) {
#pragma omp parallel num_threads(m->threads)
  {
    layer_forward(m, layer);
    m->kernels->release();
  }
}

void ust_gpt2_train_norm(ust_gpt2_train *m, int gain) {
  size_t w = (size_t)m->config.width;
#pragma omp parallel for schedule(dynamic) num_threads(m->threads)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    int first = b * UST_TRAIN_ROWS, rows = ust_gpt2_block_rows(m, first);
    norm_rows(m, m->last + first * w, gain, rows, m->last_norm + first * w, m->last_mean + first, m->last_rstd + first);
    ust_left block = ust_left_from(m->kernels, &m->last_rows, first, rows);
    m->kernels->left_pack(&block, 0, m->last_norm + first * w, w, (int)w);
  }
}

void ust_gpt2_train_forward(ust_gpt2_train *m, const int32_t *ids, const int32_t *positions, int sequences) {
  ust_gpt2_train_start(m, ids, positions, sequences);
  for (int l = 0; l < m->config.layers; l++) ust_gpt2_train_layer(m, l);
  ust_gpt2_train_norm(m, ust_gpt2_layer(m->config.layers, 0));
}

/* ---- backward ---- */

void ust_gpt2_gradient_start(ust_gpt2_train *m, ust_product_gradient *g, int outputs) {
#pragma omp single
  {
    g->dy.rows = outputs;
    g->dy.inputs = g->x.whole.cols = m->tokens;
  }
}

void ust_gpt2_gradient_take_x(const ust_gpt2_train *m, const ust_product_gradient *g, int first, int rows, int at,
                              int count, const float *x, size_t stride) {
  for (int r = 0; r < rows; r += g->x.piece) {
    ust_matrix part = ust_gpt2_part(m, &g->x, at, count, first + r);
    m->kernels->pack_inputs(&part, 0, x + (size_t)r * stride, stride, UST_MIN(g->x.piece, rows - r));
  }
}

/* Columns of dy likewise, and their sums. */
static void take_dy(const ust_gpt2_train *m, const ust_product_gradient *g, int first, int rows, int at, int count,
                    const float *dy, size_t stride) {
  ust_left part = ust_left_from(m->kernels, &g->dy, at, count);
  float *bias = g->bias + (size_t)(first / UST_TRAIN_ROWS) * (size_t)g->dy.rows + at;
  m->kernels->left_pack_transposed(&part, first, dy, stride, rows);
  memset(bias, 0, (size_t)count * sizeof *bias);
  for (int r = 0; r < rows; r++) m->kernels->add(dy + (size_t)r * stride, bias, (size_t)count);
}

/* By all threads: dw[outputs, inputs] += dy^T x, dbias[outputs] += column sums of dy. A thread makes whole blocks of
 * dw: the sum over tokens is one thread's, in their order. */
static void gradient_add(const ust_gpt2_train *m, const ust_product_gradient *g, float *dw, float *dbias) {
  int outputs = g->dy.rows, inputs = g->x.whole.rows;
  int high = ust_gpt2_even(outputs, UST_TRAIN_GRADIENT_ROWS), wide = ust_gpt2_even(inputs, UST_TRAIN_COLUMNS);
#pragma omp for schedule(dynamic) collapse(2) nowait
  for (int row = 0; row < outputs; row += high)
    for (int at = 0; at < inputs; at += wide) {
      ust_left dy = ust_left_from(m->kernels, &g->dy, row, UST_MIN(high, outputs - row));
      ust_gpt2_multiply(m, &g->x, at, UST_MIN(wide, inputs - at), &dy, NULL, true,
                        dw + (size_t)row * (size_t)inputs + at, (size_t)inputs);
    }
#pragma omp single
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++)
    m->kernels->add(g->bias + (size_t)b * (size_t)outputs, dbias, (size_t)outputs);
}

void ust_gpt2_norm_backward(ust_gpt2_train *m, const float *x, const float *mean, const float *rstd, int gain) {
  size_t w = (size_t)m->config.width;
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    float *dgain = m->d_norm_partial + (size_t)b * 2 * w, *dbias = dgain + w;
    memset(dgain, 0, 2 * w * sizeof *dgain);
    for (int t = b * UST_TRAIN_ROWS; t < b * UST_TRAIN_ROWS + ust_gpt2_block_rows(m, b * UST_TRAIN_ROWS); t++)
      m->kernels->layer_norm_backward(x + t * w, ust_gpt2_value(m, gain), mean[t], rstd[t], m->d_norm + t * w, (int)w,
                                      m->d_stream + t * w, dgain, dbias);
  }
#pragma omp single
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    m->kernels->add(m->d_norm_partial + (size_t)b * 2 * w, ust_gpt2_gradient(m, gain), w);
    m->kernels->add(m->d_norm_partial + (size_t)b * 2 * w + w, ust_gpt2_gradient(m, gain + 1), w);
  }
}

/* By all threads: of the layer y = x w^T, with dy [tokens, out] and x [tokens, width]: dx = dy w, and the gradients of
 * the matrix `tensor` and of the bias behind it. */
static void linear_backward(ust_gpt2_train *m, int l, int tensor, const float *dy, const float *x, float *dx) {
  const ust_packed *w = &ust_gpt2_linear(m, l, tensor)->backward;
  int inputs = w->whole.rows, outputs = w->whole.cols;
  size_t in = (size_t)inputs, out = (size_t)outputs;
  ust_product_gradient *g = &m->from_width;
  ust_gpt2_gradient_start(m, g, outputs);
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    int first = b * UST_TRAIN_ROWS, rows = ust_gpt2_block_rows(m, first);
    linear_rows(m, w, dy + first * out, rows, NULL, false, dx + first * in);
    take_dy(m, g, first, rows, 0, outputs, dy + first * out, out);
    ust_gpt2_gradient_take_x(m, g, first, rows, 0, inputs, x + first * in, in);
  }
  gradient_add(m, g, ust_gpt2_gradient(m, ust_gpt2_layer(l, tensor)),
               ust_gpt2_gradient(m, ust_gpt2_layer(l, tensor + 1)));
}

/* A block of rows of features_forward() backwards: d_norm, and the operands of both matrices' gradients. */
static void features_backward_rows(ust_gpt2_train *m, int l, int first) {
  const ust_kept *kept = &m->kept[l];
  const ust_packed *up = &ust_gpt2_linear(m, l, UST_UP)->backward, *down = &ust_gpt2_linear(m, l, UST_DOWN)->backward;
  ust_gpt2_scratch *s = ust_gpt2_scratch_of(m);
  int w = m->config.width, f = m->config.feed_forward, rows = ust_gpt2_block_rows(m, first);
  size_t narrow = (size_t)first * (size_t)w;
  ust_left given = left_rows(m, m->d_stream + narrow, w, rows, s->rows);
  ust_left d_up = {.data = s->features, .rows = rows, .inputs = f};
  take_dy(m, &m->from_features, first, rows, 0, w, m->d_stream + narrow, (size_t)w);
  ust_gpt2_gradient_take_x(m, &m->from_width, first, rows, 0, w, kept->norm2 + narrow, (size_t)w);
  for (int at = 0; at < f; at += UST_TRAIN_COLUMNS) {
    int count = UST_MIN(UST_TRAIN_COLUMNS, f - at);
    size_t stride = (size_t)count;
    ust_gpt2_multiply(m, down, at, count, &given, NULL, false, s->wide, stride);
    for (int r = 0; r < rows; r++) {
      float *d = s->wide + (size_t)r * stride, *features = s->wide2 + (size_t)r * stride;
      m->kernels->gelu_backward(kept->up + (size_t)(first + r) * (size_t)f + at, d, d, features, stride);
    }
    m->kernels->left_pack(&d_up, at, s->wide, stride, count);
    take_dy(m, &m->from_width, first, rows, at, count, s->wide, stride);
    ust_gpt2_gradient_take_x(m, &m->from_features, first, rows, at, count, s->wide2, stride);
  }
  ust_gpt2_multiply(m, up, 0, w, &d_up, NULL, false, m->d_norm + narrow, (size_t)w);
}

static void features_backward(ust_gpt2_train *m, int l) {
  ust_gpt2_gradient_start(m, &m->from_width, m->config.feed_forward);
  ust_gpt2_gradient_start(m, &m->from_features, m->config.width);
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) features_backward_rows(m, l, b * UST_TRAIN_ROWS);
  gradient_add(m, &m->from_features, ust_gpt2_gradient(m, ust_gpt2_layer(l, UST_DOWN)),
               ust_gpt2_gradient(m, ust_gpt2_layer(l, UST_DOWN_BIAS)));
  gradient_add(m, &m->from_width, ust_gpt2_gradient(m, ust_gpt2_layer(l, UST_UP)),
               ust_gpt2_gradient(m, ust_gpt2_layer(l, UST_UP_BIAS)));
}

static void layer_backward(ust_gpt2_train *m, int l) {
  const ust_kept *kept = &m->kept[l];
  features_backward(m, l);
  ust_gpt2_norm_backward(m, kept->middle, kept->mean2, kept->rstd2, ust_gpt2_layer(l, UST_NORM2_GAIN));
  linear_backward(m, l, UST_OUT, m->d_stream, kept->attention, m->d_attention);
#pragma omp for schedule(dynamic)
  for (int i = 0; i < m->sequences * m->config.heads; i++) attention_backward(m, kept, i);
  linear_backward(m, l, UST_QKV, m->d_qkv, kept->norm1, m->d_norm);
  ust_gpt2_norm_backward(m, kept->input, kept->mean1, kept->rstd1, ust_gpt2_layer(l, UST_NORM1_GAIN));
}

void ust_gpt2_layers_backward(ust_gpt2_train *m) {
  size_t w = (size_t)m->config.width;
  for (int l = m->config.layers - 1; l >= 0; l--) layer_backward(m, l);
#pragma omp single
  for (int t = 0; t < m->tokens; t++) {
    m->kernels->add(m->d_stream + t * w, ust_gpt2_gradient(m, UST_TOKENS) + m->ids[t] * w, w);
    m->kernels->add(m->d_stream + t * w, ust_gpt2_gradient(m, UST_POSITIONS) + m->positions[t] * w, w);
  }
}
