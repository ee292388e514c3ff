/* stop.c - see stop.h. */
#include "runner/stop.h"

#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

/* mpirun and scancel both pass a signal on, so that one request to stop can arrive twice; a second
 * one counts when it comes later than this. */
#define SAME_SIGNAL_SECONDS 1

#define JOB_END "the job's time limit"

struct caught {
    int number;
    const char *name;
};

static const struct caught signals[] = {
    {SIGINT, "SIGINT"}, {SIGTERM, "SIGTERM"}, {SIGUSR1, "SIGUSR1"}, {SIGUSR2, "SIGUSR2"}};

static volatile sig_atomic_t first_signal, insisted;
static volatile sig_atomic_t first_signal_s; /* of CLOCK_MONOTONIC */

static struct {
    atomic_int level;
    _Atomic(const char *) reason;
    _Atomic double raised_s; /* when STOP_DRAIN was reached */
    atomic_llong job_end_s;
} state;

static void on_signal(int number)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* may be called in a handler: signal-safety(7) */
    if (!first_signal) {
        first_signal_s = (sig_atomic_t)now.tv_sec;
        first_signal = number;
    } else if (now.tv_sec - first_signal_s > SAME_SIGNAL_SECONDS &&
               (number == SIGTERM || number == SIGINT)) {
        insisted = 1;
    }
    if (number == SIGINT)
        insisted = 1;
}

void stop_catch_signals(void)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        /* A second Ctrl-C ends a process that is busy elsewhere, for example loading a model. */
        if (signals[i].number == SIGINT)
            action.sa_flags |= (int)SA_RESETHAND;
        sigemptyset(&action.sa_mask);
        sigaction(signals[i].number, &action, NULL);
    }
    signal(SIGPIPE, SIG_IGN);
}

void stop_raise(enum stop_level level, const char *why)
{
    if (level == STOP_NONE)
        return;
    const char *none = NULL;
    if (atomic_compare_exchange_strong(&state.reason, &none, why))
        state.raised_s = time_monotonic_s();
    int old = state.level;
    while (old < (int)level && !atomic_compare_exchange_weak(&state.level, &old, (int)level)) {
    }
}

static const char *signal_name(int number)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++)
        if (signals[i].number == number)
            return signals[i].name;
    return "a signal";
}

enum stop_level stop_get(void)
{
    if (first_signal)
        stop_raise(insisted ? STOP_NOW : STOP_DRAIN, signal_name(first_signal));
    return (enum stop_level)state.level;
}

const char *stop_reason(void)
{
    const char *reason = state.reason;
    return reason ? reason : "";
}

const char *stop_find_reason(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++)
        if (strcmp(name, signals[i].name) == 0)
            return signals[i].name;
    return strcmp(name, JOB_END) == 0 ? JOB_END : "another rank";
}

void stop_set_job_end(int64_t unix_s)
{
    state.job_end_s = unix_s;
}

double stop_job_left_s(void)
{
    return state.job_end_s ? (double)state.job_end_s - time_unix_s() : INFINITY;
}

void stop_check_job_end(double margin_s)
{
    if (stop_job_left_s() <= margin_s)
        stop_raise(STOP_DRAIN, JOB_END);
}

double stop_deadline_s(void)
{
    double deadline_s = time_monotonic_s() + stop_job_left_s() - STOP_END_SECONDS;
    /* From when it came, which may be seen only after a step of a minute. */
    if (first_signal == SIGTERM)
        deadline_s = fmin(deadline_s, (double)first_signal_s + STOP_TERM_SECONDS);
    else if (strcmp(stop_reason(), signal_name(SIGTERM)) == 0) /* to another rank */
        deadline_s = fmin(deadline_s, state.raised_s + STOP_TERM_SECONDS);
    return deadline_s;
}
