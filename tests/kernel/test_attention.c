/* Attention and the KV cache of every kernel level: against a double-precision reference, and row invariance:
 * a row of a token tree, evaluated in any company with its ancestors scattered over the slots, has the bits of
 * the same row alone with its keys in order.
 *
 * Bound. Scores are f32 sums: |ds| <= 1e-6 sum|q k| / sqrt(d). From AVX2 on keys and values are kept in bf16, so
 * these levels get q, k and v that are bf16 already. Levels with bf16 activations may round each probability to
 * bf16 for the matrix unit, and round the result: 2^-8 relative each. So
 * |error| <= sum p|v| (2^-8 or 0, + 2 max|ds| + 2e-6) + (2^-8 or 2^-24) |out|. */
#include "kernel/check.h"

enum { MOST_ROWS = 96, MOST_DIM = 128 };

/* One call: a committed prefix in slots 0 … committed-1, then tree nodes, of which `count` are the call's rows. */
typedef struct scene {
  int committed, nodes, slots, head_dim, heads, head, rows;
  int parent[MOST_ROWS], depth[MOST_ROWS]; /* of nodes; depth of a root is 1 */
  int node_of[MOST_ROWS];                  /* of rows; -1: a prefix row that sees row_keys slots */
  int32_t keys[MOST_ROWS], identity[MOST_ROWS], path[MOST_ROWS * UST_TREE_DEPTH];
  float *k, *v; /* [slots, head_dim] by slot */
  float *q;     /* [rows, q_stride] */
  size_t q_stride, out_stride;
} scene;

static float key_scale;

static float random_input(const ust_kernels *kernels, float most) {
  float x = uniform(-most, most);
  return kernels->isa >= UST_ISA_AVX2 ? round_bf16(x) : x;
}

/* The slots of a node's ancestors and itself, in position order. */
static void node_path(const scene *s, int node, int32_t *path) {
  for (int n = node, at = s->depth[node] - 1; n >= 0; n = s->parent[n], at--) path[at] = s->committed + n;
}

static void make_rows(scene *s) {
  for (int r = 0; r < s->rows; r++) {
    int32_t *path = s->path + (size_t)r * UST_TREE_DEPTH;
    int node = s->node_of[r];
    memset(path, 0, UST_TREE_DEPTH * sizeof(*path));
    if (node < 0) {
      s->keys[r] = s->identity[r] = pick(1, s->committed);
    } else {
      int32_t all[UST_TREE_DEPTH];
      int lead = 0, depth = s->depth[node];
      node_path(s, node, all);
      if (pick(0, 1)) /* count ancestors that happen to lie in order into the identity part */
        while (lead < depth && all[lead] == s->committed + lead) lead++;
      s->keys[r] = s->committed + depth;
      s->identity[r] = s->committed + lead;
      memcpy(path, all + lead, (size_t)(depth - lead) * sizeof(*path));
    }
  }
}

static void make_scene(const ust_kernels *kernels, scene *s, int head_dim) {
  memset(s, 0, sizeof *s);
  s->head_dim = head_dim;
  s->committed = PICK_OF(0, 1, 2, 15, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 200, 268);
  s->nodes = pick(1, 64);
  int bushy = pick(0, 2);
  for (int n = 0; n < s->nodes; n++) {
    int parent = n == 0 ? -1 : bushy == 0 ? n - 1 : pick(bushy == 1 ? UST_MAX(n - 4, -1) : -1, n - 1);
    if (parent >= 0 && s->depth[parent] == UST_TREE_DEPTH) parent = -1;
    s->parent[n] = parent;
    s->depth[n] = parent < 0 ? 1 : s->depth[parent] + 1;
  }
  int want = pick(1, 4);
  for (int n = 0; n < s->nodes; n++)
    if (pick(1, 4) <= want || n == s->nodes - 1) s->node_of[s->rows++] = n;
  if (s->committed && pick(0, 2) == 0)
    for (int extra = pick(1, 6); extra; extra--) s->node_of[s->rows++] = -1;
  s->slots = UST_ROUND_UP(s->committed + s->nodes, UST_KV_BLOCK) + UST_KV_BLOCK * pick(0, 2);
  make_rows(s);
  s->heads = pick(1, 3);
  s->head = pick(0, s->heads - 1);
  s->q_stride = (size_t)UST_ROUND_UP(3 * s->heads * head_dim, 32);
  s->out_stride = (size_t)UST_ROUND_UP(s->heads * head_dim, 32);
  key_scale = (float[]){0.25f, 1, 3}[pick(0, 2)];
  size_t n = (size_t)s->slots * (size_t)head_dim;
  s->k = malloc(n * sizeof(float));
  s->v = malloc(n * sizeof(float));
  assert_true(s->k && s->v);
  for (size_t i = 0; i < n; i++) s->k[i] = random_input(kernels, key_scale), s->v[i] = random_input(kernels, 2);
  s->q = fenced_floats((size_t)s->rows * s->q_stride);
  for (size_t i = 0; i < (size_t)s->rows * s->q_stride; i++) s->q[i] = random_input(kernels, 2);
}

static void free_scene(scene *s) {
  free(s->k);
  free(s->v);
  fenced_release("attention");
}

static void *make_kv(const ust_kernels *kernels, int slots, int head_dim) {
  size_t size = kernels->kv_bytes(slots, head_dim);
  CHECK(size % 64 == 0, "%s: kv_bytes(%d, %d) = %zu would misalign the next head", kernels->name, slots, head_dim,
        size);
  void *kv = fenced(size);
  memset(kv, 0, size);
  return kv;
}

/* The scene's own call; returns out, where head s->head of each row is written. */
static void *run_scene(const ust_kernels *kernels, const scene *s) {
  void *kv = make_kv(kernels, s->slots, s->head_dim);
  for (int slot = 0; slot < s->committed + s->nodes; slot++) {
    size_t at = (size_t)slot * (size_t)s->head_dim;
    kernels->kv_store(kv, s->slots, s->head_dim, slot, s->k + at, s->v + at);
  }
  /* exact copies: reading past the last row's arrays must not go unnoticed */
  int32_t *keys = fenced((size_t)s->rows * sizeof(*keys)), *identity = fenced((size_t)s->rows * sizeof(*keys));
  int32_t *path = fenced((size_t)s->rows * UST_TREE_DEPTH * sizeof(*path));
  memcpy(keys, s->keys, (size_t)s->rows * sizeof(*keys));
  memcpy(identity, s->identity, (size_t)s->rows * sizeof(*keys));
  memcpy(path, s->path, (size_t)s->rows * UST_TREE_DEPTH * sizeof(*path));
  ust_attention_rows rows = {s->rows, keys, identity, path, UST_TREE_DEPTH};
  void *out = fenced((size_t)s->rows * s->out_stride * kernels->activation_size);
  void *scratch = fenced(kernels->attention_scratch(s->rows, s->slots, s->head_dim));
  size_t at = (size_t)s->head * (size_t)s->head_dim;
  kernels->attention(kv, s->slots, s->head_dim, &rows, s->q + at, s->q_stride,
                     (char *)out + at * kernels->activation_size, s->out_stride, scratch);
  for (int r = 0; r < s->rows; r++)
    for (size_t c = 0; c < s->out_stride; c++)
      if (c < at || c >= at + (size_t)s->head_dim)
        CHECK(isnan(load_activation(kernels, out, (size_t)r * s->out_stride + c)),
              "%s: attention wrote column %zu beside its head", kernels->name, c);
  return out;
}

static int slot_of(const scene *s, int row, int p) {
  return p < s->identity[row] ? p : s->path[row * UST_TREE_DEPTH + p - s->identity[row]];
}

/* The row in double precision, and the largest error allowed. */
static void reference_row(const ust_kernels *kernels, const scene *s, int row, double *out, double *bound) {
  int n = s->keys[row], dim = s->head_dim;
  const float *q = s->q + (size_t)row * s->q_stride + s->head * dim;
  double score[512], most = -INFINITY, score_error = 0, total = 0, sum_abs[MOST_DIM];
  for (int p = 0; p < n; p++) {
    double dot = 0, dot_abs = 0;
    for (int d = 0; d < dim; d++) {
      double product = (double)q[d] * (double)s->k[slot_of(s, row, p) * dim + d];
      dot += product;
      dot_abs += fabs(product);
    }
    score[p] = dot / sqrt(dim);
    score_error = fmax(score_error, 1e-6 * dot_abs / sqrt(dim));
    most = fmax(most, score[p]);
  }
  for (int p = 0; p < n; p++) total += score[p] = exp(score[p] - most);
  for (int d = 0; d < dim; d++) out[d] = sum_abs[d] = 0;
  for (int p = 0; p < n; p++)
    for (int d = 0; d < dim; d++) {
      double term = score[p] / total * (double)s->v[slot_of(s, row, p) * dim + d];
      out[d] += term;
      sum_abs[d] += fabs(term);
    }
  double probability = kernels->activation_size == 2 ? 0x1p-8 : 0;
  for (int d = 0; d < dim; d++)
    bound[d] = sum_abs[d] * (probability + 2 * score_error + 2e-6) + activation_error(kernels) * fabs(out[d]) + 1e-30;
}

static void attention_reference(const ust_kernels *kernels) {
  for (int trial = 0; trial < 60; trial++) {
    scene s;
    make_scene(kernels, &s, PICK_OF(16, 32, 64, 80));
    const void *out = run_scene(kernels, &s);
    for (int r = 0; r < s.rows; r++) {
      double want[MOST_DIM], bound[MOST_DIM];
      reference_row(kernels, &s, r, want, bound);
      for (int d = 0; d < s.head_dim; d++) {
        double got = load_activation(kernels, out, (size_t)r * s.out_stride + (size_t)(s.head * s.head_dim + d));
        CHECK(fabs(got - want[d]) <= bound[d],
              "%s: attention of head_dim %d, slots %d, row %d of %d, keys %d, identity %d, element %d: %.9g, expected "
              "%.9g +- %.3g",
              kernels->name, s.head_dim, s.slots, r, s.rows, s.keys[r], s.identity[r], d, got, want[d], bound[d]);
      }
    }
    free_scene(&s);
  }
}
LEVEL_TEST(attention_reference)

/* Row `row` of `s` as a scene of its own: keys in order in a cache of another size; `identity` of them said to
 * be in place, the rest named by the path all the same. */
static void lone_scene(const scene *s, int row, scene *lone) {
  memset(lone, 0, sizeof *lone);
  int n = s->keys[row], dim = s->head_dim;
  lone->committed = n;
  lone->head_dim = dim;
  lone->heads = pick(1, 2);
  lone->head = pick(0, lone->heads - 1);
  lone->rows = 1;
  lone->keys[0] = n;
  lone->identity[0] = n - pick(0, UST_MIN(n, UST_TREE_DEPTH));
  for (int p = lone->identity[0]; p < n; p++) lone->path[p - lone->identity[0]] = p;
  lone->slots = UST_ROUND_UP(n, UST_KV_BLOCK) + UST_KV_BLOCK * pick(0, 3);
  lone->q_stride = lone->out_stride = (size_t)UST_ROUND_UP(lone->heads * dim, 32);
  size_t bytes = (size_t)lone->slots * (size_t)dim * sizeof(float);
  lone->k = calloc(1, bytes);
  lone->v = calloc(1, bytes);
  assert_true(lone->k && lone->v);
  for (int p = 0; p < n; p++) {
    memcpy(lone->k + p * dim, s->k + slot_of(s, row, p) * dim, (size_t)dim * sizeof(float));
    memcpy(lone->v + p * dim, s->v + slot_of(s, row, p) * dim, (size_t)dim * sizeof(float));
  }
  lone->q = fenced_floats(lone->q_stride);
  fill_uniform(lone->q, lone->q_stride, -1, 1);
  memcpy(lone->q + lone->head * dim, s->q + (size_t)row * s->q_stride + s->head * dim, (size_t)dim * sizeof(float));
}

static void attention_invariance(const ust_kernels *kernels) {
  for (int trial = 0; trial < 40; trial++) {
    scene s;
    make_scene(kernels, &s, PICK_OF(16, 32, 64, 80));
    const char *out = run_scene(kernels, &s);
    int held = buffer_count;
    for (int r = 0; r < s.rows; r++) {
      scene lone;
      lone_scene(&s, r, &lone);
      const char *alone = run_scene(kernels, &lone);
      size_t size = kernels->activation_size, dim = (size_t)s.head_dim;
      CHECK(memcmp(out + ((size_t)r * s.out_stride + (size_t)s.head * dim) * size,
                   alone + (size_t)lone.head * dim * size, dim * size) == 0,
            "%s: attention of head_dim %d, row %d of %d, keys %d, identity %d, slots %d differs from the row alone "
            "(identity %d, slots %d)",
            kernels->name, s.head_dim, r, s.rows, s.keys[r], s.identity[r], s.slots, lone.identity[0], lone.slots);
      free(lone.k);
      free(lone.v);
      fenced_release_from("attention", held);
    }
    free_scene(&s);
  }
}
LEVEL_TEST(attention_invariance)

static bool descends(const scene *s, int node, int from) {
  while (node > from) node = s->parent[node];
  return node == from;
}

/* A node whose keys and values are not numbers changes no row but its own and its descendants': a sibling that was
 * rejected must leave no trace, whatever overflowed in it. */
static void attention_apart(const ust_kernels *kernels) {
  for (int trial = 0; trial < 40; trial++) {
    scene s;
    make_scene(kernels, &s, PICK_OF(16, 32, 64, 80));
    const char *before = run_scene(kernels, &s);
    int node = pick(0, s.nodes - 1);
    for (int d = 0; d < s.head_dim; d++) {
      size_t at = (size_t)(s.committed + node) * (size_t)s.head_dim + (size_t)d;
      s.k[at] = PICK_OF(0, 1) ? NAN : INFINITY;
      s.v[at] = PICK_OF(0, 1) ? NAN : -INFINITY;
    }
    const char *after = run_scene(kernels, &s);
    for (int r = 0; r < s.rows; r++) {
      size_t size = kernels->activation_size, at = ((size_t)r * s.out_stride + (size_t)(s.head * s.head_dim)) * size;
      CHECK(descends(&s, s.node_of[r], node) || memcmp(before + at, after + at, (size_t)s.head_dim * size) == 0,
            "%s: attention of head_dim %d, row %d of %d, keys %d, changed with node %d, which is none of its ancestors",
            kernels->name, s.head_dim, r, s.rows, s.keys[r], node);
    }
    free_scene(&s);
  }
}
LEVEL_TEST(attention_apart)

/* A moved slot holds what storing there would have put, and nothing else changes. */
static void kv_move_slots(const ust_kernels *kernels) {
  for (int trial = 0; trial < 20; trial++) {
    int dim = PICK_OF(16, 32, 64, 80), slots = UST_KV_BLOCK * pick(1, 4);
    void *moved = make_kv(kernels, slots, dim), *stored = make_kv(kernels, slots, dim);
    float *k = fenced_floats((size_t)dim), *v = fenced_floats((size_t)dim);
    int from = pick(0, slots - 1), to = trial == 0 ? from : pick(0, slots - 1);
    for (int slot = 0; slot < slots; slot++) {
      fill_uniform(k, (size_t)dim, -1, 1);
      fill_uniform(v, (size_t)dim, -1, 1);
      kernels->kv_store(moved, slots, dim, slot, k, v);
      kernels->kv_store(stored, slots, dim, slot, k, v);
    }
    fill_uniform(k, (size_t)dim, -1, 1);
    fill_uniform(v, (size_t)dim, -1, 1);
    kernels->kv_store(moved, slots, dim, from, k, v);
    kernels->kv_store(stored, slots, dim, from, k, v);
    kernels->kv_store(stored, slots, dim, to, k, v);
    CHECK(from == to || memcmp(moved, stored, kernels->kv_bytes(slots, dim)) != 0, "%s: kv_store(%d) did nothing",
          kernels->name, to);
    kernels->kv_move(moved, slots, dim, from, to);
    CHECK(memcmp(moved, stored, kernels->kv_bytes(slots, dim)) == 0, "%s: kv_move(slots %d, head_dim %d, %d -> %d)",
          kernels->name, slots, dim, from, to);
    fenced_release("kv_move");
  }
}
LEVEL_TEST(kv_move_slots)

int main(int argc, char **argv) {
  start(argc, argv);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(attention_reference_every_level),
      cmocka_unit_test(attention_invariance_every_level),
      cmocka_unit_test(attention_apart_every_level),
      cmocka_unit_test(kv_move_slots_every_level),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
