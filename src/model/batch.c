/* The forward pass over many texts at once, one row each: how a model writes by the million tokens.
 *
 * One pass reads the weights once for all texts; only keys and values, each text's own, grow with their number.
 * The steps are those of a tree's pass: what a text says does not depend on the texts beside it. With so many rows a
 * product is bound by arithmetic, not by memory, so a batch keeps its matrices as bf16; a row has the bits of a tree's
 * pass unless the model's are quantised. */
#include "model/pass.h"

struct ust_batch {
  const ust_model *model;
  ust_layer *layers; /* [layers] the model's, with copies in bf16 of its quantised matrices */
  ust_matrix words;  /* the output matrix likewise */
  int texts, context, slots;
  char *kv; /* [layer][text][head] blocks of kv_bytes(slots) */
  size_t head_bytes;
  int32_t *keys; /* [texts] positions each holds, during a pass its new one included */
  ust_pass pass;
  float *logits;                /* [threads, texts, UST_LOGIT_STRIDE] */
  float *norm_gain, *norm_bias; /* the last ones, divided by the temperature */
};

static char *head_kv(const ust_batch *b, int layer, int text, int head) {
  const ust_config *c = &b->model->config;
  size_t block = ((size_t)layer * (size_t)b->texts + (size_t)text) * (size_t)c->heads + (size_t)head;
  return b->kv + block * b->head_bytes;
}

/* *out becomes `from`, or a copy of it in bf16. False: out of memory. */
static bool widen(const ust_model *m, const ust_matrix *from, ust_matrix *out) {
  *out = *from;
  if (!ust_is_quantised(from->format)) return true;
  out->format = UST_FORMAT_BF16;
  out->next = NULL;
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

static bool take_weights(ust_batch *b) {
  const ust_model *m = b->model;
  b->layers = ust_alloc((size_t)m->config.layers * sizeof *b->layers);
  bool ok = b->layers && widen(m, ust_model_words(m), &b->words);
  for (int i = 0; i < m->config.layers && ok; i++) {
    b->layers[i] = m->layers[i];
    for (int k = 0; k < UST_LAYER_MATRICES; k++) b->layers[i].matrix[k].data = NULL;
    for (int k = 0; k < UST_LAYER_MATRICES && ok; k++) ok = widen(m, &m->layers[i].matrix[k], &b->layers[i].matrix[k]);
  }
  return ok;
}

/* Frees the copies. */
static void drop_weights(ust_batch *b) {
  const ust_model *m = b->model;
  if (b->words.data != ust_model_words(m)->data) ust_free(b->words.data);
  for (int i = 0; b->layers && i < m->config.layers; i++)
    for (int k = 0; k < UST_LAYER_MATRICES; k++)
      if (b->layers[i].matrix[k].data != m->layers[i].matrix[k].data) ust_free(b->layers[i].matrix[k].data);
  ust_free(b->layers);
}

understudy_status ust_batch_create(const ust_model *model, int texts, int context, float temperature, ust_batch **batch,
                                   understudy_error *err) {
  const ust_config *c = &model->config;
  assert(texts > 0 && context > 0 && context <= c->context && temperature > 0);
  ust_batch *b = ust_alloc(sizeof *b);
  if (!b) return ust_error_memory(err, sizeof *b, "a batch of texts");
  b->model = model;
  b->texts = texts;
  b->context = context;
  b->slots = UST_ROUND_UP(context, UST_KV_BLOCK);
  b->head_bytes = model->kernels->kv_bytes(b->slots, c->width / c->heads);
  const size_t rows = (size_t)texts, width = (size_t)c->width;
  const size_t kv_bytes = (size_t)c->layers * rows * (size_t)c->heads * b->head_bytes;
  b->kv = ust_alloc(kv_bytes);
  b->keys = ust_alloc(rows * sizeof *b->keys);
  b->logits = ust_alloc((size_t)model->threads * rows * UST_LOGIT_STRIDE * sizeof(float));
  b->norm_gain = ust_alloc(width * sizeof(float));
  b->norm_bias = ust_alloc(width * sizeof(float));
  const char *missing = NULL;
  size_t bytes = 0;
  if (!take_weights(b)) {
    missing = "the weights of a batch of texts";
    bytes = 2 * model->parameters;
  } else if (!ust_pass_init(&b->pass, model, b->layers, &b->words, texts, 1, b->slots) || !b->kv || !b->keys ||
             !b->logits || !b->norm_gain || !b->norm_bias) {
    missing = "the KV caches of a batch of texts";
    bytes = kv_bytes + b->pass.bytes;
  }
  if (missing) {
    ust_batch_free(b);
    return ust_error_memory(err, bytes, missing);
  }
  for (size_t i = 0; i < width; i++) {
    b->norm_gain[i] = model->norm_gain[i] / temperature;
    b->norm_bias[i] = model->norm_bias[i] / temperature;
  }
  *batch = b;
  return UNDERSTUDY_OK;
}

void ust_batch_free(ust_batch *b) {
  if (!b) return;
  drop_weights(b);
  ust_pass_free(&b->pass);
  void *const parts[] = {b->kv, b->keys, b->logits, b->norm_gain, b->norm_bias};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) ust_free(parts[i]);
  ust_free(b);
}

void ust_batch_restart(ust_batch *b, int text) {
  b->keys[text] = 0;
}

/* Stores the new keys and values of this thread's texts and attends. */
static void attend(ust_batch *b, int layer, ust_member me) {
  const ust_model *m = b->model;
  const ust_kernels *kernels = m->kernels;
  const int width = m->config.width, heads = m->config.heads, head_dim = width / heads;
  const ust_share own = ust_share_of(b->texts * heads, me);
  for (int i = own.begin; i < own.end; i++) {
    const int text = i / heads, head = i % heads;
    const ust_attention_rows row = {.rows = 1, .keys = &b->keys[text], .identity = &b->keys[text]};
    const float *q = b->pass.qkv + (size_t)text * m->qkv_stride + (size_t)head * head_dim;
    char *kv = head_kv(b, layer, text, head);
    kernels->kv_store(kv, b->slots, head_dim, b->keys[text] - 1, q + width, q + 2 * width);
    const size_t out = (size_t)text * m->width_stride + (size_t)head * head_dim;
    kernels->attention(kv, b->slots, head_dim, &row, q, (size_t)m->qkv_stride,
                       b->pass.heads + out * kernels->activation_size, (size_t)m->width_stride,
                       b->pass.scratch + (size_t)me.thread * b->pass.scratch_bytes);
  }
}

/* This thread's part of the vocabulary, a block at a time: a block of all texts stays in the second-level cache from
 * the product to the visitor, while whole rows of logits would go out to memory and back. */
static void output_pass(ust_batch *b, ust_logits_fn visit, void *user, ust_member me) {
  const ust_kernels *kernels = b->model->kernels;
  float *logits = b->logits + (size_t)me.thread * (size_t)b->texts * UST_LOGIT_STRIDE;
  const ust_share own = ust_share_of((b->words.rows + UST_LOGIT_BLOCK - 1) / UST_LOGIT_BLOCK, me);
  for (int block = own.begin; block < own.end; block++) {
    int first = block * UST_LOGIT_BLOCK, count = UST_MIN(UST_LOGIT_BLOCK, b->words.rows - first);
    ust_matrix part = b->words; /* panels follow one another at every level */
    part.rows = count;
    part.data = (char *)part.data + kernels->matrix_bytes(part.format, first, part.cols);
    kernels->matmul(&part, 0, UST_ROUND_UP(count, UST_PANEL) / UST_PANEL, b->pass.norm, (size_t)b->model->width_stride,
                    b->texts, NULL, UST_STORE, logits, UST_LOGIT_STRIDE);
    visit(user, me.thread, block, first, count, logits);
  }
}

void ust_batch_forward(ust_batch *b, const int32_t *tokens, ust_logits_fn visit, void *user) {
  const ust_model *m = b->model;
  for (int i = 0; i < b->texts; i++) {
    assert(b->keys[i] < b->context);
    b->keys[i]++;
  }
#pragma omp parallel num_threads(m->threads)
  {
    const ust_member me = ust_pass_enter(&b->pass);
    ust_pass_embed(&b->pass, tokens, b->keys, b->texts, me);
    for (int i = 0; i < m->config.layers; i++) {
      ust_pass_before_attention(&b->pass, i, b->texts, me);
      attend(b, i, me);
      ust_pass_after_attention(&b->pass, i, b->texts, me);
    }
    ust_pass_normalise(&b->pass, b->norm_gain, b->norm_bias, b->texts, me);
    output_pass(b, visit, user, me);
    m->kernels->release();
  }
}
