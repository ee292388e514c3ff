/* test_store_merge.c - several files as one: old files, shards, merging, reading them united.
 *
 * sqlite3.h stands for another program that uses the file.
 */
#include "tests/store_fixture.h"

#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- helpers ---- */

static void run_sql(const char *path, const char *sql)
{
    sqlite3 *db;
    char *error = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &error) != SQLITE_OK)
        fail_msg("%s: %s", sql, error);
    sqlite3_close(db);
}

/* The integer in the first row of a statement, as another program reads it. */
static int read_integer(const char *path, const char *sql)
{
    sqlite3 *db;
    sqlite3_stmt *stmt;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
    int value = sqlite3_column_int(stmt, 0);
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    return value;
}

/* The file that quire wrote when there was one version of the schema. */
static char *make_old_file(const char *name)
{
    char *path = test_path(name);
    char *sql = file_read("tests/golden/store_v1.sql", NULL);
    assert_non_null(sql);
    run_sql(path, sql);
    free(sql);
    return path;
}

static struct store *open_to_read(const char *path)
{
    struct store *s;
    if (store_open(&s, path, STORE_READ) != 0)
        fail_msg("%s", err_get());
    return s;
}

static struct store *open_to_write(const char *path)
{
    struct store *s;
    if (store_open(&s, path, STORE_WRITE) != 0)
        fail_msg("%s", err_get());
    return s;
}

static int64_t put_task(struct fixture *f, int index)
{
    return fixture_task(
        f, (struct fixture_task){.index = index, .attention = "flash", .n_samples = 4});
}

/* A sample whose key is the same in every file: that of the fixture has the id of the task's row.
 */
static void put_sample(struct fixture *f, int task_index, int64_t task, int64_t attempt, int prompt,
                       const char *hash, const char *error)
{
    char key[64];
    snprintf(key, sizeof(key), "sample-of-%d-%d", task_index, prompt);
    struct store_sample sample = {.task_id = task,
                                  .attempt_id = attempt,
                                  .key = key,
                                  .prompt_index = prompt,
                                  .prompt = "What is 1 + 1?",
                                  .text = hash,
                                  .finish_reason = "stop",
                                  .output_sha256 = hash,
                                  .error = error};
    assert_int_equal(store_put_sample(f->store, &sample), 0);
}

static void put_worker(struct fixture *f, const char *state)
{
    assert_int_equal(
        store_put_worker(f->store, &(struct store_worker){.run_id = f->run,
                                                          .environment_id = f->environment,
                                                          .host = "n1",
                                                          .pid = 17,
                                                          .device = "cpu",
                                                          .state = state,
                                                          .task_index = -1}),
        0);
}

/* A file with the tasks first..last of 4 samples, of which it finishes those of the prompts
 * from..to, with an event, a tick and a worker. */
struct shard {
    const char *path;
    int first, last, from, to;
    const char *hash;
};

static void make_shard(struct shard shard)
{
    struct fixture f;
    fixture_open(&f, shard.path);
    for (int i = shard.first; i <= shard.last; i++) {
        int64_t task = put_task(&f, i);
        int64_t attempt = fixture_attempt(&f, task, "flash", "");
        for (int p = shard.from; p <= shard.to; p++)
            put_sample(&f, i, task, attempt, p, shard.hash, "");
        fixture_end_attempt(&f, attempt, "done", shard.to - shard.from + 1, 100);
        assert_int_equal(store_put_event(f.store, f.run, attempt, "resume", "went on"), 0);
    }
    assert_int_equal(store_put_event(f.store, f.run, 0, "signal", "SIGUSR1"), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(
            store_put_tick(f.store, &(struct store_tick){.run_id = f.run, .t_s = i, .done = i}), 0);
    put_worker(&f, "ended");
    assert_int_equal(store_end_run(f.store, f.run, 0), 0);
    fixture_close(&f);
}

/* Merges and checks what was new. */
static void assert_merged(struct store *into, const char *from, struct store_merge_counts expected)
{
    struct store_merge_counts n;
    if (store_merge(into, from, &n) != 0)
        fail_msg("%s", err_get());
    assert_int_equal(n.tasks, expected.tasks);
    assert_int_equal(n.attempts, expected.attempts);
    assert_int_equal(n.samples, expected.samples);
    assert_int_equal(n.nondeterministic, expected.nondeterministic);
}

/* Everything in a database but its ids, which differ between files that say the same. The caller
 * frees. */
static char *contents(struct store *s)
{
    static const char *const statements[] = {
        "SELECT * FROM (SELECT name, config_text, resolved_json, created_at FROM experiments)"
        " ORDER BY 1, 2, 3, 4",
        "SELECT host, cpu, n_threads FROM environments ORDER BY 1, 2, 3",
        "SELECT fingerprint, dtype, name FROM models ORDER BY 1, 2",
        "SELECT t.key, t.label, t.settings_json, t.engine_attention, t.n_samples, e.name,"
        " m.fingerprint, p.fingerprint FROM tasks t JOIN experiments e USING (experiment_id)"
        " JOIN models m USING (model_id) JOIN prompts p USING (prompts_id) ORDER BY 1",
        "SELECT run_key, started_at, ended_at, exit_code, e.name, n.host FROM runs r"
        " JOIN experiments e USING (experiment_id) JOIN environments n USING (environment_id)"
        " ORDER BY 1",
        "SELECT run_key, key, rank, state, a.n_samples, a.started_at, output_tps FROM attempts a"
        " JOIN runs USING (run_id) JOIN tasks USING (task_id) ORDER BY 1, 2, 3, a.attempt_id",
        "SELECT s.key, t.key, run_key, prompt_index, text, output_sha256, s.error, finished_at"
        " FROM samples s JOIN tasks t USING (task_id) JOIN attempts USING (attempt_id)"
        " JOIN runs USING (run_id) ORDER BY 1",
        "SELECT run_key, t.key, kind, detail, at FROM events JOIN runs USING (run_id)"
        " LEFT JOIN attempts a USING (attempt_id) LEFT JOIN tasks t ON t.task_id = a.task_id"
        " ORDER BY 1, 2, 3, 4, 5",
        "SELECT run_key, t_s, done FROM timeseries JOIN runs USING (run_id) ORDER BY 1, 2",
        "SELECT run_key, w.rank, w.state, w.seen_at, n.host FROM workers w JOIN runs USING (run_id)"
        " LEFT JOIN environments n ON n.environment_id = w.environment_id ORDER BY 1, 2",
        "SELECT * FROM progress",
        "SELECT task_index, n_samples, output_tokens, run_s, state FROM throughput",
    };
    struct str text = {0};
    for (size_t i = 0; i < ARRAY_LEN(statements); i++)
        if (store_query(s, statements[i], fixture_append_row, &text) != 0)
            fail_msg("%s: %s", statements[i], err_get());
    return text.data;
}

static void assert_same_contents(struct store *a, struct store *b)
{
    char *x = contents(a), *y = contents(b);
    assert_string_equal(x, y);
    free(x);
    free(y);
}

/* ---- old files ---- */

static void an_old_file_gets_what_is_new_and_keeps_its_rows(void **state)
{
    (void)state;
    char *path = make_old_file("old.db");
    bool done[2] = {false};
    struct store *s = open_to_write(path);
    assert_rows(s, "PRAGMA user_version", "4\n");
    assert_rows(s, "PRAGMA foreign_key_check", "");
    assert_rows(s, "SELECT run_key, slurm_array_job_id FROM runs ORDER BY run_id",
                "old-2026-11-21T11:24:18.484Z-node1-17-1|NULL\n"
                "old-2026-11-21T11:24:18.484Z-node1-17-2|NULL\n");
    assert_rows(s, "SELECT state, rank FROM attempts ORDER BY attempt_id", "done|0\nrunning|0\n");
    assert_rows(s, "SELECT count(*) FROM workers", "0\n");
    assert_rows(s, "SELECT task_index, output_tps, state FROM throughput", "0|100.0|done\n");
    assert_int_equal(store_find_done(s, "task-1", done, 2, 1), 1);
    assert_int_equal(store_close(s), 0);

    /* And it is written like any other. */
    struct fixture f;
    fixture_open(&f, path);
    assert_rows(f.store, "SELECT state FROM attempts ORDER BY attempt_id", "done\nlost\n");
    assert_rows(f.store, "SELECT length(run_key) FROM runs ORDER BY run_id DESC LIMIT 1", "32\n");
    put_worker(&f, "running");
    fixture_close(&f);
    free(path);
}

static void an_old_file_is_read_like_a_new_one_and_stays_old(void **state)
{
    (void)state;
    char *path = make_old_file("old-read.db");
    struct store *s = open_to_read(path);
    assert_rows(s, "SELECT run_key FROM runs WHERE run_id = 2",
                "old-2026-11-21T11:24:18.484Z-node1-17-2\n");
    assert_rows(s, "SELECT count(*) FROM workers", "0\n");
    assert_rows(s, "SELECT samples_done, samples_failed FROM progress", "3|1\n");
    assert_int_equal(store_close(s), 0);
    assert_int_equal(read_integer(path, "PRAGMA user_version"), 1);
    free(path);
}

/* What a file of version 3 has instead of the indexes of version 4. */
static const char version_3[] =
    "DROP INDEX samples_task; DROP INDEX samples_attempt;"
    "CREATE INDEX samples_task ON samples(task_id, prompt_index, sample_index);"
    "CREATE INDEX samples_attempt ON samples(attempt_id);"
    "DROP INDEX events_run; CREATE INDEX events_run ON events(run_id); PRAGMA user_version = 3";

static void a_file_with_the_same_tables_is_not_copied_to_be_read(void **state)
{
    (void)state;
    char *path = test_path("version-3.db");
    make_shard((struct shard){path, 0, 1, 0, 3, "aa"});
    run_sql(path, version_3);
    struct store *s = open_to_read(path);
    assert_rows(s, "SELECT samples_done FROM progress", "8\n");
    assert_rows(s, "SELECT file <> '' FROM pragma_database_list WHERE name = 'main'", "1\n");
    assert_int_equal(store_close(s), 0);
    assert_int_equal(read_integer(path, "PRAGMA user_version"), 3);

    s = open_to_write(path);
    assert_rows(s, "SELECT name FROM pragma_index_info('samples_task') WHERE seqno = 3", "error\n");
    assert_rows(s, "SELECT samples_done FROM progress", "8\n");
    assert_int_equal(store_close(s), 0);
    free(path);
}

static void copies_of_an_old_file_say_the_same_once(void **state)
{
    (void)state;
    char *a = make_old_file("copy-a.db"), *b = make_old_file("copy-b.db");
    struct store *s = open_to_write(a); /* migrated; the other one is not */
    assert_merged(s, b, (struct store_merge_counts){0});
    assert_rows(s, "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM events)", "2|1\n");
    assert_int_equal(store_close(s), 0);

    s = open_to_write(b);
    assert_merged(s, a, (struct store_merge_counts){0});
    assert_int_equal(store_close(s), 0);
    free(a);
    free(b);
}

/* ---- merging ---- */

static void merging_twice_is_merging_once(void **state)
{
    (void)state;
    char *shard = test_path("twice-shard.db"), *path = test_path("twice.db");
    make_shard((struct shard){shard, 0, 2, 0, 3, "aa"});
    struct store *s = open_to_write(path);
    assert_merged(s, shard, (struct store_merge_counts){3, 3, 12, 0});
    char *once = contents(s);
    assert_merged(s, shard, (struct store_merge_counts){0});
    char *twice = contents(s);
    assert_string_equal(once, twice);
    assert_rows(s, "PRAGMA foreign_key_check", "");
    struct store *from = open_to_read(shard);
    assert_same_contents(s, from);
    assert_int_equal(store_close(from), 0);
    assert_int_equal(store_close(s), 0);
    free(once);
    free(twice);
    free(shard);
    free(path);
}

static void shards_that_share_a_task_become_one_task(void **state)
{
    (void)state;
    char *a = test_path("share-a.db"), *b = test_path("share-b.db"), *path = test_path("share.db");
    /* Tasks 0..1 in one and 1..2 in the other, so that equal tasks have different ids. */
    make_shard((struct shard){a, 0, 1, 0, 1, "aa"});
    make_shard((struct shard){b, 1, 2, 2, 3, "aa"});
    struct store *s = open_to_write(path);
    assert_merged(s, a, (struct store_merge_counts){2, 2, 4, 0});
    assert_merged(s, b, (struct store_merge_counts){1, 2, 4, 0});
    assert_rows(s, "SELECT key, count(*) FROM tasks GROUP BY key",
                "task-0|1\ntask-1|1\ntask-2|1\n");
    assert_rows(s,
                "SELECT t.task_index, s.prompt_index, a.run_id FROM samples s"
                " JOIN attempts a USING (attempt_id) JOIN tasks t ON t.task_id = a.task_id"
                " WHERE s.task_id = a.task_id ORDER BY 1, 2",
                "0|0|1\n0|1|1\n1|0|1\n1|1|1\n1|2|2\n1|3|2\n2|2|2\n2|3|2\n");
    assert_rows(s, "SELECT tasks_done, tasks_pending, samples_done FROM progress", "1|2|8\n");
    assert_rows(s, "SELECT count(*) FROM experiments", "1\n");
    assert_int_equal(store_close(s), 0);
    free(a);
    free(b);
    free(path);
}

static void another_hash_is_left_out_and_recorded_once(void **state)
{
    (void)state;
    char *a = test_path("hash-a.db"), *b = test_path("hash-b.db"), *path = test_path("hash.db");
    make_shard((struct shard){a, 0, 0, 0, 1, "aa"});
    make_shard((struct shard){b, 0, 0, 1, 2, "bb"});
    struct store *s = open_to_write(path);
    assert_merged(s, a, (struct store_merge_counts){1, 1, 2, 0});
    assert_merged(s, b, (struct store_merge_counts){0, 1, 1, 1});
    assert_merged(s, b, (struct store_merge_counts){0});
    assert_rows(s, "SELECT prompt_index, output_sha256 FROM samples ORDER BY 1",
                "0|aa\n1|aa\n2|bb\n");
    assert_rows(s,
                "SELECT v.run_id, a.task_id, detail FROM events v JOIN attempts a"
                " USING (attempt_id) WHERE kind = 'nondeterministic'",
                "2|1|sample sample-of-0-1 (prompt 1, sample 0): aa is kept, another file has "
                "bb\n");
    assert_int_equal(store_close(s), 0);
    free(a);
    free(b);
    free(path);
}

/* A shard in which sample 0 failed or came out as "aa". */
static void make_outcome(const char *path, const char *error)
{
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = put_task(&f, 0), attempt = fixture_attempt(&f, task, "flash", "");
    put_sample(&f, 0, task, attempt, 0, *error ? "" : "aa", error);
    fixture_close(&f);
}

static void a_finished_sample_replaces_a_failed_one_and_not_the_other_way_round(void **state)
{
    (void)state;
    char *bad = test_path("bad.db"), *good = test_path("good.db"), *path = test_path("both.db");
    make_outcome(bad, "no memory");
    make_outcome(good, "");
    struct store *s = open_to_write(path);
    assert_merged(s, bad, (struct store_merge_counts){1, 1, 1, 0});
    assert_rows(s, "SELECT error FROM samples", "no memory\n");
    assert_merged(s, good, (struct store_merge_counts){0, 1, 1, 0});
    assert_merged(s, bad, (struct store_merge_counts){0});
    assert_rows(s, "SELECT attempt_id, output_sha256, error FROM samples", "2|aa|NULL\n");
    assert_rows(s, "SELECT count(*) FROM events", "0\n");
    assert_int_equal(store_close(s), 0);
    free(bad);
    free(good);
    free(path);
}

static void what_was_running_is_brought_up_to_date(void **state)
{
    (void)state;
    char *live = test_path("live.db"), *path = test_path("follows.db");
    struct fixture f;
    fixture_open(&f, live);
    int64_t task = put_task(&f, 0), first = fixture_attempt(&f, task, "flash", "");
    fixture_end_attempt(&f, first, "failed", 0, 0);
    int64_t second = fixture_attempt(&f, task, "flash", "");
    put_sample(&f, 0, task, second, 0, "aa", "");
    put_worker(&f, "running");
    assert_int_equal(store_commit(f.store), 0);

    struct store *s = open_to_write(path);
    assert_merged(s, live, (struct store_merge_counts){1, 2, 1, 0});
    assert_rows(s, "SELECT state FROM attempts ORDER BY attempt_id", "failed\nrunning\n");

    usleep(2000); /* seen_at has milliseconds */
    put_sample(&f, 0, task, second, 1, "aa", "");
    fixture_end_attempt(&f, second, "done", 2, 50);
    put_worker(&f, "ended");
    assert_int_equal(store_end_run(f.store, f.run, 0), 0);
    fixture_close(&f);
    assert_merged(s, live, (struct store_merge_counts){0, 0, 1, 0});
    assert_rows(s, "SELECT state, output_tps FROM attempts ORDER BY attempt_id",
                "failed|0.0\ndone|50.0\n");
    assert_rows(s, "SELECT state, host FROM workers", "ended|n1\n");
    assert_rows(s, "SELECT exit_code FROM runs", "0\n");
    assert_int_equal(store_close(s), 0);
    free(live);
    free(path);
}

static void a_task_belongs_to_the_newest_experiment_of_all_files(void **state)
{
    (void)state;
    char *a = test_path("exp-a.db"), *b = test_path("exp-b.db"), *path = test_path("exp.db");
    make_shard((struct shard){a, 0, 0, 0, 1, "aa"});
    make_shard((struct shard){b, 0, 1, 2, 3, "aa"});
    run_sql(b, "UPDATE experiments SET name = 'wider', created_at = '2199-01-01T00:00:00.000Z'");
    const char *const orders[][2] = {{a, b}, {b, a}};
    for (size_t i = 0; i < ARRAY_LEN(orders); i++) {
        struct store_merge_counts n;
        struct store *s = open_to_write(path);
        assert_int_equal(store_merge(s, orders[i][0], &n), 0);
        assert_int_equal(store_merge(s, orders[i][1], &n), 0);
        assert_rows(s, "SELECT experiment, tasks FROM progress", "wider|2\n");
        assert_int_equal(store_close(s), 0);
        assert_int_equal(unlink(path), 0);
    }
    free(a);
    free(b);
    free(path);
}

static void a_file_that_cannot_be_merged_leaves_nothing(void **state)
{
    (void)state;
    struct store_merge_counts n;
    char *good = test_path("sound.db"), *path = test_path("into.db");
    char *text = test_write_text("text.db", "This is text and no database.");
    char *empty = test_write_text("nothing.db", "");
    char *broken = test_path("broken.db"), *newer = test_path("newer.db");
    make_shard((struct shard){good, 0, 0, 0, 1, "aa"});
    make_shard((struct shard){broken, 1, 1, 0, 1, "aa"});
    make_shard((struct shard){newer, 2, 2, 0, 1, "aa"});
    /* Its samples are of an attempt that is not there, which comes out after its tasks are in. */
    run_sql(broken, "UPDATE samples SET attempt_id = 99");
    run_sql(newer, "PRAGMA user_version = 99");
    struct store *s = open_to_write(path);
    const char *const bad[] = {text, broken, newer, "no/such/file.db"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(store_merge(s, bad[i], &n), -1);
        assert_error(ERR_DATA, bad[i]);
    }
    assert_rows(s, "SELECT count(*) FROM tasks", "0\n");
    assert_int_equal(store_merge(s, path, &n), -1);
    assert_error(ERR_CONFIG, "into itself");
    assert_merged(s, empty, (struct store_merge_counts){0});
    assert_merged(s, good, (struct store_merge_counts){1, 1, 2, 0});
    assert_int_equal(store_close(s), 0);
    free(good);
    free(path);
    free(text);
    free(empty);
    free(broken);
    free(newer);
}

/* ---- shards ---- */

static void assert_files(const char *path, const char *expected)
{
    struct store_files files;
    struct str names = {0};
    str_append_c(&names, "");
    assert_int_equal(store_list_files(&files, path), 0);
    for (int i = 0; i < files.n; i++)
        str_appendf(&names, "%s ", strstr(files.path[i], "list"));
    assert_string_equal(names.data, expected);
    store_files_free(&files);
    str_free(&names);
}

static void the_files_of_a_path_are_itself_and_its_shards(void **state)
{
    (void)state;
    char *path = test_path("list.db"), *folder = test_path("list.d");
    char *shard = store_shard_path("results/x.db", 7, 64);
    assert_string_equal(shard, "results/x.d/0007-of-0064.db");
    free(shard);
    shard = store_shard_path("x", 0, 12345);
    assert_string_equal(shard, "x.d/0000-of-12345.db");
    free(shard);

    assert_files(path, "");
    assert_int_equal(dir_make(folder), 0);
    assert_files(path, "");
    free(test_write_text("list.d/0001-of-0002.db", ""));
    free(test_write_text("list.d/0000-of-0002.db", ""));
    free(test_write_text("list.d/0000-of-0002.db.lock", ""));
    free(test_write_text("list.d/0000-of-0002.db-wal", ""));
    free(test_write_text("list.d/.hidden.db", ""));
    free(test_write_text("list.d/.db", ""));
    assert_files(path, "list.d/0000-of-0002.db list.d/0001-of-0002.db ");
    assert_files(folder, "list.d/0000-of-0002.db list.d/0001-of-0002.db ");
    free(test_write_text("list.db", ""));
    assert_files(path, "list.db list.d/0000-of-0002.db list.d/0001-of-0002.db ");
    free(path);
    free(folder);
}

static void a_folder_without_results_is_bad_data(void **state)
{
    (void)state;
    char *folder = test_path("no-results");
    struct store *s;
    assert_int_equal(dir_make(folder), 0);
    assert_int_equal(store_open(&s, folder, STORE_READ), -1);
    assert_error(ERR_DATA, "no results database (*.db) in this folder");
    free(folder);
}

static void shards_read_like_the_file_that_they_are_merged_into(void **state)
{
    (void)state;
    char *path = test_path("united.db"), *folder = test_path("united.d");
    char *merged = test_path("united-merged.db");
    for (int i = 0; i < 3; i++) {
        char *shard = store_shard_path(path, i, 3);
        /* Neighbours share a task, and one has another hash for a sample of it. */
        make_shard((struct shard){shard, i, i + 1, i, i + 1, i == 2 ? "bb" : "aa"});
        free(shard);
    }
    struct store *shards = open_to_read(path), *of_folder = open_to_read(folder);
    struct store *s = open_to_write(merged);
    struct store_files files;
    assert_int_equal(store_list_files(&files, path), 0);
    assert_int_equal(files.n, 3);
    for (int i = 0; i < files.n; i++) {
        struct store_merge_counts n;
        assert_int_equal(store_merge(s, files.path[i], &n), 0);
    }
    store_files_free(&files);
    assert_same_contents(shards, s);
    assert_same_contents(of_folder, s);
    assert_rows(shards, "SELECT count(*) FROM events WHERE kind = 'nondeterministic'", "1\n");

    /* The file itself belongs to them, and reading changes none of them. */
    assert_int_equal(store_close(s), 0);
    assert_int_equal(store_close(shards), 0);
    assert_int_equal(rename(merged, path), 0);
    shards = open_to_read(path);
    assert_same_contents(shards, of_folder);
    assert_int_equal(store_query(shards, "DELETE FROM samples", fixture_append_row, NULL), -1);
    bool done[4] = {false};
    assert_int_equal(store_find_done(shards, "task-1", done, 4, 1), 3);
    assert_int_equal(store_close(shards), 0);
    assert_int_equal(store_close(of_folder), 0);
    free(path);
    free(folder);
    free(merged);
}

static void a_reader_of_numbers_gets_no_copies_of_texts(void **state)
{
    (void)state;
    char *path = test_path("numbers.db");
    for (int i = 0; i < 2; i++) {
        char *shard = store_shard_path(path, i, 2);
        make_shard((struct shard){shard, 0, 0, 2 * i, 2 * i + 1, "aa"});
        free(shard);
    }
    struct store *s;
    assert_int_equal(store_open(&s, path, STORE_READ_NUMBERS), 0);
    assert_rows(s, "SELECT count(*), count(prompt), count(text), count(ids) FROM samples",
                "4|0|0|0\n");
    assert_rows(s, "SELECT tasks_done, samples_done FROM progress", "1|4\n");
    bool done[4] = {false};
    assert_int_equal(store_find_done(s, "task-0", done, 4, 1), 4);
    assert_int_equal(store_close(s), 0);
    s = open_to_read(path);
    assert_rows(s, "SELECT count(prompt), count(text) FROM samples", "4|4\n");
    assert_int_equal(store_close(s), 0);
    free(path);
}

static void a_shard_is_read_while_it_is_written(void **state)
{
    (void)state;
    char *path = test_path("open.db");
    char *one = store_shard_path(path, 0, 2), *other = store_shard_path(path, 1, 2);
    struct fixture f;
    fixture_open(&f, one);
    make_shard((struct shard){other, 1, 1, 0, 3, "aa"});
    int64_t task = put_task(&f, 0), attempt = fixture_attempt(&f, task, "flash", "");
    put_sample(&f, 0, task, attempt, 0, "aa", "");
    assert_int_equal(store_commit(f.store), 0);
    put_sample(&f, 0, task, attempt, 1, "aa", ""); /* in an open transaction */
    struct store *s = open_to_read(path);
    assert_rows(s, "SELECT samples_done FROM progress", "5\n");
    assert_rows(s, "SELECT state, count(*) FROM attempts GROUP BY 1", "done|1\nrunning|1\n");
    put_sample(&f, 0, task, attempt, 2, "aa", "");
    assert_int_equal(store_close(s), 0);
    fixture_close(&f);
    free(path);
    free(one);
    free(other);
}

#define N_SHARDS 64

static void sixty_four_workers_write_sixty_four_shards_at_once(void **state)
{
    (void)state;
    char *path = test_path("many.db");
    pid_t child[N_SHARDS];
    for (int i = 0; i < N_SHARDS; i++) {
        child[i] = fork();
        if (child[i] == 0) {
            char *shard = store_shard_path(path, i, N_SHARDS);
            make_shard((struct shard){shard, i, i + 1, i % 2 ? 2 : 0, i % 2 ? 3 : 1, "aa"});
            _exit(0);
        }
        assert_true(child[i] > 0);
    }
    for (int i = 0; i < N_SHARDS; i++) {
        int status;
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_int_equal(status, 0);
    }
    struct store_files files;
    assert_int_equal(store_list_files(&files, path), 0);
    assert_int_equal(files.n, N_SHARDS);
    store_files_free(&files);
    struct store *s = open_to_read(path);
    /* Every task but the first and the last is that of two shards, each of which has half of it. */
    assert_rows(s, "SELECT tasks, tasks_done, samples, samples_done FROM progress",
                "65|63|260|256\n");
    assert_rows(s, "SELECT count(*), count(DISTINCT run_key) FROM runs", "64|64\n");
    assert_int_equal(store_close(s), 0);
    free(path);
}

int main(void)
{
    log_set_level("quiet");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_old_file_gets_what_is_new_and_keeps_its_rows),
        cmocka_unit_test(an_old_file_is_read_like_a_new_one_and_stays_old),
        cmocka_unit_test(a_file_with_the_same_tables_is_not_copied_to_be_read),
        cmocka_unit_test(copies_of_an_old_file_say_the_same_once),
        cmocka_unit_test(merging_twice_is_merging_once),
        cmocka_unit_test(shards_that_share_a_task_become_one_task),
        cmocka_unit_test(another_hash_is_left_out_and_recorded_once),
        cmocka_unit_test(a_finished_sample_replaces_a_failed_one_and_not_the_other_way_round),
        cmocka_unit_test(what_was_running_is_brought_up_to_date),
        cmocka_unit_test(a_task_belongs_to_the_newest_experiment_of_all_files),
        cmocka_unit_test(a_file_that_cannot_be_merged_leaves_nothing),
        cmocka_unit_test(the_files_of_a_path_are_itself_and_its_shards),
        cmocka_unit_test(a_folder_without_results_is_bad_data),
        cmocka_unit_test(shards_read_like_the_file_that_they_are_merged_into),
        cmocka_unit_test(a_reader_of_numbers_gets_no_copies_of_texts),
        cmocka_unit_test(a_shard_is_read_while_it_is_written),
        cmocka_unit_test(sixty_four_workers_write_sixty_four_shards_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
