/* sum_words.cu - reads memory once and adds its 32-bit words: the measure of read bandwidth. */
#include "kernels/cuda/sum_words.cuh"

/* *sum is 0 before. */
static __global__ void __launch_bounds__(SUM_THREADS)
    sum_words_kernel(uint32_t *sum, const uint4 *memory, size_t n)
{
    uint32_t own = sum_share(memory, n);
    for (int lanes = CUDA_WARP / 2; lanes > 0; lanes /= 2)
        own += __shfl_xor_sync(0xFFFFFFFFu, own, lanes);
    if (threadIdx.x % CUDA_WARP == 0)
        atomicAdd(sum, own);
}

void cuda_sum_words(struct device *device, uint32_t *sum, const void *memory, size_t bytes)
{
    const struct cuda_device *d = cuda_device(device);
    assert(bytes % SUM_UNIT == 0);
    CUDA_CHECK(cudaMemsetAsync(sum, 0, sizeof(*sum), d->stream));
    sum_words_kernel<<<d->n_sms * SUM_BLOCKS_PER_SM, SUM_THREADS, 0, d->stream>>>(
        sum, (const uint4 *)memory, bytes / sizeof(uint4));
    CUDA_CHECK_LAUNCH();
}
