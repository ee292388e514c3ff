/* generation.c - see generation.h. */
#include "runner/generation.h"
#include "runner/stop.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ASK_AGAIN_S 0.02 /* after the answer that there is nothing now */
#define NAP_NS      1000000

/* One submitted sample, from submission to its finish callback. */
struct flight {
    struct state *state;
    int work, sample; /* as in a range */
    uint64_t id;      /* of the request */
    bool in_engine, started;
    struct flight *next_free;
};

struct state {
    struct generation *g;
    struct flight *flight; /* [n_flights] */
    struct flight *free;   /* those not in the engine */
    int n_flights, n_in_flight;
    double ask_s;  /* not before this time_monotonic_s() */
    bool draining; /* nothing new is begun */
};

static struct flight *take_flight(struct state *s)
{
    struct flight *f = s->free;
    assert(f);
    s->free = f->next_free;
    s->n_in_flight++;
    return f;
}

static void free_flight(struct state *s, struct flight *f)
{
    f->in_engine = false;
    f->next_free = s->free;
    s->free = f;
    s->n_in_flight--;
}

static void put_failed(struct state *s, int work, int sample, const char *error)
{
    link_put(s->g->link,
             &(struct outcome){
                 .group = s->g->group_index, .work = work, .sample = sample, .error = error});
}

static void on_token(void *user, int id)
{
    struct flight *f = user;
    (void)id;
    f->started = true;
}

/* What comes behind a NUL would be lost in the database, where it ends a text: it becomes U+FFFD
 * like what is not UTF-8. */
static void replace_nuls(struct str *text)
{
    struct str out = {0};
    size_t at = 0;
    const char *nul;
    while (at < text->len && (nul = memchr(text->data + at, '\0', text->len - at))) {
        str_append(&out, text->data + at, (size_t)(nul - text->data) - at);
        str_append_c(&out, UTF8_REPLACEMENT);
        at = (size_t)(nul - text->data) + 1;
    }
    if (at == 0)
        return;
    str_append(&out, text->data + at, text->len - at);
    str_free(text);
    *text = out;
}

static void on_finish(void *user, const struct completion *c)
{
    struct flight *f = user;
    struct state *s = f->state;
    const struct tokenizer *tokenizer = s->g->tokenizer;
    struct str text = {0};
    if (c->reason != FINISH_CANCELLED) {
        if (tokenizer)
            tokenizer_decode(tokenizer, &text, c->ids, (size_t)c->n_ids, true);
        replace_nuls(&text);
        link_put(s->g->link,
                 &(struct outcome){.group = s->g->group_index,
                                   .work = f->work,
                                   .sample = f->sample,
                                   .completion = *c,
                                   .text = tokenizer ? (text.data ? text.data : "") : NULL});
    }
    str_free(&text);
    free_flight(s, f);
}

static void submit(struct state *s, int work, int sample)
{
    const struct work *w = s->g->group->work[work];
    int n = (int)w->task->settings.sampling.n;
    const struct prompt *p = &w->prompts->prompt[sample / n];
    if (p->error) {
        put_failed(s, work, sample, p->error);
        return;
    }
    struct flight *f = take_flight(s);
    *f = (struct flight){.state = s, .work = work, .sample = sample, .in_engine = true};
    struct request request = {.prompt = p->ids,
                              .n_prompt = p->n_ids,
                              .seed = task_sample_seed(w->task, sample / n, sample % n),
                              .on_token = on_token,
                              .on_finish = on_finish,
                              .user = f};
    task_sampling(w->task, &request.sampling);
    request.sampling.max_tokens = work_max_tokens(w, sample / n);
    if (engine_submit(s->g->engine, &request, &f->id) != 0) {
        put_failed(s, work, sample, err_get());
        free_flight(s, f);
    }
}

static void submit_order(struct state *s, const struct order *order)
{
    for (int i = 0; i < order->n_ranges; i++)
        for (int k = 0; k < order->range[i].n; k++)
            submit(s, order->range[i].work, order->range[i].first + k);
}

/* Asks for samples when there is room. True: *order has what ends this engine's work. */
static bool ask(struct state *s, struct order *order)
{
    int room = s->n_flights - s->n_in_flight;
    double now = time_monotonic_s();
    if (s->draining || room == 0 || now < s->ask_s)
        return false;
    if (!link_take(s->g->link, s->g->group_index, room, order))
        return false;
    if (order->kind == ORDER_WAIT) {
        s->ask_s = now + ASK_AGAIN_S;
        return false;
    }
    if (order->kind == ORDER_END || order->group != s->g->group_index)
        return true;
    submit_order(s, order);
    return false;
}

/* Takes back what has not begun; the rest has until the deadline. */
static void drain(struct state *s)
{
    s->draining = true;
    for (int i = 0; i < s->n_flights; i++)
        if (s->flight[i].in_engine && !s->flight[i].started)
            engine_cancel(s->g->engine, s->flight[i].id);
    log_info("%s: no new samples; the sequences that run are finished if there is time for it",
             stop_reason());
}

static bool must_stop(struct state *s)
{
    enum stop_level level = stop_get();
    if (level == STOP_NONE)
        return false;
    if (level == STOP_DRAIN && !s->draining)
        drain(s);
    return level == STOP_NOW || s->n_in_flight == 0 || time_monotonic_s() > stop_deadline_s();
}

static enum generation_result run_steps(struct state *s, struct order *order)
{
    struct generation *g = s->g;
    submit_order(s, order);
    for (;;) {
        if (must_stop(s))
            return GENERATION_STOPPED;
        if (ask(s, order)) {
            assert(s->n_in_flight == 0);
            return order->kind == ORDER_END ? GENERATION_END : GENERATION_NEXT;
        }
        double began_s = time_monotonic_s();
        int rc = engine_step(g->engine);
        if (rc < 0)
            return GENERATION_FAILED;
        g->after_step(g->user, rc ? time_monotonic_s() - began_s : 0);
        if (rc == 0)
            nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    }
}

enum generation_result generation_run(struct generation *g, struct order *order)
{
    struct state s = {.g = g, .n_flights = g->max_num_seqs + g->max_waiting};
    s.flight = xcalloc((size_t)s.n_flights, sizeof(struct flight));
    for (int i = 0; i < s.n_flights; i++) {
        s.flight[i].next_free = s.free;
        s.free = &s.flight[i];
    }
    enum generation_result result = run_steps(&s, order);
    free(s.flight);
    return result;
}
