/* The cost curve: points and lines, timing passes, and the file they are kept in. */
#include <inttypes.h>
#include <math.h>
#include <sys/stat.h>

#include "speculate/cost.h"

/* ---- the curve ---- */

/* `rows` lie between point i, returned, and the one after it, at *share of the way. */
static int between(const ust_cost *cost, int rows, double *share) {
  int i = 0;
  while (i + 1 < cost->points && cost->rows[i + 1] < rows) i++;
  *share = i + 1 == cost->points ? 0 : (double)(rows - cost->rows[i]) / (cost->rows[i + 1] - cost->rows[i]);
  *share = UST_MAX(*share, 0.0);
  return i;
}

double ust_cost_of(const ust_cost *cost, int rows) {
  if (cost->points == 0) return 0;
  double share;
  int i = between(cost, rows, &share);
  double beyond = i + 1 == cost->points ? UST_MAX(1.0, (double)rows / cost->rows[i]) : 1;
  double step = share > 0 ? cost->seconds[i + 1] - cost->seconds[i] : 0;
  return (cost->seconds[i] + share * step) * beyond * cost->drift;
}

void ust_cost_add(ust_cost *cost, int rows, double seconds) {
  int at = 0;
  while (at < cost->points && cost->rows[at] < rows) at++;
  if (at == cost->points || cost->rows[at] != rows) {
    assert(cost->points < UST_COST_POINTS);
    for (int i = cost->points++; i > at; i--) {
      cost->rows[i] = cost->rows[i - 1];
      cost->seconds[i] = cost->seconds[i - 1];
    }
  }
  cost->rows[at] = rows;
  cost->seconds[at] = seconds;
  cost->drift = 1;
}

void ust_cost_observe(ust_cost *cost, int rows, double seconds) {
  double expected = ust_cost_of(cost, rows);
  if (expected <= 0) return;
  double ratio = UST_MIN(2.0, UST_MAX(0.5, seconds / expected)); /* one stalled pass must not decide */
  double share, move = pow(ratio, 0.05);
  int i = between(cost, rows, &share);
  cost->drift *= move;
  if (i > 0) cost->seconds[i] *= 1 + (1 - share) * (move - 1);
  if (share > 0) cost->seconds[i + 1] *= 1 + share * (move - 1);
}

void ust_cost_fade(ust_cost *cost) {
  cost->drift *= 0.998;
}

void ust_cost_fade_rows(ust_cost *cost, double share) {
  for (int i = 1; i < cost->points; i++) cost->seconds[i] -= share * (cost->seconds[i] - cost->seconds[0]);
}

/* ---- measuring ---- */

/* The seconds known for so many rows; 0: none. */
static double known_seconds(const ust_cost *cost, int rows) {
  for (int i = 0; i < cost->points; i++)
    if (cost->rows[i] == rows) return cost->seconds[i];
  return 0;
}

/* The machine of today reads and multiplies at another speed than that of the curve's day: one row is to cost
 * `seconds`, and all others as many times that as ever. */
static void scale_to(ust_cost *cost, double seconds) {
  double known = known_seconds(cost, 1);
  for (int i = 0; i < cost->points && known > 0; i++) cost->seconds[i] *= seconds / known;
}

/* Drops the points of all row counts but these. */
static void keep_only(ust_cost *cost, const int *order, int count) {
  int kept = 0;
  for (int i = 0; i < cost->points; i++)
    for (int k = 0; k < count; k++) {
      if (cost->rows[i] != order[k]) continue;
      cost->rows[kept] = cost->rows[i];
      cost->seconds[kept++] = cost->seconds[i];
      break;
    }
  cost->points = kept;
}

/* A pass of more rows never costs less, nor more than as many passes of one: what a curve says otherwise is a
 * disturbance. */
static void flatten(ust_cost *cost) {
  for (int i = cost->points - 1; i > 0; i--) cost->seconds[i - 1] = UST_MIN(cost->seconds[i - 1], cost->seconds[i]);
  for (int i = 1; i < cost->points; i++) cost->seconds[i] = UST_MIN(cost->seconds[i], cost->rows[i] * cost->seconds[0]);
}

void ust_cost_measure(ust_cost *cost, const int *order, int count, int most, ust_pass_fn pass, void *user,
                      double budget) {
  enum { ROUNDS = 8 };
  ust_cost now = {.drift = 1};
  double spent = 0, share = 1; /* of a pass's time that is spent to tell it */
  assert(count <= UST_COST_POINTS && order[0] == 1);
  for (int i = 0; i < count * ROUNDS; i++) {
    const int rows = order[i % count];
    if (rows > most || (now.points >= 2 && spent + share * ust_cost_of(&now, rows) > budget)) continue;
    uint64_t start = ust_clock_ns();
    double seconds = pass(user, rows), before = known_seconds(&now, rows);
    double took = ust_seconds_since(start);
    ust_cost_add(&now, rows, before > 0 ? UST_MIN(before, seconds) : seconds);
    spent += took;
    share = took / seconds;
  }
  if (cost->points + count > UST_COST_POINTS) keep_only(cost, order, count);
  scale_to(cost, now.seconds[0]);
  for (int i = 0; i < now.points; i++) {
    double known = known_seconds(cost, now.rows[i]);
    ust_cost_add(cost, now.rows[i], known > 0 ? sqrt(known * now.seconds[i]) : now.seconds[i]);
  }
  flatten(cost);
}

/* ---- the file: a header that is the key, a line "ROWS NANOSECONDS" a point, a checksum ---- */

enum { FILE_LIMIT = 4096 };

/* The processor's name as Linux gives it. */
static void cpu_name(char *name, size_t size) {
  char line[256];
  snprintf(name, size, "unknown");
  FILE *file = fopen("/proc/cpuinfo", "re");
  if (!file) return;
  while (fgets(line, sizeof line, file)) {
    char *value = strchr(line, ':');
    if (strncmp(line, "model name", 10) != 0 || !value) continue;
    value += strspn(value, ": \t");
    snprintf(name, size, "%.*s", (int)strcspn(value, "\n"), value);
    break;
  }
  fclose(file);
}

void ust_cost_key(const ust_model *model, const char *isa, const char *use, char key[UST_COST_KEY]) {
  const ust_config *c = ust_model_config(model);
  char cpu[96];
  cpu_name(cpu, sizeof cpu);
  snprintf(key, UST_COST_KEY,
           "understudy pass costs, version 1\n"
           "%s, %s, %d threads\n"
           "%s: %s, vocabulary %d, width %d, layers %d, heads %d, feed-forward %d, context %d, %" PRIu64 " bytes\n",
           cpu, isa, ust_model_threads(model), use, c->architecture, c->vocabulary, c->width, c->layers, c->heads,
           c->feed_forward, c->context, ust_model_weight_bytes(model));
}

static bool file_name(char *path, size_t size, const char *directory, const char *key) {
  int length =
      snprintf(path, size, "%s/costs-%016" PRIx64 ".txt", directory, ust_hash(UST_HASH_START, key, strlen(key)));
  return length > 0 && (size_t)length < size;
}

/* The file's text; returns its length. */
static size_t format(const ust_cost *cost, const char *key, char text[FILE_LIMIT]) {
  int length = snprintf(text, FILE_LIMIT, "%s", key);
  for (int i = 0; i < cost->points; i++)
    length += snprintf(text + length, FILE_LIMIT - (size_t)length, "%d %.0f\n", cost->rows[i], cost->seconds[i] * 1e9);
  length += snprintf(text + length, FILE_LIMIT - (size_t)length, "checksum %016" PRIx64 "\n",
                     ust_hash(UST_HASH_START, text, (size_t)length));
  return (size_t)length;
}

/* The points of `text`, as they were written by format(). */
static bool parse(ust_cost *cost, const char *text) {
  int rows, used;
  double ns;
  while (cost->points < UST_COST_POINTS && sscanf(text, "%4d %18lf\n%n", &rows, &ns, &used) == 2) {
    if (rows < 1 || !(ns > 0) || (cost->points && rows <= cost->rows[cost->points - 1])) return false;
    ust_cost_add(cost, rows, ns * 1e-9);
    text += used;
  }
  return cost->points > 0;
}

bool ust_cost_load(ust_cost *cost, const char *directory, const char *key) {
  char path[FILE_LIMIT], again[FILE_LIMIT], *text;
  size_t size, header = strlen(key);
  *cost = (ust_cost){.drift = 1};
  if (!directory || !file_name(path, sizeof path, directory, key)) return false;
  if (ust_file_slurp(path, FILE_LIMIT - 1, &text, &size, NULL) != UNDERSTUDY_OK) return false;
  /* what we would write ourselves is what we believe: header, numbers and checksum at once */
  bool sound = size > header && memcmp(text, key, header) == 0 && parse(cost, text + header) &&
               format(cost, key, again) == size && memcmp(text, again, size) == 0;
  ust_free(text);
  if (!sound) *cost = (ust_cost){.drift = 1};
  return sound;
}

void ust_cost_save(const ust_cost *cost, const char *directory, const char *key) {
  char path[FILE_LIMIT], text[FILE_LIMIT];
  ust_writer writer;
  struct stat info;
  if (!directory || !file_name(path, sizeof path, directory, key)) return;
  if (stat(path, &info) == 0 && !S_ISREG(info.st_mode)) return; /* a pipe would wait for a reader */
  if (ust_writer_open(&writer, path, NULL) != UNDERSTUDY_OK) return;
  ust_writer_write(&writer, text, format(cost, key, text));
  ust_writer_commit(&writer, NULL);
}
