/* linear_tiles.cuh - tiles of x W^T in a warp group: what linear_decode.cu and linear_prefill.cu
 * share.
 */
#ifndef QUIRE_CUDA_LINEAR_TILES_CUH
#define QUIRE_CUDA_LINEAR_TILES_CUH

#include "kernels/cuda/ptx.cuh"

#define PANEL_COLUMNS 64  /* the most that swizzled boxes have */
#define PANEL_ROW     128 /* bytes */

#if PTX_WARP_GROUPS

/* c += x w^T, or c = x w^T, for 64 rows of x, W_ROWS of W and 16 columns. x, w: addresses / 16 */
template <typename T, int W_ROWS, bool ADD = true>
static __device__ __forceinline__ void multiply_rows(float c[W_ROWS / 8][4], uint32_t x, uint32_t w)
{
    if constexpr (W_ROWS == 16)
        multiply_tiles_16<ADD>(c, x, w, T());
    else if constexpr (W_ROWS == 32)
        multiply_tiles_32<ADD>(c, x, w, T());
    else if constexpr (W_ROWS == 48)
        multiply_tiles_48<ADD>(c, x, w, T());
    else if constexpr (W_ROWS == 64)
        multiply_tiles_64<ADD>(c, x, w, T());
    else if constexpr (W_ROWS == 96)
        multiply_tiles_96<ADD>(c, x, w, T());
    else if constexpr (W_ROWS == 128)
        multiply_tiles_128<ADD>(c, x, w, T());
    else
        multiply_tiles_192<ADD>(c, x, w, T());
}

/* A thread's part of a tile of y, [.., n_columns] in f32 or rounded: its sums are c[i][2 half] and
 * c[i][2 half + 1], in row + 8 half, column + 8 i and the next. */
struct patch {
    void *y;
    int n_columns, row, column, end_row;
    bool f32;
};

/* The first 8 TILES columns. */
template <typename T, int TILES>
static __device__ __forceinline__ void store_sums(const float c[TILES][4], const struct patch *t)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = t->row + half * 8;
        size_t at = (size_t)row * t->n_columns + t->column;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            float first = c[i][half * 2], second = c[i][half * 2 + 1];
            if (row >= t->end_row || t->column + i * 8 >= t->n_columns)
                continue;
            if (t->f32)
                *(float2 *)((float *)t->y + at + i * 8) = make_float2(first, second);
            else
                *(uint32_t *)((T *)t->y + at + i * 8) = pack_pair(first, second, T());
        }
    }
}

#endif

#endif
