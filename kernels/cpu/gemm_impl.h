/* gemm_impl.h - the register tile of all matrix products, and the packing of its left side.
 *
 * A tile is n_rows x (2 or 4) vectors of accumulators. Every element of the result is summed over
 * k in order in one f32 lane (int8: over groups of k, whose own sums are exact), whatever the
 * tile's shape: that makes results independent of the batch. Partial sums may be stored and loaded
 * again between blocks of k; that rounds nothing.
 */
#ifndef QUIRE_CPU_GEMM_IMPL_H
#define QUIRE_CPU_GEMM_IMPL_H

#include "kernels/cpu/int8_impl.h"

#include <assert.h>

/* Rows of a tile one panel wide. AVX-512: 8 rows reached 0.96 of the peak of bf16 for 16 to 512
 * rows, 12 rows 0.92 to 0.95, although both reach 0.99 from the first-level cache. Others: 6 rows
 * take 12 of 16 registers. Rows of a tile two panels wide: there memory is the limit, and more
 * streams read faster (1 row: 33 instead of 29 GB/s); from 5 rows on arithmetic is. */
#if VEC_N == 16
#define GEMM_MAX_ROWS        8
#define GEMM_MAX_ROWS_OF_TWO 4
#else
#define GEMM_MAX_ROWS        6
#define GEMM_MAX_ROWS_OF_TWO 3
#endif
#define PANEL (2 * VEC_N)

#ifdef __AVX512BF16__
#define PAIRS 2 /* group of bf16 weights */
#else
#define PAIRS 1
#endif

/* acc + x w over one group of k: x is the group of one row, at `x`, broadcast to all lanes. */
VEC_INLINE vec multiply_add(enum dtype dtype, vec acc, const char *x, vec w)
{
#ifdef __AVX512BF16__
    if (dtype == DTYPE_BF16) {
        int pair;
        memcpy(&pair, x, sizeof(pair));
        return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)w);
    }
#endif
    (void)dtype;
    float value;
    memcpy(&value, x, sizeof(value));
    return vec_fma(vec_set1(value), w, acc);
}

/* The weights of one group of k for VEC_N outputs, from the vector of a panel at `w`. */
VEC_INLINE vec load_weights(enum dtype dtype, const void *w)
{
    if (dtype == DTYPE_BF16 && PAIRS == 2)
        return vec_load((const float *)w);
    return vec_load_as(dtype, w, 0);
}

/* What the sum of an element starts from. Also asks for the line that will be stored: without that
 * the stores at the end of a tile of 512 x 4096 wait for memory, 2 % of the product's time. */
VEC_INLINE vec first_value(const struct gemm_tile *t, int row, int col)
{
    float *out = t->out + (size_t)row * t->out_stride + col;
    __builtin_prefetch(out, 1);
    if (t->accumulate)
        return vec_load(out);
    return t->bias ? vec_load(t->bias + col) : vec_set1(0);
}

VEC_INLINE void start_sums(vec sum[][4], const struct gemm_tile *t, int n_rows, int n_vecs)
{
    VEC_UNROLL
    for (int r = 0; r < n_rows; r++) {
        VEC_UNROLL
        for (int v = 0; v < n_vecs; v++) {
            sum[r][v] = first_value(t, r, v * VEC_N);
        }
    }
}

VEC_INLINE void store_sums(const struct gemm_tile *t, vec sum[][4], int n_rows, int n_vecs)
{
    VEC_UNROLL
    for (int r = 0; r < n_rows; r++) {
        VEC_UNROLL
        for (int v = 0; v < n_vecs; v++) {
            vec_store(t->out + (size_t)r * t->out_stride + v * VEC_N, sum[r][v]);
        }
    }
}

/* The whole panels of a tile. Constants after inlining: dtype, n_rows and n_vecs, so that acc
 * lives in registers. */
VEC_INLINE void multiply_tile(const struct gemm_tile *t, enum dtype dtype, int n_rows, int n_vecs)
{
    const size_t group = dtype == DTYPE_BF16 ? PAIRS : 1;
    const size_t vec_bytes = VEC_N * group * (dtype == DTYPE_F32 ? 4 : 2);
    const char *x = t->x, *w = t->w, *ahead = t->prefetch;
    vec acc[GEMM_MAX_ROWS][4];
    start_sums(acc, t, n_rows, n_vecs);

    for (int g = 0; g < t->n_groups; g++) {
        vec weights[4];
        VEC_UNROLL
        for (int v = 0; v < n_vecs; v++) {
            size_t panel = (size_t)(v / 2) * t->panel_bytes;
            weights[v] = load_weights(dtype, w + panel + (size_t)(v % 2) * vec_bytes);
        }
        if (n_vecs == 2) { /* two panels at once read as fast as memory goes without help */
            __builtin_prefetch(ahead, 0, 2);
            __builtin_prefetch(ahead + CPU_CACHE_LINE, 0, 2);
            ahead += t->prefetch_step;
        }
        VEC_UNROLL
        for (int r = 0; r < n_rows; r++) {
            VEC_UNROLL
            for (int v = 0; v < n_vecs; v++) {
                acc[r][v] = multiply_add(dtype, acc[r][v], x + r * GROUP_BYTES, weights[v]);
            }
        }

        w += 2 * vec_bytes;
        x += n_rows * GROUP_BYTES;
    }
    store_sums(t, acc, n_rows, n_vecs);
}

/* What two panels hold one group of int8 after w. One row reads 53 GB/s with this and 47 without
 * (two threads); four rows are slower with it. */
VEC_INLINE void prefetch_next_group(const char *w, size_t panel_bytes)
{
    const char *next = w + (size_t)PANEL * INT8_GROUP;
    __builtin_prefetch(next, 0, 2);
    __builtin_prefetch(next + CPU_CACHE_LINE, 0, 2);
    __builtin_prefetch(next + panel_bytes, 0, 2);
    __builtin_prefetch(next + panel_bytes + CPU_CACHE_LINE, 0, 2);
}

/* The same for int8: k goes on by groups of INT8_GROUP columns, whose exact sum is scaled and added
 * to the element. With VNNI the two instructions of that take a ninth of the time of the 16 dot
 * products before them: 8 rows reach 0.82 of the peak. */
VEC_INLINE void multiply_int8(const struct gemm_tile *t, int n_rows, int n_vecs)
{
    const size_t vec_bytes = VEC_N * INT8_UNIT;
    const char *x = t->x, *w = t->w, *ahead = t->prefetch;
    /* Lines that are left out cost more than the others save: 8 rows took twice as long. */
    const size_t step = MIN(t->prefetch_step, 2 * CPU_CACHE_LINE);
    vec sum[GEMM_MAX_ROWS][4];
    start_sums(sum, t, n_rows, n_vecs);

    for (int g = 0; g < t->n_groups; g += INT8_UNITS) {
        const char *scale_x = x, *end = w + (size_t)PANEL * INT8_GROUP;
        veci dot[GEMM_MAX_ROWS][4];
        x += n_rows * GROUP_BYTES;
        VEC_UNROLL
        for (int r = 0; r < n_rows; r++) {
            VEC_UNROLL
            for (int v = 0; v < n_vecs; v++) {
                dot[r][v] = veci_broadcast(x + r * GROUP_BYTES);
            }
        }
        x += n_rows * GROUP_BYTES;
        for (; w < end; w += 2 * vec_bytes) {
            veci weights[4];
            VEC_UNROLL
            for (int v = 0; v < n_vecs; v++) {
                size_t panel = (size_t)(v / 2) * t->panel_bytes;
                weights[v] = load_units(w + panel + (size_t)(v % 2) * vec_bytes);
            }
            if (n_vecs == 2) {
                __builtin_prefetch(ahead, 0, 2);
                __builtin_prefetch(ahead + CPU_CACHE_LINE, 0, 2);
                ahead += step;
            } else if (n_rows <= 2) {
                prefetch_next_group(w, t->panel_bytes);
            }
            VEC_UNROLL
            for (int r = 0; r < n_rows; r++) {
                VEC_UNROLL
                for (int v = 0; v < n_vecs; v++) {
                    dot[r][v] = add_products(dot[r][v], x + r * GROUP_BYTES, weights[v]);
                }
            }
            x += n_rows * GROUP_BYTES;
        }
        if (n_vecs == 2) { /* and the line of the scales, when this tile fetches all by itself */
            __builtin_prefetch(ahead, 0, 2);
            ahead += INT8_UNITS * (t->prefetch_step - step);
        }
        VEC_UNROLL
        for (int v = 0; v < n_vecs; v++) {
            size_t panel = (size_t)(v / 2) * t->panel_bytes;
            vec scale_w = load_scales(end + panel + (size_t)(v % 2) * VEC_N * sizeof(uint16_t));
            VEC_UNROLL
            for (int r = 0; r < n_rows; r++) {
                vec scale = (vec)veci_broadcast(scale_x + r * GROUP_BYTES) * scale_w;
                sum[r][v] = vec_fma(__builtin_convertvector(dot[r][v], vec), scale, sum[r][v]);
            }
        }
        w += (size_t)PANEL * sizeof(uint16_t);
    }
    store_sums(t, sum, n_rows, n_vecs);
}

VEC_INLINE void multiply_as(const struct gemm_tile *t, enum weight_format format, int n_rows,
                            int n_vecs)
{
    if (format == FORMAT_INT8)
        multiply_int8(t, n_rows, n_vecs);
    else
        multiply_tile(t, (enum dtype)format, n_rows, n_vecs);
}

#define CASE(rows, vecs)                                                                           \
    case rows: multiply_as(t, format, rows, vecs); return

VEC_INLINE void multiply_rows(const struct gemm_tile *t, enum weight_format format)
{
    if (t->n_cols > PANEL) {
        switch (t->n_rows) {
            CASE(1, 4);
            CASE(2, 4);
            CASE(3, 4);
#if GEMM_MAX_ROWS_OF_TWO > 3
            CASE(4, 4);
#endif
        }
    }
    switch (t->n_rows) {
        CASE(1, 2);
        CASE(2, 2);
        CASE(3, 2);
        CASE(4, 2);
        CASE(5, 2);
        CASE(6, 2);
#if GEMM_MAX_ROWS > 6
        CASE(7, 2);
        CASE(8, 2);
#endif
    }
}

static void multiply_whole(const struct gemm_tile *t, enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_BF16: multiply_rows(t, FORMAT_BF16); break;
    case DTYPE_F16: multiply_rows(t, FORMAT_F16); break;
    default: multiply_rows(t, FORMAT_F32); break;
    }
}

static void multiply_weight(const struct gemm_tile *t, enum weight_format format)
{
    if (format == FORMAT_INT8)
        multiply_rows(t, FORMAT_INT8);
    else
        multiply_whole(t, (enum dtype)format);
}

/* A last panel that is not full is computed whole, beside the result in `out`, and copied. */
VEC_INLINE void multiply_panels_of(int panel, const struct gemm_tile *tile,
                                   enum weight_format format, float *out,
                                   void (*multiply)(const struct gemm_tile *, enum weight_format))
{
    float bias[MAX_PANEL * 2] = {0};
    int n_cols = tile->n_cols, width = n_cols > panel ? 2 * panel : panel;
    if (n_cols == width) {
        multiply(tile, format);
        return;
    }
    struct gemm_tile whole = *tile;
    size_t bytes = (size_t)n_cols * sizeof(float);
    whole.n_cols = width;
    whole.out = out;
    whole.out_stride = (size_t)width;
    if (tile->bias)
        whole.bias = memcpy(bias, tile->bias, bytes);
    assert(!tile->accumulate);
    multiply(&whole, format);
    for (int r = 0; r < tile->n_rows; r++)
        memcpy(tile->out + (size_t)r * tile->out_stride, out + r * width, bytes);
}

static void gemm(const struct gemm_tile *tile, enum weight_format format)
{
    float out[GEMM_MAX_ROWS * PANEL * 2];
    assert(tile->n_rows <= (tile->n_cols > PANEL ? GEMM_MAX_ROWS_OF_TWO : GEMM_MAX_ROWS));
    multiply_panels_of(PANEL, tile, format, out, multiply_weight);
}

/* VEC_N groups of a row from k on; beyond n, zeros. */
VEC_INLINE vec load_groups(const float *x, int k, int n, int group)
{
    int left = n - k;
#ifdef __AVX512BF16__
    if (group == 2) {
        vec low = vec_load_n(x + k, MIN(left, VEC_N)), high = vec_set1(0);
        if (left > VEC_N)
            high = vec_load_n(x + k + VEC_N, MIN(left - VEC_N, VEC_N));
        return (vec)_mm512_cvtne2ps_pbh(high, low);
    }
#endif
    (void)group;
    return vec_load_n(x + k, MIN(left, VEC_N));
}

/* Turns up to VEC_N rows at a time, VEC_N groups of each. */
static void pack_rows(void *packed, const float *x, size_t stride, int n_rows, int n,
                      enum dtype dtype)
{
    int group = dtype == DTYPE_BF16 ? PAIRS : 1, n_groups = CEIL_DIV(n, group);
    for (int first = 0; first < n_rows; first += VEC_N) {
        int rows = MIN(VEC_N, n_rows - first);
        for (int g = 0; g < n_groups; g += VEC_N) {
            vec block[VEC_N];
            for (int r = 0; r < VEC_N; r++) {
                const float *row = x + (size_t)(first + r) * stride;
                block[r] = r < rows ? load_groups(row, g * group, n, group) : vec_set1(0);
            }
            vec_transpose(block);
            float *to = (float *)packed + (size_t)g * (size_t)n_rows + first;
            for (int i = 0; i < MIN(VEC_N, n_groups - g); i++)
                vec_store_n(to + (size_t)i * (size_t)n_rows, block[i], rows);
        }
    }
}

static void pack_x(void *packed, const float *x, size_t stride, int n_rows, int n,
                   enum weight_format format)
{
    if (format == FORMAT_INT8)
        pack_rows_int8(packed, x, stride, n_rows, n);
    else
        pack_rows(packed, x, stride, n_rows, n, (enum dtype)format);
}

/* Vector registers need no setting up. */
static inline void gemm_without_state(void)
{
}

/* 48 tiles of AVX-512 are 384 rows, of which 1024 columns are 0.8 MB of bf16. Packed x is read once
 * per panel, so it should come from a cache. */
#define GEMM_TILING(row_bytes)                                                                     \
    {                                                                                              \
        .row_unit = 1, .max_rows = GEMM_MAX_ROWS, .max_rows_of_two = GEMM_MAX_ROWS_OF_TWO,         \
        .block_tiles = 48, .x_bytes = row_bytes                                                    \
    }
#define GEMM_BYTES_OF_GROUPS(group) (INT8_GROUP / (group)*GROUP_BYTES)

#endif
