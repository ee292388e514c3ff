/* attention.c - cutting attention into pieces of work. */
#include "kernels/cpu/cpu.h"

#include <assert.h>

size_t cpu_attention_scratch_bytes(const struct step_limits *limits)
{
    return (size_t)limits->max_kv_len * sizeof(float); /* eager: the scores of one query head */
}

/* The sequence of a token of the batch. */
static int find_seq(const struct batch *b, int token)
{
    int low = 0, high = b->n_seqs - 1; /* the last s with q_start[s] <= token */
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (b->q_start[middle] <= token)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static void attention_eager(const struct cpu_device *d, const struct attention_args *args)
{
    int n_heads = args->shape.n_heads, n_rows = args->batch->n_tokens * n_heads;
    assert((size_t)args->batch->max_kv_len * sizeof(float) <= d->local_bytes);
#pragma omp parallel for schedule(dynamic, 8) num_threads(d->n_threads)
    for (int row = 0; row < n_rows; row++) {
        int token = row / n_heads, seq = find_seq(args->batch, token);
        d->kernels->attend_eager(args, seq, token, row % n_heads, cpu_local_scratch(d));
    }
}

void cpu_attention(struct device *device, const struct attention_args *args)
{
    assert(args->shape.head_dim <= MAX_HEAD_DIM);
    attention_eager(cpu_device(device), args);
}
