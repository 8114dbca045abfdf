/* What a test does to the relay's surroundings, from outside of the process: the wall clock, writes and fsyncs of files.
 *
 * Loaded with LD_PRELOAD. The switches stand in a small file that the test maps as well (tests/faults/faulty.py), so
 * that they can be turned while the relay runs. With SHADOW set, the content of a file is copied there at each fsync of
 * it: what a power failure would leave, where nothing reaches the disk that was not asked to.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct switches {
    _Atomic int64_t clock_offset_ns; /* added to the wall clock */
    _Atomic int32_t full;            /* writes to files find no space */
    _Atomic int32_t fsync_fails;     /* with EIO */
    _Atomic int64_t fsyncs;          /* that succeeded */
    _Atomic int64_t refused;         /* writes and fsyncs that were made to fail */
    _Atomic int64_t fsync_ns;        /* monotonic time of the last fsync */
};

static struct switches *switches;
static const char *shadow;
static struct switches none;

static struct switches *at(void) {
    if (switches == NULL) {
        const char *path = getenv("RELAY_FAULTS");
        int fd = path != NULL ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
        void *mapped = fd >= 0 ? mmap(NULL, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
        if (fd >= 0)
            syscall(SYS_close, fd);
        shadow = getenv("RELAY_FAULTS_SHADOW");
        switches = mapped == MAP_FAILED ? &none : mapped;
    }
    return switches;
}

static int is_file(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

static int no_space(int fd) {
    if (!at()->full || !is_file(fd))
        return 0;
    at()->refused++;
    errno = ENOSPC;
    return 1;
}

/* -- clocks */

int clock_gettime(clockid_t clock, struct timespec *out) {
    long result = syscall(SYS_clock_gettime, clock, out);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = (int64_t)out->tv_sec * 1000000000 + out->tv_nsec + at()->clock_offset_ns;
        out->tv_sec = ns / 1000000000;
        out->tv_nsec = ns % 1000000000;
    }
    return (int)result;
}

int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL)
        *out = now.tv_sec;
    return now.tv_sec;
}

/* -- files */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
    return no_space(fd) ? -1 : syscall(SYS_write, fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return no_space(fd) ? -1 : syscall(SYS_pwrite64, fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    return no_space(fd) ? -1 : syscall(SYS_pwrite64, fd, data, size, offset);
}

int posix_fallocate(int fd, off_t offset, off_t size) {
    if (no_space(fd))
        return ENOSPC;
    return REAL(posix_fallocate)(fd, offset, size);
}

static void copy_to_shadow(int fd) {
    char link[64], path[4096], to[8192], part[65536];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return;
    path[length] = 0;
    const char *name = strrchr(path, '/');
    snprintf(to, sizeof to, "%s%s", shadow, name != NULL ? name : "/unknown");
    int out = (int)syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int in = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    for (ssize_t got; out >= 0 && in >= 0 && (got = read(in, part, sizeof part)) > 0;)
        if (syscall(SYS_write, out, part, got) != got)
            break;
    syscall(SYS_close, out);
    syscall(SYS_close, in);
}

static int synced(int fd, long number) {
    struct timespec now;
    if (at()->fsync_fails && is_file(fd)) {
        at()->refused++;
        errno = EIO;
        return -1;
    }
    long result = syscall(number, fd);
    if (result == 0 && is_file(fd)) {
        if (shadow != NULL)
            copy_to_shadow(fd);
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
        at()->fsync_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
        at()->fsyncs++;
    }
    return (int)result;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }

int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
