/* barrier: where the threads of a pass meet between its steps.
 *
 * A step lasts some ten microseconds to a millisecond, so waiting threads spin; but when another program holds a
 * core, spinning keeps the very thread waited for from running, so after a short while they yield. (OpenMP's own
 * barrier spins for milliseconds or sleeps at once, which only the environment can choose.) */
#ifndef UST_BASE_BARRIER_H
#define UST_BASE_BARRIER_H

#include <sched.h>
#include <stdatomic.h>

typedef struct ust_barrier {
  atomic_int arrived;
  atomic_uint round; /* may wrap */
  int threads;
} ust_barrier;

/* Before any thread waits. */
static inline void ust_barrier_start(ust_barrier *barrier, int threads) {
  atomic_store(&barrier->arrived, 0);
  barrier->threads = threads;
}

static inline void ust_barrier_wait(ust_barrier *barrier) {
  enum { SPINS = 2000 }; /* about 50 microseconds */
  if (barrier->threads == 1) return;
  unsigned round = atomic_load_explicit(&barrier->round, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) + 1 == barrier->threads) {
    atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&barrier->round, round + 1, memory_order_release);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&barrier->round, memory_order_acquire) == round; spins++) {
    if (spins < SPINS)
      __builtin_ia32_pause();
    else
      sched_yield();
  }
}

#endif
