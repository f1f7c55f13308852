/* cli: what the subcommands share: options, terminal, prompts, reports.
 *
 * A subcommand is one function `int ust_cli_NAME(int argc, char **argv)` (argv[0] is its name) that returns the
 * exit code. Text goes to stdout, everything else to stderr; every error is one line. */
#ifndef UST_CLI_H
#define UST_CLI_H

#include <getopt.h>
#include <jansson.h>

#include "base/base.h"
#include "base/details.h"
#include "measure/measure.h"
#include "tokenizer/tokenizer.h"
#include "weights/weights.h"

enum { UST_EXIT_OK = 0, UST_EXIT_FAILURE = 1, UST_EXIT_USAGE = 2 };

/* ---- options.c: one table a subcommand says what it accepts, where it goes and what help prints ---- */

typedef enum ust_option_type {
  UST_OPTION_FLAG,   /* bool */
  UST_OPTION_TEXT,   /* const char * */
  UST_OPTION_CHOICE, /* const char *, one of the words of `argument` ("plain|speculative|staged") */
  UST_OPTION_INT,    /* int, from min to max */
  UST_OPTION_SEED,   /* uint64_t, any */
  UST_OPTION_REAL    /* float, from min to max, finite */
} ust_option_type;

typedef struct ust_option {
  const char *name; /* long name; NULL ends a table */
  char letter;      /* short name; 0: none */
  ust_option_type type;
  void *target;
  const char *argument; /* "FILE"; NULL for a flag */
  const char *help;     /* may hold newlines; default value in brackets at its end */
  double min, max;
  bool required;
  const char *expected; /* replaces the text made of min and max in errors */
} ust_option;

/* The inside of one entry, braces and .required / .expected left to the table. */
#define UST_OPTION_(n, l, t, to, a, h)                                                                                 \
  .name = n, .letter = l, .type = UST_OPTION_##t, .target = to, .argument = a, .help = h
#define UST_FLAG(name, letter, target, help) UST_OPTION_(name, letter, FLAG, target, NULL, help)
#define UST_TEXT(name, letter, target, argument, help) UST_OPTION_(name, letter, TEXT, target, argument, help)
#define UST_CHOICE(name, target, words, help) UST_OPTION_(name, 0, CHOICE, target, words, help)
#define UST_SEED(name, target, argument, help) UST_OPTION_(name, 0, SEED, target, argument, help)
#define UST_INT(name, letter, target, argument, help, least, most)                                                     \
  UST_OPTION_(name, letter, INT, target, argument, help), .min = least, .max = most
#define UST_REAL(name, target, argument, help, least, most)                                                            \
  UST_OPTION_(name, 0, REAL, target, argument, help), .min = least, .max = most
#define UST_INT_MOST 2147483647

typedef struct ust_cli_help {
  const char *command;
  const char *usage;   /* without the program's name: "run -m TARGET [options] [PROMPT]" */
  const char *about;   /* one to three lines */
  const char *notes;   /* after the options; NULL: none */
  const char *example; /* one command line */
} ust_cli_help;

/* Reads the options into their targets; `optind` is then the first positional argument. False: the command ends
 * with *code (help printed, or a usage error reported). Every table has --help added. */
bool ust_cli_parse(const ust_cli_help *help, const ust_option *options, int argc, char **argv, int *code);
/* Prints "understudy COMMAND: …" as one line and returns UST_EXIT_USAGE. */
int ust_cli_usage(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* False, with the usage error reported, when arguments are left from index `first` on. */
bool ust_cli_no_more(const char *command, int argc, char **argv, int first, int *code);
/* A note where options for drawing tokens are given and none is drawn. */
void ust_cli_note_sampling(const understudy_sampling *sampling);

/* Options several commands have in common. */
typedef struct ust_cli_models {
  const char *model, *draft, *ngram, *isa;
  int threads, context;
} ust_cli_models;

#define UST_OPTIONS_MODEL(m)                                                                                           \
  {                                                                                                                    \
    UST_TEXT("model", 'm', &(m)->model, "TARGET", "the model: a GGUF file or a Hugging Face directory"),               \
        .required = true                                                                                               \
  }
#define UST_OPTIONS_DRAFTS(m)                                                                                          \
  {UST_TEXT("draft", 'd', &(m)->draft, "DRAFT", "a small model of the same vocabulary that drafts")}, {                \
    UST_TEXT("ngram", 0, &(m)->ngram, "FILE", "an n-gram file made by 'understudy ngram'")                             \
  }
#define UST_OPTIONS_MACHINE(m)                                                                                         \
  {UST_INT("threads", 0, &(m)->threads, "N", "threads [the physical cores this process may use]", 0, 1024)}, {         \
    UST_CHOICE("isa", &(m)->isa, "scalar|avx2|avx512|amx", "kernel level [the best this machine has]")                 \
  }
#define UST_OPTIONS_CONTEXT(m, help)                                                                                   \
  { UST_INT("context", 0, &(m)->context, "N", help, 0, UST_INT_MOST) }
#define UST_HELP_CONTEXT "most tokens of prompt and answer together [the model's own]"
#define UST_OPTIONS_SAMPLING(s)                                                                                        \
  {UST_REAL("temperature", &(s)->temperature, "T", "0: the likeliest token always [0]", 0, 1e30),                      \
   .expected = "a number from 0 to 1e30"},                                                                             \
      {UST_INT("top-k", 0, &(s)->top_k, "K", "keep the K likeliest tokens; 0: all [0]", 0, UST_INT_MOST)},             \
      {UST_REAL("top-p", &(s)->top_p, "P", "keep the likeliest that together reach P [1]", 1e-30, 1),                  \
       .expected = "a number above 0, at most 1"},                                                                     \
      {UST_REAL("min-p", &(s)->min_p, "P", "drop those below P times the likeliest [0]", 0, 1)},                       \
      {UST_REAL("repetition-penalty", &(s)->repetition_penalty, "R",                                                   \
                "divide positive logits of tokens seen before by R, multiply others [1]", 0, 1000)},                   \
      {UST_REAL("frequency-penalty", &(s)->frequency_penalty, "F", "subtract F for each time they were seen [0]",      \
                -1000, 1000)},                                                                                         \
      {UST_REAL("presence-penalty", &(s)->presence_penalty, "P", "subtract P once if they were seen [0]", -1000,       \
                1000)},                                                                                                \
      UST_OPTIONS_SEED(&(s)->seed)
#define UST_OPTIONS_SEED(seed)                                                                                         \
  { UST_SEED("seed", seed, "S", "same seed, same text [0]") }
#define UST_OPTIONS_TOKENS(n, help, least)                                                                             \
  { UST_INT("tokens", 'n', n, "N", help, least, UST_INT_MOST) }
#define UST_OPTIONS_JSON(path)                                                                                         \
  { UST_TEXT("json", 0, path, "FILE", "write the figures as JSON") }
#define UST_OPTIONS_QUIET(flag)                                                                                        \
  { UST_FLAG("quiet", 'q', flag, "nothing on stderr but errors") }
#define UST_OPTIONS_END                                                                                                \
  { .name = NULL }

/* ---- terminal.c ---- */

/* Prints "understudy: MESSAGE" and returns UST_EXIT_FAILURE. */
int ust_cli_fail(const understudy_error *err);
/* No progress bars and no notes from now on. */
void ust_cli_set_quiet(bool quiet);
/* A line for the user on stderr, unless quiet. */
void ust_cli_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Such a line for a file that was made: its name and size. */
void ust_cli_note_written(const char *path);
/* An understudy_progress_fn: draws a bar when stderr is a terminal and cancels when the user has asked to stop. */
bool ust_cli_progress(void *user, const char *what, uint64_t done, uint64_t total);
/* "  1:23 left", or "" when `seconds` is negative. */
enum { UST_LEFT_SIZE = 24 };
void ust_cli_left(double seconds, char text[UST_LEFT_SIZE]);
/* Removes a bar that is still standing. */
void ust_cli_progress_clear(void);
/* Whether bars are drawn: stderr is a terminal that can, and nobody asked for quiet. */
bool ust_cli_draws(void);
/* From here on SIGINT and SIGTERM only raise a flag; the same signal a second time ends the process. */
void ust_cli_catch_signals(void);
bool ust_cli_stopped(void);
/* Colour on stdout: forced, or a terminal and no NO_COLOR. */
bool ust_cli_color(bool forced);
/* Flushes stdout; false once it could not be written. */
bool ust_cli_flush(void);
/* Flushes stdout: `code`, or UST_EXIT_FAILURE with one line when it cannot be written. */
int ust_cli_finish(int code);

/* ---- text.c: prompts and vocabularies ---- */

/* The command's text: the argument at argv[first], else `file`, else standard input, which must not be a
 * terminal. *text is freed with ust_free(). False: the command ends with *code. */
bool ust_cli_text(const char *command, int argc, char **argv, int first, const char *file, char **text, size_t *length,
                  int *code);

/* A prompt's tokens, freed with understudy_free(). An empty one is the model's end-of-text token, which separates texts
 * in training; an error where there is none. */
understudy_status ust_cli_prompt_tokens(const understudy_engine *engine, const char *text, size_t length,
                                        int32_t **tokens, size_t *count, understudy_error *err);

typedef struct ust_prompts {
  ust_text *items;
  size_t count;
} ust_prompts;

/* JSON lines with a `prompt` field, plain or gzip, or a file that is one prompt. limit 0: all. */
understudy_status ust_cli_prompts_load(const char *path, size_t limit, ust_prompts *prompts, understudy_error *err);
void ust_cli_prompts_free(ust_prompts *prompts);

/* The tokenizer of a GGUF file (*weights NULL or already open) or of a Hugging Face directory. */
understudy_status ust_cli_tokenizer(const char *path, const ust_weights *weights, ust_tokenizer **tokenizer,
                                    understudy_error *err);
/* "q4_0", "q8_0", "bf16", "f16", "f32"; the caller has checked the word. */
ust_type ust_cli_type(const char *word);

/* ---- report.c: run's and bench's figures ---- */

/* What one prompt came to. */
typedef struct ust_prompt_result {
  understudy_stats stats;
  char sha256[65];
} ust_prompt_result;

typedef struct ust_mode_result {
  const char *name; /* of the mode or the experiment */
  understudy_stats stats;
  ust_details details;
  char sha256[65];            /* of all text of the mode */
  ust_prompt_result *prompts; /* [prompt_count] */
  size_t prompt_count;
} ust_mode_result;

const char *ust_cli_mode_name(understudy_mode mode);
understudy_mode ust_cli_mode(const char *word);
const char *ust_cli_origin_name(understudy_origin origin); /* "target", "draft", "ngram", "context" */
understudy_status ust_cli_open(const ust_cli_models *models, understudy_engine **engine, understudy_error *err);
/* What --isa and --threads ask for, or the best there is. */
understudy_status ust_cli_machine(const ust_cli_models *models, const ust_kernels **kernels, int *threads,
                                  understudy_error *err);
/* What b counts beyond a: the part of sums that came since. */
understudy_stats ust_cli_stats_since(const understudy_stats *a, const understudy_stats *b);
/* Writes the report (docs/architecture.md), after measuring the machine. The fields of `answer` (taken over, NULL:
 * none) are added to it. */
understudy_status ust_cli_write_report(const char *path, const understudy_engine *engine, const ust_cli_models *models,
                                       const understudy_sampling *sampling, const ust_mode_result *results, int count,
                                       bool identical, json_t *answer, understudy_error *err);
/* Text as JSON allows it: bytes that are no UTF-8 become U+FFFD, one by one. NULL: out of memory. */
json_t *ust_cli_json_text(const char *text, size_t length);
/* Writes a JSON document whole or not at all; takes over `root`, NULL is reported as out of memory. */
understudy_status ust_cli_write_json(const char *path, json_t *root, understudy_error *err);

/* ---- outputs.c ---- */

/* Fails now, not after an hour's work, when a file cannot be made at `path` (NULL: nothing to make), or would replace
 * one of the models or `input` (NULL: none). */
understudy_status ust_cli_check_output(const char *path, const ust_cli_models *models, const char *input,
                                       understudy_error *err);
/* Fails when writing `output` would replace `input`, or a part of it, which the command reads (either may be NULL). */
understudy_status ust_cli_check_kept(const char *input, const char *output, understudy_error *err);
/* Fails when two of outputs[count] (any may be NULL) are the same file. */
understudy_status ust_cli_check_distinct(const char *const *outputs, size_t count, understudy_error *err);

/* ---- sha256.c ---- */

typedef struct ust_sha256 {
  uint32_t state[8];
  uint64_t length;
  uint8_t block[64];
} ust_sha256;
void ust_cli_sha256_start(ust_sha256 *sha);
void ust_cli_sha256_add(ust_sha256 *sha, const void *data, size_t size);
void ust_cli_sha256_finish(ust_sha256 *sha, char hex[65]);

/* ---- predict.c: bench --predict ---- */

/* What a device may be given as, for help. */
#define UST_CLI_DEVICES UST_DEVICE_NAMES ",\nor figures such as " UST_DEVICE_FIGURES " (a pass)"
#define UST_OPTIONS_PREDICT(device, from)                                                                              \
  {UST_TEXT("predict", 0, device, "DEVICE",                                                                            \
            "what a --json file's run would give on another machine:\n" UST_CLI_DEVICES)},                             \
  {                                                                                                                    \
    UST_TEXT("from", 0, from, "FILE", "with --predict: the file of an earlier run; nothing is run")                    \
  }
/* Whether the arguments ask for a prediction from a file (ust_cli_predict) and not for a run. */
bool ust_cli_predicts_only(int argc, char **argv);
int ust_cli_predict(int argc, char **argv);
/* False, with the usage error reported, when `device` is not one, or there is no file that can hold the run. A `device`
 * of NULL asks for nothing. */
bool ust_cli_check_predict(const char *device, const char *file, int *code);
/* Prints what the run recorded in `bench` would give on `device`; nothing when `device` is NULL. */
understudy_status ust_cli_print_prediction(const char *device, const char *bench, understudy_error *err);

/* ---- the subcommands ---- */

int ust_cli_run(int argc, char **argv);
int ust_cli_bench(int argc, char **argv);
int ust_cli_roofline(int argc, char **argv);
int ust_cli_train(int argc, char **argv);
int ust_cli_distill(int argc, char **argv);
int ust_cli_ngram(int argc, char **argv);
int ust_cli_grow(int argc, char **argv);
int ust_cli_quantize(int argc, char **argv);
int ust_cli_eval(int argc, char **argv);
int ust_cli_tokenize(int argc, char **argv);
int ust_cli_inspect(int argc, char **argv);

#endif
