/* Files: exact reads that turn truncation into an error, and writes that appear whole or not at all. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

static const char *last_part(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* The directory a path lies in, with the slash; freed by the caller, NULL when there is no memory. */
static char *parent_of(const char *path) {
  size_t length = (size_t)(last_part(path) - path);
  return length ? strndup(path, length) : strdup("./");
}

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

understudy_status ust_read_to_end(int fd, const char *name, size_t limit, ust_buffer *out, understudy_error *err) {
  char chunk[1 << 16];
  for (;;) {
    ssize_t got = read(fd, chunk, sizeof chunk);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return io_error(err, name, "read", errno);
    if (got > 0 && out->size + (size_t)got > limit)
      return ust_error(err, UNDERSTUDY_ERROR_FORMAT, "%s: found more than %zu bytes, expected at most that", name,
                       limit);
    if (got == 0) return UNDERSTUDY_OK;
    if (!ust_buffer_append(out, chunk, (size_t)got)) return ust_error_memory(err, out->size, name);
  }
}

understudy_status ust_input_slurp(const char *path, size_t limit, char **data, size_t *size, understudy_error *err) {
  bool standard_input = strcmp(path, "-") == 0;
  const char *name = standard_input ? "standard input" : path;
  int fd = standard_input ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return io_error(err, name, "open", errno);
  ust_buffer bytes = {0};
  understudy_status status = ust_read_to_end(fd, name, limit, &bytes, err);
  if (!standard_input) close(fd);
  if (status == UNDERSTUDY_OK && !ust_buffer_append(&bytes, "", 1)) status = ust_error_memory(err, bytes.size, name);
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
  char *directory = parent_of(path);
  int fd =
      directory && access("/proc/self/fd", X_OK) == 0 ? open(directory, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666) : -1;
  free(directory);
  return fd;
#else
  (void)path;
  return -1;
#endif
}

/* Makes the writer's file under a name that nothing has: 0 or more, or -1 and errno. */
typedef int (*make_fn)(const ust_writer *writer, const char *name);

static int make_new(const ust_writer *writer, const char *name) {
  (void)writer;
  return open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

/* Names the file that was opened without a name. */
static int make_link(const ust_writer *writer, const char *name) {
  char place[32];
  snprintf(place, sizeof place, "/proc/self/fd/%d", fileno(writer->stream));
  return linkat(AT_FDCWD, place, AT_FDCWD, name, AT_SYMLINK_FOLLOW);
}

/* Short, whatever the file is called; no other writer of this process takes it. What is left of a killed process of the
 * same number may have it. Sets writer->temporary. */
static int make_temporary(ust_writer *writer, make_fn make) {
  static atomic_uint number;
  char *directory = parent_of(writer->path), *name = NULL;
  int made = -1;
  for (int attempt = 0; directory && made < 0 && attempt < 100; attempt++) {
    free(name);
    size_t size = strlen(directory) + 64;
    name = malloc(size);
    if (!name) break;
    snprintf(name, size, "%s.understudy-%d-%u.tmp", directory, (int)getpid(), atomic_fetch_add(&number, 1));
    made = make(writer, name);
    if (made < 0 && errno != EEXIST) break;
  }
  int code = errno;
  free(directory);
  if (made >= 0)
    writer->temporary = name;
  else
    free(name);
  errno = code;
  return made;
}

/* The descriptor of this process that `place` names, itself, not by way of a last link; -1: none. */
static int descriptor_named(const char *place) {
  static const char *const folders[] = {"/proc/self/fd", "/proc/thread-self/fd"};
  char here[PATH_MAX], own[PATH_MAX];
  int fd, used = 0, found = -1;
  if (sscanf(last_part(place), "%9d%n", &fd, &used) != 1 || last_part(place)[used]) return -1;
  char *parent = parent_of(place);
  for (int i = 0; i < 2 && parent && realpath(parent, here); i++)
    if (realpath(folders[i], own) && strcmp(here, own) == 0) found = fd;
  free(parent);
  return found;
}

char *ust_followed(const char *path) {
  char *place = strdup(path), to[PATH_MAX], *next;
  for (int links = 0; place && links < 40 && descriptor_named(place) < 0; links++) { /* as many as Linux follows */
    ssize_t length = readlink(place, to, sizeof to);
    if (length < 0 || length == sizeof to) break;
    int folder = to[0] == '/' ? 0 : (int)(last_part(place) - place);
    if (asprintf(&next, "%.*s%.*s", folder, place, (int)length, to) < 0) next = NULL;
    free(place);
    place = next;
  }
  return place;
}

int ust_shared_descriptor(const char *path) {
  char *place = ust_followed(path);
  const int fd = place ? descriptor_named(place) : -1;
  free(place);
  return fd;
}

bool ust_in_place(const char *path) {
  struct stat info;
  return ust_shared_descriptor(path) >= 0 || (stat(path, &info) == 0 && !S_ISREG(info.st_mode));
}

/* Why the regular file at `path`, `info` says what it is, must not be replaced, or cannot be: an errno; 0: nothing.
 * What only renaming would tell is told before the work. */
static int why_kept(const char *path, const char *place, const struct stat *info) {
  if (faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) != 0) return errno; /* protected by its owner */
  struct statx more;
  if (statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &more) == 0) {
    if (more.stx_attributes & STATX_ATTR_MOUNT_ROOT) return EBUSY;
    if (more.stx_attributes & STATX_ATTR_APPEND) return EPERM;
  }
  struct stat folder;
  char *parent = parent_of(place);
  const uid_t user = geteuid();
  const bool others = parent && user != 0 && stat(parent, &folder) == 0 && folder.st_mode & S_ISVTX &&
                      folder.st_uid != user && info->st_uid != user;
  free(parent);
  return others ? EPERM : 0;
}

/* Opens the place that bytes go to; -1 and errno. `info`: what is there now, NULL: nothing. */
static int open_place(ust_writer *writer, const struct stat *info) {
  if (writer->in_place) {
    const int shared = ust_shared_descriptor(writer->path);
    return shared >= 0 ? fcntl(shared, F_DUPFD_CLOEXEC, 0) : open(writer->path, O_WRONLY | O_TRUNC | O_CLOEXEC);
  }
  int fd = open_nameless(writer->path);
  writer->nameless = fd >= 0;
  if (fd < 0) fd = make_temporary(writer, make_new);
  if (fd >= 0 && info) (void)!fchmod(fd, info->st_mode & 0777);
  return fd;
}

understudy_status ust_writer_open(ust_writer *writer, const char *path, understudy_error *err) {
  *writer = (ust_writer){0};
  if (strcmp(path, "-") == 0)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT,
                     "-: is no file name to write to, expected one (standard output is /dev/stdout)");
  struct stat info;
  const int absent = stat(path, &info) == 0 ? 0 : errno;
  writer->in_place = ust_in_place(path);
  writer->path = writer->in_place ? strdup(path) : ust_followed(path);
  if (!writer->path) return ust_error_memory(err, strlen(path), "a path");
  int code = 0, fd = -1;
  if (absent == ELOOP) /* a circle of links stays one */
    code = ELOOP;
  else if (strlen(last_part(writer->path)) > NAME_MAX) /* told now, not only when it is renamed */
    code = ENAMETOOLONG;
  else if (!absent && !writer->in_place)
    code = why_kept(path, writer->path, &info);
  if (!code) {
    fd = open_place(writer, absent ? NULL : &info);
    writer->stream = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (writer->stream) return UNDERSTUDY_OK;
    code = errno;
  }
  if (fd >= 0) close(fd);
  ust_writer_abandon(writer);
  return io_error(err, path, "write", code);
}

understudy_status ust_writer_check(const char *path, understudy_error *err) {
  if (ust_in_place(path) && !ust_is_directory(path) && faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0)
    return UNDERSTUDY_OK; /* opening a pipe and closing it would end its reader's input */
  ust_writer writer;
  UST_TRY(ust_writer_open(&writer, path, err));
  ust_writer_abandon(&writer);
  return UNDERSTUDY_OK;
}

void ust_writer_write(ust_writer *writer, const void *data, size_t size) {
  if (writer->failure || size == 0) return;
  if (fwrite(data, 1, size, writer->stream) != size) writer->failure = errno ? errno : EIO;
  writer->written += size;
}

/* A new name outlasts a power cut once its directory is on the disk, too. */
static void sync_directory_of(const char *path) {
  char *directory = parent_of(path);
  int fd = directory ? open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
  if (fd >= 0) (void)!fsync(fd); /* some file systems cannot; the old file is whole there */
  if (fd >= 0) close(fd);
  free(directory);
}

understudy_status ust_writer_commit(ust_writer *writer, understudy_error *err) {
  int failure = writer->failure;
  if (!failure && fflush(writer->stream) != 0) failure = errno;
  if (!failure && !writer->in_place && fsync(fileno(writer->stream)) != 0) failure = errno;
  if (!failure && writer->nameless && make_temporary(writer, make_link) < 0) failure = errno;
  if (fclose(writer->stream) != 0 && !failure) failure = errno;
  writer->stream = NULL;
  understudy_status status = UNDERSTUDY_OK;
  if (!failure && !writer->in_place && rename(writer->temporary, writer->path) != 0) {
    status = ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot write: %s; what was written is in %s", writer->path,
                       strerror(errno), writer->temporary);
    free(writer->temporary);
    writer->temporary = NULL;
  } else if (failure) {
    status = io_error(err, writer->path, "write", failure);
  } else {
    if (!writer->in_place) sync_directory_of(writer->path);
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

static bool same_directory(const char *a, const char *b) {
  struct stat one, other;
  return stat(a, &one) == 0 && stat(b, &other) == 0 && S_ISDIR(one.st_mode) && one.st_dev == other.st_dev &&
         one.st_ino == other.st_ino;
}

const char *ust_name_in(const char *path, const char *directory) {
  char *parent = parent_of(path);
  bool in = parent && same_directory(parent, directory);
  free(parent);
  return in ? last_part(path) : NULL;
}

bool ust_same_place(const char *a, const char *b) {
  char *first = ust_followed(a), *second = ust_followed(b), *parent = first ? parent_of(first) : NULL;
  const char *name = parent && second ? ust_name_in(second, parent) : NULL;
  const bool same = ust_same_file(a, b) || (name && strcmp(name, last_part(first)) == 0);
  free(parent);
  free(first);
  free(second);
  return same;
}
