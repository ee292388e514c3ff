/* util.c - see util.h. */
#include "engine/util.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NEAREST_MAX_LEN 64 /* longer words are not compared */

static _Thread_local struct {
    enum err_kind kind;
    char text[ERR_MAX_LEN];
} last_error;

static enum log_level log_level = LOG_INFO;
static log_hook current_log_hook;
static char log_prefix[64];

/* ---- errors ---- */

int err_set(enum err_kind kind, const char *format, ...)
{
    char text[ERR_MAX_LEN]; /* The arguments may point into the old message. */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    memcpy(last_error.text, text, sizeof(text));
    last_error.kind = kind;
    return -1;
}

int err_prefix(const char *format, ...)
{
    char prefix[ERR_MAX_LEN], text[ERR_MAX_LEN];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof(prefix), format, args);
    va_end(args);
    memcpy(text, last_error.text, sizeof(text));
    return err_set(last_error.kind, "%.1000s: %.1000s", prefix, text);
}

const char *err_get(void)
{
    return last_error.text;
}

enum err_kind err_get_kind(void)
{
    return last_error.kind;
}

void err_clear(void)
{
    last_error.kind = ERR_NONE;
    last_error.text[0] = '\0';
}

void die_at(const char *file, int line, const char *format, ...)
{
    char text[ERR_MAX_LEN];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "quire: %s:%d: %s\n", file, line, text);
    exit(ERR_RESOURCE);
}

/* ---- logging ---- */

int log_set_level(const char *name)
{
    static const char *const names[] = {"quiet", "warning", "info", "debug"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            log_level = (enum log_level)i;
            return 0;
        }
    }
    return err_set(ERR_CONFIG, "unknown log level '%s'; expected quiet, warning, info or debug",
                   name);
}

enum log_level log_get_level(void)
{
    return log_level;
}

void log_set_prefix(const char *prefix)
{
    snprintf(log_prefix, sizeof(log_prefix), "%s", prefix);
}

void log_set_hook(log_hook hook)
{
    current_log_hook = hook;
}

static void log_line(enum log_level level, const char *tag, const char *format, va_list args)
{
    if (level > log_level)
        return;
    char text[4096]; /* One write per line, so that lines of several processes do not mix. */
    vsnprintf(text, sizeof(text), format, args);
    if (current_log_hook)
        current_log_hook(true);
    fprintf(stderr, "%s %s%s\n", tag, log_prefix, text);
    if (current_log_hook)
        current_log_hook(false);
}

void log_info(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_line(LOG_INFO, "[*]", format, args);
    va_end(args);
}

void log_warning(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_line(LOG_WARNING, "[WARNING]", format, args);
    va_end(args);
}

void log_debug(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_line(LOG_DEBUG, "[debug]", format, args);
    va_end(args);
}

/* ---- memory ---- */

void *xmalloc(size_t bytes)
{
    return xrealloc(NULL, bytes);
}

void *xcalloc(size_t count, size_t bytes)
{
    void *p = calloc(count ? count : 1, bytes ? bytes : 1);
    if (!p)
        die("out of memory: %zu x %zu bytes", count, bytes);
    return p;
}

void *xrealloc(void *old, size_t bytes)
{
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p)
        die("out of memory: %zu bytes", bytes);
    return p;
}

void *xrealloc_array(void *old, size_t count, size_t bytes)
{
    size_t total;
    if (!size_mul(&total, count, bytes))
        die("out of memory: %zu x %zu bytes", count, bytes);
    return xrealloc(old, total);
}

char *xstrdup(const char *s)
{
    return xstrndup(s, strlen(s));
}

char *xstrndup(const char *s, size_t n)
{
    char *copy = xmalloc(n + 1);
    memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}

char *xasprintf(const char *format, ...)
{
    char *text;
    va_list args;
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        die("out of memory while formatting a string");
    va_end(args);
    return text;
}

void array_reserve(void *array, size_t *capacity, size_t needed, size_t bytes)
{
    if (needed <= *capacity)
        return;
    void *data;
    memcpy(&data, array, sizeof(data));
    size_t grown = MAX(MAX(needed, *capacity * 2), (size_t)8);
    data = xrealloc_array(data, grown, bytes);
    memcpy(array, &data, sizeof(data));
    *capacity = grown;
}

bool size_mul(size_t *out, size_t a, size_t b)
{
    return !__builtin_mul_overflow(a, b, out);
}

bool size_add(size_t *out, size_t a, size_t b)
{
    return !__builtin_add_overflow(a, b, out);
}

/* ---- strings ---- */

void str_append(struct str *s, const char *bytes, size_t n)
{
    array_reserve(&s->data, &s->capacity, s->len + n + 1, 1);
    if (n)
        memcpy(s->data + s->len, bytes, n);
    s->len += n;
    s->data[s->len] = '\0';
}

void str_append_c(struct str *s, const char *text)
{
    str_append(s, text, strlen(text));
}

void str_appendf(struct str *s, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0)
        die("cannot format a string");
    array_reserve(&s->data, &s->capacity, s->len + (size_t)n + 1, 1);
    vsnprintf(s->data + s->len, (size_t)n + 1, format, again);
    va_end(again);
    s->len += (size_t)n;
}

void str_clear(struct str *s)
{
    s->len = 0;
    if (s->data)
        s->data[0] = '\0';
}

void str_free(struct str *s)
{
    free(s->data);
    *s = (struct str){0};
}

/* Levenshtein distance with one row; both words are at most NEAREST_MAX_LEN long. */
static size_t edit_distance(const char *a, size_t n, const char *b, size_t m)
{
    size_t row[NEAREST_MAX_LEN + 1];
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t substitute = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = MIN(substitute, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[m];
}

const char *nearest_name(const char *word, const char *const *names, size_t n)
{
    size_t len = strlen(word), best = MAX(len / 3, (size_t)1) + 1;
    const char *nearest = NULL;
    for (size_t i = 0; i < n; i++) {
        size_t name_len = strlen(names[i]);
        if (len > NEAREST_MAX_LEN || name_len > NEAREST_MAX_LEN)
            continue;
        size_t distance = edit_distance(word, len, names[i], name_len);
        if (distance < best) {
            best = distance;
            nearest = names[i];
        }
    }
    return nearest;
}

char *format_bytes(char buf[32], double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    while (bytes >= 1024 && unit + 1 < ARRAY_LEN(units)) {
        bytes /= 1024;
        unit++;
    }
    snprintf(buf, 32,
             bytes < 10 && unit > 0 ? "%.2f %s"
             : unit > 0             ? "%.1f %s"
                                    : "%.0f %s",
             bytes, units[unit]);
    return buf;
}

char *format_seconds(char buf[32], double seconds)
{
    if (seconds < 100)
        snprintf(buf, 32, "%.1f s", seconds);
    else if (seconds < 6000)
        snprintf(buf, 32, "%.0f min %02.0f s", floor(seconds / 60), floor(fmod(seconds, 60)));
    else
        snprintf(buf, 32, "%.0f h %02.0f min", floor(seconds / 3600),
                 floor(fmod(seconds, 3600) / 60));
    return buf;
}

char *format_count(char buf[32], int64_t n)
{
    char digits[24];
    int len = snprintf(digits, sizeof(digits), "%lld", (long long)(n < 0 ? -n : n));
    char *out = buf;
    if (n < 0)
        *out++ = '-';
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0)
            *out++ = ',';
        *out++ = digits[i];
    }
    *out = '\0';
    return buf;
}

bool parse_int64(int64_t *out, const char *text)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno == ERANGE || text[0] == ' ')
        return false;
    *out = value;
    return true;
}

bool parse_double(double *out, const char *text)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno == ERANGE || text[0] == ' ')
        return false;
    *out = value;
    return true;
}

/* ---- UTF-8 ---- */

/* Length that a sequence starting with this byte announces; 0 for a byte that cannot start one. */
static size_t utf8_announced(unsigned char lead)
{
    if (lead < 0x80)
        return 1;
    if (lead >= 0xC2 && lead < 0xE0)
        return 2;
    if (lead >= 0xE0 && lead < 0xF0)
        return 3;
    if (lead >= 0xF0 && lead < 0xF5)
        return 4;
    return 0;
}

size_t utf8_complete_prefix(const char *s, size_t n)
{
    /* A character that is still open starts in the last three bytes. */
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = (unsigned char)s[n - back];
        if ((c & 0xC0) == 0x80)
            continue;
        return utf8_announced(c) > back ? n - back : n;
    }
    return n;
}

bool utf8_is_valid(const char *s, size_t n)
{
    json_t *string = json_stringn(s, n); /* takes nothing else */
    json_decref(string);
    return string != NULL;
}

/* ---- files ---- */

static char *read_stream(FILE *f, const char *path, size_t *n)
{
    struct str text = {0};
    char buffer[65536];
    size_t got;
    str_append(&text, "", 0);
    while ((got = fread(buffer, 1, sizeof(buffer), f)) > 0) {
        if (text.len + got > FILE_MAX_BYTES) {
            err_set(ERR_DATA, "%s: larger than %zu bytes", path, FILE_MAX_BYTES);
            str_free(&text);
            return NULL;
        }
        str_append(&text, buffer, got);
    }
    if (ferror(f)) {
        err_set(ERR_DATA, "%s: cannot read: %s", path, strerror(errno));
        str_free(&text);
        return NULL;
    }
    if (n)
        *n = text.len;
    return text.data;
}

char *file_read(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        err_set(ERR_DATA, "%s: cannot open: %s", path, strerror(errno));
        return NULL;
    }
    char *text = read_stream(f, path, n);
    fclose(f);
    return text;
}

bool file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

bool dir_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int dir_make(const char *path)
{
    char *partial = xstrdup(path);
    int rc = 0;
    for (char *p = partial + 1; rc == 0 && *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (mkdir(partial, 0777) != 0 && errno != EEXIST)
            rc = -1;
        *p = '/';
    }
    if (rc == 0 && mkdir(partial, 0777) != 0 && errno != EEXIST)
        rc = -1;
    if (rc != 0)
        err_set(ERR_RESOURCE, "%s: cannot make this folder: %s", path, strerror(errno));
    free(partial);
    return rc;
}

char *path_join(const char *dir, const char *name)
{
    if (name[0] == '/' || dir[0] == '\0')
        return xstrdup(name);
    bool slash = dir[strlen(dir) - 1] == '/';
    return xasprintf("%s%s%s", dir, slash ? "" : "/", name);
}

char *path_dirname(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return xstrdup(".");
    return xstrndup(path, slash == path ? 1 : (size_t)(slash - path));
}

char *library_find(const char *name)
{
    static const char *const folders[] = {"", "/../lib/quire"};
    char executable[4096];
    ssize_t n = readlink("/proc/self/exe", executable, sizeof(executable) - 1);
    if (n < 0)
        return NULL;
    executable[n] = '\0';
    char *dir = path_dirname(executable), *found = NULL;
    for (size_t i = 0; i < ARRAY_LEN(folders) && !found; i++) {
        char *path = xasprintf("%s%s/%s", dir, folders[i], name);
        if (file_exists(path))
            found = path;
        else
            free(path);
    }
    free(dir);
    return found;
}

json_t *json_read_file(const char *path)
{
    size_t n;
    char *text = file_read(path, &n);
    if (!text)
        return NULL;
    json_error_t error;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        err_set(ERR_DATA, "%s:%d:%d: not valid JSON: %s", path, error.line, error.column,
                error.text);
    free(text);
    return root;
}

/* ---- hashes ---- */

struct sha256 {
    EVP_MD_CTX *ctx;
};

struct sha256 *sha256_open(void)
{
    struct sha256 *h = xmalloc(sizeof(*h));
    h->ctx = EVP_MD_CTX_new();
    if (!h->ctx || EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL) != 1)
        die("libcrypto cannot make a SHA-256 context");
    return h;
}

void sha256_add(struct sha256 *h, const void *data, size_t n)
{
    if (EVP_DigestUpdate(h->ctx, data, n) != 1)
        die("libcrypto failed to update a SHA-256");
}

void sha256_add_text(struct sha256 *h, const char *text)
{
    sha256_add(h, text, strlen(text) + 1);
}

void sha256_final(struct sha256 *h, char hex[SHA256_HEX_LEN + 1])
{
    unsigned char digest[SHA256_HEX_LEN / 2];
    if (EVP_DigestFinal_ex(h->ctx, digest, NULL) != 1)
        die("libcrypto failed to finish a SHA-256");
    for (size_t i = 0; i < sizeof(digest); i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(h->ctx);
    free(h);
}

void sha256_of(const void *data, size_t n, char hex[SHA256_HEX_LEN + 1])
{
    struct sha256 *h = sha256_open();
    sha256_add(h, data, n);
    sha256_final(h, hex);
}

/* ---- time ---- */

static double clock_s(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

double time_monotonic_s(void)
{
    return clock_s(CLOCK_MONOTONIC);
}

double time_unix_s(void)
{
    return clock_s(CLOCK_REALTIME);
}
