/* linear.c - y = x W^T + bias: the loops around the register tile of gemm_impl.h. */
#include "kernels/cpu/cpu.h"

#include <assert.h>

size_t cpu_linear_scratch_bytes(const struct step_limits *limits)
{
    size_t rows = (size_t)MAX(limits->max_tokens, limits->max_rows);
    size_t width = (size_t)limits->max_width + 1; /* room for an odd width padded to pairs */
    return rows * width * sizeof(float);
}

/* How one product is cut; the rows of x are cut evenly, so that no tile is left thin. */
struct cut {
    const struct cpu_kernels *kernels;
    const struct linear_args *args;
    char *packed; /* tiles of x one after another, each [n_groups][rows][group]; 4 bytes a group */
    int n_tiles, n_panels, n_groups;
    size_t panel_bytes;
};

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

static void multiply_panels(const struct cut *c, int first_panel, int n_panels)
{
    const struct linear_args *args = c->args;
    const struct weight *w = args->weight;
    int width = c->kernels->packing[w->dtype].panel, col = first_panel * width;
    for (int tile = 0; tile < c->n_tiles; tile++) {
        int start = tile_start(c, tile);
        struct gemm_tile t = {
            .x = packed_tile(c, tile),
            .w = (const char *)w->data + (size_t)first_panel * c->panel_bytes,
            .panel_bytes = c->panel_bytes,
            .n_rows = tile_start(c, tile + 1) - start,
            .n_cols = MIN(n_panels * width, w->n_out - col),
            .n_groups = c->n_groups,
            .out = (float *)args->out + (size_t)start * (size_t)w->n_out + col,
            .out_stride = (size_t)w->n_out,
            .bias = args->bias ? args->bias + col : NULL,
        };
        c->kernels->gemm(&t, w->dtype);
    }
}

void cpu_linear(struct device *device, const struct linear_args *args)
{
    const struct cpu_device *d = cpu_device(device);
    const struct weight *w = args->weight;
    struct packing packing = d->kernels->packing[w->dtype];
    if (args->n_rows == 0)
        return;
    struct cut c = {.kernels = d->kernels, .args = args, .packed = d->shared};
    c.n_tiles = CEIL_DIV(args->n_rows, d->kernels->max_rows);
    c.n_panels = CEIL_DIV(w->n_out, packing.panel);
    c.n_groups = CEIL_DIV(w->n_in, packing.group);
    c.panel_bytes = w->bytes / (size_t)c.n_panels;
    assert((size_t)args->n_rows * (size_t)c.n_groups * 4 <= d->shared_bytes);
    int step = args->n_rows <= d->kernels->max_rows_of_two ? 2 : 1;
#pragma omp parallel num_threads(d->n_threads)
    {
#pragma omp for schedule(static)
        for (int tile = 0; tile < c.n_tiles; tile++)
            pack_tile(&c, tile);
#pragma omp for schedule(dynamic, 4)
        for (int panel = 0; panel < c.n_panels; panel += step)
            multiply_panels(&c, panel, step);
    }
}
