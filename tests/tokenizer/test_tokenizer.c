/* Tests of encoding: equal to the reference on hard strings (tests/fixtures/tokenizer/make.py), any bytes come
 * back exactly, special tokens are tokens only when asked for, and time grows with the text and no faster. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>
#include <jansson.h>

#include "tokenizer/tokenizer.h"

static ust_tokenizer *gpt2;

static int open_gpt2(void **state) {
  (void)state;
  understudy_error err = {0};
  if (ust_tokenizer_load(FIXTURES "/gpt2", &gpt2, &err) != UNDERSTUDY_OK) print_error("%s\n", err.message);
  return gpt2 ? 0 : -1;
}

static int close_gpt2(void **state) {
  (void)state;
  ust_tokenizer_free(gpt2);
  return 0;
}

/* Encodes a copy of exactly `size` bytes, so that the sanitizer sees any read past the end. */
static int32_t *encode(const ust_tokenizer *tokenizer, const char *text, size_t size, bool special, size_t *count) {
  understudy_error err = {0};
  int32_t *ids;
  char *copy = malloc(size ? size : 1);
  assert_non_null(copy);
  memcpy(copy, text, size);
  if (ust_tokenizer_encode(tokenizer, copy, size, special, &ids, count, &err) != UNDERSTUDY_OK)
    fail_msg("%s", err.message);
  free(copy);
  assert_non_null(ids);
  return ids;
}

static void expect_round_trip(const ust_tokenizer *tokenizer, const char *text, size_t size, bool special) {
  size_t count;
  int32_t *ids = encode(tokenizer, text, size, special, &count);
  ust_buffer decoded = {0};
  for (size_t i = 0; i < count; i++) {
    size_t length;
    const char *bytes = ust_tokenizer_bytes(tokenizer, ids[i], &length);
    assert_non_null(bytes);
    assert_true(length > 0);
    assert_true(ust_buffer_append(&decoded, bytes, length));
  }
  assert_int_equal(decoded.size, size);
  if (size) assert_memory_equal(decoded.data, text, size);
  ust_buffer_free(&decoded);
  ust_free(ids);
}

static void expect_ids(const ust_tokenizer *tokenizer, const char *text, size_t size, bool special,
                       const int32_t *expected, size_t expected_count) {
  size_t count;
  int32_t *ids = encode(tokenizer, text, size, special, &count);
  bool same = count == expected_count && memcmp(ids, expected, count * sizeof *ids) == 0;
  if (!same) {
    for (size_t i = 0; i < count; i++) print_error("%d ", ids[i]);
    print_error("\n");
    for (size_t i = 0; i < expected_count; i++) print_error("%d ", expected[i]);
    print_error("(expected)\n");
    fail_msg("ids of \"%.*s\"%s", (int)size, text, special ? ", special" : "");
  }
  ust_free(ids);
}

static void check_case(const char *text, size_t size, bool special, const json_t *list) {
  int32_t expected[4096];
  size_t count = json_array_size(list);
  assert_true(count <= 4096);
  for (size_t i = 0; i < count; i++) expected[i] = (int32_t)json_integer_value(json_array_get(list, i));
  expect_ids(gpt2, text, size, special, expected, count);
}

static size_t from_hex(const char *hex, char *out, size_t room) {
  size_t size = strlen(hex) / 2;
  assert_true(size <= room);
  for (size_t i = 0; i < size; i++) {
    unsigned byte;
    assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
    out[i] = (char)byte;
  }
  return size;
}

static json_t *open_cases(void) {
  json_error_t where;
  json_t *root = json_load_file(FIXTURES "/tokenizer/cases.json", 0, &where);
  if (!root) fail_msg("cases.json: %s", where.text);
  return root;
}

static void test_reference(void **state) {
  (void)state;
  json_t *root = open_cases(), *cases = json_object_get(root, "cases"), *entry;
  size_t index;
  assert_true(json_array_size(cases) >= 500);
  json_array_foreach(cases, index, entry) {
    char text[8192];
    size_t size = from_hex(json_string_value(json_object_get(entry, "hex")), text, sizeof text);
    const json_t *plain = json_object_get(entry, "ids"), *special = json_object_get(entry, "special");
    check_case(text, size, false, plain);
    check_case(text, size, true, special ? special : plain);
    expect_round_trip(gpt2, text, size, false);
    expect_round_trip(gpt2, text, size, true);
  }
  json_decref(root);
}

static void test_invalid_utf8(void **state) {
  (void)state;
  json_t *root = open_cases(), *cases = json_object_get(root, "invalid"), *entry;
  size_t index;
  assert_true(json_array_size(cases) >= 40);
  json_array_foreach(cases, index, entry) {
    char text[1024];
    size_t size = from_hex(json_string_value(entry), text, sizeof text);
    expect_round_trip(gpt2, text, size, false);
    expect_round_trip(gpt2, text, size, true);
  }
  json_decref(root);
  /* An invalid byte is a symbol: it ends a word, may follow a space, and leaves the valid text around it alone. */
  const int32_t word_byte_word[] = {31373, 187, 995}; /* "hello", FF, " world" */
  expect_ids(gpt2, "hello\xFF world", 12, false, word_byte_word, 3);
}

static void test_random_bytes(void **state) {
  (void)state;
  uint64_t seed = 0x9E3779B97F4A7C15u;
  for (int round = 0; round < 400; round++) {
    char text[300];
    for (size_t i = 0; i < sizeof text; i++) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      unsigned pick = (unsigned)(seed >> 56);
      static const char often[] = " \n'a\xE6\xAD\xA6\xF0\x9F\x98\x80<|";
      text[i] = round % 2 ? (char)(seed >> 48) : often[pick % (sizeof often - 1)];
    }
    expect_round_trip(gpt2, text, (size_t)(round * 7 % (int)sizeof text), round % 3 == 0);
  }
}

static void test_special(void **state) {
  (void)state;
  const int32_t as_text[] = {27, 91, 437, 1659, 5239, 91, 29}, as_token[] = {50256};
  expect_ids(gpt2, "<|endoftext|>", 13, false, as_text, 7);
  expect_ids(gpt2, "<|endoftext|>", 13, true, as_token, 1);
  const ust_vocabulary *vocabulary = ust_tokenizer_vocabulary(gpt2);
  assert_int_equal(vocabulary->bos, 50256);
  assert_int_equal(vocabulary->eos, 50256);
  assert_int_equal(vocabulary->count, 50257);
  assert_int_equal(vocabulary->merge_count, 50000);
}

static void test_bytes_of_bad_ids(void **state) {
  (void)state;
  const int32_t ids[] = {-1, 50257, INT32_MAX, INT32_MIN};
  for (int i = 0; i < 4; i++) {
    size_t length = 7;
    assert_null(ust_tokenizer_bytes(gpt2, ids[i], &length));
    assert_int_equal(length, 0);
  }
  size_t length;
  assert_memory_equal(ust_tokenizer_bytes(gpt2, 995, &length), " world", 6);
  assert_int_equal(length, 6);
}

/* A million bytes of one thing take under two seconds of processor time: what is quadratic anywhere takes
 * minutes. Under the sanitizers, which slow everything down, a fifth of that text. */
#if defined(__SANITIZE_ADDRESS__)
enum { LENGTH = 200000 };
#else
enum { LENGTH = 1000000 };
#endif

static void test_long_runs(void **state) {
  (void)state;
  static const struct {
    const char *unit;
    size_t size;
  } runs[] = {{"a", 1},
              {"^", 1},
              {"\n", 1},
              {" ", 1},
              {"ab", 2},
              {"\xFF", 1},
              {"\xE6\xAD", 2},
              {"\xE4\xBD\xA0", 3},
              {"'", 1},
              {" a", 2},
              {"0", 1},
              {"<|endoftext|>", 13},
              {" \n", 2},
              {"\0", 1},
              {"<|endoftext|", 12},
              {"abcdefghijklmnopqrstuvwxyz", 26}};
  char *text = malloc(LENGTH);
  assert_non_null(text);
  for (size_t run = 0; run < sizeof runs / sizeof *runs; run++) {
    for (size_t i = 0; i < LENGTH; i++) text[i] = runs[run].unit[i % runs[run].size];
    clock_t start = clock();
    expect_round_trip(gpt2, text, LENGTH, true);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    if (seconds > 2) fail_msg("run %zu took %.1f s, expected under 2 s", run, seconds);
  }
  free(text);
}

static void test_empty(void **state) {
  (void)state;
  int32_t *ids;
  size_t count = 9;
  assert_int_equal(ust_tokenizer_encode(gpt2, NULL, 0, true, &ids, &count, NULL), UNDERSTUDY_OK);
  assert_int_equal(count, 0);
  ust_free(ids);
}

/* From the arrays a GGUF file holds: the same ids and the same fingerprint. */
static void test_from_arrays(void **state) {
  (void)state;
  understudy_error err = {0};
  ust_tokenizer *copy, *other;
  ust_vocabulary vocabulary = *ust_tokenizer_vocabulary(gpt2);
  vocabulary.types = NULL;
  assert_int_equal(ust_tokenizer_create(&vocabulary, "x.gguf", &copy, &err), UNDERSTUDY_OK);
  assert_true(ust_tokenizer_fingerprint(copy) == ust_tokenizer_fingerprint(gpt2));
  const int32_t as_token[] = {50256, 15496, 995};
  expect_ids(copy, "<|endoftext|>Hello world", 24, true, as_token, 3);
  ust_tokenizer_free(copy);

  vocabulary.merge_count--;
  assert_int_equal(ust_tokenizer_create(&vocabulary, "x.gguf", &other, &err), UNDERSTUDY_OK);
  assert_true(ust_tokenizer_fingerprint(other) != ust_tokenizer_fingerprint(gpt2));
  expect_round_trip(other, "gazed informants", 16, false);
  ust_tokenizer_free(other);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_reference), cmocka_unit_test(test_invalid_utf8),     cmocka_unit_test(test_random_bytes),
      cmocka_unit_test(test_special),   cmocka_unit_test(test_bytes_of_bad_ids), cmocka_unit_test(test_long_runs),
      cmocka_unit_test(test_empty),     cmocka_unit_test(test_from_arrays),
  };
  return cmocka_run_group_tests(tests, open_gpt2, close_gpt2);
}
