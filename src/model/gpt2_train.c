/* gpt2_train: the parameters of a GPT-2 being trained, their packed forms and the memory of a micro-batch. */
#include <omp.h>
#include <stdlib.h>

#include "model/gpt2_train.h"

/* ---- parameters ---- */

static void name_parameter(ust_gpt2_train *m, int index, int layer, const char *name, int rows, int cols) {
  ust_parameter *p = &m->parameters[index];
  if (layer < 0)
    snprintf(p->name, sizeof p->name, "%s", name);
  else
    snprintf(p->name, sizeof p->name, "blk.%d.%s", layer, name);
  p->rows = rows;
  p->cols = cols;
  p->matrix = rows > 1;
  p->offset = m->size;
  m->size += UST_ROUND_UP((size_t)rows * (size_t)cols, 16);
}

static void name_parameters(ust_gpt2_train *m) {
  const ust_config *c = &m->config;
  int w = c->width, f = c->feed_forward;
  const struct {
    const char *name;
    int rows, cols;
  } layer[UST_LAYER_TENSORS] = {
      {"attn_norm.weight", 1, w},  {"attn_norm.bias", 1, w},     {"attn_qkv.weight", 3 * w, w},
      {"attn_qkv.bias", 1, 3 * w}, {"attn_output.weight", w, w}, {"attn_output.bias", 1, w},
      {"ffn_norm.weight", 1, w},   {"ffn_norm.bias", 1, w},      {"ffn_up.weight", f, w},
      {"ffn_up.bias", 1, f},       {"ffn_down.weight", w, f},    {"ffn_down.bias", 1, w},
  };
  name_parameter(m, UST_TOKENS, -1, "token_embd.weight", c->vocabulary, w);
  name_parameter(m, UST_POSITIONS, -1, "position_embd.weight", c->context, w);
  for (int l = 0; l < c->layers; l++)
    for (int t = 0; t < UST_LAYER_TENSORS; t++)
      name_parameter(m, ust_gpt2_layer(l, t), l, layer[t].name, layer[t].rows, layer[t].cols);
  name_parameter(m, ust_gpt2_layer(c->layers, 0), -1, "output_norm.weight", 1, w);
  name_parameter(m, ust_gpt2_layer(c->layers, 1), -1, "output_norm.bias", 1, w);
}

/* ---- memory ---- */

/* Sticky: after a failure `failed` is set and every further call returns NULL. */
typedef struct allocator {
  ust_gpt2_train *m;
  size_t failed;
} allocator;

static void *take(allocator *a, size_t bytes) {
  if (a->failed) return NULL;
  void **grown = realloc(a->m->blocks, (size_t)(a->m->block_count + 1) * sizeof *grown);
  if (grown) a->m->blocks = grown;
  void *memory = grown ? ust_alloc(bytes) : NULL;
  if (memory)
    a->m->blocks[a->m->block_count++] = memory;
  else
    a->failed = bytes;
  return memory;
}

static float *take_floats(allocator *a, size_t rows, size_t cols) {
  return take(a, rows * cols * sizeof(float));
}

static void take_matrix(allocator *a, ust_matrix *matrix, int rows, int cols) {
  matrix->format = a->m->format;
  matrix->rows = rows;
  matrix->cols = cols;
  matrix->bytes = a->m->kernels->matrix_bytes(matrix->format, rows, cols);
  matrix->data = take(a, matrix->bytes);
}

static void take_packed(allocator *a, ust_packed *packed, int rows, int cols, int piece) {
  take_matrix(a, &packed->whole, rows, cols);
  packed->piece = piece;
}

static void take_linear(allocator *a, ust_linear *linear, int rows, int cols) {
  take_packed(a, &linear->forward, rows, cols, UST_TRAIN_PIECE);
  if (a->m->trains) take_packed(a, &linear->backward, cols, rows, UST_TRAIN_PIECE);
}

static void take_weights(allocator *a) {
  ust_gpt2_train *m = a->m;
  const ust_config *c = &m->config;
  m->values = take_floats(a, m->size, 1);
  if (m->trains) m->gradients = take_floats(a, m->size, 1);
  int blocks = (c->vocabulary + UST_TRAIN_VOCAB - 1) / UST_TRAIN_VOCAB;
  m->linears = take(a, (size_t)c->layers * 4 * sizeof *m->linears);
  m->vocabulary = take(a, (size_t)blocks * sizeof *m->vocabulary);
  m->candidate = take(a, (size_t)c->vocabulary * sizeof *m->candidate);
  m->candidate_log = take_floats(a, (size_t)blocks, UST_TRAIN_VOCAB);
  m->place = take(a, (size_t)c->vocabulary * sizeof *m->place);
  if (a->failed) return;
  for (int l = 0; l < c->layers; l++) {
    take_linear(a, ust_gpt2_linear(m, l, UST_QKV), 3 * c->width, c->width);
    take_linear(a, ust_gpt2_linear(m, l, UST_OUT), c->width, c->width);
    take_linear(a, ust_gpt2_linear(m, l, UST_UP), c->feed_forward, c->width);
    take_linear(a, ust_gpt2_linear(m, l, UST_DOWN), c->width, c->feed_forward);
  }
  for (int b = 0; b < blocks; b++) {
    int rows = UST_MIN(UST_TRAIN_VOCAB, c->vocabulary - b * UST_TRAIN_VOCAB);
    take_linear(a, &m->vocabulary[b], UST_ROUND_UP(rows, UST_PANEL), c->width);
  }
}

static void take_kept(allocator *a, ust_kept *kept, size_t tokens) {
  const ust_config *c = &a->m->config;
  size_t w = (size_t)c->width, f = (size_t)c->feed_forward;
  kept->input = take_floats(a, tokens, w);
  kept->norm1 = take_floats(a, tokens, w);
  kept->mean1 = take_floats(a, tokens, 1);
  kept->rstd1 = take_floats(a, tokens, 1);
  kept->qkv = take_floats(a, tokens, 3 * w);
  kept->attention = take_floats(a, tokens, w);
  kept->middle = take_floats(a, tokens, w);
  kept->norm2 = take_floats(a, tokens, w);
  kept->mean2 = take_floats(a, tokens, 1);
  kept->rstd2 = take_floats(a, tokens, 1);
  kept->up = take_floats(a, tokens, f);
}

static void take_gradient(allocator *a, ust_product_gradient *g, int outputs, int inputs, size_t tokens) {
  size_t row_blocks = (tokens + UST_TRAIN_ROWS - 1) / UST_TRAIN_ROWS;
  g->dy.data = take(a, (size_t)outputs * tokens * a->m->kernels->activation_size);
  take_packed(a, &g->x, inputs, (int)tokens, UST_TRAIN_TOKENS);
  g->bias = take_floats(a, row_blocks, (size_t)outputs);
}

static void take_backward(allocator *a, size_t tokens) {
  ust_gpt2_train *m = a->m;
  size_t w = (size_t)m->config.width, row_blocks = (tokens + UST_TRAIN_ROWS - 1) / UST_TRAIN_ROWS;
  int width = m->config.width, features = m->config.feed_forward;
  m->d_stream = take_floats(a, tokens, w);
  m->d_norm = take_floats(a, tokens, w);
  m->d_qkv = take_floats(a, tokens, 3 * w);
  m->d_attention = take_floats(a, tokens, w);
  m->d_norm_partial = take_floats(a, row_blocks, 2 * w);
  take_gradient(a, &m->from_width, UST_MAX(UST_MAX(features, 3 * width), UST_TRAIN_VOCAB), width, tokens);
  take_gradient(a, &m->from_features, width, features, tokens);
}

static void take_scratch(allocator *a, ust_gpt2_scratch *s) {
  const ust_gpt2_train *m = a->m;
  const ust_config *c = &m->config;
  size_t widest = (size_t)UST_MAX(3 * c->width, UST_TRAIN_VOCAB), logits = UST_MAX(UST_TRAIN_LOGITS, UST_TRAIN_COLUMNS);
  size_t element = m->kernels->activation_size, window = (size_t)m->window;
  int head_dim = c->width / c->heads;
  s->wide = take_floats(a, 1, UST_MAX(UST_TRAIN_ROWS * logits, UST_TRAIN_VOCAB * (size_t)c->width));
  s->wide2 = take_floats(a, UST_TRAIN_ROWS, logits);
  s->rows = take(a, UST_TRAIN_ROWS * widest * element);
  s->features = take(a, UST_TRAIN_ROWS * (size_t)c->feed_forward * element);
  s->square = take_floats(a, window, window);
  s->square2 = take_floats(a, window, window);
  s->head_rows = take(a, window * (size_t)head_dim * element);
  s->square_rows = take(a, window * window * element);
  size_t by_slots = m->kernels->matrix_bytes(m->format, m->window, head_dim);
  size_t by_dims = m->kernels->matrix_bytes(m->format, head_dim, m->window);
  s->matrix.format = m->format;
  s->matrix.bytes = UST_MAX(by_slots, by_dims);
  s->matrix.data = take(a, s->matrix.bytes);
}

static void take_batch(allocator *a) {
  ust_gpt2_train *m = a->m;
  size_t tokens = (size_t)m->window * (size_t)m->max_sequences, w = (size_t)m->config.width;
  m->ids = take(a, tokens * sizeof *m->ids);
  m->positions = take(a, tokens * sizeof *m->positions);
  m->kept = take(a, (size_t)m->config.layers * sizeof *m->kept);
  if (a->failed) return;
  for (int l = 0; l < m->config.layers; l++)
    if (m->trains || l == 0)
      take_kept(a, &m->kept[l], tokens);
    else
      m->kept[l] = m->kept[0];
  m->last = m->trains ? take_floats(a, tokens, w) : m->kept[0].input;
  m->last_norm = take_floats(a, tokens, w);
  m->last_mean = take_floats(a, tokens, 1);
  m->last_rstd = take_floats(a, tokens, 1);
  m->last_rows.data = take(a, tokens * w * m->kernels->activation_size);
  m->last_rows.inputs = m->config.width;
  m->log_sum = take_floats(a, tokens, 1);
  m->loss = take_floats(a, tokens, 1);
  m->kl = take_floats(a, tokens, 1);
  if (m->trains) take_backward(a, tokens);
  m->scratch = take(a, (size_t)m->threads * sizeof *m->scratch);
  if (a->failed) return;
  for (int t = 0; t < m->threads; t++) take_scratch(a, &m->scratch[t]);
}

/* ---- create ---- */

static understudy_status check_shape(const ust_config *c, int window, understudy_error *err) {
  const struct {
    const char *name;
    int value;
  } divisible[] = {{"width", c->width},
                   {"feed-forward width", c->feed_forward},
                   {"head size", c->heads > 0 ? c->width / c->heads : 0},
                   {"window", window}};
  if (c->heads > 0 && c->width % c->heads != 0)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT,
                     "training a model of width %d: found %d heads, expected a divisor of the width", c->width,
                     c->heads);
  for (size_t i = 0; i < sizeof divisible / sizeof *divisible; i++)
    if (divisible[i].value <= 0 || divisible[i].value % 32 != 0)
      return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT,
                       "training a model of width %d with %d heads: %s is %d, expected a multiple of 32", c->width,
                       c->heads, divisible[i].name, divisible[i].value);
  if (c->vocabulary < 2 || c->layers < 1 || window > c->context)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT,
                     "training: vocabulary %d, layers %d, context %d, expected at least 2, 1 and %d", c->vocabulary,
                     c->layers, c->context, window);
  return UNDERSTUDY_OK;
}

understudy_status ust_gpt2_train_create(const ust_config *config, const ust_kernels *kernels, ust_format format,
                                        int window, int max_sequences, int threads, bool trains, ust_gpt2_train **model,
                                        understudy_error *err) {
  *model = NULL;
  UST_TRY(check_shape(config, window, err));
  ust_gpt2_train *m = calloc(1, sizeof *m);
  if (!m) return ust_error_memory(err, sizeof *m, "training");
  m->config = *config;
  m->kernels = kernels;
  m->format = format;
  m->window = window;
  m->max_sequences = max_sequences;
  m->threads = threads;
  m->trains = trains;
  m->parameter_count = ust_gpt2_layer(config->layers, 2);
  allocator a = {.m = m};
  m->parameters = take(&a, (size_t)m->parameter_count * sizeof *m->parameters);
  if (!a.failed) {
    name_parameters(m);
    take_weights(&a);
  }
  if (!a.failed) take_batch(&a);
  if (a.failed) {
    ust_gpt2_train_free(m);
    return ust_error_memory(err, a.failed, "training");
  }
  *model = m;
  return UNDERSTUDY_OK;
}

void ust_gpt2_train_free(ust_gpt2_train *model) {
  if (!model) return;
  for (int i = 0; i < model->block_count; i++) ust_free(model->blocks[i]);
  free(model->blocks);
  free(model);
}

/* ---- packing ---- */

/* A matrix, forward or backward, from f32 [rows, cols]. */
static void pack_linear(const ust_gpt2_train *m, const ust_linear *linear, const float *source, bool backward) {
  const ust_packed *to = backward ? &linear->backward : &linear->forward;
  size_t cols = (size_t)linear->forward.whole.cols;
  for (int input = 0; input < to->whole.cols; input += to->piece) {
    ust_matrix part = ust_gpt2_part(m, to, 0, to->whole.rows, input);
    if (backward)
      m->kernels->pack_inputs(&part, 0, source + (size_t)input * cols, cols, part.cols);
    else
      m->kernels->pack(&part, 0, part.rows, source + input, cols, 1);
  }
}

void ust_gpt2_train_pack(ust_gpt2_train *m) {
  static const int tensors[4] = {UST_QKV, UST_OUT, UST_UP, UST_DOWN};
  int ways = m->trains ? 2 : 1;
#pragma omp parallel for schedule(dynamic) num_threads(m->threads)
  for (int i = 0; i < m->config.layers * 4 * ways; i++) {
    int layer = i / ways / 4, tensor = tensors[i / ways % 4];
    pack_linear(m, ust_gpt2_linear(m, layer, tensor), ust_gpt2_value(m, ust_gpt2_layer(layer, tensor)), i % ways);
  }
}

static void list_candidates(ust_gpt2_train *m, const int32_t *ids, const float *logs, int count) {
  m->candidates = ids ? count : m->config.vocabulary;
  m->vocabulary_blocks = (m->candidates + UST_TRAIN_VOCAB - 1) / UST_TRAIN_VOCAB;
  for (int t = 0; t < m->config.vocabulary; t++) m->place[t] = -1;
  for (int i = 0; i < m->candidates; i++) {
    m->candidate[i] = ids ? ids[i] : i;
    m->candidate_log[i] = logs ? logs[i] : 0;
    m->place[m->candidate[i]] = i;
  }
}

/* Rows of the token matrix side by side, zeros behind, and packed both ways. */
static void pack_candidates(const ust_gpt2_train *m, int block) {
  ust_linear *linear = &m->vocabulary[block];
  float *rows = m->scratch[omp_get_thread_num()].wide;
  size_t w = (size_t)m->config.width;
  int first = block * UST_TRAIN_VOCAB, count = UST_MIN(UST_TRAIN_VOCAB, m->candidates - first);
  linear->forward.whole.rows = linear->backward.whole.cols = UST_ROUND_UP(count, UST_PANEL);
  for (int i = 0; i < linear->forward.whole.rows; i++)
    if (i < count)
      memcpy(rows + (size_t)i * w, ust_gpt2_value(m, UST_TOKENS) + (size_t)m->candidate[first + i] * w,
             w * sizeof *rows);
    else
      memset(rows + (size_t)i * w, 0, w * sizeof *rows);
  for (int way = 0; way < (m->trains ? 2 : 1); way++) pack_linear(m, linear, rows, way);
}

void ust_gpt2_train_candidates(ust_gpt2_train *m, const int32_t *ids, const float *logs, int count) {
  list_candidates(m, ids, logs, count);
#pragma omp parallel for schedule(dynamic) num_threads(m->threads)
  for (int b = 0; b < m->vocabulary_blocks; b++) pack_candidates(m, b);
}
