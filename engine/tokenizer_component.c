/* tokenizer_component.c - strict access to the small parts of a tokenizer.json.
 *
 * Every part is an object with a "type" and a few members. A member of the wrong type is an error:
 * a setting that is skipped would change ids without anyone noticing.
 */
#include "engine/tokenizer_internal.h"

#include <string.h>

const char *component_type(const json_t *component, const char *what)
{
    const char *type = json_string_value(json_object_get(component, "type"));
    if (!type)
        err_set(ERR_DATA, "%s: expected an object with a \"type\"", what);
    return type;
}

int component_unknown(const char *what, const char *type)
{
    return err_set(ERR_DATA, "%s of type '%.100s' is not supported", what, type);
}

static int wrong_member(const char *key, const char *expected)
{
    return err_set(ERR_DATA, "member '%s': expected %s", key, expected);
}

int component_bool(const json_t *component, const char *key, bool *value)
{
    const json_t *member = json_object_get(component, key);
    if (member && !json_is_null(member)) {
        if (!json_is_boolean(member))
            return wrong_member(key, "true or false");
        *value = json_is_true(member);
    }
    return 0;
}

int component_text(const json_t *component, const char *key, const char **value)
{
    const json_t *member = json_object_get(component, key);
    if (member && !json_is_null(member)) {
        if (!json_is_string(member))
            return wrong_member(key, "a string");
        *value = json_string_value(member);
    }
    return 0;
}

int component_int(const json_t *component, const char *key, size_t limit, int *value)
{
    const json_t *member = json_object_get(component, key);
    json_int_t number = json_integer_value(member);
    if (!json_is_integer(member) || number < 0 || (size_t)number >= limit)
        return err_set(ERR_DATA, "member '%s': expected a number from 0 to %zu", key, limit - 1);
    *value = (int)number;
    return 0;
}

int component_pattern(const json_t *component, const char *what, const char **text, bool *regex)
{
    const json_t *pattern = json_object_get(component, "pattern");
    *text = NULL;
    if (component_text(pattern, "String", text) < 0)
        return -1;
    *regex = !*text;
    if (*regex && component_text(pattern, "Regex", text) < 0)
        return -1;
    if (!*text)
        return err_set(ERR_DATA, "%s: expected a pattern that is a String or a Regex", what);
    return 0;
}

static int each_part(const json_t *component, const char *what, const char *key,
                     component_loader load, void *target, size_t *n_parts)
{
    const char *type = component_type(component, what);
    if (!type)
        return -1;
    if (strcmp(type, "Sequence") != 0) {
        if (++*n_parts > COMPONENT_MAX_PARTS)
            return err_set(ERR_DATA, "%s: more than %d parts", what, COMPONENT_MAX_PARTS);
        return load(target, component, type);
    }
    const json_t *parts = json_object_get(component, key);
    if (!json_is_array(parts))
        return wrong_member(key, "a list");
    for (size_t i = 0; i < json_array_size(parts); i++) {
        if (each_part(json_array_get(parts, i), what, key, load, target, n_parts) < 0)
            return -1;
    }
    return 0;
}

int component_each(const json_t *component, const char *what, const char *key,
                   component_loader load, void *target)
{
    size_t n_parts = 0;
    if (!component || json_is_null(component))
        return 0;
    return each_part(component, what, key, load, target, &n_parts);
}
