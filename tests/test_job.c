/* test_job.c - what is found out about a Slurm job; a script stands for squeue. */
#include "runner/job.h"
#include "tests/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define END_TEXT "2126-01-31T10:05:00"
#define END_UTC  4925527500 /* date -u -d 2126-01-31T10:05:00Z +%s */

static char *real_path;

static void forget_slurm(void)
{
    static const char *const names[] = {
        "SLURM_JOB_ID",          "SLURM_JOB_END_TIME",     "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_ID",   "SLURM_ARRAY_TASK_MIN",   "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT", "QUIRE_ARRAY_COUNT",
    };
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        unsetenv(names[i]);
}

static int set_up(void **state)
{
    (void)state;
    real_path = xstrdup(getenv("PATH"));
    setenv("TZ", "UTC", 1);
    forget_slurm();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    setenv("PATH", real_path, 1);
    free(real_path);
    return 0;
}

/* The squeue on PATH runs these lines of shell after it noted its arguments. */
static void fake_squeue(const char *lines)
{
    char *text = xasprintf("#!/bin/sh\necho \"$@\" >'%s/asked'\n%s\n", test_dir(), lines);
    char *squeue = test_write_text("squeue", text);
    char *path = xasprintf("%s:%s", test_dir(), real_path);
    char *asked = test_path("asked");
    assert_int_equal(chmod(squeue, 0755), 0);
    setenv("PATH", path, 1);
    remove(asked);
    free(asked);
    free(path);
    free(squeue);
    free(text);
}

static void assert_asked(const char *expected)
{
    char *path = test_path("asked");
    char *asked = file_exists(path) ? file_read(path, NULL) : xstrdup("");
    assert_string_equal(asked, expected);
    free(asked);
    free(path);
}

static void outside_slurm_there_is_no_end_and_squeue_is_not_asked(void **state)
{
    (void)state;
    fake_squeue("echo " END_TEXT);
    assert_int_equal(job_end_time(), 0);
    assert_asked("");
}

static void the_end_that_slurm_puts_into_the_environment_is_taken(void **state)
{
    (void)state;
    fake_squeue("echo " END_TEXT);
    setenv("SLURM_JOB_ID", "1234", 1);
    setenv("SLURM_JOB_END_TIME", "4900000000", 1);
    assert_int_equal(job_end_time(), 4900000000);
    assert_asked("");
}

/* A run that believed it would stop before its first sample. */
static void an_end_that_is_over_is_not_that_of_this_job(void **state)
{
    (void)state;
    setenv("SLURM_JOB_ID", "1234", 1);
    setenv("SLURM_JOB_END_TIME", "1700000000", 1);
    fake_squeue("echo " END_TEXT);
    assert_int_equal(job_end_time(), END_UTC);
    fake_squeue("echo 2023-11-14T22:13:20");
    assert_int_equal(job_end_time(), 0);
}

static void without_it_squeue_is_asked_and_answers_in_local_time(void **state)
{
    (void)state;
    fake_squeue("echo " END_TEXT);
    setenv("SLURM_JOB_ID", "1234", 1);
    assert_int_equal(job_end_time(), END_UTC);
    assert_asked("-h -j 1234 -o %e\n");
    setenv("SLURM_JOB_END_TIME", "soon", 1);
    setenv("TZ", "XYZ-2", 1); /* two hours east of Greenwich */
    assert_int_equal(job_end_time(), END_UTC - 2 * 3600);
}

/* The last task of an array has the array's own id, with which squeue lists all tasks. */
static void a_task_of_an_array_asks_for_itself_alone(void **state)
{
    (void)state;
    fake_squeue("echo " END_TEXT);
    setenv("SLURM_JOB_ID", "1234", 1);
    setenv("SLURM_ARRAY_JOB_ID", "1230", 1);
    setenv("SLURM_ARRAY_TASK_ID", "7", 1);
    assert_int_equal(job_end_time(), END_UTC);
    assert_asked("-h -j 1230_7 -o %e\n");
}

static void the_users_taste_in_squeue_does_not_reach_it(void **state)
{
    (void)state;
    fake_squeue("echo ${SLURM_TIME_FORMAT-" END_TEXT "}$SQUEUE_STATES$SLURM_CLUSTERS");
    setenv("SLURM_JOB_ID", "1234", 1);
    setenv("SLURM_TIME_FORMAT", "relative", 1);
    setenv("SQUEUE_STATES", "PD", 1);
    setenv("SLURM_CLUSTERS", "other", 1);
    assert_int_equal(job_end_time(), END_UTC);
    unsetenv("SLURM_TIME_FORMAT");
    unsetenv("SQUEUE_STATES");
    unsetenv("SLURM_CLUSTERS");
}

static void an_answer_that_is_no_time_is_not_known(void **state)
{
    (void)state;
    static const char *const scripts[] = {
        "",
        "echo",
        "echo N/A",
        "echo 2026-01-31",
        "echo " END_TEXT "Z",
        "echo " END_TEXT "; exit 1",
        "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        "kill -9 $$",
        "i=0; while [ $i -lt 9999 ]; do echo 2026; i=$((i + 1)); done",
        "head -c 100000 /dev/zero",
    };
    setenv("SLURM_JOB_ID", "1234", 1);
    for (size_t i = 0; i < ARRAY_LEN(scripts); i++) {
        fake_squeue(scripts[i]);
        assert_int_equal(job_end_time(), 0);
    }
}

static void a_machine_without_squeue_does_not_know_the_end(void **state)
{
    (void)state;
    setenv("SLURM_JOB_ID", "1234", 1);
    setenv("PATH", "/nonexistent", 1);
    assert_int_equal(job_end_time(), 0);
}

/* Whether a process is gone, or dead and only waits for its parent. */
static bool is_dead(const char *pid)
{
    char *path = xasprintf("/proc/%s/stat", pid), line[512] = "";
    FILE *f = fopen(path, "r");
    bool found = f && fgets(line, sizeof(line), f);
    if (f)
        fclose(f);
    free(path);
    const char *end = strrchr(line, ')');
    return !found || !end || end[2] == 'Z' || end[2] == 'X';
}

static void a_hanging_squeue_is_killed_with_what_it_started(void **state)
{
    (void)state;
    char *script =
        xasprintf("echo " END_TEXT "\nsleep 600 &\nprintf %%s $! >'%s/child'\nwait", test_dir());
    fake_squeue(script);
    setenv("SLURM_JOB_ID", "1234", 1);
    double began_s = time_monotonic_s();
    assert_int_equal(job_end_time(), 0);
    double took_s = time_monotonic_s() - began_s;
    assert_true(took_s > 4 && took_s < 7);
    char *path = test_path("child"), *child = file_read(path, NULL);
    assert_non_null(child);
    for (int i = 0; i < 200 && !is_dead(child); i++) /* the kernel takes its time to end it */
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_true(is_dead(child));
    free(child);
    free(path);
    free(script);
}

/* ---- arrays ---- */

struct array_case {
    const char *id, *min, *max, *step, *count, *workers; /* NULL: not set */
    bool found;
    struct job_array expected;
};

static void set_or_unset(const char *name, const char *value)
{
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

static void check_arrays(const struct array_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct array_case *c = &cases[i];
        struct job_array array = {0};
        set_or_unset("SLURM_ARRAY_TASK_ID", c->id);
        set_or_unset("SLURM_ARRAY_TASK_MIN", c->min);
        set_or_unset("SLURM_ARRAY_TASK_MAX", c->max);
        set_or_unset("SLURM_ARRAY_TASK_STEP", c->step);
        set_or_unset("SLURM_ARRAY_TASK_COUNT", c->count);
        set_or_unset("QUIRE_ARRAY_COUNT", c->workers);
        bool found = job_find_array(&array);
        if (found != c->found || array.index != c->expected.index ||
            array.count != c->expected.count)
            fail_msg("case %zu: %s, worker %d of %d", i, found ? "found" : "not found", array.index,
                     array.count);
    }
}

static void a_task_id_becomes_a_worker(void **state)
{
    (void)state;
    static const struct array_case cases[] = {
        {.found = false},
        {"0", "0", "7", "1", "8", NULL, true, {0, 8}},
        {"7", "0", "7", "1", "8", NULL, true, {7, 8}},
        {"5", "5", "5", "1", "1", NULL, true, {0, 1}},   /* --array=5      */
        {"8", "1", "8", "1", "8", NULL, true, {7, 8}},   /* --array=1-8    */
        {"9", "7", "9", "1", "3", NULL, true, {2, 3}},   /* --array=7-9    */
        {"10", "0", "10", "5", "3", NULL, true, {2, 3}}, /* --array=0-10:5 */
        {"10", "0", "12", "5", "3", NULL, true, {2, 3}}, /* the last id is below the end */
        {"3", "1", "4", NULL, NULL, NULL, true, {2, 4}}, /* an old Slurm */
    };
    check_arrays(cases, ARRAY_LEN(cases));
}

/* Slurm 22.05 says STEP=1 for every array with gaps. */
static void an_array_with_gaps_keeps_its_ids(void **state)
{
    (void)state;
    static const struct array_case cases[] = {
        {"3", "3", "9", "1", "4", NULL, true, {3, 10}}, /* --array=3,7-9 */
        {"9", "3", "9", "1", "4", NULL, true, {9, 10}},
        {"4", "1", "7", "1", "3", NULL, true, {4, 8}}, /* --array=1,4,7 */
        {"3", "3", "9", "1", "4", "16", true, {3, 16}},
        {"9", "7", "9", "1", "3", "16", true, {9, 16}},
        {"5", NULL, NULL, NULL, NULL, "6", true, {5, 6}},
    };
    log_set_level("quiet");
    check_arrays(cases, ARRAY_LEN(cases));
    log_set_level("info");
}

static void a_count_that_cannot_be_is_ignored(void **state)
{
    (void)state;
    static const struct array_case cases[] = {
        {"9", "7", "9", "1", "3", "9", true, {2, 3}}, /* there is no worker 9 of 9 */
        {"9", "7", "9", "1", "3", "many", true, {2, 3}},
        {"9", "7", "9", "1", "3", "-1", true, {2, 3}},
        {"9", "7", "9", "1", "3", "99999999999", true, {2, 3}},
    };
    log_set_level("quiet");
    check_arrays(cases, ARRAY_LEN(cases));
    log_set_level("info");
}

static void variables_that_contradict_each_other_are_no_array(void **state)
{
    (void)state;
    static const struct array_case cases[] = {
        {"x", "0", "7", "1", "8", NULL, .found = false},
        {"-1", "0", "7", "1", "8", NULL, .found = false},
        {"8", "0", "7", "1", "8", NULL, .found = false},
        {"3", "4", "7", "1", "4", NULL, .found = false},
        {"3", NULL, NULL, NULL, NULL, NULL, .found = false},
        {"3", "0", "4000000000", "1", "4", NULL, .found = false},
    };
    log_set_level("quiet");
    check_arrays(cases, ARRAY_LEN(cases));
    log_set_level("info");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(outside_slurm_there_is_no_end_and_squeue_is_not_asked),
        TEST(the_end_that_slurm_puts_into_the_environment_is_taken),
        TEST(an_end_that_is_over_is_not_that_of_this_job),
        TEST(without_it_squeue_is_asked_and_answers_in_local_time),
        TEST(a_task_of_an_array_asks_for_itself_alone),
        TEST(the_users_taste_in_squeue_does_not_reach_it),
        TEST(an_answer_that_is_no_time_is_not_known),
        TEST(a_machine_without_squeue_does_not_know_the_end),
        TEST(a_hanging_squeue_is_killed_with_what_it_started),
        TEST(a_task_id_becomes_a_worker),
        TEST(an_array_with_gaps_keeps_its_ids),
        TEST(a_count_that_cannot_be_is_ignored),
        TEST(variables_that_contradict_each_other_are_no_array),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
