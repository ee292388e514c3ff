/* attention_prefill.cuh - attention of the sequences that bring several tokens to the step.
 *
 *   out[t, h] = softmax(scale q[t, h] K^T + mask) V
 *
 * The query rows of a sequence and a KV head, tokens x heads_per_kv with the heads innermost, are
 * cut into jobs of 64 M_TILES rows. Blocks of four warps take jobs from a counter, those with the
 * most keys of a sequence first. A warp owns 16 M_TILES rows: their output (f32) stays in its
 * registers while tiles of 64 keys and values pass through shared memory, the next keys being
 * copied under the product with the values, the values under the scores. Two blocks share a
 * multiprocessor and fill each other's pauses.
 *
 * At the end of a chunk (see attention.cuh) the state is folded into that of the chunks before,
 * which waits in scratch memory (the L2 cache): 64 KiB written and read per 128 rows of head_dim
 * 128 and per chunk after the first, 6 % of the bytes that shared memory moves meanwhile.
 *
 * 4 n_rows n_keys head_dim operations, half of it with the causal mask; bytes do not matter.
 *
 * On compute capability 9.0 attention_hopper.cu takes its place for head_dim 64, 128 and 256.
 */
#ifndef QUIRE_CUDA_ATTENTION_PREFILL_CUH
#define QUIRE_CUDA_ATTENTION_PREFILL_CUH

#include "kernels/cuda/attention.cuh"

#define PREFILL_BLOCKS_PER_SM 2

struct prefill_job {
    int seq, kv_head;
    int first_row, n_rows; /* of the sequence's rows: the job's first; all of them      */
    int first_token;       /* of the sequence in the batch                              */
    int position;          /* of that token                                             */
    int kv_len;
    int first_tile, end_tile;  /* key tiles that any row of the job sees                 */
    int warp_row;              /* of the job: first row of this warp                     */
    int warp_first, warp_last; /* positions of this warp's first and last row           */
};

/* Position of row `row` of a job; rows beyond the last count as the last. */
static __device__ __forceinline__ int prefill_position(const struct attention_params *p,
                                                       const struct prefill_job *job, int row)
{
    unsigned r = (unsigned)min(job->first_row + row, job->n_rows - 1);
    return job->position + (int)(r / (unsigned)p->heads_per_kv);
}

/* Fills in a job: the `index`th of a sequence and a KV head. */
static __device__ __forceinline__ void prefill_describe(const struct attention_params *p, int seq,
                                                        int kv_head, int index, int job_rows,
                                                        struct prefill_job *job)
{
    job->seq = seq;
    job->kv_head = kv_head;
    job->first_token = p->q_start[seq];
    int q_len = p->q_start[seq + 1] - job->first_token;
    job->n_rows = q_len * p->heads_per_kv;
    job->first_row = index * job_rows;
    job->kv_len = p->kv_len[seq];
    job->position = job->kv_len - q_len;
    int first = prefill_position(p, job, 0), last = prefill_position(p, job, job_rows - 1);
    job->first_tile = max(0, first + 1 - p->window) / ATTENTION_TILE;
    job->end_tile = max(last, 0) / ATTENTION_TILE + 1; /* padding has no keys: a tile of zeros */
}

/* Which rows of a job this warp has. */
static __device__ __forceinline__ void
prefill_assign(const struct attention_params *p, struct prefill_job *job, int first_row, int n_rows)
{
    job->warp_row = first_row;
    job->warp_first = prefill_position(p, job, first_row);
    job->warp_last = prefill_position(p, job, first_row + n_rows - 1);
}

/* Fills in job `number`; false when there are fewer. board: shared, free before and after. */
static __device__ __forceinline__ bool prefill_find(const struct attention_params *p, int number,
                                                    int job_rows, int *board,
                                                    struct prefill_job *job)
{
    int seq, index, warp_rows = job_rows / ATTENTION_WARPS;
    bool found = find_job(p, number / p->n_kv_heads, job_rows, 2, board, &seq, &index);
    __syncthreads();
    if (!found)
        return false;
    prefill_describe(p, seq, number % p->n_kv_heads, index, job_rows, job);
    prefill_assign(p, job, threadIdx.x / 32 * warp_rows, warp_rows);
    return true;
}

/* Once all blocks are done, the last one leaves the counters at zero. */
static __device__ __forceinline__ void prefill_finish(const struct attention_params *p)
{
    if (threadIdx.x == 0 && atomicAdd(&p->counters->n_done, 1) == (int)gridDim.x - 1) {
        p->counters->next_job = 0;
        p->counters->n_done = 0;
    }
}

/* What a thread keeps of its rows: row 16 m + lane / 4 + 8 h of the warp's. */
template <int D, int M_TILES> struct prefill_rows {
    struct row_state state[M_TILES];
    float out[M_TILES][D / 8][4];
};

template <int D, int M_TILES>
static __device__ __forceinline__ void prefill_rows_clear(struct prefill_rows<D, M_TILES> &r)
{
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
        r.state[m] = row_state_empty();
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                r.out[m][n][e] = 0;
        }
    }
}

/* Where row `row` of a job is, in units of head_dim elements; -1 beyond the last row. */
static __device__ __forceinline__ int prefill_place(const struct attention_params *p,
                                                    const struct prefill_job *job, int row,
                                                    int stride_heads)
{
    if (job->first_row + row >= job->n_rows)
        return -1;
    unsigned r = (unsigned)(job->first_row + row), heads = (unsigned)p->heads_per_kv;
    int token = job->first_token + (int)(r / heads);
    return token * stride_heads + job->kv_head * p->heads_per_kv + (int)(r % heads);
}

/* The warp's query rows to shared memory; zeros beyond the last row. The lanes find the places of
 * 32 rows together, with one division each. to(row, part) is where 16 bytes of a row go. */
template <typename T, int D, int M_TILES, bool AMPERE, typename ADDRESS>
static __device__ __forceinline__ void prefill_load_q(ADDRESS to, const struct attention_params *p,
                                                      const struct prefill_job *job)
{
    constexpr int row_parts = D / 8, n_rows = 16 * M_TILES, batch = n_rows < 32 ? n_rows : 32;
    int lane = threadIdx.x % 32;
    for (int first = 0; first < n_rows; first += batch) {
        int place = prefill_place(p, job, job->warp_row + first + lane % batch,
                                  p->n_heads + 2 * p->n_kv_heads);
#pragma unroll 8
        for (int i = 0; i < batch * row_parts / 32; i++) {
            int part = lane + 32 * i, row = part / row_parts;
            int from = __shfl_sync(~0u, place, row);
            const T *q = (const T *)p->qkv + (size_t)max(from, 0) * D;
            copy_16<AMPERE>(to(first + row, part % row_parts), q + part % row_parts * 8, from >= 0);
        }
    }
}

/* s = q k^T. q: of the warp's first row, k: of the tile's first key, both shared. */
template <typename T, int D, int M_TILES, bool AMPERE>
static __device__ __forceinline__ void prefill_scores(float s[M_TILES][TILE_STEPS][4], uint32_t q,
                                                      uint32_t k)
{
    constexpr int row_bytes = (D + ROW_PADDING) * 2;
    int lane = threadIdx.x % 32;
    q += lane % 16 * row_bytes + lane / 16 * 16;
    k += (lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * 16;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
        for (int n = 0; n < TILE_STEPS; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[m][n][e] = 0;
        }
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t a[M_TILES][4], b[4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
            load_matrix_x4(a[m], q + m * 16 * row_bytes + i * 32);
#pragma unroll
        for (int n = 0; n < TILE_STEPS; n += 2) {
            load_matrix_x4(b, k + n * 8 * row_bytes + i * 32);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                multiply<AMPERE>(s[m][n], a[m], b[0], b[1], T());
                multiply<AMPERE>(s[m][n + 1], a[m], b[2], b[3], T());
            }
        }
    }
}

/* Masks a tile where it has to be, takes its largest scores into the state of the rows, and brings
 * their output to the new base. */
template <int D, int M_TILES>
static __device__ __forceinline__ void
prefill_rebase(struct prefill_rows<D, M_TILES> &r, float base[M_TILES][2],
               float s[M_TILES][TILE_STEPS][4], const struct attention_params *p,
               const struct prefill_job *job, int tile)
{
    int lane = threadIdx.x % 32, first_key = tile * ATTENTION_TILE;
    bool whole =
        first_key + ATTENTION_TILE - 1 <= job->warp_first && first_key > job->warp_last - p->window;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
        if (!whole) {
            int row = job->warp_row + 16 * m + lane / 4;
            mask_tile(s[m], first_key + lane % 4 * 2, prefill_position(p, job, row),
                      prefill_position(p, job, row + 8), p->window);
        }
        float decay[2];
        softmax_top<2>(s[m], &r.state[m], decay, base[m], p->scale_log2);
        if (!__any_sync(~0u, decay[0] != 1 || decay[1] != 1))
            continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                r.out[m][n][e] = __fmul_rn(r.out[m][n][e], decay[e / 2]);
        }
    }
}

/* out += numerators v, with the numerators made of the scores on the way, so that the exponentials
 * run beside the products. v: of the tile's first key, shared. */
template <typename T, int D, int M_TILES, bool AMPERE>
static __device__ __forceinline__ void
prefill_values(struct prefill_rows<D, M_TILES> &r, float s[M_TILES][TILE_STEPS][4],
               const float base[M_TILES][2], uint32_t v, float scale_log2)
{
    constexpr int row_bytes = (D + ROW_PADDING) * 2;
    int lane = threadIdx.x % 32;
    v += lane % 16 * row_bytes + lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < ATTENTION_TILE / 16; i++) {
        uint32_t a[M_TILES][4], b[4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            softmax_numerators<2>(s[m][2 * i], &r.state[m], base[m], scale_log2);
            softmax_numerators<2>(s[m][2 * i + 1], &r.state[m], base[m], scale_log2);
            pack_numerators<T>(a[m], s[m][2 * i], s[m][2 * i + 1]);
        }
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            load_matrix_x4_transposed(b, v + i * 16 * row_bytes + n * 16);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                multiply<AMPERE>(r.out[m][n], a[m], b[0], b[1], T());
                multiply<AMPERE>(r.out[m][n + 1], a[m], b[2], b[3], T());
            }
        }
    }
}

/* Ends a chunk: folds what scratch memory has of the chunks before (none before the first) into
 * the rows. Scratch: [D / 8 M_TILES + M_TILES][ATTENTION_THREADS] float4 of the block of threads,
 * each thread's own. */
template <int D, int M_TILES>
static __device__ __forceinline__ void prefill_fold(struct prefill_rows<D, M_TILES> &r,
                                                    const float4 *scratch, bool is_first)
{
    constexpr int n_tiles = D / 8, batch = n_tiles % 8 == 0 ? 8 : n_tiles / 2;
    scratch += threadIdx.x;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
        row_sums(&r.state[m]);
        if (is_first)
            continue;
        float4 s = scratch[m * ATTENTION_THREADS];
        struct row_state ahead = {{s.x, s.y}, {s.z, s.w}};
        struct fold_weights w = fold_states(&ahead, &r.state[m]);
        r.state[m] = ahead;
#pragma unroll
        for (int first = 0; first < n_tiles; first += batch) {
            float4 o[batch]; /* loads that wait together: the L2 cache is 500 cycles away */
#pragma unroll
            for (int n = 0; n < batch; n++)
                o[n] = scratch[(M_TILES + m * n_tiles + first + n) * ATTENTION_THREADS];
#pragma unroll
            for (int n = 0; n < batch; n++) {
                float out[4] = {o[n].x, o[n].y, o[n].z, o[n].w}, *mine = r.out[m][first + n];
#pragma unroll
                for (int e = 0; e < 4; e++)
                    mine[e] = fold(out[e], w.ahead[e / 2], mine[e], w.chunk[e / 2]);
            }
        }
    }
}

template <int D, int M_TILES>
static __device__ __forceinline__ void prefill_park(const struct prefill_rows<D, M_TILES> &r,
                                                    float4 *scratch)
{
    scratch += threadIdx.x;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
        const struct row_state *s = &r.state[m];
        scratch[m * ATTENTION_THREADS] = make_float4(s->top[0], s->top[1], s->sum[0], s->sum[1]);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            scratch[(M_TILES + m * (D / 8) + n) * ATTENTION_THREADS] =
                make_float4(r.out[m][n][0], r.out[m][n][1], r.out[m][n][2], r.out[m][n][3]);
    }
}

/* Writes COLUMNS columns of a warp's rows, which are staged, to their places, which its lanes have
 * found. out: the first of the columns. Several parts are read before the first is written: no part
 * waits for another. */
template <int COLUMNS, typename T, int D, int M_TILES>
static __device__ __forceinline__ void prefill_store_staged(T *out, const T *staging, int place,
                                                            int lane)
{
    constexpr int row_parts = COLUMNS / 8, n_parts = 16 * M_TILES * row_parts / 32;
    constexpr int batch = n_parts % 4 == 0 ? 4 : n_parts % 3 == 0 ? 3 : 5;
#pragma unroll
    for (int first = 0; first < n_parts; first += batch) {
        uint4 x[batch];
        int to[batch];
#pragma unroll
        for (int i = 0; i < batch; i++) {
            int part = lane + 32 * (first + i), row = part / row_parts;
            to[i] = __shfl_sync(~0u, place, row);
            x[i] = *(const uint4 *)(staging + row * (COLUMNS + ROW_PADDING) + part % row_parts * 8);
        }
#pragma unroll
        for (int i = 0; i < batch; i++) {
            int part = lane + 32 * (first + i);
            if (to[i] >= 0)
                *(uint4 *)(out + (size_t)to[i] * D + part % row_parts * 8) = x[i];
        }
    }
}

/* Normalises the rows and writes them, COLUMNS at a time, through the warp's part of shared memory
 * so that the stores are wide. `staging`: [16 M_TILES] rows of COLUMNS and padding. */
template <int COLUMNS, typename T, int D, int M_TILES>
static __device__ __forceinline__ void prefill_store(const struct prefill_rows<D, M_TILES> &r,
                                                     T *staging, const struct attention_params *p,
                                                     const struct prefill_job *job, int lane)
{
    constexpr int stride = COLUMNS + ROW_PADDING, warp_rows = 16 * M_TILES;
    int place = prefill_place(p, job, job->warp_row + lane % warp_rows, p->n_heads);
#pragma unroll
    for (int first = 0; first < D; first += COLUMNS) {
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float norm = row_norm(r.state[m].sum[h]);
                T *row = staging + (16 * m + lane / 4 + 8 * h) * stride + lane % 4 * 2;
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; n++) {
                    const float *out = r.out[m][first / 8 + n] + 2 * h;
                    *(uint32_t *)(row + 8 * n) = pack_pair(out[0] * norm, out[1] * norm, T());
                }
            }
        }
        __syncwarp();
        prefill_store_staged<COLUMNS, T, D, M_TILES>((T *)p->out + first, staging, place, lane);
        if (first + COLUMNS < D)
            __syncwarp();
    }
}

/* One job: all keys past its rows. The first thread asks for the next job under the last tile,
 * early enough to have the answer at the end, too late to keep a job from an idle block. Shared
 * memory: q [64 M_TILES], k [64], v [64], rows of D and padding. */
template <typename T, int D, int M_TILES, bool AMPERE, bool CAPPED>
static __device__ __forceinline__ void prefill_run(const struct attention_params *p,
                                                   const struct prefill_job *job, T *shared,
                                                   float4 *scratch, int *next_number)
{
    constexpr int stride = D + ROW_PADDING;
    T *q_rows = shared + job->warp_row * stride;
    uint32_t q = shared_address(q_rows), k = shared_address(shared + 64 * M_TILES * stride);
    uint32_t v = k + ATTENTION_TILE * stride * 2, to = threadIdx.x / 32 * GROUP_KEYS * stride * 2;
    struct prefill_rows<D, M_TILES> rows;
    struct block_window window;
    bool is_first = true; /* no chunk has ended yet */
    prefill_rows_clear(rows);
    block_window_load(&window, p, job->seq, job->first_tile);
    struct key_group keys =
        key_group_find(&window, p, job->seq, job->kv_head, job->first_tile, job->kv_len);
    prefill_load_q<T, D, M_TILES, AMPERE>(padded_rows<D>{q}, p, job);
    key_group_copy<T, D, AMPERE>(padded_rows<D>{k + to}, (const T *)p->k, &keys, p);
    copy_commit<AMPERE>();
    for (int tile = job->first_tile; tile < job->end_tile; tile++) {
        float s[M_TILES][TILE_STEPS][4], base[M_TILES][2];
        bool is_seen = tile * ATTENTION_TILE <= job->warp_last &&
                       (tile + 1) * ATTENTION_TILE > job->warp_first + 1 - p->window;
        copy_wait<AMPERE>(0);
        __syncthreads(); /* the keys are there, the last values have been used */
        key_group_copy<T, D, AMPERE>(padded_rows<D>{v + to}, (const T *)p->v, &keys, p);
        copy_commit<AMPERE>();
        keys = key_group_find(&window, p, job->seq, job->kv_head, tile + 1, job->kv_len);
        if (is_seen) {
            prefill_scores<T, D, M_TILES, AMPERE>(s, q, k);
            if (CAPPED) {
#pragma unroll
                for (int m = 0; m < M_TILES; m++)
                    cap_scores<TILE_STEPS>(s[m], p->slope);
            }
            prefill_rebase(rows, base, s, p, job, tile);
        }
        copy_wait<AMPERE>(0);
        __syncthreads(); /* the values are there, the keys have been used */
        if (tile + 1 < job->end_tile) {
            key_group_copy<T, D, AMPERE>(padded_rows<D>{k + to}, (const T *)p->k, &keys, p);
            copy_commit<AMPERE>();
        } else if (threadIdx.x == 0) {
            *next_number = gridDim.x + atomicAdd(&p->counters->next_job, 1);
        }
        if (is_seen)
            prefill_values<T, D, M_TILES, AMPERE>(rows, s, base, v, p->scale_log2);
        if ((tile + 1) % TILES_PER_CHUNK == 0 || tile + 1 == job->end_tile) {
            prefill_fold(rows, scratch, is_first);
            is_first = false;
            if (tile + 1 < job->end_tile) {
                prefill_park(rows, scratch);
                prefill_rows_clear(rows);
            }
        }
    }
    prefill_store<D>(rows, q_rows, p, job, threadIdx.x % 32);
}

/* Floats that a block parks. */
#define PREFILL_PARKED_FLOATS(head_dim, m_tiles)                                                   \
    ((size_t)(m_tiles) * ((head_dim) / 8 + 1) * ATTENTION_THREADS * 4)

template <typename T, int D, int M_TILES, bool AMPERE, bool CAPPED>
static __global__ void __launch_bounds__(ATTENTION_THREADS, PREFILL_BLOCKS_PER_SM)
    prefill_kernel(const __grid_constant__ struct attention_params p)
{
    if (AMPERE && !PTX_AMPERE)
        return;
    extern __shared__ uint4 shared[];
    T *rows = (T *)shared;
    int *board = (int *)(rows + 64 * M_TILES * (D + ROW_PADDING)); /* where the keys will be */
    float4 *scratch = (float4 *)p.scratch + blockIdx.x * (PREFILL_PARKED_FLOATS(D, M_TILES) / 4);
    struct prefill_job job;
    int number = blockIdx.x, next_number = 0;
    while (prefill_find(&p, number, 64 * M_TILES, board, &job)) {
        prefill_run<T, D, M_TILES, AMPERE, CAPPED>(&p, &job, rows, scratch, &next_number);
        __syncthreads();
        if (threadIdx.x == 0)
            board[0] = next_number;
        __syncthreads();
        number = board[0];
        __syncthreads();
    }
    prefill_finish(&p);
}

/* Row tiles of 16 per warp. Two share every load of a key or value from shared memory; at
 * head_dim 256 their output does not fit into the registers, and before Ampere (64 KiB of shared
 * memory) neither do the rows. */
static constexpr int prefill_m_tiles(int head_dim, bool ampere)
{
    return head_dim > 128 || !ampere ? 1 : 2;
}

template <typename T, int D, int M_TILES, bool AMPERE, bool CAPPED>
static void prefill_launch_tiles(const struct cuda_device *d, const struct attention_params *p)
{
    size_t shared = (size_t)(64 * M_TILES + 2 * ATTENTION_TILE) * (D + ROW_PADDING) * sizeof(T);
    int grid = MIN(max_jobs(p, 64 * M_TILES), PREFILL_BLOCKS_PER_SM * d->n_sms);
    assert(grid * PREFILL_PARKED_FLOATS(D, M_TILES) <= p->scratch_floats);
    auto kernel = prefill_kernel<T, D, M_TILES, AMPERE, CAPPED>;
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    kernel<<<grid, ATTENTION_THREADS, shared, d->stream>>>(*p);
    CUDA_CHECK_LAUNCH();
}

/* A batch too small for the multiprocessors is cut into smaller jobs: the bits are the same. */
template <typename T, int D, bool AMPERE, bool CAPPED>
static void prefill_launch(const struct cuda_device *d, const struct attention_params *p)
{
    constexpr int m_tiles = prefill_m_tiles(D, AMPERE);
    if (m_tiles > 1 && max_jobs(p, 64 * m_tiles) <= d->n_sms)
        prefill_launch_tiles<T, D, 1, AMPERE, CAPPED>(d, p);
    else
        prefill_launch_tiles<T, D, m_tiles, AMPERE, CAPPED>(d, p);
}

#endif
