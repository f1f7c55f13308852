/* The scalar level: portable C, the reference every other level is tested against. Activations, keys and values
 * are f32. A matrix is kept as f32 panels [panel][col][32], its values already rounded to what its format holds;
 * quantised ones as in quantised.h. */
#include "kernel/kernel.h"

typedef float activation;
static inline activation to_activation(float x) {
  return x;
}
#include "kernel/rows.h"
#include "kernel/training.h"
#include "kernel/quantised.h"

static float *panel_of(const ust_matrix *m, int panel) {
  return (float *)m->data + (size_t)panel * m->cols * UST_PANEL;
}

static size_t matrix_bytes(ust_format format, int rows, int cols) {
  if (ust_is_quantised(format)) return quantised_bytes(format, rows, cols);
  return (size_t)UST_ROUND_UP(rows, UST_PANEL) * (size_t)cols * sizeof(float);
}

static void pack(ust_matrix *m, int row, int count, const float *source, size_t row_stride, size_t col_stride) {
  for (int r = row; r < row + count; r++) {
    float *to = panel_of(m, r / UST_PANEL) + r % UST_PANEL;
    for (int c = 0; c < m->cols; c++) {
      float value = source[(size_t)(r - row) * row_stride + (size_t)c * col_stride];
      to[(size_t)c * UST_PANEL] = m->format == UST_FORMAT_F32 ? value : ust_bf16_to_f32(ust_f32_to_bf16(value));
    }
  }
  for (int r = row + count; r < UST_ROUND_UP(row + count, UST_PANEL); r++)
    for (int c = 0; c < m->cols; c++) panel_of(m, r / UST_PANEL)[(size_t)c * UST_PANEL + r % UST_PANEL] = 0;
}

static void pack_inputs(const ust_matrix *m, int input, const float *x, size_t x_stride, int inputs) {
  for (int c = 0; c < inputs; c++)
    for (int r = 0; r < m->rows; r++) {
      float value = x[(size_t)c * x_stride + (size_t)r];
      panel_of(m, r / UST_PANEL)[(size_t)(input + c) * UST_PANEL + r % UST_PANEL] =
          m->format == UST_FORMAT_F32 ? value : ust_bf16_to_f32(ust_f32_to_bf16(value));
    }
}

static void unpack_row(const ust_matrix *m, int row, float *out) {
  if (ust_is_quantised(m->format)) {
    quantised_unpack_row(m, row, out);
    return;
  }
  const float *from = panel_of(m, row / UST_PANEL) + row % UST_PANEL;
  for (int c = 0; c < m->cols; c++) out[c] = from[(size_t)c * UST_PANEL];
}

/* The integers of a run less what a sum of theirs has too much. */
static void run_integers(ust_format format, const ust_run *run, int32_t *q) {
  for (int i = 0; i < UST_BLOCK; i++)
    q[i] = run->q[i] - (format == UST_FORMAT_Q8 ? 128 : format == UST_FORMAT_Q4 ? 8 : 0);
}

static void column_sums(const ust_matrix *w, int column, const integers *x, int row, int rows, float *sums) {
  size_t head = quantised_head(w->format, w->cols);
  const char *strip = (const char *)w->data + (size_t)(column / Q_COLUMNS) * quantised_strip(w->format, w->cols);
  for (int r = 0; r < rows; r++) sums[(size_t)r * UST_PANEL] = 0;
  for (int b = 0; b < x->blocks; b++) {
    ust_run run;
    int32_t q[UST_BLOCK];
    quantised_get(w->format, strip, head, b, column % Q_COLUMNS, &run);
    run_integers(w->format, &run, q);
    float scale = ust_f16_to_f32(run.scale), minimum = ust_f16_to_f32(run.minimum) * (float)run.minimum_part;
    if (w->format == UST_FORMAT_Q4K) scale *= (float)run.scale_part;
    for (int r = 0; r < rows; r++) {
      size_t at = integers_line(x, row + r) + (size_t)b * (size_t)x->height;
      const int8_t *line = x->lines + at * UST_BLOCK;
      float *sum = &sums[(size_t)r * UST_PANEL];
      int32_t t = 0;
      for (int i = 0; i < UST_BLOCK; i++) t += line[i] * q[i];
      *sum = fmaf(scale * x->scales[at], (float)t, *sum);
      if (w->format == UST_FORMAT_Q4K) *sum = fmaf(minimum * x->scales[at], (float)x->sums[at], *sum);
    }
  }
}

static void matmul_quantised(const ust_matrix *w, int panel, int panel_end, void *integer_rows, int rows,
                             const float *bias, ust_epilogue epilogue, void *y, size_t y_stride) {
  enum { GROUP = 64 };
  float sums[GROUP][UST_PANEL];
  for (int p = panel; p < panel_end; p++)
    for (int r0 = 0; r0 < rows; r0 += GROUP) {
      integers x = integers_at(integer_rows, rows, w->cols);
      int count = UST_MIN(GROUP, rows - r0);
      for (int i = 0; i < UST_PANEL; i++) column_sums(w, p * UST_PANEL + i, &x, r0, count, sums[0] + i);
      for (int r = 0; r < count; r++)
        row_finish(sums[r], bias ? bias + (size_t)p * UST_PANEL : NULL, epilogue, y,
                   (size_t)(r0 + r) * y_stride + (size_t)p * UST_PANEL);
    }
}

static void matmul(const ust_matrix *w, int panel, int panel_end, const void *x, size_t x_stride, int rows,
                   const float *bias, ust_epilogue epilogue, void *y, size_t y_stride) {
  if (ust_is_quantised(w->format)) {
    matmul_quantised(w, panel, panel_end, (void *)(uintptr_t)x, rows, bias, epilogue, y, y_stride);
    return;
  }
  for (int p = panel; p < panel_end; p++) {
    const float *weights = panel_of(w, p);
    for (int r = 0; r < rows; r++) {
      const float *in = (const float *)x + (size_t)r * x_stride;
      float sum[UST_PANEL] = {0};
      for (int k = 0; k < w->cols; k++)
        for (int i = 0; i < UST_PANEL; i++) sum[i] += in[k] * weights[(size_t)k * UST_PANEL + i];
      row_finish(sum, bias ? bias + (size_t)p * UST_PANEL : NULL, epilogue, y,
                 (size_t)r * y_stride + (size_t)p * UST_PANEL);
    }
  }
}

/* Keys [slots, head_dim], then values [slots, head_dim]. */
static size_t kv_bytes(int slots, int head_dim) {
  return 2 * (size_t)slots * (size_t)head_dim * sizeof(float);
}

static void kv_store(void *kv, int slots, int head_dim, int slot, const float *k, const float *v) {
  float *keys = kv, *values = keys + (size_t)slots * head_dim;
  memcpy(keys + (size_t)slot * head_dim, k, (size_t)head_dim * sizeof(float));
  memcpy(values + (size_t)slot * head_dim, v, (size_t)head_dim * sizeof(float));
}

static void kv_move(void *kv, int slots, int head_dim, int from, int to) {
  float *keys = kv, *values = keys + (size_t)slots * head_dim;
  memmove(keys + (size_t)to * head_dim, keys + (size_t)from * head_dim, (size_t)head_dim * sizeof(float));
  memmove(values + (size_t)to * head_dim, values + (size_t)from * head_dim, (size_t)head_dim * sizeof(float));
}

static size_t attention_scratch(int rows, int slots, int head_dim) {
  (void)rows;
  return ((size_t)UST_ROUND_UP(slots, 32) + (size_t)head_dim) * sizeof(float);
}

static void attention(const void *kv, int slots, int head_dim, const ust_attention_rows *rows, const float *q,
                      size_t q_stride, void *out, size_t out_stride, void *scratch) {
  const float *keys = kv, *values = keys + (size_t)slots * head_dim;
  float *s = scratch, *sum = s + UST_ROUND_UP(slots, 32);
  float scale = 1.0f / sqrtf((float)head_dim);
  for (int r = 0; r < rows->rows; r++) {
    int n = rows->keys[r];
    for (int p = 0; p < n; p++) {
      const float *key = keys + (size_t)row_slot(rows, r, p) * head_dim;
      float dot = 0;
      for (int d = 0; d < head_dim; d++) dot += q[(size_t)r * q_stride + d] * key[d];
      s[p] = dot;
    }
    float inverse = 1.0f / row_softmax(s, n, scale);
    memset(sum, 0, (size_t)head_dim * sizeof(float));
    for (int p = 0; p < n; p++) {
      const float *value = values + (size_t)row_slot(rows, r, p) * head_dim;
      for (int d = 0; d < head_dim; d++) sum[d] += s[p] * value[d];
    }
    for (int d = 0; d < head_dim; d++)
      ((activation *)out)[(size_t)r * out_stride + d] = to_activation(sum[d] * inverse);
  }
}

static void release(void) {}

void ust_scalar_fill(ust_kernels *table) {
  rows_fill(table);
  training_fill(table);
  table->matrix_bytes = matrix_bytes;
  table->pack = pack;
  table->pack_inputs = pack_inputs;
  table->pack_blocks = quantised_pack;
  table->integers_bytes = integers_bytes;
  table->integers = integers_of_floats;
  table->unpack_row = unpack_row;
  table->matmul = matmul;
  table->kv_bytes = kv_bytes;
  table->kv_store = kv_store;
  table->kv_move = kv_move;
  table->attention_scratch = attention_scratch;
  table->attention = attention;
  table->release = release;
}
