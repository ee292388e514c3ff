/* config.h - an experiment file, checked and resolved.
 *
 * One table in config.c declares every key: its path, type, default, bounds, valid names, the
 * environment variable that sets it, and one line of documentation. Parsing, defaults, --set,
 * the environment, `plan --resolved`, the store's settings and configs/reference.yaml's test all
 * read that table; a new key is one line there and one field here.
 *
 * Precedence: --set > environment > file > inherited file > default.
 */
#ifndef QUIRE_CONFIG_H
#define QUIRE_CONFIG_H

#include "engine/engine.h"
#include "runner/yaml.h"

#define CONFIG_MAX_INHERIT      16 /* depth of inherit chains                */
#define CONFIG_MAX_GRID_KEYS    32
#define CONFIG_MAX_GRID_VALUES  4096
#define CONFIG_MAX_TASKS        1000000
#define CONFIG_MAX_EXCLUDES     256
#define CONFIG_MAX_REPLICATIONS 100000

#define SETTING_AUTO (-1) /* an integer key left at `auto` */

enum init_choice { INIT_WEIGHTS, INIT_RANDOM };
enum fast_choice { FAST_AUTO, FAST_ON, FAST_OFF };
enum device_choice { DEVICE_CHOICE_AUTO, DEVICE_CHOICE_CPU, DEVICE_CHOICE_CUDA };
enum attention_choice { ATTENTION_CHOICE_AUTO, ATTENTION_CHOICE_FLASH, ATTENTION_CHOICE_EAGER };

/* The typed value of every key that a task can differ in. Strings are borrowed from the config (or
 * from the grid) and are never NULL: "" means not given. */
struct settings {
    struct {
        const char *path; /* Hugging Face directory, resolved (QUIRE_MODELS, config's folder) */
        const char *architecture; /* .json of configs/models for init: random */
        const char *tokenizer;    /* directory    */
        const char *dtype; /* auto, bfloat16, float16, float32                                 */
        int init;          /* enum init_choice                                                 */
        int64_t seed;      /* of random initialisation                                         */
    } model;
    struct {
        int fast, device, attention; /* enum fast_choice, device_choice, attention_choice */
        int policy;                  /* enum scheduling_policy                            */
        int64_t block_size, max_num_seqs, max_num_batched_tokens;
        int64_t max_model_len, num_kv_blocks, num_threads; /* or SETTING_AUTO             */
        double gpu_memory_utilization;
        const char *kv_cache_dtype;
        bool enable_prefix_caching;
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

struct grid_axis {
    const char *key;                /* "engine.attention"                          */
    const struct yaml_node *values; /* sequence of scalars                        */
    int zip_group;                  /* axes of one zip group advance together; -1: none */
};

struct config {
    const char *path;          /* of the file                               */
    const char *experiment;    /* its name                                  */
    const char *results;       /* database file, resolved (QUIRE_RESULTS)   */
    char *text;                /* the file as it was read, for the store    */
    struct settings base;      /* settings before the grid                  */
    struct key_origin *origin; /* [config_n_keys()] parallel to the key table */
    struct grid_axis axis[CONFIG_MAX_GRID_KEYS];
    int n_axes;
    const struct yaml_node *exclude;   /* sequence of mappings key -> value or values, or NULL */
    const struct yaml_node *list;      /* prompts.list: strings or token id lists, or NULL      */
    const struct yaml_node *messages;  /* prompts.messages: conversations, or NULL              */
    const struct yaml_node *synthetic; /* prompts.synthetic: mapping, or NULL                   */
    int64_t replications;
    int schedule;               /* enum schedule_choice                       */
    bool allow_cpu;             /* fallback.allow_cpu                         */
    bool allow_standard_engine; /* fallback.allow_standard_engine        */
    struct yaml_doc *doc;       /* owns the nodes                             */
    void *strings;              /* owns resolved strings; private             */
};

/* Reads and checks a file with its inherit chain, the environment and n_sets `key=value` texts.
 * ERR_CONFIG: "file:line:col: what; what was expected; the nearest valid name". Relative paths in a
 * file are relative to that file's folder; in --set and the environment, to the working directory.
 */
int config_load(struct config **out, const char *path, const char *const *sets, size_t n_sets);
void config_close(struct config *c);

/* Sets one task-level key from a YAML scalar: what grid, fixed and --set use. `at` gives the
 * position for messages. */
int config_apply(struct config *c, struct settings *s, const char *key,
                 const struct yaml_node *value);

/* ---- the key table ---- */
struct config_key {
    const char *path; /* "engine.max_num_seqs"                       */
    const char *type; /* "integer", "number", "bool", "string", "path", "one of a|b|c" */
    const char *default_text;
    const char *environment; /* "USE_FAST_ENGINE", or NULL                  */
    const char *doc;         /* one line                                    */
    bool per_task;           /* may stand in grid and fixed                 */
};
size_t config_n_keys(void);
const struct config_key *config_get_key(size_t i);
/* The value of key i in s as text, as it would be written in YAML. The caller frees. */
char *config_value_text(const struct settings *s, size_t i);

/* The settings as a JSON object keyed by path: the store's resolved config, and the input of a
 * task's key. The caller decrefs. */
json_t *config_settings_json(const struct settings *s);

/* Environment variables quire reads (NAME, meaning), for `doctor` and reference.yaml. */
struct config_variable {
    const char *name, *doc;
};
size_t config_n_variables(void);
const struct config_variable *config_get_variable(size_t i);

#endif
