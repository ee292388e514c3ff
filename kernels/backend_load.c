/* backend_load.c - backend_find of backend.h: where the table of a device kind comes from.
 *
 * Each step that can fail on a healthy machine without a GPU has its own message, because users ask
 * first of all why their run is on the CPU.
 */
#include "kernels/backend.h"

#include <assert.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY_NAME "quire_cuda.so"

/* The result of the first search; it stays for the life of the process. */
static struct {
    pthread_once_t once;
    const struct backend *backend;
    char reason[ERR_MAX_LEN];
} cuda = {.once = PTHREAD_ONCE_INIT};

/* The driver is looked for first: without it the library and the half gigabyte of cuBLASLt behind
 * it need not be loaded. */
static const struct backend *load(const char *path)
{
    if (!dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
        err_set(ERR_RESOURCE, "no usable GPU: the NVIDIA driver is not installed (%s)", dlerror());
        return NULL;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        err_set(ERR_RESOURCE, "no usable GPU: cannot load the CUDA backend: %s", dlerror());
        return NULL;
    }
    const struct backend *backend = dlsym(library, "backend_cuda");
    void *probe_symbol = dlsym(library, "cuda_probe");
    int (*probe)(void); /* ISO C has no cast from an object's address to a function's */
    memcpy(&probe, &probe_symbol, sizeof(probe));
    if (!backend || !probe) {
        err_set(ERR_RESOURCE, "%s is not the CUDA backend of this quire", path);
        return NULL;
    }
    return probe() == 0 ? backend : NULL;
}

static void find_cuda(void)
{
    char *path = library_find(LIBRARY_NAME);
    if (path)
        cuda.backend = load(path);
    else
        err_set(ERR_RESOURCE, "no usable GPU: this build has no CUDA backend (" LIBRARY_NAME ")");
    if (!cuda.backend)
        snprintf(cuda.reason, sizeof(cuda.reason), "%s", err_get());
    free(path);
}

const struct backend *backend_find(enum device_kind kind)
{
    if (kind == DEVICE_CPU)
        return &backend_cpu;
    assert(kind == DEVICE_CUDA);
    pthread_once(&cuda.once, find_cuda);
    if (!cuda.backend)
        err_set(ERR_RESOURCE, "%s", cuda.reason);
    return cuda.backend;
}
