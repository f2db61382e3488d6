/* Makes writes to regular files fail with EIO while the file named by TIDEGATE_CRASH_FAULT is there. Its first letter says how:
 * w: write fails; s: fsync fails; t: a write stores its first half and says so, the next one fails. Loaded by LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char way(int fd)
{
    static const char *path;
    struct stat about;
    char letter = 0;
    int saved = errno, file;

    if (!path && !(path = getenv("TIDEGATE_CRASH_FAULT")))
        return 0;
    /* 0 to 2 are the log; sockets and pipes are not the disk. */
    if (fd < 3 || access(path, F_OK) || fstat(fd, &about) || !S_ISREG(about.st_mode)) {
        errno = saved;
        return 0;
    }
    file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (syscall(SYS_read, file, &letter, 1) != 1)
            letter = 0;
        syscall(SYS_close, file);
    }
    errno = saved;
    return letter;
}

static int fails(int fd, size_t *size)
{
    static __thread int torn;
    char how = way(fd);

    if (how == 't' && !torn && size && *size > 1) {
        torn = 1;
        *size /= 2;
        return 0;
    }
    if (how == 'w' || how == 't') {
        torn = 0;
        errno = EIO;
        return 1;
    }
    return 0;
}

ssize_t write(int fd, const void *bytes, size_t size)
{
    return fails(fd, &size) ? -1 : syscall(SYS_write, fd, bytes, size);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off_t at)
{
    return fails(fd, &size) ? -1 : syscall(SYS_pwrite64, fd, bytes, size, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at)
{
    return pwrite64(fd, bytes, size, at);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    size_t first = count > 0 ? pieces[0].iov_len : 0;

    if (fails(fd, &first))
        return -1;
    if (count > 0 && first != pieces[0].iov_len)
        return syscall(SYS_write, fd, pieces[0].iov_base, first);
    return syscall(SYS_writev, fd, pieces, count);
}

int fsync(int fd)
{
    if (way(fd) != 's')
        return (int)syscall(SYS_fsync, fd);
    errno = EIO;
    return -1;
}

int fdatasync(int fd)
{
    if (way(fd) != 's')
        return (int)syscall(SYS_fdatasync, fd);
    errno = EIO;
    return -1;
}
