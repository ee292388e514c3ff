/* attention_decode.cuh - attention of the sequences that bring one token to the step.
 *
 *   out[h] = softmax(scale q[h] K^T) V
 *
 * Every key and value is read once, and that is all the time there is: 4 n_kv_heads head_dim bytes
 * per token of context for 16-bit elements. The query heads of a KV head (up to 16, a KV head with
 * more counts as several) are the rows of one matrix tile.
 *
 * The work of a step is the tiles of all (sequence, KV head) pairs laid end to end. Each block of
 * threads takes an equal share of that line, rounded up to the starts of chunks (attention.cuh),
 * and streams it through a ring of tiles in shared memory, across chunks and pairs. Shares are
 * found from kv_len by each block for itself.
 *
 * Inside a block, warp w multiplies the queries with keys 16 w .. 16 w + 15 of a tile, the scores
 * are exchanged through shared memory, every warp does the same softmax, and multiplies with its
 * quarter of the columns of the values. A step takes the keys of one tile and the values of the
 * tile before, so that the two products and the softmax between are independent and the step needs
 * one barrier.
 *
 * A pair that lies within one share is folded in registers and written. Otherwise its first block
 * writes the fold of its chunks, the others each chunk apart, and the block that arrives last folds
 * all of them in order.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_CUH

#include "kernels/cuda/attention_decode_rows.cuh"

#define DECODE_MAX_STAGES 6 /* copy_wait() knows no more */
/* Blocks that share a multiprocessor, where shared memory allows: short rows make small tiles, and
 * it takes more of them under way to keep the memory busy. */
#define DECODE_BLOCKS_PER_SM(head_dim) ((head_dim) <= 80 ? 3 : 2)
#define SCORE_STRIDE                   (ATTENTION_TILE + 8) /* floats: rows start 8 banks apart */

/* Shared memory before the ring. Eight or all of the 16 rows are in use. */
template <int N_HALVES> struct __align__(16) decode_shared
{
    float score[2][8 * N_HALVES][SCORE_STRIDE]; /* of a tile and of the next */
    struct decode_board board;
};

/* ---- the ring ------------------------------------------------------------------------------- */

/* A stage of the ring holds the keys of a tile and the values of the tile before it. */
struct decode_ring {
    struct decode_place next;      /* the tile whose keys are copied next      */
    struct block_window window;    /* its block and those of the tiles after   */
    struct key_group keys, values; /* this warp's part of them                 */
    int n_keys, n_values;          /* tiles of the share whose copies are still to come */
    int stage;                     /* where the next copies go                 */
    int n_stages;
    uint32_t tiles; /* shared: [n_stages][k, v][ATTENTION_TILE], rows of D and padding */
};

static __device__ __forceinline__ void ring_find_keys(const struct attention_params *p,
                                                      struct decode_ring *r)
{
    r->keys =
        key_group_find(&r->window, p, r->next.seq, r->next.kv_head, r->next.tile, r->next.kv_len);
}

/* Starts the copies of one stage, or of nothing when the share is used up: groups of copies and
 * stages stay in step. */
template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void ring_push(const struct attention_params *p,
                                                 struct decode_ring *r)
{
    constexpr int row_bytes = (D + ROW_PADDING) * 2, tile_bytes = ATTENTION_TILE * row_bytes;
    uint32_t to = r->tiles + r->stage * 2 * tile_bytes + threadIdx.x / 32 * GROUP_KEYS * row_bytes;
    if (r->n_values > r->n_keys)
        key_group_copy<T, D, AMPERE>(to + tile_bytes, (const T *)p->v, &r->values, p);
    if (r->n_keys > 0)
        key_group_copy<T, D, AMPERE>(to, (const T *)p->k, &r->keys, p);
    copy_commit<AMPERE>();
    r->stage = r->stage + 1 == r->n_stages ? 0 : r->stage + 1;
    r->n_values = r->n_keys;
    r->n_keys = max(0, r->n_keys - 1);
    r->values = r->keys;
    if (r->n_keys == 0)
        return;
    if (++r->next.tile == r->next.end_tile)
        decode_next_pair(p, &r->next);
    ring_find_keys(p, r);
}

/* ---- the arithmetic of a tile --------------------------------------------------------------- */

/* The query rows of a pair as left operands; zeros beyond the last head. */
template <typename T, int D>
static __device__ __forceinline__ void decode_load_q(uint32_t q[D / 16][4],
                                                     const struct attention_params *p,
                                                     const struct decode_place *place)
{
    int lane = threadIdx.x % 32, row = place->row_group * DECODE_ROWS + lane / 4;
    size_t stride_heads = p->n_heads + 2 * p->n_kv_heads;
    const T *rows = (const T *)p->qkv +
                    (p->q_start[place->seq] * stride_heads + place->kv_head * p->heads_per_kv) * D;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int r = row + j % 2 * 8, column = 16 * i + j / 2 * 8 + lane % 4 * 2;
            q[i][j] = r < p->heads_per_kv ? *(const uint32_t *)(rows + (size_t)r * D + column) : 0;
        }
    }
}

/* Scores of the warp's 16 keys, capped. k: of the warp's first key. */
template <typename T, int D, bool AMPERE, bool CAPPED>
static __device__ __forceinline__ void decode_scores(float s[2][4], const uint32_t q[D / 16][4],
                                                     uint32_t k, const struct attention_params *p)
{
    constexpr int row_bytes = (D + ROW_PADDING) * 2;
    int lane = threadIdx.x % 32;
    k += (lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * 16;
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[n][e] = 0;
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t b[4];
        load_matrix_x4(b, k + i * 32);
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
    int lane = threadIdx.x % 32, key = threadIdx.x / 32 * GROUP_KEYS + lane % 4 * 2;
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

/* out += s v for the warp's columns. v: of the tile's first key. */
template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void decode_values(float out[DECODE_COLUMN_TILES(D)][4],
                                                     const float s[TILE_STEPS][4], uint32_t v)
{
    constexpr int row_bytes = (D + ROW_PADDING) * 2, n_columns = DECODE_COLUMN_TILES(D);
    int first = threadIdx.x / 32 * n_columns;
    v += threadIdx.x % 32 * row_bytes + first * 16;
#pragma unroll
    for (int i = 0; i < ATTENTION_TILE / 32; i++) {
        uint32_t a[2][4], b[4];
        pack_numerators<T>(a[0], s[4 * i], s[4 * i + 1]);
        pack_numerators<T>(a[1], s[4 * i + 2], s[4 * i + 3]);
#pragma unroll
        for (int n = 0; n < n_columns; n++) {
            if (D / 8 % ATTENTION_WARPS != 0 && first + n >= D / 8)
                break;
            load_matrix_x4_transposed(b, v + i * 32 * row_bytes + n * 16);
            multiply<AMPERE>(out[n], a[0], b[0], b[1], T());
            multiply<AMPERE>(out[n], a[1], b[2], b[3], T());
        }
    }
}

/* ---- the kernel ----------------------------------------------------------------------------- */

/* One step: scores of the next tile, whose keys are in the stage at k (none after the last: then of
 * whatever is there), while `score` of this tile and its values, in the same stage, go into the
 * rows. Before the first tile there are only scores. */
template <typename T, int D, int N_HALVES, bool AMPERE, bool CAPPED>
static __device__ __forceinline__ void
decode_step(struct decode_rows<D> &rows, const uint32_t q[D / 16][4],
            const float score[][SCORE_STRIDE], float next_score[][SCORE_STRIDE],
            const struct attention_params *p, const struct decode_place *place, uint32_t k,
            bool has_tile)
{
    constexpr int row_bytes = (D + ROW_PADDING) * 2;
    int lane = threadIdx.x % 32, last = place->kv_len - 1;
    int first_key = place->tile * ATTENTION_TILE;
    float s[TILE_STEPS][4], next[2][4], decay[2], base[2];
    if (!has_tile) {
        decode_scores<T, D, AMPERE, CAPPED>(next, q, k + threadIdx.x / 32 * GROUP_KEYS * row_bytes,
                                            p);
        decode_share_scores<N_HALVES>(next_score, next);
        return;
    }
    decode_gather_scores<N_HALVES>(s, score);
    if (first_key + ATTENTION_TILE - 1 > last || first_key <= last - p->window)
        mask_tile(s, first_key + lane % 4 * 2, last, last, p->window);
    decode_scores<T, D, AMPERE, CAPPED>(next, q, k + threadIdx.x / 32 * GROUP_KEYS * row_bytes, p);
    softmax_top<N_HALVES>(s, &rows.state, decay, base, p->scale_log2);
#pragma unroll
    for (int n = 0; n < TILE_STEPS; n++)
        softmax_numerators<N_HALVES>(s[n], &rows.state, base, p->scale_log2);
    decode_share_scores<N_HALVES>(next_score, next);
#pragma unroll
    for (int n = 0; n < DECODE_COLUMN_TILES(D); n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            rows.out[n][e] = __fmul_rn(rows.out[n][e], decay[e / 2]);
    }
    decode_values<T, D, AMPERE>(rows.out, s, k + ATTENTION_TILE * row_bytes);
}

/* Long because it is the life of a share: pairs, chunks and tiles in one loop, which is what keeps
 * the ring full across their borders. */
template <typename T, int D, int N_HALVES, bool AMPERE, bool CAPPED>
static __global__ void __launch_bounds__(ATTENTION_THREADS, DECODE_BLOCKS_PER_SM(D))
    decode_kernel(const __grid_constant__ struct attention_params p, int n_stages, int max_parked)
{
    if (AMPERE && !PTX_AMPERE)
        return;
    extern __shared__ uint4 memory[];
    auto shared = (struct decode_shared<N_HALVES> *)memory;
    constexpr int row_bytes = (D + ROW_PADDING) * 2, stage_bytes = 2 * ATTENTION_TILE * row_bytes;
    struct decode_share share;
    struct decode_place place; /* the tile whose values are taken */
    if (!decode_cut(&p, &shared->board, &share, &place))
        return;
    int n_tiles = share.end - share.start;
    struct decode_ring ring;
    ring.next = place;
    ring.n_keys = ring.n_values = n_tiles;
    ring.stage = 0;
    ring.n_stages = n_stages;
    ring.tiles = shared_address(shared + 1);
    block_window_load(&ring.window, &p, place.seq, place.tile);
    ring_find_keys(&p, &ring);
    for (int i = 0; i < n_stages - 1; i++)
        ring_push<T, D, AMPERE>(&p, &ring);

    struct decode_place ahead = place; /* the tile whose keys are taken */
    struct decode_parking parking = {(float2 *)p.scratch, max_parked};
    struct decode_rows<D> all, chunk;
    uint32_t q[D / 16][4];
    int n_parked = 0, stage = 0;
    bool is_whole = place.tile == place.first_tile; /* the pair's chunks before are here as well */
    decode_load_q<T, D>(q, &p, &ahead);
    decode_rows_clear(all);
    decode_rows_clear(chunk);
    for (int i = 0; i <= n_tiles; i++) { /* keys of tile i, values of tile i - 1 */
        if (n_stages == 1) {
            __syncthreads();
            ring_push<T, D, AMPERE>(&p, &ring);
        }
        copy_wait<AMPERE>(n_stages - 2);
        __syncthreads(); /* this stage is there, as are the scores; the last stage is free */
        uint32_t k = ring.tiles + stage * stage_bytes;
        decode_step<T, D, N_HALVES, AMPERE, CAPPED>(chunk, q, shared->score[(i + 1) % 2],
                                                    shared->score[i % 2], &p, &place, k, i > 0);
        stage = stage + 1 == n_stages ? 0 : stage + 1;
        if (i + 1 < n_tiles && ++ahead.tile == ahead.end_tile) {
            decode_next_pair(&p, &ahead);
            decode_load_q<T, D>(q, &p, &ahead);
        }
        if (n_stages > 1)
            ring_push<T, D, AMPERE>(&p, &ring);
        if (i == 0)
            continue;
        bool ends_pair = ++place.tile == place.end_tile, ends_share = i == n_tiles;
        if (!ends_pair && place.tile % TILES_PER_CHUNK != 0)
            continue;
        row_sums(&chunk.state);
        n_parked++;
        if (is_whole)
            decode_fold(all, chunk);
        else
            decode_park<D, N_HALVES>(parking_space<D, N_HALVES>(&parking, blockIdx.x, n_parked),
                                     chunk);
        decode_rows_clear(chunk);
        if (!ends_pair && !ends_share)
            continue;
        if (is_whole && ends_pair) {
            decode_store<T, D>(all, &p, &place);
        } else {
            if (is_whole)
                decode_park<D, N_HALVES>(parking_space<D, N_HALVES>(&parking, blockIdx.x, 0), all);
            decode_arrive<T, D, N_HALVES>(&p, &shared->board, &parking, &place, &share, n_parked);
        }
        if (ends_share)
            break;
        decode_next_pair(&p, &place);
        is_whole = true;
        n_parked = 0;
        decode_rows_clear(all);
    }
}

/* How a decode kernel is launched, and what it needs. */
struct decode_plan {
    int n_blocks, n_stages, max_parked;
    size_t shared, scratch_floats;
};

/* As many blocks per multiprocessor as leave each at least two stages, so that one streams while
 * the others compute. */
static struct decode_plan decode_plan(const struct cuda_device *d, int head_dim, int heads_per_kv,
                                      int n_pairs, int max_kv_len, bool ampere)
{
    struct decode_plan plan = {};
    int n_halves = heads_per_kv > 8 ? 2 : 1;
    size_t stage = (size_t)2 * ATTENTION_TILE * (head_dim + ROW_PADDING) * 2;
    size_t fixed =
        n_halves == 2 ? sizeof(struct decode_shared<2>) : sizeof(struct decode_shared<1>);
    size_t reserved = 1024; /* of each block's shared memory, by the driver */
    int per_sm = DECODE_BLOCKS_PER_SM(head_dim);
    for (; per_sm > 0 && plan.n_stages < 2; per_sm--) {
        size_t room = MIN(d->shared_per_sm / per_sm - reserved, d->shared_per_block);
        plan.n_stages = (int)MIN((room - fixed) / stage, DECODE_MAX_STAGES);
        if (!ampere)
            plan.n_stages = MIN(plan.n_stages, 1); /* its copies are complete when they return */
    }
    assert(plan.n_stages >= 1);
    plan.shared = fixed + plan.n_stages * stage;
    per_sm = (int)MIN(d->shared_per_sm / (plan.shared + reserved),
                      (size_t)DECODE_BLOCKS_PER_SM(head_dim));
    plan.n_blocks = MIN(per_sm * d->n_sms, MAX_DECODE_BLOCKS);
    /* A share has whole chunks but for its first and last. */
    long tiles = (long)n_pairs * CEIL_DIV(max_kv_len, ATTENTION_TILE);
    long chunks = CEIL_DIV(tiles, plan.n_blocks) / TILES_PER_CHUNK + 2;
    plan.max_parked = 1 + (int)MIN(chunks, CEIL_DIV(max_kv_len, ATTENTION_CHUNK));
    plan.scratch_floats =
        (size_t)plan.n_blocks * plan.max_parked * DECODE_PARKED_FLOATS(head_dim, n_halves);
    return plan;
}

template <typename T, int D, int N_HALVES, bool AMPERE, bool CAPPED>
static void decode_launch_halves(const struct cuda_device *d, const struct attention_params *p)
{
    int n_pairs = p->n_seqs * p->n_kv_heads * CEIL_DIV(p->heads_per_kv, DECODE_ROWS);
    struct decode_plan plan =
        decode_plan(d, D, p->heads_per_kv, n_pairs, p->max_blocks * p->block_size, AMPERE);
    assert(plan.scratch_floats <= p->scratch_floats);
    auto kernel = decode_kernel<T, D, N_HALVES, AMPERE, CAPPED>;
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)plan.shared));
    kernel<<<plan.n_blocks, ATTENTION_THREADS, plan.shared, d->stream>>>(*p, plan.n_stages,
                                                                         plan.max_parked);
    CUDA_CHECK_LAUNCH();
}

/* Up to eight query heads leave the upper half of the matrix tile's rows unused. */
template <typename T, int D, bool AMPERE, bool CAPPED>
static void decode_launch(const struct cuda_device *d, const struct attention_params *p)
{
    if (p->heads_per_kv > 8)
        decode_launch_halves<T, D, 2, AMPERE, CAPPED>(d, p);
    else
        decode_launch_halves<T, D, 1, AMPERE, CAPPED>(d, p);
}

#endif
