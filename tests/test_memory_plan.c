/* test_memory_plan.c - how large an engine is made, on devices of every size that need not exist.
 */
#include "engine/engine.h"
#include "tests/testing.h"

#include <stdlib.h>
#include <string.h>

/* KV of one token: 2 * 10 layers * 4 heads * 64 * 2 bytes = 10,240 bytes. */
#define TOKEN_BYTES ((size_t)10240)
#define MIB         ((size_t)1 << 20)

static struct model_info a_model(size_t free_bytes)
{
    return (struct model_info){
        .dtype = DTYPE_BF16,
        .act_dtype = DTYPE_F32,
        .n_layers = 10,
        .hidden = 512,
        .ffn = 1024,
        .n_heads = 8,
        .n_kv_heads = 4,
        .head_dim = 64,
        .vocab = 1000,
        .max_position = 1000,
        .weight_bytes = 64 * MIB,
        .device = {.memory_bytes = 2 * free_bytes, .free_bytes = free_bytes}};
}

static struct memory_plan plan_of(const struct model_info *model,
                                  const struct engine_options *options)
{
    struct memory_plan plan;
    if (engine_plan(&plan, model, options) != 0)
        fail_msg("%s", err_get());
    return plan;
}

static size_t taken(const struct memory_plan *p)
{
    return p->weight_bytes + p->activation_bytes + p->kv_bytes;
}

static void a_large_memory_is_not_filled_beyond_what_the_sequences_can_use(void **state)
{
    (void)state;
    struct model_info model = a_model(100000 * MIB);
    struct memory_plan p = plan_of(
        &model, &(struct engine_options){.fast = true, .block_size = 32, .max_num_seqs = 3});
    assert_int_equal(p.block_size, 32);
    assert_int_equal(p.block_bytes, 32 * TOKEN_BYTES);
    assert_int_equal(p.max_model_len, 1000);
    assert_int_equal(p.n_blocks, 3 * 32); /* 1000 tokens need 32 blocks of 32 */
    assert_int_equal(p.kv_bytes, 96 * 32 * TOKEN_BYTES);
    assert_int_equal(p.max_concurrency, 3);
    assert_int_equal(p.weight_bytes, 64 * MIB);
}

static void a_small_memory_is_filled_up_to_the_budget(void **state)
{
    (void)state;
    static const double utilizations[] = {0.5, 0.9, 1};
    struct model_info model = a_model(1000 * MIB);
    for (size_t i = 0; i < ARRAY_LEN(utilizations); i++) {
        struct engine_options options = {.fast = true,
                                         .max_num_seqs = 1000,
                                         .max_num_batched_tokens = 512,
                                         .memory_utilization = utilizations[i]};
        struct memory_plan p = plan_of(&model, &options);
        assert_int_equal(p.budget_bytes, (size_t)(utilizations[i] * (double)(1000 * MIB)));
        assert_true(taken(&p) <= p.budget_bytes);
        assert_true(taken(&p) + p.block_bytes > p.budget_bytes);
        assert_int_equal(p.max_concurrency, p.n_blocks / 16);
    }
}

static void activations_do_not_grow_beyond_the_longest_possible_step(void **state)
{
    (void)state;
    struct model_info model = a_model(100000 * MIB);
    struct engine_options options = {
        .fast = true, .max_num_seqs = 2, .max_model_len = 100, .max_num_batched_tokens = 200};
    size_t needed = plan_of(&model, &options).activation_bytes;
    options.max_num_batched_tokens = 100000;
    assert_int_equal(plan_of(&model, &options).activation_bytes, needed);
    options.max_num_batched_tokens = 100;
    assert_true(plan_of(&model, &options).activation_bytes < needed);
}

static void steps_are_shorter_on_a_cpu_unless_sequences_need_them(void **state)
{
    (void)state;
    static const struct {
        enum device_kind device;
        int max_num_seqs, tokens;
    } cases[] = {{DEVICE_CPU, 0, 2048}, {DEVICE_CUDA, 0, 8192}, {DEVICE_CPU, 3000, 3000}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_info model = a_model(1000000 * MIB);
        model.device.kind = cases[i].device;
        struct engine_options options = {.fast = true, .max_num_seqs = cases[i].max_num_seqs};
        assert_int_equal(plan_of(&model, &options).max_step_tokens, cases[i].tokens);
    }
}

static void the_largest_length_that_fits_is_named_and_fits(void **state)
{
    (void)state;
    for (int fast = 0; fast < 2; fast++) {
        struct model_info model = a_model(100 * MIB);
        model.max_position = 1 << 20;
        struct engine_options options = {
            .fast = fast, .max_num_seqs = 1, .max_num_batched_tokens = 64};
        struct memory_plan plan;
        assert_int_equal(engine_plan(&plan, &model, &options), -1);
        assert_error(ERR_RESOURCE, "one sequence of max_model_len 1048576 needs 10737418240 bytes");
        const char *last = strrchr(err_get(), ' ');
        int64_t largest;
        assert_non_null(last);
        assert_true(parse_int64(&largest, last + 1));
        assert_true(largest > 1000);
        options.max_model_len = (int)largest;
        assert_int_equal(plan_of(&model, &options).max_concurrency, 1);
    }
}

static void a_memory_without_room_for_the_weights_is_refused(void **state)
{
    (void)state;
    struct model_info model = a_model(32 * MIB);
    struct memory_plan plan;
    assert_int_equal(engine_plan(&plan, &model, &(struct engine_options){.fast = true}), -1);
    assert_error(ERR_RESOURCE, "but 0 are there");
}

static void a_given_number_of_blocks_is_honoured(void **state)
{
    (void)state;
    struct model_info model = a_model(1000 * MIB);
    struct engine_options options = {
        .fast = true, .block_size = 16, .max_num_seqs = 8, .max_model_len = 100, .n_kv_blocks = 7};
    assert_int_equal(plan_of(&model, &options).n_blocks, 7);
    assert_int_equal(plan_of(&model, &options).max_concurrency, 1);
    options.n_kv_blocks = 4000; /* beyond what 8 sequences can own: room for the prefix cache */
    options.max_num_batched_tokens = 64;
    assert_int_equal(plan_of(&model, &options).n_blocks, 4000);
    struct memory_plan plan;
    options.n_kv_blocks = 6;
    assert_int_equal(engine_plan(&plan, &model, &options), -1);
    assert_error(ERR_CONFIG, "6 KV blocks are fewer than one sequence of max_model_len 100 needs");
    options.n_kv_blocks = 10000;
    assert_int_equal(engine_plan(&plan, &model, &options), -1);
    assert_error(ERR_RESOURCE, "n_kv_blocks 10000 needs 1638400000 bytes");
}

static void the_standard_engine_has_one_block_for_each_sequence(void **state)
{
    (void)state;
    struct model_info model = a_model(1000 * MIB);
    struct engine_options options = {.max_num_seqs = 5, .max_model_len = 100, .block_size = 16};
    struct memory_plan p = plan_of(&model, &options);
    assert_int_equal(p.block_size, 112);
    assert_int_equal(p.n_blocks, 5);
    assert_int_equal(p.max_concurrency, 5);
    options.n_kv_blocks = 20; /* 320 tokens: the same memory as the fast engine would have */
    assert_int_equal(plan_of(&model, &options).n_blocks, 2);
    options.n_kv_blocks = 1000;
    assert_int_equal(plan_of(&model, &options).n_blocks, 5);
    options = (struct engine_options){.max_num_seqs = 4000, .max_num_batched_tokens = 64};
    p = plan_of(&model, &options);
    assert_true(p.n_blocks > 10 && p.n_blocks < 100);
    assert_int_equal(p.max_concurrency, p.n_blocks);
    assert_true(taken(&p) <= p.budget_bytes);
}

static void the_kv_dtype_decides_the_size_of_a_block(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t factor;
    } cases[] = {{NULL, 1}, {"auto", 1}, {"bfloat16", 1}, {"float16", 1}, {"float32", 2}};
    struct model_info model = a_model(100000 * MIB);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct engine_options options = {.fast = true, .block_size = 16, .kv_dtype = cases[i].name};
        assert_int_equal(plan_of(&model, &options).block_bytes, cases[i].factor * 16 * TOKEN_BYTES);
    }
}

static void host_blocks_are_planned_where_sequences_can_be_preempted(void **state)
{
    (void)state;
    struct model_info model = a_model(1000 * MIB);
    model.device.kind = DEVICE_CUDA;
    const size_t block = 16 * TOKEN_BYTES;
    struct engine_options options = {.fast = true,
                                     .block_size = 16,
                                     .max_num_seqs = 8,
                                     .max_model_len = 100,
                                     .n_kv_blocks = 7,
                                     .swap_bytes = 5 * block + 1};
    struct memory_plan p = plan_of(&model, &options);
    assert_int_equal(p.n_host_blocks, 5);
    assert_int_equal(p.host_kv_bytes, 5 * block);
    options.swap_bytes = 1000 * block;
    assert_int_equal(plan_of(&model, &options).n_host_blocks, 8 * 7); /* all that can be owned */
    options.n_kv_blocks = 8 * 7;
    assert_int_equal(plan_of(&model, &options).n_host_blocks, 0);
    options.n_kv_blocks = 7;
    options.policy = SCHEDULING_MEMORY_AWARE;
    assert_int_equal(plan_of(&model, &options).n_host_blocks, 0);
    options.policy = SCHEDULING_FCFS;
    options.fast = false;
    assert_int_equal(plan_of(&model, &options).n_host_blocks, 0);
}

static void on_a_cpu_host_blocks_are_part_of_the_budget(void **state)
{
    (void)state;
    struct model_info model = a_model(400 * MIB);
    struct engine_options options = {.fast = true, .block_size = 16, .max_num_batched_tokens = 64};
    struct memory_plan without = plan_of(&model, &options);
    options.swap_bytes = 100 * MIB;
    struct memory_plan with = plan_of(&model, &options);
    assert_int_equal(with.n_host_blocks, 100 * MIB / with.block_bytes);
    assert_int_equal(with.n_blocks, without.n_blocks - with.n_host_blocks);
    assert_true(taken(&with) + with.host_kv_bytes <= with.budget_bytes);
    model.device.kind = DEVICE_CUDA;
    assert_int_equal(plan_of(&model, &options).n_blocks, without.n_blocks);
    model.device.kind = DEVICE_CPU;
    options.swap_bytes = 400 * MIB;
    assert_int_equal(engine_plan(&with, &model, &options), -1);
    assert_error(ERR_RESOURCE, "for swapped sequences (swap_space)");
}

static void a_block_that_is_too_long_to_count_in_is_refused(void **state)
{
    (void)state;
    struct model_info model = a_model((size_t)1 << 50);
    struct memory_plan plan;
    model.max_position = 1 << 20;
    model.n_kv_heads = 32;
    assert_int_equal(engine_plan(&plan, &model, &(struct engine_options){.fast = true}), 0);
    assert_int_equal(engine_plan(&plan, &model, &(struct engine_options){0}), -1);
    assert_error(ERR_CONFIG, "max_model_len");
    assert_int_equal(
        engine_plan(&plan, &model, &(struct engine_options){.fast = true, .block_size = 1 << 20}),
        -1);
    assert_error(ERR_CONFIG, "block_size");
    model.n_kv_heads = 31;
    assert_int_equal(engine_plan(&plan, &model, &(struct engine_options){0}), 0);
}

static void options_out_of_range_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        struct engine_options options;
        const char *part;
    } bad[] = {
        {{.block_size = 8}, "block_size is 8"},
        {{.block_size = 40}, "block_size is 40; expected a multiple of 16"},
        {{.max_num_seqs = -1}, "max_num_seqs is -1"},
        {{.max_num_seqs = ENGINE_MAX_SEQS + 1}, "max_num_seqs"},
        {{.max_num_batched_tokens = -5}, "max_num_batched_tokens is -5"},
        {{.max_model_len = 1}, "max_model_len is 1; expected 2 to 1000"},
        {{.max_model_len = 1001}, "max_model_len is 1001; expected 2 to 1000"},
        {{.n_kv_blocks = -1}, "n_kv_blocks"},
        {{.memory_utilization = 1.5}, "memory_utilization is 1.5"},
        {{.memory_utilization = -0.5}, "memory_utilization is -0.5"},
        {{.kv_dtype = "int8"}, "unknown kv_dtype 'int8'; expected auto"},
    };
    struct model_info model = a_model(1000 * MIB);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct memory_plan plan;
        struct engine_options options = bad[i].options;
        options.fast = i % 2;
        assert_int_equal(engine_plan(&plan, &model, &options), -1);
        assert_error(ERR_CONFIG, bad[i].part);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_large_memory_is_not_filled_beyond_what_the_sequences_can_use),
        cmocka_unit_test(a_small_memory_is_filled_up_to_the_budget),
        cmocka_unit_test(activations_do_not_grow_beyond_the_longest_possible_step),
        cmocka_unit_test(steps_are_shorter_on_a_cpu_unless_sequences_need_them),
        cmocka_unit_test(the_largest_length_that_fits_is_named_and_fits),
        cmocka_unit_test(a_memory_without_room_for_the_weights_is_refused),
        cmocka_unit_test(a_given_number_of_blocks_is_honoured),
        cmocka_unit_test(the_standard_engine_has_one_block_for_each_sequence),
        cmocka_unit_test(the_kv_dtype_decides_the_size_of_a_block),
        cmocka_unit_test(host_blocks_are_planned_where_sequences_can_be_preempted),
        cmocka_unit_test(on_a_cpu_host_blocks_are_part_of_the_budget),
        cmocka_unit_test(a_block_that_is_too_long_to_count_in_is_refused),
        cmocka_unit_test(options_out_of_range_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
