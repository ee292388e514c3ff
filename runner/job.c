/* job.c - see job.h.
 *
 * squeue needs the controller, which can be busy, restarting or behind a cut network, and knows
 * nothing any more of a job that it lost. None of that is this job's failure, so every such answer
 * is "not known". (slurm_load_job would ask from inside the process, but binds it to one version of
 * libslurm.)
 */
#include "runner/job.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SQUEUE_SECONDS 5.0
#define KILL_SECONDS   0.5 /* from SIGKILL to the end; only a hanging file system needs longer */
#define MAX_ANSWER     64  /* bytes; a time has 19 */

static bool find_number(int64_t *out, const char *variable)
{
    const char *text = getenv(variable);
    return text && parse_int64(out, text);
}

/* ---- asking squeue ---- */

static bool is_for_squeue(const char *variable)
{
    static const char *const names[] = {"SQUEUE_", "SLURM_TIME_FORMAT=", "SLURM_CLUSTERS="};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strncmp(variable, names[i], strlen(names[i])) == 0)
            return true;
    return false;
}

/* The environment without what changes the form of squeue's answer. The strings are borrowed; the
 * caller frees the array. */
static char **make_environment(void)
{
    size_t n = 0, kept = 0;
    while (environ[n])
        n++;
    char **out = xcalloc(n + 1, sizeof(*out));
    for (size_t i = 0; i < n; i++)
        if (!is_for_squeue(environ[i]))
            out[kept++] = environ[i];
    return out;
}

/* Starts argv with its output going to `output`, in a process group of its own, so that what it
 * starts itself can be killed with it. Returns 0 or an errno. */
static int start(pid_t *pid, char *const *argv, int output)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, preset;
    sigemptyset(&none);
    sigemptyset(&preset);
    sigaddset(&preset, SIGPIPE);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
                                              POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &preset);
    char **environment = make_environment();
    int rc = posix_spawnp(pid, argv[0], &files, &attributes, argv, environment);
    free(environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    return rc;
}

/* Reads up to the end or until time_monotonic_s() is deadline_s; false when it was not the end. */
static bool read_until(int fd, char answer[MAX_ANSWER], double deadline_s)
{
    size_t n = 0;
    for (;;) {
        double left_s = deadline_s - time_monotonic_s();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int ready = left_s > 0 ? poll(&p, 1, (int)(1000 * left_s) + 1) : 0;
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return false;
        /* The last byte stays 0; an answer that is too long is no time anyway. */
        ssize_t got = read(fd, answer + n, MAX_ANSWER - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got == 0;
        n += (size_t)got;
    }
}

/* Whether the process ended before deadline_s; then *status is waitpid's. */
static bool wait_until(pid_t pid, int *status, double deadline_s)
{
    static const struct timespec pause = {.tv_nsec = 5000000};
    for (;;) {
        pid_t ended = waitpid(pid, status, WNOHANG);
        if (ended == pid)
            return true;
        if ((ended < 0 && errno != EINTR) || time_monotonic_s() > deadline_s)
            return false;
        nanosleep(&pause, NULL);
    }
}

/* Runs argv for at most SQUEUE_SECONDS. False, with the reason in the log, unless it ended well. */
static bool ask(char answer[MAX_ANSWER], char *const *argv)
{
    double deadline_s = time_monotonic_s() + SQUEUE_SECONDS;
    int ends[2], status = 0;
    pid_t pid;
    if (pipe2(ends, O_CLOEXEC) != 0) {
        log_debug("%s cannot be asked: %s", argv[0], strerror(errno));
        return false;
    }
    int rc = start(&pid, argv, ends[1]);
    close(ends[1]);
    if (rc != 0) {
        close(ends[0]);
        log_debug("%s cannot be started: %s", argv[0], strerror(rc));
        return false;
    }
    bool ended = read_until(ends[0], answer, deadline_s);
    close(ends[0]); /* so that a squeue that has more to say ends, too */
    ended = ended && wait_until(pid, &status, deadline_s);
    if (!ended) {
        kill(-pid, SIGKILL);
        wait_until(pid, &status, time_monotonic_s() + KILL_SECONDS);
        log_debug("%s gave no answer in %.0f s", argv[0], SQUEUE_SECONDS);
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        log_debug("%s failed (status %d)", argv[0], status);
        ended = false;
    }
    return ended;
}

/* "2026-01-31T10:05:00" of the local time zone; 0 when it is something else, as "N/A". */
static int64_t parse_time(char *text)
{
    struct tm local = {.tm_isdst = -1};
    text[strcspn(text, "\n")] = '\0';
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &local);
    time_t at = end && !*end ? mktime(&local) : 0;
    return MAX(at, 0);
}

/* "1234_7" for a task of an array: one of its tasks has the array's own id, with which squeue would
 * answer for all of them. NULL outside Slurm; the caller frees. */
static char *make_job_id(void)
{
    int64_t job, array_job, task;
    if (!find_number(&job, "SLURM_JOB_ID"))
        return NULL;
    if (find_number(&array_job, "SLURM_ARRAY_JOB_ID") && find_number(&task, "SLURM_ARRAY_TASK_ID"))
        return xasprintf("%lld_%lld", (long long)array_job, (long long)task);
    return xasprintf("%lld", (long long)job);
}

/* Slurm ends a job at its end, so one that is over is not ours: a shell may outlive its allocation,
 * and a clock may be wrong. */
static bool is_ahead(int64_t unix_s)
{
    return (double)unix_s > time_unix_s();
}

static int64_t ask_for_end(char *job)
{
    char answer[MAX_ANSWER] = "";
    char *argv[] = {"squeue", "-h", "-j", job, "-o", "%e", NULL};
    int64_t at = ask(answer, argv) ? parse_time(answer) : 0;
    if (is_ahead(at))
        return at;
    log_debug("the end of job %s is not known (squeue: '%s')", job, answer);
    return 0;
}

int64_t job_end_time(void)
{
    int64_t at = 0;
    char *job = make_job_id();
    if (!job)
        return 0;
    if (find_number(&at, "SLURM_JOB_END_TIME") && at > 0 && !is_ahead(at))
        log_warning("SLURM_JOB_END_TIME is %lld, which is over: it is ignored", (long long)at);
    if (!is_ahead(at))
        at = ask_for_end(job);
    free(job);
    return at;
}

/* ---- arrays ---- */

/* The index in an array of which QUIRE_ARRAY_COUNT gives the size. */
static bool find_worker(struct job_array *out, int64_t id)
{
    int64_t count;
    const char *text = getenv("QUIRE_ARRAY_COUNT");
    if (!text)
        return false;
    if (!parse_int64(&count, text) || count > JOB_MAX_WORKERS || id >= count) {
        log_warning("QUIRE_ARRAY_COUNT is '%s'; expected a whole number above the array's task "
                    "ids (this is %lld); it is ignored",
                    text, (long long)id);
        return false;
    }
    *out = (struct job_array){(int)id, (int)count};
    return true;
}

bool job_find_array(struct job_array *out)
{
    int64_t id, first, last, step, n;
    if (!find_number(&id, "SLURM_ARRAY_TASK_ID") || id < 0)
        return false;
    if (find_worker(out, id))
        return true;
    if (!find_number(&first, "SLURM_ARRAY_TASK_MIN") ||
        !find_number(&last, "SLURM_ARRAY_TASK_MAX") || first < 0 || id < first || id > last ||
        last >= JOB_MAX_WORKERS) {
        log_warning("SLURM_ARRAY_TASK_ID is %lld, and SLURM_ARRAY_TASK_MIN and _MAX do not say of "
                    "which array: this is no worker of an array",
                    (long long)id);
        return false;
    }
    if (!find_number(&step, "SLURM_ARRAY_TASK_STEP") || step <= 0)
        step = 1;
    int64_t span = (last - first) / step + 1;
    if (!find_number(&n, "SLURM_ARRAY_TASK_COUNT"))
        n = span;
    if (n == span && (id - first) % step == 0) {
        *out = (struct job_array){(int)((id - first) / step), (int)span};
        return true;
    }
    *out = (struct job_array){(int)id, (int)last + 1};
    log_warning("the job array has gaps: this is worker %d of %d, and what belongs to the missing "
                "task ids stays undone (QUIRE_ARRAY_COUNT=N says of how many workers they are)",
                out->index, out->count);
    return true;
}
