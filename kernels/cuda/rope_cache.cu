/* rope_cache.cu - QK-norm, rotation by position and the write of K and V to the cache, in one pass.
 *
 * For a head x of Q or K, with c and s of the token's position:
 *   x <- x / rms(x) * gain                      (when the model has gains)
 *   (x[j], x[j + half]) <- (x[j] c[j] - x[j + half] s[j], x[j + half] c[j] + x[j] s[j])
 * Q stays where it is; K and V go to the cache at the token's slot, [n_blocks, n_kv_heads,
 * block_size, head_dim], in its dtype.
 *
 * A group of LANES lanes takes one head of one token; a lane holds the pairs (j, j + half) of V
 * neighbours (TURNS times), so a rotation needs no other lane. The sum of squares is reduced in an
 * order that head_dim alone decides. Bytes: qkv read once, Q, K and V written once.
 */
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rope_cache.cuh"

#include <limits.h>

#define ROPE_THREADS 128
#define MAX_HEAD_DIM 256

/* A lane's part of a head: pairs of first and second half. */
template <int V, int LANES, int TURNS> struct head_part {
    float a[V * TURNS], b[V * TURNS];

    /* First index of the lane's V neighbours in turn t. */
    static __device__ __forceinline__ int neighbours(int t)
    {
        return (t * LANES + (int)threadIdx.x % LANES) * V;
    }
};

template <typename T, int V, int LANES, int TURNS>
static __device__ __forceinline__ void head_load(head_part<V, LANES, TURNS> *h, const T *x,
                                                 int half)
{
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        int j = h->neighbours(t);
        pack<T, V> a = {}, b = {};
        if (j < half) {
            a = load_pack<T, V>(x, j);
            b = load_pack<T, V>(x, j + half);
        }
        for (int v = 0; v < V; v++) {
            h->a[t * V + v] = to_float(a.x[v]);
            h->b[t * V + v] = to_float(b.x[v]);
        }
    }
}

template <typename T, int V, int LANES, int TURNS>
static __device__ __forceinline__ void head_store(const head_part<V, LANES, TURNS> *h, T *x,
                                                  int half)
{
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        int j = h->neighbours(t);
        pack<T, V> a, b;
        for (int v = 0; v < V; v++) {
            a.x[v] = from_float<T>(h->a[t * V + v]);
            b.x[v] = from_float<T>(h->b[t * V + v]);
        }
        if (j < half) {
            store_pack<T, V>(x, j, a);
            store_pack<T, V>(x, j + half, b);
        }
    }
}

/* What a lane's part is multiplied by. */
template <int V, int TURNS> struct head_factors {
    bool norm, rotate;
    float gain_a[V * TURNS], gain_b[V * TURNS];
    float cosine[V * TURNS], sine[V * TURNS];
};

/* x: [half], zeros when it is NULL */
template <int V, int LANES, int TURNS>
static __device__ __forceinline__ void load_factor(float out[V * TURNS], const float *x, int half)
{
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        int j = head_part<V, LANES, TURNS>::neighbours(t);
        pack<float, V> part = {};
        if (x && j < half)
            part = load_pack<float, V>(x, j);
        for (int v = 0; v < V; v++)
            out[t * V + v] = part.x[v];
    }
}

/* gain: [2 half] or NULL; table: of the position, [2 half], cosines, then sines, or NULL */
template <int V, int LANES, int TURNS>
static __device__ __forceinline__ void load_factors(head_factors<V, TURNS> *f, const float *gain,
                                                    const float *table, int half)
{
    f->norm = gain != NULL;
    f->rotate = table != NULL;
    load_factor<V, LANES, TURNS>(f->gain_a, gain, half);
    load_factor<V, LANES, TURNS>(f->gain_b, gain ? gain + half : NULL, half);
    load_factor<V, LANES, TURNS>(f->cosine, table, half);
    load_factor<V, LANES, TURNS>(f->sine, table ? table + half : NULL, half);
}

/* A lane's squares: of neighbours, where it has such. */
template <int V, int LANES, int TURNS>
static __device__ __forceinline__ float part_squares(const head_part<V, LANES, TURNS> *h)
{
    const int step = V == 1 ? 1 : 2;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < V * TURNS; i += step) {
        bool two = V > 1;
        squares += four_squares(h->a[i], two ? h->a[i + step - 1] : 0, h->b[i],
                                two ? h->b[i + step - 1] : 0);
    }
    return squares;
}

template <int V, int LANES, int TURNS>
static __device__ __forceinline__ void
head_norm(head_part<V, LANES, TURNS> *h, const head_factors<V, TURNS> *f, int half, float eps)
{
    float scale = head_scale(group_sum<LANES>(part_squares(h)), 2 * half, eps);
    if (!f->norm)
        return;
#pragma unroll
    for (int i = 0; i < V * TURNS; i++) {
        h->a[i] *= scale * f->gain_a[i];
        h->b[i] *= scale * f->gain_b[i];
    }
}

template <int V, int LANES, int TURNS>
static __device__ __forceinline__ void head_rotate(head_part<V, LANES, TURNS> *h,
                                                   const head_factors<V, TURNS> *f)
{
#pragma unroll
    for (int i = 0; i < V * TURNS; i++)
        rotate_pair(&h->a[i], &h->b[i], f->cosine[i], f->sine[i]);
}

template <int V, int LANES, int TURNS>
static __device__ __forceinline__ void store_cache(const struct rope_params *p,
                                                   const head_part<V, LANES, TURNS> *h,
                                                   enum head_kind kind, int slot, int kv_head)
{
    void *cache = kind == HEAD_K ? p->k_cache : p->v_cache;
    int half = p->head_dim / 2;
    if (slot < 0)
        return;
    size_t at = cache_place(p, slot, kv_head);
    if (p->kv_dtype == DTYPE_F32)
        head_store(h, (float *)cache + at, half);
    else if (p->kv_dtype == DTYPE_BF16)
        head_store(h, (__nv_bfloat16 *)cache + at, half);
    else
        head_store(h, (__half *)cache + at, half);
}

/* More blocks than run at once. Where a quarter of the blocks are still as many, groups take four
 * heads: 8192 tokens of 48 heads in 85 us, one by one in 109 (H200). */
#define MANY_BLOCKS 2048
#define MANY_HEADS  4

template <typename T, int V, int LANES, int TURNS, int HEADS>
static __device__ __forceinline__ void wait_and_load(head_part<V, LANES, TURNS> h[HEADS],
                                                     const T *x, int half)
{
    previous_kernel_wait();
    /* Decode attention has its work to find meanwhile; what was there before the kernel ahead of
     * this one, it reads without a wait. */
    next_kernel_start();
#pragma unroll
    for (int i = 0; i < HEADS; i++)
        head_load(&h[i], x + i * 2 * half, half);
}

/* A group takes HEADS neighbours of one kind. Groups past the last of them work on it too, without
 * storing: sums need all lanes of a warp. What is there before the step is read before the wait,
 * but where most blocks start long after it: they read the heads first, which come from farther
 * away. */
template <typename T, int V, int LANES, int TURNS, int HEADS>
static __global__ void __launch_bounds__(ROPE_THREADS) rope_cache_kernel(const struct rope_params p)
{
    int heads = p.n_heads + 2 * p.n_kv_heads, half = p.head_dim / 2;
    int n_jobs = p.n_tokens * heads / HEADS;
    int group = (blockIdx.x * ROPE_THREADS + threadIdx.x) / LANES, job = min(group, n_jobs - 1);
    int token = job * HEADS / heads, head = job * HEADS - token * heads, slot = p.slot[token];
    enum head_kind kind = head_kind_of(&p, head);
    T *x = (T *)p.qkv + (size_t)job * HEADS * p.head_dim;
    const float *table = p.rope + (size_t)p.position[token] * p.head_dim;
    head_factors<V, TURNS> factors;
    head_part<V, LANES, TURNS> h[HEADS];
    bool are_many = HEADS > 1 || gridDim.x > MANY_BLOCKS;
    if (are_many)
        wait_and_load<T, V, LANES, TURNS, HEADS>(h, x, half);
    load_factors<V, LANES, TURNS>(&factors, head_gain(&p, kind), kind == HEAD_V ? NULL : table,
                                  half);
    if (!are_many)
        wait_and_load<T, V, LANES, TURNS, HEADS>(h, x, half);
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        head_norm(&h[i], &factors, half, p.eps);
        if (factors.rotate)
            head_rotate(&h[i], &factors);
        if (group >= n_jobs)
            continue;
        if (kind == HEAD_Q)
            head_store(&h[i], x + i * 2 * half, half);
        else
            store_cache(&p, &h[i], kind, slot, (head + i - p.n_heads) % p.n_kv_heads);
    }
}

template <typename T, int V, int LANES, int TURNS>
static void rope_cache(const struct cuda_device *d, const struct rope_params *p)
{
    size_t n_jobs = (size_t)p->n_tokens * (p->n_heads + 2 * p->n_kv_heads);
    assert(n_jobs <= INT_MAX / CUDA_WARP);
    unsigned grid = (unsigned)CEIL_DIV(n_jobs * LANES, (size_t)ROPE_THREADS);
    bool fours = p->n_heads % MANY_HEADS == 0 && p->n_kv_heads % MANY_HEADS == 0;
    if (grid / MANY_HEADS > MANY_BLOCKS && fours)
        cuda_launch_early(d, rope_cache_kernel<T, V, LANES, TURNS, MANY_HEADS>,
                          dim3(CEIL_DIV(grid, MANY_HEADS)), ROPE_THREADS, 0, *p);
    else
        cuda_launch_early(d, rope_cache_kernel<T, V, LANES, TURNS, 1>, dim3(grid), ROPE_THREADS, 0,
                          *p);
}

struct rope_params cuda_rope_params(const struct cuda_device *d, const struct rope_cache_args *args)
{
    const struct attention_shape *s = &args->shape;
    const struct batch *b = args->batch;
    return {
        .qkv = args->qkv,
        .k_cache = args->kv.k,
        .v_cache = args->kv.v,
        .q_gain = args->q_gain,
        .k_gain = args->k_gain,
        .rope = args->rope,
        .position = b->position,
        .slot = b->slot,
        .eps = args->norm_eps,
        .n_tokens = b->n_tokens,
        .n_heads = s->n_heads,
        .n_kv_heads = s->n_kv_heads,
        .head_dim = s->head_dim,
        .block_size = s->block_size,
        .act_dtype = d->base.act_dtype,
        .kv_dtype = s->kv_dtype,
    };
}

void cuda_rope_cache(struct device *device, const struct rope_cache_args *args)
{
    struct cuda_device *d = cuda_device(device);
    const struct rope_params p = cuda_rope_params(d, args);
    int half = p.head_dim / 2;
    assert(p.head_dim % 2 == 0 && p.head_dim <= MAX_HEAD_DIM);
    if (p.n_tokens == 0 || (args->product && cuda_linear_heads(d, args->product, &p)))
        return;
    if (args->product)
        cuda_linear(device, args->product);
    CUDA_DISPATCH(p.act_dtype, T, {
        if (half % 4 != 0)
            rope_cache<T, 1, 32, 4>(d, &p);
        else if (half <= 32)
            rope_cache<T, 4, 8, 1>(d, &p);
        else if (half <= 64)
            rope_cache<T, 4, 16, 1>(d, &p);
        else
            rope_cache<T, 4, 32, 1>(d, &p);
    });
}
