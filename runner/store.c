/* store.c - see store.h: opening, transactions, errors. Rows are in store_rows.c.
 *
 * The first row after a quiet second is committed at once, so that a slow run loses nothing; a fast
 * one commits every 32 samples or once a second. Every commit is synchronised to the disk
 * (synchronous = FULL), so that it outlives the machine and not only the process.
 *
 * While it is written, a database on a local file system has a write-ahead log, so that readers and
 * the writer never wait for each other. store_close turns it back into a single file, which can be
 * copied, and read from a folder without write permission.
 */
#include "runner/store.h"
#include "runner/store_internal.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define SQL_IN_MESSAGE 160 /* characters of a failed statement that are shown */

static enum err_kind error_kind(int code)
{
    switch (code & 0xFF) { /* the primary code */
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
    case SQLITE_ERROR: return ERR_DATA;
    default: return ERR_RESOURCE;
    }
}

/* Whether the statement alone failed, and the transaction can go on. */
static bool is_harmless(int code)
{
    int primary = code & 0xFF;
    return primary == SQLITE_BUSY || primary == SQLITE_CONSTRAINT || primary == SQLITE_MISMATCH ||
           primary == SQLITE_ERROR;
}

struct store_time store_now(void)
{
    struct store_time t;
    struct timespec ts;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &utc);
    size_t n = strftime(t.text, sizeof(t.text), "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(t.text + n, sizeof(t.text) - n, ".%03dZ", (int)(ts.tv_nsec / 1000000));
    return t;
}

void store_make_key(char key[STORE_KEY_LEN + 1])
{
    uint8_t bytes[STORE_KEY_LEN / 2];
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        die("the kernel gives no random numbers");
    for (size_t i = 0; i < sizeof(bytes); i++)
        snprintf(key + 2 * i, 3, "%02x", bytes[i]);
}

/* ---- errors ---- */

/* No call writes any more: each repeats this error. */
static void end_writing(struct store *s)
{
    if (!sqlite3_get_autocommit(s->db))
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL); /* may be rolled back already */
    s->failure = xstrdup(err_get());
    s->failure_kind = err_get_kind();
    s->in_transaction = false;
}

/* Ends all writing when the open transaction is lost or cannot be ended. */
static int give_up(struct store *s)
{
    err_set(err_get_kind(),
            "%.1500s; %lld samples of this run are committed and safe, the last %d are not: mend "
            "this and give the same command again",
            err_get(), (long long)s->n_committed, s->n_pending);
    end_writing(s);
    return -1;
}

static bool log_is_left(const struct store *s)
{
    char *log = xasprintf("%s-wal", s->path);
    bool is_left = file_exists(log);
    free(log);
    return is_left;
}

/* What SQLite's message does not tell. */
static const char *advice(const struct store *s, int code)
{
    switch (code & 0xFF) {
    case SQLITE_BUSY: return " (is it open in a sqlite3 shell, or in a pager behind `results`?)";
    case SQLITE_CANTOPEN:
        return log_is_left(s) ? " (its last run was killed and left a log, FILE-wal: to read that "
                                "takes the right to write in its folder)"
                              : "";
    case SQLITE_FULL: /* what is read is united in a temporary database */
        return s->mode == STORE_WRITE ? "" : " (the folder for temporary files: TMPDIR names it)";
    default: return "";
    }
}

int store_fail(struct store *s, const char *what, const char *sql)
{
    int code = sqlite3_extended_errcode(s->db);
    err_set(error_kind(code), "%s: cannot %s: %s%s", s->path, what, sqlite3_errmsg(s->db),
            advice(s, code));
    if (sql)
        err_set(err_get_kind(), "%s (%.*s%s)", err_get(), SQL_IN_MESSAGE, sql,
                strlen(sql) > SQL_IN_MESSAGE ? "..." : "");
    if (s->in_transaction && (!is_harmless(code) || sqlite3_get_autocommit(s->db)))
        return give_up(s);
    return -1;
}

int store_exec(struct store *s, const char *what, const char *sql)
{
    if (sqlite3_exec(s->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        return store_fail(s, what, NULL);
    return 0;
}

struct sqlite3_stmt *store_prepare(struct store *s, enum store_statement which, const char *sql)
{
    sqlite3_stmt *stmt = s->statement[which];
    if (!stmt) {
        if (sqlite3_prepare_v3(s->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &stmt, NULL) !=
            SQLITE_OK) {
            store_fail(s, "prepare a statement", sql);
            return NULL;
        }
        s->statement[which] = stmt;
    }
    sqlite3_reset(stmt); /* repeats the error of the last step, which was reported then */
    sqlite3_clear_bindings(stmt);
    return stmt;
}

/* ---- transactions ---- */

int store_begin(struct store *s)
{
    if (s->failure)
        return err_set(s->failure_kind, "%s", s->failure);
    if (s->in_transaction)
        return 0;
    if (s->lock && store_lock_is_asked_for(s->lock))
        sqlite3_sleep(STORE_GIVE_WAY_MS);
    if (store_exec(s, "begin to write", "BEGIN IMMEDIATE") != 0)
        return -1;
    s->in_transaction = true;
    return 0;
}

/* SQLITE_OK; SQLITE_BUSY when a reader of a rollback journal keeps the file for longer than
 * wait_ms: nothing is lost, and the next try may succeed; SQLITE_ERROR when the store has failed.
 * Reports all but SQLITE_OK. */
static int try_commit(struct store *s, int wait_ms)
{
    if (s->failure) {
        err_set(s->failure_kind, "%s", s->failure);
        return SQLITE_ERROR;
    }
    if (!s->in_transaction)
        return SQLITE_OK;
    if (s->token[0] && store_check_claim(s) != 0) {
        if (!s->failure)
            end_writing(s);
        return SQLITE_ERROR;
    }
    sqlite3_busy_timeout(s->db, wait_ms);
    int rc = sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL);
    sqlite3_busy_timeout(s->db, STORE_BUSY_MS);
    s->committed_s = time_monotonic_s();
    if (rc != SQLITE_OK) {
        store_fail(s, "commit", NULL);
        return s->failure ? SQLITE_ERROR : SQLITE_BUSY;
    }
    s->in_transaction = false;
    s->n_committed += s->n_pending;
    s->n_pending = 0;
    s->held_up_s = 0;
    s->warned = false;
    return SQLITE_OK;
}

int store_commit(struct store *s)
{
    return try_commit(s, STORE_BUSY_MS) == SQLITE_OK ? 0 : -1;
}

/* Somebody may leave a reader open over night: that is no reason to end a run. */
static void note_held_up(struct store *s)
{
    if (s->held_up_s == 0)
        s->held_up_s = s->committed_s;
    if (s->warned || s->committed_s - s->held_up_s < STORE_HELD_UP_S)
        return;
    s->warned = true;
    log_warning("%s; until its readers are gone, what is finished is only in memory", err_get());
}

int store_try_commit(struct store *s)
{
    if (s->held_up_s > 0 && time_monotonic_s() - s->committed_s < STORE_COMMIT_SECONDS)
        return 0;
    int rc = try_commit(s, STORE_TRY_MS);
    if (rc == SQLITE_BUSY)
        note_held_up(s);
    return rc == SQLITE_ERROR ? -1 : 0;
}

int store_added(struct store *s, int n_samples)
{
    s->n_pending += n_samples;
    if (s->n_pending < STORE_COMMIT_SAMPLES &&
        time_monotonic_s() - s->committed_s < STORE_COMMIT_SECONDS)
        return 0;
    return store_try_commit(s);
}

/* ---- opening ---- */

struct store *store_make(const char *path, enum store_mode mode)
{
    struct store *s = xcalloc(1, sizeof(*s));
    s->path = xstrdup(path);
    s->mode = mode;
    return s;
}

/* The database first and its lock last, so that no other writer finds it half closed. */
void store_discard(struct store *s)
{
    for (int i = 0; i < STORE_N_STATEMENTS; i++)
        sqlite3_finalize(s->statement[i]);
    sqlite3_close(s->db);
    store_lock_close(s->lock);
    free(s->failure);
    free(s->owner_job);
    free(s->path);
    free(s);
}

int store_connect(struct store *s, const char *file, int flags)
{
    int rc = sqlite3_open_v2(file, &s->db, flags, NULL);
    if (!s->db)
        die("out of memory: a SQLite connection");
    if (rc != SQLITE_OK)
        return err_set(ERR_RESOURCE, "%s: cannot open: %s", s->path, sqlite3_errmsg(s->db));
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_timeout(s->db, STORE_BUSY_MS);
    return store_add_functions(s);
}

static int open_files(struct store *s, const struct store_files *files)
{
    if (files->n == 0)
        return err_set(ERR_DATA, "%s: there is %s", s->path,
                       dir_exists(s->path) ? "no results database (*.db) in this folder"
                                           : "no such file");
    if (files->n > 1)
        return store_unite(s, files);
    free(s->path);
    s->path = xstrdup(files->path[0]);
    if (store_connect(s, s->path, SQLITE_OPEN_READWRITE) != 0 || store_schema_check(s, false) != 0)
        return -1;
    if (s->schema_version >= STORE_SAME_TABLES_VERSION)
        return 0;
    sqlite3_close(s->db);
    s->db = NULL;
    return store_unite(s, files);
}

/* Readers may have to roll back what a killed writer left, so they open the file for writing too
 * and leave it to query_only to keep it as it is. */
static int open_to_read(struct store *s)
{
    struct store_files files;
    if (store_list_files(&files, s->path) != 0)
        return -1;
    int rc = open_files(s, &files);
    store_files_free(&files);
    return rc == 0 ? store_exec(s, "open for reading", "PRAGMA query_only = ON") : -1;
}

/* Whether a statement's first value is this text. */
static bool answers(struct store *s, const char *sql, const char *expected)
{
    sqlite3_stmt *stmt;
    if (sqlite3_prepare_v2(s->db, sql, -1, &stmt, NULL) != SQLITE_OK)
        return false;
    bool same = sqlite3_step(stmt) == SQLITE_ROW &&
                sqlite3_stricmp((const char *)sqlite3_column_text(stmt, 0), expected) == 0;
    sqlite3_finalize(stmt);
    return same;
}

static bool has_log(struct store *s)
{
    return answers(s, "PRAGMA journal_mode", "wal");
}

/* False when this mode is not possible now: SQLite then answers with the old one or an error. */
static bool set_journal(struct store *s, const char *mode)
{
    char sql[64];
    snprintf(sql, sizeof(sql), "PRAGMA journal_mode = %s", mode);
    return answers(s, sql, mode);
}

/* A log that cannot be made (a reader of the old journal is busy, no shared memory) is no reason
 * not to run. A file that has one shows that it works here. */
static int choose_journal(struct store *s)
{
    bool wal = store_path_is_local(s->path) && (has_log(s) || store_probe_log(s->path)) &&
               set_journal(s, "wal");
    if (!wal && !set_journal(s, "truncate"))
        return store_fail(s, "choose a journal", NULL);
    char pragmas[128];
    snprintf(pragmas, sizeof(pragmas),
             "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_spill = %d",
             STORE_PAGES_IN_MEMORY);
    return store_exec(s, "open for writing", pragmas);
}

/* Tables and the writer's name appear in one transaction. */
static int take_over(struct store *s)
{
    sqlite3_busy_timeout(s->db, STORE_CLAIM_MS);
    int rc = store_begin(s);
    if (rc == 0)
        rc = store_schema_migrate(s);
    if (rc == 0)
        rc = store_claim(s);
    if (rc == 0)
        rc = store_commit(s);
    sqlite3_busy_timeout(s->db, STORE_BUSY_MS);
    return rc;
}

static int open_to_write(struct store *s, const struct store_owner *owner)
{
    char *folder = path_dirname(s->path);
    int rc = dir_make(folder);
    free(folder);
    s->owner_job = xstrdup(owner->job);
    s->owner_restart_count = owner->restart_count;
    if (rc != 0 || store_lock_open(&s->lock, s->path, owner) != 0 ||
        store_connect(s, s->path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE) != 0 ||
        store_schema_check(s, true) != 0 || choose_journal(s) != 0)
        return -1;
    return take_over(s);
}

static int finish_open(struct store **out, struct store *s, int rc)
{
    if (rc != 0) {
        store_discard(s);
        return -1;
    }
    *out = s;
    return 0;
}

int store_open_as(struct store **out, const char *path, const struct store_owner *owner)
{
    struct store *s = store_make(path, STORE_WRITE);
    return finish_open(out, s, open_to_write(s, owner));
}

int store_open_file(struct store **out, const char *path)
{
    struct store *s = store_make(path, STORE_READ);
    int rc = store_connect(s, path, SQLITE_OPEN_READWRITE);
    *out = NULL;
    if (rc == 0)
        rc = store_schema_check(s, true);
    if (rc == 0 && s->schema_version == 0) {
        store_discard(s);
        return 0;
    }
    if (rc == 0)
        rc = store_exec(s, "open for reading", "PRAGMA query_only = ON");
    return finish_open(out, s, rc);
}

int store_open(struct store **out, const char *path, enum store_mode mode)
{
    if (mode == STORE_WRITE)
        return store_open_as(out, path, &(struct store_owner){.job = ""});
    struct store *s = store_make(path, mode);
    return finish_open(out, s, open_to_read(s));
}

/* There is no commit behind this one that could be tried, so it waits longer, and says so. */
static int commit_at_last(struct store *s)
{
    int rc = try_commit(s, STORE_BUSY_MS);
    if (rc == SQLITE_BUSY) {
        log_warning("%s; waiting for its readers to end, for at most %d s", err_get(),
                    STORE_CLOSE_MS / 1000);
        rc = try_commit(s, STORE_CLOSE_MS);
    }
    if (rc == SQLITE_BUSY)
        give_up(s);
    return rc == SQLITE_OK ? 0 : -1;
}

int store_close(struct store *s)
{
    if (!s)
        return 0;
    int rc = 0;
    if (s->mode == STORE_WRITE) {
        rc = commit_at_last(s);
        /* With a reader still there the log stays: the next writer or the last reader ends it. */
        sqlite3_busy_timeout(s->db, 0);
        sqlite3_exec(s->db, "PRAGMA journal_mode = DELETE", NULL, NULL, NULL);
    }
    store_discard(s);
    return rc;
}
