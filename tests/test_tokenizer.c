/* The tokenizer against what the reference library and llama.cpp make of the same texts, and
 * against damaged files. */
#include "tests/testing.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

#define N_THREADS 4

/* ---- helpers ---- */

static struct tokenizer *open_dir(const char *dir)
{
    struct tokenizer *t;
    if (tokenizer_open(&t, dir) != 0)
        fail_msg("%s", err_get());
    return t;
}

/* A tokenizer of the shared data, or NULL. */
static struct tokenizer *open_shared(const char *name)
{
    char *dir = test_data_path(name);
    struct tokenizer *t = dir ? open_dir(dir) : NULL;
    free(dir);
    return t;
}

static struct tokenizer *open_json(const json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT);
    free(test_write_text("tokenizer.json", text));
    free(text);
    return open_dir(test_dir());
}

static void assert_ids(const char *what, const char *text, const struct token_list *got,
                       const json_t *want)
{
    bool same = got->n == json_array_size(want);
    for (size_t i = 0; same && i < got->n; i++)
        same = got->ids[i] == json_integer_value(json_array_get(want, i));
    if (same)
        return;
    struct str list = {0};
    for (size_t i = 0; i < got->n; i++)
        str_appendf(&list, " %d", got->ids[i]);
    char *wanted = json_dumps(want, JSON_COMPACT);
    fail_msg("%s: '%s'\ngot%s\nexpected %s", what, text, list.data ? list.data : "", wanted);
}

static void assert_encodes(const struct tokenizer *t, const char *what, const json_t *text,
                           bool add_special, const json_t *want)
{
    struct token_list ids = {0};
    if (tokenizer_encode(t, &ids, json_string_value(text), json_string_length(text), add_special) !=
        0)
        fail_msg("%s: %s", what, err_get());
    assert_ids(what, json_string_value(text), &ids, want);
    token_list_free(&ids);
}

/* Decodes at once and piece by piece. */
static void assert_decodes(const struct tokenizer *t, const char *what, const json_t *ids,
                           bool skip_special, const char *want)
{
    struct token_list list = {0};
    struct str whole = {0}, pieces = {0};
    str_append(&whole, "", 0);
    str_append(&pieces, "", 0);
    struct token_decoder *decoder = token_decoder_open(t, skip_special);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        token_list_push(&list, (int)json_integer_value(json_array_get(ids, i)));
        token_decoder_push(decoder, &pieces, list.ids[i]);
        if (utf8_complete_prefix(pieces.data, pieces.len) != pieces.len)
            fail_msg("%s: a piece of '%s' ends inside a character", what, want);
    }
    token_decoder_flush(decoder, &pieces);
    token_decoder_close(decoder);
    tokenizer_decode(t, &whole, list.ids, list.n, skip_special);
    if (strcmp(whole.data, want) != 0 || strcmp(pieces.data, want) != 0)
        fail_msg("%s: got '%s', in pieces '%s', expected '%s'", what, whole.data, pieces.data,
                 want);
    token_list_free(&list);
    str_free(&whole);
    str_free(&pieces);
}

/* ---- the reference's ids ---- */

/* A line of tokenizer-vectors/hf-tokenizers-*: "decoded" is there where it is not the text. */
static void check_vector(const struct tokenizer *t, const char *name, const json_t *vector)
{
    const json_t *text = json_object_get(vector, "text"), *ids = json_object_get(vector, "ids");
    const json_t *special = json_object_get(vector, "ids_with_special");
    const char *decoded = json_string_value(json_object_get(vector, "decoded"));
    const char *skipped = json_string_value(json_object_get(vector, "decoded_skip_special"));
    assert_encodes(t, name, text, false, ids);
    assert_encodes(t, name, text, true, special ? special : ids);
    assert_decodes(t, name, ids, false, decoded ? decoded : json_string_value(text));
    if (skipped)
        assert_decodes(t, name, ids, true, skipped);
}

static void check_vectors(const struct tokenizer *t, const char *name)
{
    char *file_name = xasprintf("tokenizer-vectors/hf-tokenizers-0.23.2/%s.jsonl", name);
    char *path = test_data_path(file_name), *line = NULL;
    size_t capacity = 0, n_lines = 0;
    FILE *file = path ? fopen(path, "r") : NULL;
    assert_non_null(file);
    while (getline(&line, &capacity, file) > 0) {
        json_t *vector = json_loads(line, JSON_ALLOW_NUL, NULL);
        check_vector(t, name, vector);
        json_decref(vector);
        n_lines++;
    }
    assert_int_equal(n_lines, 262);
    fclose(file);
    free(line);
    free(path);
    free(file_name);
}

static void texts_give_the_ids_of_the_reference_and_come_back(void **state)
{
    (void)state;
    static const struct {
        const char *dir, *vectors;
    } cases[] = {
        {"tokenizers/gpt2", "gpt2"},
        {"tokenizers/qwen3", "qwen3"},
        {"tokenizers/phi-3-mini", "phi-3-mini"},
        {"tokenizers/smollm2", "smollm2"},
        {"models/stories260k-llama", "stories260k-llama"},
        {"models/tinystories-656k-bf16", "tinystories-656k-bf16"},
    };
    size_t n_checked = 0;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct tokenizer *t = open_shared(cases[i].dir);
        if (!t)
            continue;
        check_vectors(t, cases[i].vectors);
        tokenizer_close(t);
        n_checked++;
    }
    if (n_checked == 0)
        skip();
}

/* The ids of one line of an .out file. */
static json_t *parse_ids(char **line)
{
    json_t *ids = json_array();
    char *at = *line;
    while (*at == ' ')
        json_array_append_new(ids, json_integer(strtol(at, &at, 10)));
    *line = *at ? at + 1 : at;
    return ids;
}

static void check_llama_cpp(const struct tokenizer *t, const char *name)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char *in_name = xasprintf("tokenizer-vectors/llama.cpp/ggml-vocab-%s.gguf.inp", name);
    char *out_name = xasprintf("tokenizer-vectors/llama.cpp/ggml-vocab-%s.gguf.out", name);
    char *in_path = test_data_path(in_name), *out_path = test_data_path(out_name);
    char *texts = file_read(in_path, NULL), *lines = file_read(out_path, NULL);
    char *text = texts, *line = lines, *end;
    int n_texts = 0;
    for (; (end = strstr(text, separator)); text = end + strlen(separator), n_texts++) {
        json_t *json = json_stringn(text, (size_t)(end - text)), *ids = parse_ids(&line);
        assert_encodes(t, name, json, false, ids);
        json_decref(json);
        json_decref(ids);
    }
    assert_true(n_texts >= 45);
    free(texts);
    free(lines);
    free(in_path);
    free(out_path);
    free(in_name);
    free(out_name);
}

static void texts_give_the_ids_of_llama_cpp(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"tokenizers/gpt2", "gpt-2"},
        {"tokenizers/phi-3-mini", "phi-3"},
        {"tokenizers/qwen3", "qwen2"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct tokenizer *t = open_shared(cases[i][0]);
        if (!t)
            skip();
        check_llama_cpp(t, cases[i][1]);
        tokenizer_close(t);
    }
}

/* variants.json: see its script. */
static json_t *patched(const json_t *base, const json_t *patch)
{
    json_t *out = json_deep_copy(base), *value;
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)patch, key, value)
    {
        if (strcmp(key, "model") == 0)
            json_object_update(json_object_get(out, key), value);
        else
            json_object_set(out, key, value);
    }
    return out;
}

static const json_t *or_before(const json_t *value, const json_t *before)
{
    return json_is_null(value) ? before : value;
}

static void check_variant(const json_t *golden, const json_t *variant)
{
    const char *name = json_string_value(json_object_get(variant, "name"));
    const char *base = json_string_value(json_object_get(variant, "base"));
    const json_t *texts = json_object_get(golden, "texts");
    json_t *json = patched(json_object_get(json_object_get(golden, "bases"), base),
                           json_object_get(variant, "patch"));
    struct tokenizer *t = open_json(json);
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i);
        const json_t *result = json_array_get(json_object_get(variant, "results"), i);
        const json_t *ids = json_array_get(result, 0);
        const json_t *decoded = or_before(json_array_get(result, 2), text);
        const json_t *skipped = or_before(json_array_get(result, 3), decoded);
        assert_encodes(t, name, text, false, ids);
        assert_encodes(t, name, text, true, or_before(json_array_get(result, 1), ids));
        assert_decodes(t, name, ids, false, json_string_value(decoded));
        assert_decodes(t, name, ids, true, json_string_value(skipped));
    }
    tokenizer_close(t);
    json_decref(json);
}

static json_t *read_golden(void)
{
    json_t *golden = json_read_file("tests/golden/tokenizer/variants.json");
    if (!golden)
        fail_msg("%s", err_get());
    return golden;
}

static void every_kind_of_component_does_what_the_reference_does(void **state)
{
    (void)state;
    json_t *golden = read_golden();
    const json_t *variants = json_object_get(golden, "variants");
    assert_true(json_array_size(variants) > 30);
    for (size_t i = 0; i < json_array_size(variants); i++)
        check_variant(golden, json_array_get(variants, i));
    json_decref(golden);
}

/* Both columns of sentencepiece's table of NFC are written alike after normalising. */
static void append_code_points(struct str *out, char *list)
{
    char *at = list;
    while (*at) {
        uint32_t c = (uint32_t)strtoul(at, &at, 16);
        char bytes[5] = {0};
        if (c < 0x80)
            bytes[0] = (char)c;
        else if (c < 0x800)
            memcpy(bytes, (char[]){(char)(0xC0 | c >> 6), (char)(0x80 | (c & 63))}, 2);
        else if (c < 0x10000)
            memcpy(bytes,
                   (char[]){(char)(0xE0 | c >> 12), (char)(0x80 | (c >> 6 & 63)),
                            (char)(0x80 | (c & 63))},
                   3);
        else
            memcpy(bytes,
                   (char[]){(char)(0xF0 | c >> 18), (char)(0x80 | (c >> 12 & 63)),
                            (char)(0x80 | (c >> 6 & 63)), (char)(0x80 | (c & 63))},
                   4);
        str_append_c(out, bytes);
        while (*at == ' ')
            at++;
    }
}

static void canonically_equal_texts_have_equal_ids_under_nfc(void **state)
{
    (void)state;
    struct tokenizer *t = open_shared("tokenizers/qwen3");
    char *path = test_data_path("texts/sentencepiece_nfc.tsv"), *line = NULL;
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t capacity = 0, n_lines = 0;
    if (!t || !file)
        skip();
    while (getline(&line, &capacity, file) > 0) {
        struct str from = {0}, to = {0};
        struct token_list a = {0}, b = {0};
        char *tab = strchr(line, '\t');
        assert_non_null(tab);
        *tab = '\0';
        tab[1 + strcspn(tab + 1, "\t\n#")] = '\0';
        append_code_points(&from, line);
        append_code_points(&to, tab + 1);
        assert_int_equal(tokenizer_encode(t, &a, from.data, from.len, false), 0);
        assert_int_equal(tokenizer_encode(t, &b, to.data, to.len, false), 0);
        if (a.n != b.n || memcmp(a.ids, b.ids, a.n * sizeof(*a.ids)) != 0)
            fail_msg("%s and %s differ", line, tab + 1);
        token_list_free(&a);
        token_list_free(&b);
        str_free(&from);
        str_free(&to);
        n_lines++;
    }
    assert_true(n_lines > 1000);
    free(line);
    fclose(file);
    free(path);
    tokenizer_close(t);
}

/* ---- unusual texts ---- */

static void a_byte_that_is_not_utf8_counts_as_the_replacement_character(void **state)
{
    (void)state;
    json_t *golden = read_golden();
    struct tokenizer *t = open_json(json_object_get(json_object_get(golden, "bases"), "bytes"));
    static const struct {
        const char *text, *same_as;
    } cases[] = {
        {"\xff", "\uFFFD"},
        {"a\x80z", "a\uFFFDz"},
        {"\xe4\xb8", "\uFFFD"},
        {"\xe4\xb8 x", "\uFFFD x"},
        {"\xc0\xaf", "\uFFFD\uFFFD"},
        {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xf0\x9f\x99\xf0\x9f\x99\x82", "\uFFFD\U0001F642"},
        {"\xf5\x80", "\uFFFD\uFFFD"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct token_list a = {0}, b = {0};
        struct str text = {0};
        assert_int_equal(tokenizer_encode(t, &a, cases[i].text, strlen(cases[i].text), false), 0);
        assert_int_equal(tokenizer_encode(t, &b, cases[i].same_as, strlen(cases[i].same_as), false),
                         0);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.ids, b.ids, a.n * sizeof(*a.ids));
        tokenizer_decode(t, &text, a.ids, a.n, false);
        assert_string_equal(text.data, cases[i].same_as);
        token_list_free(&a);
        token_list_free(&b);
        str_free(&text);
    }
    tokenizer_close(t);
    json_decref(golden);
}

static void bytes_that_are_no_character_become_one_replacement_each(void **state)
{
    (void)state;
    json_t *golden = read_golden();
    struct tokenizer *t = open_json(json_object_get(json_object_get(golden, "bases"), "chars"));
    char name[8];
    struct str text = {0};
    int ids[5];
    static const int bytes[5] = {0xE4, 0xB8, 0x41, 0xFF, 0xF0};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        snprintf(name, sizeof(name), "<0x%02X>", bytes[i]);
        ids[i] = tokenizer_find(t, name);
    }
    tokenizer_decode(t, &text, ids, ARRAY_LEN(ids), false);
    assert_string_equal(text.data, "\uFFFD\uFFFDA\uFFFD\uFFFD");
    str_free(&text);
    tokenizer_close(t);
    json_decref(golden);
}

static void special_tokens_of_the_normalised_text_are_left_out_too(void **state)
{
    (void)state;
    json_t *golden = read_golden();
    json_t *json = json_deep_copy(json_object_get(json_object_get(golden, "bases"), "chars"));
    json_t *eos = json_array_get(json_object_get(json, "added_tokens"), 2);
    json_object_set_new(eos, "normalized", json_true());
    struct tokenizer *t = open_json(json);
    json_t *ids = json_pack("[i,i]", tokenizer_find(t, "a"), tokenizer_find(t, "</s>"));
    assert_decodes(t, "all", ids, false, "a </s>");
    assert_decodes(t, "not special", ids, true, "a");
    tokenizer_close(t);
    json_decref(ids);
    json_decref(json);
    json_decref(golden);
}

static void a_megabyte_without_spaces_does_not_take_quadratic_time(void **state)
{
    (void)state;
    json_t *golden = read_golden();
    const size_t n = 1 << 20;
    char *text = xmalloc(n);
    static const char *const bases[] = {"bytes", "chars"};
    for (size_t i = 0; i < ARRAY_LEN(bases); i++) {
        struct tokenizer *t =
            open_json(json_object_get(json_object_get(golden, "bases"), bases[i]));
        for (int letters = 1; letters <= 3; letters++) {
            struct token_list ids = {0};
            struct str back = {0};
            for (size_t k = 0; k < n; k++)
                text[k] = "abn"[(k * k / 7 + k / 3) % (size_t)letters];
            double start_s = time_monotonic_s();
            assert_int_equal(tokenizer_encode(t, &ids, text, n, false), 0);
            assert_true(time_monotonic_s() - start_s < 30); /* 0.3 s; quadratic: an hour */
            tokenizer_decode(t, &back, ids.ids, ids.n, false);
            assert_int_equal(back.len, n);
            assert_memory_equal(back.data, text, n);
            token_list_free(&ids);
            str_free(&back);
        }
        tokenizer_close(t);
    }
    free(text);
    json_decref(golden);
}

static void many_combining_marks_do_not_take_quadratic_time(void **state)
{
    (void)state;
    struct tokenizer *t = open_shared("tokenizers/qwen3");
    struct token_list ids = {0};
    struct str text = {0};
    if (!t)
        skip();
    while (text.len < 1 << 20)
        str_append_c(&text, "\u0301\u0323");
    double start_s = time_monotonic_s();
    assert_int_equal(tokenizer_encode(t, &ids, text.data, text.len, false), 0);
    assert_true(time_monotonic_s() - start_s < 30); /* 0.3 s; quadratic: ten minutes */
    token_list_free(&ids);
    str_free(&text);
    tokenizer_close(t);
}

struct worker {
    const struct tokenizer *t;
    const json_t *texts;
    size_t n_ids;
};

static void *encode_all(void *argument)
{
    struct worker *w = argument;
    for (size_t i = 0; i < json_array_size(w->texts); i++) {
        const json_t *text = json_array_get(w->texts, i);
        struct token_list ids = {0};
        struct str back = {0};
        tokenizer_encode(w->t, &ids, json_string_value(text), json_string_length(text), true);
        tokenizer_decode(w->t, &back, ids.ids, ids.n, true);
        w->n_ids += ids.n;
        token_list_free(&ids);
        str_free(&back);
    }
    return NULL;
}

static void threads_share_a_tokenizer(void **state)
{
    (void)state;
    json_t *golden = read_golden();
    struct tokenizer *t = open_json(json_object_get(json_object_get(golden, "bases"), "bytes"));
    pthread_t threads[N_THREADS];
    struct worker workers[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        workers[i] = (struct worker){t, json_object_get(golden, "texts"), 0};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_all, &workers[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_true(workers[i].n_ids > 0 && workers[i].n_ids == workers[0].n_ids);
    }
    tokenizer_close(t);
    json_decref(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_give_the_ids_of_the_reference_and_come_back),
        cmocka_unit_test(texts_give_the_ids_of_llama_cpp),
        cmocka_unit_test(every_kind_of_component_does_what_the_reference_does),
        cmocka_unit_test(canonically_equal_texts_have_equal_ids_under_nfc),
        cmocka_unit_test(a_byte_that_is_not_utf8_counts_as_the_replacement_character),
        cmocka_unit_test(bytes_that_are_no_character_become_one_replacement_each),
        cmocka_unit_test(special_tokens_of_the_normalised_text_are_left_out_too),
        cmocka_unit_test(a_megabyte_without_spaces_does_not_take_quadratic_time),
        cmocka_unit_test(many_combining_marks_do_not_take_quadratic_time),
        cmocka_unit_test(threads_share_a_tokenizer),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
