/* The forward pass of a GPT-2 over new nodes of a token tree, and the timeline it belongs to.
 *
 * One parallel region a pass; threads share out panels of outputs, heads and rows, and meet at a barrier after
 * each step, so no sum is ever divided between them. Buffers, per row of the pass:
 *   residual f32 [rows, width]   norm activation [rows, width]   qkv f32 [rows, 3 width]
 *   heads activation [rows, width]   hidden activation [rows, feed_forward]
 *   integers: any of the three as a product with a quantised matrix takes it */
#include <omp.h>

#include "base/barrier.h"
#include "model/gpt2.h"

struct ust_timeline {
  const ust_model *model;
  int context, max_rows, slots;
  int committed, nodes;
  char *kv; /* [layer][head] blocks of kv_bytes(slots) */
  size_t head_bytes;
  int32_t *parent, *depth; /* of each node; depth 0 lies at position `committed` */
  /* of the pass */
  float *residual, *qkv;
  char *norm, *heads, *hidden;
  char *integers; /* NULL without quantised matrices */
  char *scratch;  /* [threads] */
  size_t scratch_bytes;
  ust_barrier barrier;
  int32_t *keys, *identity, *path; /* [max_rows], [max_rows], [max_rows, UST_TREE_DEPTH] */
};

static char *head_kv(const ust_timeline *t, int layer, int head) {
  return t->kv + ((size_t)layer * (size_t)t->model->config.heads + (size_t)head) * t->head_bytes;
}

/* Most inputs of a quantised matrix. */
static int quantised_inputs(const ust_model *m) {
  const ust_matrix *output = m->output.data ? &m->output : &m->embedding;
  int most = ust_is_quantised(output->format) ? output->cols : 0;
  for (int i = 0; i < m->config.layers; i++) {
    const ust_layer *layer = &m->layers[i];
    const ust_matrix *const all[] = {&layer->qkv, &layer->output, &layer->up, &layer->down};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
      if (ust_is_quantised(all[k]->format)) most = UST_MAX(most, all[k]->cols);
  }
  return most;
}

understudy_status ust_timeline_create(const ust_model *model, int context, int max_rows, ust_timeline **timeline,
                                      understudy_error *err) {
  const ust_config *c = &model->config;
  const ust_kernels *kernels = model->kernels;
  ust_timeline *t = ust_alloc(sizeof *t);
  if (!t) return ust_error_memory(err, sizeof *t, "a timeline");
  int head_dim = c->width / c->heads, threads = model->threads;
  t->model = model;
  t->context = context;
  t->max_rows = max_rows;
  t->slots = UST_ROUND_UP(context + UST_MAX(UST_TREE_NODES, max_rows), UST_KV_BLOCK);
  t->head_bytes = kernels->kv_bytes(t->slots, head_dim);
  t->scratch_bytes = UST_ROUND_UP(kernels->attention_scratch(max_rows, t->slots, head_dim), 64);
  size_t rows = (size_t)max_rows, nodes = (size_t)UST_MAX(UST_TREE_NODES, max_rows), size = kernels->activation_size;
  t->kv = ust_alloc((size_t)c->layers * (size_t)c->heads * t->head_bytes);
  t->parent = ust_alloc(nodes * sizeof *t->parent);
  t->depth = ust_alloc(nodes * sizeof *t->depth);
  t->residual = ust_alloc(rows * (size_t)model->width_stride * sizeof(float));
  t->qkv = ust_alloc(rows * (size_t)model->qkv_stride * sizeof(float));
  t->norm = ust_alloc(rows * (size_t)model->width_stride * size);
  t->heads = ust_alloc(rows * (size_t)model->width_stride * size);
  t->hidden = ust_alloc(rows * (size_t)model->hidden_stride * size);
  int inputs = quantised_inputs(model);
  t->integers = inputs ? ust_alloc(kernels->integers_bytes(max_rows, inputs)) : NULL;
  t->scratch = ust_alloc((size_t)threads * t->scratch_bytes);
  t->keys = ust_alloc(rows * sizeof *t->keys);
  t->identity = ust_alloc(rows * sizeof *t->identity);
  t->path = ust_alloc(rows * UST_TREE_DEPTH * sizeof *t->path);
  if (!t->kv || !t->parent || !t->depth || !t->residual || !t->qkv || !t->norm || !t->heads || !t->hidden ||
      (inputs && !t->integers) || !t->scratch || !t->keys || !t->identity || !t->path) {
    size_t bytes = (size_t)c->layers * (size_t)c->heads * t->head_bytes;
    ust_timeline_free(t);
    return ust_error_memory(err, bytes, "the KV cache and buffers of a session");
  }
  *timeline = t;
  return UNDERSTUDY_OK;
}

void ust_timeline_free(ust_timeline *t) {
  if (!t) return;
  void *const parts[] = {t->kv,     t->parent,   t->depth,   t->residual, t->qkv,      t->norm, t->heads,
                         t->hidden, t->integers, t->scratch, t->keys,     t->identity, t->path};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) ust_free(parts[i]);
  ust_free(t);
}

int ust_timeline_committed(const ust_timeline *t) {
  return t->committed;
}
int ust_timeline_nodes(const ust_timeline *t) {
  return t->nodes;
}

/* The keys of a new node: the committed positions, its ancestors, itself. As far as ancestors lie in the slot of
 * their position, they count as identity. */
static void describe_row(ust_timeline *t, int row, int node) {
  int depth = t->depth[node], straight = depth + 1, at = node;
  int32_t *path = t->path + (size_t)row * UST_TREE_DEPTH;
  /* A node whose index equals its depth has only such ancestors, as parents come before children. */
  for (int d = depth; d >= 0 && at != d; d--, at = t->parent[at]) straight = d;
  assert(depth + 1 - straight <= UST_TREE_DEPTH);
  t->keys[row] = t->committed + depth + 1;
  t->identity[row] = t->committed + straight;
  at = node;
  for (int d = depth; d >= straight; d--, at = t->parent[at]) path[d - straight] = t->committed + at;
}

static void add_nodes(ust_timeline *t, const int32_t *parents, int rows) {
  assert(rows <= t->max_rows && t->nodes + rows <= UST_MAX(UST_TREE_NODES, t->max_rows));
  for (int i = 0; i < rows; i++) {
    int node = t->nodes + i, parent = parents[i];
    assert(parent < node);
    t->parent[node] = parent;
    t->depth[node] = parent < 0 ? 0 : t->depth[parent] + 1;
    assert(t->committed + t->depth[node] < t->model->config.context);
    describe_row(t, i, node);
  }
}

typedef struct share {
  int begin, end;
} share;

/* This thread's part of n. */
static share share_of(int n, int thread, int threads) {
  return (share){(int)((int64_t)n * thread / threads), (int)((int64_t)n * (thread + 1) / threads)};
}

static void linear(ust_timeline *t, const ust_matrix *w, const void *x, int x_stride, int rows, const float *bias,
                   ust_epilogue epilogue, void *y, int y_stride, int thread, int threads) {
  const ust_kernels *kernels = t->model->kernels;
  share s = share_of(UST_ROUND_UP(w->rows, UST_PANEL) / UST_PANEL, thread, threads);
  if (ust_is_quantised(w->format)) {
    share own = share_of(rows, thread, threads);
    kernels->integers(x, (size_t)x_stride, rows, w->cols, own.begin, own.end, t->integers);
    ust_barrier_wait(&t->barrier);
    x = t->integers;
  }
  if (s.begin < s.end)
    kernels->matmul(w, s.begin, s.end, x, (size_t)x_stride, rows, bias, epilogue, y, (size_t)y_stride);
}

static void normalise(ust_timeline *t, const float *gain, const float *bias, int rows, int thread, int threads) {
  const ust_model *m = t->model;
  share s = share_of(rows, thread, threads);
  for (int r = s.begin; r < s.end; r++)
    m->kernels->layer_norm(t->residual + (size_t)r * m->width_stride, gain, bias, m->config.width,
                           m->config.norm_epsilon, t->norm + (size_t)r * m->width_stride * m->kernels->activation_size);
}

/* Stores the new keys and values of this thread's heads and attends. */
static void attend(ust_timeline *t, int layer, int rows, int thread, int threads) {
  const ust_model *m = t->model;
  const ust_kernels *kernels = m->kernels;
  int width = m->config.width, head_dim = width / m->config.heads;
  ust_attention_rows description = {rows, t->keys, t->identity, t->path, UST_TREE_DEPTH};
  share s = share_of(m->config.heads, thread, threads);
  for (int h = s.begin; h < s.end; h++) {
    char *kv = head_kv(t, layer, h);
    const float *q = t->qkv + (size_t)h * head_dim;
    for (int r = 0; r < rows; r++) {
      const float *row = q + (size_t)r * m->qkv_stride;
      kernels->kv_store(kv, t->slots, head_dim, t->committed + t->nodes + r, row + width, row + 2 * width);
    }
    kernels->attention(kv, t->slots, head_dim, &description, q, (size_t)m->qkv_stride,
                       t->heads + (size_t)h * head_dim * kernels->activation_size, (size_t)m->width_stride,
                       t->scratch + (size_t)thread * t->scratch_bytes);
  }
}

static void embed(ust_timeline *t, const int32_t *tokens, int rows, int thread, int threads) {
  const ust_model *m = t->model;
  int width = m->config.width;
  share s = share_of(rows, thread, threads);
  for (int r = s.begin; r < s.end; r++) {
    float *x = t->residual + (size_t)r * m->width_stride;
    const float *position = m->positions + (size_t)(t->keys[r] - 1) * width;
    m->kernels->unpack_row(&m->embedding, tokens[r], x);
    for (int i = 0; i < width; i++) x[i] += position[i];
  }
}

static void layer_pass(ust_timeline *t, int index, int rows, int thread, int threads) {
  const ust_model *m = t->model;
  const ust_layer *layer = &m->layers[index];
  normalise(t, layer->norm1_gain, layer->norm1_bias, rows, thread, threads);
  ust_barrier_wait(&t->barrier);
  linear(t, &layer->qkv, t->norm, m->width_stride, rows, layer->qkv_bias, UST_STORE, t->qkv, m->qkv_stride, thread,
         threads);
  ust_barrier_wait(&t->barrier);
  attend(t, index, rows, thread, threads);
  ust_barrier_wait(&t->barrier);
  linear(t, &layer->output, t->heads, m->width_stride, rows, layer->output_bias, UST_ADD, t->residual, m->width_stride,
         thread, threads);
  ust_barrier_wait(&t->barrier);
  normalise(t, layer->norm2_gain, layer->norm2_bias, rows, thread, threads);
  ust_barrier_wait(&t->barrier);
  linear(t, &layer->up, t->norm, m->width_stride, rows, layer->up_bias, UST_GELU, t->hidden, m->hidden_stride, thread,
         threads);
  ust_barrier_wait(&t->barrier);
  linear(t, &layer->down, t->hidden, m->hidden_stride, rows, layer->down_bias, UST_ADD, t->residual, m->width_stride,
         thread, threads);
  ust_barrier_wait(&t->barrier);
}

/* Brings the wanted rows of the residual together at the top; returns how many. */
static int select_rows(ust_timeline *t, const bool *want, int rows) {
  int count = 0;
  size_t stride = (size_t)t->model->width_stride;
  for (int r = 0; r < rows; r++) {
    if (want && !want[r]) continue;
    if (count != r)
      memcpy(t->residual + (size_t)count * stride, t->residual + (size_t)r * stride, stride * sizeof(float));
    count++;
  }
  return count;
}

/* Logits of `rows` rows of the residual. */
static void output_pass(ust_timeline *t, int rows, float *logits, int thread, int threads) {
  const ust_model *m = t->model;
  normalise(t, m->norm_gain, m->norm_bias, rows, thread, threads);
  ust_barrier_wait(&t->barrier);
  if (rows)
    linear(t, m->output.data ? &m->output : &m->embedding, t->norm, m->width_stride, rows, NULL, UST_STORE, logits,
           m->vocabulary_stride, thread, threads);
}

void ust_model_forward(ust_timeline *t, const int32_t *tokens, const int32_t *parents, int rows, const bool *want,
                       float *logits) {
  const ust_model *m = t->model;
  int wanted = 0;
  add_nodes(t, parents, rows);
#pragma omp parallel num_threads(m->threads)
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
#pragma omp single
    ust_barrier_start(&t->barrier, threads);
    embed(t, tokens, rows, thread, threads);
    ust_barrier_wait(&t->barrier);
    for (int i = 0; i < m->config.layers; i++) layer_pass(t, i, rows, thread, threads);
    if (logits) {
      if (thread == 0) wanted = select_rows(t, want, rows);
      ust_barrier_wait(&t->barrier);
      output_pass(t, wanted, logits, thread, threads);
    }
    m->kernels->release();
  }
  t->nodes += rows;
}

uint64_t ust_model_rehearse(ust_timeline *t, int rows, uint64_t bytes, int *part, float *logits) {
  const ust_model *m = t->model;
  const int parts = m->config.layers + 1, first = *part;
  int32_t parents[UST_TREE_NODES];
  int count = 0;
  uint64_t read = 0;
  assert(rows <= UST_TREE_NODES && t->committed == 0 && t->nodes == 0);
  for (; count < parts && read < bytes; count++) read += ust_model_part_bytes(m, (first + count) % parts);
  for (int i = 0; i < rows; i++) parents[i] = i - 1;
  add_nodes(t, parents, rows);
#pragma omp parallel num_threads(m->threads)
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
#pragma omp single
    ust_barrier_start(&t->barrier, threads);
    for (int i = 0; i < count; i++) {
      int at = (first + i) % parts;
      if (at < m->config.layers)
        layer_pass(t, at, rows, thread, threads);
      else
        output_pass(t, rows, logits, thread, threads);
      ust_barrier_wait(&t->barrier);
    }
    m->kernels->release();
  }
  *part = (first + count) % parts;
  return read;
}

void ust_timeline_commit(ust_timeline *t, const int32_t *path, int count) {
  const ust_model *m = t->model;
  int head_dim = m->config.width / m->config.heads, blocks = m->config.layers * m->config.heads;
  assert(t->committed + count <= t->context);
  int first = 0; /* rows before it stand where they belong */
  while (first < count && path[first] == first) first++;
  for (int i = first; i < count; i++) assert(path[i] >= i && path[i] < t->nodes && t->depth[path[i]] == i);
  for (int b = 0; b < blocks && first < count; b++) /* neighbouring slots share cache lines */
    for (int i = first; i < count; i++)
      m->kernels->kv_move(t->kv + (size_t)b * t->head_bytes, t->slots, head_dim, t->committed + path[i],
                          t->committed + i);
  t->committed += count;
  t->nodes = 0;
}

void ust_timeline_append(ust_timeline *t, const int32_t *tokens, int count, float *logits) {
  int32_t chain[UST_TREE_NODES] = {0};
  assert(t->nodes == 0 && count <= UST_TREE_NODES);
  for (int i = 0; i < count; i++) chain[i] = i - 1; /* parents */
  ust_model_forward(t, tokens, chain, count, NULL, logits);
  for (int i = 0; i < count; i++) chain[i] = i;
  ust_timeline_commit(t, chain, count);
}

void ust_timeline_truncate(ust_timeline *t, int count) {
  assert(count <= t->committed);
  t->committed = count;
  t->nodes = 0;
}
