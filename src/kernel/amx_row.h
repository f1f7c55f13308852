/* One row of x times a bf16 matrix, without tiles: what plain decoding does. A tile load fetches its 16 lines one
 * after the other and holds up what follows, which costs a quarter of the memory's speed; vectors over eight strips
 * at once keep eight streams of reads going, and reach it.
 *
 * The bits are those of a tile product (TDPBF16PS): even and odd inputs of a block of 32 are summed apart, in order,
 * then added to each other and to the sum of the blocks before; denormals are zero. Included by amx.c. */
#ifndef UST_KERNEL_AMX_ROW_H
#define UST_KERNEL_AMX_ROW_H

/* sums[streams][16] += x times strips of `bytes` each from `strips` on; `next`: the strips that follow. */
static inline __attribute__((always_inline)) void row_sums(const char *strips, size_t bytes, const char *next,
                                                           size_t next_bytes, const uint16_t *x, int blocks,
                                                           const int streams, float *sums) {
  const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
  __m512 sum[STREAMS];
  for (int s = 0; s < streams; s++) sum[s] = _mm512_load_ps(sums + s * STRIP);
  for (int b = 0; b < blocks; b++, strips += TILE, x += BLOCK) {
    const char *later = b + 1 < blocks ? strips + TILE : next;
    size_t later_bytes = b + 1 < blocks ? bytes : next_bytes;
    __m512 even[STREAMS], odd[STREAMS];
    for (int s = 0; s < streams; s++) even[s] = odd[s] = _mm512_setzero_ps();
    for (int pair = 0; pair < BLOCK / 2; pair++) {
      int32_t both;
      memcpy(&both, x + 2 * pair, sizeof both);
      __m512 x_even = pair_even(_mm512_set1_epi32(both)), x_odd = pair_odd(_mm512_set1_epi32(both));
      for (int s = 0; s < streams; s++) {
        _mm_prefetch(later + (size_t)s * later_bytes + pair * 64, _MM_HINT_T0);
        __m512i w = _mm512_load_si512((const void *)(strips + (size_t)s * bytes + pair * 64));
        even[s] = _mm512_fmadd_ps(x_even, pair_even(w), even[s]);
        odd[s] = _mm512_fmadd_ps(x_odd, _mm512_castsi512_ps(_mm512_and_si512(w, upper)), odd[s]);
      }
    }
    for (int s = 0; s < streams; s++) sum[s] = _mm512_add_ps(sum[s], _mm512_add_ps(even[s], odd[s]));
  }
  for (int s = 0; s < streams; s++) _mm512_store_ps(sums + s * STRIP, sum[s]);
}

/* Own functions, so that nothing moves across the change of mode around the call. */
#define ROW_GROUP(name, streams)                                                                                       \
  static __attribute__((noinline)) void name(const char *strips, size_t bytes, const char *next, size_t next_bytes,    \
                                             const uint16_t *x, int blocks, float *sums) {                             \
    row_sums(strips, bytes, next, next_bytes, x, blocks, streams, sums);                                               \
  }
ROW_GROUP(row_of_8, 8)
ROW_GROUP(row_of_2, 2)

/* `panels` panels, 1 or 4, from `panel` on. */
static void row_group(const product *m, int panel, int panels) {
  float sums[STREAMS / 2][UST_PANEL] __attribute__((aligned(64))) = {{0}};
  bool direct = !m->bias && m->epilogue != UST_GELU;
  float *y = (float *)(void *)m->y + (size_t)panel * UST_PANEL;
  const char *strips = strip_of(m->w, 2 * panel), *next = panel_after(m->w, panel + panels - 1, m->panel, m->panel_end);
  size_t bytes = strip_bytes(m->w), next_bytes = panel + panels < m->panel_end || !next ? bytes : strip_bytes(m->w->next);
  if (direct && m->epilogue == UST_ADD) memcpy(sums, y, (size_t)panels * sizeof *sums);
  unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | _MM_FLUSH_ZERO_ON | 0x40 /* denormals are zero */);
  (panels == 4 ? row_of_8 : row_of_2)(strips, bytes, next ? next : strips, next_bytes, m->x, block_count(m->w), sums[0]);
  _mm_setcsr(mode);
  if (direct)
    memcpy(y, sums, (size_t)panels * sizeof *sums);
  else
    for (int i = 0; i < panels; i++) finish(m, panel + i, 0, 1, &sums[i]);
}

static void one_row(const product *m) {
  int panel = m->panel;
  for (; panel + 4 <= m->panel_end; panel += 4) row_group(m, panel, 4);
  for (; panel < m->panel_end; panel++) row_group(m, panel, 1);
}

#endif
