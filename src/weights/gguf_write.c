/* GGUF, writing: version 3, little endian, alignment 32. Keys and the tensor list gather in memory; the first
 * rows (or the commit of a file without tensors) put them out, then data follows in the order declared. The
 * file appears under its name only in ust_gguf_commit(). */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "weights/internal.h"

enum { ALIGNMENT = 32, BLOCK = 32 };

typedef struct declared {
  char name[UST_NAME_MAX + 1];
  ust_type type;
  uint64_t rows, cols;
} declared;

struct ust_gguf_writer {
  ust_writer file;
  ust_buffer keys, infos, tensors; /* tensors: of declared */
  ust_buffer names;                /* of the keys, each with its zero */
  uint64_t key_count, tensor_count, offset;
  uint64_t current, row; /* the tensor being written, its rows so far */
  bool started;
  understudy_error failure; /* the first one */
};

static void fail(ust_gguf_writer *w, understudy_status status, const char *name, const char *what) {
  if (w->failure.status == UNDERSTUDY_OK) ust_error(&w->failure, status, "%s: %s: %s", w->file.path, name, what);
}

static void put(ust_gguf_writer *w, ust_buffer *to, const void *data, size_t size) {
  if (!ust_buffer_append(to, data, size)) fail(w, UNDERSTUDY_ERROR_MEMORY, "metadata", "out of memory");
}

static void put_u32(ust_gguf_writer *w, ust_buffer *to, uint32_t v) {
  unsigned char b[4] = {(unsigned char)v, (unsigned char)(v >> 8), (unsigned char)(v >> 16), (unsigned char)(v >> 24)};
  put(w, to, b, sizeof b);
}

static void put_u64(ust_gguf_writer *w, ust_buffer *to, uint64_t v) {
  put_u32(w, to, (uint32_t)v);
  put_u32(w, to, (uint32_t)(v >> 32));
}

static void put_text(ust_gguf_writer *w, ust_buffer *to, const char *data, size_t size) {
  put_u64(w, to, size);
  put(w, to, data, size);
}

understudy_status ust_gguf_create(const char *path, ust_gguf_writer **out, understudy_error *err) {
  *out = NULL;
  ust_gguf_writer *w = calloc(1, sizeof *w);
  if (!w) return ust_error_memory(err, sizeof *w, path);
  understudy_status status = ust_writer_open(&w->file, path, err);
  if (status != UNDERSTUDY_OK) {
    free(w);
    return status;
  }
  *out = w;
  return UNDERSTUDY_OK;
}

/* ---- keys ---- */

static void begin_key(ust_gguf_writer *w, const char *key, uint32_t type) {
  if (w->started || w->tensor_count) fail(w, UNDERSTUDY_ERROR_ARGUMENT, key, "keys come before tensors");
  for (size_t at = 0; at < w->names.size; at += strlen(w->names.data + at) + 1)
    if (strcmp(w->names.data + at, key) == 0) fail(w, UNDERSTUDY_ERROR_ARGUMENT, key, "key set twice");
  put(w, &w->names, key, strlen(key) + 1);
  put_text(w, &w->keys, key, strlen(key));
  put_u32(w, &w->keys, type);
  w->key_count++;
}

void ust_gguf_text(ust_gguf_writer *w, const char *key, const char *value) {
  begin_key(w, key, UST_GGUF_STRING);
  put_text(w, &w->keys, value, strlen(value));
}

void ust_gguf_u32(ust_gguf_writer *w, const char *key, uint32_t value) {
  begin_key(w, key, UST_GGUF_U32);
  put_u32(w, &w->keys, value);
}

static uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

void ust_gguf_f32(ust_gguf_writer *w, const char *key, float value) {
  begin_key(w, key, UST_GGUF_F32);
  put_u32(w, &w->keys, float_bits(value));
}

void ust_gguf_texts(ust_gguf_writer *w, const char *key, const ust_text *values, size_t count) {
  begin_key(w, key, UST_GGUF_ARRAY);
  put_u32(w, &w->keys, UST_GGUF_STRING);
  put_u64(w, &w->keys, count);
  for (size_t i = 0; i < count; i++) put_text(w, &w->keys, values[i].data, values[i].size);
}

void ust_gguf_i32s(ust_gguf_writer *w, const char *key, const int32_t *values, size_t count) {
  begin_key(w, key, UST_GGUF_ARRAY);
  put_u32(w, &w->keys, UST_GGUF_I32);
  put_u64(w, &w->keys, count);
  for (size_t i = 0; i < count; i++) put_u32(w, &w->keys, (uint32_t)values[i]);
}

/* llama.cpp's numbers for "mostly this type". */
static uint32_t file_type(ust_type type) {
  switch (type) {
  case UST_TYPE_F32:
    return 0;
  case UST_TYPE_F16:
    return 1;
  case UST_TYPE_Q4_0:
    return 2;
  case UST_TYPE_Q8_0:
    return 7;
  default:
    return 32; /* BF16 */
  }
}

void ust_gguf_config(ust_gguf_writer *w, const ust_config *config, ust_type type) {
  ust_gguf_text(w, "general.architecture", config->architecture);
  ust_gguf_text(w, "general.name", config->name);
  ust_gguf_u32(w, "general.alignment", ALIGNMENT);
  ust_gguf_u32(w, "general.file_type", file_type(type));
  ust_gguf_u32(w, "general.quantization_version", 2);
  ust_gguf_u32(w, "gpt2.context_length", (uint32_t)config->context);
  ust_gguf_u32(w, "gpt2.embedding_length", (uint32_t)config->width);
  ust_gguf_u32(w, "gpt2.feed_forward_length", (uint32_t)config->feed_forward);
  ust_gguf_u32(w, "gpt2.block_count", (uint32_t)config->layers);
  ust_gguf_u32(w, "gpt2.attention.head_count", (uint32_t)config->heads);
  ust_gguf_f32(w, "gpt2.attention.layer_norm_epsilon", config->norm_epsilon);
  ust_gguf_text(w, "tokenizer.ggml.model", "gpt2");
  ust_gguf_text(w, "tokenizer.ggml.pre", "gpt-2");
  if (config->bos >= 0) ust_gguf_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)config->bos);
  if (config->eos >= 0) ust_gguf_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)config->eos);
}

void ust_gguf_vocabulary(ust_gguf_writer *w, const ust_vocabulary *vocabulary) {
  ust_gguf_texts(w, "tokenizer.ggml.tokens", vocabulary->tokens, vocabulary->count);
  if (vocabulary->types) ust_gguf_i32s(w, "tokenizer.ggml.token_type", vocabulary->types, vocabulary->count);
  ust_gguf_texts(w, "tokenizer.ggml.merges", vocabulary->merges, vocabulary->merge_count);
}

/* ---- tensors ---- */

ust_type ust_gguf_type(const char *name, uint64_t rows, ust_type type) {
  return rows == 1 || strcmp(name, "position_embd.weight") == 0 ? UST_TYPE_F32 : type;
}

void ust_gguf_declare(ust_gguf_writer *w, const char *name, ust_type type, uint64_t rows, uint64_t cols) {
  uint64_t elements = 0, bytes = 0, end = 0;
  if (w->started) fail(w, UNDERSTUDY_ERROR_ARGUMENT, name, "declared after the first rows");
  if (strlen(name) > UST_NAME_MAX) fail(w, UNDERSTUDY_ERROR_ARGUMENT, name, "name too long for GGUF");
  if (cols % (uint64_t)ust_type_block(type))
    fail(w, UNDERSTUDY_ERROR_ARGUMENT, name, "rows of this type are whole blocks of 32");
  if (!rows || !cols || !ust_mul(rows, cols, &elements) || !ust_weights_bytes(type, elements, &bytes) ||
      !ust_add(bytes, ALIGNMENT - 1, &end) || !ust_add(w->offset, end, &end))
    fail(w, UNDERSTUDY_ERROR_ARGUMENT, name, "impossible size");
  put_text(w, &w->infos, name, strlen(name));
  put_u32(w, &w->infos, rows == 1 ? 1 : 2);
  put_u64(w, &w->infos, cols);
  if (rows != 1) put_u64(w, &w->infos, rows);
  put_u32(w, &w->infos, (uint32_t)type);
  put_u64(w, &w->infos, w->offset);
  declared tensor = {.type = type, .rows = rows, .cols = cols};
  snprintf(tensor.name, sizeof tensor.name, "%s", name);
  put(w, &w->tensors, &tensor, sizeof tensor);
  w->tensor_count++;
  w->offset += UST_ROUND_UP(bytes, ALIGNMENT);
}

static void pad(ust_gguf_writer *w) {
  static const char zeros[ALIGNMENT];
  ust_writer_write(&w->file, zeros, (size_t)(UST_ROUND_UP(w->file.written, ALIGNMENT) - w->file.written));
}

static void start(ust_gguf_writer *w) {
  if (w->started) return;
  w->started = true;
  ust_buffer head = {0};
  put(w, &head, "GGUF", 4);
  put_u32(w, &head, 3);
  put_u64(w, &head, w->tensor_count);
  put_u64(w, &head, w->key_count);
  ust_writer_write(&w->file, head.data, head.size);
  ust_writer_write(&w->file, w->keys.data, w->keys.size);
  ust_writer_write(&w->file, w->infos.data, w->infos.size);
  ust_buffer_free(&head);
  pad(w);
}

static void encode(ust_type type, const float *values, size_t count, unsigned char *out) {
  if (type == UST_TYPE_Q8_0) {
    for (size_t i = 0; i < count / BLOCK; i++) {
      ust_q8_block block;
      ust_q8_quantize(values + i * BLOCK, &block);
      memcpy(out + i * sizeof block, &block, sizeof block);
    }
    return;
  }
  if (type == UST_TYPE_Q4_0) {
    for (size_t i = 0; i < count / BLOCK; i++) {
      ust_q4_block block;
      ust_q4_quantize(values + i * BLOCK, &block);
      memcpy(out + i * sizeof block, &block, sizeof block);
    }
    return;
  }
  if (type == UST_TYPE_F32) {
    memcpy(out, values, count * sizeof *values);
    return;
  }
  for (size_t i = 0; i < count; i++) {
    uint16_t h = type == UST_TYPE_F16 ? ust_f32_to_f16(values[i]) : ust_f32_to_bf16(values[i]);
    out[2 * i] = (unsigned char)h;
    out[2 * i + 1] = (unsigned char)(h >> 8);
  }
}

/* The largest magnitude a type can hold. */
static float largest(ust_type type) {
  const float f16 = 65504, bf16 = 0x1.fep127f;
  switch (type) {
  case UST_TYPE_F16:
    return f16;
  case UST_TYPE_BF16:
    return bf16;
  case UST_TYPE_Q8_0:
    return 127 * f16;
  case UST_TYPE_Q4_0:
    return 8 * f16;
  default:
    return FLT_MAX;
  }
}

/* NaN, infinities and what the type cannot hold would become other values, in silence. */
static void check(ust_gguf_writer *w, const declared *tensor, const float *values, size_t count) {
  const float most = largest(tensor->type);
  size_t bad = 0;
  while (bad < count && fabsf(values[bad]) <= most) bad++;
  if (bad == count) return;
  char what[120];
  snprintf(what, sizeof what, "found a value of %g, expected finite ones that %s can hold (up to %g)",
           (double)values[bad], ust_type_name(tensor->type), (double)most);
  fail(w, UNDERSTUDY_ERROR_FORMAT, tensor->name, what);
}

void ust_gguf_rows(ust_gguf_writer *w, const float *values, uint64_t rows) {
  if (w->failure.status != UNDERSTUDY_OK || w->file.failure) return;
  if (w->current == w->tensor_count) {
    fail(w, UNDERSTUDY_ERROR_ARGUMENT, "rows", "more than were declared");
    return;
  }
  declared tensor;
  memcpy(&tensor, w->tensors.data + w->current * sizeof tensor, sizeof tensor);
  if (rows > tensor.rows - w->row) {
    fail(w, UNDERSTUDY_ERROR_ARGUMENT, "rows", "more than were declared");
    return;
  }
  check(w, &tensor, values, rows * tensor.cols);
  if (w->failure.status != UNDERSTUDY_OK) return;
  start(w);
  enum { CHUNK = 256 * BLOCK };
  unsigned char bytes[CHUNK * 4];
  for (uint64_t left = rows * tensor.cols; left > 0;) {
    size_t take = (size_t)UST_MIN(left, (uint64_t)CHUNK);
    uint64_t size = 0;
    ust_weights_bytes(tensor.type, take, &size);
    encode(tensor.type, values, take, bytes);
    ust_writer_write(&w->file, bytes, (size_t)size);
    values += take;
    left -= take;
  }
  w->row += rows;
  if (w->row < tensor.rows) return;
  pad(w);
  w->current++;
  w->row = 0;
}

understudy_status ust_gguf_commit(ust_gguf_writer *w, understudy_error *err) {
  if (w->current != w->tensor_count && !w->file.failure)
    fail(w, UNDERSTUDY_ERROR_ARGUMENT, "rows", "fewer than were declared");
  start(w);
  understudy_status status = w->failure.status;
  if (status != UNDERSTUDY_OK)
    ust_error(err, status, "%s", w->failure.message);
  else
    status = ust_writer_commit(&w->file, err);
  ust_gguf_abandon(w);
  return status;
}

void ust_gguf_abandon(ust_gguf_writer *w) {
  if (!w) return;
  ust_writer_abandon(&w->file);
  ust_buffer_free(&w->keys);
  ust_buffer_free(&w->infos);
  ust_buffer_free(&w->tensors);
  ust_buffer_free(&w->names);
  free(w);
}
