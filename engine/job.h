/* job.h - a request on its way through the engine: checked, copied, ended. Internal to the engine.
 */
#ifndef QUIRE_JOB_H
#define QUIRE_JOB_H

#include "engine/scheduler.h"

/* An unfinished request, in the engine's list of them all. */
struct job {
    struct seq seq; /* first, so that a seq leads back to its job */
    struct job *next, *prev;
};

/* Checks a request and takes all host memory that it will ever need. ERR_DATA when it can never
 * run. `options` have their defaults filled in. */
int job_open(struct job **out, const struct request *request, const struct model_info *model,
             const struct engine_options *options);
void job_close(struct job *job);

/* True when the latest known token is the last one; then *reason says why. */
bool job_is_finished(const struct job *job, const struct model_info *model,
                     enum finish_reason *reason);

/* Calls the owner of a finished job. */
void job_report(const struct job *job);

#endif
