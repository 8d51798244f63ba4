/* Preloaded into a process, counts what it does to files below a folder and strikes at the k-th operation; see faults.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, COUNT, KILL, TORN, FULL, SIGNAL };

static enum mode mode = OFF;
static char below[PATH_MAX], only[PATH_MAX], kept[PATH_MAX];
static int at, number, journal = -1;
static atomic_int counted;

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* Reads the settings from the environment and begins to count. A forked child calls it when it has set its own. */
void faults_arm(void) {
    static const char *names[] = {"off", "count", "kill", "torn", "full", "signal"};
    const char *wanted = variable("FAULTS_MODE");
    mode = OFF;
    snprintf(below, sizeof below, "%s/", variable("FAULTS_BELOW"));
    snprintf(only, sizeof only, "%s", variable("FAULTS_ONLY"));
    snprintf(kept, sizeof kept, "%s", variable("FAULTS_KEPT"));
    at = atoi(variable("FAULTS_AT"));
    number = atoi(variable("FAULTS_SIGNAL"));
    if (journal >= 0) close(journal);
    const char *log = variable("FAULTS_LOG");
    journal = *log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    atomic_store(&counted, 0);
    for (int each = COUNT; each <= SIGNAL; each++)
        if (!strcmp(wanted, names[each])) mode = (enum mode)each;
}

__attribute__((constructor)) static void begin(void) { faults_arm(); }

static void of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

static void of_name(int folder, const char *name, char *path) {
    char start[PATH_MAX] = "";
    if (*name != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(start, sizeof start)) *start = 0;
        } else {
            of_descriptor(folder, start);
        }
        strncat(start, "/", sizeof start - strlen(start) - 1);
    }
    snprintf(path, PATH_MAX, "%.2000s%.2000s", start, name);
}

static void note(int place, const char *operation, const char *path, const char *struck) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%d\t%s\t%.4000s\t%s\n", place, operation, path, struck);
    if (journal >= 0) syscall(SYS_write, journal, line, length);
}

/* What becomes of an operation. */
enum verdict { PASS, HALF, REFUSE, STRIKE };

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts an operation on a path. `room`: whether it takes room on the disk; `parts`: whether it can be done by half. */
static enum verdict judge(const char *operation, const char *path, int room, int parts) {
    if (mode == OFF || strncmp(path, below, strlen(below)) || (*only && !strstr(path, only))) return PASS;
    if (mode == FULL && !room) return PASS;
    int place = atomic_fetch_add(&counted, 1) + 1;
    int struck = mode == FULL ? place >= at && at > 0 : place == at && mode != COUNT;
    note(place, operation, path, struck ? "struck" : "");
    if (!struck) return PASS;
    if (mode == TORN && !parts) die();
    if (mode == TORN) return HALF;
    if (mode == FULL) return parts && place == at ? HALF : REFUSE;
    return STRIKE;
}

/* After the operation: the process dies, or is asked to end. */
static void strike(enum verdict verdict) {
    int saved = errno;
    if ((mode == KILL && verdict == STRIKE) || (mode == TORN && verdict == HALF)) die();
    if (mode == SIGNAL && verdict == STRIKE) kill(getpid(), number);
    errno = saved;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define REFUSED(verdict, failure) \
    if ((verdict) == REFUSE) { errno = ENOSPC; return failure; }

/* Opening for writing takes room where it makes a file. */
static enum verdict opened(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT)) return PASS;
    of_name(folder, name, path);
    return judge("open", path, (flags & O_CREAT) && syscall(SYS_faccessat, folder, name, F_OK) < 0, 0);
}

#define OPEN(function) \
    int function(const char *name, int flags, ...) { \
        REAL(int, function, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t rights = va_arg(rest, mode_t); va_end(rest); \
        enum verdict verdict = opened(AT_FDCWD, name, flags); \
        REFUSED(verdict, -1) \
        int found = real(name, flags, rights); strike(verdict); return found; \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function) \
    int function(int folder, const char *name, int flags, ...) { \
        REAL(int, function, int, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t rights = va_arg(rest, mode_t); va_end(rest); \
        enum verdict verdict = opened(folder, name, flags); \
        REFUSED(verdict, -1) \
        int found = real(folder, name, flags, rights); strike(verdict); return found; \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(function) \
    FILE *function(const char *name, const char *how) { \
        REAL(FILE *, function, const char *, const char *); \
        int flags = *how == 'r' && !strchr(how, '+') ? O_RDONLY : *how == 'r' ? O_RDWR : O_WRONLY | O_CREAT; \
        enum verdict verdict = opened(AT_FDCWD, name, flags); \
        REFUSED(verdict, NULL) \
        FILE *found = real(name, how); strike(verdict); return found; \
    }
FOPEN(fopen)
FOPEN(fopen64)

static enum verdict on(const char *operation, int descriptor, int room, int parts) {
    char path[PATH_MAX];
    if (mode == OFF) return PASS;
    of_descriptor(descriptor, path);
    return judge(operation, path, room, parts);
}

ssize_t write(int descriptor, const void *bytes, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    enum verdict verdict = on("write", descriptor, 1, count > 1);
    REFUSED(verdict, -1)
    ssize_t done = real(descriptor, bytes, verdict == HALF ? count / 2 : count); strike(verdict); return done;
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    enum verdict verdict = on("writev", descriptor, 1, 0);
    REFUSED(verdict, -1)
    ssize_t done = real(descriptor, parts, count); strike(verdict); return done;
}

#define PWRITE(function, offset_type) \
    ssize_t function(int descriptor, const void *bytes, size_t count, offset_type offset) { \
        REAL(ssize_t, function, int, const void *, size_t, offset_type); \
        enum verdict verdict = on("pwrite", descriptor, 1, count > 1); \
        REFUSED(verdict, -1) \
        ssize_t done = real(descriptor, bytes, verdict == HALF ? count / 2 : count, offset); strike(verdict); return done; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t copy_file_range(int from, off64_t *at_from, int to, off64_t *at_to, size_t count, unsigned flags) {
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    enum verdict verdict = on("copy_file_range", to, 1, 0);
    REFUSED(verdict, -1)
    ssize_t done = real(from, at_from, to, at_to, count, flags); strike(verdict); return done;
}

#define SENDFILE(function, offset_type) \
    ssize_t function(int to, int from, offset_type *offset, size_t count) { \
        REAL(ssize_t, function, int, int, offset_type *, size_t); \
        enum verdict verdict = on("sendfile", to, 1, 0); \
        REFUSED(verdict, -1) \
        ssize_t done = real(to, from, offset, count); strike(verdict); return done; \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

#define ON_DESCRIPTOR(function, room) \
    int function(int descriptor) { \
        REAL(int, function, int); \
        enum verdict verdict = on(#function, descriptor, room, 0); \
        REFUSED(verdict, -1) \
        int done = real(descriptor); strike(verdict); return done; \
    }
ON_DESCRIPTOR(fsync, 1)
ON_DESCRIPTOR(fdatasync, 1)

#define TRUNCATE(function, offset_type) \
    int function(int descriptor, offset_type length) { \
        REAL(int, function, int, offset_type); \
        enum verdict verdict = on("ftruncate", descriptor, 0, 0); \
        int done = real(descriptor, length); strike(verdict); return done; \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define ALLOCATE(function, offset_type) \
    int function(int descriptor, offset_type offset, offset_type length) { \
        REAL(int, function, int, offset_type, offset_type); \
        enum verdict verdict = on("fallocate", descriptor, 1, 0); \
        if (verdict == REFUSE) return ENOSPC; \
        int done = real(descriptor, offset, length); strike(verdict); return done; \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

static enum verdict named(const char *operation, int folder, const char *name, int room) {
    char path[PATH_MAX];
    if (mode == OFF) return PASS;
    of_name(folder, name, path);
    return judge(operation, path, room, 0);
}

/* What is about to be removed gets a second name, so that a trial can look at it afterwards: KEPT/a|b for BELOW/a/b. */
static void keep(int folder, const char *name) {
    char path[PATH_MAX], place[2 * PATH_MAX];
    if (!*kept || mode == OFF) return;
    of_name(folder, name, path);
    if (strncmp(path, below, strlen(below))) return;
    int start = snprintf(place, sizeof place, "%s/", kept);
    snprintf(place + start, sizeof place - start, "%s", path + strlen(below));
    for (char *each = place + start; *each; each++)
        if (*each == '/') *each = '|';
    syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, place, 0);
}

int unlink(const char *name) {
    REAL(int, unlink, const char *);
    keep(AT_FDCWD, name);
    enum verdict verdict = named("unlink", AT_FDCWD, name, 0);
    int done = real(name); strike(verdict); return done;
}

int unlinkat(int folder, const char *name, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    if (!(flags & AT_REMOVEDIR)) keep(folder, name);
    enum verdict verdict = named("unlink", folder, name, 0);
    int done = real(folder, name, flags); strike(verdict); return done;
}

int rmdir(const char *name) {
    REAL(int, rmdir, const char *);
    enum verdict verdict = named("rmdir", AT_FDCWD, name, 0);
    int done = real(name); strike(verdict); return done;
}

int mkdir(const char *name, mode_t rights) {
    REAL(int, mkdir, const char *, mode_t);
    enum verdict verdict = named("mkdir", AT_FDCWD, name, syscall(SYS_faccessat, AT_FDCWD, name, F_OK) < 0);
    REFUSED(verdict, -1)
    int done = real(name, rights); strike(verdict); return done;
}

int mkdirat(int folder, const char *name, mode_t rights) {
    REAL(int, mkdirat, int, const char *, mode_t);
    enum verdict verdict = named("mkdir", folder, name, syscall(SYS_faccessat, folder, name, F_OK) < 0);
    REFUSED(verdict, -1)
    int done = real(folder, name, rights); strike(verdict); return done;
}

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    enum verdict verdict = named("rename", AT_FDCWD, to, 0);
    int done = real(from, to); strike(verdict); return done;
}

int renameat(int folder, const char *from, int into, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    enum verdict verdict = named("rename", into, to, 0);
    int done = real(folder, from, into, to); strike(verdict); return done;
}

int link(const char *from, const char *to) {
    REAL(int, link, const char *, const char *);
    enum verdict verdict = named("link", AT_FDCWD, to, 1);
    REFUSED(verdict, -1)
    int done = real(from, to); strike(verdict); return done;
}

int symlink(const char *from, const char *to) {
    REAL(int, symlink, const char *, const char *);
    enum verdict verdict = named("symlink", AT_FDCWD, to, 1);
    REFUSED(verdict, -1)
    int done = real(from, to); strike(verdict); return done;
}
