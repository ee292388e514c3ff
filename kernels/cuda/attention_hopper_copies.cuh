/* attention_hopper_copies.cuh - the warps of attention_hopper.cu that fetch: jobs, queries, keys
 * and values.
 */
#ifndef QUIRE_CUDA_ATTENTION_HOPPER_COPIES_CUH
#define QUIRE_CUDA_ATTENTION_HOPPER_COPIES_CUH

#include "kernels/cuda/attention_prefill.cuh"

#define GROUP_WARPS      4 /* of a warp group */
#define GROUP_THREADS    (32 * GROUP_WARPS)
#define GROUP_ROWS       64
#define JOB_STAGES       2    /* jobs that are known: the one that is computed, and the next */
#define PATTERN_BYTES    1024 /* eight lines of 128: a swizzle's pattern                      */
#define TILE_GROUPS      (ATTENTION_TILE / GROUP_KEYS)
#define Q_PANEL_BYTES    (GROUP_ROWS * 128)     /* 64 columns of the queries of a group */
#define TILE_PANEL_BYTES (ATTENTION_TILE * 128) /* 64 columns of a tile */

/* Keys, and values, are copied and taken in slabs of two tiles; where the output of a row leaves no
 * registers for the scores of 128 keys, of one. */
static constexpr __host__ __device__ int slab_tiles(int head_dim)
{
    return head_dim > 128 ? 1 : 2;
}

static constexpr __host__ __device__ int slab_keys(int head_dim)
{
    return slab_tiles(head_dim) * ATTENTION_TILE;
}

static constexpr __host__ __device__ int slabs_per_chunk(int head_dim)
{
    return TILES_PER_CHUNK / slab_tiles(head_dim);
}

/* Of GROUP_KEYS keys. */
static constexpr __host__ __device__ int slab_groups(int head_dim)
{
    return slab_tiles(head_dim) * TILE_GROUPS;
}

/* Of 64 columns. */
static constexpr __host__ __device__ int slab_panel_bytes(int head_dim)
{
    return slab_tiles(head_dim) * TILE_PANEL_BYTES;
}

struct hopper_maps {
    CUtensorMap q, k, v;
    int box_tokens; /* of queries in a box, a group's rows; 0: rows are copied one by one */
    int box_groups; /* of GROUP_KEYS keys in a box: TILE_GROUPS or 1                      */
};

/* ---- shared memory -------------------------------------------------------------------------- */

/* Slabs that a ring holds: 64 KiB of them, as much as there is room for. */
static constexpr __host__ __device__ int ring_stages(int head_dim)
{
    return 512 / (head_dim * slab_tiles(head_dim));
}

/* Slabs in panels of 64 columns, [slab_keys(D)][64], whose lines of 128 bytes are swizzled. */
template <int D> struct slab_ring {
    unsigned char slabs[ring_stages(D)][D / 64 * slab_panel_bytes(D)];
};

/* A place of a ring has a slab after `full`, and may get the next one after `empty`. */
template <int N_STAGES> struct ring_barriers {
    uint64_t full[N_STAGES], empty[N_STAGES];
};

/* 16x8 tiles of a warp's output of earlier chunks that wait in shared memory; the others wait in
 * scratch memory (the L2 cache). */
static constexpr __host__ __device__ int near_tiles(int head_dim)
{
    return head_dim > 128 ? 8 : head_dim / 8;
}

static constexpr __host__ __device__ int far_tiles(int head_dim)
{
    return head_dim / 8 - near_tiles(head_dim);
}

/* Columns of a warp's rows that are stored at a time. */
static constexpr __host__ __device__ int staged_columns(int head_dim)
{
    return head_dim > 128 ? 128 : head_dim;
}

/* States of rows that wait with them, where registers are few. */
static constexpr __host__ __device__ int near_states(int head_dim)
{
    return head_dim > 128 ? 8 : 0;
}

/* What a warp needs for its output: at the ends of chunks, and at the end of a job. */
template <int D> union warp_staging {
    float4 parked[near_tiles(D) * 32 + near_states(D)]; /* each lane's tiles, then the states */
    uint16_t rows[16 * (staged_columns(D) + ROW_PADDING)];
};

template <int D, int N_GROUPS> struct hopper_shared {
    struct slab_ring<D> k, v;                          /* first: aligned to PATTERN_BYTES */
    unsigned char q[N_GROUPS][D / 64 * Q_PANEL_BYTES]; /* in panels as well               */
    union warp_staging<D> staging[N_GROUPS * GROUP_WARPS];
    struct ring_barriers<ring_stages(D)> k_barriers, v_barriers;
    struct ring_barriers<N_GROUPS> q_barriers; /* of each group's queries         */
    struct ring_barriers<JOB_STAGES> job_barriers;
    struct prefill_job job[JOB_STAGES];
};

/* A warp's way round a ring. */
struct ring_place {
    uint32_t slabs, barriers; /* of the ring's first place    */
    int stage, parity;        /* where the warp is; its turn  */
};

/* Where 16 bytes of a row go in panels of swizzled lines. */
template <int PANEL_BYTES> struct swizzled_rows {
    uint32_t rows;

    __device__ __forceinline__ uint32_t operator()(int row, int part) const
    {
        return rows + part / 8 * PANEL_BYTES + row * 128 + (part % 8 ^ row % 8) * 16;
    }
};

#if PTX_WARP_GROUPS

template <int D>
static __device__ __forceinline__ struct ring_place
ring_start(struct slab_ring<D> *ring, struct ring_barriers<ring_stages(D)> *barriers)
{
    struct ring_place r = {shared_address(ring), shared_address(barriers), 0, 0};
    return r;
}

template <int D> static __device__ __forceinline__ uint32_t ring_slab(const struct ring_place *r)
{
    return r->slabs + r->stage * (D / 64 * slab_panel_bytes(D));
}

static __device__ __forceinline__ uint32_t ring_full(const struct ring_place *r)
{
    return r->barriers + 8 * r->stage;
}

template <int D> static __device__ __forceinline__ uint32_t ring_empty(const struct ring_place *r)
{
    return r->barriers + 8 * (ring_stages(D) + r->stage);
}

template <int D> static __device__ __forceinline__ void ring_advance(struct ring_place *r)
{
    if (++r->stage == ring_stages(D)) {
        r->stage = 0;
        r->parity ^= 1;
    }
}

static __device__ __forceinline__ void ring_wait(const struct ring_place *r)
{
    copy_barrier_wait_together(ring_full(r), r->parity);
}

/* Whether the slab is there. To ask takes 60 cycles, but the answer need not be used at once. */
static __device__ __forceinline__ bool ring_is_full(const struct ring_place *r)
{
    return copy_barrier_was_over(ring_full(r), r->parity);
}

/* Waits for the slab, unless it was there when the warp asked. */
static __device__ __forceinline__ void ring_wait_unless(const struct ring_place *r, bool was_full)
{
    if (!__all_sync(~0u, was_full))
        ring_wait(r);
}

/* By one lane of a warp that has used what the barrier is for. */
static __device__ __forceinline__ void warp_release(uint32_t barrier)
{
    if (threadIdx.x % 32 == 0)
        copy_barrier_arrive(barrier);
}

/* By each warp that computes, when it has used its place. */
template <int D> static __device__ __forceinline__ void ring_release(struct ring_place *r)
{
    warp_release(ring_empty<D>(r));
    ring_advance<D>(r);
}

template <int N_STAGES>
static __device__ __forceinline__ void ring_barriers_init(struct ring_barriers<N_STAGES> *barriers,
                                                          int n_full, int n_empty)
{
    for (int i = 0; i < N_STAGES; i++) {
        copy_barrier_init(shared_address(&barriers->full[i]), n_full);
        copy_barrier_init(shared_address(&barriers->empty[i]), n_empty);
    }
}

/* By one thread, before a barrier of the block. */
template <int D, int N_GROUPS>
static __device__ __forceinline__ void hopper_shared_init(struct hopper_shared<D, N_GROUPS> *shared)
{
    constexpr int n_warps = N_GROUPS * GROUP_WARPS;
    ring_barriers_init(&shared->k_barriers, 1, n_warps);
    ring_barriers_init(&shared->v_barriers, 1, n_warps);
    ring_barriers_init(&shared->q_barriers, 32, GROUP_WARPS);
    ring_barriers_init(&shared->job_barriers, 1, n_warps + 2);
    copy_barrier_publish();
}

/* Slabs of a job, of which the last need not have two tiles. */
template <int D> static __device__ __forceinline__ int job_first_slab(const struct prefill_job *job)
{
    return job->first_tile / slab_tiles(D);
}

template <int D> static __device__ __forceinline__ int job_end_slab(const struct prefill_job *job)
{
    return CEIL_DIV(job->end_tile, slab_tiles(D));
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

/* Finds job `number`; a job without rows is the end. */
static __device__ __forceinline__ struct prefill_job
take_job(struct job_cursor *cursor, const struct attention_params *p, int number, int job_rows)
{
    struct prefill_job job = {};
    int seq, index;
    if (job_cursor_find(cursor, p, number / p->n_kv_heads, job_rows, &seq, &index))
        prefill_describe(p, seq, number % p->n_kv_heads, index, job_rows, &job);
    return job;
}

/* Copies a group's queries. */
template <typename T, int D>
static __device__ __forceinline__ void load_queries(uint32_t to, const struct attention_params *p,
                                                    const struct hopper_maps *maps,
                                                    const struct prefill_job *job, uint32_t full)
{
    if (maps->box_tokens == 0) {
        prefill_load_q<T, D, GROUP_ROWS / 16, true>(swizzled_rows<Q_PANEL_BYTES>{to}, p, job);
        copy_barrier_expect_async(full);
    } else if (threadIdx.x % 32 == 0) {
        int first_row = job->first_row + job->warp_row;
        copy_barrier_expect(full, D / 64 * Q_PANEL_BYTES);
#pragma unroll
        for (int i = 0; i < D / 64; i++)
            copy_block(to + i * Q_PANEL_BYTES, &maps->q, i * 64, job->kv_head * p->heads_per_kv,
                       job->first_token + first_row / p->heads_per_kv, full);
    }
    copy_barrier_arrive(full);
}

/* Brings a job's queries near: they are read once, and there is no room for them yet. */
template <int D>
static __device__ __forceinline__ void prefetch_queries(const struct attention_params *p,
                                                        const struct hopper_maps *maps,
                                                        const struct prefill_job *job, int n_groups)
{
    int lane = threadIdx.x % 32;
    if (maps->box_tokens > 0 && lane < n_groups * (D / 64))
        prefetch_block(&maps->q, lane % (D / 64) * 64, job->kv_head * p->heads_per_kv,
                       job->first_token + job->first_row / p->heads_per_kv +
                           lane / (D / 64) * maps->box_tokens);
    __syncwarp();
}

/* Copies the queries of each group of a job, the i-th, once the group has multiplied the last keys
 * of the job before with those that are there. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void
push_queries(const struct attention_params *p, const struct hopper_maps *maps,
             struct hopper_shared<D, N_GROUPS> *shared, struct prefill_job *job, int i)
{
    prefetch_queries<D>(p, maps, job, N_GROUPS);
    for (int group = 0; group < N_GROUPS; group++) {
        job->warp_row = group * GROUP_ROWS;
        copy_barrier_wait(shared_address(&shared->q_barriers.empty[group]), i % 2 ^ 1);
        __syncwarp();
        load_queries<T, D>(shared_address(shared->q[group]), p, maps, job,
                           shared_address(&shared->q_barriers.full[group]));
    }
}

/* Takes jobs, tells the other warps of each, and copies its queries. The next is asked for as late
 * as it can be: another block may be the sooner to have time for it. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void run_queries(const struct attention_params *p,
                                                   const struct hopper_maps *maps,
                                                   struct hopper_shared<D, N_GROUPS> *shared)
{
    struct job_cursor cursor = {0, 0};
    int lane = threadIdx.x % 32, number = blockIdx.x;
    copy_box_prepare(&maps->q);
    for (int i = 0;; i++) {
        int stage = i % JOB_STAGES, parity = i / JOB_STAGES % 2;
        struct prefill_job job = take_job(&cursor, p, number, N_GROUPS * GROUP_ROWS);
        copy_barrier_wait(shared_address(&shared->job_barriers.empty[stage]), parity ^ 1);
        if (lane == 0) {
            shared->job[stage] = job;
            copy_barrier_arrive(shared_address(&shared->job_barriers.full[stage]));
        }
        if (job.n_rows == 0)
            break;
        push_queries<T>(p, maps, shared, &job, i);
        if (lane == 0)
            number = gridDim.x + atomicAdd(&p->counters->next_job, 1);
        number = __shfl_sync(~0u, number, 0);
    }
    next_kernel_start();
    prefill_finish(p);
}

/* ---- keys and values ------------------------------------------------------------------------ */

/* Where 32 groups of keys are, those of a slab's chunk, one per lane: rows of the cache. */
template <int D>
static __device__ __forceinline__ int chunk_rows(const struct attention_params *p,
                                                 const struct prefill_job *job, int slab)
{
    int key = slab / slabs_per_chunk(D) * ATTENTION_CHUNK + threadIdx.x % 32 * GROUP_KEYS;
    int index = (int)((unsigned)key / (unsigned)p->block_size);
    int block = p->block_table[(size_t)job->seq * p->max_blocks + min(index, p->max_blocks - 1)];
    return (int)(kv_index(p, block, job->kv_head, key - index * p->block_size) / D);
}

/* The tile at the end of a sequence, 16 bytes a copy: the rows of keys that do not exist become
 * zeros, for a value that no query sees must still be a number. row: as of push_slab(). */
template <typename T, int D>
static __device__ __forceinline__ void copy_last_tile(uint32_t to, const T *from, int tile, int row,
                                                      int kv_len)
{
    constexpr int row_parts = D / 8;
    int lane = threadIdx.x % 32, n_keys = kv_len - tile * ATTENTION_TILE;
    swizzled_rows<slab_panel_bytes(D)> place = {to};
    for (int group = 0; group < TILE_GROUPS; group++) {
        int first_row = __shfl_sync(~0u, row, tile % TILES_PER_CHUNK * TILE_GROUPS + group);
#pragma unroll 8
        for (int i = 0; i < GROUP_KEYS * row_parts / 32; i++) {
            int part = lane + 32 * i, key = group * GROUP_KEYS + part / row_parts;
            bool exists = key < n_keys;
            copy_async_16(place(key, part % row_parts),
                          exists ? from + (size_t)first_row * D + part * 8 : from, exists);
        }
    }
    copy_async_commit();
    copy_async_wait<0>();
    copy_box_fence();
}

/* Copies a slab of tiles, of which the second need not exist, to the next place of a ring. row:
 * chunk_rows() of the slab. */
template <typename T, int D>
static __device__ __forceinline__ void push_slab(struct ring_place *ring, const CUtensorMap *map,
                                                 const T *from, int box_groups, int slab,
                                                 int end_tile, int row, int kv_len)
{
    int lane = threadIdx.x % 32, group = lane % slab_groups(D), tile = slab * slab_tiles(D);
    int n_tiles = min(slab_tiles(D), end_tile - tile);
    int n_whole = min(n_tiles, kv_len / ATTENTION_TILE - tile);
    uint32_t to = ring_slab<D>(ring), full = ring_full(ring);
    copy_barrier_wait(ring_empty<D>(ring), ring->parity ^ 1);
    if (n_whole < n_tiles)
        copy_last_tile<T, D>(to + n_whole * TILE_PANEL_BYTES, from, tile + n_whole, row, kv_len);
    __syncwarp();
    if (lane == 0)
        copy_barrier_arrive_expecting(full, n_whole * (D / 64 * TILE_PANEL_BYTES));
    __syncwarp();
    if (lane / slab_groups(D) == slab % slabs_per_chunk(D) && group < n_whole * TILE_GROUPS &&
        group % box_groups == 0) {
#pragma unroll
        for (int i = 0; i < D / 64; i++)
            copy_box_kept(to + i * slab_panel_bytes(D) + group * GROUP_KEYS * 128, map, i * 64, row,
                          full);
    }
    __syncwarp();
    ring_advance<D>(ring);
}

/* Copies the keys, or the values, of all jobs. */
template <typename T, int D, int N_GROUPS>
static __device__ __forceinline__ void
run_slabs(const struct attention_params *p, struct hopper_shared<D, N_GROUPS> *shared,
          struct ring_place ring, const CUtensorMap *map, const void *from, int box_groups)
{
    copy_box_prepare(map);
    for (int i = 0;; i++) {
        int stage = i % JOB_STAGES;
        copy_barrier_wait(shared_address(&shared->job_barriers.full[stage]), i / JOB_STAGES % 2);
        struct prefill_job job = shared->job[stage];
        if (job.n_rows == 0)
            break;
        __syncwarp();
        warp_release(shared_address(&shared->job_barriers.empty[stage]));
        int row = 0;
        for (int slab = job_first_slab<D>(&job); slab < job_end_slab<D>(&job); slab++) {
            if (slab == job_first_slab<D>(&job) || slab % slabs_per_chunk(D) == 0)
                row = chunk_rows<D>(p, &job, slab);
            push_slab<T, D>(&ring, map, (const T *)from, box_groups, slab, job.end_tile, row,
                            job.kv_len);
        }
    }
}

#endif
#endif
