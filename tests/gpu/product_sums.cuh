/* product_sums.cuh - products x W^T as they are defined, bit for bit, for tests of those that are
 * fast.
 */
#ifndef QUIRE_TESTS_PRODUCT_SUMS_CUH
#define QUIRE_TESTS_PRODUCT_SUMS_CUH

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/silu_mul.cuh"

#include "tests/gpu/attention_device.cuh"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ERROR_ROWS 9    /* that are compared with double precision */
#define MAX_ERROR  1e-5 /* of a sum in f32 against the sum of its magnitudes */
#define ZERO_ROW   5    /* of x */

/* Of all elements from -1 to 1; another seed, others. */
template <typename T> static __global__ void fill_kernel(T *x, size_t n, uint32_t seed)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t h = ((uint32_t)i + seed) * 0x9E3779B1u;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    if (i < n)
        x[i] = from_float<T>((float)(int32_t)(h ^ h >> 15) * 0x1p-31f);
}

/* Two neighbours of a row, zeros where there is no such row. */
template <typename T>
static __device__ uint32_t load_two(const T *rows, int row, int n_rows, int column, int n_columns)
{
    return row < n_rows ? *(const uint32_t *)(rows + (size_t)row * n_columns + column) : 0;
}

/* A warp takes 16 rows of x and 8 of w, and n_k columns from `first` on.
 * grid: (n_out / 8, n_rows / 16), rounded up */
template <typename T>
static __global__ void chain_kernel(float *y, const T *x, const T *w, int n_rows, int n_out,
                                    int n_in, int first, int n_k)
{
#if PTX_AMPERE
    int row = blockIdx.y * 16 + threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
    int w_row = blockIdx.x * 8 + threadIdx.x / 4, column = blockIdx.x * 8 + pair;
    float c[4] = {};
    for (int k = first + pair; k < first + n_k; k += 16) {
        const uint32_t a[] = {
            load_two(x, row, n_rows, k, n_in), load_two(x, row + 8, n_rows, k, n_in),
            load_two(x, row, n_rows, k + 8, n_in), load_two(x, row + 8, n_rows, k + 8, n_in)};
        multiply_16x8x16(c, a, load_two(w, w_row, n_out, k, n_in),
                         load_two(w, w_row, n_out, k + 8, n_in), T());
    }
    for (int i = 0; i < 4; i++) {
        if (row + i / 2 * 8 < n_rows)
            y[(size_t)(row + i / 2 * 8) * n_out + column + i % 2] = c[i];
    }
#endif
}

/* sum: [n], part: [n_parts][n] */
static __global__ void add_parts_kernel(float *sum, const float *part, int n_parts, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    float total = part[i];
    for (int p = 1; p < n_parts; p++)
        total += part[p * n + i];
    sum[i] = total;
}

/* The error of an element against the sum of its magnitudes, in double precision. */
template <typename T>
static __global__ void error_kernel(float *error, const float *y, const T *x, const T *w, int n_out,
                                    int n_in, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    double sum = 0, magnitude = 0;
    for (int k = 0; k < n_in; k++) {
        double product =
            (double)to_float(x[i / n_out * n_in + k]) * to_float(w[i % n_out * n_in + k]);
        sum += product;
        magnitude += fabs(product);
    }
    error[i] = (float)(fabs(sum - y[i]) / magnitude);
}

/* y as it should be. */
template <typename T, typename Out>
static __device__ Out expected(const float *chain, size_t i, int n_columns, bool gated)
{
    size_t gate = i / n_columns * 2 * n_columns + i % n_columns;
    if (!gated)
        return from_float<Out>(chain[i]);
    return from_float<Out>(
        silu_mul(from_float<T>(chain[gate]), from_float<T>(chain[gate + n_columns])));
}

/* n elements, then a row of all ones. */
template <typename T, typename Out>
static __global__ void compare_kernel(int *n_wrong, const Out *y, const float *chain, size_t n,
                                      int n_columns, bool gated)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n + n_columns)
        return;
    Out right = {};
    if (i < n)
        right = expected<T, Out>(chain, i, n_columns, gated);
    const unsigned char *got = (const unsigned char *)(y + i);
    for (size_t b = 0; b < sizeof(Out); b++) {
        if (got[b] != (i < n ? ((const unsigned char *)&right)[b] : 0xFF))
            atomicAdd(n_wrong, 1);
    }
}

static unsigned blocks_of(size_t n)
{
    return (unsigned)CEIL_DIV(n, (size_t)256);
}

/* Of n errors on the device, once they are there. */
static float largest_of(const struct cuda_device *d, const float *errors, size_t n)
{
    float *host = (float *)malloc(n * sizeof(float)), largest = 0;
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    CUDA_CHECK(cudaMemcpy(host, errors, n * sizeof(float), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++)
        largest = fmaxf(largest, host[i]);
    free(host);
    return largest;
}

/* ---- a case of a test ---- */

struct product_case {
    int n_out, n_in, n_parts;
};

struct product_arrays {
    char *x, *w;
    char *y;      /* [n_parts][n_rows, n_out] f32, or fewer and smaller; then a row */
    float *chain; /* [n_parts][n_rows, n_out], then their sum                       */
    float *error;
    int *n_wrong; /* bytes */
};

/* For up to max_rows rows, of which one is zeros. */
template <typename T>
static struct product_arrays arrays_make(const struct cuda_device *d, const struct product_case *c,
                                         int max_rows)
{
    size_t n_in = (size_t)c->n_in, n_out = (size_t)c->n_out, n_y = (size_t)max_rows * n_out;
    size_t n_x = (size_t)max_rows * n_in, n_w = n_out * n_in, n_parts = (size_t)c->n_parts;
    const struct product_arrays a = {(char *)gpu_alloc(n_x * sizeof(T)),
                                     (char *)gpu_alloc(n_w * sizeof(T)),
                                     (char *)gpu_alloc((n_parts * n_y + n_out) * sizeof(float)),
                                     (float *)gpu_alloc((n_parts + 1) * n_y * sizeof(float)),
                                     (float *)gpu_alloc(ERROR_ROWS * n_out * sizeof(float)),
                                     (int *)gpu_alloc(sizeof(int))};
    CUDA_CHECK(cudaMemset(a.n_wrong, 0, sizeof(int)));
    fill_kernel<<<blocks_of(n_x), 256, 0, d->stream>>>((T *)a.x, n_x, 1);
    fill_kernel<<<blocks_of(n_w), 256, 0, d->stream>>>((T *)a.w, n_w, 12345);
    CUDA_CHECK(cudaMemsetAsync((T *)a.x + ZERO_ROW * n_in, 0, n_in * sizeof(T), d->stream));
    return a;
}

/* The sums of all rows, behind those of each part. */
static float *total_of(const struct product_arrays *a, const struct product_case *c, int n_rows)
{
    return a->chain + (size_t)c->n_parts * (size_t)n_rows * (size_t)c->n_out;
}

/* Makes the chains of some rows and their sums; the largest error of the first. */
template <typename T>
static float arrays_sum(const struct cuda_device *d, const struct product_arrays *a,
                        const struct product_case *c, int n_rows)
{
    dim3 grid((unsigned)(c->n_out / 8), (unsigned)CEIL_DIV(n_rows, 16));
    size_t n_all = (size_t)n_rows * (size_t)c->n_out;
    size_t n = (size_t)MIN(n_rows, ERROR_ROWS) * (size_t)c->n_out;
    const T *x = (const T *)a->x, *w = (const T *)a->w;
    float *total = total_of(a, c, n_rows);
    for (int part = 0, n_k = c->n_in / c->n_parts; part < c->n_parts; part++)
        chain_kernel<<<grid, CUDA_WARP, 0, d->stream>>>(a->chain + (size_t)part * n_all, x, w,
                                                        n_rows, c->n_out, c->n_in, part * n_k, n_k);
    add_parts_kernel<<<blocks_of(n_all), 256, 0, d->stream>>>(total, a->chain, c->n_parts, n_all);
    error_kernel<<<blocks_of(n), 256, 0, d->stream>>>(a->error, total, x, w, c->n_out, c->n_in, n);
    CUDA_CHECK_LAUNCH();
    return largest_of(d, a->error, n);
}

/* Counts the bytes of y that differ from what n sums give, and of the row behind it from ones. */
template <typename T, typename Out>
static void arrays_compare(const struct cuda_device *d, const struct product_arrays *a,
                           const float *sums, size_t n, int n_columns, bool gated)
{
    compare_kernel<T><<<blocks_of(n + (size_t)n_columns), 256, 0, d->stream>>>(
        a->n_wrong, (const Out *)a->y, sums, n, n_columns, gated);
    CUDA_CHECK_LAUNCH();
}

/* Prints what came out and frees the arrays; whether all was right. */
static bool arrays_end(const struct cuda_device *d, struct product_arrays *a,
                       const struct product_case *c, float error)
{
    int n_wrong;
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    CUDA_CHECK(cudaMemcpy(&n_wrong, a->n_wrong, sizeof(int), cudaMemcpyDeviceToHost));
    bool good = n_wrong == 0 && error < MAX_ERROR;
    printf("%-4s %s %dx%d in %d parts: %d bytes differ, error %.1e\n", good ? "ok" : "FAIL",
           dtype_name(d->base.act_dtype), c->n_out, c->n_in, c->n_parts, n_wrong, error);
    fflush(stdout);
    void *const memory[] = {a->x, a->w, a->y, a->chain, a->error, a->n_wrong};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        gpu_free(memory[i]);
    return good;
}

#endif
