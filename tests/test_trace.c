/* test_trace.c - the file of a trace, whatever ends it, and what it shows of an engine's steps. */
#include "tests/workload.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- reading ---- */

/* The events of a file that lacks its end, or of a whole one. The caller frees. */
static json_t *read_events(const char *path, bool is_whole)
{
    json_error_t error;
    char *text = file_read(path, NULL);
    char *whole = xasprintf("%s%s", text, is_whole ? "" : "]");
    json_t *events = json_loads(whole, 0, &error);
    if (!events)
        fail_msg("%s:%d: %s", path, error.line, error.text);
    assert_true(json_is_array(events));
    free(whole);
    free(text);
    return events;
}

static const char *text_of(const json_t *event, const char *key)
{
    return json_string_value(json_object_get(event, key));
}

static double us_of(const json_t *event, const char *key)
{
    const json_t *number = json_object_get(event, key);
    assert_true(json_is_number(number));
    return json_number_value(number);
}

static long arg_of(const json_t *event, const char *name)
{
    const json_t *number = json_object_get(json_object_get(event, "args"), name);
    assert_true(json_is_integer(number));
    return (long)json_integer_value(number);
}

static bool is_span(const json_t *event, enum trace_track track)
{
    return strcmp(text_of(event, "ph"), "X") == 0 &&
           json_integer_value(json_object_get(event, "tid")) == (int)track + 1;
}

static struct trace *open_trace(const char *path)
{
    struct trace *t;
    if (trace_open(&t, path, 0, "test") != 0)
        fail_msg("%s", err_get());
    return t;
}

/* ---- the file ---- */

static void names_arrive_whatever_is_in_them(void **state)
{
    (void)state;
    static const char *const names[] = {"", "a", "\"quoted\" \\ back", "line\nand\ttab\x01",
                                        "M\xC3\xBCgge"};
    char *path = test_path("names.json");
    double now_s = time_monotonic_s();
    struct trace *t = open_trace(path);
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        trace_span(t, TRACE_HOST, names[i], now_s, now_s,
                   &(struct trace_arg){names[i], -(int64_t)i}, 1);
    trace_close(t);
    json_t *events = read_events(path, true);
    size_t first = json_array_size(events) - ARRAY_LEN(names);
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        const json_t *event = json_array_get(events, first + i);
        assert_string_equal(text_of(event, "name"), names[i]);
        assert_int_equal(arg_of(event, names[i]), -(long)i);
    }
    json_decref(events);
    free(path);
}

static void a_long_name_is_cut_between_characters(void **state)
{
    (void)state;
    char name[TRACE_MAX_NAME + 8] = "";
    for (int i = 0; i < TRACE_MAX_NAME - 1; i++)
        name[i] = 'x';
    memcpy(name + TRACE_MAX_NAME - 1, "\xC3\xBC", 2);
    char *path = test_path("long.json");
    struct trace *t = open_trace(path);
    trace_end(t, TRACE_STORE, name, time_monotonic_s());
    trace_close(t);
    json_t *events = read_events(path, true);
    const json_t *last = json_array_get(events, json_array_size(events) - 1);
    assert_int_equal(strlen(text_of(last, "name")), TRACE_MAX_NAME - 1);
    json_decref(events);
    free(path);
}

/* Names of 64 control characters and all the arguments that there may be. */
static void the_largest_event_fits_again_and_again(void **state)
{
    (void)state;
    char name[TRACE_MAX_NAME + 1] = "";
    struct trace_arg arg[TRACE_MAX_ARGS];
    for (int i = 0; i < TRACE_MAX_NAME; i++)
        name[i] = '\x02';
    for (int i = 0; i < TRACE_MAX_ARGS; i++)
        arg[i] = (struct trace_arg){name, INT64_MIN};
    char *path = test_path("large.json");
    struct trace *t = open_trace(path);
    for (int i = 0; i < 100; i++)
        trace_span(t, TRACE_DEVICE, name, 1e6, 2e9, arg, TRACE_MAX_ARGS);
    trace_close(t);
    json_t *events = read_events(path, true);
    assert_int_equal(json_array_size(events), 1 + TRACE_N_TRACKS + 100);
    json_decref(events);
    free(path);
}

static void times_are_microseconds_since_the_beginning(void **state)
{
    (void)state;
    char *path = test_path("times.json");
    double before_s = time_monotonic_s();
    struct trace *t = open_trace(path);
    double after_s = time_monotonic_s();
    trace_span(t, TRACE_HOST, "span", after_s + 0.5, after_s + 0.750002, NULL, 0);
    trace_count(t, "count", after_s + 1, &(struct trace_arg){"n", 17}, 1);
    trace_close(t);
    json_t *events = read_events(path, true);
    size_t n = json_array_size(events);
    const json_t *span = json_array_get(events, n - 2), *count = json_array_get(events, n - 1);
    assert_true(us_of(span, "ts") >= 499999 &&
                us_of(span, "ts") <= 500001 + 1e6 * (after_s - before_s));
    assert_true(us_of(span, "dur") > 250001 && us_of(span, "dur") < 250003);
    assert_string_equal(text_of(count, "ph"), "C");
    assert_true(us_of(count, "ts") > us_of(span, "ts") + 499998);
    assert_int_equal(arg_of(count, "n"), 17);
    json_decref(events);
    free(path);
}

static void every_track_has_a_name(void **state)
{
    (void)state;
    char *path = test_path("tracks.json");
    trace_close(open_trace(path));
    json_t *events = read_events(path, true);
    const char *const expected[] = {"test", "host", "device", "store"};
    assert_int_equal(json_array_size(events), ARRAY_LEN(expected));
    for (size_t i = 0; i < ARRAY_LEN(expected); i++) {
        const json_t *event = json_array_get(events, i);
        assert_string_equal(text_of(event, "ph"), "M");
        assert_string_equal(text_of(event, "name"), i == 0 ? "process_name" : "thread_name");
        assert_string_equal(text_of(json_object_get(event, "args"), "name"), expected[i]);
    }
    json_decref(events);
    free(path);
}

static void a_killed_process_leaves_whole_events(void **state)
{
    (void)state;
    char *path = test_path("killed.json");
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct trace *t = open_trace(path);
        double now_s = time_monotonic_s();
        for (int i = 0; i < 3000; i++)
            trace_span(t, TRACE_HOST, "step", now_s, now_s, &(struct trace_arg){"step", i}, 1);
        kill(getpid(), SIGKILL);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    json_t *events = read_events(path, false);
    size_t n = json_array_size(events), first = 1 + TRACE_N_TRACKS;
    assert_in_range(n, 1000, 3000 + first);
    for (size_t i = first; i < n; i++)
        assert_int_equal(arg_of(json_array_get(events, i), "step"), i - first);
    json_decref(events);
    free(path);
}

static void events_are_in_the_file_within_a_second(void **state)
{
    (void)state;
    char *path = test_path("slow.json");
    struct trace *t = open_trace(path);
    double now_s = time_monotonic_s();
    trace_span(t, TRACE_HOST, "first", now_s, now_s, NULL, 0);
    trace_span(t, TRACE_HOST, "a second later", now_s, now_s + 1.5, NULL, 0);
    json_t *events = read_events(path, false);
    assert_int_equal(json_array_size(events), 1 + TRACE_N_TRACKS + 2);
    json_decref(events);
    trace_close(t);
    free(path);
}

static void every_rank_has_a_file(void **state)
{
    (void)state;
    static const struct {
        const char *path, *expected;
        int rank;
    } cases[] = {
        {"r.json", "r.json", 0},          {"r.json", "r.rank-1.json", 1},
        {"r", "r.rank-12", 12},           {"r.a.json", "r.a.rank-3.json", 3},
        {".hidden", ".hidden.rank-1", 1}, {"d.x/r", "d.x/r.rank-1", 1},
    };
    char *folder = test_path("d.x");
    assert_int_equal(dir_make(folder), 0);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct trace *t;
        char *path = test_path(cases[i].path), *expected = test_path(cases[i].expected);
        assert_int_equal(trace_open(&t, path, cases[i].rank, "rank"), 0);
        assert_string_equal(trace_get_path(t), expected);
        trace_close(t);
        assert_true(file_exists(expected));
        free(path);
        free(expected);
    }
    free(folder);
}

static void every_rank_of_every_worker_has_a_file(void **state)
{
    (void)state;
    struct trace *t;
    char *path = test_path("a.json"), *worker = trace_path_of(path, "worker", 3);
    char *expected = test_path("a.worker-3.rank-1.json");
    assert_int_equal(trace_open(&t, worker, 1, "rank"), 0);
    assert_string_equal(trace_get_path(t), expected);
    trace_close(t);
    free(expected);
    free(worker);
    free(path);
}

static void what_cannot_be_written_is_refused(void **state)
{
    (void)state;
    struct trace *t;
    char *path = test_path("no/such/folder.json");
    assert_int_equal(trace_open(&t, path, 0, "test"), -1);
    assert_error(ERR_CONFIG, "no/such/folder.json: No such file");
    assert_null(t);
    assert_int_equal(trace_open(&t, test_dir(), 0, "test"), -1);
    assert_error(ERR_CONFIG, "Is a directory");
    free(path);
}

static void a_full_disk_ends_the_trace_and_not_the_work(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK) != 0)
        skip();
    (void)log_set_level("quiet");
    struct trace *t = open_trace("/dev/full");
    for (int i = 0; i < 5000; i++)
        trace_end(t, TRACE_HOST, "step", time_monotonic_s());
    trace_add_step(t, 1, 2);
    assert_int_equal(trace_get_steps(t).n, 1);
    trace_close(t);
}

#define N_THREADS    4
#define N_PER_THREAD 2000

static void *write_spans(void *trace)
{
    for (int i = 0; i < N_PER_THREAD; i++)
        trace_end(trace, TRACE_STORE, "row", trace_now(trace));
    return NULL;
}

static void threads_may_write_at_once(void **state)
{
    (void)state;
    pthread_t thread[N_THREADS];
    char *path = test_path("threads.json");
    struct trace *t = open_trace(path);
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, write_spans, t), 0);
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(thread[i], NULL);
    trace_close(t);
    json_t *events = read_events(path, true);
    assert_int_equal(json_array_size(events), 1 + TRACE_N_TRACKS + N_THREADS * N_PER_THREAD);
    json_decref(events);
    free(path);
}

/* ---- steps ---- */

/* What the trace of an engine says, beside the engine's statistics. */
struct reading {
    long n_steps, n_prefill, n_preempted;
    double device_us, idle_us;
    double busy_until_us; /* of the device */
    double part_until_us; /* of the host   */
    double call_until_us; /* likewise, of calls of engine_step */
    double parts_us, calls_us;
    int n_of_part[6];
};

static const char *const PARTS[] = {"schedule", "prepare", "launch", "wait", "commit", "callbacks"};

static void read_device(struct reading *r, const json_t *event)
{
    double began_us = us_of(event, "ts"), us = us_of(event, "dur");
    r->n_steps++;
    assert_int_equal(arg_of(event, "step"), r->n_steps);
    long n_prefill = arg_of(event, "prefill_tokens");
    assert_string_equal(text_of(event, "name"), n_prefill > 0 ? "prefill" : "decode");
    assert_int_equal(n_prefill + arg_of(event, "decode_tokens"), arg_of(event, "n_tokens"));
    assert_in_range(arg_of(event, "n_seqs"), 1, arg_of(event, "running"));
    assert_true(arg_of(event, "kv_used") > 0 && arg_of(event, "waiting") >= 0 && us >= 0);
    /* Rounding leaves a nanosecond between numbers that were equal. */
    assert_true(r->n_steps == 1 || began_us > r->busy_until_us - 0.002);
    if (r->n_steps > 1)
        r->idle_us += began_us - r->busy_until_us;
    r->n_prefill += n_prefill;
    r->n_preempted += arg_of(event, "preempted");
    r->busy_until_us = began_us + us;
    r->device_us += us;
}

/* Parts follow each other within the call, which comes after them in the file. */
static void read_host(struct reading *r, const json_t *event)
{
    double began_us = us_of(event, "ts"), us = us_of(event, "dur");
    const char *name = text_of(event, "name");
    assert_true(us >= 0);
    if (strcmp(name, "engine_step") == 0) {
        assert_true(began_us > r->call_until_us - 0.002);
        assert_true(fabs(began_us + us - r->part_until_us) < 0.002);
        r->call_until_us = began_us + us;
        r->calls_us += us;
        return;
    }
    size_t part = 0;
    while (part < ARRAY_LEN(PARTS) && strcmp(name, PARTS[part]) != 0)
        part++;
    assert_true(part < ARRAY_LEN(PARTS));
    assert_int_equal(arg_of(event, "step"), ++r->n_of_part[part]);
    assert_true(began_us > r->part_until_us - 0.002);
    r->part_until_us = began_us + us;
    r->parts_us += us;
}

static struct reading read_steps(const char *path)
{
    struct reading r = {0};
    json_t *events = read_events(path, true);
    for (size_t i = 0; i < json_array_size(events); i++) {
        const json_t *event = json_array_get(events, i);
        if (is_span(event, TRACE_DEVICE))
            read_device(&r, event);
        if (is_span(event, TRACE_HOST))
            read_host(&r, event);
    }
    json_decref(events);
    return r;
}

static void check_traced(struct model *model, const struct workload *untraced,
                         const struct engine_options *options, const char *name)
{
    char *path = test_path("steps.json");
    struct workload *w = workload_make();
    struct engine_options traced = *options;
    traced.trace = open_trace(path);
    struct engine_stats stats = workload_run(w, model, &traced);
    workload_assert_same(untraced, w, "traced", name);
    struct trace_steps steps = trace_get_steps(traced.trace);
    trace_close(traced.trace);
    struct reading r = read_steps(path);
    assert_int_equal(r.n_steps, stats.n_steps);
    assert_int_equal(steps.n, stats.n_steps);
    assert_int_equal(r.n_prefill, stats.prompt_tokens);
    assert_int_equal(r.n_preempted, stats.n_preemptions);
    for (size_t i = 0; i < ARRAY_LEN(PARTS); i++)
        assert_int_equal(r.n_of_part[i], stats.n_steps);
    assert_true(fabs(r.parts_us - r.calls_us) < 0.002 * (double)(6 * stats.n_steps));
    assert_true(fabs(r.device_us - 1e6 * steps.busy_s) < 0.002 * (double)stats.n_steps);
    assert_true(fabs(r.idle_us - 1e6 * steps.idle_s) < 0.002 * (double)stats.n_steps);
    free(w);
    free(path);
}

static void every_step_is_traced_and_no_token_changes(void **state)
{
    (void)state;
    static const struct engine_options SETTINGS[] = {
        {.fast = true, .max_num_seqs = 4},
        {.fast = true, .max_num_seqs = 32, .max_num_batched_tokens = 17, .prefix_caching = true},
        {.fast = true, .n_kv_blocks = 8},
        {.max_num_seqs = 7},
    };
    struct model *model = workload_open_model("tests/golden/qwen3", 1);
    struct workload *untraced = workload_make();
    workload_run(untraced, model, &SETTINGS[0]);
    for (int async = 0; async < 2; async++) {
        workload_async = async;
        for (size_t i = 0; i < ARRAY_LEN(SETTINGS); i++)
            check_traced(model, untraced, &SETTINGS[i], async ? "async" : "sync");
    }
    workload_async = false;
    free(untraced);
    model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_arrive_whatever_is_in_them),
        cmocka_unit_test(a_long_name_is_cut_between_characters),
        cmocka_unit_test(the_largest_event_fits_again_and_again),
        cmocka_unit_test(times_are_microseconds_since_the_beginning),
        cmocka_unit_test(every_track_has_a_name),
        cmocka_unit_test(a_killed_process_leaves_whole_events),
        cmocka_unit_test(events_are_in_the_file_within_a_second),
        cmocka_unit_test(every_rank_has_a_file),
        cmocka_unit_test(every_rank_of_every_worker_has_a_file),
        cmocka_unit_test(what_cannot_be_written_is_refused),
        cmocka_unit_test(a_full_disk_ends_the_trace_and_not_the_work),
        cmocka_unit_test(threads_may_write_at_once),
        cmocka_unit_test(every_step_is_traced_and_no_token_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
