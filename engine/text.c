/* text.c - see text.h. */
#include "engine/text.h"

#include <string.h>
#include <utf8proc.h>

/* Length of the character that a lead byte announces and the range of its second byte (Unicode
 * Standard, table 3-7): the range excludes overlong forms, surrogates and what is past U+10FFFF. */
struct lead {
    size_t len;
    unsigned char low, high;
};

static struct lead lead_of(unsigned char c)
{
    if (c >= 0xC2 && c <= 0xDF)
        return (struct lead){2, 0x80, 0xBF};
    if (c >= 0xE0 && c <= 0xEF)
        return (struct lead){3, c == 0xE0 ? 0xA0 : 0x80, c == 0xED ? 0x9F : 0xBF};
    if (c >= 0xF0 && c <= 0xF4)
        return (struct lead){4, c == 0xF0 ? 0x90 : 0x80, c == 0xF4 ? 0x8F : 0xBF};
    return (struct lead){1, 0, 0};
}

uint32_t text_next(const char *s, size_t n, size_t *len)
{
    unsigned char c = (unsigned char)s[0];
    struct lead lead = lead_of(c);
    *len = 1;
    if (c < 0x80)
        return c;
    uint32_t code_point = c & (0x7Fu >> lead.len);
    for (size_t i = 1; i < lead.len; i++) {
        unsigned char next = i < n ? (unsigned char)s[i] : 0;
        if (next < (i == 1 ? lead.low : 0x80) || next > (i == 1 ? lead.high : 0xBF))
            return TEXT_INVALID;
        code_point = code_point << 6 | (next & 0x3F);
        *len = i + 1;
    }
    return lead.len == 1 ? TEXT_INVALID : code_point;
}

size_t text_valid_prefix(const char *s, size_t n)
{
    size_t at = 0, len;
    while (at < n) {
        uint64_t word;
        if (n - at >= sizeof(word)) {
            memcpy(&word, s + at, sizeof(word));
            if (!(word & 0x8080808080808080u)) {
                at += sizeof(word);
                continue;
            }
        }
        if (text_next(s + at, n - at, &len) == TEXT_INVALID)
            break;
        at += len;
    }
    return at;
}

void text_append_char(struct str *out, uint32_t code_point)
{
    utf8proc_uint8_t bytes[4];
    utf8proc_ssize_t n = utf8proc_encode_char((utf8proc_int32_t)code_point, bytes);
    str_append(out, (const char *)bytes, (size_t)n);
}

void text_append_lossy(struct str *out, const char *s, size_t n, bool per_byte)
{
    while (n > 0) {
        size_t valid = text_valid_prefix(s, n), len;
        str_append(out, s, valid);
        s += valid;
        n -= valid;
        if (n == 0)
            return;
        text_next(s, n, &len);
        for (size_t i = 0; i < (per_byte ? len : 1); i++)
            text_append_char(out, TEXT_REPLACEMENT);
        s += len;
        n -= len;
    }
}

void text_replace(struct str *out, const char *text, size_t n, const char *from, const char *to)
{
    size_t from_len = strlen(from);
    const char *end = text + n, *found;
    while (from_len > 0 && (found = memmem(text, (size_t)(end - text), from, from_len))) {
        str_append(out, text, (size_t)(found - text));
        str_append_c(out, to);
        text = found + from_len;
    }
    str_append(out, text, (size_t)(end - text));
}

bool text_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

/* The symbols of the property Other_Alphabetic: letters in circles and squares. */
static bool is_enclosed_letter(uint32_t c)
{
    return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
           (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

bool text_is_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return c == 0x200C || c == 0x200D || is_enclosed_letter(c);
    }
}
