/* cuda.cuh - inside of the CUDA backend: the device, error checks, element types.
 *
 * The backend is one shared object, quire_cuda.so. It uses the engine/util.c of the executable that
 * opens it (one error message per thread, one log level), and exports backend_cuda and cuda_probe.
 */
#ifndef QUIRE_CUDA_CUH
#define QUIRE_CUDA_CUH

#include <assert.h>
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <jansson.h> /* before the block below: it must not be given C linkage twice */

#define _Noreturn __attribute__((noreturn)) /* C17 spelling, in headers shared with C++ */
extern "C" {
#include "kernels/backend.h"
}

#define CUDA_WARP        32
#define CUDA_MAX_THREADS 1024 /* of a block */

/* ---- the device ----------------------------------------------------------------------------- */

struct cuda_linear;  /* linear.cu */
struct cuda_loader;  /* weight.cu */
struct cuda_marks;   /* mark.cu */
struct cuda_staging; /* transfer.cu */

struct cuda_device {
    struct device base; /* first, so that a struct device * is a struct cuda_device * */
    int index;
    cudaStream_t stream; /* of all operations and copies */
    int n_sms;
    size_t shared_per_block; /* bytes of shared memory that a block may opt in to */
    bool overlaps;           /* see cuda_launch_early()                           */
    struct cuda_linear *linear;
    struct cuda_loader *loader; /* NULL: no weights are being loaded */
    struct cuda_staging *staging;
    struct cuda_marks *marks;
    /* Scratch of attention alone, set to zero once by reserve(): see attention.h. */
    void *attention_workspace;
    size_t attention_workspace_bytes;
    void *sample_workspace; /* see sample.cu */
    size_t sample_workspace_bytes;
    void *gate_workspace; /* of gated products: see linear.cu */
    size_t gate_workspace_bytes;
};

/* The device is lost or a launch is wrong: nothing that a caller could mend. */
#define CUDA_CHECK(call)                                                                           \
    do {                                                                                           \
        cudaError_t cuda_error = (call);                                                           \
        if (cuda_error != cudaSuccess)                                                             \
            die("CUDA: %s: %s", #call, cudaGetErrorString(cuda_error));                            \
    } while (0)

/* After each launch; errors of the kernel itself come up at the next wait. */
#define CUDA_CHECK_LAUNCH() CUDA_CHECK(cudaGetLastError())

#define CUBLAS_CHECK(call)                                                                         \
    do {                                                                                           \
        cublasStatus_t cublas_status = (call);                                                     \
        if (cublas_status != CUBLAS_STATUS_SUCCESS)                                                \
            die("cuBLASLt: %s: %s", #call, cublasLtGetStatusString(cublas_status));                \
    } while (0)

/* The device behind the interface, which becomes the current one of the calling thread: CUDA keeps
 * a current device per thread, and an engine may run on another thread than the one that opened it.
 */
static inline struct cuda_device *cuda_device(struct device *device)
{
    struct cuda_device *d = (struct cuda_device *)(void *)device;
    CUDA_CHECK(cudaSetDevice(d->index));
    return d;
}

/* Fills in n_sms and shared_per_block from the current device. */
static inline void cuda_device_read_limits(struct cuda_device *d)
{
    int device, n_sms, per_block;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
    CUDA_CHECK(cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    d->n_sms = n_sms;
    d->shared_per_block = (size_t)per_block;
}

/* Launches a kernel that may start before the one ahead of it in the stream has ended, where the
 * library's code for the GPU can wait for that (d->overlaps). Each of its blocks calls
 * previous_kernel_wait() before it reads what kernels ahead wrote and before it writes what they
 * use. Those may have been launched in this way too: what nobody waits for must have been there
 * before the first of them, which is always launched in the ordinary way. _clusters: n_blocks
 * neighbours reach each other's shared memory, where d->overlaps. */
template <typename... Params, typename... Args>
static void cuda_launch_early_clusters(const struct cuda_device *d, void (*kernel)(Params...),
                                       dim3 grid, int n_blocks, int n_threads, int shared_bytes,
                                       const Args &...args)
{
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {(unsigned)n_blocks, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)n_threads);
    config.dynamicSmemBytes = (size_t)shared_bytes;
    config.stream = d->stream;
    config.attrs = attributes;
    config.numAttrs = !d->overlaps ? 0 : n_blocks > 1 ? 2 : 1;
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, Params(args)...));
}

template <typename... Params, typename... Args>
static void cuda_launch_early(const struct cuda_device *d, void (*kernel)(Params...), dim3 grid,
                              int n_threads, int shared_bytes, const Args &...args)
{
    cuda_launch_early_clusters(d, kernel, grid, 1, n_threads, shared_bytes, args...);
}

/* Whether the library's code for the GPU has products of warp groups, which are 9.0's alone. */
static inline bool cuda_has_warp_groups(const struct cuda_device *d)
{
    return d->overlaps && d->base.info.compute_major == 9;
}

/* ---- elements ------------------------------------------------------------------------------- */

static __host__ __device__ __forceinline__ float to_float(float x)
{
    return x;
}
static __host__ __device__ __forceinline__ float to_float(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
static __host__ __device__ __forceinline__ float to_float(__half x)
{
    return __half2float(x);
}

/* x rounded to the nearest (even) T. */
template <typename T> static __host__ __device__ __forceinline__ T from_float(float x);
template <> __host__ __device__ __forceinline__ float from_float<float>(float x)
{
    return x;
}
template <> __host__ __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <> __host__ __device__ __forceinline__ __half from_float<__half>(float x)
{
    return __float2half_rn(x);
}

/* V neighbours that one instruction loads or stores. */
template <typename T, int V> struct __align__(sizeof(T) * V) pack
{
    T x[V];
};

template <typename T, int V>
static __device__ __forceinline__ pack<T, V> load_pack(const T *array, size_t i)
{
    return *reinterpret_cast<const pack<T, V> *>(array + i);
}

template <typename T, int V>
static __device__ __forceinline__ void store_pack(T *array, size_t i, pack<T, V> value)
{
    *reinterpret_cast<pack<T, V> *>(array + i) = value;
}

/* Runs the statement with the type named T that stands for the dtype. */
#define CUDA_DISPATCH(dtype, T, ...)                                                               \
    do {                                                                                           \
        switch (dtype) {                                                                           \
        case DTYPE_F32: {                                                                          \
            using T = float;                                                                       \
            __VA_ARGS__;                                                                           \
        } break;                                                                                   \
        case DTYPE_BF16: {                                                                         \
            using T = __nv_bfloat16;                                                               \
            __VA_ARGS__;                                                                           \
        } break;                                                                                   \
        case DTYPE_F16: {                                                                          \
            using T = __half;                                                                      \
            __VA_ARGS__;                                                                           \
        } break;                                                                                   \
        default: assert(!"dtype");                                                                 \
        }                                                                                          \
    } while (0)

static __device__ __forceinline__ float element_get(const void *array, enum dtype dtype, size_t i)
{
    if (dtype == DTYPE_F32)
        return ((const float *)array)[i];
    if (dtype == DTYPE_BF16)
        return __bfloat162float(((const __nv_bfloat16 *)array)[i]);
    return __half2float(((const __half *)array)[i]);
}

static __device__ __forceinline__ void element_set(void *array, enum dtype dtype, size_t i, float x)
{
    if (dtype == DTYPE_F32)
        ((float *)array)[i] = x;
    else if (dtype == DTYPE_BF16)
        ((__nv_bfloat16 *)array)[i] = __float2bfloat16_rn(x);
    else
        ((__half *)array)[i] = __float2half_rn(x);
}

/* ---- sums ----------------------------------------------------------------------------------- */

/* Sum over the lanes of a warp, in every lane, in the order of a butterfly. */
static __device__ __forceinline__ float warp_sum(float x)
{
    for (int step = CUDA_WARP / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
    return x;
}

/* ---- the entries of backend_cuda, beside attention.h ---------------------------------------- */

extern "C" {

extern const struct backend backend_cuda; /* table.cu */

/* device.cu */
struct device *cuda_open(const struct device_options *options);
void cuda_close(struct device *device);
void *cuda_alloc(struct device *device, size_t bytes);
void *cuda_alloc_host(struct device *device, size_t bytes);
void cuda_free(struct device *device, void *memory);
void cuda_sync(struct device *device);
int cuda_reserve(struct device *device, const struct step_limits *limits);

/* transfer.cu */
void cuda_upload(struct device *device, void *dst, const void *host, size_t bytes);
void cuda_download(struct device *device, void *host, const void *src, size_t bytes);
void cuda_fetch_begin(struct device *device, int slot, const void *src, size_t bytes);
void cuda_fetch_end(struct device *device, int slot, void *host, size_t bytes);
void cuda_copy_blocks(struct device *device, const struct copy_blocks_args *args);

/* weight.cu */
int cuda_weight_load(struct device *device, struct weight *w, const struct weight_part *parts,
                     int n_parts);
void cuda_weight_free(struct device *device, struct weight *w);

void cuda_embed(struct device *device, void *x, const struct weight *table, const int *token,
                const int *sampled, int n_tokens);
void cuda_gather(struct device *device, void *out, const void *x, const int *row, int n_rows,
                 int dim);
void cuda_add_rmsnorm(struct device *device, void *out, void *residual, const void *delta,
                      const float *gain, int n_rows, int dim, float eps);
void cuda_linear(struct device *device, const struct linear_args *args);
void cuda_linear_add_rmsnorm(struct device *device, void *out, void *residual,
                             const struct linear_args *delta, const float *gain, float eps);
void cuda_rope_cache(struct device *device, const struct rope_cache_args *args);
void cuda_sample(struct device *device, const struct sample_args *args);
void cuda_sum_words(struct device *device, uint32_t *sum, const void *memory, size_t bytes);

/* graph.cu */
bool cuda_graph_begin(struct device *device);
struct graph *cuda_graph_end(struct device *device);
void cuda_graph_run(struct device *device, struct graph *graph);
void cuda_graph_free(struct device *device, struct graph *graph);

/* mark.cu */
int64_t cuda_mark(struct device *device);
double cuda_mark_read(struct device *device, int64_t mark);
}

/* ---- between the files ---------------------------------------------------------------------- */

/* What open() and close() call of each file. */
void cuda_staging_open(struct cuda_device *d);
void cuda_staging_close(struct cuda_device *d);
void cuda_marks_open(struct cuda_device *d);
void cuda_marks_close(struct cuda_device *d);
int cuda_linear_open(struct cuda_device *d); /* ERR_RESOURCE */
void cuda_linear_close(struct cuda_device *d);
void cuda_loader_close(struct cuda_device *d); /* accepts a device without one */

/* Whether the library's code for the current GPU is of compute capability 9.0 or later: a later GPU
 * may run code compiled for an earlier one. */
bool cuda_kernels_can_wait(void);

/* The product that gives queries, keys and values, and what rope_cache() does to them, in one
 * kernel where that is the faster way; false: nothing is done. */
struct rope_params; /* rope_cache.cuh */
bool cuda_linear_heads(struct cuda_device *d, const struct linear_args *args,
                       const struct rope_params *heads);

/* A product whose sums have parts, before these are added up: [CUDA_LINEAR_PARTS][n_rows][n_out]
 * f32 in scratch memory, until the next product. NULL: nothing is done, linear() is the way. */
#define CUDA_LINEAR_PARTS 2
const float *cuda_linear_parts(struct cuda_device *d, const struct linear_args *args);

/* A matrix is there (is about to go): linear.cu keeps the shapes that it will be asked for. */
void cuda_linear_add_weight(struct cuda_device *d, const struct weight *w);
void cuda_linear_remove_weight(struct cuda_device *d, const struct weight *w);
/* Chooses algorithms for products of up to these many rows with each matrix loaded so far. */
int cuda_linear_reserve(struct cuda_device *d, const struct step_limits *limits);
/* Scratch memory of gated products, which may need more when their algorithms are chosen. */
size_t cuda_gate_workspace_bytes(const struct cuda_device *d, const struct step_limits *limits);

/* out = silu(gate) up. gate_up: [n_rows, 2 dim] of act_dtype, gates first; out: [n_rows, dim] */
void cuda_silu_mul(const struct cuda_device *d, void *out, const void *gate_up, int n_rows,
                   int dim);

size_t cuda_sample_workspace_bytes(const struct step_limits *limits);

#endif
