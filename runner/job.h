/* job.h - what Slurm says about the job that this process is part of. */
#ifndef QUIRE_JOB_H
#define QUIRE_JOB_H

#include "engine/util.h"

#define JOB_MAX_WORKERS 1000000 /* of an array; Slurm's own limit is four million */

/* The unix time at which Slurm ends this job: SLURM_JOB_END_TIME, or, where Slurm does not set it
 * (22.05 does not) or it is over, squeue's answer, which is waited for 5 s at most. 0: this is no
 * job, or the time cannot be known; log_debug says why. */
int64_t job_end_time(void);

struct job_array {
    int index, count; /* 0 <= index < count */
};

/* True when this process is one worker of a job array.
 *
 * --array=FIRST-LAST[:STEP] has as many workers as task ids. With QUIRE_ARRAY_COUNT=N the task id
 * is the index of one of N workers, whatever the array: so a few of a larger array are submitted
 * again
 * (`quire status` prints how). Without it, the workers of --array=3,7-9 are those of --array=0-9,
 * with a warning: Slurm does not tell a task the other ids, so the rest stays undone. */
bool job_find_array(struct job_array *out);

#endif
