/* ptx.cuh - the machine instructions that CUDA C has no name for, one function each.
 *
 * Everything that needs PTX is here and nowhere else. Source: NVIDIA, "Parallel Thread Execution
 * ISA", version 9.0; fragment layouts are those of its section on mma.
 *
 * Fragments. In a warp, row = lane / 4 and pair = lane % 4. A 16x8 accumulator tile c holds
 *   c[0], c[1]: row, columns 2 pair and 2 pair + 1;   c[2], c[3]: row + 8, the same columns.
 */
#ifndef QUIRE_CUDA_PTX_CUH
#define QUIRE_CUDA_PTX_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

/* True while compiling device code that may use instructions of compute capability 8.0. On the host
 * it is true as well, so that templates look the same from both sides. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define PTX_AMPERE 1
#else
#define PTX_AMPERE 0
#endif

/* Address of shared memory as the instructions below take it. */
static __device__ __forceinline__ uint32_t shared_address(const void *memory)
{
    return (uint32_t)__cvta_generic_to_shared(memory);
}

/* 2^x, within 2 ulp; 2^-inf is 0. The softmax works with powers of two, so this one instruction is
 * all of its exponential. */
static __device__ __forceinline__ float exp2_approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1/x, within 1 ulp. */
static __device__ __forceinline__ float reciprocal_approx(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- copies to shared memory ---------------------------------------------------------------- */

static __device__ __forceinline__ void store_shared_16(uint32_t to, uint4 value)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w)
                 : "memory");
}

static __device__ __forceinline__ uint4 load_shared_16(uint32_t from)
{
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(from)
                 : "memory");
    return value;
}

#if PTX_AMPERE

/* Starts a copy of 16 bytes past the registers and the L1 cache; writes zeros, and reads nothing,
 * when the source is not valid. */
static __device__ __forceinline__ void copy_async_16(uint32_t to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

/* Closes a group of copies. Groups complete in the order in which they were closed. */
static __device__ __forceinline__ void copy_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most `pending` of this thread's groups are incomplete. Data copied by other
 * threads needs a barrier as well. */
template <int pending> static __device__ __forceinline__ void copy_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#endif

/* ---- matrix products ------------------------------------------------------------------------ */

/* Four 8x8 matrices of 16-bit elements; lanes 8 i .. 8 i + 7 give the addresses of the rows of
 * matrix i. Each thread receives two neighbours of row lane / 4 of each. */
static __device__ __forceinline__ void load_matrix_x4(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* The same with each matrix transposed: two neighbours of column lane / 4. */
static __device__ __forceinline__ void load_matrix_x4_transposed(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* c += a b for a: 16x16 (rows), b: 16x8 (columns), c: 16x8 in f32. `tag` selects the type. */
#if PTX_AMPERE
static __device__ __forceinline__ void multiply_16x8x16(float c[4], const uint32_t a[4],
                                                        uint32_t b0, uint32_t b1, __nv_bfloat16 tag)
{
    (void)tag;
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void multiply_16x8x16(float c[4], const uint32_t a[4],
                                                        uint32_t b0, uint32_t b1, __half tag)
{
    (void)tag;
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

/* The same product in the two halves that compute capability 7.5 has. Only f16 exists there. */
static __device__ __forceinline__ void multiply_16x8x8_twice(float c[4], const uint32_t a[4],
                                                             uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
}

/* Two f32 rounded to 16 bits each, the first in the lower half. */
static __device__ __forceinline__ uint32_t pack_pair(float first, float second, __nv_bfloat16 tag)
{
    (void)tag;
    __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<uint32_t *>(&pair);
}

static __device__ __forceinline__ uint32_t pack_pair(float first, float second, __half tag)
{
    (void)tag;
    __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<uint32_t *>(&pair);
}

#endif
