/* trace.c - see trace.h.
 *
 * Events become text at once, in a buffer that is written when it is full or a second old. A step
 * makes some ten of them, each in a fraction of a microsecond.
 */
#include "engine/trace.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUFFER_BYTES    ((size_t)64 << 10)
#define MAX_EVENT_BYTES ((size_t)8 << 10) /* every byte of every name may take six */
#define FLUSH_S         1.0

struct trace {
    char *path;
    int fd;
    int pid;              /* of the events: the rank + 1, because viewers call process 0 idle */
    double opened_s;      /* time_monotonic_s() */
    pthread_mutex_t lock; /* guards what follows */
    char buffer[BUFFER_BYTES];
    size_t n; /* bytes of it */
    bool any; /* an event stands before the next one */
    bool failed;
    double flushed_s;
    struct trace_steps steps;
};

/* ---- the file ---- */

static void flush(struct trace *t, double now_s)
{
    size_t done = 0;
    while (done < t->n && !t->failed) {
        ssize_t n = write(t->fd, t->buffer + done, t->n - done);
        if (n >= 0) {
            done += (size_t)n;
        } else if (errno != EINTR) {
            log_warning("the trace %s ends here: %s", t->path, strerror(errno));
            t->failed = true;
        }
    }
    t->n = 0;
    t->flushed_s = now_s;
}

/* ---- text ---- */

static void put(struct trace *t, const char *text)
{
    size_t n = strlen(text);
    assert(n <= BUFFER_BYTES - t->n);
    memcpy(t->buffer + t->n, text, n);
    t->n += n;
}

/* At least min_digits digits. By hand, because a step has some fifty numbers: with printf its
 * events took 10.6 us, and so 3.1 us. */
static void put_int(struct trace *t, int64_t value, int min_digits)
{
    char text[24];
    size_t at = sizeof(text);
    uint64_t left = value < 0 ? -(uint64_t)value : (uint64_t)value;
    text[--at] = '\0';
    for (int i = 0; left > 0 || i < min_digits; i++) {
        text[--at] = (char)('0' + left % 10);
        left /= 10;
    }
    if (value < 0)
        text[--at] = '-';
    put(t, text + at);
}

/* In quotes; of a long text the beginning, never a part of a character. */
static void put_text(struct trace *t, const char *text)
{
    static const char hex[] = "0123456789abcdef";
    size_t n = utf8_complete_prefix(text, strnlen(text, TRACE_MAX_NAME));
    char *out = t->buffer + t->n;
    assert(6 * n + 2 <= BUFFER_BYTES - t->n);
    *out++ = '"';
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\' || c < 0x20) {
            memcpy(out, "\\u00", 4);
            out[4] = hex[c >> 4];
            out[5] = hex[c & 15];
            out += 6;
        } else {
            *out++ = (char)c;
        }
    }
    *out++ = '"';
    t->n = (size_t)(out - t->buffer);
}

static int64_t ns_of(const struct trace *t, double at_s)
{
    return MAX((int64_t)((at_s - t->opened_s) * 1e9 + 0.5), 0);
}

/* `key` is what stands before the number: microseconds, with three decimals. */
static void put_ns(struct trace *t, const char *key, int64_t ns)
{
    put(t, key);
    put_int(t, ns / 1000, 1);
    put(t, ".");
    put_int(t, ns % 1000, 3);
}

static void put_args(struct trace *t, const struct trace_arg *arg, int n_args)
{
    assert(n_args <= TRACE_MAX_ARGS);
    put(t, ",\"args\":{");
    for (int i = 0; i < n_args; i++) {
        if (i > 0)
            put(t, ",");
        put_text(t, arg[i].name);
        put(t, ":");
        put_int(t, arg[i].value, 1);
    }
    put(t, "}");
}

/* Takes the lock and begins an event; false: it would not get into the file. */
static bool begin_event(struct trace *t, const char *name, const char *phase, int track)
{
    pthread_mutex_lock(&t->lock);
    if (BUFFER_BYTES - t->n < MAX_EVENT_BYTES)
        flush(t, time_monotonic_s());
    if (t->failed) {
        pthread_mutex_unlock(&t->lock);
        return false;
    }
    put(t, t->any ? ",\n{\"name\":" : "[\n{\"name\":");
    t->any = true;
    put_text(t, name);
    put(t, ",\"ph\":\"");
    put(t, phase);
    put(t, "\",\"pid\":");
    put_int(t, t->pid, 1);
    put(t, ",\"tid\":");
    put_int(t, track + 1, 1);
    return true;
}

static void end_event(struct trace *t, double now_s)
{
    put(t, "}");
    if (now_s - t->flushed_s > FLUSH_S)
        flush(t, now_s);
    pthread_mutex_unlock(&t->lock);
}

static void put_name(struct trace *t, const char *of, int track, const char *name)
{
    if (!begin_event(t, of, "M", track))
        return;
    put(t, ",\"args\":{\"name\":");
    put_text(t, name);
    put(t, "}");
    end_event(t, t->opened_s);
}

/* ---- opening ---- */

char *trace_path_of(const char *path, const char *whose, int number)
{
    const char *slash = strrchr(path, '/');
    const char *file = slash ? slash + 1 : path;
    const char *dot = strrchr(file, '.');
    size_t stem = dot && dot > file ? (size_t)(dot - path) : strlen(path);
    return xasprintf("%.*s.%s-%d%s", (int)stem, path, whose, number, path + stem);
}

int trace_open(struct trace **out, const char *path, int rank, const char *title)
{
    static const char *const tracks[TRACE_N_TRACKS] = {
        [TRACE_HOST] = "host", [TRACE_DEVICE] = "device", [TRACE_STORE] = "store"};
    *out = NULL;
    char *own = rank > 0 ? trace_path_of(path, "rank", rank) : xstrdup(path);
    int fd = open(own, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        err_set(ERR_CONFIG, "--trace: cannot write %s: %s", own, strerror(errno));
        free(own);
        return -1;
    }
    struct trace *t = xcalloc(1, sizeof(*t));
    t->path = own;
    t->fd = fd;
    t->pid = rank + 1;
    t->opened_s = t->flushed_s = time_monotonic_s();
    pthread_mutex_init(&t->lock, NULL);
    put_name(t, "process_name", -1, title);
    for (int i = 0; i < TRACE_N_TRACKS; i++)
        put_name(t, "thread_name", i, tracks[i]);
    *out = t;
    return 0;
}

void trace_close(struct trace *t)
{
    if (!t)
        return;
    put(t, "\n]\n");
    flush(t, 0);
    if (close(t->fd) != 0 && !t->failed)
        log_warning("the trace %s is incomplete: %s", t->path, strerror(errno));
    pthread_mutex_destroy(&t->lock);
    free(t->path);
    free(t);
}

const char *trace_get_path(const struct trace *t)
{
    return t ? t->path : "";
}

/* ---- events ---- */

double trace_now(const struct trace *t)
{
    return t ? time_monotonic_s() : 0;
}

void trace_end(struct trace *t, enum trace_track track, const char *name, double began_s)
{
    if (t)
        trace_span(t, track, name, began_s, time_monotonic_s(), NULL, 0);
}

void trace_span(struct trace *t, enum trace_track track, const char *name, double began_s,
                double ended_s, const struct trace_arg *arg, int n_args)
{
    assert(began_s <= ended_s);
    if (!t || !begin_event(t, name, "X", (int)track))
        return;
    /* Both ends are rounded alike, or a span could end after the one that it lies in. */
    int64_t began = ns_of(t, began_s);
    put_ns(t, ",\"ts\":", began);
    put_ns(t, ",\"dur\":", ns_of(t, ended_s) - began);
    if (n_args > 0)
        put_args(t, arg, n_args);
    end_event(t, ended_s);
}

void trace_count(struct trace *t, const char *name, double at_s, const struct trace_arg *arg,
                 int n_args)
{
    if (!t || !begin_event(t, name, "C", -1))
        return;
    put_ns(t, ",\"ts\":", ns_of(t, at_s));
    put_args(t, arg, n_args);
    end_event(t, at_s);
}

/* ---- steps ---- */

void trace_add_step(struct trace *t, double busy_s, double idle_s)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->steps.n++;
    t->steps.busy_s += busy_s;
    t->steps.idle_s += idle_s;
    pthread_mutex_unlock(&t->lock);
}

struct trace_steps trace_get_steps(struct trace *t)
{
    if (!t)
        return (struct trace_steps){0};
    pthread_mutex_lock(&t->lock);
    struct trace_steps steps = t->steps;
    pthread_mutex_unlock(&t->lock);
    return steps;
}

void trace_log_end(struct trace *t)
{
    if (!t)
        return;
    struct trace_steps s = trace_get_steps(t);
    double all_s = s.busy_s + s.idle_s;
    log_info("Trace of %ld steps: %s (open it with https://ui.perfetto.dev or chrome://tracing); "
             "between steps the device was idle for %.1f %% of the time",
             s.n, t->path, all_s > 0 ? 100 * s.idle_s / all_s : 0);
}
