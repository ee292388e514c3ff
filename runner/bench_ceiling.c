/* bench_ceiling.c - see bench.h: the most that a device reads and multiplies, measured in the same
 * run as what is held against it.
 *
 * Reading: the backend's sum over 1 GiB, the fastest tenth of the rounds. Multiplying: a square
 * product of the backend, on a GPU of 8192; on the CPU the better of that and of chains of
 * independent multiply-adds in registers, of the widest instructions that both this file and the
 * processor know.
 */
#include "runner/bench.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define READ_BYTES  ((size_t)1 << 30)
#define PAGE_BYTES  ((size_t)4096)
#define GPU_PRODUCT 8192
#define CPU_PRODUCT 1024
#define N_PASSES    3
#define MEASURE_S   0.2

/* ---- products, on any device ---- */

struct product {
    struct device *device;
    struct weight weight;
    struct linear_args args;
    void *x, *out;
};

static void call_product(void *context, int i)
{
    const struct product *p = context;
    (void)i;
    p->device->ops->linear(p->device, &p->args);
}

/* Random numbers: what all bits of the operands cost in power slows a GPU down. */
static void *random_values(struct device *device, size_t n, enum dtype dtype)
{
    void *host = device->ops->alloc_host(device, n * dtype_bytes(dtype));
    if (!host)
        return NULL;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++)
        bench_store_value(host, i, dtype, bench_value(BENCH_Q, i));
    return host;
}

/* n_rows of x times a matrix of the shape and storage that `like` has. */
static int open_product(struct product *p, struct device *device, int n_rows,
                        const struct weight *like)
{
    const struct backend *ops = device->ops;
    int n_in = like->n_in, n_out = like->n_out;
    size_t n_x = (size_t)n_rows * (size_t)n_in, n_y = (size_t)n_rows * (size_t)n_out;
    size_t n_w = (size_t)n_out * (size_t)n_in, element = dtype_bytes(device->act_dtype);
    *p = (struct product){.device = device, .weight = *like};
    void *rows = random_values(device, n_w, like->dtype);
    void *x = rows ? random_values(device, n_x, device->act_dtype) : NULL;
    struct weight_part part = {.rows = rows, .dtype = like->dtype, .n_rows = n_out};
    struct step_limits limits = {.max_tokens = n_rows,
                                 .max_seqs = 1,
                                 .max_rows = 1,
                                 .max_kv_len = 16,
                                 .max_width = MAX(n_in, n_out),
                                 .shape = {.n_heads = 1,
                                           .n_kv_heads = 1,
                                           .head_dim = 64,
                                           .block_size = 16,
                                           .kv_dtype = like->dtype}};
    int rc = x ? ops->weight_load(device, &p->weight, &part, 1) : -1;
    if (rc == 0)
        rc = ops->reserve(device, &limits);
    if (rc == 0 && (!(p->x = ops->alloc(device, n_x * element)) ||
                    !(p->out = ops->alloc(device, n_y * element))))
        rc = -1;
    if (rc == 0)
        ops->upload(device, p->x, x, n_x * element);
    ops->free(device, rows);
    ops->free(device, x);
    p->args = (struct linear_args){.out = p->out,
                                   .x = p->x,
                                   .weight = &p->weight,
                                   .n_rows = n_rows,
                                   .out_dtype = device->act_dtype};
    return rc;
}

static void close_product(struct product *p)
{
    p->device->ops->weight_free(p->device, &p->weight);
    p->device->ops->free(p->device, p->x);
    p->device->ops->free(p->device, p->out);
}

/* Seconds of one product. */
static int time_product(double *seconds, struct device *device, int n_rows,
                        const struct weight *like)
{
    struct product p;
    struct bench_contestant c = {.call = call_product, .context = &p, .period = 1};
    int rc = open_product(&p, device, n_rows, like);
    if (rc == 0)
        rc = bench_time(device, &c, 1, MEASURE_S);
    *seconds = c.latency_s.median;
    close_product(&p);
    return rc;
}

static int measure_square(double *tflops, struct device *device, int n, enum dtype dtype,
                          enum quantization quantization)
{
    struct weight like = {.dtype = dtype, .quantization = quantization, .n_out = n, .n_in = n};
    double seconds;
    if (time_product(&seconds, device, n, &like) != 0)
        return -1;
    *tflops = fmax(*tflops, 2e-12 * n * n * (double)n / seconds);
    return 0;
}

/* ---- reading ---- */

struct reading {
    struct device *device;
    uint32_t *sum;
    char *memory;
    size_t bytes;
};

static void call_sum(void *context, int i)
{
    const struct reading *r = context;
    (void)i;
    r->device->ops->sum_words(r->device, r->sum, r->memory, r->bytes);
}

/* The host's memory exists only once it is written, by each thread what that thread will read. */
static void touch(const struct reading *r)
{
    size_t n_pages = r->bytes / PAGE_BYTES;
#pragma omp parallel for schedule(static) num_threads(r->device->info.n_threads)
    for (size_t page = 0; page < n_pages; page++)
        memset(r->memory + page * PAGE_BYTES, 1, PAGE_BYTES);
}

static int measure_read(double *gbps, struct device *device)
{
    struct reading r = {.device = device};
    struct bench_contestant c = {.call = call_sum, .context = &r, .period = 1};
    r.bytes = MIN(READ_BYTES, device->info.memory_bytes / 8) / PAGE_BYTES * PAGE_BYTES;
    r.sum = device->ops->alloc(device, sizeof(*r.sum));
    r.memory = device->ops->alloc(device, r.bytes);
    int rc = r.sum && r.memory ? 0 : -1;
    if (rc == 0 && device->info.kind == DEVICE_CPU)
        touch(&r);
    if (rc == 0)
        rc = bench_time(device, &c, 1, MEASURE_S);
    if (rc == 0)
        *gbps = fmax(*gbps, 1e-9 * (double)r.bytes / c.latency_s.p10);
    device->ops->free(device, r.sum);
    device->ops->free(device, r.memory);
    return rc;
}

/* ---- chains of the CPU ---- */

#ifdef __x86_64__

#define CHAINS 12 /* independent sums: they cover an instruction's latency times two units */
#define STEPS  500000

__attribute__((target("avx2,fma"))) static float chains_avx2(void)
{
    __m256 sum[CHAINS], x = _mm256_set1_ps(1.0001f), y = _mm256_set1_ps(1e-9f);
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm256_set1_ps((float)i);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm256_fmadd_ps(x, y, sum[i]);
        __asm__ volatile("" : "+x"(x));
    }
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm256_add_ps(sum[0], sum[i]);
    return _mm256_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f"))) static float chains_avx512(void)
{
    __m512 sum[CHAINS], x = _mm512_set1_ps(1.0001f), y = _mm512_set1_ps(1e-9f);
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_fmadd_ps(x, y, sum[i]);
        __asm__ volatile("" : "+v"(x));
    }
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    return _mm512_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f,avx512bf16"))) static float chains_bf16(void)
{
    __m512 sum[CHAINS];
    __m512i x = _mm512_set1_epi32(0x3F803F80), y = _mm512_set1_epi32(0x2F803F80);
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)x, (__m512bh)y);
        __asm__ volatile("" : "+v"(x));
    }
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    return _mm512_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f,avx512vnni"))) static float chains_int8(void)
{
    __m512i sum[CHAINS], x = _mm512_set1_epi32(0x01010101), y = _mm512_set1_epi32(0x01FF01FF);
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm512_set1_epi32(i);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], x, y);
        __asm__ volatile("" : "+v"(x));
    }
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    return (float)_mm512_cvtsi512_si32(sum[0]);
}

/* Tiles 0 to 3 are sums, started 16 cycles apart and 52 long; 4 and 5 are full of numbers. The
 * setting is palette 1: bytes of a row from byte 16, rows from byte 48. */
#define TILES __attribute__((target("amx-tile,amx-bf16,amx-int8")))
TILES static void configure_tiles(void)
{
    uint8_t config[64] = {1}, numbers[16 * 64];
    memset(numbers, 0x3F, sizeof(numbers));
    for (int tile = 0; tile < 8; tile++) {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
    }
    _tile_loadconfig(config);
    __asm__ volatile("" : : "r"(numbers) : "memory"); /* the loads do not say that they read it */
    _tile_loadd(4, numbers, 64);
    _tile_loadd(5, numbers, 64);
}

TILES static float chains_amx_bf16(void)
{
    configure_tiles();
    for (int s = 0; s < STEPS * CHAINS / 4; s++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_release();
    return 0;
}

TILES static float chains_amx_int8(void)
{
    configure_tiles();
    for (int s = 0; s < STEPS * CHAINS / 4; s++) {
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 5);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 5);
    }
    _tile_release();
    return 0;
}

/* The chain of what the backend's instruction set has for this rate, or NULL. */
static float (*find_chains(const char *isa, int rate, double *flops))(void)
{
    if (strcmp(isa, "plain") == 0)
        return NULL;
    if (strcmp(isa, "amx") == 0 && (rate == DTYPE_BF16 || rate == BENCH_INT8)) {
        *flops = rate == BENCH_INT8 ? 2 * 16 * 16 * 64 : 2 * 16 * 16 * 32;
        return rate == BENCH_INT8 ? chains_amx_int8 : chains_amx_bf16;
    }
    if (strcmp(isa, "avx2") == 0) {
        *flops = 16;
        return chains_avx2;
    }
    if (rate == BENCH_INT8 && strcmp(isa, "avx512") != 0 && __builtin_cpu_supports("avx512vnni")) {
        *flops = 128;
        return chains_int8;
    }
    if (rate == DTYPE_BF16 && strcmp(isa, "avx512bf16") == 0) {
        *flops = 64;
        return chains_bf16;
    }
    *flops = 32;
    return chains_avx512;
}

static void measure_chains(double *tflops, const struct device_info *cpu, int rate)
{
    double flops, sink = 0;
    float (*chains)(void) = find_chains(cpu->isa, rate, &flops);
    if (!chains)
        return;
    for (int pass = 0; pass < N_PASSES; pass++) {
        double began_s = time_monotonic_s();
#pragma omp parallel num_threads(cpu->n_threads) reduction(+ : sink)
        sink += (double)chains();
        double seconds = time_monotonic_s() - began_s;
        *tflops = fmax(*tflops, 1e-12 * flops * CHAINS * STEPS * cpu->n_threads / seconds);
    }
    log_debug("sums: %g", sink); /* so that nobody leaves the sums out */
}

#else

static void measure_chains(double *tflops, const struct device_info *cpu, int rate)
{
    (void)tflops;
    (void)cpu;
    (void)rate;
}

#endif

/* ---- public ---- */

int bench_rate_of(enum dtype dtype, enum quantization quantization)
{
    return quantization == QUANTIZATION_INT8 ? BENCH_INT8 : (int)dtype;
}

int bench_ceiling_measure(struct bench_ceiling *ceiling, struct device *device, enum dtype dtype,
                          enum quantization quantization)
{
    int rate = bench_rate_of(dtype, quantization);
    bool cpu = device->info.kind == DEVICE_CPU;
    double *tflops = &ceiling->tflops[rate], *gbps = &ceiling->read_gbps;
    if (cpu)
        measure_chains(tflops, &device->info, rate);
    int rc = measure_read(gbps, device);
    return rc == 0 ? measure_square(tflops, device, cpu ? CPU_PRODUCT : GPU_PRODUCT, dtype,
                                    quantization)
                   : -1;
}
