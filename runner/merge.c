/* merge.c - the `merge` command: the shards of a job array, or any results, into one database. */
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/store.h"
#include "runner/store_file.h"

#include <stdio.h>
#include <stdlib.h>

struct merge {
    const char *out;
    struct store *store;
    struct store_merge_counts total;
    int n_inputs, n_failed;
    enum err_kind failure_kind;      /* of the first input that failed */
    char first_failure[ERR_MAX_LEN]; /* its message                    */
};

static void print_counts(const char *name, const struct store_merge_counts *n)
{
    char tasks[32], attempts[32], samples[32];
    printf("%s: ", name);
    if (n->tasks || n->attempts || n->samples)
        printf("%s tasks, %s attempts, %s samples new\n", format_count(tasks, n->tasks),
               format_count(attempts, n->attempts), format_count(samples, n->samples));
    else
        printf("nothing new\n");
    if (n->nondeterministic)
        printf("  %s samples with another output than before: left out, recorded as events\n",
               format_count(samples, n->nondeterministic));
}

static void add_counts(struct store_merge_counts *total, const struct store_merge_counts *n)
{
    total->tasks += n->tasks;
    total->attempts += n->attempts;
    total->samples += n->samples;
    total->nondeterministic += n->nondeterministic;
}

/* An input that cannot be read does not keep the others out. */
static void merge_file(struct merge *m, const char *from)
{
    struct store_merge_counts counts;
    m->n_inputs++;
    if (store_merge(m->store, from, &counts) == 0) {
        print_counts(from, &counts);
        add_counts(&m->total, &counts);
        return;
    }
    printf("%s: not merged\n", from);
    if (m->n_failed++ > 0) {
        log_warning("%s", err_get());
        return;
    }
    m->failure_kind = err_get_kind();
    snprintf(m->first_failure, sizeof(m->first_failure), "%s", err_get());
}

/* ---- what to do next ---- */

struct progress {
    int64_t tasks, done, failed, pending;
};

static int take_progress(void *user, int n_columns, const char *const *names,
                         const char *const *values, const bool *is_number)
{
    (void)n_columns, (void)names, (void)is_number;
    struct progress *p = user;
    if (values && !(parse_int64(&p->tasks, values[0]) && parse_int64(&p->done, values[1]) &&
                    parse_int64(&p->failed, values[2]) && parse_int64(&p->pending, values[3])))
        return err_set(ERR_DATA, "the view progress has no numbers");
    return 0;
}

static int print_next(const struct merge *m)
{
    struct progress p = {0};
    if (store_query(m->store,
                    "SELECT coalesce(sum(tasks), 0), coalesce(sum(tasks_done), 0),"
                    " coalesce(sum(tasks_failed), 0), coalesce(sum(tasks_pending), 0)"
                    " FROM progress",
                    take_progress, &p) != 0)
        return -1;
    printf("%s: %lld of %lld tasks are done", m->out, (long long)p.done, (long long)p.tasks);
    if (p.failed)
        printf(", %lld failed (`quire results %s --failed`)", (long long)p.failed, m->out);
    if (p.pending)
        printf(", %lld are not finished (the same `quire run` again does what is missing)",
               (long long)p.pending);
    printf("\nsee `quire results %s`", m->out);
    if (m->total.nondeterministic)
        printf(" and `quire results %s --view events`", m->out);
    printf(m->n_failed || p.pending ? "\n" : "; the merged files are not needed any more\n");
    return 0;
}

/* ---- the command ---- */

static int merge_files(struct merge *m, const struct store_files *files, int n)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < files[i].n; j++)
            if (!store_same_file(files[i].path[j], m->out))
                merge_file(m, files[i].path[j]);
    print_counts("total", &m->total);
    if (print_next(m) != 0)
        return -1;
    if (m->n_failed)
        return err_set(m->failure_kind, "%d of %d files could not be merged; the first: %.1800s",
                       m->n_failed, m->n_inputs, m->first_failure);
    return 0;
}

static int no_shards(const char *out)
{
    char *shard = store_shard_path(out, 0, 1);
    char *folder = path_dirname(shard);
    err_set(ERR_DATA, "%s has no shards: there is no database in %s; name the files to merge", out,
            folder);
    free(folder);
    free(shard);
    return -1;
}

/* The files of each input, or the shards of OUT where there is no input. */
static int list_inputs(struct store_files *files, const char *out, const char *const *in, int n)
{
    for (int i = 0; i < n; i++) {
        if (store_list_files(&files[i], in[i]) != 0)
            return -1;
        if (files[i].n == 0)
            return err_set(ERR_DATA, "%s: there are no results", in[i]);
    }
    if (n > 0)
        return 0;
    if (store_list_files(&files[0], out) != 0)
        return -1;
    bool shards = files[0].n > 1 || (files[0].n == 1 && !store_same_file(files[0].path[0], out));
    return shards ? 0 : no_shards(out);
}

/* OUT is opened, and made, only when there is something to merge. */
static int merge_into(const char *out, const char *const *in, int n)
{
    struct merge m = {.out = out};
    if (dir_exists(out))
        return err_set(ERR_CONFIG, "%s is a folder; the first argument is the file to merge into",
                       out);
    struct store_files *files = xcalloc((size_t)MAX(n, 1), sizeof(*files));
    int rc = list_inputs(files, out, in, n);
    if (rc == 0)
        rc = store_open(&m.store, out, STORE_WRITE);
    if (rc == 0)
        rc = merge_files(&m, files, MAX(n, 1));
    if (store_close(m.store) != 0)
        rc = -1;
    for (int i = 0; i < MAX(n, 1); i++)
        store_files_free(&files[i]);
    free(files);
    return rc;
}

int command_merge(int argc, char **argv)
{
    const struct cli_command command = {
        .name = "merge",
        .arguments = "OUT [IN]...",
        .n_arguments = 1,
        .any_more = true,
        .doc =
            "Puts the results of several databases into OUT, which is made or added to. An IN is a\n"
            "database or a folder of them; without any, these are the shards that the workers of\n"
            "a job array wrote for OUT: those of results/x.db are in results/x.d.\n\n"
            "Merging again adds nothing twice. A finished sample replaces a failed one; one with\n"
            "another output than OUT has is left out and recorded as `nondeterministic`.",
    };
    const char **argument = xcalloc((size_t)argc + 1, sizeof(*argument));
    enum cli_result parsed = cli_parse(&command, argc, argv, argument);
    int code = parsed == CLI_HELP ? 0 : ERR_CONFIG;
    if (parsed == CLI_OK) {
        int n = 0;
        while (argument[n + 1])
            n++;
        code = merge_into(argument[0], argument + 1, n) == 0 ? 0 : (int)err_get_kind();
    }
    free(argument);
    return code;
}
