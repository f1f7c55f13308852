/* Trainer: the loop. A step draws its windows, adds up the gradients of micro-batches of MICRO windows, and updates
 * the weights; now and then it measures the held-out text and writes a checkpoint. */
#include <math.h>
#include <stdlib.h>
#include <xmmintrin.h>

#include "train/internal.h"

enum {
  MICRO = 8,         /* windows of a micro-batch: 2048 tokens keep the matrix units busy */
  HELDOUT = 64,      /* windows of the held-out measurement */
  MEASUREMENTS = 20, /* held-out measurements of a run */
  CHECKPOINT_S = 120
};

/* ---- opening ---- */

static understudy_status check_options(const ust_train_options *o, understudy_error *err) {
  if (o->batch < UST_TRAIN_WINDOW)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "batch is %d tokens, expected at least one window of %d", o->batch,
                     UST_TRAIN_WINDOW);
  if (o->context < UST_TRAIN_WINDOW)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s%scontext is %d tokens, expected at least one window of %d",
                     o->start ? ust_weights_path(o->start) : "", o->start ? ": " : "", o->context, UST_TRAIN_WINDOW);
  if (o->steps < 1 || !(o->rate > 0) || o->threads < 1)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "steps %d, rate %g, threads %d, expected all above 0", o->steps,
                     (double)o->rate, o->threads);
  return UNDERSTUDY_OK;
}

/* The output's file name without directory and ending names the model. */
static void name_model(const char *path, char *name, size_t size) {
  const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');
  size_t length = dot && dot > base ? (size_t)(dot - base) : strlen(base);
  snprintf(name, size, "%.*s", (int)UST_MIN(length, size - 1), base);
}

static ust_config make_config(const ust_train_options *o) {
  const ust_vocabulary *vocabulary = ust_tokenizer_vocabulary(o->tokenizer);
  const ust_config *start = o->start ? ust_weights_config(o->start) : NULL;
  ust_config config = {.architecture = "gpt2",
                       .vocabulary = (int)vocabulary->count,
                       .context = o->context,
                       .width = o->width,
                       .layers = o->layers,
                       .heads = o->heads,
                       .feed_forward = start ? start->feed_forward : 4 * o->width,
                       .norm_epsilon = start ? start->norm_epsilon : 1e-5f,
                       .bos = vocabulary->bos,
                       .eos = vocabulary->eos};
  name_model(o->output, config.name, sizeof config.name);
  return config;
}

static int sequences_of_step(const ust_train_options *o) {
  return o->batch / UST_TRAIN_WINDOW;
}

static understudy_status open_run(ust_train_run *run, understudy_error *err) {
  const ust_train_options *o = run->options;
  UST_TRY(ust_writer_check(o->output, err));
  if (o->checkpoint) UST_TRY(ust_writer_check(o->checkpoint, err));
  if (o->log) UST_TRY(ust_writer_check(o->log, err));
  run->config = make_config(o);
  int micro = UST_MIN(MICRO, sequences_of_step(o));
  UST_TRY(ust_gpt2_train_create(&run->config, o->kernels, UST_FORMAT_BF16, UST_TRAIN_WINDOW, micro, o->threads, true,
                                &run->model, err));
  size_t moments = 2 * run->model->size * sizeof(float), partials = ust_train_partials(run->model) * sizeof(double);
  run->moments = ust_alloc(moments);
  run->partial = ust_alloc(partials);
  if (!run->moments || !run->partial) return ust_error_memory(err, moments + partials, "an optimiser");
  if (o->teacher) UST_TRY(ust_train_load_teacher(run, micro, err));
  UST_TRY(ust_corpus_load(o->corpus, o, &run->corpus, err));
  if (o->heldout) UST_TRY(ust_corpus_load(o->heldout, o, &run->heldout, err));
  UST_TRY(ust_candidates_open(&run->corpus, run->config.vocabulary, &run->candidates, err));
  if (o->start)
    UST_TRY(ust_train_load_start(run, err));
  else
    ust_train_initialise(run->model, o->seed);
  if (o->checkpoint) UST_TRY(ust_checkpoint_read(run, err));
  if (run->teacher && !o->start && run->step == 0) UST_TRY(ust_train_inherit(run, err));
  ust_gpt2_train_pack(run->model);
  return UNDERSTUDY_OK;
}

static void close_run(ust_train_run *run) {
  ust_gpt2_train_free(run->model);
  ust_gpt2_train_free(run->teacher);
  ust_free(run->moments);
  ust_free(run->partial);
  ust_corpus_free(&run->corpus);
  ust_corpus_free(&run->heldout);
  ust_candidates_free(&run->candidates);
}

/* ---- one step ---- */

typedef struct batch {
  int32_t ids[MICRO * UST_TRAIN_WINDOW], labels[MICRO * UST_TRAIN_WINDOW], positions[MICRO * UST_TRAIN_WINDOW];
} batch;

static bool stopped(const ust_train_run *run) {
  return run->options->stop && run->options->stop(run->options->user);
}

/* Adds the gradients of one step's windows; false when stopped before the end. */
static bool add_gradients(ust_train_run *run, batch *b, double *loss, double *kl) {
  ust_gpt2_train *m = run->model;
  int sequences = sequences_of_step(run->options);
  double tokens = (double)sequences * UST_TRAIN_WINDOW;
  *loss = *kl = 0;
  memset(m->gradients, 0, m->size * sizeof *m->gradients);
  for (int first = 0; first < sequences; first += MICRO) {
    if (stopped(run)) return false;
    int count = UST_MIN(MICRO, sequences - first);
    for (int i = 0; i < count; i++) {
      uint64_t index = (uint64_t)run->step * (uint64_t)sequences + (uint64_t)(first + i);
      size_t at = (size_t)i * UST_TRAIN_WINDOW;
      ust_corpus_window(&run->corpus, run->options->seed, index, run->config.context, b->ids + at, b->labels + at,
                        b->positions + at);
    }
    ust_candidates *c = &run->candidates;
    int drawn = ust_candidates_draw(c, run->options->seed, (uint64_t)run->step * (uint64_t)sequences + (uint64_t)first,
                                    b->labels, count * UST_TRAIN_WINDOW);
    ust_gpt2_train_candidates(m, c->ids, c->logs, drawn);
    if (run->teacher) {
      ust_gpt2_train_candidates(run->teacher, c->ids, c->logs, drawn);
      ust_gpt2_train_forward(run->teacher, b->ids, b->positions, count);
      ust_gpt2_train_loss(run->teacher, b->labels);
    }
    ust_gpt2_train_forward(m, b->ids, b->positions, count);
    *loss += ust_gpt2_train_loss(m, b->labels);
    *kl += ust_gpt2_train_backward(m, b->labels, (float)(1.0 / tokens), run->teacher);
  }
  *loss /= tokens;
  *kl = run->teacher ? *kl / tokens : NAN;
  return true;
}

/* Mean cross-entropy over the held-out windows. */
static double measure_heldout(ust_train_run *run, batch *b) {
  size_t windows = UST_MIN((size_t)HELDOUT, ust_corpus_windows(&run->heldout));
  int micro = run->model->max_sequences;
  double loss = 0;
  ust_gpt2_train_candidates(run->model, NULL, NULL, 0);
  for (size_t first = 0; first < windows; first += (size_t)micro) {
    int count = (int)UST_MIN((size_t)micro, windows - first);
    for (int i = 0; i < count; i++) {
      size_t at = (size_t)i * UST_TRAIN_WINDOW;
      ust_corpus_heldout(&run->heldout, first + (size_t)i, windows, b->ids + at, b->labels + at, b->positions + at);
    }
    ust_gpt2_train_forward(run->model, b->ids, b->positions, count);
    loss += ust_gpt2_train_loss(run->model, b->labels);
  }
  return loss / ((double)windows * UST_TRAIN_WINDOW);
}

/* ---- the loop ---- */

static understudy_status stop_run(const ust_train_run *run, understudy_error *err) {
  if (!run->options->checkpoint)
    return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped after step %d of %d, no checkpoint", run->step,
                     run->options->steps);
  UST_TRY(ust_checkpoint_write(run, err));
  return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped after step %d of %d; the same command goes on from %s",
                   run->step, run->options->steps, run->options->checkpoint);
}

static understudy_status train_steps(ust_train_run *run, batch *b, FILE *log, understudy_error *err) {
  const ust_train_options *o = run->options;
  int first = run->step, interval = UST_MAX(1, o->steps / MEASUREMENTS);
  uint64_t start = ust_clock_ns(), saved = start;
  while (run->step < o->steps) {
    ust_train_progress p = {.steps = o->steps, .rate = (double)ust_train_rate(run->step, o->steps, o->rate)};
    uint64_t step_start = ust_clock_ns();
    if (!add_gradients(run, b, &p.loss, &p.kl)) return stop_run(run, err);
    if (!isfinite(p.loss) || !ust_train_update(run)) /* the checkpoint is still good */
      return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "step %d: %s not finite, expected a lower rate than %g",
                       run->step + 1, isfinite(p.loss) ? "gradients are" : "loss is", (double)o->rate);
    p.step = run->step;
    p.tokens_per_s = (double)sequences_of_step(o) * UST_TRAIN_WINDOW / ust_seconds_since(step_start);
    bool measured = run->heldout.count && (run->step % interval == 0 || run->step == o->steps);
    p.heldout = measured ? measure_heldout(run, b) : NAN;
    p.seconds_left = ust_seconds_since(start) / (run->step - first) * (o->steps - run->step);
    if (log && ust_train_log_line(log, o->log, &p, err) != UNDERSTUDY_OK) {
      if (o->checkpoint) ust_checkpoint_write(run, NULL);
      return UNDERSTUDY_ERROR_IO;
    }
    if (o->progress) o->progress(o->user, &p);
    if (o->checkpoint && (ust_seconds_since(saved) > CHECKPOINT_S || run->step == o->steps)) {
      UST_TRY(ust_checkpoint_write(run, err));
      saved = ust_clock_ns();
    }
  }
  return UNDERSTUDY_OK;
}

static understudy_status run_training(ust_train_run *run, understudy_error *err) {
  UST_TRY(open_run(run, err));
  batch *b = ust_alloc(sizeof *b);
  if (!b) return ust_error_memory(err, sizeof *b, "a batch");
  FILE *log = NULL;
  understudy_status status = run->options->log ? ust_train_log_open(run, &log, err) : UNDERSTUDY_OK;
  if (status == UNDERSTUDY_OK) status = train_steps(run, b, log, err);
  if (log) fclose(log);
  ust_free(b);
  return status == UNDERSTUDY_OK ? ust_train_export(run, err) : status;
}

/* MXCSR of all threads of a run. */
static void set_arithmetic(int threads, unsigned mxcsr) {
#pragma omp parallel num_threads(threads)
  _mm_setcsr(mxcsr);
}

understudy_status ust_train(const ust_train_options *options, understudy_error *err) {
  /* Numbers below 1.2e-38 count as zero: gradients, and what gelu leaves of large negative values, are full of them,
   * and a processor takes a hundred times as long for one. */
  enum { FLUSH_DENORMALS = 0x8040 };
  UST_TRY(check_options(options, err));
  ust_train_run run = {.options = options};
  const unsigned before = _mm_getcsr();
  set_arithmetic(options->threads, before | FLUSH_DENORMALS);
  understudy_status status = run_training(&run, err);
  set_arithmetic(options->threads, before);
  close_run(&run);
  return status;
}
