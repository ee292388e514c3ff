/* device_test.c - a GPU as a device: its memory and its host memory, transfers, refusals.
 *
 * Needs a GPU and quire_cuda.so beside the program or in ../lib/quire; skips itself otherwise.
 */
#include "tests/ops_reference.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_had_is_refused_with_a_reason),
        cmocka_unit_test(bytes_arrive_as_they_were_sent),
        cmocka_unit_test(blocks_are_copied_to_pinned_memory_back_and_within_a_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
