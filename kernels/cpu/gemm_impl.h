/* gemm_impl.h - the register tile of all matrix products, and the packing of its left side.
 *
 * A tile is n_rows x (2 or 4) vectors of accumulators. Every element of the result is summed over
 * k in order in one f32 lane, whatever the tile's shape: that makes results independent of the
 * batch. Partial sums may be stored and loaded again between blocks of k; that rounds nothing.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#include <assert.h>

#if VEC_N == 16
#define GEMM_MAX_ROWS 12 /* 24 of 32 registers accumulate */
#else
#define GEMM_MAX_ROWS 6 /* 12 of 16 registers accumulate */
#endif
#define GEMM_MAX_ROWS_OF_TWO (GEMM_MAX_ROWS / 2)
#define PANEL                (2 * VEC_N)

#ifdef __AVX512BF16__
#define PAIRS 2 /* group of bf16 weights */
#else
#define PAIRS 1
#endif

/* acc + x w over one group of k: x is the group of one row, at `x`, broadcast to all lanes. */
VEC_INLINE vec multiply_add(enum dtype dtype, vec acc, const void *x, vec w)
{
#ifdef __AVX512BF16__
    if (dtype == DTYPE_BF16) {
        int pair;
        memcpy(&pair, x, sizeof(pair));
        return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)w);
    }
#endif
    (void)dtype;
    return vec_fma(vec_set1(*(const float *)x), w, acc);
}

/* The weights of one group of k for VEC_N outputs, from the vector of a panel at `w`. */
VEC_INLINE vec load_weights(enum dtype dtype, const void *w)
{
    if (dtype == DTYPE_BF16 && PAIRS == 2)
        return vec_load((const float *)w);
    return vec_load_as(dtype, w, 0);
}

VEC_INLINE vec first_value(const struct gemm_tile *t, int row, int col)
{
    int n = MIN(VEC_N, t->n_cols - col);
    const float *from = t->bias ? t->bias + col : NULL;
    if (t->accumulate)
        from = t->out + (size_t)row * t->out_stride + col;
    if (!from || n <= 0)
        return vec_set1(0);
    return n == VEC_N ? vec_load(from) : vec_load_n(from, n);
}

VEC_INLINE void store_value(const struct gemm_tile *t, int row, int col, vec v)
{
    int n = MIN(VEC_N, t->n_cols - col);
    float *to = t->out + (size_t)row * t->out_stride + col;
    if (n == VEC_N)
        vec_store(to, v);
    else if (n > 0)
        vec_store_n(to, v, n);
}

/* Constants after inlining: dtype, n_rows and n_vecs, so that acc lives in registers. */
VEC_INLINE void multiply_tile(const struct gemm_tile *t, enum dtype dtype, int n_rows, int n_vecs)
{
    const size_t element = dtype == DTYPE_F32 ? 4 : 2, group = dtype == DTYPE_BF16 ? PAIRS : 1;
    const size_t w_step = VEC_N * group * element, x_step = 4;
    const char *x = t->x, *w = t->w;
    vec acc[GEMM_MAX_ROWS][4];
    VEC_UNROLL for (int r = 0; r < n_rows; r++) VEC_UNROLL for (int v = 0; v < n_vecs; v++)
        acc[r][v] = first_value(t, r, v * VEC_N);
    for (int g = 0; g < t->n_groups; g++) {
        vec weights[4];
        VEC_UNROLL for (int v = 0; v < n_vecs; v++)
        {
            size_t panel = (size_t)(v / 2) * t->panel_bytes;
            weights[v] = load_weights(dtype, w + panel + (size_t)(v % 2) * w_step);
        }
        VEC_UNROLL for (int r = 0; r < n_rows; r++) VEC_UNROLL for (int v = 0; v < n_vecs; v++)
            acc[r][v] = multiply_add(dtype, acc[r][v], x + (size_t)r * x_step, weights[v]);
        w += 2 * w_step;
        x += (size_t)n_rows * x_step;
    }
    VEC_UNROLL for (int r = 0; r < n_rows; r++) VEC_UNROLL for (int v = 0; v < n_vecs; v++)
        store_value(t, r, v * VEC_N, acc[r][v]);
}

#define CASE(rows, vecs)                                                                           \
    case rows: multiply_tile(t, dtype, rows, vecs); break

VEC_INLINE void multiply_rows(const struct gemm_tile *t, enum dtype dtype)
{
    if (t->n_cols > PANEL) {
        switch (t->n_rows) {
            CASE(1, 4);
            CASE(2, 4);
            CASE(3, 4);
#if GEMM_MAX_ROWS_OF_TWO > 3
            CASE(4, 4);
            CASE(5, 4);
            CASE(6, 4);
#endif
        default: assert(!"rows of two panels");
        }
        return;
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
        CASE(9, 2);
        CASE(10, 2);
        CASE(11, 2);
        CASE(12, 2);
#endif
    default: assert(!"rows of one panel");
    }
}

static void gemm(const struct gemm_tile *tile, enum dtype weight_dtype)
{
    switch (weight_dtype) {
    case DTYPE_BF16: multiply_rows(tile, DTYPE_BF16); break;
    case DTYPE_F16: multiply_rows(tile, DTYPE_F16); break;
    default: multiply_rows(tile, DTYPE_F32); break;
    }
}

static void pack_rows(void *packed, const float *x, size_t stride, int n_rows, int n,
                      enum dtype weight_dtype)
{
    int group = weight_dtype == DTYPE_BF16 ? PAIRS : 1;
    if (group == 1) {
        float *to = packed;
        for (int k = 0; k < n; k++)
            for (int r = 0; r < n_rows; r++)
                *to++ = x[(size_t)r * stride + (size_t)k];
        return;
    }
    uint16_t *to = packed;
    for (int k = 0; k < n; k += group) {
        for (int r = 0; r < n_rows; r++) {
            const float *pair = x + (size_t)r * stride + (size_t)k;
            *to++ = f32_to_bf16(pair[0]);
            *to++ = k + 1 < n ? f32_to_bf16(pair[1]) : 0;
        }
    }
}
