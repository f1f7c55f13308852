/* Text to token ids, as GPT-2 does it (Radford et al. 2019; Sennrich et al. 2016 for the merging): added tokens
 * are cut out first, a pattern cuts the rest into pieces, and each piece's bytes are merged, lowest rank first
 * and leftmost among equals.
 *
 * Everything is near-linear in the text: the pattern never steps back more than one character, and a piece of
 * n bytes is merged through a heap in n log n. */
#include <stdlib.h>

#include "tokenizer/tokenizer_internal.h"

/* ---- pieces ---- */

/* GPT-2's pattern, with its three classes of characters pinned to Unicode 16, as the reference (Hugging Face
 * tokenizers) has them: PCRE2 10.42 knows Unicode 14, so what was added since stands here by number. White space is
 * Unicode's White_Space; PCRE2's own \s also holds U+180E. */
#define SPACE "\\x09-\\x0D\\x20\\x85\\xA0\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define LETTER                                                                                                         \
  "\\p{L}\\x{1C89}-\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}\\x{10D4A}-\\x{10D65}"          \
  "\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{1123F}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}"           \
  "\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}\\x{11BC0}-\\x{11BE0}\\x{11F02}\\x{11F04}-\\x{11F10}"            \
  "\\x{11F12}-\\x{11F33}\\x{1342F}\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}\\x{16100}-\\x{1611D}"                     \
  "\\x{16D40}-\\x{16D6C}\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1DF25}-\\x{1DF2A}\\x{1E030}-\\x{1E06D}"                      \
  "\\x{1E4D0}-\\x{1E4EB}\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}"
#define NUMBER                                                                                                         \
  "\\p{N}\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}\\x{11F50}-\\x{11F59}"                         \
  "\\x{16130}-\\x{16139}\\x{16D70}-\\x{16D79}\\x{1CCF0}-\\x{1CCF9}\\x{1D2C0}-\\x{1D2D3}\\x{1E4F0}-\\x{1E4F9}"          \
  "\\x{1E5F1}-\\x{1E5FA}"
static const char pattern[] = "'(?:[stmd]|re|ve|ll)"
                              "| ?[" LETTER "]++"
                              "| ?[" NUMBER "]++"
                              "| ?[^" SPACE LETTER NUMBER "]++"
                              "|[" SPACE "]+(?![^" SPACE "])"
                              "|[" SPACE "]++";

understudy_status ust_tokenizer_compile(ust_tokenizer *tokenizer, understudy_error *err) {
  int code = 0;
  PCRE2_SIZE where = 0;
  tokenizer->pattern = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED,
                                     &code, &where, NULL);
  if (!tokenizer->pattern) {
    PCRE2_UCHAR text[128] = "";
    pcre2_get_error_message(code, text, sizeof text);
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "PCRE2 refuses the pre-tokenizer pattern: %s", (char *)text);
  }
  pcre2_jit_compile(tokenizer->pattern, PCRE2_JIT_COMPLETE); /* without it the interpreter does the same, slower */
  return UNDERSTUDY_OK;
}

/* Bytes of the well-formed UTF-8 character at text[0], 0: none (Unicode 15, table 3-7). */
static size_t utf8_length(const unsigned char *text, size_t size) {
  unsigned lead = text[0];
  if (lead < 0x80) return 1;
  size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || size < length) return 0;
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (text[1] < low || text[1] > high) return 0;
  for (size_t i = 2; i < length; i++)
    if ((text[i] & 0xC0) != 0x80) return 0;
  return length;
}

/* Bytes that are not UTF-8 count as symbols (neither letter, number nor space). *subject becomes `text` itself,
 * or a copy (to be freed) of the same length in which the control character 0x01, just such a symbol, stands for
 * each of those bytes; pieces are then cut from `text` at the same places. */
static understudy_status make_subject(const char *text, size_t size, const char **subject, char **copy,
                                      understudy_error *err) {
  *subject = text;
  *copy = NULL;
  for (size_t i = 0; i < size;) {
    size_t length = utf8_length((const unsigned char *)text + i, size - i);
    if (length == 0) {
      if (!*copy) {
        *copy = ust_alloc(size);
        if (!*copy) return ust_error_memory(err, size, "a text");
        *subject = memcpy(*copy, text, size);
      }
      (*copy)[i] = 0x01;
      length = 1;
    }
    i += length;
  }
  return UNDERSTUDY_OK;
}

/* ---- merging ---- */

void ust_tokenizer_bpe_free(ust_bpe *bpe) {
  free(bpe->symbol);
  free(bpe->next);
  free(bpe->previous);
  free(bpe->heap);
  *bpe = (ust_bpe){0};
}

static understudy_status reserve(ust_bpe *bpe, size_t size, understudy_error *err) {
  if (size <= bpe->capacity) return UNDERSTUDY_OK;
  size_t capacity = UST_MAX(UST_MAX(size, 2 * bpe->capacity), 64);
  ust_tokenizer_bpe_free(bpe);
  bpe->symbol = malloc(capacity * sizeof *bpe->symbol);
  bpe->next = malloc(capacity * sizeof *bpe->next);
  bpe->previous = malloc(capacity * sizeof *bpe->previous);
  bpe->heap = malloc(2 * capacity * sizeof *bpe->heap);
  if (!bpe->symbol || !bpe->next || !bpe->previous || !bpe->heap)
    return ust_error_memory(err, capacity * 28, "merging a piece of text");
  bpe->capacity = capacity;
  return UNDERSTUDY_OK;
}

static void heap_push(uint64_t *heap, size_t *count, uint64_t value) {
  size_t i = (*count)++;
  for (; i > 0 && heap[(i - 1) / 2] > value; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
  heap[i] = value;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count) {
  uint64_t least = heap[0], moved = heap[--*count];
  size_t i = 0;
  for (size_t child; (child = 2 * i + 1) < *count; i = child) {
    if (child + 1 < *count && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= moved) break;
    heap[i] = heap[child];
  }
  heap[i] = moved;
  return least;
}

/* Puts the merge of the symbols at `left` and `right` on the heap, if they have one. */
static void push_pair(const ust_tokenizer *tokenizer, ust_bpe *bpe, size_t *count, size_t left, size_t right) {
  const ust_merge *merge = ust_tokenizer_pair(tokenizer, bpe->symbol[left], bpe->symbol[right]);
  if (merge) heap_push(bpe->heap, count, (uint64_t)merge->rank << 32 | left);
}

/* Merges until no neighbours merge. Each merge takes one entry off the heap and adds at most two, so that twice
 * the piece's size is room enough. An entry whose symbols have changed since is skipped: its rank is no longer
 * that of the pair found at its place. */
static void merge_symbols(const ust_tokenizer *tokenizer, ust_bpe *bpe, size_t size) {
  size_t count = 0;
  for (size_t i = 0; i + 1 < size; i++) push_pair(tokenizer, bpe, &count, i, i + 1);
  while (count) {
    uint64_t entry = heap_pop(bpe->heap, &count);
    size_t left = entry & UINT32_MAX, right = bpe->next[left];
    if (bpe->symbol[left] < 0 || right >= size) continue;
    const ust_merge *merge = ust_tokenizer_pair(tokenizer, bpe->symbol[left], bpe->symbol[right]);
    if (!merge || merge->rank != entry >> 32) continue;
    size_t after = bpe->next[right];
    bpe->symbol[left] = merge->merged;
    bpe->symbol[right] = -1;
    bpe->next[left] = (uint32_t)after;
    if (after < size) {
      bpe->previous[after] = (uint32_t)left;
      push_pair(tokenizer, bpe, &count, left, after);
    }
    if (left > 0) push_pair(tokenizer, bpe, &count, bpe->previous[left], left);
  }
}

static understudy_status append_id(ust_buffer *ids, int32_t id, understudy_error *err) {
  return ust_buffer_append(ids, &id, sizeof id) ? UNDERSTUDY_OK
                                                : ust_error_memory(err, 2 * ids->capacity + sizeof id, "token ids");
}

understudy_status ust_tokenizer_merge(const ust_tokenizer *tokenizer, ust_bpe *bpe, const char *piece, size_t size,
                                      bool look, ust_buffer *ids, understudy_error *err) {
  if (size >= UINT32_MAX)
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "a word of %zu bytes, expected less than 4 GiB", size);
  int32_t word = look ? ust_tokenizer_word(tokenizer, piece, size) : -1;
  if (word >= 0 && tokenizer->whole[word]) return append_id(ids, word, err);
  UST_TRY(reserve(bpe, size, err));
  for (size_t i = 0; i < size; i++) {
    bpe->symbol[i] = tokenizer->byte_token[(unsigned char)piece[i]];
    bpe->next[i] = (uint32_t)i + 1;
    bpe->previous[i] = (uint32_t)i - 1;
  }
  merge_symbols(tokenizer, bpe, size);
  for (size_t i = 0; i < size; i = bpe->next[i]) UST_TRY(append_id(ids, bpe->symbol[i], err));
  return UNDERSTUDY_OK;
}

/* ---- text ---- */

/* What one call of encode works with. */
typedef struct work {
  const ust_tokenizer *tokenizer;
  pcre2_match_data *match;
  ust_bpe bpe;
  ust_buffer ids;
} work;

static understudy_status encode_pieces(work *w, const char *text, const char *subject, size_t size,
                                       understudy_error *err) {
  for (size_t at = 0; at < size;) {
    int found = pcre2_match(w->tokenizer->pattern, (PCRE2_SPTR)subject, size, at, PCRE2_NO_UTF_CHECK, w->match, NULL);
    size_t end = found > 0 ? pcre2_get_ovector_pointer(w->match)[1] : at;
    if (end <= at) { /* the pattern matches any character, so only a limit of PCRE2 can lead here */
      PCRE2_UCHAR reason[128] = "";
      pcre2_get_error_message(found, reason, sizeof reason);
      return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "cutting text into words failed at byte %zu of %zu: %s", at,
                       size, (char *)reason);
    }
    UST_TRY(ust_tokenizer_merge(w->tokenizer, &w->bpe, text + at, end - at, true, &w->ids, err));
    at = end;
  }
  return UNDERSTUDY_OK;
}

/* Text without added tokens. */
static understudy_status encode_text(work *w, const char *text, size_t size, understudy_error *err) {
  const char *subject;
  char *copy;
  UST_TRY(make_subject(text, size, &subject, &copy, err));
  understudy_status status = encode_pieces(w, text, subject, size, err);
  ust_free(copy);
  return status;
}

/* First of added[low, high), which agree in their first `depth` bytes, whose next byte is at least `byte`. */
static size_t lower_bound(const ust_tokenizer *t, size_t low, size_t high, size_t depth, int byte) {
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    ust_text raw = ust_token_raw(t, t->added[middle]);
    int here = depth < raw.size ? (unsigned char)raw.data[depth] : -1;
    if (here < byte)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* The longest added token that `text` starts with, -1: none. */
static int32_t added_at(const ust_tokenizer *t, const char *text, size_t size, bool special) {
  int32_t longest = -1;
  size_t low = 0, high = t->added_count;
  for (size_t depth = 0; depth < size && low < high; depth++) {
    int byte = (unsigned char)text[depth];
    low = lower_bound(t, low, high, depth, byte);
    high = lower_bound(t, low, high, depth, byte + 1);
    if (low == high) break;
    int32_t id = t->added[low]; /* the shortest of them comes first */
    bool complete = t->start[id + 1] - t->start[id] == depth + 1;
    if (complete && (special || t->types[id] == UST_TOKEN_USER)) longest = id;
  }
  return longest;
}

/* Cuts out added tokens, leftmost and longest first, and encodes what lies between. */
static understudy_status encode_all(work *w, const char *text, size_t size, bool special, understudy_error *err) {
  const ust_tokenizer *t = w->tokenizer;
  int wanted = UST_ADDED_USER | (special ? UST_ADDED_CONTROL : 0);
  size_t done = 0;
  for (size_t at = 0; at < size && (special || t->has_user);) {
    int32_t id = t->added_first[(unsigned char)text[at]] & wanted ? added_at(t, text + at, size - at, special) : -1;
    if (id < 0) {
      at++;
      continue;
    }
    UST_TRY(encode_text(w, text + done, at - done, err));
    UST_TRY(append_id(&w->ids, id, err));
    done = at += t->start[id + 1] - t->start[id];
  }
  return encode_text(w, text + done, size - done, err);
}

understudy_status ust_tokenizer_encode(const ust_tokenizer *tokenizer, const char *text, size_t length, bool special,
                                       int32_t **ids, size_t *count, understudy_error *err) {
  *ids = NULL;
  *count = 0;
  work w = {.tokenizer = tokenizer, .match = pcre2_match_data_create(1, NULL)};
  bool ready = w.match && append_id(&w.ids, 0, NULL) == UNDERSTUDY_OK; /* so that an empty result is a block too */
  w.ids.size = 0;
  understudy_status status =
      ready ? encode_all(&w, text ? text : "", length, special, err) : ust_error_memory(err, length, "token ids");
  pcre2_match_data_free(w.match);
  ust_tokenizer_bpe_free(&w.bpe);
  if (status != UNDERSTUDY_OK) {
    ust_buffer_free(&w.ids);
    return status;
  }
  *ids = (int32_t *)(void *)w.ids.data;
  *count = w.ids.size / sizeof(int32_t);
  return UNDERSTUDY_OK;
}
