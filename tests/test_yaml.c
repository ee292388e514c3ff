/* test_yaml.c - YAML trees: positions, aliases, limits, the core schema. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/yaml.h"
#include "tests/testing.h"

static struct yaml_doc *doc;

static int open_doc(void **state)
{
    (void)state;
    doc = yaml_doc_open();
    return 0;
}

static int close_doc(void **state)
{
    (void)state;
    yaml_doc_close(doc);
    return 0;
}

static struct yaml_node *parse(const char *text)
{
    return yaml_parse(doc, "x.yaml", text, strlen(text));
}

static struct yaml_node *parse_ok(const char *text)
{
    struct yaml_node *root = parse(text);
    if (!root)
        fail_msg("%s", err_get());
    return root;
}

/* The tree as JSON text, for comparing whole trees. The caller frees. */
static char *as_json(const struct yaml_node *node)
{
    json_t *json = yaml_to_json(node);
    char *text = json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(json);
    assert_non_null(text);
    return text;
}

static void assert_tree(const char *yaml, const char *json)
{
    char *found = as_json(parse_ok(yaml));
    assert_string_equal(found, json);
    free(found);
}

static void a_node_knows_its_line_and_column(void **state)
{
    (void)state;
    struct yaml_node *root = parse_ok("a: 1\n"
                                      "bb:\n"
                                      "  - x\n"
                                      "  - {c: \"y\"}\n");
    assert_int_equal(root->line, 1);
    assert_int_equal(root->column, 1);
    const struct yaml_node *list = yaml_find(root, "bb");
    assert_int_equal(list->line, 3);
    assert_int_equal(list->column, 3);
    assert_int_equal(root->key[1]->line, 2);
    const struct yaml_node *y = yaml_find(list->item[1], "c");
    assert_int_equal(y->line, 4);
    assert_int_equal(y->column, 9);
    assert_string_equal(y->file, "x.yaml");
    assert_true(y->quoted);
    assert_null(yaml_find(root, "b"));
}

static void a_message_begins_with_the_position(void **state)
{
    (void)state;
    struct yaml_node *root = parse_ok("a:\n    b: 7\n");
    const struct yaml_node *b = yaml_find(yaml_find(root, "a"), "b");
    assert_int_equal(yaml_err(b, "b is %d", 7), -1);
    assert_int_equal(err_get_kind(), ERR_CONFIG);
    assert_string_equal(err_get(), "x.yaml:2:8: b is 7");
}

static void broken_texts_are_errors_at_their_place(void **state)
{
    (void)state;
    static const struct {
        const char *yaml, *error;
    } cases[] = {
        {"", "x.yaml:1:1: the file is empty"},
        {"# only a comment\n", "the file is empty"},
        {"- a\n", "x.yaml:1:1: expected a mapping (key: value), found a list"},
        {"just text\n", "x.yaml:1:1: expected a mapping (key: value), found 'just text'"},
        {"a: 1\nb: 2\na: 3\n", "x.yaml:3:1: key 'a' stands twice"},
        {"a: {b: 1, b: 2}\n", "x.yaml:1:11: key 'b' stands twice"},
        {"a: [1, 2\nb: 3\n", "x.yaml:2:"},
        {"a: \"open\n", "x.yaml:2:1: "},
        {"a: 1\n b: 2\n", "x.yaml:2:3: "},
        {"a:\n\tb: 1\n", "x.yaml:2:1: a tab, @, ` or % where a word begins"},
        {"a: @b\n", "x.yaml:1:4: a tab, @, ` or % where a word begins"},
        {"a: *nowhere\n", "x.yaml:1:4: an alias to an anchor that is not defined"},
        {"a: &x [1, *x]\n", "x.yaml:1:11: an alias inside its own anchor"},
        {"[1, 2]: a\n", "x.yaml:1:1: a key must be a plain word, not a list"},
        {"a: !!int \"1\"\n", "x.yaml:1:4: tags are not supported"},
        {"a: \"x\\0y\"\n", "x.yaml:1:4: a text with a NUL character"},
        {"a: 1\n---\nb: 2\n", "x.yaml:2:1: a second document"},
        {"a: 1\n<<: 5\n", "x.yaml:2:5: the merge key '<<' takes a mapping"},
        {"a: \x01\n", "x.yaml:1:"},
        {"a: \xff\n", "x.yaml:1:"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_null(parse(cases[i].yaml));
        assert_error(ERR_CONFIG, cases[i].error);
    }
}

static void an_alias_stands_for_its_anchor(void **state)
{
    (void)state;
    assert_tree("a: &x {n: [1, 2]}\nb: *x\nc: [*x, *x]\n",
                "{\"a\":{\"n\":[1,2]},\"b\":{\"n\":[1,2]},\"c\":[{\"n\":[1,2]},{\"n\":[1,2]}]}");
    assert_tree("a: &x 1\nb: &x 2\nc: *x\n", "{\"a\":1,\"b\":2,\"c\":2}");
}

static void the_merge_key_gives_way_to_own_keys(void **state)
{
    (void)state;
    assert_tree("base: &b {x: 1, y: 2}\nuse:\n  y: 5\n  <<: *b\n  z: 3\n",
                "{\"base\":{\"x\":1,\"y\":2},\"use\":{\"y\":5,\"x\":1,\"z\":3}}");
    assert_tree("use:\n  <<: [{x: 1}, {x: 2, y: 3}]\n", "{\"use\":{\"x\":1,\"y\":3}}");
    assert_tree("use:\n  \"<<\": {x: 1}\n", "{\"use\":{\"<<\":{\"x\":1}}}");
}

/* Types and values as in the YAML 1.2.2 specification, section 10.3. */
static void scalars_have_the_types_of_the_core_schema(void **state)
{
    (void)state;
    static const struct {
        const char *yaml, *json;
    } cases[] = {
        {"", "null"},
        {"~", "null"},
        {"Null", "null"},
        {"nULL", "\"nULL\""},
        {"true", "true"},
        {"FALSE", "false"},
        {"tRUE", "\"tRUE\""},
        {"yes", "\"yes\""},
        {"no", "\"no\""},
        {"on", "\"on\""},
        {"off", "\"off\""},
        {"0", "0"},
        {"-0", "0"},
        {"+12", "12"},
        {"0755", "755"},
        {"0o755", "493"},
        {"0x1F", "31"},
        {"0o8", "\"0o8\""},
        {"0xG", "\"0xG\""},
        {"0x", "\"0x\""},
        {"-0x1", "\"-0x1\""},
        {"0b11", "\"0b11\""},
        {"1_000", "\"1_000\""},
        {"9223372036854775807", "9223372036854775807"},
        {"9223372036854775808", "9.2233720368547758e18"},
        {"0x7FFFFFFFFFFFFFFF", "9223372036854775807"},
        {"0x8000000000000000", "\"0x8000000000000000\""},
        {"1.5", "1.5"},
        {".5", "0.5"},
        {"5.", "5.0"},
        {"-1e3", "-1000.0"},
        {"1e3", "1000.0"},
        {"1e", "\"1e\""},
        {"e3", "\"e3\""},
        {".", "\".\""},
        {"1.2.3", "\"1.2.3\""},
        {"inf", "\"inf\""},
        {"nan", "\"nan\""},
        {"0x1p3", "\"0x1p3\""},
        {"12:30", "\"12:30\""},
        {"2001-12-14", "\"2001-12-14\""},
        {".inf", "\".inf\""},
        {"\"64\"", "\"64\""},
        {"'true'", "\"true\""},
        {"|\n  1\n", "\"1\\n\""},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *yaml = xasprintf("a: %s\n", cases[i].yaml);
        char *json = xasprintf("{\"a\":%s}", cases[i].json);
        assert_tree(yaml, json);
        free(yaml);
        free(json);
    }
}

static void infinities_and_nan_are_numbers(void **state)
{
    (void)state;
    double value;
    struct yaml_node *root = parse_ok("a: .inf\nb: -.Inf\nc: .NaN\nd: .iNf\ne: \".inf\"\n");
    assert_true(yaml_get_number(&value, yaml_find(root, "a")) && value > 1e308);
    assert_true(yaml_get_number(&value, yaml_find(root, "b")) && value < -1e308);
    assert_true(yaml_get_number(&value, yaml_find(root, "c")) && value != value);
    assert_false(yaml_get_number(&value, yaml_find(root, "d")));
    assert_false(yaml_get_number(&value, yaml_find(root, "e")));
}

/* {a: {a: ... {a: 1}}} with n mappings. */
static char *nested(int n)
{
    struct str text = {0};
    for (int i = 0; i < n; i++)
        str_append_c(&text, "{a: ");
    str_append_c(&text, "1");
    for (int i = 0; i < n; i++)
        str_append_c(&text, "}");
    return text.data;
}

static void nesting_has_a_limit(void **state)
{
    (void)state;
    char *deepest = nested(YAML_MAX_DEPTH), *too_deep = nested(YAML_MAX_DEPTH + 1);
    parse_ok(deepest);
    assert_null(parse(too_deep));
    assert_error(ERR_CONFIG, "nested too deeply");
    free(deepest);
    free(too_deep);
}

static void aliases_cannot_nest_past_the_limit(void **state)
{
    (void)state;
    struct str text = {0};
    str_append_c(&text, "a0: &a0 {x: 1}\n");
    for (int i = 1; i <= YAML_MAX_DEPTH; i++)
        str_appendf(&text, "a%d: &a%d {x: *a%d}\n", i, i, i - 1);
    assert_null(parse(text.data));
    assert_error(ERR_CONFIG, "nested too deeply");
    str_free(&text);
}

static void aliases_of_aliases_are_counted_in_full(void **state)
{
    (void)state;
    struct str text = {0};
    str_append_c(&text, "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n");
    for (int i = 1; i <= 20; i++) {
        str_appendf(&text, "a%d: &a%d [", i, i);
        for (int j = 0; j < 9; j++)
            str_appendf(&text, "%s*a%d", j ? ", " : "", i - 1);
        str_append_c(&text, "]\n");
    }
    double start = time_monotonic_s();
    assert_null(parse(text.data));
    assert_error(ERR_CONFIG, "more than 1048576 values");
    assert_true(time_monotonic_s() - start < 5);
    str_free(&text);
}

static void a_mapping_has_a_limit_of_keys(void **state)
{
    (void)state;
    struct str text = {0};
    for (size_t i = 0; i < YAML_MAX_KEYS; i++)
        str_appendf(&text, "k%zu: 1\n", i);
    assert_int_equal(parse_ok(text.data)->n_items, YAML_MAX_KEYS);
    str_append_c(&text, "one_more: 1\n");
    assert_null(parse(text.data));
    assert_error(ERR_CONFIG, "x.yaml:1025:1: more than 1024 keys");
    str_free(&text);
}

static void long_texts_and_long_lists_arrive_whole(void **state)
{
    (void)state;
    enum { BYTES = 200000, ITEMS = 20000 };
    struct str text = {0};
    str_append_c(&text, "text: ");
    for (int i = 0; i < BYTES; i++)
        str_append(&text, &"abcdefghijklmnopq"[i % 17], 1);
    str_append_c(&text, "\nlist:\n");
    for (int i = 0; i < ITEMS; i++)
        str_appendf(&text, "- item %d\n", i);
    struct yaml_node *root = parse_ok(text.data);
    assert_int_equal(strlen(yaml_find(root, "text")->text), BYTES);
    const struct yaml_node *list = yaml_find(root, "list");
    assert_int_equal(list->n_items, ITEMS);
    assert_string_equal(list->item[ITEMS - 1]->text, "item 19999");
    assert_int_equal(list->item[ITEMS - 1]->line, ITEMS + 2);
    str_free(&text);
}

static void a_value_from_no_file_names_its_origin(void **state)
{
    (void)state;
    const struct yaml_node *plain = yaml_value(doc, "--set", "a: b # c");
    assert_int_equal(plain->kind, YAML_SCALAR);
    assert_string_equal(plain->text, "a: b # c");
    yaml_err(plain, "wrong");
    assert_string_equal(err_get(), "--set: wrong");

    const struct yaml_node *list = yaml_value(doc, "--set", "[1, two]");
    assert_int_equal(list->kind, YAML_SEQUENCE);
    yaml_err(list->item[1], "wrong");
    assert_string_equal(err_get(), "--set: wrong");

    assert_true(yaml_value(doc, "--set", "'7'")->quoted);
    assert_null(yaml_value(doc, "--set", "[1"));
    assert_error(ERR_CONFIG, "--set: ");
    assert_null(yaml_value(doc, "environment X", "caf\xe9"));
    assert_error(ERR_CONFIG, "environment X: not valid UTF-8");
}

static void a_missing_file_is_a_configuration_error(void **state)
{
    (void)state;
    assert_null(yaml_load(doc, "/nonexistent/x.yaml"));
    assert_error(ERR_CONFIG, "/nonexistent/x.yaml: cannot open");
    char *path = test_write_text("ok.yaml", "a: [1]\n");
    struct yaml_node *root = yaml_load(doc, path);
    assert_non_null(root);
    assert_string_equal(root->file, path);
    free(path);
}

static void a_long_value_is_cut_in_messages(void **state)
{
    (void)state;
    struct yaml_node *root = parse_ok(
        "a: \xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9"
        "-123456789 123456789 123456789 12345678\xC3\xA9 and more\nb: [1]\nc:\n");
    char text[128];
    yaml_describe(text, sizeof(text), yaml_find(root, "a"));
    assert_contains(text, "12345678...'");
    assert_string_equal(yaml_describe(text, sizeof(text), yaml_find(root, "b")), "a list");
    assert_string_equal(yaml_describe(text, sizeof(text), yaml_find(root, "c")), "empty");
}

#define DOC_TEST(f) cmocka_unit_test_setup_teardown(f, open_doc, close_doc)

int main(void)
{
    const struct CMUnitTest tests[] = {
        DOC_TEST(a_node_knows_its_line_and_column),
        DOC_TEST(a_message_begins_with_the_position),
        DOC_TEST(broken_texts_are_errors_at_their_place),
        DOC_TEST(an_alias_stands_for_its_anchor),
        DOC_TEST(the_merge_key_gives_way_to_own_keys),
        DOC_TEST(scalars_have_the_types_of_the_core_schema),
        DOC_TEST(infinities_and_nan_are_numbers),
        DOC_TEST(nesting_has_a_limit),
        DOC_TEST(aliases_cannot_nest_past_the_limit),
        DOC_TEST(aliases_of_aliases_are_counted_in_full),
        DOC_TEST(a_mapping_has_a_limit_of_keys),
        DOC_TEST(long_texts_and_long_lists_arrive_whole),
        DOC_TEST(a_value_from_no_file_names_its_origin),
        DOC_TEST(a_missing_file_is_a_configuration_error),
        DOC_TEST(a_long_value_is_cut_in_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
