/* test_store_fence.c - who may write: attempts of a requeued job, strangers, and file systems that
 * are not what they should be. Those are played by a seccomp filter, which gives a system call
 * another outcome in a child process.
 */
#include "runner/store_file.h"
#include "tests/store_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define JOB              "1234"
#define NFS              "0x6969"
#define PRETEND_VARIABLE "QUIRE_TEST_FS_TYPE"

/* ---- helpers ---- */

static int open_as(struct store **s, const char *path, const char *job, int restart_count)
{
    return store_open_as(s, path, &(struct store_owner){job, restart_count});
}

/* Refused with the name of the process that writes: this one. */
static void assert_stranger_refused(const char *path, const char *job, int restart_count)
{
    struct store *s;
    char host[256] = "", *who;
    gethostname(host, sizeof(host) - 1);
    who = xasprintf("process %d on %s", (int)getpid(), host);
    assert_int_equal(open_as(&s, path, job, restart_count), -1);
    assert_error(ERR_RESOURCE, who);
    assert_contains(err_get(), "has been writing to it since 2");
    free(who);
}

static int64_t put_task(struct fixture *f, int index)
{
    return fixture_task(
        f, (struct fixture_task){.index = index, .attention = "flash", .n_samples = 9});
}

static bool has_file(const char *path, const char *suffix)
{
    char *name = xasprintf("%s%s", path, suffix);
    bool there = file_exists(name);
    free(name);
    return there;
}

/* ---- attempts of one job ---- */

static void an_older_attempt_keeps_nothing_once_a_newer_one_writes(void **state)
{
    (void)state;
    char *path = test_path("fence.db");
    struct fixture older, newer;
    fixture_open_as(&older, path, JOB, 0);
    int64_t task = put_task(&older, 0), attempt = fixture_attempt(&older, task, "flash", "");
    assert_int_equal(fixture_sample(&older, task, attempt, 0, "aa", ""), 0);
    assert_int_equal(store_commit(older.store), 0);

    fixture_open_as(&newer, path, JOB, 1);
    assert_rows(newer.store, "SELECT state FROM attempts", "lost\n");
    assert_int_equal(store_commit(newer.store), 0);

    assert_int_equal(fixture_sample(&older, task, attempt, 1, "aa", ""), 0);
    assert_int_equal(store_commit(older.store), -1);
    char *message = xasprintf("job 1234 was requeued: attempt 1 of it writes to %s now; this one, "
                              "attempt 0, stops",
                              path);
    assert_error(ERR_STOPPED, message);
    /* From here on every call says so. */
    assert_int_equal(fixture_sample(&older, task, attempt, 2, "aa", ""), -1);
    assert_error(ERR_STOPPED, message);
    assert_int_equal(store_close(older.store), -1);
    assert_error(ERR_STOPPED, message);

    assert_int_equal(fixture_sample(&newer, task, attempt, 3, "aa", ""), 0);
    assert_int_equal(store_commit(newer.store), 0);
    assert_rows(newer.store, "SELECT prompt_index FROM samples ORDER BY 1", "0\n3\n");
    fixture_close(&newer);
    assert_false(has_file(path, ".lock"));
    assert_false(has_file(path, "-wal"));
    free(message);
    free(path);
}

static void an_older_attempt_is_not_let_in(void **state)
{
    (void)state;
    char *path = test_path("late.db");
    struct fixture newer;
    struct store *s;
    fixture_open_as(&newer, path, JOB, 2);
    assert_int_equal(open_as(&s, path, JOB, 1), -1);
    assert_error(ERR_STOPPED, "attempt 2 of it writes to");
    assert_stranger_refused(path, JOB, 2);
    fixture_close(&newer);
    free(path);
}

static void strangers_are_refused_whichever_attempt_writes(void **state)
{
    (void)state;
    static const char *const strangers[] = {"", "1235", "1234_7", "123"};
    char *path = test_path("strangers.db");
    struct fixture attempt[3];
    for (int i = 0; i < 3; i++) {
        fixture_open_as(&attempt[i], path, JOB, i);
        assert_int_equal(store_commit(attempt[i].store), 0);
        for (size_t j = 0; j < ARRAY_LEN(strangers); j++)
            assert_stranger_refused(path, strangers[j], 5);
        assert_stranger_refused(path, JOB, i);
    }
    /* The newest one ends first: those that it displaced still have the file open. */
    fixture_close(&attempt[2]);
    assert_stranger_refused(path, "", 0);
    assert_int_equal(store_close(attempt[0].store), 0); /* it has nothing to commit */
    assert_stranger_refused(path, "", 0);
    assert_int_equal(store_close(attempt[1].store), 0);
    assert_int_equal(has_file(path, ".lock"), getenv(PRETEND_VARIABLE) != NULL);
    struct fixture next;
    fixture_open_as(&next, path, "", 0);
    fixture_close(&next);
    free(path);
}

/* An older attempt in a process of its own, and what it writes. */
struct older {
    struct fixture f;
    int64_t task, attempt;
    int ready; /* the newer one waits until this is written to */
};

static void say_ready(const struct older *o)
{
    if (write(o->ready, "!", 1) != 1)
        _exit(1);
}

static int add_sample(struct older *o, int prompt)
{
    return fixture_sample(&o->f, o->task, o->attempt, prompt, "aa", "");
}

/* Opens the database as a newer attempt, while an older one runs `work`; that one must be stopped
 * by it, which is what `work` returns. */
static void take_over(struct fixture *newer, const char *path, bool (*work)(struct older *))
{
    int ready[2], status;
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        struct older o = {.ready = ready[1]};
        fixture_open_as(&o.f, path, JOB, 0);
        o.task = put_task(&o.f, 0);
        o.attempt = fixture_attempt(&o.f, o.task, "flash", "");
        bool stopped = store_commit(o.f.store) == 0 && work(&o);
        _exit(stopped && err_get_kind() == ERR_STOPPED ? 0 : 1);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    fixture_open_as(newer, path, JOB, 1);
    assert_int_equal(store_commit(newer->store), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    close(ready[0]);
    close(ready[1]);
}

/* The newer one can only wait for this transaction; the next one is not kept. */
static bool finish_a_transaction(struct older *o)
{
    bool begun = add_sample(o, 0) == 0;
    say_ready(o);
    usleep(300000);
    bool kept = store_commit(o->f.store) == 0;
    usleep(300000);
    return begun && kept && (add_sample(o, 1) != 0 || store_commit(o->f.store) != 0);
}

static void an_attempt_takes_over_from_one_in_the_middle_of_a_transaction(void **state)
{
    (void)state;
    char *path = test_path("middle.db");
    struct fixture newer;
    take_over(&newer, path, finish_a_transaction);
    assert_rows(newer.store, "SELECT prompt_index FROM samples", "0\n");
    fixture_close(&newer);
    free(path);
}

/* It holds the database but for the moment between two transactions: too short to be met by one
 * who looks from time to time. */
static bool begin_again_and_again(struct older *o)
{
    bool stopped = false;
    say_ready(o);
    for (int i = 0; i < 40 && !stopped; i++) {
        stopped = add_sample(o, i) != 0;
        usleep(100000);
        stopped = stopped || store_commit(o->f.store) != 0;
    }
    return stopped;
}

static void a_writer_in_transactions_without_end_gives_way_to_a_newer_attempt(void **state)
{
    (void)state;
    char *path = test_path("busy.db");
    struct fixture newer;
    take_over(&newer, path, begin_again_and_again);
    fixture_close(&newer);
    free(path);
}

static void a_writer_that_lost_its_lock_stops_at_its_next_commit(void **state)
{
    (void)state;
    char *path = test_path("lost-lock.db"), *lock = xasprintf("%s.lock", path);
    struct fixture first, second;
    fixture_open_as(&first, path, "", 0);
    int64_t task = put_task(&first, 0), attempt = fixture_attempt(&first, task, "flash", "");
    assert_int_equal(store_commit(first.store), 0);
    assert_int_equal(unlink(lock), 0); /* as a file server forgets it */
    fixture_open_as(&second, path, "77", 0);
    assert_int_equal(store_commit(second.store), 0);
    assert_int_equal(fixture_sample(&first, task, attempt, 0, "aa", ""), 0);
    assert_int_equal(store_commit(first.store), -1);
    assert_error(ERR_STOPPED, "this one, which lost its lock, stops");
    assert_int_equal(store_close(first.store), -1);
    assert_rows(second.store, "SELECT count(*) FROM samples", "0\n");
    fixture_close(&second);
    free(lock);
    free(path);
}

/* ---- file systems ---- */

static void a_network_file_system_gets_a_rollback_journal(void **state)
{
    (void)state;
    char *path = test_path("nfs.db");
    struct fixture f;
    assert_int_equal(setenv(PRETEND_VARIABLE, NFS, 1), 0);
    fixture_open(&f, path);
    assert_int_equal(store_commit(f.store), 0);
    assert_true(has_file(path, "-journal")); /* TRUNCATE keeps it */
    assert_false(has_file(path, "-wal"));
    assert_false(has_file(path, ".probe"));
    fixture_close(&f);
    assert_true(has_file(path, ".lock"));
    /* A file that was left with a log gets a rollback journal, too. */
    assert_int_equal(unsetenv(PRETEND_VARIABLE), 0);
    pid_t child = fork();
    if (child == 0) {
        fixture_open(&f, path);
        _exit(store_commit(f.store) == 0 && has_file(path, "-wal") ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_true(has_file(path, "-wal"));
    assert_int_equal(setenv(PRETEND_VARIABLE, NFS, 1), 0);
    fixture_open(&f, path);
    assert_false(has_file(path, "-wal"));
    assert_rows(f.store, "SELECT count(*) FROM runs", "3\n");
    fixture_close(&f);
    assert_int_equal(unsetenv(PRETEND_VARIABLE), 0);
    free(path);
}

static void attempts_are_fenced_on_a_network_file_system_as_well(void **state)
{
    (void)state;
    assert_int_equal(setenv(PRETEND_VARIABLE, NFS, 1), 0);
    an_older_attempt_is_not_let_in(state);
    strangers_are_refused_whichever_attempt_writes(state);
    assert_int_equal(unsetenv(PRETEND_VARIABLE), 0);
}

/* Which calls of fcntl or mmap come out as `error` (0: they succeed without doing anything). */
struct outcome {
    int call, argument; /* the system call; which of its arguments has ... */
    uint32_t value;     /* ... this value                                  */
    int error;
};

/* From here on in this process. False where that is not possible. */
static bool play(struct outcome o)
{
    uint32_t at = (uint32_t)(offsetof(struct seccomp_data, args) + (size_t)o.argument * 8);
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)o.call, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, o.value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)o.error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {ARRAY_LEN(filter), filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

enum { EXIT_NOT_PLAYED = 3 };

/* Opens a database on such a file system, in a child. Its error, or "wal" or "truncate" for the
 * journal that it chose. Skips the test where calls cannot be given outcomes. The caller frees. */
static char *open_on(const char *path, struct outcome outcome)
{
    char text[ERR_MAX_LEN] = "";
    int report[2], status;
    assert_int_equal(pipe(report), 0);
    pid_t child = fork();
    if (child == 0) {
        struct store *s;
        if (!play(outcome))
            _exit(EXIT_NOT_PLAYED);
        bool opened = store_open(&s, path, STORE_WRITE) == 0;
        const char *answer = has_file(path, "-wal") ? "wal" : "truncate";
        if (!opened)
            answer = err_get();
        _exit(write(report[1], answer, strlen(answer)) > 0 ? 0 : 1);
    }
    close(report[1]);
    ssize_t n = read(report[0], text, sizeof(text) - 1);
    close(report[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_NOT_PLAYED) {
        print_message("[ MISSING  ] seccomp filters are not allowed here\n");
        skip();
    }
    assert_int_equal(status, 0);
    assert_true(n > 0);
    return xstrdup(text);
}

static void a_file_system_that_cannot_lock_is_named(void **state)
{
    (void)state;
    static const struct outcome outcomes[] = {
        {SYS_fcntl, 1, F_OFD_SETLK, ENOLCK},
        {SYS_fcntl, 1, F_OFD_SETLK, EOPNOTSUPP},
        {SYS_fcntl, 1, F_OFD_SETLK, 0}, /* granted to everybody */
    };
    static const char *const reasons[] = {"No locks available", "Operation not supported",
                                          "grants one lock twice"};
    char *path = test_path("no-locks.db");
    for (size_t i = 0; i < ARRAY_LEN(outcomes); i++) {
        char *answer = open_on(path, outcomes[i]);
        assert_contains(answer, "no-locks.db.lock: cannot be locked: ");
        assert_contains(answer, reasons[i]);
        assert_contains(answer, "results need a file system with file locks");
        free(answer);
    }
    assert_false(has_file(path, ""));
    free(path);
}

static void without_shared_memory_there_is_no_log(void **state)
{
    (void)state;
    const struct outcome outcome = {SYS_mmap, 3, MAP_SHARED, ENODEV};
    char *path = test_path("no-shared-memory.db");
    char *answer = open_on(path, outcome);
    assert_string_equal(answer, "truncate");
    assert_false(has_file(path, ".probe"));
    assert_false(has_file(path, ".probe-wal"));
    assert_false(has_file(path, ".probe-shm"));
    free(answer);
    /* The same without that outcome: an outcome that no call has. */
    answer = open_on(path, (struct outcome){SYS_mmap, 3, UINT32_MAX, ENODEV});
    assert_string_equal(answer, "wal");
    assert_false(has_file(path, ".probe"));
    free(answer);
    free(path);
}

int main(void)
{
    log_set_level("quiet");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_older_attempt_keeps_nothing_once_a_newer_one_writes),
        cmocka_unit_test(an_older_attempt_is_not_let_in),
        cmocka_unit_test(strangers_are_refused_whichever_attempt_writes),
        cmocka_unit_test(an_attempt_takes_over_from_one_in_the_middle_of_a_transaction),
        cmocka_unit_test(a_writer_in_transactions_without_end_gives_way_to_a_newer_attempt),
        cmocka_unit_test(a_writer_that_lost_its_lock_stops_at_its_next_commit),
        cmocka_unit_test(a_network_file_system_gets_a_rollback_journal),
        cmocka_unit_test(attempts_are_fenced_on_a_network_file_system_as_well),
        cmocka_unit_test(a_file_system_that_cannot_lock_is_named),
        cmocka_unit_test(without_shared_memory_there_is_no_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
