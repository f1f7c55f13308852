/* Reading a tokenizer from a Hugging Face directory: tokenizer.json, else vocab.json + merges.txt.
 *
 * Only GPT-2's kind is read. Whatever tokenizer.json asks for that would change the ids (another model, another
 * pre-tokenizer, a normalizer, …) is an error that names it, never ignored. What it says about special tokens
 * around a text (post_processor) and about decoding does not concern the ids of the text and is not read. */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <jansson.h>

#include "tokenizer/tokenizer.h"

/* GPT-2's vocab.json has 0.9 MB and 100,739 marks that can part values (, : [ {). A tree of tiny values takes many
 * times the memory of its text, so both are bounded before it is built. */
enum { FILE_LIMIT = 16 << 20, MARKS_LIMIT = 1 << 19 };

static size_t count_marks(const char *text, size_t size) {
  size_t marks = 0;
  for (size_t i = 0; i < size; i++) marks += text[i] == ',' || text[i] == ':' || text[i] == '[' || text[i] == '{';
  return marks;
}

/* A vocabulary being read; its texts point into the JSON tree, the merges file or `joined`. */
typedef struct reading {
  const char *path; /* of the file, for errors */
  json_t *root;
  ust_text *tokens;
  int32_t *types;
  size_t count;
  ust_text *merges;
  size_t merge_count;
  char *joined, *padding;
} reading;

static void reading_free(reading *r) {
  json_decref(r->root);
  ust_free(r->tokens);
  ust_free(r->types);
  ust_free(r->merges);
  ust_free(r->joined);
  ust_free(r->padding);
}

static understudy_status join_path(const char *directory, const char *name, char **path, understudy_error *err) {
  if (asprintf(path, "%s/%s", directory, name) >= 0) return UNDERSTUDY_OK;
  *path = NULL;
  return ust_error_memory(err, strlen(directory), "a path");
}

/* ---- JSON ---- */

static understudy_status parse_file(reading *r, understudy_error *err) {
  char *data;
  size_t size;
  UST_TRY(ust_file_slurp(r->path, FILE_LIMIT, &data, &size, err));
  size_t marks = count_marks(data, size);
  if (marks > MARKS_LIMIT) {
    ust_free(data);
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %zu marks between JSON values, expected at most %d", r->path,
                     marks, MARKS_LIMIT);
  }
  json_error_t where;
  r->root = json_loadb(data, size, JSON_REJECT_DUPLICATES, &where);
  ust_free(data);
  if (!r->root && (json_error_code(&where) == json_error_out_of_memory || !where.text[0])) /* jansson is not sure */
    return ust_error_memory(err, size, r->path);
  if (!r->root) return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: line %d: %s", r->path, where.line, where.text);
  if (!json_is_object(r->root)) return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: expected a JSON object", r->path);
  return UNDERSTUDY_OK;
}

static const char *json_kind(const json_t *value) {
  static const char *const kinds[] = {"an object", "an array", "a string", "an integer",
                                      "a number",  "true",     "false",    "null"};
  return value ? kinds[json_typeof(value)] : "nothing";
}

/* Writes "a string "ByteLevel"" or the like, what stands at a place, to `out`. */
static const char *describe(const json_t *value, char out[96]) {
  if (json_is_object(value) && json_is_string(json_object_get(value, "type")))
    snprintf(out, 96, "type \"%.64s\"", json_string_value(json_object_get(value, "type")));
  else if (json_is_string(value))
    snprintf(out, 96, "\"%.64s\"", json_string_value(value));
  else
    snprintf(out, 96, "%s", json_kind(value));
  return out;
}

static understudy_status unsupported(const reading *r, const char *field, const json_t *value, const char *expected,
                                     understudy_error *err) {
  char found[96];
  return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: %s is %s, expected %s", r->path, field,
                   describe(value, found), expected);
}

/* Puts a token at its id; every id once, and with `count` tokens in all therefore none left out. */
static understudy_status place_token(reading *r, const char *field, ust_text text, const json_t *id, int32_t type,
                                     understudy_error *err) {
  int shown = (int)UST_MIN(text.size, (size_t)64);
  if (!json_is_integer(id))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: the id of \"%.*s\" is %s, expected an integer", r->path,
                     field, shown, text.data, json_kind(id));
  json_int_t value = json_integer_value(id);
  if (value < 0 || (uint64_t)value >= r->count)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: %s: the id of \"%.*s\" is %lld, expected 0 to %zu without gaps (there are %zu tokens)",
                     r->path, field, shown, text.data, (long long)value, r->count - 1, r->count);
  if (r->tokens[value].data)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: \"%.*s\" and \"%.*s\" both have id %lld", r->path, field,
                     (int)UST_MIN(r->tokens[value].size, (size_t)64), r->tokens[value].data, shown, text.data,
                     (long long)value);
  r->tokens[value] = text;
  r->types[value] = type;
  return UNDERSTUDY_OK;
}

static bool is_end_of_text(ust_text text) {
  return text.size == 13 && memcmp(text.data, "<|endoftext|>", 13) == 0;
}

/* Room for `vocab` and `more` tokens besides, and vocab's entries at their places. */
static understudy_status read_vocab(reading *r, const char *field, json_t *vocab, size_t more, understudy_error *err) {
  if (!json_is_object(vocab))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s is %s, expected an object of tokens and ids", r->path, field,
                     json_kind(vocab));
  r->count = json_object_size(vocab) + more;
  r->tokens = ust_alloc(r->count * sizeof *r->tokens);
  r->types = ust_alloc(r->count * sizeof *r->types);
  if (!r->tokens || !r->types) return ust_error_memory(err, r->count * sizeof *r->tokens, r->path);
  const char *key;
  json_t *id;
  json_object_foreach(vocab, key, id) {
    ust_text text = {key, strlen(key)};
    int32_t type = is_end_of_text(text) ? UST_TOKEN_CONTROL : UST_TOKEN_NORMAL;
    UST_TRY(place_token(r, field, text, id, type, err));
  }
  return UNDERSTUDY_OK;
}

/* ---- tokenizer.json ---- */

static bool is_absent(const json_t *value) {
  return !value || json_is_null(value);
}
static bool is_off(const json_t *value) {
  return is_absent(value) || json_is_false(value);
}
static bool is_blank(const json_t *value) {
  return is_absent(value) || (json_is_string(value) && json_string_length(value) == 0);
}

/* What must be so for the ids to be GPT-2's. */
static understudy_status check_kind(const reading *r, json_t *model, understudy_error *err) {
  json_t *type = json_object_get(model, "type"), *pre = json_object_get(r->root, "pre_tokenizer");
  if (type && !(json_is_string(type) && strcmp(json_string_value(type), "BPE") == 0)) /* old files leave it out */
    return unsupported(r, "model.type", type, "\"BPE\"", err);
  json_t *kind = json_object_get(pre, "type");
  if (!json_is_string(kind) || strcmp(json_string_value(kind), "ByteLevel") != 0)
    return unsupported(r, "pre_tokenizer", pre, "GPT-2's, type \"ByteLevel\"", err);
  if (!is_off(json_object_get(pre, "add_prefix_space")))
    return unsupported(r, "pre_tokenizer.add_prefix_space", json_object_get(pre, "add_prefix_space"), "false", err);
  if (json_object_get(pre, "use_regex") && !json_is_true(json_object_get(pre, "use_regex")))
    return unsupported(r, "pre_tokenizer.use_regex", json_object_get(pre, "use_regex"), "true", err);
  if (!is_absent(json_object_get(r->root, "normalizer")))
    return unsupported(r, "normalizer", json_object_get(r->root, "normalizer"), "null", err);
  json_t *dropout = json_object_get(model, "dropout");
  if (!is_absent(dropout) && !(json_is_number(dropout) && json_number_value(dropout) == 0))
    return unsupported(r, "model.dropout", dropout, "null", err);
  static const char *const blank[][2] = {{"continuing_subword_prefix", "model.continuing_subword_prefix"},
                                         {"end_of_word_suffix", "model.end_of_word_suffix"}};
  static const char *const off[][2] = {{"byte_fallback", "model.byte_fallback"},
                                       {"ignore_merges", "model.ignore_merges"}};
  for (int i = 0; i < 2; i++) {
    if (!is_blank(json_object_get(model, blank[i][0])))
      return unsupported(r, blank[i][1], json_object_get(model, blank[i][0]), "\"\" or null", err);
    if (!is_off(json_object_get(model, off[i][0])))
      return unsupported(r, off[i][1], json_object_get(model, off[i][0]), "false", err);
  }
  return UNDERSTUDY_OK;
}

/* One entry of added_tokens: marks the token of vocab it names, or takes a place of its own. */
static understudy_status read_added(reading *r, size_t index, const json_t *entry, json_t *vocab,
                                    understudy_error *err) {
  const json_t *content = json_object_get(entry, "content"), *id = json_object_get(entry, "id");
  char field[64];
  snprintf(field, sizeof field, "added_tokens[%zu]", index);
  if (!json_is_string(content))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s.content is %s, expected a string", r->path, field,
                     json_kind(content));
  static const char *const flags[] = {"single_word", "lstrip", "rstrip"};
  for (int i = 0; i < 3; i++) {
    snprintf(field, sizeof field, "added_tokens[%zu].%s", index, flags[i]);
    if (!is_off(json_object_get(entry, flags[i])))
      return unsupported(r, field, json_object_get(entry, flags[i]), "false", err);
  }
  snprintf(field, sizeof field, "added_tokens[%zu]", index);
  ust_text text = {json_string_value(content), json_string_length(content)};
  int32_t type = json_is_true(json_object_get(entry, "special")) ? UST_TOKEN_CONTROL : UST_TOKEN_USER;
  const json_t *known = json_object_get(vocab, text.data);
  if (!known) return place_token(r, field, text, id, type, err);
  if (!json_is_integer(id) || !json_equal(known, id))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s: \"%.64s\" has id %lld in model.vocab and %s here", r->path,
                     field, text.data, (long long)json_integer_value(known),
                     json_is_integer(id) ? "another" : json_kind(id));
  r->types[json_integer_value(id)] = type;
  return UNDERSTUDY_OK;
}

static understudy_status read_all_added(reading *r, json_t *added, json_t *vocab, understudy_error *err) {
  size_t more = 0, index;
  json_t *entry;
  if (added && !json_is_array(added))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: added_tokens is %s, expected an array", r->path,
                     json_kind(added));
  json_array_foreach(added, index, entry) {
    const char *content = json_string_value(json_object_get(entry, "content"));
    more += content && !json_object_get(vocab, content);
  }
  UST_TRY(read_vocab(r, "model.vocab", vocab, more, err));
  json_array_foreach(added, index, entry) UST_TRY(read_added(r, index, entry, vocab, err));
  return UNDERSTUDY_OK;
}

/* The text of one merge: "a b", or ["a", "b"], which is written to *join as "a b". */
static bool merge_text(const json_t *merge, char **join, ust_text *text) {
  if (json_is_string(merge)) {
    *text = (ust_text){json_string_value(merge), json_string_length(merge)};
    return true;
  }
  const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
  if (json_array_size(merge) != 2 || !json_is_string(left) || !json_is_string(right)) return false;
  size_t sizes[2] = {json_string_length(left), json_string_length(right)};
  *text = (ust_text){*join, sizes[0] + 1 + sizes[1]};
  memcpy(*join, json_string_value(left), sizes[0]);
  (*join)[sizes[0]] = ' ';
  memcpy(*join + sizes[0] + 1, json_string_value(right), sizes[1]);
  *join += text->size;
  return true;
}

static understudy_status read_merges(reading *r, const json_t *merges, understudy_error *err) {
  if (!json_is_array(merges))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: model.merges is %s, expected an array", r->path,
                     json_kind(merges));
  size_t index, room = 0;
  json_t *merge;
  json_array_foreach(merges, index, merge) {
    if (json_array_size(merge) == 2)
      room += json_string_length(json_array_get(merge, 0)) + 1 + json_string_length(json_array_get(merge, 1));
  }
  r->merge_count = json_array_size(merges);
  r->merges = ust_alloc(r->merge_count * sizeof *r->merges);
  r->joined = ust_alloc(room);
  if (!r->merges || !r->joined) return ust_error_memory(err, r->merge_count * sizeof *r->merges, r->path);
  char *join = r->joined;
  json_array_foreach(merges, index, merge) {
    if (!merge_text(merge, &join, &r->merges[index]))
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: model.merges[%zu] is %s, expected \"a b\" or [\"a\", \"b\"]",
                       r->path, index, json_kind(merge));
  }
  return UNDERSTUDY_OK;
}

static understudy_status read_tokenizer_json(reading *r, understudy_error *err) {
  UST_TRY(parse_file(r, err));
  json_t *model = json_object_get(r->root, "model");
  if (!json_is_object(model))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: model is %s, expected an object", r->path, json_kind(model));
  UST_TRY(check_kind(r, model, err));
  UST_TRY(read_all_added(r, json_object_get(r->root, "added_tokens"), json_object_get(model, "vocab"), err));
  return read_merges(r, json_object_get(model, "merges"), err);
}

/* ---- merges.txt: after a "#version" line, a merge a line, in rank order ---- */

static ust_text next_line(const char **at, const char *end) {
  const char *newline = memchr(*at, '\n', (size_t)(end - *at));
  ust_text line = {*at, (size_t)((newline ? newline : end) - *at)};
  *at = newline ? newline + 1 : end;
  if (line.size && line.data[line.size - 1] == '\r') line.size--;
  return line;
}

static understudy_status read_merges_txt(reading *r, const char *path, understudy_error *err) {
  size_t size, lines = 1;
  UST_TRY(ust_file_slurp(path, FILE_LIMIT, &r->joined, &size, err));
  const char *at = r->joined, *end = at + size;
  for (size_t i = 0; i < size; i++) lines += r->joined[i] == '\n';
  r->merges = ust_alloc(lines * sizeof *r->merges);
  if (!r->merges) return ust_error_memory(err, lines * sizeof *r->merges, path);
  for (size_t i = 0; at < end; i++) {
    ust_text line = next_line(&at, end);
    bool version = i == 0 && line.size >= 8 && memcmp(line.data, "#version", 8) == 0;
    if (line.size && !version) r->merges[r->merge_count++] = line;
  }
  if (r->merge_count == 0 && r->count > 257) /* single bytes and the end of text need none */
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found no merges, expected those of %zu tokens", path, r->count);
  return UNDERSTUDY_OK;
}

/* ---- a directory ---- */

/* Adds unused tokens "[PADn]" up to `count`. */
static understudy_status pad(reading *r, size_t count, understudy_error *err) {
  enum { NAME = 32 };
  if (count <= r->count) return UNDERSTUDY_OK;
  ust_text *tokens = realloc(r->tokens, count * sizeof *tokens);
  if (tokens) r->tokens = tokens;
  int32_t *types = realloc(r->types, count * sizeof *types);
  if (types) r->types = types;
  r->padding = ust_alloc((count - r->count) * NAME);
  if (!tokens || !types || !r->padding) return ust_error_memory(err, count * sizeof *tokens, r->path);
  for (char *name = r->padding; r->count < count; r->count++, name += NAME) {
    r->tokens[r->count] = (ust_text){name, (size_t)snprintf(name, NAME, "[PAD%zu]", r->count)};
    r->types[r->count] = UST_TOKEN_UNUSED;
  }
  return UNDERSTUDY_OK;
}

/* What the model says of its tokens. */
typedef struct model_tokens {
  int count, bos, eos;
} model_tokens;

/* `source` names the files in errors about how tokens and merges fit together. */
static understudy_status create(reading *r, const char *source, model_tokens model, ust_tokenizer **tokenizer,
                                understudy_error *err) {
  int end = -1;
  for (size_t i = 0; i < r->count && end < 0; i++)
    if (is_end_of_text(r->tokens[i])) end = (int)i;
  UST_TRY(pad(r, (size_t)model.count, err));
  const ust_vocabulary vocabulary = {.tokens = r->tokens,
                                     .types = r->types,
                                     .count = r->count,
                                     .merges = r->merges,
                                     .merge_count = r->merge_count,
                                     .bos = model.bos >= 0 ? model.bos : end,
                                     .eos = model.eos >= 0 ? model.eos : end};
  return ust_tokenizer_create(&vocabulary, source, tokenizer, err);
}

static understudy_status load_tokenizer_json(const char *path, model_tokens model, ust_tokenizer **tokenizer,
                                             understudy_error *err) {
  reading r = {.path = path};
  understudy_status status = read_tokenizer_json(&r, err);
  if (status == UNDERSTUDY_OK) status = create(&r, path, model, tokenizer, err);
  reading_free(&r);
  return status;
}

static understudy_status load_vocab_merges(const char *directory, const char *vocab, const char *merges,
                                           model_tokens model, ust_tokenizer **tokenizer, understudy_error *err) {
  reading r = {.path = vocab};
  char *source = NULL;
  understudy_status status = join_path(directory, "vocab.json + merges.txt", &source, err);
  if (status == UNDERSTUDY_OK) status = parse_file(&r, err);
  if (status == UNDERSTUDY_OK) status = read_vocab(&r, "vocabulary", r.root, 0, err);
  if (status == UNDERSTUDY_OK) status = read_merges_txt(&r, merges, err);
  if (status == UNDERSTUDY_OK) status = create(&r, source, model, tokenizer, err);
  free(source);
  reading_free(&r);
  return status;
}

static bool exists(const char *path) {
  struct stat info;
  return stat(path, &info) == 0;
}

understudy_status ust_tokenizer_load(const char *directory, ust_tokenizer **tokenizer, understudy_error *err) {
  return ust_tokenizer_load_for(directory, 0, -1, -1, tokenizer, err);
}

understudy_status ust_tokenizer_load_for(const char *directory, int count, int bos, int eos, ust_tokenizer **tokenizer,
                                         understudy_error *err) {
  const model_tokens model = {count, bos, eos};
  *tokenizer = NULL;
  if (!exists(directory)) return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot open: %s", directory, strerror(errno));
  if (!ust_is_directory(directory))
    return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: not a directory, expected a Hugging Face model directory",
                     directory);
  char *json = NULL, *vocab = NULL, *merges = NULL;
  understudy_status status = join_path(directory, "tokenizer.json", &json, err);
  if (status == UNDERSTUDY_OK) status = join_path(directory, "vocab.json", &vocab, err);
  if (status == UNDERSTUDY_OK) status = join_path(directory, "merges.txt", &merges, err);
  if (status != UNDERSTUDY_OK) {
  } else if (exists(json)) {
    status = load_tokenizer_json(json, model, tokenizer, err);
  } else if (exists(vocab) && exists(merges)) {
    status = load_vocab_merges(directory, vocab, merges, model, tokenizer, err);
  } else {
    status = ust_error(err, UNDERSTUDY_ERROR_IO,
                       "%s: no tokenizer here, expected tokenizer.json or both vocab.json and merges.txt", directory);
  }
  free(json);
  free(vocab);
  free(merges);
  return status;
}
