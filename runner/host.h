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
/* Where cpu_size ranks of this host may run on the same processors, gives the calling thread, and
 * the threads that it starts from now on, the cpu_rank-th part of them, and returns its number of
 * processors. Where there are fewer than ranks, or a quota of time instead of processors, it
 * narrows nothing and returns the rank's share. 0: the rank's own threads are told apart by the
 * launcher's binding, and all that it may run on are its own; or OMP_NUM_THREADS or
 * SLURM_CPUS_PER_TASK, whose number is returned, or used by OpenMP. */
int host_take_cpus(int cpu_rank, int cpu_size);

/* Largest resident memory of this process so far, in bytes. */
int64_t host_memory_peak_bytes(void);

#endif
