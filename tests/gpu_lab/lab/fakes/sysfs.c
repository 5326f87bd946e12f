/* Shows ONNX Runtime the GPUs of the machine where Linux lists graphics cards: paths below
   /sys/class/drm lead to the folder GPU_LAB_DRM. It is preloaded, before the C library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char CARDS[] = "/sys/class/drm";

static const char *moved(const char *path) {
    static __thread char elsewhere[PATH_MAX];
    const char *folder = getenv("GPU_LAB_DRM");
    if (!folder || !path || strncmp(path, CARDS, sizeof CARDS - 1)) return path;
    snprintf(elsewhere, sizeof elsewhere, "%s%s", folder, path + sizeof CARDS - 1);
    return elsewhere;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Only a file that may be created has a mode. */
#define MODE(flags, mode)                                                 \
    va_list more;                                                         \
    va_start(more, flags);                                                \
    int mode = (flags) & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;   \
    va_end(more)

int open(const char *path, int flags, ...) {
    MODE(flags, mode);
    return REAL(open)(moved(path), flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    MODE(flags, mode);
    return REAL(openat)(folder, moved(path), flags, mode);
}

FILE *fopen64(const char *path, const char *mode) { return REAL(fopen64)(moved(path), mode); }

ssize_t readlink(const char *path, char *to, size_t room) {
    ssize_t (*real)(const char *, char *, size_t) = dlsym(RTLD_NEXT, "readlink");
    return real(moved(path), to, room);
}

char *realpath(const char *path, char *to) {
    char *(*real)(const char *, char *) = dlsym(RTLD_NEXT, "realpath");
    return real(moved(path), to);
}

int stat(const char *path, struct stat *to) { return REAL(stat)(moved(path), to); }

int lstat(const char *path, struct stat *to) { return REAL(lstat)(moved(path), to); }

/* What programs call that were linked with a C library older than 2.33. */
int __xstat(int version, const char *path, struct stat *to) {
    return REAL(__xstat)(version, moved(path), to);
}

int __lxstat(int version, const char *path, struct stat *to) {
    return REAL(__lxstat)(version, moved(path), to);
}
