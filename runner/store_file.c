/* store_file.c - see store_file.h.
 *
 * FILE.lock is a file of its own because SQLite's locks on the database are POSIX locks, which a
 * process loses when it closes any descriptor of that file. On a local file system it is removed
 * with the lock; on a network file system, where an old name can be seen for seconds, it stays.
 *
 * A file of one line, "PID HOST TIME JOB RESTARTS", and locks on bytes far behind it:
 *
 *     LOCK_BYTE      + 1            + 2            + 3 ...
 *     | attempt 0    | attempt 1    | attempt 2 of the same job
 *
 * A writer takes all bytes from LOCK_BYTE to infinity and keeps those up to its restart count. A
 * newer attempt of the same job takes all bytes behind those of the older one, so that whoever
 * comes next meets the newer one's lock even after the older one has ended. What keeps the older
 * one from writing is store_fence.c.
 */
#include "runner/store_file.h"
#include "runner/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* The type of every file system as a number, as in QUIRE_TEST_FS_TYPE=0x6969 (NFS), to see what
 * quire does on one that cannot be mounted here. */
#define PRETEND_VARIABLE "QUIRE_TEST_FS_TYPE"

#define HOLDER_MAX_LEN 512 /* "PID HOST TIME JOB RESTARTS"                                     */
#define HOLDER_TRIES   20  /* a new holder writes its name right after it locks                */
#define HOLDER_WAIT_NS 10000000
#define LOCK_TRIES     100   /* each lost one means that another writer just began or ended    */
#define LOCK_BYTE      65536 /* behind the text, which stays readable where locks are mandatory */
#define LOCK_TO_END    0     /* a length: to infinity                                          */
#define MAX_RESTARTS   1000000

struct store_lock {
    int fd;
    int restart_count;
    char *path;                  /* of FILE.lock                              */
    char text[HOLDER_MAX_LEN];   /* that names this writer                    */
    char before[HOLDER_MAX_LEN]; /* that names the older attempt; "" for none */
};

struct holder {
    long pid;
    char host[HOLDER_MAX_LEN], since[HOLDER_MAX_LEN];
    char job[HOLDER_MAX_LEN]; /* "-" outside Slurm */
    int restart_count;
};

/* ---- file systems ---- */

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
    const char *pretended = getenv(PRETEND_VARIABLE);
    if (pretended)
        return store_fs_is_local(strtoll(pretended, NULL, 0));
    return statfs(path, &fs) == 0 && store_fs_is_local(fs.f_type);
}

bool store_same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* ---- the lock file ---- */

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

/* F_WRLCK or F_UNLCK for `length` bytes from `first` on (counted from LOCK_BYTE). */
static int set_lock(int fd, short type, int first, int length)
{
    struct flock lock = {.l_type = type,
                         .l_whence = SEEK_SET,
                         .l_start = LOCK_BYTE + first,
                         .l_len = length,
                         .l_pid = 0};
    return fcntl(fd, F_OFD_SETLK, &lock);
}

static bool is_taken(int error)
{
    return error == EAGAIN || error == EACCES;
}

/* Locks everything from byte `first` on and keeps what is this writer's. */
static int take_lock(const struct store_lock *lock, int first)
{
    if (set_lock(lock->fd, F_WRLCK, first, LOCK_TO_END) != 0)
        return -1;
    return set_lock(lock->fd, F_UNLCK, lock->restart_count + 1, LOCK_TO_END);
}

/* The name of the file is still that of the locked one: its last holder has not removed it between
 * our open and our lock. */
static bool still_named(int fd, const char *path)
{
    struct stat ours, named;
    return fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_dev == named.st_dev &&
           ours.st_ino == named.st_ino;
}

static void read_text(int fd, char text[HOLDER_MAX_LEN])
{
    ssize_t n = pread(fd, text, HOLDER_MAX_LEN - 1, 0);
    text[n > 0 ? n : 0] = '\0';
}

static bool parse_holder(struct holder *h, const char *text)
{
    *h = (struct holder){.job = "-"};
    int n = sscanf(text, "%ld %511s %511s %511s %d", &h->pid, h->host, h->since, h->job,
                   &h->restart_count);
    return n == 5 || n == 3; /* 3: from a quire that knew no jobs */
}

static int write_text(const struct store_lock *lock, const char *text)
{
    ssize_t n = (ssize_t)strlen(text);
    if (ftruncate(lock->fd, 0) != 0 || pwrite(lock->fd, text, (size_t)n, 0) != n)
        return err_set(ERR_RESOURCE, "%s: cannot write: %s", lock->path, strerror(errno));
    return 0;
}

static int write_holder(struct store_lock *lock, const struct store_owner *owner)
{
    char host[256] = "unknown", since[32];
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(since, sizeof(since), "%Y-%m-%dT%H:%M:%SZ", &utc);
    gethostname(host, sizeof(host) - 1);
    snprintf(lock->text, sizeof(lock->text), "%ld %s %s %.64s %d\n", (long)getpid(), host, since,
             owner->job[0] ? owner->job : "-", owner->restart_count);
    return write_text(lock, lock->text);
}

/* ---- taking it ---- */

static int refuse(const struct holder *h, const char *path)
{
    char job[HOLDER_MAX_LEN + 8] = "";
    if (strcmp(h->job, "-") != 0)
        snprintf(job, sizeof(job), " (job %s)", h->job);
    return err_set(ERR_RESOURCE,
                   "%s: process %ld on %s%s has been writing to it since %s; wait for it to end, "
                   "or give this run another results file",
                   path, h->pid, h->host, job, h->since);
}

/* Another writer has the lock. 1: taken over from an older attempt of the owner's job; 0: the
 * holders change just now, so try again; -1: refused. */
static int try_takeover(struct store_lock *lock, const char *path, const struct store_owner *owner)
{
    struct holder h;
    bool known = false;
    for (int i = 0; i < HOLDER_TRIES && !known; i++) {
        read_text(lock->fd, lock->before);
        known = parse_holder(&h, lock->before);
        if (!known)
            nanosleep(&(struct timespec){.tv_nsec = HOLDER_WAIT_NS}, NULL);
    }
    if (!known)
        return err_set(ERR_RESOURCE, "%s: another process is writing to it", path);
    if (!owner->job[0] || strcmp(h.job, owner->job) != 0 || h.restart_count == owner->restart_count)
        return refuse(&h, path);
    if (h.restart_count > owner->restart_count)
        return err_set(ERR_STOPPED,
                       "job %s was requeued: attempt %d of it writes to %s now; this one, attempt "
                       "%d, stops",
                       h.job, h.restart_count, path, owner->restart_count);
    if (take_lock(lock, h.restart_count + 1) == 0) {
        log_warning("%s: process %ld on %s, attempt %d of this job, has not ended; attempt %d "
                    "writes from now on",
                    path, h.pid, h.host, h.restart_count, owner->restart_count);
        return 1;
    }
    nanosleep(&(struct timespec){.tv_nsec = HOLDER_WAIT_NS}, NULL);
    return 0;
}

static int cannot_lock(const char *path, const char *why)
{
    return err_set(ERR_RESOURCE,
                   "%s: cannot be locked: %s; results need a file system with file locks (mount "
                   "Lustre with -o flock, NFS without nolock), so give another results file",
                   path, why);
}

/* Where locks are granted to everybody, two writers would destroy the database. */
static int check_exclusive(const struct store_lock *lock)
{
    int fd = open(lock->path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return err_set(ERR_RESOURCE, "%s: cannot be opened: %s", lock->path, strerror(errno));
    bool granted = set_lock(fd, F_WRLCK, 0, LOCK_TO_END) == 0;
    close(fd);
    return granted ? cannot_lock(lock->path, "its file system grants one lock twice") : 0;
}

/* Opens and locks the file. 1: done; 0: it was removed meanwhile, so try again; -1: error. */
static int try_lock(struct store_lock *lock, const char *path, const struct store_owner *owner)
{
    lock->before[0] = '\0';
    lock->fd = open(lock->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock->fd < 0)
        return err_set(ERR_RESOURCE, "%s: cannot be created: %s", lock->path, strerror(errno));
    int rc;
    if (take_lock(lock, 0) == 0)
        rc = 1;
    else if (is_taken(errno))
        rc = try_takeover(lock, path, owner);
    else
        rc = cannot_lock(lock->path, strerror(errno));
    if (rc == 1 && !still_named(lock->fd, lock->path))
        rc = 0;
    if (rc == 1)
        return check_exclusive(lock) == 0 ? 1 : -1;
    close(lock->fd);
    lock->fd = -1;
    return rc;
}

int store_lock_open(struct store_lock **out, const char *path, const struct store_owner *owner)
{
    struct store_lock *lock = xcalloc(1, sizeof(*lock));
    lock->fd = -1;
    lock->restart_count = MAX(0, MIN(owner->restart_count, MAX_RESTARTS));
    lock->path = lock_path(path);
    int rc = 0;
    for (int i = 0; i < LOCK_TRIES && rc == 0; i++)
        rc = try_lock(lock, path, owner);
    if (rc == 0)
        err_set(ERR_RESOURCE, "%s: its lock is taken and given back without end", path);
    if (rc != 1 || write_holder(lock, owner) != 0) {
        store_lock_close(lock);
        return -1;
    }
    *out = lock;
    return 0;
}

bool store_lock_is_asked_for(const struct store_lock *lock)
{
    char text[HOLDER_MAX_LEN];
    read_text(lock->fd, text);
    return strcmp(text, lock->text) != 0;
}

/* ---- giving it back ---- */

/* Somebody else has a lock, too. The newer of two attempts leaves the file to the older one, whose
 * name it had replaced. */
static int leave(const struct store_lock *lock)
{
    char text[HOLDER_MAX_LEN];
    read_text(lock->fd, text);
    if (!lock->before[0] || strcmp(text, lock->text) != 0)
        return 0;
    return write_text(lock, lock->before);
}

void store_lock_close(struct store_lock *lock)
{
    if (!lock)
        return;
    if (lock->fd >= 0) {
        int rc;
        if (set_lock(lock->fd, F_WRLCK, 0, LOCK_TO_END) != 0)
            rc = leave(lock);
        else
            rc = store_path_is_local(lock->path) ? unlink(lock->path) : ftruncate(lock->fd, 0);
        if (rc != 0)
            log_debug("%s: cannot be cleared: %s", lock->path, strerror(errno));
        close(lock->fd);
    }
    free(lock->path);
    free(lock);
}
