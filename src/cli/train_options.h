/* cli: the options `train` and `distill` have in common. */
#ifndef UST_CLI_TRAIN_OPTIONS_H
#define UST_CLI_TRAIN_OPTIONS_H

#include <getopt.h>

#include "cli/cli.h"
#include "train/train.h"

typedef struct ust_cli_training {
  ust_train_options options;
  ust_cli_models machine; /* isa and threads */
  const char *tokenizer, *type;
  const char *teacher;                  /* NULL: none */
  const ust_weights *tokenizer_weights; /* when `tokenizer` is a GGUF file already open */
  const char *from;                     /* a model the run starts from; NULL: none */
  int width, layers, heads, context;    /* used where neither the command nor that model says */
  bool quiet;
} ust_cli_training;

#define UST_CLI_TRAINING(width_, layers_, heads_)                                                                      \
  {                                                                                                                    \
    .options = {.steps = 1000, .batch = 16384, .rate = 1e-3f, .seed = 1}, .type = "q8_0", .width = width_,             \
    .layers = layers_, .heads = heads_, .context = 1024                                                                \
  }

/* The shape's defaults, as in UST_CLI_TRAINING, are for help. */
#define UST_OPTIONS_TRAINING(c, width_, layers_, heads_)                                                               \
  {UST_TEXT("corpus", 0, &(c)->options.corpus, "FILE", "the text to learn"), .required = true},                        \
      {UST_TEXT("heldout", 0, &(c)->options.heldout, "FILE", "text to measure the loss on")},                          \
      {UST_TEXT("output", 'o', &(c)->options.output, "OUT.gguf", "the model to write"), .required = true},             \
      {UST_CHOICE("type", &(c)->type, "q8_0|bf16|f16|f32", "of its matrices [q8_0]")},                                 \
      {UST_TEXT("checkpoint", 0, &(c)->options.checkpoint, "FILE",                                                     \
                "written every two minutes and when stopped, gone on from when it exists [OUT.gguf.ckpt, removed at "  \
                "the end]")},                                                                                          \
      {UST_TEXT("from", 0, &(c)->from, "MODEL", "start from the values of this model, whose shape the new one has")},  \
      {UST_TEXT("log", 0, &(c)->options.log, "FILE", "write each step's loss as CSV")},                                \
      {UST_INT("width", 0, &(c)->options.width, "N", "of the model, divisible by 32 [" #width_ "]", 32, 16384)},       \
      {UST_INT("layers", 0, &(c)->options.layers, "N", "of the model [" #layers_ "]", 1, 512)},                        \
      {UST_INT("heads", 0, &(c)->options.heads, "N",                                                                   \
               "of the model; their size, width / heads, is divisible by 32 [" #heads_ "]", 1, 512)},                  \
      {UST_INT("context", 0, &(c)->options.context, "N", "positions the model has [1024]", UST_TRAIN_WINDOW, 65536)},  \
      {UST_INT("steps", 0, &(c)->options.steps, "N", "updates of the weights [1000]", 1, 100000000)},                  \
      {UST_INT("batch", 0, &(c)->options.batch, "TOKENS", "of one step [16384]", UST_TRAIN_WINDOW, 16777216)},         \
      {UST_REAL("rate", &(c)->options.rate, "R", "highest learning rate [0.001]", 1e-9, 1)},                           \
      {UST_SEED("seed", &(c)->options.seed, "S", "of initial weights and order of the text [1]")},                     \
      UST_OPTIONS_MACHINE(&(c)->machine), UST_OPTIONS_QUIET(&(c)->quiet)

/* Opens the tokenizer, trains, reports; returns the exit code. */
int ust_cli_run_training(ust_cli_training *cli);

#endif
