/* Opened weights: which reader a path needs, the tensors by name, and the checks every format shares. */
#include <stdlib.h>

#include "weights/internal.h"

/* Layers beyond those the configuration counts: the file would be another model than it says. */
static understudy_status check_layers(const ust_weights *weights, understudy_error *err) {
  for (size_t i = 0; i < weights->count; i++) {
    const char *name = weights->tensors[i].name;
    if (strncmp(name, "blk.", 4) == 0 && strtoll(name + 4, NULL, 10) >= weights->config.layers)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: tensor %s: found a layer beyond the %d of block_count",
                       weights->path, name, weights->config.layers);
  }
  return UNDERSTUDY_OK;
}

understudy_status ust_weights_open(const char *path, ust_weights **out, understudy_error *err) {
  *out = NULL;
  ust_weights *weights = calloc(1, sizeof *weights);
  if (!weights) return ust_error_memory(err, sizeof *weights, path);
  pthread_mutex_init(&weights->lock, NULL);
  pthread_cond_init(&weights->released, NULL);
  understudy_status status = UNDERSTUDY_OK;
  weights->path = strdup(path);
  if (!weights->path) status = ust_error_memory(err, strlen(path), "a path");
  if (status == UNDERSTUDY_OK) {
    weights->directory = ust_is_directory(path);
    status = weights->directory ? ust_weights_read_directory(weights, err) : ust_weights_read_gguf(weights, err);
  }
  if (status == UNDERSTUDY_OK) status = ust_weights_index_tensors(weights, err);
  if (status == UNDERSTUDY_OK && !weights->directory) status = ust_weights_configure_gguf(weights, err);
  if (status == UNDERSTUDY_OK && weights->directory) status = ust_weights_check_head(weights, err);
  if (status == UNDERSTUDY_OK) status = check_layers(weights, err);
  const ust_tensor *embedding;
  if (status == UNDERSTUDY_OK)
    status = ust_weights_find(weights, "token_embd.weight", (uint64_t)weights->config.vocabulary,
                              (uint64_t)weights->config.width, &embedding, err);
  if (status != UNDERSTUDY_OK) {
    ust_weights_close(weights);
    return status;
  }
  *out = weights;
  return UNDERSTUDY_OK;
}

void ust_weights_close(ust_weights *weights) {
  if (!weights) return;
  for (size_t i = 0; i < weights->file_count; i++) ust_file_close(&weights->files[i]);
  for (size_t i = 0; i < weights->count; i++) free((char *)weights->tensors[i].name);
  for (size_t i = 0; i < weights->key_count; i++) {
    free(weights->keys[i].strings);
    free(weights->keys[i].integers);
  }
  for (int i = 0; i < UST_HELD; i++) ust_free(weights->held[i].data);
  pthread_cond_destroy(&weights->released);
  pthread_mutex_destroy(&weights->lock);
  json_decref(weights->json);
  free(weights->files);
  free(weights->tensors);
  free(weights->by_name);
  free(weights->keys);
  free(weights->keys_by_name);
  free(weights->header);
  free(weights->path);
  free(weights);
}

const char *ust_weights_path(const ust_weights *weights) {
  return weights->path;
}
bool ust_weights_is_directory(const ust_weights *weights) {
  return weights->directory;
}
const ust_config *ust_weights_config(const ust_weights *weights) {
  return &weights->config;
}
size_t ust_weights_count(const ust_weights *weights) {
  return weights->count;
}
const ust_tensor *ust_weights_tensor(const ust_weights *weights, size_t index) {
  assert(index < weights->count);
  return &weights->tensors[index];
}

static int compare_name_to_tensor(const void *name, const void *tensor) {
  return strcmp(name, (*(const ust_tensor *const *)tensor)->name);
}

static const ust_tensor *lookup(const ust_weights *weights, const char *name) {
  if (!weights->count) return NULL;
  const ust_tensor **found =
      bsearch(name, weights->by_name, weights->count, sizeof *weights->by_name, compare_name_to_tensor);
  return found ? *found : NULL;
}

bool ust_weights_has(const ust_weights *weights, const char *name) {
  return lookup(weights, name) != NULL;
}

understudy_status ust_weights_find(const ust_weights *weights, const char *name, uint64_t rows, uint64_t cols,
                                   const ust_tensor **tensor, understudy_error *err) {
  const ust_tensor *found = lookup(weights, name);
  if (!found) return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: tensor %s is missing", weights->path, name);
  if ((rows && rows != found->rows) || (cols && cols != found->cols))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: tensor %s: found %llu x %llu, expected %llu x %llu",
                     weights->path, name, (unsigned long long)found->rows, (unsigned long long)found->cols,
                     (unsigned long long)(rows ? rows : found->rows), (unsigned long long)(cols ? cols : found->cols));
  *tensor = found;
  return UNDERSTUDY_OK;
}

understudy_status ust_weights_add_file(ust_weights *weights, const char *path, understudy_error *err) {
  ust_file *files = realloc(weights->files, (weights->file_count + 1) * sizeof *files);
  if (!files) return ust_error_memory(err, (weights->file_count + 1) * sizeof *files, path);
  weights->files = files;
  UST_TRY(ust_file_open(&files[weights->file_count], path, err));
  weights->file_count++;
  return UNDERSTUDY_OK;
}

understudy_status ust_weights_add_tensor(ust_weights *weights, const ust_tensor *tensor, understudy_error *err) {
  if (weights->count == weights->capacity) {
    size_t capacity = UST_MAX(2 * weights->capacity, (size_t)64);
    ust_tensor *grown = realloc(weights->tensors, capacity * sizeof *grown);
    if (!grown) return ust_error_memory(err, capacity * sizeof *grown, "the list of tensors");
    weights->tensors = grown;
    weights->capacity = capacity;
  }
  char *name = strdup(tensor->name);
  if (!name) return ust_error_memory(err, strlen(tensor->name), "a tensor's name");
  ust_tensor *added = &weights->tensors[weights->count++];
  *added = *tensor;
  added->name = name;
  return UNDERSTUDY_OK;
}

static int compare_tensors(const void *a, const void *b) {
  return strcmp((*(const ust_tensor *const *)a)->name, (*(const ust_tensor *const *)b)->name);
}

/* Sorting finds duplicates in n log n whatever names a file chooses; a hash table could be made to collide. */
understudy_status ust_weights_index_tensors(ust_weights *weights, understudy_error *err) {
  weights->by_name = malloc((weights->count + 1) * sizeof *weights->by_name);
  if (!weights->by_name) return ust_error_memory(err, weights->count * sizeof *weights->by_name, "tensor names");
  for (size_t i = 0; i < weights->count; i++) weights->by_name[i] = &weights->tensors[i];
  qsort(weights->by_name, weights->count, sizeof *weights->by_name, compare_tensors);
  for (size_t i = 1; i < weights->count; i++)
    if (strcmp(weights->by_name[i - 1]->name, weights->by_name[i]->name) == 0)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: tensor %s: found twice", weights->path,
                       weights->by_name[i]->name);
  return UNDERSTUDY_OK;
}

static understudy_status check_range(const ust_weights *weights, const char *field, int value, int low, int high,
                                     understudy_error *err) {
  if (value >= low && value <= high) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: found %d, expected %d ... %d", weights->path, field, value,
                   low, high);
}

understudy_status ust_weights_check_config(const ust_weights *weights, understudy_error *err) {
  const ust_config *c = &weights->config;
  UST_TRY(check_range(weights, "layers (block_count, n_layer)", c->layers, 1, 512, err));
  UST_TRY(check_range(weights, "width (embedding_length, n_embd)", c->width, 1, 1 << 16, err));
  UST_TRY(check_range(weights, "heads (head_count, n_head)", c->heads, 1, c->width, err));
  UST_TRY(check_range(weights, "feed_forward_length (n_inner)", c->feed_forward, 1, 1 << 18, err));
  UST_TRY(check_range(weights, "context (context_length, n_positions)", c->context, 1, 1 << 20, err));
  UST_TRY(check_range(weights, "vocabulary", c->vocabulary, 1, UST_ARRAY_MAX, err));
  UST_TRY(check_range(weights, "bos_token_id", c->bos, -1, c->vocabulary - 1, err));
  UST_TRY(check_range(weights, "eos_token_id", c->eos, -1, c->vocabulary - 1, err));
  if (c->width % c->heads)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: width: found %d, expected a multiple of the %d heads",
                     weights->path, c->width, c->heads);
  if (!(c->norm_epsilon > 0 && c->norm_epsilon < 1))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: layer_norm_epsilon: found %g, expected more than 0, less than 1", weights->path,
                     (double)c->norm_epsilon);
  return UNDERSTUDY_OK;
}
