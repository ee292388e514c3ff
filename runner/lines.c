/* lines.c - see lines.h. */
#include "runner/lines.h"

#include <stdlib.h>
#include <string.h>

#define BYTE_ORDER_MARK "\xEF\xBB\xBF"

int lines_init(struct lines *lines, const char *path)
{
    size_t n;
    *lines = (struct lines){.text = file_read(path, &n)};
    if (!lines->text)
        return -1;
    lines->next = lines->text;
    lines->end = lines->text + n;
    if (strncmp(lines->next, BYTE_ORDER_MARK, strlen(BYTE_ORDER_MARK)) == 0)
        lines->next += strlen(BYTE_ORDER_MARK);
    return 0;
}

void lines_free(struct lines *lines)
{
    free(lines->text);
    *lines = (struct lines){0};
}

char *lines_next(struct lines *lines, size_t *n)
{
    if (lines->next >= lines->end)
        return NULL;
    char *line = lines->next;
    char *newline = memchr(line, '\n', (size_t)(lines->end - line));
    char *end = newline ? newline : lines->end;
    lines->next = newline ? newline + 1 : lines->end;
    lines->number++;
    if (end > line && end[-1] == '\r')
        end--;
    *end = '\0'; /* The file's text has a NUL behind its last byte. */
    *n = (size_t)(end - line);
    return line;
}
