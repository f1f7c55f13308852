/* A small good GGUF file, built byte by byte from a description whose every field a test can spoil. */
#ifndef TEST_WEIGHTS_GGUF_FILE_H
#define TEST_WEIGHTS_GGUF_FILE_H

#include "weights/bytes.h"

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

typedef struct tensor_spec {
  const char *name;
  uint32_t dims, type;
  uint64_t n[4], offset;
} tensor_spec;

/* Every field of a file; what is left at its default is good. */
typedef struct file_spec {
  const char *magic;
  uint32_t version, alignment_type, alignment;
  uint64_t tensors, keys; /* added to the true numbers */
  uint32_t blocks, heads, width, bos, token_type_element;
  uint64_t context, feed_forward, types; /* types: elements of token_type */
  const char *byte_token, *leave_out, *architecture, *model;
  float epsilon;
  const ust_buffer *more; /* raw keys after the others */
  uint64_t more_count;
  const tensor_spec *list; /* tensors after token_embd.weight */
  size_t list_count;
  size_t data;
} file_spec;

static const file_spec good = {.magic = "GGUF",
                               .version = 3,
                               .alignment_type = U32,
                               .alignment = 32,
                               .blocks = 2,
                               .heads = 2,
                               .width = 8,
                               .bos = 1,
                               .token_type_element = I32,
                               .context = 16,
                               .feed_forward = 32,
                               .types = 3,
                               .byte_token = "<0x41>",
                               .leave_out = "",
                               .architecture = "gpt2",
                               .model = "gpt2",
                               .epsilon = 1e-5f,
                               .data = 96};

static uint64_t keys_put;

static bool begin_key(ust_buffer *b, const file_spec *s, const char *key, uint32_t type) {
  if (strcmp(key, s->leave_out) == 0) return false;
  put_text(b, key);
  put_u32(b, type);
  keys_put++;
  return true;
}

static void key_u32(ust_buffer *b, const file_spec *s, const char *key, uint32_t value) {
  if (begin_key(b, s, key, U32)) put_u32(b, value);
}

static void put_keys(ust_buffer *b, const file_spec *s) {
  if (begin_key(b, s, "general.architecture", STRING)) put_text(b, s->architecture);
  if (begin_key(b, s, "general.alignment", s->alignment_type)) {
    if (s->alignment_type == U64)
      put_u64(b, s->alignment);
    else
      put_u32(b, s->alignment);
  }
  if (begin_key(b, s, "gpt2.context_length", U64)) put_u64(b, s->context);
  key_u32(b, s, "gpt2.embedding_length", s->width);
  if (begin_key(b, s, "gpt2.feed_forward_length", U64)) put_u64(b, s->feed_forward);
  key_u32(b, s, "gpt2.block_count", s->blocks);
  key_u32(b, s, "gpt2.attention.head_count", s->heads);
  if (begin_key(b, s, "gpt2.attention.layer_norm_epsilon", F32)) put_f32(b, s->epsilon);
  if (begin_key(b, s, "tokenizer.ggml.model", STRING)) put_text(b, s->model);
  key_u32(b, s, "tokenizer.ggml.bos_token_id", s->bos);
  if (begin_key(b, s, "tokenizer.ggml.tokens", ARRAY)) {
    put_u32(b, STRING);
    put_u64(b, 3);
    put_text(b, "a");
    put_text(b, "");
    put_text(b, s->byte_token);
  }
  if (begin_key(b, s, "tokenizer.ggml.token_type", ARRAY)) {
    put_u32(b, s->token_type_element);
    put_u64(b, s->types);
    for (uint64_t i = 0; i < s->types; i++) put_u32(b, i == 2 ? 6 : 1);
  }
}

static void put_tensor(ust_buffer *b, const tensor_spec *t) {
  put_text(b, t->name);
  put_u32(b, t->dims);
  for (uint32_t i = 0; i < t->dims && i < 4; i++) put_u64(b, t->n[i]);
  put_u32(b, t->type);
  put_u64(b, t->offset);
}

static ust_buffer build(const file_spec *s) {
  ust_buffer keys = {0}, b = {0};
  keys_put = 0;
  put_keys(&keys, s);
  put(&b, s->magic, 4);
  put_u32(&b, s->version);
  put_u64(&b, s->tensors + 1 + s->list_count);
  put_u64(&b, s->keys + keys_put + s->more_count);
  put(&b, keys.data, keys.size);
  if (s->more) put(&b, s->more->data, s->more->size);
  put_tensor(&b, &(tensor_spec){"token_embd.weight", 2, 0, {8, 3}, 0});
  for (size_t i = 0; i < s->list_count; i++) put_tensor(&b, &s->list[i]);
  put_zeros(&b, UST_ROUND_UP(b.size, 32) - b.size + s->data);
  ust_buffer_free(&keys);
  return b;
}

#endif
