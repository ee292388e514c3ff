/* host.h - facts about the machine and the job, for the store and for `doctor`. */
#ifndef QUIRE_HOST_H
#define QUIRE_HOST_H

#include "engine/util.h"

struct host_facts {
    char name[256]; /* host name            */
    char os[256];   /* "Linux 6.1.0 x86_64" */
    /* "" outside Slurm */
    const char *slurm_job_id, *slurm_array_job_id, *slurm_array_task_id;
    int slurm_restart_count; /* 0 on a first run */
};

void host_get_facts(struct host_facts *out);
/* Largest resident memory of this process so far, in bytes. */
int64_t host_memory_peak_bytes(void);

#endif
