/* test_store_file.c - the file of a store: what it is opened on, who may write, what survives.
 *
 * sqlite3.h stands for another program that uses the file.
 */
#include "runner/store_file.h"
#include "tests/store_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define USER_VERSION_AT   60 /* byte of a database file: www.sqlite.org/fileformat2.html */
#define APPLICATION_ID_AT 68

/* ---- helpers ---- */

static void run_sql(const char *path, const char *sql)
{
    sqlite3 *db;
    char *error = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &error) != SQLITE_OK)
        fail_msg("%s: %s", sql, error);
    sqlite3_close(db);
}

/* Overwrites the last byte of a big-endian number in the file. */
static void patch(const char *path, long at, unsigned char value)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at + 3, SEEK_SET), 0);
    assert_int_equal(fputc(value, f), value);
    assert_int_equal(fclose(f), 0);
}

/* A database with one task of 2 samples, of which the first is there. */
static char *make_database(const char *name)
{
    char *path = test_path(name);
    struct fixture f;
    fixture_open(&f, path);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 2});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    assert_int_equal(fixture_sample(&f, task, attempt, 0, "aa", ""), 0);
    fixture_close(&f);
    return path;
}

static void assert_file_exists(const char *path, const char *suffix, bool expected)
{
    char *name = xasprintf("%s%s", path, suffix);
    if (file_exists(name) != expected)
        fail_msg("%s %s", name, expected ? "is missing" : "is still there");
    free(name);
}

static void assert_refused(const char *path, enum store_mode mode, enum err_kind kind,
                           const char *message)
{
    struct store *s;
    assert_int_equal(store_open(&s, path, mode), -1);
    assert_error(kind, message);
    assert_contains(err_get(), path);
}

/* Mounts a file system on a folder of test_dir(), in a mount namespace of this process, so that it
 * is gone with it whatever happens. NULL, with a line, where that is not allowed. */
static char *mount_at(const char *name, const char *type, const char *options)
{
    static bool is_private;
    char *folder = test_path(name);
    if (!is_private)
        is_private =
            unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    if (is_private && dir_make(folder) == 0 && mount("none", folder, type, 0, options) == 0)
        return folder;
    print_message("[ MISSING  ] a %s cannot be mounted: %s\n", type, strerror(errno));
    free(folder);
    return NULL;
}

static void unmount(char *folder)
{
    assert_int_equal(umount2(folder, MNT_DETACH), 0);
    free(folder);
}

/* ---- which files are opened ---- */

static void a_closed_database_is_one_file(void **state)
{
    (void)state;
    char *path = test_path("new/folder/one.db");
    struct fixture f;
    fixture_open(&f, path);
    assert_file_exists(path, "-wal", true);
    assert_file_exists(path, ".lock", true);
    fixture_close(&f);
    assert_file_exists(path, "", true);
    assert_file_exists(path, "-journal", false);
    assert_file_exists(path, "-wal", false);
    assert_file_exists(path, "-shm", false);
    assert_file_exists(path, ".lock", false);
    free(path);
}

static void a_file_that_is_no_database_is_refused_and_stays_as_it_is(void **state)
{
    (void)state;
    static const char text[] = "These are notes and no database, however long they are. "
                               "SQLite looks at the first hundred bytes of a file: here they are.";
    char *path = test_write_text("notes.db", text);
    assert_refused(path, STORE_READ, ERR_DATA, "file is not a database");
    assert_refused(path, STORE_WRITE, ERR_DATA, "file is not a database");
    char *after = file_read(path, NULL);
    assert_string_equal(after, text);
    assert_file_exists(path, ".lock", false);
    free(after);
    free(path);
}

static void the_database_of_another_program_is_refused(void **state)
{
    (void)state;
    char *path = test_path("other.db");
    run_sql(path, "CREATE TABLE recipes(name)");
    assert_refused(path, STORE_READ, ERR_DATA, "another program");
    assert_refused(path, STORE_WRITE, ERR_DATA, "another program");
    run_sql(path, "PRAGMA application_id = 252006673; DROP TABLE recipes");
    assert_refused(path, STORE_WRITE, ERR_DATA, "another program");
    free(path);
}

static void an_empty_file_can_be_written_but_not_read(void **state)
{
    (void)state;
    char *path = test_write_text("empty.db", "");
    assert_refused(path, STORE_READ, ERR_DATA, "an empty file");
    struct fixture f;
    fixture_open(&f, path);
    fixture_close(&f);
    struct store *s;
    assert_int_equal(store_open(&s, path, STORE_READ), 0);
    assert_rows(s, "SELECT name FROM experiments", "demo\n");
    assert_int_equal(store_close(s), 0);
    free(path);
    assert_refused("no/such/file.db", STORE_READ, ERR_DATA, "there is no such file");
}

static void a_folder_that_cannot_be_made_is_named(void **state)
{
    (void)state;
    char *file = test_write_text("a-file", "");
    char *path = test_path("a-file/results.db");
    struct store *s;
    assert_int_equal(store_open(&s, path, STORE_WRITE), -1);
    assert_error(ERR_RESOURCE, file);
    free(path);
    free(file);
}

static void a_damaged_database_is_bad_data(void **state)
{
    (void)state;
    char *path = make_database("damaged.db");
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    FILE *f = fopen(path, "r+b");
    assert_int_equal(fseek(f, 100, SEEK_SET), 0);
    for (long i = 100; i < st.st_size; i++)
        fputc(0xA5, f);
    fclose(f);
    assert_refused(path, STORE_READ, ERR_DATA, "malformed");
    assert_refused(path, STORE_WRITE, ERR_DATA, "malformed");
    free(path);
}

#define NOBODY 65534

/* Leaves the database as a killed run does: with a log, and here without what shared it. */
static void leave_log(const char *path)
{
    pid_t child = fork();
    if (child == 0) {
        struct fixture f;
        fixture_open(&f, path);
        _exit(store_commit(f.store) == 0 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_file_exists(path, "-wal", true);
    char *shared = xasprintf("%s-shm", path);
    assert_int_equal(unlink(shared), 0);
    free(shared);
}

static void a_log_that_cannot_be_read_is_named(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    char *path = test_path("logged.db");
    leave_log(path);
    assert_int_equal(chmod(test_dir(), 0755), 0);
    pid_t child = fork();
    if (child == 0) {
        struct store *s;
        bool refused = setuid(NOBODY) == 0 && store_open(&s, path, STORE_READ) != 0;
        _exit(refused && strstr(err_get(), "left a log") ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    free(path);
}

/* ---- versions ---- */

static void a_newer_database_is_read_but_not_written(void **state)
{
    (void)state;
    char *path = make_database("newer.db");
    patch(path, USER_VERSION_AT, 99);
    assert_refused(path, STORE_WRITE, ERR_DATA, "written by a newer quire (schema 99");
    struct store *s;
    assert_int_equal(store_open(&s, path, STORE_READ), 0);
    assert_rows(s, "SELECT text FROM samples", "It is 2.\n");
    assert_int_equal(store_close(s), 0);
    free(path);
}

static void a_new_key_becomes_a_column_of_an_old_database(void **state)
{
    (void)state;
    if (sqlite3_libversion_number() < 3035000) {
        print_message("[ MISSING  ] this SQLite cannot drop a column\n");
        skip();
    }
    char *path = make_database("columns.db");
    run_sql(path, "DROP VIEW attention_speedup;"
                  "ALTER TABLE tasks DROP COLUMN sampling_top_p;"
                  "ALTER TABLE tasks DROP COLUMN sampling_temperature;");
    struct fixture f;
    fixture_open(&f, path);
    fixture_task(&f, (struct fixture_task){.index = 1, .attention = "eager", .temperature = 0.5});
    assert_rows(f.store, "SELECT key, sampling_temperature, engine_attention FROM tasks",
                "task-0|NULL|flash\ntask-1|0.5|eager\n");
    assert_rows(f.store, "SELECT count(*) FROM attention_speedup", "0\n");
    fixture_close(&f);
    free(path);
}

static void a_migration_that_fails_leaves_the_file_as_it_was(void **state)
{
    (void)state;
    char *path = test_path("half.db");
    run_sql(path, "PRAGMA application_id = 1903520114; CREATE TABLE samples(mine)");
    assert_refused(path, STORE_WRITE, ERR_DATA, "table samples already exists");
    sqlite3 *db;
    sqlite3_stmt *stmt;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(
        sqlite3_prepare_v2(db, "SELECT group_concat(name) FROM sqlite_master", -1, &stmt, NULL),
        SQLITE_OK);
    assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
    assert_string_equal((const char *)sqlite3_column_text(stmt, 0), "samples");
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    free(path);
}

static void the_stored_schema_has_nothing_that_sqlite_3_26_cannot_read(void **state)
{
    (void)state;
    char *path = make_database("schema.db");
    struct store *s;
    assert_int_equal(store_open(&s, path, STORE_READ), 0);
    assert_rows(s,
                "SELECT name FROM sqlite_master WHERE sql LIKE '%STRICT%' OR sql LIKE '%->%'"
                " OR sql LIKE '%GENERATED%' OR sql LIKE '%RETURNING%' OR sql LIKE '%FILTER%'"
                " OR sql LIKE '%MATERIALIZED%' OR sql LIKE '%iif(%'",
                "");
    assert_rows(s, "SELECT count(*) FROM sqlite_master WHERE type = 'table'", "13\n");
    assert_rows(s, "PRAGMA application_id", "1903520114\n");
    assert_int_equal(store_close(s), 0);
    free(path);
}

/* ---- one writer ---- */

static void a_second_writer_is_told_who_the_first_one_is(void **state)
{
    (void)state;
    char *path = test_path("writers.db"), *link_path = test_path("link.db");
    int ready[2];
    char byte, host[256] = "", *who;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        struct store *s;
        if (store_open(&s, path, STORE_WRITE) != 0 || write(ready[1], "!", 1) != 1)
            _exit(1);
        pause();
        _exit(0);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    gethostname(host, sizeof(host) - 1);
    who = xasprintf("process %d on %s has been writing to it since 2", (int)child, host);
    assert_refused(path, STORE_WRITE, ERR_RESOURCE, who);
    assert_int_equal(symlink("writers.db", link_path), 0);
    assert_refused(link_path, STORE_WRITE, ERR_RESOURCE, who);

    struct store *reader;
    assert_int_equal(store_open(&reader, path, STORE_READ), 0);
    assert_int_equal(store_close(reader), 0);

    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    struct fixture f;
    fixture_open(&f, path);
    assert_refused(path, STORE_WRITE, ERR_RESOURCE, "has been writing to it since");
    assert_rows(f.store, "SELECT count(*) FROM runs", "1\n");
    fixture_close(&f);
    close(ready[0]);
    close(ready[1]);
    free(who);
    free(link_path);
    free(path);
}

/* Locks, and proves that nobody else has the lock by owning a folder meanwhile. */
static void take_turns(const char *path, const char *folder)
{
    for (int turns = 0; turns < 50;) {
        struct store_lock *lock;
        if (store_lock_open(&lock, path, &(struct store_owner){.job = ""}) != 0)
            continue;
        if (mkdir(folder, 0777) != 0)
            _exit(1);
        if (rmdir(folder) != 0)
            _exit(1);
        store_lock_close(lock);
        turns++;
    }
    _exit(0);
}

static void writers_that_hurry_never_hold_the_lock_together(void **state)
{
    (void)state;
    char *path = test_path("turns.db"), *folder = test_path("turn");
    for (int i = 0; i < 4; i++) {
        pid_t child = fork();
        if (child == 0)
            take_turns(path, folder);
        assert_true(child > 0);
    }
    for (int i = 0; i < 4; i++) {
        int status;
        assert_true(wait(&status) > 0);
        assert_int_equal(status, 0);
    }
    free(folder);
    free(path);
}

/* ---- readers and journals ---- */

struct busy_reader {
    struct fixture *f;
    int64_t task, attempt;
    int n_rows;
};

/* Opens the database for writing, with one task. */
static struct busy_reader begin_task(struct fixture *f, const char *path)
{
    fixture_open(f, path);
    struct busy_reader r = {.f = f};
    r.task = fixture_task(f, (struct fixture_task){.attention = "flash", .n_samples = 40});
    r.attempt = fixture_attempt(f, r.task, "flash", "");
    assert_int_equal(store_commit(f->store), 0);
    return r;
}

/* What the query's callback writes keeps nobody waiting. */
static void read_slowly(struct store *reader, const char *sql, store_row_fn write,
                        struct busy_reader *r)
{
    double began = time_monotonic_s();
    assert_int_equal(store_query(reader, sql, write, r), 0);
    assert_true(time_monotonic_s() - began < 5);
}

static int write_while_reading(void *user, int n, const char *const *names,
                               const char *const *values, const bool *is_number)
{
    (void)n, (void)names, (void)is_number;
    struct busy_reader *r = user;
    if (!values)
        return 0;
    r->n_rows++;
    assert_int_equal(fixture_sample(r->f, r->task, r->attempt, r->n_rows + 1, "bb", ""), 0);
    assert_int_equal(store_commit(r->f->store), 0);
    return 0;
}

static void a_reader_and_the_writer_do_not_wait_for_each_other(void **state)
{
    (void)state;
    char *path = test_path("reader.db");
    struct fixture f;
    struct busy_reader r = begin_task(&f, path);
    for (int i = 0; i < 2; i++)
        assert_int_equal(fixture_sample(&f, r.task, r.attempt, i, "aa", ""), 0);
    assert_int_equal(store_commit(f.store), 0);
    struct store *reader;
    assert_int_equal(store_open(&reader, path, STORE_READ), 0);
    read_slowly(reader, "SELECT * FROM samples", write_while_reading, &r);
    assert_int_equal(r.n_rows, 2);
    assert_rows(reader, "SELECT count(*) FROM samples", "4\n");
    /* The writer ends first: the log stays for the reader, who ends it. */
    fixture_close(&f);
    assert_rows(reader, "SELECT count(*) FROM samples", "4\n");
    assert_int_equal(store_close(reader), 0);
    free(path);
}

/* More than the cache of SQLite, which would have to go into the file before the commit. */
static int write_much_while_reading(void *user, int n, const char *const *names,
                                    const char *const *values, const bool *is_number)
{
    (void)n, (void)names, (void)is_number;
    static char text[200000];
    struct busy_reader *r = user;
    memset(text, 'x', sizeof(text) - 1);
    for (int i = 0; i < 40 && values; i++, r->n_rows++) {
        char key[32];
        snprintf(key, sizeof(key), "long-%d", r->n_rows);
        const struct store_sample sample = {.task_id = r->task,
                                            .attempt_id = r->attempt,
                                            .key = key,
                                            .prompt_index = r->n_rows,
                                            .text = text,
                                            .finish_reason = "length",
                                            .output_sha256 = "aa"};
        assert_int_equal(store_put_sample(r->f->store, &sample), 0);
        assert_int_equal(store_try_commit(r->f->store), 0);
    }
    return 0;
}

static void a_reader_of_a_rollback_journal_only_puts_commits_off(void **state)
{
    (void)state;
    char *path = test_path("held-up.db");
    struct fixture f;
    assert_int_equal(setenv("QUIRE_TEST_FS_TYPE", "0x6969", 1), 0);
    struct busy_reader r = begin_task(&f, path);
    struct store *reader;
    assert_int_equal(store_open(&reader, path, STORE_READ), 0);
    read_slowly(reader, "SELECT * FROM tasks", write_much_while_reading, &r);
    assert_int_equal(r.n_rows, 40);
    fixture_close(&f);
    assert_rows(reader, "SELECT count(*), sum(length(text)) FROM samples", "40|7999960\n");
    assert_int_equal(store_close(reader), 0);
    assert_int_equal(unsetenv("QUIRE_TEST_FS_TYPE"), 0);
    free(path);
}

static void only_file_systems_of_one_machine_get_a_log(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t f_type;
        bool local;
    } cases[] = {
        {"ext4", 0xEF53, true},         {"xfs", 0x58465342, true},
        {"btrfs", 0x9123683E, true},    {"btrfs in a signed word", (int32_t)0x9123683E, true},
        {"tmpfs", 0x01021994, true},    {"overlayfs", 0x794C7630, true},
        {"nfs", 0x6969, false},         {"lustre", 0x0BD00BD0, false},
        {"gpfs", 0x47504653, false},    {"cifs", 0xFF534D42, false},
        {"smb2", 0xFE534D42, false},    {"fuse", 0x65735546, false},
        {"beegfs", 0x19830326, false},  {"ceph", 0x00C36400, false},
        {"9p", 0x01021997, false},      {"afs", 0x5346414F, false},
        {"unknown", 0x12345678, false},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        if (store_fs_is_local(cases[i].f_type) != cases[i].local)
            fail_msg("%s is taken for %s", cases[i].name, cases[i].local ? "remote" : "local");
    assert_false(store_path_is_local("/no/such/folder"));
}

/* ---- crashes ---- */

#define CRASH_PROMPTS 1000
#define CRASHES       20
#define MAX_LIFE_US   40000

/* A run that does what is missing and says on the pipe how many samples it knows to be committed.
 * Ends well when it may; otherwise waits to be killed. */
static void run_in_child(const char *path, int acknowledged, bool may_end)
{
    struct fixture f;
    fixture_open(&f, path);
    bool done[CRASH_PROMPTS] = {false};
    int64_t task =
        fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = CRASH_PROMPTS});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    int n = store_find_done(f.store, "task-0", done, CRASH_PROMPTS, 1);
    for (int i = 0; i < CRASH_PROMPTS; i++) {
        if (done[i])
            continue;
        if (fixture_sample(&f, task, attempt, i, "aa", "") != 0)
            _exit(1);
        n++;
        if (i % 7 == 0 && (store_commit(f.store) != 0 ||
                           write(acknowledged, &n, sizeof(n)) != (ssize_t)sizeof(n)))
            _exit(1);
        usleep(200);
    }
    fixture_close(&f);
    if (!may_end)
        pause();
    _exit(0);
}

/* The last number on the pipe, or -1. */
static int read_last(int pipe_end)
{
    int n, last = -1;
    while (read(pipe_end, &n, sizeof(n)) == (ssize_t)sizeof(n))
        last = n;
    return last;
}

static int count_samples(const char *path)
{
    struct store *s;
    bool done[CRASH_PROMPTS] = {false};
    if (store_open(&s, path, STORE_READ) != 0)
        fail_msg("%s", err_get());
    assert_rows(s, "PRAGMA integrity_check", "ok\n");
    assert_rows(s, "PRAGMA foreign_key_check", "");
    assert_rows(s, "SELECT count(*) - count(DISTINCT prompt_index) FROM samples", "0\n");
    int n = store_find_done(s, "task-0", done, CRASH_PROMPTS, 1);
    assert_int_equal(store_close(s), 0);
    return n;
}

/* Kills a run at random times, again and again; nothing that was acknowledged may be missing. */
static void crash_and_resume(const char *path)
{
    int committed = 0;
    for (int i = 0; i <= CRASHES; i++) {
        bool last = i == CRASHES;
        int fd[2], status;
        assert_int_equal(pipe(fd), 0);
        pid_t child = fork();
        if (child == 0)
            run_in_child(path, fd[1], last);
        close(fd[1]);
        if (!last) {
            usleep((useconds_t)(mix64((uint64_t)i) % MAX_LIFE_US));
            assert_int_equal(kill(child, SIGKILL), 0);
        }
        committed = MAX(committed, read_last(fd[0]));
        close(fd[0]);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, last ? 0 : SIGKILL);
        /* Killed before its tables were committed, the first run leaves an empty file. */
        if (committed > 0)
            assert_true(count_samples(path) >= committed);
    }
    assert_int_equal(count_samples(path), CRASH_PROMPTS);
}

static void what_was_committed_survives_kills_at_random_times(void **state)
{
    (void)state;
    char *path = test_path("crash.db");
    crash_and_resume(path);
    free(path);
}

static void a_rollback_journal_survives_them_as_well(void **state)
{
    (void)state;
    char *folder = mount_at("ramfs", "ramfs", NULL);
    if (!folder)
        skip();
    char *path = path_join(folder, "crash.db");
    crash_and_resume(path);
    struct fixture f;
    fixture_open(&f, path);
    assert_file_exists(path, "-wal", false);
    assert_file_exists(path, "-journal", true);
    fixture_close(&f);
    assert_file_exists(path, ".lock", true); /* see store_file.c */
    free(path);
    unmount(folder);
}

/* ---- a full disk ---- */

/* Writes this many bytes, or as many as fit. */
static void fill(const char *path, size_t bytes)
{
    static const char block[4096];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    assert_true(fd >= 0);
    for (size_t n = 0; n < bytes && write(fd, block, sizeof(block)) > 0; n += sizeof(block))
        ;
    close(fd);
}

/* Puts samples with large texts until one is refused; returns how many were committed. */
static int put_until_full(struct fixture *f, int64_t task, int64_t attempt)
{
    static char text[50001];
    memset(text, 'x', sizeof(text) - 1);
    int n_committed = 0;
    for (int i = 0; i < 1000; i++) {
        char key[16];
        snprintf(key, sizeof(key), "key-%d", i);
        struct store_sample sample = {.task_id = task,
                                      .attempt_id = attempt,
                                      .key = key,
                                      .prompt_index = i,
                                      .text = text,
                                      .finish_reason = "stop",
                                      .output_sha256 = "aa",
                                      .error = ""};
        if (store_put_sample(f->store, &sample) != 0)
            return n_committed;
        if (i % 3 == 2) {
            if (store_commit(f->store) != 0)
                return n_committed;
            n_committed = i + 1;
        }
    }
    fail_msg("the disk never got full");
    return -1;
}

static void a_full_disk_is_reported_and_what_was_committed_stays(void **state)
{
    (void)state;
    char *folder = mount_at("small", "tmpfs", "size=3m");
    if (!folder)
        skip();
    char *path = path_join(folder, "full.db"), *filler = path_join(folder, "filler");
    struct fixture f;
    fixture_open(&f, path);
    fill(filler, 1 << 20);
    int64_t task = fixture_task(&f, (struct fixture_task){.attention = "flash", .n_samples = 1000});
    int64_t attempt = fixture_attempt(&f, task, "flash", "");
    assert_int_equal(store_commit(f.store), 0);
    int n_committed = put_until_full(&f, task, attempt);
    char *safe = xasprintf("%d samples of this run are committed and safe", n_committed);
    assert_true(n_committed > 0);
    assert_error(ERR_RESOURCE, path);
    assert_contains(err_get(), "full");
    assert_contains(err_get(), safe);
    /* From here on every call says so. */
    assert_int_equal(store_put_event(f.store, f.run, 0, "signal", ""), -1);
    assert_error(ERR_RESOURCE, safe);
    assert_int_equal(store_close(f.store), -1);
    assert_error(ERR_RESOURCE, safe);

    assert_int_equal(unlink(filler), 0);
    bool *done = xcalloc(1000, sizeof(*done));
    fixture_open(&f, path);
    assert_int_equal(store_find_done(f.store, "task-0", done, 1000, 1), n_committed);
    assert_rows(f.store, "PRAGMA integrity_check", "ok\n");
    fixture_close(&f);
    free(done);
    free(safe);
    free(filler);
    free(path);
    unmount(folder);
}

static void a_database_is_not_begun_on_a_full_disk(void **state)
{
    (void)state;
    char *folder = mount_at("full", "tmpfs", "size=256k");
    if (!folder)
        skip();
    char *path = path_join(folder, "none.db"), *filler = path_join(folder, "filler");
    fill(filler, 1 << 20);
    assert_refused(path, STORE_WRITE, ERR_RESOURCE, "cannot");
    assert_int_equal(truncate(filler, 192 << 10), 0);
    assert_refused(path, STORE_WRITE, ERR_RESOURCE, "full");
    free(filler);
    free(path);
    unmount(folder);
}

int main(void)
{
    log_set_level("quiet");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_closed_database_is_one_file),
        cmocka_unit_test(a_file_that_is_no_database_is_refused_and_stays_as_it_is),
        cmocka_unit_test(the_database_of_another_program_is_refused),
        cmocka_unit_test(an_empty_file_can_be_written_but_not_read),
        cmocka_unit_test(a_folder_that_cannot_be_made_is_named),
        cmocka_unit_test(a_damaged_database_is_bad_data),
        cmocka_unit_test(a_log_that_cannot_be_read_is_named),
        cmocka_unit_test(a_newer_database_is_read_but_not_written),
        cmocka_unit_test(a_new_key_becomes_a_column_of_an_old_database),
        cmocka_unit_test(a_migration_that_fails_leaves_the_file_as_it_was),
        cmocka_unit_test(the_stored_schema_has_nothing_that_sqlite_3_26_cannot_read),
        cmocka_unit_test(a_second_writer_is_told_who_the_first_one_is),
        cmocka_unit_test(writers_that_hurry_never_hold_the_lock_together),
        cmocka_unit_test(a_reader_and_the_writer_do_not_wait_for_each_other),
        cmocka_unit_test(a_reader_of_a_rollback_journal_only_puts_commits_off),
        cmocka_unit_test(only_file_systems_of_one_machine_get_a_log),
        cmocka_unit_test(what_was_committed_survives_kills_at_random_times),
        cmocka_unit_test(a_rollback_journal_survives_them_as_well),
        cmocka_unit_test(a_full_disk_is_reported_and_what_was_committed_stays),
        cmocka_unit_test(a_database_is_not_begun_on_a_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
