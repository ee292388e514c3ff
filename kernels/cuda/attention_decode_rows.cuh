/* attention_decode_rows.cuh - results of the decode kernel: in registers, parked in scratch memory
 * while other blocks of threads compute chunks of the same rows, folded, and written.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_ROWS_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_ROWS_CUH

#include "kernels/cuda/attention_decode_line.cuh"

#define DECODE_VALUES_BARRIER 1 /* of the threads that hold rows; 0 is of all */

/* Column tiles of 8 that a warp has of the output. */
#define DECODE_COLUMN_TILES(head_dim) CEIL_DIV((head_dim) / 8, ATTENTION_WARPS)

/* A thread's part of the rows: row lane / 4 + 8 h, columns of its warp. */
template <int D> struct decode_rows {
    struct row_state state;
    float out[DECODE_COLUMN_TILES(D)][4];
};

template <int D> static __device__ __forceinline__ void decode_rows_clear(struct decode_rows<D> &r)
{
    r.state = row_state_empty();
#pragma unroll
    for (int n = 0; n < DECODE_COLUMN_TILES(D); n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            r.out[n][e] = 0;
    }
}

template <int D>
static __device__ __forceinline__ void decode_fold(struct decode_rows<D> &ahead,
                                                   const struct decode_rows<D> &chunk)
{
    struct fold_weights w = fold_states(&ahead.state, &chunk.state);
#pragma unroll
    for (int n = 0; n < DECODE_COLUMN_TILES(D); n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            ahead.out[n][e] =
                fold(ahead.out[n][e], w.ahead[e / 2], chunk.out[n][e], w.chunk[e / 2]);
    }
}

/* Parked rows: [1 + DECODE_COLUMN_TILES][n_halves][ATTENTION_THREADS] float2, each thread's own;
 * the first holds (top, sum). */
#define DECODE_PARKED_FLOATS(head_dim, n_halves)                                                   \
    ((1 + DECODE_COLUMN_TILES(head_dim)) * (n_halves)*ATTENTION_THREADS * 2)

template <int D, int N_HALVES>
static __device__ __forceinline__ void decode_park(float2 *to, const struct decode_rows<D> &r)
{
    to += threadIdx.x % ATTENTION_THREADS;
#pragma unroll
    for (int h = 0; h < N_HALVES; h++) {
        to[h * ATTENTION_THREADS] = make_float2(r.state.top[h], r.state.sum[h]);
#pragma unroll
        for (int n = 0; n < DECODE_COLUMN_TILES(D); n++)
            to[((1 + n) * N_HALVES + h) * ATTENTION_THREADS] =
                make_float2(r.out[n][2 * h], r.out[n][2 * h + 1]);
    }
}

/* What another block parked: past the L1 cache, which may hold older data. */
template <int D, int N_HALVES>
static __device__ __forceinline__ void decode_fetch(struct decode_rows<D> &r, const float2 *from)
{
    from += threadIdx.x % ATTENTION_THREADS;
#pragma unroll
    for (int h = 0; h < N_HALVES; h++) {
        float2 state = __ldcg(from + h * ATTENTION_THREADS);
        r.state.top[h] = state.x;
        r.state.sum[h] = state.y;
#pragma unroll
        for (int n = 0; n < DECODE_COLUMN_TILES(D); n++) {
            float2 out = __ldcg(from + ((1 + n) * N_HALVES + h) * ATTENTION_THREADS);
            r.out[n][2 * h] = out.x;
            r.out[n][2 * h + 1] = out.y;
        }
    }
}

template <typename T, int D>
static __device__ __forceinline__ void decode_store(const struct decode_rows<D> &r,
                                                    const struct attention_params *p,
                                                    const struct decode_place *place)
{
    int lane = threadIdx.x % 32, first = tile_warp() * DECODE_COLUMN_TILES(D);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = place->row_group * DECODE_ROWS + lane / 4 + 8 * h;
        if (row >= p->heads_per_kv)
            break;
        int head = place->kv_head * p->heads_per_kv + row;
        float norm = row_norm(r.state.sum[h]);
        T *out = (T *)p->out + ((size_t)p->q_start[place->seq] * p->n_heads + head) * D;
#pragma unroll
        for (int n = 0; n < DECODE_COLUMN_TILES(D); n++) {
            if (first + n < D / 8)
                *(uint32_t *)(out + (first + n) * 8 + lane % 4 * 2) =
                    pack_pair(r.out[n][2 * h] * norm, r.out[n][2 * h + 1] * norm, T());
        }
    }
}

/* Where blocks leave the chunks of pairs that they share: [gridDim.x][max_parked], the first for
 * the fold of the first block of a pair, the others for chunks. */
struct decode_parking {
    float2 *rows;
    int max_parked;
};

template <int D, int N_HALVES>
static __device__ __forceinline__ float2 *parking_space(const struct decode_parking *parking,
                                                        int block, int i)
{
    constexpr size_t size = DECODE_PARKED_FLOATS(D, N_HALVES) / 2;
    return parking->rows + ((size_t)block * parking->max_parked + i) * size;
}

/* Where the chunks of a shared pair are, in order: after the fold of its first block, those that
 * other blocks parked. */
struct parked_chunks {
    int owner;       /* the pair's first block                      */
    int tile;        /* first of the next chunk that is looked for  */
    int block, used; /* where the last one was, and its space there */
};

/* The space of the next parked chunk, NULL after the last. */
template <int D, int N_HALVES>
static __device__ __forceinline__ float2 *parked_next(struct parked_chunks *c,
                                                      const struct decode_parking *parking,
                                                      const struct decode_place *place, int total)
{
    while (c->tile < place->end_tile) {
        int block = share_of(place->offset + c->tile - place->first_tile, total);
        c->used = block == c->block ? c->used + 1 : 1;
        c->block = block;
        c->tile += TILES_PER_CHUNK;
        if (block != c->owner)
            return parking_space<D, N_HALVES>(parking, block, c->used);
    }
    return NULL;
}

/* Folds a pair whose parts are all parked, in the order of its chunks. Several chunks are fetched
 * together: the L2 cache is 500 cycles away. */
template <int D, int N_HALVES>
static __device__ __forceinline__ void
decode_fold_parked(struct decode_rows<D> &all, const struct decode_parking *parking,
                   const struct decode_place *place, int total)
{
    constexpr int n_together = D == 128 && N_HALVES == 1 ? 6 : 3;
    int owner = share_of(place->offset, total);
    struct parked_chunks next = {owner, next_chunk(place->first_tile), owner, 0};
    decode_rows_clear(all);
    decode_fetch<D, N_HALVES>(all, parking_space<D, N_HALVES>(parking, owner, 0));
    for (;;) {
        struct decode_rows<D> chunk[n_together];
        bool exists[n_together];
#pragma unroll
        for (int i = 0; i < n_together; i++) {
            const float2 *space = parked_next<D, N_HALVES>(&next, parking, place, total);
            exists[i] = space != NULL;
            decode_rows_clear(chunk[i]);
            if (exists[i])
                decode_fetch<D, N_HALVES>(chunk[i], space);
        }
#pragma unroll
        for (int i = 0; i < n_together; i++) {
            if (!exists[i])
                return;
            decode_fold(all, chunk[i]);
        }
    }
}

/* A block is done with its part of a pair that others share: n_chunks of it are parked. The block
 * that brings the last chunk folds and writes the pair. By the warps that take values. */
template <typename T, int D, int N_HALVES>
static __device__ __forceinline__ void
decode_arrive(const struct attention_params *p, struct decode_board *board,
              const struct decode_parking *parking, const struct decode_place *place,
              const struct decode_share *share, int n_chunks)
{
    int *counter = &p->counters->n_arrived[share_of(place->offset, share->total)];
    int first_chunk = place->first_tile / TILES_PER_CHUNK;
    int all_chunks = (place->end_tile - 1) / TILES_PER_CHUNK - first_chunk + 1;
    barrier_wait(DECODE_VALUES_BARRIER, ATTENTION_THREADS);
    if (threadIdx.x % ATTENTION_THREADS == 0) {
        __threadfence(); /* for what all threads before the barrier parked */
        board->is_last = atomicAdd(counter, n_chunks) + n_chunks == all_chunks;
        if (board->is_last)
            *counter = 0;
        __threadfence();
    }
    barrier_wait(DECODE_VALUES_BARRIER, ATTENTION_THREADS);
    if (!board->is_last)
        return;
    struct decode_rows<D> rows;
    decode_fold_parked<D, N_HALVES>(rows, parking, place, share->total);
    decode_store<T, D>(rows, p, place);
}

#endif
