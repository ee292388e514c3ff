/* test_cluster.c - messages and signs of life between ranks, over a transport that is made up. */
#include "runner/cluster.h"
#include "runner/stop.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/testing.h"

#define MAX_MESSAGES 16

/* As in cluster.c: the first byte of a message. */
enum { KIND_LIFE, KIND_DATA };

/* The other rank's side of the transport. */
static struct {
    pthread_mutex_t mutex;
    struct str message[MAX_MESSAGES]; /* to this rank */
    int n_messages, n_received;
    int n_lives; /* from this rank */
} wire = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static int open_wire(struct cluster_place *out)
{
    *out = (struct cluster_place){.size = 2, .local_size = 2, .cpu_size = 1};
    return 0;
}

static void send_on_wire(int to, const char *data, size_t n)
{
    assert_int_equal(to, 1);
    assert_true(n > 0);
    pthread_mutex_lock(&wire.mutex);
    wire.n_lives += data[0] == KIND_LIFE;
    pthread_mutex_unlock(&wire.mutex);
}

static bool receive_from_wire(int *from, struct str *out)
{
    pthread_mutex_lock(&wire.mutex);
    bool there = wire.n_received < wire.n_messages;
    if (there) {
        const struct str *message = &wire.message[wire.n_received++];
        str_clear(out);
        str_append(out, message->data, message->len);
        *from = 1;
    }
    pthread_mutex_unlock(&wire.mutex);
    return there;
}

static void close_wire(void)
{
}

static void abort_wire(int code)
{
    (void)code;
    abort();
}

static const struct cluster_transport transport = {.open = open_wire,
                                                   .send = send_on_wire,
                                                   .receive = receive_from_wire,
                                                   .close = close_wire,
                                                   .abort = abort_wire};

static void put_on_wire(char kind, const char *text)
{
    pthread_mutex_lock(&wire.mutex);
    struct str *message = &wire.message[wire.n_messages++];
    str_append(message, &kind, 1);
    str_append_c(message, text);
    pthread_mutex_unlock(&wire.mutex);
}

static int count_lives(void)
{
    pthread_mutex_lock(&wire.mutex);
    int n = wire.n_lives;
    pthread_mutex_unlock(&wire.mutex);
    return n;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < wire.n_messages; i++)
        str_free(&wire.message[i]);
    wire.n_messages = wire.n_received = wire.n_lives = 0;
    return 0;
}

static void sleep_s(double s)
{
    struct timespec t = {.tv_sec = (time_t)s, .tv_nsec = (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

/* What a listener got, and how long it takes over a message. */
struct listener {
    pthread_mutex_t mutex;
    struct str got;
    double takes_s;
};

static void on_message(void *user, int from, const char *data, size_t n)
{
    struct listener *l = user;
    assert_int_equal(from, 1);
    sleep_s(l->takes_s);
    pthread_mutex_lock(&l->mutex);
    str_append(&l->got, data, n);
    pthread_mutex_unlock(&l->mutex);
}

static bool has(struct listener *l, size_t n)
{
    pthread_mutex_lock(&l->mutex);
    bool there = l->got.len >= n;
    pthread_mutex_unlock(&l->mutex);
    return there;
}

static void assert_gets(struct listener *l, const char *expected)
{
    for (int i = 0; i < 2000 && !has(l, strlen(expected)); i++)
        sleep_s(0.005);
    pthread_mutex_lock(&l->mutex);
    assert_int_equal(l->got.len, strlen(expected));
    assert_memory_equal(l->got.data, expected, l->got.len);
    pthread_mutex_unlock(&l->mutex);
}

static struct cluster *open_cluster(void)
{
    struct cluster *c;
    if (cluster_start(&c, &transport) != 0)
        fail_msg("%s", err_get());
    return c;
}

static void what_comes_early_waits_for_a_listener(void **state)
{
    (void)state;
    struct cluster *c = open_cluster();
    struct listener l = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    put_on_wire(KIND_DATA, "one ");
    put_on_wire(KIND_DATA, "two ");
    sleep_s(0.02);
    cluster_listen(c, &(struct cluster_events){.user = &l, .on_message = on_message});
    put_on_wire(KIND_DATA, "three");
    assert_gets(&l, "one two three");
    assert_true(cluster_get_traffic(c).received_bytes > 0);
    cluster_close(c);
    str_free(&l.got);
}

/* A listener that writes to a slow file system must not look like a rank that is lost. */
static void a_rank_gives_signs_of_life_while_its_listener_waits(void **state)
{
    (void)state;
    struct cluster *c = open_cluster();
    struct listener l = {.mutex = PTHREAD_MUTEX_INITIALIZER, .takes_s = 2.5};
    cluster_listen(c, &(struct cluster_events){.user = &l, .on_message = on_message});
    put_on_wire(KIND_DATA, "long");
    sleep_s(0.1);
    int before = count_lives();
    assert_gets(&l, "long");
    assert_true(count_lives() - before >= 2);
    cluster_close(c);
    str_free(&l.got);
}

static void the_other_ranks_level_becomes_that_of_this_one(void **state)
{
    (void)state;
    struct cluster *c = open_cluster();
    assert_int_equal(stop_get(), STOP_NONE);
    put_on_wire(KIND_LIFE, "\1SIGUSR1");
    for (int i = 0; i < 2000 && stop_get() == STOP_NONE; i++)
        sleep_s(0.005);
    assert_int_equal(stop_get(), STOP_DRAIN);
    assert_string_equal(stop_reason(), "SIGUSR1");
    cluster_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(what_comes_early_waits_for_a_listener, teardown),
        cmocka_unit_test_teardown(a_rank_gives_signs_of_life_while_its_listener_waits, teardown),
        /* This leaves the process stopping. */
        cmocka_unit_test_teardown(the_other_ranks_level_becomes_that_of_this_one, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
