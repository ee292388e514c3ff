/* tokenizer_normalize.c - what a tokenizer does to a text before it looks for tokens. */
#include "engine/tokenizer_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define NORMALIZE_SORT_MARKS 64 /* combining marks in a row */

static struct normalize_step *add_step(struct normalizer *z, enum normalize_kind kind)
{
    assert(z->n_steps < TOKENIZER_MAX_STEPS);
    struct normalize_step *step = &z->steps[z->n_steps++];
    *step = (struct normalize_step){.kind = kind};
    return step;
}

static int load_prepend(struct normalizer *z, const json_t *component)
{
    const char *prepend = "";
    if (component_text(component, "prepend", &prepend) < 0)
        return -1;
    add_step(z, NORMALIZE_PREPEND)->to = xstrdup(prepend);
    return 0;
}

static int load_replace(struct normalizer *z, const json_t *component)
{
    const char *from, *to = "";
    bool regex;
    if (component_pattern(component, "normalizer Replace", &from, &regex) < 0 ||
        component_text(component, "content", &to) < 0)
        return -1;
    if (regex)
        return component_unknown("normalizer", "Replace with a Regex");
    struct normalize_step *step = add_step(z, NORMALIZE_REPLACE);
    step->from = xstrdup(from);
    step->to = xstrdup(to);
    return 0;
}

static int load_part(void *target, const json_t *component, const char *type)
{
    struct normalizer *z = target;
    if (strcmp(type, "Prepend") == 0)
        return load_prepend(z, component);
    if (strcmp(type, "Replace") == 0)
        return load_replace(z, component);
    if (strcmp(type, "NFC") != 0)
        return component_unknown("normalizer", type);
    add_step(z, NORMALIZE_NFC);
    return 0;
}

int normalizer_load(struct normalizer *z, const json_t *component)
{
    return component_each(component, "normalizer", "normalizers", load_part, z);
}

void normalizer_free(struct normalizer *z)
{
    for (size_t i = 0; i < z->n_steps; i++) {
        free(z->steps[i].from);
        free(z->steps[i].to);
    }
}

/* Text below U+0300 is its own normal form: nothing there decomposes and combines otherwise. The
 * lead bytes of higher characters are 0xCC and above. */
static bool is_plain(const struct str *text)
{
    for (size_t i = 0; i < text->len; i++) {
        if ((unsigned char)text->data[i] >= 0xCC)
            return false;
    }
    return true;
}

static unsigned class_of(const char *s, size_t n, size_t *len)
{
    return utf8proc_get_property((utf8proc_int32_t)text_next(s, n, len))->combining_class;
}

/* Appends a run of combining marks sorted by their class, which keeps the order within a class. */
static void append_sorted(struct str *out, const char *run, size_t n)
{
    struct str classes[256] = {0};
    size_t len;
    for (size_t at = 0; at < n; at += len) {
        unsigned class = class_of(run + at, n - at, &len);
        str_append(&classes[class], run + at, len);
    }
    for (size_t i = 0; i < ARRAY_LEN(classes); i++) {
        str_append(out, classes[i].data, classes[i].len);
        str_free(&classes[i]);
    }
}

/* utf8proc brings marks into their canonical order in quadratic time. Text has a few in a row; what
 * has more is sorted here first, which changes nothing about the normal form. */
static void sort_long_runs(struct str *text)
{
    struct str out = {0};
    size_t end;
    for (size_t at = 0; at < text->len; at = end) {
        size_t n_marks = 0, len = 0;
        for (end = at; end < text->len; end += len, n_marks++) {
            if (class_of(text->data + end, text->len - end, &len) == 0)
                break;
        }
        if (n_marks == 0)
            end += len;
        if (n_marks > NORMALIZE_SORT_MARKS)
            append_sorted(&out, text->data + at, end - at);
        else
            str_append(&out, text->data + at, end - at);
    }
    str_free(text);
    *text = out;
}

static void compose(struct str *text)
{
    utf8proc_uint8_t *composed = NULL;
    if (is_plain(text))
        return;
    sort_long_runs(text);
    utf8proc_ssize_t n =
        utf8proc_map((const utf8proc_uint8_t *)text->data, (utf8proc_ssize_t)text->len, &composed,
                     UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0) /* The text is valid UTF-8: only memory can be missing. */
        die("cannot normalise a text: %s", utf8proc_errmsg(n));
    str_clear(text);
    str_append(text, (const char *)composed, (size_t)n);
    free(composed);
}

static void apply_step(const struct normalize_step *step, struct str *text)
{
    struct str out = {0};
    if (step->kind == NORMALIZE_NFC) {
        compose(text);
        return;
    }
    if (step->kind == NORMALIZE_REPLACE) {
        text_replace(&out, text->data, text->len, step->from, step->to);
    } else {
        if (text->len > 0)
            str_append_c(&out, step->to);
        str_append(&out, text->data, text->len);
    }
    str_free(text);
    *text = out;
}

void normalizer_apply(const struct normalizer *z, struct str *text)
{
    for (size_t i = 0; i < z->n_steps; i++)
        apply_step(&z->steps[i], text);
}
