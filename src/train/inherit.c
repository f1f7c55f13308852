/* Inheriting: a draft starts as its teacher made smaller, and learns from there. Of a target 640 wide, a draft 256 wide
 * was at KL 0.64 before its first step; from random values it was at 1.0 after 160,000 tokens.
 *
 * The hidden states of the teacher's layer norms lie mostly in a subspace. Its best basis for the draft's width, from
 * text of the corpus, turns every matrix that reads or writes hidden states (slicing by principal components: Ashkboos
 * et al. 2024, SliceGPT); of heads and feed-forward neurons those that write most stay (Muralidharan et al. 2024,
 * Minitron). A draft with fewer layers takes evenly spread ones, as DistilGPT2 does; one with more gets layers at the
 * end that add nothing before they have learned.
 *
 * A layer norm subtracts the mean, which the draft's coordinates know nothing of: the basis is mirrored so that the
 * direction it removes is the least one of those kept. The norms' own gains and biases move into what reads them. */
#include <math.h>
#include <stdlib.h>

#include "train/internal.h"

enum { LOOKED_AT = 4096 /* tokens */, ROUNDS = 24 /* of subspace iteration */, STREAM_BASIS = 5 };

typedef struct inheritance {
  ust_gpt2_train *from, *to;
  int wide, width;  /* teacher's and draft's */
  double *moments;  /* [wide][wide]: sum of x x^T over normalised hidden states x */
  float *basis;     /* [wide][width]: orthonormal columns */
  double *heads;    /* [layers][teacher's heads]: what each adds to the hidden state, sum of squares */
  double *neurons;  /* [layers][teacher's feed_forward]: likewise */
  int *kept;        /* [teacher's feed_forward + 2 wide]: places */
  float kept_share; /* of the mean square within the basis */
} inheritance;

/* ---- looking at the teacher ---- */

/* Adds x x^T of the rows (x - mean) rstd, above the diagonal. */
static void add_moments(inheritance *of, const float *x, const float *mean, const float *rstd) {
  const ust_gpt2_train *m = of->from;
  size_t w = (size_t)of->wide;
#pragma omp parallel for schedule(dynamic) num_threads(m->threads)
  for (size_t i = 0; i < w; i++) {
    double *sums = of->moments + i * w;
    for (int t = 0; t < m->tokens; t++) {
      const float *row = x + (size_t)t * w;
      double own = (double)((row[i] - mean[t]) * rstd[t]) * (double)rstd[t];
      for (size_t j = i; j < w; j++) sums[j] += own * (double)(row[j] - mean[t]);
    }
  }
}

static double sum_squares(const float *x, size_t count, size_t stride) {
  double sum = 0;
  for (size_t i = 0; i < count; i++) sum += (double)x[i * stride] * (double)x[i * stride];
  return sum;
}

/* writes[j / group] += sum of squares of input j times the squared length of what it writes; `matrix` [wide, inputs] */
static void add_written(const inheritance *of, const float *input, const float *matrix, int inputs, int group,
                        double *writes) {
  const ust_gpt2_train *m = of->from;
#pragma omp parallel for num_threads(m->threads)
  for (int g = 0; g < inputs / group; g++)
    for (int j = g * group; j < (g + 1) * group; j++)
      writes[g] += sum_squares(input + j, (size_t)m->tokens, (size_t)inputs) *
                   sum_squares(matrix + j, (size_t)of->wide, (size_t)inputs);
}

static void look_at_sample(inheritance *of) {
  ust_gpt2_train *m = of->from;
  const ust_config *c = &m->config;
  const ust_kept *kept = &m->kept[0];
  assert(!m->trains);
  for (int l = 0; l <= c->layers; l++) {
    ust_gpt2_train_norm(m, ust_gpt2_layer(l, 0)); /* a layer's first, or the last */
    add_moments(of, m->last, m->last_mean, m->last_rstd);
    if (l == c->layers) return;
    ust_gpt2_train_layer(m, l);
    add_moments(of, kept->middle, kept->mean2, kept->rstd2);
    add_written(of, kept->attention, ust_gpt2_value(m, ust_gpt2_layer(l, UST_OUT)), c->width, c->width / c->heads,
                of->heads + (size_t)l * (size_t)c->heads);
    m->kernels->gelu(kept->up, kept->up, (size_t)m->tokens * (size_t)c->feed_forward); /* nobody needs `up` any more */
    add_written(of, kept->up, ust_gpt2_value(m, ust_gpt2_layer(l, UST_DOWN)), c->feed_forward, 1,
                of->neurons + (size_t)l * (size_t)c->feed_forward);
  }
}

static understudy_status look_at_teacher(inheritance *of, const ust_train_run *run, int32_t *ids,
                                         understudy_error *err) {
  const ust_train_options *o = run->options;
  int sequences = of->from->max_sequences;
  size_t w = (size_t)of->wide, tokens = (size_t)sequences * UST_TRAIN_WINDOW;
  int32_t *labels = ids + tokens, *positions = labels + tokens;
  uint64_t window = 0;
  for (size_t seen = 0; seen < LOOKED_AT; seen += tokens) {
    if (o->stop && o->stop(o->user)) return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped before the first step");
    for (int i = 0; i < sequences; i++, window++) {
      size_t at = (size_t)i * UST_TRAIN_WINDOW;
      ust_corpus_window(&run->corpus, o->seed, window, run->config.context, ids + at, labels + at, positions + at);
    }
    ust_gpt2_train_start(of->from, ids, positions, sequences);
    look_at_sample(of);
  }
  double trace = 0;
  for (size_t i = 0; i < w; i++) {
    trace += of->moments[i * w + i];
    for (size_t j = 0; j < i; j++) of->moments[i * w + j] = of->moments[j * w + i];
  }
  if (!(trace > 0) || isinf(trace))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: hidden states are all zero or not finite",
                     ust_weights_path(o->teacher));
  /* directions never taken count a little: any of them will do, but orthogonal ones */
  for (size_t i = 0; i < w; i++) of->moments[i * w + i] += 1e-8 * trace / (double)w;
  return UNDERSTUDY_OK;
}

/* ---- the basis ---- */

static double dot(const double *a, const double *b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

static void add_scaled(const double *x, double factor, double *y, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += factor * x[i];
}

/* Gram & Schmidt over the rows q[count][n], twice for what rounding leaves. */
static void orthonormalise(double *q, size_t count, size_t n) {
  for (size_t i = 0; i < count; i++) {
    double *row = q + i * n;
    for (int twice = 0; twice < 2; twice++)
      for (size_t j = 0; j < i; j++) add_scaled(q + j * n, -dot(row, q + j * n, n), row, n);
    double length = sqrt(dot(row, row, n));
    for (size_t k = 0; k < n; k++) row[k] /= length;
  }
}

/* The leading eigenvectors of `moments`, largest first, as rows q[width][wide], by subspace iteration. */
static void find_subspace(const inheritance *of, uint64_t seed, double *q, double *product) {
  size_t w = (size_t)of->wide, d = (size_t)of->width;
  for (size_t i = 0; i < d * w; i++) q[i] = (double)(int64_t)ust_train_hash(seed, STREAM_BASIS, i) * 0x1p-63;
  orthonormalise(q, d, w);
  for (int round = 0; round < ROUNDS; round++) {
#pragma omp parallel for num_threads(of->to->threads)
    for (size_t i = 0; i < d; i++) {
      memset(product + i * w, 0, w * sizeof *product);
      for (size_t k = 0; k < w; k++) add_scaled(of->moments + k * w, q[i * w + k], product + i * w, w);
    }
    memcpy(q, product, d * w * sizeof *q);
    orthonormalise(q, d, w);
  }
}

/* of->basis = q mirrored so that the draft's all-ones direction is the last eigenvector; of->kept_share. */
static void take_basis(inheritance *of, const double *q, double *image) {
  size_t w = (size_t)of->wide, d = (size_t)of->width;
  double all = 0, within = 0, ones = 1 / sqrt((double)d), mirror = 2 - 2 * ones; /* |e_d - ones|^2 */
  for (size_t i = 0; i < w; i++) all += of->moments[i * w + i];
  for (size_t i = 0; i < d; i++) {
    memset(image, 0, w * sizeof *image);
    for (size_t k = 0; k < w; k++) add_scaled(of->moments + k * w, q[i * w + k], image, w);
    within += dot(image, q + i * w, w);
  }
  of->kept_share = (float)(within / all);
  for (size_t k = 0; k < w; k++) {
    double along = q[(d - 1) * w + k];
    for (size_t i = 0; i < d; i++) along -= ones * q[i * w + k];
    for (size_t i = 0; i < d; i++) {
      double normal = (i == d - 1) - ones;
      of->basis[k * d + i] = (float)(q[i * w + k] - 2 * along * normal / mirror);
    }
  }
}

/* ---- the draft ---- */

static float *of_layer(const ust_gpt2_train *m, int layer, int tensor) {
  return ust_gpt2_value(m, ust_gpt2_layer(layer, tensor));
}

/* to[width] = (x gain) basis; gain NULL: 1 */
static void turn_row(const inheritance *of, const float *x, const float *gain, float *to) {
  size_t w = (size_t)of->wide, d = (size_t)of->width;
  memset(to, 0, d * sizeof *to);
  for (size_t k = 0; k < w; k++) {
    float value = gain ? x[k] * gain[k] : x[k];
    for (size_t i = 0; i < d; i++) to[i] += value * of->basis[k * d + i];
  }
}

/* Rows `kept` of a matrix that reads hidden states through a norm, and their biases. */
static void take_reader(const inheritance *of, const float *matrix, const float *bias, const float *gain,
                        const float *shift, const int *kept, int count, float *to, float *to_bias) {
#pragma omp parallel for num_threads(of->to->threads)
  for (int i = 0; i < count; i++) {
    const float *row = matrix + (size_t)kept[i] * (size_t)of->wide;
    double sum = bias[kept[i]];
    for (int k = 0; k < of->wide; k++) sum += (double)row[k] * (double)shift[k];
    turn_row(of, row, gain, to + (size_t)i * (size_t)of->width);
    to_bias[i] = (float)sum;
  }
}

/* Columns `kept` of a matrix [wide, inputs] that writes to the hidden state. */
static void take_writer(const inheritance *of, const float *matrix, int inputs, const float *bias, const int *kept,
                        int count, float *to, float *to_bias) {
  size_t d = (size_t)of->width, n = (size_t)count;
#pragma omp parallel for num_threads(of->to->threads)
  for (size_t i = 0; i < d; i++) {
    memset(to + i * n, 0, n * sizeof *to);
    for (size_t k = 0; k < (size_t)of->wide; k++)
      for (size_t j = 0; j < n; j++)
        to[i * n + j] += of->basis[k * d + i] * matrix[k * (size_t)inputs + (size_t)kept[j]];
  }
  turn_row(of, bias, NULL, to_bias);
}

/* The places of the `count` largest of n values, in their order. */
static void keep_largest(const double *values, int n, int count, int *kept) {
  for (int i = 0; i < n; i++) {
    int larger = 0;
    for (int j = 0; j < n; j++) larger += values[j] > values[i] || (values[j] == values[i] && j < i);
    if (larger < count) *kept++ = i;
  }
}

static void take_norm(const inheritance *of, float *gain, float *bias) {
  float scale = sqrtf((float)of->wide * of->kept_share / (float)of->width);
  for (int i = 0; i < of->width; i++) {
    gain[i] = scale;
    bias[i] = 0;
  }
}

static void take_attention(inheritance *of, int source, int layer) {
  const ust_gpt2_train *from = of->from, *to = of->to;
  int heads = to->config.heads, dim = of->width / heads, *rows = of->kept + of->wide;
  take_norm(of, of_layer(to, layer, UST_NORM1_GAIN), of_layer(to, layer, UST_NORM1_BIAS));
  keep_largest(of->heads + (size_t)source * (size_t)from->config.heads, from->config.heads, heads, of->kept);
  for (int i = 0; i < of->width; i++) rows[i] = of->kept[i / dim] * dim + i % dim;
  take_writer(of, of_layer(from, source, UST_OUT), of->wide, of_layer(from, source, UST_OUT_BIAS), rows, of->width,
              of_layer(to, layer, UST_OUT), of_layer(to, layer, UST_OUT_BIAS));
  for (int part = 0; part < 3; part++) { /* queries, keys, values */
    take_reader(of, of_layer(from, source, UST_QKV), of_layer(from, source, UST_QKV_BIAS),
                of_layer(from, source, UST_NORM1_GAIN), of_layer(from, source, UST_NORM1_BIAS), rows, of->width,
                of_layer(to, layer, UST_QKV) + (size_t)part * (size_t)of->width * (size_t)of->width,
                of_layer(to, layer, UST_QKV_BIAS) + part * of->width);
    for (int i = 0; i < of->width; i++) rows[i] += of->wide;
  }
}

static void take_feed_forward(inheritance *of, int source, int layer) {
  const ust_gpt2_train *from = of->from, *to = of->to;
  int count = to->config.feed_forward, all = from->config.feed_forward;
  take_norm(of, of_layer(to, layer, UST_NORM2_GAIN), of_layer(to, layer, UST_NORM2_BIAS));
  keep_largest(of->neurons + (size_t)source * (size_t)all, all, count, of->kept);
  take_reader(of, of_layer(from, source, UST_UP), of_layer(from, source, UST_UP_BIAS),
              of_layer(from, source, UST_NORM2_GAIN), of_layer(from, source, UST_NORM2_BIAS), of->kept, count,
              of_layer(to, layer, UST_UP), of_layer(to, layer, UST_UP_BIAS));
  take_writer(of, of_layer(from, source, UST_DOWN), all, of_layer(from, source, UST_DOWN_BIAS), of->kept, count,
              of_layer(to, layer, UST_DOWN), of_layer(to, layer, UST_DOWN_BIAS));
}

/* The token matrix is read at both ends, so the last norm's gain cannot move into it: the draft's last norm keeps the
 * gain's mean. */
static void take_ends(const inheritance *of) {
  const ust_gpt2_train *from = of->from, *to = of->to;
  size_t w = (size_t)of->wide, d = (size_t)of->width;
  for (int table = UST_TOKENS; table <= UST_POSITIONS; table++) {
    const float *rows = ust_gpt2_value(from, table);
    float *turned = ust_gpt2_value(to, table);
#pragma omp parallel for num_threads(to->threads)
    for (int r = 0; r < to->parameters[table].rows; r++)
      turn_row(of, rows + (size_t)r * w, NULL, turned + (size_t)r * d);
  }
  float *gain = of_layer(to, to->config.layers, 0), *bias = of_layer(to, to->config.layers, 1), mean = 0;
  take_norm(of, gain, bias);
  for (size_t k = 0; k < w; k++) mean += of_layer(from, from->config.layers, 0)[k] / (float)w;
  for (size_t i = 0; i < d; i++) gain[i] *= mean;
  turn_row(of, of_layer(from, from->config.layers, 1), NULL, bias);
}

/* Layer l of fewer layers than the teacher's: evenly spread from its first to its last. */
static int spread(int l, int layers, int teacher) {
  return layers == 1 ? 0 : (l * (teacher - 1) + (layers - 1) / 2) / (layers - 1);
}

static void write_draft(inheritance *of) {
  int layers = of->to->config.layers, teacher = of->from->config.layers;
  take_ends(of);
  for (int l = 0; l < layers; l++) {
    if (l < teacher) {
      int source = layers < teacher ? spread(l, layers, teacher) : l;
      take_attention(of, source, l);
      take_feed_forward(of, source, l);
      continue;
    }
    memset(of_layer(of->to, l, UST_OUT), 0, (size_t)of->width * (size_t)of->width * sizeof(float));
    memset(of_layer(of->to, l, UST_DOWN), 0, (size_t)of->width * (size_t)of->to->config.feed_forward * sizeof(float));
  }
}

static bool can_inherit(const ust_config *from, const ust_config *to) {
  return to->width <= from->width && to->heads <= from->heads && to->feed_forward <= from->feed_forward &&
         to->width * from->heads == from->width * to->heads;
}

bool ust_train_starts_as_teacher(const ust_train_options *o) {
  const ust_config draft = {.width = o->width, .heads = o->heads, .feed_forward = 4 * o->width};
  return can_inherit(ust_weights_config(o->teacher), &draft);
}

understudy_status ust_train_inherit(ust_train_run *run, understudy_error *err) {
  const ust_config *from = &run->teacher->config;
  if (!can_inherit(from, &run->config)) return UNDERSTUDY_OK;
  size_t w = (size_t)from->width, d = (size_t)run->config.width, layers = (size_t)from->layers;
  size_t f = (size_t)from->feed_forward, heads = (size_t)from->heads;
  size_t ids = 3 * (size_t)run->teacher->max_sequences * UST_TRAIN_WINDOW;
  size_t doubles = w * w + 2 * d * w + layers * (heads + f), ints = ids + f + 2 * w;
  size_t bytes = doubles * sizeof(double) + w * d * sizeof(float) + ints * sizeof(int);
  double *memory = calloc(1, bytes);
  if (!memory) return ust_error_memory(err, bytes, "a draft's start");
  inheritance of = {.from = run->teacher, .to = run->model, .wide = from->width, .width = run->config.width};
  of.moments = memory;
  of.heads = of.moments + w * w + 2 * d * w;
  of.neurons = of.heads + layers * heads;
  of.basis = (float *)(of.neurons + layers * f);
  of.kept = (int *)(of.basis + w * d);
  double *q = of.moments + w * w, *product = q + d * w;
  understudy_status status = look_at_teacher(&of, run, of.kept + f + 2 * w, err);
  if (status == UNDERSTUDY_OK) {
    find_subspace(&of, run->options->seed, q, product);
    take_basis(&of, q, product);
    write_draft(&of);
  }
  free(memory);
  return status;
}
