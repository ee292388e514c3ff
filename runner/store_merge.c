/* store_merge.c - everything of one database into another, as statements over an attached file.
 *
 * Ids differ between files, so each table goes in two steps. First temp.map_TABLE pairs every id of
 * the other file (old) with one of this file: that of the row which is the same by its key, or the
 * next free one (is_new). Then new rows are inserted, and rows that were unfinished here and are
 * finished there are overwritten. Tables come after those they refer to, whose maps translate the
 * references.
 *
 * The same by key: a task, a sample and a run have a key that is made to be unique anywhere; an
 * attempt is the n-th of its rank at its task in its run, because files only grow; what has no key
 * is the same when all of it is the same.
 */
#include "runner/store_internal.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#define MAX_KEYS       8
#define MAX_REFERENCES 3
#define NTH_ATTEMPT                                                                                \
    "row_number() OVER (PARTITION BY run_id, task_id, rank ORDER BY attempt_id) AS nth, "

struct reference {
    const char *column, *table;
};

struct merged_table {
    const char *name, *id;
    const char *key[MAX_KEYS]; /* columns; none: all of them                                     */
    struct reference reference[MAX_REFERENCES];
    const char *computed; /* further columns of a key, as SQL with a comma behind; NULL: none    */
    const char *newer;    /* when row t here takes the values of s there, as SQL; NULL: never    */
    const char *texts;    /* columns that STORE_READ_NUMBERS leaves out, as SQL; NULL: none      */
    const char *v1_rows;  /* the rows of a file of version 1, as SQL; NULL: those of the table   */
    int since;            /* the version that made the table                                     */
};

#define EXPERIMENT_TIME(schema, row)                                                               \
    "(SELECT created_at FROM " schema ".experiments WHERE experiment_id = " row ".experiment_id)"

/* In an order in which nothing refers to a later table. */
static const struct merged_table tables[] = {
    {.name = "experiments",
     .id = "experiment_id",
     .key = {"name", "config_path", "config_text", "resolved_json", "version", "git_commit",
             "git_dirty"}},
    {.name = "environments", .id = "environment_id"},
    {.name = "models", .id = "model_id", .key = {"fingerprint", "dtype"}},
    {.name = "prompts", .id = "prompts_id", .key = {"fingerprint"}},
    {.name = "runs",
     .id = "run_id",
     .key = {"run_key"},
     .reference = {{"experiment_id", "experiments"}, {"environment_id", "environments"}},
     .newer = "t.ended_at IS NULL AND s.ended_at IS NOT NULL",
     .v1_rows = "(SELECT *, " STORE_OLD_RUN_KEY " AS run_key FROM src.runs)"},
    {.name = "tasks",
     .id = "task_id",
     .key = {"key"},
     .reference = {{"experiment_id", "experiments"},
                   {"model_id", "models"},
                   {"prompts_id", "prompts"}},
     .newer = EXPERIMENT_TIME("src", "s") " > " EXPERIMENT_TIME("main", "t")},
    {.name = "attempts",
     .id = "attempt_id",
     .key = {"run_id", "task_id", "rank", "nth"},
     .reference = {{"task_id", "tasks"}, {"run_id", "runs"}},
     .computed = NTH_ATTEMPT,
     .newer = "t.state IN ('running', 'lost') AND s.state NOT IN ('running', t.state)",
     .v1_rows = "(SELECT *, 0 AS rank FROM src.attempts)"},
    {.name = "samples",
     .id = "sample_id",
     .key = {"key"},
     .reference = {{"task_id", "tasks"}, {"attempt_id", "attempts"}},
     .texts = "'prompt', 'text', 'ids'",
     .newer = "t.error IS NOT NULL AND s.error IS NULL"},
    {.name = "events",
     .id = "event_id",
     .reference = {{"run_id", "runs"}, {"attempt_id", "attempts"}}},
    {.name = "timeseries", .id = "rowid", .reference = {{"run_id", "runs"}}},
    {.name = "workers",
     .id = "rowid",
     .key = {"run_id", "rank"},
     .reference = {{"run_id", "runs"}, {"environment_id", "environments"}},
     .newer = "s.seen_at > t.seen_at",
     .since = 2},
    {.name = "benchmarks",
     .id = "benchmark_id",
     .reference = {{"environment_id", "environments"}},
     .since = 3},
};

/* The samples of which the two files have different outputs. The event belongs to the attempt whose
 * sample is left out and has that one's time, so that another merge finds it. */
static const char conflicts_sql[] =
    "INSERT INTO main.events(run_id, attempt_id, kind, detail, at)"
    " SELECT n.run_id, n.attempt_id, 'nondeterministic', n.detail, n.at FROM ("
    " SELECT a.run_id, a.attempt_id, s.finished_at AS at,"
    "  printf('sample %s (prompt %d, sample %d): %s is kept, another file has %s', s.key,"
    "   s.prompt_index, s.sample_index, m.output_sha256, s.output_sha256) AS detail"
    " FROM temp.map_samples p JOIN temp.source_samples s ON s.source_id = p.old"
    " JOIN main.samples m ON m.sample_id = p.id"
    " JOIN temp.map_attempts q ON q.old = s.attempt_id"
    " JOIN main.attempts a ON a.attempt_id = q.id"
    " WHERE NOT p.is_new AND s.error IS NULL AND m.error IS NULL"
    " AND s.output_sha256 IS NOT m.output_sha256) n"
    " WHERE NOT EXISTS (SELECT 1 FROM main.events e WHERE e.run_id = n.run_id"
    " AND e.attempt_id = n.attempt_id AND e.kind = 'nondeterministic' AND e.detail = n.detail)";

/* ---- statements ---- */

/* What is common to the columns of a table here and there, but for its id and what is left out. */
struct columns {
    char **name; /* [n] */
    size_t n;
};

static void columns_free(struct columns *c)
{
    for (size_t i = 0; i < c->n; i++)
        free(c->name[i]);
    free(c->name);
    *c = (struct columns){0};
}

/* Returns how many rows changed, -1 on failure. */
static int64_t run(struct store *s, const char *sql)
{
    if (sqlite3_exec(s->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        return store_fail(s, "merge", sql);
    return sqlite3_changes(s->db);
}

static int find_columns(struct store *s, const struct merged_table *t, struct columns *out)
{
    const char *left_out = s->mode == STORE_READ_NUMBERS && t->texts ? t->texts : "";
    char *sql = xasprintf("SELECT name FROM pragma_table_info('%s', 'main') WHERE name <> '%s' AND"
                          " name NOT IN (%s) AND"
                          " name IN (SELECT name FROM pragma_table_info('source_%s', 'temp'))",
                          t->name, t->id, left_out, t->name);
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(s->db, sql, -1, &stmt, NULL);
    while (rc == SQLITE_OK || rc == SQLITE_ROW) {
        rc = sqlite3_step(stmt);
        if (rc != SQLITE_ROW)
            break;
        out->name = xrealloc_array(out->name, out->n + 1, sizeof(*out->name));
        out->name[out->n++] = xstrdup((const char *)sqlite3_column_text(stmt, 0));
    }
    if (rc != SQLITE_DONE)
        store_fail(s, "merge", sql);
    sqlite3_finalize(stmt);
    free(sql);
    return rc == SQLITE_DONE ? 0 : -1;
}

/* A column of row s as it will be in this file. */
static void append_value(struct str *sql, const struct merged_table *t, const char *column)
{
    for (int i = 0; i < MAX_REFERENCES && t->reference[i].column; i++) {
        if (strcmp(t->reference[i].column, column) == 0) {
            str_appendf(sql, "(SELECT id FROM temp.map_%s WHERE old = s.%s)", t->reference[i].table,
                        column);
            return;
        }
    }
    str_appendf(sql, "s.%s", column);
}

static void append_values(struct str *sql, const struct merged_table *t, const struct columns *c)
{
    for (size_t i = 0; i < c->n; i++) {
        str_append_c(sql, i ? ", " : "");
        append_value(sql, t, c->name[i]);
    }
}

static void append_names(struct str *sql, const struct columns *c)
{
    for (size_t i = 0; i < c->n; i++)
        str_appendf(sql, "%s%s", i ? ", " : "", c->name[i]);
}

/* "m.key IS s.key AND ..." */
static void append_match(struct str *sql, const struct merged_table *t, const struct columns *c)
{
    bool whole = !t->key[0];
    size_t n = whole ? c->n : MAX_KEYS;
    for (size_t i = 0; i < n && (whole || t->key[i]); i++) {
        const char *column = whole ? c->name[i] : t->key[i];
        str_appendf(sql, "%sm.%s IS ", i ? " AND " : "", column);
        append_value(sql, t, column);
    }
}

/* ---- one table ---- */

/* temp.source_TABLE: the rows there, as if that file were of this version. */
static int make_source(struct store *s, const struct merged_table *t, int version)
{
    struct str sql = {0};
    str_appendf(&sql, "CREATE TEMP VIEW source_%s AS SELECT %s AS source_id, %s* FROM ", t->name,
                t->id, t->computed ? t->computed : "");
    if (version == 1 && t->v1_rows)
        str_append_c(&sql, t->v1_rows);
    else
        str_appendf(&sql, "src.%s", t->name);
    int64_t rc = run(s, sql.data);
    str_free(&sql);
    return rc < 0 ? -1 : 0;
}

static int make_map(struct store *s, const struct merged_table *t, const struct columns *c)
{
    struct str sql = {0};
    str_appendf(&sql,
                "CREATE TEMP TABLE map_%s(old INTEGER PRIMARY KEY, id INTEGER, is_new INTEGER);"
                "INSERT OR IGNORE INTO temp.map_%s SELECT s.source_id, coalesce(m.here,"
                " (SELECT coalesce(max(%s), 0) FROM main.%s) + row_number() OVER"
                " (PARTITION BY m.here IS NULL ORDER BY s.source_id)), m.here IS NULL"
                " FROM temp.source_%s s LEFT JOIN (SELECT %s AS here, %s* FROM main.%s) m ON ",
                t->name, t->name, t->id, t->name, t->name, t->id, t->computed ? t->computed : "",
                t->name);
    append_match(&sql, t, c);
    int64_t rc = run(s, sql.data);
    str_free(&sql);
    return rc < 0 ? -1 : 0;
}

static int64_t insert_new(struct store *s, const struct merged_table *t, const struct columns *c)
{
    struct str sql = {0};
    str_appendf(&sql, "INSERT INTO main.%s(%s, ", t->name, t->id);
    append_names(&sql, c);
    str_append_c(&sql, ") SELECT p.id, ");
    append_values(&sql, t, c);
    str_appendf(&sql,
                " FROM temp.map_%s p JOIN temp.source_%s s ON s.source_id = p.old"
                " WHERE p.is_new ORDER BY p.id",
                t->name, t->name);
    int64_t n = run(s, sql.data);
    str_free(&sql);
    return n;
}

static int64_t update_newer(struct store *s, const struct merged_table *t, const struct columns *c)
{
    struct str sql = {0};
    str_appendf(&sql, "UPDATE main.%s SET (", t->name);
    append_names(&sql, c);
    str_append_c(&sql, ") = (SELECT ");
    append_values(&sql, t, c);
    str_appendf(&sql,
                " FROM temp.map_%s p JOIN temp.source_%s s ON s.source_id = p.old"
                " WHERE p.id = %s.%s) WHERE %s IN (SELECT p.id FROM temp.map_%s p"
                " JOIN temp.source_%s s ON s.source_id = p.old JOIN main.%s t ON t.%s = p.id"
                " WHERE NOT p.is_new AND %s)",
                t->name, t->name, t->name, t->id, t->id, t->name, t->name, t->name, t->id,
                t->newer);
    int64_t n = run(s, sql.data);
    str_free(&sql);
    return n;
}

/* Returns how many rows are new or were overwritten; the latter into *n_updated. */
static int64_t merge_table(struct store *s, const struct merged_table *t, int64_t *n_updated)
{
    struct columns c = {0};
    int64_t n = -1;
    *n_updated = 0;
    if (find_columns(s, t, &c) == 0 && make_map(s, t, &c) == 0)
        n = insert_new(s, t, &c);
    if (n >= 0 && t->newer)
        *n_updated = update_newer(s, t, &c);
    columns_free(&c);
    return n < 0 || *n_updated < 0 ? -1 : n;
}

/* ---- one file ---- */

static int merge_tables(struct store *s, int version, struct store_merge_counts *counts)
{
    for (size_t i = 0; i < ARRAY_LEN(tables); i++) {
        const struct merged_table *t = &tables[i];
        int64_t n_updated;
        if (t->since > version)
            continue;
        if (make_source(s, t, version) != 0)
            return -1;
        int64_t n = merge_table(s, t, &n_updated);
        if (n < 0)
            return -1;
        if (strcmp(t->name, "tasks") == 0)
            counts->tasks = n;
        if (strcmp(t->name, "attempts") == 0)
            counts->attempts = n;
        if (strcmp(t->name, "samples") == 0) {
            counts->samples = n + n_updated;
            counts->nondeterministic = run(s, conflicts_sql);
            if (counts->nondeterministic < 0)
                return -1;
        }
    }
    return 0;
}

static int drop_temporary(struct store *s)
{
    for (size_t i = 0; i < ARRAY_LEN(tables); i++) {
        char *sql =
            xasprintf("DROP VIEW IF EXISTS temp.source_%s; DROP TABLE IF EXISTS temp.map_%s",
                      tables[i].name, tables[i].name);
        int64_t rc = run(s, sql);
        free(sql);
        if (rc < 0)
            return -1;
    }
    return 0;
}

/* BEGIN IMMEDIATE would lock the other file, too, and hold up its writer. The first statement
 * writes to this one, so that the lock is there from the start. */
static int merge_attached(struct store *s, int version, struct store_merge_counts *counts)
{
    if (run(s, "BEGIN; UPDATE main.writer SET token = token") < 0 ||
        merge_tables(s, version, counts) != 0 || drop_temporary(s) != 0)
        return -1;
    s->in_transaction = true;
    s->n_pending = (int)counts->samples;
    return store_commit(s);
}

/* After an error nothing of the file stays, and the store can go on: all it had before is
 * committed.
 */
static void roll_back(struct store *s)
{
    if (!sqlite3_get_autocommit(s->db))
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    s->in_transaction = false;
    s->n_pending = 0;
}

static int attach(struct store *s, const char *from)
{
    static const char sql[] = "ATTACH ? AS src";
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(s->db, sql, -1, &stmt, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_text(stmt, 1, from, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    sqlite3_finalize(stmt);
    return rc == SQLITE_DONE ? 0 : store_fail(s, "merge", sql);
}

/* The version of the other file into *version, 0 when it is empty: its writer has not come to its
 * first commit. */
static int check_source(const struct store *into, const char *from, int *version)
{
    if (!file_exists(from))
        return err_set(ERR_DATA, "%s: there is no such file", from);
    if (into->mode == STORE_WRITE && store_same_file(into->path, from))
        return err_set(ERR_CONFIG, "%s: cannot be merged into itself", from);
    struct store *source = store_make(from, into->mode);
    int rc = store_connect(source, from, SQLITE_OPEN_READWRITE);
    if (rc == 0)
        rc = store_schema_check(source, true);
    *version = source->schema_version;
    store_discard(source);
    return rc;
}

int store_merge(struct store *into, const char *from, struct store_merge_counts *counts)
{
    int version = 0;
    *counts = (struct store_merge_counts){0};
    if (check_source(into, from, &version) != 0 || store_commit(into) != 0)
        return -1;
    if (version == 0)
        return 0;
    if (attach(into, from) != 0)
        return err_prefix("%s", from);
    int rc = merge_attached(into, version, counts);
    if (rc != 0) {
        roll_back(into);
        *counts = (struct store_merge_counts){0};
        err_prefix("%s", from);
    }
    sqlite3_exec(into->db, "DETACH src", NULL, NULL, NULL);
    return rc;
}
