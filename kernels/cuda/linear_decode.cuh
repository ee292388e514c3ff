/* linear_decode.cuh - y = x W^T for few rows of x, on compute capability 9.0.
 *
 * An element of y is one chain of tensor-core products over ascending columns, sixteen at a time,
 * whatever the number of rows: its bits depend on its row of x and its row of W alone.
 */
#ifndef QUIRE_CUDA_LINEAR_DECODE_CUH
#define QUIRE_CUDA_LINEAR_DECODE_CUH

#include "kernels/cuda/cuda.cuh"

#define LINEAR_DECODE_MAX_ROWS 256 /* beyond, the library is faster */
#define LINEAR_DECODE_TILES                                                                        \
    {                                                                                              \
        16, 32, 64, 96                                                                             \
    }

struct linear_decode_args {
    void *y;       /* [n_rows, n_out] of out_dtype, or of the device's act_dtype */
    const void *x; /* [n_rows, n_in] of act_dtype, 16-byte aligned               */
    const void *w; /* [n_out, n_in] of act_dtype, 16-byte aligned                */
    int n_rows, n_out, n_in;
    int tile_rows; /* rows of W that a block of threads takes at a time, of LINEAR_DECODE_TILES */
    enum dtype out_dtype;
};

/* Whether there is a kernel for the device and its act_dtype, these sizes and up to n_rows rows. */
bool linear_decode_can(const struct cuda_device *d, int n_out, int n_in, int n_rows);

/* Enqueues the product. The kernel may start before the one ahead of it in the stream has ended:
 * nothing that has yet to be enqueued or to end may write W. */
void linear_decode(const struct cuda_device *d, const struct linear_decode_args *args);

#endif
