/* Loaded before libc (LD_PRELOAD): the n-th write to a file is cut in half, and then the process is
   killed, or the rest fails with an error, once or from then on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NEVER, HALF, FAIL };
static long left = -1; /* writes before the one that fails */
static int error;      /* 0 kills */
static int state = NEVER;
static char *reached;

void fail_write_at(long number, int with, char *flag) {
    left = number, error = with, reached = flag, state = NEVER;
}

static int next(int handle) {
    struct stat found;
    if ((left < 0 && state == NEVER) || fstat(handle, &found) || !S_ISREG(found.st_mode))
        return NEVER;
    if (state == NEVER && left-- == 0) {
        *reached = 1;
        return state = HALF;
    }
    if (state == NEVER)
        return NEVER;
    if (error == 0)
        kill(getpid(), SIGKILL);
    errno = error;
    if (error == EIO)
        state = NEVER, left = -1; /* once */
    return FAIL;
}

/* Half of what is asked for; the caller's next call gets the error. One byte fails at once. */
#define WRITES(result, name, parameters, handle, size, whole, half)                     \
    result name parameters {                                                             \
        static result (*real) parameters;                                                \
        if (!real)                                                                       \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                   \
        int how = next(handle);                                                          \
        if (how == HALF && (size) < 2)                                                   \
            how = next(handle);                                                          \
        return how == FAIL ? -1 : how == HALF ? real half : real whole;                  \
    }

WRITES(ssize_t, write, (int to, const void *data, size_t n), to, n, (to, data, n), (to, data, n / 2))
WRITES(ssize_t, pwrite64, (int to, const void *data, size_t n, off64_t at), to, n, (to, data, n, at),
       (to, data, n / 2, at))
WRITES(ssize_t, writev, (int to, const struct iovec *parts, int n), to, n, (to, parts, n),
       (to, parts, n / 2))
WRITES(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t n), to, n, (to, from, at, n),
       (to, from, at, n / 2))
WRITES(ssize_t, sendfile, (int to, int from, off_t *at, size_t n), to, n, (to, from, at, n),
       (to, from, at, n / 2))
WRITES(ssize_t, copy_file_range, (int from, off64_t *in, int to, off64_t *out, size_t n, unsigned flags),
       to, n, (from, in, to, out, n, flags), (from, in, to, out, n / 2, flags))
