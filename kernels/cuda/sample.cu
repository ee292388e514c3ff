/* sample.cu - from rows of logits to tokens (struct sample_row says how), wholly on the device.
 *
 * Weights. The weight e^((logit - largest) / temperature) of a token is held as a whole number, its
 * mass, with 2^44 for the largest. Sums of masses are exact, so they do not depend on the order in
 * which threads add, and a draw never falls past the last token. A token of mass 0 cannot be drawn.
 *
 * Draw. Ids are walked upwards: the token drawn is the first at which the sum of the kept masses
 * exceeds philox(seed, index) times the whole.
 *
 * Two kernels. The first reads the logits once: a block per CHUNK of a row, which leaves the
 * chunk's largest logit and its mass relative to that logit. The second has a block per row:
 * without filters it finds the chunk that the draw falls in and reads that chunk again. With top-k,
 * top-p or min-p it finds the last token that is kept by a radix search over q = (largest - logit)
 * / temperature as a fixed-point number, three digits, counting tokens or masses; that reads the
 * row some ten times, from the L2 cache. Bytes: 4 vocab a row; 256 rows of 151,936 take 36 us
 * at 4.3 TB/s.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/philox.h"

#include <float.h>
#include <limits.h>
#include <math_constants.h>

#define CHUNK         8192
#define CHUNK_THREADS 256
#define ROW_THREADS   CUDA_MAX_THREADS
#define ROW_WARPS     (ROW_THREADS / CUDA_WARP)
#define MAX_CHUNKS    ROW_THREADS
#define PER_THREAD    (CHUNK / ROW_THREADS)
#define BATCH         16 /* logits that a thread has under way */
#define WARP_STEP     (BATCH * CUDA_WARP)

#define MASS_BITS 44
#define X_LEAST   (-30.4f) /* of (logit - largest) / temperature: below it masses end */
#define Q_ONE     0x1p27f

#define DIGIT_BITS 11
#define N_BINS     (1 << DIGIT_BITS)

typedef unsigned long long mass_t; /* the type of CUDA's 64-bit atomics and shuffles */

struct chunk_stats {
    mass_t best; /* rank of the largest logit, see rank_of */
    mass_t mass; /* relative to that logit                 */
};

size_t cuda_sample_workspace_bytes(const struct step_limits *limits)
{
    return (size_t)limits->max_rows * (size_t)CEIL_DIV(limits->vocab, CHUNK) *
           sizeof(struct chunk_stats);
}

/* ---- elements ---- */

/* Finite, so that differences are numbers; -FLT_MAX stands for what cannot be drawn. */
static __device__ __forceinline__ float clean(float logit)
{
    return fminf(fmaxf(logit, -FLT_MAX), FLT_MAX); /* fmaxf(NaN, x) is x */
}

/* Orders by logit, then by lower id; the larger is the better. */
static __device__ __forceinline__ mass_t rank_of(float logit, int id)
{
    uint32_t bits = __float_as_uint(logit + 0.0f); /* -0 and 0 are equal */
    uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (mass_t)ordered << 32 | (uint32_t)~id;
}

static __device__ __forceinline__ int id_of_rank(mass_t rank)
{
    return (int)~(uint32_t)rank;
}

static __device__ __forceinline__ float logit_of_rank(mass_t rank)
{
    uint32_t ordered = (uint32_t)(rank >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7FFFFFFFu : ~ordered);
}

static __device__ __forceinline__ float inverse_temperature(const struct sample_row *row)
{
    return 1.0f / fmaxf(row->temperature, FLT_MIN);
}

/* e^x, x = (logit - largest) / temperature <= 0, with MASS_BITS bits behind the point. By shifts:
 * the conversion of a float to 64 bits takes turns with the exponential in a slow unit. */
static __device__ __forceinline__ mass_t mass_of(float x)
{
    uint32_t bits = __float_as_uint(exp2_approx(x * 1.4426950408889634f)); /* log2(e) */
    mass_t fraction = (mass_t)(bits & 0x7FFFFFu | 0x800000u) << (MASS_BITS - 23);
    return fraction >> min(127 - (bits >> 23), 63u);
}

/* The mass of minus infinity is 0: a choice of what to compute, not whether, so that the threads of
 * a warp stay together and work on several logits at a time. */
static __device__ __forceinline__ mass_t relative_mass(float logit, float largest, float inverse)
{
    return mass_of(logit > -FLT_MAX ? (logit - largest) * inverse : -CUDART_INF_F);
}

/* ---- sums and maxima over threads ---- */

/* Over each N neighbouring lanes, in all of them. */
template <int N> static __device__ __forceinline__ mass_t warp_total(mass_t x)
{
    for (int step = N / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
    return x;
}

template <int N> static __device__ __forceinline__ mass_t warp_best(mass_t x)
{
    for (int step = N / 2; step > 0; step /= 2)
        x = max(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
    return x;
}

/* Over the block, in every thread; board: shared, [CUDA_WARP]. */
template <bool BEST, int THREADS>
static __device__ __forceinline__ mass_t block_reduce(mass_t x, mass_t *board)
{
    const int n_warps = THREADS / CUDA_WARP;
    int lane = threadIdx.x % CUDA_WARP;
    x = BEST ? warp_best<CUDA_WARP>(x) : warp_total<CUDA_WARP>(x);
    __syncthreads(); /* the board may still be read */
    if (lane == 0)
        board[threadIdx.x / CUDA_WARP] = x;
    __syncthreads();
    x = board[lane % n_warps];
    return BEST ? warp_best<n_warps>(x) : warp_total<n_warps>(x);
}

struct crossing {
    int thread;  /* the first at which the running sum exceeds the target */
    mass_t rest; /* what the target exceeds the sum of those before by    */
};

/* Where the running sum of the threads' values passes the target, which is less than the sum of
 * all. board: shared, [CUDA_WARP + 2]. */
static __device__ __forceinline__ struct crossing block_cross(mass_t value, mass_t target,
                                                              mass_t *board)
{
    int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP;
    mass_t sum = value;
    for (int step = 1; step < CUDA_WARP; step *= 2) {
        mass_t other = __shfl_up_sync(0xFFFFFFFFu, sum, step);
        sum += lane >= step ? other : 0;
    }
    __syncthreads();
    if (lane == CUDA_WARP - 1)
        board[warp] = sum;
    __syncthreads();
    mass_t before = warp_total<CUDA_WARP>(lane < warp ? board[lane] : 0);
    if (before + sum > target && before + sum - value <= target) {
        board[CUDA_WARP] = threadIdx.x;
        board[CUDA_WARP + 1] = target - (before + sum - value);
    }
    __syncthreads();
    return {(int)board[CUDA_WARP], board[CUDA_WARP + 1]};
}

/* ---- the first kernel ---- */

#define CHUNK_LOGITS (CHUNK / CHUNK_THREADS) /* of a thread */

/* The id of a thread's logit i, V of which are neighbours. */
template <int V> static __device__ __forceinline__ int chunk_id(int i)
{
    return blockIdx.x * CHUNK + i / V * V * CHUNK_THREADS + threadIdx.x * V + i % V;
}

/* A thread's logits of the chunk; WHOLE: all ids exist. V divides vocab. */
template <int V, bool WHOLE>
static __device__ __forceinline__ void load_chunk(float x[CHUNK_LOGITS], const float *logits,
                                                  int vocab)
{
#pragma unroll
    for (int i = 0; i < CHUNK_LOGITS; i += V) {
        int id = chunk_id<V>(i);
        bool exists = WHOLE || id < vocab;
        pack<float, V> p = {};
        if (exists)
            p = load_pack<float, V>(logits, id);
        for (int v = 0; v < V; v++)
            x[i + v] = exists ? clean(p.x[v]) : -FLT_MAX;
    }
}

/* The largest logit of the chunk, in every thread, and the lowest id that has it, in *id (shared)
 * after the next barrier: few threads look for it. */
template <int V>
static __device__ __forceinline__ float chunk_largest(const float x[CHUNK_LOGITS], float *board,
                                                      int *id)
{
    float own = x[0];
#pragma unroll
    for (int i = 1; i < CHUNK_LOGITS; i++)
        own = fmaxf(own, x[i]);
    float largest = own;
    for (int step = CUDA_WARP / 2; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, step));
    if (threadIdx.x % CUDA_WARP == 0)
        board[threadIdx.x / CUDA_WARP] = largest;
    if (threadIdx.x == 0)
        *id = INT_MAX;
    __syncthreads();
    for (int warp = 0; warp < CHUNK_THREADS / CUDA_WARP; warp++)
        largest = fmaxf(largest, board[warp]);
    if (own == largest) {
        int first = 0;
#pragma unroll
        for (int i = CHUNK_LOGITS - 1; i >= 0; i--)
            first = x[i] == largest ? i : first;
        atomicMin(id, chunk_id<V>(first));
    }
    return largest;
}

/* logits: [n_rows, vocab]; stats: [n_rows, n_chunks]; grid: (n_chunks, n_rows) */
template <int V>
static __global__ void __launch_bounds__(CHUNK_THREADS)
    sample_chunks_kernel(struct chunk_stats *stats, const float *logits,
                         const struct sample_row *rows, int vocab)
{
    __shared__ mass_t board[CUDA_WARP];
    __shared__ float warp_largest[CHUNK_THREADS / CUDA_WARP];
    __shared__ int largest_id;
    const struct sample_row *row = &rows[blockIdx.y];
    next_kernel_start();
    previous_kernel_wait();
    if (row->lane < 0)
        return;
    logits += (size_t)blockIdx.y * vocab;
    float x[CHUNK_LOGITS];
    if ((blockIdx.x + 1) * CHUNK <= vocab)
        load_chunk<V, true>(x, logits, vocab);
    else
        load_chunk<V, false>(x, logits, vocab);
    float largest = chunk_largest<V>(x, warp_largest, &largest_id);
    mass_t mass = 0;
    if (row->temperature > 0) {
        float inverse = inverse_temperature(row);
#pragma unroll
        for (int i = 0; i < CHUNK_LOGITS; i++)
            mass += relative_mass(x[i], largest, inverse);
    }
    mass = block_reduce<false, CHUNK_THREADS>(mass, board);
    if (threadIdx.x == 0)
        stats[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = {rank_of(largest, largest_id), mass};
}

/* ---- the second kernel: what is kept ---- */

/* Tokens are ordered by (q, id); the kept ones are those up to and including (q, id) of the cut. */
struct cut {
    uint32_t q;
    int id;
};

struct row_view {
    const float *logits; /* [vocab] */
    int vocab;
    float largest, inverse;
    float least; /* of x = (logit - largest) / temperature, by min-p */
    float floor; /* no logit below it counts: saves the exact test   */
    struct cut cut;
};

enum measure { TOKENS, MASSES };

/* Whether a token is kept and its q = -x, a fixed-point number, lies in [low, high]. */
static __device__ __forceinline__ bool is_kept(const struct row_view *r, int id, float logit,
                                               uint32_t low, uint32_t high, float *x, uint32_t *q)
{
    if (!(logit >= r->floor))
        return false;
    logit = clean(logit);
    *x = (logit - r->largest) * r->inverse;
    if (!(*x >= r->least) || logit <= -FLT_MAX)
        return false;
    *q = (uint32_t)(-*x * Q_ONE);
    return *q >= low && *q <= high && (*q < r->cut.q || (*q == r->cut.q && id <= r->cut.id));
}

/* A bound below all logits with q <= high, a little too low rather than too high. */
static __device__ __forceinline__ float floor_of(const struct row_view *r, uint32_t high)
{
    float x = fmaxf(-(float)min(high, r->cut.q) / Q_ONE, r->least) * 1.0001f - 0.001f;
    return r->largest + x / r->inverse - fabsf(r->largest) * 1e-6f;
}

/* The logits of ids first, first + stride, ...: loaded together, because no load may pass the
 * atomics and branches that follow; NaN beyond the last. */
static __device__ __forceinline__ void load_batch(float logit[BATCH], const struct row_view *r,
                                                  int first, int stride)
{
#pragma unroll
    for (int i = 0; i < BATCH; i++)
        logit[i] = first + i * stride < r->vocab ? r->logits[first + i * stride] : CUDART_NAN_F;
}

/* What a token counts in a search: among those whose q lies in [low, high]. */
static __device__ __forceinline__ mass_t counted(const struct row_view *r, int id, float logit,
                                                 enum measure measure, uint32_t low, uint32_t high)
{
    float x;
    uint32_t q;
    if (!is_kept(r, id, logit, low, high, &x, &q))
        return 0;
    return measure == MASSES ? mass_of(x) : 1;
}

/* ---- the second kernel: searches in the order of ids ---- */

struct row_memory {
    mass_t board[CUDA_WARP + 2];
    mass_t chunk[MAX_CHUNKS];
    uint32_t low[N_BINS], high[N_BINS]; /* halves of a sum for each digit */
    int id;
};

/* Leaves the sum of each chunk in memory->chunk and returns the sum of all. */
static __device__ mass_t sum_chunks(struct row_memory *memory, struct row_view *r,
                                    enum measure measure, uint32_t low, uint32_t high)
{
    r->floor = floor_of(r, high);
    int lane = threadIdx.x % CUDA_WARP, n_chunks = CEIL_DIV(r->vocab, CHUNK);
    __syncthreads();
    if (threadIdx.x < n_chunks)
        memory->chunk[threadIdx.x] = 0;
    __syncthreads();
    for (int at = threadIdx.x / CUDA_WARP * WARP_STEP; at < r->vocab; at += ROW_WARPS * WARP_STEP) {
        float logit[BATCH];
        mass_t sum = 0;
        load_batch(logit, r, at + lane, CUDA_WARP);
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            sum += counted(r, at + lane + i * CUDA_WARP, logit[i], measure, low, high);
        sum = warp_total<CUDA_WARP>(sum);
        if (lane == 0 && sum > 0)
            atomicAdd(&memory->chunk[at / CHUNK], sum);
    }
    __syncthreads();
    return block_reduce<false, ROW_THREADS>(threadIdx.x < n_chunks ? memory->chunk[threadIdx.x] : 0,
                                            memory->board);
}

/* The first id of chunk c at which the running sum exceeds the target; mass[i] belongs to the ids
 * c CHUNK + threadIdx.x PER_THREAD + i. */
static __device__ int find_in_chunk(struct row_memory *memory, const mass_t mass[PER_THREAD], int c,
                                    mass_t target)
{
    mass_t sum = 0;
    for (int i = 0; i < PER_THREAD; i++)
        sum += mass[i];
    struct crossing at = block_cross(sum, target, memory->board);
    if (threadIdx.x == at.thread) {
        int i = 0;
        while (i < PER_THREAD - 1 && at.rest >= mass[i])
            at.rest -= mass[i++];
        memory->id = c * CHUNK + threadIdx.x * PER_THREAD + i;
    }
    __syncthreads();
    return memory->id;
}

/* After sum_chunks: the first id at which the running sum exceeds the target. */
static __device__ int find_id(struct row_memory *memory, const struct row_view *r,
                              enum measure measure, uint32_t low, uint32_t high, mass_t target)
{
    int n_chunks = CEIL_DIV(r->vocab, CHUNK);
    struct crossing at =
        block_cross(threadIdx.x < n_chunks ? memory->chunk[threadIdx.x] : 0, target, memory->board);
    mass_t mass[PER_THREAD];
    for (int i = 0; i < PER_THREAD; i++) {
        int id = at.thread * CHUNK + threadIdx.x * PER_THREAD + i;
        float logit = id < r->vocab ? r->logits[id] : CUDART_NAN_F;
        mass[i] = counted(r, id, logit, measure, low, high);
    }
    return find_in_chunk(memory, mass, at.thread, at.rest);
}

/* ---- the second kernel: the search for a cut ---- */

/* A mass is added in two halves with the carry: 64-bit atomics on shared memory are loops. */
static __device__ __forceinline__ void add_to_bin(struct row_memory *memory, int bin,
                                                  enum measure measure, float x)
{
    if (measure == TOKENS) {
        atomicAdd(&memory->low[bin], 1u);
        return;
    }
    mass_t mass = mass_of(x);
    uint32_t part = (uint32_t)mass, old = atomicAdd(&memory->low[bin], part);
    uint32_t rest = (uint32_t)(mass >> 32) + (old + part < old);
    if (rest > 0)
        atomicAdd(&memory->high[bin], rest);
}

/* Adds up tokens or masses by the digit of q, over the kept tokens whose higher digits are those of
 * `prefix`. */
static __device__ void count_digits(struct row_memory *memory, struct row_view *r,
                                    enum measure measure, uint32_t prefix, int shift)
{
    uint32_t low = prefix, high = prefix + (uint32_t)(((uint64_t)N_BINS << shift) - 1);
    r->floor = floor_of(r, high);
    for (int i = threadIdx.x; i < N_BINS; i += ROW_THREADS)
        memory->low[i] = memory->high[i] = 0;
    __syncthreads();
    for (int first = threadIdx.x; first < r->vocab; first += BATCH * ROW_THREADS) {
        float logit[BATCH], x;
        uint32_t q;
        load_batch(logit, r, first, ROW_THREADS);
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (is_kept(r, first + i * ROW_THREADS, logit[i], low, high, &x, &q))
                add_to_bin(memory, (int)((q - prefix) >> shift), measure, x);
        }
    }
    __syncthreads();
}

/* Moves the cut to the first token, in the order of (q, id), at which the running sum exceeds the
 * target; leaves it where it is when there is none. */
static __device__ void move_cut(struct row_memory *memory, struct row_view *r, enum measure measure,
                                mass_t target)
{
    uint32_t prefix = 0;
    for (int shift = 32 - DIGIT_BITS;; shift = max(shift - DIGIT_BITS, 0)) {
        count_digits(memory, r, measure, prefix, shift);
        int first = threadIdx.x * (N_BINS / ROW_THREADS);
        mass_t value[N_BINS / ROW_THREADS], sum = 0;
        for (int i = 0; i < N_BINS / ROW_THREADS; i++)
            sum += value[i] = (mass_t)memory->high[first + i] << 32 | memory->low[first + i];
        if (block_reduce<false, ROW_THREADS>(sum, memory->board) <= target)
            return;
        struct crossing at = block_cross(sum, target, memory->board);
        if (threadIdx.x == at.thread) {
            int i = 0;
            while (i < N_BINS / ROW_THREADS - 1 && at.rest >= value[i])
                at.rest -= value[i++];
            memory->id = first + i;
            memory->board[0] = at.rest;
        }
        __syncthreads();
        prefix += (uint32_t)memory->id << shift;
        target = memory->board[0];
        __syncthreads();
        if (shift == 0)
            break;
    }
    sum_chunks(memory, r, measure, prefix, prefix);
    r->cut.id = find_id(memory, r, measure, prefix, prefix, target);
    r->cut.q = prefix;
}

/* ---- the second kernel ---- */

static __device__ mass_t draw_target(const struct sample_row *row, mass_t total)
{
    mass_t target = (mass_t)(philox_uniform(row->seed, (uint32_t)row->index) * (double)total);
    return min(target, total - 1); /* the product may be rounded up */
}

static __device__ int sample_filtered(struct row_memory *memory, struct row_view *r,
                                      const struct sample_row *row, int best)
{
    if (row->top_k > 0 && row->top_k < r->vocab)
        move_cut(memory, r, TOKENS, (mass_t)row->top_k - 1);
    if (row->top_p < 1) {
        double part = row->top_p * (double)sum_chunks(memory, r, MASSES, 0, UINT_MAX);
        move_cut(memory, r, MASSES, part > 1 ? (mass_t)ceil(part) - 1 : 0);
    }
    if (row->min_p > 0)
        r->least = fmaxf(logf(row->min_p), X_LEAST);
    mass_t total = sum_chunks(memory, r, MASSES, 0, UINT_MAX);
    if (total == 0)
        return best;
    return find_id(memory, r, MASSES, 0, UINT_MAX, draw_target(row, total));
}

static __device__ int sample_plain(struct row_memory *memory, const struct row_view *r,
                                   const struct sample_row *row, const struct chunk_stats *stats,
                                   int best)
{
    struct chunk_stats own = {};
    mass_t scaled = 0;
    if (threadIdx.x < CEIL_DIV(r->vocab, CHUNK)) {
        own = stats[threadIdx.x];
        double x = (double)(logit_of_rank(own.best) - r->largest) * r->inverse;
        scaled = (mass_t)((double)own.mass * exp(x));
    }
    mass_t total = block_reduce<false, ROW_THREADS>(scaled, memory->board);
    if (total == 0)
        return best;
    struct crossing at = block_cross(scaled, draw_target(row, total), memory->board);
    if (threadIdx.x == at.thread) {
        mass_t target = (mass_t)((double)at.rest / (double)scaled * (double)own.mass);
        memory->chunk[0] = min(target, own.mass - 1);
    }
    __syncthreads();
    float largest = logit_of_rank(stats[at.thread].best);
    mass_t mass[PER_THREAD];
    for (int i = 0; i < PER_THREAD; i++) {
        int id = at.thread * CHUNK + threadIdx.x * PER_THREAD + i;
        mass[i] = id < r->vocab ? relative_mass(clean(r->logits[id]), largest, r->inverse) : 0;
    }
    return find_in_chunk(memory, mass, at.thread, memory->chunk[0]);
}

/* grid: n_rows */
static __global__ void __launch_bounds__(ROW_THREADS)
    sample_rows_kernel(int *sampled, const struct chunk_stats *stats, const float *logits,
                       const struct sample_row *rows, int vocab)
{
    __shared__ struct row_memory memory;
    const struct sample_row *row = &rows[blockIdx.x];
    int n_chunks = CEIL_DIV(vocab, CHUNK);
    next_kernel_start();
    previous_kernel_wait();
    if (row->lane < 0)
        return;
    stats += (size_t)blockIdx.x * n_chunks;
    mass_t rank = block_reduce<true, ROW_THREADS>(
        threadIdx.x < n_chunks ? stats[threadIdx.x].best : 0, memory.board);
    struct row_view r = {};
    r.logits = logits + (size_t)blockIdx.x * vocab;
    r.vocab = vocab;
    r.largest = logit_of_rank(rank);
    r.inverse = inverse_temperature(row);
    r.least = X_LEAST;
    r.cut = {UINT_MAX, INT_MAX};
    int id = id_of_rank(rank);
    bool filtered = (row->top_k > 0 && row->top_k < vocab) || row->top_p < 1 || row->min_p > 0;
    if (row->temperature > 0)
        id = filtered ? sample_filtered(&memory, &r, row, id)
                      : sample_plain(&memory, &r, row, stats, id);
    if (threadIdx.x == 0)
        sampled[row->lane] = id;
}

void cuda_sample(struct device *device, const struct sample_args *args)
{
    struct cuda_device *d = cuda_device(device);
    int n_chunks = CEIL_DIV(args->vocab, CHUNK);
    struct chunk_stats *stats = (struct chunk_stats *)d->sample_workspace;
    if (args->n_rows == 0)
        return;
    assert(n_chunks <= MAX_CHUNKS);
    assert((size_t)args->n_rows * n_chunks * sizeof(*stats) <= d->sample_workspace_bytes);
    dim3 grid((unsigned)n_chunks, (unsigned)args->n_rows);
    cuda_launch_early(d, args->vocab % 4 == 0 ? sample_chunks_kernel<4> : sample_chunks_kernel<1>,
                      grid, CHUNK_THREADS, 0, stats, args->logits, args->row, args->vocab);
    cuda_launch_early(d, sample_rows_kernel, dim3((unsigned)args->n_rows), ROW_THREADS, 0,
                      args->sampled, stats, args->logits, args->row, args->vocab);
}
