/* test_status.c - the status of results filled by hand.
 *
 * sqlite3.h makes the times: the store writes none but now.
 */
#include "runner/status.h"
#include "tests/store_fixture.h"

#include <sqlite3.h>
#include <unistd.h>

/* ---- helpers ---- */

static void run_sql(const char *path, const char *format, ...) PRINTF_LIKE(2, 3);

static void run_sql(const char *path, const char *format, ...)
{
    sqlite3 *db;
    char *error = NULL;
    va_list args;
    va_start(args, format);
    char *sql = sqlite3_vmprintf(format, args);
    va_end(args);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &error) != SQLITE_OK)
        fail_msg("%s: %s", sql, error);
    sqlite3_free(sql);
    sqlite3_close(db);
}

#define AGO(seconds) "strftime('%%Y-%%m-%%dT%%H:%%M:%%fZ', 'now', '-" #seconds " seconds')"

/* What the command prints; the caller frees. */
static char *print(const char *db, enum table_format format)
{
    struct status status;
    char *text;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    if (status_read(&status, db, NULL, NULL) != 0)
        fail_msg("%s", err_get());
    status_print(out, &status, format);
    status_free(&status);
    fclose(out);
    return text;
}

/* A database of a task for each state that a task can be in; `live` seconds ago its worker was
 * seen. */
static char *make_database(const char *name, int seen_s_ago)
{
    char *path = test_path(name);
    struct fixture f;
    fixture_open(&f, path);
    for (int i = 0; i < 5; i++) {
        int64_t task = fixture_task(
            &f,
            (struct fixture_task){.index = i, .attention = "flash", .n_samples = i == 2 ? 0 : 2});
        if (i == 4) /* nobody has begun it */
            continue;
        int64_t attempt = fixture_attempt(&f, task, "flash", "");
        if (i == 0 || i == 1 || i == 3)
            assert_int_equal(fixture_sample(&f, task, attempt, 0, "aa", ""), 0);
        if (i == 0 || i == 3)
            assert_int_equal(fixture_sample(&f, task, attempt, 1, "bb", i == 3 ? "too long" : ""),
                             0);
        if (i != 1)
            fixture_end_attempt(&f, attempt, i == 0 ? "done" : "failed", 2, 100);
    }
    fixture_close(&f);
    run_sql(path,
            "INSERT INTO workers(run_id, rank, host, device, state, task_index, n_done, busy_s,"
            " wall_s, seen_at) VALUES(1, 0, 'n3', 'cuda', 'running', 1, 1234, 45, 60,"
            " strftime('%%Y-%%m-%%dT%%H:%%M:%%fZ', 'now', '-%d seconds'))",
            seen_s_ago);
    return path;
}

static void assert_counts(const struct status_counts *c, int total, int done, int running,
                          int failed, int pending)
{
    assert_int_equal(c->total, total);
    assert_int_equal(c->done, done);
    assert_int_equal(c->running, running);
    assert_int_equal(c->failed, failed);
    assert_int_equal(c->pending, pending);
}

static struct status read_status(const char *db)
{
    struct status status;
    if (status_read(&status, db, NULL, NULL) != 0)
        fail_msg("%s", err_get());
    return status;
}

/* ---- counts ---- */

static void every_task_is_counted_in_its_state(void **state)
{
    (void)state;
    char *path = make_database("states.db", 5);
    struct status s = read_status(path);
    assert_string_equal(s.experiment, "demo");
    assert_int_equal(s.n_files, 1);
    assert_counts(&s.tasks, 5, 1, 1, 2, 1);
    assert_counts(&s.samples, 8, 4, 0, 1, 3);
    status_free(&s);
    free(path);
}

/* A killed run leaves its attempts "running". */
static void a_task_of_a_silent_worker_is_not_running(void **state)
{
    (void)state;
    char *path = make_database("silent.db", 65);
    struct status s = read_status(path);
    assert_counts(&s.tasks, 5, 1, 0, 2, 2);
    assert_int_equal(s.n_workers, 1);
    assert_string_equal(s.worker[0].state, "silent");
    assert_true(s.worker[0].seen_s >= 65 && s.worker[0].seen_s < 75);
    status_free(&s);
    free(path);
}

static void a_worker_that_was_seen_within_a_minute_is_at_work(void **state)
{
    (void)state;
    char *path = make_database("seen.db", 50);
    struct status s = read_status(path);
    assert_int_equal(s.n_workers, 1);
    const struct status_worker *w = &s.worker[0];
    assert_string_equal(w->host, "n3");
    assert_string_equal(w->device, "cuda");
    assert_string_equal(w->state, "running");
    assert_string_equal(w->job, "");
    assert_int_equal(w->rank, 0);
    assert_int_equal(w->task_index, 1);
    assert_int_equal(w->n_done, 1234);
    assert_float_equal(w->busy, 0.75, 1e-9);
    status_free(&s);
    free(path);
}

static void a_worker_that_ended_is_not_silent(void **state)
{
    (void)state;
    char *path = make_database("ended.db", 600);
    run_sql(path, "UPDATE workers SET state = 'ended', task_index = -1");
    struct status s = read_status(path);
    assert_int_equal(s.n_workers, 1);
    assert_string_equal(s.worker[0].state, "ended");
    assert_int_equal(s.worker[0].task_index, -1);
    assert_int_equal(s.tasks.running, 0);
    status_free(&s);
    free(path);
}

/* Two more runs, begun after the first one: of array tasks 0 and 1, and the first run was task 0.
 */
static void add_successors(const char *path)
{
    run_sql(path, "UPDATE runs SET slurm_job_id = '1230', slurm_array_job_id = '1230',"
                  " slurm_array_task_id = '0'");
    for (int i = 0; i < 2; i++) {
        run_sql(path,
                "INSERT INTO runs(experiment_id, environment_id, slurm_job_id, slurm_array_job_id,"
                " slurm_array_task_id, started_at, run_key) SELECT experiment_id, environment_id,"
                " '%d', '1230', '%d', strftime('%%Y-%%m-%%dT%%H:%%M:%%fZ', 'now', '+1 seconds'),"
                " 'key %d' FROM runs WHERE run_id = 1",
                1231 + i, i, i);
        run_sql(
            path,
            "INSERT INTO workers(run_id, rank, host, device, state, task_index, n_done,"
            " busy_s, wall_s, seen_at) SELECT %d, 0, 'n%d', 'cpu', 'loading', -1, 0, 0, 0, " AGO(1),
            2 + i, 4 + i);
    }
}

static void a_silent_worker_is_forgotten_once_its_successor_runs(void **state)
{
    (void)state;
    char *path = make_database("successor.db", 600);
    add_successors(path);
    struct status s = read_status(path);
    assert_int_equal(s.n_workers, 2);
    assert_string_equal(s.worker[0].host, "n4");
    assert_string_equal(s.worker[0].job, "1230_0");
    assert_string_equal(s.worker[1].job, "1230_1");
    status_free(&s);
    free(path);
}

/* A node that is cut off the network goes on while its job runs elsewhere. */
static void an_old_worker_that_still_writes_is_shown_beside_its_successor(void **state)
{
    (void)state;
    char *path = make_database("split.db", 10);
    add_successors(path);
    struct status s = read_status(path);
    assert_int_equal(s.n_workers, 3);
    assert_string_equal(s.worker[0].host, "n3");
    assert_string_equal(s.worker[0].state, "running");
    status_free(&s);
    free(path);
}

static void workers_of_a_run_that_ended_are_not_shown(void **state)
{
    (void)state;
    char *path = make_database("over.db", 5);
    run_sql(path, "UPDATE runs SET ended_at = " AGO(1) ", exit_code = 75");
    struct status s = read_status(path);
    assert_int_equal(s.n_workers, 0);
    assert_int_equal(s.tasks.running, 0);
    assert_int_equal(s.n_events, 1);
    assert_string_equal(s.event[0].kind, "ended");
    assert_string_equal(s.event[0].detail, "a run on node1 ended with exit code 75");
    status_free(&s);
    free(path);
}

/* ---- rates ---- */

/* A task of n_samples samples, one of which was finished every step_s seconds, the last one now, by
 * a run that began 100 s ago and is seen. */
static char *make_rate_database(const char *name, int n_samples, int n_done, double step_s)
{
    char *path = test_path(name);
    struct fixture f;
    fixture_open(&f, path);
    int64_t task =
        fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = n_samples});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    for (int i = 0; i < n_done; i++)
        assert_int_equal(fixture_sample(&f, task, attempt, i, "aa", ""), 0);
    fixture_close(&f);
    run_sql(path, "UPDATE runs SET started_at = " AGO(100));
    run_sql(path,
            "UPDATE samples SET finished_at = strftime('%%Y-%%m-%%dT%%H:%%M:%%fZ',"
            " julianday('now') - (%d - 1 - prompt_index) * %f / 86400)",
            n_done, step_s);
    run_sql(path,
            "INSERT INTO workers(run_id, rank, host, device, state, task_index, n_done, busy_s,"
            " wall_s, seen_at) VALUES(1, 0, 'n3', 'cuda', 'running', 0, 0, 0, 0, " AGO(1) ")");
    return path;
}

static void the_rate_is_that_of_the_last_minute(void **state)
{
    (void)state;
    /* 40 in the last 59.6 s, and 40 seconds before that nothing. */
    char *path = make_rate_database("minute.db", 100, 40, 1.5);
    struct status s = read_status(path);
    assert_float_equal(s.rate_window_s, 60, 1e-6);
    assert_float_equal(s.samples_per_s, 40.0 / 60, 0.05);
    assert_float_equal(s.output_tps, 2 * 40.0 / 60, 0.1);
    assert_float_equal(s.eta_s, 60 / (40.0 / 60), 5);
    status_free(&s);
    free(path);
}

static void a_slow_run_is_measured_over_all_of_its_time(void **state)
{
    (void)state;
    char *path = make_rate_database("slow.db", 30, 10, 9);
    struct status s = read_status(path);
    assert_float_equal(s.rate_window_s, 100, 2);
    assert_float_equal(s.samples_per_s, 0.1, 0.005);
    assert_float_equal(s.eta_s, 200, 10);
    status_free(&s);
    free(path);
}

/* A long sample says nothing until it is finished; the engine counts its tokens meanwhile. */
static void tokens_are_counted_before_their_samples_are_finished(void **state)
{
    (void)state;
    char *path = make_rate_database("ticks.db", 10, 0, 1);
    run_sql(path,
            "INSERT INTO timeseries(run_id, t_s, output_tps) VALUES(1, 5, 9000), (1, 90, 100),"
            " (1, 95, 300)");
    run_sql(
        path,
        "INSERT INTO runs(experiment_id, environment_id, started_at, run_key) SELECT"
        " experiment_id, environment_id, " AGO(
            50) ", 'other' FROM runs;"
                "INSERT INTO workers(run_id, rank, host, device, state, seen_at) SELECT 2, 0, 'n4',"
                " 'cpu', 'running', seen_at FROM workers;"
                "INSERT INTO timeseries(run_id, t_s, output_tps) VALUES(2, 10, 50)");
    struct status s = read_status(path);
    assert_float_equal(s.rate_window_s, 100, 2);
    assert_float_equal(s.output_tps, (100 + 300) / 2.0 + 50, 1e-6);
    status_free(&s);
    free(path);
}

static void samples_of_earlier_runs_are_no_part_of_the_rate(void **state)
{
    (void)state;
    char *path = make_rate_database("earlier.db", 100, 40, 1);
    run_sql(path, "INSERT INTO runs(experiment_id, environment_id, started_at, run_key) SELECT"
                  " experiment_id, environment_id, " AGO(50) ", 'other' FROM runs");
    run_sql(path, "UPDATE workers SET run_id = 2");
    struct status s = read_status(path);
    assert_float_equal(s.rate_window_s, 50, 2);
    assert_float_equal(s.samples_per_s, 0, 0);
    assert_true(isnan(s.eta_s));
    status_free(&s);
    char *text = print(path, TABLE_TEXT);
    assert_contains(text, "ETA        not known");
    free(text);
    free(path);
}

static void when_nothing_runs_there_is_no_rate(void **state)
{
    (void)state;
    char *path = make_rate_database("stopped.db", 100, 40, 1);
    run_sql(path, "UPDATE workers SET seen_at = " AGO(300));
    struct status s = read_status(path);
    assert_float_equal(s.rate_window_s, 0, 0);
    assert_true(isnan(s.samples_per_s) && isnan(s.output_tps) && isnan(s.eta_s));
    status_free(&s);
    free(path);
}

/* ---- events ---- */

static void equal_events_are_one_and_the_last_ten_are_kept_in_order(void **state)
{
    (void)state;
    char *path = make_database("events.db", 5);
    for (int i = 0; i < 30; i++)
        run_sql(path,
                "INSERT INTO events(run_id, kind, detail, at)"
                " VALUES(1, 'fallback', 'detail %d', '2026-01-31T09:05:%02d.000Z')",
                i < 18 ? i : 99, i);
    struct status s = read_status(path);
    assert_int_equal(s.n_events, STATUS_MAX_EVENTS);
    assert_string_equal(s.event[0].detail, "detail 9");
    assert_string_equal(s.event[8].detail, "detail 17");
    assert_int_equal(s.event[8].n, 1);
    assert_string_equal(s.event[9].detail, "detail 99");
    assert_string_equal(s.event[9].at, "2026-01-31T09:05:29.000Z");
    assert_int_equal(s.event[9].n, 12);
    status_free(&s);
    free(path);
}

/* ---- which tasks ---- */

static void tasks_that_a_changed_experiment_left_behind_are_not_counted(void **state)
{
    (void)state;
    char *path = make_database("changed.db", 5);
    run_sql(path, "INSERT INTO experiments SELECT 2, name, config_path, 'changed', resolved_json,"
                  " version, git_commit, git_dirty, created_at FROM experiments;"
                  "INSERT INTO runs(experiment_id, environment_id, started_at, run_key) SELECT 2,"
                  " environment_id, '2999-01-01T00:00:00.000Z', 'other' FROM runs;"
                  "UPDATE tasks SET experiment_id = 2 WHERE task_index < 2");
    struct status s = read_status(path);
    assert_counts(&s.tasks, 2, 1, 1, 0, 0);
    assert_string_equal(s.experiment, "demo");
    status_free(&s);
    free(path);
}

static const char plan_text[] = "experiment: planned\n"
                                "model: {path: %s}\n"
                                "prompts: {list: [[1, 2, 3], [4, 5], [6]]}\n"
                                "sampling: {max_tokens: 4}\n"
                                "grid: {sampling.temperature: [0.0, 0.5, 1.0]}\n"
                                "replications: 2\n"
                                "results: %s\n";

struct planned {
    struct config *config;
    struct work_list plan;
    char *db;
};

/* Six tasks of three samples. */
static void plan_open(struct planned *p, const char *model, const char *db)
{
    char cwd[4096];
    assert_non_null(getcwd(cwd, sizeof(cwd)));
    p->db = test_path(db);
    char *folder = xasprintf("%s/%s", cwd, model);
    char *text = xasprintf(plan_text, folder, p->db);
    char *path = test_write_text("planned.yaml", text);
    struct decision_policy policy = {.allow_cpu = true, .allow_standard_engine = true};
    if (config_load(&p->config, path, NULL, 0) != 0 ||
        work_list_make(&p->plan, p->config, &policy) != 0)
        fail_msg("%s", err_get());
    free(path);
    free(text);
    free(folder);
}

static void plan_close(struct planned *p)
{
    work_list_free(&p->plan);
    config_close(p->config);
    free(p->db);
}

static void tasks_that_only_the_plan_has_are_pending(void **state)
{
    (void)state;
    struct planned p;
    plan_open(&p, "tests/golden/qwen3", "planned.db");
    free(p.db);
    p.db = make_database("planned.db", 5);
    for (int i = 0; i < 2; i++)
        run_sql(p.db, "UPDATE tasks SET key = '%s', n_samples = 3 WHERE task_index = %d",
                p.plan.tasks.task[5 - i].key, i);
    run_sql(p.db, "UPDATE tasks SET n_samples = 2 WHERE task_index = 0");
    struct status s;
    assert_int_equal(status_read(&s, p.db, p.config, &p.plan), 0);
    assert_string_equal(s.experiment, "planned");
    assert_counts(&s.tasks, 6, 1, 1, 0, 4);
    assert_counts(&s.samples, 2 + 3 + 4 * 3, 3, 0, 0, 2 + 4 * 3);
    status_free(&s);
    plan_close(&p);
}

static void before_the_first_run_all_is_pending_and_the_command_is_named(void **state)
{
    (void)state;
    struct planned p;
    struct status s;
    char *text;
    size_t n;
    plan_open(&p, "tests/golden/qwen3", "nothing.db");
    assert_int_equal(status_read(&s, p.db, p.config, &p.plan), 0);
    assert_int_equal(s.n_files, 0);
    assert_counts(&s.tasks, 6, 0, 0, 0, 6);
    assert_counts(&s.samples, 18, 0, 0, 0, 18);
    FILE *out = open_memstream(&text, &n);
    status_print(out, &s, TABLE_TEXT);
    fclose(out);
    assert_contains(text, "there are no results in");
    assert_contains(text, "tasks      0 of 6 done, 6 pending\n");
    assert_contains(text, "planned.yaml` does what is missing");
    assert_false(file_exists(p.db));
    free(text);
    status_free(&s);
    plan_close(&p);
}

/* The models can lie on a disk that only the compute nodes see. */
static void with_a_model_that_is_not_readable_here_the_database_is_counted(void **state)
{
    (void)state;
    struct planned p;
    struct status s;
    plan_open(&p, "tests/golden/none", "elsewhere.db");
    free(p.db);
    p.db = make_database("elsewhere.db", 5);
    log_set_level("quiet");
    assert_int_equal(status_read(&s, p.db, p.config, &p.plan), 0);
    log_set_level("info");
    assert_counts(&s.tasks, 5, 1, 1, 2, 1);
    status_free(&s);
    plan_close(&p);
}

/* ---- job arrays ---- */

/* Writes the shard of worker `index` of `count` with the first n samples of its share. */
static void write_shard(const char *db, int index, int count, int n)
{
    struct planned p;
    struct fixture f;
    plan_open(&p, "tests/golden/qwen3", db);
    work_list_take_share(&p.plan, index, count);
    char *shard = store_shard_path(p.db, index, count);
    fixture_open(&f, shard);
    for (int i = 0; i < p.plan.tasks.n; i++) {
        const struct work *w = &p.plan.group[0].work[i];
        int64_t task = fixture_task(
            &f, (struct fixture_task){.index = i, .attention = "auto", .n_samples = w->n_samples});
        int64_t attempt = fixture_attempt(&f, task, "flash", "");
        for (int k = 0; k < w->n_samples; k++)
            if (!w->done[k] && n-- > 0)
                assert_int_equal(fixture_sample(&f, task, attempt, k, "aa", ""), 0);
        fixture_end_attempt(&f, attempt, "stopped", 1, 1);
    }
    fixture_close(&f);
    for (int i = 0; i < p.plan.tasks.n; i++)
        run_sql(shard, "UPDATE tasks SET key = '%s' WHERE task_index = %d",
                p.plan.tasks.task[i].key, i);
    free(shard);
    plan_close(&p);
}

/* The status of the plan with the shards of db; prints it when text is not NULL. */
static struct status read_planned(const char *db, char **text)
{
    struct planned p;
    struct status s;
    size_t n;
    plan_open(&p, "tests/golden/qwen3", db);
    for (int again = 0; again < 2; again++) { /* a plan can be used again, as --watch does */
        if (again)
            status_free(&s);
        if (status_read(&s, p.db, p.config, &p.plan) != 0)
            fail_msg("%s", err_get());
    }
    if (text) {
        FILE *out = open_memstream(text, &n);
        status_print(out, &s, TABLE_TEXT);
        fclose(out);
    }
    plan_close(&p);
    return s;
}

/* Eighteen samples of equal cost and six workers: three samples each. */
static void workers_that_have_something_left_are_named_for_sbatch(void **state)
{
    (void)state;
    char *text;
    write_shard("shards.db", 0, 6, 3);
    write_shard("shards.db", 1, 6, 2); /* one sample short */
    write_shard("shards.db", 4, 6, 3);
    write_shard("shards.db", 5, 6, 0); /* it has begun; 2 and 3 have not */
    struct status s = read_planned("shards.db", &text);
    assert_int_equal(s.n_files, 4);
    assert_counts(&s.samples, 18, 8, 0, 0, 10);
    assert_int_equal(s.array_count, 6);
    assert_int_equal(s.n_missing, 4);
    assert_int_equal(s.missing[0], 1);
    assert_int_equal(s.missing[3], 5);
    assert_contains(text, "shards.db, 4 files\n");
    assert_contains(text, "sbatch --array=1-3,5 --export=ALL,QUIRE_ARRAY_COUNT=6 SCRIPT\n");
    free(text);
    status_free(&s);
}

/* What a smaller array did before counts, whoever's share it was. */
static void shards_of_another_size_count_for_the_largest_array(void **state)
{
    (void)state;
    write_shard("sizes.db", 0, 2, 9);
    write_shard("sizes.db", 3, 6, 1);
    struct status s = read_planned("sizes.db", NULL);
    assert_int_equal(s.array_count, 6);
    assert_int_equal(s.n_missing, 3);
    assert_int_equal(s.missing[0], 3);
    assert_int_equal(s.missing[2], 5);
    assert_counts(&s.samples, 18, 10, 0, 0, 8);
    status_free(&s);
}

static void a_finished_array_has_nothing_to_submit(void **state)
{
    (void)state;
    char *text;
    for (int i = 0; i < 2; i++)
        write_shard("finished.db", i, 2, 9);
    struct status s = read_planned("finished.db", &text);
    assert_int_equal(s.array_count, 2);
    assert_int_equal(s.n_missing, 0);
    assert_counts(&s.tasks, 6, 6, 0, 0, 0);
    assert_contains(text, "everything is done");
    assert_null(strstr(text, "sbatch"));
    free(text);
    status_free(&s);
}

static void without_shards_there_is_no_array(void **state)
{
    (void)state;
    struct planned p;
    struct status s;
    plan_open(&p, "tests/golden/qwen3", "single.db");
    free(p.db);
    p.db = make_database("single.db", 5);
    assert_int_equal(status_read(&s, p.db, p.config, &p.plan), 0);
    assert_int_equal(s.array_count, 0);
    assert_int_equal(s.n_missing, 0);
    status_free(&s);
    plan_close(&p);
}

/* ---- files ---- */

static void a_database_that_is_not_there_is_an_error(void **state)
{
    (void)state;
    struct status s;
    char *path = test_path("none.db");
    assert_int_equal(status_read(&s, path, NULL, NULL), -1);
    assert_error(ERR_DATA, "none.db: there are no results");
    assert_error(ERR_DATA, "quire run CONFIG");
    status_free(&s);
    free(path);
}

static void a_file_that_is_no_database_is_an_error(void **state)
{
    (void)state;
    struct status s;
    char *path = test_write_text("text.db", "experiment: demo\n");
    assert_int_equal(status_read(&s, path, NULL, NULL), -1);
    assert_error(ERR_DATA, "text.db");
    status_free(&s);
    free(path);
}

static void reading_changes_no_byte(void **state)
{
    (void)state;
    char *path = make_database("unchanged.db", 5), before[SHA256_HEX_LEN + 1],
         after[SHA256_HEX_LEN + 1];
    size_t n;
    char *bytes = file_read(path, &n);
    sha256_of(bytes, n, before);
    free(bytes);
    free(print(path, TABLE_TEXT));
    bytes = file_read(path, &n);
    sha256_of(bytes, n, after);
    assert_string_equal(after, before);
    free(bytes);
    free(path);
}

/* ---- printing ---- */

static void a_person_sees_counts_workers_events_and_what_to_do(void **state)
{
    (void)state;
    char *path = make_database("person.db", 5);
    run_sql(path, "UPDATE workers SET seen_at = " AGO(130));
    run_sql(path, "INSERT INTO events(run_id, kind, detail, at) VALUES(1, 'signal',"
                  " 'USR1: the job''s time is over', '2026-01-31T09:05:00.123Z')");
    char *text = print(path, TABLE_TEXT);
    assert_contains(text, "tasks      1 of 5 done, 2 failed, 2 pending\n");
    assert_contains(text, "samples    4 of 8 done, 1 failed, 3 pending\n");
    assert_contains(text, "n3       0       cuda    silent     1     1234  75 %  2 min 1");
    assert_contains(text, "2026-01-31T09:05:00  signal      1  USR1: the job's time is over");
    assert_contains(text, "person.db --failed` says why");
    assert_contains(text, "`quire run CONFIG` does what is missing");
    free(text);
    free(path);
}

static void json_is_valid_whatever_the_texts_are(void **state)
{
    (void)state;
    char *path = make_database("json.db", 5);
    run_sql(path, "UPDATE workers SET host = 'a\"b\\c' || char(10)");
    run_sql(path, "INSERT INTO events(run_id, kind, detail, at) VALUES(1, 'error',"
                  " CAST(x'ff20c3a9' AS TEXT), '2026-01-31T09:05:00.123Z')");
    char *text = print(path, TABLE_JSON);
    size_t n = strlen(text);
    assert_true(n > 0 && strchr(text, '\n') == text + n - 1); /* one line */
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    const char *host = NULL, *detail = NULL;
    json_int_t done = 0, pending = 0, samples = 0;
    double busy = 0;
    json_t *rate = NULL, *array = NULL;
    assert_int_equal(json_unpack(json, "{s:{s:I, s:I}, s:[{s:s, s:F, s:I}], s:[{s:s}], s:o, s:o}",
                                 "tasks", "done", &done, "pending", &pending, "workers", "host",
                                 &host, "busy", &busy, "samples", &samples, "events", "detail",
                                 &detail, "samples_per_s", &rate, "array", &array),
                     0);
    assert_string_equal(host, "a\"b\\c\n");
    assert_string_equal(detail, "? ??");
    assert_int_equal(done, 1);
    assert_int_equal(pending, 1);
    assert_int_equal(samples, 1234);
    assert_float_equal(busy, 0.75, 1e-9);
    assert_true(json_is_number(rate));
    assert_true(json_is_null(array));
    json_decref(json);
    free(text);
    free(path);
}

static void when_all_is_done_the_results_are_named(void **state)
{
    (void)state;
    char *path = make_rate_database("done.db", 3, 3, 1);
    run_sql(path, "UPDATE runs SET ended_at = " AGO(1) ", exit_code = 0");
    char *text = print(path, TABLE_TEXT);
    assert_contains(text, "tasks      1 of 1 done\n");
    assert_contains(text, "everything is done: `quire results ");
    assert_null(strstr(text, "ETA"));
    assert_null(strstr(text, "quire run"));
    free(text);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_is_counted_in_its_state),
        cmocka_unit_test(a_task_of_a_silent_worker_is_not_running),
        cmocka_unit_test(a_worker_that_was_seen_within_a_minute_is_at_work),
        cmocka_unit_test(a_worker_that_ended_is_not_silent),
        cmocka_unit_test(a_silent_worker_is_forgotten_once_its_successor_runs),
        cmocka_unit_test(an_old_worker_that_still_writes_is_shown_beside_its_successor),
        cmocka_unit_test(workers_of_a_run_that_ended_are_not_shown),
        cmocka_unit_test(the_rate_is_that_of_the_last_minute),
        cmocka_unit_test(a_slow_run_is_measured_over_all_of_its_time),
        cmocka_unit_test(tokens_are_counted_before_their_samples_are_finished),
        cmocka_unit_test(samples_of_earlier_runs_are_no_part_of_the_rate),
        cmocka_unit_test(when_nothing_runs_there_is_no_rate),
        cmocka_unit_test(equal_events_are_one_and_the_last_ten_are_kept_in_order),
        cmocka_unit_test(tasks_that_a_changed_experiment_left_behind_are_not_counted),
        cmocka_unit_test(tasks_that_only_the_plan_has_are_pending),
        cmocka_unit_test(before_the_first_run_all_is_pending_and_the_command_is_named),
        cmocka_unit_test(with_a_model_that_is_not_readable_here_the_database_is_counted),
        cmocka_unit_test(workers_that_have_something_left_are_named_for_sbatch),
        cmocka_unit_test(shards_of_another_size_count_for_the_largest_array),
        cmocka_unit_test(a_finished_array_has_nothing_to_submit),
        cmocka_unit_test(without_shards_there_is_no_array),
        cmocka_unit_test(a_database_that_is_not_there_is_an_error),
        cmocka_unit_test(a_file_that_is_no_database_is_an_error),
        cmocka_unit_test(reading_changes_no_byte),
        cmocka_unit_test(a_person_sees_counts_workers_events_and_what_to_do),
        cmocka_unit_test(json_is_valid_whatever_the_texts_are),
        cmocka_unit_test(when_all_is_done_the_results_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
