/* linear.c - y = x W^T + bias, gated or not: the loops around the register tile of gemm_impl.h or
 * amx_impl.h.
 *
 * The rows of x are packed into tiles of at most max_rows, a block of tiles at a time. A thread
 * takes a run of neighbouring panels of W and multiplies each with all tiles of the block before it
 * goes on: W comes from memory once per block, a panel stays in the second-level cache while the
 * tiles pass, and the next panel is fetched meanwhile (8 rows of bf16, one thread: 216 instead of
 * 184 GFLOP/s; peak 235). Cutting k as well, so that a part of a panel stays in the first-level
 * cache, was measured for k = 1024 to 14336: it was 0 to 15 % slower, because partial sums then
 * travel.
 *
 * Of a gated W a thread takes pairs of panels. What a tile gives with both is 8 KiB at most, still
 * in the first-level cache when it is gated: the product as a whole exists nowhere.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

#define SERIAL_PRODUCTS (1 << 17) /* 2 to 5 us of work; a parallel region costs 1 to 5 us */

size_t cpu_linear_scratch_bytes(const struct step_limits *limits)
{
    size_t rows = (size_t)MIN(MAX(limits->max_tokens, limits->max_rows), CPU_MAX_BLOCK_ROWS);
    rows = CEIL_DIV(rows, CPU_MAX_ROW_UNIT) * CPU_MAX_ROW_UNIT;
    /* Every packing takes at most 4 bytes a column, of a width padded to whole groups. */
    size_t width = CEIL_DIV((size_t)limits->max_width, INT8_GROUP) * INT8_GROUP;
    return rows * width * sizeof(float);
}

/* How one product is cut. Rows of x are spread evenly over tiles, so that none is left thin. A
 * strip is what a thread takes of W: one or two panels. */
struct cut {
    const struct cpu_kernels *kernels;
    const struct tiling *tiling;
    const struct linear_args *args;
    enum weight_format format;
    char *packed;     /* tiles of a block of x one after another */
    size_t row_bytes; /* of packed x                             */
    int n_units, n_tiles, n_blocks, n_strips, n_groups, n_parts, n_threads;
    int part_cols;    /* of a tile of x, packed at once          */
    int panel_cols;   /* of a panel's product                    */
    int strip_panels; /* 1 or 2                                  */
    int strip_cols;   /* of out                                  */
    int gemm_panels;  /* panels of a strip multiplied at once    */
    size_t panel_bytes;
};

/* A thread packs whole tiles where there are enough. The rows of a decode step are a single tile,
 * for which the other threads would wait: they share its columns. */
static void cut_packing(struct cut *c)
{
    int n_scales = CEIL_DIV(c->args->weight->n_in, INT8_GROUP);
    int wanted = MIN(CEIL_DIV(c->n_threads, c->n_tiles), n_scales);
    c->part_cols = CEIL_DIV(n_scales, wanted) * INT8_GROUP;
    c->n_parts = CEIL_DIV(c->args->weight->n_in, c->part_cols);
}

static struct cut cut_product(const struct cpu_device *d, const struct linear_args *args)
{
    const struct weight *w = args->weight;
    enum weight_format format = weight_format(w);
    struct packing packing = d->kernels->packing[format];
    size_t products = (size_t)args->n_rows * (size_t)w->n_in * (size_t)w->n_out;
    const struct tiling *tiling = &d->kernels->tiling[format];
    struct cut c = {.kernels = d->kernels,
                    .tiling = tiling,
                    .args = args,
                    .format = format,
                    .packed = d->shared};
    c.n_units = CEIL_DIV(args->n_rows, tiling->row_unit);
    c.n_tiles = CEIL_DIV(args->n_rows, tiling->max_rows);
    c.n_blocks = CEIL_DIV(c.n_tiles, tiling->block_tiles);
    int n_panels = weight_panels(w, packing.panel);
    c.n_groups = CEIL_DIV(w->n_in, packing.group);
    if (format == FORMAT_INT8)
        c.n_groups = CEIL_DIV(w->n_in, INT8_GROUP) * (INT8_GROUP / packing.group);
    c.row_bytes = CEIL_DIV((size_t)w->n_in, INT8_GROUP) * (size_t)tiling->x_bytes;
    c.n_threads = products < SERIAL_PRODUCTS ? 1 : d->n_threads;
    cut_packing(&c);
    c.panel_cols = packing.panel;
    c.gemm_panels = args->n_rows <= tiling->max_rows_of_two ? 2 : 1;
    c.strip_panels = w->gated ? 2 : c.gemm_panels;
    c.strip_cols = (w->gated ? 1 : c.strip_panels) * c.panel_cols;
    c.n_strips = CEIL_DIV(n_panels, c.strip_panels);
    c.panel_bytes = w->bytes / (size_t)n_panels;
    assert(tiling->row_unit <= CPU_MAX_ROW_UNIT && tiling->max_rows <= CPU_MAX_TILE_ROWS);
    int block_rows = MIN(c.n_units * tiling->row_unit, tiling->block_tiles * tiling->max_rows);
    assert((size_t)block_rows * c.row_bytes <= d->shared_bytes);
    return c;
}

static int tile_start(const struct cut *c, int tile)
{
    int unit = (int)((int64_t)c->n_units * tile / c->n_tiles);
    return MIN(unit * c->tiling->row_unit, c->args->n_rows);
}

/* first: of the block */
static char *packed_tile(const struct cut *c, int first, int tile)
{
    return c->packed + (size_t)(tile_start(c, tile) - tile_start(c, first)) * c->row_bytes;
}

static void pack_part(const struct cut *c, int first, int tile, int part)
{
    int n_in = c->args->weight->n_in, unit = c->tiling->row_unit, k = part * c->part_cols;
    int start = tile_start(c, tile), n_rows = tile_start(c, tile + 1) - start;
    const float *x = (const float *)c->args->x + (size_t)start * (size_t)n_in + k;
    size_t packed_rows = (size_t)(CEIL_DIV(n_rows, unit) * unit);
    size_t before = packed_rows * (size_t)(k / INT8_GROUP * c->tiling->x_bytes);
    c->kernels->pack_x(packed_tile(c, first, tile) + before, x, (size_t)n_in, n_rows,
                       MIN(n_in - k, c->part_cols), c->format);
}

/* The tile's product with a pair of panels, gated. The tile's n_cols and bias are those of the
 * gates; the bias of what they gate is a row of out further on. */
static void multiply_gated(const struct cut *c, const struct gemm_tile *tile)
{
    _Alignas(CPU_CACHE_LINE) float sums[CPU_MAX_TILE_ROWS * 2 * MAX_PANEL];
    float bias[2 * MAX_PANEL] = {0};
    size_t cols = (size_t)c->panel_cols, bias_bytes = (size_t)tile->n_cols * sizeof(float);
    if (tile->bias) {
        memcpy(bias, tile->bias, bias_bytes);
        memcpy(bias + cols, tile->bias + tile->out_stride, bias_bytes);
    }
    for (size_t i = 0; i < 2; i += (size_t)c->gemm_panels) {
        struct gemm_tile t = *tile;
        t.w = (const char *)tile->w + i * c->panel_bytes;
        t.n_cols = c->gemm_panels * c->panel_cols;
        t.prefetch = tile->prefetch + i * (size_t)c->n_groups * tile->prefetch_step;
        t.out = sums + i * cols;
        t.out_stride = 2 * cols;
        t.bias = tile->bias ? bias + i * cols : NULL;
        c->kernels->gemm(&t, c->format);
    }
    for (size_t r = 0; r < (size_t)tile->n_rows; r++) {
        const float *gate = sums + r * 2 * cols;
        c->kernels->silu_mul(tile->out + r * tile->out_stride, gate, gate + cols, tile->n_cols);
    }
}

static const char *strip_data(const struct cut *c, int strip)
{
    size_t panel = (size_t)(strip * c->strip_panels);
    return (const char *)c->args->weight->data + panel * c->panel_bytes;
}

/* A strip times tiles [first, last) of the block that begins with tile `block`. They fetch what is
 * at `ahead`, as much as a strip, in equal parts. */
static void multiply_strip(const struct cut *c, int strip, int block, int first, int last,
                           const char *ahead)
{
    const struct linear_args *args = c->args;
    const struct weight *w = args->weight;
    int col = strip * c->strip_cols, n_columns = weight_columns(w), n_tiles = last - first;
    int n_cols = MIN(c->strip_cols, n_columns - col), n_gemms = c->strip_panels / c->gemm_panels;
    size_t share = c->panel_bytes / (size_t)n_tiles;
    for (int tile = first; tile < last; tile++) {
        int start = tile_start(c, tile);
        struct gemm_tile t = {
            .x = packed_tile(c, block, tile),
            .w = strip_data(c, strip),
            .panel_bytes = c->panel_bytes,
            .n_rows = tile_start(c, tile + 1) - start,
            .n_cols = n_cols,
            .n_groups = c->n_groups,
            .prefetch = ahead + share * (size_t)((tile - first) * n_gemms),
            .prefetch_step = share / (size_t)c->n_groups,
            .out = (float *)args->out + (size_t)start * (size_t)n_columns + col,
            .out_stride = (size_t)n_columns,
            .bias = args->bias ? args->bias + col : NULL,
        };
        if (w->gated)
            multiply_gated(c, &t);
        else
            c->kernels->gemm(&t, c->format);
    }
}

/* Guided: long runs of strips first, in which memory is read in order and the next panel is known
 * (8 rows of bf16, 1024 x 2048, two threads: 297 instead of 245 GFLOP/s with 8 equal runs), short
 * ones at the end, so that threads finish together. */
static void multiply_runs(const struct cut *c, int first, int last)
{
    size_t ahead = (size_t)(c->strip_panels / c->gemm_panels) * c->panel_bytes;
    if (last - first == 1 && c->tiling->ahead_bytes > 0)
        ahead = (size_t)c->tiling->ahead_bytes;
#pragma omp for schedule(guided) nowait
    for (int strip = 0; strip < c->n_strips; strip++)
        multiply_strip(c, strip, first, first, last, strip_data(c, strip) + ahead);
}

/* A thread takes one strip after another, for the tiles of a pass, and takes the next before it
 * begins, so as to fetch it. */
static void multiply_passes(const struct cut *c, int first, int last, atomic_int *n_taken)
{
    int n_passes = CEIL_DIV(last - first, c->tiling->pass_tiles), n_items = n_passes * c->n_strips;
    int item = atomic_fetch_add(n_taken, 1);
    while (item < n_items) {
        int next = atomic_fetch_add(n_taken, 1), pass = item / c->n_strips;
        int begin = first + (last - first) * pass / n_passes;
        int end = first + (last - first) * (pass + 1) / n_passes;
        multiply_strip(c, item % c->n_strips, first, begin, end, strip_data(c, next % c->n_strips));
        item = next;
    }
}

void cpu_linear(struct device *device, const struct linear_args *args)
{
    if (args->n_rows == 0)
        return;
    const struct cut c = cut_product(cpu_device(device), args);
    atomic_int n_taken = 0;
#pragma omp parallel num_threads(c.n_threads)
    {
        c.kernels->begin_gemm();
        for (int block = 0; block < c.n_blocks; block++) {
            int first = (int)((int64_t)c.n_tiles * block / c.n_blocks);
            int last = (int)((int64_t)c.n_tiles * (block + 1) / c.n_blocks);
            if (block > 0) { /* the block before is not read any more */
#pragma omp barrier
            }
#pragma omp master
            n_taken = 0;
#pragma omp for schedule(static)
            for (int i = 0; i < (last - first) * c.n_parts; i++)
                pack_part(&c, first, first + i / c.n_parts, i % c.n_parts);
            if (c.n_tiles == 1 || c.tiling->pass_tiles == 0)
                multiply_runs(&c, first, last);
            else
                multiply_passes(&c, first, last, &n_taken);
        }
        c.kernels->end_gemm();
    }
}
