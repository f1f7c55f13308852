/* Training goes on as if it had never stopped: the exported model has the same bits after a stop, after a SIGKILL at
 * any instant and with any number of threads; and a checkpoint that is damaged, or of another run, is refused with
 * one line that names it.
 *
 * The process that gets killed is this program once more: `test_resume child FOLDER` trains, stopping after every
 * step to write its checkpoint. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "train/train.h"

extern char **environ;

enum { STEPS = 10, CHILD_FAILED = 7 };

/* ---- a run ---- */

static char folder[64];
static ust_tokenizer *tokenizer;

static const char *in_folder(const char *name) {
  static char paths[4][128];
  static int turn;
  char *path = paths[turn++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

typedef struct watcher {
  int stop_at, done; /* steps */
  double first_kl;
} watcher;

static void count_step(void *user, const ust_train_progress *p) {
  watcher *w = user;
  w->done = p->step;
  if (p->step == 1) w->first_kl = p->kl;
}
static bool stop_there(void *user) {
  return ((watcher *)user)->stop_at && ((watcher *)user)->done >= ((watcher *)user)->stop_at;
}

/* Two windows a step. */
static ust_train_options options_of(watcher *w) {
  static char corpus[128], checkpoint[128], output[128];
  snprintf(corpus, sizeof corpus, "%s/corpus.txt", folder);
  snprintf(checkpoint, sizeof checkpoint, "%s/run.ckpt", folder);
  snprintf(output, sizeof output, "%s/out.gguf", folder);
  return (ust_train_options){.corpus = corpus,
                             .tokenizer = tokenizer,
                             .width = 64,
                             .layers = 2,
                             .heads = 2,
                             .context = 300,
                             .steps = STEPS,
                             .batch = 2 * UST_TRAIN_WINDOW,
                             .rate = 3e-3f,
                             .seed = 5,
                             .checkpoint = checkpoint,
                             .output = output,
                             .type = UST_TYPE_F32,
                             .kernels = ust_kernels_get(ust_kernels_best(), NULL),
                             .threads = 1,
                             .progress = count_step,
                             .stop = stop_there,
                             .user = w};
}

static void forget(void) {
  unlink(in_folder("run.ckpt"));
  unlink(in_folder("out.gguf"));
}

typedef struct bytes {
  char *data;
  size_t size;
} bytes;

static bytes slurp(const char *name) {
  bytes b = {0};
  understudy_error err;
  if (ust_file_slurp(in_folder(name), (size_t)1 << 30, &b.data, &b.size, &err) != UNDERSTUDY_OK)
    fail_msg("%s", err.message);
  return b;
}

static void spill(const char *name, const char *data, size_t size) {
  FILE *file = fopen(in_folder(name), "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static void train(const ust_train_options *options) {
  understudy_error err;
  if (ust_train(options, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
}

static void train_and_stop(const ust_train_options *options) {
  understudy_error err;
  assert_int_equal(ust_train(options, &err), UNDERSTUDY_ERROR_CANCELLED);
  assert_non_null(strstr(err.message, "run.ckpt"));
  assert_int_equal(access(in_folder("out.gguf"), F_OK), -1);
}

/* The finished model of the plain run, made once. */
static bytes straight;

static void expect_straight(void) {
  bytes found = slurp("out.gguf");
  assert_int_equal(found.size, straight.size);
  assert_memory_equal(found.data, straight.data, straight.size);
  ust_free(found.data);
}

/* ---- tests ---- */

static void stopping_changes_nothing(void **state) {
  (void)state;
  for (int stop = 1; stop < STEPS; stop += 4) {
    watcher w = {.stop_at = stop};
    ust_train_options o = options_of(&w);
    forget();
    train_and_stop(&o);
    assert_int_equal(w.done, stop);
    w = (watcher){0};
    train(&o);
    expect_straight();
  }
  /* finished: the same command only writes the model again */
  watcher w = {0};
  ust_train_options o = options_of(&w);
  unlink(in_folder("out.gguf"));
  train(&o);
  assert_int_equal(w.done, 0);
  expect_straight();
}

/* The log's lines up to the learning rate, without the speed. */
static char *steady_log(const char *name) {
  bytes log = slurp(name);
  char *to = log.data;
  for (char *line = log.data, *end; *line; line = end + 1) { /* `to` never passes `line` */
    end = strchr(line, '\n');
    char *comma = end;
    while (*comma != ',') comma--;
    memmove(to, line, (size_t)(comma - line));
    to += comma - line;
    *to++ = '\n';
  }
  *to = 0;
  return log.data;
}

/* Held-out measurements and the log look on and change nothing; the log goes on where it stopped. */
static void watching_changes_nothing(void **state) {
  (void)state;
  watcher w = {0};
  ust_train_options o = options_of(&w);
  char log[128];
  snprintf(log, sizeof log, "%s", in_folder("one.csv"));
  o.heldout = o.corpus;
  o.log = log;
  forget();
  train(&o);
  expect_straight();
  snprintf(log, sizeof log, "%s", in_folder("two.csv"));
  forget();
  w = (watcher){.stop_at = 6};
  train_and_stop(&o);
  FILE *more = fopen(log, "a"); /* as if steps after the checkpoint had been lost */
  fputs("7,0.1,,,0.1,1\n8,", more);
  fclose(more);
  w = (watcher){0};
  train(&o);
  expect_straight();
  char *one = steady_log("one.csv"), *two = steady_log("two.csv");
  assert_string_equal(one, two);
  ust_free(one);
  ust_free(two);
}

/* Nine windows a step: two micro-batches, the second of one window. */
static void threads_change_nothing(void **state) {
  (void)state;
  bytes found[2];
  for (int i = 0; i < 2; i++) {
    watcher w = {0};
    ust_train_options o = options_of(&w);
    o.threads = 1 + i;
    o.batch = 9 * UST_TRAIN_WINDOW;
    o.steps = 2;
    o.checkpoint = NULL;
    forget();
    train(&o);
    found[i] = slurp("out.gguf");
  }
  assert_int_equal(found[0].size, found[1].size);
  assert_memory_equal(found[0].data, found[1].data, found[0].size);
  ust_free(found[0].data);
  ust_free(found[1].data);
}

/* ---- killing ---- */

static int train_step_by_step(void) {
  for (int steps = 1;; steps++) {
    watcher w = {.stop_at = 1}; /* any step done is enough: each round trains one */
    ust_train_options o = options_of(&w);
    understudy_error err;
    understudy_status status = ust_train(&o, &err);
    if (status == UNDERSTUDY_OK) return 0;
    if (status != UNDERSTUDY_ERROR_CANCELLED || steps > 2 * STEPS) {
      fprintf(stderr, "child: %s\n", err.message);
      return CHILD_FAILED;
    }
  }
}

static pid_t start_child(void) {
  char *arguments[] = {(char[]){"test_resume"}, (char[]){"child"}, folder, NULL};
  pid_t child;
  assert_int_equal(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ), 0);
  return child;
}

/* Lets a child live for `ns`; true when it had ended before. */
static bool live(long ns) {
  pid_t child = start_child();
  int result = 0;
  nanosleep(&(struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000}, NULL);
  kill(child, SIGKILL);
  while (waitpid(child, &result, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(result)) {
    assert_int_equal(WTERMSIG(result), SIGKILL);
    return false;
  }
  assert_int_equal(WEXITSTATUS(result), 0); /* CHILD_FAILED: a checkpoint was broken */
  return true;
}

/* How long a child takes is measured first, so that the kills fall all over its life on any machine. */
static void killing_changes_nothing(void **state) {
  (void)state;
  forget();
  uint64_t start = ust_clock_ns(), random = 12345;
  int result = -1;
  pid_t child = start_child();
  waitpid(child, &result, 0);
  assert_int_equal(result, 0);
  expect_straight();
  uint64_t whole_ns = UST_MAX(ust_clock_ns() - start, (uint64_t)1000000);
  forget();
  int kills = 0, finished = 0;
  for (int i = 0; i < 12; i++) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    if (live((long)((random >> 33) % (whole_ns / 2)))) {
      finished++;
      expect_straight();
      forget();
    } else {
      kills++;
    }
  }
  child = start_child();
  waitpid(child, &result, 0);
  assert_int_equal(result, 0);
  expect_straight();
  print_message("%d kills, %d children that ended before\n", kills, finished);
  assert_true(kills >= 3);
}

/* ---- checkpoints that must be refused ---- */

static void refuse(const ust_train_options *o, const char *what) {
  understudy_error err = {0};
  assert_int_not_equal(ust_train(o, &err), UNDERSTUDY_OK);
  assert_int_not_equal(err.status, UNDERSTUDY_ERROR_CANCELLED);
  if (!strstr(err.message, "run.ckpt") || strchr(err.message, '\n')) fail_msg("%s", err.message);
  if (!strstr(err.message, what)) fail_msg("expected '%s' in: %s", what, err.message);
}

static bytes checkpoint_after(int steps) {
  watcher w = {.stop_at = steps};
  ust_train_options o = options_of(&w);
  forget();
  train_and_stop(&o);
  return slurp("run.ckpt");
}

static void damage_is_refused(void **state) {
  (void)state;
  bytes good = checkpoint_after(1);
  watcher w = {.stop_at = 1}; /* should damage go unseen, no more than a step is lost on it */
  ust_train_options o = options_of(&w);
  o.stop = stop_there;
  uint64_t random = 99;
  size_t header = 18 * 8;
  for (int i = 0; i < 16; i++) { /* truncations: within the header, within the arrays, of the last byte */
    size_t size = i < 6 ? header * (size_t)i / 6 : i == 15 ? good.size - 1 : good.size / 16 * (size_t)i;
    spill("run.ckpt", good.data, size);
    refuse(&o, "");
  }
  spill("run.ckpt", good.data, good.size);
  FILE *file = fopen(in_folder("run.ckpt"), "ab");
  fputc(0, file);
  fclose(file);
  refuse(&o, "expected");
  for (int i = 0; i < 48; i++) { /* a flipped bit: 18 in the header, the checksum's last, the rest anywhere */
    random = random * 6364136223846793005u + 1442695040888963407u;
    size_t at = i < 18    ? 8 * (size_t)i + (random >> 40) % 8
                : i == 18 ? good.size - 1
                          : (size_t)(random >> 16) % good.size;
    char bit = (char)(1 << (random >> 61));
    good.data[at] ^= bit;
    spill("run.ckpt", good.data, good.size);
    good.data[at] ^= bit;
    refuse(&o, "");
  }
  spill("run.ckpt", good.data, good.size);
  w = (watcher){0};
  train(&o);
  expect_straight();
  ust_free(good.data);
}

static void write_corpus(const char *name, int seed) {
  static const char *const words[] = {"the",    "lead",  "only", "has", "to", "nod",
                                      "return", "value", "self", "def", "\n"};
  uint64_t random = (uint64_t)seed;
  char text[16384];
  size_t size = 0;
  while (size < sizeof text - 16) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    int length = snprintf(text + size, 16, "%s ", words[(random >> 40) % (sizeof words / sizeof *words)]);
    size += (size_t)length;
    if ((random >> 33) % 50 == 0) text[size++] = 0;
  }
  spill(name, text, size);
}

static void another_run_is_refused(void **state) {
  (void)state;
  bytes good = checkpoint_after(1);
  write_corpus("other.txt", 2);
  char other[128];
  snprintf(other, sizeof other, "%s", in_folder("other.txt"));
  watcher w = {0};
  ust_train_options o = options_of(&w);
#define REFUSE(field, value, what)                                                                                     \
  do {                                                                                                                 \
    ust_train_options changed = o;                                                                                     \
    changed.field = value;                                                                                             \
    refuse(&changed, what);                                                                                            \
  } while (0)
  REFUSE(corpus, other, "corpus");
  REFUSE(seed, 6, "seed is 5, expected 6");
  REFUSE(width, 128, "width is 64, expected 128");
  REFUSE(layers, 1, "layers is 2, expected 1");
  REFUSE(heads, 1, "heads is 2, expected 1");
  REFUSE(context, 320, "context is 300, expected 320");
  REFUSE(batch, UST_TRAIN_WINDOW, "batch is 512, expected 256");
  REFUSE(rate, 1e-3f, "rate is 0.003, expected 0.001");
  if (ust_kernels_best() != UST_ISA_SCALAR) REFUSE(kernels, ust_kernels_get(UST_ISA_SCALAR, NULL), "expected scalar");
  bytes found = slurp("run.ckpt"); /* a refused checkpoint is left alone */
  assert_int_equal(found.size, good.size);
  assert_memory_equal(found.data, good.data, good.size);
  ust_free(found.data);
  ust_free(good.data);
}

/* A checkpoint goes on under another number of steps; the file then says the new one. */
static void another_length_is_taken(void **state) {
  (void)state;
  bytes before = checkpoint_after(3);
  ust_free(before.data);
  watcher w = {0};
  ust_train_options o = options_of(&w);
  o.steps = 5;
  train(&o);
  assert_int_equal(w.done, 5);
  o.steps = 4;
  refuse(&o, "checkpoint of step 5, expected at most --steps 4");
}

/* A run from a model's values: stopped and resumed it gives the same bits, and its checkpoint is no other run's. */
static void a_start_is_part_of_a_run(void **state) {
  (void)state;
  understudy_error err;
  ust_weights *start;
  forget();
  spill("start.gguf", straight.data, straight.size);
  if (ust_weights_open(in_folder("start.gguf"), &start, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  watcher w = {0};
  ust_train_options o = options_of(&w), fresh = o;
  o.start = start;
  o.steps = 4;
  train(&o);
  bytes whole = slurp("out.gguf");
  assert_int_equal(whole.size, straight.size);
  assert_memory_not_equal(whole.data, straight.data, straight.size);
  forget();
  w = (watcher){.stop_at = 2};
  train_and_stop(&o);
  w = (watcher){0};
  refuse(&fresh, "found another start, expected this run's");
  train(&o);
  bytes resumed = slurp("out.gguf");
  assert_int_equal(resumed.size, whole.size);
  assert_memory_equal(resumed.data, whole.data, whole.size);
  forget();
  w = (watcher){0};
  o.teacher = start; /* which the run starts from as well: nothing to learn */
  train(&o);
  assert_true(w.first_kl < 1e-4);
  ust_free(whole.data);
  ust_free(resumed.data);
  ust_weights_close(start);
}

/* ---- */

static void open_tokenizer(void) {
  understudy_error err;
  if (ust_tokenizer_load(FIXTURES "/gpt2-tiny", &tokenizer, &err) != UNDERSTUDY_OK) {
    fprintf(stderr, "%s\n", err.message);
    exit(CHILD_FAILED);
  }
}

static int set_up(void **state) {
  (void)state;
  snprintf(folder, sizeof folder, "/tmp/understudy-resume-XXXXXX");
  if (!mkdtemp(folder)) return -1;
  open_tokenizer();
  write_corpus("corpus.txt", 1);
  watcher w = {0};
  ust_train_options o = options_of(&w);
  train(&o);
  straight = slurp("out.gguf");
  return w.done == STEPS ? 0 : -1;
}

static int tear_down(void **state) {
  (void)state;
  ust_free(straight.data);
  ust_tokenizer_free(tokenizer);
  char command[128];
  snprintf(command, sizeof command, "rm -r '%s'", folder);
  return system(command);
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "child") == 0) {
    snprintf(folder, sizeof folder, "%s", argv[2]);
    open_tokenizer();
    int code = train_step_by_step();
    ust_tokenizer_free(tokenizer);
    return code;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(stopping_changes_nothing), cmocka_unit_test(watching_changes_nothing),
      cmocka_unit_test(threads_change_nothing),   cmocka_unit_test(killing_changes_nothing),
      cmocka_unit_test(damage_is_refused),        cmocka_unit_test(another_run_is_refused),
      cmocka_unit_test(another_length_is_taken),  cmocka_unit_test(a_start_is_part_of_a_run),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
