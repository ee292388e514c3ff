/* attention_hopper_wide.cuh - the steps of a warp group of attention_hopper.cu whose output takes
 * half of the registers: head_dim 256.
 *
 * A step takes one tile of keys. Its scores, and those of the next while they are computed, are all
 * that there is room for beside the output. So the product with the next keys is started first, and
 * half of the exponentials and the change of the output's base are done under it; the maxima of the
 * next scores under the product with the values.
 *
 * Shared memory has room for a quarter of the output of earlier chunks. The rest waits in scratch
 * memory (the L2 cache), 48 KiB written and read per group and chunk after the first: that is a
 * seventh of the time.
 */
#ifndef QUIRE_CUDA_ATTENTION_HOPPER_WIDE_CUH
#define QUIRE_CUDA_ATTENTION_HOPPER_WIDE_CUH

#include "kernels/cuda/attention_hopper_groups.cuh"

#if PTX_WARP_GROUPS

/* Columns / 8 of a tile whose exponentials do not wait for the start of the next product: with 0 to
 * 8 of them there was nothing better (results/bench/h200-prefill.md). */
#define EARLY_STEPS 4

/* Parts of scratch memory that a lane asks for together, twice: it is 500 cycles away. */
#define FAR_BATCH 6

#define WIDE_GROUPS  2
#define WIDE_THREADS (WIDE_GROUPS * GROUP_THREADS)

/* ---- softmax -------------------------------------------------------------------------------- */

/* Exponents of columns 8 first to 8 end - 1 become numerators. */
template <int D>
static __device__ __forceinline__ void
wide_powers(struct group_rows<D> &r, struct slab_scores<D> &exponents, int first, int end)
{
#pragma unroll
    for (int n = first; n < end; n++)
        softmax_powers<2>(exponents.s[0][n], &r.chunk.state[0]);
}

/* The same numerators as the left operand of the product with the values. */
template <typename T, int D>
static __device__ __forceinline__ void
wide_pack(struct group_rows<D> &r, const struct slab_scores<D> &numerators, int first, int end)
{
    const float(*s)[4] = numerators.s[0];
#pragma unroll
    for (int n = first; n < end; n += 2)
        pack_numerators<T>(r.numerators[0][n / 2], s[n], s[n + 1]);
}

/* The softmax of a tile up to the first exponentials: the scores become exponents, then numerators.
 * Before them, the wait for the keys of the next tile. */
template <int D, int N_GROUPS>
static __device__ __forceinline__ void
wide_softmax(struct group_rows<D> &r, struct slab_scores<D> &scores,
             const struct group_work<D, N_GROUPS> *g, const struct group_task *t, bool has_keys)
{
    float base[2];
    softmax_top<2>(scores.s[0], &r.chunk.state[0], r.decay[0], base, g->p->scale_log2);
    group_wait_keys(g, t, has_keys);
#pragma unroll
    for (int n = 0; n < TILE_STEPS; n++)
        softmax_exponents<2>(scores.s[0][n], base, g->p->scale_log2);
    wide_powers(r, scores, 0, EARLY_STEPS);
}

/* ---- chunks --------------------------------------------------------------------------------- */

/* Which of the warps that compute this is: see thread_anew(). */
static __device__ __forceinline__ int wide_warp(void)
{
    return thread_anew() / 32 - GROUP_WARPS;
}

/* A thread's part of what waits in scratch memory: parts are WIDE_THREADS from one another. */
template <int D>
static __device__ __forceinline__ float4 *wide_far(const struct attention_params *p)
{
    return (float4 *)p->scratch + (size_t)blockIdx.x * far_tiles(D) * WIDE_THREADS +
           (thread_anew() - GROUP_THREADS);
}

static __device__ __forceinline__ void far_load(float4 parts[FAR_BATCH], const float4 *far)
{
#pragma unroll
    for (int n = 0; n < FAR_BATCH; n++)
        parts[n] = __ldcg(far + n * WIDE_THREADS);
}

/* FOLDS: folds what is parked of the chunks before into the output; PARKS: parks that. The warp
 * meets between the parts, across which the compiler moves no load: for all of them at once there
 * are no registers. */
template <bool FOLDS, bool PARKS, int D>
static __device__ __forceinline__ void near_fold(struct group_rows<D> &r, float4 *near,
                                                 const struct fold_weights *w)
{
#pragma unroll
    for (int n = 0; n < near_tiles(D); n++) {
        float *out = r.chunk.out[0][n];
        if (FOLDS)
            fold_tile(out, near[n * 32], w);
        if (PARKS)
            near[n * 32] = output_part(out);
        if (n % 2 == 1)
            __syncwarp();
    }
}

/* The same for what is in scratch memory. The next parts are asked for before some are used; the
 * first are on their way. */
template <bool FOLDS, bool PARKS, int D>
static __device__ __forceinline__ void far_fold(struct group_rows<D> &r, float4 *far,
                                                float4 parts[2][FAR_BATCH],
                                                const struct fold_weights *w)
{
#pragma unroll
    for (int first = 0; first < far_tiles(D); first += FAR_BATCH) {
        int at = first / FAR_BATCH % 2;
        if (FOLDS && first + FAR_BATCH < far_tiles(D))
            far_load(parts[at ^ 1], far + (first + FAR_BATCH) * WIDE_THREADS);
        __syncwarp();
#pragma unroll
        for (int n = 0; n < FAR_BATCH; n++) {
            float *out = r.chunk.out[0][near_tiles(D) + first + n];
            if (FOLDS)
                fold_tile(out, parts[at][n], w);
            if (PARKS)
                __stcg(far + (first + n) * WIDE_THREADS, output_part(out));
        }
        __syncwarp();
    }
}

/* Both. parts: from scratch memory, of which the first are on their way. */
template <bool FOLDS, bool PARKS, int D, int N_GROUPS>
static __device__ __forceinline__ void
wide_fold(struct group_rows<D> &r, const struct group_work<D, N_GROUPS> *g,
          const struct fold_weights *w, float4 parts[2][FAR_BATCH])
{
    near_fold<FOLDS, PARKS>(r, g->shared->staging[wide_warp()].parked + threadIdx.x % 32, w);
    far_fold<FOLDS, PARKS>(r, wide_far<D>(g->p), parts, w);
}

/* Ends a chunk, but for its output. The state of the chunks before waits in shared memory. */
template <int D, int N_GROUPS>
static __device__ __forceinline__ struct fold_weights
wide_end_state(struct group_rows<D> &r, const struct group_work<D, N_GROUPS> *g, bool folds)
{
    float4 *states = g->shared->staging[wide_warp()].parked + near_tiles(D) * 32;
    float4 *state = &states[threadIdx.x % 32 / 4];
    r.ahead = row_state_empty();
    if (folds)
        r.ahead = {{state->x, state->y}, {state->z, state->w}};
    struct fold_weights weights = group_end_chunk(r);
    __syncwarp(); /* the four threads of a row have read it */
    *state = make_float4(r.ahead.top[0], r.ahead.top[1], r.ahead.sum[0], r.ahead.sum[1]);
    __syncwarp();
    return weights;
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* A job's first tile up to its first exponentials. */
template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void
wide_begin(struct group_rows<D> &r, struct slab_scores<D> &scores,
           struct group_work<D, N_GROUPS> *g, const struct group_task *t)
{
    group_start_scores<T>(scores, g);
    r.chunk.state[0] = row_state_empty();
    group_end_scores<0>(scores, g, t);
    bool has_keys = ring_is_full(&g->k);
    group_mask<CAPPED>(scores, g->p, t);
    wide_softmax(r, scores, g, t, has_keys);
    wide_pack<T>(r, scores, 0, EARLY_STEPS);
}

/* The other exponentials of a tile, and the start of its product with the values. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void
wide_start_values(struct group_rows<D> &r, struct slab_scores<D> &exponents,
                  const struct group_work<D, N_GROUPS> *g, const struct group_task *t)
{
    bool has_values = ring_is_full(&g->v);
    /* At the start of a chunk without effect, for nothing is added to. */
    group_rescale(r, r.decay[0]);
    wide_powers(r, exponents, EARLY_STEPS, TILE_STEPS);
    wide_pack<T>(r, exponents, EARLY_STEPS, TILE_STEPS);
    ring_wait_unless(&g->v, has_values);
    group_start_slab<T>(r, g, t);
}

/* The rest of a tile, and the next up to its first exponentials. */
template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void
wide_step(struct group_rows<D> &r, struct slab_scores<D> &exponents,
          struct group_work<D, N_GROUPS> *g, struct group_task *t)
{
    struct slab_scores<D> next;
    struct fold_weights weights = {};
    group_start_scores<T>(next, g);
    wide_start_values<T>(r, exponents, g, t);
    t->slab++;
    group_end_scores<1>(next, g, t);
    bool has_keys = ring_is_full(&g->k);
    group_mask<CAPPED>(next, g->p, t);
    bool begins_chunk = t->slab % slabs_per_chunk(D) == 0;
    bool folds = begins_chunk && has_parked<D>(t->first, t->slab - 1);
    if (begins_chunk)
        weights = wide_end_state(r, g, folds);
    float4 parts[2][FAR_BATCH];
    if (folds)
        far_load(parts[0], wide_far<D>(g->p));
    __syncwarp();
    wide_softmax(r, next, g, t, has_keys);
    group_end_values<0>(r);
    ring_release<D>(&g->v);
    wide_pack<T>(r, next, 0, EARLY_STEPS); /* not before the product that has the last ones */
    if (folds)
        wide_fold<true, true>(r, g, &weights, parts);
    else if (begins_chunk)
        wide_fold<false, true>(r, g, &weights, parts);
    exponents = next;
}

/* The rest of a job's last tile, its output, and the wait for the next job. False: there is none.
 */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ bool
wide_end(struct group_rows<D> &r, struct slab_scores<D> &exponents,
         struct group_work<D, N_GROUPS> *g, struct group_task *t)
{
    int n_skipped = job_end_slab<D>(t->job) - t->end;
    bool folds = has_parked<D>(t->first, t->slab);
    wide_start_values<T>(r, exponents, g, t);
    float4 parts[2][FAR_BATCH];
    if (folds)
        far_load(parts[0], wide_far<D>(g->p));
    struct fold_weights weights = wide_end_state(r, g, folds);
    group_end_values<0>(r);
    ring_release<D>(&g->v);
    ring_skip<D>(&g->k, n_skipped);
    ring_skip<D>(&g->v, n_skipped);
    if (folds)
        wide_fold<true, false>(r, g, &weights, parts);
    group_store<T>(r, g, t, &g->shared->staging[wide_warp()], thread_anew() % 32);
    if (!group_take(g, t))
        return false;
    ring_skip<D>(&g->v, t->first - job_first_slab<D>(t->job));
    return true;
}

/* All jobs, the first of which is taken. */
template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void wide_run(struct group_work<D, N_GROUPS> *g,
                                                struct group_task *task)
{
    static_assert(N_GROUPS == WIDE_GROUPS, "the scratch memory is laid out for them");
    struct group_rows<D> rows;
    struct slab_scores<D> scores;
    do {
        wide_begin<T, CAPPED>(rows, scores, g, task);
        while (task->slab + 1 < task->end)
            wide_step<T, CAPPED>(rows, scores, g, task);
    } while (wide_end<T>(rows, scores, g, task));
}

#endif
#endif
