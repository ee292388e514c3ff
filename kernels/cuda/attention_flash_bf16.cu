/* attention_flash_bf16.cu - the tensor-core kernels in bf16, for compute capability 8.0 and up. */
#include "kernels/cuda/attention_tiles.cuh"

void attention_flash_bf16(const struct cuda_device *d, const struct attention_params *p,
                          bool prefill, bool decode)
{
    tiles_run<__nv_bfloat16, true>(d, p, prefill, decode);
}
