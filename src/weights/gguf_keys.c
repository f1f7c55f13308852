/* GGUF metadata once it is read: keys by name, their values for others, the model's configuration, and the
 * vocabulary's consistency (the tokenizer room builds on it). */
#include <inttypes.h>
#include <stdlib.h>

#include "weights/internal.h"

static int compare_texts(ust_text a, ust_text b) {
  int order = memcmp(a.data, b.data, UST_MIN(a.size, b.size));
  return order ? order : a.size < b.size ? -1 : a.size > b.size;
}

static int compare_keys(const void *a, const void *b) {
  return compare_texts((*(const ust_key *const *)a)->name, (*(const ust_key *const *)b)->name);
}

static int compare_text_to_key(const void *text, const void *key) {
  return compare_texts(*(const ust_text *)text, (*(const ust_key *const *)key)->name);
}

understudy_status ust_weights_index_keys(ust_weights *weights, understudy_error *err) {
  weights->keys_by_name = malloc((weights->key_count + 1) * sizeof *weights->keys_by_name);
  if (!weights->keys_by_name) return ust_error_memory(err, weights->key_count * sizeof(void *), "metadata keys");
  for (size_t i = 0; i < weights->key_count; i++) weights->keys_by_name[i] = &weights->keys[i];
  qsort(weights->keys_by_name, weights->key_count, sizeof *weights->keys_by_name, compare_keys);
  for (size_t i = 1; i < weights->key_count; i++)
    if (compare_keys(&weights->keys_by_name[i - 1], &weights->keys_by_name[i]) == 0)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: key %.*s: found twice", weights->path,
                       UST_SHOW(weights->keys_by_name[i]->name));
  return UNDERSTUDY_OK;
}

const ust_key *ust_weights_key(const ust_weights *weights, const char *name) {
  if (!weights->key_count) return NULL;
  ust_text text = {name, strlen(name)};
  const ust_key **found =
      bsearch(&text, weights->keys_by_name, weights->key_count, sizeof *weights->keys_by_name, compare_text_to_key);
  return found ? *found : NULL;
}

understudy_status ust_weights_vocabulary(const ust_weights *weights, ust_vocabulary *vocabulary,
                                         understudy_error *err) {
  const ust_key *tokens = ust_weights_key(weights, "tokenizer.ggml.tokens");
  const ust_key *merges = ust_weights_key(weights, "tokenizer.ggml.merges");
  const ust_key *types = ust_weights_key(weights, "tokenizer.ggml.token_type");
  if (!tokens || !merges) /* check_vocabulary() has seen to the types and lengths of those there are */
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found no %s, expected a file with a tokenizer", weights->path,
                     tokens ? "tokenizer.ggml.merges" : "tokenizer.ggml.tokens");
  *vocabulary = (ust_vocabulary){.tokens = tokens->strings,
                                 .types = types ? types->integers : NULL,
                                 .count = (size_t)tokens->count,
                                 .merges = merges->strings,
                                 .merge_count = (size_t)merges->count,
                                 .bos = weights->config.bos,
                                 .eos = weights->config.eos};
  return UNDERSTUDY_OK;
}

/* An integer scalar of any width; false for other types and for values past int64. */
static bool integer_value(const ust_key *key, int64_t *value) {
  const unsigned char *b = key->value;
  switch (key->type) {
  case UST_GGUF_U8:
  case UST_GGUF_BOOL:
    *value = b[0];
    return true;
  case UST_GGUF_I8:
    *value = (int8_t)b[0];
    return true;
  case UST_GGUF_U16:
    *value = (uint16_t)(b[0] | b[1] << 8);
    return true;
  case UST_GGUF_I16:
    *value = (int16_t)(b[0] | b[1] << 8);
    return true;
  case UST_GGUF_U32:
    *value = ust_load_u32(b);
    return true;
  case UST_GGUF_I32:
    *value = (int32_t)ust_load_u32(b);
    return true;
  case UST_GGUF_U64:
  case UST_GGUF_I64:
    *value = (int64_t)ust_load_u64(b);
    return key->type == UST_GGUF_I64 || *value >= 0;
  default:
    return false;
  }
}

static bool real_value(const ust_key *key, double *value) {
  union {
    uint32_t u;
    float f;
  } single;
  union {
    uint64_t u;
    double f;
  } wide;
  if (key->type == UST_GGUF_F32) {
    single.u = ust_load_u32(key->value);
    *value = (double)single.f;
    return true;
  }
  if (key->type == UST_GGUF_F64) {
    wide.u = ust_load_u64(key->value);
    *value = wide.f;
    return true;
  }
  return false;
}

static void print_value(const ust_key *key, char *out, size_t size) {
  static const char *const plural[UST_GGUF_TYPES] = {"u8s",   "i8s",     "u16s",   "i16s", "u32s", "i32s", "f32s",
                                                     "bools", "strings", "arrays", "u64s", "i64s", "f64s"};
  int64_t integer;
  double real;
  if (key->type == UST_GGUF_STRING)
    snprintf(out, size, "%.*s", (int)UST_MIN(key->count, (uint64_t)size - 1), (const char *)key->value);
  else if (key->type == UST_GGUF_ARRAY)
    snprintf(out, size, "[%" PRIu64 " %s]", key->count, plural[key->element]);
  else if (integer_value(key, &integer))
    snprintf(out, size, "%" PRId64, integer);
  else if (real_value(key, &real))
    snprintf(out, size, "%g", real);
  else
    snprintf(out, size, "%" PRIu64, ust_load_u64(key->value));
  ust_make_printable(out);
}

void ust_weights_each_key(const ust_weights *weights, void (*visit)(void *user, const char *key, const char *value),
                          void *user) {
  for (size_t i = 0; i < weights->key_count; i++) {
    char name[128], value[256];
    snprintf(name, sizeof name, "%.*s", (int)UST_MIN(weights->keys[i].name.size, sizeof name - 1),
             weights->keys[i].name.data);
    ust_make_printable(name);
    print_value(&weights->keys[i], value, sizeof value);
    visit(user, name, value);
  }
  const char *name;
  json_t *field;
  json_object_foreach(weights->json, name, field) {
    char value[256] = "";
    size_t size = json_dumpb(field, value, sizeof value - 1, JSON_ENCODE_ANY | JSON_COMPACT);
    value[UST_MIN(size, sizeof value - 1)] = 0;
    if (size > sizeof value - 1) snprintf(value, sizeof value, "(%zu bytes)", size);
    visit(user, name, json_is_string(field) ? json_string_value(field) : value);
  }
}

/* ---- configuration ---- */

static understudy_status bad(const ust_weights *weights, const char *key, const char *found, const char *expected,
                             understudy_error *err) {
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: found %s, expected %s", weights->path, key, found, expected);
}

static understudy_status get_integer(const ust_weights *weights, const char *name, bool required, int *out,
                                     understudy_error *err) {
  const ust_key *key = ust_weights_key(weights, name);
  int64_t value;
  if (!key) return required ? bad(weights, name, "no such key", "an integer", err) : UNDERSTUDY_OK;
  if (!integer_value(key, &value)) return bad(weights, name, "another type", "an integer", err);
  if (value < 0 || value > INT32_MAX)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: found %" PRId64 ", expected 0 ... %d", weights->path, name,
                     value, INT32_MAX);
  *out = (int)value;
  return UNDERSTUDY_OK;
}

/* A string that must be there and equal; `field` is UNSUPPORTED otherwise. */
static understudy_status want_text(const ust_weights *weights, const char *name, const char *expected,
                                   understudy_error *err) {
  const ust_key *key = ust_weights_key(weights, name);
  if (!key) return bad(weights, name, "no such key", expected, err);
  if (key->type != UST_GGUF_STRING) return bad(weights, name, "another type", "a string", err);
  if (key->count == strlen(expected) && memcmp(key->value, expected, strlen(expected)) == 0) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: %s: found \"%.*s\", expected \"%s\"", weights->path, name,
                   (int)UST_MIN(key->count, (uint64_t)64), (const char *)key->value, expected);
}

static int hex_digit(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                : -1;
}

/* A token of GGUF's type 6 stands for one byte, written <0xHH>. */
static understudy_status check_byte_tokens(const ust_weights *weights, const ust_key *tokens, const ust_key *types,
                                           understudy_error *err) {
  for (size_t i = 0; types && i < tokens->count; i++) {
    ust_text t = tokens->strings[i];
    if (types->integers[i] < 0 || types->integers[i] > 6)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: tokenizer.ggml.token_type: found %d for token %zu, expected 0 ... 6", weights->path,
                       types->integers[i], i);
    if (types->integers[i] == 6 && (t.size != 6 || memcmp(t.data, "<0x", 3) != 0 || hex_digit(t.data[3]) < 0 ||
                                    hex_digit(t.data[4]) < 0 || t.data[5] != '>'))
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: tokenizer.ggml.tokens: found byte token %zu \"%.*s\", expected <0xHH>", weights->path, i,
                       UST_SHOW(t));
  }
  return UNDERSTUDY_OK;
}

/* An array that goes along with the tokens: absent, or of the right element type and length. */
static understudy_status check_parallel(const ust_weights *weights, const char *name, uint32_t element,
                                        const ust_key *tokens, const ust_key **out, understudy_error *err) {
  const ust_key *key = *out = ust_weights_key(weights, name);
  if (!key) return UNDERSTUDY_OK;
  if (key->type != UST_GGUF_ARRAY ||
      (key->element != element && !(element == UST_GGUF_I32 && key->element == UST_GGUF_U32)))
    return bad(weights, name, "another type", element == UST_GGUF_I32 ? "an array of i32" : "an array of f32", err);
  if (key->count == tokens->count) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                   "%s: %s: found %" PRIu64 " elements, expected one for each of %" PRIu64 " tokens", weights->path,
                   name, key->count, tokens->count);
}

static understudy_status check_vocabulary(const ust_weights *weights, const ust_key *tokens, understudy_error *err) {
  if (!tokens->strings) return bad(weights, "tokenizer.ggml.tokens", "another type", "an array of strings", err);
  UST_TRY(want_text(weights, "tokenizer.ggml.model", "gpt2", err));
  /* How text is split before merging. Files older than the key, and "default", are split as GPT-2 does. */
  const ust_key *split = ust_weights_key(weights, "tokenizer.ggml.pre");
  bool unnamed =
      split && split->type == UST_GGUF_STRING && split->count == 7 && memcmp(split->value, "default", 7) == 0;
  if (split && !unnamed) UST_TRY(want_text(weights, "tokenizer.ggml.pre", "gpt-2", err));
  const ust_key *merges = ust_weights_key(weights, "tokenizer.ggml.merges");
  if (merges && !merges->strings)
    return bad(weights, "tokenizer.ggml.merges", "another type", "an array of strings", err);
  const ust_key *types, *scores;
  UST_TRY(check_parallel(weights, "tokenizer.ggml.scores", UST_GGUF_F32, tokens, &scores, err));
  UST_TRY(check_parallel(weights, "tokenizer.ggml.token_type", UST_GGUF_I32, tokens, &types, err));
  return check_byte_tokens(weights, tokens, types, err);
}

understudy_status ust_weights_configure_gguf(ust_weights *weights, understudy_error *err) {
  ust_config *c = &weights->config;
  *c = (ust_config){.architecture = "gpt2", .bos = -1, .eos = -1};
  UST_TRY(want_text(weights, "general.architecture", "gpt2", err));
  const ust_key *name = ust_weights_key(weights, "general.name");
  if (name && name->type == UST_GGUF_STRING)
    snprintf(c->name, sizeof c->name, "%.*s", (int)UST_MIN(name->count, (uint64_t)63), (const char *)name->value);
  ust_make_printable(c->name);
  UST_TRY(get_integer(weights, "gpt2.context_length", true, &c->context, err));
  UST_TRY(get_integer(weights, "gpt2.embedding_length", true, &c->width, err));
  UST_TRY(get_integer(weights, "gpt2.feed_forward_length", true, &c->feed_forward, err));
  UST_TRY(get_integer(weights, "gpt2.block_count", true, &c->layers, err));
  UST_TRY(get_integer(weights, "gpt2.attention.head_count", true, &c->heads, err));
  UST_TRY(get_integer(weights, "tokenizer.ggml.bos_token_id", false, &c->bos, err));
  UST_TRY(get_integer(weights, "tokenizer.ggml.eos_token_id", false, &c->eos, err));
  const char *epsilon_name = "gpt2.attention.layer_norm_epsilon";
  const ust_key *epsilon = ust_weights_key(weights, epsilon_name);
  double value;
  if (!epsilon) return bad(weights, epsilon_name, "no such key", "a float", err);
  if (!real_value(epsilon, &value)) return bad(weights, epsilon_name, "another type", "a float", err);
  c->norm_epsilon = (float)value;
  const ust_key *tokens = ust_weights_key(weights, "tokenizer.ggml.tokens");
  if (tokens) {
    UST_TRY(check_vocabulary(weights, tokens, err));
    c->vocabulary = (int)tokens->count;
    return ust_weights_check_config(weights, err);
  }
  /* A file without a tokenizer: the embedding tells how many tokens there are. */
  const ust_tensor *embedding;
  UST_TRY(ust_weights_find(weights, "token_embd.weight", 0, 0, &embedding, err));
  c->vocabulary = (int)UST_MIN(embedding->rows, (uint64_t)INT32_MAX);
  return ust_weights_check_config(weights, err);
}
