/* config_keys.c - the table of every key of an experiment file; see config.h.
 *
 * Defaults and names are vLLM's where vLLM has them. The order is that of configs/reference.yaml.
 */
#include "runner/config_internal.h"
#include "runner/prompts.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_POSITIONS 4194304 /* tokens of a sequence: arch.h's bound */
#define MAX_SWAP_GIB  65536

/* path, type, default, environment variable, documentation */
#define TASK_KEY(path, type, preset, variable, doc)                                                \
    .key = {path, type, preset, variable, doc, true}, .target = TARGET_SETTINGS
#define EXPERIMENT_KEY(path, type, preset, variable, doc)                                          \
    .key = {path, type, preset, variable, doc, false}, .target = TARGET_CONFIG
#define SYNTHETIC_KEY(path, type, preset, doc)                                                     \
    .key = {"prompts.synthetic." path, type, preset, NULL, doc, false},                            \
    .target = TARGET_SYNTHETIC, .source = SOURCE_PROMPTS_SYNTHETIC
#define SLURM_KEY(path, type, preset, doc)                                                         \
    .key = {"slurm." path, type, preset, NULL, doc, false}, .target = TARGET_CONFIG
#define FIELD(member)           .offset = offsetof(struct settings, member)
#define CONFIG_FIELD(member)    .offset = offsetof(struct config, member)
#define SYNTHETIC_FIELD(member) .offset = offsetof(struct synthetic_spec, member)
#define SLURM_FIELD(member)     .offset = offsetof(struct config, slurm.member)
#define DTYPES                  "one of auto|bfloat16|float16|float32"

static const struct key_row rows[] = {
    {EXPERIMENT_KEY("experiment", "string", "", NULL,
                    "name of the experiment; by default the file's name without .yaml"),
     .kind = KEY_STRING, CONFIG_FIELD(experiment)},
    {EXPERIMENT_KEY("inherit", "path or list of paths", "", NULL,
                    "files whose keys this file starts from; the last one wins"),
     .kind = KEY_STRUCTURE},
    {EXPERIMENT_KEY("results", "path", "", "QUIRE_RESULTS",
                    "database (.db), or a folder for EXPERIMENT.db; by default "
                    "results/EXPERIMENT.db in the working directory"),
     .kind = KEY_PATH, CONFIG_FIELD(results)},

    {TASK_KEY("model.path", "path", "", NULL,
              "Hugging Face directory with the weights; also looked for in QUIRE_MODELS"),
     .kind = KEY_MODEL_PATH, FIELD(model.path), .source = SOURCE_MODEL_PATH},
    {TASK_KEY("model.architecture", "path", "", NULL,
              "architecture (.json) for init: random, instead of model.path"),
     .kind = KEY_PATH, FIELD(model.architecture), .source = SOURCE_MODEL_ARCHITECTURE},
    {TASK_KEY("model.init", "one of weights|random", "weights", NULL,
              "random: values drawn from model.seed, for speed tests without weights"),
     .kind = KEY_CHOICE, FIELD(model.init)},
    {TASK_KEY("model.seed", "integer", "0", NULL, "seed of init: random"), .kind = KEY_INTEGER,
     FIELD(model.seed), .max = INT64_MAX},
    {TASK_KEY("model.dtype", DTYPES, "auto", NULL,
              "type of the weights in memory; auto: that of the checkpoint"),
     .kind = KEY_NAME, FIELD(model.dtype)},
    {TASK_KEY("model.quantization", "one of none|int8", "none", NULL,
              "int8: all matrices are rounded to 8 bits when they are loaded; CPU only"),
     .kind = KEY_CHOICE, FIELD(model.quantization)},
    {TASK_KEY("model.tokenizer", "path", "", NULL,
              "directory of a tokenizer.json to use instead of the model's own"),
     .kind = KEY_MODEL_PATH, FIELD(model.tokenizer)},

    {TASK_KEY("engine.fast", "one of auto|true|false", "auto", "USE_FAST_ENGINE",
              "true: paged KV cache and continuous batching; false: the standard engine; auto: "
              "fast, and the standard one where that fails"),
     .kind = KEY_CHOICE, FIELD(engine.fast)},
    {TASK_KEY("engine.device", "one of auto|cpu|cuda", "auto", "QUIRE_DEVICE",
              "where the model runs; auto: the best device there is"),
     .kind = KEY_CHOICE, FIELD(engine.device)},
    {TASK_KEY("engine.attention",
              "one of auto|flash|memory_efficient|eager|flash!|memory_efficient!|eager!", "auto",
              "QUIRE_ATTENTION",
              "attention kernel; auto: the fastest that the device has; !: no other one"),
     .kind = KEY_CHOICE, FIELD(engine.attention)},
    {TASK_KEY("engine.scheduling_policy", "one of fcfs|priority|memory_aware", "fcfs", NULL,
              "order in which waiting requests are admitted"),
     .kind = KEY_CHOICE, FIELD(engine.policy)},
    {TASK_KEY("engine.block_size", "integer", "64", NULL, "tokens per block of the KV cache"),
     .kind = KEY_INTEGER, FIELD(engine.block_size), .min = 16, .max = 1024, .multiple = 16},
    {TASK_KEY("engine.max_num_seqs", "integer", "256", NULL, "sequences in one step, at most"),
     .kind = KEY_INTEGER, FIELD(engine.max_num_seqs), .min = 1, .max = ENGINE_MAX_SEQS},
    {TASK_KEY("engine.max_num_batched_tokens", "integer", "auto", NULL,
              "tokens in one step, at most; longer prompts are computed in chunks; auto: 8192 on a "
              "GPU, 2048 on a CPU"),
     .kind = KEY_INTEGER, FIELD(engine.max_num_batched_tokens), .min = 1,
     .max = ENGINE_MAX_BATCHED_TOKENS, .or_auto = true},
    {TASK_KEY("engine.max_model_len", "integer", "auto", NULL,
              "longest sequence, prompt and output; auto: what the model was made for"),
     .kind = KEY_INTEGER, FIELD(engine.max_model_len), .min = 2, .max = MAX_POSITIONS,
     .or_auto = true},
    {TASK_KEY("engine.num_kv_blocks", "integer", "auto", NULL,
              "size of the KV cache in blocks; auto: from engine.gpu_memory_utilization"),
     .kind = KEY_INTEGER, FIELD(engine.num_kv_blocks), .min = 1, .max = INT32_MAX, .or_auto = true},
    {TASK_KEY("engine.num_threads", "integer", "auto", NULL,
              "CPU threads; auto: all that this process may use"),
     .kind = KEY_INTEGER, FIELD(engine.num_threads), .min = 1, .max = 1024, .or_auto = true},
    {TASK_KEY("engine.gpu_memory_utilization", "number", "0.9", NULL,
              "share of the device's free memory that the engine may take (the CPU's, too)"),
     .kind = KEY_NUMBER, FIELD(engine.gpu_memory_utilization), .max = 1, .above_min = true},
    {TASK_KEY("engine.preemption_mode", "one of recompute|swap", "recompute", NULL,
              "when the KV cache is full: compute the sequence that gives way again, or swap its "
              "blocks to host memory"),
     .kind = KEY_CHOICE, FIELD(engine.preemption_mode)},
    {TASK_KEY("engine.swap_space", "number", "4.0", NULL,
              "GiB of host memory for preemption_mode: swap; what does not fit is recomputed"),
     .kind = KEY_NUMBER, FIELD(engine.swap_space), .max = MAX_SWAP_GIB},
    {TASK_KEY("engine.kv_cache_dtype", DTYPES, "auto", NULL,
              "type of the KV cache; auto: that of the weights"),
     .kind = KEY_NAME, FIELD(engine.kv_cache_dtype)},
    {TASK_KEY("engine.enable_prefix_caching", "bool", "true", NULL,
              "prompts that begin alike share their KV blocks"),
     .kind = KEY_BOOL, FIELD(engine.enable_prefix_caching)},
    {TASK_KEY("engine.enforce_eager", "bool", "false", NULL,
              "do not record decode steps (CUDA graphs); says nothing about the attention kernel"),
     .kind = KEY_BOOL, FIELD(engine.enforce_eager)},
    {TASK_KEY("engine.async_scheduling", "bool", "true", NULL,
              "on a GPU, prepare each step while the one before it runs"),
     .kind = KEY_BOOL, FIELD(engine.async_scheduling)},

    {TASK_KEY("sampling.temperature", "number", "1.0", NULL, "0: always the likeliest token"),
     .kind = KEY_NUMBER, FIELD(sampling.temperature), .max = 100},
    {TASK_KEY("sampling.top_p", "number", "1.0", NULL,
              "draw from the likeliest tokens that together reach this probability; 1: from all"),
     .kind = KEY_NUMBER, FIELD(sampling.top_p), .max = 1, .above_min = true},
    {TASK_KEY("sampling.min_p", "number", "0.0", NULL,
              "drop tokens below this share of the likeliest one's probability; 0: none"),
     .kind = KEY_NUMBER, FIELD(sampling.min_p), .max = 1},
    {TASK_KEY("sampling.top_k", "integer", "0", NULL,
              "draw from this many of the likeliest tokens; 0: from all"),
     .kind = KEY_INTEGER, FIELD(sampling.top_k), .max = TOKENIZER_MAX_VOCAB},
    {TASK_KEY("sampling.max_tokens", "integer", "256", NULL, "longest output in tokens"),
     .kind = KEY_INTEGER, FIELD(sampling.max_tokens), .min = 1, .max = MAX_POSITIONS},
    {TASK_KEY("sampling.n", "integer", "1", NULL, "samples per prompt"), .kind = KEY_INTEGER,
     FIELD(sampling.n), .min = 1, .max = 10000},
    {TASK_KEY("sampling.seed", "integer", "0", NULL,
              "every sample's own seed follows from it, the replication and the prompt"),
     .kind = KEY_INTEGER, FIELD(sampling.seed), .max = INT64_MAX},
    {TASK_KEY("sampling.ignore_eos", "bool", "false", NULL,
              "go on to max_tokens after the end of the text, for speed tests"),
     .kind = KEY_BOOL, FIELD(sampling.ignore_eos)},

    {TASK_KEY("prompts.file", "path", "", NULL,
              "text file with one prompt per line, or .jsonl with prompts.field"),
     .kind = KEY_PATH, FIELD(prompts.file), .source = SOURCE_PROMPTS_FILE},
    {TASK_KEY("prompts.field", "string", "", NULL,
              "field of the .jsonl file that is the prompt; dotted inside (turns.0)"),
     .kind = KEY_STRING, FIELD(prompts.field)},
    {EXPERIMENT_KEY("prompts.list", "list", "", NULL, "the prompts: texts, or lists of token ids"),
     .kind = KEY_NODE, CONFIG_FIELD(list), .source = SOURCE_PROMPTS_LIST},
    {EXPERIMENT_KEY("prompts.messages", "list", "", NULL,
                    "conversations: lists of {role: ..., content: ...}"),
     .kind = KEY_NODE, CONFIG_FIELD(messages), .source = SOURCE_PROMPTS_MESSAGES},
    {SYNTHETIC_KEY("lengths", "one of fixed|uniform|trace", "fixed",
                   "where the lengths of made-up prompts come from"),
     .kind = KEY_CHOICE, SYNTHETIC_FIELD(lengths)},
    {SYNTHETIC_KEY("num_prompts", "integer", "auto", "how many; auto: all rows of the trace"),
     .kind = KEY_INTEGER, SYNTHETIC_FIELD(num_prompts), .min = 1, .max = PROMPTS_MAX,
     .or_auto = true},
    {SYNTHETIC_KEY("input_len", "integer or list", "",
                   "prompt tokens; fixed: one number, or a list taken in turn; uniform: [low, "
                   "high]"),
     .kind = KEY_NODE, SYNTHETIC_FIELD(input_len)},
    {SYNTHETIC_KEY("output_len", "integer or list", "",
                   "output tokens, likewise; by default sampling.max_tokens"),
     .kind = KEY_NODE, SYNTHETIC_FIELD(output_len)},
    {SYNTHETIC_KEY("token_ids", "list", "",
                   "[low, high] of the ids that are drawn; by default all of the vocabulary"),
     .kind = KEY_NODE, SYNTHETIC_FIELD(token_ids)},
    {SYNTHETIC_KEY("seed", "integer", "0", "as in Python's random.seed"), .kind = KEY_INTEGER,
     SYNTHETIC_FIELD(seed), .max = INT64_MAX},
    {SYNTHETIC_KEY("file", "path", "", "trace: CSV with a line of column names"), .kind = KEY_PATH,
     SYNTHETIC_FIELD(file)},
    {SYNTHETIC_KEY("input_column", "string", "", "trace: column of the prompt's tokens"),
     .kind = KEY_STRING, SYNTHETIC_FIELD(input_column)},
    {SYNTHETIC_KEY("output_column", "string", "",
                   "trace: column of the output's tokens; by default sampling.max_tokens"),
     .kind = KEY_STRING, SYNTHETIC_FIELD(output_column)},
    {SYNTHETIC_KEY("expect.input_tokens", "integer", "auto",
                   "the sum that must come out; auto: not checked"),
     .kind = KEY_INTEGER, SYNTHETIC_FIELD(expect.input_tokens), .max = INT64_MAX, .or_auto = true},
    {SYNTHETIC_KEY("expect.output_tokens", "integer", "auto",
                   "the sum that must come out; auto: not checked"),
     .kind = KEY_INTEGER, SYNTHETIC_FIELD(expect.output_tokens), .max = INT64_MAX, .or_auto = true},
    {SYNTHETIC_KEY("expect.sha256", "string", "",
                   "SHA-256 of all prompts' ids in order as 32-bit little-endian integers"),
     .kind = KEY_STRING, SYNTHETIC_FIELD(expect.sha256)},
    {TASK_KEY("prompts.chat", "bool", "false", NULL,
              "put each prompt into the model's chat format as one user message"),
     .kind = KEY_BOOL, FIELD(prompts.chat)},
    {TASK_KEY("prompts.system", "string", "", NULL,
              "system message before it, or before prompts.messages that have none"),
     .kind = KEY_STRING, FIELD(prompts.system)},
    {TASK_KEY("prompts.limit", "integer", "auto", NULL, "use only this many prompts; auto: all"),
     .kind = KEY_INTEGER, FIELD(prompts.limit), .min = 1, .max = PROMPTS_MAX, .or_auto = true},
    {TASK_KEY("prompts.offset", "integer", "0", NULL, "leave out this many prompts first"),
     .kind = KEY_INTEGER, FIELD(prompts.offset), .max = PROMPTS_MAX},

    {EXPERIMENT_KEY("grid", "mapping of lists", "", NULL,
                    "one task per combination of these values; the last key changes fastest"),
     .kind = KEY_STRUCTURE},
    {EXPERIMENT_KEY("zip", "mapping of lists, or list of them", "", NULL,
                    "keys whose values advance together; varies faster than grid"),
     .kind = KEY_STRUCTURE},
    {EXPERIMENT_KEY("exclude", "list of mappings", "", NULL,
                    "combinations to leave out: key: value or list of values"),
     .kind = KEY_STRUCTURE},
    {EXPERIMENT_KEY("fixed", "mapping", "", NULL,
                    "values that hold for all tasks, stronger than the sections above"),
     .kind = KEY_STRUCTURE},
    {EXPERIMENT_KEY("replications", "integer", "1", NULL,
                    "times that each combination is run, each with other random numbers"),
     .kind = KEY_INTEGER, CONFIG_FIELD(replications), .min = 1, .max = CONFIG_MAX_REPLICATIONS},
    {EXPERIMENT_KEY("schedule", "one of packed|exclusive", "packed", NULL,
                    "packed: tasks of one model share batches; exclusive: one task at a time, "
                    "for clean timings"),
     .kind = KEY_CHOICE, CONFIG_FIELD(schedule)},
    {EXPERIMENT_KEY("fallback.allow_cpu", "bool", "true", NULL,
                    "go on with the CPU when the device asked for is not there"),
     .kind = KEY_BOOL, CONFIG_FIELD(allow_cpu)},
    {EXPERIMENT_KEY("fallback.allow_standard_engine", "bool", "true", NULL,
                    "go on with the standard engine when the fast one cannot start"),
     .kind = KEY_BOOL, CONFIG_FIELD(allow_standard_engine)},

    {SLURM_KEY("time", "string", "", "time limit as sbatch takes it: minutes, HH:MM:SS, D-HH"),
     .kind = KEY_STRING, SLURM_FIELD(time)},
    {SLURM_KEY("partition", "string", "", "partition (queue)"), .kind = KEY_STRING,
     SLURM_FIELD(partition)},
    {SLURM_KEY("account", "string", "", "who pays"), .kind = KEY_STRING, SLURM_FIELD(account)},
    {SLURM_KEY("qos", "string", "", "quality of service"), .kind = KEY_STRING, SLURM_FIELD(qos)},
    {SLURM_KEY("constraint", "string", "", "features that the nodes must have"), .kind = KEY_STRING,
     SLURM_FIELD(constraint)},
    {SLURM_KEY("nodes", "integer", "1", "nodes of a job"), .kind = KEY_INTEGER, SLURM_FIELD(nodes),
     .min = 1, .max = 100000},
    {SLURM_KEY("ntasks_per_node", "integer", "1", "ranks on each node; one for each GPU"),
     .kind = KEY_INTEGER, SLURM_FIELD(ntasks_per_node), .min = 1, .max = 4096},
    {SLURM_KEY("gpus_per_task", "integer", "0", "GPUs of a rank"), .kind = KEY_INTEGER,
     SLURM_FIELD(gpus_per_task), .max = 1024},
    {SLURM_KEY("cpus_per_task", "integer", "auto", "CPUs of a rank; auto: the site's default"),
     .kind = KEY_INTEGER, SLURM_FIELD(cpus_per_task), .min = 1, .max = 4096, .or_auto = true},
    {SLURM_KEY("mem", "string", "", "memory of a node: megabytes, or 64G"), .kind = KEY_STRING,
     SLURM_FIELD(mem)},
    {SLURM_KEY("array", "integer", "0",
               "workers in a job array, each with its share of the samples; 0: no array"),
     .kind = KEY_INTEGER, SLURM_FIELD(array), .max = INT32_MAX},
    {SLURM_KEY("array_limit", "integer", "0", "workers that run at the same time; 0: all"),
     .kind = KEY_INTEGER, SLURM_FIELD(array_limit), .max = INT32_MAX},
    {SLURM_KEY("modules", "list", "", "modules to load"), .kind = KEY_NODE, SLURM_FIELD(modules)},
    {SLURM_KEY("environment_file", "path", "", "shell script that is sourced before the run"),
     .kind = KEY_PATH, SLURM_FIELD(environment_file)},
    {SLURM_KEY("signal_seconds", "integer", "120",
               "the ranks are told this long before the time limit; 0: not"),
     .kind = KEY_INTEGER, SLURM_FIELD(signal_seconds), .max = 65535},
    {SLURM_KEY("requeue", "bool", "true", "queue the job again when it could not finish"),
     .kind = KEY_BOOL, SLURM_FIELD(requeue)},
    {SLURM_KEY("extra", "list", "", "further options of sbatch, as they would follow #SBATCH"),
     .kind = KEY_NODE, SLURM_FIELD(extra)},
};

size_t config_n_keys(void)
{
    return ARRAY_LEN(rows);
}

const struct key_row *config_row(size_t i)
{
    assert(i < ARRAY_LEN(rows));
    return &rows[i];
}

const struct config_key *config_get_key(size_t i)
{
    return &config_row(i)->key;
}

int config_find_key(const char *path)
{
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        if (strcmp(rows[i].key.path, path) == 0)
            return (int)i;
    return -1;
}

/* ---- environment variables ---- */

struct variable {
    struct config_variable public;
    const char *const names[8]; /* valid values up to NULL; none: any, or checked as a key */
};

static const struct variable variables[] = {
    {{"USE_FAST_ENGINE", "1, 0, true, false or auto: sets engine.fast"}, {NULL}},
    {{"QUIRE_ATTENTION",
      "auto, flash, memory_efficient or eager (flash!: no other): sets engine.attention"},
     {NULL}},
    {{"QUIRE_DEVICE", "auto, cpu or cuda: sets engine.device"}, {NULL}},
    {{"QUIRE_RESULTS", "a .db file, or a folder for EXPERIMENT.db: sets results"}, {NULL}},
    {{"QUIRE_MODELS", "folder in which model.path and model.tokenizer are looked for: PATH, "
                      "org--name, or the hub cache layout models--org--name"},
     {NULL}},
    {{"QUIRE_LOG", "quiet, warning, info or debug: what is written to stderr"},
     {"quiet", "warning", "info", "debug", NULL}},
    {{"QUIRE_CPU_ISA",
      "plain, avx2, avx512, avx512vnni, avx512bf16 or amx: the CPU's instruction set to use"},
     {"plain", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx", NULL}},
    {{"QUIRE_WEIGHT_CACHE",
      "folder where a CPU keeps the weights as it packs them, so that later starts map them"},
     {NULL}},
    {{"QUIRE_ARRAY_COUNT",
      "of how many workers the task ids of a Slurm array are, when only some are submitted"},
     {NULL}},
};

size_t config_n_variables(void)
{
    return ARRAY_LEN(variables);
}

const struct config_variable *config_get_variable(size_t i)
{
    assert(i < ARRAY_LEN(variables));
    return &variables[i].public;
}

const char *config_get_environment(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static int check_variable(const struct variable *v, const char *value)
{
    struct str expected = {0};
    int rc = 0;
    size_t n = 0;
    for (; v->names[n]; n++) {
        if (strcmp(value, v->names[n]) == 0)
            goto done;
        str_appendf(&expected, "%s%s", n > 0 ? ", " : "", v->names[n]);
    }
    const char *nearest = nearest_name(value, v->names, n);
    rc = err_set(ERR_CONFIG, "environment %s is '%s'; expected one of %s%s%s%s", v->public.name,
                 value, expected.data, nearest ? "; did you mean '" : "", nearest ? nearest : "",
                 nearest ? "'?" : "");
done:
    str_free(&expected);
    return rc;
}

int config_check_variables(void)
{
    for (size_t i = 0; i < ARRAY_LEN(variables); i++) {
        const char *value = config_get_environment(variables[i].public.name);
        if (variables[i].names[0] && value && check_variable(&variables[i], value) != 0)
            return -1;
    }
    return 0;
}

/* ---- walking a mapping by key ---- */

static bool is_section(const char *path)
{
    size_t n = strlen(path);
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        if (strncmp(rows[i].key.path, path, n) == 0 && rows[i].key.path[n] == '.')
            return true;
    return false;
}

/* The word of `path` right below a section ("": the top), or NULL: "engine.fast" below "engine" is
 * "fast", "prompts.synthetic.seed" below "prompts" is "synthetic". */
static char *word_below(const char *path, const char *section)
{
    size_t n = strlen(section);
    if (n > 0) {
        if (strncmp(path, section, n) != 0 || path[n] != '.')
            return NULL;
        path += n + 1;
    }
    return xstrndup(path, strcspn(path, "."));
}

static const char *last_word(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

/* The words that may stand in a section, each once. The caller frees each; returns how many. */
static size_t section_words(char *words[ARRAY_LEN(rows)], const char *section)
{
    size_t n = 0;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        char *word = word_below(rows[i].key.path, section);
        if (word && (n == 0 || strcmp(words[n - 1], word) != 0))
            words[n++] = word;
        else
            free(word);
    }
    return n;
}

/* Appends the key that was probably meant: the nearest of the same section; the same word in
 * another section; else what the section has. */
static void append_hint(struct str *out, const char *section, const char *word)
{
    char *words[ARRAY_LEN(rows)];
    size_t n = section_words(words, section);
    const char *dot = section[0] ? "." : "";
    const char *nearest = nearest_name(word, (const char *const *)words, n);
    const char *elsewhere = NULL;
    for (size_t i = 0; i < ARRAY_LEN(rows) && !nearest && !elsewhere; i++)
        if (strcmp(last_word(rows[i].key.path), word) == 0)
            elsewhere = rows[i].key.path;
    if (nearest)
        str_appendf(out, "did you mean '%s%s%s'?", section, dot, nearest);
    else if (elsewhere)
        str_appendf(out, "did you mean '%s'?", elsewhere);
    else
        str_appendf(out, "expected one of");
    for (size_t i = 0; i < n; i++) {
        if (!nearest && !elsewhere)
            str_appendf(out, "%s %s", i > 0 ? "," : "", words[i]);
        free(words[i]);
    }
}

static int err_unknown(const struct yaml_node *name, const char *path)
{
    /* The section is as much of the path as exists. */
    char section[CONFIG_MAX_KEY_LEN];
    snprintf(section, sizeof(section), "%s", path);
    do {
        char *dot = strrchr(section, '.');
        *(dot ? dot : section) = '\0';
    } while (section[0] && !is_section(section));
    const char *rest = path + strlen(section) + (section[0] ? 1 : 0);
    char *word = xstrndup(rest, strcspn(rest, "."));
    struct str hint = {0};
    append_hint(&hint, section, word);
    int rc = yaml_err(name, "key '%s' is not known; %s", path, hint.data);
    str_free(&hint);
    free(word);
    return rc;
}

static int walk(const struct yaml_node *mapping, const char *section, config_walk_fn fn, void *user)
{
    for (size_t i = 0; i < mapping->n_items; i++) {
        const struct yaml_node *name = mapping->key[i], *value = mapping->item[i];
        char path[CONFIG_MAX_KEY_LEN], found[128];
        snprintf(path, sizeof(path), "%s%s%s", section, section[0] ? "." : "", name->text);
        int key = config_find_key(path), rc = 0;
        if (key >= 0)
            rc = fn(user, (size_t)key, name, value);
        else if (!is_section(path))
            rc = err_unknown(name, path);
        else if (value->kind == YAML_MAPPING)
            rc = walk(value, path, fn, user);
        else if (!yaml_is_null(value)) /* A section whose keys are all commented out is null. */
            rc = yaml_err(value, "%s is %s; expected a mapping of its keys", path,
                          yaml_describe(found, sizeof(found), value));
        if (rc != 0)
            return rc;
    }
    return 0;
}

int config_walk(const struct yaml_node *mapping, config_walk_fn fn, void *user)
{
    return walk(mapping, "", fn, user);
}
