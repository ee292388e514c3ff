/* tokenizer_load.c - puts a tokenizer together from the text of a tokenizer.json.
 *
 * The two large tables, model.vocab and model.merges, are read in place and cut out; jansson parses
 * what is left, about 10 KB.
 */
#include "engine/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- cutting the tables out ---- */

struct cut {
    size_t start, end; /* of a table in the file */
};

struct document {
    struct scan scan;
    struct cut cuts[2]; /* in the order of the file */
    size_t n_cuts;
    size_t merges_at; /* where they start when the vocabulary comes later, else 0 */
};

static int cut_table(struct document *d, size_t start)
{
    if (d->n_cuts == ARRAY_LEN(d->cuts))
        return scan_fail(&d->scan, "a second vocabulary or list of merges");
    d->cuts[d->n_cuts++] = (struct cut){start, d->scan.at};
    return 0;
}

static int read_merges(struct tokenizer *t, struct document *d)
{
    if (t->vocab.slots)
        return bpe_load_merges(&t->bpe, &t->vocab, &d->scan);
    d->merges_at = d->scan.at;
    return scan_value(&d->scan);
}

/* Called for each member of an object; the scanner stands before its value. */
typedef int (*member_visitor)(struct tokenizer *t, struct document *d, const char *name);

static int visit_members(struct tokenizer *t, struct document *d, member_visitor visit)
{
    struct str name = {0};
    int result = scan_expect(&d->scan, '{');
    if (result == 0 && !scan_skip(&d->scan, '}')) {
        do {
            str_clear(&name);
            if (scan_string(&d->scan, &name) < 0 || scan_expect(&d->scan, ':') < 0 ||
                visit(t, d, name.data) < 0)
                result = -1;
        } while (result == 0 && scan_skip(&d->scan, ','));
        if (result == 0)
            result = scan_expect(&d->scan, '}');
    }
    str_free(&name);
    return result;
}

/* A model of another type keeps its vocabulary in another form, so that the type is looked at
 * before the tables are. Old files do not name it. */
static int check_model_type(struct scan *s)
{
    struct str type = {0};
    int result = scan_string(s, &type);
    if (result == 0 && strcmp(type.data, "BPE") != 0)
        result = component_unknown("model", type.data);
    str_free(&type);
    return result;
}

static int visit_model(struct tokenizer *t, struct document *d, const char *name)
{
    size_t start = d->scan.at;
    if (strcmp(name, "type") == 0)
        return check_model_type(&d->scan);
    if (strcmp(name, "vocab") == 0)
        return vocab_load(&t->vocab, &d->scan) < 0 ? -1 : cut_table(d, start);
    if (strcmp(name, "merges") == 0)
        return read_merges(t, d) < 0 ? -1 : cut_table(d, start);
    return scan_value(&d->scan);
}

static int visit_file(struct tokenizer *t, struct document *d, const char *name)
{
    return strcmp(name, "model") == 0 ? visit_members(t, d, visit_model) : scan_value(&d->scan);
}

static int read_tables(struct tokenizer *t, struct document *d)
{
    if (visit_members(t, d, visit_file) < 0)
        return -1;
    if (t->vocab.slots && d->merges_at > 0) {
        d->scan.at = d->merges_at;
        if (bpe_load_merges(&t->bpe, &t->vocab, &d->scan) < 0)
            return -1;
    }
    if (!t->vocab.slots || !t->bpe.pairs)
        return err_set(ERR_DATA, "expected a model with a vocabulary and merges");
    return 0;
}

/* Where a position in the text without its tables was in the file. */
static size_t position_in_file(const struct document *d, size_t position)
{
    for (size_t i = 0; i < d->n_cuts && position > d->cuts[i].start; i++)
        position += d->cuts[i].end - d->cuts[i].start - strlen("null");
    return MIN(position, d->scan.n);
}

static json_t *parse_rest(struct document *d)
{
    struct str rest = {0};
    json_error_t error;
    size_t at = 0;
    for (size_t i = 0; i < d->n_cuts; i++) {
        str_append(&rest, d->scan.text + at, d->cuts[i].start - at);
        str_append_c(&rest, "null");
        at = d->cuts[i].end;
    }
    str_append(&rest, d->scan.text + at, d->scan.n - at);
    json_t *root = json_loadb(rest.data, rest.len, JSON_REJECT_DUPLICATES, &error);
    str_free(&rest);
    if (!root) {
        d->scan.at = position_in_file(d, (size_t)error.position);
        scan_fail(&d->scan, error.text);
    }
    return root;
}

/* ---- added tokens ---- */

static int load_added_token(struct tokenizer *t, const json_t *json, bool want_special)
{
    struct added_token token = {0};
    bool special = false, normalized = true;
    const char *content = NULL;
    size_t n = json_string_length(json_object_get(json, "content"));
    if (component_text(json, "content", &content) < 0 ||
        component_bool(json, "special", &special) < 0 ||
        component_bool(json, "single_word", &token.single_word) < 0 ||
        component_bool(json, "lstrip", &token.lstrip) < 0 ||
        component_bool(json, "rstrip", &token.rstrip) < 0 ||
        component_bool(json, "normalized", &normalized) < 0 ||
        component_int(json, "id", TOKENIZER_MAX_VOCAB, &token.id) < 0)
        return -1;
    if (!content)
        return err_set(ERR_DATA, "an added token without content");
    if (special != want_special || n == 0)
        return 0;
    int known = vocab_find(&t->vocab, content, n);
    if (known >= 0 && known != token.id)
        return err_set(ERR_DATA, "added token '%.100s' has id %d, but %d in the vocabulary",
                       content, token.id, known);
    if (vocab_set(&t->vocab, token.id, content, n) < 0)
        return -1;
    t->vocab.tokens[token.id].special = special;
    t->vocab.tokens[token.id].normalized = normalized;
    if (!normalized) {
        added_push(&t->raw_added, &token, content, n);
        return 0;
    }
    struct str text = {0};
    str_append(&text, content, n);
    normalizer_apply(&t->normalizer, &text);
    added_push(&t->normalized_added, &token, text.data, text.len);
    str_free(&text);
    return 0;
}

/* Special tokens come first: of two that are written alike the first one is found. */
static int load_added_tokens(struct tokenizer *t, const json_t *list)
{
    if (list && !json_is_null(list) && !json_is_array(list))
        return err_set(ERR_DATA, "added_tokens: expected a list");
    if (json_array_size(list) > TOKENIZER_MAX_ADDED)
        return err_set(ERR_DATA, "added_tokens: more than %zu", TOKENIZER_MAX_ADDED);
    for (int special = 1; special >= 0; special--) {
        for (size_t i = 0; i < json_array_size(list); i++) {
            if (load_added_token(t, json_array_get(list, i), special) < 0)
                return err_prefix("added_tokens[%zu]", i);
        }
    }
    added_sort(&t->raw_added);
    added_sort(&t->normalized_added);
    return 0;
}

/* ---- post-processor ---- */

/* Appends the ids of a special token of a template. */
static int push_template_ids(const struct tokenizer *t, struct token_list *list,
                             const json_t *tokens, const char *name)
{
    const json_t *ids = json_object_get(json_object_get(tokens, name), "ids");
    if (json_array_size(ids) == 0)
        return err_set(ERR_DATA, "post_processor: special token '%.100s' has no ids", name);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        json_int_t id = json_integer_value(json_array_get(ids, i));
        size_t n;
        if (!json_is_integer(json_array_get(ids, i)) || id < 0 || id > INT32_MAX ||
            !vocab_get(&t->vocab, (int)id, &n))
            return err_set(ERR_DATA, "post_processor: '%.100s' has an id that no token has", name);
        token_list_push(list, (int)id);
    }
    return 0;
}

static int load_template(struct tokenizer *t, const json_t *component)
{
    const json_t *single = json_object_get(component, "single");
    const json_t *tokens = json_object_get(component, "special_tokens");
    struct token_list *list = &t->prefix;
    if (t->has_template || !json_is_array(single))
        return err_set(ERR_DATA, "post_processor: expected one template with a list 'single'");
    t->has_template = true;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const char *name =
            json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        if (name && push_template_ids(t, list, tokens, name) < 0)
            return -1;
        if (name)
            continue;
        if (!json_is_object(json_object_get(item, "Sequence")) || list == &t->suffix)
            return err_set(ERR_DATA, "post_processor: a template that is not tokens around a text");
        list = &t->suffix;
    }
    return list == &t->suffix ? 0 : err_set(ERR_DATA, "post_processor: a template without a text");
}

/* A ByteLevel post-processor only trims offsets, which quire does not keep. */
static int load_post_processor(void *target, const json_t *component, const char *type)
{
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(target, component);
    return strcmp(type, "ByteLevel") == 0 ? 0 : component_unknown("post_processor", type);
}

/* ---- the whole file ---- */

static int load_components(struct tokenizer *t, const json_t *root)
{
    if (bpe_load_settings(&t->bpe, &t->vocab, json_object_get(root, "model")) < 0 ||
        normalizer_load(&t->normalizer, json_object_get(root, "normalizer")) < 0 ||
        splitter_load(&t->splitter, json_object_get(root, "pre_tokenizer")) < 0 ||
        decoder_load(&t->decoder, json_object_get(root, "decoder")) < 0 ||
        load_added_tokens(t, json_object_get(root, "added_tokens")) < 0)
        return -1;
    return component_each(json_object_get(root, "post_processor"), "post_processor", "processors",
                          load_post_processor, t);
}

int tokenizer_load(struct tokenizer *t, const char *text, size_t n)
{
    struct document document = {.scan = {.text = text, .n = n}};
    if (read_tables(t, &document) < 0)
        return -1;
    json_t *root = parse_rest(&document);
    if (!root)
        return -1;
    int result = load_components(t, root);
    json_decref(root);
    return result;
}
