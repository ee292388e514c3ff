/* attention_memory_efficient.cu - the tensor-core kernels with what compute capability 7.5 has:
 * matrix instructions of f16 in steps of 8, copies through registers, 64 KiB of shared memory. */
#include "kernels/cuda/attention_tiles.cuh"

void attention_turing_f16(const struct cuda_device *d, const struct attention_params *p,
                          bool prefill, bool decode)
{
    tiles_run<__half, false>(d, p, prefill, decode);
}
