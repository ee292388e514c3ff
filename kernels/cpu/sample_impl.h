/* sample_impl.h - the passes of sampling over a whole row of logits. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#include <float.h>
#include <math.h>

static int argmax(const float *logits, int n)
{
    vec largest[2] = {vec_set1(-INFINITY), vec_set1(-INFINITY)};
    int i = 0;
    for (; i + 2 * VEC_N <= n; i += 2 * VEC_N) {
        largest[0] = vec_max(vec_load(logits + i), largest[0]);
        largest[1] = vec_max(vec_load(logits + i + VEC_N), largest[1]);
    }
    float best = vec_largest(vec_max(largest[0], largest[1]));
    for (; i < n; i++)
        best = logits[i] > best ? logits[i] : best;
    for (i = 0; i < n; i++) {
        if (logits[i] == best)
            return i;
    }
    return 0; /* nothing but NaN */
}

/* A difference of infinities would be a NaN: both sides are kept finite. */
VEC_INLINE vec weight_of(vec logit, float largest, float inverse)
{
    vec finite = vec_min(vec_set1(FLT_MAX), vec_max(logit, vec_set1(-FLT_MAX)));
    return vec_exp((finite - vec_set1(largest)) * vec_set1(inverse));
}

/* Weights of up to SAMPLE_BLOCK logits and their sum. */
static float weigh_block(float *weight, const float *logits, int n, float largest, float inverse)
{
    vec sum = vec_set1(0);
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N) {
        vec w = weight_of(vec_load(logits + i), largest, inverse);
        vec_store(weight + i, w);
        sum = sum + w;
    }
    if (i < n) {
        vec_store_n(weight + i, weight_of(vec_load_n(logits + i, n - i), largest, inverse), n - i);
        sum = sum + vec_load_n(weight + i, n - i);
    }
    return vec_sum(sum);
}

static void sample_weights(float *weight, double *block_sum, const float *logits, int n,
                           float largest, float temperature)
{
    float inverse = 1.0f / fmaxf(temperature, FLT_MIN);
    largest = fmaxf(fminf(largest, FLT_MAX), -FLT_MAX);
    for (int b = 0; b * SAMPLE_BLOCK < n; b++) {
        int at = b * SAMPLE_BLOCK;
        block_sum[b] =
            weigh_block(weight + at, logits + at, MIN(SAMPLE_BLOCK, n - at), largest, inverse);
    }
}

/* Most groups hold nothing: one comparison passes over them. */
static int sample_collect(int *id, const float *weight, int n, float floor)
{
    enum { GROUP = 4 * VEC_N };
    int n_ids = 0;
    for (int at = 0; at < n; at += GROUP) {
        int end = MIN(at + GROUP, n);
        if (end == at + GROUP) {
            vec a = vec_max(vec_load(weight + at), vec_load(weight + at + VEC_N));
            vec b = vec_max(vec_load(weight + at + 2 * VEC_N), vec_load(weight + at + 3 * VEC_N));
            if (vec_largest(vec_max(a, b)) < floor)
                continue;
        }
        for (int i = at; i < end; i++) {
            id[n_ids] = i;
            n_ids += weight[i] >= floor;
        }
    }
    return n_ids;
}
