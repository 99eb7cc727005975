/* Faults of the system, kills and a record, at the calls of one process below one folder.
 *
 * Preloaded into a process (LD_PRELOAD), which forks a child for each trial. The child calls
 * trust_arm(), and every call of the C library that reads or changes the file system below the
 * folder is then counted, and is failed, cut short, recorded or answered by SIGKILL as the plan
 * says. Counters are in memory that the child shares with its parent: they outlive a kill.
 *
 * What bypasses the C library (mapped memory, io_uring, raw system calls) is not seen.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The same numbers are in interposer.py. */
enum op {
    OPEN, CREATE, READ, WRITE, FLUSH, RENAME, LINK, UNLINK, MKDIR, RMDIR, RESIZE, TOUCH, STAT,
    LIST, CLOSE, ALLOCATE, SOCKET, THREAD, TRANSFER, PRINT
};
enum action { COUNT, FAIL, SHORTEN, KILL, KILL_HALFWAY, RECORD };

struct plan {
    int32_t action, error;
    uint32_t ops; /* a bit for each op that counts */
    int32_t log;
    int64_t first, last; /* the calls that are hit, counted from 1 */
    char folder[PATH_MAX];
};

struct shared {
    _Atomic int64_t counted, hit;
    _Atomic int32_t op;
    char place[PATH_MAX];
};

static struct plan plan;
static struct shared *shared;
static size_t folder_length;
static _Atomic int is_armed;
static struct { uintptr_t start, end; } callers[64];
static int num_callers;
static pthread_mutex_t recording = PTHREAD_MUTEX_INITIALIZER;

void trust_callers(const uint64_t *ranges, int count) {
    num_callers = count < 64 ? count : 64;
    for (int i = 0; i < num_callers; i++) {
        callers[i].start = ranges[2 * i];
        callers[i].end = ranges[2 * i + 1];
    }
}

void trust_arm(const struct plan *given, struct shared *counters) {
    plan = *given;
    shared = counters;
    folder_length = strlen(plan.folder);
    is_armed = 1;
}

void trust_disarm(void) { is_armed = 0; }

/* --- which calls count ---------------------------------------------------------------------- */

static int is_below(const char *path) {
    return strncmp(path, plan.folder, folder_length) == 0 &&
           (path[folder_length] == '/' || path[folder_length] == 0);
}

static int path_of(int descriptor, char *out) {
    char link[64] = "/proc/self/fd/";
    char digits[16];
    int n = 0, at = 14;
    if (descriptor == AT_FDCWD) {
        strcpy(link, "/proc/self/cwd");
    } else {
        if (descriptor < 0) return 0;
        do digits[n++] = (char)('0' + descriptor % 10); while ((descriptor /= 10));
        while (n) link[at++] = digits[--n];
        link[at] = 0;
    }
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    if (length < 0) return 0;
    out[length] = 0;
    return 1;
}

/* The absolute path of a call, if it is below the folder. */
static int absolute(int folder, const char *path, char *out) {
    if (!is_armed || path == NULL) return 0;
    if (path[0] == '/') {
        if (strlen(path) >= PATH_MAX) return 0;
        strcpy(out, path);
    } else {
        if (!path_of(folder, out) || strlen(out) + strlen(path) + 2 > PATH_MAX) return 0;
        strcat(out, "/");
        strcat(out, path);
    }
    return is_below(out);
}

static int opened(int descriptor, char *out) {
    return is_armed && path_of(descriptor, out) && is_below(out);
}

/* Count a call. Returns the action that hits it, or COUNT. */
static int counted(enum op op, const char *place) {
    if (!(plan.ops >> op & 1)) return COUNT;
    int64_t number = ++shared->counted;
    if (plan.action == RECORD || number < plan.first || number > plan.last) return COUNT;
    shared->hit++;
    shared->op = (int32_t)op;
    strncpy(shared->place, place, PATH_MAX - 1);
    if (plan.action == KILL) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
    return plan.action;
}

static int fails(enum op op, const char *place) {
    if (counted(op, place) != FAIL) return 0;
    errno = plan.error;
    return 1;
}

/* --- the record ------------------------------------------------------------------------------ */

struct entry {
    uint32_t op, is_new;
    uint64_t inode, offset, nbytes;
    uint32_t path_length, other_length;
};

static uint64_t inode_of(int descriptor) {
    struct stat found;
    return syscall(SYS_fstat, descriptor, &found) ? 0 : found.st_ino;
}

static uint64_t inode_at(const char *path) {
    struct stat found;
    return syscall(SYS_newfstatat, AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW) ? 0 : found.st_ino;
}

static void put(const void *data, size_t nbytes) {
    const char *at = data;
    while (nbytes) {
        long done = syscall(SYS_write, plan.log, at, nbytes);
        if (done <= 0) abort();
        at += done;
        nbytes -= (size_t)done;
    }
}

static int records(void) { return is_armed && plan.action == RECORD; }

static void record(enum op op, uint64_t inode, int is_new, const char *path, const char *other,
                   uint64_t offset, const void *data, uint64_t nbytes) {
    struct entry entry = {op, (uint32_t)is_new, inode, offset, nbytes,
                          (uint32_t)(path ? strlen(path) : 0), (uint32_t)(other ? strlen(other) : 0)};
    put(&entry, sizeof entry);
    if (path) put(path, entry.path_length);
    if (other) put(other, entry.other_length);
    if (data) put(data, nbytes);
}

static void begin(void) {
    if (records()) pthread_mutex_lock(&recording);
}

static void end(void) {
    if (records()) pthread_mutex_unlock(&recording);
}

/* The function of the C library that one here stands before. */
#define REAL(name)                                                         \
    static __typeof__(&name) real;                                         \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* --- opening and closing ---------------------------------------------------------------------- */

#define OPENING(name, folder, ...)                                                              \
    REAL(name);                                                                                 \
    mode_t mode = 0;                                                                            \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                        \
        va_list more;                                                                           \
        va_start(more, flags);                                                                  \
        mode = va_arg(more, mode_t);                                                            \
        va_end(more);                                                                           \
    }                                                                                           \
    char place[PATH_MAX];                                                                       \
    if (!absolute(folder, path, place)) return real(__VA_ARGS__);                               \
    if (fails(flags & O_CREAT ? CREATE : OPEN, place)) return -1;                               \
    begin();                                                                                    \
    int is_new = records() && flags & O_CREAT && !inode_at(place);                              \
    int descriptor = real(__VA_ARGS__);                                                         \
    if (records() && descriptor >= 0 && (is_new || flags & O_TRUNC))                            \
        record(CREATE, inode_of(descriptor), is_new, place, NULL, 0, NULL, 0);                  \
    end();                                                                                      \
    return descriptor

int open(const char *path, int flags, ...) { OPENING(open, AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { OPENING(open64, AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { OPENING(openat, at, at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) {
    OPENING(openat64, at, at, path, flags, mode);
}

int close(int descriptor) {
    REAL(close);
    char place[PATH_MAX];
    int is_failed = opened(descriptor, place) && fails(CLOSE, place);
    int error = errno;
    int result = real(descriptor);
    if (!is_failed) return result;
    errno = error; /* it is closed, and the error is one of an earlier write */
    return -1;
}

DIR *opendir(const char *path) {
    REAL(opendir);
    char place[PATH_MAX];
    if (absolute(AT_FDCWD, path, place) && fails(LIST, place)) return NULL;
    return real(path);
}

struct dirent64 *readdir64(DIR *folder) {
    REAL(readdir64);
    char place[PATH_MAX];
    if (opened(dirfd(folder), place) && fails(LIST, place)) return NULL;
    return real(folder);
}

int socket(int domain, int type, int protocol) {
    REAL(socket);
    if (is_armed && fails(SOCKET, "socket")) return -1;
    return real(domain, type, protocol);
}

#define TRANSFERRING(name, ...)                                       \
    REAL(name);                                                       \
    if (is_armed && fails(TRANSFER, "socket")) return -1;             \
    return real(__VA_ARGS__)

ssize_t send(int to, const void *from, size_t nbytes, int flags) {
    TRANSFERRING(send, to, from, nbytes, flags);
}
ssize_t recv(int from, void *to, size_t nbytes, int flags) {
    TRANSFERRING(recv, from, to, nbytes, flags);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *of) {
    REAL(pthread_create);
    if (is_armed && fails(THREAD, "thread")) return plan.error;
    return real(thread, with, run, of);
}

/* --- reading and writing ----------------------------------------------------------------------- */

static size_t half(size_t nbytes) { return nbytes > 1 ? nbytes / 2 : nbytes; }

#define READING(name, ...)                                          \
    REAL(name);                                                     \
    char place[PATH_MAX];                                           \
    if (opened(descriptor, place)) {                                \
        int action = counted(READ, place);                          \
        if (action == FAIL) {                                       \
            errno = plan.error;                                     \
            return -1;                                              \
        }                                                           \
        if (action == SHORTEN) nbytes = half(nbytes);               \
    }                                                               \
    return real(__VA_ARGS__)

ssize_t read(int descriptor, void *to, size_t nbytes) { READING(read, descriptor, to, nbytes); }
ssize_t pread(int descriptor, void *to, size_t nbytes, off_t offset) {
    READING(pread, descriptor, to, nbytes, offset);
}
ssize_t pread64(int descriptor, void *to, size_t nbytes, off64_t offset) {
    READING(pread64, descriptor, to, nbytes, offset);
}

#define READING_PARTS(name, ...)                                                  \
    REAL(name);                                                                   \
    char place[PATH_MAX];                                                         \
    struct iovec part;                                                            \
    if (opened(descriptor, place)) {                                              \
        int action = counted(READ, place);                                        \
        if (action == FAIL) {                                                     \
            errno = plan.error;                                                   \
            return -1;                                                            \
        }                                                                         \
        if (action == SHORTEN && count > 0) {                                     \
            part = (struct iovec){parts[0].iov_base, half(parts[0].iov_len)};     \
            parts = &part;                                                        \
            count = 1;                                                            \
        }                                                                         \
    }                                                                             \
    return real(__VA_ARGS__)

ssize_t readv(int descriptor, const struct iovec *parts, int count) {
    READING_PARTS(readv, descriptor, parts, count);
}
ssize_t preadv64v2(int descriptor, const struct iovec *parts, int count, off64_t at, int flags) {
    READING_PARTS(preadv64v2, descriptor, parts, count, at, flags);
}

static uint64_t position(int descriptor) {
    struct stat found;
    if (fcntl(descriptor, F_GETFL) & O_APPEND)
        return syscall(SYS_fstat, descriptor, &found) ? 0 : (uint64_t)found.st_size;
    return (uint64_t)lseek(descriptor, 0, SEEK_CUR);
}

#define WRITING(name, at, ...)                                                               \
    REAL(name);                                                                              \
    char place[PATH_MAX];                                                                    \
    if (descriptor == 1 && records()) { /* what was acknowledged, and when */                \
        begin();                                                                             \
        record(PRINT, 0, 0, NULL, NULL, 0, from, nbytes);                                    \
        end();                                                                               \
    }                                                                                        \
    if (!opened(descriptor, place)) return real(__VA_ARGS__);                                \
    int action = counted(WRITE, place);                                                      \
    if (action == FAIL) {                                                                    \
        errno = plan.error;                                                                  \
        return -1;                                                                           \
    }                                                                                        \
    if (action == SHORTEN || action == KILL_HALFWAY) nbytes = half(nbytes);                  \
    begin();                                                                                 \
    uint64_t start = records() ? (uint64_t)(at) : 0;                                         \
    ssize_t done = real(__VA_ARGS__);                                                        \
    if (records() && done > 0)                                                               \
        record(WRITE, inode_of(descriptor), 0, place, NULL, start, from, (uint64_t)done);    \
    end();                                                                                   \
    if (action == KILL_HALFWAY) syscall(SYS_kill, getpid(), SIGKILL);                        \
    return done

ssize_t write(int descriptor, const void *from, size_t nbytes) {
    WRITING(write, position(descriptor), descriptor, from, nbytes);
}
ssize_t pwrite(int descriptor, const void *from, size_t nbytes, off_t offset) {
    WRITING(pwrite, offset, descriptor, from, nbytes, offset);
}
ssize_t pwrite64(int descriptor, const void *from, size_t nbytes, off64_t offset) {
    WRITING(pwrite64, offset, descriptor, from, nbytes, offset);
}

/* Their callers write by other calls where these are refused. */
ssize_t sendfile64(int out, int in, off64_t *offset, size_t nbytes) {
    REAL(sendfile64);
    char place[PATH_MAX];
    if (opened(out, place)) {
        errno = EINVAL;
        return -1;
    }
    return real(out, in, offset, nbytes);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t nbytes,
                        unsigned flags) {
    REAL(copy_file_range);
    char place[PATH_MAX];
    if (opened(out, place)) {
        errno = EXDEV;
        return -1;
    }
    return real(in, from, out, to, nbytes, flags);
}

#define FLUSHING(name)                                                            \
    REAL(name);                                                                   \
    char place[PATH_MAX];                                                         \
    if (!opened(descriptor, place)) return real(descriptor);                      \
    if (fails(FLUSH, place)) return -1;                                           \
    begin();                                                                      \
    int result = real(descriptor);                                                \
    if (records() && !result)                                                     \
        record(FLUSH, inode_of(descriptor), 0, place, NULL, 0, NULL, 0);          \
    end();                                                                        \
    return result

int fsync(int descriptor) { FLUSHING(fsync); }
int fdatasync(int descriptor) { FLUSHING(fdatasync); }

#define RESIZING(name)                                                                     \
    REAL(name);                                                                            \
    char place[PATH_MAX];                                                                  \
    if (!opened(descriptor, place)) return real(descriptor, nbytes);                       \
    if (fails(RESIZE, place)) return -1;                                                   \
    begin();                                                                               \
    int result = real(descriptor, nbytes);                                                 \
    if (records() && !result)                                                              \
        record(RESIZE, inode_of(descriptor), 0, place, NULL, (uint64_t)nbytes, NULL, 0);   \
    end();                                                                                 \
    return result

int ftruncate(int descriptor, off_t nbytes) { RESIZING(ftruncate); }
int ftruncate64(int descriptor, off64_t nbytes) { RESIZING(ftruncate64); }

/* --- names ------------------------------------------------------------------------------------ */

#define NAMING(name, op, folder, path, ...)                                           \
    REAL(name);                                                                       \
    char place[PATH_MAX];                                                             \
    if (!absolute(folder, path, place)) return real(__VA_ARGS__);                     \
    if (fails(op, place)) return -1;                                                  \
    begin();                                                                          \
    uint64_t before = records() ? inode_at(place) : 0;                                \
    int result = real(__VA_ARGS__);                                                   \
    if (records() && !result)                                                         \
        record(op, before ? before : inode_at(place), 0, place, NULL, 0, NULL, 0);    \
    end();                                                                            \
    return result

int mkdir(const char *path, mode_t mode) { NAMING(mkdir, MKDIR, AT_FDCWD, path, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) {
    NAMING(mkdirat, MKDIR, at, path, at, path, mode);
}
int rmdir(const char *path) { NAMING(rmdir, RMDIR, AT_FDCWD, path, path); }
int unlink(const char *path) { NAMING(unlink, UNLINK, AT_FDCWD, path, path); }
int unlinkat(int at, const char *path, int flags) {
    NAMING(unlinkat, (flags & AT_REMOVEDIR ? RMDIR : UNLINK), at, path, at, path, flags);
}

#define PAIRING(name, op, one, path, two, other, ...)                                     \
    REAL(name);                                                                           \
    char place[PATH_MAX], target[PATH_MAX];                                               \
    int is_counted = absolute(two, other, target);                                        \
    is_counted |= absolute(one, path, place);                                             \
    if (!is_counted) return real(__VA_ARGS__);                                            \
    if (fails(op, place)) return -1;                                                      \
    begin();                                                                              \
    int result = real(__VA_ARGS__);                                                       \
    if (records() && !result) record(op, inode_at(target), 0, place, target, 0, NULL, 0); \
    end();                                                                                \
    return result

int rename(const char *path, const char *other) {
    PAIRING(rename, RENAME, AT_FDCWD, path, AT_FDCWD, other, path, other);
}
int renameat(int one, const char *path, int two, const char *other) {
    PAIRING(renameat, RENAME, one, path, two, other, one, path, two, other);
}
int link(const char *path, const char *other) {
    PAIRING(link, LINK, AT_FDCWD, path, AT_FDCWD, other, path, other);
}
int linkat(int one, const char *path, int two, const char *other, int flags) {
    PAIRING(linkat, LINK, one, path, two, other, one, path, two, other, flags);
}

int symlink(const char *to, const char *path) {
    REAL(symlink);
    char place[PATH_MAX];
    if (absolute(AT_FDCWD, path, place) && fails(LINK, place)) return -1;
    return real(to, path);
}
int symlinkat(const char *to, int at, const char *path) {
    REAL(symlinkat);
    char place[PATH_MAX];
    if (absolute(at, path, place) && fails(LINK, place)) return -1;
    return real(to, at, path);
}

/* --- what is asked about files ------------------------------------------------------------------ */

#define ASKING(name, op, folder, path, ...)                                       \
    REAL(name);                                                                   \
    char place[PATH_MAX];                                                         \
    if (absolute(folder, path, place) && fails(op, place)) return -1;             \
    return real(__VA_ARGS__)

#define ASKING_OPEN(name, op, ...)                                                \
    REAL(name);                                                                   \
    char place[PATH_MAX];                                                         \
    if (opened(descriptor, place) && fails(op, place)) return -1;                 \
    return real(__VA_ARGS__)

int stat64(const char *path, struct stat64 *to) { ASKING(stat64, STAT, AT_FDCWD, path, path, to); }
int lstat64(const char *path, struct stat64 *to) {
    ASKING(lstat64, STAT, AT_FDCWD, path, path, to);
}
int fstatat64(int at, const char *path, struct stat64 *to, int flags) {
    ASKING(fstatat64, STAT, at, path, at, path, to, flags);
}
int fstat64(int descriptor, struct stat64 *to) { ASKING_OPEN(fstat64, STAT, descriptor, to); }
int statvfs64(const char *path, struct statvfs64 *to) {
    ASKING(statvfs64, STAT, AT_FDCWD, path, path, to);
}
int fstatvfs64(int descriptor, struct statvfs64 *to) {
    ASKING_OPEN(fstatvfs64, STAT, descriptor, to);
}
int access(const char *path, int mode) { ASKING(access, STAT, AT_FDCWD, path, path, mode); }
int chmod(const char *path, mode_t mode) { ASKING(chmod, TOUCH, AT_FDCWD, path, path, mode); }
int fchmod(int descriptor, mode_t mode) { ASKING_OPEN(fchmod, TOUCH, descriptor, mode); }
int utimensat(int at, const char *path, const struct timespec times[2], int flags) {
    ASKING(utimensat, TOUCH, at, path, at, path, times, flags);
}
int futimens(int descriptor, const struct timespec times[2]) {
    ASKING_OPEN(futimens, TOUCH, descriptor, times);
}

/* --- allocations of native code ------------------------------------------------------------------ */

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

/* Whether an allocation fails: those of the extensions that were named do. */
static int is_denied(void *caller) {
    if (!is_armed) return 0;
    for (int i = 0; i < num_callers; i++)
        if ((uintptr_t)caller >= callers[i].start && (uintptr_t)caller < callers[i].end)
            return fails(ALLOCATE, "allocation");
    return 0;
}

void *malloc(size_t nbytes) {
    return is_denied(__builtin_return_address(0)) ? NULL : __libc_malloc(nbytes);
}
void *calloc(size_t count, size_t nbytes) {
    return is_denied(__builtin_return_address(0)) ? NULL : __libc_calloc(count, nbytes);
}
void *realloc(void *from, size_t nbytes) {
    return is_denied(__builtin_return_address(0)) ? NULL : __libc_realloc(from, nbytes);
}
void *aligned_alloc(size_t alignment, size_t nbytes) {
    return is_denied(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, nbytes);
}
