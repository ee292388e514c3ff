/* table.h - rows of text for a person or for a program: aligned text, Markdown, CSV, JSON, JSONL.
 *
 * Text and Markdown are for reading: numbers stand on the right with four significant digits, text
 * is one line, and in aligned text a cell wider than TABLE_MAX_CELL_WIDTH is cut with an ellipsis.
 * CSV, JSON and JSONL are for programs: nothing is cut or rounded. CSV is RFC 4180 with \n line
 * ends; NULL is an empty field and an empty text is "". JSON is valid for any bytes: what is not
 * UTF-8 becomes U+FFFD, and a second column of one name gets "_2" after it.
 */
#ifndef QUIRE_TABLE_H
#define QUIRE_TABLE_H

#include "engine/util.h"

#include <stdio.h>

#define TABLE_MAX_CELL_WIDTH 60 /* columns of a terminal */

enum table_format { TABLE_TEXT, TABLE_CSV, TABLE_JSON, TABLE_JSONL, TABLE_MARKDOWN };

/* "table", "csv", "json", "jsonl", "md". ERR_CONFIG with the nearest valid name. */
int table_format_find(enum table_format *out, const char *name);

struct table;

/* Rows go to `out` as they come (CSV, JSON, JSONL) or at table_close (text, Markdown, whose widths
 * depend on all rows). names[n_columns] are copied. */
struct table *table_open(FILE *out, enum table_format format, int n_columns,
                         const char *const *names);

/* One row: values[n_columns], NULL for no value; is_number[n_columns] says which values are decimal
 * numbers and not text that looks like one. Both are copied. */
void table_add(struct table *t, const char *const *values, const bool *is_number);

/* Prints what is left and frees t. ERR_RESOURCE when something could not be written to `out`.
 * NULL is allowed and prints nothing. */
int table_close(struct table *t);

#endif
