/* bench_attention.c - see bench.h: attention through a backend's table, paged, on any device.
 *
 * Block tables are shuffled, as after hours of serving. For a cold cache there are as many copies
 * of keys and values as no cache holds, in blocks of their own; a call reads the next copy, and
 * every copy gives the same result.
 */
#include "runner/bench.h"
#include "runner/decision.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COLD_BYTES  256e6 /* several times the L2 cache of a GPU or the share of a CPU's L3 */
#define MAX_BUFFERS 8192  /* 32 KiB each: for the smallest shapes */

struct inputs {
    struct device *device;
    const struct bench_shape *shape;
    int n_buffers, max_blocks;
    int *table; /* host: [n_buffers, batch, max_blocks] */
    /* device: */
    void *qkv, *out;
    struct kv_layer kv;
    int *position, *q_start, *kv_len, *block_table;
};

/* One kernel's calls. */
struct runner {
    const struct inputs *inputs;
    struct batch *batch; /* [n_buffers] */
    struct attention_args args;
};

/* ---- inputs ---- */

static int n_tokens_of(const struct bench_shape *s)
{
    return s->batch * s->q_len;
}

static void shuffle_blocks(struct inputs *in)
{
    int n = in->n_buffers * in->shape->batch * in->max_blocks;
    in->table = xcalloc((size_t)n, sizeof(int));
    for (int i = 0; i < n; i++) {
        int j = (int)(mix64((uint64_t)i) % (uint64_t)(i + 1));
        in->table[i] = in->table[j];
        in->table[j] = i;
    }
}

/* The pool of keys or of values: [n_blocks, n_kv_heads, block_size, head_dim]. */
static void fill_pool(void *pool, const struct inputs *in, enum bench_stream stream)
{
    const struct bench_shape *s = in->shape;
    size_t d = (size_t)s->head_dim, block_size = (size_t)s->block_size;
    size_t kv_heads = (size_t)s->n_kv_heads, kv_len = (size_t)s->kv_len;
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < in->n_buffers * s->batch; i++) {
        const int *row = in->table + (size_t)i * (size_t)in->max_blocks;
        size_t seq = (size_t)i % (size_t)s->batch;
        for (size_t key = 0; key < kv_len; key++) {
            for (size_t h = 0; h < kv_heads; h++) {
                size_t block = (size_t)row[key / block_size];
                size_t to = ((block * kv_heads + h) * block_size + key % block_size) * d;
                size_t from = ((seq * kv_len + key) * kv_heads + h) * d;
                for (size_t k = 0; k < d; k++)
                    bench_store_value(pool, to + k, s->dtype, bench_value(stream, from + k));
            }
        }
    }
}

/* Device memory with a copy of host bytes; NULL with ERR_RESOURCE. */
static void *place(struct device *device, const void *host, size_t bytes)
{
    void *memory = device->ops->alloc(device, bytes);
    if (memory)
        device->ops->upload(device, memory, host, bytes);
    return memory;
}

static int place_pools(struct inputs *in)
{
    struct device *device = in->device;
    const struct bench_shape *s = in->shape;
    size_t n_blocks = (size_t)in->n_buffers * (size_t)s->batch * (size_t)in->max_blocks;
    size_t block = (size_t)s->n_kv_heads * (size_t)s->block_size * (size_t)s->head_dim;
    size_t bytes = n_blocks * block * dtype_bytes(s->dtype);
    void *host = device->ops->alloc_host(device, bytes);
    if (!host)
        return -1;
    memset(host, 0xFF, bytes); /* slots that belong to no key: not a number */
    fill_pool(host, in, BENCH_K);
    in->kv.k = place(device, host, bytes);
    fill_pool(host, in, BENCH_V);
    in->kv.v = in->kv.k ? place(device, host, bytes) : NULL;
    device->ops->free(device, host);
    return in->kv.v ? 0 : -1;
}

/* Queries in their places between the heads of K and V, and an output that is not a number. */
static int place_queries(struct inputs *in)
{
    struct device *device = in->device;
    const struct bench_shape *s = in->shape;
    size_t width = (size_t)(s->n_heads + 2 * s->n_kv_heads) * (size_t)s->head_dim;
    size_t q_width = (size_t)s->n_heads * (size_t)s->head_dim, n = (size_t)n_tokens_of(s);
    size_t element = dtype_bytes(device->act_dtype);
    void *host = device->ops->alloc_host(device, n * width * element);
    if (!host)
        return -1;
    memset(host, 0, n * width * element);
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < q_width; i++)
            bench_store_value(host, t * width + i, device->act_dtype,
                              bench_value(BENCH_Q, t * q_width + i));
    in->qkv = place(device, host, n * width * element);
    memset(host, 0xFF, n * q_width * element);
    in->out = in->qkv ? place(device, host, n * q_width * element) : NULL;
    device->ops->free(device, host);
    return in->out ? 0 : -1;
}

static int place_arrays(struct inputs *in)
{
    const struct bench_shape *s = in->shape;
    size_t n = (size_t)n_tokens_of(s), batch = (size_t)s->batch;
    int *position = xcalloc(n, sizeof(int)), *kv_len = xcalloc(batch, sizeof(int));
    int *q_start = xcalloc(batch + 1, sizeof(int));
    for (int t = 0; t < n_tokens_of(s); t++)
        position[t] = s->kv_len - s->q_len + t % s->q_len;
    for (int i = 0; i < s->batch; i++) {
        kv_len[i] = s->kv_len;
        q_start[i + 1] = (i + 1) * s->q_len;
    }
    size_t n_table = (size_t)in->n_buffers * batch * (size_t)in->max_blocks;
    in->position = place(in->device, position, n * sizeof(int));
    in->kv_len = place(in->device, kv_len, batch * sizeof(int));
    in->q_start = place(in->device, q_start, (batch + 1) * sizeof(int));
    in->block_table = place(in->device, in->table, n_table * sizeof(int));
    free(position);
    free(kv_len);
    free(q_start);
    return in->position && in->kv_len && in->q_start && in->block_table ? 0 : -1;
}

static struct attention_shape attention_shape_of(const struct bench_shape *s)
{
    return (struct attention_shape){.n_heads = s->n_heads,
                                    .n_kv_heads = s->n_kv_heads,
                                    .head_dim = s->head_dim,
                                    .block_size = s->block_size,
                                    .kv_dtype = s->dtype};
}

static int open_inputs(struct inputs *in, struct device *device, const struct bench_shape *s)
{
    *in = (struct inputs){.device = device, .shape = s, .n_buffers = 1};
    if (s->cold)
        in->n_buffers = (int)MIN(ceil(COLD_BYTES / bench_shape_kv_bytes(s)), MAX_BUFFERS);
    in->max_blocks = CEIL_DIV(s->kv_len, s->block_size);
    if ((int64_t)in->n_buffers * s->batch * in->max_blocks > INT_MAX)
        return err_set(ERR_RESOURCE, "too many blocks to count");
    struct step_limits limits = {.max_tokens = n_tokens_of(s),
                                 .max_seqs = s->batch,
                                 .max_kv_len = s->kv_len,
                                 .shape = attention_shape_of(s)};
    shuffle_blocks(in);
    if (place_pools(in) != 0 || place_queries(in) != 0 || place_arrays(in) != 0)
        return -1;
    return device->ops->reserve(device, &limits);
}

static void close_inputs(struct inputs *in)
{
    void *const memory[] = {in->qkv,      in->out,     in->kv.k,   in->kv.v,
                            in->position, in->q_start, in->kv_len, in->block_table};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        in->device->ops->free(in->device, memory[i]);
    free(in->table);
}

/* ---- one kernel ---- */

static void open_runner(struct runner *r, const struct inputs *in, enum attention_kind kind)
{
    const struct bench_shape *s = in->shape;
    r->inputs = in;
    r->batch = xcalloc((size_t)in->n_buffers, sizeof(*r->batch));
    for (int i = 0; i < in->n_buffers; i++)
        r->batch[i] = (struct batch){
            .n_tokens = n_tokens_of(s),
            .n_seqs = s->batch,
            .max_blocks = in->max_blocks,
            .max_q_len = s->q_len,
            .max_kv_len = s->kv_len,
            .position = in->position,
            .q_start = in->q_start,
            .kv_len = in->kv_len,
            .block_table = in->block_table + (size_t)i * (size_t)s->batch * (size_t)in->max_blocks,
        };
    r->args = (struct attention_args){.kind = kind,
                                      .out = in->out,
                                      .qkv = in->qkv,
                                      .kv = in->kv,
                                      .shape = attention_shape_of(s),
                                      .scale = 1 / sqrtf((float)s->head_dim),
                                      .batch = &r->batch[0]};
    /* The batches differ in their tables alone, which a plan does not depend on. */
    in->device->ops->attention_plan(in->device, &r->args);
}

static void call_attention(void *context, int i)
{
    struct runner *r = context;
    struct device *device = r->inputs->device;
    r->args.batch = &r->batch[i];
    device->ops->attention(device, &r->args);
}

/* The sampled rows of the output, and then an output that is not a number again, so that a kernel
 * that writes nothing is not taken for the one before. */
static void take_rows(double *got, const struct inputs *in, const struct bench_expected *e)
{
    struct device *device = in->device;
    const struct bench_shape *s = in->shape;
    size_t d = (size_t)s->head_dim, bytes = d * dtype_bytes(device->act_dtype);
    char row[BENCH_MAX_DIM * sizeof(float)];
    float widened[BENCH_MAX_DIM];
    for (int i = 0; i < e->n_rows; i++) {
        size_t at = (size_t)e->token[i] * (size_t)s->n_heads + (size_t)e->head[i];
        char *from = (char *)in->out + at * bytes;
        device->ops->download(device, row, from, bytes);
        dtype_to_f32(widened, row, device->act_dtype, d);
        for (size_t k = 0; k < d; k++)
            got[(size_t)i * d + k] = widened[k];
        memset(row, 0xFF, bytes);
        device->ops->upload(device, from, row, bytes);
    }
}

/* The larger error of the first and the last copy of the keys. */
static double check(struct runner *r, const struct bench_expected *expected)
{
    const struct inputs *in = r->inputs;
    int d = in->shape->head_dim;
    double *got = xcalloc((size_t)expected->n_rows * (size_t)d, sizeof(*got)), error = 0;
    for (int i = 0; i < in->n_buffers; i += MAX(in->n_buffers - 1, 1)) {
        call_attention(r, i);
        take_rows(got, in, expected);
        error = fmax(error, bench_error(expected, got, d));
    }
    free(got);
    return error;
}

/* ---- a shape ---- */

static struct bench_row *add_row(struct bench_rows *rows, int group, const struct bench_shape *s,
                                 const char *kernel)
{
    struct bench_row *row = bench_rows_add(rows, group, kernel);
    bench_shape_label(row->shape, s);
    row->dtype = s->dtype;
    row->cache = s->cold ? "cold" : "warm";
    row->n_tokens = n_tokens_of(s);
    row->flops = bench_shape_flops(s);
    row->bytes = bench_shape_kv_bytes(s);
    return row;
}

/* None of these rows could be measured; err_get() says why. */
static void fail_rows(struct bench_row *row, int n)
{
    for (int i = 0; i < n; i++) {
        row[i].state = BENCH_FAILED;
        snprintf(row[i].note, sizeof(row[i].note), "%.180s", err_get());
    }
    err_clear();
}

/* Checks the kernels and times those that are right; row[n] are theirs. */
static void run_kernels(struct bench_row *row, const struct inputs *in,
                        const enum attention_kind *kind, int n, double seconds)
{
    struct runner runner[ATTENTION_N] = {0};
    struct bench_contestant contestant[ATTENTION_N];
    struct bench_expected *expected = xcalloc(1, sizeof(*expected));
    int row_of[ATTENTION_N], n_right = 0;
    bench_expect(expected, in->shape);
    for (int i = 0; i < n; i++) {
        open_runner(&runner[i], in, kind[i]);
        row[i].error = check(&runner[i], expected);
        if (row[i].error > bench_tolerance(in->shape->dtype)) {
            row[i].state = BENCH_WRONG;
            snprintf(row[i].note, sizeof(row[i].note), "error above %g: not timed",
                     bench_tolerance(in->shape->dtype));
            continue;
        }
        row_of[n_right] = i;
        contestant[n_right++] = (struct bench_contestant){
            .call = call_attention, .context = &runner[i], .period = in->n_buffers};
    }
    int rc = bench_time(in->device, contestant, n_right, seconds);
    for (int i = 0; i < n_right; i++) {
        row[row_of[i]].state = BENCH_OK;
        row[row_of[i]].latency_s = contestant[i].latency_s;
    }
    if (rc != 0)
        fail_rows(row, n);
    for (int i = 0; i < n; i++)
        free(runner[i].batch);
    free(expected);
}

void bench_attention_run(struct bench_rows *rows, int group, struct device *device,
                         const struct bench_shape *shape, unsigned kernels, double seconds)
{
    enum attention_kind kind[ATTENTION_N];
    char why[DECISION_REASON_MAX];
    size_t first = rows->n;
    int n = 0;
    for (int k = 0; k < ATTENTION_N; k++) {
        bool wanted = kernels & 1u << k;
        if (wanted && decision_can_attend(&device->info, (enum attention_kind)k, why)) {
            kind[n++] = (enum attention_kind)k;
            add_row(rows, group, shape, attention_name((enum attention_kind)k));
        }
    }
    for (int k = 0; k < ATTENTION_N; k++) {
        bool wanted = kernels & 1u << k;
        if (wanted && !decision_can_attend(&device->info, (enum attention_kind)k, why)) {
            struct bench_row *row =
                add_row(rows, group, shape, attention_name((enum attention_kind)k));
            row->state = BENCH_NOT_AVAILABLE;
            snprintf(row->note, sizeof(row->note), "%.180s", why);
        }
    }
    struct bench_memory memory;
    struct inputs in;
    bench_memory_mark(&memory, device->info.kind);
    if (open_inputs(&in, device, shape) == 0)
        run_kernels(&rows->row[first], &in, kind, n, seconds);
    else
        fail_rows(&rows->row[first], n);
    double used = bench_memory_used(&memory);
    for (int i = 0; i < n; i++)
        rows->row[first + (size_t)i].memory_bytes = used;
    close_inputs(&in);
}
