/* config_values.c - values of the keys: from YAML into their typed fields and back to text and
 * JSON; paths looked up where users keep models.
 */
#include "runner/config_internal.h"

#include <assert.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NAMES    8 /* of a key that is one of several names */
#define MAX_NAME_LEN 32

/* ---- names of choices ---- */

/* The names in a type "one of a|b|c". */
struct names {
    char text[MAX_NAMES][MAX_NAME_LEN];
    const char *name[MAX_NAMES];
    size_t n;
};

static void split_names(struct names *out, const char *type)
{
    const char *rest = type + strlen("one of ");
    out->n = 0;
    for (;;) {
        size_t len = strcspn(rest, "|");
        assert(out->n < MAX_NAMES && len < MAX_NAME_LEN);
        memcpy(out->text[out->n], rest, len);
        out->text[out->n][len] = '\0';
        out->name[out->n] = out->text[out->n];
        out->n++;
        if (rest[len] == '\0')
            return;
        rest += len + 1;
    }
}

static int find_name(const struct names *names, const char *text)
{
    for (size_t i = 0; i < names->n; i++)
        if (strcmp(names->name[i], text) == 0)
            return (int)i;
    return -1;
}

/* ---- messages ---- */

static void append_bounds(struct str *out, const struct key_row *row)
{
    if (row->max == INT64_MAX)
        str_appendf(out, "of at least %lld", (long long)row->min);
    else if (row->above_min)
        str_appendf(out, "above %lld, up to %lld", (long long)row->min, (long long)row->max);
    else
        str_appendf(out, "from %lld to %lld", (long long)row->min, (long long)row->max);
}

/* Appends what a value of the key should have been. */
static void append_expected(struct str *out, const struct key_row *row, const char *found)
{
    struct names names;
    const char *nearest;
    switch (row->kind) {
    case KEY_INTEGER:
        if (row->multiple > 0)
            str_appendf(out, "a multiple of %lld ", (long long)row->multiple);
        else
            str_append_c(out, "an integer ");
        append_bounds(out, row);
        str_append_c(out, row->or_auto ? ", or auto" : "");
        break;
    case KEY_NUMBER:
        str_append_c(out, "a number ");
        append_bounds(out, row);
        break;
    case KEY_BOOL: str_append_c(out, "true or false"); break;
    case KEY_NAME:
    case KEY_CHOICE:
        split_names(&names, row->key.type);
        str_append_c(out, "one of ");
        for (size_t i = 0; i < names.n; i++)
            str_appendf(out, "%s%s", i > 0 ? ", " : "", names.name[i]);
        nearest = found ? nearest_name(found, names.name, names.n) : NULL;
        if (nearest)
            str_appendf(out, "; did you mean '%s'?", nearest);
        break;
    case KEY_STRING: str_append_c(out, "a text"); break;
    case KEY_PATH:
    case KEY_MODEL_PATH: str_append_c(out, "a path"); break;
    case KEY_NODE:
    case KEY_STRUCTURE: str_appendf(out, "a %s", row->key.type); break;
    }
}

static int err_value(const struct key_row *row, const struct yaml_node *value)
{
    struct str expected = {0};
    char found[128];
    append_expected(&expected, row, value->kind == YAML_SCALAR ? value->text : NULL);
    int rc = yaml_err(value, "%s is %s; expected %s", row->key.path,
                      yaml_describe(found, sizeof(found), value), expected.data);
    str_free(&expected);
    return rc;
}

/* ---- paths ---- */

struct resolved_path {
    const struct yaml_node *value;
    enum key_kind kind;
    const char *path;
    struct resolved_path *next;
};

/* org/name as the one word in which folders of models spell it: org--name. */
static char *flat_name(const char *name)
{
    struct str flat = {0};
    str_append_c(&flat, "");
    for (const char *p = name; *p; p++)
        str_append(&flat, *p == '/' ? "--" : p, *p == '/' ? 2 : 1);
    return flat.data;
}

/* The snapshot that refs/main names in a folder of the hub cache; without that file the last one
 * by name. NULL when there is none. The caller frees. */
static char *find_snapshot(const char *folder)
{
    char *ref_path = path_join(folder, "refs/main");
    char *snapshots = path_join(folder, "snapshots");
    char *ref = file_exists(ref_path) ? file_read(ref_path, NULL) : NULL;
    char *found = NULL;
    if (ref) {
        ref[strcspn(ref, " \r\n")] = '\0';
        found = path_join(snapshots, ref);
    }
    struct dirent **entry;
    int n = ref ? 0 : scandir(snapshots, &entry, NULL, alphasort);
    if (n > 0) {
        if (entry[n - 1]->d_name[0] != '.')
            found = path_join(snapshots, entry[n - 1]->d_name);
        for (int i = 0; i < n; i++)
            free(entry[i]);
        free(entry);
    }
    free(ref);
    free(snapshots);
    free(ref_path);
    return found;
}

/* Frees the path and returns NULL when there is no such folder. */
static char *keep_if_dir(char *path)
{
    if (path && dir_exists(path))
        return path;
    free(path);
    return NULL;
}

static char *find_in_models(const char *name)
{
    const char *models = getenv("QUIRE_MODELS");
    if (!models || !*models || name[0] == '/')
        return NULL;
    char *flat = flat_name(name);
    char *hub = xasprintf("%s/models--%s", models, flat);
    char *found = keep_if_dir(path_join(models, name));
    if (!found)
        found = keep_if_dir(path_join(models, flat));
    if (!found)
        found = keep_if_dir(find_snapshot(hub));
    free(hub);
    free(flat);
    return found;
}

/* A model's folder: beside the config, in the working directory, in QUIRE_MODELS. One that is
 * nowhere keeps its name as it was written: that makes a failed task, not a bad config. */
static char *find_model(const char *folder, const char *name)
{
    char *found = keep_if_dir(path_join(folder, name));
    if (!found)
        found = keep_if_dir(xstrdup(name));
    if (!found)
        found = find_in_models(name);
    return found ? found : xstrdup(name);
}

char *config_find_model(const char *name)
{
    return find_model("", name);
}

const char *config_resolve_path(struct config *c, const struct yaml_node *value, enum key_kind kind)
{
    for (const struct resolved_path *known = c->resolved; known; known = known->next)
        if (known->value == value && known->kind == kind)
            return known->path;
    /* A folder of "." would only lengthen the path, and values from nowhere have no other. */
    char *folder = value->line > 0 ? path_dirname(value->file) : xstrdup("");
    if (strcmp(folder, ".") == 0)
        folder[0] = '\0';
    char *path = value->text[0] == '\0'   ? xstrdup("")
                 : kind == KEY_MODEL_PATH ? find_model(folder, value->text)
                                          : path_join(folder, value->text);
    struct resolved_path *resolved = yaml_doc_alloc(c->doc, 1, sizeof(*resolved));
    *resolved = (struct resolved_path){value, kind, yaml_doc_strdup(c->doc, path), c->resolved};
    c->resolved = resolved;
    free(path);
    free(folder);
    return resolved->path;
}

/* ---- YAML to field ---- */

static bool read_integer(int64_t *out, const struct key_row *row, const struct yaml_node *value)
{
    if (row->or_auto && !value->quoted && strcmp(value->text, "auto") == 0) {
        *out = SETTING_AUTO;
        return true;
    }
    return yaml_get_integer(out, value) && *out >= row->min && *out <= row->max &&
           (row->multiple == 0 || *out % row->multiple == 0);
}

static bool read_number(double *out, const struct key_row *row, const struct yaml_node *value)
{
    /* NaN fails every comparison, and so is refused. */
    if (!yaml_get_number(out, value) || !(*out <= (double)row->max))
        return false;
    return row->above_min ? *out > (double)row->min : *out >= (double)row->min;
}

int config_read_value(struct config *c, void *target, size_t i, const struct yaml_node *value)
{
    const struct key_row *row = config_row(i);
    void *field = (char *)target + row->offset;
    struct names names;
    int choice;
    if (row->kind == KEY_NODE) {
        *(const struct yaml_node **)field = value;
        return 0;
    }
    if (value->kind != YAML_SCALAR || yaml_is_null(value))
        return err_value(row, value);
    switch (row->kind) {
    case KEY_INTEGER: return read_integer(field, row, value) ? 0 : err_value(row, value);
    case KEY_NUMBER: return read_number(field, row, value) ? 0 : err_value(row, value);
    case KEY_BOOL: return yaml_get_bool(field, value) ? 0 : err_value(row, value);
    case KEY_STRING: *(const char **)field = value->text; return 0;
    case KEY_NAME:
    case KEY_CHOICE:
        split_names(&names, row->key.type);
        choice = find_name(&names, value->text);
        if (choice < 0)
            return err_value(row, value);
        if (row->kind == KEY_NAME)
            *(const char **)field = value->text;
        else
            *(int *)field = choice;
        return 0;
    case KEY_PATH:
    case KEY_MODEL_PATH: *(const char **)field = config_resolve_path(c, value, row->kind); return 0;
    case KEY_NODE:
    case KEY_STRUCTURE: break;
    }
    assert(!"a key without a field has no value");
    return -1;
}

int config_apply(struct config *c, struct settings *s, const char *key,
                 const struct yaml_node *value)
{
    int i = config_find_key(key);
    if (i < 0 || !config_row((size_t)i)->key.per_task)
        return yaml_err(value, "'%s' is not a key that a task can differ in", key);
    return config_read_value(c, s, (size_t)i, value);
}

/* ---- field to text and JSON ---- */

static const void *field_of(const void *target, const struct key_row *row)
{
    return (const char *)target + row->offset;
}

/* The shortest decimal that reads back as the same number, always with a point or an exponent. */
static char *number_text(double value)
{
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        double again;
        snprintf(text, sizeof(text), "%.*g", digits, value);
        if (parse_double(&again, text) && again == value)
            break;
    }
    bool is_integer = text[strspn(text, "-0123456789")] == '\0';
    return xasprintf("%s%s", text, is_integer ? ".0" : "");
}

/* Plain where YAML would read the same text back, else quoted as in JSON. */
static char *string_text(const char *text)
{
    static const char *const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                    "0123456789_./+@-";
    struct yaml_node node = {.kind = YAML_SCALAR, .text = text};
    json_t *typed = yaml_to_json(&node);
    bool plain = json_is_string(typed) && text[0] != '\0' && !strchr("@-", text[0]) &&
                 text[strspn(text, safe)] == '\0';
    json_decref(typed);
    if (plain)
        return xstrdup(text);
    json_t *string = json_string(text);
    char *quoted = json_dumps(string, JSON_ENCODE_ANY);
    json_decref(string);
    if (!quoted)
        die("out of memory for a JSON text");
    return quoted;
}

static const char *choice_name(struct names *buffer, const struct key_row *row, int choice)
{
    split_names(buffer, row->key.type);
    assert(choice >= 0 && (size_t)choice < buffer->n);
    return buffer->name[choice];
}

static char *node_text(const struct yaml_node *node)
{
    if (!node)
        return xstrdup("");
    json_t *json = yaml_to_json(node);
    char *text = json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
    json_decref(json);
    if (!text)
        die("out of memory for a JSON text");
    return text;
}

char *config_field_text(const void *target, size_t i)
{
    const struct key_row *row = config_row(i);
    const void *field = field_of(target, row);
    struct names names;
    int64_t integer;
    switch (row->kind) {
    case KEY_INTEGER:
        integer = *(const int64_t *)field;
        if (row->or_auto && integer == SETTING_AUTO)
            return xstrdup("auto");
        return xasprintf("%lld", (long long)integer);
    case KEY_NUMBER: return number_text(*(const double *)field);
    case KEY_BOOL: return xstrdup(*(const bool *)field ? "true" : "false");
    case KEY_CHOICE: return xstrdup(choice_name(&names, row, *(const int *)field));
    case KEY_STRING:
    case KEY_NAME:
    case KEY_PATH:
    case KEY_MODEL_PATH: return string_text(*(const char *const *)field);
    case KEY_NODE: return node_text(*(const struct yaml_node *const *)field);
    case KEY_STRUCTURE: break;
    }
    assert(!"a key without a field has no text");
    return NULL;
}

char *config_value_text(const struct settings *s, size_t i)
{
    return config_row(i)->key.per_task ? config_field_text(s, i) : NULL;
}

char *config_text(const struct config *c, size_t i)
{
    const struct key_row *row = config_row(i);
    if (row->kind == KEY_STRUCTURE)
        return node_text(c->node[i]);
    if (row->target == TARGET_SETTINGS)
        return config_field_text(&c->base, i);
    if (row->target == TARGET_CONFIG)
        return config_field_text(c, i);
    return c->synthetic ? config_field_text(c->synthetic, i) : xstrdup(row->key.default_text);
}

static json_t *field_json(const void *target, const struct key_row *row)
{
    const void *field = field_of(target, row);
    struct names names;
    int64_t integer;
    switch (row->kind) {
    case KEY_INTEGER:
        integer = *(const int64_t *)field;
        if (row->or_auto && integer == SETTING_AUTO)
            return json_string("auto");
        return json_integer(integer);
    case KEY_NUMBER: return json_real(*(const double *)field);
    case KEY_BOOL: return json_boolean(*(const bool *)field);
    case KEY_CHOICE: return json_string(choice_name(&names, row, *(const int *)field));
    case KEY_STRING:
    case KEY_NAME:
    case KEY_PATH:
    case KEY_MODEL_PATH: return json_string(*(const char *const *)field);
    case KEY_NODE:
    case KEY_STRUCTURE: break;
    }
    assert(!"keys of a task are scalars");
    return NULL;
}

json_t *config_settings_json(const struct settings *s)
{
    json_t *object = json_object();
    for (size_t i = 0; i < config_n_keys(); i++) {
        const struct key_row *row = config_row(i);
        if (!row->key.per_task)
            continue;
        if (json_object_set_new(object, row->key.path, field_json(s, row)) != 0)
            die("out of memory for a JSON tree");
    }
    return object;
}

/* ---- comparing and copying fields ---- */

static size_t field_bytes(const struct key_row *row)
{
    switch (row->kind) {
    case KEY_INTEGER: return sizeof(int64_t);
    case KEY_NUMBER: return sizeof(double);
    case KEY_BOOL: return sizeof(bool);
    case KEY_CHOICE: return sizeof(int);
    default: return sizeof(const char *);
    }
}

bool config_same_value(const struct settings *a, const struct settings *b, size_t i)
{
    const struct key_row *row = config_row(i);
    assert(row->key.per_task);
    const void *x = field_of(a, row), *y = field_of(b, row);
    switch (row->kind) {
    case KEY_NUMBER: return *(const double *)x == *(const double *)y; /* 0.0 and -0.0, too */
    case KEY_STRING:
    case KEY_NAME:
    case KEY_PATH:
    case KEY_MODEL_PATH: return strcmp(*(const char *const *)x, *(const char *const *)y) == 0;
    default: return memcmp(x, y, field_bytes(row)) == 0;
    }
}

void config_copy_value(struct settings *to, const struct settings *from, size_t i)
{
    const struct key_row *row = config_row(i);
    assert(row->key.per_task);
    memcpy((char *)to + row->offset, field_of(from, row), field_bytes(row));
}
