/* rope_cache.cuh - what rope_cache.cu does to a head, for products that end with it as well.
 *
 * The sum of squares of a head is that of eights: (x[j], x[j + 1]) and (x[j + half], x[j + half +
 * 1]) are four squares, four neighbours of these an eight, and eights, quarters, ... are added in
 * pairs.
 */
#ifndef QUIRE_CUDA_ROPE_CACHE_CUH
#define QUIRE_CUDA_ROPE_CACHE_CUH

#include "kernels/cuda/cuda.cuh"

enum head_kind { HEAD_Q, HEAD_K, HEAD_V };

struct rope_params {
    void *qkv, *k_cache, *v_cache;
    const float *q_gain, *k_gain, *rope;
    const int *position, *slot;
    float eps;
    int n_tokens, n_heads, n_kv_heads, head_dim, block_size;
    enum dtype act_dtype, kv_dtype; /* of qkv, of the cache */
};

struct rope_params cuda_rope_params(const struct cuda_device *d,
                                    const struct rope_cache_args *args);

static __device__ __forceinline__ enum head_kind head_kind_of(const struct rope_params *p, int head)
{
    return head < p->n_heads ? HEAD_Q : head < p->n_heads + p->n_kv_heads ? HEAD_K : HEAD_V;
}

static __device__ __forceinline__ const float *head_gain(const struct rope_params *p,
                                                         enum head_kind kind)
{
    return kind == HEAD_Q ? p->q_gain : kind == HEAD_K ? p->k_gain : NULL;
}

/* Squares of two neighbours and of their partners, rounded in the same places wherever it is
 * compiled. */
static __device__ __forceinline__ float four_squares(float a0, float a1, float b0, float b1)
{
    return __fmaf_rn(a1, a1, __fmul_rn(a0, a0)) + __fmaf_rn(b1, b1, __fmul_rn(b0, b0));
}

/* Sum over each group of LANES lanes, neighbours first, in each of them; whole warps. */
template <int LANES> static __device__ __forceinline__ float group_sum(float x)
{
    for (int step = 1; step < LANES; step *= 2)
        x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
    return x;
}

static __device__ __forceinline__ float head_scale(float squares, int head_dim, float eps)
{
    return 1.0f / sqrtf(squares / head_dim + eps);
}

/* (a, b) <- (a c - b s, b c + a s) */
static __device__ __forceinline__ void rotate_pair(float *a, float *b, float c, float s)
{
    float x = *a, y = *b;
    *a = __fmaf_rn(x, c, -__fmul_rn(y, s));
    *b = __fmaf_rn(y, c, __fmul_rn(x, s));
}

/* Where a head of a token is in a cache, in elements. */
static __device__ __forceinline__ size_t cache_place(const struct rope_params *p, int slot,
                                                     int kv_head)
{
    size_t block = slot / p->block_size, offset = slot % p->block_size;
    return ((block * p->n_kv_heads + kv_head) * p->block_size + offset) * p->head_dim;
}

#endif
