/* measure: devices given by name and as figures, bench files that are odd or hostile, the arithmetic of a prediction
 * against cases worked out by hand, and the chart's script: labels that stay in the picture and apart. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "measure/measure.h"

/* ---- devices ---- */

static void test_known_devices(void **state) {
  (void)state;
  char names[] = UST_DEVICE_NAMES;
  int count = 0;
  for (char *name = strtok(names, " "); name; name = strtok(NULL, " "), count++) {
    ust_device device;
    assert_int_equal(ust_measure_device(name, &device, NULL), UNDERSTUDY_OK);
    double ridge = device.peak_tflop_per_s * 1e3 / device.read_gb_per_s;
    assert_true(ridge > 5 && ridge < 1000); /* a slip of a unit would be a factor of 1000 */
    assert_true(device.f32_tflop_per_s < device.peak_tflop_per_s);
    assert_true(device.label[0] && device.pass_us > 0);
    assert_int_equal(device.paper, strcmp(name, "rtx4090") == 0);
  }
  assert_int_equal(count, 8);
}

static void test_given_devices(void **state) {
  (void)state;
  static const struct {
    const char *text;
    double read, peak, pass;
  } cases[] = {
      {"1008GB/s,165TFLOP/s", 1008, 165, 0},
      {"1008GB/s,165TFLOP/s,130us", 1008, 165, 130},
      {"5.1ms,165TFLOP/s,1.5TB/s", 1500, 165, 5100},
      {"17GB/s,300GFLOP/s,0us", 17, 0.3, 0},
      {"1e3GB/s,2e0TFLOP/s", 1000, 2, 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    ust_device device;
    assert_int_equal(ust_measure_device(cases[i].text, &device, NULL), UNDERSTUDY_OK);
    assert_float_equal(device.read_gb_per_s, cases[i].read, 1e-9);
    assert_float_equal(device.peak_tflop_per_s, cases[i].peak, 1e-9);
    assert_float_equal(device.pass_us, cases[i].pass, 1e-9);
  }
}

static void test_refused_devices(void **state) {
  (void)state;
  static const char *const texts[] = {
      "",
      "rtx",
      "RTX4090",
      "rtx4090 ",
      "1008GB/s",
      "165TFLOP/s",
      "1008GB/s,165TFLOP/s,",
      "1008GB/s,,165TFLOP/s",
      "1008GB/s 165TFLOP/s",
      "1008,165",
      "1008GB,165TFLOP",
      "1008GB/s,165TFLOP/s,130",
      "1008GB/s,165TFLOP/s,1us,2us",
      "1008GB/s,1TB/s,165TFLOP/s",
      "0GB/s,165TFLOP/s",
      "1008GB/s,-1TFLOP/s",
      "nanGB/s,1TFLOP/s",
      "1e999GB/s,1TFLOP/s",
      "1008GB/sx,165TFLOP/s",
      "12345678901234567890123456789012345678901234567890123456789012345678901234567890"};
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
    ust_device device;
    understudy_error err = {0};
    if (ust_measure_device(texts[i], &device, &err) == UNDERSTUDY_OK) fail_msg("'%s' was taken", texts[i]);
    assert_non_null(strstr(err.message, "expected one of rtx4090"));
    assert_null(strchr(err.message, '\n'));
  }
}

/* ---- bench files ---- */

static char file_name[] = "/tmp/understudy-test-XXXXXX";

static int make_file(void **state) {
  (void)state;
  int fd = mkstemp(file_name);
  return fd < 0 || close(fd) != 0;
}
static int remove_file(void **state) {
  (void)state;
  return unlink(file_name);
}

static understudy_status read_text(const char *text, ust_bench *run, understudy_error *err) {
  FILE *file = fopen(file_name, "wb");
  assert_non_null(file);
  assert_true(fputs(text, file) >= 0);
  assert_int_equal(fclose(file), 0);
  return ust_measure_read_bench(file_name, run, err);
}

/* 1 GB of weights and 0.1 GB of KV a pass, 2 GFLOP a row. Plain: 100 passes. Staged: 20 passes, ten of 1 row and ten
 * of 9; 200 draft passes, 10 GB and 40 GFLOP together. */
#define HEAD                                                                                                           \
  "{\"isa\": \"amx\", \"threads\": 2, \"machine\": {\"read_gb_per_s\": 10, \"peak_tflop_per_s\": 1},"                  \
  " \"target\": {\"architecture\": \"gpt2\", \"parameters\": 1000000000, \"weight_bytes\": 1000000000}, \"modes\": ["
#define PLAIN                                                                                                          \
  "{\"mode\": \"plain\", \"tokens\": 100, \"seconds\": 12.5, \"target_passes\": 100, \"bytes_per_token\": 1.1e9,"      \
  " \"flop_per_s\": 1.6e10, \"rows\": [{\"rows\": 1, \"passes\": 100}]}"
#define STAGED_START                                                                                                   \
  "{\"mode\": \"staged\", \"tokens\": 100, \"seconds\": 4, \"target_passes\": 20, \"bytes_per_token\": 3.2e8,"         \
  " \"flop_per_s\": 6e10"
#define STAGED                                                                                                         \
  STAGED_START ", \"rows\": [{\"rows\": 1, \"passes\": 10}, {\"rows\": 9, \"passes\": 10}],"                           \
               " \"stage_passes\": {\"draft\": 200, \"draft_rows\": 800}, \"time\": {\"ngram_s\": 0.02, "              \
               "\"choice_s\": 0.01, \"planning_s\": 0.01}}"

static void test_bench_file(void **state) {
  (void)state;
  ust_bench run;
  understudy_error err = {0};
  if (read_text(HEAD PLAIN "," STAGED "]}", &run, &err) != UNDERSTUDY_OK) fail_msg("%s", err.message);
  assert_string_equal(run.isa, "amx");
  assert_string_equal(run.architecture, "gpt2");
  assert_int_equal(run.threads, 2);
  assert_int_equal(run.mode_count, 2);
  assert_string_equal(run.modes[1].name, "staged");
  assert_int_equal(run.modes[1].pass_counts, 2);
  assert_float_equal(run.modes[1].passes[1].rows, 9, 0);
  assert_float_equal(run.modes[1].draft_passes, 200, 0);
  assert_float_equal(run.modes[1].host_s, 0.04, 1e-12);
  assert_int_equal(ust_measure_check_bench(&run, "x", NULL), UNDERSTUDY_OK);
}

/* Each text with a piece of the one line that must come out: of reading, or else of the check before a prediction. */
static void test_odd_bench_files(void **state) {
  (void)state;
  static const struct {
    const char *text, *complaint;
  } cases[] = {
      {"", "not JSON"},
      {"<html>", "line 1: not JSON"},
      {"[]", "found no modes"},
      {"{}", "found no modes"},
      {"{\"modes\": 3}", "found no modes"},
      {"{\"modes\": {}}", "found no modes"},
      {"{\"modes\": []}", "found no modes"},
      {"{\"modes\": [], \"modes\": []}", "duplicate"},
      {"{\"modes\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}", "found 17 modes, expected at most 16"},
      {"{\"modes\": [3]}", "expected an object"},
      {"{\"modes\": [{}]}", "modes: mode: found nothing, expected its name"},
      {"{\"modes\": [{\"mode\": 3}]}", "modes: mode: found 3, expected a word"},
      {"{\"modes\": [{\"mode\": \"\"}]}", "expected a word"},
      {"{\"modes\": [{\"mode\": \"a\\nb\"}]}", "expected a word"},
      {"{\"modes\": [{\"mode\": \"a\\u0000b\"}]}", "JSON"},
      {"{\"modes\": [{\"mode\": \"12345678901234567890123456789012\"}]}", "1 to 31 letters"},
      {"{\"modes\": [{\"mode\": \"x\", \"tokens\": \"many\"}]}", "modes: x: tokens: found text, expected a number"},
      {"{\"modes\": [{\"mode\": \"x\", \"tokens\": -1}]}", "modes: x: tokens: found -1, expected"},
      {"{\"modes\": [{\"mode\": \"x\", \"seconds\": 1e31}]}", "found 1e+31, expected a number from 0 to 1e30"},
      {"{\"modes\": [{\"mode\": \"x\", \"seconds\": null}]}", "seconds: found null"},
      {"{\"modes\": [{\"mode\": \"x\", \"seconds\": 1e999}]}", "JSON"},
      {"{\"modes\": [{\"mode\": \"x\", \"rows\": 3}]}", "modes: x: rows: found 3, expected an array"},
      {"{\"modes\": [{\"mode\": \"x\", \"rows\": [1]}]}", "expected entries with rows and passes"},
      {"{\"modes\": [{\"mode\": \"x\", \"rows\": [{\"rows\": 0}]}]}", "modes: x: rows: rows: found 0, expected 1 or"},
      {"{\"modes\": [{\"mode\": \"x\", \"rows\": [{\"passes\": 4}]}]}", "rows: rows: found nothing, expected 1 or"},
      {"{\"modes\": [{\"mode\": \"x\", \"target_passes\": 5, \"rows\": [{\"rows\": 2, \"passes\": 4}]}]}",
       "found 4 passes in all, expected 5"},
      {"{\"modes\": [{\"mode\": \"x\", \"time\": 3}]}", "modes: x: time: found 3, expected an object"},
      {"{\"modes\": [{\"mode\": \"x\", \"stage_passes\": []}]}", "stage_passes: found an array, expected an object"},
      {"{\"modes\": [{\"mode\": \"x\"}], \"machine\": []}", "machine: found an array, expected an object"},
      {"{\"modes\": [{\"mode\": \"x\"}], \"machine\": {\"read_gb_per_s\": {}}}", "machine: read_gb_per_s: found an ob"},
      {"{\"modes\": [{\"mode\": \"x\"}], \"isa\": 3}", "isa: found 3"},
      {"{\"modes\": [{\"mode\": \"x\"}]}", "machine: read_gb_per_s: found nothing or 0, expected a number above 0"},
      {HEAD "{\"mode\": \"x\"}]}", "modes: x: tokens: found nothing or 0"},
      {HEAD "{\"mode\": \"x\", \"tokens\": 1, \"seconds\": 0}]}", "modes: x: seconds: found nothing or 0"},
      {HEAD "{\"mode\": \"x\", \"tokens\": 1, \"seconds\": 1}]}", "modes: x: target_passes: found nothing or 0"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    ust_bench run;
    understudy_error err = {0};
    understudy_status status = read_text(cases[i].text, &run, &err);
    if (status == UNDERSTUDY_OK) status = ust_measure_check_bench(&run, file_name, &err);
    if (status == UNDERSTUDY_OK || !strstr(err.message, cases[i].complaint) || strchr(err.message, '\n'))
      fail_msg("%s\ngave '%s', expected '%s'", cases[i].text, err.message, cases[i].complaint);
    assert_non_null(strstr(err.message, file_name));
  }
}

static void test_many_rows(void **state) {
  (void)state;
  char text[8192];
  int used = snprintf(text, sizeof text, "{\"modes\": [{\"mode\": \"x\", \"target_passes\": 128, \"rows\": [");
  for (int i = 0; i < 128; i++)
    used += snprintf(text + used, sizeof text - (size_t)used, "%s{\"rows\": %d, \"passes\": 1}", i ? "," : "", i + 1);
  int end = used;
  ust_bench run;
  snprintf(text + end, sizeof text - (size_t)end, "]}]}");
  assert_int_equal(read_text(text, &run, NULL), UNDERSTUDY_OK);
  assert_float_equal(run.modes[0].passes[127].rows, 128, 0);
  snprintf(text + end, sizeof text - (size_t)end, ",{\"rows\": 129, \"passes\": 0}]}]}");
  assert_int_equal(read_text(text, &run, NULL), UNDERSTUDY_ERROR_FORMAT);
}

/* ---- predictions ---- */

static void test_predictions(void **state) {
  (void)state;
  ust_bench run;
  assert_int_equal(read_text(HEAD PLAIN "," STAGED "]}", &run, NULL), UNDERSTUDY_OK);

  /* 10 GB/s, 1 TFLOP/s: a target pass reads 110 ms and computes 2 or 18; a draft pass reads 50 MB in 5 ms. */
  ust_device memory = {.read_gb_per_s = 10, .peak_tflop_per_s = 1};
  ust_prediction p = ust_measure_predict(&run, &run.modes[0], &memory);
  assert_float_equal(p.target_s, 11, 1e-9);
  assert_float_equal(p.tokens_per_s, 100 / 11.0, 1e-9);
  p = ust_measure_predict(&run, &run.modes[1], &memory);
  assert_float_equal(p.target_s, 20 * 0.11, 1e-9);
  assert_float_equal(p.draft_s, 200 * 0.005, 1e-9);
  assert_float_equal(p.host_s, 0.04, 1e-12);
  assert_float_equal(p.tokens_per_s, 100 / (2.2 + 1 + 0.04), 1e-9);

  /* 1100 GB/s, 1 TFLOP/s: reading takes 1 ms, so rows count: 2 ms and 18; a draft pass computes 0.2 ms. 0.5 ms each. */
  ust_device arithmetic = {.read_gb_per_s = 1100, .peak_tflop_per_s = 1, .pass_us = 500};
  p = ust_measure_predict(&run, &run.modes[0], &arithmetic);
  assert_float_equal(p.target_s, 100 * 0.0025, 1e-9);
  p = ust_measure_predict(&run, &run.modes[1], &arithmetic);
  assert_float_equal(p.target_s, 10 * 0.0025 + 10 * 0.0185, 1e-9);
  assert_float_equal(p.draft_s, 200 * 0.0007, 1e-9);
}

/* Without passes by rows all of a mode's work counts as its target passes': 20 of 1.6 GB and 12 GFLOP. */
static void test_rough_prediction(void **state) {
  (void)state;
  ust_bench run;
  assert_int_equal(read_text(HEAD STAGED_START "}]}", &run, NULL), UNDERSTUDY_OK);
  assert_int_equal(ust_measure_check_bench(&run, "x", NULL), UNDERSTUDY_OK);
  ust_device memory = {.read_gb_per_s = 10, .peak_tflop_per_s = 1};
  assert_float_equal(ust_measure_predict(&run, &run.modes[0], &memory).target_s, 20 * 0.16, 1e-9);
  ust_device arithmetic = {.read_gb_per_s = 1e6, .peak_tflop_per_s = 1, .pass_us = 1000};
  assert_float_equal(ust_measure_predict(&run, &run.modes[0], &arithmetic).target_s, 20 * 0.013, 1e-9);
}

/* Without a plain mode the target's pass is its weights and 2 FLOP a parameter; what is left is the draft's. */
static void test_prediction_without_plain(void **state) {
  (void)state;
  ust_bench run;
  assert_int_equal(read_text(HEAD STAGED "]}", &run, NULL), UNDERSTUDY_OK);
  ust_device memory = {.read_gb_per_s = 10, .peak_tflop_per_s = 1};
  ust_prediction p = ust_measure_predict(&run, &run.modes[0], &memory);
  assert_float_equal(p.target_s, 20 * 0.1, 1e-9);
  assert_float_equal(p.draft_s, 200 * 0.006, 1e-9); /* (32 - 20) GB / 200 = 60 MB */
}

/* ---- the chart ---- */

typedef struct label {
  double x, y; /* pixels from the left and the top */
  double left, right;
} label;

/* The labels of dots: "name, RATE tokens/s" at a place of the screen, left or right of it. */
static int find_labels(const char *script, label *out, int room) {
  int count = 0, width = 0, height = 0;
  const char *size = strstr(script, " size ");
  assert_non_null(size);
  assert_int_equal(sscanf(size, " size %d,%d", &width, &height), 2);
  for (const char *at = script; (at = strstr(at, "set label '")) != NULL; at++) {
    char text[64], align[16];
    double x, y;
    if (sscanf(at, "set label '%63[^']' at screen %lf, screen %lf %15s", text, &x, &y, align) != 4) continue;
    if (!strstr(text, "tokens/s")) continue;
    assert_true(count < room);
    double length = (double)strlen(text) * 6.5;
    label *l = &out[count++];
    *l = (label){x * width, (1 - y) * height, 0, 0};
    l->left = strcmp(align, "right") == 0 ? l->x - length : l->x;
    l->right = l->left + length;
    assert_true(l->left >= 0 && l->right <= width && l->y > 0 && l->y < height);
  }
  return count;
}

static void check_chart(int dots, double spread) {
  ust_chart chart = {.panel_count = 2};
  for (int p = 0; p < 2; p++) {
    ust_chart_panel *panel = &chart.panels[p];
    panel->device = (ust_device){"a machine", 23, 1.6, 0.4, 0, false};
    panel->dot_count = dots;
    for (int i = 0; i < dots; i++) {
      panel->dots[i] = (ust_chart_dot){.flop_per_byte = 20 + spread * (i % 3), .flop_per_s = 3e11 + 1e10 * spread * i};
      snprintf(panel->dots[i].label, sizeof panel->dots[i].label, "mode-%d, %d.0 tokens/s", i, 40 + i);
    }
  }
  ust_buffer script = {0};
  ust_measure_chart_script(&chart, true, "out.png", &script);
  assert_true(ust_buffer_append(&script, "", 1));
  label labels[2 * UST_CHART_DOTS];
  int count = find_labels(script.data, labels, 2 * UST_CHART_DOTS);
  assert_int_equal(count, 2 * dots);
  for (int a = 0; a < count; a++)
    for (int b = 0; b < a; b++)
      if (fabs(labels[a].y - labels[b].y) < 14 && labels[a].left < labels[b].right && labels[b].left < labels[a].right)
        fail_msg("%d dots, spread %g: labels %d and %d overlap", dots, spread, a, b);
  ust_buffer_free(&script);
}

static void test_chart_labels(void **state) {
  (void)state;
  for (int dots = 1; dots <= 10; dots++) {
    check_chart(dots, 0);
    check_chart(dots, 0.3);
    check_chart(dots, 2);
  }
}

static void test_chart_names(void **state) {
  (void)state;
  ust_chart chart = {.panel_count = 1};
  understudy_error err = {0};
  assert_int_equal(ust_measure_chart(&chart, "chart.pdf", &err), UNDERSTUDY_ERROR_ARGUMENT);
  assert_string_equal(err.message, "chart.pdf: expected a name that ends in .svg or .png");
  assert_int_equal(ust_measure_chart(&chart, ".svg", NULL), UNDERSTUDY_ERROR_ARGUMENT);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_known_devices),
      cmocka_unit_test(test_given_devices),
      cmocka_unit_test(test_refused_devices),
      cmocka_unit_test(test_bench_file),
      cmocka_unit_test(test_odd_bench_files),
      cmocka_unit_test(test_many_rows),
      cmocka_unit_test(test_predictions),
      cmocka_unit_test(test_rough_prediction),
      cmocka_unit_test(test_prediction_without_plain),
      cmocka_unit_test(test_chart_labels),
      cmocka_unit_test(test_chart_names),
  };
  return cmocka_run_group_tests(tests, make_file, remove_file);
}
