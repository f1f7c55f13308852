/* gpt2_train: forward and backward pass of the embeddings, layers and norms.
 *
 * One parallel region a layer forward, one for the whole way back; within it, work items are blocks of UST_TRAIN_ROWS
 * tokens (norms, linear layers), or a head of a sequence (attention, its matrices made anew in the backward pass from
 * queries and keys). */
#include <math.h>
#include <omp.h>

#include "model/gpt2_train.h"

static ust_gpt2_scratch *scratch_of(const ust_gpt2_train *m) {
  return &m->scratch[omp_get_thread_num()];
}
static int block_rows(const ust_gpt2_train *m, int first) {
  return UST_MIN(UST_TRAIN_ROWS, m->tokens - first);
}
static char *activation_at(const ust_gpt2_train *m, void *base, size_t element) {
  return (char *)base + element * m->kernels->activation_size;
}

/* x[rows, n] (rows `stride` apart) -> activations [rows, n], n a multiple of 32 */
static void convert_rows(const ust_gpt2_train *m, const float *x, size_t stride, int rows, int n, void *y) {
  for (int r = 0; r < rows; r++)
    m->kernels->convert(x + (size_t)r * stride, n, activation_at(m, y, (size_t)r * (size_t)n));
}

/* y[rows, w->rows] = x[rows, w->cols] w^T + bias */
static void linear_rows(const ust_gpt2_train *m, const ust_matrix *w, const float *x, int rows, const float *bias,
                        ust_epilogue epilogue, float *y) {
  ust_left left = {.data = scratch_of(m)->rows, .rows = rows, .inputs = w->cols};
  m->kernels->left_pack(&left, 0, x, (size_t)w->cols, rows);
  m->kernels->left_matmul(w, 0, ust_gpt2_panels(w), &left, 0, rows, bias, epilogue, y, (size_t)w->rows);
}

static void norm_rows(const ust_gpt2_train *m, const float *x, int gain, int rows, float *y, float *mean, float *rstd) {
  int w = m->config.width;
  for (int r = 0; r < rows; r++)
    m->kernels->layer_norm_train(x + (size_t)r * w, ust_gpt2_value(m, gain), ust_gpt2_value(m, gain + 1), w,
                                 m->config.norm_epsilon, y + (size_t)r * w, mean + r, rstd + r);
}

/* ---- attention ---- */

typedef struct head {
  int dim, width;
  size_t qkv_stride;
  float scale;
  const float *q, *k, *v; /* rows qkv_stride apart */
} head;

static head head_of(const ust_gpt2_train *m, const float *qkv, int item) {
  int dim = m->config.width / m->config.heads, sequence = item / m->config.heads, index = item % m->config.heads;
  size_t stride = 3 * (size_t)m->config.width;
  const float *q = qkv + (size_t)sequence * m->window * stride + (size_t)index * dim;
  return (head){.dim = dim,
                .width = m->config.width,
                .qkv_stride = stride,
                .scale = 1.0f / sqrtf((float)dim),
                .q = q,
                .k = q + m->config.width,
                .v = q + 2 * m->config.width};
}

/* Packs source[slots, dims] as it is (rows = slots) or transposed (rows = dims). */
static const ust_matrix *pack_head(const ust_gpt2_train *m, const float *source, size_t stride, int dims,
                                   bool transposed) {
  ust_matrix *matrix = &scratch_of(m)->matrix;
  matrix->rows = transposed ? dims : m->window;
  matrix->cols = transposed ? m->window : dims;
  m->kernels->pack(matrix, 0, matrix->rows, source, transposed ? 1 : stride, transposed ? stride : 1);
  return matrix;
}

/* y[window, window] = x[window, dims] w^T below the diagonal; above it, what a block of queries covers. */
static void causal_product(const ust_gpt2_train *m, const ust_matrix *w, const void *x, int dims, float *y) {
  for (int r = 0; r < m->window; r += UST_TRAIN_QUERIES) {
    int rows = UST_MIN(UST_TRAIN_QUERIES, m->window - r);
    m->kernels->matmul(w, 0, (r + rows + UST_PANEL - 1) / UST_PANEL,
                       activation_at(m, (void *)(uintptr_t)x, (size_t)r * (size_t)dims), (size_t)dims, rows, NULL,
                       UST_STORE, y + (size_t)r * m->window_stride, (size_t)m->window_stride);
  }
}

/* s->head = scaled queries, s->square = softmax(causal q k^T / sqrt(dim)) */
static void attention_matrix(const ust_gpt2_train *m, const head *h, ust_gpt2_scratch *s) {
  for (int i = 0; i < m->window; i++)
    for (int d = 0; d < h->dim; d++) s->head[(size_t)i * h->dim + d] = h->q[(size_t)i * h->qkv_stride + d] * h->scale;
  convert_rows(m, s->head, (size_t)h->dim, m->window, h->dim, s->head_rows);
  causal_product(m, pack_head(m, h->k, h->qkv_stride, h->dim, false), s->head_rows, h->dim, s->square);
  for (int i = 0; i < m->window; i++)
    m->kernels->softmax(s->square + (size_t)i * m->window_stride, i + 1, m->window_stride);
}

/* y[window, dims] = square x matrix^T with `square` [window, window], transposed on demand */
static void square_product(const ust_gpt2_train *m, const float *square, bool transposed, const ust_matrix *w, float *y,
                           size_t y_stride) {
  ust_gpt2_scratch *s = scratch_of(m);
  size_t stride = (size_t)m->window_stride;
  if (transposed)
    m->kernels->convert_transposed(square, stride, m->window, m->window, s->square_rows, stride);
  else
    convert_rows(m, square, stride, m->window, m->window_stride, s->square_rows);
  m->kernels->matmul(w, 0, ust_gpt2_panels(w), s->square_rows, stride, m->window, NULL, UST_STORE, y, y_stride);
}

static void attention_forward(const ust_gpt2_train *m, const ust_kept *kept, int item) {
  ust_gpt2_scratch *s = scratch_of(m);
  head h = head_of(m, kept->qkv, item);
  attention_matrix(m, &h, s);
  float *out = kept->attention + (size_t)(item / m->config.heads) * m->window * h.width +
               (size_t)(item % m->config.heads) * h.dim;
  square_product(m, s->square, false, pack_head(m, h.v, h.qkv_stride, h.dim, true), out, (size_t)h.width);
}

/* With P the softmax, o = P v, S = q k^T scale:
 * dv = P^T do, dP = do v^T, dS = P (dP - rowsum(P dP)), dq = scale dS k, dk = dS^T (scale q) */
static void attention_backward(const ust_gpt2_train *m, const ust_kept *kept, int item) {
  ust_gpt2_scratch *s = scratch_of(m);
  head h = head_of(m, kept->qkv, item), d = head_of(m, m->d_qkv, item);
  float *dq = (float *)(uintptr_t)d.q, *dk = dq + h.width, *dv = dk + h.width;
  const float *d_out = m->d_attention + (size_t)(item / m->config.heads) * m->window * h.width +
                       (size_t)(item % m->config.heads) * h.dim;
  attention_matrix(m, &h, s);
  square_product(m, s->square, true, pack_head(m, d_out, (size_t)h.width, h.dim, true), dv, h.qkv_stride);
  convert_rows(m, d_out, (size_t)h.width, m->window, h.dim, s->head_rows);
  causal_product(m, pack_head(m, h.v, h.qkv_stride, h.dim, false), s->head_rows, h.dim, s->square2);
  for (int i = 0; i < m->window; i++) {
    size_t row = (size_t)i * m->window_stride;
    m->kernels->softmax_backward(s->square + row, s->square2 + row, i + 1, m->window_stride);
  }
  square_product(m, s->square2, true, pack_head(m, s->head, (size_t)h.dim, h.dim, true), dk, h.qkv_stride);
  square_product(m, s->square2, false, pack_head(m, h.k, h.qkv_stride, h.dim, true), dq, h.qkv_stride);
  for (int i = 0; i < m->window; i++)
    for (int j = 0; j < h.dim; j++) dq[(size_t)i * h.qkv_stride + j] *= h.scale;
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

/* Everything of a layer after attention, for a block of rows. */
static void feed_forward_rows(const ust_gpt2_train *m, int l, int first, float *output) {
  const ust_kept *kept = &m->kept[l];
  const ust_linear *linears = &m->linears[l * 4];
  size_t w = (size_t)m->config.width, f = (size_t)m->config.feed_forward, at = (size_t)first * w;
  int rows = block_rows(m, first);
  memcpy(kept->middle + at, kept->input + at, (size_t)rows * w * sizeof(float));
  linear_rows(m, &linears[1].forward, kept->attention + at, rows, ust_gpt2_value(m, ust_gpt2_layer(l, UST_OUT_BIAS)),
              UST_ADD, kept->middle + at);
  norm_rows(m, kept->middle + at, ust_gpt2_layer(l, UST_NORM2_GAIN), rows, kept->norm2 + at, kept->mean2 + first,
            kept->rstd2 + first);
  float *up = kept->up + (size_t)first * f, *gelu = kept->gelu + (size_t)first * f;
  linear_rows(m, &linears[2].forward, kept->norm2 + at, rows, ust_gpt2_value(m, ust_gpt2_layer(l, UST_UP_BIAS)),
              UST_STORE, up);
  m->kernels->gelu(up, gelu, (size_t)rows * f);
  memcpy(output + at, kept->middle + at, (size_t)rows * w * sizeof(float));
  linear_rows(m, &linears[3].forward, gelu, rows, ust_gpt2_value(m, ust_gpt2_layer(l, UST_DOWN_BIAS)), UST_ADD,
              output + at);
}

static void layer_forward(const ust_gpt2_train *m, int l) {
  const ust_kept *kept = &m->kept[l];
  float *output = l + 1 < m->config.layers ? m->kept[l + 1].input : m->last;
  size_t w = (size_t)m->config.width;
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    int first = b * UST_TRAIN_ROWS, rows = block_rows(m, first);
    norm_rows(m, kept->input + first * w, ust_gpt2_layer(l, UST_NORM1_GAIN), rows, kept->norm1 + first * w,
              kept->mean1 + first, kept->rstd1 + first);
    linear_rows(m, &m->linears[l * 4].forward, kept->norm1 + first * w, rows,
                ust_gpt2_value(m, ust_gpt2_layer(l, UST_QKV_BIAS)), UST_STORE, kept->qkv + first * 3 * w);
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
    int first = b * UST_TRAIN_ROWS, rows = block_rows(m, first);
    norm_rows(m, m->last + first * w, gain, rows, m->last_norm + first * w, m->last_mean + first, m->last_rstd + first);
    m->kernels->left_pack(&m->last_rows, first, m->last_norm + first * w, w, rows);
  }
}

void ust_gpt2_train_forward(ust_gpt2_train *m, const int32_t *ids, const int32_t *positions, int sequences) {
  ust_gpt2_train_start(m, ids, positions, sequences);
  for (int l = 0; l < m->config.layers; l++) ust_gpt2_train_layer(m, l);
  ust_gpt2_train_norm(m, ust_gpt2_layer(m->config.layers, 0));
}

/* ---- backward ---- */

/* Tensors of dW are cut into blocks of rows by panels, none along the tokens. */
void ust_gpt2_weight_gradient(ust_gpt2_train *m, const float *dy, int out, const float *x, int in, float *dw,
                              float *dbias) {
  const ust_kernels *k = m->kernels;
  int panels = in / UST_PANEL, blocks = (out + UST_TRAIN_GRADIENT_ROWS - 1) / UST_TRAIN_GRADIENT_ROWS;
  int share = UST_ROUND_UP((in + m->threads - 1) / m->threads, UST_PANEL);
#pragma omp single
  {
    m->inputs.rows = in;
    m->transposed.rows = out;
    m->inputs.cols = m->transposed.inputs = m->tokens;
  }
#pragma omp for schedule(dynamic) nowait
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    int first = b * UST_TRAIN_ROWS;
    k->left_pack_transposed(&m->transposed, first, dy + (size_t)first * out, (size_t)out, block_rows(m, first));
  }
#pragma omp for schedule(dynamic) nowait
  for (int first = 0; first < in; first += share)
    k->pack(&m->inputs, first, UST_MIN(share, in - first), x + first, 1, (size_t)in);
#pragma omp for schedule(dynamic)
  for (int first = 0; first < out; first += 256)
    for (int t = 0; t < m->tokens; t++)
      k->add(dy + (size_t)t * out + first, dbias + first, (size_t)UST_MIN(256, out - first));
#pragma omp for schedule(dynamic)
  for (int b = 0; b < blocks; b++) {
    int first = b * UST_TRAIN_GRADIENT_ROWS, rows = UST_MIN(UST_TRAIN_GRADIENT_ROWS, out - first);
    k->left_matmul(&m->inputs, 0, panels, &m->transposed, first, rows, NULL, UST_ADD, dw + (size_t)first * in,
                   (size_t)in);
  }
}

void ust_gpt2_norm_backward(ust_gpt2_train *m, const float *x, const float *mean, const float *rstd, int gain) {
  size_t w = (size_t)m->config.width;
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    float *dgain = m->d_norm_partial + (size_t)b * 2 * w, *dbias = dgain + w;
    memset(dgain, 0, 2 * w * sizeof *dgain);
    for (int t = b * UST_TRAIN_ROWS; t < b * UST_TRAIN_ROWS + block_rows(m, b * UST_TRAIN_ROWS); t++)
      m->kernels->layer_norm_backward(x + t * w, ust_gpt2_value(m, gain), mean[t], rstd[t], m->d_norm + t * w, (int)w,
                                      m->d_stream + t * w, dgain, dbias);
  }
#pragma omp single
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    m->kernels->add(m->d_norm_partial + (size_t)b * 2 * w, ust_gpt2_gradient(m, gain), w);
    m->kernels->add(m->d_norm_partial + (size_t)b * 2 * w + w, ust_gpt2_gradient(m, gain + 1), w);
  }
}

/* dx[tokens, in] = dy[tokens, out] w */
static void input_gradient(const ust_gpt2_train *m, const ust_linear *linear, const float *dy, float *dx) {
  size_t in = (size_t)linear->backward.rows, out = (size_t)linear->backward.cols;
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    int first = b * UST_TRAIN_ROWS;
    linear_rows(m, &linear->backward, dy + first * out, block_rows(m, first), NULL, UST_STORE, dx + first * in);
  }
}

static void layer_backward(ust_gpt2_train *m, int l) {
  const ust_kept *kept = &m->kept[l];
  const ust_linear *linears = &m->linears[l * 4];
  int w = m->config.width, f = m->config.feed_forward, base = ust_gpt2_layer(l, 0);
  float *gradient[UST_LAYER_TENSORS];
  for (int t = 0; t < UST_LAYER_TENSORS; t++) gradient[t] = ust_gpt2_gradient(m, base + t);

  ust_gpt2_weight_gradient(m, m->d_stream, w, kept->gelu, f, gradient[UST_DOWN], gradient[UST_DOWN_BIAS]);
#pragma omp for schedule(dynamic)
  for (int b = 0; b < ust_gpt2_row_blocks(m); b++) {
    int first = b * UST_TRAIN_ROWS, rows = block_rows(m, first);
    size_t wide = (size_t)first * f, narrow = (size_t)first * w;
    float *d_up = m->d_up + wide;
    linear_rows(m, &linears[3].backward, m->d_stream + narrow, rows, NULL, UST_STORE, d_up);
    m->kernels->gelu_backward(kept->up + wide, d_up, d_up, (size_t)rows * f);
    linear_rows(m, &linears[2].backward, d_up, rows, NULL, UST_STORE, m->d_norm + narrow);
  }
  ust_gpt2_weight_gradient(m, m->d_up, f, kept->norm2, w, gradient[UST_UP], gradient[UST_UP_BIAS]);
  ust_gpt2_norm_backward(m, kept->middle, kept->mean2, kept->rstd2, base + UST_NORM2_GAIN);

  ust_gpt2_weight_gradient(m, m->d_stream, w, kept->attention, w, gradient[UST_OUT], gradient[UST_OUT_BIAS]);
  input_gradient(m, &linears[1], m->d_stream, m->d_attention);
#pragma omp for schedule(dynamic)
  for (int i = 0; i < m->sequences * m->config.heads; i++) attention_backward(m, kept, i);
  ust_gpt2_weight_gradient(m, m->d_qkv, 3 * w, kept->norm1, w, gradient[UST_QKV], gradient[UST_QKV_BIAS]);
  input_gradient(m, &linears[0], m->d_qkv, m->d_norm);
  ust_gpt2_norm_backward(m, kept->input, kept->mean1, kept->rstd1, base + UST_NORM1_GAIN);
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
