/* store_fence.c - one writer even where locks fail.
 *
 * A node that is cut off the network loses its locks on the file server, its job is requeued, and
 * the next attempt writes; then the network is back, and the first attempt, which never ended,
 * still has the file open. So every writer enters itself into the one row of `writer`, under a
 * random token, when it opens the database, and looks for its token in every transaction before it
 * commits. It has SQLite's write lock then, so the answer is that of the moment of the commit.
 */
#include "runner/store_internal.h"

#include <sqlite3.h>
#include <string.h>
#include <unistd.h>

static int bind_claim(sqlite3_stmt *stmt, const struct store *s, const char *host,
                      const char *since)
{
    int rc = sqlite3_bind_text(stmt, 1, s->token, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_text(stmt, 2, s->owner_job, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_int(stmt, 3, s->owner_restart_count);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_int(stmt, 4, getpid());
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_text(stmt, 5, host, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_text(stmt, 6, since, -1, SQLITE_STATIC);
    return rc;
}

int store_claim(struct store *s)
{
    static const char sql[] =
        "INSERT OR REPLACE INTO writer(one, token, job, restart_count, pid, host, since)"
        " VALUES(1, ?, ?, ?, ?, ?, ?)";
    const struct store_time since = store_now();
    char host[256] = "unknown";
    sqlite3_stmt *stmt = NULL;
    gethostname(host, sizeof(host) - 1);
    store_make_key(s->token);
    int rc = sqlite3_prepare_v2(s->db, sql, -1, &stmt, NULL);
    if (rc == SQLITE_OK)
        rc = bind_claim(stmt, s, host, since.text);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    sqlite3_finalize(stmt);
    return rc == SQLITE_DONE ? 0 : store_fail(s, "enter its writer", sql);
}

static int fenced(const struct store *s, sqlite3_stmt *writer)
{
    const char *job = (const char *)sqlite3_column_text(writer, 1);
    if (job && s->owner_job[0] && strcmp(job, s->owner_job) == 0)
        return err_set(ERR_STOPPED,
                       "job %s was requeued: attempt %d of it writes to %s now; this one, attempt "
                       "%d, stops",
                       job, sqlite3_column_int(writer, 2), s->path, s->owner_restart_count);
    const char *host = (const char *)sqlite3_column_text(writer, 4);
    const char *since = (const char *)sqlite3_column_text(writer, 5);
    return err_set(ERR_STOPPED,
                   "%s: process %d on %s has been writing to it since %s; this one, which lost its "
                   "lock, stops",
                   s->path, sqlite3_column_int(writer, 3), host ? host : "?", since ? since : "?");
}

int store_check_claim(struct store *s)
{
    sqlite3_stmt *stmt = store_prepare(
        s, STORE_FIND_WRITER, "SELECT token, job, restart_count, pid, host, since FROM writer");
    if (!stmt)
        return -1;
    int rc = 0, step = sqlite3_step(stmt);
    const char *token = step == SQLITE_ROW ? (const char *)sqlite3_column_text(stmt, 0) : NULL;
    if (step != SQLITE_ROW && step != SQLITE_DONE)
        rc = store_fail(s, "read", sqlite3_sql(stmt));
    else if (!token || strcmp(token, s->token) != 0)
        rc = fenced(s, stmt);
    sqlite3_reset(stmt);
    return rc;
}
