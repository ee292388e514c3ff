/* bench_time.c - see bench.h: rows, order statistics, alternating timing, memory, the roofline.
 *
 * Contestants take turns, round by round, so that a machine that slows down slows all of them. A
 * round of one is many calls between two syncs; its sample is their mean. Where the device records,
 * the calls of a round are one graph, as a decode step is in the engine: otherwise a kernel of a
 * few microseconds would measure the host's launches.
 */
#include "runner/bench.h"
#include "runner/host.h"

#include <assert.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_CALLS          4096 /* of one round                                  */
#define MAX_RECORDED_CALLS 8192 /* of one graph                                  */
#define MIN_ROUNDS         3    /* even when they take longer than what is asked */
#define PATIENCE           10   /* times that: then even those are given up      */

/* ---- rows ---- */

const char *bench_state_name(enum bench_state state)
{
    static const char *const names[] = {
        [BENCH_OK] = "ok",
        [BENCH_WRONG] = "wrong",
        [BENCH_FAILED] = "failed",
        [BENCH_NOT_AVAILABLE] = "not available",
    };
    return names[state];
}

struct bench_row *bench_rows_add(struct bench_rows *rows, int group, const char *kernel)
{
    array_reserve(&rows->row, &rows->capacity, rows->n + 1, sizeof(*rows->row));
    struct bench_row *row = &rows->row[rows->n++];
    *row = (struct bench_row){.group = group,
                              .cache = "",
                              .state = BENCH_FAILED,
                              .latency_s = {NAN, NAN, NAN},
                              .memory_bytes = NAN,
                              .error = NAN};
    snprintf(row->kernel, sizeof(row->kernel), "%s", kernel);
    return row;
}

void bench_rows_free(struct bench_rows *rows)
{
    free(rows->row);
    *rows = (struct bench_rows){0};
}

double bench_fastest_s(const struct bench_rows *rows, int group)
{
    double fastest = NAN;
    for (size_t i = 0; i < rows->n; i++) {
        const struct bench_row *row = &rows->row[i];
        if (row->group == group && row->state == BENCH_OK)
            fastest = fmin(fastest, row->latency_s.median); /* of a number and NaN: the number */
    }
    return fastest;
}

/* ---- order statistics ---- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *sorted, size_t n, double q)
{
    double at = q * (double)(n - 1);
    size_t below = (size_t)at, above = MIN(below + 1, n - 1);
    return sorted[below] + (at - (double)below) * (sorted[above] - sorted[below]);
}

struct bench_spread bench_spread_of(double *sample, size_t n)
{
    assert(n >= 1);
    qsort(sample, n, sizeof(*sample), compare_doubles);
    return (struct bench_spread){quantile(sample, n, 0.5), quantile(sample, n, 0.1),
                                 quantile(sample, n, 0.9)};
}

/* ---- timing ---- */

struct timing {
    struct bench_contestant *contestant;
    struct graph *graph; /* of n_calls calls; NULL: they are made one by one */
    int n_calls, next;
    double sample[BENCH_ROUNDS], total_s;
    int n_samples;
};

static void run_calls(struct device *device, struct timing *t)
{
    if (t->graph) {
        device->ops->graph_run(device, t->graph);
        return;
    }
    struct bench_contestant *c = t->contestant;
    for (int i = 0; i < t->n_calls; i++) {
        c->call(c->context, t->next);
        t->next = (t->next + 1) % c->period;
    }
}

static double round_s(struct device *device, struct timing *t)
{
    device->ops->sync(device);
    double began_s = time_monotonic_s();
    run_calls(device, t);
    device->ops->sync(device);
    return time_monotonic_s() - began_s;
}

/* A replay starts with the same inputs again, so a graph goes round over all of them. */
static int record(struct device *device, struct timing *t)
{
    struct bench_contestant *c = t->contestant;
    int n = MAX(t->n_calls, c->period);
    if (n > MAX_RECORDED_CALLS)
        n = MAX_RECORDED_CALLS / c->period * c->period;
    if (n == 0 || t->n_calls == 1 || !device->ops->graph_begin(device))
        return 0;
    for (int i = 0; i < n; i++)
        c->call(c->context, i % c->period);
    t->graph = device->ops->graph_end(device);
    t->n_calls = n;
    if (t->graph)
        (void)round_s(device, t);
    return t->graph ? 0 : -1;
}

/* The first call loads code and touches memory; the second says how many fill a round. */
static int prepare(struct device *device, struct timing *t, double seconds)
{
    t->n_calls = 1;
    (void)round_s(device, t);
    double once_s = MAX(round_s(device, t), 1e-9);
    double n = seconds / BENCH_ROUNDS / once_s;
    t->n_calls = n < 1 ? 1 : (int)MIN(n, MAX_CALLS);
    return record(device, t);
}

static bool has_enough(const struct timing *t, double seconds)
{
    return (t->total_s >= seconds && t->n_samples >= MIN_ROUNDS) ||
           (t->total_s >= PATIENCE * seconds && t->n_samples >= 1);
}

int bench_time(struct device *device, struct bench_contestant *contestant, int n, double seconds)
{
    struct timing *timing = xcalloc((size_t)n, sizeof(*timing));
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        timing[i].contestant = &contestant[i];
        rc = prepare(device, &timing[i], seconds);
    }
    for (int round = 0; round < BENCH_ROUNDS && rc == 0; round++) {
        for (int i = 0; i < n; i++) {
            struct timing *t = &timing[i];
            if (has_enough(t, seconds))
                continue;
            double s = round_s(device, t);
            t->sample[t->n_samples++] = s / t->n_calls;
            t->total_s += s;
        }
    }
    for (int i = 0; i < n; i++) {
        if (rc == 0)
            contestant[i].latency_s =
                bench_spread_of(timing[i].sample, (size_t)timing[i].n_samples);
        device->ops->graph_free(device, timing[i].graph);
    }
    free(timing);
    return rc;
}

/* ---- memory ---- */

/* Linux sets a process's peak back to what is resident now on this request; where it does not, the
 * peak is that of the whole run. */
static void forget_peak(void)
{
    int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (write(fd, "5", 1) != 1)
        log_debug("the peak of resident memory is that of the whole run");
    close(fd);
}

static size_t gpu_taken_bytes(void)
{
    struct device_info info;
    if (device_describe(&info, DEVICE_CUDA, &(struct device_options){0}) != 0)
        return 0;
    return info.memory_bytes - info.free_bytes;
}

void bench_memory_mark(struct bench_memory *m, enum device_kind kind)
{
    *m = (struct bench_memory){.kind = kind};
    if (kind == DEVICE_CPU)
        forget_peak();
    else
        m->before_bytes = gpu_taken_bytes();
}

double bench_memory_used(const struct bench_memory *m)
{
    if (m->kind == DEVICE_CPU)
        return (double)host_memory_peak_bytes();
    return (double)gpu_taken_bytes() - (double)m->before_bytes;
}

/* ---- roofline ---- */

struct model_costs {
    double body, all; /* parameters of the products, without and with the logits */
    double bytes;     /* of all of them                                          */
    double attend;    /* operations for one query of one layer stack and one key */
};

static struct model_costs costs_of(const struct model_info *m)
{
    double q = (double)m->n_heads * m->head_dim, kv = (double)m->n_kv_heads * m->head_dim;
    double layer = m->hidden * (q + 2 * kv) + q * m->hidden + 3.0 * m->hidden * m->ffn;
    double body = m->n_layers * layer, all = body + (double)m->vocab * m->hidden;
    return (struct model_costs){.body = body,
                                .all = all,
                                .bytes =
                                    (double)weight_bytes(1, (size_t)all, m->dtype, m->quantization),
                                .attend = 4.0 * m->n_layers * q};
}

/* a / rate, or 0 for a rate that is not known. */
static double time_of(double amount, double rate)
{
    return rate > 0 ? amount / rate : 0;
}

/* The sequences of a step that are still running, and the tokens in their caches. */
static int running_at(const struct bench_load *load, int step, double *context)
{
    int n = 0;
    *context = 0;
    for (int i = 0; i < load->n; i++) {
        if (load->n_out[i] > step) {
            n++;
            *context += load->n_in[i] + step;
        }
    }
    return n;
}

void bench_roofline_of(struct bench_roofline *out, const struct model_info *model,
                       const struct bench_load *load, const struct bench_ceiling *ceiling)
{
    const struct model_costs c = costs_of(model);
    double rate = 1e12 * ceiling->tflops[bench_rate_of(model->dtype, model->quantization)];
    double bandwidth = 1e9 * ceiling->read_gbps;
    *out = (struct bench_roofline){0};
    for (int i = 0; i < load->n; i++) {
        double n = load->n_in[i];
        out->prefill_flops += 2 * c.body * n + c.attend * n * n / 2;
    }
    out->prefill_s = time_of(out->prefill_flops, rate);
    for (int step = 1;; step++) {
        double context;
        int n = running_at(load, step, &context);
        if (n == 0)
            break;
        double products = 2 * c.all * n, keys = load->kv_token_bytes * context;
        out->decode_s +=
            fmax(time_of(c.bytes, bandwidth), time_of(products, rate)) + time_of(keys, bandwidth);
        out->decode_flops += products + c.attend * context;
        out->decode_bytes += c.bytes + keys;
        out->n_steps++;
    }
}
