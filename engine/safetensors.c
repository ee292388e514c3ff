/* safetensors.c - see safetensors.h.
 *
 * Files come from strangers: nothing of a header is believed before it has been compared with the
 * size of the file. The format allows no gap and no overlap: the tensors of a file, in the order of
 * their offsets, cover its data exactly, which also shows a file that was cut short.
 */
#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SINGLE_FILE "model.safetensors"
#define INDEX_FILE  "model.safetensors.index.json"

#define MAX_SHOWN_NAME 200 /* bytes of a tensor's name in a message */

#define SAMPLE_BYTES       64 /* of a tensor, in a fingerprint, at each of: */
#define SAMPLES_PER_TENSOR 3  /* its beginning, middle and end             */

/* What the format can store. dtype is DTYPE_N for what the engine does not use. */
struct encoding {
    const char *name;
    size_t bytes;
    enum dtype dtype;
};

static const struct encoding encodings[] = {
    {"F32", 4, DTYPE_F32},   {"BF16", 2, DTYPE_BF16}, {"F16", 2, DTYPE_F16},
    {"F64", 8, DTYPE_N},     {"I64", 8, DTYPE_N},     {"U64", 8, DTYPE_N},
    {"I32", 4, DTYPE_N},     {"U32", 4, DTYPE_N},     {"I16", 2, DTYPE_N},
    {"U16", 2, DTYPE_N},     {"I8", 1, DTYPE_N},      {"U8", 1, DTYPE_N},
    {"BOOL", 1, DTYPE_N},    {"C64", 8, DTYPE_N},     {"F8_E4M3", 1, DTYPE_N},
    {"F8_E5M2", 1, DTYPE_N}, {"F8_E8M0", 1, DTYPE_N},
};

struct entry {
    struct tensor tensor;
    char *name;
    const struct encoding *encoding;
    size_t begin, end; /* in the data of its file */
};

struct shard {
    char *path;
    void *map; /* the whole file */
    size_t map_bytes;
    const uint8_t *data; /* what follows the header */
    size_t data_bytes;
    struct timespec changed; /* last */
};

struct safetensors {
    char *dir;
    struct shard *shard; /* [n_shards] */
    size_t n_shards;
    struct entry *entry; /* [n_entries], by name once all files are read */
    size_t n_entries, capacity;
};

/* ---- one tensor ---- */

static int bad_tensor(const struct shard *shard, const char *name, const char *what)
{
    return err_set(ERR_DATA, "%s: tensor %.*s: %s", shard->path, MAX_SHOWN_NAME, name, what);
}

static const struct encoding *find_encoding(const char *name)
{
    for (size_t i = 0; name && i < ARRAY_LEN(encodings); i++) {
        if (strcmp(encodings[i].name, name) == 0)
            return &encodings[i];
    }
    return NULL;
}

/* A size from a file: a whole number of at least 0. */
static bool read_size(size_t *out, const json_t *value)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (size_t)json_integer_value(value);
    return true;
}

/* Fills in the shape; *bytes becomes what a tensor of this shape takes. */
static int read_shape(struct entry *e, size_t *bytes, const struct shard *shard, const char *name,
                      const json_t *shape)
{
    struct tensor *t = &e->tensor;
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_MAX_DIMS)
        return bad_tensor(shard, name, "shape is not a list of at most 8 sizes");
    t->n_dims = (int)json_array_size(shape);
    *bytes = e->encoding->bytes;
    for (int i = 0; i < t->n_dims; i++) {
        if (!read_size(&t->dim[i], json_array_get(shape, (size_t)i)))
            return bad_tensor(shard, name, "shape has a size that is not a whole number");
        if (!size_mul(bytes, *bytes, t->dim[i]))
            return bad_tensor(shard, name, "shape is larger than any memory");
    }
    return 0;
}

static int read_offsets(struct entry *e, const struct shard *shard, const char *name,
                        const json_t *offsets)
{
    if (json_array_size(offsets) != 2 || !read_size(&e->begin, json_array_get(offsets, 0)) ||
        !read_size(&e->end, json_array_get(offsets, 1)))
        return bad_tensor(shard, name, "data_offsets is not a list of two positions");
    if (e->begin > e->end || e->end > shard->data_bytes)
        return err_set(ERR_DATA,
                       "%s: tensor %.*s: data_offsets [%zu, %zu] are not within the %zu bytes of "
                       "data; the file may be cut short",
                       shard->path, MAX_SHOWN_NAME, name, e->begin, e->end, shard->data_bytes);
    return 0;
}

static int read_tensor(struct safetensors *s, const struct shard *shard, const char *name,
                       const json_t *value)
{
    const char *dtype = json_string_value(json_object_get(value, "dtype"));
    struct entry e = {.encoding = find_encoding(dtype)};
    if (!e.encoding)
        return err_set(ERR_DATA, "%s: tensor %.*s: unknown dtype %.20s", shard->path,
                       MAX_SHOWN_NAME, name, dtype ? dtype : "(none)");
    size_t bytes;
    if (read_shape(&e, &bytes, shard, name, json_object_get(value, "shape")) != 0 ||
        read_offsets(&e, shard, name, json_object_get(value, "data_offsets")) != 0)
        return -1;
    if (e.end - e.begin != bytes)
        return err_set(ERR_DATA,
                       "%s: tensor %.*s: data_offsets [%zu, %zu] hold %zu bytes, but its shape and "
                       "dtype take %zu",
                       shard->path, MAX_SHOWN_NAME, name, e.begin, e.end, e.end - e.begin, bytes);
    e.tensor.dtype = e.encoding->dtype;
    e.tensor.data = shard->data + e.begin;
    e.tensor.file = shard->path;
    e.tensor.name = e.name = xstrdup(name);
    array_reserve(&s->entry, &s->capacity, s->n_entries + 1, sizeof(e));
    s->entry[s->n_entries++] = e;
    return 0;
}

/* ---- one file ---- */

static int by_offset(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* The n tensors of one file cover its data exactly. Changes their order. */
static int check_coverage(struct entry *entry, size_t n, const struct shard *shard)
{
    if (n > 0)
        qsort(entry, n, sizeof(*entry), by_offset);
    size_t covered = 0;
    for (size_t i = 0; i < n; i++) {
        const struct entry *e = &entry[i];
        if (e->begin != covered)
            return err_set(ERR_DATA,
                           "%s: tensor %.*s: data_offsets [%zu, %zu] %s the tensor before it, "
                           "which ends at %zu",
                           shard->path, MAX_SHOWN_NAME, e->tensor.name, e->begin, e->end,
                           e->begin < covered ? "overlap" : "leave a gap after", covered);
        covered = e->end;
    }
    if (covered != shard->data_bytes)
        return err_set(ERR_DATA, "%s: the tensors end at byte %zu of %zu bytes of data",
                       shard->path, covered, shard->data_bytes);
    return 0;
}

static int read_header(struct safetensors *s, const struct shard *shard, json_t *header)
{
    size_t first = s->n_entries;
    const char *name;
    json_t *value;
    json_object_foreach(header, name, value)
    {
        if (strcmp(name, "__metadata__") != 0 && read_tensor(s, shard, name, value) != 0)
            return -1;
    }
    return check_coverage(s->entry + first, s->n_entries - first, shard);
}

/* Maps the file and finds where its header ends and its data begins. */
static int map_file(struct shard *shard, int fd, size_t *header_bytes)
{
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return err_set(ERR_DATA, "%s: not a file", shard->path);
    shard->map_bytes = (size_t)st.st_size;
    shard->changed = st.st_mtim;
    uint8_t length[8];
    if (shard->map_bytes < sizeof(length))
        return err_set(ERR_DATA, "%s: %zu bytes are too short for a safetensors file", shard->path,
                       shard->map_bytes);
    shard->map = mmap(NULL, shard->map_bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (shard->map == MAP_FAILED) {
        shard->map = NULL;
        return err_set(ERR_RESOURCE, "%s: cannot map: %s", shard->path, strerror(errno));
    }
    /* Weights are read once, front to back: let the kernel read far ahead. */
    madvise(shard->map, shard->map_bytes, MADV_SEQUENTIAL);

    memcpy(length, shard->map, sizeof(length));
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | length[i];
    size_t most = MIN(SAFETENSORS_MAX_HEADER, shard->map_bytes - sizeof(length));
    if (n > most)
        return err_set(ERR_DATA, "%s: the header says that it is %llu bytes long; at most %zu fit",
                       shard->path, (unsigned long long)n, most);
    *header_bytes = (size_t)n;
    shard->data = (const uint8_t *)shard->map + sizeof(length) + n;
    shard->data_bytes = shard->map_bytes - sizeof(length) - (size_t)n;
    return 0;
}

/* Adds the file and its tensors. Takes over path. */
static int open_file(struct safetensors *s, char *path)
{
    struct shard *shard = &s->shard[s->n_shards++];
    shard->path = path;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(ERR_DATA, "%s: cannot open: %s", path, strerror(errno));
    size_t header_bytes = 0;
    int rc = map_file(shard, fd, &header_bytes);
    close(fd);
    if (rc != 0)
        return -1;

    json_error_t error;
    json_t *header =
        json_loadb((const char *)shard->map + 8, header_bytes, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(header)) {
        json_decref(header);
        return err_set(ERR_DATA, "%s: the header is not a JSON object: %.300s", path,
                       header ? "it is another value" : error.text);
    }
    rc = read_header(s, shard, header);
    json_decref(header);
    return rc;
}

/* ---- the directory ---- */

static int compare_names(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return strcmp(x->tensor.name, y->tensor.name);
}

static const struct entry *find_entry(const struct safetensors *s, const char *name)
{
    const struct entry key = {.tensor.name = name};
    if (s->n_entries == 0)
        return NULL;
    return bsearch(&key, s->entry, s->n_entries, sizeof(key), compare_names);
}

static int sort_names(struct safetensors *s)
{
    if (s->n_entries > 0)
        qsort(s->entry, s->n_entries, sizeof(*s->entry), compare_names);
    for (size_t i = 1; i < s->n_entries; i++) {
        const struct tensor *a = &s->entry[i - 1].tensor, *b = &s->entry[i].tensor;
        if (strcmp(a->name, b->name) == 0)
            return err_set(ERR_DATA, "%s: tensor %.*s: it is also in %s", b->file, MAX_SHOWN_NAME,
                           b->name, a->file);
    }
    return 0;
}

static bool has_file(const struct safetensors *s, const char *path)
{
    for (size_t i = 0; i < s->n_shards; i++) {
        if (strcmp(s->shard[i].path, path) == 0)
            return true;
    }
    return false;
}

/* A shard is a plain name: an index cannot lead out of its own directory. */
static int check_shard_name(const char *index, const char *tensor, const json_t *value)
{
    const char *file = json_string_value(value);
    if (!file || file[0] == '\0' || strchr(file, '/'))
        return err_set(ERR_DATA, "%s: tensor %.*s: '%.100s' is not the name of a file", index,
                       MAX_SHOWN_NAME, tensor, file ? file : "");
    return 0;
}

static int open_shards(struct safetensors *s, const char *index, json_t *map)
{
    s->shard = xcalloc(SAFETENSORS_MAX_FILES, sizeof(*s->shard));
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        if (check_shard_name(index, name, value) != 0)
            return -1;
        char *path = path_join(s->dir, json_string_value(value));
        if (has_file(s, path)) {
            free(path);
        } else if (s->n_shards == SAFETENSORS_MAX_FILES) {
            free(path);
            return err_set(ERR_DATA, "%s: names more than %d files", index, SAFETENSORS_MAX_FILES);
        } else if (open_file(s, path) != 0) {
            return err_prefix("%s: tensor %.*s", index, MAX_SHOWN_NAME, name);
        }
    }
    return sort_names(s);
}

/* Every tensor that the index names is in the file that it names. */
static int check_index(const struct safetensors *s, const char *index, json_t *map)
{
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        const struct entry *e = find_entry(s, name);
        if (!e)
            return err_set(ERR_DATA, "%s: tensor %.*s: it is not in %s", index, MAX_SHOWN_NAME,
                           name, json_string_value(value));
        char *path = path_join(s->dir, json_string_value(value));
        bool same = strcmp(path, e->tensor.file) == 0;
        free(path);
        if (!same)
            return err_set(ERR_DATA, "%s: tensor %.*s: it is in %s, not in %s", index,
                           MAX_SHOWN_NAME, name, e->tensor.file, json_string_value(value));
    }
    return 0;
}

static int open_index(struct safetensors *s, const char *index)
{
    json_t *root = json_read_file(index);
    if (!root)
        return -1;
    json_t *map = json_object_get(root, "weight_map");
    int rc = -1;
    if (json_object_size(map) == 0)
        err_set(ERR_DATA, "%s: weight_map is missing or empty", index);
    else if (open_shards(s, index, map) == 0)
        rc = check_index(s, index, map);
    json_decref(root);
    return rc;
}

static int open_dir(struct safetensors *s)
{
    char *single = path_join(s->dir, SINGLE_FILE);
    if (file_exists(single)) {
        s->shard = xcalloc(1, sizeof(*s->shard));
        return open_file(s, single) == 0 ? sort_names(s) : -1;
    }
    free(single);
    char *index = path_join(s->dir, INDEX_FILE);
    int rc = file_exists(index) ? open_index(s, index)
                                : err_set(ERR_DATA, "%s: there is neither %s nor %s", s->dir,
                                          SINGLE_FILE, INDEX_FILE);
    free(index);
    return rc;
}

int safetensors_open(struct safetensors **out, const char *dir)
{
    struct safetensors *s = xcalloc(1, sizeof(*s));
    s->dir = xstrdup(dir);
    if (open_dir(s) != 0) {
        safetensors_close(s);
        return -1;
    }
    *out = s;
    return 0;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_shards; i++) {
        if (s->shard[i].map)
            munmap(s->shard[i].map, s->shard[i].map_bytes);
        free(s->shard[i].path);
    }
    for (size_t i = 0; i < s->n_entries; i++)
        free(s->entry[i].name);
    free(s->entry);
    free(s->shard);
    free(s->dir);
    free(s);
}

/* ---- looking tensors up ---- */

const struct tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    const struct entry *e = find_entry(s, name);
    return e && e->tensor.dtype != DTYPE_N ? &e->tensor : NULL;
}

static void append_shape(struct str *out, int n_dims, const size_t *dim)
{
    str_append_c(out, "[");
    for (int i = 0; i < n_dims; i++)
        str_appendf(out, "%s%zu", i > 0 ? ", " : "", dim[i]);
    str_append_c(out, "]");
}

static void missing_tensor(const struct safetensors *s, const char *name, const char *shape)
{
    const char **names = xcalloc(s->n_entries, sizeof(*names));
    for (size_t i = 0; i < s->n_entries; i++)
        names[i] = s->entry[i].tensor.name;
    const char *nearest = nearest_name(name, names, s->n_entries);
    err_set(ERR_DATA, "%s: tensor %s of shape %s is missing%s%s", s->dir, name, shape,
            nearest ? "; the nearest name: " : "", nearest ? nearest : "");
    free(names);
}

const struct tensor *safetensors_get(const struct safetensors *s, const char *name, int n_dims,
                                     const size_t *dim)
{
    const struct entry *e = find_entry(s, name);
    const struct tensor *t = e ? &e->tensor : NULL;
    if (t && t->dtype != DTYPE_N && t->n_dims == n_dims &&
        memcmp(t->dim, dim, (size_t)n_dims * sizeof(*dim)) == 0)
        return t;

    struct str expected = {0}, actual = {0};
    append_shape(&expected, n_dims, dim);
    if (!t) {
        missing_tensor(s, name, expected.data);
    } else {
        append_shape(&actual, t->n_dims, t->dim);
        err_set(ERR_DATA, "%s: tensor %s is %s of shape %s; expected F32, BF16 or F16 of shape %s",
                t->file, name, e->encoding->name, actual.data, expected.data);
    }
    str_free(&expected);
    str_free(&actual);
    return NULL;
}

void safetensors_release(const struct safetensors *s, const struct tensor *t)
{
    const struct entry *e = find_entry(s, t->name);
    const struct shard *shard = s->shard;
    while (shard->path != e->tensor.file)
        shard++;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), header = shard->map_bytes - shard->data_bytes;
    size_t begin = (header + e->begin) / page * page;
    (void)madvise((char *)shard->map + begin, header + e->end - begin, MADV_DONTNEED);
}

/* ---- fingerprint ---- */

static void add_samples(struct sha256 *h, const struct entry *e)
{
    size_t bytes = e->end - e->begin, n = MIN(bytes, (size_t)SAMPLE_BYTES);
    for (size_t i = 0; i < SAMPLES_PER_TENSOR; i++) {
        size_t offset = (bytes - n) / (SAMPLES_PER_TENSOR - 1) * i;
        sha256_add(h, (const uint8_t *)e->tensor.data + offset, n);
    }
}

void safetensors_fingerprint(const struct safetensors *s, char hex[SHA256_HEX_LEN + 1])
{
    struct sha256 *h = sha256_open();
    struct str line = {0};
    size_t file_bytes = 0;
    for (size_t i = 0; i < s->n_shards; i++)
        file_bytes += s->shard[i].map_bytes;
    str_appendf(&line, "%zu files, %zu bytes", s->n_shards, file_bytes);
    sha256_add_text(h, line.data);
    for (size_t i = 0; i < s->n_entries; i++) {
        const struct entry *e = &s->entry[i];
        str_clear(&line);
        str_appendf(&line, "%s ", e->encoding->name);
        append_shape(&line, e->tensor.n_dims, e->tensor.dim);
        sha256_add_text(h, e->tensor.name);
        sha256_add_text(h, line.data);
        add_samples(h, e);
    }
    str_free(&line);
    sha256_final(h, hex);
}

void safetensors_version(const struct safetensors *s, char hex[SHA256_HEX_LEN + 1])
{
    struct sha256 *h = sha256_open();
    struct str line = {0};
    for (size_t i = 0; i < s->n_shards; i++) {
        const struct shard *shard = &s->shard[i];
        str_clear(&line);
        str_appendf(&line, "%zu bytes, changed %lld.%09ld", shard->map_bytes,
                    (long long)shard->changed.tv_sec, shard->changed.tv_nsec);
        sha256_add_text(h, line.data);
    }
    str_free(&line);
    sha256_final(h, hex);
}
