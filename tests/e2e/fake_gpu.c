/* fake_gpu.c - a quire_cuda.so of GPUs that compute on the processor, for tests/e2e/gpus.sh: which
 * GPU is opened, and what happens when it does not open, can be seen on any machine.
 *
 * Environment:
 *   FAKE_GPUS            how many there are
 *   FAKE_GPU_BUSY        the ordinal of one that another process has for itself
 *   FAKE_GPU_BFLOAT16    no: they have no such arithmetic
 *   FAKE_GPU_LOG         a file that gets a line "RANK ORDINAL" for each one that is opened
 */
#include "kernels/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What quire looks for in the library. */
struct backend backend_cuda;
int cuda_probe(void);

static int number(const char *name, int otherwise)
{
    int64_t value;
    const char *text = getenv(name);
    return text && parse_int64(&value, text) ? (int)value : otherwise;
}

static void note_opened(int index)
{
    const char *path = getenv("FAKE_GPU_LOG");
    FILE *f = path ? fopen(path, "a") : NULL;
    if (!f)
        return;
    fprintf(f, "%d %d\n", number("OMPI_COMM_WORLD_RANK", 0), index);
    fclose(f);
}

static struct device *open_gpu(const struct device_options *options)
{
    const char *bfloat16 = getenv("FAKE_GPU_BFLOAT16");
    int n = number("FAKE_GPUS", 1), index = options->index;
    if (index < 0 || index >= n) {
        err_set(ERR_CONFIG, "there is no GPU %d; expected 0 to %d", index, n - 1);
        return NULL;
    }
    note_opened(index);
    if (index == number("FAKE_GPU_BUSY", -1)) {
        err_set(ERR_RESOURCE, "GPU %d: busy", index);
        return NULL;
    }
    if (options->act_dtype == DTYPE_BF16 && bfloat16 && strcmp(bfloat16, "no") == 0) {
        err_set(ERR_RESOURCE, "GPU %d has no bfloat16 arithmetic", index);
        return NULL;
    }
    struct device *device = backend_cpu.open(&(struct device_options){.n_threads = 1});
    if (!device)
        return NULL;
    device->ops = &backend_cuda;
    device->info.kind = DEVICE_CUDA;
    device->info.compute_major = 9;
    snprintf(device->info.name, sizeof(device->info.name), "Fake %d", index);
    return device;
}

int cuda_probe(void)
{
    backend_cuda = backend_cpu;
    backend_cuda.kind = DEVICE_CUDA;
    backend_cuda.open = open_gpu;
    return 0;
}
