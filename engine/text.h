/* text.h - Unicode text as the tokenizer and the chat formats see it: decoding UTF-8, replacing
 * what is not UTF-8, and the character classes of the reference implementations.
 */
#ifndef QUIRE_TEXT_H
#define QUIRE_TEXT_H

#include "engine/util.h"

#define TEXT_INVALID     UINT32_MAX
#define TEXT_REPLACEMENT 0xFFFDu

/* The code point that starts s[n], n > 0, and its length in bytes. TEXT_INVALID for bytes that are
 * not UTF-8; *len is then the longest prefix that could have started a character, at least 1
 * (Unicode Standard, section 3.9, "U+FFFD Substitution of Maximal Subparts"). */
uint32_t text_next(const char *s, size_t n, size_t *len);

/* Length of the longest valid UTF-8 prefix of s[n]. */
size_t text_valid_prefix(const char *s, size_t n);

void text_append_char(struct str *out, uint32_t code_point);

/* Appends s[n] with U+FFFD for each maximal invalid part; per_byte: for each byte of it. */
void text_append_lossy(struct str *out, const char *s, size_t n, bool per_byte);

/* Appends text[n] with every `from` replaced by `to`; an empty `from` replaces nothing. */
void text_replace(struct str *out, const char *text, size_t n, const char *from, const char *to);

/* The property White_Space. */
bool text_is_space(uint32_t code_point);
/* Letters (those in circles and squares too), marks, decimal digits, connectors and joiners: \w of
 * regular expressions. */
bool text_is_word(uint32_t code_point);

#endif
