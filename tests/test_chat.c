/* Chat formats against what Jinja2 makes of the models' own templates. */
#include "tests/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"

#define MAX_TURNS 16

/* ---- helpers ---- */

/* The template of a folder's tokenizer_config.json or of a .jinja file of the shared data. */
static char *shared_template(const char *name)
{
    char *path = test_data_path(name), *text = NULL;
    if (path && strstr(name, ".jinja")) {
        text = file_read(path, NULL);
    } else if (path) {
        char *config_path = path_join(path, "tokenizer_config.json");
        json_t *config = json_load_file(config_path, JSON_DECODE_INT_AS_REAL, NULL);
        text = xstrdup(json_string_value(json_object_get(config, "chat_template")));
        json_decref(config);
        free(config_path);
    }
    free(path);
    return text;
}

/* The template that rendered.jsonl calls "llama.cpp:NAME" or "tokenizer_config:NAME". */
static char *golden_template(const char *name)
{
    const char *colon = strchr(name, ':');
    char *path = strncmp(name, "llama.cpp:", 10) == 0
                     ? xasprintf("chat-templates/llama.cpp/%s.jinja", colon + 1)
                     : xasprintf("tokenizers/%s", colon + 1);
    char *text = shared_template(path);
    free(path);
    return text;
}

static bool is_renderable(const char *name)
{
    static const char *const refused[] = {"SmolLM3", "DeepSeek", "gemma", "Mistral"};
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        if (strstr(name, refused[i]))
            return false;
    }
    return true;
}

static struct chat_message message_at(const json_t *turn)
{
    if (json_is_object(turn))
        return (struct chat_message){json_string_value(json_object_get(turn, "role")),
                                     json_string_value(json_object_get(turn, "content"))};
    return (struct chat_message){json_string_value(json_array_get(turn, 0)),
                                 json_string_value(json_array_get(turn, 1))};
}

static int render(struct str *out, const struct chat_options *options, const json_t *conversation)
{
    struct chat_message messages[MAX_TURNS];
    size_t n = json_array_size(conversation);
    assert_true(n <= MAX_TURNS);
    for (size_t i = 0; i < n; i++)
        messages[i] = message_at(json_array_get(conversation, i));
    return chat_render(out, options, messages, n);
}

/* want is NULL where the conversation must be refused. */
static void assert_renders(const char *name, const struct chat_options *options,
                           const json_t *conversation, const char *want)
{
    struct str out = {0};
    str_append_c(&out, "before ");
    int result = render(&out, options, conversation);
    if (want && (result != 0 || strcmp(out.data + strlen("before "), want) != 0))
        fail_msg("%s: got\n%s\nexpected\n%s\n%s", name, out.data, want, err_get());
    if (!want) {
        assert_int_equal(result, -1);
        assert_int_equal(err_get_kind(), ERR_DATA);
        assert_string_equal(out.data, "before ");
    }
    str_free(&out);
}

static void assert_refused(const char *template_text, const char *origin)
{
    enum chat_format format;
    if (chat_format_detect(&format, template_text, origin) == 0)
        fail_msg("%s was taken for %s", origin, chat_format_name(format));
    assert_error(ERR_DATA, origin);
}

static enum chat_format detect(const char *template_text, const char *origin)
{
    enum chat_format format;
    if (chat_format_detect(&format, template_text, origin) != 0)
        fail_msg("%s", err_get());
    return format;
}

static const char chatml[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/* ---- tests ---- */

static void check_shared_line(const json_t *line, const json_t *conversations)
{
    const char *name = json_string_value(json_object_get(line, "template"));
    char *text = golden_template(name);
    assert_non_null(text);
    if (!is_renderable(name)) {
        assert_refused(text, name);
    } else {
        size_t index = (size_t)json_integer_value(json_object_get(line, "conv"));
        struct chat_options options = {
            .format = detect(text, name),
            .template_text = text,
            .bos = json_string_value(json_object_get(line, "bos_token")),
            .eos = json_string_value(json_object_get(line, "eos_token")),
            .add_generation_prompt = json_is_true(json_object_get(line, "add_generation_prompt")),
        };
        assert_renders(name, &options, json_array_get(conversations, index),
                       json_string_value(json_object_get(line, "rendered")));
    }
    free(text);
}

static void shared_renderings_come_out_the_same_or_the_template_is_refused(void **state)
{
    (void)state;
    char *path = test_data_path("chat-templates/golden/rendered.jsonl");
    char *list_path = test_data_path("chat-templates/golden/conversations.json");
    if (!path || !list_path)
        skip();
    json_t *conversations = json_read_file(list_path);
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t capacity = 0, n_lines = 0;
    assert_non_null(conversations);
    assert_non_null(file);
    while (getline(&line, &capacity, file) > 0) {
        json_t *json = json_loads(line, 0, NULL);
        check_shared_line(json, conversations);
        json_decref(json);
        n_lines++;
    }
    assert_true(n_lines > 200);
    free(line);
    fclose(file);
    json_decref(conversations);
    free(path);
    free(list_path);
}

static void check_golden_template(const json_t *entry, const json_t *conversations)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *shared = json_string_value(json_object_get(entry, "shared"));
    const char *format = json_string_value(json_object_get(entry, "format"));
    char *text = shared ? shared_template(shared)
                        : xstrdup(json_string_value(json_object_get(entry, "template")));
    if (!text)
        return;
    if (!format) {
        assert_refused(text, name);
        free(text);
        return;
    }
    assert_string_equal(chat_format_name(detect(text, name)), format);
    for (int open = 0; open < 2; open++) {
        const json_t *wanted = json_object_get(entry, open ? "open" : "closed");
        struct chat_options options = {.format = detect(text, name),
                                       .template_text = text,
                                       .bos = "<BOS>",
                                       .eos = "<EOS>",
                                       .add_generation_prompt = open};
        for (size_t i = 0; i < json_array_size(conversations); i++)
            assert_renders(name, &options, json_array_get(conversations, i),
                           json_string_value(json_array_get(wanted, i)));
    }
    free(text);
}

static void conversations_of_many_shapes_come_out_as_from_jinja(void **state)
{
    (void)state;
    json_t *golden = json_read_file("tests/golden/chat/renderings.json");
    const json_t *conversations = json_object_get(golden, "conversations");
    const json_t *templates = json_object_get(golden, "templates");
    assert_true(json_array_size(conversations) > 10);
    for (size_t i = 0; i < json_array_size(templates); i++)
        check_golden_template(json_array_get(templates, i), conversations);
    json_decref(golden);
}

static void without_a_template_contents_are_joined_by_newlines(void **state)
{
    (void)state;
    enum chat_format format = CHAT_PHI3;
    struct str out = {0};
    struct chat_message messages[] = {{"system", "a"}, {"user", ""}, {"assistant", "c\n"}};
    struct chat_options options = {.format = CHAT_PLAIN, .bos = "<s>", .eos = "</s>"};
    assert_int_equal(chat_format_detect(&format, NULL, "model"), 0);
    assert_int_equal(format, CHAT_PLAIN);
    assert_int_equal(chat_render(&out, &options, messages, ARRAY_LEN(messages)), 0);
    assert_string_equal(out.data, "a\n\nc\n");
    str_free(&out);
}

static void a_format_without_its_template_prints_no_details(void **state)
{
    (void)state;
    static const struct {
        enum chat_format format;
        const char *want;
    } cases[] = {
        {CHAT_CHATML, "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\n"},
        {CHAT_LLAMA2, "<s>[INST] hi [/INST]"},
        {CHAT_LLAMA3, "<s><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
                      "<|start_header_id|>assistant<|end_header_id|>\n\n"},
        {CHAT_PHI3, "<|user|>\n hi <|end|>\n<|assistant|>\n"},
    };
    struct chat_message message = {"user", " hi "};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct str out = {0};
        struct chat_options options = {
            .format = cases[i].format, .bos = "<s>", .eos = "</s>", .add_generation_prompt = true};
        assert_int_equal(chat_render(&out, &options, &message, 1), 0);
        assert_string_equal(out.data, cases[i].want);
        str_free(&out);
    }
}

static void an_unknown_template_is_named_and_quoted(void **state)
{
    (void)state;
    assert_refused("{{ 'Q: ' }}\n{{ messages[0].content }} and more than sixty bytes of other text",
                   "models/Strange-1B");
    assert_contains(err_get(), "{{ 'Q: ' }} {{ messages");
    assert_contains(err_get(), "chatml");
}

static void broken_templates_are_refused(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "{",
        "{{",
        "{{ '",
        "{{ 'a\\",
        "{%",
        "{% if",
        "{#",
        "{# a",
        "{{}}",
        "{{-",
        "{{--}}",
        "{%+%}",
        "{{ \"a' }}",
        "}}",
        "{{ ['a'] }}",
        "{{ x['",
        "{{ x[''] }}",
        "\n",
        "{{ 'a' + }}",
        "{{ + 'a' + 'b' | c }}",
        "\xff\xfe{{ \xf0 }}",
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_refused(cases[i], "broken");
    for (size_t n = 0; n + 1 < sizeof(chatml); n++) {
        char *half = xstrndup(chatml, n);
        assert_refused(half, "half");
        free(half);
    }
}

static void a_template_of_a_megabyte_is_refused(void **state)
{
    (void)state;
    struct str text = {0};
    while (text.len < 1 << 20)
        str_append_c(&text, "{% if x %}{% endif %}");
    assert_refused(text.data, "large");
    str_free(&text);
}

static void the_default_system_prompt_is_read_off_the_template(void **state)
{
    (void)state;
    struct str text = {0}, out = {0};
    struct chat_message messages[] = {{"user", "u"}, {"system", "mine"}};
    str_append_c(&text,
                 "{% for message in messages %}{% if loop.first and messages[0]['role'] != "
                 "'system' %}{{ '<|im_start|>system\\nIt\\'s \"%s\" \\\\ here.<|im_end|>\\n' "
                 "}}{% endif %}");
    str_append_c(&text, chatml + strlen("{% for message in messages %}"));
    struct chat_options options = {
        .format = detect(text.data, "model"), .template_text = text.data, .bos = "", .eos = ""};
    assert_int_equal(chat_render(&out, &options, messages, 1), 0);
    assert_string_equal(out.data, "<|im_start|>system\nIt's \"%s\" \\ here.<|im_end|>\n"
                                  "<|im_start|>user\nu<|im_end|>\n");
    str_clear(&out);
    assert_int_equal(chat_render(&out, &options, messages + 1, 1), 0);
    assert_string_equal(out.data, "<|im_start|>system\nmine<|im_end|>\n");
    str_free(&text);
    str_free(&out);
}

static void conversations_that_no_format_prints_are_refused(void **state)
{
    (void)state;
    struct str out = {0};
    struct chat_message message = {"tool", "42"};
    struct chat_message *many = xcalloc(CHAT_MAX_MESSAGES + 1, sizeof(*many));
    for (size_t i = 0; i <= CHAT_MAX_MESSAGES; i++)
        many[i] = (struct chat_message){"user", ""};
    for (int format = 0; format < CHAT_N_FORMATS; format++) {
        struct chat_options options = {.format = (enum chat_format)format, .bos = "", .eos = ""};
        assert_int_equal(chat_render(&out, &options, &message, 1), -1);
        assert_error(ERR_DATA, "'tool'");
        assert_int_equal(chat_render(&out, &options, &message, 0), -1);
        assert_error(ERR_DATA, "0 messages");
        assert_int_equal(chat_render(&out, &options, many, CHAT_MAX_MESSAGES + 1), -1);
        assert_error(ERR_DATA, "4097 messages");
    }
    struct chat_options mixed = {
        .format = CHAT_LLAMA3, .template_text = chatml, .bos = "", .eos = ""};
    assert_int_equal(chat_render(&out, &mixed, many, 1), -1);
    assert_error(ERR_DATA, "llama3");
    free(many);
    str_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_renderings_come_out_the_same_or_the_template_is_refused),
        cmocka_unit_test(conversations_of_many_shapes_come_out_as_from_jinja),
        cmocka_unit_test(without_a_template_contents_are_joined_by_newlines),
        cmocka_unit_test(a_format_without_its_template_prints_no_details),
        cmocka_unit_test(an_unknown_template_is_named_and_quoted),
        cmocka_unit_test(broken_templates_are_refused),
        cmocka_unit_test(a_template_of_a_megabyte_is_refused),
        cmocka_unit_test(the_default_system_prompt_is_read_off_the_template),
        cmocka_unit_test(conversations_that_no_format_prints_are_refused),
    };
    return cmocka_run_group_tests_name("chat", tests, NULL, NULL);
}
