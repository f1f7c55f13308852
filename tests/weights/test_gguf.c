/* GGUF: what is written is read back, in every type and odd shapes; what cannot be written leaves no file. */
#include <dirent.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "weights/bytes.h"

static const struct {
  const char *name;
  ust_type type;
  uint64_t rows, cols;
} shapes[] = {{"token_embd.weight", UST_TYPE_F32, 5, 64},
              {"f16", UST_TYPE_F16, 7, 33},
              {"bf16", UST_TYPE_BF16, 3, 1},
              {"q8", UST_TYPE_Q8_0, 9, 96},
              {"vector", UST_TYPE_F32, 1, 13},
              {"q8.row", UST_TYPE_Q8_0, 1, 32},
              {"q4", UST_TYPE_Q4_0, 7, 96},
              {"long", UST_TYPE_BF16, 3, 40001},
              {"last", UST_TYPE_F16, 1, 1}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static float *random_values(size_t count, uint64_t seed) {
  float *values = malloc(count * sizeof *values);
  assert_non_null(values);
  for (size_t i = 0; i < count; i++) values[i] = next_float(&seed);
  return values;
}

static const ust_text tokens[5] = {{"a", 1}, {"", 0}, {"\xe6\xad", 2}, {"b c", 3}, {"<|endoftext|>", 13}};
static const ust_text merges[2] = {{"a b", 3}, {"ab c", 4}};
static const int32_t types[5] = {1, 1, 1, 1, 3};

static void write_shapes(const char *path) {
  understudy_error err = {0};
  ust_gguf_writer *w;
  assert_int_equal(ust_gguf_create(path, &w, &err), UNDERSTUDY_OK);
  ust_config config = {"gpt2", "tiny", 5, 128, 64, 3, 4, 256, 1e-5f, -1, 4};
  ust_gguf_config(w, &config, UST_TYPE_Q8_0);
  ust_gguf_vocabulary(
      w, &(ust_vocabulary){.tokens = tokens, .types = types, .count = 5, .merges = merges, .merge_count = 2});
  for (int i = 0; i < SHAPES; i++) ust_gguf_declare(w, shapes[i].name, shapes[i].type, shapes[i].rows, shapes[i].cols);
  for (int i = 0; i < SHAPES; i++) {
    float *values = random_values(shapes[i].rows * shapes[i].cols, 100u + (unsigned)i);
    for (uint64_t r = 0; r < shapes[i].rows;) { /* in pieces of uneven size */
      uint64_t take = UST_MIN(1 + r % 3, shapes[i].rows - r);
      ust_gguf_rows(w, values + r * shapes[i].cols, take);
      r += take;
    }
    free(values);
  }
  assert_int_equal(access(path, F_OK), -1); /* nothing under its name before commit */
  if (ust_gguf_commit(w, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
}

static float stored(ust_type type, const float *row, uint64_t col) {
  if (type == UST_TYPE_F16) return ust_f16_to_f32(ust_f32_to_f16(row[col]));
  if (type == UST_TYPE_BF16) return ust_bf16_to_f32(ust_f32_to_bf16(row[col]));
  if (type == UST_TYPE_F32) return row[col];
  if (type == UST_TYPE_Q4_0) {
    ust_q4_block block;
    ust_q4_quantize(row + col / 32 * 32, &block);
    return ust_f16_to_f32(block.scale) * (float)((block.q[col % 16] >> col % 32 / 16 * 4 & 15) - 8);
  }
  ust_q8_block block;
  ust_q8_quantize(row + col / 32 * 32, &block);
  return ust_f16_to_f32(block.scale) * (float)block.q[col % 32];
}

static void check_shape(const ust_weights *w, int i) {
  understudy_error err = {0};
  const ust_tensor *t;
  uint64_t rows = shapes[i].rows, cols = shapes[i].cols;
  assert_int_equal(ust_weights_find(w, shapes[i].name, rows, cols, &t, &err), UNDERSTUDY_OK);
  assert_int_equal(t->type, shapes[i].type);
  assert_int_equal(t->offset % 32, 0);
  float *values = random_values(rows * cols, 100u + (unsigned)i), *read = malloc(rows * cols * sizeof *read);
  for (uint64_t first = 0; first < rows; first++) {
    assert_int_equal(ust_weights_read_rows(w, t, first, rows - first, read, &err), UNDERSTUDY_OK);
    for (uint64_t r = first; r < rows; r++)
      for (uint64_t c = 0; c < cols; c++)
        assert_true(read[(r - first) * cols + c] == stored(t->type, values + r * cols, c));
  }
  ust_q8_block blocks[9 * 3], expected;
  if (t->type == UST_TYPE_Q8_0) {
    assert_int_equal(ust_weights_read_blocks(w, t, rows - 1, 1, blocks, &err), UNDERSTUDY_OK);
    for (uint64_t b = 0; b < cols / 32; b++) {
      ust_q8_quantize(values + (rows - 1) * cols + b * 32, &expected);
      assert_memory_equal(&blocks[b], &expected, sizeof expected);
    }
    assert_int_equal(ust_weights_read_blocks(w, t, rows, 1, blocks, &err), UNDERSTUDY_ERROR_ARGUMENT);
  } else if (t->type != UST_TYPE_Q4_0) {
    assert_int_equal(ust_weights_read_blocks(w, t, 0, 1, blocks, &err), UNDERSTUDY_ERROR_ARGUMENT);
  }
  free(values);
  free(read);
}

static void count_key(void *user, const char *key, const char *value) {
  assert_true(key[0]);
  if (strcmp(key, "tokenizer.ggml.tokens") == 0) assert_string_equal(value, "[5 strings]");
  if (strcmp(key, "gpt2.block_count") == 0) assert_string_equal(value, "3");
  if (strcmp(key, "general.name") == 0) assert_string_equal(value, "tiny");
  ++*(int *)user;
}

static void check_texts(const ust_text *found, const ust_text *expected, size_t count) {
  for (size_t i = 0; i < count; i++) {
    assert_int_equal(found[i].size, expected[i].size);
    assert_memory_equal(found[i].data, expected[i].data, expected[i].size);
  }
}

static void check_vocabulary(const ust_weights *w) {
  ust_vocabulary v;
  understudy_error err;
  assert_int_equal(ust_weights_vocabulary(w, &v, &err), UNDERSTUDY_OK);
  assert_int_equal(v.count, 5);
  assert_int_equal(v.merge_count, 2);
  check_texts(v.tokens, tokens, 5);
  check_texts(v.merges, merges, 2);
  assert_memory_equal(v.types, types, sizeof types);
  assert_int_equal(v.bos, -1);
  assert_int_equal(v.eos, 4);
}

static void round_trip(void **state) {
  (void)state;
  unlink(in_folder("b.gguf"));
  write_shapes(in_folder("b.gguf"));
  understudy_error err = {0};
  ust_weights *w;
  if (ust_weights_open(in_folder("b.gguf"), &w, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  const ust_config *c = ust_weights_config(w);
  assert_string_equal(c->name, "tiny");
  assert_int_equal(c->vocabulary, 5);
  assert_int_equal(c->layers, 3);
  assert_int_equal(c->bos, -1);
  assert_int_equal(c->eos, 4);
  assert_true(c->norm_epsilon == 1e-5f);
  assert_false(ust_weights_is_directory(w));
  assert_int_equal(ust_weights_count(w), SHAPES);
  for (int i = 0; i < SHAPES; i++) check_shape(w, i);
  check_vocabulary(w);
  int count = 0;
  ust_weights_each_key(w, count_key, &count);
  assert_int_equal(count, 17);
  ust_weights_close(w);
}

/* What a caller does wrong is an error at commit, and leaves no file. */
static void writer_refuses(void **state) {
  (void)state;
  static const float values[64];
  for (int wrong = 0; wrong < 8; wrong++) {
    unlink(in_folder("b.gguf"));
    understudy_error err = {0};
    ust_gguf_writer *w;
    assert_int_equal(ust_gguf_create(in_folder("b.gguf"), &w, &err), UNDERSTUDY_OK);
    if (wrong == 0) ust_gguf_declare(w, "x", UST_TYPE_Q8_0, 2, 33);
    if (wrong == 7) ust_gguf_declare(w, "x", UST_TYPE_Q4_0, 2, 48);
    if (wrong == 1) ust_gguf_declare(w, "x", UST_TYPE_F32, 2, 8);
    if (wrong == 2) ust_gguf_rows(w, values, 1);
    if (wrong == 3) {
      ust_gguf_declare(w, "x", UST_TYPE_F32, 2, 8);
      ust_gguf_rows(w, values, 3);
    }
    if (wrong == 4) {
      ust_gguf_declare(w, "x", UST_TYPE_F32, 2, 8);
      ust_gguf_u32(w, "late", 1);
      ust_gguf_rows(w, values, 2);
    }
    if (wrong == 5) ust_gguf_declare(w, "x", UST_TYPE_F32, (uint64_t)1 << 62, (uint64_t)1 << 62);
    if (wrong == 6) {
      ust_gguf_u32(w, "key", 1);
      ust_gguf_text(w, "key", "1");
    }
    assert_int_equal(ust_gguf_commit(w, &err), UNDERSTUDY_ERROR_ARGUMENT);
    assert_true(err.message[0]);
    assert_int_equal(access(in_folder("b.gguf"), F_OK), -1);
  }
  understudy_error err = {0};
  ust_gguf_writer *w;
  assert_int_equal(ust_gguf_create(in_folder("no/such/folder.gguf"), &w, &err), UNDERSTUDY_ERROR_IO);
  assert_null(w);
}

/* A value the type cannot hold is refused by the tensor's name, not made into another one; what just fits is
 * written. */
static void values_that_do_not_fit(void **state) {
  (void)state;
  static const struct {
    ust_type type;
    float fits, beyond;
  } cases[] = {{UST_TYPE_F32, FLT_MAX, INFINITY},
               {UST_TYPE_BF16, 0x1.fep127f, FLT_MAX},
               {UST_TYPE_F16, 65504, 65520},
               {UST_TYPE_Q8_0, 127 * 65504.0f, 128 * 65504.0f},
               {UST_TYPE_Q4_0, 8 * 65504.0f, 9 * 65504.0f}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int with = 0; with < 3; with++) {
      float values[2 * 64] = {0};
      values[100] = with == 0 ? -cases[i].fits : with == 1 ? -cases[i].beyond : NAN;
      unlink(in_folder("b.gguf"));
      understudy_error err = {0};
      ust_gguf_writer *w;
      assert_int_equal(ust_gguf_create(in_folder("b.gguf"), &w, &err), UNDERSTUDY_OK);
      ust_gguf_declare(w, "first", cases[i].type, 2, 64);
      ust_gguf_declare(w, "second", cases[i].type, 2, 64);
      ust_gguf_rows(w, (const float[128]){0}, 2);
      ust_gguf_rows(w, values, 2);
      assert_int_equal(ust_gguf_commit(w, &err), with == 0 ? UNDERSTUDY_OK : UNDERSTUDY_ERROR_FORMAT);
      if (with > 0) assert_non_null(strstr(err.message, "second: found a value of "));
      assert_int_equal(access(in_folder("b.gguf"), F_OK), with == 0 ? 0 : -1);
    }
}

/* An infinite or undefined value anywhere in a row, written behind the writer's back. */
static void values_that_are_none(void **state) {
  (void)state;
  static const struct {
    const char *name;
    uint32_t bits[2];
    size_t bytes;
    uint64_t step;
  } cases[] = {{"token_embd.weight", {0x7f7f8000, 0xffc00001}, 4, 1},
               {"f16", {0xfc00, 0x7c01}, 2, 1},
               {"long", {0x7f80, 0xffff}, 2, 1777}};
  unlink(in_folder("b.gguf"));
  write_shapes(in_folder("b.gguf"));
  understudy_error err = {0};
  ust_weights *w;
  assert_int_equal(ust_weights_open(in_folder("b.gguf"), &w, &err), UNDERSTUDY_OK);
  int file = open(in_folder("b.gguf"), O_RDWR);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const ust_tensor *t;
    assert_int_equal(ust_weights_find(w, cases[i].name, 0, 0, &t, &err), UNDERSTUDY_OK);
    float *row = malloc(t->cols * sizeof *row);
    for (uint64_t at = 0; at < t->rows * t->cols; at += cases[i].step) {
      uint32_t before;
      off_t place = (off_t)(t->offset + at * cases[i].bytes);
      pread(file, &before, cases[i].bytes, place);
      pwrite(file, &cases[i].bits[at % 2], cases[i].bytes, place);
      assert_int_equal(ust_weights_read_rows(w, t, at / t->cols, 1, row, &err), UNDERSTUDY_ERROR_FORMAT);
      assert_non_null(strstr(err.message, cases[i].name));
      assert_non_null(strstr(err.message, "expected finite numbers"));
      assert_int_equal(ust_weights_read_rows(w, t, (at / t->cols + 1) % t->rows, 1, row, &err), UNDERSTUDY_OK);
      pwrite(file, &before, cases[i].bytes, place);
    }
    free(row);
  }
  close(file);
  ust_weights_close(w);
}

/* A disk that is full half-way: an error, and nothing left behind. A limit on the size of files stands for it. */
static void full_disk(void **state) {
  (void)state;
  unlink(in_folder("b.gguf"));
  struct rlimit limit, before;
  getrlimit(RLIMIT_FSIZE, &before);
  limit = (struct rlimit){65536, before.rlim_max};
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &limit);
  understudy_error err = {0};
  ust_gguf_writer *w;
  assert_int_equal(ust_gguf_create(in_folder("b.gguf"), &w, &err), UNDERSTUDY_OK);
  ust_gguf_declare(w, "x", UST_TYPE_F32, 1000, 1000);
  static const float row[1000];
  for (int i = 0; i < 1000; i++) ust_gguf_rows(w, row, 1);
  understudy_status status = ust_gguf_commit(w, &err);
  setrlimit(RLIMIT_FSIZE, &before);
  assert_int_equal(status, UNDERSTUDY_ERROR_IO);
  assert_non_null(strstr(err.message, "b.gguf"));
  assert_int_equal(access(in_folder("b.gguf"), F_OK), -1);
  DIR *listing = opendir(folder);
  for (struct dirent *entry; (entry = readdir(listing));) assert_null(strstr(entry->d_name, ".tmp"));
  closedir(listing);
}

/* A file cut while it is open is an error, not a signal. */
static void cut_while_open(void **state) {
  (void)state;
  unlink(in_folder("b.gguf"));
  write_shapes(in_folder("b.gguf"));
  understudy_error err = {0};
  ust_weights *w;
  assert_int_equal(ust_weights_open(in_folder("b.gguf"), &w, &err), UNDERSTUDY_OK);
  assert_int_equal(truncate(in_folder("b.gguf"), 4096), 0);
  const ust_tensor *t;
  assert_int_equal(ust_weights_find(w, "long", 0, 0, &t, &err), UNDERSTUDY_OK);
  float *row = malloc(t->cols * sizeof *row);
  assert_int_equal(ust_weights_read_rows(w, t, 1, 1, row, &err), UNDERSTUDY_ERROR_IO);
  free(row);
  ust_weights_close(w);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip),
                                     cmocka_unit_test(writer_refuses),
                                     cmocka_unit_test(values_that_do_not_fit),
                                     cmocka_unit_test(values_that_are_none),
                                     cmocka_unit_test(full_disk),
                                     cmocka_unit_test(cut_while_open)};
  return cmocka_run_group_tests_name("gguf", tests, make_folder, remove_folder);
}
