/* worker.c - see worker.h.
 *
 * The model stays loaded as long as orders are for its groups. The ladder: a GPU without room for
 * the model means the CPU for all of its groups; without room for an engine, the CPU for that one.
 */
#include "runner/worker.h"
#include "runner/generation.h"
#include "runner/host.h"
#include "runner/stop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PULSE_S 0.5      /* between pulses that carry no outcome */
#define NAP_NS  10000000 /* while there is nothing to do         */

/* Samples that wait in the engine: any number when no other rank could have them, and else a batch
 * for when all of one end in the same step, or what small batches do while the desk answers. */
#define MAX_WAITING       256
#define MAX_WAITING_SMALL 16

struct worker {
    const struct worker_options *options;
    struct decision *of_model; /* [work->n_groups] the device of each model, on this rank   */
    struct model *model;       /* NULL: none is loaded                */
    const struct model_group *loaded;
    enum device_kind device; /* of the loaded model */
    struct engine *engine;   /* NULL: none is open  */
    struct opening opening;  /* of the order at hand */
    bool has_cpus;           /* took this rank's part of the processors        */
    int n_threads;           /* for this rank; 0: all that it may use          */
    double memory_bytes;     /* of a CPU, for this rank; 0: not known yet */
    double busy_s, pulse_s;
    char warned_of[DECISION_REASON_MAX]; /* the last degraded_reason that was shown */
};

/* ---- signs of life ---- */

static void send_pulse(struct worker *w, bool loading)
{
    struct cluster_traffic traffic = cluster_get_traffic(w->options->cluster);
    struct pulse pulse = {.busy_s = w->busy_s,
                          .wall_s = time_monotonic_s() - w->options->began_s,
                          .memory_peak_bytes = host_memory_peak_bytes(),
                          .sent_bytes = traffic.sent_bytes,
                          .received_bytes = traffic.received_bytes,
                          .loading = loading};
    if (w->engine)
        engine_get_stats(w->engine, &pulse.stats);
    link_pulse(w->options->link, &pulse);
    w->pulse_s = time_monotonic_s();
}

static void after_step(void *user, double step_s)
{
    struct worker *w = user;
    w->busy_s += step_s;
    if (link_has_outcomes(w->options->link) || time_monotonic_s() - w->pulse_s > PULSE_S)
        send_pulse(w, false);
    if (w->options->desk)
        desk_tick(w->options->desk);
}

/* ---- models and engines ---- */

static void close_engine(struct worker *w)
{
    engine_close(w->engine);
    w->engine = NULL;
}

static void close_model(struct worker *w)
{
    model_close(w->model);
    w->model = NULL;
    w->loaded = NULL;
}

/* CPU threads of this rank. A GPU's host threads may run wherever the process may. */
static int own_threads(struct worker *w)
{
    struct cluster_place place = cluster_get_place(w->options->cluster);
    if (!w->has_cpus)
        w->n_threads = host_take_cpus(place.cpu_rank, place.cpu_size);
    w->has_cpus = true;
    return w->n_threads;
}

/* Loads the model of a group on a device, unless it is there already. */
static int load_model(struct worker *w, const struct model_group *group, enum device_kind device)
{
    struct model_options options;
    if (w->loaded == group && w->device == device)
        return 0;
    close_model(w);
    work_model_options(group, &options);
    options.device = device;
    options.device_options.index = w->options->policy.gpu;
    if (!options.device_options.n_threads && device == DEVICE_CPU)
        options.device_options.n_threads = own_threads(w);
    if (device == DEVICE_CUDA && w->options->policy.gpu < 0)
        return err_set(ERR_RUN, "no GPU is left for this rank: the host has more ranks than GPUs");
    send_pulse(w, true);
    decision_log_loading(&w->opening.decision, options.path);
    double began_s = trace_now(w->options->trace);
    int rc = model_open(&w->model, &options);
    trace_end(w->options->trace, TRACE_HOST, "load model", began_s);
    if (rc != 0)
        return -1;
    w->loaded = group;
    w->device = device;
    return 0;
}

/* Linux promises the memory that is free to every rank of a host, and kills one when they use it:
 * each takes its part of what was free when it began. A GPU's memory is for one rank. */
static void share_memory(struct worker *w, struct engine_options *options)
{
    int n_ranks = cluster_get_place(w->options->cluster).local_size;
    double free_bytes = (double)model_get_info(w->model)->device.free_bytes;
    if (w->device != DEVICE_CPU || n_ranks == 1)
        return;
    if (w->memory_bytes == 0)
        w->memory_bytes = free_bytes / n_ranks;
    if (w->memory_bytes < free_bytes)
        options->memory_utilization *= w->memory_bytes / free_bytes;
}

static int open_engine(struct worker *w, const struct engine_group *group)
{
    struct opening *o = &w->opening;
    const struct model_info *info = model_get_info(w->model);
    struct engine_options options;
    double began_s = time_monotonic_s();
    o->has_model = true;
    o->dtype = info->dtype;
    o->quantization = info->quantization;
    o->load_s = info->load_s;
    if (decision_choose_attention(&o->decision, &group->work[0]->task->settings, &info->device,
                                  &w->options->policy) != 0)
        return -1;
    if (cluster_get_place(w->options->cluster).rank == 0) /* the desk speaks for the others */
        decision_log(&o->decision, w->warned_of);
    work_engine_options(&options, &o->decision, group, info);
    share_memory(w, &options);
    options.trace = w->options->trace;
    if (engine_open(&w->engine, w->model, &options) != 0) {
        if (decision_use_standard_engine(&o->decision, &w->options->policy) != 0)
            return -1;
        options.fast = false;
        if (engine_open(&w->engine, w->model, &options) != 0)
            return -1;
    }
    trace_end(w->options->trace, TRACE_HOST, "open engine", began_s);
    o->has_engine = true;
    o->init_s = time_monotonic_s() - began_s;
    return 0;
}

/* An engine for the group on the best device that has room for it. */
static int open_group(struct worker *w, int index)
{
    const struct engine_group *group = &w->options->work->engine_group[index];
    struct decision *model = &w->of_model[group->model - w->options->work->group];
    const struct decision_policy *policy = &w->options->policy;
    w->opening = (struct opening){.group = index, .decision = *model};
    decision_choose_engine(&w->opening.decision, &group->work[0]->task->settings);
    while (load_model(w, group->model, w->opening.decision.device) != 0) {
        if (decision_use_cpu(model, policy) != 0)
            return -1;
        w->opening.decision = *model;
        decision_choose_engine(&w->opening.decision, &group->work[0]->task->settings);
    }
    if (open_engine(w, group) == 0)
        return 0;
    if (decision_use_cpu(&w->opening.decision, policy) != 0 ||
        load_model(w, group->model, DEVICE_CPU) != 0)
        return -1;
    return open_engine(w, group);
}

/* ---- orders ---- */

static void log_preemptions(const struct worker *w)
{
    struct engine_stats stats;
    char swapped[32];
    engine_get_stats(w->engine, &stats);
    if (stats.n_preemptions)
        log_info(
            "KV blocks ran out %ld times: %ld sequences were swapped (%s copied) and %ld "
            "recomputed (results are the same; more memory or a smaller max_num_seqs is "
            "faster)",
            stats.n_preemptions, stats.n_swapped_out,
            format_bytes(swapped, (double)stats.swapped_out_bytes + (double)stats.swapped_in_bytes),
            stats.n_preemptions - stats.n_swapped_out);
}

static int choose_waiting(const struct worker *w, int max_num_seqs)
{
    bool alone = cluster_get_place(w->options->cluster).size == 1;
    return alone ? MAX_WAITING : MIN(MAX(max_num_seqs, MAX_WAITING_SMALL), MAX_WAITING);
}

/* Works on the order's group; true when *order is then one for another group. */
static bool run_group(struct worker *w, struct order *order)
{
    const struct engine_group *group = &w->options->work->engine_group[order->group];
    if (open_group(w, order->group) != 0) {
        link_refuse(w->options->link, &w->opening);
        return false;
    }
    link_begin(w->options->link, &w->opening);
    const int max_num_seqs = (int)group->work[0]->task->settings.engine.max_num_seqs;
    struct generation generation = {.group = group,
                                    .group_index = order->group,
                                    .engine = w->engine,
                                    .tokenizer = model_get_tokenizer(w->model),
                                    .link = w->options->link,
                                    .max_num_seqs = max_num_seqs,
                                    .max_waiting = choose_waiting(w, max_num_seqs),
                                    .after_step = after_step,
                                    .user = w};
    enum generation_result result = generation_run(&generation, order);
    log_preemptions(w);
    send_pulse(w, false);
    if (result == GENERATION_FAILED)
        link_refuse(w->options->link, &w->opening);
    close_engine(w);
    return result == GENERATION_NEXT;
}

/* False: there is nothing more to do for this rank. */
static bool next_order(struct worker *w, struct order *order)
{
    while (!stop_get()) {
        if (link_take(w->options->link, -1, 1, order) && order->kind != ORDER_WAIT)
            return order->kind == ORDER_SAMPLES;
        after_step(w, 0);
        nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    }
    return false;
}

static void greet(const struct worker *w)
{
    struct host_facts facts;
    struct greeting greeting = {.pid = getpid()};
    host_get_facts(&facts);
    snprintf(greeting.host, sizeof(greeting.host), "%s", facts.name);
    snprintf(greeting.digest, sizeof(greeting.digest), "%s", w->options->work->digest);
    link_greet(w->options->link, &greeting);
}

void worker_run(const struct worker_options *options)
{
    const struct work_list *work = options->work;
    struct worker w = {.options = options};
    w.of_model = xcalloc((size_t)work->n_groups, sizeof(*w.of_model));
    for (int g = 0; g < work->n_groups; g++)
        w.of_model[g] = work->group[g].decision;
    greet(&w);
    struct order order;
    bool have = next_order(&w, &order);
    while (have)
        have = run_group(&w, &order) || next_order(&w, &order);
    close_model(&w);
    free(w.of_model);
}
