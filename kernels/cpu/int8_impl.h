/* int8_impl.h - numbers in int8: quantising a group of INT8_GROUP columns, packing rows of x that
 * way, and the instruction that multiplies them.
 *
 * A unit is what one 32-bit lane of an instruction sums: 4 products of bytes with VNNI, otherwise 2
 * products of 16 bits. VNNI's left factor is unsigned: weights are stored with 128 added, and a sum
 * starts from -128 times the sum of x, which is known when x is packed. Sums of a group are exact.
 *
 * Packed x of n_rows rows, for each group of INT8_GROUP columns (those beyond the width are zeros):
 *
 *   float scale[n_rows];  int start[n_rows];  unit[INT8_GROUP / INT8_UNIT][n_rows]
 */
#ifndef QUIRE_CPU_INT8_IMPL_H
#define QUIRE_CPU_INT8_IMPL_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#include <float.h>

#ifdef __AVX512VNNI__
#define INT8_UNIT   4
#define INT8_OFFSET 128
#else
#define INT8_UNIT   2
#define INT8_OFFSET 0
#endif
#define INT8_UNITS (INT8_GROUP / INT8_UNIT)

#define GROUP_BYTES    4 /* of one row of packed x: an f32, a pair of bf16, a unit of int8 */
#define INT8_ROW_EXTRA 8 /* bytes of a row of packed x beside its units: scale and start   */

/* ---- products ---- */

/* The weights of one unit for VEC_N outputs, widened where there is no product of bytes. */
VEC_INLINE veci load_units(const char *w)
{
#if defined(__AVX512VNNI__)
    return (veci)_mm512_loadu_si512(w);
#elif defined(__AVX512F__)
    return (veci)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)w));
#elif defined(__AVX2__)
    return (veci)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)w));
#else
    int16_t wide[2 * VEC_N];
    veci units;
    for (int i = 0; i < 2 * VEC_N; i++)
        wide[i] = (signed char)w[i];
    memcpy(&units, wide, sizeof(units));
    return units;
#endif
}

/* acc + x w: x is the unit of one row, broadcast to all lanes. */
VEC_INLINE veci add_products(veci acc, const char *x, veci w)
{
    int unit;
    memcpy(&unit, x, sizeof(unit));
#if defined(__AVX512VNNI__)
    return (veci)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(unit));
#elif defined(__AVX512F__)
    return acc + (veci)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32(unit));
#elif defined(__AVX2__)
    return acc + (veci)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(unit));
#else
    int16_t pair[2];
    memcpy(pair, &unit, sizeof(pair));
    veci low = (veci)((vecu)w << 16) >> 16, high = w >> 16;
    return acc + (low * pair[0] + high * pair[1]);
#endif
}

/* The number at x in all lanes. */
VEC_INLINE veci veci_broadcast(const char *x)
{
    int value;
    memcpy(&value, x, sizeof(value));
    return (veci){0} + value;
}

/* The scales of a group's weights for VEC_N outputs. */
VEC_INLINE vec load_scales(const char *scales)
{
    return vec_load_bf16((const uint16_t *)(const void *)scales);
}

/* ---- quantising ---- */

VEC_INLINE int32_t largest_lane(veci x)
{
#ifdef __AVX512F__
    return _mm512_reduce_max_epi32((__m512i)x);
#else
    int32_t largest = x[0];
    for (int i = 1; i < VEC_N; i++)
        largest = MAX(largest, x[i]);
    return largest;
#endif
}

/* The low byte of each lane. */
VEC_INLINE void store_bytes(int8_t *q, veci x)
{
#ifdef __AVX512F__
    _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8((__m512i)x));
#else
    for (int i = 0; i < VEC_N; i++)
        q[i] = (int8_t)x[i];
#endif
}

/* Compared as integers, in which order a NaN is above an infinity and that above all numbers. */
VEC_INLINE float largest_magnitude(const float x[INT8_GROUP])
{
    veci top = {0};
    for (int i = 0; i < INT8_GROUP; i += VEC_N) {
        veci magnitude = (veci)vec_load(x + i) & 0x7FFFFFFF, larger = magnitude > top;
        top = (magnitude & larger) | (top & ~larger);
    }
    return f32_from_bits((uint32_t)largest_lane(top));
}

/* q = x / scale, rounded to nearest even. The scale, which is returned, makes the largest |q| 127;
 * it is 0, as is q, when all x are smaller than 1.5e-36; a NaN or an infinity of x is one of the
 * scale. */
static float quantize(int8_t q[INT8_GROUP], const float x[INT8_GROUP])
{
    const float round_magic = 0x1.8p23f; /* adding it leaves the rounded number in the low bits */
    float scale = largest_magnitude(x) / 127;
    if (scale < FLT_MIN)
        scale = 0;
    vec inverse = vec_set1(scale > 0 ? 1 / scale : 0);
    for (int i = 0; i < INT8_GROUP; i += VEC_N) {
        store_bytes(q + i, (veci)vec_fma(vec_load(x + i), inverse, vec_set1(round_magic)));
    }
    return scale;
}

/* ---- packing x ---- */

/* One row's numbers of a group; the row's lanes in packed x begin at `to`, `step` bytes apart. */
VEC_INLINE void pack_group(char *to, size_t step, const float x[INT8_GROUP])
{
    int8_t q[INT8_GROUP];
    float scale = quantize(q, x);
    int32_t sum = 0;
    for (int i = 0; i < INT8_GROUP; i++)
        sum += q[i];
    sum *= -INT8_OFFSET;
    memcpy(to, &scale, GROUP_BYTES);
    memcpy(to + step, &sum, GROUP_BYTES);
    for (size_t u = 0; u < INT8_UNITS; u++) {
        const int8_t *from = q + u * INT8_UNIT;
#if INT8_UNIT == 4
        memcpy(to + (2 + u) * step, from, GROUP_BYTES);
#else
        const int16_t pair[2] = {from[0], from[1]};
        memcpy(to + (2 + u) * step, pair, GROUP_BYTES);
#endif
    }
}

static void pack_rows_int8(char *packed, const float *x, size_t stride, int n_rows, int n)
{
    size_t step = (size_t)n_rows * GROUP_BYTES;
    for (int k = 0; k < n; k += INT8_GROUP, packed += (2 + INT8_UNITS) * step) {
        for (int r = 0; r < n_rows; r++) {
            const float *from = x + (size_t)r * stride + k;
            float last[INT8_GROUP] = {0};
            if (n - k < INT8_GROUP)
                from = memcpy(last, from, (size_t)(n - k) * sizeof(float));
            pack_group(packed + r * GROUP_BYTES, step, from);
        }
    }
}

#endif
