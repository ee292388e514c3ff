/* test_ops_int8.c - int8 weights of the CPU backend on every instruction set: what is stored, their
 * products, and that a row of a product does not notice the rows and threads beside it.
 *
 * `embed` gives back what is stored, so a product is held against the double-precision sum over
 * those numbers, and against the sum over the numbers before they were rounded.
 */
#include "tests/ops_reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define F32_ERROR 2e-6 /* of a sum, relative to the sum of magnitudes */

/* Of a gated product, relative, and of one whose exponential overflows. */
static const double GATED_ERROR[2] = {4e-7, 1e-30};
/* A step of a group's numbers is the largest of them over 127; a scale that is rounded up to a bf16
 * makes it up to 1/128 longer. */
#define STEP_OF_X (1.0 / 127)
#define STEP_OF_W (1.0 / 127 * (1 + 1.0 / 128))

/* n_rows, n_out, n_in: around the panels of all instruction sets and around a group of columns */
static const int SHAPES[][3] = {
    {1, 1, 1},    {2, 3, 5},      {7, 31, 63},   {9, 33, 64},   {13, 66, 65},
    {12, 64, 63}, {25, 100, 129}, {5, 257, 172}, {4, 40, 1030}, {37, 131, 320},
    {16, 65, 96}, {17, 95, 193},  {33, 32, 66},  {70, 97, 129},
};

enum { MAX_ROWS = 70, MAX_WIDTH = 1030 };

struct product {
    int n_rows, n_out, n_in;
    bool gated;
    float *x, *w;
    void *device_x;
    struct weight weight;
};

static struct device *open_reserved(const char *isa, int n_threads, int max_rows, int max_width)
{
    struct device *device = open_cpu(isa, n_threads);
    const struct step_limits limits = {.max_tokens = max_rows,
                                       .max_seqs = 1,
                                       .max_rows = max_rows,
                                       .max_kv_len = 1,
                                       .max_width = max_width,
                                       .vocab = 1,
                                       .shape = {1, 1, 8, 1, DTYPE_F32}};
    if (device)
        assert_int_equal(device->ops->reserve(device, &limits), 0);
    return device;
}

/* Runs the check for every shape on a device of each instruction set. */
static void on_every_isa_and_shape(void (*check)(struct device *device, struct product *p))
{
    for (int i = 0; i < N_CPU_VARIANTS; i++) {
        struct device *device = open_reserved(CPU_ISAS[i], 2, MAX_ROWS, MAX_WIDTH);
        for (size_t s = 0; device && s < ARRAY_LEN(SHAPES); s++) {
            struct product p = {SHAPES[s][0], SHAPES[s][1], SHAPES[s][2], .x = NULL};
            check(device, &p);
        }
        if (device)
            backend_cpu.close(device);
    }
}

/* Loads p->w, whose numbers are those of the type `source`, in two parts. */
static void load_weight(struct product *p, struct device *device, enum dtype source)
{
    char *rows = reference_encode(source, p->w, (size_t)p->n_out * (size_t)p->n_in);
    int first = p->n_out / 3;
    size_t offset = (size_t)first * (size_t)p->n_in * dtype_bytes(source);
    const struct weight_part parts[] = {
        {.rows = rows, .dtype = source, .n_rows = first},
        {.rows = rows + offset, .dtype = source, .n_rows = p->n_out - first}};
    p->weight = (struct weight){
        .dtype = DTYPE_BF16, .quantization = QUANTIZATION_INT8, .gated = p->gated, .n_in = p->n_in};
    assert_int_equal(device->ops->weight_load(device, &p->weight, parts, 2), 0);
    assert_int_equal(p->weight.n_out, p->n_out);
    assert_true(p->weight.bytes >=
                weight_bytes((size_t)p->n_out, (size_t)p->n_in, DTYPE_BF16, QUANTIZATION_INT8));
    free(rows);
}

static void product_init(struct product *p, struct device *device, enum dtype source)
{
    size_t n_w = (size_t)p->n_out * (size_t)p->n_in, n_x = (size_t)p->n_rows * (size_t)p->n_in;
    p->w = random_floats(n_w, 1, 1);
    p->x = random_floats(n_x, 3, 2);
    reference_round_all(source, p->w, n_w);
    load_weight(p, device, source);
    p->device_x = to_device(device, p->x, n_x * sizeof(float));
}

static void product_free(struct product *p, struct device *device)
{
    device->ops->weight_free(device, &p->weight);
    device->ops->free(device, p->device_x);
    free(p->x);
    free(p->w);
}

static size_t product_columns(const struct product *p)
{
    return (size_t)(p->gated ? p->n_out / 2 : p->n_out);
}

/* Rows [first, first + n) of the product; the caller frees. */
static float *product_rows(struct product *p, struct device *device, int first, int n)
{
    size_t bytes = (size_t)n * product_columns(p) * sizeof(float);
    void *out = device->ops->alloc(device, bytes);
    assert_non_null(out);
    const struct linear_args args = {
        .out = out,
        .x = (const float *)p->device_x + (size_t)first * (size_t)p->n_in,
        .weight = &p->weight,
        .n_rows = n,
        .out_dtype = DTYPE_F32,
    };
    device->ops->linear(device, &args);
    float *rows = to_host(device, out, bytes);
    device->ops->free(device, out);
    return rows;
}

/* [n_out, n_in] the numbers that are stored; the caller frees. */
static float *stored_numbers(struct product *p, struct device *device)
{
    size_t bytes = (size_t)p->n_out * (size_t)p->n_in * sizeof(float);
    int *token = xcalloc((size_t)p->n_out, sizeof(*token));
    for (int i = 0; i < p->n_out; i++)
        token[i] = i;
    int *device_token = to_device(device, token, (size_t)p->n_out * sizeof(*token));
    void *rows = device->ops->alloc(device, bytes);
    device->ops->embed(device, rows, &p->weight, device_token, NULL, p->n_out);
    float *stored = to_host(device, rows, bytes);
    device->ops->free(device, rows);
    device->ops->free(device, device_token);
    free(token);
    return stored;
}

/* The largest magnitude among the numbers of a row that share a scale with number k. */
static double largest_of_group(const float *row, int n, int k)
{
    double largest = 0;
    int first = k / INT8_GROUP * INT8_GROUP;
    for (int i = first; i < MIN(first + INT8_GROUP, n); i++)
        largest = fmax(largest, fabs((double)row[i]));
    return largest;
}

/* ---- what is stored ---- */

static void assert_stored(struct product *p, struct device *device)
{
    float *stored = stored_numbers(p, device);
    for (int r = 0; r < p->n_out; r++) {
        const float *row = p->w + (size_t)r * (size_t)p->n_in;
        for (int k = 0; k < p->n_in; k++) {
            size_t at = (size_t)r * (size_t)p->n_in + (size_t)k;
            double step = STEP_OF_W * largest_of_group(row, p->n_in, k);
            assert_near(stored[at], row[k], 0.50001 * step, device->info.isa, at);
        }
    }
    free(stored);
}

static void check_stored(struct device *device, struct product *p)
{
    for (enum dtype source = 0; source < DTYPE_N; source++) {
        product_init(p, device, source);
        assert_stored(p, device);
        product_free(p, device);
    }
}

static void a_weight_is_stored_within_half_a_step_of_its_group(void **state)
{
    (void)state;
    on_every_isa_and_shape(check_stored);
}

/* Groups of zeros, of numbers whose scale is no normal number, and of the largest and the smallest
 * numbers that have one, beside ordinary ones. */
static void check_extremes(struct device *device, struct product *p)
{
    static const float magnitude[] = {0, 1e-44f, 1e-35f, 1, 3e38f};
    product_init(p, device, DTYPE_F32);
    device->ops->weight_free(device, &p->weight);
    for (int r = 0; r < p->n_out; r++) {
        for (int k = 0; k < p->n_in; k++)
            p->w[r * p->n_in + k] *= magnitude[(r + k / INT8_GROUP) % (int)ARRAY_LEN(magnitude)];
    }
    load_weight(p, device, DTYPE_F32);
    float *stored = stored_numbers(p, device);
    for (int i = 0; i < p->n_out * p->n_in; i++) {
        const float *row = p->w + i / p->n_in * p->n_in;
        double step = STEP_OF_W * largest_of_group(row, p->n_in, i % p->n_in);
        assert_near(stored[i], p->w[i], fmax(0.50001 * step, 1.5e-36), device->info.isa, (size_t)i);
    }
    free(stored);
    product_free(p, device);
}

static void groups_of_tiny_and_of_huge_weights_keep_their_size(void **state)
{
    (void)state;
    on_every_isa_and_shape(check_extremes);
}

/* ---- products ---- */

/* Whole numbers with 127 among each group: x that can be held exactly, so that what is stored of W
 * decides the product. Every group has its own power of two. */
static void make_exact(struct product *p, struct device *device)
{
    for (int r = 0; r < p->n_rows; r++) {
        for (int k = 0; k < p->n_in; k++) {
            int whole = (int)(mix64((uint64_t)(r * p->n_in + k)) % 255) - 127;
            if (k % INT8_GROUP == r % MIN(INT8_GROUP, p->n_in - k / INT8_GROUP * INT8_GROUP))
                whole = r % 2 ? 127 : -127;
            p->x[r * p->n_in + k] = ldexpf((float)whole, (r + k / INT8_GROUP) % 7 - 3);
        }
    }
    device->ops->upload(device, p->device_x, p->x,
                        (size_t)p->n_rows * (size_t)p->n_in * sizeof(float));
}

static void check_exact(struct device *device, struct product *p)
{
    size_t n = (size_t)p->n_rows * (size_t)p->n_out;
    char what[128];
    snprintf(what, sizeof(what), "%s int8 %dx%dx%d", device->info.isa, p->n_rows, p->n_out,
             p->n_in);
    product_init(p, device, DTYPE_F32);
    make_exact(p, device);
    float *stored = stored_numbers(p, device), *got = product_rows(p, device, 0, p->n_rows);
    double *expected = xcalloc(n, sizeof(double)), *magnitude = xcalloc(n, sizeof(double));
    reference_linear(expected, magnitude, p->x, stored, NULL,
                     (const int[]){p->n_rows, p->n_out, p->n_in});
    for (size_t i = 0; i < n; i++)
        assert_near(got[i], expected[i], F32_ERROR * magnitude[i], what, i);
    free(stored);
    free(got);
    free(expected);
    free(magnitude);
    product_free(p, device);
}

static void a_product_is_the_sum_over_what_is_stored(void **state)
{
    (void)state;
    on_every_isa_and_shape(check_exact);
}

/* The most that rounding both factors to half a step can change a sum by. */
static double worst_error(const float *x, const float *w, int n)
{
    double error = 0;
    for (int k = 0; k < n; k++) {
        double half_x = 0.5 * STEP_OF_X * largest_of_group(x, n, k);
        double half_w = 0.5 * STEP_OF_W * largest_of_group(w, n, k);
        error += fabs((double)x[k]) * half_w + fabs((double)w[k]) * half_x + half_x * half_w;
    }
    return error;
}

static void check_near(struct device *device, struct product *p)
{
    size_t n_in = (size_t)p->n_in, n = (size_t)p->n_rows * (size_t)p->n_out;
    product_init(p, device, DTYPE_BF16);
    float *got = product_rows(p, device, 0, p->n_rows);
    double *expected = xcalloc(n, sizeof(double)), *magnitude = xcalloc(n, sizeof(double));
    reference_linear(expected, magnitude, p->x, p->w, NULL,
                     (const int[]){p->n_rows, p->n_out, p->n_in});
    for (size_t i = 0; i < n; i++) {
        const float *x = p->x + i / (size_t)p->n_out * n_in,
                    *w = p->w + i % (size_t)p->n_out * n_in;
        assert_near(got[i], expected[i], 1.0001 * worst_error(x, w, p->n_in), device->info.isa, i);
    }
    free(got);
    free(expected);
    free(magnitude);
    product_free(p, device);
}

static void a_product_is_off_by_no_more_than_the_steps_of_both_factors(void **state)
{
    (void)state;
    on_every_isa_and_shape(check_near);
}

/* A bad number of one row or one column is seen there and nowhere else. */
static void check_nan(struct device *device, struct product *p)
{
    static const float bad[] = {NAN, INFINITY};
    for (size_t b = 0; b < ARRAY_LEN(bad); b++) {
        product_init(p, device, DTYPE_F32);
        int row = p->n_rows / 2, col = p->n_out / 2;
        device->ops->weight_free(device, &p->weight);
        p->w[col * p->n_in + p->n_in - 1] = bad[b];
        p->x[row * p->n_in] = bad[b];
        load_weight(p, device, DTYPE_F32);
        device->ops->upload(device, p->device_x, p->x,
                            (size_t)p->n_rows * (size_t)p->n_in * sizeof(float));
        float *got = product_rows(p, device, 0, p->n_rows);
        for (int i = 0; i < p->n_rows * p->n_out; i++)
            assert_int_equal(!isfinite(got[i]), i / p->n_out == row || i % p->n_out == col);
        free(got);
        product_free(p, device);
    }
}

static void a_nan_or_an_infinity_shows_where_it_belongs(void **state)
{
    (void)state;
    on_every_isa_and_shape(check_nan);
}

/* The shape's matrix twice: gates, and what they gate. */
static void check_gated(struct device *device, struct product *p)
{
    p->n_out *= 2;
    product_init(p, device, DTYPE_BF16);
    float *sums = product_rows(p, device, 0, p->n_rows);
    device->ops->weight_free(device, &p->weight);
    p->gated = true;
    load_weight(p, device, DTYPE_BF16);
    float *got = product_rows(p, device, 0, p->n_rows);
    assert_gated(got, sums, (size_t)p->n_rows, product_columns(p), GATED_ERROR, device->info.isa);
    product_free(p, device);
    free(sums);
    free(got);
}

static void a_gated_product_is_that_of_its_halves(void **state)
{
    (void)state;
    on_every_isa_and_shape(check_gated);
}

/* ---- invariance ---- */

static void check_batches(struct product *p, struct device *device, struct device *alone)
{
    product_init(p, device, DTYPE_F32);
    size_t row = product_columns(p), row_bytes = row * sizeof(float);
    float *all = product_rows(p, device, 0, p->n_rows);
    for (int n = 1, first = 0; first + n <= p->n_rows; first += n, n++) {
        float *some = product_rows(p, n % 2 ? alone : device, first, n);
        assert_same_bits(some, all + (size_t)first * row, (size_t)n * row_bytes, device->info.isa);
        free(some);
    }
    product_free(p, device);
    free(all);
}

static void a_row_has_the_same_bits_in_any_batch_and_with_any_threads(void **state)
{
    enum { ROWS = 531 };
    (void)state;
    for (int i = 0; i < N_CPU_VARIANTS; i++) {
        struct device *device = open_reserved(CPU_ISAS[i], 2, ROWS, 3072);
        if (!device)
            continue;
        struct device *alone = open_reserved(CPU_ISAS[i], 1, ROWS, 3072);
        struct product plain = {ROWS, 97, 3072, .x = NULL};
        struct product gated = {ROWS, 146, 300, .gated = true};
        check_batches(&plain, device, alone);
        check_batches(&gated, device, alone);
        backend_cpu.close(alone);
        backend_cpu.close(device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_weight_is_stored_within_half_a_step_of_its_group),
        cmocka_unit_test(groups_of_tiny_and_of_huge_weights_keep_their_size),
        cmocka_unit_test(a_product_is_the_sum_over_what_is_stored),
        cmocka_unit_test(a_product_is_off_by_no_more_than_the_steps_of_both_factors),
        cmocka_unit_test(a_nan_or_an_infinity_shows_where_it_belongs),
        cmocka_unit_test(a_gated_product_is_that_of_its_halves),
        cmocka_unit_test(a_row_has_the_same_bits_in_any_batch_and_with_any_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
