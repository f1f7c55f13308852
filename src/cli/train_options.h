/* cli: the options `train` and `distill` have in common. */
#ifndef UST_CLI_TRAIN_OPTIONS_H
#define UST_CLI_TRAIN_OPTIONS_H

#include <getopt.h>

#include "cli/cli.h"
#include "train/train.h"

typedef struct ust_train_cli {
  ust_train_options options;
  ust_cli_models machine; /* isa and threads */
  const char *tokenizer, *type;
  const ust_weights *tokenizer_weights; /* when `tokenizer` is a GGUF file already open */
  bool quiet;
} ust_train_cli;

#define UST_TRAIN_CLI_DEFAULTS(width_, layers_, heads_)                                                       \
  {.options = {.width = width_, .layers = layers_, .heads = heads_, .context = 1024, .steps = 1000,           \
               .batch = 16384, .rate = 1e-3f, .seed = 1},                                                     \
   .type = "q8_0"}

#define UST_TRAIN_CLI_NUMBER(name, target, what, least, most) \
  {name, 0, UST_OPTION_INT, target, "N", what, .min = least, .max = most}
#define UST_TRAIN_CLI_OPTIONS(c)                                                                                   \
  {"corpus", 0, UST_OPTION_TEXT, &(c)->options.corpus, "FILE", "the text to learn", .required = true},            \
  {"heldout", 0, UST_OPTION_TEXT, &(c)->options.heldout, "FILE", .help = "text to measure the loss on"},           \
  {"output", 'o', UST_OPTION_TEXT, &(c)->options.output, "OUT.gguf", "the model to write", .required = true},      \
  {"type", 0, UST_OPTION_CHOICE, &(c)->type, "q8_0|bf16|f16|f32", .help = "of its matrices [q8_0]"},               \
  {"checkpoint", 0, UST_OPTION_TEXT, &(c)->options.checkpoint, "FILE",                                             \
   .help = "written every two minutes and when stopped; gone on from when it exists"},                             \
  {"log", 0, UST_OPTION_TEXT, &(c)->options.log, "FILE", .help = "write each step's loss as CSV"},                 \
  UST_TRAIN_CLI_NUMBER("width", &(c)->options.width, "of the model, divisible by 32", 32, 16384),                  \
  UST_TRAIN_CLI_NUMBER("layers", &(c)->options.layers, "of the model", 1, 1024),                                   \
  UST_TRAIN_CLI_NUMBER("heads", &(c)->options.heads, "of the model; their size is divisible by 32", 1, 512),       \
  UST_TRAIN_CLI_NUMBER("context", &(c)->options.context, "positions the model has [1024]", UST_TRAIN_WINDOW, 65536), \
  UST_TRAIN_CLI_NUMBER("steps", &(c)->options.steps, "updates of the weights [1000]", 1, 100000000),               \
  {"batch", 0, UST_OPTION_INT, &(c)->options.batch, "TOKENS", "of one step [16384]", .min = UST_TRAIN_WINDOW,      \
   .max = 16777216},                                                                                               \
  {"rate", 0, UST_OPTION_REAL, &(c)->options.rate, "R", "highest learning rate [0.001]", .min = 1e-9, .max = 1},   \
  {"seed", 0, UST_OPTION_SEED, &(c)->options.seed, "S", .help = "of initial weights and order of the text [1]"},   \
  UST_OPTIONS_MACHINE(&(c)->machine),                                                                              \
  UST_OPTIONS_QUIET(&(c)->quiet)

/* Opens the tokenizer, trains, reports; returns the exit code. */
int ust_train_cli_run(ust_train_cli *cli);

#endif
