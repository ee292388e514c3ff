/* linear.cuh - how a matrix is multiplied with: the plan that linear_choose.cu makes and linear.cu
 * follows.
 */
#ifndef QUIRE_CUDA_LINEAR_CUH
#define QUIRE_CUDA_LINEAR_CUH

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/linear_decode.cuh"
#include "kernels/cuda/linear_prefill.cuh"

#define LINEAR_WORKSPACE_BYTES ((size_t)32 << 20) /* what the library asks for on Hopper      */
#define LINEAR_ALIGNMENT       16                 /* bytes, of x, W and y: callers promise it  */
#define LINEAR_RANGES          9                  /* of numbers of rows: see linear_choose.cu  */
#define LINEAR_CHECK_ROWS      512                /* the most that a self-check multiplies     */

/* Rows in scratch memory at once where gates are a kernel of their own: all of a step of the
 * default size. 8192 rows of 6144x1024 in pieces of 2048, which fit into the L2 cache, took 205 us;
 * whole, the product takes 133 and the gates 36 us (H200). */
#define LINEAR_GATE_ROWS 8192

/* The smaller of the two tiles of products that go on with heads: that of heads of any size. */
#define LINEAR_HEADS_TILE 64

enum algorithm_kind { OF_LIBRARY, OF_DECODE, OF_PREFILL }; /* whose: or of which of our files */

struct algorithm {
    enum algorithm_kind kind;
    int tile_rows; /* OF_DECODE  */
    cublasLtMatmulAlgo_t library;
};

/* What a product is, whatever the number of rows. */
struct product_shape {
    int n_out, n_in; /* of W */
    bool gated;
    enum dtype out_dtype;
};

struct plan {
    struct product_shape shape;
    int n_ranges;       /* with an algorithm: those that reserve() asked for  */
    int n_parts;        /* chains of products that a sum is made of           */
    bool plain;         /* no algorithm passes the self-check                 */
    bool library_first; /* where a range's algorithms are not timed           */
    cublasLtMatmulDesc_t product;
    struct algorithm algo[LINEAR_RANGES];
    int heads_tile[LINEAR_RANGES]; /* of products that go on with heads; 0: none pays */
};

/* A product of some rows. */
struct product {
    void *y;       /* [n_rows, product_columns()] */
    const void *x; /* [n_rows, n_in]              */
    const void *w;
    const float *bias; /* [n_out] or NULL; with one, gates are a kernel of their own */
    int n_rows;        /* gated: what scratch memory holds, where gates are left      */
};

static inline int product_columns(const struct product_shape *s)
{
    return s->gated ? s->n_out / 2 : s->n_out;
}

/* The operands' layouts, column-major: W and x are [n_in, ...], y is [n_out, n_rows]. */
struct linear_layouts {
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

/* linear.cu */
cublasLtHandle_t linear_library(const struct cuda_device *d);
void linear_layouts_init(struct linear_layouts *l, const struct cuda_device *d,
                         const struct product_shape *shape, int n_rows);
/* Enqueues the product, unless the library says that it cannot do it with this algorithm. */
cublasStatus_t linear_run(const struct cuda_device *d, const struct plan *p,
                          const struct algorithm *algo, const struct product *product);

/* linear_choose.cu */
int linear_range_of(int n_rows); /* the range that so many rows are in */
/* Fills in the algorithms of the first n_ranges ranges; w: a matrix of the plan's shape. */
int linear_choose(struct plan *p, struct cuda_device *d, const void *w, int n_ranges);

#endif
