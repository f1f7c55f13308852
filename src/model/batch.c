/* The forward pass over many texts at once, one row each: how a model writes by the million tokens.
 *
 * One pass reads the weights once for all texts; only keys and values, each text's own, grow with their number.
 * Steps, buffers and threads are those of a tree's pass (forward.c): what a text says
 * does not depend on the texts beside it. With so many rows a product is bound by arithmetic, not by memory, so a
 * batch keeps its matrices as bf16; a row has the bits of a tree's pass unless the model's are quantised. */
#include <omp.h>

#include "base/barrier.h"
#include "model/gpt2.h"

/* Matrices of a layer, in the order of their use. */
enum { QKV, OUTPUT, UP, DOWN, PARTS };

struct ust_batch {
  const ust_model *model;
  ust_matrix *layers; /* [layers, PARTS]: the model's own, or bf16 copies */
  ust_matrix words;   /* the output matrix */
  int texts, context, slots;
  int width_stride, qkv_stride, hidden_stride;
  char *kv; /* [layer][text][head] blocks of kv_bytes(slots) */
  size_t head_bytes;
  int32_t *keys; /* [texts] positions each holds, during a pass its new one included */
  /* of the pass */
  float *residual, *qkv;
  char *norm, *heads, *hidden;
  char *scratch; /* [threads] */
  size_t scratch_bytes;
  float *logits;                /* [threads, texts, UST_LOGIT_STRIDE] */
  float *norm_gain, *norm_bias; /* the last ones, divided by the temperature */
  ust_barrier barrier;
};

static char *head_kv(const ust_batch *b, int layer, int text, int head) {
  const ust_config *c = &b->model->config;
  size_t block = ((size_t)layer * (size_t)b->texts + (size_t)text) * (size_t)c->heads + (size_t)head;
  return b->kv + block * b->head_bytes;
}

/* Rows a power of two apart would all lie in a few sets of the first-level cache. */
static int apart(int stride) {
  return stride + 32;
}

static const ust_matrix *part_of(const ust_layer *layer, int part) {
  const ust_matrix *const parts[PARTS] = {&layer->qkv, &layer->output, &layer->up, &layer->down};
  return parts[part];
}

/* *out becomes `from`, or a copy of it in bf16. False: out of memory. */
static bool widen(const ust_model *m, const ust_matrix *from, ust_matrix *out) {
  *out = *from;
  if (from->format == UST_FORMAT_BF16 || from->format == UST_FORMAT_F32) return true;
  out->format = UST_FORMAT_BF16;
  out->bytes = m->kernels->matrix_bytes(out->format, out->rows, out->cols);
  out->data = ust_alloc(out->bytes);
  bool ok = out->data != NULL;
  size_t stride = (size_t)UST_ROUND_UP(from->cols, 32);
#pragma omp parallel num_threads(m->threads)
  {
    float *panel = ust_alloc(UST_PANEL * stride * sizeof *panel);
    if (!panel) {
#pragma omp atomic write
      ok = false;
    }
#pragma omp for
    for (int row = 0; row < from->rows; row += UST_PANEL) {
      int count = UST_MIN(UST_PANEL, from->rows - row);
      if (!panel || !out->data) continue;
      for (int r = 0; r < count; r++) m->kernels->unpack_row(from, row + r, panel + (size_t)r * stride);
      m->kernels->pack(out, row, count, panel, stride, 1);
    }
    ust_free(panel);
  }
  return ok;
}

static understudy_status take_weights(ust_batch *b, understudy_error *err) {
  const ust_model *m = b->model;
  size_t matrices = (size_t)m->config.layers * PARTS;
  b->layers = ust_alloc(matrices * sizeof *b->layers);
  bool ok = b->layers && widen(m, m->output.data ? &m->output : &m->embedding, &b->words);
  for (size_t i = 0; i < matrices && ok; i++) ok = widen(m, part_of(&m->layers[i / PARTS], i % PARTS), &b->layers[i]);
  return ok ? UNDERSTUDY_OK : ust_error_memory(err, 2 * m->parameters, "the weights of a batch of texts");
}

/* Frees the copies. */
static void drop_weights(ust_batch *b) {
  const ust_model *m = b->model;
  if (b->words.data != m->output.data && b->words.data != m->embedding.data) ust_free(b->words.data);
  for (int i = 0; b->layers && i < m->config.layers * PARTS; i++)
    if (b->layers[i].data != part_of(&m->layers[i / PARTS], i % PARTS)->data) ust_free(b->layers[i].data);
  ust_free(b->layers);
}

understudy_status ust_batch_create(const ust_model *model, int texts, int context, float temperature, ust_batch **batch,
                                   understudy_error *err) {
  const ust_config *c = &model->config;
  const ust_kernels *kernels = model->kernels;
  assert(texts > 0 && context > 0 && context <= c->context && temperature > 0);
  ust_batch *b = ust_alloc(sizeof *b);
  if (!b) return ust_error_memory(err, sizeof *b, "a batch of texts");
  int head_dim = c->width / c->heads;
  b->model = model;
  b->texts = texts;
  b->context = context;
  b->slots = UST_ROUND_UP(context, UST_KV_BLOCK);
  b->head_bytes = kernels->kv_bytes(b->slots, head_dim);
  b->scratch_bytes = UST_ROUND_UP(kernels->attention_scratch(1, b->slots, head_dim), 64);
  b->width_stride = apart(model->width_stride);
  b->qkv_stride = apart(model->qkv_stride);
  b->hidden_stride = apart(model->hidden_stride);
  size_t rows = (size_t)texts, size = kernels->activation_size, width = (size_t)b->width_stride;
  size_t kv_bytes = (size_t)c->layers * rows * (size_t)c->heads * b->head_bytes;
  b->kv = ust_alloc(kv_bytes);
  b->keys = ust_alloc(rows * sizeof *b->keys);
  b->residual = ust_alloc(rows * width * sizeof(float));
  b->qkv = ust_alloc(rows * (size_t)b->qkv_stride * sizeof(float));
  b->norm = ust_alloc(rows * width * size);
  b->heads = ust_alloc(rows * width * size);
  b->hidden = ust_alloc(rows * (size_t)b->hidden_stride * size);
  b->scratch = ust_alloc((size_t)model->threads * b->scratch_bytes);
  b->logits = ust_alloc((size_t)model->threads * rows * UST_LOGIT_STRIDE * sizeof(float));
  b->norm_gain = ust_alloc(width * sizeof(float));
  b->norm_bias = ust_alloc(width * sizeof(float));
  if (!b->kv || !b->keys || !b->residual || !b->qkv || !b->norm || !b->heads || !b->hidden || !b->scratch ||
      !b->logits || !b->norm_gain || !b->norm_bias) {
    ust_batch_free(b);
    return ust_error_memory(err, kv_bytes, "the KV caches of a batch of texts");
  }
  understudy_status status = take_weights(b, err);
  if (status != UNDERSTUDY_OK) {
    ust_batch_free(b);
    return status;
  }
  for (int i = 0; i < c->width; i++) {
    b->norm_gain[i] = model->norm_gain[i] / temperature;
    b->norm_bias[i] = model->norm_bias[i] / temperature;
  }
  *batch = b;
  return UNDERSTUDY_OK;
}

void ust_batch_free(ust_batch *b) {
  if (!b) return;
  drop_weights(b);
  void *const parts[] = {b->kv,     b->keys,    b->residual, b->qkv,       b->norm,     b->heads,
                         b->hidden, b->scratch, b->logits,   b->norm_gain, b->norm_bias};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) ust_free(parts[i]);
  ust_free(b);
}

void ust_batch_restart(ust_batch *b, int text) {
  b->keys[text] = 0;
}

typedef struct share {
  int begin, end;
} share;

/* This thread's part of n. */
static share share_of(int n, int thread, int threads) {
  return (share){(int)((int64_t)n * thread / threads), (int)((int64_t)n * (thread + 1) / threads)};
}

static void linear(const ust_batch *b, const ust_matrix *w, const void *x, int x_stride, const float *bias,
                   ust_epilogue epilogue, void *y, int y_stride, int thread, int threads) {
  share s = share_of(UST_ROUND_UP(w->rows, UST_PANEL) / UST_PANEL, thread, threads);
  if (s.begin < s.end)
    b->model->kernels->matmul(w, s.begin, s.end, x, (size_t)x_stride, b->texts, bias, epilogue, y, (size_t)y_stride);
}

static void normalise(ust_batch *b, const float *gain, const float *bias, int thread, int threads) {
  const ust_model *m = b->model;
  share s = share_of(b->texts, thread, threads);
  for (int r = s.begin; r < s.end; r++)
    m->kernels->layer_norm(b->residual + (size_t)r * b->width_stride, gain, bias, m->config.width,
                           m->config.norm_epsilon, b->norm + (size_t)r * b->width_stride * m->kernels->activation_size);
}

/* Stores the new keys and values of this thread's texts and attends. */
static void attend(ust_batch *b, int layer, int thread, int threads) {
  const ust_model *m = b->model;
  const ust_kernels *kernels = m->kernels;
  int width = m->config.width, heads = m->config.heads, head_dim = width / heads;
  share s = share_of(b->texts * heads, thread, threads);
  for (int i = s.begin; i < s.end; i++) {
    int text = i / heads, head = i % heads;
    const ust_attention_rows row = {.rows = 1, .keys = &b->keys[text], .identity = &b->keys[text]};
    const float *q = b->qkv + (size_t)text * b->qkv_stride + (size_t)head * head_dim;
    char *kv = head_kv(b, layer, text, head);
    kernels->kv_store(kv, b->slots, head_dim, b->keys[text] - 1, q + width, q + 2 * width);
    size_t out = (size_t)text * b->width_stride + (size_t)head * head_dim;
    kernels->attention(kv, b->slots, head_dim, &row, q, (size_t)b->qkv_stride,
                       b->heads + out * kernels->activation_size, (size_t)b->width_stride,
                       b->scratch + (size_t)thread * b->scratch_bytes);
  }
}

static void embed(ust_batch *b, const int32_t *tokens, int thread, int threads) {
  const ust_model *m = b->model;
  int width = m->config.width;
  share s = share_of(b->texts, thread, threads);
  for (int r = s.begin; r < s.end; r++) {
    float *x = b->residual + (size_t)r * b->width_stride;
    const float *position = m->positions + (size_t)b->keys[r] * width;
    m->kernels->unpack_row(&m->embedding, tokens[r], x);
    for (int i = 0; i < width; i++) x[i] += position[i];
    assert(b->keys[r] < b->context);
    b->keys[r]++;
  }
}

static void layer_pass(ust_batch *b, int index, int thread, int threads) {
  const ust_model *m = b->model;
  const ust_layer *layer = &m->layers[index];
  const ust_matrix *parts = &b->layers[index * PARTS];
  normalise(b, layer->norm1_gain, layer->norm1_bias, thread, threads);
  ust_barrier_wait(&b->barrier);
  linear(b, &parts[QKV], b->norm, b->width_stride, layer->qkv_bias, UST_STORE, b->qkv, b->qkv_stride, thread, threads);
  ust_barrier_wait(&b->barrier);
  attend(b, index, thread, threads);
  ust_barrier_wait(&b->barrier);
  linear(b, &parts[OUTPUT], b->heads, b->width_stride, layer->output_bias, UST_ADD, b->residual, b->width_stride,
         thread, threads);
  ust_barrier_wait(&b->barrier);
  normalise(b, layer->norm2_gain, layer->norm2_bias, thread, threads);
  ust_barrier_wait(&b->barrier);
  linear(b, &parts[UP], b->norm, b->width_stride, layer->up_bias, UST_GELU, b->hidden, b->hidden_stride, thread,
         threads);
  ust_barrier_wait(&b->barrier);
  linear(b, &parts[DOWN], b->hidden, b->hidden_stride, layer->down_bias, UST_ADD, b->residual, b->width_stride, thread,
         threads);
  ust_barrier_wait(&b->barrier);
}

/* This thread's part of the vocabulary, a block at a time: a block of all texts stays in the second-level cache from
 * the product to the visitor, while whole rows of logits would go out to memory and back. */
static void output_pass(ust_batch *b, ust_logits_fn visit, void *user, int thread, int threads) {
  const ust_kernels *kernels = b->model->kernels;
  float *logits = b->logits + (size_t)thread * (size_t)b->texts * UST_LOGIT_STRIDE;
  share s = share_of((b->words.rows + UST_LOGIT_BLOCK - 1) / UST_LOGIT_BLOCK, thread, threads);
  for (int block = s.begin; block < s.end; block++) {
    int first = block * UST_LOGIT_BLOCK, count = UST_MIN(UST_LOGIT_BLOCK, b->words.rows - first);
    ust_matrix part = b->words; /* panels follow one another at every level */
    part.rows = count;
    part.data = (char *)part.data + kernels->matrix_bytes(part.format, first, part.cols);
    kernels->matmul(&part, 0, UST_ROUND_UP(count, UST_PANEL) / UST_PANEL, b->norm, (size_t)b->width_stride, b->texts,
                    NULL, UST_STORE, logits, UST_LOGIT_STRIDE);
    visit(user, thread, block, first, count, logits);
  }
}

void ust_batch_forward(ust_batch *b, const int32_t *tokens, ust_logits_fn visit, void *user) {
  const ust_model *m = b->model;
#pragma omp parallel num_threads(m->threads)
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
#pragma omp single
    ust_barrier_start(&b->barrier, threads);
    embed(b, tokens, thread, threads);
    ust_barrier_wait(&b->barrier);
    for (int i = 0; i < m->config.layers; i++) layer_pass(b, i, thread, threads);
    normalise(b, b->norm_gain, b->norm_bias, thread, threads);
    ust_barrier_wait(&b->barrier);
    output_pass(b, visit, user, thread, threads);
    m->kernels->release();
  }
}
