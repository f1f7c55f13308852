/* Growing: every coordinate of the small model's width w stands r = W/w times in the large one's width W, at
 * i, i + w, i + 2w, …; heads likewise. A matrix whose inputs are repeated is divided by r, so each sum keeps
 * its value; layer norms see the same mean and variance; the final norm is divided by r because the output
 * matrix is the repeated token embedding, which may not be. Layers added at the end repeat the small model's
 * in everything but their two output projections, which are zero: they cost in full and add nothing.
 *
 * With r a power of two the division is exact in every float format, and the function is the same up to the
 * order in which sums are taken. */
#include "train/grow.h"

enum { CHUNK_ROWS = 64, HEAD_WIDTH = 64 };

static const struct {
  const char *name;
  int layers, width, heads;
} family[] = {
    {"gpt2", 12, 768, 12}, {"gpt2-medium", 24, 1024, 16}, {"gpt2-large", 36, 1280, 20}, {"gpt2-xl", 48, 1600, 25}};

bool ust_train_family_shape(const char *name, int *layers, int *width, int *heads) {
  for (size_t i = 0; i < sizeof family / sizeof family[0]; i++) {
    if (strcmp(family[i].name, name) != 0) continue;
    *layers = family[i].layers;
    *width = family[i].width;
    *heads = family[i].heads;
    return true;
  }
  return false;
}

understudy_status ust_train_grow_config(const ust_config *small, const char *path, const char *like, ust_config *big,
                                        understudy_error *err) {
  int layers, width, heads;
  if (!ust_train_family_shape(like, &layers, &width, &heads))
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "found '%s', expected gpt2, gpt2-medium, gpt2-large or gpt2-xl",
                     like);
  if (strcmp(small->architecture, "gpt2") != 0)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: found architecture %s, expected gpt2", path,
                     small->architecture);
  if (small->width < 1 || width % small->width)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: found width %d, expected one that divides %d", path,
                     small->width, width);
  if (small->heads < 1 || small->width != small->heads * HEAD_WIDTH)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: found %d heads in width %d, expected heads of %d", path,
                     small->heads, small->width, HEAD_WIDTH);
  if (small->layers > layers)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: found %d layers, expected at most %d", path, small->layers,
                     layers);
  if (small->feed_forward != 4 * small->width)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: found feed-forward %d, expected %d", path,
                     small->feed_forward, 4 * small->width);
  *big = *small;
  big->layers = layers;
  big->width = width;
  big->heads = heads;
  big->feed_forward = 4 * width;
  return UNDERSTUDY_OK;
}

/* ---- the plan: what becomes of each tensor ---- */

typedef struct part {
  const char *name;
  int out_blocks;       /* q, k and v repeat each on its own; 0: rows that do not repeat (vocabulary, positions) */
  int out_units;        /* outputs of a block, in widths */
  int in_units;         /* inputs, in widths; 0: a vector */
  bool divided, silent; /* divided by r; zero in added layers */
} part;

static const part layer_parts[] = {
    {"attn_norm.weight", 1, 1, 0, false, false}, {"attn_norm.bias", 1, 1, 0, false, false},
    {"attn_qkv.weight", 3, 1, 1, true, false},   {"attn_qkv.bias", 3, 1, 0, false, false},
    {"attn_output.weight", 1, 1, 1, true, true}, {"attn_output.bias", 1, 1, 0, false, true},
    {"ffn_norm.weight", 1, 1, 0, false, false},  {"ffn_norm.bias", 1, 1, 0, false, false},
    {"ffn_up.weight", 1, 4, 1, true, false},     {"ffn_up.bias", 1, 4, 0, false, false},
    {"ffn_down.weight", 1, 1, 4, true, true},    {"ffn_down.bias", 1, 1, 0, false, true},
};
static const part outer_parts[] = {
    {"token_embd.weight", 0, 0, 1, false, false}, {"position_embd.weight", 0, 0, 1, false, false},
    {"output_norm.weight", 1, 1, 0, true, false}, {"output_norm.bias", 1, 1, 0, true, false},
    {"output.weight", 0, 0, 1, false, false},
};
enum {
  LAYER_PARTS = sizeof layer_parts / sizeof layer_parts[0],
  OUTER_PARTS = sizeof outer_parts / sizeof outer_parts[0]
};

typedef struct growth {
  const ust_weights *small;
  const ust_config *from, *to;
  int repeat;
  ust_gguf_writer *writer;
  float *read, *write; /* CHUNK_ROWS rows of the small and the large model's widest matrix */
} growth;

static const ust_tensor *find(const growth *g, const char *name, understudy_error *err) {
  const ust_tensor *tensor = NULL;
  return ust_weights_find(g->small, name, 0, 0, &tensor, err) == UNDERSTUDY_OK ? tensor : NULL;
}

/* One row: blocks of `length` values, each `repeat` times, scaled. */
static void repeat_row(const float *from, int blocks, size_t length, int repeat, float scale, float *to) {
  for (int block = 0; block < blocks; block++, from += length)
    for (int copy = 0; copy < repeat; copy++)
      for (size_t i = 0; i < length; i++) *to++ = scale == 0 ? 0 : from[i] * scale;
}

static understudy_status write_vector(const growth *g, const part *p, const ust_tensor *tensor, bool zero,
                                      understudy_error *err) {
  UST_TRY(ust_weights_read_rows(g->small, tensor, 0, 1, g->read, err));
  float scale = zero ? 0 : p->divided ? 1.0f / (float)g->repeat : 1.0f;
  repeat_row(g->read, p->out_blocks, (size_t)(p->out_units * g->from->width), g->repeat, scale, g->write);
  ust_gguf_rows(g->writer, g->write, 1);
  return UNDERSTUDY_OK;
}

/* Rows [first, first + length) of the small matrix, `copies` times over. */
static understudy_status write_rows(const growth *g, const part *p, const ust_tensor *tensor, uint64_t first,
                                    uint64_t length, int copies, bool zero, understudy_error *err) {
  size_t small_cols = (size_t)(p->in_units * g->from->width), big_cols = (size_t)(p->in_units * g->to->width);
  float scale = zero ? 0 : p->divided ? 1.0f / (float)g->repeat : 1.0f;
  for (int copy = 0; copy < copies; copy++)
    for (uint64_t row = 0; row < length; row += CHUNK_ROWS) {
      uint64_t count = UST_MIN((uint64_t)CHUNK_ROWS, length - row);
      UST_TRY(ust_weights_read_rows(g->small, tensor, first + row, count, g->read, err));
      for (uint64_t i = 0; i < count; i++)
        repeat_row(g->read + i * small_cols, 1, small_cols, g->repeat, scale, g->write + i * big_cols);
      ust_gguf_rows(g->writer, g->write, count);
    }
  return UNDERSTUDY_OK;
}

static understudy_status write_part(const growth *g, const part *p, const char *name, bool zero,
                                    understudy_error *err) {
  const ust_tensor *tensor = find(g, name, err);
  if (!tensor) return UNDERSTUDY_ERROR_FORMAT;
  if (p->in_units == 0) return write_vector(g, p, tensor, zero, err);
  if (p->out_blocks == 0) return write_rows(g, p, tensor, 0, tensor->rows, 1, zero, err);
  uint64_t length = (uint64_t)(p->out_units * g->from->width);
  for (int block = 0; block < p->out_blocks; block++)
    UST_TRY(write_rows(g, p, tensor, (uint64_t)block * length, length, g->repeat, zero, err));
  return UNDERSTUDY_OK;
}

/* Checks the small tensor's shape and declares the large one's. */
static understudy_status declare_part(const growth *g, const part *p, const char *small_name, const char *big_name,
                                      ust_type type, understudy_error *err) {
  uint64_t out = (uint64_t)p->out_blocks * (uint64_t)p->out_units, in = (uint64_t)p->in_units;
  uint64_t w = (uint64_t)g->from->width, big = (uint64_t)g->to->width;
  const ust_tensor *tensor;
  if (p->in_units == 0) {
    UST_TRY(ust_weights_find(g->small, small_name, 1, out * w, &tensor, err));
    ust_gguf_declare(g->writer, big_name, UST_TYPE_F32, 1, out * big);
    return UNDERSTUDY_OK;
  }
  UST_TRY(ust_weights_find(g->small, small_name, out * w, in * w, &tensor, err));
  uint64_t rows = p->out_blocks ? out * big : tensor->rows;
  ust_gguf_declare(g->writer, big_name, ust_gguf_type(big_name, rows, type), rows, in * big);
  return UNDERSTUDY_OK;
}

typedef enum step { DECLARE, WRITE } step;

static understudy_status do_part(const growth *g, step what, const part *p, int layer, ust_type type,
                                 understudy_error *err) {
  char big_name[64], small_name[64];
  bool added = layer >= g->from->layers;
  if (layer >= 0) {
    snprintf(big_name, sizeof big_name, "blk.%d.%s", layer, p->name);
    snprintf(small_name, sizeof small_name, "blk.%d.%s", layer % g->from->layers, p->name);
  } else {
    snprintf(big_name, sizeof big_name, "%s", p->name);
    snprintf(small_name, sizeof small_name, "%s", p->name);
  }
  if (what == DECLARE) return declare_part(g, p, small_name, big_name, type, err);
  return write_part(g, p, small_name, added && p->silent, err);
}

static understudy_status each_part(const growth *g, step what, ust_type type, understudy_progress_fn progress,
                                   void *user, understudy_error *err) {
  for (int i = 0; i < OUTER_PARTS; i++) {
    if (strcmp(outer_parts[i].name, "output.weight") == 0 && !ust_weights_has(g->small, "output.weight")) continue;
    UST_TRY(do_part(g, what, &outer_parts[i], -1, type, err));
  }
  for (int layer = 0; layer < g->to->layers; layer++) {
    if (progress && progress(user, "growing", (uint64_t)layer, (uint64_t)g->to->layers))
      return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped");
    for (int i = 0; i < LAYER_PARTS; i++) UST_TRY(do_part(g, what, &layer_parts[i], layer, type, err));
  }
  if (progress) progress(user, "growing", (uint64_t)g->to->layers, (uint64_t)g->to->layers);
  return UNDERSTUDY_OK;
}

understudy_status ust_train_grow(const ust_weights *small, const ust_config *big, ust_type type,
                                 ust_gguf_writer *writer, understudy_progress_fn progress, void *user,
                                 understudy_error *err) {
  const ust_config *from = ust_weights_config(small);
  growth g = {.small = small, .from = from, .to = big, .repeat = big->width / from->width, .writer = writer};
  UST_TRY(each_part(&g, DECLARE, type, NULL, NULL, err));
  size_t read_size = (size_t)CHUNK_ROWS * 4 * (size_t)from->width * sizeof *g.read;
  size_t write_size = (size_t)CHUNK_ROWS * 4 * (size_t)big->width * sizeof *g.write;
  g.read = ust_alloc(read_size);
  g.write = ust_alloc(write_size);
  understudy_status status = g.read && g.write ? each_part(&g, WRITE, type, progress, user, err)
                                               : ust_error_memory(err, read_size + write_size, "rows");
  ust_free(g.read);
  ust_free(g.write);
  return status;
}
