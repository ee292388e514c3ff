/* attention_decode_rows.cuh - results of the decode kernel: in registers, parked in scratch memory
 * while other blocks of threads compute chunks of the same rows, folded, and written.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_ROWS_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_ROWS_CUH

#include "kernels/cuda/attention_plan.cuh"

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
                                                    const struct decode_piece *piece)
{
    int lane = threadIdx.x % 32, first = tile_warp() * DECODE_COLUMN_TILES(D);
    int n_groups = row_groups(p->heads_per_kv), kv_head = piece->pair / n_groups;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = piece->pair % n_groups * DECODE_ROWS + lane / 4 + 8 * h;
        if (row >= p->heads_per_kv)
            break;
        int head = kv_head * p->heads_per_kv + row;
        float norm = row_norm(r.state.sum[h]);
        T *out = (T *)p->out + ((size_t)piece->token * p->n_heads + head) * D;
#pragma unroll
        for (int n = 0; n < DECODE_COLUMN_TILES(D); n++) {
            if (first + n < D / 8)
                *(uint32_t *)(out + (first + n) * 8 + lane % 4 * 2) =
                    pack_pair(r.out[n][2 * h] * norm, r.out[n][2 * h + 1] * norm, T());
        }
    }
}

template <int D, int N_HALVES>
static __device__ __forceinline__ float2 *parking_space(const struct attention_params *p, int slot)
{
    return (float2 *)p->scratch + (size_t)slot * (DECODE_PARKED_FLOATS(D, N_HALVES) / 2);
}

/* Folds the n chunks of a pair, all parked, in order. Several are fetched together: the L2 cache is
 * 500 cycles away. */
template <int D, int N_HALVES>
static __device__ __forceinline__ void
decode_fold_parked(struct decode_rows<D> &all, const struct attention_params *p, int slot, int n)
{
    constexpr int n_together = D == 128 && N_HALVES == 1 ? 6 : 3;
    decode_rows_clear(all);
    for (int first = 0; first < n; first += n_together) {
        struct decode_rows<D> chunk[n_together];
#pragma unroll
        for (int i = 0; i < n_together; i++) {
            decode_rows_clear(chunk[i]);
            if (first + i < n)
                decode_fetch<D, N_HALVES>(chunk[i],
                                          parking_space<D, N_HALVES>(p, slot + first + i));
        }
#pragma unroll
        for (int i = 0; i < n_together; i++) {
            if (first + i < n)
                decode_fold(all, chunk[i]);
        }
    }
}

/* A chunk of a cut pair is parked. The block that brings the last one folds and writes the pair. By
 * the warps that take values; is_last: shared. */
template <typename T, int D, int N_HALVES>
static __device__ __forceinline__ void decode_arrive(const struct attention_params *p,
                                                     const struct decode_piece *piece,
                                                     volatile int *is_last)
{
    int *n_arrived = plan_arrivals(p) + piece->slot;
    barrier_wait(DECODE_VALUES_BARRIER, ATTENTION_THREADS);
    if (threadIdx.x % ATTENTION_THREADS == 0) {
        *is_last = count_arrival(n_arrived, 1) + 1 == piece->n_chunks;
        if (*is_last)
            *n_arrived = 0;
    }
    barrier_wait(DECODE_VALUES_BARRIER, ATTENTION_THREADS);
    if (!*is_last)
        return;
    struct decode_rows<D> rows;
    decode_fold_parked<D, N_HALVES>(rows, p, piece->slot, piece->n_chunks);
    decode_store<T, D>(rows, p, piece);
}

#endif
