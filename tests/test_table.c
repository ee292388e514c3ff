/* test_table.c - tables for people and for programs. */
#include "runner/table.h"
#include "tests/testing.h"

#include <stdlib.h>
#include <string.h>

static const char *const nasty[] = {
    "plain",
    "",
    NULL,
    "a,b",
    "say \"hi\"",
    "two\nlines",
    "carriage\r\nreturn",
    "tab\there",
    " blanks ",
    "na\xC3\xAFve \xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E \xF0\x9F\x99\x82",
    "\x01 and \x1b[31mred",
    "|pipe| and \\| and \\",
    "<br> <b> &amp;",
    "`code` *bold* [link](x)",
    "{\"json\": [1, null]}",
    "NULL",
    "1e5",
    "'; DROP TABLE samples; --",
};

/* Prints rows of two columns, an index and a nasty text; the caller frees. */
static char *print_nasty(enum table_format format)
{
    char *text;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    struct table *t = table_open(out, format, 2, (const char *const[]){"i", "some, \"name\""});
    for (size_t i = 0; i < ARRAY_LEN(nasty); i++) {
        char index[16];
        snprintf(index, sizeof(index), "%zu", i);
        table_add(t, (const char *const[]){index, nasty[i]}, (const bool[]){true, false});
    }
    assert_int_equal(table_close(t), 0);
    fclose(out);
    return text;
}

static void assert_nasty(const json_t *row, size_t i)
{
    assert_int_equal(json_integer_value(json_object_get(row, "i")), i);
    const json_t *value = json_object_get(row, "some, \"name\"");
    assert_non_null(value);
    if (!nasty[i])
        assert_true(json_is_null(value));
    else
        assert_string_equal(json_string_value(value), nasty[i]);
}

static void json_gives_every_text_back(void **state)
{
    (void)state;
    char *text = print_nasty(TABLE_JSON);
    json_t *rows = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_int_equal(json_array_size(rows), ARRAY_LEN(nasty));
    for (size_t i = 0; i < ARRAY_LEN(nasty); i++)
        assert_nasty(json_array_get(rows, i), i);
    json_decref(rows);
    free(text);
}

static void jsonl_gives_every_text_back_one_object_a_line(void **state)
{
    (void)state;
    char *text = print_nasty(TABLE_JSONL), *line = text;
    for (size_t i = 0; i < ARRAY_LEN(nasty); i++) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        json_t *row = json_loadb(line, (size_t)(end - line), JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(row);
        assert_nasty(row, i);
        json_decref(row);
        line = end + 1;
    }
    assert_string_equal(line, "");
    free(text);
}

/* Reads one CSV field by RFC 4180 into out; *is_null when it is empty without quotes. Returns the
 * position behind its comma or line end. */
static const char *read_csv_field(const char *p, struct str *out, bool *is_null)
{
    str_clear(out);
    str_append_c(out, "");
    *is_null = *p == ',' || *p == '\n';
    if (*p != '"') {
        size_t n = strcspn(p, ",\n");
        str_append(out, p, n);
        return p + n + 1;
    }
    for (p++; *p != '"' || p[1] == '"'; p++) {
        assert_true(*p != '\0');
        p += *p == '"';
        str_append(out, p, 1);
    }
    return p + 2;
}

static void csv_gives_every_text_back_and_tells_null_from_empty(void **state)
{
    (void)state;
    char *text = print_nasty(TABLE_CSV);
    const char *p = text;
    struct str field = {0};
    bool is_null;
    p = read_csv_field(p, &field, &is_null);
    assert_string_equal(field.data, "i");
    p = read_csv_field(p, &field, &is_null);
    assert_string_equal(field.data, "some, \"name\"");
    for (size_t i = 0; i < ARRAY_LEN(nasty); i++) {
        p = read_csv_field(p, &field, &is_null);
        assert_int_equal(strtol(field.data, NULL, 10), i);
        p = read_csv_field(p, &field, &is_null);
        assert_int_equal(is_null, nasty[i] == NULL);
        assert_string_equal(field.data, nasty[i] ? nasty[i] : "");
    }
    assert_string_equal(p, "");
    str_free(&field);
    free(text);
}

static void markdown_rows_are_one_line_with_the_right_number_of_cells(void **state)
{
    (void)state;
    char *text = print_nasty(TABLE_MARKDOWN);
    size_t n_lines = 0;
    for (char *line = text; *line; line = strchr(line, '\n') + 1, n_lines++) {
        size_t n_bars = 0;
        for (char *p = line; *p != '\n'; p++) {
            n_bars += *p == '|';
            p += *p == '\\';
        }
        assert_int_equal(n_bars, 3);
    }
    assert_int_equal(n_lines, ARRAY_LEN(nasty) + 2);
    assert_contains(text, "| i | some, \"name\" |\n| ---: | --- |\n");
    assert_contains(text, "| 5 | two<br>lines |");
    assert_contains(text, "| 12 | \\<br> \\<b> \\&amp; |");
    free(text);
}

static void aligned_text_is_one_line_a_row_and_cannot_steer_the_terminal(void **state)
{
    (void)state;
    char *text = print_nasty(TABLE_TEXT);
    size_t n_lines = 0;
    for (char *p = text; *p; p++) {
        n_lines += *p == '\n';
        assert_true(*p == '\n' || (unsigned char)*p >= ' ');
    }
    assert_int_equal(n_lines, ARRAY_LEN(nasty) + 2);
    assert_contains(text, " 5  two\\nlines\n");
    assert_contains(text, "10  \\x01 and \\x1b[31mred\n");
    free(text);
}

static void aligned_text_puts_numbers_right_and_rounds_real_ones(void **state)
{
    (void)state;
    char *text;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    struct table *t = table_open(out, TABLE_TEXT, 3, (const char *const[]){"seed", "tps", "why"});
    const bool is_number[] = {true, true, false};
    table_add(t, (const char *const[]){"18446744073709551615", "123456.789", "\xE6\x97\xA5"},
              is_number);
    table_add(t, (const char *const[]){"7", "0.012345", NULL}, is_number);
    table_add(t, (const char *const[]){NULL, "2.0", "x"}, is_number);
    assert_int_equal(table_close(t), 0);
    fclose(out);
    assert_string_equal(text, "                seed      tps  why\n"
                              "--------------------  -------  ---\n"
                              "18446744073709551615   123457  \xE6\x97\xA5\n"
                              "                   7  0.01235  \n"
                              "                            2  x\n");
    free(text);
}

static void programs_get_every_digit(void **state)
{
    (void)state;
    static const enum table_format formats[] = {TABLE_CSV, TABLE_JSON, TABLE_JSONL};
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        char *text;
        size_t n;
        FILE *out = open_memstream(&text, &n);
        struct table *t = table_open(out, formats[i], 2, (const char *const[]){"a", "b"});
        table_add(t, (const char *const[]){"0.10000000000000001", "9223372036854775807"},
                  (const bool[]){true, true});
        assert_int_equal(table_close(t), 0);
        fclose(out);
        assert_contains(text, "0.10000000000000001");
        assert_contains(text, "9223372036854775807");
        free(text);
    }
}

static void long_text_is_cut_in_aligned_text_only(void **state)
{
    (void)state;
    char wide[3 * 100 + 1] = "";
    for (size_t i = 0; i < 100; i++)
        memcpy(wide + 3 * i, "\xE6\x97\xA5", 4); /* two columns each */
    for (int format = TABLE_TEXT; format <= TABLE_MARKDOWN; format++) {
        char *text;
        size_t n;
        FILE *out = open_memstream(&text, &n);
        struct table *t =
            table_open(out, (enum table_format)format, 1, (const char *const[]){"text"});
        table_add(t, (const char *const[]){wide}, (const bool[]){false});
        assert_int_equal(table_close(t), 0);
        fclose(out);
        assert_int_equal(strstr(text, "\xE2\x80\xA6") != NULL, format == TABLE_TEXT);
        if (format == TABLE_TEXT) {
            const char *last = strrchr(wide, 0) - 3 * 29; /* 29 characters and the ellipsis */
            assert_contains(text, last);
            assert_null(strstr(text, last - 3));
        } else if (format != TABLE_JSON && format != TABLE_JSONL) {
            assert_contains(text, wide);
        }
        free(text);
    }
}

static void bytes_that_are_not_utf8_become_valid_json(void **state)
{
    (void)state;
    char *text;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    struct table *t = table_open(out, TABLE_JSON, 1, (const char *const[]){"text"});
    table_add(t, (const char *const[]){"a\xFF\xC3(\xED\xA0\x80"}, (const bool[]){false});
    assert_int_equal(table_close(t), 0);
    fclose(out);
    json_t *rows = json_loads(text, 0, NULL);
    const char *value = json_string_value(json_object_get(json_array_get(rows, 0), "text"));
    assert_string_equal(value, "a\xEF\xBF\xBD\xEF\xBF\xBD(\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
    json_decref(rows);
    free(text);
}

static void columns_of_one_name_are_told_apart_in_json(void **state)
{
    (void)state;
    char *text;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    struct table *t = table_open(out, TABLE_JSONL, 4, (const char *const[]){"a", "a", "a_2", "a"});
    table_add(t, (const char *const[]){"1", "2", "3", "inf"},
              (const bool[]){true, true, true, true});
    assert_int_equal(table_close(t), 0);
    fclose(out);
    assert_string_equal(text, "{\"a\": 1, \"a_2\": 2, \"a_2_2\": 3, \"a_3\": null}\n");
    free(text);
}

static void a_table_without_rows_is_still_a_table(void **state)
{
    (void)state;
    static const char *const expected[] = {[TABLE_TEXT] = "a\n-\n(no rows)\n",
                                           [TABLE_CSV] = "a\n",
                                           [TABLE_JSON] = "[]\n",
                                           [TABLE_JSONL] = "",
                                           [TABLE_MARKDOWN] = "| a |\n| --- |\n"};
    for (int format = TABLE_TEXT; format <= TABLE_MARKDOWN; format++) {
        char *text;
        size_t n;
        FILE *out = open_memstream(&text, &n);
        assert_int_equal(
            table_close(table_open(out, (enum table_format)format, 1, (const char *const[]){"a"})),
            0);
        fclose(out);
        assert_string_equal(text, expected[format]);
        free(text);
    }
}

static void an_unknown_format_names_the_nearest(void **state)
{
    (void)state;
    enum table_format format;
    assert_int_equal(table_format_find(&format, "md"), 0);
    assert_int_equal(format, TABLE_MARKDOWN);
    assert_int_equal(table_format_find(&format, "jsom"), -1);
    assert_error(ERR_CONFIG, "did you mean 'json'?");
    assert_int_equal(table_format_find(&format, "spreadsheet"), -1);
    assert_error(ERR_CONFIG, "expected table, csv, json, jsonl or md");
}

static void output_that_cannot_be_written_is_an_error(void **state)
{
    (void)state;
    FILE *out = fopen("/dev/full", "w");
    if (!out)
        skip();
    struct table *t = table_open(out, TABLE_CSV, 1, (const char *const[]){"a"});
    assert_int_equal(table_close(t), -1);
    assert_error(ERR_RESOURCE, "could not be written");
    fclose(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_gives_every_text_back),
        cmocka_unit_test(jsonl_gives_every_text_back_one_object_a_line),
        cmocka_unit_test(csv_gives_every_text_back_and_tells_null_from_empty),
        cmocka_unit_test(markdown_rows_are_one_line_with_the_right_number_of_cells),
        cmocka_unit_test(aligned_text_is_one_line_a_row_and_cannot_steer_the_terminal),
        cmocka_unit_test(aligned_text_puts_numbers_right_and_rounds_real_ones),
        cmocka_unit_test(programs_get_every_digit),
        cmocka_unit_test(long_text_is_cut_in_aligned_text_only),
        cmocka_unit_test(bytes_that_are_not_utf8_become_valid_json),
        cmocka_unit_test(columns_of_one_name_are_told_apart_in_json),
        cmocka_unit_test(a_table_without_rows_is_still_a_table),
        cmocka_unit_test(an_unknown_format_names_the_nearest),
        cmocka_unit_test(output_that_cannot_be_written_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
