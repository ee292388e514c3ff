/* attention_test.cu - attention on CUDA against double precision on the host, and its bit rule.
 *
 *   attention_test [--small]
 *
 * Per case: every kernel's rows against reference_attend(), with keys in shuffled blocks, NaN in
 * every slot of the cache that no key is in and in every output before a run, and table entries
 * beyond a sequence that lead outside the cache. Then the rows of a whole prefill of all sequences
 * are compared bit for bit with those of the same sequences alone, in chunks of many sizes mixed
 * with decodes, decoded together with padding, many launches behind one another, and on as few
 * multiprocessors with other block sizes. Sequences whose tables begin with the same blocks are
 * compared with a prefill that does not know of it. Prints a line per case;
 * the exit code is 1 when any case fails. --small, for compute-sanitizer: short sequences, every
 * kernel but not every shape, one block size.
 */
#include "tests/gpu/attention_device.cuh"

extern "C" {
#include "tests/ops_reference.h"
}

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_SEQS   20
#define MAX_PIECES (2 * MAX_SEQS)
#define NO_BLOCK   (1 << 28)
#define PADDING    (-1)

struct test_case {
    enum attention_kind kind;
    enum dtype act_dtype, kv_dtype;
    int n_heads, n_kv_heads, head_dim;
    int block_size, other_block_size;
    int window;
    double tolerance; /* of the error's norm over the reference's */
    float softcap;    /* 0: none                                  */
};

#define BF16     DTYPE_BF16, DTYPE_BF16
#define F16      DTYPE_F16, DTYPE_F16
#define F32      DTYPE_F32, DTYPE_F32
#define BF16_TOL 5e-3
#define F16_TOL  8e-4
#define F32_TOL  3e-6
/* Capped queries are ten times as large, and with them the rounding of the scores. */
#define F32_CAPPED_TOL 3e-5

/* The first N_SMALL cases run every kernel between them: prefill with one and with two row tiles
 * per warp (32 heads have jobs enough), decode with up to 8 and up to 16 rows, with and without a
 * soft-cap; columns that are no multiple of four warps (80), rows of one stage (256), all three
 * tiles of the generic kernel, and the eager one; on 9.0 groups of rows that see different tiles.
 */
#define N_SMALL 20

static const struct test_case cases[] = {
    {ATTENTION_FLASH, BF16, 32, 16, 128, 16, 64, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 8, 2, 128, 24, 4000, 100, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 20, 1, 64, 32, 100, 65, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 4, 2, 80, 16, 33, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 24, 2, 96, 64, 16, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 4, 1, 256, 128, 16, 300, BF16_TOL, 0},
    {ATTENTION_FLASH, F16, 5, 1, 64, 8, 80, 50, F16_TOL, 0},
    {ATTENTION_MEMORY_EFFICIENT, F16, 8, 2, 128, 16, 64, 0, F16_TOL, 0},
    {ATTENTION_MEMORY_EFFICIENT, F16, 40, 2, 96, 32, 20, 0, F16_TOL, 0},
    {ATTENTION_MEMORY_EFFICIENT, F16, 2, 1, 256, 16, 64, 0, F16_TOL, 0},
    {ATTENTION_FLASH, F32, 4, 2, 128, 16, 64, 0, F32_TOL, 0},
    {ATTENTION_FLASH, F32, 3, 1, 8, 7, 16, 0, F32_TOL, 0},
    {ATTENTION_EAGER, F16, 4, 2, 80, 64, 5, 100, F16_TOL, 0},
    {ATTENTION_FLASH, BF16, 32, 16, 64, 64, 10, 300, BF16_TOL, 50},
    {ATTENTION_FLASH, BF16, 8, 4, 256, 16, 64, 0, BF16_TOL, 50},
    {ATTENTION_FLASH, BF16, 24, 2, 96, 16, 48, 0, BF16_TOL, 20},
    {ATTENTION_MEMORY_EFFICIENT, F16, 8, 2, 128, 16, 64, 0, F16_TOL, 50},
    {ATTENTION_FLASH, F32, 20, 1, 33, 16, 64, 0, F32_CAPPED_TOL, 20},
    {ATTENTION_EAGER, BF16, 8, 2, 128, 16, 64, 100, BF16_TOL, 50},
    {ATTENTION_FLASH, BF16, 4, 4, 64, 64, 16, 90, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 8, 2, 128, 16, 64, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 8, 2, 128, 256, 1, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 4, 4, 128, 4096, 16, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 8, 2, 128, 64, 10, 700, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 6, 2, 64, 16, 48, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 32, 2, 64, 64, 7, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 8, 4, 256, 16, 5, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 8, 1, 256, 64, 48, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 6, 2, 256, 4096, 16, 700, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 2, 2, 256, 256, 10, 64, BF16_TOL, 0},
    {ATTENTION_FLASH, F16, 5, 1, 256, 64, 7, 0, F16_TOL, 0},
    {ATTENTION_FLASH, F16, 8, 2, 128, 16, 64, 0, F16_TOL, 0},
    {ATTENTION_FLASH, F16, 2, 2, 80, 64, 3, 0, F16_TOL, 0},
    {ATTENTION_FLASH, F16, 8, 1, 96, 1, 16, 0, F16_TOL, 0},
    {ATTENTION_FLASH, F16, 2, 1, 256, 16, 50, 0, F16_TOL, 0},
    {ATTENTION_MEMORY_EFFICIENT, F16, 3, 1, 64, 64, 9, 90, F16_TOL, 0},
    {ATTENTION_MEMORY_EFFICIENT, F16, 4, 2, 80, 16, 32, 0, F16_TOL, 0},
    {ATTENTION_MEMORY_EFFICIENT, BF16, 4, 2, 128, 16, 64, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, F32, 4, 4, 16, 16, 5, 40, F32_TOL, 0},
    {ATTENTION_FLASH, BF16, 4, 2, 40, 16, 64, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, F32, 2, 1, 256, 64, 30, 0, F32_TOL, 0},
    {ATTENTION_FLASH, F32, 20, 1, 33, 16, 64, 0, F32_TOL, 0},
    {ATTENTION_FLASH, DTYPE_BF16, DTYPE_F16, 4, 2, 128, 16, 64, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, DTYPE_F32, DTYPE_BF16, 4, 2, 64, 16, 64, 0, F32_TOL, 0},
    {ATTENTION_EAGER, BF16, 8, 2, 128, 16, 64, 0, BF16_TOL, 0},
    {ATTENTION_EAGER, F32, 2, 1, 200, 10, 64, 0, F32_TOL, 0},
    {ATTENTION_EAGER, F32, 3, 3, 8, 16, 1, 17, F32_TOL, 0},
    {ATTENTION_FLASH, BF16, 8, 2, 128, 64, 10, 300, BF16_TOL, 50},
    {ATTENTION_FLASH, BF16, 14, 2, 256, 80, 9, 600, BF16_TOL, 50},
    {ATTENTION_FLASH, F16, 5, 1, 80, 24, 64, 65, F16_TOL, 20},
    {ATTENTION_FLASH, F16, 2, 1, 256, 64, 16, 0, F16_TOL, 20},
    {ATTENTION_FLASH, F16, 20, 1, 64, 16, 7, 0, F16_TOL, 50},
    {ATTENTION_MEMORY_EFFICIENT, F16, 40, 2, 64, 32, 20, 90, F16_TOL, 20},
    {ATTENTION_MEMORY_EFFICIENT, BF16, 4, 2, 128, 16, 64, 0, BF16_TOL, 20},
    {ATTENTION_FLASH, F32, 4, 2, 128, 16, 64, 40, F32_CAPPED_TOL, 50},
    {ATTENTION_FLASH, F32, 3, 1, 8, 7, 16, 0, F32_CAPPED_TOL, 20},
    {ATTENTION_FLASH, F32, 2, 1, 256, 64, 30, 0, F32_CAPPED_TOL, 50},
    {ATTENTION_EAGER, F32, 2, 1, 200, 10, 64, 0, F32_CAPPED_TOL, 20},
};

/* Those that share keys: query heads that fill a half of a piece's rows and that do not, two halves
 * of one sequence, columns of rows of 32 bytes, the sizes that wait elsewhere, and what is left
 * out: windows, and more heads than a half has rows. */
#define N_SMALL_SHARED 3

static const struct test_case shared_cases[] = {
    {ATTENTION_FLASH, BF16, 4, 2, 128, 64, 16, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 6, 2, 64, 16, 64, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 4, 2, 256, 32, 512, 0, BF16_TOL, 50},
    {ATTENTION_FLASH, BF16, 16, 8, 128, 16, 256, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 2, 2, 128, 64, 2048, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 8, 2, 128, 64, 16, 0, BF16_TOL, 50},
    {ATTENTION_FLASH, BF16, 8, 1, 64, 64, 80, 0, BF16_TOL, 0},
    {ATTENTION_FLASH, F16, 10, 2, 80, 64, 16, 0, F16_TOL, 0},
    {ATTENTION_FLASH, F16, 4, 4, 256, 64, 16, 0, F16_TOL, 0},
    {ATTENTION_FLASH, BF16, 4, 2, 128, 64, 16, 700, BF16_TOL, 0},
    {ATTENTION_FLASH, BF16, 12, 1, 64, 64, 24, 0, BF16_TOL, 0},
};

/* A sequence, and how many of its first keys the one before it has too. */
struct length {
    int len, n_shared;
};

static const struct length lens[] = {{1, 0},  {1100, 0}, {15, 0},  {64, 0},
                                     {65, 0}, {130, 0},  {513, 0}, {2, 0}};
static const struct length small_lens[] = {{5, 0}, {67, 0}, {530, 0}};

/* Two of one prompt of whole chunks, two of more; a run of different lengths, which end in chunks,
 * at their borders and beside them; ten of one prompt; one that shares less than a chunk. */
static const struct length shared_lens[] = {
    {1025, 0},  {1100, 1024}, {70, 0},    {1600, 0},  {1601, 1600}, {1537, 1500}, {1537, 1536},
    {600, 512}, {580, 570},   {540, 0},   {539, 512}, {600, 530},   {513, 512},   {700, 512},
    {560, 540}, {1030, 540},  {545, 544}, {561, 512}, {514, 513},   {650, 500}};
static const struct length small_shared_lens[] = {
    {514, 0}, {530, 512}, {520, 512}, {540, 512}, {515, 514}};

/* One sequence as the model would have it: numbers that the types hold exactly. */
struct sequence {
    int len, n_shared;                 /* n_shared: first keys that the sequence before has too */
    float *q;                          /* [len, n_heads, head_dim]    */
    float *k, *v;                      /* [len, n_kv_heads, head_dim] */
    void *q_bytes, *k_bytes, *v_bytes; /* the same as act_dtype, kv_dtype                       */
    void *whole; /* [len, n_heads, head_dim]: its rows in a whole prefill of all sequences */
};

struct fixture {
    struct test_case c;
    bool is_small;
    struct cuda_device device;
    int n_seqs;
    struct sequence seq[MAX_SEQS];
    /* the cache */
    int block_size, max_blocks, n_blocks;
    int *table; /* [n_seqs, max_blocks] */
    struct kv_layer kv;
    /* what was compared */
    int n_rows, n_wrong;
};

/* A piece of a batch: n tokens of a sequence from position `first` on. seq PADDING: one token
 * without keys. */
struct piece {
    int seq, first, n;
};

static float scale_of(const struct test_case *c)
{
    return 1.0f / sqrtf((float)c->head_dim);
}

/* Scores reach a cap: with a deviation of 2 they would hardly notice 50. */
static float query_amplitude(const struct test_case *c)
{
    return c->softcap > 0 ? 30 : 3;
}

static size_t row_bytes(const struct fixture *f)
{
    return (size_t)f->c.n_heads * f->c.head_dim * dtype_bytes(f->c.act_dtype);
}

static float *random_rounded(size_t n, float amplitude, uint64_t seed, enum dtype dtype)
{
    float *x = random_floats(n, amplitude, seed);
    reference_round_all(dtype, x, n);
    return x;
}

static void sequence_init(struct sequence *s, const struct test_case *c, struct length length,
                          uint64_t seed)
{
    size_t n_q = (size_t)length.len * c->n_heads * c->head_dim;
    size_t n_k = (size_t)length.len * c->n_kv_heads * c->head_dim;
    size_t n_shared = (size_t)length.n_shared * c->n_kv_heads * c->head_dim;
    s->len = length.len;
    s->n_shared = length.n_shared;
    s->q = random_rounded(n_q, query_amplitude(c), seed, c->act_dtype);
    s->k = random_rounded(n_k, 2, seed + 1, c->kv_dtype);
    s->v = random_rounded(n_k, 1, seed + 2, c->kv_dtype);
    for (size_t i = 0; i < n_k; i += c->head_dim)
        s->v[i] = -0.0f; /* a sum that starts from nothing keeps the sign, one from zero does not */
    if (n_shared > 0) {
        memcpy(s->k, s[-1].k, n_shared * sizeof *s->k);
        memcpy(s->v, s[-1].v, n_shared * sizeof *s->v);
    }
    s->q_bytes = reference_encode(c->act_dtype, s->q, n_q);
    s->k_bytes = reference_encode(c->kv_dtype, s->k, n_k);
    s->v_bytes = reference_encode(c->kv_dtype, s->v, n_k);
    s->whole = xmalloc(n_q * dtype_bytes(c->act_dtype));
}

static void sequence_free(struct sequence *s)
{
    void *memory[] = {s->q, s->k, s->v, s->q_bytes, s->k_bytes, s->v_bytes, s->whole};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        free(memory[i]);
}

/* ---- the cache ------------------------------------------------------------------------------ */

static void shuffle(int *x, int n, uint64_t seed)
{
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(mix64(seed + (uint64_t)i) % (uint64_t)(i + 1)), swapped = x[i];
        x[i] = x[j];
        x[j] = swapped;
    }
}

static void make_table(struct fixture *f)
{
    int longest = 0, used = 0;
    f->n_blocks = 3;
    for (int s = 0; s < f->n_seqs; s++) {
        f->n_blocks += CEIL_DIV(f->seq[s].len, f->block_size);
        longest = MAX(longest, f->seq[s].len);
    }
    f->max_blocks = CEIL_DIV(longest, f->block_size) + 1;
    int *order = (int *)xcalloc(f->n_blocks, sizeof *order);
    for (int i = 0; i < f->n_blocks; i++)
        order[i] = i;
    shuffle(order, f->n_blocks, (uint64_t)f->block_size);
    f->table = (int *)xrealloc_array(f->table, (size_t)f->n_seqs * f->max_blocks, sizeof(int));
    for (int s = 0; s < f->n_seqs; s++) {
        int *row = f->table + s * f->max_blocks;
        for (int b = 0; b < f->max_blocks; b++) {
            bool exists = b < CEIL_DIV(f->seq[s].len, f->block_size);
            bool is_shared = (b + 1) * f->block_size <= f->seq[s].n_shared;
            row[b] = is_shared ? row[b - f->max_blocks] : exists ? order[used++] : NO_BLOCK;
        }
    }
    free(order);
}

/* Keys (values) of all sequences in the cache's layout; all bits set, which is NaN in every type,
 * elsewhere. */
static void *make_cache(const struct fixture *f, bool values)
{
    int n_kv_heads = f->c.n_kv_heads;
    size_t key_bytes = f->c.head_dim * dtype_bytes(f->c.kv_dtype);
    size_t bytes = (size_t)f->n_blocks * n_kv_heads * f->block_size * key_bytes;
    char *cache = (char *)xmalloc(bytes);
    memset(cache, 0xff, bytes);
    for (int s = 0; s < f->n_seqs; s++) {
        const char *from = (const char *)(values ? f->seq[s].v_bytes : f->seq[s].k_bytes);
        for (int i = 0; i < f->seq[s].len; i++) {
            size_t block = (size_t)f->table[s * f->max_blocks + i / f->block_size];
            for (int h = 0; h < n_kv_heads; h++, from += key_bytes) {
                size_t row = (block * n_kv_heads + h) * f->block_size + i % f->block_size;
                memcpy(cache + row * key_bytes, from, key_bytes);
            }
        }
    }
    void *device = gpu_copy_of(cache, bytes);
    free(cache);
    return device;
}

static void build_cache(struct fixture *f, int block_size)
{
    f->block_size = block_size;
    make_table(f);
    gpu_free(f->kv.k);
    gpu_free(f->kv.v);
    f->kv.k = make_cache(f, false);
    f->kv.v = make_cache(f, true);
    struct step_limits limits = {};
    limits.max_tokens = 8192;
    limits.max_seqs = MAX_PIECES;
    limits.max_kv_len = f->max_blocks * block_size;
    limits.shape = {f->c.n_heads, f->c.n_kv_heads, f->c.head_dim, block_size, f->c.kv_dtype};
    attention_device_reserve(&f->device, &limits);
}

/* ---- running -------------------------------------------------------------------------------- */

struct host_batch {
    int q_start[MAX_PIECES + 1], kv_len[MAX_PIECES];
    int *table; /* [n, max_blocks] */
    unsigned char *qkv;
    int n_tokens, max_q_len, max_kv_len;
};

static void host_batch_fill(struct host_batch *h, const struct fixture *f,
                            const struct piece *piece, int n)
{
    size_t stride =
        (size_t)(f->c.n_heads + 2 * f->c.n_kv_heads) * f->c.head_dim * dtype_bytes(f->c.act_dtype);
    *h = {};
    for (int i = 0; i < n; i++)
        h->n_tokens += piece[i].n;
    h->table = (int *)xcalloc((size_t)n * f->max_blocks, sizeof(int));
    h->qkv = (unsigned char *)xmalloc(h->n_tokens * stride);
    memset(h->qkv, 0xff, h->n_tokens * stride);
    for (int i = 0, token = 0; i < n; i++) {
        bool is_padding = piece[i].seq == PADDING;
        h->q_start[i + 1] = h->q_start[i] + piece[i].n;
        h->kv_len[i] = is_padding ? 0 : piece[i].first + piece[i].n;
        h->max_q_len = MAX(h->max_q_len, piece[i].n);
        h->max_kv_len = MAX(h->max_kv_len, h->kv_len[i]);
        for (int b = 0; b < f->max_blocks; b++)
            h->table[i * f->max_blocks + b] =
                is_padding ? NO_BLOCK : f->table[piece[i].seq * f->max_blocks + b];
        for (int t = 0; t < piece[i].n; t++, token++) {
            if (!is_padding)
                memcpy(h->qkv + token * stride,
                       (char *)f->seq[piece[i].seq].q_bytes + (piece[i].first + t) * row_bytes(f),
                       row_bytes(f));
        }
    }
}

/* The rows of a batch in each of several launches behind one another, [n_launches, n_tokens,
 * n_heads, head_dim] of act_dtype; the caller frees. */
static unsigned char *run(struct fixture *f, const struct piece *piece, int n, int n_launches)
{
    struct host_batch h;
    host_batch_fill(&h, f, piece, n);
    size_t out_bytes = h.n_tokens * row_bytes(f);
    size_t qkv_bytes = out_bytes / f->c.n_heads * (f->c.n_heads + 2 * f->c.n_kv_heads);
    struct batch b = {};
    b.n_tokens = h.n_tokens;
    b.n_seqs = n;
    b.max_blocks = f->max_blocks;
    b.max_q_len = h.max_q_len;
    b.max_kv_len = h.max_kv_len;
    b.q_start = (int *)gpu_copy_of(h.q_start, (n + 1) * sizeof(int));
    b.kv_len = (int *)gpu_copy_of(h.kv_len, n * sizeof(int));
    b.block_table = (int *)gpu_copy_of(h.table, (size_t)n * f->max_blocks * sizeof(int));
    struct attention_args args = {};
    args.kind = f->c.kind;
    char *results = (char *)gpu_alloc(n_launches * out_bytes);
    args.qkv = gpu_copy_of(h.qkv, qkv_bytes);
    args.kv = f->kv;
    args.shape = {f->c.n_heads, f->c.n_kv_heads, f->c.head_dim, f->block_size, f->c.kv_dtype};
    args.scale = scale_of(&f->c);
    args.window = f->c.window;
    args.softcap = f->c.softcap;
    args.batch = &b;
    CUDA_CHECK(cudaMemset(results, 0xff, n_launches * out_bytes));
    CUDA_CHECK(cudaDeviceSynchronize());
    cuda_attention_plan(&f->device.base, &args);
    for (int i = 0; i < n_launches; i++) {
        args.out = results + i * out_bytes;
        cuda_attention(&f->device.base, &args);
    }
    CUDA_CHECK(cudaStreamSynchronize(f->device.stream));
    unsigned char *out = (unsigned char *)xmalloc(n_launches * out_bytes);
    CUDA_CHECK(cudaMemcpy(out, results, n_launches * out_bytes, cudaMemcpyDeviceToHost));
    const void *memory[] = {b.q_start, b.kv_len, b.block_table, results, args.qkv};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        gpu_free(memory[i]);
    free(h.table);
    free(h.qkv);
    return out;
}

/* Runs a batch several times and compares its rows with those of the whole prefill; padding with
 * zeros. */
static void check_launches(struct fixture *f, const struct piece *piece, int n, int n_launches,
                           const char *what)
{
    unsigned char *out = run(f, piece, n, n_launches), *row = out;
    unsigned char *zeros = (unsigned char *)xcalloc(1, row_bytes(f));
    for (int k = 0; k < n * n_launches; k++) {
        int i = k % n;
        for (int t = 0; t < piece[i].n; t++, row += row_bytes(f)) {
            const unsigned char *expected = zeros;
            if (piece[i].seq != PADDING)
                expected = (unsigned char *)f->seq[piece[i].seq].whole +
                           (piece[i].first + t) * row_bytes(f);
            f->n_rows++;
            if (memcmp(row, expected, row_bytes(f)) == 0)
                continue;
            if (f->n_wrong++ == 0)
                printf("    first difference: %s, sequence of %d, position %d\n", what,
                       piece[i].seq == PADDING ? 0 : f->seq[piece[i].seq].len, piece[i].first + t);
        }
    }
    free(out);
    free(zeros);
}

static void check_same(struct fixture *f, const struct piece *piece, int n, const char *what)
{
    check_launches(f, piece, n, 1, what);
}

/* ---- what is checked ------------------------------------------------------------------------ */

static void run_whole(struct fixture *f)
{
    struct piece piece[MAX_SEQS];
    for (int s = 0; s < f->n_seqs; s++)
        piece[s] = {s, 0, f->seq[s].len};
    unsigned char *out = run(f, piece, f->n_seqs, 1), *row = out;
    for (int s = 0; s < f->n_seqs; s++) {
        memcpy(f->seq[s].whole, row, f->seq[s].len * row_bytes(f));
        row += f->seq[s].len * row_bytes(f);
    }
    free(out);
}

/* Norm of the error over that of the reference, at a few positions of every sequence. NaN counts
 * as infinite. */
static double whole_error(const struct fixture *f)
{
    const struct test_case *c = &f->c;
    double error = 0, norm = 0, expected[256];
    for (int s = 0; s < f->n_seqs; s++) {
        int len = f->seq[s].len, positions[] = {0, len / 3, len / 2, len - 2, len - 1};
        for (size_t i = 0; i < ARRAY_LEN(positions); i++) {
            int at = MAX(0, positions[i]);
            for (int h = 0; h < c->n_heads; h++) {
                size_t row = ((size_t)at * c->n_heads + h) * c->head_dim;
                size_t kv_head = (size_t)(h / (c->n_heads / c->n_kv_heads)) * c->head_dim;
                struct reference_attention a = {};
                a.q = f->seq[s].q + row;
                a.k = f->seq[s].k + kv_head;
                a.v = f->seq[s].v + kv_head;
                a.stride = (size_t)c->n_kv_heads * c->head_dim;
                a.head_dim = c->head_dim;
                a.first = c->window > 0 ? MAX(0, at + 1 - c->window) : 0;
                a.last = at;
                a.scale = scale_of(c);
                a.softcap = c->softcap;
                reference_attend(expected, &a);
                for (int d = 0; d < c->head_dim; d++) {
                    double got = reference_decode(c->act_dtype, f->seq[s].whole, row + d);
                    error += (got - expected[d]) * (got - expected[d]);
                    norm += expected[d] * expected[d];
                }
            }
        }
    }
    return isfinite(error) ? sqrt(error / norm) : INFINITY;
}

static void check_alone(struct fixture *f)
{
    for (int s = 0; s < f->n_seqs; s++) {
        struct piece piece = {s, 0, f->seq[s].len};
        check_same(f, &piece, 1, "alone");
    }
}

/* All sequences side by side in chunks of their own, one of which is often a single token. */
static void check_chunks(struct fixture *f)
{
    static const int sizes[] = {1, 64, 1, 17, 300, 2, 129, 1, 33, 512};
    int done[MAX_SEQS] = {0};
    for (int step = 0;; step++) {
        struct piece piece[MAX_SEQS];
        int n = 0;
        for (int s = 0; s < f->n_seqs; s++) {
            int left = f->seq[s].len - done[s];
            int size = MIN(left, sizes[(size_t)(3 * s + step) % ARRAY_LEN(sizes)]);
            if (size > 0)
                piece[n++] = {s, done[s], size};
            done[s] += size;
        }
        if (n == 0)
            return;
        check_same(f, piece, n, "in chunks");
    }
}

/* Decodes of the last tokens side by side, with padding between, often enough that a race between
 * warps, blocks or launches shows; then of one token alone at places around the borders of tiles
 * and chunks. */
static void check_decodes(struct fixture *f)
{
    static const int places[] = {64, 512, 0, 62, 63, 127, 510, 511, 1023, 1024, 1025, 1535, 1536};
    size_t n_places = f->is_small ? 2 : ARRAY_LEN(places);
    struct piece piece[MAX_PIECES];
    for (int s = 0; s < f->n_seqs; s++) {
        piece[2 * s] = {s, f->seq[s].len - 1, 1};
        piece[2 * s + 1] = {PADDING, 0, 1};
    }
    check_launches(f, piece, 2 * f->n_seqs, f->is_small ? 3 : 50, "decoded together");
    for (int s = 0; s < f->n_seqs; s++) {
        for (size_t i = 0; i < n_places; i++) {
            struct piece one = {s, places[i], 1};
            if (places[i] < f->seq[s].len)
                check_same(f, &one, 1, "decoded alone");
        }
    }
}

/* Decodes of the last tokens of neighbours, then some of these with padding, a prefill, and others
 * between. */
static void check_neighbours(struct fixture *f)
{
    struct piece piece[MAX_PIECES];
    int n_launches = f->is_small ? 3 : 50, n = 0;
    for (int s = 0; s < f->n_seqs; s++)
        piece[s] = {s, f->seq[s].len - 1, 1};
    check_launches(f, piece, f->n_seqs, n_launches, "neighbours decoded");
    for (int s = 0; s < f->n_seqs; s++) {
        piece[n++] = {s, f->seq[s].len - 1 - s % 2, 1};
        if (s % 4 == 1)
            piece[n++] = {PADDING, 0, 1};
        else if (s % 7 == 6)
            piece[n++] = {s, 0, 3};
    }
    check_launches(f, piece, n, n_launches, "neighbours decoded among others");
}

static void fixture_init(struct fixture *f, const struct test_case *c, const struct length *length,
                         int n_seqs, bool is_small)
{
    *f = {};
    f->c = *c;
    f->is_small = is_small;
    f->n_seqs = n_seqs;
    attention_device_open(&f->device, c->act_dtype);
    for (int s = 0; s < n_seqs; s++)
        sequence_init(&f->seq[s], c, length[s], (uint64_t)(100 * s + 7));
    build_cache(f, c->block_size);
    run_whole(f);
}

/* Whether all is well; prints it. */
static bool fixture_report(const struct fixture *f, const char *what)
{
    const struct test_case *c = &f->c;
    double error = whole_error(f);
    bool good = error < c->tolerance && f->n_wrong == 0;
    printf("%-4s %-16s %-8s kv %-8s heads %2d/%d x %3d block %4d and %4d window %3d cap %2.0f%s | "
           "error %.1e | %d of %d rows differ\n",
           good ? "ok" : "FAIL", attention_name(c->kind), dtype_name(c->act_dtype),
           dtype_name(c->kv_dtype), c->n_heads, c->n_kv_heads, c->head_dim, c->block_size,
           c->other_block_size, c->window, c->softcap, what, error, f->n_wrong, f->n_rows);
    fflush(stdout);
    return good;
}

static void fixture_free(struct fixture *f)
{
    for (int s = 0; s < f->n_seqs; s++)
        sequence_free(&f->seq[s]);
    free(f->table);
    gpu_free(f->kv.k);
    gpu_free(f->kv.v);
    attention_device_close(&f->device);
}

#define FEW_SMS 5 /* so that a block of threads has many pairs of sequence and head */

static bool check_case(const struct test_case *c, const struct length *length, int n_seqs,
                       bool is_small)
{
    struct fixture f;
    fixture_init(&f, c, length, n_seqs, is_small);
    check_alone(&f);
    check_chunks(&f);
    check_decodes(&f);
    f.device.n_sms = FEW_SMS;
    build_cache(&f, is_small ? c->block_size : c->other_block_size);
    if (!is_small)
        check_alone(&f);
    check_decodes(&f);
    bool good = fixture_report(&f, "");
    fixture_free(&f);
    return good;
}

static bool check_shared_case(const struct test_case *c, const struct length *length, int n_seqs,
                              bool is_small)
{
    struct fixture f;
    fixture_init(&f, c, length, n_seqs, is_small);
    check_neighbours(&f);
    f.device.n_sms = FEW_SMS;
    build_cache(&f, c->block_size);
    check_neighbours(&f);
    build_cache(&f, c->other_block_size);
    check_neighbours(&f);
    bool good = fixture_report(&f, " shared");
    fixture_free(&f);
    return good;
}

int main(int argc, char **argv)
{
    bool small = argc > 1 && strcmp(argv[1], "--small") == 0;
    int n_failed = 0, n_cases = small ? N_SMALL : (int)ARRAY_LEN(cases);
    for (int i = 0; i < n_cases; i++) {
        if (small)
            n_failed += !check_case(&cases[i], small_lens, ARRAY_LEN(small_lens), true);
        else
            n_failed += !check_case(&cases[i], lens, ARRAY_LEN(lens), false);
    }
    int n_shared_cases = small ? N_SMALL_SHARED : (int)ARRAY_LEN(shared_cases);
    for (int i = 0; i < n_shared_cases; i++) {
        if (small)
            n_failed += !check_shared_case(&shared_cases[i], small_shared_lens,
                                           ARRAY_LEN(small_shared_lens), true);
        else
            n_failed +=
                !check_shared_case(&shared_cases[i], shared_lens, ARRAY_LEN(shared_lens), false);
    }
    printf("%d of %d cases failed\n", n_failed, n_cases + n_shared_cases);
    return n_failed > 0;
}
