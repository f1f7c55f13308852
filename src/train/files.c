/* Files of a run other than its checkpoint: the finished model as GGUF, the models it reads, the loss log. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "train/internal.h"

enum {
  HOW_IT_TEACHES = 3 /* its distribution, and the start where no other is given; changed with what that means */
};

/* ---- the finished model ---- */

understudy_status ust_train_export(const ust_train_run *run, understudy_error *err) {
  const ust_gpt2_train *m = run->model;
  ust_gguf_writer *writer;
  UST_TRY(ust_gguf_create(run->options->output, &writer, err));
  ust_gguf_config(writer, &run->config, run->options->type);
  ust_gguf_vocabulary(writer, ust_tokenizer_vocabulary(run->options->tokenizer));
  for (int i = 0; i < m->parameter_count; i++) {
    const ust_parameter *p = &m->parameters[i];
    ust_type type = ust_gguf_type(p->name, (uint64_t)p->rows, run->options->type);
    ust_gguf_declare(writer, p->name, type, (uint64_t)p->rows, (uint64_t)p->cols);
  }
  for (int i = 0; i < m->parameter_count; i++)
    ust_gguf_rows(writer, m->values + m->parameters[i].offset, (uint64_t)m->parameters[i].rows);
  return ust_gguf_commit(writer, err);
}

/* ---- models read: a teacher, or what a run starts from ---- */

static understudy_status check_model(const ust_train_run *run, const ust_weights *weights, understudy_error *err) {
  const char *path = ust_weights_path(weights);
  const ust_config *config = ust_weights_config(weights);
  if (config->vocabulary != run->config.vocabulary)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: vocabulary of %d tokens, expected %d as the tokenizer's",
                     path, config->vocabulary, run->config.vocabulary);
  if (config->context < run->config.context)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: context of %d tokens, expected at least %d", path,
                     config->context, run->config.context);
  if (ust_weights_has(weights, "output.weight"))
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                     "%s: tensor output.weight: found an output matrix of its own, expected the token embedding", path);
  return UNDERSTUDY_OK;
}

/* Fills the model's values, whose shape is the weights'; `fingerprint` goes in as its seed and comes out as theirs. */
static understudy_status read_values(const ust_weights *weights, const ust_gpt2_train *m, uint64_t *fingerprint,
                                     understudy_error *err) {
  for (int i = 0; i < m->parameter_count; i++) {
    const ust_parameter *p = &m->parameters[i];
    const ust_tensor *tensor;
    UST_TRY(ust_weights_find(weights, p->name, (uint64_t)p->rows, (uint64_t)p->cols, &tensor, err));
    UST_TRY(ust_weights_read_rows(weights, tensor, 0, (uint64_t)p->rows, m->values + p->offset, err));
  }
  *fingerprint = ust_train_checksum(*fingerprint, m->values, m->size * sizeof *m->values);
  return UNDERSTUDY_OK;
}

understudy_status ust_train_load_teacher(ust_train_run *run, int max_sequences, understudy_error *err) {
  const ust_weights *weights = run->options->teacher;
  UST_TRY(check_model(run, weights, err));
  UST_TRY(ust_gpt2_train_create(ust_weights_config(weights), run->options->kernels, UST_FORMAT_BF16, UST_TRAIN_WINDOW,
                                max_sequences, run->options->threads, false, &run->teacher, err));
  run->teacher_fingerprint = HOW_IT_TEACHES;
  UST_TRY(read_values(weights, run->teacher, &run->teacher_fingerprint, err));
  ust_gpt2_train_pack(run->teacher);
  return UNDERSTUDY_OK;
}

understudy_status ust_train_load_start(ust_train_run *run, understudy_error *err) {
  UST_TRY(check_model(run, run->options->start, err));
  run->start_fingerprint = 1;
  return read_values(run->options->start, run->model, &run->start_fingerprint, err);
}

/* ---- the log ---- */

static understudy_status log_error(const char *path, understudy_error *err) {
  return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot write: %s", path, strerror(errno ? errno : EIO));
}

/* Bytes of the lines up to `step`. */
static size_t kept_lines(const char *text, size_t size, int step) {
  size_t kept = 0;
  while (kept < size) {
    const char *end = memchr(text + kept, '\n', size - kept);
    if (!end || (kept > 0 && strtol(text + kept, NULL, 10) > step)) break;
    kept = (size_t)(end + 1 - text);
  }
  return kept;
}

/* Behind what stands there. */
static FILE *open_shared(int descriptor) {
  const int fd = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
  if (fd >= 0 && !file) close(fd);
  return file;
}

understudy_status ust_train_log_open(const ust_train_run *run, FILE **log, understudy_error *err) {
  static const char heading[] = "step,loss,kl,heldout,rate,tokens_per_s\n";
  const char *path = run->options->log;
  char *old = NULL;
  size_t size = 0;
  struct stat info;
  const int shared = ust_shared_descriptor(path);
  if (shared < 0 && run->step > 0 && stat(path, &info) == 0 && S_ISREG(info.st_mode))
    UST_TRY(ust_file_slurp(path, (size_t)1 << 30, &old, &size, err));
  size_t kept = kept_lines(old, size, run->step);
  ust_free(old);
  bool good = kept == 0 || truncate(path, (off_t)kept) == 0; /* lines that stay are never written again */
  *log = shared >= 0 ? open_shared(shared) : good ? fopen(path, kept ? "ae" : "we") : NULL;
  good = *log && (kept > 0 || (fputs(heading, *log) >= 0 && fflush(*log) == 0));
  if (good) return UNDERSTUDY_OK;
  understudy_status status = log_error(path, err);
  if (*log) fclose(*log);
  *log = NULL;
  return status;
}

static void print_known(FILE *log, double value) {
  if (!isnan(value)) fprintf(log, "%.6f", value);
  fputc(',', log);
}

understudy_status ust_train_log_line(FILE *log, const char *path, const ust_train_progress *p, understudy_error *err) {
  fprintf(log, "%d,%.6f,", p->step, p->loss);
  print_known(log, p->kl);
  print_known(log, p->heldout);
  fprintf(log, "%.6g,%.0f\n", p->rate, p->tokens_per_s);
  return fflush(log) == 0 && !ferror(log) ? UNDERSTUDY_OK : log_error(path, err);
}
