/* linear_prefill.cu - see linear_prefill.cuh.
 *
 * In a block of threads two threads start copies of boxes of x and W, 64 columns at a time, into a
 * ring of stages, and one or two warp groups multiply what has arrived, 64 rows of x by W_ROWS rows
 * of W in a product. Blocks stay, and take one tile of y after another. The two blocks of a cluster
 * have tiles beside each other and share rows of x, or above each other and share rows of W: each
 * copies half of these, to both.
 *
 * The tensor cores should not wait while sums are added, gated and stored. There are two ways:
 *  - the groups share a tile, and a group finishes a part of its sums, or a tile, when it has
 *    started the first products of the next, whose sums are in other registers;
 *  - they take turns, each with tiles of its own: one finishes a tile while the other multiplies.
 * The second hides more, but its larger tiles leave no registers for a sum in parts. The largest
 * tiles, which the groups share, leave none for the next: they are for blocks that take one. Few
 * tiles are cut smaller, so that there are as many as blocks. All give the same bits.
 *
 * 8192 rows of 24576x4096 leave the card's power for 1.3 GHz, and the tensor cores busy for 97 % of
 * that: there a tile is the faster the less it copies and reads for each product.
 *
 * The kernel may start while earlier ones end: as much of W as the ring holds is copied at once, x
 * after previous_kernel_wait(). Times: results/bench/h200-linear.md.
 */
#include "kernels/cuda/linear_prefill.cuh"
#include "kernels/cuda/linear_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/silu_mul.cuh"
#include "kernels/cuda/tensor_map.cuh"

#define GROUP_WARPS   4
#define GROUP_THREADS (GROUP_WARPS * CUDA_WARP)
#define PRODUCT_ROWS  64 /* of x */
#define CLUSTER       2  /* blocks */
#define ALL_BLOCKS    ((1 << CLUSTER) - 1)

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

/* How warp groups take tiles of y, and their sums. */
enum tile_way {
    TOGETHER_IN_PARTS, /* a group keeps what it has of a tile while it goes on with the next */
    TOGETHER,
    IN_TURNS,
};

/* Each of GROUPS warp groups has PRODUCTS products above one another. SHARES_W: of what the blocks
 * of a cluster share, rows of W, or else x. */
template <int GROUPS, int PRODUCTS, int W_ROWS, enum tile_way WAY, bool SHARES_W>
struct tile_shape {
    static constexpr int groups = GROUPS, n_products = PRODUCTS, w_rows = W_ROWS;
    static constexpr enum tile_way way = WAY;
    static constexpr bool shares_w = SHARES_W;
    static constexpr int group_rows = PRODUCT_ROWS * PRODUCTS;
    static constexpr int x_rows = group_rows * (WAY == IN_TURNS ? 1 : GROUPS);
    /* Tiles of a cluster, above and beside one another. */
    static constexpr int n_above = SHARES_W ? CLUSTER : 1;
    static constexpr int n_beside = CLUSTER / n_above;
    /* A stage is [x_rows][PANEL_ROW bytes] of x, then [w_rows][PANEL_ROW bytes] of W; as many as
     * there is room for in the 227 KB that a block can have. */
    static constexpr int x_bytes = x_rows * PANEL_ROW;
    static constexpr int stage_bytes = x_bytes + W_ROWS * PANEL_ROW;
    static constexpr int n_stages = (227 * 1024 - 512) / stage_bytes;
    /* Warps that use a stage, those of both blocks. */
    static constexpr int n_releases = CLUSTER * (WAY == IN_TURNS ? 1 : GROUPS) * GROUP_WARPS;
    static constexpr int n_threads = (GROUPS + 1) * GROUP_THREADS;
};

template <typename S> struct prefill_shared {
    unsigned char stage[S::n_stages][S::stage_bytes]; /* first: aligned */
    uint64_t arrived[S::n_stages], released[S::n_stages];
};

#if PTX_WARP_GROUPS

/* ---- the ring ------------------------------------------------------------------------------- */

/* A thread's way round it. */
struct ring {
    uint32_t stages, arrived, released; /* addresses: of all stages, of their barriers */
    int slot, parity;                   /* parity of the phase of the slot's barriers  */
};

template <typename S>
static __device__ __forceinline__ struct ring ring_start(const struct prefill_shared<S> *shared)
{
    return {shared_address(shared->stage), shared_address(shared->arrived),
            shared_address(shared->released), 0, 0};
}

/* By one thread, before a barrier of the block. */
template <typename S> static __device__ __forceinline__ void ring_init(const struct ring *r)
{
    for (int i = 0; i < S::n_stages; i++) {
        copy_barrier_init(r->arrived + i * 8, 1);
        copy_barrier_init(r->released + i * 8, S::n_releases);
    }
    copy_barrier_publish();
}

template <typename S> static __device__ __forceinline__ uint32_t ring_stage(const struct ring *r)
{
    return r->stages + r->slot * S::stage_bytes;
}

static __device__ __forceinline__ uint32_t ring_arrived(const struct ring *r)
{
    return r->arrived + r->slot * 8;
}

static __device__ __forceinline__ uint32_t ring_released(const struct ring *r)
{
    return r->released + r->slot * 8;
}

/* Passes over n stages. */
template <typename S> static __device__ __forceinline__ void ring_advance(struct ring *r, int n)
{
    int slot = r->slot + n, rounds = slot / S::n_stages;
    r->slot = slot - rounds * S::n_stages;
    r->parity ^= rounds & 1;
}

template <typename S> static __device__ __forceinline__ void ring_next(struct ring *r)
{
    if (++r->slot == S::n_stages) {
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

/* Number of a block's first tile, and from one to the next. */
static __device__ __forceinline__ int first_tile(void)
{
    return (int)blockIdx.x / CLUSTER;
}

static __device__ __forceinline__ int tile_step(void)
{
    return (int)gridDim.x / CLUSTER;
}

static __device__ __forceinline__ int cluster_rank(void)
{
    return (int)blockIdx.x % CLUSTER;
}

template <typename S>
static __device__ __forceinline__ struct place tile_place(const struct product_params *p, int tile)
{
    int n_beside = p->n_tiles / p->n_x_tiles;
    int band = tile / (BAND * n_beside), in_band = tile - band * BAND * n_beside;
    int band_rows = min(BAND, p->n_x_tiles - band * BAND);
    int column = in_band / band_rows, row = band * BAND + in_band - column * band_rows;
    row = row * S::n_above + (S::shares_w ? cluster_rank() : 0);
    column = column * S::n_beside + (S::shares_w ? 0 : cluster_rank());
    return {row * S::x_rows, column * p->tile_columns};
}

/* ---- copies --------------------------------------------------------------------------------- */

/* The way of a thread that copies through the chunks of all tiles. */
struct walk {
    struct ring ring;
    int tile, chunk;
    struct place place;
};

template <typename S>
static __device__ __forceinline__ struct walk walk_start(const struct ring *ring,
                                                         const struct product_params *p)
{
    return {*ring, first_tile(), 0, tile_place<S>(p, first_tile())};
}

template <typename S>
static __device__ __forceinline__ void walk_next(struct walk *at, const struct product_params *p)
{
    ring_next<S>(&at->ring);
    if (++at->chunk == p->n_parts * p->n_chunks) {
        at->chunk = 0;
        at->tile += tile_step();
        at->place = tile_place<S>(p, at->tile);
    }
}

/* By one thread: the rows of W of all tiles of a block, or this block's share of them, to both. A
 * share of gated ones is the gates, or what they gate. */
template <typename S>
static __device__ __forceinline__ void copy_w(struct walk at, const struct product_params *p,
                                              const CUtensorMap *map)
{
    constexpr int n_rows = S::w_rows / CLUSTER;
    int rank = cluster_rank(), half = p->use == STORE_GATED ? rank : 0;
    int further = p->use == STORE_GATED ? 0 : rank * n_rows;
    for (; at.tile < p->n_tiles; walk_next<S>(&at, p)) {
        uint32_t arrived = ring_arrived(&at.ring), to = ring_stage<S>(&at.ring) + S::x_bytes;
        int column = at.chunk * PANEL_COLUMNS;
        copy_barrier_wait(ring_released(&at.ring), at.ring.parity ^ 1);
        copy_barrier_arrive_expecting(arrived, S::stage_bytes);
        if constexpr (S::shares_w)
            copy_block_to_blocks(to + rank * n_rows * PANEL_ROW, map, column,
                                 at.place.column + further, half, arrived, ALL_BLOCKS);
        else
            copy_block(to, map, column, at.place.column, 0, arrived);
    }
}

/* By one thread: the same for x. What the other block copies may be there before this one has
 * announced the bytes of a stage. */
template <typename S>
static __device__ __forceinline__ void copy_x(struct walk at, const struct product_params *p,
                                              const CUtensorMap *map)
{
    constexpr int n_rows = S::x_rows / CLUSTER;
    int first = cluster_rank() * n_rows;
    for (; at.tile < p->n_tiles; walk_next<S>(&at, p)) {
        uint32_t arrived = ring_arrived(&at.ring), to = ring_stage<S>(&at.ring);
        int column = at.chunk * PANEL_COLUMNS;
        copy_barrier_wait(ring_released(&at.ring), at.ring.parity ^ 1);
        if constexpr (S::shares_w)
            copy_block(to, map, column, at.place.row, 0, arrived);
        else
            copy_block_to_blocks(to + first * PANEL_ROW, map, column, at.place.row + first, 0,
                                 arrived, ALL_BLOCKS);
    }
}

/* By a warp group, of which one thread copies W and another x: 64 columns of 64x128 tiles took
 * 0.24 us when one thread started all copies, 0.15 with two (H200, blocks without clusters). */
template <typename S>
static __device__ __forceinline__ void
run_copies(const struct ring *ring, const struct product_params *p, const struct product_maps *maps)
{
    int warp = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x / CUDA_WARP % GROUP_WARPS, 0);
    bool copies = threadIdx.x % CUDA_WARP == 0;
    if constexpr (S::shares_w)
        cluster_wait_arrived();
    if (warp == 0 && copies)
        copy_w<S>(walk_start<S>(ring, p), p, &maps->w);
    __syncwarp();
    if constexpr (!S::shares_w)
        cluster_wait_arrived();
    if (warp == 1 && copies) {
        previous_kernel_wait();
        copy_x<S>(walk_start<S>(ring, p), p, &maps->x);
    }
    __syncwarp();
}

/* ---- products ------------------------------------------------------------------------------- */

/* A thread's sums: of each product the warp's 16x8 tiles. */
template <typename S> struct sums {
    float c[S::n_products][S::w_rows / 8][4];
};

/* A warp group's way. */
struct work {
    struct ring ring;
    uint32_t used; /* barrier of the slot that its products use; 0: none */
    int first_row; /* of x in a stage                                    */
    int tile, part;
};

/* Starts s += x w^T for the next 64 columns, or s = x w^T, and waits for the products before it. */
template <typename T, typename S, bool ADD>
static __device__ __forceinline__ void multiply_chunk(struct sums<S> &s, struct work *g)
{
    copy_barrier_wait_together(ring_arrived(&g->ring), g->ring.parity);
    uint32_t x = (ring_stage<S>(&g->ring) + g->first_row * PANEL_ROW) / 16;
    uint32_t w = (ring_stage<S>(&g->ring) + S::x_bytes) / 16;
    group_multiply_begin();
#pragma unroll
    for (int n = 0; n < S::n_products; n++, x += PRODUCT_ROWS * PANEL_ROW / 16) {
        multiply_rows<T, S::w_rows, ADD>(s.c[n], x, w);
#pragma unroll
        for (int i = 1; i < PANEL_COLUMNS / 16; i++)
            multiply_rows<T, S::w_rows, true>(s.c[n], x + i * 2, w + i * 2);
    }
    group_multiply_commit();
    group_multiply_wait<1>();
    if (g->used != 0)
        release_slot(g->used);
    g->used = ring_released(&g->ring);
    ring_next<S>(&g->ring);
}

/* After the wait for the products. */
template <typename S> static __device__ __forceinline__ void sums_end(struct sums<S> &s)
{
#pragma unroll
    for (int n = 0; n < S::n_products; n++)
        group_multiply_end<S::w_rows / 8>(s.c[n]);
}

/* ---- what becomes of the sums --------------------------------------------------------------- */

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

/* As store_sums(), rounded to T, by stores of 16 bytes: rows of y are a multiple of that. */
template <typename T, int TILES>
static __device__ __forceinline__ void
store_sums_rounded(const float c[TILES][4], const struct product_params *p, struct place place)
{
    int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP % GROUP_WARPS;
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

/* The first 8 TILES columns of the group's rows. place: of the tile's first column in the group's
 * first row. */
template <typename T, int TILES>
static __device__ __forceinline__ void
store_tiles(const float c[TILES][4], const struct product_params *p, struct place place)
{
    int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP % GROUP_WARPS;
    const struct patch patch = {
        p->y,
        p->n_columns,
        place.row + warp * 16 + lane / 4,
        place.column + lane % 4 * 2,
        p->n_rows,
        p->use == STORE_F32,
    };
    if (p->use != STORE_F32 && p->n_columns % 8 == 0)
        store_sums_rounded<T, TILES>(c, p, place);
    else
        store_sums<T, TILES>(c, &patch);
}

/* place: of the group's first row */
template <typename T, typename S>
static __device__ __forceinline__ void store_tile(struct sums<S> &s, const struct product_params *p,
                                                  struct place place)
{
#pragma unroll
    for (int n = 0; n < S::n_products; n++, place.row += PRODUCT_ROWS) {
        if (p->use == STORE_GATED) {
            gate_sums<T, S::w_rows>(s.c[n]);
            store_tiles<T, S::w_rows / 16>(s.c[n], p, place);
        } else {
            store_tiles<T, S::w_rows / 8>(s.c[n], p, place);
        }
    }
}

/* ---- tiles that the groups share ------------------------------------------------------------ */

/* What a group keeps from part to part: a tile's sums so far. */
template <typename S> struct totals {
    struct sums<S> sums;
    struct place place;
};

/* No sums: -0 + x is x, of either sign. */
template <typename S> static __device__ __forceinline__ void totals_clear(struct totals<S> &t)
{
#pragma unroll
    for (int i = 0; i < S::w_rows / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            t.sums.c[0][i][j] = -0.0f;
}

template <typename S>
static __device__ __forceinline__ void totals_add(struct totals<S> &t, const struct sums<S> &s)
{
#pragma unroll
    for (int i = 0; i < S::w_rows / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            t.sums.c[0][i][j] = __fadd_rn(t.sums.c[0][i][j], s.c[0][i][j]);
}

/* Adds a part, whose products are complete, and stores the tile when it was the last. */
template <typename T, typename S>
static __device__ __forceinline__ void finish_part(struct totals<S> &t, struct sums<S> &part,
                                                   const struct product_params *p,
                                                   const struct work *g, bool was_last)
{
    sums_end(part);
    totals_add(t, part);
    if (!was_last)
        return;
    t.place.row += g->first_row;
    store_tile<T>(t.sums, p, t.place);
    totals_clear(t);
}

/* The products of a part after its first. */
template <typename T, typename S>
static __device__ __forceinline__ void go_on_with_part(struct totals<S> &t, struct sums<S> &s,
                                                       const struct product_params *p,
                                                       struct work *g)
{
    if (g->part == 0)
        t.place = tile_place<S>(p, g->tile);
    for (int i = 1; i < p->n_chunks; i++)
        multiply_chunk<T, S, true>(s, g);
    if (++g->part == p->n_parts) {
        g->part = 0;
        g->tile += tile_step();
    }
}

/* The next part, into s, and under its first products the end of the one before. False: that was
 * the last of all. Written otherwise, with one finish_part() behind both waits, the compiler lets
 * no products run on. */
template <typename T, typename S>
static __device__ __forceinline__ bool run_part(struct totals<S> &t, struct sums<S> &s,
                                                struct sums<S> &before,
                                                const struct product_params *p, struct work *g)
{
    if (g->tile >= p->n_tiles) {
        group_multiply_wait<0>();
        finish_part<T>(t, before, p, g, true);
        return false;
    }
    multiply_chunk<T, S, false>(s, g);
    finish_part<T>(t, before, p, g, g->part == 0);
    go_on_with_part<T>(t, s, p, g);
    return true;
}

/* By a warp group: its rows of all tiles of a block. */
template <typename T, typename S>
static __device__ __forceinline__ void run_shared_tiles(struct work g,
                                                        const struct product_params *p)
{
    struct totals<S> t;
    struct sums<S> even, odd;
    totals_clear(t);
    multiply_chunk<T, S, false>(even, &g);
    go_on_with_part<T>(t, even, p, &g);
    while (run_part<T>(t, odd, even, p, &g) && run_part<T>(t, even, odd, p, &g))
        continue;
}

/* ---- tiles of whole sums -------------------------------------------------------------------- */

/* A number of barrier_wait(): that of a group whose turn it is. */
#define TURN_BARRIER 1

/* By a warp group: a tile. In turns it multiplies when the other has started all products of the
 * tile before: until then the parity of the ring's barriers would mislead it. */
template <typename T, typename S>
static __device__ __forceinline__ void run_tile(struct work *g, int group, bool is_last,
                                                const struct product_params *p)
{
    struct place place = tile_place<S>(p, g->tile);
    struct sums<S> s;
    if (S::way == IN_TURNS && g->tile != first_tile())
        barrier_wait(TURN_BARRIER + group, 2 * GROUP_THREADS);
    multiply_chunk<T, S, false>(s, g);
    for (int i = 1; i < p->n_chunks; i++)
        multiply_chunk<T, S, true>(s, g);
    if (S::way == IN_TURNS && !is_last)
        barrier_arrive(TURN_BARRIER + (group ^ 1), 2 * GROUP_THREADS);
    group_multiply_wait<0>();
    release_slot(g->used);
    g->used = 0;
    sums_end(s);
    place.row += g->first_row;
    store_tile<T>(s, p, place);
}

/* By a warp group: all tiles of a block, or every other one. */
template <typename T, typename S>
static __device__ __forceinline__ void run_whole_tiles(struct work g, int group,
                                                       const struct product_params *p)
{
    constexpr int n_turns = S::way == IN_TURNS ? 2 : 1;
    int n_before = S::way == IN_TURNS ? group : 0;
    g.tile += n_before * tile_step();
    ring_advance<S>(&g.ring, n_before * p->n_chunks);
    for (; g.tile < p->n_tiles; g.tile += n_turns * tile_step()) {
        run_tile<T, S>(&g, group, g.tile + tile_step() >= p->n_tiles, p);
        ring_advance<S>(&g.ring, (n_turns - 1) * p->n_chunks);
    }
}

#endif

/* ---- the kernel ----------------------------------------------------------------------------- */

/* Of a thread that copies, and of one that multiplies when there are two groups: together all that
 * there are. */
#define COPY_REGISTERS     40
#define MULTIPLY_REGISTERS 232

template <typename T, typename S>
static __global__ void __launch_bounds__(S::n_threads, 1)
    linear_prefill_kernel(const __grid_constant__ struct product_params p,
                          const __grid_constant__ struct product_maps maps)
{
#if PTX_WARP_GROUPS
    extern __shared__ __align__(1024) unsigned char memory[];
    struct ring ring = ring_start((struct prefill_shared<S> *)memory);
    next_kernel_start();
    if (threadIdx.x == 0) {
        copy_box_prepare(&maps.w);
        copy_box_prepare(&maps.x);
        ring_init<S>(&ring);
    }
    __syncthreads();
    cluster_arrive();
    /* From one lane, so that the compiler knows it to be the same in all of them. */
    int group = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x / GROUP_THREADS, 0);
    if (group < S::groups) {
        if constexpr (S::groups == 2)
            registers_grow<MULTIPLY_REGISTERS>();
        int first_row = S::way == IN_TURNS ? 0 : group * S::group_rows;
        struct work g = {ring, 0, first_row, first_tile(), 0};
        cluster_wait_arrived();
        if constexpr (S::way == TOGETHER_IN_PARTS)
            run_shared_tiles<T, S>(g, &p);
        else
            run_whole_tiles<T, S>(g, group, &p);
    } else {
        if constexpr (S::groups == 2)
            registers_shrink<COPY_REGISTERS>();
        run_copies<S>(&ring, &p, &maps);
    }
    /* The other block may still copy to this one, and release its slots. */
    cluster_arrive();
    cluster_wait_arrived();
#endif
}

/* ---- launch --------------------------------------------------------------------------------- */

/* Boxes of box_rows rows of `halves` equal parts of a matrix [n_rows, n_in], box_halves of them. */
static void map_rows(CUtensorMap *map, const void *rows, int n_rows, int n_in, int halves,
                     int box_rows, int box_halves)
{
    size_t row = (size_t)n_in * 2, half_rows = (size_t)(n_rows / halves);
    const struct tensor_layout layout = {
        .n_dims = 3,
        .size = {(size_t)n_in, half_rows, (size_t)halves},
        .stride_bytes = {row, half_rows * row},
        .box = {PANEL_COLUMNS, box_rows, box_halves},
        .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
        .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
    };
    tensor_map_init(map, rows, &layout);
}

template <typename S> static struct product_maps make_maps(const struct linear_prefill_args *args)
{
    struct product_maps m;
    int halves = args->gated ? 2 : 1, w_rows = S::w_rows / (S::shares_w ? CLUSTER : halves);
    map_rows(&m.x, args->x, args->n_rows, args->n_in, 1, S::x_rows / S::n_beside, 1);
    map_rows(&m.w, args->w, args->n_out, args->n_in, halves, w_rows, S::shares_w ? 1 : halves);
    return m;
}

template <typename S>
static struct product_params make_params(const struct linear_prefill_args *args)
{
    struct product_params p = {};
    p.y = args->y;
    p.use = args->gated ? STORE_GATED : args->out_dtype == DTYPE_F32 ? STORE_F32 : STORE;
    p.n_rows = args->n_rows;
    p.n_columns = args->gated ? args->n_out / 2 : args->n_out;
    p.n_parts = args->n_parts;
    p.n_chunks = args->n_in / args->n_parts / PANEL_COLUMNS;
    p.tile_columns = args->gated ? S::w_rows / 2 : S::w_rows;
    p.n_x_tiles = CEIL_DIV(args->n_rows, S::n_above * S::x_rows);
    p.n_tiles = p.n_x_tiles * CEIL_DIV(p.n_columns, S::n_beside * p.tile_columns);
    return p;
}

template <typename T, typename S>
static void launch(const struct cuda_device *d, const struct linear_prefill_args *args)
{
    const struct product_params p = make_params<S>(args);
    const struct product_maps maps = make_maps<S>(args);
    int n_blocks = CLUSTER * MIN(p.n_tiles, d->n_sms / CLUSTER);
    cuda_launch_early_clusters(d, linear_prefill_kernel<T, S>, dim3((unsigned)n_blocks), CLUSTER,
                               S::n_threads, sizeof(struct prefill_shared<S>), p, maps);
}

/* Tiles of this shape that a block takes, at most. */
template <typename S>
static int n_rounds(const struct cuda_device *d, const struct linear_prefill_args *args)
{
    return CEIL_DIV(make_params<S>(args).n_tiles, d->n_sms / CLUSTER);
}

/* Large tiles of whole sums. Wider ones are the faster in the long run, but not where their last
 * round leaves more of the blocks idle: 8192 rows of 24576x4096, gated, take 2481 us with 128x128,
 * 2434 with 128x192, 2510 with 256x192; 2048 rows of 4096x1024 23.2, 25.1 and 37.1. The widest are
 * for all rows of x at once, so that W is read once: 256 rows of 24576x4096, gated, take 86, 83 and
 * 72 us (H200). */
template <typename T>
static void launch_large_tiles(const struct cuda_device *d, const struct linear_prefill_args *args)
{
    using wide = tile_shape<2, 2, 128, IN_TURNS, false>;
    using wider = tile_shape<2, 2, 192, IN_TURNS, false>;
    using widest = tile_shape<2, 2, 192, TOGETHER, false>;
    int wide_columns = n_rounds<wide>(d, args) * wide::w_rows;
    int wider_columns = n_rounds<wider>(d, args) * wider::w_rows;
    bool has_all_rows = args->n_rows <= widest::x_rows && n_rounds<widest>(d, args) == 1;
    if (has_all_rows && n_rounds<wider>(d, args) > 1)
        launch<T, widest>(d, args);
    else if (wide_columns < wider_columns - wider_columns / 16)
        launch<T, wide>(d, args);
    else
        launch<T, wider>(d, args);
}

/* The smallest tiles of which a block takes one, or else large ones. 512 and 1024 rows of 1024x2048
 * in four parts take 6.6 and 11.4 us with 64x64, 7.0 and 7.6 with 64x128, 11.5 and 11.8 with
 * 128x128. Where a cluster can have all rows of x, W is read once: 256 rows of 4096x4096 take 14.8
 * us with 128x64 in this way, 20.8 with 64x128 (H200). */
template <typename T>
static void launch_tiles(const struct cuda_device *d, const struct linear_prefill_args *args)
{
    using all_rows = tile_shape<2, 1, 64, TOGETHER_IN_PARTS, true>;
    using smallest = tile_shape<1, 1, 64, TOGETHER_IN_PARTS, false>;
    using small = tile_shape<1, 1, 128, TOGETHER_IN_PARTS, false>;
    if (args->n_rows <= CLUSTER * all_rows::x_rows && n_rounds<all_rows>(d, args) == 1)
        launch<T, all_rows>(d, args);
    else if (n_rounds<smallest>(d, args) == 1)
        launch<T, smallest>(d, args);
    else if (n_rounds<small>(d, args) == 1)
        launch<T, small>(d, args);
    else if (args->n_parts > 1)
        launch<T, tile_shape<2, 1, 128, TOGETHER_IN_PARTS, false>>(d, args);
    else
        launch_large_tiles<T>(d, args);
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
