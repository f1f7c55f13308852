/* Clock, and how many threads are worth starting. */
#include <limits.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "base/base.h"

uint64_t ust_clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The lowest-numbered thread of a core stands for it; a core we cannot read about counts by itself. */
static bool first_of_its_core(int cpu, const cpu_set_t *allowed, size_t size) {
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
      if (CPU_ISSET_S(other, size, allowed)) first = false;
    if (separator != ',') break;
  }
  fclose(file);
  return first;
}

/* The quota of one control group in whole processors, rounded up; 0: none. Version 2, else version 1. */
static int quota_of(const char *folder) {
  char path[PATH_MAX + 32];
  long long quota = 0, period = 0;
  int found = 0;
  snprintf(path, sizeof path, "%s/cpu.max", folder);
  FILE *file = fopen(path, "re");
  if (file) {
    found = fscanf(file, "%lld %lld", &quota, &period);
    fclose(file);
  } else {
    const char *const names[] = {"cpu.cfs_quota_us", "cpu.cfs_period_us"};
    for (int i = 0; i < 2; i++) {
      snprintf(path, sizeof path, "%s/%s", folder, names[i]);
      if (!(file = fopen(path, "re"))) return 0;
      found += fscanf(file, "%lld", i ? &period : &quota);
      fclose(file);
    }
  }
  return found == 2 && quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

/* The least quota of the group at `path` of a hierarchy and of those around it; 0: none. */
static int quota_above(const char *hierarchy, const char *path) {
  char folder[PATH_MAX];
  int least = 0, length = snprintf(folder, sizeof folder, "%s%s", hierarchy, path);
  while (length < (int)sizeof folder && length >= (int)strlen(hierarchy)) {
    folder[length] = 0;
    int quota = quota_of(folder);
    if (quota && (!least || quota < least)) least = quota;
    while (length > 0 && folder[length] != '/') length--;
    while (length > 0 && folder[length - 1] == '/') length--;
  }
  return least;
}

/* Is "cpu" among the controllers of a version 1 hierarchy, "cpu,cpuacct"? */
static bool has_cpu(const char *controllers) {
  for (const char *word = controllers; word; word = strchr(word, ',')) {
    word += *word == ',';
    if (strncmp(word, "cpu", 3) == 0 && (word[3] == 0 || word[3] == ',')) return true;
  }
  return false;
}

/* Processors that the control groups this process is in leave it; 0: all. */
static int cgroup_limit(void) {
  FILE *file = fopen("/proc/self/cgroup", "re");
  if (!file) return 0;
  char line[PATH_MAX];
  int limit = 0;
  while (fgets(line, sizeof line, file)) { /* number:controllers:path */
    char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!path) continue;
    *path++ = 0;
    path[strcspn(path, "\n")] = 0;
    const char *hierarchy = *++controllers == 0 ? "/sys/fs/cgroup" : has_cpu(controllers) ? "/sys/fs/cgroup/cpu" : NULL;
    int quota = hierarchy ? quota_above(hierarchy, path) : 0;
    if (quota && (!limit || quota < limit)) limit = quota;
  }
  fclose(file);
  return limit;
}

/* Cores of the first `cpus` processors that this process may use; -1: the system may have more of them. */
static int allowed_cores(int cpus) {
  const size_t size = CPU_ALLOC_SIZE(cpus);
  cpu_set_t *allowed = CPU_ALLOC(cpus);
  int cores = allowed && sched_getaffinity(0, size, allowed) == 0 ? 0 : -1;
  for (int cpu = 0; cpu < cpus && cores >= 0; cpu++)
    if (CPU_ISSET_S(cpu, size, allowed) && first_of_its_core(cpu, allowed, size)) cores++;
  CPU_FREE(allowed);
  return cores;
}

int ust_thread_count(void) {
  int cores = -1, limit = cgroup_limit();
  for (int cpus = 1024; cores < 0 && cpus <= 1 << 17; cpus *= 2) cores = allowed_cores(cpus);
  if (limit && limit < cores) cores = limit;
  return cores > 0 ? cores : 1;
}
