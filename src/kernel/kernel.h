/* kernel: everything that does arithmetic on tensors, as one table of functions per instruction-set level.
 *
 * Levels: scalar < avx2 < avx512 < amx. The scalar level fills the table, each higher level overlays what it
 * does better (ust_kernels_get() returns the finished table). All functions are single-threaded and pure; the
 * caller splits work between threads by output panels, heads or rows, never along a sum. Every function is
 * row-invariant: row i of M rows has the same bits as the same row alone.
 *
 * Shapes: activations are rows of `stride` elements, stride a multiple of 32, the tail past the row's length
 * holding zeros. An *activation* is the level's own input type of matmul (f32 or bf16: activation_size). */
#ifndef UST_KERNEL_H
#define UST_KERNEL_H

#include "base/base.h"

typedef enum ust_isa { UST_ISA_SCALAR, UST_ISA_AVX2, UST_ISA_AVX512, UST_ISA_AMX, UST_ISA_COUNT } ust_isa;

/* How a matrix is kept in memory. The quantised ones are GGUF's: Q8 is Q8_0 (32 int8 with one f16 scale), Q4 is Q4_0
 * (32 integers of 4 bits with one f16 scale), Q4K is Q4_K (256 of 4 bits; 8 scales and minima of 6 bits with one f16
 * scale each). Their values are exactly what the file says. Products with them take rows of 8-bit integers made by
 * integers(), and have the same bits at every level for the same rows.
 * F32 exists at the scalar level only (reference tests). */
typedef enum ust_format { UST_FORMAT_BF16, UST_FORMAT_Q8, UST_FORMAT_F32, UST_FORMAT_Q4, UST_FORMAT_Q4K } ust_format;

/* Blocks as GGUF stores them. */
typedef struct ust_q8_block {
  uint16_t scale; /* f16 */
  int8_t q[32];
} ust_q8_block;

typedef struct ust_q4_block {
  uint16_t scale; /* f16; value: scale * (q - 8) */
  uint8_t q[16];  /* inputs 0-15 in the low halves, 16-31 in the high ones */
} ust_q4_block;

typedef struct ust_q4k_block {
  uint16_t scale, minimum; /* f16, of the 6-bit ones */
  uint8_t parts[12];       /* 8 scales and 8 minima of 6 bits */
  uint8_t q[128];          /* 4 times 32: 32 inputs in the low halves, the next 32 in the high ones */
} ust_q4k_block;

enum {
  UST_PANEL = 32,     /* output columns of one panel, the unit threads divide a matmul into */
  UST_KV_BLOCK = 32,  /* slots of a KV head come in multiples of this */
  UST_TREE_DEPTH = 32 /* most keys of a row that may lie outside slot == position */
};

/* A weight matrix W[rows = outputs, cols = inputs] in the layout of one level; plain data, owned by the caller. */
typedef struct ust_matrix {
  ust_format format;
  int rows, cols;
  size_t bytes; /* of data: what one pass over it reads */
  void *data;   /* 64-byte aligned; NULL until allocated */
  const struct ust_matrix
      *next; /* multiplied with after this one by the same threads: brought nearer meanwhile, or NULL */
} ust_matrix;

typedef enum ust_epilogue {
  UST_STORE, /* y is f32:        y  = x W^T + bias */
  UST_ADD,   /* y is f32:        y += x W^T + bias */
  UST_GELU   /* y is activation: y  = gelu_tanh(x W^T + bias) */
} ust_epilogue;

/* The keys each row of an attention call sees: position p of row i, 0 <= p < keys[i], lies in slot p when
 * p < identity[i], else in slot path[i*path_stride + p - identity[i]]. keys[i]-identity[i] <= UST_TREE_DEPTH. */
typedef struct ust_attention_rows {
  int rows;
  const int32_t *keys;     /* [rows] */
  const int32_t *identity; /* [rows] */
  const int32_t *path;     /* [rows, path_stride] */
  int path_stride;
} ust_attention_rows;

/* Rows as the left operand of a training product, in the level's own order: rows * inputs activation elements,
 * 64-byte aligned; both, and every range of them a call names, are multiples of 32. Rows from a multiple of 32 on are
 * an operand by themselves (ust_left_from). */
typedef struct ust_left {
  void *data;
  int rows, inputs;
} ust_left;

typedef struct ust_kernels {
  ust_isa isa;
  const char *name;
  size_t activation_size; /* bytes of one activation element */

  /* ---- matrices ---- */

  /* Bytes of a matrix's data in this level's layout. */
  size_t (*matrix_bytes)(ust_format format, int rows, int cols);
  /* Packs rows [row, row+count) of a BF16 or F32 matrix from f32: element (r, c) of the range is
   * source[r*row_stride + c*col_stride]. `row` is a multiple of UST_PANEL; so is `count` unless the range
   * ends the matrix. Padding is written too. Different ranges may be packed by different threads. */
  void (*pack)(ust_matrix *matrix, int row, int count, const float *source, size_t row_stride, size_t col_stride);
  /* The same for a quantised matrix, from rows of whole blocks as GGUF stores them (the last may be longer than the
   * row). */
  void (*pack_blocks)(ust_matrix *matrix, int row, int count, const void *source);
  /* One row of the matrix: cols floats. */
  void (*unpack_row)(const ust_matrix *matrix, int row, float *out);

  /* Rows [row, row_end) of x: activation [rows, x_stride] as the integers that products of all `rows` rows with a
   * quantised matrix take: integers_bytes(), 64-byte aligned. Different rows may be done by different threads. A value
   * changes by at most 1/253 of the largest magnitude of its 32; where one is NaN or infinite, products are NaN. */
  size_t (*integers_bytes)(int rows, int cols);
  void (*integers)(const void *x, size_t x_stride, int rows, int cols, int row, int row_end, void *out);

  /* For output columns of panels [panel, panel_end): y[rows, …] from x: activation [rows, x_stride], or for quantised
   * matrices the integers of these rows (x_stride is not used).
   * bias: f32, padded to whole panels, or NULL. y_stride counts elements of y and covers whole panels. */
  void (*matmul)(const ust_matrix *w, int panel, int panel_end, const void *x, size_t x_stride, int rows,
                 const float *bias, ust_epilogue epilogue, void *y, size_t y_stride);

  /* ---- rows ---- */

  /* y: activation [stride of n] = (x - mean) / sqrt(variance + epsilon) * gain + bias */
  void (*layer_norm)(const float *x, const float *gain, const float *bias, int n, float epsilon, void *y);
  /* y: activation [stride of n] = x */
  void (*convert)(const float *x, int n, void *y);

  /* ---- attention: one head ---- */

  /* Bytes of the keys and values of one head, `slots` (a multiple of UST_KV_BLOCK) of them. Zeroed memory is
   * a valid empty cache; slots never written hold finite values. */
  size_t (*kv_bytes)(int slots, int head_dim);
  void (*kv_store)(void *kv, int slots, int head_dim, int slot, const float *k, const float *v);
  void (*kv_move)(void *kv, int slots, int head_dim, int from, int to);
  /* out[i] = softmax(q[i] . K / sqrt(head_dim)) V over the row's keys, summed in position order.
   * q: f32 [rows, q_stride]; out: activation [rows, out_stride]; scratch: attention_scratch() bytes, 64-byte
   * aligned, one per thread. */
  size_t (*attention_scratch)(int rows, int slots, int head_dim);
  void (*attention)(const void *kv, int slots, int head_dim, const ust_attention_rows *rows, const float *q,
                    size_t q_stride, void *out, size_t out_stride, void *scratch);

  /* Releases per-thread state of the level (AMX tiles); called by every thread at the end of a pass. */
  void (*release)(void);

  /* ---- training (f32; see kernel/training.h for each one's formula) ---- */

  /* Inputs `input`… of all rows of a left operand from x: f32 [rows, x_stride], `inputs` values each. */
  void (*left_pack)(const ust_left *left, int input, const float *x, size_t x_stride, int inputs);
  /* The same from their transpose: f32 [inputs, x_stride]. */
  void (*left_pack_transposed)(const ust_left *left, int input, const float *x, size_t x_stride, int inputs);
  /* The same of all rows of a BF16 or F32 matrix, a multiple of UST_PANEL, from their transpose. */
  void (*pack_inputs)(const ust_matrix *matrix, int input, const float *x, size_t x_stride, int inputs);
  /* y: f32 [x->rows, y_stride] = x' W^T + bias (f32 or NULL), x' the inputs `input`… of x, as many as W has, a BF16 or
   * F32 matrix of whole panels; or with `add` y += x' W^T, and bias is NULL. */
  void (*left_matmul)(const ust_matrix *w, const ust_left *x, int input, const float *bias, bool add, float *y,
                      size_t y_stride);

  /* x[n] -> y[n] = gelu_tanh(x) */
  void (*gelu)(const float *x, float *y, size_t n);
  /* dx[n] = dy[n] * gelu_tanh'(x[n]), dx may be dy; and y[n] = gelu_tanh(x) once more */
  void (*gelu_backward)(const float *x, const float *dy, float *dx, float *y, size_t n);
  /* f32 layer norm of one row that also keeps mean and 1/deviation */
  void (*layer_norm_train)(const float *x, const float *gain, const float *bias, int n, float epsilon, float *y,
                           float *mean, float *rstd);
  /* dx[n] += …; dgain[n] += …; dbias[n] += … */
  void (*layer_norm_backward)(const float *x, const float *gain, float mean, float rstd, const float *dy, int n,
                              float *dx, float *dgain, float *dbias);
  /* x[n] -> softmax(scale x) in place, scale > 0, first `n` of a row of `stride`, the rest zeroed */
  void (*softmax)(float *x, int n, int stride, float scale);
  /* its gradient: d[n] = scale p (d - sum(p d)), the rest of d's row zeroed */
  void (*softmax_backward)(const float *p, float *d, int n, int stride, float scale);
  /* takes n more logits into a running maximum (from -FLT_MAX) and sum of exp(x - maximum) (from 0) */
  void (*log_sum_exp)(const float *x, int n, float *maximum, float *sum);
  /* logits x[n] -> scale exp(x - log_sum) */
  void (*probabilities)(float *x, int n, float log_sum, float scale);
  /* student logits x[n], teacher logits t[n] -> x = scale (q - p); returns sum of p log(p / q) */
  float (*distill)(float *x, const float *t, int n, float x_log_sum, float t_log_sum, float scale);
  /* y[n] += x[n] */
  void (*add)(const float *x, float *y, size_t n);
  double (*sum_squares)(const float *x, size_t n);
  /* one AdamW step on n parameters; decay 0 for gains and biases */
  void (*adamw)(float *weight, const float *gradient, float *m, float *v, size_t n, float gradient_scale, float rate,
                float beta1, float beta2, float epsilon, float decay, float correction1, float correction2);
} ust_kernels;

/* `rows` rows of a left operand from `first` on. */
static inline ust_left ust_left_from(const ust_kernels *kernels, const ust_left *left, int first, int rows) {
  size_t skipped = (size_t)first * (size_t)left->inputs * kernels->activation_size;
  return (ust_left){.data = (char *)left->data + skipped, .rows = rows, .inputs = left->inputs};
}

/* The table of one level; NULL with *reason (a static string, NULL allowed) when this machine or build lacks it. */
const ust_kernels *ust_kernels_get(ust_isa isa, const char **reason);
/* The best level of this machine. */
ust_isa ust_kernels_best(void);
/* The level of that name, or the best (NULL). */
understudy_status ust_kernels_choose(const char *name, const ust_kernels **kernels, understudy_error *err);
/* "scalar", … → level; false for an unknown name. */
bool ust_isa_parse(const char *name, ust_isa *isa);
const char *ust_isa_name(ust_isa isa);

/* ---- number formats ---- */

static inline float ust_bf16_to_f32(uint16_t h) {
  union {
    uint32_t u;
    float f;
  } bits = {.u = (uint32_t)h << 16};
  return bits.f;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t ust_f32_to_bf16(float f) {
  union {
    float f;
    uint32_t u;
  } bits = {.f = f};
  if ((bits.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits.u >> 16 | 0x40u);
  return (uint16_t)((bits.u + 0x7fffu + (bits.u >> 16 & 1u)) >> 16);
}

float ust_f16_to_f32(uint16_t h);
uint16_t ust_f32_to_f16(float f); /* nearest even */

/* Quantises 32 values to one Q8_0 block: scale = max|x| / 127, stored as f16. */
void ust_q8_quantize(const float *x, ust_q8_block *block);
/* To one Q4_0 block by llama.cpp's rule: the value of largest magnitude becomes exactly -8 steps. */
void ust_q4_quantize(const float *x, ust_q4_block *block);

/* ---- quantised blocks ---- */

enum {
  UST_BLOCK = 32,     /* inputs that share a scale */
  UST_INTEGER_FEW = 8 /* rows that integers() keeps in one group */
};

/* One quantised run of 32 inputs of a row: value = scale * q + minimum. */
typedef struct ust_run {
  uint16_t scale, minimum;          /* f16 as stored; minimum: Q4K alone */
  uint8_t scale_part, minimum_part; /* Q4K: the 6-bit factors of the two */
  uint8_t q[UST_BLOCK];             /* Q8: 128 more than stored, Q4: as stored; their minimum is -128 and -8 scales */
} ust_run;

static inline bool ust_is_quantised(ust_format format) {
  return format != UST_FORMAT_BF16 && format != UST_FORMAT_F32;
}
/* Inputs and bytes of a stored block. */
static inline int ust_block_inputs(ust_format format) {
  return format == UST_FORMAT_Q4K ? 256 : UST_BLOCK;
}
static inline size_t ust_block_bytes(ust_format format) {
  return format == UST_FORMAT_Q4K  ? sizeof(ust_q4k_block)
         : format == UST_FORMAT_Q4 ? sizeof(ust_q4_block)
                                   : sizeof(ust_q8_block);
}
/* Run `index` of a stored row. */
void ust_run_load(ust_format format, const void *row, int index, ust_run *run);
/* Its values: exact in f32 but for the sum with Q4K's minimum, which is rounded once. */
void ust_run_values(ust_format format, const ust_run *run, float values[UST_BLOCK]);

/* ---- for the levels' own files ---- */

/* NULL if the processor has the level, else a static string that says what it lacks. */
const char *ust_isa_missing(ust_isa isa);

void ust_scalar_fill(ust_kernels *table);
void ust_avx2_fill(ust_kernels *table);
void ust_avx512_fill(ust_kernels *table);
void ust_amx_fill(ust_kernels *table);

#endif
