/* store_shards.c - which files hold the results of a path.
 *
 *     results/x.db                what `run` writes and `merge` makes
 *     results/x.d/0000-of-0064.db the workers of a job array: one shard each
 */
#include "runner/store_internal.h"

#include <dirent.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#define SUFFIX ".db"

static size_t stem_len(const char *path)
{
    size_t n = strlen(path), suffix = strlen(SUFFIX);
    return n > suffix && strcmp(path + n - suffix, SUFFIX) == 0 ? n - suffix : n;
}

static char *shard_folder(const char *path)
{
    return xasprintf("%.*s.d", (int)stem_len(path), path);
}

char *store_shard_path(const char *path, int index, int count)
{
    char *folder = shard_folder(path);
    char *shard = xasprintf("%s/%04d-of-%04d" SUFFIX, folder, index, count);
    free(folder);
    return shard;
}

static void push(struct store_files *files, char *path)
{
    files->path = xrealloc_array(files->path, (size_t)files->n + 1, sizeof(*files->path));
    files->path[files->n++] = path;
}

static int is_database(const struct dirent *entry)
{
    return entry->d_name[0] != '.' && stem_len(entry->d_name) < strlen(entry->d_name);
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Adds the databases in a folder, by name in the order of bytes, whatever the user's language. */
static int push_folder(struct store_files *files, const char *folder)
{
    struct dirent **entry;
    int n = scandir(folder, &entry, is_database, NULL);
    if (n < 0)
        return err_set(ERR_DATA, "%s: cannot be read: %s", folder, strerror(errno));
    int first = files->n;
    for (int i = 0; i < n; i++) {
        push(files, path_join(folder, entry[i]->d_name));
        free(entry[i]);
    }
    free(entry);
    if (n > 0)
        qsort(files->path + first, (size_t)n, sizeof(*files->path), compare_paths);
    return 0;
}

int store_list_files(struct store_files *out, const char *path)
{
    *out = (struct store_files){0};
    if (dir_exists(path))
        return push_folder(out, path);
    if (file_exists(path))
        push(out, xstrdup(path));
    char *folder = shard_folder(path);
    int rc = dir_exists(folder) ? push_folder(out, folder) : 0;
    free(folder);
    if (rc != 0)
        store_files_free(out);
    return rc;
}

void store_files_free(struct store_files *files)
{
    for (int i = 0; i < files->n; i++)
        free(files->path[i]);
    free(files->path);
    *files = (struct store_files){0};
}

/* ---- reading them as one ---- */

/* Statements that make the temporary database fast: nothing of it need survive. It is in memory up
 * to the size of its cache (in KiB) and in an unnamed temporary file beyond it. */
#define TEMPORARY "PRAGMA synchronous = OFF; PRAGMA cache_size = -131072"

int store_unite(struct store *s, const struct store_files *files)
{
    int64_t n_conflicts = 0;
    if (store_connect(s, "", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE) != 0 ||
        store_exec(s, "unite its files", TEMPORARY) != 0 || store_begin(s) != 0 ||
        store_schema_migrate(s) != 0 || store_commit(s) != 0)
        return -1;
    for (int i = 0; i < files->n; i++) {
        struct store_merge_counts counts;
        if (store_merge(s, files->path[i], &counts) != 0)
            return -1;
        n_conflicts += counts.nondeterministic;
    }
    if (n_conflicts)
        log_warning("%s: %lld samples have different outputs in different files; the events "
                    "`nondeterministic` name them",
                    s->path, (long long)n_conflicts);
    return 0;
}
