/* weight.c - packing of weights (cpu.h, "packed weights") and reading table rows back.
 *
 * Portable C: packing is bound by the pages of the model file, not by instructions.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>

/* One row of the stacked matrix. */
struct source_row {
    const void *row;
    enum dtype dtype;
};

/* Row r of the parts stacked; {NULL} for the zero rows behind the last. */
static struct source_row find_row(const struct weight_part *parts, int n_parts, int n_in, int r)
{
    for (int i = 0; i < n_parts; i++) {
        if (r < parts[i].n_rows) {
            size_t offset = (size_t)r * (size_t)n_in * dtype_bytes(parts[i].dtype);
            return (struct source_row){(const char *)parts[i].rows + offset, parts[i].dtype};
        }
        r -= parts[i].n_rows;
    }
    return (struct source_row){NULL, DTYPE_F32};
}

/* Converts through f32, which holds every value of both short types; equal types are copied, so
 * that even the payload of a NaN survives. */
static void convert_element(enum dtype to, void *dst, size_t i, struct source_row from, size_t j)
{
    if (from.dtype != to)
        store_element(to, dst, i, load_element(from.dtype, from.row, j));
    else if (to == DTYPE_F32)
        ((uint32_t *)dst)[i] = ((const uint32_t *)from.row)[j];
    else
        ((uint16_t *)dst)[i] = ((const uint16_t *)from.row)[j];
}

static void pack_panel(const struct weight *w, struct packing packing, void *panel,
                       const struct source_row *rows)
{
    size_t group = (size_t)packing.group, n_groups = CEIL_DIV((size_t)w->n_in, group), at = 0;
    const struct source_row zero = {&(const float){0}, DTYPE_F32};
    for (size_t g = 0; g < n_groups; g++) {
        for (int lane = 0; lane < packing.panel; lane++) {
            for (size_t k = g * group; k < (g + 1) * group; k++, at++) {
                bool inside = rows[lane].row && k < (size_t)w->n_in;
                convert_element(w->dtype, panel, at, inside ? rows[lane] : zero, inside ? k : 0);
            }
        }
    }
}

static size_t panel_bytes(const struct weight *w, struct packing packing)
{
    size_t n_groups = CEIL_DIV((size_t)w->n_in, (size_t)packing.group);
    return n_groups * (size_t)packing.group * (size_t)packing.panel * dtype_bytes(w->dtype);
}

int cpu_weight_load(struct device *device, struct weight *w, const struct weight_part *parts,
                    int n_parts)
{
    const struct cpu_device *d = cpu_device(device);
    struct packing packing = d->kernels->packing[w->dtype];
    w->n_out = 0;
    for (int i = 0; i < n_parts; i++)
        w->n_out += parts[i].n_rows;
    assert(w->n_out > 0 && w->n_in > 0 && packing.panel <= MAX_PANEL);
    int n_panels = CEIL_DIV(w->n_out, packing.panel);
    w->bytes = (size_t)n_panels * panel_bytes(w, packing);
    w->data = device->ops->alloc(device, w->bytes);
    if (!w->data)
        return -1;
#pragma omp parallel for schedule(dynamic) num_threads(d->n_threads)
    for (int p = 0; p < n_panels; p++) {
        struct source_row rows[MAX_PANEL];
        for (int lane = 0; lane < packing.panel; lane++)
            rows[lane] = find_row(parts, n_parts, w->n_in, p * packing.panel + lane);
        pack_panel(w, packing, (char *)w->data + (size_t)p * panel_bytes(w, packing), rows);
    }
    return 0;
}

void cpu_weight_free(struct device *device, struct weight *w)
{
    device->ops->free(device, w->data);
    w->data = NULL;
    w->bytes = 0;
}

static void unpack_row(float *x, const struct weight *w, struct packing packing, int row)
{
    size_t group = (size_t)packing.group, panel = (size_t)packing.panel;
    const char *data = (const char *)w->data + (size_t)row / panel * panel_bytes(w, packing);
    size_t lane = (size_t)row % panel;
    for (size_t k = 0; k < (size_t)w->n_in; k++) {
        size_t at = (k / group * panel + lane) * group + k % group;
        x[k] = load_element(w->dtype, data, at);
    }
}

void cpu_embed(struct device *device, void *x, const struct weight *table, const int *token,
               const int *sampled, int n_tokens)
{
    const struct cpu_device *d = cpu_device(device);
    struct packing packing = d->kernels->packing[table->dtype];
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (n_tokens > 1)
    for (int t = 0; t < n_tokens; t++) {
        int id = token[t] >= 0 ? token[t] : sampled[-1 - token[t]];
        assert(id >= 0 && id < table->n_out);
        unpack_row((float *)x + (size_t)t * (size_t)table->n_in, table, packing, id);
    }
}
