/* GGUF files that are not what they should be: each fails with one line that names file and field, soon and in
 * little memory. Each case is a small good file with one thing spoiled. */
#include "weights/gguf_file.h"

static void expect_bytes_error(const ust_buffer *b, const char *field) {
  write_file("a.gguf", b->data, b->size);
  expect_error(in_folder("a.gguf"), field);
}

static void expect_spec_error(const file_spec *s, const char *field) {
  ust_buffer b = build(s);
  expect_bytes_error(&b, field);
  ust_buffer_free(&b);
}

static void good_file_opens(void **state) {
  (void)state;
  ust_buffer b = build(&good);
  write_file("a.gguf", b.data, b.size);
  ust_buffer_free(&b);
  expect_open(in_folder("a.gguf"));
  file_spec version2 = good;
  version2.version = 2;
  b = build(&version2);
  write_file("a.gguf", b.data, b.size);
  ust_buffer_free(&b);
  understudy_error err;
  ust_weights *w;
  assert_int_equal(ust_weights_open(in_folder("a.gguf"), &w, &err), UNDERSTUDY_OK);
  const ust_config *c = ust_weights_config(w);
  assert_string_equal(c->architecture, "gpt2");
  assert_int_equal(c->vocabulary, 3);
  assert_int_equal(c->context, 16);
  assert_int_equal(c->feed_forward, 32);
  assert_int_equal(c->bos, 1);
  assert_int_equal(c->eos, -1);
  ust_vocabulary vocabulary;
  assert_int_equal(ust_weights_vocabulary(w, &vocabulary, &err), UNDERSTUDY_ERROR_FORMAT);
  assert_non_null(strstr(err.message, "a.gguf: found no tokenizer.ggml.merges"));
  const ust_tensor *t;
  assert_int_equal(ust_weights_find(w, "token_embd.weight", 3, 9, &t, &err), UNDERSTUDY_ERROR_FORMAT);
  assert_non_null(strstr(err.message, "3 x 8"));
  assert_int_equal(ust_weights_find(w, "output.weight", 0, 0, &t, &err), UNDERSTUDY_ERROR_FORMAT);
  assert_non_null(strstr(err.message, "output.weight"));
  float values[24];
  assert_int_equal(ust_weights_find(w, "token_embd.weight", 3, 8, &t, &err), UNDERSTUDY_OK);
  assert_int_equal(ust_weights_read_rows(w, t, 2, 2, values, &err), UNDERSTUDY_ERROR_ARGUMENT);
  assert_int_equal(ust_weights_read_rows(w, t, UINT64_MAX, 2, values, &err), UNDERSTUDY_ERROR_ARGUMENT);
  ust_weights_close(w);
}

/* ---- hostile files ---- */

static void sizes_of_lists(void **state) {
  (void)state;
  static const uint64_t counts[] = {UINT64_MAX - 100, UINT64_MAX / 16, (uint64_t)1 << 60, 1000000};
  for (size_t i = 0; i < 4; i++) {
    file_spec s = good;
    s.tensors = counts[i];
    expect_spec_error(&s, "n_tensors");
    s = good;
    s.keys = counts[i];
    expect_spec_error(&s, "n_kv");
  }
  file_spec s = good;
  s.keys = 60000; /* allowed, but there is no room for them */
  expect_spec_error(&s, "n_kv");
  s.keys = 3;
  expect_spec_error(&s, "key ");
  s = good;
  s.tensors = 3;
  expect_spec_error(&s, "tensor ");
}

static void lengths_of_texts(void **state) {
  (void)state;
  static const uint64_t lengths[] = {UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63, (uint64_t)1 << 40, 5000};
  for (size_t i = 0; i < 5; i++) {
    ust_buffer more = {0};
    put_u64(&more, lengths[i]); /* a key */
    put_zeros(&more, 40);
    file_spec s = good;
    s.more = &more;
    s.more_count = 1;
    expect_spec_error(&s, "key 12");
    more.size = 0;
    put_text(&more, "general.name"); /* a string */
    put_u32(&more, STRING);
    put_u64(&more, lengths[i]);
    put_zeros(&more, 40);
    expect_spec_error(&s, "general.name");
    more.size = 0;
    put_text(&more, "tokenizer.ggml.merges"); /* a string of an array */
    put_u32(&more, ARRAY);
    put_u32(&more, STRING);
    put_u64(&more, 2);
    put_text(&more, "a b");
    put_u64(&more, lengths[i]);
    put_zeros(&more, 40);
    expect_spec_error(&s, "tokenizer.ggml.merges");
    ust_buffer_free(&more);
  }
}

static void arrays(void **state) {
  (void)state;
  static const struct {
    uint32_t element;
    uint64_t count;
  } cases[] = {{U64, (uint64_t)1 << 61},        {F64, UINT64_MAX}, {STRING, (uint64_t)1 << 61},
               {STRING, (uint64_t)1 << 60},     {U8, UINT64_MAX},  {13, (uint64_t)1 << 60},
               {UINT32_MAX, (uint64_t)1 << 60}, {99, 0},           {U32, 1 << 20},
               {I32, (uint64_t)1 << 62}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    ust_buffer more = {0};
    put_text(&more, "x.array");
    put_u32(&more, ARRAY);
    put_u32(&more, cases[i].element);
    put_u64(&more, cases[i].count);
    put_zeros(&more, 64);
    file_spec s = good;
    s.more = &more;
    s.more_count = 1;
    expect_spec_error(&s, "x.array");
    ust_buffer_free(&more);
  }
  ust_buffer deep = {0};
  put_text(&deep, "x.deep");
  put_u32(&deep, ARRAY);
  for (int i = 0; i < 10000; i++) {
    put_u32(&deep, ARRAY);
    put_u64(&deep, 1);
  }
  file_spec s = good;
  s.more = &deep;
  s.more_count = 1;
  expect_spec_error(&s, "x.deep");
  deep.size = 0;
  put_text(&deep, "x.unknown");
  put_u32(&deep, 13);
  put_zeros(&deep, 8);
  expect_spec_error(&s, "x.unknown");
  ust_buffer_free(&deep);
}

static void bad_tensor(tensor_spec t, const char *field) {
  file_spec s = good;
  s.list = &t;
  s.list_count = 1;
  s.data = 4096;
  expect_spec_error(&s, field);
}

static void tensors(void **state) {
  (void)state;
  const uint64_t one = 1;
  tensor_spec ok = {"x.weight", 2, 0, {8, 2}, 96};
  file_spec s = good;
  s.list = &ok;
  s.list_count = 1;
  s.data = 4096;
  ust_buffer b = build(&s);
  write_file("a.gguf", b.data, b.size);
  ust_buffer_free(&b);
  expect_open(in_folder("a.gguf"));
  bad_tensor((tensor_spec){"x.weight", 2, 0, {one << 32, one << 32}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 2, 0, {one << 62, 4}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 2, 0, {one << 62, 1}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 3, 0, {one << 31, one << 31, 4}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 4, 0, {2, one << 31, one << 31, 4}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 1, 0, {one << 63}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 1, 0, {UINT64_MAX}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 1, 8, {UINT64_MAX - 31}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 2, 0, {8, 0}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 1, 0, {0}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 0, 0, {0}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 5, 0, {1, 1, 1, 1}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", UINT32_MAX, 0, {1, 1, 1, 1}, 96}, "x.weight");
  static const uint32_t types[] = {4, 5, 9, 10, 15, 24, 31, 33, 36, 39, 40, 99, UINT32_MAX};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    bad_tensor((tensor_spec){"x.weight", 2, types[i], {32, 2}, 96}, "x.weight");
  static const uint32_t of_blocks[] = {2, 3, 6, 7, 8, 12, 13, 14}; /* rows that are not whole blocks; sizes that wrap */
  for (size_t i = 0; i < sizeof of_blocks / sizeof *of_blocks; i++) {
    uint64_t block = of_blocks[i] < 12 ? 32 : 256;
    bad_tensor((tensor_spec){"x.weight", 2, of_blocks[i], {block + 1, 2}, 96}, "expected a multiple of");
    bad_tensor((tensor_spec){"x.weight", 2, of_blocks[i], {block / 2, 2}, 96}, "expected a multiple of");
    bad_tensor((tensor_spec){"x.weight", 1, of_blocks[i], {1}, 96}, "expected a multiple of");
    bad_tensor((tensor_spec){"x.weight", 2, of_blocks[i], {block, one << 59}, 96}, "x.weight");
    bad_tensor((tensor_spec){"x.weight", 2, of_blocks[i], {UINT64_MAX - block + 1, 1}, 96}, "x.weight");
    bad_tensor((tensor_spec){"x.weight", 2, of_blocks[i], {block, 100000}, 96}, "x.weight");
  }
  bad_tensor((tensor_spec){"x.weight", 2, 0, {8, 2}, 100}, "offset 100");
  bad_tensor((tensor_spec){"x.weight", 2, 0, {8, 2}, 64}, "overlapping");
  bad_tensor((tensor_spec){"x.weight", 2, 0, {8, 2}, 4096}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 2, 0, {8, 200}, 96}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 2, 0, {8, 2}, UINT64_MAX - 31}, "x.weight");
  bad_tensor((tensor_spec){"x.weight", 2, 0, {8, 2}, UINT64_MAX - 63}, "x.weight");
  bad_tensor((tensor_spec){"token_embd.weight", 2, 0, {8, 2}, 96}, "token_embd.weight: found twice");
  bad_tensor((tensor_spec){"", 2, 0, {8, 2}, 96}, "tensor 1");
  bad_tensor((tensor_spec){"a name of more than sixty-three bytes, which nothing that reads GGUF takes", 1, 0, {8}, 96},
             "tensor 1");
  tensor_spec two[2] = {{"x", 1, 0, {one << 61}, 96}, {"y", 1, 0, {one << 61}, (one << 63) + 96}};
  s.list = two;
  s.list_count = 2;
  expect_spec_error(&s, "tensor x");
}

static void bad_number(void (*spoil)(file_spec *s, uint64_t value), uint64_t value, const char *field) {
  file_spec s = good;
  spoil(&s, value);
  expect_spec_error(&s, field);
}
static void set_alignment(file_spec *s, uint64_t v) {
  s->alignment = (uint32_t)v;
}
static void set_blocks(file_spec *s, uint64_t v) {
  s->blocks = (uint32_t)v;
}
static void set_heads(file_spec *s, uint64_t v) {
  s->heads = (uint32_t)v;
}
static void set_width(file_spec *s, uint64_t v) {
  s->width = (uint32_t)v;
}
static void set_bos(file_spec *s, uint64_t v) {
  s->bos = (uint32_t)v;
}
static void set_context(file_spec *s, uint64_t v) {
  s->context = v;
}
static void set_feed_forward(file_spec *s, uint64_t v) {
  s->feed_forward = v;
}
static void set_types(file_spec *s, uint64_t v) {
  s->types = v;
}

static void configuration(void **state) {
  (void)state;
  bad_number(set_alignment, 0, "general.alignment");
  bad_number(set_alignment, 13, "general.alignment");
  bad_number(set_alignment, 48, "general.alignment");
  bad_number(set_alignment, (uint64_t)1 << 31, "general.alignment");
  bad_number(set_blocks, 0, "block_count");
  bad_number(set_blocks, 513, "block_count");
  bad_number(set_blocks, UINT32_MAX, "block_count");
  bad_number(set_heads, 0, "head_count");
  bad_number(set_heads, 3, "heads");
  bad_number(set_heads, 16, "heads");
  bad_number(set_width, 0, "embedding_length");
  bad_number(set_width, 16, "token_embd.weight");
  bad_number(set_width, UINT32_MAX, "embedding_length");
  bad_number(set_context, 0, "context_length");
  bad_number(set_context, (uint64_t)1 << 31, "context_length");
  bad_number(set_context, UINT64_MAX, "context_length");
  bad_number(set_feed_forward, 0, "feed_forward_length");
  bad_number(set_bos, 3, "bos_token_id");
  bad_number(set_bos, UINT32_MAX, "bos_token_id");
  bad_number(set_types, 2, "token_type");
  bad_number(set_types, 4, "token_type");
  file_spec s = good;
  s.alignment_type = F32;
  expect_spec_error(&s, "general.alignment");
  s.alignment_type = U64;
  expect_spec_error(&s, "general.alignment");
  s = good;
  s.token_type_element = F32;
  expect_spec_error(&s, "token_type");
  static const char *const byte_tokens[] = {"<0x-1>", "<0xZZ>", "<0x4>", "", "<0x041>"};
  for (size_t i = 0; i < 5; i++) {
    s = good;
    s.byte_token = byte_tokens[i];
    expect_spec_error(&s, "tokenizer.ggml.tokens");
  }
  static const float epsilons[] = {0, -1, 2};
  for (size_t i = 0; i < 3; i++) {
    s = good;
    s.epsilon = epsilons[i];
    expect_spec_error(&s, "epsilon");
  }
  s = good;
  s.epsilon = (float)strtod("nan", NULL);
  expect_spec_error(&s, "epsilon");
  s = good;
  s.architecture = "llama";
  expect_spec_error(&s, "general.architecture");
  s = good;
  s.model = "llama";
  expect_spec_error(&s, "tokenizer.ggml.model");
  static const char *const required[] = {"general.architecture",
                                         "gpt2.context_length",
                                         "gpt2.embedding_length",
                                         "gpt2.feed_forward_length",
                                         "gpt2.block_count",
                                         "gpt2.attention.head_count",
                                         "gpt2.attention.layer_norm_epsilon"};
  for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
    s = good;
    s.leave_out = required[i];
    expect_spec_error(&s, required[i]);
  }
}

/* One more key, of the given raw value. */
static void with_key(const char *name, size_t name_size, uint32_t type, const void *value, size_t size,
                     const char *field) {
  ust_buffer more = {0};
  put_u64(&more, name_size);
  put(&more, name, name_size);
  put_u32(&more, type);
  put(&more, value, size);
  file_spec s = good;
  s.more = &more;
  s.more_count = 1;
  expect_spec_error(&s, field);
  ust_buffer_free(&more);
}

static void keys(void **state) {
  (void)state;
  static const char zeros[16];
  with_key("", 0, U32, zeros, 4, "key 12");
  with_key("a\0b", 3, U32, zeros, 4, "key 12");
  with_key("gpt2.block_count", 16, U32, zeros, 4, "gpt2.block_count: found twice");
  with_key("flag", 4, BOOL, "\2", 1, "key flag");
  with_key("tokenizer.ggml.merges", 21, U32, zeros, 4, "tokenizer.ggml.merges");
  with_key("tokenizer.ggml.scores", 21, U32, zeros, 4, "tokenizer.ggml.scores");
  with_key("tokenizer.ggml.scores", 21, ARRAY, "\6\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0", 16, "tokenizer.ggml.scores");
  with_key("tokenizer.ggml.eos_token_id", 27, STRING, zeros, 8, "tokenizer.ggml.eos_token_id");
  with_key("tokenizer.ggml.eos_token_id", 27, I32, "\377\377\377\377", 4, "tokenizer.ggml.eos_token_id");
  with_key("two\nlines\33[31m", 14, 77, zeros, 4, "two?lines?[31m");
  /* 10^6 keys, then as many as are allowed, all the same */
  static const uint64_t counts[] = {1000000, 60000};
  for (size_t i = 0; i < 2; i++) {
    ust_buffer more = {0};
    for (uint64_t k = 0; k < counts[i]; k++) {
      char name[32];
      snprintf(name, sizeof name, "k.%llu", (unsigned long long)(i == 0 ? k : 7));
      put_text(&more, name);
      put_u32(&more, U8);
      put_u8(&more, 0);
    }
    file_spec s = good;
    s.more = &more;
    s.more_count = counts[i];
    expect_spec_error(&s, i == 0 ? "n_kv" : "k.7: found twice");
    ust_buffer_free(&more);
  }
}

static void not_gguf(void **state) {
  (void)state;
  static const char html[] = "<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n";
  static const char *const texts[] = {"", "G", "GGUF", "GGUF\3", "GGUF\3\0\0", html, "GGML\3\0\0\0        "};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    write_file("a.gguf", texts[i], i == 0 ? 0 : strlen(texts[i]));
    expect_error(in_folder("a.gguf"), "expected");
  }
  file_spec s = good;
  static const uint32_t versions[] = {0, 1, 4, 0x03000000, UINT32_MAX};
  for (size_t i = 0; i < 5; i++) {
    s.version = versions[i];
    expect_spec_error(&s, "version");
  }
  understudy_error err;
  ust_weights *w;
  assert_int_equal(ust_weights_open(in_folder("missing.gguf"), &w, &err), UNDERSTUDY_ERROR_IO);
}

/* A sparse file can pretend to hold gigabytes of metadata. */
static void sparse_gigabytes(void **state) {
  (void)state;
  ust_buffer more = {0};
  put_text(&more, "x.long");
  put_u32(&more, STRING);
  put_u64(&more, (uint64_t)3 << 30);
  file_spec s = good;
  s.more = &more;
  s.more_count = 1;
  ust_buffer b = build(&s);
  write_file("a.gguf", b.data, b.size);
  assert_int_equal(truncate(in_folder("a.gguf"), (off_t)4 << 30), 0);
  expect_error(in_folder("a.gguf"), "x.long");
  ust_buffer_free(&more);
  ust_buffer_free(&b);
}

static void every_prefix_fails(void **state) {
  (void)state;
  ust_buffer b = build(&good);
  for (size_t size = 0; size < b.size; size++) {
    write_file("a.gguf", b.data, size);
    expect_error(in_folder("a.gguf"), "expected");
  }
  ust_buffer_free(&b);
}

/* ---- mutations ---- */

static void flipped_bytes(void **state) {
  (void)state;
  file_spec s = good;
  tensor_spec list[] = {{"f16", 2, 1, {3, 5}, 96},  {"q8", 2, 8, {32, 2}, 128},    {"bf16", 1, 30, {9}, 224},
                        {"q4", 2, 2, {32, 2}, 256}, {"q4k", 2, 12, {256, 1}, 320}, {"q6k", 1, 14, {256}, 480}};
  s.list = list;
  s.list_count = sizeof list / sizeof *list;
  s.data = 704;
  ust_buffer b = build(&s);
  char *copy = malloc(b.size);
  uint64_t random = 20240607;
  int opened = 0;
  for (int i = 0; i < 4000; i++) {
    memcpy(copy, b.data, b.size);
    int flips = 1 + (int)(next_random(&random) % 3);
    for (int k = 0; k < flips; k++) {
      static const uint8_t special[] = {0, 1, 0x7f, 0x80, 0xff};
      size_t at = (size_t)(next_random(&random) % b.size);
      uint64_t how = next_random(&random);
      copy[at] = (char)(how % 2 ? copy[at] ^ (1 << (how >> 8) % 8) : special[(how >> 8) % sizeof special]);
    }
    write_file("a.gguf", copy, b.size);
    understudy_error err;
    opened += read_all(in_folder("a.gguf"), &err) == UNDERSTUDY_OK;
  }
  assert_in_range(opened, 1, 3999);
  free(copy);
  ust_buffer_free(&b);
}

static void note_value(void *user, const char *key, const char *value) {
  ust_buffer *seen = user;
  if (strncmp(key, "x.", 2) != 0) return;
  put(seen, value, strlen(value));
  put_u8(seen, '|');
}

/* Metadata of every type is shown as what it is. */
static void values_of_keys(void **state) {
  (void)state;
  static const struct {
    uint32_t type;
    int bytes;
    uint64_t bits;
  } values[] = {{U8, 1, 200},
                {I8, 1, 0xfe},
                {U16, 2, 0xfffe},
                {I16, 2, 0xfffe},
                {U32, 4, 0xfffffffe},
                {I32, 4, 0xfffffffe},
                {F32, 4, 0xc0200000},
                {BOOL, 1, 1},
                {U64, 8, UINT64_MAX},
                {I64, 8, UINT64_MAX},
                {F64, 8, 0x3ff8000000000000}};
  ust_buffer more = {0}, seen = {0};
  for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
    char name[16];
    snprintf(name, sizeof name, "x.%zu", i);
    put_text(&more, name);
    put_u32(&more, values[i].type);
    put(&more, &values[i].bits, (size_t)values[i].bytes);
  }
  put_text(&more, "x.text");
  put_u32(&more, STRING);
  put_text(&more, "one\033[2Jtwo");
  file_spec s = good;
  s.more = &more;
  s.more_count = sizeof values / sizeof *values + 1;
  ust_buffer b = build(&s);
  write_file("a.gguf", b.data, b.size);
  understudy_error err;
  ust_weights *w;
  assert_int_equal(ust_weights_open(in_folder("a.gguf"), &w, &err), UNDERSTUDY_OK);
  ust_weights_each_key(w, note_value, &seen);
  put_u8(&seen, 0);
  assert_string_equal(seen.data, "200|-2|65534|-2|4294967294|-2|-2.5|1|18446744073709551615|-1|1.5|one?[2Jtwo|");
  ust_weights_close(w);
  ust_buffer_free(&b);
  ust_buffer_free(&more);
  ust_buffer_free(&seen);
}

/* Last: all of the above stayed within the limit on memory. */
static void memory_stayed_small(void **state) {
  (void)state;
  long kb = peak_kb();
  if (!sanitized() && kb > 128 * 1024) fail_msg("%ld KiB", kb); /* the tests' own 10^6 keys are among them */
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(good_file_opens),
                                     cmocka_unit_test(sizes_of_lists),
                                     cmocka_unit_test(lengths_of_texts),
                                     cmocka_unit_test(arrays),
                                     cmocka_unit_test(tensors),
                                     cmocka_unit_test(configuration),
                                     cmocka_unit_test(keys),
                                     cmocka_unit_test(not_gguf),
                                     cmocka_unit_test(sparse_gigabytes),
                                     cmocka_unit_test(every_prefix_fails),
                                     cmocka_unit_test(flipped_bytes),
                                     cmocka_unit_test(values_of_keys),
                                     cmocka_unit_test(memory_stayed_small)};
  return cmocka_run_group_tests_name("hostile gguf", tests, make_folder, remove_folder);
}
