/* What the tests of weights share: building files byte by byte, temporary folders, and opening a file only to
 * read everything in it. */
#ifndef TEST_WEIGHTS_BYTES_H
#define TEST_WEIGHTS_BYTES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "weights/weights.h"

/* ---- bytes ---- */

static inline void put(ust_buffer *b, const void *data, size_t size) {
  assert_true(ust_buffer_append(b, data, size));
}
static inline void put_u8(ust_buffer *b, uint8_t v) {
  put(b, &v, 1);
}
static inline void put_u32(ust_buffer *b, uint32_t v) {
  put(b, &v, 4);
}
static inline void put_u64(ust_buffer *b, uint64_t v) {
  put(b, &v, 8);
}
static inline void put_f32(ust_buffer *b, float v) {
  put(b, &v, 4);
}
static inline void put_text(ust_buffer *b, const char *text) {
  put_u64(b, strlen(text));
  put(b, text, strlen(text));
}
static inline void put_zeros(ust_buffer *b, size_t count) {
  for (size_t i = 0; i < count; i++) put_u8(b, 0);
}

/* ---- files ---- */

static char folder[64], scratch_path[128];

static inline int make_folder(void **state) {
  (void)state;
  snprintf(folder, sizeof folder, "/tmp/test_weights_XXXXXX");
  snprintf(scratch_path, sizeof scratch_path, "%s", mkdtemp(folder) ? folder : "");
  return folder[0] ? 0 : -1;
}

static inline const char *in_folder(const char *name) {
  snprintf(scratch_path, sizeof scratch_path, "%s/%s", folder, name);
  return scratch_path;
}

/* Thousands of these are written; unlinking first keeps file systems from syncing each replaced file. */
static inline void write_file(const char *name, const void *data, size_t size) {
  unlink(in_folder(name));
  FILE *file = fopen(scratch_path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static inline int remove_folder(void **state) {
  (void)state;
  static const char *const names[] = {"a.gguf",
                                      "b.gguf",
                                      "model/config.json",
                                      "model/model.safetensors",
                                      "model/model.safetensors.index.json",
                                      "model/one.safetensors",
                                      "model/two.safetensors",
                                      "model/pipe"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(in_folder(names[i]));
  rmdir(in_folder("model"));
  return rmdir(folder);
}

/* ---- weights ---- */

/* Kilobytes this process has held at most. */
static inline long peak_kb(void) {
  FILE *file = fopen("/proc/self/status", "r");
  char line[256];
  long kb = 0;
  while (file && fgets(line, sizeof line, file)) sscanf(line, "VmHWM: %ld", &kb);
  if (file) fclose(file);
  return kb;
}

static inline bool sanitized(void) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return true;
#else
  return false;
#endif
}

/* Opens and reads every tensor; the status of the first failure. */
static inline understudy_status read_all(const char *path, understudy_error *err) {
  *err = (understudy_error){0};
  ust_weights *weights;
  understudy_status status = ust_weights_open(path, &weights, err);
  if (status != UNDERSTUDY_OK) {
    assert_null(weights);
    assert_int_equal(err->status, status);
    assert_true(err->message[0]);
    return status;
  }
  for (size_t i = 0; i < ust_weights_count(weights) && status == UNDERSTUDY_OK; i++) {
    const ust_tensor *t = ust_weights_tensor(weights, i);
    float *row = malloc(t->cols * sizeof *row);
    assert_non_null(row);
    for (uint64_t r = 0; r < t->rows && status == UNDERSTUDY_OK; r++)
      status = ust_weights_read_rows(weights, t, r, 1, row, err);
    free(row);
  }
  ust_weights_close(weights);
  return status;
}

/* Expects one line of error that names the file and holds `field`, soon and in little memory. */
static inline void expect_error(const char *path, const char *field) {
  understudy_error err;
  uint64_t begin = ust_clock_ns();
  understudy_status status = read_all(path, &err);
  double seconds = (double)(ust_clock_ns() - begin) * 1e-9;
  if (status == UNDERSTUDY_OK) fail_msg("%s: opened, expected an error about %s", path, field);
  if (!strstr(err.message, field)) fail_msg("\"%s\" does not name \"%s\"", err.message, field);
  if (!strstr(err.message, folder)) fail_msg("\"%s\" does not name the file", err.message);
  assert_null(strchr(err.message, '\n'));
  if (seconds > (sanitized() ? 8 : 2)) fail_msg("%s: took %.1f s", field, seconds);
}

static inline void expect_open(const char *path) {
  understudy_error err;
  if (read_all(path, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
}

/* A generator good enough to pick bytes with (xorshift64*, Vigna 2016). */
static inline uint64_t next_random(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * 2685821657736338717u;
}
static inline float next_float(uint64_t *state) {
  return (float)((int64_t)(next_random(state) >> 40) - (1 << 23)) / (1 << 20);
}

#endif
