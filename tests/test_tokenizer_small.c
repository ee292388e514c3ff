/* A small tokenizer: what it does with odd texts and ids, what it says about itself, and what
 * becomes of damaged versions of its file. */
#include "tests/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

/* Bytes a, b, c and space as the alphabet; merges ab and abc. */
static const char small[] =
    "{\"version\": \"1.0\",\n"
    " \"added_tokens\": [{\"id\": 8, \"content\": \"<s>\", \"special\": true, \"normalized\": false},\n"
    "  {\"id\": 9, \"content\": \"<tool>\", \"special\": false, \"normalized\": false}],\n"
    " \"normalizer\": {\"type\": \"NFC\"},\n"
    " \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true},\n"
    " \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": "
    "\"<s>\"}},\n"
    "   {\"Sequence\": {\"id\": \"A\"}}], \"special_tokens\": {\"<s>\": {\"ids\": [8]}}},\n"
    " \"decoder\": {\"type\": \"ByteLevel\"},\n"
    " \"model\": {\"type\": \"BPE\", \"unk_token\": null, \"dropout\": null,\n"
    "  \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"\\u0120\": 3, \"ab\": 4, \"abc\": 5, "
    "\"\\u00c3\": 6, \"\\u00a9\": 7},\n"
    "  \"merges\": [\"a b\", [\"ab\", \"c\"]]}}\n";

/* Opens test_dir() with this tokenizer.json in it and no other file. */
static int open_text(struct tokenizer **t, const char *json, size_t n)
{
    static const char *const others[] = {"tokenizer_config.json", "chat_template.jinja"};
    free(test_write_file("tokenizer.json", json, n));
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        char *path = test_path(others[i]);
        remove(path);
        free(path);
    }
    return tokenizer_open(t, test_dir());
}

/* small with the first `from` replaced by `to`. */
static char *changed(const char *from, const char *to)
{
    const char *at = strstr(small, from);
    if (!at)
        fail_msg("'%s' is not in the small tokenizer", from);
    return xasprintf("%.*s%s%s", (int)(at - small), small, to, at + strlen(from));
}

static struct tokenizer *open_small(void)
{
    struct tokenizer *t;
    if (open_text(&t, small, strlen(small)) != 0)
        fail_msg("%s", err_get());
    return t;
}

static void assert_small_ids(const char *text, size_t n, const int *want, size_t n_want)
{
    struct tokenizer *t = open_small();
    struct token_list ids = {0};
    assert_int_equal(tokenizer_encode(t, &ids, text, n, false), 0);
    assert_int_equal(ids.n, n_want);
    assert_memory_equal(ids.ids, want, n_want * sizeof(*want));
    token_list_free(&ids);
    tokenizer_close(t);
}

/* ---- odd texts and ids ---- */

static void ids_are_appended_to_what_is_there(void **state)
{
    (void)state;
    struct tokenizer *t = open_small();
    struct token_list ids = {0};
    struct str text = {0};
    token_list_push(&ids, 77);
    str_append_c(&text, "> ");
    assert_int_equal(tokenizer_encode(t, &ids, "abc", 3, true), 0);
    assert_int_equal(ids.n, 3);
    assert_memory_equal(ids.ids, ((int[]){77, 8, 5}), 3 * sizeof(int));
    tokenizer_decode(t, &text, ids.ids, ids.n, false);
    assert_string_equal(text.data, "> <s>abc");
    token_list_free(&ids);
    str_free(&text);
    tokenizer_close(t);
}

static void a_text_may_hold_nul_bytes(void **state)
{
    (void)state;
    assert_small_ids("ab\0abc", 6, (int[]){4, 5}, 2);
}

static void ids_that_stand_for_nothing_decode_to_nothing(void **state)
{
    (void)state;
    struct tokenizer *t = open_small();
    struct str text = {0};
    int ids[] = {-1, 0, 10, INT32_MAX, INT32_MIN, 2, 9};
    tokenizer_decode(t, &text, ids, ARRAY_LEN(ids), true);
    assert_string_equal(text.data, "ac<tool>");
    str_free(&text);
    tokenizer_close(t);
}

static void a_character_in_two_tokens_is_held_back_until_it_is_whole(void **state)
{
    (void)state;
    struct tokenizer *t = open_small();
    struct token_decoder *d = token_decoder_open(t, true);
    struct str text = {0};
    token_decoder_push(d, &text, 0);
    assert_string_equal(text.data, "a");
    token_decoder_push(d, &text, 6);
    token_decoder_push(d, &text, 8);
    assert_string_equal(text.data, "a");
    token_decoder_push(d, &text, 7);
    assert_string_equal(text.data, "a\u00e9");
    token_decoder_push(d, &text, 6);
    token_decoder_flush(d, &text);
    assert_string_equal(text.data, "a\u00e9\uFFFD");
    token_decoder_close(d);
    str_free(&text);
    tokenizer_close(t);
}

static void a_text_that_is_too_long_is_refused_before_it_is_read(void **state)
{
    (void)state;
    struct tokenizer *t = open_small();
    struct token_list ids = {0};
    assert_int_equal(tokenizer_encode(t, &ids, "a", TOKENIZER_MAX_TEXT_BYTES + 1, false), -1);
    assert_error(ERR_DATA, "268435457 bytes");
    assert_int_equal(ids.n, 0);
    tokenizer_close(t);
}

/* ---- damaged files ---- */

static void assert_unopened(const char *json, size_t n, const char *part)
{
    struct tokenizer *t = NULL;
    err_clear();
    if (open_text(&t, json, n) == 0)
        fail_msg("accepted; expected an error with: %s", part);
    assert_null(t);
    assert_error(ERR_DATA, "tokenizer.json: ");
    assert_error(ERR_DATA, part);
}

/* What is changed in the small tokenizer, and what its error says. */
static const struct {
    const char *from, *to, *message;
} damages[] = {
    {"{\"version\"", "[\"version\"", "line 1, column 1: expected '{'"},
    {"\"NFC\"", "\"Lowercase\"", "normalizer of type 'Lowercase'"},
    {"\"NFC\"", "7", "normalizer: expected an object with a \"type\""},
    {"{\"type\": \"NFC\"}", "[]", "normalizer: expected an object"},
    {"{\"type\": \"NFC\"}", "{\"type\": \"Sequence\"}", "member 'normalizers'"},
    {"{\"type\": \"NFC\"}",
     "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a\"}, \"content\": \"b\"}",
     "Replace with a Regex"},
    {"\"ByteLevel\", \"add", "\"WhitespaceSplit\", \"add", "'WhitespaceSplit'"},
    {"\"use_regex\": true", "\"use_regex\": 1", "member 'use_regex': expected true or false"},
    {"\"type\": \"ByteLevel\", \"add_prefix_space\": false",
     "\"type\": \"Split\", \"pattern\": {\"Regex\": \"a(\"}, \"behavior\": \"Isolated\"",
     "pattern 'a('"},
    {"\"type\": \"ByteLevel\", \"add_prefix_space\": false",
     "\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\bx\"}, \"behavior\": \"Isolated\"",
     "'\\bx' is not supported"},
    {"\"type\": \"ByteLevel\", \"add_prefix_space\": false",
     "\"type\": \"Split\", \"pattern\": {\"Regex\": \"x\"}, \"behavior\": \"Sometimes\"",
     "'Sometimes'"},
    {"\"type\": \"ByteLevel\", \"add_prefix_space\": false",
     "\"type\": \"Metaspace\", \"prepend_scheme\": \"last\"", "prepend_scheme 'last'"},
    {"\"TemplateProcessing\"", "\"BertProcessing\"", "post_processor of type 'BertProcessing'"},
    {"{\"ids\": [8]}", "{\"ids\": [10]}", "an id that no token has"},
    {"{\"ids\": [8]}", "{\"ids\": [-1]}", "an id that no token has"},
    {"{\"ids\": [8]}", "{\"ids\": [4294967296]}", "an id that no token has"},
    {"{\"ids\": [8]}", "{\"ids\": [\"8\"]}", "an id that no token has"},
    {"{\"ids\": [8]}", "{}", "'<s>' has no ids"},
    {"{\"Sequence\": {\"id\": \"A\"}}", "{\"SpecialToken\": {\"id\": \"<s>\"}}",
     "a template without a text"},
    {"{\"Sequence\": {\"id\": \"A\"}}",
     "{\"Sequence\": {\"id\": \"A\"}}, {\"Sequence\": {\"id\": \"B\"}}", "tokens around a text"},
    {"{\"type\": \"ByteLevel\"}", "{\"type\": \"WordPiece\"}", "decoder of type 'WordPiece'"},
    {"{\"type\": \"ByteLevel\"}",
     "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": \"ByteFallback\"}]}",
     "'ByteFallback' after the tokens are fused"},
    {"{\"type\": \"ByteLevel\"}",
     "{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}", "Strip"},
    {"\"BPE\"", "\"Unigram\"", "model of type 'Unigram'"},
    {"\"dropout\": null", "\"dropout\": 0.1", "dropout"},
    {"\"dropout\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix '</w>'"},
    {"\"unk_token\": null", "\"unk_token\": \"x\"", "unk_token 'x' is not in the vocabulary"},
    {"\"unk_token\": null", "\"unk_token\": 0", "member 'unk_token': expected a string"},
    {"\"abc\": 5", "\"abc\": 4", "an id that another token has already"},
    {"\"abc\": 5", "\"abc\": -5", "line 10, column 66: expected an id"},
    {"\"abc\": 5", "\"abc\": 5.0", "expected an id"},
    {"\"abc\": 5", "\"abc\": 1e1", "expected an id"},
    {"\"abc\": 5", "\"abc\": 05", "expected an id"},
    {"\"abc\": 5", "\"abc\": \"5\"", "expected an id"},
    {"\"abc\": 5", "\"abc\": 1048576", "an id that is too large"},
    {"\"abc\": 5", "\"abc\": 99999999999999999999999", "an id that is too large"},
    {"\"abc\": 5", "\"abc\" 5", "expected ':'"},
    {"\"abc\": 5", "\"abc\": 5,", "expected '\"'"},
    {"\"abc\": 5", "\"a\\x\": 5", "invalid escape"},
    {"\"abc\": 5", "\"\\ud800\": 5", "half of a surrogate pair"},
    {"\"abc\": 5", "\"\\ud800\\u0020\": 5", "half of a surrogate pair"},
    {"\"abc\": 5", "\"\\udc00\": 5", "invalid \\u escape"},
    {"\"abc\": 5", "\"\\u12g4\": 5", "invalid \\u escape"},
    {"\"abc\": 5", "\"ab\nc\": 5", "a control character"},
    {"\"abc\": 5", "\"\xff\": 5", "not UTF-8"},
    {"\"abc\": 5", "\"ab\": 5", "'ab' has the ids 4 and 5"},
    {"\"abc\": 5, ", "", "names a token that is not in the table"},
    {"\"a b\"", "\"a x\"", "merge 0 of 'a' and 'x'"},
    {"\"a b\"", "\"ab\"", "not two tokens with a space"},
    {"\"a b\"", "\"a b c\"", "not two tokens with a space"},
    {"\"a b\"", "7", "expected '\"'"},
    {"[\"ab\", \"c\"]", "[\"ab\"]", "expected ','"},
    {"[\"ab\", \"c\"]", "[\"ab\", \"c\", \"c\"]", "expected ']'"},
    {"\"merges\": [", "\"merges\": [[[[", "expected '\"'"},
    {"\"merges\":", "\"other\":", "expected a model with a vocabulary and merges"},
    {"\"vocab\":", "\"other\":", "expected a model with a vocabulary and merges"},
    {"\"merges\":", "\"merges\": [], \"merges\":", "a second list of merges"},
    {"\"model\": {", "\"model\": {\"vocab\": {}, ", "a second vocabulary"},
    {"\"id\": 8", "\"id\": -8", "added_tokens[0]: member 'id'"},
    {"\"id\": 8", "\"id\": 1048576", "added_tokens[0]: member 'id'"},
    {"\"id\": 8", "\"id\": 8.5", "added_tokens[0]: member 'id'"},
    {"\"id\": 8", "\"id\": 4", "id 4 stands for both 'ab' and '<s>'"},
    {"\"id\": 9", "\"id\": 8", "id 8 stands for both '<s>' and '<tool>'"},
    {"\"<tool>\"", "\"abc\"", "added token 'abc' has id 9, but 5 in the vocabulary"},
    {"\"content\": \"<s>\"", "\"content\": []", "member 'content'"},
    {"\"content\": \"<s>\", ", "", "without content"},
    {"\"normalized\": false", "\"normalized\": \"no\"", "member 'normalized'"},
    {"\"version\": \"1.0\"", "\"version\": \"1.0\", \"version\": 2", "line 1"},
    {"\"decoder\"", "decoder", "line 8"},
    {"]}}\n", "]}} x", "line 11"},
};

static void a_damaged_file_is_refused_by_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(damages); i++) {
        char *json = changed(damages[i].from, damages[i].to);
        assert_unopened(json, strlen(json), damages[i].message);
        free(json);
    }
}

static void a_file_that_ends_early_is_refused_wherever_it_ends(void **state)
{
    (void)state;
    for (size_t n = 0; n + 2 < sizeof(small); n++)
        assert_unopened(small, n, "line ");
}

static void a_file_with_any_byte_changed_is_refused_or_opens(void **state)
{
    (void)state;
    static const char bytes[] = {'\0', '"', '\\', '{', ']', ',', '0', '-', '\xff'};
    char *json = xstrdup(small);
    for (size_t at = 0; at + 1 < sizeof(small); at++) {
        struct tokenizer *t = NULL;
        char kept = json[at];
        json[at] = bytes[at % sizeof(bytes)];
        if (open_text(&t, json, sizeof(small) - 1) != 0)
            assert_error(ERR_DATA, "tokenizer.json: ");
        tokenizer_close(t);
        json[at] = kept;
    }
    free(json);
}

static void deep_nesting_is_refused(void **state)
{
    (void)state;
    struct str deep = {0};
    for (int i = 0; i < 100000; i++)
        str_append_c(&deep, "{\"type\": \"Sequence\", \"normalizers\": [");
    for (int i = 0; i < 100000; i++)
        str_append_c(&deep, "]}");
    char *json = changed("{\"type\": \"NFC\"}", deep.data);
    assert_unopened(json, strlen(json), "line ");
    free(json);
    str_free(&deep);
}

static void more_parts_than_any_tokenizer_has_are_refused(void **state)
{
    (void)state;
    struct str many = {0};
    str_append_c(&many, "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\"}");
    for (int i = 0; i < 16; i++)
        str_append_c(&many, ", {\"type\": \"ByteLevel\"}");
    str_append_c(&many, "]}");
    char *json = changed(
        "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}", many.data);
    assert_unopened(json, strlen(json), "pre_tokenizer: more than 16 parts");
    free(json);
    str_free(&many);
}

static void a_pattern_that_gives_up_on_a_text_refuses_the_text(void **state)
{
    (void)state;
    struct tokenizer *t;
    struct token_list ids = {0};
    struct str text = {0};
    char *json = changed("\"type\": \"ByteLevel\", \"add_prefix_space\": false",
                         "\"type\": \"Split\", \"pattern\": {\"Regex\": \"(?:(?:a|ab|b)*)*[cd]\"}, "
                         "\"behavior\": \"Isolated\"");
    assert_int_equal(open_text(&t, json, strlen(json)), 0);
    for (int i = 0; i < 40; i++)
        str_append_c(&text, "ab");
    token_list_push(&ids, 1);
    assert_int_equal(tokenizer_encode(t, &ids, text.data, text.len, true), -1);
    assert_error(ERR_DATA, "gives up on a text of 80 bytes");
    assert_int_equal(ids.n, 1);
    token_list_free(&ids);
    str_free(&text);
    free(json);
    tokenizer_close(t);
}

static void tables_may_come_in_any_order(void **state)
{
    (void)state;
    static const char json[] = "{\"model\": {\"merges\": [\"#version: 0.2\", \"a b\"], \"vocab\": "
                               "{\"ab\": 2, \"b\": 1, \"a\": 7}, \"type\": \"BPE\"}}";
    struct tokenizer *t;
    struct token_list ids = {0};
    struct str text = {0};
    if (open_text(&t, json, strlen(json)) != 0)
        fail_msg("%s", err_get());
    assert_int_equal(tokenizer_vocab_size(t), 8);
    assert_int_equal(tokenizer_encode(t, &ids, "aabx", 4, true), 0);
    assert_int_equal(ids.n, 2);
    assert_memory_equal(ids.ids, ((int[]){7, 2}), 2 * sizeof(int));
    tokenizer_decode(t, &text, ids.ids, ids.n, true);
    assert_string_equal(text.data, "a ab");
    token_list_free(&ids);
    str_free(&text);
    tokenizer_close(t);
}

/* ---- what a tokenizer says about itself ---- */

static struct tokenizer *reopen_with(const char *config, const char *template_text)
{
    struct tokenizer *t;
    tokenizer_close(open_small());
    free(test_write_text("tokenizer_config.json", config));
    if (template_text)
        free(test_write_text("chat_template.jinja", template_text));
    if (tokenizer_open(&t, test_dir()) != 0)
        fail_msg("%s", err_get());
    return t;
}

static void tokens_are_found_by_their_content(void **state)
{
    (void)state;
    struct tokenizer *t = open_small();
    assert_int_equal(tokenizer_vocab_size(t), 10);
    assert_int_equal(tokenizer_find(t, "abc"), 5);
    assert_int_equal(tokenizer_find(t, "<s>"), 8);
    assert_int_equal(tokenizer_find(t, "<tool>"), 9);
    assert_int_equal(tokenizer_find(t, "<tool"), -1);
    assert_int_equal(tokenizer_find(t, ""), -1);
    assert_int_equal(tokenizer_bos(t), -1);
    assert_int_equal(tokenizer_eos(t), -1);
    assert_string_equal(tokenizer_bos_text(t), "");
    assert_string_equal(tokenizer_eos_text(t), "");
    assert_null(tokenizer_chat_template(t));
    tokenizer_close(t);
}

static void names_of_special_tokens_come_from_the_config(void **state)
{
    (void)state;
    struct tokenizer *t =
        reopen_with("{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"abc\"},"
                    "\"model_max_length\": 1000000000000000019884624838656}",
                    NULL);
    assert_int_equal(tokenizer_bos(t), 8);
    assert_int_equal(tokenizer_eos(t), 5);
    assert_string_equal(tokenizer_bos_text(t), "<s>");
    assert_string_equal(tokenizer_eos_text(t), "abc");
    tokenizer_close(t);
    t = reopen_with("{\"bos_token\": null, \"eos_token\": \"</unknown>\"}", NULL);
    assert_int_equal(tokenizer_bos(t), -1);
    assert_int_equal(tokenizer_eos(t), -1);
    assert_string_equal(tokenizer_eos_text(t), "</unknown>");
    tokenizer_close(t);
}

static void the_chat_template_comes_from_its_file_or_the_config(void **state)
{
    (void)state;
    struct tokenizer *t = reopen_with("{\"chat_template\": \"from config\"}", NULL);
    assert_string_equal(tokenizer_chat_template(t), "from config");
    tokenizer_close(t);
    t = reopen_with("{\"chat_template\": [{\"name\": \"rag\", \"template\": \"r\"}, "
                    "{\"name\": \"default\", \"template\": \"d\"}]}",
                    NULL);
    assert_string_equal(tokenizer_chat_template(t), "d");
    tokenizer_close(t);
    t = reopen_with("{\"chat_template\": \"from config\"}", "from file");
    assert_string_equal(tokenizer_chat_template(t), "from file");
    tokenizer_close(t);
}

static void a_damaged_config_is_refused(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{\"bos_token\": 1}", "bos_token"},
        {"{\"eos_token\": {}, \"bos_token\": []}", "bos_token"},
        {"{\"chat_template\": 1}", "chat_template"},
        {"{\"chat_template\": [{\"name\": \"tool\"}]}", "chat_template"},
        {"{\"bos_token\": \"<s>\"", "1:19"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct tokenizer *t = NULL;
        tokenizer_close(open_small());
        free(test_write_text("tokenizer_config.json", cases[i][0]));
        assert_int_equal(tokenizer_open(&t, test_dir()), -1);
        assert_error(ERR_DATA, "tokenizer_config.json");
        assert_error(ERR_DATA, cases[i][1]);
    }
}

static void the_fingerprint_changes_with_the_file_and_with_the_template(void **state)
{
    (void)state;
    struct tokenizer *plain = open_small(), *again = open_small();
    struct tokenizer *with_template = reopen_with("{\"chat_template\": \"x\"}", NULL);
    char *json = changed("\"version\": \"1.0\"", "\"version\": \"1.1\"");
    struct tokenizer *other;
    assert_int_equal(open_text(&other, json, strlen(json)), 0);
    assert_int_equal(strlen(tokenizer_fingerprint(plain)), SHA256_HEX_LEN);
    assert_string_equal(tokenizer_fingerprint(plain), tokenizer_fingerprint(again));
    assert_string_not_equal(tokenizer_fingerprint(plain), tokenizer_fingerprint(with_template));
    assert_string_not_equal(tokenizer_fingerprint(plain), tokenizer_fingerprint(other));
    tokenizer_close(plain);
    tokenizer_close(again);
    tokenizer_close(with_template);
    tokenizer_close(other);
    free(json);
}

static void a_folder_without_a_tokenizer_is_an_error(void **state)
{
    (void)state;
    struct tokenizer *t;
    assert_int_equal(tokenizer_open(&t, "/nonexistent/model"), -1);
    assert_error(ERR_DATA, "/nonexistent/model/tokenizer.json");
    tokenizer_close(NULL);
    token_decoder_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_appended_to_what_is_there),
        cmocka_unit_test(a_text_may_hold_nul_bytes),
        cmocka_unit_test(ids_that_stand_for_nothing_decode_to_nothing),
        cmocka_unit_test(a_character_in_two_tokens_is_held_back_until_it_is_whole),
        cmocka_unit_test(a_text_that_is_too_long_is_refused_before_it_is_read),
        cmocka_unit_test(a_damaged_file_is_refused_by_name),
        cmocka_unit_test(a_file_that_ends_early_is_refused_wherever_it_ends),
        cmocka_unit_test(a_file_with_any_byte_changed_is_refused_or_opens),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(more_parts_than_any_tokenizer_has_are_refused),
        cmocka_unit_test(a_pattern_that_gives_up_on_a_text_refuses_the_text),
        cmocka_unit_test(tables_may_come_in_any_order),
        cmocka_unit_test(tokens_are_found_by_their_content),
        cmocka_unit_test(names_of_special_tokens_come_from_the_config),
        cmocka_unit_test(the_chat_template_comes_from_its_file_or_the_config),
        cmocka_unit_test(a_damaged_config_is_refused),
        cmocka_unit_test(the_fingerprint_changes_with_the_file_and_with_the_template),
        cmocka_unit_test(a_folder_without_a_tokenizer_is_an_error),
    };
    return cmocka_run_group_tests_name("tokenizer_small", tests, NULL, NULL);
}
