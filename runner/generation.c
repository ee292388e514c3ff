/* generation.c - see generation.h. */
#include "runner/generation.h"

#include <assert.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Requests kept in the engine beyond the running ones, so that it never waits for the runner. Also
 * the bound on memory: prompts of later samples stay in their prompt set. */
#define WAITING_REQUESTS 256

/* Where the submission stands: the next sample to look at. */
struct cursor {
    int work, prompt, sample;
};

/* One submitted sample, from submission to its finish callback. */
struct flight {
    struct state *state;
    struct work *work;
    int prompt, sample;
    struct flight *next_free;
};

struct state {
    struct generation *g;
    struct cursor next;
    struct flight *flight; /* [room] */
    struct flight *free;   /* those not in the engine */
    int n_in_flight;
    bool store_failed;
};

static volatile sig_atomic_t stop_signal;

static void on_signal(int number)
{
    if (stop_signal)
        _exit(ERR_STOPPED);
    stop_signal = number;
}

void generation_catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
        sigaction(numbers[i], &action, NULL);
}

int generation_stop_signal(void)
{
    return stop_signal;
}

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
    f->next_free = s->free;
    s->free = f;
    s->n_in_flight--;
}

static void put_sample(struct state *s, struct work *w, struct store_sample *row)
{
    char key[SHA256_HEX_LEN + 1];
    task_sample_key(key, w->task, row->prompt_index, row->sample_index);
    row->key = key;
    row->task_id = w->task_id;
    row->attempt_id = w->attempt.id;
    row->prompt = w->prompts->prompt[row->prompt_index].text;
    if (store_put_sample(s->g->store, row) != 0)
        s->store_failed = true;
    (*s->g->n_done)++;
    if (--w->n_pending == 0 && s->g->finish_task(s->g->user, w) != 0)
        s->store_failed = true;
}

static void put_failed_sample(struct state *s, struct work *w, int prompt, int sample,
                              const char *error)
{
    w->attempt.n_failed++;
    put_sample(s, w,
               &(struct store_sample){.prompt_index = prompt,
                                      .sample_index = sample,
                                      .n_prompt_tokens = w->prompts->prompt[prompt].n_ids,
                                      .finish_reason = "error",
                                      .output_sha256 = "",
                                      .error = error});
}

static void on_finish(void *user, const struct completion *c)
{
    struct flight *f = user;
    struct state *s = f->state;
    const struct tokenizer *tokenizer = s->g->tokenizer;
    struct str text = {0};
    if (tokenizer)
        tokenizer_decode(tokenizer, &text, c->ids, (size_t)c->n_ids, true);
    char hash[SHA256_HEX_LEN + 1];
    sha256_of(c->ids, (size_t)c->n_ids * sizeof(*c->ids), hash);
    struct store_sample row = {.prompt_index = f->prompt,
                               .sample_index = f->sample,
                               .n_prompt_tokens = c->n_prompt,
                               .n_output_tokens = c->n_ids,
                               .n_cached_tokens = c->n_cached,
                               .n_preemptions = c->n_preemptions,
                               .text = tokenizer ? (text.data ? text.data : "") : NULL,
                               .ids = c->ids,
                               .finish_reason = finish_reason_name(c->reason),
                               .output_sha256 = hash,
                               .error = ""};
    attempt_sample_times(&row, c);
    attempt_add(&f->work->attempt, c);
    double *first_s = s->g->first_token_s;
    if (*first_s == 0 || c->first_token_s < *first_s)
        *first_s = c->first_token_s;
    put_sample(s, f->work, &row);
    str_free(&text);
    free_flight(s, f);
}

static void submit(struct state *s, struct work *w, int prompt, int sample)
{
    const struct prompt *p = &w->prompts->prompt[prompt];
    if (p->error) {
        put_failed_sample(s, w, prompt, sample, p->error);
        return;
    }
    struct flight *f = take_flight(s);
    *f = (struct flight){.state = s, .work = w, .prompt = prompt, .sample = sample};
    struct request request = {.prompt = p->ids,
                              .n_prompt = p->n_ids,
                              .seed = task_sample_seed(w->task, prompt, sample),
                              .on_finish = on_finish,
                              .user = f};
    task_sampling(w->task, &request.sampling);
    request.sampling.max_tokens = work_max_tokens(w, prompt);
    if (engine_submit(s->g->engine, &request, NULL) != 0) {
        put_failed_sample(s, w, prompt, sample, err_get());
        free_flight(s, f);
    }
}

/* Moves to the next sample that is not done; false at the end. */
static bool find_next(struct state *s)
{
    struct cursor *c = &s->next;
    for (; c->work < s->g->n_work; c->work++, c->prompt = 0, c->sample = 0) {
        struct work *w = s->g->work[c->work];
        int n = (int)w->task->settings.sampling.n;
        for (; c->prompt < w->prompts->n; c->prompt++, c->sample = 0)
            for (; c->sample < n; c->sample++)
                if (!w->done[c->prompt * n + c->sample])
                    return true;
    }
    return false;
}

static bool fill_engine(struct state *s)
{
    while (s->free) {
        if (!find_next(s))
            return false;
        submit(s, s->g->work[s->next.work], s->next.prompt, s->next.sample);
        s->next.sample++;
    }
    return true;
}

static int show_progress(struct state *s)
{
    struct generation *g = s->g;
    struct engine_stats stats;
    engine_get_stats(g->engine, &stats);
    if (!progress_update(g->progress, *g->n_done, &stats))
        return 0;
    return store_put_tick(g->store, &(struct store_tick){.run_id = g->run_id,
                                                         .t_s = time_monotonic_s() - g->run_began_s,
                                                         .n_running = stats.n_running,
                                                         .n_waiting = stats.n_waiting,
                                                         .kv_used = stats.kv_used,
                                                         .kv_cached = stats.kv_cached,
                                                         .kv_blocks = stats.kv_blocks,
                                                         .prompt_tps = g->progress->prompt_tps,
                                                         .output_tps = g->progress->output_tps,
                                                         .done = *g->n_done,
                                                         .total = g->progress->total});
}

static enum generation_result run_steps(struct state *s)
{
    for (;;) {
        if (stop_signal)
            return GENERATION_STOPPED;
        bool more = fill_engine(s);
        int rc = engine_step(s->g->engine);
        if (rc < 0 || s->store_failed || show_progress(s) != 0)
            return GENERATION_FAILED;
        if (rc == 0 && !more && s->n_in_flight == 0)
            return GENERATION_DONE;
    }
}

enum generation_result generation_run(struct generation *g)
{
    int room = WAITING_REQUESTS + (int)g->work[0]->task->settings.engine.max_num_seqs;
    struct state s = {.g = g, .flight = xcalloc((size_t)room, sizeof(struct flight))};
    for (int i = 0; i < room; i++) {
        s.flight[i].next_free = s.free;
        s.free = &s.flight[i];
    }
    progress_restart_rates(g->progress);
    enum generation_result result = run_steps(&s);
    free(s.flight);
    return result;
}
