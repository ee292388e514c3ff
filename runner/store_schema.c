/* store_schema.c - the tables, columns and views of a results database, and how an old file gets
 * them.
 *
 * user_version counts migrations. Columns of `tasks` are not migrations: every key of config.h that
 * a task can differ in is one, added when it is missing. Views are made again whenever tables or
 * columns change. All of it happens in one transaction: a file has one version or the next.
 *
 * The stored text must be understood by SQLite 3.26: no STRICT, generated columns, ->> or
 * RETURNING. Times are UTC texts ("2026-01-31T09:05:00.123Z"), durations seconds, sizes bytes.
 * Token ids are JSON texts ("[1,2,3]") and not BLOBs: json_each() reads them in any SQLite shell,
 * and at some four bytes a token they are no larger than int32.
 */
#include "runner/config.h"
#include "runner/store_internal.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#define APPLICATION_ID 0x71756972 /* "quir" */

/* Entry i brings a file from user_version i to i + 1. Entries are never changed once released. */
static const char *const migrations[] = {
    "CREATE TABLE experiments("
    " experiment_id INTEGER PRIMARY KEY,"
    " name TEXT NOT NULL,"
    " config_path TEXT,"
    " config_text TEXT,"   /* the file as it was            */
    " resolved_json TEXT," /* every key with its value      */
    " version TEXT,"       /* of quire                      */
    " git_commit TEXT,"
    " git_dirty INTEGER,"
    " created_at TEXT);"

    "CREATE TABLE environments("
    " environment_id INTEGER PRIMARY KEY,"
    " host TEXT, os TEXT, cpu TEXT, cpu_isa TEXT,"
    " gpu TEXT, driver TEXT, cuda TEXT, compute_capability TEXT,"
    " n_threads INTEGER, memory_bytes INTEGER, gpu_memory_bytes INTEGER);"

    "CREATE TABLE runs("
    " run_id INTEGER PRIMARY KEY,"
    " experiment_id INTEGER NOT NULL REFERENCES experiments,"
    " environment_id INTEGER NOT NULL REFERENCES environments,"
    " argv TEXT, host TEXT, pid INTEGER,"
    " slurm_job_id TEXT, slurm_array_task_id TEXT, restart_count INTEGER, mpi_size INTEGER,"
    " started_at TEXT,"
    " ended_at TEXT," /* NULL: running, or cut off     */
    " exit_code INTEGER);"
    "CREATE INDEX runs_experiment ON runs(experiment_id);"

    "CREATE TABLE models("
    " model_id INTEGER PRIMARY KEY,"
    " fingerprint TEXT NOT NULL,"
    " dtype TEXT NOT NULL,"
    " name TEXT NOT NULL,"
    " path TEXT,"
    " arch TEXT,"
    " n_params INTEGER, weight_bytes INTEGER,"
    " UNIQUE(fingerprint, dtype));"

    "CREATE TABLE prompts("
    " prompts_id INTEGER PRIMARY KEY,"
    " fingerprint TEXT NOT NULL UNIQUE,"
    " source TEXT,"
    " n_prompts INTEGER, n_tokens INTEGER);"

    "CREATE TABLE tasks("
    " task_id INTEGER PRIMARY KEY,"
    " key TEXT NOT NULL UNIQUE,"
    " experiment_id INTEGER NOT NULL REFERENCES experiments,"
    " model_id INTEGER NOT NULL REFERENCES models,"
    " prompts_id INTEGER NOT NULL REFERENCES prompts,"
    " task_index INTEGER NOT NULL,"
    " replication INTEGER NOT NULL,"
    " label TEXT NOT NULL,"
    " n_samples INTEGER NOT NULL,"
    " settings_json TEXT NOT NULL);"
    "CREATE INDEX tasks_experiment ON tasks(experiment_id, task_index);"
    "CREATE INDEX tasks_model ON tasks(model_id, prompts_id, replication);"

    "CREATE TABLE attempts("
    " attempt_id INTEGER PRIMARY KEY,"
    " task_id INTEGER NOT NULL REFERENCES tasks,"
    " run_id INTEGER NOT NULL REFERENCES runs,"
    " state TEXT NOT NULL," /* running, done, failed, stopped, lost (cut off) */
    " engine_used TEXT, attention_used TEXT, device_used TEXT, dtype_used TEXT,"
    " decision_reason TEXT, degraded INTEGER NOT NULL, degraded_reason TEXT,"
    " shared_batch INTEGER NOT NULL,"
    " error TEXT,"
    " started_at TEXT, ended_at TEXT,"
    " load_s REAL, init_s REAL, run_s REAL,"
    " n_samples INTEGER, n_failed INTEGER,"
    " prompt_tokens INTEGER, cached_tokens INTEGER, output_tokens INTEGER,"
    " output_tps REAL, total_tps REAL,"
    " ttft_p50_s REAL, ttft_p90_s REAL, ttft_p99_s REAL,"
    " tpot_p50_s REAL, tpot_p90_s REAL, tpot_p99_s REAL,"
    " e2e_p50_s REAL, e2e_p90_s REAL, e2e_p99_s REAL,"
    " kv_blocks INTEGER, kv_blocks_peak INTEGER,"
    " preemptions INTEGER, memory_peak_bytes INTEGER, steps INTEGER, batch_seqs_mean REAL);"
    "CREATE INDEX attempts_task ON attempts(task_id, attempt_id);"
    "CREATE INDEX attempts_run ON attempts(run_id);"

    "CREATE TABLE samples("
    " sample_id INTEGER PRIMARY KEY,"
    " key TEXT NOT NULL UNIQUE,"
    " task_id INTEGER NOT NULL REFERENCES tasks,"
    " attempt_id INTEGER NOT NULL REFERENCES attempts,"
    " prompt_index INTEGER NOT NULL, sample_index INTEGER NOT NULL,"
    " n_prompt_tokens INTEGER, n_output_tokens INTEGER,"
    " n_cached_tokens INTEGER, n_preemptions INTEGER,"
    " prompt TEXT, text TEXT," /* NULL: token ids only                         */
    " ids TEXT,"               /* JSON array                                   */
    " finish_reason TEXT,"
    " output_sha256 TEXT," /* of the ids as int32 little-endian            */
    " error TEXT,"         /* NULL: finished; else the next run tries again */
    " queued_s REAL, ttft_s REAL, tpot_s REAL, e2e_s REAL,"
    " finished_at TEXT);"
    "CREATE INDEX samples_task ON samples(task_id, prompt_index, sample_index);"
    "CREATE INDEX samples_attempt ON samples(attempt_id);"

    "CREATE TABLE timeseries("
    " run_id INTEGER NOT NULL REFERENCES runs,"
    " t_s REAL NOT NULL," /* since the run began */
    " n_running INTEGER, n_waiting INTEGER,"
    " kv_used INTEGER, kv_cached INTEGER, kv_blocks INTEGER,"
    " prompt_tps REAL, output_tps REAL, done INTEGER, total INTEGER);"
    "CREATE INDEX timeseries_run ON timeseries(run_id, t_s);"

    "CREATE TABLE events("
    " event_id INTEGER PRIMARY KEY,"
    " run_id INTEGER NOT NULL REFERENCES runs,"
    " attempt_id INTEGER REFERENCES attempts,"
    " kind TEXT NOT NULL,"
    " detail TEXT,"
    " at TEXT);"
    "CREATE INDEX events_run ON events(run_id);"
    "CREATE INDEX events_attempt ON events(attempt_id);",
};

#define SCHEMA_VERSION ((int)ARRAY_LEN(migrations))

struct view {
    const char *name;
    const char *select;
};

static const struct view views[] = {
    /* The last attempt of each task that came to an end, whatever the end was. */
    {"latest_attempts", "SELECT * FROM attempts a WHERE attempt_id ="
                        " (SELECT max(attempt_id) FROM attempts"
                        " WHERE task_id = a.task_id AND state IN ('done', 'failed', 'stopped'))"},

    /* Numbers are those of the attempt: after a resume, of the samples that were still missing. */
    {"throughput",
     "SELECT t.task_index, t.label, m.name AS model, a.engine_used, a.attention_used,"
     " a.decision_reason, t.replication, a.n_samples, a.output_tokens, a.run_s, a.output_tps,"
     " a.total_tps, a.degraded, a.state, a.shared_batch, e.name AS experiment"
     " FROM tasks t JOIN latest_attempts a USING (task_id) JOIN models m USING (model_id)"
     " JOIN experiments e USING (experiment_id)"
     " ORDER BY t.experiment_id, t.task_index"},

    {"latency",
     "SELECT t.task_index, t.label, m.name AS model, a.engine_used, a.attention_used,"
     " t.replication, a.n_samples, a.ttft_p50_s, a.ttft_p90_s, a.ttft_p99_s, a.tpot_p50_s,"
     " a.tpot_p90_s, a.tpot_p99_s, a.e2e_p50_s, a.e2e_p90_s, a.e2e_p99_s, e.name AS experiment"
     " FROM tasks t JOIN latest_attempts a USING (task_id) JOIN models m USING (model_id)"
     " JOIN experiments e USING (experiment_id)"
     " ORDER BY t.experiment_id, t.task_index"},

    /* A task is done when all its samples are, failed when its last attempt is over and left
     * failures, and otherwise pending. A task without samples is one whose model or prompts could
     * not be read. */
    {"progress",
     "WITH counted AS ("
     " SELECT t.experiment_id, t.n_samples,"
     "  (SELECT count(*) FROM samples s WHERE s.task_id = t.task_id AND s.error IS NULL) AS ok,"
     "  (SELECT count(*) FROM samples s WHERE s.task_id = t.task_id AND s.error IS NOT NULL) AS bad,"
     "  (SELECT a.state FROM attempts a WHERE a.task_id = t.task_id"
     "   ORDER BY a.attempt_id DESC LIMIT 1) AS state"
     " FROM tasks t),"
     " judged AS ("
     " SELECT *, CASE WHEN n_samples > 0 AND ok = n_samples THEN 'done'"
     "  WHEN state = 'failed' OR (n_samples > 0 AND ok + bad = n_samples) THEN 'failed'"
     "  ELSE 'pending' END AS verdict"
     " FROM counted)"
     " SELECT e.experiment_id, e.name AS experiment, count(*) AS tasks,"
     " sum(verdict = 'done') AS tasks_done, sum(verdict = 'failed') AS tasks_failed,"
     " sum(verdict = 'pending') AS tasks_pending, sum(n_samples) AS samples,"
     " sum(ok) AS samples_done, sum(bad) AS samples_failed,"
     " sum(n_samples - ok - bad) AS samples_pending"
     " FROM judged JOIN experiments e USING (experiment_id) GROUP BY e.experiment_id"},

    {"fallbacks",
     "SELECT a.started_at AS at, 'attempt' AS source, e.name AS experiment, t.task_index, t.label,"
     " a.engine_used, a.attention_used, a.device_used, a.degraded_reason AS reason"
     " FROM attempts a JOIN tasks t USING (task_id) JOIN experiments e USING (experiment_id)"
     " WHERE a.degraded"
     " UNION ALL "
     "SELECT v.at, 'event', e.name, t.task_index, t.label, a.engine_used, a.attention_used,"
     " a.device_used, v.detail"
     " FROM events v JOIN runs r USING (run_id)"
     " JOIN experiments e ON e.experiment_id = r.experiment_id"
     " LEFT JOIN attempts a ON a.attempt_id = v.attempt_id"
     " LEFT JOIN tasks t ON t.task_id = a.task_id"
     " WHERE v.kind = 'fallback' ORDER BY 1"},
};

/* Pairs of finished tasks that differ in the attention kernel alone: the same settings (the pairs
 * of columns that follow), the same work on the same kind of machine. CROSS JOIN keeps SQLite from
 * going through all pairs of attempts: the partners of a task are found by index. */
static const char attention_speedup[] =
    "SELECT t.task_index, t.label, m.name AS model, t.replication, a.attention_used, a.output_tps,"
    " u.task_index AS eager_task_index, b.output_tps AS eager_tps,"
    " a.output_tps / b.output_tps AS speedup, e.name AS experiment"
    " FROM latest_attempts a JOIN tasks t ON t.task_id = a.task_id"
    " JOIN runs r ON r.run_id = a.run_id"
    " JOIN environments n ON n.environment_id = r.environment_id"
    " JOIN models m ON m.model_id = t.model_id"
    " JOIN experiments e ON e.experiment_id = t.experiment_id"
    " CROSS JOIN tasks u ON u.model_id = t.model_id AND u.prompts_id = t.prompts_id"
    "  AND u.replication = t.replication"
    " CROSS JOIN latest_attempts b ON b.task_id = u.task_id"
    " JOIN runs q ON q.run_id = b.run_id"
    " JOIN environments o ON o.environment_id = q.environment_id"
    " WHERE a.attention_used <> 'eager' AND b.attention_used = 'eager'"
    " AND a.state = 'done' AND b.state = 'done' AND a.output_tps > 0 AND b.output_tps > 0"
    " AND a.n_samples = b.n_samples AND a.engine_used IS b.engine_used"
    " AND a.device_used IS b.device_used AND a.dtype_used IS b.dtype_used"
    " AND n.cpu IS o.cpu AND n.gpu IS o.gpu AND n.n_threads IS o.n_threads";

static const char attention_key[] = "engine.attention";

/* ---- reading what a file is ---- */

/* The integer of a statement's first row into *out. */
static int read_integer(struct store *s, const char *sql, int *out)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(s->db, sql, -1, &stmt, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW)
        *out = sqlite3_column_int(stmt, 0);
    else
        store_fail(s, "read it as a results database", NULL);
    sqlite3_finalize(stmt);
    return rc == SQLITE_ROW ? 0 : -1;
}

int store_schema_check(struct store *s)
{
    int id, version, n_objects;
    if (read_integer(s, "PRAGMA application_id", &id) != 0 ||
        read_integer(s, "PRAGMA user_version", &version) != 0 ||
        read_integer(s, "SELECT count(*) FROM sqlite_master", &n_objects) != 0)
        return -1;
    bool is_empty = id == 0 && version == 0 && n_objects == 0;
    if (is_empty && s->mode == STORE_WRITE)
        return 0;
    if (id != APPLICATION_ID)
        return err_set(ERR_DATA, "%s: %s, not a results database of quire", s->path,
                       is_empty ? "an empty file" : "the SQLite database of another program");
    if (version > SCHEMA_VERSION && s->mode == STORE_WRITE)
        return err_set(ERR_DATA,
                       "%s: written by a newer quire (schema %d, this quire %s knows %d); use that "
                       "one, or another results file",
                       s->path, version, QUIRE_VERSION, SCHEMA_VERSION);
    if (version > SCHEMA_VERSION)
        log_warning("%s: written by a newer quire (schema %d, this quire %s knows %d); some of it "
                    "may be shown wrongly or not at all",
                    s->path, version, QUIRE_VERSION, SCHEMA_VERSION);
    return 0;
}

/* ---- bringing a file to this version ---- */

char *store_column_name(const char *key)
{
    char *name = xstrdup(key);
    for (char *p = name; *p; p++)
        if (*p == '.')
            *p = '_';
    return name;
}

static const char *column_type(const char *key_type)
{
    if (strcmp(key_type, "integer") == 0 || strcmp(key_type, "bool") == 0)
        return "INTEGER";
    return strcmp(key_type, "number") == 0 ? "REAL" : "TEXT";
}

/* Adds the column of a key to tasks when it is not there; *added counts. */
static int add_column(struct store *s, const struct config_key *key, int *added)
{
    char *name = store_column_name(key->path);
    char *find =
        xasprintf("SELECT count(*) FROM pragma_table_info('tasks') WHERE name = '%s'", name);
    char *add = xasprintf("ALTER TABLE tasks ADD COLUMN %s %s", name, column_type(key->type));
    int there;
    int rc = read_integer(s, find, &there);
    if (rc == 0 && !there) {
        rc = store_exec(s, "add a column", add);
        (*added)++;
    }
    free(name);
    free(find);
    free(add);
    return rc;
}

static int add_columns(struct store *s, int *added)
{
    for (size_t i = 0; i < config_n_keys(); i++) {
        const struct config_key *key = config_get_key(i);
        if (key->per_task && add_column(s, key, added) != 0)
            return -1;
    }
    return 0;
}

static int make_view(struct store *s, const char *name, const char *select)
{
    char *sql = xasprintf("DROP VIEW IF EXISTS %s; CREATE VIEW %s AS %s", name, name, select);
    int rc = store_exec(s, "make a view", sql);
    free(sql);
    return rc;
}

static int make_attention_speedup(struct store *s)
{
    struct str sql = {0};
    str_append_c(&sql, attention_speedup);
    for (size_t i = 0; i < config_n_keys(); i++) {
        const struct config_key *key = config_get_key(i);
        if (!key->per_task || strcmp(key->path, attention_key) == 0)
            continue;
        char *name = store_column_name(key->path);
        str_appendf(&sql, " AND t.%s IS u.%s", name, name);
        free(name);
    }
    str_append_c(&sql, " ORDER BY t.experiment_id, t.task_index");
    int rc = make_view(s, "attention_speedup", sql.data);
    str_free(&sql);
    return rc;
}

static int make_views(struct store *s)
{
    for (size_t i = 0; i < ARRAY_LEN(views); i++)
        if (make_view(s, views[i].name, views[i].select) != 0)
            return -1;
    return make_attention_speedup(s);
}

static int migrate(struct store *s)
{
    int version, added = 0;
    if (read_integer(s, "PRAGMA user_version", &version) != 0)
        return -1;
    for (int i = version; i < SCHEMA_VERSION; i++)
        if (store_exec(s, "make the tables", migrations[i]) != 0)
            return -1;
    if (add_columns(s, &added) != 0)
        return -1;
    if (version == SCHEMA_VERSION && added == 0)
        return 0;
    char *marks = xasprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", APPLICATION_ID,
                            SCHEMA_VERSION);
    int rc = make_views(s);
    if (rc == 0)
        rc = store_exec(s, "set its version", marks);
    free(marks);
    return rc;
}

int store_schema_migrate(struct store *s)
{
    if (store_begin(s) != 0 || migrate(s) != 0) {
        err_prefix("the results database cannot be made or brought to schema %d", SCHEMA_VERSION);
        return -1;
    }
    return store_commit(s);
}
