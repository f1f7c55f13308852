/* Products with quantised matrices on 256-bit vectors, for avx2.c (VPMADDWD: pairs of 16-bit integers). Layouts:
 * quantised.h. A quad of weights is split into its even and its odd bytes, as 16 bits each, so a quad of a row's
 * integers lies in memory as its inputs 0, 2, 1, 3. */
#ifndef UST_KERNEL_AVX2_INTEGERS_H
#define UST_KERNEL_AVX2_INTEGERS_H

enum { INTEGER_ROWS = 2 /* that share one load of the weights */ };

static void to_integers(const void *x, size_t x_stride, int rows, int cols, int row, int row_end, void *out) {
  integers_of_floats(x, x_stride, rows, cols, row, row_end, out, (const int[]){0, 2, 1, 3});
}

/* Even and odd inputs of a quad of 8 columns. */
ALWAYS_INLINE void quad_lanes(ust_format format, const char *lines, int quad, __m256i *even, __m256i *odd) {
  __m256i line = _mm256_load_si256((const void *)(lines + quad % quantised_lines(format) * Q_LINE));
  if (format == UST_FORMAT_Q8) {
    *even = _mm256_srai_epi16(_mm256_slli_epi16(line, 8), 8);
    *odd = _mm256_srai_epi16(line, 8);
  } else {
    line = _mm256_and_si256(quad < 4 ? line : _mm256_srli_epi16(line, 4), _mm256_set1_epi8(15));
    *even = _mm256_and_si256(line, _mm256_set1_epi16(255));
    *odd = _mm256_srli_epi16(line, 8);
  }
}

/* Scale, and minimum for Q4K, of 8 columns from `column` on. */
ALWAYS_INLINE __m256 f16_lanes(const char *from) {
  return _mm256_cvtph_ps(_mm_load_si128((const void *)from));
}
ALWAYS_INLINE __m256 byte_lanes(const char *from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)from)));
}

/* 8 columns from `column` on of a strip, `rows` rows from `row` on. */
ALWAYS_INLINE void eight_sums(ust_format format, const char *strip, size_t head, int column, const integers *x, int row,
                              int rows, float *c) {
  __m256 sum[INTEGER_ROWS];
  size_t at[INTEGER_ROWS];
  for (int r = 0; r < rows; r++) {
    sum[r] = _mm256_setzero_ps();
    at[r] = integers_line(x, row + r);
  }
  for (int b = 0; b < x->blocks; b++) {
    const char *lines = strip + head + quantised_lines_at(format, b) + column * 4;
    const char *scales = strip + head + quantised_scales_at(format, b);
    __m256i t[INTEGER_ROWS], even, odd;
    for (int r = 0; r < rows; r++)
      t[r] = format == UST_FORMAT_Q4 ? _mm256_slli_epi32(_mm256_set1_epi32(x->sums[at[r]]), 3) : _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; quad++) {
      quad_lanes(format, lines, quad, &even, &odd);
      for (int r = 0; r < rows; r++) {
        int32_t pairs[2];
        memcpy(pairs, x->lines + at[r] * UST_BLOCK + quad * 4, sizeof pairs);
        t[r] = _mm256_add_epi32(t[r], _mm256_madd_epi16(even, _mm256_set1_epi32(pairs[0])));
        t[r] = _mm256_add_epi32(t[r], _mm256_madd_epi16(odd, _mm256_set1_epi32(pairs[1])));
      }
    }
    __m256 scale, minimum = _mm256_setzero_ps();
    if (format == UST_FORMAT_Q4K) {
      const char *both = strip + (size_t)(b / 8) * Q_LINE;
      scale = _mm256_mul_ps(f16_lanes(both + column * 2), byte_lanes(scales + column));
      minimum = _mm256_mul_ps(f16_lanes(both + 32 + column * 2), byte_lanes(scales + Q_COLUMNS + column));
    } else {
      scale = f16_lanes(scales + column * 2);
    }
    for (int r = 0; r < rows; r++) {
      const __m256 of_row = _mm256_set1_ps(x->scales[at[r]]);
      sum[r] = _mm256_fmadd_ps(_mm256_mul_ps(scale, of_row), _mm256_cvtepi32_ps(t[r]), sum[r]);
      if (format == UST_FORMAT_Q4K)
        sum[r] = _mm256_fmadd_ps(_mm256_mul_ps(minimum, of_row), _mm256_cvtepi32_ps(_mm256_set1_epi32(x->sums[at[r]])),
                                 sum[r]);
      at[r] += (size_t)x->height;
    }
  }
  for (int r = 0; r < rows; r++)
    _mm256_store_ps(c + (size_t)r * UST_PANEL + column, sum[r]);
}

ALWAYS_INLINE void strip_sums(ust_format format, const char *strip, size_t head, const integers *x, int row, int rows,
                              float *c) {
  for (int column = 0; column < Q_COLUMNS; column += 8)
    for (int r = 0; r < rows; r += INTEGER_ROWS)
      if (r + 1 < rows)
        eight_sums(format, strip, head, column, x, row + r, 2, c + (size_t)r * UST_PANEL);
      else
        eight_sums(format, strip, head, column, x, row + r, 1, c + (size_t)r * UST_PANEL);
}

/* Rows [row, row + count) of a product of `rows` rows. */
static void quantised_sums(const ust_matrix *w, int panel, void *integer_rows, int row, int count, int rows,
                           float (*sums)[UST_PANEL]) {
  const integers x = integers_at(integer_rows, rows, w->cols);
  size_t head = quantised_head(w->format, w->cols), bytes = quantised_strip(w->format, w->cols);
  for (int s = 0; s < UST_PANEL / Q_COLUMNS; s++) {
    const char *strip = (const char *)w->data + (size_t)(panel * (UST_PANEL / Q_COLUMNS) + s) * bytes;
    float *c = sums[0] + s * Q_COLUMNS;
    if (w->format == UST_FORMAT_Q8)
      strip_sums(UST_FORMAT_Q8, strip, head, &x, row, count, c);
    else if (w->format == UST_FORMAT_Q4)
      strip_sums(UST_FORMAT_Q4, strip, head, &x, row, count, c);
    else
      strip_sums(UST_FORMAT_Q4K, strip, head, &x, row, count, c);
  }
}

#endif
