/* doctor.c - the `doctor` command: what this machine and this build can do. */
#include "runner/cli.h"
#include "runner/cluster.h"
#include "runner/commands.h"
#include "runner/decision.h"
#include "runner/host.h"
#include "runner/version.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_GPUS 64 /* of one node */

static void print_build(void)
{
    struct host_facts host;
    host_get_facts(&host);
    printf("quire %s, commit %s%s\n", QUIRE_VERSION, version_git_commit(),
           version_git_dirty() ? " with local changes" : "");
    printf("host         %s, %s\n", host.name, host.os);
    if (host.slurm_job_id[0])
        printf("slurm        job %s\n", host.slurm_job_id);
}

static void print_kernels(const struct device_info *device)
{
    for (int i = 0; i < ATTENTION_N; i++) {
        enum attention_kind kind = (enum attention_kind)i;
        char why[DECISION_REASON_MAX];
        bool usable = decision_can_attend(device, kind, why);
        printf("             attention %-16s %s%s\n", attention_name(kind), usable ? "usable" : why,
               kind == decision_auto_attention(device) ? ", chosen on auto" : "");
    }
}

static void print_cpu(const struct device_info *cpu)
{
    char memory[32], available[32];
    printf("  cpu        %s, %s, %d thread%s, %s of %s memory free\n", cpu->name, cpu->isa,
           cpu->n_threads, cpu->n_threads == 1 ? "" : "s",
           format_bytes(available, (double)cpu->free_bytes),
           format_bytes(memory, (double)cpu->memory_bytes));
    print_kernels(cpu);
}

static void print_gpu(int index, const struct device_info *gpu)
{
    char memory[32], available[32];
    printf(
        "  cuda %-5d %s, compute capability (%d, %d), %s of %s memory free, driver %s, CUDA %s\n",
        index, gpu->name, gpu->compute_major, gpu->compute_minor,
        format_bytes(available, (double)gpu->free_bytes),
        format_bytes(memory, (double)gpu->memory_bytes), gpu->driver, gpu->runtime);
    print_kernels(gpu);
}

/* A GPU that cannot be opened does not hide those after it. */
static void print_gpus(void)
{
    struct device_info info;
    if (!backend_find(DEVICE_CUDA)) {
        printf("  cuda       %s; tasks run on the CPU\n", err_get());
        return;
    }
    for (int i = 0; i < MAX_GPUS; i++) {
        if (device_describe(&info, DEVICE_CUDA, &(struct device_options){.index = i}) == 0)
            print_gpu(i, &info);
        else if (err_get_kind() == ERR_CONFIG) /* there is no such GPU */
            return;
        else
            printf("  cuda %-5d %s%s\n", i, err_get(), i == 0 ? "; tasks run on the CPU" : "");
    }
}

static int print_devices(void)
{
    struct device_info info;
    printf("\ndevices\n");
    print_gpus();
    err_clear();
    if (device_describe(&info, DEVICE_CPU,
                        &(struct device_options){.isa = config_get_environment("QUIRE_CPU_ISA")}) !=
        0)
        return -1;
    print_cpu(&info);
    return 0;
}

static void print_mpi(void)
{
    char *path = library_find(CLUSTER_LIBRARY);
    if (path)
        printf("\nMPI\n  %s: `srun --mpi=pmix quire run` and `mpirun quire run` start several "
               "ranks\n",
               path);
    else
        printf("\nMPI\n  not in this build (" CLUSTER_LIBRARY "): a run is one process; with "
               "OpenMPI's mpicc, run make again\n");
    free(path);
}

static void print_environment(void)
{
    printf("\nenvironment variables\n");
    for (size_t i = 0; i < config_n_variables(); i++) {
        const struct config_variable *v = config_get_variable(i);
        const char *value = getenv(v->name);
        printf("  %-18s %-12s %s\n", v->name, value ? value : "(not set)", v->doc);
    }
}

int command_doctor(int argc, char **argv)
{
    const struct cli_command command = {
        .name = "doctor",
        .arguments = "",
        .doc =
            "Shows the build, the devices with the attention kernels they can run, whether there\n"
            "is MPI, and the environment variables that quire reads.",
    };
    enum cli_result parsed = cli_parse(&command, argc, argv, NULL);
    if (parsed != CLI_OK)
        return parsed == CLI_HELP ? 0 : ERR_CONFIG;
    print_build();
    if (print_devices() != 0)
        return (int)err_get_kind();
    print_mpi();
    print_environment();
    return 0;
}
