/* A small GPT-2 with random weights, written as a GGUF file for tests and opened at a kernel level. */
#ifndef UST_TESTS_RANDOM_MODEL_H
#define UST_TESTS_RANDOM_MODEL_H

#include <stdlib.h>
#include <unistd.h>

#include "model/model.h"

typedef struct random_model {
  int vocabulary, context, width, layers, heads;
  ust_type type;
  uint64_t seed;
  float spread; /* of the matrices: the larger, the less alike are two tokens' logits */
} random_model;

static inline uint64_t random_next(uint64_t *state) { /* splitmix64 */
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static inline float random_unit(uint64_t *state) {
  return (float)(random_next(state) >> 40) * 0x1p-23f - 1;
} /* [-1, 1) */
static inline int random_below(uint64_t *state, int n) {
  return (int)(random_next(state) % (uint64_t)n);
}

static inline void random_declare(ust_gguf_writer *w, const random_model *m, int pass, const char *name, int rows,
                                  int cols, float centre, uint64_t *state) {
  if (pass == 0) {
    ust_gguf_declare(w, name, rows == 1 ? UST_TYPE_F32 : m->type, (uint64_t)rows, (uint64_t)cols);
    return;
  }
  float *row = malloc((size_t)cols * sizeof *row);
  for (int r = 0; r < rows; r++) {
    for (int c = 0; c < cols; c++) row[c] = centre + m->spread * random_unit(state);
    ust_gguf_rows(w, row, 1);
  }
  free(row);
}

static inline understudy_status random_model_write(const random_model *m, const char *path, understudy_error *err) {
  ust_gguf_writer *w;
  UST_TRY(ust_gguf_create(path, &w, err));
  ust_config config = {.architecture = "gpt2",
                       .name = "random",
                       .vocabulary = m->vocabulary,
                       .context = m->context,
                       .width = m->width,
                       .layers = m->layers,
                       .heads = m->heads,
                       .feed_forward = 4 * m->width,
                       .norm_epsilon = 1e-5f,
                       .bos = -1,
                       .eos = -1};
  ust_gguf_config(w, &config, m->type);
  ust_text *tokens = calloc((size_t)m->vocabulary, sizeof *tokens);
  char(*names)[16] = calloc((size_t)m->vocabulary, sizeof *names);
  for (int i = 0; i < m->vocabulary; i++)
    tokens[i] = (ust_text){names[i], (size_t)snprintf(names[i], sizeof names[i], "token%d", i)};
  ust_gguf_texts(w, "tokenizer.ggml.tokens", tokens, (size_t)m->vocabulary);
  free(tokens);
  free(names);
  uint64_t state = m->seed;
  int d = m->width;
  for (int pass = 0; pass < 2; pass++) {
    random_declare(w, m, pass, "token_embd.weight", m->vocabulary, d, 0, &state);
    random_declare(w, m, pass, "position_embd.weight", m->context, d, 0, &state);
    for (int i = 0; i < m->layers; i++) {
      char name[64];
#define PART(part, rows, cols, centre)                                                                                 \
  snprintf(name, sizeof name, "blk.%d." part, i), random_declare(w, m, pass, name, rows, cols, centre, &state)
      PART("attn_norm.weight", 1, d, 1);
      PART("attn_norm.bias", 1, d, 0);
      PART("attn_qkv.weight", 3 * d, d, 0);
      PART("attn_qkv.bias", 1, 3 * d, 0);
      PART("attn_output.weight", d, d, 0);
      PART("attn_output.bias", 1, d, 0);
      PART("ffn_norm.weight", 1, d, 1);
      PART("ffn_norm.bias", 1, d, 0);
      PART("ffn_up.weight", 4 * d, d, 0);
      PART("ffn_up.bias", 1, 4 * d, 0);
      PART("ffn_down.weight", d, 4 * d, 0);
      PART("ffn_down.bias", 1, d, 0);
#undef PART
    }
    random_declare(w, m, pass, "output_norm.weight", 1, d, 1, &state);
    random_declare(w, m, pass, "output_norm.bias", 1, d, 0, &state);
  }
  return ust_gguf_commit(w, err);
}

/* Writes, opens at `isa`, removes the file. */
static inline ust_model *random_model_open(const random_model *m, ust_isa isa, int threads) {
  char path[64];
  understudy_error err = {0};
  ust_weights *weights = NULL;
  ust_model *model = NULL;
  snprintf(path, sizeof path, "/tmp/understudy-test-%d-%llx.gguf", (int)getpid(), (unsigned long long)m->seed);
  if (random_model_write(m, path, &err) != UNDERSTUDY_OK || ust_weights_open(path, &weights, &err) != UNDERSTUDY_OK ||
      ust_model_open(weights, ust_kernels_get(isa, NULL), threads, NULL, NULL, &model, &err) != UNDERSTUDY_OK) {
    fprintf(stderr, "%s\n", err.message);
    abort();
  }
  ust_weights_close(weights);
  unlink(path);
  return model;
}

#endif
