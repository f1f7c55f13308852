/* The roofline chart as gnuplot commands: one or two log-log panels, each a machine's roof with the dots measured under
 * it, over the same axes.
 *
 * Labels are placed here: each takes the cheapest of many places around its dot, where covering a dot, a roof or
 * another label costs most and distance a little, in a few rounds so that early ones give way to later ones. */
#include <math.h>

#include "measure/measure.h"

/* Pixels; char_w is roughly what a character takes in either terminal's font. */
enum {
  PICTURE_H = 560,
  TOP = 56,
  BOTTOM = 486,
  LEFT = 104,
  PANEL_GAP = 100,
  RIGHT_MARGIN = 20,
  ONE_W = 780,
  TWO_W = 520
};
static const double char_w = 7.0, char_h = 17;

typedef struct box {
  double left, right, top, bottom;
} box;

typedef struct frame {
  int width; /* of the picture */
  double left, right;
  double x_min, x_max, y_min, y_max;
} frame;

enum { OBSTACLES = 12, ANGLES = 24, DISTANCES = 7, ROUNDS = 4 };
static const double distances[DISTANCES] = {10, 18, 30, 46, 66, 90, 120};
static const double pi = 3.14159265358979;

/* A panel while its labels are placed. */
typedef struct layout {
  const ust_chart_panel *panel;
  const frame *frame;
  box fixed[OBSTACLES]; /* the roof's own labels */
  int fixed_count;
  box labels[UST_CHART_DOTS];
} layout;

static double pixel_x(const frame *f, double x) {
  return f->left + (f->right - f->left) * log(x / f->x_min) / log(f->x_max / f->x_min);
}
static double pixel_y(const frame *f, double y) {
  return BOTTOM - (BOTTOM - TOP) * log(y / f->y_min) / log(f->y_max / f->y_min);
}
static double value_x(const frame *f, double pixel) {
  return f->x_min * pow(f->x_max / f->x_min, (pixel - f->left) / (f->right - f->left));
}
static double roof_at(const ust_device *device, double flop_per_byte) {
  return fmin(flop_per_byte * device->read_gb_per_s * 1e9, device->peak_tflop_per_s * 1e12);
}
static double ridge(const ust_device *device) {
  return device->peak_tflop_per_s * 1e3 / device->read_gb_per_s;
}

/* The same ranges for every panel, so that heights can be compared. */
static frame fit_axes(const ust_chart *chart) {
  frame f = {.x_min = 0.5, .x_max = 100, .y_min = 1e300, .y_max = 0};
  for (int p = 0; p < chart->panel_count; p++) {
    const ust_chart_panel *panel = &chart->panels[p];
    for (int i = 0; i < panel->dot_count; i++) {
      f.x_min = fmin(f.x_min, panel->dots[i].flop_per_byte / 2);
      f.x_max = fmax(f.x_max, panel->dots[i].flop_per_byte * 8);
      f.y_min = fmin(f.y_min, panel->dots[i].flop_per_s / 3);
      f.y_max = fmax(f.y_max, panel->dots[i].flop_per_s * 3);
    }
    f.x_max = fmax(f.x_max, ridge(&panel->device) * 12);
    f.y_max = fmax(f.y_max, panel->device.peak_tflop_per_s * 1e12 * 4);
  }
  for (int p = 0; p < chart->panel_count; p++) f.y_min = fmin(f.y_min, roof_at(&chart->panels[p].device, f.x_min) / 2);
  return f;
}

/* ---- placing labels ---- */

static box grown(box b, double by) {
  return (box){b.left - by, b.right + by, b.top - by, b.bottom + by};
}

/* Square pixels two boxes share. */
static double shared(const box *a, const box *b) {
  double w = fmin(a->right, b->right) - fmax(a->left, b->left), h = fmin(a->bottom, b->bottom) - fmax(a->top, b->top);
  return w > 0 && h > 0 ? w * h : 0;
}

static box dot_box(const layout *l, int index) {
  double x = pixel_x(l->frame, l->panel->dots[index].flop_per_byte);
  double y = pixel_y(l->frame, l->panel->dots[index].flop_per_s);
  return (box){x - 6, x + 6, y - 6, y + 6};
}

/* The nearest point of a box to a dot's middle. */
static void nearest(const box *b, double x, double y, double *to_x, double *to_y) {
  *to_x = fmin(fmax(x, b->left), b->right);
  *to_y = fmin(fmax(y, b->top), b->bottom);
}

/* How much of the straight line from the dot to its label lies in `other`, in samples of 3 pixels. */
static int crossing(const box *b, double x, double y, const box *other) {
  double to_x, to_y;
  nearest(b, x, y, &to_x, &to_y);
  int steps = (int)(hypot(to_x - x, to_y - y) / 3), inside = 0;
  for (int i = 1; i < steps; i++) {
    double px = x + (to_x - x) * i / steps, py = y + (to_y - y) * i / steps;
    inside += px > other->left && px < other->right && py > other->top && py < other->bottom;
  }
  return inside;
}

/* Pixels of roof lines under a label. */
static int roof_under(const layout *l, const box *b) {
  const ust_device *device = &l->panel->device;
  int count = 0;
  for (double x = b->left; x <= b->right; x += 2) {
    double flop_per_byte = value_x(l->frame, x), y = pixel_y(l->frame, roof_at(device, flop_per_byte));
    count += y > b->top - 2 && y < b->bottom + 2;
    double lower = device->f32_tflop_per_s;
    if (lower <= 0 || flop_per_byte * device->read_gb_per_s < lower * 1e3) continue;
    y = pixel_y(l->frame, lower * 1e12);
    count += y > b->top - 2 && y < b->bottom + 2;
  }
  return count;
}

static double place_cost(const layout *l, int index, const box *b, int placed) {
  double x = pixel_x(l->frame, l->panel->dots[index].flop_per_byte);
  double y = pixel_y(l->frame, l->panel->dots[index].flop_per_s);
  box inside = {l->frame->left + 3, l->frame->right - 3, TOP + 3, BOTTOM - 3}, roomy = grown(*b, 2);
  double cost = 20 * ((b->right - b->left) * (b->bottom - b->top) - shared(b, &inside));
  cost += 20.0 * roof_under(l, b);
  for (int i = 0; i < l->fixed_count; i++)
    cost += 10 * shared(&roomy, &l->fixed[i]) + 80 * crossing(b, x, y, &l->fixed[i]);
  for (int i = 0; i < l->panel->dot_count; i++) {
    box dot = dot_box(l, i);
    cost += 10 * shared(b, &dot);
    if (i == index) continue;
    cost += 60 * crossing(b, x, y, &dot);
    if (i >= placed) continue;
    cost += 10 * shared(&roomy, &l->labels[i]) + 80 * crossing(b, x, y, &l->labels[i]);
    double other_x = (dot.left + dot.right) / 2, other_y = (dot.top + dot.bottom) / 2;
    cost += 80 * crossing(&l->labels[i], other_x, other_y, b);
  }
  return cost;
}

static box place_label(const layout *l, int index, int placed) {
  const ust_chart_dot *dot = &l->panel->dots[index];
  double w = (double)strlen(dot->label) * char_w, x = pixel_x(l->frame, dot->flop_per_byte);
  double y = pixel_y(l->frame, dot->flop_per_s), best_cost = 1e300;
  box best = {0};
  for (int d = 0; d < DISTANCES; d++)
    for (int a = 0; a < ANGLES; a++) {
      /* right first, then turning both ways */
      double angle = (a % 2 ? 1 : -1) * ((a + 1) / 2) * 2 * pi / ANGLES;
      double middle_x = x + cos(angle) * (distances[d] + w / 2),
             middle_y = y + sin(angle) * (distances[d] + char_h / 2);
      box b = {middle_x - w / 2, middle_x + w / 2, middle_y - char_h / 2, middle_y + char_h / 2};
      double cost = place_cost(l, index, &b, placed) + distances[d] * 1.5 + a * 0.4;
      if (cost >= best_cost) continue;
      best = b;
      best_cost = cost;
    }
  return best;
}

static void place_labels(layout *l) {
  int count = l->panel->dot_count;
  for (int i = 0; i < count; i++) l->labels[i] = place_label(l, i, i);
  for (int round = 1; round < ROUNDS; round++)
    for (int i = 0; i < count; i++) l->labels[i] = place_label(l, i, count);
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

static void add_label(ust_buffer *script, const frame *f, const char *text, double x, double y, const char *how) {
  add(script, "set label ");
  add_quoted(script, text);
  add(script, " at screen %.5f, screen %.5f %s\n", x / f->width, 1 - y / PICTURE_H, how);
}

static void add_page(ust_buffer *script, const ust_chart *chart, const frame *f, bool png, const char *output) {
  add(script, "set encoding utf8\nset terminal %s size %d,%d noenhanced font '%s' background '#ffffff'\n",
      png ? "pngcairo" : "svg", f->width, PICTURE_H, png ? "Sans,10" : "Helvetica,Arial,sans-serif,13");
  add(script, "set output ");
  add_quoted(script, output);
  add(script, "\nunset key\nset logscale xy\nset xrange [%g:%g]\nset yrange [%g:%g]\n", f->x_min, f->x_max, f->y_min,
      f->y_max);
  add(script, "set border 3 lc rgb '#444444'\nset tics nomirror out scale 0.6, 0.3 tc rgb '#444444'\n");
  add(script, "set grid xtics ytics lt 1 lc rgb '#e6e6e6', lt 1 lc rgb '#e6e6e6'\nset format x '%%g'\nset mxtics 10\n");
  add(script, "set ytics (");
  const char *const units[] = {"1 M", "10 M", "100 M", "1 G", "10 G", "100 G", "1 T", "10 T", "100 T", "1 P", "10 P"};
  for (int i = 0; i < 11; i++) add(script, "%s'%sFLOP/s' 1e%d", i ? ", " : "", units[i], 6 + i);
  add(script, ")\nset xlabel 'FLOP per byte read' tc rgb '#444444'\n");
  add(script, "set tmargin at screen %.5f\nset bmargin at screen %.5f\n", 1 - (double)TOP / PICTURE_H,
      1 - (double)BOTTOM / PICTURE_H);
  if (chart->panel_count > 1) add(script, "set multiplot\n");
}

static void fix(layout *l, box b) {
  if (l->fixed_count < OBSTACLES) l->fixed[l->fixed_count++] = b;
}

static const char *flop_rate(char text[48], double tflop_per_s, const char *what) {
  if (tflop_per_s < 1)
    snprintf(text, 48, "%.3g GFLOP/s%s", tflop_per_s * 1e3, what);
  else
    snprintf(text, 48, "%.3g TFLOP/s%s", tflop_per_s, what);
  return text;
}

/* A label at the right end of a flat roof, over or under it. */
static void add_flat_label(ust_buffer *script, layout *l, double tflop_per_s, const char *what, double offset) {
  char text[48];
  double x = l->frame->right - 4, y = pixel_y(l->frame, tflop_per_s * 1e12) + offset;
  add_label(script, l->frame, flop_rate(text, tflop_per_s, what), x, y, "right tc rgb '#1f5fa8'");
  fix(l, (box){x - (double)strlen(text) * char_w, x, y - char_h / 2, y + char_h / 2});
}

/* The bandwidth goes along the slope, where the fewest dots are near. */
static void add_slope_label(ust_buffer *script, layout *l) {
  static const double parts[] = {0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8};
  const frame *f = l->frame;
  const ust_device *device = &l->panel->device;
  double decade_x = (f->right - f->left) / log10(f->x_max / f->x_min);
  double decade_y = (BOTTOM - TOP) / log10(f->y_max / f->y_min), angle = atan2(decade_y, decade_x);
  double best_x = 0, best_y = 0, best_near = 1e300;
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
    double x = f->left + (pixel_x(f, ridge(device)) - f->left) * parts[i];
    double y = pixel_y(f, roof_at(device, value_x(f, x))), near = 0;
    x -= 12 * sin(angle);
    y -= 12 * cos(angle);
    for (int d = 0; d < l->panel->dot_count; d++) {
      box dot = dot_box(l, d);
      double away = hypot((dot.left + dot.right) / 2 - x, (dot.top + dot.bottom) / 2 - y);
      near += away < 60 ? 60 - away : 0;
    }
    if (near >= best_near) continue;
    best_near = near;
    best_x = x;
    best_y = y;
  }
  char text[48], how[96];
  snprintf(text, sizeof text, "%.*f GB/s", device->read_gb_per_s < 99.95 ? 1 : 0, device->read_gb_per_s);
  snprintf(how, sizeof how, "center rotate by %.1f tc rgb '#1f5fa8'", angle * 180 / pi);
  add_label(script, f, text, best_x, best_y, how);
  for (double along = -32; along <= 32; along += 16) {
    double x = best_x + along * cos(angle), y = best_y - along * sin(angle);
    fix(l, (box){x - 9, x + 9, y - 9, y + 9});
  }
}

/* A dot has the colour of its label: two that nearly coincide can still be told apart. */
static unsigned dot_colour(const ust_chart_panel *panel, int index) {
  static const unsigned colours[] = {0x404040, 0xb35c00, 0xb3261e, 0x2e7d32, 0x7b3fa0, 0x00708c};
  if (panel->dots[index].reference) return 0x666666;
  return colours[(size_t)index % (sizeof colours / sizeof colours[0])];
}

static void add_dot_labels(ust_buffer *script, layout *l) {
  place_labels(l);
  for (int i = 0; i < l->panel->dot_count; i++) {
    const ust_chart_dot *dot = &l->panel->dots[i];
    const box *b = &l->labels[i];
    double x = pixel_x(l->frame, dot->flop_per_byte), y = pixel_y(l->frame, dot->flop_per_s), to_x, to_y;
    bool before = b->right < x; /* then its last letter is the one near the dot */
    char how[48];
    snprintf(how, sizeof how, "%s tc rgb '#%06x'", before ? "right" : "left", dot_colour(l->panel, i));
    add_label(script, l->frame, dot->label, before ? b->right : b->left, (b->top + b->bottom) / 2, how);
    nearest(b, x, y, &to_x, &to_y);
    if (hypot(to_x - x, to_y - y) < 22) continue;
    add(script, "set arrow from screen %.5f, screen %.5f to screen %.5f, screen %.5f nohead lc rgb '#aaaaaa'\n",
        x / l->frame->width, 1 - y / PICTURE_H, to_x / l->frame->width, 1 - to_y / PICTURE_H);
  }
}

static void add_data(ust_buffer *script, const ust_chart_panel *panel, const frame *f, bool png) {
  const ust_device *device = &panel->device;
  add(script, "$roof << EOD\n%g %g\n%g %g\n%g %g\nEOD\n", f->x_min, roof_at(device, f->x_min), ridge(device),
      roof_at(device, ridge(device)), f->x_max, roof_at(device, f->x_max));
  double lower = device->f32_tflop_per_s;
  if (lower > 0)
    add(script, "$lower << EOD\n%g %g\n%g %g\nEOD\n", lower * 1e3 / device->read_gb_per_s, lower * 1e12, f->x_max,
        lower * 1e12);
  add(script, "$dots << EOD\nNaN NaN 0 0\n");
  for (int i = 0; i < panel->dot_count; i++) /* x, y, open or filled, colour */
    add(script, "%g %g %d 0x%06x\n", panel->dots[i].flop_per_byte, panel->dots[i].flop_per_s,
        panel->dots[i].reference ? 6 : 7, dot_colour(panel, i));
  add(script, "EOD\nplot $roof with lines lw 2.5 lc rgb '#1f5fa8', ");
  if (lower > 0) add(script, "$lower with lines lw 1.2 dt 2 lc rgb '#1f5fa8', ");
  add(script, "$dots with points ps %g lw 2 pt variable lc rgb variable\n", png ? 1.2 : 0.8); /* alike on the screen */
}

static void add_panel(ust_buffer *script, const ust_chart_panel *panel, const frame *f, bool png) {
  layout l = {.panel = panel, .frame = f};
  add(script, "unset label\nunset arrow\nset lmargin at screen %.5f\nset rmargin at screen %.5f\n", f->left / f->width,
      f->right / f->width);
  add_label(script, f, panel->title, f->left, 26, "left tc rgb '#222222'");
  add_slope_label(script, &l);
  const ust_device *device = &panel->device;
  add_flat_label(script, &l, device->peak_tflop_per_s, "", -12);
  if (device->f32_tflop_per_s > 0) add_flat_label(script, &l, device->f32_tflop_per_s, " in f32", 12);
  add_dot_labels(script, &l);
  add_data(script, panel, f, png);
}

void ust_measure_chart_script(const ust_chart *chart, bool png, const char *output, ust_buffer *script) {
  frame f = fit_axes(chart);
  int width = chart->panel_count > 1 ? TWO_W : ONE_W;
  f.width = LEFT + chart->panel_count * width + (chart->panel_count - 1) * PANEL_GAP + RIGHT_MARGIN;
  add_page(script, chart, &f, png, output);
  for (int p = 0; p < chart->panel_count; p++) {
    f.left = LEFT + p * (width + PANEL_GAP);
    f.right = f.left + width;
    add_panel(script, &chart->panels[p], &f, png);
  }
  if (chart->panel_count > 1) add(script, "unset multiplot\n");
  add(script, "unset output\n");
}
