/* yaml.c - see yaml.h.
 *
 * libyaml's events are turned into nodes by recursive descent. Two budgets bound every input: the
 * depth of the tree, and its nodes counted as if every alias were written out. An alias therefore
 * costs no memory (it shares the anchor's node), and a tree of aliases to aliases is refused before
 * anybody walks it.
 */
#include "runner/yaml.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define ARENA_CHUNK_BYTES   ((size_t)1 << 16)
#define MAX_ANCHORS         ((size_t)1024) /* of a file */
#define DESCRIBED_MAX_BYTES 60             /* of a scalar quoted in a message */

/* ---- the document: an arena ---- */

struct chunk {
    struct chunk *next;
    size_t used, capacity;
    _Alignas(max_align_t) char data[];
};

struct yaml_doc {
    struct chunk *chunks;
    size_t n_nodes; /* aliases counted in full */
};

struct yaml_doc *yaml_doc_open(void)
{
    return xcalloc(1, sizeof(struct yaml_doc));
}

void yaml_doc_close(struct yaml_doc *doc)
{
    if (!doc)
        return;
    while (doc->chunks) {
        struct chunk *chunk = doc->chunks;
        doc->chunks = chunk->next;
        free(chunk);
    }
    free(doc);
}

void *yaml_doc_alloc(struct yaml_doc *doc, size_t count, size_t bytes)
{
    const size_t align = _Alignof(max_align_t);
    size_t needed;
    if (!size_mul(&needed, count, bytes) || !size_add(&needed, needed, align - 1))
        die("out of memory: %zu x %zu bytes", count, bytes);
    needed -= needed % align;
    struct chunk *chunk = doc->chunks;
    if (!chunk || chunk->capacity - chunk->used < needed) {
        size_t capacity = MAX(needed, ARENA_CHUNK_BYTES);
        chunk = xcalloc(1, sizeof(*chunk) + capacity);
        *chunk = (struct chunk){.next = doc->chunks, .capacity = capacity};
        doc->chunks = chunk;
    }
    void *memory = chunk->data + chunk->used;
    chunk->used += needed;
    return memory;
}

static char *copy_text(struct yaml_doc *doc, const char *text, size_t n)
{
    char *copy = yaml_doc_alloc(doc, n + 1, 1);
    memcpy(copy, text, n);
    return copy;
}

char *yaml_doc_strdup(struct yaml_doc *doc, const char *text)
{
    return copy_text(doc, text, strlen(text));
}

/* ---- messages ---- */

char *yaml_where(char *buf, size_t n, const struct yaml_node *at)
{
    if (at->line > 0)
        snprintf(buf, n, "%s:%d:%d", at->file, at->line, at->column);
    else
        snprintf(buf, n, "%s", at->file);
    return buf;
}

int yaml_err(const struct yaml_node *at, const char *format, ...)
{
    char where[ERR_MAX_LEN], text[ERR_MAX_LEN];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return err_set(ERR_CONFIG, "%.800s: %.1200s", yaml_where(where, sizeof(where), at), text);
}

char *yaml_describe(char *buf, size_t n, const struct yaml_node *node)
{
    if (node->kind == YAML_SEQUENCE) {
        snprintf(buf, n, "a list");
    } else if (node->kind == YAML_MAPPING) {
        snprintf(buf, n, "a mapping");
    } else if (yaml_is_null(node)) {
        snprintf(buf, n, "empty");
    } else {
        size_t len = strlen(node->text);
        size_t shown =
            len > DESCRIBED_MAX_BYTES ? utf8_complete_prefix(node->text, DESCRIBED_MAX_BYTES) : len;
        snprintf(buf, n, "%s'%.*s%s'", node->quoted ? "the string " : "", (int)shown, node->text,
                 shown < len ? "..." : "");
    }
    return buf;
}

/* ---- from events to nodes ---- */

struct anchor {
    char *name;
    struct yaml_node *node; /* NULL while its node is being read */
    size_t n_nodes;         /* of the tree below it, itself included */
};

struct reader {
    struct yaml_doc *doc;
    const char *file;
    bool has_positions;
    yaml_parser_t parser;
    struct anchor *anchor;
    size_t n_anchors, anchor_capacity;
};

/* The pairs or items of a collection while it grows. */
struct collection {
    struct yaml_node **item, **key;
    size_t n, item_capacity, key_capacity;
};

static void collection_free(struct collection *c)
{
    free(c->item);
    free(c->key);
}

static void collection_push(struct collection *c, struct yaml_node *key, struct yaml_node *item)
{
    array_reserve(&c->item, &c->item_capacity, c->n + 1, sizeof(struct yaml_node *));
    array_reserve(&c->key, &c->key_capacity, c->n + 1, sizeof(struct yaml_node *));
    c->item[c->n] = item;
    c->key[c->n] = key;
    c->n++;
}

static struct yaml_node **copy_nodes(struct yaml_doc *doc, struct yaml_node **nodes, size_t n)
{
    struct yaml_node **copy = yaml_doc_alloc(doc, n, sizeof(struct yaml_node *));
    if (n > 0)
        memcpy(copy, nodes, n * sizeof(struct yaml_node *));
    return copy;
}

static int err_at_mark(const struct reader *r, const yaml_mark_t *mark, const char *what)
{
    struct yaml_node at = {.file = r->file};
    if (r->has_positions) {
        at.line = (int)mark->line + 1;
        at.column = (int)mark->column + 1;
    }
    return yaml_err(&at, "%s", what);
}

static int next_event(struct reader *r, yaml_event_t *event)
{
    if (yaml_parser_parse(&r->parser, event))
        return 0;
    const char *problem = r->parser.problem ? r->parser.problem : "not valid YAML";
    char what[512];
    if (strstr(problem, "cannot start any token"))
        snprintf(what, sizeof(what),
                 "a tab, @, ` or %% where a word begins; indent with blanks, and "
                 "put a text that begins so in quotes");
    else if (r->parser.context)
        snprintf(what, sizeof(what), "%s %s", problem, r->parser.context);
    else
        snprintf(what, sizeof(what), "%s", problem);
    const yaml_mark_t *mark = &r->parser.problem_mark;
    /* The reader of bytes (encoding, control characters) leaves no mark. */
    if (r->parser.error == YAML_READER_ERROR)
        mark = &r->parser.mark;
    return err_at_mark(r, mark, what);
}

static int count_nodes(struct reader *r, const yaml_mark_t *mark, size_t n)
{
    r->doc->n_nodes += n;
    if (r->doc->n_nodes <= YAML_MAX_NODES)
        return 0;
    char what[128];
    snprintf(what, sizeof(what), "more than %zu values (aliases counted in full)", YAML_MAX_NODES);
    return err_at_mark(r, mark, what);
}

static int make_node(struct yaml_node **out, struct reader *r, enum yaml_kind kind,
                     const yaml_mark_t *mark)
{
    if (count_nodes(r, mark, 1) != 0)
        return -1;
    struct yaml_node *node = yaml_doc_alloc(r->doc, 1, sizeof(*node));
    node->kind = kind;
    node->file = r->file;
    if (r->has_positions) {
        node->line = (int)mark->line + 1;
        node->column = (int)mark->column + 1;
    }
    *out = node;
    return 0;
}

static size_t tree_depth(const struct yaml_node *node)
{
    size_t deepest = 0;
    for (size_t i = 0; i < node->n_items; i++) {
        size_t depth = tree_depth(node->item[i]); /* MAX would walk the tree twice. */
        deepest = MAX(deepest, depth);
    }
    return deepest + 1;
}

static int read_alias(struct yaml_node **out, struct reader *r, const yaml_event_t *event,
                      size_t depth)
{
    const char *name = (const char *)event->data.alias.anchor;
    /* The last anchor of a name counts. */
    for (size_t i = r->n_anchors; i-- > 0;) {
        const struct anchor *anchor = &r->anchor[i];
        if (strcmp(anchor->name, name) != 0)
            continue;
        if (!anchor->node)
            return err_at_mark(r, &event->start_mark, "an alias inside its own anchor");
        if (count_nodes(r, &event->start_mark, anchor->n_nodes) != 0)
            return -1;
        if (depth + tree_depth(anchor->node) > YAML_MAX_DEPTH)
            return err_at_mark(r, &event->start_mark, "nested too deeply");
        *out = anchor->node;
        return 0;
    }
    return err_at_mark(r, &event->start_mark, "an alias to an anchor that is not defined before");
}

static int read_scalar(struct yaml_node **out, struct reader *r, const yaml_event_t *event)
{
    const char *value = (const char *)event->data.scalar.value;
    size_t n = event->data.scalar.length;
    if (memchr(value, '\0', n))
        return err_at_mark(r, &event->start_mark, "a text with a NUL character");
    if (make_node(out, r, YAML_SCALAR, &event->start_mark) != 0)
        return -1;
    (*out)->text = copy_text(r->doc, value, n);
    (*out)->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    return 0;
}

static int read_node(struct yaml_node **out, struct reader *r, yaml_event_t *event, size_t depth);

static int read_sequence(struct yaml_node *node, struct reader *r, size_t depth)
{
    struct collection items = {0};
    int rc = -1;
    for (;;) {
        yaml_event_t event;
        if (next_event(r, &event) != 0)
            goto done;
        bool end = event.type == YAML_SEQUENCE_END_EVENT;
        struct yaml_node *item = NULL;
        int item_rc = end ? 0 : read_node(&item, r, &event, depth);
        yaml_event_delete(&event);
        if (item_rc != 0)
            goto done;
        if (end)
            break;
        collection_push(&items, NULL, item);
    }
    node->n_items = items.n;
    node->item = copy_nodes(r->doc, items.item, items.n);
    rc = 0;
done:
    collection_free(&items);
    return rc;
}

static bool has_key(const struct collection *c, const char *key)
{
    for (size_t i = 0; i < c->n; i++)
        if (strcmp(c->key[i]->text, key) == 0)
            return true;
    return false;
}

static bool is_merge_key(const struct yaml_node *key)
{
    return !key->quoted && strcmp(key->text, "<<") == 0;
}

/* Takes the pairs of a mapping whose keys are neither the mapping's own nor merged before. */
static int merge_pairs(struct collection *merged, const struct collection *own,
                       const struct yaml_node *from)
{
    if (from->kind != YAML_MAPPING)
        return yaml_err(from, "the merge key '<<' takes a mapping or a list of mappings");
    for (size_t i = 0; i < from->n_items; i++) {
        const char *key = from->key[i]->text;
        if (has_key(own, key) || has_key(merged, key))
            continue;
        if (merged->n >= YAML_MAX_KEYS)
            return yaml_err(from, "more than %zu keys in one mapping", YAML_MAX_KEYS);
        collection_push(merged, from->key[i], from->item[i]);
    }
    return 0;
}

/* Replaces `<<: source` by the source's pairs, at the place where it stands. */
static int resolve_merge_key(struct collection *pairs)
{
    struct collection merged = {0};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < pairs->n; i++) {
        const struct yaml_node *source = pairs->item[i];
        if (!is_merge_key(pairs->key[i]))
            collection_push(&merged, pairs->key[i], pairs->item[i]);
        else if (source->kind != YAML_SEQUENCE)
            rc = merge_pairs(&merged, pairs, source);
        else
            for (size_t j = 0; rc == 0 && j < source->n_items; j++)
                rc = merge_pairs(&merged, pairs, source->item[j]);
    }
    collection_free(pairs);
    *pairs = merged;
    return rc;
}

/* Reads `key: value`; *key is NULL at the mapping's end. */
static int read_pair(struct yaml_node **key, struct yaml_node **value, struct reader *r,
                     size_t depth)
{
    yaml_event_t event;
    *key = NULL;
    if (next_event(r, &event) != 0)
        return -1;
    bool end = event.type == YAML_MAPPING_END_EVENT;
    int rc = end ? 0 : read_node(key, r, &event, depth);
    yaml_event_delete(&event);
    if (end || rc != 0)
        return rc;
    if ((*key)->kind != YAML_SCALAR)
        return yaml_err(*key, "a key must be a plain word, not %s",
                        (*key)->kind == YAML_SEQUENCE ? "a list" : "a mapping");
    if (next_event(r, &event) != 0)
        return -1;
    rc = read_node(value, r, &event, depth);
    yaml_event_delete(&event);
    return rc;
}

static int read_mapping(struct yaml_node *node, struct reader *r, size_t depth)
{
    struct collection pairs = {0};
    bool has_merge_key = false;
    int rc = -1;
    for (;;) {
        struct yaml_node *key, *value;
        if (read_pair(&key, &value, r, depth) != 0)
            goto done;
        if (!key)
            break;
        if (has_key(&pairs, key->text)) {
            yaml_err(key, "key '%s' stands twice in this mapping", key->text);
            goto done;
        }
        if (pairs.n >= YAML_MAX_KEYS) {
            yaml_err(key, "more than %zu keys in one mapping", YAML_MAX_KEYS);
            goto done;
        }
        has_merge_key |= is_merge_key(key);
        collection_push(&pairs, key, value);
    }
    if (has_merge_key && resolve_merge_key(&pairs) != 0)
        goto done;
    node->n_items = pairs.n;
    node->key = copy_nodes(r->doc, pairs.key, pairs.n);
    node->item = copy_nodes(r->doc, pairs.item, pairs.n);
    rc = 0;
done:
    collection_free(&pairs);
    return rc;
}

static const char *event_anchor(const yaml_event_t *event)
{
    if (event->type == YAML_SCALAR_EVENT)
        return (const char *)event->data.scalar.anchor;
    if (event->type == YAML_SEQUENCE_START_EVENT)
        return (const char *)event->data.sequence_start.anchor;
    return (const char *)event->data.mapping_start.anchor;
}

static const char *event_tag(const yaml_event_t *event)
{
    if (event->type == YAML_SCALAR_EVENT)
        return (const char *)event->data.scalar.tag;
    if (event->type == YAML_SEQUENCE_START_EVENT)
        return (const char *)event->data.sequence_start.tag;
    return (const char *)event->data.mapping_start.tag;
}

static int read_untagged(struct yaml_node **out, struct reader *r, const yaml_event_t *event,
                         size_t depth)
{
    if (event->type == YAML_SCALAR_EVENT)
        return read_scalar(out, r, event);
    bool is_sequence = event->type == YAML_SEQUENCE_START_EVENT;
    assert(is_sequence || event->type == YAML_MAPPING_START_EVENT);
    if (depth >= YAML_MAX_DEPTH)
        return err_at_mark(r, &event->start_mark, "nested too deeply");
    if (make_node(out, r, is_sequence ? YAML_SEQUENCE : YAML_MAPPING, &event->start_mark) != 0)
        return -1;
    return is_sequence ? read_sequence(*out, r, depth + 1) : read_mapping(*out, r, depth + 1);
}

/* Reads the node that begins with this event. depth: of collections around it. */
static int read_node(struct yaml_node **out, struct reader *r, yaml_event_t *event, size_t depth)
{
    if (event->type == YAML_ALIAS_EVENT)
        return read_alias(out, r, event, depth);
    if (event_tag(event))
        return err_at_mark(r, &event->start_mark, "tags are not supported");
    const char *name = event_anchor(event);
    size_t anchor = r->n_anchors, n_nodes_before = r->doc->n_nodes;
    if (name) {
        if (r->n_anchors >= MAX_ANCHORS)
            return err_at_mark(r, &event->start_mark, "too many anchors");
        array_reserve(&r->anchor, &r->anchor_capacity, anchor + 1, sizeof(struct anchor));
        r->anchor[r->n_anchors++] = (struct anchor){.name = xstrdup(name)};
    }
    if (read_untagged(out, r, event, depth) != 0)
        return -1;
    if (name) {
        r->anchor[anchor].node = *out;
        r->anchor[anchor].n_nodes = r->doc->n_nodes - n_nodes_before;
    }
    return 0;
}

/* Skips the events up to the first node's; *event stays the caller's to delete. */
static int first_event(struct reader *r, yaml_event_t *event)
{
    for (;;) {
        if (next_event(r, event) != 0)
            return -1;
        if (event->type == YAML_STREAM_END_EVENT) {
            int rc = err_at_mark(r, &event->start_mark, "the file is empty");
            yaml_event_delete(event);
            return rc;
        }
        if (event->type != YAML_STREAM_START_EVENT && event->type != YAML_DOCUMENT_START_EVENT)
            return 0;
        yaml_event_delete(event);
    }
}

static int expect_end(struct reader *r)
{
    for (;;) {
        yaml_event_t event;
        if (next_event(r, &event) != 0)
            return -1;
        yaml_event_type_t type = event.type;
        int rc = 0;
        if (type == YAML_DOCUMENT_START_EVENT)
            rc = err_at_mark(r, &event.start_mark, "a second document; expected one");
        yaml_event_delete(&event);
        if (rc != 0 || type == YAML_STREAM_END_EVENT)
            return rc;
    }
}

static int read_document(struct yaml_node **out, struct reader *r)
{
    yaml_event_t event;
    if (first_event(r, &event) != 0)
        return -1;
    int rc = read_node(out, r, &event, 0);
    yaml_event_delete(&event);
    return rc == 0 ? expect_end(r) : -1;
}

static struct yaml_node *parse(struct yaml_doc *doc, const char *file, const char *text, size_t n,
                               bool has_positions)
{
    struct reader r = {
        .doc = doc, .file = yaml_doc_strdup(doc, file), .has_positions = has_positions};
    if (!yaml_parser_initialize(&r.parser))
        die("out of memory for a YAML parser");
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n);
    struct yaml_node *root = NULL;
    if (read_document(&root, &r) != 0)
        root = NULL;
    yaml_parser_delete(&r.parser);
    for (size_t i = 0; i < r.n_anchors; i++)
        free(r.anchor[i].name);
    free(r.anchor);
    return root;
}

struct yaml_node *yaml_parse(struct yaml_doc *doc, const char *file, const char *text, size_t n)
{
    struct yaml_node *root = parse(doc, file, text, n, true);
    if (root && root->kind != YAML_MAPPING) {
        char found[128];
        yaml_err(root, "expected a mapping (key: value), found %s",
                 yaml_describe(found, sizeof(found), root));
        return NULL;
    }
    return root;
}

struct yaml_node *yaml_load(struct yaml_doc *doc, const char *path)
{
    size_t n;
    char *text = file_read(path, &n);
    if (!text) {
        err_set(ERR_CONFIG, "%s", err_get());
        return NULL;
    }
    struct yaml_node *root = yaml_parse(doc, path, text, n);
    free(text);
    return root;
}

struct yaml_node *yaml_value(struct yaml_doc *doc, const char *origin, const char *text)
{
    if (!utf8_is_valid(text, strlen(text))) {
        err_set(ERR_CONFIG, "%s: not valid UTF-8", origin);
        return NULL;
    }
    if (text[0] != '\0' && strchr("[{\"'", text[0]))
        return parse(doc, origin, text, strlen(text), false);
    struct yaml_node *node = yaml_doc_alloc(doc, 1, sizeof(*node));
    node->kind = YAML_SCALAR;
    node->file = yaml_doc_strdup(doc, origin);
    node->text = yaml_doc_strdup(doc, text);
    return node;
}

struct yaml_node *yaml_wrap(struct yaml_doc *doc, const char *key, struct yaml_node *value)
{
    struct yaml_node *node = yaml_doc_alloc(doc, 1, sizeof(*node));
    *node = *value;
    node->kind = YAML_MAPPING;
    node->text = NULL;
    node->n_items = 1;
    node->item = yaml_doc_alloc(doc, 1, sizeof(struct yaml_node *));
    node->item[0] = value;
    node->key = yaml_doc_alloc(doc, 1, sizeof(struct yaml_node *));
    node->key[0] = yaml_doc_alloc(doc, 1, sizeof(struct yaml_node));
    *node->key[0] = (struct yaml_node){.file = value->file,
                                       .line = value->line,
                                       .column = value->column,
                                       .text = yaml_doc_strdup(doc, key)};
    return node;
}

struct yaml_node *yaml_find(const struct yaml_node *mapping, const char *key)
{
    for (size_t i = 0; i < mapping->n_items; i++)
        if (strcmp(mapping->key[i]->text, key) == 0)
            return mapping->item[i];
    return NULL;
}

/* ---- the core schema (YAML 1.2.2, section 10.3.2) ---- */

static bool is_one_of(const char *text, const char *const *words, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(text, words[i]) == 0)
            return true;
    return false;
}

static bool is_plain(const struct yaml_node *node)
{
    return node->kind == YAML_SCALAR && !node->quoted;
}

bool yaml_is_null(const struct yaml_node *node)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    return is_plain(node) && is_one_of(node->text, nulls, ARRAY_LEN(nulls));
}

bool yaml_get_bool(bool *out, const struct yaml_node *node)
{
    static const char *const words[] = {"true", "True", "TRUE", "false", "False", "FALSE"};
    if (!is_plain(node) || !is_one_of(node->text, words, ARRAY_LEN(words)))
        return false;
    *out = node->text[0] == 't' || node->text[0] == 'T';
    return true;
}

/* Digits of base 8 or 16 after 0o or 0x. */
static bool parse_based(int64_t *out, const char *digits, int base)
{
    const char *allowed = base == 8 ? "01234567" : "0123456789abcdefABCDEF";
    if (digits[0] == '\0' || digits[strspn(digits, allowed)] != '\0')
        return false;
    uint64_t value = 0;
    for (; *digits; digits++) {
        if (value > (uint64_t)INT64_MAX / (unsigned)base)
            return false;
        const char digit[2] = {*digits, '\0'};
        value = value * (unsigned)base + (uint64_t)strtol(digit, NULL, 16);
    }
    if (value > INT64_MAX)
        return false;
    *out = (int64_t)value;
    return true;
}

bool yaml_get_integer(int64_t *out, const struct yaml_node *node)
{
    if (!is_plain(node))
        return false;
    const char *text = node->text;
    if (strncmp(text, "0o", 2) == 0)
        return parse_based(out, text + 2, 8);
    if (strncmp(text, "0x", 2) == 0)
        return parse_based(out, text + 2, 16);
    const char *digits = text + (text[0] == '-' || text[0] == '+');
    if (digits[0] == '\0' || digits[strspn(digits, "0123456789")] != '\0')
        return false;
    return parse_int64(out, text);
}

/* [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )? */
static bool is_decimal(const char *text)
{
    static const char digits[] = "0123456789";
    text += text[0] == '-' || text[0] == '+';
    size_t n_whole = strspn(text, digits), n_fraction = 0;
    text += n_whole;
    if (text[0] == '.') {
        n_fraction = strspn(text + 1, digits);
        text += 1 + n_fraction;
    }
    if (n_whole + n_fraction == 0)
        return false;
    if (text[0] != 'e' && text[0] != 'E')
        return text[0] == '\0';
    text++;
    text += text[0] == '-' || text[0] == '+';
    size_t n_exponent = strspn(text, digits);
    return n_exponent > 0 && text[n_exponent] == '\0';
}

static bool parse_special_float(double *out, const char *text)
{
    static const char *const infinities[] = {".inf", ".Inf", ".INF"};
    static const char *const nans[] = {".nan", ".NaN", ".NAN"};
    bool has_sign = text[0] == '-' || text[0] == '+';
    if (is_one_of(text + has_sign, infinities, ARRAY_LEN(infinities)))
        *out = text[0] == '-' ? -INFINITY : INFINITY;
    else if (is_one_of(text, nans, ARRAY_LEN(nans)))
        *out = NAN;
    else
        return false;
    return true;
}

bool yaml_get_number(double *out, const struct yaml_node *node)
{
    if (!is_plain(node))
        return false;
    int64_t integer;
    if (yaml_get_integer(&integer, node)) {
        *out = (double)integer;
        return true;
    }
    if (parse_special_float(out, node->text))
        return true;
    return is_decimal(node->text) && parse_double(out, node->text);
}

static json_t *scalar_to_json(const struct yaml_node *node)
{
    bool truth;
    int64_t integer;
    double number;
    if (yaml_is_null(node))
        return json_null();
    if (yaml_get_bool(&truth, node))
        return json_boolean(truth);
    if (yaml_get_integer(&integer, node))
        return json_integer(integer);
    if (yaml_get_number(&number, node) && isfinite(number))
        return json_real(number);
    return json_string(node->text);
}

json_t *yaml_to_json(const struct yaml_node *node)
{
    if (node->kind == YAML_SCALAR)
        return scalar_to_json(node);
    json_t *json = node->kind == YAML_SEQUENCE ? json_array() : json_object();
    for (size_t i = 0; i < node->n_items; i++) {
        json_t *item = yaml_to_json(node->item[i]);
        int rc = node->kind == YAML_SEQUENCE ? json_array_append_new(json, item)
                                             : json_object_set_new(json, node->key[i]->text, item);
        if (rc != 0)
            die("out of memory for a JSON tree");
    }
    return json;
}
