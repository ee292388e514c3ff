/* machine.c - see machine.h. */
#include "kernels/cpu/machine.h"
#include "engine/util.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LINE_LEN 8192

/* The number after the line's `key`, in a file of "key value" lines; `missing` when absent. */
static size_t file_value(const char *path, const char *key, size_t missing)
{
    char line[MAX_LINE_LEN];
    size_t value = missing, key_len = strlen(key);
    FILE *f = fopen(path, "r");
    if (!f)
        return missing;
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, key_len) != 0)
            continue;
        char *end, *number = line + key_len;
        unsigned long long parsed = strtoull(number, &end, 10);
        if (end != number)
            value = (size_t)parsed;
        break;
    }
    fclose(f);
    return value;
}

/* ---- control groups ---- */

struct cgroup_files {
    const char *memory_max, *memory_now, *memory_cache_key; /* the cache key is in memory.stat */
};

static const struct cgroup_files files_v1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                                             "total_inactive_file "};
static const struct cgroup_files files_v2 = {"memory.max", "memory.current", "inactive_file "};

static size_t group_value(const char *group, const char *file, const char *key, size_t missing)
{
    char *path = path_join(group, file);
    size_t value = file_value(path, key, missing);
    free(path);
    return value;
}

static void memory_narrow(struct cgroup_limits *limits, const char *group,
                          const struct cgroup_files *files)
{
    size_t max = group_value(group, files->memory_max, "", MACHINE_UNLIMITED);
    if (max >= MACHINE_UNLIMITED / 4) /* version 1 writes "no limit" as a huge number */
        return;
    size_t used = group_value(group, files->memory_now, "", 0);
    size_t cache = group_value(group, "memory.stat", files->memory_cache_key, 0);
    used -= MIN(used, cache); /* dropped by the kernel before anyone is killed */
    limits->memory_bytes = MIN(limits->memory_bytes, max);
    limits->memory_free_bytes = MIN(limits->memory_free_bytes, max - MIN(max, used));
}

static void cpus_narrow(struct cgroup_limits *limits, const char *group)
{
    double quota = 0, period = 0;
    char *path = path_join(group, "cpu.max");
    FILE *f = fopen(path, "r");
    free(path);
    if (f) {
        if (fscanf(f, "%lf %lf", &quota, &period) != 2) /* "max 100000": no limit */
            quota = 0;
        fclose(f);
    } else {
        quota = (double)group_value(group, "cpu.cfs_quota_us", "", 0);
        period = (double)group_value(group, "cpu.cfs_period_us", "", 0);
        if (quota >= 1e15) /* -1, no limit, was read as the largest unsigned number */
            quota = 0;
    }
    if (quota > 0 && period > 0)
        limits->cpus = limits->cpus > 0 ? fmin(limits->cpus, quota / period) : quota / period;
}

/* A limit of any ancestor binds as well: walks from mount/path up to mount itself. */
static void group_narrow(struct cgroup_limits *limits, const char *mount, const char *path,
                         const struct cgroup_files *files)
{
    char *group = xasprintf("%s%s", mount, path);
    for (size_t len = strlen(group); len >= strlen(mount); len--) {
        if (group[len] != '\0' && group[len] != '/')
            continue;
        group[len] = '\0';
        memory_narrow(limits, group, files);
        cpus_narrow(limits, group);
    }
    free(group);
}

static bool lists_controller(const char *controllers, const char *name)
{
    size_t len = strlen(name);
    for (const char *at = controllers; (at = strstr(at, name)); at += len) {
        bool starts = at == controllers || at[-1] == ',';
        if (starts && (at[len] == ',' || at[len] == '\0'))
            return true;
    }
    return false;
}

/* One line of /proc/self/cgroup, "hierarchy:controllers:path"; version 2 has no controllers. */
static void membership_narrow(struct cgroup_limits *limits, const char *root, char *line)
{
    line[strcspn(line, "\n")] = '\0';
    char *controllers = strchr(line, ':');
    char *path = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!path)
        return;
    controllers++;
    *path++ = '\0';
    if (controllers[0] == '\0') {
        group_narrow(limits, root, path, &files_v2);
        return;
    }
    static const char *const names[] = {"memory", "cpu"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (!lists_controller(controllers, names[i]))
            continue;
        char *mount = path_join(root, names[i]);
        group_narrow(limits, mount, path, &files_v1);
        free(mount);
    }
}

struct cgroup_limits cgroup_limits_read(const char *membership, const char *root)
{
    struct cgroup_limits limits = {MACHINE_UNLIMITED, MACHINE_UNLIMITED, 0};
    char line[MAX_LINE_LEN];
    FILE *f = fopen(membership, "r");
    if (!f)
        return limits;
    while (fgets(line, sizeof(line), f))
        membership_narrow(&limits, root, line);
    fclose(f);
    return limits;
}

static struct cgroup_limits own_limits(void)
{
    return cgroup_limits_read("/proc/self/cgroup", "/sys/fs/cgroup");
}

/* ---- the machine ---- */

void machine_cpu_name(char name[128])
{
    char line[MAX_LINE_LEN];
    snprintf(name, 128, "unknown processor");
    FILE *f = fopen("/proc/cpuinfo", "r");
    if (!f)
        return;
    while (fgets(line, sizeof(line), f)) {
        const char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !value)
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(name, 128, "%.127s", value + strspn(value, ": "));
        break;
    }
    fclose(f);
}

/* A line of /proc/meminfo; the file counts in KiB. */
static size_t meminfo_bytes(const char *key)
{
    size_t kib = file_value("/proc/meminfo", key, MACHINE_UNLIMITED);
    return kib == MACHINE_UNLIMITED ? MACHINE_UNLIMITED : kib * 1024;
}

size_t machine_memory_bytes(void)
{
    return MIN(meminfo_bytes("MemTotal:"), own_limits().memory_bytes);
}

size_t machine_memory_free_bytes(void)
{
    return MIN(meminfo_bytes("MemAvailable:"), own_limits().memory_free_bytes);
}

int machine_cpus(void)
{
    /* Not the mask of this thread: with OMP_PROC_BIND that is one processor. */
    int cpus = omp_get_num_procs();
    double quota = own_limits().cpus;
    if (quota > 0)
        cpus = MIN(cpus, (int)ceil(quota));
    return MAX(cpus, 1);
}
