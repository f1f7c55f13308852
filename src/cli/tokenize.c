/* understudy tokenize: token ids of a text, and back. It opens the vocabulary alone, never the weights. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/cli.h"

static int encode(const ust_tokenizer *tokenizer, const char *text, size_t length, bool special) {
  understudy_error err = {0};
  int32_t *ids = NULL;
  size_t count = 0;
  if (ust_tokenizer_encode(tokenizer, text, length, special, &ids, &count, &err) != UNDERSTUDY_OK)
    return ust_cli_fail(&err);
  for (size_t i = 0; i < count; i++) printf("%s%d", i ? " " : "", ids[i]);
  putchar('\n');
  ust_free(ids);
  return UST_EXIT_OK;
}

static bool is_blank(char c) {
  return c == 0 || isspace((unsigned char)c);
}

/* The next id of those separated by white space or zero bytes, at *at: the bytes it stands for; NULL, with *at where it
 * was, when it is not one. *at becomes `end` after the last. */
static const char *next_id(const ust_tokenizer *tokenizer, const char **at, const char *end, size_t *length) {
  char *after = NULL;
  errno = 0;
  long long id = isdigit((unsigned char)**at) ? strtoll(*at, &after, 10) : -1;
  const char *bytes = NULL;
  if (errno == 0 && id >= 0 && id <= INT32_MAX) bytes = ust_tokenizer_bytes(tokenizer, (int32_t)id, length);
  if (!bytes || (after < end && !is_blank(*after))) return NULL;
  for (*at = after; *at < end && is_blank(**at);) ++*at;
  return bytes;
}

/* Everything is checked before the first byte is written. */
static int decode(const ust_tokenizer *tokenizer, const char *text, size_t length) {
  const char *end = text + length, *bytes;
  size_t size;
  while (text < end && is_blank(*text)) text++;
  for (const char *at = text; at < end;) {
    if (next_id(tokenizer, &at, end, &size)) continue;
    understudy_error err;
    ust_error(&err, UNDERSTUDY_ERROR_ARGUMENT, "--decode: found '%.*s', expected a token id from 0 to %zu",
              (int)UST_MIN(strcspn(at, " \t\r\n"), 40u), at, ust_tokenizer_vocabulary(tokenizer)->count - 1);
    return ust_cli_fail(&err);
  }
  for (const char *at = text; at < end && (bytes = next_id(tokenizer, &at, end, &size));)
    fwrite(bytes, 1, size, stdout);
  if (isatty(STDOUT_FILENO)) putchar('\n');
  return UST_EXIT_OK;
}

/* Several ids may stand as several arguments: joins them in place of the text. */
static bool join_arguments(int argc, char **argv, char **text, size_t *length) {
  ust_buffer joined = {0};
  bool ok = true;
  for (int i = optind; i < argc; i++)
    ok = ok && ust_buffer_append(&joined, argv[i], strlen(argv[i])) && ust_buffer_append(&joined, " ", 1);
  ok = ok && ust_buffer_append(&joined, "", 1);
  *text = joined.data;
  *length = joined.size - (ok ? 1 : 0);
  if (!ok) fprintf(stderr, "understudy: out of memory: %zu bytes for token ids\n", joined.size);
  return ok;
}

int ust_cli_tokenize(int argc, char **argv) {
  const char *model = NULL, *file = NULL;
  bool back = false, special = false;
  const ust_option options[] = {
      {UST_TEXT("model", 'm', &model, "MODEL",
                "a GGUF file, or a directory with tokenizer.json or vocab.json + merges.txt"),
       .required = true},
      {UST_TEXT("file", 'f', &file, "FILE", "the text ('-': standard input)")},
      {UST_FLAG("decode", 0, &back, "read ids, write the bytes they stand for")},
      {UST_FLAG("special", 0, &special, "special-token strings in the text become their tokens")},
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "tokenize",
      .usage = "tokenize -m MODEL [--decode] [TEXT | ID… | -f FILE | < FILE]",
      .about = "Prints the token ids of a text, separated by spaces; with --decode, the text of ids.",
      .example = "understudy tokenize -m gpt2-large/ \"Hello, world\"",
  };
  int code;
  char *text;
  size_t length;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (back && !file && optind + 1 < argc) {
    if (!join_arguments(argc, argv, &text, &length)) return UST_EXIT_FAILURE;
  } else if (!ust_cli_text("tokenize", argc, argv, optind, file, &text, &length, &code)) {
    return code;
  }
  understudy_error err = {0};
  ust_tokenizer *tokenizer = NULL;
  if (ust_cli_tokenizer(model, NULL, &tokenizer, &err) != UNDERSTUDY_OK)
    code = ust_cli_fail(&err);
  else
    code = back ? decode(tokenizer, text, length) : encode(tokenizer, text, length, special);
  ust_tokenizer_free(tokenizer);
  ust_free(text);
  return code;
}
