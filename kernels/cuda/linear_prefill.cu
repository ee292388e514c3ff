/* linear_prefill.cu - see linear_prefill.cuh.
 *
 * A tile of y is 64 GROUPS rows of x times W_ROWS rows of W. In a block of threads one thread
 * starts copies of boxes of both, 64 columns at a time, into a ring of stages, and GROUPS warp
 * groups multiply what has arrived, each with 64 of the rows of x. Blocks stay, and take one tile
 * after another. Two blocks of a cluster have tiles side by side: each copies half of their rows of
 * x, to both, for the L2 cache would not give more.
 *
 * Nothing but the ring holds the groups of a block together. Where a block has several tiles the
 * second group starts LAG stages after the first, so that one ends a tile while the products of the
 * other run. In the same way they run while a group adds up the parts of a sum.
 *
 * The kernel may start while earlier ones end: as much of W as the ring holds is copied at once, x
 * after previous_kernel_wait().
 */
#include "kernels/cuda/linear_prefill.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/silu_mul.cuh"
#include "kernels/cuda/tensor_map.cuh"

#define PANEL_COLUMNS 64  /* the most that swizzled boxes have */
#define PANEL_ROW     128 /* bytes */
#define GROUP_ROWS    64
#define GROUP_THREADS 128
#define CLUSTER       2 /* blocks */
#define LAG           3

/* Tiles of y are taken in bands of so many above one another, so that what the blocks read at a
 * time of x and W stays in the L2 cache. */
#define BAND 16

/* What becomes of a tile of sums. */
enum product_use { STORE, STORE_F32, STORE_GATED };

struct product_params {
    void *y; /* [n_rows, n_columns], f32 or the type of x and W */
    int n_rows, n_columns;
    int n_parts;
    int n_chunks;     /* stages that a part of a tile takes              */
    int tile_columns; /* of y                                            */
    int n_x_tiles;    /* above one another in y                          */
    int n_tiles;      /* of y, those of a cluster's blocks taken for one */
    enum product_use use;
};

struct product_maps {
    CUtensorMap x, w;
};

/* ---- shared memory -------------------------------------------------------------------------- */

/* A stage is [64 GROUPS][PANEL_ROW bytes] of x, then [W_ROWS][PANEL_ROW bytes] of W. */
static constexpr __host__ __device__ int stage_bytes(int groups, int w_rows)
{
    return (groups * GROUP_ROWS + w_rows) * PANEL_ROW;
}

/* As many stages as there is room for in the 227 KB that a block can have. */
static constexpr __host__ __device__ int ring_stages(int groups, int w_rows)
{
    return (227 * 1024 - 512) / stage_bytes(groups, w_rows);
}

template <int GROUPS, int W_ROWS> struct prefill_shared {
    static constexpr int n_stages = ring_stages(GROUPS, W_ROWS);
    unsigned char stage[n_stages][stage_bytes(GROUPS, W_ROWS)]; /* first: aligned */
    uint64_t arrived[n_stages], released[n_stages];
};

#if PTX_WARP_GROUPS

/* ---- the ring ------------------------------------------------------------------------------- */

/* A thread's way round it. */
template <int GROUPS, int W_ROWS> struct ring {
    uint32_t stages, arrived, released; /* addresses: of all stages, of their barriers */
    int slot, parity;                   /* parity of the phase of the slot's barriers  */

    __device__ __forceinline__ uint32_t x() const
    {
        return stages + slot * stage_bytes(GROUPS, W_ROWS);
    }
    __device__ __forceinline__ uint32_t w() const
    {
        return x() + GROUPS * GROUP_ROWS * PANEL_ROW;
    }
    __device__ __forceinline__ uint32_t slot_arrived() const
    {
        return arrived + slot * 8;
    }
    __device__ __forceinline__ uint32_t slot_released() const
    {
        return released + slot * 8;
    }
};

template <int GROUPS, int W_ROWS>
static __device__ __forceinline__ void ring_advance(struct ring<GROUPS, W_ROWS> *r)
{
    if (++r->slot == ring_stages(GROUPS, W_ROWS)) {
        r->slot = 0;
        r->parity ^= 1;
    }
}

/* By a warp that has used a slot: both blocks may copy to it when all warps of both have. */
static __device__ __forceinline__ void release_slot(uint32_t released)
{
    int lane = threadIdx.x % CUDA_WARP;
    if (lane < CLUSTER)
        copy_barrier_arrive_at_peer(peer_address(released, lane));
}

/* ---- tiles ---------------------------------------------------------------------------------- */

/* First row and column of y. */
struct place {
    int row, column;
};

template <int GROUPS>
static __device__ __forceinline__ struct place tile_place(const struct product_params *p, int tile)
{
    int n_beside = p->n_tiles / p->n_x_tiles;
    int band = tile / (BAND * n_beside), in_band = tile - band * BAND * n_beside;
    int band_rows = min(BAND, p->n_x_tiles - band * BAND);
    int column = in_band / band_rows, row = band * BAND + in_band - column * band_rows;
    return {row * GROUPS * GROUP_ROWS,
            (column * CLUSTER + (int)(blockIdx.x % CLUSTER)) * p->tile_columns};
}

/* ---- copies --------------------------------------------------------------------------------- */

/* The way of the thread that copies through the chunks of all tiles. */
template <int GROUPS, int W_ROWS> struct walk {
    struct ring<GROUPS, W_ROWS> ring;
    int tile, chunk;
    struct place place;
};

template <int GROUPS, int W_ROWS>
static __device__ __forceinline__ void walk_next(struct walk<GROUPS, W_ROWS> *at,
                                                 const struct product_params *p)
{
    ring_advance(&at->ring);
    if (++at->chunk == p->n_parts * p->n_chunks) {
        at->chunk = 0;
        at->tile += (int)gridDim.x / CLUSTER;
        at->place = tile_place<GROUPS>(p, at->tile);
    }
}

template <int GROUPS, int W_ROWS>
static __device__ __forceinline__ void copy_w(const struct walk<GROUPS, W_ROWS> *at,
                                              const CUtensorMap *map)
{
    uint32_t arrived = at->ring.slot_arrived();
    copy_barrier_arrive_expecting(arrived, stage_bytes(GROUPS, W_ROWS));
    copy_block(at->ring.w(), map, at->chunk * PANEL_COLUMNS, at->place.column, 0, arrived);
}

/* This block's share of x, to both. */
template <int GROUPS, int W_ROWS>
static __device__ __forceinline__ void copy_x(const struct walk<GROUPS, W_ROWS> *at,
                                              const CUtensorMap *map)
{
    constexpr int n_rows = GROUPS * GROUP_ROWS / CLUSTER;
    int first = (int)(blockIdx.x % CLUSTER) * n_rows;
    copy_box_to_blocks(at->ring.x() + first * PANEL_ROW, map, at->chunk * PANEL_COLUMNS,
                       at->place.row + first, at->ring.slot_arrived(), (1 << CLUSTER) - 1);
}

/* By one thread: all copies of a block. Those of W for the whole ring come before the wait. */
template <int GROUPS, int W_ROWS>
static __device__ __forceinline__ void copy_tiles(struct ring<GROUPS, W_ROWS> ring,
                                                  const struct product_params *p,
                                                  const struct product_maps *maps)
{
    int first = (int)blockIdx.x / CLUSTER, n_ahead = 0;
    struct walk<GROUPS, W_ROWS> at = {ring, first, 0, tile_place<GROUPS>(p, first)}, ahead = at;
    for (; ahead.tile < p->n_tiles && n_ahead < ring_stages(GROUPS, W_ROWS); n_ahead++) {
        copy_w(&ahead, &maps->w);
        walk_next(&ahead, p);
    }
    previous_kernel_wait();
    for (; at.tile < p->n_tiles; walk_next(&at, p)) {
        if (n_ahead-- <= 0) {
            copy_barrier_wait(at.ring.slot_released(), at.ring.parity ^ 1);
            copy_w(&at, &maps->w);
        }
        copy_x(&at, &maps->x);
    }
}

/* ---- products ------------------------------------------------------------------------------- */

template <typename T, int W_ROWS>
static __device__ __forceinline__ void multiply_rows(float c[W_ROWS / 8][4], uint32_t x, uint32_t w)
{
    if constexpr (W_ROWS == 64)
        multiply_tiles_64(c, x, w, T());
    if constexpr (W_ROWS == 128)
        multiply_tiles_128(c, x, w, T());
    if constexpr (W_ROWS == 256)
        multiply_tiles_256(c, x, w, T());
}

/* c += x w^T for the columns of a part. A slot is released when the products of the next one have
 * been started, so that the tensor cores do not run dry. */
template <typename T, int GROUPS, int W_ROWS>
static __device__ __forceinline__ void
multiply_part(float c[W_ROWS / 8][4], struct ring<GROUPS, W_ROWS> *r, int group, int n_chunks)
{
    uint32_t previous = 0;
    for (int chunk = 0; chunk < n_chunks; chunk++) {
        copy_barrier_wait_together(r->slot_arrived(), r->parity);
        uint32_t x = (r->x() + group * GROUP_ROWS * PANEL_ROW) / 16, w = r->w() / 16;
        group_multiply_begin();
#pragma unroll
        for (int i = 0; i < PANEL_COLUMNS / 16; i++)
            multiply_rows<T, W_ROWS>(c, x + i * 2, w + i * 2);
        group_multiply_commit();
        group_multiply_wait<1>();
        if (chunk > 0)
            release_slot(previous);
        previous = r->slot_released();
        ring_advance(r);
    }
    group_multiply_wait<0>();
    release_slot(previous);
    group_multiply_end<W_ROWS / 8>(c);
}

/* c: the sums of a tile, part by part. */
template <typename T, int GROUPS, int W_ROWS>
static __device__ __forceinline__ void multiply_tile(float c[W_ROWS / 8][4],
                                                     struct ring<GROUPS, W_ROWS> *r, int group,
                                                     const struct product_params *p)
{
    multiply_part<T>(c, r, group, p->n_chunks);
    /* There are no registers for parts of larger tiles. */
    if constexpr (W_ROWS <= 128) {
        for (int part = 1; part < p->n_parts; part++) {
            float s[W_ROWS / 8][4] = {};
            multiply_part<T>(s, r, group, p->n_chunks);
#pragma unroll
            for (int i = 0; i < W_ROWS / 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    c[i][j] = __fadd_rn(c[i][j], s[i][j]);
        }
    }
}

/* ---- what becomes of the sums --------------------------------------------------------------- */

/* The first half of the tile's columns gates the second. */
template <typename T, int W_ROWS>
static __device__ __forceinline__ void gate_sums(float c[W_ROWS / 8][4])
{
#pragma unroll
    for (int i = 0; i < W_ROWS / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            c[i][j] = silu_mul(from_float<T>(c[i][j]), from_float<T>(c[i + W_ROWS / 16][j]));
}

/* The first 8 TILES columns of the group's rows. place: of the tile's first column in the group's
 * first row. */
template <typename T, int TILES>
static __device__ __forceinline__ void
store_sums(const float c[TILES][4], const struct product_params *p, struct place place)
{
    int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x % GROUP_THREADS / CUDA_WARP;
    int column = place.column + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = place.row + warp * 16 + lane / 4 + half * 8;
        size_t at = (size_t)row * p->n_columns + column;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            float first = c[i][half * 2], second = c[i][half * 2 + 1];
            if (row >= p->n_rows || column + i * 8 >= p->n_columns)
                continue;
            if (p->use == STORE_F32)
                *(float2 *)((float *)p->y + at + i * 8) = make_float2(first, second);
            else
                *(uint32_t *)((T *)p->y + at + i * 8) = pack_pair(first, second, T());
        }
    }
}

/* Word i of lane j of four neighbours goes to word j of lane i. */
static __device__ __forceinline__ void transpose_words(uint32_t v[4])
{
    int lane = threadIdx.x % 4;
#pragma unroll
    for (int step = 1; step <= 2; step *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & step)
                continue;
            bool upper = lane & step;
            uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, upper ? v[i] : v[i + step], step);
            if (upper)
                v[i] = other;
            else
                v[i + step] = other;
        }
}

/* The same, rounded to T, by stores of 16 bytes: rows of y are a multiple of that. */
template <typename T, int TILES>
static __device__ __forceinline__ void
store_sums_rounded(const float c[TILES][4], const struct product_params *p, struct place place)
{
    int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x % GROUP_THREADS / CUDA_WARP;
    int column = place.column + lane % 4 * 8;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = place.row + warp * 16 + lane / 4 + half * 8;
        T *to = (T *)p->y + (size_t)row * p->n_columns + column;
#pragma unroll
        for (int i = 0; i < TILES; i += 4) {
            uint32_t v[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                v[j] = pack_pair(c[i + j][half * 2], c[i + j][half * 2 + 1], T());
            transpose_words(v);
            if (row < p->n_rows && column + i * 8 < p->n_columns)
                *(uint4 *)(to + i * 8) = make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
}

template <typename T, int TILES>
static __device__ __forceinline__ void store(const float c[TILES][4],
                                             const struct product_params *p, struct place place)
{
    if (p->use != STORE_F32 && p->n_columns % 8 == 0)
        store_sums_rounded<T, TILES>(c, p, place);
    else
        store_sums<T, TILES>(c, p, place);
}

/* By a warp group: its rows of all tiles of a block. */
template <typename T, int GROUPS, int W_ROWS>
static __device__ __forceinline__ void multiply_tiles(struct ring<GROUPS, W_ROWS> ring, int group,
                                                      const struct product_params *p)
{
    int n_clusters = (int)gridDim.x / CLUSTER;
    if (group == 1 && p->n_tiles > n_clusters && p->n_parts * p->n_chunks > LAG)
        copy_barrier_wait_together(ring.arrived + LAG * 8, 0);
    for (int tile = (int)blockIdx.x / CLUSTER; tile < p->n_tiles; tile += n_clusters) {
        struct place place = tile_place<GROUPS>(p, tile);
        place.row += group * GROUP_ROWS;
        float c[W_ROWS / 8][4] = {};
        multiply_tile<T>(c, &ring, group, p);
        if (p->use == STORE_GATED) {
            gate_sums<T, W_ROWS>(c);
            store<T, W_ROWS / 16>(c, p, place);
        } else {
            store<T, W_ROWS / 8>(c, p, place);
        }
    }
}

#endif

/* ---- the kernel ----------------------------------------------------------------------------- */

/* Of the groups and of the one that copies. */
static constexpr int block_threads(int groups)
{
    return (groups + 1) * GROUP_THREADS;
}

/* Of a thread that copies, and of one that multiplies when there are two groups: together all that
 * there are. */
#define COPY_REGISTERS     40
#define MULTIPLY_REGISTERS 232

template <typename T, int GROUPS, int W_ROWS>
static __global__ void __launch_bounds__(block_threads(GROUPS), 1)
    linear_prefill_kernel(const __grid_constant__ struct product_params p,
                          const __grid_constant__ struct product_maps maps)
{
#if PTX_WARP_GROUPS
    extern __shared__ __align__(1024) unsigned char memory[];
    auto shared = (struct prefill_shared<GROUPS, W_ROWS> *)memory;
    struct ring<GROUPS, W_ROWS> ring = {
        shared_address(shared->stage), shared_address(shared->arrived),
            shared_address(shared->released), 0, 0
    };
    next_kernel_start();
    if (threadIdx.x == GROUPS * GROUP_THREADS) {
        copy_box_prepare(&maps.w);
        copy_box_prepare(&maps.x);
        for (int i = 0; i < ring_stages(GROUPS, W_ROWS); i++) {
            copy_barrier_init(ring.arrived + i * 8, 1);
            copy_barrier_init(ring.released + i * 8, CLUSTER * GROUPS * GROUP_THREADS / CUDA_WARP);
        }
        copy_barrier_publish();
    }
    cluster_wait();
    /* From one lane, so that the compiler knows it to be the same in all of them. */
    int group = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x / GROUP_THREADS, 0);
    if (group < GROUPS) {
        if constexpr (GROUPS == 2)
            registers_grow<MULTIPLY_REGISTERS>();
        multiply_tiles<T>(ring, group, &p);
    } else {
        if constexpr (GROUPS == 2)
            registers_shrink<COPY_REGISTERS>();
        if (threadIdx.x == GROUPS * GROUP_THREADS)
            copy_tiles(ring, &p, &maps);
    }
    __syncwarp();
    cluster_wait(); /* the other block may still copy to this one, and release its slots */
#endif
}

/* ---- launch --------------------------------------------------------------------------------- */

static void map_x(CUtensorMap *map, const struct linear_prefill_args *args, int box_rows)
{
    const struct tensor_layout layout = {
        .n_dims = 2,
        .size = {(size_t)args->n_in, (size_t)args->n_rows},
        .stride_bytes = {(size_t)args->n_in * 2},
        .box = {PANEL_COLUMNS, box_rows},
        .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
        .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
    };
    tensor_map_init(map, args->x, &layout);
}

/* With gates: half of a box's rows from each half of W. */
static void map_w(CUtensorMap *map, const struct linear_prefill_args *args, int box_rows)
{
    int halves = args->gated ? 2 : 1;
    size_t row = (size_t)args->n_in * 2, n_rows = (size_t)(args->n_out / halves);
    const struct tensor_layout layout = {
        .n_dims = 3,
        .size = {(size_t)args->n_in, n_rows, (size_t)halves},
        .stride_bytes = {row, n_rows * row},
        .box = {PANEL_COLUMNS, box_rows / halves, halves},
        .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
        .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
    };
    tensor_map_init(map, args->w, &layout);
}

static struct product_params make_params(const struct linear_prefill_args *args, int groups,
                                         int w_rows)
{
    struct product_params p = {};
    p.y = args->y;
    p.use = args->gated ? STORE_GATED : args->out_dtype == DTYPE_F32 ? STORE_F32 : STORE;
    p.n_rows = args->n_rows;
    p.n_columns = args->gated ? args->n_out / 2 : args->n_out;
    p.n_parts = args->n_parts;
    p.n_chunks = args->n_in / args->n_parts / PANEL_COLUMNS;
    p.tile_columns = args->gated ? w_rows / 2 : w_rows;
    p.n_x_tiles = CEIL_DIV(args->n_rows, groups * GROUP_ROWS);
    p.n_tiles = p.n_x_tiles * CEIL_DIV(p.n_columns, CLUSTER * p.tile_columns);
    return p;
}

template <typename T, int GROUPS, int W_ROWS>
static void launch(const struct cuda_device *d, const struct linear_prefill_args *args)
{
    const struct product_params p = make_params(args, GROUPS, W_ROWS);
    struct product_maps maps;
    map_x(&maps.x, args, GROUPS * GROUP_ROWS / CLUSTER);
    map_w(&maps.w, args, W_ROWS);
    int n_blocks = CLUSTER * MIN(p.n_tiles, d->n_sms / CLUSTER);
    cuda_launch_early_clusters(d, linear_prefill_kernel<T, GROUPS, W_ROWS>,
                               dim3((unsigned)n_blocks), CLUSTER, block_threads(GROUPS),
                               sizeof(struct prefill_shared<GROUPS, W_ROWS>), p, maps);
}

/* Few rows take small tiles, for more blocks. */
template <typename T>
static void launch_tiles(const struct cuda_device *d, const struct linear_prefill_args *args)
{
    long long n = (long long)args->n_rows * args->n_out, sms = d->n_sms;
    if (n <= sms * 64 * 64)
        launch<T, 1, 64>(d, args);
    else if (n <= sms * 64 * 128)
        launch<T, 1, 128>(d, args);
    else if (n <= sms * 128 * 128 || args->n_parts > 1)
        launch<T, 2, 128>(d, args);
    else
        launch<T, 2, 256>(d, args);
}

bool linear_prefill_can(const struct cuda_device *d, int n_out, int n_in, int n_parts)
{
    return cuda_has_warp_groups(d) && d->base.act_dtype != DTYPE_F32 && n_out % 8 == 0 &&
           n_in % (PANEL_COLUMNS * n_parts) == 0;
}

void linear_prefill(const struct cuda_device *d, const struct linear_prefill_args *args)
{
    assert(linear_prefill_can(d, args->n_out, args->n_in, args->n_parts));
    if (d->base.act_dtype == DTYPE_BF16)
        launch_tiles<__nv_bfloat16>(d, args);
    else
        launch_tiles<__half>(d, args);
}
