/* JSON of untrusted files, parsed by jansson behind two limits: the size of the text, and how many values the
 * tree can hold, since a tree of small values takes many times the memory of its text. */
#include "weights/internal.h"

enum { TEXT_MAX = 16 << 20, MARKS_MAX = 1 << 18 };

/* Each value but the first follows one of these marks, so they bound the tree. */
static bool too_many_values(const char *bytes, size_t size) {
  size_t marks = 0;
  for (size_t i = 0; i < size; i++) marks += bytes[i] == ',' || bytes[i] == ':' || bytes[i] == '[' || bytes[i] == '{';
  return marks > MARKS_MAX;
}

understudy_status ust_weights_parse_json(const char *source, const char *bytes, size_t size, json_t **json,
                                         understudy_error *err) {
  *json = NULL;
  if (size > TEXT_MAX)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found %zu bytes of JSON, expected at most %d", source, size,
                     TEXT_MAX);
  if (too_many_values(bytes, size))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found JSON of more than %d values, expected fewer", source,
                     MARKS_MAX);
  json_error_t what;
  json_t *root = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &what);
  if (!root)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found invalid JSON at line %d, column %d: %s", source,
                     what.line, what.column, what.text);
  if (!json_is_object(root)) {
    json_decref(root);
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found JSON that is not an object, expected {...}", source);
  }
  *json = root;
  return UNDERSTUDY_OK;
}

understudy_status ust_weights_load_json(const char *path, json_t **json, understudy_error *err) {
  *json = NULL;
  char *text;
  size_t size;
  UST_TRY(ust_file_slurp(path, TEXT_MAX, &text, &size, err));
  understudy_status status = ust_weights_parse_json(path, text, size, json, err);
  ust_free(text);
  return status;
}
