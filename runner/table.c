/* table.c - see table.h. */
#include "runner/table.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define ELLIPSIS "\xE2\x80\xA6"

static const char *const format_names[] = {
    [TABLE_TEXT] = "table",  [TABLE_CSV] = "csv",     [TABLE_JSON] = "json",
    [TABLE_JSONL] = "jsonl", [TABLE_MARKDOWN] = "md",
};

struct cell {
    char *text; /* as it will be printed */
    int width;  /* in terminal columns   */
};

struct column {
    char *name;
    int width;
    bool is_text;   /* a value of it is no number */
    bool has_value; /* a value of it is not NULL  */
};

struct table {
    FILE *out;
    enum table_format format;
    int n_columns;
    struct column *column; /* [n_columns] */
    struct cell *cell;     /* [n_rows * n_columns], text and Markdown only */
    size_t n_cells, capacity;
    size_t n_rows;
};

int table_format_find(enum table_format *out, const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(format_names); i++) {
        if (strcmp(name, format_names[i]) == 0) {
            *out = (enum table_format)i;
            return 0;
        }
    }
    const char *near = nearest_name(name, format_names, ARRAY_LEN(format_names));
    return err_set(ERR_CONFIG, "unknown format '%s'; expected table, csv, json, jsonl or md%s%s%s",
                   name, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

/* ---- text for people ---- */

/* Four significant digits, all digits before the point. Whole numbers (counts, ids, seeds) stay as
 * they are: every digit of them means something. */
static void append_rounded(struct str *s, const char *number)
{
    double value;
    if (strcspn(number, ".eE") == strlen(number) || !parse_double(&value, number))
        str_append_c(s, number);
    else if (fabs(value) >= 1000)
        str_appendf(s, "%.0f", value);
    else
        str_appendf(s, "%.4g", value);
}

/* Appends the character at text[0..n) in a form that stays on one line and cannot steer a terminal;
 * *width is its width there. Returns its length in bytes. */
static size_t append_visible(struct str *s, const char *text, size_t n, int *width)
{
    utf8proc_int32_t code;
    utf8proc_ssize_t used =
        utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &code);
    size_t before = s->len;
    if (used < 1) {
        str_append_c(s, UTF8_REPLACEMENT);
        *width = 1;
        return 1;
    }
    if (code == '\n')
        str_append_c(s, "\\n");
    else if (code == '\t')
        str_append_c(s, "\\t");
    else if (utf8proc_category(code) == UTF8PROC_CATEGORY_CC)
        str_appendf(s, "\\x%02x", (unsigned)code);
    else {
        str_append(s, text, (size_t)used);
        *width = utf8proc_charwidth(code);
        return (size_t)used;
    }
    *width = (int)(s->len - before);
    return (size_t)used;
}

/* Appends text on one line, cut with an ellipsis to at most max_width columns. Returns its width.
 */
static int append_line(struct str *s, const char *text, int max_width)
{
    size_t n = strlen(text), at = 0, cut = s->len;
    int width = 0, cut_width = 0;
    while (at < n) {
        int char_width;
        at += append_visible(s, text + at, n - at, &char_width);
        width += char_width;
        if (width < max_width) {
            cut = s->len;
            cut_width = width;
        }
        if (width > max_width) {
            s->len = cut;
            str_append_c(s, ELLIPSIS);
            return cut_width + 1;
        }
    }
    return width;
}

/* A cell of a GitHub table: what Markdown would read as more than text is escaped. */
static void append_markdown(struct str *s, const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            str_append_c(s, "<br>");
        else if (strchr("\\|<*`&[", *text))
            str_appendf(s, "\\%c", *text);
        else if (*text != '\r')
            str_append(s, text, 1);
    }
}

static struct cell make_cell(const struct table *t, const char *value, bool is_number)
{
    struct str s = {0};
    int width = 0;
    str_append_c(&s, "");
    if (value && is_number)
        append_rounded(&s, value);
    else if (value && t->format == TABLE_MARKDOWN)
        append_markdown(&s, value);
    else if (value)
        width = append_line(&s, value, TABLE_MAX_CELL_WIDTH);
    return (struct cell){.text = s.data, .width = is_number ? (int)s.len : width};
}

static void hold_row(struct table *t, const char *const *values, const bool *is_number)
{
    size_t n = (size_t)t->n_columns;
    array_reserve(&t->cell, &t->capacity, t->n_cells + n, sizeof(*t->cell));
    for (size_t i = 0; i < n; i++) {
        struct cell cell = make_cell(t, values[i], is_number[i]);
        struct column *column = &t->column[i];
        column->width = MAX(column->width, cell.width);
        column->is_text |= values[i] && !is_number[i];
        column->has_value |= values[i] != NULL;
        t->cell[t->n_cells++] = cell;
    }
}

static bool right_aligned(const struct column *column)
{
    return column->has_value && !column->is_text;
}

static void print_spaces(FILE *out, int n)
{
    fprintf(out, "%*s", n, "");
}

static void print_text_row(const struct table *t, const struct cell *row)
{
    for (int i = 0; i < t->n_columns; i++) {
        const struct column *column = &t->column[i];
        int gap = column->width - row[i].width;
        if (right_aligned(column))
            print_spaces(t->out, gap);
        fputs(row[i].text, t->out);
        if (i + 1 < t->n_columns)
            print_spaces(t->out, right_aligned(column) ? 2 : gap + 2);
    }
    fputc('\n', t->out);
}

static void print_text(const struct table *t)
{
    struct cell *head = xcalloc((size_t)t->n_columns, sizeof(*head));
    struct str dashes = {0};
    for (int i = 0; i < t->n_columns; i++) {
        struct str name = {0};
        str_append_c(&name, "");
        head[i].width = append_line(&name, t->column[i].name, TABLE_MAX_CELL_WIDTH);
        head[i].text = name.data;
        t->column[i].width = MAX(t->column[i].width, head[i].width);
        for (int k = 0; k < t->column[i].width; k++)
            str_append_c(&dashes, "-");
        str_append_c(&dashes, i + 1 < t->n_columns ? "  " : "\n");
    }
    print_text_row(t, head);
    fputs(dashes.data, t->out);
    for (size_t at = 0; at < t->n_cells; at += (size_t)t->n_columns)
        print_text_row(t, &t->cell[at]);
    if (t->n_rows == 0)
        fputs("(no rows)\n", t->out);
    for (int i = 0; i < t->n_columns; i++)
        free(head[i].text);
    free(head);
    str_free(&dashes);
}

static void print_markdown(const struct table *t)
{
    struct str s = {0};
    for (int i = 0; i < t->n_columns; i++) {
        str_append_c(&s, "| ");
        append_markdown(&s, t->column[i].name);
        str_append_c(&s, " ");
    }
    str_append_c(&s, "|\n");
    for (int i = 0; i < t->n_columns; i++)
        str_append_c(&s, right_aligned(&t->column[i]) ? "| ---: " : "| --- ");
    str_append_c(&s, "|\n");
    for (size_t at = 0; at < t->n_cells; at++) {
        bool last = (at + 1) % (size_t)t->n_columns == 0;
        str_appendf(&s, "| %s %s", t->cell[at].text, last ? "|\n" : "");
    }
    fputs(s.data, t->out);
    str_free(&s);
}

/* ---- text for programs ---- */

static void print_csv_field(FILE *out, const char *text)
{
    if (*text && strcspn(text, ",\"\r\n") == strlen(text)) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void print_csv_row(const struct table *t, const char *const *values)
{
    for (int i = 0; i < t->n_columns; i++) {
        if (i > 0)
            fputc(',', t->out);
        if (values[i])
            print_csv_field(t->out, values[i]);
    }
    fputc('\n', t->out);
}

static void append_valid_utf8(struct str *s, const char *text)
{
    size_t n = strlen(text);
    for (size_t at = 0; at < n;) {
        utf8proc_int32_t code;
        utf8proc_ssize_t used = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                                 (utf8proc_ssize_t)(n - at), &code);
        str_append(s, used < 1 ? UTF8_REPLACEMENT : text + at,
                   used < 1 ? strlen(UTF8_REPLACEMENT) : (size_t)used);
        at += used < 1 ? 1 : (size_t)used;
    }
}

static void print_json_text(FILE *out, const char *text)
{
    struct str valid = {0};
    str_append_c(&valid, "");
    append_valid_utf8(&valid, text);
    json_t *string = json_stringn(valid.data, valid.len);
    assert(string);
    /* A failed write sets the stream's error flag, which table_close reports. */
    (void)json_dumpf(string, out, JSON_ENCODE_ANY);
    json_decref(string);
    str_free(&valid);
}

/* Numbers are written with the digits they came with: through a double, a 64-bit seed would lose
 * some. JSON has no infinity. */
static void print_json_number(FILE *out, const char *number)
{
    double value;
    bool finite = !parse_double(&value, number) || isfinite(value);
    fputs(finite ? number : "null", out);
}

static void print_json_row(const struct table *t, const char *const *values, const bool *is_number)
{
    fputc('{', t->out);
    for (int i = 0; i < t->n_columns; i++) {
        if (i > 0)
            fputs(", ", t->out);
        print_json_text(t->out, t->column[i].name);
        fputs(": ", t->out);
        if (!values[i])
            fputs("null", t->out);
        else if (is_number[i])
            print_json_number(t->out, values[i]);
        else
            print_json_text(t->out, values[i]);
    }
    fputc('}', t->out);
}

static bool is_taken(const struct table *t, int n_before, const char *name)
{
    for (int i = 0; i < n_before; i++)
        if (strcmp(t->column[i].name, name) == 0)
            return true;
    return false;
}

/* A JSON reader keeps one of two members of the same name, so the second one is renamed. */
static char *unique_name(const struct table *t, int n_before, const char *name)
{
    char *unique = xstrdup(name);
    for (int copy = 2; is_taken(t, n_before, unique); copy++) {
        free(unique);
        unique = xasprintf("%s_%d", name, copy);
    }
    return unique;
}

/* ---- public ---- */

struct table *table_open(FILE *out, enum table_format format, int n_columns,
                         const char *const *names)
{
    assert(n_columns > 0);
    struct table *t = xcalloc(1, sizeof(*t));
    t->out = out;
    t->format = format;
    t->n_columns = n_columns;
    t->column = xcalloc((size_t)n_columns, sizeof(*t->column));
    bool json = format == TABLE_JSON || format == TABLE_JSONL;
    for (int i = 0; i < n_columns; i++)
        t->column[i].name = json ? unique_name(t, i, names[i]) : xstrdup(names[i]);
    if (format == TABLE_CSV)
        print_csv_row(t, names);
    else if (format == TABLE_JSON)
        fputc('[', out);
    return t;
}

void table_add(struct table *t, const char *const *values, const bool *is_number)
{
    switch (t->format) {
    case TABLE_TEXT:
    case TABLE_MARKDOWN: hold_row(t, values, is_number); break;
    case TABLE_CSV: print_csv_row(t, values); break;
    case TABLE_JSON:
        fputs(t->n_rows > 0 ? ",\n " : "\n ", t->out);
        print_json_row(t, values, is_number);
        break;
    case TABLE_JSONL:
        print_json_row(t, values, is_number);
        fputc('\n', t->out);
        break;
    }
    t->n_rows++;
}

int table_close(struct table *t)
{
    if (!t)
        return 0;
    if (t->format == TABLE_TEXT)
        print_text(t);
    else if (t->format == TABLE_MARKDOWN)
        print_markdown(t);
    else if (t->format == TABLE_JSON)
        fputs(t->n_rows > 0 ? "\n]\n" : "]\n", t->out);
    for (size_t i = 0; i < t->n_cells; i++)
        free(t->cell[i].text);
    for (int i = 0; i < t->n_columns; i++)
        free(t->column[i].name);
    FILE *out = t->out;
    free(t->cell);
    free(t->column);
    free(t);
    if (fflush(out) != 0 || ferror(out))
        return err_set(ERR_RESOURCE, "the output could not be written: %s", strerror(errno));
    return 0;
}
