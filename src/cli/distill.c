/* understudy distill: a small GPT-2 that speaks like a larger one: it starts as the teacher made smaller and learns the
 * teacher's distribution (KL over candidates, train/candidates.c). The tokenizer is the teacher's. */
#include "cli/train_options.h"

int ust_cli_distill(int argc, char **argv) {
  static const ust_cli_help help = {
      .command = "distill",
      .usage = "distill --teacher T.gguf --corpus FILE -o OUT.gguf [options]",
      .about = "Makes a draft model of a teacher: it starts as the teacher made smaller (or as --from) and learns, on "
               "a text "
               "file, to give each token the probability the teacher gives it. Documents are separated by "
               "zero bytes. Stopped or killed, the same command goes on.",
      .notes = "Only a draft no wider than the teacher, with heads of its size (64 in GPT-2), starts that "
               "way; others start at random. Training windows are 256 tokens long and lie at random positions "
               "of the context. A run may be made longer or shorter on its way: the rate falls towards the "
               "new --steps from then on.",
      .example = "understudy distill --teacher target.gguf --corpus train.txt \\\n    --steps 1000 -o draft.gguf"};
  ust_cli_training cli = UST_CLI_TRAINING(128, 2, 2);
  const ust_option options[] = {
      {UST_TEXT("teacher", 0, &cli.teacher, "T", "a GGUF file or a Hugging Face directory"), .required = true},
      UST_OPTIONS_TRAINING(&cli, 128, 2, 2),
      {UST_TEXT("tokenizer", 0, &cli.tokenizer, "PATH", "where to find it [the teacher's own]")},
      UST_OPTIONS_END,
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code) || !ust_cli_no_more("distill", argc, argv, optind, &code))
    return code;
  understudy_error err;
  ust_weights *weights;
  if (ust_weights_open(cli.teacher, &weights, &err) != UNDERSTUDY_OK) return ust_cli_fail(&err);
  if (!cli.tokenizer) {
    cli.tokenizer = cli.teacher;
    cli.tokenizer_weights = weights;
  }
  cli.options.teacher = weights;
  code = ust_cli_run_training(&cli);
  ust_weights_close(weights);
  return code;
}
