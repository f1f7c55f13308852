/* The steps of a forward pass: embedding, layer norms and products. */
#include <omp.h>

#include "model/pass.h"

/* Most inputs of a quantised matrix. */
static int quantised_inputs(const ust_pass *pass) {
  int most = ust_is_quantised(pass->words->format) ? pass->words->cols : 0;
  for (int i = 0; i < pass->model->config.layers * UST_LAYER_MATRICES; i++) {
    const ust_matrix *matrix = &pass->layers[i / UST_LAYER_MATRICES].matrix[i % UST_LAYER_MATRICES];
    if (ust_is_quantised(matrix->format)) most = UST_MAX(most, matrix->cols);
  }
  return most;
}

static void *take(ust_pass *pass, size_t bytes) {
  pass->bytes += bytes;
  return ust_alloc(bytes);
}

bool ust_pass_init(ust_pass *pass, const ust_model *model, const ust_layer *layers, const ust_matrix *words, int rows,
                   int together, int slots) {
  const ust_kernels *kernels = model->kernels;
  const int head_dim = model->config.width / model->config.heads;
  *pass = (ust_pass){.model = model, .layers = layers, .words = words};
  const int inputs = quantised_inputs(pass);
  const size_t values = (size_t)rows * kernels->activation_size, width = (size_t)model->width_stride;
  pass->scratch_bytes = UST_ROUND_UP(kernels->attention_scratch(together, slots, head_dim), 64);
  pass->residual = take(pass, (size_t)rows * width * sizeof(float));
  pass->qkv = take(pass, (size_t)rows * (size_t)model->qkv_stride * sizeof(float));
  pass->norm = take(pass, values * width);
  pass->heads = take(pass, values * width);
  pass->hidden = take(pass, values * (size_t)model->hidden_stride);
  pass->integers = inputs ? take(pass, kernels->integers_bytes(rows, inputs)) : NULL;
  pass->scratch = take(pass, (size_t)model->threads * pass->scratch_bytes);
  return pass->residual && pass->qkv && pass->norm && pass->heads && pass->hidden && (pass->integers || !inputs) &&
         pass->scratch;
}

void ust_pass_free(ust_pass *pass) {
  void *const parts[] = {pass->residual, pass->qkv,      pass->norm,   pass->heads,
                         pass->hidden,   pass->integers, pass->scratch};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) ust_free(parts[i]);
}

ust_member ust_pass_enter(ust_pass *pass) {
  const int threads = omp_get_num_threads();
#pragma omp single
  ust_barrier_start(&pass->barrier, threads);
  return (ust_member){omp_get_thread_num(), threads};
}

static void linear(ust_pass *pass, const ust_matrix *w, const void *x, int x_stride, int rows, const float *bias,
                   ust_epilogue epilogue, void *y, int y_stride, ust_member me) {
  const ust_kernels *kernels = pass->model->kernels;
  const ust_share panels = ust_share_of(UST_ROUND_UP(w->rows, UST_PANEL) / UST_PANEL, me);
  if (ust_is_quantised(w->format)) {
    const ust_share own = ust_share_of(rows, me);
    kernels->integers(x, (size_t)x_stride, rows, w->cols, own.begin, own.end, pass->integers);
    ust_barrier_wait(&pass->barrier);
    x = pass->integers;
  }
  if (panels.begin < panels.end)
    kernels->matmul(w, panels.begin, panels.end, x, (size_t)x_stride, rows, bias, epilogue, y, (size_t)y_stride);
}

void ust_pass_embed(ust_pass *pass, const int32_t *tokens, const int32_t *keys, int rows, ust_member me) {
  const ust_model *m = pass->model;
  const int width = m->config.width;
  const ust_share own = ust_share_of(rows, me);
  for (int r = own.begin; r < own.end; r++) {
    float *x = pass->residual + (size_t)r * m->width_stride;
    const float *position = m->positions + (size_t)(keys[r] - 1) * width;
    m->kernels->unpack_row(&m->embedding, tokens[r], x);
    for (int i = 0; i < width; i++) x[i] += position[i];
  }
  ust_barrier_wait(&pass->barrier);
}

void ust_pass_normalise(ust_pass *pass, const float *gain, const float *bias, int rows, ust_member me) {
  const ust_model *m = pass->model;
  const size_t stride = (size_t)m->width_stride;
  const ust_share own = ust_share_of(rows, me);
  for (int r = own.begin; r < own.end; r++)
    m->kernels->layer_norm(pass->residual + (size_t)r * stride, gain, bias, m->config.width, m->config.norm_epsilon,
                           pass->norm + (size_t)r * stride * m->kernels->activation_size);
  ust_barrier_wait(&pass->barrier);
}

void ust_pass_before_attention(ust_pass *pass, int layer, int rows, ust_member me) {
  const ust_model *m = pass->model;
  const ust_layer *l = &pass->layers[layer];
  ust_pass_normalise(pass, l->norm1_gain, l->norm1_bias, rows, me);
  linear(pass, &l->matrix[UST_MATRIX_QKV], pass->norm, m->width_stride, rows, l->qkv_bias, UST_STORE, pass->qkv,
         m->qkv_stride, me);
  ust_barrier_wait(&pass->barrier);
}

void ust_pass_after_attention(ust_pass *pass, int layer, int rows, ust_member me) {
  const ust_model *m = pass->model;
  const ust_layer *l = &pass->layers[layer];
  const int width = m->width_stride, hidden = m->hidden_stride;
  ust_barrier_wait(&pass->barrier);
  linear(pass, &l->matrix[UST_MATRIX_OUTPUT], pass->heads, width, rows, l->output_bias, UST_ADD, pass->residual, width,
         me);
  ust_barrier_wait(&pass->barrier);
  ust_pass_normalise(pass, l->norm2_gain, l->norm2_bias, rows, me);
  linear(pass, &l->matrix[UST_MATRIX_UP], pass->norm, width, rows, l->up_bias, UST_GELU, pass->hidden, hidden, me);
  ust_barrier_wait(&pass->barrier);
  linear(pass, &l->matrix[UST_MATRIX_DOWN], pass->hidden, hidden, rows, l->down_bias, UST_ADD, pass->residual, width,
         me);
  ust_barrier_wait(&pass->barrier);
}

void ust_pass_words(ust_pass *pass, int rows, float *y, int y_stride, ust_member me) {
  linear(pass, pass->words, pass->norm, pass->model->width_stride, rows, NULL, UST_STORE, y, y_stride, me);
}
