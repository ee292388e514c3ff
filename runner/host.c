/* host.c - see host.h. */
#include "runner/host.h"

#include <glob.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

static const char *environment_text(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "";
}

void host_get_facts(struct host_facts *out)
{
    struct utsname u = {0};
    *out = (struct host_facts){
        .slurm_job_id = environment_text("SLURM_JOB_ID"),
        .slurm_array_job_id = environment_text("SLURM_ARRAY_JOB_ID"),
        .slurm_array_task_id = environment_text("SLURM_ARRAY_TASK_ID"),
    };
    int64_t restarts;
    if (parse_int64(&restarts, environment_text("SLURM_RESTART_COUNT")))
        out->slurm_restart_count = (int)restarts;
    if (uname(&u) == 0) {
        snprintf(out->name, sizeof(out->name), "%s", u.nodename);
        snprintf(out->os, sizeof(out->os), "%s %s %s", u.sysname, u.release, u.machine);
    }
}

int64_t host_put_environment(struct store *s, const struct host_facts *host,
                             const struct device_info *cpu, const struct device_info *gpu)
{
    char capability[32] = "";
    if (gpu->name[0])
        snprintf(capability, sizeof(capability), "%d.%d", gpu->compute_major, gpu->compute_minor);
    return store_put_environment(
        s, &(struct store_environment){.host = host->name,
                                       .os = host->os,
                                       .cpu = cpu->name,
                                       .cpu_isa = cpu->isa,
                                       .gpu = gpu->name,
                                       .driver = gpu->driver,
                                       .cuda = gpu->runtime,
                                       .compute_capability = capability,
                                       .n_threads = cpu->n_threads,
                                       .memory_bytes = (int64_t)cpu->memory_bytes,
                                       .gpu_memory_bytes = (int64_t)gpu->memory_bytes});
}

/* Those that CUDA_VISIBLE_DEVICES leaves, else all that the driver has a device file for. */
static int count_gpus(void)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible) {
        int n = *visible ? 1 : 0;
        for (; *visible; visible++)
            n += *visible == ',';
        return n;
    }
    glob_t found;
    int n = glob("/dev/nvidia[0-9]*", 0, NULL, &found) == 0 ? (int)found.gl_pathc : 0;
    globfree(&found);
    return n;
}

int host_gpu_of_rank(int local_rank, int local_size)
{
    int n_gpus = count_gpus();
    bool given_one = n_gpus == 1 && (getenv("SLURM_GPUS_PER_TASK") || getenv("SLURM_STEP_GPUS"));
    if (n_gpus == 0 || local_size == 1 || given_one)
        return 0;
    return local_rank < n_gpus ? local_rank : -1;
}

/* Leaves in *cpus only those from the first-th to before the end-th. */
static void keep_cpus(cpu_set_t *cpus, int first, int end)
{
    for (int cpu = 0, n = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, cpus))
            continue;
        if (n < first || n >= end)
            CPU_CLR(cpu, cpus);
        n++;
    }
}

int host_take_cpus(int cpu_rank, int cpu_size)
{
    int64_t n;
    cpu_set_t cpus;
    struct device_info info;
    if (cpu_size == 1 || parse_int64(&n, environment_text("OMP_NUM_THREADS")))
        return 0;
    if (parse_int64(&n, environment_text("SLURM_CPUS_PER_TASK")))
        return (int)n;
    if (device_describe(&info, DEVICE_CPU, &(struct device_options){0}) != 0 ||
        sched_getaffinity(0, sizeof(cpus), &cpus) != 0)
        return 0;
    if (CPU_COUNT(&cpus) == info.n_threads && info.n_threads >= cpu_size) {
        keep_cpus(&cpus, info.n_threads * cpu_rank / cpu_size,
                  info.n_threads * (cpu_rank + 1) / cpu_size);
        if (sched_setaffinity(0, sizeof(cpus), &cpus) == 0)
            return CPU_COUNT(&cpus);
    }
    return MAX(info.n_threads / cpu_size, 1);
}

int64_t host_memory_peak_bytes(void)
{
    struct rusage usage = {0};
    getrusage(RUSAGE_SELF, &usage);
    return (int64_t)usage.ru_maxrss * 1024;
}
