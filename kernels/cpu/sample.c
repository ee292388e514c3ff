/* sample.c - from a row of logits to a token (struct sample_row says how).
 *
 * Order the ids by (logit descending, id ascending): each of top-k, top-p and
 * min-p keeps a beginning of what it gets, top-p as a part of the probability
 * that top-k has left. Nothing is sorted. A pass over the vocabulary turns
 * logits into weights, relative to the largest. Top-k then collects the few ids
 * that can still be kept. Top-p alone may keep most of the vocabulary: passes
 * that only add up weights bracket the weight at which its beginning ends, and
 * the ids between the brackets are collected. Among collected ids the end is
 * found by counting weights by the leading bits of the logits (radix
 * selection), which three times narrows the place. The draw walks over what is
 * left in the order of the ids.
 *
 * Sums run over blocks of SAMPLE_BLOCK ids in the order of the ids, in double
 * precision.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"
#include "kernels/philox.h"

#include <assert.h>
#include <math.h>

/* Relative to the largest weight, what top-k first looks at: mostly this leaves k ids or more and
 * far fewer than the vocabulary; when it leaves fewer, the next floor is tried. */
static const float TOP_K_FLOORS[] = {0.3f, 0.03f, 3e-4f, 0};

/* Weights are at most 1. Those below 2^LEAST_EXPONENT of 152 thousand ids add up to less than 4e-5:
 * hardly ever does top-p end there. */
#define LEAST_EXPONENT (-32)
/* A pass that halves the bracket takes the time of selecting among some hundred ids. */
#define BRACKET_IDS   512
#define BRACKET_STEPS 14

#define RADIX_LEVELS 3
static const int RADIX_BITS[RADIX_LEVELS] = {11, 11, 10};
#define RADIX_MAX_BINS 2048

struct sampler {
    const struct cpu_kernels *kernels;
    const float *logits; /* [vocab]                                           */
    int vocab, best;     /* best: the id of the largest logit */
    float *weight;       /* [vocab] exp((logit - largest) / temperature)        */
    double *block_sum;   /* [CEIL_DIV(vocab, SAMPLE_BLOCK)] of weights          */
    double total;        /* of all weights                                      */
    int *id;             /* [n_ids] that can be drawn, ascending                */
    int n_ids;
};

/* Where a beginning ends: larger keys, and the first n_equal ids with this key,
 * are kept. */
struct cutoff {
    uint32_t key;
    int n_equal;
};

size_t cpu_sample_scratch_bytes(const struct step_limits *limits)
{
    size_t vocab = (size_t)limits->vocab;
    return CEIL_DIV(vocab, SAMPLE_BLOCK) * sizeof(double) + vocab * (sizeof(float) + sizeof(int));
}

/* Numbers in the order of the logits; a NaN comes last, both zeros are equal.
 */
static uint32_t sort_key(float logit)
{
    if (isnan(logit))
        return 0;
    uint32_t bits = f32_bits(logit + 0.0f);
    return bits ^ ((0u - (bits >> 31)) | 0x80000000u); /* no branch: signs are random */
}

/* The ids with floor <= weight < end. */
static void collect(struct sampler *s, float floor, float end)
{
    s->n_ids = s->kernels->sample_collect(s->id, s->weight, s->vocab, floor, end);
}

/* Weight of the i-th id, or one for each when ids are counted. */
static double measure(const struct sampler *s, int i, bool count)
{
    return count ? 1 : s->weight[s->id[i]];
}

/* Narrows the cutoff to one bin of the bits [shift, shift + bits); returns what
 * is still missing of the wanted sum when all larger keys are taken. */
static double narrow(const struct sampler *s, struct cutoff *cut, int shift, int bits,
                     double wanted, bool count)
{
    double sum[RADIX_MAX_BINS] = {0};
    uint64_t prefix = (uint64_t)cut->key >> (shift + bits);
    uint32_t mask = (1u << bits) - 1;
    for (int i = 0; i < s->n_ids; i++) {
        uint32_t key = sort_key(s->logits[s->id[i]]);
        if ((uint64_t)key >> (shift + bits) == prefix)
            sum[key >> shift & mask] += measure(s, i, count);
    }
    uint32_t bin = mask, last = 0;
    while (last < mask && sum[last] == 0)
        last++; /* where to stop should rounding leave the wanted sum out of reach
                 */
    while (bin > last && sum[bin] < wanted)
        wanted -= sum[bin--];
    cut->key |= bin << shift;
    return wanted;
}

/* The shortest beginning whose weights (or number, with `count`) reach the
 * wanted sum. */
static struct cutoff select_beginning(const struct sampler *s, double wanted, bool count)
{
    struct cutoff cut = {0, 0};
    int shift = 32;
    for (int level = 0; level < RADIX_LEVELS; level++) {
        shift -= RADIX_BITS[level];
        wanted = narrow(s, &cut, shift, RADIX_BITS[level], wanted, count);
    }
    for (int i = 0; i < s->n_ids && wanted > 0; i++) {
        if (sort_key(s->logits[s->id[i]]) == cut.key) {
            wanted -= measure(s, i, count);
            cut.n_equal++;
        }
    }
    return cut;
}

/* Whether the next id, of those in ascending order, is in the beginning. */
static bool is_kept(const struct sampler *s, int id, struct cutoff *cut)
{
    uint32_t key = sort_key(s->logits[id]);
    return key > cut->key || (key == cut->key && cut->n_equal-- > 0);
}

static void keep_beginning(struct sampler *s, struct cutoff cut)
{
    int n = 0;
    for (int i = 0; i < s->n_ids; i++) {
        if (is_kept(s, s->id[i], &cut))
            s->id[n++] = s->id[i];
    }
    s->n_ids = n;
}

static double sum_of_ids(const struct sampler *s)
{
    double sum = 0;
    for (int i = 0; i < s->n_ids; i++)
        sum += s->weight[s->id[i]];
    return sum;
}

/* Leaves in s->id what top-k, top-p and min-p keep. */
static void filter_ids(struct sampler *s, const struct sample_row *row)
{
    for (size_t i = 0; i < ARRAY_LEN(TOP_K_FLOORS) && s->n_ids < row->top_k; i++)
        collect(s, TOP_K_FLOORS[i], INFINITY);
    if (s->n_ids > row->top_k)
        keep_beginning(s, select_beginning(s, row->top_k, true));
    if (row->top_p < 1)
        keep_beginning(s, select_beginning(s, row->top_p * sum_of_ids(s), false));
    int n = 0;
    for (int i = 0; i < s->n_ids; i++) {
        if (s->weight[s->id[i]] >= row->min_p)
            s->id[n++] = s->id[i];
    }
    s->n_ids = n;
}

/* Weights between which a beginning ends. */
struct bracket {
    float low, high;
    double above; /* sum of the weights from `high` on: they are all kept */
};

static struct bracket find_bracket(const struct sampler *s, double wanted)
{
    struct bracket b = {0, INFINITY, 0};
    double bottom = LEAST_EXPONENT, top = 0, from_low = s->total;
    for (int i = 0; i < BRACKET_STEPS && from_low - b.above > BRACKET_IDS * (double)b.low; i++) {
        double middle = i == 0 ? bottom : (bottom + top) / 2;
        float floor = exp2f((float)middle);
        double sum = s->kernels->sample_sum(s->weight, s->vocab, floor);
        if (sum >= wanted) {
            b.low = floor;
            from_low = sum;
            bottom = middle;
        } else {
            b.high = floor;
            b.above = sum;
            top = middle;
        }
    }
    return b;
}

/* Leaves weights only to the ids that top-p and min-p keep, and sums them up anew. */
static void filter_weights(struct sampler *s, const struct sample_row *row)
{
    float floor = row->min_p;
    if (row->top_p < 1) {
        double wanted = row->top_p * s->total;
        struct bracket b = find_bracket(s, wanted);
        collect(s, b.low, b.high);
        struct cutoff cut = select_beginning(s, wanted - b.above, false);
        for (int i = 0; i < s->n_ids; i++) {
            if (!is_kept(s, s->id[i], &cut))
                s->weight[s->id[i]] = 0;
        }
        floor = fmaxf(floor, b.low);
    }
    s->total = s->kernels->sample_prune(s->weight, s->block_sum, s->vocab, floor);
}

/* Walks on through ids while their weights fit into *left; the one that does
 * not is drawn. What rounding leaves over falls to `drawn`, the last id before
 * that had a weight. */
static bool passes(const struct sampler *s, int id, double *left, int *drawn)
{
    if (s->weight[id] == 0)
        return false;
    *drawn = id;
    *left -= s->weight[id];
    return *left < 0;
}

/* The id of s->id at which the sum of weights passes u of its whole. */
static int draw_filtered(const struct sampler *s, double u)
{
    int drawn = s->best;
    double left = u * sum_of_ids(s);
    for (int i = 0; i < s->n_ids && !passes(s, s->id[i], &left, &drawn); i++)
        continue;
    return drawn;
}

/* The same over the whole vocabulary: finds the block, then the id in it. */
static int draw(const struct sampler *s, double u)
{
    int block = 0, drawn = s->best;
    double left = u * s->total;
    while (block < CEIL_DIV(s->vocab, SAMPLE_BLOCK) - 1 && left >= s->block_sum[block])
        left -= s->block_sum[block++];
    int end = MIN((block + 1) * SAMPLE_BLOCK, s->vocab);
    for (int i = block * SAMPLE_BLOCK; i < end && !passes(s, i, &left, &drawn); i++)
        continue;
    return drawn;
}

static int sample_one(const struct cpu_kernels *kernels, const struct sample_row *row,
                      const float *logits, int vocab, void *scratch)
{
    int best = kernels->argmax(logits, vocab), n_blocks = CEIL_DIV(vocab, SAMPLE_BLOCK);
    if (row->temperature <= 0)
        return best;
    struct sampler s = {.kernels = kernels, .logits = logits, .vocab = vocab, .best = best};
    s.block_sum = scratch;
    s.weight = (float *)(s.block_sum + n_blocks);
    s.id = (int *)(void *)(s.weight + vocab);
    kernels->sample_weights(s.weight, s.block_sum, logits, vocab, logits[best], row->temperature);
    for (int b = 0; b < n_blocks; b++)
        s.total += s.block_sum[b];
    double u = philox_uniform(row->seed, (uint32_t)row->index);
    if (row->top_k > 0) {
        filter_ids(&s, row);
        return draw_filtered(&s, u);
    }
    if (row->top_p < 1 || row->min_p > 0)
        filter_weights(&s, row);
    return draw(&s, u);
}

void cpu_sample(struct device *device, const struct sample_args *args)
{
    const struct cpu_device *d = cpu_device(device);
    struct step_limits limits = {.vocab = args->vocab};
    assert(cpu_sample_scratch_bytes(&limits) <= d->local_bytes);
#pragma omp parallel for schedule(dynamic) num_threads(cpu_threads(d, args->n_rows, args->vocab))
    for (int r = 0; r < args->n_rows; r++) {
        const float *logits = args->logits + (size_t)r * (size_t)args->vocab;
        if (args->row[r].lane < 0) /* padding */
            continue;
        args->sampled[args->row[r].lane] =
            sample_one(d->kernels, &args->row[r], logits, args->vocab, cpu_local_scratch(d));
    }
}
