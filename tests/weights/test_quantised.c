/* Quantised types against values another program computed (tests/fixtures/quantised): reading each, packing those that
 * have a format of their own at every kernel level, and Q4_0's rounding. */
#include <math.h>

#include "weights/bytes.h"

static char *slurp(const char *name, size_t size) {
  char path[512];
  snprintf(path, sizeof path, "%s/quantised/%s", FIXTURES, name);
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  char *data = malloc(size + 1);
  assert_non_null(data);
  assert_int_equal(fread(data, 1, size + 1, file), size);
  fclose(file);
  return data;
}

static ust_weights *open_blocks(void) {
  char path[512];
  understudy_error err = {0};
  ust_weights *w;
  snprintf(path, sizeof path, "%s/quantised/blocks.gguf", FIXTURES);
  if (ust_weights_open(path, &w, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  return w;
}

enum { VALUES = 3 * 8 + 5 * 2 * 96 + 3 * 2 * 512 };

static void values_of_every_type(void **state) {
  (void)state;
  float *expected = (float *)(void *)slurp("values.bin", VALUES * sizeof *expected), found[512];
  ust_weights *w = open_blocks();
  size_t at = 0;
  assert_int_equal(ust_weights_count(w), 9);
  for (size_t i = 0; i < ust_weights_count(w); i++) {
    const ust_tensor *t = ust_weights_tensor(w, i);
    if (i > 0) { /* the name is the type's */
      assert_int_equal(strncmp(t->name, ust_type_name(t->type), 4), 0);
      assert_true(ust_type_block(t->type) >= 32);
    }
    for (uint64_t r = 0; r < t->rows; r++, at += t->cols) {
      understudy_error err = {0};
      assert_int_equal(ust_weights_read_rows(w, t, r, 1, found, &err), UNDERSTUDY_OK);
      for (size_t c = 0; c < t->cols; c++)
        if (found[c] != expected[at + c])
          fail_msg("%s, row %d, element %zu: %.9g, expected %.9g", t->name, (int)r, c, (double)found[c],
                   (double)expected[at + c]);
    }
  }
  assert_int_equal(at, VALUES);
  free(expected);
  ust_weights_close(w);
}

static void check_packed(const ust_kernels *kernels, const ust_weights *w, const char *name, ust_format format) {
  understudy_error err = {0};
  const ust_tensor *t;
  unsigned char blocks[2 * 512 * 2] __attribute__((aligned(64)));
  float values[512], found[512];
  assert_int_equal(ust_weights_find(w, name, 2, 0, &t, &err), UNDERSTUDY_OK);
  assert_int_equal(ust_weights_read_blocks(w, t, 0, 2, blocks, &err), UNDERSTUDY_OK);
  ust_matrix m = {.format = format, .rows = 2, .cols = (int)t->cols};
  m.bytes = kernels->matrix_bytes(format, m.rows, m.cols);
  m.data = ust_alloc(m.bytes);
  assert_non_null(m.data);
  kernels->pack_blocks(&m, 0, 2, blocks);
  for (int r = 0; r < 2; r++) {
    assert_int_equal(ust_weights_read_rows(w, t, (uint64_t)r, 1, values, &err), UNDERSTUDY_OK);
    kernels->unpack_row(&m, r, found);
    for (int c = 0; c < m.cols; c++)
      if (found[c] != values[c])
        fail_msg("%s: %s, row %d, element %d: %.9g, of %.9g", kernels->name, name, r, c, (double)found[c],
                 (double)values[c]);
  }
  ust_free(m.data);
}

static void packed_as_read(void **state) {
  (void)state;
  ust_weights *w = open_blocks();
  for (int isa = 0; isa < UST_ISA_COUNT; isa++) {
    const ust_kernels *kernels = ust_kernels_get((ust_isa)isa, NULL);
    if (!kernels) continue;
    check_packed(kernels, w, "q8_0.weight", UST_FORMAT_Q8);
    check_packed(kernels, w, "q4_0.weight", UST_FORMAT_Q4);
    check_packed(kernels, w, "q4_k.weight", UST_FORMAT_Q4K);
  }
  ust_weights_close(w);
}

/* The file with the f16 at `at` of a tensor's first block infinite: both ways of reading refuse it by name. */
static void check_refused(const char *data, size_t size, const ust_tensor *tensor, uint64_t at) {
  static const unsigned char infinite[2] = {0, 0x7c};
  const char *path = in_folder("a.gguf");
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  fwrite(data, 1, size, file);
  fseek(file, (long)(tensor->offset + at), SEEK_SET);
  fwrite(infinite, 1, sizeof infinite, file);
  assert_int_equal(fclose(file), 0);
  ust_weights *w;
  const ust_tensor *t;
  float values[512];
  unsigned char blocks[2048];
  understudy_error err = {0};
  assert_int_equal(ust_weights_open(path, &w, &err), UNDERSTUDY_OK);
  assert_int_equal(ust_weights_find(w, tensor->name, 0, 0, &t, &err), UNDERSTUDY_OK);
  for (int as_blocks = 0; as_blocks < 2; as_blocks++) {
    if (as_blocks && t->type != UST_TYPE_Q8_0 && t->type != UST_TYPE_Q4_0 && t->type != UST_TYPE_Q4_K) continue;
    assert_int_equal(as_blocks ? ust_weights_read_blocks(w, t, 0, 1, blocks, &err)
                               : ust_weights_read_rows(w, t, 0, 1, values, &err),
                     UNDERSTUDY_ERROR_FORMAT);
    assert_non_null(strstr(err.message, t->name));
    assert_non_null(strstr(err.message, "expected finite numbers"));
    assert_int_equal(ust_weights_read_rows(w, t, 1, 1, values, &err), UNDERSTUDY_OK);
  }
  ust_weights_close(w);
}

static void infinite_scales(void **state) {
  (void)state;
  ust_weights *w = open_blocks();
  char path[512];
  snprintf(path, sizeof path, "%s", ust_weights_path(w));
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  fseek(file, 0, SEEK_END);
  size_t size = (size_t)ftell(file);
  fclose(file);
  char *data = slurp("blocks.gguf", size);
  for (size_t i = 1; i < ust_weights_count(w); i++) {
    const ust_tensor *t = ust_weights_tensor(w, i);
    check_refused(data, size, t, t->type == UST_TYPE_Q6_K ? 208 : 0);
    if (t->type == UST_TYPE_Q4_1 || t->type == UST_TYPE_Q5_1 || t->type == UST_TYPE_Q4_K || t->type == UST_TYPE_Q5_K)
      check_refused(data, size, t, 2);
  }
  free(data);
  ust_weights_close(w);
}

static void q4_0_rounding(void **state) {
  (void)state;
  char *data = slurp("q4_0.bin", 64 * sizeof(float) + 2 * sizeof(ust_q4_block));
  for (int b = 0; b < 2; b++) {
    float x[32];
    ust_q4_block block;
    memcpy(x, data + (size_t)b * sizeof x, sizeof x);
    ust_q4_quantize(x, &block);
    assert_memory_equal(&block, data + 2 * sizeof x + (size_t)b * sizeof block, sizeof block);
  }
  free(data);
  static const float odd[] = {0, 1e-45f, -1e-45f, 3e38f, INFINITY, NAN}; /* whatever they become, without a trap */
  for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
    float x[32] = {1e-45f, odd[i]};
    ust_q4_block block;
    ust_q4_quantize(x, &block);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(values_of_every_type), cmocka_unit_test(packed_as_read),
                                     cmocka_unit_test(infinite_scales), cmocka_unit_test(q4_0_rounding)};
  return cmocka_run_group_tests_name("quantised", tests, make_folder, remove_folder);
}
