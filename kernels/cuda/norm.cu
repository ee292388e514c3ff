/* norm.cu - residual += delta; out = residual / rms(residual) * gain. delta may be of a product
 * whose parts are added here.
 *
 * A block of threads takes a row: each thread adds and keeps its elements in registers, the sum of
 * squares is reduced in an order that dim alone decides, and the same elements are scaled. The sum
 * residual + delta is rounded before it is normalised, so that a row is the same whether delta was
 * added here or before. Bytes: residual read and written, delta read, out written: 8 dim a row in
 * 16-bit types.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

#define MAX_PACKS 4 /* held by a thread: 4 x 1024 threads x 4 elements bound dim */

/* Sum over the block, in every thread. */
static __device__ __forceinline__ float block_sum(float x)
{
    __shared__ float part[CUDA_MAX_THREADS / CUDA_WARP];
    int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP;
    x = warp_sum(x);
    if (lane == 0)
        part[warp] = x;
    __syncthreads();
    return warp_sum(lane < blockDim.x / CUDA_WARP ? part[lane] : 0);
}

/* What is added to V neighbours, the first at i of n. PARTS = 1: delta is [n] of T, else [PARTS][n]
 * f32, sums that are rounded as the product would have. */
template <typename T, int V, int PARTS>
static __device__ __forceinline__ void load_delta(float out[V], const void *delta, size_t i,
                                                  size_t n)
{
    if constexpr (PARTS == 1) {
        pack<T, V> x = load_pack<T, V>((const T *)delta, i);
        for (int v = 0; v < V; v++)
            out[v] = to_float(x.x[v]);
    } else {
        pack<float, V> part[PARTS];
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            part[p] = load_pack<float, V>((const float *)delta, p * n + i);
        for (int v = 0; v < V; v++) {
            float sum = part[0].x[v];
            for (int p = 1; p < PARTS; p++)
                sum += part[p].x[v];
            out[v] = to_float(from_float<T>(sum));
        }
    }
}

/* out, residual: [n_rows, dim]; delta: likewise, as load_delta() takes it. The gain is there before
 * the step, and that of a thread's first elements is read before the wait: most rows have no more.
 */
template <typename T, int V, int PACKS, int PARTS>
static __global__ void __launch_bounds__(CUDA_MAX_THREADS)
    add_rmsnorm_kernel(T *out, T *residual, const void *delta, const float *gain, int dim,
                       float eps)
{
    next_kernel_start();
    size_t row = (size_t)blockIdx.x * dim;
    pack<T, V> x[PACKS];
    float first_gain[V], squares = 0;
    for (int v = 0; v < V; v++)
        first_gain[v] = threadIdx.x * V < dim ? gain[threadIdx.x * V + v] : 0;
    previous_kernel_wait();
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        int i = (p * blockDim.x + threadIdx.x) * V;
        if (i >= dim)
            break;
        x[p] = load_pack<T, V>(residual, row + i);
        if (delta) {
            float add[V];
            load_delta<T, V, PARTS>(add, delta, row + i, (size_t)gridDim.x * dim);
            for (int v = 0; v < V; v++)
                x[p].x[v] = from_float<T>(to_float(x[p].x[v]) + add[v]);
            store_pack<T, V>(residual, row + i, x[p]);
        }
        for (int v = 0; v < V; v++)
            squares += to_float(x[p].x[v]) * to_float(x[p].x[v]);
    }
    float scale = 1.0f / sqrtf(block_sum(squares) / dim + eps);
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        int i = (p * blockDim.x + threadIdx.x) * V;
        if (i >= dim)
            break;
        for (int v = 0; v < V; v++) {
            float g = p == 0 ? first_gain[v] : gain[i + v];
            x[p].x[v] = from_float<T>(to_float(x[p].x[v]) * scale * g);
        }
        store_pack<T, V>(out, row + i, x[p]);
    }
}

template <typename T, int V, int PARTS>
static void add_rmsnorm(const struct cuda_device *d, T *out, T *residual, const void *delta,
                        const float *gain, int n_rows, int dim, float eps)
{
    int n_packs = CEIL_DIV(dim, V);
    int packs = CEIL_DIV(n_packs, CUDA_MAX_THREADS);
    int threads = CEIL_DIV(CEIL_DIV(n_packs, packs), CUDA_WARP) * CUDA_WARP;
    assert(packs <= MAX_PACKS);
    cuda_launch_early(d,
                      packs == 1 ? add_rmsnorm_kernel<T, V, 1, PARTS>
                                 : add_rmsnorm_kernel<T, V, MAX_PACKS, PARTS>,
                      dim3((unsigned)n_rows), threads, 0, out, residual, delta, gain, dim, eps);
}

void cuda_add_rmsnorm(struct device *device, void *out, void *residual, const void *delta,
                      const float *gain, int n_rows, int dim, float eps)
{
    struct cuda_device *d = cuda_device(device);
    if (n_rows == 0)
        return;
    CUDA_DISPATCH(d->base.act_dtype, T, {
        const int V = 16 / sizeof(T);
        if (dim % V == 0)
            add_rmsnorm<T, V, 1>(d, (T *)out, (T *)residual, delta, gain, n_rows, dim, eps);
        else
            add_rmsnorm<T, 1, 1>(d, (T *)out, (T *)residual, delta, gain, n_rows, dim, eps);
    });
}

void cuda_linear_add_rmsnorm(struct device *device, void *out, void *residual,
                             const struct linear_args *delta, const float *gain, float eps)
{
    struct cuda_device *d = cuda_device(device);
    int n_rows = delta->n_rows, dim = delta->weight->n_out;
    const float *parts = cuda_linear_parts(d, delta);
    if (!parts) {
        cuda_linear(device, delta);
        cuda_add_rmsnorm(device, out, residual, delta->out, gain, n_rows, dim, eps);
        return;
    }
    CUDA_DISPATCH(d->base.act_dtype, T, {
        const int V = 16 / sizeof(T); /* rows in parts are whole packs */
        add_rmsnorm<T, V, CUDA_LINEAR_PARTS>(d, (T *)out, (T *)residual, parts, gain, n_rows, dim,
                                             eps);
    });
}
