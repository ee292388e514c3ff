/* ops.c - the operations whose rows or tokens are independent: one kernel call for each. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <string.h>

void cpu_add_rmsnorm(struct device *device, void *out, void *residual, const void *delta,
                     const float *gain, int n_rows, int dim, float eps)
{
    const struct cpu_device *d = cpu_device(device);
#pragma omp parallel for schedule(static) num_threads(cpu_threads(d, n_rows, dim))
    for (int r = 0; r < n_rows; r++) {
        size_t at = (size_t)r * (size_t)dim;
        d->kernels->add_rmsnorm((float *)out + at, (float *)residual + at,
                                delta ? (const float *)delta + at : NULL, gain, dim, eps);
    }
}

void cpu_linear_add_rmsnorm(struct device *device, void *out, void *residual,
                            const struct linear_args *delta, const float *gain, float eps)
{
    cpu_linear(device, delta);
    cpu_add_rmsnorm(device, out, residual, delta->out, gain, delta->n_rows, delta->weight->n_out,
                    eps);
}

void cpu_rope_cache(struct device *device, const struct rope_cache_args *args)
{
    const struct cpu_device *d = cpu_device(device);
    const struct attention_shape *s = &args->shape;
    int width = (s->n_heads + 2 * s->n_kv_heads) * s->head_dim;
    assert(s->head_dim % 2 == 0 && s->head_dim <= MAX_HEAD_DIM);
    if (args->product)
        cpu_linear(device, args->product);
#pragma omp parallel for schedule(static) num_threads(cpu_threads(d, args->batch->n_tokens, width))
    for (int t = 0; t < args->batch->n_tokens; t++)
        d->kernels->rope_cache(args, t);
}

void cpu_gather(struct device *device, void *out, const void *x, const int *row, int n_rows,
                int dim)
{
    (void)device;
    size_t bytes = (size_t)dim * sizeof(float);
    for (int r = 0; r < n_rows; r++)
        memcpy((char *)out + (size_t)r * bytes, (const char *)x + (size_t)row[r] * bytes, bytes);
}

/* Chains of as many words as a unit has, which compilers make vectors of. */
void cpu_sum_words(struct device *device, uint32_t *sum, const void *memory, size_t bytes)
{
    enum { LANES = SUM_UNIT / sizeof(uint32_t) };
    const uint32_t *word = memory;
    size_t n_units = bytes / SUM_UNIT;
    uint32_t total = 0;
    assert(bytes % SUM_UNIT == 0);
#pragma omp parallel num_threads(device->info.n_threads) reduction(+ : total)
    {
        uint32_t lane[LANES] = {0};
#pragma omp for schedule(static) nowait
        for (size_t i = 0; i < n_units; i++)
            for (size_t j = 0; j < LANES; j++)
                lane[j] += word[i * LANES + j];
        for (size_t j = 0; j < LANES; j++)
            total += lane[j];
    }
    *sum = total;
}
