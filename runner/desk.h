/* desk.h - where the samples of a run are handed out and taken in.
 *
 * Rank 0 has the desk. It owns the list of what is to do and the store, and is the only one to
 * write to it. Its callers are the worker of rank 0 and, for the workers of other ranks, the thread
 * of cluster.h; every function may be called from any thread, and none waits for an engine.
 *
 * Samples are handed out in ranges, the longest expected first. A rank works for one engine group
 * at a time. It holds at most its share of that group's unfinished samples (what all of them are
 * expected to cost, divided by the ranks that could take them), so ranks of the same speed finish
 * together. A rank that cannot run a group is not asked again; a group that no rank can run is a
 * failed attempt of each of its tasks. The tokens of a sample depend on none of this.
 */
#ifndef QUIRE_DESK_H
#define QUIRE_DESK_H

#include "runner/decision.h"
#include "runner/store.h"
#include "runner/work.h"

#define ORDER_MAX_RANGES 32

/* Samples first .. first + n - 1 (prompt-major) of a task of an engine group. */
struct sample_range {
    int work; /* its place in the group */
    int first, n;
};

enum order_kind {
    ORDER_SAMPLES, /* generate these, on an engine for `group`                      */
    ORDER_WAIT,    /* there is nothing for this rank now; ask again                 */
    ORDER_END,     /* everything is finished or failed                              */
};

struct order {
    enum order_kind kind;
    int group; /* of work_list.engine_group */
    int n_ranges;
    struct sample_range range[ORDER_MAX_RANGES];
};

/* Who works at a rank. */
struct greeting {
    char host[256];
    int pid;
    int64_t unix_s;                  /* when it started                        */
    char digest[SHA256_HEX_LEN + 1]; /* of its work list: must be that of rank 0 */
};

/* What a rank runs a group on, or tried to. */
struct opening {
    int group;
    struct decision decision;
    bool has_model, has_engine;
    enum dtype dtype;               /* of the weights, when there is a model */
    enum quantization quantization; /* likewise                              */
    double load_s, init_s;
};

/* How a rank is doing, as of now. */
struct pulse {
    struct engine_stats stats; /* of the engine that is open; counters since it was opened */
    double busy_s, wall_s;     /* in engine steps; since the rank began */
    int64_t memory_peak_bytes;
    int64_t sent_bytes, received_bytes;
    bool loading; /* a model or an engine */
};

/* What became of one sample. */
struct outcome {
    int group, work, sample;      /* as in a range                                */
    struct completion completion; /* its ids are borrowed for the call            */
    const char *text;             /* NULL: token ids only                         */
    const char *error;            /* NULL: it finished                            */
};

struct desk_options {
    struct config *config;
    struct work_list *work; /* what is to do; counted down by the desk */
    struct store *store;
    int64_t run_id;
    int n_ranks;
    bool strict;         /* a group that a rank has no resources for ends the run  */
    double began_s;      /* time_monotonic_s() at the beginning of the run         */
    struct trace *trace; /* of what is written to the store; NULL: none       */
};

struct desk;

/* Records the tasks that cannot run at all. -1: the store failed. */
int desk_open(struct desk **out, const struct desk_options *options);
void desk_close(struct desk *d); /* accepts NULL */

void desk_greet(struct desk *d, int rank, const struct greeting *greeting);
/* What to do next. group: of the engine that the rank has open, or -1; room: samples that it can
 * take. An order for another group than that comes only when the rank holds no samples, and is for
 * one sample, as is the first question: it may take long until there is an engine for it. */
void desk_take(struct desk *d, int rank, int group, int room, struct order *out);
/* The rank has an engine for the group it was given. */
void desk_begin(struct desk *d, int rank, const struct opening *opening);
/* The rank cannot run the group it was given: it holds no samples any more. */
void desk_refuse(struct desk *d, int rank, const struct opening *opening, enum err_kind kind,
                 const char *error);
/* To be called before the outcomes of a step. */
void desk_pulse(struct desk *d, int rank, const struct pulse *pulse);
void desk_put(struct desk *d, int rank, const struct outcome *outcome);
/* The rank ends; what it holds is to do again. */
void desk_leave(struct desk *d, int rank);

/* Shows progress, writes signs of life, looks at the job's end. To be called some ten times a
 * second, by whoever. */
void desk_tick(struct desk *d);
/* A rank is gone without a word: ends the run with ERR_STOPPED in the store, which it closes. */
void desk_lose(struct desk *d, int rank);

bool desk_all_left(struct desk *d);

struct desk_summary {
    int64_t n_done, n_total; /* samples */
    int n_failed_tasks;
    bool finished;         /* nothing is left to do                              */
    enum err_kind failure; /* ERR_NONE, or why the run cannot go on              */
    const char *reason;    /* borrowed until desk_close                          */
    double first_token_s;  /* time_monotonic_s() of rank 0's first token; 0: none */
};
/* Ends the attempts that are still open. */
struct desk_summary desk_finish(struct desk *d);

#endif
