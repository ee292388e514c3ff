/* convert.h - one number between f32, bf16 and f16, rounding to nearest even, in portable C.
 *
 * Formats: IEEE 754-2019 binary16; bfloat16 is the upper half of binary32. A NaN stays a NaN.
 */
#ifndef QUIRE_CPU_CONVERT_H
#define QUIRE_CPU_CONVERT_H

#include "kernels/backend.h"

#include <string.h>

static inline uint32_t f32_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline float f32_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline float bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t f32_to_bf16(float x)
{
    uint32_t bits = f32_bits(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(bits >> 16 | 0x40u); /* quiet: rounding could carry into infinity */
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7FFFu;
    if (magnitude >= 0x7C00u) /* infinity or NaN */
        return f32_from_bits(sign | 0x7F800000u | magnitude << 13);
    /* The exponent is rebiased by a multiplication, which also normalises subnormals. */
    float value = f32_from_bits(magnitude << 13) * 0x1p112f;
    return f32_from_bits(sign | f32_bits(value));
}

static inline uint16_t f32_to_f16(float x)
{
    uint32_t bits = f32_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7C00u);
    if (magnitude < 0x38800000u) { /* subnormal: adding 0.5 leaves the rounded result below it */
        float shifted = f32_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (f32_bits(shifted) - 0x3F000000u));
    }
    uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

/* Element i of an array of this type, and the way back. */
static inline float load_element(enum dtype dtype, const void *array, size_t i)
{
    switch (dtype) {
    case DTYPE_BF16: return bf16_to_f32(((const uint16_t *)array)[i]);
    case DTYPE_F16: return f16_to_f32(((const uint16_t *)array)[i]);
    default: return ((const float *)array)[i];
    }
}

static inline void store_element(enum dtype dtype, void *array, size_t i, float x)
{
    switch (dtype) {
    case DTYPE_BF16: ((uint16_t *)array)[i] = f32_to_bf16(x); break;
    case DTYPE_F16: ((uint16_t *)array)[i] = f32_to_f16(x); break;
    default: ((float *)array)[i] = x;
    }
}

#endif
