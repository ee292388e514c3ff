/* test_desk.c - handing out samples to ranks and taking them in, and the shares of a job array. */
#include "runner/desk.h"
#include "runner/link.h"
#include "runner/stop.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/testing.h"

#define MODEL      "model: {path: " DEMO_MODEL "}\n"
#define DEMO_MODEL "configs/models/demo"
#define PROMPTS    "prompts: {list: [one, two, three, four, five, six, seven]}\n"
#define MAX_RANKS  4

static struct config *config;
static struct work_list work;
static struct store *store;
static struct desk *desk;
/* It is locked for good: its process would have ended. Volatile, or the compiler leaves the store
 * out and the memory looks leaked. */
static struct desk *volatile lost_desk;
static char *database;
static int64_t run_id;

static int setup(void **state)
{
    (void)state;
    for (size_t i = 0; i < config_n_variables(); i++)
        unsetenv(config_get_variable(i)->name);
    return log_set_level("quiet");
}

static int teardown(void **state)
{
    (void)state;
    desk_close(desk);
    store_close(store);
    work_list_free(&work);
    config_close(config);
    desk = NULL;
    store = NULL;
    config = NULL;
    if (database)
        remove(database);
    free(database);
    database = NULL;
    return 0;
}

static void make_list(const char *text)
{
    char *here = xasprintf("experiment: x\n%s", text);
    char *path = test_write_text("desk.yaml", here);
    char *folder = realpath(DEMO_MODEL, NULL);
    char *model = xasprintf("model.path=%s", folder);
    const char *const sets[] = {model, "engine.device=cpu"};
    if (config_load(&config, path, sets, 2) != 0 ||
        work_list_make(
            &work, config,
            &(struct decision_policy){.allow_cpu = true, .allow_standard_engine = true}) != 0)
        fail_msg("%s", err_get());
    free(model);
    free(folder);
    free(path);
    free(here);
}

static void open_store(void)
{
    database = test_write_text("desk.db", "");
    remove(database);
    if (store_open(&store, database, STORE_WRITE) != 0)
        fail_msg("%s", err_get());
    int64_t experiment = store_put_experiment(
        store, &(struct store_experiment){"x", "x.yaml", "", "{}", "0", "", false});
    int64_t environment = store_put_environment(
        store, &(struct store_environment){.host = "h", .os = "", .cpu = "", .cpu_isa = ""});
    run_id = store_begin_run(store, &(struct store_run){.experiment_id = experiment,
                                                        .environment_id = environment,
                                                        .argv = "",
                                                        .host = "h",
                                                        .slurm_job_id = "",
                                                        .slurm_array_job_id = "",
                                                        .slurm_array_task_id = ""});
    assert_true(run_id > 0);
    assert_int_equal(work_list_record(&work, store, experiment), 0);
}

static void greet(int rank, const char *digest)
{
    struct greeting greeting = {.host = "node", .pid = rank};
    snprintf(greeting.digest, sizeof(greeting.digest), "%s", digest);
    desk_greet(desk, rank, &greeting);
}

static void open_desk_of(int n_ranks, bool strict)
{
    open_store();
    const struct desk_options options = {.config = config,
                                         .work = &work,
                                         .store = store,
                                         .run_id = run_id,
                                         .n_ranks = n_ranks,
                                         .strict = strict};
    if (desk_open(&desk, &options) != 0)
        fail_msg("%s", err_get());
    for (int r = 0; r < n_ranks; r++)
        greet(r, work.digest);
}

static struct order take(int rank, int group, int room)
{
    struct order order;
    desk_take(desk, rank, group, room, &order);
    return order;
}

static void begin(int rank, int group)
{
    desk_begin(desk, rank,
               &(struct opening){.group = group, .has_model = true, .has_engine = true});
}

static void refuse(int rank, int group, enum err_kind kind)
{
    desk_refuse(desk, rank, &(struct opening){.group = group}, kind, "no room");
}

static void put(int rank, int group, int place, int sample, const char *error)
{
    const int ids[] = {place, sample, 7};
    desk_put(desk, rank,
             &(struct outcome){.group = group,
                               .work = place,
                               .sample = sample,
                               .completion = {.ids = ids,
                                              .n_ids = 3,
                                              .n_prompt = 2,
                                              .reason = FINISH_LENGTH,
                                              .scheduled_s = 1,
                                              .first_token_s = 2,
                                              .finished_s = 3},
                               .text = "text",
                               .error = error});
}

static int n_of(const struct order *order)
{
    int n = 0;
    for (int i = 0; i < order->n_ranges; i++)
        n += order->range[i].n;
    return n;
}

/* Hands in everything of an order. */
static void put_order(int rank, const struct order *order, const char *error)
{
    for (int i = 0; i < order->n_ranges; i++)
        for (int k = 0; k < order->range[i].n; k++)
            put(rank, order->group, order->range[i].work, order->range[i].first + k, error);
}

static int take_text(void *user, int n_columns, const char *const *names, const char *const *values,
                     const bool *is_number)
{
    (void)names, (void)is_number;
    assert_int_equal(n_columns, 1);
    if (values)
        snprintf(user, 256, "%s", values[0] ? values[0] : "");
    return 0;
}

static void assert_query(const char *sql, const char *expected)
{
    char text[256] = "";
    assert_int_equal(store_commit(store), 0);
    if (store_query(store, sql, take_text, text) != 0)
        fail_msg("%s", err_get());
    assert_string_equal(text, expected);
}

/* ---- handing out ---- */

/* What a made-up rank holds. */
struct hands {
    int group; /* -1: no engine */
    struct order order[64];
    int n_orders;
};

static void random_move(struct hands *h, int rank, unsigned *seed)
{
    if (h->n_orders && rand_r(seed) % 3 == 0) {
        put_order(rank, &h->order[--h->n_orders], NULL);
        return;
    }
    struct order order = take(rank, h->group, 1 + rand_r(seed) % 5);
    if (order.kind != ORDER_SAMPLES || h->n_orders == 64)
        return;
    if (order.group != h->group) {
        assert_int_equal(h->n_orders, 0); /* never while it holds samples of another */
        begin(rank, order.group);
        h->group = order.group;
    }
    h->order[h->n_orders++] = order;
}

static void ranks_together_take_each_sample_once(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS "sampling: {n: 3, temperature: 1}\nreplications: 2\n"
                            "grid: {engine.max_num_seqs: [4, 8, 16], sampling.seed: [1, 2]}\n");
    open_desk_of(MAX_RANKS, false);
    struct hands hands[MAX_RANKS] = {{.group = -1}, {.group = -1}, {.group = -1}, {.group = -1}};
    unsigned seed = 1;
    int n_moves = 0;
    while (take(0, hands[0].group, 0).kind != ORDER_END) {
        int rank = rand_r(&seed) % MAX_RANKS;
        random_move(&hands[rank], rank, &seed);
        assert_true(n_moves++ < 100000);
    }
    struct desk_summary summary = desk_finish(desk);
    assert_true(summary.finished);
    assert_int_equal(summary.n_done, 3 * 2 * 2 * 7 * 3);
    assert_query("select count(*) from samples", "252");
    assert_query("select count(*) from events where kind in ('error', 'nondeterministic')", "0");
    /* Each sample is counted in one attempt, and no attempt is left open. */
    assert_query("select sum(n_samples) from attempts where state = 'done'", "252");
    assert_query("select count(*) from attempts where state <> 'done'", "0");
}

/* A rank in a thread, as rank 0's worker and the thread of the cluster are. */
struct rank_thread {
    pthread_t thread;
    int rank;
};

static void *play_rank(void *user)
{
    const struct rank_thread *t = user;
    unsigned seed = (unsigned)t->rank;
    int group = -1;
    for (;;) {
        struct order order = take(t->rank, group, 1 + rand_r(&seed) % 9);
        desk_pulse(desk, t->rank, &(struct pulse){.busy_s = 1});
        desk_tick(desk);
        if (order.kind == ORDER_END)
            break;
        if (order.kind == ORDER_WAIT)
            continue;
        if (order.group != group)
            begin(t->rank, order.group);
        group = order.group;
        put_order(t->rank, &order, NULL);
    }
    desk_leave(desk, t->rank);
    return NULL;
}

static void ranks_may_come_at_the_same_time(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS "sampling: {n: 5, temperature: 1}\n"
                            "grid: {engine.max_num_seqs: [4, 8, 16]}\n");
    open_desk_of(MAX_RANKS, false);
    struct rank_thread ranks[MAX_RANKS];
    for (int r = 0; r < MAX_RANKS; r++) {
        ranks[r].rank = r;
        assert_int_equal(pthread_create(&ranks[r].thread, NULL, play_rank, &ranks[r]), 0);
    }
    for (int r = 0; r < MAX_RANKS; r++)
        pthread_join(ranks[r].thread, NULL);
    assert_true(desk_all_left(desk));
    assert_true(desk_finish(desk).finished);
    assert_query("select count(*) from samples", "105");
    assert_query("select sum(n_samples) from attempts", "105");
}

static void a_rank_holds_at_most_its_share(void **state)
{
    (void)state;
    make_list(MODEL "prompts: {list: [one]}\nsampling: {n: 56, temperature: 1}\n");
    open_desk_of(4, false);
    struct order order = take(1, -1, 1000);
    assert_int_equal(n_of(&order), 14); /* of 56 */
    begin(1, 0);
    assert_int_equal(take(1, 0, 1000).kind, ORDER_WAIT);
    /* What it finishes makes room for as many as keep the share. */
    put_order(1, &order, NULL);
    order = take(1, 0, 1000);
    assert_int_equal(n_of(&order), 11); /* of 42 */
}

/* A few samples take nearly all of the time: no rank gets all of these, and the others the rest. */
static void a_share_is_one_of_the_cost(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS "sampling: {n: 4, temperature: 1}\n"
                            "grid: {sampling.max_tokens: [1, 500]}\n");
    open_desk_of(4, false);
    for (int r = 0; r < 4; r++) {
        struct order order = take(r, -1, 1000);
        assert_int_equal(order.range[0].work, 1);
        assert_in_range(order.range[0].n, 4, 8); /* of 28 */
    }
}

static void a_rank_alone_takes_all_that_it_has_room_for(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS "sampling: {n: 8, temperature: 1}\n");
    open_desk_of(1, false);
    struct order order = take(0, -1, 50);
    assert_int_equal(n_of(&order), 50);
    begin(0, 0);
    order = take(0, 0, 50);
    assert_int_equal(n_of(&order), 6);
    assert_int_equal(take(0, 0, 50).kind, ORDER_WAIT);
}

static void long_samples_are_handed_out_first(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS "grid: {sampling.max_tokens: [4, 64, 16]}\n");
    open_desk_of(1, false);
    struct order order = take(0, -1, 10);
    assert_int_equal(order.n_ranges, 2);
    assert_int_equal(order.range[0].work, 1);
    assert_int_equal(order.range[0].n, 7);
    assert_int_equal(order.range[1].work, 2);
}

static void ranks_spread_over_the_groups(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS "grid: {engine.max_num_seqs: [4, 8]}\n");
    open_desk_of(2, false);
    int first = take(0, -1, 100).group, second = take(1, -1, 100).group;
    assert_int_not_equal(first, second);
}

/* Its next engine may have less room than the one that it asked for. */
static void a_rank_turns_to_another_group_with_one_sample(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS "grid: {engine.max_num_seqs: [8, 4]}\n");
    open_desk_of(1, false);
    struct order order = take(0, -1, 100);
    assert_int_equal(n_of(&order), 7);
    begin(0, order.group);
    put_order(0, &order, NULL);
    struct order next = take(0, order.group, 100);
    assert_int_not_equal(next.group, order.group);
    assert_int_equal(n_of(&next), 1);
}

static void what_is_done_is_not_handed_out(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    memset(work.group[0].work[0].done, true, 6);
    work.group[0].work[0].n_pending = 1;
    open_desk_of(1, false);
    struct order order = take(0, -1, 100);
    assert_int_equal(order.n_ranges, 1);
    assert_int_equal(order.range[0].first, 6);
    assert_int_equal(order.range[0].n, 1);
}

/* ---- what goes wrong ---- */

static void a_group_that_one_rank_refuses_is_run_by_another(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(2, false);
    assert_int_equal(take(0, -1, 100).kind, ORDER_SAMPLES);
    refuse(0, 0, ERR_RESOURCE);
    assert_int_equal(take(0, -1, 100).kind, ORDER_WAIT);
    struct order order = take(1, -1, 100);
    assert_int_equal(n_of(&order), 7);
    begin(1, 0);
    put_order(1, &order, NULL);
    assert_int_equal(take(0, -1, 100).kind, ORDER_END);
    assert_int_equal(desk_finish(desk).n_failed_tasks, 0);
}

static void a_group_that_no_rank_can_run_is_a_failed_task(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(2, false);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(take(r, -1, 3).kind, ORDER_SAMPLES);
        refuse(r, 0, ERR_DATA);
    }
    assert_int_equal(take(0, -1, 3).kind, ORDER_END);
    struct desk_summary summary = desk_finish(desk);
    assert_true(summary.finished);
    assert_int_equal(summary.n_failed_tasks, 1);
    assert_query("select state || ': ' || error from attempts", "failed: no room");
}

/* The device of a rank breaks in the middle of its work. */
static void a_rank_that_fails_in_its_work_ends_its_attempts_with_the_reason(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(2, false);
    struct order order = take(0, -1, 100);
    begin(0, 0);
    put(0, 0, order.range[0].work, order.range[0].first, NULL);
    refuse(0, 0, ERR_RUN);
    assert_query("select rank || ' ' || state || ': ' || error || ', ' || n_samples from attempts",
                 "0 failed: no room, 1");
    order = take(1, -1, 100);
    assert_int_equal(n_of(&order), 6);
    begin(1, 0);
    put_order(1, &order, NULL);
    struct desk_summary summary = desk_finish(desk);
    assert_true(summary.finished);
    assert_int_equal(summary.n_failed_tasks, 0);
    assert_query("select group_concat(state) from (select state from attempts order by rank)",
                 "failed,done");
}

static void the_only_rank_that_fails_in_its_work_has_one_attempt(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(1, false);
    take(0, -1, 100);
    begin(0, 0);
    refuse(0, 0, ERR_RUN);
    assert_int_equal(take(0, -1, 100).kind, ORDER_END);
    assert_int_equal(desk_finish(desk).n_failed_tasks, 1);
    assert_query("select group_concat(state || ': ' || error) from attempts", "failed: no room");
}

/* Else a rank that gives up twice would count as two. */
static void a_rank_refuses_a_group_once(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(2, false);
    struct order order = take(1, -1, 3);
    begin(1, 0);
    take(0, -1, 100);
    refuse(0, 0, ERR_RUN);
    refuse(0, 0, ERR_RUN);
    put_order(1, &order, NULL);
    order = take(1, 0, 100);
    assert_int_equal(order.kind, ORDER_SAMPLES);
    put_order(1, &order, NULL);
    assert_int_equal(desk_finish(desk).n_failed_tasks, 0);
}

/* A slow rank turns out to be of no use when the others have refused already. */
static void a_group_that_is_left_to_strangers_is_a_failed_task(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(2, false);
    assert_int_equal(take(0, -1, 3).kind, ORDER_SAMPLES);
    refuse(0, 0, ERR_DATA);
    assert_int_equal(take(0, -1, 3).kind, ORDER_WAIT);
    greet(1, "another digest");
    assert_int_equal(take(0, -1, 3).kind, ORDER_END);
    assert_int_equal(desk_finish(desk).n_failed_tasks, 1);
    assert_query("select state || ': ' || error from attempts", "failed: no room");
}

static void under_strict_missing_resources_end_the_run(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(2, true);
    assert_int_equal(take(0, -1, 3).kind, ORDER_SAMPLES);
    refuse(0, 0, ERR_RESOURCE);
    assert_int_equal(take(1, -1, 3).kind, ORDER_END);
    struct desk_summary summary = desk_finish(desk);
    assert_int_equal(summary.failure, ERR_RESOURCE);
    assert_string_equal(summary.reason, "no room");
}

static void what_a_leaving_rank_holds_is_handed_out_again(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(2, false);
    struct order lost = take(0, -1, 100);
    begin(0, 0);
    put(0, 0, lost.range[0].work, lost.range[0].first, NULL);
    desk_leave(desk, 0);
    struct order order = take(1, -1, 100);
    assert_int_equal(n_of(&order), 6);
    begin(1, 0);
    /* A late word of the one that left changes nothing. */
    put(0, 0, lost.range[0].work, lost.range[0].first + 1, NULL);
    assert_query("select count(*) from samples", "1");
    put_order(1, &order, NULL);
    assert_query("select count(*) from samples", "7");
    assert_false(desk_all_left(desk));
    desk_leave(desk, 1);
    assert_true(desk_all_left(desk));
}

static void a_rank_with_another_work_list_gets_nothing(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(2, false);
    greet(1, "another digest");
    assert_int_equal(take(1, -1, 100).kind, ORDER_WAIT);
    struct order order = take(0, -1, 100);
    assert_int_equal(n_of(&order), 7); /* and counts for no share */
    assert_query("select detail like 'rank 1 on node sees other models%' from events", "1");
}

static void a_failed_sample_fails_its_task_and_no_other(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS "replications: 2\n");
    open_desk_of(1, false);
    struct order order = take(0, -1, 100);
    begin(0, 0);
    put(0, 0, order.range[0].work, 0, "a bad prompt");
    for (int s = 1; s < 7; s++)
        put(0, 0, order.range[0].work, s, NULL);
    order.range[0] = order.range[1];
    order.n_ranges = 1;
    put_order(0, &order, NULL);
    struct desk_summary summary = desk_finish(desk);
    assert_int_equal(summary.n_failed_tasks, 1);
    assert_int_equal(summary.n_done, 14);
    assert_query("select group_concat(state) from (select state from attempts order by task_id)",
                 "failed,done");
}

static void a_lost_rank_leaves_a_database_that_says_so(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    open_desk_of(2, false);
    struct order order = take(1, -1, 2);
    begin(1, 0);
    put(1, 0, order.range[0].work, order.range[0].first, NULL);
    desk_lose(desk, 1);
    if (store_open(&store, database, STORE_READ) != 0)
        fail_msg("%s", err_get());
    char text[256];
    assert_int_equal(store_query(store, "select exit_code from runs", take_text, text), 0);
    assert_string_equal(text, "75");
    assert_int_equal(
        store_query(store, "select state from workers where rank = 1", take_text, text), 0);
    assert_string_equal(text, "lost");
    assert_int_equal(store_query(store, "select count(*) from samples", take_text, text), 0);
    assert_string_equal(text, "1");
    lost_desk = desk;
    desk = NULL;
}

/* ---- the way to the desk ---- */

/* Two ranks in this process; each has its cluster, whose thread knows by this which one it is. */
static _Thread_local int own_rank;
static int n_opened;
static pthread_mutex_t boxes_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct str box[2][64]; /* messages to a rank, from the other one */
static int n_put[2], n_taken[2];
static bool is_held_back; /* what goes to rank 1 */

static int open_boxes(struct cluster_place *out)
{
    own_rank = n_opened++;
    *out = (struct cluster_place){.rank = own_rank, .size = 2, .local_size = 2, .cpu_size = 1};
    return 0;
}

static void send_to_box(int to, const char *data, size_t n)
{
    pthread_mutex_lock(&boxes_mutex);
    assert_true(n_put[to] < (int)ARRAY_LEN(box[to]));
    str_append(&box[to][n_put[to]++], data, n);
    pthread_mutex_unlock(&boxes_mutex);
}

static bool receive_from_box(int *from, struct str *out)
{
    pthread_mutex_lock(&boxes_mutex);
    bool there = n_taken[own_rank] < n_put[own_rank] && !(own_rank == 1 && is_held_back);
    if (there) {
        struct str *message = &box[own_rank][n_taken[own_rank]++];
        str_clear(out);
        str_append(out, message->data, message->len);
        str_free(message);
        *from = 1 - own_rank;
    }
    pthread_mutex_unlock(&boxes_mutex);
    return there;
}

static void hold_back(bool held_back)
{
    pthread_mutex_lock(&boxes_mutex);
    is_held_back = held_back;
    pthread_mutex_unlock(&boxes_mutex);
}

static void close_boxes(void)
{
}

static void abort_boxes(int code)
{
    (void)code;
    abort();
}

static struct order take_over_link(struct link *link, int room)
{
    struct order order;
    while (!link_take(link, -1, room, &order))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    return order;
}

/* The engine breaks while the rank waits for an answer, which is then worth nothing. */
static void a_rank_that_refuses_is_not_given_what_it_asked_for_before(void **state)
{
    (void)state;
    static const struct cluster_transport boxes = {.open = open_boxes,
                                                   .send = send_to_box,
                                                   .receive = receive_from_box,
                                                   .close = close_boxes,
                                                   .abort = abort_boxes};
    struct cluster *cluster[2];
    make_list(MODEL PROMPTS "grid: {engine.max_num_seqs: [4, 8]}\n");
    open_desk_of(2, false);
    for (int r = 0; r < 2; r++)
        assert_int_equal(cluster_start(&cluster[r], &boxes), 0);
    struct link_server server = {.cluster = cluster[0], .desk = desk};
    struct link *link = link_open(cluster[1], NULL);
    cluster_listen(cluster[0], &(struct cluster_events){.user = &server, .on_message = link_serve});

    struct order order = take_over_link(link, 1);
    struct opening opening = {.group = order.group, .has_model = true, .has_engine = true};
    assert_int_equal(order.kind, ORDER_SAMPLES);
    link_begin(link, &opening);
    hold_back(true);
    assert_false(link_take(link, order.group, 100, &order));
    err_set(ERR_RUN, "the device broke");
    link_refuse(link, &opening);
    assert_false(link_take(link, -1, 100, &order));
    hold_back(false);
    order = take_over_link(link, 100);
    assert_int_equal(order.kind, ORDER_SAMPLES);
    assert_int_not_equal(order.group, opening.group);

    link_dismiss(cluster[0], 0);
    assert_int_equal(link_leave(link), 0);
    cluster_listen(cluster[0], &(struct cluster_events){0});
    for (int r = 0; r < 2; r++)
        cluster_close(cluster[r]);
    link_close(link);
}

/* ---- shares of a job array ---- */

static void the_shares_of_an_array_are_the_whole_list_once(void **state)
{
    (void)state;
    static const int counts[] = {1, 2, 3, 8, 64, 100};
    const char *text = MODEL PROMPTS "grid: {sampling.max_tokens: [4, 64, 16], "
                                     "engine.max_num_seqs: [4, 8]}\nreplications: 3\n";
    for (size_t c = 0; c < ARRAY_LEN(counts); c++) {
        int64_t sum = 0, all = 0;
        int owner[18 * 7] = {0};
        for (int i = 0; i < counts[c]; i++) {
            make_list(text);
            all = work_list_share(&work);
            work_list_take_share(&work, i, counts[c]);
            sum += work_list_share(&work);
            assert_int_equal(work_list_share(&work), work_list_pending(&work));
            for (int w = 0; w < work.group[0].n; w++)
                for (int s = 0; s < 7; s++)
                    owner[w * 7 + s] += !work.group[0].work[w].done[s];
            teardown(NULL);
        }
        assert_int_equal(all, 18 * 7);
        assert_int_equal(sum, all);
        for (size_t i = 0; i < ARRAY_LEN(owner); i++)
            assert_int_equal(owner[i], 1);
    }
}

static void the_shares_of_an_array_cost_about_the_same(void **state)
{
    (void)state;
    int64_t least = INT64_MAX, most = 0;
    for (int i = 0; i < 4; i++) {
        int64_t cost = 0;
        make_list(MODEL PROMPTS "grid: {sampling.max_tokens: [4, 64, 16]}\nreplications: 4\n");
        work_list_take_share(&work, i, 4);
        for (int w = 0; w < work.group[0].n; w++)
            for (int s = 0; s < 7; s++)
                if (!work.group[0].work[w].done[s])
                    cost += work_sample_cost(&work.group[0].work[w], s);
        least = MIN(least, cost);
        most = MAX(most, cost);
        teardown(NULL);
    }
    assert_true(most - least < 2 * (64 * 8 + 64)); /* two of the dearest samples */
}

static void a_share_counts_what_is_done_of_it(void **state)
{
    (void)state;
    make_list(MODEL PROMPTS);
    memset(work.group[0].work[0].done, true, 7);
    work.group[0].work[0].n_pending = 0;
    work_list_take_share(&work, 1, 2);
    assert_true(work_list_share(&work) > 0);
    assert_int_equal(work_list_pending(&work), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(ranks_together_take_each_sample_once, teardown),
        cmocka_unit_test_teardown(ranks_may_come_at_the_same_time, teardown),
        cmocka_unit_test_teardown(a_rank_holds_at_most_its_share, teardown),
        cmocka_unit_test_teardown(a_share_is_one_of_the_cost, teardown),
        cmocka_unit_test_teardown(a_rank_alone_takes_all_that_it_has_room_for, teardown),
        cmocka_unit_test_teardown(long_samples_are_handed_out_first, teardown),
        cmocka_unit_test_teardown(ranks_spread_over_the_groups, teardown),
        cmocka_unit_test_teardown(a_rank_turns_to_another_group_with_one_sample, teardown),
        cmocka_unit_test_teardown(what_is_done_is_not_handed_out, teardown),
        cmocka_unit_test_teardown(a_group_that_one_rank_refuses_is_run_by_another, teardown),
        cmocka_unit_test_teardown(a_group_that_no_rank_can_run_is_a_failed_task, teardown),
        cmocka_unit_test_teardown(a_rank_that_fails_in_its_work_ends_its_attempts_with_the_reason,
                                  teardown),
        cmocka_unit_test_teardown(the_only_rank_that_fails_in_its_work_has_one_attempt, teardown),
        cmocka_unit_test_teardown(a_rank_refuses_a_group_once, teardown),
        cmocka_unit_test_teardown(a_group_that_is_left_to_strangers_is_a_failed_task, teardown),
        cmocka_unit_test_teardown(what_a_leaving_rank_holds_is_handed_out_again, teardown),
        cmocka_unit_test_teardown(a_rank_with_another_work_list_gets_nothing, teardown),
        cmocka_unit_test_teardown(a_failed_sample_fails_its_task_and_no_other, teardown),
        cmocka_unit_test_teardown(a_rank_that_refuses_is_not_given_what_it_asked_for_before,
                                  teardown),
        cmocka_unit_test_teardown(the_shares_of_an_array_are_the_whole_list_once, teardown),
        cmocka_unit_test_teardown(the_shares_of_an_array_cost_about_the_same, teardown),
        cmocka_unit_test_teardown(a_share_counts_what_is_done_of_it, teardown),
        /* These leave the process stopping, or the desk locked. */
        cmocka_unit_test_teardown(a_lost_rank_leaves_a_database_that_says_so, teardown),
        cmocka_unit_test_teardown(under_strict_missing_resources_end_the_run, teardown),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
