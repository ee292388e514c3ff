/* step_trace.c - see step_trace.h. */
#include "engine/step_trace.h"

#define PREFILL_ARG 3 /* the place of prefill_tokens */

void step_trace_init(struct step_trace *t, struct trace *trace, struct device *device,
                     const struct scheduler *scheduler, const struct kv_cache *cache)
{
    *t = (struct step_trace){
        .trace = trace, .device = device, .scheduler = scheduler, .cache = cache};
}

/* ---- host ---- */

void step_trace_call(struct step_trace *t)
{
    t->call_s = t->lap_s = trace_now(t->trace);
}

void step_trace_part(struct step_trace *t, const char *part, long step)
{
    if (!t->trace)
        return;
    double now_s = time_monotonic_s();
    trace_span(t->trace, TRACE_HOST, part, t->lap_s, now_s, &(struct trace_arg){"step", step}, 1);
    t->lap_s = now_s;
}

void step_trace_return(struct step_trace *t)
{
    if (t->lap_s > t->call_s)
        trace_span(t->trace, TRACE_HOST, "engine_step", t->call_s, t->lap_s, NULL, 0);
}

/* ---- device ---- */

static void count(const struct step_trace *t, const struct kv_cache_stats *kv)
{
    const struct trace_arg sequences[] = {{"running", scheduler_n_running(t->scheduler)},
                                          {"waiting", scheduler_n_waiting(t->scheduler)}};
    const struct trace_arg blocks[] = {{"used", kv->used}, {"cached", kv->cached}};
    trace_count(t->trace, "sequences", t->lap_s, sequences, ARRAY_LEN(sequences));
    trace_count(t->trace, "KV blocks", t->lap_s, blocks, ARRAY_LEN(blocks));
}

void step_trace_launch(struct step_trace *t, struct traced_step *traced, long step,
                       const struct schedule *schedule)
{
    if (!t->trace)
        return;
    struct kv_cache_stats kv;
    kv_cache_get_stats(t->cache, &kv);
    long n_preemptions = scheduler_n_preemptions(t->scheduler);
    *traced = (struct traced_step){
        .arg = {{"step", step},
                {"n_seqs", schedule->n_seqs},
                {"n_tokens", schedule->n_tokens},
                [PREFILL_ARG] = {"prefill_tokens", schedule->n_prefill_tokens},
                {"decode_tokens", schedule->n_tokens - schedule->n_prefill_tokens},
                {"running", scheduler_n_running(t->scheduler)},
                {"waiting", scheduler_n_waiting(t->scheduler)},
                {"kv_used", kv.used},
                {"preempted", n_preemptions - t->n_preemptions}}};
    t->n_preemptions = n_preemptions;
    count(t, &kv);
    traced->began = t->device->ops->mark(t->device);
}

void step_trace_launched(struct step_trace *t, struct traced_step *traced)
{
    if (t->trace)
        traced->ended = t->device->ops->mark(t->device);
}

void step_trace_collect(struct step_trace *t, const struct traced_step *traced, int n_tokens)
{
    if (!t->trace)
        return;
    double began_s = t->device->ops->mark_read(t->device, traced->began);
    double ended_s = t->device->ops->mark_read(t->device, traced->ended);
    double since_s = t->ended_s > 0 ? t->ended_s : began_s;
    bool prefills = traced->arg[PREFILL_ARG].value > 0;
    trace_span(t->trace, TRACE_DEVICE, prefills ? "prefill" : "decode", began_s, ended_s,
               traced->arg, STEP_TRACE_ARGS);
    trace_add_step(t->trace, ended_s - began_s, began_s - since_s);
    if (ended_s > since_s)
        trace_count(t->trace, "output tokens/s", ended_s,
                    &(struct trace_arg){"rate", (int64_t)(n_tokens / (ended_s - since_s))}, 1);
    t->ended_s = ended_s;
}
