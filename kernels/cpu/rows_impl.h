/* rows_impl.h - the kernels that work on one row or one token: norm, activation, rotation.
 *
 * Sums run over SUM_VECS vectors of partial sums in an order that only the row's length decides.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#include <math.h>

#define SUM_VECS 4 /* covers the latency of an addition */

static float sum_of_squares(const float *x, int n)
{
    vec sum[SUM_VECS];
    for (int v = 0; v < SUM_VECS; v++)
        sum[v] = vec_set1(0);
    int i = 0;
    for (; i + SUM_VECS * VEC_N <= n; i += SUM_VECS * VEC_N) {
        for (int v = 0; v < SUM_VECS; v++) {
            vec a = vec_load(x + i + v * VEC_N);
            sum[v] = vec_fma(a, a, sum[v]);
        }
    }
    for (; i < n; i += VEC_N) {
        vec a = i + VEC_N <= n ? vec_load(x + i) : vec_load_n(x + i, n - i);
        sum[0] = vec_fma(a, a, sum[0]);
    }
    return vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* out = x / rms(x) * gain; out may be x. */
static void rmsnorm(float *out, const float *x, const float *gain, int n, float eps)
{
    vec scale = vec_set1(1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps));
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N)
        vec_store(out + i, vec_load(x + i) * scale * vec_load(gain + i));
    if (i < n)
        vec_store_n(out + i, vec_load_n(x + i, n - i) * scale * vec_load_n(gain + i, n - i), n - i);
}

static void add_rmsnorm(float *out, float *residual, const float *delta, const float *gain, int dim,
                        float eps)
{
    if (delta) {
        for (int i = 0; i < dim; i++)
            residual[i] += delta[i];
    }
    rmsnorm(out, residual, gain, dim, eps);
}

VEC_INLINE vec silu(vec x)
{
    return x / (vec_set1(1) + vec_exp(vec_set1(0) - x));
}

static void silu_mul(float *out, const float *gate, const float *up, int dim)
{
    int i = 0;
    for (; i + VEC_N <= dim; i += VEC_N)
        vec_store(out + i, silu(vec_load(gate + i)) * vec_load(up + i));
    if (i < dim) {
        vec last = silu(vec_load_n(gate + i, dim - i)) * vec_load_n(up + i, dim - i);
        vec_store_n(out + i, last, dim - i);
    }
}

/* x: [head_dim]; table: cosines, then sines, [head_dim / 2] each */
static void rotate(float *x, const float *table, int head_dim)
{
    int half = head_dim / 2, i = 0;
    for (; i + VEC_N <= half; i += VEC_N) {
        vec c = vec_load(table + i), s = vec_load(table + half + i);
        vec a = vec_load(x + i), b = vec_load(x + half + i);
        vec_store(x + i, vec_fma(a, c, vec_set1(0) - b * s));
        vec_store(x + half + i, vec_fma(b, c, a * s));
    }
    if (i < half) {
        int n = half - i;
        vec c = vec_load_n(table + i, n), s = vec_load_n(table + half + i, n);
        vec a = vec_load_n(x + i, n), b = vec_load_n(x + half + i, n);
        vec_store_n(x + i, vec_fma(a, c, vec_set1(0) - b * s), n);
        vec_store_n(x + half + i, vec_fma(b, c, a * s), n);
    }
}

static void store_head(enum dtype dtype, void *cache, size_t at, const float *x, int head_dim)
{
    int i = 0;
    for (; i + VEC_N <= head_dim; i += VEC_N)
        vec_store_as(dtype, cache, at + (size_t)i, vec_load(x + i));
    if (i < head_dim)
        vec_store_as_n(dtype, cache, at + (size_t)i, vec_load_n(x + i, head_dim - i), head_dim - i);
}

static void rope_cache(const struct rope_cache_args *args, int token)
{
    const struct attention_shape *shape = &args->shape;
    int head_dim = shape->head_dim, n_kv_heads = shape->n_kv_heads;
    size_t d = (size_t)head_dim, n_heads = (size_t)shape->n_heads;
    float *q = (float *)args->qkv + (size_t)token * (n_heads + 2 * (size_t)n_kv_heads) * d;
    const float *table = args->rope + (size_t)args->batch->position[token] * d;
    for (int h = 0; h < shape->n_heads; h++) {
        if (args->q_gain)
            rmsnorm(q + (size_t)h * d, q + (size_t)h * d, args->q_gain, head_dim, args->norm_eps);
        rotate(q + (size_t)h * d, table, head_dim);
    }
    int slot = args->batch->slot[token];
    if (slot < 0) /* padding */
        return;
    size_t block = (size_t)(slot / shape->block_size), offset = (size_t)(slot % shape->block_size);
    for (int h = 0; h < n_kv_heads; h++) {
        float *k = q + (n_heads + (size_t)h) * d;
        const float *v = k + (size_t)n_kv_heads * d;
        size_t head_row = (block * (size_t)n_kv_heads + (size_t)h) * (size_t)shape->block_size;
        if (args->k_gain)
            rmsnorm(k, k, args->k_gain, head_dim, args->norm_eps);
        rotate(k, table, head_dim);
        store_head(shape->kv_dtype, args->kv.k, (head_row + offset) * d, k, head_dim);
        store_head(shape->kv_dtype, args->kv.v, (head_row + offset) * d, v, head_dim);
    }
}
