/* Tensor data: rows of any stored type as f32, or as blocks.
 *
 * Rows stored in order are read straight from the file. A transposed tensor has each wanted row scattered over
 * the whole of it; reading it piece by piece would cost tens of millions of system calls for GPT-2-L, so it is
 * held in memory while threads take rows from it, at most UST_HELD of them. */
#include <math.h>
#include <stdlib.h>

#include "weights/internal.h"

enum { CHUNK = 120 * 256, TILE_ROWS = 32, TILE_COLS = 16 }; /* elements decoded at a time: whole blocks of any type */

/* Names one of the `count` values that is infinite or not a number. */
static understudy_status refuse(const ust_weights *weights, const ust_tensor *tensor, const float *values,
                                understudy_error *err) {
  while (fabsf(*values) < 0x1.ffp127f) values++;
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                   "%s: tensor %s: found a value of %g, expected finite numbers (up to 3.39e+38)", weights->path,
                   tensor->name, (double)*values);
}

static understudy_status read_in_order(const ust_weights *weights, const ust_tensor *tensor, uint64_t row,
                                       uint64_t count, float *out, understudy_error *err) {
  unsigned char data[CHUNK * 4] __attribute__((aligned(64)));
  uint64_t from = row * tensor->cols, left = count * tensor->cols;
  while (left > 0) {
    size_t take = (size_t)UST_MIN(left, (uint64_t)CHUNK);
    uint64_t offset = 0, bytes = 0;
    ust_weights_bytes(tensor->type, from, &offset);
    ust_weights_bytes(tensor->type, take, &bytes);
    UST_TRY(ust_file_read(&weights->files[tensor->file], tensor->offset + offset, data, (size_t)bytes, err));
    if (!ust_weights_decode(tensor->type, data, take, out)) return refuse(weights, tensor, out, err);
    out += take;
    from += take;
    left -= take;
  }
  return UNDERSTUDY_OK;
}

/* ---- transposed tensors ---- */

/* The place `tensor` is held in, or the longest unused free one for it, or NULL when all are taken. */
static ust_held *find_held(ust_weights *weights, const ust_tensor *tensor) {
  ust_held *best = NULL;
  for (int i = 0; i < UST_HELD; i++) {
    ust_held *held = &weights->held[i];
    if (held->tensor == tensor) return held;
    if (held->users == 0 && (!best || held->used < best->used)) best = held;
  }
  return best;
}

/* Reads the tensor into a place that is ours alone. */
static understudy_status fill_held(const ust_weights *weights, ust_held *held, understudy_error *err) {
  const ust_tensor *tensor = held->tensor;
  if (held->capacity < tensor->bytes) {
    ust_free(held->data);
    held->data = ust_alloc((size_t)tensor->bytes); /* huge pages: rows lie far apart in it */
    held->capacity = held->data ? tensor->bytes : 0;
  }
  if (!held->data) return ust_error_memory(err, (size_t)tensor->bytes, tensor->name);
  return ust_file_read(&weights->files[tensor->file], tensor->offset, held->data, (size_t)tensor->bytes, err);
}

/* Waits for a place, which never lasts: a thread keeps one only while it copies. */
static understudy_status take_held(ust_weights *weights, const ust_tensor *tensor, ust_held **out,
                                   understudy_error *err) {
  understudy_status status = UNDERSTUDY_OK;
  pthread_mutex_lock(&weights->lock);
  ust_held *held;
  while (!(held = find_held(weights, tensor)) || (held->tensor == tensor && !held->ready))
    pthread_cond_wait(&weights->released, &weights->lock);
  held->users++;
  held->used = ++weights->clock;
  if (held->tensor != tensor) {
    held->tensor = tensor;
    held->ready = false;
    pthread_mutex_unlock(&weights->lock);
    status = fill_held(weights, held, err);
    pthread_mutex_lock(&weights->lock);
    held->ready = status == UNDERSTUDY_OK;
    if (!held->ready) {
      held->tensor = NULL;
      held->users--;
    }
    pthread_cond_broadcast(&weights->released);
  }
  pthread_mutex_unlock(&weights->lock);
  *out = held;
  return status;
}

static void release_held(ust_weights *weights, ust_held *held) {
  pthread_mutex_lock(&weights->lock);
  if (--held->users == 0) pthread_cond_broadcast(&weights->released);
  pthread_mutex_unlock(&weights->lock);
}

/* Stored [cols, rows]. Tile by tile, so that both sides are touched a cache line at a time. False as of decoding. */
static bool copy_transposed(const ust_tensor *tensor, const unsigned char *data, uint64_t row, uint64_t count,
                            float *out) {
  size_t element = tensor->type == UST_TYPE_F32 ? 4 : 2;
  bool finite = true;
  for (uint64_t first = 0; first < count; first += TILE_ROWS) {
    size_t rows = (size_t)UST_MIN(count - first, (uint64_t)TILE_ROWS);
    for (uint64_t col = 0; col < tensor->cols; col += TILE_COLS) {
      float tile[TILE_COLS][TILE_ROWS];
      size_t cols = (size_t)UST_MIN(tensor->cols - col, (uint64_t)TILE_COLS);
      for (size_t c = 0; c < cols; c++)
        finite &=
            ust_weights_decode(tensor->type, data + ((col + c) * tensor->rows + row + first) * element, rows, tile[c]);
      for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) out[(first + r) * tensor->cols + col + c] = tile[c][r];
    }
  }
  return finite;
}

understudy_status ust_weights_read_rows(const ust_weights *weights, const ust_tensor *tensor, uint64_t row,
                                        uint64_t count, float *out, understudy_error *err) {
  if (row > tensor->rows || count > tensor->rows - row)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: tensor %s: asked for rows %llu ... %llu of %llu",
                     weights->path, tensor->name, (unsigned long long)row, (unsigned long long)(row + count),
                     (unsigned long long)tensor->rows);
  if (!tensor->transposed) return read_in_order(weights, tensor, row, count, out, err);
  ust_weights *shared = (ust_weights *)weights; /* what is held is not part of the weights' meaning */
  ust_held *held;
  UST_TRY(take_held(shared, tensor, &held, err));
  bool finite = copy_transposed(tensor, held->data, row, count, out);
  release_held(shared, held);
  return finite ? UNDERSTUDY_OK : refuse(weights, tensor, out, err);
}

/* Blocks of Q8_0 and Q4_0 begin with one f16 factor, of Q4_K with two. */
static understudy_status check_scales(const ust_weights *weights, const ust_tensor *tensor, const unsigned char *data,
                                      uint64_t bytes, understudy_error *err) {
  uint64_t block_bytes = 0;
  ust_weights_bytes(tensor->type, (uint64_t)ust_type_block(tensor->type), &block_bytes);
  for (uint64_t at = 0; at < bytes; at += block_bytes) {
    uint16_t scales[2];
    memcpy(scales, data + at, sizeof scales);
    float values[2] = {ust_f16_to_f32(scales[0]), tensor->type == UST_TYPE_Q4_K ? ust_f16_to_f32(scales[1]) : 0};
    if (!isfinite(values[0]) || !isfinite(values[1])) return refuse(weights, tensor, values, err);
  }
  return UNDERSTUDY_OK;
}

understudy_status ust_weights_read_blocks(const ust_weights *weights, const ust_tensor *tensor, uint64_t row,
                                          uint64_t count, void *out, understudy_error *err) {
  if (ust_type_block(tensor->type) == 1 || row > tensor->rows || count > tensor->rows - row)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: tensor %s: not these rows, or not quantised", weights->path,
                     tensor->name);
  uint64_t row_bytes = tensor->bytes / tensor->rows, bytes = count * row_bytes;
  UST_TRY(ust_file_read(&weights->files[tensor->file], tensor->offset + row * row_bytes, out, (size_t)bytes, err));
  return check_scales(weights, tensor, out, bytes, err);
}
