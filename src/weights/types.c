/* Tensor types: the table of those that are read, and what their blocks hold. Q8_0, Q4_0 and Q4_K are the kernels' own
 * formats and decoded there; the rest stand here: layouts and formulas of GGUF's reference implementation (ggml). */
#include <math.h>

#include "weights/internal.h"

_Static_assert(sizeof(ust_q8_block) == 34 && sizeof(ust_q4_block) == 18 && sizeof(ust_q4k_block) == 144,
               "blocks are read as they are stored");

static uint16_t load_u16(const unsigned char *b) {
  return (uint16_t)(b[0] | b[1] << 8);
}
static float load_f16(const unsigned char *b) {
  return ust_f16_to_f32(load_u16(b));
}

/* Elements that are blocks of their own, many at a time; false when one is infinite or not a number: adding its last
 * bit to an exponent of ones carries into the bit above. F32 that would round to an infinite bf16 counts as
 * infinite. */
static bool decode_f32(const unsigned char *data, size_t count, float *out) {
  uint32_t carried = 0;
  memcpy(out, data, count * sizeof *out);
  for (size_t i = 0; i < count; i++) carried |= (ust_load_u32(data + 4 * i) & 0x7fffffff) + 0x00808000;
  return !(carried >> 31);
}
static bool decode_f16(const unsigned char *data, size_t count, float *out) {
  uint32_t carried = 0;
  for (size_t i = 0; i < count; i++) {
    carried |= (load_u16(data + 2 * i) & 0x7c00u) + 0x400;
    out[i] = load_f16(data + 2 * i);
  }
  return !(carried & 0x8000);
}
static bool decode_bf16(const unsigned char *data, size_t count, float *out) {
  typedef uint16_t halves __attribute__((vector_size(16)));
  typedef uint32_t words __attribute__((vector_size(32)));
  enum { LANES = 8 };
  halves h, carried = {0};
  uint16_t any = 0;
  size_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    memcpy(&h, data + 2 * i, sizeof h);
    words whole = __builtin_convertvector(h, words) << 16;
    memcpy(out + i, &whole, sizeof whole);
    carried |= (h & 0x7f80) + 0x80;
  }
  for (int l = 0; l < LANES; l++) any |= carried[l];
  for (; i < count; i++) {
    out[i] = ust_bf16_to_f32(load_u16(data + 2 * i));
    any |= (uint16_t)((load_u16(data + 2 * i) & 0x7f80u) + 0x80);
  }
  return !(any & 0x8000);
}

static void decode_runs(ust_format format, const unsigned char *block, float *out) {
  for (int i = 0; i < ust_block_inputs(format) / UST_BLOCK; i++) {
    ust_run run;
    ust_run_load(format, block, i, &run);
    ust_run_values(format, &run, out + i * UST_BLOCK);
  }
}
static void decode_q8_0(const unsigned char *block, float *out) {
  decode_runs(UST_FORMAT_Q8, block, out);
}
static void decode_q4_0(const unsigned char *block, float *out) {
  decode_runs(UST_FORMAT_Q4, block, out);
}
static void decode_q4_k(const unsigned char *block, float *out) {
  decode_runs(UST_FORMAT_Q4K, block, out);
}

/* Element i of 16 bytes: the first 16 in the low halves. */
static int half_byte(const unsigned char *q, int i) {
  return q[i % 16] >> i / 16 * 4 & 15;
}

/* f16 scale, f16 minimum, 16 bytes of halves. */
static void decode_q4_1(const unsigned char *block, float *out) {
  float scale = load_f16(block), minimum = load_f16(block + 2);
  for (int i = 0; i < UST_BLOCK; i++) out[i] = scale * (float)half_byte(block + 4, i) + minimum;
}

/* f16 scale, 32 fifth bits, 16 bytes of halves. */
static void decode_q5_0(const unsigned char *block, float *out) {
  float scale = load_f16(block);
  uint32_t fifth = ust_load_u32(block + 2);
  for (int i = 0; i < UST_BLOCK; i++)
    out[i] = scale * (float)((half_byte(block + 6, i) | (int)(fifth >> i & 1) << 4) - 16);
}

/* f16 scale, f16 minimum, 32 fifth bits, 16 bytes of halves. */
static void decode_q5_1(const unsigned char *block, float *out) {
  float scale = load_f16(block), minimum = load_f16(block + 2);
  uint32_t fifth = ust_load_u32(block + 4);
  for (int i = 0; i < UST_BLOCK; i++)
    out[i] = scale * (float)(half_byte(block + 8, i) | (int)(fifth >> i & 1) << 4) + minimum;
}

/* A Q4_K block with 32 bytes of fifth bits before its halves: bit i of a byte belongs to run i. */
static void decode_q5_k(const unsigned char *block, float *out) {
  ust_q4k_block whole;
  memcpy(&whole, block, 16);
  memcpy(whole.q, block + 48, sizeof whole.q);
  for (int i = 0; i < 8; i++) {
    ust_run run;
    ust_run_load(UST_FORMAT_Q4K, &whole, i, &run);
    for (int k = 0; k < UST_BLOCK; k++) run.q[k] |= (uint8_t)((block[16 + k] >> i & 1) << 4);
    ust_run_values(UST_FORMAT_Q4K, &run, out + i * UST_BLOCK);
  }
}

/* Two times 128 elements: 64 bytes of low halves, 32 bytes of upper pairs of bits, 8 int8 scales; the f16 scale of all
 * comes last. */
static void decode_q6_k(const unsigned char *block, float *out) {
  float all = load_f16(block + 208);
  for (int i = 0; i < 256; i++) {
    int half = i / 128, quarter = i / 32 % 4, k = i % 32;
    int low = block[64 * half + 32 * (quarter % 2) + k] >> quarter / 2 * 4 & 15;
    int high = block[128 + 32 * half + k] >> 2 * quarter & 3;
    float scale = all * (float)(int8_t)block[192 + i / 16];
    out[i] = scale * (float)((low | high << 4) - 32);
  }
}

static const struct {
  ust_type type;
  const char *name;
  int elements, bytes;                                    /* of a block */
  void (*decode)(const unsigned char *block, float *out); /* NULL: blocks of one element */
} types[] = {{UST_TYPE_F32, "f32", 1, 4, NULL},
             {UST_TYPE_F16, "f16", 1, 2, NULL},
             {UST_TYPE_BF16, "bf16", 1, 2, NULL},
             {UST_TYPE_Q8_0, "q8_0", 32, 34, decode_q8_0},
             {UST_TYPE_Q4_0, "q4_0", 32, 18, decode_q4_0},
             {UST_TYPE_Q4_1, "q4_1", 32, 20, decode_q4_1},
             {UST_TYPE_Q5_0, "q5_0", 32, 22, decode_q5_0},
             {UST_TYPE_Q5_1, "q5_1", 32, 24, decode_q5_1},
             {UST_TYPE_Q4_K, "q4_k", 256, 144, decode_q4_k},
             {UST_TYPE_Q5_K, "q5_k", 256, 176, decode_q5_k},
             {UST_TYPE_Q6_K, "q6_k", 256, 210, decode_q6_k}};
enum { TYPES = sizeof types / sizeof types[0] };

static int index_of(ust_type type) {
  int i = 0;
  while (types[i].type != type) {
    i++;
    assert(i < TYPES);
  }
  return i;
}

bool ust_type_known(uint32_t code) {
  for (int i = 0; i < TYPES; i++)
    if ((uint32_t)types[i].type == code) return true;
  return false;
}

const char *ust_type_name(ust_type type) {
  return types[index_of(type)].name;
}

int ust_type_block(ust_type type) {
  return types[index_of(type)].elements;
}

bool ust_weights_bytes(ust_type type, uint64_t elements, uint64_t *bytes) {
  int i = index_of(type);
  return ust_mul(elements / (uint64_t)types[i].elements, (uint64_t)types[i].bytes, bytes);
}

bool ust_weights_decode(ust_type type, const unsigned char *data, size_t count, float *out) {
  if (type == UST_TYPE_F32) return decode_f32(data, count, out);
  if (type == UST_TYPE_F16) return decode_f16(data, count, out);
  if (type == UST_TYPE_BF16) return decode_bf16(data, count, out);
  int i = index_of(type);
  size_t elements = (size_t)types[i].elements, bytes = (size_t)types[i].bytes;
  bool finite = true;
  for (; count > 0; count -= elements, data += bytes, out += elements) {
    types[i].decode(data, out);
    for (size_t k = 0; k < elements; k++) finite &= isfinite(out[k]) != 0;
  }
  return finite;
}
