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
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

#include <limits.h>

#define ROPE_THREADS 128
#define MAX_HEAD_DIM 256

enum head_kind { HEAD_Q, HEAD_K, HEAD_V };

struct rope_params {
    void *qkv, *k_cache, *v_cache;
    const float *q_gain, *k_gain, *rope;
    const int *position, *slot;
    float eps;
    int n_tokens, n_heads, n_kv_heads, head_dim, block_size;
    enum dtype kv_dtype;
};

/* Sum over the lanes of a group, in each of them. */
template <int LANES> static __device__ __forceinline__ float group_sum(float x)
{
    for (int step = LANES / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
    return x;
}

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

template <int V, int LANES, int TURNS>
static __device__ __forceinline__ void head_norm(head_part<V, LANES, TURNS> *h, const float *gain,
                                                 int half, float eps)
{
    float squares = 0;
#pragma unroll
    for (int i = 0; i < V * TURNS; i++)
        squares += h->a[i] * h->a[i] + h->b[i] * h->b[i];
    float scale = 1.0f / sqrtf(group_sum<LANES>(squares) / (2 * half) + eps);
    if (!gain)
        return;
#pragma unroll
    for (int i = 0; i < V * TURNS; i++) {
        int j = h->neighbours(i / V) + i % V;
        if (j < half) {
            h->a[i] *= scale * gain[j];
            h->b[i] *= scale * gain[j + half];
        }
    }
}

/* table: [2 half], cosines, then sines */
template <int V, int LANES, int TURNS>
static __device__ __forceinline__ void head_rotate(head_part<V, LANES, TURNS> *h,
                                                   const float *table, int half)
{
#pragma unroll
    for (int i = 0; i < V * TURNS; i++) {
        int j = h->neighbours(i / V) + i % V;
        if (j < half) {
            float c = table[j], s = table[j + half], a = h->a[i], b = h->b[i];
            h->a[i] = a * c - b * s;
            h->b[i] = b * c + a * s;
        }
    }
}

template <int V, int LANES, int TURNS>
static __device__ __forceinline__ void store_cache(const struct rope_params *p,
                                                   const head_part<V, LANES, TURNS> *h,
                                                   enum head_kind kind, int token, int kv_head)
{
    void *cache = kind == HEAD_K ? p->k_cache : p->v_cache;
    int slot = p->slot[token], half = p->head_dim / 2;
    if (slot < 0)
        return;
    size_t block = slot / p->block_size, offset = slot % p->block_size;
    size_t at = ((block * p->n_kv_heads + kv_head) * p->block_size + offset) * p->head_dim;
    if (p->kv_dtype == DTYPE_F32)
        head_store(h, (float *)cache + at, half);
    else if (p->kv_dtype == DTYPE_BF16)
        head_store(h, (__nv_bfloat16 *)cache + at, half);
    else
        head_store(h, (__half *)cache + at, half);
}

/* Groups past the last head work on it too, without storing: sums need all lanes of a warp. */
template <typename T, int V, int LANES, int TURNS>
static __global__ void __launch_bounds__(ROPE_THREADS) rope_cache_kernel(const struct rope_params p)
{
    int heads = p.n_heads + 2 * p.n_kv_heads, half = p.head_dim / 2, n_jobs = p.n_tokens * heads;
    int group = (blockIdx.x * ROPE_THREADS + threadIdx.x) / LANES, job = min(group, n_jobs - 1);
    int token = job / heads, head = job - token * heads;
    enum head_kind kind = head < p.n_heads                  ? HEAD_Q
                          : head < p.n_heads + p.n_kv_heads ? HEAD_K
                                                            : HEAD_V;
    T *x = (T *)p.qkv + (size_t)job * p.head_dim;
    previous_kernel_wait();
    /* Decode attention has its work to find meanwhile; what was there before the kernel ahead of
     * this one, it reads without a wait. */
    next_kernel_start();
    head_part<V, LANES, TURNS> h;
    head_load(&h, (const T *)x, half);
    const float *gain = kind == HEAD_Q ? p.q_gain : kind == HEAD_K ? p.k_gain : NULL;
    head_norm(&h, gain, half, p.eps);
    if (kind != HEAD_V)
        head_rotate(&h, p.rope + (size_t)p.position[token] * p.head_dim, half);
    if (group >= n_jobs)
        return;
    if (kind == HEAD_Q)
        head_store(&h, x, half);
    else
        store_cache(&p, &h, kind, token, (head - p.n_heads) % p.n_kv_heads);
}

template <typename T, int V, int LANES, int TURNS>
static void rope_cache(const struct cuda_device *d, const struct rope_params *p)
{
    size_t n_jobs = (size_t)p->n_tokens * (p->n_heads + 2 * p->n_kv_heads);
    assert(n_jobs <= INT_MAX / CUDA_WARP);
    unsigned grid = (unsigned)CEIL_DIV(n_jobs * LANES, (size_t)ROPE_THREADS);
    cuda_launch_early(d, rope_cache_kernel<T, V, LANES, TURNS>, dim3(grid), ROPE_THREADS, 0, *p);
}

void cuda_rope_cache(struct device *device, const struct rope_cache_args *args)
{
    struct cuda_device *d = cuda_device(device);
    const struct attention_shape *s = &args->shape;
    const struct batch *b = args->batch;
    assert(s->head_dim % 2 == 0 && s->head_dim <= MAX_HEAD_DIM);
    if (b->n_tokens == 0)
        return;
    struct rope_params p = {
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
        .kv_dtype = s->kv_dtype,
    };
    int half = s->head_dim / 2;
    CUDA_DISPATCH(d->base.act_dtype, T, {
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
