/* libFuzzer entry: any bytes as the model.safetensors of a directory whose config.json is good. Built as
 * fuzz_gguf.c says. */
#include <sys/stat.h>

#include "weights/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char config[] =
      "{\"model_type\":\"gpt2\",\"vocab_size\":5,\"n_ctx\":4,\"n_embd\":6,\"n_layer\":1,\"n_head\":3}";
  understudy_error err;
  if (!folder[0]) {
    make_folder(NULL);
    mkdir(in_folder("model"), 0700);
    write_file("model/config.json", config, strlen(config));
  }
  write_file("model/model.safetensors", data, size);
  (void)read_all(in_folder("model"), &err);
  return 0;
}
