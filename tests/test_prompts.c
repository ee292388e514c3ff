/* test_prompts.c - prompts from every source, as token ids. */
#include "runner/prompts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/testing.h"

#define MODEL "model: {path: m}\n"

static struct config *config;
static struct prompt_set *set;
static struct tokenizer *demo; /* ChatML, BOS is id 0 */

static int open_tokenizer(void **state)
{
    (void)state;
    return tokenizer_open(&demo, "configs/models/demo");
}

static int close_tokenizer(void **state)
{
    (void)state;
    tokenizer_close(demo);
    return 0;
}

static int forget(void **state)
{
    (void)state;
    prompt_set_free(set);
    config_close(config);
    set = NULL;
    config = NULL;
    return 0;
}

static int load_with(const char *yaml, const struct tokenizer *tokenizer, int vocab)
{
    char *text = xasprintf(MODEL "%s", yaml), *path = test_write_text("x.yaml", text);
    forget(NULL);
    int rc = config_load(&config, path, NULL, 0);
    if (rc != 0)
        fail_msg("%s", err_get());
    free(text);
    free(path);
    return prompt_set_load(&set, config, &config->base, tokenizer, vocab, "the-model");
}

static void load(const char *yaml)
{
    if (load_with(yaml, demo, tokenizer_vocab_size(demo)) != 0)
        fail_msg("%s", err_get());
}

/* The prompt's ids are those of this text, encoded with or without BOS. */
static void assert_encodes(int i, const char *text, bool with_bos)
{
    struct token_list ids = {0};
    const struct prompt *p = &set->prompt[i];
    assert_null(p->error);
    assert_string_equal(p->text, text);
    assert_int_equal(tokenizer_encode(demo, &ids, text, strlen(text), with_bos), 0);
    assert_int_equal(p->n_ids, ids.n);
    assert_memory_equal(p->ids, ids.ids, ids.n * sizeof(int));
    assert_int_equal(p->ids[0] == tokenizer_bos(demo), with_bos);
    token_list_free(&ids);
}

static void assert_error_of(int i, const char *part)
{
    assert_non_null(set->prompt[i].error);
    assert_contains(set->prompt[i].error, part);
}

/* ---- written in the config ---- */

static void list_items_are_texts_or_token_ids(void **state)
{
    (void)state;
    load("prompts:\n  list:\n  - 47 plus 36 is\n  - [5, 6, 0x7]\n  - 42\n  - \"two\\nlines\"\n");
    assert_int_equal(set->n, 4);
    assert_encodes(0, "47 plus 36 is", true);
    assert_null(set->prompt[1].text);
    assert_int_equal(set->prompt[1].n_ids, 3);
    assert_int_equal(set->prompt[1].ids[2], 7);
    assert_encodes(2, "42", true);
    assert_encodes(3, "two\nlines", true);
    assert_contains(set->source, "x.yaml (prompts.list)");
    int longest;
    int64_t sum = prompt_set_tokens(set, &longest);
    assert_int_equal(sum, set->prompt[0].n_ids + 3 + set->prompt[2].n_ids + set->prompt[3].n_ids);
    assert_int_equal(longest, MAX(set->prompt[0].n_ids, set->prompt[3].n_ids));
}

static void an_id_outside_the_vocabulary_fails_its_prompt_alone(void **state)
{
    (void)state;
    assert_int_equal(load_with("prompts: {list: [[99], [100], [1, 2]]}\n", NULL, 100), 0);
    assert_null(set->prompt[0].error);
    assert_error_of(1, "token id 100 is outside of the model's vocabulary of 100");
    assert_null(set->prompt[2].error);
}

static void text_needs_a_tokenizer(void **state)
{
    (void)state;
    assert_int_equal(load_with("prompts: {list: [[1], hello]}\n", NULL, 100), -1);
    assert_error(ERR_CONFIG, "the-model has no tokenizer");
    assert_error(ERR_CONFIG, "model.tokenizer");
    assert_null(set);
}

static void chat_puts_each_prompt_into_the_template(void **state)
{
    (void)state;
    load("prompts: {list: [hello], chat: true}\n");
    assert_encodes(0, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", false);
    assert_contains(set->source, "chat format chatml");
    load("prompts: {list: [hello, [1]], chat: true, system: Be brief.}\n");
    assert_encodes(0,
                   "<|im_start|>system\nBe brief.<|im_end|>\n"
                   "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
                   false);
    assert_error_of(1, "prompts.chat needs text");
}

static void conversations_are_rendered_and_may_bring_their_system_message(void **state)
{
    (void)state;
    load("prompts:\n"
         "  system: Be brief.\n"
         "  messages:\n"
         "  - [{role: user, content: a}, {role: assistant, content: b}, {role: user, content: c}]\n"
         "  - - {role: system, content: Be long.}\n"
         "    - {role: user, content: d}\n");
    assert_int_equal(set->n, 2);
    assert_encodes(0,
                   "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
                   "<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
                   "<|im_start|>assistant\n",
                   false);
    assert_encodes(1,
                   "<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user\nd<|im_end|>\n"
                   "<|im_start|>assistant\n",
                   false);
}

/* A folder with the demo's tokenizer.json and another tokenizer_config.json. */
static struct tokenizer *tokenizer_with(const char *folder, const char *tokenizer_config)
{
    char *dir = test_path(folder), *name = path_join(folder, "tokenizer.json");
    char *config_name = path_join(folder, "tokenizer_config.json");
    char *tokenizer_json = file_read("configs/models/demo/tokenizer.json", NULL);
    assert_non_null(tokenizer_json);
    assert_int_equal(dir_make(dir), 0);
    free(test_write_text(name, tokenizer_json));
    free(test_write_text(config_name, tokenizer_config));
    struct tokenizer *tokenizer;
    if (tokenizer_open(&tokenizer, dir) != 0)
        fail_msg("%s", err_get());
    free(tokenizer_json);
    free(config_name);
    free(name);
    free(dir);
    return tokenizer;
}

static void a_template_that_is_not_known_is_named(void **state)
{
    (void)state;
    struct tokenizer *odd = tokenizer_with("odd", "{\"chat_template\": \"{{ 'Dear ' + name }}\"}");
    assert_int_equal(load_with("prompts: {list: [a], chat: true}\n", odd, 1000), -1);
    assert_error(ERR_DATA, "the-model");
    assert_int_equal(load_with("prompts: {list: [a]}\n", odd, 1000), 0);
    tokenizer_close(odd);
}

static void chat_without_a_template_is_plain_text_and_says_so(void **state)
{
    (void)state;
    struct tokenizer *bare = tokenizer_with("bare", "{}");
    assert_int_equal(load_with("prompts: {list: [hello], chat: true}\n", bare, 1000), 0);
    assert_encodes(0, "hello", true);
    assert_contains(set->source, "chat format plain");
    assert_true(set->no_template);
    assert_int_equal(load_with("prompts: {list: [hello]}\n", bare, 1000), 0);
    assert_false(set->no_template);
    tokenizer_close(bare);
}

/* ---- files ---- */

static void a_text_file_has_a_prompt_per_line(void **state)
{
    (void)state;
    free(test_write_text("p.txt", "\xEF\xBB\xBFone\r\n\n  two \n \t\nthree"));
    load("prompts: {file: p.txt}\n");
    assert_int_equal(set->n, 3);
    assert_encodes(0, "one", true);
    assert_encodes(1, "  two ", true);
    assert_encodes(2, "three", true);
    assert_contains(set->source, "/p.txt");
}

static void a_line_that_is_not_utf8_fails_its_prompt_alone(void **state)
{
    (void)state;
    free(test_write_text("p.txt", "one\n\ncaf\xE9\ncaf\xC3\xA9\n"));
    load("prompts: {file: p.txt}\n");
    assert_int_equal(set->n, 3);
    assert_encodes(0, "one", true);
    assert_error_of(1, "p.txt:3: not valid UTF-8");
    assert_encodes(2, "caf\xC3\xA9", true);
}

static void offset_and_limit_take_a_part(void **state)
{
    (void)state;
    static const struct {
        const char *part;
        int n;
        const char *first;
    } cases[] = {
        {"offset: 0", 5, "p0"},
        {"limit: 1", 1, "p0"},
        {"limit: 5", 5, "p0"},
        {"limit: 6", 5, "p0"},
        {"offset: 4", 1, "p4"},
        {"offset: 1, limit: 2", 2, "p1"},
        {"offset: 3, limit: 9", 2, "p3"},
    };
    free(test_write_text("p.txt", "p0\np1\np2\np3\np4\n"));
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *file = xasprintf("prompts: {file: p.txt, %s}\n", cases[i].part);
        char *list = xasprintf("prompts: {list: [p0, p1, p2, p3, p4], %s}\n", cases[i].part);
        load(list);
        assert_int_equal(set->n, cases[i].n);
        assert_encodes(0, cases[i].first, true);
        load(file);
        assert_int_equal(set->n, cases[i].n);
        assert_encodes(0, cases[i].first, true);
        free(file);
        free(list);
    }
    assert_int_equal(load_with("prompts: {file: p.txt, offset: 5}\n", demo, 1000), -1);
    assert_error(ERR_DATA, "p.txt, from 5 on: no prompts (5 before prompts.offset)");
}

static void a_bad_line_of_jsonl_fails_its_prompt_alone(void **state)
{
    (void)state;
    free(test_write_text("p.jsonl",
                         "{\"q\": \"one\", \"turns\": [\"t0\", \"t1\"], \"a.b\": \"ab\"}\n"
                         "{\"q\": \n \t\n"
                         "{\"r\": \"none\"}\n"
                         "{\"q\": 5}\n"
                         "[\"q\"]\n"
                         "{\"q\": \"\\u0000\"}\n"
                         "{\"q\": \"\"}\n"
                         "{\"q\": \"last\", \"m\": {\"n\": [{\"o\": \"deep\"}]}}"));
    load("prompts: {file: p.jsonl, field: q}\n");
    assert_int_equal(set->n, 8);
    assert_encodes(0, "one", true);
    assert_error_of(1, "p.jsonl:2:");
    assert_error_of(1, "not valid JSON");
    assert_error_of(2, "p.jsonl:4: no field 'q'");
    assert_error_of(3, "p.jsonl:5: field 'q' is not a text");
    assert_error_of(4, "p.jsonl:6: no field 'q'");
    assert_error_of(5, "p.jsonl:7:");
    assert_encodes(6, "", true);
    assert_encodes(7, "last", true);
    assert_contains(set->source, "p.jsonl (q)");

    static const struct {
        const char *field, *text;
        int i;
    } cases[] = {{"turns.1", "t1", 0}, {"a.b", "ab", 0}, {"m.n.0.o", "deep", 7}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *yaml = xasprintf("prompts: {file: p.jsonl, field: %s}\n", cases[i].field);
        load(yaml);
        assert_encodes(cases[i].i, cases[i].text, true);
        free(yaml);
    }
    load("prompts: {file: p.jsonl, field: turns.2}\n");
    assert_error_of(0, "no field 'turns.2'");
}

static void a_missing_or_empty_file_is_an_error(void **state)
{
    (void)state;
    assert_int_equal(load_with("prompts: {file: none.txt}\n", demo, 1000), -1);
    assert_error(ERR_DATA, "none.txt: cannot open");
    free(test_write_text("empty.txt", "\n\n"));
    assert_int_equal(load_with("prompts: {file: empty.txt}\n", demo, 1000), -1);
    assert_error(ERR_DATA, "empty.txt: no prompts");
}

static void published_question_files_load(void **state)
{
    (void)state;
    static const struct {
        const char *file, *field;
        int n;
    } cases[] = {{"gsm8k_test.jsonl", "question", 1319},
                 {"mt_bench_question.jsonl", "turns.0", 80},
                 {"vicuna_bench_question.jsonl", "turns.0", 80}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *name = path_join("prompts", cases[i].file), *path = test_data_path(name);
        free(name);
        if (!path)
            skip();
        char *full = realpath(path, NULL);
        char *yaml = xasprintf("prompts: {file: %s, field: %s}\n", full, cases[i].field);
        load(yaml);
        assert_int_equal(set->n, cases[i].n);
        for (int j = 0; j < set->n; j++)
            assert_null(set->prompt[j].error);
        free(yaml);
        free(full);
        free(path);
    }
}

/* ---- fingerprints ---- */

static void fingerprint_of(char out[SHA256_HEX_LEN + 1], const char *yaml)
{
    load(yaml);
    memcpy(out, set->fingerprint, SHA256_HEX_LEN + 1);
}

static void a_fingerprint_is_of_contents_alone(void **state)
{
    (void)state;
    char list[SHA256_HEX_LEN + 1], other[SHA256_HEX_LEN + 1];
    free(test_write_text("a.txt", "one\ntwo\n"));
    free(test_write_text("b.jsonl", "{\"q\": \"one\"}\n{\"q\": \"two\"}\n"));
    fingerprint_of(list, "prompts: {list: [one, two]}\n");
    fingerprint_of(other, "prompts: {file: a.txt}\n");
    assert_string_equal(list, other);
    fingerprint_of(other, "prompts: {file: b.jsonl, field: q}\n");
    assert_string_equal(list, other);
    fingerprint_of(other, "prompts: {list: [two, one]}\n");
    assert_string_not_equal(list, other);
    fingerprint_of(other, "prompts: {list: [one, two], limit: 1}\n");
    assert_string_not_equal(list, other);
    fingerprint_of(other, "prompts: {list: [one, two], chat: true}\n");
    assert_string_not_equal(list, other);
}

/* ---- synthetic ---- */

#define SYNTHETIC(keys) "prompts: {synthetic: {" keys "}}\n"

static int load_synthetic(const char *yaml, int vocab)
{
    return load_with(yaml, NULL, vocab);
}

static void load_synthetic_ok(const char *yaml, int vocab)
{
    if (load_synthetic(yaml, vocab) != 0)
        fail_msg("%s", err_get());
}

static void fixed_lengths_are_taken_in_turn(void **state)
{
    (void)state;
    load_synthetic_ok(SYNTHETIC("num_prompts: 5, input_len: [3, 1], output_len: [7, 8, 9]"), 50);
    static const int inputs[] = {3, 1, 3, 1, 3}, outputs[] = {7, 8, 9, 7, 8};
    assert_int_equal(set->n, 5);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(set->prompt[i].n_ids, inputs[i]);
        assert_int_equal(set->prompt[i].max_tokens, outputs[i]);
        assert_null(set->prompt[i].text);
        for (int j = 0; j < set->prompt[i].n_ids; j++)
            assert_in_range(set->prompt[i].ids[j], 0, 49);
    }
    load_synthetic_ok(SYNTHETIC("num_prompts: 1, input_len: 17"), 50);
    assert_int_equal(set->prompt[0].n_ids, 17);
    assert_int_equal(set->prompt[0].max_tokens, 0);
}

/* Python 3.11: r = random.Random(7)
 * [[r.randint(3, 9) for _ in range(r.randint(1, 4))] for _ in range(3)]
 * [r.randint(2, 5) for _ in range(3)] */
static void uniform_lengths_are_drawn_before_the_ids(void **state)
{
    (void)state;
    static const int ids[3][4] = {{4, 6, 8}, {3}, {5}};
    static const int n_ids[] = {3, 1, 1}, outputs[] = {2, 3, 2};
    load_synthetic_ok(SYNTHETIC("lengths: uniform, num_prompts: 3, input_len: [1, 4], "
                                "output_len: [2, 5], token_ids: [3, 9], seed: 7"),
                      10);
    assert_int_equal(set->n, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(set->prompt[i].n_ids, n_ids[i]);
        assert_memory_equal(set->prompt[i].ids, ids[i], (size_t)n_ids[i] * sizeof(int));
        assert_int_equal(set->prompt[i].max_tokens, outputs[i]);
    }
}

static void the_published_workload_comes_out_exactly(void **state)
{
    (void)state;
    forget(NULL);
    if (config_load(&config, "configs/workload_n.yaml", NULL, 0) != 0 ||
        prompt_set_load(&set, config, &config->base, NULL, 151936, "m") != 0)
        fail_msg("%s", err_get());
    int64_t n_output = 0;
    for (int i = 0; i < set->n; i++)
        n_output += set->prompt[i].max_tokens;
    assert_int_equal(set->n, 256);
    assert_int_equal(prompt_set_tokens(set, NULL), 142827);
    assert_int_equal(n_output, 133966);
    /* The hash that the config expects was checked by loading. */
    assert_contains(config->synthetic->expect.sha256, "0f90dc986b7cbe3b");
}

static void workload_m_alternates_its_two_lengths(void **state)
{
    (void)state;
    forget(NULL);
    if (config_load(&config, "configs/workload_m.yaml", NULL, 0) != 0 ||
        prompt_set_load(&set, config, &config->base, NULL, 151936, "m") != 0)
        fail_msg("%s", err_get());
    assert_int_equal(set->n, 60);
    for (int i = 0; i < 60; i++) {
        assert_int_equal(set->prompt[i].n_ids, i % 2 ? 117 : 72);
        assert_int_equal(set->prompt[i].max_tokens, 256);
    }
}

static void what_is_expected_must_come_out(void **state)
{
    (void)state;
#define UNIFORM "lengths: uniform, num_prompts: 3, input_len: [1, 4], output_len: [2, 5], "
    assert_int_equal(load_synthetic(SYNTHETIC(UNIFORM "expect: {input_tokens: 99}"), 50), -1);
    assert_error(ERR_DATA, " input tokens; expect says 99");
    assert_int_equal(load_synthetic(SYNTHETIC(UNIFORM "expect: {output_tokens: 99}"), 50), -1);
    assert_error(ERR_DATA, " output tokens; expect says 99");
    assert_int_equal(
        load_synthetic(SYNTHETIC(UNIFORM "expect: {sha256: "
                                         "0f90dc986b7cbe3bfe248c54d7ebe32ea77843fc6e254137c2d2489f2"
                                         "eb0c0e9}"),
                       50),
        -1);
    assert_error(ERR_DATA,
                 "; expect says 0f90dc986b7cbe3bfe248c54d7ebe32ea77843fc6e254137c2d2489f");
#undef UNIFORM
}

static void ids_must_lie_in_the_vocabulary(void **state)
{
    (void)state;
    const char *yaml = SYNTHETIC("num_prompts: 1, input_len: 2, token_ids: [0, 49]");
    load_synthetic_ok(yaml, 50);
    assert_int_equal(load_synthetic(yaml, 49), -1);
    assert_error(ERR_CONFIG, "token_ids goes up to 49; the vocabulary of the-model has 49 ids");
}

static void too_many_tokens_are_refused_before_any_is_drawn(void **state)
{
    (void)state;
    static const char *const cases[] = {
        SYNTHETIC("num_prompts: 129, input_len: 4194304"),
        SYNTHETIC("num_prompts: 10000000, input_len: [1, 4194304]"),
        SYNTHETIC("lengths: uniform, num_prompts: 10000000, input_len: [54, 100]"),
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        double start = time_monotonic_s();
        assert_int_equal(load_synthetic(cases[i], 50), -1);
        assert_error(ERR_CONFIG, "prompts.synthetic: more than 536870912 tokens in all");
        assert_true(time_monotonic_s() - start < 5);
    }
}

static void offset_and_limit_take_a_part_of_what_is_drawn(void **state)
{
    (void)state;
    load_synthetic_ok(SYNTHETIC("num_prompts: 6, input_len: 4, seed: 3"), 50);
    int third[4];
    memcpy(third, set->prompt[2].ids, sizeof(third));
    load_synthetic_ok("prompts: {synthetic: {num_prompts: 6, input_len: 4, seed: 3, "
                      "expect: {input_tokens: 24}}, offset: 2, limit: 3}\n",
                      50);
    assert_int_equal(set->n, 3);
    assert_memory_equal(set->prompt[0].ids, third, sizeof(third));
}

/* ---- traces ---- */

static void a_trace_gives_its_lengths_by_column_name(void **state)
{
    (void)state;
    free(test_write_text("t.csv", "\"when, UTC\",out,\"in \"\"x\"\"\",rest\r\n"
                                  "\"a,b\",5,3,\r\n"
                                  "c,x,4,\n"
                                  "\n"
                                  "d,6\n"
                                  "e,7,0,z\n"
                                  "f,\"8\",2,y"));
#define TRACE(keys) SYNTHETIC("lengths: trace, file: t.csv, " keys)
    const char *both = TRACE("input_column: 'in \"x\"', output_column: out");
    load_synthetic_ok(both, 50);
    assert_int_equal(set->n, 5);
    assert_int_equal(set->prompt[0].n_ids, 3);
    assert_int_equal(set->prompt[0].max_tokens, 5);
    assert_error_of(1, "t.csv:3: expected lengths");
    assert_error_of(2, "t.csv:5: expected lengths");
    assert_error_of(3, "t.csv:6: expected lengths");
    assert_int_equal(set->prompt[4].n_ids, 2);
    assert_int_equal(set->prompt[4].max_tokens, 8);

    load_synthetic_ok(TRACE("input_column: 'in \"x\"', num_prompts: 2"), 50);
    assert_int_equal(set->n, 2);
    assert_int_equal(set->prompt[1].n_ids, 4);
    assert_int_equal(set->prompt[1].max_tokens, 0);

    assert_int_equal(load_synthetic(TRACE("input_column: in"), 50), -1);
    assert_error(ERR_DATA,
                 "t.csv:1: no column 'in'; its columns are when, UTC, out, in \"x\", rest");
#undef TRACE
}

/* Sums and counts by Python's csv module over the same files. */
static void published_traces_load(void **state)
{
    (void)state;
    static const struct {
        const char *file, *input, *output;
        int n;
        int64_t n_input, n_output;
    } cases[] = {
        {"AzureLLMInferenceTrace_conv.csv", "ContextTokens", "GeneratedTokens", 19366, 22361870,
         4088665},
        {"vidur_arxiv_summarization_llama2_stats.csv", "num_prefill_tokens", "num_decode_tokens",
         28257, 73131321, 8234948},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *name = path_join("traces", cases[i].file), *path = test_data_path(name);
        free(name);
        if (!path)
            skip();
        char *full = realpath(path, NULL);
        char *yaml = xasprintf("prompts: {synthetic: {lengths: trace, file: %s, input_column: %s, "
                               "output_column: %s, expect: {input_tokens: %lld, output_tokens: "
                               "%lld}}}\n",
                               full, cases[i].input, cases[i].output, (long long)cases[i].n_input,
                               (long long)cases[i].n_output);
        load_synthetic_ok(yaml, 50);
        assert_int_equal(set->n, cases[i].n);
        free(yaml);
        free(full);
        free(path);
    }
}

#define PROMPTS_TEST(f) cmocka_unit_test_teardown(f, forget)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PROMPTS_TEST(list_items_are_texts_or_token_ids),
        PROMPTS_TEST(an_id_outside_the_vocabulary_fails_its_prompt_alone),
        PROMPTS_TEST(text_needs_a_tokenizer),
        PROMPTS_TEST(chat_puts_each_prompt_into_the_template),
        PROMPTS_TEST(conversations_are_rendered_and_may_bring_their_system_message),
        PROMPTS_TEST(a_template_that_is_not_known_is_named),
        PROMPTS_TEST(chat_without_a_template_is_plain_text_and_says_so),
        PROMPTS_TEST(a_text_file_has_a_prompt_per_line),
        PROMPTS_TEST(a_line_that_is_not_utf8_fails_its_prompt_alone),
        PROMPTS_TEST(offset_and_limit_take_a_part),
        PROMPTS_TEST(a_bad_line_of_jsonl_fails_its_prompt_alone),
        PROMPTS_TEST(a_missing_or_empty_file_is_an_error),
        PROMPTS_TEST(published_question_files_load),
        PROMPTS_TEST(a_fingerprint_is_of_contents_alone),
        PROMPTS_TEST(fixed_lengths_are_taken_in_turn),
        PROMPTS_TEST(uniform_lengths_are_drawn_before_the_ids),
        PROMPTS_TEST(the_published_workload_comes_out_exactly),
        PROMPTS_TEST(workload_m_alternates_its_two_lengths),
        PROMPTS_TEST(what_is_expected_must_come_out),
        PROMPTS_TEST(ids_must_lie_in_the_vocabulary),
        PROMPTS_TEST(too_many_tokens_are_refused_before_any_is_drawn),
        PROMPTS_TEST(offset_and_limit_take_a_part_of_what_is_drawn),
        PROMPTS_TEST(a_trace_gives_its_lengths_by_column_name),
        PROMPTS_TEST(published_traces_load),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
