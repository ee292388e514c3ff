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
 * Inside a block, four warps each have a task, and each task is a third of the way of a tile:
 *
 *   copies  keys and values from memory into the ring;
 *   scores  warp w multiplies the queries with keys 16 w .. 16 w + 15 of a tile, and the scores go
 *           into shared memory;
 *   values  every warp does the softmax of the tile before, and multiplies with its quarter of the
 *           columns of the values.
 *
 * One barrier of all warps moves each of them on by a tile. A step is as long as the longest task,
 * about 0.35 us, while the 32 KiB of a tile of head_dim 128 take 0.94 us when all multiprocessors
 * read. What a task does once per pair, the others do not wait for: the next queries are loaded a
 * pair ahead, the next blocks' numbers a ring ahead.
 *
 * A pair that lies within one share is folded in registers and written. Otherwise its first block
 * writes the fold of its chunks, the others each chunk apart, and the block that arrives last folds
 * all of them in order.
 *
 * From compute capability 9.0 on the ring is filled by copies of boxes of 16 keys, and the kernel
 * may start while the one before it ends: until previous_kernel_wait() it reads nothing but kv_len,
 * q_start and the block table, which are uploaded before a step.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_CUH

#include "kernels/cuda/attention_decode_rows.cuh"

#define DECODE_MAX_STAGES 6                    /* copy_wait() knows no more */
#define RING_ALIGNMENT    1024                 /* of the pattern of a swizzle of 128 bytes */
#define SCORE_STRIDE      (ATTENTION_TILE + 8) /* floats: rows start 8 banks apart */

/* What four of the warps do. */
enum decode_task { TASK_VALUES, TASK_SCORES, TASK_COPIES };

/* Shared memory before the ring. Eight or all of the 16 rows are in use. */
template <int N_HALVES> struct __align__(16) decode_shared
{
    float score[2][8 * N_HALVES][SCORE_STRIDE]; /* of a tile and of the next          */
    uint64_t arrived[DECODE_MAX_STAGES];        /* copy barriers of the stages        */
    struct decode_board board;
};

/* ---- the ring ------------------------------------------------------------------------------- */

/* Stages of shared memory that are filled and used in turn. Stage i of a share holds the keys of
 * its tile i and the values of tile i - 1. */
struct decode_ring {
    uint32_t tiles;   /* [n_stages][k, v]: decode_tile, RING_ALIGNMENT aligned   */
    uint32_t arrived; /* [n_stages] copy barriers of 8 bytes                     */
    int n_stages;
    int stage;  /* the next one       */
    int parity; /* of its turn        */
};

template <int D> static __device__ __forceinline__ constexpr int ring_stage_bytes(void)
{
    return 2 * ATTENTION_TILE * (D + ROW_PADDING) * 2;
}

static __device__ __forceinline__ void ring_advance(struct decode_ring *r)
{
    if (++r->stage == r->n_stages) {
        r->stage = 0;
        r->parity ^= 1;
    }
}

/* Columns of a panel: as many as a swizzle of 128, 64 or 32 bytes takes and head_dim is a multiple
 * of.
 */
#define PANEL_COLUMNS(head_dim) ((head_dim) % 64 == 0 ? 64 : (head_dim) % 32 == 0 ? 32 : 16)

/* How a tile of keys or values lies in shared memory: where the 16 bytes `part` of a row are.
 * Copies of boxes make panels, [ATTENTION_WARPS][D / columns][GROUP_KEYS][columns], in which eight
 * rows of one part are in different banks because the parts of a line of 128 bytes are exchanged by
 * its number; without them rows have padding. */
template <int D, bool AMPERE> struct decode_tile {
    uint32_t tile;

    __device__ __forceinline__ uint32_t operator()(int row, int part) const
    {
        if (!AMPERE || !PTX_HOPPER)
            return padded_rows<D>{tile}(row, part);
        constexpr int columns = PANEL_COLUMNS(D), n_parts = columns / 8;
        int line = row % GROUP_KEYS * columns * 2 / 128 % n_parts;
        return tile + row / GROUP_KEYS * (GROUP_KEYS * D * 2) +
               part / n_parts * (GROUP_KEYS * columns * 2) + row % GROUP_KEYS * (columns * 2) +
               (part % n_parts ^ line) * 16;
    }
};

struct decode_maps {
    CUtensorMap k, v;
};

/* By one thread, before a barrier of the block. */
static __device__ __forceinline__ void ring_init(const struct decode_ring *r,
                                                 const struct decode_maps *maps)
{
#if PTX_HOPPER
    copy_box_prepare(&maps->k);
    copy_box_prepare(&maps->v);
    for (int i = 0; i < r->n_stages; i++)
        copy_barrier_init(r->arrived + 8 * i, ATTENTION_WARPS);
    copy_barrier_publish();
#endif
}

/* What a warp has to copy. */
struct decode_source {
    struct decode_place next;      /* the tile whose keys are copied next      */
    struct block_window window;    /* its block and those of the tiles after   */
    struct key_group keys, values; /* this warp's part of them                 */
    int n_keys, n_values;          /* tiles of the share whose copies are still to come */
};

static __device__ __forceinline__ void source_find_keys(const struct attention_params *p,
                                                        struct decode_source *s)
{
    s->keys =
        key_group_find(&s->window, p, s->next.seq, s->next.kv_head, s->next.tile, s->next.kv_len);
}

#if PTX_HOPPER
/* A warp's part of a tile: as boxes, or 16 bytes a copy where it ends or crosses into other blocks.
 */
template <typename T, int D>
static __device__ __forceinline__ void
ring_copy_group(uint32_t tile, const CUtensorMap *map, const T *from, const struct key_group *g,
                const struct attention_params *p, uint32_t barrier)
{
    constexpr int columns = PANEL_COLUMNS(D), panel_bytes = GROUP_KEYS * columns * 2;
    uint32_t to = tile + tile_warp() * (GROUP_KEYS * D * 2);
    if (!key_group_is_whole(g, p)) {
        key_group_copy<T, D, true>(decode_tile<D, true>{to}, from, g, p);
        copy_barrier_expect_async(barrier);
    } else if (threadIdx.x % 32 == 0) {
        int row = (int)(kv_index(p, g->block, g->kv_head, g->offset) / D);
#pragma unroll
        for (int i = 0; i < D / columns; i++)
            copy_box(to + i * panel_bytes, map, i * columns, row, barrier);
    }
}

template <typename T, int D>
static __device__ __forceinline__ void
ring_copy(const struct attention_params *p, const struct decode_maps *maps,
          const struct decode_ring *r, const struct decode_source *s, bool has_keys,
          bool has_values)
{
    uint32_t barrier = r->arrived + 8 * r->stage;
    uint32_t k = r->tiles + r->stage * ring_stage_bytes<D>(), v = k + ring_stage_bytes<D>() / 2;
    int n_boxes = (has_keys && key_group_is_whole(&s->keys, p)) +
                  (has_values && key_group_is_whole(&s->values, p));
    bool is_first = threadIdx.x % 32 == 0;
    if (is_first && n_boxes > 0) {
        copy_box_fence();
        copy_barrier_expect(barrier, n_boxes * GROUP_KEYS * D * 2);
    }
    __syncwarp();
    if (has_values)
        ring_copy_group<T, D>(v, &maps->v, (const T *)p->v, &s->values, p, barrier);
    if (has_keys)
        ring_copy_group<T, D>(k, &maps->k, (const T *)p->k, &s->keys, p, barrier);
    __syncwarp();
    if (is_first)
        copy_barrier_arrive(barrier);
}
#endif

/* Starts the copies of one stage, or of nothing when the share is used up: groups of copies and
 * stages stay in step. */
template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void ring_push(const struct attention_params *p,
                                                 const struct decode_maps *maps,
                                                 struct decode_ring *r, struct decode_source *s)
{
    bool has_keys = s->n_keys > 0, has_values = s->n_values > s->n_keys;
#if PTX_HOPPER
    if (AMPERE && (has_keys || has_values))
        ring_copy<T, D>(p, maps, r, s, has_keys, has_values);
#endif
    if (!(AMPERE && PTX_HOPPER)) {
        constexpr int group_bytes = GROUP_KEYS * (D + ROW_PADDING) * 2;
        padded_rows<D> k = {r->tiles + r->stage * ring_stage_bytes<D>() +
                            tile_warp() * group_bytes};
        padded_rows<D> v = {k.rows + ring_stage_bytes<D>() / 2};
        if (has_values)
            key_group_copy<T, D, AMPERE>(v, (const T *)p->v, &s->values, p);
        if (has_keys)
            key_group_copy<T, D, AMPERE>(k, (const T *)p->k, &s->keys, p);
        copy_commit<AMPERE>();
    }
    ring_advance(r);
    s->n_values = s->n_keys;
    s->n_keys = max(0, s->n_keys - 1);
    s->values = s->keys;
    if (s->n_keys == 0)
        return;
    if (++s->next.tile == s->next.end_tile)
        decode_next_pair(p, &s->next);
    source_find_keys(p, s);
}

/* How each step of a share begins for the warps that copy: once all warps are here, the stage that
 * was used last is free, and what the others of this step need is there. */
template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void ring_fill(const struct attention_params *p,
                                                 const struct decode_maps *maps,
                                                 struct decode_ring *r, struct decode_source *s)
{
    if (r->n_stages == 1) {
        barrier_wait(0, DECODE_THREADS);
        ring_push<T, D, AMPERE>(p, maps, r, s);
    }
    if (!PTX_HOPPER)
        copy_wait<AMPERE>(r->n_stages - 2);
    barrier_wait(0, DECODE_THREADS);
    if (r->n_stages > 1)
        ring_push<T, D, AMPERE>(p, maps, r, s);
}

/* The same for the others: the stage at the address returned can be used. */
template <int D, bool AMPERE>
static __device__ __forceinline__ uint32_t ring_next(struct decode_ring *r)
{
    uint32_t address = r->tiles + r->stage * ring_stage_bytes<D>();
    if (r->n_stages == 1)
        barrier_wait(0, DECODE_THREADS);
    barrier_wait(0, DECODE_THREADS);
#if PTX_HOPPER
    if (AMPERE)
        copy_barrier_wait(r->arrived + 8 * r->stage, r->parity);
#endif
    ring_advance(r);
    return address;
}

/* ---- the arithmetic of a tile --------------------------------------------------------------- */

/* The query rows of a pair as left operands; zeros beyond the last head, and after the last pair.
 */
template <typename T, int D, int N_HALVES>
static __device__ __forceinline__ void decode_load_q(uint32_t q[D / 16][4],
                                                     const struct attention_params *p,
                                                     const struct decode_place *place)
{
    int lane = threadIdx.x % 32, row = place->row_group * DECODE_ROWS + lane / 4;
    int seq = min(place->seq, p->n_seqs - 1);
    int n_rows = seq == place->seq ? p->heads_per_kv : 0;
    size_t stride_heads = p->n_heads + 2 * p->n_kv_heads;
    const T *rows =
        (const T *)p->qkv + (p->q_start[seq] * stride_heads + place->kv_head * p->heads_per_kv) * D;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int r = row + j % 2 * 8, column = 16 * i + j / 2 * 8 + lane % 4 * 2;
            bool is_row = j % 2 < N_HALVES && r < n_rows;
            q[i][j] = is_row ? *(const uint32_t *)(rows + (size_t)r * D + column) : 0;
        }
    }
}

/* Scores of the warp's 16 keys, capped. k: the tile. */
template <typename T, int D, bool AMPERE, bool CAPPED>
static __device__ __forceinline__ void decode_scores(float s[2][4], const uint32_t q[D / 16][4],
                                                     uint32_t k, const struct attention_params *p)
{
    decode_tile<D, AMPERE> keys = {k};
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

/* The warp's columns of a tile's values as right operands. */
template <int D, bool AMPERE>
static __device__ __forceinline__ void
decode_load_values(uint32_t b[ATTENTION_TILE / 32][DECODE_COLUMN_TILES(D)][4], uint32_t v)
{
    constexpr int n_columns = DECODE_COLUMN_TILES(D);
    decode_tile<D, AMPERE> tile = {v};
    int first = tile_warp() * n_columns;
#pragma unroll
    for (int i = 0; i < ATTENTION_TILE / 32; i++) {
#pragma unroll
        for (int n = 0; n < n_columns; n++) {
            if (D / 8 % ATTENTION_WARPS == 0 || first + n < D / 8)
                load_matrix_x4_transposed(b[i][n], tile(32 * i + threadIdx.x % 32, first + n));
        }
    }
}

/* out += s v for the warp's columns. */
template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void
decode_values(float out[DECODE_COLUMN_TILES(D)][4], const float s[TILE_STEPS][4],
              const uint32_t b[ATTENTION_TILE / 32][DECODE_COLUMN_TILES(D)][4])
{
    constexpr int n_columns = DECODE_COLUMN_TILES(D);
    int first = tile_warp() * n_columns;
#pragma unroll
    for (int i = 0; i < ATTENTION_TILE / 32; i++) {
        uint32_t a[2][4];
        pack_numerators<T>(a[0], s[4 * i], s[4 * i + 1]);
        pack_numerators<T>(a[1], s[4 * i + 2], s[4 * i + 3]);
#pragma unroll
        for (int n = 0; n < n_columns; n++) {
            if (D / 8 % ATTENTION_WARPS != 0 && first + n >= D / 8)
                break;
            multiply<AMPERE>(out[n], a[0], b[i][n][0], b[i][n][1], T());
            multiply<AMPERE>(out[n], a[1], b[i][n][2], b[i][n][3], T());
        }
    }
}

/* A tile's scores and values go into the rows. */
template <typename T, int D, int N_HALVES, bool AMPERE>
static __device__ __forceinline__ void
decode_take_tile(struct decode_rows<D> &rows, const float score[][SCORE_STRIDE], uint32_t v,
                 const struct attention_params *p, const struct decode_place *place)
{
    int lane = threadIdx.x % 32, last = place->kv_len - 1;
    int first_key = place->tile * ATTENTION_TILE;
    float s[TILE_STEPS][4], decay[2], base[2];
    uint32_t values[ATTENTION_TILE / 32][DECODE_COLUMN_TILES(D)][4];
    decode_gather_scores<N_HALVES>(s, score);
    decode_load_values<D, AMPERE>(values, v); /* under the softmax */
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
    decode_values<T, D, AMPERE>(rows.out, s, values);
}

/* ---- the kernel ----------------------------------------------------------------------------- */

/* The three tasks of a share of n_tiles from `place` on. Scores are a step behind the keys' copies
 * at the least, values a step behind the scores. */
template <typename T, int D, bool AMPERE>
static __device__ __forceinline__ void
decode_copy_share(const struct attention_params *p, const struct decode_maps *maps,
                  const struct decode_ring *shared_ring, const struct decode_place *place,
                  int n_tiles)
{
    struct decode_ring ring = *shared_ring;
    struct decode_source source;
    source.next = *place;
    source.n_keys = source.n_values = n_tiles;
    block_window_load(&source.window, p, place->seq, place->tile);
    source_find_keys(p, &source);
    source.values = source.keys;
    previous_kernel_wait();
    for (int i = 0; i < ring.n_stages - 1; i++)
        ring_push<T, D, AMPERE>(p, maps, &ring, &source);
    for (int i = 0; i <= n_tiles; i++)
        ring_fill<T, D, AMPERE>(p, maps, &ring, &source);
}

template <typename T, int D, int N_HALVES, bool AMPERE, bool CAPPED>
static __device__ __forceinline__ void
decode_score_share(const struct attention_params *p, struct decode_shared<N_HALVES> *shared,
                   const struct decode_ring *shared_ring, const struct decode_place *first,
                   int n_tiles)
{
    struct decode_ring ring = *shared_ring;
    struct decode_place place = *first, next = *first; /* next: the pair after */
    uint32_t q[D / 16][4], next_q[D / 16][4];
    decode_next_pair(p, &next);
    previous_kernel_wait();
    decode_load_q<T, D, N_HALVES>(q, p, &place);
    decode_load_q<T, D, N_HALVES>(next_q, p, &next);
    for (int i = 0; i < n_tiles; i++) {
        float s[2][4];
        uint32_t k = ring_next<D, AMPERE>(&ring);
        decode_scores<T, D, AMPERE, CAPPED>(s, q, k, p);
        decode_share_scores<N_HALVES>(shared->score[i % 2], s);
        if (++place.tile < place.end_tile)
            continue;
        place = next;
#pragma unroll
        for (int k_step = 0; k_step < D / 16; k_step++) {
#pragma unroll
            for (int j = 0; j < 4; j++)
                q[k_step][j] = next_q[k_step][j];
        }
        decode_next_pair(p, &next);
        decode_load_q<T, D, N_HALVES>(next_q, p, &next);
    }
    ring_next<D, AMPERE>(&ring); /* the step of the last values */
}

template <typename T, int D, int N_HALVES, bool AMPERE>
static __device__ __forceinline__ void
decode_value_share(const struct attention_params *p, struct decode_shared<N_HALVES> *shared,
                   const struct decode_ring *shared_ring, const struct decode_share *share,
                   const struct decode_place *first, int max_parked)
{
    constexpr int tile_bytes = ring_stage_bytes<D>() / 2;
    struct decode_ring ring = *shared_ring;
    struct decode_place place = *first;
    struct decode_parking parking = {(float2 *)p->scratch, max_parked};
    struct decode_rows<D> all, chunk;
    int n_parked = 0, n_tiles = share->end - share->start;
    bool is_whole = place.tile == place.first_tile; /* the pair's chunks before are here as well */
    decode_rows_clear(all);
    decode_rows_clear(chunk);
    previous_kernel_wait();
    ring_next<D, AMPERE>(&ring); /* the step of the first scores */
    for (int i = 0; i < n_tiles; i++) {
        uint32_t v = ring_next<D, AMPERE>(&ring) + tile_bytes;
        decode_take_tile<T, D, N_HALVES, AMPERE>(chunk, shared->score[i % 2], v, p, &place);
        bool ends_pair = ++place.tile == place.end_tile, ends_share = i + 1 == n_tiles;
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
            decode_store<T, D>(all, p, &place);
        } else {
            if (is_whole)
                decode_park<D, N_HALVES>(parking_space<D, N_HALVES>(&parking, blockIdx.x, 0), all);
            decode_arrive<T, D, N_HALVES>(p, &shared->board, &parking, &place, share, n_parked);
        }
        if (ends_share)
            break;
        decode_next_pair(p, &place);
        is_whole = true;
        n_parked = 0;
        decode_rows_clear(all);
    }
}

template <typename T, int D, int N_HALVES, bool AMPERE, bool CAPPED>
static __global__ void __launch_bounds__(DECODE_THREADS, 1)
    decode_kernel(const __grid_constant__ struct attention_params p,
                  const __grid_constant__ struct decode_maps maps, int n_stages, int max_parked)
{
    if (AMPERE && !PTX_AMPERE)
        return;
    extern __shared__ uint4 memory[];
    auto shared = (struct decode_shared<N_HALVES> *)memory;
    enum decode_task task = (enum decode_task)(threadIdx.x / ATTENTION_THREADS);
    struct decode_ring ring = {shared_address(shared + 1), shared_address(shared->arrived),
                               n_stages, 0, 0};
    ring.tiles = CEIL_DIV(ring.tiles, RING_ALIGNMENT) * RING_ALIGNMENT;
    struct decode_share share;
    struct decode_place place;
    if (threadIdx.x == 0)
        ring_init(&ring, &maps);
    if (!decode_cut(&p, &shared->board, &share, &place)) {
        previous_kernel_wait();
        return;
    }
    int n_tiles = share.end - share.start;
    if (task == TASK_VALUES)
        decode_value_share<T, D, N_HALVES, AMPERE>(&p, shared, &ring, &share, &place, max_parked);
    else if (task == TASK_SCORES)
        decode_score_share<T, D, N_HALVES, AMPERE, CAPPED>(&p, shared, &ring, &place, n_tiles);
    else
        decode_copy_share<T, D, AMPERE>(&p, &maps, &ring, &place, n_tiles);
}

/* How a decode kernel is launched, and what it needs. */
struct decode_plan {
    int n_blocks, n_stages, max_parked;
    size_t shared, scratch_floats;
};

/* One block per multiprocessor, with all of its shared memory. Two for head_dim 64, of half the
 * registers, took 28 % longer on an H200 (256 sequences of 2048 keys). */
static struct decode_plan decode_plan(const struct cuda_device *d, int head_dim, int heads_per_kv,
                                      int n_pairs, int max_kv_len, bool ampere)
{
    struct decode_plan plan = {};
    int n_halves = heads_per_kv > 8 ? 2 : 1;
    size_t stage = (size_t)2 * ATTENTION_TILE * (head_dim + ROW_PADDING) * 2;
    size_t fixed =
        n_halves == 2 ? sizeof(struct decode_shared<2>) : sizeof(struct decode_shared<1>);
    fixed += RING_ALIGNMENT;
    plan.n_stages = (int)MIN((d->shared_per_block - fixed) / stage, DECODE_MAX_STAGES);
    if (!ampere)
        plan.n_stages = MIN(plan.n_stages, 1); /* its copies are complete when they return */
    assert(plan.n_stages >= 1);
    plan.shared = fixed + plan.n_stages * stage;
    plan.n_blocks = MIN(d->n_sms, MAX_DECODE_BLOCKS);
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
    cudaFuncAttributes loaded;
    CUDA_CHECK(cudaFuncGetAttributes(&loaded, kernel));
    bool is_hopper = loaded.ptxVersion >= 90; /* what it was compiled for, not what runs it */
    struct decode_maps maps = {};
    if (is_hopper) {
        attention_map_rows(&maps.k, p->k, D, PANEL_COLUMNS(D));
        attention_map_rows(&maps.v, p->v, D, PANEL_COLUMNS(D));
    }
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)plan.n_blocks);
    config.blockDim = dim3(DECODE_THREADS);
    config.dynamicSmemBytes = plan.shared;
    config.stream = d->stream;
    config.attrs = &overlap;
    config.numAttrs = is_hopper ? 1 : 0;
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, *p, maps, plan.n_stages, plan.max_parked));
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
