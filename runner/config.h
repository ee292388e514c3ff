/* config.h - an experiment file, checked and resolved.
 *
 * One table in config_keys.c declares every key: its path, type, default, bounds, valid names, the
 * environment variable that sets it, and one line of documentation. Parsing, defaults, --set,
 * the environment, `plan --resolved`, the store's settings and configs/reference.yaml's test all
 * read that table; a new key is one line there and one field here.
 *
 * Precedence: --set > environment > file > inherited file > default; inside one file `fixed` >
 * section. Keys are replaced one by one, `grid` axis by axis, `zip` and `exclude` as a whole. Where
 * keys exclude each other (model.path and model.architecture; the sources of prompts), one that a
 * file gives makes the inherited other one forgotten.
 *
 * A key that something stronger than its axis of grid or zip gives (--set, the environment, a file
 * that inherits the grid) loses its axis with a warning: the experiment then runs with that one
 * value.
 */
#ifndef QUIRE_CONFIG_H
#define QUIRE_CONFIG_H

#include "engine/engine.h"
#include "runner/yaml.h"

#define CONFIG_MAX_INHERIT      16 /* depth of inherit chains                */
#define CONFIG_MAX_GRID_KEYS    32
#define CONFIG_MAX_GRID_VALUES  4096
#define CONFIG_MAX_TASKS        100000
#define CONFIG_MAX_EXCLUDES     256
#define CONFIG_MAX_REPLICATIONS 100000

#define CONFIG_MAX_ARRAY                                                                           \
    1000 /* workers: the last index under Slurm's default MaxArraySize, 1001                       \
          */

#define SETTING_AUTO (-1) /* an integer key left at `auto` */

/* Such a key for the engine, which takes 0 for `auto`. */
static inline int config_zero_if_auto(int64_t setting)
{
    return setting == SETTING_AUTO ? 0 : (int)setting;
}

enum init_choice { INIT_WEIGHTS, INIT_RANDOM };
enum fast_choice { FAST_AUTO, FAST_ON, FAST_OFF };
enum device_choice { DEVICE_CHOICE_AUTO, DEVICE_CHOICE_CPU, DEVICE_CHOICE_CUDA };
/* A name with `!` refuses to run with another kernel. */
enum attention_choice {
    ATTENTION_CHOICE_AUTO,
    ATTENTION_CHOICE_FLASH,
    ATTENTION_CHOICE_MEMORY_EFFICIENT,
    ATTENTION_CHOICE_EAGER,
    ATTENTION_CHOICE_ONLY_FLASH,
    ATTENTION_CHOICE_ONLY_MEMORY_EFFICIENT,
    ATTENTION_CHOICE_ONLY_EAGER,
};

enum preemption_choice { PREEMPTION_RECOMPUTE, PREEMPTION_SWAP };

/* The typed value of every key that a task can differ in. Strings are borrowed from the config (or
 * from the grid) and are never NULL: "" means not given. */
struct settings {
    struct {
        const char *path; /* Hugging Face directory, resolved (QUIRE_MODELS, config's folder) */
        const char *architecture; /* .json of configs/models for init: random */
        const char *tokenizer;    /* directory    */
        const char *dtype; /* auto, bfloat16, float16, float32                                 */
        int quantization;  /* enum quantization                                                */
        int init;          /* enum init_choice                                                 */
        int64_t seed;      /* of random initialisation                                         */
    } model;
    struct {
        int fast, device, attention; /* enum fast_choice, device_choice, attention_choice */
        int policy;                  /* enum scheduling_policy                            */
        int64_t block_size, max_num_seqs;
        int64_t max_num_batched_tokens, max_model_len; /* or SETTING_AUTO                 */
        int64_t num_kv_blocks, num_threads;            /* or SETTING_AUTO                 */
        double gpu_memory_utilization, swap_space;     /* swap_space: GiB                 */
        int preemption_mode;                           /* enum preemption_choice          */
        const char *kv_cache_dtype;
        bool enable_prefix_caching, enforce_eager, async_scheduling;
    } engine;
    struct {
        double temperature, top_p, min_p;
        int64_t top_k, max_tokens, n, seed;
        bool ignore_eos;
    } sampling;
    struct {
        const char *file, *field; /* text file (one prompt per line) or .jsonl with a field     */
        bool chat;                /* render each prompt as one user message                      */
        const char *system;       /* system message for chat                                    */
        int64_t limit, offset;    /* the first `limit` prompts from `offset` on; limit auto: all */
    } prompts;
};

enum schedule_choice { SCHEDULE_PACKED, SCHEDULE_EXCLUSIVE };

/* Where a value came from, for `plan --resolved`: "default", "environment USE_FAST_ENGINE",
 * "configs/demo.yaml:12:5", "--set". */
struct key_origin {
    char text[256];
};

/* Axes of the grid come first, in the order of the YAML (an inherited file's before), then those of
 * zip, group by group. */
struct grid_axis {
    const char *key;                /* "engine.attention"                          */
    size_t key_index;               /* in the key table                            */
    const struct yaml_node *values; /* sequence of scalars                         */
    const struct settings *setting; /* [values->n_items] only the key's own field is set */
    int zip_group;                  /* axes of one zip group advance together; -1: none */
    int layer;                      /* that gave it, as config.layer                    */
};

enum synthetic_lengths { LENGTHS_FIXED, LENGTHS_UNIFORM, LENGTHS_TRACE };

/* prompts.synthetic as it was written. */
struct synthetic_spec {
    int lengths;                                    /* enum synthetic_lengths              */
    int64_t num_prompts;                            /* or SETTING_AUTO: the whole trace    */
    const struct yaml_node *input_len, *output_len; /* fixed: integer or list of integers;
                                                       uniform: [low, high]; or NULL       */
    const struct yaml_node *token_ids;              /* [low, high]; NULL: all of the vocabulary */
    int64_t seed;
    const char *file, *input_column, *output_column; /* trace; "": not given */
    struct {
        int64_t input_tokens, output_tokens; /* or SETTING_AUTO: not checked */
        const char *sha256;                  /* "": not checked              */
    } expect;
};

/* The section slurm: what `quire slurm` asks a cluster for. No task depends on it. Texts are "" and
 * lists NULL where the site's own default is to hold. */
struct slurm_spec {
    const char *time, *partition, *account, *qos, *constraint, *mem; /* as sbatch takes them */
    int64_t nodes, ntasks_per_node;
    int64_t cpus_per_task;                   /* or SETTING_AUTO: the site's default               */
    int64_t gpus_per_task;                   /* 0: none                                           */
    int64_t array, array_limit;              /* workers, and how many at a time; 0: no array, all */
    const struct yaml_node *modules, *extra; /* lists of texts */
    const char *environment_file;            /* sourced        */
    int64_t signal_seconds;                  /* 0: no signal before the end */
    bool requeue;
};

struct config {
    const char *path;              /* of the file                               */
    const char *experiment;        /* its name                                  */
    const char *results;           /* database file, resolved (QUIRE_RESULTS)   */
    char *text;                    /* the file as it was read, for the store    */
    struct settings base;          /* settings before the grid                  */
    struct key_origin *origin;     /* [config_n_keys()] parallel to the key table */
    const struct yaml_node **node; /* [config_n_keys()] the value that counts, NULL: the default */
    int *layer;                    /* [config_n_keys()] private: what gave it; larger is stronger */
    int n_layers;                  /* private: files, environment variables and --set so far     */
    struct grid_axis axis[CONFIG_MAX_GRID_KEYS];
    int n_axes;
    struct exclude_rule *exclude; /* [n_excludes] private: config_is_excluded              */
    int n_excludes;
    const struct yaml_node *list;     /* prompts.list: strings or token id lists, or NULL      */
    const struct yaml_node *messages; /* prompts.messages: conversations, or NULL              */
    const struct synthetic_spec *synthetic; /* prompts.synthetic, or NULL                      */
    int64_t replications;
    int schedule;                   /* enum schedule_choice                       */
    bool allow_cpu;                 /* fallback.allow_cpu                         */
    bool allow_standard_engine;     /* fallback.allow_standard_engine        */
    struct slurm_spec slurm;        /* slurm                                         */
    struct yaml_doc *doc;           /* owns the nodes and all strings             */
    struct resolved_path *resolved; /* private: paths that were looked up already */
};

/* Reads and checks a file with its inherit chain, the environment and n_sets `key=value` texts.
 * ERR_CONFIG: "file:line:col: what; what was expected; the nearest valid name". Relative paths in a
 * file are relative to that file's folder; in --set and the environment, to the working directory.
 */
int config_load(struct config **out, const char *path, const char *const *sets, size_t n_sets);
void config_close(struct config *c);

/* Sets one task-level key from a YAML scalar: what grid, fixed and --set use. ERR_CONFIG with the
 * value's position for an unknown key or a bad value. */
int config_apply(struct config *c, struct settings *s, const char *key,
                 const struct yaml_node *value);

/* The relations between the keys of one task: one model, one source of prompts, ... ERR_CONFIG.
 * config_load checks the first point of the grid, task_list_make every one. */
int config_check_settings(const struct config *c, const struct settings *s);

/* The folder of a model that a command line names: in the working directory, then in QUIRE_MODELS;
 * the name itself where there is none. The caller frees. */
char *config_find_model(const char *name);

/* Whether an `exclude` rule names this point. */
bool config_is_excluded(const struct config *c, const struct settings *s);

/* ---- the key table ---- */
struct config_key {
    const char *path; /* "engine.max_num_seqs"                       */
    const char *type; /* "integer" (or auto, where that is the default), "number", "bool", "string",
                         "path", "one of a|b|c"; of keys not per task also "list", "mapping", ... */
    const char *default_text;
    const char *environment; /* "USE_FAST_ENGINE", or NULL                  */
    const char *doc;         /* one line                                    */
    bool per_task;           /* may stand in grid and fixed                 */
};
size_t config_n_keys(void);
const struct config_key *config_get_key(size_t i);
/* The position of a key in the table; -1: no such key. */
int config_find_key(const char *path);
/* The value of key i in s as text, as it would be written in YAML; NULL for a key that is not per
 * task. The caller frees. */
char *config_value_text(const struct settings *s, size_t i);
/* The same for any key of the experiment, before the grid (lists and mappings as JSON; "" for a key
 * that is not given and has no default). The caller frees. */
char *config_text(const struct config *c, size_t i);

/* For a key that is per task: whether it has the same value in both, and taking it over. */
bool config_same_value(const struct settings *a, const struct settings *b, size_t i);
void config_copy_value(struct settings *to, const struct settings *from, size_t i);

/* The settings as a JSON object keyed by path: the store's resolved config, and the input of a
 * task's key. The caller decrefs. */
json_t *config_settings_json(const struct settings *s);

/* Environment variables quire reads (NAME, meaning), for `doctor` and reference.yaml. */
struct config_variable {
    const char *name, *doc;
};
size_t config_n_variables(void);
const struct config_variable *config_get_variable(size_t i);
/* The value of one of them; NULL when it is not set, or empty. */
const char *config_get_environment(const char *name);

#endif
