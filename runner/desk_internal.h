/* desk_internal.h - what the files of the desk share. The caller holds the mutex. */
#ifndef QUIRE_DESK_INTERNAL_H
#define QUIRE_DESK_INTERNAL_H

#include "runner/attempt.h"
#include "runner/desk.h"
#include "runner/progress.h"

#include <pthread.h>

/* Who holds a sample: a rank, or one of these. */
enum { HOLDER_NONE = -1, HOLDER_SETTLED = -2 };

/* One task on the desk. */
struct docket {
    struct work *work;
    int *holder;             /* [work->n_samples]                                    */
    struct attempt *attempt; /* [n_ranks]; id 0: the rank has not begun one          */
    int64_t cost;            /* of its dearest sample: the dear ones go first        */
    int first;               /* nothing is to do before this sample                  */
    int n_failed;            /* samples, in this run                                 */
};

/* The tasks of one engine group. */
struct lot {
    const struct engine_group *group;
    struct docket *docket;       /* [group->n]                                         */
    int *by_cost;                /* [group->n] dockets, the dearest first              */
    int first;                   /* of by_cost: nothing is to do in the ones before it */
    int n_todo, n_out;           /* samples                                            */
    int64_t todo_cost, out_cost; /* of these, by work_sample_cost                */
    bool *refused;               /* [n_ranks]                                       */
    int refused_last;            /* the rank that was the last to do so, and why    */
    char *refusal;               /* (owned); NULL: none has                         */
};

/* What is known of a rank. */
struct seat {
    struct greeting greeting;
    bool greeted, left;
    bool stranger; /* works on another list: it gets nothing */
    int group;     /* the one it works for; -1: none yet     */
    bool begun;    /* it has an engine for it                */
    int n_held, n_done;
    int64_t held_cost;
    struct opening opening;
    struct pulse pulse;
    struct engine_stats earlier; /* sums over the engines that it has closed */
};

struct desk {
    struct desk_options options;
    pthread_mutex_t mutex;
    struct lot *lot;   /* [options.work->n_engine_groups] */
    struct seat *seat; /* [options.n_ranks] */
    struct progress progress;
    int64_t n_done, n_total; /* samples */
    int n_failed_tasks;
    double first_token_s;
    bool stopping;                     /* there is an event that says so       */
    double workers_s;                  /* when the signs of life were written */
    double latency_s, first_latency_s; /* of a sample; before one has finished */
    enum err_kind failure;
    char *reason;
};

/* ---- desk_record.c: rows. A failure of the store ends the run: see desk_failed. ---- */
void desk_failed(struct desk *d);
void record_begin(struct desk *d, int rank, struct lot *lot, struct docket *docket);
void record_end(struct desk *d, int rank, struct docket *docket, const char *state,
                const char *error);
/* A failed attempt of every task of the lot that is not finished, by the rank that refused last. */
void record_failed_lot(struct desk *d, struct lot *lot);
/* The same for one task that is in no engine group. */
void record_unreadable(struct desk *d, struct work *w);
void record_sample(struct desk *d, int rank, struct docket *docket, const struct outcome *outcome);
void record_event(struct desk *d, int64_t attempt_id, const char *kind, const char *detail);
/* "loading", "running", "idle", "ended", "lost" */
void record_worker(struct desk *d, int rank, const char *state);
void record_commit(struct desk *d);

#endif
