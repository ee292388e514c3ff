/* backend.c - see backend.h: the names and sizes that all backends share. */
#include "kernels/backend.h"

#include "kernels/cpu/convert.h"

#include <assert.h>

size_t dtype_bytes(enum dtype dtype)
{
    assert(dtype < DTYPE_N);
    return dtype == DTYPE_F32 ? 4 : 2;
}

const char *dtype_name(enum dtype dtype)
{
    static const char *const names[DTYPE_N] = {
        [DTYPE_F32] = "float32",
        [DTYPE_BF16] = "bfloat16",
        [DTYPE_F16] = "float16",
    };
    assert(dtype < DTYPE_N);
    return names[dtype];
}

void dtype_to_f32(float *out, const void *in, enum dtype dtype, size_t n)
{
    size_t bytes = dtype_bytes(dtype);
    for (size_t i = 0; i < n; i++) {
        uint32_t element = 0;
        memcpy(&element, (const char *)in + i * bytes, bytes);
        out[i] = load_element(dtype, &element, 0);
    }
}

const char *quantization_name(enum quantization quantization)
{
    static const char *const names[QUANTIZATION_N] = {
        [QUANTIZATION_NONE] = "none",
        [QUANTIZATION_INT8] = "int8",
    };
    assert(quantization < QUANTIZATION_N);
    return names[quantization];
}

const char *weight_name(enum dtype dtype, enum quantization quantization)
{
    return quantization == QUANTIZATION_NONE ? dtype_name(dtype) : quantization_name(quantization);
}

size_t weight_bytes(size_t n_out, size_t n_in, enum dtype dtype, enum quantization quantization)
{
    if (quantization == QUANTIZATION_NONE)
        return n_out * n_in * dtype_bytes(dtype);
    return n_out * (n_in + CEIL_DIV(n_in, INT8_GROUP) * dtype_bytes(DTYPE_BF16));
}

const char *attention_name(enum attention_kind kind)
{
    static const char *const names[ATTENTION_N] = {
        [ATTENTION_FLASH] = "flash",
        [ATTENTION_MEMORY_EFFICIENT] = "memory_efficient",
        [ATTENTION_EAGER] = "eager",
    };
    assert(kind < ATTENTION_N);
    return names[kind];
}

const char *device_kind_name(enum device_kind kind)
{
    static const char *const names[DEVICE_N_KINDS] = {[DEVICE_CPU] = "cpu", [DEVICE_CUDA] = "cuda"};
    assert(kind < DEVICE_N_KINDS);
    return names[kind];
}
