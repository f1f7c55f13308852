/* Checkpoint: everything a run needs to go on with the same bits: its identity, the steps done, weights and moments.
 *
 * File, little-endian: magic and version (16 bytes), FIELDS 64-bit identity fields, the steps done, then three arrays
 * of f32 (weights, means, squared means), then the checksum of all before. It appears by rename, so whatever kills
 * the process leaves the previous checkpoint or the new one. */
#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "train/internal.h"

enum { VERSION = 4 };

/* What makes a run this one. */
enum {
  LEVEL,
  VOCABULARY,
  CONTEXT,
  WIDTH,
  LAYERS,
  HEADS,
  FLOATS,
  WINDOW,
  STEPS,
  BATCH,
  RATE,
  SEED,
  CORPUS, /* from here on checksums */
  TOKENIZER,
  TEACHER,
  START,
  FIELDS
};

typedef struct header {
  char magic[8];
  uint64_t version;
  uint64_t fields[FIELDS];
  uint64_t step;
} header;

static const char *const names[FIELDS] = {
    [LEVEL] = "kernel level", [VOCABULARY] = "vocabulary", [CONTEXT] = "context", [WIDTH] = "width",
    [LAYERS] = "layers",      [HEADS] = "heads",           [FLOATS] = "floats",   [WINDOW] = "window",
    [STEPS] = "steps",        [BATCH] = "batch",           [RATE] = "rate",       [SEED] = "seed",
    [CORPUS] = "corpus",      [TOKENIZER] = "tokenizer",   [TEACHER] = "teacher", [START] = "start"};

uint64_t ust_train_checksum(uint64_t state, const void *data, size_t size) {
  const char *at = data;
  state ^= size * 0x9e3779b97f4a7c15u;
  for (; size >= 8; size -= 8, at += 8) {
    uint64_t word;
    memcpy(&word, at, 8);
    state = (state ^ word) * 0xd6e8feb86659fd93u;
    state ^= state >> 32;
  }
  uint64_t rest = 0;
  memcpy(&rest, at, size);
  state = (state ^ rest) * 0xd6e8feb86659fd93u;
  return state ^ state >> 32;
}

static header make_header(const ust_train_run *run) {
  const ust_train_options *o = run->options;
  const ust_config *c = &run->config;
  uint32_t rate;
  memcpy(&rate, &o->rate, sizeof rate);
  return (header){.magic = "USTTRAIN",
                  .version = VERSION,
                  .fields = {[LEVEL] = (uint64_t)o->kernels->isa,
                             [VOCABULARY] = (uint64_t)c->vocabulary,
                             [CONTEXT] = (uint64_t)c->context,
                             [WIDTH] = (uint64_t)c->width,
                             [LAYERS] = (uint64_t)c->layers,
                             [HEADS] = (uint64_t)c->heads,
                             [FLOATS] = run->model->size,
                             [WINDOW] = UST_TRAIN_WINDOW,
                             [STEPS] = (uint64_t)o->steps,
                             [BATCH] = (uint64_t)o->batch,
                             [RATE] = rate,
                             [SEED] = o->seed,
                             [CORPUS] = run->corpus.fingerprint,
                             [TOKENIZER] = ust_tokenizer_fingerprint(o->tokenizer),
                             [TEACHER] = run->teacher_fingerprint,
                             [START] = run->start_fingerprint},
                  .step = (uint64_t)run->step};
}

understudy_status ust_checkpoint_write(const ust_train_run *run, understudy_error *err) {
  const ust_gpt2_train *m = run->model;
  header h = make_header(run);
  size_t bytes = m->size * sizeof(float);
  uint64_t checksum = ust_train_checksum(0, &h, sizeof h);
  checksum = ust_train_checksum(checksum, m->values, bytes);
  checksum = ust_train_checksum(checksum, run->moments, 2 * bytes);
  ust_writer writer;
  UST_TRY(ust_writer_open(&writer, run->options->checkpoint, err));
  ust_writer_write(&writer, &h, sizeof h);
  ust_writer_write(&writer, m->values, bytes);
  ust_writer_write(&writer, run->moments, 2 * bytes);
  ust_writer_write(&writer, &checksum, sizeof checksum);
  return ust_writer_commit(&writer, err);
}

/* "steps is 3, expected 4"; of a rate the number its bits stand for, of checksums only that they differ. */
static void describe(int field, uint64_t found, uint64_t expected, char *text, size_t size) {
  if (field >= CORPUS) {
    snprintf(text, size, "found another %s, expected this run's", names[field]);
  } else if (field == RATE) {
    float rates[2];
    memcpy(&rates[0], &found, sizeof *rates);
    memcpy(&rates[1], &expected, sizeof *rates);
    snprintf(text, size, "%s is %g, expected %g", names[field], (double)rates[0], (double)rates[1]);
  } else {
    snprintf(text, size, "%s is %" PRIu64 ", expected %" PRIu64, names[field], found, expected);
  }
}

static understudy_status check_header(const ust_train_run *run, const header *found, understudy_error *err) {
  const char *path = run->options->checkpoint;
  header expected = make_header(run);
  if (memcmp(found->magic, expected.magic, sizeof expected.magic) != 0)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: not a checkpoint: starts with '%.8s', expected 'USTTRAIN'",
                     path, found->magic);
  if (found->version != VERSION)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: checkpoint version %" PRIu64 ", expected %d", path,
                     found->version, VERSION);
  if (found->fields[LEVEL] != expected.fields[LEVEL] && found->fields[LEVEL] < UST_ISA_COUNT)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: checkpoint of kernel level %s, expected %s as this run's",
                     path, ust_isa_name((ust_isa)found->fields[LEVEL]), run->options->kernels->name);
  for (int i = 0; i < FIELDS; i++) {
    if (i == STEPS) continue; /* a run may be made longer or shorter on its way */
    if (found->fields[i] == expected.fields[i]) continue;
    char what[96];
    describe(i, found->fields[i], expected.fields[i], what, sizeof what);
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT,
                     "%s: checkpoint of another run: %s (name another checkpoint or remove it to start anew)", path,
                     what);
  }
  if (found->step > (uint64_t)run->options->steps)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: checkpoint of step %" PRIu64 ", expected at most --steps %d",
                     path, found->step, run->options->steps);
  return UNDERSTUDY_OK;
}

static understudy_status read_state(ust_train_run *run, const ust_file *file, understudy_error *err) {
  ust_gpt2_train *m = run->model;
  size_t bytes = m->size * sizeof(float), size = sizeof(header) + 3 * bytes + 8;
  header h;
  UST_TRY(ust_file_read(file, 0, &h, sizeof h, err));
  UST_TRY(check_header(run, &h, err));
  if (file->size != size)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %" PRIu64 " bytes, expected %zu", file->path, file->size, size);
  uint64_t stored, checksum;
  UST_TRY(ust_file_read(file, sizeof h, m->values, bytes, err));
  UST_TRY(ust_file_read(file, sizeof h + bytes, run->moments, 2 * bytes, err));
  UST_TRY(ust_file_read(file, sizeof h + 3 * bytes, &stored, 8, err));
  checksum = ust_train_checksum(0, &h, sizeof h);
  checksum = ust_train_checksum(checksum, m->values, bytes);
  checksum = ust_train_checksum(checksum, run->moments, 2 * bytes);
  if (stored != checksum)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: damaged: checksum %016" PRIx64 ", expected %016" PRIx64,
                     file->path, stored, checksum);
  run->step = (int)h.step;
  return UNDERSTUDY_OK;
}

understudy_status ust_checkpoint_read(ust_train_run *run, understudy_error *err) {
  struct stat info;
  if (stat(run->options->checkpoint, &info) != 0 && errno == ENOENT) return UNDERSTUDY_OK;
  ust_file file;
  UST_TRY(ust_file_open(&file, run->options->checkpoint, err));
  understudy_status status = read_state(run, &file, err);
  ust_file_close(&file);
  return status;
}
