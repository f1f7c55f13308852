/* Error text: one printable line, whatever a file put into it. */
#include "base/base.h"

understudy_status ust_error(understudy_error *err, understudy_status status, const char *format, ...) {
  if (!err) return status;
  err->status = status;
  char whole[5000]; /* a path and some words */
  va_list args;
  va_start(args, format);
  vsnprintf(whole, sizeof whole, format, args);
  va_end(args);
  /* What is too long loses its middle: the path begins it, what is wrong with it stands at the end. */
  enum { HEAD = 160, ROOM = sizeof err->message - 1 - HEAD - 5 };
  const size_t length = strlen(whole);
  if (length < sizeof err->message)
    memcpy(err->message, whole, length + 1);
  else
    snprintf(err->message, sizeof err->message, "%.*s ... %s", HEAD, whole, whole + length - ROOM);
  ust_make_printable(err->message);
  return status;
}

understudy_status ust_error_memory(understudy_error *err, size_t size, const char *what) {
  return ust_error(err, UNDERSTUDY_ERROR_MEMORY, "out of memory: %zu bytes for %s", size, what);
}
