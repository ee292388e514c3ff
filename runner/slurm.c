/* slurm.c - see slurm.h. */
#include "runner/slurm.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MERGE_TIME    "00:30:00"
#define MAX_REQUEUES  50 /* of one job: a run that never gets anywhere must end some day */
#define MAX_ARGUMENTS 32
#define HARMLESS      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+=:,@%-"

/* ---- quoting ---- */

static bool is_harmless(const char *word)
{
    return word[0] != '\0' && word[strspn(word, HARMLESS)] == '\0';
}

void slurm_quote(struct str *out, const char *word)
{
    if (is_harmless(word)) {
        str_append_c(out, word);
        return;
    }
    str_append_c(out, "'");
    for (const char *p = word; *p; p++)
        str_append_c(out, *p == '\'' ? "'\\''" : (char[]){*p, '\0'});
    str_append_c(out, "'");
}

/* sbatch splits its lines at blanks and ends them at #, but for what stands in double quotes; a
 * backslash there protects the next character. */
static void quote_for_sbatch(struct str *out, const char *word)
{
    if (is_harmless(word)) {
        str_append_c(out, word);
        return;
    }
    str_append_c(out, "\"");
    for (const char *p = word; *p; p++) {
        if (*p == '"' || *p == '\\')
            str_append_c(out, "\\");
        str_append(out, p, 1);
    }
    str_append_c(out, "\"");
}

static int check_path(const char *path)
{
    for (const char *p = path; *p; p++)
        if (iscntrl((unsigned char)*p))
            return err_set(ERR_CONFIG,
                           "the path '%s' has a line break or another control character, which no "
                           "sbatch script can hold",
                           path);
    return 0;
}

/* Slurm puts the folder before the log's name and then replaces %j and its like in both; after a
 * backslash it replaces nothing. */
static int check_directory(const char *path)
{
    if (strpbrk(path, "%\\"))
        return err_set(
            ERR_CONFIG,
            "the folder '%s' has a %% or a backslash, which mean something else to Slurm "
            "in the path of a log, so that the job would end without a word: call this "
            "in another folder",
            path);
    return check_path(path);
}

int slurm_check(const struct slurm_job *job)
{
    if (check_path(job->config->path) != 0 || check_path(job->config->results) != 0 ||
        check_path(job->program) != 0)
        return -1;
    return check_directory(job->directory);
}

/* ---- #SBATCH ---- */

/* Nothing for "". */
static void write_option(struct str *out, const char *name, const char *value)
{
    if (value[0] == '\0')
        return;
    str_appendf(out, "#SBATCH --%s=", name);
    quote_for_sbatch(out, value);
    str_append_c(out, "\n");
}

static void write_number(struct str *out, const char *name, int64_t value)
{
    str_appendf(out, "#SBATCH --%s=%lld\n", name, (long long)value);
}

static void write_account(struct str *out, const struct slurm_spec *s)
{
    write_option(out, "partition", s->partition);
    write_option(out, "account", s->account);
    write_option(out, "qos", s->qos);
    write_option(out, "constraint", s->constraint);
}

static void write_resources(struct str *out, const struct slurm_spec *s)
{
    write_number(out, "nodes", s->nodes);
    write_number(out, "ntasks-per-node", s->ntasks_per_node);
    if (s->cpus_per_task != SETTING_AUTO)
        write_number(out, "cpus-per-task", s->cpus_per_task);
    if (s->gpus_per_task > 0)
        write_number(out, "gpus-per-task", s->gpus_per_task);
    write_option(out, "mem", s->mem);
}

static void write_array(struct str *out, const struct slurm_spec *s)
{
    if (s->array == 0)
        return;
    str_appendf(out, "#SBATCH --array=0-%lld", (long long)s->array - 1);
    if (s->array_limit > 0)
        str_appendf(out, "%%%lld", (long long)s->array_limit);
    str_append_c(out, "\n");
}

static void write_options(struct str *out, const struct slurm_job *job)
{
    const struct slurm_spec *s = &job->config->slurm;
    write_option(out, "job-name", job->config->experiment);
    write_option(out, "chdir", job->directory);
    write_option(out, "output",
                 s->array ? SLURM_LOG_DIR "/%x-%A_%a.out" : SLURM_LOG_DIR "/%x-%j.out");
    str_append_c(out, "#SBATCH --open-mode=append\n");
    write_account(out, s);
    write_option(out, "time", s->time);
    if (s->signal_seconds > 0)
        str_appendf(out, "#SBATCH --signal=USR1@%lld\n", (long long)s->signal_seconds);
    str_appendf(out, "#SBATCH --%s\n", s->requeue ? "requeue" : "no-requeue");
    write_array(out, s);
    write_resources(out, s);
    for (size_t i = 0; s->extra && i < s->extra->n_items; i++)
        str_appendf(out, "#SBATCH %s\n", s->extra->item[i]->text);
}

/* ---- the shell part ---- */

static void write_environment(struct str *out, const struct slurm_job *job)
{
    const struct slurm_spec *s = &job->config->slurm;
    size_t n_modules = s->modules ? s->modules->n_items : 0;
    if (n_modules == 0 && s->environment_file[0] == '\0')
        return;
    str_append_c(out, "\nset +u # a site's own scripts may read variables that are not set\n");
    for (size_t i = 0; i < n_modules; i++) {
        str_append_c(out, "module load ");
        slurm_quote(out, s->modules->item[i]->text);
        str_append_c(out, "\n");
    }
    if (s->environment_file[0] != '\0') {
        /* A bare name would be looked for in PATH. */
        char *path = path_join(job->directory, s->environment_file);
        str_append_c(out, "source ");
        slurm_quote(out, path);
        str_append_c(out, "\n");
        free(path);
    }
    str_append_c(out, "set -u\n");
}

/* Keys of this section say nothing to `quire run`. */
static bool is_for_run(const char *set)
{
    return strncmp(set, "slurm.", strlen("slurm.")) != 0;
}

static void write_step(struct str *out, const struct slurm_job *job)
{
    const struct slurm_spec *s = &job->config->slurm;
    str_append_c(out, "srun --kill-on-bad-exit=1");
    if (s->nodes * s->ntasks_per_node > 1)
        str_append_c(out, " --mpi=pmix");
    /* Steps have not inherited it from the job since Slurm 22.05. */
    if (s->cpus_per_task != SETTING_AUTO)
        str_appendf(out, " --cpus-per-task=%lld", (long long)s->cpus_per_task);
    if (s->gpus_per_task > 0)
        str_appendf(out, " --gpus-per-task=%lld", (long long)s->gpus_per_task);
    str_append_c(out, " \\\n    ");
    slurm_quote(out, job->program);
    str_append_c(out, " run ");
    slurm_quote(out, job->config->path);
    for (size_t i = 0; i < job->n_sets; i++) {
        if (!is_for_run(job->sets[i]))
            continue;
        str_append_c(out, " \\\n    --set ");
        slurm_quote(out, job->sets[i]);
    }
    str_append_c(out, " &\n");
}

/* After the step has started. `heard` is for wait, which a trapped signal ends early. */
static const char WAIT_FOR_STEP[] =
    "step=$!\n"
    "ending=no\n"
    "trap 'heard=USR1; kill -USR1 \"$step\" 2>/dev/null || true' USR1\n"
    "trap 'heard=TERM; ending=yes' TERM\n"
    "heard=nothing\n"
    "while [ -n \"$heard\" ]; do # a signal ends wait early\n"
    "    heard='' code=0\n"
    "    wait \"$step\" || code=$?\n"
    "done\n";

static void write_run(struct str *out, const struct slurm_job *job)
{
    str_append_c(
        out, "\n# Slurm sends USR1 to the ranks itself. This shell has to outlive them: it passes"
             " on a USR1\n# of its own, and remembers a TERM, which the ranks get as well.\n");
    write_step(out, job);
    str_append_c(out, WAIT_FOR_STEP);
}

static void write_requeue(struct str *out, const struct slurm_spec *s)
{
    if (!s->requeue)
        return;
    const char *id = s->array ? "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" : "$SLURM_JOB_ID";
    str_append_c(
        out,
        "\n# 75: stopped early, the rest is for another time. But when Slurm itself ends the job"
        " (scancel,\n# preemption, the time limit), a requeue from here would bring a cancelled"
        " job back; its TERM\n# may come to this shell a moment after the ranks. And when Slurm has"
        " started the job again\n# elsewhere, because this node was cut off, it would stop that"
        " attempt.\n"
        "if [ \"$code\" -eq 75 ]; then\n"
        "    sleep 2\n"
        "    if [ \"$ending\" = yes ]; then\n"
        "        echo 'Slurm ends this job: it is not requeued from here'\n");
    str_appendf(out,
                "    elif [ \"${SLURM_RESTART_COUNT:-0}\" -ge %d ]; then\n"
                "        echo \"requeued $SLURM_RESTART_COUNT times: submit again for the rest\"\n"
                "    elif ! scontrol show job -o \"%s\" |\n"
                "        grep -q \" Restarts=${SLURM_RESTART_COUNT:-0} \"; then\n"
                "        echo 'not the latest attempt of this job, or Slurm does not answer: it is"
                " not requeued from here'\n"
                "    else\n"
                "        scontrol requeue \"%s\" || [ \"$ending\" = yes ] ||\n"
                "            echo 'submit again for the rest'\n"
                "    fi\n"
                "fi\n",
                MAX_REQUEUES, id, id);
}

/* ---- the job that merges an array's shards ---- */

static char *merge_command(const struct slurm_job *job)
{
    const char *results = job->config->results;
    struct str command = {0};
    slurm_quote(&command, job->program);
    str_append_c(&command, " merge ");
    slurm_quote(&command, results);
    str_append_c(&command, " ");
    char *shards = xasprintf("%.*s.d", (int)(strlen(results) - strlen(".db")), results);
    slurm_quote(&command, shards);
    str_append_c(&command, "/*.db");
    free(shards);
    return command.data;
}

/* Nothing for "". */
static void add_argument(char **arguments, const char *name, const char *value)
{
    size_t n = 0;
    while (arguments[n])
        n++;
    if (value[0] != '\0')
        arguments[n] = xasprintf("--%s=%s", name, value);
}

char **slurm_merge_arguments(const struct slurm_job *job)
{
    const struct slurm_spec *s = &job->config->slurm;
    char **arguments = xcalloc(MAX_ARGUMENTS, sizeof(*arguments));
    char *name = xasprintf("%s-merge", job->config->experiment);
    char *command = merge_command(job);
    add_argument(arguments, "job-name", name);
    add_argument(arguments, "chdir", job->directory);
    add_argument(arguments, "output", SLURM_LOG_DIR "/%x-%j.out");
    add_argument(arguments, "partition", s->partition);
    add_argument(arguments, "account", s->account);
    add_argument(arguments, "qos", s->qos);
    add_argument(arguments, "time", MERGE_TIME);
    add_argument(arguments, "wrap", command);
    free(command);
    free(name);
    return arguments;
}

void slurm_free_arguments(char **arguments)
{
    for (size_t i = 0; arguments && arguments[i]; i++)
        free(arguments[i]);
    free(arguments);
}

/* ---- all of it ---- */

static void write_how_to_submit(struct str *out, const struct slurm_job *job)
{
    struct str logs = {0};
    str_appendf(&logs, "%s/%s", job->directory, SLURM_LOG_DIR);
    str_append_c(
        out, "# Slurm opens the log before this script runs, so that its folder must be there:\n"
             "#     mkdir -p ");
    slurm_quote(out, logs.data);
    str_free(&logs);
    if (job->config->slurm.array == 0) {
        str_append_c(out, "\n#     sbatch THIS_FILE\n");
        return;
    }
    str_append_c(
        out,
        "\n#     job=$(sbatch --parsable THIS_FILE)\n"
        "# Each worker writes a database of its own; when all have ended, one job unites them:\n"
        "#     sbatch --dependency=afterany:\"${job%%;*}\"");
    char **arguments = slurm_merge_arguments(job);
    for (size_t i = 0; arguments[i]; i++) {
        str_append_c(out, " \\\n#         ");
        slurm_quote(out, arguments[i]);
    }
    slurm_free_arguments(arguments);
    str_append_c(out, "\n# `quire slurm --submit` does all of this.\n");
}

void slurm_write_script(struct str *out, const struct slurm_job *job)
{
    str_appendf(out, "#!/bin/bash\n# %s, written by: quire slurm ", job->config->experiment);
    slurm_quote(out, job->config->path);
    str_append_c(out, "\n");
    write_how_to_submit(out, job);
    str_append_c(out, "#\n");
    write_options(out, job);
    str_append_c(out, "\nset -euo pipefail\n");
    write_environment(out, job);
    write_run(out, job);
    write_requeue(out, &job->config->slurm);
    str_append_c(out, "exit \"$code\"\n");
}
