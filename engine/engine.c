/* engine.c - see engine.h: requests become sequences, and steps make tokens of them.
 *
 * Threads. One thread at a time steps; the scheduler, the cache and the device belong to it. Any
 * thread may submit, cancel and read statistics: what those share with the stepping thread (the
 * list of jobs, the published statistics) is under `lock`, which is never held while a callback or
 * a step runs.
 *
 * A step has two halves, launch and collect. Nothing between them needs the sampled tokens: the
 * next step's decodes name the lane whose token they take, and the device reads it there. With
 * async_scheduling a step is launched before the one in front of it is collected, so that the
 * device never waits for the host; a sequence that turns out to have ended was then computed once
 * too often, and that token is dropped.
 */
#include "engine/engine.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/job.h"
#include "engine/kv_memory.h"
#include "engine/memory_plan.h"
#include "engine/model.h"
#include "engine/recording.h"
#include "engine/scheduler.h"
#include "engine/step_batch.h"
#include "engine/step_trace.h"

/* A step between launch and collect. Its number in the ring is its slot of the device's fetches. */
struct flight {
    struct step_rows rows;
    int *sampled;    /* [max_num_seqs] by lane, when they are fetched    */
    bool is_fetched; /* or there is nothing to fetch                     */
    bool prefills;
    long step; /* counted from 1 */
    struct traced_step traced;
};

struct engine {
    struct model *model;
    struct engine_layout layout;
    struct kv_cache *cache;
    struct scheduler *scheduler;
    struct activations activations;
    struct kv_memory kv;
    struct step_batch batch;           /* of the step that is launched              */
    struct flight flight[FETCH_SLOTS]; /* launched and not collected, a ring        */
    int n_flights, next_flight;        /* the next slot to take                     */
    struct recording recording;        /* of decode steps                           */
    int *sampled;                      /* device: [max_num_seqs] by lane            */
    struct engine_stats stats;         /* of the stepping thread                   */
    struct step_trace trace;
    double seqs_sum, waste_sum; /* over steps, for the means in stats      */
    atomic_flag stepping;

    pthread_mutex_t lock; /* guards what follows */
    struct job_list jobs;
    struct job *unseen;  /* the first job that the scheduler does not know yet */
    bool cancel_pending; /* some seq.cancelled is set                          */
    uint64_t next_id;
    struct engine_stats published; /* stats after the latest step              */
    pthread_cond_t work;           /* there is a job, or the driver shall stop */
    pthread_t driver;
    bool driver_started, driver_stopping;
};

/* ---- names ---- */

const char *scheduling_policy_name(enum scheduling_policy policy)
{
    static const char *const names[SCHEDULING_N] = {
        [SCHEDULING_FCFS] = "fcfs",
        [SCHEDULING_PRIORITY] = "priority",
        [SCHEDULING_MEMORY_AWARE] = "memory_aware",
    };
    assert(policy < SCHEDULING_N);
    return names[policy];
}

const char *finish_reason_name(enum finish_reason reason)
{
    static const char *const names[] = {
        [FINISH_STOP] = "stop",
        [FINISH_LENGTH] = "length",
        [FINISH_CANCELLED] = "cancelled",
    };
    assert((size_t)reason < ARRAY_LEN(names));
    return names[reason];
}

/* ---- opening ---- */

/* Memory of the device, in the order of the plan: when it runs out, the KV pool is what fails. */
static int take_memory(struct engine *e)
{
    const struct engine_layout *l = &e->layout;
    struct device *device = e->model->device;
    size_t n_lanes = (size_t)l->options.max_num_seqs;
    if (activations_init(&e->activations, e->model, l->limits.max_tokens, l->limits.max_rows) < 0 ||
        step_batch_init(&e->batch, device, &l->arrays) < 0 ||
        device->ops->reserve(device, &l->limits) < 0)
        return err_prefix("memory for steps of %d tokens", l->limits.max_tokens);
    e->sampled = device->ops->alloc(device, n_lanes * sizeof(int));
    for (size_t i = 0; i < ARRAY_LEN(e->flight); i++) {
        step_rows_init(&e->flight[i].rows, l->options.max_num_seqs);
        e->flight[i].sampled = xcalloc(n_lanes, sizeof(int));
        e->flight[i].is_fetched = true;
    }
    if (!e->sampled)
        return -1;
    return kv_memory_init(&e->kv, device, &l->plan, e->model->info.n_layers);
}

static int open_scheduler(struct engine *e)
{
    const struct engine_options *o = &e->layout.options;
    const struct kv_cache_options cache = {.n_blocks = e->layout.plan.n_blocks,
                                           .block_size = o->block_size,
                                           .prefix_caching = o->prefix_caching,
                                           .n_host_blocks = e->layout.plan.n_host_blocks};
    const struct scheduler_options options = {.policy = o->policy,
                                              .static_batching = !o->fast,
                                              .max_num_seqs = o->max_num_seqs,
                                              .max_num_batched_tokens = o->max_num_batched_tokens,
                                              .block_size = o->block_size};
    if (kv_cache_open(&e->cache, &cache) < 0)
        return -1;
    return scheduler_open(&e->scheduler, e->cache, &options);
}

static void log_opened(const struct engine *e, int asked_num_seqs)
{
    const struct memory_plan *p = &e->layout.plan;
    char bytes[32];
    format_bytes(bytes, (double)p->kv_bytes);
    if (e->layout.options.fast) {
        log_info("Fast engine initialised: %d KV blocks of %d tokens (%s)", p->n_blocks,
                 p->block_size, bytes);
        if (p->n_host_blocks > 0)
            log_info("Preempted sequences are swapped to host memory: %d blocks (%s)",
                     p->n_host_blocks, format_bytes(bytes, (double)p->host_kv_bytes));
        return;
    }
    log_info("Standard engine initialised: %d sequences of %d tokens, contiguous KV (%s)",
             p->n_blocks, p->block_size, bytes);
    if (p->n_blocks < asked_num_seqs)
        log_warning("max_num_seqs %d reduced to %d: contiguous KV of more sequences does not fit",
                    asked_num_seqs, p->n_blocks);
}

int engine_open(struct engine **out, struct model *model, const struct engine_options *options)
{
    *out = NULL;
    struct engine *e = xcalloc(1, sizeof(*e));
    e->model = model;
    e->next_id = 1;
    atomic_flag_clear(&e->stepping);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->work, NULL);
    if (engine_layout_init(&e->layout, &model->info, options) < 0 || take_memory(e) < 0 ||
        open_scheduler(e) < 0) {
        engine_close(e);
        return -1;
    }
    /* A padded step must fit the arrays, too. */
    recording_init(&e->recording, model->device,
                   MIN(e->layout.options.max_num_seqs, e->layout.options.max_num_batched_tokens),
                   !options->enforce_eager);
    step_trace_init(&e->trace, options->trace, model->device, e->scheduler, e->cache);
    e->published.kv_blocks = e->layout.plan.n_blocks;
    e->published.kv_host_blocks = e->layout.plan.n_host_blocks;
    log_opened(e, options->max_num_seqs);
    *out = e;
    return 0;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    engine_stop(e);
    job_list_free(&e->jobs);
    struct device *device = e->model->device;
    device->ops->sync(device);
    if (e->model->fetching == e)
        e->model->fetching = NULL;
    recording_free(&e->recording);
    scheduler_close(e->scheduler);
    kv_cache_close(e->cache);
    kv_memory_free(&e->kv);
    device->ops->free(device, e->sampled);
    step_batch_free(&e->batch);
    for (size_t i = 0; i < ARRAY_LEN(e->flight); i++) {
        step_rows_free(&e->flight[i].rows);
        free(e->flight[i].sampled);
    }
    activations_free(&e->activations, e->model);
    pthread_cond_destroy(&e->work);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

const struct memory_plan *engine_get_plan(const struct engine *e)
{
    return &e->layout.plan;
}

/* ---- requests ---- */

int engine_submit(struct engine *e, const struct request *request, uint64_t *id)
{
    struct job *job;
    if (job_open(&job, request, &e->model->info, &e->layout.options) < 0)
        return -1;
    job->seq.submitted_s = time_monotonic_s();
    pthread_mutex_lock(&e->lock);
    job->seq.id = e->next_id++;
    if (id)
        *id = job->seq.id;
    job_list_push(&e->jobs, job);
    if (!e->unseen)
        e->unseen = job;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
    return 0;
}

bool engine_cancel(struct engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    struct job *job = job_list_find(&e->jobs, id);
    if (job)
        job->seq.cancelled = e->cancel_pending = true;
    pthread_mutex_unlock(&e->lock);
    return job != NULL;
}

/* ---- the end of a request ---- */

/* Nobody wants the tokens that a seq is still to get. */
static void forget_rows(struct engine *e, const struct seq *seq)
{
    for (size_t i = 0; i < ARRAY_LEN(e->flight) && seq->n_unknown > 0; i++) {
        struct step_rows *rows = &e->flight[i].rows;
        for (int r = 0; r < rows->n; r++)
            if (rows->seq[r] == seq)
                rows->seq[r] = NULL;
    }
}

/* Takes a job out of the list and of the scheduler; with the lock held. */
static void take_out(struct engine *e, struct job *job, enum finish_reason reason)
{
    forget_rows(e, &job->seq);
    job_list_remove(&e->jobs, job);
    e->stats.n_finished++;
    scheduler_finish(e->scheduler, &job->seq, reason);
}

/* Tells the owner and forgets the job; without the lock. */
static void report(struct job *job)
{
    job_report(job);
    job_close(job);
}

/* ---- statistics ---- */

/* With the lock held. */
static void publish(struct engine *e)
{
    struct kv_cache_stats kv;
    kv_cache_get_stats(e->cache, &kv);
    struct engine_stats *s = &e->stats;
    s->n_preemptions = scheduler_n_preemptions(e->scheduler);
    s->n_running = scheduler_n_running(e->scheduler);
    s->kv_blocks = kv.n_blocks;
    s->kv_used = kv.used;
    s->kv_cached = kv.cached;
    s->kv_used_peak = kv.used_peak;
    s->kv_host_blocks = kv.host_blocks;
    s->kv_host_used = kv.host_used;
    s->kv_host_used_peak = kv.host_used_peak;
    s->n_swapped_out = kv.n_swapped_out;
    s->n_swapped_in = kv.n_swapped_in;
    s->swapped_out_bytes = (size_t)kv.blocks_out * e->layout.plan.block_bytes;
    s->swapped_in_bytes = (size_t)kv.blocks_in * e->layout.plan.block_bytes;
    if (s->n_steps > 0) {
        s->batch_seqs_mean = e->seqs_sum / (double)s->n_steps;
        s->kv_waste = e->waste_sum / (double)s->n_steps;
    }
    e->published = *s;
}

void engine_get_stats(struct engine *e, struct engine_stats *out)
{
    pthread_mutex_lock(&e->lock);
    *out = e->published;
    out->n_waiting = (int)e->jobs.n - out->n_running;
    pthread_mutex_unlock(&e->lock);
}

/* ---- a step ---- */

/* Hands new jobs to the scheduler and takes cancelled ones out; returns the latter as a list. */
static struct job *take_requests(struct engine *e)
{
    struct job *cancelled = NULL;
    pthread_mutex_lock(&e->lock);
    for (struct job *job = e->unseen; job; job = job->next)
        scheduler_add(e->scheduler, &job->seq);
    e->unseen = NULL;
    struct job *next = e->cancel_pending ? e->jobs.first : NULL;
    for (struct job *job = next; job; job = next) {
        next = job->next;
        if (!job->seq.cancelled)
            continue;
        take_out(e, job, FINISH_CANCELLED);
        job->next = cancelled;
        cancelled = job;
    }
    e->cancel_pending = false;
    if (cancelled)
        publish(e);
    pthread_mutex_unlock(&e->lock);
    return cancelled;
}

static void note_scheduled(struct engine *e, const struct schedule *step)
{
    double now_s = time_monotonic_s();
    for (int i = 0; i < step->n_seqs; i++) {
        struct seq *seq = step->seq[i];
        if (seq->scheduled_s > 0)
            continue;
        seq->scheduled_s = now_s;
        e->stats.cached_tokens += seq->n_cached;
    }
    e->stats.n_steps++;
    e->stats.prompt_tokens += step->n_prefill_tokens;
    e->seqs_sum += step->n_seqs;
}

static size_t sampled_bytes(const struct engine *e)
{
    return (size_t)e->layout.options.max_num_seqs * sizeof(int);
}

/* Waits for the tokens of a step, unless they are here. */
static void fetch(struct engine *e, int slot)
{
    struct device *device = e->model->device;
    struct flight *f = &e->flight[slot];
    if (!f->is_fetched)
        device->ops->fetch_end(device, slot, f->sampled, sampled_bytes(e));
    f->is_fetched = true;
}

/* The model's engines take turns with the device's slots: the tokens that another one has in them
 * come home first. */
static void fetch_begin(struct engine *e, int slot)
{
    struct device *device = e->model->device;
    struct engine *other = e->model->fetching;
    for (int i = 0; other && other != e && i < FETCH_SLOTS; i++)
        fetch(other, i);
    e->model->fetching = e;
    device->ops->fetch_begin(device, slot, e->sampled, sampled_bytes(e));
    e->flight[slot].is_fetched = false;
}

/* The forward pass and the sampling of the batch that was filled last. */
static void enqueue(void *engine)
{
    struct engine *e = engine;
    struct device *device = e->model->device;
    const struct step_batch *b = &e->batch;
    model_forward(e->model, &e->activations,
                  &(struct forward_args){.batch = &b->batch,
                                         .sampled = e->sampled,
                                         .logits_row = b->logits_row,
                                         .n_rows = b->n_padded_rows,
                                         .attention = e->layout.options.attention,
                                         .kv = e->kv.layer,
                                         .block_size = e->layout.options.block_size,
                                         .kv_dtype = e->layout.kv_dtype});
    if (b->n_padded_rows > 0)
        device->ops->sample(device, &(struct sample_args){.sampled = e->sampled,
                                                          .logits = e->activations.logits,
                                                          .row = b->sample_row,
                                                          .n_rows = b->n_padded_rows,
                                                          .vocab = e->model->info.vocab});
}

/* Enqueues all of a step on the device, and the fetch of its tokens. */
static void launch(struct engine *e, const struct schedule *step)
{
    int slot = e->next_flight;
    struct flight *f = &e->flight[slot];
    note_scheduled(e, step);
    f->step = e->stats.n_steps;
    step_trace_part(&e->trace, "schedule", f->step);
    kv_memory_copy(&e->kv, step);
    int size = step->n_prefill_tokens == 0 ? recording_size(&e->recording, step->n_seqs) : 0;
    step_batch_fill(&e->batch, step, &f->rows, e->layout.options.block_size, size);
    bool recorded = size > 0 && recording_make(&e->recording, size, enqueue, e);
    step_trace_part(&e->trace, "prepare", f->step);
    step_trace_launch(&e->trace, &f->traced, f->step, step);
    if (recorded)
        recording_run(&e->recording, size);
    else
        enqueue(e);
    step_trace_launched(&e->trace, &f->traced);
    fetch_begin(e, slot);
    scheduler_advance(e->scheduler, step);
    for (int i = 0; i < f->rows.n; i++)
        scheduler_add_unknown(f->rows.seq[i]);
    f->prefills = step->n_prefill_tokens > 0;
    e->waste_sum += scheduler_kv_waste(e->scheduler);
    e->next_flight = 1 - slot;
    e->n_flights++;
    step_trace_part(&e->trace, "launch", f->step);
}

/* Fetches the tokens of the oldest step in flight. */
static struct flight *collect(struct engine *e)
{
    int slot = e->n_flights == 2 ? e->next_flight : 1 - e->next_flight;
    struct flight *f = &e->flight[slot];
    fetch(e, slot);
    step_trace_part(&e->trace, "wait", f->step);
    step_trace_collect(&e->trace, &f->traced, f->rows.n);
    double now_s = time_monotonic_s();
    for (int i = 0; i < f->rows.n; i++) {
        struct seq *seq = f->rows.seq[i];
        if (!seq)
            continue;
        scheduler_set_known(e->scheduler, seq, f->sampled[f->rows.lane[i]]);
        if (seq->first_token_s == 0)
            seq->first_token_s = now_s;
        e->stats.output_tokens++;
    }
    e->n_flights--;
    return f;
}

/* Callbacks come last, so that they see the statistics of their own step. */
static void finish_step(struct engine *e, struct flight *f)
{
    struct step_rows rows = f->rows;
    enum finish_reason reason;
    f->rows.n = 0;
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < rows.n; i++) {
        struct job *job = (struct job *)rows.seq[i];
        if (job && job_is_finished(job, &e->model->info, &reason))
            take_out(e, job, reason);
    }
    publish(e);
    pthread_mutex_unlock(&e->lock);
    step_trace_part(&e->trace, "commit", f->step);
    for (int i = 0; i < rows.n; i++) {
        struct seq *seq = rows.seq[i];
        if (seq && seq->request.on_token)
            seq->request.on_token(seq->request.user, seq->token[seq_n_known(seq) - 1]);
        if (seq && seq->state == SEQ_FINISHED)
            report((struct job *)seq);
    }
    step_trace_part(&e->trace, "callbacks", f->step);
}

static bool compute_step(struct engine *e)
{
    double start_s = time_monotonic_s();
    struct schedule step;
    scheduler_next(e->scheduler, &step);
    if (step.n_seqs > 0)
        launch(e, &step);
    else
        kv_memory_copy(&e->kv, &step); /* a preempted seq may be swapped out without a step */
    if (e->n_flights == 0)
        return false;
    if (e->layout.options.async_scheduling && step.n_seqs > 0 && e->n_flights < 2)
        return true;
    struct flight *f = collect(e);
    double seconds = time_monotonic_s() - start_s;
    if (f->prefills)
        e->stats.prefill_s += seconds;
    else
        e->stats.decode_s += seconds;
    finish_step(e, f);
    return true;
}

int engine_step(struct engine *e)
{
    bool busy = atomic_flag_test_and_set(&e->stepping);
    assert(!busy); /* two threads, or a callback, step at once */
    struct job *cancelled = take_requests(e);
    bool worked = cancelled != NULL;
    while (cancelled) {
        struct job *job = cancelled;
        cancelled = job->next;
        report(job);
    }
    step_trace_call(&e->trace);
    worked |= compute_step(e);
    step_trace_return(&e->trace);
    atomic_flag_clear(&e->stepping);
    return worked;
}

/* ---- background driver ---- */

static void *drive(void *engine)
{
    struct engine *e = engine;
    pthread_mutex_lock(&e->lock);
    while (!e->driver_stopping) {
        if (e->jobs.n == 0) {
            pthread_cond_wait(&e->work, &e->lock);
            continue;
        }
        pthread_mutex_unlock(&e->lock);
        int rc = engine_step(e);
        pthread_mutex_lock(&e->lock);
        if (rc < 0) {
            log_warning("the engine stopped: %s", err_get());
            break;
        }
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

int engine_start(struct engine *e)
{
    if (e->driver_started)
        return err_set(ERR_RUN, "the engine's thread runs already");
    int rc = pthread_create(&e->driver, NULL, drive, e);
    if (rc != 0)
        return err_set(ERR_RESOURCE, "the engine's thread cannot start: %s", strerror(rc));
    e->driver_started = true;
    return 0;
}

void engine_stop(struct engine *e)
{
    if (!e->driver_started)
        return;
    assert(!pthread_equal(pthread_self(), e->driver)); /* a callback would wait for itself */
    pthread_mutex_lock(&e->lock);
    e->driver_stopping = true;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->driver, NULL);
    e->driver_started = e->driver_stopping = false;
}
