/* tokenizer_scan.c - a strict reader of JSON text.
 *
 * Qwen3's tokenizer.json is 11 MB: a table of 151 thousand contents and a list of as many merges.
 * Building jansson's tree of it takes 220 ms on the machine where reading and hashing the file take
 * 10 ms. This reader goes through the two tables once and keeps nothing.
 */
#include "engine/tokenizer_internal.h"

#include <string.h>

int scan_fail(const struct scan *s, const char *problem)
{
    size_t line = 1, start = 0;
    for (size_t i = 0; i < s->at; i++) {
        if (s->text[i] == '\n') {
            line++;
            start = i + 1;
        }
    }
    return err_set(ERR_DATA, "line %zu, column %zu: %s", line, s->at - start + 1, problem);
}

static void skip_space(struct scan *s)
{
    while (s->text[s->at] == ' ' || s->text[s->at] == '\n' || s->text[s->at] == '\r' ||
           s->text[s->at] == '\t')
        s->at++;
}

bool scan_skip(struct scan *s, char c)
{
    skip_space(s);
    if (s->text[s->at] != c)
        return false;
    s->at++;
    return true;
}

int scan_expect(struct scan *s, char c)
{
    if (scan_skip(s, c))
        return 0;
    char problem[] = "expected ' '";
    problem[sizeof(problem) - 3] = c;
    return scan_fail(s, s->at >= s->n ? "the file ends too early" : problem);
}

/* The four hexadecimal digits after \u, or -1. */
static long scan_hex(struct scan *s)
{
    long value = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        char c = s->text[s->at];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* \uXXXX, or two of them that form a surrogate pair; s->at is behind the first \u. */
static int scan_code_point(struct scan *s, struct str *out)
{
    long high = scan_hex(s), low = -1;
    if (high >= 0xD800 && high < 0xDC00) {
        if (s->text[s->at] != '\\' || s->text[s->at + 1] != 'u')
            return scan_fail(s, "half of a surrogate pair");
        s->at += 2;
        low = scan_hex(s);
        if (low < 0xDC00 || low > 0xDFFF)
            return scan_fail(s, "half of a surrogate pair");
        text_append_char(out, (uint32_t)(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)));
        return 0;
    }
    if (high < 0 || (high >= 0xDC00 && high <= 0xDFFF))
        return scan_fail(s, "invalid \\u escape");
    text_append_char(out, (uint32_t)high);
    return 0;
}

static int scan_escape(struct scan *s, struct str *out)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char c = s->text[s->at];
    if (c == 'u') {
        s->at++;
        return scan_code_point(s, out);
    }
    const char *name = c ? strchr(names, c) : NULL;
    if (!name)
        return scan_fail(s, "invalid escape in a string");
    str_append(out, &values[name - names], 1);
    s->at++;
    return 0;
}

int scan_string(struct scan *s, struct str *out)
{
    if (scan_expect(s, '"') < 0)
        return -1;
    for (;;) {
        const char *run = s->text + s->at;
        size_t n = 0;
        unsigned char all = 0, c;
        while ((c = (unsigned char)run[n]) != '"' && c != '\\' && c >= 0x20) {
            all |= c;
            n++;
        }
        if (all >= 0x80 && text_valid_prefix(run, n) < n)
            return scan_fail(s, "a string that is not UTF-8");
        str_append(out, run, n);
        s->at += n;
        if (c < 0x20)
            return scan_fail(s, s->at >= s->n ? "the file ends inside a string"
                                              : "a control character in a string");
        s->at++;
        if (c == '"')
            return 0;
        if (scan_escape(s, out) < 0)
            return -1;
    }
}

int scan_int(struct scan *s, size_t limit, int *value)
{
    size_t number = 0, first;
    skip_space(s);
    first = s->at;
    for (char c; (c = s->text[s->at]) >= '0' && c <= '9'; s->at++) {
        number = number * 10 + (size_t)(c - '0');
        if (number >= limit)
            return scan_fail(s, "an id that is too large");
    }
    char next = s->text[s->at];
    if (s->at == first || (s->text[first] == '0' && s->at > first + 1) || next == '.' ||
        next == 'e' || next == 'E')
        return scan_fail(s, s->at >= s->n ? "the file ends too early" : "expected an id");
    *value = (int)number;
    return 0;
}

/* Moves behind the string that starts at s->at, without resolving it. */
static int skip_string(struct scan *s)
{
    for (s->at++; s->at < s->n; s->at++) {
        if (s->text[s->at] == '"') {
            s->at++;
            return 0;
        }
        if (s->text[s->at] == '\\' && s->at + 1 < s->n)
            s->at++;
    }
    return scan_fail(s, "the file ends inside a string");
}

int scan_value(struct scan *s)
{
    size_t depth = 0;
    skip_space(s);
    while (s->at < s->n) {
        char c = s->text[s->at];
        if (depth == 0 && (c == ',' || c == ']' || c == '}'))
            return 0;
        if (c == '"') {
            if (skip_string(s) < 0)
                return -1;
            continue;
        }
        if (c == '[' || c == '{')
            depth++;
        if (c == ']' || c == '}')
            depth--;
        s->at++;
    }
    return scan_fail(s, "the file ends too early");
}
