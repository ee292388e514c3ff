/* test_host.c - how ranks of one host share the processors that all of them may run on. */
#include "runner/host.h"
#include "tests/testing.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

enum { MAX_RANKS = 65 };

/* A rank, as a thread: masks belong to threads. */
struct rank {
    int cpu_rank, cpu_size;
    int n_threads;  /* what it was told */
    cpu_set_t mask; /* what it was left */
};

static void *run_rank(void *user)
{
    struct rank *r = user;
    r->n_threads = host_take_cpus(r->cpu_rank, r->cpu_size);
    sched_getaffinity(0, sizeof(r->mask), &r->mask);
    return NULL;
}

static void run_ranks(struct rank *rank, int n)
{
    for (int i = 0; i < n; i++) {
        pthread_t thread;
        rank[i] = (struct rank){.cpu_rank = i, .cpu_size = n};
        assert_int_equal(pthread_create(&thread, NULL, run_rank, &rank[i]), 0);
        pthread_join(thread, NULL);
    }
}

/* The processors that tests run on; skips where they are not one thread each. */
static int count_cpus(cpu_set_t *all)
{
    struct device_info info;
    assert_int_equal(sched_getaffinity(0, sizeof(*all), all), 0);
    assert_int_equal(device_describe(&info, DEVICE_CPU, &(struct device_options){0}), 0);
    int n = CPU_COUNT(all);
    if (n != info.n_threads || n >= MAX_RANKS)
        skip(); /* a quota of time */
    return n;
}

static void ranks_with_one_mask_take_parts_that_do_not_overlap(void **state)
{
    cpu_set_t all;
    struct rank rank[MAX_RANKS];
    (void)state;
    int n_cpus = count_cpus(&all);
    for (int n = 2; n <= n_cpus; n++) {
        cpu_set_t sum;
        int n_taken = 0;
        run_ranks(rank, n);
        CPU_ZERO(&sum);
        for (int i = 0; i < n; i++) {
            assert_int_equal(rank[i].n_threads, CPU_COUNT(&rank[i].mask));
            assert_in_range(rank[i].n_threads, n_cpus / n, n_cpus / n + 1);
            n_taken += rank[i].n_threads;
            CPU_OR(&sum, &sum, &rank[i].mask);
        }
        assert_int_equal(n_taken, n_cpus);
        assert_true(CPU_EQUAL(&sum, &all));
    }
}

static void more_ranks_than_processors_have_a_thread_each_that_may_run_anywhere(void **state)
{
    cpu_set_t all;
    struct rank rank[MAX_RANKS];
    (void)state;
    int n = count_cpus(&all) + 1;
    run_ranks(rank, n);
    for (int i = 0; i < n; i++) {
        assert_int_equal(rank[i].n_threads, 1);
        assert_true(CPU_EQUAL(&rank[i].mask, &all));
    }
}

static void a_rank_with_processors_of_its_own_takes_all(void **state)
{
    cpu_set_t all;
    struct rank alone;
    (void)state;
    count_cpus(&all);
    run_ranks(&alone, 1);
    assert_int_equal(alone.n_threads, 0);
    assert_true(CPU_EQUAL(&alone.mask, &all));
}

static void what_the_user_says_of_threads_is_obeyed(void **state)
{
    cpu_set_t all;
    struct rank rank[MAX_RANKS];
    (void)state;
    count_cpus(&all);
    setenv("SLURM_CPUS_PER_TASK", "7", 1);
    run_ranks(rank, 2);
    assert_int_equal(rank[1].n_threads, 7);
    assert_true(CPU_EQUAL(&rank[1].mask, &all));
    setenv("OMP_NUM_THREADS", "3", 1);
    run_ranks(rank, 2);
    assert_int_equal(rank[1].n_threads, 0);
    assert_true(CPU_EQUAL(&rank[1].mask, &all));
    unsetenv("OMP_NUM_THREADS");
    unsetenv("SLURM_CPUS_PER_TASK");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_with_one_mask_take_parts_that_do_not_overlap),
        cmocka_unit_test(more_ranks_than_processors_have_a_thread_each_that_may_run_anywhere),
        cmocka_unit_test(a_rank_with_processors_of_its_own_takes_all),
        cmocka_unit_test(what_the_user_says_of_threads_is_obeyed),
    };
    unsetenv("OMP_NUM_THREADS");
    unsetenv("SLURM_CPUS_PER_TASK");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
