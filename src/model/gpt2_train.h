/* gpt2_train: GPT-2 with gradients. Forward and backward pass over a few sequences of equal length at once, f32
 * master weights, every product through the kernel table.
 *
 * A linear layer Y = X W^T makes three products, each "activation rows times packed matrix":
 *   forward  X . W        W packed                         dX = dY . W^T   W packed transposed
 *   dW = dY^T . X         dY converted transposed, X packed transposed (inputs are the tokens)
 * The operands of the third are made while a block of rows is at hand for the second. Work is divided between threads
 * by rows, blocks of a gradient or heads and sums of rows over a fixed partition, so that every result is the same
 * with any number of threads. */
#ifndef UST_MODEL_GPT2_TRAIN_H
#define UST_MODEL_GPT2_TRAIN_H

#include <omp.h>

#include "kernel/kernel.h"
#include "weights/weights.h"

/* All multiples of 32. */
enum {
  UST_TRAIN_PIECE = 320,   /* inputs of a weight matrix packed together: a panel of them fits the first-level cache */
  UST_TRAIN_TOKENS = 256,  /* tokens packed together likewise */
  UST_TRAIN_ROWS = 256,    /* rows of a work item, whose activations fit the second-level cache */
  UST_TRAIN_COLUMNS = 640, /* most columns of such a block, or of a layer's gradient, that are made at a time */
  UST_TRAIN_VOCAB = 1024,  /* candidates whose logits exist at a time */
  UST_TRAIN_LOGITS = UST_TRAIN_VOCAB + 32, /* stride of them: no power of two, which would crowd few cache sets */
  UST_TRAIN_QUERIES = 64,                  /* rows of an attention matrix computed at a time */
  UST_TRAIN_GRADIENT_ROWS = 320            /* most rows of a matrix' gradient that are one work item */
};
_Static_assert(UST_TRAIN_ROWS % UST_TRAIN_TOKENS == 0, "a block of rows begins with a piece of tokens");

/* One parameter tensor, under GGUF's name. */
typedef struct ust_parameter {
  char name[40];
  int rows, cols; /* a vector has rows = 1 */
  bool matrix;
  size_t offset; /* in floats, from the start of parameters, gradients and moments alike; a multiple of 16 */
} ust_parameter;

/* Positions of the tensors in the list: two embeddings, 12 of each layer, two of the last norm. */
enum { UST_TOKENS, UST_POSITIONS, UST_LAYER };
enum {
  UST_NORM1_GAIN,
  UST_NORM1_BIAS,
  UST_QKV,
  UST_QKV_BIAS,
  UST_OUT,
  UST_OUT_BIAS,
  UST_NORM2_GAIN,
  UST_NORM2_BIAS,
  UST_UP,
  UST_UP_BIAS,
  UST_DOWN,
  UST_DOWN_BIAS,
  UST_LAYER_TENSORS
};

/* A matrix whose inputs are packed `piece` at a time, each piece a matrix by itself, one behind the other. */
typedef struct ust_packed {
  ust_matrix whole;
  int piece;
} ust_packed;

/* A weight matrix as the products need it. */
typedef struct ust_linear {
  ust_packed forward, backward;
} ust_linear;

/* What a layer's backward pass needs of its forward pass; f32, one row a token. */
typedef struct ust_kept {
  float *input, *norm1, *mean1, *rstd1, *qkv, *attention; /* [width], [width], [1], [1], [3 width], [width] */
  float *middle, *norm2, *mean2, *rstd2, *up;             /* [width], [width], [1], [1], [feed_forward] */
} ust_kept;

/* The operands of dw[outputs, inputs] = dy^T x and of dbias, made a block of rows at a time. */
typedef struct ust_product_gradient {
  ust_left dy;  /* [outputs, tokens] */
  ust_packed x; /* [inputs, tokens] */
  float *bias;  /* [row blocks][outputs]: column sums of dy */
} ust_product_gradient;

/* Scratch memory of one thread. */
typedef struct ust_gpt2_scratch {
  float *wide, *wide2;   /* [UST_TRAIN_ROWS, UST_TRAIN_LOGITS], or rows of the token matrix [UST_TRAIN_VOCAB, width] */
  void *rows, *features; /* activations [UST_TRAIN_ROWS, the widest but features], [UST_TRAIN_ROWS, feed_forward] */
  float *square, *square2;       /* [window, window] */
  void *head_rows, *square_rows; /* activations [window, head_dim], [window, window] */
  ust_matrix matrix;             /* of a head */
} ust_gpt2_scratch;

typedef struct ust_gpt2_train {
  ust_config config;
  const ust_kernels *kernels;
  ust_format format;
  int window, max_sequences, threads;
  bool trains; /* has gradients; otherwise layers share one set of activations */

  int parameter_count;
  ust_parameter *parameters;
  size_t size; /* floats of all parameters, padding included */
  float *values, *gradients;

  ust_linear *linears; /* [layers][4]: qkv, out, up, down */

  /* The tokens the loss is taken over: all of them, or those a step drew. */
  ust_linear *vocabulary; /* [blocks of UST_TRAIN_VOCAB]: their rows of the token matrix, padded to whole panels */
  int candidates, vocabulary_blocks;
  int32_t *candidate;   /* [candidates]: token ids */
  float *candidate_log; /* [candidates, padded]: added to their logits */
  int32_t *place;       /* [vocabulary]: a token's place among the candidates, or -1 */

  /* the micro-batch */
  int sequences, tokens;
  int32_t *ids, *positions; /* [tokens] */
  ust_kept *kept;           /* [layers] */
  float *last, *last_norm, *last_mean, *last_rstd;
  ust_left last_rows; /* [tokens, width]: what the token matrix is multiplied with */
  float *log_sum;     /* [tokens]: log of the sum of exp(logits) */
  float *loss, *kl;   /* [tokens] */

  /* backward */
  float *d_stream, *d_norm, *d_qkv, *d_attention; /* as their counterparts */
  float *d_norm_partial;                          /* [row blocks][2][width] */
  ust_product_gradient from_width, from_features; /* of matrices that read [width] and [feed_forward] */
  ust_gpt2_scratch *scratch;                      /* [threads] */

  void **blocks; /* every allocation */
  int block_count;
} ust_gpt2_train;

/* All memory for micro-batches of up to max_sequences sequences of `window` tokens; parameters are zero.
 * Needs width, feed_forward, head size and window divisible by 32. */
understudy_status ust_gpt2_train_create(const ust_config *config, const ust_kernels *kernels, ust_format format,
                                        int window, int max_sequences, int threads, bool trains, ust_gpt2_train **model,
                                        understudy_error *err);
void ust_gpt2_train_free(ust_gpt2_train *model);

/* Packs the layers' values; call after every change of them. */
void ust_gpt2_train_pack(ust_gpt2_train *model);
/* Packs the token matrix' rows of the tokens the next losses are taken over: `count` ids, each once, and what is
 * added to each one's logit; NULL and NULL: the whole vocabulary. A label is one of them. A token drawn with
 * probability 1/n stands for n such with log n added, which keeps the expected sum of exp(logits) (Bengio & Senecal
 * 2003). Call after every change of the values. */
void ust_gpt2_train_candidates(ust_gpt2_train *model, const int32_t *ids, const float *logs, int count);

/* Runs `sequences` windows: ids and absolute positions [sequences * window]. Keeps the activations. */
void ust_gpt2_train_forward(ust_gpt2_train *model, const int32_t *ids, const int32_t *positions, int sequences);
/* Its parts: the embeddings; one layer; the norm with this gain (and the bias behind it) of `last`. A model that does
 * not train keeps the hidden state in `last` from layer to layer, and what the last layer run made in kept[0]. */
void ust_gpt2_train_start(ust_gpt2_train *model, const int32_t *ids, const int32_t *positions, int sequences);
void ust_gpt2_train_layer(ust_gpt2_train *model, int layer);
void ust_gpt2_train_norm(ust_gpt2_train *model, int gain);
/* Cross-entropy with labels[tokens]; returns the sum over tokens (nats), each one's in model->loss. */
double ust_gpt2_train_loss(ust_gpt2_train *model, const int32_t *labels);
/* Adds to the gradients those of
 *   scale * sum over tokens of cross-entropy(label), or with a teacher, of KL(teacher || model).
 * After forward and loss; a teacher has run both on the same tokens. Returns the sum of KL over tokens. */
double ust_gpt2_train_backward(ust_gpt2_train *model, const int32_t *labels, float scale,
                               const ust_gpt2_train *teacher);

/* ---- between the files of gpt2_train ---- */

static inline float *ust_gpt2_value(const ust_gpt2_train *m, int parameter) {
  return m->values + m->parameters[parameter].offset;
}
static inline float *ust_gpt2_gradient(const ust_gpt2_train *m, int parameter) {
  return m->gradients + m->parameters[parameter].offset;
}
static inline int ust_gpt2_layer(int layer, int tensor) {
  return UST_LAYER + layer * UST_LAYER_TENSORS + tensor;
}
/* The matrices of a layer: UST_QKV, UST_OUT, UST_UP, UST_DOWN. */
static inline ust_linear *ust_gpt2_linear(const ust_gpt2_train *m, int layer, int tensor) {
  return &m->linears[layer * 4 + (tensor == UST_QKV ? 0 : tensor == UST_OUT ? 1 : tensor == UST_UP ? 2 : 3)];
}
static inline ust_gpt2_scratch *ust_gpt2_scratch_of(const ust_gpt2_train *m) {
  return &m->scratch[omp_get_thread_num()];
}
/* Work items of all tokens, and the rows of the one that begins with token `first`. */
static inline int ust_gpt2_row_blocks(const ust_gpt2_train *m) {
  return (m->tokens + UST_TRAIN_ROWS - 1) / UST_TRAIN_ROWS;
}
static inline int ust_gpt2_block_rows(const ust_gpt2_train *m, int first) {
  return UST_MIN(UST_TRAIN_ROWS, m->tokens - first);
}
/* n rows or columns in as few blocks as `most` each allow, all of a size but the last: theirs, a multiple of 32. */
static inline int ust_gpt2_even(int n, int most) {
  int blocks = (n + most - 1) / most;
  return UST_ROUND_UP((n + blocks - 1) / blocks, 32);
}
/* `count` outputs from `first` on of the piece that begins with `input`. */
static inline ust_matrix ust_gpt2_part(const ust_gpt2_train *m, const ust_packed *w, int first, int count, int input) {
  const ust_matrix *whole = &w->whole;
  ust_matrix part = {.format = whole->format, .rows = count, .cols = UST_MIN(w->piece, whole->cols - input)};
  part.data = (char *)whole->data + m->kernels->matrix_bytes(whole->format, whole->rows, input) +
              m->kernels->matrix_bytes(whole->format, first, part.cols);
  return part;
}
/* y[x->rows, count] = x w^T + bias, or added to what stands there (and no bias): `count` outputs from `first` on. */
static inline void ust_gpt2_multiply(const ust_gpt2_train *m, const ust_packed *w, int first, int count,
                                     const ust_left *x, const float *bias, bool add, float *y, size_t y_stride) {
  for (int input = 0; input < w->whole.cols; input += w->piece) {
    ust_matrix part = ust_gpt2_part(m, w, first, count, input);
    m->kernels->left_matmul(&part, x, input, input ? NULL : bias, add || input, y, y_stride);
  }
}

/* Operands of the gradients of products with dy and x; see ust_product_gradient. By all threads together: */
void ust_gpt2_gradient_start(ust_gpt2_train *m, ust_product_gradient *g, int outputs);
/* By one thread: columns of x, f32 [rows, stride], of a block of rows into the operand's from `at` on, a multiple of
 * 32. */
void ust_gpt2_gradient_take_x(const ust_gpt2_train *m, const ust_product_gradient *g, int first, int rows, int at,
                              int count, const float *x, size_t stride);

/* The two below are called by all threads of a parallel region together. */

/* Backward pass of the layers and embeddings from d_stream, the gradient of the last layer's output. */
void ust_gpt2_layers_backward(ust_gpt2_train *m);
/* d_stream += gradient through a norm of d_norm, dgain, dbias likewise */
void ust_gpt2_norm_backward(ust_gpt2_train *m, const float *x, const float *mean, const float *rstd, int gain);

#endif
