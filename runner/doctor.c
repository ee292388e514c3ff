/* doctor.c - the `doctor` command: what this machine and this build can do. */
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/config.h"
#include "runner/host.h"
#include "runner/version.h"

#include <stdio.h>
#include <stdlib.h>

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

static int print_devices(void)
{
    struct device_info cpu;
    char memory[32], available[32];
    struct device_options options = {.isa = getenv("QUIRE_CPU_ISA")};
    printf("\ndevices\n");
    if (device_describe(&cpu, DEVICE_CPU, &options) != 0)
        return -1;
    printf("  cpu        %s, %s, %d thread%s, %s of %s memory free\n", cpu.name, cpu.isa,
           cpu.n_threads, cpu.n_threads == 1 ? "" : "s",
           format_bytes(available, (double)cpu.free_bytes),
           format_bytes(memory, (double)cpu.memory_bytes));
    printf("             attention %-6s usable, chosen on auto\n", attention_name(ATTENTION_FLASH));
    printf("             attention %-6s usable\n", attention_name(ATTENTION_EAGER));
    printf("  cuda       not in this build: tasks run on the CPU\n");
    return 0;
}

static void print_environment(void)
{
    printf("\nenvironment variables\n");
    for (size_t i = 0; i < config_n_variables(); i++) {
        const struct config_variable *v = config_get_variable(i);
        const char *value = getenv(v->name);
        printf("  %-16s %-12s %s\n", v->name, value ? value : "(not set)", v->doc);
    }
}

int command_doctor(int argc, char **argv)
{
    const struct cli_command command = {
        .name = "doctor",
        .arguments = "",
        .doc = "Shows the build, the devices with the attention kernels they can run, and the\n"
               "environment variables that quire reads.",
    };
    enum cli_result parsed = cli_parse(&command, argc, argv, NULL);
    if (parsed != CLI_OK)
        return parsed == CLI_HELP ? 0 : ERR_CONFIG;
    print_build();
    if (print_devices() != 0)
        return (int)err_get_kind();
    print_environment();
    return 0;
}
