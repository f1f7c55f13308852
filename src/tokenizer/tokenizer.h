/* tokenizer: bytes <-> token ids. Byte-level BPE as GPT-2 defines it; special tokens kept apart from text.
 *
 * A tokenizer is immutable after creation and may be shared between threads. */
#ifndef UST_TOKENIZER_H
#define UST_TOKENIZER_H

#include "base/vocabulary.h"

typedef struct ust_tokenizer ust_tokenizer;

/* Builds a tokenizer; `source` names the file in errors. Copies what it keeps. */
understudy_status ust_tokenizer_create(const ust_vocabulary *vocabulary, const char *source, ust_tokenizer **tokenizer,
                                       understudy_error *err);
/* From tokenizer.json, else vocab.json + merges.txt, of a Hugging Face directory. */
understudy_status ust_tokenizer_load(const char *directory, ust_tokenizer **tokenizer, understudy_error *err);
/* The same for the model in it: padded with unused tokens to the model's `count` (embeddings are often rounded up), and
 * with the bos and eos its configuration names, if any (-1: none, <|endoftext|> is both). */
understudy_status ust_tokenizer_load_for(const char *directory, int count, int bos, int eos, ust_tokenizer **tokenizer,
                                         understudy_error *err);
void ust_tokenizer_free(ust_tokenizer *tokenizer);

/* What it was made of, for writing into a GGUF file; lives as long as the tokenizer. */
const ust_vocabulary *ust_tokenizer_vocabulary(const ust_tokenizer *tokenizer);
/* Equal for equal vocabularies (texts, types, merges), different otherwise but for chance: 64-bit FNV-1a. */
uint64_t ust_tokenizer_fingerprint(const ust_tokenizer *tokenizer);

/* Any bytes, any length, near-linear time; the bytes of the ids, put together, are the text again. Bytes that are
 * not UTF-8 count as symbols. With `special`, the texts of control tokens become their ids.
 * *ids is freed with ust_free(). */
understudy_status ust_tokenizer_encode(const ust_tokenizer *tokenizer, const char *text, size_t length, bool special,
                                       int32_t **ids, size_t *count, understudy_error *err);
/* The raw bytes an id stands for; NULL for an id outside the vocabulary. */
const char *ust_tokenizer_bytes(const ust_tokenizer *tokenizer, int32_t id, size_t *length);

#endif
