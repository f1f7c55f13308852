/* Hugging Face directories of GPT-2: config.json, then model.safetensors or the shards that
 * model.safetensors.index.json lists. Tensors get GGUF's names; what a forward pass does not need (the attention
 * masks older files carry) is left out, anything else unknown is refused: it would be another model. */
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "weights/internal.h"

enum { SHARDS_MAX = 256 };

/* DIR/NAME, malloc'ed */
static understudy_status join(const ust_weights *weights, const char *name, char **path, understudy_error *err) {
  size_t size = strlen(weights->path) + strlen(name) + 2;
  *path = malloc(size);
  if (!*path) return ust_error_memory(err, size, "a path");
  size_t length = strlen(weights->path);
  const char *slash = length && weights->path[length - 1] == '/' ? "" : "/";
  snprintf(*path, size, "%s%s%s", weights->path, slash, name);
  return UNDERSTUDY_OK;
}

/* ---- config.json ---- */

static understudy_status unsupported(const ust_weights *weights, const char *field, const json_t *found,
                                     const char *expected, understudy_error *err) {
  char text[64] = "";
  size_t size = found ? json_dumpb(found, text, sizeof text - 1, JSON_ENCODE_ANY | JSON_COMPACT) : 0;
  if (size > sizeof text - 1) snprintf(text, sizeof text, "a value of %zu bytes", size);
  return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s/config.json: %s: found %s, expected %s", weights->path, field,
                   found ? text : "nothing", expected);
}

/* A non-negative integer; null and absence leave *out as it is unless it is required. */
static understudy_status get_integer(const ust_weights *weights, const char *field, bool required, int *out,
                                     understudy_error *err) {
  const json_t *value = json_object_get(weights->json, field);
  if ((!value || json_is_null(value)) && !required) return UNDERSTUDY_OK;
  if (!json_is_integer(value))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s/config.json: %s: found %s, expected an integer", weights->path,
                     field, value ? "another type" : "no such field");
  if (json_integer_value(value) < 0 || json_integer_value(value) > INT32_MAX)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s/config.json: %s: found %lld, expected 0 ... %d", weights->path,
                     field, (long long)json_integer_value(value), INT32_MAX);
  *out = (int)json_integer_value(value);
  return UNDERSTUDY_OK;
}

/* A token id, or null. GPT-2's own 50256 is the default, and is written even for smaller vocabularies that do not
 * have it: no token then. */
static understudy_status get_token(const ust_weights *weights, const char *field, int *out, understudy_error *err) {
  enum { END_OF_TEXT = 50256 };
  *out = json_object_get(weights->json, field) ? -1 : END_OF_TEXT;
  UST_TRY(get_integer(weights, field, false, out, err));
  if (*out == END_OF_TEXT && weights->config.vocabulary <= END_OF_TEXT) *out = -1;
  return UNDERSTUDY_OK;
}

/* Refuses every field that would change the arithmetic. */
static understudy_status check_variant(const ust_weights *weights, understudy_error *err) {
  static const struct {
    const char *field;
    bool expected;
  } flags[] = {
      {"scale_attn_weights", true}, {"scale_attn_by_inverse_layer_idx", false}, {"add_cross_attention", false}};
  const json_t *type = json_object_get(weights->json, "model_type");
  if (!json_is_string(type) || strcmp(json_string_value(type), "gpt2") != 0)
    return unsupported(weights, "model_type", type, "\"gpt2\"", err);
  const json_t *activation = json_object_get(weights->json, "activation_function");
  const char *name = activation ? json_string_value(activation) : "gelu_new";
  if (!name || (strcmp(name, "gelu_new") != 0 && strcmp(name, "gelu_pytorch_tanh") != 0))
    return unsupported(weights, "activation_function", activation, "\"gelu_new\" or \"gelu_pytorch_tanh\"", err);
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    const json_t *value = json_object_get(weights->json, flags[i].field);
    if (value && !(flags[i].expected ? json_is_true(value) : json_is_false(value)))
      return unsupported(weights, flags[i].field, value, flags[i].expected ? "true" : "false", err);
  }
  const json_t *quantization = json_object_get(weights->json, "quantization_config");
  if (quantization && !json_is_null(quantization))
    return unsupported(weights, "quantization_config", quantization, "none", err);
  return UNDERSTUDY_OK;
}

/* The directory's last component. */
static void name_after(const char *path, char *out, size_t size) {
  size_t end = strlen(path);
  while (end > 1 && path[end - 1] == '/') end--;
  size_t begin = end;
  while (begin > 0 && path[begin - 1] != '/') begin--;
  snprintf(out, size, "%.*s", (int)UST_MIN(end - begin, size - 1), path + begin);
}

static understudy_status read_config(ust_weights *weights, understudy_error *err) {
  char *path;
  UST_TRY(join(weights, "config.json", &path, err));
  understudy_status status =
      access(path, F_OK) == 0
          ? ust_weights_load_json(path, &weights->json, err)
          : ust_error(err, UNDERSTUDY_ERROR_IO,
                      "%s: found no config.json, expected a Hugging Face directory or a GGUF file", weights->path);
  free(path);
  UST_TRY(status);
  UST_TRY(check_variant(weights, err));
  ust_config *c = &weights->config;
  *c = (ust_config){.architecture = "gpt2", .bos = -1, .eos = -1, .norm_epsilon = 1e-5f};
  name_after(weights->path, c->name, sizeof c->name);
  const char *context = json_object_get(weights->json, "n_positions") ? "n_positions" : "n_ctx";
  UST_TRY(get_integer(weights, "vocab_size", true, &c->vocabulary, err));
  UST_TRY(get_integer(weights, context, true, &c->context, err));
  UST_TRY(get_integer(weights, "n_embd", true, &c->width, err));
  UST_TRY(get_integer(weights, "n_layer", true, &c->layers, err));
  UST_TRY(get_integer(weights, "n_head", true, &c->heads, err));
  UST_TRY(get_token(weights, "bos_token_id", &c->bos, err));
  UST_TRY(get_token(weights, "eos_token_id", &c->eos, err));
  c->feed_forward = c->width <= INT32_MAX / 4 ? 4 * c->width : INT32_MAX;
  UST_TRY(get_integer(weights, "n_inner", false, &c->feed_forward, err));
  const json_t *epsilon = json_object_get(weights->json, "layer_norm_epsilon");
  if (epsilon && !json_is_number(epsilon))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s/config.json: layer_norm_epsilon: found another type, expected a number", weights->path);
  if (epsilon) c->norm_epsilon = (float)json_number_value(epsilon);
  return ust_weights_check_config(weights, err);
}

/* ---- names ---- */

typedef enum name_kind { KIND_UNKNOWN, KIND_IGNORED, KIND_MATRIX, KIND_TRANSPOSED, KIND_VECTOR } name_kind;

typedef struct mapping {
  const char *from, *to;
  name_kind kind;
} mapping;

static const mapping outside[] = {
    {"wte.weight", "token_embd.weight", KIND_MATRIX},   {"wpe.weight", "position_embd.weight", KIND_MATRIX},
    {"ln_f.weight", "output_norm.weight", KIND_VECTOR}, {"ln_f.bias", "output_norm.bias", KIND_VECTOR},
    {"lm_head.weight", "output.weight", KIND_MATRIX},   {NULL, NULL, KIND_UNKNOWN}};

static const mapping inside[] = {{"ln_1.weight", "attn_norm.weight", KIND_VECTOR},
                                 {"ln_1.bias", "attn_norm.bias", KIND_VECTOR},
                                 {"attn.c_attn.weight", "attn_qkv.weight", KIND_TRANSPOSED},
                                 {"attn.c_attn.bias", "attn_qkv.bias", KIND_VECTOR},
                                 {"attn.c_proj.weight", "attn_output.weight", KIND_TRANSPOSED},
                                 {"attn.c_proj.bias", "attn_output.bias", KIND_VECTOR},
                                 {"ln_2.weight", "ffn_norm.weight", KIND_VECTOR},
                                 {"ln_2.bias", "ffn_norm.bias", KIND_VECTOR},
                                 {"mlp.c_fc.weight", "ffn_up.weight", KIND_TRANSPOSED},
                                 {"mlp.c_fc.bias", "ffn_up.bias", KIND_VECTOR},
                                 {"mlp.c_proj.weight", "ffn_down.weight", KIND_TRANSPOSED},
                                 {"mlp.c_proj.bias", "ffn_down.bias", KIND_VECTOR},
                                 {"attn.bias", NULL, KIND_IGNORED},        /* the causal mask, a constant */
                                 {"attn.masked_bias", NULL, KIND_IGNORED}, /* the number it masks with */
                                 {NULL, NULL, KIND_UNKNOWN}};

static const mapping *look_up(const mapping *table, const char *name) {
  while (table->from && strcmp(table->from, name) != 0) table++;
  return table;
}

/* Hugging Face's name -> GGUF's, in `out` of UST_NAME_MAX + 1 bytes. */
static name_kind map_name(const ust_weights *weights, const char *name, char *out) {
  if (strncmp(name, "transformer.", 12) == 0) name += 12;
  if (strncmp(name, "h.", 2) != 0) {
    const mapping *found = look_up(outside, name);
    if (found->from) snprintf(out, UST_NAME_MAX + 1, "%s", found->to);
    /* A tied head is the embedding again; some files store it all the same. */
    bool tied = !json_is_false(json_object_get(weights->json, "tie_word_embeddings"));
    return found->from && strcmp(found->from, "lm_head.weight") == 0 && tied ? KIND_IGNORED : found->kind;
  }
  int layer = 0, digits = 0;
  const char *rest = name + 2;
  for (; *rest >= '0' && *rest <= '9' && digits < 4; rest++, digits++) layer = 10 * layer + (*rest - '0');
  if (digits == 0 || *rest != '.' || layer >= weights->config.layers || (digits > 1 && name[2] == '0'))
    return KIND_UNKNOWN;
  const mapping *found = look_up(inside, rest + 1);
  if (found->to) snprintf(out, UST_NAME_MAX + 1, "blk.%d.%s", layer, found->to);
  return found->kind;
}

/* ---- tensors ---- */

typedef struct shard {
  ust_weights *weights;
  json_t *map;      /* the index's weight_map; NULL: a single file */
  const char *name; /* of the file */
  size_t listed;    /* entries of the map met so far */
} shard;

static understudy_status check_listed(shard *s, const char *path, const char *tensor, understudy_error *err) {
  if (!s->map) return UNDERSTUDY_OK;
  const char *file = json_string_value(json_object_get(s->map, tensor));
  if (!file || strcmp(file, s->name) != 0)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: tensor %.64s: found in this file, expected in %.64s by the index", path, tensor,
                     file ? file : "none");
  s->listed++;
  return UNDERSTUDY_OK;
}

static understudy_status add_entry(void *user, const ust_safetensors_entry *entry, understudy_error *err) {
  shard *s = user;
  ust_weights *weights = s->weights;
  const char *path = weights->files[weights->file_count - 1].path;
  char name[UST_NAME_MAX + 1];
  UST_TRY(check_listed(s, path, entry->name, err));
  name_kind kind = map_name(weights, entry->name, name);
  if (kind == KIND_IGNORED) return UNDERSTUDY_OK;
  if (kind == KIND_UNKNOWN)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                     "%s: tensor %.64s: found a name GPT-2 of %d layers does not have", path, entry->name,
                     weights->config.layers);
  if (!entry->readable)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: tensor %.64s: dtype: found %s, expected F32, F16 or BF16",
                     path, entry->name, entry->dtype);
  if (entry->dims != (kind == KIND_VECTOR ? 1 : 2) || entry->bytes == 0)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: tensor %.64s: found %d dimensions%s, expected %d", path,
                     entry->name, entry->dims, entry->bytes ? "" : ", one of them 0", kind == KIND_VECTOR ? 1 : 2);
  ust_tensor tensor = {.name = name,
                       .type = entry->type,
                       .rows = 1,
                       .cols = entry->shape[0],
                       .transposed = kind == KIND_TRANSPOSED,
                       .file = (int)weights->file_count - 1,
                       .offset = entry->offset,
                       .bytes = entry->bytes};
  if (kind == KIND_MATRIX) tensor.rows = entry->shape[0], tensor.cols = entry->shape[1];
  if (kind == KIND_TRANSPOSED) tensor.rows = entry->shape[1];
  return ust_weights_add_tensor(weights, &tensor, err);
}

static understudy_status read_file(shard *s, const char *name, understudy_error *err) {
  char *path;
  UST_TRY(join(s->weights, name, &path, err));
  s->name = name;
  understudy_status status = ust_weights_add_file(s->weights, path, err);
  if (status == UNDERSTUDY_OK)
    status = ust_weights_read_safetensors(&s->weights->files[s->weights->file_count - 1], add_entry, s, err);
  free(path);
  return status;
}

/* ---- shards ---- */

/* A file of this directory: nothing that leads elsewhere. */
static bool plain_name(const char *name) {
  size_t length = strlen(name);
  return length > 12 && length < 256 && name[0] != '.' && !strchr(name, '/') &&
         strcmp(name + length - 12, ".safetensors") == 0;
}

static int compare_names(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* names[size of the map]: the files the map names, each once, in order. */
static understudy_status list_shards(const char *path, json_t *map, const char **names, size_t *count,
                                     understudy_error *err) {
  const char *tensor;
  json_t *file;
  size_t all = 0;
  json_object_foreach(map, tensor, file) {
    const char *name = json_string_value(file);
    if (!name || !plain_name(name))
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: weight_map: found \"%.64s\" for %.64s, expected a .safetensors file of this directory",
                       path, name ? name : "no string", tensor);
    names[all++] = name;
  }
  qsort(names, all, sizeof *names, compare_names);
  *count = 0;
  for (size_t i = 0; i < all; i++)
    if (i == 0 || strcmp(names[i], names[*count - 1]) != 0) names[(*count)++] = names[i];
  if (*count >= 1 && *count <= SHARDS_MAX) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: weight_map: found %zu files, expected 1 ... %d", path, *count,
                   SHARDS_MAX);
}

static understudy_status read_shards(ust_weights *weights, const char *path, json_t *index, understudy_error *err) {
  shard s = {.weights = weights, .map = json_object_get(index, "weight_map")};
  size_t tensors = json_object_size(s.map), count = 0;
  if (!json_is_object(s.map) || tensors > UST_TENSORS_MAX)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: weight_map: found %s, expected an object of at most %d names",
                     path, json_is_object(s.map) ? "more names" : "none", UST_TENSORS_MAX);
  const char **names = malloc((tensors + 1) * sizeof *names);
  if (!names) return ust_error_memory(err, tensors * sizeof *names, "the list of shards");
  understudy_status status = list_shards(path, s.map, names, &count, err);
  for (size_t i = 0; status == UNDERSTUDY_OK && i < count; i++) status = read_file(&s, names[i], err);
  free(names);
  if (status == UNDERSTUDY_OK && s.listed != tensors)
    status = ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: weight_map: found %zu tensors, expected the %zu in its files",
                       path, tensors, s.listed);
  return status;
}

/* The format of before safetensors. */
static bool has_pickle(const ust_weights *weights) {
  char *path;
  if (join(weights, "pytorch_model.bin", &path, NULL) != UNDERSTUDY_OK) return false;
  bool found = access(path, F_OK) == 0;
  free(path);
  return found;
}

/* One file when there is one, as transformers does. */
static understudy_status read_tensors(ust_weights *weights, understudy_error *err) {
  static const char single[] = "model.safetensors", index_name[] = "model.safetensors.index.json";
  char *path;
  UST_TRY(join(weights, single, &path, err));
  bool has_single = access(path, F_OK) == 0;
  free(path);
  if (has_single) return read_file(&(shard){.weights = weights}, single, err);
  UST_TRY(join(weights, index_name, &path, err));
  json_t *index = NULL;
  understudy_status status;
  if (access(path, F_OK) == 0)
    status = ust_weights_load_json(path, &index, err);
  else
    status = ust_error(err, UNDERSTUDY_ERROR_IO, "%s: found neither %s nor %s, expected one of them%s", weights->path,
                       single, index_name, has_pickle(weights) ? "; pytorch_model.bin is not read" : "");
  if (status == UNDERSTUDY_OK) status = read_shards(weights, path, index, err);
  json_decref(index);
  free(path);
  return status;
}

understudy_status ust_weights_read_directory(ust_weights *weights, understudy_error *err) {
  UST_TRY(read_config(weights, err));
  return read_tensors(weights, err);
}

understudy_status ust_weights_check_head(const ust_weights *weights, understudy_error *err) {
  if (!json_is_false(json_object_get(weights->json, "tie_word_embeddings")) ||
      ust_weights_has(weights, "output.weight"))
    return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                   "%s: tensor lm_head.weight: found none, expected one: config.json says tie_word_embeddings false",
                   weights->path);
}
