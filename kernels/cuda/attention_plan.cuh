/* attention_plan.cuh - the work of a decode step as a list of pieces, made once for all layers.
 *
 * A pair is a sequence and a KV head; a KV head with more than 16 query heads counts as several. A
 * piece is a run of tiles of one pair: all of them, or one chunk (attention.cuh). Each block of
 * threads takes the piece of its own number, then whatever piece is next: multiprocessors differ by
 * a quarter in how fast they read (an H200, all reading at once), so equal shares end at very
 * different times.
 *
 * The list is in descending order: first what groups of sequences share (below), then the pairs
 * that are one piece although they have several chunks, then chunks of 8, 7, ... 1 tiles. A chunk
 * of a pair costs a copy of its result (a fiftieth of its keys and values), so only the last
 * sequences are cut: enough of them that blocks which come from a long pair at different times
 * still end together.
 *
 * Sequences whose block tables begin with the same blocks form groups, neighbours of the batch.
 * What a group shares, in whole chunks older than any newest key, is computed once for all of them:
 * their rows are side by side in the matrix tiles, where one sequence would leave most rows empty.
 * These pieces park their results, come before all others, and wait for nobody. A piece of a
 * sequence of the group has the other keys of it, and continues from what is parked: it waits for
 * that.
 *
 * No wait is in vain, however many blocks of threads run at a time: where there are groups, no
 * piece belongs to a block by its number, so what a piece waits for was taken before it.
 *
 * The scratch of attention holds, one behind the other: struct attention_plan, the pieces, a count
 * of arrivals for every parked chunk, how many chunks each sequence has in common with the one
 * before it, and what the kernels park.
 */
#ifndef QUIRE_CUDA_ATTENTION_PLAN_CUH
#define QUIRE_CUDA_ATTENTION_PLAN_CUH

#include "kernels/cuda/attention.cuh"

#define DECODE_ROWS 16                /* of a matrix tile                                       */
#define TAKER_ROWS  (DECODE_ROWS / 2) /* of them, that a warp takes where keys may be shared    */

struct __align__(16) decode_piece
{
    int seq, pair;      /* pair: kv_head * row_groups + row_group                          */
    int tile, end_tile; /* of the sequence, absolute; none: there are no more pieces       */
    int kv_len;
    int token;              /* of the batch: the row of q and of out                              */
    int slot;               /* where the pair's first chunk is parked; NO_SLOT: none is           */
    int chunk;              /* of those that are parked, which the piece is                       */
    int n_chunks;           /* that are parked in all, of each half of the rows                   */
    int shared_slot;        /* where chunks are parked that the sequence shares; the first one,   */
    int n_shared;           /* or all of them in one, is folded already; none: 0                  */
    unsigned char n_seqs;   /* of seq and those behind it, whose rows the piece has       */
    unsigned char n_halves; /* of the rows, that are in use                               */
    unsigned char first_row; /* of the pair, in its half                                   */
    unsigned char n_sharing; /* sequences that wait for what is at shared_slot             */
};

#define NO_SLOT (-1)

struct attention_plan {
    int n_pieces;
    int n_taken; /* of those after the pieces that blocks start with; zero between launches */
    int n_ended; /* blocks that found the list at its end; the same                         */
    int n_own;   /* see plan_own_pieces(); none where there are groups                      */
    int padding[60];
};

/* What a plan needs at most. */
struct plan_sizes {
    int n_blocks; /* of threads of the decode kernel: one per multiprocessor */
    int n_pieces, n_slots;
    size_t bytes;
};

static __host__ __device__ __forceinline__ int row_groups(int heads_per_kv)
{
    return CEIL_DIV(heads_per_kv, DECODE_ROWS);
}

/* Whether 8 or all of the 16 rows are in use. */
static __host__ __device__ __forceinline__ int row_halves(int heads_per_kv)
{
    return heads_per_kv > DECODE_ROWS / 2 ? 2 : 1;
}

/* Sequences whose rows of a KV head a warp can take together. */
static __host__ __device__ __forceinline__ int taker_seqs(int heads_per_kv)
{
    return max(1, TAKER_ROWS / heads_per_kv);
}

/* The most sequences of a group. */
static __host__ __device__ __forceinline__ int group_seqs(int heads_per_kv)
{
    return heads_per_kv > TAKER_ROWS ? 1 : 2 * taker_seqs(heads_per_kv);
}

/* Parts at the end are cut into chunks, as long as those behind them have fewer than this. */
static __host__ __device__ __forceinline__ int plan_cut_chunks(int n_blocks, int longest)
{
    return n_blocks * longest;
}

/* n_pairs: of a sequence; shares: whether there may be groups. */
static inline struct plan_sizes plan_sizes(int n_blocks, int n_seqs, int n_pairs, int max_kv_len,
                                           bool shares)
{
    struct plan_sizes s;
    int longest = MAX(CEIL_DIV(max_kv_len, ATTENTION_CHUNK), 1);
    size_t n_whole = (size_t)n_seqs * n_pairs, n_chunks = n_whole * longest;
    size_t n_cut = (size_t)plan_cut_chunks(n_blocks, longest) + (size_t)n_pairs * longest;
    size_t n_shared_cut = n_cut + (size_t)n_pairs * longest; /* the last of them has two halves */
    s.n_blocks = n_blocks;
    s.n_slots = (int)(MIN(n_chunks, n_cut) + (shares ? MIN(n_chunks, n_shared_cut) + n_whole : 0));
    s.n_pieces = MAX((int)n_whole + s.n_slots, n_blocks); /* each block looks at one */
    size_t bytes = sizeof(struct attention_plan) + s.n_pieces * sizeof(struct decode_piece) +
                   (s.n_slots + (size_t)n_seqs) * sizeof(int);
    s.bytes = CEIL_DIV(bytes, (size_t)256) * 256;
    return s;
}

/* The parts of a plan in memory. */
static __host__ __device__ __forceinline__ struct decode_piece *
plan_pieces(const struct attention_plan *plan)
{
    return (struct decode_piece *)(plan + 1);
}

static __device__ __forceinline__ int *plan_arrivals(const struct attention_params *p)
{
    return (int *)(plan_pieces(p->plan) + p->max_pieces);
}

/* Chunks that each sequence has in common with the one before it. */
static __device__ __forceinline__ int *plan_alike(const struct attention_params *p)
{
    return plan_arrivals(p) + p->max_slots;
}

/* Past the L1 cache, which may hold the plan of the step before. */
static __device__ __forceinline__ struct decode_piece piece_read(const struct decode_piece *from)
{
    union {
        int4 part[3];
        struct decode_piece piece;
    } x;
    static_assert(sizeof x.piece == sizeof x.part, "all of it is read");
#pragma unroll
    for (int i = 0; i < 3; i++)
        x.part[i] = __ldcg((const int4 *)from + i);
    return x.piece;
}

#define FEED_HAND 4 /* pieces that a block reads at its beginning */

/* Pieces of the list that each block takes by their numbers before it takes any as they come. When
 * they are short: all of a few, which are read at once before the memory is busy; two thirds of
 * many, so that they can be read well ahead. */
static __device__ __forceinline__ int plan_own_pieces(int n_pieces, int n_blocks, bool are_short)
{
    int n = CEIL_DIV(n_pieces, n_blocks);
    return !are_short ? 1 : n <= FEED_HAND ? max(n, 1) : n_pieces * 2 / (n_blocks * 3);
}

/* First tile of the chunk after the one that `tile` is in. */
static __device__ __forceinline__ int next_chunk(int tile)
{
    return (tile / TILES_PER_CHUNK + 1) * TILES_PER_CHUNK;
}

/* Tiles of the sequence that its token sees. A sequence without keys has one tile of zeros, so that
 * its output is written. */
static __device__ __forceinline__ int plan_first_tile(int kv_len, int window)
{
    return max(0, kv_len - window) / ATTENTION_TILE;
}

static __device__ __forceinline__ int plan_end_tile(int kv_len)
{
    return max(1, CEIL_DIV(kv_len, ATTENTION_TILE));
}

#endif
