/* attention_decode_hopper.cuh - attention of the sequences that bring one token to the step, from
 * compute capability 9.0 on, where blocks of the cache are multiples of 16 keys.
 *
 *   out[h] = softmax(scale q[h] K^T) V
 *
 * Every key and value is read once, and that is all the time there is: 4 n_kv_heads head_dim bytes
 * per token of context for 16-bit elements. The query heads of a KV head (up to 16, a KV head with
 * more counts as several) take each tile of its keys and values together.
 *
 * A block of threads takes pieces of the step's plan (attention_plan.cuh) one after the other and
 * streams them through a ring of tiles in shared memory. Each warp works by itself:
 *
 *   feed    one warp: the next pieces of the plan, into a queue;
 *   copies  four warps, of which one thread each copies: boxes of 16 keys and of 16 values;
 *   takers  three warps take the pieces of the queue by turns: a piece's tiles, in registers. More
 *           than eight query heads are two warps' work on the same tiles.
 *
 * A taker needs 0.55 us for a tile of 32 KiB, which takes 0.94 us to arrive when all
 * multiprocessors of an H200 read: one keeps up, and three hide what a piece costs at its beginning
 * and its end. With tasks that pass tiles on at a barrier, 0.55 us a tile as well, a piece of three
 * tiles took 3.9 us in place of 2.7.
 *
 * A pair that is one piece is folded in registers and written. Chunks of other pairs are parked in
 * scratch memory, and the warp that brings the last one folds all of them in order.
 *
 * Keys that sequences share are multiplied with the rows of all of them, which are other columns of
 * the same products: no row's bits depend on its neighbours. What comes of it is parked, and each
 * of the sequences goes on from there with its own keys.
 *
 * The kernel may start while the one before it ends: until previous_kernel_wait() it reads the
 * plan, the block table, and of the cache what earlier steps have written.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_HOPPER_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_HOPPER_CUH

#include "kernels/cuda/attention_decode_park.cuh"

#define BOX_THREADS    (32 * (N_TAKERS + N_COPIERS + 1))
#define BOX_MIN_STAGES 3
#define BOX_MAX_STAGES 16
#define RING_BYTES     (128 << 10)
#define RING_ALIGN     1024 /* of the pattern of a swizzle of 128 bytes */

#define NO_HALF    (-1)
#define MAX_HALVES 2 /* of the rows of a piece */

/* Whether what is ahead of a piece is waited for after its first chunk, where there are registers
 * for both. Before it, 8 sequences of 2048 keys with 1984 in common took 16.4 us in place of 10.6.
 */
#define BEGINS_LATE(head_dim) ((head_dim) <= 128)

struct decode_maps {
    CUtensorMap k, v;
};

/* Shared memory after the ring. */
struct __align__(16) box_shared
{
    struct decode_runs runs;
    uint64_t arrived[BOX_MAX_STAGES];  /* copy barriers: a stage is filled */
    uint64_t released[BOX_MAX_STAGES]; /* and is free again                */
};

/* Stages of shared memory that are filled and used in turn, [n_stages][k, v] tiles. */
struct box_ring {
    uint32_t tiles, arrived, released; /* addresses: of the stages, of their barriers */
    int n_stages;
    int stage, parity; /* the next one, and that of its turn */
};

template <int D> static __host__ __device__ __forceinline__ constexpr int box_stage_bytes(void)
{
    return 2 * ATTENTION_TILE * D * 2;
}

static __device__ __forceinline__ void box_ring_advance(struct box_ring *r)
{
    if (++r->stage == r->n_stages) {
        r->stage = 0;
        r->parity ^= 1;
    }
}

#if PTX_HOPPER

/* By one warp, before a barrier of the block. */
static __device__ __forceinline__ void ring_init(const struct box_ring *r)
{
    int i = threadIdx.x % 32;
    if (i < r->n_stages) {
        copy_barrier_init(r->arrived + 8 * i, N_COPIERS);
        copy_barrier_init(r->released + 8 * i, MAX_HALVES);
    }
}

/* ---- the tasks ------------------------------------------------------------------------------- */

/* Copies the keys and values of a warp's group of a tile, if it has any. By one thread. */
template <int D>
static __device__ __forceinline__ void
copy_group(const struct box_ring *r, const struct decode_maps *maps, int row, bool exists)
{
    constexpr int group_bytes = GROUP_KEYS * D * 2, tile_bytes = box_stage_bytes<D>() / 2;
    uint32_t barrier = r->arrived + 8 * r->stage;
    uint32_t k = r->tiles + r->stage * box_stage_bytes<D>() + tile_warp() * group_bytes;
    if (!exists) {
        copy_barrier_arrive(barrier);
        return;
    }
    copy_barrier_arrive_expecting(barrier, 2 * group_bytes);
    copy_box(k, &maps->k, row, barrier);
    copy_box(k + tile_bytes, &maps->v, row, barrier);
}

/* Fills the ring as its stages become free. Only a sequence's newest key and value come from the
 * kernel before this one. */
template <int D>
static __device__ __forceinline__ void
copy_runs(struct decode_runs *runs, const struct decode_maps *maps, struct box_ring ring)
{
    int group = tile_warp();
    bool is_early = true, is_copier = threadIdx.x % 32 == 0;
    for (int n = 0;; n++) {
        const struct decode_run *run = runs_wait(runs, n);
        int kv_len = run->piece.kv_len, n_tiles = run->end_tile - run->tile;
        int key = run->tile * ATTENTION_TILE + group * GROUP_KEYS;
        if (n_tiles == 0)
            return;
        for (int i = 0; i < n_tiles; i++, key += ATTENTION_TILE) {
            int row = run->row[i * N_COPIERS + group];
            bool exists = key < kv_len;
            if (is_early && exists && key + GROUP_KEYS >= kv_len) {
                previous_kernel_wait();
                is_early = false;
            }
            copy_barrier_wait(ring.released + 8 * ring.stage, ring.parity ^ 1);
            if (is_copier)
                copy_group<D>(&ring, maps, row, exists);
            if (is_copier && group == 0)
                *(volatile int *)&runs->n_copied = run->n_ahead + i + 1;
            box_ring_advance(&ring);
        }
        runs_pass(runs, n);
    }
}

/* Waits for the ring's next tile, the n-th of the block, and returns its address. Its stage's
 * barrier is looked at when its copies have begun: before, it may be two turns behind, whose parity
 * is the same. */
template <int D>
static __device__ __forceinline__ uint32_t take_wait(const struct decode_runs *runs,
                                                     struct box_ring *ring, int n, int *n_copied)
{
    uint32_t tile = ring->tiles + ring->stage * box_stage_bytes<D>();
    while (*n_copied <= n)
        *n_copied = runs_copied(runs);
    copy_barrier_wait(ring->arrived + 8 * ring->stage, ring->parity);
    __syncwarp();
    box_ring_advance(ring);
    return tile;
}

/* A tile is not needed any more by one of its takers. */
template <int D>
static __device__ __forceinline__ void take_release(const struct box_ring *ring, uint32_t tile,
                                                    int n_halves)
{
    int stage = (tile - ring->tiles) / box_stage_bytes<D>();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        copy_barrier_arrive_as(ring->released + 8 * stage, n_halves == 1 ? MAX_HALVES : 1);
}

/* The tiles of a run, which are one chunk. While the scores of a tile become numerators, those of
 * the next one are on their way through the products. */
template <typename T, int D, bool CAPPED>
static __device__ __forceinline__ void
take_run(struct pair_rows<D> &chunk, const uint32_t q[D / 16][2], const struct attention_params *p,
         const struct decode_runs *runs, struct box_ring *ring, const struct decode_run *run)
{
    constexpr int tile_bytes = box_stage_bytes<D>() / 2;
    int first_key = run->tile * ATTENTION_TILE, kv_len = run->piece.kv_len, n_copied = 0;
    tile_scores s, next_s;
    uint32_t at = take_wait<D>(runs, ring, run->n_ahead, &n_copied);
    pair_rows_clear(chunk);
    take_scores<T, D>(s, q, at);
    for (int i = 1; i < run->end_tile - run->tile; i++, first_key += ATTENTION_TILE) {
        uint32_t next = take_wait<D>(runs, ring, run->n_ahead + i, &n_copied);
        take_mask<CAPPED>(s, p, first_key, kv_len);
        take_scores<T, D>(next_s, q, next);
        take_softmax<D>(chunk, s, p);
        take_values<T, D, N_COPIERS, true>(chunk.out, s, at + tile_bytes, 0);
        take_release<D>(ring, at, run->piece.n_halves);
        at = next;
#pragma unroll
        for (int k = 0; k < N_COPIERS * 4; k++)
            s[k / 4][k % 4] = next_s[k / 4][k % 4];
    }
    take_mask<CAPPED>(s, p, first_key, kv_len);
    take_softmax<D>(chunk, s, p);
    if (first_key + ATTENTION_TILE <= kv_len)
        take_values<T, D, N_COPIERS, true>(chunk.out, s, at + tile_bytes, 0);
    else
        take_last_values<T, D>(chunk.out, s, at + tile_bytes, kv_len - first_key);
    take_release<D>(ring, at, run->piece.n_halves);
    pair_sums(chunk);
}

/* Which half of a piece's rows a warp has to take; none: NO_HALF. */
static __device__ __forceinline__ int taken_half(int turn, int n_halves)
{
    int taker = threadIdx.x / 32;
    for (int half = 0; half < n_halves; half++) {
        if ((turn + half) % N_TAKERS == taker)
            return half;
    }
    return NO_HALF;
}

/* Whether a piece's chunks are folded as they come. Those of a cut pair are parked as they are, but
 * for the first one of a group, which nothing is ahead of. */
static __device__ __forceinline__ bool is_folded(const struct decode_piece *piece)
{
    return piece->n_seqs > 1 ? piece->chunk == 0 : piece->slot == NO_SLOT;
}

/* A piece's next chunk is there. The warp that brings the last chunk of a cut pair folds all. */
template <typename T, int D>
static __device__ __forceinline__ void
take_chunk(struct pair_rows<D> &all, const struct pair_rows<D> &chunk,
           const struct attention_params *p, const struct decode_run *run,
           const struct taken_rows *rows)
{
    const struct decode_piece *piece = &run->piece;
    bool is_shared = piece->n_seqs > 1, folds = is_folded(piece);
    int first_index = first_parked(p, piece, rows->half);
    float4 *parked = pair_parking<D>(p, first_index + piece->chunk);
    if (!folds) {
        pair_park(parked, chunk, rows);
        if (is_shared)
            shared_arrive(p, piece, rows->half);
        if (is_shared || !pair_arrive(p, piece, rows->half))
            return;
    }
    if (!folds || (BEGINS_LATE(D) && run->tile == piece->tile))
        pair_rows_begin(all, p, piece, rows);
    if (folds)
        pair_fold(all, chunk);
    else
        pair_fold_parked<D <= 128 ? 4 : 1>(all, p, rows, first_index, piece->n_chunks);
    if (run->end_tile < piece->end_tile)
        return;
    if (is_shared) {
        pair_park(parked, all, rows);
        shared_arrive(p, piece, rows->half);
    } else {
        pair_store<T>(all, p, rows);
    }
}

template <typename T, int D, bool CAPPED>
static __device__ __forceinline__ void take_pieces(const struct attention_params *p,
                                                   struct decode_runs *runs, struct box_ring ring)
{
    struct pair_rows<D> all, chunk;
    struct taken_rows rows;
    uint32_t q[D / 16][2];
    previous_kernel_wait();
    for (int n = 0;; n++) {
        struct decode_run run;
        run_read(&run, runs_wait(runs, n));
        if (run.tile == run.end_tile)
            return;
        runs_pass(runs, n);
        int half = taken_half(run.turn, run.piece.n_halves);
        if (half == NO_HALF)
            continue;
        ring.stage = run.stage;
        ring.parity = run.parity;
        if (run.tile == run.piece.tile) {
            rows = taken_rows(p, &run.piece, half);
            take_queries<T, D>(q, p, &rows);
            if (!BEGINS_LATE(D) && is_folded(&run.piece))
                pair_rows_begin(all, p, &run.piece, &rows);
        }
        take_run<T, D, CAPPED>(chunk, q, p, runs, &ring, &run);
        take_chunk<T, D>(all, chunk, p, &run, &rows);
    }
}

#endif

/* ---- the kernel ------------------------------------------------------------------------------ */

template <typename T, int D, bool CAPPED>
static __global__ void __launch_bounds__(BOX_THREADS, 1)
    box_decode_kernel(const __grid_constant__ struct attention_params p,
                      const __grid_constant__ struct decode_maps maps, int n_stages)
{
#if PTX_HOPPER
    extern __shared__ __align__(RING_ALIGN) char tiles[];
    auto shared = (struct box_shared *)(tiles + n_stages * box_stage_bytes<D>());
    struct box_ring ring = {shared_address(tiles),
                            shared_address(shared->arrived),
                            shared_address(shared->released),
                            n_stages,
                            0,
                            0};
    int warp = threadIdx.x / 32;
    struct decode_feed feed = {};
    feed.runs = &shared->runs;
    feed.n_stages = n_stages;
    if (warp == N_TAKERS)
        feed_begin(&feed, &p);
    if (warp == 0) {
        ring_init(&ring);
        runs_init(&shared->runs);
        copy_barrier_publish();
    } else if (threadIdx.x == 32) {
        copy_box_prepare(&maps.k);
        copy_box_prepare(&maps.v);
    }
    __syncthreads();
    if (warp < N_TAKERS) {
        take_pieces<T, D, CAPPED>(&p, &shared->runs, ring);
    } else if (warp == N_TAKERS) {
        decode_feed_runs(&feed);
    } else {
        copy_runs<D>(&shared->runs, &maps, ring);
    }
#endif
}

/* Whether the kernel is made for it, and has room on the device. */
static bool box_decode_fits(const struct cuda_device *d, const struct attention_params *p)
{
    size_t stage = (size_t)2 * ATTENTION_TILE * p->head_dim * 2;
    return d->overlaps && p->block_size % GROUP_KEYS == 0 &&
           d->shared_per_block >= sizeof(struct box_shared) + BOX_MIN_STAGES * stage;
}

/* Whether it follows a plan with groups. A window ends somewhere else for each of their sequences.
 */
static bool box_decode_shares(const struct cuda_device *d, const struct attention_params *p)
{
    return box_decode_fits(d, p) && group_seqs(p->heads_per_kv) > 1 &&
           p->window > p->max_blocks * p->block_size;
}

/* One block per multiprocessor. With more of its shared memory in use, copies of tiles that are
 * wanted late hold up those that are wanted first: with seven stages in place of four 8 sequences
 * of 2048 keys took 7 % longer, 64 of 512 6 %. A taker holds two. */
template <typename T, int D, bool CAPPED>
static void box_decode_launch(const struct cuda_device *d, const struct attention_params *p)
{
    size_t fixed = sizeof(struct box_shared), stage = box_stage_bytes<D>();
    size_t room = (d->shared_per_block - fixed) / stage;
    int n_stages = (int)MIN(MAX(RING_BYTES / stage, BOX_MIN_STAGES), room);
    assert(n_stages <= BOX_MAX_STAGES);
    assert((size_t)p->max_slots * DECODE_PARKED_FLOATS(D, row_halves(p->heads_per_kv)) <=
           p->scratch_floats);
    struct decode_maps maps = {};
    attention_map_rows(&maps.k, p->k, D, PANEL_COLUMNS(D));
    attention_map_rows(&maps.v, p->v, D, PANEL_COLUMNS(D));
    cuda_launch_early(d, box_decode_kernel<T, D, CAPPED>,
                      dim3((unsigned)MIN(d->n_sms, MAX_DECODE_BLOCKS)), BOX_THREADS,
                      (int)(n_stages * stage + fixed), *p, maps, n_stages);
}

#endif
