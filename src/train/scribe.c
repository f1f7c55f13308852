/* Text that a model writes by itself, many texts a pass.
 *
 * Text number i starts from the end-of-text token; a finished text gives its place in the batch to the next one. The
 * vocabulary comes in blocks. A block is chosen as engines choose tokens, by the largest log(sum of the block) + Gumbel
 * noise, the token inside it by inverting the running sum: exact sampling for one random number a block instead of one
 * a word. All of them are hashes of (seed, text, position, block), so that threads may share blocks out as they like.
 *
 * Texts are as long as the windows models are trained on here: that is how far back a small model has learned to look,
 * and the keys and values of longer texts would cost more to read than everything else. */
#include <float.h>
#include <math.h>

#include "model/model.h"
#include "train/internal.h"
#include "train/scribe.h"

enum { TEXTS = 128, LEAST_TEXTS = 16 }; /* at a time */
#define MOST_KV_BYTES (1ull << 31)      /* of all texts: a large model writes fewer at a time */

/* The best block of the vocabulary a thread has seen, and the token drawn from it. */
typedef struct drawn {
  double score;
  int32_t token;
} drawn;

typedef struct writing {
  const ust_scribe_options *options;
  ust_model *model;
  ust_batch *batch;
  int texts, longest; /* longest: tokens of a text at most, its first one included */
  drawn *best;        /* [threads, texts] */
  int32_t *text;      /* [texts, longest] */
  int32_t *last;      /* [texts]: each one's newest token */
  int *count;         /* [texts]: tokens of each */
  uint64_t *number;   /* [texts] */
  uint64_t next_number;
} writing;

static void begin_text(writing *w, int place) {
  ust_batch_restart(w->batch, place);
  w->number[place] = w->next_number++;
  w->last[place] = w->text[(size_t)place * (size_t)w->longest] = w->options->end_token;
  w->count[place] = 1;
}

/* ---- drawing ---- */

/* A number in (0, 1) for a text's next token; `stream` tells apart what it is used for. */
static double uniform_of(const writing *w, int place, int stream) {
  uint64_t token = w->number[place] << 16 | (uint64_t)w->count[place]; /* a text has fewer than 2^16 tokens */
  return ((double)(ust_train_hash(w->options->seed, token, (uint64_t)stream) >> 12) + 0.5) * 0x1p-52;
}

/* A token of a block, by inverting the running sum of its probabilities, which `logits` become. */
static int draw_inside(const ust_kernels *kernels, float *logits, int count, float log_sum, double uniform) {
  kernels->probabilities(logits, count, log_sum, 1);
  int token = 0;
  for (double passed = logits[0]; token < count - 1 && !(passed > uniform); passed += logits[token]) token++;
  return token;
}

/* An ust_logits_fn: the best block so far of each text, and a token of it. */
static void visit_block(void *user, int thread, int block, int first, int count, float *logits) {
  writing *w = user;
  const ust_kernels *kernels = w->options->kernels;
  count = UST_MIN(count, w->options->vocabulary - first);
  if (count <= 0) return;
  for (int i = 0; i < w->texts; i++, logits += UST_LOGIT_STRIDE) {
    float most = -FLT_MAX, sum = 0;
    kernels->log_sum_exp(logits, count, &most, &sum);
    float log_sum = most + logf(sum);
    double score = (double)log_sum - log(-log(uniform_of(w, i, 1 + block)));
    drawn *best = &w->best[thread * w->texts + i];
    if (!(score > best->score)) continue;
    best->score = score;
    best->token = first + draw_inside(kernels, logits, count, log_sum, uniform_of(w, i, 0));
  }
}

/* Every text's next token goes to w->last. */
static void draw_all(writing *w) {
  for (int i = 0; i < w->options->threads * w->texts; i++)
    w->best[i] = (drawn){.score = -INFINITY, .token = w->options->end_token};
  ust_batch_forward(w->batch, w->last, visit_block, w);
  for (int i = 0; i < w->texts; i++) {
    const drawn *best = &w->best[i];
    for (int t = 1; t < w->options->threads; t++)
      if (w->best[t * w->texts + i].score > best->score) best = &w->best[t * w->texts + i];
    w->last[i] = best->token;
  }
}

/* ---- writing ---- */

static understudy_status hand_over(writing *w, int place, understudy_error *err) {
  return w->options->take(w->options->user, w->text + (size_t)place * (size_t)w->longest, (size_t)w->count[place], err);
}

/* One token more for each of the first `wanted` texts. */
static understudy_status write_pass(writing *w, int wanted, understudy_error *err) {
  draw_all(w);
  for (int i = 0; i < wanted; i++) {
    w->text[(size_t)i * (size_t)w->longest + (size_t)w->count[i]++] = w->last[i];
    if (w->count[i] < w->longest && w->last[i] != w->options->end_token) continue;
    UST_TRY(hand_over(w, i, err));
    begin_text(w, i);
  }
  return UNDERSTUDY_OK;
}

static understudy_status write_all(writing *w, int64_t *written, understudy_error *err) {
  const ust_scribe_options *o = w->options;
  for (int i = 0; i < w->texts; i++) begin_text(w, i);
  while (*written < o->tokens) {
    int wanted = (int)UST_MIN((int64_t)w->texts, o->tokens - *written);
    UST_TRY(write_pass(w, wanted, err));
    *written += wanted;
    if (o->progress && o->progress(o->user, *written)) break;
  }
  for (int i = 0; i < w->texts; i++)
    if (w->count[i] > 1) UST_TRY(hand_over(w, i, err));
  return UNDERSTUDY_OK;
}

static understudy_status prepare(writing *w, understudy_error *err) {
  const ust_scribe_options *o = w->options;
  const ust_config *c = ust_weights_config(o->weights);
  if (c->vocabulary < o->vocabulary)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: the tokenizer has %d tokens, expected at most the model's %d",
                     ust_weights_path(o->weights), o->vocabulary, c->vocabulary);
  UST_TRY(ust_model_open(o->weights, o->kernels, o->threads, NULL, NULL, &w->model, err));
  w->longest = UST_MIN(c->context + 1, UST_TRAIN_WINDOW);
  uint64_t affordable = MOST_KV_BYTES / (ust_model_kv_bytes(w->model) * (uint64_t)w->longest);
  w->texts = (int)UST_MIN(UST_MAX(affordable, (uint64_t)LEAST_TEXTS), (uint64_t)TEXTS);
  w->texts = (int)UST_MIN((int64_t)w->texts, o->tokens);
  UST_TRY(ust_batch_create(w->model, w->texts, w->longest - 1, o->temperature, &w->batch, err));
  size_t texts = (size_t)w->texts, text_bytes = texts * (size_t)w->longest * sizeof *w->text;
  w->best = ust_alloc((size_t)o->threads * texts * sizeof *w->best);
  w->text = ust_alloc(text_bytes);
  w->last = ust_alloc(texts * sizeof *w->last);
  w->count = ust_alloc(texts * sizeof *w->count);
  w->number = ust_alloc(texts * sizeof *w->number);
  if (w->best && w->text && w->last && w->count && w->number) return UNDERSTUDY_OK;
  return ust_error_memory(err, text_bytes, "a batch of texts");
}

understudy_status ust_scribe_write(const ust_scribe_options *options, int64_t *written, understudy_error *err) {
  assert(options->temperature > 0 && options->end_token >= 0 && options->end_token < options->vocabulary);
  *written = 0;
  if (options->tokens <= 0) return UNDERSTUDY_OK;
  writing w = {.options = options};
  understudy_status status = prepare(&w, err);
  if (status == UNDERSTUDY_OK) status = write_all(&w, written, err);
  void *const parts[] = {w.best, w.text, w.last, w.count, w.number};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) ust_free(parts[i]);
  ust_batch_free(w.batch);
  ust_model_close(w.model);
  return status;
}
