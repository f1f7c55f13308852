/* The forward pass of a GPT-2 over new nodes of a token tree, and the timeline it belongs to. */
#include "model/pass.h"

struct ust_timeline {
  const ust_model *model;
  int context, max_rows, slots;
  int committed, nodes;
  char *kv; /* [layer][head] blocks of kv_bytes(slots) */
  size_t head_bytes;
  int32_t *parent, *depth; /* of each node; depth 0 lies at position `committed` */
  ust_pass pass;
  int32_t *keys, *identity, *path; /* [max_rows], [max_rows], [max_rows, UST_TREE_DEPTH] */
};

static char *head_kv(const ust_timeline *t, int layer, int head) {
  return t->kv + ((size_t)layer * (size_t)t->model->config.heads + (size_t)head) * t->head_bytes;
}

understudy_status ust_timeline_create(const ust_model *model, int context, int max_rows, ust_timeline **timeline,
                                      understudy_error *err) {
  const ust_config *c = &model->config;
  const size_t rows = (size_t)max_rows, nodes = UST_TREE_NODES;
  assert(max_rows <= UST_TREE_NODES);
  ust_timeline *t = ust_alloc(sizeof *t);
  if (!t) return ust_error_memory(err, sizeof *t, "a timeline");
  t->model = model;
  t->context = context;
  t->max_rows = max_rows;
  t->slots = UST_ROUND_UP(context + (int)nodes, UST_KV_BLOCK);
  t->head_bytes = model->kernels->kv_bytes(t->slots, c->width / c->heads);
  const size_t kv_bytes = (size_t)c->layers * (size_t)c->heads * t->head_bytes;
  t->kv = ust_alloc(kv_bytes);
  t->parent = ust_alloc(nodes * sizeof *t->parent);
  t->depth = ust_alloc(nodes * sizeof *t->depth);
  t->keys = ust_alloc(rows * sizeof *t->keys);
  t->identity = ust_alloc(rows * sizeof *t->identity);
  t->path = ust_alloc(rows * UST_TREE_DEPTH * sizeof *t->path);
  const bool pass = ust_pass_init(&t->pass, model, model->layers, ust_model_words(model), max_rows, max_rows, t->slots);
  if (!pass || !t->kv || !t->parent || !t->depth || !t->keys || !t->identity || !t->path) {
    const size_t bytes = kv_bytes + t->pass.bytes;
    ust_timeline_free(t);
    return ust_error_memory(err, bytes, "the KV cache and buffers of a session");
  }
  *timeline = t;
  return UNDERSTUDY_OK;
}

void ust_timeline_free(ust_timeline *t) {
  if (!t) return;
  ust_pass_free(&t->pass);
  void *const parts[] = {t->kv, t->parent, t->depth, t->keys, t->identity, t->path};
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
  assert(rows <= t->max_rows && t->nodes + rows <= UST_TREE_NODES);
  for (int i = 0; i < rows; i++) {
    int node = t->nodes + i, parent = parents[i];
    assert(parent < node);
    t->parent[node] = parent;
    t->depth[node] = parent < 0 ? 0 : t->depth[parent] + 1;
    assert(t->committed + t->depth[node] < t->model->config.context);
    describe_row(t, i, node);
  }
}

/* Stores the new keys and values of this thread's heads and attends. */
static void attend(ust_timeline *t, int layer, int rows, ust_member me) {
  const ust_model *m = t->model;
  const ust_kernels *kernels = m->kernels;
  const int width = m->config.width, head_dim = width / m->config.heads;
  const ust_attention_rows description = {rows, t->keys, t->identity, t->path, UST_TREE_DEPTH};
  const ust_share own = ust_share_of(m->config.heads, me);
  for (int h = own.begin; h < own.end; h++) {
    char *kv = head_kv(t, layer, h);
    const float *q = t->pass.qkv + (size_t)h * head_dim;
    for (int r = 0; r < rows; r++) {
      const float *row = q + (size_t)r * m->qkv_stride;
      kernels->kv_store(kv, t->slots, head_dim, t->committed + t->nodes + r, row + width, row + 2 * width);
    }
    kernels->attention(kv, t->slots, head_dim, &description, q, (size_t)m->qkv_stride,
                       t->pass.heads + (size_t)h * head_dim * kernels->activation_size, (size_t)m->width_stride,
                       t->pass.scratch + (size_t)me.thread * t->pass.scratch_bytes);
  }
}

static void layer_pass(ust_timeline *t, int layer, int rows, ust_member me) {
  ust_pass_before_attention(&t->pass, layer, rows, me);
  attend(t, layer, rows, me);
  ust_pass_after_attention(&t->pass, layer, rows, me);
}

/* Brings the wanted rows of the residual together at the top; returns how many. */
static int select_rows(ust_timeline *t, const bool *want, int rows) {
  int count = 0;
  const size_t stride = (size_t)t->model->width_stride;
  float *residual = t->pass.residual;
  for (int r = 0; r < rows; r++) {
    if (want && !want[r]) continue;
    if (count != r) memcpy(residual + (size_t)count * stride, residual + (size_t)r * stride, stride * sizeof(float));
    count++;
  }
  return count;
}

/* Logits of `rows` rows of the residual. */
static void output_pass(ust_timeline *t, int rows, float *logits, ust_member me) {
  const ust_model *m = t->model;
  ust_pass_normalise(&t->pass, m->norm_gain, m->norm_bias, rows, me);
  if (rows) ust_pass_words(&t->pass, rows, logits, m->vocabulary_stride, me);
}

void ust_model_forward(ust_timeline *t, const int32_t *tokens, const int32_t *parents, int rows, const bool *want,
                       float *logits) {
  const ust_model *m = t->model;
  int wanted = 0;
  add_nodes(t, parents, rows);
#pragma omp parallel num_threads(m->threads)
  {
    const ust_member me = ust_pass_enter(&t->pass);
    ust_pass_embed(&t->pass, tokens, t->keys, rows, me);
    for (int i = 0; i < m->config.layers; i++) layer_pass(t, i, rows, me);
    if (logits) {
      if (me.thread == 0) wanted = select_rows(t, want, rows);
      ust_barrier_wait(&t->pass.barrier);
      output_pass(t, wanted, logits, me);
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
    const ust_member me = ust_pass_enter(&t->pass);
    for (int i = 0; i < count; i++) {
      int at = (first + i) % parts;
      if (at < m->config.layers)
        layer_pass(t, at, rows, me);
      else
        output_pass(t, rows, logits, me);
      ust_barrier_wait(&t->pass.barrier);
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
