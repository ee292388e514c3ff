/* table.cu - backend_cuda: the table that backend_find looks up in quire_cuda.so. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.cuh"

extern "C" __attribute__((visibility("default"))) const struct backend backend_cuda = {
    .kind = DEVICE_CUDA,
    .open = cuda_open,
    .close = cuda_close,
    .alloc = cuda_alloc,
    .alloc_host = cuda_alloc_host,
    .free = cuda_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .fetch_begin = cuda_fetch_begin,
    .fetch_end = cuda_fetch_end,
    .copy_blocks = cuda_copy_blocks,
    .sync = cuda_sync,
    .reserve = cuda_reserve,
    .weight_load = cuda_weight_load,
    .weight_free = cuda_weight_free,
    .embed = cuda_embed,
    .add_rmsnorm = cuda_add_rmsnorm,
    .linear = cuda_linear,
    .rope_cache = cuda_rope_cache,
    .attention = cuda_attention,
    .silu_mul = cuda_silu_mul,
    .gather = cuda_gather,
    .sample = cuda_sample,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_run = cuda_graph_run,
    .graph_free = cuda_graph_free,
};
