/* UTF-8 and character classes: every code point, and what is not one. */
#include "tests/testing.h"

#include <string.h>
#include <utf8proc.h>

#include "engine/text.h"

#define LAST_CODE_POINT 0x10FFFFu

static bool is_surrogate(uint32_t c)
{
    return c >= 0xD800 && c <= 0xDFFF;
}

static void every_code_point_is_read_as_it_was_written(void **state)
{
    (void)state;
    for (uint32_t c = 0; c <= LAST_CODE_POINT; c++) {
        struct str text = {0};
        size_t len;
        if (is_surrogate(c))
            continue;
        text_append_char(&text, c);
        assert_int_equal(text_next(text.data, text.len, &len), c);
        assert_int_equal(len, text.len);
        assert_int_equal(text_valid_prefix(text.data, text.len), text.len);
        str_free(&text);
    }
}

/* The cases of the Unicode Standard, tables 3-8 to 3-11, and a few more. */
static void invalid_bytes_become_one_replacement_for_each_maximal_part(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t valid; /* bytes in front that are valid */
        int n_replacements, n_per_byte;
    } cases[] = {
        {"", 0, 0, 0},
        {"plain ASCII, longer than a word", 31, 0, 0},
        {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", 0, 8, 8},
        {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", 0, 8, 8},
        {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", 0, 7, 7},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", 0, 4, 8},
        {"0123456789\xe4\xb8", 10, 1, 2},
        {"\xe4\xb8\x96\xf0\x9f\x99", 3, 1, 3},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *bytes = cases[i].bytes;
        size_t n = strlen(bytes);
        assert_int_equal(text_valid_prefix(bytes, n), cases[i].valid);
        for (int per_byte = 0; per_byte < 2; per_byte++) {
            struct str out = {0};
            int n_found = 0;
            text_append_lossy(&out, bytes, n, per_byte);
            assert_int_equal(text_valid_prefix(out.data, out.len), out.len);
            for (size_t at = 0; at + 2 < out.len; at++)
                n_found += memcmp(out.data + at, "\uFFFD", 3) == 0;
            assert_int_equal(n_found, per_byte ? cases[i].n_per_byte : cases[i].n_replacements);
            str_free(&out);
        }
    }
}

/* By the Unicode Standard, White_Space is the separators and the controls of lines and columns. */
static void spaces_are_the_separators_and_a_few_controls(void **state)
{
    (void)state;
    for (uint32_t c = 0; c <= LAST_CODE_POINT; c++) {
        utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
        bool separator = category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
                         category == UTF8PROC_CATEGORY_ZP;
        bool control = (c >= '\t' && c <= '\r') || c == 0x85;
        if (text_is_space(c) != (separator || control))
            fail_msg("U+%04X", c);
    }
}

static void words_are_letters_marks_digits_and_connectors(void **state)
{
    (void)state;
    static const uint32_t word[] = {'a',    'Z',    '0',    '_',    0xE9,   0x301,   0x663,
                                    0x4E16, 0x200D, 0x2160, 0x24B6, 0x24E9, 0x1F130, 0x1F189};
    static const uint32_t other[] = {' ',    '-',   '<',    0x2028, 0xBD,    0x20AC, 0x1F642,
                                     0xFFFD, 0x378, 0x24B5, 0x24EA, 0x1F14A, 0x1F18A};
    for (size_t i = 0; i < ARRAY_LEN(word); i++)
        assert_true(text_is_word(word[i]));
    for (size_t i = 0; i < ARRAY_LEN(other); i++)
        assert_false(text_is_word(other[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point_is_read_as_it_was_written),
        cmocka_unit_test(invalid_bytes_become_one_replacement_for_each_maximal_part),
        cmocka_unit_test(spaces_are_the_separators_and_a_few_controls),
        cmocka_unit_test(words_are_letters_marks_digits_and_connectors),
    };
    return cmocka_run_group_tests_name("text", tests, NULL, NULL);
}
