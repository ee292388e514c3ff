/* linear_decode_test.cu - the products of linear_decode.cu against their definition, bit for bit.
 *
 *   linear_decode_test [--small]
 *
 * The definition: for each part of the columns one chain of 16-column products of the tensor cores
 * per element of y, and their sum in order, in a kernel that does no more than that. It is compared
 * with double precision, linear_decode() with it: for every use of the sums, for every size of a
 * tile and for numbers of rows around those of a tile, into memory with a row more than there are,
 * which stays as it is. Launches of several sizes follow one another without a
 * wait. Prints a line per case; the exit code is 1 when any case fails. --small, for
 * compute-sanitizer: fewer numbers of rows.
 */
#include "kernels/cuda/linear_decode.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rope_cache.cuh"
#include "kernels/cuda/silu_mul.cuh"

#include "tests/gpu/attention_device.cuh"
#include "tests/gpu/product_sums.cuh"

#include <stdio.h>
#include <stdlib.h>

static const int tile_rows[] = LINEAR_DECODE_TILES;
static const int all_rows[] = {1, 7, 8, 9, 16, 17, 32, 33, 63, 64, 65, 127, 128, 130, 256};
static const int few_rows[] = {1, 9, 65};

/* Odd numbers of panels, a single one, and rows that do not fill a tile. */
static const struct product_case shapes[] = {{8, 64, 1},     {104, 192, 1},   {144, 192, 1},
                                             {1000, 320, 1}, {520, 1024, 1},  {1024, 3072, 1},
                                             {6144, 128, 1}, {8, 512, 2},     {104, 1536, 2},
                                             {520, 1024, 4}, {1024, 2048, 2}, {1024, 3072, 2}};

/* What becomes of the sums. */
enum use { STORED, STORED_F32, GATED, PARTS };

template <typename T, typename Out>
static void check_tiles(const struct cuda_device *d, const struct product_arrays *a, int n_rows,
                        const struct product_case *s, enum use use)
{
    int n_columns = use == GATED ? s->n_out / 2 : s->n_out;
    size_t n = (size_t)n_rows * (size_t)n_columns * (size_t)(use == PARTS ? s->n_parts : 1);
    size_t bytes = (n + (size_t)n_columns) * sizeof(Out);
    const float *right = use == PARTS ? a->chain : total_of(a, s, n_rows);
    for (size_t i = 0; i < ARRAY_LEN(tile_rows) && (use != PARTS || tile_rows[i] < 96); i++) {
        const struct linear_decode_args args = {
            .y = a->y,
            .x = a->x,
            .w = a->w,
            .n_rows = n_rows,
            .n_out = s->n_out,
            .n_in = s->n_in,
            .n_parts = s->n_parts,
            .out_dtype = use == STORED_F32 ? DTYPE_F32 : d->base.act_dtype,
            .gated = use == GATED,
            .heads = NULL,
            .tile_rows = tile_rows[i],
        };
        CUDA_CHECK(cudaMemsetAsync(a->y, 0xFF, bytes, d->stream));
        linear_decode(d, &args);
        linear_decode(d, &args);
        arrays_compare<T, Out>(d, a, right, n, n_columns, use == GATED);
    }
}

/* All uses for some rows; the largest error of the chain. */
template <typename T>
static float check_rows(const struct cuda_device *d, const struct product_arrays *a, int n_rows,
                        const struct product_case *s)
{
    float error = arrays_sum<T>(d, a, s, n_rows);
    if (s->n_parts > 1) {
        check_tiles<T, float>(d, a, n_rows, s, PARTS);
        return error;
    }
    check_tiles<T, T>(d, a, n_rows, s, STORED);
    check_tiles<T, float>(d, a, n_rows, s, STORED_F32);
    check_tiles<T, T>(d, a, n_rows, s, GATED);
    return error;
}

template <typename T>
static bool check_shape(const struct cuda_device *d, const struct product_case *s, const int *rows,
                        int n)
{
    struct product_arrays a = arrays_make<T>(d, s, LINEAR_DECODE_MAX_ROWS);
    float error = 0;
    for (int i = 0; i < n; i++)
        error = fmaxf(error, check_rows<T>(d, &a, rows[i], s));
    return arrays_end(d, &a, s, error);
}

/* ---- heads ---- */

#define N_HEADS      5
#define N_KV_HEADS   2
#define BLOCK_SIZE   16
#define MAX_POSITION 99

static const struct {
    int head_dim, n_in;
    bool gains;
    enum dtype kv_dtype; /* DTYPE_N: the act_dtype */
} head_cases[] = {{128, 320, true, DTYPE_N},
                  {128, 1024, false, DTYPE_F32},
                  {64, 192, true, DTYPE_F16},
                  {64, 1024, true, DTYPE_N}};

/* q, k and v in qkv, the caches: once as one product makes them, once as two operations do. */
struct heads_arrays {
    char *x, *w, *qkv[2], *k_cache[2], *v_cache[2];
    float *gain, *rope;
    int *position, *slot;
    size_t qkv_bytes, cache_bytes;
};

/* The first token is not stored. */
static void place_tokens(int position[LINEAR_DECODE_MAX_ROWS], int slot[LINEAR_DECODE_MAX_ROWS])
{
    for (int i = 0; i < LINEAR_DECODE_MAX_ROWS; i++) {
        position[i] = i * 7 % MAX_POSITION;
        slot[i] = i == 0 ? -1 : (i * 37 + 5) % LINEAR_DECODE_MAX_ROWS;
    }
}

static struct heads_arrays heads_make(const struct cuda_device *d, int head_dim, int n_in)
{
    size_t n_out = (size_t)(N_HEADS + 2 * N_KV_HEADS) * (size_t)head_dim;
    size_t n_x = LINEAR_DECODE_MAX_ROWS * (size_t)n_in, n_w = n_out * (size_t)n_in;
    int position[LINEAR_DECODE_MAX_ROWS], slot[LINEAR_DECODE_MAX_ROWS];
    struct heads_arrays a;
    place_tokens(position, slot);
    a.qkv_bytes = LINEAR_DECODE_MAX_ROWS * n_out * 2;
    a.cache_bytes = LINEAR_DECODE_MAX_ROWS * N_KV_HEADS * (size_t)head_dim * sizeof(float);
    a.x = (char *)gpu_alloc(n_x * 2);
    a.w = (char *)gpu_alloc(n_w * 2);
    for (int i = 0; i < 2; i++) {
        a.qkv[i] = (char *)gpu_alloc(a.qkv_bytes);
        a.k_cache[i] = (char *)gpu_alloc(a.cache_bytes);
        a.v_cache[i] = (char *)gpu_alloc(a.cache_bytes);
    }
    a.gain = (float *)gpu_alloc((size_t)head_dim * sizeof(float));
    a.rope = (float *)gpu_alloc(MAX_POSITION * (size_t)head_dim * sizeof(float));
    a.position = (int *)gpu_copy_of(position, sizeof(position));
    a.slot = (int *)gpu_copy_of(slot, sizeof(slot));
    CUDA_DISPATCH(d->base.act_dtype, T, {
        fill_kernel<<<blocks_of(n_x), 256, 0, d->stream>>>((T *)a.x, n_x, 1);
        fill_kernel<<<blocks_of(n_w), 256, 0, d->stream>>>((T *)a.w, n_w, 12345);
    });
    fill_kernel<<<1, 256, 0, d->stream>>>(a.gain, (size_t)head_dim, 3);
    size_t n_rope = MAX_POSITION * (size_t)head_dim;
    fill_kernel<<<blocks_of(n_rope), 256, 0, d->stream>>>(a.rope, n_rope, 4);
    CUDA_CHECK_LAUNCH();
    return a;
}

static void heads_free(const struct heads_arrays *a)
{
    void *const memory[] = {a->x,          a->w,          a->qkv[0],     a->qkv[1],
                            a->k_cache[0], a->k_cache[1], a->v_cache[0], a->v_cache[1],
                            a->gain,       a->rope,       a->position,   a->slot};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        gpu_free(memory[i]);
}

/* Into the arrays of number `which`: 0 in two operations, 1 in one. False: it has no such tile. */
static bool run_heads(struct cuda_device *d, const struct heads_arrays *a, size_t c, int which,
                      int tile, int n_rows)
{
    struct batch batch = {};
    batch.n_tokens = n_rows;
    batch.position = a->position;
    batch.slot = a->slot;
    struct rope_cache_args rope = {};
    rope.qkv = a->qkv[which];
    rope.q_gain = rope.k_gain = head_cases[c].gains ? a->gain : NULL;
    rope.rope = a->rope;
    rope.norm_eps = 1e-6f;
    rope.kv = {a->k_cache[which], a->v_cache[which]};
    rope.shape.n_heads = N_HEADS;
    rope.shape.n_kv_heads = N_KV_HEADS;
    rope.shape.head_dim = head_cases[c].head_dim;
    rope.shape.block_size = BLOCK_SIZE;
    rope.shape.kv_dtype =
        head_cases[c].kv_dtype == DTYPE_N ? d->base.act_dtype : head_cases[c].kv_dtype;
    rope.batch = &batch;
    const struct rope_params params = cuda_rope_params(d, &rope);
    const struct linear_decode_args args = {
        .y = a->qkv[which],
        .x = a->x,
        .w = a->w,
        .n_rows = n_rows,
        .n_out = (N_HEADS + 2 * N_KV_HEADS) * head_cases[c].head_dim,
        .n_in = head_cases[c].n_in,
        .n_parts = 1,
        .out_dtype = d->base.act_dtype,
        .gated = false,
        .heads = which == 1 ? &params : NULL,
        .tile_rows = tile,
    };
    if (!linear_decode_can_heads(&params, tile))
        return false;
    linear_decode(d, &args);
    if (which == 0)
        cuda_rope_cache(&d->base, &rope);
    return true;
}

/* Differences in Q of n_rows rows, and in the caches. */
static size_t compare_heads(const struct heads_arrays *a, size_t c, int n_rows)
{
    size_t bytes[] = {a->qkv_bytes, a->cache_bytes, a->cache_bytes}, n_wrong = 0;
    size_t q = N_HEADS * (size_t)head_cases[c].head_dim * 2,
           row = q / N_HEADS * (N_HEADS + 2 * N_KV_HEADS);
    for (int i = 0; i < 3; i++) {
        char *host[2];
        for (int which = 0; which < 2; which++) {
            char *const arrays[] = {a->qkv[which], a->k_cache[which], a->v_cache[which]};
            host[which] = (char *)malloc(bytes[i]);
            CUDA_CHECK(cudaMemcpy(host[which], arrays[i], bytes[i], cudaMemcpyDeviceToHost));
        }
        for (size_t b = 0; b < bytes[i]; b++) {
            if (i > 0 || (b % row < q && b < (size_t)n_rows * row))
                n_wrong += host[0][b] != host[1][b];
        }
        free(host[0]);
        free(host[1]);
    }
    return n_wrong;
}

static bool check_heads(struct cuda_device *d, size_t c, const int *rows, int n)
{
    struct heads_arrays a = heads_make(d, head_cases[c].head_dim, head_cases[c].n_in);
    size_t n_wrong = 0;
    int n_tiles = 0;
    for (int tile = 64; tile <= 128; tile *= 2) {
        bool runs = true;
        for (int i = 0; i < n && runs; i++) {
            for (int which = 0; which < 2; which++) {
                CUDA_CHECK(cudaMemsetAsync(a.k_cache[which], 0xFF, a.cache_bytes, d->stream));
                CUDA_CHECK(cudaMemsetAsync(a.v_cache[which], 0xFF, a.cache_bytes, d->stream));
                runs = run_heads(d, &a, c, which, tile, rows[i]);
            }
            CUDA_CHECK(cudaStreamSynchronize(d->stream));
            n_wrong += compare_heads(&a, c, rows[i]);
        }
        n_tiles += runs;
    }
    printf("%-4s %s heads of %d, %d columns, %d tiles: %zu bytes differ\n",
           n_wrong == 0 ? "ok" : "FAIL", dtype_name(d->base.act_dtype), head_cases[c].head_dim,
           head_cases[c].n_in, n_tiles, n_wrong);
    fflush(stdout);
    heads_free(&a);
    return n_wrong == 0;
}

int main(int argc, char **argv)
{
    bool small = argc > 1 && strcmp(argv[1], "--small") == 0;
    const int *rows = small ? few_rows : all_rows;
    int n = small ? ARRAY_LEN(few_rows) : ARRAY_LEN(all_rows), n_failed = 0;
    struct cuda_device d;
    attention_device_open(&d, DTYPE_BF16);
    d.overlaps = cuda_kernels_can_wait();
    if (!linear_decode_can(&d, 8, 64, 1, 1)) {
        printf("skipped: the GPU is not of compute capability 9.0\n");
        return 0;
    }
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        d.base.act_dtype = DTYPE_BF16;
        n_failed += !check_shape<__nv_bfloat16>(&d, &shapes[i], rows, n);
        d.base.act_dtype = DTYPE_F16;
        n_failed += !check_shape<__half>(&d, &shapes[i], rows, n);
    }
    for (size_t c = 0; c < ARRAY_LEN(head_cases); c++) {
        d.base.act_dtype = DTYPE_BF16;
        n_failed += !check_heads(&d, c, rows, n);
        d.base.act_dtype = DTYPE_F16;
        n_failed += !check_heads(&d, c, rows, n);
    }
    attention_device_close(&d);
    printf("%d shapes failed\n", n_failed);
    return n_failed > 0;
}
