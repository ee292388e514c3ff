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

#include <cuda.h>
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

/* The same for compute capability 9.0. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PTX_HOPPER 1
#else
#define PTX_HOPPER 0
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

/* ---- barriers and copies of boxes ----------------------------------------------------------- */

/* A barrier of n_threads threads of a block, whole warps, by its number; 0 is __syncthreads(). */
static __device__ __forceinline__ void barrier_wait(int number, int n_threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(n_threads) : "memory");
}

/* Lets the kernel after this one start when it is launched to overlap with this one: its blocks
 * take what room there is once every block of this kernel has come here or ended. */
static __device__ __forceinline__ void next_kernel_start(void)
{
#if PTX_HOPPER
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Waits until the kernels before this one are complete and what they wrote can be read. Every block
 * of a kernel that is launched to overlap comes here, so that no kernel ends before an earlier one.
 */
static __device__ __forceinline__ void previous_kernel_wait(void)
{
#if PTX_HOPPER
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if PTX_HOPPER

/* An object in shared memory on which threads wait for copies. A phase of it is over when
 * n_arrivals threads have arrived and the bytes they announced are there. */
static __device__ __forceinline__ void copy_barrier_init(uint32_t barrier, int n_arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(n_arrivals)
                 : "memory");
}

/* After the initialisation, before the barrier of the block that shows it to the others. */
static __device__ __forceinline__ void copy_barrier_publish(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* The phase is not over before so many bytes more are there. */
static __device__ __forceinline__ void copy_barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

/* Nor before the copies are that this thread started by copy_async_16(). */
static __device__ __forceinline__ void copy_barrier_expect_async(uint32_t barrier)
{
    asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

static __device__ __forceinline__ void copy_barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Waits for the end of the phase with this parity: 0 for the first, third, ... of the barrier. */
static __device__ __forceinline__ void copy_barrier_wait(uint32_t barrier, int parity)
{
    uint32_t is_over;
    do {
        asm volatile("{\n"
                     ".reg .pred over;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, over;\n"
                     "}\n"
                     : "=r"(is_over)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!is_over);
}

/* Starts the copy of a box of a matrix, by one thread; its bytes count as arrived on the barrier.
 * map: how the matrix lies in memory and the box in shared memory, a parameter of the kernel. The
 * L2 cache drops the box first: it is for what is read once. */
static __device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, int column,
                                                int row, uint32_t barrier)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
                 : "memory");
}

/* Brings the description of a matrix near before its first use. */
static __device__ __forceinline__ void copy_box_prepare(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* Between other accesses to shared memory and copy_box() to the same place. */
static __device__ __forceinline__ void copy_box_fence(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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
