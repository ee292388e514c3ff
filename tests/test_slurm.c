/* test_slurm.c - the sbatch script of a config: the lines that matter to Slurm and to bash,
 * quoting, and that the section slurm changes nothing of a task.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/slurm.h"
#include "runner/task.h"
#include "tests/testing.h"

#define BASE "model: {path: some/model}\nprompts: {list: [hello]}\n"

static struct config *config;
static struct str script;

static int forget_environment(void **state)
{
    (void)state;
    for (size_t i = 0; i < config_n_variables(); i++)
        unsetenv(config_get_variable(i)->name);
    return 0;
}

static int clean_up(void **state)
{
    config_close(config);
    config = NULL;
    str_free(&script);
    return forget_environment(state);
}

static int load(const char *text)
{
    config_close(config);
    char *path = test_write_text("x.yaml", text);
    int rc = config_load(&config, path, NULL, 0);
    free(path);
    return rc;
}

static void load_ok(const char *text)
{
    if (load(text) != 0)
        fail_msg("%s", err_get());
}

static struct slurm_job make_job(const char *const *sets, size_t n_sets)
{
    return (struct slurm_job){.config = config,
                              .program = "/opt/quire/bin/quire",
                              .directory = "/home/ada/work",
                              .sets = sets,
                              .n_sets = n_sets};
}

static void write_script(const char *text)
{
    load_ok(text);
    struct slurm_job job = make_job(NULL, 0);
    str_clear(&script);
    slurm_write_script(&script, &job);
}

static bool has_line(const char *line)
{
    size_t n = strlen(line);
    for (const char *at = strstr(script.data, line); at; at = strstr(at + 1, line))
        if ((at == script.data || at[-1] == '\n') && at[n] == '\n')
            return true;
    return false;
}

static void assert_line(const char *line)
{
    if (!has_line(line))
        fail_msg("no line \"%s\" in\n%s", line, script.data);
}

static void assert_without(const char *part)
{
    if (strstr(script.data, part))
        fail_msg("\"%s\" should not be in\n%s", part, script.data);
}

/* ---- what is asked of Slurm ---- */

static void
a_config_without_the_section_asks_for_one_task_and_the_site_decides_the_rest(void **state)
{
    (void)state;
    write_script(BASE);
    assert_true(strncmp(script.data, "#!/bin/bash\n", 12) == 0);
    assert_line("#SBATCH --job-name=x");
    assert_line("#SBATCH --chdir=/home/ada/work");
    assert_line("#SBATCH --output=logs/%x-%j.out");
    assert_line("#SBATCH --open-mode=append");
    assert_line("#SBATCH --signal=USR1@120");
    assert_line("#SBATCH --requeue");
    assert_line("#SBATCH --nodes=1");
    assert_line("#SBATCH --ntasks-per-node=1");
    assert_line("set -euo pipefail");
    assert_line("#     mkdir -p /home/ada/work/logs");
    static const char *const absent[] = {"--partition", "--account", "--qos",  "--constraint",
                                         "--time",      "--mem",     "--gpus", "--cpus-per-task",
                                         "--array",     "--mpi",     "module", "quire merge"};
    for (size_t i = 0; i < ARRAY_LEN(absent); i++)
        assert_without(absent[i]);
}

static void every_key_becomes_the_option_of_its_name(void **state)
{
    (void)state;
    write_script(BASE "slurm: {time: 1-12, partition: gpu, account: proj, qos: long,\n"
                      "  constraint: 'a100&nvlink', nodes: 2, ntasks_per_node: 4,\n"
                      "  gpus_per_task: 1, cpus_per_task: 8, mem: 64G, signal_seconds: 300,\n"
                      "  extra: [--mail-type=END, '--comment=\"two words\"']}\n");
    assert_line("#SBATCH --time=1-12");
    assert_line("#SBATCH --partition=gpu");
    assert_line("#SBATCH --account=proj");
    assert_line("#SBATCH --qos=long");
    assert_line("#SBATCH --constraint=\"a100&nvlink\"");
    assert_line("#SBATCH --nodes=2");
    assert_line("#SBATCH --ntasks-per-node=4");
    assert_line("#SBATCH --gpus-per-task=1");
    assert_line("#SBATCH --cpus-per-task=8");
    assert_line("#SBATCH --mem=64G");
    assert_line("#SBATCH --signal=USR1@300");
    assert_line("#SBATCH --mail-type=END");
    assert_line("#SBATCH --comment=\"two words\"");
}

static void the_step_gets_cpus_gpus_and_mpi_only_for_several_ranks(void **state)
{
    (void)state;
    write_script(BASE "slurm: {ntasks_per_node: 4, gpus_per_task: 1, cpus_per_task: 8}\n");
    assert_line("srun --kill-on-bad-exit=1 --mpi=pmix --cpus-per-task=8 --gpus-per-task=1 \\");
    write_script(BASE "slurm: {nodes: 2}\n");
    assert_line("srun --kill-on-bad-exit=1 --mpi=pmix \\");
    write_script(BASE "slurm: {array: 64, gpus_per_task: 2}\n");
    assert_line("srun --kill-on-bad-exit=1 --gpus-per-task=2 \\");
}

static void no_line_for_sbatch_is_empty(void **state)
{
    (void)state;
    static const char *const sections[] = {
        "", "slurm:\n", "slurm: {partition: '', modules: [], extra: []}\n",
        "slurm: {array: 1, time: '', mem: ''}\n",
        "slurm: {requeue: false, signal_seconds: 0, gpus_per_task: 0, cpus_per_task: auto}\n"};
    for (size_t i = 0; i < ARRAY_LEN(sections); i++) {
        char *text = xasprintf("%s%s", BASE, sections[i]);
        write_script(text);
        free(text);
        int n = 0;
        for (const char *at = script.data; (at = strstr(at, "#SBATCH")); at++, n++) {
            size_t len = strcspn(at, "\n");
            if (strncmp(at, "#SBATCH --", 10) != 0 || strchr("= -\"", at[len - 1]))
                fail_msg("the line \"%.*s\" says nothing", (int)len, at);
        }
        assert_true(n >= 6);
    }
}

/* ---- arrays ---- */

static void an_array_has_a_limit_its_own_logs_and_is_requeued_worker_by_worker(void **state)
{
    (void)state;
    write_script(BASE "slurm: {array: 8, array_limit: 2}\n");
    assert_line("#SBATCH --array=0-7%2");
    assert_line("#SBATCH --output=logs/%x-%A_%a.out");
    assert_contains(script.data,
                    "scontrol requeue \"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}\"");
    assert_contains(script.data, "afterany:\"${job%%;*}\"");
    write_script(BASE "slurm: {array: 1000}\n");
    assert_line("#SBATCH --array=0-999");
    write_script(BASE);
    assert_contains(script.data, "scontrol requeue \"$SLURM_JOB_ID\"");
}

static const char *find_argument(char *const *arguments, const char *name)
{
    size_t n = strlen(name);
    for (; *arguments; arguments++)
        if (strncmp(*arguments, name, n) == 0)
            return *arguments + n;
    return "";
}

static void the_merge_job_unites_the_shards_where_the_workers_wrote_them(void **state)
{
    (void)state;
    load_ok(BASE "experiment: my sweep\nslurm: {array: 3, partition: gpu, account: proj,\n"
                 "  gpus_per_task: 1}\n");
    struct slurm_job job = make_job(NULL, 0);
    char **arguments = slurm_merge_arguments(&job);
    assert_string_equal(find_argument(arguments, "--job-name="), "my sweep-merge");
    assert_string_equal(find_argument(arguments, "--chdir="), "/home/ada/work");
    assert_string_equal(find_argument(arguments, "--partition="), "gpu");
    assert_string_equal(find_argument(arguments, "--account="), "proj");
    assert_string_equal(find_argument(arguments, "--gpus"), "");
    assert_string_equal(
        find_argument(arguments, "--wrap="),
        "/opt/quire/bin/quire merge 'results/my sweep.db' 'results/my sweep.d'/*.db");
    slurm_free_arguments(arguments);
}

/* ---- the end of a job ---- */

static void a_job_that_must_not_be_requeued_never_asks_for_it(void **state)
{
    (void)state;
    write_script(BASE "slurm: {requeue: false, signal_seconds: 0}\n");
    assert_line("#SBATCH --no-requeue");
    assert_without("scontrol");
    assert_without("--signal");
    assert_line("exit \"$code\"");
}

/* ---- the environment ---- */

static void modules_and_environment_file_come_before_the_run_without_set_u(void **state)
{
    (void)state;
    write_script(BASE "slurm: {modules: [cuda/12.4, 'gcc 12'], environment_file: /data/it's.sh}\n");
    const char *lines[] = {"\nset -euo pipefail\n",
                           "\nset +u ",
                           "\nmodule load cuda/12.4\n",
                           "\nmodule load 'gcc 12'\n",
                           "\nsource '/data/it'\\''s.sh'\n",
                           "\nset -u\n",
                           "\nsrun "};
    const char *at = script.data;
    for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
        at = strstr(at, lines[i]);
        if (!at)
            fail_msg("\"%s\" is not there, or too early, in\n%s", lines[i], script.data);
    }
}

static void an_environment_file_is_named_by_its_whole_path(void **state)
{
    (void)state;
    load_ok(BASE);
    const char *sets[] = {"slurm.environment_file=env.sh"};
    char *path = test_path("x.yaml");
    config_close(config);
    assert_int_equal(config_load(&config, path, sets, 1), 0);
    free(path);
    struct slurm_job job = make_job(sets, 1);
    slurm_write_script(&script, &job);
    assert_line("source /home/ada/work/env.sh");
    assert_without("--set");
}

/* ---- quoting ---- */

static void words_are_quoted_so_that_a_shell_reads_them_back(void **state)
{
    (void)state;
    static const struct {
        const char *word, *quoted;
    } cases[] = {{"plain", "plain"},
                 {"a/b-c_d.e+f=g,h:i@j%k", "a/b-c_d.e+f=g,h:i@j%k"},
                 {"", "''"},
                 {"two words", "'two words'"},
                 {"$HOME", "'$HOME'"},
                 {"`id`", "'`id`'"},
                 {"a;b", "'a;b'"},
                 {"*", "'*'"},
                 {"~", "'~'"},
                 {"it's", "'it'\\''s'"},
                 {"'", "''\\'''"},
                 {"back\\slash", "'back\\slash'"},
                 {"\xc3\xa4", "'\xc3\xa4'"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct str out = {0};
        slurm_quote(&out, cases[i].word);
        assert_string_equal(out.data, cases[i].quoted);
        str_free(&out);
    }
}

static void settings_of_the_command_line_reach_the_run_but_not_those_of_slurm(void **state)
{
    (void)state;
    load_ok(BASE);
    const char *sets[] = {"slurm.time=60", "sampling.max_tokens=8",
                          "grid.engine.attention=[flash, eager]"};
    struct slurm_job job = make_job(sets, ARRAY_LEN(sets));
    slurm_write_script(&script, &job);
    assert_line("    --set sampling.max_tokens=8 \\");
    assert_line("    --set 'grid.engine.attention=[flash, eager]' &");
    assert_without("slurm.time");
}

static void names_with_blanks_and_quotes_stay_one_word_for_sbatch(void **state)
{
    (void)state;
    write_script(BASE "experiment: 'my #1 \"run\"'\nslurm: {account: 'a\\b'}\n");
    assert_line("#SBATCH --job-name=\"my #1 \\\"run\\\"\"");
    assert_line("#SBATCH --account=\"a\\\\b\"");
}

static void a_path_with_a_line_break_is_refused(void **state)
{
    (void)state;
    load_ok(BASE);
    struct slurm_job job = make_job(NULL, 0);
    assert_int_equal(slurm_check(&job), 0);
    job.directory = "/home/ada/two\nlines";
    assert_int_equal(slurm_check(&job), -1);
    assert_error(ERR_CONFIG, "line break");
}

static void a_folder_that_slurm_would_not_find_the_log_in_is_refused(void **state)
{
    (void)state;
    load_ok(BASE);
    struct slurm_job job = make_job(NULL, 0);
    job.directory = "/home/ada/100%j";
    assert_int_equal(slurm_check(&job), -1);
    assert_error(ERR_CONFIG, "'/home/ada/100%j' has a % or a backslash");
    job.directory = "/home/ada/a\\b";
    assert_int_equal(slurm_check(&job), -1);
}

/* ---- the section in a config ---- */

static void a_bad_value_is_refused_at_its_place(void **state)
{
    (void)state;
    static const struct {
        const char *section, *message;
    } cases[] = {
        {"slurm: {partitoin: gpu}", "x.yaml:3:9: key 'slurm.partitoin' is not known; did you mean "
                                    "'slurm.partition'?"},
        {"slurm: {nodes: 0}", "x.yaml:3:16: slurm.nodes is '0'; expected an integer from 1"},
        {"slurm: {gpus_per_task: one}", "x.yaml:3:24: slurm.gpus_per_task is 'one'"},
        {"slurm: {requeue: sometimes}", "x.yaml:3:18: slurm.requeue is 'sometimes'; expected true"},
        {"slurm: {modules: cuda}",
         "x.yaml:3:18: slurm.modules is 'cuda'; expected a list of texts"},
        {"slurm: {modules: [[cuda]]}", "x.yaml:3:19: an item of slurm.modules is a list"},
        {"slurm: {modules: ['']}", "x.yaml:3:19: an item of slurm.modules"},
        {"slurm: {extra: [mail]}", "x.yaml:3:17: an item of slurm.extra is 'mail'; expected an "
                                   "option of sbatch"},
        {"slurm: {extra: [\"--a\\n--b\"]}", "x.yaml:3:17: slurm.extra has a line break"},
        {"slurm: {partition: \"a\\nb\"}", "x.yaml:3:20: slurm.partition has a line break"},
        {"experiment: \"a\\nb\"", "x.yaml:3:13: experiment has a line break"},
        {"slurm: {time: soon}", "x.yaml:3:15: slurm.time is 'soon'; expected minutes"},
        {"slurm: {time: '1:2:3:4'}", "slurm.time is '1:2:3:4'"},
        {"slurm: {time: '1-'}", "slurm.time is '1-'"},
        {"slurm: {time: '1-2:3:4:5'}", "slurm.time is '1-2:3:4:5'"},
        {"slurm: {time: '-5'}", "slurm.time is '-5'"},
        {"slurm: {time: 0}", "slurm.time is '0'"},
        {"slurm: {time: 3}", "x.yaml:3:15: slurm.signal_seconds is 120 in a job of 180 s"},
        {"slurm: {time: '00:30', signal_seconds: 5}",
         "x.yaml:3:40: slurm.signal_seconds is 5 in a job of 30 s"},
        {"slurm: {mem: 64GB}", "x.yaml:3:14: slurm.mem is '64GB'; expected a number with"},
        {"slurm: {mem: lots}", "slurm.mem is 'lots'"},
        {"slurm: {array: 1001}", "x.yaml:3:16: slurm.array is 1001; expected at most 1000"},
        {"slurm: {array: -1}", "x.yaml:3:16: slurm.array is '-1'"},
        {"grid: {slurm.nodes: [1, 2]}", "'slurm.nodes' is the same for all tasks"},
        {"fixed: {slurm.nodes: 1}", "'slurm.nodes' cannot stand in fixed"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *text = xasprintf("%s%s\n", BASE, cases[i].section);
        if (load(text) == 0)
            fail_msg("no error for %s", cases[i].section);
        assert_error(ERR_CONFIG, cases[i].message);
        free(text);
    }
}

static void times_and_sizes_are_taken_in_every_form_of_sbatch(void **state)
{
    (void)state;
    static const char *const sections[] = {"time: 60",
                                           "time: '60:30'",
                                           "time: 04:00:00",
                                           "time: 2-12",
                                           "time: 2-12:30",
                                           "time: 2-12:30:15",
                                           "time: UNLIMITED",
                                           "time: 4, signal_seconds: 120",
                                           "time: 1, signal_seconds: 0",
                                           "mem: 0",
                                           "mem: 16000",
                                           "mem: 16000M",
                                           "mem: 1T"};
    for (size_t i = 0; i < ARRAY_LEN(sections); i++) {
        char *text = xasprintf("%sslurm: {%s}\n", BASE, sections[i]);
        load_ok(text);
        free(text);
    }
}

static void the_section_changes_no_task(void **state)
{
    (void)state;
    struct task_list plain, placed;
    load_ok(BASE);
    assert_int_equal(task_list_make(&plain, config), 0);
    task_set_key(&plain.task[0], "model", "prompts");
    json_t *settings = config_settings_json(&plain.task[0].settings);
    char *text = json_dumps(settings, JSON_SORT_KEYS);
    load_ok(BASE "slurm: {nodes: 4, array: 16, partition: gpu, extra: [--exclusive]}\n");
    assert_int_equal(task_list_make(&placed, config), 0);
    task_set_key(&placed.task[0], "model", "prompts");
    json_t *placed_settings = config_settings_json(&placed.task[0].settings);
    char *placed_text = json_dumps(placed_settings, JSON_SORT_KEYS);
    assert_string_equal(plain.task[0].key, placed.task[0].key);
    assert_string_equal(text, placed_text);
    free(text);
    free(placed_text);
    json_decref(settings);
    json_decref(placed_settings);
    task_list_free(&plain);
    task_list_free(&placed);
}

#define SLURM_TEST(f) cmocka_unit_test_setup_teardown(f, forget_environment, clean_up)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SLURM_TEST(a_config_without_the_section_asks_for_one_task_and_the_site_decides_the_rest),
        SLURM_TEST(every_key_becomes_the_option_of_its_name),
        SLURM_TEST(the_step_gets_cpus_gpus_and_mpi_only_for_several_ranks),
        SLURM_TEST(no_line_for_sbatch_is_empty),
        SLURM_TEST(an_array_has_a_limit_its_own_logs_and_is_requeued_worker_by_worker),
        SLURM_TEST(the_merge_job_unites_the_shards_where_the_workers_wrote_them),
        SLURM_TEST(a_job_that_must_not_be_requeued_never_asks_for_it),
        SLURM_TEST(modules_and_environment_file_come_before_the_run_without_set_u),
        SLURM_TEST(an_environment_file_is_named_by_its_whole_path),
        SLURM_TEST(words_are_quoted_so_that_a_shell_reads_them_back),
        SLURM_TEST(settings_of_the_command_line_reach_the_run_but_not_those_of_slurm),
        SLURM_TEST(names_with_blanks_and_quotes_stay_one_word_for_sbatch),
        SLURM_TEST(a_path_with_a_line_break_is_refused),
        SLURM_TEST(a_folder_that_slurm_would_not_find_the_log_in_is_refused),
        SLURM_TEST(a_bad_value_is_refused_at_its_place),
        SLURM_TEST(times_and_sizes_are_taken_in_every_form_of_sbatch),
        SLURM_TEST(the_section_changes_no_task),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
