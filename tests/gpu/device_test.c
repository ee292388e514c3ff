/* device_test.c - a GPU as a device: its memory and its host memory, transfers, marks, refusals.
 *
 * Needs a GPU and quire_cuda.so beside the program or in ../lib/quire; skips itself otherwise.
 */
#include "tests/ops_reference.h"

#include <math.h>
#include <stdlib.h>

static void bytes_arrive_as_they_were_sent(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 4097, (4u << 20) - 1, (4u << 20) + 3, 21u << 20, 12};
    struct device *device = open_gpu(DTYPE_F32);
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        char *sent = xmalloc(sizes[i]);
        for (size_t b = 0; b < sizes[i]; b++)
            sent[b] = (char)(b * 31 + b / 257 + i);
        char *memory = to_device(device, sent, sizes[i]);
        char *got = to_host(device, memory, sizes[i]);
        assert_memory_equal(got, sent, sizes[i]);
        device->ops->free(device, memory);
        free(sent);
        free(got);
    }
    device->ops->close(device);
}

static void blocks_are_copied_to_pinned_memory_back_and_within_a_pool(void **state)
{
    (void)state;
    struct device *device = open_gpu(DTYPE_BF16);
    check_copy_blocks(device, 1, 2, 32);
    check_copy_blocks(device, 700, 6, 48); /* three launches */
    check_copy_blocks(device, 9, 56, 131072);
    device->ops->close(device);
}

static void what_cannot_be_had_is_refused_with_a_reason(void **state)
{
    (void)state;
    struct device *device = open_gpu(DTYPE_F32);
    assert_null(device->ops->alloc(device, (size_t)1 << 50));
    assert_error(ERR_RESOURCE, "not enough GPU memory");
    assert_null(device->ops->alloc_host(device, (size_t)1 << 50));
    assert_error(ERR_RESOURCE, "not enough pinned host memory");
    float x = 1;
    void *memory = to_device(device, &x, sizeof(x)); /* the refusal leaves the device usable */
    device->ops->free(device, memory);
    assert_null(device->ops->open(&(struct device_options){.index = 99}));
    assert_error(ERR_CONFIG, "there is no GPU 99");
    const struct device_info *info = &device->info;
    print_message("%s, %s, driver %s, CUDA %s, %zu of %zu bytes free\n", info->name, info->isa,
                  info->driver, info->runtime, info->free_bytes, info->memory_bytes);
    assert_true(info->compute_major >= 7 && info->free_bytes > 0);
    device->ops->close(device);
}

/* Work of some milliseconds between the marks of a pair, as between those of a step. */
static void copy_some(struct device *device, struct kv_pool *pool, size_t bytes)
{
    struct kv_copy copy = {0, 1};
    for (int i = 0; i < 20; i++)
        device->ops->copy_blocks(device, &(struct copy_blocks_args){.dst = *pool,
                                                                    .src = *pool,
                                                                    .bytes = bytes,
                                                                    .n_planes = 1,
                                                                    .copy = &copy,
                                                                    .n_copies = 1});
}

/* Two pairs are in flight, as two steps of an engine are. */
static void marks_are_times_of_the_device_by_the_clock_of_the_host(void **state)
{
    (void)state;
    enum { N_PAIRS = 200 };
    const size_t bytes = (size_t)1 << 20;
    struct device *device = open_gpu(DTYPE_F32);
    struct kv_pool pool = {.memory = device->ops->alloc(device, 2 * bytes), .n_blocks = 2};
    double began_s[N_PAIRS], busy_s = 0, until_s = time_monotonic_s(), least_s = 1;
    for (int i = 0; i <= N_PAIRS; i++) {
        if (i < N_PAIRS) {
            began_s[i] = time_monotonic_s();
            assert_int_equal(device->ops->mark(device), 2 * i);
            copy_some(device, &pool, bytes);
            assert_int_equal(device->ops->mark(device), 2 * i + 1);
        }
        if (i == 0)
            continue;
        double began = device->ops->mark_read(device, 2 * (i - 1));
        double ended = device->ops->mark_read(device, 2 * (i - 1) + 1);
        assert_true(began >= began_s[i - 1] && began >= until_s);
        assert_true(ended > began && ended <= time_monotonic_s());
        until_s = ended;
        busy_s += ended - began;
        least_s = fmin(least_s, ended - began);
    }
    double all_s = time_monotonic_s() - began_s[0];
    print_message(
        "%d pairs in %.3f ms, of which the device was busy for %.3f ms; the shortest took "
        "%.3f us\n",
        N_PAIRS, 1e3 * all_s, 1e3 * busy_s, 1e6 * least_s);
    assert_true(busy_s <= all_s);
    /* No GPU copies as fast as 10 TB/s, and one block of threads for a copy is far from that. */
    assert_true(least_s > 20 * (double)bytes / 10e12);
    device->ops->free(device, pool.memory);
    device->ops->close(device);
}

static void marks_go_round_a_recorded_step(void **state)
{
    (void)state;
    const size_t bytes = (size_t)1 << 20;
    struct device *device = open_gpu(DTYPE_F32);
    struct kv_pool pool = {.memory = device->ops->alloc(device, 2 * bytes), .n_blocks = 2};
    assert_true(device->ops->graph_begin(device));
    copy_some(device, &pool, bytes);
    struct graph *graph = device->ops->graph_end(device);
    assert_non_null(graph);
    for (int i = 0; i < 40; i++) {
        int64_t began = device->ops->mark(device);
        device->ops->graph_run(device, graph);
        int64_t ended = device->ops->mark(device);
        double began_s = device->ops->mark_read(device, began);
        assert_true(device->ops->mark_read(device, ended) > began_s);
    }
    device->ops->graph_free(device, graph);
    device->ops->free(device, pool.memory);
    device->ops->close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_had_is_refused_with_a_reason),
        cmocka_unit_test(bytes_arrive_as_they_were_sent),
        cmocka_unit_test(blocks_are_copied_to_pinned_memory_back_and_within_a_pool),
        cmocka_unit_test(marks_are_times_of_the_device_by_the_clock_of_the_host),
        cmocka_unit_test(marks_go_round_a_recorded_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
