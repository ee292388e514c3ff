/* util.h - the one helpers file: errors, logging, memory, strings, files, hashes, time.
 *
 * Look here before writing a helper. Nothing in it knows about models, tokens or experiments.
 */
#ifndef QUIRE_UTIL_H
#define QUIRE_UTIL_H

#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QUIRE_VERSION "0.1.0"

#define ARRAY_LEN(a)      (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)         ((a) < (b) ? (a) : (b))
#define MAX(a, b)         ((a) > (b) ? (a) : (b))
#define CEIL_DIV(a, b)    (((a) + (b)-1) / (b))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

/* Of small functions that all backends have in common. */
#ifdef __CUDACC__
#define HOST_AND_DEVICE __host__ __device__
#else
#define HOST_AND_DEVICE
#endif

/* ---- errors --------------------------------------------------------------------------------
 * A failing function calls err_set() where the facts are known and returns its result; callers
 * pass the failure up untouched; main() prints the message once. The kind is also the exit code.
 */
enum err_kind {
    ERR_NONE = 0,
    ERR_RUN = 1,       /* a task or a sample failed                                    */
    ERR_CONFIG = 2,    /* usage or configuration: the user can fix the input           */
    ERR_DATA = 65,     /* a model, tokenizer, prompt or database file is damaged       */
    ERR_RESOURCE = 69, /* memory, device or disk is not there                          */
    ERR_STOPPED = 75,  /* stopped early by a signal or a deadline; running again resumes */
};

#define ERR_MAX_LEN 2048

/* Records the message of this thread's error, replacing an older one. Always returns -1, so that a
 * failing function can `return err_set(...)`. */
int err_set(enum err_kind kind, const char *format, ...) PRINTF_LIKE(2, 3);

/* Puts "text: " before the recorded message (a file name, a task). Always returns -1. */
int err_prefix(const char *format, ...) PRINTF_LIKE(1, 2);

/* The last message of this thread ("" when none) and its kind. Borrowed until the next err_set. */
const char *err_get(void);
enum err_kind err_get_kind(void);
void err_clear(void);

/* The world broke in a way that no caller can mend (host memory is gone): prints the message with
 * file:line and exits with ERR_RESOURCE. Committed results are on disk already. */
#define die(...) die_at(__FILE__, __LINE__, __VA_ARGS__)
_Noreturn void die_at(const char *file, int line, const char *format, ...) PRINTF_LIKE(3, 4);

/* ---- logging -------------------------------------------------------------------------------
 * Lines go to stderr: "[*] ..." for what users look for, "[WARNING] ..." for what they should act
 * on. QUIRE_LOG=quiet|warning|info|debug sets the level (info by default).
 */
enum log_level { LOG_QUIET, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* Sets the level by name; -1 and an error that lists the valid names for an unknown one. */
int log_set_level(const char *name);
enum log_level log_get_level(void);
void log_info(const char *format, ...) PRINTF_LIKE(1, 2);
void log_warning(const char *format, ...) PRINTF_LIKE(1, 2);
void log_debug(const char *format, ...) PRINTF_LIKE(1, 2);

/* Text before every message, to tell processes apart that write to one terminal: "rank 3: ". */
void log_set_prefix(const char *prefix);

/* A function called before and after each log line, so that a live progress bar can step aside.
 * NULL removes it. */
typedef void (*log_hook)(bool before);
void log_set_hook(log_hook hook);

/* ---- memory --------------------------------------------------------------------------------
 * Small host structures: these never return NULL (die() when memory is gone). Memory whose size
 * depends on a model or on a setting is taken from the backend, which can refuse.
 */
void *xmalloc(size_t bytes);
void *xcalloc(size_t count, size_t bytes);
void *xrealloc(void *old, size_t bytes);
void *xrealloc_array(void *old, size_t count, size_t bytes);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n);
char *xasprintf(const char *format, ...) PRINTF_LIKE(1, 2);

/* Grows *array, of *capacity elements of `bytes` each, to hold at least `needed`. */
void array_reserve(void *array, size_t *capacity, size_t needed, size_t bytes);

/* *out = a * b (a + b); false on overflow. For sizes that come from a file. */
bool size_mul(size_t *out, size_t a, size_t b);
bool size_add(size_t *out, size_t a, size_t b);

/* ---- strings ------------------------------------------------------------------------------- */
/* A growing byte string, always NUL-terminated after the first append. Zero-initialise; free with
 * str_free. */
struct str {
    char *data;
    size_t len, capacity;
};
void str_append(struct str *s, const char *bytes, size_t n);
void str_append_c(struct str *s, const char *text);
void str_appendf(struct str *s, const char *format, ...) PRINTF_LIKE(2, 3);
void str_clear(struct str *s);
void str_free(struct str *s);

/* The entry of names[n] nearest to `word` by edit distance, or NULL when none is near enough to be
 * meant (more than a third of the word's length away). Borrowed from names. */
const char *nearest_name(const char *word, const char *const *names, size_t n);

/* "1.2 GiB", "640 KiB", "12 B" into buf; returns buf. */
char *format_bytes(char buf[32], double bytes);
/* "1 h 02 min", "3.4 s" into buf; returns buf. */
char *format_seconds(char buf[32], double seconds);

/* "142,827" into buf; returns buf. */
char *format_count(char buf[32], int64_t n);

/* Strict number parsing of the whole string; false when it is not a number or out of range. */
bool parse_int64(int64_t *out, const char *text);
bool parse_double(double *out, const char *text);

/* ---- UTF-8 --------------------------------------------------------------------------------- */
/* Length of the longest prefix of s[n] that ends on a character boundary: what may be printed now
 * while the rest of a character is still to come. Invalid bytes count as complete. */
size_t utf8_complete_prefix(const char *s, size_t n);
bool utf8_is_valid(const char *s, size_t n);
#define UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* ---- files --------------------------------------------------------------------------------- */
#define FILE_MAX_BYTES ((size_t)1 << 30) /* for file_read; weights are mapped instead */

/* The whole file, NUL-terminated; the caller frees. *n may be NULL. ERR_DATA when it cannot be
 * read or is larger than FILE_MAX_BYTES. */
char *file_read(const char *path, size_t *n);
bool file_exists(const char *path);
bool dir_exists(const char *path);
/* mkdir -p. */
int dir_make(const char *path);
/* dir/name, or name alone when it is absolute or dir is empty. The caller frees. */
char *path_join(const char *dir, const char *name);
/* The folder part of a path ("." when it has none). The caller frees. */
char *path_dirname(const char *path);
/* The path of a shared object that comes with this program: beside the executable, or in
 * ../lib/quire of it. The caller frees. NULL: it is not there. */
char *library_find(const char *name);

/* Parses a JSON file with jansson; NULL with ERR_DATA and file:line:column. */
json_t *json_read_file(const char *path);

/* ---- hashes -------------------------------------------------------------------------------- */
#define SHA256_HEX_LEN 64

/* Incremental SHA-256 (OpenSSL's libcrypto). sha256_final writes 64 hex digits and a NUL. */
struct sha256;
struct sha256 *sha256_open(void);
void sha256_add(struct sha256 *h, const void *data, size_t n);
void sha256_add_text(struct sha256 *h, const char *text); /* the bytes and the closing NUL */
void sha256_final(struct sha256 *h, char hex[SHA256_HEX_LEN + 1]); /* closes h */
void sha256_of(const void *data, size_t n, char hex[SHA256_HEX_LEN + 1]);

/* splitmix64's finaliser: a good 64-bit mix for hash tables and for deriving seeds.
 * Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. */
HOST_AND_DEVICE static inline uint64_t mix64(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* ---- time ---------------------------------------------------------------------------------- */
double time_monotonic_s(void); /* for durations */
double time_unix_s(void);      /* for records   */

#endif
