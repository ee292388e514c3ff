/* linear_prefill.cuh - products of many rows of x with W, on compute capability 9.0.
 *
 * The columns of x and W are n_parts equal ranges. Each gives a chain of tensor-core products over
 * ascending columns, sixteen at a time, from zero; an element of x W^T is the sum of these chains,
 * ((s0 + s1) + s2) + ..., in f32. So its bits depend on its row of x and its row of W alone, and
 * with one part they are those of linear_decode.cuh and of the library.
 */
#ifndef QUIRE_CUDA_LINEAR_PREFILL_CUH
#define QUIRE_CUDA_LINEAR_PREFILL_CUH

#include "kernels/cuda/cuda.cuh"

struct linear_prefill_args {
    void *y;       /* [n_rows, n_out] of out_dtype; gated: [n_rows, n_out / 2] */
    const void *x; /* [n_rows, n_in] of act_dtype, 16-byte aligned             */
    const void *w; /* [n_out, n_in] of act_dtype, 16-byte aligned              */
    int n_rows, n_out, n_in, n_parts;
    enum dtype out_dtype; /* act_dtype; or else DTYPE_F32             */
    bool gated;           /* y = silu(x G^T) * (x U^T), W = G, then U */
};

/* Whether there is a kernel for the device and its act_dtype, and these sizes. */
bool linear_prefill_can(const struct cuda_device *d, int n_out, int n_in, int n_parts);

/* Enqueues the product. The kernel may start before the one ahead of it in the stream has ended:
 * nothing that has yet to be enqueued or to end may write W. */
void linear_prefill(const struct cuda_device *d, const struct linear_prefill_args *args);

#endif
