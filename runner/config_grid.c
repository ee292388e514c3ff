/* config_grid.c - grid, zip and exclude: from YAML to checked axes and rules. */
#include "runner/config_internal.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* ---- axes ---- */

static struct grid_axis *find_axis(struct config *c, const char *key)
{
    for (int i = 0; i < c->n_axes; i++)
        if (strcmp(c->axis[i].key, key) == 0)
            return &c->axis[i];
    return NULL;
}

static int check_axis(size_t key, const struct yaml_node *name, const struct yaml_node *values)
{
    const struct config_key *k = config_get_key(key);
    char found[128];
    if (!k->per_task)
        return yaml_err(name, "'%s' is the same for all tasks; it cannot be an axis", k->path);
    if (values->kind != YAML_SEQUENCE)
        return yaml_err(values, "the values of %s are %s; expected a list", k->path,
                        yaml_describe(found, sizeof(found), values));
    if (values->n_items == 0)
        return yaml_err(values, "the list of values of %s is empty", k->path);
    if (values->n_items > CONFIG_MAX_GRID_VALUES)
        return yaml_err(values, "%zu values of %s; expected at most %d", values->n_items, k->path,
                        CONFIG_MAX_GRID_VALUES);
    return 0;
}

/* layer: that gave the values. */
static int push_axis(struct config *c, size_t key, const struct yaml_node *name,
                     const struct yaml_node *values, int zip_group, int layer)
{
    if (c->n_axes >= CONFIG_MAX_GRID_KEYS)
        return yaml_err(name, "more than %d keys in grid and zip", CONFIG_MAX_GRID_KEYS);
    c->axis[c->n_axes++] = (struct grid_axis){.key = config_get_key(key)->path,
                                              .key_index = key,
                                              .values = values,
                                              .zip_group = zip_group,
                                              .layer = layer};
    return 0;
}

static int add_grid_key(void *user, size_t key, const struct yaml_node *name,
                        const struct yaml_node *values)
{
    struct config *c = user;
    if (check_axis(key, name, values) != 0)
        return -1;
    struct grid_axis *axis = find_axis(c, config_get_key(key)->path);
    if (!axis)
        return push_axis(c, key, name, values, -1, c->n_layers);
    axis->values = values;
    axis->layer = c->n_layers;
    return 0;
}

int config_add_grid(struct config *c, const struct yaml_node *grid)
{
    return config_walk(grid, add_grid_key, c);
}

/* ---- zip ---- */

struct zip_reader {
    struct config *c;
    int group;
    const struct yaml_node *first; /* values of the group's first key */
};

static int add_zip_key(void *user, size_t key, const struct yaml_node *name,
                       const struct yaml_node *values)
{
    struct zip_reader *zip = user;
    char where[256];
    if (check_axis(key, name, values) != 0)
        return -1;
    const struct grid_axis *other = find_axis(zip->c, config_get_key(key)->path);
    if (other)
        return yaml_err(name, "'%s' is an axis already (%s)", other->key,
                        yaml_where(where, sizeof(where), other->values));
    if (!zip->first)
        zip->first = values;
    if (values->n_items != zip->first->n_items)
        return yaml_err(values, "%zu values of %s in a zip of %zu (%s); expected equally many",
                        values->n_items, name->text, zip->first->n_items,
                        yaml_where(where, sizeof(where), zip->first));
    int layer = zip->c->layer[config_find_key("zip")];
    return push_axis(zip->c, key, name, values, zip->group, layer);
}

static int add_zip_group(struct config *c, const struct yaml_node *mapping, int group)
{
    struct zip_reader zip = {.c = c, .group = group};
    if (mapping->kind != YAML_MAPPING)
        return yaml_err(mapping, "zip takes a mapping of lists, or a list of such mappings");
    return config_walk(mapping, add_zip_key, &zip);
}

static int add_zip(struct config *c, const struct yaml_node *zip)
{
    if (zip->kind != YAML_SEQUENCE)
        return add_zip_group(c, zip, 0);
    for (size_t i = 0; i < zip->n_items; i++)
        if (add_zip_group(c, zip->item[i], (int)i) != 0)
            return -1;
    return 0;
}

/* ---- axes that something stronger takes away ---- */

/* A value beside the axis, in the same file, is only what tasks without the axis would have. */
static bool is_overridden(const struct config *c, const struct grid_axis *axis)
{
    return c->node[axis->key_index] && c->layer[axis->key_index] > axis->layer;
}

static void drop_overridden_axes(struct config *c)
{
    int kept = 0;
    for (int i = 0; i < c->n_axes; i++) {
        const struct grid_axis *axis = &c->axis[i];
        char origin[256], where[256], found[128];
        if (!is_overridden(c, axis)) {
            c->axis[kept++] = *axis;
            continue;
        }
        const struct yaml_node *node = c->node[axis->key_index];
        log_warning("%s sets %s to %s for all tasks; its values at %s are not used",
                    yaml_where(origin, sizeof(origin), node), axis->key,
                    yaml_describe(found, sizeof(found), node),
                    yaml_where(where, sizeof(where), axis->values));
    }
    c->n_axes = kept;
}

static int check_not_fixed(const struct config *c, const bool *is_fixed)
{
    for (int i = 0; i < c->n_axes; i++) {
        char where[256];
        if (is_fixed[c->axis[i].key_index])
            return yaml_err(c->axis[i].values, "%s has values here and is fixed at %s; keep one",
                            c->axis[i].key,
                            yaml_where(where, sizeof(where), c->node[c->axis[i].key_index]));
    }
    return 0;
}

/* ---- values ---- */

static int read_axis(struct config *c, struct grid_axis *axis)
{
    size_t n = axis->values->n_items;
    struct settings *setting = yaml_doc_alloc(c->doc, n, sizeof(*setting));
    for (size_t i = 0; i < n; i++)
        if (config_apply(c, &setting[i], axis->key, axis->values->item[i]) != 0)
            return -1;
    axis->setting = setting;
    return 0;
}

/* The end of the axes that advance together with axis `first`. */
static int group_end(const struct config *c, int first)
{
    int end = first + 1;
    if (c->axis[first].zip_group >= 0)
        while (end < c->n_axes && c->axis[end].zip_group == c->axis[first].zip_group)
            end++;
    return end;
}

static bool same_rows(const struct config *c, int first, int end, size_t a, size_t b)
{
    for (int i = first; i < end; i++) {
        const struct grid_axis *axis = &c->axis[i];
        if (!config_same_value(&axis->setting[a], &axis->setting[b], axis->key_index))
            return false;
    }
    return true;
}

/* Equal points would be one task twice. */
static int check_distinct(const struct config *c)
{
    int end;
    for (int first = 0; first < c->n_axes; first = end) {
        end = group_end(c, first);
        const struct grid_axis *axis = &c->axis[first];
        for (size_t b = 1; b < axis->values->n_items; b++) {
            for (size_t a = 0; a < b; a++) {
                char where[256];
                if (!same_rows(c, first, end, a, b))
                    continue;
                return yaml_err(axis->values->item[b], "the same value of %s%s as at %s", axis->key,
                                axis->zip_group >= 0 ? " (and all that is zipped with it)" : "",
                                yaml_where(where, sizeof(where), axis->values->item[a]));
            }
        }
    }
    return 0;
}

/* ---- exclude ---- */

struct exclude_condition {
    size_t key;
    struct settings *setting; /* [n_values] only the key's own field is set */
    size_t n_values;
};

struct exclude_rule {
    struct exclude_condition *condition; /* all must hold */
    size_t n_conditions;
};

struct exclude_reader {
    struct config *c;
    struct exclude_rule *rule;
};

static int add_condition(void *user, size_t key, const struct yaml_node *name,
                         const struct yaml_node *value)
{
    struct exclude_reader *reader = user;
    struct exclude_rule *rule = reader->rule;
    const char *path = config_get_key(key)->path;
    if (!config_get_key(key)->per_task)
        return yaml_err(name, "'%s' is the same for all tasks; it cannot exclude any", path);
    if (rule->n_conditions >= config_n_keys())
        return yaml_err(name, "more than %zu keys", config_n_keys());
    bool is_list = value->kind == YAML_SEQUENCE;
    struct exclude_condition *condition = &rule->condition[rule->n_conditions++];
    condition->key = key;
    condition->n_values = is_list ? value->n_items : 1;
    condition->setting =
        yaml_doc_alloc(reader->c->doc, condition->n_values, sizeof(struct settings));
    for (size_t i = 0; i < condition->n_values; i++)
        if (config_apply(reader->c, &condition->setting[i], path,
                         is_list ? value->item[i] : value) != 0)
            return -1;
    return 0;
}

static int read_exclude(struct config *c, const struct yaml_node *exclude)
{
    char found[128];
    if (exclude->kind != YAML_SEQUENCE)
        return yaml_err(exclude, "exclude is %s; expected a list of mappings",
                        yaml_describe(found, sizeof(found), exclude));
    if (exclude->n_items > CONFIG_MAX_EXCLUDES)
        return yaml_err(exclude, "%zu rules; expected at most %d", exclude->n_items,
                        CONFIG_MAX_EXCLUDES);
    c->exclude = yaml_doc_alloc(c->doc, exclude->n_items, sizeof(struct exclude_rule));
    for (size_t i = 0; i < exclude->n_items; i++) {
        const struct yaml_node *item = exclude->item[i];
        if (item->kind != YAML_MAPPING || item->n_items == 0)
            return yaml_err(item, "a rule is %s; expected key: value or key: [values]",
                            item->kind == YAML_MAPPING ? "empty"
                                                       : yaml_describe(found, sizeof(found), item));
        struct exclude_reader reader = {.c = c, .rule = &c->exclude[c->n_excludes++]};
        reader.rule->condition =
            yaml_doc_alloc(c->doc, config_n_keys(), sizeof(struct exclude_condition));
        if (config_walk(item, add_condition, &reader) != 0)
            return -1;
    }
    return 0;
}

static bool condition_holds(const struct exclude_condition *condition, const struct settings *s)
{
    for (size_t i = 0; i < condition->n_values; i++)
        if (config_same_value(s, &condition->setting[i], condition->key))
            return true;
    return false;
}

static bool rule_holds(const struct exclude_rule *rule, const struct settings *s)
{
    for (size_t i = 0; i < rule->n_conditions; i++)
        if (!condition_holds(&rule->condition[i], s))
            return false;
    return true;
}

bool config_is_excluded(const struct config *c, const struct settings *s)
{
    for (int i = 0; i < c->n_excludes; i++)
        if (rule_holds(&c->exclude[i], s))
            return true;
    return false;
}

/* ---- all of it ---- */

static const struct yaml_node *given_node(const struct config *c, const char *path)
{
    int key = config_find_key(path);
    assert(key >= 0);
    const struct yaml_node *node = c->node[key];
    return node && !yaml_is_null(node) ? node : NULL;
}

int config_finish_grid(struct config *c, const bool *is_fixed)
{
    const struct yaml_node *zip = given_node(c, "zip"), *exclude = given_node(c, "exclude");
    if (zip && add_zip(c, zip) != 0)
        return -1;
    drop_overridden_axes(c);
    if (check_not_fixed(c, is_fixed) != 0)
        return -1;
    for (int i = 0; i < c->n_axes; i++)
        if (read_axis(c, &c->axis[i]) != 0)
            return -1;
    if (check_distinct(c) != 0)
        return -1;
    return exclude ? read_exclude(c, exclude) : 0;
}
