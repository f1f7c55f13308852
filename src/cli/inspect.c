/* understudy inspect: what is in a model file: its configuration, its keys, its tensors. */
#include "cli/cli.h"

static void print_key(void *user, const char *key, const char *value) {
  (void)user;
  printf("  %-40s %s\n", key, value);
}

static void print_config(const ust_weights *weights) {
  const ust_config *c = ust_weights_config(weights);
  uint64_t parameters = 0, bytes = 0;
  for (size_t i = 0; i < ust_weights_count(weights); i++) {
    const ust_tensor *tensor = ust_weights_tensor(weights, i);
    parameters += tensor->rows * tensor->cols;
    bytes += tensor->bytes;
  }
  printf("%s\n", ust_weights_path(weights));
  printf("  architecture  %s%s%s\n", c->architecture, c->name[0] ? ", " : "", c->name);
  printf("  shape         %d layers, width %d, %d heads of %d, feed-forward %d\n", c->layers, c->width, c->heads,
         c->heads ? c->width / c->heads : 0, c->feed_forward);
  printf("  context       %d tokens\n  vocabulary    %d tokens", c->context, c->vocabulary);
  if (c->eos >= 0) printf(", end-of-text %d", c->eos);
  printf("\n  parameters    %llu in %zu tensors, %.1f MB\n", (unsigned long long)parameters, ust_weights_count(weights),
         (double)bytes / 1e6);
}

static void print_tensors(const ust_weights *weights) {
  printf("\ntensors (outputs x inputs)\n");
  for (size_t i = 0; i < ust_weights_count(weights); i++) {
    const ust_tensor *t = ust_weights_tensor(weights, i);
    char shape[48];
    if (t->rows == 1)
      snprintf(shape, sizeof shape, "%llu", (unsigned long long)t->cols);
    else
      snprintf(shape, sizeof shape, "%llu x %llu", (unsigned long long)t->rows, (unsigned long long)t->cols);
    char name[64];
    snprintf(name, sizeof name, "%s", t->name);
    ust_make_printable(name);
    printf("  %-36s %-5s %16s %12llu bytes\n", name, ust_type_name(t->type), shape, (unsigned long long)t->bytes);
  }
}

int ust_cli_inspect(int argc, char **argv) {
  const ust_option options[] = {UST_OPTIONS_END};
  const ust_cli_help help = {
      .command = "inspect",
      .usage = "inspect MODEL",
      .about = "Prints a model's shape, its keys and its tensors. MODEL is a GGUF file or a Hugging Face directory.",
      .example = "understudy inspect draft.gguf",
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (optind >= argc) return ust_cli_usage("inspect", "MODEL is missing");
  if (!ust_cli_no_more("inspect", argc, argv, optind + 1, &code)) return code;
  understudy_error err = {0};
  ust_weights *weights;
  if (ust_weights_open(argv[optind], &weights, &err) != UNDERSTUDY_OK) return ust_cli_fail(&err);
  print_config(weights);
  if (!ust_weights_is_directory(weights)) {
    printf("\nkeys\n");
    ust_weights_each_key(weights, print_key, NULL);
  }
  print_tensors(weights);
  ust_weights_close(weights);
  return UST_EXIT_OK;
}
