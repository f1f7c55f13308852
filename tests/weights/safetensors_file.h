/* A small good Hugging Face directory: a GPT-2 of one layer whose tensors hold values that can be told. */
#ifndef TEST_WEIGHTS_SAFETENSORS_FILE_H
#define TEST_WEIGHTS_SAFETENSORS_FILE_H

#include <sys/stat.h>

#include "weights/bytes.h"

enum { VOCABULARY = 5, CONTEXT = 4, WIDTH = 6, FEED_FORWARD = 24, LAYERS = 1 };

static const char good_config[] =
    "{\"model_type\": \"gpt2\", \"vocab_size\": 5, \"n_positions\": 4, \"n_ctx\": 4, \"n_embd\": 6, \"n_layer\": 1,"
    " \"n_head\": 2, \"n_inner\": null, \"layer_norm_epsilon\": 1e-05, \"activation_function\": \"gelu_new\","
    " \"bos_token_id\": 50256, \"eos_token_id\": 4, \"resid_pdrop\": 0.1, \"architectures\": [\"GPT2LMHeadModel\"]}";

typedef struct stored {
  const char *name, *gguf; /* gguf NULL: left out */
  int rows, cols;          /* rows 0: a vector */
  const char *dtype;
  bool transposed;
} stored;

static const stored model[] = {
    {"wte.weight", "token_embd.weight", 5, 6, "F32", false},
    {"wpe.weight", "position_embd.weight", 4, 6, "F16", false},
    {"h.0.ln_1.weight", "blk.0.attn_norm.weight", 0, 6, "F32", false},
    {"h.0.ln_1.bias", "blk.0.attn_norm.bias", 0, 6, "BF16", false},
    {"h.0.attn.bias", NULL, 4, 4, "U8", false},
    {"h.0.attn.masked_bias", NULL, 0, 1, "F32", false},
    {"h.0.attn.c_attn.weight", "blk.0.attn_qkv.weight", 6, 18, "F32", true},
    {"h.0.attn.c_attn.bias", "blk.0.attn_qkv.bias", 0, 18, "F16", false},
    {"h.0.attn.c_proj.weight", "blk.0.attn_output.weight", 6, 6, "BF16", true},
    {"h.0.attn.c_proj.bias", "blk.0.attn_output.bias", 0, 6, "F32", false},
    {"h.0.ln_2.weight", "blk.0.ffn_norm.weight", 0, 6, "F32", false},
    {"h.0.ln_2.bias", "blk.0.ffn_norm.bias", 0, 6, "F32", false},
    {"h.0.mlp.c_fc.weight", "blk.0.ffn_up.weight", 6, 75, "F16", true}, /* more rows than are copied at a time */
    {"h.0.mlp.c_fc.bias", "blk.0.ffn_up.bias", 0, 75, "F32", false},
    {"h.0.mlp.c_proj.weight", "blk.0.ffn_down.weight", 75, 6, "F32", true},
    {"h.0.mlp.c_proj.bias", "blk.0.ffn_down.bias", 0, 6, "F32", false},
    {"ln_f.weight", "output_norm.weight", 0, 6, "F32", false},
    {"ln_f.bias", "output_norm.bias", 0, 6, "F32", false},
    {"lm_head.weight", NULL, 5, 6, "F32", false}};
enum { TENSORS = sizeof model / sizeof *model };

/* The value at an index, exact in every type. */
static float value_at(int tensor, size_t index) {
  return (float)((int)((size_t)tensor * 31 + index * 7) % 251 - 125) / 64;
}

static void put_value(ust_buffer *b, const char *dtype, float value) {
  uint16_t h = strcmp(dtype, "F16") == 0 ? ust_f32_to_f16(value) : ust_f32_to_bf16(value);
  if (strcmp(dtype, "F32") == 0)
    put(b, &value, 4);
  else if (strcmp(dtype, "U8") == 0)
    put_u8(b, 1);
  else
    put(b, &h, 2);
}

static void add_text(ust_buffer *b, const char *text) {
  put(b, text, strlen(text));
}

/* Tensors [from, to) of the model as one file, names with `prefix`. */
static ust_buffer build(int from, int to, const char *prefix) {
  ust_buffer header = {0}, data = {0}, file = {0};
  add_text(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
  for (int i = from; i < to; i++) {
    const stored *s = &model[i];
    size_t begin = data.size, count = (size_t)(s->rows ? s->rows * s->cols : s->cols);
    for (size_t k = 0; k < count; k++) put_value(&data, s->dtype, value_at(i, k));
    char entry[256], shape[32];
    snprintf(shape, sizeof shape, s->rows ? "%d,%d" : "%.0d%d", s->rows, s->cols);
    snprintf(entry, sizeof entry, ",\"%s%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", prefix,
             s->name, s->dtype, shape, begin, data.size);
    add_text(&header, entry);
  }
  add_text(&header, "}   ");
  put_u64(&file, header.size);
  put(&file, header.data, header.size);
  put(&file, data.data, data.size);
  ust_buffer_free(&header);
  ust_buffer_free(&data);
  return file;
}

static void write_good(const char *prefix) {
  mkdir(in_folder("model"), 0700);
  write_file("model/config.json", good_config, strlen(good_config));
  ust_buffer b = build(0, TENSORS, prefix);
  write_file("model/model.safetensors", b.data, b.size);
  ust_buffer_free(&b);
}

#endif
