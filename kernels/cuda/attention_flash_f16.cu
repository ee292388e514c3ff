/* attention_flash_f16.cu - the tensor-core kernels in f16, for compute capability 8.0 and up, and
 * the scratch of all of them. */
#include "kernels/cuda/attention_tiles.cuh"

void attention_flash_f16(const struct cuda_device *d, const struct attention_params *p,
                         bool prefill, bool decode)
{
    tiles_run<__half, true>(d, p, prefill, decode);
}

bool attention_flash_shares(const struct cuda_device *d, const struct attention_params *p)
{
    return box_decode_shares(d, p);
}

size_t attention_tiles_scratch(const struct cuda_device *d, const struct attention_shape *shape,
                               int n_slots)
{
    int head_dim = shape->head_dim, n_halves = shape->n_heads / shape->n_kv_heads > 8 ? 2 : 1;
    size_t floats = (size_t)n_slots * DECODE_PARKED_FLOATS(head_dim, n_halves);
    for (int ampere = 0; ampere < 2; ampere++) {
        size_t prefill = PREFILL_BLOCKS_PER_SM * d->n_sms *
                         PREFILL_PARKED_FLOATS(head_dim, prefill_m_tiles(head_dim, ampere));
        floats = MAX(floats, prefill);
    }
    return floats;
}
