/* device.cu - a GPU as a device: opening, description, memory, the scratch of a step. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.cuh"

extern "C" {
#include "kernels/cpu/machine.h"
}

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening ---- */

/* The number of GPUs that CUDA_VISIBLE_DEVICES leaves, or -1 with an error: also when it is 0. */
static int count_devices(void)
{
    int n = 0;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    cudaError_t error = cudaGetDeviceCount(&n);
    if (error == cudaSuccess && n == 0)
        error = cudaErrorNoDevice;
    if (error == cudaSuccess)
        return n;
    if (error == cudaErrorInsufficientDriver)
        return err_set(ERR_RESOURCE, "no usable GPU: the NVIDIA driver is older than CUDA %d.%d",
                       CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (error == cudaErrorNoDevice && visible)
        return err_set(ERR_RESOURCE, "no usable GPU: CUDA_VISIBLE_DEVICES is '%s'", visible);
    return err_set(ERR_RESOURCE, "no usable GPU: %s", cudaGetErrorString(error));
}

/* What backend_find asks after it has opened the library. */
extern "C" __attribute__((visibility("default"))) int cuda_probe(void)
{
    return count_devices() < 0 ? -1 : 0;
}

/* "580.159.04"; the CUDA version that the driver brings where the kernel does not tell. */
static void driver_version(char *version, size_t size)
{
    int n = 0;
    FILE *f = fopen("/sys/module/nvidia/version", "r");
    if (f) {
        bool read = fgets(version, (int)size, f) != NULL;
        fclose(f);
        if (read) {
            version[strcspn(version, "\n")] = '\0';
            return;
        }
    }
    CUDA_CHECK(cudaDriverGetVersion(&n));
    snprintf(version, size, "CUDA %d.%d", n / 1000, n % 1000 / 10);
}

static void describe(struct device_info *info, const cudaDeviceProp *properties)
{
    int runtime;
    info->kind = DEVICE_CUDA;
    info->n_threads = 1;
    info->compute_major = properties->major;
    info->compute_minor = properties->minor;
    snprintf(info->name, sizeof(info->name), "%.*s", (int)sizeof(info->name) - 1, properties->name);
    snprintf(info->isa, sizeof(info->isa), "sm_%d%d", properties->major, properties->minor);
    driver_version(info->driver, sizeof(info->driver));
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    snprintf(info->runtime, sizeof(info->runtime), "%d.%d", runtime / 1000, runtime % 1000 / 10);
    CUDA_CHECK(cudaMemGetInfo(&info->free_bytes, &info->memory_bytes));
}

static int check_options(const struct device_options *options, const cudaDeviceProp *properties)
{
    if (properties->major * 10 + properties->minor < 75)
        return err_set(ERR_RESOURCE,
                       "GPU %d (%s) has compute capability (%d, %d); expected at least (7, 5)",
                       options->index, properties->name, properties->major, properties->minor);
    if (options->act_dtype == DTYPE_BF16 && properties->major < 8)
        return err_set(ERR_RESOURCE,
                       "GPU %d (%s) has no bfloat16 arithmetic (compute capability (%d, %d)); it "
                       "runs models of model.dtype float16 or float32",
                       options->index, properties->name, properties->major, properties->minor);
    return 0;
}

/* Makes the GPU current, which creates its context. */
static int start_device(int index, cudaDeviceProp *properties)
{
    int n = count_devices();
    if (n < 0)
        return -1;
    if (index < 0 || index >= n)
        return err_set(ERR_CONFIG, "there is no GPU %d; expected 0 to %d", index, n - 1);
    cudaError_t error = cudaSetDevice(index);
    if (error == cudaSuccess)
        error = cudaGetDeviceProperties(properties, index);
    if (error != cudaSuccess)
        return err_set(ERR_RESOURCE, "GPU %d: %s", index, cudaGetErrorString(error));
    return 0;
}

static __global__ void probe_kernel(void)
{
}

bool cuda_kernels_can_wait(void)
{
    cudaFuncAttributes probe;
    CUDA_CHECK(cudaFuncGetAttributes(&probe, probe_kernel));
    return probe.ptxVersion >= 90;
}

/* The library has code for the GPUs that it was built for, and PTX that newer drivers compile. */
static int check_code(int index, const cudaDeviceProp *properties)
{
    cudaFuncAttributes probe;
    cudaError_t error = cudaFuncGetAttributes(&probe, probe_kernel);
    if (error == cudaSuccess)
        return 0;
    (void)cudaGetLastError(); /* or the next launch would report it again */
    return err_set(
        ERR_RESOURCE,
        "GPU %d (%s, compute capability (%d, %d)) cannot load the code of quire_cuda.so: "
        "%s; make's CUDA_ARCHS says which GPUs it is for",
        index, properties->name, properties->major, properties->minor, cudaGetErrorString(error));
}

struct device *cuda_open(const struct device_options *options)
{
    cudaDeviceProp properties;
    if (start_device(options->index, &properties) != 0 ||
        check_options(options, &properties) != 0 || check_code(options->index, &properties) != 0)
        return NULL;
    struct cuda_device *d = (struct cuda_device *)xcalloc(1, sizeof(*d));
    d->base.ops = &backend_cuda;
    d->base.act_dtype = options->act_dtype;
    d->index = options->index;
    describe(&d->base.info, &properties);
    cuda_device_read_limits(d);
    d->overlaps = cuda_kernels_can_wait();
    if (cuda_linear_open(d) != 0) {
        free(d);
        err_prefix("GPU %d (%s)", options->index, properties.name);
        return NULL;
    }
    CUDA_CHECK(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking));
    cuda_staging_open(d);
    cuda_marks_open(d);
    return &d->base;
}

void cuda_close(struct device *device)
{
    if (!device)
        return;
    struct cuda_device *d = cuda_device(device);
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    cuda_loader_close(d);
    cuda_linear_close(d);
    cuda_marks_close(d);
    cuda_staging_close(d);
    cuda_free(device, d->attention_workspace);
    cuda_free(device, d->sample_workspace);
    cuda_free(device, d->gate_workspace);
    CUDA_CHECK(cudaStreamDestroy(d->stream));
    free(d);
}

/* ---- memory ---- */

/* What a failed allocation of either kind says. */
static void *refuse(const char *kind, size_t bytes, size_t free_bytes)
{
    char want[32], have[32];
    err_set(ERR_RESOURCE, "not enough %s: %s (%zu bytes) wanted, %s (%zu bytes) free", kind,
            format_bytes(want, (double)bytes), bytes, format_bytes(have, (double)free_bytes),
            free_bytes);
    return NULL;
}

/* Whether there was memory; any other failure than its lack ends the program. */
static bool was_allocated(cudaError_t error)
{
    if (error == cudaSuccess)
        return true;
    if (error != cudaErrorMemoryAllocation)
        CUDA_CHECK(error);
    (void)cudaGetLastError(); /* or the next launch would report it again */
    return false;
}

void *cuda_alloc(struct device *device, size_t bytes)
{
    cuda_device(device);
    void *memory;
    if (was_allocated(cudaMalloc(&memory, bytes > 0 ? bytes : 1)))
        return memory;
    size_t free_bytes, all_bytes;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
    return refuse("GPU memory", bytes, free_bytes);
}

/* Pinned pages are taken at once, and beyond its limit a control group kills: so ask first. */
void *cuda_alloc_host(struct device *device, size_t bytes)
{
    cuda_device(device);
    void *memory;
    size_t free_bytes = machine_memory_free_bytes();
    if (bytes <= free_bytes && was_allocated(cudaMallocHost(&memory, bytes > 0 ? bytes : 1)))
        return memory;
    return refuse("pinned host memory", bytes, free_bytes);
}

void cuda_free(struct device *device, void *memory)
{
    cuda_device(device);
    cudaPointerAttributes attributes = {};
    if (memory)
        CUDA_CHECK(cudaPointerGetAttributes(&attributes, memory));
    if (attributes.type == cudaMemoryTypeHost)
        CUDA_CHECK(cudaFreeHost(memory));
    else
        CUDA_CHECK(cudaFree(memory));
}

void cuda_sync(struct device *device)
{
    CUDA_CHECK(cudaStreamSynchronize(cuda_device(device)->stream));
}

/* ---- scratch ---- */

/* Replaces *memory by a larger one, filled with zeros. */
static int grow(struct device *device, void **memory, size_t *have, size_t needed)
{
    struct cuda_device *d = cuda_device(device);
    if (needed <= *have)
        return 0;
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    cuda_free(device, *memory);
    *have = 0;
    *memory = cuda_alloc(device, needed);
    if (!*memory)
        return err_prefix("scratch memory of a step");
    *have = needed;
    CUDA_CHECK(cudaMemsetAsync(*memory, 0, needed, d->stream));
    return 0;
}

static int grow_gates(struct device *device, const struct step_limits *limits)
{
    struct cuda_device *d = cuda_device(device);
    return grow(device, &d->gate_workspace, &d->gate_workspace_bytes,
                cuda_gate_workspace_bytes(d, limits));
}

int cuda_reserve(struct device *device, const struct step_limits *limits)
{
    struct cuda_device *d = cuda_device(device);
    cuda_loader_close(d); /* the weights are there; its pinned memory is not needed any more */
    if (grow(device, &d->attention_workspace, &d->attention_workspace_bytes,
             cuda_attention_workspace(limits)) != 0 ||
        grow(device, &d->sample_workspace, &d->sample_workspace_bytes,
             cuda_sample_workspace_bytes(limits)) != 0 ||
        grow_gates(device, limits) != 0 || cuda_linear_reserve(d, limits) != 0)
        return -1;
    return grow_gates(device, limits); /* what was chosen may need more */
}
