/* attention_tiles.cuh - picks the instances of the tensor-core kernels for a head size. */
#ifndef QUIRE_CUDA_ATTENTION_TILES_CUH
#define QUIRE_CUDA_ATTENTION_TILES_CUH

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_prefill.cuh"

template <typename T, int D, bool AMPERE>
static void tiles_launch(const struct cuda_device *d, const struct attention_params *p,
                         bool prefill, bool decode)
{
    if (prefill)
        prefill_launch<T, D, AMPERE>(d, p);
    if (decode)
        decode_launch<T, D, AMPERE>(d, p);
}

/* Before Ampere shared memory has no room for rows of 256. */
template <typename T, bool AMPERE>
static void tiles_run(const struct cuda_device *d, const struct attention_params *p, bool prefill,
                      bool decode)
{
    switch (p->head_dim) {
    case 64: tiles_launch<T, 64, AMPERE>(d, p, prefill, decode); break;
    case 80: tiles_launch<T, 80, AMPERE>(d, p, prefill, decode); break;
    case 96: tiles_launch<T, 96, AMPERE>(d, p, prefill, decode); break;
    case 128: tiles_launch<T, 128, AMPERE>(d, p, prefill, decode); break;
    default:
        assert(p->head_dim == 256 && AMPERE);
        tiles_launch<T, AMPERE ? 256 : 128, AMPERE>(d, p, prefill, decode);
    }
}

#endif
