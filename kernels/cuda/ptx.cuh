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

/* The same for those that exist in 9.0 alone, which is compiled for by its full name then. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "compile for 90a: code for 90 lacks the products of warp groups"
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PTX_WARP_GROUPS 1
#else
#define PTX_WARP_GROUPS 0
#endif

/* Address of shared memory as the instructions below take it. */
static __device__ __forceinline__ uint32_t shared_address(const void *memory)
{
    return (uint32_t)__cvta_generic_to_shared(memory);
}

/* threadIdx.x, read anew: the compiler keeps nothing that depends on it in registers until it is
 * needed again. */
static __device__ __forceinline__ int thread_anew(void)
{
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
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

/* Adds to a counter; returns what it was. What this thread and those that met it at a barrier wrote
 * is seen by threads that meet one who adds after it. */
static __device__ __forceinline__ int count_arrival(int *counter, int n)
{
    int before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(n)
                 : "memory");
    return before;
}

/* The same for a counter that goes from `last` back to zero, and nobody waits for what it was. */
static __device__ __forceinline__ void count_arrival_around(int *counter, int last)
{
    asm volatile("red.release.gpu.global.inc.u32 [%0], %1;" ::"l"(counter), "r"(last) : "memory");
}

/* Waits until a counter has come to n. */
static __device__ __forceinline__ void count_wait(const int *counter, int n)
{
    int count;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    } while (count < n);
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

/* Counts for others who wait at the barrier, without waiting. */
static __device__ __forceinline__ void barrier_arrive(int number, int n_threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(n_threads) : "memory");
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

/* As n threads. */
static __device__ __forceinline__ void copy_barrier_arrive_as(uint32_t barrier, int n)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(n) : "memory");
}

/* copy_barrier_expect() and copy_barrier_arrive() in one. */
static __device__ __forceinline__ void copy_barrier_arrive_expecting(uint32_t barrier,
                                                                     uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

#define DEFINE_BARRIER_QUESTION(name, instruction)                                                 \
    static __device__ __forceinline__ bool name(uint32_t barrier, int parity)                      \
    {                                                                                              \
        uint32_t is_over;                                                                          \
        asm volatile("{\n"                                                                         \
                     ".reg .pred over;\n" instruction ".parity.shared::cta.b64 over, [%1], %2;\n"  \
                     "selp.u32 %0, 1, 0, over;\n"                                                  \
                     "}\n"                                                                         \
                     : "=r"(is_over)                                                               \
                     : "r"(barrier), "r"(parity)                                                   \
                     : "memory");                                                                  \
        return is_over;                                                                            \
    }

/* Whether the phase with this parity is over, 0 for the first, third, ... of the barrier. is_over
 * waits a while when it is not, was_over answers at once. */
DEFINE_BARRIER_QUESTION(copy_barrier_is_over, "mbarrier.try_wait")
DEFINE_BARRIER_QUESTION(copy_barrier_was_over, "mbarrier.test_wait")

/* Waits for the end of the phase with this parity. */
static __device__ __forceinline__ void copy_barrier_wait(uint32_t barrier, int parity)
{
    while (!copy_barrier_is_over(barrier, parity))
        continue;
}

/* The same by whole warps, whose lanes leave together: so the compiler keeps addresses in registers
 * that a warp has once, where products of warp groups take them from. */
static __device__ __forceinline__ void copy_barrier_wait_together(uint32_t barrier, int parity)
{
    while (!__all_sync(0xFFFFFFFFu, copy_barrier_is_over(barrier, parity)))
        continue;
}

/* Starts the copy of a box of a matrix, by one thread; its bytes count as arrived on the barrier.
 * map: how the matrix lies in memory and the box in shared memory, a parameter of the kernel. The
 * L2 cache drops the box first: it is for what is read once. */
static __device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, int row,
                                                uint32_t barrier)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %2}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(0), "r"(row), "r"(barrier), "l"(policy)
                 : "memory");
}

/* The same for what other blocks read as well: the L2 cache keeps it. */
static __device__ __forceinline__ void copy_box_kept(uint32_t to, const CUtensorMap *map,
                                                     int column, int row, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

/* Brings the description of a matrix near before its first use. */
static __device__ __forceinline__ void copy_box_prepare(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* The same for a box of an array of three dimensions, the innermost first. */
static __device__ __forceinline__ void copy_block(uint32_t to, const CUtensorMap *map, int x, int y,
                                                  int z, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
                 : "memory");
}

/* Brings such a box to the L2 cache. */
static __device__ __forceinline__ void prefetch_block(const CUtensorMap *map, int x, int y, int z)
{
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map),
                 "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/* The same for a matrix whose columns are cut into panels, [panel][row][column], with the panels of
 * a box one behind the other. */
static __device__ __forceinline__ void copy_panels(uint32_t to, const CUtensorMap *map, int row,
                                                   int panel, uint32_t barrier)
{
    copy_block(to, map, 0, row, panel, barrier);
}

/* The same for a matrix whose rows are cut into two halves as well: [panel][half][row][column]. */
static __device__ __forceinline__ void copy_panel_halves(uint32_t to, const CUtensorMap *map,
                                                         int row, int panel, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {0, %2, 0, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(row), "r"(panel), "r"(barrier)
                 : "memory");
}

/* ---- clusters: blocks that reach each other's shared memory ---- */

/* By all threads of all blocks of the cluster. */
static __device__ __forceinline__ void cluster_wait(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* The two halves of it, but what this thread did before is not shown to the other blocks. */
static __device__ __forceinline__ void cluster_arrive(void)
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

static __device__ __forceinline__ void cluster_wait_arrived(void)
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Where another block of the cluster has what this one has at the address. */
static __device__ __forceinline__ uint32_t peer_address(uint32_t address, int rank)
{
    uint32_t peer;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
    return peer;
}

/* copy_barrier_arrive() at a barrier of another block, by its peer_address(). What this thread did
 * before is not shown to that block: it is for places that the tensor cores have read. */
static __device__ __forceinline__ void copy_barrier_arrive_at_peer(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* copy_block() to all blocks of the cluster in the set of ranks `blocks`, at once: each gets the
 * box, and its bytes on the barrier, at these addresses of its own memory. */
static __device__ __forceinline__ void copy_block_to_blocks(uint32_t to, const CUtensorMap *map,
                                                            int x, int y, int z, uint32_t barrier,
                                                            uint16_t blocks)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(blocks)
                 : "memory");
}

/* Starts a store to another block; its 4 bytes count as arrived on a barrier of that block. */
static __device__ __forceinline__ void store_to_peer(uint32_t to, float value, uint32_t barrier)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to),
        "f"(value), "r"(barrier)
        : "memory");
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

/* An 8x8 matrix of 16-bit elements in a warp's registers, transposed: each thread has two
 * neighbours of row lane / 4. */
static __device__ __forceinline__ uint32_t transpose_matrix(uint32_t pair)
{
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
    return transposed;
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

/* The two of a pack_pair() again. */
static __device__ __forceinline__ float2 unpack_pair(uint32_t pair, __nv_bfloat16 tag)
{
    (void)tag;
    return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162 *>(&pair));
}

static __device__ __forceinline__ float2 unpack_pair(uint32_t pair, __half tag)
{
    (void)tag;
    return __half22float2(*reinterpret_cast<__half2 *>(&pair));
}

/* ---- products of warp groups ---------------------------------------------------------------- */

/* Four warps, the first a multiple of four, multiply together: warp w has rows 16 w to 16 w + 15 of
 * an accumulator of 64 rows, as 16x8 tiles side by side. The product runs on while the warps do;
 * until it has been waited for, they must not touch its registers. Its sums are in the order of
 * multiply_16x8x16(): the same bits. */
#if PTX_WARP_GROUPS

/* Gives registers back, or takes what others gave back: n_registers per thread from here on. By all
 * threads of a warp group. */
template <int n_registers> static __device__ __forceinline__ void registers_shrink(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n_registers));
}

template <int n_registers> static __device__ __forceinline__ void registers_grow(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n_registers));
}

/* Before the first product that uses registers written by other instructions. */
static __device__ __forceinline__ void group_multiply_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Closes a batch of products. Batches complete in order. */
static __device__ __forceinline__ void group_multiply_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits until at most n_pending batches are incomplete. */
template <int n_pending> static __device__ __forceinline__ void group_multiply_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n_pending) : "memory");
}

/* After the wait for c: keeps the compiler from reading it earlier. */
template <int N> static __device__ __forceinline__ void group_multiply_end(float c[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}

/* Describes a right operand in shared memory whose lines of 128 bytes are swizzled in patterns of
 * eight lines. stride_8: bytes from eight lines to the next eight; stride_64: from 64 columns to
 * the next 64 of an operand whose lines run along its columns. Adding n moves it by 16 n bytes. */
static __device__ __forceinline__ uint64_t group_operand(uint32_t address, uint32_t stride_8,
                                                         uint32_t stride_64)
{
    uint32_t low = address >> 4 | stride_64 >> 4 << 16, high = stride_8 >> 4 | 1u << 30;
    return (uint64_t)high << 32 | low;
}

#define TILE_OPERANDS(mode, c, n) mode(c[n][0]), mode(c[n][1]), mode(c[n][2]), mode(c[n][3])
#define TWO_TILES(mode, c, n)     TILE_OPERANDS(mode, c, n), TILE_OPERANDS(mode, c, n + 1)
#define FOUR_TILES(mode, c, n)    TWO_TILES(mode, c, n), TWO_TILES(mode, c, n + 2)
#define SIX_TILES(mode, c, n)     FOUR_TILES(mode, c, n), TWO_TILES(mode, c, n + 4)
#define EIGHT_TILES(mode, c, n)   FOUR_TILES(mode, c, n), FOUR_TILES(mode, c, n + 4)
#define TWELVE_TILES(mode, c, n)  EIGHT_TILES(mode, c, n), FOUR_TILES(mode, c, n + 8)
#define SIXTEEN_TILES(mode, c, n) EIGHT_TILES(mode, c, n), EIGHT_TILES(mode, c, n + 8)
#define MOST_TILES(mode, c, n)    SIXTEEN_TILES(mode, c, n), EIGHT_TILES(mode, c, n + 16)
#define FIRST_8                   "%0, %1, %2, %3, %4, %5, %6, %7"
#define FIRST_16                  FIRST_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FIRST_24                  FIRST_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define FIRST_32                  FIRST_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define FIRST_48                                                                                   \
    FIRST_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define FIRST_64                                                                                   \
    FIRST_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FIRST_96                                                                                   \
    FIRST_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"    \
             ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FIRST_128                                                                                  \
    FIRST_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109"    \
             ", %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122"      \
             ", %123, %124, %125, %126, %127"
#define THIRTY_TWO_TILES(mode, c, n) SIXTEEN_TILES(mode, c, n), SIXTEEN_TILES(mode, c, n + 16)
#define LEFT_OPERAND(a)              "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])

/* For b: 16 x columns, group_operand():
 *   multiply_keys_128    c = a b, 128 columns, for a: 64x16 in shared memory, group_operand(), too;
 *                        lines of b run along the sum. ADD: c += a b.
 *   multiply_values_64   c += a b, 64 columns, for a: 64x16, in registers, and lines of b that run
 *                        along its columns. Without `add`, which is not constant: c = a b.
 *   multiply_values_128  the same, 128 columns.
 *   multiply_values_256  the same, 256 columns.
 * A left operand in registers holds the warp until its product begins; two operands in shared
 * memory do not, but 64 columns of them take all that shared memory gives. */
#define DEFINE_GROUP_PRODUCTS(type, name)                                                          \
    template <bool ADD>                                                                            \
    static __device__ __forceinline__ void multiply_keys_128(float c[16][4], uint64_t a,           \
                                                             uint64_t b, type)                     \
    {                                                                                              \
        if (ADD)                                                                                   \
            asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name              \
                         " {" FIRST_64 "}, %64, %65, 1, 1, 1, 0, 0;"                               \
                         : EIGHT_TILES("+f", c, 0), EIGHT_TILES("+f", c, 8)                        \
                         : "l"(a), "l"(b));                                                        \
        else                                                                                       \
            asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name              \
                         " {" FIRST_64 "}, %64, %65, 0, 1, 1, 0, 0;"                               \
                         : EIGHT_TILES("=f", c, 0), EIGHT_TILES("=f", c, 8)                        \
                         : "l"(a), "l"(b));                                                        \
    }                                                                                              \
    static __device__ __forceinline__ void multiply_values_64(float c[8][4], const uint32_t a[4],  \
                                                              uint64_t b, bool add, type)          \
    {                                                                                              \
        asm volatile("{\n"                                                                         \
                     ".reg .pred add;\n"                                                           \
                     "setp.ne.b32 add, %37, 0;\n"                                                  \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " {" FIRST_32     \
                     "}, {%32, %33, %34, %35}, %36, add, 1, 1, 1;\n"                               \
                     "}"                                                                           \
                     : EIGHT_TILES("+f", c, 0)                                                     \
                     : LEFT_OPERAND(a), "l"(b), "r"((int)add));                                    \
    }                                                                                              \
    static __device__ __forceinline__ void multiply_values_128(                                    \
        float c[16][4], const uint32_t a[4], uint64_t b, bool add, type)                           \
    {                                                                                              \
        asm volatile("{\n"                                                                         \
                     ".reg .pred add;\n"                                                           \
                     "setp.ne.b32 add, %69, 0;\n"                                                  \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " {" FIRST_64    \
                     "}, {%64, %65, %66, %67}, %68, add, 1, 1, 1;\n"                               \
                     "}"                                                                           \
                     : EIGHT_TILES("+f", c, 0), EIGHT_TILES("+f", c, 8)                            \
                     : LEFT_OPERAND(a), "l"(b), "r"((int)add));                                    \
    }                                                                                              \
    static __device__ __forceinline__ void multiply_values_256(                                    \
        float c[32][4], const uint32_t a[4], uint64_t b, bool add, type)                           \
    {                                                                                              \
        asm volatile("{\n"                                                                         \
                     ".reg .pred add;\n"                                                           \
                     "setp.ne.b32 add, %133, 0;\n"                                                 \
                     "wgmma.mma_async.sync.aligned.m64n256k16.f32." name "." name " {" FIRST_128   \
                     "}, {%128, %129, %130, %131}, %132, add, 1, 1, 1;\n"                          \
                     "}"                                                                           \
                     : THIRTY_TWO_TILES("+f", c, 0)                                                \
                     : LEFT_OPERAND(a), "l"(b), "r"((int)add));                                    \
    }

DEFINE_GROUP_PRODUCTS(__nv_bfloat16, "bf16")
DEFINE_GROUP_PRODUCTS(__half, "f16")

/* Upper word of what describes a tile: lines of 128 bytes of a row each, swizzled in patterns of
 * eight lines (bit 30), which follow one another at 1024 bytes. The lower word is its address / 16.
 */
#define TILE_LAYOUT "0x40000040"

/* multiply_tiles_N: c += a b^T for a: 64x16, b: Nx16, both in shared memory, addresses / 16 of
 * their first lines at the first of the 16 columns. c: the warp's 16x8 tiles. Without ADD:
 * c = a b^T. */
#define TILE_PRODUCT_TEXT(N, name, NAMES, A, B, ADD)                                               \
    "{\n"                                                                                          \
    ".reg .b64 a, b;\n"                                                                            \
    "mov.b64 a, {" A ", " TILE_LAYOUT "};\n"                                                       \
    "mov.b64 b, {" B ", " TILE_LAYOUT "};\n"                                                       \
    "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." name "." name " {" NAMES "}, a, b, " ADD     \
    ", 1, 1, 0, 0;\n"                                                                              \
    "}"
#define DEFINE_TILE_PRODUCT(N, type, name, TILES, NAMES, A, B)                                     \
    template <bool ADD = true>                                                                     \
    static __device__ __forceinline__ void multiply_tiles_##N(float c[(N) / 8][4], uint32_t a,     \
                                                              uint32_t b, type)                    \
    {                                                                                              \
        if (ADD)                                                                                   \
            asm volatile(TILE_PRODUCT_TEXT(N, name, NAMES, A, B, "1")                              \
                         : TILES("+f", c, 0)                                                       \
                         : "r"(a), "r"(b));                                                        \
        else                                                                                       \
            asm volatile(TILE_PRODUCT_TEXT(N, name, NAMES, A, B, "0")                              \
                         : TILES("=f", c, 0)                                                       \
                         : "r"(a), "r"(b));                                                        \
    }
#define DEFINE_TILE_PRODUCTS(type, name)                                                           \
    DEFINE_TILE_PRODUCT(16, type, name, TWO_TILES, FIRST_8, "%8", "%9")                            \
    DEFINE_TILE_PRODUCT(32, type, name, FOUR_TILES, FIRST_16, "%16", "%17")                        \
    DEFINE_TILE_PRODUCT(48, type, name, SIX_TILES, FIRST_24, "%24", "%25")                         \
    DEFINE_TILE_PRODUCT(64, type, name, EIGHT_TILES, FIRST_32, "%32", "%33")                       \
    DEFINE_TILE_PRODUCT(96, type, name, TWELVE_TILES, FIRST_48, "%48", "%49")                      \
    DEFINE_TILE_PRODUCT(128, type, name, SIXTEEN_TILES, FIRST_64, "%64", "%65")                    \
    DEFINE_TILE_PRODUCT(192, type, name, MOST_TILES, FIRST_96, "%96", "%97")

DEFINE_TILE_PRODUCTS(__nv_bfloat16, "bf16")
DEFINE_TILE_PRODUCTS(__half, "f16")

#endif

#endif
