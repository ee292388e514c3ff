/* chat.c - see chat.h. chat_template.c recognises templates; here is what each format prints. */
#include "engine/chat.h"

#include <string.h>

#include "engine/chat_template.h"
#include "engine/text.h"

#define QUOTED_BYTES 60 /* of an unknown template in a message */

static const char *const format_names[] = {
    [CHAT_PLAIN] = "plain",   [CHAT_CHATML] = "chatml", [CHAT_LLAMA2] = "llama2",
    [CHAT_LLAMA3] = "llama3", [CHAT_PHI3] = "phi3",
};

const char *chat_format_name(enum chat_format format)
{
    return format_names[format];
}

static int refuse_template(const char *text, const char *origin)
{
    char quoted[QUOTED_BYTES + 1];
    size_t n = 0;
    for (; n < QUOTED_BYTES && text[n]; n++)
        quoted[n] = (unsigned char)text[n] < ' ' ? ' ' : text[n];
    n = utf8_complete_prefix(quoted, n);
    return err_set(ERR_DATA,
                   "%s: unknown chat template, which starts with '%.*s'; known are certain "
                   "templates of the formats chatml, llama2, llama3 and phi3",
                   origin, (int)n, quoted);
}

int chat_format_detect(enum chat_format *out, const char *template_text, const char *origin)
{
    struct chat_template t;
    *out = CHAT_PLAIN;
    if (!template_text)
        return 0;
    bool known = chat_template_recognise(&t, template_text);
    *out = t.format;
    chat_template_free(&t);
    return known ? 0 : refuse_template(template_text, origin);
}

/* ---- text as Python's string methods see it ---- */

struct slice {
    const char *s;
    size_t n;
};

static struct slice slice_of(const char *text)
{
    return (struct slice){text, strlen(text)};
}

static void append_slice(struct str *out, struct slice text)
{
    str_append(out, text.s, text.n);
}

/* str.isspace: White_Space and four separators of ASCII. */
static bool is_python_space(uint32_t c)
{
    return text_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

/* str.strip() */
static struct slice strip(struct slice text)
{
    size_t start = 0, end = 0, len;
    for (size_t at = 0; at < text.n; at += len) {
        bool space = is_python_space(text_next(text.s + at, text.n - at, &len));
        if (space && start == at)
            start = at + len;
        if (!space)
            end = at + len;
    }
    return (struct slice){text.s + start, end > start ? end - start : 0};
}

/* str.lstrip('\n') and str.rstrip('\n') */
static struct slice strip_newlines_left(struct slice text)
{
    while (text.n > 0 && text.s[0] == '\n') {
        text.s++;
        text.n--;
    }
    return text;
}

static struct slice strip_newlines_right(struct slice text)
{
    while (text.n > 0 && text.s[text.n - 1] == '\n')
        text.n--;
    return text;
}

/* What stands before the first, and behind the last, occurrence of mark; the text without one. */
static struct slice before_first(struct slice text, const char *mark)
{
    const char *found = memmem(text.s, text.n, mark, strlen(mark));
    return found ? (struct slice){text.s, (size_t)(found - text.s)} : text;
}

static struct slice after_last(struct slice text, const char *mark)
{
    const char *found;
    size_t len = strlen(mark);
    while ((found = memmem(text.s, text.n, mark, len))) {
        text.n -= (size_t)(found - text.s) + len;
        text.s = found + len;
    }
    return text;
}

/* ---- the formats ---- */

/* One call of chat_render. */
struct chat {
    struct str *out;
    const struct chat_options *options;
    struct chat_template template; /* known, or of the format and nothing else */
    const struct chat_message *messages;
    size_t n;
};

static bool has_role(const struct chat_message *message, const char *role)
{
    return strcmp(message->role, role) == 0;
}

static bool has_trait(const struct chat *c, enum chat_trait trait)
{
    return c->template.traits & trait;
}

static void render_plain(struct chat *c)
{
    for (size_t i = 0; i < c->n; i++) {
        if (i > 0)
            str_append_c(c->out, "\n");
        str_append_c(c->out, c->messages[i].content);
    }
}

/* Index of the last message of the user that is not the answer of a tool; what comes later belongs
 * to the turn that is still going on. */
static size_t last_query(const struct chat *c)
{
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    for (size_t i = c->n; i-- > 0;) {
        struct slice content = slice_of(c->messages[i].content);
        if (has_role(&c->messages[i], "user") &&
            !(strncmp(content.s, open, strlen(open)) == 0 && content.n >= strlen(close) &&
              strcmp(content.s + content.n - strlen(close), close) == 0))
            return i;
    }
    return c->n - 1;
}

/* Qwen3 prints the thoughts of an answer only in the turn that is still going on. */
static void append_answer(const struct chat *c, size_t index, size_t query)
{
    struct slice content = slice_of(c->messages[index].content), thought = {"", 0};
    if (strstr(content.s, "</think>")) {
        thought = strip_newlines_right(before_first(content, "</think>"));
        thought = strip_newlines_left(after_last(thought, "<think>"));
        content = strip_newlines_left(after_last(content, "</think>"));
    }
    if (index > query && (index + 1 == c->n || thought.n > 0)) {
        str_append_c(c->out, "<think>\n");
        append_slice(c->out, strip_newlines_right(strip_newlines_left(thought)));
        str_append_c(c->out, "\n</think>\n\n");
        content = strip_newlines_left(content);
    }
    append_slice(c->out, content);
}

static void render_chatml(struct chat *c)
{
    const struct str *prompt = &c->template.default_system;
    size_t query = has_trait(c, CHAT_THINKS) ? last_query(c) : 0;
    if (has_trait(c, CHAT_PRINTS_BOS))
        str_append_c(c->out, c->options->bos);
    if (prompt->data && !has_role(&c->messages[0], "system"))
        str_appendf(c->out, "<|im_start|>system\n%s<|im_end|>\n", prompt->data);
    for (size_t i = 0; i < c->n; i++) {
        const struct chat_message *message = &c->messages[i];
        str_appendf(c->out, "<|im_start|>%s\n", message->role);
        if (has_trait(c, CHAT_THINKS) && has_role(message, "assistant"))
            append_answer(c, i, query);
        else
            str_append_c(c->out, message->content);
        str_append_c(c->out, "<|im_end|>\n");
    }
    if (c->options->add_generation_prompt)
        str_append_c(c->out, "<|im_start|>assistant\n");
}

static void append_llama3_turn(struct chat *c, const char *role, struct slice content)
{
    str_appendf(c->out, "<|start_header_id|>%s<|end_header_id|>\n\n", role);
    append_slice(c->out, content);
    str_append_c(c->out, "<|eot_id|>");
}

/* Llama-3.1's dates are constants of its template. */
static void append_dates(struct chat *c, struct slice system)
{
    struct str content = {0};
    str_append_c(&content, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    append_slice(&content, system);
    append_llama3_turn(c, "system", (struct slice){content.data, content.len});
    str_free(&content);
}

static void render_llama3(struct chat *c)
{
    size_t first = 0;
    if (has_trait(c, CHAT_PRINTS_BOS))
        str_append_c(c->out, c->options->bos);
    if (has_trait(c, CHAT_SYSTEM_HEADER)) {
        first = has_role(&c->messages[0], "system");
        append_dates(c, first ? strip(slice_of(c->messages[0].content)) : slice_of(""));
    }
    for (size_t i = first; i < c->n; i++)
        append_llama3_turn(c, c->messages[i].role, strip(slice_of(c->messages[i].content)));
    if (c->options->add_generation_prompt || has_trait(c, CHAT_ALWAYS_OPENS))
        str_append_c(c->out, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

static void append_llama2_question(struct chat *c, const char *system, const char *question)
{
    struct str content = {0};
    if (system)
        str_appendf(&content, "<<SYS>>\n%s\n<</SYS>>\n\n", system);
    str_append_c(&content, question);
    str_appendf(c->out, "%s[INST] ", c->options->bos);
    append_slice(c->out, strip((struct slice){content.data, content.len}));
    str_append_c(c->out, " [/INST]");
    str_free(&content);
}

static int render_llama2(struct chat *c)
{
    size_t first = has_role(&c->messages[0], "system");
    const char *system = first ? c->messages[0].content : NULL;
    for (size_t i = first; i < c->n; i++) {
        const struct chat_message *message = &c->messages[i];
        bool asks = (i - first) % 2 == 0;
        if (!has_role(message, asks ? "user" : "assistant"))
            return err_set(ERR_DATA,
                           "message %zu is of role '%s': in the format llama2, after an optional "
                           "system message, user and assistant alternate",
                           i, message->role);
        if (asks) {
            append_llama2_question(c, i == first ? system : NULL, message->content);
        } else {
            str_append_c(c->out, " ");
            append_slice(c->out, strip(slice_of(message->content)));
            str_appendf(c->out, " %s", c->options->eos);
        }
    }
    return 0;
}

static void render_phi3(struct chat *c)
{
    if (has_trait(c, CHAT_PRINTS_BOS))
        str_append_c(c->out, c->options->bos);
    for (size_t i = 0; i < c->n; i++) {
        const struct chat_message *message = &c->messages[i];
        if (has_trait(c, CHAT_SKIPS_EMPTY_SYSTEM) && has_role(message, "system") &&
            !message->content[0])
            continue;
        str_appendf(c->out, "<|%s|>\n%s<|end|>\n", message->role, message->content);
    }
    if (c->options->add_generation_prompt)
        str_append_c(c->out, "<|assistant|>\n");
    else if (has_trait(c, CHAT_EOS_UNLESS_OPEN))
        str_append_c(c->out, c->options->eos);
}

/* ---- rendering ---- */

static int check_messages(const struct chat_message *messages, size_t n)
{
    if (n == 0 || n > CHAT_MAX_MESSAGES)
        return err_set(ERR_DATA, "a conversation of %zu messages; from 1 to %d are possible", n,
                       CHAT_MAX_MESSAGES);
    for (size_t i = 0; i < n; i++) {
        if (!has_role(&messages[i], "system") && !has_role(&messages[i], "user") &&
            !has_role(&messages[i], "assistant"))
            return err_set(ERR_DATA,
                           "message %zu: unknown role '%.40s'; expected system, user or assistant",
                           i, messages[i].role);
    }
    return 0;
}

/* What the format prints without a template: BOS where the format's own models have it. */
static void use_plain_format(struct chat_template *t, enum chat_format format)
{
    t->format = format;
    if (format == CHAT_LLAMA3)
        t->traits = CHAT_PRINTS_BOS;
}

static int render_format(struct chat *c)
{
    switch (c->template.format) {
    case CHAT_CHATML: render_chatml(c); return 0;
    case CHAT_LLAMA2: return render_llama2(c);
    case CHAT_LLAMA3: render_llama3(c); return 0;
    case CHAT_PHI3: render_phi3(c); return 0;
    default: render_plain(c); return 0;
    }
}

int chat_render(struct str *out, const struct chat_options *options,
                const struct chat_message *messages, size_t n_messages)
{
    struct chat c = {.out = out, .options = options, .messages = messages, .n = n_messages};
    size_t len = out->len;
    if (check_messages(messages, n_messages) < 0)
        return -1;
    if (!options->template_text || options->format == CHAT_PLAIN)
        use_plain_format(&c.template, options->format);
    else if (!chat_template_recognise(&c.template, options->template_text) ||
             c.template.format != options->format) {
        chat_template_free(&c.template);
        return err_set(ERR_DATA, "the chat template is not one that is known for the format %s",
                       chat_format_name(options->format));
    }
    int result = render_format(&c);
    if (result < 0 && out->data) {
        out->len = len;
        out->data[len] = '\0';
    }
    chat_template_free(&c.template);
    return result;
}
