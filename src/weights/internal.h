/* weights, inside: the opened model files behind ust_weights, and the steps that fill it. A reader (gguf_read.c
 * or huggingface.c) opens the files, adds tensors and sets the configuration; weights.c then indexes the names
 * and checks what is common; rows.c reads tensor data. */
#ifndef UST_WEIGHTS_INTERNAL_H
#define UST_WEIGHTS_INTERNAL_H

#include <jansson.h>
#include <pthread.h>

#include "weights/weights.h"

/* Limits far above any GPT-2 and low enough that a hostile file costs neither time nor memory. */
enum {
  UST_KEYS_MAX = 1 << 16,     /* metadata keys of a file */
  UST_TENSORS_MAX = 1 << 16,  /* tensors of a file, entries of a safetensors header */
  UST_ARRAY_MAX = 1 << 20,    /* elements of a metadata array */
  UST_STRINGS_MAX = 1 << 21,  /* strings in all metadata arrays of a file */
  UST_NAME_MAX = 63,          /* bytes of a tensor's name: what GGUF readers accept */
  UST_METADATA_MAX = 64 << 20 /* bytes of a GGUF file before its tensor data */
};

/* GGUF's value types. */
enum {
  UST_GGUF_U8,
  UST_GGUF_I8,
  UST_GGUF_U16,
  UST_GGUF_I16,
  UST_GGUF_U32,
  UST_GGUF_I32,
  UST_GGUF_F32,
  UST_GGUF_BOOL,
  UST_GGUF_STRING,
  UST_GGUF_ARRAY,
  UST_GGUF_U64,
  UST_GGUF_I64,
  UST_GGUF_F64,
  UST_GGUF_TYPES
};

/* One metadata key; everything points into ust_weights.header but `strings` and `integers`. */
typedef struct ust_key {
  ust_text name;
  uint32_t type, element; /* element: of an array */
  uint64_t count;         /* bytes of a string, elements of an array, else 1 */
  const unsigned char *value;
  ust_text *strings; /* [count] of an array of strings */
  int32_t *integers; /* [count] of an array of i32 or u32 */
} ust_key;

/* A transposed tensor held in memory while several threads take rows from it (rows.c). */
typedef struct ust_held {
  const ust_tensor *tensor;
  unsigned char *data;
  uint64_t capacity;
  int users;
  bool ready;
  uint64_t used; /* when last taken */
} ust_held;

enum { UST_HELD = 2 }; /* threads move to the next tensor while the last one is still in use */

struct ust_weights {
  char *path;
  bool directory;
  ust_config config;
  ust_file *files;
  size_t file_count;

  ust_tensor *tensors; /* in file order; each name is malloc'ed */
  size_t count, capacity;
  const ust_tensor **by_name;

  unsigned char *header; /* GGUF: the file up to its tensor data */
  ust_key *keys;         /* in file order */
  size_t key_count;
  const ust_key **keys_by_name;
  json_t *json; /* Hugging Face: config.json */

  pthread_mutex_t lock;
  pthread_cond_t released;
  ust_held held[UST_HELD];
  uint64_t clock;
};

/* Fill an empty ust_weights whose path is set. On failure the caller closes it. */
understudy_status ust_weights_read_gguf(ust_weights *weights, understudy_error *err);
understudy_status ust_weights_read_directory(ust_weights *weights, understudy_error *err);
/* A directory's output matrix exists if its configuration says that the embedding is not one. */
understudy_status ust_weights_check_head(const ust_weights *weights, understudy_error *err);
/* Configuration from GGUF's keys, once tensors are indexed. */
understudy_status ust_weights_configure_gguf(ust_weights *weights, understudy_error *err);

/* One more file, opened; its index is file_count - 1. */
understudy_status ust_weights_add_file(ust_weights *weights, const char *path, understudy_error *err);
/* One more tensor; the name is copied. */
understudy_status ust_weights_add_tensor(ust_weights *weights, const ust_tensor *tensor, understudy_error *err);
/* Sorts names and refuses duplicates. */
understudy_status ust_weights_index_tensors(ust_weights *weights, understudy_error *err);
understudy_status ust_weights_index_keys(ust_weights *weights, understudy_error *err);
const ust_key *ust_weights_key(const ust_weights *weights, const char *name);
/* Ranges of the configuration. */
understudy_status ust_weights_check_config(const ust_weights *weights, understudy_error *err);

/* Whether a file's type code is one of ust_type. */
bool ust_type_known(uint32_t code);
/* Bytes of `elements` elements along whole rows; false when they do not fit 64 bits. */
bool ust_weights_bytes(ust_type type, uint64_t elements, uint64_t *bytes);
/* `count` elements (whole blocks) as f32; data of quantised types is 2-byte aligned. False when a value is infinite or
 * not a number. */
bool ust_weights_decode(ust_type type, const unsigned char *data, size_t count, float *out);

/* A safetensors entry, handed to `visit` in the order of the data. `tensor.name` is the file's own name;
 * `tensor.type` holds only when `readable`. */
typedef struct ust_safetensors_entry {
  const char *name, *dtype;
  bool readable; /* a dtype this program reads: F32, F16, BF16 */
  ust_type type;
  uint64_t shape[8];
  int dims;
  uint64_t offset, bytes; /* offset from the file's beginning */
} ust_safetensors_entry;
typedef understudy_status (*ust_safetensors_visit)(void *user, const ust_safetensors_entry *entry,
                                                   understudy_error *err);
understudy_status ust_weights_read_safetensors(const ust_file *file, ust_safetensors_visit visit, void *user,
                                               understudy_error *err);

/* Parses a JSON object, refusing duplicate keys and documents whose tree would not fit in little memory. */
understudy_status ust_weights_parse_json(const char *source, const char *bytes, size_t size, json_t **json,
                                         understudy_error *err);
/* The same from a whole file of at most 16 MiB. */
understudy_status ust_weights_load_json(const char *path, json_t **json, understudy_error *err);

static inline uint32_t ust_load_u32(const unsigned char *b) {
  return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}
static inline uint64_t ust_load_u64(const unsigned char *b) {
  return (uint64_t)ust_load_u32(b) | (uint64_t)ust_load_u32(b + 4) << 32;
}

/* For "%.*s": at most 64 bytes of a name that came from a file. */
#define UST_SHOW(text) (int)UST_MIN((text).size, (size_t)64), (text).data

#endif
