/* test_swap.c - preempted sequences that wait in host memory, on the whole engine. That their
 * tokens are those of every other setting, test_engine.c shows; here is what became of the
 * swapping.
 */
#include "tests/workload.h"

#include <stdlib.h>

#define MODEL "tests/golden/qwen3"

struct fixture {
    struct model *model;
    struct engine *engine;
    struct workload *w;
};

static void setup(struct fixture *f, const struct engine_options *options)
{
    f->model = workload_open_model(MODEL, 1);
    f->engine = workload_open_engine(f->model, options);
    f->w = workload_make();
}

static void teardown(struct fixture *f)
{
    engine_close(f->engine);
    model_close(f->model);
    free(f->w);
}

static void a_request_is_cancelled_while_it_is_swapped_out(void **state)
{
    (void)state;
    struct fixture f;
    struct engine_options options = {.fast = true, .n_kv_blocks = 8, .swap_bytes = 1 << 20};
    struct engine_stats s = {0};
    uint64_t first, last;
    setup(&f, &options);
    workload_submit(f.engine, &f.w->request[12], &first);
    workload_submit(f.engine, &f.w->request[7], &last);
    while (s.n_swapped_out == 0) {
        assert_int_equal(engine_step(f.engine), 1);
        engine_get_stats(f.engine, &s);
    }
    assert_true(s.kv_host_used > 0 && s.swapped_out_bytes > 0);
    assert_true(engine_cancel(f.engine, last));
    workload_step_all(f.engine);
    engine_get_stats(f.engine, &s);
    assert_int_equal(s.kv_host_used, 0);
    assert_int_equal(s.n_swapped_in, 0);
    assert_int_equal(f.w->outcome[7].reason, FINISH_CANCELLED);
    assert_int_equal(f.w->outcome[12].reason, FINISH_LENGTH);
    teardown(&f);
}

/* Two short prompts with long outputs and a prompt of four blocks, of which a step computes no more
 * than one token; returns what was computed of it all when the prompt had to give way. */
static long run_into_a_prompt(struct fixture *f)
{
    static const int order[] = {1, 2, 9};
    struct engine_stats s = {0};
    long n_computed = 0;
    for (size_t i = 0; i < ARRAY_LEN(order); i++) {
        struct request r = f->w->request[order[i]];
        r.n_prompt = r.n_prompt == 64 ? 64 : 2;
        r.sampling.max_tokens = MAX_OUTPUT;
        r.sampling.ignore_eos = true;
        workload_submit(f->engine, &r, NULL);
    }
    while (engine_step(f->engine) > 0) {
        engine_get_stats(f->engine, &s);
        n_computed = s.n_preemptions == 0 ? s.prompt_tokens : n_computed;
    }
    return n_computed;
}

static void a_prompt_that_is_swapped_out_in_its_middle_goes_on_there(void **state)
{
    (void)state;
    struct fixture roomy, tight;
    struct engine_stats s;
    struct engine_options options = {.fast = true, .max_num_batched_tokens = 3};
    setup(&roomy, &options);
    assert_int_equal(run_into_a_prompt(&roomy), 2 + 2 + 64);
    for (int caching = 0; caching < 2; caching++) {
        options.n_kv_blocks = 8;
        options.swap_bytes = 1 << 20;
        options.prefix_caching = caching;
        setup(&tight, &options);
        long n_computed = run_into_a_prompt(&tight);
        assert_true(n_computed > 2 + 2 + 16 && n_computed < 2 + 2 + 64);
        engine_get_stats(tight.engine, &s);
        assert_true(s.n_swapped_out > 0 && s.n_swapped_in == s.n_preemptions);
        assert_int_equal(s.prompt_tokens, 2 + 2 + 64);
        for (int i = 1; i <= 9; i += i == 1 ? 1 : 7) {
            const struct outcome *a = &roomy.w->outcome[i], *b = &tight.w->outcome[i];
            assert_int_equal(a->n_ids, MAX_OUTPUT);
            assert_int_equal(b->n_ids, MAX_OUTPUT);
            assert_memory_equal(a->ids, b->ids, sizeof(a->ids));
        }
        teardown(&tight);
    }
    teardown(&roomy);
}

/* The first request has got its last token, which the host does not know yet, when the second one
 * needs a ninth block: it is swapped out in front of a step that computes nothing. */
static void run_into_an_empty_step(struct fixture *f)
{
    struct request ends = f->w->request[9], gives_way = f->w->request[11];
    assert_int_equal(ends.n_prompt, 64);
    assert_int_equal(gives_way.n_prompt, 47);
    ends.sampling.max_tokens = 2;
    gives_way.sampling.max_tokens = MAX_OUTPUT;
    ends.sampling.ignore_eos = gives_way.sampling.ignore_eos = true;
    workload_submit(f->engine, &ends, NULL);
    workload_submit(f->engine, &gives_way, NULL);
    workload_step_all(f->engine);
}

static void what_is_swapped_out_in_front_of_an_empty_step_comes_back(void **state)
{
    (void)state;
    struct fixture roomy, tight;
    struct engine_options options = {.fast = true};
    struct engine_stats s;
    workload_async = true;
    setup(&roomy, &options);
    options.n_kv_blocks = 8;
    options.swap_bytes = 1 << 20;
    setup(&tight, &options);
    workload_async = false;
    run_into_an_empty_step(&roomy);
    run_into_an_empty_step(&tight);
    engine_get_stats(tight.engine, &s);
    assert_int_equal(s.n_preemptions, 1);
    assert_int_equal(s.n_swapped_in, 1);
    const struct outcome *a = &roomy.w->outcome[11], *b = &tight.w->outcome[11];
    assert_int_equal(a->n_ids, MAX_OUTPUT);
    assert_int_equal(b->n_ids, MAX_OUTPUT);
    assert_memory_equal(a->ids, b->ids, sizeof(a->ids));
    teardown(&tight);
    teardown(&roomy);
}

static void a_swapped_prompt_is_not_computed_again(void **state)
{
    (void)state;
    for (int swaps = 0; swaps < 2; swaps++) {
        struct workload *w = workload_make();
        struct model *model = workload_open_model(MODEL, 1);
        struct engine_options options = {
            .fast = true, .n_kv_blocks = 9, .swap_bytes = swaps ? 1 << 20 : 0};
        long n_prompt = 0;
        struct engine_stats s = workload_run(w, model, &options);
        for (int i = 0; i < N_REQUESTS; i++)
            n_prompt += w->request[i].n_prompt;
        assert_true(s.n_preemptions > 0);
        assert_int_equal(s.prompt_tokens == n_prompt, swaps);
        model_close(model);
        free(w);
    }
}

int main(void)
{
    if (log_set_level("warning") != 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_is_cancelled_while_it_is_swapped_out),
        cmocka_unit_test(a_prompt_that_is_swapped_out_in_its_middle_goes_on_there),
        cmocka_unit_test(what_is_swapped_out_in_front_of_an_empty_step_comes_back),
        cmocka_unit_test(a_swapped_prompt_is_not_computed_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
