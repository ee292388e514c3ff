/* store_file.c - see store_file.h.
 *
 * FILE.lock is a file of its own because SQLite's locks on the database are POSIX locks, which a
 * process loses when it closes any descriptor of that file. On a local file system it is removed
 * with the lock; on a network file system, where an old name can be seen for seconds, it stays.
 */
#include "runner/store_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define HOLDER_MAX_LEN 320 /* "PID HOST TIME"                                     */
#define HOLDER_TRIES   20  /* a new holder writes its name right after it locks   */
#define HOLDER_WAIT_NS 10000000
#define LOCK_TRIES     100   /* each lost one means that another writer just ended  */
#define LOCK_BYTE      65536 /* behind the text, which stays readable where locks are mandatory */

struct store_lock {
    int fd;
    char *path; /* of FILE.lock */
};

/* An unknown file system may belong to a cluster. A rollback journal is right there and costs
 * little, so only file systems known to live on one machine get a write-ahead log. ramfs is left
 * out although it is local: it is the one that a test can mount to see the other branch.
 * Source: linux/magic.h and statfs(2). */
bool store_fs_is_local(int64_t f_type)
{
    static const uint32_t local[] = {
        0xEF53,     /* ext2, ext3, ext4 */
        0x58465342, /* xfs              */
        0x9123683E, /* btrfs            */
        0x2FC12FC1, /* zfs              */
        0xF2F52010, /* f2fs             */
        0xCA451A4E, /* bcachefs         */
        0x3153464A, /* jfs              */
        0x52654973, /* reiserfs         */
        0x01021994, /* tmpfs            */
        0x794C7630, /* overlayfs        */
    };
    for (size_t i = 0; i < ARRAY_LEN(local); i++)
        if ((uint32_t)f_type == local[i]) /* f_type is a signed 32-bit word on some machines */
            return true;
    return false;
}

bool store_path_is_local(const char *path)
{
    struct statfs fs;
    return statfs(path, &fs) == 0 && store_fs_is_local(fs.f_type);
}

/* The database's own path with ".lock" after it: the same for every name that leads to it. */
static char *lock_path(const char *path)
{
    char *folder = path_dirname(path);
    const char *slash = strrchr(path, '/');
    char *real = realpath(path, NULL);
    char *real_folder = realpath(folder, NULL);
    char *joined = path_join(real_folder ? real_folder : folder, slash ? slash + 1 : path);
    char *result = xasprintf("%s.lock", real ? real : joined);
    free(joined);
    free(real_folder);
    free(real);
    free(folder);
    return result;
}

static int set_lock(int fd)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_BYTE, .l_len = 1, .l_pid = 0};
    return fcntl(fd, F_OFD_SETLK, &lock);
}

/* The name of the file is still that of the locked one: its last holder has not removed it between
 * our open and our lock. */
static bool still_named(int fd, const char *path)
{
    struct stat ours, named;
    return fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_dev == named.st_dev &&
           ours.st_ino == named.st_ino;
}

static int refuse(int fd, const char *path)
{
    char holder[HOLDER_MAX_LEN] = "", host[HOLDER_MAX_LEN], since[HOLDER_MAX_LEN];
    long pid = 0;
    int n_found = 0;
    for (int i = 0; i < HOLDER_TRIES && n_found != 3; i++) {
        ssize_t n = pread(fd, holder, sizeof(holder) - 1, 0);
        holder[n > 0 ? n : 0] = '\0';
        n_found = sscanf(holder, "%ld %319s %319s", &pid, host, since);
        if (n_found != 3)
            nanosleep(&(struct timespec){.tv_nsec = HOLDER_WAIT_NS}, NULL);
    }
    if (n_found != 3)
        return err_set(ERR_RESOURCE, "%s: another process is writing to it", path);
    return err_set(ERR_RESOURCE,
                   "%s: process %ld on %s has been writing to it since %s; wait for it to end, or "
                   "give this run another results file",
                   path, pid, host, since);
}

static int write_holder(const struct store_lock *lock)
{
    char text[HOLDER_MAX_LEN], host[256] = "unknown", since[32];
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(since, sizeof(since), "%Y-%m-%dT%H:%M:%SZ", &utc);
    gethostname(host, sizeof(host) - 1);
    int n = snprintf(text, sizeof(text), "%ld %s %s\n", (long)getpid(), host, since);
    if (ftruncate(lock->fd, 0) != 0 || pwrite(lock->fd, text, (size_t)n, 0) != n)
        return err_set(ERR_RESOURCE, "%s: cannot write: %s", lock->path, strerror(errno));
    return 0;
}

/* Opens and locks the file. 1: done; 0: it was removed meanwhile, so try again; -1: error. */
static int try_lock(struct store_lock *lock, const char *path)
{
    lock->fd = open(lock->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock->fd < 0)
        return err_set(ERR_RESOURCE, "%s: cannot be created: %s", lock->path, strerror(errno));
    int rc = 0;
    if (set_lock(lock->fd) == 0) {
        if (still_named(lock->fd, lock->path))
            return 1;
    } else if (errno == EAGAIN || errno == EACCES) {
        rc = refuse(lock->fd, path);
    } else {
        rc = err_set(ERR_RESOURCE,
                     "%s: cannot be locked: %s; put the results on a file system with file locks",
                     lock->path, strerror(errno));
    }
    close(lock->fd);
    lock->fd = -1;
    return rc;
}

int store_lock_open(struct store_lock **out, const char *path)
{
    struct store_lock *lock = xcalloc(1, sizeof(*lock));
    lock->fd = -1;
    lock->path = lock_path(path);
    int rc = 0;
    for (int i = 0; i < LOCK_TRIES && rc == 0; i++)
        rc = try_lock(lock, path);
    if (rc == 0)
        err_set(ERR_RESOURCE, "%s: its lock is taken and given back without end", path);
    if (rc != 1 || write_holder(lock) != 0) {
        store_lock_close(lock);
        return -1;
    }
    *out = lock;
    return 0;
}

void store_lock_close(struct store_lock *lock)
{
    if (!lock)
        return;
    if (lock->fd >= 0) {
        int rc = store_path_is_local(lock->path) ? unlink(lock->path) : ftruncate(lock->fd, 0);
        if (rc != 0)
            log_debug("%s: cannot be cleared: %s", lock->path, strerror(errno));
        close(lock->fd);
    }
    free(lock->path);
    free(lock);
}
