/* The roofline chart: a log-log picture drawn by gnuplot, with its figures beside it as CSV.
 *
 * gnuplot reads its script from standard input and writes a temporary file that replaces `path` when it is
 * whole. Labels of dots are placed here, where they cover neither a dot, a roof nor each other. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "measure/measure.h"

extern char **environ;

/* The plot's frame in pixels of a 960 x 600 picture, and roughly what a character takes. */
enum { PICTURE_W = 960, PICTURE_H = 600, LEFT = 104, RIGHT = 936, TOP = 52, BOTTOM = 528 };
static const double char_w = 7.4, char_h = 17;

typedef struct frame {
  double x_min, x_max, y_min, y_max;
} frame;

typedef struct box {
  double left, right, top, bottom;
} box;

static double pixel_x(const frame *f, double x) {
  return LEFT + (RIGHT - LEFT) * log(x / f->x_min) / log(f->x_max / f->x_min);
}
static double pixel_y(const frame *f, double y) {
  return BOTTOM - (BOTTOM - TOP) * log(y / f->y_min) / log(f->y_max / f->y_min);
}
static double roof_at(const ust_chart_roof *roof, double flop_per_byte) {
  return fmin(flop_per_byte * roof->read_gb_per_s * 1e9, roof->peak_tflop_per_s * 1e12);
}
static double ridge(const ust_chart_roof *roof) {
  return roof->peak_tflop_per_s * 1e3 / roof->read_gb_per_s;
}

static frame fit_frame(const ust_chart *chart) {
  frame f = {.x_min = 0.5, .x_max = 100, .y_min = 1e30, .y_max = 0};
  for (int i = 0; i < chart->dot_count; i++) {
    f.x_min = fmin(f.x_min, chart->dots[i].flop_per_byte / 2);
    f.x_max = fmax(f.x_max, chart->dots[i].flop_per_byte * 8);
    f.y_min = fmin(f.y_min, chart->dots[i].flop_per_s / 3);
    f.y_max = fmax(f.y_max, chart->dots[i].flop_per_s * 3);
  }
  for (int i = 0; i < chart->roof_count; i++) {
    f.x_max = fmax(f.x_max, ridge(&chart->roofs[i]) * 6);
    f.y_max = fmax(f.y_max, chart->roofs[i].peak_tflop_per_s * 1e12 * 3);
  }
  for (int i = 0; i < chart->roof_count; i++) f.y_min = fmin(f.y_min, roof_at(&chart->roofs[i], f.x_min) / 2);
  return f;
}

/* ---- placing labels ---- */

static bool overlap(const box *a, const box *b) {
  return a->left < b->right && b->left < a->right && a->top < b->bottom && b->top < a->bottom;
}

/* How much of what must stay visible a label at `b` would cover. */
static int covered(const ust_chart *chart, const frame *f, const box *b, const box *placed, int placed_count) {
  int cost = 0;
  if (b->left < LEFT + 2 || b->right > RIGHT - 2 || b->top < TOP + 2 || b->bottom > BOTTOM - 2) cost += 100;
  for (int i = 0; i < placed_count; i++) cost += overlap(b, &placed[i]) ? 50 : 0;
  for (int i = 0; i < chart->dot_count; i++) {
    double x = pixel_x(f, chart->dots[i].flop_per_byte), y = pixel_y(f, chart->dots[i].flop_per_s);
    box dot = {x - 6, x + 6, y - 6, y + 6};
    cost += overlap(b, &dot) ? 50 : 0;
  }
  for (int i = 0; i < chart->roof_count; i++)
    for (double x = b->left; x <= b->right; x += 2) {
      double flop_per_byte = f->x_min * pow(f->x_max / f->x_min, (x - LEFT) / (RIGHT - LEFT));
      double y = pixel_y(f, roof_at(&chart->roofs[i], flop_per_byte));
      cost += y > b->top - 2 && y < b->bottom + 2 ? 1 : 0;
    }
  return cost;
}

static box place_label(const ust_chart *chart, const frame *f, int index, const box *placed) {
  const ust_chart_dot *dot = &chart->dots[index];
  double w = (double)strlen(dot->label) * char_w, x = pixel_x(f, dot->flop_per_byte), y = pixel_y(f, dot->flop_per_s);
  const double places[][2] = {/* left edge and middle, from the dot's middle */
                              {11, 0},       {10, 15},       {-w / 2, 20}, {10, -15},      {-w / 2, -20}, {-w - 11, 0},
                              {-w - 10, 15}, {-w - 10, -15}, {14, 32},     {-w - 14, -32}, {14, -32},     {14, 50}};
  box best = {0};
  int best_cost = INT32_MAX;
  for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
    double left = x + places[i][0], middle = y + places[i][1];
    box b = {left, left + w, middle - char_h / 2, middle + char_h / 2};
    int cost = covered(chart, f, &b, placed, index);
    if (cost >= best_cost) continue;
    best = b;
    best_cost = cost;
  }
  return best;
}

/* ---- the script ---- */

static void add(ust_buffer *script, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(ust_buffer *script, const char *format, ...) {
  char line[512];
  va_list args;
  va_start(args, format);
  int length = vsnprintf(line, sizeof line, format, args);
  va_end(args);
  ust_buffer_append(script, line, UST_MIN((size_t)length, sizeof line - 1));
}

/* A single-quoted gnuplot string. */
static void add_quoted(ust_buffer *script, const char *text) {
  ust_buffer_append(script, "'", 1);
  for (; *text; text++) {
    if ((unsigned char)*text < 32) continue;
    ust_buffer_append(script, text, 1);
    if (*text == '\'') ust_buffer_append(script, text, 1);
  }
  ust_buffer_append(script, "'", 1);
}

static void add_label(ust_buffer *script, const char *text, double x, double y, const char *how) {
  add(script, "set label ");
  add_quoted(script, text);
  add(script, " at screen %.5f, screen %.5f %s\n", x / PICTURE_W, 1 - y / PICTURE_H, how);
}

static void add_axes(ust_buffer *script, const ust_chart *chart, const frame *f, bool png, const char *output) {
  add(script, "set encoding utf8\nset terminal %s size %d,%d noenhanced font '%s' background '#ffffff'\n",
      png ? "pngcairo" : "svg", PICTURE_W, PICTURE_H, png ? "Sans,10" : "Helvetica,Arial,sans-serif,13");
  add(script, "set output ");
  add_quoted(script, output);
  add(script, "\nset lmargin at screen %.5f\nset rmargin at screen %.5f\n", (double)LEFT / PICTURE_W,
      (double)RIGHT / PICTURE_W);
  add(script, "set tmargin at screen %.5f\nset bmargin at screen %.5f\n", 1 - (double)TOP / PICTURE_H,
      1 - (double)BOTTOM / PICTURE_H);
  add(script, "unset key\nset logscale xy\nset xrange [%g:%g]\nset yrange [%g:%g]\n", f->x_min, f->x_max, f->y_min,
      f->y_max);
  add(script, "set border 3 lc rgb '#444444'\nset tics nomirror out scale 0.6, 0.3 tc rgb '#444444'\n");
  add(script, "set grid xtics ytics lt 1 lc rgb '#e6e6e6', lt 1 lc rgb '#e6e6e6'\nset format x '%%g'\nset mxtics 10\n");
  add(script, "set ytics (");
  const char *const units[] = {"1 M", "10 M", "100 M", "1 G", "10 G", "100 G", "1 T", "10 T", "100 T", "1 P", "10 P"};
  for (int i = 0; i < 11; i++) add(script, "%s'%sFLOP/s' 1e%d", i ? ", " : "", units[i], 6 + i);
  add(script, ")\n");
  add(script, "set xlabel 'FLOP per byte read' tc rgb '#444444'\n");
  add(script, "set label ");
  add_quoted(script, chart->title);
  add(script, " at screen %.5f, screen 0.955 left tc rgb '#222222'\n", (double)LEFT / PICTURE_W);
}

static const char *const roof_colours[] = {"#1f5fa8", "#9a9a9a"};

/* The bandwidth along the slope, the name and the peak above the flat part. */
static void add_roof_labels(ust_buffer *script, const ust_chart *chart, const frame *f) {
  double decade_x = (RIGHT - LEFT) / log10(f->x_max / f->x_min), decade_y = (BOTTOM - TOP) / log10(f->y_max / f->y_min);
  for (int i = 0; i < chart->roof_count; i++) {
    const ust_chart_roof *roof = &chart->roofs[i];
    char text[128], how[96];
    double angle = atan2(decade_y, decade_x), x = pixel_x(f, ridge(roof)) * 0.5 + LEFT * 0.5;
    double y = pixel_y(f, roof_at(roof, f->x_min * pow(f->x_max / f->x_min, (x - LEFT) / (RIGHT - LEFT))));
    snprintf(text, sizeof text, "%.4g GB/s", roof->read_gb_per_s);
    snprintf(how, sizeof how, "center rotate by %.1f tc rgb '%s'", angle * 57.29578, roof_colours[i]);
    add_label(script, text, x - 12 * sin(angle), y - 12 * cos(angle), how);
    snprintf(text, sizeof text, "%s: %.3g TFLOP/s", roof->label, roof->peak_tflop_per_s);
    snprintf(how, sizeof how, "right tc rgb '%s'", roof_colours[i]);
    bool under = i && fabs(log10(roof->peak_tflop_per_s / chart->roofs[0].peak_tflop_per_s)) * decade_y < 30;
    add_label(script, text, RIGHT - 4, pixel_y(f, roof->peak_tflop_per_s * 1e12) + (under ? 14 : -12), how);
  }
}

static void add_data(ust_buffer *script, const ust_chart *chart, const frame *f) {
  for (int i = 0; i < chart->roof_count; i++) {
    const ust_chart_roof *roof = &chart->roofs[i];
    add(script, "$roof%d << EOD\n%g %g\n%g %g\n%g %g\nEOD\n", i, f->x_min, roof_at(roof, f->x_min), ridge(roof),
        roof_at(roof, ridge(roof)), f->x_max, roof_at(roof, f->x_max));
  }
  for (int reference = 0; reference < 2; reference++) {
    add(script, "$dots%d << EOD\n", reference);
    int count = 0;
    for (int i = 0; i < chart->dot_count; i++)
      if (chart->dots[i].reference == (reference == 1)) {
        add(script, "%g %g\n", chart->dots[i].flop_per_byte, chart->dots[i].flop_per_s);
        count++;
      }
    add(script, "%sEOD\n", count ? "" : "NaN NaN\n");
  }
  add(script, "plot ");
  for (int i = chart->roof_count - 1; i >= 0; i--)
    add(script, "$roof%d with lines lw 2.5 dt %d lc rgb '%s', ", i, i ? 2 : 1, roof_colours[i]);
  add(script,
      "$dots1 with points pt 6 ps 1.2 lw 2 lc rgb '#777777', $dots0 with points pt 7 ps 1.2 lc rgb '#c8443c'\n");
  add(script, "unset output\n");
}

static void write_script(ust_buffer *script, const ust_chart *chart, bool png, const char *output) {
  frame f = fit_frame(chart);
  box placed[UST_CHART_DOTS];
  add_axes(script, chart, &f, png, output);
  add_roof_labels(script, chart, &f);
  for (int i = 0; i < chart->dot_count; i++) {
    placed[i] = place_label(chart, &f, i, placed);
    add_label(script, chart->dots[i].label, placed[i].left, (placed[i].top + placed[i].bottom) / 2,
              chart->dots[i].reference ? "left tc rgb '#777777'" : "left tc rgb '#a02c26'");
  }
  add_data(script, chart, &f);
}

/* ---- running gnuplot ---- */

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
    return ust_error(err, UNDERSTUDY_ERROR_UNSUPPORTED,
                     "%s: cannot draw the chart: gnuplot cannot be started (%s); install gnuplot, or give --json alone",
                     path, strerror(failure));
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

/* Draws into a file beside `path`, then puts it in its place. */
static understudy_status draw(const ust_chart *chart, const char *path, bool png, understudy_error *err) {
  size_t length = strlen(path) + 32;
  char *temporary = malloc(length);
  if (!temporary) return ust_error_memory(err, length, "a path");
  snprintf(temporary, length, "%s.%d.tmp", path, (int)getpid());
  FILE *probe = fopen(temporary, "wbe"); /* gnuplot's own message would not say why */
  if (!probe) {
    free(temporary);
    return ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot write: %s", path, strerror(errno));
  }
  fclose(probe);
  ust_buffer script = {0};
  write_script(&script, chart, png, temporary);
  understudy_status status = run_gnuplot(&script, path, err);
  struct stat info;
  if (status == UNDERSTUDY_OK && (stat(temporary, &info) != 0 || info.st_size == 0))
    status = ust_error(err, UNDERSTUDY_ERROR_IO, "%s: gnuplot drew nothing", path);
  if (status == UNDERSTUDY_OK && rename(temporary, path) != 0)
    status = ust_error(err, UNDERSTUDY_ERROR_IO, "%s: cannot write: %s", path, strerror(errno));
  if (status != UNDERSTUDY_OK) unlink(temporary);
  ust_buffer_free(&script);
  free(temporary);
  return status;
}

static understudy_status write_csv(const ust_chart *chart, const char *path, understudy_error *err) {
  size_t stem = strlen(path) - 4;
  char *name = malloc(stem + 5);
  if (!name) return ust_error_memory(err, stem + 5, "a path");
  memcpy(name, path, stem);
  memcpy(name + stem, ".csv", 5);
  ust_writer writer;
  understudy_status status = ust_writer_open(&writer, name, err);
  free(name);
  if (status != UNDERSTUDY_OK) return status;
  char line[256];
  int length = snprintf(line, sizeof line, "kind,label,flop_per_byte,flop_per_s\n");
  ust_writer_write(&writer, line, (size_t)length);
  for (int i = 0; i < chart->roof_count; i++) {
    const ust_chart_roof *roof = &chart->roofs[i];
    length =
        snprintf(line, sizeof line, "ridge,\"%s\",%g,%g\n", roof->label, ridge(roof), roof->peak_tflop_per_s * 1e12);
    ust_writer_write(&writer, line, (size_t)length);
  }
  for (int i = 0; i < chart->dot_count; i++) {
    const ust_chart_dot *dot = &chart->dots[i];
    length = snprintf(line, sizeof line, "%s,\"%s\",%g,%g\n", dot->reference ? "reference" : "measured", dot->label,
                      dot->flop_per_byte, dot->flop_per_s);
    ust_writer_write(&writer, line, (size_t)length);
  }
  return ust_writer_commit(&writer, err);
}

understudy_status ust_measure_chart(const ust_chart *chart, const char *path, understudy_error *err) {
  size_t length = strlen(path);
  bool svg = length > 4 && strcmp(path + length - 4, ".svg") == 0;
  bool png = length > 4 && strcmp(path + length - 4, ".png") == 0;
  if (!svg && !png)
    return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT, "%s: expected a name that ends in .svg or .png", path);
  UST_TRY(draw(chart, path, png, err));
  return write_csv(chart, path, err);
}
