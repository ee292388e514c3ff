/* silu_mul.cu - out = silu(gate) up.
 *
 * gate_up: [n_rows, 2 dim], gates first; out: [n_rows, dim]. A thread takes 16 bytes of each.
 * Bytes: 3 dim elements a row.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/silu_mul.cuh"

#define SILU_THREADS 128

/* grid: (n_rows, blocks of a row) */
template <typename T, int V>
static __global__ void silu_mul_kernel(T *out, const T *gate_up, int dim)
{
    next_kernel_start();
    previous_kernel_wait();
    int i = (blockIdx.y * SILU_THREADS + threadIdx.x) * V;
    if (i >= dim)
        return;
    size_t row = blockIdx.x, from = row * 2 * dim + i;
    pack<T, V> gate = load_pack<T, V>(gate_up, from), up = load_pack<T, V>(gate_up, from + dim);
    for (int v = 0; v < V; v++)
        gate.x[v] = from_float<T>(silu_mul(gate.x[v], up.x[v]));
    store_pack<T, V>(out, row * dim + i, gate);
}

template <typename T, int V>
static void silu_mul(const struct cuda_device *d, T *out, const T *gate_up, int n_rows, int dim)
{
    dim3 grid((unsigned)n_rows, (unsigned)CEIL_DIV(dim / V, SILU_THREADS));
    cuda_launch_early(d, silu_mul_kernel<T, V>, grid, SILU_THREADS, 0, out, gate_up, dim);
}

void cuda_silu_mul(const struct cuda_device *d, void *out, const void *gate_up, int n_rows, int dim)
{
    CUDA_DISPATCH(d->base.act_dtype, T, {
        const int V = 16 / sizeof(T);
        if (dim % V == 0)
            silu_mul<T, V>(d, (T *)out, (const T *)gate_up, n_rows, dim);
        else
            silu_mul<T, 1>(d, (T *)out, (const T *)gate_up, n_rows, dim);
    });
}
