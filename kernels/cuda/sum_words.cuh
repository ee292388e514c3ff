/* sum_words.cuh - reading memory once, as fast as it goes.
 *
 * Every thread has IN_FLIGHT loads of 16 bytes on their way before it adds the first one, and the
 * blocks of a multiprocessor 256 KiB together: more than a memory's latency times its bandwidth.
 */
#ifndef QUIRE_CUDA_SUM_WORDS_CUH
#define QUIRE_CUDA_SUM_WORDS_CUH

#include "kernels/cuda/cuda.cuh"

#define SUM_THREADS       256
#define SUM_BLOCKS_PER_SM 8
#define IN_FLIGHT         8

static __device__ __forceinline__ uint32_t sum_of(uint4 x)
{
    return x.x + x.y + x.z + x.w;
}

/* A thread's share of the sum of n times four words; by all threads of a grid of SUM_THREADS in a
 * block. */
static __device__ __forceinline__ uint32_t sum_share(const uint4 *memory, size_t n)
{
    size_t stride = (size_t)gridDim.x * SUM_THREADS;
    size_t i = blockIdx.x * (size_t)SUM_THREADS + threadIdx.x;
    uint32_t own = 0;
    for (; i + (IN_FLIGHT - 1) * stride < n; i += IN_FLIGHT * stride) {
        uint4 x[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++)
            x[j] = __ldcs(memory + i + j * stride);
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++)
            own += sum_of(x[j]);
    }
    for (; i < n; i += stride)
        own += sum_of(__ldcs(memory + i));
    return own;
}

#endif
