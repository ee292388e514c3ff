/* weight.c - packing of weights (cpu.h, "packed weights") and reading table rows back.
 *
 * Portable C: a panel is packed CHUNK columns at a time, so that the rows' parts stay in the
 * first-level cache while they are interleaved; that takes less time than reading the model file.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>

#define CHUNK 64 /* columns; a multiple of every group */

/* One row of the stacked matrix; not always aligned, because it lies in a file. */
struct source_row {
    const char *data; /* NULL: zeros */
    enum dtype dtype;
};

/* Row r of the parts stacked; zeros behind the last. */
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

/* Columns [k, k + n) of a row in the type `to`, zeros up to CHUNK. Converts through f32, which
 * holds every value of both short types; equal types are copied, so that even the payload of a NaN
 * survives. */
static void load_chunk(void *out, enum dtype to, struct source_row row, size_t k, size_t n)
{
    float aligned[CHUNK];
    memset(out, 0, CHUNK * dtype_bytes(to));
    if (!row.data)
        return;
    size_t bytes = dtype_bytes(row.dtype);
    memcpy(row.dtype == to ? out : aligned, row.data + k * bytes, n * bytes);
    if (row.dtype == to)
        return;
    for (size_t i = 0; i < n; i++)
        store_element(to, out, i, load_element(row.dtype, aligned, i));
}

/* Units are what lies side by side: one element or a pair. */
static void interleave_32(uint32_t *panel, const char *chunks, size_t stride, size_t lanes,
                          size_t units)
{
    for (size_t u = 0; u < units; u++) {
        for (size_t lane = 0; lane < lanes; lane++)
            panel[u * lanes + lane] = ((const uint32_t *)(const void *)(chunks + lane * stride))[u];
    }
}

static void interleave_16(uint16_t *panel, const char *chunks, size_t stride, size_t lanes,
                          size_t units)
{
    for (size_t u = 0; u < units; u++) {
        for (size_t lane = 0; lane < lanes; lane++)
            panel[u * lanes + lane] = ((const uint16_t *)(const void *)(chunks + lane * stride))[u];
    }
}

static void pack_panel(const struct weight *w, struct packing packing, char *panel,
                       const struct source_row *rows)
{
    _Alignas(CPU_CACHE_LINE) char chunks[MAX_PANEL * CHUNK * sizeof(float)];
    size_t n_in = (size_t)w->n_in, group = (size_t)packing.group, lanes = (size_t)packing.panel;
    size_t stride = CHUNK * dtype_bytes(w->dtype), unit_bytes = group * dtype_bytes(w->dtype);
    for (size_t k = 0; k < n_in; k += CHUNK) {
        size_t n = MIN((size_t)CHUNK, n_in - k), units = CEIL_DIV(n, group);
        for (size_t lane = 0; lane < lanes; lane++)
            load_chunk(chunks + lane * stride, w->dtype, rows[lane], k, n);
        if (unit_bytes == sizeof(uint32_t))
            interleave_32((uint32_t *)(void *)panel, chunks, stride, lanes, units);
        else
            interleave_16((uint16_t *)(void *)panel, chunks, stride, lanes, units);
        panel += units * lanes * unit_bytes;
    }
}

/* The same for int8. The rows are quantised from f32, whatever the weight's dtype is. */
static void pack_panel_int8(const struct weight *w, const struct cpu_kernels *kernels, char *panel,
                            const struct source_row *rows)
{
    struct packing packing = kernels->packing[FORMAT_INT8];
    size_t n_in = (size_t)w->n_in, lanes = (size_t)packing.panel, group = (size_t)packing.group;
    _Alignas(CPU_CACHE_LINE) int8_t q[MAX_PANEL][INT8_GROUP];
    uint16_t scale[MAX_PANEL];
    for (size_t k = 0; k < n_in; k += INT8_GROUP) {
        for (size_t lane = 0; lane < lanes; lane++) {
            float x[CHUNK];
            load_chunk(x, DTYPE_F32, rows[lane], k, MIN((size_t)INT8_GROUP, n_in - k));
            scale[lane] = f32_to_bf16(kernels->quantize(q[lane], x, DTYPE_BF16));
            for (size_t i = 0; i < INT8_GROUP; i++)
                q[lane][i] = (int8_t)(q[lane][i] + packing.offset);
        }
        if (group == sizeof(uint32_t))
            interleave_32((uint32_t *)(void *)panel, (char *)q, INT8_GROUP, lanes,
                          INT8_GROUP / group);
        else
            interleave_16((uint16_t *)(void *)panel, (char *)q, INT8_GROUP, lanes,
                          INT8_GROUP / group);
        panel += lanes * INT8_GROUP;
        memcpy(panel, scale, lanes * sizeof(scale[0]));
        panel += lanes * sizeof(scale[0]);
    }
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
    int n_panels = CEIL_DIV(w->n_out, packing.panel);
    w->bytes = (size_t)n_panels * panel_bytes(w, packing);
    w->data = device->ops->alloc(device, w->bytes);
    if (!w->data)
        return -1;
#pragma omp parallel for schedule(dynamic) num_threads(cpu_threads(d, w->n_out, w->n_in))
    for (int p = 0; p < n_panels; p++) {
        struct source_row rows[MAX_PANEL];
        for (int lane = 0; lane < packing.panel; lane++)
            rows[lane] = find_row(parts, n_parts, w->n_in, p * packing.panel + lane);
        char *panel = (char *)w->data + (size_t)p * panel_bytes(w, packing);
        if (w->quantization == QUANTIZATION_INT8)
            pack_panel_int8(w, d->kernels, panel, rows);
        else
            pack_panel(w, packing, panel, rows);
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
