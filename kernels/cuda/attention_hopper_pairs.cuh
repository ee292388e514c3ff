/* attention_hopper_pairs.cuh - the steps of a warp group of attention_hopper.cu that takes two
 * tiles of keys in each: head_dim 64 and 128.
 *
 * 128 scores of a row are one product, and the two softmax steps of 64 that the bits demand
 * (attention.cuh) are done in registers. The product with the next keys runs between those with the
 * values of the two tiles, under the change of the output's base, and across the end of a job.
 */
#ifndef QUIRE_CUDA_ATTENTION_HOPPER_PAIRS_CUH
#define QUIRE_CUDA_ATTENTION_HOPPER_PAIRS_CUH

#include "kernels/cuda/attention_hopper_groups.cuh"

#if PTX_WARP_GROUPS

/* ---- softmax -------------------------------------------------------------------------------- */

/* Takes the largest scores of a slab into the state. base: what the numerators of each tile are
 * relative to. The sums come to the base of the first. */
template <int D>
static __device__ __forceinline__ void pair_tops(struct group_rows<D> &r,
                                                 const struct slab_scores<D> &scores,
                                                 float base[2][2], float scale_log2)
{
    struct row_state *state = &r.chunk.state[0], next;
    softmax_top<2>(scores.s[0], state, r.decay[0], base[0], scale_log2);
    next = *state;
    softmax_top<2>(scores.s[1], &next, r.decay[1], base[1], scale_log2);
    state->top[0] = next.top[0];
    state->top[1] = next.top[1];
}

/* Scores become numerators, and go into the sums. */
template <typename T, int D>
static __device__ __forceinline__ void pair_numerators(struct group_rows<D> &r,
                                                       struct slab_scores<D> &scores,
                                                       const float base[2][2], float scale_log2)
{
    struct row_state *state = &r.chunk.state[0];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float(*s)[4] = scores.s[i];
#pragma unroll
        for (int h = 0; h < 2 && i > 0; h++)
            state->sum[h] = __fmul_rn(state->sum[h], r.decay[i][h]);
#pragma unroll
        for (int n = 0; n < TILE_STEPS; n++)
            softmax_numerators<2>(s[n], state, base[i], scale_log2);
#pragma unroll
        for (int n = 0; n < TILE_STEPS / 2; n++)
            pack_numerators<T>(r.numerators[i][n], s[2 * n], s[2 * n + 1]);
    }
}

/* ---- chunks --------------------------------------------------------------------------------- */

/* Folds what is parked of the chunks before into the output. */
template <int D>
static __device__ __forceinline__ void pair_fold(struct group_rows<D> &r, const float4 *parked,
                                                 const struct fold_weights *w)
{
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        fold_tile(r.chunk.out[0][n], parked[n * 32 + threadIdx.x % 32], w);
}

/* Leaves the output for the fold at the end of the next chunk. */
template <int D>
static __device__ __forceinline__ void pair_park(const struct group_rows<D> &r, float4 *parked)
{
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        parked[n * 32 + threadIdx.x % 32] = output_part(r.chunk.out[0][n]);
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* The softmax of a job's first slab, whose scores have been started. */
template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void
pair_begin(struct group_rows<D> &r, struct slab_scores<D> &scores,
           struct group_work<D, N_GROUPS> *g, const struct group_task *t)
{
    float base[slab_tiles(D)][2];
    r.chunk.state[0] = r.ahead = row_state_empty();
    group_end_scores<0>(scores, g, t);
    bool keys_are_there = ring_is_full(&g->k), values_are_there = ring_is_full(&g->v);
    group_mask<CAPPED>(scores, g->p, t);
    pair_tops(r, scores, base, g->p->scale_log2);
    group_wait_keys(g, t, keys_are_there);
    pair_numerators<T>(r, scores, base, g->p->scale_log2);
    ring_wait_unless(&g->v, values_are_there);
}

/* The values of a slab, which are there as the next keys are, and the scores and softmax of the
 * next. */
template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void
pair_step(struct group_rows<D> &r, struct group_work<D, N_GROUPS> *g, struct group_task *t)
{
    struct slab_scores<D> scores;
    float base[slab_tiles(D)][2];
    struct fold_weights weights = {};
    group_start_slab<T>(r, g, t);
    group_start_scores<T>(scores, g);
    group_end_values<1>(r);
    group_rescale(r, r.decay[1]);
    group_start_values<T, 1>(r, g, true);
    t->slab++;
    group_end_scores<1>(scores, g, t);
    bool keys_are_there = ring_is_full(&g->k);
    group_mask<CAPPED>(scores, g->p, t);
    bool begins_chunk = t->slab % slabs_per_chunk(D) == 0;
    if (begins_chunk)
        weights = group_end_chunk(r);
    pair_tops(r, scores, base, g->p->scale_log2);
    /* Here, so that the compiler does not move the next wait in front of the maxima. */
    group_wait_keys(g, t, keys_are_there);
    group_end_values<0>(r);
    ring_release<D>(&g->v);
    bool values_are_there = ring_is_full(&g->v);
    if (begins_chunk) {
        if (has_parked<D>(t->first, t->slab - 1))
            pair_fold(r, g->staging->parked, &weights);
        pair_park(r, g->staging->parked);
    }
    /* Beside the exponentials; at the start of a chunk without effect, for nothing is added to. */
    group_rescale(r, r.decay[0]);
    pair_numerators<T>(r, scores, base, g->p->scale_log2);
    ring_wait_unless(&g->v, values_are_there);
}

/* The values of a job's last slab, of which its rows may see one tile. Under them, what the next
 * job is and its first scores; then the output of this one. False: there is no next. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ bool
pair_end(struct group_rows<D> &r, struct slab_scores<D> &scores, struct group_work<D, N_GROUPS> *g,
         struct group_task *t)
{
    struct group_task done = *t;
    int n_skipped = job_end_slab<D>(t->job) - t->end;
    group_start_slab<T>(r, g, t);
    struct fold_weights weights = group_end_chunk(r);
    ring_skip<D>(&g->k, n_skipped);
    bool more = group_take(g, t);
    if (more) {
        group_start_scores<T>(scores, g);
        n_skipped += t->first - job_first_slab<D>(t->job);
        group_end_values<1>(r);
    } else {
        scores = {}; /* otherwise those of the job before would stay in registers until here */
        group_end_values<0>(r);
    }
    if (done.slab * slab_tiles(D) + 1 < done.end_tile) {
        group_rescale(r, r.decay[1]);
        group_start_values<T, 1>(r, g, true);
    }
    group_end_values<0>(r);
    ring_release<D>(&g->v);
    ring_skip<D>(&g->v, n_skipped);
    if (has_parked<D>(done.first, done.slab))
        pair_fold(r, g->staging->parked, &weights);
    group_store<T>(r, g, &done, g->staging, threadIdx.x % 32);
    return more;
}

/* All jobs, the first of which is taken. */
template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void pair_run(struct group_work<D, N_GROUPS> *g,
                                                struct group_task *task)
{
    struct group_rows<D> rows;
    struct slab_scores<D> scores;
    group_start_scores<T>(scores, g);
    do {
        pair_begin<T, CAPPED>(rows, scores, g, task);
        while (task->slab + 1 < task->end)
            pair_step<T, CAPPED>(rows, g, task);
    } while (pair_end<T>(rows, scores, g, task));
}

#endif
#endif
