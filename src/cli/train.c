/* understudy train: makes a GPT-2 from a text file; and what it shares with `distill`, which differs by a teacher. */
#include <errno.h>
#include <math.h>
#include <unistd.h>

#include "cli/train_options.h"

enum { NOTE_S = 30 /* seconds between lines when there is no terminal */ };

/* A bar on a terminal; elsewhere a line at every held-out measurement and every half minute. */
static void show_progress(void *user, const ust_train_progress *p) {
  uint64_t *noted_ns = user, now = ust_clock_ns();
  bool terminal = ust_cli_draws();
  char text[160], left[UST_LEFT_SIZE];
  int length = snprintf(text, sizeof text, "step %d/%d  loss %.3f", p->step, p->steps, p->loss);
  if (!isnan(p->kl)) length += snprintf(text + length, sizeof text - (size_t)length, "  KL %.3f", p->kl);
  if (!isnan(p->heldout))
    length += snprintf(text + length, sizeof text - (size_t)length, "  held-out %.3f", p->heldout);
  ust_cli_left(terminal ? -1 : p->seconds_left, left); /* a bar says it itself */
  snprintf(text + length, sizeof text - (size_t)length, "  %.0f tokens/s%s", p->tokens_per_s, left);
  if (!isnan(p->heldout) || p->step == p->steps || (!terminal && now - *noted_ns > NOTE_S * 1000000000ull)) {
    ust_cli_note("%s", text);
    *noted_ns = now;
  }
  if (terminal) ust_cli_progress(NULL, text, (uint64_t)p->step, (uint64_t)p->steps);
}

static bool asked_to_stop(void *user) {
  (void)user;
  return ust_cli_stopped();
}

/* Nothing a run reads may be what it writes, and nothing is written twice. */
static understudy_status check_outputs(const ust_cli_training *cli, understudy_error *err) {
  const ust_train_options *o = &cli->options;
  const char *inputs[] = {o->corpus, o->heldout, cli->tokenizer, cli->teacher, cli->from};
  const char *outputs[] = {o->output, o->checkpoint, o->log};
  for (size_t in = 0; in < sizeof inputs / sizeof *inputs; in++)
    for (int out = 0; out < 3; out++) UST_TRY(ust_cli_check_kept(inputs[in], outputs[out], err));
  return ust_cli_check_distinct(outputs, 3, err);
}

/* What the command says of a shape, the model it starts from, or else the default. */
static understudy_status choose_size(const char *option, int *size, int of_model, int otherwise, const char *model,
                                     understudy_error *err) {
  if (*size && of_model && *size != of_model)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "--%s is %d, expected %d as that of %s", option, *size, of_model,
                     model);
  if (!*size) *size = of_model ? of_model : otherwise;
  return UNDERSTUDY_OK;
}

static understudy_status choose_shape(ust_cli_training *cli, const ust_config *from, understudy_error *err) {
  ust_train_options *o = &cli->options;
  UST_TRY(choose_size("width", &o->width, from ? from->width : 0, cli->width, cli->from, err));
  UST_TRY(choose_size("layers", &o->layers, from ? from->layers : 0, cli->layers, cli->from, err));
  UST_TRY(choose_size("heads", &o->heads, from ? from->heads : 0, cli->heads, cli->from, err));
  return choose_size("context", &o->context, from ? from->context : 0, cli->context, cli->from, err);
}

/* Opens what the run starts from, if anything, and settles its shape. */
static understudy_status open_start(ust_cli_training *cli, ust_weights **start, understudy_error *err) {
  if (!cli->from) return choose_shape(cli, NULL, err);
  UST_TRY(ust_weights_open(cli->from, start, err));
  cli->options.start = *start;
  return choose_shape(cli, ust_weights_config(*start), err);
}

int ust_cli_run_training(ust_cli_training *cli) {
  ust_train_options *o = &cli->options;
  understudy_error err;
  ust_tokenizer *tokenizer = NULL;
  ust_weights *start = NULL;
  uint64_t noted_ns = 0;
  ust_cli_set_quiet(cli->quiet);
  ust_cli_catch_signals();
  o->type = ust_cli_type(cli->type);
  o->progress = show_progress;
  o->stop = asked_to_stop;
  o->user = &noted_ns;
  char checkpoint[4096];                                            /* as long as a path can be */
  bool own_checkpoint = !o->checkpoint && !ust_in_place(o->output); /* there is no place beside a pipe */
  if (own_checkpoint) {
    int length = snprintf(checkpoint, sizeof checkpoint, "%s.ckpt", o->output);
    if (length < 0 || (size_t)length >= sizeof checkpoint) {
      ust_error(&err, UNDERSTUDY_ERROR_IO, "%s: cannot write: %s", o->output, strerror(ENAMETOOLONG));
      return ust_cli_fail(&err);
    }
    o->checkpoint = checkpoint;
  }
  understudy_status status = check_outputs(cli, &err);
  if (status == UNDERSTUDY_OK) status = open_start(cli, &start, &err);
  if (status == UNDERSTUDY_OK) status = ust_cli_machine(&cli->machine, &o->kernels, &o->threads, &err);
  if (status == UNDERSTUDY_OK) status = ust_cli_tokenizer(cli->tokenizer, cli->tokenizer_weights, &tokenizer, &err);
  o->tokenizer = tokenizer;
  if (status == UNDERSTUDY_OK && o->teacher && !start && !ust_train_starts_as_teacher(o)) {
    const ust_config *c = ust_weights_config(o->teacher);
    ust_cli_note("the draft starts at random: to start as the teacher it has to be at most %d wide, its heads %d",
                 c->width, c->width / c->heads);
  }
  ust_cli_progress(NULL, "reading the text, first step", 0, 1);
  if (status == UNDERSTUDY_OK) status = ust_train(o, &err);
  ust_tokenizer_free(tokenizer);
  ust_weights_close(start);
  ust_cli_progress_clear();
  if (status == UNDERSTUDY_OK) {
    if (own_checkpoint) unlink(checkpoint);
    ust_cli_note_written(o->output);
    return UST_EXIT_OK;
  }
  return ust_cli_fail(&err);
}

int ust_cli_train(int argc, char **argv) {
  static const ust_cli_help help = {
      .command = "train",
      .usage = "train --corpus FILE --tokenizer PATH -o OUT.gguf [options]",
      .about = "Trains a GPT-2 on a text file whose documents are separated by zero bytes. Stopped or killed, the "
               "same command goes on from the checkpoint with the same bits.",
      .notes = "Training windows are 256 tokens long and lie at random positions of the context. A run may be made "
               "longer or shorter on its way: the rate falls towards the new --steps from then on.",
      .example = "understudy train --corpus train.txt --tokenizer gpt2/ \\\n    --checkpoint run.ckpt -o small.gguf"};
  ust_cli_training cli = UST_CLI_TRAINING(320, 10, 5);
  const ust_option options[] = {
      {UST_TEXT("tokenizer", 0, &cli.tokenizer, "PATH", "a GGUF file or a Hugging Face directory"), .required = true},
      UST_OPTIONS_TRAINING(&cli, 320, 10, 5),
      UST_OPTIONS_END,
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code) || !ust_cli_no_more("train", argc, argv, optind, &code))
    return code;
  return ust_cli_run_training(&cli);
}
