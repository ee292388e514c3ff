/* host.c - see host.h. */
#include "runner/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/utsname.h>

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

int64_t host_memory_peak_bytes(void)
{
    struct rusage usage = {0};
    getrusage(RUSAGE_SELF, &usage);
    return (int64_t)usage.ru_maxrss * 1024;
}
