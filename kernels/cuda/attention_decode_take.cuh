/* attention_decode_take.cuh - what one warp computes of a decode step: tiles of a pair, and the
 * pair's rows (attention_decode_hopper.cuh).
 *
 * Both products are transposed, keys (values) x queries: their 16 rows are keys of a group or
 * columns of the values, and up to eight query heads are the eight columns, so that no half of a
 * product is lost to heads that do not exist. The bits are those of the products and sums of
 * attention.cuh, whose order is kept: what threads of a row hold there is spread over other threads
 * here.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_TAKE_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_TAKE_CUH

#include "kernels/cuda/attention_decode_queue.cuh"
#include "kernels/cuda/attention_decode_rows.cuh"

/* Columns of a panel: as many as a swizzle of 128, 64 or 32 bytes takes and head_dim is a multiple
 * of. */
#define PANEL_COLUMNS(head_dim) ((head_dim) % 64 == 0 ? 64 : (head_dim) % 32 == 0 ? 32 : 16)

/* A thread's part of a warp's TAKER_ROWS, columns of a product: rows c = 0 and 1 are
 * lane % 4 * 2 + c. */
template <int D> struct pair_rows {
    float top[2];         /* as in struct row_state */
    float sum;            /* of row c = lane / 4 % 2: as thread lane / 8 of the row has it there */
    float out[D / 16][4]; /* columns 16 m + lane / 4 + e / 2 * 8 of row c = e % 2 */
};

template <int D> static __device__ __forceinline__ void pair_rows_clear(struct pair_rows<D> &r)
{
    r.top[0] = r.top[1] = -CUDART_INF_F;
    r.sum = 0;
#pragma unroll
    for (int i = 0; i < D / 4; i++)
        r.out[i / 4][i % 4] = 0;
}

/* Of two numbers, that of the row whose sum the thread has. */
static __device__ __forceinline__ float of_sum_row(const float x[2])
{
    return threadIdx.x / 4 % 2 ? x[1] : x[0];
}

/* ---- a tile ---------------------------------------------------------------------------------- */

/* Where a lane's rows of 16 bytes of a group of keys or values are in shared memory, for
 * load_matrix_x4(): of matrix lane / 8, the second of which is eight keys (KEYS_FIRST) or eight
 * columns on, and the third the other. Boxes of rows become panels, [D / columns][GROUP_KEYS]
 * [columns], in which the parts of 16 bytes of a line of 128 bytes are exchanged by its number. */
template <int D, bool KEYS_FIRST> struct group_rows {
    static constexpr int columns = PANEL_COLUMNS(D), n_parts = columns / 8;
    static constexpr int group_bytes = GROUP_KEYS * D * 2;
    uint32_t lane_offset;

    __device__ __forceinline__ group_rows()
    {
        int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
        int row = (KEYS_FIRST ? low : high) * 8 + lane % 8, part = KEYS_FIRST ? high : low;
        int line = row * columns * 2 / 128 % n_parts;
        lane_offset = row * columns * 2 + (part ^ line) * 16;
    }

    /* Of columns 16 i to 16 i + 15 of group g of a tile. */
    __device__ __forceinline__ uint32_t at(uint32_t tile, int g, int i) const
    {
        return tile + (lane_offset ^ (2 * i % n_parts * 16)) + g * group_bytes +
               2 * i / n_parts * (GROUP_KEYS * columns * 2);
    }
};

/* Scores of a tile: [g][e] is of key 16 g + lane / 4 + e / 2 * 8 and row c = e % 2. Those of keys
 * that do not exist are of whatever is there, the rest of a block or an older tile. */
typedef float tile_scores[N_COPIERS][4];

/* q: the rows' right operands. */
template <typename T, int D>
static __device__ __forceinline__ void take_scores(tile_scores s, const uint32_t q[D / 16][2],
                                                   uint32_t keys)
{
    group_rows<D, true> rows;
#pragma unroll
    for (int i = 0; i < N_COPIERS * 4; i++)
        s[i / 4][i % 4] = 0;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
#pragma unroll
        for (int g = 0; g < N_COPIERS; g++) {
            uint32_t k[4];
            load_matrix_x4(k, rows.at(keys, g, i));
            multiply<true>(s[g], k, q[i][0], q[i][1], T());
        }
    }
}

/* cap_scores(), and mask_tile() where a tile has keys that the row does not see. */
template <bool CAPPED>
static __device__ __forceinline__ void take_mask(tile_scores s, const struct attention_params *p,
                                                 int first_key, int kv_len)
{
    int last = kv_len - 1;
    if (CAPPED)
        cap_scores<N_COPIERS>(s, p->slope);
    if (first_key + ATTENTION_TILE <= kv_len && first_key > last - p->window)
        return;
#pragma unroll
    for (int i = 0; i < N_COPIERS * 4; i++) {
        int key = first_key + i / 2 * 8 + (int)(threadIdx.x % 32 / 4);
        if (key > last || key <= last - p->window)
            s[i / 4][i % 4] = -CUDART_INF_F;
    }
}

/* softmax_top(): the largest score of the tile, of both rows. Sums and out decay. */
template <int D>
static __device__ __forceinline__ void take_top(struct pair_rows<D> &r, const tile_scores s,
                                                float base[2], float scale_log2)
{
    float decay[2];
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float top = fmaxf(s[0][c], s[0][2 + c]);
#pragma unroll
        for (int g = 1; g < N_COPIERS; g++)
            top = fmaxf(top, fmaxf(s[g][c], s[g][2 + c]));
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
            top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
        top = fmaxf(r.top[c], __fmul_rn(top, scale_log2));
        base[c] = top == -CUDART_INF_F ? 0 : top;
        decay[c] = exp2_approx(r.top[c] - base[c]);
        r.top[c] = top;
    }
    r.sum = __fmul_rn(r.sum, of_sum_row(decay));
#pragma unroll
    for (int i = 0; i < D / 4; i++)
        r.out[i / 4][i % 4] = __fmul_rn(r.out[i / 4][i % 4], decay[i % 2]);
}

/* softmax_numerators(). Keys 2 j and 2 j + 1 of each eight go into one sum, in order: they are in
 * two threads, each of which takes one row of both. */
static __device__ __forceinline__ void take_numerators(tile_scores s, float *sum,
                                                       const float base[2], float scale_log2)
{
    bool is_second = threadIdx.x / 4 % 2;
#pragma unroll
    for (int i = 0; i < N_COPIERS * 2; i++) {
        float *x = s[i / 2] + i % 2 * 2;
        x[0] = exp2_approx(__fmaf_rn(x[0], scale_log2, -base[0]));
        x[1] = exp2_approx(__fmaf_rn(x[1], scale_log2, -base[1]));
        float other = __shfl_xor_sync(~0u, is_second ? x[0] : x[1], 4);
        *sum = __fadd_rn(*sum, is_second ? other : x[0]);
        *sum = __fadd_rn(*sum, is_second ? x[1] : other);
    }
}

/* Which halves of a word with the values of keys `first` and first + 1 exist. */
static __device__ __forceinline__ uint32_t kept_values(int first, int n_keys)
{
    return first + 1 < n_keys ? 0xffffffff : first < n_keys ? 0xffff : 0;
}

/* out += values of a tile's first N_GROUPS groups. What is there of keys that do not exist, the
 * rest of a block or of an older tile, becomes zeros; WHOLE: all exist. */
template <typename T, int D, int N_GROUPS, bool WHOLE>
static __device__ __forceinline__ void take_values(float out[D / 16][4], const tile_scores s,
                                                   uint32_t values, int n_keys)
{
    group_rows<D, false> rows;
    int key = threadIdx.x % 4 * 2;
#pragma unroll
    for (int g = 0; g < N_GROUPS; g++) {
        uint32_t b[2], kept[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            kept[i] = kept_values(g * GROUP_KEYS + key + 8 * i, n_keys);
            b[i] = transpose_matrix(pack_pair(s[g][2 * i], s[g][2 * i + 1], T()));
        }
#pragma unroll
        for (int m = 0; m < D / 16; m++) {
            uint32_t v[4];
            load_matrix_x4_transposed(v, rows.at(values, g, m));
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] = WHOLE ? v[i] : v[i] & kept[i / 2];
            multiply<true>(out[m], v, b[0], b[1], T());
        }
    }
}

/* Scores become numerators; sums and out decay. */
template <int D>
static __device__ __forceinline__ void take_softmax(struct pair_rows<D> &r, tile_scores s,
                                                    const struct attention_params *p)
{
    float base[2];
    take_top<D>(r, s, base, p->scale_log2);
    take_numerators(s, &r.sum, base, p->scale_log2);
}

/* The last keys of a sequence. Groups beyond the last key are left out, and what products with
 * zeros would do is done by hand: no zero stays negative. */
template <typename T, int D>
static __device__ __forceinline__ void take_last_values(float out[D / 16][4], const tile_scores s,
                                                        uint32_t values, int n_keys)
{
    if (n_keys <= ATTENTION_TILE / 2)
        take_values<T, D, N_COPIERS / 2, false>(out, s, values, n_keys);
    else
        take_values<T, D, N_COPIERS, false>(out, s, values, n_keys);
#pragma unroll
    for (int i = 0; i < D / 4; i++)
        out[i / 4][i % 4] = __fadd_rn(out[i / 4][i % 4], 0);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* The heads of a sequence that half the rows of a piece has: *first, and the ones behind it. */
static __device__ __forceinline__ int taken_heads(const struct attention_params *p,
                                                  const struct decode_piece *piece, int half,
                                                  int *first)
{
    int n_heads = p->heads_per_kv, n_groups = row_groups(n_heads);
    int skipped =
        n_heads > TAKER_ROWS ? piece->pair % n_groups * DECODE_ROWS + half * TAKER_ROWS : 0;
    *first = piece->pair / n_groups * n_heads + skipped;
    return max(0, min(n_heads - skipped, TAKER_ROWS));
}

/* Which rows of a piece a warp has. */
struct taken_rows {
    int token, head; /* of row lane / 4                           */
    bool exists;     /* that row; and one of the thread's `out`   */
    bool has_out;
    int half;
};

static __device__ __forceinline__ struct taken_rows
taken_rows(const struct attention_params *p, const struct decode_piece *piece, int half)
{
    int lane = threadIdx.x % 32, first_head, n_heads = taken_heads(p, piece, half, &first_head);
    int row = lane / 4 - piece->first_row, out_row = lane % 4 * 2 - piece->first_row;
    int n_together = taker_seqs(p->heads_per_kv), first_seq = half * n_together;
    if (p->heads_per_kv > TAKER_ROWS)
        first_seq = 0; /* whose heads are in both halves */
    int n_rows = min(n_together, piece->n_seqs - first_seq) * n_heads;
    int seq = row / max(n_heads, 1);
    struct taken_rows rows;
    rows.token = piece->token + first_seq + seq;
    rows.head = first_head + row - seq * n_heads;
    rows.exists = row >= 0 && row < n_rows;
    rows.has_out = out_row + 1 >= 0 && out_row < n_rows;
    rows.half = half;
    return rows;
}

/* The rows of q as right operands; zeros where none exists. */
template <typename T, int D>
static __device__ __forceinline__ void
take_queries(uint32_t q[D / 16][2], const struct attention_params *p, const struct taken_rows *rows)
{
    size_t stride_heads = p->n_heads + 2 * p->n_kv_heads;
    const T *from =
        (const T *)p->qkv + (rows->token * stride_heads + rows->head) * D + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        q[i / 2][i % 2] = rows->exists ? *(const uint32_t *)(from + 8 * i) : 0;
}

/* row_sums(): ends a chunk. */
template <int D> static __device__ __forceinline__ void pair_sums(struct pair_rows<D> &r)
{
    r.sum = __fadd_rn(r.sum, __shfl_xor_sync(~0u, r.sum, 8));
    r.sum = __fadd_rn(r.sum, __shfl_xor_sync(~0u, r.sum, 16));
}

/* fold_states() and fold(). */
template <int D>
static __device__ __forceinline__ void pair_fold(struct pair_rows<D> &ahead,
                                                 const struct pair_rows<D> &chunk)
{
    struct row_state rows = {{ahead.top[0], ahead.top[1]}, {0, 0}};
    const struct row_state others = {{chunk.top[0], chunk.top[1]}, {0, 0}};
    struct fold_weights w = fold_states(&rows, &others);
    ahead.top[0] = rows.top[0];
    ahead.top[1] = rows.top[1];
    ahead.sum = fold(ahead.sum, of_sum_row(w.ahead), chunk.sum, of_sum_row(w.chunk));
#pragma unroll
    for (int i = 0; i < D / 4; i++)
        ahead.out[i / 4][i % 4] =
            fold(ahead.out[i / 4][i % 4], w.ahead[i % 2], chunk.out[i / 4][i % 4], w.chunk[i % 2]);
}

template <typename T, int D>
static __device__ __forceinline__ void pair_store(const struct pair_rows<D> &r,
                                                  const struct attention_params *p,
                                                  const struct taken_rows *rows)
{
    int lane = threadIdx.x % 32, row = lane / 4;
    float own = row_norm(r.sum), other = __shfl_xor_sync(~0u, own, 4);
    const float norm[2] = {row % 2 ? other : own, row % 2 ? own : other};
    T *out = (T *)p->out + ((size_t)rows->token * p->n_heads + rows->head) * D + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        const float *x = r.out[i / 2] + i % 2 * 2;
        uint32_t pair = transpose_matrix(pack_pair(x[0] * norm[0], x[1] * norm[1], T()));
        if (rows->exists)
            *(uint32_t *)(out + 8 * i) = pair;
    }
}

#endif
