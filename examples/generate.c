/* The smallest useful program with libunderstudy: continues a prompt.
 *
 *   cc generate.c -o generate $(pkg-config --cflags --libs understudy)
 *   ./generate gpt2-large/ "def fibonacci(n):" [DRAFT] [NGRAM] */
#include <stdio.h>
#include <string.h>
#include <understudy.h>

static bool print_token(void *user, int32_t token, const char *bytes, size_t length, understudy_origin origin) {
  (void)user, (void)token, (void)origin;
  fwrite(bytes, 1, length, stdout);
  fflush(stdout);
  return false; /* true would stop here */
}

int main(int argc, char **argv) {
  if (argc < 3) return fprintf(stderr, "usage: %s TARGET PROMPT [DRAFT] [NGRAM]\n", argv[0]), 2;

  understudy_error err = {0};
  understudy_engine *engine = NULL;
  understudy_session *session = NULL;
  int32_t *tokens = NULL;
  size_t count = 0;

  understudy_engine_options options = {.target = argv[1]};
  if (argc > 3) options.draft = argv[3];
  if (argc > 4) options.ngram = argv[4];
  understudy_sampling sampling = {.temperature = 0.8f, .top_k = 50, .top_p = 1, .seed = 1};

  bool ok = understudy_engine_open(&options, &engine, &err) == UNDERSTUDY_OK &&
            understudy_session_create(engine, UNDERSTUDY_STAGED, &sampling, &session, &err) == UNDERSTUDY_OK &&
            understudy_tokenize(engine, argv[2], strlen(argv[2]), false, &tokens, &count, &err) == UNDERSTUDY_OK &&
            understudy_session_prompt(session, tokens, count, NULL, NULL, &err) == UNDERSTUDY_OK &&
            understudy_session_generate(session, 64, print_token, NULL, NULL, &err) == UNDERSTUDY_OK;
  if (!ok) fprintf(stderr, "%s\n", err.message);

  understudy_free(tokens);
  understudy_session_close(session);
  understudy_engine_close(engine);
  return ok ? 0 : 1;
}
