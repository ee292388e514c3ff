/* config.c - loading an experiment file; see config.h.
 *
 * Files, the environment and --set are layers over one array: for each key of the table the node
 * that counts so far. Only when all layers are in are the nodes read into typed fields, so that a
 * value is checked once and an overridden one not at all.
 */
#include "runner/config_internal.h"
#include "runner/synthetic.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_NAME_BYTES 100 /* of an experiment: it becomes a file name */

/* ---- layers ---- */

struct layer {
    struct config *c;
    const struct yaml_node **section, **fixed; /* [config_n_keys()] */
};

static int put_once(const struct yaml_node **slot, const struct yaml_node *name,
                    const struct yaml_node *value)
{
    char where[256];
    if (*slot)
        return yaml_err(name, "'%s' is given twice (also at %s)", name->text,
                        yaml_where(where, sizeof(where), *slot));
    *slot = value;
    return 0;
}

static int put_section(void *user, size_t key, const struct yaml_node *name,
                       const struct yaml_node *value)
{
    const struct layer *layer = user;
    return put_once(&layer->section[key], name, value);
}

static int put_fixed(void *user, size_t key, const struct yaml_node *name,
                     const struct yaml_node *value)
{
    const struct layer *layer = user;
    if (!config_get_key(key)->per_task)
        return yaml_err(name, "'%s' cannot stand in fixed; write it at its own place",
                        config_get_key(key)->path);
    return put_once(&layer->fixed[key], name, value);
}

static const struct yaml_node **layer_node(const struct layer *layer, const char *path)
{
    int key = config_find_key(path);
    assert(key >= 0);
    return &layer->section[key];
}

static bool gives(const struct layer *layer, size_t key)
{
    return layer->section[key] || layer->fixed[key];
}

/* 0: none; 1: the model; 2: the prompts. */
static int source_group(enum key_source source)
{
    if (source == SOURCE_NONE)
        return 0;
    return source <= SOURCE_MODEL_ARCHITECTURE ? 1 : 2;
}

/* Forgets what lower layers say about the other alternatives of a source that this layer gives. */
static void forget_alternatives(const struct layer *layer)
{
    unsigned given = 0, groups = 0; /* bits by enum key_source; by source_group() */
    for (size_t i = 0; i < config_n_keys(); i++) {
        enum key_source source = config_row(i)->source;
        if (source == SOURCE_NONE || !gives(layer, i))
            continue;
        given |= 1u << source;
        groups |= 1u << source_group(source);
    }
    for (size_t i = 0; i < config_n_keys(); i++) {
        enum key_source source = config_row(i)->source;
        if (source != SOURCE_NONE && (groups & 1u << source_group(source)) &&
            !(given & 1u << source))
            layer->c->node[i] = NULL;
    }
    /* A file that names weights does not want the random ones of the file it inherits. */
    if (given & 1u << SOURCE_MODEL_PATH)
        layer->c->node[config_find_key("model.init")] = NULL;
}

static int check_mapping(const struct yaml_node *node, const char *key)
{
    char found[128];
    if (node->kind == YAML_MAPPING)
        return 0;
    return yaml_err(node, "%s is %s; expected a mapping", key,
                    yaml_describe(found, sizeof(found), node));
}

static int read_layer(const struct layer *layer, const struct yaml_node *root, bool *is_fixed)
{
    struct layer user = *layer;
    if (config_walk(root, put_section, &user) != 0)
        return -1;
    const struct yaml_node *fixed = *layer_node(layer, "fixed"), *grid = *layer_node(layer, "grid");
    if (fixed && !yaml_is_null(fixed) &&
        (check_mapping(fixed, "fixed") != 0 || config_walk(fixed, put_fixed, &user) != 0))
        return -1;
    if (grid && !yaml_is_null(grid) &&
        (check_mapping(grid, "grid") != 0 || config_add_grid(layer->c, grid) != 0))
        return -1;
    forget_alternatives(layer);
    for (size_t i = 0; i < config_n_keys(); i++) {
        if (!gives(layer, i))
            continue;
        is_fixed[i] = layer->fixed[i] != NULL;
        layer->c->node[i] = is_fixed[i] ? layer->fixed[i] : layer->section[i];
        layer->c->layer[i] = layer->c->n_layers;
    }
    return 0;
}

static int add_layer(struct config *c, const struct yaml_node *root, bool *is_fixed)
{
    struct layer layer = {.c = c,
                          .section = xcalloc(config_n_keys(), sizeof(struct yaml_node *)),
                          .fixed = xcalloc(config_n_keys(), sizeof(struct yaml_node *))};
    c->n_layers++;
    int rc = read_layer(&layer, root, is_fixed);
    free(layer.section);
    free(layer.fixed);
    return rc;
}

/* ---- files ---- */

static int add_file(struct config *c, const char *path, const char *text, size_t n, bool *is_fixed,
                    int depth);

static int add_inherited(struct config *c, const struct yaml_node *name, bool *is_fixed, int depth)
{
    char found[128];
    if (name->kind != YAML_SCALAR || yaml_is_null(name) || name->text[0] == '\0')
        return yaml_err(name, "inherit is %s; expected a path or a list of paths",
                        yaml_describe(found, sizeof(found), name));
    if (depth >= CONFIG_MAX_INHERIT)
        return yaml_err(name, "more than %d files inherit in a chain; does one inherit itself?",
                        CONFIG_MAX_INHERIT);
    const char *path = config_resolve_path(c, name, KEY_PATH);
    size_t n;
    char *text = file_read(path, &n);
    if (!text)
        return yaml_err(name, "inherit: %s", err_get());
    int rc = add_file(c, path, text, n, is_fixed, depth);
    free(text);
    return rc;
}

static int add_file(struct config *c, const char *path, const char *text, size_t n, bool *is_fixed,
                    int depth)
{
    const struct yaml_node *root = yaml_parse(c->doc, path, text, n);
    if (!root)
        return -1;
    const struct yaml_node *inherit = yaml_find(root, "inherit");
    if (inherit && inherit->kind != YAML_SEQUENCE) {
        if (add_inherited(c, inherit, is_fixed, depth + 1) != 0)
            return -1;
    } else if (inherit) {
        for (size_t i = 0; i < inherit->n_items; i++)
            if (add_inherited(c, inherit->item[i], is_fixed, depth + 1) != 0)
                return -1;
    }
    return add_layer(c, root, is_fixed);
}

static int add_main_file(struct config *c, bool *is_fixed)
{
    size_t n;
    c->text = file_read(c->path, &n);
    if (!c->text)
        return err_set(ERR_CONFIG, "%s", err_get());
    return add_file(c, c->path, c->text, n, is_fixed, 0);
}

/* ---- the environment and --set ---- */

static int add_environment(struct config *c, bool *is_fixed)
{
    for (size_t i = 0; i < config_n_keys(); i++) {
        const struct config_key *key = config_get_key(i);
        const char *value = key->environment ? getenv(key->environment) : NULL;
        if (!value || !*value)
            continue;
        /* Shell scripts write 1 and 0 where YAML writes true and false. */
        if (strcmp(key->path, "engine.fast") == 0 && strcmp(value, "1") == 0)
            value = "true";
        else if (strcmp(key->path, "engine.fast") == 0 && strcmp(value, "0") == 0)
            value = "false";
        char origin[CONFIG_MAX_KEY_LEN];
        snprintf(origin, sizeof(origin), "environment %s", key->environment);
        struct yaml_node *node = yaml_value(c->doc, origin, value);
        if (!node || add_layer(c, yaml_wrap(c->doc, key->path, node), is_fixed) != 0)
            return -1;
    }
    return 0;
}

static int add_set(struct config *c, const char *set, bool *is_fixed)
{
    const char *equals = strchr(set, '=');
    if (!equals || equals == set)
        return err_set(ERR_CONFIG, "--set %s: expected KEY=VALUE, as in sampling.max_tokens=64",
                       set);
    if (strncmp(set, "inherit=", 8) == 0)
        return err_set(ERR_CONFIG, "--set inherit: only a file can inherit");
    struct yaml_node *node = yaml_value(c->doc, "--set", equals + 1);
    if (!node)
        return -1;
    char *path = xstrndup(set, (size_t)(equals - set));
    /* grid.engine.attention is the key engine.attention of the mapping grid. */
    bool in_grid = strncmp(path, "grid.", 5) == 0;
    struct yaml_node *root = yaml_wrap(c->doc, in_grid ? path + 5 : path, node);
    if (in_grid)
        root = yaml_wrap(c->doc, "grid", root);
    free(path);
    return add_layer(c, root, is_fixed);
}

static int add_layers(struct config *c, const char *const *sets, size_t n_sets, bool *is_fixed)
{
    if (add_main_file(c, is_fixed) != 0 || add_environment(c, is_fixed) != 0)
        return -1;
    for (size_t i = 0; i < n_sets; i++)
        if (add_set(c, sets[i], is_fixed) != 0)
            return -1;
    return 0;
}

/* ---- typed values ---- */

static void *target_of(struct config *c, struct synthetic_spec *synthetic, enum key_target target)
{
    if (target == TARGET_SETTINGS)
        return &c->base;
    return target == TARGET_CONFIG ? (void *)c : synthetic;
}

static void set_default(struct config *c, void *target, size_t i)
{
    const struct key_row *row = config_row(i);
    const char *text = row->key.default_text;
    if (row->kind == KEY_NODE)
        return;
    struct yaml_node *node = yaml_value(c->doc, "default", text);
    /* Plain "" is null, which is no text. */
    node->quoted = text[0] == '\0';
    int rc = config_read_value(c, target, i, node);
    assert(rc == 0);
    (void)rc;
}

static int read_values(struct config *c)
{
    struct synthetic_spec *synthetic = yaml_doc_alloc(c->doc, 1, sizeof(*synthetic));
    for (size_t i = 0; i < config_n_keys(); i++) {
        const struct key_row *row = config_row(i);
        struct key_origin *origin = &c->origin[i];
        snprintf(origin->text, sizeof(origin->text), "default");
        if (c->node[i])
            yaml_where(origin->text, sizeof(origin->text), c->node[i]);
        if (row->kind == KEY_STRUCTURE)
            continue;
        void *target = target_of(c, synthetic, row->target);
        if (!c->node[i])
            set_default(c, target, i);
        else if (config_read_value(c, target, i, c->node[i]) != 0)
            return -1;
        if (c->node[i] && row->source == SOURCE_PROMPTS_SYNTHETIC)
            c->synthetic = synthetic;
    }
    return 0;
}

/* ---- names of the experiment and of its database ---- */

static int err_at_key(const struct config *c, const char *key, const char *text)
{
    const struct yaml_node *node = c->node[config_find_key(key)];
    if (node)
        return yaml_err(node, "%s", text);
    return err_set(ERR_CONFIG, "%s: %s", c->path, text);
}

static int name_experiment(struct config *c)
{
    if (c->experiment[0] == '\0') {
        const char *slash = strrchr(c->path, '/');
        char *name = xstrdup(slash ? slash + 1 : c->path);
        char *dot = strrchr(name, '.');
        if (dot && dot != name)
            *dot = '\0';
        c->experiment = yaml_doc_strdup(c->doc, name);
        free(name);
    }
    if (c->experiment[0] == '.' || strchr(c->experiment, '/') ||
        strlen(c->experiment) > MAX_NAME_BYTES)
        return err_at_key(c, "experiment",
                          "the experiment's name becomes a file name: expected at most 100 bytes, "
                          "no '/' and no leading '.'");
    return 0;
}

static void name_results(struct config *c)
{
    const char *given = c->results[0] ? c->results : "results";
    size_t n = strlen(given);
    if (n > 3 && strcmp(given + n - 3, ".db") == 0)
        return;
    char *file = xasprintf("%s.db", c->experiment);
    char *path = path_join(given, file);
    c->results = yaml_doc_strdup(c->doc, path);
    free(path);
    free(file);
}

/* ---- relations ---- */

static int check_model(const struct config *c, const struct settings *s)
{
    bool has_path = s->model.path[0] != '\0', has_arch = s->model.architecture[0] != '\0';
    if (!has_path && !has_arch)
        return err_set(ERR_CONFIG,
                       "%s: no model is given; write `model: {path: DIRECTORY}` (a Hugging Face "
                       "directory) or `model: {architecture: FILE.json, init: random}`",
                       c->path);
    if (has_path && has_arch)
        return err_at_key(c, "model.architecture",
                          "model.path and model.architecture are both given; expected one");
    if (has_arch && s->model.init != INIT_RANDOM)
        return err_at_key(c, "model.architecture",
                          "model.architecture has no weights; expected `init: random` beside it, "
                          "or model.path");
    if (has_path && s->model.init != INIT_WEIGHTS)
        return err_at_key(c, "model.init",
                          "init: random draws the weights of a model.architecture; model.path "
                          "has its own (for its shape alone: architecture: DIRECTORY/config.json)");
    return 0;
}

static int check_sources(const struct config *c, const struct settings *s)
{
    const struct {
        const char *key;
        bool given;
    } sources[] = {{"prompts.file", s->prompts.file[0] != '\0'},
                   {"prompts.list", c->list != NULL},
                   {"prompts.messages", c->messages != NULL},
                   {"prompts.synthetic", c->synthetic != NULL}};
    const char *first = NULL;
    for (size_t i = 0; i < ARRAY_LEN(sources); i++) {
        if (sources[i].given && first)
            return err_set(ERR_CONFIG,
                           "%s: %s and %s are both given; expected one source of prompts", c->path,
                           first, sources[i].key);
        if (sources[i].given)
            first = sources[i].key;
    }
    if (!first)
        return err_set(ERR_CONFIG,
                       "%s: no prompts are given; write one of prompts.file, prompts.list, "
                       "prompts.messages and prompts.synthetic",
                       c->path);
    return 0;
}

static bool has_suffix(const char *path, const char *suffix)
{
    size_t n = strlen(path), m = strlen(suffix);
    return n >= m && strcasecmp(path + n - m, suffix) == 0;
}

/* Taken as text, each line of these would be a prompt that nobody meant. */
static int check_file_type(const struct config *c, const char *file)
{
    static const char *const others[] = {".json", ".csv", ".tsv", ".parquet", ".gz"};
    for (size_t i = 0; i < ARRAY_LEN(others); i++)
        if (has_suffix(file, others[i]))
            return err_at_key(c, "prompts.file",
                              "prompts.file is neither text, one prompt per line, nor .jsonl with "
                              "prompts.field; convert it to one of these");
    return 0;
}

static int check_prompt_settings(const struct config *c, const struct settings *s)
{
    const char *file = s->prompts.file;
    bool is_jsonl = has_suffix(file, ".jsonl");
    if (check_file_type(c, file) != 0)
        return -1;
    if (is_jsonl && s->prompts.field[0] == '\0')
        return err_at_key(c, "prompts.file",
                          "a .jsonl file needs prompts.field: the name of the field that is the "
                          "prompt");
    if (!is_jsonl && s->prompts.field[0] != '\0')
        return err_at_key(c, "prompts.field", "prompts.field is for a prompts.file of type .jsonl");
    if (s->prompts.chat && c->synthetic)
        return err_at_key(c, "prompts.chat",
                          "prompts.chat needs text; synthetic prompts are token ids");
    if (s->prompts.system[0] != '\0' && !s->prompts.chat && !c->messages)
        return err_at_key(c, "prompts.system",
                          "prompts.system needs prompts.chat: true (or prompts.messages)");
    return 0;
}

int config_check_settings(const struct config *c, const struct settings *s)
{
    if (check_model(c, s) != 0 || check_sources(c, s) != 0)
        return -1;
    return check_prompt_settings(c, s);
}

static int check_first_point(const struct config *c)
{
    struct settings s = c->base;
    for (int i = 0; i < c->n_axes; i++)
        config_copy_value(&s, &c->axis[i].setting[0], c->axis[i].key_index);
    return config_check_settings(c, &s);
}

/* ---- public ---- */

static int load(struct config *c, const char *const *sets, size_t n_sets, bool *is_fixed)
{
    if (config_check_variables() != 0 || add_layers(c, sets, n_sets, is_fixed) != 0 ||
        read_values(c) != 0 || name_experiment(c) != 0)
        return -1;
    name_results(c);
    if (config_finish_grid(c, is_fixed) != 0 || config_check_prompts(c) != 0 ||
        config_check_slurm(c) != 0)
        return -1;
    if (c->synthetic && synthetic_check(c) != 0)
        return -1;
    return check_first_point(c);
}

int config_load(struct config **out, const char *path, const char *const *sets, size_t n_sets)
{
    struct config *c = xcalloc(1, sizeof(*c));
    *out = NULL;
    c->doc = yaml_doc_open();
    c->path = yaml_doc_strdup(c->doc, path);
    c->node = yaml_doc_alloc(c->doc, config_n_keys(), sizeof(struct yaml_node *));
    c->layer = yaml_doc_alloc(c->doc, config_n_keys(), sizeof(int));
    c->origin = yaml_doc_alloc(c->doc, config_n_keys(), sizeof(struct key_origin));
    bool *is_fixed = xcalloc(config_n_keys(), sizeof(bool));
    int rc = load(c, sets, n_sets, is_fixed);
    free(is_fixed);
    if (rc != 0) {
        config_close(c);
        return -1;
    }
    *out = c;
    return 0;
}

void config_close(struct config *c)
{
    if (!c)
        return;
    yaml_doc_close(c->doc);
    free(c->text);
    free(c);
}
