/* test_engine.c - the whole engine on tiny models: what a request becomes does not depend on what
 * runs beside it, nor on any setting that only concerns speed or memory.
 */
#include "tests/workload.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const char *const MODELS[] = {
    "tests/golden/qwen3",   /* no eos                       */
    "tests/golden/mistral", /* sliding window of 8, eos 2   */
    "tests/golden/llama3",  /* bf16, eos 2                  */
};

static const struct engine_options SMALL = {.fast = true, .max_num_seqs = 4};

/* ---- equal tokens ---- */

static const struct {
    const char *name;
    struct engine_options options;
    bool two_threads, preempts, hits;
    int n_host_blocks; /* for swapping; 0: recompute         */
    bool host_is_full; /* some preemptions still recompute */
} SETTINGS[] = {
    {.name = "3 sequences at once", .options = {.fast = true, .max_num_seqs = 3}},
    {.name = "32 sequences at once", .options = {.fast = true, .max_num_seqs = 32}},
    {.name = "32 sequences, blocks of 64 tokens and 2 threads",
     .options = {.fast = true, .max_num_seqs = 32, .block_size = 64},
     .two_threads = true},
    {.name = "chunks of 16 tokens",
     .options = {.fast = true, .max_num_seqs = 32, .max_num_batched_tokens = 16}},
    {.name = "chunks of 1 token",
     .options = {.fast = true, .max_num_seqs = 5, .max_num_batched_tokens = 1}},
    {.name = "chunks of 64 tokens",
     .options = {.fast = true, .max_num_seqs = 32, .max_num_batched_tokens = 64}},
    {.name = "the prefix cache",
     .options = {.fast = true, .max_num_seqs = 4, .prefix_caching = true},
     .hits = true},
    {.name = "the prefix cache and chunks of 17 tokens",
     .options = {.fast = true, .max_num_batched_tokens = 17, .prefix_caching = true},
     .hits = true},
    {.name = "a pool of 9 blocks", .options = {.fast = true, .n_kv_blocks = 9}, .preempts = true},
    {.name = "a pool of 8 blocks and the prefix cache",
     .options = {.fast = true, .n_kv_blocks = 8, .prefix_caching = true},
     .preempts = true,
     .hits = true},
    {.name = "a pool of 9 blocks and swapping",
     .options = {.fast = true, .n_kv_blocks = 9},
     .preempts = true,
     .n_host_blocks = 100},
    {.name = "a pool of 8 blocks, swapping and the prefix cache",
     .options = {.fast = true, .n_kv_blocks = 8, .prefix_caching = true},
     .preempts = true,
     .hits = true,
     .n_host_blocks = 100},
    {.name = "a pool of 12 blocks, swapping and chunks of 17 tokens",
     .options = {.fast = true, .n_kv_blocks = 12, .max_num_batched_tokens = 17},
     .preempts = true,
     .n_host_blocks = 100},
    {.name = "a pool of 8 blocks, swapping, the prefix cache and chunks of 17 tokens",
     .options =
         {.fast = true, .n_kv_blocks = 8, .max_num_batched_tokens = 17, .prefix_caching = true},
     .preempts = true,
     .hits = true,
     .n_host_blocks = 100},
    {.name = "a pool of 9 blocks and a host pool of 2",
     .options = {.fast = true, .n_kv_blocks = 9},
     .preempts = true,
     .n_host_blocks = 2,
     .host_is_full = true},
    {.name = "priorities, a pool of 8 blocks, swapping and 2 threads",
     .options = {.fast = true, .policy = SCHEDULING_PRIORITY, .n_kv_blocks = 8},
     .two_threads = true,
     .preempts = true,
     .n_host_blocks = 100},
    {.name = "priorities and a pool of 8 blocks",
     .options = {.fast = true, .policy = SCHEDULING_PRIORITY, .n_kv_blocks = 8},
     .preempts = true},
    {.name = "memory-aware scheduling and a pool of 10 blocks",
     .options = {.fast = true, .policy = SCHEDULING_MEMORY_AWARE, .n_kv_blocks = 10}},
    {.name = "steps that are not recorded",
     .options = {.fast = true, .max_num_seqs = 32, .enforce_eager = true}},
    {.name = "the standard engine", .options = {.max_num_seqs = 7}},
    {.name = "the standard engine, chunks of 33 tokens and 2 threads",
     .options = {.max_num_seqs = 32, .max_num_batched_tokens = 33},
     .two_threads = true},
};

/* OMP_NUM_THREADS = 1 is how ThreadSanitizer runs are made, because it takes the barriers of
 * OpenMP for races: then no test may use more. */
static int at_most_omp_threads(int wanted)
{
    const char *text = getenv("OMP_NUM_THREADS");
    int64_t limit;
    return text && parse_int64(&limit, text) && limit < wanted ? (int)limit : wanted;
}

/* Bytes of so many blocks of an engine with these options. */
static size_t swap_bytes(struct model *model, const struct engine_options *options, int n_blocks)
{
    struct engine *engine = workload_open_engine(model, options);
    size_t bytes = (size_t)n_blocks * engine_get_plan(engine)->block_bytes;
    engine_close(engine);
    return bytes;
}

static void check_swaps(const struct engine_stats *s, int n_host_blocks, bool host_is_full)
{
    assert_int_equal(s->n_swapped_out > 0, n_host_blocks > 0);
    assert_int_equal(s->n_swapped_in, s->n_swapped_out);
    assert_int_equal(s->kv_host_blocks, n_host_blocks);
    assert_int_equal(s->kv_host_used, 0);
    if (n_host_blocks > 0)
        assert_int_equal(s->n_swapped_out < s->n_preemptions, host_is_full);
}

static void check_settings(const char *path, enum attention_kind attention)
{
    struct workload *alone = workload_make();
    struct model *one_thread = workload_open_model(path, 1);
    struct model *two_threads = workload_open_model(path, at_most_omp_threads(2));
    struct engine_options one = {.fast = true, .attention = attention, .max_num_seqs = 1};
    workload_run(alone, one_thread, &one);
    for (size_t i = 0; i < ARRAY_LEN(SETTINGS); i++) {
        struct engine_options options = SETTINGS[i].options;
        options.attention = attention;
        struct workload *w = workload_make();
        struct model *model = SETTINGS[i].two_threads ? two_threads : one_thread;
        options.swap_bytes = swap_bytes(model, &options, SETTINGS[i].n_host_blocks);
        struct engine_stats stats = workload_run(w, model, &options);
        workload_assert_same(alone, w, path, SETTINGS[i].name);
        assert_int_equal(stats.n_preemptions > 0, SETTINGS[i].preempts);
        assert_int_equal(stats.cached_tokens > 0, SETTINGS[i].hits);
        check_swaps(&stats, SETTINGS[i].n_host_blocks, SETTINGS[i].host_is_full);
        free(w);
    }
    free(alone);
    model_close(one_thread);
    model_close(two_threads);
}

static void settings_of_speed_and_memory_do_not_change_tokens_with_flash(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(MODELS); i++)
        check_settings(MODELS[i], ATTENTION_FLASH);
}

static void settings_of_speed_and_memory_do_not_change_tokens_with_eager(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(MODELS); i++)
        check_settings(MODELS[i], ATTENTION_EAGER);
}

static void settings_of_speed_and_memory_do_not_change_tokens_with_memory_efficient(void **state)
{
    (void)state;
    if (test_device() == DEVICE_CPU) {
        print_message("memory_efficient attention is for GPUs: QUIRE_TEST_DEVICE=cuda\n");
        skip();
    }
    for (size_t i = 0; i < ARRAY_LEN(MODELS); i++)
        check_settings(MODELS[i], ATTENTION_MEMORY_EFFICIENT);
}

static void a_shared_block_is_copied_before_the_second_owner_writes_to_it(void **state)
{
    (void)state;
    struct workload *alone = workload_make(), *w = workload_make();
    struct model *model = workload_open_model(MODELS[0], 1);
    workload_run(alone, model, &SMALL);
    struct engine_options options = SMALL;
    options.prefix_caching = true;
    struct engine *engine = workload_open_engine(model, &options);
    /* Requests 3 and 6 have the same prompt of three whole blocks. */
    assert_memory_equal(w->prompt[3], w->prompt[6], 48 * sizeof(int));
    workload_submit(engine, &w->request[3], NULL);
    assert_int_equal(engine_step(engine), 1);
    workload_submit(engine, &w->request[6], NULL);
    workload_step_all(engine);
    assert_int_equal(w->outcome[6].n_cached, 47);
    for (int i = 3; i <= 6; i += 3) {
        assert_int_equal(w->outcome[i].n_ids, alone->outcome[i].n_ids);
        assert_memory_equal(w->outcome[i].ids, alone->outcome[i].ids,
                            (size_t)w->outcome[i].n_ids * sizeof(int));
    }
    engine_close(engine);
    model_close(model);
    free(alone);
    free(w);
}

/* ---- the right tokens ---- */

static int read_ids(const json_t *array, int *ids, int max)
{
    int n = (int)json_array_size(array);
    assert_true(n > 0 && n <= max);
    for (int i = 0; i < n; i++)
        ids[i] = (int)json_integer_value(json_array_get(array, (size_t)i));
    return n;
}

static void check_golden(const char *path, const struct engine_options *options)
{
    struct model *model = workload_open_model(path, 1);
    struct engine *engine = workload_open_engine(model, options);
    char *file = path_join(path, "logits.json");
    json_t *golden = json_read_file(file);
    assert_non_null(golden);
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(golden, "prompts"), i, entry)
    {
        int prompt[MAX_PROMPT], expected[MAX_OUTPUT];
        int n = read_ids(json_object_get(entry, "greedy_ids"), expected, MAX_OUTPUT);
        struct outcome outcome = {0};
        struct request request = {.prompt = prompt,
                                  .sampling = {.max_tokens = n, .ignore_eos = true},
                                  .on_finish = workload_note_finish,
                                  .user = &outcome};
        request.n_prompt = read_ids(json_object_get(entry, "prompt_ids"), prompt, MAX_PROMPT);
        workload_submit(engine, &request, NULL);
        workload_step_all(engine);
        assert_int_equal(outcome.n_ids, n);
        assert_memory_equal(outcome.ids, expected, (size_t)n * sizeof(int));
        assert_int_equal(outcome.reason, FINISH_LENGTH);
    }
    json_decref(golden);
    free(file);
    engine_close(engine);
    model_close(model);
}

static void greedy_tokens_are_those_of_another_implementation(void **state)
{
    (void)state;
    static const enum attention_kind kinds[] = {ATTENTION_FLASH, ATTENTION_EAGER};
    for (size_t i = 0; i < ARRAY_LEN(MODELS); i++) {
        for (size_t a = 0; a < ARRAY_LEN(kinds); a++) {
            struct engine_options options = {.attention = kinds[a]};
            check_golden(MODELS[i], &options);
            options.fast = true;
            options.max_num_batched_tokens = 7;
            check_golden(MODELS[i], &options);
        }
    }
}

/* ---- the end of a sequence ---- */

struct fixture {
    struct model *model;
    struct engine *engine;
    struct workload *w;
};

static void setup(struct fixture *f, const struct engine_options *options)
{
    f->model = workload_open_model(MODELS[0], 1);
    f->engine = workload_open_engine(f->model, options);
    f->w = workload_make();
}

static void teardown(struct fixture *f)
{
    engine_close(f->engine);
    model_close(f->model);
    free(f->w);
}

/* n_ids when it is not there. */
static int index_of(int id, const struct outcome *o)
{
    int i = 0;
    while (i < o->n_ids && o->ids[i] != id)
        i++;
    return i;
}

static void a_stop_id_ends_a_sequence_and_is_its_last_token(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &SMALL);
    struct request r = f.w->request[0];
    workload_submit(f.engine, &r, NULL);
    workload_step_all(f.engine);
    const struct outcome *whole = &f.w->outcome[0];
    assert_int_equal(whole->reason, FINISH_LENGTH);
    int stop = whole->ids[whole->n_ids / 2], absent = 0;
    int n = index_of(stop, whole);
    while (index_of(absent, whole) < whole->n_ids)
        absent++;
    r.sampling.stop_ids[0] = absent;
    r.sampling.stop_ids[1] = stop;
    r.sampling.n_stop_ids = 2;
    r.user = &f.w->outcome[1];
    workload_submit(f.engine, &r, NULL);
    workload_step_all(f.engine);
    const struct outcome *stopped = &f.w->outcome[1];
    assert_int_equal(stopped->reason, FINISH_STOP);
    assert_int_equal(stopped->n_ids, n + 1);
    assert_memory_equal(stopped->ids, whole->ids, (size_t)(n + 1) * sizeof(int));
    teardown(&f);
}

static void eos_ends_a_sequence_unless_it_is_ignored(void **state)
{
    (void)state;
    struct model *model = workload_open_model("tests/golden/llama3", 1);
    struct engine *engine = workload_open_engine(model, &SMALL);
    assert_int_equal(model_get_info(model)->eos[0], 2);
    struct workload *w = workload_make();
    int n_stopped = 0;
    for (int i = 0; i < N_REQUESTS; i++) {
        struct request r = w->request[i];
        r.sampling =
            (struct sampling_params){.temperature = 3, .max_tokens = 40, .ignore_eos = i % 2 == 0};
        workload_submit(engine, &r, NULL);
    }
    workload_step_all(engine);
    for (int i = 0; i < N_REQUESTS; i++) {
        const struct outcome *o = &w->outcome[i];
        assert_true(o->reason == FINISH_LENGTH ? o->n_ids == 40 : o->ids[o->n_ids - 1] == 2);
        assert_true(i % 2 != 0 || o->reason == FINISH_LENGTH);
        n_stopped += o->reason == FINISH_STOP;
    }
    assert_true(n_stopped > 0);
    free(w);
    engine_close(engine);
    model_close(model);
}

static void max_tokens_is_cut_to_what_max_model_len_leaves(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &SMALL);
    int prompt[MAX_MODEL_LEN - 1] = {0};
    struct request r = f.w->request[0];
    r.prompt = prompt;
    r.sampling.max_tokens = INT32_MAX;
    for (int room = 1; room <= 3; room++) {
        r.n_prompt = MAX_MODEL_LEN - room;
        r.user = &f.w->outcome[room];
        workload_submit(f.engine, &r, NULL);
        workload_step_all(f.engine);
        assert_int_equal(f.w->outcome[room].n_ids, room);
        assert_int_equal(f.w->outcome[room].reason, FINISH_LENGTH);
    }
    teardown(&f);
}

/* ---- requests that are refused ---- */

static void requests_that_can_never_run_are_refused_with_the_reason(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &SMALL);
    int prompt[MAX_MODEL_LEN] = {0};
    const struct request good = {.prompt = prompt, .n_prompt = 3, .sampling = {.max_tokens = 1}};
    struct request r = good;
    r.n_prompt = 0;
    assert_int_equal(engine_submit(f.engine, &r, NULL), -1);
    assert_error(ERR_DATA, "empty");
    r.n_prompt = MAX_MODEL_LEN;
    assert_int_equal(engine_submit(f.engine, &r, NULL), -1);
    assert_error(ERR_DATA, "128 tokens; expected at most 127");
    r = good;
    for (int bad = -1; bad <= 96; bad += 97) {
        prompt[2] = bad;
        assert_int_equal(engine_submit(f.engine, &r, NULL), -1);
        assert_error(ERR_DATA, "token 2 of the prompt");
    }
    prompt[2] = 95;
    static const struct {
        struct sampling_params sampling;
        const char *part;
    } bad[] = {
        {{.max_tokens = 0}, "max_tokens"},
        {{.max_tokens = 1, .temperature = -1}, "temperature"},
        {{.max_tokens = 1, .top_p = 1.5f}, "top_p"},
        {{.max_tokens = 1, .min_p = -0.5f}, "min_p"},
        {{.max_tokens = 1, .top_k = -1}, "top_k"},
        {{.max_tokens = 1, .n_stop_ids = ENGINE_MAX_STOP_IDS + 1}, "stop ids"},
        {{.max_tokens = 1, .n_stop_ids = 1, .stop_ids = {96}}, "stop id 96"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        r.sampling = bad[i].sampling;
        assert_int_equal(engine_submit(f.engine, &r, NULL), -1);
        assert_error(ERR_DATA, bad[i].part);
    }
    assert_int_equal(engine_step(f.engine), 0); /* nothing of it was queued */
    assert_int_equal(engine_submit(f.engine, &good, NULL), 0);
    workload_step_all(f.engine);
    teardown(&f);
}

/* ---- cancelling ---- */

static void a_cancelled_request_ends_with_the_tokens_that_it_has(void **state)
{
    (void)state;
    struct engine_options one = SMALL;
    one.max_num_seqs = 1;
    struct fixture f;
    setup(&f, &one);
    uint64_t running, waiting, last;
    workload_submit(f.engine, &f.w->request[0], &running);
    workload_submit(f.engine, &f.w->request[7], &waiting);
    workload_submit(f.engine, &f.w->request[14], &last);
    for (int i = 0; i < 3 + workload_async; i++) /* its tokens come one step later */
        assert_int_equal(engine_step(f.engine), 1);
    assert_false(engine_cancel(f.engine, 12345));
    assert_true(engine_cancel(f.engine, running));
    assert_true(engine_cancel(f.engine, waiting));
    workload_step_all(f.engine);
    assert_int_equal(f.w->outcome[0].reason, FINISH_CANCELLED);
    assert_int_equal(f.w->outcome[0].n_ids, 3);
    assert_int_equal(f.w->outcome[7].reason, FINISH_CANCELLED);
    assert_int_equal(f.w->outcome[7].n_ids, 0);
    assert_int_equal(f.w->outcome[14].reason, FINISH_LENGTH);
    assert_false(engine_cancel(f.engine, last));
    struct engine_stats stats;
    engine_get_stats(f.engine, &stats);
    assert_int_equal(stats.n_finished, 3);
    assert_int_equal(stats.kv_used, 0);
    teardown(&f);
}

/* Ids are looked up in a table that grows. */
static void one_of_many_requests_is_cancelled_by_its_id(void **state)
{
    enum { N = 500 };
    (void)state;
    struct fixture f;
    uint64_t id[N];
    bool is_cancelled[N] = {0};
    struct outcome *outcome = xcalloc(N, sizeof(*outcome));
    setup(&f, &SMALL);
    struct request r = f.w->request[0];
    r.sampling.max_tokens = 1;
    for (int i = 0; i < N; i++) {
        r.user = &outcome[i];
        workload_submit(f.engine, &r, &id[i]);
    }
    for (int i = 0; i < N; i += 3) {
        int at = i * 7 % N; /* out of order */
        assert_true(engine_cancel(f.engine, id[at]));
        is_cancelled[at] = true;
    }
    workload_step_all(f.engine);
    for (int i = 0; i < N; i++) {
        assert_int_equal(outcome[i].n_finished, 1);
        assert_int_equal(outcome[i].reason, is_cancelled[i] ? FINISH_CANCELLED : FINISH_LENGTH);
        assert_false(engine_cancel(f.engine, id[i]));
    }
    free(outcome);
    teardown(&f);
}

struct canceller {
    struct engine *engine;
    struct outcome *outcome;
    uint64_t id;
    int after;
};

static void cancel_after_some_tokens(void *user, int id)
{
    struct canceller *c = user;
    workload_note_token(c->outcome, id);
    if (c->outcome->n_seen == c->after)
        assert_true(engine_cancel(c->engine, c->id));
}

static void note_canceller_finish(void *user, const struct completion *completion)
{
    const struct canceller *c = user;
    workload_note_finish(c->outcome, completion);
    assert_false(engine_cancel(c->engine, c->id));
}

static void a_callback_may_cancel_its_own_request(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &SMALL);
    struct canceller c = {.engine = f.engine, .outcome = &f.w->outcome[0], .after = 5};
    struct request r = f.w->request[0];
    r.on_token = cancel_after_some_tokens;
    r.on_finish = note_canceller_finish;
    r.user = &c;
    workload_submit(f.engine, &r, &c.id);
    workload_step_all(f.engine);
    assert_int_equal(f.w->outcome[0].reason, FINISH_CANCELLED);
    assert_int_equal(f.w->outcome[0].n_ids, 5);
    teardown(&f);
}

/* ---- submitting from elsewhere ---- */

struct chain {
    struct engine *engine;
    const struct workload *w;
    int n_left, n_done;
};

static void submit_the_next(void *user, const struct completion *completion)
{
    struct chain *c = user;
    assert_int_equal(completion->reason, FINISH_LENGTH);
    c->n_done++;
    if (c->n_left-- == 0)
        return;
    struct request r = c->w->request[c->n_left];
    r.sampling.ignore_eos = true;
    r.on_token = NULL;
    r.on_finish = submit_the_next;
    r.user = c;
    workload_submit(c->engine, &r, NULL);
}

static void a_callback_may_submit_the_next_request(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &SMALL);
    struct chain c = {.engine = f.engine, .w = f.w, .n_left = 6};
    submit_the_next(&c, &(struct completion){.reason = FINISH_LENGTH});
    workload_step_all(f.engine);
    assert_int_equal(c.n_done, 8 - 1);
    teardown(&f);
}

#define N_SUBMITTERS 3

struct submitter {
    struct engine *engine;
    struct workload *w;
    int first; /* submits every N_SUBMITTERS-th request from here on */
};

static void *submit_share(void *user)
{
    const struct submitter *s = user;
    struct engine_stats stats;
    for (int i = s->first; i < N_REQUESTS; i += N_SUBMITTERS) {
        /* cmocka cannot fail a test from here; a request that is missing fails it later. */
        if (engine_submit(s->engine, &s->w->request[i], NULL) != 0)
            return NULL;
        engine_get_stats(s->engine, &stats);
        engine_cancel(s->engine, UINT64_MAX);
    }
    return NULL;
}

static void start_submitters(pthread_t thread[], struct submitter s[], struct engine *engine,
                             struct workload *w)
{
    for (int i = 0; i < N_SUBMITTERS; i++) {
        s[i] = (struct submitter){.engine = engine, .w = w, .first = i};
        assert_int_equal(pthread_create(&thread[i], NULL, submit_share, &s[i]), 0);
    }
}

static int count_finished(struct engine *engine)
{
    struct engine_stats stats;
    engine_get_stats(engine, &stats);
    return (int)stats.n_finished;
}

static void many_threads_may_submit_while_one_steps(void **state)
{
    (void)state;
    struct fixture f;
    pthread_t thread[N_SUBMITTERS];
    struct submitter s[N_SUBMITTERS];
    setup(&f, &SMALL);
    struct workload *alone = workload_make();
    workload_run(alone, f.model, &SMALL);
    start_submitters(thread, s, f.engine, f.w);
    while (count_finished(f.engine) < N_REQUESTS)
        engine_step(f.engine);
    for (int i = 0; i < N_SUBMITTERS; i++)
        pthread_join(thread[i], NULL);
    workload_assert_same(alone, f.w, MODELS[0], "submissions from many threads");
    free(alone);
    teardown(&f);
}

static void wait_for(struct engine *engine, int n_finished)
{
    double start_s = time_monotonic_s();
    while (count_finished(engine) < n_finished) {
        if (time_monotonic_s() - start_s > 60)
            fail_msg("the engine's thread does not get on");
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static void a_background_thread_works_whenever_there_is_work(void **state)
{
    (void)state;
    struct fixture f;
    pthread_t thread[N_SUBMITTERS];
    struct submitter s[N_SUBMITTERS];
    setup(&f, &SMALL);
    struct workload *alone = workload_make();
    workload_run(alone, f.model, &SMALL);
    assert_int_equal(engine_start(f.engine), 0);
    assert_int_equal(engine_start(f.engine), -1);
    assert_error(ERR_RUN, "already");
    start_submitters(thread, s, f.engine, f.w);
    for (int i = 0; i < N_SUBMITTERS; i++)
        pthread_join(thread[i], NULL);
    wait_for(f.engine, N_REQUESTS);
    workload_submit(
        f.engine,
        &(struct request){.prompt = f.w->prompt[0], .n_prompt = 1, .sampling = {.max_tokens = 2}},
        NULL); /* after it went to sleep */
    wait_for(f.engine, N_REQUESTS + 1);
    engine_stop(f.engine);
    engine_stop(f.engine);
    workload_assert_same(alone, f.w, MODELS[0], "a background thread");
    free(alone);
    teardown(&f);
}

static void an_engine_closes_in_the_middle_of_its_work(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &SMALL);
    for (int i = 0; i < N_REQUESTS; i++)
        workload_submit(f.engine, &f.w->request[i], NULL);
    assert_int_equal(engine_start(f.engine), 0);
    wait_for(f.engine, 1);
    teardown(&f);
}

static void engines_of_one_model_may_take_turns(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &SMALL);
    struct workload *alone = workload_make(), *w = workload_make();
    workload_run(alone, f.model, &SMALL);
    struct engine *other = workload_open_engine(f.model, &SMALL);
    for (int i = 0; i < N_REQUESTS; i++) { /* in another order, so that lanes have other tokens */
        workload_submit(f.engine, &f.w->request[i], NULL);
        workload_submit(other, &w->request[N_REQUESTS - 1 - i], NULL);
    }
    for (bool worked = true; worked;) {
        worked = engine_step(f.engine) > 0;
        worked |= engine_step(other) > 0;
    }
    engine_close(other);
    workload_assert_same(alone, f.w, MODELS[0], "another engine beside it");
    workload_assert_same(alone, w, MODELS[0], "an engine in front of it");
    free(alone);
    free(w);
    teardown(&f);
}

/* ---- statistics ---- */

static void statistics_add_up(void **state)
{
    (void)state;
    for (int fast = 0; fast < 2; fast++) {
        struct fixture f;
        struct engine_options options = SMALL;
        options.fast = fast;
        options.prefix_caching = true;
        setup(&f, &options);
        struct engine_stats s;
        engine_get_stats(f.engine, &s);
        assert_int_equal(s.kv_blocks, engine_get_plan(f.engine)->n_blocks);
        for (int i = 0; i < N_REQUESTS; i++)
            workload_submit(f.engine, &f.w->request[i], NULL);
        engine_get_stats(f.engine, &s);
        assert_int_equal(s.n_waiting, N_REQUESTS);
        for (int i = 0; i < 1 + workload_async; i++)
            assert_int_equal(engine_step(f.engine), 1);
        engine_get_stats(f.engine, &s);
        assert_int_equal(s.n_waiting + s.n_running + s.n_finished, N_REQUESTS);
        assert_true(s.kv_used > 0 && s.kv_used + s.kv_cached <= s.kv_blocks);
        workload_step_all(f.engine);
        long n_prompt = 0, n_output = 0, n_cached = 0;
        for (int i = 0; i < N_REQUESTS; i++) {
            n_prompt += f.w->outcome[i].n_prompt;
            n_output += f.w->outcome[i].n_ids;
            n_cached += f.w->outcome[i].n_cached;
        }
        engine_get_stats(f.engine, &s);
        assert_int_equal(s.n_finished, N_REQUESTS);
        assert_int_equal(s.n_waiting + s.n_running + s.kv_used, 0);
        assert_int_equal(s.output_tokens, n_output);
        assert_int_equal(s.cached_tokens, n_cached);
        assert_int_equal(s.n_preemptions, 0);
        assert_int_equal(s.prompt_tokens + s.cached_tokens, n_prompt);
        assert_int_equal(n_cached > 0, fast);
        assert_true(s.batch_seqs_mean > 1 && s.batch_seqs_mean <= 4);
        assert_true(s.kv_waste > 0 && s.kv_waste < 1);
        assert_true(s.prefill_s > 0 && s.decode_s > 0);
        assert_true(s.kv_used_peak > 0 && s.kv_used_peak <= s.kv_blocks);
        teardown(&f);
    }
}

static void names_are_those_of_the_configuration(void **state)
{
    (void)state;
    assert_string_equal(scheduling_policy_name(SCHEDULING_FCFS), "fcfs");
    assert_string_equal(scheduling_policy_name(SCHEDULING_PRIORITY), "priority");
    assert_string_equal(scheduling_policy_name(SCHEDULING_MEMORY_AWARE), "memory_aware");
    assert_string_equal(finish_reason_name(FINISH_STOP), "stop");
    assert_string_equal(finish_reason_name(FINISH_LENGTH), "length");
    assert_string_equal(finish_reason_name(FINISH_CANCELLED), "cancelled");
}

static int turn_async_off(void **state)
{
    (void)state;
    workload_async = false;
    return 0;
}

static int turn_async_on(void **state)
{
    (void)state;
    workload_async = true;
    return 0;
}

/* A test of its own for each of the two ways to step. */
#define BOTH_WAYS(test)                                                                            \
    {#test, test, turn_async_off, NULL, NULL},                                                     \
    {                                                                                              \
#test "_async", test, turn_async_on, NULL, NULL                                            \
    }

int main(void)
{
    if (log_set_level("warning") != 0)
        return 1;
    const struct CMUnitTest tests[] = {
        BOTH_WAYS(greedy_tokens_are_those_of_another_implementation),
        BOTH_WAYS(settings_of_speed_and_memory_do_not_change_tokens_with_flash),
        BOTH_WAYS(settings_of_speed_and_memory_do_not_change_tokens_with_eager),
        BOTH_WAYS(settings_of_speed_and_memory_do_not_change_tokens_with_memory_efficient),
        BOTH_WAYS(a_shared_block_is_copied_before_the_second_owner_writes_to_it),
        BOTH_WAYS(a_stop_id_ends_a_sequence_and_is_its_last_token),
        BOTH_WAYS(eos_ends_a_sequence_unless_it_is_ignored),
        BOTH_WAYS(max_tokens_is_cut_to_what_max_model_len_leaves),
        BOTH_WAYS(requests_that_can_never_run_are_refused_with_the_reason),
        BOTH_WAYS(a_cancelled_request_ends_with_the_tokens_that_it_has),
        BOTH_WAYS(one_of_many_requests_is_cancelled_by_its_id),
        BOTH_WAYS(a_callback_may_cancel_its_own_request),
        BOTH_WAYS(a_callback_may_submit_the_next_request),
        BOTH_WAYS(many_threads_may_submit_while_one_steps),
        BOTH_WAYS(a_background_thread_works_whenever_there_is_work),
        BOTH_WAYS(an_engine_closes_in_the_middle_of_its_work),
        BOTH_WAYS(engines_of_one_model_may_take_turns),
        BOTH_WAYS(statistics_add_up),
        cmocka_unit_test(names_are_those_of_the_configuration),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
