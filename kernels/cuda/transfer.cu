/* transfer.cu - copies between host and GPU, and of KV blocks within and between their pools.
 *
 * The copy engine works beside the processor only for pinned host memory, so the bytes of an upload
 * pass through it: two halves are filled in turn, and a half is filled again when its copies are
 * done. Weights have their own way (weight.cu). KV blocks that are swapped out lie in pinned memory
 * themselves, and a kernel copies them.
 *
 * The arrays of a step and its tokens, some KiB, are copied by a kernel too. Kernels and the copy
 * engine wait for each other several microseconds each time that one follows the other, and from
 * the last kernel of a step to the first of the next there were two copies.
 */
#include "kernels/cuda/cuda.cuh"

#include <stdlib.h>
#include <string.h>

#define HALF_BYTES    ((size_t)4 << 20)
#define STAGING_ALIGN ((size_t)16)

struct cuda_staging {
    char *upload[2];            /* pinned, [HALF_BYTES] each                  */
    char *download;             /* pinned, [HALF_BYTES]                       */
    cudaEvent_t done[2];        /* behind the last copy out of each half      */
    int half;                   /* being filled                               */
    size_t used;                /* bytes of it                                */
    char *fetched[FETCH_SLOTS]; /* pinned, [FETCH_MAX_BYTES] each      */
    cudaEvent_t arrived[FETCH_SLOTS];
};

void cuda_staging_open(struct cuda_device *d)
{
    struct cuda_staging *s = (struct cuda_staging *)xcalloc(1, sizeof(*s));
    char *memory;
    CUDA_CHECK(cudaMallocHost((void **)&memory, 3 * HALF_BYTES + FETCH_SLOTS * FETCH_MAX_BYTES));
    for (int i = 0; i < 2; i++) {
        s->upload[i] = memory + (size_t)i * HALF_BYTES;
        CUDA_CHECK(cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming));
    }
    s->download = memory + 2 * HALF_BYTES;
    for (int i = 0; i < FETCH_SLOTS; i++) {
        s->fetched[i] = memory + 3 * HALF_BYTES + (size_t)i * FETCH_MAX_BYTES;
        CUDA_CHECK(cudaEventCreateWithFlags(&s->arrived[i], cudaEventDisableTiming));
    }
    d->staging = s;
}

void cuda_staging_close(struct cuda_device *d)
{
    struct cuda_staging *s = d->staging;
    CUDA_CHECK(cudaFreeHost(s->upload[0]));
    for (int i = 0; i < 2; i++)
        CUDA_CHECK(cudaEventDestroy(s->done[i]));
    for (int i = 0; i < FETCH_SLOTS; i++)
        CUDA_CHECK(cudaEventDestroy(s->arrived[i]));
    free(s);
}

/* ---- small copies ---- */

#define SMALL_BYTES  ((size_t)256 << 10)
#define WORD_THREADS 256

/* dst, src: [n]; one of them pinned, which is addressed like the GPU's own memory. What the host
 * wrote is read past the caches, which may hold what was there before. */
static __global__ void __launch_bounds__(WORD_THREADS)
    copy_words_kernel(uint32_t *dst, const uint32_t *src, unsigned n)
{
    unsigned i = blockIdx.x * WORD_THREADS + threadIdx.x;
    if (i < n)
        dst[i] = __ldcv(src + i);
}

/* Between pinned memory and the GPU's. The event is there because no kernel starts early across
 * one: those that do may read what was uploaded before they wait. */
static void copy_async(const struct cuda_device *d, void *dst, const void *src, size_t bytes,
                       cudaEvent_t behind)
{
    bool are_words = ((size_t)dst | (size_t)src | bytes) % sizeof(uint32_t) == 0;
    unsigned n = (unsigned)(bytes / sizeof(uint32_t));
    if (bytes > SMALL_BYTES || !are_words) {
        CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, d->stream));
    } else if (n > 0) {
        copy_words_kernel<<<CEIL_DIV(n, (unsigned)WORD_THREADS), WORD_THREADS, 0, d->stream>>>(
            (uint32_t *)dst, (const uint32_t *)src, n);
        CUDA_CHECK_LAUNCH();
    }
    CUDA_CHECK(cudaEventRecord(behind, d->stream));
}

/* ---- copies ---- */

/* Pinned memory for up to `bytes` more; *got says for how many. */
static char *staging_reserve(struct cuda_device *d, size_t bytes, size_t *got)
{
    struct cuda_staging *s = d->staging;
    if (s->used == HALF_BYTES || (bytes <= HALF_BYTES && bytes > HALF_BYTES - s->used)) {
        s->half = 1 - s->half;
        s->used = 0;
        CUDA_CHECK(cudaEventSynchronize(s->done[s->half]));
    }
    char *memory = s->upload[s->half] + s->used;
    *got = MIN(bytes, HALF_BYTES - s->used);
    s->used += CEIL_DIV(*got, STAGING_ALIGN) * STAGING_ALIGN;
    return memory;
}

void cuda_upload(struct device *device, void *dst, const void *host, size_t bytes)
{
    struct cuda_device *d = cuda_device(device);
    for (size_t at = 0, n; at < bytes; at += n) {
        char *pinned = staging_reserve(d, bytes - at, &n);
        memcpy(pinned, (const char *)host + at, n);
        copy_async(d, (char *)dst + at, pinned, n, d->staging->done[d->staging->half]);
    }
}

void cuda_download(struct device *device, void *host, const void *src, size_t bytes)
{
    struct cuda_device *d = cuda_device(device);
    char *pinned = d->staging->download;
    for (size_t at = 0, n; at < bytes; at += n) {
        n = MIN(bytes - at, HALF_BYTES);
        CUDA_CHECK(
            cudaMemcpyAsync(pinned, (const char *)src + at, n, cudaMemcpyDeviceToHost, d->stream));
        CUDA_CHECK(cudaStreamSynchronize(d->stream));
        memcpy((char *)host + at, pinned, n);
    }
}

void cuda_fetch_begin(struct device *device, int slot, const void *src, size_t bytes)
{
    struct cuda_device *d = cuda_device(device);
    assert(bytes <= FETCH_MAX_BYTES);
    copy_async(d, d->staging->fetched[slot], src, bytes, d->staging->arrived[slot]);
}

void cuda_fetch_end(struct device *device, int slot, void *host, size_t bytes)
{
    struct cuda_staging *s = cuda_device(device)->staging;
    CUDA_CHECK(cudaEventSynchronize(s->arrived[slot]));
    memcpy(host, s->fetched[slot], bytes);
}

/* ---- KV blocks ---- */

#define COPY_THREADS      256
#define COPIES_PER_LAUNCH 256 /* 2 KiB of the 4 KiB that the arguments of a kernel may take */

struct copy_list {
    struct kv_copy copy[COPIES_PER_LAUNCH];
};

/* A block of threads copies one KV block of one plane, 16 bytes a thread and turn. Pinned memory is
 * addressed like the GPU's own. dst: [n_planes, dst_blocks, words], src likewise */
static __global__ void copy_blocks_kernel(uint4 *__restrict__ dst, const uint4 *__restrict__ src,
                                          int dst_blocks, int src_blocks, int words,
                                          const __grid_constant__ struct copy_list list)
{
    const struct kv_copy copy = list.copy[blockIdx.y];
    const size_t plane = blockIdx.x;
    dst += (plane * dst_blocks + copy.dst) * words;
    src += (plane * src_blocks + copy.src) * words;
#pragma unroll 4
    for (int i = threadIdx.x; i < words; i += COPY_THREADS)
        dst[i] = src[i];
}

/* One launch for up to COPIES_PER_LAUNCH blocks. The copy engine would need a call for every plane
 * of every block: 56 calls of some microseconds with 28 layers, when the 7 MB of a block of 64
 * tokens take 140 us at 50 GB/s. Its strided copy would need one call a block, but its pitch ends
 * at 2 GiB, and a plane of a large pool is larger. */
void cuda_copy_blocks(struct device *device, const struct copy_blocks_args *args)
{
    struct cuda_device *d = cuda_device(device);
    assert(args->bytes % sizeof(uint4) == 0);
    for (int at = 0; at < args->n_copies; at += COPIES_PER_LAUNCH) {
        struct copy_list list;
        int n = MIN(args->n_copies - at, COPIES_PER_LAUNCH);
        memcpy(list.copy, args->copy + at, (size_t)n * sizeof(*list.copy));
        copy_blocks_kernel<<<dim3((unsigned)args->n_planes, (unsigned)n), COPY_THREADS, 0,
                             d->stream>>>(
            (uint4 *)args->dst.memory, (const uint4 *)args->src.memory, args->dst.n_blocks,
            args->src.n_blocks, (int)(args->bytes / sizeof(uint4)), list);
        CUDA_CHECK_LAUNCH();
    }
}
