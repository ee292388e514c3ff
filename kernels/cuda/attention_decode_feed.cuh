/* attention_decode_feed.cuh - the pieces of the plan on their way to the tasks of a block of
 * threads, and from them the keys that the warps which copy take next.
 *
 * One warp feeds: it counts off the next piece, reads it and the blocks of its keys, and puts them
 * into a queue in shared memory. Each of that is a trip to the L2 cache, which nobody waits for
 * when it begins in time.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_FEED_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_FEED_CUH

#include "kernels/cuda/attention_plan.cuh"

/* Barriers of the warp that feeds and those that copy: a piece is wanted; it is there. */
#define DECODE_FEED_THREADS   (ATTENTION_THREADS + 32)
#define DECODE_HUNGRY_BARRIER 3
#define DECODE_FED_BARRIER    4

#define QUEUE_PIECES 16 /* more than the tiles that the tasks are apart */

/* The pieces that the tasks of a block are at; each has its own place among them. */
struct decode_queue {
    struct decode_piece piece[QUEUE_PIECES]; /* piece n is at n % QUEUE_PIECES                  */
    struct key_place window[2][ATTENTION_WARPS][32]; /* of piece n for the warps that copy: n % 2 */
    int n_pieces;                                    /* that were put here                     */
    int n_in_plan;
};

/* ---- feeding --------------------------------------------------------------------------------- */

/* The next piece is asked for when the warps that copy are this many tiles before the end of theirs
 * (a chunk; earlier, others would be without work that this block has in hand), so that its trips
 * to the L2 cache, three of them, are over in time. */
#define FEED_TILES TILES_PER_CHUNK

/* The blocks of the keys of a piece's first 32 tiles, as the warps that copy have them. */
static __device__ __forceinline__ void feed_find_blocks(const struct attention_params *p,
                                                        struct decode_queue *queue, int n,
                                                        const struct decode_piece *piece)
{
#pragma unroll
    for (int warp = 0; warp < ATTENTION_WARPS; warp++)
        queue->window[n % 2][warp][threadIdx.x % 32] =
            key_place_find(p, piece->seq, piece->tile, warp);
}

/* Every piece that no block began with is counted, and every block that finds the list at its end:
 * as many as there are pieces, so that the last of these can put the count back. */
static __device__ __forceinline__ struct decode_piece feed_take(const struct attention_params *p,
                                                                int n_in_plan)
{
    struct decode_piece piece = {};
    int number = 0;
    if (threadIdx.x % 32 == 0) {
        number = gridDim.x + atomicAdd(&p->plan->n_taken, 1);
        if (number == (int)gridDim.x + n_in_plan - 1)
            p->plan->n_taken = 0;
    }
    number = __shfl_sync(~0u, number, 0);
    if (number < n_in_plan)
        piece = piece_read(plan_pieces(p->plan) + number);
    return piece;
}

/* By one warp: puts pieces into the queue as they are asked for, the end of the list last. */
static __device__ __forceinline__ void decode_feed(const struct attention_params *p,
                                                   struct decode_queue *queue)
{
    struct decode_piece piece;
    int n_in_plan = queue->n_in_plan, n = 1;
    previous_kernel_wait();
    do {
        barrier_wait(DECODE_HUNGRY_BARRIER, DECODE_FEED_THREADS);
        piece = feed_take(p, n_in_plan);
        if (piece.tile < piece.end_tile)
            feed_find_blocks(p, queue, n, &piece);
        if (threadIdx.x % 32 == 0) {
            queue->piece[n % QUEUE_PIECES] = piece;
            __threadfence_block();
            queue->n_pieces = n + 1;
        }
        n++;
        __syncwarp();
        barrier_arrive(DECODE_FED_BARRIER, DECODE_FEED_THREADS);
    } while (piece.tile < piece.end_tile);
}

/* ---- what is copied -------------------------------------------------------------------------- */

/* A warp's part of the keys, or values, of a tile. */
struct decode_group {
    struct key_group keys;
    bool exists;
};

/* What a warp has to copy. */
struct decode_source {
    struct decode_piece piece;
    int n_pieces;               /* that were begun, this one included     */
    int n_tiles;                /* whose keys were copied                 */
    int tile;                   /* whose keys are copied next             */
    bool is_hungry;             /* the next piece was asked for           */
    struct block_window window; /* its block and those of the tiles after */
    struct decode_group keys, values;
};

/* Finds the group of s->tile. */
static __device__ __forceinline__ void source_find_group(const struct attention_params *p,
                                                         struct decode_source *s)
{
    struct key_group *g = &s->keys.keys;
    s->keys.exists = s->tile < s->piece.end_tile;
    if (!s->keys.exists)
        return;
    *g = key_group_find(&s->window, p, s->piece.seq, g->kv_head, s->tile, s->piece.kv_len);
}

/* Begins the piece that is next in the queue. */
static __device__ __forceinline__ void source_begin_piece(const struct attention_params *p,
                                                          struct decode_source *s,
                                                          struct decode_queue *queue)
{
    int n = s->n_pieces++;
    s->piece = queue->piece[n % QUEUE_PIECES];
    s->tile = s->piece.tile;
    s->is_hungry = false;
    s->keys.keys.kv_head = s->piece.pair / row_groups(p->heads_per_kv);
    s->window.seq = s->piece.seq;
    s->window.first_tile = s->tile;
    s->window.at = queue->window[n % 2][tile_warp()][threadIdx.x % 32];
}

/* Asks for the next piece when it is time to. */
static __device__ __forceinline__ void source_look_ahead(struct decode_source *s)
{
    int n_left = s->piece.end_tile - s->tile;
    if (s->is_hungry || n_left == 0 || n_left > FEED_TILES)
        return;
    barrier_arrive(DECODE_HUNGRY_BARRIER, DECODE_FEED_THREADS);
    s->is_hungry = true;
}

/* Goes on to the next tile. */
static __device__ __forceinline__ void
source_next(const struct attention_params *p, struct decode_source *s, struct decode_queue *queue)
{
    s->values = s->keys;
    if (!s->keys.exists)
        return;
    s->n_tiles++;
    if (++s->tile == s->piece.end_tile) {
        barrier_wait(DECODE_FED_BARRIER, DECODE_FEED_THREADS);
        source_begin_piece(p, s, queue);
    }
    source_look_ahead(s);
    source_find_group(p, s);
}

#endif
