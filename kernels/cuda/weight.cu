/* weight.cu - matrices from host memory to the GPU: [n_out, n_in] row-major, as the host has them.
 *
 * The source is a mapped file, often in the page cache only. Reading it costs a host thread about
 * 5 GB/s, the bus takes 55: so several threads each carry chunks through their own pair of pinned
 * buffers, filling one while the other is copied. Where the dtype differs, the chunk goes to a
 * piece of device memory first and a kernel converts it from there. Rows that are drawn never are
 * in host memory.
 */
#include "kernels/cuda/cuda.cuh"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* Threads that carry: more do not help against the page faults of one address space. */
#define MAX_CARRIERS 8
#define N_BUFFERS    2 /* of each carrier */
#define CHUNK_BYTES  ((size_t)2 << 20)

struct cuda_loader {
    int n_carriers;
    char *pinned; /* [n_carriers][N_BUFFERS][CHUNK_BYTES] */
    char *device; /* the same, on the device              */
    cudaEvent_t done[MAX_CARRIERS][N_BUFFERS];
    int turn[MAX_CARRIERS]; /* chunks carried so far */
};

/* ---- conversion ---- */

template <typename To, typename From>
static __global__ void convert_kernel(To *to, const From *from, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        to[i] = from_float<To>(to_float(from[i]));
}

template <typename To>
static void convert(To *to, const void *from, enum dtype from_dtype, size_t n, cudaStream_t stream)
{
    const int n_threads = 256;
    CUDA_DISPATCH(from_dtype, From,
                  convert_kernel<To, From>
                  <<<(unsigned)CEIL_DIV(n, (size_t)n_threads), n_threads, 0, stream>>>(
                      to, (const From *)from, n));
    CUDA_CHECK_LAUNCH();
}

/* ---- carrying ---- */

static int loader_open(struct cuda_device *d)
{
    if (d->loader)
        return 0;
    struct cuda_loader *l = (struct cuda_loader *)xcalloc(1, sizeof(*l));
    l->n_carriers = MIN(MAX(omp_get_num_procs(), 1), MAX_CARRIERS);
    size_t bytes = (size_t)l->n_carriers * N_BUFFERS * CHUNK_BYTES;
    l->device = (char *)cuda_alloc(&d->base, bytes);
    if (!l->device) {
        free(l);
        return -1;
    }
    CUDA_CHECK(cudaMallocHost((void **)&l->pinned, bytes));
    for (int c = 0; c < l->n_carriers; c++)
        for (int b = 0; b < N_BUFFERS; b++)
            CUDA_CHECK(cudaEventCreateWithFlags(&l->done[c][b], cudaEventDisableTiming));
    d->loader = l;
    return 0;
}

void cuda_loader_close(struct cuda_device *d)
{
    struct cuda_loader *l = d->loader;
    if (!l)
        return;
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    for (int c = 0; c < l->n_carriers; c++)
        for (int b = 0; b < N_BUFFERS; b++)
            CUDA_CHECK(cudaEventDestroy(l->done[c][b]));
    CUDA_CHECK(cudaFreeHost(l->pinned));
    cuda_free(&d->base, l->device);
    free(l);
    d->loader = NULL;
}

/* n elements of the part from element `first` on, to element `first` of to. */
static void carry_chunk(struct cuda_device *d, int carrier, void *to, enum dtype to_dtype,
                        const struct weight_part *part, size_t first, size_t n)
{
    struct cuda_loader *l = d->loader;
    int buffer = l->turn[carrier]++ % N_BUFFERS;
    size_t at = (size_t)(carrier * N_BUFFERS + buffer) * CHUNK_BYTES;
    size_t from_bytes = dtype_bytes(part->dtype), to_bytes = dtype_bytes(to_dtype);
    bool same = part->dtype == to_dtype;
    char *target = (char *)to + first * to_bytes;
    CUDA_CHECK(cudaEventSynchronize(l->done[carrier][buffer]));
    memcpy(l->pinned + at, (const char *)part->rows + first * from_bytes, n * from_bytes);
    CUDA_CHECK(cudaMemcpyAsync(same ? target : l->device + at, l->pinned + at, n * from_bytes,
                               cudaMemcpyHostToDevice, d->stream));
    if (!same)
        CUDA_DISPATCH(to_dtype, To,
                      convert((To *)target, l->device + at, part->dtype, n, d->stream));
    CUDA_CHECK(cudaEventRecord(l->done[carrier][buffer], d->stream));
}

static void carry_part(struct cuda_device *d, void *to, enum dtype to_dtype,
                       const struct weight_part *part, size_t n)
{
    size_t chunk = CHUNK_BYTES / dtype_bytes(part->dtype);
    int n_chunks = (int)CEIL_DIV(n, chunk);
#pragma omp parallel num_threads(MAX(MIN(d->loader->n_carriers, n_chunks), 1))
    {
        CUDA_CHECK(cudaSetDevice(d->index));
#pragma omp for schedule(dynamic)
        for (int i = 0; i < n_chunks; i++) {
            size_t first = (size_t)i * chunk;
            carry_chunk(d, omp_get_thread_num(), to, to_dtype, part, first, MIN(chunk, n - first));
        }
    }
}

/* ---- drawing ---- */

/* to: n elements; a thread draws two. */
template <typename T>
static __global__ void draw_kernel(T *to, uint64_t stream, size_t n,
                                   const __grid_constant__ struct random_bell bell)
{
    __shared__ uint16_t value[BYTE_SUMS];
    for (int i = threadIdx.x; i < BYTE_SUMS; i += blockDim.x)
        value[i] = bell.value[i];
    __syncthreads();
    for (size_t pair = (size_t)blockIdx.x * blockDim.x + threadIdx.x; 2 * pair < n;
         pair += (size_t)gridDim.x * blockDim.x) {
        uint32_t sum[2];
        random_sums(sum, stream, pair);
        for (size_t i = 0; i < 2 && 2 * pair + i < n; i++)
            to[2 * pair + i] = from_float<T>(to_float(__ushort_as_bfloat16(value[sum[i]])));
    }
}

static void draw_part(const struct cuda_device *d, void *to, enum dtype to_dtype,
                      const struct random_rows *random, size_t n)
{
    const int n_threads = 512, blocks_per_sm = 4;
    CUDA_DISPATCH(to_dtype, T,
                  draw_kernel<<<(unsigned)(d->n_sms * blocks_per_sm), n_threads, 0, d->stream>>>(
                      (T *)to, random->stream, n, *random->bell));
    CUDA_CHECK_LAUNCH();
}

/* ---- entries ---- */

static int load_part(struct cuda_device *d, void *to, enum dtype dtype,
                     const struct weight_part *part, size_t n)
{
    if (!part->rows)
        draw_part(d, to, dtype, &part->random, n);
    else if (loader_open(d) != 0)
        return -1;
    else
        carry_part(d, to, dtype, part, n);
    return 0;
}

int cuda_weight_load(struct device *device, struct weight *w, const struct weight_part *parts,
                     int n_parts)
{
    struct cuda_device *d = cuda_device(device);
    assert(w->dtype == d->base.act_dtype && w->quantization == QUANTIZATION_NONE);
    w->n_out = 0;
    for (int i = 0; i < n_parts; i++)
        w->n_out += parts[i].n_rows;
    assert(w->n_out > 0 && w->n_in > 0 && (!w->gated || w->n_out % 2 == 0));
    w->bytes = (size_t)w->n_out * (size_t)w->n_in * dtype_bytes(w->dtype);
    w->data = cuda_alloc(device, w->bytes);
    if (!w->data)
        return -1;
    char *to = (char *)w->data;
    for (int i = 0; i < n_parts; i++) {
        size_t n = (size_t)parts[i].n_rows * (size_t)w->n_in;
        if (load_part(d, to, w->dtype, &parts[i], n) != 0)
            return -1;
        to += n * dtype_bytes(w->dtype);
    }
    cuda_linear_add_weight(d, w);
    return 0;
}

void cuda_weight_free(struct device *device, struct weight *w)
{
    struct cuda_device *d = cuda_device(device);
    if (!w->data)
        return;
    cuda_linear_remove_weight(d, w);
    cuda_free(device, w->data);
    w->data = NULL;
    w->bytes = 0;
}
