/* attention.c - cutting attention into pieces of work. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <string.h>

/* Work below this many multiplications runs on the caller's thread: waking the others costs 1 to
 * 5 us, in which one thread does as much. */
#define SERIAL_PRODUCTS (1 << 17)

/* Floats of struct flash's arrays: rows q and o, tiles k and v, one tile of rows s and p, max and
 * sum. Rows are padded to the widest panel. */
static size_t flash_floats(int head_dim)
{
    size_t width = (size_t)CEIL_DIV(head_dim, MAX_PANEL) * MAX_PANEL;
    return 2 * (FLASH_ROWS + FLASH_KEYS) * width + 2 * CPU_MAX_TILE_ROWS * FLASH_KEYS +
           2 * FLASH_ROWS;
}

size_t cpu_attention_scratch_bytes(const struct step_limits *limits)
{
    size_t eager = (size_t)limits->max_kv_len; /* the scores of one query head */
    return MAX(eager, flash_floats(limits->shape.head_dim)) * sizeof(float);
}

static int threads_for(const struct cpu_device *d, const struct attention_args *args)
{
    const struct batch *b = args->batch;
    size_t products = 0;
    for (int s = 0; s < b->n_seqs; s++)
        products += (size_t)(b->q_start[s + 1] - b->q_start[s]) * (size_t)b->kv_len[s];
    products *= (size_t)(args->shape.n_heads * args->shape.head_dim);
    return products < SERIAL_PRODUCTS ? 1 : d->n_threads;
}

/* The sequence of a token of the batch. */
static int find_seq(const struct batch *b, int token)
{
    int low = 0, high = b->n_seqs - 1; /* the last s with q_start[s] <= token */
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (b->q_start[middle] <= token)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static void attention_eager(const struct cpu_device *d, const struct attention_args *args)
{
    const struct batch *b = args->batch;
    int n_heads = args->shape.n_heads, n_rows = b->n_tokens * n_heads;
    assert((size_t)b->max_kv_len * sizeof(float) <= d->local_bytes);
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads_for(d, args))
    for (int row = 0; row < n_rows; row++) {
        int token = row / n_heads, seq = find_seq(b, token);
        if (b->kv_len[seq] > 0)
            d->kernels->attend_eager(args, seq, token, row % n_heads, cpu_local_scratch(d));
    }
}

/* Piece `index` of a sequence: KV heads fastest, the last rows of a prompt, which see the most
 * keys, first. */
static struct flash_piece find_piece(const struct attention_args *args, int seq, int index)
{
    int n_kv_heads = args->shape.n_kv_heads, group = args->shape.n_heads / n_kv_heads;
    int n_rows = (args->batch->q_start[seq + 1] - args->batch->q_start[seq]) * group;
    int last_piece = CEIL_DIV(n_rows, FLASH_ROWS) - 1;
    int first_row = (last_piece - index / n_kv_heads) * FLASH_ROWS;
    return (struct flash_piece){.seq = seq,
                                .kv_head = index % n_kv_heads,
                                .first_row = first_row,
                                .n_rows = MIN(FLASH_ROWS, n_rows - first_row)};
}

static int n_pieces(const struct attention_args *args, int seq)
{
    const struct batch *b = args->batch;
    int group = args->shape.n_heads / args->shape.n_kv_heads;
    int n_rows = b->kv_len[seq] > 0 ? (b->q_start[seq + 1] - b->q_start[seq]) * group : 0;
    return CEIL_DIV(n_rows, FLASH_ROWS) * args->shape.n_kv_heads;
}

/* Pieces that a thread takes at once. Neighbouring KV heads lie side by side in the cache, so a
 * thread that decodes should go from one to the next (32 sequences of 192 keys: a fifth faster);
 * pieces of a prompt are large and of unequal length. */
static int run_length(const struct attention_args *args, int n_threads)
{
    int n_kv_heads = args->shape.n_kv_heads, n = args->batch->n_seqs * n_kv_heads;
    if (args->batch->max_q_len > 1)
        return 1;
    return MAX(1, MIN(n_kv_heads, n / (n_threads * 4)));
}

static void attention_flash(const struct cpu_device *d, const struct attention_args *args)
{
    assert(flash_floats(args->shape.head_dim) * sizeof(float) <= d->local_bytes);
    int n_threads = threads_for(d, args), run = run_length(args, n_threads);
#pragma omp parallel num_threads(n_threads)
    {
        d->kernels->begin_gemm();
        for (int seq = 0; seq < args->batch->n_seqs; seq++) {
            int n = n_pieces(args, seq);
#pragma omp for schedule(dynamic, run) nowait
            for (int i = 0; i < n; i++) {
                struct flash_piece piece = find_piece(args, seq, i);
                d->kernels->attend_flash(args, &piece, cpu_local_scratch(d));
            }
        }
        d->kernels->end_gemm();
    }
}

/* A padding sequence attends to nothing; what it gives is read by nobody, but must be a number. */
static void zero_padding(const struct attention_args *args)
{
    const struct batch *b = args->batch;
    size_t width = (size_t)(args->shape.n_heads * args->shape.head_dim) * sizeof(float);
    for (int seq = 0; seq < b->n_seqs; seq++) {
        int n_tokens = b->q_start[seq + 1] - b->q_start[seq];
        if (b->kv_len[seq] == 0)
            memset((char *)args->out + (size_t)b->q_start[seq] * width, 0,
                   (size_t)n_tokens * width);
    }
}

/* Threads take pieces as they come: there is nothing to prepare. */
void cpu_attention_plan(struct device *device, const struct attention_args *args)
{
    (void)device;
    (void)args;
}

void cpu_attention(struct device *device, const struct attention_args *args)
{
    assert(args->shape.head_dim <= MAX_HEAD_DIM);
    zero_padding(args);
    if (args->kind == ATTENTION_EAGER)
        attention_eager(cpu_device(device), args);
    else
        attention_flash(cpu_device(device), args);
}
