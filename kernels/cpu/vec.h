/* vec.h - a vector of f32 lanes, as wide as the instruction set this file is compiled for.
 *
 * Kernels are written once against this header; each isa_*.c compiles them with other flags. `+`,
 * `-`, `*` and `/` work on vec by the compilers' vector extensions. Products that are summed go
 * through vec_fma, so that no compiler decides about contraction and with it about the last bit.
 */
#ifndef QUIRE_CPU_VEC_H
#define QUIRE_CPU_VEC_H

#include "kernels/cpu/convert.h"

#define VEC_INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define VEC_UNROLL _Pragma("unroll")
#else
#define VEC_UNROLL _Pragma("GCC unroll 32")
#endif

/* ---- what differs between instruction sets ---- */

#if defined(__AVX512F__)

#include <immintrin.h>

#define VEC_N 16
typedef __m512 vec;

VEC_INLINE vec vec_set1(float x)
{
    return _mm512_set1_ps(x);
}
VEC_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
VEC_INLINE vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}
VEC_INLINE vec vec_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}
VEC_INLINE vec vec_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
VEC_INLINE vec vec_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
VEC_INLINE void vec_store_f16(uint16_t *p, vec v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
VEC_INLINE vec vec_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
VEC_INLINE void vec_store_n(float *p, vec v, int n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
}
VEC_INLINE float vec_sum(vec v)
{
    return _mm512_reduce_add_ps(v);
}
VEC_INLINE float vec_largest(vec v)
{
    return _mm512_reduce_max_ps(v);
}
/* 16-bit halves: a0 b0 a1 b1 .. in low, the second halves of a and b in high. */
VEC_INLINE void vec_interleave(vec a, vec b, vec *low, vec *high)
{
    const __m512i step = _mm512_set1_epi32(0x00010001);
    __m512i index = _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005,
                                      0x260006, 0x270007, 0x280008, 0x290009, 0x2A000A, 0x2B000B,
                                      0x2C000C, 0x2D000D, 0x2E000E, 0x2F000F);
    __m512i x = _mm512_castps_si512(a), y = _mm512_castps_si512(b);
    *low = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, index, y));
    index = _mm512_add_epi16(index, _mm512_slli_epi32(step, 4));
    *high = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, index, y));
}
/* Three rounds of a butterfly: within 128 bits by one lane and by two, then the 128-bit parts. */
VEC_INLINE void vec_transpose(vec row[VEC_N])
{
    vec a[VEC_N], b[VEC_N];
    VEC_UNROLL
    for (int i = 0; i < VEC_N; i += 2) {
        a[i] = _mm512_unpacklo_ps(row[i], row[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(row[i], row[i + 1]);
    }
    VEC_UNROLL
    for (int i = 0; i < VEC_N; i += 4) {
        VEC_UNROLL
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xEE);
        }
    }
    VEC_UNROLL
    for (int i = 0; i < 4; i++) {
        vec low0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
        vec low1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
        vec high0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xDD);
        vec high1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xDD);
        row[i] = _mm512_shuffle_f32x4(low0, low1, 0x88);
        row[i + 4] = _mm512_shuffle_f32x4(high0, high1, 0x88);
        row[i + 8] = _mm512_shuffle_f32x4(low0, low1, 0xDD);
        row[i + 12] = _mm512_shuffle_f32x4(high0, high1, 0xDD);
    }
}

#elif defined(__AVX2__)

#include <immintrin.h>

#define VEC_N 8
typedef __m256 vec;

VEC_INLINE vec vec_set1(float x)
{
    return _mm256_set1_ps(x);
}
VEC_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
VEC_INLINE vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}
VEC_INLINE vec vec_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}
VEC_INLINE vec vec_load_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
VEC_INLINE vec vec_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
VEC_INLINE void vec_store_f16(uint16_t *p, vec v)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
VEC_INLINE __m256i vec_first_lanes(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VEC_INLINE vec vec_load_n(const float *p, int n)
{
    return _mm256_maskload_ps(p, vec_first_lanes(n));
}
VEC_INLINE void vec_store_n(float *p, vec v, int n)
{
    _mm256_maskstore_ps(p, vec_first_lanes(n), v);
}
VEC_INLINE float vec_sum(vec v)
{
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return sum[0] + sum[1];
}
VEC_INLINE float vec_largest(vec v)
{
    __m128 top = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    return top[0] > top[1] ? top[0] : top[1];
}
/* Three rounds of a butterfly: within 128 bits by one lane and by two, then the halves. */
VEC_INLINE void vec_transpose(vec row[VEC_N])
{
    vec a[VEC_N], b[VEC_N];
    VEC_UNROLL
    for (int i = 0; i < VEC_N; i += 2) {
        a[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    VEC_UNROLL
    for (int i = 0; i < VEC_N; i += 4) {
        VEC_UNROLL
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xEE);
        }
    }
    VEC_UNROLL
    for (int i = 0; i < 4; i++) {
        row[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        row[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

#else /* portable: four lanes, which compilers map to SSE2 or NEON */

#define VEC_N 4
typedef float vec __attribute__((vector_size(16)));

VEC_INLINE vec vec_set1(float x)
{
    return (vec){x, x, x, x};
}
VEC_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return a * b + c;
}
VEC_INLINE vec vec_max(vec a, vec b)
{
    for (int i = 0; i < VEC_N; i++)
        a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
VEC_INLINE vec vec_min(vec a, vec b)
{
    for (int i = 0; i < VEC_N; i++)
        a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}
VEC_INLINE vec vec_load_bf16(const uint16_t *p)
{
    return (vec){bf16_to_f32(p[0]), bf16_to_f32(p[1]), bf16_to_f32(p[2]), bf16_to_f32(p[3])};
}
VEC_INLINE vec vec_load_f16(const uint16_t *p)
{
    return (vec){f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])};
}
VEC_INLINE void vec_store_f16(uint16_t *p, vec v)
{
    for (int i = 0; i < VEC_N; i++)
        p[i] = f32_to_f16(v[i]);
}
VEC_INLINE vec vec_load_n(const float *p, int n)
{
    vec v = {0};
    for (int i = 0; i < n; i++)
        v[i] = p[i];
    return v;
}
VEC_INLINE void vec_store_n(float *p, vec v, int n)
{
    for (int i = 0; i < n; i++)
        p[i] = v[i];
}
VEC_INLINE float vec_sum(vec v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}
VEC_INLINE float vec_largest(vec v)
{
    float top = v[0];
    for (int i = 1; i < VEC_N; i++)
        top = v[i] > top ? v[i] : top;
    return top;
}
VEC_INLINE void vec_transpose(vec row[VEC_N])
{
    for (int i = 0; i < VEC_N; i++) {
        for (int j = 0; j < i; j++) {
            float swap = row[i][j];
            row[i][j] = row[j][i];
            row[j][i] = swap;
        }
    }
}

#endif

/* ---- the same for all ---- */

/* vec_max(a, b) and vec_min(a, b) return b in lanes where either is a NaN. vec_load_n and
 * vec_store_n touch only the first n <= VEC_N lanes; the others load as zero. vec_transpose
 * exchanges lane j of row[i] with lane i of row[j]. vec_sum adds the lanes in the order of a binary
 * tree; vec_largest of lanes with a NaN may be any of them. */

typedef int32_t veci __attribute__((vector_size(VEC_N * 4)));
typedef uint32_t vecu __attribute__((vector_size(VEC_N * 4)));

VEC_INLINE vec vec_load(const float *p)
{
    vec v;
    memcpy(&v, p, sizeof(v));
    return v;
}

VEC_INLINE void vec_store(float *p, vec v)
{
    memcpy(p, &v, sizeof(v));
}

/* Rounds to nearest even; a NaN becomes a quiet one. */
VEC_INLINE void vec_store_bf16(uint16_t *p, vec v)
{
    vecu bits = (vecu)v, rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
    vecu is_nan = (vecu)((bits & 0x7FFFFFFFu) > 0x7F800000u);
    vecu chosen = (is_nan & (bits | 0x400000u)) | (~is_nan & rounded);
    for (int i = 0; i < VEC_N; i++)
        p[i] = (uint16_t)(chosen[i] >> 16);
}

/* VEC_N elements of an array of this type from element i on, and the way back. */
VEC_INLINE vec vec_load_as(enum dtype dtype, const void *array, size_t i)
{
    switch (dtype) {
    case DTYPE_BF16: return vec_load_bf16((const uint16_t *)array + i);
    case DTYPE_F16: return vec_load_f16((const uint16_t *)array + i);
    default: return vec_load((const float *)array + i);
    }
}

VEC_INLINE void vec_store_as(enum dtype dtype, void *array, size_t i, vec v)
{
    switch (dtype) {
    case DTYPE_BF16: vec_store_bf16((uint16_t *)array + i, v); break;
    case DTYPE_F16: vec_store_f16((uint16_t *)array + i, v); break;
    default: vec_store((float *)array + i, v);
    }
}

/* The same for the first n < VEC_N elements; the other lanes are zero. */
VEC_INLINE vec vec_load_as_n(enum dtype dtype, const void *array, size_t i, int n)
{
    float lane[VEC_N] = {0};
    for (int j = 0; j < n; j++)
        lane[j] = load_element(dtype, array, i + (size_t)j);
    return vec_load(lane);
}

VEC_INLINE void vec_store_as_n(enum dtype dtype, void *array, size_t i, vec v, int n)
{
    for (int j = 0; j < n; j++)
        store_element(dtype, array, i + (size_t)j, v[j]);
}

/* e^x = 2^n (1 + p) for -127 ln 2 <= x < 128 ln 2: returns p and 2^n, which is 0 for n = -127.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r) with q interpolated at the Chebyshev
 * nodes (relative error of the formula 1e-9); n ln 2 is taken off in two parts that are exact. */
VEC_INLINE vec vec_exp_parts(vec x, vec *power)
{
    const float round_magic = 0x1.8p23f; /* adding it leaves round(x) in the low bits */
    vec shifted = vec_fma(x, vec_set1(0x1.715476p+0f), vec_set1(round_magic));
    vec n = shifted - vec_set1(round_magic);
    vec r = vec_fma(n, vec_set1(-0x1.62e4p-1f), x);
    r = vec_fma(n, vec_set1(-0x1.7f7d1cp-20f), r);
    vec q = vec_set1(0x1.6d113cp-10f);
    q = vec_fma(q, r, vec_set1(0x1.120ba2p-7f));
    q = vec_fma(q, r, vec_set1(0x1.55551ap-5f));
    q = vec_fma(q, r, vec_set1(0x1.5554dcp-3f));
    q = vec_fma(q, r, vec_set1(0.5f));
    *power = (vec)(((veci)shifted << 23) + (127 << 23));
    return vec_fma(r * r, q, r);
}

/* e^x with a relative error below 2^-22.5; 0 below -87.3, e^88.37 above 88.37, 1 at 0 exactly. */
VEC_INLINE vec vec_exp(vec x)
{
    vec power;
    x = vec_max(vec_set1(-87.33f - 0.6f), vec_min(vec_set1(88.37f), x));
    vec e = vec_exp_parts(x, &power) + vec_set1(1.0f);
    return e * power;
}

/* tanh x = (e^2|x| - 1) / (e^2|x| + 1) with the sign of x, and a relative error below 2^-22.3: the
 * numerator 2^n p + (2^n - 1) keeps the digits of a small x. From 2 |x| = 20 on it is 1. */
VEC_INLINE vec vec_tanh(vec x)
{
    vecu sign = (vecu)x & 0x80000000u;
    vec magnitude = (vec)((vecu)x ^ sign), power;
    vec p = vec_exp_parts(vec_min(vec_set1(20.0f), magnitude + magnitude), &power);
    vec e = vec_fma(power, p, power - vec_set1(1.0f));
    return (vec)((vecu)(e / (e + vec_set1(2.0f))) | sign);
}

#endif
