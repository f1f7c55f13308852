/* Matrices of every kernel level: matmul against a double-precision reference at odd sizes, quantised ones against the
 * scalar level bit by bit, row invariance, unpack_row, and the number formats. `--bench [LEVEL]` measures
 * matmul at the shapes of GPT-2-L instead.
 *
 * Bound of matmul, with x rounded to the level's activation first: |error| <= 1e-6 sum|x w|, plus 1e-30 a term for
 * the denormals the AMX unit flushes; an activation written by the gelu epilogue is rounded once more. In products with
 * quantised matrices a value of x is off by half an integer, 1/254 of its block's largest magnitude (1/253.9 with the
 * roundings of the scale), or by 2^-100 in blocks that small; and a block's two terms of Q4K, rounded one by one, may
 * nearly cancel: there 1e-6 is of both. */
#include "kernel/check.h"

#include "kernel/bench.h"

/* ---- a matrix and what it holds ---- */

typedef struct sample {
  ust_matrix m;
  float *values;         /* [rows, cols], what matmul should multiply with */
  float *source;         /* [rows, cols], what was packed (BF16, F32) */
  float *terms;          /* [rows, cols], |scale q| + |minimum| (Q4K) */
  unsigned char *blocks; /* [rows, row_bytes] (quantised) */
  size_t row_bytes;
} sample;

static void pack_in_parts(const ust_kernels *kernels, sample *s, bool transposed) {
  int rows = s->m.rows, cols = s->m.cols;
  float *across = NULL;
  if (transposed) {
    across = fenced_floats((size_t)rows * (size_t)cols);
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < cols; c++)
        across[(size_t)c * (size_t)rows + (size_t)r] = s->source[(size_t)r * (size_t)cols + (size_t)c];
  }
  for (int row = 0; row < rows;) {
    int most = UST_PANEL * pick(1, 3), count = UST_MIN(most, rows - row);
    size_t at = (size_t)row * (size_t)cols;
    if (ust_is_quantised(s->m.format))
      kernels->pack_blocks(&s->m, row, count, s->blocks + (size_t)row * s->row_bytes);
    else if (transposed)
      kernels->pack(&s->m, row, count, across + row, 1, (size_t)rows);
    else
      kernels->pack(&s->m, row, count, s->source + at, (size_t)cols, 1);
    row += count;
  }
}

static uint16_t random_scale(void) {
  uint16_t sign = pick(0, 3) ? 0 : 0x8000;
  return sign | (pick(0, 20) ? ust_f32_to_f16(uniform(0.001f, 0.02f)) : (uint16_t)PICK_OF(0, 1, 0x3ff, 0x400));
}

/* Random blocks, and what is in them. */
static void fill_blocks(sample *s) {
  ust_format format = s->m.format;
  size_t inputs = (size_t)ust_block_inputs(format), bytes = ust_block_bytes(format);
  size_t cols = (size_t)s->m.cols, count = (cols + inputs - 1) / inputs;
  s->row_bytes = count * bytes;
  s->blocks = fenced((size_t)s->m.rows * s->row_bytes);
  for (size_t i = 0; i < (size_t)s->m.rows * s->row_bytes; i++) s->blocks[i] = (unsigned char)random_bits();
  for (size_t b = 0; b < (size_t)s->m.rows * count; b++) {
    uint16_t *scale = (uint16_t *)(void *)(s->blocks + b * bytes);
    scale[0] = random_scale();
    if (format == UST_FORMAT_Q4K) scale[1] = random_scale();
  }
  for (size_t r = 0; r < (size_t)s->m.rows; r++)
    for (size_t c = 0; c < cols; c += UST_BLOCK) {
      ust_run run;
      float values[UST_BLOCK];
      ust_run_load(format, s->blocks + r * s->row_bytes, (int)(c / UST_BLOCK), &run);
      ust_run_values(format, &run, values);
      for (size_t i = 0; i < UST_BLOCK && c + i < cols; i++) {
        s->source[r * cols + c + i] = values[i];
        s->values[r * cols + c + i] = values[i];
        s->terms[r * cols + c + i] = fabsf(values[i]);
        if (format == UST_FORMAT_Q4K) {
          float minimum = fabsf(ust_f16_to_f32(run.minimum) * (float)run.minimum_part);
          s->terms[r * cols + c + i] += 2 * minimum;
        }
      }
    }
}

static sample make_sample(const ust_kernels *kernels, ust_format format, int rows, int cols) {
  size_t n = (size_t)rows * (size_t)cols;
  sample s = {.m = {.format = format, .rows = rows, .cols = cols}};
  s.m.bytes = kernels->matrix_bytes(format, rows, cols);
  s.m.data = fenced(s.m.bytes);
  s.values = fenced_floats(n);
  s.source = fenced_floats(n);
  s.terms = fenced_floats(n);
  if (ust_is_quantised(format)) {
    fill_blocks(&s);
  } else {
    fill_uniform(s.source, n, -2, 2);
    for (int i = 0; i < 4; i++) s.source[random_bits() % n] = (float[]){0, -0.0f, 1e-39f, 3e38f * 0x1p-60f}[i];
    for (size_t i = 0; i < n; i++) s.values[i] = format == UST_FORMAT_F32 ? s.source[i] : round_bf16(s.source[i]);
  }
  pack_in_parts(kernels, &s, !ust_is_quantised(format) && pick(0, 1));
  return s;
}

/* matmul; x becomes integers first, some rows at a time, where the matrix is quantised. */
static void multiply(const ust_kernels *kernels, const ust_matrix *w, int panel, int panel_end, const void *x,
                     size_t x_stride, int rows, const float *bias, ust_epilogue epilogue, void *y, size_t y_stride) {
  int held = buffer_count;
  if (ust_is_quantised(w->format)) {
    void *integers = fenced(kernels->integers_bytes(rows, w->cols));
    for (int row = 0, end; row < rows; row = end) {
      end = pick(row + 1, rows);
      kernels->integers(x, x_stride, rows, w->cols, row, end, integers);
    }
    kernels->matmul(w, panel, panel_end, integers, 0, rows, bias, epilogue, y, y_stride);
  } else {
    kernels->matmul(w, panel, panel_end, x, x_stride, rows, bias, epilogue, y, y_stride);
  }
  fenced_release_from("matmul", held);
}

static int odd_cols(void) {
  return PICK_OF(1, 5, 31, 32, 33, 63, 64, 65, 80, 100, 128, 129, 257, 320, 600);
}
static int odd_outputs(void) {
  return PICK_OF(1, 20, 31, 32, 33, 64, 70, 96, 100, 161);
}

static ust_format pick_format(const ust_kernels *kernels) {
  static const ust_format formats[] = {UST_FORMAT_BF16, UST_FORMAT_Q8, UST_FORMAT_Q4, UST_FORMAT_Q4K, UST_FORMAT_F32};
  return formats[pick(0, kernels->isa == UST_ISA_SCALAR ? 4 : 3)];
}

static size_t y_size(const ust_kernels *kernels, ust_epilogue epilogue) {
  return epilogue == UST_GELU ? kernels->activation_size : sizeof(float);
}

/* ---- matmul against the reference ---- */

typedef struct call {
  int rows, panel, panel_end;
  size_t x_stride, y_stride;
  const void *x;
  const float *bias;
  ust_epilogue epilogue;
  const float *before; /* y as it was, for UST_ADD */
} call;

static void check_element(const ust_kernels *kernels, const sample *s, const call *c, int row, int output, double got) {
  double want = 0, sum_abs = 0, weights = 0, off = 0, most = 0;
  bool quantised = ust_is_quantised(s->m.format);
  for (int k = 0; output < s->m.rows && k < s->m.cols; k++) {
    size_t at = (size_t)output * (size_t)s->m.cols + (size_t)k;
    double x = (double)load_activation(kernels, c->x, (size_t)row * c->x_stride + (size_t)k);
    want += x * (double)s->values[at];
    sum_abs += fabs(x) * (double)(quantised ? s->terms[at] : fabsf(s->values[at]));
    weights += fabs((double)s->values[at]);
    most = fmax(k % UST_BLOCK ? most : 0, fabs(x));
    if (k % UST_BLOCK == UST_BLOCK - 1 || k == s->m.cols - 1) { /* the block's values are off by so much */
      off += (most / 253.9 + 0x1p-100) * weights;
      weights = 0;
    }
  }
  if (c->bias) want += (double)c->bias[output];
  double bound = 1e-6 * sum_abs + 1e-30 * s->m.cols + 0x1p-23 * fabs(want);
  if (quantised) bound += (1 + 1e-6) * off;
  if (c->epilogue == UST_ADD) {
    want += (double)c->before[(size_t)row * c->y_stride + (size_t)output];
    bound += 0x1p-23 * fabs(want);
  } else if (c->epilogue == UST_GELU) {
    want = gelu_reference(want);
    bound = 1.2 * bound + 2e-6 * fmin(1, fabs(want)) + 1e-6 * fabs(want) + activation_error(kernels) * fabs(want);
  }
  CHECK(fabs(got - want) <= bound,
        "%s: matmul format %d, %d x %d, %d rows, panels %d-%d, epilogue %d, row %d, output %d: %.9g, expected %.9g +- "
        "%.3g",
        kernels->name, s->m.format, s->m.cols, s->m.rows, c->rows, c->panel, c->panel_end, c->epilogue, row, output,
        got, want, bound);
}

static void matmul_reference(const ust_kernels *kernels) {
  for (int trial = 0; trial < 60; trial++) {
    sample s = make_sample(kernels, pick_format(kernels), odd_outputs(), odd_cols());
    int panels = UST_ROUND_UP(s.m.rows, UST_PANEL) / UST_PANEL;
    call c = {.rows = trial < 8 ? PICK_OF(64, 70, 100, 200) : pick(1, 70), .epilogue = (ust_epilogue)pick(0, 2)};
    c.panel = pick(0, panels - 1);
    c.panel_end = pick(c.panel + 1, panels);
    c.x_stride = (size_t)UST_ROUND_UP(s.m.cols, 32) + 32 * (size_t)pick(0, 1);
    c.y_stride = (size_t)(panels * UST_PANEL + 32 * pick(0, 1));
    c.x = random_activations(kernels, c.rows, s.m.cols, c.x_stride);
    int special = pick(0, c.rows - 1), exponent = PICK_OF(0, -150, -90, -20, 20);
    size_t changed = ust_is_quantised(s.m.format) ? (size_t)s.m.cols : 0;
    bool every_second = pick(0, 1);
    for (size_t k = 0; k < changed; k++) { /* a row, or its every second block, of zeros, of tiny or of large values */
      size_t at = (size_t)special * c.x_stride + k;
      if (every_second && k / UST_BLOCK % 2) continue;
      store_activation(kernels, (void *)(uintptr_t)c.x, at,
                       exponent ? ldexpf(load_activation(kernels, c.x, at), exponent) : 0);
    }
    if (pick(0, 1)) {
      float *bias = fenced_floats((size_t)(panels * UST_PANEL));
      fill_uniform(bias, (size_t)(panels * UST_PANEL), -1, 1);
      c.bias = bias;
    }
    size_t n = (size_t)c.rows * c.y_stride, size = y_size(kernels, c.epilogue);
    void *y = fenced(n * size);
    if (c.epilogue == UST_ADD) fill_uniform(y, n, -3, 3);
    unsigned char *before = fenced(n * size);
    memcpy(before, y, n * size);
    c.before = (const float *)(const void *)before;
    multiply(kernels, &s.m, c.panel, c.panel_end, c.x, c.x_stride, c.rows, c.bias, c.epilogue, y, c.y_stride);
    for (int r = 0; r < c.rows; r++)
      for (size_t o = 0; o < c.y_stride; o++) {
        size_t at = (size_t)r * c.y_stride + o;
        if (o < (size_t)c.panel * UST_PANEL || o >= (size_t)c.panel_end * UST_PANEL)
          CHECK(memcmp((unsigned char *)y + at * size, before + at * size, size) == 0,
                "%s: matmul of panels %d-%d wrote output %zu of row %d", kernels->name, c.panel, c.panel_end, o, r);
        else
          check_element(kernels, &s, &c, r, (int)o,
                        c.epilogue == UST_GELU ? load_activation(kernels, y, at) : ((const float *)y)[at]);
      }
    fenced_release("matmul");
  }
}
LEVEL_TEST(matmul_reference)

/* ---- invariance ---- */

/* Rows first … first+count-1 of x alone, panel by panel, must be those rows of `whole`. */
static void check_part(const ust_kernels *kernels, const sample *s, const void *x, size_t x_stride,
                       ust_epilogue epilogue, const unsigned char *whole, size_t y_stride, int first, int count) {
  size_t size = y_size(kernels, epilogue), bytes = (size_t)count * y_stride * size;
  int panels = (int)(y_stride / UST_PANEL), held = buffer_count;
  size_t x_bytes = (size_t)count * x_stride * kernels->activation_size;
  void *part = fenced(x_bytes), *y = fenced(bytes);
  memcpy(part, (const unsigned char *)x + (size_t)first * x_stride * kernels->activation_size, x_bytes);
  memset(y, 0, bytes);
  for (int panel = 0; panel < panels;) {
    int end = pick(panel + 1, panels);
    multiply(kernels, &s->m, panel, end, part, x_stride, count, NULL, epilogue, y, y_stride);
    panel = end;
  }
  CHECK(memcmp(y, whole + (size_t)first * y_stride * size, bytes) == 0,
        "%s: matmul format %d, %d x %d, epilogue %d: rows %d-%d alone differ from the same rows among 64",
        kernels->name, s->m.format, s->m.cols, s->m.rows, epilogue, first, first + count - 1);
  fenced_release_from("matmul", held);
}

static void matmul_invariance(const ust_kernels *kernels) {
  enum { ROWS = 64 };
  for (int trial = 0; trial < 10; trial++) {
    sample s = make_sample(kernels, pick_format(kernels), odd_outputs(), odd_cols());
    size_t x_stride = (size_t)UST_ROUND_UP(s.m.cols, 32), y_stride = (size_t)UST_ROUND_UP(s.m.rows, UST_PANEL);
    ust_epilogue epilogue = (ust_epilogue)pick(0, 2);
    size_t bytes = ROWS * y_stride * y_size(kernels, epilogue);
    void *x = random_activations(kernels, ROWS, s.m.cols, x_stride), *whole = fenced(bytes);
    memset(whole, 0, bytes);
    multiply(kernels, &s.m, 0, (int)(y_stride / UST_PANEL), x, x_stride, ROWS, NULL, epilogue, whole, y_stride);
    for (int rows = 1; rows <= ROWS; rows++) {
      check_part(kernels, &s, x, x_stride, epilogue, whole, y_stride, pick(0, ROWS - rows), rows);
      check_part(kernels, &s, x, x_stride, epilogue, whole, y_stride, rows - 1, 1);
    }
    fenced_release("matmul");
  }
}
LEVEL_TEST(matmul_invariance)

/* A row of NaN and infinities touches no other row. */
static void matmul_isolation(const ust_kernels *kernels) {
  for (int trial = 0; trial < 10; trial++) {
    sample s = make_sample(kernels, pick_format(kernels), odd_outputs(), odd_cols());
    size_t x_stride = (size_t)UST_ROUND_UP(s.m.cols, 32), y_stride = (size_t)UST_ROUND_UP(s.m.rows, UST_PANEL);
    int rows = pick(2, 40), panels = (int)(y_stride / UST_PANEL), bad = pick(0, rows - 1);
    void *x = random_activations(kernels, rows, s.m.cols, x_stride);
    float *clean = fenced_floats((size_t)rows * y_stride), *dirty = fenced_floats((size_t)rows * y_stride);
    multiply(kernels, &s.m, 0, panels, x, x_stride, rows, NULL, UST_STORE, clean, y_stride);
    for (int c = 0; c < s.m.cols; c++)
      store_activation(kernels, x, (size_t)bad * x_stride + (size_t)c, c % 2 ? NAN : INFINITY);
    multiply(kernels, &s.m, 0, panels, x, x_stride, rows, NULL, UST_STORE, dirty, y_stride);
    for (int r = 0; r < rows; r++)
      CHECK(r == bad ||
                memcmp(clean + (size_t)r * y_stride, dirty + (size_t)r * y_stride, y_stride * sizeof(float)) == 0,
            "%s: NaN in row %d of %d changed row %d", kernels->name, bad, rows, r);
    fenced_release("matmul");
  }
}
LEVEL_TEST(matmul_isolation)

/* A row that is not finite gives NaN with quantised matrices. */
static void matmul_not_finite(const ust_kernels *kernels) {
  for (int trial = 0; trial < 12; trial++) {
    sample s = make_sample(kernels, (ust_format)PICK_OF(UST_FORMAT_Q8, UST_FORMAT_Q4, UST_FORMAT_Q4K), 40, odd_cols());
    size_t x_stride = (size_t)UST_ROUND_UP(s.m.cols, 32);
    int rows = PICK_OF(1, 3, 20), bad = pick(0, rows - 1);
    void *x = random_activations(kernels, rows, s.m.cols, x_stride);
    float *y = fenced_floats((size_t)rows * 64);
    store_activation(kernels, x, (size_t)bad * x_stride + (size_t)pick(0, s.m.cols - 1), trial % 3 ? INFINITY : NAN);
    multiply(kernels, &s.m, 0, 2, x, x_stride, rows, NULL, UST_STORE, y, 64);
    for (int r = 0; r < rows; r++)
      for (int o = 0; o < 40; o++)
        CHECK(!isnan(y[r * 64 + o]) == (r != bad), "%s: output %d of row %d of %d is %g, row %d is not finite",
              kernels->name, o, r, rows, (double)y[r * 64 + o], bad);
    fenced_release("matmul");
  }
}
LEVEL_TEST(matmul_not_finite)

/* ---- quantised matrices: the same bits at every level, for activations every level can hold; unpack_row ---- */

static void quantised_same_bits(const ust_kernels *kernels) {
  const ust_kernels *scalar = ust_kernels_get(UST_ISA_SCALAR, NULL);
  for (int trial = 0; trial < 60; trial++) {
    ust_format format = (ust_format)PICK_OF(UST_FORMAT_Q8, UST_FORMAT_Q4, UST_FORMAT_Q4K);
    sample own = make_sample(kernels, format, odd_outputs(), odd_cols()), other = own;
    other.m.bytes = scalar->matrix_bytes(format, own.m.rows, own.m.cols);
    other.m.data = fenced(other.m.bytes);
    pack_in_parts(scalar, &other, false);
    int rows = pick(0, 1) ? pick(1, 12) : pick(1, 100);
    size_t x_stride = (size_t)UST_ROUND_UP(own.m.cols, 32), y_stride = (size_t)UST_ROUND_UP(own.m.rows, UST_PANEL);
    void *x[2] = {fenced((size_t)rows * x_stride * kernels->activation_size), fenced_floats((size_t)rows * x_stride)};
    float *y[2], *bias = fenced_floats(y_stride);
    fill_uniform(bias, y_stride, -1, 1);
    for (size_t i = 0; i < (size_t)rows * x_stride; i++) {
      float value = (int)(i % x_stride) < own.m.cols ? round_bf16(uniform(-3, 3)) : 0;
      store_activation(kernels, x[0], i, value);
      store_activation(scalar, x[1], i, value);
    }
    for (int i = 0; i < 2; i++) {
      y[i] = fenced_floats((size_t)rows * y_stride);
      memset(y[i], 0, (size_t)rows * y_stride * sizeof(float));
      multiply(i ? scalar : kernels, i ? &other.m : &own.m, 0, (int)(y_stride / UST_PANEL), x[i], x_stride, rows,
               trial % 3 ? bias : NULL, trial % 2 ? UST_ADD : UST_STORE, y[i], y_stride);
    }
    for (size_t i = 0; i < (size_t)rows * y_stride; i++)
      CHECK(memcmp(y[0] + i, y[1] + i, sizeof(float)) == 0,
            "%s: matrix of format %d, %d x %d, %d rows, row %zu, output %zu: %.9g, at the scalar level %.9g",
            kernels->name, format, own.m.cols, own.m.rows, rows, i / y_stride, i % y_stride, (double)y[0][i],
            (double)y[1][i]);
    fenced_release("matmul");
  }
}
LEVEL_TEST(quantised_same_bits)

static void unpack_rows(const ust_kernels *kernels) {
  for (int trial = 0; trial < 30; trial++) {
    sample s = make_sample(kernels, pick_format(kernels), odd_outputs(), odd_cols());
    float *out = fenced_floats((size_t)s.m.cols);
    for (int r = 0; r < s.m.rows; r++) {
      kernels->unpack_row(&s.m, r, out);
      for (int c = 0; c < s.m.cols; c++) {
        float want = s.values[(size_t)r * (size_t)s.m.cols + (size_t)c];
        CHECK(out[c] == want, "%s: unpack_row format %d, %d x %d, (%d, %d): %.9g, expected %.9g", kernels->name,
              s.m.format, s.m.cols, s.m.rows, r, c, (double)out[c], (double)want);
      }
    }
    fenced_release("unpack_row");
  }
}
LEVEL_TEST(unpack_rows)

/* ---- number formats ---- */

static void half_precision(void **state) {
  (void)state;
  for (uint32_t h = 0; h < 0x10000; h++) {
    int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
    float f = ust_f16_to_f32((uint16_t)h);
    if (exponent == 31) {
      assert_true(fraction ? isnan(f) : isinf(f));
    } else {
      double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
      assert_true((double)f == (h & 0x8000 ? -magnitude : magnitude));
    }
    if (!isnan(f)) assert_int_equal(ust_f32_to_f16(f), h);
  }
  for (int i = 0; i < 20000; i++) { /* rounds to the nearer neighbour, a tie to even */
    float x = ldexpf(uniform(1, 2), pick(-26, 16)) * (pick(0, 1) ? 1 : -1);
    if (i % 4 == 0) x = ldexpf((float)(2 * pick(1024, 2047) + 1), pick(-35, 4));
    uint16_t h = ust_f32_to_f16(x);
    double got = ust_f16_to_f32(h), limit = 65520;
    if (fabs((double)x) >= limit) {
      assert_true(isinf(got));
      continue;
    }
    for (int step = -1; step <= 1; step += 2) {
      int magnitude = (h & 0x7fff) + step;
      if (magnitude < 0 || magnitude >= 0x7c00) continue;
      double other = ust_f16_to_f32((uint16_t)((h & 0x8000) | magnitude));
      double mine = fabs(got - (double)x), theirs = fabs(other - (double)x);
      CHECK(mine < theirs || (mine == theirs && h % 2 == 0), "f32_to_f16(%.9g) = %#x", (double)x, h);
    }
  }
}

static void q8_blocks(void **state) {
  (void)state;
  for (int trial = 0; trial < 2000; trial++) {
    float x[32], most = 0, size = ldexpf(1, pick(-14, 6));
    for (int i = 0; i < 32; i++) x[i] = trial ? uniform(-size, size) : 0, most = fmaxf(most, fabsf(x[i]));
    ust_q8_block block;
    ust_q8_quantize(x, &block);
    float scale = ust_f16_to_f32(block.scale);
    assert_int_equal(block.scale, ust_f32_to_f16(most / 127.0f));
    for (int i = 0; i < 32; i++) /* half a step, and what rounding the scale to f16 does to 127 of them */
      CHECK(fabs((double)x[i] - (double)(scale * (float)block.q[i])) <=
                0.5001 * (double)(most / 127) + 127 * (fabs((double)scale) * 0x1p-11 + 0x1p-25),
            "q8_quantize: %.9g -> %d * %.9g", (double)x[i], block.q[i], (double)scale);
  }
}

/* The value of largest magnitude is -8 steps; no value is off by more than half a step, but near +8 steps, by one. */
static void q4_blocks(void **state) {
  (void)state;
  for (int trial = 0; trial < 2000; trial++) {
    float x[32], size = ldexpf(1, pick(-10, 6));
    int largest = 0;
    for (int i = 0; i < 32; i++) {
      x[i] = trial ? uniform(-size, size) : 0;
      if (fabsf(x[i]) > fabsf(x[largest])) largest = i;
    }
    ust_q4_block block;
    ust_run run;
    float values[32];
    ust_q4_quantize(x, &block);
    ust_run_load(UST_FORMAT_Q4, &block, 0, &run);
    ust_run_values(UST_FORMAT_Q4, &run, values);
    assert_int_equal(block.scale, ust_f32_to_f16(x[largest] / -8));
    if (trial) assert_int_equal(run.q[largest], 0);
    double step = fabs((double)x[largest]) / 8;
    for (int i = 0; i < 32; i++)
      CHECK(fabs((double)x[i] - (double)values[i]) <=
                (run.q[i] == 15 ? 1.001 : 0.501) * step + 8 * (step * 0x1p-11 + 0x1p-25),
            "q4_quantize: %.9g -> %.9g, step %.9g", (double)x[i], (double)values[i], step);
  }
}

int main(int argc, char **argv) {
  start(argc, argv);
  if (argc > 1 && strcmp(argv[1], "--bench") == 0) return bench(argc > 2 ? argv[2] : NULL);
  random_state = seed;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(half_precision),
      cmocka_unit_test(q8_blocks),
      cmocka_unit_test(q4_blocks),
      cmocka_unit_test(unpack_rows_every_level),
      cmocka_unit_test(matmul_reference_every_level),
      cmocka_unit_test(matmul_invariance_every_level),
      cmocka_unit_test(matmul_isolation_every_level),
      cmocka_unit_test(quantised_same_bits_every_level),
      cmocka_unit_test(matmul_not_finite_every_level),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
