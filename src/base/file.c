/* Files: exact reads that turn truncation into an error, and writes that appear whole or not at all. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

static understudy_status io_error(understudy_error *err, const char *path, const char *what, int code) {
  return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot %s: %s", path, what, strerror(code));
}

understudy_status ust_file_open(ust_file *file, const char *path, understudy_error *err) {
  *file = (ust_file){.fd = -1};
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return io_error(err, path, "open", errno);
  struct stat info;
  if (fstat(fd, &info) != 0) {
    int code = errno;
    close(fd);
    return io_error(err, path, "stat", code);
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: %s, expected a regular file", path,
                     S_ISDIR(info.st_mode) ? "is a directory" : "is not a regular file");
  }
  file->path = strdup(path);
  if (!file->path) {
    close(fd);
    return ust_error_memory(err, strlen(path), "a path");
  }
  file->fd = fd;
  file->size = (uint64_t)info.st_size;
  return UNDERSTUDY_OK;
}

understudy_status ust_file_read(const ust_file *file, uint64_t offset, void *data, size_t size, understudy_error *err) {
  char *to = data;
  size_t done = 0;
  while (done < size) {
    ssize_t got = pread(file->fd, to + done, size - done, (off_t)(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return io_error(err, file->path, "read", errno);
    if (got == 0)
      return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: ends at byte %llu, expected %zu more", file->path,
                       (unsigned long long)(offset + done), size - done);
    done += (size_t)got;
  }
  return UNDERSTUDY_OK;
}

void ust_file_close(ust_file *file) {
  if (file->path) close(file->fd);
  free(file->path);
  *file = (ust_file){.fd = -1};
}

understudy_status ust_file_slurp(const char *path, size_t limit, char **data, size_t *size, understudy_error *err) {
  ust_file file;
  UST_TRY(ust_file_open(&file, path, err));
  understudy_status status = UNDERSTUDY_OK;
  char *bytes = NULL;
  if (file.size > limit)
    status = ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found %llu bytes, expected at most %zu", path,
                       (unsigned long long)file.size, limit);
  else if (!(bytes = malloc((size_t)file.size + 1)))
    status = ust_error_memory(err, (size_t)file.size, path);
  else
    status = ust_file_read(&file, 0, bytes, (size_t)file.size, err);
  if (status == UNDERSTUDY_OK) {
    bytes[file.size] = 0;
    *data = bytes;
    *size = (size_t)file.size;
  } else {
    free(bytes);
  }
  ust_file_close(&file);
  return status;
}

static understudy_status read_to_end(int fd, const char *name, size_t limit, ust_buffer *out, understudy_error *err) {
  char chunk[1 << 16];
  for (;;) {
    ssize_t got = read(fd, chunk, sizeof chunk);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return io_error(err, name, "read", errno);
    if (got > 0 && out->size + (size_t)got > limit)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found more than %zu bytes, expected at most that", name,
                       limit);
    bool room = got ? ust_buffer_append(out, chunk, (size_t)got) : ust_buffer_append(out, "", 1);
    if (!room) return ust_error_memory(err, out->size, name);
    if (got == 0) return UNDERSTUDY_OK;
  }
}

understudy_status ust_input_slurp(const char *path, size_t limit, char **data, size_t *size, understudy_error *err) {
  bool standard_input = strcmp(path, "-") == 0;
  const char *name = standard_input ? "standard input" : path;
  int fd = standard_input ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return io_error(err, name, "open", errno);
  ust_buffer bytes = {0};
  understudy_status status = read_to_end(fd, name, limit, &bytes, err);
  if (!standard_input) close(fd);
  if (status != UNDERSTUDY_OK) {
    ust_buffer_free(&bytes);
    return status;
  }
  *data = bytes.data;
  *size = bytes.size - 1; /* the zero byte */
  return UNDERSTUDY_OK;
}

/* A file without a name in the directory of `path`, that nothing is left of when the process is killed; -1 where the
 * system cannot make one, or not name it later. */
static int open_nameless(const char *path) {
#ifdef O_TMPFILE
  const char *slash = strrchr(path, '/');
  char *directory = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
  int fd = directory && access("/proc/self/fd", X_OK) == 0 ? open(directory, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666) : -1;
  free(directory);
  return fd;
#else
  (void)path;
  return -1;
#endif
}

/* Gives it one. */
static int name_file(int fd, const char *name) {
  char place[32];
  snprintf(place, sizeof place, "/proc/self/fd/%d", fd);
  return linkat(AT_FDCWD, place, AT_FDCWD, name, AT_SYMLINK_FOLLOW);
}

understudy_status ust_writer_open(ust_writer *writer, const char *path, understudy_error *err) {
  *writer = (ust_writer){0};
  if (strcmp(path, "-") == 0)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "-: is no file name to write to, expected one (standard output is /dev/stdout)");
  size_t length = strlen(path) + 32;
  writer->path = strdup(path);
  writer->temporary = malloc(length);
  if (!writer->path || !writer->temporary) {
    ust_writer_abandon(writer);
    return ust_error_memory(err, length, "a path");
  }
  struct stat info;
  bool in_place = stat(path, &info) == 0 && !S_ISREG(info.st_mode); /* a device or pipe must not be replaced */
  snprintf(writer->temporary, length, "%s.%d.tmp", path, (int)getpid());
  int nameless = in_place ? -1 : open_nameless(path);
  writer->nameless = nameless >= 0;
  writer->stream = nameless >= 0 ? fdopen(nameless, "wb") : fopen(in_place ? path : writer->temporary, "wbe");
  if (!writer->stream && nameless >= 0) close(nameless);
  if (writer->stream && in_place) {
    free(writer->temporary);
    writer->temporary = NULL;
  }
  if (!writer->stream) {
    int code = errno;
    free(writer->temporary);
    writer->temporary = NULL;
    ust_writer_abandon(writer);
    return io_error(err, path, "write", code);
  }
  return UNDERSTUDY_OK;
}

void ust_writer_write(ust_writer *writer, const void *data, size_t size) {
  if (writer->failure || size == 0) return;
  if (fwrite(data, 1, size, writer->stream) != size) writer->failure = errno ? errno : EIO;
  writer->written += size;
}

understudy_status ust_writer_commit(ust_writer *writer, understudy_error *err) {
  FILE *stream = writer->stream;
  int failure = writer->failure;
  writer->stream = NULL;
  if (!failure && fflush(stream) != 0) failure = errno;
  if (!failure && writer->temporary && fsync(fileno(stream)) != 0) failure = errno;
  if (!failure && writer->nameless && name_file(fileno(stream), writer->temporary) != 0) failure = errno;
  if (fclose(stream) != 0 && !failure) failure = errno;
  if (!failure && writer->temporary && rename(writer->temporary, writer->path) != 0) failure = errno;
  understudy_status status = UNDERSTUDY_OK;
  if (failure) {
    status = io_error(err, writer->path, "write", failure);
  } else {
    free(writer->temporary);
    writer->temporary = NULL;
  }
  ust_writer_abandon(writer);
  return status;
}

void ust_writer_abandon(ust_writer *writer) {
  if (writer->stream) fclose(writer->stream);
  if (writer->temporary) unlink(writer->temporary);
  free(writer->temporary);
  free(writer->path);
  *writer = (ust_writer){0};
}

bool ust_is_directory(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool ust_same_file(const char *a, const char *b) {
  struct stat one, other;
  return stat(a, &one) == 0 && stat(b, &other) == 0 && S_ISREG(one.st_mode) && one.st_dev == other.st_dev &&
         one.st_ino == other.st_ino;
}
