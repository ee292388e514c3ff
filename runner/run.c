/* run.c - the `run` command: every task of an experiment, each model loaded once.
 *
 *   config -> task list -> work list (what is pending) -> for each model: load
 *          -> for each engine setting: open engine, generate, close -> unload
 *
 * What fails is a failed row, and the others go on: a model that cannot be loaded fails the
 * attempts of its tasks, a prompt that cannot run fails its samples.
 */
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/generation.h"
#include "runner/host.h"
#include "runner/version.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct run {
    struct config *config;
    struct store *store;
    struct work_list work;
    struct decision_policy policy;
    struct progress progress;
    int64_t experiment_id, run_id;
    int64_t n_done, n_total; /* samples */
    int n_failed_tasks;
    int64_t n_failed_samples;
    char warned_of[DECISION_REASON_MAX]; /* the last degraded_reason that was shown */
    double began_s, first_token_s;       /* time_monotonic_s() */
};

/* Tasks of one model that share an engine, and what is measured of the engine they ran on. */
struct engine_group {
    struct run *run;
    struct work **work;
    int n;
    struct decision decision;      /* the device at first, the rest once the model is loaded */
    const struct model_info *info; /* NULL: the model could not be loaded      */
    struct engine *engine;         /* NULL until it is open                    */
    struct decision *on_cpu;       /* of the model: where to go when the GPU has no room */
    double init_s;
};

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
    char capability[32] = "";
    task_model_options(&r->work.tasks.task[0], &options);
    if (device_describe(&cpu, DEVICE_CPU, &options.device_options) != 0)
        return -1;
    if (gpu.name[0])
        snprintf(capability, sizeof(capability), "%d.%d", gpu.compute_major, gpu.compute_minor);
    return store_put_environment(
        r->store, &(struct store_environment){.host = host->name,
                                              .os = host->os,
                                              .cpu = cpu.name,
                                              .cpu_isa = cpu.isa,
                                              .gpu = gpu.name,
                                              .driver = gpu.driver,
                                              .cuda = gpu.runtime,
                                              .compute_capability = capability,
                                              .n_threads = cpu.n_threads,
                                              .memory_bytes = (int64_t)cpu.memory_bytes,
                                              .gpu_memory_bytes = (int64_t)gpu.memory_bytes});
}

static int begin_run(struct run *r, const char *command_line)
{
    struct host_facts host;
    host_get_facts(&host);
    int64_t environment = put_environment(r, &host);
    if (environment < 0 || put_experiment(r) != 0)
        return -1;
    r->run_id = store_begin_run(r->store,
                                &(struct store_run){.experiment_id = r->experiment_id,
                                                    .environment_id = environment,
                                                    .argv = command_line,
                                                    .host = host.name,
                                                    .slurm_job_id = host.slurm_job_id,
                                                    .slurm_array_task_id = host.slurm_array_task_id,
                                                    .restart_count = host.slurm_restart_count,
                                                    .mpi_size = 1,
                                                    .pid = getpid()});
    return r->run_id < 0 ? -1 : 0;
}

static int begin_attempts(struct engine_group *g)
{
    const struct decision *d = &g->decision;
    for (int i = 0; i < g->n; i++) {
        struct work *w = g->work[i];
        int64_t id = store_begin_attempt(
            g->run->store,
            &(struct store_attempt){.task_id = w->task_id,
                                    .run_id = g->run->run_id,
                                    .engine_used = g->engine ? (d->fast ? "fast" : "standard") : "",
                                    .attention_used = g->engine ? attention_name(d->attention) : "",
                                    .device_used = g->info ? device_kind_name(d->device) : "",
                                    .dtype_used = g->info ? dtype_name(g->info->dtype) : "",
                                    .decision_reason = d->reason,
                                    .degraded_reason = d->degraded_reason,
                                    .degraded = d->degraded,
                                    .shared_batch = g->n > 1});
        if (id < 0)
            return -1;
        w->attempt = (struct attempt){.id = id};
        if (d->degraded &&
            store_put_event(g->run->store, g->run->run_id, id, "fallback", d->degraded_reason) != 0)
            return -1;
        if (w->n_pending < w->n_samples) {
            char detail[128];
            snprintf(detail, sizeof(detail), "%d of %d samples were finished already",
                     w->n_samples - w->n_pending, w->n_samples);
            if (store_put_event(g->run->store, g->run->run_id, id, "resume", detail) != 0)
                return -1;
        }
    }
    return 0;
}

static int end_attempt(struct engine_group *g, struct work *w, const char *state, const char *error)
{
    struct store_attempt_end end = {.state = state,
                                    .error = error,
                                    .load_s = g->info ? g->info->load_s : 0,
                                    .init_s = g->init_s,
                                    .memory_peak_bytes = host_memory_peak_bytes()};
    attempt_summarise(&w->attempt, &end);
    if (g->engine) {
        struct engine_stats stats;
        engine_get_stats(g->engine, &stats);
        end.kv_blocks = stats.kv_blocks;
        end.kv_blocks_peak = stats.kv_used_peak;
        end.steps = stats.n_steps;
        end.batch_seqs_mean = stats.batch_seqs_mean;
    }
    int rc = store_end_attempt(g->run->store, w->attempt.id, &end);
    attempt_free(&w->attempt);
    return rc;
}

/* ---- outcomes ---- */

/* Records that tasks could not run at all. The reason is in err_get(). */
static int fail_tasks(struct engine_group *g)
{
    char *reason = xstrdup(err_get());
    int rc = begin_attempts(g);
    for (int i = 0; i < g->n && rc == 0; i++) {
        struct work *w = g->work[i];
        log_warning("task %d (%s) failed: %s", w->task->id, w->task->label, reason);
        g->run->n_failed_tasks++;
        rc = store_put_event(g->run->store, g->run->run_id, w->attempt.id, "error", reason);
        if (rc == 0)
            rc = end_attempt(g, w, "failed", reason);
    }
    free(reason);
    err_clear();
    return rc != 0 ? rc : store_commit(g->run->store);
}

/* Called by the generation when a task's last sample is in the store. */
static int finish_task(void *user, struct work *w)
{
    struct engine_group *g = user;
    int n_failed = w->attempt.n_failed;
    char error[128] = "";
    if (n_failed) {
        snprintf(error, sizeof(error), "%d of %d samples failed; the samples' rows say why",
                 n_failed, w->n_samples);
        log_warning("task %d (%s): %s", w->task->id, w->task->label, error);
        g->run->n_failed_samples += n_failed;
        g->run->n_failed_tasks++;
    }
    if (end_attempt(g, w, n_failed ? "failed" : "done", error) != 0)
        return -1;
    return store_commit(g->run->store);
}

/* ---- engines ---- */

static int open_engine(struct engine_group *g, struct model *model)
{
    struct engine_options options;
    double began_s = time_monotonic_s();
    work_engine_options(&options, &g->decision, g->work, g->n, g->info);
    if (engine_open(&g->engine, model, &options) != 0) {
        if (decision_use_standard_engine(&g->decision, &g->run->policy) != 0)
            return -1;
        options.fast = false;
        if (engine_open(&g->engine, model, &options) != 0)
            return -1;
    }
    g->init_s = time_monotonic_s() - began_s;
    return 0;
}

enum {
    RUN_STOPPED = 1,  /* by a signal                                         */
    RUN_DEFERRED = 2, /* nothing was done: the tasks are to run on the CPU   */
};

/* 0: go on with the next group; RUN_STOPPED; RUN_DEFERRED; -1: the run cannot go on. */
static int run_engine_group(struct engine_group *g, struct model *model)
{
    struct run *r = g->run;
    if (decision_choose_attention(&g->decision, &g->work[0]->task->settings, &g->info->device,
                                  &r->policy) != 0)
        return r->policy.strict ? -1 : fail_tasks(g);
    decision_log(&g->decision, r->warned_of);
    if (open_engine(g, model) != 0 && decision_use_cpu(g->on_cpu, &r->policy) == 0)
        return RUN_DEFERRED;
    if (!g->engine)
        return r->policy.strict && err_get_kind() == ERR_RESOURCE ? -1 : fail_tasks(g);
    if (begin_attempts(g) != 0)
        return -1;
    struct generation generation = {.work = g->work,
                                    .n_work = g->n,
                                    .engine = g->engine,
                                    .tokenizer = model_get_tokenizer(model),
                                    .store = r->store,
                                    .run_id = r->run_id,
                                    .progress = &r->progress,
                                    .first_token_s = &r->first_token_s,
                                    .n_done = &r->n_done,
                                    .finish_task = finish_task,
                                    .user = g,
                                    .run_began_s = r->began_s};
    enum generation_result result = generation_run(&generation);
    struct engine_stats stats;
    engine_get_stats(g->engine, &stats);
    if (stats.n_preemptions)
        log_info("KV blocks ran out %ld times: sequences were preempted and recomputed (results "
                 "are the same; more memory or a smaller max_num_seqs is faster)",
                 stats.n_preemptions);
    for (int i = 0; i < g->n && result == GENERATION_STOPPED; i++)
        if (g->work[i]->n_pending && end_attempt(g, g->work[i], "stopped", "stopped by a signal"))
            return -1;
    return result == GENERATION_DONE ? 0 : result == GENERATION_STOPPED ? RUN_STOPPED : -1;
}

/* ---- models ---- */

/* The tasks of one model, on the device where they are tried now. */
struct model_run {
    struct run *run;
    const struct model_group *group;
    struct decision decision; /* of the device                                         */
    struct decision on_cpu;   /* differs from `decision` once tasks wait for the CPU    */
    bool *taken;              /* [group->n] tasks that were run, or failed              */
};

static int run_engine_groups(struct model_run *m, struct model *model)
{
    struct run *r = m->run;
    bool *deferred = xcalloc((size_t)m->group->n, sizeof(*deferred));
    struct work **works = xcalloc((size_t)m->group->n, sizeof(struct work *));
    struct work_filter filter = {.packed = r->config->schedule == SCHEDULE_PACKED,
                                 .pending_only = true};
    int rc = 0;
    while (rc == 0) {
        struct engine_group g = {.run = r,
                                 .work = works,
                                 .decision = m->decision,
                                 .on_cpu = &m->on_cpu,
                                 .info = model_get_info(model)};
        g.n = work_collect(works, m->group, m->taken, &filter);
        if (g.n == 0)
            break;
        rc = run_engine_group(&g, model);
        for (int i = 0; i < g.n && rc == RUN_DEFERRED; i++)
            deferred[works[i] - m->group->work] = true;
        rc = rc == RUN_DEFERRED ? 0 : rc;
        engine_close(g.engine);
    }
    for (int i = 0; i < m->group->n; i++)
        m->taken[i] = m->taken[i] && !deferred[i];
    free(works);
    free(deferred);
    return rc;
}

/* Records the tasks whose model or prompts could not be read. */
static int fail_unreadable(struct run *r, const struct model_group *group)
{
    for (int i = 0; i < group->n; i++) {
        struct work *w = &group->work[i];
        if (!w->error)
            continue;
        err_set(ERR_DATA, "%s", w->error);
        if (fail_tasks(&(struct engine_group){.run = r, .work = &w, .n = 1}) != 0)
            return -1;
    }
    return 0;
}

static int fail_pending(struct model_run *m)
{
    char *reason = xstrdup(err_get());
    int rc = 0;
    for (int i = 0; i < m->group->n && rc == 0; i++) {
        struct work *w = &m->group->work[i];
        if (m->taken[i] || w->n_pending == 0)
            continue;
        err_set(ERR_DATA, "%s", reason);
        rc = fail_tasks(&(struct engine_group){.run = m->run, .work = &w, .n = 1});
    }
    free(reason);
    return rc;
}

static int run_on_device(struct model_run *m)
{
    struct model_options options;
    struct model *model;
    work_model_options(m->group, &options);
    options.device = m->decision.device;
    m->on_cpu = m->decision;
    if (model_open(&model, &options) != 0)
        return decision_use_cpu(&m->on_cpu, &m->run->policy) == 0 ? 0 : fail_pending(m);
    int rc = run_engine_groups(m, model);
    model_close(model);
    return rc;
}

static int run_model_group(struct run *r, const struct model_group *group)
{
    int n_pending = 0;
    for (int i = 0; i < group->n; i++)
        n_pending += group->work[i].n_pending;
    if (fail_unreadable(r, group) != 0)
        return -1;
    if (n_pending == 0)
        return 0;
    struct model_run m = {.run = r, .group = group, .decision = group->decision};
    m.taken = xcalloc((size_t)group->n, sizeof(*m.taken));
    int rc = run_on_device(&m);
    if (rc == 0 && m.on_cpu.device != m.decision.device) {
        m.decision = m.on_cpu;
        rc = run_on_device(&m);
    }
    free(m.taken);
    return rc;
}

/* ---- the command ---- */

static void count_done(const struct run *r, int *tasks_done, int *tasks)
{
    *tasks_done = *tasks = 0;
    for (int g = 0; g < r->work.n_groups; g++) {
        for (int i = 0; i < r->work.group[g].n; i++) {
            const struct work *w = &r->work.group[g].work[i];
            *tasks_done += w->n_pending == 0 && !w->error;
            (*tasks)++;
        }
    }
}

static void log_start(const struct run *r)
{
    int done, tasks;
    count_done(r, &done, &tasks);
    log_info("Experiment %s: %d tasks, %lld samples; results go to %s", r->config->experiment,
             tasks, (long long)r->n_total, r->config->results);
    if (done)
        log_info("%d task%s already done", done, done == 1 ? "" : "s");
}

static int log_end(const struct run *r, int rc)
{
    const char *db = r->config->results;
    if (rc < 0)
        return err_get_kind() ? (int)err_get_kind() : ERR_RUN;
    if (rc > 0) {
        log_warning("stopped by %s after %lld of %lld samples; run the same command again to do "
                    "the rest",
                    strsignal(generation_stop_signal()), (long long)r->n_done,
                    (long long)r->n_total);
        return ERR_STOPPED;
    }
    if (r->n_failed_tasks) {
        log_warning("%d task%s failed; `quire results %s --failed` says why, and the same command "
                    "tries them again",
                    r->n_failed_tasks, r->n_failed_tasks == 1 ? "" : "s", db);
        return ERR_RUN;
    }
    char took[32], first[64] = "";
    if (r->first_token_s > 0)
        snprintf(first, sizeof(first), " (first token after %.2f s)",
                 r->first_token_s - r->began_s);
    log_info("Done in %s%s: %lld samples are in %s; see `quire results %s`",
             format_seconds(took, time_monotonic_s() - r->began_s), first, (long long)r->n_total,
             db, db);
    return 0;
}

static int run_all(struct run *r, const char *command_line)
{
    if (work_list_make(&r->work, r->config, &r->policy) != 0)
        return -1;
    if (begin_run(r, command_line) != 0 ||
        work_list_resume(&r->work, r->store, r->experiment_id) != 0)
        return -1;
    r->n_total = work_list_samples(&r->work);
    r->n_done = r->n_total - work_list_pending(&r->work);
    log_start(r);
    progress_open(&r->progress, r->n_done, r->n_total);
    int rc = 0;
    for (int g = 0; g < r->work.n_groups && rc == 0; g++)
        rc = run_model_group(r, &r->work.group[g]);
    progress_close(&r->progress);
    return rc;
}

static char *join_arguments(int argc, char **argv)
{
    struct str line = {0};
    str_append_c(&line, "quire");
    for (int i = 0; i < argc; i++)
        str_appendf(&line, " %s", argv[i]);
    return line.data;
}

/* Runs what the config says and closes the store. Returns the exit code. */
static int run_experiment(struct run *r, const char *command_line)
{
    generation_catch_signals();
    int rc = store_open(&r->store, r->config->results, STORE_WRITE);
    if (rc == 0)
        rc = run_all(r, command_line);
    int code = log_end(r, rc);
    if (r->run_id > 0 && store_end_run(r->store, r->run_id, code) != 0 && code == 0)
        code = (int)err_get_kind();
    if (store_close(r->store) != 0 && code == 0)
        code = (int)err_get_kind();
    work_list_free(&r->work);
    return code;
}

int command_run(int argc, char **argv)
{
    struct cli_list sets = {0};
    const char *results = NULL, *config_path;
    bool strict = false;
    const struct cli_option options[] = {
        {"set", "KEY=VALUE", "override a key of the config; may be repeated", CLI_LIST, &sets},
        {"results", "FILE", "database to write (default: the config's)", CLI_TEXT, &results},
        {"strict", NULL, "refuse to run on less than what was asked for", CLI_FLAG, &strict},
    };
    const struct cli_command command = {
        .name = "run",
        .arguments = "CONFIG",
        .n_arguments = 1,
        .doc = "Runs every task of an experiment and writes samples and throughput to SQLite.\n"
               "Samples that are in the database already are not generated again, so the same\n"
               "command resumes after a crash, a signal or a time limit.\n\n"
               "exit codes: 0 all done, 1 some samples or tasks failed, 2 usage or config,\n"
               "65 damaged data, 69 resources missing, 75 stopped by a signal (run again).",
        .option = options,
        .n_options = ARRAY_LEN(options),
    };
    char *command_line = join_arguments(argc, argv); /* getopt reorders argv */
    char *results_set = NULL;
    struct run r = {.began_s = time_monotonic_s()};
    enum cli_result parsed = cli_parse(&command, argc, argv, &config_path);
    int code = parsed == CLI_HELP ? 0 : ERR_CONFIG;
    if (parsed == CLI_OK && results) {
        results_set = xasprintf("results=%s", results);
        sets.text[sets.n++] = results_set;
    }
    if (parsed == CLI_OK && config_load(&r.config, config_path, sets.text, sets.n) == 0) {
        r.policy =
            (struct decision_policy){strict, r.config->allow_cpu, r.config->allow_standard_engine};
        code = run_experiment(&r, command_line);
        config_close(r.config);
    }
    free(results_set);
    free(command_line);
    return code;
}
