/* status.h - how far an experiment is, from its results database and its shards, reading only. */
#ifndef QUIRE_STATUS_H
#define QUIRE_STATUS_H

#include "runner/table.h"
#include "runner/work.h"

#define STATUS_SILENT_SECONDS 60.0    /* a worker that was not seen for so long is "silent"     */
#define STATUS_FORGET_SECONDS 86400.0 /* ... and left out                                       */
#define STATUS_MAX_EVENTS     10

struct status_counts {
    int64_t total, done, running, failed, pending; /* samples: running is 0 */
};

/* One rank of a run that has not ended. */
struct status_worker {
    char *host, *job, *device; /* job "1234_7", "" outside Slurm */
    char *state;               /* of struct store_worker, or "silent" */
    int rank, task_index;      /* -1: none */
    int64_t n_done;
    double busy;   /* share of its time that it generated, 0 to 1 */
    double seen_s; /* ago */
};

struct status_event {
    char *at; /* UTC; of the last one when there are several */
    char *kind, *detail;
    int64_t n;
};

struct status {
    char *experiment;  /* names, ", " between them */
    char *db, *config; /* the results file as named; the configuration's path, or NULL */
    int n_files;       /* the database and its shards                                  */
    struct status_counts tasks, samples;
    double rate_window_s; /* 0: nothing runs, and the two rates are NaN */
    double samples_per_s, output_tps;
    double eta_s;                 /* until no sample is pending; NaN: cannot be known */
    struct status_worker *worker; /* [n_workers] */
    int n_workers;
    struct status_event *event; /* [n_events] the oldest first */
    int n_events;
    /* The workers of the job array, as the names of the shards tell, and those of them whose share
     * is not finished. 0: there are no shards, or there is no plan. */
    int array_count;
    int *missing; /* [n_missing] */
    int n_missing;
};

/* Reads the results of `db`. With a configuration and its work list, the tasks of that list are
 * counted, whether the database has them or not, and a database that does not exist is an empty
 * one; without (NULL), those that the database has of the experiments that ran last. The marks in
 * the list (done, n_pending) are used up. ERR_DATA: not a results database, or none there. */
int status_read(struct status *out, const char *db, const struct config *config,
                struct work_list *plan);
void status_free(struct status *s);

/* TABLE_TEXT: for a person; TABLE_JSON: one object on one line. */
void status_print(FILE *out, const struct status *s, enum table_format format);

#endif
