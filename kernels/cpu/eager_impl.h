/* eager_impl.h - attention of one query head as the formula reads: all scores, softmax, mean.
 *
 * The readable baseline. Sums run in the order of the keys and of the lanes of head_dim.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#define MAX_HEAD_VECS CEIL_DIV(MAX_HEAD_DIM, VEC_N)

/* Index of the first element of a key (value) in the cache. */
static size_t cache_index(const struct attention_args *a, int seq, int kv_head, int position)
{
    const struct attention_shape *s = &a->shape;
    const int *table = a->batch->block_table + (size_t)seq * (size_t)a->batch->max_blocks;
    size_t block = (size_t)table[position / s->block_size];
    size_t offset = (size_t)(position % s->block_size);
    size_t row = (block * (size_t)s->n_kv_heads + (size_t)kv_head) * (size_t)s->block_size + offset;
    return row * (size_t)s->head_dim;
}

VEC_INLINE vec load_part(enum dtype dtype, const void *array, size_t at, int i, int n)
{
    if (i + VEC_N <= n)
        return vec_load_as(dtype, array, at + (size_t)i);
    return vec_load_as_n(dtype, array, at + (size_t)i, n - i);
}

static float dot(const float *q, enum dtype dtype, const void *k, size_t at, int head_dim)
{
    vec sum = vec_set1(0);
    for (int i = 0; i < head_dim; i += VEC_N)
        sum = vec_fma(load_part(DTYPE_F32, q, 0, i, head_dim), load_part(dtype, k, at, i, head_dim),
                      sum);
    return vec_sum(sum);
}

/* scores[i] <- cap tanh(scores[i] / cap) */
static void cap_scores(float *scores, int n, float cap)
{
    for (int i = 0; i < n; i += VEC_N) {
        vec s = vec_tanh(load_part(DTYPE_F32, scores, 0, i, n) / vec_set1(cap));
        vec_store_n(scores + i, s * vec_set1(cap), MIN(VEC_N, n - i));
    }
}

/* scores[i] <- exp(scores[i] - the largest); returns their sum. */
static float softmax_numerators(float *scores, int n)
{
    float largest = scores[0], sum = 0;
    for (int i = 1; i < n; i++)
        largest = MAX(largest, scores[i]);
    for (int i = 0; i < n; i += VEC_N) {
        int m = MIN(VEC_N, n - i);
        vec e = vec_exp(load_part(DTYPE_F32, scores, 0, i, n) - vec_set1(largest));
        vec_store_n(scores + i, e, m);
    }
    for (int i = 0; i < n; i++)
        sum += scores[i];
    return sum;
}

static void attend_eager(const struct attention_args *a, int seq, int token, int head,
                         float *scores)
{
    const struct attention_shape *s = &a->shape;
    int head_dim = s->head_dim, kv_head = head / (s->n_heads / s->n_kv_heads);
    size_t qkv_heads = (size_t)(s->n_heads + 2 * s->n_kv_heads);
    const float *q =
        (const float *)a->qkv + ((size_t)token * qkv_heads + (size_t)head) * (size_t)head_dim;
    float *out =
        (float *)a->out + ((size_t)token * (size_t)s->n_heads + (size_t)head) * (size_t)head_dim;
    int last = a->batch->position[token];
    int first = a->window > 0 ? MAX(0, last + 1 - a->window) : 0;
    for (int p = first; p <= last; p++) {
        size_t at = cache_index(a, seq, kv_head, p);
        scores[p - first] = a->scale * dot(q, s->kv_dtype, a->kv.k, at, head_dim);
    }
    if (a->softcap > 0)
        cap_scores(scores, last + 1 - first, a->softcap);
    vec norm = vec_set1(1.0f / softmax_numerators(scores, last + 1 - first));
    vec sum[MAX_HEAD_VECS] = {0};
    for (int p = first; p <= last; p++) {
        size_t at = cache_index(a, seq, kv_head, p);
        for (int i = 0; i < head_dim; i += VEC_N)
            sum[i / VEC_N] =
                vec_fma(vec_set1(scores[p - first]),
                        load_part(s->kv_dtype, a->kv.v, at, i, head_dim), sum[i / VEC_N]);
    }
    for (int i = 0; i < head_dim; i += VEC_N)
        vec_store_n(out + i, sum[i / VEC_N] * norm, MIN(VEC_N, head_dim - i));
}
