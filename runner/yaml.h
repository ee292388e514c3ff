/* yaml.h - YAML files as trees of nodes that remember where they stand.
 *
 * The only user of libyaml. Anchors, aliases and the merge key `<<` are resolved (an alias shares
 * its anchor's node, so a position is where the value was written); duplicate keys in one mapping
 * are an error. Scalars stay text; the functions below give them types by the YAML 1.2 core schema
 * (so `no` and `on` are strings, and 0755 is a decimal number).
 */
#ifndef QUIRE_YAML_H
#define QUIRE_YAML_H

#include "engine/util.h"

#define YAML_MAX_DEPTH 64
#define YAML_MAX_NODES ((size_t)1 << 20) /* of a document, aliases counted in full */
#define YAML_MAX_KEYS  ((size_t)1024)    /* of a mapping                           */

enum yaml_kind { YAML_SCALAR, YAML_SEQUENCE, YAML_MAPPING };

struct yaml_node {
    enum yaml_kind kind;
    const char *file;        /* as given to yaml_load           */
    int line, column;        /* of its first character, from 1; 0: not from a file */
    const char *text;        /* scalar: its value               */
    bool quoted;             /* scalar: written with quotes, so always a string */
    struct yaml_node **item; /* [n_items] sequence: the items; mapping: the values */
    struct yaml_node **key;  /* [n_items] mapping: the keys (scalars)              */
    size_t n_items;
};

/* All the nodes of one or several files live in one document and are freed with it. */
struct yaml_doc;

struct yaml_doc *yaml_doc_open(void);
void yaml_doc_close(struct yaml_doc *doc);

/* Zeroed memory that lives as long as doc. */
void *yaml_doc_alloc(struct yaml_doc *doc, size_t count, size_t bytes);
char *yaml_doc_strdup(struct yaml_doc *doc, const char *text);

/* Parses a file (or text, under the name `file`) into doc; NULL with ERR_CONFIG "file:line:col:
 * ...". The root must be a mapping. Borrowed from doc. */
struct yaml_node *yaml_load(struct yaml_doc *doc, const char *path);
struct yaml_node *yaml_parse(struct yaml_doc *doc, const char *file, const char *text, size_t n);

/* A value that stands in no file: from the command line, the environment, a default. `origin` takes
 * the place of the position in messages. Text that begins with [ { " or ' is read as YAML, other
 * text is one plain scalar as it stands. NULL with ERR_CONFIG for bad YAML or bad UTF-8. */
struct yaml_node *yaml_value(struct yaml_doc *doc, const char *origin, const char *text);

/* The mapping {key: value}, standing where value stands. */
struct yaml_node *yaml_wrap(struct yaml_doc *doc, const char *key, struct yaml_node *value);

/* The value of a key, or NULL. */
struct yaml_node *yaml_find(const struct yaml_node *mapping, const char *key);

/* "file:line:col", or the origin alone, into buf; returns buf. */
char *yaml_where(char *buf, size_t n, const struct yaml_node *at);
/* ERR_CONFIG with the position before the message. Always returns -1. */
int yaml_err(const struct yaml_node *at, const char *format, ...) PRINTF_LIKE(2, 3);
/* "'text'" (cut when it is long), "the string 'text'", "a list", ... for messages; returns buf. */
char *yaml_describe(char *buf, size_t n, const struct yaml_node *node);

/* The core schema. False when the node is of another type. Null: empty, ~, null, Null, NULL, not
 * quoted. Integers: decimal, 0x, 0o, within 64 bits. Numbers: those, decimals, .inf, .nan. */
bool yaml_is_null(const struct yaml_node *node);
bool yaml_get_bool(bool *out, const struct yaml_node *node);
bool yaml_get_integer(int64_t *out, const struct yaml_node *node);
bool yaml_get_number(double *out, const struct yaml_node *node);

/* The tree as JSON (scalars typed by the core schema; .inf and .nan, which JSON has not, stay
 * text); the caller decrefs. */
json_t *yaml_to_json(const struct yaml_node *node);

#endif
