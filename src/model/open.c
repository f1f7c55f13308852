/* Opening a GPT-2: every tensor is checked by name and shape before anything is read, and counted; then matrices are
 * packed for the kernel level into one block of memory, some rows at a time, by all threads. */
#include <omp.h>

#include "model/gpt2.h"

typedef struct loader {
  const ust_weights *weights;
  ust_model *model;
  understudy_progress_fn progress;
  void *user;
  uint64_t done, total; /* matrix rows */
  bool checking;        /* the first time through: names and shapes alone */
  bool *seen;           /* [tensors of the file] asked for, while checking */
  size_t used;          /* bytes of the model's memory given out, or counted while checking */
  char *buffers;        /* [threads, buffer_bytes]: rows as read */
  size_t buffer_bytes;
  understudy_error *err;
} loader;

static understudy_status find(loader *l, const char *name, uint64_t rows, uint64_t cols, const ust_tensor **tensor) {
  UST_TRY(ust_weights_find(l->weights, name, rows, cols, tensor, l->err));
  if (l->checking) l->seen[*tensor - ust_weights_tensor(l->weights, 0)] = true;
  return UNDERSTUDY_OK;
}

/* The next `bytes` of the model's memory, or NULL while they are only counted. One block for all tensors, since huge
 * pages would round each one up. */
static void *take(loader *l, size_t bytes) {
  size_t at = l->used;
  l->used += UST_ROUND_UP(bytes, 64);
  return l->checking ? NULL : l->model->memory + at;
}

static understudy_status load_vector(loader *l, const char *name, int n, float **out) {
  const ust_tensor *tensor;
  UST_TRY(find(l, name, 1, (uint64_t)n, &tensor));
  size_t bytes = (size_t)UST_ROUND_UP(n, UST_PANEL) * sizeof(float);
  float *values = take(l, bytes);
  if (l->checking) return UNDERSTUDY_OK;
  memset(values, 0, bytes);
  *out = values;
  l->model->parameters += (uint64_t)n;
  return ust_weights_read_rows(l->weights, tensor, 0, 1, *out, l->err);
}

/* Rows [row, row+count) of a tensor into the matrix. */
static understudy_status pack_rows(loader *l, const ust_tensor *tensor, ust_matrix *matrix, uint64_t row,
                                   uint64_t count, void *buffer, understudy_error *err) {
  const ust_kernels *kernels = l->model->kernels;
  if (ust_is_quantised(matrix->format)) {
    UST_TRY(ust_weights_read_blocks(l->weights, tensor, row, count, buffer, err));
    kernels->pack_blocks(matrix, (int)row, (int)count, buffer);
  } else {
    UST_TRY(ust_weights_read_rows(l->weights, tensor, row, count, buffer, err));
    kernels->pack(matrix, (int)row, (int)count, buffer, (size_t)matrix->cols, 1);
  }
  return UNDERSTUDY_OK;
}

enum { CHUNK = 2 * UST_PANEL }; /* rows read at a time: as f32 they stay in the second-level cache */

/* Q8_0, Q4_0 and Q4_K stay as they are; all others become bf16 (f32 at the scalar level, for f32 files). */
static ust_format format_of(const ust_kernels *kernels, ust_type type) {
  if (type == UST_TYPE_Q8_0) return UST_FORMAT_Q8;
  if (type == UST_TYPE_Q4_0) return UST_FORMAT_Q4;
  if (type == UST_TYPE_Q4_K) return UST_FORMAT_Q4K;
  if (type == UST_TYPE_F32 && kernels->isa == UST_ISA_SCALAR) return UST_FORMAT_F32;
  return UST_FORMAT_BF16;
}

static understudy_status load_matrix(loader *l, const char *name, int rows, int cols, ust_matrix *matrix) {
  const ust_tensor *tensor;
  UST_TRY(find(l, name, (uint64_t)rows, (uint64_t)cols, &tensor));
  const ust_kernels *kernels = l->model->kernels;
  ust_format format = format_of(kernels, tensor->type);
  size_t bytes = kernels->matrix_bytes(format, rows, cols);
  void *data = take(l, bytes);
  if (l->checking) return UNDERSTUDY_OK;
  *matrix = (ust_matrix){.format = format, .rows = rows, .cols = cols, .bytes = bytes, .data = data};
  l->model->parameters += (uint64_t)rows * (uint64_t)cols;

  int chunks = (rows + CHUNK - 1) / CHUNK;
  understudy_status status = UNDERSTUDY_OK;
#pragma omp parallel num_threads(l->model->threads)
  {
    void *buffer = l->buffers + (size_t)omp_get_thread_num() * l->buffer_bytes;
    understudy_error local = {0};
    understudy_status mine = UNDERSTUDY_OK;
#pragma omp for schedule(dynamic)
    for (int chunk = 0; chunk < chunks; chunk++) {
      if (mine != UNDERSTUDY_OK) continue;
      uint64_t row = (uint64_t)chunk * CHUNK;
      mine = pack_rows(l, tensor, matrix, row, UST_MIN((uint64_t)CHUNK, (uint64_t)rows - row), buffer, &local);
    }
#pragma omp critical(ust_model_open)
    if (mine != UNDERSTUDY_OK && status == UNDERSTUDY_OK) {
      status = mine;
      if (l->err) *l->err = local;
    }
  }
  l->done += (uint64_t)rows;
  if (status == UNDERSTUDY_OK && l->progress && l->progress(l->user, ust_weights_path(l->weights), l->done, l->total))
    return ust_error(l->err, UNDERSTUDY_ERROR_CANCELLED, "%s: opening was cancelled", ust_weights_path(l->weights));
  return status;
}

static understudy_status load_layer(loader *l, int index, ust_layer *layer) {
  const ust_config *c = &l->model->config;
  char name[64];
#define NAME(part) (snprintf(name, sizeof name, "blk.%d." part, index), name)
  UST_TRY(load_vector(l, NAME("attn_norm.weight"), c->width, &layer->norm1_gain));
  UST_TRY(load_vector(l, NAME("attn_norm.bias"), c->width, &layer->norm1_bias));
  UST_TRY(load_matrix(l, NAME("attn_qkv.weight"), 3 * c->width, c->width, &layer->matrix[UST_MATRIX_QKV]));
  UST_TRY(load_vector(l, NAME("attn_qkv.bias"), 3 * c->width, &layer->qkv_bias));
  UST_TRY(load_matrix(l, NAME("attn_output.weight"), c->width, c->width, &layer->matrix[UST_MATRIX_OUTPUT]));
  UST_TRY(load_vector(l, NAME("attn_output.bias"), c->width, &layer->output_bias));
  UST_TRY(load_vector(l, NAME("ffn_norm.weight"), c->width, &layer->norm2_gain));
  UST_TRY(load_vector(l, NAME("ffn_norm.bias"), c->width, &layer->norm2_bias));
  UST_TRY(load_matrix(l, NAME("ffn_up.weight"), c->feed_forward, c->width, &layer->matrix[UST_MATRIX_UP]));
  UST_TRY(load_vector(l, NAME("ffn_up.bias"), c->feed_forward, &layer->up_bias));
  UST_TRY(load_matrix(l, NAME("ffn_down.weight"), c->width, c->feed_forward, &layer->matrix[UST_MATRIX_DOWN]));
  UST_TRY(load_vector(l, NAME("ffn_down.bias"), c->width, &layer->down_bias));
#undef NAME
  return UNDERSTUDY_OK;
}

static understudy_status load_positions(loader *l) {
  ust_model *m = l->model;
  const ust_config *c = &m->config;
  const ust_tensor *tensor;
  UST_TRY(find(l, "position_embd.weight", (uint64_t)c->context, (uint64_t)c->width, &tensor));
  m->positions = take(l, (size_t)c->context * (size_t)c->width * sizeof(float));
  if (l->checking) return UNDERSTUDY_OK;
  m->parameters += (uint64_t)c->context * (uint64_t)c->width;
  return ust_weights_read_rows(l->weights, tensor, 0, (uint64_t)c->context, m->positions, l->err);
}

static understudy_status load_all(loader *l) {
  ust_model *m = l->model;
  const ust_config *c = &m->config;
  UST_TRY(load_matrix(l, "token_embd.weight", c->vocabulary, c->width, &m->embedding));
  UST_TRY(load_positions(l));
  for (int i = 0; i < c->layers; i++) UST_TRY(load_layer(l, i, &m->layers[i]));
  UST_TRY(load_vector(l, "output_norm.weight", c->width, &m->norm_gain));
  UST_TRY(load_vector(l, "output_norm.bias", c->width, &m->norm_bias));
  if (ust_weights_has(l->weights, "output.weight"))
    UST_TRY(load_matrix(l, "output.weight", c->vocabulary, c->width, &m->output));
  return UNDERSTUDY_OK;
}

uint64_t ust_model_part_bytes(const ust_model *m, int part) {
  const uint64_t width = (uint64_t)m->config.width;
  if (part == m->config.layers) return ust_model_words(m)->bytes + 2 * width * sizeof(float);
  uint64_t bytes = (9 * width + (uint64_t)m->config.feed_forward) * sizeof(float);
  for (int k = 0; k < UST_LAYER_MATRICES; k++) bytes += m->layers[part].matrix[k].bytes;
  return bytes;
}

/* A tensor that nothing asked for: the file holds another model than this. */
static understudy_status check_all_seen(const loader *l) {
  for (size_t i = 0; i < ust_weights_count(l->weights); i++)
    if (!l->seen[i])
      return ust_error(l->err, UNDERSTUDY_ERROR_UNSUPPORTED,
                       "%s: tensor %s: found a name GPT-2 of %d layers does not have", ust_weights_path(l->weights),
                       ust_weights_tensor(l->weights, i)->name, l->model->config.layers);
  return UNDERSTUDY_OK;
}

/* Memory for what was counted. */
static understudy_status allocate(loader *l) {
  const ust_config *c = &l->model->config;
  size_t buffers = (size_t)l->model->threads;
  l->buffer_bytes = (size_t)CHUNK * (size_t)UST_ROUND_UP(UST_MAX(c->width, c->feed_forward), 32) * sizeof(float);
  l->buffers = ust_alloc_unset(buffers * l->buffer_bytes);
  if (!l->buffers) return ust_error_memory(l->err, buffers * l->buffer_bytes, "reading weights");
  l->model->memory = ust_alloc_unset(l->used);
  if (!l->model->memory) return ust_error_memory(l->err, l->used, "the weights of a model");
  l->checking = false;
  l->used = 0;
  return UNDERSTUDY_OK;
}

/* Twice through all tensors: to check and count them, then to read them. */
static understudy_status check_and_load(loader *l) {
  const ust_config *c = &l->model->config;
  const size_t layers = (size_t)c->layers * sizeof *l->model->layers, tensors = ust_weights_count(l->weights);
  l->total = (uint64_t)c->vocabulary + (uint64_t)c->layers * (5 * (uint64_t)c->width + (uint64_t)c->feed_forward);
  if (ust_weights_has(l->weights, "output.weight")) l->total += (uint64_t)c->vocabulary;
  l->model->layers = ust_alloc(layers);
  if (!l->model->layers) return ust_error_memory(l->err, layers, "layers");
  l->seen = ust_alloc(tensors * sizeof *l->seen);
  if (!l->seen) return ust_error_memory(l->err, tensors * sizeof *l->seen, "a list of tensors");
  l->checking = true;
  UST_TRY(load_all(l));
  UST_TRY(check_all_seen(l));
  UST_TRY(allocate(l));
  return load_all(l);
}

/* Whole panels, an odd number of them: at a stride of many powers of two, the rows of a block would share a few sets of
 * the first-level cache. */
static int row_stride(int n) {
  return (UST_ROUND_UP(n, UST_PANEL) / UST_PANEL | 1) * UST_PANEL;
}

/* Tells each matrix which one a pass multiplies with next. */
static void link_matrices(ust_model *m) {
  ust_matrix *last = NULL;
  for (int i = 0; i < m->config.layers * UST_LAYER_MATRICES; i++) {
    ust_matrix *matrix = &m->layers[i / UST_LAYER_MATRICES].matrix[i % UST_LAYER_MATRICES];
    if (last) last->next = matrix;
    last = matrix;
  }
  last->next = ust_model_words(m);
}

understudy_status ust_model_open(const ust_weights *weights, const ust_kernels *kernels, int threads,
                                 understudy_progress_fn progress, void *user, ust_model **model,
                                 understudy_error *err) {
  ust_model *m = ust_alloc(sizeof *m);
  if (!m) return ust_error_memory(err, sizeof *m, "a model");
  m->config = *ust_weights_config(weights);
  m->kernels = kernels;
  m->threads = threads;
  const ust_config *c = &m->config;
  m->width_stride = row_stride(c->width);
  m->qkv_stride = row_stride(3 * c->width);
  m->hidden_stride = row_stride(c->feed_forward);
  m->vocabulary_stride = UST_ROUND_UP(c->vocabulary, UST_PANEL);
  loader l = {.weights = weights, .model = m, .progress = progress, .user = user, .err = err};
  understudy_status status = check_and_load(&l);
  ust_free(l.seen);
  ust_free(l.buffers);
  if (status != UNDERSTUDY_OK) {
    ust_model_close(m);
    return status;
  }
  link_matrices(m);
  for (int part = 0; part <= c->layers; part++) m->weight_bytes += ust_model_part_bytes(m, part);
  *model = m;
  return UNDERSTUDY_OK;
}

void ust_model_close(ust_model *m) {
  if (!m) return;
  ust_free(m->layers);
  ust_free(m->memory);
  ust_free(m);
}

const ust_config *ust_model_config(const ust_model *m) {
  return &m->config;
}
uint64_t ust_model_parameters(const ust_model *m) {
  return m->parameters;
}
uint64_t ust_model_weight_bytes(const ust_model *m) {
  return m->weight_bytes;
}
int ust_model_threads(const ust_model *m) {
  return m->threads;
}
size_t ust_model_logit_stride(const ust_model *m) {
  return (size_t)m->vocabulary_stride;
}

uint64_t ust_model_kv_bytes(const ust_model *m) {
  const ust_config *c = &m->config;
  size_t block = m->kernels->kv_bytes(UST_KV_BLOCK, c->width / c->heads);
  return (uint64_t)block / UST_KV_BLOCK * (uint64_t)c->heads * (uint64_t)c->layers;
}

double ust_model_pass_flop(const ust_model *m, int rows, int wanted, int keys) {
  const ust_config *c = &m->config;
  double layer = 2.0 * c->width * (4.0 * c->width + 2.0 * c->feed_forward) + 4.0 * c->width * keys;
  return rows * c->layers * layer + wanted * 2.0 * c->width * c->vocabulary;
}
