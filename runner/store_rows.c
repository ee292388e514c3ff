/* store_rows.c - the rows that a run records.
 *
 * A row is a table's name and a list of named fields; its statement is written from them once and
 * then cached, so that a column stands beside its value and nowhere else.
 */
#include "runner/config.h"
#include "runner/store_internal.h"

#include <assert.h>
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum field_type { FIELD_INTEGER, FIELD_REFERENCE, FIELD_REAL, FIELD_TEXT };

struct field {
    const char *column;
    enum field_type type;
    int64_t integer;
    double real;      /* NULL in the row when it is not finite */
    const char *text; /* NULL: NULL in the row                 */
};

struct row {
    const char *table;
    const struct field *field; /* [n] */
    size_t n;
};

#define INTEGER(name, value)                                                                       \
    {                                                                                              \
        .column = (name), .type = FIELD_INTEGER, .integer = (value)                                \
    }
#define REAL(name, value)                                                                          \
    {                                                                                              \
        .column = (name), .type = FIELD_REAL, .real = (value)                                      \
    }
#define TEXT(name, value)                                                                          \
    {                                                                                              \
        .column = (name), .type = FIELD_TEXT, .text = (value)                                      \
    }
/* "" stands for "does not apply", which is NULL for a query. */
#define OPTIONAL(name, value) TEXT(name, (value) && *(value) ? (value) : NULL)
/* The id of another row, 0 for none. */
#define REFERENCE(name, id)                                                                        \
    {                                                                                              \
        .column = (name), .type = FIELD_REFERENCE, .integer = (id)                                 \
    }
#define ROW(name, fields) (&(struct row){(name), (fields), ARRAY_LEN(fields)})

/* ---- statements from rows ---- */

typedef void (*sql_writer)(struct str *sql, const struct row *row);

static void append_columns(struct str *sql, const struct row *row, const char *after,
                           const char *between)
{
    for (size_t i = 0; i < row->n; i++)
        str_appendf(sql, "%s%s%s", i ? between : "", row->field[i].column, after);
}

static void write_find(struct str *sql, const struct row *row)
{
    str_appendf(sql, "SELECT rowid FROM %s WHERE ", row->table);
    append_columns(sql, row, " IS ?", " AND ");
}

static void write_insert(struct str *sql, const struct row *row)
{
    str_appendf(sql, "INSERT INTO %s(", row->table);
    append_columns(sql, row, "", ", ");
    str_append_c(sql, ") VALUES(?");
    for (size_t i = 1; i < row->n; i++)
        str_append_c(sql, ", ?");
    str_append_c(sql, ")");
}

static void write_update(struct str *sql, const struct row *row)
{
    str_appendf(sql, "UPDATE %s SET ", row->table);
    append_columns(sql, row, " = ?", ", ");
    str_append_c(sql, " WHERE rowid = ?");
}

/* Texts are borrowed: every statement here is stepped to its end before its row goes away. */
static int bind_field(sqlite3_stmt *stmt, int at, const struct field *f)
{
    switch (f->type) {
    case FIELD_INTEGER: return sqlite3_bind_int64(stmt, at, f->integer);
    case FIELD_REFERENCE:
        return f->integer ? sqlite3_bind_int64(stmt, at, f->integer) : sqlite3_bind_null(stmt, at);
    case FIELD_REAL:
        if (!isfinite(f->real))
            return sqlite3_bind_null(stmt, at);
        return sqlite3_bind_double(stmt, at, f->real);
    case FIELD_TEXT: return sqlite3_bind_text(stmt, at, f->text, -1, SQLITE_STATIC);
    }
    return SQLITE_MISUSE;
}

/* The statement with the row's values in it, or NULL with an error. */
static sqlite3_stmt *prepare_row(struct store *s, enum store_statement which, sql_writer writer,
                                 const struct row *row)
{
    struct str sql = {0};
    if (!s->statement[which])
        writer(&sql, row);
    sqlite3_stmt *stmt = store_prepare(s, which, sql.data);
    str_free(&sql);
    for (size_t i = 0; stmt && i < row->n; i++) {
        if (bind_field(stmt, (int)i + 1, &row->field[i]) != SQLITE_OK) {
            store_fail(s, "bind a value", sqlite3_sql(stmt));
            return NULL;
        }
    }
    return stmt;
}

static int step_write(struct store *s, sqlite3_stmt *stmt)
{
    int rc = 0;
    if (sqlite3_step(stmt) != SQLITE_DONE)
        rc = store_fail(s, "write", sqlite3_sql(stmt));
    sqlite3_reset(stmt);
    return rc;
}

/* The first column of the first row; 0 when there is none, -1 on failure. */
static int64_t step_id(struct store *s, sqlite3_stmt *stmt)
{
    int rc = sqlite3_step(stmt);
    int64_t id = 0;
    if (rc == SQLITE_ROW)
        id = sqlite3_column_int64(stmt, 0);
    else if (rc != SQLITE_DONE)
        id = store_fail(s, "read", sqlite3_sql(stmt));
    sqlite3_reset(stmt);
    return id;
}

static int64_t find_row(struct store *s, enum store_statement which, const struct row *row)
{
    sqlite3_stmt *stmt = prepare_row(s, which, write_find, row);
    return stmt ? step_id(s, stmt) : -1;
}

static int64_t insert_row(struct store *s, enum store_statement which, const struct row *row)
{
    sqlite3_stmt *stmt = prepare_row(s, which, write_insert, row);
    if (!stmt || step_write(s, stmt) != 0)
        return -1;
    return sqlite3_last_insert_rowid(s->db);
}

static int update_row(struct store *s, enum store_statement which, const struct row *row,
                      int64_t id)
{
    sqlite3_stmt *stmt = prepare_row(s, which, write_update, row);
    if (!stmt)
        return -1;
    if (sqlite3_bind_int64(stmt, (int)row->n + 1, id) != SQLITE_OK)
        return store_fail(s, "bind a value", sqlite3_sql(stmt));
    if (step_write(s, stmt) != 0)
        return -1;
    assert(sqlite3_changes(s->db) == 1);
    return 0;
}

/* A transaction around one row, which counts for no sample. */
static int64_t put_row(struct store *s, enum store_statement which, const struct row *row)
{
    if (store_begin(s) != 0)
        return -1;
    int64_t id = insert_row(s, which, row);
    return id < 0 || store_added(s, 0) != 0 ? -1 : id;
}

/* The same for a row of which there is one: the one whose first n_key fields are equal. */
static int64_t put_row_once(struct store *s, enum store_statement find, enum store_statement insert,
                            const struct row *row, size_t n_key)
{
    const struct row key = {row->table, row->field, n_key};
    if (store_begin(s) != 0)
        return -1;
    int64_t id = find_row(s, find, &key);
    if (id == 0)
        id = insert_row(s, insert, row);
    return id < 0 || store_added(s, 0) != 0 ? -1 : id;
}

/* The same, and a row that is there takes the first n_update values of this one. `statement` finds
 * it, and the next two of the enum insert and update it. */
static int64_t put_row_latest(struct store *s, enum store_statement statement,
                              const struct row *row, size_t n_key, size_t n_update)
{
    const struct row key = {row->table, row->field, n_key};
    const struct row update = {row->table, row->field, n_update};
    if (store_begin(s) != 0)
        return -1;
    int64_t id = find_row(s, statement, &key);
    if (id == 0)
        id = insert_row(s, statement + 1, row);
    else if (id > 0 && update_row(s, statement + 2, &update, id) != 0)
        id = -1;
    return id < 0 || store_added(s, 0) != 0 ? -1 : id;
}

/* ---- what a run is about ---- */

int64_t store_put_experiment(struct store *s, const struct store_experiment *e)
{
    const struct store_time at = store_now();
    const struct field field[] = {
        TEXT("name", e->name),
        TEXT("config_path", e->config_path),
        TEXT("config_text", e->config_text),
        TEXT("resolved_json", e->resolved_json),
        TEXT("version", e->version),
        OPTIONAL("git_commit", e->git_commit),
        INTEGER("git_dirty", e->git_dirty),
        TEXT("created_at", at.text),
    };
    return put_row_once(s, STORE_FIND_EXPERIMENT, STORE_INSERT_EXPERIMENT,
                        ROW("experiments", field), ARRAY_LEN(field) - 1);
}

int64_t store_put_environment(struct store *s, const struct store_environment *e)
{
    const struct field field[] = {
        TEXT("host", e->host),
        TEXT("os", e->os),
        TEXT("cpu", e->cpu),
        TEXT("cpu_isa", e->cpu_isa),
        OPTIONAL("gpu", e->gpu),
        OPTIONAL("driver", e->driver),
        OPTIONAL("cuda", e->cuda),
        OPTIONAL("compute_capability", e->compute_capability),
        INTEGER("n_threads", e->n_threads),
        INTEGER("memory_bytes", e->memory_bytes),
        INTEGER("gpu_memory_bytes", e->gpu_memory_bytes),
    };
    return put_row_once(s, STORE_FIND_ENVIRONMENT, STORE_INSERT_ENVIRONMENT,
                        ROW("environments", field), ARRAY_LEN(field));
}

/* The last part of a path: "models/Qwen3-0.6B/" is Qwen3-0.6B. The caller frees. */
static char *short_name(const char *path)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/')
        start--;
    return xstrndup(path + start, end - start);
}

int64_t store_put_model(struct store *s, const struct store_model *m)
{
    char *name = short_name(m->path);
    const struct field field[] = {
        TEXT("fingerprint", m->fingerprint),
        TEXT("dtype", m->dtype),
        TEXT("name", name),
        TEXT("path", m->path),
        OPTIONAL("arch", m->arch),
        INTEGER("n_params", m->n_params),
        INTEGER("weight_bytes", m->weight_bytes),
    };
    int64_t id = put_row_once(s, STORE_FIND_MODEL, STORE_INSERT_MODEL, ROW("models", field), 2);
    free(name);
    return id;
}

int64_t store_put_prompts(struct store *s, const struct store_prompts *p)
{
    const struct field field[] = {
        TEXT("fingerprint", p->fingerprint),
        TEXT("source", p->source),
        INTEGER("n_prompts", p->n_prompts),
        INTEGER("n_tokens", p->n_tokens),
    };
    return put_row_once(s, STORE_FIND_PROMPTS, STORE_INSERT_PROMPTS, ROW("prompts", field), 1);
}

/* ---- tasks ---- */

static struct field setting_field(const char *column, const json_t *value)
{
    assert(!json_is_array(value) && !json_is_object(value));
    if (json_is_string(value))
        return (struct field)OPTIONAL(column, json_string_value(value));
    if (json_is_integer(value))
        return (struct field)INTEGER(column, json_integer_value(value));
    if (json_is_real(value))
        return (struct field)REAL(column, json_real_value(value));
    if (json_is_boolean(value))
        return (struct field)INTEGER(column, json_is_true(value));
    return (struct field)TEXT(column, NULL);
}

/* A task that is there already takes this experiment's index, label and paths, which are no part of
 * its key: a task belongs to the experiment that asked for it last. */
int64_t store_put_task(struct store *s, const struct store_task *t)
{
    const struct field own[] = {
        TEXT("key", t->key),
        INTEGER("experiment_id", t->experiment_id),
        INTEGER("model_id", t->model_id),
        INTEGER("prompts_id", t->prompts_id),
        INTEGER("task_index", t->task_index),
        INTEGER("replication", t->replication),
        TEXT("label", t->label),
        INTEGER("n_samples", t->n_samples),
        TEXT("settings_json", t->settings_json),
    };
    json_t *settings = json_loads(t->settings_json, 0, NULL);
    assert(json_is_object(settings));
    struct field *field = xcalloc(ARRAY_LEN(own) + config_n_keys(), sizeof(*field));
    char **column = xcalloc(config_n_keys(), sizeof(*column));
    size_t n = ARRAY_LEN(own), n_settings = 0;
    memcpy(field, own, sizeof(own));
    for (size_t i = 0; i < config_n_keys(); i++) {
        const struct config_key *key = config_get_key(i);
        if (!key->per_task)
            continue;
        column[n_settings] = store_column_name(key->path);
        field[n++] = setting_field(column[n_settings++], json_object_get(settings, key->path));
    }
    int64_t id = put_row_latest(s, STORE_FIND_TASK, &(struct row){"tasks", field, n}, 1, n);
    while (n_settings > 0)
        free(column[--n_settings]);
    free(column);
    free(field);
    json_decref(settings);
    return id;
}

/* ---- runs and attempts ---- */

int64_t store_begin_run(struct store *s, const struct store_run *r)
{
    /* This run holds the writer's lock, so whoever began these is gone. */
    if (store_begin(s) != 0 ||
        store_exec(s, "mark lost attempts",
                   "UPDATE attempts SET state = 'lost' WHERE state = 'running'") != 0)
        return -1;
    const struct store_time at = store_now();
    char key[STORE_KEY_LEN + 1];
    store_make_key(key);
    const struct field field[] = {
        TEXT("run_key", key),
        INTEGER("experiment_id", r->experiment_id),
        INTEGER("environment_id", r->environment_id),
        TEXT("argv", r->argv),
        TEXT("host", r->host),
        INTEGER("pid", r->pid),
        OPTIONAL("slurm_job_id", r->slurm_job_id),
        OPTIONAL("slurm_array_job_id", r->slurm_array_job_id),
        OPTIONAL("slurm_array_task_id", r->slurm_array_task_id),
        INTEGER("restart_count", r->restart_count),
        INTEGER("mpi_size", r->mpi_size),
        TEXT("started_at", at.text),
    };
    return put_row(s, STORE_INSERT_RUN, ROW("runs", field));
}

int store_end_run(struct store *s, int64_t run_id, int exit_code)
{
    const struct store_time at = store_now();
    const struct field field[] = {TEXT("ended_at", at.text), INTEGER("exit_code", exit_code)};
    if (store_begin(s) != 0 || update_row(s, STORE_UPDATE_RUN, ROW("runs", field), run_id) != 0)
        return -1;
    return store_added(s, 0);
}

int store_put_worker(struct store *s, const struct store_worker *w)
{
    const struct store_time at = store_now();
    const struct field task = w->task_index < 0
                                  ? (struct field)TEXT("task_index", NULL)
                                  : (struct field)INTEGER("task_index", w->task_index);
    const struct field field[] = {
        INTEGER("run_id", w->run_id),
        INTEGER("rank", w->rank),
        TEXT("host", w->host),
        INTEGER("pid", w->pid),
        REFERENCE("environment_id", w->environment_id),
        OPTIONAL("device", w->device),
        TEXT("state", w->state),
        task,
        INTEGER("n_done", w->n_done),
        REAL("busy_s", w->busy_s),
        REAL("wall_s", w->wall_s),
        INTEGER("sent_bytes", w->sent_bytes),
        INTEGER("received_bytes", w->received_bytes),
        TEXT("seen_at", at.text),
        TEXT("started_at", at.text),
    };
    const struct row *row = ROW("workers", field);
    return put_row_latest(s, STORE_FIND_WORKER, row, 2, row->n - 1) < 0 ? -1 : 0;
}

int64_t store_begin_attempt(struct store *s, const struct store_attempt *a)
{
    const struct store_time at = store_now();
    const struct field field[] = {
        INTEGER("task_id", a->task_id),
        INTEGER("run_id", a->run_id),
        INTEGER("rank", a->rank),
        TEXT("state", "running"),
        OPTIONAL("engine_used", a->engine_used),
        OPTIONAL("attention_used", a->attention_used),
        OPTIONAL("device_used", a->device_used),
        OPTIONAL("dtype_used", a->dtype_used),
        OPTIONAL("decision_reason", a->decision_reason),
        INTEGER("degraded", a->degraded),
        OPTIONAL("degraded_reason", a->degraded_reason),
        INTEGER("shared_batch", a->shared_batch),
        TEXT("started_at", at.text),
    };
    return put_row(s, STORE_INSERT_ATTEMPT, ROW("attempts", field));
}

int store_end_attempt(struct store *s, int64_t attempt_id, const struct store_attempt_end *end)
{
    const struct store_time at = store_now();
    const struct field field[] = {
        TEXT("state", end->state),
        OPTIONAL("error", end->error),
        TEXT("ended_at", at.text),
        REAL("load_s", end->load_s),
        REAL("init_s", end->init_s),
        REAL("run_s", end->run_s),
        INTEGER("n_samples", end->n_samples),
        INTEGER("n_failed", end->n_failed),
        INTEGER("prompt_tokens", end->prompt_tokens),
        INTEGER("cached_tokens", end->cached_tokens),
        INTEGER("output_tokens", end->output_tokens),
        REAL("output_tps", end->output_tps),
        REAL("total_tps", end->total_tps),
        REAL("ttft_p50_s", end->ttft_s.p50),
        REAL("ttft_p90_s", end->ttft_s.p90),
        REAL("ttft_p99_s", end->ttft_s.p99),
        REAL("tpot_p50_s", end->tpot_s.p50),
        REAL("tpot_p90_s", end->tpot_s.p90),
        REAL("tpot_p99_s", end->tpot_s.p99),
        REAL("e2e_p50_s", end->e2e_s.p50),
        REAL("e2e_p90_s", end->e2e_s.p90),
        REAL("e2e_p99_s", end->e2e_s.p99),
        INTEGER("kv_blocks", end->kv_blocks),
        INTEGER("kv_blocks_peak", end->kv_blocks_peak),
        INTEGER("preemptions", end->preemptions),
        INTEGER("memory_peak_bytes", end->memory_peak_bytes),
        INTEGER("steps", end->steps),
        REAL("batch_seqs_mean", end->batch_seqs_mean),
    };
    if (store_begin(s) != 0 ||
        update_row(s, STORE_UPDATE_ATTEMPT, ROW("attempts", field), attempt_id) != 0)
        return -1;
    return store_added(s, 0);
}

/* ---- events and time series ---- */

static int insert_event(struct store *s, int64_t run_id, int64_t attempt_id, const char *kind,
                        const char *detail)
{
    const struct store_time at = store_now();
    const struct field field[] = {
        INTEGER("run_id", run_id), REFERENCE("attempt_id", attempt_id),
        TEXT("kind", kind),        TEXT("detail", detail),
        TEXT("at", at.text),
    };
    return insert_row(s, STORE_INSERT_EVENT, ROW("events", field)) < 0 ? -1 : 0;
}

int store_put_event(struct store *s, int64_t run_id, int64_t attempt_id, const char *kind,
                    const char *detail)
{
    if (store_begin(s) != 0 || insert_event(s, run_id, attempt_id, kind, detail) != 0)
        return -1;
    return store_added(s, 0);
}

int store_put_tick(struct store *s, const struct store_tick *tick)
{
    const struct field field[] = {
        INTEGER("run_id", tick->run_id),       REAL("t_s", tick->t_s),
        INTEGER("n_running", tick->n_running), INTEGER("n_waiting", tick->n_waiting),
        INTEGER("kv_used", tick->kv_used),     INTEGER("kv_cached", tick->kv_cached),
        INTEGER("kv_blocks", tick->kv_blocks), REAL("prompt_tps", tick->prompt_tps),
        REAL("output_tps", tick->output_tps),  INTEGER("done", tick->done),
        INTEGER("total", tick->total),
    };
    return put_row(s, STORE_INSERT_TICK, ROW("timeseries", field)) < 0 ? -1 : 0;
}

int store_put_benchmark(struct store *s, const struct store_benchmark *b)
{
    const struct store_time at = store_now();
    const struct field field[] = {
        INTEGER("environment_id", b->environment_id),
        TEXT("command", b->command),
        TEXT("bench", b->bench),
        TEXT("shape", b->shape),
        TEXT("kernel", b->kernel),
        OPTIONAL("dtype", b->dtype),
        OPTIONAL("cache", b->cache),
        TEXT("state", b->state),
        OPTIONAL("note", b->note),
        REAL("latency_s", b->latency_s),
        REAL("p10_s", b->p10_s),
        REAL("p90_s", b->p90_s),
        REAL("tokens_per_s", b->tokens_per_s),
        REAL("tflops", b->tflops),
        REAL("peak_share", b->peak_share),
        REAL("gbps", b->gbps),
        REAL("bandwidth_share", b->bandwidth_share),
        REAL("roofline_share", b->roofline_share),
        REAL("memory_bytes", b->memory_bytes),
        REAL("error", b->error),
        REAL("ratio", b->ratio),
        TEXT("version", b->version),
        OPTIONAL("git_commit", b->git_commit),
        INTEGER("git_dirty", b->git_dirty),
        TEXT("measured_at", at.text),
    };
    return put_row(s, STORE_INSERT_BENCHMARK, ROW("benchmarks", field)) < 0 ? -1 : 0;
}

/* ---- samples ---- */

/* What is known of a sample: id 0 when nothing. */
struct known_sample {
    int64_t id;
    bool failed;
    char hash[SHA256_HEX_LEN + 1];
};

static int find_sample(struct store *s, const char *key, struct known_sample *out)
{
    *out = (struct known_sample){0};
    sqlite3_stmt *stmt = store_prepare(
        s, STORE_FIND_SAMPLE, "SELECT sample_id, error, output_sha256 FROM samples WHERE key = ?");
    if (!stmt || sqlite3_bind_text(stmt, 1, key, -1, SQLITE_STATIC) != SQLITE_OK)
        return -1;
    int rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW) {
        const char *hash = (const char *)sqlite3_column_text(stmt, 2);
        out->id = sqlite3_column_int64(stmt, 0);
        out->failed = sqlite3_column_type(stmt, 1) != SQLITE_NULL;
        snprintf(out->hash, sizeof(out->hash), "%s", hash ? hash : "");
    } else if (rc != SQLITE_DONE) {
        store_fail(s, "read", sqlite3_sql(stmt));
    }
    sqlite3_reset(stmt);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? 0 : -1;
}

/* "[1,2,3]": SQLite's json_each reads it. The caller frees. */
static char *ids_text(const int *ids, int n)
{
    struct str text = {0};
    str_append_c(&text, "[");
    for (int i = 0; i < n; i++)
        str_appendf(&text, "%s%d", i ? "," : "", ids[i]);
    str_append_c(&text, "]");
    return text.data;
}

/* Inserts the sample, or puts it in the place of the failed one with id `replaced`. */
static int write_sample(struct store *s, const struct store_sample *p, int64_t replaced)
{
    const struct store_time at = store_now();
    char *ids = p->ids ? ids_text(p->ids, p->n_output_tokens) : NULL;
    const struct field field[] = {
        TEXT("key", p->key),
        INTEGER("task_id", p->task_id),
        INTEGER("attempt_id", p->attempt_id),
        INTEGER("prompt_index", p->prompt_index),
        INTEGER("sample_index", p->sample_index),
        INTEGER("n_prompt_tokens", p->n_prompt_tokens),
        INTEGER("n_output_tokens", p->n_output_tokens),
        INTEGER("n_cached_tokens", p->n_cached_tokens),
        INTEGER("n_preemptions", p->n_preemptions),
        TEXT("prompt", p->prompt),
        TEXT("text", p->text),
        TEXT("ids", ids),
        TEXT("finish_reason", p->finish_reason),
        OPTIONAL("output_sha256", p->output_sha256),
        OPTIONAL("error", p->error),
        REAL("queued_s", p->queued_s),
        REAL("ttft_s", p->ttft_s),
        REAL("tpot_s", p->tpot_s),
        REAL("e2e_s", p->e2e_s),
        TEXT("finished_at", at.text),
    };
    const struct row *row = ROW("samples", field);
    int rc = replaced ? update_row(s, STORE_UPDATE_SAMPLE, row, replaced)
                      : (insert_row(s, STORE_INSERT_SAMPLE, row) < 0 ? -1 : 0);
    free(ids);
    return rc;
}

/* Records that a sample which is done came out another way this time. */
static int put_other_outcome(struct store *s, const struct store_sample *p, const char *kind,
                             const char *kept, const char *outcome)
{
    sqlite3_stmt *stmt =
        store_prepare(s, STORE_FIND_RUN, "SELECT run_id FROM attempts WHERE attempt_id = ?");
    if (!stmt || sqlite3_bind_int64(stmt, 1, p->attempt_id) != SQLITE_OK)
        return -1;
    int64_t run_id = step_id(s, stmt);
    if (run_id < 0)
        return -1;
    char *detail = xasprintf("sample %s (prompt %d, sample %d): %s is kept, now it was %s", p->key,
                             p->prompt_index, p->sample_index, kept, outcome);
    log_warning("%s: %s: %s", s->path, kind, detail);
    int rc = insert_event(s, run_id, p->attempt_id, kind, detail);
    free(detail);
    return rc;
}

int store_put_sample(struct store *s, const struct store_sample *sample)
{
    struct known_sample known;
    if (store_begin(s) != 0 || find_sample(s, sample->key, &known) != 0)
        return -1;
    bool failed = sample->error && *sample->error;
    bool is_new = known.id == 0 || known.failed;
    int rc = 0;
    if (is_new)
        rc = write_sample(s, sample, known.id);
    else if (failed)
        rc = put_other_outcome(s, sample, "error", known.hash, sample->error);
    else if (strcmp(known.hash, sample->output_sha256) != 0)
        rc = put_other_outcome(s, sample, "nondeterministic", known.hash, sample->output_sha256);
    return rc != 0 || store_added(s, is_new) != 0 ? -1 : 0;
}
