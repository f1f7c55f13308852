/* A draft starts as its teacher made smaller: of the teacher's own shape, or with layers added, it says what the
 * teacher says; half as wide it is nearer to it than one that starts at random. Neither the number of threads nor
 * stopping changes anything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>

#include "train/train.h"

static char folder[64];
static ust_tokenizer *tokenizer;
static ust_weights *teacher;

static const char *in_folder(const char *name) {
  static char paths[4][128];
  static int turn;
  char *path = paths[turn++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static void keep_last(void *user, const ust_train_progress *p) {
  *(ust_train_progress *)user = *p;
}

static ust_train_options options_of(const ust_weights *of, int width, int heads, int layers, ust_train_progress *last) {
  return (ust_train_options){.corpus = in_folder("corpus.txt"),
                             .tokenizer = tokenizer,
                             .teacher = of,
                             .width = width,
                             .layers = layers,
                             .heads = heads,
                             .context = 300,
                             .steps = 1,
                             .batch = 2 * UST_TRAIN_WINDOW,
                             .rate = 1e-9f,
                             .seed = 5,
                             .output = in_folder(of ? "draft.gguf" : "teacher.gguf"),
                             .type = UST_TYPE_F32,
                             .kernels = ust_kernels_get(ust_kernels_best(), NULL),
                             .threads = 2,
                             .progress = keep_last,
                             .user = last};
}

/* Of the draft as it starts. */
static double first_kl(int width, int heads, int layers) {
  ust_train_progress last;
  ust_train_options o = options_of(teacher, width, heads, layers, &last);
  understudy_error err;
  if (ust_train(&o, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  return last.kl;
}

static void starts_as_its_teacher(void **state) {
  (void)state;
  double random = first_kl(64, 1, 2); /* heads of another size than the teacher's are not taken */
  double same = first_kl(64, 2, 2), deeper = first_kl(64, 2, 3), half = first_kl(32, 1, 2),
         shallow = first_kl(64, 2, 1);
  print_message("KL: same %g, one layer more %g, one less %g, half as wide %g, random %g\n", same, deeper, shallow,
                half, random);
  assert_true(random > 0.1);
  assert_true(same >= 0 && same < 0.01 * random);
  assert_true(deeper >= 0 && deeper < 0.01 * random);
  assert_true(half < 0.5 * random);
  assert_true(shallow < 0.5 * random);
}

static bool stop_after_one(void *user) {
  return ((const ust_train_progress *)user)->step == 1;
}

static void threads_and_stopping_change_nothing(void **state) {
  (void)state;
  char *data[3];
  size_t size[3];
  understudy_error err;
  for (int i = 0; i < 3; i++) {
    ust_train_progress last = {0};
    ust_train_options o = options_of(teacher, 32, 1, 2, &last);
    o.steps = 3;
    o.rate = 1e-3f;
    o.threads = i == 0 ? 1 : 2;
    if (i == 2) {
      o.checkpoint = in_folder("draft.ckpt");
      o.stop = stop_after_one;
      assert_int_equal(ust_train(&o, &err), UNDERSTUDY_ERROR_CANCELLED);
      o.stop = NULL;
    }
    if (ust_train(&o, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
    assert_int_equal(last.step, 3);
    if (ust_file_slurp(o.output, (size_t)1 << 30, &data[i], &size[i], &err) != UNDERSTUDY_OK)
      fail_msg("%s", err.message);
  }
  for (int i = 1; i < 3; i++) {
    assert_int_equal(size[0], size[i]);
    assert_memory_equal(data[0], data[i], size[0]);
  }
  for (int i = 0; i < 3; i++) ust_free(data[i]);
}

static int set_up(void **state) {
  (void)state;
  snprintf(folder, sizeof folder, "/tmp/understudy-inherit-XXXXXX");
  understudy_error err;
  if (!mkdtemp(folder) || ust_tokenizer_load(FIXTURES "/gpt2-tiny", &tokenizer, &err) != UNDERSTUDY_OK) return -1;
  static const char *const words[] = {"the",    "lead",  "only", "has", "to", "nod",
                                      "return", "value", "self", "def", "\n"};
  FILE *corpus = fopen(in_folder("corpus.txt"), "wb");
  uint64_t random = 1, word = 0;
  for (int i = 0; corpus && i < 4000; i++) { /* a word says much about the next */
    random = random * 6364136223846793005u + 1442695040888963407u;
    word = (word * 3 + (random >> 40) % 3) % (sizeof words / sizeof *words);
    fprintf(corpus, "%s ", words[word]);
  }
  if (!corpus || fclose(corpus) != 0) return -1;
  ust_train_progress last;
  ust_train_options o = options_of(NULL, 64, 2, 2, &last);
  o.steps = 60;
  o.rate = 5e-3f;
  if (ust_train(&o, &err) != UNDERSTUDY_OK) return -1;
  return ust_weights_open(in_folder("teacher.gguf"), &teacher, &err) == UNDERSTUDY_OK ? 0 : -1;
}

static int tear_down(void **state) {
  (void)state;
  ust_weights_close(teacher);
  ust_tokenizer_free(tokenizer);
  char command[128];
  snprintf(command, sizeof command, "rm -r '%s'", folder);
  return system(command);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(starts_as_its_teacher),
                                     cmocka_unit_test(threads_and_stopping_change_nothing)};
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
