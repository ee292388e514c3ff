/* job.h - a request on its way through the engine: checked, copied, ended. Internal to the engine.
 */
#ifndef QUIRE_JOB_H
#define QUIRE_JOB_H

#include "engine/scheduler.h"

struct job {
    struct seq seq; /* first, so that a seq leads back to its job */
    struct job *next, *prev, *bucket_next;
};

/* Checks a request and takes all host memory that it will ever need. ERR_DATA when it can never
 * run. `options` have their defaults filled in. */
int job_open(struct job **out, const struct request *request, const struct model_info *model,
             const struct engine_options *options);
void job_close(struct job *job);

/* The unfinished requests of an engine in the order of submission, which is that of their ids. To
 * find one by its id takes the same time however many there are. Zero-initialise. */
struct job_list {
    struct job *first, *last;
    struct job **bucket; /* [n_buckets] by the last bits of the id */
    size_t n, n_buckets; /* n_buckets: 0 or a power of two, at least n */
};

/* Adds a job whose id is larger than all of the list's. */
void job_list_push(struct job_list *list, struct job *job);
void job_list_remove(struct job_list *list, struct job *job);
/* NULL when there is none of this id. */
struct job *job_list_find(const struct job_list *list, uint64_t id);
/* Closes the jobs, too. */
void job_list_free(struct job_list *list);

/* True when the latest known token is the last one; then *reason says why. */
bool job_is_finished(const struct job *job, const struct model_info *model,
                     enum finish_reason *reason);

/* Calls the owner of a finished job. */
void job_report(const struct job *job);

#endif
