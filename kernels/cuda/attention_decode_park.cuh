/* attention_decode_park.cuh - rows that one warp of the decode kernel leaves in scratch memory for
 * another (attention_decode_hopper.cuh): chunks of a cut pair, which the warp that brings the last
 * one folds; and what a group of sequences shares, from which each of them continues.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_PARK_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_PARK_CUH

#include "kernels/cuda/attention_decode_take.cuh"

/* Of half the rows of a pair: [1 + D / 16][32] float4, each thread's own; the first holds the
 * state. A pair of two halves has those of one behind those of the other. */
template <int D>
static __device__ __forceinline__ float4 *pair_parking(const struct attention_params *p, int index)
{
    return (float4 *)p->scratch + (size_t)index * (DECODE_PARKED_FLOATS(D, 1) / 4) +
           threadIdx.x % 32;
}

/* Index of the first chunk of a piece's pair that is parked. */
static __device__ __forceinline__ int first_parked(const struct attention_params *p,
                                                   const struct decode_piece *piece, int half)
{
    return piece->slot * row_halves(p->heads_per_kv) + half * piece->n_chunks;
}

template <int D>
static __device__ __forceinline__ void pair_park(float4 *to, const struct pair_rows<D> &r,
                                                 const struct taken_rows *rows)
{
    to[0] = make_float4(r.top[0], r.top[1], r.sum, 0);
#pragma unroll
    for (int m = 0; m < D / 16; m++) {
        if (rows->has_out)
            to[(1 + m) * 32] = make_float4(r.out[m][0], r.out[m][1], r.out[m][2], r.out[m][3]);
    }
}

/* What another warp parked: past the L1 cache, which may hold older data. */
template <int D>
static __device__ __forceinline__ void pair_fetch(struct pair_rows<D> &r, const float4 *from,
                                                  const struct taken_rows *rows)
{
    pair_rows_clear(r);
    float4 state = __ldcg(from);
    r.top[0] = state.x;
    r.top[1] = state.y;
    r.sum = state.z;
#pragma unroll
    for (int m = 0; m < D / 16; m++) {
        if (rows->has_out) {
            float4 x = __ldcg(from + (1 + m) * 32);
            r.out[m][0] = x.x;
            r.out[m][1] = x.y;
            r.out[m][2] = x.z;
            r.out[m][3] = x.w;
        }
    }
}

/* Folds n chunks, parked from `index` on, onto what is ahead of them. N are fetched together: the
 * L2 cache is 500 cycles away. */
template <int N, int D>
static __device__ __forceinline__ void
pair_fold_parked(struct pair_rows<D> &all, const struct attention_params *p,
                 const struct taken_rows *rows, int index, int n)
{
    for (int first = 0; first < n; first += N) {
        struct pair_rows<D> chunk[N];
#pragma unroll
        for (int i = 0; i < N; i++)
            pair_fetch(chunk[i], pair_parking<D>(p, index + min(first + i, n - 1)), rows);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (first + i < n)
                pair_fold(all, chunk[i]);
        }
    }
}

/* ---- a cut pair ------------------------------------------------------------------------------ */

/* A chunk of a cut pair is parked, which has several and so a count of arrivals for each half.
 * Whether it is the last one. */
static __device__ __forceinline__ bool pair_arrive(const struct attention_params *p,
                                                   const struct decode_piece *piece, int half)
{
    int *n_arrived = plan_arrivals(p) + piece->slot + half, n = 0;
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        n = count_arrival(n_arrived, 1) + 1;
    n = __shfl_sync(~0u, n, 0);
    if (n < piece->n_chunks)
        return false;
    if (threadIdx.x % 32 == 0)
        *n_arrived = 0;
    return true;
}

/* ---- what a group shares --------------------------------------------------------------------- */

/* Chunks that a group shares are there, for the sequences of this half. */
static __device__ __forceinline__ void shared_arrive(const struct attention_params *p,
                                                     const struct decode_piece *piece, int half)
{
    int n_together = taker_seqs(p->heads_per_kv);
    int n_sharing = min(n_together, piece->n_seqs - half * n_together);
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        count_arrival_around(plan_arrivals(p) + first_parked(p, piece, half),
                             piece->n_chunks + n_sharing - 1);
}

/* Waits for what is ahead of a sequence's own chunks. */
static __device__ __forceinline__ void shared_wait(const struct attention_params *p,
                                                   const struct decode_piece *piece)
{
    if (piece->n_shared > 0 && threadIdx.x % 32 == 0)
        count_wait(plan_arrivals(p) + piece->shared_slot, piece->n_shared);
    __syncwarp();
}

/* It is not needed any more by one of those who wait for it; the last one puts the count back. */
static __device__ __forceinline__ void shared_leave(const struct attention_params *p,
                                                    const struct decode_piece *piece)
{
    __syncwarp();
    if (piece->n_shared > 0 && threadIdx.x % 32 == 0)
        count_arrival_around(plan_arrivals(p) + piece->shared_slot,
                             piece->n_shared + piece->n_sharing - 1);
}

/* What is ahead of a sequence's own chunks. */
template <int D>
static __device__ __forceinline__ void
pair_rows_begin(struct pair_rows<D> &all, const struct attention_params *p,
                const struct decode_piece *piece, const struct taken_rows *rows)
{
    pair_rows_clear(all);
    if (piece->n_shared == 0)
        return;
    shared_wait(p, piece);
    pair_fetch(all, pair_parking<D>(p, piece->shared_slot), rows);
    pair_fold_parked<D <= 128 ? 3 : 1>(all, p, rows, piece->shared_slot + 1, piece->n_shared - 1);
    shared_leave(p, piece);
}

#endif
