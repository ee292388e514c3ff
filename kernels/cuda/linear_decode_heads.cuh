/* linear_decode_heads.cuh - products that are heads: what rope_cache.cu does to them, by the
 * threads that have the sums.
 *
 * A tile has columns j of a head and their partners j + head_dim / 2, both in one thread, so that a
 * rotation needs no other. Heads of 128 are one tile, or two of the two blocks of a cluster, which
 * tell each other their sums of squares.
 */
#ifndef QUIRE_CUDA_LINEAR_DECODE_HEADS_CUH
#define QUIRE_CUDA_LINEAR_DECODE_HEADS_CUH

#include "kernels/cuda/linear_decode.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rope_cache.cuh"

#define EXCHANGED_ROWS 64 /* of a tile */

#if PTX_WARP_GROUPS

/* Sums of squares that the other block sent, of this tile and of the next: it may be ahead. */
struct exchange {
    float (*squares)[EXCHANGED_ROWS]; /* [2], in shared memory */
    uint32_t arrived;                 /* address of a barrier  */
    int peer;                         /* rank of the other     */
    int n;                            /* exchanges so far      */
};

/* A thread's part of a tile: columns column + 8 i and the next, of rows row and row + 8. */
struct head_place {
    int head, column, row, end_row;
};

/* What it is multiplied by, and where its rows go in the cache. TILES: of 8 columns, and as many of
 * partners. */
template <int TILES> struct head_terms {
    bool norm, rotate;
    float2 gain[2][TILES];                   /* of columns, of their partners */
    float2 cosine[2][TILES], sine[2][TILES]; /* of the two rows              */
    int slot[2];
};

template <int TILES>
static __device__ __forceinline__ void load_head_terms(struct head_terms<TILES> *f,
                                                       const struct rope_params *p,
                                                       const struct head_place *t)
{
    enum head_kind kind = head_kind_of(p, t->head);
    const float *gain = head_gain(p, kind);
    int half = p->head_dim / 2;
    f->norm = gain != NULL;
    f->rotate = kind != HEAD_V;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int token = min(t->row + r * 8, p->n_tokens - 1);
        const float *table = p->rope + (size_t)p->position[token] * p->head_dim + t->column;
        f->slot[r] = p->slot[token];
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            f->cosine[r][i] = *(const float2 *)(table + i * 8);
            f->sine[r][i] = *(const float2 *)(table + half + i * 8);
            if (f->norm)
                f->gain[r][i] = *(const float2 *)(gain + r * half + t->column + i * 8);
        }
    }
}

/* Adds what the other block has of the same rows. */
static __device__ __forceinline__ void exchange_squares(float squares[2], struct exchange *e)
{
    int lane = threadIdx.x % CUDA_WARP, row = threadIdx.x / CUDA_WARP * 16 + lane / 4;
    float *own = e->squares[e->n % 2] + row;
    if (threadIdx.x == 0)
        copy_barrier_arrive_expecting(e->arrived, EXCHANGED_ROWS * sizeof(float));
    if (lane % 4 == 0) {
        uint32_t arrived = peer_address(e->arrived, e->peer);
        uint32_t to = peer_address(shared_address(own), e->peer);
        store_to_peer(to, squares[0], arrived);
        store_to_peer(to + 8 * sizeof(float), squares[1], arrived);
    }
    copy_barrier_wait(e->arrived, e->n % 2);
    squares[0] += own[0];
    squares[1] += own[8];
    e->n++;
}

template <int N> static __device__ __forceinline__ float sum_in_pairs(const float x[N])
{
    if constexpr (N == 1)
        return x[0];
    else
        return sum_in_pairs<N / 2>(x) + sum_in_pairs<N / 2>(x + N / 2);
}

/* c: columns, then their partners */
template <int TILES>
static __device__ __forceinline__ void
normalise_heads(float c[2 * TILES][4], const struct head_terms<TILES> *f,
                const struct rope_params *p, struct exchange *e)
{
    float squares[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float eight[TILES];
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const float *a = c[i] + r * 2, *b = c[i + TILES] + r * 2;
            eight[i] = group_sum<4>(four_squares(a[0], a[1], b[0], b[1]));
        }
        squares[r] = sum_in_pairs<TILES>(eight);
    }
    if (p->head_dim > 16 * TILES)
        exchange_squares(squares, e);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float scale = head_scale(squares[r], p->head_dim, p->eps);
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            float2 gain = f->gain[i / TILES][i % TILES];
            c[i][r * 2] *= scale * gain.x;
            c[i][r * 2 + 1] *= scale * gain.y;
        }
    }
}

template <int TILES>
static __device__ __forceinline__ void rotate_heads(float c[2 * TILES][4],
                                                    const struct head_terms<TILES> *f)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            float *a = c[i] + r * 2, *b = c[i + TILES] + r * 2;
            rotate_pair(&a[0], &b[0], f->cosine[r][i].x, f->sine[r][i].x);
            rotate_pair(&a[1], &b[1], f->cosine[r][i].y, f->sine[r][i].y);
        }
    }
}

/* array[i], array[i + 1] = x, y */
static __device__ __forceinline__ void store_two(void *array, enum dtype dtype, size_t i, float x,
                                                 float y)
{
    if (dtype == DTYPE_F32)
        *(float2 *)((float *)array + i) = make_float2(x, y);
    else
        *(uint32_t *)((uint16_t *)array + i) =
            dtype == DTYPE_BF16 ? pack_pair(x, y, __nv_bfloat16()) : pack_pair(x, y, __half());
}

/* Q into its place among q, k and v, K and V into the cache. */
template <int TILES>
static __device__ __forceinline__ void
store_heads(const float c[2 * TILES][4], const struct head_terms<TILES> *f,
            const struct rope_params *p, const struct head_place *t)
{
    enum head_kind kind = head_kind_of(p, t->head);
    int n_heads = p->n_heads + 2 * p->n_kv_heads, kv_head = (t->head - p->n_heads) % p->n_kv_heads;
    void *to = kind == HEAD_Q ? p->qkv : kind == HEAD_K ? p->k_cache : p->v_cache;
    enum dtype dtype = kind == HEAD_Q ? p->act_dtype : p->kv_dtype;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = t->row + r * 8;
        if (row >= t->end_row || (kind != HEAD_Q && f->slot[r] < 0))
            continue;
        size_t at = kind == HEAD_Q ? ((size_t)row * n_heads + t->head) * p->head_dim
                                   : cache_place(p, f->slot[r], kv_head);
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            int column = t->column + i % TILES * 8 + i / TILES * (p->head_dim / 2);
            store_two(to, dtype, at + column, c[i][r * 2], c[i][r * 2 + 1]);
        }
    }
}

/* The sums are rounded first, as they are where rope_cache.cu reads them. */
template <typename T, int TILES>
static __device__ __forceinline__ void
finish_heads(const float sums[2 * TILES][4], const struct head_terms<TILES> *f,
             const struct rope_params *p, const struct head_place *t, struct exchange *e)
{
    float c[2 * TILES][4];
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float2 two = unpack_pair(pack_pair(sums[i][r * 2], sums[i][r * 2 + 1], T()), T());
            c[i][r * 2] = two.x;
            c[i][r * 2 + 1] = two.y;
        }
    if (f->norm)
        normalise_heads(c, f, p, e);
    if (f->rotate)
        rotate_heads(c, f);
    store_heads(c, f, p, t);
}

#endif

#endif
