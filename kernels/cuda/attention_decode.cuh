/* attention_decode.cuh - attention of the sequences that bring one token to the step, where
 * attention_decode_hopper.cuh does not fit: mostly before compute capability 9.0.
 *
 *   out[h] = softmax(scale q[h] K^T) V
 *
 * Every key and value is read once, and that is all the time there is: 4 n_kv_heads head_dim bytes
 * per token of context for 16-bit elements. The query heads of a KV head (up to 16, a KV head with
 * more counts as several) are the rows of one matrix tile.
 *
 * A block of threads takes pieces of the step's plan (attention_plan.cuh) one after the other and
 * streams them through a ring of tiles in shared memory. Warps have tasks:
 *
 *   feed    one warp: the next piece of the plan;
 *   copies  four warps: keys and values from memory into the ring;
 *   scores  warp w of four multiplies the queries with keys 16 w .. 16 w + 15 of a tile, and the
 *           scores go into shared memory;
 *   values  each warp of four does the softmax of the tile before, and multiplies with its quarter
 *           of the columns of the values.
 *
 * A barrier moves all of them on by a tile.
 *
 * A pair that is one piece is folded in registers and written. Chunks of other pairs are parked in
 * scratch memory, and the block that brings the last one folds all of them in order.
 *
 * From compute capability 9.0 on the kernel may start while the one before it ends: until
 * previous_kernel_wait() it reads the plan and the block table.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_CUH

#include "kernels/cuda/attention_decode_hopper.cuh"
#include "kernels/cuda/attention_decode_ring.cuh"
#include "kernels/cuda/attention_decode_rows.cuh"

#define DECODE_THREADS (DECODE_TASK_THREADS + 32)
#define SCORE_STRIDE   (ATTENTION_TILE + 8) /* floats: rows start 8 banks apart */

enum decode_task { TASK_VALUES, TASK_SCORES, TASK_COPIES, TASK_FEED }; /* by threads / 128 */

/* Shared memory before the ring. Eight or all of the 16 rows are in use. */
template <int N_HALVES> struct __align__(16) decode_shared
{
    float score[2][8 * N_HALVES][SCORE_STRIDE]; /* of a tile and of the next          */
    struct decode_queue queue;
    int is_last; /* whether a chunk is the last of its pair that is parked */
};

/* ---- the arithmetic of a tile --------------------------------------------------------------- */

/* The query rows of a pair as left operands; zeros beyond the last head. */
template <typename T, int D, int N_HALVES>
static __device__ __forceinline__ void decode_load_q(uint32_t q[D / 16][4],
                                                     const struct attention_params *p,
                                                     const struct decode_piece *piece)
{
    int n_groups = row_groups(p->heads_per_kv), kv_head = piece->pair / n_groups;
    int lane = threadIdx.x % 32, row = piece->pair % n_groups * DECODE_ROWS + lane / 4;
    size_t stride_heads = p->n_heads + 2 * p->n_kv_heads;
    const T *rows =
        (const T *)p->qkv + (piece->token * stride_heads + kv_head * p->heads_per_kv) * D;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int r = row + j % 2 * 8, column = 16 * i + j / 2 * 8 + lane % 4 * 2;
            bool is_row = j % 2 < N_HALVES && r < p->heads_per_kv;
            q[i][j] = is_row ? *(const uint32_t *)(rows + (size_t)r * D + column) : 0;
        }
    }
}

/* Scores of the warp's 16 keys, capped. k: the tile. */
template <typename T, int D, bool AMPERE, bool CAPPED>
static __device__ __forceinline__ void decode_scores(float s[2][4], const uint32_t q[D / 16][4],
                                                     uint32_t k, const struct attention_params *p)
{
    padded_rows<D> keys = {k};
    int lane = threadIdx.x % 32, key = tile_warp() * GROUP_KEYS + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[n][e] = 0;
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t b[4];
        load_matrix_x4(b, keys(key, 2 * i + lane / 8 % 2));
        multiply<AMPERE>(s[0], q[i], b[0], b[1], T());
        multiply<AMPERE>(s[1], q[i], b[2], b[3], T());
    }
    if (CAPPED)
        cap_scores<2>(s, p->slope);
}

template <int N_HALVES>
static __device__ __forceinline__ void decode_share_scores(float score[][SCORE_STRIDE],
                                                           const float s[2][4])
{
    int lane = threadIdx.x % 32, key = tile_warp() * GROUP_KEYS + lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < N_HALVES; h++) {
#pragma unroll
        for (int n = 0; n < 2; n++)
            *(float2 *)&score[lane / 4 + 8 * h][key + 8 * n] =
                make_float2(s[n][2 * h], s[n][2 * h + 1]);
    }
}

/* The tile's scores back from shared memory, each thread's as prefill has them. */
template <int N_HALVES>
static __device__ __forceinline__ void decode_gather_scores(float s[TILE_STEPS][4],
                                                            const float score[][SCORE_STRIDE])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < TILE_STEPS; n++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2 x = {0, 0};
            if (h < N_HALVES)
                x = *(const float2 *)&score[lane / 4 + 8 * h][8 * n + lane % 4 * 2];
            s[n][2 * h] = x.x;
            s[n][2 * h + 1] = x.y;
        }
    }
}

/* The warp's columns of the values of keys 32 i .. 32 i + 31 of a tile, as right operands. */
template <int D, bool AMPERE>
static __device__ __forceinline__ void decode_load_values(uint32_t b[DECODE_COLUMN_TILES(D)][4],
                                                          uint32_t v, int i)
{
    constexpr int n_columns = DECODE_COLUMN_TILES(D);
    padded_rows<D> tile = {v};
    int first = tile_warp() * n_columns;
#pragma unroll
    for (int n = 0; n < n_columns; n++) {
        if (D / 8 % ATTENTION_WARPS == 0 || first + n < D / 8)
            load_matrix_x4_transposed(b[n], tile(32 * i + threadIdx.x % 32, first + n));
    }
}

/* out += s v for the warp's columns and 32 keys. */
template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void decode_values(float out[DECODE_COLUMN_TILES(D)][4],
                                                     const float s[4][4],
                                                     const uint32_t b[DECODE_COLUMN_TILES(D)][4])
{
    constexpr int n_columns = DECODE_COLUMN_TILES(D);
    int first = tile_warp() * n_columns;
    uint32_t a[2][4];
    pack_numerators<T>(a[0], s[0], s[1]);
    pack_numerators<T>(a[1], s[2], s[3]);
#pragma unroll
    for (int n = 0; n < n_columns; n++) {
        if (D / 8 % ATTENTION_WARPS != 0 && first + n >= D / 8)
            break;
        multiply<AMPERE>(out[n], a[0], b[n][0], b[n][1], T());
        multiply<AMPERE>(out[n], a[1], b[n][2], b[n][3], T());
    }
}

/* A tile's scores and values go into the rows. */
template <typename T, int D, int N_HALVES, bool AMPERE>
static __device__ __forceinline__ void
decode_take_tile(struct decode_rows<D> &rows, const float score[][SCORE_STRIDE], uint32_t v,
                 const struct attention_params *p, int tile, int kv_len)
{
    int lane = threadIdx.x % 32, last = kv_len - 1, first_key = tile * ATTENTION_TILE;
    float s[TILE_STEPS][4], decay[2], base[2];
    constexpr int n_parts = ATTENTION_TILE / 32;
    constexpr bool is_early = D <= 128; /* there are registers for all of them under the softmax */
    uint32_t values[n_parts][DECODE_COLUMN_TILES(D)][4];
    decode_gather_scores<N_HALVES>(s, score);
#pragma unroll
    for (int i = 0; is_early && i < n_parts; i++)
        decode_load_values<D, AMPERE>(values[i], v, i);
    if (first_key + ATTENTION_TILE - 1 > last || first_key <= last - p->window)
        mask_tile(s, first_key + lane % 4 * 2, last, last, p->window);
    softmax_top<N_HALVES>(s, &rows.state, decay, base, p->scale_log2);
#pragma unroll
    for (int n = 0; n < TILE_STEPS; n++)
        softmax_numerators<N_HALVES>(s[n], &rows.state, base, p->scale_log2);
#pragma unroll
    for (int n = 0; n < DECODE_COLUMN_TILES(D); n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            rows.out[n][e] = __fmul_rn(rows.out[n][e], decay[e / 2]);
    }
#pragma unroll
    for (int i = 0; i < n_parts; i++) {
        if (!is_early)
            decode_load_values<D, AMPERE>(values[i], v, i);
        decode_values<T, D, AMPERE>(rows.out, s + 4 * i, values[i]);
    }
}

/* ---- the tasks ------------------------------------------------------------------------------- */

/* The next piece's queries are loaded as soon as it is in the queue. It is there when the stage
 * that follows this piece's last keys is. */
template <typename T, int D, int N_HALVES, bool AMPERE, bool CAPPED>
static __device__ __forceinline__ void decode_score(const struct attention_params *p,
                                                    struct decode_shared<N_HALVES> *shared,
                                                    const struct decode_ring *shared_ring)
{
    struct decode_ring ring = *shared_ring;
    constexpr bool is_ahead = D <= 128; /* there are registers for two pairs' queries */
    struct decode_queue *queue = &shared->queue;
    int n_begun = 0, n_loaded = 0, n_left = 0; /* pieces; tiles of the last one begun */
    uint32_t q[D / 16][4], next_q[is_ahead ? D / 16 : 1][4];
    previous_kernel_wait();
    for (int i = 0;; i++) {
        if (is_ahead && n_loaded == n_begun && *(volatile int *)&queue->n_pieces > n_begun)
            decode_load_q<T, D, N_HALVES>(next_q, p, &queue->piece[n_loaded++ % QUEUE_PIECES]);
        uint32_t k = ring_next<D>(&ring);
        if (n_left == 0) {
            const struct decode_piece *piece = &queue->piece[n_begun % QUEUE_PIECES];
            n_left = piece->end_tile - piece->tile;
            if (n_left == 0)
                return; /* the step of the last values */
            if (n_loaded == n_begun)
                decode_load_q<T, D, N_HALVES>(is_ahead ? next_q : q, p, piece);
            n_loaded = ++n_begun;
#pragma unroll
            for (int k_step = 0; is_ahead && k_step < D / 16; k_step++) {
#pragma unroll
                for (int j = 0; j < 4; j++)
                    q[k_step][j] = next_q[k_step][j];
            }
        }
        float s[2][4];
        decode_scores<T, D, AMPERE, CAPPED>(s, q, k, p);
        decode_share_scores<N_HALVES>(shared->score[i % 2], s);
        n_left--;
    }
}

/* The tiles of a piece; i: of the first. Values are a step behind the scores. */
template <typename T, int D, int N_HALVES, bool AMPERE>
static __device__ __forceinline__ void
decode_value_piece(const struct attention_params *p, struct decode_shared<N_HALVES> *shared,
                   struct decode_ring *ring, const struct decode_piece *piece, int *i)
{
    constexpr int tile_bytes = ring_stage_bytes<D>() / 2;
    struct decode_rows<D> all, chunk;
    int slot = piece->slot + piece->chunk;
    decode_rows_clear(all);
    decode_rows_clear(chunk);
    for (int tile = piece->tile; tile < piece->end_tile;) {
        uint32_t v = ring_next<D>(ring) + tile_bytes;
        decode_take_tile<T, D, N_HALVES, AMPERE>(chunk, shared->score[(*i)++ % 2], v, p, tile,
                                                 piece->kv_len);
        if (++tile < piece->end_tile && tile % TILES_PER_CHUNK != 0)
            continue;
        row_sums(&chunk.state);
        if (piece->slot == NO_SLOT)
            decode_fold(all, chunk);
        else
            decode_park<D, N_HALVES>(parking_space<D, N_HALVES>(p, slot), chunk);
        decode_rows_clear(chunk);
    }
    if (piece->slot == NO_SLOT)
        decode_store<T, D>(all, p, piece);
    else
        decode_arrive<T, D, N_HALVES>(p, piece, &shared->is_last);
}

template <typename T, int D, int N_HALVES, bool AMPERE>
static __device__ __forceinline__ void decode_value(const struct attention_params *p,
                                                    struct decode_shared<N_HALVES> *shared,
                                                    const struct decode_ring *shared_ring)
{
    struct decode_ring ring = *shared_ring;
    int n_tiles = 0;
    previous_kernel_wait();
    ring_next<D>(&ring); /* the step of the first scores */
    for (int n = 0;; n++) {
        struct decode_piece piece = shared->queue.piece[n % QUEUE_PIECES];
        if (piece.tile == piece.end_tile)
            return;
        decode_value_piece<T, D, N_HALVES, AMPERE>(p, shared, &ring, &piece, &n_tiles);
    }
}

/* ---- the kernel ----------------------------------------------------------------------------- */

template <typename T, int D, int N_HALVES, bool AMPERE, bool CAPPED>
static __global__ void __launch_bounds__(DECODE_THREADS, 1)
    decode_kernel(const __grid_constant__ struct attention_params p, int n_stages)
{
    if (AMPERE && !PTX_AMPERE)
        return;
    extern __shared__ uint4 memory[];
    auto shared = (struct decode_shared<N_HALVES> *)memory;
    enum decode_task task = (enum decode_task)(threadIdx.x / ATTENTION_THREADS);
    struct decode_ring ring = {shared_address(shared + 1), n_stages, 0};
    if (threadIdx.x == 0) {
        shared->queue.n_in_plan = __ldcg(&p.plan->n_pieces);
        shared->queue.piece[0] = piece_read(plan_pieces(p.plan) + blockIdx.x);
        shared->queue.n_pieces = 1;
    }
    __syncthreads();
    if ((int)blockIdx.x >= shared->queue.n_in_plan) {
        previous_kernel_wait();
        return;
    }
    if (task == TASK_VALUES)
        decode_value<T, D, N_HALVES, AMPERE>(&p, shared, &ring);
    else if (task == TASK_SCORES)
        decode_score<T, D, N_HALVES, AMPERE, CAPPED>(&p, shared, &ring);
    else if (task == TASK_COPIES)
        decode_copy<T, D, AMPERE>(&p, &ring, &shared->queue);
    else
        decode_feed(&p, &shared->queue);
}

/* How a decode kernel is launched, and what it needs. */
struct decode_sizes {
    int n_stages;
    size_t shared;
};

/* One block per multiprocessor, with all of its shared memory. Two for head_dim 64, of half the
 * registers, took 28 % longer on an H200 (256 sequences of 2048 keys). */
static struct decode_sizes decode_sizes(const struct cuda_device *d, int head_dim, int heads_per_kv,
                                        bool ampere)
{
    struct decode_sizes sizes;
    size_t stage = (size_t)2 * ATTENTION_TILE * (head_dim + ROW_PADDING) * 2;
    size_t fixed =
        heads_per_kv > 8 ? sizeof(struct decode_shared<2>) : sizeof(struct decode_shared<1>);
    sizes.n_stages = (int)MIN((d->shared_per_block - fixed) / stage, DECODE_MAX_STAGES);
    if (!ampere)
        sizes.n_stages = MIN(sizes.n_stages, 1); /* its copies are complete when they return */
    assert(sizes.n_stages >= 1);
    sizes.shared = fixed + sizes.n_stages * stage;
    return sizes;
}

template <typename T, int D, int N_HALVES, bool AMPERE, bool CAPPED>
static void decode_launch_halves(const struct cuda_device *d, const struct attention_params *p)
{
    struct decode_sizes sizes = decode_sizes(d, D, p->heads_per_kv, AMPERE);
    assert((size_t)p->max_slots * DECODE_PARKED_FLOATS(D, N_HALVES) <= p->scratch_floats);
    auto kernel = decode_kernel<T, D, N_HALVES, AMPERE, CAPPED>;
    cuda_launch_early(d, kernel, dim3((unsigned)MIN(d->n_sms, MAX_DECODE_BLOCKS)), DECODE_THREADS,
                      (int)sizes.shared, *p, sizes.n_stages);
}

/* Up to eight query heads leave the upper half of the matrix tile's rows unused. */
template <typename T, int D, bool AMPERE, bool CAPPED>
static void decode_launch(const struct cuda_device *d, const struct attention_params *p)
{
    if (AMPERE && box_decode_fits(d, p))
        box_decode_launch<T, D, CAPPED>(d, p);
    else if (row_halves(p->heads_per_kv) == 2)
        decode_launch_halves<T, D, 2, AMPERE, CAPPED>(d, p);
    else
        decode_launch_halves<T, D, 1, AMPERE, CAPPED>(d, p);
}

#endif
