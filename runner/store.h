/* store.h - results in SQLite: plain tables, views with plain names. One file, or one per worker of
 * a job array (shards), which read like one.
 *
 * One writer. Rows are committed when a second has passed since the last commit or 32 samples are
 * waiting, whichever is first, checked at every call that writes; and at once by store_commit (end
 * of a task, signal). After a crash every committed sample is found again by its key, and the same
 * command does only what is missing. Readers can use the file meanwhile. When the disk is full or
 * fails, the store writes nothing any more and every call says what is safe.
 *
 * The writer's lock is FILE.lock. On a local file system FILE-wal and FILE-shm stand beside the
 * file while it is written; store_close leaves one file. Readable by SQLite 3.26.
 *
 * Every writer enters its name in the database when it opens it, and every commit looks whether it
 * is still there: one whose lock was lost (a node that was cut off the network) commits nothing any
 * more once another writes.
 * One thread at a time. The only user of sqlite3.h (files runner/store*.c).
 */
#ifndef QUIRE_STORE_H
#define QUIRE_STORE_H

#include "engine/util.h"

#define STORE_COMMIT_SAMPLES 32
#define STORE_COMMIT_SECONDS 1.0

struct store;

enum store_mode {
    STORE_READ, /* all files of store_list_files() as one; there must be one. A file of a newer
                   version is read with a warning. Several files, and one with older tables, are
                   read as they are now: they are copied into a temporary database             */
    STORE_READ_NUMBERS, /* the same for a reader who asks for no texts: prompt, text and ids of the
                           samples are not copied, which may be gigabytes                       */
    STORE_WRITE,        /* made (with its folder) or migrated; a newer one is refused.
                           Takes the writer's lock until store_close                     */
};

/* ERR_DATA: missing, not a quire database, damaged, of a newer version; ERR_RESOURCE: cannot be
 * created, disk full, or another process is writing to it (the message says which: pid, host, since
 * when). */
int store_open(struct store **out, const char *path, enum store_mode mode);

/* One file alone for reading, whatever shards stand beside it. *out is NULL when it is empty: its
 * writer has not come to its first commit. */
int store_open_file(struct store **out, const char *path);

/* Who writes; "" and 0 outside Slurm. */
struct store_owner {
    const char *job;   /* "1234", or "1234_7" of an array task */
    int restart_count; /* SLURM_RESTART_COUNT                  */
};
/* store_open(..., STORE_WRITE) with an owner. A lock that an older attempt of the same job holds (a
 * smaller restart_count; it may be cut off the network and still run) does not stop a newer one:
 * the newer one writes, and the older one's next commit fails with ERR_STOPPED, nothing of it being
 * kept. ERR_STOPPED when a newer attempt writes already. */
int store_open_as(struct store **out, const char *path, const struct store_owner *owner);

/* Commits and closes; accepts NULL. -1 when the last commit failed. */
int store_close(struct store *s);
/* Commits what is pending. -1 with ERR_RESOURCE when the disk is full, with ERR_STOPPED when
 * another process writes to the file now: what was committed stays. */
int store_commit(struct store *s);
/* The same, but waits for no reader of a rollback journal: what one holds up stays pending, with a
 * warning after a while, and the calls that write try again once a second. */
int store_try_commit(struct store *s);

/* ---- shards ---- */
struct store_files {
    char **path; /* [n] */
    int n;
};
/* The files that hold the results of `path` (x.db): itself when it exists, then x.d/NAME.db by
 * name; of a folder: its NAME.db by name. n = 0 when there is none. -1 when a folder cannot be
 * read. */
int store_list_files(struct store_files *out, const char *path);
void store_files_free(struct store_files *files);

/* The file of worker `index` of `count` (from 0): x.d/0007-of-0064.db. The caller frees. */
char *store_shard_path(const char *path, int index, int count);

/* What a merge brought: rows that were not there, and samples that came out another way. */
struct store_merge_counts {
    int64_t tasks, attempts, samples, nondeterministic;
};
/* Adds everything of the database `from` to `into`, which is open for writing, in one transaction.
 * Idempotent: rows that are there already stay, but for what was going on when they were merged (a
 * running attempt) and has ended since. A finished sample replaces a failed one. A finished sample
 * that is there with another hash is left out and recorded as an event `nondeterministic`. A task
 * belongs to the newest experiment of all files that have it. An empty file is nothing to add.
 * ERR_DATA: `from` is not a results database, or of a newer version than `into`; then nothing of it
 * is added and `into` can be used on. */
int store_merge(struct store *into, const char *from, struct store_merge_counts *counts);

/* ---- what a run records. Ids are row ids; -1 with an error on failure. ---- */
struct store_experiment {
    const char *name, *config_path, *config_text, *resolved_json, *version, *git_commit;
    bool git_dirty;
};
int64_t store_put_experiment(struct store *s, const struct store_experiment *e);

struct store_environment { /* "" and 0 where it does not apply */
    const char *host, *os, *cpu, *cpu_isa, *gpu, *driver, *cuda;
    const char *compute_capability; /* "9.0" */
    int n_threads;
    int64_t memory_bytes, gpu_memory_bytes;
};
int64_t store_put_environment(struct store *s, const struct store_environment *e);

struct store_run {
    int64_t experiment_id, environment_id;
    const char *argv, *host;
    const char *slurm_job_id, *slurm_array_job_id, *slurm_array_task_id; /* "" outside Slurm */
    int restart_count, mpi_size, pid;
};
/* Attempts that are still "running" belong to a run that was cut off: they become "lost". */
int64_t store_begin_run(struct store *s, const struct store_run *r);
int store_end_run(struct store *s, int64_t run_id, int exit_code);

/* One rank of a run: who is running where. */
struct store_worker {
    int64_t run_id, environment_id; /* environment_id 0: not known yet              */
    int rank, pid;
    const char *host, *device;          /* "n3", "cuda"                                 */
    const char *state;                  /* "loading", "running", "idle", "ended", "lost" */
    int task_index;                     /* a task it works on; -1: none (NULL in the row) */
    int64_t n_done;                     /* samples it finished in this run              */
    double busy_s, wall_s;              /* generating; since its start                  */
    int64_t sent_bytes, received_bytes; /* over MPI                                     */
};
/* Inserts or updates the row of (run_id, rank); seen_at becomes now. */
int store_put_worker(struct store *s, const struct store_worker *w);

struct store_model {
    const char *path, *arch, *fingerprint, *dtype;
    int64_t n_params, weight_bytes;
};
/* One row per fingerprint and dtype. */
int64_t store_put_model(struct store *s, const struct store_model *m);

struct store_prompts {
    const char *source, *fingerprint;
    int n_prompts;
    int64_t n_tokens;
};
int64_t store_put_prompts(struct store *s, const struct store_prompts *p);

/* The task's row, made when its key is new; otherwise the old row with this experiment, index,
 * label and paths, which are no part of a key. Every key of config.h that a task can differ in is a
 * column, named with underscores (engine_attention, sampling_temperature, ...), filled from
 * settings_json (an object keyed by path; "" and null become NULL). */
struct store_task {
    int64_t experiment_id, model_id, prompts_id;
    const char *key, *label, *settings_json;
    int task_index, replication, n_samples;
};
int64_t store_put_task(struct store *s, const struct store_task *t);

/* One try at a task by one rank of this run. */
struct store_attempt {
    int64_t task_id, run_id;
    int rank;
    const char *engine_used;    /* "fast", "standard"                                 */
    const char *attention_used; /* "flash", "eager"                                   */
    const char *device_used;    /* "cpu"                                              */
    const char *dtype_used;
    const char *decision_reason; /* "auto: CPU has flash attention (avx512bf16)"       */
    const char *degraded_reason; /* "" when everything asked for was there             */
    bool degraded;
    bool shared_batch; /* other tasks ran in the same batches                */
};
int64_t store_begin_attempt(struct store *s, const struct store_attempt *a);

/* Percentiles in seconds; NaN where there are no values. */
struct store_percentiles {
    double p50, p90, p99;
};
struct store_attempt_end {
    const char *state; /* "done", "failed", "stopped" */
    const char *error; /* "" when done                */
    double load_s, init_s, run_s;
    int64_t prompt_tokens, cached_tokens, output_tokens;
    int n_samples, n_failed;
    double output_tps, total_tps; /* over run_s */
    struct store_percentiles ttft_s, tpot_s, e2e_s;
    int kv_blocks, kv_blocks_peak;
    int64_t preemptions, memory_peak_bytes, steps;
    double batch_seqs_mean;
};
int store_end_attempt(struct store *s, int64_t attempt_id, const struct store_attempt_end *end);

struct store_sample {
    int64_t task_id, attempt_id;
    const char *key; /* task_sample_key */
    int prompt_index, sample_index;
    int n_prompt_tokens, n_output_tokens, n_cached_tokens, n_preemptions;
    const char *prompt, *text; /* may be NULL (token ids only) */
    const int *ids;            /* [n_output_tokens]            */
    const char *finish_reason; /* "stop", "length"; "error" with `error` set */
    const char *output_sha256; /* of the ids as int32 little-endian; "" on error */
    const char *error;
    double queued_s, ttft_s, tpot_s, e2e_s;
};
/* Adds a finished sample, in the place of an earlier failure of the same key. A sample that is
 * there already with the same hash is left alone; with another hash it is left alone and an event
 * `nondeterministic` is recorded (`error` when it failed this time), with a warning. */
int store_put_sample(struct store *s, const struct store_sample *sample);

/* kind: "fallback", "preempted", "resume", "signal", "error", "nondeterministic".
 * attempt_id may be 0. */
int store_put_event(struct store *s, int64_t run_id, int64_t attempt_id, const char *kind,
                    const char *detail);

/* One row of the engine's state over time (every few seconds). */
struct store_tick {
    int64_t run_id;
    double t_s; /* since the run began */
    int n_running, n_waiting, kv_used, kv_cached, kv_blocks;
    double prompt_tps, output_tps;
    int64_t done, total;
};
int store_put_tick(struct store *s, const struct store_tick *tick);

/* One measured row of `quire bench`. NaN: not known, NULL in the row. */
struct store_benchmark {
    int64_t environment_id;
    const char *command;            /* as it was given                                          */
    const char *bench;              /* "attention", "prefill", "decode", "engine"               */
    const char *shape, *kernel;     /* "B16 H12 S64 D64", "flash"                               */
    const char *dtype, *cache;      /* cache: "warm", "cold", or ""                             */
    const char *state, *note;       /* "ok", "wrong", "failed", "not available", and why        */
    double latency_s, p10_s, p90_s; /* of one call or step                                      */
    double tokens_per_s;
    double tflops, peak_share;    /* of the largest product measured in the same run          */
    double gbps, bandwidth_share; /* of reading, measured in the same run                     */
    double roofline_share;        /* the least time that these allow over latency_s           */
    double memory_bytes, error, ratio; /* ratio: latency_s over that of the fastest at this shape */
    const char *version, *git_commit;
    bool git_dirty;
};
int store_put_benchmark(struct store *s, const struct store_benchmark *b);

/* ---- what a resumed run asks ---- */
/* Marks in done[n_prompts * n_per_prompt] (prompt-major) the samples of a task that are finished
 * without an error, and clears no mark, so that several files can be asked one after the other.
 * Returns how many it marked that were not, 0 for a task that is not there, -1 on failure. */
int store_find_done(struct store *s, const char *task_key, bool *done, int n_prompts,
                    int n_per_prompt);

/* ---- reading ---- */
/* Runs one read-only statement and calls row() with the column names (once, values NULL) and then
 * with each row's values as text (NULL for SQL NULL). is_number tells which values of this row are
 * numbers; real numbers come with all the digits that they need to be read back. All of it is
 * borrowed for the call. A result other than 0 ends the query, which then fails with the error that
 * row() set. ERR_CONFIG when the statement is wrong, is not one, or does not only read.
 * Statements can also use stddev(x), the standard deviation of a sample (NULL for fewer than two).
 */
typedef int (*store_row_fn)(void *user, int n_columns, const char *const *names,
                            const char *const *values, const bool *is_number);
int store_query(struct store *s, const char *sql, store_row_fn row, void *user);

#endif
