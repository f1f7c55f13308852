/* weights: model files in, model files out. GGUF (v2, v3) and Hugging Face directories (config.json and
 * safetensors, one or several shards) behind one view: a configuration and tensors under GGUF's names, each a
 * logical matrix [rows = outputs, cols = inputs].
 *
 * Every size in a file is untrusted: sums and products are checked before use, reads are exact. */
#ifndef UST_WEIGHTS_H
#define UST_WEIGHTS_H

#include "base/vocabulary.h"
#include "kernel/kernel.h"

typedef enum ust_type {
  UST_TYPE_F32 = 0,
  UST_TYPE_F16 = 1,
  UST_TYPE_Q4_0 = 2,
  UST_TYPE_Q4_1 = 3,
  UST_TYPE_Q5_0 = 6,
  UST_TYPE_Q5_1 = 7,
  UST_TYPE_Q8_0 = 8,
  UST_TYPE_Q4_K = 12,
  UST_TYPE_Q5_K = 13,
  UST_TYPE_Q6_K = 14,
  UST_TYPE_BF16 = 30
} ust_type; /* GGUF's codes. Written: F32, F16, BF16, Q8_0, Q4_0 */

const char *ust_type_name(ust_type type); /* "q4_0" */
int ust_type_block(ust_type type);        /* elements of a block; rows are whole blocks */

typedef struct ust_tensor {
  const char *name; /* GGUF's: token_embd.weight, blk.0.attn_qkv.bias, … */
  ust_type type;
  uint64_t rows, cols; /* a vector has rows = 1 */
  bool transposed;     /* stored [cols, rows] (GPT-2's Conv1D in Hugging Face files) */
  int file;            /* index of the shard */
  uint64_t offset, bytes;
} ust_tensor;

/* What the model room needs to know; GPT-2's fields. */
typedef struct ust_config {
  char architecture[32]; /* "gpt2" */
  char name[64];
  int vocabulary, context, width, layers, heads, feed_forward;
  float norm_epsilon;
  int bos, eos; /* -1: none */
} ust_config;

typedef struct ust_weights ust_weights;

/* Opens a GGUF file or a Hugging Face directory. Checks everything that can be checked without the
 * architecture: formats, sizes, offsets, names; and the configuration's ranges. */
understudy_status ust_weights_open(const char *path, ust_weights **weights, understudy_error *err);
void ust_weights_close(ust_weights *weights);

const char *ust_weights_path(const ust_weights *weights);
bool ust_weights_is_directory(const ust_weights *weights);
const ust_config *ust_weights_config(const ust_weights *weights);
size_t ust_weights_count(const ust_weights *weights);
const ust_tensor *ust_weights_tensor(const ust_weights *weights, size_t index);
/* By name; an error naming the file when it is missing or its shape is not rows x cols (0: any). */
understudy_status ust_weights_find(const ust_weights *weights, const char *name, uint64_t rows, uint64_t cols,
                                   const ust_tensor **tensor, understudy_error *err);
bool ust_weights_has(const ust_weights *weights, const char *name);

/* Rows [row, row+count) of the logical matrix as f32 [count, cols]. Any type. Thread-safe. An error when a value is
 * infinite or not a number. */
understudy_status ust_weights_read_rows(const ust_weights *weights, const ust_tensor *tensor, uint64_t row,
                                        uint64_t count, float *out, understudy_error *err);
/* The same as blocks [count, cols / block], as they are stored, of a tensor of Q8_0, Q4_0 or
 * Q4_K. An error when a scale is infinite or not a number. */
understudy_status ust_weights_read_blocks(const ust_weights *weights, const ust_tensor *tensor, uint64_t row,
                                          uint64_t count, void *out, understudy_error *err);

/* ---- GGUF metadata, for the tokenizer and for `inspect` ---- */

/* The vocabulary of a GGUF file; it lives as long as the weights. An error when the file holds none. */
understudy_status ust_weights_vocabulary(const ust_weights *weights, ust_vocabulary *vocabulary, understudy_error *err);
/* Calls `visit` for each metadata key with its value printed in short ("[50257 strings]", "12", "gpt2"). */
void ust_weights_each_key(const ust_weights *weights, void (*visit)(void *user, const char *key, const char *value),
                          void *user);

/* ---- writing GGUF v3 ---- */

typedef struct ust_gguf_writer ust_gguf_writer;

/* Starts a file. Keys first, then declare every tensor, then write their rows in the order declared, then
 * commit. A failure sticks and is reported by commit. */
understudy_status ust_gguf_create(const char *path, ust_gguf_writer **writer, understudy_error *err);
void ust_gguf_text(ust_gguf_writer *writer, const char *key, const char *value);
void ust_gguf_u32(ust_gguf_writer *writer, const char *key, uint32_t value);
void ust_gguf_f32(ust_gguf_writer *writer, const char *key, float value);
void ust_gguf_texts(ust_gguf_writer *writer, const char *key, const ust_text *values, size_t count);
void ust_gguf_i32s(ust_gguf_writer *writer, const char *key, const int32_t *values, size_t count);
/* All keys of a configuration: general.architecture, gpt2.block_count, …, general.file_type by `type`; and
 * tokenizer.ggml.model, .pre, .bos_token_id, .eos_token_id. Setting a key twice fails. */
void ust_gguf_config(ust_gguf_writer *writer, const ust_config *config, ust_type type);
/* The keys of a vocabulary that are left: tokenizer.ggml.tokens, .token_type and .merges. */
void ust_gguf_vocabulary(ust_gguf_writer *writer, const ust_vocabulary *vocabulary);
/* What a tensor is stored as where matrices are to be `type`: vectors (rows 1) and the position embeddings stay f32:
 * they are few, and added, not multiplied. */
ust_type ust_gguf_type(const char *name, uint64_t rows, ust_type type);
/* A tensor of one row is written with one dimension. Q8_0 and Q4_0 need cols divisible by 32. */
void ust_gguf_declare(ust_gguf_writer *writer, const char *name, ust_type type, uint64_t rows, uint64_t cols);
/* The next `rows` rows (f32, converted to the declared type) of the current tensor. A value that is not finite, or too
 * large for the type, is an error at commit. */
void ust_gguf_rows(ust_gguf_writer *writer, const float *values, uint64_t rows);
understudy_status ust_gguf_commit(ust_gguf_writer *writer, understudy_error *err); /* frees the writer */
void ust_gguf_abandon(ust_gguf_writer *writer);

#endif
