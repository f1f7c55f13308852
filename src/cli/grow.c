/* understudy grow: a small GPT-2 in a larger GPT-2's shape, computing the same; to measure the large shape's cost
 * on real text. */
#include "cli/cli.h"
#include "train/grow.h"

typedef struct grow_options {
  const char *like, *output, *type;
  bool quiet;
} grow_options;

static understudy_status grow_into(const ust_weights *small, const grow_options *o, ust_gguf_writer *writer,
                                   const ust_tokenizer *tokenizer, const ust_config *big, understudy_error *err) {
  ust_type type = ust_cli_type(o->type);
  ust_gguf_config(writer, big, type);
  ust_gguf_vocabulary(writer, ust_tokenizer_vocabulary(tokenizer));
  return ust_train_grow(small, big, type, writer, ust_cli_progress, NULL, err);
}

static understudy_status grow(const char *input, const grow_options *o, understudy_error *err) {
  ust_weights *small = NULL;
  ust_tokenizer *tokenizer = NULL;
  ust_gguf_writer *writer = NULL;
  ust_config big;
  understudy_status status = ust_cli_check_kept(input, o->output, err);
  if (status == UNDERSTUDY_OK) status = ust_weights_open(input, &small, err);
  if (status == UNDERSTUDY_OK) status = ust_train_grow_config(ust_weights_config(small), input, o->like, &big, err);
  if (status == UNDERSTUDY_OK) status = ust_cli_tokenizer(input, small, &tokenizer, err);
  if (status == UNDERSTUDY_OK) status = ust_gguf_create(o->output, &writer, err);
  if (status == UNDERSTUDY_OK) {
    snprintf(big.name, sizeof big.name, "%.30s grown to %.20s", ust_weights_config(small)->name, o->like);
    status = grow_into(small, o, writer, tokenizer, &big, err);
    if (status == UNDERSTUDY_OK)
      status = ust_gguf_commit(writer, err);
    else
      ust_gguf_abandon(writer);
  }
  ust_tokenizer_free(tokenizer);
  ust_weights_close(small);
  return status;
}

int ust_cli_grow(int argc, char **argv) {
  grow_options o = {.type = "bf16"};
  const ust_option options[] = {
      {UST_CHOICE("like", &o.like, "gpt2|gpt2-medium|gpt2-large|gpt2-xl", "the shape to grow to"), .required = true},
      {UST_TEXT("output", 'o', &o.output, "BIG", "the GGUF file to write"), .required = true},
      {UST_CHOICE("type", &o.type, "q8_0|bf16|f16|f32", "of the matrices [bf16]; gains and biases stay f32")},
      UST_OPTIONS_QUIET(&o.quiet),
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "grow",
      .usage = "grow --like SHAPE SMALL -o BIG",
      .about = "Turns a small GPT-2 into one of a larger shape that computes the same function: every coordinate "
               "and head repeated, added layers silent. It costs what the large one costs and writes what the "
               "small one writes.",
      .notes = "SMALL needs heads of 64 and a width that divides the shape's (1280 for gpt2-large).",
      .example = "understudy grow --like gpt2-large small.gguf -o large.gguf",
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (optind >= argc) return ust_cli_usage("grow", "SMALL is missing");
  if (!ust_cli_no_more("grow", argc, argv, optind + 1, &code)) return code;
  ust_cli_set_quiet(o.quiet);
  ust_cli_catch_signals();
  understudy_error err = {0};
  if (grow(argv[optind], &o, &err) != UNDERSTUDY_OK) return ust_cli_fail(&err);
  ust_cli_note_written(o.output);
  return UST_EXIT_OK;
}
