/* test_results.c - the results command on a database filled by hand. */
#include "runner/results.h"
#include "tests/store_fixture.h"

static const char nasty[] = "He said: \"1,000\"\nand | left\t\xF0\x9F\x99\x82 \\ 'bye'";

static char *db_path;

/* Eight tasks: attention (outer) x temperature x replication (inner). Task i generates 16 samples
 * at 100 + 10 * i tokens a second. */
static int make_database(void **state)
{
    (void)state;
    static const char *const attention[] = {"flash", "eager"};
    struct fixture f;
    db_path = test_path("results.db");
    fixture_open(&f, db_path);
    for (int i = 0; i < 8; i++) {
        int64_t task = fixture_task(&f, (struct fixture_task){.index = i,
                                                              .attention = attention[i / 4],
                                                              .temperature = i / 2 % 2 ? 0.6 : 0.0,
                                                              .replication = i % 2,
                                                              .n_samples = 16});
        int64_t attempt = fixture_attempt(&f, task, attention[i / 4], "");
        fixture_end_attempt(&f, attempt, "done", 16, 100 + 10 * i);
        if (i > 0)
            continue;
        assert_int_equal(fixture_sample(&f, task, attempt, 0, "aa", ""), 0);
        assert_int_equal(
            store_put_sample(f.store, &(struct store_sample){.task_id = task,
                                                             .attempt_id = attempt,
                                                             .key = "nasty",
                                                             .prompt_index = 1,
                                                             .n_output_tokens = 3,
                                                             .prompt = nasty,
                                                             .text = nasty,
                                                             .ids = (const int[]){1, 2, 3},
                                                             .finish_reason = "length",
                                                             .output_sha256 = "bb",
                                                             .error = ""}),
            0);
        assert_int_equal(fixture_sample(&f, task, attempt, 2, "", "the prompt is too long"), 0);
    }
    int64_t broken =
        fixture_task(&f, (struct fixture_task){.index = 8, .attention = "auto", .replication = 0});
    fixture_end_attempt(&f, fixture_attempt(&f, broken, "", ""), "failed", 0, 0);
    fixture_close(&f);
    return 0;
}

static int remove_database(void **state)
{
    (void)state;
    free(db_path);
    return 0;
}

/* What the command prints; the caller frees. */
static char *print(struct results_options o)
{
    char *text;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    o.db = db_path;
    if (results_print(out, &o) != 0)
        fail_msg("%s", err_get());
    fclose(out);
    return text;
}

/* The command fails with this message and prints nothing. */
static void assert_refused(struct results_options o, const char *message)
{
    char *text;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    if (!o.db)
        o.db = db_path;
    assert_int_equal(results_print(out, &o), -1);
    assert_error(ERR_CONFIG, message);
    fclose(out);
    assert_string_equal(text, "");
    free(text);
}

static json_t *print_json(struct results_options o)
{
    o.format = "json";
    char *text = print(o);
    json_t *rows = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_true(json_is_array(rows));
    free(text);
    return rows;
}

static double number(const json_t *rows, size_t row, const char *key)
{
    const json_t *value = json_object_get(json_array_get(rows, row), key);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

static const char *string(const json_t *rows, size_t row, const char *key)
{
    return json_string_value(json_object_get(json_array_get(rows, row), key));
}

static void without_options_the_throughput_of_every_task_is_printed(void **state)
{
    (void)state;
    char *text = print((struct results_options){0});
    assert_contains(text, "task  label");
    assert_contains(text, " attention=flash temperature=");
    assert_null(strstr(text, "decision_reason"));
    free(text);
    json_t *rows = print_json((struct results_options){0});
    assert_int_equal(json_array_size(rows), 9);
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(number(rows, i, "task_index"), i);
        assert_float_equal(number(rows, i, "output_tps"), (100.0 + 10.0 * (double)i), 0);
        assert_string_equal(string(rows, i, "attention_used"), i < 4 ? "flash" : "eager");
    }
    assert_string_equal(string(rows, 8, "state"), "failed");
    json_decref(rows);
}

static void by_groups_in_task_order_with_mean_and_standard_deviation(void **state)
{
    (void)state;
    json_t *rows =
        print_json((struct results_options){.by = "engine.attention,sampling_temperature"});
    assert_int_equal(json_array_size(rows), 5);
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(string(rows, i, "engine_attention"), i < 2 ? "flash" : "eager");
        assert_float_equal(number(rows, i, "sampling_temperature"), (i % 2 ? 0.6 : 0.0), 0);
        assert_int_equal(number(rows, i, "n_tasks"), 2);
        assert_int_equal(number(rows, i, "n_samples"), 32);
        assert_int_equal(number(rows, i, "output_tokens"), 320);
        /* Rates 100 + 20 i and 110 + 20 i: they lie 5 from their mean, sd = sqrt(2 * 25 / 1). */
        assert_float_equal(number(rows, i, "output_tps_mean"), (105.0 + 20.0 * (double)i), 1e-12);
        assert_float_equal(number(rows, i, "output_tps_sd"), 7.0710678118654755, 1e-12);
    }
    assert_string_equal(string(rows, 4, "engine_attention"), "auto");
    assert_true(json_is_null(json_object_get(json_array_get(rows, 4), "output_tps_mean")));
    json_decref(rows);
}

static void by_takes_what_was_used_as_well_as_what_was_asked(void **state)
{
    (void)state;
    char *text = print((struct results_options){.by = "model,attention_used", .format = "csv"});
    assert_string_equal(text, "model,attention_used,n_tasks,n_samples,output_tokens,"
                              "output_tps_mean,output_tps_sd\n"
                              "Tiny-1M,flash,4,64,640,115.0,12.909944487358056\n"
                              "Tiny-1M,eager,4,64,640,155.0,12.909944487358056\n"
                              "Tiny-1M,,1,0,0,,\n");
    free(text);
}

static void samples_come_with_prompt_text_and_reason_unharmed(void **state)
{
    (void)state;
    json_t *rows = print_json((struct results_options){.samples = true});
    assert_int_equal(json_array_size(rows), 3);
    assert_string_equal(string(rows, 0, "text"), "It is 2.");
    assert_string_equal(string(rows, 0, "finish_reason"), "stop");
    assert_string_equal(string(rows, 1, "prompt"), nasty);
    assert_string_equal(string(rows, 1, "text"), nasty);
    assert_string_equal(string(rows, 2, "finish_reason"), "error");
    json_decref(rows);
    char *text = print((struct results_options){.samples = true, .limit = 1, .format = "csv"});
    assert_string_equal(text, "task_index,label,prompt_index,sample_index,prompt,text,"
                              "finish_reason\n"
                              "0,engine.attention=flash sampling.temperature=0,0,0,"
                              "What is 1 + 1?,It is 2.,stop\n");
    free(text);
}

static void failed_says_why_for_tasks_and_samples(void **state)
{
    (void)state;
    json_t *rows = print_json((struct results_options){.failed = true});
    assert_int_equal(json_array_size(rows), 2);
    assert_string_equal(string(rows, 0, "failed"), "sample");
    assert_string_equal(string(rows, 0, "error"), "the prompt is too long");
    assert_string_equal(string(rows, 1, "failed"), "task");
    assert_string_equal(string(rows, 1, "error"), "no memory");
    json_decref(rows);
    rows = print_json((struct results_options){.failed = true, .samples = true});
    assert_int_equal(json_array_size(rows), 1);
    assert_int_equal(number(rows, 0, "prompt_index"), 2);
    json_decref(rows);
}

static void views_and_tables_are_found_by_name(void **state)
{
    (void)state;
    json_t *rows = print_json((struct results_options){.view = "progress"});
    assert_int_equal(number(rows, 0, "tasks"), 9);
    json_decref(rows);
    rows = print_json((struct results_options){.view = "tasks", .limit = 2});
    assert_int_equal(json_array_size(rows), 2);
    json_decref(rows);
    assert_refused((struct results_options){.view = "troughput"}, "did you mean 'throughput'?");
    assert_refused((struct results_options){.view = "x\"; DROP TABLE tasks; --"},
                   "expected one of attention_speedup, fallbacks");
}

static void an_unknown_key_names_the_nearest(void **state)
{
    (void)state;
    assert_refused((struct results_options){.by = "engine.atention"},
                   "there is no column to group by 'engine_atention'; did you mean "
                   "'engine_attention'?");
    assert_refused((struct results_options){.by = ""}, "--by needs the names of columns");
    assert_refused((struct results_options){.by = "model,"
                                                  ",label"},
                   "there is no column to group by ''");
    assert_refused((struct results_options){.by = "label,label,label,label,label,label,label,label,"
                                                  "label,label,label,label,label,label,label,label,"
                                                  "label"},
                   "at most 16 keys");
}

static void sql_runs_one_statement_that_reads(void **state)
{
    (void)state;
    char *text = print((struct results_options){
        .sql = "SELECT count(*) AS n, stddev(task_index) AS sd, 0.1 AS x FROM tasks; -- end",
        .format = "jsonl"});
    assert_string_equal(text, "{\"n\": 9, \"sd\": 2.7386127875258306, \"x\": 0.1}\n");
    free(text);
    text = print((struct results_options){
        .sql = "SELECT value FROM samples, json_each(samples.ids) WHERE samples.key = 'nasty'",
        .format = "csv"});
    assert_string_equal(text, "value\n1\n2\n3\n");
    free(text);
    static const char *const changing[] = {
        "DELETE FROM samples",
        "DROP TABLE samples",
        "UPDATE tasks SET label = ''",
        "PRAGMA query_only = OFF",
        "PRAGMA user_version = 9",
        "ATTACH '/tmp/other.db' AS other",
        "BEGIN",
        "CREATE TEMP TABLE t(x)",
        "VACUUM",
    };
    for (size_t i = 0; i < ARRAY_LEN(changing); i++)
        assert_refused((struct results_options){.sql = changing[i]},
                       "SQL: only statements that read");
    assert_refused((struct results_options){.sql = "SELECT 1; SELECT 2"}, "another follows");
    assert_refused((struct results_options){.sql = " -- nothing"}, "no statement");
    assert_refused((struct results_options){.sql = "SELECT no_such"}, "no such column: no_such");
}

static void options_that_ask_two_questions_are_refused(void **state)
{
    (void)state;
    assert_refused((struct results_options){.sql = "SELECT 1", .by = "label"},
                   "different questions");
    assert_refused((struct results_options){.view = "progress", .failed = true},
                   "different questions");
    assert_refused((struct results_options){.sql = "SELECT 1", .limit = 1}, "write LIMIT");
    assert_refused((struct results_options){.limit = -1}, "--limit is -1");
    assert_refused((struct results_options){.format = "cvs"}, "expected table, csv");
}

static void a_file_that_is_no_database_is_bad_data(void **state)
{
    (void)state;
    char *path = test_write_text("notes.db", "these are my notes, they are longer than a header");
    assert_int_equal(results_print(stdout, &(struct results_options){.db = path}), -1);
    assert_error(ERR_DATA, path);
    assert_int_equal(results_print(stdout, &(struct results_options){.db = "no/such.db"}), -1);
    assert_error(ERR_DATA, "no/such.db: there is no such file");
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_options_the_throughput_of_every_task_is_printed),
        cmocka_unit_test(by_groups_in_task_order_with_mean_and_standard_deviation),
        cmocka_unit_test(by_takes_what_was_used_as_well_as_what_was_asked),
        cmocka_unit_test(samples_come_with_prompt_text_and_reason_unharmed),
        cmocka_unit_test(failed_says_why_for_tasks_and_samples),
        cmocka_unit_test(views_and_tables_are_found_by_name),
        cmocka_unit_test(an_unknown_key_names_the_nearest),
        cmocka_unit_test(sql_runs_one_statement_that_reads),
        cmocka_unit_test(options_that_ask_two_questions_are_refused),
        cmocka_unit_test(a_file_that_is_no_database_is_bad_data),
    };
    return cmocka_run_group_tests(tests, make_database, remove_database);
}
