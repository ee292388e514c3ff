/* attention_generic.cu - tiled attention with plain arithmetic: any head_dim, any element types.
 *
 *   out[t, h] = softmax(scale q[t, h] K^T + mask) V
 *
 * For f32, whose matrix instructions would round to 10 bits, for head sizes without tensor-core
 * kernels, and for GPUs whose tensor cores lack the type. The query rows of a sequence and a KV
 * head (tokens x heads_per_kv) are cut into jobs of 16; a block of 128 threads takes one, eight
 * threads a row. Keys and values pass through shared memory as f32, KEYS at a time at absolute
 * positions; decode and prefill run the same code, so a row's bits depend on the row alone. A
 * single long sequence is not split, so its decode is slow.
 */
#include "kernels/cuda/attention.cuh"

#define GENERIC_ROWS    16
#define THREADS_PER_ROW (ATTENTION_THREADS / GENERIC_ROWS)

/* Rows in shared memory are an odd number of floats apart: the threads of a row read eight keys. */
#define GENERIC_STRIDE(head_dim) ((head_dim) | 1)

struct generic_job {
    int seq, kv_head;
    int first_row, n_rows; /* of the sequence's rows: the job's first; all of them  */
    int first_token;       /* of the sequence in the batch                          */
    int position;          /* of that token                                         */
    int kv_len;
};

/* Index of row `row` of the job in [n_tokens, stride_heads, head_dim]. */
static __device__ __forceinline__ size_t row_index(const struct attention_params *p,
                                                   const struct generic_job *job, int row,
                                                   int stride_heads)
{
    int r = job->first_row + row, token = job->first_token + r / p->heads_per_kv;
    int head = job->kv_head * p->heads_per_kv + r % p->heads_per_kv;
    return ((size_t)token * stride_heads + head) * p->head_dim;
}

/* Rows of q, f32; zeros beyond the last. */
static __device__ __forceinline__ void load_queries(float *q, const struct attention_params *p,
                                                    const struct generic_job *job)
{
    for (int i = threadIdx.x; i < GENERIC_ROWS * p->head_dim; i += ATTENTION_THREADS) {
        int row = i / p->head_dim, column = i % p->head_dim;
        bool valid = job->first_row + row < job->n_rows;
        size_t index = row_index(p, job, valid ? row : 0, p->n_heads + 2 * p->n_kv_heads) + column;
        q[row * GENERIC_STRIDE(p->head_dim) + column] =
            valid ? element_get(p->qkv, p->act_dtype, index) : 0;
    }
}

/* n_keys keys and values from first_key on, f32; zeros beyond the last of the sequence. */
static __device__ __forceinline__ void load_keys(float *k, float *v, int n_keys, int first_key,
                                                 const struct attention_params *p,
                                                 const struct generic_job *job)
{
    const int *table = p->block_table + (size_t)job->seq * p->max_blocks;
    for (int i = threadIdx.x; i < n_keys * p->head_dim; i += ATTENTION_THREADS) {
        int row = i / p->head_dim, column = i % p->head_dim, key = first_key + row;
        int to = row * GENERIC_STRIDE(p->head_dim) + column;
        k[to] = v[to] = 0;
        if (key >= job->kv_len)
            continue;
        int index = key / p->block_size;
        size_t at = kv_index(p, table[index], job->kv_head, key - index * p->block_size) + column;
        k[to] = element_get(p->k, p->kv_dtype, at);
        v[to] = element_get(p->v, p->kv_dtype, at);
    }
}

/* What a thread has of its row: columns part, part + 8, ... of the output. */
template <int COLUMNS> struct generic_row {
    float top, sum, out[COLUMNS];
};

/* One tile of keys into the row. q: the row's; position: of its token; part: of THREADS_PER_ROW. */
template <int KEYS, int COLUMNS, bool CAPPED>
static __device__ __forceinline__ void
take_tile(struct generic_row<COLUMNS> &r, const float *q, const float *k, const float *v,
          int first_key, int position, int part, const struct attention_params *p)
{
    int stride = GENERIC_STRIDE(p->head_dim);
    float s[KEYS / THREADS_PER_ROW] = {0}, tile_top = -CUDART_INF_F, tile_sum = 0;
    for (int i = 0; i < p->head_dim; i++) {
#pragma unroll
        for (int j = 0; j < KEYS / THREADS_PER_ROW; j++)
            s[j] = fmaf(q[i], k[(part + j * THREADS_PER_ROW) * stride + i], s[j]);
    }
#pragma unroll
    for (int j = 0; j < KEYS / THREADS_PER_ROW; j++) {
        int key = first_key + part + j * THREADS_PER_ROW;
        if (CAPPED)
            s[j] = cap_score(s[j], p->slope);
        bool seen = key <= position && key > position - p->window;
        s[j] = seen ? s[j] * p->scale_log2 : -CUDART_INF_F;
        tile_top = fmaxf(tile_top, s[j]);
    }
    for (int step = 1; step < THREADS_PER_ROW; step *= 2)
        tile_top = fmaxf(tile_top, __shfl_xor_sync(~0u, tile_top, step));
    float top = fmaxf(r.top, tile_top), base = top == -CUDART_INF_F ? 0 : top;
    float decay = exp2f(r.top - base);
    r.top = top;
#pragma unroll
    for (int j = 0; j < KEYS / THREADS_PER_ROW; j++) {
        s[j] = exp2f(s[j] - base);
        tile_sum += s[j];
    }
    for (int step = 1; step < THREADS_PER_ROW; step *= 2)
        tile_sum += __shfl_xor_sync(~0u, tile_sum, step);
    r.sum = fmaf(r.sum, decay, tile_sum);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        r.out[c] *= decay;
#pragma unroll
    for (int j = 0; j < KEYS / THREADS_PER_ROW; j++) {
#pragma unroll
        for (int o = 0; o < THREADS_PER_ROW; o++) {
            float weight = __shfl_sync(~0u, s[j], o, THREADS_PER_ROW);
            const float *values = v + (j * THREADS_PER_ROW + o) * stride + part;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                if (part + c * THREADS_PER_ROW < p->head_dim)
                    r.out[c] = fmaf(weight, values[c * THREADS_PER_ROW], r.out[c]);
            }
        }
    }
}

static __device__ __forceinline__ bool find_generic_job(const struct attention_params *p,
                                                        struct generic_job *job)
{
    __shared__ int board[ATTENTION_WARPS + 2];
    int index;
    if (!find_job(p, blockIdx.x / p->n_kv_heads, GENERIC_ROWS, 1, board, &job->seq, &index))
        return false;
    job->kv_head = blockIdx.x % p->n_kv_heads;
    job->first_token = p->q_start[job->seq];
    int q_len = p->q_start[job->seq + 1] - job->first_token;
    job->n_rows = q_len * p->heads_per_kv;
    job->first_row = index * GENERIC_ROWS;
    job->kv_len = p->kv_len[job->seq];
    job->position = job->kv_len - q_len;
    return true;
}

/* Dynamic shared memory: q [GENERIC_ROWS], k [KEYS], v [KEYS], rows of GENERIC_STRIDE floats. */
template <int KEYS, int COLUMNS, bool CAPPED>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    generic_kernel(const __grid_constant__ struct attention_params p)
{
    extern __shared__ float shared[];
    int stride = GENERIC_STRIDE(p.head_dim);
    float *q = shared, *k = q + GENERIC_ROWS * stride, *v = k + KEYS * stride;
    struct generic_job job;
    if (!find_generic_job(&p, &job))
        return;
    int row = threadIdx.x / THREADS_PER_ROW, part = threadIdx.x % THREADS_PER_ROW;
    int last_row = min(job.first_row + GENERIC_ROWS, job.n_rows) - 1;
    int position = job.position + min(job.first_row + row, last_row) / p.heads_per_kv;
    int first = job.position + job.first_row / p.heads_per_kv;
    int last = job.position + last_row / p.heads_per_kv;
    struct generic_row<COLUMNS> r = {
        - CUDART_INF_F, 0,
        {
            0
        }
    };
    load_queries(q, &p, &job);
    for (int key = max(0, first + 1 - p.window) / KEYS * KEYS; key <= last; key += KEYS) {
        __syncthreads();
        load_keys(k, v, KEYS, key, &p, &job);
        __syncthreads();
        take_tile<KEYS, COLUMNS, CAPPED>(r, q + row * stride, k, v, key, position, part, &p);
    }
    if (job.first_row + row > last_row)
        return;
    size_t index = row_index(&p, &job, row, p.n_heads);
    float norm = row_norm(r.sum);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        int column = part + c * THREADS_PER_ROW;
        if (column < p.head_dim)
            element_set(p.out, p.act_dtype, index + column, r.out[c] * norm);
    }
}

template <int KEYS, int COLUMNS>
static void generic_launch(const struct cuda_device *d, const struct attention_params *p)
{
    size_t shared = (GENERIC_ROWS + 2 * KEYS) * GENERIC_STRIDE(p->head_dim) * sizeof(float);
    auto kernel =
        p->slope > 0 ? generic_kernel<KEYS, COLUMNS, true> : generic_kernel<KEYS, COLUMNS, false>;
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    kernel<<<max_jobs(p, GENERIC_ROWS), ATTENTION_THREADS, shared, d->stream>>>(*p);
    CUDA_CHECK_LAUNCH();
}

void attention_generic(const struct cuda_device *d, const struct attention_params *p)
{
    assert(p->head_dim <= ATTENTION_MAX_HEAD_DIM);
    if (p->head_dim <= 32)
        generic_launch<32, 32 / THREADS_PER_ROW>(d, p);
    else if (p->head_dim <= 128)
        generic_launch<32, 128 / THREADS_PER_ROW>(d, p);
    else
        generic_launch<16, 256 / THREADS_PER_ROW>(d, p);
}
