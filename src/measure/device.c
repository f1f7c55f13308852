/* Machines as a roofline sees them: a small table of known ones, and figures given by the user. */
#include <math.h>
#include <stdlib.h>

#include "measure/measure.h"

/* Memory bandwidth and dense arithmetic as their makers state them; f16 or bf16 with f32 sums where there is a matrix
 * unit. Real programs reach less of both.
 *
 * GPU_US: replaying a captured graph costs about half a microsecond a kernel ("Getting Started with CUDA Graphs",
 * NVIDIA developer blog, 2019: 3.4 us a kernel of 2.9 us); GPT-2 Large takes 36 layers x 7 kernels.
 * CPU_US: 36 layers x 5 barriers of about a microsecond. */
enum { GPU_US = 130, CPU_US = 180 };

static const struct {
  const char *name;
  ust_device device;
} known[] = {
    /* NVIDIA Ada GPU Architecture whitepaper, appendix A */
    {"rtx4090", {"RTX 4090", 1008, 165.2, 82.6, GPU_US, true}},
    /* NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix A */
    {"rtx3090", {"RTX 3090", 936, 71, 35.6, GPU_US, false}},
    /* NVIDIA A100 data sheet */
    {"a100", {"A100 40 GB", 1555, 312, 19.5, GPU_US, false}},
    /* NVIDIA H100 data sheet, without sparsity */
    {"h100", {"H100 SXM", 3350, 989, 67, GPU_US, false}},
    /* Apple, Mac Pro (2023) specifications: 76 GPU cores; no matrix unit in them */
    {"m2-ultra", {"Apple M2 Ultra", 800, 27.2, 0, GPU_US, false}},
    /* AMD EPYC 9004 data sheet: 12 x DDR5-4800; 96 cores x 2.4 GHz x 32 FLOP, f32 in vectors */
    {"epyc-9654", {"EPYC 9654", 460.8, 7.4, 0, CPU_US, false}},
    /* Intel ARK: 8 x DDR5-4800; 56 cores x 2.0 GHz x 1024 FLOP (bf16 tiles, Intel 64 optimization manual), 64 in f32 */
    {"xeon-8480", {"Xeon 8480+", 307.2, 114.7, 7.2, CPU_US, false}},
    /* Raspberry Pi 5 product brief: 32-bit LPDDR4X-4267; 4 cores x 2.4 GHz x 32 FLOP (two 128-bit f16 FMA a cycle, Arm
     * Cortex-A76 optimization guide), half that in f32 */
    {"pi5", {"Raspberry Pi 5", 17.1, 0.307, 0.154, CPU_US, false}},
};

static understudy_status refuse(const char *text, const char *why, understudy_error *err) {
  return ust_error(err, UNDERSTUDY_ERROR_ARGUMENT,
                   "device '%.80s': %s, expected one of " UST_DEVICE_NAMES " or figures such as " UST_DEVICE_FIGURES,
                   text, why);
}

/* One of "1008GB/s", "165TFLOP/s", "130us" at *text, which moves behind it; false when it is none of them or a
 * repeated one. */
static bool parse_figure(const char **text, ust_device *device) {
  const struct {
    const char *unit;
    double scale;
    double *to;
    bool zero; /* may be 0 */
  } units[] = {
      {"GB/s", 1, &device->read_gb_per_s, false},
      {"TB/s", 1e3, &device->read_gb_per_s, false},
      {"GFLOP/s", 1e-3, &device->peak_tflop_per_s, false},
      {"TFLOP/s", 1, &device->peak_tflop_per_s, false},
      {"us", 1, &device->pass_us, true},
      {"ms", 1e3, &device->pass_us, true},
  };
  char *end;
  if (**text < '0' || **text > '9') return false; /* no sign, no "nan", no "inf" */
  double value = strtod(*text, &end);
  for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
    size_t length = strlen(units[i].unit);
    if (strncmp(end, units[i].unit, length) != 0) continue;
    if (*units[i].to >= 0 || !(value <= 1e9) || (value <= 0 && !units[i].zero)) return false;
    *units[i].to = value * units[i].scale;
    *text = end + length;
    return true;
  }
  return false;
}

understudy_status ust_measure_device(const char *text, ust_device *out, understudy_error *err) {
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (strcmp(text, known[i].name) == 0) {
      *out = known[i].device;
      return UNDERSTUDY_OK;
    }
  if (*text < '0' || *text > '9') return refuse(text, "not known", err);
  ust_device device = {.read_gb_per_s = -1, .peak_tflop_per_s = -1, .pass_us = -1};
  for (const char *at = text;; at++) {
    if (!parse_figure(&at, &device) || (*at && *at != ',')) return refuse(text, "cannot be read", err);
    if (!*at) break;
  }
  if (device.read_gb_per_s < 0) return refuse(text, "found no bandwidth", err);
  if (device.peak_tflop_per_s < 0) return refuse(text, "found no FLOP/s", err);
  device.pass_us = fmax(device.pass_us, 0);
  snprintf(device.label, sizeof device.label, "a device of %.4g GB/s", device.read_gb_per_s);
  *out = device;
  return UNDERSTUDY_OK;
}
