/* understudy quantize: rewrites a model as a GGUF file of another weight type, a few rows at a time, with the
 * vocabulary in it. */
#include "cli/cli.h"

enum { CHUNK_FLOATS = 1 << 20 };

static understudy_status copy_tensor(const ust_weights *weights, const ust_tensor *tensor, ust_gguf_writer *writer,
                                     float *rows, uint64_t chunk, understudy_error *err) {
  for (uint64_t row = 0; row < tensor->rows; row += chunk) {
    uint64_t count = UST_MIN(chunk, tensor->rows - row);
    UST_TRY(ust_weights_read_rows(weights, tensor, row, count, rows, err));
    ust_gguf_rows(writer, rows, count);
  }
  return UNDERSTUDY_OK;
}

static understudy_status copy_tensors(const ust_weights *weights, ust_gguf_writer *writer, ust_type type,
                                      understudy_error *err) {
  uint64_t widest = 1, done = 0, total = 0;
  for (size_t i = 0; i < ust_weights_count(weights); i++) {
    const ust_tensor *tensor = ust_weights_tensor(weights, i);
    if (tensor->cols % (uint64_t)ust_type_block(ust_gguf_type(tensor->name, tensor->rows, type)))
      return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                       "%s: %s: found rows of %llu, expected a multiple of 32 for %s", ust_weights_path(weights),
                       tensor->name, (unsigned long long)tensor->cols,
                       ust_type_name(ust_gguf_type(tensor->name, tensor->rows, type)));
    ust_gguf_declare(writer, tensor->name, ust_gguf_type(tensor->name, tensor->rows, type), tensor->rows, tensor->cols);
    widest = UST_MAX(widest, tensor->cols);
    total += tensor->rows * tensor->cols;
  }
  uint64_t floats = UST_MAX(widest, (uint64_t)CHUNK_FLOATS);
  float *rows = ust_alloc(floats * sizeof *rows);
  if (!rows) return ust_error_memory(err, floats * sizeof *rows, "rows");
  understudy_status status = UNDERSTUDY_OK;
  for (size_t i = 0; i < ust_weights_count(weights) && status == UNDERSTUDY_OK; i++) {
    const ust_tensor *tensor = ust_weights_tensor(weights, i);
    if (ust_cli_progress(NULL, "quantizing", done, total))
      status = ust_error(err, UNDERSTUDY_ERROR_CANCELLED, "stopped");
    else
      status = copy_tensor(weights, tensor, writer, rows, floats / tensor->cols, err);
    done += tensor->rows * tensor->cols;
  }
  ust_free(rows);
  return status;
}

static understudy_status quantize(const char *input, const char *output, ust_type type, understudy_error *err) {
  ust_weights *weights = NULL;
  ust_tokenizer *tokenizer = NULL;
  ust_gguf_writer *writer = NULL;
  understudy_status status = ust_cli_check_kept(input, output, err);
  if (status == UNDERSTUDY_OK) status = ust_weights_open(input, &weights, err);
  if (status == UNDERSTUDY_OK) status = ust_cli_tokenizer(input, weights, &tokenizer, err);
  if (status == UNDERSTUDY_OK) status = ust_gguf_create(output, &writer, err);
  if (status == UNDERSTUDY_OK) {
    ust_gguf_config(writer, ust_weights_config(weights), type);
    ust_gguf_vocabulary(writer, ust_tokenizer_vocabulary(tokenizer));
    status = copy_tensors(weights, writer, type, err);
    if (status == UNDERSTUDY_OK)
      status = ust_gguf_commit(writer, err);
    else
      ust_gguf_abandon(writer);
  }
  ust_tokenizer_free(tokenizer);
  ust_weights_close(weights);
  return status;
}

int ust_cli_quantize(int argc, char **argv) {
  const char *output = NULL, *type = NULL;
  bool quiet = false;
  const ust_option options[] = {
      {UST_TEXT("output", 'o', &output, "OUT", "the GGUF file to write"), .required = true},
      {UST_CHOICE("type", &type, "q4_0|q8_0|bf16|f16|f32", "of the matrices; gains and biases stay f32"),
       .required = true},
      UST_OPTIONS_QUIET(&quiet),
      UST_OPTIONS_END,
  };
  const ust_cli_help help = {
      .command = "quantize",
      .usage = "quantize MODEL -o OUT --type q4_0|q8_0|bf16|f16|f32",
      .about = "Rewrites a model (a GGUF file or a Hugging Face directory) as a GGUF file of another weight type.",
      .example = "understudy quantize gpt2-large/ -o gpt2-large-q8.gguf --type q8_0",
  };
  int code;
  if (!ust_cli_parse(&help, options, argc, argv, &code)) return code;
  if (optind >= argc) return ust_cli_usage("quantize", "MODEL is missing");
  if (!ust_cli_no_more("quantize", argc, argv, optind + 1, &code)) return code;
  ust_cli_set_quiet(quiet);
  ust_cli_catch_signals();
  understudy_error err = {0};
  if (quantize(argv[optind], output, ust_cli_type(type), &err) != UNDERSTUDY_OK) return ust_cli_fail(&err);
  ust_cli_note_written(output);
  return UST_EXIT_OK;
}
