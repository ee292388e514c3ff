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
/* The CPU threads for one of cpu_size ranks of this host that may run on the same processors; 0:
 * all that it may run on. The calling thread, and those that it starts from now on, are left the
 * cpu_rank-th part of these processors, unless there are fewer of them than ranks, or control
 * groups give a quota of time. OMP_NUM_THREADS (0 is returned) and SLURM_CPUS_PER_TASK (which is
 * returned) come first: then nothing is narrowed. */
int host_take_cpus(int cpu_rank, int cpu_size);

/* Largest resident memory of this process so far, in bytes. */
int64_t host_memory_peak_bytes(void);

#endif
