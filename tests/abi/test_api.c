/* The public API as an embedder meets it: understudy.h and the shared library, nothing else. What a careless caller
 * passes is an error with a line that names it, never a crash, and nothing is left in the results. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <understudy.h>

#define MODEL FIXTURES "/gpt2-tiny"

static understudy_engine *engine;

static int open_engine(void **state) {
  (void)state;
  understudy_engine_options options = {.target = MODEL, .draft = MODEL};
  return understudy_engine_open(&options, &engine, NULL) == UNDERSTUDY_OK ? 0 : 1;
}

static int close_engine(void **state) {
  (void)state;
  understudy_engine_close(engine);
  return 0;
}

static understudy_session *session_of(understudy_mode mode, const understudy_sampling *sampling) {
  understudy_session *session = NULL;
  assert_int_equal(understudy_session_create(engine, mode, sampling, &session, NULL), UNDERSTUDY_OK);
  return session;
}

#define REFUSED(call, word)                                                                                            \
  do {                                                                                                                 \
    assert_int_equal(call, UNDERSTUDY_ERROR_ARGUMENT);                                                                 \
    assert_int_equal(err.status, UNDERSTUDY_ERROR_ARGUMENT);                                                           \
    if (!strstr(err.message, word)) fail_msg("%s: does not say %s", err.message, word);                                \
  } while (0)

static void test_null_is_an_error(void **state) {
  (void)state;
  understudy_error err;
  understudy_engine *opened = engine;
  understudy_session *session = session_of(UNDERSTUDY_PLAIN, NULL), *made = session;
  understudy_engine_options options = {.target = MODEL}, nothing = {0};
  int32_t ids[] = {1, 2, 3}, *tokens = ids;
  size_t count = 3;
  REFUSED(understudy_engine_open(&options, NULL, &err), "engine");
  REFUSED(understudy_engine_open(NULL, &opened, &err), "options");
  assert_null(opened);
  opened = engine;
  REFUSED(understudy_engine_open(&nothing, &opened, &err), "target");
  assert_null(opened);
  REFUSED(understudy_tokenize(NULL, "a", 1, false, &tokens, &count, &err), "engine");
  assert_true(!tokens && count == 0);
  REFUSED(understudy_tokenize(engine, NULL, 1, false, &tokens, &count, &err), "text");
  REFUSED(understudy_tokenize(engine, "a", 1, false, NULL, &count, &err), "tokens");
  REFUSED(understudy_tokenize(engine, "a", 1, false, &tokens, NULL, &err), "count");
  REFUSED(understudy_session_create(engine, UNDERSTUDY_PLAIN, NULL, NULL, &err), "session");
  REFUSED(understudy_session_create(NULL, UNDERSTUDY_PLAIN, NULL, &made, &err), "engine");
  assert_null(made);
  made = session;
  REFUSED(understudy_session_create(engine, (understudy_mode)99, NULL, &made, &err), "99");
  assert_null(made);
  REFUSED(understudy_session_reset(NULL, NULL, &err), "session");
  REFUSED(understudy_session_prompt(NULL, ids, 3, NULL, NULL, &err), "session");
  REFUSED(understudy_session_prompt(session, NULL, 3, NULL, NULL, &err), "tokens");
  int generated = 7;
  REFUSED(understudy_session_generate(NULL, 1, NULL, NULL, &generated, &err), "session");
  assert_int_equal(generated, 0);
  REFUSED(understudy_session_generate(session, 1, NULL, NULL, NULL, &err), "prompt");
  float logprobs[2];
  REFUSED(understudy_session_score(NULL, ids, 3, logprobs, NULL, NULL, &err), "session");
  REFUSED(understudy_session_score(session, NULL, 3, logprobs, NULL, NULL, &err), "tokens");
  REFUSED(understudy_session_score(session, ids, 3, NULL, NULL, NULL, &err), "logprobs");
  assert_int_equal(understudy_session_prompt(NULL, ids, 3, NULL, NULL, NULL), UNDERSTUDY_ERROR_ARGUMENT); /* no err */

  understudy_engine_info info;
  memset(&info, 1, sizeof info);
  understudy_engine_get_info(NULL, &info);
  assert_true(info.vocabulary == 0 && info.end_token == -1 && !info.isa);
  understudy_engine_get_info(engine, NULL);
  understudy_stats stats;
  memset(&stats, 1, sizeof stats);
  understudy_session_get_stats(NULL, &stats);
  assert_int_equal(stats.tokens, 0);
  understudy_session_get_stats(session, NULL);
  understudy_session_reset_stats(NULL);
  assert_int_equal(understudy_session_length(NULL), 0);
  assert_null(understudy_token_bytes(NULL, 1, &count));
  assert_non_null(understudy_token_bytes(engine, 1, NULL));
  assert_null(understudy_token_bytes(engine, -1, NULL));
  understudy_session_close(NULL);
  understudy_engine_close(NULL);
  understudy_free(NULL);
  understudy_session_close(session);
}

typedef struct text {
  int count, stop_after;
  int32_t tokens[64];
} text;

static bool keep(void *user, int32_t token, const char *bytes, size_t length, understudy_origin origin) {
  text *t = user;
  assert_true(bytes && length > 0 && origin <= UNDERSTUDY_FROM_CONTEXT);
  t->tokens[t->count++] = token;
  return t->count == t->stop_after;
}

static text write_text(understudy_session *session, int length, int stop_after) {
  static const int32_t prompt[] = {5, 6, 7};
  text t = {.stop_after = stop_after};
  int generated = -1;
  assert_int_equal(understudy_session_reset(session, NULL, NULL), UNDERSTUDY_OK);
  assert_int_equal(understudy_session_length(session), 0);
  assert_int_equal(understudy_session_prompt(session, prompt, 3, NULL, NULL, NULL), UNDERSTUDY_OK);
  assert_int_equal(understudy_session_length(session), 3);
  assert_int_equal(understudy_session_generate(session, length, keep, &t, &generated, NULL), UNDERSTUDY_OK);
  assert_int_equal(generated, t.count);
  assert_int_equal(understudy_session_length(session), 3 + t.count);
  return t;
}

static bool same(const text *a, const text *b) {
  return a->count == b->count && memcmp(a->tokens, b->tokens, (size_t)a->count * sizeof *a->tokens) == 0;
}

static void test_modes_write_the_same(void **state) {
  (void)state;
  const understudy_sampling cases[] = {{.temperature = 0}, {.temperature = 1, .top_k = 20, .seed = 3}};
  for (int i = 0; i < 2; i++) {
    understudy_session *plain = session_of(UNDERSTUDY_PLAIN, &cases[i]);
    text expected = write_text(plain, 40, 0);
    for (int mode = UNDERSTUDY_SPECULATIVE; mode <= UNDERSTUDY_STAGED; mode++) {
      understudy_session *session = session_of((understudy_mode)mode, &cases[i]);
      text found = write_text(session, 40, 0);
      assert_true(same(&expected, &found));
      text again = write_text(session, 40, 0);
      assert_true(same(&expected, &again));
      text stopped = write_text(session, 40, 5);
      assert_int_equal(stopped.count, 5);
      assert_memory_equal(stopped.tokens, expected.tokens, 5 * sizeof *expected.tokens);
      text full = write_text(session, 1000, 0);
      assert_true(full.count <= 61 && memcmp(full.tokens, expected.tokens, sizeof(int32_t) * 40) == 0);
      understudy_session_close(session);
    }
    understudy_session_close(plain);
  }
}

static void test_zeros_are_greedy(void **state) {
  (void)state;
  understudy_sampling zeros = {0};
  understudy_session *a = session_of(UNDERSTUDY_PLAIN, NULL), *b = session_of(UNDERSTUDY_PLAIN, &zeros);
  text one = write_text(a, 20, 0), other = write_text(b, 20, 0);
  assert_true(same(&one, &other));
  understudy_error err;
  understudy_sampling bad = {.top_p = 1.5f};
  REFUSED(understudy_session_reset(b, &bad, &err), "top_p");
  assert_int_equal(understudy_session_length(b), 23); /* nothing changed */
  understudy_session_close(a);
  understudy_session_close(b);
}

/* A callback that tries to use the session it is called by; its length and statistics may be asked. */
static bool meddle(void *user, int32_t token, const char *bytes, size_t length, understudy_origin origin) {
  (void)bytes, (void)length, (void)origin;
  understudy_session *session = ((void **)user)[0];
  text *t = ((void **)user)[1];
  understudy_error err;
  understudy_stats stats;
  float logprob;
  const int32_t two[] = {1, 2};
  REFUSED(understudy_session_reset(session, NULL, &err), "callback");
  REFUSED(understudy_session_prompt(session, two, 1, NULL, NULL, &err), "callback");
  REFUSED(understudy_session_generate(session, 1, NULL, NULL, NULL, &err), "callback");
  REFUSED(understudy_session_score(session, two, 2, &logprob, NULL, NULL, &err), "callback");
  understudy_session_reset_stats(session);
  understudy_session_close(session); /* neither does anything here */
  understudy_session_get_stats(session, &stats);
  assert_true(stats.prompt_seconds > 0);
  size_t held = understudy_session_length(session);
  assert_true(held >= 3 && held <= 3 + (size_t)t->count);
  t->tokens[t->count++] = token;
  return false;
}

static void test_callbacks_cannot_meddle(void **state) {
  (void)state;
  static const int32_t prompt[] = {5, 6, 7};
  for (int mode = UNDERSTUDY_PLAIN; mode <= UNDERSTUDY_STAGED; mode++) {
    understudy_session *session = session_of((understudy_mode)mode, NULL);
    text expected = write_text(session, 30, 0), found = {0};
    void *both[] = {session, &found};
    assert_int_equal(understudy_session_reset(session, NULL, NULL), UNDERSTUDY_OK);
    assert_int_equal(understudy_session_prompt(session, prompt, 3, NULL, NULL, NULL), UNDERSTUDY_OK);
    assert_int_equal(understudy_session_generate(session, 30, meddle, both, NULL, NULL), UNDERSTUDY_OK);
    assert_true(same(&expected, &found));
    assert_int_equal(understudy_session_length(session), 33);
    understudy_session_close(session);
  }
}

static bool cancel(void *user, const char *what, uint64_t done, uint64_t total) {
  (void)user;
  assert_string_equal(what, "prompt");
  return done <= total;
}

static void test_cancelled_prompt_is_evaluated_later(void **state) {
  (void)state;
  understudy_error err;
  int32_t prompt[40];
  for (int i = 0; i < 40; i++) prompt[i] = i + 3;
  understudy_session *a = session_of(UNDERSTUDY_STAGED, NULL), *b = session_of(UNDERSTUDY_STAGED, NULL);
  text one = {0}, other = {0};
  assert_int_equal(understudy_session_prompt(a, prompt, 40, cancel, NULL, &err), UNDERSTUDY_ERROR_CANCELLED);
  assert_int_equal(understudy_session_length(a), 40);
  understudy_stats stats;
  understudy_session_get_stats(a, &stats);
  assert_true(stats.prompt_seconds > 0 && stats.tokens == 0);
  assert_int_equal(understudy_session_prompt(b, prompt, 40, NULL, NULL, &err), UNDERSTUDY_OK);
  assert_int_equal(understudy_session_generate(a, 10, keep, &one, NULL, NULL), UNDERSTUDY_OK);
  assert_int_equal(understudy_session_generate(b, 10, keep, &other, NULL, NULL), UNDERSTUDY_OK);
  assert_true(same(&one, &other));
  REFUSED(understudy_session_prompt(a, prompt, 40, NULL, NULL, &err), "64"); /* does not fit the context */
  prompt[1] = 300;
  REFUSED(understudy_session_prompt(b, prompt, 2, NULL, NULL, &err), "300");
  understudy_session_close(a);
  understudy_session_close(b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_null_is_an_error),
      cmocka_unit_test(test_modes_write_the_same),
      cmocka_unit_test(test_zeros_are_greedy),
      cmocka_unit_test(test_callbacks_cannot_meddle),
      cmocka_unit_test(test_cancelled_prompt_is_evaluated_later),
  };
  return cmocka_run_group_tests(tests, open_engine, close_engine);
}
