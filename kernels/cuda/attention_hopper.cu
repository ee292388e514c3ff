/* attention_hopper.cu - attention of the sequences that bring several tokens, for compute
 * capability 9.0.
 *
 *   out[t, h] = softmax(scale q[t, h] K^T + mask) V
 *
 * Jobs are those of attention_prefill.cuh. A block of threads is one warp group that fetches
 * (attention_hopper_copies.cuh) and N_GROUPS that compute. Each of these has 64 query rows, whose
 * queries and output stay in registers. It starts the products of its queries with the next keys
 * and of its numerators with the values, and does the softmax of the next scores under the second.
 *
 * Nothing but the rings of keys and values holds the groups together, so one does its softmax while
 * the products of another run. At the end of a chunk (attention.cuh) the output so far waits in
 * shared memory. The results have the bits of the other kernels.
 *
 * 4 n_rows n_keys head_dim operations, half of it with the causal mask; bytes do not matter.
 *
 * On an H200 a warp takes as long as its own instructions: the tensor cores are busy for 2/3 of the
 * time. What was tried to overlap more took longer (results/bench/h200-prefill.md).
 */
#include "kernels/cuda/attention_hopper_copies.cuh"

#if PTX_WARP_GROUPS

/* What a thread has of the rows of its group: row 16 warp + lane / 4 + 8 h. */
template <int D> struct group_rows {
    struct prefill_rows<D, 1> chunk;        /* since the chunk began                            */
    struct row_state ahead;                 /* of the chunks before                             */
    float s[TILE_STEPS][4];                 /* scores of a tile, then its numerators            */
    uint32_t numerators[TILE_STEPS / 2][4]; /* rounded, of the tile whose values are multiplied */
    uint32_t q[D / 16][4];
};

/* What a group is working on. */
struct group_task {
    const struct attention_params *p;
    struct prefill_job job;
    int first, end;  /* the tiles that its rows see                             */
    int position[2]; /* of the thread's rows                                    */
    float4 *parked;  /* [D / 8][32] of the warp: output of the chunks before    */
    struct ring_place k, v;
};

/* Takes the queries of a job into registers, and finds what the group's rows see of it. */
template <int D>
static __device__ __forceinline__ void group_begin(struct group_rows<D> &r, struct group_task *t,
                                                   const uint4 *q, int group)
{
    constexpr int row_bytes = (D + ROW_PADDING) * 2;
    int lane = threadIdx.x % 32, first_row = group * GROUP_ROWS;
    int warp_row = first_row + threadIdx.x / 32 % GROUP_WARPS * 16;
    uint32_t rows = shared_address(q) + (warp_row + lane % 16) * row_bytes + lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        load_matrix_x4(r.q[i], rows + i * 32);
    int first = prefill_position(t->p, &t->job, first_row);
    int last = prefill_position(t->p, &t->job, first_row + GROUP_ROWS - 1);
    t->first = max(0, first + 1 - t->p->window) / ATTENTION_TILE;
    t->end = max(last, 0) / ATTENTION_TILE + 1;
    prefill_assign(t->p, &t->job, warp_row, 16);
    t->position[0] = prefill_position(t->p, &t->job, warp_row + lane / 4);
    t->position[1] = prefill_position(t->p, &t->job, warp_row + lane / 4 + 8);
    r.chunk.state[0] = r.ahead = row_state_empty();
}

/* Starts s = q k^T. k: the tile. */
template <typename T, int D>
static __device__ __forceinline__ void group_start_scores(struct group_rows<D> &r, uint32_t k)
{
    uint64_t operand = group_operand(k, PATTERN_BYTES, 0);
    group_multiply_begin();
    multiply_keys_64<false>(r.s, r.q[0], operand, T());
#pragma unroll
    for (int i = 1; i < D / 16; i++)
        multiply_keys_64<true>(r.s, r.q[i], operand + ((i / 4 * PANEL_BYTES + i % 4 * 32) >> 4),
                               T());
    group_multiply_commit();
}

/* Starts out += numerators v. v: the tile; in the first of a chunk, out = numerators v. */
template <typename T, int D>
static __device__ __forceinline__ void group_start_values(struct group_rows<D> &r, uint32_t v,
                                                          const struct group_task *t, int tile)
{
    uint64_t operand = group_operand(v, PATTERN_BYTES, PANEL_BYTES);
    bool is_next = tile > t->first && tile % TILES_PER_CHUNK != 0;
    group_multiply_begin();
#pragma unroll
    for (int i = 0; i < ATTENTION_TILE / 16; i++, operand += 2 * PATTERN_BYTES >> 4) {
        if constexpr (D == 128)
            multiply_values_128(r.chunk.out[0], r.numerators[i], operand, i > 0 || is_next, T());
        else
            multiply_values_64(r.chunk.out[0], r.numerators[i], operand, i > 0 || is_next, T());
    }
    group_multiply_commit();
}

/* Scores become numerators, and go into the state of the chunk. */
template <int D, bool CAPPED>
static __device__ __forceinline__ void group_softmax(struct group_rows<D> &r, float decay[2],
                                                     const struct group_task *t, int tile)
{
    const struct attention_params *p = t->p;
    int lane = threadIdx.x % 32, first_key = tile * ATTENTION_TILE;
    float base[2];
    if (CAPPED)
        cap_scores<TILE_STEPS>(r.s, p->slope);
    if (first_key + ATTENTION_TILE - 1 > t->job.warp_first ||
        first_key <= t->job.warp_last - p->window)
        mask_tile(r.s, first_key + lane % 4 * 2, t->position[0], t->position[1], p->window);
    softmax_top<2>(r.s, &r.chunk.state[0], decay, base, p->scale_log2);
#pragma unroll
    for (int n = 0; n < TILE_STEPS; n++)
        softmax_numerators<2>(r.s[n], &r.chunk.state[0], base, p->scale_log2);
}

template <typename T, int D>
static __device__ __forceinline__ void group_pack(struct group_rows<D> &r)
{
#pragma unroll
    for (int i = 0; i < TILE_STEPS / 2; i++)
        pack_numerators<T>(r.numerators[i], r.s[2 * i], r.s[2 * i + 1]);
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

/* Folds what is parked of the chunks before that of a tile, of which the first of the task has
 * none, into the output. */
template <int D>
static __device__ __forceinline__ void group_fold(struct group_rows<D> &r,
                                                  const struct fold_weights *w,
                                                  const struct group_task *t, int tile)
{
    if (tile / TILES_PER_CHUNK == t->first / TILES_PER_CHUNK)
        return;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        float4 parked = t->parked[n * 32 + threadIdx.x % 32];
        float ahead[4] = {parked.x, parked.y, parked.z, parked.w}, *out = r.chunk.out[0][n];
#pragma unroll
        for (int e = 0; e < 4; e++)
            out[e] = fold(ahead[e], w->ahead[e / 2], out[e], w->chunk[e / 2]);
    }
}

/* Leaves the output for the fold at the end of the next chunk. */
template <int D>
static __device__ __forceinline__ void group_park(const struct group_rows<D> &r,
                                                  const struct group_task *t)
{
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        const float *out = r.chunk.out[0][n];
        t->parked[n * 32 + threadIdx.x % 32] = make_float4(out[0], out[1], out[2], out[3]);
    }
}

template <int D> static __device__ __forceinline__ void group_end_scores(struct group_rows<D> &r)
{
    group_multiply_end<TILE_STEPS>(r.s);
}

template <int D> static __device__ __forceinline__ void group_end_values(struct group_rows<D> &r)
{
    group_multiply_end<D / 8>(r.chunk.out[0]);
}

/* The values of a tile and the scores and softmax of the next, whose keys are there. */
template <typename T, int D, bool CAPPED>
static __device__ __forceinline__ void group_step(struct group_rows<D> &r, struct group_task *t,
                                                  int tile)
{
    float decay[2];
    int next = tile + 1;
    bool ends_chunk = next % TILES_PER_CHUNK == 0;
    group_start_scores<T, D>(r, ring_tile<D>(&t->k));
    ring_wait(&t->v);
    group_start_values<T, D>(r, ring_tile<D>(&t->v), t, tile);
    group_multiply_wait<1>();
    group_end_scores(r);
    ring_release(&t->k);
    struct fold_weights weights = {};
    if (ends_chunk)
        weights = group_end_chunk(r);
    group_softmax<D, CAPPED>(r, decay, t, next);
    /* Here, so that the compiler does not move the next wait in front of the softmax. */
    if (next + 1 < t->end)
        ring_wait(&t->k);
    group_multiply_wait<0>();
    group_end_values(r);
    ring_release(&t->v);
    if (ends_chunk) {
        group_fold(r, &weights, t, tile);
        group_park(r, t);
    } else {
        group_rescale(r, decay);
    }
    group_pack<T, D>(r);
}

/* All tiles of the task; the output is that of all chunks then, and `ahead` its state. */
template <typename T, int D, bool CAPPED>
static __device__ __forceinline__ void group_run(struct group_rows<D> &r, struct group_task *t)
{
    float decay[2];
    ring_wait(&t->k);
    group_start_scores<T, D>(r, ring_tile<D>(&t->k));
    group_multiply_wait<0>();
    group_end_scores(r);
    ring_release(&t->k);
    if (t->first + 1 < t->end)
        ring_wait(&t->k);
    group_softmax<D, CAPPED>(r, decay, t, t->first);
    group_pack<T, D>(r);
    for (int tile = t->first; tile + 1 < t->end; tile++)
        group_step<T, D, CAPPED>(r, t, tile);
    ring_wait(&t->v);
    group_start_values<T, D>(r, ring_tile<D>(&t->v), t, t->end - 1);
    struct fold_weights weights = group_end_chunk(r);
    group_multiply_wait<0>();
    group_end_values(r);
    ring_release(&t->v);
    group_fold(r, &weights, t, t->end - 1);
}

/* Passes over tiles that other groups need. */
static __device__ __forceinline__ void group_skip(struct group_task *t, int n_tiles)
{
    for (int i = 0; i < n_tiles; i++) {
        ring_wait(&t->k);
        ring_release(&t->k);
        ring_wait(&t->v);
        ring_release(&t->v);
    }
}

template <typename T, int D, int N_GROUPS, bool CAPPED>
static __device__ __forceinline__ void
run_rows(const struct attention_params *p, struct hopper_shared<D, N_GROUPS> *shared, int group)
{
    struct group_task t = {};
    t.p = p;
    t.parked = shared->parked[group * GROUP_WARPS + threadIdx.x / 32 % GROUP_WARPS];
    t.k = ring_start(&shared->k, &shared->k_barriers);
    t.v = ring_start(&shared->v, &shared->v_barriers);
    for (int i = 0;; i++) {
        struct group_rows<D> rows;
        copy_barrier_wait(shared_address(&shared->q_full), i % 2);
        t.job = shared->job[i % 2];
        if (t.job.n_rows == 0)
            break;
        group_begin(rows, &t, shared->q, group);
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            copy_barrier_arrive(shared_address(&shared->job_taken));
        group_skip(&t, t.first - t.job.first_tile);
        group_run<T, D, CAPPED>(rows, &t);
        group_skip(&t, t.job.end_tile - t.end);
        rows.chunk.state[0] = rows.ahead;
        __syncwarp(); /* what the warp parked has been read */
        prefill_store(rows.chunk, (T *)t.parked, p, &t.job);
        __syncwarp();
    }
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
        if (warp == 0)
            run_queries<T>(&p, shared);
        else if (warp == 1)
            run_tiles<T>(&p, shared, k, &maps.k, p.k, maps.box_groups);
        else if (warp == 2)
            run_tiles<T>(&p, shared, v, &maps.v, p.v, maps.box_groups);
    } else {
        registers_grow<GROUP_REGISTERS(N_GROUPS)>();
        run_rows<T, D, N_GROUPS, CAPPED>(&p, shared, group - 1);
    }
#endif
}

template <typename T, int D, int N_GROUPS, bool CAPPED>
static void hopper_launch(const struct cuda_device *d, const struct attention_params *p)
{
    auto kernel = hopper_kernel<T, D, N_GROUPS, CAPPED>;
    size_t shared = sizeof(struct hopper_shared<D, N_GROUPS>);
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    struct hopper_maps maps;
    maps.box_groups = p->block_size % ATTENTION_TILE == 0 ? TILE_GROUPS : 1;
    attention_map_boxes(&maps.k, p->k, D, maps.box_groups * GROUP_KEYS, 64);
    attention_map_boxes(&maps.v, p->v, D, maps.box_groups * GROUP_KEYS, 64);
    int grid = MIN(max_jobs(p, N_GROUPS * GROUP_ROWS), d->n_sms);
    kernel<<<grid, GROUP_THREADS *(1 + N_GROUPS), shared, d->stream>>>(*p, maps);
    CUDA_CHECK_LAUNCH();
}

/* As many groups as the registers of a multiprocessor hold the rows of. */
template <typename T, bool CAPPED>
static bool hopper_launch_size(const struct cuda_device *d, const struct attention_params *p)
{
    switch (p->head_dim) {
    case 64: hopper_launch<T, 64, 3, CAPPED>(d, p); return true;
    case 128: hopper_launch<T, 128, 2, CAPPED>(d, p); return true;
    default: return false;
    }
}

/* With so few keys there is nothing to overlap: four prompts of 64 tokens take 8.3 us here, 7.3 in
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
