/* Runs gnuplot on a chart's script and writes the chart's figures beside it as CSV.
 *
 * gnuplot reads its script from standard input and writes a temporary file that replaces `path` when it is whole. */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "measure/measure.h"

extern char **environ;

static bool write_all(int fd, const char *data, size_t size) {
  while (size) {
    ssize_t wrote = write(fd, data, size);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return false;
    data += wrote;
    size -= (size_t)wrote;
  }
  return true;
}

static understudy_status run_gnuplot(const ust_buffer *script, const char *path, understudy_error *err) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0)
    return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot make a pipe: %s", path, strerror(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[0], STDIN_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  char *arguments[] = {(char[]){"gnuplot"}, (char[]){"-"}, NULL};
  pid_t child;
  int failure = posix_spawnp(&child, "gnuplot", &actions, NULL, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[0]);
  if (failure) {
    close(ends[1]);
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED, "%s: cannot draw the chart: gnuplot cannot be started (%s)%s",
                     path, strerror(failure), failure == ENOENT ? "; install gnuplot, or give --json alone" : "");
  }
  bool written = write_all(ends[1], script->data, script->size);
  close(ends[1]);
  int result = 0;
  while (waitpid(child, &result, 0) < 0 && errno == EINTR) {
  }
  if (!written || !WIFEXITED(result) || WEXITSTATUS(result) != 0)
    return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: gnuplot failed to draw the chart", path);
  return UNDERSTUDY_OK;
}

/* What gnuplot drew replaces the file at `path`. */
static understudy_status replace(const char *path, const char *drawing, understudy_error *err) {
  enum { CHART_MOST = 64 << 20 };
  char *data;
  size_t size;
  ust_writer writer;
  UST_TRY(ust_file_slurp(drawing, CHART_MOST, &data, &size, err));
  understudy_status status = size ? ust_writer_open(&writer, path, err)
                                  : ust_error(err, UNDERSTUDY_ERROR_IO, "%s: gnuplot drew nothing", path);
  if (status == UNDERSTUDY_OK) {
    ust_writer_write(&writer, data, size);
    status = ust_writer_commit(&writer, err);
  }
  ust_free(data);
  return status;
}

/* Draws into a file beside `path` first. */
static understudy_status draw(const ust_chart *chart, const char *path, bool png, understudy_error *err) {
  const char *slash = strrchr(path, '/');
  const size_t folder = slash ? (size_t)(slash - path) + 1 : 0, length = folder + 64;
  char *drawing = malloc(length);
  if (!drawing) return ust_error_memory(err, length, "a path");
  snprintf(drawing, length, "%.*s.understudy-%d.chart", (int)folder, path, (int)getpid());
  FILE *probe = fopen(drawing, "wbe"); /* gnuplot's own message would not say why */
  understudy_status status =
      probe ? UNDERSTUDY_OK : ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot write: %s", path, strerror(errno));
  if (probe) {
    ust_buffer script = {0};
    fclose(probe);
    ust_measure_chart_script(chart, png, drawing, &script);
    status = run_gnuplot(&script, path, err);
    ust_buffer_free(&script);
    if (status == UNDERSTUDY_OK) status = replace(path, drawing, err);
    unlink(drawing);
  }
  free(drawing);
  return status;
}

static void write_line(ust_writer *writer, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void write_line(ust_writer *writer, const char *format, ...) {
  char line[256];
  va_list args;
  va_start(args, format);
  int length = vsnprintf(line, sizeof line, format, args);
  va_end(args);
  ust_writer_write(writer, line, UST_MIN((size_t)length, sizeof line - 1));
}

understudy_status ust_measure_check_gnuplot(const char *path, understudy_error *err) {
  return run_gnuplot(&(ust_buffer){0}, path, err);
}

char *ust_measure_csv_name(const char *chart_path) {
  char *name = strdup(chart_path);
  if (name) memcpy(name + strlen(name) - 4, ".csv", 4);
  return name;
}

static understudy_status write_csv(const ust_chart *chart, const char *path, understudy_error *err) {
  char *name = ust_measure_csv_name(path);
  if (!name) return ust_error_memory(err, strlen(path), "a path");
  ust_writer writer;
  understudy_status status = ust_writer_open(&writer, name, err);
  free(name);
  if (status != UNDERSTUDY_OK) return status;
  write_line(&writer, "kind,label,flop_per_byte,flop_per_s\n");
  for (int p = 0; p < chart->panel_count; p++) {
    const ust_device *device = &chart->panels[p].device;
    write_line(&writer, "ridge,\"%s\",%g,%g\n", device->label, device->peak_tflop_per_s * 1e3 / device->read_gb_per_s,
               device->peak_tflop_per_s * 1e12);
    for (int i = 0; i < chart->panels[p].dot_count; i++) {
      const ust_chart_dot *dot = &chart->panels[p].dots[i];
      write_line(&writer, "%s,\"%s\",%g,%g\n", dot->reference ? "reference" : "measured", dot->label,
                 dot->flop_per_byte, dot->flop_per_s);
    }
  }
  return ust_writer_commit(&writer, err);
}

static bool ends_in(const char *path, const char *end) {
  size_t length = strlen(path), tail = strlen(end);
  return length > tail && strcmp(path + length - tail, end) == 0;
}

bool ust_measure_drawable(const char *path) {
  return ends_in(path, ".svg") || ends_in(path, ".png");
}

understudy_status ust_measure_chart(const ust_chart *chart, const char *path, understudy_error *err) {
  if (!ust_measure_drawable(path))
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: expected a name that ends in .svg or .png", path);
  UST_TRY(draw(chart, path, ends_in(path, ".png"), err));
  return write_csv(chart, path, err);
}
