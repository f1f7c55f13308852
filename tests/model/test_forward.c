/* Row invariance of the whole forward pass: the logits of a node have the same bits alone, in a chain, and in any
 * random tree of up to 64 nodes; and committing a path leaves the cache as plain decoding would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "support/random_model.h"

enum { VOCABULARY = 97, CONTEXT = 160, DEEPEST = 28, NODES = 64 };

typedef struct fixture {
  ust_model *model;
  ust_timeline *tree, *plain;
  size_t stride;
  float *logits, *reference;
} fixture;

static void feed(ust_timeline *timeline, const int32_t *tokens, int count, int chunk) {
  for (int at = 0; at < count;) {
    int32_t parents[64], path[64];
    int rows = UST_MIN(chunk, count - at);
    for (int i = 0; i < rows; i++) {
      parents[i] = i - 1;
      path[i] = i;
    }
    ust_model_forward(timeline, tokens + at, parents, rows, NULL, NULL);
    ust_timeline_commit(timeline, path, rows);
    at += rows;
  }
}

/* Logits of the last token of `text`, every token fed alone. */
static void one_by_one(fixture *f, const int32_t *text, int count, float *logits) {
  ust_timeline_truncate(f->plain, 0);
  feed(f->plain, text, count - 1, 1);
  int32_t parent = -1;
  ust_model_forward(f->plain, text + count - 1, &parent, 1, NULL, logits);
}

static void check_tree(fixture *f, uint64_t *state, int nodes) {
  int32_t text[CONTEXT], tokens[NODES], parents[NODES], depth[NODES];
  int prefix = random_below(state, 100);
  for (int i = 0; i < prefix; i++) text[i] = random_below(state, VOCABULARY);
  for (int i = 0; i < nodes; i++) {
    tokens[i] = random_below(state, VOCABULARY);
    do {
      parents[i] = i == 0 ? -1 : random_below(state, 3) ? i - 1 : random_below(state, i);
      depth[i] = parents[i] < 0 ? 0 : depth[parents[i]] + 1;
    } while (depth[i] > DEEPEST);
  }
  ust_timeline_truncate(f->tree, 0);
  feed(f->tree, text, prefix, 1 + random_below(state, 64));
  /* the tree may arrive in two passes, as a draft's does */
  int first = random_below(state, 2) ? nodes : 1 + random_below(state, nodes);
  ust_model_forward(f->tree, tokens, parents, first, NULL, f->logits);
  if (first < nodes)
    ust_model_forward(f->tree, tokens + first, parents + first, nodes - first, NULL,
                      f->logits + (size_t)first * f->stride);
  int path[DEEPEST + 1], node = random_below(state, nodes), length = depth[node] + 1;
  for (int at = node, d = depth[node]; at >= 0; at = parents[at], d--) path[d] = at;
  for (int d = 0; d < length; d++) text[prefix + d] = tokens[path[d]];
  one_by_one(f, text, prefix + length, f->reference);
  assert_memory_equal(f->logits + (size_t)node * f->stride, f->reference, VOCABULARY * sizeof(float));

  ust_timeline_commit(f->tree, path, length);
  int32_t parent = -1, next = random_below(state, VOCABULARY);
  text[prefix + length] = next;
  ust_model_forward(f->tree, &next, &parent, 1, NULL, f->logits);
  one_by_one(f, text, prefix + length + 1, f->reference);
  assert_memory_equal(f->logits, f->reference, VOCABULARY * sizeof(float));
}

static void rows_do_not_depend_on_company(void **unused) {
  (void)unused;
  for (int isa = 0; isa < UST_ISA_COUNT; isa++) {
    if (!ust_kernels_get((ust_isa)isa, NULL)) continue;
    for (int variant = 0; variant < 3; variant++) {
      static const ust_type types[] = {UST_TYPE_Q8_0, UST_TYPE_BF16, UST_TYPE_Q4_0};
      random_model shape = {VOCABULARY,           CONTEXT,        variant == 1 ? 80 : 64, 2,
                            variant == 1 ? 5 : 1, types[variant], (uint64_t)(17 + isa),   0.15f};
      fixture f = {.model = random_model_open(&shape, (ust_isa)isa, 1 + variant % 2)};
      understudy_error err;
      assert_int_equal(ust_timeline_create(f.model, CONTEXT, NODES, &f.tree, &err), UNDERSTUDY_OK);
      assert_int_equal(ust_timeline_create(f.model, CONTEXT, NODES, &f.plain, &err), UNDERSTUDY_OK);
      f.stride = ust_model_logit_stride(f.model);
      f.logits = ust_alloc(NODES * f.stride * sizeof(float));
      f.reference = ust_alloc(f.stride * sizeof(float));
      uint64_t state = 99;
      for (int i = 0; i < 12; i++) check_tree(&f, &state, i == 0 ? NODES : 1 + random_below(&state, NODES));
      ust_free(f.logits);
      ust_free(f.reference);
      ust_timeline_free(f.tree);
      ust_timeline_free(f.plain);
      ust_model_close(f.model);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(rows_do_not_depend_on_company)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
