/* attention.cuh - inside of attention on CUDA: its parameters, and the arithmetic of one query row
 * that all tensor-core kernels share.
 *
 * The rule. A row's result has the same bits whether it is computed by a decode step, by a prefill
 * chunk of any size or by a whole prefill, for any block size and any batch. So the steps of a row
 * are fixed by absolute key positions alone:
 *
 *   - Keys are taken in tiles of ATTENTION_TILE. A score is one chain of matrix instructions over
 *     head_dim in ascending order, and with a soft-cap cap_score() of that; a tile updates
 *     (top, sum, out) of the row by softmax_tile() and one chain of matrix instructions over its
 *     keys in ascending order.
 *   - ATTENTION_CHUNK keys make a chunk. Each chunk starts from an empty state, and the states of
 *     the chunks are folded in ascending order by fold_weights().
 *
 * Chunks are what the decode kernel hands to different blocks of threads; the prefill kernel walks
 * through them and folds at the same places. A tile or a chunk in which a row sees no key leaves
 * its state as it was, bit for bit, so rows that share a tile need not agree on where they start
 * and end.
 *
 * A chunk of 512 keys: with 256 prefill of 4 x 4096 tokens takes 11 % longer (each chunk costs it
 * 64 KiB written and read per 128 rows), with 1024 one sequence has too few pieces to decode.
 */
#ifndef QUIRE_CUDA_ATTENTION_CUH
#define QUIRE_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

#include <math_constants.h>

#define ATTENTION_TILE         64
#define ATTENTION_CHUNK        512
#define TILES_PER_CHUNK        (ATTENTION_CHUNK / ATTENTION_TILE)
#define ATTENTION_WARPS        4
#define ATTENTION_THREADS      (32 * ATTENTION_WARPS)
#define TILE_STEPS             (ATTENTION_TILE / 8) /* 16x8 score tiles of a key tile */
#define GROUP_KEYS             (ATTENTION_TILE / ATTENTION_WARPS)
#define MAX_DECODE_BLOCKS      1024 /* of threads */
#define ATTENTION_MAX_HEAD_DIM 256
#define ROW_PADDING            8 /* elements after each row in shared memory: no bank conflicts */

/* Starts the scratch memory; zero between launches. */
struct attention_counters {
    int next_job, n_done;
    int padding[62];
};

struct attention_plan; /* attention_plan.cuh */

struct attention_params {
    void *out;         /* [n_tokens, n_heads, head_dim]                               */
    const void *qkv;   /* [n_tokens, n_heads + 2 n_kv_heads, head_dim]                */
    const void *k, *v; /* [n_blocks, n_kv_heads, block_size, head_dim]               */
    const int *q_start, *kv_len, *block_table; /* as in struct batch                 */
    int n_tokens, n_seqs, max_blocks;
    int n_heads, n_kv_heads, head_dim, block_size;
    size_t block_elements; /* of a block's keys, or values                          */
    int heads_per_kv;      /* query heads that share a KV head                            */
    int window;            /* keys that a row sees; INT_MAX / 2: all up to its own        */
    float scale_log2;      /* of scores, as powers of two; with a soft-cap, which is that, of   */
    float slope;           /* tanh(slope score / 2); 0: no soft-cap                       */
    enum dtype act_dtype, kv_dtype;
    struct attention_counters *counters;
    struct attention_plan *plan; /* of the step's decodes: for the kernels with tiles */
    int max_pieces, max_slots;   /* in it                                             */
    float *scratch;
    size_t scratch_floats;
};

/* ---- launchers ------------------------------------------------------------------------------ */

/* Whether a tensor-core kernel exists for the head size. */
static inline bool attention_has_tiles(int head_dim)
{
    return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}

/* The longest rows for which there is room in 64 KiB of shared memory. */
#define TURING_MAX_HEAD_DIM 128

/* The tensor-core kernels, of the sequences with several tokens (prefill) and of those with one
 * (decode). q, k, v and out have the kernel's type; attention_has_tiles(head_dim). */
void attention_flash_bf16(const struct cuda_device *d, const struct attention_params *p,
                          bool prefill, bool decode);
void attention_flash_f16(const struct cuda_device *d, const struct attention_params *p,
                         bool prefill, bool decode);
void attention_turing_f16(const struct cuda_device *d, const struct attention_params *p,
                          bool prefill, bool decode);

/* Prefill for compute capability 9.0. False, and nothing is launched, where it is not made for the
 * device, types, head_dim, block_size or so few keys. */
bool attention_hopper(const struct cuda_device *d, const struct attention_params *p);

/* Makes the plan that the decode kernels of a step follow; shares: keys that sequences share are
 * computed once. */
void attention_plan(const struct cuda_device *d, const struct attention_params *p, bool shares);

/* Whether attention_flash_...() can follow such a plan. */
bool attention_flash_shares(const struct cuda_device *d, const struct attention_params *p);

/* Any head_dim up to ATTENTION_MAX_HEAD_DIM, any types. */
void attention_generic(const struct cuda_device *d, const struct attention_params *p);
void attention_eager(const struct cuda_device *d, const struct attention_params *p, int max_kv_len);

/* Describes an array of rows of 16-bit elements for copy_box_kept(), boxes of n_rows rows and
 * n_columns columns; 32, 64 or 128 bytes of a row, which are swizzled as wide. */
void attention_map_boxes(CUtensorMap *map, const void *rows, int head_dim, int n_rows,
                         int n_columns);

/* The same for copy_box(): a box is GROUP_KEYS whole rows, which become
 * [head_dim / n_columns][GROUP_KEYS][n_columns] in shared memory. */
void attention_map_rows(CUtensorMap *map, const void *rows, int head_dim, int n_columns);

/* Describes the queries for copy_block(): a box is 64 columns of the heads of one KV head, of
 * n_tokens tokens. */
void attention_map_queries(CUtensorMap *map, const struct attention_params *p, int n_tokens);

/* Scratch of the above, in floats. n_slots: for parked chunks of decodes. */
size_t attention_tiles_scratch(const struct cuda_device *d, const struct attention_shape *shape,
                               int n_slots);
size_t attention_eager_scratch(const struct cuda_device *d, int max_kv_len);

/* ---- the soft-cap --------------------------------------------------------------------------- */

/* tanh(slope score / 2), the soft-cap up to its factor, which is in scale_log2. With y = |slope
 * score| it is (e^y - 1) / (e^y + 1) with the sign of the score; from y = 20 on 1. e^y = 2^n (1 +
 * p): y = n ln 2 + r, |r| <= ln 2 / 2, p = e^r - 1 = r + r^2 q(r) with q interpolated at the
 * Chebyshev nodes; the numerator 2^n p + (2^n - 1) keeps the digits of a small y. Relative error
 * below 2^-21.7. Every operation is named, so that all kernels compile it to the same bits. */
static __device__ __forceinline__ float cap_score(float score, float slope)
{
    const float round_magic = 0x1.8p23f; /* adding it leaves round(x) in the low bits */
    float y = fabsf(__fmul_rn(score, slope));
    y = y > 20 ? 20 : y; /* a NaN stays one */
    float shifted = __fmaf_rn(y, 0x1.715476p+0f, round_magic);
    float n = __fadd_rn(shifted, -round_magic);
    float r = __fmaf_rn(n, -0x1.7f7d1cp-20f, __fmaf_rn(n, -0x1.62e4p-1f, y));
    float q = __fmaf_rn(0x1.6d113cp-10f, r, 0x1.120ba2p-7f);
    q = __fmaf_rn(q, r, 0x1.55551ap-5f);
    q = __fmaf_rn(q, r, 0x1.5554dcp-3f);
    q = __fmaf_rn(q, r, 0.5f);
    float p = __fmaf_rn(__fmul_rn(r, r), q, r);
    float power = __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23));
    float e = __fmaf_rn(power, p, __fadd_rn(power, -1));
    return copysignf(__fmul_rn(e, reciprocal_approx(__fadd_rn(e, 2))), score);
}

/* N 16x8 tiles of scores. */
template <int N> static __device__ __forceinline__ void cap_scores(float s[N][4], float slope)
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[n][e] = cap_score(s[n][e], slope);
    }
}

/* ---- the state of a row --------------------------------------------------------------------- */

/* Of the two rows of a 16x8 accumulator tile that a thread has a part of. The four threads of a row
 * hold the same top; each has the sum of its own columns until row_sums() adds them. */
struct row_state {
    float top[2]; /* the largest score seen, times scale_log2; -inf: none seen */
    float sum[2]; /* of 2^(score - top)                                        */
};

static __device__ __forceinline__ struct row_state row_state_empty(void)
{
    struct row_state s = {{-CUDART_INF_F, -CUDART_INF_F}, {0, 0}};
    return s;
}

/* Takes the largest of the tile's scores into the state. decay[h] is what the row's sums so far are
 * to be multiplied with; base[h] is what the numerators are relative to. N_HALVES = 1: only the
 * lower eight of the 16 rows are in use. */
template <int N_HALVES>
static __device__ __forceinline__ void softmax_top(const float s[TILE_STEPS][4],
                                                   struct row_state *state, float decay[2],
                                                   float base[2], float scale_log2)
{
    decay[1] = 1;
    base[1] = 0;
#pragma unroll
    for (int h = 0; h < N_HALVES; h++) {
        float top = fmaxf(s[0][2 * h], s[0][2 * h + 1]);
#pragma unroll
        for (int n = 1; n < TILE_STEPS; n++)
            top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        top = fmaxf(state->top[h], __fmul_rn(top, scale_log2));
        base[h] = top == -CUDART_INF_F ? 0 : top; /* no key seen yet: -inf - -inf is no number */
        decay[h] = exp2_approx(state->top[h] - base[h]);
        state->top[h] = top;
        state->sum[h] = __fmul_rn(state->sum[h], decay[h]);
    }
}

/* Eight columns of scores become the exponents of their numerators 2^(score - base). */
template <int N_HALVES>
static __device__ __forceinline__ void softmax_exponents(float s[4], const float base[2],
                                                         float scale_log2)
{
#pragma unroll
    for (int e = 0; e < 2 * N_HALVES; e++)
        s[e] = __fmaf_rn(s[e], scale_log2, -base[e / 2]);
}

/* Exponents become numerators, and go into the sums. To be called for the columns in ascending
 * order. */
template <int N_HALVES>
static __device__ __forceinline__ void softmax_powers(float s[4], struct row_state *state)
{
#pragma unroll
    for (int e = 0; e < 2 * N_HALVES; e++) {
        s[e] = exp2_approx(s[e]);
        state->sum[e / 2] = __fadd_rn(state->sum[e / 2], s[e]);
    }
}

/* Both. */
template <int N_HALVES>
static __device__ __forceinline__ void softmax_numerators(float s[4], struct row_state *state,
                                                          const float base[2], float scale_log2)
{
    softmax_exponents<N_HALVES>(s, base, scale_log2);
    softmax_powers<N_HALVES>(s, state);
}

/* Ends a chunk: the sums of the four threads of each row. */
static __device__ __forceinline__ void row_sums(struct row_state *state)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        state->sum[h] = __fadd_rn(state->sum[h], __shfl_xor_sync(~0u, state->sum[h], 1));
        state->sum[h] = __fadd_rn(state->sum[h], __shfl_xor_sync(~0u, state->sum[h], 2));
    }
}

/* Hides the keys beyond a row's own position and those before its window. key: of s[0][0]. */
static __device__ __forceinline__ void mask_tile(float s[TILE_STEPS][4], int key, int position0,
                                                 int position1, int window)
{
#pragma unroll
    for (int n = 0; n < TILE_STEPS; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int k = key + 8 * n + (e & 1), position = e < 2 ? position0 : position1;
            if (k > position || k <= position - window)
                s[n][e] = -CUDART_INF_F;
        }
    }
}

/* What the state before a chunk (`ahead`) and the chunk's own are multiplied with when they are
 * folded: out = ahead.out * ahead_weight + chunk.out * chunk_weight by fold(). */
struct fold_weights {
    float ahead[2], chunk[2];
};

static __device__ __forceinline__ float fold(float ahead, float ahead_weight, float chunk,
                                             float chunk_weight)
{
    return __fmaf_rn(ahead, ahead_weight, __fmul_rn(chunk, chunk_weight));
}

static __device__ __forceinline__ struct fold_weights fold_states(struct row_state *ahead,
                                                                  const struct row_state *chunk)
{
    struct fold_weights w;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = fmaxf(ahead->top[h], chunk->top[h]), base = top == -CUDART_INF_F ? 0 : top;
        w.ahead[h] = exp2_approx(ahead->top[h] - base);
        w.chunk[h] = exp2_approx(chunk->top[h] - base);
        ahead->sum[h] = fold(ahead->sum[h], w.ahead[h], chunk->sum[h], w.chunk[h]);
        ahead->top[h] = top;
    }
    return w;
}

/* What a row's out is multiplied with at the end; zero for a row that saw no key. */
static __device__ __forceinline__ float row_norm(float sum)
{
    return sum > 0 ? __frcp_rn(sum) : 0;
}

/* ---- keys and values ------------------------------------------------------------------------ */

/* Which of the ATTENTION_WARPS warps with the same task this one is. */
static __device__ __forceinline__ int tile_warp(void)
{
    return threadIdx.x / 32 % ATTENTION_WARPS;
}

/* Index of the first element of a key (value) in the cache, given its block. */
static __device__ __forceinline__ size_t kv_index(const struct attention_params *p, int block,
                                                  int kv_head, int offset)
{
    return (size_t)block * p->block_elements + (kv_head * p->block_size + offset) * p->head_dim;
}

/* Where a key is. */
struct key_place {
    int block, offset;
};

/* Of the first of the GROUP_KEYS keys of this lane's tile that one of the ATTENTION_WARPS copies;
 * lane 0 has the first tile. */
static __device__ __forceinline__ struct key_place key_place_find(const struct attention_params *p,
                                                                  int seq, int first_tile, int warp)
{
    int key = (first_tile + threadIdx.x % 32) * ATTENTION_TILE + warp * GROUP_KEYS;
    int index = (int)((unsigned)key / (unsigned)p->block_size);
    struct key_place place;
    place.offset = key - index * p->block_size;
    place.block = p->block_table[(size_t)seq * p->max_blocks + min(index, p->max_blocks - 1)];
    return place;
}

/* The blocks of 32 tiles of a sequence, a tile per lane: of the first of the GROUP_KEYS keys that
 * this warp copies of the tile. So the table is waited for once in 32 tiles. */
struct block_window {
    int seq;
    int first_tile;
    struct key_place at; /* of this lane's tile */
};

static __device__ __forceinline__ void
block_window_load(struct block_window *w, const struct attention_params *p, int seq, int first_tile)
{
    w->seq = seq;
    w->first_tile = first_tile;
    w->at = key_place_find(p, seq, first_tile, tile_warp());
}

/* The keys of a tile that a warp copies. Usually one block holds them all; then they are one piece
 * of memory. */
struct key_group {
    int seq, kv_head;
    int first;         /* position of the first key           */
    int n;             /* keys that exist; the rest is zeros  */
    int block, offset; /* where the first key is      */
};

/* limit: keys of the sequence. */
static __device__ __forceinline__ struct key_group key_group_find(struct block_window *w,
                                                                  const struct attention_params *p,
                                                                  int seq, int kv_head, int tile,
                                                                  int limit)
{
    if (seq != w->seq || tile < w->first_tile || tile >= w->first_tile + 32)
        block_window_load(w, p, seq, tile);
    struct key_group g = {seq, kv_head};
    g.first = tile * ATTENTION_TILE + tile_warp() * GROUP_KEYS;
    g.n = max(0, min(GROUP_KEYS, limit - g.first));
    g.block = __shfl_sync(~0u, w->at.block, tile - w->first_tile);
    g.offset = __shfl_sync(~0u, w->at.offset, tile - w->first_tile);
    return g;
}

/* Whether all of its keys exist, in one block. */
static __device__ __forceinline__ bool key_group_is_whole(const struct key_group *g,
                                                          const struct attention_params *p)
{
    return g->n == GROUP_KEYS && g->offset + GROUP_KEYS <= p->block_size;
}

template <bool AMPERE>
static __device__ __forceinline__ void copy_16(uint32_t to, const void *from, bool valid)
{
#if PTX_AMPERE
    if (AMPERE) {
        copy_async_16(to, from, valid);
        return;
    }
#endif
    uint4 zero = {0, 0, 0, 0};
    store_shared_16(to, valid ? __ldg((const uint4 *)from) : zero);
}

template <bool AMPERE> static __device__ __forceinline__ void copy_commit(void)
{
#if PTX_AMPERE
    if (AMPERE)
        copy_async_commit();
#endif
}

/* Waits until at most n_pending groups of copies of this thread are under way. */
template <bool AMPERE> static __device__ __forceinline__ void copy_wait(int n_pending)
{
#if PTX_AMPERE
    if (!AMPERE)
        return;
    switch (n_pending) {
    case 4: copy_async_wait<4>(); break;
    case 3: copy_async_wait<3>(); break;
    case 2: copy_async_wait<2>(); break;
    case 1: copy_async_wait<1>(); break;
    default: copy_async_wait<0>();
    }
#endif
}

/* The group's rows of `from` (all keys or all values) to shared memory, by one warp; to(row, part)
 * is where 16 bytes of a row go. */
template <typename T, int D, bool AMPERE, typename ADDRESS>
static __device__ __forceinline__ void key_group_copy(ADDRESS to, const T *from,
                                                      const struct key_group *g,
                                                      const struct attention_params *p)
{
    constexpr int row_parts = D / 8;
    int lane = threadIdx.x % 32;
    if (key_group_is_whole(g, p)) {
        const T *rows = from + kv_index(p, g->block, g->kv_head, g->offset) + lane * 8;
#pragma unroll
        for (int i = 0; i < GROUP_KEYS * row_parts / 32; i++) {
            int part = lane + 32 * i;
            copy_16<AMPERE>(to(part / row_parts, part % row_parts), rows + 32 * 8 * i, true);
        }
        return;
    }
#pragma unroll 1
    for (int part = lane; part < GROUP_KEYS * row_parts; part += 32) {
        int row = part / row_parts, column = part % row_parts;
        int block = g->block, offset = g->offset + row;
        bool valid = row < g->n;
        if (valid && offset >= p->block_size) { /* the group goes on in other blocks */
            int key = g->first + row, index = (int)((unsigned)key / (unsigned)p->block_size);
            block = p->block_table[(size_t)g->seq * p->max_blocks + index];
            offset = key - index * p->block_size;
        }
        const T *source = valid ? from + kv_index(p, block, g->kv_head, offset) : from;
        copy_16<AMPERE>(to(row, column), source + column * 8, valid);
    }
}

/* Rows of D elements and padding from `rows` on. */
template <int D> struct padded_rows {
    uint32_t rows;

    __device__ __forceinline__ uint32_t operator()(int row, int part) const
    {
        return rows + row * (D + ROW_PADDING) * 2 + part * 16;
    }
};

/* ---- products ------------------------------------------------------------------------------- */

template <bool AMPERE, typename T>
static __device__ __forceinline__ void multiply(float c[4], const uint32_t a[4], uint32_t b0,
                                                uint32_t b1, T tag)
{
#if PTX_AMPERE
    if (AMPERE) {
        multiply_16x8x16(c, a, b0, b1, tag);
        return;
    }
#endif
    multiply_16x8x8_twice(c, a, b0, b1);
}

/* Two neighbouring 16x8 tiles of numerators as the left operand of the product with the values. */
template <typename T>
static __device__ __forceinline__ void pack_numerators(uint32_t a[4], const float left[4],
                                                       const float right[4])
{
    a[0] = pack_pair(left[0], left[1], T());
    a[1] = pack_pair(left[2], left[3], T());
    a[2] = pack_pair(right[0], right[1], T());
    a[3] = pack_pair(right[2], right[3], T());
}

/* ---- cooperation of a block of threads ------------------------------------------------------ */

/* Sum of `value` over the lanes of a warp up to and including this one. */
static __device__ __forceinline__ int warp_prefix_sum(int value)
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(~0u, value, step);
        value += lane >= step ? other : 0;
    }
    return value;
}

/* Sum of `value` over the threads up to and including this one; *total: over all. board: shared,
 * [N_WARPS]; free again after the next barrier. */
template <int N_WARPS>
static __device__ __forceinline__ int block_prefix_sum(int value, int *total, int *board)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    value = warp_prefix_sum(value);
    if (lane == 31)
        board[warp] = value;
    __syncthreads();
    *total = 0;
#pragma unroll
    for (int w = 0; w < N_WARPS; w++) {
        value += w < warp ? board[w] : 0;
        *total += board[w];
    }
    return value;
}

/* A job is job_rows of the query rows of a sequence and a KV head: tokens x heads_per_kv, the heads
 * innermost. Finds the sequence of job `number` (of one KV head, over all sequences with at least
 * min_q_len tokens) and which of the sequence's jobs it is, the last one first: it sees the most
 * keys. False when there are fewer jobs. board: shared, [ATTENTION_WARPS + 2]. */
static __device__ __forceinline__ bool find_job(const struct attention_params *p, int number,
                                                int job_rows, int min_q_len, int *board, int *seq,
                                                int *job)
{
    int first_number = 0;
    for (int first = 0; first < p->n_seqs && first_number <= number; first += ATTENTION_THREADS) {
        int s = first + threadIdx.x, total;
        int q_len = s < p->n_seqs ? p->q_start[s + 1] - p->q_start[s] : 0;
        int n = q_len >= min_q_len ? CEIL_DIV(q_len * p->heads_per_kv, job_rows) : 0;
        int end = first_number + block_prefix_sum<ATTENTION_WARPS>(n, &total, board);
        if (number >= end - n && number < end) {
            board[ATTENTION_WARPS] = s;
            board[ATTENTION_WARPS + 1] = end - 1 - number;
        }
        first_number += total;
        __syncthreads();
    }
    *seq = board[ATTENTION_WARPS];
    *job = board[ATTENTION_WARPS + 1];
    return number < first_number;
}

/* The most jobs of job_rows that a batch can have, over all KV heads. */
static inline int max_jobs(const struct attention_params *p, int job_rows)
{
    return (int)(((size_t)p->n_tokens * p->heads_per_kv / job_rows + p->n_seqs) * p->n_kv_heads);
}

#endif
