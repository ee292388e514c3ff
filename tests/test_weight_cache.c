/* The file of packed weights: a start that maps it has the weights of one that packed. */
#include "tests/testing.h"

#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/model.h"
#include "engine/weight_cache.h"

static struct model *open_model(const struct model_options *options)
{
    log_set_level("quiet");
    return test_open_model(options);
}

static int count_files(const char *dir, const char *pattern)
{
    char *path = path_join(dir, pattern);
    glob_t found;
    int n = glob(path, 0, NULL, &found) == 0 ? (int)found.gl_pathc : 0;
    globfree(&found);
    free(path);
    return n;
}

/* The only file of a cache; the caller frees. */
static char *only_file(const char *dir)
{
    char *pattern = path_join(dir, "*");
    glob_t found;
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    char *path = xstrdup(found.gl_pathv[0]);
    globfree(&found);
    free(pattern);
    return path;
}

static void assert_same_weight(const struct weight *a, const struct weight *b)
{
    assert_int_equal(a->n_out, b->n_out);
    assert_int_equal(a->n_in, b->n_in);
    assert_int_equal(a->bytes, b->bytes);
    assert_memory_equal(a->data, b->data, a->bytes);
}

/* is_mapped: whether b's matrices are those of its cache's file. */
static void assert_same_weights(const struct model *a, const struct model *b, bool is_mapped)
{
    assert_same_weight(&a->embed, &b->embed);
    assert_int_equal(a->info.weight_bytes, b->info.weight_bytes);
    assert_true(weight_cache_owns(b->cache, &b->embed) == is_mapped);
    for (int i = 0; i < a->arch.n_layers; i++) {
        const struct model_layer *x = &a->layer[i], *y = &b->layer[i];
        assert_same_weight(&x->qkv, &y->qkv);
        assert_same_weight(&x->o, &y->o);
        assert_same_weight(&x->gate_up, &y->gate_up);
        assert_same_weight(&x->down, &y->down);
        assert_true(weight_cache_owns(b->cache, &y->down) == is_mapped);
    }
}

/* Opens the model without a cache and with one, and compares. */
static void check_open(const struct model_options *options, bool is_mapped)
{
    struct model_options without = *options;
    without.weight_cache = NULL;
    struct model *expected = open_model(&without), *m = open_model(options);
    assert_same_weights(expected, m, is_mapped);
    model_close(m);
    model_close(expected);
}

static void later_starts_map_what_the_first_one_packed(void **state)
{
    (void)state;
    char *dir = test_path("cache/of/models");
    const struct model_options cases[] = {
        {.path = "tests/golden/qwen3", .weight_cache = dir},
        {.path = "tests/golden/qwen3", .dtype = "bfloat16", .weight_cache = dir},
        {.path = "tests/golden/qwen3", .quantization = QUANTIZATION_INT8, .weight_cache = dir},
        {.path = "tests/golden/qwen3", .device_options = {.isa = "plain"}, .weight_cache = dir},
        {.path = "tests/golden/llama3", .weight_cache = dir},
        {.path = "configs/models/minimal.json",
         .random_init = true,
         .init_seed = 3,
         .weight_cache = dir},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        check_open(&cases[i], false);
    assert_int_equal(count_files(dir, "*.weights"), ARRAY_LEN(cases));
    assert_int_equal(count_files(dir, "*.tmp"), 0);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        check_open(&cases[i], true);
    assert_int_equal(count_files(dir, "*"), ARRAY_LEN(cases));
    free(dir);
}

static void two_processes_of_a_machine_may_map_one_file(void **state)
{
    (void)state;
    char *dir = test_path("shared");
    const struct model_options options = {.path = "tests/golden/qwen3", .weight_cache = dir};
    model_close(open_model(&options));
    struct model *a = open_model(&options), *b = open_model(&options);
    assert_same_weights(a, b, true);
    model_close(a);
    assert_memory_not_equal(b->embed.data, (char[64]){0}, 64);
    model_close(b);
    free(dir);
}

/* Changes one byte at a place counted from the beginning, or from the end when it is negative. */
static void damage(const char *path, off_t at)
{
    char byte;
    int fd = open(path, O_RDWR);
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    at = at < 0 ? st.st_size + at : at;
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte = (char)(byte ^ 0x40);
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

/* A copy of a file of tests/golden/qwen3 among the test's own; the caller frees its path. */
static char *copy_golden(const char *name)
{
    size_t n;
    char *from = path_join("tests/golden/qwen3", name), *data = file_read(from, &n);
    assert_non_null(data);
    char *path = test_write_file(name, data, n);
    free(data);
    free(from);
    return path;
}

/* Its fingerprint, which takes samples of each tensor, is that of the weights before. */
static void a_checkpoint_that_was_edited_is_packed_anew(void **state)
{
    (void)state;
    const struct timespec long_ago[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    char *config = copy_golden("config.json"), *weights = copy_golden("model.safetensors");
    char *model = path_dirname(weights), *dir = test_path("edited");
    const struct model_options options = {.path = model, .weight_cache = dir};
    assert_int_equal(utimensat(AT_FDCWD, weights, long_ago, 0), 0);
    struct model *before = open_model(&options);
    damage(weights, -200);
    check_open(&options, false);
    struct model *after = open_model(&options);
    assert_string_equal(before->info.fingerprint, after->info.fingerprint);
    model_close(after);
    model_close(before);
    free(dir);
    free(model);
    free(weights);
    free(config);
}

static void a_damaged_file_is_written_anew(void **state)
{
    (void)state;
    static const off_t places[] = {0, 5000, -1, -80, -100, -120};
    char *dir = test_path("damaged");
    const struct model_options options = {.path = "tests/golden/qwen3", .weight_cache = dir};
    model_close(open_model(&options));
    char *path = only_file(dir);
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        damage(path, places[i]);
        check_open(&options, false);
        check_open(&options, true);
    }
    const off_t lengths[] = {0, 10, 4096, 8000};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        assert_int_equal(truncate(path, lengths[i]), 0);
        check_open(&options, false);
        check_open(&options, true);
    }
    free(path);
    free(dir);
}

static void while_another_process_writes_the_file_it_is_left_alone(void **state)
{
    (void)state;
    char *dir = test_path("locked");
    const struct model_options options = {.path = "tests/golden/qwen3", .weight_cache = dir};
    model_close(open_model(&options));
    char *path = only_file(dir), *temporary = xasprintf("%s.tmp", path);
    assert_int_equal(unlink(path), 0);
    int fd = open(temporary, O_RDWR | O_CREAT, 0600);
    assert_int_equal(write(fd, "theirs", 6), 6);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    check_open(&options, false);
    size_t n;
    char *text = file_read(temporary, &n);
    assert_string_equal(text, "theirs");
    assert_int_equal(count_files(dir, "*.weights"), 0);
    /* That process is killed: what it left is written over. */
    close(fd);
    check_open(&options, false);
    check_open(&options, true);
    assert_int_equal(count_files(dir, "*.tmp"), 0);
    free(text);
    free(temporary);
    free(path);
    free(dir);
}

static void a_model_opens_where_no_cache_can_be(void **state)
{
    (void)state;
    char *file = test_write_text("file", "no folder"), *dir = path_join(file, "cache");
    const struct model_options options = {.path = "tests/golden/qwen3", .weight_cache = dir};
    check_open(&options, false);
    free(dir);
    free(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(later_starts_map_what_the_first_one_packed),
        cmocka_unit_test(two_processes_of_a_machine_may_map_one_file),
        cmocka_unit_test(a_checkpoint_that_was_edited_is_packed_anew),
        cmocka_unit_test(a_damaged_file_is_written_anew),
        cmocka_unit_test(while_another_process_writes_the_file_it_is_left_alone),
        cmocka_unit_test(a_model_opens_where_no_cache_can_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
