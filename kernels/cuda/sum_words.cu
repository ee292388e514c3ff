/* sum_words.cu - reads memory once and adds its 32-bit words: the measure of read bandwidth.
 *
 * Every thread has IN_FLIGHT loads of 16 bytes on their way before it adds the first one, and eight
 * blocks of a multiprocessor 256 KiB together: more than a memory's latency times its bandwidth.
 */
#include "kernels/cuda/cuda.cuh"

#define SUM_THREADS   256
#define BLOCKS_PER_SM 8
#define IN_FLIGHT     8

static __device__ __forceinline__ uint32_t sum_of(uint4 x)
{
    return x.x + x.y + x.z + x.w;
}

/* *sum is 0 before. */
static __global__ void sum_words_kernel(uint32_t *sum, const uint4 *memory, size_t n)
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
    for (int lanes = 16; lanes > 0; lanes /= 2)
        own += __shfl_xor_sync(~0u, own, lanes);
    if (threadIdx.x % 32 == 0)
        atomicAdd(sum, own);
}

void cuda_sum_words(struct device *device, uint32_t *sum, const void *memory, size_t bytes)
{
    const struct cuda_device *d = cuda_device(device);
    assert(bytes % SUM_UNIT == 0);
    CUDA_CHECK(cudaMemsetAsync(sum, 0, sizeof(*sum), d->stream));
    sum_words_kernel<<<d->n_sms * BLOCKS_PER_SM, SUM_THREADS, 0, d->stream>>>(
        sum, (const uint4 *)memory, bytes / sizeof(uint4));
    CUDA_CHECK_LAUNCH();
}
