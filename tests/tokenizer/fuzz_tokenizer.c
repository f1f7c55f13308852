/* Fuzzing, not part of the default build: any bytes as text must come back exactly, and any bytes as a
 * tokenizer.json must load or be an error of one line.
 *
 *   clang -g -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -DFIXTURES='"tests/fixtures"' -Iinclude -Isrc \
 *     tests/tokenizer/fuzz_tokenizer.c src/tokenizer/[elv]*.c src/base/[a-z]*.c -lpcre2-8 -ljansson -o fuzz
 *   ./fuzz -max_len=4096 CORPUS-DIRECTORY */
#include <stdlib.h>
#include <unistd.h>

#include "tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool condition) {
  if (!condition) abort();
}

static void round_trip(const ust_tokenizer *tokenizer, const char *text, size_t size, bool special) {
  int32_t *ids;
  size_t count, at = 0;
  check(ust_tokenizer_encode(tokenizer, text, size, special, &ids, &count, NULL) == UNDERSTUDY_OK);
  for (size_t i = 0; i < count; i++) {
    size_t length;
    const char *bytes = ust_tokenizer_bytes(tokenizer, ids[i], &length);
    check(bytes && length <= size - at && memcmp(bytes, text + at, length) == 0);
    at += length;
  }
  check(at == size);
  ust_free(ids);
}

static void load(const char *data, size_t size) {
  static char directory[] = "/tmp/fuzz-tokenizer-XXXXXX", path[64];
  if (!path[0]) {
    check(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/tokenizer.json", directory);
  }
  FILE *stream = fopen(path, "wb");
  check(stream && fwrite(data, 1, size, stream) == size && fclose(stream) == 0);
  ust_tokenizer *tokenizer;
  understudy_error err = {0};
  if (ust_tokenizer_load(directory, &tokenizer, &err) == UNDERSTUDY_OK) {
    round_trip(tokenizer, data, size, true);
    ust_tokenizer_free(tokenizer);
  } else {
    check(err.message[0] && !strchr(err.message, '\n') && !tokenizer);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static ust_tokenizer *gpt2;
  if (!gpt2) check(ust_tokenizer_load(FIXTURES "/gpt2", &gpt2, NULL) == UNDERSTUDY_OK);
  const char *text = (const char *)data;
  if (size > 0 && data[0] == '{') {
    load(text, size);
  } else {
    round_trip(gpt2, text, size, false);
    round_trip(gpt2, text, size, true);
  }
  return 0;
}
