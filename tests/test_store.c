/* test_store.c - the rows of a results database: samples, resuming, views. */
#include "tests/store_fixture.h"

#include <math.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- rows ---- */

static void rows_that_say_the_same_are_one_row(void **state)
{
    (void)state;
    char *path = test_path("same.db");
    struct fixture a, b;
    fixture_open(&a, path);
    int64_t task = fixture_task(&a, (struct fixture_task){.index = 0, .attention = "flash"});
    fixture_close(&a);
    fixture_open(&b, path);
    assert_int_equal(a.experiment, b.experiment);
    assert_int_equal(a.environment, b.environment);
    assert_int_equal(a.model, b.model);
    assert_int_equal(a.prompts, b.prompts);
    assert_int_not_equal(a.run, b.run);
    assert_int_equal(fixture_task(&b, (struct fixture_task){.index = 0, .attention = "flash"}),
                     task);
    struct store_model other = {
        .path = "m.json", .arch = "", .fingerprint = "f00d", .dtype = "float32"};
    assert_int_not_equal(store_put_model(b.store, &other), b.model);
    assert_rows(b.store, "SELECT name, path, arch FROM models",
                "Tiny-1M|models/Tiny-1M/|LlamaForCausalLM\nm.json|m.json|NULL\n");
    fixture_close(&b);
    free(path);
}

static void every_setting_of_a_task_is_a_column_of_its_type(void **state)
{
    (void)state;
    char *path = test_path("settings.db");
    struct fixture f;
    fixture_open(&f, path);
    fixture_task(&f, (struct fixture_task){.index = 3,
                                           .attention = "flash",
                                           .temperature = 0.6,
                                           .replication = 1,
                                           .n_samples = 5});
    assert_rows(f.store,
                "SELECT task_index, replication, n_samples, engine_attention, sampling_temperature,"
                " sampling_max_tokens, sampling_ignore_eos, prompts_system, sampling_top_p,"
                " typeof(sampling_temperature), typeof(sampling_max_tokens) FROM tasks",
                "3|1|5|flash|0.6|8|1|NULL|NULL|real|integer\n");
    fixture_close(&f);
    free(path);
}

static void a_task_moves_to_the_experiment_that_asked_for_it_last(void **state)
{
    (void)state;
    char *path = test_path("moves.db");
    struct fixture f;
    fixture_open(&f, path);
    struct fixture_task t = {.index = 0, .attention = "flash", .n_samples = 1};
    int64_t task = fixture_task(&f, t);
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    assert_int_equal(fixture_sample(&f, task, attempt, 0, "aa", ""), 0);
    f.experiment = store_put_experiment(f.store, &(struct store_experiment){.name = "wider",
                                                                            .config_path = "w.yaml",
                                                                            .config_text = "",
                                                                            .resolved_json = "{}",
                                                                            .version = "0.1.0",
                                                                            .git_commit = ""});
    assert_int_equal(fixture_task(&f, t), task);
    assert_rows(f.store, "SELECT experiment, tasks_done FROM progress", "wider|1\n");
    assert_rows(f.store,
                "SELECT e.name FROM attempts JOIN runs USING (run_id)"
                " JOIN experiments e USING (experiment_id)",
                "demo\n");
    fixture_close(&f);
    free(path);
}

static void numbers_that_are_not_there_are_null(void **state)
{
    (void)state;
    char *path = test_path("null.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 1});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    struct store_attempt_end end = {.state = "done",
                                    .error = "",
                                    .output_tps = INFINITY,
                                    .ttft_s = {0.5, 1.5, NAN},
                                    .tpot_s = {NAN, NAN, NAN}};
    assert_int_equal(store_end_attempt(f.store, attempt, &end), 0);
    assert_rows(f.store,
                "SELECT error, output_tps, ttft_p50_s, ttft_p90_s, ttft_p99_s, tpot_p50_s"
                " FROM attempts",
                "NULL|NULL|0.5|1.5|NULL|NULL\n");
    assert_rows(f.store, "SELECT gpu, compute_capability FROM environments", "NULL|NULL\n");
    assert_rows(f.store, "SELECT slurm_job_id, exit_code, ended_at FROM runs", "NULL|NULL|NULL\n");
    assert_int_equal(store_end_run(f.store, f.run, 75), 0);
    assert_rows(f.store, "SELECT exit_code, ended_at >= started_at FROM runs", "75|1\n");
    fixture_close(&f);
    free(path);
}

static void attempts_of_a_run_that_was_cut_off_are_lost(void **state)
{
    (void)state;
    char *path = test_path("lost.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 2});
    fixture_attempt(&f, task, "flash", "");
    fixture_begin_run(&f);
    fixture_attempt(&f, task, "flash", "");
    assert_rows(f.store, "SELECT state FROM attempts ORDER BY attempt_id", "lost\nrunning\n");
    fixture_close(&f);
    free(path);
}

static void ticks_and_events_keep_what_they_were_given(void **state)
{
    (void)state;
    char *path = test_path("events.db");
    struct fixture f;
    fixture_open(&f, path);
    struct store_tick tick = {.run_id = f.run,
                              .t_s = 2.5,
                              .n_running = 3,
                              .n_waiting = 4,
                              .kv_used = 5,
                              .kv_cached = 6,
                              .kv_blocks = 7,
                              .prompt_tps = 8.5,
                              .output_tps = 9.5,
                              .done = 10,
                              .total = 11};
    assert_int_equal(store_put_tick(f.store, &tick), 0);
    assert_rows(f.store, "SELECT * FROM timeseries", "1|2.5|3|4|5|6|7|8.5|9.5|10|11\n");
    assert_int_equal(store_put_event(f.store, f.run, 0, "signal", "SIGTERM"), 0);
    assert_rows(f.store, "SELECT run_id, attempt_id, kind, detail FROM events",
                "1|NULL|signal|SIGTERM\n");
    assert_int_equal(store_put_event(f.store, f.run, 99, "error", "of no attempt"), -1);
    assert_error(ERR_DATA, "FOREIGN KEY constraint failed (INSERT INTO events");
    assert_int_equal(store_put_event(f.store, f.run, 0, "signal", "goes on"), 0);
    fixture_close(&f);
    free(path);
}

static void a_worker_is_one_row_that_is_brought_up_to_date(void **state)
{
    (void)state;
    char *path = test_path("workers.db");
    struct fixture f;
    fixture_open(&f, path);
    struct store_worker w = {.run_id = f.run,
                             .rank = 1,
                             .host = "n3",
                             .pid = 42,
                             .device = "",
                             .state = "loading",
                             .task_index = -1};
    assert_int_equal(store_put_worker(f.store, &w), 0);
    assert_rows(f.store, "SELECT rank, environment_id, device, task_index FROM workers",
                "1|NULL|NULL|NULL\n");
    w.environment_id = f.environment;
    w.device = "cuda";
    w.state = "running";
    w.task_index = 0;
    w.n_done = 7;
    w.busy_s = 1.5;
    w.wall_s = 2.5;
    w.sent_bytes = 1LL << 40;
    w.received_bytes = 3;
    usleep(2000); /* seen_at has milliseconds */
    assert_int_equal(store_put_worker(f.store, &w), 0);
    w.rank = 0;
    assert_int_equal(store_put_worker(f.store, &w), 0);
    assert_rows(f.store,
                "SELECT run_id, rank, host, pid, environment_id, device, state, task_index, n_done,"
                " busy_s, wall_s, sent_bytes, received_bytes, seen_at > started_at FROM workers"
                " ORDER BY rank DESC",
                "1|1|n3|42|1|cuda|running|0|7|1.5|2.5|1099511627776|3|1\n"
                "1|0|n3|42|1|cuda|running|0|7|1.5|2.5|1099511627776|3|0\n");
    fixture_close(&f);
    free(path);
}

/* ---- samples ---- */

static void a_sample_is_kept_once(void **state)
{
    (void)state;
    char *path = test_path("once.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 2});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    for (int i = 0; i < 3; i++)
        assert_int_equal(fixture_sample(&f, task, attempt, 0, "aa", ""), 0);
    assert_rows(f.store, "SELECT text, ids, output_sha256, error, tpot_s FROM samples",
                "It is 2.|[7,151643]|aa|NULL|NULL\n");
    assert_rows(f.store, "SELECT count(*) FROM events", "0\n");
    fixture_close(&f);
    free(path);
}

static void another_hash_is_an_event_and_the_first_sample_stays(void **state)
{
    (void)state;
    char *path = test_path("hash.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 2});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    assert_int_equal(fixture_sample(&f, task, attempt, 0, "aa", ""), 0);
    assert_int_equal(fixture_sample(&f, task, attempt, 0, "bb", ""), 0);
    assert_int_equal(fixture_sample(&f, task, attempt, 0, "", "device lost"), 0);
    assert_rows(f.store, "SELECT output_sha256, error FROM samples", "aa|NULL\n");
    assert_rows(f.store, "SELECT run_id, attempt_id, kind, detail FROM events ORDER BY event_id",
                "1|1|nondeterministic|sample sample-1-0 (prompt 0, sample 0): aa is kept, now it "
                "was bb\n"
                "1|1|error|sample sample-1-0 (prompt 0, sample 0): aa is kept, now it was device "
                "lost\n");
    fixture_close(&f);
    free(path);
}

static void a_failed_sample_is_not_done_and_is_replaced(void **state)
{
    (void)state;
    char *path = test_path("failed.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 2});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    bool done[2] = {false, false};
    assert_int_equal(fixture_sample(&f, task, attempt, 1, "", "no memory"), 0);
    assert_int_equal(store_find_done(f.store, "task-0", done, 2, 1), 0);
    assert_int_equal(fixture_sample(&f, task, attempt, 1, "", "still no memory"), 0);
    assert_rows(f.store, "SELECT error, text, ids FROM samples", "still no memory|NULL|NULL\n");
    attempt = fixture_attempt(&f, task, "flash", "");
    assert_int_equal(fixture_sample(&f, task, attempt, 1, "cc", ""), 0);
    assert_rows(f.store, "SELECT attempt_id, error, output_sha256 FROM samples", "2|NULL|cc\n");
    assert_int_equal(store_find_done(f.store, "task-0", done, 2, 1), 1);
    assert_false(done[0]);
    assert_true(done[1]);
    assert_rows(f.store, "SELECT count(*) FROM events", "0\n");
    fixture_close(&f);
    free(path);
}

static void finished_samples_are_found_prompt_by_prompt(void **state)
{
    (void)state;
    char *path = test_path("done.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 6});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    static const int finished[][2] = {{0, 1}, {2, 0}, {3, 0}, {0, 2}}; /* prompt, sample */
    for (size_t i = 0; i < ARRAY_LEN(finished); i++) {
        char key[16];
        snprintf(key, sizeof(key), "key-%zu", i);
        assert_int_equal(
            store_put_sample(f.store, &(struct store_sample){.task_id = task,
                                                             .attempt_id = attempt,
                                                             .key = key,
                                                             .prompt_index = finished[i][0],
                                                             .sample_index = finished[i][1],
                                                             .finish_reason = "stop",
                                                             .output_sha256 = "aa",
                                                             .error = ""}),
            0);
    }
    /* The last two rows lie outside of 3 prompts with 2 samples each. */
    bool done[6] = {false};
    const bool expected[6] = {false, true, false, false, true, false};
    assert_int_equal(store_find_done(f.store, "task-0", done, 3, 2), 2);
    assert_memory_equal(done, expected, sizeof(done));
    assert_int_equal(store_find_done(f.store, "no such task", done, 3, 2), 0);
    assert_memory_equal(done, expected, sizeof(done));
    /* What another file has stays marked and is not counted again. */
    bool some[6] = {true, true, false, false, false, false};
    const bool all[6] = {true, true, false, false, true, false};
    assert_int_equal(store_find_done(f.store, "task-0", some, 3, 2), 1);
    assert_memory_equal(some, all, sizeof(some));
    fixture_close(&f);
    free(path);
}

static void thirty_two_samples_are_committed_without_being_asked(void **state)
{
    (void)state;
    char *path = test_path("batch.db");
    struct fixture f;
    struct store *reader;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 99});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    assert_int_equal(store_commit(f.store), 0);
    assert_int_equal(store_open(&reader, path, STORE_READ), 0);
    /* Far below a second, so that only the count can commit. */
    for (int i = 0; i < STORE_COMMIT_SAMPLES - 1; i++)
        assert_int_equal(fixture_sample(&f, task, attempt, i, "aa", ""), 0);
    assert_rows(reader, "SELECT count(*) FROM samples", "0\n");
    assert_int_equal(fixture_sample(&f, task, attempt, 31, "aa", ""), 0);
    assert_rows(reader, "SELECT count(*) FROM samples", "32\n");
    assert_int_equal(fixture_sample(&f, task, attempt, 32, "aa", ""), 0);
    assert_int_equal(store_commit(f.store), 0);
    assert_rows(reader, "SELECT count(*) FROM samples", "33\n");
    assert_int_equal(store_close(reader), 0);
    fixture_close(&f);
    free(path);
}

/* ---- views ---- */

static void throughput_shows_the_last_attempt_that_ended(void **state)
{
    (void)state;
    char *path = test_path("throughput.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t second =
        fixture_task(&f, (struct fixture_task){.index = 1, .attention = "eager", .n_samples = 4});
    int64_t first = fixture_task(&f, (struct fixture_task){.index = 0,
                                                           .attention = "flash",
                                                           .temperature = 0.5,
                                                           .replication = 2,
                                                           .n_samples = 4});
    fixture_end_attempt(&f, fixture_attempt(&f, first, "flash", ""), "failed", 0, 0);
    fixture_end_attempt(&f, fixture_attempt(&f, first, "flash", ""), "stopped", 3, 60);
    fixture_attempt(&f, first, "flash", "");
    fixture_end_attempt(&f, fixture_attempt(&f, second, "eager", "no flash"), "done", 4, 80);
    assert_rows(
        f.store, "SELECT * FROM throughput",
        "0|engine.attention=flash sampling.temperature=0.5|Tiny-1M|fast|flash|as asked|2|3|30|0.5|"
        "60.0|90.0|0|stopped|0|demo\n"
        "1|engine.attention=eager sampling.temperature=0|Tiny-1M|fast|eager|as asked|0|4|40|0.5|"
        "80.0|120.0|1|done|0|demo\n");
    assert_rows(f.store,
                "SELECT task_index, ttft_p50_s, ttft_p99_s, tpot_p50_s, e2e_p90_s FROM latency",
                "0|0.1|0.3|NULL|2.0\n1|0.1|0.3|NULL|2.0\n");
    fixture_close(&f);
    free(path);
}

/* Sets when attempts and runs were, which the store takes from the clock. */
static void set_times(const char *path, const char *sql)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

static void ranks_of_a_run_are_summed(void **state)
{
    (void)state;
    char *path = test_path("ranks.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 9});
    /* An earlier run counts no more, nor does what a rank did before it began anew. */
    fixture_end_attempt(&f, fixture_attempt(&f, task, "flash", ""), "stopped", 5, 10);
    fixture_begin_run(&f);
    fixture_end_attempt(&f, fixture_attempt(&f, task, "flash", ""), "failed", 0, 0);
    fixture_end_attempt(&f, fixture_attempt(&f, task, "flash", ""), "done", 2, 10); /* 2 s  */
    f.rank = 1;
    fixture_end_attempt(&f, fixture_attempt(&f, task, "eager", "old GPU"), "done", 6, 15); /* 4 s */
    fixture_close(&f);
    set_times(path, "UPDATE attempts SET ended_at = '2026-01-01T00:00:10.000Z' WHERE rank = 0;"
                    "UPDATE attempts SET ended_at = '2026-01-01T00:00:11.000Z' WHERE rank = 1");
    fixture_open(&f, path);
    /* From 7 s (rank 1 began) to 11 s; the numbers of the rank with the most samples. */
    assert_rows(f.store,
                "SELECT n_samples, output_tokens, round(run_s, 3), round(output_tps, 2),"
                " round(total_tps, 2), attention_used, degraded, state FROM throughput",
                "8|80|4.0|20.0|30.0|eager|1|done\n");
    assert_rows(f.store, "SELECT n_samples, ttft_p50_s FROM latency", "8|0.1\n");
    assert_rows(f.store, "SELECT run_id, n_workers, degraded_reason FROM latest_attempts",
                "2|2|old GPU\n");
    fixture_close(&f);
    free(path);
}

static void workers_of_a_job_array_are_one_launch(void **state)
{
    (void)state;
    static const char *const workers[] = {"0", "1", "1"};
    char *path = test_path("array.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 9});
    f.array_job = "900";
    /* The last one is worker 1 again, requeued: its samples are those that were missing. */
    for (size_t i = 0; i < ARRAY_LEN(workers); i++) {
        f.array_task = workers[i];
        fixture_begin_run(&f);
        fixture_end_attempt(&f, fixture_attempt(&f, task, "flash", ""), i == 1 ? "stopped" : "done",
                            (int)i + 2, 10);
    }
    fixture_close(&f);
    /* Ids are not in the order of time after a merge. */
    set_times(path, "UPDATE runs SET started_at = '2026-01-0' || run_id || 'T00:00:00.000Z'");
    fixture_open(&f, path);
    assert_rows(f.store, "SELECT n_samples, state FROM throughput", "6|done\n");
    fixture_close(&f);
    set_times(path, "UPDATE runs SET started_at = '2026-01-0' || (9 - run_id) || 'T'");
    fixture_open(&f, path);
    assert_rows(f.store, "SELECT n_samples, state FROM throughput", "5|stopped\n");
    fixture_close(&f);
    free(path);
}

static void progress_counts_tasks_and_samples(void **state)
{
    (void)state;
    char *path = test_path("progress.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task[6];
    for (int i = 0; i < 6; i++)
        task[i] = fixture_task(
            &f,
            (struct fixture_task){.index = i, .attention = "flash", .n_samples = i < 5 ? 2 : 0});
    /* 0: done; 1: one of two failed; 2: half way; 3: failed as a whole; 4: not begun; 5: could not
     * be read. */
    for (int i = 0; i < 3; i++) {
        int64_t attempt = fixture_attempt(&f, task[i], "flash", "");
        assert_int_equal(fixture_sample(&f, task[i], attempt, 0, "aa", ""), 0);
        if (i < 2) {
            assert_int_equal(fixture_sample(&f, task[i], attempt, 1, "aa", i ? "too long" : ""), 0);
            fixture_end_attempt(&f, attempt, "done", 2, 10);
        }
    }
    fixture_end_attempt(&f, fixture_attempt(&f, task[3], "", ""), "failed", 0, 0);
    fixture_end_attempt(&f, fixture_attempt(&f, task[5], "", ""), "failed", 0, 0);
    assert_rows(f.store,
                "SELECT experiment, tasks, tasks_done, tasks_failed, tasks_pending, samples,"
                " samples_done, samples_failed, samples_pending FROM progress",
                "demo|6|1|3|2|10|4|1|5\n");
    fixture_close(&f);
    free(path);
}

static void fallbacks_are_degraded_attempts_and_fallback_events(void **state)
{
    (void)state;
    char *path = test_path("fallbacks.db");
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.index = 4, .attention = "flash"});
    fixture_attempt(&f, task, "flash", "");
    int64_t degraded = fixture_attempt(&f, task, "eager", "no flash for head_dim 72");
    assert_int_equal(store_put_event(f.store, f.run, degraded, "fallback", "KV pool"), 0);
    assert_int_equal(store_put_event(f.store, f.run, 0, "fallback", "no GPU"), 0);
    assert_int_equal(store_put_event(f.store, f.run, 0, "resume", "not one"), 0);
    assert_rows(f.store,
                "SELECT source, experiment, task_index, attention_used, reason FROM fallbacks"
                " ORDER BY reason",
                "event|demo|4|eager|KV pool\n"
                "event|demo|NULL|NULL|no GPU\n"
                "attempt|demo|4|eager|no flash for head_dim 72\n");
    fixture_close(&f);
    free(path);
}

static void attention_speedup_pairs_tasks_that_differ_in_the_kernel_alone(void **state)
{
    (void)state;
    char *path = test_path("speedup.db");
    struct fixture f;
    fixture_open(&f, path);
    static const struct {
        const char *asked, *used;
        double temperature, tps;
        int replication, n_samples;
    } tasks[] = {
        {"flash", "flash", 0.0, 300, 0, 4}, /* pairs with 1          */
        {"eager", "eager", 0.0, 200, 0, 4}, /*                       */
        {"flash", "flash", 0.6, 900, 0, 4}, /* its own temperature   */
        {"auto", "flash", 0.0, 250, 0, 4},  /* pairs with 1 as well  */
        {"flash", "flash", 0.0, 900, 1, 4}, /* its own replication   */
        {"flash", "flash", 0.0, 900, 0, 3}, /* resumed: less work    */
        {"eager", "eager", 0.6, 0, 0, 4},   /* without a rate        */
    };
    for (int i = 0; i < (int)ARRAY_LEN(tasks); i++) {
        int64_t task = fixture_task(&f, (struct fixture_task){.index = i,
                                                              .attention = tasks[i].asked,
                                                              .temperature = tasks[i].temperature,
                                                              .replication = tasks[i].replication,
                                                              .n_samples = 4});
        fixture_end_attempt(&f, fixture_attempt(&f, task, tasks[i].used, ""), "done",
                            tasks[i].n_samples, tasks[i].tps);
    }
    assert_rows(f.store,
                "SELECT task_index, attention_used, output_tps, eager_task_index, eager_tps,"
                " speedup FROM attention_speedup",
                "0|flash|300.0|1|200.0|1.5\n3|flash|250.0|1|200.0|1.25\n");
    fixture_close(&f);
    free(path);
}

static void attention_speedup_never_compares_two_machines(void **state)
{
    (void)state;
    char *path = test_path("machines.db");
    struct fixture f;
    fixture_open(&f, path);
    for (int i = 0; i < 2; i++) {
        int64_t task =
            fixture_task(&f, (struct fixture_task){.index = i, .attention = i ? "eager" : "flash"});
        fixture_end_attempt(&f, fixture_attempt(&f, task, i ? "eager" : "flash", ""), "done", 4,
                            i ? 100 : 150);
        assert_rows(f.store, "SELECT count(*) FROM attention_speedup", "0\n");
        f.environment = store_put_environment(
            f.store, &(struct store_environment){.host = "node2", .cpu = "a faster CPU"});
        fixture_begin_run(&f);
    }
    fixture_close(&f);
    free(path);
}

/* ---- queries ---- */

static int count_rows(void *user, int n, const char *const *names, const char *const *values,
                      const bool *is_number)
{
    (void)n, (void)names, (void)is_number;
    int *left = user;
    if (values && --*left == 0)
        return err_set(ERR_RUN, "that is enough");
    return 0;
}

static void a_query_ends_when_its_reader_wants_no_more(void **state)
{
    (void)state;
    char *path = test_path("query.db");
    struct fixture f;
    fixture_open(&f, path);
    int left = 3;
    assert_int_equal(store_query(f.store,
                                 "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
                                 " SELECT i FROM n",
                                 count_rows, &left),
                     -1);
    assert_error(ERR_RUN, "that is enough");
    assert_int_equal(left, 0);
    fixture_close(&f);
    free(path);
}

static void real_numbers_are_read_back_as_they_were(void **state)
{
    (void)state;
    char *path = test_path("real.db");
    struct fixture f;
    fixture_open(&f, path);
    assert_rows(f.store, "SELECT 0.1, 1.0/3.0, 2.0, -1e300, 1e-300, 123456789012345678, x'', NULL",
                "0.1|0.3333333333333333|2.0|-1e+300|1e-300|123456789012345678||"
                "NULL\n");
    assert_rows(f.store,
                "SELECT stddev(x), stddev(y) FROM (SELECT 1e9 + 4 AS x, NULL AS y UNION ALL"
                " SELECT 1e9 + 7, NULL UNION ALL SELECT 1e9 + 13, 1 UNION ALL SELECT 1e9 + 16, "
                "NULL)",
                "5.477225575051661|NULL\n");
    fixture_close(&f);
    free(path);
}

int main(void)
{
    log_set_level("quiet");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_that_say_the_same_are_one_row),
        cmocka_unit_test(every_setting_of_a_task_is_a_column_of_its_type),
        cmocka_unit_test(a_task_moves_to_the_experiment_that_asked_for_it_last),
        cmocka_unit_test(numbers_that_are_not_there_are_null),
        cmocka_unit_test(attempts_of_a_run_that_was_cut_off_are_lost),
        cmocka_unit_test(ticks_and_events_keep_what_they_were_given),
        cmocka_unit_test(a_worker_is_one_row_that_is_brought_up_to_date),
        cmocka_unit_test(a_sample_is_kept_once),
        cmocka_unit_test(another_hash_is_an_event_and_the_first_sample_stays),
        cmocka_unit_test(a_failed_sample_is_not_done_and_is_replaced),
        cmocka_unit_test(finished_samples_are_found_prompt_by_prompt),
        cmocka_unit_test(thirty_two_samples_are_committed_without_being_asked),
        cmocka_unit_test(throughput_shows_the_last_attempt_that_ended),
        cmocka_unit_test(ranks_of_a_run_are_summed),
        cmocka_unit_test(workers_of_a_job_array_are_one_launch),
        cmocka_unit_test(progress_counts_tasks_and_samples),
        cmocka_unit_test(fallbacks_are_degraded_attempts_and_fallback_events),
        cmocka_unit_test(attention_speedup_pairs_tasks_that_differ_in_the_kernel_alone),
        cmocka_unit_test(attention_speedup_never_compares_two_machines),
        cmocka_unit_test(a_query_ends_when_its_reader_wants_no_more),
        cmocka_unit_test(real_numbers_are_read_back_as_they_were),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
