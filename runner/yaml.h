/* yaml.h - YAML files as trees of nodes that remember where they stand.
 *
 * The only user of libyaml. Anchors, aliases and the merge key `<<` are resolved; duplicate keys in
 * one mapping are an error. Scalars stay text: config.c gives them types by the YAML 1.2 core
 * schema (so `no` and `on` are strings, and 0755 is a decimal number).
 */
#ifndef QUIRE_YAML_H
#define QUIRE_YAML_H

#include "engine/util.h"

#define YAML_MAX_DEPTH 64
#define YAML_MAX_NODES ((size_t)1 << 20)

enum yaml_kind { YAML_SCALAR, YAML_SEQUENCE, YAML_MAPPING };

struct yaml_node {
    enum yaml_kind kind;
    const char *file;        /* as given to yaml_load           */
    int line, column;        /* of its first character, from 1  */
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

/* Parses a file (or text, under the name `file`) into doc; NULL with ERR_CONFIG "file:line:col:
 * ...". The root must be a mapping. Borrowed from doc. */
struct yaml_node *yaml_load(struct yaml_doc *doc, const char *path);
struct yaml_node *yaml_parse(struct yaml_doc *doc, const char *file, const char *text, size_t n);

/* The value of a key, or NULL. */
struct yaml_node *yaml_find(const struct yaml_node *mapping, const char *key);

/* base with `over` merged on top: mappings key by key, anything else replaced. A new node in doc;
 * the arguments stay as they are. */
struct yaml_node *yaml_merge(struct yaml_doc *doc, const struct yaml_node *base,
                             const struct yaml_node *over);

/* ERR_CONFIG with "file:line:col: " before the message. Always returns -1. */
int yaml_err(const struct yaml_node *at, const char *format, ...) PRINTF_LIKE(2, 3);

/* True for null in the core schema: empty, ~, null, Null, NULL, not quoted. */
bool yaml_is_null(const struct yaml_node *node);

/* The tree as JSON (scalars typed by the core schema); the caller decrefs. */
json_t *yaml_to_json(const struct yaml_node *node);

#endif
