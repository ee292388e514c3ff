/* lines.h - the lines of a text file. */
#ifndef QUIRE_LINES_H
#define QUIRE_LINES_H

#include "engine/util.h"

struct lines {
    char *text; /* owned */
    char *next, *end;
    int number; /* of the line returned last, from 1 */
};

/* Reads the file; a byte order mark at its beginning is skipped. ERR_DATA. */
int lines_init(struct lines *lines, const char *path);
void lines_free(struct lines *lines);

/* The next line without its LF or CRLF, NUL-terminated, of *n bytes; the caller may write on it.
 * NULL at the end. Borrowed. */
char *lines_next(struct lines *lines, size_t *n);

#endif
