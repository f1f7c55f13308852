/* Products with quantised matrices on 256-bit vectors, for avx2.c (VPMADDUBSW: unsigned by signed bytes, two to a
 * 16-bit sum). Layouts: quantised.h.
 *
 * 8-bit weights are signed: their magnitudes meet the activations with the weights' signs, at most 2 * 128 * 127 a
 * pair. 4-bit ones are unsigned, and the eight pairs of a lane's block together make at most 8 * 2 * 15 * 127: neither
 * leaves 16 bits. */
#ifndef UST_KERNEL_AVX2_INTEGERS_H
#define UST_KERNEL_AVX2_INTEGERS_H

/* ---- rows to integers ---- */

/* 32 values of a row and what integers_of_block() makes of them. */
ALWAYS_INLINE int32_t integers_of_lanes(const float *x, int8_t *line, float *scale) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 value[4];
  __m256i most = _mm256_setzero_si256(), whole[4];
  for (int i = 0; i < 4; i++) {
    value[i] = _mm256_loadu_ps(x + 8 * i);
    most = _mm256_max_epu32(most, _mm256_castps_si256(_mm256_and_ps(value[i], magnitude)));
  }
  __m128i half = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1));
  float inverse;
  *scale = integers_scale((uint32_t)_mm_cvtsi128_si32(half), &inverse);
  const __m256 any = _mm256_cmp_ps(_mm256_set1_ps(inverse), _mm256_setzero_ps(), _CMP_NEQ_OQ);
  for (int i = 0; i < 4; i++) /* zeros where there is no inverse, whatever the values are */
    whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_and_ps(value[i], any), _mm256_set1_ps(inverse)));
  __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
  bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
  _mm256_storeu_si256((void *)line, bytes);
  __m256i sum = _mm256_add_epi32(_mm256_add_epi32(whole[0], whole[1]), _mm256_add_epi32(whole[2], whole[3]));
  half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtsi128_si32(half);
}

static void to_integers(const void *x, size_t x_stride, int rows, int cols, int row, int row_end, void *out) {
  integers to = integers_at(out, rows, cols);
  int whole = cols / UST_BLOCK;
  for (int r = row; r < row_end; r++) {
    const float *from = (const float *)x + (size_t)r * x_stride;
    size_t at = integers_line(&to, r);
    for (int b = 0; b < to.blocks; b++, at += (size_t)to.height) {
      int8_t *line = to.lines + at * UST_BLOCK;
      int rest = UST_MAX(0, cols - b * UST_BLOCK);
      if (b < whole)
        to.sums[at] = -integers_of_lanes(from + b * UST_BLOCK, line, &to.scales[at]);
      else
        to.sums[at] = -integers_of_block(from + b * UST_BLOCK, rest, line, &to.scales[at]);
    }
  }
}

/* ---- products ---- */

/* Scale, and minimum for Q4K, of 8 columns. */
ALWAYS_INLINE __m256 f16_lanes(const char *from) {
  return _mm256_cvtph_ps(_mm_load_si128((const void *)from));
}
ALWAYS_INLINE __m256 byte_lanes(const char *from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)from)));
}

/* Scales, and minima for Q4K, of 8 columns from `column` on of a strip's block: `head` of its 256 inputs, `from` its
 * own. */
typedef struct block_scales {
  __m256 scale, minimum;
} block_scales;

ALWAYS_INLINE block_scales scales_of(ust_format format, const char *head, const char *from, int column) {
  if (format != UST_FORMAT_Q4K) return (block_scales){f16_lanes(from + column * 2), _mm256_setzero_ps()};
  return (block_scales){_mm256_mul_ps(f16_lanes(head + column * 2), byte_lanes(from + column)),
                        _mm256_mul_ps(f16_lanes(head + 32 + column * 2), byte_lanes(from + Q_COLUMNS + column))};
}

/* sum + scale * t (- minimum * the line's sum of integers), for a line of a row with this scale. t: add_quad()'s. */
ALWAYS_INLINE __m256 add_block(ust_format format, __m256 sum, __m256i t, block_scales s, const int32_t *negative,
                               const float *scale) {
  const __m256 of_row = _mm256_set1_ps(*scale);
  const __m256i less = _mm256_set1_epi32(*negative);
  if (format != UST_FORMAT_Q8) t = _mm256_madd_epi16(t, _mm256_set1_epi16(1));
  if (format == UST_FORMAT_Q4) t = _mm256_add_epi32(t, _mm256_slli_epi32(less, 3));
  sum = _mm256_fmadd_ps(_mm256_mul_ps(s.scale, of_row), _mm256_cvtepi32_ps(t), sum);
  if (format == UST_FORMAT_Q4K) sum = _mm256_fmadd_ps(_mm256_mul_ps(s.minimum, of_row), _mm256_cvtepi32_ps(less), sum);
  return sum;
}

ALWAYS_INLINE __m256i four_bytes(const int8_t *from) {
  int32_t bytes;
  memcpy(&bytes, from, sizeof bytes);
  return _mm256_set1_epi32(bytes);
}

/* Of a line's bytes, or of their low or high halves. */
ALWAYS_INLINE __m256i magnitudes(ust_format format, __m256i line, int high) {
  if (format == UST_FORMAT_Q8) return _mm256_abs_epi8(line);
  return _mm256_and_si256(high ? _mm256_srli_epi16(line, 4) : line, _mm256_set1_epi8(15));
}

/* A quad of 8 columns times a row's four integers: 32-bit sums of Q8, 16-bit ones of the others. `weights` as they lie
 * in memory and their magnitudes(). */
ALWAYS_INLINE __m256i quad_products(ust_format format, __m256i weights, __m256i unsigned_weights, __m256i of_row) {
  if (format != UST_FORMAT_Q8) return _mm256_maddubs_epi16(unsigned_weights, of_row);
  return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_weights, _mm256_sign_epi8(of_row, weights)),
                           _mm256_set1_epi16(1));
}
/* gcc would first multiply a whole block and then add, for which there are not enough registers. */
ALWAYS_INLINE __m256i add_products(ust_format format, __m256i a, __m256i b) {
  __m256i sum = format == UST_FORMAT_Q8 ? _mm256_add_epi32(a, b) : _mm256_add_epi16(a, b);
  __asm__("" : "+x"(sum));
  return sum;
}

/* t[strip][row][half] = or +=, the first time and after, the `i`th quad of a block that is multiplied: a line, or half
 * of its bits. */
ALWAYS_INLINE void add_quad(ust_format format, int strips, int rows, int i, const char *lines, size_t apart,
                            const int8_t *integers_at, __m256i (*t)[INTEGER_GROUP][2]) {
  const int l = i * quantised_lines(format) / 8, quad = format == UST_FORMAT_Q8 ? i : l + i % 2 * 4;
#pragma GCC unroll 4
  for (int s = 0; s < strips; s++) {
    const __m256i *line = (const __m256i *)(const void *)(lines + (size_t)s * apart + l * Q_LINE);
    const __m256i left = _mm256_load_si256(line), right = _mm256_load_si256(line + 1);
    const __m256i left_magnitudes = magnitudes(format, left, i % 2),
                  right_magnitudes = magnitudes(format, right, i % 2);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
      const __m256i of_row = four_bytes(integers_at + r * UST_BLOCK + quad * 4);
      const __m256i a = quad_products(format, left, left_magnitudes, of_row);
      const __m256i b = quad_products(format, right, right_magnitudes, of_row);
      t[s][r][0] = i ? add_products(format, t[s][r][0], a) : a;
      t[s][r][1] = i ? add_products(format, t[s][r][1], b) : b;
    }
  }
}

/* c[r][16 s ...] = rows `row` ... of x times strips that lie `apart` from each other. */
ALWAYS_INLINE void integer_sums(ust_format format, int strips, int rows, const char *strip, size_t apart, ahead next,
                                size_t head, const integers *x, int row, float *c, size_t c_stride) {
  const size_t first = integers_line(x, row);
  const char *pairs = strip + head;
  __m256 sum[4][INTEGER_GROUP][2];
#pragma GCC unroll 4
  for (int s = 0; s < strips; s++)
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) sum[s][r][0] = sum[s][r][1] = _mm256_setzero_ps();
  for (int b = 0; b < x->blocks; b++) {
    const size_t at = first + (size_t)b * (size_t)x->height;
    const int8_t *integers_at = x->lines + at * UST_BLOCK;
    const char *scales = pairs + quantised_scales_at(format, b % 2), *lines = pairs + quantised_lines_at(format, b % 2);
    __m256i t[4][INTEGER_GROUP][2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      if (strips == 1) _mm_prefetch(next.at + (size_t)(i / 2) * next.step + (i % 2 ? next.apart : 0), _MM_HINT_T0);
      add_quad(format, strips, rows, i, lines, apart, integers_at, t);
    }
    if (strips == 1) next.at += 4 * next.step;
#pragma GCC unroll 4
    for (int s = 0; s < strips; s++) {
      const char *head_at = strip + (size_t)s * apart + (size_t)(b / 8) * Q_LINE, *here = scales + (size_t)s * apart;
      const block_scales left = scales_of(format, head_at, here, 0), right = scales_of(format, head_at, here, 8);
#pragma GCC unroll 6
      for (int r = 0; r < rows; r++) {
        const float *scale = x->scales + at + r;
        const int32_t *negative = x->sums + at + r;
        sum[s][r][0] = add_block(format, sum[s][r][0], t[s][r][0], left, negative, scale);
        sum[s][r][1] = add_block(format, sum[s][r][1], t[s][r][1], right, negative, scale);
      }
    }
    if (b % 2) pairs += quantised_pair(format);
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int s = 0; s < strips; s++) {
      _mm256_storeu_ps(c + (size_t)r * c_stride + s * STRIP, sum[s][r][0]);
      _mm256_storeu_ps(c + (size_t)r * c_stride + s * STRIP + 8, sum[s][r][1]);
    }
}

#define INTEGER_NAME(format, strips, rows) integers_##format##_##strips##_##rows
#define INTEGER_GROUP_OF(format, strips, rows)                                                                         \
  static void INTEGER_NAME(format, strips, rows)(const char *strip, size_t apart, ahead next, size_t head,             \
                                                 const integers *x, int row, float *c, size_t c_stride) {              \
    integer_sums(UST_FORMAT_##format, strips, rows, strip, apart, next, head, x, row, c, c_stride);                    \
  }
#define Q8_NAME(strips, rows) INTEGER_NAME(Q8, strips, rows)
#define Q8_GROUP(strips, rows) INTEGER_GROUP_OF(Q8, strips, rows)
#define Q4_NAME(strips, rows) INTEGER_NAME(Q4, strips, rows)
#define Q4_GROUP(strips, rows) INTEGER_GROUP_OF(Q4, strips, rows)
#define Q4K_NAME(strips, rows) INTEGER_NAME(Q4K, strips, rows)
#define Q4K_GROUP(strips, rows) INTEGER_GROUP_OF(Q4K, strips, rows)
INTEGER_GROUPS(Q8_GROUP)
INTEGER_GROUPS(Q4_GROUP)
INTEGER_GROUPS(Q4K_GROUP)
typedef void integer_group(const char *strip, size_t apart, ahead next, size_t head, const integers *x, int row,
                           float *c, size_t c_stride);
static integer_group *const integer_groups[][STRIP_COUNTS][INTEGER_GROUP] = {[UST_FORMAT_Q8] = INTEGER_TABLE(Q8_NAME),
                                                                             [UST_FORMAT_Q4] = INTEGER_TABLE(Q4_NAME),
                                                                             [UST_FORMAT_Q4K] =
                                                                                 INTEGER_TABLE(Q4K_NAME)};

#endif
