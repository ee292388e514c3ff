/* test_stop.c - signals and the job's end. Each case runs in a process of its own. */
#include "runner/stop.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/testing.h"

/* Runs the case in a child; its exit status, or 128 and the signal that ended it. */
static int in_child(int (*run)(void))
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(run());
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int level_after(int signal)
{
    stop_catch_signals();
    raise(signal);
    return (int)stop_get();
}

static int after_term(void)
{
    return level_after(SIGTERM);
}

static int after_usr1(void)
{
    return level_after(SIGUSR1);
}

static int after_usr2(void)
{
    return level_after(SIGUSR2);
}

static int after_int(void)
{
    return level_after(SIGINT);
}

static void signals_of_slurm_drain_and_ctrl_c_stops(void **state)
{
    (void)state;
    assert_int_equal(in_child(after_term), STOP_DRAIN);
    assert_int_equal(in_child(after_usr1), STOP_DRAIN);
    assert_int_equal(in_child(after_usr2), STOP_DRAIN);
    assert_int_equal(in_child(after_int), STOP_NOW);
}

static int after_pipe(void)
{
    return level_after(SIGPIPE);
}

static void the_end_of_the_logs_reader_is_no_reason_to_stop(void **state)
{
    (void)state;
    assert_int_equal(in_child(after_pipe), STOP_NONE);
}

static int after_two_ints(void)
{
    stop_catch_signals();
    raise(SIGINT);
    raise(SIGINT);
    return 0;
}

static void a_second_ctrl_c_ends_a_process_that_is_busy(void **state)
{
    (void)state;
    assert_int_equal(in_child(after_two_ints), 128 + SIGINT);
}

static int after_doubled_term(void)
{
    stop_catch_signals();
    raise(SIGTERM);
    raise(SIGTERM);
    return (int)stop_get();
}

static int after_second_term(void)
{
    stop_catch_signals();
    raise(SIGTERM);
    nanosleep(&(struct timespec){.tv_sec = 2, .tv_nsec = 100000000}, NULL);
    raise(SIGTERM);
    return (int)stop_get();
}

static void a_signal_passed_on_twice_is_one_and_a_later_one_stops_now(void **state)
{
    (void)state;
    assert_int_equal(in_child(after_doubled_term), STOP_DRAIN);
    assert_int_equal(in_child(after_second_term), STOP_NOW);
}

static int term_leaves_seconds(void)
{
    level_after(SIGTERM);
    double left_s = stop_deadline_s() - time_monotonic_s();
    return left_s > STOP_TERM_SECONDS - 2 && left_s <= STOP_TERM_SECONDS;
}

static int term_counts_while_a_step_is_computed(void)
{
    stop_catch_signals();
    raise(SIGTERM);
    nanosleep(&(struct timespec){.tv_sec = 2, .tv_nsec = 100000000}, NULL);
    stop_get();
    return stop_deadline_s() - time_monotonic_s() <= STOP_TERM_SECONDS - 2;
}

static int another_ranks_term_leaves_seconds(void)
{
    stop_catch_signals();
    stop_raise(STOP_DRAIN, stop_find_reason("SIGTERM"));
    double left_s = stop_deadline_s() - time_monotonic_s();
    return left_s > STOP_TERM_SECONDS - 2 && left_s <= STOP_TERM_SECONDS;
}

static int usr1_leaves_all_the_time_there_is(void)
{
    level_after(SIGUSR1);
    bool unbounded = isinf(stop_deadline_s());
    stop_set_job_end((int64_t)time_unix_s() + 100);
    double left_s = stop_deadline_s() - time_monotonic_s();
    return unbounded && left_s > 98 - STOP_END_SECONDS && left_s <= 100 - STOP_END_SECONDS;
}

static void the_deadline_follows_from_the_signal_and_the_job(void **state)
{
    (void)state;
    assert_int_equal(in_child(term_leaves_seconds), 1);
    assert_int_equal(in_child(term_counts_while_a_step_is_computed), 1);
    assert_int_equal(in_child(another_ranks_term_leaves_seconds), 1);
    assert_int_equal(in_child(usr1_leaves_all_the_time_there_is), 1);
}

static int near_the_end(void)
{
    stop_set_job_end((int64_t)time_unix_s() + 100);
    stop_check_job_end(50);
    if (stop_get() != STOP_NONE)
        return 1;
    stop_check_job_end(120);
    return stop_get() == STOP_DRAIN && strcmp(stop_reason(), "the job's time limit") == 0 ? 0 : 2;
}

static int without_a_job(void)
{
    stop_check_job_end(1e9);
    return (int)stop_get();
}

static void the_end_of_the_job_drains_in_time(void **state)
{
    (void)state;
    assert_int_equal(in_child(near_the_end), 0);
    assert_int_equal(in_child(without_a_job), STOP_NONE);
}

static int levels_rise(void)
{
    stop_raise(STOP_NOW, "one");
    stop_raise(STOP_DRAIN, "two");
    return stop_get() == STOP_NOW && strcmp(stop_reason(), "one") == 0;
}

static void the_level_only_rises_and_the_first_reason_stays(void **state)
{
    (void)state;
    assert_int_equal(in_child(levels_rise), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signals_of_slurm_drain_and_ctrl_c_stops),
        cmocka_unit_test(the_end_of_the_logs_reader_is_no_reason_to_stop),
        cmocka_unit_test(a_second_ctrl_c_ends_a_process_that_is_busy),
        cmocka_unit_test(a_signal_passed_on_twice_is_one_and_a_later_one_stops_now),
        cmocka_unit_test(the_deadline_follows_from_the_signal_and_the_job),
        cmocka_unit_test(the_end_of_the_job_drains_in_time),
        cmocka_unit_test(the_level_only_rises_and_the_first_reason_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
