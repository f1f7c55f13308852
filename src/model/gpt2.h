/* gpt2: the model's inside, for the files of this room. */
#ifndef UST_MODEL_GPT2_H
#define UST_MODEL_GPT2_H

#include "model/model.h"

/* Matrices of a layer, in the order of their use. */
enum { UST_MATRIX_QKV, UST_MATRIX_OUTPUT, UST_MATRIX_UP, UST_MATRIX_DOWN, UST_LAYER_MATRICES };

typedef struct ust_layer {
  ust_matrix matrix[UST_LAYER_MATRICES];
  float *norm1_gain, *norm1_bias, *qkv_bias, *output_bias, *norm2_gain, *norm2_bias, *up_bias, *down_bias;
} ust_layer;

struct ust_model {
  ust_config config;
  const ust_kernels *kernels;
  int threads;
  int width_stride, qkv_stride, hidden_stride; /* row lengths, padded to whole panels */
  int vocabulary_stride;
  ust_matrix embedding; /* [vocabulary, width]: token rows, and the output matrix unless `output` exists */
  ust_matrix output;    /* data NULL: tied to the embedding */
  float *positions;     /* [context, width] */
  float *norm_gain, *norm_bias;
  ust_layer *layers;
  char *memory; /* of all tensors */
  uint64_t parameters, weight_bytes;
};

/* The output matrix. */
static inline const ust_matrix *ust_model_words(const ust_model *model) {
  return model->output.data ? &model->output : &model->embedding;
}

/* Bytes of weights a pass reads in layer `part`, or, with part == layers, for the logits. */
uint64_t ust_model_part_bytes(const ust_model *model, int part);

#endif
