/* attention_decode_ring.cuh - the ring of tiles in shared memory of a decode kernel that copies 16
 * bytes at a time, and the task that fills it, in step with the others.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_RING_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_RING_CUH

#include "kernels/cuda/attention_decode_feed.cuh"

#define DECODE_MAX_STAGES   6 /* copy_wait() knows no more */
#define DECODE_TASK_THREADS (3 * ATTENTION_THREADS)

/* Stages of shared memory that are filled and used in turn. Stage i holds the keys of the i-th tile
 * that the block takes, and the values of the one before: they are used in the same step. */
struct decode_ring {
    uint32_t tiles; /* [n_stages][k, v]: padded_rows */
    int n_stages;
    int stage; /* the next one */
};

template <int D> static __device__ __forceinline__ constexpr int ring_stage_bytes(void)
{
    return 2 * ATTENTION_TILE * (D + ROW_PADDING) * 2;
}

static __device__ __forceinline__ void ring_advance(struct decode_ring *r)
{
    if (++r->stage == r->n_stages)
        r->stage = 0;
}

/* How each step begins for the warps that take scores and values: the stage at the address returned
 * can be used, and what the others of them did in the step before can be seen. */
template <int D> static __device__ __forceinline__ uint32_t ring_next(struct decode_ring *r)
{
    uint32_t address = r->tiles + r->stage * ring_stage_bytes<D>();
    if (r->n_stages == 1)
        barrier_wait(0, DECODE_TASK_THREADS);
    barrier_wait(0, DECODE_TASK_THREADS);
    ring_advance(r);
    return address;
}

/* Copies a warp's part of one stage; nothing when there are no more pieces, so that groups of
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

/* Fills the ring in step with the other tasks: once all warps are at the barrier, the stage that
 * was used last is free, and what they need in this step is there. */
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
static __device__ __forceinline__ void decode_copy(const struct attention_params *p,
                                                   const struct decode_ring *shared_ring,
                                                   struct decode_queue *queue)
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
    previous_kernel_wait();
    decode_copy_in_step<T, D, AMPERE>(p, &ring, &source, queue);
}

#endif
