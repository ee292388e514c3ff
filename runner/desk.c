/* desk.c - see desk.h. Rows are in desk_record.c. */
#include "runner/desk_internal.h"
#include "runner/stop.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKERS_S 2.0 /* between signs of life in the store */

/* How long a sequence takes is not known before the first has ended; no more than this share of
 * a short job is kept for it. */
#define FIRST_LATENCY_S     60.0
#define FIRST_LATENCY_SHARE 0.25
/* The slowest of the recent samples counts, and fades by this factor with each sample. */
#define LATENCY_FADE   0.98
#define LATENCY_MARGIN 1.25

static void lock(struct desk *d)
{
    pthread_mutex_lock(&d->mutex);
}

static void unlock(struct desk *d)
{
    pthread_mutex_unlock(&d->mutex);
}

/* ---- what is to do ---- */

static int dearer_first(const void *a, const void *b, void *user)
{
    const struct docket *docket = user;
    int i = *(const int *)a, j = *(const int *)b;
    if (docket[i].cost != docket[j].cost)
        return docket[i].cost < docket[j].cost ? 1 : -1;
    return i - j;
}

static void lay_docket(struct docket *docket, struct lot *lot, struct work *w, int n_ranks)
{
    int n = (int)w->task->settings.sampling.n;
    docket->work = w;
    docket->holder = xcalloc((size_t)w->n_samples, sizeof(int));
    docket->attempt = xcalloc((size_t)n_ranks, sizeof(struct attempt));
    for (int i = 0; i < w->n_samples; i++) {
        int64_t cost = work_sample_cost(w, i / n);
        docket->holder[i] = w->done[i] ? HOLDER_SETTLED : HOLDER_NONE;
        docket->cost = MAX(docket->cost, cost);
        if (w->done[i])
            continue;
        lot->n_todo++;
        lot->todo_cost += cost;
    }
}

static void lay_lot(struct lot *lot, const struct engine_group *group, int n_ranks)
{
    lot->group = group;
    lot->docket = xcalloc((size_t)group->n, sizeof(struct docket));
    lot->by_cost = xcalloc((size_t)group->n, sizeof(int));
    lot->refused = xcalloc((size_t)n_ranks, sizeof(bool));
    for (int i = 0; i < group->n; i++) {
        lay_docket(&lot->docket[i], lot, group->work[i], n_ranks);
        lot->by_cost[i] = i;
    }
    qsort_r(lot->by_cost, (size_t)group->n, sizeof(int), dearer_first, lot->docket);
}

/* The next sample of the lot that nobody holds, as its place in by_cost and in the task. */
static bool find_todo(struct lot *lot, int *place, int *sample)
{
    for (int p = lot->first; p < lot->group->n; p++) {
        struct docket *docket = &lot->docket[lot->by_cost[p]];
        int i = docket->first;
        while (i < docket->work->n_samples && docket->holder[i] != HOLDER_NONE)
            i++;
        docket->first = i;
        lot->first = p;
        *place = p;
        *sample = i;
        if (i < docket->work->n_samples)
            return true;
    }
    return false;
}

static int64_t sample_cost(const struct work *w, int sample)
{
    return work_sample_cost(w, sample / (int)w->task->settings.sampling.n);
}

/* What one rank would have to do if n of them shared what is left to do. */
static double cost_for_each(const struct lot *lot, int n)
{
    return (double)lot->todo_cost * (double)lot->group->model->info.n_params / n;
}

/* ---- handing out ---- */

/* Ranks that take, or could take, samples of this lot. */
static int count_sharers(const struct desk *d, const struct lot *lot, int rank)
{
    int n = 0;
    for (int r = 0; r < d->options.n_ranks; r++) {
        const struct seat *seat = &d->seat[r];
        if (seat->left || seat->stranger || lot->refused[r])
            continue;
        bool elsewhere = seat->group >= 0 && &d->lot[seat->group] != lot &&
                         (seat->n_held > 0 || d->lot[seat->group].n_todo > 0);
        n += r == rank || !elsewhere;
    }
    return MAX(n, 1);
}

/* Gives the rank a sample. */
static void hold(struct seat *seat, int rank, struct lot *lot, struct docket *docket, int sample)
{
    int64_t cost = sample_cost(docket->work, sample);
    docket->holder[sample] = rank;
    lot->todo_cost -= cost;
    lot->out_cost += cost;
    lot->n_todo--;
    lot->n_out++;
    seat->held_cost += cost;
    seat->n_held++;
}

/* Takes a sample from the rank, to do again or settled. */
static void release(struct seat *seat, struct lot *lot, struct docket *docket, int sample,
                    int holder)
{
    int64_t cost = sample_cost(docket->work, sample);
    docket->holder[sample] = holder;
    lot->out_cost -= cost;
    lot->n_out--;
    seat->held_cost -= cost;
    seat->n_held--;
    if (holder == HOLDER_NONE) {
        lot->todo_cost += cost;
        lot->n_todo++;
    }
}

/* Up to room samples, until the rank holds its share. */
static void hand_out(struct desk *d, struct lot *lot, int rank, int room, struct order *out)
{
    struct seat *seat = &d->seat[rank];
    int64_t share = CEIL_DIV(lot->todo_cost + lot->out_cost, count_sharers(d, lot, rank));
    int place, at;
    while (room > 0 && seat->held_cost < share && out->n_ranges < ORDER_MAX_RANGES &&
           find_todo(lot, &place, &at)) {
        struct docket *docket = &lot->docket[lot->by_cost[place]];
        struct sample_range *range = &out->range[out->n_ranges++];
        *range = (struct sample_range){.work = lot->by_cost[place], .first = at};
        for (; room > 0 && seat->held_cost < share && at < docket->work->n_samples &&
               docket->holder[at] == HOLDER_NONE;
             at++, room--) {
            hold(seat, rank, lot, docket, at);
            range->n++;
        }
        if (seat->begun && !docket->attempt[rank].id)
            record_begin(d, rank, lot, docket);
    }
}

/* The group that a free rank should turn to: one of the model that it has loaded, else the one with
 * the most to do for each rank that is at it; -1: none. */
static int choose_group(const struct desk *d, int rank)
{
    const struct seat *seat = &d->seat[rank];
    const struct model_group *loaded = seat->group >= 0 ? d->lot[seat->group].group->model : NULL;
    int best = -1;
    double best_cost = 0;
    for (int g = 0; g < d->options.work->n_engine_groups; g++) {
        const struct lot *lot = &d->lot[g];
        if (lot->n_todo == 0 || lot->refused[rank])
            continue;
        if (lot->group->model == loaded)
            return g;
        int n_at_it = 1;
        for (int r = 0; r < d->options.n_ranks; r++)
            n_at_it += d->seat[r].group == g && !d->seat[r].left;
        if (best < 0 || cost_for_each(lot, n_at_it) > best_cost) {
            best = g;
            best_cost = cost_for_each(lot, n_at_it);
        }
    }
    return best;
}

static bool is_unfinished(const struct desk *d)
{
    for (int g = 0; g < d->options.work->n_engine_groups; g++)
        if (d->lot[g].n_todo + d->lot[g].n_out > 0)
            return true;
    return false;
}

/* The rank closes its engine: its attempts at this group's tasks are over, while other ranks may
 * still hold samples of them. error: why it cannot go on, or "". */
static void end_part(struct desk *d, int rank, const char *error)
{
    struct seat *seat = &d->seat[rank];
    if (!seat->begun)
        return;
    struct lot *lot = &d->lot[seat->group];
    for (int i = 0; i < lot->group->n; i++) {
        struct attempt *a = &lot->docket[i].attempt[rank];
        if (a->id)
            record_end(d, rank, &lot->docket[i], error[0] || a->n_failed ? "failed" : "done",
                       error);
    }
    seat->begun = false;
}

static void turn_to_group(struct desk *d, int rank, int group)
{
    struct seat *seat = &d->seat[rank];
    end_part(d, rank, "");
    seat->earlier.prompt_tokens += seat->pulse.stats.prompt_tokens;
    seat->earlier.output_tokens += seat->pulse.stats.output_tokens;
    seat->pulse.stats = (struct engine_stats){0};
    seat->group = group;
}

static void take(struct desk *d, int rank, int group, int room, struct order *out)
{
    struct seat *seat = &d->seat[rank];
    *out = (struct order){.kind = ORDER_WAIT};
    if (d->failure || !is_unfinished(d)) {
        out->kind = ORDER_END;
        return;
    }
    if (seat->stranger || stop_get())
        return;
    if (group < 0 || (d->lot[group].n_todo == 0 && seat->n_held == 0)) {
        int next = choose_group(d, rank);
        if (next < 0)
            return;
        if (next != group)
            turn_to_group(d, rank, next);
        if (next != group && group >= 0)
            room = MIN(room, 1); /* what there is room for in the next engine is not known yet */
        group = next;
    }
    hand_out(d, &d->lot[group], rank, room, out);
    if (out->n_ranges == 0)
        return;
    out->kind = ORDER_SAMPLES;
    out->group = group;
}

void desk_take(struct desk *d, int rank, int group, int room, struct order *out)
{
    lock(d);
    take(d, rank, group, room, out);
    unlock(d);
}

/* ---- taking in ---- */

/* Says once what another rank does without; rank 0 speaks for itself, and for those like it. */
static void warn_of_degraded(const struct desk *d, int rank, const struct opening *opening)
{
    const char *reason = opening->decision.degraded_reason;
    const struct seat *seat = &d->seat[rank];
    if (rank > 0 && opening->decision.degraded &&
        strcmp(reason, seat->opening.decision.degraded_reason) != 0 &&
        strcmp(reason, d->seat[0].opening.decision.degraded_reason) != 0)
        log_warning("rank %d on %s: %s", rank, seat->greeting.host, reason);
}

void desk_begin(struct desk *d, int rank, const struct opening *opening)
{
    lock(d);
    struct seat *seat = &d->seat[rank];
    struct lot *lot = &d->lot[opening->group];
    assert(seat->group == opening->group && !seat->begun);
    warn_of_degraded(d, rank, opening);
    seat->opening = *opening;
    seat->begun = true;
    for (int i = 0; i < lot->group->n; i++) {
        struct docket *docket = &lot->docket[i];
        for (int s = 0; s < docket->work->n_samples && !docket->attempt[rank].id; s++)
            if (docket->holder[s] == rank)
                record_begin(d, rank, lot, docket);
    }
    unlock(d);
}

/* Lays what the rank holds back on the desk. */
static void lay_back(struct desk *d, int rank)
{
    struct seat *seat = &d->seat[rank];
    if (seat->n_held == 0)
        return;
    struct lot *lot = &d->lot[seat->group];
    for (int i = 0; i < lot->group->n; i++) {
        struct docket *docket = &lot->docket[i];
        for (int s = 0; s < docket->work->n_samples; s++)
            if (docket->holder[s] == rank)
                release(seat, lot, docket, s, HOLDER_NONE);
        docket->first = 0;
    }
    lot->first = 0;
    assert(seat->n_held == 0 && seat->held_cost == 0);
}

/* Nobody can run it: what is left of it is settled. */
static void give_up(struct desk *d, struct lot *lot)
{
    record_failed_lot(d, lot);
    for (int i = 0; i < lot->group->n; i++)
        for (int s = 0; s < lot->docket[i].work->n_samples; s++)
            lot->docket[i].holder[s] = HOLDER_SETTLED;
    lot->n_todo = lot->n_out = 0;
    lot->todo_cost = lot->out_cost = 0;
}

/* Some rank has refused the lot, and no other is left to run it. */
static bool is_refused_by_all(const struct desk *d, const struct lot *lot)
{
    for (int r = 0; r < d->options.n_ranks; r++)
        if (!lot->refused[r] && !d->seat[r].stranger)
            return false;
    return lot->refusal != NULL;
}

void desk_refuse(struct desk *d, int rank, const struct opening *opening, enum err_kind kind,
                 const char *error)
{
    lock(d);
    struct lot *lot = &d->lot[opening->group];
    struct seat *seat = &d->seat[rank];
    char name[TASK_MAX_NAME];
    lay_back(d, rank);
    seat->opening = *opening;
    lot->refused[rank] = true;
    lot->refused_last = rank;
    free(lot->refusal);
    lot->refusal = xstrdup(error);
    if (d->options.strict && kind == ERR_RESOURCE) {
        err_set(kind, "%s", error);
        desk_failed(d);
    } else if (is_refused_by_all(d, lot)) {
        give_up(d, lot);
    } else {
        log_warning("rank %d on %s cannot run %s: %s; other ranks try", rank, seat->greeting.host,
                    task_name(name, lot->group->work[0]->task), error);
        record_event(d, 0, "fallback", error);
    }
    if (!d->failure)
        end_part(d, rank, error);
    unlock(d);
}

/* The rank gets nothing: what the others have refused already is left to nobody. */
static void greet_stranger(struct desk *d, int rank)
{
    char detail[512];
    d->seat[rank].stranger = true;
    snprintf(detail, sizeof(detail),
             "rank %d on %s sees other models or prompts than rank 0 and gets no work; are "
             "the same files visible on all nodes?",
             rank, d->seat[rank].greeting.host);
    log_warning("%s", detail);
    record_event(d, 0, "error", detail);
    for (int g = 0; g < d->options.work->n_engine_groups; g++)
        if (d->lot[g].n_todo > 0 && is_refused_by_all(d, &d->lot[g]))
            give_up(d, &d->lot[g]);
}

void desk_greet(struct desk *d, int rank, const struct greeting *greeting)
{
    lock(d);
    struct seat *seat = &d->seat[rank];
    seat->greeting = *greeting;
    seat->greeted = true;
    if (strcmp(greeting->digest, d->options.work->digest) != 0)
        greet_stranger(d, rank);
    record_worker(d, rank, "loading");
    unlock(d);
}

void desk_pulse(struct desk *d, int rank, const struct pulse *pulse)
{
    lock(d);
    d->seat[rank].pulse = *pulse;
    unlock(d);
}

/* Ends every rank's attempt at a task whose last sample is in. */
static void finish_task(struct desk *d, struct docket *docket)
{
    const struct work *w = docket->work;
    char error[128] = "", name[TASK_MAX_NAME];
    if (docket->n_failed) {
        snprintf(error, sizeof(error), "%d of %d samples failed; the samples' rows say why",
                 docket->n_failed, w->n_samples);
        log_warning("%s: %s", task_name(name, w->task), error);
        d->n_failed_tasks++;
    }
    for (int r = 0; r < d->options.n_ranks; r++) {
        if (!docket->attempt[r].id)
            continue;
        bool failed = docket->attempt[r].n_failed > 0;
        record_end(d, r, docket, failed ? "failed" : "done", failed ? error : "");
    }
    record_commit(d);
}

static void note_latency(struct desk *d, const struct completion *c)
{
    double latency_s = c->finished_s - c->scheduled_s;
    d->latency_s = MAX(latency_s, d->latency_s * LATENCY_FADE);
}

void desk_put(struct desk *d, int rank, const struct outcome *outcome)
{
    lock(d);
    struct seat *seat = &d->seat[rank];
    struct lot *lot = &d->lot[outcome->group];
    struct docket *docket = &lot->docket[outcome->work];
    if (d->failure || docket->holder[outcome->sample] != rank) {
        unlock(d); /* the run has failed, or the rank gave the sample back before */
        return;
    }
    record_sample(d, rank, docket, outcome);
    release(seat, lot, docket, outcome->sample, HOLDER_SETTLED);
    seat->n_done++;
    d->n_done++;
    docket->n_failed += outcome->error != NULL;
    if (!outcome->error) {
        note_latency(d, &outcome->completion);
        double first_s = outcome->completion.first_token_s;
        if (rank == 0 && (d->first_token_s == 0 || first_s < d->first_token_s))
            d->first_token_s = first_s;
    }
    if (--docket->work->n_pending == 0 && !d->failure)
        finish_task(d, docket);
    unlock(d);
}

void desk_leave(struct desk *d, int rank)
{
    lock(d);
    lay_back(d, rank);
    d->seat[rank].left = true;
    if (!d->failure)
        record_worker(d, rank, "ended");
    unlock(d);
}

bool desk_all_left(struct desk *d)
{
    bool all = true;
    lock(d);
    for (int r = 0; r < d->options.n_ranks; r++)
        all = all && d->seat[r].left;
    unlock(d);
    return all;
}

/* ---- looking after the run ---- */

/* Sums over the ranks, for those who look on. */
static struct engine_stats sum_stats(const struct desk *d)
{
    struct engine_stats sum = {0};
    for (int r = 0; r < d->options.n_ranks; r++) {
        const struct seat *seat = &d->seat[r];
        const struct engine_stats *s = &seat->pulse.stats;
        sum.prompt_tokens += seat->earlier.prompt_tokens + s->prompt_tokens;
        sum.output_tokens += seat->earlier.output_tokens + s->output_tokens;
        sum.n_running += s->n_running;
        sum.n_waiting += s->n_waiting;
        sum.kv_blocks += s->kv_blocks;
        sum.kv_used += s->kv_used;
        sum.kv_cached += s->kv_cached;
    }
    return sum;
}

static void show_progress(struct desk *d, double now)
{
    struct engine_stats stats = sum_stats(d);
    if (!progress_update(&d->progress, d->n_done, &stats))
        return;
    struct store_tick tick = {.run_id = d->options.run_id,
                              .t_s = now - d->options.began_s,
                              .n_running = stats.n_running,
                              .n_waiting = stats.n_waiting,
                              .kv_used = stats.kv_used,
                              .kv_cached = stats.kv_cached,
                              .kv_blocks = stats.kv_blocks,
                              .prompt_tps = d->progress.prompt_tps,
                              .output_tps = d->progress.output_tps,
                              .done = d->n_done,
                              .total = d->n_total};
    double began_s = trace_now(d->options.trace);
    if (store_put_tick(d->options.store, &tick) != 0)
        desk_failed(d);
    trace_end(d->options.trace, TRACE_STORE, "progress", began_s);
}

static void write_workers(struct desk *d, double now)
{
    if (now - d->workers_s < WORKERS_S)
        return;
    d->workers_s = now;
    for (int r = 0; r < d->options.n_ranks && !d->failure; r++) {
        const struct seat *seat = &d->seat[r];
        if (seat->greeted && !seat->left)
            record_worker(d, r,
                          seat->pulse.loading ? "loading"
                          : seat->n_held      ? "running"
                                              : "idle");
    }
}

/* Once, with a commit: there may be little time left. */
static void note_stop(struct desk *d)
{
    if (d->stopping || d->failure || !stop_get())
        return;
    d->stopping = true;
    record_event(d, 0, "signal", stop_reason());
    record_commit(d);
}

void desk_tick(struct desk *d)
{
    lock(d);
    double now = time_monotonic_s();
    double latency_s = d->latency_s > 0 ? d->latency_s : d->first_latency_s;
    stop_check_job_end(latency_s * LATENCY_MARGIN + STOP_END_SECONDS);
    note_stop(d);
    if (!d->failure)
        show_progress(d, now);
    if (!d->failure)
        write_workers(d, now);
    unlock(d);
}

/* The attempts that are open. */
static void end_attempts(struct desk *d, const char *error)
{
    for (int g = 0; g < d->options.work->n_engine_groups; g++)
        for (int i = 0; i < d->lot[g].group->n; i++)
            for (int r = 0; r < d->options.n_ranks && !d->failure; r++)
                if (d->lot[g].docket[i].attempt[r].id)
                    record_end(d, r, &d->lot[g].docket[i], "stopped", error);
}

void desk_lose(struct desk *d, int rank)
{
    char detail[400];
    lock(d); /* for good: the process ends now */
    snprintf(detail, sizeof(detail), "rank %d on %s was lost", rank, d->seat[rank].greeting.host);
    if (d->failure)
        return;
    record_event(d, 0, "lost", detail);
    record_worker(d, rank, "lost");
    end_attempts(d, detail);
    if (store_end_run(d->options.store, d->options.run_id, ERR_STOPPED) != 0 ||
        store_close(d->options.store) != 0)
        log_warning("%s", err_get());
}

struct desk_summary desk_finish(struct desk *d)
{
    lock(d);
    note_stop(d);
    if (!d->failure) {
        char reason[128];
        snprintf(reason, sizeof(reason), "stopped by %s", stop_reason());
        end_attempts(d, reason);
    }
    struct desk_summary summary = {.n_done = d->n_done,
                                   .n_total = d->n_total,
                                   .n_failed_tasks = d->n_failed_tasks,
                                   .finished = !is_unfinished(d),
                                   .failure = d->failure,
                                   .reason = d->reason,
                                   .first_token_s = d->first_token_s};
    unlock(d);
    return summary;
}

/* ---- opening ---- */

static void record_all_unreadable(struct desk *d)
{
    struct work_list *list = d->options.work;
    for (int g = 0; g < list->n_groups; g++)
        for (int i = 0; i < list->group[g].n; i++)
            if (list->group[g].work[i].error && !d->failure)
                record_unreadable(d, &list->group[g].work[i]);
}

int desk_open(struct desk **out, const struct desk_options *options)
{
    struct desk *d = xcalloc(1, sizeof(*d));
    d->options = *options;
    pthread_mutex_init(&d->mutex, NULL);
    d->lot = xcalloc((size_t)options->work->n_engine_groups, sizeof(*d->lot));
    d->seat = xcalloc((size_t)options->n_ranks, sizeof(*d->seat));
    for (int g = 0; g < options->work->n_engine_groups; g++)
        lay_lot(&d->lot[g], &options->work->engine_group[g], options->n_ranks);
    for (int r = 0; r < options->n_ranks; r++)
        d->seat[r].group = -1;
    d->n_total = work_list_share(options->work);
    d->n_done = d->n_total - work_list_pending(options->work);
    d->first_latency_s = fmin(FIRST_LATENCY_S, FIRST_LATENCY_SHARE * stop_job_left_s());
    record_all_unreadable(d);
    if (d->failure) {
        err_set(d->failure, "%s", d->reason);
        desk_close(d);
        return -1;
    }
    progress_open(&d->progress, d->n_done, d->n_total);
    *out = d;
    return 0;
}

void desk_close(struct desk *d)
{
    if (!d)
        return;
    progress_close(&d->progress);
    for (int g = 0; g < d->options.work->n_engine_groups; g++) {
        struct lot *lot = &d->lot[g];
        for (int i = 0; i < lot->group->n; i++) {
            for (int r = 0; r < d->options.n_ranks; r++)
                attempt_free(&lot->docket[i].attempt[r]);
            free(lot->docket[i].attempt);
            free(lot->docket[i].holder);
        }
        free(lot->docket);
        free(lot->by_cost);
        free(lot->refused);
        free(lot->refusal);
    }
    pthread_mutex_destroy(&d->mutex);
    free(d->lot);
    free(d->seat);
    free(d->reason);
    free(d);
}
