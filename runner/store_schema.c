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

    /* run_key is the same in every file that has the run. Old runs get theirs from what they are,
     * so that copies of an old file agree. */
    "ALTER TABLE runs ADD COLUMN run_key TEXT;"
    "UPDATE runs SET run_key = " STORE_OLD_RUN_KEY ";"
    "CREATE UNIQUE INDEX runs_key ON runs(run_key);"
    "ALTER TABLE runs ADD COLUMN slurm_array_job_id TEXT;"
    "ALTER TABLE attempts ADD COLUMN rank INTEGER NOT NULL DEFAULT 0;"

    "CREATE TABLE workers("
    " run_id INTEGER NOT NULL REFERENCES runs,"
    " rank INTEGER NOT NULL,"
    " host TEXT, pid INTEGER,"
    " environment_id INTEGER REFERENCES environments," /* NULL: not known yet     */
    " device TEXT,"
    " state TEXT NOT NULL,"      /* loading, running, idle, ended, lost  */
    " task_index INTEGER,"       /* NULL: none                           */
    " n_done INTEGER,"           /* samples                              */
    " busy_s REAL, wall_s REAL," /* generating; since its start          */
    " sent_bytes INTEGER, received_bytes INTEGER,"
    " started_at TEXT, seen_at TEXT,"
    " PRIMARY KEY(run_id, rank));"

    /* The last one that opened the file to write: see store_fence.c. */
    "CREATE TABLE writer("
    " one INTEGER PRIMARY KEY CHECK(one = 1),"
    " token TEXT NOT NULL,"
    " job TEXT, restart_count INTEGER, pid INTEGER, host TEXT, since TEXT);",

    "CREATE TABLE benchmarks("
    " benchmark_id INTEGER PRIMARY KEY,"
    " environment_id INTEGER NOT NULL REFERENCES environments,"
    " command TEXT NOT NULL,"
    " bench TEXT NOT NULL," /* attention, prefill, decode, engine      */
    " shape TEXT NOT NULL, kernel TEXT NOT NULL, dtype TEXT, cache TEXT,"
    " state TEXT NOT NULL," /* ok, wrong, failed, not available        */
    " note TEXT,"           /* why, when it is not ok                  */
    " latency_s REAL, p10_s REAL, p90_s REAL, tokens_per_s REAL,"
    " tflops REAL, peak_share REAL, gbps REAL, bandwidth_share REAL, roofline_share REAL,"
    " memory_bytes REAL, error REAL, ratio REAL,"
    " version TEXT, git_commit TEXT, git_dirty INTEGER,"
    " measured_at TEXT);",

    /* A row of samples holds its texts, so going through the rows is reading the whole file. What
     * is finished, what failed and what ended lately is read from these two indexes alone. */
    "DROP INDEX samples_task;"
    "CREATE INDEX samples_task ON samples(task_id, prompt_index, sample_index, error);"
    "DROP INDEX samples_attempt;"
    "CREATE INDEX samples_attempt ON samples(attempt_id, finished_at);"
    /* A merge looks for each event whether it is there. */
    "DROP INDEX events_run;"
    "CREATE INDEX events_run ON events(run_id, at);",
};

_Static_assert(ARRAY_LEN(migrations) == STORE_SCHEMA_VERSION, "every version has its migration");

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

/* In one transaction: another process may be making the tables just now. */
static int read_identity(struct store *s, int *id, int *n_objects)
{
    if (store_exec(s, "read it as a results database", "BEGIN") != 0)
        return -1;
    bool done = read_integer(s, "PRAGMA application_id", id) == 0 &&
                read_integer(s, "PRAGMA user_version", &s->schema_version) == 0 &&
                read_integer(s, "SELECT count(*) FROM sqlite_master", n_objects) == 0;
    return store_exec(s, "read it as a results database", "COMMIT") == 0 && done ? 0 : -1;
}

int store_schema_check(struct store *s, bool may_be_empty)
{
    int id, n_objects;
    if (read_identity(s, &id, &n_objects) != 0)
        return -1;
    bool is_empty = id == 0 && s->schema_version == 0 && n_objects == 0;
    if (is_empty && may_be_empty)
        return 0;
    if (id != APPLICATION_ID)
        return err_set(ERR_DATA, "%s: %s, not a results database of quire", s->path,
                       is_empty
                           ? "an empty file (was it copied without FILE-wal while a run wrote it?)"
                           : "the SQLite database of another program");
    if (s->schema_version <= STORE_SCHEMA_VERSION)
        return 0;
    if (s->mode == STORE_WRITE)
        return err_set(ERR_DATA,
                       "%s: written by a newer quire (schema %d, this quire %s knows %d); use that "
                       "one, or another results file",
                       s->path, s->schema_version, QUIRE_VERSION, STORE_SCHEMA_VERSION);
    log_warning("%s: written by a newer quire (schema %d, this quire %s knows %d); some of it "
                "may be shown wrongly or not at all",
                s->path, s->schema_version, QUIRE_VERSION, STORE_SCHEMA_VERSION);
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

static int migrate(struct store *s)
{
    int version, added = 0;
    if (read_integer(s, "PRAGMA user_version", &version) != 0)
        return -1;
    for (int i = version; i < STORE_SCHEMA_VERSION; i++)
        if (store_exec(s, "make the tables", migrations[i]) != 0)
            return -1;
    if (add_columns(s, &added) != 0)
        return -1;
    if (version == STORE_SCHEMA_VERSION && added == 0)
        return 0;
    char *marks = xasprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", APPLICATION_ID,
                            STORE_SCHEMA_VERSION);
    int rc = store_make_views(s);
    if (rc == 0)
        rc = store_exec(s, "set its version", marks);
    free(marks);
    return rc;
}

int store_schema_migrate(struct store *s)
{
    if (migrate(s) != 0)
        return err_prefix("the results database cannot be made or brought to schema %d",
                          STORE_SCHEMA_VERSION);
    return 0;
}
