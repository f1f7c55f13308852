/* Hugging Face directories: every type and shape is read back, transposed matrices and shards too; and no file,
 * however hostile, does more than fail. */
#include <pthread.h>

#include "weights/safetensors_file.h"

static ust_weights *open_model(void) {
  understudy_error err = {0};
  ust_weights *w;
  if (ust_weights_open(in_folder("model"), &w, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  return w;
}

static void check_values(const ust_weights *w, int i) {
  const stored *s = &model[i];
  understudy_error err = {0};
  const ust_tensor *t;
  if (!s->gguf) return;
  uint64_t rows = s->rows == 0 ? 1 : (uint64_t)(s->transposed ? s->cols : s->rows);
  uint64_t cols = (uint64_t)(s->transposed ? s->rows : s->cols);
  if (ust_weights_find(w, s->gguf, rows, cols, &t, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  assert_int_equal(t->transposed, s->transposed);
  float out[75 * 75];
  for (uint64_t first = 0; first < rows; first++)
    for (uint64_t count = 0; count <= rows - first; count += 1 + count / 4) {
      assert_int_equal(ust_weights_read_rows(w, t, first, count, out, &err), UNDERSTUDY_OK);
      for (uint64_t r = 0; r < count; r++)
        for (uint64_t c = 0; c < cols; c++) {
          uint64_t index = s->transposed ? c * rows + first + r : (first + r) * cols + c;
          assert_true(out[r * cols + c] == value_at(i, index));
        }
    }
}

static void round_trip(void **state) {
  (void)state;
  static const char *const prefixes[] = {"", "transformer."};
  for (int p = 0; p < 2; p++) {
    write_good(prefixes[p]);
    ust_weights *w = open_model();
    const ust_config *c = ust_weights_config(w);
    assert_string_equal(c->architecture, "gpt2");
    assert_string_equal(c->name, "model");
    assert_int_equal(c->vocabulary, VOCABULARY);
    assert_int_equal(c->context, CONTEXT);
    assert_int_equal(c->width, WIDTH);
    assert_int_equal(c->feed_forward, FEED_FORWARD);
    assert_int_equal(c->layers, LAYERS);
    assert_int_equal(c->heads, 2);
    assert_int_equal(c->bos, -1); /* 50256 is no token of these five */
    assert_int_equal(c->eos, 4);
    assert_true(c->norm_epsilon == 1e-5f);
    assert_true(ust_weights_is_directory(w));
    assert_int_equal(ust_weights_count(w), TENSORS - 3);
    assert_false(ust_weights_has(w, "output.weight"));
    for (int i = 0; i < TENSORS; i++) check_values(w, i);
    ust_weights_close(w);
  }
}

/* An untied head is a matrix of its own; names of the config come in other forms. */
static void untied_head(void **state) {
  (void)state;
  write_good("");
  static const char config[] =
      "{\"model_type\":\"gpt2\",\"vocab_size\":5,\"n_ctx\":4,\"n_embd\":6,\"n_layer\":1,\"n_head\":3,\"n_inner\":75,"
      "\"activation_function\":\"gelu_pytorch_tanh\",\"tie_word_embeddings\":false,\"eos_token_id\":null,"
      "\"scale_attn_weights\":true,\"scale_attn_by_inverse_layer_idx\":false}";
  write_file("model/config.json", config, strlen(config));
  ust_weights *w = open_model();
  assert_int_equal(ust_weights_config(w)->feed_forward, 75);
  assert_int_equal(ust_weights_config(w)->context, 4);
  assert_int_equal(ust_weights_config(w)->eos, -1);
  const ust_tensor *t;
  assert_int_equal(ust_weights_find(w, "output.weight", 5, 6, &t, NULL), UNDERSTUDY_OK);
  float row[6];
  assert_int_equal(ust_weights_read_rows(w, t, 4, 1, row, NULL), UNDERSTUDY_OK);
  assert_true(row[5] == value_at(TENSORS - 1, 29));
  ust_weights_close(w);
}

/* ---- shards ---- */

static void write_index(int boundary, const char *second, const char *more) {
  ust_buffer b = {0};
  add_text(&b, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
  for (int i = 0; i < TENSORS; i++) {
    char line[256];
    snprintf(line, sizeof line, "%s\"%s\":\"%s\"", i ? "," : "", model[i].name,
             i < boundary ? "one.safetensors" : second);
    add_text(&b, line);
  }
  add_text(&b, more);
  add_text(&b, "}}");
  write_file("model/model.safetensors.index.json", b.data, b.size);
  ust_buffer_free(&b);
}

static void write_shards(int boundary, int first_end, int second_begin) {
  mkdir(in_folder("model"), 0700);
  unlink(in_folder("model/model.safetensors"));
  write_file("model/config.json", good_config, strlen(good_config));
  write_index(boundary, "two.safetensors", "");
  ust_buffer b = build(0, first_end, "");
  write_file("model/one.safetensors", b.data, b.size);
  ust_buffer_free(&b);
  b = build(second_begin, TENSORS, "");
  write_file("model/two.safetensors", b.data, b.size);
  ust_buffer_free(&b);
}

static void shards(void **state) {
  (void)state;
  write_shards(8, 8, 8);
  ust_weights *w = open_model();
  for (int i = 0; i < TENSORS; i++) check_values(w, i);
  ust_weights_close(w);
  const char *path = in_folder("model");
  write_shards(8, 9, 8); /* a tensor in two shards */
  expect_error(in_folder("model"), "h.0.attn.c_proj.weight");
  write_shards(8, 7, 8); /* one in none */
  expect_error(in_folder("model"), "weight_map");
  static const char *const names[] = {"missing.safetensors", "../two.safetensors",  "..",     ".safetensors", "",
                                      "/etc/passwd",         "sub/two.safetensors", "two.bin"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    write_shards(8, 8, 8);
    write_index(8, names[i], "");
    expect_error(in_folder("model"), i == 0 ? "missing.safetensors" : "weight_map");
  }
  write_index(8, "two.safetensors", ",\"extra\":\"one.safetensors\"");
  expect_error(in_folder("model"), "weight_map");
  write_index(8, "two.safetensors", ",\"extra\":7");
  expect_error(in_folder("model"), "extra");
  write_index(8, "two.safetensors", ",\"wte.weight\":\"one.safetensors\"");
  expect_error(in_folder("model"), "duplicate");
  static const char *const indexes[] = {"", "[]", "{}", "{\"weight_map\":{}}", "{\"weight_map\":[]}"};
  for (size_t i = 0; i < sizeof indexes / sizeof *indexes; i++) {
    write_file("model/model.safetensors.index.json", indexes[i], strlen(indexes[i]));
    expect_error(in_folder("model"), "model.safetensors.index.json");
  }
  unlink(in_folder("model/model.safetensors.index.json"));
  expect_error(in_folder("model"), "model.safetensors");
  (void)path;
}

/* ---- config.json ---- */

static void spoil_config(const char *from, const char *to, const char *field) {
  char text[1024];
  const char *at = strstr(good_config, from);
  assert_non_null(at);
  snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good_config), good_config, to, at + strlen(from));
  write_file("model/config.json", text, strlen(text));
  expect_error(in_folder("model"), field);
}

static void configuration(void **state) {
  (void)state;
  write_good("");
  static const struct {
    const char *from, *to, *field;
  } cases[] = {
      {"\"gpt2\"", "\"llama\"", "model_type"},
      {"\"gpt2\"", "3", "model_type"},
      {"gelu_new", "relu", "activation_function"},
      {"\"gelu_new\"", "null", "activation_function"},
      {"\"resid_pdrop\"", "\"scale_attn_by_inverse_layer_idx\": true, \"x\"", "scale_attn_by_inverse_layer_idx"},
      {"\"resid_pdrop\"", "\"scale_attn_weights\": false, \"x\"", "scale_attn_weights"},
      {"\"resid_pdrop\"", "\"add_cross_attention\": true, \"x\"", "add_cross_attention"},
      {"\"resid_pdrop\"", "\"quantization_config\": {}, \"x\"", "quantization_config"},
      {"\"resid_pdrop\"", "\"n_embd\"", "duplicate"},
      {"\"n_layer\": 1", "\"n_layer\": 0", "n_layer"},
      {"\"n_layer\": 1", "\"n_layer\": 513", "n_layer"},
      {"\"n_layer\": 1", "\"n_layer\": \"1\"", "n_layer"},
      {"\"n_layer\": 1", "\"n_layer\": 1.5", "n_layer"},
      {"\"n_layer\": 1", "\"n_layers\": 1", "n_layer"},
      {"\"n_head\": 2", "\"n_head\": 0", "n_head"},
      {"\"n_head\": 2", "\"n_head\": 4", "heads"},
      {"\"n_head\": 2", "\"n_head\": -2", "n_head"},
      {"\"n_embd\": 6", "\"n_embd\": 8", "token_embd.weight"},
      {"\"n_embd\": 6", "\"n_embd\": 0", "n_embd"},
      {"\"n_embd\": 6", "\"n_embd\": 99999999999999999999", "config.json"},
      {"\"n_embd\": 6", "\"n_embd\": 2147483647", "n_embd"},
      {"\"vocab_size\": 5", "\"vocab_size\": 6", "token_embd.weight"},
      {"\"n_positions\": 4", "\"n_positions\": 0", "n_positions"},
      {"\"n_positions\": 4", "\"n_positions\": 2147483648", "n_positions"},
      {"\"n_inner\": null", "\"n_inner\": 0", "n_inner"},
      {"\"eos_token_id\": 4", "\"eos_token_id\": 5", "eos_token_id"},
      {"\"eos_token_id\": 4", "\"eos_token_id\": [4]", "eos_token_id"},
      {"1e-05", "0", "layer_norm_epsilon"},
      {"1e-05", "\"1e-5\"", "layer_norm_epsilon"},
      {"{", "[", "config.json"},
      {"{", "", "config.json"},
      {"gpt2", "gpt2\xff", "config.json"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) spoil_config(cases[i].from, cases[i].to, cases[i].field);
  unlink(in_folder("model/config.json"));
  expect_error(in_folder("model"), "config.json");
  mkfifo(in_folder("model/config.json"), 0600);
  expect_error(in_folder("model"), "config.json");
  unlink(in_folder("model/config.json"));
}

/* ---- hostile safetensors ---- */

/* A file of this header and `data` zero bytes; length 0: the header's own. */
static void expect_header_error(const char *header, size_t size, uint64_t length, size_t data, const char *field) {
  ust_buffer b = {0};
  put_u64(&b, length ? length : size);
  put(&b, header, size);
  put_zeros(&b, data);
  write_file("model/model.safetensors", b.data, b.size);
  ust_buffer_free(&b);
  expect_error(in_folder("model"), field);
}

static void headers(void **state) {
  (void)state;
  write_good("");
  static const uint64_t lengths[] = {100000001, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63, 4000, 1};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
    expect_header_error("{}", 2, lengths[i], 100, "header length");
  static const char *const short_files[] = {"", "x", "1234567", "12345678"};
  for (size_t i = 0; i < 4; i++) {
    write_file("model/model.safetensors", short_files[i], strlen(short_files[i]));
    expect_error(in_folder("model"), "model.safetensors");
  }
  static const char *const texts[] = {"[1]",  " {}",          "xx",  "{\"a\"", "{\"a\":1,\"a\":1}",
                                      "{} x", "{\"\xff\":1}", "{}{}"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    expect_header_error(texts[i], strlen(texts[i]), 0, 0, "model.safetensors");
  /* nothing covers the data; no tensors at all; values that are not strings */
  expect_header_error("{}", 2, 0, 10, "data");
  expect_header_error("{}", 2, 0, 0, "token_embd.weight");
  expect_header_error("{\"__metadata__\":{\"a\":1}}", 24, 0, 0, "__metadata__");
  expect_header_error("{\"__metadata__\":[]}", 19, 0, 0, "__metadata__");
}

static void large_headers(void **state) {
  (void)state;
  write_good("");
  ust_buffer b = {0};
  for (int shape = 0; shape < 4; shape++) {
    b.size = 0;
    add_text(&b, "{\"a\":");
    if (shape == 0) /* 10^5 deep */
      for (int i = 0; i < 100000; i++) add_text(&b, "[");
    if (shape == 1) /* 2000 deep, which the parser would take */
      for (int i = 0; i < 2000; i++) add_text(&b, "{\"a\":");
    if (shape == 2) { /* a tree many times its text */
      add_text(&b, "[0");
      for (int i = 0; i < 2000000; i++) add_text(&b, ",{}");
      add_text(&b, "]}");
    }
    if (shape == 3) { /* 10^5 entries */
      add_text(&b, "1");
      for (int i = 0; i < 100000; i++) {
        char entry[96];
        snprintf(entry, sizeof entry, ",\"x%d\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%d,%d]}", i, 4 * i,
                 4 * i + 4);
        add_text(&b, entry);
      }
      add_text(&b, "}");
    }
    expect_header_error(b.data, b.size, 0, shape == 3 ? 400000 : 0, "model.safetensors");
  }
  ust_buffer_free(&b);
  /* sparse: the header would be 100 MB of zeros */
  uint64_t length = 99999999;
  unsigned char start[9];
  memcpy(start, &length, 8);
  start[8] = '{';
  write_file("model/model.safetensors", start, 9);
  assert_int_equal(truncate(in_folder("model/model.safetensors"), 200000000), 0);
  expect_error(in_folder("model"), "model.safetensors");
}

/* One entry beside a good wte.weight of bytes [0, 120). */
static void with_entry(const char *name, const char *entry, size_t data, const char *field) {
  char header[512];
  int size =
      snprintf(header, sizeof header,
               "{\"wte.weight\":{\"dtype\":\"F32\",\"shape\":[5,6],\"data_offsets\":[0,120]},\"%s\":%s}", name, entry);
  expect_header_error(header, (size_t)size, 0, 120 + data, field);
}

static void entries(void **state) {
  (void)state;
  write_good("");
  static const struct {
    const char *entry;
    size_t data;
  } cases[] = {
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[116,140]}", 20}, /* overlapping */
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24]}", 0},
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[124,148]}", 28}, /* a hole */
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[144,120]}", 24}, /* reversed */
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[120,144]}", 23}, /* past the end */
      {"{\"dtype\":\"F32\",\"shape\":[7],\"data_offsets\":[120,144]}", 24}, /* shape and bytes disagree */
      {"{\"dtype\":\"F16\",\"shape\":[6],\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[120,124]}", 4},                      /* no dimension */
      {"{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[120,120]}", 0},                     /* no element */
      {"{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[120,120]}", 0}, /* products that wrap */
      {"{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[120,120]}", 0},
      {"{\"dtype\":\"F32\",\"shape\":[2147483648,2147483648,4],\"data_offsets\":[120,120]}", 0},
      {"{\"dtype\":\"F32\",\"shape\":[18446744073709551615],\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[-6],\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[6.0],\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,6],\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":6,\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[-24,0]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[120,9223372036854775807]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[120]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[120,144,0]}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":\"120\"}", 24},
      {"{\"dtype\":\"F32\",\"shape\":[6]}", 24},
      {"{\"dtype\":\"F32\",\"data_offsets\":[120,144]}", 24},
      {"{\"shape\":[6],\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":\"Q8\",\"shape\":[6],\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":\"I32\",\"shape\":[6],\"data_offsets\":[120,144]}", 24},
      {"{\"dtype\":7,\"shape\":[6],\"data_offsets\":[120,144]}", 24},
      {"7", 0},
      {"[]", 0},
      {"null", 0}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    with_entry("ln_f.bias", cases[i].entry, cases[i].data, strstr(cases[i].entry, "1844") ? "big" : "tensor ");
  const char *ok = "{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[120,144]}";
  with_entry("ln_f.bias", ok, 25, "data"); /* not reaching the end */
  with_entry("wte.weight", ok, 24, "duplicate");
  with_entry("transformer.wte.weight", "{\"dtype\":\"F32\",\"shape\":[5,6],\"data_offsets\":[120,240]}", 120,
             "found twice");
  static const char *const unknown[] = {"score.weight",
                                        "h.1.ln_1.bias",
                                        "h.00.ln_1.bias",
                                        "h.-1.ln_1.bias",
                                        "h..ln_1.bias",
                                        "h.99999999999.ln_1.bias",
                                        "h.0.ln_3.bias",
                                        "h.0",
                                        "h.",
                                        "",
                                        "transformer.",
                                        "transformer.transformer.ln_f.bias",
                                        "h.0.attn.bias.x"};
  for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) with_entry(unknown[i], ok, 24, "tensor ");
  with_entry("wpe.weight", ok, 24, "wpe.weight"); /* a vector where a matrix belongs */
  with_entry("a\\u0000b", ok, 24, "model.safetensors");
}

static void every_prefix_fails(void **state) {
  (void)state;
  write_good("");
  ust_buffer b = build(0, TENSORS, "");
  for (size_t size = 0; size < b.size; size += 1 + size / 512) {
    write_file("model/model.safetensors", b.data, size);
    expect_error(in_folder("model"), "model.safetensors");
  }
  write_file("model/model.safetensors", b.data, b.size - 1);
  expect_error(in_folder("model"), "model.safetensors");
  ust_buffer_free(&b);
  for (size_t size = 0; size + 1 < sizeof good_config; size++) {
    write_file("model/config.json", good_config, size);
    expect_error(in_folder("model"), "config.json");
  }
}

/* A file cut or overwritten while it is open is an error, not a signal; transposed tensors too. */
static void cut_while_open(void **state) {
  (void)state;
  write_good("");
  ust_weights *w = open_model();
  assert_int_equal(truncate(in_folder("model/model.safetensors"), 100), 0);
  float row[128];
  for (size_t i = 0; i < ust_weights_count(w); i++)
    for (int again = 0; again < 2; again++) {
      understudy_error err = {0};
      assert_int_equal(ust_weights_read_rows(w, ust_weights_tensor(w, i), 0, 1, row, &err), UNDERSTUDY_ERROR_IO);
      assert_true(err.message[0]);
    }
  ust_weights_close(w);
}

/* ---- threads ---- */

static void *read_transposed(void *argument) {
  const ust_weights *w = argument;
  static const int which[] = {6, 8, 12, 14};
  for (int round = 0; round < 200; round++)
    for (int k = 0; k < 4; k++) {
      const stored *s = &model[which[k]];
      const ust_tensor *t;
      float out[75 * 75];
      if (ust_weights_find(w, s->gguf, 0, 0, &t, NULL) != UNDERSTUDY_OK) return "missing";
      if (ust_weights_read_rows(w, t, 0, t->rows, out, NULL) != UNDERSTUDY_OK) return "unread";
      for (uint64_t r = 0; r < t->rows; r++)
        for (uint64_t c = 0; c < t->cols; c++)
          if (out[r * t->cols + c] != value_at(which[k], c * t->rows + r)) return "wrong";
    }
  return NULL;
}

/* More threads than tensors are held, each at its own place: all get the right values, none waits for ever. */
static void threads(void **state) {
  (void)state;
  write_good("");
  ust_weights *w = open_model();
  pthread_t thread[6];
  for (int i = 0; i < 6; i++) assert_int_equal(pthread_create(&thread[i], NULL, read_transposed, w), 0);
  for (int i = 0; i < 6; i++) {
    void *wrong;
    pthread_join(thread[i], &wrong);
    if (wrong) fail_msg("%s", (const char *)wrong);
  }
  ust_weights_close(w);
}

/* ---- mutations ---- */

static void flipped_bytes(void **state) {
  (void)state;
  write_good("");
  ust_buffer b = build(0, TENSORS, "");
  char *copy = malloc(b.size);
  uint64_t random = 8675309, header;
  memcpy(&header, b.data, 8);
  int opened = 0;
  for (int i = 0; i < 3000; i++) {
    memcpy(copy, b.data, b.size);
    int flips = 1 + (int)(next_random(&random) % 2);
    for (int k = 0; k < flips; k++) {
      static const char special[] = "0129\",:[]{}-\\ ";
      size_t at = (size_t)(next_random(&random) % (header + 16));
      uint64_t how = next_random(&random);
      copy[at] = (char)(how % 2 ? copy[at] ^ (1 << (how >> 8) % 8) : special[(how >> 8) % (sizeof special - 1)]);
    }
    write_file("model/model.safetensors", copy, b.size);
    understudy_error err;
    opened += read_all(in_folder("model"), &err) == UNDERSTUDY_OK;
  }
  assert_in_range(opened, 1, 2999);
  free(copy);
  ust_buffer_free(&b);
}

static void memory_stayed_small(void **state) {
  (void)state;
  long kb = peak_kb();
  if (!sanitized() && kb > 200 * 1024) fail_msg("%ld KiB", kb); /* a file of 191 MiB is among them */
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip),     cmocka_unit_test(untied_head),
                                     cmocka_unit_test(shards),         cmocka_unit_test(configuration),
                                     cmocka_unit_test(headers),        cmocka_unit_test(large_headers),
                                     cmocka_unit_test(entries),        cmocka_unit_test(every_prefix_fails),
                                     cmocka_unit_test(cut_while_open), cmocka_unit_test(threads),
                                     cmocka_unit_test(flipped_bytes),  cmocka_unit_test(memory_stayed_small)};
  return cmocka_run_group_tests_name("safetensors", tests, make_folder, remove_folder);
}
