/* Corpus: a text file becomes one long row of token ids, documents joined by the end token, and is cut into windows.
 *
 * An epoch shifts the grid of windows by a random phase and visits its windows in a random order: a Feistel network
 * over the smallest even number of bits that covers them, walked until it lands inside (Black & Rogaway 2002). Window
 * number i is so a pure function of seed and i, and resuming needs no state. */
#include "train/internal.h"

enum { CHUNK = 512 /* documents tokenized between two looks at the stop callback */ };
enum { STREAM_PHASE = 1, STREAM_ORDER = 2, STREAM_POSITION = 3 };
#define CORPUS_LIMIT ((size_t)8 << 30)

typedef struct document {
  const char *text;
  size_t length;
  int32_t *ids;
  size_t count;
} document;

/* ---- loading ---- */

/* The next up to CHUNK non-empty documents from *at on. */
static int split_documents(const char **at, const char *end, document *documents) {
  int found = 0;
  while (found < CHUNK && *at < end) {
    const char *stop = memchr(*at, 0, (size_t)(end - *at));
    if (!stop) stop = end;
    if (stop > *at) documents[found++] = (document){.text = *at, .length = (size_t)(stop - *at)};
    *at = stop < end ? stop + 1 : end;
  }
  return found;
}

static understudy_status tokenize_documents(const ust_train_options *o, document *documents, int count,
                                            understudy_error *err) {
  understudy_status status = UNDERSTUDY_OK;
#pragma omp parallel for schedule(dynamic) num_threads(o->threads)
  for (int i = 0; i < count; i++) {
    understudy_error own;
    understudy_status result = ust_tokenizer_encode(o->tokenizer, documents[i].text, documents[i].length, false,
                                                    &documents[i].ids, &documents[i].count, &own);
    if (result != UNDERSTUDY_OK) {
      documents[i].ids = NULL;
#pragma omp critical(ust_corpus)
      if (status == UNDERSTUDY_OK) {
        status = result;
        if (err) *err = own;
      }
    }
  }
  return status;
}

static understudy_status append_documents(ust_buffer *ids, document *documents, int count, int32_t end_token,
                                          understudy_error *err) {
  for (int i = 0; i < count; i++)
    if (!ust_buffer_append(ids, documents[i].ids, documents[i].count * sizeof(int32_t)) ||
        !ust_buffer_append(ids, &end_token, sizeof end_token))
      return ust_error_memory(err, ids->size, "a corpus");
  return UNDERSTUDY_OK;
}

static understudy_status tokenize_text(const ust_train_options *o, const char *text, size_t size, ust_buffer *ids,
                                       understudy_error *err) {
  int32_t end_token = ust_tokenizer_vocabulary(o->tokenizer)->eos;
  const char *at = text, *end = text + size;
  document documents[CHUNK];
  understudy_status status = UNDERSTUDY_OK;
  while (status == UNDERSTUDY_OK && at < end) {
    if (o->stop && o->stop(o->user)) return ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped before the first step");
    int count = split_documents(&at, end, documents);
    status = tokenize_documents(o, documents, count, err);
    if (status == UNDERSTUDY_OK) status = append_documents(ids, documents, count, end_token, err);
    for (int i = 0; i < count; i++) ust_free(documents[i].ids);
  }
  return status;
}

understudy_status ust_corpus_load(const char *path, const ust_train_options *options, ust_corpus *corpus,
                                  understudy_error *err) {
  *corpus = (ust_corpus){0};
  if (ust_tokenizer_vocabulary(options->tokenizer)->eos < 0)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "the tokenizer has no end token, expected one to part documents");
  char *text;
  size_t size;
  UST_TRY(ust_file_slurp(path, CORPUS_LIMIT, &text, &size, err));
  ust_buffer ids = {0};
  understudy_status status = tokenize_text(options, text, size, &ids, err);
  ust_free(text);
  corpus->tokens = (int32_t *)(void *)ids.data;
  corpus->count = ids.size / sizeof(int32_t);
  if (status == UNDERSTUDY_OK && ust_corpus_windows(corpus) == 0)
    status = ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %zu tokens of text, expected at least %d", path,
                       corpus->count, 2 * UST_TRAIN_WINDOW);
  if (status != UNDERSTUDY_OK) {
    ust_corpus_free(corpus);
    return status;
  }
  corpus->fingerprint = ust_train_checksum(corpus->count, corpus->tokens, corpus->count * sizeof(int32_t));
  return UNDERSTUDY_OK;
}

void ust_corpus_free(ust_corpus *corpus) {
  ust_free(corpus->tokens);
  *corpus = (ust_corpus){0};
}

/* ---- windows ---- */

/* Whatever the phase (0 … UST_TRAIN_WINDOW-1), and with a label for the last token. */
size_t ust_corpus_windows(const ust_corpus *corpus) {
  size_t whole = corpus->count / UST_TRAIN_WINDOW;
  return whole ? whole - 1 : 0;
}

/* A permutation of 0 … n-1 for each key. */
static uint64_t permute(uint64_t key, uint64_t index, uint64_t n) {
  int half = 1;
  while ((uint64_t)1 << (2 * half) < n) half++;
  uint64_t mask = ((uint64_t)1 << half) - 1;
  do {
    uint64_t left = index >> half, right = index & mask;
    for (uint64_t round = 0; round < 6; round++) {
      uint64_t next = left ^ (ust_train_hash(key, round, right) & mask);
      left = right;
      right = next;
    }
    index = left << half | right;
  } while (index >= n);
  return index;
}

static void copy_window(const ust_corpus *corpus, size_t start, int32_t position, int32_t *ids, int32_t *labels,
                        int32_t *positions) {
  memcpy(ids, corpus->tokens + start, UST_TRAIN_WINDOW * sizeof *ids);
  memcpy(labels, corpus->tokens + start + 1, UST_TRAIN_WINDOW * sizeof *labels);
  for (int i = 0; i < UST_TRAIN_WINDOW; i++) positions[i] = position + i;
}

void ust_corpus_window(const ust_corpus *corpus, uint64_t seed, uint64_t index, int context, int32_t *ids,
                       int32_t *labels, int32_t *positions) {
  uint64_t n = ust_corpus_windows(corpus), epoch = index / n;
  uint64_t phase = ust_train_hash(seed, STREAM_PHASE, epoch) % UST_TRAIN_WINDOW;
  uint64_t window = permute(ust_train_hash(seed, STREAM_ORDER, epoch), index % n, n);
  /* Windows are shorter than the context; each lies at a random place in it, so that every position is trained. */
  uint64_t places = (uint64_t)(context - UST_TRAIN_WINDOW + 1);
  int32_t position = (int32_t)(ust_train_hash(seed, STREAM_POSITION, index) % places);
  copy_window(corpus, phase + window * UST_TRAIN_WINDOW, position, ids, labels, positions);
}

void ust_corpus_heldout(const ust_corpus *corpus, size_t index, size_t count, int32_t *ids, int32_t *labels,
                        int32_t *positions) {
  size_t window = ust_corpus_windows(corpus) * index / count;
  copy_window(corpus, window * UST_TRAIN_WINDOW, 0, ids, labels, positions);
}
