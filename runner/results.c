/* results.c - see results.h. Every choice becomes one SQL statement, which a user could have given
 * to --sql; the rows go through a table as they are. */
#include "runner/results.h"
#include "runner/store.h"
#include "runner/table.h"

#include <stdlib.h>
#include <string.h>

#define MAX_NAMES 256 /* columns, views and tables that a name is looked up in */

/* The view `throughput` in the width of a terminal; a label's keys without their sections. */
static const char summary_sql[] =
    "SELECT task_index AS task, replace(replace(replace(label, 'engine.', ''), 'sampling.', ''),"
    " 'model.', '') AS label, replication, engine_used AS engine, attention_used AS attention,"
    " n_samples AS samples, output_tokens AS tokens, output_tps, CASE degraded WHEN 1 THEN 'yes'"
    " ELSE 'no' END AS degraded, state FROM throughput";

static const char samples_sql[] =
    "SELECT t.task_index, t.label, s.prompt_index, s.sample_index, s.prompt,"
    " coalesce(s.text, s.ids) AS text, s.finish_reason"
    " FROM samples s JOIN tasks t USING (task_id)"
    " ORDER BY t.experiment_id, t.task_index, s.prompt_index, s.sample_index";

static const char failed_samples_sql[] =
    "SELECT t.task_index, t.label, s.prompt_index, s.sample_index, s.prompt, s.error"
    " FROM samples s JOIN tasks t USING (task_id) WHERE s.error IS NOT NULL"
    " ORDER BY t.experiment_id, t.task_index, s.prompt_index, s.sample_index";

/* A failed attempt that a later one made good is no failure any more. */
static const char failures_sql[] =
    "SELECT t.task_index, t.label, 'task' AS failed, NULL AS prompt_index, NULL AS sample_index,"
    " a.error FROM tasks t JOIN attempts a ON a.attempt_id ="
    " (SELECT attempt_id FROM attempts JOIN runs USING (run_id) WHERE task_id = t.task_id"
    " ORDER BY runs.started_at DESC, attempt_id DESC LIMIT 1)"
    " WHERE a.state = 'failed'"
    " UNION ALL "
    "SELECT t.task_index, t.label, 'sample', s.prompt_index, s.sample_index, s.error"
    " FROM samples s JOIN tasks t USING (task_id) WHERE s.error IS NOT NULL"
    " ORDER BY 1, 3 DESC, 4, 5";

/* Where the columns of --by come from, for their names and for grouping. */
static const char grouped_from[] =
    " FROM tasks t JOIN latest_attempts a USING (task_id) JOIN models m USING (model_id)"
    " JOIN experiments e USING (experiment_id)";

/* ---- names ---- */

struct names {
    char *name[MAX_NAMES];
    size_t n;
};

static void names_free(struct names *names)
{
    for (size_t i = 0; i < names->n; i++)
        free(names->name[i]);
    names->n = 0;
}

static const char *names_find(const struct names *names, const char *name)
{
    for (size_t i = 0; i < names->n; i++)
        if (strcmp(names->name[i], name) == 0)
            return names->name[i];
    return NULL;
}

static void names_push(struct names *names, const char *name)
{
    if (names->n < MAX_NAMES && !names_find(names, name))
        names->name[names->n++] = xstrdup(name);
}

/* "there is no WHAT 'NAME'; did you mean 'NEAR'?", or the names when none is near. */
static int unknown_name(const struct names *names, const char *what, const char *name)
{
    const char *near = nearest_name(name, (const char *const *)names->name, names->n);
    if (near)
        return err_set(ERR_CONFIG, "there is no %s '%s'; did you mean '%s'?", what, name, near);
    struct str list = {0};
    for (size_t i = 0; i < names->n; i++)
        str_appendf(&list, "%s%s", i ? ", " : "", names->name[i]);
    err_set(ERR_CONFIG, "there is no %s '%s'; expected one of %s", what, name,
            list.data ? list.data : "none");
    str_free(&list);
    return -1;
}

static int push_column_names(void *user, int n, const char *const *names, const char *const *values,
                             const bool *is_number)
{
    (void)is_number;
    for (int i = 0; i < n && !values; i++)
        names_push(user, names[i]);
    return 0;
}

static int push_first_value(void *user, int n, const char *const *names, const char *const *values,
                            const bool *is_number)
{
    (void)n, (void)names, (void)is_number;
    if (values && values[0])
        names_push(user, values[0]);
    return 0;
}

/* ---- statements ---- */

static int view_sql(struct store *store, const char *view, struct str *sql)
{
    struct names names = {0};
    int rc = store_query(store,
                         "SELECT name FROM sqlite_master WHERE type IN ('view', 'table')"
                         " AND name NOT LIKE 'sqlite_%' ORDER BY type DESC, name",
                         push_first_value, &names);
    if (rc == 0 && !names_find(&names, view))
        rc = unknown_name(&names, "view", view);
    if (rc == 0)
        str_appendf(sql, "SELECT * FROM \"%s\"", view);
    names_free(&names);
    return rc;
}

/* The keys of --by as columns, "a, b": dots as in a configuration file become underscores. */
static int append_keys(const struct names *valid, const char *by, struct str *sql)
{
    int n = 0;
    for (const char *p = by; *p; n++) {
        size_t len = strcspn(p, ",");
        char *key = xstrndup(p, len);
        for (char *c = key; *c; c++)
            if (*c == '.')
                *c = '_';
        int rc = 0;
        if (n == RESULTS_MAX_KEYS)
            rc = err_set(ERR_CONFIG, "--by takes at most %d keys", RESULTS_MAX_KEYS);
        else if (!names_find(valid, key))
            rc = unknown_name(valid, "column to group by", key);
        str_appendf(sql, "%s\"%s\"", n ? ", " : "", key);
        free(key);
        if (rc != 0)
            return -1;
        p += len;
        p += *p == ',';
    }
    return n > 0 ? 0
                 : err_set(ERR_CONFIG, "--by needs the names of columns, as in engine.attention");
}

static int grouped_sql(struct store *store, const char *by, struct str *sql)
{
    /* One name is one column here, so that a key need not say which table it is of. */
    static const char columns[] =
        "SELECT t.*, m.name AS model, m.arch, e.name AS experiment, a.engine_used,"
        " a.attention_used, a.device_used, a.dtype_used, a.degraded, a.shared_batch, a.state,"
        " a.decision_reason";
    static const char numbers[] = "a.n_samples AS a_samples, a.output_tokens AS a_tokens,"
                                  " CASE WHEN a.output_tokens > 0 THEN a.output_tps END AS tps";
    struct names valid = {0};
    struct str keys = {0};
    char *all = xasprintf("%s%s LIMIT 0", columns, grouped_from);
    int rc = store_query(store, all, push_column_names, &valid);
    if (rc == 0)
        rc = append_keys(&valid, by, &keys);
    if (rc == 0)
        str_appendf(sql,
                    "SELECT %s, count(*) AS n_tasks, sum(a_samples) AS n_samples,"
                    " sum(a_tokens) AS output_tokens, avg(tps) AS output_tps_mean,"
                    " stddev(tps) AS output_tps_sd FROM (%s, %s%s)"
                    " GROUP BY %s ORDER BY min(experiment_id), min(task_index)",
                    keys.data, columns, numbers, grouped_from, keys.data);
    free(all);
    str_free(&keys);
    names_free(&valid);
    return rc;
}

static int check_options(const struct results_options *o)
{
    int n = (o->view != NULL) + (o->by != NULL) + (o->sql != NULL) + (o->samples || o->failed);
    if (n > 1)
        return err_set(ERR_CONFIG, "--view, --by, --sql and --samples or --failed are different "
                                   "questions; ask one of them");
    if (o->limit < 0)
        return err_set(ERR_CONFIG, "--limit is %lld; expected a whole number from 0 on",
                       (long long)o->limit);
    if (o->sql && o->limit > 0)
        return err_set(ERR_CONFIG, "--limit is not for --sql; write LIMIT in the statement");
    return 0;
}

static int make_sql(struct store *store, const struct results_options *o, enum table_format format,
                    struct str *sql)
{
    int rc = 0;
    if (o->sql)
        str_append_c(sql, o->sql);
    else if (o->by)
        rc = grouped_sql(store, o->by, sql);
    else if (o->samples)
        str_append_c(sql, o->failed ? failed_samples_sql : samples_sql);
    else if (o->failed)
        str_append_c(sql, failures_sql);
    else if (o->view || format != TABLE_TEXT)
        rc = view_sql(store, o->view ? o->view : "throughput", sql);
    else
        str_append_c(sql, summary_sql);
    if (rc == 0 && o->limit > 0)
        str_appendf(sql, " LIMIT %lld", (long long)o->limit);
    return rc;
}

/* ---- printing ---- */

struct printer {
    FILE *out;
    enum table_format format;
    struct table *table; /* made with the column names, which come first */
};

static int print_row(void *user, int n, const char *const *names, const char *const *values,
                     const bool *is_number)
{
    struct printer *p = user;
    if (values)
        table_add(p->table, values, is_number);
    else
        p->table = table_open(p->out, p->format, n, names);
    return 0;
}

static int print_query(struct store *store, const char *sql, FILE *out, enum table_format format)
{
    struct printer p = {.out = out, .format = format};
    if (store_query(store, sql, print_row, &p) == 0)
        return table_close(p.table);
    /* What came before the error is printed; the error is the first one. */
    char *error = xstrdup(err_get());
    enum err_kind kind = err_get_kind();
    (void)table_close(p.table);
    err_set(kind, "%s", error);
    free(error);
    return -1;
}

/* No view but the table of samples shows texts; a statement may do anything. */
static enum store_mode mode_for(const struct results_options *o)
{
    bool texts = o->sql || o->samples || (o->view && strcmp(o->view, "samples") == 0);
    return texts ? STORE_READ : STORE_READ_NUMBERS;
}

int results_print(FILE *out, const struct results_options *o)
{
    enum table_format format = TABLE_TEXT;
    struct store *store;
    if (check_options(o) != 0 || (o->format && table_format_find(&format, o->format) != 0) ||
        store_open(&store, o->db, mode_for(o)) != 0)
        return -1;
    struct str sql = {0};
    int rc = make_sql(store, o, format, &sql);
    if (rc == 0)
        rc = print_query(store, sql.data, out, format);
    str_free(&sql);
    if (store_close(store) != 0)
        rc = -1;
    return rc;
}
