// A disk that takes its time: preloaded, each fsync and fdatasync of the process is preceded by a wait.
//
//     gcc -shared -fPIC -o slow_disk.so slow_disk.c -ldl      LD_PRELOAD=slow_disk.so SLOW_DISK_MS=300 twistd …
//
// Preloaded, because a disk that is slow to confirm what was written can be had in no other way without a kernel module:
// what SQLite waits for at each commit are these two calls, and a busy disk takes hundreds of milliseconds for them.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static void wait_for_the_disk(void) {
  const char *text = getenv("SLOW_DISK_MS");
  long ms = text ? atol(text) : 0;
  struct timespec left = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&left, &left)) {
  }
}

static int after_a_wait(const char *name, int fd) {
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  wait_for_the_disk();
  return real(fd);
}

int fsync(int fd) { return after_a_wait("fsync", fd); }

int fdatasync(int fd) { return after_a_wait("fdatasync", fd); }
