/* attention_decode_ring.cuh - the ring of tiles in shared memory of a decode kernel, and the task
 * that fills it.
 *
 * From compute capability 9.0 on by boxes of 16 keys: a stage is filled again as soon as those who
 * use it have released it. Before, by copies of 16 bytes, in step with the other tasks.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_RING_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_RING_CUH

#include "kernels/cuda/attention_decode_feed.cuh"

#define DECODE_MAX_STAGES    6    /* copy_wait() knows no more */
#define RING_ALIGNMENT       1024 /* of the pattern of a swizzle of 128 bytes */
#define DECODE_TASK_THREADS  (3 * ATTENTION_THREADS)
#define DECODE_TILES_BARRIER 2 /* of the threads that take scores and values */
#define NO_STAGE             (-1)

/* Stages of shared memory that are filled and used in turn. Stage i holds the keys of the i-th tile
 * that the block takes, and the values of the one before: they are used in the same step. */
struct decode_ring {
    uint32_t tiles;             /* [n_stages][k, v]: decode_tile, RING_ALIGNMENT aligned   */
    uint32_t arrived, released; /* [n_stages] copy barriers of 8 bytes           */
    int n_stages;
    int stage;  /* the next one                            */
    int parity; /* of its turn                             */
    int last;   /* the one before; NO_STAGE: there is none */
};

template <int D> static __device__ __forceinline__ constexpr int ring_stage_bytes(void)
{
    return 2 * ATTENTION_TILE * (D + ROW_PADDING) * 2;
}

static __device__ __forceinline__ void ring_advance(struct decode_ring *r)
{
    if (++r->stage == r->n_stages) {
        r->stage = 0;
        r->parity ^= 1;
    }
}

/* Columns of a panel: as many as a swizzle of 128, 64 or 32 bytes takes and head_dim is a multiple
 * of.
 */
#define PANEL_COLUMNS(head_dim) ((head_dim) % 64 == 0 ? 64 : (head_dim) % 32 == 0 ? 32 : 16)

/* How a tile of keys or values lies in shared memory: where the 16 bytes `part` of a row are.
 * Copies of boxes make panels, [ATTENTION_WARPS][D / columns][GROUP_KEYS][columns], in which eight
 * rows of one part are in different banks because the parts of a line of 128 bytes are exchanged by
 * its number; without them rows have padding. */
template <int D, bool AMPERE> struct decode_tile {
    uint32_t tile;

    __device__ __forceinline__ uint32_t operator()(int row, int part) const
    {
        if (!AMPERE || !PTX_HOPPER)
            return padded_rows<D>{tile}(row, part);
        constexpr int columns = PANEL_COLUMNS(D), n_parts = columns / 8;
        int line = row % GROUP_KEYS * columns * 2 / 128 % n_parts;
        return tile + row / GROUP_KEYS * (GROUP_KEYS * D * 2) +
               part / n_parts * (GROUP_KEYS * columns * 2) + row % GROUP_KEYS * (columns * 2) +
               (part % n_parts ^ line) * 16;
    }
};

struct decode_maps {
    CUtensorMap k, v;
};

/* By one thread, before a barrier of the block. */
static __device__ __forceinline__ void ring_init(const struct decode_ring *r,
                                                 const struct decode_maps *maps)
{
#if PTX_HOPPER
    copy_box_prepare(&maps->k);
    copy_box_prepare(&maps->v);
    for (int i = 0; i < r->n_stages; i++) {
        copy_barrier_init(r->arrived + 8 * i, ATTENTION_WARPS);
        copy_barrier_init(r->released + 8 * i, 1);
    }
    copy_barrier_publish();
#endif
}

/* ---- using it -------------------------------------------------------------------------------- */

/* How each step begins for the warps that take scores and values: the stage at the address returned
 * can be used, and what the others of them did in the step before can be seen. */
template <int D, bool AMPERE>
static __device__ __forceinline__ uint32_t ring_next(struct decode_ring *r)
{
    uint32_t address = r->tiles + r->stage * ring_stage_bytes<D>();
#if PTX_HOPPER
    if (AMPERE) {
        barrier_wait(DECODE_TILES_BARRIER, 2 * ATTENTION_THREADS);
        if (threadIdx.x == ATTENTION_THREADS && r->last != NO_STAGE)
            copy_barrier_arrive(r->released + 8 * r->last);
        copy_barrier_wait(r->arrived + 8 * r->stage, r->parity);
        r->last = r->stage;
    }
#endif
    if (!(AMPERE && PTX_HOPPER)) {
        if (r->n_stages == 1)
            barrier_wait(0, DECODE_TASK_THREADS);
        barrier_wait(0, DECODE_TASK_THREADS);
    }
    ring_advance(r);
    return address;
}

/* ---- filling it ------------------------------------------------------------------------------ */

#if PTX_HOPPER
/* Copies a warp's part of one stage: a box each of keys and values, but 16 bytes a copy where the
 * keys end or go on in other blocks. What was read of the stage was over when it was released; what
 * was written to it other than as boxes needs a fence. */
template <typename T, int D>
static __device__ __forceinline__ void
ring_copy(const struct attention_params *p, const struct decode_maps *maps,
          const struct decode_ring *r, struct decode_source *s)
{
    constexpr int group_bytes = GROUP_KEYS * D * 2;
    uint32_t barrier = r->arrived + 8 * r->stage, stage_bit = 1u << r->stage;
    uint32_t k = r->tiles + r->stage * ring_stage_bytes<D>() + tile_warp() * group_bytes;
    uint32_t v = k + ring_stage_bytes<D>() / 2;
    bool mixed_k = s->keys.exists && s->keys.row == NO_BOX;
    bool mixed_v = s->values.exists && s->values.row == NO_BOX;
    if (s->mixed_stages & stage_bit) {
        copy_box_fence();
        __syncwarp();
        s->mixed_stages &= ~stage_bit;
    }
    if (mixed_k || mixed_v) {
        if (mixed_k)
            key_group_copy<T, D, true>(decode_tile<D, true>{k}, (const T *)p->k, &s->keys.keys, p);
        if (mixed_v)
            key_group_copy<T, D, true>(decode_tile<D, true>{v}, (const T *)p->v, &s->values.keys,
                                       p);
        copy_barrier_expect_async(barrier);
        s->mixed_stages |= stage_bit;
        __syncwarp();
    }
    if (threadIdx.x % 32 != 0)
        return;
    bool box_k = s->keys.exists && !mixed_k, box_v = s->values.exists && !mixed_v;
    copy_barrier_arrive_expecting(barrier, (box_k + box_v) * group_bytes);
    if (box_k)
        copy_box(k, &maps->k, s->keys.row, barrier);
    if (box_v)
        copy_box(v, &maps->v, s->values.row, barrier);
}
#endif

/* The same by copies of 16 bytes alone; of nothing when there are no more pieces, so that groups of
 * copies and stages stay in step. */
template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void ring_push(const struct attention_params *p,
                                                 struct decode_ring *r, struct decode_source *s,
                                                 struct decode_queue *queue)
{
    constexpr int group_bytes = GROUP_KEYS * (D + ROW_PADDING) * 2;
    padded_rows<D> k = {r->tiles + r->stage * ring_stage_bytes<D>() + tile_warp() * group_bytes};
    padded_rows<D> v = {k.rows + ring_stage_bytes<D>() / 2};
    if (s->values.exists)
        key_group_copy<T, D, AMPERE>(v, (const T *)p->v, &s->values.keys, p);
    if (s->keys.exists)
        key_group_copy<T, D, AMPERE>(k, (const T *)p->k, &s->keys.keys, p);
    copy_commit<AMPERE>();
    ring_advance(r);
    source_next(p, s, queue);
}

/* Whether the tile was written by earlier steps, all of it: only a sequence's newest key and value
 * come from the kernel before this one. */
static __device__ __forceinline__ bool source_is_early(const struct decode_source *s)
{
    return (s->tile + 1) * ATTENTION_TILE < s->piece.kv_len;
}

/* Fills the ring as its stages become free. */
template <typename T, int D>
static __device__ __forceinline__ void
decode_copy_boxes(const struct attention_params *p, const struct decode_maps *maps,
                  struct decode_ring *ring, struct decode_source *source,
                  struct decode_queue *queue)
{
#if PTX_HOPPER
    bool is_early = true;
    while (source->keys.exists || source->values.exists) {
        if (is_early && !source_is_early(source)) {
            previous_kernel_wait();
            is_early = false;
        }
        copy_barrier_wait(ring->released + 8 * ring->stage, ring->parity ^ 1);
        ring_copy<T, D>(p, maps, ring, source);
        ring_advance(ring);
        source_next(p, source, queue);
    }
#endif
}

/* The same in step with the other tasks: once all warps are at the barrier, the stage that was used
 * last is free, and what they need in this step is there. */
template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void
decode_copy_in_step(const struct attention_params *p, struct decode_ring *ring,
                    struct decode_source *source, struct decode_queue *queue)
{
    for (int step = 1 - ring->n_stages; step <= source->n_tiles; step++) {
        if (step >= 0 && ring->n_stages > 1)
            copy_wait<AMPERE>(ring->n_stages - 2);
        if (step >= 0)
            barrier_wait(0, DECODE_TASK_THREADS);
        ring_push<T, D, AMPERE>(p, ring, source, queue);
        if (ring->n_stages == 1) {
            copy_wait<AMPERE>(0);
            barrier_wait(0, DECODE_TASK_THREADS);
        }
    }
}

template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void
decode_copy(const struct attention_params *p, const struct decode_maps *maps,
            const struct decode_ring *shared_ring, struct decode_queue *queue)
{
    struct decode_ring ring = *shared_ring;
    struct decode_source source = {};
    source.piece = queue->piece[0];
    source.n_pieces = 1;
    source.tile = source.piece.tile;
    source.keys.keys.kv_head = source.piece.pair / row_groups(p->heads_per_kv);
    block_window_load(&source.window, p, source.piece.seq, source.tile);
    source_look_ahead(&source);
    source_find_group(p, &source);
    if (AMPERE && PTX_HOPPER)
        decode_copy_boxes<T, D>(p, maps, &ring, &source, queue);
    else
        decode_copy_in_step<T, D, AMPERE>(p, &ring, &source, queue);
}

#endif
