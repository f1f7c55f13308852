/* Tests of reading tokenizer files: every form of a good one gives the same tokenizer, and every bad one is an
 * error of one line that names the file and what is wrong.
 *
 * A small good tokenizer.json (the 256 bytes, "th", "the", one special token) is built in memory; each test
 * spoils one thing and writes it to a directory of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "tokenizer/tokenizer.h"

static char directory[] = "/tmp/tokenizer-XXXXXX";

static int make_directory(void **state) {
  (void)state;
  return mkdtemp(directory) ? 0 : -1;
}

static const char *path_of(const char *name) {
  static char path[128];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return path;
}

static void clear_directory(void) {
  static const char *const names[] = {"tokenizer.json", "vocab.json", "merges.txt"};
  for (int i = 0; i < 3; i++) {
    unlink(path_of(names[i]));
    rmdir(path_of(names[i]));
  }
}

static int remove_directory(void **state) {
  (void)state;
  clear_directory();
  return rmdir(directory);
}

static void write_file(const char *name, const char *data, size_t size) {
  FILE *stream = fopen(path_of(name), "wb");
  assert_non_null(stream);
  assert_int_equal(fwrite(data, 1, size, stream), size);
  assert_int_equal(fclose(stream), 0);
}

/* Writes and gives back nothing: takes the reference. */
static void write_json(const char *name, json_t *root) {
  assert_non_null(root);
  assert_int_equal(json_dump_file(root, path_of(name), JSON_COMPACT), 0);
  json_decref(root);
}

/* ---- a good tokenizer to spoil ---- */

/* The character that stands for a byte, as UTF-8. */
static void byte_text(int byte, char out[3]) {
  int point = byte;
  bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  if (!printable) point = byte <= 32 ? 256 + byte : byte <= 160 ? 256 + byte - 94 : 256 + 67;
  if (point < 128)
    snprintf(out, 3, "%c", point);
  else
    snprintf(out, 3, "%c%c", 0xC0 | point >> 6, 0x80 | (point & 0x3F));
}

static json_t *good_vocab(void) {
  json_t *vocab = json_object();
  for (int byte = 0; byte < 256; byte++) {
    char text[3];
    byte_text(byte, text);
    json_object_set_new(vocab, text, json_integer(byte));
  }
  json_object_set_new(vocab, "th", json_integer(256));
  json_object_set_new(vocab, "the", json_integer(257));
  return vocab;
}

static json_t *added_token(int id, const char *content, bool special) {
  return json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", content, "single_word", 0, "lstrip", 0,
                   "rstrip", 0, "normalized", 0, "special", special);
}

static json_t *good(void) {
  return json_pack("{s:s, s:[o], s:n, s:{s:s, s:b, s:b, s:b}, s:n, s:{s:s}, "
                   "s:{s:s, s:n, s:s, s:n, s:b, s:o, s:[s, s]}}",
                   "version", "1.0", "added_tokens", added_token(258, "<|endoftext|>", true), "normalizer",
                   "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1,
                   "post_processor", "decoder", "type", "ByteLevel", "model", "type", "BPE", "dropout",
                   "continuing_subword_prefix", "", "end_of_word_suffix", "byte_fallback", 0, "vocab", good_vocab(),
                   "merges", "t h", "th e");
}

/* Sets root[a][b] (or root[a] when b is NULL); takes the reference to value. */
static json_t *with(json_t *root, const char *a, const char *b, json_t *value) {
  assert_non_null(root);
  assert_int_equal(json_object_set_new(b ? json_object_get(root, a) : root, b ? b : a, value), 0);
  return root;
}
static json_t *vocab_of(json_t *root) {
  return json_object_get(json_object_get(root, "model"), "vocab");
}
static json_t *with_token(json_t *root, const char *text, json_int_t id) {
  assert_int_equal(json_object_set_new(vocab_of(root), text, json_integer(id)), 0);
  return root;
}
static json_t *with_added(json_t *root, json_t *token) {
  assert_int_equal(json_array_append_new(json_object_get(root, "added_tokens"), token), 0);
  return root;
}
static json_t *with_merge(json_t *root, json_t *merge) {
  assert_int_equal(json_array_append_new(json_object_get(json_object_get(root, "model"), "merges"), merge), 0);
  return root;
}

/* ---- expectations ---- */

/* Loading fails with this status, with one printable line that holds `file` and `part`. */
static void expect_error(understudy_status status, const char *file, const char *part) {
  understudy_error err = {0};
  ust_tokenizer *tokenizer = (ust_tokenizer *)&err;
  understudy_status found = ust_tokenizer_load(directory, &tokenizer, &err);
  if (found == UNDERSTUDY_OK) fail_msg("loaded, expected an error with \"%s\"", part);
  assert_null(tokenizer);
  bool right = found == status && err.status == status && strstr(err.message, file) && strstr(err.message, part) &&
               strstr(err.message, directory) && !strchr(err.message, '\n');
  if (!right) fail_msg("status %d: \"%s\", expected status %d with \"%s\"", (int)found, err.message, (int)status, part);
  assert_int_equal(ust_tokenizer_load(directory, &tokenizer, NULL), status);
  clear_directory();
}

static void reject(json_t *root, understudy_status status, const char *part) {
  write_json("tokenizer.json", root);
  expect_error(status, "tokenizer.json", part);
}
static void malformed(json_t *root, const char *part) {
  reject(root, UNDERSTUDY_ERROR_FORMAT, part);
}
static void unsupported(json_t *root, const char *part) {
  reject(root, UNDERSTUDY_ERROR_UNSUPPORTED, part);
}

static ust_tokenizer *load(void) {
  understudy_error err = {0};
  ust_tokenizer *tokenizer = NULL;
  if (ust_tokenizer_load(directory, &tokenizer, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  clear_directory();
  return tokenizer;
}

static void expect_encoded(const ust_tokenizer *tokenizer, const char *text, bool special, const char *expected) {
  int32_t *ids;
  size_t count, used = 0;
  char found[256] = "";
  assert_int_equal(ust_tokenizer_encode(tokenizer, text, strlen(text), special, &ids, &count, NULL), UNDERSTUDY_OK);
  for (size_t i = 0; i < count; i++)
    used += (size_t)snprintf(found + used, sizeof found - used, i ? " %d" : "%d", ids[i]);
  ust_free(ids);
  assert_string_equal(found, expected);
}

/* ---- good files ---- */

static void test_forms(void **state) {
  (void)state;
  write_json("tokenizer.json", good());
  ust_tokenizer *first = load();
  expect_encoded(first, "the th e<|endoftext|>", true, "257 32 256 32 101 258");
  assert_int_equal(ust_tokenizer_vocabulary(first)->eos, 258);
  uint64_t fingerprint = ust_tokenizer_fingerprint(first);
  ust_tokenizer_free(first);

  json_t *pairs = with(good(), "model", "merges", json_pack("[[s, s], [s, s]]", "t", "h", "th", "e"));
  json_object_del(json_object_get(pairs, "model"), "type"); /* as in the first tokenizer.json files */
  json_t *vocab = json_deep_copy(vocab_of(pairs));
  json_object_set_new(vocab, "<|endoftext|>", json_integer(258));
  write_json("tokenizer.json", pairs);
  ust_tokenizer *second = load();
  assert_true(ust_tokenizer_fingerprint(second) == fingerprint);
  ust_tokenizer_free(second);

  write_json("tokenizer.json", with(good(), "model", "vocab", json_incref(vocab))); /* in both lists, same id */
  ust_tokenizer *third = load();
  assert_true(ust_tokenizer_fingerprint(third) == fingerprint);
  ust_tokenizer_free(third);

  static const char *const merges[] = {"#version: 0.2\nt h\nth e\n", "t h\nth e",
                                       "#version: 0.2\r\nt h\r\nth e\r\n\r\n"};
  for (int i = 0; i < 3; i++) {
    write_json("vocab.json", json_incref(vocab));
    write_file("merges.txt", merges[i], strlen(merges[i]));
    ust_tokenizer *fourth = load();
    assert_true(ust_tokenizer_fingerprint(fourth) == fingerprint);
    assert_int_equal(ust_tokenizer_vocabulary(fourth)->bos, 258);
    ust_tokenizer_free(fourth);
  }
  json_decref(vocab);
}

/* GPT-2's own files, and the same written as a tokenizer.json. */
static void test_gpt2_json(void **state) {
  (void)state;
  understudy_error err = {0};
  ust_tokenizer *gpt2;
  if (ust_tokenizer_load(FIXTURES "/gpt2", &gpt2, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  const ust_vocabulary *v = ust_tokenizer_vocabulary(gpt2);
  json_t *vocab = json_object(), *merges = json_array();
  for (size_t i = 0; i < v->count; i++) {
    char text[512];
    snprintf(text, sizeof text, "%.*s", (int)v->tokens[i].size, v->tokens[i].data);
    json_object_set_new(vocab, text, json_integer((json_int_t)i));
  }
  for (size_t i = 0; i < v->merge_count; i++)
    json_array_append_new(merges, json_stringn(v->merges[i].data, v->merges[i].size));
  json_t *root = with(with(good(), "model", "vocab", vocab), "model", "merges", merges);
  json_t *added = json_pack("[o]", added_token(50256, "<|endoftext|>", true));
  write_json("tokenizer.json", with(root, "added_tokens", NULL, added));
  ust_tokenizer *again = load();
  assert_true(ust_tokenizer_fingerprint(again) == ust_tokenizer_fingerprint(gpt2));
  ust_tokenizer_free(again);
  ust_tokenizer_free(gpt2);
}

/* Added tokens: the longest wins, user tokens are always found, bytes are the text as it stands. */
static void test_added(void **state) {
  (void)state;
  json_t *root = with_added(with_added(good(), added_token(259, "<|end", true)), added_token(260, "\xC3\xA9 ?", false));
  write_json("tokenizer.json", with_added(root, added_token(261, "<|end of|>", true)));
  ust_tokenizer *tokenizer = load();
  expect_encoded(tokenizer, "<|endoftext|><|end", true, "258 259");
  expect_encoded(tokenizer, "<|endo<|end of|>the", true, "259 111 261 257");
  expect_encoded(tokenizer, "<|end", false, "60 124 101 110 100");
  expect_encoded(tokenizer, "the\xC3\xA9 ?the", false, "257 260 257");
  size_t length;
  assert_memory_equal(ust_tokenizer_bytes(tokenizer, 260, &length), "\xC3\xA9 ?", 4);
  assert_int_equal(length, 4);
  ust_tokenizer_free(tokenizer);
}

/* A model of more tokens than its tokenizer, and ends of its own. */
static void test_for_a_model(void **state) {
  (void)state;
  write_json("tokenizer.json", with_added(good(), added_token(259, "<|end", true)));
  ust_tokenizer *plain = load(), *padded, *again;
  understudy_error err;
  assert_int_equal(ust_tokenizer_vocabulary(plain)->eos, 258);
  write_json("tokenizer.json", with_added(good(), added_token(259, "<|end", true)));
  assert_int_equal(ust_tokenizer_load_for(directory, 320, -1, 259, &padded, &err), UNDERSTUDY_OK);
  const ust_vocabulary *v = ust_tokenizer_vocabulary(padded);
  assert_true(v->count == 320 && v->bos == 258 && v->eos == 259 && v->types[319] == UST_TOKEN_UNUSED);
  expect_encoded(padded, "the[PAD300]", true, "257 91 80 65 68 51 48 48 93");
  assert_true(ust_tokenizer_fingerprint(padded) != ust_tokenizer_fingerprint(plain));
  assert_int_equal(ust_tokenizer_create(v, "written and read", &again, &err), UNDERSTUDY_OK);
  assert_true(ust_tokenizer_fingerprint(again) == ust_tokenizer_fingerprint(padded));
  ust_tokenizer_free(again);
  ust_tokenizer_free(padded);
  assert_int_equal(ust_tokenizer_load_for(directory, 260, -1, 260, &padded, &err), UNDERSTUDY_ERROR_FORMAT);
  assert_non_null(strstr(err.message, "eos token id 260"));
  assert_int_equal(ust_tokenizer_load_for(directory, 260, -1, -1, &padded, &err), UNDERSTUDY_OK);
  assert_true(ust_tokenizer_fingerprint(padded) == ust_tokenizer_fingerprint(plain));
  ust_tokenizer_free(padded);
  ust_tokenizer_free(plain);
  clear_directory();
}

/* ---- bad files ---- */

static void test_directory(void **state) {
  (void)state;
  expect_error(UNDERSTUDY_ERROR_IO, "", "no tokenizer here");
  write_json("vocab.json", good_vocab());
  expect_error(UNDERSTUDY_ERROR_IO, "", "no tokenizer here");
  write_file("merges.txt", "t h\n", 4);
  expect_error(UNDERSTUDY_ERROR_IO, "", "no tokenizer here");
  assert_int_equal(mkdir(path_of("tokenizer.json"), 0700), 0);
  expect_error(UNDERSTUDY_ERROR_IO, "tokenizer.json", "is a directory, expected a regular file");
  understudy_error err;
  ust_tokenizer *tokenizer;
  assert_int_equal(ust_tokenizer_load("/nowhere/at/all", &tokenizer, &err), UNDERSTUDY_ERROR_IO);
  assert_string_equal(err.message, "/nowhere/at/all: cannot open: No such file or directory");
  assert_int_equal(ust_tokenizer_load(FIXTURES "/gpt2/vocab.json", &tokenizer, &err), UNDERSTUDY_ERROR_IO);
  assert_non_null(strstr(err.message, "not a directory"));
}

static void test_not_json(void **state) {
  (void)state;
  static const struct {
    const char *text, *part;
  } files[] = {{"", "line 1"},
               {"<!DOCTYPE html>", "line 1"},
               {"[]", "expected a JSON object"},
               {"{}", "model"},
               {"{\"model\":[]}", "model"},
               {"{\"a\":1,\"a\":2}", "duplicate"},
               {"{\"model\":\"\xFF\"}", "line 1"},
               {"{\"model\":{}} x", "line 1"},
               {"{\"model\":\"\\u0000\"}", "line 1"}};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    write_file("tokenizer.json", files[i].text, strlen(files[i].text));
    expect_error(UNDERSTUDY_ERROR_FORMAT, "tokenizer.json", files[i].part);
  }
  enum { MANY = 600000 };
  char *wide = malloc(MANY);
  assert_non_null(wide);
  memset(wide, ',', MANY);
  write_file("tokenizer.json", wide, MANY);
  free(wide);
  expect_error(UNDERSTUDY_ERROR_FORMAT, "tokenizer.json", "marks");
  enum { DEPTH = 100000 };
  char *deep = malloc(DEPTH);
  assert_non_null(deep);
  memset(deep, '[', DEPTH);
  write_file("tokenizer.json", deep, DEPTH);
  free(deep);
  expect_error(UNDERSTUDY_ERROR_FORMAT, "tokenizer.json", "line 1");
}

/* Every prefix of a good file is an error. */
static void test_prefixes(void **state) {
  (void)state;
  json_t *root = good();
  char *text = json_dumps(root, JSON_COMPACT);
  json_decref(root);
  assert_non_null(text);
  for (size_t size = 0, whole = strlen(text); size < whole; size += size < 100 || size + 100 > whole ? 1 : 37) {
    write_file("tokenizer.json", text, size);
    expect_error(UNDERSTUDY_ERROR_FORMAT, "tokenizer.json", "");
  }
  free(text);
}

static void test_other_kinds(void **state) {
  (void)state;
  unsupported(with(good(), "model", "type", json_string("WordPiece")), "model.type is \"WordPiece\"");
  unsupported(with(good(), "model", "type", json_integer(3)), "model.type is an integer");
  unsupported(with(good(), "pre_tokenizer", NULL, json_null()), "pre_tokenizer is null");
  unsupported(with(good(), "pre_tokenizer", "type", json_string("Metaspace")), "type \"Metaspace\"");
  json_t *split = json_pack("{s:s, s:[{s:s, s:{s:s}}]}", "type", "Sequence", "pretokenizers", "type", "Split",
                            "pattern", "Regex", "(a+)+");
  unsupported(with(good(), "pre_tokenizer", NULL, split), "type \"Sequence\"");
  unsupported(with(good(), "pre_tokenizer", "add_prefix_space", json_true()), "add_prefix_space is true");
  unsupported(with(good(), "pre_tokenizer", "use_regex", json_false()), "use_regex is false");
  unsupported(with(good(), "normalizer", NULL, json_pack("{s:s}", "type", "NFC")), "normalizer is type \"NFC\"");
  unsupported(with(good(), "model", "dropout", json_real(0.5)), "model.dropout");
  unsupported(with(good(), "model", "continuing_subword_prefix", json_string("##")), "prefix is \"##\"");
  unsupported(with(good(), "model", "end_of_word_suffix", json_string("</w>")), "suffix is \"</w>\"");
  unsupported(with(good(), "model", "byte_fallback", json_true()), "model.byte_fallback is true");
  unsupported(with(good(), "model", "ignore_merges", json_true()), "model.ignore_merges is true");
}

static void test_bad_tokens(void **state) {
  (void)state;
  malformed(with(good(), "model", "vocab", json_array()), "model.vocab is an array");
  malformed(with(good(), "model", "vocab", json_null()), "model.vocab is null");
  malformed(with(good(), "model", "vocab", json_object()), "1 tokens");
  malformed(with_token(good(), "x1", 260), "without gaps");
  malformed(with_token(good(), "x1", -1), "is -1");
  malformed(with_token(good(), "x1", INT32_MAX), "2147483647");
  malformed(with_token(good(), "x1", INT64_MIN), "-9223372036854775808");
  malformed(with_token(good(), "x1", 65), "both have id 65");
  malformed(with_token(good(), "x1", 258), "both have id 258");
  malformed(with(good(), "model", "vocab", json_pack("{s:s}", "a", "7")), "is a string");
  malformed(with(good(), "model", "vocab", json_pack("{s:f}", "a", 1.5)), "is a number");
  malformed(with_token(with(good(), "added_tokens", NULL, json_array()), "", 258), "token 258 has an empty text");
  malformed(with_token(with(good(), "added_tokens", NULL, json_array()), "a b", 258), "byte-level alphabet");
  malformed(with_token(with(good(), "added_tokens", NULL, json_array()), "\xE4\xBD\xA0", 258), "byte-level alphabet");
  malformed(with_token(with(good(), "added_tokens", NULL, json_array()), "\xC5\x84", 258), "byte-level alphabet");
  json_t *lacking = good();
  json_object_del(vocab_of(lacking), "A");
  malformed(with_token(lacking, "AA", 65), "single byte 0x41");
}

static void test_bad_added(void **state) {
  (void)state;
  malformed(with(good(), "added_tokens", NULL, json_object()), "added_tokens is an object");
  malformed(with_added(good(), json_integer(1)), "added_tokens[1].content is nothing");
  malformed(with_added(good(), json_pack("{s:s}", "content", "<x>")), "the id of \"<x>\" is nothing");
  malformed(with_added(good(), added_token(300, "<x>", true)), "without gaps");
  malformed(with_added(good(), added_token(INT32_MAX, "<x>", true)), "2147483647");
  malformed(with_added(good(), added_token(258, "<x>", true)), "both have id 258");
  malformed(with_added(good(), added_token(97, "<x>", true)), "both have id 97");
  malformed(with_added(good(), added_token(259, "<|endoftext|>", true)), "both \"<|endoftext|>\"");
  malformed(with_added(good(), added_token(259, "", true)), "empty text");
  malformed(with_added(good(), added_token(259, " ", false)), "has the text of normal token 32");
  malformed(with_added(good(), added_token(259, "\n", true)), "has the text of normal token 10");
  malformed(with_added(good(), added_token(259, "the", true)), "has id 257 in model.vocab and another here");
  malformed(with_added(good(), added_token(97, "a", true)), "single byte 0x61");
  malformed(with_added(good(), added_token(256, "th", true)), "merge 0 \"t h\": its result");
  json_t *strip = added_token(259, "<x>", true);
  json_object_set_new(strip, "lstrip", json_true());
  unsupported(with_added(good(), strip), "added_tokens[1].lstrip is true");
  char longest[400];
  memset(longest, 'x', sizeof longest - 1);
  longest[sizeof longest - 1] = 0;
  unsupported(with_added(good(), added_token(259, longest, true)), "399 bytes long");
}

static void test_bad_merges(void **state) {
  (void)state;
  malformed(with(good(), "model", "merges", json_null()), "model.merges is null");
  malformed(with_merge(good(), json_string("zz a")), "merge 2 \"zz a\": its left part");
  malformed(with_merge(good(), json_string("a zz")), "merge 2 \"a zz\": its right part");
  malformed(with_merge(good(), json_string("a b")), "merge 2 \"a b\": its result");
  malformed(with_merge(good(), json_string("t h")), "merges 0 and 2 are both \"t h\"");
  static const char *const texts[] = {"", " ", "a", "a ", " a", "a  b", "a b c"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    malformed(with_merge(good(), json_string(texts[i])), "expected two tokens with one space");
  malformed(with_merge(good(), json_integer(5)), "model.merges[2] is an integer");
  malformed(with_merge(good(), json_pack("[s]", "t")), "model.merges[2] is an array");
  malformed(with_merge(good(), json_pack("[s, i]", "t", 1)), "model.merges[2] is an array");
  malformed(with_merge(good(), json_pack("[s, s]", "", "t")), "expected two tokens");
  malformed(with_merge(good(), json_pack("[s, s]", "t h", "e")), "expected two tokens");
  malformed(with_merge(good(), json_string("\xE4\xBD\xA0 a")), "left part");
  /* A merge must never make the end token out of text. */
  json_t *root = with_token(with(good(), "added_tokens", NULL, json_array()), "<|endoftext|>", 259);
  malformed(with_merge(with_token(root, "<|endoftext|", 258), json_string("<|endoftext| >")), "its result");
}

static void test_bad_vocab_merges(void **state) {
  (void)state;
  static const struct {
    const char *text, *part;
  } merges[] = {
      {"t h\nth\n", "merge 1"}, {"t\th\n", "merge 0"}, {"t h\nth z\n", "its result"}, {"\n\xFF \xFE\n", "left part"}};
  for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
    write_json("vocab.json", good_vocab());
    write_file("merges.txt", merges[i].text, strlen(merges[i].text));
    expect_error(UNDERSTUDY_ERROR_FORMAT, "merges.txt", merges[i].part);
  }
  write_file("merges.txt", "t h\0\n", 5);
  write_json("vocab.json", good_vocab());
  expect_error(UNDERSTUDY_ERROR_FORMAT, "merges.txt", "right part");
  write_file("vocab.json", "{\"a\":0,\"b\":0}", 13);
  write_file("merges.txt", "", 0);
  expect_error(UNDERSTUDY_ERROR_FORMAT, "vocab.json", "both have id 0");
}

/* Arrays as a GGUF file holds them. */
static void test_bad_arrays(void **state) {
  (void)state;
  write_json("tokenizer.json", good());
  ust_tokenizer *tokenizer = load(), *made;
  const ust_vocabulary *v = ust_tokenizer_vocabulary(tokenizer);
  int32_t types[259];
  ust_text tokens[259];
  for (int round = 0; round < 9; round++) {
    static const char *const parts[] = {"type 99",     "type 2",   "type -1",    "bos token id 259", "eos token id -2",
                                        "both \"th\"", "0 tokens", "empty text", "its left part"};
    ust_vocabulary bad = *v;
    memcpy(types, v->types, sizeof types);
    memcpy(tokens, v->tokens, sizeof tokens);
    bad.types = types;
    bad.tokens = tokens;
    if (round < 3) types[5] = round == 0 ? 99 : round == 1 ? 2 : -1;
    if (round == 3) bad.bos = 259;
    if (round == 4) bad.eos = -2;
    if (round == 5) tokens[257] = tokens[256];
    if (round == 6) bad.count = 0;
    if (round == 7) tokens[9] = (ust_text){NULL, 0};
    if (round == 8) bad.merges++, bad.merge_count--, types[256] = UST_TOKEN_UNUSED;
    understudy_error err = {0};
    assert_int_not_equal(ust_tokenizer_create(&bad, "x.gguf", &made, &err), UNDERSTUDY_OK);
    assert_null(made);
    if (!strstr(err.message, parts[round]) || strncmp(err.message, "x.gguf: ", 8) != 0)
      fail_msg("round %d: \"%s\", expected \"%s\"", round, err.message, parts[round]);
  }
  ust_tokenizer_free(tokenizer);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_forms),       cmocka_unit_test(test_gpt2_json),   cmocka_unit_test(test_added),
      cmocka_unit_test(test_for_a_model), cmocka_unit_test(test_directory),   cmocka_unit_test(test_not_json),
      cmocka_unit_test(test_prefixes),    cmocka_unit_test(test_other_kinds), cmocka_unit_test(test_bad_tokens),
      cmocka_unit_test(test_bad_added),   cmocka_unit_test(test_bad_merges),  cmocka_unit_test(test_bad_vocab_merges),
      cmocka_unit_test(test_bad_arrays),
  };
  return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
