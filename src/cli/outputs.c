/* What may be written where: checked before the work, not after it. */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"

static bool ends_with(const char *name, const char *end) {
  size_t length = strlen(name), tail = strlen(end);
  return length >= tail && strcmp(name + length - tail, end) == 0;
}

/* A file that a Hugging Face directory is read from. */
static bool part_of_model(const char *name) {
  static const char *const names[] = {"config.json", "tokenizer.json", "vocab.json", "merges.txt"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (strcmp(name, names[i]) == 0) return true;
  return ends_with(name, ".safetensors") || ends_with(name, ".safetensors.index.json");
}

understudy_status ust_cli_check_kept(const char *input, const char *output, understudy_error *err) {
  if (!input || !output) return UNDERSTUDY_OK;
  char *place = ust_followed(output);
  const char *name = place ? ust_name_in(place, input) : NULL;
  const bool part = name && part_of_model(name);
  free(place);
  if (part)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: is part of the input %s, expected another file to write to",
                     output, input);
  if (!ust_same_file(input, output)) return UNDERSTUDY_OK;
  bool same_name = strcmp(input, output) == 0;
  return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: is the input%s%s, expected another file to write to", output,
                   same_name ? "" : ", ", same_name ? "" : input);
}

understudy_status ust_cli_check_distinct(const char *const *outputs, size_t count, understudy_error *err) {
  for (size_t i = 0; i < count; i++)
    for (size_t j = 0; j < i; j++)
      if (outputs[i] && outputs[j] && ust_same_place(outputs[i], outputs[j]))
        return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: is to be written twice, expected different files",
                         outputs[i]);
  return UNDERSTUDY_OK;
}

understudy_status ust_cli_check_output(const char *path, const ust_cli_models *models, const char *input,
                                       understudy_error *err) {
  if (!path) return UNDERSTUDY_OK;
  const char *read[] = {models->model, models->draft, models->ngram, input};
  for (size_t i = 0; i < sizeof read / sizeof read[0]; i++) UST_TRY(ust_cli_check_kept(read[i], path, err));
  if (ust_is_directory(path))
    return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot write: is a directory, expected a file", path);
  struct stat info, given;
  if (stat(path, &info) == 0 && S_ISREG(info.st_mode) && fstat(STDIN_FILENO, &given) == 0 &&
      given.st_dev == info.st_dev && given.st_ino == info.st_ino)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: is standard input, expected another file to write to", path);
  return ust_writer_check(path, err);
}
