/* test_phases.c - the experiments in configs/phases: how many tasks they are, and that a model of
 * one's own takes one word.
 */
#include <stdlib.h>

#include "runner/task.h"
#include "tests/testing.h"

static const struct {
    const char *path;
    int n_tasks;
} phases[] = {{"configs/phases/phase1.yaml", 11 * 2 * 2 * 3 * 5},
              {"configs/phases/phase2.yaml", 2 * 2 * 3 * 3},
              {"configs/phases/phase3.yaml", 21 * 3 * 3},
              {"configs/phases/phase4.yaml", 2 * 3 * 2 * 2},
              {"configs/phases/phase5.yaml", 3 * 2 * 2 * 3}};

static struct config *config;

static int forget_environment(void **state)
{
    (void)state;
    for (size_t i = 0; i < config_n_variables(); i++)
        unsetenv(config_get_variable(i)->name);
    return 0;
}

static int close_config(void **state)
{
    config_close(config);
    config = NULL;
    return forget_environment(state);
}

static void load(size_t phase, const char *const *sets, size_t n_sets)
{
    config_close(config);
    if (config_load(&config, phases[phase].path, sets, n_sets) != 0)
        fail_msg("%s", err_get());
}

static void every_phase_has_its_number_of_tasks(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(phases); i++) {
        struct task_list list;
        load(i, NULL, 0);
        if (task_list_make(&list, config) != 0)
            fail_msg("%s", err_get());
        assert_int_equal(list.n, phases[i].n_tasks);
        task_list_free(&list);
    }
}

static void every_phase_names_a_model_that_is_there(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(phases); i++) {
        load(i, NULL, 0);
        const struct settings *s = &config->base;
        assert_true(s->model.path[0] ? dir_exists(s->model.path)
                                     : file_exists(s->model.architecture));
    }
}

static void every_phase_takes_a_local_model(void **state)
{
    (void)state;
    const char *sets[] = {"model.path=/data/models/mine"};
    for (size_t i = 0; i < ARRAY_LEN(phases); i++) {
        load(i, sets, ARRAY_LEN(sets));
        assert_string_equal(config->base.model.path, "/data/models/mine");
        assert_string_equal(config->base.model.architecture, "");
        assert_int_equal(config->base.model.init, INIT_WEIGHTS);
    }
}

#define PHASE_TEST(f) cmocka_unit_test_setup_teardown(f, forget_environment, close_config)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PHASE_TEST(every_phase_has_its_number_of_tasks),
        PHASE_TEST(every_phase_names_a_model_that_is_there),
        PHASE_TEST(every_phase_takes_a_local_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
