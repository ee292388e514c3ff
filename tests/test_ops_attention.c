/* test_ops_attention.c - attention of the CPU backend, both kinds, every instruction set and type
 * of cache, against naive double precision; and that a query row has the same bits in any batch,
 * chunk and block size, with any number of threads.
 *
 * Block tables are shuffled, and every slot that no key belongs to holds a NaN.
 */
#include "tests/amx_emulation.h"
#include "tests/ops_reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEQS = 4 };

/* What all sequences of a test look like: their queries, keys and values at every position. */
struct scene {
    int n_heads, n_kv_heads, head_dim, window;
    float softcap;
    enum dtype kv_dtype;
    int n_seqs, n_positions[MAX_SEQS];
    float *q[MAX_SEQS];               /* [n_positions][n_heads head_dim]    */
    float *k[MAX_SEQS], *v[MAX_SEQS]; /* [n_positions][n_kv_heads head_dim] */
};

/* The tokens of one sequence that are in a batch: positions [first, first + n). */
struct chunk {
    int seq, first, n;
};

/* With a soft-cap queries are larger, so that scores reach into it: of a standard deviation of 11,
 * up to 50. */
static float query_amplitude(const struct scene *s)
{
    return s->softcap > 0 ? 16 : 2;
}

static void scene_init(struct scene *s)
{
    for (int i = 0; i < s->n_seqs; i++) {
        size_t q = (size_t)(s->n_positions[i] * s->n_heads * s->head_dim);
        size_t kv = (size_t)(s->n_positions[i] * s->n_kv_heads * s->head_dim);
        s->q[i] = random_floats(q, query_amplitude(s), 10 + (uint64_t)i);
        s->k[i] = random_floats(kv, 2, 20 + (uint64_t)i);
        s->v[i] = random_floats(kv, 1, 30 + (uint64_t)i);
        reference_round_all(DTYPE_BF16, s->q[i], q); /* what products of bf16 round q to */
        reference_round_all(s->kv_dtype, s->k[i], kv);
        reference_round_all(s->kv_dtype, s->v[i], kv);
    }
}

static void scene_free(struct scene *s)
{
    for (int i = 0; i < s->n_seqs; i++) {
        free(s->q[i]);
        free(s->k[i]);
        free(s->v[i]);
    }
}

static double scene_scale(const struct scene *s)
{
    return 1 / sqrt(s->head_dim);
}

/* ---- running a batch ---- */

/* The arrays of one call, on the host. */
struct host_batch {
    int n_tokens, n_blocks, max_blocks, max_q_len, max_kv_len;
    int *position, *q_start, *kv_len, *block_table;
    float *qkv;
    float *k, *v; /* [n_blocks, n_kv_heads, block_size, head_dim] */
};

/* A permutation of 0 .. n - 1 that depends on n alone. */
static int *shuffled(int n)
{
    int *order = xmalloc((size_t)n * sizeof(int));
    for (int i = 0; i < n; i++) {
        int j = (int)(mix64((uint64_t)(n + i)) % (uint64_t)(i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    return order;
}

static void put_keys(struct host_batch *b, const struct scene *s, const struct chunk *c,
                     const int *table, int block_size)
{
    size_t d = (size_t)s->head_dim;
    for (int p = 0; p < c->first + c->n; p++) {
        for (int h = 0; h < s->n_kv_heads; h++) {
            int head = table[p / block_size] * s->n_kv_heads + h;
            size_t to = (size_t)(head * block_size + p % block_size) * d;
            size_t from = (size_t)(p * s->n_kv_heads + h) * d;
            memcpy(b->k + to, s->k[c->seq] + from, d * sizeof(float));
            memcpy(b->v + to, s->v[c->seq] + from, d * sizeof(float));
        }
    }
}

static void put_queries(struct host_batch *b, const struct scene *s, const struct chunk *c, int at)
{
    size_t d = (size_t)s->head_dim, heads = (size_t)s->n_heads;
    size_t width = (heads + 2 * (size_t)s->n_kv_heads) * d;
    for (int i = 0; i < c->n; i++) {
        b->position[at + i] = c->first + i;
        memcpy(b->qkv + (size_t)(at + i) * width, s->q[c->seq] + (size_t)(c->first + i) * heads * d,
               heads * d * sizeof(float));
    }
}

static float *nans(size_t n)
{
    float *x = xmalloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        x[i] = NAN;
    return x;
}

static struct host_batch make_batch(const struct scene *s, const struct chunk *chunks, int n_chunks,
                                    int block_size)
{
    struct host_batch b = {0};
    int n_used = 0;
    for (int i = 0; i < n_chunks; i++) {
        int kv_len = chunks[i].first + chunks[i].n, blocks = CEIL_DIV(kv_len, block_size);
        b.n_tokens += chunks[i].n;
        n_used += blocks;
        b.max_blocks = MAX(b.max_blocks, blocks + 1); /* longer than any row needs */
        b.max_q_len = MAX(b.max_q_len, chunks[i].n);
        b.max_kv_len = MAX(b.max_kv_len, kv_len);
    }
    b.n_blocks = n_used + 1;
    size_t cache = (size_t)(b.n_blocks * s->n_kv_heads * block_size * s->head_dim);
    b.position = xcalloc((size_t)b.n_tokens, sizeof(int));
    b.q_start = xcalloc((size_t)n_chunks + 1, sizeof(int));
    b.kv_len = xcalloc((size_t)n_chunks, sizeof(int));
    b.block_table = xcalloc((size_t)(n_chunks * b.max_blocks), sizeof(int));
    b.qkv = nans((size_t)(b.n_tokens * (s->n_heads + 2 * s->n_kv_heads) * s->head_dim));
    b.k = nans(cache);
    b.v = nans(cache);
    int *order = shuffled(b.n_blocks), used = 0;
    for (int i = 0; i < n_chunks; i++) {
        int *table = b.block_table + i * b.max_blocks;
        b.kv_len[i] = chunks[i].first + chunks[i].n;
        b.q_start[i + 1] = b.q_start[i] + chunks[i].n;
        for (int j = 0; j < CEIL_DIV(b.kv_len[i], block_size); j++)
            table[j] = order[used++];
        put_keys(&b, s, &chunks[i], table, block_size);
        put_queries(&b, s, &chunks[i], b.q_start[i]);
    }
    free(order);
    return b;
}

static void free_batch(struct host_batch *b)
{
    free(b->position);
    free(b->q_start);
    free(b->kv_len);
    free(b->block_table);
    free(b->qkv);
    free(b->k);
    free(b->v);
}

/* The outputs of the batch's tokens, [n_tokens][n_heads head_dim]; the caller frees. */
static float *attend(struct device *device, const struct scene *s, enum attention_kind kind,
                     const struct chunk *chunks, int n_chunks, int block_size)
{
    struct host_batch b = make_batch(s, chunks, n_chunks, block_size);
    size_t out_bytes = (size_t)(b.n_tokens * s->n_heads * s->head_dim) * sizeof(float);
    size_t qkv = (size_t)(b.n_tokens * (s->n_heads + 2 * s->n_kv_heads) * s->head_dim);
    size_t cache = (size_t)(b.n_blocks * s->n_kv_heads * block_size * s->head_dim);
    size_t seqs = (size_t)n_chunks * sizeof(int);
    struct batch batch = {.n_tokens = b.n_tokens,
                          .n_seqs = n_chunks,
                          .max_blocks = b.max_blocks,
                          .max_q_len = b.max_q_len,
                          .max_kv_len = b.max_kv_len};
    int *position = to_device(device, b.position, (size_t)b.n_tokens * sizeof(int));
    int *q_start = to_device(device, b.q_start, seqs + sizeof(int));
    int *kv_len = to_device(device, b.kv_len, seqs);
    int *table = to_device(device, b.block_table, seqs * (size_t)b.max_blocks);
    float *device_qkv = to_device(device, b.qkv, qkv * sizeof(float));
    batch.position = position;
    batch.q_start = q_start;
    batch.kv_len = kv_len;
    batch.block_table = table;
    struct attention_args args = {
        .kind = kind,
        .out = device->ops->alloc(device, out_bytes),
        .qkv = device_qkv,
        .kv = {to_device_as(device, s->kv_dtype, b.k, cache),
               to_device_as(device, s->kv_dtype, b.v, cache)},
        .shape = {s->n_heads, s->n_kv_heads, s->head_dim, block_size, s->kv_dtype},
        .scale = (float)scene_scale(s),
        .window = s->window,
        .softcap = s->softcap,
        .batch = &batch,
    };
    struct step_limits limits = {.max_tokens = b.n_tokens,
                                 .max_seqs = n_chunks,
                                 .max_rows = 1,
                                 .max_kv_len = b.max_kv_len,
                                 .max_width = 1,
                                 .vocab = 1,
                                 .shape = args.shape};
    assert_int_equal(device->ops->reserve(device, &limits), 0);
    device->ops->attention_plan(device, &args);
    device->ops->attention(device, &args);
    float *out = to_host(device, args.out, out_bytes);
    void *const used[] = {position,   q_start,  kv_len,    table,
                          device_qkv, args.out, args.kv.k, args.kv.v};
    for (size_t i = 0; i < ARRAY_LEN(used); i++)
        device->ops->free(device, used[i]);
    free_batch(&b);
    return out;
}

/* ---- against the reference ---- */

/* bf16 products round the weights of the values, which are at most 1, to 8 bits; scores are rounded
 * relative to the products that they are the sum of. */
static double tolerance(const struct device *device, const struct scene *s)
{
    const char *isa = device->info.isa;
    bool bf16 = strcmp(isa, "avx512bf16") == 0 || strcmp(isa, "amx") == 0 ||
                strcmp(isa, AMX_ON_AVX512BF16) == 0;
    return bf16 && s->kv_dtype == DTYPE_BF16 ? 0x1p-8 : 2.5e-6 * query_amplitude(s);
}

static void check_chunk(const struct device *device, const struct scene *s, const struct chunk *c,
                        const float *out, const char *kind)
{
    char what[128];
    int d = s->head_dim, group = s->n_heads / s->n_kv_heads;
    double *expected = xcalloc((size_t)d, sizeof(double));
    for (int i = 0; i < c->n * s->n_heads; i++) {
        int position = c->first + i / s->n_heads, head = i % s->n_heads;
        struct reference_attention a = {
            .q = s->q[c->seq] + (position * s->n_heads + head) * d,
            .k = s->k[c->seq] + head / group * d,
            .v = s->v[c->seq] + head / group * d,
            .stride = (size_t)(s->n_kv_heads * d),
            .head_dim = d,
            .first = s->window ? MAX(0, position + 1 - s->window) : 0,
            .last = position,
            .scale = scene_scale(s),
            .softcap = s->softcap,
        };
        reference_attend(expected, &a);
        snprintf(what, sizeof(what), "%s %s %s d%d softcap %g position %d head %d",
                 device->info.isa, kind, dtype_name(s->kv_dtype), d, (double)s->softcap, position,
                 head);
        for (int j = 0; j < d; j++)
            assert_near(out[i * d + j], expected[j], tolerance(device, s), what, (size_t)j);
    }
    free(expected);
}

static void check_scene(struct device *device, const struct scene *s, int block_size)
{
    /* A whole prompt, a token being decoded, a chunk from the middle, a prompt of one token. */
    const struct chunk chunks[] = {
        {0, 0, s->n_positions[0]},
        {1, s->n_positions[1] - 1, 1},
        {2, s->n_positions[2] / 3, s->n_positions[2] / 2},
        {3, 0, 1},
    };
    static const enum attention_kind kinds[] = {ATTENTION_FLASH, ATTENTION_EAGER};
    for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
        float *out = attend(device, s, kinds[k], chunks, ARRAY_LEN(chunks), block_size);
        const float *at = out;
        for (size_t i = 0; i < ARRAY_LEN(chunks); i++) {
            check_chunk(device, s, &chunks[i], at, attention_name(kinds[k]));
            at += chunks[i].n * s->n_heads * s->head_dim;
        }
        free(out);
    }
}

static void attention_is_the_formula_for_every_shape_and_type(void **state)
{
    static const struct {
        int n_heads, n_kv_heads, head_dim, block_size, window, softcap;
    } cases[] = {
        {1, 1, 8, 1, 0, 0},       {4, 2, 16, 3, 0, 0},      {6, 2, 24, 16, 7, 0},
        {2, 2, 64, 64, 0, 0},     {5, 1, 80, 17, 0, 0},     {8, 4, 96, 16, 33, 0},
        {16, 2, 128, 64, 0, 0},   {3, 3, 128, 300, 100, 0}, {2, 1, 256, 31, 0, 0},
        {40, 1, 10, 16, 64, 0},   {1, 1, 6, 1, 0, 20},      {4, 2, 64, 16, 0, 50},
        {5, 1, 80, 17, 33, 20},   {8, 4, 128, 64, 0, 20},   {6, 2, 34, 300, 50, 50},
        {8, 4, 256, 31, 100, 50},
    };
    (void)state;
    for (int isa = 0; isa < N_CPU_VARIANTS; isa++) {
        struct device *device = open_cpu(CPU_ISAS[isa], 2);
        for (size_t i = 0; device && i < ARRAY_LEN(cases); i++) {
            for (enum dtype dtype = 0; dtype < DTYPE_N; dtype++) {
                struct scene s = {
                    .n_heads = cases[i].n_heads,
                    .n_kv_heads = cases[i].n_kv_heads,
                    .head_dim = cases[i].head_dim,
                    .window = cases[i].window,
                    .softcap = (float)cases[i].softcap,
                    .kv_dtype = dtype,
                    .n_seqs = MAX_SEQS,
                    .n_positions = {71, 131, 90, 1},
                };
                scene_init(&s);
                check_scene(device, &s, cases[i].block_size);
                scene_free(&s);
            }
        }
        if (device)
            backend_cpu.close(device);
    }
}

/* The query at position i has the score x[i] = +-2^(i - 30) with the key of position 0 and 0 with
 * the others. A cap of 8 leaves the small ones alone and holds the large ones at 8. */
static void a_softcap_is_tanh_from_the_smallest_score_to_the_largest(void **state)
{
    (void)state;
    for (int isa = 0; isa < N_CPU_VARIANTS; isa++) {
        struct device *device = open_cpu(CPU_ISAS[isa], 1);
        for (int negative = 0; device && negative < 2; negative++) {
            struct scene s = {.n_heads = 1,
                              .n_kv_heads = 1,
                              .head_dim = 2,
                              .softcap = 8,
                              .n_seqs = MAX_SEQS,
                              .n_positions = {61, 2, 4, 1}};
            scene_init(&s);
            memset(s.k[0], 0, 61 * 2 * sizeof(float));
            s.k[0][0] = negative ? -1 : 1;
            for (int i = 0; i < 61; i++)
                s.q[0][2 * i] = ldexpf(1, i - 30) / (float)scene_scale(&s);
            check_scene(device, &s, 16);
            scene_free(&s);
        }
        if (device)
            backend_cpu.close(device);
    }
}

/* ---- the same bits however it is cut ---- */

struct cutting {
    int chunk, block_size, n_threads;
    bool together; /* chunks of all sequences in one batch, or each alone */
};

/* Runs all positions of all sequences in chunks and compares with the whole prompts' outputs. */
static void check_cutting(const char *isa, const struct scene *s, enum attention_kind kind,
                          const struct cutting *cut, float *const whole[])
{
    char what[128];
    struct device *device = open_cpu(isa, cut->n_threads);
    size_t width = (size_t)(s->n_heads * s->head_dim);
    snprintf(what, sizeof(what), "%s %s %s d%d chunks of %d, blocks of %d, %d threads", isa,
             attention_name(kind), dtype_name(s->kv_dtype), s->head_dim, cut->chunk,
             cut->block_size, cut->n_threads);
    for (int first = 0; first < s->n_positions[0]; first += cut->chunk) {
        struct chunk chunks[MAX_SEQS];
        int n_chunks = 0;
        for (int i = 0; i < s->n_seqs; i++) {
            if (first < s->n_positions[i])
                chunks[n_chunks++] =
                    (struct chunk){i, first, MIN(cut->chunk, s->n_positions[i] - first)};
        }
        int step = cut->together ? n_chunks : 1;
        for (int i = 0; i < n_chunks; i += step) {
            float *out = attend(device, s, kind, chunks + i, step, cut->block_size);
            const float *at = out;
            for (int c = i; c < i + step; c++) {
                size_t n = (size_t)chunks[c].n * width;
                assert_same_bits(at, whole[chunks[c].seq] + (size_t)first * width,
                                 n * sizeof(float), what);
                at += n;
            }
            free(out);
        }
    }
    backend_cpu.close(device);
}

static void check_cuttings(struct device *device, const struct scene *s, enum attention_kind kind)
{
    static const struct cutting cuttings[] = {
        {1, 16, 2, true},    {1, 64, 1, false},  {5, 1, 2, false},
        {13, 1000, 2, true}, {64, 16, 1, false}, {1000, 7, 1, true},
    };
    float *whole[MAX_SEQS];
    for (int i = 0; i < s->n_seqs; i++)
        whole[i] = attend(device, s, kind, &(struct chunk){i, 0, s->n_positions[i]}, 1, 64);
    for (size_t i = 0; i < ARRAY_LEN(cuttings); i++)
        check_cutting(device->info.isa, s, kind, &cuttings[i], whole);
    for (int i = 0; i < s->n_seqs; i++)
        free(whole[i]);
}

static void a_query_has_the_same_bits_in_any_chunk_and_block_size(void **state)
{
    static const int shapes[][5] = {{4, 2, 128, 0, 0},
                                    {3, 1, 24, 50, 0},
                                    {16, 1, 64, 0, 0},
                                    {2, 1, 128, 0, 20},
                                    {9, 1, 26, 50, 50}};
    (void)state;
    for (int isa = 0; isa < N_CPU_VARIANTS; isa++) {
        struct device *device = open_cpu(CPU_ISAS[isa], 2);
        for (size_t i = 0; device && i < ARRAY_LEN(shapes) * DTYPE_N; i++) {
            const int *shape = shapes[i / DTYPE_N];
            struct scene s = {
                .n_heads = shape[0],
                .n_kv_heads = shape[1],
                .head_dim = shape[2],
                .window = shape[3],
                .softcap = (float)shape[4],
                .kv_dtype = (enum dtype)(i % DTYPE_N),
                .n_seqs = 2,
                .n_positions = {150, 39},
            };
            scene_init(&s);
            check_cuttings(device, &s, ATTENTION_FLASH);
            check_cuttings(device, &s, ATTENTION_EAGER);
            scene_free(&s);
        }
        if (device)
            backend_cpu.close(device);
    }
}

/* ---- padding ---- */

static void a_padding_sequence_gets_zeros(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        struct device *device = open_cpu("plain", 1);
        float qkv[2 * 3 * 8], kv[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[2 * 8];
        for (size_t i = 0; i < ARRAY_LEN(qkv); i++)
            qkv[i] = 1;
        const int position[] = {0, 0}, q_start[] = {0, 1, 2}, kv_len[] = {1, 0}, table[] = {0, 0};
        struct batch batch = {.n_tokens = 2,
                              .n_seqs = 2,
                              .max_blocks = 1,
                              .max_q_len = 1,
                              .max_kv_len = 1,
                              .position = position,
                              .q_start = q_start,
                              .kv_len = kv_len,
                              .block_table = table};
        struct attention_args args = {.kind = kind ? ATTENTION_FLASH : ATTENTION_EAGER,
                                      .out = out,
                                      .qkv = qkv,
                                      .kv = {kv, kv},
                                      .shape = {1, 1, 8, 1, DTYPE_F32},
                                      .scale = 1,
                                      .batch = &batch};
        struct step_limits limits = {.max_tokens = 2,
                                     .max_seqs = 2,
                                     .max_rows = 1,
                                     .max_kv_len = 1,
                                     .max_width = 8,
                                     .vocab = 1,
                                     .shape = args.shape};
        assert_int_equal(device->ops->reserve(device, &limits), 0);
        memset(out, 0x55, sizeof(out));
        device->ops->attention_plan(device, &args);
        device->ops->attention(device, &args);
        for (int i = 0; i < 8; i++) {
            assert_true(out[i] == kv[i]);
            assert_true(out[8 + i] == 0);
        }
        backend_cpu.close(device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_the_formula_for_every_shape_and_type),
        cmocka_unit_test(a_softcap_is_tanh_from_the_smallest_score_to_the_largest),
        cmocka_unit_test(a_query_has_the_same_bits_in_any_chunk_and_block_size),
        cmocka_unit_test(a_padding_sequence_gets_zeros),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
