/* attention_tiles.cuh - picks the instances of the tensor-core kernels for a head size. */
#ifndef QUIRE_CUDA_ATTENTION_TILES_CUH
#define QUIRE_CUDA_ATTENTION_TILES_CUH

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_prefill.cuh"

template <typename T, int D, bool AMPERE, bool CAPPED>
static void tiles_launch(const struct cuda_device *d, const struct attention_params *p,
                         bool prefill, bool decode)
{
    if (prefill)
        prefill_launch<T, D, AMPERE, CAPPED>(d, p);
    if (decode)
        decode_launch<T, D, AMPERE, CAPPED>(d, p);
}

/* Before Ampere shared memory has no room for rows of 256. */
template <typename T, bool AMPERE, bool CAPPED>
static void tiles_run_size(const struct cuda_device *d, const struct attention_params *p,
                           bool prefill, bool decode)
{
    switch (p->head_dim) {
    case 64: tiles_launch<T, 64, AMPERE, CAPPED>(d, p, prefill, decode); break;
    case 80: tiles_launch<T, 80, AMPERE, CAPPED>(d, p, prefill, decode); break;
    case 96: tiles_launch<T, 96, AMPERE, CAPPED>(d, p, prefill, decode); break;
    case 128: tiles_launch<T, 128, AMPERE, CAPPED>(d, p, prefill, decode); break;
    default:
        assert(p->head_dim == 256 && AMPERE);
        tiles_launch<T, AMPERE ? 256 : 128, AMPERE, CAPPED>(d, p, prefill, decode);
    }
}

/* The soft-cap has instances of its own: the others have no register or instruction of it. */
template <typename T, bool AMPERE>
static void tiles_run(const struct cuda_device *d, const struct attention_params *p, bool prefill,
                      bool decode)
{
    if (p->slope > 0)
        tiles_run_size<T, AMPERE, true>(d, p, prefill, decode);
    else
        tiles_run_size<T, AMPERE, false>(d, p, prefill, decode);
}

#endif
