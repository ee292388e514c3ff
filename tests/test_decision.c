/* test_decision.c - the ladder of devices and attention kernels, on GPUs that need not be there. */
#include "runner/decision.h"
#include "tests/testing.h"

#include <stdlib.h>
#include <string.h>

static const struct decision_policy lenient = {.allow_cpu = true, .allow_standard_engine = true};
static const struct decision_policy strict = {
    .strict = true, .allow_cpu = true, .allow_standard_engine = true};

static struct device_info gpu(int major, int minor)
{
    return (struct device_info){
        .kind = DEVICE_CUDA, .compute_major = major, .compute_minor = minor};
}

static struct device_info cpu(void)
{
    return (struct device_info){.kind = DEVICE_CPU, .isa = "avx2", .n_threads = 2};
}

static void auto_chooses_the_kernel_by_compute_capability(void **state)
{
    (void)state;
    static const struct {
        int major, minor;
        enum attention_kind kind;
    } cases[] = {
        {12, 0, ATTENTION_FLASH},
        {9, 0, ATTENTION_FLASH},
        {8, 9, ATTENTION_FLASH},
        {8, 0, ATTENTION_FLASH},
        {7, 5, ATTENTION_MEMORY_EFFICIENT},
        {7, 0, ATTENTION_MEMORY_EFFICIENT},
        {6, 1, ATTENTION_EAGER},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct device_info device = gpu(cases[i].major, cases[i].minor);
        assert_int_equal(decision_auto_attention(&device), cases[i].kind);
    }
    struct device_info device = cpu();
    assert_int_equal(decision_auto_attention(&device), ATTENTION_FLASH);
}

static void a_kernel_that_the_gpu_cannot_run_falls_back_and_says_so(void **state)
{
    (void)state;
    struct settings s = {.engine = {.attention = ATTENTION_CHOICE_FLASH}};
    struct device_info turing = gpu(7, 5);
    struct decision d = {.device = DEVICE_CUDA};
    assert_int_equal(decision_choose_attention(&d, &s, &turing, &lenient), 0);
    assert_int_equal(d.attention, ATTENTION_MEMORY_EFFICIENT);
    assert_true(d.degraded);
    assert_non_null(strstr(d.degraded_reason, "(8, 0)"));
    assert_non_null(strstr(d.degraded_reason, "memory_efficient"));
}

static void what_the_gpu_can_run_is_taken_without_a_word(void **state)
{
    (void)state;
    struct settings s = {.engine = {.attention = ATTENTION_CHOICE_EAGER}};
    struct device_info hopper = gpu(9, 0);
    struct decision d = {.device = DEVICE_CUDA};
    assert_int_equal(decision_choose_attention(&d, &s, &hopper, &strict), 0);
    assert_int_equal(d.attention, ATTENTION_EAGER);
    assert_false(d.degraded);
    assert_non_null(strstr(d.reason, "GPU compute capability: (9, 0)"));
}

static void strict_and_an_exclamation_mark_refuse_another_kernel(void **state)
{
    (void)state;
    struct settings s = {.engine = {.attention = ATTENTION_CHOICE_FLASH}};
    struct device_info turing = gpu(7, 5), processor = cpu();
    struct decision d = {.device = DEVICE_CUDA};
    assert_int_equal(decision_choose_attention(&d, &s, &turing, &strict), -1);
    assert_int_equal(err_get_kind(), ERR_RESOURCE);
    s.engine.attention = ATTENTION_CHOICE_ONLY_FLASH;
    assert_int_equal(decision_choose_attention(&d, &s, &turing, &lenient), -1);
    assert_int_equal(decision_choose_attention(&d, &s, &processor, &lenient), 0);
    s.engine.attention = ATTENTION_CHOICE_ONLY_MEMORY_EFFICIENT;
    assert_int_equal(decision_choose_attention(&d, &s, &processor, &lenient), -1);
}

static void without_a_gpu_auto_goes_to_the_cpu_unless_that_is_forbidden(void **state)
{
    (void)state;
    struct settings s = {.engine = {.device = DEVICE_CHOICE_AUTO}};
    struct decision d;
    setenv("QUIRE_TEST_COMPUTE_CAPABILITY", "none", 1);
    assert_int_equal(decision_choose_device(&d, &s, &lenient), 0);
    assert_int_equal(d.device, DEVICE_CPU);
    assert_true(d.degraded);
    assert_non_null(strstr(d.degraded_reason, "no usable GPU"));
    assert_int_equal(decision_choose_device(&d, &s, &strict), -1);
    assert_int_equal(err_get_kind(), ERR_RESOURCE);
    assert_int_equal(decision_choose_device(&d, &s, &(struct decision_policy){0}), -1);
    s.engine.device = DEVICE_CHOICE_CPU;
    assert_int_equal(decision_choose_device(&d, &s, &strict), 0);
    assert_false(d.degraded);
    unsetenv("QUIRE_TEST_COMPUTE_CAPABILITY");
}

static void the_standard_engine_stands_in_for_the_fast_one_with_the_reason(void **state)
{
    (void)state;
    struct decision d = {.fast = true};
    (void)log_set_level("quiet");
    err_set(ERR_RESOURCE, "no room for the pool");
    assert_int_equal(decision_use_standard_engine(&d, &strict), -1);
    assert_int_equal(decision_use_standard_engine(&d, &lenient), 0);
    assert_false(d.fast);
    assert_non_null(strstr(d.degraded_reason, "no room for the pool"));
    assert_int_equal(decision_use_standard_engine(&d, &lenient), -1);
}

static void a_gpu_without_memory_sends_the_tasks_to_the_cpu(void **state)
{
    (void)state;
    struct decision d = {.device = DEVICE_CUDA};
    err_set(ERR_RESOURCE, "16 GiB needed, 2 GiB free");
    assert_int_equal(decision_use_cpu(&d, &strict), -1);
    assert_int_equal(decision_use_cpu(&d, &lenient), 0);
    assert_int_equal(d.device, DEVICE_CPU);
    assert_non_null(strstr(d.degraded_reason, "16 GiB needed"));
    assert_int_equal(decision_use_cpu(&d, &lenient), -1);
    err_set(ERR_DATA, "the file is damaged");
    assert_int_equal(decision_use_cpu(&(struct decision){.device = DEVICE_CUDA}, &lenient), -1);
}

static void swap_space_counts_when_preempted_sequences_are_swapped(void **state)
{
    (void)state;
    struct settings s = {.engine = {.swap_space = 1.5, .gpu_memory_utilization = 0.9}};
    struct engine_options options;
    decision_engine_options(&(struct decision){.fast = true}, &s, &options);
    assert_int_equal(options.swap_bytes, 0);
    s.engine.preemption_mode = PREEMPTION_SWAP;
    decision_engine_options(&(struct decision){.fast = true}, &s, &options);
    assert_int_equal(options.swap_bytes, 1536u << 20);
    s.engine.swap_space = 0;
    decision_engine_options(&(struct decision){.fast = true}, &s, &options);
    assert_int_equal(options.swap_bytes, 0);
}
/* One device is chosen for all tasks of a model; the engine is each task's own. */
static void each_task_has_the_engine_that_it_asks_for(void **state)
{
    (void)state;
    struct settings s = {.engine = {.device = DEVICE_CHOICE_CPU, .fast = FAST_OFF}};
    struct device_info processor = cpu();
    struct decision d;
    assert_int_equal(decision_choose_device(&d, &s, &strict), 0);
    s.engine.fast = FAST_AUTO;
    assert_int_equal(decision_choose_attention(&d, &s, &processor, &strict), 0);
    assert_true(d.fast);
    s.engine.fast = FAST_OFF;
    assert_int_equal(decision_choose_attention(&d, &s, &processor, &strict), 0);
    assert_false(d.fast);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_chooses_the_kernel_by_compute_capability),
        cmocka_unit_test(a_kernel_that_the_gpu_cannot_run_falls_back_and_says_so),
        cmocka_unit_test(what_the_gpu_can_run_is_taken_without_a_word),
        cmocka_unit_test(strict_and_an_exclamation_mark_refuse_another_kernel),
        cmocka_unit_test(without_a_gpu_auto_goes_to_the_cpu_unless_that_is_forbidden),
        cmocka_unit_test(each_task_has_the_engine_that_it_asks_for),
        cmocka_unit_test(the_standard_engine_stands_in_for_the_fast_one_with_the_reason),
        cmocka_unit_test(a_gpu_without_memory_sends_the_tasks_to_the_cpu),
        cmocka_unit_test(swap_space_counts_when_preempted_sequences_are_swapped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
