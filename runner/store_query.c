/* store_query.c - reading the store. */
#include "runner/store_internal.h"

#include <assert.h>
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_MAX_LEN 32

/* ---- stddev ---- */

/* Welford's running mean and sum of squared differences (Technometrics 4, 1962): sums of squares
 * would lose the small differences between large values. Zero-initialised by SQLite. */
struct moments {
    int64_t n;
    double mean, squares;
};

static void stddev_step(sqlite3_context *context, int n_arguments, sqlite3_value **argument)
{
    assert(n_arguments == 1);
    struct moments *m = sqlite3_aggregate_context(context, sizeof(*m));
    if (!m || sqlite3_value_numeric_type(argument[0]) == SQLITE_NULL)
        return;
    double value = sqlite3_value_double(argument[0]);
    double before = value - m->mean;
    m->n++;
    m->mean += before / (double)m->n;
    m->squares += before * (value - m->mean);
}

static void stddev_final(sqlite3_context *context)
{
    struct moments *m = sqlite3_aggregate_context(context, 0);
    if (m && m->n > 1)
        sqlite3_result_double(context, sqrt(m->squares / (double)(m->n - 1)));
}

int store_add_functions(struct store *s)
{
    if (sqlite3_create_function_v2(s->db, "stddev", 1, SQLITE_UTF8 | SQLITE_DETERMINISTIC, NULL,
                                   NULL, stddev_step, stddev_final, NULL) != SQLITE_OK)
        return store_fail(s, "add the function stddev", NULL);
    return 0;
}

/* ---- statements of users ---- */

/* sqlite3_stmt_readonly calls these read-only, but they change what the connection sees. */
static int allow_reading(void *user, int action, const char *name, const char *argument,
                         const char *database, const char *trigger)
{
    (void)user, (void)name, (void)database, (void)trigger;
    switch (action) {
    case SQLITE_ATTACH:
    case SQLITE_DETACH:
    case SQLITE_TRANSACTION:
    case SQLITE_SAVEPOINT: return SQLITE_DENY;
    case SQLITE_PRAGMA: return argument ? SQLITE_DENY : SQLITE_OK; /* an argument sets it */
    default: return SQLITE_OK;
    }
}

/* Behind blanks, semicolons and comments. */
static const char *skip_blank(const char *sql)
{
    for (;;) {
        sql += strspn(sql, " \t\r\n;");
        if (strncmp(sql, "--", 2) == 0) {
            sql += strcspn(sql, "\n");
        } else if (strncmp(sql, "/*", 2) == 0) {
            const char *end = strstr(sql + 2, "*/");
            sql = end ? end + 2 : sql + strlen(sql);
        } else {
            return sql;
        }
    }
}

static sqlite3_stmt *prepare_query(struct store *s, const char *sql)
{
    sqlite3_stmt *stmt = NULL;
    const char *rest = "";
    sqlite3_set_authorizer(s->db, allow_reading, NULL);
    int rc = sqlite3_prepare_v2(s->db, sql, -1, &stmt, &rest);
    sqlite3_set_authorizer(s->db, NULL, NULL);
    if (rc == SQLITE_ERROR)
        err_set(ERR_CONFIG, "SQL: %s", sqlite3_errmsg(s->db));
    else if (rc != SQLITE_OK && rc != SQLITE_AUTH)
        store_fail(s, "query it", sql);
    else if (rc == SQLITE_OK && !stmt)
        err_set(ERR_CONFIG, "SQL: there is no statement in it");
    else if (rc == SQLITE_AUTH || !sqlite3_stmt_readonly(stmt) || sqlite3_column_count(stmt) == 0)
        err_set(ERR_CONFIG, "SQL: only statements that read are run here: SELECT ...");
    else if (*skip_blank(rest))
        err_set(ERR_CONFIG, "SQL: one statement is expected, and another follows: %.80s",
                skip_blank(rest));
    else
        return stmt;
    sqlite3_finalize(stmt);
    return NULL;
}

/* The shortest decimal number that reads back as the same double, with a point or an exponent so
 * that it stays a real number. */
static void format_real(char text[NUMBER_MAX_LEN], double value)
{
    for (int digits = 15; digits <= 17; digits++) {
        double back;
        snprintf(text, NUMBER_MAX_LEN, "%.*g", digits, value);
        if (parse_double(&back, text) && back == value)
            break;
    }
    if (isfinite(value) && strcspn(text, ".e") == strlen(text))
        snprintf(text + strlen(text), NUMBER_MAX_LEN - strlen(text), ".0");
}

/* One row as texts. Borrowed from the statement and from real until the next step. */
static void read_row(sqlite3_stmt *stmt, int n, const char **value, bool *is_number,
                     char (*real)[NUMBER_MAX_LEN])
{
    for (int i = 0; i < n; i++) {
        int type = sqlite3_column_type(stmt, i);
        is_number[i] = type == SQLITE_INTEGER || type == SQLITE_FLOAT;
        if (type == SQLITE_FLOAT) {
            format_real(real[i], sqlite3_column_double(stmt, i));
            value[i] = real[i];
        } else {
            value[i] = (const char *)sqlite3_column_text(stmt, i);
        }
    }
}

static int run_query(struct store *s, sqlite3_stmt *stmt, store_row_fn row, void *user)
{
    int n = sqlite3_column_count(stmt);
    const char **name = xcalloc((size_t)n, sizeof(*name));
    const char **value = xcalloc((size_t)n, sizeof(*value));
    bool *is_number = xcalloc((size_t)n, sizeof(*is_number));
    char(*real)[NUMBER_MAX_LEN] = xcalloc((size_t)n, sizeof(*real));
    for (int i = 0; i < n; i++)
        name[i] = sqlite3_column_name(stmt, i);
    int rc = row(user, n, name, NULL, is_number);
    int step = SQLITE_DONE;
    while (rc == 0 && (step = sqlite3_step(stmt)) == SQLITE_ROW) {
        read_row(stmt, n, value, is_number, real);
        rc = row(user, n, name, value, is_number);
    }
    if (rc == 0 && step != SQLITE_DONE)
        rc = store_fail(s, "query it", sqlite3_sql(stmt));
    free(name);
    free(value);
    free(is_number);
    free(real);
    return rc == 0 ? 0 : -1;
}

int store_query(struct store *s, const char *sql, store_row_fn row, void *user)
{
    sqlite3_stmt *stmt = prepare_query(s, sql);
    if (!stmt)
        return -1;
    int rc = run_query(s, stmt, row, user);
    sqlite3_finalize(stmt);
    return rc;
}

/* ---- resuming ---- */

int store_find_done(struct store *s, const char *task_key, bool *done, int n_prompts,
                    int n_per_prompt)
{
    sqlite3_stmt *stmt =
        store_prepare(s, STORE_FIND_DONE,
                      "SELECT prompt_index, sample_index FROM samples JOIN tasks USING (task_id)"
                      " WHERE tasks.key = ?1 AND samples.error IS NULL");
    if (!stmt || sqlite3_bind_text(stmt, 1, task_key, -1, SQLITE_STATIC) != SQLITE_OK)
        return -1;
    int n_done = 0, rc;
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        int prompt = sqlite3_column_int(stmt, 0), sample = sqlite3_column_int(stmt, 1);
        /* The file is input like any other: a row may stand outside the task. */
        if (prompt < 0 || prompt >= n_prompts || sample < 0 || sample >= n_per_prompt)
            continue;
        n_done += !done[prompt * n_per_prompt + sample];
        done[prompt * n_per_prompt + sample] = true;
    }
    if (rc != SQLITE_DONE)
        n_done = store_fail(s, "read", sqlite3_sql(stmt));
    sqlite3_reset(stmt);
    return n_done;
}
