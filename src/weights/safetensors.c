/* safetensors, reading: an 8-byte length, that many bytes of JSON, then the data. The entries must cover the data
 * from its first byte to its last, without overlap or hole, each with the bytes its shape and dtype need. */
#include <inttypes.h>
#include <stdlib.h>

#include "weights/internal.h"

enum { HEADER_MAX = 100000000 }; /* the format's own limit */

static const struct {
  const char *name;
  unsigned bytes; /* of an element */
  bool readable;
  ust_type type;
} dtypes[] = {{"F32", 4, true, UST_TYPE_F32},
              {"F16", 2, true, UST_TYPE_F16},
              {"BF16", 2, true, UST_TYPE_BF16},
              {"BOOL", 1, false, 0},
              {"U8", 1, false, 0},
              {"I8", 1, false, 0},
              {"F8_E4M3", 1, false, 0},
              {"F8_E5M2", 1, false, 0},
              {"U16", 2, false, 0},
              {"I16", 2, false, 0},
              {"U32", 4, false, 0},
              {"I32", 4, false, 0},
              {"U64", 8, false, 0},
              {"I64", 8, false, 0},
              {"F64", 8, false, 0}};

static understudy_status bad(const ust_file *file, const char *tensor, const char *found, const char *expected,
                             understudy_error *err) {
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: tensor %.64s: found %s, expected %s", file->path, tensor, found,
                   expected);
}

/* shape -> entry->shape, dims and the number of elements */
static understudy_status read_shape(const ust_file *file, const json_t *shape, ust_safetensors_entry *entry,
                                    uint64_t *elements, understudy_error *err) {
  if (!json_is_array(shape) || json_array_size(shape) > sizeof entry->shape / sizeof *entry->shape)
    return bad(file, entry->name, "no shape", "an array of at most 8 dimensions", err);
  entry->dims = (int)json_array_size(shape);
  *elements = 1;
  for (int i = 0; i < entry->dims; i++) {
    const json_t *n = json_array_get(shape, (size_t)i);
    if (!json_is_integer(n) || json_integer_value(n) < 0)
      return bad(file, entry->name, "a dimension that is no size", "an integer of at least 0", err);
    entry->shape[i] = (uint64_t)json_integer_value(n);
    if (!ust_mul(*elements, entry->shape[i], elements))
      return bad(file, entry->name, "a shape whose product does not fit 64 bits", "a smaller one", err);
  }
  return UNDERSTUDY_OK;
}

static understudy_status read_entry(const ust_file *file, const char *name, const json_t *json, uint64_t data_start,
                                    ust_safetensors_entry *entry, understudy_error *err) {
  *entry = (ust_safetensors_entry){.name = name};
  if (!json_is_object(json)) return bad(file, name, "no object", "{dtype, shape, data_offsets}", err);
  entry->dtype = json_string_value(json_object_get(json, "dtype"));
  if (!entry->dtype) return bad(file, name, "no dtype", "a string", err);
  size_t which = 0, known = sizeof dtypes / sizeof *dtypes;
  while (which < known && strcmp(dtypes[which].name, entry->dtype) != 0) which++;
  if (which == known)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                     "%s: tensor %.64s: dtype: found \"%.32s\", expected F32, F16 or BF16", file->path, name,
                     entry->dtype);
  entry->readable = dtypes[which].readable;
  entry->type = dtypes[which].type;
  uint64_t elements = 0;
  UST_TRY(read_shape(file, json_object_get(json, "shape"), entry, &elements, err));

  const json_t *offsets = json_object_get(json, "data_offsets");
  const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
  if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
    return bad(file, name, "no data_offsets", "two integers", err);
  int64_t from = json_integer_value(begin), to = json_integer_value(end);
  if (from < 0 || to < from || (uint64_t)to > file->size - data_start)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: tensor %.64s: data_offsets: found [%" PRId64 ", %" PRId64
                     "], expected a range inside the %" PRIu64 " bytes of data",
                     file->path, name, from, to, file->size - data_start);
  entry->offset = data_start + (uint64_t)from;
  if (!ust_mul(elements, dtypes[which].bytes, &entry->bytes) || entry->bytes != (uint64_t)(to - from))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: tensor %.64s: data_offsets: found %" PRId64 " bytes, expected %" PRIu64 " elements of %u",
                     file->path, name, to - from, elements, dtypes[which].bytes);
  return UNDERSTUDY_OK;
}

static int compare_entries(const void *a, const void *b) {
  const ust_safetensors_entry *x = a, *y = b;
  if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
  return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* empty ones first */
}

/* Sorts by place in the file; the data must be covered exactly. */
static understudy_status check_cover(const ust_file *file, ust_safetensors_entry *entries, size_t count,
                                     uint64_t data_start, understudy_error *err) {
  qsort(entries, count, sizeof *entries, compare_entries);
  uint64_t at = data_start;
  for (size_t i = 0; i < count; i++) {
    if (entries[i].offset != at)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: tensor %.64s: data_offsets: found a begin of %" PRIu64 ", expected %" PRIu64
                       ", where the one before ends",
                       file->path, entries[i].name, entries[i].offset - data_start, at - data_start);
    at += entries[i].bytes;
  }
  if (at == file->size) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                   "%s: data: found %" PRIu64 " bytes, expected the %" PRIu64 " that the tensors cover", file->path,
                   file->size - data_start, at - data_start);
}

static understudy_status check_metadata(const ust_file *file, const json_t *metadata, understudy_error *err) {
  const char *key;
  json_t *value;
  bool ok = json_is_object(metadata);
  json_object_foreach((json_t *)metadata, key, value) ok = ok && json_is_string(value);
  if (ok) return UNDERSTUDY_OK;
  return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: __metadata__: found other values, expected strings", file->path);
}

static understudy_status read_entries(const ust_file *file, json_t *header, uint64_t data_start,
                                      ust_safetensors_visit visit, void *user, understudy_error *err) {
  size_t count = 0, most = json_object_size(header);
  if (most > UST_TENSORS_MAX)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: header: found %zu entries, expected at most %d", file->path,
                     most, UST_TENSORS_MAX);
  ust_safetensors_entry *entries = calloc(most + 1, sizeof *entries);
  if (!entries) return ust_error_memory(err, most * sizeof *entries, "the list of tensors");
  understudy_status status = UNDERSTUDY_OK;
  const char *name;
  json_t *value;
  json_object_foreach(header, name, value) {
    if (strcmp(name, "__metadata__") == 0)
      status = check_metadata(file, value, err);
    else
      status = read_entry(file, name, value, data_start, &entries[count++], err);
    if (status != UNDERSTUDY_OK) break;
  }
  if (status == UNDERSTUDY_OK) status = check_cover(file, entries, count, data_start, err);
  for (size_t i = 0; i < count && status == UNDERSTUDY_OK; i++) status = visit(user, &entries[i], err);
  free(entries);
  return status;
}

understudy_status ust_weights_read_safetensors(const ust_file *file, ust_safetensors_visit visit, void *user,
                                               understudy_error *err) {
  unsigned char start[9];
  if (file->size < sizeof start)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found %" PRIu64 " bytes, expected a header length and a header",
                     file->path, file->size);
  UST_TRY(ust_file_read(file, 0, start, sizeof start, err));
  uint64_t size = ust_load_u64(start);
  if (size > HEADER_MAX || size > file->size - 8 || size < 2)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: header length: found %" PRIu64 ", expected 2 ... %" PRIu64,
                     file->path, size, UST_MIN((uint64_t)HEADER_MAX, file->size - 8));
  if (start[8] != '{')
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: header: found first byte 0x%02x, expected {", file->path,
                     start[8]);
  char *text = malloc((size_t)size);
  if (!text) return ust_error_memory(err, (size_t)size, file->path);
  json_t *header = NULL;
  understudy_status status = ust_file_read(file, 8, text, (size_t)size, err);
  if (status == UNDERSTUDY_OK) status = ust_weights_parse_json(file->path, text, (size_t)size, &header, err);
  free(text);
  if (status == UNDERSTUDY_OK) status = read_entries(file, header, 8 + size, visit, user, err);
  json_decref(header);
  return status;
}
