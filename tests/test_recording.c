/* test_recording.c - recorded decode steps, on a pretended device that counts. */
#include "engine/recording.h"
#include "tests/testing.h"

#include <stdlib.h>
#include <string.h>

struct graph {
    int n_runs;
};

static struct {
    bool records, fails;
    int n_begun, n_ended, n_enqueued, n_freed;
    struct graph *last_run;
} seen;

static bool fake_begin(struct device *device)
{
    (void)device;
    seen.n_begun++;
    return seen.records;
}

static struct graph *fake_end(struct device *device)
{
    (void)device;
    seen.n_ended++;
    if (!seen.fails)
        return xcalloc(1, sizeof(struct graph));
    err_set(ERR_RESOURCE, "this device forgets");
    return NULL;
}

static void fake_run(struct device *device, struct graph *graph)
{
    (void)device;
    graph->n_runs++;
    seen.last_run = graph;
}

static void fake_free(struct device *device, struct graph *graph)
{
    (void)device;
    seen.n_freed += graph != NULL;
    free(graph);
}

static const struct backend fake_backend = {.graph_begin = fake_begin,
                                            .graph_end = fake_end,
                                            .graph_run = fake_run,
                                            .graph_free = fake_free};
static struct device gpu = {.ops = &fake_backend, .info = {.kind = DEVICE_CUDA}};

static void enqueue(void *user)
{
    (void)user;
    seen.n_enqueued++;
}

static void sizes_cover_every_batch_and_never_pass_the_limit(void **state)
{
    (void)state;
    struct recording r;
    recording_init(&r, &gpu, 100, true);
    int before = 0;
    for (int n = 1; n <= 100; n++) {
        int size = recording_size(&r, n);
        assert_in_range(size, n, 100);
        assert_true(size >= before && size < n + 16 && size <= 2 * n);
        before = size;
    }
    recording_free(&r);
}

static void a_size_is_recorded_once_and_then_replayed(void **state)
{
    (void)state;
    struct recording r;
    memset(&seen, 0, sizeof(seen));
    seen.records = true;
    recording_init(&r, &gpu, 64, true);
    for (int i = 0; i < 3; i++) {
        assert_true(recording_make(&r, 4, enqueue, NULL));
        recording_run(&r, 4);
    }
    assert_int_equal(seen.last_run->n_runs, 3);
    for (int i = 0; i < 2; i++) {
        assert_true(recording_make(&r, 32, enqueue, NULL));
        recording_run(&r, 32);
    }
    assert_int_equal(seen.last_run->n_runs, 2);
    assert_int_equal(seen.n_enqueued, 2);
    recording_free(&r);
    assert_int_equal(seen.n_freed, 2);
}

static void a_device_that_cannot_record_is_asked_once(void **state)
{
    (void)state;
    struct recording r;
    memset(&seen, 0, sizeof(seen));
    seen.records = seen.fails = true;
    (void)log_set_level("quiet");
    recording_init(&r, &gpu, 64, true);
    assert_int_equal(recording_size(&r, 3), 4);
    assert_false(recording_make(&r, 4, enqueue, NULL)); /* in vain: the caller runs it as it is */
    assert_null(seen.last_run);
    assert_int_equal(recording_size(&r, 3), 0);
    recording_free(&r);
}

static void the_cpu_and_enforce_eager_record_nothing(void **state)
{
    (void)state;
    struct recording r;
    struct device cpu = {.ops = &fake_backend, .info = {.kind = DEVICE_CPU}};
    recording_init(&r, &cpu, 64, true);
    assert_int_equal(recording_size(&r, 3), 0);
    recording_init(&r, &gpu, 64, false);
    assert_int_equal(recording_size(&r, 3), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_cover_every_batch_and_never_pass_the_limit),
        cmocka_unit_test(a_size_is_recorded_once_and_then_replayed),
        cmocka_unit_test(a_device_that_cannot_record_is_asked_once),
        cmocka_unit_test(the_cpu_and_enforce_eager_record_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
