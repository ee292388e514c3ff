/* step_trace.h - what a trace shows of the steps of one engine.
 *
 *   host     engine_step { schedule, prepare, launch, wait, commit, callbacks }, without gaps
 *   device   "prefill" or "decode": the forward pass and the sampling of a step, by marks of the
 *            device (backend.h); what the step consists of stands in its arguments
 *   counters sequences, KV blocks, output tokens per second
 *
 * A call of engine_step may launch one step and collect the one before it; every part names its
 * step. Internal to the engine; a zeroed one traces nothing.
 */
#ifndef QUIRE_STEP_TRACE_H
#define QUIRE_STEP_TRACE_H

#include "engine/scheduler.h"
#include "engine/trace.h"

#define STEP_TRACE_ARGS 9

struct step_trace {
    struct trace *trace; /* NULL: nothing is traced */
    struct device *device;
    const struct scheduler *scheduler;
    const struct kv_cache *cache;
    double call_s, lap_s; /* when this call of engine_step, and its next part, began       */
    double ended_s;       /* when the device was done with the latest known step; 0: none  */
    long n_preemptions;   /* up to the latest step                                         */
};

/* A step from its launch to its collection. */
struct traced_step {
    struct trace_arg arg[STEP_TRACE_ARGS];
    int64_t began, ended; /* marks */
};

void step_trace_init(struct step_trace *t, struct trace *trace, struct device *device,
                     const struct scheduler *scheduler, const struct kv_cache *cache);

/* A call of engine_step begins; a part of it, of this step, ends here; the call ends. */
void step_trace_call(struct step_trace *t);
void step_trace_part(struct step_trace *t, const char *part, long step);
void step_trace_return(struct step_trace *t);

/* Around the operations of a step. */
void step_trace_launch(struct step_trace *t, struct traced_step *traced, long step,
                       const struct schedule *schedule);
void step_trace_launched(struct step_trace *t, struct traced_step *traced);
/* The step's n_tokens sampled tokens are here. */
void step_trace_collect(struct step_trace *t, const struct traced_step *traced, int n_tokens);

#endif
