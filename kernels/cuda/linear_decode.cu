/* linear_decode.cu - see linear_decode.cuh.
 *
 * A tile of y is X_ROWS or fewer rows of x times W_ROWS rows of W. In a block of threads one thread
 * starts copies of boxes of both into a ring of stages, PANELS panels of 64 columns in each, and
 * four warps multiply what has arrived, with rows of x as the 64 rows of their products. Where a
 * tile has fewer rows of x, the others are whatever else is in shared memory, and what becomes of
 * them is not stored. A tile has all columns, or those of a part where a sum has several: what the
 * parts give is stored apart, and added up by whoever reads it. Half of a tile's rows of W may be
 * those that go with the other half: gates with what they gate, elements of a head with their
 * partners. A thread then has both, and goes on with them before it stores.
 *
 * The kernel may start while earlier ones end. W does not depend on them: as much of it as the ring
 * holds is copied at once, x after previous_kernel_wait(). What a short product takes then is the
 * latency of x, that of a chain of n_in / 16 products (from 20 cycles each with 16 rows of W to 32
 * with 64, and 12 more to describe their operands), and that of y; bytes of W matter where they are
 * many. Copies of x to several blocks at once (clusters) gained 7 % at most and lost as much in
 * other shapes; a chain of mma.sync takes 25 cycles a product, but the way of its operands through
 * registers more, and so does that of a left operand (results/bench/h200-linear.md).
 */
#include "kernels/cuda/linear_decode.cuh"
#include "kernels/cuda/linear_decode_heads.cuh"
#include "kernels/cuda/linear_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/silu_mul.cuh"
#include "kernels/cuda/tensor_map.cuh"

#define X_ROWS         64
#define MAX_PANELS     4 /* of a stage */
#define TILE_ALIGNMENT 1024
#define MAX_STAGES     32
#define N_CONSUMERS    128
#define BLOCK_THREADS  (N_CONSUMERS + CUDA_WARP)

/* Shared memory beside the ring. */
#define SHARED_BARRIERS ((2 * MAX_STAGES + 1) * 8 + 2 * EXCHANGED_ROWS * 4)

/* What becomes of a tile of sums; from STORE_GATED on, halves of it go together. */
enum product_use { STORE, STORE_F32, STORE_GATED, STORE_HEADS };

struct product_params {
    void *y; /* [n_parts, n_rows, n_columns], f32 or the type of x and W */
    int n_rows, n_columns;
    int n_chunks;     /* stages that a tile takes                               */
    int x_rows;       /* of a tile: 8, 16, 32 or X_ROWS                         */
    int tile_columns; /* from a tile of y to the next beside it                 */
    int n_beside;     /* tiles that share a head, or 1                          */
    int span;         /* columns of those together                              */
    int n_x_tiles;    /* above one another in y                                 */
    int n_tiles;      /* of y: those beside one another, then above one another */
    int n_stages;     /* of the ring                                            */
    enum product_use use;
    struct rope_params heads; /* STORE_HEADS */
};

struct product_maps {
    CUtensorMap x, w;
};

#if PTX_WARP_GROUPS

/* ---- the ring ---- */

/* A stage is [PANELS][x_rows][PANEL_ROW bytes] of x, then [PANELS][W_ROWS][PANEL_ROW bytes] of W.
 */
struct stages {
    uint32_t tiles, arrived, released; /* addresses: of all stages, of their barriers */
    int bytes, n;
};

/* A block's way through its tiles and their chunks, and where in the ring that is. */
struct walk {
    int tile, chunk;
    int row, column;  /* the tile's first in y                      */
    int slot, parity; /* parity of the phase of the slot's barriers */
    uint32_t stage;   /* address                                    */
};

static __device__ __forceinline__ void walk_enter_tile(struct walk *at,
                                                       const struct product_params *p)
{
    int group = at->tile / p->n_beside, below = group / p->n_x_tiles;
    at->chunk = 0;
    at->column = below * p->span + (at->tile - group * p->n_beside) * p->tile_columns;
    at->row = (group - below * p->n_x_tiles) * p->x_rows;
}

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
        walk_enter_tile(at, p);
    }
}

/* ---- copies ---- */

/* The first panel of the next chunk. Each part has blocks of its own. */
template <int PANELS>
static __device__ __forceinline__ int next_panel(const struct walk *at,
                                                 const struct product_params *p)
{
    return ((int)blockIdx.y * p->n_chunks + at->chunk) * PANELS;
}

template <int PANELS>
static __device__ __forceinline__ void copy_w(const struct walk *at, const struct product_params *p,
                                              const struct stages *s, const CUtensorMap *map)
{
    uint32_t arrived = s->arrived + at->slot * 8, to = at->stage + PANELS * p->x_rows * PANEL_ROW;
    copy_barrier_expect(arrived, s->bytes);
    copy_barrier_arrive(arrived);
    if (p->use >= STORE_GATED)
        copy_panel_halves(to, map, at->column, next_panel<PANELS>(at, p), arrived);
    else
        copy_panels(to, map, at->column, next_panel<PANELS>(at, p), arrived);
}

template <int PANELS>
static __device__ __forceinline__ void copy_x(const struct walk *at, const struct product_params *p,
                                              const struct stages *s, const CUtensorMap *map)
{
    copy_panels(at->stage, map, at->row, next_panel<PANELS>(at, p), s->arrived + at->slot * 8);
}

/* By one thread: all copies of a block. Those of W for the whole ring come before the wait. */
template <int PANELS>
static __device__ __forceinline__ void copy_tiles(struct walk at, const struct product_params *p,
                                                  const struct stages *s,
                                                  const struct product_maps *maps)
{
    struct walk ahead = at;
    int n_ahead = 0;
    for (; ahead.tile < p->n_tiles && n_ahead < s->n; n_ahead++) {
        copy_w<PANELS>(&ahead, p, s, &maps->w);
        walk_next(&ahead, p, s);
    }
    previous_kernel_wait();
    if (p->use == STORE_HEADS)
        next_kernel_start();
    for (; at.tile < p->n_tiles; walk_next(&at, p, s)) {
        if (n_ahead-- <= 0) {
            copy_barrier_wait(s->released + at.slot * 8, at.parity ^ 1);
            copy_w<PANELS>(&at, p, s, &maps->w);
        }
        copy_x<PANELS>(&at, p, s, &maps->x);
    }
}

/* ---- a thread's patch of a tile of y ---- */

/* Rows of all parts are one below the other. */
static __device__ __forceinline__ struct patch patch_of(const struct walk *at,
                                                        const struct product_params *p)
{
    int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP;
    int first = (int)blockIdx.y * p->n_rows;
    return {p->y,
            p->n_columns,
            first + at->row + warp * 16 + lane / 4,
            at->column + lane % 4 * 2,
            first + min(at->row + p->x_rows, p->n_rows),
            p->use == STORE_F32};
}

/* ---- products ---- */

/* c += x w^T for the columns of a stage. x, w: addresses / 16 */
template <typename T, int W_ROWS, int PANELS>
static __device__ __forceinline__ void multiply_stage(float c[W_ROWS / 8][4], uint32_t x,
                                                      uint32_t w, int x_rows)
{
#pragma unroll
    for (int i = 0; i < PANELS * PANEL_COLUMNS / 16; i++) {
        int panel = i / 4, columns = i % 4 * 2;
        multiply_rows<T, W_ROWS>(c, x + panel * x_rows * (PANEL_ROW / 16) + columns,
                                 w + panel * W_ROWS * (PANEL_ROW / 16) + columns);
    }
}

/* By four warps: all tiles of a block. A stage is released when the products of the next one have
 * been started, so that the tensor cores do not run dry. */
template <typename T, int W_ROWS, int PANELS, bool HEADS>
static __device__ __forceinline__ void multiply_tiles(struct walk at,
                                                      const struct product_params *p,
                                                      const struct stages *s, struct exchange e)
{
    bool releases = threadIdx.x % CUDA_WARP == 0;
    while (at.tile < p->n_tiles) {
        struct patch t = patch_of(&at, p);
        const struct head_place h = {t.column / p->span, t.column % p->span, t.row, t.end_row};
        struct head_terms<W_ROWS / 16> terms;
        if (HEADS)
            load_head_terms(&terms, &p->heads, &h);
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
            walk_next(&at, p, s);
        } while (at.chunk != 0);
        group_multiply_wait<0>();
        if (releases)
            copy_barrier_arrive(previous);
        group_multiply_end<W_ROWS / 8>(c);
        if (HEADS) {
            finish_heads<T>(c, &terms, &p->heads, &h, &e);
        } else if (p->use == STORE_GATED) {
            gate_sums<T, W_ROWS>(c);
            store_sums<T, W_ROWS / 16>(c, &t);
        } else {
            store_sums<T, W_ROWS / 8>(c, &t);
        }
    }
}

#endif

template <typename T, int W_ROWS, int PANELS, bool HEADS>
static __global__ void __launch_bounds__(BLOCK_THREADS, 1)
    linear_decode_kernel(const __grid_constant__ struct product_params p,
                         const __grid_constant__ struct product_maps maps)
{
#if PTX_WARP_GROUPS
    extern __shared__ uint4 memory[];
    __shared__ uint64_t arrived[MAX_STAGES], released[MAX_STAGES], exchanged;
    __shared__ float squares[2][EXCHANGED_ROWS];
    /* With heads, once the wait is over: see rope_cache_kernel(). */
    if (!HEADS)
        next_kernel_start();
    struct stages s = {CEIL_DIV(shared_address(memory), TILE_ALIGNMENT) * TILE_ALIGNMENT,
                       shared_address(arrived), shared_address(released),
                       PANELS * (p.x_rows + W_ROWS) * PANEL_ROW, p.n_stages};
    struct walk at = {(int)blockIdx.x, 0, 0, 0, 0, 0, s.tiles};
    walk_enter_tile(&at, &p);
    if (threadIdx.x == N_CONSUMERS) {
        copy_box_prepare(&maps.w);
        copy_box_prepare(&maps.x);
        for (int i = 0; i < s.n; i++) {
            copy_barrier_init(s.arrived + i * 8, 1);
            copy_barrier_init(s.released + i * 8, N_CONSUMERS / CUDA_WARP);
        }
        copy_barrier_init(shared_address(&exchanged), 1);
        copy_barrier_publish();
    }
    if (HEADS)
        cluster_wait();
    else
        __syncthreads();
    /* From one lane, so that the compiler knows it to be the same in all of them. */
    int warp = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x / CUDA_WARP, 0);
    const struct exchange e = {squares, shared_address(&exchanged), (int)(blockIdx.x % 2) ^ 1, 0};
    if (warp < N_CONSUMERS / CUDA_WARP)
        multiply_tiles<T, W_ROWS, PANELS, HEADS>(at, &p, &s, e);
    else if (threadIdx.x == N_CONSUMERS)
        copy_tiles<PANELS>(at, &p, &s, &maps);
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

/* Boxes of box_rows rows, the second half of them `further` rows after the first. */
static void map_panel_halves(CUtensorMap *map, const void *rows, int n_rows, int n_columns,
                             int further, int box_rows, int panels)
{
    size_t n_panels = (size_t)(n_columns / PANEL_COLUMNS), row = (size_t)n_columns * 2;
    const struct tensor_layout layout = {
        .n_dims = 4,
        .size = {PANEL_COLUMNS, (size_t)(n_rows - further), 2, n_panels},
        .stride_bytes = {row, (size_t)further * row, PANEL_ROW},
        .box = {PANEL_COLUMNS, box_rows / 2, 2, panels},
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

static enum product_use use_of(const struct linear_decode_args *args)
{
    if (args->heads)
        return STORE_HEADS;
    if (args->gated)
        return STORE_GATED;
    return args->n_parts > 1 || args->out_dtype == DTYPE_F32 ? STORE_F32 : STORE;
}

template <int W_ROWS, int PANELS>
static struct product_params make_params(const struct linear_decode_args *args)
{
    struct product_params p = {};
    p.y = args->y;
    p.use = use_of(args);
    p.n_rows = args->n_rows;
    p.n_columns = args->gated ? args->n_out / 2 : args->n_out;
    p.n_chunks = CEIL_DIV(args->n_in / args->n_parts, PANELS * PANEL_COLUMNS);
    p.x_rows = tile_x_rows(args->n_rows);
    p.tile_columns = p.use >= STORE_GATED ? W_ROWS / 2 : W_ROWS;
    p.n_beside = 1;
    p.span = p.tile_columns;
    if (args->heads) {
        p.heads = *args->heads;
        p.span = p.heads.head_dim;
        p.n_beside = p.span / W_ROWS;
    }
    p.n_x_tiles = CEIL_DIV(args->n_rows, p.x_rows);
    p.n_tiles = CEIL_DIV(p.n_columns, p.span) * p.n_x_tiles * p.n_beside;
    return p;
}

static void map_w(CUtensorMap *map, const struct linear_decode_args *args, int w_rows, int panels)
{
    int further = args->heads ? args->heads->head_dim / 2 : args->n_out / 2;
    if (use_of(args) >= STORE_GATED)
        map_panel_halves(map, args->w, args->n_out, args->n_in, further, w_rows, panels);
    else
        map_panels(map, args->w, args->n_out, args->n_in, w_rows, panels);
}

template <typename T, int W_ROWS, int PANELS, bool HEADS>
static void launch(const struct cuda_device *d, const struct linear_decode_args *args)
{
    struct product_params p = make_params<W_ROWS, PANELS>(args);
    int n_blocks = MIN(p.n_tiles, d->n_sms / args->n_parts / p.n_beside * p.n_beside);
    int stage = PANELS * (p.x_rows + W_ROWS) * PANEL_ROW;
    /* Products of x_rows < X_ROWS read beyond the last stage. */
    int fixed = TILE_ALIGNMENT + (X_ROWS - p.x_rows) * PANEL_ROW;
    int room = (int)d->shared_per_block - fixed - SHARED_BARRIERS;
    int n_useful = CEIL_DIV(p.n_tiles, n_blocks) * p.n_chunks;
    p.n_stages = MIN(MIN(room / stage, MAX_STAGES), n_useful);
    struct product_maps maps;
    map_panels(&maps.x, args->x, args->n_rows, args->n_in, p.x_rows, PANELS);
    map_w(&maps.w, args, W_ROWS, PANELS);
    cuda_launch_early_clusters(d, linear_decode_kernel<T, W_ROWS, PANELS, HEADS>,
                               dim3((unsigned)n_blocks, (unsigned)args->n_parts), p.n_beside,
                               BLOCK_THREADS, fixed + p.n_stages * stage, p, maps);
}

/* Longer stages have fewer waits, but six of them should fit, or all that a part has. */
template <typename T, int W_ROWS, bool HEADS = false>
static void launch_panels(const struct cuda_device *d, const struct linear_decode_args *args)
{
    if (args->n_parts > 1 || tile_x_rows(args->n_rows) + W_ROWS <= 80)
        launch<T, W_ROWS, 4, HEADS>(d, args);
    else
        launch<T, W_ROWS, 2, HEADS>(d, args);
}

template <typename T>
static void launch_tiles(const struct cuda_device *d, const struct linear_decode_args *args)
{
    if (args->heads) {
        assert(linear_decode_can_heads(args->heads, args->tile_rows));
        return args->tile_rows == 64 ? launch_panels<T, 64, true>(d, args)
                                     : launch<T, 128, 2, true>(d, args);
    }
    switch (args->tile_rows) {
    case 16: return launch<T, 16, 4, false>(d, args);
    case 32: return launch_panels<T, 32>(d, args);
    case 48: return launch_panels<T, 48>(d, args);
    case 64: return launch_panels<T, 64>(d, args);
    case 96: assert(args->n_parts == 1); return launch<T, 96, 2, false>(d, args);
    default:
        assert(args->tile_rows == 128 && args->n_parts == 1);
        return launch<T, 128, 2, false>(d, args);
    }
}

bool linear_decode_can(const struct cuda_device *d, int n_out, int n_in, int n_parts, int n_rows)
{
    int unit = n_parts > 1 ? n_parts * MAX_PANELS * PANEL_COLUMNS : PANEL_COLUMNS;
    return cuda_has_warp_groups(d) && d->base.act_dtype != DTYPE_F32 &&
           n_rows <= LINEAR_DECODE_MAX_ROWS && n_out % 8 == 0 && n_in % unit == 0;
}

bool linear_decode_can_heads(const struct rope_params *heads, int tile_rows)
{
    bool is_whole = heads->head_dim == tile_rows, is_half = heads->head_dim == 2 * tile_rows;
    return (tile_rows == 64 && (is_whole || is_half)) || (tile_rows == 128 && is_whole);
}

void linear_decode(const struct cuda_device *d, const struct linear_decode_args *args)
{
    assert(linear_decode_can(d, args->n_out, args->n_in, args->n_parts, args->n_rows));
    assert(args->n_parts == 1 || (!args->gated && !args->heads));
    if (d->base.act_dtype == DTYPE_BF16)
        launch_tiles<__nv_bfloat16>(d, args);
    else
        launch_tiles<__half>(d, args);
}
