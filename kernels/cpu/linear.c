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
    /* Every packing takes at most 4 bytes a column, of a width padded to whole groups. */
    size_t width = CEIL_DIV((size_t)limits->max_width, INT8_GROUP) * INT8_GROUP;
    return rows * width * sizeof(float);
}

/* How one product is cut. Rows of x are spread evenly over tiles, so that none is left thin. */
struct cut {
    const struct cpu_kernels *kernels;
    const struct linear_args *args;
    enum weight_format format;
    char *packed;     /* tiles of x one after another */
    size_t row_bytes; /* of packed x                  */
    int n_tiles, n_blocks, n_panels, n_groups, n_threads;
    int panel_step; /* panels multiplied at once */
    size_t panel_bytes;
};

static struct cut cut_product(const struct cpu_device *d, const struct linear_args *args)
{
    const struct weight *w = args->weight;
    enum weight_format format = weight_format(w);
    struct packing packing = d->kernels->packing[format];
    size_t products = (size_t)args->n_rows * (size_t)w->n_in * (size_t)w->n_out;
    struct cut c = {.kernels = d->kernels, .args = args, .format = format, .packed = d->shared};
    c.n_tiles = CEIL_DIV(args->n_rows, d->kernels->max_rows);
    c.n_blocks = CEIL_DIV(c.n_tiles, BLOCK_TILES);
    c.n_panels = CEIL_DIV(w->n_out, packing.panel);
    c.n_groups = CEIL_DIV(w->n_in, packing.group);
    c.row_bytes = (size_t)c.n_groups * 4;
    if (format == FORMAT_INT8) {
        int n_scales = CEIL_DIV(w->n_in, INT8_GROUP);
        c.n_groups = n_scales * (INT8_GROUP / packing.group);
        c.row_bytes = (size_t)c.n_groups * 4 + (size_t)n_scales * INT8_ROW_EXTRA;
    }
    c.n_threads = products < SERIAL_PRODUCTS ? 1 : d->n_threads;
    c.panel_step = args->n_rows <= d->kernels->max_rows_of_two ? 2 : 1;
    c.panel_bytes = w->bytes / (size_t)c.n_panels;
    assert((size_t)args->n_rows * c.row_bytes <= d->shared_bytes);
    return c;
}

static int tile_start(const struct cut *c, int tile)
{
    return (int)((int64_t)c->args->n_rows * tile / c->n_tiles);
}

static char *packed_tile(const struct cut *c, int tile)
{
    return c->packed + (size_t)tile_start(c, tile) * c->row_bytes;
}

static void pack_tile(const struct cut *c, int tile)
{
    const struct weight *w = c->args->weight;
    int start = tile_start(c, tile), n_rows = tile_start(c, tile + 1) - start;
    const float *x = (const float *)c->args->x + (size_t)start * (size_t)w->n_in;
    c->kernels->pack_x(packed_tile(c, tile), x, (size_t)w->n_in, n_rows, w->n_in, c->format);
}

/* One panel, or two, times tiles [first, last). The tiles fetch the next panel in equal parts. */
static void multiply_panels(const struct cut *c, int panel, int first, int last)
{
    const struct linear_args *args = c->args;
    const struct weight *w = args->weight;
    int width = c->kernels->packing[c->format].panel, col = panel * width;
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
        c->kernels->gemm(&t, c->format);
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
