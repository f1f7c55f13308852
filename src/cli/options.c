/* Options: from a table to getopt_long, strict values, and the help text made of the same table.
 *
 * A usage error is one line: the command, the option, what was found and what was expected; exit 2. */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "cli/cli.h"

enum { MAX_OPTIONS = 32, LONG_ONLY = 256 };

int ust_cli_usage(const char *command, const char *format, ...) {
  char text[400];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  understudy_error line;
  ust_error(&line, UNDERSTUDY_ERROR_ARGUMENT, "%s", text); /* makes it printable */
  fprintf(stderr, "understudy %s: %s (see 'understudy %s --help')\n", command, line.message, command);
  return UST_EXIT_USAGE;
}

bool ust_cli_no_more(const char *command, int argc, char **argv, int first, int *code) {
  if (first >= argc) return true;
  *code = ust_cli_usage(command, "unexpected argument '%s'", argv[first]);
  return false;
}

/* ---- values ---- */

static bool parse_int(const char *text, double min, double max, int *out) {
  if (!isdigit((unsigned char)text[0]) && text[0] != '-') return false;
  char *end;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (errno || *end || end == text || (double)value < min || (double)value > max) return false;
  *out = (int)value;
  return true;
}

static bool parse_seed(const char *text, uint64_t *out) {
  if (!isdigit((unsigned char)text[0])) return false;
  char *end;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 10);
  if (errno || *end || value > INT64_MAX) return false; /* JSON reports hold it as a signed integer */
  *out = value;
  return true;
}

static bool parse_real(const char *text, double min, double max, float *out) {
  if (!isdigit((unsigned char)text[0]) && text[0] != '-' && text[0] != '.') return false;
  if (strpbrk(text, "xX")) return false;
  char *end;
  double value = strtod(text, &end);
  if (*end || end == text || !isfinite(value) || value < min || value > max) return false;
  *out = (float)value;
  return true;
}

static bool one_of(const char *text, const char *words) {
  size_t length = strchr(text, '|') ? 0 : strlen(text);
  for (const char *word = words; word && length; word = strchr(word, '|')) {
    if (*word == '|') word++;
    if (strncmp(word, text, length) == 0 && (word[length] == 0 || word[length] == '|')) return true;
  }
  return false;
}

static void expected_text(const ust_option *option, char *out, size_t size) {
  if (option->expected)
    snprintf(out, size, "%s", option->expected);
  else if (option->type == UST_OPTION_INT)
    snprintf(out, size, "an integer from %.0f to %.0f", option->min, option->max);
  else if (option->type == UST_OPTION_REAL)
    snprintf(out, size, "a number from %g to %g", option->min, option->max);
  else if (option->type == UST_OPTION_SEED)
    snprintf(out, size, "an integer from 0 to %lld", LLONG_MAX);
  else
    snprintf(out, size, "%s", option->argument);
}

static bool store(const char *command, const ust_option *option, const char *value, int *code) {
  bool ok = true;
  switch (option->type) {
  case UST_OPTION_FLAG:
    *(bool *)option->target = true;
    break;
  case UST_OPTION_TEXT:
    ok = value[0] != 0; /* an empty name is never meant, and would be noticed only when the file is written */
    if (ok) *(const char **)option->target = value;
    break;
  case UST_OPTION_INT:
    ok = parse_int(value, option->min, option->max, option->target);
    break;
  case UST_OPTION_SEED:
    ok = parse_seed(value, option->target);
    break;
  case UST_OPTION_REAL:
    ok = parse_real(value, option->min, option->max, option->target);
    break;
  case UST_OPTION_CHOICE:
    ok = one_of(value, option->argument);
    if (ok) *(const char **)option->target = value;
    break;
  }
  if (ok) return true;
  char expected[128];
  expected_text(option, expected, sizeof expected);
  *code = ust_cli_usage(command, "--%s: found '%.120s', expected %s", option->name, value, expected);
  return false;
}

/* ---- help ---- */

enum { WIDTH = 80 };

/* Columns of a word in UTF-8, up to a blank. */
static int word_columns(const char *word, size_t length) {
  int columns = 0;
  for (size_t i = 0; i < length; i++) columns += ((unsigned char)word[i] & 0xc0) != 0x80;
  return columns;
}

/* Prints text from column `at` on, broken between words and at newlines, further lines from column `indent` on. */
static void print_wrapped(const char *text, int at, int indent) {
  for (const char *word = text; *word;) {
    size_t length = strcspn(word, " \n");
    int columns = word_columns(word, length);
    bool first = word == text, newline = !first && word[-1] == '\n';
    if (newline || (!first && at + 1 + columns > WIDTH)) {
      printf("\n%*s", indent, "");
      at = indent;
    } else if (!first) {
      putchar(' ');
      at++;
    }
    printf("%.*s", (int)length, word);
    at += columns;
    word += length;
    if (*word) word++;
  }
  putchar('\n');
}

static void print_option(const ust_option *option) {
  char left[64];
  int n = option->letter ? snprintf(left, sizeof left, "  -%c, --%s", option->letter, option->name)
                         : snprintf(left, sizeof left, "      --%s", option->name);
  if (option->argument) snprintf(left + n, sizeof left - (size_t)n, " %s", option->argument);
  enum { COLUMN = 26 };
  if (strlen(left) < COLUMN)
    printf("%-*s", COLUMN, left);
  else
    printf("%s\n%*s", left, COLUMN, "");
  print_wrapped(option->help, COLUMN, COLUMN);
}

static void print_help(const ust_cli_help *help, const ust_option *options) {
  printf("usage: understudy ");
  print_wrapped(help->usage, 18, 18);
  putchar('\n');
  print_wrapped(help->about, 0, 0);
  putchar('\n');
  for (const ust_option *option = options; option->name; option++) print_option(option);
  printf("  -h, --help              this text\n");
  if (help->notes) putchar('\n');
  if (help->notes) print_wrapped(help->notes, 0, 0);
  printf("\nexample:\n  %s\n", help->example);
}

/* ---- parsing ---- */

static int parse_failure(const char *command, const struct option *longs, int found, char **argv) {
  if (found == ':') {
    const char *name = NULL;
    for (int i = 0; longs[i].name; i++)
      if (longs[i].val == optopt) name = longs[i].name;
    if (name) return ust_cli_usage(command, "--%s: found no value, expected one", name);
  }
  if (optopt >= LONG_ONLY || (optopt && strncmp(argv[optind - 1], "--", 2) == 0 && strchr(argv[optind - 1], '=')))
    return ust_cli_usage(command, "'%.120s': this option takes no value", argv[optind - 1]);
  if (optopt) return ust_cli_usage(command, "unknown option '-%c'", optopt);
  return ust_cli_usage(command, "unknown option '%.120s'", argv[optind - 1]);
}

/* The long option getopt has just read, as it was written, when that is not its whole name; NULL: it is. getopt takes
 * any beginning, --mode for --model where a command has no --mode. */
static const char *abbreviation(const char *name, char **argv) {
  const char *word = optarg && optarg == argv[optind - 1] ? argv[optind - 2] : argv[optind - 1];
  const size_t length = strlen(name);
  bool whole = strncmp(word + 2, name, length) == 0 && (word[2 + length] == 0 || word[2 + length] == '=');
  return whole ? NULL : word;
}

bool ust_cli_parse(const ust_cli_help *help, const ust_option *options, int argc, char **argv, int *code) {
  struct option longs[MAX_OPTIONS + 2] = {0};
  char shorts[2 * MAX_OPTIONS + 4] = ":h";
  bool seen[MAX_OPTIONS] = {false};
  int count = 0;
  for (size_t used = 2; options[count].name; count++) {
    assert(count < MAX_OPTIONS);
    bool value = options[count].type != UST_OPTION_FLAG;
    int letter = options[count].letter ? options[count].letter : LONG_ONLY + count;
    longs[count] = (struct option){options[count].name, value ? required_argument : no_argument, NULL, letter};
    if (!options[count].letter) continue;
    shorts[used++] = options[count].letter;
    if (value) shorts[used++] = ':';
  }
  longs[count] = (struct option){"help", no_argument, NULL, 'h'};

  unsetenv("POSIXLY_CORRECT"); /* with it getopt would take no option after an argument */
  opterr = 0;
  optind = 1;
  for (int found, of_long = -1; (found = getopt_long(argc, argv, shorts, longs, &of_long)) != -1; of_long = -1) {
    const char *cut = of_long >= 0 ? abbreviation(longs[of_long].name, argv) : NULL;
    if (cut) {
      *code = ust_cli_usage(help->command, "unknown option '%.120s' (--%s begins like it)", cut, longs[of_long].name);
      return false;
    }
    if (found == 'h') {
      print_help(help, options);
      *code = UST_EXIT_OK;
      return false;
    }
    int index = 0;
    while (index < count && longs[index].val != found) index++;
    if (index == count) {
      *code = parse_failure(help->command, longs, found, argv);
      return false;
    }
    if (!store(help->command, &options[index], optarg, code)) return false;
    seen[index] = true;
  }
  for (int i = 0; i < count; i++) {
    if (!options[i].required || seen[i]) continue;
    *code = options[i].letter
                ? ust_cli_usage(help->command, "-%c, --%s %s is missing", options[i].letter, options[i].name,
                                options[i].argument)
                : ust_cli_usage(help->command, "--%s %s is missing", options[i].name, options[i].argument);
    return false;
  }
  return true;
}

void ust_cli_note_sampling(const understudy_sampling *s) {
  if (s->temperature == 0 && (s->top_k || s->top_p < 1 || s->min_p > 0 || s->seed))
    ust_cli_note("--top-k, --top-p, --min-p and --seed change nothing without --temperature");
}
