/* amx_impl.h - products of bf16 and int8 with tile registers, instead of those of gemm_impl.h.
 *
 * A tile of weights is half a panel's outputs by 64 bytes of their columns: a packed weight (cpu.h)
 * already lies so, 16 rows of 64 bytes that begin 128 bytes apart. A tile of x is 16 rows by the
 * same columns, and x is packed as those tiles lie one after another. A step over 64 bytes of k has
 * four products of tiles, which cover the 52 cycles that one takes, being started every 16:
 *
 *   tall   17 to 32 rows, one panel      rows 0-15, 16-31 x two halves of the panel
 *   wide   up to 16 rows, two panels     each panel reads as its own stream of memory
 *   small  up to 16 rows, one panel      two products a step
 *
 * Rows are filled up to 16 with zeros: what a row sums is the same in any batch, and setting tiles
 * of other heights takes 200 cycles. Packed x of n_rows, rounded up to whole units, is
 *
 *   bf16   [n / 32, rounded up] { x[n_rows][32] bf16 }
 *   int8   [n / INT8_GROUP, rounded up] { x[n_rows][64] int8;  float scale[n_rows] }
 */
#ifndef QUIRE_CPU_AMX_IMPL_H
#define QUIRE_CPU_AMX_IMPL_H

#include "kernels/cpu/amx.h"
#include "kernels/cpu/gemm_impl.h"

#define AMX_COLS  16 /* f32 or int32 of a row */
#define AMX_PANEL (2 * AMX_COLS)
#define AMX_TILE  (AMX_ROWS * AMX_ROW_BYTES)
#define AMX_STEP  (2 * AMX_TILE) /* bytes of a panel for 64 bytes of k of each output */

#define AMX_X_BYTES_BF16 (INT8_GROUP * 2)
#define AMX_X_BYTES_INT8 (INT8_GROUP + (int)sizeof(float))

/* Passes of 256 rows: 1024 columns of bf16 take a quarter, 3072 columns three quarters of the 2 MiB
 * of second-level cache. Alone with a panel, a tile fetches it 8 KiB ahead: 200 ns at 40 GB/s. */
#define AMX_TILING(row_bytes)                                                                      \
    {                                                                                              \
        .row_unit = AMX_ROWS, .max_rows = 2 * AMX_ROWS, .max_rows_of_two = AMX_ROWS,               \
        .block_tiles = 16, .pass_tiles = 8, .ahead_bytes = 8192, .x_bytes = row_bytes              \
    }

/* Groups whose sums in int32 are stored before they are scaled: each sum in f32 is loaded and
 * stored once for all of them. */
#define AMX_GROUPS 2

enum amx_shape { AMX_SMALL, AMX_TALL, AMX_WIDE };

/* Tiles of sums: 0 and 1 are of the first rows and panel, 2 and 3 of the second. */
VEC_INLINE int amx_n_tiles(enum amx_shape shape)
{
    return shape == AMX_SMALL ? 2 : 4;
}

/* The rows of tile c that are in use, the first of them, and its first column. */
VEC_INLINE int amx_rows(const struct gemm_tile *t, enum amx_shape shape, int c)
{
    if (shape != AMX_TALL)
        return t->n_rows;
    return c < 2 ? AMX_ROWS : t->n_rows - AMX_ROWS;
}

VEC_INLINE int amx_row(enum amx_shape shape, int c)
{
    return shape == AMX_TALL ? c / 2 * AMX_ROWS : 0;
}

VEC_INLINE int amx_col(enum amx_shape shape, int c)
{
    return c % 2 * AMX_COLS + (shape == AMX_WIDE ? c / 2 * AMX_PANEL : 0);
}

/* ---- products of tiles: 0 to 3 are sums, 4 is x, 5 is x or weights, 6 and 7 are weights ---- */

#define AMX_DOT(c, a, b)                                                                           \
    do {                                                                                           \
        if (format == FORMAT_INT8)                                                                 \
            amx_dot_int8(c, a, b);                                                                 \
        else                                                                                       \
            amx_dot_bf16(c, a, b);                                                                 \
    } while (0)

/* 64 bytes of k of all rows and outputs. */
VEC_INLINE void add_step(enum weight_format format, enum amx_shape shape, const char *x,
                         const char *w, size_t panel_bytes)
{
    const int stride = 2 * AMX_ROW_BYTES;
    amx_load(6, w, stride);
    amx_load(4, x, AMX_ROW_BYTES);
    AMX_DOT(0, 4, 6);
    amx_load(7, w + AMX_ROW_BYTES, stride);
    AMX_DOT(1, 4, 7);
    if (shape == AMX_TALL) {
        amx_load(5, x + AMX_TILE, AMX_ROW_BYTES);
        AMX_DOT(2, 5, 6);
        AMX_DOT(3, 5, 7);
    }
    if (shape == AMX_WIDE) {
        amx_load(5, w + panel_bytes, stride);
        AMX_DOT(2, 4, 5);
        amx_load(6, w + panel_bytes + AMX_ROW_BYTES, stride);
        AMX_DOT(3, 4, 6);
    }
}

VEC_INLINE void zero_sums(enum amx_shape shape)
{
    amx_zero(0);
    amx_zero(1);
    if (shape != AMX_SMALL) {
        amx_zero(2);
        amx_zero(3);
    }
}

/* Memory wanted soon, as much as a step has read. */
VEC_INLINE void fetch_step(const struct gemm_tile *t, enum amx_shape shape, const char *ahead)
{
    size_t bytes = AMX_ROWS * t->prefetch_step; /* a step is as many groups */
    for (size_t i = 0; i < bytes; i += CPU_CACHE_LINE) {
        __builtin_prefetch(ahead + i, 0, 2);
        if (shape == AMX_WIDE)
            __builtin_prefetch(ahead + t->panel_bytes + i, 0, 2);
    }
}

/* Brings what the next step of 32 rows loads from the second-level cache to the first: a prefill of
 * 512 tokens took 175 ms with this and 187 without. */
VEC_INLINE void fetch_next_step(const char *x, const char *w)
{
    static_assert(AMX_STEP == 2 * AMX_TILE, "as many lines of weights as of 32 rows of x");
    for (int i = AMX_STEP; i < 2 * AMX_STEP; i += CPU_CACHE_LINE) {
        __builtin_prefetch(x + i, 0, 3);
        __builtin_prefetch(w + i, 0, 3);
    }
}

/* Asks for the lines that the sums will be stored to. */
VEC_INLINE void fetch_out(const struct gemm_tile *t)
{
    for (int r = 0; r < t->n_rows; r++) {
        for (int col = 0; col < t->n_cols; col += AMX_COLS)
            __builtin_prefetch(t->out + (size_t)r * t->out_stride + col, 1);
    }
}

VEC_INLINE void store_rows(const struct gemm_tile *t, enum amx_shape shape,
                           float sum[][AMX_ROWS][AMX_COLS])
{
    for (int c = 0; c < amx_n_tiles(shape); c++) {
        float *out = t->out + (size_t)amx_row(shape, c) * t->out_stride + amx_col(shape, c);
        for (int r = 0; r < amx_rows(t, shape, c); r++)
            memcpy(out + (size_t)r * t->out_stride, sum[c][r], sizeof(sum[c][r]));
    }
}

/* ---- bf16 ---- */

/* Where tile c of the sums lies in out. */
VEC_INLINE float *amx_out(const struct gemm_tile *t, enum amx_shape shape, int c)
{
    return t->out + (size_t)amx_row(shape, c) * t->out_stride + amx_col(shape, c);
}

/* The sums that out holds; those of rows that it does not have are zero. */
VEC_INLINE void load_sums_bf16(const struct gemm_tile *t, enum amx_shape shape)
{
    _Alignas(CPU_CACHE_LINE) float sum[4][AMX_ROWS][AMX_COLS];
    bool whole = t->n_rows % AMX_ROWS == 0;
    size_t stride = whole ? t->out_stride * sizeof(float) : AMX_ROW_BYTES;
    const float *from[4];
    for (int c = 0; c < amx_n_tiles(shape); c++) {
        from[c] = whole ? amx_out(t, shape, c) : sum[c][0];
        for (int r = 0; r < AMX_ROWS && !whole; r++) {
            if (r < amx_rows(t, shape, c))
                memcpy(sum[c][r], amx_out(t, shape, c) + (size_t)r * t->out_stride, AMX_ROW_BYTES);
            else
                memset(sum[c][r], 0, AMX_ROW_BYTES);
        }
    }
    amx_load(0, from[0], stride);
    amx_load(1, from[1], stride);
    if (shape != AMX_SMALL) {
        amx_load(2, from[2], stride);
        amx_load(3, from[3], stride);
    }
}

VEC_INLINE void start_sums_bf16(const struct gemm_tile *t, enum amx_shape shape)
{
    zero_sums(shape);
    if (t->accumulate)
        load_sums_bf16(t, shape);
    if (!t->bias)
        return;
    amx_load(0, t->bias, 0);
    amx_load(1, t->bias + AMX_COLS, 0);
    if (shape != AMX_SMALL) {
        amx_load(2, t->bias + amx_col(shape, 2), 0);
        amx_load(3, t->bias + amx_col(shape, 3), 0);
    }
}

VEC_INLINE void store_sums_bf16(const struct gemm_tile *t, enum amx_shape shape)
{
    _Alignas(CPU_CACHE_LINE) float sum[4][AMX_ROWS][AMX_COLS];
    bool whole = t->n_rows % AMX_ROWS == 0;
    size_t stride = whole ? t->out_stride * sizeof(float) : AMX_ROW_BYTES;
    float *to[4];
    for (int c = 0; c < amx_n_tiles(shape); c++)
        to[c] = whole ? amx_out(t, shape, c) : sum[c][0];
    amx_store(0, to[0], stride);
    amx_store(1, to[1], stride);
    if (shape != AMX_SMALL) {
        amx_store(2, to[2], stride);
        amx_store(3, to[3], stride);
    }
    if (!whole)
        store_rows(t, shape, sum);
}

/* The columns behind the last whole step, with zeros for those that the panels do not have. */
VEC_INLINE void add_rest_bf16(const struct gemm_tile *t, enum amx_shape shape, const char *x,
                              const char *w, int n_groups)
{
    _Alignas(CPU_CACHE_LINE) char rest[2][AMX_STEP] = {0};
    size_t bytes = (size_t)n_groups * 2 * AMX_ROW_BYTES;
    memcpy(rest[0], w, bytes);
    if (shape == AMX_WIDE)
        memcpy(rest[1], w + t->panel_bytes, bytes);
    add_step(FORMAT_BF16, shape, x, rest[0], sizeof(rest[0]));
}

VEC_INLINE void multiply_tiles_bf16(const struct gemm_tile *t, enum amx_shape shape)
{
    const char *x = t->x, *w = t->w, *ahead = t->prefetch;
    fetch_out(t);
    start_sums_bf16(t, shape);
    for (int g = AMX_ROWS; g <= t->n_groups; g += AMX_ROWS) {
        if (shape == AMX_TALL)
            fetch_next_step(x, w);
        add_step(FORMAT_BF16, shape, x, w, t->panel_bytes);
        fetch_step(t, shape, ahead);
        x += shape == AMX_TALL ? 2 * AMX_TILE : AMX_TILE;
        w += AMX_STEP;
        ahead += AMX_ROWS * t->prefetch_step;
    }
    if (t->n_groups % AMX_ROWS != 0)
        add_rest_bf16(t, shape, x, w, t->n_groups % AMX_ROWS);
    store_sums_bf16(t, shape);
}

/* ---- int8 ---- */

/* Groups of columns whose sums are in `dot`, and what they were made from. */
struct amx_groups {
    _Alignas(CPU_CACHE_LINE) int32_t dot[AMX_GROUPS][4][AMX_ROWS][AMX_COLS];
    const char *x, *w;
    int n;
};

VEC_INLINE size_t amx_x_group_bytes(enum amx_shape shape)
{
    return (size_t)(shape == AMX_TALL ? 2 : 1) * AMX_ROWS * AMX_X_BYTES_INT8;
}

#define AMX_W_GROUP_BYTES (AMX_STEP + AMX_PANEL * sizeof(uint16_t))

VEC_INLINE void start_sums_int8(const struct gemm_tile *t, enum amx_shape shape,
                                float sum[][AMX_ROWS][AMX_COLS])
{
    static const float zeros[AMX_COLS];
    for (int c = 0; c < amx_n_tiles(shape); c++) {
        const float *from = t->bias ? t->bias + amx_col(shape, c) : zeros;
        for (int r = 0; r < amx_rows(t, shape, c); r++)
            memcpy(sum[c][r], from, sizeof(sum[c][r]));
    }
}

/* The sums of each group by itself. */
VEC_INLINE void multiply_groups(const struct gemm_tile *t, enum amx_shape shape,
                                struct amx_groups *groups, const char *ahead)
{
    const char *x = groups->x, *w = groups->w;
    for (int i = 0; i < groups->n; i++) {
        zero_sums(shape);
        add_step(FORMAT_INT8, shape, x, w, t->panel_bytes);
        fetch_step(t, shape, ahead);
        amx_store(0, groups->dot[i][0], AMX_ROW_BYTES);
        amx_store(1, groups->dot[i][1], AMX_ROW_BYTES);
        if (shape != AMX_SMALL) {
            amx_store(2, groups->dot[i][2], AMX_ROW_BYTES);
            amx_store(3, groups->dot[i][3], AMX_ROW_BYTES);
        }
        x += amx_x_group_bytes(shape);
        w += AMX_W_GROUP_BYTES;
        ahead += AMX_ROWS * t->prefetch_step;
    }
}

/* Scales the sums of n groups and adds them, one after another, to VEC_N columns of tile c. */
VEC_INLINE void add_groups_to(const struct gemm_tile *t, enum amx_shape shape,
                              float sum[][AMX_ROWS][AMX_COLS], const struct amx_groups *groups,
                              int n, int c, int col)
{
    const size_t x_bytes = amx_x_group_bytes(shape), second = shape == AMX_WIDE ? c / 2 : 0;
    const float *scale_x[AMX_GROUPS];
    vec scale_w[AMX_GROUPS];
    VEC_UNROLL
    for (int i = 0; i < n; i++) {
        const char *x = groups->x + (size_t)i * x_bytes + x_bytes / AMX_X_BYTES_INT8 * INT8_GROUP;
        const char *w = groups->w + (size_t)i * AMX_W_GROUP_BYTES + AMX_STEP;
        scale_x[i] = (const float *)(const void *)x + amx_row(shape, c);
        scale_w[i] = load_scales(w + second * t->panel_bytes +
                                 (size_t)(c % 2 * AMX_COLS + col) * sizeof(uint16_t));
    }
    for (int r = 0; r < amx_rows(t, shape, c); r++) {
        vec total = vec_load(&sum[c][r][col]);
        VEC_UNROLL
        for (int i = 0; i < n; i++) {
            veci dot;
            memcpy(&dot, &groups->dot[i][c][r][col], sizeof(dot));
            vec scale = vec_set1(scale_x[i][r]) * scale_w[i];
            total = vec_fma(__builtin_convertvector(dot, vec), scale, total);
        }
        vec_store(&sum[c][r][col], total);
    }
}

VEC_INLINE void add_groups(const struct gemm_tile *t, enum amx_shape shape,
                           float sum[][AMX_ROWS][AMX_COLS], const struct amx_groups *groups)
{
    for (int c = 0; c < amx_n_tiles(shape); c++) {
        for (int col = 0; col < AMX_COLS; col += VEC_N) {
            if (groups->n == AMX_GROUPS)
                add_groups_to(t, shape, sum, groups, AMX_GROUPS, c, col);
            else
                add_groups_to(t, shape, sum, groups, groups->n, c, col);
        }
    }
}

/* While the tiles of some groups are multiplied, the sums of the groups before are scaled. */
VEC_INLINE void multiply_tiles_int8(const struct gemm_tile *t, enum amx_shape shape)
{
    const int n_groups = t->n_groups / AMX_ROWS, n_runs = CEIL_DIV(n_groups, AMX_GROUPS);
    struct amx_groups buffers[2];
    _Alignas(CPU_CACHE_LINE) float sum[4][AMX_ROWS][AMX_COLS];
    fetch_out(t);
    start_sums_int8(t, shape, sum);
    for (int run = 0; run <= n_runs; run++) {
        size_t first = (size_t)run * AMX_GROUPS;
        struct amx_groups *now = &buffers[run % 2];
        if (run < n_runs) {
            now->x = (const char *)t->x + first * amx_x_group_bytes(shape);
            now->w = (const char *)t->w + first * AMX_W_GROUP_BYTES;
            now->n = MIN(AMX_GROUPS, n_groups - (int)first);
            multiply_groups(t, shape, now, t->prefetch + first * AMX_ROWS * t->prefetch_step);
        }
        if (run > 0)
            add_groups(t, shape, sum, &buffers[(run - 1) % 2]);
    }
    store_rows(t, shape, sum);
}

/* ---- the table's entries ---- */

static void multiply_tiles(const struct gemm_tile *t, enum weight_format format)
{
    bool wide = t->n_cols > AMX_PANEL, tall = t->n_rows > AMX_ROWS;
    if (format == FORMAT_INT8) {
        if (wide)
            multiply_tiles_int8(t, AMX_WIDE);
        else if (tall)
            multiply_tiles_int8(t, AMX_TALL);
        else
            multiply_tiles_int8(t, AMX_SMALL);
    } else {
        if (wide)
            multiply_tiles_bf16(t, AMX_WIDE);
        else if (tall)
            multiply_tiles_bf16(t, AMX_TALL);
        else
            multiply_tiles_bf16(t, AMX_SMALL);
    }
}

static bool has_tiles(enum weight_format format)
{
    return format == FORMAT_BF16 || format == FORMAT_INT8;
}

static void gemm_with_tiles(const struct gemm_tile *tile, enum weight_format format)
{
    float out[2 * AMX_ROWS * AMX_PANEL];
    if (!has_tiles(format)) {
        gemm(tile, format);
        return;
    }
    assert(tile->n_rows <= (tile->n_cols > AMX_PANEL ? AMX_ROWS : 2 * AMX_ROWS));
    assert(!tile->accumulate || format == FORMAT_BF16);
    multiply_panels_of(AMX_PANEL, tile, format, out, multiply_tiles);
}

/* A row of a tile: n columns rounded to bf16, zeros up to 32. */
VEC_INLINE void pack_row_bf16(char *to, const float *x, int n)
{
#ifdef __AVX512BF16__
    vec_store((float *)(void *)to, load_groups(x, 0, n, 2));
#else
    for (int i = 0; i < 2 * AMX_COLS; i += VEC_N) {
        vec part = vec_load_n(x + i, MAX(0, MIN(n - i, VEC_N)));
        vec_store_bf16((uint16_t *)(void *)to + i, part);
    }
#endif
}

/* Row by row: the lines of a row are neighbours, those of a column would compete for few places of
 * the first-level cache. */
static void pack_tiles_bf16(char *packed, const float *x, size_t stride, int n_rows, int n)
{
    const int packed_rows = CEIL_DIV(n_rows, AMX_ROWS) * AMX_ROWS, columns = 2 * AMX_COLS;
    for (int r = 0; r < packed_rows; r++) {
        for (int k = 0; k < n; k += columns) {
            char *to = packed + (k / columns * packed_rows + r) * AMX_ROW_BYTES;
            if (r < n_rows)
                pack_row_bf16(to, x + (size_t)r * stride + k, MIN(columns, n - k));
            else
                memset(to, 0, AMX_ROW_BYTES);
        }
    }
}

static void pack_tiles_int8(char *packed, const float *x, size_t stride, int n_rows, int n)
{
    const int packed_rows = CEIL_DIV(n_rows, AMX_ROWS) * AMX_ROWS;
    for (int r = 0; r < packed_rows; r++) {
        for (int k = 0; k < n; k += INT8_GROUP) {
            char *group = packed + k / INT8_GROUP * packed_rows * AMX_X_BYTES_INT8;
            int8_t *to = (int8_t *)group + r * INT8_GROUP;
            if (r >= n_rows) {
                memset(to, 0, INT8_GROUP);
                continue;
            }
            float *scale = (float *)(void *)(group + packed_rows * INT8_GROUP);
            const float *from = x + (size_t)r * stride + k;
            float last[INT8_GROUP] = {0};
            if (n - k < INT8_GROUP)
                from = memcpy(last, from, (size_t)(n - k) * sizeof(float));
            scale[r] = quantize(to, from);
        }
    }
}

static void pack_x_for_tiles(void *packed, const float *x, size_t stride, int n_rows, int n,
                             enum weight_format format)
{
    if (format == FORMAT_BF16)
        pack_tiles_bf16(packed, x, stride, n_rows, n);
    else if (format == FORMAT_INT8)
        pack_tiles_int8(packed, x, stride, n_rows, n);
    else
        pack_x(packed, x, stride, n_rows, n, format);
}

#endif
