/* The vocabulary of a byte-level BPE tokenizer as files hold it: plain data that the weights room reads from and
 * writes to GGUF metadata, and the tokenizer room reads from other files and turns into a tokenizer. */
#ifndef UST_VOCABULARY_H
#define UST_VOCABULARY_H

#include "base/base.h"

/* GGUF's token types that matter here. The text of a normal token is written in the byte-level alphabet, that of
 * the others as it stands. */
enum {
  UST_TOKEN_NORMAL = 1,
  UST_TOKEN_CONTROL = 3, /* found in text only when asked for */
  UST_TOKEN_USER = 4,    /* an added token that is always found in text */
  UST_TOKEN_UNUSED = 5   /* padding: never found */
};

/* Normal tokens are in the byte-level alphabet (GPT-2's bytes_to_unicode), merges "left right" in rank order. */
typedef struct ust_vocabulary {
  const ust_text *tokens; /* [count], index = id */
  const int32_t *types;   /* [count] UST_TOKEN_…; NULL: all normal but <|endoftext|> */
  size_t count;
  const ust_text *merges; /* [merge_count] */
  size_t merge_count;
  int bos, eos; /* -1: none */
} ust_vocabulary;

#endif
