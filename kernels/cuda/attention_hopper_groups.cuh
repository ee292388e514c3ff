/* attention_hopper_groups.cuh - what the warp groups of attention_hopper.cu that compute have in
 * common: their jobs, products, softmax, chunks and output.
 */
#ifndef QUIRE_CUDA_ATTENTION_HOPPER_GROUPS_CUH
#define QUIRE_CUDA_ATTENTION_HOPPER_GROUPS_CUH

#include "kernels/cuda/attention_hopper_copies.cuh"

#if PTX_WARP_GROUPS

/* What a thread has of the rows of its group: row 16 warp + lane / 4 + 8 h. */
template <int D> struct group_rows {
    struct prefill_rows<D, 1> chunk; /* since the chunk began                                 */
    struct row_state ahead;          /* of the chunks before                                  */
    float decay[slab_tiles(D)][2];   /* of the output, before a tile's values are added       */
    uint32_t numerators[slab_tiles(D)][TILE_STEPS / 2][4]; /* rounded, of the slab that is next */
};

/* Its scores of a slab, then their numerators. Steps of pairs do not hand them on, so they are
 * apart: between these steps they need no registers. */
template <int D> struct slab_scores {
    float s[slab_tiles(D)][TILE_STEPS][4];
};

/* What a group has over all jobs. */
template <int D, int N_GROUPS> struct group_work {
    const struct attention_params *p;
    struct hopper_shared<D, N_GROUPS> *shared;
    int group, n_jobs;
    uint32_t q;                     /* its queries */
    union warp_staging<D> *staging; /* the warp's */
    struct ring_place k, v;
};

/* A job as a group sees it. */
struct group_task {
    const struct prefill_job *job; /* shared                                       */
    int stage;                     /* where it is                                  */
    int slab, first, end;          /* the one in work; those that the rows see     */
    int end_tile;                  /* of the tiles that they see                   */
    int position[2];               /* of the thread's rows                         */
    int warp_first, warp_last;     /* positions of the warp's first and last row   */
};

/* ---- jobs ----------------------------------------------------------------------------------- */

static __device__ __forceinline__ int group_warp(void)
{
    return threadIdx.x / 32 % GROUP_WARPS;
}

/* Passes over slabs that other groups need. */
template <int D> static __device__ __forceinline__ void ring_skip(struct ring_place *r, int n_slabs)
{
    for (int i = 0; i < n_slabs; i++) {
        ring_wait(r);
        ring_release<D>(r);
    }
}

/* What the group's rows see of a job. */
template <int D, int N_GROUPS>
static __device__ __forceinline__ void group_look(const struct group_work<D, N_GROUPS> *g,
                                                  struct group_task *t)
{
    const struct attention_params *p = g->p;
    int lane = threadIdx.x % 32, group_row = g->group * GROUP_ROWS;
    int warp_row = group_row + group_warp() * 16;
    int first = prefill_position(p, t->job, group_row);
    int last = prefill_position(p, t->job, group_row + GROUP_ROWS - 1);
    t->first = max(0, first + 1 - p->window) / slab_keys(D);
    t->end_tile = max(0, last) / ATTENTION_TILE + 1;
    t->end = CEIL_DIV(t->end_tile, slab_tiles(D));
    t->slab = t->first;
    t->warp_first = prefill_position(p, t->job, warp_row);
    t->warp_last = prefill_position(p, t->job, warp_row + 15);
    t->position[0] = prefill_position(p, t->job, warp_row + lane / 4);
    t->position[1] = prefill_position(p, t->job, warp_row + lane / 4 + 8);
}

/* Waits for the next job, its queries and its first keys. False: there is none. */
template <int D, int N_GROUPS>
static __device__ __forceinline__ bool group_take(struct group_work<D, N_GROUPS> *g,
                                                  struct group_task *t)
{
    int i = g->n_jobs++;
    t->stage = i % JOB_STAGES;
    t->job = &g->shared->job[t->stage];
    copy_barrier_wait_together(shared_address(&g->shared->job_barriers.full[t->stage]),
                               i / JOB_STAGES % 2);
    if (t->job->n_rows == 0)
        return false;
    group_look(g, t);
    copy_barrier_wait_together(shared_address(&g->shared->q_barriers.full[g->group]), i % 2);
    copy_box_fence(); /* rows that were copied one by one */
    ring_skip<D>(&g->k, t->first - job_first_slab<D>(t->job));
    ring_wait(&g->k);
    return true;
}

/* ---- products ------------------------------------------------------------------------------- */

/* scores = q k^T for 16 columns, group_operand(); ADD: scores += q k^T. */
template <bool ADD, typename T, int D>
static __device__ __forceinline__ void multiply_keys(struct slab_scores<D> &scores, uint64_t q,
                                                     uint64_t k)
{
    if constexpr (slab_tiles(D) == 2)
        multiply_keys_128<ADD>((float(*)[4])scores.s, q, k, T());
    else /* the lower words are the addresses / 16 */
        multiply_tiles_64<ADD>(scores.s[0], (uint32_t)q, (uint32_t)k, T());
}

/* Starts s = q k^T for the next slab of keys, which are there. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void group_start_scores(struct slab_scores<D> &scores,
                                                          const struct group_work<D, N_GROUPS> *g)
{
    uint64_t q = group_operand(g->q, PATTERN_BYTES, 0);
    uint64_t k = group_operand(ring_slab<D>(&g->k), PATTERN_BYTES, 0);
    group_multiply_begin();
    multiply_keys<false, T>(scores, q, k);
#pragma unroll
    for (int i = 1; i < D / 16; i++)
        multiply_keys<true, T>(scores, q + ((i / 4 * Q_PANEL_BYTES + i % 4 * 32) >> 4),
                               k + ((i / 4 * slab_panel_bytes(D) + i % 4 * 32) >> 4));
    group_multiply_commit();
}

/* Starts out += numerators v for a tile of the next slab of values, which are there; without `add`,
 * out = numerators v. */
template <typename T, int TILE, int D, int N_GROUPS>
static __device__ __forceinline__ void
group_start_values(struct group_rows<D> &r, const struct group_work<D, N_GROUPS> *g, bool add)
{
    uint64_t v = group_operand(ring_slab<D>(&g->v) + TILE * TILE_PANEL_BYTES, PATTERN_BYTES,
                               slab_panel_bytes(D));
    group_multiply_begin();
#pragma unroll
    for (int i = 0; i < ATTENTION_TILE / 16; i++, v += 2 * PATTERN_BYTES >> 4) {
        if constexpr (D == 256)
            multiply_values_256(r.chunk.out[0], r.numerators[TILE][i], v, i > 0 || add, T());
        else if constexpr (D == 128)
            multiply_values_128(r.chunk.out[0], r.numerators[TILE][i], v, i > 0 || add, T());
        else
            multiply_values_64(r.chunk.out[0], r.numerators[TILE][i], v, i > 0 || add, T());
    }
    group_multiply_commit();
}

/* Starts those of a slab's first tile; out has nothing of a chunk before its first slab. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void group_start_slab(struct group_rows<D> &r,
                                                        const struct group_work<D, N_GROUPS> *g,
                                                        const struct group_task *t)
{
    group_start_values<T, 0>(r, g, t->slab > t->first && t->slab % slabs_per_chunk(D) != 0);
}

/* Waits until at most n_pending products after that with the values are incomplete. */
template <int n_pending, int D>
static __device__ __forceinline__ void group_end_values(struct group_rows<D> &r)
{
    group_multiply_wait<n_pending>();
    group_multiply_end<D / 8>(r.chunk.out[0]);
}

/* The same for the scores, which leaves the place of the keys to others, and after the last of the
 * job that of the queries. */
template <int n_pending, int D, int N_GROUPS>
static __device__ __forceinline__ void group_end_scores(struct slab_scores<D> &scores,
                                                        struct group_work<D, N_GROUPS> *g,
                                                        const struct group_task *t)
{
    group_multiply_wait<n_pending>();
    group_multiply_end<slab_tiles(D) * TILE_STEPS>((float(*)[4])scores.s);
    ring_release<D>(&g->k);
    if (t->slab + 1 == t->end)
        warp_release(shared_address(&g->shared->q_barriers.empty[g->group]));
}

/* ---- softmax -------------------------------------------------------------------------------- */

/* Caps the scores of a slab, and masks them where they have to be. */
template <bool CAPPED, int D>
static __device__ __forceinline__ void group_mask(struct slab_scores<D> &scores,
                                                  const struct attention_params *p,
                                                  const struct group_task *t)
{
    int first_key = t->slab * slab_keys(D), column = threadIdx.x % 4 * 2;
    if (CAPPED)
        cap_scores<slab_tiles(D) * TILE_STEPS>((float(*)[4])scores.s, p->slope);
    if (first_key + slab_keys(D) - 1 <= t->warp_first && first_key > t->warp_last - p->window)
        return;
#pragma unroll
    for (int i = 0; i < slab_tiles(D); i++)
        mask_tile(scores.s[i], first_key + i * ATTENTION_TILE + column, t->position[0],
                  t->position[1], p->window);
}

/* Without a question: one of 16 rows has a larger score in most tiles. */
template <int D>
static __device__ __forceinline__ void group_rescale(struct group_rows<D> &r, const float decay[2])
{
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            r.chunk.out[0][n][e] = __fmul_rn(r.chunk.out[0][n][e], decay[e / 2]);
    }
}

/* ---- chunks --------------------------------------------------------------------------------- */

/* Ends a chunk, but for its output: `ahead` becomes its state too, and the next starts from none.
 */
template <int D>
static __device__ __forceinline__ struct fold_weights group_end_chunk(struct group_rows<D> &r)
{
    struct row_state *chunk = &r.chunk.state[0];
    row_sums(chunk);
    struct fold_weights weights = fold_states(&r.ahead, chunk);
    *chunk = row_state_empty();
    return weights;
}

/* Folds a parked part into a tile of the output. */
static __device__ __forceinline__ void fold_tile(float out[4], float4 parked,
                                                 const struct fold_weights *w)
{
    float ahead[4] = {parked.x, parked.y, parked.z, parked.w};
#pragma unroll
    for (int e = 0; e < 4; e++)
        out[e] = fold(ahead[e], w->ahead[e / 2], out[e], w->chunk[e / 2]);
}

static __device__ __forceinline__ float4 output_part(const float out[4])
{
    return make_float4(out[0], out[1], out[2], out[3]);
}

/* Whether chunks of the job came before that of a slab. */
template <int D> static __device__ __forceinline__ bool has_parked(int first_slab, int slab)
{
    return slab / slabs_per_chunk(D) != first_slab / slabs_per_chunk(D);
}

/* ---- between steps -------------------------------------------------------------------------- */

/* Waits for the keys after the slab in work, unless they were there when asked for. */
template <int D, int N_GROUPS>
static __device__ __forceinline__ void group_wait_keys(const struct group_work<D, N_GROUPS> *g,
                                                       const struct group_task *t, bool are_there)
{
    if (t->slab + 1 < t->end)
        ring_wait_unless(&g->k, are_there);
}

/* Writes the rows of a job, which is not needed any more then. staging: the warp's. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void
group_store(struct group_rows<D> &r, struct group_work<D, N_GROUPS> *g, const struct group_task *t,
            union warp_staging<D> *staging, int lane)
{
    struct prefill_job job = *t->job;
    job.warp_row = g->group * GROUP_ROWS + group_warp() * 16;
    r.chunk.state[0] = r.ahead;
    __syncwarp(); /* what the warp parked has been read */
    prefill_store<staged_columns(D)>(r.chunk, (T *)staging->rows, g->p, &job, lane);
    __syncwarp();
    warp_release(shared_address(&g->shared->job_barriers.empty[t->stage]));
}

#endif
#endif
