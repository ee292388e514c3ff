/* weight.c - packing of weights (cpu.h, "packed weights") and reading table rows back.
 *
 * Every thread packs one run of neighbouring panels. So only where runs meet do two threads clear
 * the same huge page, and on a machine of several NUMA nodes the pages spread over all of them.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <stdlib.h>

/* Elements first to first + n of a tensor. In whole pairs where there are: with a loop that asks
 * for each element, 0.6 billion took 0.1 s longer on two cores. */
static void draw(uint16_t *out, const struct random_rows *random, size_t first, size_t n)
{
    uint32_t sum[2];
    size_t i = first, end = first + n;
    if (i % 2 != 0 && i < end) {
        random_sums(sum, random->stream, i++ / 2);
        *out++ = random->bell->value[sum[1]];
    }
    for (; i + 1 < end; i += 2, out += 2) {
        random_sums(sum, random->stream, i / 2);
        out[0] = random->bell->value[sum[0]];
        out[1] = random->bell->value[sum[1]];
    }
    if (i < end) {
        random_sums(sum, random->stream, i / 2);
        *out = random->bell->value[sum[0]];
    }
}

/* Row r of the parts stacked; zeros behind the last. drawn: [n_in], where it comes when it is. */
static struct source_row find_row(const struct weight_part *parts, int n_parts, int n_in, int r,
                                  uint16_t *drawn)
{
    for (int i = 0; i < n_parts; i++) {
        const struct weight_part *part = &parts[i];
        size_t first = (size_t)r * (size_t)n_in;
        if (r >= part->n_rows) {
            r -= part->n_rows;
        } else if (part->rows) {
            const char *row = (const char *)part->rows + first * dtype_bytes(part->dtype);
            return (struct source_row){row, part->dtype};
        } else {
            draw(drawn, &part->random, first, (size_t)n_in);
            return (struct source_row){(const char *)drawn, DTYPE_BF16};
        }
    }
    return (struct source_row){NULL, DTYPE_F32};
}

/* The row of lane `lane` of panel p among those of w's parts; n_out: none, the panel is padded. */
static int panel_row(const struct weight *w, int p, int panel, int lane)
{
    int n_columns = weight_columns(w), half = w->gated ? p % 2 : 0;
    int column = (w->gated ? p / 2 : p) * panel + lane;
    return column < n_columns ? half * n_columns + column : w->n_out;
}

static size_t panel_bytes(const struct weight *w, struct packing packing)
{
    if (w->quantization == QUANTIZATION_INT8)
        return weight_bytes((size_t)packing.panel,
                            CEIL_DIV((size_t)w->n_in, INT8_GROUP) * INT8_GROUP, w->dtype,
                            w->quantization);
    size_t n_groups = CEIL_DIV((size_t)w->n_in, (size_t)packing.group);
    return n_groups * (size_t)packing.group * (size_t)packing.panel * dtype_bytes(w->dtype);
}

int cpu_weight_load(struct device *device, struct weight *w, const struct weight_part *parts,
                    int n_parts)
{
    const struct cpu_device *d = cpu_device(device);
    struct packing packing = d->kernels->packing[weight_format(w)];
    w->n_out = 0;
    for (int i = 0; i < n_parts; i++)
        w->n_out += parts[i].n_rows;
    assert(w->n_out > 0 && w->n_in > 0 && packing.panel <= MAX_PANEL);
    assert(!w->gated || w->n_out % 2 == 0);
    int n_panels = weight_panels(w, packing.panel);
    w->bytes = (size_t)n_panels * panel_bytes(w, packing);
    w->data = device->ops->alloc(device, w->bytes);
    if (!w->data)
        return -1;
#pragma omp parallel num_threads(cpu_threads(d, w->n_out, w->n_in))
    {
        uint16_t *drawn = xmalloc((size_t)packing.panel * (size_t)w->n_in * sizeof(*drawn));
#pragma omp for schedule(static)
        for (int p = 0; p < n_panels; p++) {
            struct source_row rows[MAX_PANEL];
            for (int lane = 0; lane < packing.panel; lane++)
                rows[lane] = find_row(parts, n_parts, w->n_in, panel_row(w, p, packing.panel, lane),
                                      drawn + (size_t)lane * (size_t)w->n_in);
            char *panel = (char *)w->data + (size_t)p * panel_bytes(w, packing);
            d->kernels->pack_panel(panel, rows, w->n_in, weight_format(w));
        }
        free(drawn);
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

static void unpack_row_int8(float *x, const struct weight *w, struct packing packing, int row)
{
    size_t group = (size_t)packing.group, panel = (size_t)packing.panel;
    const char *data = (const char *)w->data + (size_t)row / panel * panel_bytes(w, packing);
    size_t lane = (size_t)row % panel;
    for (size_t k = 0; k < (size_t)w->n_in; k += INT8_GROUP) {
        const uint8_t *q = (const uint8_t *)data;
        data += panel * INT8_GROUP;
        float scale = load_element(DTYPE_BF16, data, lane);
        data += panel * sizeof(uint16_t);
        for (size_t i = 0; i < MIN((size_t)INT8_GROUP, (size_t)w->n_in - k); i++) {
            uint8_t stored = q[(i / group * panel + lane) * group + i % group];
            x[k + i] = scale * (float)(int8_t)(stored - packing.offset);
        }
    }
}

void cpu_embed(struct device *device, void *x, const struct weight *table, const int *token,
               const int *sampled, int n_tokens)
{
    const struct cpu_device *d = cpu_device(device);
    enum weight_format format = weight_format(table);
    struct packing packing = d->kernels->packing[format];
    assert(!table->gated);
#pragma omp parallel for schedule(static) num_threads(cpu_threads(d, n_tokens, table->n_in))
    for (int t = 0; t < n_tokens; t++) {
        int id = token[t] >= 0 ? token[t] : sampled[-1 - token[t]];
        assert(id >= 0 && id < table->n_out);
        float *row = (float *)x + (size_t)t * (size_t)table->n_in;
        if (format == FORMAT_INT8)
            unpack_row_int8(row, table, packing, id);
        else
            unpack_row(row, table, packing, id);
    }
}
