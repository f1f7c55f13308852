/* understudy, the command: finds the subcommand and leaves everything else to it. */
#include <fcntl.h>
#include <signal.h>

#include "cli/cli.h"

typedef struct command {
  const char *name;
  int (*run)(int argc, char **argv);
  const char *summary;
} command;

static const command commands[] = {
    {"run", ust_cli_run, "continue a text"},
    {"bench", ust_cli_bench, "plain, speculative and staged decoding side by side on a prompt set"},
    {"roofline", ust_cli_roofline, "measure the machine and draw its roofline chart"},
    {"eval", ust_cli_eval, "perplexity and bits per byte of a text"},
    {"tokenize", ust_cli_tokenize, "token ids of a text, and back"},
    {"inspect", ust_cli_inspect, "what is in a model file"},
    {"train", ust_cli_train, "train a GPT-2 on a text corpus"},
    {"distill", ust_cli_distill, "train a small draft model to imitate a target"},
    {"ngram", ust_cli_ngram, "fit an n-gram file on text a draft model writes"},
    {"grow", ust_cli_grow, "turn a small GPT-2 into a large one that computes the same"},
    {"quantize", ust_cli_quantize, "rewrite a model as Q4_0, Q8_0, BF16, F16 or F32"},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static int print_help(void) {
  printf("understudy: a large language model's answer, several times sooner,\nand never a byte different\n\n"
         "usage: understudy COMMAND [options]\n\n");
  for (int i = 0; i < COMMANDS; i++) printf("  %-10s %s\n", commands[i].name, commands[i].summary);
  printf("\n  understudy COMMAND --help   the options of a command, with an example\n"
         "  understudy --version        version and kernel level\n\n"
         "Text goes to stdout, everything else to stderr. Exit code: 0 done, 1 failed,\n"
         "2 wrong usage. What passes cost on this machine is kept in the user's cache\n"
         "directory (~/.cache/understudy).\n\n"
         "example:\n  understudy run -m gpt2-large/ -d draft.gguf \"def fibonacci(n):\"\n");
  return UST_EXIT_OK;
}

static int dispatch(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "understudy: found no command, expected one of those 'understudy --help' lists\n");
    return UST_EXIT_USAGE;
  }
  const char *name = argv[1];
  if (strcmp(name, "help") == 0 && argc > 2) return dispatch(3, (char *[]){argv[0], argv[2], (char[]){"--help"}, NULL});
  if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) return print_help();
  if (strcmp(name, "--version") == 0) {
    printf("understudy %s (%s kernels)\n", understudy_version(), understudy_best_isa());
    return UST_EXIT_OK;
  }
  for (int i = 0; i < COMMANDS; i++)
    if (strcmp(name, commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
  understudy_error line;
  ust_error(&line, UNDERSTUDY_ERROR_ARGUMENT, "unknown command '%.200s' (see 'understudy --help')", name);
  fprintf(stderr, "understudy: %s\n", line.message);
  return UST_EXIT_USAGE;
}

/* A stream the caller closed must not become the number of the next file opened. Its stand-in gives the same error:
 * standard input cannot be read, standard output not written. */
static void hold_streams(void) {
  static const int modes[] = {O_WRONLY, O_RDONLY, O_WRONLY};
  for (int fd = 0; fd < 3; fd++)
    if (fcntl(fd, F_GETFD) < 0) (void)!open("/dev/null", modes[fd]); /* the lowest free number: fd */
}

int main(int argc, char **argv) {
  hold_streams();
  signal(SIGPIPE, SIG_IGN); /* a closed pipe is a write error like any other, */
  signal(SIGXFSZ, SIG_IGN); /* and so is a file larger than the user's limit */
  return ust_cli_finish(dispatch(argc, argv));
}
