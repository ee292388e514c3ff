/* bench_cpu_ops.c - the CPU backend's matrix products and attention beside the machine's limits.
 *
 *   build/bench/bench_cpu_ops [ISA [SHAPE]]
 *
 * Shapes are those of Qwen3-0.6B. Every product is checked against a double-precision sum on some
 * of its elements before it is timed. Weights rotate through more memory than the caches hold, as
 * in a decode step. Times are the best of many rounds, because other processes may use the machine.
 * The limits are measured by the same threads between the shapes; the best value counts.
 */
#include "kernels/backend.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define ROTATE_BYTES ((size_t)320 << 20) /* ten times a large last-level cache slice */
#define MIN_BENCH_S  0.7                 /* of rounds per case                       */
#define MAX_ROUNDS   200

/* ---- limits of the machine ---- */

static struct {
    double read_gbs, int8_gops, bf16_gflops, f32_gflops;
} limits;

#ifdef __x86_64__
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define CHAINS 12 /* independent accumulators: covers latency times width */
#define STEPS  2000000

AVX512 static double fma_chains(void)
{
    __m512 acc[CHAINS];
    __m512 x = _mm512_set1_ps(1.0001f), y = _mm512_set1_ps(1e-9f);
    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_ps((float)i);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_fmadd_ps(x, y, acc[i]);
        __asm__ volatile("" : "+v"(x));
    }
    float sum = 0;
    for (int i = 0; i < CHAINS; i++)
        sum += _mm512_reduce_add_ps(acc[i]);
    return sum;
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"))) static double
dot_chains(void)
{
    __m512 acc[CHAINS];
    __m512i x = _mm512_set1_epi32(0x3F803F80), y = _mm512_set1_epi32(0x2F803F80);
    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_ps((float)i);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)x, (__m512bh)y);
        __asm__ volatile("" : "+v"(x));
    }
    float sum = 0;
    for (int i = 0; i < CHAINS; i++)
        sum += _mm512_reduce_add_ps(acc[i]);
    return sum;
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))) static double
byte_chains(void)
{
    __m512i acc[CHAINS];
    __m512i x = _mm512_set1_epi32(0x01010101), y = _mm512_set1_epi32(0x01FF01FF);
    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_epi32(i);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_dpbusd_epi32(acc[i], x, y);
        __asm__ volatile("" : "+v"(x));
    }
    double sum = 0;
    for (int i = 0; i < CHAINS; i++)
        sum += _mm512_reduce_add_epi32(acc[i]);
    return sum;
}

static double gflops_of(double (*chains)(void), double flops_per_instruction)
{
    double best = 0, sink = 0;
    int n_threads = omp_get_max_threads();
    for (int round = 0; round < 3; round++) {
        double start = time_monotonic_s();
#pragma omp parallel num_threads(n_threads) reduction(+ : sink)
        sink += chains();
        double s = time_monotonic_s() - start;
        best = fmax(best, 1e-9 * flops_per_instruction * CHAINS * STEPS * n_threads / s);
    }
    return isnan(sink) ? 0 : best;
}

static void measure_compute(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        limits.f32_gflops = fmax(limits.f32_gflops, gflops_of(fma_chains, 32));
    if (__builtin_cpu_supports("avx512bf16"))
        limits.bf16_gflops = fmax(limits.bf16_gflops, gflops_of(dot_chains, 64));
    if (__builtin_cpu_supports("avx512vnni"))
        limits.int8_gops = fmax(limits.int8_gops, gflops_of(byte_chains, 128));
}
#else
static void measure_compute(void)
{
}
#endif

/* Reads memory with every thread; 64 bytes a step in eight chains that compilers vectorise. */
static double read_gbs(const uint64_t *memory, size_t bytes)
{
    size_t n = bytes / sizeof(*memory) / 8;
    uint64_t sink = 0;
    double start = time_monotonic_s();
#pragma omp parallel for schedule(static) reduction(+ : sink)
    for (size_t chunk = 0; chunk < n / 4096; chunk++) {
        uint64_t sum[8] = {0};
        for (size_t i = chunk * 4096; i < (chunk + 1) * 4096; i++)
            for (size_t j = 0; j < 8; j++)
                sum[j] ^= memory[8 * i + j];
        for (size_t j = 0; j < 8; j++)
            sink += sum[j];
    }
    double s = time_monotonic_s() - start;
    return sink == 1 ? 0 : 1e-9 * (double)bytes / s;
}

static void measure_limits(const uint64_t *memory)
{
    measure_compute();
    for (int round = 0; round < 5; round++)
        limits.read_gbs = fmax(limits.read_gbs, read_gbs(memory, ROTATE_BYTES));
}

/* ---- products ---- */

static float uniform(uint64_t i)
{
    return (float)((double)(mix64(i) >> 11) * 0x1p-52 - 1);
}

static void *alloc(struct device *device, size_t bytes)
{
    void *memory = device->ops->alloc(device, bytes);
    if (!memory)
        die("%s", err_get());
    return memory;
}

struct shape {
    const char *name;
    int n_out, n_in;
    bool gated;
};

/* How weights are stored, and what a product may be off relative to the sum of magnitudes: bf16
 * rounds both factors, int8 to 1 / 127 of the largest of a group. */
struct storage {
    const char *name;
    enum dtype dtype;
    enum quantization quantization;
    double tolerance;
};

static const struct storage storages[] = {
    {"float32", DTYPE_F32, QUANTIZATION_NONE, 1e-5},
    {"bfloat16", DTYPE_BF16, QUANTIZATION_NONE, 0x1p-8},
    {"int8", DTYPE_BF16, QUANTIZATION_INT8, 0x1p-7},
};

/* As many copies of one random matrix as ROTATE_BYTES hold. */
static struct weight *load_copies(struct device *device, const struct shape *shape,
                                  const struct storage *storage, const float *rows, int *n_copies)
{
    size_t bytes = weight_bytes((size_t)shape->n_out, (size_t)shape->n_in, storage->dtype,
                                storage->quantization);
    *n_copies = (int)MAX((size_t)1, ROTATE_BYTES / bytes);
    struct weight *w = xcalloc((size_t)*n_copies, sizeof(*w));
    struct weight_part part = {.rows = rows, .dtype = DTYPE_F32, .n_rows = shape->n_out};
    for (int i = 0; i < *n_copies; i++) {
        w[i] = (struct weight){.dtype = storage->dtype,
                               .quantization = storage->quantization,
                               .gated = shape->gated,
                               .n_in = shape->n_in};
        if (device->ops->weight_load(device, &w[i], &part, 1) != 0)
            die("%s", err_get());
    }
    return w;
}

/* A row of x times one of the matrix. */
struct sum {
    double value, magnitude;
};

static struct sum sum_of(const float *x, const float *row, size_t n_in)
{
    struct sum sum = {0, 0};
    for (size_t k = 0; k < n_in; k++) {
        sum.value += (double)x[k] * row[k];
        sum.magnitude += fabs((double)x[k] * row[k]);
    }
    return sum;
}

/* Some elements against double precision. A gate's slope is less than 1.1. */
static void validate(const struct linear_args *args, const float *rows, double tolerance)
{
    const struct weight *w = args->weight;
    size_t n_in = (size_t)w->n_in, n_columns = (size_t)(w->gated ? w->n_out / 2 : w->n_out);
    for (int i = 0; i < 200; i++) {
        size_t m = mix64((uint64_t)i) % (size_t)args->n_rows;
        size_t n = mix64((uint64_t)i + 1000) % n_columns;
        const float *x = (const float *)args->x + m * n_in;
        struct sum sum = sum_of(x, rows + n * n_in, n_in);
        double expected = sum.value, error = tolerance * sum.magnitude;
        if (w->gated) {
            struct sum up = sum_of(x, rows + (n_columns + n) * n_in, n_in);
            double gate = sum.value / (1 + exp(-sum.value)), up_error = tolerance * up.magnitude;
            expected = gate * up.value;
            error = 1.1 * error * (fabs(up.value) + up_error) + fabs(gate) * up_error;
        }
        double got = ((const float *)args->out)[m * n_columns + n];
        if (!(fabs(got - expected) <= error))
            die("wrong product: row %zu column %zu is %g, expected %g", m, n, got, expected);
    }
}

static double best_seconds(struct device *device, struct linear_args *args, const struct weight *w,
                           int n_copies)
{
    double best = INFINITY, total = 0;
    for (int round = 0; round < MAX_ROUNDS && (round < 3 || total < MIN_BENCH_S); round++) {
        double start = time_monotonic_s();
        for (int i = 0; i < n_copies; i++) {
            args->weight = &w[i];
            device->ops->linear(device, args);
        }
        double s = time_monotonic_s() - start;
        best = fmin(best, s / n_copies);
        total += s;
    }
    return best;
}

static void bench_shape(struct device *device, const struct shape *shape,
                        const struct storage *storage)
{
    static const int rows_of_x[] = {1, 2, 4, 8, 16, 32, 512};
    const int max_rows = 512;
    size_t n_w = (size_t)shape->n_out * (size_t)shape->n_in;
    int n_copies;
    float *rows = xmalloc(n_w * sizeof(float));
    for (size_t i = 0; i < n_w; i++)
        rows[i] = uniform(i);
    struct weight *w = load_copies(device, shape, storage, rows, &n_copies);
    float *x = alloc(device, (size_t)max_rows * (size_t)shape->n_in * sizeof(float));
    float *out = alloc(device, (size_t)max_rows * (size_t)shape->n_out * sizeof(float));
    for (size_t i = 0; i < (size_t)max_rows * (size_t)shape->n_in; i++)
        x[i] = uniform(i + n_w);
    for (size_t i = 0; i < ARRAY_LEN(rows_of_x); i++) {
        struct linear_args args = {out, x, w, NULL, rows_of_x[i], DTYPE_F32};
        device->ops->linear(device, &args);
        validate(&args, rows, storage->tolerance);
        int n = args.n_rows >= 512 ? MIN(n_copies, 2) : n_copies;
        double s = best_seconds(device, &args, w, n);
        double gflops = 2e-9 * (double)n_w * args.n_rows / s, gbs = 1e-9 * (double)w[0].bytes / s;
        printf("%-8s %-8s M %4d  %9.1f us  %7.1f GFLOP/s  %5.1f GB/s\n", shape->name, storage->name,
               args.n_rows, 1e6 * s, gflops, gbs);
    }
    for (int i = 0; i < n_copies; i++)
        device->ops->weight_free(device, &w[i]);
    device->ops->free(device, x);
    device->ops->free(device, out);
    free(w);
    free(rows);
}

/* ---- attention ---- */

/* n_seqs sequences that end at kv_len, of which the last q_len tokens are queries. */
struct attention_case {
    int n_seqs, q_len, kv_len;
};

enum { N_HEADS = 16, N_KV_HEADS = 8, HEAD_DIM = 128, BLOCK_SIZE = 64 };

/* Block tables run backwards through the cache: no block is behind its predecessor. */
static struct batch make_batch(const struct attention_case *c)
{
    int blocks = CEIL_DIV(c->kv_len, BLOCK_SIZE), n_tokens = c->n_seqs * c->q_len;
    int *position = xcalloc((size_t)n_tokens, sizeof(int));
    int *q_start = xcalloc((size_t)c->n_seqs + 1, sizeof(int));
    int *kv_len = xcalloc((size_t)c->n_seqs, sizeof(int));
    int *table = xcalloc((size_t)(c->n_seqs * blocks), sizeof(int));
    for (int i = 0; i < n_tokens; i++)
        position[i] = c->kv_len - c->q_len + i % c->q_len;
    for (int s = 0; s < c->n_seqs; s++) {
        q_start[s + 1] = (s + 1) * c->q_len;
        kv_len[s] = c->kv_len;
    }
    for (int i = 0; i < c->n_seqs * blocks; i++)
        table[i] = c->n_seqs * blocks - 1 - i;
    return (struct batch){.n_tokens = n_tokens,
                          .n_seqs = c->n_seqs,
                          .max_blocks = blocks,
                          .max_q_len = c->q_len,
                          .max_kv_len = c->kv_len,
                          .position = position,
                          .q_start = q_start,
                          .kv_len = kv_len,
                          .block_table = table};
}

static void *random_cache(struct device *device, enum dtype dtype, size_t n)
{
    char *cache = alloc(device, n * dtype_bytes(dtype));
    for (size_t i = 0; i < n; i++) {
        float x = uniform(i);
        if (dtype == DTYPE_F32)
            memcpy(cache + 4 * i, &x, 4);
        else
            memcpy(cache + 2 * i, (const char *)&x + 2, 2); /* bf16 is the upper half */
    }
    return cache;
}

static void bench_attention(struct device *device, const struct attention_case *c, enum dtype dtype)
{
    struct batch b = make_batch(c);
    size_t n_qkv = (size_t)(b.n_tokens * (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM);
    size_t n_cache = (size_t)(b.n_seqs * b.max_blocks * N_KV_HEADS * BLOCK_SIZE * HEAD_DIM);
    float *qkv = alloc(device, n_qkv * sizeof(float));
    for (size_t i = 0; i < n_qkv; i++)
        qkv[i] = uniform(i);
    struct attention_args args = {
        .kind = ATTENTION_FLASH,
        .out = alloc(device, n_qkv * sizeof(float)),
        .qkv = qkv,
        .kv = {random_cache(device, dtype, n_cache), random_cache(device, dtype, n_cache)},
        .shape = {N_HEADS, N_KV_HEADS, HEAD_DIM, BLOCK_SIZE, dtype},
        .scale = 0.088f,
        .batch = &b,
    };
    double best = INFINITY, total = 0;
    for (int round = 0; round < MAX_ROUNDS && (round < 3 || total < MIN_BENCH_S); round++) {
        double start = time_monotonic_s();
        device->ops->attention(device, &args);
        double s = time_monotonic_s() - start;
        best = fmin(best, s);
        total += s;
    }
    double keys = c->q_len == 1 ? c->kv_len : 0.5 * c->q_len * c->q_len; /* causal: half */
    double gflops = 4e-9 * N_HEADS * HEAD_DIM * keys * c->n_seqs / best;
    double cache_bytes = 2.0 * (double)n_cache * (double)dtype_bytes(dtype);
    printf("attention %-8s B %2d  q %4d  kv %4d  %9.1f us  %7.1f GFLOP/s  %5.1f GB/s\n",
           dtype_name(dtype), c->n_seqs, c->q_len, c->kv_len, 1e6 * best, gflops,
           1e-9 * cache_bytes / best);
    void *const used[] = {qkv, args.out, args.kv.k, args.kv.v};
    for (size_t i = 0; i < ARRAY_LEN(used); i++)
        device->ops->free(device, used[i]);
}

/* ---- program ---- */

static void bench_all(struct device *device, const char *shape_name)
{
    static const struct shape shapes[] = {
        {"lm_head", 151936, 1024, false}, {"qkv", 4096, 1024, false},  {"o", 1024, 2048, false},
        {"gate_up", 6144, 1024, true},    {"down", 1024, 3072, false},
    };
    static const struct attention_case cases[] = {
        {1, 512, 512}, {1, 2048, 2048}, {1, 1, 4096}, {8, 1, 512}, {32, 1, 192}, {32, 1, 512},
    };
    uint64_t *memory = alloc(device, ROTATE_BYTES);
    memset(memory, 1, ROTATE_BYTES);
    for (size_t i = 0; i < ARRAY_LEN(shapes) * ARRAY_LEN(storages); i++) {
        const struct shape *shape = &shapes[i / ARRAY_LEN(storages)];
        if (shape_name && strcmp(shape_name, shape->name) != 0)
            continue;
        measure_limits(memory);
        bench_shape(device, shape, &storages[i % ARRAY_LEN(storages)]);
    }
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
            if (!shape_name || strcmp(shape_name, "attention") == 0)
                bench_attention(device, &cases[i], dtype);
        }
    }
    measure_limits(memory);
    printf("limits: read %.1f GB/s, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, int8 %.0f GOP/s\n",
           limits.read_gbs, limits.f32_gflops, limits.bf16_gflops, limits.int8_gops);
    device->ops->free(device, memory);
}

int main(int argc, char **argv)
{
    struct device *device =
        backend_cpu.open(&(struct device_options){.isa = argc > 1 ? argv[1] : NULL});
    struct step_limits step = {
        .max_tokens = 2048,
        .max_seqs = 64,
        .max_rows = 512,
        .max_kv_len = 4096,
        .max_width = 3072,
        .vocab = 151936,
        .shape = {N_HEADS, N_KV_HEADS, HEAD_DIM, BLOCK_SIZE, DTYPE_BF16},
    };
    if (!device || device->ops->reserve(device, &step) != 0)
        die("%s", err_get());
    printf("%s, %s, %d threads\n", device->info.name, device->info.isa, device->info.n_threads);
    bench_all(device, argc > 2 ? argv[2] : NULL);
    backend_cpu.close(device);
}
