/* attention_hopper_copies.cuh - the warps of attention_hopper.cu that fetch: jobs, queries, keys
 * and values.
 */
#ifndef QUIRE_CUDA_ATTENTION_HOPPER_COPIES_CUH
#define QUIRE_CUDA_ATTENTION_HOPPER_COPIES_CUH

#include "kernels/cuda/attention_prefill.cuh"

#define GROUP_WARPS   4 /* of a warp group */
#define GROUP_THREADS (32 * GROUP_WARPS)
#define GROUP_ROWS    64
#define HOPPER_STAGES 4
#define PATTERN_BYTES 1024                   /* eight lines of 128: a swizzle's pattern */
#define PANEL_BYTES   (ATTENTION_TILE * 128) /* 64 columns of a tile */
#define TILE_GROUPS   (ATTENTION_TILE / GROUP_KEYS)

struct hopper_maps {
    CUtensorMap k, v;
    int box_groups; /* of GROUP_KEYS keys in a box: TILE_GROUPS or 1 */
};

/* ---- shared memory -------------------------------------------------------------------------- */

/* Tiles in panels of 64 columns, [ATTENTION_TILE][64], whose lines of 128 bytes are swizzled. */
template <int D> struct tile_ring {
    unsigned char tiles[HOPPER_STAGES][D / 64 * PANEL_BYTES];
};

/* A place of a ring has a tile after `full`, and may get the next one after `empty`. */
struct ring_barriers {
    uint64_t full[HOPPER_STAGES], empty[HOPPER_STAGES];
};

template <int D, int N_GROUPS> struct hopper_shared {
    struct tile_ring<D> k, v; /* first: aligned to PATTERN_BYTES                                */
    uint4 q[N_GROUPS * GROUP_ROWS * (D + ROW_PADDING) / 8];
    float4 parked[N_GROUPS * GROUP_WARPS][D / 8 * 32]; /* output of earlier chunks, each thread's */
    struct ring_barriers k_barriers, v_barriers;
    /* A job is described; queries are there; everybody has seen the job and taken its queries. */
    uint64_t job_told, q_full, job_taken;
    struct prefill_job job[2];
};

/* A warp's way round a ring. */
struct ring_place {
    uint32_t tiles, barriers; /* of the ring's first place    */
    int stage, parity;        /* where the warp is; its turn  */
};

#if PTX_WARP_GROUPS

template <int D>
static __device__ __forceinline__ struct ring_place ring_start(struct tile_ring<D> *ring,
                                                               struct ring_barriers *barriers)
{
    struct ring_place r = {shared_address(ring), shared_address(barriers), 0, 0};
    return r;
}

template <int D> static __device__ __forceinline__ uint32_t ring_tile(const struct ring_place *r)
{
    return r->tiles + r->stage * (D / 64 * PANEL_BYTES);
}

static __device__ __forceinline__ uint32_t ring_full(const struct ring_place *r)
{
    return r->barriers + 8 * r->stage;
}

static __device__ __forceinline__ uint32_t ring_empty(const struct ring_place *r)
{
    return r->barriers + 8 * (HOPPER_STAGES + r->stage);
}

static __device__ __forceinline__ void ring_advance(struct ring_place *r)
{
    if (++r->stage == HOPPER_STAGES) {
        r->stage = 0;
        r->parity ^= 1;
    }
}

static __device__ __forceinline__ void ring_wait(const struct ring_place *r)
{
    copy_barrier_wait(ring_full(r), r->parity);
}

/* By each warp that computes, when it has used its place. */
static __device__ __forceinline__ void ring_release(struct ring_place *r)
{
    if (threadIdx.x % 32 == 0)
        copy_barrier_arrive(ring_empty(r));
    ring_advance(r);
}

/* By one thread, before a barrier of the block. */
template <int D, int N_GROUPS>
static __device__ __forceinline__ void hopper_shared_init(struct hopper_shared<D, N_GROUPS> *shared)
{
    constexpr int n_warps = N_GROUPS * GROUP_WARPS;
    for (int i = 0; i < HOPPER_STAGES; i++) {
        copy_barrier_init(shared_address(&shared->k_barriers.full[i]), 1);
        copy_barrier_init(shared_address(&shared->v_barriers.full[i]), 1);
        copy_barrier_init(shared_address(&shared->k_barriers.empty[i]), n_warps);
        copy_barrier_init(shared_address(&shared->v_barriers.empty[i]), n_warps);
    }
    copy_barrier_init(shared_address(&shared->job_told), 1);
    copy_barrier_init(shared_address(&shared->q_full), 32);
    copy_barrier_init(shared_address(&shared->job_taken), n_warps + 2);
    copy_barrier_publish();
}

/* ---- jobs and queries ----------------------------------------------------------------------- */

/* Where the search for jobs stands: at 32 sequences, of which the first begins with first_number
 * (jobs of one KV head). */
struct job_cursor {
    int first_seq, first_number;
};

/* As find_job(), by one warp, for numbers that do not fall. */
static __device__ __forceinline__ bool job_cursor_find(struct job_cursor *c,
                                                       const struct attention_params *p, int number,
                                                       int job_rows, int *seq, int *job)
{
    int lane = threadIdx.x % 32;
    for (; c->first_seq < p->n_seqs; c->first_seq += 32) {
        int s = c->first_seq + lane;
        int q_len = s < p->n_seqs ? p->q_start[s + 1] - p->q_start[s] : 0;
        int end = q_len > 1 ? CEIL_DIV(q_len * p->heads_per_kv, job_rows) : 0;
        end = warp_prefix_sum(end) + c->first_number;
        unsigned after = __ballot_sync(~0u, number < end);
        if (after != 0) {
            int first = __ffs((int)after) - 1;
            *seq = c->first_seq + first;
            *job = __shfl_sync(~0u, end, first) - 1 - number;
            return true;
        }
        c->first_number = __shfl_sync(~0u, end, 31);
    }
    return false;
}

/* Takes jobs, tells the other warps of each, and copies its query rows; a job without rows is the
 * end. A job is told once the one before has been taken by everybody: then that before it is done,
 * and its description may be overwritten. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void run_queries(const struct attention_params *p,
                                                   struct hopper_shared<D, N_GROUPS> *shared)
{
    constexpr int job_rows = N_GROUPS * GROUP_ROWS;
    uint32_t q = shared_address(shared->q), q_full = shared_address(&shared->q_full);
    struct job_cursor cursor = {0, 0};
    int lane = threadIdx.x % 32, number = blockIdx.x;
    for (int i = 0;; i++) {
        struct prefill_job job = {};
        int seq, index, next_number = 0;
        bool found = job_cursor_find(&cursor, p, number / p->n_kv_heads, job_rows, &seq, &index);
        if (found)
            prefill_describe(p, seq, number % p->n_kv_heads, index, job_rows, &job);
        if (i > 0)
            copy_barrier_wait(shared_address(&shared->job_taken), (i - 1) % 2);
        if (lane == 0) {
            shared->job[i % 2] = job;
            copy_barrier_arrive(shared_address(&shared->job_told));
        }
        if (found && lane == 0)
            next_number = gridDim.x + atomicAdd(&p->counters->next_job, 1);
        if (found) {
            prefill_load_q<T, D, job_rows / 16, true>(q, p, &job);
            copy_barrier_expect_async(q_full);
        }
        copy_barrier_arrive(q_full);
        if (!found)
            break;
        number = __shfl_sync(~0u, next_number, 0);
    }
    prefill_finish(p);
}

/* ---- keys and values ------------------------------------------------------------------------ */

/* Where 32 groups of keys are, those of a tile's chunk, one per lane: rows of the cache. */
template <int D>
static __device__ __forceinline__ int chunk_rows(const struct attention_params *p,
                                                 const struct prefill_job *job, int tile)
{
    int key = tile / TILES_PER_CHUNK * ATTENTION_CHUNK + threadIdx.x % 32 * GROUP_KEYS;
    int index = (int)((unsigned)key / (unsigned)p->block_size);
    int block = p->block_table[(size_t)job->seq * p->max_blocks + min(index, p->max_blocks - 1)];
    return (int)(kv_index(p, block, job->kv_head, key - index * p->block_size) / D);
}

/* The tile at the end of a sequence, 16 bytes a copy: the rows of keys that do not exist become
 * zeros, for a value that no query sees must still be a number. row: as of push_tile(). */
template <typename T, int D>
static __device__ __forceinline__ void copy_last_tile(uint32_t to, const T *from, int tile, int row,
                                                      int kv_len)
{
    constexpr int row_parts = D / 8;
    int lane = threadIdx.x % 32, n_keys = kv_len - tile * ATTENTION_TILE;
    for (int group = 0; group < TILE_GROUPS; group++) {
        int first_row = __shfl_sync(~0u, row, tile % TILES_PER_CHUNK * TILE_GROUPS + group);
#pragma unroll
        for (int i = 0; i < GROUP_KEYS * row_parts / 32; i++) {
            int part = lane + 32 * i, column = part % row_parts;
            int key = group * GROUP_KEYS + part / row_parts;
            bool exists = key < n_keys;
            copy_async_16(to + column / 8 * PANEL_BYTES + key * 128 + (column % 8 ^ key % 8) * 16,
                          exists ? from + (size_t)first_row * D + part * 8 : from, exists);
        }
    }
    copy_async_commit();
    copy_async_wait<0>();
    copy_box_fence();
}

/* Copies a tile to the next place of a ring. row: chunk_rows() of the tile. */
template <typename T, int D>
static __device__ __forceinline__ void push_tile(struct ring_place *ring, const CUtensorMap *map,
                                                 const T *from, int box_groups, int tile, int row,
                                                 int kv_len)
{
    int lane = threadIdx.x % 32, group = lane % TILE_GROUPS;
    uint32_t to = ring_tile<D>(ring), full = ring_full(ring);
    bool is_whole = (tile + 1) * ATTENTION_TILE <= kv_len;
    copy_barrier_wait(ring_empty(ring), ring->parity ^ 1);
    if (!is_whole)
        copy_last_tile<T, D>(to, from, tile, row, kv_len);
    __syncwarp();
    if (lane == 0) {
        if (is_whole)
            copy_barrier_expect(full, D / 64 * PANEL_BYTES);
        copy_barrier_arrive(full);
    }
    __syncwarp();
    if (is_whole && lane / TILE_GROUPS == tile % TILES_PER_CHUNK && group % box_groups == 0) {
#pragma unroll
        for (int i = 0; i < D / 64; i++)
            copy_box_kept(to + i * PANEL_BYTES + group * GROUP_KEYS * 128, map, i * 64, row, full);
    }
    __syncwarp();
    ring_advance(ring);
}

/* Copies the keys, or the values, of all jobs. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void
run_tiles(const struct attention_params *p, struct hopper_shared<D, N_GROUPS> *shared,
          struct ring_place ring, const CUtensorMap *map, const void *from, int box_groups)
{
    copy_box_prepare(map);
    for (int i = 0;; i++) {
        copy_barrier_wait(shared_address(&shared->job_told), i % 2);
        const struct prefill_job *job = &shared->job[i % 2];
        int first = job->first_tile, end = job->end_tile, kv_len = job->kv_len;
        if (job->n_rows == 0)
            break;
        if (threadIdx.x % 32 == 0)
            copy_barrier_arrive(shared_address(&shared->job_taken));
        int row = chunk_rows<D>(p, job, first);
        for (int tile = first; tile < end; tile++) {
            if (tile > first && tile % TILES_PER_CHUNK == 0)
                row = chunk_rows<D>(p, job, tile);
            push_tile<T, D>(&ring, map, (const T *)from, box_groups, tile, row, kv_len);
        }
    }
}

#endif
#endif
