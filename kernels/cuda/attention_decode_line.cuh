/* attention_decode_line.cuh - the work of a decode step as a line of tiles, and a block's share of
 * it.
 *
 * The tiles of all (sequence, KV head) pairs are laid end to end; a KV head with more than 16 query
 * heads counts as several. Share i of n begins at i total / n, rounded up to the next start of a
 * chunk (attention.cuh), and ends where share i + 1 begins. Everything follows from kv_len, which
 * each block of threads reads for itself.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_LINE_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_LINE_CUH

#include "kernels/cuda/attention.cuh"

#define DECODE_ROWS    16 /* of a matrix tile */
#define DECODE_WARPS   (3 * ATTENTION_WARPS)
#define DECODE_THREADS (32 * DECODE_WARPS)

struct decode_board {
    int sums[DECODE_WARPS];
    int seq[2], first_offset[2]; /* of the ends of the share */
    int is_last;
};

/* A place on the line of tiles. */
struct decode_place {
    int seq, kv_head, row_group; /* row_group: of 16 of the KV head's query heads            */
    int tile;                    /* of the sequence, absolute                                */
    int first_tile, end_tile;    /* of the sequence: those that its token sees               */
    int kv_len;
    int offset; /* of the pair's first tile on the line                                      */
};

struct decode_share {
    int start, end, total; /* on the line */
};

static __device__ __forceinline__ int row_groups(const struct attention_params *p)
{
    return CEIL_DIV(p->heads_per_kv, DECODE_ROWS);
}

static __device__ __forceinline__ int decode_pairs(const struct attention_params *p)
{
    return p->n_kv_heads * row_groups(p);
}

/* Fills in the range of tiles of place->seq. A sequence without keys has one tile of zeros, so that
 * its output is written. */
static __device__ __forceinline__ void decode_range(const struct attention_params *p,
                                                    struct decode_place *place)
{
    place->kv_len = p->kv_len[place->seq];
    place->first_tile = max(0, place->kv_len - p->window) / ATTENTION_TILE;
    place->end_tile = max(1, CEIL_DIV(place->kv_len, ATTENTION_TILE));
}

static __device__ __forceinline__ bool decode_takes(const struct attention_params *p, int seq)
{
    return p->q_start[seq + 1] - p->q_start[seq] == 1;
}

static __device__ __forceinline__ int decode_tiles(const struct attention_params *p, int seq)
{
    if (seq >= p->n_seqs)
        return 0;
    struct decode_place place;
    place.seq = seq;
    decode_range(p, &place); /* before the question, so that all loads are under way together */
    return decode_takes(p, seq) ? (place.end_tile - place.first_tile) * decode_pairs(p) : 0;
}

/* Share i starts at i total / n on the line, before it is rounded up. */
static __device__ __forceinline__ int share_start(int block, int total)
{
    unsigned n = gridDim.x, whole = (unsigned)total / n, rest = (unsigned)total % n;
    return (int)(block * whole + block * rest / n);
}

/* Which block's share a place on the line falls into. */
static __device__ __forceinline__ int share_of(int offset, int total)
{
    return (int)((((long)offset + 1) * gridDim.x - 1) / total);
}

/* First tile of the chunk after the one that `tile` is in. */
static __device__ __forceinline__ int next_chunk(int tile)
{
    return (tile / TILES_PER_CHUNK + 1) * TILES_PER_CHUNK;
}

/* Moves to the next pair. */
static __device__ __forceinline__ void decode_next_pair(const struct attention_params *p,
                                                        struct decode_place *place)
{
    place->offset += place->end_tile - place->first_tile;
    if (++place->row_group < row_groups(p)) {
        place->tile = place->first_tile;
        return;
    }
    place->row_group = 0;
    if (++place->kv_head == p->n_kv_heads) {
        place->kv_head = 0;
        do
            place->seq++;
        while (place->seq < p->n_seqs && !decode_takes(p, place->seq));
        if (place->seq < p->n_seqs)
            decode_range(p, place);
    }
    place->tile = place->first_tile;
}

/* The place of `offset`, or of the next start of a chunk; the sequence that it is in and where that
 * begins on the line are given. */
static __device__ __forceinline__ struct decode_place
decode_find(const struct attention_params *p, int seq, int first_offset, int offset)
{
    struct decode_place place;
    place.seq = seq;
    decode_range(p, &place);
    int n_tiles = place.end_tile - place.first_tile, within = offset - first_offset;
    int pair = within / n_tiles;
    place.kv_head = pair / row_groups(p);
    place.row_group = pair % row_groups(p);
    place.offset = first_offset + pair * n_tiles;
    place.tile = place.first_tile + within % n_tiles;
    if (place.tile != place.first_tile && place.tile % TILES_PER_CHUNK != 0)
        place.tile = next_chunk(place.tile);
    if (place.tile >= place.end_tile)
        decode_next_pair(p, &place);
    return place;
}

static __device__ __forceinline__ int decode_offset(const struct decode_place *place)
{
    return place->offset + place->tile - place->first_tile;
}

/* Cuts this block's share out of the line. false: it is empty. */
static __device__ __forceinline__ bool decode_cut(const struct attention_params *p,
                                                  struct decode_board *board,
                                                  struct decode_share *share,
                                                  struct decode_place *place)
{
    int mine = 0, sum, before = 0;
    for (int s = threadIdx.x; s < p->n_seqs; s += DECODE_THREADS)
        mine += decode_tiles(p, s);
    block_prefix_sum<DECODE_WARPS>(mine, &sum, board->sums);
    __syncthreads();
    share->total = sum;
    int ends[2] = {share_start(blockIdx.x, sum), share_start(blockIdx.x + 1, sum)};
    if (ends[0] == ends[1])
        return false;
    for (int first = 0; first < p->n_seqs && before <= ends[1]; first += DECODE_THREADS) {
        int n = decode_tiles(p, first + threadIdx.x);
        int end = before + block_prefix_sum<DECODE_WARPS>(n, &sum, board->sums);
        for (int i = 0; i < 2; i++) {
            if (ends[i] >= end - n && ends[i] < end) {
                board->seq[i] = first + threadIdx.x;
                board->first_offset[i] = end - n;
            }
        }
        before += sum;
        __syncthreads();
    }
    *place = decode_find(p, board->seq[0], board->first_offset[0], ends[0]);
    share->start = decode_offset(place);
    share->end = share->total;
    if (ends[1] < share->total) {
        struct decode_place after = decode_find(p, board->seq[1], board->first_offset[1], ends[1]);
        share->end = decode_offset(&after);
    }
    return share->start < share->end;
}

#endif
