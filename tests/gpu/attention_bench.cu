/* attention_bench.cu - speed of attention on CUDA beside the limits of the card, measured in the
 * same run.
 *
 *   attention_bench [decode | live | shared | prefill | mix | softcap | kinds]
 *
 * Limits: reading 2 GB once, and an 8192^3 bf16 matrix product by cuBLASLt. Each shape is launched
 * from a CUDA graph over rotating caches, so that keys come from memory and not from the L2 cache;
 * the time is the median of several replays over the launches of one. Blocks are shuffled. The
 * error is the norm of the difference to double precision over the norm of the reference, at a few
 * rows.
 *
 * GB/s counts every key and value of a sequence once, whether or not others have the same block;
 * TFLOP/s counts 4 n_rows n_keys head_dim, the masked half left out.
 */
#include "tests/gpu/attention_device.cuh"

extern "C" {
#include "tests/ops_reference.h"
}

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define POOL_ELEMENTS ((size_t)544 << 20) /* of keys, and as many of values */
#define ROTATED_BYTES (256e6)             /* several times the L2 cache     */
#define MAX_LAUNCHES  128
#define N_REPLAYS     9
#define MAX_SEQS      512
#define CONTIGUOUS    0    /* as a block size: one block per sequence              */
#define LENS_LIVE     0    /* as kv_len: 100 to 2048, as in workload N             */
#define LENS_SHORT    (-1) /* the same: 72 to 373, those of workload M's sequences */
#define LENS_MIX      (-2) /* the same: those of workload N's first prompts        */
#define GEMM_SIZE     8192

struct limits {
    double read_gbps, gemm_tflops;
};

struct shape {
    const char *name;
    int n_seqs, q_len, kv_len; /* of each sequence; kv_len may be LENS_... */
    int n_heads, n_kv_heads, head_dim, block_size;
    enum attention_kind kind;
    enum dtype dtype;
};

struct bench {
    struct cuda_device device;
    struct limits limits;
    void *k, *v;   /* POOL_ELEMENTS of 16 bits each */
    uint32_t *sum; /* of them, when they are read */
    enum dtype pool_dtype;
    float softcap; /* of the shapes that follow; 0: none                       */
    int n_shared;  /* the same: leading keys in blocks of the first sequence */
};

/* ---- numbers that host and device agree on -------------------------------------------------- */

/* Uniform in [-2, 2), rounded by the caller. */
static __host__ __device__ float pool_value(size_t i)
{
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    return (float)(int)(x >> 40) * 0x1p-22f - 2.0f;
}

static __global__ void fill(void *to, size_t n, size_t first, enum dtype dtype)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        float x = pool_value(first + i);
        if (dtype == DTYPE_BF16)
            ((__nv_bfloat16 *)to)[i] = __float2bfloat16_rn(x);
        else if (dtype == DTYPE_F16)
            ((__half *)to)[i] = __float2half_rn(x);
        else
            ((float *)to)[i] = x;
    }
}

static void gpu_fill(void *to, size_t n, size_t first, enum dtype dtype)
{
    fill<<<1024, 256>>>(to, n, first, dtype);
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaDeviceSynchronize());
}

/* Values are the numbers after the keys, queries those after the values. */
#define FIRST_V POOL_ELEMENTS
#define FIRST_Q (2 * POOL_ELEMENTS)

/* ---- limits of the card --------------------------------------------------------------------- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds between two events around work(context). */
static double median_s(cudaStream_t stream, void (*work)(void *), void *context)
{
    cudaEvent_t start, stop;
    double times[N_REPLAYS];
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&stop));
    work(context);
    for (int i = 0; i < N_REPLAYS; i++) {
        float ms;
        CUDA_CHECK(cudaEventRecord(start, stream));
        work(context);
        CUDA_CHECK(cudaEventRecord(stop, stream));
        CUDA_CHECK(cudaEventSynchronize(stop));
        CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
        times[i] = ms * 1e-3;
    }
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(stop));
    qsort(times, N_REPLAYS, sizeof *times, compare_doubles);
    return times[N_REPLAYS / 2];
}

static void read_pool(void *context)
{
    struct bench *b = (struct bench *)context;
    cuda_sum_words(&b->device.base, b->sum, b->k, 2 * POOL_ELEMENTS);
    cuda_sum_words(&b->device.base, b->sum, b->v, 2 * POOL_ELEMENTS);
}

struct gemm {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t layout;
    cublasLtMatmulHeuristicResult_t found;
    void *a, *b, *c, *workspace;
    size_t workspace_bytes;
    cudaStream_t stream;
};

static void multiply_matrices(void *context)
{
    struct gemm *g = (struct gemm *)context;
    float one = 1, zero = 0;
    CUBLAS_CHECK(cublasLtMatmul(g->handle, g->product, &one, g->a, g->layout, g->b, g->layout,
                                &zero, g->c, g->layout, g->c, g->layout, &g->found.algo,
                                g->workspace, g->workspace_bytes, g->stream));
}

static double gemm_tflops(const struct bench *bench)
{
    struct gemm g = {};
    g.stream = bench->device.stream;
    g.workspace_bytes = (size_t)64 << 20;
    size_t n = (size_t)GEMM_SIZE * GEMM_SIZE;
    void **memory[] = {&g.a, &g.b, &g.c, &g.workspace};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++) {
        *memory[i] = gpu_alloc(n * 2);
        gpu_fill(*memory[i], n, i * n, DTYPE_BF16);
    }
    cublasLtMatmulPreference_t preference;
    cublasOperation_t transposed = CUBLAS_OP_T;
    int n_found;
    CUBLAS_CHECK(cublasLtCreate(&g.handle));
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&g.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(g.product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                sizeof transposed));
    CUBLAS_CHECK(
        cublasLtMatrixLayoutCreate(&g.layout, CUDA_R_16BF, GEMM_SIZE, GEMM_SIZE, GEMM_SIZE));
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    CUBLAS_CHECK(
        cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &g.workspace_bytes, sizeof g.workspace_bytes));
    CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(g.handle, g.product, g.layout, g.layout, g.layout,
                                                g.layout, preference, 1, &g.found, &n_found));
    double s = median_s(g.stream, multiply_matrices, &g);
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        gpu_free(*memory[i]);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(g.layout));
    CUBLAS_CHECK(cublasLtMatmulDescDestroy(g.product));
    CUBLAS_CHECK(cublasLtDestroy(g.handle));
    return 2.0 * GEMM_SIZE * GEMM_SIZE * GEMM_SIZE / s * 1e-12;
}

/* ---- one shape ------------------------------------------------------------------------------ */

struct load {
    struct shape s;
    int kv_len[MAX_SEQS], q_start[MAX_SEQS + 1];
    int max_q_len, max_kv_len, max_blocks, n_buffers;
    int *table; /* [n_buffers, n_seqs, max_blocks] */
    struct batch batch[MAX_LAUNCHES];
    struct attention_args args[MAX_LAUNCHES];
    size_t kv_bytes, own_bytes; /* keys and values of one buffer; those that nobody shares */
    double flops;
    cudaGraphExec_t graph;
    cudaStream_t stream;
};

static uint64_t random_next(uint64_t *state)
{
    return mix64((*state)++);
}

/* The first 31 prompts of configs/workload_n.yaml: as many as 16,384 tokens hold whole. */
static const int mix_lens[] = {964, 724, 484, 508, 316, 798, 439, 916, 233, 185, 147,
                               459, 836, 616, 571, 547, 173, 519, 614, 420, 843, 366,
                               199, 240, 111, 740, 602, 983, 247, 668, 237};

/* The keys of sequence i, where state is that of the lengths drawn. */
static int len_of(int kv_len, int i, uint64_t *state)
{
    switch (kv_len) {
    case LENS_LIVE: return 100 + (int)(random_next(state) % 1949);
    case LENS_SHORT: return 72 + (int)(random_next(state) % 302);
    case LENS_MIX: return mix_lens[i];
    default: return kv_len;
    }
}

static void set_lens(struct load *l, int n_shared)
{
    uint64_t state = 1;
    const struct shape *s = &l->s;
    for (int i = 0; i < s->n_seqs; i++) {
        int kv_len = len_of(s->kv_len, i, &state);
        int q_len = s->q_len > 0 ? s->q_len : kv_len;
        l->kv_len[i] = kv_len;
        l->q_start[i + 1] = l->q_start[i] + q_len;
        l->max_q_len = MAX(l->max_q_len, q_len);
        l->max_kv_len = MAX(l->max_kv_len, kv_len);
        size_t key_bytes = (size_t)s->n_kv_heads * s->head_dim * 2 * dtype_bytes(s->dtype);
        l->kv_bytes += kv_len * key_bytes;
        l->own_bytes += (kv_len - (i > 0 ? n_shared : 0)) * key_bytes;
        double keys = q_len * (kv_len - (q_len - 1) / 2.0);
        l->flops += 4 * keys * s->n_heads * s->head_dim;
    }
    if (s->block_size == CONTIGUOUS)
        l->s.block_size = l->max_kv_len;
}

/* Tables that lead through the whole pool in random order, one after the other, but for n_shared
 * keys that all sequences have where the first one has them. */
static void set_tables(struct load *l, int n_shared)
{
    const struct shape *s = &l->s;
    size_t block_elements = (size_t)s->n_kv_heads * s->block_size * s->head_dim;
    int n_blocks = (int)(POOL_ELEMENTS * 2 / dtype_bytes(s->dtype) / block_elements), used = 0;
    uint64_t state = 2;
    int *order = (int *)xcalloc((size_t)n_blocks, sizeof *order);
    for (int i = 0; i < n_blocks; i++) {
        int j = (int)(random_next(&state) % (uint64_t)(i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    l->max_blocks = CEIL_DIV(l->max_kv_len, s->block_size);
    l->n_buffers = MIN(MAX_LAUNCHES, (int)(ROTATED_BYTES / l->own_bytes) + 1);
    l->table = (int *)xcalloc((size_t)l->n_buffers * s->n_seqs * l->max_blocks, sizeof(int));
    for (int b = 0; b < l->n_buffers; b++) {
        for (int i = 0; i < s->n_seqs; i++) {
            int *row = l->table + ((size_t)b * s->n_seqs + i) * l->max_blocks;
            int n_same = i > 0 ? n_shared / s->block_size : 0;
            memcpy(row, row - i * l->max_blocks, n_same * sizeof *row);
            for (int j = n_same; j < CEIL_DIV(l->kv_len[i], s->block_size); j++)
                row[j] = order[used++ % n_blocks];
        }
    }
    free(order);
}

static void set_args(struct load *l, const struct bench *bench)
{
    const struct shape *s = &l->s;
    int n_tokens = l->q_start[s->n_seqs];
    size_t n_qkv = (size_t)n_tokens * (s->n_heads + 2 * s->n_kv_heads) * s->head_dim;
    size_t n_out = (size_t)n_tokens * s->n_heads * s->head_dim, bytes = dtype_bytes(s->dtype);
    void *qkv = gpu_alloc(n_qkv * bytes), *out = gpu_alloc(n_out * bytes);
    gpu_fill(qkv, n_qkv, FIRST_Q, s->dtype);
    CUDA_CHECK(cudaMemset(out, 0xff, n_out * bytes));
    const int *q_start = (int *)gpu_copy_of(l->q_start, (s->n_seqs + 1) * sizeof(int));
    const int *kv_len = (int *)gpu_copy_of(l->kv_len, s->n_seqs * sizeof(int));
    size_t n_table = (size_t)s->n_seqs * l->max_blocks;
    const int *table = (int *)gpu_copy_of(l->table, l->n_buffers * n_table * sizeof(int));
    for (int i = 0; i < l->n_buffers; i++) {
        struct batch *b = &l->batch[i];
        b->n_tokens = n_tokens;
        b->n_seqs = s->n_seqs;
        b->max_blocks = l->max_blocks;
        b->max_q_len = l->max_q_len;
        b->max_kv_len = l->max_kv_len;
        b->q_start = q_start;
        b->kv_len = kv_len;
        b->block_table = table + i * n_table;
        struct attention_args *a = &l->args[i];
        a->kind = s->kind;
        a->out = out;
        a->qkv = qkv;
        a->kv = {bench->k, bench->v};
        a->shape = {s->n_heads, s->n_kv_heads, s->head_dim, s->block_size, s->dtype};
        a->scale = 1 / sqrtf((float)s->head_dim);
        a->softcap = bench->softcap;
        a->batch = b;
    }
}

static void replay(void *context)
{
    struct load *l = (struct load *)context;
    CUDA_CHECK(cudaGraphLaunch(l->graph, l->stream));
}

/* Error of a few rows of the first buffer's run. */
static double sampled_error(const struct load *l)
{
    const struct shape *s = &l->s;
    double error = 0, norm = 0, expected[256];
    size_t head_dim = (size_t)s->head_dim, bytes = dtype_bytes(s->dtype);
    uint64_t state = 3;
    for (int i = 0; i < 3; i++) {
        int seq = (int)(random_next(&state) % (uint64_t)s->n_seqs);
        int q_len = l->q_start[seq + 1] - l->q_start[seq];
        int t = q_len - 1 - (int)(random_next(&state) % (uint64_t)q_len) / 4;
        int head = (int)(random_next(&state) % (uint64_t)s->n_heads);
        int kv_head = head / (s->n_heads / s->n_kv_heads), n = l->kv_len[seq] - q_len + t + 1;
        size_t token = (size_t)(l->q_start[seq] + t);
        float *q = (float *)xcalloc(head_dim, sizeof *q);
        float *k = (float *)xcalloc(n * head_dim, sizeof *k);
        float *v = (float *)xcalloc(n * head_dim, sizeof *v);
        for (size_t d = 0; d < head_dim; d++)
            q[d] = pool_value(FIRST_Q +
                              (token * (s->n_heads + 2 * s->n_kv_heads) + head) * head_dim + d);
        for (int key = 0; key < n; key++) {
            size_t block = (size_t)l->table[(size_t)seq * l->max_blocks + key / s->block_size];
            size_t row = (block * s->n_kv_heads + kv_head) * s->block_size + key % s->block_size;
            for (size_t d = 0; d < head_dim; d++) {
                k[key * head_dim + d] = pool_value(row * head_dim + d);
                v[key * head_dim + d] = pool_value(FIRST_V + row * head_dim + d);
            }
        }
        reference_round_all(s->dtype, q, head_dim);
        reference_round_all(s->dtype, k, n * head_dim);
        reference_round_all(s->dtype, v, n * head_dim);
        struct reference_attention a = {q,
                                        k,
                                        v,
                                        head_dim,
                                        s->head_dim,
                                        0,
                                        n - 1,
                                        1 / sqrt((double)head_dim),
                                        l->args[0].softcap};
        reference_attend(expected, &a);
        char row[256 * 4];
        CUDA_CHECK(
            cudaMemcpy(row, (char *)l->args[0].out + (token * s->n_heads + head) * head_dim * bytes,
                       head_dim * bytes, cudaMemcpyDeviceToHost));
        for (size_t d = 0; d < head_dim; d++) {
            double got = reference_decode(s->dtype, row, d);
            error += (got - expected[d]) * (got - expected[d]);
            norm += expected[d] * expected[d];
        }
        free(q);
        free(k);
        free(v);
    }
    return isfinite(error) ? sqrt(error / norm) : INFINITY;
}

static void record(struct load *l, struct cuda_device *d, int n_launches)
{
    cudaGraph_t graph;
    CUDA_CHECK(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
    cuda_attention_plan(&d->base, &l->args[0]); /* the buffers differ in their tables only */
    for (int i = 0; i < n_launches; i++)
        cuda_attention(&d->base, &l->args[i % l->n_buffers]);
    CUDA_CHECK(cudaStreamEndCapture(d->stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&l->graph, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
}

static void run_shape(struct bench *bench, const struct shape *shape)
{
    struct load *l = (struct load *)xcalloc(1, sizeof *l);
    struct cuda_device *d = &bench->device;
    l->s = *shape;
    l->stream = d->stream;
    d->base.act_dtype = shape->dtype;
    if (bench->pool_dtype != shape->dtype) {
        size_t n = POOL_ELEMENTS * 2 / dtype_bytes(shape->dtype);
        gpu_fill(bench->k, n, 0, shape->dtype);
        gpu_fill(bench->v, n, FIRST_V, shape->dtype);
        bench->pool_dtype = shape->dtype;
    }
    set_lens(l, bench->n_shared);
    set_tables(l, bench->n_shared);
    set_args(l, bench);
    struct step_limits limits = {};
    limits.max_tokens = l->q_start[l->s.n_seqs];
    limits.max_seqs = l->s.n_seqs;
    limits.max_kv_len = l->max_kv_len;
    limits.shape = l->args[0].shape;
    attention_device_reserve(d, &limits);
    cuda_attention_plan(&d->base, &l->args[0]);
    cuda_attention(&d->base, &l->args[0]);
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    double error = sampled_error(l);
    double floor_s = MAX(l->kv_bytes / 5e12, l->flops / 6e14) + 2e-6;
    int n_launches = MIN(MAX_LAUNCHES, 1 + (int)(2e-3 / floor_s));
    n_launches =
        shape->kind == ATTENTION_EAGER ? 1 : CEIL_DIV(n_launches, l->n_buffers) * l->n_buffers;
    record(l, d, MIN(n_launches, MAX_LAUNCHES));
    double s = median_s(d->stream, replay, l) / MIN(n_launches, MAX_LAUNCHES);
    printf("%-16s %-16s %2d/%d d%-3d page %-5d %9.1f us  %5.0f GB/s (%3.0f %%)  %5.1f TFLOP/s "
           "(%4.1f %%)  error %.1e\n",
           attention_name(shape->kind), shape->name, shape->n_heads, shape->n_kv_heads,
           shape->head_dim, l->s.block_size, s * 1e6, l->kv_bytes / s * 1e-9,
           100 * l->kv_bytes / s * 1e-9 / bench->limits.read_gbps, l->flops / s * 1e-12,
           100 * l->flops / s * 1e-12 / bench->limits.gemm_tflops, error);
    fflush(stdout);
    CUDA_CHECK(cudaGraphExecDestroy(l->graph));
    const void *memory[] = {l->args[0].out, l->args[0].qkv, l->batch[0].q_start, l->batch[0].kv_len,
                            l->batch[0].block_table};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        gpu_free(memory[i]);
    free(l->table);
    free(l);
}

/* ---- what is measured ----------------------------------------------------------------------- */

static const struct {
    const char *name;
    int n_seqs, kv_len;
} decodes[] = {
    {"B1 512", 1, 512},
    {"B8 512", 8, 512},
    {"B64 512", 64, 512},
    {"B256 512", 256, 512},
    {"B1 2k", 1, 2048},
    {"B8 2k", 8, 2048},
    {"B64 2k", 64, 2048},
    {"B256 2k", 256, 2048},
    {"B1 32k", 1, 32768},
    {"B8 32k", 8, 32768},
    {"B64 8k", 64, 8192},
    {"B256 100-2048", 256, LENS_LIVE},
    {"B1 150", 1, 150},
    {"B64 150", 64, 150},
    {"B128 150", 128, 150},
    {"B256 150", 256, 150},
    {"B60 72-373", 60, LENS_SHORT},
};

static void bench_decode(struct bench *bench)
{
    static const int pages[] = {64, 16, CONTIGUOUS};
    for (size_t p = 0; p < ARRAY_LEN(pages); p++) {
        for (size_t i = 0; i < ARRAY_LEN(decodes); i++) {
            struct shape s = {
                decodes[i].name, decodes[i].n_seqs, 1,         decodes[i].kv_len, 32, 8, 128,
                pages[p],        ATTENTION_FLASH,   DTYPE_BF16};
            if (pages[p] != CONTIGUOUS || decodes[i].kv_len > 0)
                run_shape(bench, &s);
        }
    }
    static const struct shape others[] = {
        {"B256 2k", 256, 1, 2048, 16, 8, 128, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"B256 2k", 256, 1, 2048, 8, 8, 64, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"B256 2k", 256, 1, 2048, 8, 8, 80, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"B256 2k", 256, 1, 2048, 8, 8, 96, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"B128 2k", 128, 1, 2048, 8, 4, 256, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"B64 2k", 64, 1, 2048, 64, 4, 128, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"B16 256", 16, 1, 256, 32, 8, 128, 16, ATTENTION_FLASH, DTYPE_F16},
    };
    for (size_t i = 0; i < ARRAY_LEN(others); i++)
        run_shape(bench, &others[i]);
}

/* Batches that serving has, by page, by the query heads that share a KV head, and by head_dim. */
static void bench_live(struct bench *bench)
{
    static const struct {
        const char *name;
        int n_seqs, kv_len;
    } batches[] = {{"B1 2k", 1, 2048},     {"B8 2k", 8, 2048},        {"B64 512", 64, 512},
                   {"B256 2k", 256, 2048}, {"B256 100-2048", 256, 0}, {"B107 100-2048", 107, 0},
                   {"B45 100-2048", 45, 0}};
    static const struct {
        int n_heads, head_dim, page;
    } kinds[] = {{16, 128, 64}, {16, 128, 16}, {16, 128, 256}, {8, 128, 64},
                 {32, 128, 64}, {64, 128, 64}, {8, 64, 64}};
    for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
        for (size_t i = 0; i < ARRAY_LEN(batches); i++) {
            struct shape s = {batches[i].name,   batches[i].n_seqs, 1,
                              batches[i].kv_len, kinds[k].n_heads,  8,
                              kinds[k].head_dim, kinds[k].page,     ATTENTION_FLASH,
                              DTYPE_BF16};
            run_shape(bench, &s);
        }
    }
}

/* Sequences that begin with the same blocks, beside as many of blocks of their own. */
static void bench_shared(struct bench *bench)
{
    static const struct {
        const char *name;
        int n_seqs, kv_len, n_shared;
    } batches[] = {
        {"B4 2k", 4, 2048, 0},
        {"B4 1984 shared", 4, 2048, 1984},
        {"B8 2k", 8, 2048, 0},
        {"B8 1984 shared", 8, 2048, 1984},
        {"B64 1k", 64, 1088, 0},
        {"B64 512 shared", 64, 1088, 512},
        {"B64 2k", 64, 2048, 0},
        {"B64 1k shared", 64, 2048, 1024},
        {"B64 1.5k shared", 64, 2048, 1536},
        {"B64 1984 shared", 64, 2048, 1984},
        {"B256 2.2k", 256, 2248, 0},
        {"B256 2k shared", 256, 2248, 2048},
        {"B64 8k", 64, 8192, 0},
        {"B64 7.5k shared", 64, 8192, 7680},
    };
    static const int n_heads[] = {16, 8, 32, 64};
    for (size_t h = 0; h < ARRAY_LEN(n_heads); h++) {
        for (size_t i = 0; i < ARRAY_LEN(batches); i++) {
            struct shape s = {
                batches[i].name, batches[i].n_seqs, 1, batches[i].kv_len, n_heads[h], 8, 128, 64,
                ATTENTION_FLASH, DTYPE_BF16};
            bench->n_shared = batches[i].n_shared;
            run_shape(bench, &s);
        }
    }
    bench->n_shared = 0;
}

static void bench_prefill(struct bench *bench)
{
    static const struct {
        const char *name;
        int n_seqs, len;
    } sizes[] = {{"16x1024", 16, 1024}, {"8x2048", 8, 2048},   {"4x4096", 4, 4096},
                 {"2x8192", 2, 8192},   {"1x16384", 1, 16384}, {"1x512", 1, 512}};
    static const int heads[][3] = {{32, 8, 128}, {16, 8, 128}, {32, 32, 64}, {16, 8, 256}};
    for (size_t h = 0; h < ARRAY_LEN(heads); h++) {
        for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
            struct shape s = {sizes[i].name,   sizes[i].n_seqs, sizes[i].len, sizes[i].len,
                              heads[h][0],     heads[h][1],     heads[h][2],  64,
                              ATTENTION_FLASH, DTYPE_BF16};
            run_shape(bench, &s);
        }
    }
    static const struct shape others[] = {
        {"4x4096", 4, 4096, 4096, 32, 8, 128, CONTIGUOUS, ATTENTION_FLASH, DTYPE_BF16},
        {"4x4096", 4, 4096, 4096, 32, 8, 128, 16, ATTENTION_FLASH, DTYPE_BF16},
        {"4x4096", 4, 4096, 4096, 32, 8, 128, 64, ATTENTION_FLASH, DTYPE_F16},
        {"4x4096", 4, 4096, 4096, 32, 8, 80, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"4x4096", 4, 4096, 4096, 32, 8, 96, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"4x4096", 4, 4096, 4096, 8, 4, 256, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"16x100-2048", 16, 0, 0, 32, 8, 128, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"512 after 8192", 1, 512, 8704, 32, 8, 128, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"2x60", 2, 60, 60, 32, 8, 128, 16, ATTENTION_FLASH, DTYPE_F16},
        {"4x64", 4, 64, 64, 32, 8, 128, 16, ATTENTION_FLASH, DTYPE_F16},
    };
    for (size_t i = 0; i < ARRAY_LEN(others); i++)
        run_shape(bench, &others[i]);
}

static void bench_mix(struct bench *bench)
{
    static const int n_heads[] = {32, 16};
    for (size_t h = 0; h < ARRAY_LEN(n_heads); h++) {
        struct shape s = {"mix", ARRAY_LEN(mix_lens), 0,         LENS_MIX, n_heads[h], 8, 128,
                          64,    ATTENTION_FLASH,     DTYPE_BF16};
        run_shape(bench, &s);
    }
}

static void bench_softcap(struct bench *bench)
{
    static const struct shape shapes[] = {
        {"4x4096 capped", 4, 4096, 4096, 32, 8, 128, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"4x4096 capped", 4, 4096, 4096, 8, 4, 256, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"B64 2k capped", 64, 1, 2048, 32, 8, 128, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"B128 2k capped", 128, 1, 2048, 8, 4, 256, 64, ATTENTION_FLASH, DTYPE_BF16},
        {"4x1024 capped", 4, 1024, 1024, 32, 8, 128, 64, ATTENTION_MEMORY_EFFICIENT, DTYPE_F16},
    };
    bench->softcap = 50;
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        run_shape(bench, &shapes[i]);
    bench->softcap = 0;
}

static void bench_kinds(struct bench *bench)
{
    static const struct shape shapes[] = {
        {"4x1024", 4, 1024, 1024, 32, 8, 128, 64, ATTENTION_MEMORY_EFFICIENT, DTYPE_F16},
        {"B64 2k", 64, 1, 2048, 32, 8, 128, 64, ATTENTION_MEMORY_EFFICIENT, DTYPE_F16},
        {"4x1024", 4, 1024, 1024, 32, 8, 128, 64, ATTENTION_MEMORY_EFFICIENT, DTYPE_BF16},
        {"4x1024", 4, 1024, 1024, 32, 8, 128, 64, ATTENTION_EAGER, DTYPE_BF16},
        {"B64 2k", 64, 1, 2048, 32, 8, 128, 64, ATTENTION_EAGER, DTYPE_BF16},
        {"4x1024 generic", 4, 1024, 1024, 32, 8, 128, 64, ATTENTION_FLASH, DTYPE_F32},
        {"B64 2k generic", 64, 1, 2048, 32, 8, 128, 64, ATTENTION_FLASH, DTYPE_F32},
    };
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        run_shape(bench, &shapes[i]);
}

int main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : NULL;
    struct bench bench = {};
    bench.pool_dtype = DTYPE_BF16;
    attention_device_open(&bench.device, DTYPE_BF16);
    bench.k = gpu_alloc(POOL_ELEMENTS * 2);
    bench.v = gpu_alloc(POOL_ELEMENTS * 2);
    bench.sum = (uint32_t *)gpu_alloc(sizeof(*bench.sum));
    gpu_fill(bench.k, POOL_ELEMENTS, 0, DTYPE_BF16);
    gpu_fill(bench.v, POOL_ELEMENTS, FIRST_V, DTYPE_BF16);
    bench.limits.read_gbps =
        4 * POOL_ELEMENTS / median_s(bench.device.stream, read_pool, &bench) * 1e-9;
    bench.limits.gemm_tflops = gemm_tflops(&bench);
    printf("read %.0f GB/s, bf16 matrix product %.0f TFLOP/s\n", bench.limits.read_gbps,
           bench.limits.gemm_tflops);
    if (only == NULL || strcmp(only, "decode") == 0)
        bench_decode(&bench);
    if (only == NULL || strcmp(only, "live") == 0)
        bench_live(&bench);
    if (only == NULL || strcmp(only, "shared") == 0)
        bench_shared(&bench);
    if (only == NULL || strcmp(only, "prefill") == 0)
        bench_prefill(&bench);
    if (only == NULL || strcmp(only, "mix") == 0)
        bench_mix(&bench);
    if (only == NULL || strcmp(only, "softcap") == 0)
        bench_softcap(&bench);
    if (only == NULL || strcmp(only, "kinds") == 0)
        bench_kinds(&bench);
    gpu_free(bench.sum);
    gpu_free(bench.k);
    gpu_free(bench.v);
    attention_device_close(&bench.device);
    return 0;
}
