/* Aligned, zeroed memory and growing buffers. */
#include <stdlib.h>
#include <sys/mman.h>

#include "base/base.h"

enum { ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };

void *ust_alloc_unset(size_t size) {
  if (size == 0) size = 1;
  if (size > SIZE_MAX / 2) return NULL;
  size_t alignment = size >= HUGE_PAGE ? HUGE_PAGE : ALIGNMENT;
  void *memory = NULL;
  if (posix_memalign(&memory, alignment, UST_ROUND_UP(size, alignment)) != 0) return NULL;
  if (alignment == HUGE_PAGE) madvise(memory, UST_ROUND_UP(size, alignment), MADV_HUGEPAGE);
  return memory;
}

void *ust_alloc(size_t size) {
  void *memory = ust_alloc_unset(size);
  if (memory) memset(memory, 0, size ? size : 1);
  return memory;
}

void ust_free(void *memory) {
  free(memory);
}

bool ust_buffer_append(ust_buffer *buffer, const void *data, size_t size) {
  if (size > SIZE_MAX / 4 - buffer->size) return false;
  if (buffer->size + size > buffer->capacity) {
    size_t capacity = UST_MAX(2 * buffer->capacity, buffer->size + size + 64);
    char *grown = realloc(buffer->data, capacity);
    if (!grown) return false;
    buffer->data = grown;
    buffer->capacity = capacity;
  }
  if (size) memcpy(buffer->data + buffer->size, data, size);
  buffer->size += size;
  return true;
}

void ust_buffer_free(ust_buffer *buffer) {
  free(buffer->data);
  *buffer = (ust_buffer){0};
}
