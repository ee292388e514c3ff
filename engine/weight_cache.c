/* weight_cache.c - see weight_cache.h.
 *
 * The file: matrices, each from the beginning of a page, then a record for each, then a trailer. It
 * is written as PATH.tmp under a lock, so that of several processes one writes and the others go on
 * without, and what a killed one left is written over. It is not forced to the disk, which would
 * take seconds: a sum in each record says whether the machine has lost some of it since.
 */
#include "engine/weight_cache.h"

#include "engine/util.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC      "quire weights 1"
#define DATA_ALIGN ((size_t)4096)
#define WRITE_MAX  ((size_t)1 << 30) /* bytes; the system writes at most 2 GiB at once */
#define READ_BYTES 65536
#define SUFFIX     ".weights"

struct record {
    uint64_t offset, bytes;
    int32_t n_out, n_in;
    uint64_t sum; /* of the words of the matrix, but for a last unit that is not whole */
};

struct trailer {
    char magic[16];
    uint64_t n_records;
    char records[SHA256_HEX_LEN]; /* hash of them */
};

struct weight_cache {
    struct device *device;
    char *path, *temporary;
    char *map; /* of the complete file; NULL: it is being written, or was given up */
    size_t map_bytes;
    int fd;                /* of the temporary file; -1: none */
    struct record *record; /* borrowed from the map, or being collected */
    size_t n_records, record_capacity;
    size_t next;          /* record that weight_cache_get returns */
    size_t written_bytes; /* of the temporary file                */
};

/* ---- its name ---- */

/* The program that this is: another one may pack otherwise. */
static int add_program(struct sha256 *h)
{
    char buffer[READ_BYTES];
    ssize_t n = -1;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && (n = read(fd, buffer, sizeof(buffer))) > 0)
        sha256_add(h, buffer, (size_t)n);
    int rc = n == 0 ? 0 : err_set(ERR_RESOURCE, "cannot read this program: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
    return rc;
}

/* The caller frees. NULL with an error: unknown. */
static char *cache_path(const char *dir, const struct device *device, const char *fingerprint,
                        const char *version)
{
    char hex[SHA256_HEX_LEN + 1], name[SHA256_HEX_LEN + sizeof(SUFFIX)];
    struct sha256 *h = sha256_open();
    sha256_add_text(h, fingerprint);
    sha256_add_text(h, version);
    sha256_add_text(h, device->info.isa);
    int rc = add_program(h);
    sha256_final(h, hex);
    snprintf(name, sizeof(name), "%.32s" SUFFIX, hex);
    return rc == 0 ? path_join(dir, name) : NULL;
}

/* ---- reading ---- */

static uint32_t matrix_sum(const struct weight_cache *c, const void *data, size_t bytes)
{
    uint32_t sum = 0;
    c->device->ops->sum_words(c->device, &sum, data, bytes / SUM_UNIT * SUM_UNIT);
    return sum;
}

static struct trailer make_trailer(const struct record *record, size_t n_records)
{
    char hex[SHA256_HEX_LEN + 1];
    struct trailer trailer = {.magic = MAGIC, .n_records = n_records};
    sha256_of(record, n_records * sizeof(*record), hex);
    memcpy(trailer.records, hex, sizeof(trailer.records));
    return trailer;
}

static bool record_is_whole(const struct weight_cache *c, const struct record *r, size_t end)
{
    return r->offset % DATA_ALIGN == 0 && r->offset <= end && r->bytes <= end - r->offset &&
           matrix_sum(c, c->map + r->offset, r->bytes) == r->sum;
}

/* Finds the records of a mapped file. false: it is damaged. */
static bool find_records(struct weight_cache *c)
{
    struct trailer found, expected;
    if (c->map_bytes < sizeof(found))
        return false;
    size_t end = c->map_bytes - sizeof(found);
    memcpy(&found, c->map + end, sizeof(found));
    if (found.n_records > end / sizeof(struct record) || end % _Alignof(struct record) != 0)
        return false;
    end -= found.n_records * sizeof(struct record);
    c->n_records = found.n_records;
    c->record = (struct record *)(void *)(c->map + end);
    expected = make_trailer(c->record, c->n_records);
    if (memcmp(&found, &expected, sizeof(found)) != 0)
        return false;
    for (size_t i = 0; i < c->n_records; i++) {
        if (!record_is_whole(c, &c->record[i], end))
            return false;
    }
    return true;
}

static void unmap(struct weight_cache *c)
{
    munmap(c->map, c->map_bytes);
    c->map = NULL;
    c->record = NULL;
    c->n_records = 0;
}

/* false: there is no such file, or it is of no use. */
static bool map_file(struct weight_cache *c)
{
    struct stat st;
    int fd = open(c->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    void *map = MAP_FAILED;
    if (fstat(fd, &st) == 0 && st.st_size > 0)
        map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return false;
    c->map = map;
    c->map_bytes = (size_t)st.st_size;
    if (find_records(c))
        return true;
    log_warning("%s is damaged: writing it anew", c->path);
    unmap(c);
    return false;
}

/* ---- writing ---- */

static void give_up(struct weight_cache *c, const char *what)
{
    log_warning("%s: cannot %s: %s; going on without a cache of weights", c->temporary, what,
                strerror(errno));
    (void)unlink(c->temporary);
    close(c->fd);
    c->fd = -1;
}

/* Locks the temporary file. false: another process writes it, or has just given it its name. */
static bool lock_file(const struct weight_cache *c)
{
    struct stat opened, named;
    return flock(c->fd, LOCK_EX | LOCK_NB) == 0 && fstat(c->fd, &opened) == 0 &&
           stat(c->temporary, &named) == 0 && opened.st_ino == named.st_ino;
}

static bool create_file(struct weight_cache *c)
{
    c->fd = open(c->temporary, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (c->fd < 0) {
        log_warning("%s: cannot open: %s; going on without a cache of weights", c->temporary,
                    strerror(errno));
        return false;
    }
    if (!lock_file(c)) {
        log_debug("%s: another process is writing it", c->temporary);
        close(c->fd);
        c->fd = -1;
        return false;
    }
    if (ftruncate(c->fd, 0) != 0)
        give_up(c, "empty it");
    return c->fd >= 0;
}

static bool append(struct weight_cache *c, const void *data, size_t bytes)
{
    const char *from = data;
    while (bytes > 0) {
        ssize_t n = write(c->fd, from, MIN(bytes, WRITE_MAX));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            give_up(c, "write");
            return false;
        }
        from += n;
        bytes -= (size_t)n;
        c->written_bytes += (size_t)n;
    }
    return true;
}

static bool append_padding(struct weight_cache *c)
{
    static const char zeros[DATA_ALIGN];
    return append(c, zeros, (DATA_ALIGN - c->written_bytes % DATA_ALIGN) % DATA_ALIGN);
}

/* Also one that a killed process did not complete. */
static int is_cache_file(const struct dirent *entry)
{
    return strstr(entry->d_name, SUFFIX) != NULL;
}

/* How many files of weights lie in the folder of `path`, and how large they are together. */
static int sum_folder(const char *path, double *bytes)
{
    char *dir = path_dirname(path);
    struct dirent **entry = NULL;
    int n = scandir(dir, &entry, is_cache_file, NULL);
    *bytes = 0;
    for (int i = 0; i < n; i++) {
        struct stat st;
        char *file = path_join(dir, entry[i]->d_name);
        if (stat(file, &st) == 0)
            *bytes += (double)st.st_size;
        free(file);
        free(entry[i]);
    }
    free(entry);
    free(dir);
    return n;
}

/* Nothing else removes a file of another build or of a model that is gone: so each time that there
 * is one more, the log says how many there are. */
static void log_new_file(const struct weight_cache *c)
{
    char bytes[32], all[32];
    double sum;
    int n = sum_folder(c->path, &sum);
    log_info("The packed weights are in %s (%s): later starts map them", c->path,
             format_bytes(bytes, (double)c->written_bytes));
    if (n > 1)
        log_info(
            "Its folder has %d such files (%s); those of older builds and of models that are gone "
            "or changed are of no use and may be deleted",
            n, format_bytes(all, sum));
}

/* ---- the cache ---- */

struct weight_cache *weight_cache_open(const char *dir, struct device *device,
                                       const char *fingerprint, const char *version)
{
    if (!dir || device->info.kind != DEVICE_CPU)
        return NULL;
    char *path = dir_make(dir) == 0 ? cache_path(dir, device, fingerprint, version) : NULL;
    if (!path) {
        log_warning("%s: %s; going on without a cache of weights", dir, err_get());
        return NULL;
    }
    struct weight_cache *c = xcalloc(1, sizeof(*c));
    *c = (struct weight_cache){
        .device = device, .path = path, .temporary = xasprintf("%s.tmp", path), .fd = -1};
    if (map_file(c) || create_file(c))
        return c;
    weight_cache_close(c);
    return NULL;
}

bool weight_cache_get(struct weight_cache *c, struct weight *w)
{
    if (!c || !c->map)
        return false;
    assert(c->next < c->n_records && c->record[c->next].n_in == w->n_in);
    const struct record *r = &c->record[c->next++];
    w->n_out = r->n_out;
    w->bytes = r->bytes;
    w->data = c->map + r->offset;
    return true;
}

void weight_cache_add(struct weight_cache *c, const struct weight *w)
{
    if (!c || c->fd < 0)
        return;
    array_reserve(&c->record, &c->record_capacity, c->n_records + 1, sizeof(*c->record));
    c->record[c->n_records++] = (struct record){
        .offset = c->written_bytes,
        .bytes = w->bytes,
        .n_out = w->n_out,
        .n_in = w->n_in,
        .sum = matrix_sum(c, w->data, w->bytes),
    };
    if (append(c, w->data, w->bytes))
        (void)append_padding(c);
}

void weight_cache_complete(struct weight_cache *c)
{
    if (!c || c->fd < 0)
        return;
    const struct trailer trailer = make_trailer(c->record, c->n_records);
    if (!append(c, c->record, c->n_records * sizeof(*c->record)) ||
        !append(c, &trailer, sizeof(trailer)))
        return;
    if (rename(c->temporary, c->path) != 0) {
        give_up(c, "rename it");
        return;
    }
    close(c->fd);
    c->fd = -1;
    log_new_file(c);
}

bool weight_cache_owns(const struct weight_cache *c, const struct weight *w)
{
    const char *data = w->data;
    return c && c->map && data >= c->map && data < c->map + c->map_bytes;
}

void weight_cache_close(struct weight_cache *c)
{
    if (!c)
        return;
    if (c->map)
        unmap(c);
    else
        free(c->record);
    if (c->fd >= 0) {
        (void)unlink(c->temporary);
        close(c->fd);
    }
    free(c->path);
    free(c->temporary);
    free(c);
}
