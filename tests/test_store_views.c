/* test_store_views.c - what views and indexes cost where there are many tasks and samples.
 *
 * sqlite3.h stands for another program that uses the file, and counts its work: time would depend
 * on the machine.
 */
#include "tests/store_fixture.h"

#include <sqlite3.h>

/* A database of n finished tasks of one replication: pairs of flash and eager attention, each pair
 * with a temperature of its own. */
static char *make_pairs(const char *name, int n)
{
    char *path = test_path(name);
    struct fixture f;
    fixture_open(&f, path);
    for (int i = 0; i < n; i++) {
        const char *attention = i % 2 ? "eager" : "flash";
        int64_t task = fixture_task(
            &f, (struct fixture_task){
                    .index = i, .attention = attention, .temperature = i / 2, .n_samples = 4});
        fixture_end_attempt(&f, fixture_attempt(&f, task, attention, ""), "done", 4, 100 + i);
    }
    fixture_close(&f);
    return path;
}

static sqlite3 *open_database(const char *path)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    return db;
}

/* Runs a query for its number of rows and returns the steps of SQLite's machine that it took. */
static int count_steps(const char *path, const char *sql, int expected_rows)
{
    sqlite3 *db = open_database(path);
    sqlite3_stmt *stmt;
    int n = 0;
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
    while (sqlite3_step(stmt) == SQLITE_ROW)
        n++;
    int steps = sqlite3_stmt_status(stmt, SQLITE_STMTSTATUS_VM_STEP, 0);
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    assert_int_equal(n, expected_rows);
    return steps;
}

static void attention_speedup_does_not_compare_every_task_with_every_other(void **state)
{
    (void)state;
    static const char sql[] = "SELECT * FROM attention_speedup";
    char *few = make_pairs("few.db", 100), *many = make_pairs("many.db", 800);
    int steps_few = count_steps(few, sql, 50), steps_many = count_steps(many, sql, 400);
    if (steps_many > 12 * steps_few) /* eight times the tasks, 64 times the pairs */
        fail_msg("%d steps for 100 tasks, %d for 800", steps_few, steps_many);
    free(few);
    free(many);
}

/* What SQLite plans to do, a line for each loop. The caller frees. */
static char *query_plan(const char *path, const char *select)
{
    char *sql = xasprintf("EXPLAIN QUERY PLAN %s", select);
    struct str plan = {0};
    sqlite3 *db = open_database(path);
    sqlite3_stmt *stmt;
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
    while (sqlite3_step(stmt) == SQLITE_ROW)
        str_appendf(&plan, "%s\n", (const char *)sqlite3_column_text(stmt, 3));
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    free(sql);
    return plan.data;
}

static void finished_samples_are_counted_without_reading_their_texts(void **state)
{
    (void)state;
    char *path = make_pairs("indexed.db", 2);
    char *plan = query_plan(path, "SELECT * FROM progress");
    const char *first = strstr(plan, "COVERING INDEX samples_task");
    assert_non_null(first);
    assert_non_null(strstr(first + 1, "COVERING INDEX samples_task"));
    free(plan);
    free(path);
}

static void one_event_of_a_run_is_found_without_reading_the_others(void **state)
{
    (void)state;
    char *path = make_pairs("events.db", 2);
    char *plan =
        query_plan(path, "SELECT event_id FROM events WHERE run_id IS 1 AND attempt_id IS 1"
                         " AND kind IS 'resume' AND detail IS '' AND at IS ''");
    assert_non_null(strstr(plan, "events_run (run_id=? AND at=?)"));
    free(plan);
    free(path);
}

int main(void)
{
    log_set_level("quiet");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_speedup_does_not_compare_every_task_with_every_other),
        cmocka_unit_test(finished_samples_are_counted_without_reading_their_texts),
        cmocka_unit_test(one_event_of_a_run_is_found_without_reading_the_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
