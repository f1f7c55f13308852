/* libFuzzer entry: any bytes as a GGUF file. Not built by default:
 *   clang -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Iinclude -Isrc -Itests tests/weights/fuzz_gguf.c \
 *     src/weights/[a-z]*.c src/base/[a-z]*.c src/kernel/numbers.c -ljansson -lcmocka -lpthread -lm */
#include "weights/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  understudy_error err;
  if (!folder[0]) make_folder(NULL);
  write_file("a.gguf", data, size);
  (void)read_all(in_folder("a.gguf"), &err);
  return 0;
}
