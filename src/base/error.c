/* Error text: one printable line, whatever a file put into it. */
#include "base/base.h"

understudy_status ust_error(understudy_error *err, understudy_status status, const char *format, ...) {
  if (!err) return status;
  err->status = status;
  va_list args;
  va_start(args, format);
  vsnprintf(err->message, sizeof err->message, format, args);
  va_end(args);
  for (char *c = err->message; *c; c++)
    if ((unsigned char)*c < 32 || (unsigned char)*c > 126) *c = '?';
  return status;
}

understudy_status ust_error_memory(understudy_error *err, size_t size, const char *what) {
  return ust_error(err, UNDERSTUDY_ERROR_MEMORY, "out of memory: %zu bytes for %s", size, what);
}
