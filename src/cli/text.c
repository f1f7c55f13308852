/* Texts the commands work on: a prompt from wherever it comes, prompt sets, vocabularies of models.
 *
 * Text is bytes: nothing here asks whether they are UTF-8. */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"

extern char **environ;

enum { TEXT_LIMIT = 1 << 28 };

bool ust_cli_text(const char *command, int argc, char **argv, int first, const char *file, char **text, size_t *length,
                  int *code) {
  *text = NULL;
  if (!ust_cli_no_more(command, argc, argv, first + 1, code)) return false;
  if (first < argc && file) {
    *code = ust_cli_usage(command, "found both a text argument and --file %s, expected one of them", file);
    return false;
  }
  if (first < argc) {
    *length = strlen(argv[first]);
    *text = ust_alloc(*length + 1);
    if (*text) memcpy(*text, argv[first], *length + 1);
    if (!*text) fprintf(stderr, "understudy: out of memory: %zu bytes for the text\n", *length);
    *code = UST_EXIT_FAILURE;
    return *text != NULL;
  }
  if (!file && isatty(STDIN_FILENO)) {
    *code = ust_cli_usage(command, "found no text, expected it as an argument, with --file or on standard input");
    return false;
  }
  understudy_error err = {0};
  if (ust_input_slurp(file ? file : "-", TEXT_LIMIT, text, length, &err) == UNDERSTUDY_OK) return true;
  *code = ust_cli_fail(&err);
  return false;
}

understudy_status ust_cli_prompt_tokens(const understudy_engine *engine, const char *text, size_t length,
                                        int32_t **tokens, size_t *count, understudy_error *err) {
  understudy_engine_info info;
  understudy_engine_get_info(engine, &info);
  UST_TRY(understudy_tokenize(engine, text, length, false, tokens, count, err));
  if (*count) return UNDERSTUDY_OK;
  understudy_free(*tokens);
  *tokens = NULL;
  if (info.end_token < 0)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT,
                     "the prompt is empty, expected some text: this model has no end-of-text token to start from");
  *tokens = malloc(sizeof **tokens);
  if (!*tokens) return ust_error_memory(err, sizeof **tokens, "a prompt");
  **tokens = info.end_token;
  *count = 1;
  return UNDERSTUDY_OK;
}

/* ---- prompt sets ---- */

/* The bytes as a file without a name, at its beginning; -1: there is no room. */
static int nameless_file(const char *data, size_t size) {
  int fd = memfd_create("prompts", MFD_CLOEXEC);
  for (size_t done = 0; fd >= 0 && done < size;) {
    ssize_t wrote = pwrite(fd, data + done, size - done, (off_t)done);
    if (wrote > 0) done += (size_t)wrote;
    if (wrote > 0 || errno == EINTR) continue;
    close(fd);
    return -1;
  }
  return fd;
}

/* gzip -dc, without a shell in between. */
static understudy_status gunzip(const char *path, const char *data, size_t size, ust_buffer *out,
                                understudy_error *err) {
  int ends[2], packed = nameless_file(data, size);
  if (packed < 0) return ust_error_memory(err, size, path);
  if (pipe2(ends, O_CLOEXEC) != 0) {
    close(packed);
    return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot make a pipe: %s", path, strerror(errno));
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, packed, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  char *arguments[] = {(char[]){"gzip"}, (char[]){"-dc"}, NULL};
  pid_t child;
  int failure = posix_spawnp(&child, "gzip", &actions, NULL, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(packed);
  close(ends[1]);
  if (failure) {
    close(ends[0]);
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: is gzip, and the program gzip cannot be started: %s", path,
                     strerror(failure));
  }
  understudy_status status = ust_read_to_end(ends[0], path, TEXT_LIMIT, out, err);
  close(ends[0]);
  int result = 0;
  while (waitpid(child, &result, 0) < 0 && errno == EINTR) {
  }
  if (status == UNDERSTUDY_OK && (!WIFEXITED(result) || WEXITSTATUS(result) != 0))
    return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: damaged gzip data", path);
  return status;
}

static understudy_status add_prompt(ust_prompts *prompts, const char *data, size_t size, understudy_error *err) {
  if ((prompts->count & (prompts->count - 1)) == 0) { /* powers of two: time to double */
    ust_text *grown = realloc(prompts->items, (prompts->count ? 2 * prompts->count : 1) * sizeof *grown);
    if (!grown) return ust_error_memory(err, prompts->count * sizeof *grown, "prompts");
    prompts->items = grown;
  }
  char *copy = ust_alloc(size + 1);
  if (!copy) return ust_error_memory(err, size, "a prompt");
  memcpy(copy, data, size);
  prompts->items[prompts->count++] = (ust_text){copy, size};
  return UNDERSTUDY_OK;
}

static understudy_status add_json_line(ust_prompts *prompts, const char *path, int number, const char *line,
                                       size_t length, understudy_error *err) {
  json_error_t problem;
  json_t *root = json_loadb(line, length, JSON_ALLOW_NUL, &problem);
  if (!root) return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: line %d: not JSON: %s", path, number, problem.text);
  json_t *prompt = json_object_get(root, "prompt");
  understudy_status status =
      json_is_string(prompt)
          ? add_prompt(prompts, json_string_value(prompt), json_string_length(prompt), err)
          : ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: line %d: found %s, expected an object with a text 'prompt'",
                      path, number, prompt ? "a prompt that is not text" : "no prompt");
  json_decref(root);
  return status;
}

static size_t skip_blanks(const char *data, size_t size, size_t at) {
  while (at < size && data[at] && strchr(" \t\r\n", data[at])) at++;
  return at;
}

/* An object that opens with a name, or a list of objects: meant as JSON lines, so what is wrong with a line is an
 * error. */
static bool looks_like_json_lines(const char *data, size_t size) {
  size_t i = skip_blanks(data, size, 0);
  if (i < size && data[i] == '[') {
    i = skip_blanks(data, size, i + 1);
    return i < size && data[i] == '{';
  }
  if (i == size || data[i] != '{') return false;
  i = skip_blanks(data, size, i + 1);
  return i < size && data[i] == '"';
}

static understudy_status split_prompts(const char *path, const char *data, size_t size, size_t limit,
                                       ust_prompts *prompts, understudy_error *err) {
  if (size >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark */
    data += 3;
    size -= 3;
  }
  if (size == 0) return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found nothing, expected prompts", path);
  if (!looks_like_json_lines(data, size)) return add_prompt(prompts, data, size, err);
  int number = 0;
  for (const char *line = data, *end = data + size; line < end && (limit == 0 || prompts->count < limit);) {
    const char *newline = memchr(line, '\n', (size_t)(end - line));
    size_t length = (size_t)((newline ? newline : end) - line);
    number++;
    if (skip_blanks(line, length, 0) < length) UST_TRY(add_json_line(prompts, path, number, line, length, err));
    line += length + 1;
  }
  return UNDERSTUDY_OK;
}

understudy_status ust_cli_prompts_load(const char *path, size_t limit, ust_prompts *prompts, understudy_error *err) {
  *prompts = (ust_prompts){0};
  char *data;
  size_t size;
  UST_TRY(ust_input_slurp(path, TEXT_LIMIT, &data, &size, err));
  understudy_status status;
  if (size >= 2 && memcmp(data, "\x1f\x8b", 2) == 0) {
    ust_buffer unpacked = {0};
    status = gunzip(path, data, size, &unpacked, err);
    if (status == UNDERSTUDY_OK) status = split_prompts(path, unpacked.data, unpacked.size, limit, prompts, err);
    ust_buffer_free(&unpacked);
  } else {
    status = split_prompts(path, data, size, limit, prompts, err);
  }
  ust_free(data);
  if (status != UNDERSTUDY_OK) ust_cli_prompts_free(prompts);
  return status;
}

void ust_cli_prompts_free(ust_prompts *prompts) {
  for (size_t i = 0; i < prompts->count; i++) ust_free((void *)prompts->items[i].data);
  free(prompts->items);
  *prompts = (ust_prompts){0};
}

/* ---- vocabularies ---- */

static understudy_status tokenizer_of_gguf(const char *path, const ust_weights *weights, ust_tokenizer **tokenizer,
                                           understudy_error *err) {
  ust_vocabulary vocabulary;
  UST_TRY(ust_weights_vocabulary(weights, &vocabulary, err));
  return ust_tokenizer_create(&vocabulary, path, tokenizer, err);
}

understudy_status ust_cli_tokenizer(const char *path, const ust_weights *weights, ust_tokenizer **tokenizer,
                                    understudy_error *err) {
  if (ust_is_directory(path)) {
    if (!weights) return ust_tokenizer_load(path, tokenizer, err);
    const ust_config *config = ust_weights_config(weights);
    return ust_tokenizer_load_for(path, config->vocabulary, config->bos, config->eos, tokenizer, err);
  }
  if (weights) return tokenizer_of_gguf(path, weights, tokenizer, err);
  ust_weights *opened;
  UST_TRY(ust_weights_open(path, &opened, err));
  understudy_status status = tokenizer_of_gguf(path, opened, tokenizer, err);
  ust_weights_close(opened);
  return status;
}

ust_type ust_cli_type(const char *word) {
  static const ust_type types[] = {UST_TYPE_Q4_0, UST_TYPE_Q8_0, UST_TYPE_BF16, UST_TYPE_F16};
  for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
    if (strcmp(ust_type_name(types[i]), word) == 0) return types[i];
  return UST_TYPE_F32;
}
