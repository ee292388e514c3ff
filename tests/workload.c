/* workload.c - see workload.h. */
#include "tests/workload.h"

#include <string.h>

void workload_note_token(void *user, int id)
{
    struct outcome *o = user;
    assert_int_equal(o->n_finished, 0);
    assert_true(o->n_seen < MAX_OUTPUT);
    o->seen[o->n_seen++] = id;
}

void workload_note_finish(void *user, const struct completion *c)
{
    struct outcome *o = user;
    assert_true(c->n_ids <= MAX_OUTPUT);
    memcpy(o->ids, c->ids, (size_t)c->n_ids * sizeof(int));
    o->n_ids = c->n_ids;
    o->reason = c->reason;
    o->n_prompt = c->n_prompt;
    o->n_cached = c->n_cached;
    o->n_preemptions = c->n_preemptions;
    o->n_finished++;
    assert_true(c->submitted_s > 0 && c->finished_s >= c->submitted_s);
    if (c->reason != FINISH_CANCELLED)
        assert_true(c->scheduled_s >= c->submitted_s && c->first_token_s >= c->scheduled_s);
}

static void make_prompt(struct workload *w, int i)
{
    static const int lengths[] = {1, 2, 15, 48, 16, 17, 48, 31, 32, 64, 33, 47, 79, 5, 3};
    struct request *r = &w->request[i];
    r->n_prompt = lengths[(size_t)i % ARRAY_LEN(lengths)];
    for (int p = 0; p < r->n_prompt; p++) {
        int kind = i % 3 == 0 ? 7 : i * 100;
        w->prompt[i][p] = 3 + (int)(mix64((uint64_t)(kind + p)) % 90);
    }
    r->prompt = w->prompt[i];
}

static void make_sampling(struct sampling_params *p, int i)
{
    static const int max_tokens[] = {40, 1, 7, 23, 2, 16, 33};
    p->max_tokens = max_tokens[(size_t)i % ARRAY_LEN(max_tokens)];
    p->ignore_eos = i % 4 != 0;
    if (i % 2 == 0)
        return;
    p->temperature = 0.5f + 0.25f * (float)(i % 5);
    p->top_p = i % 3 == 0 ? 0.9f : 0;
    p->top_k = i % 5 == 0 ? 8 : 0;
    p->min_p = i % 7 == 0 ? 0.05f : 0;
}

struct workload *workload_make(void)
{
    struct workload *w = xcalloc(1, sizeof(*w));
    for (int i = 0; i < N_REQUESTS; i++) {
        struct request *r = &w->request[i];
        make_prompt(w, i);
        make_sampling(&r->sampling, i);
        r->seed = mix64((uint64_t)i);
        r->priority = i * 7 % 5;
        r->on_token = workload_note_token;
        r->on_finish = workload_note_finish;
        r->user = &w->outcome[i];
    }
    return w;
}

void workload_submit(struct engine *engine, const struct request *request, uint64_t *id)
{
    if (engine_submit(engine, request, id) != 0)
        fail_msg("%s", err_get());
}

void workload_step_all(struct engine *engine)
{
    int rc;
    while ((rc = engine_step(engine)) > 0) {
    }
    assert_int_equal(rc, 0);
}

/* ---- models and engines ---- */

struct model *workload_open_model(const char *path, int n_threads)
{
    struct model_options options = {
        .path = path, .device = test_device(), .device_options = {.n_threads = n_threads}};
    return test_open_model(&options);
}

bool workload_async;

struct engine *workload_open_engine(struct model *model, const struct engine_options *options)
{
    struct engine *engine;
    struct engine_options o = *options;
    o.max_model_len = MAX_MODEL_LEN;
    o.async_scheduling = workload_async;
    o.block_size = o.block_size ? o.block_size : 16;
    if (engine_open(&engine, model, &o) != 0)
        fail_msg("%s", err_get());
    return engine;
}

struct engine_stats workload_run(struct workload *w, struct model *model,
                                 const struct engine_options *options)
{
    struct engine *engine = workload_open_engine(model, options);
    struct engine_stats stats;
    for (int i = 0; i < N_REQUESTS; i++)
        workload_submit(engine, &w->request[i], NULL);
    workload_step_all(engine);
    engine_get_stats(engine, &stats);
    engine_close(engine);
    return stats;
}

void workload_assert_same(const struct workload *a, const struct workload *b, const char *model,
                          const char *setting)
{
    for (int i = 0; i < N_REQUESTS; i++) {
        const struct outcome *x = &a->outcome[i], *y = &b->outcome[i];
        bool same = x->n_ids == y->n_ids && x->reason == y->reason &&
                    memcmp(x->ids, y->ids, (size_t)x->n_ids * sizeof(int)) == 0;
        if (!same)
            fail_msg("%s: request %d has other tokens with %s", model, i, setting);
        assert_int_equal(y->n_finished, 1);
        assert_int_equal(y->n_seen, y->n_ids);
        assert_memory_equal(y->seen, y->ids, (size_t)y->n_ids * sizeof(int));
    }
}
