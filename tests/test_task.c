/* test_task.c - the list of tasks: order, zip, exclude, labels, keys, seeds. */
#include "runner/task.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/testing.h"

#define BASE "model: {path: some/model}\nprompts: {list: [hello]}\n"

static struct config *config;
static struct task_list tasks;

static int setup(void **state)
{
    (void)state;
    for (size_t i = 0; i < config_n_variables(); i++)
        unsetenv(config_get_variable(i)->name);
    return log_set_level("quiet");
}

static int teardown(void **state)
{
    (void)state;
    task_list_free(&tasks);
    config_close(config);
    config = NULL;
    return 0;
}

static int make(const char *text)
{
    char *path = test_write_text("x.yaml", text);
    teardown(NULL);
    int rc = config_load(&config, path, NULL, 0);
    free(path);
    return rc == 0 ? task_list_make(&tasks, config) : -1;
}

static void make_ok(const char *text)
{
    if (make(text) != 0)
        fail_msg("%s", err_get());
}

/* The labels of all tasks, one per line. The caller frees. */
static char *labels(void)
{
    struct str text = {0};
    str_append_c(&text, "");
    for (int i = 0; i < tasks.n; i++) {
        assert_int_equal(tasks.task[i].id, i);
        str_appendf(&text, "%s\n", tasks.task[i].label);
    }
    return text.data;
}

static void assert_labels(const char *yaml, const char *expected)
{
    make_ok(yaml);
    char *found = labels();
    assert_string_equal(found, expected);
    free(found);
}

static void without_a_grid_there_is_one_task(void **state)
{
    (void)state;
    assert_labels(BASE, "\n");
}

static void the_last_key_of_the_grid_is_fastest(void **state)
{
    (void)state;
    assert_labels(BASE "grid:\n"
                       "  sampling.n: [3, 1]\n"
                       "  engine: {attention: [flash], block_size: [16, 32, 48]}\n",
                  "sampling.n=3 engine.attention=flash engine.block_size=16\n"
                  "sampling.n=3 engine.attention=flash engine.block_size=32\n"
                  "sampling.n=3 engine.attention=flash engine.block_size=48\n"
                  "sampling.n=1 engine.attention=flash engine.block_size=16\n"
                  "sampling.n=1 engine.attention=flash engine.block_size=32\n"
                  "sampling.n=1 engine.attention=flash engine.block_size=48\n");
    assert_int_equal(tasks.task[4].settings.sampling.n, 1);
    assert_int_equal(tasks.task[4].settings.engine.block_size, 32);
    assert_int_equal(tasks.task[4].settings.engine.attention, ATTENTION_CHOICE_FLASH);
}

static void replications_are_innermost(void **state)
{
    (void)state;
    make_ok(BASE "replications: 3\ngrid: {sampling.temperature: [0.0, 0.7]}\n");
    assert_int_equal(tasks.n, 6);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(tasks.task[i].replication, i % 3);
        assert_true(tasks.task[i].settings.sampling.temperature == (i < 3 ? 0.0 : 0.7));
    }
}

static void zipped_keys_advance_together_after_the_grid(void **state)
{
    (void)state;
    assert_labels(BASE "zip:\n"
                       "  - {sampling.top_k: [5, 6], sampling.top_p: [0.5, 0.6]}\n"
                       "  - {sampling: {min_p: [0.1, 0.2]}}\n"
                       "grid: {sampling.n: [1, 2]}\n",
                  "sampling.n=1 sampling.top_k=5 sampling.top_p=0.5 sampling.min_p=0.1\n"
                  "sampling.n=1 sampling.top_k=5 sampling.top_p=0.5 sampling.min_p=0.2\n"
                  "sampling.n=1 sampling.top_k=6 sampling.top_p=0.6 sampling.min_p=0.1\n"
                  "sampling.n=1 sampling.top_k=6 sampling.top_p=0.6 sampling.min_p=0.2\n"
                  "sampling.n=2 sampling.top_k=5 sampling.top_p=0.5 sampling.min_p=0.1\n"
                  "sampling.n=2 sampling.top_k=5 sampling.top_p=0.5 sampling.min_p=0.2\n"
                  "sampling.n=2 sampling.top_k=6 sampling.top_p=0.6 sampling.min_p=0.1\n"
                  "sampling.n=2 sampling.top_k=6 sampling.top_p=0.6 sampling.min_p=0.2\n");
}

static void excluded_points_leave_no_gap_in_the_ids(void **state)
{
    (void)state;
    assert_labels(BASE "grid: {sampling.n: [1, 2, 3], engine.attention: [flash, eager]}\n"
                       "exclude:\n"
                       "  - {sampling.n: [1, 3], engine.attention: eager}\n"
                       "  - {sampling: {n: 2}, engine.attention: [flash]}\n"
                       "  - {sampling.n: 1, sampling.top_k: 99}\n",
                  "sampling.n=1 engine.attention=flash\n"
                  "sampling.n=2 engine.attention=eager\n"
                  "sampling.n=3 engine.attention=flash\n");
    assert_int_equal(make(BASE "grid: {sampling.n: [1, 2]}\nexclude: [{sampling.top_k: 0}]\n"), -1);
    assert_error(ERR_CONFIG, "exclude leaves no task");
}

static void labels_have_the_last_part_of_paths(void **state)
{
    (void)state;
    assert_labels("prompts: {list: [hello]}\n"
                  "grid: {model.path: [a/Qwen3-0.6B, /b/Qwen3-8B, c d, e/c d], sampling.min_p: "
                  "[0.05]}\n",
                  "model.path=Qwen3-0.6B sampling.min_p=0.05\n"
                  "model.path=Qwen3-8B sampling.min_p=0.05\n"
                  "model.path=\"c d\" sampling.min_p=0.05\n"
                  "model.path=c d sampling.min_p=0.05\n");
    assert_string_equal(tasks.task[1].settings.model.path, "/b/Qwen3-8B");
}

static void prompt_files_can_stand_in_the_grid(void **state)
{
    (void)state;
    make_ok("model: {path: m}\n"
            "zip: {prompts.file: [a.jsonl, b.txt], prompts.field: [q, \"\"]}\n");
    assert_int_equal(tasks.n, 2);
    assert_contains(tasks.task[0].settings.prompts.file, "/a.jsonl");
    assert_string_equal(tasks.task[0].settings.prompts.field, "q");
    assert_string_equal(tasks.task[1].settings.prompts.field, "");
}

static void a_bad_point_of_the_grid_is_named(void **state)
{
    (void)state;
    assert_int_equal(make("model: {path: m}\ngrid: {prompts.file: [a.txt, b.jsonl]}\n"), -1);
    assert_error(ERR_CONFIG, "at the grid's point prompts.file=b.jsonl: ");
    assert_error(ERR_CONFIG, "needs prompts.field");
}

static void a_grid_of_too_many_tasks_is_refused(void **state)
{
    (void)state;
    const char *axes = "grid: {sampling.seed: &a [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],\n"
                       "  model.seed: *a, sampling.top_k: *a}\n";
    char *fits = xasprintf(BASE "%sreplications: 100\n", axes);
    char *too_many = xasprintf(BASE "%sreplications: 101\n", axes);
    make_ok(fits);
    assert_int_equal(tasks.n, CONFIG_MAX_TASKS);
    assert_int_equal(make(too_many), -1);
    assert_error(ERR_CONFIG, "more than 100000 tasks");
    free(fits);
    free(too_many);
}

static void an_overridden_axis_leaves_no_task_twice(void **state)
{
    (void)state;
    setenv("QUIRE_ATTENTION", "eager", 1);
    assert_labels(BASE "grid: {engine.attention: [flash, eager], sampling.n: [1, 2]}\n",
                  "sampling.n=1\nsampling.n=2\n");
    assert_int_equal(tasks.task[1].settings.engine.attention, ATTENTION_CHOICE_EAGER);
}

/* ---- keys ---- */

static void set_keys(const char *model, const char *prompts)
{
    for (int i = 0; i < tasks.n; i++)
        task_set_key(&tasks.task[i], model, prompts);
}

static void a_key_tells_any_two_tasks_apart(void **state)
{
    (void)state;
    make_ok(BASE "grid: {sampling.temperature: [0.0, 0.7], engine.num_threads: [1, auto]}\n"
                 "replications: 3\n");
    set_keys("model", "prompts");
    for (int i = 0; i < tasks.n; i++)
        for (int j = 0; j < i; j++)
            assert_string_not_equal(tasks.task[i].key, tasks.task[j].key);
    struct task *t = &tasks.task[0];
    char key[SHA256_HEX_LEN + 1];
    memcpy(key, t->key, sizeof(key));
    task_set_key(t, "model", "other prompts");
    assert_string_not_equal(t->key, key);
    task_set_key(t, "other model", "prompts");
    assert_string_not_equal(t->key, key);
    task_set_key(t, "model", "prompts");
    assert_string_equal(t->key, key);
}

static void a_key_does_not_know_where_files_lie(void **state)
{
    (void)state;
    char key[SHA256_HEX_LEN + 1];
    make_ok("model: {path: a/b}\nprompts: {file: a.txt}\nengine: {fast: true}\n");
    set_keys("model", "prompts");
    memcpy(key, tasks.task[0].key, sizeof(key));
    make_ok("experiment: other\nmodel: {path: /c, tokenizer: t}\nprompts: {list: [b]}\n"
            "results: else.db\nreplications: 2\ngrid: {engine.fast: [true]}\n");
    set_keys("model", "prompts");
    assert_string_equal(tasks.task[0].key, key);
    assert_string_not_equal(tasks.task[1].key, key);
}

static void sample_keys_differ_by_prompt_and_sample(void **state)
{
    (void)state;
    char a[SHA256_HEX_LEN + 1], b[SHA256_HEX_LEN + 1];
    make_ok(BASE);
    set_keys("model", "prompts");
    task_sample_key(a, &tasks.task[0], 1, 11);
    task_sample_key(b, &tasks.task[0], 11, 1);
    assert_string_not_equal(a, b);
    task_sample_key(b, &tasks.task[0], 1, 11);
    assert_string_equal(a, b);
    assert_int_equal(strlen(a), SHA256_HEX_LEN);
}

/* ---- seeds ---- */

static void seeds_are_paired_across_settings(void **state)
{
    (void)state;
    make_ok(BASE "grid: {engine.attention: [flash, eager], sampling.temperature: [0.5, 1]}\n"
                 "replications: 2\n");
    for (int i = 2; i < tasks.n; i++)
        for (int prompt = 0; prompt < 3; prompt++)
            assert_true(task_sample_seed(&tasks.task[i], prompt, 1) ==
                        task_sample_seed(&tasks.task[i % 2], prompt, 1));
}

static int compare_seeds(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

static void seeds_of_different_samples_differ(void **state)
{
    (void)state;
    enum { SEEDS = 4, REPLICATIONS = 4, PROMPTS = 64, SAMPLES = 16 };
    uint64_t *seed = xcalloc(SEEDS * REPLICATIONS * PROMPTS * SAMPLES, sizeof(*seed));
    size_t n = 0;
    make_ok(BASE "grid: {sampling.seed: [0, 1, 2, 3]}\nreplications: 4\n");
    for (int i = 0; i < tasks.n; i++)
        for (int prompt = 0; prompt < PROMPTS; prompt++)
            for (int sample = 0; sample < SAMPLES; sample++)
                seed[n++] = task_sample_seed(&tasks.task[i], prompt, sample);
    qsort(seed, n, sizeof(*seed), compare_seeds);
    for (size_t i = 1; i < n; i++)
        assert_true(seed[i - 1] != seed[i]);
    free(seed);
}

/* ---- sharing ---- */

static void tasks_share_what_has_the_same_settings(void **state)
{
    (void)state;
    static const struct {
        const char *axis;
        bool same_model, same_engine;
    } cases[] = {
        {"sampling.temperature: [0, 1]", true, true},
        {"prompts.offset: [0, 1]", true, true},
        {"engine.block_size: [16, 32]", true, false},
        {"engine.attention: [flash, eager]", true, false},
        {"engine.num_threads: [1, 2]", false, false},
        {"engine.device: [auto, cpu]", false, false},
        {"model.path: [a, b]", false, false},
        {"model.dtype: [float32, bfloat16]", false, false},
        {"model.quantization: [none, int8]", false, false},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *text = xasprintf(BASE "grid: {%s}\n", cases[i].axis);
        make_ok(text);
        const struct task *a = &tasks.task[0], *b = &tasks.task[1];
        assert_int_equal(task_same_model(a, b), cases[i].same_model);
        assert_int_equal(task_same_engine(a, b), cases[i].same_engine);
        assert_true(task_same_model(a, a) && task_same_engine(b, b));
        free(text);
    }
}

static void the_engine_is_asked_for_what_was_written(void **state)
{
    (void)state;
    struct model_options model;
    struct sampling_params sampling;
    make_ok("model: {architecture: /a.json, init: random, seed: 5, dtype: float32,\n"
            "        quantization: int8}\n"
            "prompts: {list: [[1]]}\nengine: {num_threads: 3}\n"
            "sampling: {temperature: 0.5, top_p: 0.75, min_p: 0.25, top_k: 7, max_tokens: 9,\n"
            "           ignore_eos: true}\n");
    task_model_options(&tasks.task[0], &model);
    assert_string_equal(model.path, "/a.json");
    assert_null(model.tokenizer);
    assert_string_equal(model.dtype, "float32");
    assert_int_equal(model.quantization, QUANTIZATION_INT8);
    assert_true(model.random_init);
    assert_int_equal(model.init_seed, 5);
    assert_int_equal(model.device_options.n_threads, 3);
    assert_null(model.device_options.isa);
    task_sampling(&tasks.task[0], &sampling);
    assert_true(sampling.temperature == 0.5f && sampling.top_p == 0.75f && sampling.min_p == 0.25f);
    assert_int_equal(sampling.top_k, 7);
    assert_int_equal(sampling.max_tokens, 9);
    assert_true(sampling.ignore_eos);
    assert_int_equal(sampling.n_stop_ids, 0);
}

static void an_instruction_set_can_be_forced(void **state)
{
    (void)state;
    struct model_options model;
    setenv("QUIRE_CPU_ISA", "plain", 1);
    make_ok(BASE);
    task_model_options(&tasks.task[0], &model);
    assert_string_equal(model.device_options.isa, "plain");
    assert_int_equal(model.device_options.n_threads, 0);
    assert_false(model.random_init);
}

#define TASK_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TASK_TEST(without_a_grid_there_is_one_task),
        TASK_TEST(the_last_key_of_the_grid_is_fastest),
        TASK_TEST(replications_are_innermost),
        TASK_TEST(zipped_keys_advance_together_after_the_grid),
        TASK_TEST(excluded_points_leave_no_gap_in_the_ids),
        TASK_TEST(labels_have_the_last_part_of_paths),
        TASK_TEST(prompt_files_can_stand_in_the_grid),
        TASK_TEST(a_bad_point_of_the_grid_is_named),
        TASK_TEST(a_grid_of_too_many_tasks_is_refused),
        TASK_TEST(an_overridden_axis_leaves_no_task_twice),
        TASK_TEST(a_key_tells_any_two_tasks_apart),
        TASK_TEST(a_key_does_not_know_where_files_lie),
        TASK_TEST(sample_keys_differ_by_prompt_and_sample),
        TASK_TEST(seeds_are_paired_across_settings),
        TASK_TEST(seeds_of_different_samples_differ),
        TASK_TEST(tasks_share_what_has_the_same_settings),
        TASK_TEST(the_engine_is_asked_for_what_was_written),
        TASK_TEST(an_instruction_set_can_be_forced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
