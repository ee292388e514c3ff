/* desk_record.c - the rows that the desk writes; see desk_internal.h. */
#include "runner/desk_internal.h"
#include "runner/stop.h"

#include <stdio.h>
#include <stdlib.h>

void desk_failed(struct desk *d)
{
    if (d->failure == ERR_NONE) {
        d->failure = err_get_kind() ? err_get_kind() : ERR_RUN;
        d->reason = xstrdup(err_get());
    }
    stop_raise(STOP_NOW, "the results database");
}

static void check(struct desk *d, int rc)
{
    if (rc != 0)
        desk_failed(d);
}

void record_event(struct desk *d, int64_t attempt_id, const char *kind, const char *detail)
{
    check(d, store_put_event(d->options.store, d->options.run_id, attempt_id, kind, detail));
}

void record_commit(struct desk *d)
{
    double began_s = trace_now(d->options.trace);
    check(d, store_try_commit(d->options.store));
    trace_end(d->options.trace, TRACE_STORE, "commit", began_s);
}

/* ---- attempts ---- */

static struct store_attempt attempt_row(const struct desk *d, int rank, const struct work *w,
                                        const struct opening *o)
{
    return (struct store_attempt){
        .task_id = w->task_id,
        .run_id = d->options.run_id,
        .rank = rank,
        .engine_used = o->has_engine ? (o->decision.fast ? "fast" : "standard") : "",
        .attention_used = o->has_engine ? attention_name(o->decision.attention) : "",
        .device_used = o->has_model ? device_kind_name(o->decision.device) : "",
        .dtype_used = o->has_model ? weight_name(o->dtype, o->quantization) : "",
        .decision_reason = o->decision.reason,
        .degraded_reason = o->decision.degraded_reason,
        .degraded = o->decision.degraded,
    };
}

static void begin_attempt(struct desk *d, struct attempt *a, const struct work *w,
                          const struct store_attempt *row)
{
    int64_t id = store_begin_attempt(d->options.store, row);
    if (id < 0) {
        desk_failed(d);
        return;
    }
    *a = (struct attempt){.id = id};
    if (row->degraded)
        record_event(d, id, "fallback", row->degraded_reason);
    int n_finished = w->n_share - w->n_pending;
    if (n_finished > 0) {
        char detail[128];
        snprintf(detail, sizeof(detail), "%d of %d samples were finished already", n_finished,
                 w->n_share);
        record_event(d, id, "resume", detail);
    }
}

void record_begin(struct desk *d, int rank, struct lot *lot, struct docket *docket)
{
    const struct opening *opening = &d->seat[rank].opening;
    struct store_attempt row = attempt_row(d, rank, docket->work, opening);
    row.shared_batch = lot->group->n > 1;
    begin_attempt(d, &docket->attempt[rank], docket->work, &row);
}

void record_end(struct desk *d, int rank, struct docket *docket, const char *state,
                const char *error)
{
    const struct seat *seat = &d->seat[rank];
    const struct engine_stats *stats = &seat->pulse.stats;
    struct attempt *a = &docket->attempt[rank];
    struct store_attempt_end end = {.state = state,
                                    .error = error,
                                    .load_s = seat->opening.load_s,
                                    .init_s = seat->opening.init_s,
                                    .memory_peak_bytes = seat->pulse.memory_peak_bytes,
                                    .kv_blocks = stats->kv_blocks,
                                    .kv_blocks_peak = stats->kv_used_peak,
                                    .steps = stats->n_steps,
                                    .batch_seqs_mean = stats->batch_seqs_mean};
    double began_s = trace_now(d->options.trace);
    attempt_summarise(a, &end);
    check(d, store_end_attempt(d->options.store, a->id, &end));
    trace_end(d->options.trace, TRACE_STORE, "end of attempt", began_s);
    attempt_free(a);
}

static void note_failed_task(struct desk *d, int64_t attempt_id, const struct work *w,
                             const char *error)
{
    char name[TASK_MAX_NAME];
    log_warning("%s failed: %s", task_name(name, w->task), error);
    d->n_failed_tasks++;
    record_event(d, attempt_id, "error", error);
}

/* An attempt that ends before it has generated anything. */
static void fail_task(struct desk *d, struct work *w, const struct store_attempt *row,
                      const char *error)
{
    struct attempt a = {0};
    begin_attempt(d, &a, w, row);
    note_failed_task(d, a.id, w, error);
    if (a.id == 0)
        return;
    struct store_attempt_end end = {.state = "failed", .error = error};
    attempt_summarise(&a, &end);
    check(d, store_end_attempt(d->options.store, a.id, &end));
}

void record_failed_lot(struct desk *d, struct lot *lot)
{
    const int rank = lot->refused_last;
    const struct opening *last = &d->seat[rank].opening, none = {0};
    const bool is_of_lot = last->group == lot - d->lot;
    for (int i = 0; i < lot->group->n && !d->failure; i++) {
        struct docket *docket = &lot->docket[i];
        struct work *w = docket->work;
        if (w->n_pending == 0)
            continue;
        if (docket->attempt[rank].id) {
            note_failed_task(d, docket->attempt[rank].id, w, lot->refusal);
            record_end(d, rank, docket, "failed", lot->refusal);
            continue;
        }
        struct store_attempt row = attempt_row(d, rank, w, is_of_lot ? last : &none);
        fail_task(d, w, &row, lot->refusal);
    }
    record_commit(d);
}

void record_unreadable(struct desk *d, struct work *w)
{
    struct store_attempt row = attempt_row(d, 0, w, &(struct opening){0});
    fail_task(d, w, &row, w->error);
    record_commit(d);
}

/* ---- samples ---- */

void record_sample(struct desk *d, int rank, struct docket *docket, const struct outcome *outcome)
{
    const struct completion *c = &outcome->completion;
    struct work *w = docket->work;
    int n = (int)w->task->settings.sampling.n;
    int prompt = outcome->sample / n, sample = outcome->sample % n;
    char key[SHA256_HEX_LEN + 1], hash[SHA256_HEX_LEN + 1] = "";
    double began_s = trace_now(d->options.trace);
    task_sample_key(key, w->task, prompt, sample);
    struct store_sample row = {.task_id = w->task_id,
                               .attempt_id = docket->attempt[rank].id,
                               .key = key,
                               .prompt_index = prompt,
                               .sample_index = sample,
                               .prompt = w->prompts->prompt[prompt].text,
                               .n_prompt_tokens = w->prompts->prompt[prompt].n_ids,
                               .output_sha256 = hash,
                               .finish_reason = "error",
                               .error = outcome->error};
    if (outcome->error) {
        docket->attempt[rank].n_failed++;
    } else {
        sha256_of(c->ids, (size_t)c->n_ids * sizeof(*c->ids), hash);
        row.n_prompt_tokens = c->n_prompt;
        row.n_output_tokens = c->n_ids;
        row.n_cached_tokens = c->n_cached;
        row.n_preemptions = c->n_preemptions;
        row.text = outcome->text;
        row.ids = c->ids;
        row.finish_reason = finish_reason_name(c->reason);
        row.error = "";
        attempt_sample_times(&row, c);
        attempt_add(&docket->attempt[rank], c);
    }
    check(d, store_put_sample(d->options.store, &row));
    trace_end(d->options.trace, TRACE_STORE, "sample", began_s);
}

/* ---- signs of life ---- */

void record_worker(struct desk *d, int rank, const char *state)
{
    const struct seat *seat = &d->seat[rank];
    const struct pulse *pulse = &seat->pulse;
    int task = -1;
    double began_s = trace_now(d->options.trace);
    if (seat->group >= 0 && seat->n_held > 0) {
        const struct lot *lot = &d->lot[seat->group];
        for (int i = 0; i < lot->group->n && task < 0; i++)
            if (lot->docket[i].attempt[rank].id)
                task = lot->group->work[i]->task->id;
    }
    check(d, store_put_worker(
                 d->options.store,
                 &(struct store_worker){
                     .run_id = d->options.run_id,
                     .rank = rank,
                     .pid = seat->greeting.pid,
                     .host = seat->greeting.host,
                     .device = seat->begun ? device_kind_name(seat->opening.decision.device) : "",
                     .state = state,
                     .task_index = task,
                     .n_done = seat->n_done,
                     .busy_s = pulse->busy_s,
                     .wall_s = pulse->wall_s,
                     .sent_bytes = pulse->sent_bytes,
                     .received_bytes = pulse->received_bytes,
                 }));
    trace_end(d->options.trace, TRACE_STORE, "worker", began_s);
}
