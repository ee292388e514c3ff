/* test_ops.c - the operations of the CPU backend that are not attention or sampling, on every
 * instruction set of this machine, against naive double precision; and that a row does not notice
 * the rows beside it.
 */
#include "tests/ops_reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define F32_ERROR 2e-6 /* of a sum, relative to the sum of magnitudes */

/* Of a gated product, relative, and of one whose exponential overflows. */
static const double GATED_ERROR[2] = {4e-7, 1e-30};

typedef void (*device_check)(struct device *device);

/* Runs the check on a device of each instruction set. */
static void on_every_isa(device_check check)
{
    for (int i = 0; i < N_CPU_VARIANTS; i++) {
        struct device *device = open_cpu(CPU_ISAS[i], 2);
        if (!device)
            continue;
        check(device);
        backend_cpu.close(device);
    }
}

static void reserve(struct device *device, int max_tokens, int max_width)
{
    struct step_limits limits = {
        .max_tokens = max_tokens,
        .max_seqs = 1,
        .max_rows = max_tokens,
        .max_kv_len = 1,
        .max_width = max_width,
        .vocab = 1,
        .shape = {1, 1, 8, 1, DTYPE_F32},
    };
    assert_int_equal(device->ops->reserve(device, &limits), 0);
}

/* ---- linear ---- */

/* A product with the numbers it is made of; w and x are exact in the types they are stored in. */
struct product {
    int n_rows, n_out, n_in;
    enum dtype dtype;
    bool gated;
    float *x, *w, *bias;
    void *device_x;
    float *device_bias;
    struct weight weight;
};

/* Loads p->w in two parts, of which the first may be empty. */
static void load_product(struct product *p, struct device *device, enum dtype source)
{
    p->weight = (struct weight){.dtype = p->dtype, .gated = p->gated, .n_in = p->n_in};
    char *rows = reference_encode(source, p->w, (size_t)p->n_out * (size_t)p->n_in);
    int first = p->n_out / 3;
    size_t offset = (size_t)first * (size_t)p->n_in * dtype_bytes(source);
    struct weight_part parts[] = {
        {.rows = rows, .dtype = source, .n_rows = first},
        {.rows = rows + offset, .dtype = source, .n_rows = p->n_out - first}};
    assert_int_equal(device->ops->weight_load(device, &p->weight, parts, 2), 0);
    assert_int_equal(p->weight.n_out, p->n_out);
    free(rows);
}

static void product_init(struct product *p, struct device *device, enum dtype source)
{
    size_t n_w = (size_t)p->n_out * (size_t)p->n_in, n_x = (size_t)p->n_rows * (size_t)p->n_in;
    p->w = random_floats(n_w, 1, 1);
    p->x = random_floats(n_x, 1, 2);
    p->bias = random_floats((size_t)p->n_out, 1, 3);
    reference_round_all(source, p->w, n_w);
    reference_round_all(p->dtype, p->w, n_w);
    reference_round_all(DTYPE_BF16, p->x, n_x); /* what bf16 products round x to */
    p->device_x = to_device(device, p->x, n_x * sizeof(float));
    p->device_bias = to_device(device, p->bias, (size_t)p->n_out * sizeof(float));
    load_product(p, device, source);
}

static void product_free(struct product *p, struct device *device)
{
    device->ops->weight_free(device, &p->weight);
    device->ops->free(device, p->device_x);
    device->ops->free(device, p->device_bias);
    free(p->x);
    free(p->w);
    free(p->bias);
}

static size_t product_columns(const struct product *p)
{
    return (size_t)(p->gated ? p->n_out / 2 : p->n_out);
}

/* Rows [first, first + n) of the product; the caller frees. */
static float *product_rows(struct product *p, struct device *device, int first, int n, bool bias)
{
    size_t bytes = (size_t)n * product_columns(p) * sizeof(float);
    void *out = device->ops->alloc(device, bytes);
    assert_non_null(out);
    struct linear_args args = {
        .out = out,
        .x = (const float *)p->device_x + (size_t)first * (size_t)p->n_in,
        .weight = &p->weight,
        .bias = bias ? p->device_bias : NULL,
        .n_rows = n,
        .out_dtype = DTYPE_F32,
    };
    device->ops->linear(device, &args);
    float *rows = to_host(device, out, bytes);
    device->ops->free(device, out);
    return rows;
}

static void check_product(struct device *device, struct product *p, bool bias)
{
    char what[128];
    size_t n = (size_t)p->n_rows * (size_t)p->n_out;
    double *expected = xcalloc(n, sizeof(double)), *magnitude = xcalloc(n, sizeof(double));
    snprintf(what, sizeof(what), "%s linear %s %dx%dx%d", device->info.isa, dtype_name(p->dtype),
             p->n_rows, p->n_out, p->n_in);
    float *got = product_rows(p, device, 0, p->n_rows, bias);
    reference_linear(expected, magnitude, p->x, p->w, bias ? p->bias : NULL,
                     (const int[]){p->n_rows, p->n_out, p->n_in});
    for (size_t i = 0; i < n; i++)
        assert_near(got[i], expected[i], F32_ERROR * magnitude[i], what, i);
    free(got);
    free(expected);
    free(magnitude);
}

static void check_linear_shapes(struct device *device)
{
    static const int shapes[][3] = {
        {1, 1, 1},      {2, 3, 5},       {7, 31, 64},  {13, 33, 172}, {12, 64, 63}, {25, 100, 17},
        {5, 2048, 172}, {37, 257, 1030}, {16, 65, 96}, {17, 95, 33},  {33, 32, 66}, {70, 97, 129},
    };
    reserve(device, 70, 1030);
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        for (enum dtype dtype = 0; dtype < DTYPE_N; dtype++) {
            for (enum dtype source = 0; source < DTYPE_N; source++) {
                struct product p = {shapes[i][0], shapes[i][1], shapes[i][2], .dtype = dtype};
                product_init(&p, device, source);
                check_product(device, &p, source == DTYPE_F32);
                product_free(&p, device);
            }
        }
    }
}

static void linear_is_the_product_for_every_shape_and_type(void **state)
{
    (void)state;
    on_every_isa(check_linear_shapes);
}

/* Rows of the product in batches of 1, 2, 3, ..., with one thread and with those of device. */
static void check_batches(struct product *p, struct device *device, struct device *alone)
{
    product_init(p, device, DTYPE_F32);
    size_t row = product_columns(p), row_bytes = row * sizeof(float);
    float *all = product_rows(p, device, 0, p->n_rows, true);
    for (int n = 1, first = 0; first + n <= p->n_rows; first += n, n++) {
        float *some = product_rows(p, n % 2 ? alone : device, first, n, true);
        assert_same_bits(some, all + (size_t)first * row, (size_t)n * row_bytes, device->info.isa);
        free(some);
    }
    product_free(p, device);
    free(all);
}

/* The products are long enough that several blocks of k and of rows are cut. */
static void check_linear_rows(struct device *device)
{
    enum { ROWS = 531 };
    struct device *alone = open_cpu(device->info.isa, 1);
    reserve(device, ROWS, 3072);
    reserve(alone, ROWS, 3072);
    for (enum dtype dtype = 0; dtype < DTYPE_N; dtype++) {
        struct product plain = {ROWS, 97, 3072, .dtype = dtype};
        struct product gated = {ROWS, 146, 300, .dtype = dtype, .gated = true};
        check_batches(&plain, device, alone);
        check_batches(&gated, device, alone);
    }
    backend_cpu.close(alone);
}

static void a_row_of_a_product_has_the_same_bits_in_any_batch(void **state)
{
    (void)state;
    on_every_isa(check_linear_rows);
}

/* ---- gated products ---- */

/* The first row's gates are so large that the exponentials overflow. */
static void check_gated_product(struct device *device, struct product *p, bool bias)
{
    product_init(p, device, DTYPE_F32);
    for (int k = 0; k < p->n_in; k++)
        p->x[k] *= 1024;
    device->ops->upload(device, p->device_x, p->x, (size_t)p->n_in * sizeof(float));
    float *sums = product_rows(p, device, 0, p->n_rows, bias);
    device->ops->weight_free(device, &p->weight);
    p->gated = true;
    load_product(p, device, DTYPE_F32);
    float *got = product_rows(p, device, 0, p->n_rows, bias);
    assert_gated(got, sums, (size_t)p->n_rows, product_columns(p), GATED_ERROR, device->info.isa);
    product_free(p, device);
    free(sums);
    free(got);
}

static void check_gated_shapes(struct device *device)
{
    static const int shapes[][3] = {
        {1, 2, 1},   {3, 14, 5},   {4, 62, 172}, {2, 66, 64},  {5, 128, 33},
        {9, 34, 96}, {13, 190, 3}, {17, 66, 40}, {33, 96, 17}, {70, 194, 129},
    };
    reserve(device, 70, 172);
    for (size_t i = 0; i < ARRAY_LEN(shapes) * DTYPE_N; i++) {
        const int *shape = shapes[i / DTYPE_N];
        struct product p = {shape[0], shape[1], shape[2], .dtype = (enum dtype)(i % DTYPE_N)};
        check_gated_product(device, &p, i % 2 != 0);
    }
}

static void a_gated_product_is_that_of_its_halves(void **state)
{
    (void)state;
    on_every_isa(check_gated_shapes);
}

/* A NaN of a gate or of what is gated is seen in its column, one of x in its row. */
static void check_gated_nan(struct device *device)
{
    enum { ROWS = 3, HALF = 19, BAD_GATE = 3, BAD_UP = 18 };
    struct product p = {ROWS, 2 * HALF, 8, .dtype = DTYPE_F32, .gated = true};
    reserve(device, ROWS, 8);
    product_init(&p, device, DTYPE_F32);
    device->ops->weight_free(device, &p.weight);
    p.w[BAD_GATE * p.n_in] = p.w[(HALF + BAD_UP) * p.n_in] = NAN;
    load_product(&p, device, DTYPE_F32);
    p.x[p.n_in] = NAN;
    device->ops->upload(device, p.device_x, p.x, (size_t)(ROWS * p.n_in) * sizeof(float));
    float *got = product_rows(&p, device, 0, ROWS, false);
    for (int i = 0; i < ROWS * HALF; i++) {
        int row = i / HALF, col = i % HALF;
        assert_int_equal(isnan(got[i]) != 0, row == 1 || col == BAD_GATE || col == BAD_UP);
    }
    product_free(&p, device);
    free(got);
}

static void a_nan_shows_in_its_column_or_row_of_a_gated_product(void **state)
{
    (void)state;
    on_every_isa(check_gated_nan);
}

/* ---- embed and gather ---- */

/* The row of a table of one row: [64] numbers of this dtype, loaded as it. The caller frees. */
static uint32_t *embed_row(struct device *device, enum dtype dtype, const void *row)
{
    struct weight w = {.dtype = dtype, .n_in = 64};
    int *token = to_device(device, &(int){0}, sizeof(int));
    void *x = device->ops->alloc(device, 64 * sizeof(float));
    const struct weight_part part = {.rows = row, .dtype = dtype, .n_rows = 1};
    assert_int_equal(device->ops->weight_load(device, &w, &part, 1), 0);
    device->ops->embed(device, x, &w, token, NULL, 1);
    uint32_t *bits = to_host(device, x, 64 * sizeof(float));
    device->ops->weight_free(device, &w);
    device->ops->free(device, token);
    device->ops->free(device, x);
    return bits;
}

/* Signalling NaN with a payload, which arithmetic would change. */
static void check_payload(struct device *device)
{
    uint32_t f32[64] = {[5] = 0x7F812345u};
    uint16_t bf16[64] = {[6] = 0x7F81u}, f16[64] = {[7] = 0xFC01u};
    uint32_t *row = embed_row(device, DTYPE_F32, f32);
    assert_memory_equal(row, f32, sizeof(f32));
    free(row);
    row = embed_row(device, DTYPE_BF16, bf16);
    assert_int_equal(row[6], 0x7F810000u);
    free(row);
    row = embed_row(device, DTYPE_F16, f16);
    assert_int_equal(row[7], 0xFF802000u);
    free(row);
}

static void a_number_that_is_not_converted_keeps_every_bit(void **state)
{
    (void)state;
    on_every_isa(check_payload);
}

static void check_embed(struct device *device)
{
    static const int widths[] = {1, 8, 63, 64, 65, 172};
    static const int token[] = {0, 98, -2, 33, -1}, sampled[] = {41, 7};
    static const int expected[] = {0, 98, 7, 33, 41};
    int *device_token = to_device(device, token, sizeof(token));
    int *device_sampled = to_device(device, sampled, sizeof(sampled));
    for (size_t i = 0; i < ARRAY_LEN(widths); i++) {
        for (int types = 0; types < DTYPE_N * DTYPE_N; types++) {
            struct product p = {1, 99, widths[i], .dtype = (enum dtype)(types / DTYPE_N)};
            product_init(&p, device, (enum dtype)(types % DTYPE_N));
            size_t width = (size_t)widths[i], bytes = width * sizeof(float);
            void *x = device->ops->alloc(device, ARRAY_LEN(token) * bytes);
            device->ops->embed(device, x, &p.weight, device_token, device_sampled,
                               (int)ARRAY_LEN(token));
            float *rows = to_host(device, x, ARRAY_LEN(token) * bytes);
            for (size_t t = 0; t < ARRAY_LEN(token); t++)
                assert_same_bits(rows + t * width, p.w + (size_t)expected[t] * width, bytes,
                                 device->info.isa);
            free(rows);
            device->ops->free(device, x);
            product_free(&p, device);
        }
    }
    device->ops->free(device, device_token);
    device->ops->free(device, device_sampled);
}

static void drawn_rows_are_a_function_of_their_stream(void **state)
{
    (void)state;
    on_every_isa(check_drawn_rows);
}

static void embed_returns_the_rows_that_were_loaded(void **state)
{
    (void)state;
    on_every_isa(check_embed);
}

static void check_gather(struct device *device)
{
    enum { DIM = 37, ROWS = 6 };
    static const int row[] = {5, 0, 5, 2};
    float *x = random_floats(ROWS * DIM, 1, 1);
    void *device_x = to_device(device, x, ROWS * DIM * sizeof(float));
    int *device_row = to_device(device, row, sizeof(row));
    void *out = device->ops->alloc(device, ARRAY_LEN(row) * DIM * sizeof(float));
    device->ops->gather(device, out, device_x, device_row, (int)ARRAY_LEN(row), DIM);
    float *got = to_host(device, out, ARRAY_LEN(row) * DIM * sizeof(float));
    for (size_t i = 0; i < ARRAY_LEN(row); i++)
        assert_same_bits(got + i * DIM, x + row[i] * DIM, DIM * sizeof(float), "gather");
    device->ops->free(device, device_x);
    device->ops->free(device, device_row);
    device->ops->free(device, out);
    free(got);
    free(x);
}

static void gather_copies_the_named_rows(void **state)
{
    (void)state;
    on_every_isa(check_gather);
}

static void sum_words_adds_every_word_once(void **state)
{
    (void)state;
    struct device *device = open_cpu("plain", 3);
    check_sum_words(device, 1);
    check_sum_words(device, 7);
    check_sum_words(device, 1000);
    backend_cpu.close(device);
}

/* ---- norm ---- */

static const int DIMS[] = {1, 3, 8, 17, 64, 100, 172, 1024, 1031};

/* Runs add_rmsnorm over n_rows rows starting at `first`; returns out and residual, one after the
 * other; the caller frees. */
static float *run_norm(struct device *device, const float *residual, const float *delta,
                       const float *gain, const int rows[2], int dim)
{
    size_t n = (size_t)rows[1] * (size_t)dim, bytes = n * sizeof(float);
    size_t skip_floats = (size_t)rows[0] * (size_t)dim;
    void *r = to_device(device, residual + skip_floats, bytes);
    void *d = delta ? to_device(device, delta + skip_floats, bytes) : NULL;
    void *g = to_device(device, gain, (size_t)dim * sizeof(float));
    void *out = device->ops->alloc(device, bytes);
    device->ops->add_rmsnorm(device, out, r, d, g, rows[1], dim, 1e-6f);
    float *got = xmalloc(2 * bytes);
    device->ops->download(device, got, out, bytes);
    device->ops->download(device, got + n, r, bytes);
    device->ops->free(device, r);
    device->ops->free(device, d);
    device->ops->free(device, g);
    device->ops->free(device, out);
    return got;
}

static void check_norm_row(struct device *device, const float *residual, const float *delta,
                           const float *gain, const float *got, int dim)
{
    double *sum = xcalloc((size_t)dim, sizeof(double)), *out = xcalloc((size_t)dim, sizeof(double));
    for (int i = 0; i < dim; i++)
        sum[i] = residual[i] + (delta ? delta[i] : 0.0f);
    reference_rmsnorm(out, sum, gain, dim, 1e-6);
    for (int i = 0; i < dim; i++)
        assert_near(got[i], out[i], 2e-6 * (fabs(out[i]) + 1e-3), device->info.isa, (size_t)i);
    free(sum);
    free(out);
}

static void check_norm(struct device *device)
{
    enum { ROWS = 40 };
    for (size_t c = 0; c < 2 * ARRAY_LEN(DIMS); c++) {
        int dim = DIMS[c / 2];
        size_t n = (size_t)ROWS * (size_t)dim;
        float *residual = random_floats(n, 3, 1), *gain = random_floats((size_t)dim, 2, 3);
        float *delta = c % 2 ? random_floats(n, 1, 2) : NULL;
        float *all = run_norm(device, residual, delta, gain, (const int[]){0, ROWS}, dim);
        for (int r = 0; r < ROWS; r++) {
            size_t at = (size_t)r * (size_t)dim, bytes = (size_t)dim * sizeof(float);
            check_norm_row(device, residual + at, delta ? delta + at : NULL, gain, all + at, dim);
            float *one = run_norm(device, residual, delta, gain, (const int[]){r, 1}, dim);
            assert_same_bits(one, all + at, bytes, "a norm alone");
            assert_same_bits(one + dim, all + n + at, bytes, "a residual alone");
            free(one);
        }
        free(residual);
        free(gain);
        free(delta);
        free(all);
    }
}

static void add_rmsnorm_adds_and_normalises(void **state)
{
    (void)state;
    on_every_isa(check_norm);
}

/* out and residual, one after the other, of the product and the norm that adds it, in one operation
 * or in two; the caller frees. */
static float *add_product(struct product *p, struct device *device, bool in_one)
{
    size_t n = (size_t)p->n_rows * (size_t)p->n_out, bytes = n * sizeof(float);
    float *first = random_floats(n, 2, 4);
    void *residual = to_device(device, first, bytes), *out = device->ops->alloc(device, bytes);
    struct linear_args args = {out, p->device_x, &p->weight, NULL, p->n_rows, DTYPE_F32};
    if (in_one) {
        device->ops->linear_add_rmsnorm(device, out, residual, &args, p->device_bias, 1e-6f);
    } else {
        device->ops->linear(device, &args);
        device->ops->add_rmsnorm(device, out, residual, out, p->device_bias, p->n_rows, p->n_out,
                                 1e-6f);
    }
    float *got = xmalloc(2 * bytes);
    device->ops->download(device, got, out, bytes);
    device->ops->download(device, got + n, residual, bytes);
    device->ops->free(device, residual);
    device->ops->free(device, out);
    free(first);
    return got;
}

static void check_added_product(struct device *device)
{
    struct product p = {7, 100, 172, .dtype = DTYPE_BF16};
    reserve(device, p.n_rows, p.n_in);
    product_init(&p, device, DTYPE_F32);
    float *one = add_product(&p, device, true), *two = add_product(&p, device, false);
    assert_same_bits(one, two, 2 * (size_t)p.n_rows * (size_t)p.n_out * sizeof(float),
                     device->info.isa);
    product_free(&p, device);
    free(one);
    free(two);
}

static void a_norm_adds_a_product_as_two_operations_do(void **state)
{
    (void)state;
    on_every_isa(check_added_product);
}

/* ---- rope_cache ---- */

enum { ROPE_TOKENS = 9, ROPE_BLOCKS = 5, ROPE_BLOCK = 3, ROPE_MAX_POSITION = 50 };

struct rope_case {
    int n_heads, n_kv_heads, head_dim;
    bool qk_norm;
    enum dtype kv_dtype;
};

static const int ROPE_SLOT[ROPE_TOKENS] = {7, 0, 14, 3, 9, 2, 11, 5, 6};
static const int ROPE_POSITION[ROPE_TOKENS] = {0, 1, 49, 17, 3, 0, 8, 20, 33};
static const double ROPE_THETA = 10000;

static float *rope_table(int head_dim)
{
    int half = head_dim / 2;
    float *table = xcalloc((size_t)ROPE_MAX_POSITION * (size_t)head_dim, sizeof(float));
    for (int p = 0; p < ROPE_MAX_POSITION; p++) {
        for (int j = 0; j < half; j++) {
            double angle = p * pow(ROPE_THETA, -2.0 * j / head_dim);
            table[p * head_dim + j] = (float)cos(angle);
            table[p * head_dim + half + j] = (float)sin(angle);
        }
    }
    return table;
}

/* A head of Q or K as it should become. */
static void expected_head(double *out, const float *x, const float *gain, int head_dim,
                          int position)
{
    for (int i = 0; i < head_dim; i++)
        out[i] = x[i];
    if (gain)
        reference_rmsnorm(out, out, gain, head_dim, 1e-6);
    reference_rope(out, head_dim, position, ROPE_THETA);
}

struct rope_result {
    float *qkv;  /* as the operation left it   */
    void *k, *v; /* the whole cache of a layer */
};

/* Runs the operation on tokens [first, first + n) with a cache of zeros. */
static struct rope_result run_rope(struct device *device, const struct rope_case *c,
                                   const float *qkv, const float *gain, int first, int n)
{
    size_t width = (size_t)((c->n_heads + 2 * c->n_kv_heads) * c->head_dim);
    size_t cache_bytes =
        (size_t)(ROPE_BLOCKS * ROPE_BLOCK * c->n_kv_heads * c->head_dim) * dtype_bytes(c->kv_dtype);
    float *table = rope_table(c->head_dim);
    char *zeros = xcalloc(1, cache_bytes);
    struct batch batch = {
        .n_tokens = n,
        .position = to_device(device, ROPE_POSITION + first, (size_t)n * sizeof(int)),
        .slot = to_device(device, ROPE_SLOT + first, (size_t)n * sizeof(int)),
    };
    struct rope_cache_args args = {
        .qkv = to_device(device, qkv + (size_t)first * width, (size_t)n * width * sizeof(float)),
        .q_gain = c->qk_norm ? to_device(device, gain, (size_t)c->head_dim * 4) : NULL,
        .k_gain =
            c->qk_norm ? to_device(device, gain + c->head_dim, (size_t)c->head_dim * 4) : NULL,
        .rope = to_device(device, table, (size_t)(ROPE_MAX_POSITION * c->head_dim) * 4),
        .norm_eps = 1e-6f,
        .kv = {to_device(device, zeros, cache_bytes), to_device(device, zeros, cache_bytes)},
        .shape = {c->n_heads, c->n_kv_heads, c->head_dim, ROPE_BLOCK, c->kv_dtype},
        .batch = &batch,
    };
    device->ops->rope_cache(device, &args);
    struct rope_result result = {
        .qkv = to_host(device, args.qkv, (size_t)n * width * sizeof(float)),
        .k = to_host(device, args.kv.k, cache_bytes),
        .v = to_host(device, args.kv.v, cache_bytes),
    };
    const void *const used[] = {batch.position, batch.slot, args.qkv,  args.q_gain,
                                args.k_gain,    args.rope,  args.kv.k, args.kv.v};
    for (size_t i = 0; i < ARRAY_LEN(used); i++) {
        void *memory;
        memcpy(&memory, &used[i], sizeof(memory));
        device->ops->free(device, memory);
    }
    free(table);
    free(zeros);
    return result;
}

static void rope_result_free(struct rope_result *r)
{
    free(r->qkv);
    free(r->k);
    free(r->v);
}

/* Element i of the K or V that token t stored for a KV head. */
static size_t cache_at(const struct rope_case *c, int t, int head, int i)
{
    int block = ROPE_SLOT[t] / ROPE_BLOCK, offset = ROPE_SLOT[t] % ROPE_BLOCK;
    return (size_t)(((block * c->n_kv_heads + head) * ROPE_BLOCK + offset) * c->head_dim + i);
}

static void check_rope_token(const struct rope_case *c, const struct rope_result *r,
                             const float *qkv, const float *gain, int t)
{
    int d = c->head_dim, width = (c->n_heads + 2 * c->n_kv_heads) * d;
    double *head = xcalloc((size_t)d, sizeof(double));
    /* Half a step of the cache's type, relative to the largest value there can be. */
    double step = c->kv_dtype == DTYPE_F32 ? 0 : c->kv_dtype == DTYPE_BF16 ? 0x1p-8 : 0x1p-11;
    for (int h = 0; h < c->n_heads; h++) {
        expected_head(head, qkv + t * width + h * d, c->qk_norm ? gain : NULL, d, ROPE_POSITION[t]);
        for (int i = 0; i < d; i++)
            assert_near(r->qkv[t * width + h * d + i], head[i], 1e-5, "q", (size_t)i);
    }
    for (int h = 0; h < c->n_kv_heads; h++) {
        const float *k = qkv + t * width + (c->n_heads + h) * d, *v = k + c->n_kv_heads * d;
        expected_head(head, k, c->qk_norm ? gain + d : NULL, d, ROPE_POSITION[t]);
        for (int i = 0; i < d; i++) {
            size_t at = cache_at(c, t, h, i);
            assert_near(reference_decode(c->kv_dtype, r->k, at), head[i],
                        1e-5 + step * fabs(head[i]), "k", at);
            assert_true(reference_decode(c->kv_dtype, r->v, at) ==
                        reference_round(c->kv_dtype, v[i]));
        }
    }
    free(head);
}

static void check_rope_case(struct device *device, const struct rope_case *c)
{
    size_t width = (size_t)((c->n_heads + 2 * c->n_kv_heads) * c->head_dim);
    size_t kv_bytes = (size_t)c->head_dim * dtype_bytes(c->kv_dtype);
    float *qkv = random_floats(ROPE_TOKENS * width, 2, 11);
    float *gain = random_floats(2 * (size_t)c->head_dim, 2, 12);
    struct rope_result all = run_rope(device, c, qkv, gain, 0, ROPE_TOKENS);
    for (int t = 0; t < ROPE_TOKENS; t++) {
        check_rope_token(c, &all, qkv, gain, t);
        struct rope_result one = run_rope(device, c, qkv, gain, t, 1);
        assert_same_bits(one.qkv, all.qkv + (size_t)t * width,
                         (size_t)(c->n_heads * c->head_dim) * sizeof(float), "q alone");
        for (int h = 0; h < c->n_kv_heads; h++) {
            size_t at = cache_at(c, t, h, 0) * dtype_bytes(c->kv_dtype);
            assert_same_bits((char *)one.k + at, (char *)all.k + at, kv_bytes, "k alone");
            assert_same_bits((char *)one.v + at, (char *)all.v + at, kv_bytes, "v alone");
        }
        rope_result_free(&one);
    }
    rope_result_free(&all);
    free(qkv);
    free(gain);
}

static void check_rope(struct device *device)
{
    static const struct rope_case cases[] = {
        {1, 1, 8, false, DTYPE_F32},   {4, 2, 24, true, DTYPE_BF16},  {3, 1, 64, false, DTYPE_F16},
        {4, 4, 80, true, DTYPE_F32},   {8, 2, 128, true, DTYPE_BF16}, {2, 1, 256, true, DTYPE_F16},
        {2, 2, 10, false, DTYPE_BF16},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        check_rope_case(device, &cases[i]);
}

static void rope_cache_normalises_rotates_and_stores(void **state)
{
    (void)state;
    on_every_isa(check_rope);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_is_the_product_for_every_shape_and_type),
        cmocka_unit_test(a_row_of_a_product_has_the_same_bits_in_any_batch),
        cmocka_unit_test(a_gated_product_is_that_of_its_halves),
        cmocka_unit_test(a_nan_shows_in_its_column_or_row_of_a_gated_product),
        cmocka_unit_test(a_number_that_is_not_converted_keeps_every_bit),
        cmocka_unit_test(drawn_rows_are_a_function_of_their_stream),
        cmocka_unit_test(embed_returns_the_rows_that_were_loaded),
        cmocka_unit_test(gather_copies_the_named_rows),
        cmocka_unit_test(sum_words_adds_every_word_once),
        cmocka_unit_test(add_rmsnorm_adds_and_normalises),
        cmocka_unit_test(a_norm_adds_a_product_as_two_operations_do),
        cmocka_unit_test(rope_cache_normalises_rotates_and_stores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
