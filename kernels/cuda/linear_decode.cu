/* linear_decode.cu - see linear_decode.cuh.
 *
 * A tile of y is X_ROWS or fewer rows of x times W_ROWS rows of W. In a block of threads one thread
 * starts copies of boxes of both into a ring of stages, PANELS panels of 64 columns in each, and
 * four warps multiply what has arrived, with rows of x as the 64 rows of their products. Where a
 * tile has fewer rows of x, the others are whatever else is in shared memory, and what becomes of
 * them is not stored. A tile has all columns, so nothing is left to be added up.
 *
 * The kernel may start while earlier ones end. W does not depend on them: as much of it as the ring
 * holds is copied at once, x after previous_kernel_wait(). What a short product takes then is the
 * latency of x, that of a chain of n_in / 16 products (from 20 cycles each with 16 rows of W to 32
 * with 64, and 12 more to describe their operands), and that of y; bytes of W matter where they are
 * many. Copies of x to several blocks at once (clusters) gained 7 % at most and lost as much in
 * other shapes; a chain of mma.sync takes 25 cycles a product, but the way of its operands through
 * registers more (results/bench/h200-linear.md).
 */
#include "kernels/cuda/linear_decode.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.cuh"

#define X_ROWS         64
#define PANEL_COLUMNS  64  /* the most that swizzled boxes have */
#define PANEL_ROW      128 /* bytes */
#define TILE_ALIGNMENT 1024
#define MAX_STAGES     32
#define N_CONSUMERS    128
#define BLOCK_THREADS  (N_CONSUMERS + CUDA_WARP)

struct product_params {
    void *y; /* [n_rows, n_out], f32 or the type of x and W */
    int n_rows, n_out;
    int n_chunks;  /* stages that a tile takes                         */
    int x_rows;    /* of a tile: 8 to X_ROWS                           */
    int n_x_tiles; /* above one another in y                           */
    int n_tiles;   /* of y: those of the same rows of W are neighbours */
    int n_stages;  /* of the ring                                      */
    bool to_f32;
};

struct product_maps {
    CUtensorMap x, w;
};

#if PTX_WARP_GROUPS

/* ---- the ring ---- */

/* A stage is [PANELS][x_rows][PANEL_ROW bytes] of x, then the same of W. */
struct stages {
    uint32_t tiles, arrived, released; /* addresses: of all stages, of their barriers */
    int bytes, n;
};

/* A block's way through its tiles and their chunks, and where in the ring that is. */
struct walk {
    int tile, chunk;
    int x_row, w_row; /* the tile's first                         */
    int slot, parity; /* parity of the phase of the slot's barriers */
    uint32_t stage;   /* address                                  */
};

template <int W_ROWS>
static __device__ __forceinline__ void walk_enter_tile(struct walk *at,
                                                       const struct product_params *p)
{
    int w_tile = at->tile / p->n_x_tiles;
    at->chunk = 0;
    at->w_row = w_tile * W_ROWS;
    at->x_row = (at->tile - w_tile * p->n_x_tiles) * p->x_rows;
}

template <int W_ROWS>
static __device__ __forceinline__ void walk_next(struct walk *at, const struct product_params *p,
                                                 const struct stages *s)
{
    at->stage += s->bytes;
    if (++at->slot == s->n) {
        at->slot = 0;
        at->parity ^= 1;
        at->stage = s->tiles;
    }
    if (++at->chunk == p->n_chunks) {
        at->tile += gridDim.x;
        walk_enter_tile<W_ROWS>(at, p);
    }
}

/* ---- copies ---- */

template <int PANELS>
static __device__ __forceinline__ void copy_w(const struct walk *at, const struct product_params *p,
                                              const struct stages *s, const CUtensorMap *map)
{
    uint32_t arrived = s->arrived + at->slot * 8;
    copy_barrier_expect(arrived, s->bytes);
    copy_barrier_arrive(arrived);
    copy_panels(at->stage + PANELS * p->x_rows * PANEL_ROW, map, at->w_row, at->chunk * PANELS,
                arrived);
}

template <int PANELS>
static __device__ __forceinline__ void copy_x(const struct walk *at, const struct stages *s,
                                              const CUtensorMap *map)
{
    copy_panels(at->stage, map, at->x_row, at->chunk * PANELS, s->arrived + at->slot * 8);
}

/* By one thread: all copies of a block. Those of W for the whole ring come before the wait. */
template <int W_ROWS, int PANELS>
static __device__ __forceinline__ void copy_tiles(struct walk at, const struct product_params *p,
                                                  const struct stages *s,
                                                  const struct product_maps *maps)
{
    struct walk ahead = at;
    int n_ahead = 0;
    for (; ahead.tile < p->n_tiles && n_ahead < s->n; n_ahead++) {
        copy_w<PANELS>(&ahead, p, s, &maps->w);
        walk_next<W_ROWS>(&ahead, p, s);
    }
    previous_kernel_wait();
    for (; at.tile < p->n_tiles; walk_next<W_ROWS>(&at, p, s)) {
        if (n_ahead-- <= 0) {
            copy_barrier_wait(s->released + at.slot * 8, at.parity ^ 1);
            copy_w<PANELS>(&at, p, s, &maps->w);
        }
        copy_x<PANELS>(&at, s, &maps->x);
    }
}

/* ---- products ---- */

/* c += x w^T for the columns of a stage. x, w: addresses / 16 */
template <typename T, int W_ROWS, int PANELS>
static __device__ __forceinline__ void multiply_stage(float c[W_ROWS / 8][4], uint32_t x,
                                                      uint32_t w, int x_rows)
{
    const int n_64 = W_ROWS / 64 * 64, n_32 = W_ROWS / 32 * 32;
#pragma unroll
    for (int i = 0; i < PANELS * PANEL_COLUMNS / 16; i++) {
        int panel = i / 4, columns = i % 4 * 2;
        uint32_t a = x + panel * x_rows * (PANEL_ROW / 16) + columns;
        uint32_t b = w + panel * W_ROWS * (PANEL_ROW / 16) + columns;
#pragma unroll
        for (int n = 0; n < n_64; n += 64)
            multiply_tiles_64(c + n / 8, a, b + n * (PANEL_ROW / 16), T());
        if (n_64 < n_32)
            multiply_tiles_32(c + n_64 / 8, a, b + n_64 * (PANEL_ROW / 16), T());
        if (n_32 < W_ROWS)
            multiply_tiles_16(c + n_32 / 8, a, b + n_32 * (PANEL_ROW / 16), T());
    }
}

/* Layout of c: see ptx.cuh. */
template <typename T, int W_ROWS>
static __device__ __forceinline__ void
store_tile(const float c[W_ROWS / 8][4], const struct product_params *p, const struct walk *at)
{
    int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP;
    int n_rows = min(p->x_rows, p->n_rows - at->x_row), column = at->w_row + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = warp * 16 + half * 8 + lane / 4;
        size_t y = (size_t)(at->x_row + row) * p->n_out + column;
#pragma unroll
        for (int i = 0; i < W_ROWS / 8; i++) {
            float first = c[i][half * 2], second = c[i][half * 2 + 1];
            if (row >= n_rows || column + i * 8 >= p->n_out)
                break;
            if (p->to_f32)
                *(float2 *)((float *)p->y + y + i * 8) = make_float2(first, second);
            else
                *(uint32_t *)((T *)p->y + y + i * 8) = pack_pair(first, second, T());
        }
    }
}

/* By four warps. A stage is released when the products of the next one have been started, so that
 * the tensor cores do not run dry. */
template <typename T, int W_ROWS, int PANELS>
static __device__ __forceinline__ void
multiply_tiles(struct walk at, const struct product_params *p, const struct stages *s)
{
    bool releases = threadIdx.x % CUDA_WARP == 0;
    while (at.tile < p->n_tiles) {
        struct walk tile = at;
        uint32_t previous = 0;
        float c[W_ROWS / 8][4] = {};
        do {
            copy_barrier_wait_together(s->arrived + at.slot * 8, at.parity);
            uint32_t x = at.stage / 16, w = x + PANELS * p->x_rows * (PANEL_ROW / 16);
            group_multiply_begin();
            multiply_stage<T, W_ROWS, PANELS>(c, x, w, p->x_rows);
            group_multiply_commit();
            group_multiply_wait<1>();
            if (previous != 0 && releases)
                copy_barrier_arrive(previous);
            previous = s->released + at.slot * 8;
            walk_next<W_ROWS>(&at, p, s);
        } while (at.chunk != 0);
        group_multiply_wait<0>();
        group_multiply_end<W_ROWS / 8>(c);
        if (releases)
            copy_barrier_arrive(previous);
        store_tile<T, W_ROWS>(c, p, &tile);
    }
}

#endif

template <typename T, int W_ROWS, int PANELS>
static __global__ void __launch_bounds__(BLOCK_THREADS, 1)
    linear_decode_kernel(const __grid_constant__ struct product_params p,
                         const __grid_constant__ struct product_maps maps)
{
#if PTX_WARP_GROUPS
    extern __shared__ uint4 memory[];
    __shared__ uint64_t arrived[MAX_STAGES], released[MAX_STAGES];
    next_kernel_start();
    struct stages s = {CEIL_DIV(shared_address(memory), TILE_ALIGNMENT) * TILE_ALIGNMENT,
                       shared_address(arrived), shared_address(released),
                       PANELS * (p.x_rows + W_ROWS) * PANEL_ROW, p.n_stages};
    struct walk at = {(int)blockIdx.x, 0, 0, 0, 0, 0, s.tiles};
    walk_enter_tile<W_ROWS>(&at, &p);
    if (threadIdx.x == N_CONSUMERS) {
        copy_box_prepare(&maps.w);
        copy_box_prepare(&maps.x);
        for (int i = 0; i < s.n; i++) {
            copy_barrier_init(s.arrived + i * 8, 1);
            copy_barrier_init(s.released + i * 8, N_CONSUMERS / CUDA_WARP);
        }
        copy_barrier_publish();
    }
    __syncthreads();
    /* From one lane, so that the compiler knows it to be the same in all of them. */
    int warp = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x / CUDA_WARP, 0);
    if (warp < N_CONSUMERS / CUDA_WARP)
        multiply_tiles<T, W_ROWS, PANELS>(at, &p, &s);
    else if (threadIdx.x == N_CONSUMERS)
        copy_tiles<W_ROWS, PANELS>(at, &p, &s, &maps);
#endif
}

/* ---- launch ---- */

/* Boxes of box_rows rows and as many panels of a matrix [n_rows, n_columns]. */
static void map_panels(CUtensorMap *map, const void *rows, int n_rows, int n_columns, int box_rows,
                       int panels)
{
    const struct tensor_layout layout = {
        .n_dims = 3,
        .size = {PANEL_COLUMNS, (size_t)n_rows, (size_t)(n_columns / PANEL_COLUMNS)},
        .stride_bytes = {(size_t)n_columns * 2, PANEL_ROW},
        .box = {PANEL_COLUMNS, box_rows, panels},
        .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
        .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
    };
    tensor_map_init(map, rows, &layout);
}

/* Rows of x in a tile: few tiles, and few rows that are not there. */
static int tile_x_rows(int n_rows)
{
    int x_rows = 8;
    while (x_rows < MIN(n_rows, X_ROWS))
        x_rows *= 2;
    return x_rows;
}

template <typename T, int W_ROWS, int PANELS>
static void launch(const struct cuda_device *d, const struct linear_decode_args *args)
{
    struct product_params p = {};
    p.y = args->y;
    p.n_rows = args->n_rows;
    p.n_out = args->n_out;
    p.n_chunks = CEIL_DIV(args->n_in, PANELS * PANEL_COLUMNS);
    p.x_rows = tile_x_rows(args->n_rows);
    p.n_x_tiles = CEIL_DIV(args->n_rows, p.x_rows);
    p.n_tiles = CEIL_DIV(args->n_out, W_ROWS) * p.n_x_tiles;
    p.to_f32 = args->out_dtype == DTYPE_F32;
    int n_blocks = MIN(p.n_tiles, d->n_sms), stage = PANELS * (p.x_rows + W_ROWS) * PANEL_ROW;
    /* Products of x_rows < X_ROWS read beyond the last stage. */
    int fixed = TILE_ALIGNMENT + (X_ROWS - p.x_rows) * PANEL_ROW;
    int room = (int)d->shared_per_block - fixed - 2 * MAX_STAGES * (int)sizeof(uint64_t);
    int n_useful = CEIL_DIV(p.n_tiles, n_blocks) * p.n_chunks;
    p.n_stages = MIN(MIN(room / stage, MAX_STAGES), n_useful);
    struct product_maps maps;
    map_panels(&maps.x, args->x, args->n_rows, args->n_in, p.x_rows, PANELS);
    map_panels(&maps.w, args->w, args->n_out, args->n_in, W_ROWS, PANELS);
    cuda_launch_early(d, linear_decode_kernel<T, W_ROWS, PANELS>, dim3((unsigned)n_blocks),
                      BLOCK_THREADS, fixed + p.n_stages * stage, p, maps);
}

/* Longer stages have fewer waits, but six of them should fit. */
template <typename T, int W_ROWS>
static void launch_panels(const struct cuda_device *d, const struct linear_decode_args *args)
{
    if (tile_x_rows(args->n_rows) + W_ROWS <= 80)
        launch<T, W_ROWS, 4>(d, args);
    else
        launch<T, W_ROWS, 2>(d, args);
}

template <typename T>
static void launch_tiles(const struct cuda_device *d, const struct linear_decode_args *args)
{
    switch (args->tile_rows) {
    case 16: return launch<T, 16, 4>(d, args);
    case 32: return launch_panels<T, 32>(d, args);
    case 64: return launch_panels<T, 64>(d, args);
    default: assert(args->tile_rows == 96); return launch<T, 96, 2>(d, args);
    }
}

bool linear_decode_can(const struct cuda_device *d, int n_out, int n_in, int n_rows)
{
    return cuda_has_warp_groups(d) && d->base.act_dtype != DTYPE_F32 &&
           n_rows <= LINEAR_DECODE_MAX_ROWS && n_out % 8 == 0 && n_in % PANEL_COLUMNS == 0;
}

void linear_decode(const struct cuda_device *d, const struct linear_decode_args *args)
{
    assert(linear_decode_can(d, args->n_out, args->n_in, args->n_rows));
    if (d->base.act_dtype == DTYPE_BF16)
        launch_tiles<__nv_bfloat16>(d, args);
    else
        launch_tiles<__half>(d, args);
}
