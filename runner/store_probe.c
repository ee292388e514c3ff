/* store_probe.c - whether a write-ahead log works in a folder, tried out on a throw-away database.
 *
 * statfs tells which file systems live on one machine, but not whether this one (an overlay of a
 * container, a mount with unusual options) shares mapped memory between those that open a file, on
 * which the log's index rests. Two connections pass rows to each other through the log here; where
 * that fails, the database gets a rollback journal. Locks are tried out by store_file.c.
 */
#include "runner/store_file.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <unistd.h>

static void remove_database(const char *path)
{
    static const char *const suffixes[] = {"", "-wal", "-shm", "-journal"};
    for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
        char *name = xasprintf("%s%s", path, suffixes[i]);
        unlink(name); /* most of them are not there */
        free(name);
    }
}

/* The integer in the first row of a statement, or -1. */
static int read_integer(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt;
    int value = -1;
    if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) != SQLITE_OK)
        return -1;
    if (sqlite3_step(stmt) == SQLITE_ROW)
        value = sqlite3_column_int(stmt, 0);
    sqlite3_finalize(stmt);
    return value;
}

static bool run(sqlite3 *db, const char *sql)
{
    return sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK;
}

/* Each connection must see what the other one has written, and a reader keeps its view while the
 * writer goes on: what a rollback journal cannot do. */
static bool pass_rows(sqlite3 *a, sqlite3 *b)
{
    return run(a, "PRAGMA synchronous = OFF; PRAGMA journal_mode = WAL; CREATE TABLE t(i);"
                  "INSERT INTO t VALUES(1)") &&
           run(b, "BEGIN") && read_integer(b, "SELECT sum(i) FROM t") == 1 &&
           run(a, "INSERT INTO t VALUES(2)") && read_integer(b, "SELECT sum(i) FROM t") == 1 &&
           run(b, "COMMIT; PRAGMA synchronous = OFF; INSERT INTO t VALUES(4)") &&
           read_integer(a, "SELECT sum(i) FROM t") == 7;
}

bool store_probe_log(const char *path)
{
    char *probe = xasprintf("%s.probe", path);
    sqlite3 *a = NULL, *b = NULL;
    remove_database(probe); /* of a run that was killed here */
    bool works = sqlite3_open(probe, &a) == SQLITE_OK && sqlite3_open(probe, &b) == SQLITE_OK &&
                 pass_rows(a, b);
    sqlite3_close(b);
    sqlite3_close(a);
    remove_database(probe);
    free(probe);
    return works;
}
