/* silu_mul.cuh - the gate of silu_mul.cu, for products that end with it as well. */
#ifndef QUIRE_CUDA_SILU_MUL_CUH
#define QUIRE_CUDA_SILU_MUL_CUH

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

/* x / y, correctly rounded, for y from 1 to 2^127: the division itself tests for other operands,
 * and a test for each of many keeps them from being worked on side by side. */
static __device__ __forceinline__ float divide_by_normal(float x, float y)
{
    float r = reciprocal_approx(y);
    r = __fmaf_rn(__fmaf_rn(-y, r, 1.0f), r, r);
    float q = __fmul_rn(x, r);
    q = __fmaf_rn(__fmaf_rn(-y, q, x), r, q);
    return __fmaf_rn(__fmaf_rn(-y, q, x), r, q);
}

/* silu(gate) up, silu(x) = x / (1 + e^-x), for operands rounded to T; not rounded itself. For x
 * below -88, e^-x is taken for e^88, so that it stays a number: silu(x) is 6e-39 x then. */
template <typename T> static __device__ __forceinline__ float silu_mul(T gate, T up)
{
    float g = to_float(gate);
    return divide_by_normal(g, 1.0f + expf(fminf(-g, 88.0f))) * to_float(up);
}

/* Of sums in W_ROWS columns, 16x8 tiles of a product, the first half gates the second. */
template <typename T, int W_ROWS>
static __device__ __forceinline__ void gate_sums(float c[W_ROWS / 8][4])
{
#pragma unroll
    for (int i = 0; i < W_ROWS / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            c[i][j] = silu_mul(from_float<T>(c[i][j]), from_float<T>(c[i + W_ROWS / 16][j]));
}

#endif
