/* testing.c - see testing.h. */
#include "tests/testing.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_TEST_DATA "../shared/data"
#define MAX_OPEN_FOLDERS  16 /* that nftw holds while it descends */

static char *current_dir;
static pid_t dir_owner;

char *test_data_path(const char *name)
{
    const char *root = getenv("QUIRE_TEST_DATA");
    char *path = path_join(root && *root ? root : DEFAULT_TEST_DATA, name);
    if (access(path, R_OK) == 0)
        return path;
    /* tests/run.sh looks for lines that begin like this one. */
    print_message("[ MISSING  ] test data %s (QUIRE_TEST_DATA)\n", path);
    free(path);
    return NULL;
}

enum device_kind test_device(void)
{
    const char *name = getenv("QUIRE_TEST_DEVICE");
    return name && strcmp(name, "cuda") == 0 ? DEVICE_CUDA : DEVICE_CPU;
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

static void remove_dir(void)
{
    /* A child that a test forked leaves the folder to its parent. */
    if (getpid() != dir_owner)
        return;
    if (nftw(current_dir, remove_entry, MAX_OPEN_FOLDERS, FTW_DEPTH | FTW_PHYS) != 0)
        print_error("cannot remove %s: %s\n", current_dir, strerror(errno));
    free(current_dir);
}

const char *test_dir(void)
{
    if (current_dir)
        return current_dir;
    const char *root = getenv("TMPDIR");
    current_dir = path_join(root && *root ? root : "/tmp", "quire-test-XXXXXX");
    if (!mkdtemp(current_dir))
        fail_msg("cannot make %s: %s", current_dir, strerror(errno));
    dir_owner = getpid();
    atexit(remove_dir);
    return current_dir;
}

char *test_path(const char *name)
{
    return path_join(test_dir(), name);
}

char *test_write_file(const char *name, const void *data, size_t n)
{
    char *path = test_path(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f) != 0)
        fail_msg("cannot write %s: %s", path, strerror(errno));
    return path;
}

char *test_write_text(const char *name, const char *text)
{
    return test_write_file(name, text, strlen(text));
}

struct model *test_open_model(const struct model_options *options)
{
    struct model *m;
    if (model_open(&m, options) != 0)
        fail_msg("%s", err_get());
    return m;
}

void assert_error(enum err_kind kind, const char *part)
{
    if (err_get_kind() != kind)
        fail_msg("error kind %d, expected %d: %s", err_get_kind(), kind, err_get());
    assert_contains(err_get(), part);
}

void assert_contains(const char *text, const char *part)
{
    if (!text || !strstr(text, part))
        fail_msg("\"%s\" does not contain \"%s\"", text, part);
}
