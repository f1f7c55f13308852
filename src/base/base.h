/* base: what every room stands on: error text, checked sizes, memory, files, clock, progress.
 *
 * Status codes and the error struct are the public ones. */
#ifndef UST_BASE_H
#define UST_BASE_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <assert.h>

#include "understudy.h"

#define UST_MIN(a, b) ((a) < (b) ? (a) : (b))
#define UST_MAX(a, b) ((a) > (b) ? (a) : (b))
#define UST_ROUND_UP(n, to) (((n) + (to)-1) / (to) * (to))

/* Passes a failure on to the caller. */
#define UST_TRY(expression)                                                                                            \
  do {                                                                                                                 \
    understudy_status ust_try_status_ = (expression);                                                                  \
    if (ust_try_status_ != UNDERSTUDY_OK) return ust_try_status_;                                                      \
  } while (0)

/* ---- errors ---- */

/* Writes status and one formatted line into *err (NULL allowed); control characters and bytes outside ASCII
 * become '?'. Returns `status`, so that callers can `return ust_error(err, …)`. */
understudy_status ust_error(understudy_error *err, understudy_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* "out of memory: SIZE bytes for WHAT" */
understudy_status ust_error_memory(understudy_error *err, size_t size, const char *what);

/* ---- sizes: false when the result does not fit ---- */

static inline bool ust_mul(uint64_t a, uint64_t b, uint64_t *out) {
  return !__builtin_mul_overflow(a, b, out);
}
static inline bool ust_add(uint64_t a, uint64_t b, uint64_t *out) {
  return !__builtin_add_overflow(a, b, out);
}

/* ---- memory ---- */

/* 64-byte aligned, zeroed memory; large blocks are offered huge pages. NULL when there is none, and for a size
 * of 0 a block of one byte. Freed with ust_free(). */
void *ust_alloc(size_t size);
/* The same without the zeros: its pages appear when they are first written, by whichever thread that is. */
void *ust_alloc_unset(size_t size);
void ust_free(void *memory);

/* A growing byte buffer; zero-initialised is empty. */
typedef struct ust_buffer {
  char *data;
  size_t size, capacity;
} ust_buffer;
bool ust_buffer_append(ust_buffer *buffer, const void *data, size_t size);
void ust_buffer_free(ust_buffer *buffer);

/* A piece of text inside somebody else's memory. */
typedef struct ust_text {
  const char *data; /* not zero-terminated */
  size_t size;
} ust_text;

/* ---- files ---- */

/* A file open for reading. Reads go through pread, so that a file truncated while it is open is an error and
 * not a SIGBUS. */
typedef struct ust_file {
  int fd;
  uint64_t size;
  char *path;
} ust_file;

/* Opens a regular file. */
understudy_status ust_file_open(ust_file *file, const char *path, understudy_error *err);
/* Reads exactly `size` bytes at `offset`. */
understudy_status ust_file_read(const ust_file *file, uint64_t offset, void *data, size_t size, understudy_error *err);
void ust_file_close(ust_file *file);
/* Reads a whole regular file of at most `limit` bytes, a zero byte after it; *data is freed with ust_free(). */
understudy_status ust_file_slurp(const char *path, size_t limit, char **data, size_t *size, understudy_error *err);
/* The same for text a user hands over: pipes and terminals are read to their end (and waited for). `path` "-" is
 * standard input. */
understudy_status ust_input_slurp(const char *path, size_t limit, char **data, size_t *size, understudy_error *err);
/* Adds what is left to read of `fd`, at most `limit` bytes; `name` is for errors. */
understudy_status ust_read_to_end(int fd, const char *name, size_t limit, ust_buffer *out, understudy_error *err);

/* A file being written: bytes go to a file beside `path` that has no name yet, or where that cannot be, to a temporary
 * file; it replaces `path` only in ust_writer_commit() (after fsync), so that a reader never sees half a file. The
 * first failure sticks: write calls may go unchecked until commit. A file that this process may not write is not
 * replaced. */
typedef struct ust_writer {
  FILE *stream;
  char *path, *temporary;
  bool nameless; /* `temporary` is yet to come */
  bool in_place; /* a device or pipe: written at once */
  uint64_t written;
  int failure; /* errno of the first failed write */
} ust_writer;
understudy_status ust_writer_open(ust_writer *writer, const char *path, understudy_error *err); /* "-" is refused */
void ust_writer_write(ust_writer *writer, const void *data, size_t size);
/* Finishes and renames; on failure removes the temporary file. The writer is closed either way. */
understudy_status ust_writer_commit(ust_writer *writer, understudy_error *err);
/* Throws away what was written. Harmless after commit. */
void ust_writer_abandon(ust_writer *writer);
/* Whether a file can be made at `path`, without a trace: to fail before an hour's work and not after it. */
understudy_status ust_writer_check(const char *path, understudy_error *err);

bool ust_is_directory(const char *path);
/* Do both names lead to one regular file? */
bool ust_same_file(const char *a, const char *b);
/* The same of files that may be yet to come. */
bool ust_same_place(const char *a, const char *b);
/* The last part of `path` if it names a place in `directory`, else NULL. */
const char *ust_name_in(const char *path, const char *directory);
/* Where a path's symbolic links lead, to something or to nothing yet, so that the file there is replaced and not the
 * link; a name of an open descriptor of this process (/dev/stdout) leads no further than to /proc. The caller frees it.
 * NULL: no memory. */
char *ust_followed(const char *path);
/* That descriptor, whose file is shared with others and not to be replaced; -1: the path leads elsewhere. */
int ust_shared_descriptor(const char *path);
/* Whether bytes written to `path` go into what is there, such a descriptor, a device or a pipe, and replace nothing. */
bool ust_in_place(const char *path);

/* ---- hash ---- */

#define UST_HASH_START UINT64_C(0xcbf29ce484222325)
/* 64-bit FNV-1a (Fowler, Noll, Vo) of `size` more bytes; begins with UST_HASH_START. Every step is a bijection of the
 * hash, so any one changed byte changes it. */
static inline uint64_t ust_hash(uint64_t hash, const void *data, size_t size) {
  const unsigned char *bytes = data;
  for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

/* ---- text for a terminal ---- */

/* Control characters become '?', those of UTF-8 with two bytes too: a file's text must not command a terminal. */
static inline void ust_make_printable(char *text) {
  for (unsigned char *c = (unsigned char *)text; *c; c++) {
    if (*c < 32 || *c == 127) *c = '?';
    if (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) *c = c[1] = '?';
  }
}

/* ---- clock ---- */

uint64_t ust_clock_ns(void); /* monotonic */
static inline double ust_seconds_since(uint64_t start_ns) {
  return (double)(ust_clock_ns() - start_ns) * 1e-9;
}

/* ---- threads ---- */

/* Physical cores this process may use: affinity mask and cgroup quota counted; at least 1. */
int ust_thread_count(void);

#endif
