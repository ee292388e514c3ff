/* prompts.c - see prompts.h. */
#include "runner/prompts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/lines.h"
#include "runner/synthetic.h"

struct loader {
    const struct config *c;
    const struct settings *s;
    const struct tokenizer *tokenizer;
    int vocab;
    struct chat_options chat;
    struct prompt *prompt;
    size_t n, capacity;
    int64_t n_seen; /* prompts of the source so far, those before the offset included */
};

/* ---- from text to ids ---- */

static bool uses_chat(const struct loader *l)
{
    return l->s->prompts.chat || l->c->messages;
}

/* A template prints BOS itself; without one the tokenizer adds it. */
static bool adds_special(const struct loader *l)
{
    return !uses_chat(l) || l->chat.format == CHAT_PLAIN;
}

static void set_error(struct prompt *p, const char *error)
{
    free(p->error);
    p->error = xstrdup(error);
}

static void check_ids(struct prompt *p, int vocab)
{
    if (p->n_ids == 0)
        set_error(p, "the prompt has no tokens");
    for (int i = 0; i < p->n_ids; i++) {
        if (p->ids[i] >= 0 && p->ids[i] < vocab)
            continue;
        p->error =
            xasprintf("token id %d is outside of the model's vocabulary of %d", p->ids[i], vocab);
        return;
    }
}

static void encode(const struct loader *l, struct prompt *p)
{
    struct token_list ids = {0};
    size_t n = strlen(p->text);
    if (tokenizer_encode(l->tokenizer, &ids, p->text, n, adds_special(l)) != 0) {
        set_error(p, err_get());
        token_list_free(&ids);
        return;
    }
    p->ids = ids.ids;
    p->n_ids = (int)ids.n;
    check_ids(p, l->vocab);
}

static void render(const struct loader *l, struct prompt *p, const struct chat_message *messages,
                   size_t n)
{
    struct str text = {0};
    str_append_c(&text, "");
    if (chat_render(&text, &l->chat, messages, n) != 0)
        set_error(p, err_get());
    p->text = text.data;
}

/* ---- adding prompts ---- */

/* Counts a prompt of the source; false when it lies outside of offset and limit. */
static bool is_wanted(struct loader *l)
{
    int64_t index = l->n_seen++ - l->s->prompts.offset, limit = l->s->prompts.limit;
    return index >= 0 && (limit == SETTING_AUTO || index < limit);
}

static bool is_full(const struct loader *l)
{
    return l->s->prompts.limit != SETTING_AUTO && (int64_t)l->n >= l->s->prompts.limit;
}

static struct prompt *push_prompt(struct loader *l)
{
    array_reserve(&l->prompt, &l->capacity, l->n + 1, sizeof(struct prompt));
    l->prompt[l->n] = (struct prompt){0};
    return &l->prompt[l->n++];
}

static void add_text(struct loader *l, const char *text)
{
    struct prompt *p = push_prompt(l);
    if (l->s->prompts.chat) {
        const struct chat_message messages[] = {{"system", l->s->prompts.system}, {"user", text}};
        bool has_system = l->s->prompts.system[0] != '\0';
        render(l, p, has_system ? messages : messages + 1, has_system ? 2 : 1);
    } else {
        p->text = xstrdup(text);
    }
    if (!p->error)
        encode(l, p);
}

static void add_ids(struct loader *l, const struct yaml_node *list)
{
    struct prompt *p = push_prompt(l);
    p->ids = xrealloc_array(NULL, list->n_items, sizeof(int));
    for (size_t i = 0; i < list->n_items; i++) {
        int64_t id = -1;
        yaml_get_integer(&id, list->item[i]);
        p->ids[p->n_ids++] = (int)id;
    }
    if (l->s->prompts.chat)
        set_error(p, "prompts.chat needs text; this prompt is token ids");
    else
        check_ids(p, l->vocab);
}

static void add_conversation(struct loader *l, const struct yaml_node *conversation)
{
    struct prompt *p = push_prompt(l);
    const char *system = l->s->prompts.system;
    struct chat_message *messages =
        xrealloc_array(NULL, conversation->n_items + 1, sizeof(*messages));
    size_t n = 0;
    if (system[0] && strcmp(yaml_find(conversation->item[0], "role")->text, "system") != 0)
        messages[n++] = (struct chat_message){"system", system};
    for (size_t i = 0; i < conversation->n_items; i++) {
        const struct yaml_node *message = conversation->item[i];
        messages[n++] = (struct chat_message){yaml_find(message, "role")->text,
                                              yaml_find(message, "content")->text};
    }
    render(l, p, messages, n);
    free(messages);
    if (!p->error)
        encode(l, p);
}

static void add_error(struct loader *l, char *error)
{
    push_prompt(l)->error = error;
}

/* ---- sources ---- */

static int load_list(struct loader *l)
{
    for (size_t i = 0; i < l->c->list->n_items && !is_full(l); i++) {
        const struct yaml_node *item = l->c->list->item[i];
        if (!is_wanted(l))
            continue;
        if (item->kind == YAML_SEQUENCE)
            add_ids(l, item);
        else
            add_text(l, item->text);
    }
    return 0;
}

static int load_messages(struct loader *l)
{
    for (size_t i = 0; i < l->c->messages->n_items && !is_full(l); i++)
        if (is_wanted(l))
            add_conversation(l, l->c->messages->item[i]);
    return 0;
}

/* The member of a JSON value that a dotted path names, as `turns.0`; NULL when there is none. */
static const json_t *find_member(const json_t *value, const char *path)
{
    while (value) {
        const json_t *whole = json_object_get(value, path);
        if (whole)
            return whole;
        size_t n = strcspn(path, ".");
        char *word = xstrndup(path, n);
        int64_t index;
        if (json_is_array(value))
            value = parse_int64(&index, word) && index >= 0 ? json_array_get(value, (size_t)index)
                                                            : NULL;
        else
            value = json_object_get(value, word);
        free(word);
        if (path[n] == '\0')
            return value;
        path += n + 1;
    }
    return NULL;
}

static void add_json_line(struct loader *l, const char *line, size_t n, int number)
{
    const char *file = l->s->prompts.file, *field = l->s->prompts.field;
    json_error_t error;
    json_t *root = json_loadb(line, n, 0, &error);
    const json_t *text = find_member(root, field);
    if (!root)
        add_error(
            l, xasprintf("%s:%d:%d: not valid JSON: %s", file, number, error.column, error.text));
    else if (!text)
        add_error(l, xasprintf("%s:%d: no field '%s'", file, number, field));
    else if (!json_is_string(text))
        add_error(l, xasprintf("%s:%d: field '%s' is not a text", file, number, field));
    else
        add_text(l, json_string_value(text));
    json_decref(root);
}

/* SQLite takes any bytes as a text, but the readers of the database do not. */
static void add_text_line(struct loader *l, const char *line, size_t n, int number)
{
    const char *file = l->s->prompts.file;
    if (strlen(line) != n)
        add_error(l, xasprintf("%s:%d: a NUL character", file, number));
    else if (!utf8_is_valid(line, n))
        add_error(l, xasprintf("%s:%d: not valid UTF-8", file, number));
    else
        add_text(l, line);
}

static bool is_blank(const char *line, size_t n)
{
    return strspn(line, " \t\r\f\v") == n;
}

static int load_file(struct loader *l)
{
    bool is_jsonl = l->s->prompts.field[0] != '\0';
    struct lines lines;
    if (lines_init(&lines, l->s->prompts.file) != 0)
        return -1;
    char *line;
    size_t n;
    int rc = 0;
    while (rc == 0 && !is_full(l) && (line = lines_next(&lines, &n))) {
        if (is_blank(line, n) || !is_wanted(l))
            continue;
        if (l->n >= PROMPTS_MAX)
            rc = err_set(ERR_DATA, "%s: more than %d prompts", l->s->prompts.file, PROMPTS_MAX);
        else if (is_jsonl)
            add_json_line(l, line, n, lines.number);
        else
            add_text_line(l, line, n, lines.number);
    }
    lines_free(&lines);
    return rc;
}

static void prompt_free(struct prompt *p)
{
    free(p->text);
    free(p->ids);
    free(p->error);
}

static int load_synthetic(struct loader *l, const char *model_name)
{
    struct prompt *drawn;
    int n;
    if (synthetic_draw(&drawn, &n, l->c, l->vocab, model_name) != 0)
        return -1;
    for (int i = 0; i < n; i++) {
        if (is_wanted(l))
            *push_prompt(l) = drawn[i];
        else
            prompt_free(&drawn[i]);
    }
    free(drawn);
    return 0;
}

/* ---- the set ---- */

static bool needs_tokenizer(const struct config *c)
{
    if (c->synthetic)
        return false;
    for (size_t i = 0; c->list && i < c->list->n_items; i++)
        if (c->list->item[i]->kind == YAML_SCALAR)
            return true;
    return !c->list;
}

static int init_chat(struct loader *l, const char *model_name)
{
    if (!uses_chat(l) || !l->tokenizer)
        return 0;
    const char *template_text = tokenizer_chat_template(l->tokenizer);
    l->chat = (struct chat_options){.template_text = template_text,
                                    .bos = tokenizer_bos_text(l->tokenizer),
                                    .eos = tokenizer_eos_text(l->tokenizer),
                                    .add_generation_prompt = true};
    return chat_format_detect(&l->chat.format, template_text, model_name);
}

static int load_source(struct loader *l, const char *model_name)
{
    if (!l->tokenizer && needs_tokenizer(l->c))
        return err_set(ERR_CONFIG,
                       "%s has no tokenizer, and the prompts are texts: name a folder with a "
                       "tokenizer.json as model.tokenizer, or use token ids or prompts.synthetic",
                       model_name);
    if (init_chat(l, model_name) != 0)
        return -1;
    if (l->c->synthetic)
        return load_synthetic(l, model_name);
    if (l->c->list)
        return load_list(l);
    return l->c->messages ? load_messages(l) : load_file(l);
}

static void describe_source(struct prompt_set *set, const struct loader *l)
{
    static const char *const lengths[] = {"fixed", "uniform", "trace"};
    const struct settings *s = l->s;
    struct str text = {0};
    if (l->c->synthetic)
        str_appendf(&text, "synthetic (%s%s%s)", lengths[l->c->synthetic->lengths],
                    l->c->synthetic->file[0] ? ", " : "", l->c->synthetic->file);
    else if (l->c->list || l->c->messages)
        str_appendf(&text, "%s (%s)", l->c->path, l->c->list ? "prompts.list" : "prompts.messages");
    else if (s->prompts.field[0])
        str_appendf(&text, "%s (%s)", s->prompts.file, s->prompts.field);
    else
        str_appendf(&text, "%s", s->prompts.file);
    if (uses_chat(l))
        str_appendf(&text, ", chat format %s", chat_format_name(l->chat.format));
    if (s->prompts.offset > 0)
        str_appendf(&text, ", from %lld on", (long long)s->prompts.offset);
    snprintf(set->source, sizeof(set->source), "%s", text.data);
    str_free(&text);
}

/* Of contents alone: the same prompts from another file are the same set. Error texts have the
 * file's name in them, so an error counts only as one. */
static void compute_fingerprint(struct prompt_set *set)
{
    struct sha256 *hash = sha256_open();
    sha256_add_text(hash, "quire prompts 1");
    for (int i = 0; i < set->n; i++) {
        const struct prompt *p = &set->prompt[i];
        const int numbers[] = {p->n_ids, p->max_tokens, p->error != NULL, p->text != NULL};
        sha256_add(hash, numbers, sizeof(numbers));
        sha256_add(hash, p->ids, (size_t)p->n_ids * sizeof(int));
        sha256_add_text(hash, p->text ? p->text : "");
    }
    sha256_final(hash, set->fingerprint);
}

int prompt_set_load(struct prompt_set **out, const struct config *c, const struct settings *s,
                    const struct tokenizer *tokenizer, int vocab, const char *model_name)
{
    struct loader l = {.c = c, .s = s, .tokenizer = tokenizer, .vocab = vocab};
    *out = NULL;
    int rc = load_source(&l, model_name);
    struct prompt_set *set = xcalloc(1, sizeof(*set));
    set->prompt = l.prompt;
    set->n = (int)l.n;
    set->no_template = uses_chat(&l) && tokenizer && !tokenizer_chat_template(tokenizer);
    describe_source(set, &l);
    if (rc == 0 && set->n == 0)
        rc = err_set(ERR_DATA, "%s: no prompts (%lld before prompts.offset)", set->source,
                     (long long)l.n_seen);
    if (rc != 0) {
        prompt_set_free(set);
        return -1;
    }
    compute_fingerprint(set);
    *out = set;
    return 0;
}

void prompt_set_free(struct prompt_set *set)
{
    if (!set)
        return;
    for (int i = 0; i < set->n; i++)
        prompt_free(&set->prompt[i]);
    free(set->prompt);
    free(set);
}

int64_t prompt_set_tokens(const struct prompt_set *set, int *longest)
{
    int64_t sum = 0;
    int most = 0;
    for (int i = 0; i < set->n; i++) {
        sum += set->prompt[i].n_ids;
        most = MAX(most, set->prompt[i].n_ids);
    }
    if (longest)
        *longest = most;
    return sum;
}
