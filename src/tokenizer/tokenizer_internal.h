/* tokenizer, inside: the tables that creating builds and encoding reads.
 *
 * Everything is keyed by raw bytes: the byte-level alphabet exists only in files, and is left behind when a
 * vocabulary is read. */
#ifndef UST_TOKENIZER_INTERNAL_H
#define UST_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "tokenizer/tokenizer.h"

/* One merge in the pair table: tokens left and right become `merged`. An empty slot has merged = -1. */
typedef struct ust_merge {
  uint64_t pair; /* left << 32 | right */
  uint32_t rank; /* lower merges first */
  int32_t merged;
} ust_merge;

struct ust_tokenizer {
  ust_vocabulary vocabulary;
  ust_text *tokens, *merges; /* what vocabulary points to */
  int32_t *types;
  char *texts; /* what tokens and merges point to */

  char *bytes;   /* raw bytes of all tokens, one after the other */
  size_t *start; /* [count+1] where each token's bytes start */
  int32_t byte_token[256];

  ust_merge *pairs; /* open addressing, pair_mask+1 slots */
  size_t pair_mask;
  int32_t *words; /* raw bytes -> normal token, open addressing, word_mask+1 slots, -1 is empty */
  size_t word_mask;
  bool *whole; /* [count] merging the token's bytes ends in this very token */

  int32_t *added; /* control and user tokens, sorted by bytes */
  size_t added_count;
  uint8_t added_first[256]; /* by first byte: 1 some control token, 2 some user token */
  bool has_user;

  pcre2_code *pattern;
};

enum { UST_ADDED_CONTROL = 1, UST_ADDED_USER = 2 };

/* Room for merging one piece; grows to the longest piece and is kept between pieces. */
typedef struct ust_bpe {
  size_t capacity; /* bytes of a piece that fit */
  int32_t *symbol; /* [capacity] token of the symbol that starts at this byte, -1: merged into an earlier one */
  uint32_t *next;  /* [capacity] where the symbol after it starts */
  uint32_t *previous;
  uint64_t *heap; /* [2*capacity] rank << 32 | start of the left symbol */
} ust_bpe;

/* Merges one piece and appends its ids to `ids` (of int32_t). `look` allows answering from `whole`. */
understudy_status ust_tokenizer_merge(const ust_tokenizer *tokenizer, ust_bpe *bpe, const char *piece, size_t size,
                                      bool look, ust_buffer *ids, understudy_error *err);
void ust_tokenizer_bpe_free(ust_bpe *bpe);

/* Compiles the pattern that cuts text into pieces. */
understudy_status ust_tokenizer_compile(ust_tokenizer *tokenizer, understudy_error *err);

/* The normal token with these raw bytes, -1: none. */
int32_t ust_tokenizer_word(const ust_tokenizer *tokenizer, const char *bytes, size_t size);
/* The merge of two neighbours, NULL: none. */
const ust_merge *ust_tokenizer_pair(const ust_tokenizer *tokenizer, int32_t left, int32_t right);

static inline ust_text ust_token_raw(const ust_tokenizer *tokenizer, int32_t id) {
  return (ust_text){tokenizer->bytes + tokenizer->start[id], tokenizer->start[id + 1] - tokenizer->start[id]};
}

#endif
