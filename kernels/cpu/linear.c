/* linear.c - y = x W^T + bias: the loops around the register tile of gemm_impl.h.
 *
 * The rows of x are packed into tiles of at most max_rows. A thread takes a run of neighbouring
 * panels of W and multiplies each with all tiles of a block of rows before it goes on: W comes from
 * memory once per block, a panel stays in the second-level cache while the tiles pass, and the next
 * panel is fetched meanwhile (8 rows of bf16, one thread: 216 instead of 184 GFLOP/s; peak 235).
 * Cutting k as well, so that a part of a panel stays in the first-level cache, was measured for
 * k = 1024 to 14336: it was 0 to 15 % slower, because partial sums then travel.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>

/* Tiles of x per block: 576 rows of AVX-512, of which 1024 columns are 1.2 MB of bf16. Packed x is
 * read once per panel, so it should come from the last-level cache. */
#define BLOCK_TILES 48

#define SERIAL_PRODUCTS (1 << 17) /* 2 to 5 us of work; a parallel region costs 1 to 5 us */

size_t cpu_linear_scratch_bytes(const struct step_limits *limits)
{
    size_t rows = (size_t)MAX(limits->max_tokens, limits->max_rows);
    size_t width = (size_t)limits->max_width + 1; /* room for an odd width padded to pairs */
    return rows * width * sizeof(float);
}

/* How one product is cut. Rows of x are spread evenly over tiles, so that none is left thin. */
struct cut {
    const struct cpu_kernels *kernels;
    const struct linear_args *args;
    char *packed; /* tiles of x one after another, each [n_groups][rows][group]; 4 bytes a group */
    int n_tiles, n_blocks, n_panels, n_groups, n_threads;
    int panel_step; /* panels multiplied at once */
    size_t panel_bytes;
};

static struct cut cut_product(const struct cpu_device *d, const struct linear_args *args)
{
    const struct weight *w = args->weight;
    struct packing packing = d->kernels->packing[w->dtype];
    size_t products = (size_t)args->n_rows * (size_t)w->n_in * (size_t)w->n_out;
    struct cut c = {.kernels = d->kernels, .args = args, .packed = d->shared};
    c.n_tiles = CEIL_DIV(args->n_rows, d->kernels->max_rows);
    c.n_blocks = CEIL_DIV(c.n_tiles, BLOCK_TILES);
    c.n_panels = CEIL_DIV(w->n_out, packing.panel);
    c.n_groups = CEIL_DIV(w->n_in, packing.group);
    c.n_threads = products < SERIAL_PRODUCTS ? 1 : d->n_threads;
    c.panel_step = args->n_rows <= d->kernels->max_rows_of_two ? 2 : 1;
    c.panel_bytes = w->bytes / (size_t)c.n_panels;
    assert((size_t)args->n_rows * (size_t)c.n_groups * 4 <= d->shared_bytes);
    return c;
}

static int tile_start(const struct cut *c, int tile)
{
    return (int)((int64_t)c->args->n_rows * tile / c->n_tiles);
}

static char *packed_tile(const struct cut *c, int tile)
{
    return c->packed + (size_t)tile_start(c, tile) * (size_t)c->n_groups * 4;
}

static void pack_tile(const struct cut *c, int tile)
{
    const struct weight *w = c->args->weight;
    int start = tile_start(c, tile), n_rows = tile_start(c, tile + 1) - start;
    const float *x = (const float *)c->args->x + (size_t)start * (size_t)w->n_in;
    c->kernels->pack_rows(packed_tile(c, tile), x, (size_t)w->n_in, n_rows, w->n_in, w->dtype);
}

/* One panel, or two, times tiles [first, last). The tiles fetch the next panel in equal parts. */
static void multiply_panels(const struct cut *c, int panel, int first, int last)
{
    const struct linear_args *args = c->args;
    const struct weight *w = args->weight;
    int width = c->kernels->packing[w->dtype].panel, col = panel * width;
    const char *data = (const char *)w->data + (size_t)panel * c->panel_bytes;
    size_t share = c->panel_bytes / (size_t)(last - first);
    for (int tile = first; tile < last; tile++) {
        int start = tile_start(c, tile);
        struct gemm_tile t = {
            .x = packed_tile(c, tile),
            .w = data,
            .panel_bytes = c->panel_bytes,
            .n_rows = tile_start(c, tile + 1) - start,
            .n_cols = MIN(c->panel_step * width, w->n_out - col),
            .n_groups = c->n_groups,
            .prefetch = data + c->panel_bytes + share * (size_t)(tile - first),
            .prefetch_step = share / (size_t)c->n_groups,
            .out = (float *)args->out + (size_t)start * (size_t)w->n_out + col,
            .out_stride = (size_t)w->n_out,
            .bias = args->bias ? args->bias + col : NULL,
        };
        c->kernels->gemm(&t, w->dtype);
    }
}

/* Guided: long runs of panels first, in which memory is read in order and the next panel is known
 * (8 rows of bf16, 1024 x 2048, two threads: 297 instead of 245 GFLOP/s with 8 equal runs), short
 * ones at the end, so that threads finish together. */
void cpu_linear(struct device *device, const struct linear_args *args)
{
    if (args->n_rows == 0)
        return;
    const struct cut c = cut_product(cpu_device(device), args);
#pragma omp parallel num_threads(c.n_threads)
    {
#pragma omp for schedule(static)
        for (int tile = 0; tile < c.n_tiles; tile++)
            pack_tile(&c, tile);
        for (int block = 0; block < c.n_blocks; block++) {
            int first = (int)((int64_t)c.n_tiles * block / c.n_blocks);
            int last = (int)((int64_t)c.n_tiles * (block + 1) / c.n_blocks);
#pragma omp for schedule(guided) nowait
            for (int panel = 0; panel < c.n_panels; panel += c.panel_step)
                multiply_panels(&c, panel, first, last);
        }
    }
}
