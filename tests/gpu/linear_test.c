/* linear_test.c - products of the CUDA backend against naive double precision, with what becomes of
 * them; that a row does not notice the rows beside it; that a recorded step does what the direct
 * one does.
 *
 *   linear_test [--small]
 *
 * Needs a GPU and quire_cuda.so beside the program or in ../lib/quire; skips itself otherwise.
 * --small, for compute-sanitizer, runs every kernel, but fewer shapes and rows. racecheck fails
 * under the kernels of cuBLASLt.
 */
#include "tests/gpu/ops_device.h"

#include <math.h>
#include <stdio.h>

/* Random numbers for a matrix of a real model: a million of them, repeated with an odd period. */
static float *random_large(enum dtype dtype, size_t n, float amplitude, uint64_t seed)
{
    const size_t period = 999983;
    float *base = random_of(dtype, period, amplitude, seed), *x = xmalloc(n * sizeof(*x));
    for (size_t at = 0; at < n; at += period)
        memcpy(x + at, base, MIN(period, n - at) * sizeof(*x));
    free(base);
    return x;
}

/* ---- linear ---- */

static void check_product(struct device *device, const int shape[3], enum dtype source,
                          enum dtype out_dtype)
{
    enum dtype act = device->act_dtype;
    size_t n_x = (size_t)shape[0] * (size_t)shape[2], n_w = (size_t)shape[1] * (size_t)shape[2];
    size_t n = (size_t)shape[0] * (size_t)shape[1];
    float *x = random_of(act, n_x, 1, 1), *w = random_of(source, n_w, 0.5f, 2);
    float *bias = random_floats((size_t)shape[1], 1, 3);
    struct weight weight = load_weight(device, w, shape[1], shape[2], source, false);
    reference_round_all(act, w, n_w);
    void *device_x = to_device_as(device, act, x, n_x);
    float *device_bias = to_device(device, bias, (size_t)shape[1] * sizeof(float));
    void *out = device->ops->alloc(device, n * 4);
    struct linear_args args = {out, device_x, &weight, device_bias, shape[0], out_dtype};
    device->ops->linear(device, &args);
    float *got = to_host_as(device, out_dtype, out, n);
    double *expected = xcalloc(n, sizeof(double)), *magnitude = xcalloc(n, sizeof(double));
    reference_linear(expected, magnitude, x, w, bias, shape);
    char what[96];
    snprintf(what, sizeof(what), "linear %s of %s to %s %dx%dx%d", dtype_name(act),
             dtype_name(source), dtype_name(out_dtype), shape[0], shape[1], shape[2]);
    /* Rounded before and after the bias is added. */
    for (size_t i = 0; i < n; i++)
        assert_near(got[i], expected[i],
                    SUM_ERROR * magnitude[i] +
                        rounding[out_dtype] *
                            (2 * fabs(expected[i]) + fabs(bias[i % (size_t)shape[1]])),
                    what, i);
    device->ops->free(device, device_x);
    device->ops->free(device, device_bias);
    device->ops->free(device, out);
    device->ops->weight_free(device, &weight);
    free(x);
    free(w);
    free(bias);
    free(got);
    free(expected);
    free(magnitude);
}

static void linear_is_the_product_for_every_shape_and_type(void **state)
{
    (void)state;
    static const int shapes[][3] = {{1, 64, 64},   {3, 128, 172},   {17, 512, 64}, {37, 257, 1024},
                                    {5, 344, 128}, {1, 1024, 3072}, {3, 17, 5},    {150, 96, 640}};
    for (enum dtype act = 0; act < DTYPE_N; act++) {
        struct device *device = open_gpu(act);
        for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
            for (enum dtype source = 0; source < DTYPE_N; source++)
                check_product(device, shapes[i], source, source == act ? DTYPE_F32 : act);
        }
        device->ops->close(device);
    }
}

/* The product as act_dtype; the caller frees. */
static float *product_of(struct device *device, const struct weight *w, const void *x,
                         const float *bias, int n_rows)
{
    size_t n = (size_t)n_rows * (size_t)(w->gated ? w->n_out / 2 : w->n_out);
    void *out = device->ops->alloc(device, n * sizeof(float));
    struct linear_args args = {out, x, w, bias, n_rows, device->act_dtype};
    device->ops->linear(device, &args);
    float *got = to_host_as(device, device->act_dtype, out, n);
    device->ops->free(device, out);
    return got;
}

/* A gated product against that of the same matrix when it is not gated, which is rounded before it
 * is gated here and there. shape: {n_rows, n_out, n_in} */
static void check_gated_product(struct device *device, const int shape[3], bool with_bias)
{
    enum dtype act = device->act_dtype;
    size_t n_x = (size_t)shape[0] * (size_t)shape[2], n_w = (size_t)shape[1] * (size_t)shape[2];
    float *x = random_of(act, n_x, 4, 1), *w = random_of(act, n_w, 0.5f, 2);
    float *bias = random_floats((size_t)shape[1], 1, 3);
    struct weight plain = load_weight(device, w, shape[1], shape[2], act, false);
    struct weight gated = load_weight(device, w, shape[1], shape[2], act, true);
    reserve(device, shape[0], 1, 7);
    void *device_x = to_device_as(device, act, x, n_x);
    float *device_bias = to_device(device, bias, (size_t)shape[1] * sizeof(float));
    float *added = with_bias ? device_bias : NULL;
    float *sums = product_of(device, &plain, device_x, added, shape[0]);
    float *got = product_of(device, &gated, device_x, added, shape[0]);
    assert_gated(got, sums, (size_t)shape[0], (size_t)shape[1] / 2,
                 (const double[]){rounding[act] + 1e-6, SMALLEST_STEP}, dtype_name(act));
    device->ops->free(device, device_x);
    device->ops->free(device, device_bias);
    device->ops->weight_free(device, &plain);
    device->ops->weight_free(device, &gated);
    free(x);
    free(w);
    free(bias);
    free(sums);
    free(got);
}

/* The norm of residual + product, then the sum itself, in one operation or in two; the caller
 * frees. product: of act_dtype, what it gives not yet there */
static char *add_product(struct device *device, struct linear_args product, const float *residual,
                         const float *gain, bool in_one)
{
    int n_rows = product.n_rows, dim = product.weight->n_out;
    size_t n = (size_t)n_rows * (size_t)dim, bytes = n * dtype_bytes(device->act_dtype);
    void *sum = to_device_as(device, device->act_dtype, residual, n);
    void *out = product.out = device->ops->alloc(device, bytes);
    if (in_one) {
        device->ops->linear_add_rmsnorm(device, out, sum, &product, gain, 1e-6f);
    } else {
        device->ops->linear(device, &product);
        device->ops->add_rmsnorm(device, out, sum, out, gain, n_rows, dim, 1e-6f);
    }
    char *got = xmalloc(2 * bytes);
    device->ops->download(device, got, out, bytes);
    device->ops->download(device, got + bytes, sum, bytes);
    device->ops->free(device, sum);
    device->ops->free(device, out);
    return got;
}

/* shape: {n_rows, n_out, n_in} */
static void check_added_product(struct device *device, const int shape[3], bool with_bias)
{
    enum dtype act = device->act_dtype;
    size_t n_x = (size_t)shape[0] * (size_t)shape[2], n_w = (size_t)shape[1] * (size_t)shape[2];
    size_t n_out = (size_t)shape[1], n = (size_t)shape[0] * n_out;
    float *x = random_of(act, n_x, 1, 1), *w = random_of(act, n_w, 0.1f, 2);
    float *residual = random_of(act, n, 2, 3), *factors = random_floats(n_out, 1.5f, 4);
    struct weight weight = load_weight(device, w, shape[1], shape[2], act, false);
    reserve(device, shape[0], 1, 7);
    void *device_x = to_device_as(device, act, x, n_x);
    float *gain = to_device(device, factors, n_out * sizeof(float));
    const struct linear_args product = {NULL,     device_x, &weight, with_bias ? gain : NULL,
                                        shape[0], act};
    char *one = add_product(device, product, residual, gain, true);
    char *two = add_product(device, product, residual, gain, false);
    assert_same_bits(one, two, 2 * n * dtype_bytes(act), "a product that a norm adds");
    device->ops->free(device, device_x);
    device->ops->free(device, gain);
    device->ops->weight_free(device, &weight);
    void *const memory[] = {x, w, residual, factors, one, two};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        free(memory[i]);
}

static void a_norm_adds_a_product_as_two_operations_do(void **state)
{
    (void)state;
    static const int shapes[][3] = {{1, 1024, 2048},   {60, 1024, 2048},  {65, 1024, 3072},
                                    {193, 1024, 2048}, {300, 1024, 2048}, {3, 512, 4096},
                                    {17, 344, 64},     {3, 172, 64}};
    for (enum dtype act = 0; act < DTYPE_N; act++) {
        struct device *device = open_gpu(act);
        for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
            check_added_product(device, shapes[i], false);
            check_added_product(device, shapes[i], true);
        }
        device->ops->close(device);
    }
}

static void a_gated_product_is_that_of_its_halves(void **state)
{
    (void)state;
    static const int shapes[][3] = {{1, 2, 5},      {3, 344, 64},    {17, 6144, 64}, {70, 128, 172},
                                    {300, 96, 640}, {2100, 384, 64}, {4097, 34, 128}};
    for (enum dtype act = 0; act < DTYPE_N; act++) {
        struct device *device = open_gpu(act);
        for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
            check_gated_product(device, shapes[i], i % 2 != 0);
        device->ops->close(device);
    }
}

struct rows_case {
    int n_out, n_in;
    enum dtype out_dtype;
    int max_m;
    bool every_m, gated;
};

/* Products of the first m rows, for each m of the list, are the first m rows of the product of all,
 * as are those of the last row alone. */
static void check_rows(struct device *device, const struct rows_case *c)
{
    static const int some[] = {1, 2, 7, 16, 17, 33, 64, 65, 128, 129, 256, 257, 299};
    const int n_out = c->n_out, n_in = c->n_in, max_m = c->max_m;
    size_t n_w = (size_t)n_out * (size_t)n_in;
    size_t row_bytes = (size_t)(c->gated ? n_out / 2 : n_out) * dtype_bytes(c->out_dtype);
    float *x = random_of(device->act_dtype, (size_t)max_m * (size_t)n_in, 1, 4);
    float *w = random_large(device->act_dtype, n_w, 0.1f, 5);
    struct weight weight = load_weight(device, w, n_out, n_in, device->act_dtype, c->gated);
    reserve(device, max_m, max_m, c->out_dtype == DTYPE_F32 ? n_out : 7);
    char *device_x = to_device_as(device, device->act_dtype, x, (size_t)max_m * (size_t)n_in);
    void *out = device->ops->alloc(device, (size_t)max_m * row_bytes);
    struct linear_args args = {out, device_x, &weight, NULL, max_m, c->out_dtype};
    device->ops->linear(device, &args);
    char *all = to_host(device, out, (size_t)max_m * row_bytes);
    for (int i = 0; i < (c->every_m ? max_m : (int)ARRAY_LEN(some)); i++) {
        args.n_rows = c->every_m ? i + 1 : some[i];
        device->ops->linear(device, &args);
        char *got = to_host(device, out, (size_t)args.n_rows * row_bytes);
        if (memcmp(got, all, (size_t)args.n_rows * row_bytes) != 0)
            fail_msg("%d of %d rows, %s%dx%d %s: bits differ", args.n_rows, max_m,
                     c->gated ? "gated " : "", n_out, n_in, dtype_name(device->act_dtype));
        free(got);
    }
    /* Rows of x that are not aligned are not handed to the backend alone. */
    size_t last_x = (size_t)(max_m - 1) * (size_t)n_in * dtype_bytes(device->act_dtype);
    args.x = device_x + (last_x % 64 == 0 ? last_x : 0);
    args.n_rows = last_x % 64 == 0 ? 1 : max_m;
    device->ops->linear(device, &args);
    char *last = to_host(device, (char *)out + (size_t)(args.n_rows - 1) * row_bytes, row_bytes);
    assert_memory_equal(last, all + (size_t)(max_m - 1) * row_bytes, row_bytes);
    device->ops->free(device, device_x);
    device->ops->free(device, out);
    device->ops->weight_free(device, &weight);
    free(last);
    free(all);
    free(x);
    free(w);
}

static void a_row_of_linear_does_not_depend_on_the_number_of_rows(void **state)
{
    (void)state;
    static const int shapes[][2] = {{4096, 1024}, {1024, 2048}, {6144, 1024},  {1024, 3072},
                                    {6144, 4096}, {4096, 4096}, {24576, 4096}, {4096, 12288}};
    static const int small[][2] = {{1024, 2048}, {1000, 320}, {172, 64}, {64, 172}};
    struct device *device = open_gpu(DTYPE_BF16);
    if (is_small()) { /* cuBLASLt's matrices, and those of the plain kernel */
        check_rows(device, &(struct rows_case){1024, 2048, DTYPE_BF16, 300, false, false});
        check_rows(device, &(struct rows_case){64, 173, DTYPE_BF16, 300, false, false});
        check_rows(device, &(struct rows_case){1024, 1024, DTYPE_BF16, 300, false, true});
        device->ops->close(device);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        check_rows(device,
                   &(struct rows_case){shapes[i][0], shapes[i][1], DTYPE_BF16, 300, i < 4, false});
    check_rows(device, &(struct rows_case){151936, 1024, DTYPE_F32, 300, false, false});
    check_rows(device, &(struct rows_case){1024, 3072, DTYPE_BF16, 2100, false, false});
    check_rows(device, &(struct rows_case){6144, 1024, DTYPE_BF16, 300, true, true});
    check_rows(device, &(struct rows_case){1024, 256, DTYPE_BF16, 4200, false, true});
    device->ops->close(device);
    for (enum dtype act = 0; act < DTYPE_N; act++) {
        device = open_gpu(act);
        for (size_t i = 0; i < ARRAY_LEN(small); i++)
            check_rows(device,
                       &(struct rows_case){small[i][0], small[i][1], act, 300, true, false});
        check_rows(device, &(struct rows_case){512, 64, DTYPE_F32, 300, true, false});
        check_rows(device, &(struct rows_case){344, 64, act, 300, true, true});
        device->ops->close(device);
    }
}
/* ---- recording ---- */

/* One step of a tiny network: norm, gated product, product to logits, sample. */
struct step {
    void *residual, *normed, *gated, *logits;
    float *gain;
    int *sampled;
    struct sample_row *rows;
    struct weight gate_up, head;
};

enum { STEP_ROWS = 5, STEP_DIM = 128, STEP_FFN = 192, STEP_VOCAB = 1000 };

static void run_step(struct device *device, const struct step *s)
{
    const struct backend *ops = device->ops;
    ops->add_rmsnorm(device, s->normed, s->residual, NULL, s->gain, STEP_ROWS, STEP_DIM, 1e-6f);
    ops->linear(device, &(struct linear_args){s->gated, s->normed, &s->gate_up, NULL, STEP_ROWS,
                                              device->act_dtype});
    ops->linear(device,
                &(struct linear_args){s->logits, s->gated, &s->head, NULL, STEP_ROWS, DTYPE_F32});
    ops->sample(device,
                &(struct sample_args){s->sampled, s->logits, s->rows, STEP_ROWS, STEP_VOCAB});
}

static void a_recorded_step_does_what_the_direct_one_does(void **state)
{
    (void)state;
    struct device *device = open_gpu(DTYPE_BF16);
    const struct backend *ops = device->ops;
    float *gate_up = random_of(DTYPE_BF16, 2 * STEP_FFN * STEP_DIM, 0.2f, 14);
    float *head = random_of(DTYPE_BF16, STEP_VOCAB * STEP_FFN, 0.2f, 15);
    float *gain = random_floats(STEP_DIM, 1, 16);
    struct sample_row rows[STEP_ROWS];
    for (int i = 0; i < STEP_ROWS; i++)
        rows[i] =
            (struct sample_row){.seed = 5, .temperature = 1, .top_p = 0.9f, .index = i, .lane = i};
    struct step s = {
        .residual = ops->alloc(device, STEP_ROWS * STEP_DIM * 2),
        .normed = ops->alloc(device, STEP_ROWS * STEP_DIM * 2),
        .gated = ops->alloc(device, STEP_ROWS * STEP_FFN * 2),
        .logits = ops->alloc(device, STEP_ROWS * STEP_VOCAB * 4),
        .gain = to_device(device, gain, sizeof(float) * STEP_DIM),
        .sampled = ops->alloc(device, STEP_ROWS * sizeof(int)),
        .rows = to_device(device, rows, sizeof(rows)),
        .gate_up = load_weight(device, gate_up, 2 * STEP_FFN, STEP_DIM, DTYPE_BF16, true),
        .head = load_weight(device, head, STEP_VOCAB, STEP_FFN, DTYPE_BF16, false),
    };
    reserve(device, 64, 8, STEP_VOCAB);
    assert_true(ops->graph_begin(device)); /* before any of the kernels was ever launched */
    run_step(device, &s);
    struct graph *graph = ops->graph_end(device);
    assert_non_null(graph);
    for (uint64_t round = 0; round < 5; round++) {
        float *x = random_of(DTYPE_BF16, STEP_ROWS * STEP_DIM, 2, 17 + round);
        void *encoded = reference_encode(DTYPE_BF16, x, STEP_ROWS * STEP_DIM);
        ops->upload(device, s.residual, encoded, STEP_ROWS * STEP_DIM * 2);
        ops->graph_run(device, graph);
        char *logits = to_host(device, s.logits, STEP_ROWS * STEP_VOCAB * 4);
        int *sampled = to_host(device, s.sampled, STEP_ROWS * sizeof(int));
        run_step(device, &s);
        char *direct_logits = to_host(device, s.logits, STEP_ROWS * STEP_VOCAB * 4);
        int *direct = to_host(device, s.sampled, STEP_ROWS * sizeof(int));
        assert_same_bits(logits, direct_logits, STEP_ROWS * STEP_VOCAB * 4, "graph");
        assert_memory_equal(sampled, direct, STEP_ROWS * sizeof(int));
        free(x);
        free(encoded);
        free(logits);
        free(sampled);
        free(direct_logits);
        free(direct);
    }
    ops->graph_free(device, graph);
    ops->graph_free(device, NULL);
    void *memory[] = {s.residual, s.normed, s.gated, s.logits, s.gain, s.sampled, s.rows};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        ops->free(device, memory[i]);
    ops->weight_free(device, &s.gate_up);
    ops->weight_free(device, &s.head);
    ops->close(device);
    free(gate_up);
    free(head);
    free(gain);
}
int main(int argc, char **argv)
{
    if (has_option(argc, argv, "--small"))
        setenv("QUIRE_OPS_TEST_SMALL", "1", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_is_the_product_for_every_shape_and_type),
        cmocka_unit_test(a_gated_product_is_that_of_its_halves),
        cmocka_unit_test(a_norm_adds_a_product_as_two_operations_do),
        cmocka_unit_test(a_recorded_step_does_what_the_direct_one_does),
        cmocka_unit_test(a_row_of_linear_does_not_depend_on_the_number_of_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
