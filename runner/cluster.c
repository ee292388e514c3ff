/* cluster.c - see cluster.h.
 *
 * The thread of MPI polls: there is no way to wait for a message and for a post at once. A turn
 * without work takes two microseconds and then sleeps for TURN_NS, or less when there is a post. It
 * calls nobody who might wait: what has come is handed to a second thread, which delivers it. So
 * rank 0 gives signs of life while it waits for its file system, which may take a minute.
 */
#include "runner/cluster.h"
#include "runner/stop.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TURN_S  0.001
#define IDLE_S  0.1  /* between calls of on_idle                            */
#define LIFE_S  1.0  /* between signs of life                               */
#define CLOSE_S 20.0 /* for the other ranks to close as well                */

/* Silence counts while this process runs: a job that was suspended goes on, and nobody had a chance
 * to speak. So a turn counts as this long at most. */
#define MAX_TURN_S 1.0

/* The kind, the level, and the reason as text. */
#define LIFE_MAX_BYTES 32

/* The first byte of a message. */
enum { KIND_LIFE, KIND_DATA };

struct letter {
    int rank;
    struct str data; /* with its first byte */
    struct letter *next;
};

struct queue {
    struct letter *first, **end;
};

struct cluster {
    const struct cluster_transport *transport;
    struct cluster_place place;
    pthread_t thread, deliverer;
    pthread_mutex_t mutex;           /* of everything below                */
    pthread_cond_t changed, arrived; /* the latter: for the deliverer      */
    struct queue posted, came;
    struct cluster_traffic traffic;
    bool opened, listening, closing, closed;
    enum err_kind failure; /* of opening */
    char reason[ERR_MAX_LEN];

    pthread_mutex_t calling; /* of events; held during a call of one */
    struct cluster_events events;

    /* Of the thread of MPI alone. */
    double turn_s, awake_s; /* the last turn, and how long this process ran until then */
    double *heard_s;        /* [size] awake_s at the last message                      */
    double life_s;
    enum stop_level told; /* the level in the last sign of life */
};

/* ---- letters ---- */

static void push(struct queue *q, int rank, char kind, const char *data, size_t n)
{
    struct letter *l = xcalloc(1, sizeof(*l));
    l->rank = rank;
    str_append(&l->data, &kind, 1);
    str_append(&l->data, data, n);
    *(q->first ? q->end : &q->first) = l;
    q->end = &l->next;
}

static struct letter *pop(struct queue *q)
{
    struct letter *l = q->first;
    if (l)
        q->first = l->next;
    return l;
}

static void free_letter(struct letter *l)
{
    str_free(&l->data);
    free(l);
}

/* ---- the thread that delivers ---- */

/* CLOCK_MONOTONIC, which all waiting goes by: a step of the wall clock would prolong it. */
static struct timespec time_after(double s)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t ns = t.tv_nsec + (int64_t)(s * 1e9);
    return (struct timespec){.tv_sec = t.tv_sec + ns / 1000000000, .tv_nsec = ns % 1000000000};
}

/* Until there is a letter, for at most IDLE_S; false when the cluster closes. */
static bool wait_letter(struct cluster *c)
{
    struct timespec until = time_after(IDLE_S);
    int rc = 0;
    pthread_mutex_lock(&c->mutex);
    while (!c->closing && rc == 0 && !(c->listening && c->came.first))
        rc = pthread_cond_timedwait(&c->arrived, &c->mutex, &until);
    bool go_on = !c->closing;
    pthread_mutex_unlock(&c->mutex);
    return go_on;
}

static void deliver_next(struct cluster *c)
{
    struct letter *l = NULL;
    pthread_mutex_lock(&c->calling);
    if (c->events.on_message) {
        pthread_mutex_lock(&c->mutex);
        l = pop(&c->came);
        pthread_mutex_unlock(&c->mutex);
    }
    if (l)
        c->events.on_message(c->events.user, l->rank, l->data.data + 1, l->data.len - 1);
    pthread_mutex_unlock(&c->calling);
    if (l)
        free_letter(l);
}

static void call_idle(struct cluster *c)
{
    pthread_mutex_lock(&c->calling);
    if (c->events.on_idle)
        c->events.on_idle(c->events.user);
    pthread_mutex_unlock(&c->calling);
}

static void *run_deliverer(void *user)
{
    struct cluster *c = user;
    double idle_s = 0;
    while (wait_letter(c)) {
        deliver_next(c);
        if (time_monotonic_s() - idle_s < IDLE_S)
            continue;
        idle_s = time_monotonic_s();
        call_idle(c);
    }
    return NULL;
}

/* ---- the thread of MPI ---- */

static void lose(struct cluster *c, int rank)
{
    pthread_mutex_lock(&c->calling);
    if (c->events.on_lost)
        c->events.on_lost(c->events.user, rank);
    log_warning("rank %d has not been heard of for %.0f s: all ranks stop; what was committed is "
                "safe, run the same command again",
                rank, CLUSTER_SILENCE_SECONDS);
    c->transport->abort(ERR_STOPPED);
    _exit(ERR_STOPPED);
}

/* Rank 0 hears all ranks, the others hear rank 0. */
static bool is_heard(const struct cluster *c, int rank)
{
    return rank != c->place.rank && (c->place.rank == 0 || rank == 0);
}

static void send_life(struct cluster *c, double now)
{
    enum stop_level level = stop_get();
    if (now - c->life_s < LIFE_S && level == c->told)
        return;
    char life[LIFE_MAX_BYTES] = {KIND_LIFE, (char)level};
    snprintf(life + 2, sizeof(life) - 2, "%s", stop_reason());
    for (int r = 0; r < c->place.size; r++)
        if (is_heard(c, r))
            c->transport->send(r, life, sizeof(life));
    c->life_s = now;
    c->told = level;
}

static void check_life(struct cluster *c)
{
    for (int r = 0; r < c->place.size; r++)
        if (is_heard(c, r) && c->awake_s - c->heard_s[r] > CLUSTER_SILENCE_SECONDS)
            lose(c, r);
}

static void take_in(struct cluster *c, int from, const struct str *data)
{
    if (data->data[0] == KIND_LIFE) {
        stop_raise((enum stop_level)data->data[1], stop_find_reason(data->data + 2));
        return;
    }
    pthread_mutex_lock(&c->mutex);
    c->traffic.received_bytes += (int64_t)data->len;
    push(&c->came, from, KIND_DATA, data->data + 1, data->len - 1);
    pthread_cond_signal(&c->arrived);
    pthread_mutex_unlock(&c->mutex);
}

static void receive_all(struct cluster *c, struct str *buffer)
{
    int from;
    while (c->transport->receive(&from, buffer)) {
        c->heard_s[from] = c->awake_s;
        take_in(c, from, buffer);
    }
}

static void send_all(struct cluster *c)
{
    struct letter *l;
    pthread_mutex_lock(&c->mutex);
    while ((l = pop(&c->posted))) {
        c->traffic.sent_bytes += (int64_t)l->data.len;
        pthread_mutex_unlock(&c->mutex);
        c->transport->send(l->rank, l->data.data, l->data.len);
        free_letter(l);
        pthread_mutex_lock(&c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
}

/* Sleeps for a turn; false when there is nothing more to do. */
static bool wait_turn(struct cluster *c)
{
    struct timespec until = time_after(TURN_S);
    pthread_mutex_lock(&c->mutex);
    if (!c->posted.first && !c->closing)
        pthread_cond_timedwait(&c->changed, &c->mutex, &until);
    bool go_on = c->posted.first || !c->closing;
    pthread_mutex_unlock(&c->mutex);
    return go_on;
}

static void run_turns(struct cluster *c)
{
    struct str buffer = {0};
    c->turn_s = time_monotonic_s();
    do {
        double now = time_monotonic_s();
        c->awake_s += fmin(now - c->turn_s, MAX_TURN_S);
        c->turn_s = now;
        receive_all(c, &buffer);
        send_all(c);
        send_life(c, now);
        check_life(c);
    } while (wait_turn(c));
    str_free(&buffer);
}

static void *run_thread(void *user)
{
    struct cluster *c = user;
    int rc = c->transport->open(&c->place);
    pthread_mutex_lock(&c->mutex);
    c->opened = rc == 0;
    c->failure = rc == 0 ? ERR_NONE : err_get_kind();
    strncpy(c->reason, rc == 0 ? "" : err_get(), sizeof(c->reason) - 1);
    c->closed = rc != 0;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
    if (rc != 0)
        return NULL;
    c->heard_s = xcalloc((size_t)c->place.size, sizeof(*c->heard_s));
    run_turns(c);
    c->transport->close();
    pthread_mutex_lock(&c->mutex);
    c->closed = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

/* ---- opening ---- */

static int64_t environment_number(const char *name, int64_t missing)
{
    const char *text = getenv(name);
    int64_t value;
    return text && parse_int64(&value, text) ? value : missing;
}

int cluster_rank_of_environment(void)
{
    int64_t rank = environment_number("OMPI_COMM_WORLD_RANK", -1);
    if (rank < 0 && environment_number("SLURM_STEP_NUM_TASKS", 1) > 1)
        rank = environment_number("SLURM_PROCID", 0);
    return (int)MAX(rank, 0);
}

/* 1: one of several tasks; 0: alone. A batch script's own variables speak of the whole job, so only
 * those of a step count. */
static int find_launch(void)
{
    if (getenv("OMPI_COMM_WORLD_SIZE"))
        return environment_number("OMPI_COMM_WORLD_SIZE", 1) > 1;
    int64_t tasks = environment_number("SLURM_STEP_NUM_TASKS", 1);
    if (tasks <= 1)
        return 0;
    if (!getenv("PMIX_RANK"))
        return err_set(ERR_CONFIG,
                       "srun started %lld tasks that do not know of each other; use "
                       "`srun --mpi=pmix quire run ...`, or `srun --ntasks=1 ...` for one",
                       (long long)tasks);
    return 1;
}

static const struct cluster_transport *load_transport(void)
{
    char *path = library_find(CLUSTER_LIBRARY);
    if (!path) {
        err_set(ERR_RESOURCE,
                "started as several tasks, but this build has no MPI (" CLUSTER_LIBRARY
                "): install "
                "OpenMPI's headers (libopenmpi-dev, openmpi-devel) and run make again, or start "
                "one task");
        return NULL;
    }
    /* Global: OpenMPI's own plugins look for its symbols there. */
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    const struct cluster_transport *transport = library ? dlsym(library, "cluster_mpi") : NULL;
    if (!transport)
        err_set(ERR_RESOURCE, "cannot load MPI: %s", dlerror());
    free(path);
    return transport;
}

static void close_deliverer(struct cluster *c)
{
    pthread_mutex_lock(&c->mutex);
    c->closing = true;
    pthread_cond_signal(&c->arrived);
    pthread_mutex_unlock(&c->mutex);
    pthread_join(c->deliverer, NULL);
}

static int start(struct cluster *c)
{
    if (pthread_create(&c->deliverer, NULL, run_deliverer, c) != 0)
        return err_set(ERR_RESOURCE, "cannot start a thread for messages");
    if (pthread_create(&c->thread, NULL, run_thread, c) != 0) {
        close_deliverer(c);
        return err_set(ERR_RESOURCE, "cannot start a thread for MPI");
    }
    pthread_mutex_lock(&c->mutex);
    while (!c->opened && !c->closed)
        pthread_cond_wait(&c->changed, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    if (c->opened)
        return 0;
    pthread_join(c->thread, NULL);
    close_deliverer(c);
    return err_set(c->failure, "%s", c->reason);
}

int cluster_start(struct cluster **out, const struct cluster_transport *transport)
{
    struct cluster *c = xcalloc(1, sizeof(*c));
    pthread_condattr_t monotonic;
    c->transport = transport;
    pthread_mutex_init(&c->mutex, NULL);
    pthread_mutex_init(&c->calling, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&c->changed, &monotonic);
    pthread_cond_init(&c->arrived, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *out = NULL;
    if (start(c) != 0) {
        free(c);
        return -1;
    }
    *out = c;
    return 0;
}

int cluster_open(struct cluster **out)
{
    *out = NULL;
    int launched = find_launch();
    if (launched <= 0)
        return launched;
    const struct cluster_transport *transport = load_transport();
    return transport ? cluster_start(out, transport) : -1;
}

/* ---- for the other threads ---- */

struct cluster_place cluster_get_place(const struct cluster *c)
{
    return c ? c->place : (struct cluster_place){.size = 1, .local_size = 1, .cpu_size = 1};
}

void cluster_listen(struct cluster *c, const struct cluster_events *events)
{
    pthread_mutex_lock(&c->calling);
    c->events = *events;
    pthread_mutex_unlock(&c->calling);
    pthread_mutex_lock(&c->mutex);
    c->listening = events->on_message != NULL;
    pthread_cond_signal(&c->arrived);
    pthread_mutex_unlock(&c->mutex);
}

void cluster_post(struct cluster *c, int to, const char *data, size_t n)
{
    pthread_mutex_lock(&c->mutex);
    push(&c->posted, to, KIND_DATA, data, n);
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

struct cluster_traffic cluster_get_traffic(struct cluster *c)
{
    struct cluster_traffic traffic = {0};
    if (!c)
        return traffic;
    pthread_mutex_lock(&c->mutex);
    traffic = c->traffic;
    pthread_mutex_unlock(&c->mutex);
    return traffic;
}

/* Another rank that has died keeps MPI from ending; the results are safe by now. */
static bool wait_closed(struct cluster *c)
{
    struct timespec until = time_after(CLOSE_S);
    pthread_mutex_lock(&c->mutex);
    c->closing = true;
    pthread_cond_broadcast(&c->changed);
    int rc = 0;
    while (!c->closed && rc == 0)
        rc = pthread_cond_timedwait(&c->changed, &c->mutex, &until);
    bool closed = c->closed;
    pthread_mutex_unlock(&c->mutex);
    return closed;
}

void cluster_close(struct cluster *c)
{
    if (!c)
        return;
    if (!wait_closed(c)) {
        log_warning("other ranks did not end within %.0f s of this one", CLOSE_S);
        return; /* its thread is still in MPI; the process is about to end */
    }
    pthread_join(c->thread, NULL);
    close_deliverer(c);
    struct letter *l;
    while ((l = pop(&c->came)))
        free_letter(l);
    pthread_mutex_destroy(&c->mutex);
    pthread_mutex_destroy(&c->calling);
    pthread_cond_destroy(&c->changed);
    pthread_cond_destroy(&c->arrived);
    free(c->heard_s);
    free(c);
}
