/* store_internal.h - what the files of the store share. sqlite3.h stays out of headers. */
#ifndef QUIRE_STORE_INTERNAL_H
#define QUIRE_STORE_INTERNAL_H

#include "runner/store.h"
#include "runner/store_file.h"

/* How long a statement waits for a lock: readers of a rollback journal hold the writer up, and the
 * other way round. */
#define STORE_BUSY_MS 10000
/* The same for a commit that can be tried again a second later: the engines stand still meanwhile.
 */
#define STORE_TRY_MS 100
/* The same for the last commit, behind which there is none that could be tried. */
#define STORE_CLOSE_MS 60000
/* The same for the moment in which a newer attempt takes the database over: the older one, which
 * commits within seconds unless it hangs, may be within a transaction. */
#define STORE_CLAIM_MS 60000
/* How long the older one then stays out between two transactions, which else follow each other at
 * once: more than the tenth of a second after which SQLite looks again for a lock it waits for. */
#define STORE_GIVE_WAY_MS 250
/* A reader that has held up the commits for so long is worth a warning. */
#define STORE_HELD_UP_S 10.0
/* Pages of a transaction that stay in memory (256 MiB): to write them into the file before the
 * commit, a rollback journal would have to wait for every reader. */
#define STORE_PAGES_IN_MEMORY 65536

/* runs.run_key of a run that was recorded before there were keys, as SQL. */
#define STORE_OLD_RUN_KEY                                                                          \
    "'old-' || coalesce(started_at, '') || '-' || coalesce(host, '') || '-' || coalesce(pid, 0)"   \
    " || '-' || run_id"

#define STORE_KEY_LEN 32 /* 128 random bits in hex */

struct sqlite3;
struct sqlite3_stmt;

/* Statements that are prepared once. */
enum store_statement {
    STORE_FIND_EXPERIMENT,
    STORE_INSERT_EXPERIMENT,
    STORE_FIND_ENVIRONMENT,
    STORE_INSERT_ENVIRONMENT,
    STORE_FIND_MODEL,
    STORE_INSERT_MODEL,
    STORE_FIND_PROMPTS,
    STORE_INSERT_PROMPTS,
    STORE_FIND_TASK,
    STORE_INSERT_TASK,
    STORE_UPDATE_TASK,
    STORE_INSERT_RUN,
    STORE_UPDATE_RUN,
    STORE_FIND_WORKER,
    STORE_INSERT_WORKER,
    STORE_UPDATE_WORKER,
    STORE_INSERT_ATTEMPT,
    STORE_UPDATE_ATTEMPT,
    STORE_FIND_RUN,
    STORE_FIND_SAMPLE,
    STORE_INSERT_SAMPLE,
    STORE_UPDATE_SAMPLE,
    STORE_INSERT_EVENT,
    STORE_INSERT_TICK,
    STORE_INSERT_BENCHMARK,
    STORE_FIND_DONE,
    STORE_FIND_WRITER,
    STORE_N_STATEMENTS,
};

struct store {
    struct sqlite3 *db;
    char *path;
    enum store_mode mode;
    int schema_version;            /* of the file when it was opened             */
    struct store_lock *lock;       /* STORE_WRITE                                */
    char token[STORE_KEY_LEN + 1]; /* of its claim; "": it has none, as a reader */
    char *owner_job;
    int owner_restart_count;
    struct sqlite3_stmt *statement[STORE_N_STATEMENTS];
    bool in_transaction;
    int n_pending;       /* samples of the open transaction                   */
    int64_t n_committed; /* samples that this store has committed             */
    double committed_s;  /* time_monotonic_s() of the last commit or try      */
    double held_up_s;    /* the same of the first try in vain since; 0: none  */
    bool warned;         /* that a reader holds the commits up                */
    char *failure;       /* why nothing can be written any more; NULL: it can */
    enum err_kind failure_kind;
};

/* "2026-01-31T09:05:00.123Z": sorts by time and is read by SQLite's date functions. */
struct store_time {
    char text[32];
};

/* ---- store.c ---- */
/* A store without a connection, and its end. */
struct store *store_make(const char *path, enum store_mode mode);
void store_discard(struct store *s);
/* Connects to `file`; flags are sqlite3_open_v2's. */
int store_connect(struct store *s, const char *file, int flags);
struct store_time store_now(void);
/* A new random key. */
void store_make_key(char key[STORE_KEY_LEN + 1]);
/* Records SQLite's last error as "PATH: cannot WHAT: reason (SQL)"; returns -1. An error that took
 * the open transaction with it ends all writing: what was acknowledged is gone. */
int store_fail(struct store *s, const char *what, const char *sql);
/* Runs statements without parameters and results. */
int store_exec(struct store *s, const char *what, const char *sql);
/* The cached statement, prepared from `sql` at its first use; reset and without bindings. NULL on
 * error. sql may be NULL when it was prepared before. */
struct sqlite3_stmt *store_prepare(struct store *s, enum store_statement which, const char *sql);
/* Opens a transaction when none is open. */
int store_begin(struct store *s);
/* Counts samples into the transaction and commits when it is time. */
int store_added(struct store *s, int n_samples);

/* ---- store_fence.c ---- */
/* Enters this store as the one writer, in the open transaction. */
int store_claim(struct store *s);
/* ERR_STOPPED when another has entered itself since. */
int store_check_claim(struct store *s);

/* ---- store_schema.c ---- */
#define STORE_SCHEMA_VERSION 4
/* Files from this version on have the same tables, and are read as they are. */
#define STORE_SAME_TABLES_VERSION 3
/* ERR_DATA unless the file is a quire database, or empty and that is allowed: its version is 0
 * then. A newer one is refused by STORE_WRITE. */
int store_schema_check(struct store *s, bool may_be_empty);
/* Brings tables, columns and views to this version, in the open transaction. */
int store_schema_migrate(struct store *s);
/* The column of a configuration key: "engine.max_num_seqs" becomes engine_max_num_seqs. The caller
 * frees. */
char *store_column_name(const char *key);

/* ---- store_shards.c ---- */
/* Connects to a temporary database and merges the files into it. */
int store_unite(struct store *s, const struct store_files *files);

/* ---- store_views.c ---- */
/* Makes all views anew. */
int store_make_views(struct store *s);

/* ---- store_query.c ---- */
/* Adds the aggregate stddev(x), the standard deviation of a sample; NULL for fewer than two. */
int store_add_functions(struct store *s);

#endif
