/* trace.h - a timeline in a file that https://ui.perfetto.dev and chrome://tracing open.
 *
 * The file is in the JSON array form of the Trace Event Format ("Trace Event Format", Google,
 * 2016): spans ("X"), counters ("C") and the names of tracks ("M"), in microseconds since
 * trace_open. This form and not the object form, because its end may be missing: events are written
 * as they come, whole ones only, at least once a second while there are any, so that what a killed
 * process leaves can be opened, too, and lacks its last second at most.
 *
 * Every function accepts NULL, which traces nothing and costs one branch. Any thread. A file that
 * cannot be written any more (a full disk) ends the trace with a warning, never the work.
 */
#ifndef QUIRE_TRACE_H
#define QUIRE_TRACE_H

#include "engine/util.h"

#define TRACE_MAX_ARGS 12
#define TRACE_MAX_NAME 64 /* bytes of a name that are written */

struct trace;

/* Spans of one track lie one after the other or within each other. */
enum trace_track {
    TRACE_HOST,   /* the thread that steps the engine */
    TRACE_DEVICE, /* what the device computes         */
    TRACE_STORE,  /* writes to the results database   */
    TRACE_N_TRACKS,
};

struct trace_arg {
    const char *name;
    int64_t value;
};

/* Of several processes that are given the same path each has its own file: "a/b.json" of "worker" 2
 * is "a/b.worker-2.json". The caller frees. */
char *trace_path_of(const char *path, const char *whose, int number);

/* Begins the file of a rank: `path` for rank 0; trace_path_of(path, "rank", r) for rank r > 0.
 * `title` names the process in the viewer. ERR_CONFIG when it cannot be written. */
int trace_open(struct trace **out, const char *path, int rank, const char *title);
void trace_close(struct trace *t);
/* The rank's path. Borrowed. */
const char *trace_get_path(const struct trace *t);

/* time_monotonic_s(), for the beginning of a span; 0 when nothing is traced. */
double trace_now(const struct trace *t);
/* A span until now. */
void trace_end(struct trace *t, enum trace_track track, const char *name, double began_s);
/* Times are time_monotonic_s()'s, began_s <= ended_s. arg: [n_args], at most TRACE_MAX_ARGS */
void trace_span(struct trace *t, enum trace_track track, const char *name, double began_s,
                double ended_s, const struct trace_arg *arg, int n_args);
/* Counters of this name have these values from at_s on. */
void trace_count(struct trace *t, const char *name, double at_s, const struct trace_arg *arg,
                 int n_args);

/* The device was busy with a step for busy_s, after it had been idle for idle_s since the step
 * before it of the same engine. */
void trace_add_step(struct trace *t, double busy_s, double idle_s);

struct trace_steps {
    long n;
    double busy_s, idle_s; /* sums */
};
struct trace_steps trace_get_steps(struct trace *t);

/* Says in the log where the trace is, how to open it, and how long the device was idle. */
void trace_log_end(struct trace *t);

#endif
