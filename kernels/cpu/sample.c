/* sample.c - from a row of logits to a token (struct sample_row says how).
 *
 * The kept set is a prefix of the ids ordered by (logit descending, id ascending), because each of
 * top-k, top-p and min-p keeps a prefix of what it gets. The draw walks the kept ids upwards, so
 * that nothing is sorted when everything is kept.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/philox.h"

#include <stdlib.h>

size_t cpu_sample_scratch_bytes(const struct step_limits *limits)
{
    return (size_t)limits->vocab * 16;
}

struct candidate {
    float weight;
    int id;
};

static int compare_candidates(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->id - y->id;
}

/* Sets the weights of what is not kept to zero. */
static void filter(float *weight, const struct sample_row *row, int vocab, struct candidate *sorted)
{
    for (int i = 0; i < vocab; i++)
        sorted[i] = (struct candidate){weight[i], i};
    qsort(sorted, (size_t)vocab, sizeof(*sorted), compare_candidates);
    int n = row->top_k > 0 ? MIN(row->top_k, vocab) : vocab, m = 0;
    double total = 0, kept = 0;
    for (int i = 0; i < n; i++)
        total += sorted[i].weight;
    while (m < n && (m == 0 || (kept < row->top_p * total && sorted[m].weight >= row->min_p)))
        kept += sorted[m++].weight;
    for (int i = m; i < vocab; i++)
        weight[sorted[i].id] = 0;
}

/* The id at which the running sum of the weights exceeds a uniform draw from the whole. */
static int draw(const float *weight, int vocab, const struct sample_row *row, int best)
{
    double total = 0, sum = 0;
    for (int i = 0; i < vocab; i++)
        total += weight[i];
    double target = philox_uniform(row->seed, (uint32_t)row->index) * total;
    for (int i = 0; i < vocab; i++) {
        sum += weight[i];
        if (sum > target)
            return i;
    }
    return best;
}

static int sample_one(const struct cpu_kernels *kernels, const struct sample_row *row,
                      const float *logits, int vocab, char *scratch)
{
    int best = kernels->argmax(logits, vocab);
    if (row->temperature <= 0)
        return best;
    float *weight = (float *)(void *)scratch;
    struct candidate *sorted = (struct candidate *)(void *)(scratch + (size_t)vocab * 8);
    kernels->softmax_weights(weight, logits, vocab, logits[best], row->temperature);
    bool keeps_all = (row->top_k <= 0 || row->top_k >= vocab) && row->top_p >= 1 && row->min_p <= 0;
    if (!keeps_all)
        filter(weight, row, vocab, sorted);
    return draw(weight, vocab, row, best);
}

void cpu_sample(struct device *device, const struct sample_args *args)
{
    const struct cpu_device *d = cpu_device(device);
#pragma omp parallel for schedule(dynamic) num_threads(d->n_threads)
    for (int r = 0; r < args->n_rows; r++) {
        const float *logits = args->logits + (size_t)r * (size_t)args->vocab;
        if (args->row[r].lane < 0) /* padding */
            continue;
        args->sampled[args->row[r].lane] =
            sample_one(d->kernels, &args->row[r], logits, args->vocab, cpu_local_scratch(d));
    }
}
