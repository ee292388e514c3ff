/* linear_decode.cuh - products of few rows of x with W, on compute capability 9.0.
 *
 * The columns are n_parts equal ranges. Each gives a chain of tensor-core products over ascending
 * columns, sixteen at a time, and an element of x W^T is the sum of these chains in f32, in order,
 * whatever the number of rows: its bits depend on its row of x and its row of W alone. They are
 * those of linear_prefill.cuh. Several parts are left to be added up by whoever reads them.
 */
#ifndef QUIRE_CUDA_LINEAR_DECODE_CUH
#define QUIRE_CUDA_LINEAR_DECODE_CUH

#include "kernels/cuda/cuda.cuh"

#define LINEAR_DECODE_MAX_ROWS 256 /* beyond, the library is faster */

/* Rows of W that a block of threads takes at a time. */
#define LINEAR_DECODE_TILES                                                                        \
    {                                                                                              \
        16, 32, 48, 64, 96, 128                                                                    \
    }

struct rope_params; /* rope_cache.cuh */

struct linear_decode_args {
    void *y;       /* [n_rows, n_out] of out_dtype; gated: [n_rows, n_out / 2];
                      parts: [n_parts, n_rows, n_out] f32                      */
    const void *x; /* [n_rows, n_in] of act_dtype, 16-byte aligned             */
    const void *w; /* [n_out, n_in] of act_dtype, 16-byte aligned              */
    int n_rows, n_out, n_in;
    int n_parts;                     /* more than 1: neither gated nor heads     */
    enum dtype out_dtype;            /* act_dtype; or else DTYPE_F32             */
    bool gated;                      /* y = silu(x G^T) * (x U^T), W = G, then U */
    const struct rope_params *heads; /* or NULL: rope_cache() is done to y       */
    int tile_rows;                   /* one of LINEAR_DECODE_TILES; parts: < 96;
                                        heads: see linear_decode_can_heads()     */
};

/* Whether there is a kernel for the device and its act_dtype, these sizes and up to n_rows rows. */
bool linear_decode_can(const struct cuda_device *d, int n_out, int n_in, int n_parts, int n_rows);

/* Whether there is one that goes on with heads of this size, in tiles of so many rows. */
bool linear_decode_can_heads(const struct rope_params *heads, int tile_rows);

/* Enqueues the product. The kernel may start before the one ahead of it in the stream has ended:
 * nothing that has yet to be enqueued or to end may write W. */
void linear_decode(const struct cuda_device *d, const struct linear_decode_args *args);

#endif
