/* host.h - facts about the machine and the job, for the store and for `doctor`. */
#ifndef QUIRE_HOST_H
#define QUIRE_HOST_H

#include "engine/engine.h"
#include "runner/store.h"

struct host_facts {
    char name[256]; /* host name            */
    char os[256];   /* "Linux 6.1.0 x86_64" */
    /* "" outside Slurm */
    const char *slurm_job_id, *slurm_array_job_id, *slurm_array_task_id;
    int slurm_restart_count; /* 0 on a first run */
};

void host_get_facts(struct host_facts *out);
/* The row of this machine in a database: its id, or -1. gpu: without a name when there is none. */
int64_t host_put_environment(struct store *s, const struct host_facts *host,
                             const struct device_info *cpu, const struct device_info *gpu);
/* Which of the GPUs that this process sees is for rank local_rank of local_size on this host: its
 * own when Slurm gave each task one, else the local_rank-th; -1: there are GPUs, and none is left.
 */
int host_gpu_of_rank(int local_rank, int local_size);
/* CPU threads for one of local_size ranks on this host, when they are not told apart by
 * OMP_NUM_THREADS, SLURM_CPUS_PER_TASK or the processors that each may run on; 0: all of these. */
int host_threads_of_rank(int local_size);

/* Largest resident memory of this process so far, in bytes. */
int64_t host_memory_peak_bytes(void);

#endif
