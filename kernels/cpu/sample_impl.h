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

/* Weights outside [floor, end) become 0. */
VEC_INLINE vec between(vec weight, float floor, float end)
{
    vecu inside = (vecu)((weight >= vec_set1(floor)) & (weight < vec_set1(end)));
    return (vec)((vecu)weight & inside);
}

/* Most groups hold nothing: one comparison passes over them. */
static int sample_collect(int *id, const float *weight, int n, float floor, float end)
{
    enum { GROUP = 4 * VEC_N };
    int n_ids = 0;
    for (int at = 0; at < n; at += GROUP) {
        int last = MIN(at + GROUP, n);
        if (last == at + GROUP && floor > 0) {
            vec top = vec_set1(0);
            VEC_UNROLL
            for (int i = 0; i < GROUP; i += VEC_N)
                top = vec_max(top, between(vec_load(weight + at + i), floor, end));
            if (vec_largest(top) < floor)
                continue;
        }
        for (int i = at; i < last; i++) {
            id[n_ids] = i;
            n_ids += weight[i] >= floor && weight[i] < end;
        }
    }
    return n_ids;
}

/* The sum over one block of the weights >= floor; with `prune` the others become 0. Four sums: the
 * additions to one of them would be waited for. */
VEC_INLINE float sum_block(float *weight, int n, float floor, bool prune)
{
    vec sum[4] = {vec_set1(0), vec_set1(0), vec_set1(0), vec_set1(0)};
    int i = 0;
    for (; i + 4 * VEC_N <= n; i += 4 * VEC_N) {
        VEC_UNROLL
        for (int j = 0; j < 4; j++) {
            vec kept = between(vec_load(weight + i + j * VEC_N), floor, INFINITY);
            sum[j] = sum[j] + kept;
            if (prune)
                vec_store(weight + i + j * VEC_N, kept);
        }
    }
    for (; i < n; i += VEC_N) {
        int left = MIN(VEC_N, n - i);
        vec kept = between(vec_load_n(weight + i, left), floor, INFINITY);
        sum[0] = sum[0] + kept;
        if (prune)
            vec_store_n(weight + i, kept, left);
    }
    return vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static double sample_sum(const float *weight, int n, float floor)
{
    double sum = 0;
    for (int at = 0; at < n; at += SAMPLE_BLOCK)
        sum +=
            sum_block((float *)(uintptr_t)(weight + at), MIN(SAMPLE_BLOCK, n - at), floor, false);
    return sum;
}

static double sample_prune(float *weight, double *block_sum, int n, float floor)
{
    double sum = 0;
    for (int b = 0; b * SAMPLE_BLOCK < n; b++) {
        int at = b * SAMPLE_BLOCK;
        block_sum[b] = sum_block(weight + at, MIN(SAMPLE_BLOCK, n - at), floor, true);
        sum += block_sum[b];
    }
    return sum;
}
