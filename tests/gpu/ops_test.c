/* ops_test.c - the operations of the CUDA backend, attention and products excepted, against naive
 * double precision and against the CPU.
 *
 *   ops_test [--small]
 *
 * Needs a GPU and quire_cuda.so beside the program or in ../lib/quire; skips itself otherwise.
 * --small, for compute-sanitizer, runs every kernel, but fewer shapes and rows.
 */
#include "tests/gpu/ops_device.h"

#include <math.h>
#include <stdio.h>

/* ---- reading ---- */

static void sum_words_adds_every_word_once(void **state)
{
    (void)state;
    struct device *device = open_gpu(DTYPE_BF16);
    check_sum_words(device, 1);
    check_sum_words(device, 77);
    check_sum_words(device, (size_t)1 << 20);
    device->ops->close(device);
}

/* ---- rows ---- */

static void drawn_rows_are_a_function_of_their_stream(void **state)
{
    (void)state;
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    for (size_t i = 0; i < ARRAY_LEN(dtypes); i++) {
        struct device *device = open_gpu(dtypes[i]);
        check_drawn_rows(device);
        device->ops->close(device);
    }
}

static void embed_and_gather_pick_rows(void **state)
{
    (void)state;
    enum { VOCAB = 99, N = 5 };
    static const int token[N] = {0, 98, -2, 33, -1}, sampled[] = {41, 7},
                     id[N] = {0, 98, 7, 33, 41};
    static const int order[] = {4, 4, 0, 3}, dims[] = {1024, 172, 5};
    for (enum dtype act = 0; act < DTYPE_N; act++) {
        struct device *device = open_gpu(act);
        int *device_token = to_device(device, token, sizeof(token));
        int *device_sampled = to_device(device, sampled, sizeof(sampled));
        int *device_order = to_device(device, order, sizeof(order));
        for (size_t c = 0; c < ARRAY_LEN(dims); c++) {
            size_t dim = (size_t)dims[c], bytes = dim * sizeof(float);
            float *w = random_of(act, VOCAB * dim, 1, 6);
            struct weight table = load_weight(device, w, VOCAB, dims[c], DTYPE_F32, false);
            void *x = device->ops->alloc(device, N * bytes);
            void *picked = device->ops->alloc(device, N * bytes);
            device->ops->embed(device, x, &table, device_token, device_sampled, N);
            device->ops->gather(device, picked, x, device_order, ARRAY_LEN(order), dims[c]);
            float *rows = to_host_as(device, act, x, N * dim);
            float *gathered = to_host_as(device, act, picked, ARRAY_LEN(order) * dim);
            for (size_t t = 0; t < N; t++)
                assert_same_bits(rows + t * dim, w + (size_t)id[t] * dim, bytes, "embed");
            for (size_t t = 0; t < ARRAY_LEN(order); t++)
                assert_same_bits(gathered + t * dim, rows + (size_t)order[t] * dim, bytes,
                                 "gather");
            device->ops->free(device, x);
            device->ops->free(device, picked);
            device->ops->weight_free(device, &table);
            free(w);
            free(rows);
            free(gathered);
        }
        device->ops->free(device, device_token);
        device->ops->free(device, device_sampled);
        device->ops->free(device, device_order);
        device->ops->close(device);
    }
}

static void check_norm(struct device *device, int n_rows, int dim, bool with_delta)
{
    enum dtype act = device->act_dtype;
    size_t n = (size_t)n_rows * (size_t)dim;
    float *x = random_of(act, n, 2, 7), *delta = random_of(act, n, 1, 8);
    float *gain = random_floats((size_t)dim, 1.5f, 9);
    void *residual = to_device_as(device, act, x, n),
         *device_delta = to_device_as(device, act, delta, n);
    void *out = device->ops->alloc(device, n * sizeof(float));
    float *device_gain = to_device(device, gain, (size_t)dim * sizeof(float));
    device->ops->add_rmsnorm(device, out, residual, with_delta ? device_delta : NULL, device_gain,
                             n_rows, dim, 1e-6f);
    float *sum = to_host_as(device, act, residual, n), *got = to_host_as(device, act, out, n);
    double *row = xcalloc((size_t)dim, sizeof(double)),
           *expected = xcalloc((size_t)dim, sizeof(double));
    char what[96];
    snprintf(what, sizeof(what), "norm %s %dx%d", dtype_name(act), n_rows, dim);
    for (size_t r = 0; r < (size_t)n_rows; r++) {
        for (size_t i = 0; i < (size_t)dim; i++) {
            size_t at = r * (size_t)dim + i;
            row[i] = with_delta ? reference_round(act, x[at] + delta[at]) : x[at];
            assert_near(sum[at], row[i], 0, what, at);
        }
        reference_rmsnorm(expected, row, gain, dim, 1e-6);
        for (size_t i = 0; i < (size_t)dim; i++)
            assert_near(got[r * (size_t)dim + i], expected[i],
                        (rounding[act] + 1e-6) * fabs(expected[i]) + SMALLEST_STEP, what, i);
    }
    device->ops->free(device, residual);
    device->ops->free(device, device_delta);
    device->ops->free(device, out);
    device->ops->free(device, device_gain);
    free(x);
    free(delta);
    free(gain);
    free(sum);
    free(got);
    free(row);
    free(expected);
}

static void add_rmsnorm_adds_rounds_and_scales(void **state)
{
    (void)state;
    static const int dims[] = {1, 64, 128, 172, 1024, 1030, 4096, 12288}, rows[] = {1, 3, 17};
    for (enum dtype act = 0; act < DTYPE_N; act++) {
        struct device *device = open_gpu(act);
        for (size_t i = 0; i < ARRAY_LEN(dims); i++) {
            for (size_t r = 0; r < ARRAY_LEN(rows); r++)
                check_norm(device, rows[r], dims[i], r != 1);
        }
        device->ops->close(device);
    }
}

/* ---- rope_cache ---- */

struct rope_case {
    struct attention_shape shape;
    bool norm;
    int n_tokens, n_blocks;
};

enum { ROPE_BLOCK_SIZE = 4, ROPE_POSITIONS = 32, ROPE_MOST_TOKENS = 2100 };
#define ROPE_THETA 10000.0

static float *rope_table(int head_dim)
{
    int half = head_dim / 2;
    float *table = xcalloc(ROPE_POSITIONS * (size_t)head_dim, sizeof(*table));
    for (int p = 0; p < ROPE_POSITIONS; p++) {
        for (int j = 0; j < half; j++) {
            double angle = p * pow(ROPE_THETA, -2.0 * j / head_dim);
            table[p * head_dim + j] = (float)cos(angle);
            table[p * head_dim + half + j] = (float)sin(angle);
        }
    }
    return table;
}

/* Token t is at position (3 t + 1) % 32; each but the last is in a slot of its own. */
static int slot_of(const struct rope_case *c, int t)
{
    return t == c->n_tokens - 1 && t > 0 ? -1 : 5 * t % (c->n_blocks * ROPE_BLOCK_SIZE);
}

static int position_of(int t)
{
    return (3 * t + 1) % ROPE_POSITIONS;
}

static void check_head(const struct rope_case *c, const float *x, const float *gain, int token,
                       const float *got, double tolerance, const char *what)
{
    size_t d = (size_t)c->shape.head_dim;
    double *head = xcalloc(d, sizeof(double));
    for (size_t i = 0; i < d; i++)
        head[i] = x[i];
    if (c->norm && gain)
        reference_rmsnorm(head, head, gain, c->shape.head_dim, 1e-6);
    if (gain)
        reference_rope(head, c->shape.head_dim, position_of(token), ROPE_THETA);
    for (size_t i = 0; i < d; i++)
        assert_near(got[i], head[i], tolerance * fabs(head[i]) + 2e-6, what, i);
    free(head);
}

static size_t cache_at(const struct rope_case *c, int slot, int head)
{
    size_t block = (size_t)(slot / ROPE_BLOCK_SIZE), offset = (size_t)(slot % ROPE_BLOCK_SIZE);
    size_t row = (block * (size_t)c->shape.n_kv_heads + (size_t)head) * ROPE_BLOCK_SIZE + offset;
    return row * (size_t)c->shape.head_dim;
}

static void check_rope(struct device *device, const struct rope_case *c)
{
    const struct attention_shape *s = &c->shape;
    enum dtype act = device->act_dtype;
    size_t d = (size_t)s->head_dim, heads = (size_t)(s->n_heads + 2 * s->n_kv_heads);
    size_t n = (size_t)c->n_tokens * heads * d;
    size_t n_cache = (size_t)c->n_blocks * ROPE_BLOCK_SIZE * (size_t)s->n_kv_heads * d;
    float *x = random_of(act, n, 2, 11), *table = rope_table(s->head_dim);
    float *gain = random_floats(2 * d, 1, 12);
    int position[ROPE_MOST_TOKENS], slot[ROPE_MOST_TOKENS];
    for (int t = 0; t < c->n_tokens; t++) {
        position[t] = position_of(t);
        slot[t] = slot_of(c, t);
    }
    float *device_gain = to_device(device, gain, 2 * d * sizeof(float));
    float *zeros = xcalloc(n_cache, sizeof(float));
    struct batch batch = {.n_tokens = c->n_tokens,
                          .position = to_device(device, position, sizeof(position)),
                          .slot = to_device(device, slot, sizeof(slot))};
    struct rope_cache_args args = {
        .qkv = to_device_as(device, act, x, n),
        .q_gain = c->norm ? device_gain : NULL,
        .k_gain = c->norm ? device_gain + d : NULL,
        .rope = to_device(device, table, ROPE_POSITIONS * d * sizeof(float)),
        .norm_eps = 1e-6f,
        .kv = {to_device_as(device, s->kv_dtype, zeros, n_cache),
               to_device_as(device, s->kv_dtype, zeros, n_cache)},
        .shape = *s,
        .batch = &batch,
    };
    device->ops->rope_cache(device, &args);
    float *qkv = to_host_as(device, act, args.qkv, n);
    float *k = to_host_as(device, s->kv_dtype, args.kv.k, n_cache);
    float *v = to_host_as(device, s->kv_dtype, args.kv.v, n_cache);
    double q_error = rounding[act] + 3e-6, kv_error = rounding[s->kv_dtype] + 3e-6;
    for (int t = 0; t < c->n_tokens; t++) {
        const float *in = x + (size_t)t * heads * d, *out = qkv + (size_t)t * heads * d;
        for (int h = 0; h < s->n_heads; h++)
            check_head(c, in + (size_t)h * d, gain, t, out + (size_t)h * d, q_error, "rope q");
        for (int h = 0; h < s->n_kv_heads && slot[t] >= 0; h++) {
            const float *in_k = in + (size_t)(s->n_heads + h) * d;
            size_t at = cache_at(c, slot[t], h);
            check_head(c, in_k, gain + d, t, k + at, kv_error, "rope k");
            check_head(c, in_k + (size_t)s->n_kv_heads * d, NULL, t, v + at, kv_error, "rope v");
        }
    }
    size_t stored = 0, expected = (size_t)(c->n_tokens > 1 ? c->n_tokens - 1 : 1);
    for (size_t i = 0; i < n_cache; i += d)
        stored += v[i] != 0 || v[i + 1] != 0;
    assert_int_equal(stored, expected * (size_t)s->n_kv_heads);
    const void *memory[] = {batch.position, batch.slot, args.qkv, device_gain,
                            args.rope,      args.kv.k,  args.kv.v};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        device->ops->free(device, (void *)(uintptr_t)memory[i]);
    free(x);
    free(table);
    free(gain);
    free(zeros);
    free(qkv);
    free(k);
    free(v);
}

static void rope_cache_normalises_rotates_and_stores(void **state)
{
    (void)state;
    static const int head_dims[] = {8, 64, 80, 96, 128, 256, 6}, tokens[] = {1, 3, 17};
    for (enum dtype act = 0; act < DTYPE_N; act++) {
        struct device *device = open_gpu(act);
        for (size_t i = 0; i < ARRAY_LEN(head_dims) * ARRAY_LEN(tokens); i++) {
            struct rope_case c = {
                .shape = {5, 1 + (int)i % 2 * 2, head_dims[i / 3], ROPE_BLOCK_SIZE,
                          (enum dtype)(i % 3)},
                .norm = i % 2 == 0,
                .n_tokens = tokens[i % 3],
                .n_blocks = 9,
            };
            c.shape.n_heads = c.shape.n_kv_heads * 2;
            check_rope(device, &c);
        }
        device->ops->close(device);
    }
}

/* So many that heads are taken several at a time, where they can be. */
static void rope_cache_does_so_for_many_tokens(void **state)
{
    (void)state;
    struct device *device = open_gpu(DTYPE_BF16);
    for (int n_kv_heads = 7; n_kv_heads <= 8; n_kv_heads++) {
        const struct rope_case c = {
            .shape = {2 * n_kv_heads, n_kv_heads, 128, ROPE_BLOCK_SIZE, DTYPE_BF16},
            .norm = true,
            .n_tokens = is_small() ? 1100 : ROPE_MOST_TOKENS,
            .n_blocks = 601,
        };
        check_rope(device, &c);
    }
    device->ops->close(device);
}

/* ---- sampling ---- */

static const struct sample_row sampling_cases[] = {
    {.temperature = 0, .top_p = 1},
    {.temperature = 1, .top_p = 1},
    {.temperature = 0.6f, .top_p = 1},
    {.temperature = 1.5f, .top_p = 1, .top_k = 1},
    {.temperature = 1, .top_p = 1, .top_k = 20},
    {.temperature = 1, .top_p = 0.9f},
    {.temperature = 0.8f, .top_p = 0.95f, .top_k = 50},
    {.temperature = 1, .top_p = 1, .min_p = 0.05f},
    {.temperature = 0.7f, .top_p = 0.8f, .top_k = 100, .min_p = 0.1f},
    {.temperature = 1, .top_p = 0},
    {.temperature = 0.01f, .top_p = 1},
};

/* Samples n rows; each has its own seed and index, its lane is in reverse order. */
static int *sample_rows(struct device *device, const float *logits, int n, int vocab,
                        const struct sample_row *setting)
{
    struct sample_row *rows = xcalloc((size_t)n, sizeof(*rows));
    for (int i = 0; i < n; i++) {
        rows[i] = *setting;
        rows[i].seed = 1000003u * (uint64_t)i;
        rows[i].index = 77 + i % 5;
        rows[i].lane = n - 1 - i;
    }
    reserve(device, 16, n, vocab);
    float *device_logits = to_device(device, logits, (size_t)n * (size_t)vocab * sizeof(float));
    struct sample_args args = {
        .sampled = device->ops->alloc(device, (size_t)n * sizeof(int)),
        .logits = device_logits,
        .row = to_device(device, rows, (size_t)n * sizeof(*rows)),
        .n_rows = n,
        .vocab = vocab,
    };
    device->ops->sample(device, &args);
    int *sampled = to_host(device, args.sampled, (size_t)n * sizeof(int));
    device->ops->free(device, device_logits);
    device->ops->free(device, args.sampled);
    device->ops->free(device, (void *)(uintptr_t)args.row);
    free(rows);
    return sampled;
}

/* Logits with equal ones among them, a few that cannot be drawn, and a peak. */
static float *make_logits(int n, int vocab, float amplitude, bool same_rows)
{
    size_t row = (size_t)vocab, total = (size_t)n * row;
    float *logits = random_floats(same_rows ? row : total, amplitude, 13);
    for (size_t i = 0; i < (same_rows ? row : total); i++)
        logits[i] = roundf(logits[i] * 64) / 64;
    if (same_rows) {
        logits = xrealloc(logits, total * sizeof(float));
        for (size_t r = 1; r < (size_t)n; r++)
            memcpy(logits + r * row, logits, row * sizeof(float));
    }
    for (size_t r = 0; r < (size_t)n; r++) {
        logits[r * row + 3] = -INFINITY;
        logits[r * row + 5] = NAN;
        logits[r * row + row / 2] = amplitude * 1.25f;
    }
    return logits;
}

static void draws_have_the_exact_distribution(void **state)
{
    (void)state;
    enum { VOCAB = 515 };
    const int n = is_small() ? 200 : 20000;
    struct device *device = open_gpu(DTYPE_BF16);
    float *logits = make_logits(n, VOCAB, 3, true);
    double *p = xcalloc(VOCAB, sizeof(double));
    for (size_t c = 1; c < ARRAY_LEN(sampling_cases); c++) {
        int *sampled = sample_rows(device, logits, n, VOCAB, &sampling_cases[c]),
            count[VOCAB] = {0};
        double chi = 0, degrees = 0;
        reference_sampling(p, logits, VOCAB, &sampling_cases[c]);
        for (int i = 0; i < n; i++)
            count[sampled[i]]++;
        for (int i = 0; i < VOCAB; i++) {
            double expected = p[i] * n, sigma = sqrt(expected * (1 - p[i]));
            if (p[i] == 0)
                assert_int_equal(count[i], 0);
            assert_near(count[i], expected, 5 * sigma + 5, "draws", (size_t)i);
            chi += expected > 5 ? (count[i] - expected) * (count[i] - expected) / expected : 0;
            degrees += expected > 5;
        }
        assert_true(chi < degrees + 5 * sqrt(2 * degrees) + 1);
        free(sampled);
    }
    free(p);
    free(logits);
    device->ops->close(device);
}

static void draws_are_those_of_the_cpu(void **state)
{
    (void)state;
    static const int vocabs[] = {7, 512, 2048, 4097, 151936};
    size_t n_vocabs = ARRAY_LEN(vocabs) - is_small(); /* without the largest */
    struct device *gpu = open_gpu(DTYPE_BF16);
    struct device *cpu = backend_cpu.open(&(struct device_options){0});
    for (size_t v = 0; v < n_vocabs; v++) {
        int n = vocabs[v] > 100000 ? 24 : is_small() ? 64 : 1000, different = 0, drawn = 0;
        float *logits = make_logits(n, vocabs[v], 4, false);
        for (size_t c = 0; c < ARRAY_LEN(sampling_cases); c++) {
            int *a = sample_rows(gpu, logits, n, vocabs[v], &sampling_cases[c]);
            int *b = sample_rows(cpu, logits, n, vocabs[v], &sampling_cases[c]);
            for (int i = 0; i < n; i++)
                different += a[i] != b[i];
            drawn += n;
            int *one = sample_rows(gpu, logits, 1, vocabs[v], &sampling_cases[c]);
            assert_int_equal(one[0], a[n - 1]);
            free(one);
            free(a);
            free(b);
        }
        print_message("vocabulary %d: %d of %d draws differ from the CPU's\n", vocabs[v], different,
                      drawn);
        assert_true(different <= drawn / 200);
        free(logits);
    }
    cpu->ops->close(cpu);
    gpu->ops->close(gpu);
}

static void rows_that_hold_nothing_give_a_token_and_padding_none(void **state)
{
    (void)state;
    enum { VOCAB = 33 };
    struct device *device = open_gpu(DTYPE_BF16);
    reserve(device, 16, 4, VOCAB);
    float logits[4][VOCAB];
    struct sample_row rows[4];
    int sampled[4] = {-7, -7, -7, -7};
    for (int r = 0; r < 4; r++) {
        rows[r] = (struct sample_row){.temperature = 1, .top_p = r == 2 ? 0.5f : 1, .lane = r};
        for (int i = 0; i < VOCAB; i++)
            logits[r][i] = r == 0 ? NAN : r == 1 ? -INFINITY : i == 9 || i == 20 ? INFINITY : 0;
    }
    rows[3].lane = -1;
    struct sample_args args = {.sampled = to_device(device, sampled, sizeof(sampled)),
                               .logits = to_device(device, logits, sizeof(logits)),
                               .row = to_device(device, rows, sizeof(rows)),
                               .n_rows = 4,
                               .vocab = VOCAB};
    device->ops->sample(device, &args);
    device->ops->download(device, sampled, args.sampled, sizeof(sampled));
    assert_int_equal(sampled[0], 0);
    assert_int_equal(sampled[1], 0);
    assert_true(sampled[2] == 9 || sampled[2] == 20);
    assert_int_equal(sampled[3], -7);
    device->ops->free(device, args.sampled);
    device->ops->free(device, (void *)(uintptr_t)args.logits);
    device->ops->free(device, (void *)(uintptr_t)args.row);
    device->ops->close(device);
}
int main(int argc, char **argv)
{
    if (has_option(argc, argv, "--small"))
        setenv("QUIRE_OPS_TEST_SMALL", "1", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sum_words_adds_every_word_once),
        cmocka_unit_test(drawn_rows_are_a_function_of_their_stream),
        cmocka_unit_test(embed_and_gather_pick_rows),
        cmocka_unit_test(add_rmsnorm_adds_rounds_and_scales),
        cmocka_unit_test(rope_cache_normalises_rotates_and_stores),
        cmocka_unit_test(rope_cache_does_so_for_many_tokens),
        cmocka_unit_test(draws_have_the_exact_distribution),
        cmocka_unit_test(draws_are_those_of_the_cpu),
        cmocka_unit_test(rows_that_hold_nothing_give_a_token_and_padding_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
