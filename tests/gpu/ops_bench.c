/* ops_bench.c - times of the CUDA operations, attention excepted, beside the card's bandwidth.
 *
 * Each line is the mean of REPEATS recorded calls in one graph. Matrices rotate over as many copies
 * as the L2 cache cannot hold; bytes of a product are those of W, x and y.
 */
#include "tests/ops_reference.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPEATS      24
#define ROTATE_BYTES ((size_t)400 << 20)

struct bench {
    struct device *device;
    struct weight *weight; /* [n_copies] */
    int n_copies, n_out, n_in;
    void *x, *y, *z; /* 600 MB each */
    float *f32;
    int *index;
    struct sample_row *row;
    int n_rows;
    enum dtype out_dtype;
    struct batch batch;
};

typedef void (*bench_call)(const struct bench *b, int repeat);

static double seconds_of(const struct bench *b, bench_call call)
{
    const struct backend *ops = b->device->ops;
    call(b, 0); /* chooses algorithms, loads kernels */
    ops->sync(b->device);
    if (!ops->graph_begin(b->device))
        return 0;
    for (int i = 0; i < REPEATS; i++)
        call(b, i);
    struct graph *graph = ops->graph_end(b->device);
    if (!graph)
        die("%s", err_get());
    ops->graph_run(b->device, graph);
    ops->sync(b->device);
    double start = time_monotonic_s();
    ops->graph_run(b->device, graph);
    ops->graph_run(b->device, graph);
    ops->sync(b->device);
    double taken = time_monotonic_s() - start;
    ops->graph_free(b->device, graph);
    return taken / (2 * REPEATS);
}

static void print_line(const char *name, int n_rows, double s, double bytes, double flops)
{
    printf("%-28s M %5d  %8.2f us  %7.0f GB/s", name, n_rows, s * 1e6, bytes / s / 1e9);
    if (flops > 0)
        printf("  %6.1f TFLOP/s", flops / s / 1e12);
    printf("\n");
}

static void call_linear(const struct bench *b, int repeat)
{
    struct linear_args args = {.out = b->y,
                               .x = b->x,
                               .weight = &b->weight[repeat % b->n_copies],
                               .n_rows = b->n_rows,
                               .out_dtype = b->out_dtype};
    b->device->ops->linear(b->device, &args);
}

/* As in a step, where the kernel before a product leaves it time to start. */
static void call_norm_linear(const struct bench *b, int repeat)
{
    b->device->ops->add_rmsnorm(b->device, b->x, b->z, NULL, b->f32, b->n_rows, b->n_in, 1e-6f);
    call_linear(b, repeat);
}

static void call_norm(const struct bench *b, int repeat)
{
    (void)repeat;
    b->device->ops->add_rmsnorm(b->device, b->z, b->y, b->x, b->f32, b->n_rows, b->n_in, 1e-6f);
}

static void call_gather(const struct bench *b, int repeat)
{
    (void)repeat;
    b->device->ops->gather(b->device, b->z, b->x, b->index, b->n_rows, b->n_in);
}

static void call_rope(const struct bench *b, int repeat)
{
    (void)repeat;
    struct rope_cache_args args = {.qkv = b->x,
                                   .q_gain = b->f32,
                                   .k_gain = b->f32,
                                   .rope = b->f32,
                                   .norm_eps = 1e-6f,
                                   .kv = {b->y, b->z},
                                   .shape = {16, 8, 128, 64, DTYPE_BF16},
                                   .batch = &b->batch};
    b->device->ops->rope_cache(b->device, &args);
}

static void call_sample(const struct bench *b, int repeat)
{
    (void)repeat;
    struct sample_args args = {b->index, b->y, b->row, b->n_rows, 151936};
    b->device->ops->sample(b->device, &args);
}

static void bench_linear(struct bench *b, int n_out, int n_in, enum dtype out_dtype, bool gated)
{
    static const int rows[] = {1, 16, 64, 128, 256, 2048, 8192};
    struct device *device = b->device;
    size_t n = (size_t)n_out * (size_t)n_in;
    b->n_copies = (int)MIN(MAX(ROTATE_BYTES / (2 * n), 1), REPEATS);
    b->weight = xcalloc((size_t)b->n_copies, sizeof(*b->weight));
    uint16_t *host = xmalloc(2 * n);
    for (size_t i = 0; i < n; i++)
        host[i] = (uint16_t)(0x3C00 + (mix64(i) & 0x81FF)); /* bf16, 2^-7 .. 2^-5, both signs */
    struct weight_part part = {.rows = host, .dtype = DTYPE_BF16, .n_rows = n_out};
    for (int c = 0; c < b->n_copies; c++) {
        b->weight[c] = (struct weight){.dtype = DTYPE_BF16, .gated = gated, .n_in = n_in};
        if (device->ops->weight_load(device, &b->weight[c], &part, 1) != 0)
            die("%s", err_get());
    }
    struct step_limits limits = {8192,
                                 256,
                                 256,
                                 4096,
                                 12288,
                                 out_dtype == DTYPE_F32 ? n_out : 0,
                                 {16, 8, 128, 64, DTYPE_BF16}};
    double start = time_monotonic_s();
    if (device->ops->reserve(device, &limits) != 0)
        die("%s", err_get());
    printf("%dx%d: algorithms chosen in %.1f ms\n", n_out, n_in,
           (time_monotonic_s() - start) * 1e3);
    b->out_dtype = out_dtype;
    b->n_in = n_in;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        b->n_rows = rows[i];
        if (out_dtype == DTYPE_F32 && rows[i] > 256)
            continue;
        char name[64];
        snprintf(name, sizeof(name), "%s %dx%d", gated ? "gated" : "linear", n_out, n_in);
        double m = rows[i], out_bytes = (double)dtype_bytes(out_dtype) * m * n_out;
        double bytes = 2.0 * (double)n + 2 * m * n_in + (gated ? 0.5 : 1) * out_bytes;
        print_line(name, rows[i], seconds_of(b, call_linear), bytes, 2.0 * m * (double)n);
        snprintf(name, sizeof(name), "norm, %s %dx%d", gated ? "gated" : "linear", n_out, n_in);
        print_line(name, rows[i], seconds_of(b, call_norm_linear), bytes, 0);
    }
    for (int c = 0; c < b->n_copies; c++)
        device->ops->weight_free(device, &b->weight[c]);
    free(b->weight);
    free(host);
}

static void bench_rows(struct bench *b)
{
    static const int rows[] = {1, 16, 256, 2048, 8192};
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        double m = b->n_rows = rows[i];
        b->batch.n_tokens = rows[i];
        b->n_in = 1024;
        print_line("add_rmsnorm 1024", rows[i], seconds_of(b, call_norm), m * 1024 * 2 * 4, 0);
        print_line("gather 1024", rows[i], seconds_of(b, call_gather), m * 1024 * 2 * 2, 0);
        print_line("rope_cache 16/8 d128", rows[i], seconds_of(b, call_rope), m * 4096 * 2 * 2, 0);
    }
}

static void bench_sample(struct bench *b, const char *name, struct sample_row row)
{
    static const int rows[] = {1, 64, 256};
    struct sample_row host[256];
    for (int i = 0; i < 256; i++) {
        host[i] = row;
        host[i].seed = (uint64_t)i;
        host[i].lane = i;
    }
    b->device->ops->upload(b->device, b->row, host, sizeof(host));
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        b->n_rows = rows[i];
        print_line(name, rows[i], seconds_of(b, call_sample), rows[i] * 151936.0 * 4, 0);
    }
}

static void bench_load(struct device *device)
{
    const size_t bytes = (size_t)1 << 30;
    char *host = xmalloc(bytes);
    memset(host, 1, bytes);
    for (int source = 0; source < 2; source++) {
        size_t element = source == 0 ? 4 : 2;
        struct weight w = {.dtype = DTYPE_BF16, .n_in = 4096};
        struct weight_part part = {
            .rows = host, .dtype = (enum dtype)source, .n_rows = (int)(bytes / 4096 / element)};
        for (int round = 0; round < 2; round++) {
            double start = time_monotonic_s();
            if (device->ops->weight_load(device, &w, &part, 1) != 0)
                die("%s", err_get());
            device->ops->sync(device);
            printf("weight_load of 1 GiB of %s, time %d: %.1f GB/s\n", dtype_name(part.dtype),
                   round, (double)bytes / (time_monotonic_s() - start) / 1e9);
            device->ops->weight_free(device, &w);
        }
    }
    free(host);
}

int main(void)
{
    double start = time_monotonic_s();
    const struct backend *backend = backend_find(DEVICE_CUDA);
    double found = time_monotonic_s();
    struct bench b = {.device =
                          backend ? backend->open(&(struct device_options){.act_dtype = DTYPE_BF16})
                                  : NULL};
    if (!b.device) {
        printf("skipped: %s\n", err_get());
        return 0;
    }
    printf("library opened in %.0f ms, device in %.0f ms\n", (found - start) * 1e3,
           (time_monotonic_s() - found) * 1e3);
    bench_load(b.device);
    float *noise = random_floats((size_t)150 << 20, 4, 1);
    size_t bytes = ((size_t)150 << 20) * sizeof(float);
    int index[8192];
    for (int i = 0; i < 8192; i++)
        index[i] = (i * 37) % 8192;
    b.x = to_device(b.device, noise, bytes);
    b.y = to_device(b.device, noise, bytes);
    b.z = to_device(b.device, noise, bytes);
    b.f32 = to_device(b.device, noise, (size_t)8192 * 128 * 4);
    b.index = to_device(b.device, index, sizeof(index));
    b.row = b.device->ops->alloc(b.device, 256 * sizeof(*b.row));
    b.batch = (struct batch){.position = b.index, .slot = b.index};
    free(noise);
    bench_linear(&b, 4096, 1024, DTYPE_BF16, false);
    bench_linear(&b, 1024, 2048, DTYPE_BF16, false);
    bench_linear(&b, 6144, 1024, DTYPE_BF16, false);
    bench_linear(&b, 6144, 1024, DTYPE_BF16, true);
    bench_linear(&b, 1024, 3072, DTYPE_BF16, false);
    bench_linear(&b, 151936, 1024, DTYPE_F32, false);
    bench_linear(&b, 6144, 4096, DTYPE_BF16, false);
    bench_linear(&b, 4096, 4096, DTYPE_BF16, false);
    bench_linear(&b, 24576, 4096, DTYPE_BF16, true);
    bench_linear(&b, 4096, 12288, DTYPE_BF16, false);
    bench_rows(&b);
    b.device->ops->upload(b.device, b.index, index, sizeof(index));
    float *logits = random_floats((size_t)256 * 151936, 4, 1);
    b.device->ops->upload(b.device, b.y, logits, (size_t)256 * 151936 * 4);
    free(logits);
    bench_sample(&b, "sample greedy", (struct sample_row){.top_p = 1});
    bench_sample(&b, "sample temperature", (struct sample_row){.temperature = 0.6f, .top_p = 1});
    bench_sample(&b, "sample top-k 50",
                 (struct sample_row){.temperature = 0.6f, .top_p = 1, .top_k = 50});
    bench_sample(&b, "sample top-p 0.95", (struct sample_row){.temperature = 0.6f, .top_p = 0.95f});
    bench_sample(&b, "sample top-k 50, top-p 0.95",
                 (struct sample_row){.temperature = 0.6f, .top_p = 0.95f, .top_k = 50});
    b.device->ops->close(b.device);
    return 0;
}
