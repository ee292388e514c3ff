/* Checkpoint files: what a good one gives, and that no hostile one gets past the header. */
#include "tests/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/safetensors.h"

/* Writes a file whose header says that it is `header_len` bytes long. */
static void write_file(const char *name, const char *header, uint64_t header_len, const void *data,
                       size_t n)
{
    struct str file = {0};
    for (int i = 0; i < 8; i++)
        str_append(&file, &(char){(char)(header_len >> 8 * i)}, 1);
    str_append_c(&file, header);
    str_append(&file, data, n);
    free(test_write_file(name, file.data, file.len));
    str_free(&file);
}

static void write_checkpoint(const char *name, const char *header, const void *data, size_t n)
{
    write_file(name, header, strlen(header), data, n);
}

static void remove_file(const char *name)
{
    char *path = test_path(name);
    remove(path);
    free(path);
}

static struct safetensors *open_good(void)
{
    struct safetensors *s;
    if (safetensors_open(&s, test_dir()) != 0)
        fail_msg("%s", err_get());
    return s;
}

static void assert_refused(const char *part)
{
    struct safetensors *s;
    if (safetensors_open(&s, test_dir()) == 0)
        fail_msg("accepted; expected an error with: %s", part);
    assert_error(ERR_DATA, part);
}

static const uint8_t bytes[64] = {0, 0, 0x80, 0x3F, 0, 0, 0, 0x40, 1, 2, 3, 4, 5, 6, 7, 8};

static void tensors_are_found_with_shape_dtype_and_bytes(void **state)
{
    (void)state;
    /* Not in the order of their offsets, one scalar, one empty, one of a dtype without use. */
    write_checkpoint(
        "model.safetensors",
        "{\"__metadata__\": {\"format\": \"pt\"},"
        "\"b\": {\"dtype\": \"BF16\", \"shape\": [2, 3], \"data_offsets\": [8, 20]},"
        "\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]},"
        "\"none\": {\"dtype\": \"F32\", \"shape\": [0, 7], \"data_offsets\": [20, 20]},"
        "\"n\": {\"dtype\": \"I64\", \"shape\": [], \"data_offsets\": [20, 28]},"
        "\"s\": {\"dtype\": \"F16\", \"shape\": [], \"data_offsets\": [28, 30]}}   ",
        bytes, 30);
    struct safetensors *s = open_good();
    const struct tensor *a = safetensors_find(s, "a"), *b = safetensors_find(s, "b");
    assert_non_null(a);
    assert_int_equal(a->dtype, DTYPE_F32);
    assert_memory_equal(a->data, bytes, 8);
    assert_non_null(b);
    assert_int_equal(b->dtype, DTYPE_BF16);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->dim[0], 2);
    assert_int_equal(b->dim[1], 3);
    assert_memory_equal(b->data, bytes + 8, 12);
    assert_contains(b->file, "model.safetensors");
    assert_int_equal(safetensors_find(s, "s")->n_dims, 0);
    assert_int_equal(safetensors_find(s, "none")->dim[1], 7);
    assert_null(safetensors_find(s, "n"));
    assert_null(safetensors_find(s, "__metadata__"));
    assert_null(safetensors_find(s, "c"));
    safetensors_close(s);
}

static void a_wrong_request_names_what_is_there(void **state)
{
    (void)state;
    write_checkpoint("model.safetensors",
                     "{\"norm.weight\": {\"dtype\": \"F32\", \"shape\": [2, 1], \"data_offsets\":"
                     " [0, 8]}, \"mask.weight\": {\"dtype\": \"U8\", \"shape\": [2],"
                     " \"data_offsets\": [8, 10]}}",
                     bytes, 10);
    struct safetensors *s = open_good();
    const size_t two = 2, two_by_one[2] = {2, 1}, one_by_two[2] = {1, 2};
    assert_non_null(safetensors_get(s, "norm.weight", 2, two_by_one));
    assert_null(safetensors_get(s, "norm.weight", 2, one_by_two));
    assert_error(ERR_DATA, "tensor norm.weight is F32 of shape [2, 1]; expected");
    assert_contains(err_get(), "of shape [1, 2]");
    assert_null(safetensors_get(s, "norm.weight", 1, &two));
    assert_null(safetensors_get(s, "norm.wieght", 1, &two));
    assert_error(ERR_DATA, "tensor norm.wieght of shape [2] is missing; the nearest name: "
                           "norm.weight");
    assert_null(safetensors_get(s, "mask.weight", 1, &two));
    assert_error(ERR_DATA, "mask.weight is U8");
    safetensors_close(s);
}

static void damaged_headers_are_refused(void **state)
{
    (void)state;
#define T(offsets) "\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": " offsets "}"
    static const struct {
        const char *header;
        const char *error;
    } cases[] = {
        {"", "the header is not a JSON object"},
        {"[]", "the header is not a JSON object"},
        {"{\"a\": ", "the header is not a JSON object"},
        {"{} x", "the header is not a JSON object"},
        {"{\"a\": {" T("[0, 8]") ", \"a\": {" T("[8, 16]") "}", "duplicate object key"},
        {"{\"\\u0000\": {" T("[0, 16]") "}", "the header is not a JSON object"},
        {"{\"a\": 3}", "tensor a: unknown dtype (none)"},
        {"{\"a\": {\"dtype\": \"Q4\", \"shape\": [2], \"data_offsets\": [0, 16]}}",
         "tensor a: unknown dtype Q4"},
        {"{\"a\": {\"dtype\": \"F32\", \"data_offsets\": [0, 16]}}", "tensor a: shape is not"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": 4, \"data_offsets\": [0, 16]}}",
         "tensor a: shape is not"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1,1,1,1,1,1,1,1,4], \"data_offsets\": [0, 16]}}",
         "tensor a: shape is not a list of at most 8"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [-4], \"data_offsets\": [0, 16]}}",
         "tensor a: shape has a size that is not a whole number"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [4.0], \"data_offsets\": [0, 16]}}",
         "tensor a: shape has a size"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296],"
         " \"data_offsets\": [0, 16]}}",
         "tensor a: shape is larger than any memory"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [4611686018427387904],"
         " \"data_offsets\": [0, 0]}}",
         "tensor a: shape is larger than any memory"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [99999999999999999999],"
         " \"data_offsets\": [0, 16]}}",
         "too big integer"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [4]}}", "tensor a: data_offsets"},
        {"{\"a\": {" T("[0]") "}", "tensor a: data_offsets"},
        {"{\"a\": {" T("[0, \"8\"]") "}", "tensor a: data_offsets"},
        {"{\"a\": {" T("[-8, 0]") "}", "tensor a: data_offsets"},
        {"{\"a\": {" T("[8, 0]") "}", "tensor a: data_offsets [8, 0] are not within"},
        {"{\"a\": {" T("[9, 17]") "}", "tensor a: data_offsets [9, 17] are not within the 16"},
        {"{\"a\": {" T("[9223372036854775800, 9223372036854775807]") "}", "are not within"},
        {"{\"a\": {" T("[0, 16]") "}", "hold 16 bytes, but its shape and dtype take 8"},
        {"{\"a\": {" T("[0, 8]") "}", "the tensors end at byte 8 of 16"},
        {"{\"a\": {" T("[8, 16]") "}", "tensor a: data_offsets [8, 16] leave a gap"},
        {"{\"a\": {" T("[0, 8]") ", \"b\": {" T("[4, 12]") "}",
         "tensor b: data_offsets [4, 12] overlap the tensor before it, which ends at 8"},
        {"{\"a\": {" T("[0, 8]") ", \"b\": {" T("[0, 8]") "}", "overlap"},
        {"{}", "the tensors end at byte 0 of 16"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        write_checkpoint("model.safetensors", cases[i].header, bytes, 16);
        assert_refused(cases[i].error);
        assert_contains(err_get(), "model.safetensors: ");
    }
}

static void a_wrong_header_length_is_refused(void **state)
{
    (void)state;
    static const char header[] = "{\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\":"
                                 " [0, 16]}}";
    static const uint64_t lengths[] = {UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63,
                                       ((uint64_t)100 << 20) + 1, sizeof(header) - 1 + 17};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        write_file("model.safetensors", header, lengths[i], bytes, 16);
        assert_refused("the header says that it is");
    }
    write_file("model.safetensors", header, sizeof(header) - 2, bytes, 16);
    assert_refused("the header is not a JSON object");
    write_file("model.safetensors", header, sizeof(header), bytes, 15);
    assert_refused("the header is not a JSON object");
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    (void)state;
    struct str file = {0};
    static const char header[] = "{\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\":"
                                 " [0, 16]}}";
    str_append(&file, &(char){sizeof(header) - 1}, 1);
    str_append(&file, "\0\0\0\0\0\0", 7);
    str_append_c(&file, header);
    str_append(&file, (const char *)bytes, 16);
    for (size_t n = 0; n < file.len; n++) {
        free(test_write_file("model.safetensors", file.data, n));
        assert_refused("model.safetensors: ");
    }
    free(test_write_file("model.safetensors", file.data, file.len));
    safetensors_close(open_good());
    str_free(&file);
}

static void a_directory_without_weights_says_so(void **state)
{
    (void)state;
    struct safetensors *s;
    remove_file("model.safetensors");
    assert_refused("neither model.safetensors nor model.safetensors.index.json");
    assert_int_equal(safetensors_open(&s, "/nonexistent"), -1);
    assert_error(ERR_DATA, "/nonexistent");
}

/* ---- shards ---- */

#define INDEX_NAME "model.safetensors.index.json"

static void write_shards(void)
{
    remove_file("model.safetensors");
    write_checkpoint("one.safetensors",
                     "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]},"
                     "\"c\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [8, 12]}}",
                     bytes, 12);
    write_checkpoint("two.safetensors",
                     "{\"b\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}",
                     bytes + 4, 4);
}

static void shards_are_one_checkpoint(void **state)
{
    (void)state;
    write_shards();
    free(test_write_text(INDEX_NAME,
                         "{\"metadata\": {}, \"weight_map\": {\"a\": \"one.safetensors\","
                         "\"b\": \"two.safetensors\", \"c\": \"one.safetensors\"}}"));
    struct safetensors *s = open_good();
    assert_memory_equal(safetensors_find(s, "a")->data, bytes, 8);
    assert_memory_equal(safetensors_find(s, "b")->data, bytes + 4, 4);
    assert_contains(safetensors_find(s, "b")->file, "two.safetensors");
    assert_memory_equal(safetensors_find(s, "c")->data, bytes + 8, 4);
    safetensors_close(s);
}

static void an_index_that_does_not_fit_its_files_is_refused(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{}", "weight_map is missing or empty"},
        {"{\"weight_map\": []}", "weight_map is missing or empty"},
        {"{\"weight_map\": {\"a\": 3}}", "tensor a: '' is not the name of a file"},
        {"{\"weight_map\": {\"a\": \"../one.safetensors\"}}", "'../one.safetensors' is not"},
        {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", "'/etc/passwd' is not the name"},
        {"{\"weight_map\": {\"a\": \".\"}}", "not a file"},
        {"{\"weight_map\": {\"a\": \"three.safetensors\"}}", "three.safetensors: cannot open"},
        {"{\"weight_map\": {\"a\": \"" INDEX_NAME "\"}}", INDEX_NAME},
        {"{\"weight_map\": {\"a\": \"one.safetensors\", \"d\": \"two.safetensors\"}}",
         "tensor d: it is not in two.safetensors"},
        {"{\"weight_map\": {\"a\": \"two.safetensors\", \"c\": \"one.safetensors\"}}",
         "tensor a: it is in"},
        {"{\"weight_map\": {\"a\": \"one.safetensors\"", INDEX_NAME},
    };
    write_shards();
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        free(test_write_text(INDEX_NAME, cases[i][0]));
        assert_refused(cases[i][1]);
    }
    write_checkpoint("two.safetensors",
                     "{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}",
                     bytes, 4);
    free(test_write_text(INDEX_NAME, "{\"weight_map\": {\"a\": \"one.safetensors\","
                                     " \"b\": \"two.safetensors\"}}"));
    assert_refused("tensor a: it is also in");
}

static void an_index_that_names_endless_files_is_refused(void **state)
{
    (void)state;
    write_shards();
    struct str index = {0};
    str_append_c(&index, "{\"weight_map\": {\"b\": \"two.safetensors\"");
    for (int i = 0; i < SAFETENSORS_MAX_FILES; i++) {
        char name[32];
        snprintf(name, sizeof(name), "f%d", i);
        write_checkpoint(name, "{}", "", 0);
        str_appendf(&index, ", \"t%d\": \"%s\"", i, name);
    }
    str_append_c(&index, "}}");
    free(test_write_text(INDEX_NAME, index.data));
    str_free(&index);
    assert_refused("names more than 1024 files");
}

/* ---- fingerprint ---- */

/* Pages of files that this process has mapped and touched. */
static size_t mapped_pages(void)
{
    unsigned long size, resident, of_files = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%lu %lu %lu", &size, &resident, &of_files), 3);
    fclose(f);
    return of_files;
}

static void a_released_tensor_leaves_memory_and_can_be_read_again(void **state)
{
    enum { BYTES = 8 << 20, HEADER = 200 };
    (void)state;
    uint8_t *data = xmalloc(BYTES);
    char header[HEADER];
    for (size_t i = 0; i < BYTES; i++)
        data[i] = (uint8_t)(i * 7 >> 3);
    snprintf(header, sizeof(header),
             "{\"a\": {\"dtype\": \"F16\", \"shape\": [50], \"data_offsets\": [0, 100]},"
             "\"b\": {\"dtype\": \"F16\", \"shape\": [%d], \"data_offsets\": [100, %d]}}",
             (BYTES - 100) / 2, BYTES);
    write_checkpoint("model.safetensors", header, data, BYTES);
    struct safetensors *s = open_good();
    const struct tensor *a = safetensors_find(s, "a"), *b = safetensors_find(s, "b");
    assert_memory_equal(b->data, data + 100, BYTES - 100);
    size_t before = mapped_pages(), page = (size_t)sysconf(_SC_PAGESIZE);
    safetensors_release(s, b);
    assert_true(before - mapped_pages() >= BYTES / page / 2);
    assert_memory_equal(a->data, data, 100);
    assert_memory_equal(b->data, data + 100, BYTES - 100);
    safetensors_close(s);
    free(data);
}

static void fingerprint_of(char hex[SHA256_HEX_LEN + 1], const char *header, const uint8_t *data)
{
    write_checkpoint("model.safetensors", header, data, 16);
    struct safetensors *s = open_good();
    safetensors_fingerprint(s, hex);
    safetensors_close(s);
}

static void the_fingerprint_follows_names_shapes_dtypes_and_values(void **state)
{
    (void)state;
#define ONE(name, dtype, shape)                                                                    \
    "{\"" name "\": {\"dtype\": \"" dtype "\", \"shape\": " shape ", \"data_offsets\": [0, 16]}}"
    static const char *const headers[] = {ONE("a", "F32", "[4]"), ONE("b", "F32", "[4]"),
                                          ONE("a", "F32", "[2, 2]"), ONE("a", "BF16", "[8]"),
                                          ONE("a", "F16", "[8]")};
    char first[SHA256_HEX_LEN + 1], again[SHA256_HEX_LEN + 1], hex[SHA256_HEX_LEN + 1];
    fingerprint_of(first, headers[0], bytes);
    fingerprint_of(again, headers[0], bytes);
    assert_string_equal(first, again);
    for (size_t i = 1; i < ARRAY_LEN(headers); i++) {
        fingerprint_of(hex, headers[i], bytes);
        assert_string_not_equal(first, hex);
    }
    uint8_t changed[16];
    memcpy(changed, bytes, sizeof(changed));
    changed[15] ^= 1;
    fingerprint_of(hex, headers[0], changed);
    assert_string_not_equal(first, hex);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_found_with_shape_dtype_and_bytes),
        cmocka_unit_test(a_wrong_request_names_what_is_there),
        cmocka_unit_test(damaged_headers_are_refused),
        cmocka_unit_test(a_wrong_header_length_is_refused),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(a_released_tensor_leaves_memory_and_can_be_read_again),
        cmocka_unit_test(the_fingerprint_follows_names_shapes_dtypes_and_values),
        cmocka_unit_test(a_directory_without_weights_says_so),
        cmocka_unit_test(shards_are_one_checkpoint),
        cmocka_unit_test(an_index_that_does_not_fit_its_files_is_refused),
        cmocka_unit_test(an_index_that_names_endless_files_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
