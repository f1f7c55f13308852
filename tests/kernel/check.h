/* check: what the kernel tests share, in the manner of dav1d's checkasm: a printed seed that repeats a run
 * (`test_x --seed N`), fenced buffers, bounds, and a loop over the levels this machine has.
 *
 * A fenced buffer ends at a page that cannot be touched, so that reading or writing past it stops the test at
 * the very instruction, and starts after a canary. All bytes begin as 0xff, a NaN in every float format, so that
 * a value that was never written cannot pass for a result. */
#ifndef UST_TESTS_KERNEL_CHECK_H
#define UST_TESTS_KERNEL_CHECK_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernel/kernel.h"

#define UNUSED __attribute__((unused))

/* ---- random numbers ---- */

static uint64_t seed, random_state;

static uint64_t random_bits(void) { /* splitmix64 */
  uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

/* An integer in [low, high]. */
UNUSED static int pick(int low, int high) {
  return low + (int)(random_bits() % (uint64_t)(high - low + 1));
}

/* One of the integers listed. */
#define PICK_OF(...) (((const int[]){__VA_ARGS__})[random_bits() % (sizeof((const int[]){__VA_ARGS__}) / sizeof(int))])

static float uniform(float low, float high) {
  return low + (high - low) * (float)(random_bits() >> 40) * 0x1p-24f;
}

UNUSED static void fill_uniform(float *x, size_t n, float low, float high) {
  for (size_t i = 0; i < n; i++) x[i] = uniform(low, high);
}

static float round_bf16(float x) {
  return ust_bf16_to_f32(ust_f32_to_bf16(x));
}

/* ---- failures ---- */

/* Fails the test with one line that says what, where and how to repeat it. */
#define CHECK(condition, ...)                                                                                          \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      print_error("%s:%d: ", __FILE__, __LINE__);                                                                      \
      print_error(__VA_ARGS__);                                                                                        \
      print_error(" (repeat with --seed %llu)\n", (unsigned long long)seed);                                           \
      fail();                                                                                                          \
    }                                                                                                                  \
  } while (0)

/* ---- fenced buffers ---- */

enum { CANARY = 64, MOST_BUFFERS = 64 };

static struct {
  unsigned char *map, *data;
  size_t map_size, size;
} buffers[MOST_BUFFERS];
static int buffer_count;

/* 64-byte aligned memory of 0xff, until fenced_release(). */
static void *fenced(size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), padded = UST_ROUND_UP(UST_MAX(size, 1), CANARY);
  size_t body = UST_ROUND_UP(padded + CANARY, page);
  CHECK(buffer_count < MOST_BUFFERS, "too many buffers");
  unsigned char *map = mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(map != MAP_FAILED, "no memory for %zu bytes", size);
  CHECK(mprotect(map + body, page, PROT_NONE) == 0, "cannot fence a buffer");
  memset(map, 0xff, body);
  unsigned char *data = map + body - padded;
  buffers[buffer_count].map = map;
  buffers[buffer_count].data = data;
  buffers[buffer_count].map_size = body + page;
  buffers[buffer_count].size = size;
  buffer_count++;
  return data;
}

UNUSED static float *fenced_floats(size_t n) {
  return fenced(n * sizeof(float));
}

/* Checks the canaries of the buffers from the `first` on and frees them. */
static void fenced_release_from(const char *what, int first) {
  for (int i = first; i < buffer_count; i++) {
    const unsigned char *data = buffers[i].data;
    for (int b = 1; b <= CANARY; b++) CHECK(data[-b] == 0xff, "%s wrote %d bytes before buffer %d", what, b, i);
    for (size_t b = buffers[i].size; b < UST_ROUND_UP(UST_MAX(buffers[i].size, 1), CANARY); b++)
      CHECK(data[b] == 0xff, "%s wrote past buffer %d of %zu bytes", what, i, buffers[i].size);
  }
  while (buffer_count > first) {
    buffer_count--;
    munmap(buffers[buffer_count].map, buffers[buffer_count].map_size);
  }
}

UNUSED static void fenced_release(const char *what) {
  fenced_release_from(what, 0);
}

/* ---- activations ---- */

/* What one rounding to the level's activation type may change, relative to the value. */
static double activation_error(const ust_kernels *k) {
  return k->activation_size == 2 ? 0x1p-8 : 0x1p-24;
}

UNUSED static float to_activation_value(const ust_kernels *k, float x) {
  return k->activation_size == 2 ? round_bf16(x) : x;
}

UNUSED static float load_activation(const ust_kernels *k, const void *from, size_t at) {
  return k->activation_size == 2 ? ust_bf16_to_f32(((const uint16_t *)from)[at]) : ((const float *)from)[at];
}

UNUSED static void store_activation(const ust_kernels *k, void *to, size_t at, float x) {
  if (k->activation_size == 2)
    ((uint16_t *)to)[at] = ust_f32_to_bf16(x);
  else
    ((float *)to)[at] = x;
}

/* Random rows of activations, tails zero. Returns a fenced buffer. */
UNUSED static void *random_activations(const ust_kernels *k, int rows, int cols, size_t stride) {
  void *x = fenced((size_t)rows * stride * k->activation_size);
  for (int r = 0; r < rows; r++)
    for (size_t c = 0; c < stride; c++)
      store_activation(k, x, (size_t)r * stride + c, (int)c < cols ? uniform(-1.5f, 1.5f) : 0);
  return x;
}

UNUSED static double gelu_reference(double x) {
  return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

/* ---- levels ---- */

typedef void (*level_test)(const ust_kernels *kernels);

/* Runs a test at every level of this machine, each from the same random numbers. */
static void every_level(level_test test) {
  for (int isa = 0; isa < UST_ISA_COUNT; isa++) {
    const ust_kernels *kernels = ust_kernels_get((ust_isa)isa, NULL);
    if (!kernels) continue;
    random_state = seed;
    test(kernels);
    kernels->release();
  }
}

#define LEVEL_TEST(test)                                                                                               \
  static void test##_every_level(void **state) {                                                                       \
    (void)state;                                                                                                       \
    every_level(test);                                                                                                 \
  }

static void start(int argc, char **argv) {
  seed = (uint64_t)time(NULL) * 1000003u ^ (uint64_t)getpid();
  for (int i = 1; i + 1 < argc; i++)
    if (strcmp(argv[i], "--seed") == 0) seed = strtoull(argv[i + 1], NULL, 10);
  printf("seed %llu; levels:", (unsigned long long)seed);
  for (int isa = 0; isa < UST_ISA_COUNT; isa++) {
    const char *reason;
    const ust_kernels *kernels = ust_kernels_get((ust_isa)isa, &reason);
    if (kernels)
      printf(" %s", kernels->name);
    else
      printf(" (no %s: %s)", ust_isa_name((ust_isa)isa), reason);
  }
  printf("\n");
  fflush(stdout);
}

#endif
