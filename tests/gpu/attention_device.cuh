/* attention_device.cuh - a device with what attention needs, for its test and its benchmark. */
#ifndef QUIRE_TESTS_ATTENTION_DEVICE_CUH
#define QUIRE_TESTS_ATTENTION_DEVICE_CUH

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.cuh"

#include <string.h>

static inline void *gpu_alloc(size_t bytes)
{
    void *memory;
    CUDA_CHECK(cudaMalloc(&memory, bytes > 0 ? bytes : 1));
    return memory;
}

/* Device memory with a copy of the host's bytes. */
static inline void *gpu_copy_of(const void *host, size_t bytes)
{
    void *memory = gpu_alloc(bytes);
    CUDA_CHECK(cudaMemcpy(memory, host, bytes, cudaMemcpyHostToDevice));
    return memory;
}

static inline void gpu_free(const void *memory)
{
    CUDA_CHECK(cudaFree(const_cast<void *>(memory)));
}

static inline void attention_device_open(struct cuda_device *d, enum dtype act_dtype)
{
    cudaDeviceProp properties;
    *d = {};
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    d->base.act_dtype = act_dtype;
    d->base.info.compute_major = properties.major;
    d->base.info.compute_minor = properties.minor;
    cuda_device_read_limits(d);
    d->overlaps = cuda_kernels_can_wait();
    CUDA_CHECK(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking));
}

/* As the backend's reserve(). */
static inline void attention_device_reserve(struct cuda_device *d, const struct step_limits *limits)
{
    gpu_free(d->attention_workspace);
    d->attention_workspace_bytes = cuda_attention_workspace(limits);
    d->attention_workspace = gpu_alloc(d->attention_workspace_bytes);
    CUDA_CHECK(cudaMemset(d->attention_workspace, 0, d->attention_workspace_bytes));
    CUDA_CHECK(cudaDeviceSynchronize());
}

static inline void attention_device_close(struct cuda_device *d)
{
    gpu_free(d->attention_workspace);
    CUDA_CHECK(cudaStreamDestroy(d->stream));
}

#endif
