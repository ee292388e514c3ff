/* sample_impl.h - the passes of sampling over a whole row of logits. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#include <float.h>
#include <math.h>

static int argmax(const float *logits, int n)
{
    vec largest = vec_set1(-INFINITY);
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N)
        largest = vec_max(vec_load(logits + i), largest);
    float best = vec_largest(largest);
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
    vec x = vec_min(vec_set1(FLT_MAX), vec_max(logit, vec_set1(-INFINITY)));
    return vec_exp((x - vec_set1(largest)) * vec_set1(inverse));
}

static void softmax_weights(float *weight, const float *logits, int n, float largest,
                            float temperature)
{
    float inverse = 1.0f / fmaxf(temperature, FLT_MIN);
    largest = fmaxf(fminf(largest, FLT_MAX), -FLT_MAX);
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N)
        vec_store(weight + i, weight_of(vec_load(logits + i), largest, inverse));
    if (i < n)
        vec_store_n(weight + i, weight_of(vec_load_n(logits + i, n - i), largest, inverse), n - i);
}
