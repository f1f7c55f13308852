/* The terminal: progress bars, notes, colour, signals, and the last word on whether stdout could be written.
 *
 * A bar is drawn only when stderr is a terminal, redrawn at most twenty times a second, and leaves no trace. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"

static volatile sig_atomic_t stop_asked;
static bool is_quiet;
static bool bar_standing;

int ust_cli_fail(const understudy_error *err) {
  ust_cli_progress_clear();
  fprintf(stderr, "understudy: %s\n", err->message);
  return UST_EXIT_FAILURE;
}

void ust_cli_set_quiet(bool quiet) {
  is_quiet = quiet;
}

void ust_cli_note(const char *format, ...) {
  if (is_quiet) return;
  ust_cli_progress_clear();
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
}

void ust_cli_note_written(const char *path) {
  struct stat info;
  if (stat(path, &info) == 0 && S_ISREG(info.st_mode))
    ust_cli_note("wrote %s, %.1f MB", path, (double)info.st_size / 1e6);
}

/* ---- progress ---- */

/* A terminal that understands more than lines. */
static bool is_terminal(int fd) {
  const char *kind = getenv("TERM");
  return isatty(fd) && !(kind && strcmp(kind, "dumb") == 0);
}

bool ust_cli_draws(void) {
  return !is_quiet && is_terminal(STDERR_FILENO);
}

static int terminal_columns(void) {
  struct winsize size;
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

void ust_cli_progress_clear(void) {
  if (!bar_standing) return;
  fputs("\r\033[K", stderr);
  fflush(stderr);
  bar_standing = false;
}

/* At the pace so far; negative: nobody knows yet. What comes with another total, or begins again, is another thing. */
static double seconds_left(uint64_t done, uint64_t total) {
  enum { LEAST_S = 3 };
  static uint64_t begin_ns, first, last, of;
  if (total != of || done < last) {
    begin_ns = ust_clock_ns();
    first = done;
    of = total;
  }
  last = done;
  const double seconds = ust_seconds_since(begin_ns);
  if (seconds < LEAST_S || done == first || done >= total) return -1;
  return seconds * (double)(total - done) / (double)(done - first);
}

void ust_cli_left(double seconds, char text[UST_LEFT_SIZE]) {
  const int s = (int)UST_MIN(seconds, 359999.0);
  text[0] = 0;
  if (s >= 3600)
    snprintf(text, UST_LEFT_SIZE, "  %d:%02d:%02d left", s / 3600, s / 60 % 60, s % 60);
  else if (seconds >= 0)
    snprintf(text, UST_LEFT_SIZE, "  %d:%02d left", s / 60, s % 60);
}

static void draw_bar(const char *what, uint64_t done, uint64_t total) {
  enum { CELLS = 24, LEAST = 4, PERCENT = 7 /* columns */ };
  char left[UST_LEFT_SIZE];
  ust_cli_left(seconds_left(done, total), left);
  int percent = total ? (int)(100.0 * (double)UST_MIN(done, total) / (double)total) : 0;
  int room = terminal_columns() - PERCENT - (int)strlen(left), cells = UST_MIN(CELLS, room - (int)strlen(what));
  if (cells < LEAST) cells = 0; /* the text comes first */
  char bar[3 * CELLS + 1] = "";
  for (int i = 0; i < cells; i++) strcat(bar, i * 100 < percent * cells ? "━" : " ");
  fprintf(stderr, "\r\033[K%-.*s %s %3d %%%s", room - cells, what, bar, percent, left);
  fflush(stderr);
  bar_standing = true;
}

bool ust_cli_progress(void *user, const char *what, uint64_t done, uint64_t total) {
  (void)user;
  static uint64_t last_ns;
  if (ust_cli_draws()) {
    uint64_t now = ust_clock_ns();
    if (done >= total) {
      ust_cli_progress_clear();
    } else if (!bar_standing || now - last_ns > 50000000u) {
      last_ns = now;
      draw_bar(what, done, total);
    }
  }
  return ust_cli_stopped();
}

/* ---- signals ---- */

static void ask_to_stop(int signal_number) {
  (void)signal_number;
  stop_asked = 1;
}

void ust_cli_catch_signals(void) {
  struct sigaction stop = {.sa_handler = ask_to_stop, .sa_flags = (int)SA_RESETHAND};
  sigemptyset(&stop.sa_mask);
  sigaction(SIGINT, &stop, NULL);
  sigaction(SIGTERM, &stop, NULL);
}

bool ust_cli_stopped(void) {
  return stop_asked != 0;
}

/* ---- stdout ---- */

bool ust_cli_color(bool forced) {
  if (forced) return true;
  const char *no_color = getenv("NO_COLOR");
  return is_terminal(STDOUT_FILENO) && !(no_color && no_color[0]);
}

bool ust_cli_flush(void) {
  static int failure; /* the first one: errno does not last */
  errno = 0;
  if (fflush(stdout) != 0 || ferror(stdout)) failure = failure ? failure : errno ? errno : EIO;
  errno = failure;
  return failure == 0;
}

int ust_cli_finish(int code) {
  ust_cli_progress_clear();
  if (ust_cli_flush()) return code;
  if (errno == EPIPE) return UST_EXIT_FAILURE; /* who reads no more wants to hear nothing either */
  fprintf(stderr, "understudy: standard output: cannot write: %s\n", strerror(errno));
  return UST_EXIT_FAILURE;
}
