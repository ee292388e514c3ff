/* run.c - the `run` command: every task of an experiment, on one rank or many.
 *
 *   every rank   config -> work list -> worker (worker.h)
 *   rank 0       also the store and the desk (desk.h), which hands out what is not done yet
 *
 * What fails is a failed row, and the others go on: a model that cannot be loaded fails the
 * attempts of its tasks, a prompt that cannot run fails its samples.
 */
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/host.h"
#include "runner/job.h"
#include "runner/stop.h"
#include "runner/version.h"
#include "runner/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NAP_NS 10000000 /* while other ranks end */

struct run {
    struct config *config;
    const char *command_line;
    struct work_list work;
    struct decision_policy policy;
    struct cluster *cluster; /* NULL: alone */
    double began_s;          /* time_monotonic_s() */
    struct trace *trace;     /* NULL: none */
    struct job_array array;  /* count 1: this is no worker of one */

    /* Of rank 0. */
    char *path; /* of the database that is written: the config's, or a worker's shard of it */
    struct store *store;
    struct desk *desk;
    struct link_server server;
    int64_t experiment_id, run_id;
};

/* Every rank's first part: models and prompts. */
static int make_work(struct run *r)
{
    double began_s = trace_now(r->trace);
    int rc = work_list_make(&r->work, r->config, &r->policy);
    trace_end(r->trace, TRACE_HOST, "make work list", began_s);
    return rc;
}

/* ---- records ---- */

static int put_experiment(struct run *r)
{
    json_t *settings = config_settings_json(&r->config->base);
    char *text = json_dumps(settings, JSON_COMPACT | JSON_REAL_PRECISION(15));
    json_decref(settings);
    r->experiment_id = store_put_experiment(
        r->store, &(struct store_experiment){.name = r->config->experiment,
                                             .config_path = r->config->path,
                                             .config_text = r->config->text,
                                             .resolved_json = text,
                                             .version = QUIRE_VERSION,
                                             .git_commit = version_git_commit(),
                                             .git_dirty = version_git_dirty()});
    free(text);
    return r->experiment_id < 0 ? -1 : 0;
}

/* The GPU that tasks of this run use, or an empty description. */
static struct device_info find_gpu(const struct run *r)
{
    for (int g = 0; g < r->work.n_groups; g++)
        if (r->work.group[g].info.device.kind == DEVICE_CUDA)
            return r->work.group[g].info.device;
    return (struct device_info){0};
}

static int64_t put_environment(struct run *r, const struct host_facts *host)
{
    struct device_info cpu, gpu = find_gpu(r);
    struct model_options options;
    task_model_options(&r->work.tasks.task[0], &options);
    if (device_describe(&cpu, DEVICE_CPU, &options.device_options) != 0)
        return -1;
    return host_put_environment(r->store, host, &cpu, &gpu);
}

static int begin_run(struct run *r)
{
    struct host_facts host;
    host_get_facts(&host);
    int64_t environment = put_environment(r, &host);
    if (environment < 0 || put_experiment(r) != 0)
        return -1;
    r->run_id = store_begin_run(r->store,
                                &(struct store_run){.experiment_id = r->experiment_id,
                                                    .environment_id = environment,
                                                    .argv = r->command_line,
                                                    .host = host.name,
                                                    .slurm_job_id = host.slurm_job_id,
                                                    .slurm_array_job_id = host.slurm_array_job_id,
                                                    .slurm_array_task_id = host.slurm_array_task_id,
                                                    .restart_count = host.slurm_restart_count,
                                                    .mpi_size = cluster_get_place(r->cluster).size,
                                                    .pid = getpid()});
    return r->run_id < 0 ? -1 : 0;
}

/* ---- rank 0 ---- */

/* Marks what is finished in the database and in the shards of job arrays. */
static int find_done(struct run *r)
{
    struct store_files files;
    if (store_list_files(&files, r->config->results) != 0)
        return -1;
    int rc = work_list_find_done(&r->work, r->store);
    for (int i = 0; i < files.n && rc == 0; i++) {
        struct store *other;
        if (strcmp(files.path[i], r->path) == 0)
            continue;
        rc = store_open_file(&other, files.path[i]);
        if (rc == 0 && other)
            rc = work_list_find_done(&r->work, other);
        store_close(other);
    }
    store_files_free(&files);
    return rc;
}

static int open_store(struct run *r)
{
    const struct job_array *array = &r->array;
    struct host_facts host;
    host_get_facts(&host);
    char *job = host.slurm_array_job_id[0]
                    ? xasprintf("%s_%s", host.slurm_array_job_id, host.slurm_array_task_id)
                    : xstrdup(host.slurm_job_id);
    r->path = array->count > 1 ? store_shard_path(r->config->results, array->index, array->count)
                               : xstrdup(r->config->results);
    struct store_owner owner = {.job = job, .restart_count = host.slurm_restart_count};
    int rc = store_open_as(&r->store, r->path, &owner);
    free(job);
    return rc;
}

static void log_start(const struct run *r)
{
    const struct job_array *array = &r->array;
    struct cluster_place place = cluster_get_place(r->cluster);
    int n_tasks = 0, n_done = 0;
    for (int g = 0; g < r->work.n_groups; g++) {
        for (int i = 0; i < r->work.group[g].n; i++) {
            const struct work *w = &r->work.group[g].work[i];
            n_tasks++;
            n_done += w->n_pending == 0 && w->n_share > 0;
        }
    }
    log_info("Experiment %s: %d tasks, %lld samples; results go to %s", r->config->experiment,
             n_tasks, (long long)work_list_share(&r->work), r->path);
    if (array->count > 1)
        log_info("Worker %d of the %d of a job array: its share is %lld samples", array->index,
                 array->count, (long long)work_list_share(&r->work));
    if (place.size > 1)
        log_info("%d ranks, %d on this host", place.size, place.local_size);
    if (n_done)
        log_info("%d task%s already done", n_done, n_done == 1 ? "" : "s");
    work_list_warn(&r->work);
}

static int open_desk(struct run *r)
{
    double began_s = trace_now(r->trace);
    if (open_store(r) != 0 || begin_run(r) != 0 ||
        work_list_record(&r->work, r->store, r->experiment_id) != 0 || find_done(r) != 0)
        return -1;
    trace_end(r->trace, TRACE_STORE, "open database", began_s);
    work_list_take_share(&r->work, r->array.index, r->array.count);
    log_start(r);
    return desk_open(&r->desk, &(struct desk_options){.config = r->config,
                                                      .work = &r->work,
                                                      .store = r->store,
                                                      .run_id = r->run_id,
                                                      .n_ranks = cluster_get_place(r->cluster).size,
                                                      .strict = r->policy.strict,
                                                      .trace = r->trace,
                                                      .began_s = r->began_s});
}

static int log_end(const struct run *r, const struct desk_summary *s)
{
    const char *db = r->config->results;
    if (s->failure)
        return err_set(s->failure, "%s", s->reason) ? (int)s->failure : 0;
    err_clear(); /* What failed is in the log and in its row. */
    if (!s->finished) {
        log_warning("stopped by %s after %lld of %lld samples; run the same command again to do "
                    "the rest",
                    stop_reason(), (long long)s->n_done, (long long)s->n_total);
        return ERR_STOPPED;
    }
    if (s->n_failed_tasks) {
        log_warning("%d task%s failed; `quire results %s --failed` says why, and the same command "
                    "tries them again",
                    s->n_failed_tasks, s->n_failed_tasks == 1 ? "" : "s", db);
        return ERR_RUN;
    }
    return 0;
}

/* Only when the last commit has been made: all that the message says is true then. */
static void log_done(const struct run *r, const struct desk_summary *s)
{
    char took[32], first[64] = "";
    if (s->first_token_s > 0)
        snprintf(first, sizeof(first), " (first token after %.2f s)",
                 s->first_token_s - r->began_s);
    log_info("Done in %s%s: %lld samples are in %s; see `quire results %s`",
             format_seconds(took, time_monotonic_s() - r->began_s), first, (long long)s->n_total,
             r->path, r->config->results);
}

/* Ends the run in the store. Returns the exit code. */
static int close_desk(struct run *r)
{
    int code = (int)err_get_kind();
    struct desk_summary summary = {0};
    if (r->desk) {
        summary = desk_finish(r->desk);
        code = log_end(r, &summary);
    }
    if (r->run_id > 0 && store_end_run(r->store, r->run_id, code) != 0 && code == 0)
        code = (int)err_get_kind();
    if (store_close(r->store) != 0 && code == 0)
        code = (int)err_get_kind();
    if (r->desk && code == 0)
        log_done(r, &summary);
    desk_close(r->desk);
    free(r->path);
    return code;
}

static void on_idle(void *user)
{
    desk_tick(((struct link_server *)user)->desk);
}

static void on_lost(void *user, int rank)
{
    desk_lose(((struct link_server *)user)->desk, rank);
}

/* The last rank to end may still have the longest sequence to finish. */
static void wait_for_ranks(struct run *r)
{
    while (!desk_all_left(r->desk))
        nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
}

static int run_rank_0(struct run *r)
{
    stop_set_job_end(job_end_time());
    if (make_work(r) == 0 && open_desk(r) == 0) {
        r->server = (struct link_server){.cluster = r->cluster, .desk = r->desk};
        if (r->cluster)
            cluster_listen(r->cluster, &(struct cluster_events){.user = &r->server,
                                                                .on_message = link_serve,
                                                                .on_idle = on_idle,
                                                                .on_lost = on_lost});
        struct link *link = link_open(r->cluster, r->desk);
        worker_run(&(struct worker_options){.work = &r->work,
                                            .policy = r->policy,
                                            .link = link,
                                            .cluster = r->cluster,
                                            .desk = r->cluster ? NULL : r->desk,
                                            .trace = r->trace,
                                            .began_s = r->began_s});
        link_leave(link);
        link_close(link);
        wait_for_ranks(r);
        if (r->cluster)
            cluster_listen(r->cluster, &(struct cluster_events){0});
    }
    return close_desk(r);
}

/* ---- the other ranks ---- */

/* One whose work list cannot be made still greets, with an empty list, and so gets no work. */
static int run_other_rank(struct run *r)
{
    char prefix[32];
    snprintf(prefix, sizeof(prefix), "rank %d: ", cluster_get_place(r->cluster).rank);
    log_set_prefix(prefix);
    if (log_get_level() == LOG_INFO)
        log_set_level("warning");
    if (make_work(r) != 0)
        log_warning("cannot read the experiment: %s", err_get());
    struct link *link = link_open(r->cluster, NULL);
    worker_run(&(struct worker_options){.work = &r->work,
                                        .policy = r->policy,
                                        .link = link,
                                        .cluster = r->cluster,
                                        .trace = r->trace,
                                        .began_s = r->began_s});
    int code = link_leave(link);
    link_close(link);
    return code;
}

/* ---- the command ---- */

/* Begins the trace of this rank; the workers of an array are given one path, too. */
static int open_trace(struct run *r, const char *path)
{
    int rank = cluster_rank_of_environment();
    char *title = xasprintf("quire run %s, rank %d", r->config->experiment, rank);
    char *own = r->array.count > 1 ? trace_path_of(path, "worker", r->array.index) : xstrdup(path);
    int rc = trace_open(&r->trace, own, rank, title);
    free(own);
    free(title);
    if (rc != 0 && rank > 0) /* rank 0 need not have the same file system */
        log_warning("rank %d: %s", rank, err_get());
    return rc;
}

static int run_experiment(struct run *r)
{
    stop_catch_signals();
    if (cluster_open(&r->cluster) != 0)
        return (int)err_get_kind();
    struct cluster_place place = cluster_get_place(r->cluster);
    r->policy.gpu = host_gpu_of_rank(place.local_rank, place.local_size);
    int code;
    if (place.rank > 0) {
        code = run_other_rank(r);
    } else {
        code = run_rank_0(r);
        if (r->cluster)
            link_dismiss(r->cluster, code);
    }
    cluster_close(r->cluster);
    work_list_free(&r->work);
    return code;
}

int command_run(int argc, char **argv)
{
    struct cli_list sets = {0};
    const char *results = NULL, *trace = NULL, *config_path;
    bool strict = false;
    const struct cli_option options[] = {
        {"set", "KEY=VALUE", "override a key of the config; may be repeated", CLI_LIST, &sets},
        {"results", "FILE", "database to write (default: the config's)", CLI_TEXT, &results},
        {"strict", NULL, "refuse to run on less than what was asked for", CLI_FLAG, &strict},
        {"trace", "FILE", "write a timeline of all steps (README: traces)", CLI_TEXT, &trace},
    };
    const struct cli_command command = {
        .name = "run",
        .arguments = "CONFIG",
        .n_arguments = 1,
        .doc =
            "Runs every task of an experiment and writes samples and throughput to SQLite.\n"
            "Samples that are in the database already are not generated again, so the same\n"
            "command resumes after a crash, a signal or a time limit. Started by srun or mpirun\n"
            "as several tasks, each is a rank with an engine of its own; an index of a job array\n"
            "is a worker with a share of the samples.\n\n"
            "exit codes: 0 all done, 1 some samples or tasks failed, 2 usage or config,\n"
            "65 damaged data, 69 resources missing, 75 stopped early by a signal or the job's\n"
            "time limit (run again).",
        .option = options,
        .n_options = ARRAY_LEN(options),
    };
    char *command_line = cli_join(argc, argv);
    char *results_set = NULL;
    struct run r = {
        .command_line = command_line, .began_s = time_monotonic_s(), .array = {.count = 1}};
    enum cli_result parsed = cli_parse(&command, argc, argv, &config_path);
    int code = parsed == CLI_HELP ? 0 : ERR_CONFIG;
    if (parsed == CLI_OK && results) {
        results_set = xasprintf("results=%s", results);
        sets.text[sets.n++] = results_set;
    }
    if (parsed == CLI_OK && config_load(&r.config, config_path, sets.text, sets.n) == 0) {
        r.policy =
            (struct decision_policy){.strict = strict,
                                     .allow_cpu = r.config->allow_cpu,
                                     .allow_standard_engine = r.config->allow_standard_engine};
        /* Rank 0 takes the worker's share; all ranks name their traces by it. */
        if (trace || cluster_rank_of_environment() == 0)
            job_find_array(&r.array);
        if (!trace || open_trace(&r, trace) == 0)
            code = run_experiment(&r);
        trace_log_end(r.trace);
        trace_close(r.trace);
        config_close(r.config);
    }
    if (cluster_rank_of_environment() > 0)
        err_clear(); /* rank 0 says it */
    free(results_set);
    free(command_line);
    return code;
}
