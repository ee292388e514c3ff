/* slurm_command.c - the `slurm` command: prints the sbatch script of an experiment, or submits it.
 */
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/slurm.h"
#include "runner/work.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_SBATCH_ARGUMENTS 64
#define MAX_JOB_ID_LEN       32

/* ---- sbatch ---- */

/* A file without a name that holds the text, to be a program's standard input; NULL with
 * ERR_RESOURCE. */
static FILE *open_text(const char *text)
{
    FILE *f = tmpfile();
    if (f && fputs(text, f) >= 0 && fflush(f) == 0 && fseek(f, 0, SEEK_SET) == 0)
        return f;
    err_set(ERR_RESOURCE, "no room for a temporary file with the script: %s", strerror(errno));
    if (f)
        fclose(f);
    return NULL;
}

/* All of what can be read until the end, cut to fit; closes fd. */
static void read_all(int fd, char *out, size_t capacity)
{
    size_t len = 0;
    ssize_t n;
    char rest[256];
    do {
        bool full = len + 1 >= capacity;
        n = full ? read(fd, rest, sizeof(rest)) : read(fd, out + len, capacity - 1 - len);
        if (n > 0 && !full)
            len += (size_t)n;
    } while (n > 0 || (n < 0 && errno == EINTR));
    out[len] = '\0';
    close(fd);
}

static int wait_for(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return err_set(ERR_RESOURCE, "cannot wait for sbatch: %s", strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    return err_set(ERR_RESOURCE, "sbatch did not take the job (%s %d); its own message is above",
                   WIFEXITED(status) ? "exit status" : "signal",
                   WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

static int start(pid_t *pid, char **argv, int in, int out)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    int error = posix_spawnp(pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error == ENOENT)
        return err_set(ERR_RESOURCE,
                       "there is no sbatch on the PATH, so this is no machine to submit from; "
                       "`quire slurm CONFIG --output FILE` writes the script for one");
    if (error != 0)
        return err_set(ERR_RESOURCE, "cannot start sbatch: %s", strerror(error));
    return 0;
}

/* sbatch --parsable prints "ID" or "ID;CLUSTER" as its last line; a site's plugin may print before.
 */
static int parse_id(char id[MAX_JOB_ID_LEN], char *printed)
{
    size_t len = strlen(printed);
    while (len > 0 && printed[len - 1] == '\n')
        printed[--len] = '\0';
    const char *line = strrchr(printed, '\n');
    line = line ? line + 1 : printed;
    size_t digits = strspn(line, "0123456789");
    if (digits == 0 || digits >= MAX_JOB_ID_LEN || (line[digits] && line[digits] != ';'))
        return err_set(ERR_RESOURCE, "sbatch printed '%s'; expected the number of a job", line);
    memcpy(id, line, digits);
    id[digits] = '\0';
    return 0;
}

/* argv[0] is "sbatch"; script: what it reads. */
static int run_sbatch(char id[MAX_JOB_ID_LEN], char **argv, const char *script)
{
    char printed[4096];
    int ends[2];
    pid_t pid;
    FILE *in = open_text(script);
    if (!in)
        return -1;
    if (pipe2(ends, O_CLOEXEC) != 0) {
        fclose(in);
        return err_set(ERR_RESOURCE, "cannot make a pipe for sbatch: %s", strerror(errno));
    }
    int rc = start(&pid, argv, fileno(in), ends[1]);
    fclose(in);
    close(ends[1]);
    read_all(ends[0], printed, sizeof(printed));
    if (rc == 0)
        rc = wait_for(pid);
    return rc == 0 ? parse_id(id, printed) : rc;
}

static int submit_merge(char id[MAX_JOB_ID_LEN], const struct slurm_job *job, const char *array_id)
{
    char *argv[MAX_SBATCH_ARGUMENTS] = {"sbatch", "--parsable"};
    char *dependency = xasprintf("--dependency=afterany:%s", array_id);
    char **arguments = slurm_merge_arguments(job);
    size_t n = 2;
    argv[n++] = dependency;
    for (size_t i = 0; arguments[i] && n < MAX_SBATCH_ARGUMENTS - 1; i++)
        argv[n++] = arguments[i];
    int rc = run_sbatch(id, argv, "");
    if (rc != 0)
        err_prefix("job %s is submitted, but not the one that merges its shards", array_id);
    slurm_free_arguments(arguments);
    free(dependency);
    return rc;
}

static int submit(const struct slurm_job *job, const char *script)
{
    const struct config *c = job->config;
    char id[MAX_JOB_ID_LEN], merge_id[MAX_JOB_ID_LEN];
    if (dir_make(SLURM_LOG_DIR) != 0 ||
        run_sbatch(id, (char *[]){"sbatch", "--parsable", NULL}, script) != 0)
        return -1;
    printf("job %s: %s", id, c->experiment);
    if (c->slurm.array)
        printf(", %lld workers", (long long)c->slurm.array);
    printf("; its output goes to %s/%s-%s%s.out\n", SLURM_LOG_DIR, c->experiment, id,
           c->slurm.array ? "_*" : "");
    if (c->slurm.array && submit_merge(merge_id, job, id) != 0)
        return -1;
    if (c->slurm.array)
        printf("job %s: merges the workers' shards into %s when all have ended\n", merge_id,
               c->results);
    struct str path = {0};
    slurm_quote(&path, c->path);
    printf("Next:\n  quire status %s\n  squeue -j %s\n  scancel %s\n", path.data, id, id);
    str_free(&path);
    return 0;
}

/* ---- the command ---- */

/* What this machine can see of the work, before it waits in a queue for hours. The cluster's nodes
 * may see more, so nothing here is an error. */
static int warn_of_work(struct config *c)
{
    const struct decision_policy policy = {.allow_cpu = true, .allow_standard_engine = true};
    struct work_list list;
    int rc = work_list_make(&list, c, &policy);
    const char *error = NULL;
    int n_errors = 0;
    for (int g = 0; rc == 0 && g < list.n_groups; g++) {
        for (int i = 0; i < list.group[g].n; i++) {
            const struct work *w = &list.group[g].work[i];
            n_errors += w->error != NULL;
            error = error ? error : w->error;
        }
    }
    if (n_errors)
        log_warning("%d of %d tasks could not run on this machine: %s", n_errors, list.tasks.n,
                    error);
    int64_t n_samples = rc == 0 ? work_list_share(&list) : 0;
    if (n_samples > 0 && c->slurm.array > n_samples)
        log_warning("slurm.array is %lld, but there are only %lld samples: the other workers will "
                    "have nothing to do",
                    (long long)c->slurm.array, (long long)n_samples);
    work_list_free(&list);
    return rc;
}

static int write_file(const char *path, const struct str *script)
{
    FILE *f = fopen(path, "w");
    bool written = f && fwrite(script->data, 1, script->len, f) == script->len;
    if (f && fclose(f) != 0)
        written = false;
    if (!written)
        return err_set(ERR_RESOURCE, "%s cannot be written: %s", path, strerror(errno));
    return 0;
}

static int find_paths(char program[PATH_MAX], char directory[PATH_MAX])
{
    ssize_t n = readlink("/proc/self/exe", program, PATH_MAX - 1);
    if (n < 0 || !getcwd(directory, PATH_MAX))
        return err_set(ERR_RESOURCE, "cannot find out where quire runs: %s", strerror(errno));
    program[n] = '\0';
    return 0;
}

static int make_job(struct config *c, const struct cli_list *sets, const char *output, bool submits)
{
    char program[PATH_MAX], directory[PATH_MAX];
    if (find_paths(program, directory) != 0)
        return -1;
    const struct slurm_job job = {.config = c,
                                  .program = program,
                                  .directory = directory,
                                  .sets = sets->text,
                                  .n_sets = sets->n};
    if (slurm_check(&job) != 0 || warn_of_work(c) != 0)
        return -1;
    struct str script = {0};
    slurm_write_script(&script, &job);
    int rc = output ? write_file(output, &script) : 0;
    if (!output && !submits)
        fputs(script.data, stdout);
    if (rc == 0 && submits)
        rc = submit(&job, script.data);
    str_free(&script);
    return rc;
}

int command_slurm(int argc, char **argv)
{
    struct cli_list sets = {0};
    const char *config_path, *output = NULL;
    bool submits = false;
    const struct cli_option options[] = {
        {"submit", NULL, "run sbatch, also for the job that merges an array's shards", CLI_FLAG,
         &submits},
        {"set", "KEY=VALUE", "override a key of the config; may be repeated", CLI_LIST, &sets},
        {"output", "FILE", "write the script to a file instead of printing it", CLI_TEXT, &output},
    };
    const struct cli_command command = {
        .name = "slurm",
        .arguments = "CONFIG",
        .n_arguments = 1,
        .doc = "Prints the sbatch script of an experiment: its resources are the keys slurm.* of\n"
               "the config, and it works in the folder where this command is called. The job is\n"
               "told before its time limit, commits what is finished and requeues itself.",
        .option = options,
        .n_options = ARRAY_LEN(options),
    };
    struct config *c;
    enum cli_result parsed = cli_parse(&command, argc, argv, &config_path);
    if (parsed != CLI_OK)
        return parsed == CLI_HELP ? 0 : ERR_CONFIG;
    if (config_load(&c, config_path, sets.text, sets.n) != 0)
        return (int)err_get_kind();
    int rc = make_job(c, &sets, output, submits);
    config_close(c);
    return rc == 0 ? 0 : (int)err_get_kind();
}
