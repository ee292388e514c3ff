/* test_config.c - experiment files: precedence, positions in messages, paths, inheritance, and the
 * files in configs/.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runner/task.h"
#include "tests/testing.h"

#define MODEL   "model: {path: some/model}\n"
#define PROMPTS "prompts: {list: [hello]}\n"

static struct config *config;

static int forget_environment(void **state)
{
    (void)state;
    for (size_t i = 0; i < config_n_variables(); i++)
        unsetenv(config_get_variable(i)->name);
    log_set_level("quiet"); /* Some tests cause warnings. */
    return 0;
}

static int close_config(void **state)
{
    config_close(config);
    config = NULL;
    return forget_environment(state);
}

static int load_file(const char *path, const char *const *sets, size_t n_sets)
{
    config_close(config);
    return config_load(&config, path, sets, n_sets);
}

/* Loads this text as the file x.yaml. */
static int load_text(const char *text)
{
    char *path = test_write_text("x.yaml", text);
    int rc = load_file(path, NULL, 0);
    free(path);
    return rc;
}

static void load_ok(const char *text)
{
    if (load_text(text) != 0)
        fail_msg("%s", err_get());
}

static void load_with_sets(const char *text, const char *const *sets, size_t n_sets)
{
    char *path = test_write_text("x.yaml", text);
    if (load_file(path, sets, n_sets) != 0)
        fail_msg("%s", err_get());
    free(path);
}

static void assert_refused(const char *text, const char *message)
{
    if (load_text(text) == 0)
        fail_msg("no error for:\n%s\nexpected: %s", text, message);
    assert_error(ERR_CONFIG, message);
}

static void assert_key(const char *key, const char *value, const char *origin)
{
    size_t i = (size_t)config_find_key(key);
    char *text = config_text(config, i);
    assert_string_equal(text, value);
    assert_contains(config->origin[i].text, origin);
    free(text);
}

/* ---- values ---- */

static void a_short_file_takes_the_defaults(void **state)
{
    (void)state;
    load_ok(MODEL PROMPTS);
    assert_string_equal(config->experiment, "x");
    assert_string_equal(config->results, "results/x.db");
    assert_string_equal(config->text, MODEL PROMPTS);
    assert_int_equal(config->base.engine.block_size, 64);
    assert_int_equal(config->base.engine.max_model_len, SETTING_AUTO);
    assert_int_equal(config->base.engine.fast, FAST_AUTO);
    assert_true(config->base.engine.enable_prefix_caching);
    assert_true(config->base.sampling.temperature == 1.0);
    assert_int_equal(config->base.prompts.limit, SETTING_AUTO);
    assert_string_equal(config->base.model.dtype, "auto");
    assert_string_equal(config->base.prompts.system, "");
    assert_int_equal(config->replications, 1);
    assert_true(config->allow_cpu && config->allow_standard_engine);
    assert_null(config->synthetic);
    assert_int_equal(config->n_axes, 0);
}

static void every_kind_of_value_arrives(void **state)
{
    (void)state;
    load_ok(MODEL PROMPTS "experiment: mine\n"
                          "engine: {fast: false, device: cpu, attention: eager, block_size: 0x80,\n"
                          "         scheduling_policy: memory_aware, max_model_len: 4096,\n"
                          "         preemption_mode: swap, swap_space: 0.5}\n"
                          "sampling: {temperature: 0.25, top_p: 1, seed: 9007199254740993}\n"
                          "engine.num_threads: 3\n"
                          "schedule: exclusive\n"
                          "fallback: {allow_cpu: False}\n");
    assert_string_equal(config->experiment, "mine");
    assert_int_equal(config->base.engine.fast, FAST_OFF);
    assert_int_equal(config->base.engine.device, DEVICE_CHOICE_CPU);
    assert_int_equal(config->base.engine.attention, ATTENTION_CHOICE_EAGER);
    assert_int_equal(config->base.engine.block_size, 128);
    assert_int_equal(config->base.engine.policy, SCHEDULING_MEMORY_AWARE);
    assert_int_equal(config->base.engine.max_model_len, 4096);
    assert_int_equal(config->base.engine.preemption_mode, PREEMPTION_SWAP);
    assert_true(config->base.engine.swap_space == 0.5);
    assert_int_equal(config->base.engine.num_threads, 3);
    assert_true(config->base.sampling.temperature == 0.25);
    assert_true(config->base.sampling.seed == 9007199254740993);
    assert_int_equal(config->schedule, SCHEDULE_EXCLUSIVE);
    assert_false(config->allow_cpu);
    assert_true(config->allow_standard_engine);
}

static void the_stronger_source_of_a_value_wins(void **state)
{
    (void)state;
    free(test_write_text("parent.yaml", MODEL "engine: {attention: flash, block_size: 32}\n"
                                              "sampling: {top_k: 5, max_tokens: 5}\n"));
    const char *text = "inherit: parent.yaml\n" PROMPTS
                       "engine: {block_size: 48, device: cpu}\nfixed: {engine.block_size: 80}\n"
                       "sampling:\n  top_k: 7\n";
    setenv("QUIRE_ATTENTION", "eager", 1);
    setenv("QUIRE_DEVICE", "auto", 1);
    load_with_sets(text, (const char *const[]){"engine.device=cuda", "sampling.top_k=9"}, 2);
    assert_key("engine.device", "cuda", "--set");
    assert_key("engine.attention", "eager", "environment QUIRE_ATTENTION");
    assert_key("engine.block_size", "80", "x.yaml:4:28");
    assert_key("sampling.max_tokens", "5", "parent.yaml:3:34");
    assert_key("sampling.top_k", "9", "--set");
    assert_key("sampling.n", "1", "default");
}

static void values_print_as_yaml_that_reads_the_same(void **state)
{
    (void)state;
    load_ok(MODEL "prompts: {list: [hello], chat: true, system: 'yes: \"no\"'}\n"
                  "sampling: {temperature: 1e-1, min_p: 0.30000000000000004}\n");
    assert_key("prompts.system", "\"yes: \\\"no\\\"\"", "x.yaml");
    assert_key("sampling.temperature", "0.1", "x.yaml");
    assert_key("sampling.min_p", "0.30000000000000004", "x.yaml");
    assert_key("sampling.top_p", "1.0", "default");
    assert_key("prompts.list", "[\"hello\"]", "x.yaml");
    assert_key("model.path", "some/model", "x.yaml");
    assert_key("model.tokenizer", "\"\"", "default");
}

static void settings_become_json_with_their_types(void **state)
{
    (void)state;
    load_ok(MODEL PROMPTS "engine: {fast: true}\n");
    json_t *json = config_settings_json(&config->base);
    assert_true(json_is_real(json_object_get(json, "sampling.temperature")));
    assert_true(json_is_integer(json_object_get(json, "sampling.max_tokens")));
    assert_true(json_is_false(json_object_get(json, "prompts.chat")));
    assert_string_equal(json_string_value(json_object_get(json, "engine.fast")), "true");
    assert_string_equal(json_string_value(json_object_get(json, "engine.max_model_len")), "auto");
    assert_null(json_object_get(json, "replications"));
    json_decref(json);
}

static void the_names_of_policies_are_the_engines(void **state)
{
    (void)state;
    size_t key = (size_t)config_find_key("engine.scheduling_policy");
    load_ok(MODEL PROMPTS);
    for (int i = 0; i < SCHEDULING_N; i++) {
        config->base.engine.policy = i;
        char *text = config_value_text(&config->base, key);
        assert_string_equal(text, scheduling_policy_name((enum scheduling_policy)i));
        free(text);
    }
}

/* ---- messages ---- */

static void unknown_keys_name_their_place_and_the_nearest(void **state)
{
    (void)state;
    assert_refused(MODEL PROMPTS "engine:\n  blok_size: 64\n",
                   "x.yaml:4:3: key 'engine.blok_size' is not known; did you mean "
                   "'engine.block_size'?");
    assert_refused(MODEL PROMPTS "engin: {}\n",
                   "x.yaml:3:1: key 'engin' is not known; did you mean 'engine'?");
    assert_refused(MODEL PROMPTS "engine.blok_size: 64\n", "did you mean 'engine.block_size'?");
    assert_refused(MODEL PROMPTS "max_tokens: 5\n", "did you mean 'sampling.max_tokens'?");
    assert_refused(MODEL PROMPTS "fallback: {frob: 1}\n",
                   "key 'fallback.frob' is not known; expected one of allow_cpu, "
                   "allow_standard_engine");
    assert_refused(MODEL "prompts: {synthetic: {num_prompt: 1}}\n",
                   "did you mean 'prompts.synthetic.num_prompts'?");
    assert_refused(MODEL "prompts: {synthetic: {expect: {sha: x}}}\n",
                   "key 'prompts.synthetic.expect.sha' is not known");
    assert_refused(MODEL PROMPTS "grid: {sampling: {temprature: [1]}}\n",
                   "x.yaml:3:19: key 'sampling.temprature' is not known; did you mean "
                   "'sampling.temperature'?");
    assert_refused(MODEL PROMPTS "fixed: {sampling.tmperature: 1}\n", "sampling.temperature");
    assert_refused(MODEL PROMPTS "zip: {sampling.tmperature: [1]}\n", "sampling.temperature");
    assert_refused(MODEL PROMPTS "exclude: [{sampling.tmperature: 1}]\n", "sampling.temperature");
    assert_refused(MODEL PROMPTS "replication: 3\n", "did you mean 'replications'?");
}

static void bad_values_say_what_was_expected(void **state)
{
    (void)state;
    static const struct {
        const char *line, *message;
    } cases[] = {
        {"engine: {block_size: 63}",
         "x.yaml:3:22: engine.block_size is '63'; expected a multiple of 16 from 16 to 1024"},
        {"engine: {block_size: '64'}", "engine.block_size is the string '64'; expected a multiple"},
        {"engine: {block_size: 64.0}", "engine.block_size is '64.0'; expected"},
        {"engine:\n  block_size:", "engine.block_size is empty; expected"},
        {"engine: {preemption_mode: swop}",
         "expected one of recompute, swap; did you mean 'swap'?"},
        {"engine: {swap_space: -1}", "engine.swap_space is '-1'; expected a number from 0"},
        {"engine: {block_size: auto}", "expected a multiple of 16"},
        {"engine: {max_num_seqs: 0}", "engine.max_num_seqs is '0'; expected an integer from 1 to "},
        {"engine: {max_num_seqs: 99999999999999999999}", "expected an integer from 1 to "},
        {"engine: {max_model_len: 1}", "expected an integer from 2 to 4194304, or auto"},
        {"engine: {attention: flsh}",
         "engine.attention is 'flsh'; expected one of auto, flash, "
         "memory_efficient, eager, flash!, memory_efficient!, eager!; did you mean 'flash'?"},
        {"engine: {fast: yes}", "engine.fast is 'yes'; expected one of auto, true, false"},
        {"engine: {enable_prefix_caching: on}", "is 'on'; expected true or false"},
        {"engine: {enable_prefix_caching: 'true'}", "is the string 'true'; expected true or false"},
        {"engine: {gpu_memory_utilization: 0}", "is '0'; expected a number above 0, up to 1"},
        {"engine: {gpu_memory_utilization: 1.01}", "expected a number above 0, up to 1"},
        {"engine: 5", "x.yaml:3:9: engine is '5'; expected a mapping"},
        {"sampling: {temperature: -0.1}", "is '-0.1'; expected a number from 0 to 100"},
        {"sampling: {temperature: .nan}", "is '.nan'; expected a number"},
        {"sampling: {temperature: hot}", "is 'hot'; expected a number"},
        {"sampling: {temperature: [1, 2]}", "sampling.temperature is a list; expected a number"},
        {"sampling: {seed: -1}", "is '-1'; expected an integer of at least 0"},
        {"model.dtype: bf16", "expected one of auto, bfloat16, float16, float32"},
        {"model.quantization: int4", "expected one of none, int8"},
        {"replications: 0", "replications is '0'; expected an integer from 1 to 100000"},
        {"schedule: exclusiv", "did you mean 'exclusive'?"},
        {"experiment: a/b", "x.yaml:3:13: the experiment's name becomes a file name"},
        {"sampling: {n: 2}\nsampling.n: 3", "x.yaml:4:1: 'sampling.n' is given twice"},
        {"inherit: [none.yaml]", "x.yaml:3:11: inherit: "},
        {"inherit: {a: b}", "inherit is a mapping; expected a path"},
        {"fixed: {replications: 3}", "'replications' cannot stand in fixed"},
        {"fixed: [a]", "fixed is a list; expected a mapping"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *text = xasprintf(MODEL PROMPTS "%s\n", cases[i].line);
        assert_refused(text, cases[i].message);
        free(text);
    }
}

static void relations_between_keys_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *yaml, *message;
    } cases[] = {
        {PROMPTS, "no model is given; write `model: {path: DIRECTORY}`"},
        {PROMPTS "model: {path: a, architecture: b.json, init: random}", "both given"},
        {PROMPTS "model: {architecture: b.json}", "x.yaml:2:23: model.architecture has no weights"},
        {PROMPTS "model: {path: a, init: random}", "x.yaml:2:24: init: random"},
        {MODEL, "no prompts are given; write one of prompts.file, prompts.list"},
        {MODEL "prompts: {}", "no prompts are given"},
        {MODEL "prompts:", "no prompts are given"},
        {MODEL "prompts: {list: [a], file: b.txt}",
         "prompts.file and prompts.list are both given; expected one source"},
        {MODEL "prompts: {file: b.jsonl}", "x.yaml:2:17: a .jsonl file needs prompts.field"},
        {MODEL "prompts: {file: b.JSONL}", "a .jsonl file needs prompts.field"},
        {MODEL "prompts: {file: b.txt, field: a}", "prompts.field is for a prompts.file"},
        {MODEL "prompts: {file: b.csv}", "x.yaml:2:17: prompts.file is neither text"},
        {MODEL "prompts: {file: b.JSON, field: a}", "prompts.file is neither text"},
        {MODEL "prompts: {list: [a], system: s}", "prompts.system needs prompts.chat: true"},
        {MODEL "prompts: {list: []}", "prompts.list is empty; expected a list"},
        {MODEL "prompts: {list: hello}", "prompts.list is 'hello'; expected a list"},
        {MODEL "prompts: {list: [a, ]\n", "x.yaml:3:1"},
        {MODEL "prompts:\n  list:\n  - a\n  -\n", "x.yaml:5:4: a prompt is empty"},
        {MODEL "prompts: {list: [[1, x]]}", "x.yaml:2:22: 'x' is no token id"},
        {MODEL "prompts: {list: [[-1]]}", "'-1' is no token id"},
        {MODEL "prompts: {list: [[]]}", "a prompt is an empty list"},
        {MODEL "prompts: {list: [{role: user}]}", "a prompt is a mapping; expected a text"},
        {MODEL "prompts: {messages: [{role: user, content: a}]}",
         "a conversation is a mapping; expected a list of messages"},
        {MODEL "prompts: {messages: [[{role: usr, content: a}]]}",
         "role is 'usr'; expected one of system, user, assistant"},
        {MODEL "prompts: {messages: [[{role: user}]]}", "a message has no content"},
        {MODEL "prompts: {messages: [[{role: user, content: [a]}]]}", "content is a list"},
        {MODEL "prompts: {messages: [[{role: user, contents: a}]]}", "key 'contents' of a message"},
        {MODEL "prompts: {synthetic: {num_prompts: 2}}", "needs num_prompts and input_len"},
        {MODEL "prompts: {synthetic: {num_prompts: 2, input_len: 0}}", "input_len is '0'"},
        {MODEL "prompts: {synthetic: {num_prompts: 2, input_len: 4, file: a.csv}}",
         "are for lengths: trace"},
        {MODEL "prompts: {synthetic: {lengths: uniform, num_prompts: 2, input_len: 4}}",
         "input_len: expected [low, high]"},
        {MODEL "prompts: {synthetic: {lengths: trace, input_column: a}}", "needs file"},
        {MODEL "prompts: {chat: true, synthetic: {num_prompts: 2, input_len: 4}}",
         "prompts.chat needs text"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_refused(cases[i].yaml, cases[i].message);
}

static void a_missing_file_names_itself(void **state)
{
    (void)state;
    assert_int_equal(load_file("/nonexistent/x.yaml", NULL, 0), -1);
    assert_error(ERR_CONFIG, "/nonexistent/x.yaml: cannot open");
    assert_null(config);
}

/* ---- inheritance ---- */

static void keys_are_inherited_one_by_one(void **state)
{
    (void)state;
    free(test_write_text("grand.yaml", MODEL "engine: {max_num_seqs: 1, max_num_batched_tokens: "
                                             "1}\nsampling: {top_k: 1}\n"));
    free(test_write_text("left.yaml", "inherit: grand.yaml\nengine: {max_num_seqs: 2}\n"));
    free(test_write_text("right.yaml", "sampling: {top_k: 3, n: 3}\n"));
    load_ok("inherit: [left.yaml, right.yaml]\nsampling: {n: 4}\n" PROMPTS);
    assert_key("engine.max_num_batched_tokens", "1", "grand.yaml");
    assert_key("engine.max_num_seqs", "2", "left.yaml");
    assert_key("sampling.top_k", "3", "right.yaml");
    assert_key("sampling.n", "4", "x.yaml");
    assert_string_equal(config->experiment, "x");
}

static void a_source_of_prompts_replaces_the_inherited_one(void **state)
{
    (void)state;
    free(test_write_text("parent.yaml",
                         "model: {architecture: a.json, init: random, seed: 4}\n"
                         "prompts: {synthetic: {num_prompts: 3, input_len: 5}, limit: 2}\n"));
    load_ok("inherit: parent.yaml\nprompts: {list: [hello]}\nmodel: {path: m}\n");
    assert_non_null(config->list);
    assert_null(config->synthetic);
    assert_int_equal(config->base.prompts.limit, 2);
    assert_string_equal(config->base.model.architecture, "");
    assert_int_equal(config->base.model.init, INIT_WEIGHTS);

    load_ok("inherit: parent.yaml\nprompts: {synthetic: {num_prompts: 7}}\n");
    assert_int_equal(config->synthetic->num_prompts, 7);
    assert_non_null(config->synthetic->input_len);
    assert_int_equal(config->base.model.init, INIT_RANDOM);
}

static void a_file_that_inherits_itself_is_an_error(void **state)
{
    (void)state;
    assert_refused("inherit: x.yaml\n" MODEL PROMPTS, "does one inherit itself?");
}

static void the_position_of_an_inherited_mistake_is_in_its_file(void **state)
{
    (void)state;
    free(test_write_text("parent.yaml", MODEL "sampling:\n  top_p: 2\n"));
    assert_refused("inherit: parent.yaml\n" PROMPTS, "parent.yaml:3:10: sampling.top_p is '2'");
    /* What is overridden counts no more. */
    load_ok("inherit: parent.yaml\nsampling: {top_p: 1}\n" PROMPTS);
}

static void a_childs_grid_replaces_axes_and_adds_others(void **state)
{
    (void)state;
    free(test_write_text("parent.yaml",
                         MODEL "grid:\n  sampling.top_k: [1, 2]\n  sampling.n: [1, 2]\n"));
    load_ok("inherit: parent.yaml\n" PROMPTS
            "grid: {sampling: {n: [5]}, engine.attention: [eager, flash]}\n");
    assert_int_equal(config->n_axes, 3);
    assert_string_equal(config->axis[0].key, "sampling.top_k");
    assert_string_equal(config->axis[1].key, "sampling.n");
    assert_int_equal(config->axis[1].values->n_items, 1);
    assert_string_equal(config->axis[2].key, "engine.attention");
}

/* ---- paths ---- */

static void paths_are_relative_to_their_file(void **state)
{
    (void)state;
    char *folder = test_path("sub"), *data = test_path("sub/data"), *here = test_path("here.txt");
    assert_int_equal(dir_make(data), 0);
    free(test_write_text("sub/parent.yaml",
                         "model: {architecture: arch.json, init: random, tokenizer: data}\n"
                         "prompts: {file: texts.txt}\nresults: out\n"));
    load_ok("inherit: sub/parent.yaml\nexperiment: e\n");
    char *expected = path_join(folder, "texts.txt");
    assert_string_equal(config->base.prompts.file, expected);
    free(expected);
    expected = path_join(folder, "arch.json");
    assert_string_equal(config->base.model.architecture, expected);
    free(expected);
    assert_string_equal(config->base.model.tokenizer, data);
    expected = path_join(folder, "out/e.db");
    assert_string_equal(config->results, expected);
    free(expected);

    load_with_sets(MODEL PROMPTS, (const char *const[]){"prompts.file=here.txt"}, 1);
    assert_string_equal(config->base.prompts.file, "here.txt");
    assert_null(config->list);
    free(here);
    free(data);
    free(folder);
}

static void a_model_that_is_nowhere_keeps_its_name(void **state)
{
    (void)state;
    load_ok("model: {path: org/name}\n" PROMPTS);
    assert_string_equal(config->base.model.path, "org/name");
}

static void make_folders(const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char *path = test_path(names[i]);
        assert_int_equal(dir_make(path), 0);
        free(path);
    }
}

static void assert_model_found(const char *name, const char *found)
{
    char *text = xasprintf("model: {path: %s}\n" PROMPTS, name);
    char *path = test_path(found);
    load_ok(text);
    assert_string_equal(config->base.model.path, path);
    free(path);
    free(text);
}

static void models_are_found_in_the_folder_of_models(void **state)
{
    (void)state;
    static const char *const folders[] = {
        "store/plain",
        "store/org/nested",
        "store/org--flat",
        "store/models--org--cached/snapshots/aaa",
        "store/models--org--cached/snapshots/bbb",
        "store/models--org--cached/snapshots/ccc",
        "store/models--org--cached/refs",
        "store/models--org--noref/snapshots/aaa",
        "store/models--org--noref/snapshots/bbb",
    };
    make_folders(folders, ARRAY_LEN(folders));
    free(test_write_text("store/models--org--cached/refs/main", "bbb\n"));
    char *store = test_path("store");
    setenv("QUIRE_MODELS", store, 1);
    assert_model_found("plain", "store/plain");
    assert_model_found("org/nested", "store/org/nested");
    assert_model_found("org/flat", "store/org--flat");
    assert_model_found("org/cached", "store/models--org--cached/snapshots/bbb");
    assert_model_found("org/noref", "store/models--org--noref/snapshots/bbb");
    load_ok("model: {path: org/none}\n" PROMPTS);
    assert_string_equal(config->base.model.path, "org/none");
    free(store);
}

static void a_model_beside_the_config_comes_first(void **state)
{
    (void)state;
    static const char *const folders[] = {"beside", "elsewhere/beside"};
    make_folders(folders, ARRAY_LEN(folders));
    char *elsewhere = test_path("elsewhere");
    setenv("QUIRE_MODELS", elsewhere, 1);
    assert_model_found("beside", "beside");
    free(elsewhere);
}

/* ---- environment and --set ---- */

static void the_environment_sets_its_keys(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        int fast;
    } cases[] = {{"1", FAST_ON},      {"0", FAST_OFF},     {"true", FAST_ON},
                 {"false", FAST_OFF}, {"auto", FAST_AUTO}, {"", FAST_OFF}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        setenv("USE_FAST_ENGINE", cases[i].value, 1);
        load_ok(MODEL PROMPTS "engine: {fast: false}\n");
        assert_int_equal(config->base.engine.fast, cases[i].fast);
    }
    setenv("QUIRE_RESULTS", "elsewhere/all.db", 1);
    load_ok(MODEL PROMPTS);
    assert_string_equal(config->results, "elsewhere/all.db");
    setenv("QUIRE_RESULTS", "elsewhere", 1);
    load_ok(MODEL PROMPTS);
    assert_string_equal(config->results, "elsewhere/x.db");
}

static void a_bad_environment_value_lists_the_valid_ones(void **state)
{
    (void)state;
    static const struct {
        const char *name, *value, *message;
    } cases[] = {
        {"USE_FAST_ENGINE", "2",
         "environment USE_FAST_ENGINE: engine.fast is '2'; expected one of "
         "auto, true, false"},
        {"QUIRE_ATTENTION", "flsh",
         "environment QUIRE_ATTENTION: engine.attention is 'flsh'; "
         "expected one of auto, flash, "
         "memory_efficient, eager, flash!, memory_efficient!, eager!; did you mean 'flash'?"},
        {"QUIRE_DEVICE", "gpu", "expected one of auto, cpu, cuda"},
        {"QUIRE_CPU_ISA", "avx",
         "environment QUIRE_CPU_ISA is 'avx'; expected one of plain, avx2, "
         "avx512, avx512vnni, avx512bf16, amx"},
        {"QUIRE_LOG", "loud", "expected one of quiet, warning, info, debug"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        setenv(cases[i].name, cases[i].value, 1);
        assert_refused(MODEL PROMPTS, cases[i].message);
        unsetenv(cases[i].name);
    }
}

static void sets_take_any_key_and_any_value(void **state)
{
    (void)state;
    static const char *const sets[] = {
        "sampling.max_tokens=7",
        "replications=2",
        "prompts.system=Be: brief # ok",
        "prompts.chat=true",
        "grid.sampling.top_k=[1, 2]",
        "exclude=[{sampling.top_k: 2, sampling.n: 1}]",
        "experiment=\"42\"",
        "prompts.list=[a, [1, 2]]",
    };
    load_with_sets(MODEL PROMPTS "grid: {sampling.n: [1, 2]}\n", sets, ARRAY_LEN(sets));
    assert_int_equal(config->base.sampling.max_tokens, 7);
    assert_int_equal(config->replications, 2);
    assert_string_equal(config->base.prompts.system, "Be: brief # ok");
    assert_string_equal(config->experiment, "42");
    assert_int_equal(config->n_axes, 2);
    assert_string_equal(config->axis[1].key, "sampling.top_k");
    assert_int_equal(config->n_excludes, 1);
    assert_int_equal(config->list->n_items, 2);
}

static void a_bad_set_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *set, *message;
    } cases[] = {
        {"sampling.max_tokens", "expected KEY=VALUE"},
        {"=5", "expected KEY=VALUE"},
        {"sampling.max_token=5", "--set: key 'sampling.max_token' is not known; did you mean "
                                 "'sampling.max_tokens'?"},
        {"sampling.max_tokens=x", "--set: sampling.max_tokens is 'x'; expected an integer"},
        {"sampling.max_tokens=", "--set: sampling.max_tokens is empty"},
        {"grid.sampling.top_k=1", "the values of sampling.top_k are '1'; expected a list"},
        {"prompts.list=[a", "--set: "},
        {"inherit=a.yaml", "only a file can inherit"},
    };
    char *path = test_write_text("x.yaml", MODEL PROMPTS);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(load_file(path, &cases[i].set, 1), -1);
        assert_error(ERR_CONFIG, cases[i].message);
    }
    free(path);
}

/* ---- the grid ---- */

static void bad_grids_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *lines, *message;
    } cases[] = {
        {"grid: [a]", "grid is a list; expected a mapping"},
        {"grid: {sampling.n: 3}", "x.yaml:3:20: the values of sampling.n are '3'; expected a list"},
        {"grid: {sampling.n: []}", "the list of values of sampling.n is empty"},
        {"grid: {sampling.n: [1, x]}", "x.yaml:3:24: sampling.n is 'x'; expected an integer"},
        {"grid: {sampling.n: [1, [2]]}", "sampling.n is a list; expected an integer"},
        {"grid: {sampling.n: [1, 2, 0x1]}", "x.yaml:3:27: the same value of sampling.n as at "},
        {"grid: {sampling.temperature: [0, 0.0]}", "the same value of sampling.temperature"},
        {"grid: {replications: [1, 2]}", "'replications' is the same for all tasks"},
        {"grid: {prompts.list: [[a], [b]]}", "'prompts.list' is the same for all tasks"},
        {"grid: {sampling.n: [1]}\nfixed: {sampling.n: 2}", "x.yaml:3:20: sampling.n has values "
                                                            "here and is fixed at "},
        {"grid: {sampling.n: [1]}\nzip: {sampling.n: [1]}", "'sampling.n' is an axis already"},
        {"zip: {sampling.n: [1, 2], sampling.top_k: [1]}",
         "1 values of sampling.top_k in a zip of 2"},
        {"zip: {sampling.n: [1, 1], sampling.top_k: [3, 3]}", "and all that is zipped with it"},
        {"zip: 5", "zip takes a mapping of lists"},
        {"exclude: {sampling.n: 1}", "exclude is a mapping; expected a list of mappings"},
        {"exclude: [{}]", "a rule is empty"},
        {"exclude: [{sampling.n: x}]", "sampling.n is 'x'; expected an integer"},
        {"exclude: [{replications: 1}]", "'replications' is the same for all tasks"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *text = xasprintf(MODEL PROMPTS "%s\n", cases[i].lines);
        assert_refused(text, cases[i].message);
        free(text);
    }
}

static void an_override_takes_its_axis_away(void **state)
{
    (void)state;
    const char *text = MODEL PROMPTS "grid:\n  engine.attention: [flash, eager]\n"
                                     "  sampling.n: [1, 2]\n";
    setenv("QUIRE_ATTENTION", "eager", 1);
    load_ok(text);
    assert_int_equal(config->n_axes, 1);
    assert_string_equal(config->axis[0].key, "sampling.n");
    assert_int_equal(config->base.engine.attention, ATTENTION_CHOICE_EAGER);
    load_with_sets(text, (const char *const[]){"sampling.n=3"}, 1);
    assert_int_equal(config->n_axes, 0);
    /* An axis asked for just now is stronger than the environment. */
    load_with_sets(text, (const char *const[]){"grid.engine.attention=[flash]"}, 1);
    assert_int_equal(config->n_axes, 2);
}

static void a_stronger_file_takes_an_inherited_axis_away(void **state)
{
    (void)state;
    free(test_write_text("base.yaml", MODEL PROMPTS "grid: {sampling.n: [1, 2]}\n"
                                                    "zip: {sampling.top_k: [3, 4]}\n"));
    load_ok("inherit: base.yaml\nsampling: {n: 5}\n");
    assert_int_equal(config->n_axes, 1);
    assert_string_equal(config->axis[0].key, "sampling.top_k");
    assert_int_equal(config->base.sampling.n, 5);
    load_ok("inherit: base.yaml\nfixed: {sampling.top_k: 6}\n");
    assert_int_equal(config->n_axes, 1);
    assert_string_equal(config->axis[0].key, "sampling.n");
    /* Beside its axis a value is only a default. */
    load_ok("inherit: base.yaml\nsampling: {n: 5}\ngrid: {sampling.n: [7, 8, 9]}\n");
    assert_int_equal(config->n_axes, 2);
    assert_int_equal(config->axis[0].values->n_items, 3);
}

static void too_many_axes_or_values_are_refused(void **state)
{
    (void)state;
    struct str text = {0};
    str_append_c(&text, MODEL PROMPTS "grid: {sampling.seed: [0");
    for (int i = 1; i <= CONFIG_MAX_GRID_VALUES; i++)
        str_appendf(&text, ", %d", i);
    str_append_c(&text, "]}\n");
    assert_refused(text.data, "4097 values of sampling.seed; expected at most 4096");
    str_clear(&text);
    str_append_c(&text, MODEL PROMPTS "exclude:\n");
    for (int i = 0; i <= CONFIG_MAX_EXCLUDES; i++)
        str_append_c(&text, "- {sampling.n: 9}\n");
    assert_refused(text.data, "257 rules; expected at most 256");
    str_free(&text);
}

/* ---- the files in configs/ ---- */

static void assert_loads(const char *path, int n_tasks)
{
    struct task_list list;
    if (load_file(path, NULL, 0) != 0 || task_list_make(&list, config) != 0)
        fail_msg("%s", err_get());
    assert_int_equal(list.n, n_tasks);
    task_list_free(&list);
}

static void the_configs_that_ship_load(void **state)
{
    (void)state;
    assert_loads("configs/reference.yaml", 1);
    assert_string_equal(config->base.model.path, "configs/models/demo");
    assert_loads("configs/workload_m.yaml", 1);
    assert_string_equal(config->base.model.architecture, "configs/models/qwen3-0.6b.json");
    assert_loads("configs/workload_n.yaml", 1);
    assert_int_equal(config->base.engine.max_model_len, 4096);
    assert_loads("configs/demo.yaml", 8);
    assert_int_equal(config->list->n_items, 16);
    assert_string_equal(config->results, "results/demo.db");
}

/* Defaults that the table prints are the ones that an empty file gets. */
static void the_table_prints_the_defaults(void **state)
{
    (void)state;
    load_ok(MODEL PROMPTS);
    for (size_t i = 0; i < config_n_keys(); i++) {
        const struct config_key *key = config_get_key(i);
        char *text = config_text(config, i);
        if (key->default_text[0])
            assert_string_equal(text, key->default_text);
        assert_true(key->doc[0] != '\0' && !strchr(key->doc, '\n'));
        free(text);
    }
}

#define CONFIG_TEST(f) cmocka_unit_test_setup_teardown(f, forget_environment, close_config)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CONFIG_TEST(a_short_file_takes_the_defaults),
        CONFIG_TEST(every_kind_of_value_arrives),
        CONFIG_TEST(the_stronger_source_of_a_value_wins),
        CONFIG_TEST(values_print_as_yaml_that_reads_the_same),
        CONFIG_TEST(settings_become_json_with_their_types),
        CONFIG_TEST(the_names_of_policies_are_the_engines),
        CONFIG_TEST(unknown_keys_name_their_place_and_the_nearest),
        CONFIG_TEST(bad_values_say_what_was_expected),
        CONFIG_TEST(relations_between_keys_are_checked),
        CONFIG_TEST(a_missing_file_names_itself),
        CONFIG_TEST(keys_are_inherited_one_by_one),
        CONFIG_TEST(a_source_of_prompts_replaces_the_inherited_one),
        CONFIG_TEST(a_file_that_inherits_itself_is_an_error),
        CONFIG_TEST(the_position_of_an_inherited_mistake_is_in_its_file),
        CONFIG_TEST(a_childs_grid_replaces_axes_and_adds_others),
        CONFIG_TEST(paths_are_relative_to_their_file),
        CONFIG_TEST(a_model_that_is_nowhere_keeps_its_name),
        CONFIG_TEST(models_are_found_in_the_folder_of_models),
        CONFIG_TEST(a_model_beside_the_config_comes_first),
        CONFIG_TEST(the_environment_sets_its_keys),
        CONFIG_TEST(a_bad_environment_value_lists_the_valid_ones),
        CONFIG_TEST(sets_take_any_key_and_any_value),
        CONFIG_TEST(a_bad_set_is_refused),
        CONFIG_TEST(bad_grids_are_refused),
        CONFIG_TEST(an_override_takes_its_axis_away),
        CONFIG_TEST(a_stronger_file_takes_an_inherited_axis_away),
        CONFIG_TEST(too_many_axes_or_values_are_refused),
        CONFIG_TEST(the_configs_that_ship_load),
        CONFIG_TEST(the_table_prints_the_defaults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
