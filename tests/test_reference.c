/* test_reference.c - configs/reference.yaml against the table of keys: each key, its default, each
 * environment variable.
 */
#include <stdlib.h>
#include <string.h>

#include "runner/config.h"
#include "tests/testing.h"

/* reference.yaml writes a key that it does not give as "#key: value", without a space. */
static char *with_all_keys(const char *text)
{
    struct str all = {0};
    while (*text) {
        size_t indent = strspn(text, " "), n = strcspn(text, "\n");
        const char *first = text + indent;
        bool is_key = first[0] == '#' && first[1] >= 'a' && first[1] <= 'z';
        str_append(&all, text, indent);
        str_append(&all, first + is_key, n - indent - is_key);
        str_append_c(&all, "\n");
        text += n + (text[n] == '\n');
    }
    return all.data;
}

static const struct yaml_node *find_path(const struct yaml_node *node, const char *path)
{
    while (node && *path) {
        size_t n = strcspn(path, ".");
        char *word = xstrndup(path, n);
        node = node->kind == YAML_MAPPING ? yaml_find(node, word) : NULL;
        free(word);
        path += n + (path[n] == '.');
    }
    return node;
}

/* A key that the table does not have, in sections and below; NULL when all are known. */
static const struct yaml_node *find_unknown(const struct yaml_node *mapping, const char *section)
{
    for (size_t i = 0; i < mapping->n_items; i++) {
        char *path = xasprintf("%s%s%s", section, *section ? "." : "", mapping->key[i]->text);
        const struct yaml_node *unknown = NULL;
        if (config_find_key(path) < 0)
            unknown = mapping->item[i]->kind == YAML_MAPPING ? find_unknown(mapping->item[i], path)
                                                             : mapping->key[i];
        free(path);
        if (unknown)
            return unknown;
    }
    return NULL;
}

static void the_reference_has_every_key_with_its_default(void **state)
{
    (void)state;
    struct yaml_doc *doc = yaml_doc_open();
    char *text = file_read("configs/reference.yaml", NULL);
    assert_non_null(text);
    char *all = with_all_keys(text);
    const struct yaml_node *root = yaml_parse(doc, "configs/reference.yaml", all, strlen(all));
    if (!root)
        fail_msg("%s", err_get());
    for (size_t i = 0; i < config_n_keys(); i++) {
        const struct config_key *key = config_get_key(i);
        const struct yaml_node *node = find_path(root, key->path);
        if (!node)
            fail_msg("configs/reference.yaml lacks %s", key->path);
        if (key->default_text[0] && strcmp(node->text, key->default_text) != 0)
            fail_msg("configs/reference.yaml:%d: the default of %s is %s", node->line, key->path,
                     key->default_text);
    }
    const struct yaml_node *unknown = find_unknown(root, "");
    if (unknown)
        fail_msg("configs/reference.yaml:%d: no such key: %s", unknown->line, unknown->text);
    for (size_t i = 0; i < config_n_variables(); i++)
        assert_contains(text, config_get_variable(i)->name);
    free(all);
    free(text);
    yaml_doc_close(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_reference_has_every_key_with_its_default),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
