/* attention_eager.cu - attention of one query row as the formula reads: all scores, softmax, mean.
 *
 *   score[i] = scale q k[i], soft-capped;   out = sum_i exp(score[i]) v[i] / sum_i exp(score[i])
 *
 * The readable baseline. A block of threads takes one row (token, head) after the other; its scores
 * lie in scratch memory, [n_blocks, max_kv_len] f32. Every sum has an order that depends on the
 * number of keys and on head_dim alone. Each row reads all of its keys and values again: 4 n_keys
 * head_dim bytes per row for 16-bit elements, mostly from the L2 cache.
 */
#include "kernels/cuda/attention.cuh"

#define EAGER_THREADS       256
#define EAGER_WARPS         (EAGER_THREADS / 32)
#define EAGER_BLOCKS_PER_SM 8

struct eager_row {
    int seq, token, head;
    int first, n; /* the keys that it sees */
};

static __device__ __forceinline__ struct eager_row find_row(const struct attention_params *p, int r)
{
    struct eager_row row;
    row.token = r / p->n_heads;
    row.head = r % p->n_heads;
    int low = 0, high = p->n_seqs - 1; /* the last s with q_start[s] <= token */
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (p->q_start[middle] <= row.token)
            low = middle;
        else
            high = middle - 1;
    }
    row.seq = low;
    int end = p->kv_len[low] - (p->q_start[low + 1] - row.token) + 1;
    row.first = max(0, end - p->window);
    row.n = max(0, end - row.first);
    return row;
}

/* Index of the row's i-th key (value) in the cache. */
static __device__ __forceinline__ size_t key_index(const struct attention_params *p,
                                                   const struct eager_row *row, int i)
{
    int key = row->first + i, index = key / p->block_size;
    int block = p->block_table[(size_t)row->seq * p->max_blocks + index];
    return kv_index(p, block, row->head / p->heads_per_kv, key - index * p->block_size);
}

/* Combines one value of each thread by `max` or `+`, in a fixed order. board: [EAGER_WARPS]. */
static __device__ __forceinline__ float block_combine(float x, bool is_sum, float *board)
{
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(~0u, x, step);
        x = is_sum ? x + other : fmaxf(x, other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        board[threadIdx.x / 32] = x;
    __syncthreads();
    x = board[0];
    for (int w = 1; w < EAGER_WARPS; w++)
        x = is_sum ? x + board[w] : fmaxf(x, board[w]);
    return x;
}

/* score[i] = scale q k[i], soft-capped, as powers of two: one key per warp, its columns over the
 * lanes. */
static __device__ __forceinline__ void
scores(float *score, const float *q, const struct attention_params *p, const struct eager_row *row)
{
    int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < row->n; i += EAGER_WARPS) {
        size_t at = key_index(p, row, i);
        float sum = 0;
        for (int c = lane; c < p->head_dim; c += 32)
            sum = fmaf(q[c], element_get(p->k, p->kv_dtype, at + c), sum);
        for (int step = 16; step > 0; step /= 2)
            sum += __shfl_xor_sync(~0u, sum, step);
        if (p->slope > 0)
            sum = cap_score(sum, p->slope);
        if (lane == 0)
            score[i] = sum * p->scale_log2;
    }
}

/* score[i] <- 2^(score[i] - the largest); returns their sum. */
static __device__ __forceinline__ float numerators(float *score, int n, float *board)
{
    float top = -CUDART_INF_F, sum = 0;
    for (int i = threadIdx.x; i < n; i += EAGER_THREADS)
        top = fmaxf(top, score[i]);
    top = block_combine(top, false, board);
    for (int i = threadIdx.x; i < n; i += EAGER_THREADS) {
        score[i] = exp2f(score[i] - top);
        sum += score[i];
    }
    return block_combine(sum, true, board);
}

/* out = sum of score[i] v[i], times norm: a thread per column and part of the keys, every
 * n_parts-th key to a part, then the parts in order. board: [EAGER_THREADS]. */
static __device__ __forceinline__ void mean(const float *score, float norm, float *board,
                                            const struct attention_params *p,
                                            const struct eager_row *row)
{
    int n_parts = EAGER_THREADS / p->head_dim, part = threadIdx.x / p->head_dim;
    int column = threadIdx.x % p->head_dim;
    float sum = 0;
    for (int i = part; part < n_parts && i < row->n; i += n_parts)
        sum = fmaf(score[i], element_get(p->v, p->kv_dtype, key_index(p, row, i) + column), sum);
    __syncthreads();
    board[threadIdx.x] = sum;
    __syncthreads();
    if (part > 0)
        return;
    for (int other = 1; other < n_parts; other++)
        sum += board[other * p->head_dim + column];
    size_t index = ((size_t)row->token * p->n_heads + row->head) * p->head_dim + column;
    element_set(p->out, p->act_dtype, index, sum * norm);
}

static __global__ void __launch_bounds__(EAGER_THREADS)
    eager_kernel(const __grid_constant__ struct attention_params p, int max_kv_len)
{
    __shared__ float q[ATTENTION_MAX_HEAD_DIM], board[EAGER_THREADS];
    float *score = p.scratch + (size_t)blockIdx.x * max_kv_len;
    for (int r = blockIdx.x; r < p.n_tokens * p.n_heads; r += gridDim.x) {
        struct eager_row row = find_row(&p, r);
        size_t q_index =
            ((size_t)row.token * (p.n_heads + 2 * p.n_kv_heads) + row.head) * p.head_dim;
        __syncthreads();
        if (threadIdx.x < p.head_dim)
            q[threadIdx.x] = element_get(p.qkv, p.act_dtype, q_index + threadIdx.x);
        __syncthreads();
        scores(score, q, &p, &row);
        __syncthreads();
        float sum = numerators(score, row.n, board);
        __syncthreads();
        mean(score, row_norm(sum), board, &p, &row);
    }
}

static int eager_blocks(const struct cuda_device *d)
{
    return EAGER_BLOCKS_PER_SM * d->n_sms;
}

size_t attention_eager_scratch(const struct cuda_device *d, int max_kv_len)
{
    return (size_t)eager_blocks(d) * max_kv_len;
}

void attention_eager(const struct cuda_device *d, const struct attention_params *p, int max_kv_len)
{
    assert(p->head_dim <= ATTENTION_MAX_HEAD_DIM);
    assert(attention_eager_scratch(d, max_kv_len) <= p->scratch_floats);
    int grid = MIN(eager_blocks(d), p->n_tokens * p->n_heads);
    eager_kernel<<<grid, EAGER_THREADS, 0, d->stream>>>(*p, max_kv_len);
    CUDA_CHECK_LAUNCH();
}
