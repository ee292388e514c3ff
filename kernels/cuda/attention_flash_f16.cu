/* attention_flash_f16.cu - the tensor-core kernels in f16, for compute capability 8.0 and up, and
 * the scratch of all of them. */
#include "kernels/cuda/attention_tiles.cuh"

void attention_flash_f16(const struct cuda_device *d, const struct attention_params *p,
                         bool prefill, bool decode)
{
    tiles_run<__half, true>(d, p, prefill, decode);
}

size_t attention_tiles_scratch(const struct cuda_device *d, const struct attention_shape *shape,
                               int n_seqs, int max_kv_len)
{
    int head_dim = shape->head_dim, heads_per_kv = shape->n_heads / shape->n_kv_heads;
    int n_pairs = n_seqs * shape->n_kv_heads * CEIL_DIV(heads_per_kv, DECODE_ROWS);
    size_t floats = 0;
    for (int ampere = 0; ampere < 2; ampere++) {
        size_t prefill = PREFILL_BLOCKS_PER_SM * d->n_sms *
                         PREFILL_PARKED_FLOATS(head_dim, prefill_m_tiles(head_dim, ampere));
        floats = MAX(floats, prefill);
        if (ampere || head_dim <= TURING_MAX_HEAD_DIM) {
            struct decode_plan plan =
                decode_plan(d, head_dim, heads_per_kv, n_pairs, max_kv_len, ampere);
            floats = MAX(floats, plan.scratch_floats);
        }
    }
    return floats;
}
