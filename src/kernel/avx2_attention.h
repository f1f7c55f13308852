/* Keys, values and attention at the avx2 level. Included by avx2.c.
 *
 * A block of 16 keys is a strip of 16 columns, and so is a block of 16 coordinates of the values: scores and weighted
 * sums are products like those with matrices, of up to GROUP rows at a time. What rows do not have in common, the slots
 * after their common prefix, each of them adds by itself, position after position. */
#ifndef UST_KERNEL_AVX2_ATTENTION_H
#define UST_KERNEL_AVX2_ATTENTION_H

static void kv_store(void *kv, int slots, int head_dim, int slot, const float *k, const float *v) {
  const int dim = kv_dim(head_dim);
  uint32_t *key = (uint32_t *)kv + (size_t)(slot / 16) * 8 * (size_t)dim + slot % 16;
  char *value = (char *)(kv_values(kv, slots, dim) + (size_t)(slot / 2) * 2 * (size_t)dim);
  float padded[2][8];
  for (int d = 0; d < dim; d += 8, key += 4 * 16, value += 32) {
    const float *from[2] = {k + d, v + d};
    if (d + 8 > head_dim)
      for (int i = 0; i < 2; i++) {
        memset(padded[i], 0, sizeof padded[i]);
        if (d < head_dim) memcpy(padded[i], from[i], (size_t)(head_dim - d) * sizeof(float));
        from[i] = padded[i];
      }
    __m256i whole = round_bf16(from[0]); /* two coordinates to a word, in every second one */
    uint32_t pairs[8];
    _mm256_storeu_si256((void *)pairs,
                        _mm256_blend_epi16(_mm256_srli_epi64(whole, 16), _mm256_srli_epi64(whole, 32), 0xaa));
    for (int i = 0; i < 4; i++) key[i * 16] = pairs[2 * i];
    whole = round_bf16(from[1]);
    __m256i both = _mm256_loadu_si256((const void *)value);
    both =
        slot % 2 ? _mm256_blend_epi16(both, whole, 0xaa) : _mm256_blend_epi16(both, _mm256_srli_epi32(whole, 16), 0x55);
    _mm256_storeu_si256((void *)value, both);
  }
}

/* Scratch memory of a call. */
typedef struct attention_space {
  float *scores, *queries, *sums; /* [GROUP, score_stride], [GROUP, dim], [GROUP, dim] */
  size_t score_stride;
} attention_space;

/* An odd number of cache lines, so that the rows spread over the sets of the first level. */
static inline size_t score_stride(int slots) {
  return (size_t)UST_ROUND_UP(slots, 64) + 16;
}

static size_t attention_scratch(int rows, int slots, int head_dim) {
  (void)rows;
  return GROUP * (score_stride(slots) + 2 * (size_t)kv_dim(head_dim)) * sizeof(float);
}

/* s[r][slot] = q[r] . key, for slots up to `slot_end` */
static void scores(const char *keys, int dim, int slot_end, const attention_space *space, int rows) {
  const int strips = rows == 1 ? 4 : 1;
  const size_t block = (size_t)dim * STRIP * 2;
  for (int slot = 0; slot < slot_end; slot += strips * STRIP) {
    const char *at = keys + (size_t)(slot / STRIP) * block;
    bf16_groups[strips / 2][rows - 1]((bf16_strips){at, block, Q_LINE, dim / 2},
                                      (ahead){at + 2 * block, Q_LINE, 2 * Q_LINE}, space->queries, (size_t)dim,
                                      space->scores + slot, space->score_stride);
  }
}

/* sums[r][dim] = s[r] x values, over positions 0 ... end, a multiple of 2 * PAIRS */
static void common_values(const char *values, int dim, int end, const attention_space *space, int rows) {
  const int strips = rows > 1 ? 1 : dim % 64 == 0 ? 4 : 2;
  const size_t line = (size_t)dim * 4;
  for (int d = 0; d < dim; d += strips * STRIP) {
    const char *at = values + (size_t)d * 4;
    bf16_groups[strips / 2][rows - 1]((bf16_strips){at, Q_LINE, line, end / 2}, (ahead){at + 8 * line, line, 2 * line},
                                      space->scores, space->score_stride, space->sums + d, (size_t)dim);
  }
}

/* sum[dim] += s[i] * value of position i, one position after the other from `begin` to the row's last */
static void own_values(const char *values, int dim, const ust_attention_rows *rows, int row, const float *s, int begin,
                       float *sum) {
  const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
  for (int d = 0; d < dim; d += 32) {
    __m256 acc[4];
    for (int v = 0; v < 4; v++) acc[v] = _mm256_loadu_ps(sum + d + 8 * v);
    for (int i = begin; i < rows->keys[row]; i++) {
      const int slot = row_slot(rows, row, i);
      const char *pairs = values + ((size_t)(slot / 2) * (size_t)dim + (size_t)d) * 4;
      const __m256 weight = _mm256_broadcast_ss(s + i);
      for (int v = 0; v < 4; v++) {
        __m256i both = _mm256_loadu_si256((const void *)(pairs + 32 * v));
        both = slot % 2 ? _mm256_and_si256(both, upper) : _mm256_slli_epi32(both, 16);
        acc[v] = _mm256_fmadd_ps(weight, _mm256_castsi256_ps(both), acc[v]);
      }
    }
    for (int v = 0; v < 4; v++) _mm256_storeu_ps(sum + d + 8 * v, acc[v]);
  }
}

static void attention(const void *kv, int slots, int head_dim, const ust_attention_rows *rows, const float *q,
                      size_t q_stride, void *out, size_t out_stride, void *scratch) {
  const int dim = kv_dim(head_dim), groups = (rows->rows + GROUP - 1) / GROUP;
  const char *keys = kv, *values = keys + (size_t)slots * (size_t)dim * 2;
  attention_space space = {.scores = scratch, .score_stride = score_stride(slots)};
  space.queries = space.scores + GROUP * space.score_stride;
  space.sums = space.queries + GROUP * (size_t)dim;
  const float scale = 1.0f / sqrtf((float)head_dim);
  for (int g = 0; g < groups; g++) {
    const int first = rows->rows * g / groups, count = rows->rows * (g + 1) / groups - first;
    int slot_end = 0, common = INT32_MAX;
    float inverse[GROUP];
    memset(space.queries, 0, (size_t)count * (size_t)dim * sizeof(float));
    for (int r = 0; r < count; r++) {
      memcpy(space.queries + r * dim, q + (size_t)(first + r) * q_stride, (size_t)head_dim * sizeof(float));
      slot_end = UST_MAX(slot_end, row_slot(rows, first + r, rows->keys[first + r] - 1) + 1);
      common = UST_MIN(common, rows->identity[first + r] / (2 * PAIRS) * (2 * PAIRS));
    }
    scores(keys, dim, slot_end, &space, count);
    for (int r = 0; r < count; r++) {
      float *row = space.scores + (size_t)r * space.score_stride;
      row_order(row, rows, first + r);
      inverse[r] = 1.0f / row_softmax(row, rows->keys[first + r], scale);
    }
    common_values(values, dim, common, &space, count);
    for (int r = 0; r < count; r++) {
      const float *row = space.scores + (size_t)r * space.score_stride;
      float *sum = space.sums + r * dim, *to = (float *)out + (size_t)(first + r) * out_stride;
      own_values(values, dim, rows, first + r, row, common, sum);
      for (int d = 0; d < head_dim; d++) to[d] = sum[d] * inverse[r];
    }
  }
}

#endif
