/* Clock, and how many threads are worth starting. */
#include <sched.h>
#include <time.h>

#include "base/base.h"

uint64_t ust_clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The lowest-numbered thread of a core stands for it; a core we cannot read about counts by itself. */
static bool first_of_its_core(int cpu, const cpu_set_t *allowed) {
  char path[96];
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
  FILE *file = fopen(path, "re");
  if (!file) return true;
  bool first = true;
  int from, to;
  while (first && fscanf(file, "%d", &from) == 1) {
    to = from;
    int separator = fgetc(file);
    if (separator == '-') {
      if (fscanf(file, "%d", &to) != 1) break;
      separator = fgetc(file);
    }
    for (int other = from; other <= to && other < cpu; other++)
      if (CPU_ISSET(other, allowed)) first = false;
    if (separator != ',') break;
  }
  fclose(file);
  return first;
}

/* cgroup v2 quota in whole processors, rounded up; 0: none. */
static int cgroup_limit(void) {
  FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
  if (!file) return 0;
  long long quota = 0, period = 0;
  int found = fscanf(file, "%lld %lld", &quota, &period);
  fclose(file);
  return found == 2 && quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int ust_thread_count(void) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  int cores = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &allowed) && first_of_its_core(cpu, &allowed)) cores++;
  int limit = cgroup_limit();
  if (limit && limit < cores) cores = limit;
  return cores > 0 ? cores : 1;
}
