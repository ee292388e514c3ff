/* attention_hopper.cu - attention of the sequences that bring several tokens, for compute
 * capability 9.0.
 *
 *   out[t, h] = softmax(scale q[t, h] K^T + mask) V
 *
 * Jobs are those of attention_prefill.cuh. A block of threads is one warp group that fetches
 * (attention_hopper_copies.cuh) and N_GROUPS that compute (attention_hopper_groups.cuh). Each of
 * these has 64 query rows, whose output stays in registers, and takes the keys in slabs: pairs of
 * tiles for head_dim 64 and 128 (attention_hopper_pairs.cuh), one tile for 256
 * (attention_hopper_wide.cuh). Whether keys and values are there is asked well before they are
 * needed.
 *
 * Nothing but the rings of keys and values holds the groups together, so one does its softmax while
 * the products of another run. At the end of a chunk the output so far waits in shared memory, or
 * where that is full in scratch memory.
 *
 * 4 n_rows n_keys head_dim operations, half of it with the causal mask; bytes do not matter.
 *
 * On an H200 a pair takes two groups 2,900 cycles, of which their products are 2,048
 * (results/bench/h200-prefill.md).
 */
#include "kernels/cuda/attention_hopper_pairs.cuh"
#include "kernels/cuda/attention_hopper_wide.cuh"

#if PTX_WARP_GROUPS

template <typename T, bool CAPPED, int D, int N_GROUPS>
static __device__ __forceinline__ void
run_rows(const struct attention_params *p, struct hopper_shared<D, N_GROUPS> *shared, int group)
{
    struct group_work<D, N_GROUPS> g = {
        p, shared, group
    };
    struct group_task task;
    g.q = shared_address(shared->q[group]);
    g.staging = &shared->staging[group * GROUP_WARPS + group_warp()];
    g.k = ring_start(&shared->k, &shared->k_barriers);
    g.v = ring_start(&shared->v, &shared->v_barriers);
    if (!group_take(&g, &task))
        return;
    ring_skip<D>(&g.v, task.first - job_first_slab<D>(task.job));
    if constexpr (slab_tiles(D) == 2)
        pair_run<T, CAPPED>(&g, &task);
    else
        wide_run<T, CAPPED>(&g, &task);
}

#endif

/* ---- the kernel ----------------------------------------------------------------------------- */

/* Registers of a thread that fetches, and of one that computes: together all that there are. */
#define FETCH_REGISTERS(n_groups) ((n_groups) == 3 ? 32 : 40)
#define GROUP_REGISTERS(n_groups) ((n_groups) == 3 ? 160 : 232)

template <typename T, int D, int N_GROUPS, bool CAPPED>
static __global__ void __launch_bounds__(GROUP_THREADS *(1 + N_GROUPS), 1)
    hopper_kernel(const __grid_constant__ struct attention_params p,
                  const __grid_constant__ struct hopper_maps maps)
{
#if PTX_WARP_GROUPS
    extern __shared__ __align__(PATTERN_BYTES) unsigned char memory[];
    auto shared = (struct hopper_shared<D, N_GROUPS> *)memory;
    int group = __shfl_sync(~0u, threadIdx.x / GROUP_THREADS, 0); /* known to be of the warp */
    int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (threadIdx.x == 0)
        hopper_shared_init(shared);
    __syncthreads();
    if (group == 0) {
        registers_shrink<FETCH_REGISTERS(N_GROUPS)>();
        struct ring_place k = ring_start(&shared->k, &shared->k_barriers);
        struct ring_place v = ring_start(&shared->v, &shared->v_barriers);
        previous_kernel_wait();
        if (warp == 0)
            run_queries<T>(&p, &maps, shared);
        else if (warp == 1)
            run_slabs<T>(&p, shared, k, &maps.k, p.k, maps.box_groups);
        else if (warp == 2)
            run_slabs<T>(&p, shared, v, &maps.v, p.v, maps.box_groups);
    } else {
        registers_grow<GROUP_REGISTERS(N_GROUPS)>();
        run_rows<T, CAPPED>(&p, shared, group - 1);
    }
#endif
}

template <typename T, int D, int N_GROUPS, bool CAPPED>
static void hopper_launch(const struct cuda_device *d, const struct attention_params *p)
{
    int grid = MIN(max_jobs(p, N_GROUPS * GROUP_ROWS), d->n_sms);
    struct hopper_maps maps = {};
    assert((size_t)grid * N_GROUPS * GROUP_WARPS * far_tiles(D) * 32 * 4 <= p->scratch_floats);
    maps.box_tokens = GROUP_ROWS % p->heads_per_kv == 0 ? GROUP_ROWS / p->heads_per_kv : 0;
    maps.box_groups = p->block_size % ATTENTION_TILE == 0 ? TILE_GROUPS : 1;
    if (maps.box_tokens > 0)
        attention_map_queries(&maps.q, p, maps.box_tokens);
    attention_map_boxes(&maps.k, p->k, D, maps.box_groups * GROUP_KEYS, 64);
    attention_map_boxes(&maps.v, p->v, D, maps.box_groups * GROUP_KEYS, 64);
    cuda_launch_early(d, hopper_kernel<T, D, N_GROUPS, CAPPED>, dim3(grid),
                      GROUP_THREADS * (1 + N_GROUPS), sizeof(struct hopper_shared<D, N_GROUPS>), *p,
                      maps);
}

/* Up to so many keys jobs of head_dim 64 have 128 rows: 1x512 tokens of 32 heads take 11.1 us, with
 * 192 rows 13.0; 16x1024 tokens take 246 and 253 us. */
#define HOPPER_SHORT_KEYS 1024

/* As many groups as the registers of a multiprocessor hold the rows of; but the end of a job is not
 * hidden, and where sequences are short smaller jobs fill the multiprocessors better. */
template <typename T, bool CAPPED>
static bool hopper_launch_size(const struct cuda_device *d, const struct attention_params *p)
{
    bool is_short = p->max_blocks * p->block_size <= HOPPER_SHORT_KEYS;
    if (p->head_dim == 128)
        hopper_launch<T, 128, 2, CAPPED>(d, p);
    else if (p->head_dim == 256)
        hopper_launch<T, 256, 2, CAPPED>(d, p);
    else if (p->head_dim == 64 && is_short)
        hopper_launch<T, 64, 2, CAPPED>(d, p);
    else if (p->head_dim == 64)
        hopper_launch<T, 64, 3, CAPPED>(d, p);
    else
        return false;
    return true;
}

/* With so few keys there is nothing to overlap: four prompts of 64 tokens took 8.3 us here, 7.3 in
 * the other kernel. */
#define HOPPER_MIN_KEYS (2 * ATTENTION_TILE)

/* A box of keys must lie within one block of the cache. */
bool attention_hopper(const struct cuda_device *d, const struct attention_params *p)
{
    if (!cuda_has_warp_groups(d) || p->block_size % GROUP_KEYS != 0 ||
        p->act_dtype != p->kv_dtype || p->max_blocks * p->block_size <= HOPPER_MIN_KEYS)
        return false;
    bool capped = p->slope > 0;
    if (p->act_dtype == DTYPE_BF16)
        return capped ? hopper_launch_size<__nv_bfloat16, true>(d, p)
                      : hopper_launch_size<__nv_bfloat16, false>(d, p);
    if (p->act_dtype == DTYPE_F16)
        return capped ? hopper_launch_size<__half, true>(d, p)
                      : hopper_launch_size<__half, false>(d, p);
    return false;
}
