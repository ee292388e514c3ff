/* attention_hopper.cu - attention of the sequences that bring several tokens, for compute
 * capability 9.0.
 *
 *   out[t, h] = softmax(scale q[t, h] K^T + mask) V
 *
 * Jobs are those of attention_prefill.cuh. A block of threads is one warp group that fetches
 * (attention_hopper_copies.cuh) and N_GROUPS that compute. Each of these has 64 query rows, whose
 * output stays in registers, and takes the keys in pairs of tiles: 128 scores of a row are one
 * product, and the two softmax steps of 64 that the bits demand (attention.cuh) are done in
 * registers. The product with the next keys runs between those with the values of the two tiles,
 * under the change of the output's base, and across the end of a job. Whether keys and values are
 * there is asked well before they are needed.
 *
 * Nothing but the rings of keys and values holds the groups together, so one does its softmax while
 * the products of another run. At the end of a chunk the output so far waits in shared memory.
 *
 * 4 n_rows n_keys head_dim operations, half of it with the causal mask; bytes do not matter.
 *
 * On an H200 a pair takes two groups 2,900 cycles, of which their products are 2,048
 * (results/bench/h200-prefill.md).
 */
#include "kernels/cuda/attention_hopper_copies.cuh"

#if PTX_WARP_GROUPS

/* What a thread has of the rows of its group: row 16 warp + lane / 4 + 8 h. */
template <int D> struct group_rows {
    struct prefill_rows<D, 1> chunk; /* since the chunk began                                 */
    struct row_state ahead;          /* of the chunks before                                  */
    float decay[PAIR_TILES][2];      /* of the output, before a tile's values are added       */
    uint32_t numerators[PAIR_TILES][TILE_STEPS / 2][4]; /* rounded, of the pair that is next     */
};

/* Its scores of a pair, then their numerators. No step hands them to the next, so they are apart
 * from what it does: between steps they need no registers. */
struct pair_scores {
    float s[PAIR_TILES][TILE_STEPS][4];
};

/* What a group has over all jobs. */
template <int D, int N_GROUPS> struct group_work {
    const struct attention_params *p;
    struct hopper_shared<D, N_GROUPS> *shared;
    int group, n_jobs;
    uint32_t q;     /* its queries                                          */
    float4 *parked; /* [D / 8][32] of the warp: output of the chunks before */
    struct ring_place k, v;
};

/* A job as a group sees it. */
struct group_task {
    const struct prefill_job *job; /* shared                                       */
    int stage;                     /* where it is                                  */
    int pair, first, end;          /* the one in work; those that the rows see     */
    int end_tile;                  /* of the tiles that they see                   */
    int position[2];               /* of the thread's rows                         */
    int warp_first, warp_last;     /* positions of the warp's first and last row   */
};

/* ---- jobs ----------------------------------------------------------------------------------- */

static __device__ __forceinline__ int group_warp(void)
{
    return threadIdx.x / 32 % GROUP_WARPS;
}

/* Passes over pairs that other groups need. */
template <int D> static __device__ __forceinline__ void ring_skip(struct ring_place *r, int n_pairs)
{
    for (int i = 0; i < n_pairs; i++) {
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
    t->first = max(0, first + 1 - p->window) / PAIR_KEYS;
    t->end_tile = max(0, last) / ATTENTION_TILE + 1;
    t->end = CEIL_DIV(t->end_tile, PAIR_TILES);
    t->pair = t->first;
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
    ring_skip<D>(&g->k, t->first - job_first_pair(t->job));
    ring_wait(&g->k);
    return true;
}

/* ---- products ------------------------------------------------------------------------------- */

/* Starts s = q k^T for the next pair of keys, which are there. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void group_start_scores(struct pair_scores &scores,
                                                          const struct group_work<D, N_GROUPS> *g)
{
    uint64_t q = group_operand(g->q, PATTERN_BYTES, 0);
    uint64_t k = group_operand(ring_pair<D>(&g->k), PATTERN_BYTES, 0);
    auto s = (float(*)[4])scores.s;
    group_multiply_begin();
    multiply_keys_128<false>(s, q, k, T());
#pragma unroll
    for (int i = 1; i < D / 16; i++)
        multiply_keys_128<true>(s, q + ((i / 4 * Q_PANEL_BYTES + i % 4 * 32) >> 4),
                                k + ((i / 4 * PAIR_PANEL_BYTES + i % 4 * 32) >> 4), T());
    group_multiply_commit();
}

/* Starts out += numerators v for a tile of the next pair of values, which are there; without `add`,
 * out = numerators v. */
template <typename T, int TILE, int D, int N_GROUPS>
static __device__ __forceinline__ void
group_start_values(struct group_rows<D> &r, const struct group_work<D, N_GROUPS> *g, bool add)
{
    uint64_t v = group_operand(ring_pair<D>(&g->v) + TILE * TILE_PANEL_BYTES, PATTERN_BYTES,
                               PAIR_PANEL_BYTES);
    group_multiply_begin();
#pragma unroll
    for (int i = 0; i < ATTENTION_TILE / 16; i++, v += 2 * PATTERN_BYTES >> 4) {
        if constexpr (D == 128)
            multiply_values_128(r.chunk.out[0], r.numerators[TILE][i], v, i > 0 || add, T());
        else
            multiply_values_64(r.chunk.out[0], r.numerators[TILE][i], v, i > 0 || add, T());
    }
    group_multiply_commit();
}

/* Starts those of a pair's first tile; out has nothing of a chunk before its first pair. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void group_start_pair(struct group_rows<D> &r,
                                                        const struct group_work<D, N_GROUPS> *g,
                                                        const struct group_task *t)
{
    group_start_values<T, 0>(r, g, t->pair > t->first && t->pair % PAIRS_PER_CHUNK != 0);
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
static __device__ __forceinline__ void group_end_scores(struct pair_scores &scores,
                                                        struct group_work<D, N_GROUPS> *g,
                                                        const struct group_task *t)
{
    group_multiply_wait<n_pending>();
    group_multiply_end<PAIR_TILES * TILE_STEPS>((float(*)[4])scores.s);
    ring_release<D>(&g->k);
    if (t->pair + 1 == t->end)
        warp_release(shared_address(&g->shared->q_barriers.empty[g->group]));
}

/* ---- softmax -------------------------------------------------------------------------------- */

/* Caps the scores of a pair, and masks them where they have to be. */
template <bool CAPPED>
static __device__ __forceinline__ void
group_mask(struct pair_scores &scores, const struct attention_params *p, const struct group_task *t)
{
    int first_key = t->pair * PAIR_KEYS, column = threadIdx.x % 4 * 2;
    if (CAPPED)
        cap_scores<PAIR_TILES * TILE_STEPS>((float(*)[4])scores.s, p->slope);
    if (first_key + PAIR_KEYS - 1 <= t->warp_first && first_key > t->warp_last - p->window)
        return;
#pragma unroll
    for (int i = 0; i < PAIR_TILES; i++)
        mask_tile(scores.s[i], first_key + i * ATTENTION_TILE + column, t->position[0],
                  t->position[1], p->window);
}

/* Takes the largest scores of a pair into the state. base: what the numerators of each tile are
 * relative to. The sums come to the base of the first. */
template <int D>
static __device__ __forceinline__ void group_tops(struct group_rows<D> &r,
                                                  const struct pair_scores &scores,
                                                  float base[PAIR_TILES][2], float scale_log2)
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
static __device__ __forceinline__ void
group_numerators(struct group_rows<D> &r, struct pair_scores &scores,
                 const float base[PAIR_TILES][2], float scale_log2)
{
    struct row_state *state = &r.chunk.state[0];
#pragma unroll
    for (int i = 0; i < PAIR_TILES; i++) {
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

/* Folds what is parked of the chunks before that of a pair, of which the first of a task has none,
 * into the output. */
template <int D>
static __device__ __forceinline__ void group_fold(struct group_rows<D> &r, const float4 *from,
                                                  const struct fold_weights *w, int first_pair,
                                                  int pair)
{
    if (pair / PAIRS_PER_CHUNK == first_pair / PAIRS_PER_CHUNK)
        return;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        float4 parked = from[n * 32 + threadIdx.x % 32];
        float ahead[4] = {parked.x, parked.y, parked.z, parked.w}, *out = r.chunk.out[0][n];
#pragma unroll
        for (int e = 0; e < 4; e++)
            out[e] = fold(ahead[e], w->ahead[e / 2], out[e], w->chunk[e / 2]);
    }
}

/* Leaves the output for the fold at the end of the next chunk. */
template <int D>
static __device__ __forceinline__ void group_park(const struct group_rows<D> &r, float4 *to)
{
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        const float *out = r.chunk.out[0][n];
        to[n * 32 + threadIdx.x % 32] = make_float4(out[0], out[1], out[2], out[3]);
    }
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* Waits for the keys after the pair in work, unless they were there when asked for. */
template <int D, int N_GROUPS>
static __device__ __forceinline__ void group_wait_keys(const struct group_work<D, N_GROUPS> *g,
                                                       const struct group_task *t, bool are_there)
{
    if (t->pair + 1 < t->end)
        ring_wait_unless(&g->k, are_there);
}

/* The softmax of a job's first pair, whose scores have been started. */
template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void
group_begin(struct group_rows<D> &r, struct pair_scores &scores, struct group_work<D, N_GROUPS> *g,
            const struct group_task *t)
{
    float base[PAIR_TILES][2];
    r.chunk.state[0] = r.ahead = row_state_empty();
    group_end_scores<0>(scores, g, t);
    bool keys_are_there = ring_is_full(&g->k), values_are_there = ring_is_full(&g->v);
    group_mask<CAPPED>(scores, g->p, t);
    group_tops(r, scores, base, g->p->scale_log2);
    group_wait_keys(g, t, keys_are_there);
    group_numerators<T>(r, scores, base, g->p->scale_log2);
    ring_wait_unless(&g->v, values_are_there);
}

/* The values of a pair, which are there as the next keys are, and the scores and softmax of the
 * next. */
template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void
group_step(struct group_rows<D> &r, struct group_work<D, N_GROUPS> *g, struct group_task *t)
{
    struct pair_scores scores;
    float base[PAIR_TILES][2];
    struct fold_weights weights = {};
    group_start_pair<T>(r, g, t);
    group_start_scores<T>(scores, g);
    group_end_values<1>(r);
    group_rescale(r, r.decay[1]);
    group_start_values<T, 1>(r, g, true);
    t->pair++;
    group_end_scores<1>(scores, g, t);
    bool keys_are_there = ring_is_full(&g->k);
    group_mask<CAPPED>(scores, g->p, t);
    bool begins_chunk = t->pair % PAIRS_PER_CHUNK == 0;
    if (begins_chunk)
        weights = group_end_chunk(r);
    group_tops(r, scores, base, g->p->scale_log2);
    /* Here, so that the compiler does not move the next wait in front of the maxima. */
    group_wait_keys(g, t, keys_are_there);
    group_end_values<0>(r);
    ring_release<D>(&g->v);
    bool values_are_there = ring_is_full(&g->v);
    if (begins_chunk) {
        group_fold(r, g->parked, &weights, t->first, t->pair - 1);
        group_park(r, g->parked);
    }
    /* Beside the exponentials; at the start of a chunk without effect, for nothing is added to. */
    group_rescale(r, r.decay[0]);
    group_numerators<T>(r, scores, base, g->p->scale_log2);
    ring_wait_unless(&g->v, values_are_there);
}

/* Writes the rows of a job, which is not needed any more then. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void
group_store(struct group_rows<D> &r, struct group_work<D, N_GROUPS> *g, const struct group_task *t)
{
    struct prefill_job job = *t->job;
    job.warp_row = g->group * GROUP_ROWS + group_warp() * 16;
    r.chunk.state[0] = r.ahead;
    __syncwarp(); /* what the warp parked has been read */
    prefill_store(r.chunk, (T *)g->parked, g->p, &job);
    __syncwarp();
    warp_release(shared_address(&g->shared->job_barriers.empty[t->stage]));
}

/* The values of a job's last pair, of which its rows may see one tile. Under them, what the next
 * job is and its first scores; then the output of this one. False: there is no next. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ bool
group_end(struct group_rows<D> &r, struct pair_scores &scores, struct group_work<D, N_GROUPS> *g,
          struct group_task *t)
{
    struct group_task done = *t;
    int n_skipped = job_end_pair(t->job) - t->end;
    group_start_pair<T>(r, g, t);
    struct fold_weights weights = group_end_chunk(r);
    ring_skip<D>(&g->k, n_skipped);
    bool more = group_take(g, t);
    if (more) {
        group_start_scores<T>(scores, g);
        n_skipped += t->first - job_first_pair(t->job);
        group_end_values<1>(r);
    } else {
        scores = {}; /* otherwise those of the job before would stay in registers until here */
        group_end_values<0>(r);
    }
    if (done.pair * PAIR_TILES + 1 < done.end_tile) {
        group_rescale(r, r.decay[1]);
        group_start_values<T, 1>(r, g, true);
    }
    group_end_values<0>(r);
    ring_release<D>(&g->v);
    ring_skip<D>(&g->v, n_skipped);
    group_fold(r, g->parked, &weights, done.first, done.pair);
    group_store<T>(r, g, &done);
    return more;
}

template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void
run_rows(const struct attention_params *p, struct hopper_shared<D, N_GROUPS> *shared, int group)
{
    struct group_work<D, N_GROUPS> g = {
        p, shared, group
    };
    struct group_rows<D> rows;
    struct group_task task;
    g.q = shared_address(shared->q[group]);
    g.parked = shared->parked[group * GROUP_WARPS + group_warp()];
    g.k = ring_start(&shared->k, &shared->k_barriers);
    g.v = ring_start(&shared->v, &shared->v_barriers);
    if (!group_take(&g, &task))
        return;
    ring_skip<D>(&g.v, task.first - job_first_pair(task.job));
    struct pair_scores scores;
    group_start_scores<T>(scores, &g);
    do {
        group_begin<T, CAPPED>(rows, scores, &g, &task);
        while (task.pair + 1 < task.end)
            group_step<T, CAPPED>(rows, &g, &task);
    } while (group_end<T>(rows, scores, &g, &task));
}

#endif

/* ---- the kernel ----------------------------------------------------------------------------- */

/* Registers of a thread that fetches, and of one that computes: together all that there are. */
#define FETCH_REGISTERS(n_groups) ((n_groups) == 3 ? 32 : 40)
#define GROUP_REGISTERS(n_groups) ((n_groups) == 3 ? 160 : 232)

template <typename T, int D, int N_GROUPS, bool CAPPED>
static __global__ void __launch_bounds__(GROUP_THREADS *(1 + N_GROUPS), 1)
    hopper_kernel(const __grid_constant__ struct attention_params p,
                  const __grid_constant__ struct hopper_maps maps)
{
#if PTX_WARP_GROUPS
    extern __shared__ __align__(PATTERN_BYTES) unsigned char memory[];
    auto shared = (struct hopper_shared<D, N_GROUPS> *)memory;
    static_assert(sizeof shared->parked[0] >= 16 * (D + ROW_PADDING) * sizeof(T),
                  "a warp's rows are stored by way of it");
    int group = __shfl_sync(~0u, threadIdx.x / GROUP_THREADS, 0); /* known to be of the warp */
    int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (threadIdx.x == 0)
        hopper_shared_init(shared);
    __syncthreads();
    if (group == 0) {
        registers_shrink<FETCH_REGISTERS(N_GROUPS)>();
        struct ring_place k = ring_start(&shared->k, &shared->k_barriers);
        struct ring_place v = ring_start(&shared->v, &shared->v_barriers);
        previous_kernel_wait();
        if (warp == 0)
            run_queries<T>(&p, &maps, shared);
        else if (warp == 1)
            run_pairs<T>(&p, shared, k, &maps.k, p.k, maps.box_groups);
        else if (warp == 2)
            run_pairs<T>(&p, shared, v, &maps.v, p.v, maps.box_groups);
    } else {
        registers_grow<GROUP_REGISTERS(N_GROUPS)>();
        run_rows<T, CAPPED>(&p, shared, group - 1);
    }
#endif
}

template <typename T, int D, int N_GROUPS, bool CAPPED>
static void hopper_launch(const struct cuda_device *d, const struct attention_params *p)
{
    int grid = MIN(max_jobs(p, N_GROUPS * GROUP_ROWS), d->n_sms);
    struct hopper_maps maps = {};
    maps.box_tokens = GROUP_ROWS % p->heads_per_kv == 0 ? GROUP_ROWS / p->heads_per_kv : 0;
    maps.box_groups = p->block_size % ATTENTION_TILE == 0 ? TILE_GROUPS : 1;
    if (maps.box_tokens > 0)
        attention_map_queries(&maps.q, p, maps.box_tokens);
    attention_map_boxes(&maps.k, p->k, D, maps.box_groups * GROUP_KEYS, 64);
    attention_map_boxes(&maps.v, p->v, D, maps.box_groups * GROUP_KEYS, 64);
    cuda_launch_early(d, hopper_kernel<T, D, N_GROUPS, CAPPED>, dim3(grid),
                      GROUP_THREADS * (1 + N_GROUPS), sizeof(struct hopper_shared<D, N_GROUPS>), *p,
                      maps);
}

/* Up to so many keys jobs of head_dim 64 have 128 rows: 1x512 tokens of 32 heads take 11.1 us, with
 * 192 rows 13.0; 16x1024 tokens take 246 and 253 us. */
#define HOPPER_SHORT_KEYS 1024

/* As many groups as the registers of a multiprocessor hold the rows of; but the end of a job is not
 * hidden, and where sequences are short smaller jobs fill the multiprocessors better. */
template <typename T, bool CAPPED>
static bool hopper_launch_size(const struct cuda_device *d, const struct attention_params *p)
{
    bool is_short = p->max_blocks * p->block_size <= HOPPER_SHORT_KEYS;
    if (p->head_dim == 128)
        hopper_launch<T, 128, 2, CAPPED>(d, p);
    else if (p->head_dim == 64 && is_short)
        hopper_launch<T, 64, 2, CAPPED>(d, p);
    else if (p->head_dim == 64)
        hopper_launch<T, 64, 3, CAPPED>(d, p);
    else
        return false;
    return true;
}

/* With so few keys there is nothing to overlap: four prompts of 64 tokens took 8.3 us here, 7.3 in
 * the other kernel. */
#define HOPPER_MIN_KEYS (2 * ATTENTION_TILE)

/* A box of keys must lie within one block of the cache. */
bool attention_hopper(const struct cuda_device *d, const struct attention_params *p)
{
    if (!cuda_has_warp_groups(d) || p->block_size % GROUP_KEYS != 0 ||
        p->act_dtype != p->kv_dtype || p->max_blocks * p->block_size <= HOPPER_MIN_KEYS)
        return false;
    bool capped = p->slope > 0;
    if (p->act_dtype == DTYPE_BF16)
        return capped ? hopper_launch_size<__nv_bfloat16, true>(d, p)
                      : hopper_launch_size<__nv_bfloat16, false>(d, p);
    if (p->act_dtype == DTYPE_F16)
        return capped ? hopper_launch_size<__half, true>(d, p)
                      : hopper_launch_size<__half, false>(d, p);
    return false;
}
