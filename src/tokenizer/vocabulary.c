/* Building a tokenizer from a vocabulary: copies the texts, turns the byte-level alphabet back into raw bytes,
 * and fills the tables that encoding reads: bytes -> token, (left, right) -> merge, the added tokens.
 *
 * Nothing in a vocabulary is trusted. What could make text ambiguous is refused here (two tokens of one text, a
 * merge that makes a control token, a byte without a token), so that encoding cannot fail on any text and
 * decoding gives back exactly the bytes that went in. */
#include <stdlib.h>

#include "tokenizer/tokenizer_internal.h"

/* printf("%.*s") of a text, cut to a length that leaves room for the rest of an error. */
#define SHOW(text) (int)UST_MIN((text).size, (size_t)64), (text).data

static const char end_of_text[] = "<|endoftext|>";

/* ---- the byte-level alphabet: printable Latin-1 stands for itself, every other byte for U+0100 and up ---- */

enum { ALPHABET = 256 + 68 };

static void make_alphabet(int16_t byte_of[ALPHABET]) {
  for (int i = 0; i < ALPHABET; i++) byte_of[i] = -1;
  int next = 256;
  for (int byte = 0; byte < 256; byte++) {
    bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    byte_of[printable ? byte : next++] = (int16_t)byte;
  }
}

/* Writes the raw bytes of `text` to `out` (room for text.size); false when a character is not in the alphabet. */
static bool alphabet_to_bytes(const int16_t byte_of[ALPHABET], ust_text text, char *out, size_t *size) {
  size_t used = 0;
  for (size_t i = 0; i < text.size; i++) {
    unsigned point = (unsigned char)text.data[i];
    if (point >= 0x80) { /* all of the alphabet beyond ASCII takes two bytes of UTF-8 */
      if (point < 0xC2 || point > 0xC5 || i + 1 == text.size) return false;
      unsigned low = (unsigned char)text.data[++i];
      if ((low & 0xC0) != 0x80) return false;
      point = (point & 0x1F) << 6 | (low & 0x3F);
    }
    if (point >= ALPHABET || byte_of[point] < 0) return false;
    out[used++] = (char)byte_of[point];
  }
  *size = used;
  return true;
}

/* ---- tables ---- */

/* A power of two at least twice `count`. */
static size_t table_slots(size_t count) {
  size_t slots = 16;
  while (slots < 2 * count) slots *= 2;
  return slots;
}

static size_t word_slot(const ust_tokenizer *tokenizer, const char *bytes, size_t size) {
  uint64_t hash = ust_hash(UST_HASH_START, bytes, size);
  size_t slot = (hash ^ hash >> 32) & tokenizer->word_mask;
  for (int32_t id; (id = tokenizer->words[slot]) >= 0; slot = (slot + 1) & tokenizer->word_mask) {
    ust_text raw = ust_token_raw(tokenizer, id);
    if (raw.size == size && memcmp(raw.data, bytes, size) == 0) break;
  }
  return slot;
}

int32_t ust_tokenizer_word(const ust_tokenizer *tokenizer, const char *bytes, size_t size) {
  return tokenizer->words[word_slot(tokenizer, bytes, size)];
}

static size_t pair_slot(const ust_tokenizer *tokenizer, uint64_t pair) {
  size_t slot = (pair * 0x9E3779B97F4A7C15u >> 32) & tokenizer->pair_mask;
  while (tokenizer->pairs[slot].merged >= 0 && tokenizer->pairs[slot].pair != pair)
    slot = (slot + 1) & tokenizer->pair_mask;
  return slot;
}

const ust_merge *ust_tokenizer_pair(const ust_tokenizer *tokenizer, int32_t left, int32_t right) {
  const ust_merge *merge = &tokenizer->pairs[pair_slot(tokenizer, (uint64_t)left << 32 | (uint32_t)right)];
  return merge->merged >= 0 ? merge : NULL;
}

/* ---- building, step by step ---- */

static understudy_status allocate(ust_tokenizer *t, const ust_vocabulary *v, const char *source,
                                  understudy_error *err) {
  if (v->count < 256 || v->count > INT32_MAX / 2)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: vocabulary of %zu tokens, expected 256 to %d", source, v->count,
                     INT32_MAX / 2);
  if (v->merge_count > INT32_MAX / 2)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %zu merges, expected at most %d", source, v->merge_count,
                     INT32_MAX / 2);
  size_t words = table_slots(v->count), pairs = table_slots(v->merge_count);
  t->word_mask = words - 1;
  t->pair_mask = pairs - 1;
  t->tokens = ust_alloc(v->count * sizeof *t->tokens);
  t->types = ust_alloc(v->count * sizeof *t->types);
  t->merges = ust_alloc(v->merge_count * sizeof *t->merges);
  t->start = ust_alloc((v->count + 1) * sizeof *t->start);
  t->whole = ust_alloc(v->count * sizeof *t->whole);
  t->added = ust_alloc(v->count * sizeof *t->added);
  t->words = ust_alloc(words * sizeof *t->words);
  t->pairs = ust_alloc(pairs * sizeof *t->pairs);
  if (!t->tokens || !t->types || !t->merges || !t->start || !t->whole || !t->added || !t->words || !t->pairs)
    return ust_error_memory(err, v->count * sizeof *t->tokens, "a tokenizer");
  for (size_t i = 0; i < words; i++) t->words[i] = -1;
  for (size_t i = 0; i < pairs; i++) t->pairs[i].merged = -1;
  return UNDERSTUDY_OK;
}

static bool text_total(const ust_text *texts, size_t count, uint64_t *total) {
  for (size_t i = 0; i < count; i++)
    if (!ust_add(*total, texts[i].size, total) || *total > UINT32_MAX) return false;
  return true;
}

static char *copy_texts(char *to, const ust_text *from, size_t count, ust_text *out) {
  for (size_t i = 0; i < count; i++) {
    if (from[i].size) memcpy(to, from[i].data, from[i].size);
    out[i] = (ust_text){to, from[i].size};
    to += from[i].size;
  }
  return to;
}

static understudy_status copy_vocabulary(ust_tokenizer *t, const ust_vocabulary *v, const char *source,
                                         understudy_error *err) {
  uint64_t token_bytes = 0, total;
  bool fits = text_total(v->tokens, v->count, &token_bytes);
  total = token_bytes;
  if (!fits || !text_total(v->merges, v->merge_count, &total))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: the texts of the vocabulary take over 4 GiB", source);
  t->texts = ust_alloc(total);
  t->bytes = ust_alloc(token_bytes);
  if (!t->texts || !t->bytes) return ust_error_memory(err, total, "token texts");
  copy_texts(copy_texts(t->texts, v->tokens, v->count, t->tokens), v->merges, v->merge_count, t->merges);
  for (size_t i = 0; i < v->count; i++) {
    ust_text text = t->tokens[i];
    bool end = text.size == sizeof end_of_text - 1 && memcmp(text.data, end_of_text, text.size) == 0;
    t->types[i] = v->types ? v->types[i] : end ? UST_TOKEN_CONTROL : UST_TOKEN_NORMAL;
  }
  t->vocabulary = (ust_vocabulary){t->tokens, t->types, v->count, t->merges, v->merge_count, v->bos, v->eos};
  const int ends[] = {v->bos, v->eos};
  for (int i = 0; i < 2; i++)
    if (ends[i] < -1 || (ends[i] >= 0 && (size_t)ends[i] >= v->count))
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: %s token id %d, expected one of the %zu tokens", source,
                       i ? "eos" : "bos", ends[i], v->count);
  return UNDERSTUDY_OK;
}

/* Raw bytes of every token, and the table that finds normal tokens by them. */
static understudy_status index_tokens(ust_tokenizer *t, const int16_t byte_of[ALPHABET], const char *source,
                                      understudy_error *err) {
  size_t used = 0;
  for (size_t id = 0; id < t->vocabulary.count; id++) {
    ust_text text = t->tokens[id];
    size_t size = text.size;
    t->start[id] = used;
    if (size == 0) return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: token %zu has an empty text", source, id);
    if (t->types[id] != UST_TOKEN_NORMAL) {
      if (t->types[id] < UST_TOKEN_CONTROL || t->types[id] > UST_TOKEN_UNUSED)
        return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                         "%s: token %zu \"%.*s\" has type %d, expected 1 (normal), 3 (control), 4 (user defined) or "
                         "5 (unused)",
                         source, id, SHOW(text), t->types[id]);
      memcpy(t->bytes + used, text.data, size);
    } else if (!alphabet_to_bytes(byte_of, text, t->bytes + used, &size)) {
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: token %zu \"%.*s\" is not written in the byte-level alphabet of GPT-2", source, id,
                       SHOW(text));
    }
    t->start[id + 1] = used += size;
    if (t->types[id] != UST_TOKEN_NORMAL) continue;
    size_t slot = word_slot(t, t->bytes + used - size, size);
    if (t->words[slot] >= 0)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: tokens %d and %zu are both \"%.*s\"", source, t->words[slot],
                       id, SHOW(text));
    t->words[slot] = (int32_t)id;
  }
  for (int byte = 0; byte < 256; byte++) {
    char one = (char)byte;
    t->byte_token[byte] = ust_tokenizer_word(t, &one, 1);
    if (t->byte_token[byte] < 0)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: no normal token for the single byte 0x%02X, expected one for each of the 256", source,
                       byte);
  }
  return UNDERSTUDY_OK;
}

/* One merge "left right" into the pair table; `scratch` has room for its text. */
static understudy_status index_merge(ust_tokenizer *t, size_t rank, const int16_t byte_of[ALPHABET], char *scratch,
                                     const char *source, understudy_error *err) {
  ust_text text = t->merges[rank];
  const char *space = memchr(text.data, ' ', text.size);
  size_t left_size = space ? (size_t)(space - text.data) : 0, right_size = space ? text.size - left_size - 1 : 0;
  if (left_size == 0 || right_size == 0 || memchr(space + 1, ' ', right_size))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                     "%s: merge %zu is \"%.*s\", expected two tokens with one space between them", source, rank,
                     SHOW(text));
  int32_t ids[3] = {-1, -1, -1}; /* left, right, both together */
  ust_text left = {text.data, left_size}, right = {space + 1, right_size};
  if (alphabet_to_bytes(byte_of, left, scratch, &left_size)) ids[0] = ust_tokenizer_word(t, scratch, left_size);
  if (alphabet_to_bytes(byte_of, right, scratch + left_size, &right_size))
    ids[1] = ust_tokenizer_word(t, scratch + left_size, right_size);
  if (ids[0] >= 0 && ids[1] >= 0) ids[2] = ust_tokenizer_word(t, scratch, left_size + right_size);
  static const char *const parts[] = {"left part", "right part", "result"};
  for (int i = 0; i < 3; i++)
    if (ids[i] < 0)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT,
                       "%s: merge %zu \"%.*s\": its %s is no normal token of the "
                       "vocabulary",
                       source, rank, SHOW(text), parts[i]);
  uint64_t pair = (uint64_t)ids[0] << 32 | (uint32_t)ids[1];
  ust_merge *merge = &t->pairs[pair_slot(t, pair)];
  if (merge->merged >= 0)
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: merges %u and %zu are both \"%.*s\"", source, merge->rank, rank,
                     SHOW(text));
  *merge = (ust_merge){pair, (uint32_t)rank, ids[2]};
  return UNDERSTUDY_OK;
}

static understudy_status index_merges(ust_tokenizer *t, const int16_t byte_of[ALPHABET], const char *source,
                                      understudy_error *err) {
  size_t longest = 0;
  for (size_t i = 0; i < t->vocabulary.merge_count; i++) longest = UST_MAX(longest, t->merges[i].size);
  char *scratch = ust_alloc(longest);
  if (!scratch) return ust_error_memory(err, longest, "merges");
  understudy_status status = UNDERSTUDY_OK;
  for (size_t i = 0; i < t->vocabulary.merge_count && status == UNDERSTUDY_OK; i++)
    status = index_merge(t, i, byte_of, scratch, source, err);
  ust_free(scratch);
  return status;
}

static int compare_raw(const void *a, const void *b, void *tokenizer) {
  ust_text x = ust_token_raw(tokenizer, *(const int32_t *)a), y = ust_token_raw(tokenizer, *(const int32_t *)b);
  int order = memcmp(x.data, y.data, UST_MIN(x.size, y.size));
  return order ? order : (x.size > y.size) - (x.size < y.size);
}

/* Control and user tokens, sorted, so that the longest one that starts at a position is found by narrowing. */
static understudy_status index_added(ust_tokenizer *t, const char *source, understudy_error *err) {
  enum { LONGEST = 256 }; /* keeps the search linear in the text */
  for (size_t id = 0; id < t->vocabulary.count; id++) {
    if (t->types[id] != UST_TOKEN_CONTROL && t->types[id] != UST_TOKEN_USER) continue;
    ust_text raw = ust_token_raw(t, (int32_t)id);
    int32_t word = ust_tokenizer_word(t, raw.data, raw.size);
    if (word >= 0)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: added token %zu \"%.*s\" has the text of normal token %d",
                       source, id, SHOW(raw), word);
    if (raw.size > LONGEST)
      return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                       "%s: added token %zu \"%.*s\" is %zu bytes long, expected at most %d", source, id, SHOW(raw),
                       raw.size, LONGEST);
    bool user = t->types[id] == UST_TOKEN_USER;
    t->has_user |= user;
    t->added_first[(unsigned char)raw.data[0]] |= user ? UST_ADDED_USER : UST_ADDED_CONTROL;
    t->added[t->added_count++] = (int32_t)id;
  }
  qsort_r(t->added, t->added_count, sizeof *t->added, compare_raw, t);
  for (size_t i = 1; i < t->added_count; i++)
    if (compare_raw(&t->added[i - 1], &t->added[i], t) == 0)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: added tokens %d and %d are both \"%.*s\"", source,
                       t->added[i - 1], t->added[i], SHOW(ust_token_raw(t, t->added[i])));
  return UNDERSTUDY_OK;
}

/* Most pieces of a text are single tokens. Which tokens are what merging their own bytes gives is settled once,
 * here, so that encoding finds those pieces with one look-up. */
static understudy_status find_whole(ust_tokenizer *t, understudy_error *err) {
  ust_bpe bpe = {0};
  ust_buffer ids = {0};
  understudy_status status = UNDERSTUDY_OK;
  for (size_t id = 0; id < t->vocabulary.count && status == UNDERSTUDY_OK; id++) {
    if (t->types[id] != UST_TOKEN_NORMAL) continue;
    ust_text raw = ust_token_raw(t, (int32_t)id);
    ids.size = 0;
    status = ust_tokenizer_merge(t, &bpe, raw.data, raw.size, false, &ids, err);
    t->whole[id] = status == UNDERSTUDY_OK && ids.size == sizeof(int32_t);
  }
  ust_tokenizer_bpe_free(&bpe);
  ust_buffer_free(&ids);
  return status;
}

static understudy_status build(ust_tokenizer *t, const ust_vocabulary *vocabulary, const char *source,
                               understudy_error *err) {
  int16_t byte_of[ALPHABET];
  make_alphabet(byte_of);
  UST_TRY(allocate(t, vocabulary, source, err));
  UST_TRY(copy_vocabulary(t, vocabulary, source, err));
  UST_TRY(index_tokens(t, byte_of, source, err));
  UST_TRY(index_merges(t, byte_of, source, err));
  UST_TRY(index_added(t, source, err));
  UST_TRY(ust_tokenizer_compile(t, err));
  return find_whole(t, err);
}

understudy_status ust_tokenizer_create(const ust_vocabulary *vocabulary, const char *source, ust_tokenizer **tokenizer,
                                       understudy_error *err) {
  *tokenizer = NULL;
  ust_tokenizer *t = ust_alloc(sizeof *t);
  if (!t) return ust_error_memory(err, sizeof *t, "a tokenizer");
  understudy_status status = build(t, vocabulary, source, err);
  if (status != UNDERSTUDY_OK)
    ust_tokenizer_free(t);
  else
    *tokenizer = t;
  return status;
}

void ust_tokenizer_free(ust_tokenizer *tokenizer) {
  if (!tokenizer) return;
  void *const parts[] = {tokenizer->tokens, tokenizer->merges, tokenizer->types, tokenizer->texts, tokenizer->bytes,
                         tokenizer->start,  tokenizer->pairs,  tokenizer->words, tokenizer->whole, tokenizer->added};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) ust_free(parts[i]);
  pcre2_code_free(tokenizer->pattern);
  ust_free(tokenizer);
}

/* ---- what it knows ---- */

const ust_vocabulary *ust_tokenizer_vocabulary(const ust_tokenizer *tokenizer) {
  return &tokenizer->vocabulary;
}

uint64_t ust_tokenizer_fingerprint(const ust_tokenizer *tokenizer) {
  const ust_vocabulary *v = &tokenizer->vocabulary;
  const uint64_t sizes[] = {v->count, v->merge_count};
  uint64_t hash = ust_hash(UST_HASH_START, sizes, sizeof sizes);
  for (size_t i = 0; i < v->count + v->merge_count; i++) {
    ust_text text = i < v->count ? v->tokens[i] : v->merges[i - v->count];
    uint64_t size = text.size; /* sizes first, so that where one text ends and the next starts counts */
    hash = ust_hash(ust_hash(hash, &size, sizeof size), text.data, text.size);
  }
  return ust_hash(hash, v->types, v->count * sizeof *v->types);
}

const char *ust_tokenizer_bytes(const ust_tokenizer *tokenizer, int32_t id, size_t *length) {
  if (id < 0 || (size_t)id >= tokenizer->vocabulary.count) {
    *length = 0;
    return NULL;
  }
  ust_text raw = ust_token_raw(tokenizer, id);
  *length = raw.size;
  return raw.data;
}
