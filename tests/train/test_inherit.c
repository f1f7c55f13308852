/* A draft starts as its teacher made smaller: of the teacher's own shape, or with layers added, it says what the teacher
 * says; half as wide it is nearer to it than one that starts at random; the number of threads changes nothing. */
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

/* The last step of a run; a teacher's KL is of the draft as it was before that step. */
static ust_train_progress train(const ust_weights *of, int width, int heads, int layers, int steps, float rate,
                                int threads, const char *output) {
  ust_train_progress last;
  ust_train_options o = {.corpus = in_folder("corpus.txt"),
                         .tokenizer = tokenizer,
                         .teacher = of,
                         .width = width,
                         .layers = layers,
                         .heads = heads,
                         .context = 300,
                         .steps = steps,
                         .batch = 2 * UST_TRAIN_WINDOW,
                         .rate = rate,
                         .seed = 5,
                         .output = in_folder(output),
                         .type = UST_TYPE_F32,
                         .kernels = ust_kernels_get(ust_kernels_best(), NULL),
                         .threads = threads,
                         .progress = keep_last,
                         .user = &last};
  understudy_error err;
  if (ust_train(&o, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  return last;
}

static double first_kl(int width, int heads, int layers, int threads, const char *output) {
  return train(teacher, width, heads, layers, 1, 1e-9f, threads, output).kl;
}

static void starts_as_its_teacher(void **state) {
  (void)state;
  double random = first_kl(64, 1, 2, 1, "random.gguf"); /* heads of another size than the teacher's are not taken */
  double same = first_kl(64, 2, 2, 1, "same.gguf"), deeper = first_kl(64, 2, 3, 1, "deeper.gguf");
  double half = first_kl(32, 1, 2, 1, "half.gguf");
  print_message("KL: same %g, one layer more %g, half as wide %g, random %g\n", same, deeper, half, random);
  assert_true(random > 0.1);
  assert_true(same >= 0 && same < 0.01 * random);
  assert_true(deeper >= 0 && deeper < 0.01 * random);
  assert_true(half < 0.5 * random);
}

static void threads_change_nothing(void **state) {
  (void)state;
  char *data[2];
  size_t size[2];
  understudy_error err;
  for (int i = 0; i < 2; i++) {
    const char *name = i ? "two.gguf" : "one.gguf";
    first_kl(32, 1, 2, 1 + i, name);
    if (ust_file_slurp(in_folder(name), (size_t)1 << 30, &data[i], &size[i], &err) != UNDERSTUDY_OK)
      fail_msg("%s", err.message);
    for (char *at = data[i]; at + 3 < data[i] + 4096; at++) /* the name in the file is the file's */
      if (memcmp(at, i ? "two" : "one", 3) == 0) memcpy(at, "any", 3);
  }
  assert_int_equal(size[0], size[1]);
  assert_memory_equal(data[0], data[1], size[0]);
  ust_free(data[0]);
  ust_free(data[1]);
}

static int set_up(void **state) {
  (void)state;
  snprintf(folder, sizeof folder, "/tmp/understudy-inherit-XXXXXX");
  understudy_error err;
  if (!mkdtemp(folder) || ust_tokenizer_load(FIXTURES "/gpt2-tiny", &tokenizer, &err) != UNDERSTUDY_OK) return -1;
  static const char *const words[] = {"the", "lead", "only", "has", "to", "nod", "return", "value", "self", "def", "\n"};
  FILE *corpus = fopen(in_folder("corpus.txt"), "wb");
  uint64_t random = 1, word = 0;
  for (int i = 0; corpus && i < 4000; i++) { /* a word says much about the next */
    random = random * 6364136223846793005u + 1442695040888963407u;
    word = (word * 3 + (random >> 40) % 3) % (sizeof words / sizeof *words);
    fprintf(corpus, "%s ", words[word]);
  }
  if (!corpus || fclose(corpus) != 0) return -1;
  train(NULL, 64, 2, 2, 60, 5e-3f, 2, "teacher.gguf");
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
  const struct CMUnitTest tests[] = {cmocka_unit_test(starts_as_its_teacher), cmocka_unit_test(threads_change_nothing)};
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
