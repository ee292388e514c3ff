/* config_internal.h - what the files of config.c share: rows of the key table, walking a mapping by
 * key, reading a value into its field. Not for other modules.
 */
#ifndef QUIRE_CONFIG_INTERNAL_H
#define QUIRE_CONFIG_INTERNAL_H

#include "runner/config.h"

#define CONFIG_MAX_KEY_LEN 128

/* The C type of a key's field, and how its text is read. */
enum key_kind {
    KEY_INTEGER,    /* int64_t; SETTING_AUTO for `auto` where or_auto allows it */
    KEY_NUMBER,     /* double                                                   */
    KEY_BOOL,       /* bool                                                     */
    KEY_STRING,     /* const char *                                             */
    KEY_NAME,       /* const char *, one of the names in the key's type         */
    KEY_CHOICE,     /* int: the position among the names in the key's type      */
    KEY_PATH,       /* const char *, relative to the file that contains it      */
    KEY_MODEL_PATH, /* the same; also looked for in QUIRE_MODELS                */
    KEY_NODE,       /* const struct yaml_node *: a list, checked elsewhere      */
    KEY_STRUCTURE,  /* no field: shapes the experiment (grid, inherit, ...)     */
};

enum key_target { TARGET_SETTINGS, TARGET_CONFIG, TARGET_SYNTHETIC };

/* Keys that stand for alternatives: of each of the two groups a task has exactly one. */
enum key_source {
    SOURCE_NONE,
    SOURCE_MODEL_PATH,
    SOURCE_MODEL_ARCHITECTURE,
    SOURCE_PROMPTS_FILE,
    SOURCE_PROMPTS_LIST,
    SOURCE_PROMPTS_MESSAGES,
    SOURCE_PROMPTS_SYNTHETIC,
};

struct key_row {
    struct config_key key;
    enum key_kind kind;
    enum key_target target;
    size_t offset; /* of the field in the target's struct */
    enum key_source source;
    int64_t min, max; /* of integers and numbers, both included; max INT64_MAX: no upper bound */
    int64_t multiple; /* integers: 0 or what divides the value */
    bool above_min;   /* numbers: min itself is not allowed    */
    bool or_auto;
};

const struct key_row *config_row(size_t i);

/* Checks the environment variables that are no keys (QUIRE_LOG, QUIRE_CPU_ISA). ERR_CONFIG. */
int config_check_variables(void);

/* Calls fn for each key of a mapping, nested (engine: {attention: x}) or dotted (engine.attention:
 * x). name: the node of the key's last word. Unknown keys: ERR_CONFIG with the nearest one. */
typedef int (*config_walk_fn)(void *user, size_t key, const struct yaml_node *name,
                              const struct yaml_node *value);
int config_walk(const struct yaml_node *mapping, config_walk_fn fn, void *user);

/* Reads a value into the field of key i in target (a struct settings, config or synthetic_spec,
 * as the row says). ERR_CONFIG: the key, what was found, what was expected. */
int config_read_value(struct config *c, void *target, size_t i, const struct yaml_node *value);

/* The value of key i in its target as YAML text. The caller frees. */
char *config_field_text(const void *target, size_t i);

/* The existing path that a relative path stands for; paths in values without a file are relative to
 * the working directory. Borrowed from c, remembered per node. */
const char *config_resolve_path(struct config *c, const struct yaml_node *value,
                                enum key_kind kind);

/* config_grid.c. A layer's grid replaces the axes it names and adds the others. */
int config_add_grid(struct config *c, const struct yaml_node *grid);
/* After all layers: zip, overridden axes, the axes' values, exclude. is_fixed: [config_n_keys()] */
int config_finish_grid(struct config *c, const bool *is_fixed);

/* config_prompts.c: the shape of prompts.list and prompts.messages. */
int config_check_prompts(const struct config *c);

/* config_slurm.c: the section slurm, beyond what the table can say. */
int config_check_slurm(const struct config *c);

#endif
