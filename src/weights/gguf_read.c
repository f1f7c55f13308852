/* GGUF, reading: magic, version, metadata keys, tensor list. Versions 2 and 3, little endian.
 *
 * The part before the tensor data is read piece by piece into one buffer that keys then point into. Each count
 * is checked against the bytes that are left before anything is allocated for it. */
#include <inttypes.h>
#include <stdlib.h>

#include "weights/internal.h"

typedef struct reader {
  ust_weights *weights;
  const ust_file *file;
  unsigned char *bytes;
  size_t limit, filled, at; /* bytes that may be read, that were, that are behind us */
  size_t strings, integers; /* in arrays so far */
  understudy_error *err;
} reader;

static const struct {
  const char *name;
  size_t size;
} value_types[UST_GGUF_TYPES] = {{"u8", 1},  {"i8", 1},  {"u16", 2},  {"i16", 2},    {"u32", 4},
                                 {"i32", 4}, {"f32", 4}, {"bool", 1}, {"string", 8}, {"array", 12},
                                 {"u64", 8}, {"i64", 8}, {"f64", 8}};

/* Tensor types that GGUF defines; NULL: never used, or removed from the format. */
static const char *const tensor_types[] = {
    "F32",    "F16",   "Q4_0",  "Q4_1",   NULL,    NULL,    "Q5_0",    "Q5_1",   "Q8_0",    "Q8_1",
    "Q2_K",   "Q3_K",  "Q4_K",  "Q5_K",   "Q6_K",  "Q8_K",  "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
    "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",    "I16",   "I32",     "I64",    "F64",     "IQ1_M",
    "BF16",   NULL,    NULL,    NULL,     "TQ1_0", "TQ2_0", NULL,      NULL,     NULL,      "MXFP4"};

static understudy_status bad(reader *r, const char *field, const char *found, const char *expected) {
  return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: found %s, expected %s", r->file->path, field, found,
                   expected);
}

/* Makes the next `size` bytes available. */
static understudy_status need(reader *r, uint64_t size, const char *field) {
  if (size > r->limit - r->at) {
    if (r->limit < r->file->size && size <= r->file->size - r->at)
      return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: metadata goes on after %zu bytes, expected less",
                       r->file->path, field, r->limit);
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: %s: found the end of the file at byte %" PRIu64 ", expected %" PRIu64 " bytes from byte %zu",
                     r->file->path, field, r->file->size, size, r->at);
  }
  size_t end = r->at + (size_t)size;
  if (end <= r->filled) return UNDERSTUDY_OK;
  size_t fill = UST_MIN(r->limit, UST_MAX(end, r->filled + (1 << 20)));
  UST_TRY(ust_file_read(r->file, r->filled, r->bytes + r->filled, fill - r->filled, r->err));
  r->filled = fill;
  return UNDERSTUDY_OK;
}

static understudy_status read_u32(reader *r, const char *field, uint32_t *out) {
  UST_TRY(need(r, 4, field));
  *out = ust_load_u32(r->bytes + r->at);
  r->at += 4;
  return UNDERSTUDY_OK;
}

static understudy_status read_u64(reader *r, const char *field, uint64_t *out) {
  UST_TRY(need(r, 8, field));
  *out = ust_load_u64(r->bytes + r->at);
  r->at += 8;
  return UNDERSTUDY_OK;
}

static understudy_status read_text(reader *r, const char *field, ust_text *out) {
  uint64_t size;
  UST_TRY(read_u64(r, field, &size));
  UST_TRY(need(r, size, field));
  *out = (ust_text){(const char *)r->bytes + r->at, (size_t)size};
  r->at += (size_t)size;
  return UNDERSTUDY_OK;
}

static understudy_status read_count(reader *r, const char *field, uint64_t most, uint64_t *out) {
  UST_TRY(read_u64(r, field, out));
  if (*out <= most) return UNDERSTUDY_OK;
  return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: found %" PRIu64 ", expected at most %" PRIu64,
                   r->file->path, field, *out, most);
}

static understudy_status read_preamble(reader *r, uint64_t *tensors, uint64_t *keys) {
  UST_TRY(need(r, 4, "magic"));
  if (memcmp(r->bytes, "GGUF", 4) != 0)
    return ust_error(
        r->err, UNDERSTUDY_ERROR_FORMAT, "%s: magic: found \"%.4s\"%s", r->file->path, (const char *)r->bytes,
        memcmp(r->bytes, "USTN", 4) == 0   ? " (an n-gram file), expected \"GGUF\""
        : memcmp(r->bytes, "USTT", 4) == 0 ? " (a checkpoint of training), expected \"GGUF\""
                                           : ", expected \"GGUF\" (of a Hugging Face model give the directory)");
  r->at = 4;
  uint32_t version;
  UST_TRY(read_u32(r, "version", &version));
  if (version != 2 && version != 3)
    return ust_error(r->err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: version: found %" PRIu32 "%s, expected 2 or 3",
                     r->file->path, version, version != 0 && version % 65536 == 0 ? " (a big-endian file)" : "");
  UST_TRY(read_count(r, "n_tensors", UST_TENSORS_MAX, tensors));
  return read_count(r, "n_kv", UST_KEYS_MAX, keys);
}

static understudy_status read_strings(reader *r, const char *field, ust_key *key) {
  r->strings += (size_t)key->count;
  if (r->strings > UST_STRINGS_MAX) return bad(r, field, "too many strings in all", "at most 2097152");
  key->strings = calloc((size_t)key->count + 1, sizeof *key->strings);
  if (!key->strings) return ust_error_memory(r->err, (size_t)key->count * sizeof *key->strings, field);
  for (uint64_t i = 0; i < key->count; i++) UST_TRY(read_text(r, field, &key->strings[i]));
  return UNDERSTUDY_OK;
}

static understudy_status read_array(reader *r, const char *field, ust_key *key) {
  UST_TRY(read_u32(r, field, &key->element));
  UST_TRY(read_u64(r, field, &key->count));
  if (key->element >= UST_GGUF_TYPES) return bad(r, field, "an array of an unknown type", "a type of 0 ... 12");
  if (key->element == UST_GGUF_ARRAY) return bad(r, field, "an array of arrays", "an array of scalars or strings");
  size_t size = value_types[key->element].size;
  if (key->count > (r->limit - r->at) / size || key->count > UST_ARRAY_MAX)
    return ust_error(
        r->err, UNDERSTUDY_ERROR_FORMAT,
        "%s: %s: found an array of %" PRIu64 " elements, expected at most %" PRIu64 " in what follows of the file",
        r->file->path, field, key->count, (uint64_t)UST_MIN((r->limit - r->at) / size, (size_t)UST_ARRAY_MAX));
  if (key->element == UST_GGUF_STRING) return read_strings(r, field, key);
  UST_TRY(need(r, key->count * size, field));
  key->value = r->bytes + r->at;
  r->at += (size_t)key->count * size;
  if (key->element != UST_GGUF_I32 && key->element != UST_GGUF_U32) return UNDERSTUDY_OK;
  r->integers += (size_t)key->count;
  if (r->integers > UST_STRINGS_MAX) return bad(r, field, "too many integers in all arrays", "at most 2097152");
  key->integers = malloc(((size_t)key->count + 1) * sizeof *key->integers);
  if (!key->integers) return ust_error_memory(r->err, (size_t)key->count * sizeof *key->integers, field);
  for (size_t i = 0; i < key->count; i++) key->integers[i] = (int32_t)ust_load_u32(key->value + 4 * i);
  return UNDERSTUDY_OK;
}

static understudy_status read_key(reader *r, uint64_t index, ust_key *key) {
  char field[128];
  snprintf(field, sizeof field, "key %" PRIu64, index);
  UST_TRY(read_text(r, field, &key->name));
  if (key->name.size == 0 || key->name.size > 65535 || memchr(key->name.data, 0, key->name.size))
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: %s: found a name of %zu bytes%s, expected 1 ... 65535 without a zero byte", r->file->path,
                     field, key->name.size, key->name.size && key->name.size <= 65535 ? " with a zero byte" : "");
  snprintf(field, sizeof field, "key %.*s", UST_SHOW(key->name));
  UST_TRY(read_u32(r, field, &key->type));
  if (key->type >= UST_GGUF_TYPES) return bad(r, field, "a value of an unknown type", "a type of 0 ... 12");
  if (key->type == UST_GGUF_ARRAY) return read_array(r, field, key);
  if (key->type == UST_GGUF_STRING) {
    ust_text text;
    UST_TRY(read_text(r, field, &text));
    key->value = (const unsigned char *)text.data;
    key->count = text.size;
    return UNDERSTUDY_OK;
  }
  size_t size = value_types[key->type].size;
  UST_TRY(need(r, size, field));
  key->value = r->bytes + r->at;
  key->count = 1;
  r->at += size;
  if (key->type == UST_GGUF_BOOL && *key->value > 1) return bad(r, field, "a bool that is neither 0 nor 1", "0 or 1");
  return UNDERSTUDY_OK;
}

static understudy_status read_keys(reader *r, uint64_t count) {
  ust_weights *weights = r->weights;
  /* 13 bytes: the shortest key there is. */
  if (count > (r->limit - r->at) / 13) return bad(r, "n_kv", "more keys than the file has room for", "fewer");
  weights->keys = calloc((size_t)count + 1, sizeof *weights->keys);
  if (!weights->keys) return ust_error_memory(r->err, (size_t)count * sizeof *weights->keys, "metadata keys");
  for (uint64_t i = 0; i < count; i++) {
    weights->key_count++;
    UST_TRY(read_key(r, i, &weights->keys[i]));
  }
  return ust_weights_index_keys(weights, r->err);
}

static understudy_status read_alignment(reader *r, uint64_t *alignment) {
  const ust_key *key = ust_weights_key(r->weights, "general.alignment");
  *alignment = 32;
  if (!key) return UNDERSTUDY_OK;
  if (key->type != UST_GGUF_U32) return bad(r, "general.alignment", value_types[key->type].name, "u32");
  *alignment = ust_load_u32(key->value);
  if (*alignment >= 8 && *alignment <= 65536 && (*alignment & (*alignment - 1)) == 0) return UNDERSTUDY_OK;
  return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT,
                   "%s: general.alignment: found %" PRIu64 ", expected a power of two of 8 ... 65536", r->file->path,
                   *alignment);
}

static understudy_status read_type(reader *r, const char *field, ust_type *out) {
  uint32_t type;
  UST_TRY(read_u32(r, field, &type));
  if (type >= sizeof tensor_types / sizeof *tensor_types || !tensor_types[type])
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: found type %" PRIu32 ", expected a type GGUF has",
                     r->file->path, field, type);
  if (!ust_type_known(type))
    return ust_error(r->err, UNDERSTUDY_ERROR_UNSUPPORTED,
                     "%s: %s: found type %s, expected F32, F16, BF16, Q8_0, Q6_K, Q5_0, Q5_1, Q5_K, Q4_0, Q4_1 or Q4_K",
                     r->file->path, field, tensor_types[type]);
  *out = (ust_type)type;
  return UNDERSTUDY_OK;
}

/* Dimensions come fastest first: columns, then rows. */
static understudy_status read_shape(reader *r, const char *field, ust_tensor *tensor) {
  uint32_t dims;
  UST_TRY(read_u32(r, field, &dims));
  if (dims < 1 || dims > 4)
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: found %" PRIu32 " dimensions, expected 1 ... 4",
                     r->file->path, field, dims);
  tensor->rows = tensor->cols = 1;
  for (uint32_t i = 0; i < dims; i++) {
    uint64_t n;
    UST_TRY(read_u64(r, field, &n));
    if (n == 0) return bad(r, field, "a dimension of 0", "at least 1");
    if (i == 0)
      tensor->cols = n;
    else if (!ust_mul(tensor->rows, n, &tensor->rows))
      return bad(r, field, "dimensions whose product does not fit 64 bits", "smaller ones");
  }
  return UNDERSTUDY_OK;
}

static understudy_status read_tensor(reader *r, uint64_t index, uint64_t alignment) {
  char field[128], name[UST_NAME_MAX + 1];
  ust_tensor tensor = {.name = name};
  ust_text text;
  snprintf(field, sizeof field, "tensor %" PRIu64, index);
  UST_TRY(read_text(r, field, &text));
  if (text.size == 0 || text.size > UST_NAME_MAX || memchr(text.data, 0, text.size))
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: found a name of %zu bytes, expected 1 ... %d, no zeros",
                     r->file->path, field, text.size, UST_NAME_MAX);
  memcpy(name, text.data, text.size);
  name[text.size] = 0;
  snprintf(field, sizeof field, "tensor %s", name);
  UST_TRY(read_shape(r, field, &tensor));
  UST_TRY(read_type(r, field, &tensor.type));
  UST_TRY(read_u64(r, field, &tensor.offset));
  if (tensor.cols % (uint64_t)ust_type_block(tensor.type))
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: %s: found rows of %" PRIu64 ", expected a multiple of %d for %s", r->file->path, field,
                     tensor.cols, ust_type_block(tensor.type), tensor_types[tensor.type]);
  uint64_t elements;
  if (!ust_mul(tensor.rows, tensor.cols, &elements) || !ust_weights_bytes(tensor.type, elements, &tensor.bytes))
    return bad(r, field, "dimensions whose product does not fit 64 bits", "smaller ones");
  if (tensor.offset % alignment)
    return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: %s: found offset %" PRIu64 ", expected a multiple of the alignment %" PRIu64, r->file->path,
                     field, tensor.offset, alignment);
  return ust_weights_add_tensor(r->weights, &tensor, r->err);
}

static int compare_offsets(const void *a, const void *b) {
  const ust_tensor *x = *(const ust_tensor *const *)a, *y = *(const ust_tensor *const *)b;
  return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Offsets count from the data's beginning; makes them count from the file's. Like the format's own reader, wants
 * the padding after the last tensor too: a file without it was cut. */
static understudy_status place_tensors(reader *r, uint64_t alignment) {
  ust_weights *weights = r->weights;
  uint64_t start = UST_ROUND_UP((uint64_t)r->at, alignment);
  for (size_t i = 0; i < weights->count; i++) {
    ust_tensor *tensor = &weights->tensors[i];
    uint64_t offset, end;
    if (!ust_add(start, tensor->offset, &offset) || !ust_add(offset, tensor->bytes, &end) ||
        !ust_add(end, alignment - 1, &end) || (end & ~(alignment - 1)) > r->file->size)
      return ust_error(r->err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: tensor %s: found %" PRIu64 " bytes at offset %" PRIu64
                       ", expected them to end inside the file of %" PRIu64 " bytes",
                       r->file->path, tensor->name, tensor->bytes, tensor->offset, r->file->size);
    tensor->offset = offset;
  }
  const ust_tensor **order = malloc((weights->count + 1) * sizeof *order);
  if (!order) return ust_error_memory(r->err, weights->count * sizeof *order, "the order of tensors");
  for (size_t i = 0; i < weights->count; i++) order[i] = &weights->tensors[i];
  qsort(order, weights->count, sizeof *order, compare_offsets);
  understudy_status status = UNDERSTUDY_OK;
  for (size_t i = 1; i < weights->count && status == UNDERSTUDY_OK; i++)
    if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset)
      status = ust_error(r->err, UNDERSTUDY_ERROR_FORMAT, "%s: tensors %s and %s: found overlapping, expected apart",
                         r->file->path, order[i - 1]->name, order[i]->name);
  free(order);
  return status;
}

understudy_status ust_weights_read_gguf(ust_weights *weights, understudy_error *err) {
  UST_TRY(ust_weights_add_file(weights, weights->path, err));
  reader r = {.weights = weights, .file = &weights->files[0], .err = err};
  r.limit = (size_t)UST_MIN(r.file->size, (uint64_t)UST_METADATA_MAX);
  r.bytes = weights->header = malloc(r.limit + 1); /* pages never read into cost nothing */
  if (!weights->header) return ust_error_memory(err, r.limit, "metadata");
  uint64_t tensors, keys, alignment;
  UST_TRY(read_preamble(&r, &tensors, &keys));
  UST_TRY(read_keys(&r, keys));
  UST_TRY(read_alignment(&r, &alignment));
  for (uint64_t i = 0; i < tensors; i++) UST_TRY(read_tensor(&r, i, alignment));
  return place_tensors(&r, alignment);
}
