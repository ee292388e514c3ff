/* rows.cu - embed and gather: rows picked by index.
 *
 *   embed:  x[t] = table[token[t]], or table[sampled[-1 - token[t]]] for a negative token
 *   gather: out[i] = x[row[i]]
 *
 * A block of threads copies one row, 16 bytes a thread and turn. Bytes: two times those of the
 * rows; at decode sizes the launch is the cost.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

#define ROW_THREADS 128

/* Where row i comes from: index[i], or through `sampled` where that is negative. */
template <typename Word>
static __global__ void copy_rows_kernel(Word *out, const Word *in, const int *index,
                                        const int *sampled, int words)
{
    int row = index[blockIdx.x];
    next_kernel_start();
    if (row < 0)
        row = sampled[-1 - row];
    out += (size_t)blockIdx.x * words;
    in += (size_t)row * words;
    for (int i = threadIdx.x; i < words; i += ROW_THREADS)
        out[i] = in[i];
}

static void copy_rows(struct cuda_device *d, void *out, const void *in, const int *index,
                      const int *sampled, int n_rows, size_t row_bytes)
{
    if (n_rows == 0)
        return;
    if (row_bytes % sizeof(uint4) == 0)
        copy_rows_kernel<<<n_rows, ROW_THREADS, 0, d->stream>>>(
            (uint4 *)out, (const uint4 *)in, index, sampled, (int)(row_bytes / sizeof(uint4)));
    else
        copy_rows_kernel<<<n_rows, ROW_THREADS, 0, d->stream>>>(
            (uint16_t *)out, (const uint16_t *)in, index, sampled,
            (int)(row_bytes / sizeof(uint16_t)));
    CUDA_CHECK_LAUNCH();
}

void cuda_embed(struct device *device, void *x, const struct weight *table, const int *token,
                const int *sampled, int n_tokens)
{
    struct cuda_device *d = cuda_device(device);
    assert(table->dtype == d->base.act_dtype);
    copy_rows(d, x, table->data, token, sampled, n_tokens,
              (size_t)table->n_in * dtype_bytes(table->dtype));
}

void cuda_gather(struct device *device, void *out, const void *x, const int *row, int n_rows,
                 int dim)
{
    struct cuda_device *d = cuda_device(device);
    copy_rows(d, out, x, row, NULL, n_rows, (size_t)dim * dtype_bytes(d->base.act_dtype));
}
