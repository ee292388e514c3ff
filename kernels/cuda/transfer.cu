/* transfer.cu - copies between host and GPU, and within the GPU.
 *
 * The copy engine works beside the processor only for pinned host memory, so the bytes of an upload
 * pass through it: two halves are filled in turn, and a half is filled again when its copies are
 * done. The arrays of a step take a few KiB; weights have their own way (weight.cu).
 */
#include "kernels/cuda/cuda.cuh"

#include <stdlib.h>
#include <string.h>

#define HALF_BYTES ((size_t)4 << 20)

struct cuda_staging {
    char *upload[2];     /* pinned, [HALF_BYTES] each                  */
    char *download;      /* pinned, [HALF_BYTES]                       */
    cudaEvent_t done[2]; /* behind the last copy out of each half      */
    int half;            /* being filled                               */
    size_t used;         /* bytes of it                                */
};

void cuda_staging_open(struct cuda_device *d)
{
    struct cuda_staging *s = (struct cuda_staging *)xcalloc(1, sizeof(*s));
    char *memory;
    CUDA_CHECK(cudaMallocHost((void **)&memory, 3 * HALF_BYTES));
    for (int i = 0; i < 2; i++) {
        s->upload[i] = memory + (size_t)i * HALF_BYTES;
        CUDA_CHECK(cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming));
    }
    s->download = memory + 2 * HALF_BYTES;
    d->staging = s;
}

void cuda_staging_close(struct cuda_device *d)
{
    struct cuda_staging *s = d->staging;
    CUDA_CHECK(cudaFreeHost(s->upload[0]));
    for (int i = 0; i < 2; i++)
        CUDA_CHECK(cudaEventDestroy(s->done[i]));
    free(s);
}

/* Pinned memory for up to `bytes` more; *got says for how many. */
static char *staging_reserve(struct cuda_device *d, size_t bytes, size_t *got)
{
    struct cuda_staging *s = d->staging;
    if (s->used == HALF_BYTES || (bytes <= HALF_BYTES && bytes > HALF_BYTES - s->used)) {
        CUDA_CHECK(cudaEventRecord(s->done[s->half], d->stream));
        s->half = 1 - s->half;
        s->used = 0;
        CUDA_CHECK(cudaEventSynchronize(s->done[s->half]));
    }
    char *memory = s->upload[s->half] + s->used;
    *got = MIN(bytes, HALF_BYTES - s->used);
    s->used += *got;
    return memory;
}

void cuda_upload(struct device *device, void *dst, const void *host, size_t bytes)
{
    struct cuda_device *d = cuda_device(device);
    for (size_t at = 0, n; at < bytes; at += n) {
        char *pinned = staging_reserve(d, bytes - at, &n);
        memcpy(pinned, (const char *)host + at, n);
        CUDA_CHECK(cudaMemcpyAsync((char *)dst + at, pinned, n, cudaMemcpyHostToDevice, d->stream));
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

void cuda_copy(struct device *device, void *dst, const void *src, size_t bytes)
{
    struct cuda_device *d = cuda_device(device);
    CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, d->stream));
}
