/* test_amx.c - the emulated tile registers with which test_ops.c and test_ops_int8.c run the
 * kernels of AMX: that they do what the manual says and, where a processor has such registers, what
 * the processor does.
 */
#include "tests/amx_emulation.h"
#include "tests/ops_reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BF16_ONE      0x3F80
#define BF16_2_M24    0x3380 /* 2^-24 */
#define BF16_2_M100   0x0D80
#define BF16_2_M127   0x0040 /* subnormal */
#define F32_SUBNORMAL 1e-39f

/* c += a b of single numbers: the first four of a row of a and of a column of b, zeros besides. */
static float dot_of_four(float c, const uint16_t a[4], const uint16_t b[4])
{
    uint16_t row[32] = {0}, columns[16][32] = {{0}};
    float sums[16][16];
    for (int i = 0; i < 4; i++) {
        row[i] = a[i];
        columns[i / 2][2 * 7 + i % 2] = b[i];
    }
    for (int n = 0; n < 16; n++)
        sums[0][n] = n == 7 ? c : 0;
    amx_configure();
    amx_load(0, sums, 0);
    amx_load(1, row, 0);
    amx_load(2, columns, 64);
    amx_dot_bf16(0, 1, 2);
    amx_store(0, sums, 64);
    amx_release();
    for (int i = 0; i < 16 * 16 && isfinite(sums[0][7]); i++)
        assert_true(sums[i / 16][i % 16] == (i % 16 == 7 ? sums[0][7] : 0));
    return sums[0][7];
}

static void even_and_odd_products_are_summed_apart_before_they_are_added(void **state)
{
    (void)state;
    const uint16_t ones[4] = {BF16_ONE, BF16_ONE, BF16_ONE, BF16_ONE};
    const uint16_t tiny_odd[4] = {BF16_ONE, BF16_2_M24, 0, BF16_2_M24};
    const uint16_t tiny_even[4] = {BF16_ONE, 0, BF16_2_M24, BF16_2_M24};
    assert_true(dot_of_four(0, ones, ones) == 4);
    assert_true(dot_of_four(0, tiny_odd, ones) == 1 + 0x1p-23f);
    assert_true(dot_of_four(0, tiny_even, ones) == 1);
    assert_true(dot_of_four(0x1p24f, (const uint16_t[4]){BF16_ONE, BF16_ONE, 0, 0}, ones) ==
                0x1p24f + 2);
}

static void subnormal_numbers_count_as_zero(void **state)
{
    (void)state;
    const uint16_t one[4] = {BF16_ONE}, subnormal[4] = {BF16_2_M127}, small[4] = {BF16_2_M100};
    const uint16_t inverse[4] = {0x7F00}; /* 2^127 */
    assert_true(dot_of_four(0, subnormal, inverse) == 0);
    assert_true(dot_of_four(0, inverse, subnormal) == 0);
    assert_true(dot_of_four(0, small, small) == 0);
    assert_true(dot_of_four(F32_SUBNORMAL, one, (const uint16_t[4]){0}) == 0);
    assert_true(dot_of_four(2, one, one) == 3);
}

static void a_nan_and_an_infinity_spread_to_their_sums(void **state)
{
    (void)state;
    const uint16_t zero[4] = {0}, nan[4] = {0x7FC0}, infinity[4] = {0x7F80}, one[4] = {BF16_ONE};
    assert_true(isnan(dot_of_four(1, nan, zero)));
    assert_true(isnan(dot_of_four(1, zero, nan)));
    assert_true(isnan(dot_of_four(1, zero, infinity)));
    assert_true(isinf(dot_of_four(1, one, infinity)));
}

static void products_of_bytes_are_exact(void **state)
{
    int8_t a[16][64], b[16][64];
    int32_t sums[16][16];
    (void)state;
    for (int i = 0; i < 16 * 64; i++) {
        a[i / 64][i % 64] = (int8_t)mix64((uint64_t)i);
        b[i / 64][i % 64] = (int8_t)mix64((uint64_t)i + 5000);
    }
    amx_configure();
    amx_load(4, a, 64);
    amx_load(5, b, 64);
    amx_dot_int8(3, 4, 5);
    amx_dot_int8(3, 4, 5);
    amx_store(3, sums, 64);
    amx_release();
    for (int m = 0; m < 16; m++) {
        for (int n = 0; n < 16; n++) {
            int expected = 0;
            for (int k = 0; k < 64; k++)
                expected += 2 * a[m][k] * b[k / 4][4 * n + k % 4];
            assert_int_equal(sums[m][n], expected);
        }
    }
}

/* ---- products ---- */

enum { N_OUT = 161, N_IN = 1056 };

/* [n_rows, N_OUT]; the caller frees. */
static float *product_of(const char *isa, int n_rows, enum quantization quantization)
{
    struct device *device = open_cpu(isa, 2);
    if (!device)
        return NULL;
    const struct step_limits limits = {.max_tokens = n_rows,
                                       .max_seqs = 1,
                                       .max_rows = n_rows,
                                       .max_kv_len = 1,
                                       .max_width = N_IN,
                                       .vocab = 1,
                                       .shape = {1, 1, 8, 1, DTYPE_F32}};
    assert_int_equal(device->ops->reserve(device, &limits), 0);
    float *rows = random_floats((size_t)N_OUT * N_IN, 1, 1);
    float *x = random_floats((size_t)n_rows * N_IN, 3, 2);
    struct weight w = {.dtype = DTYPE_BF16, .quantization = quantization, .n_in = N_IN};
    const struct weight_part part = {.rows = rows, .dtype = DTYPE_F32, .n_rows = N_OUT};
    assert_int_equal(device->ops->weight_load(device, &w, &part, 1), 0);
    float *out = xmalloc((size_t)n_rows * N_OUT * sizeof(float));
    device->ops->linear(
        device, &(struct linear_args){
                    .out = out, .x = x, .weight = &w, .n_rows = n_rows, .out_dtype = DTYPE_F32});
    device->ops->weight_free(device, &w);
    backend_cpu.close(device);
    free(rows);
    free(x);
    return out;
}

static void no_thread_keeps_its_tiles_after_a_product(void **state)
{
    (void)state;
    free(product_of(AMX_ON_PLAIN, 50, QUANTIZATION_NONE));
    assert_int_equal(amx_configured_threads(), 0);
    free(product_of(AMX_ON_PLAIN, 1, QUANTIZATION_INT8));
    assert_int_equal(amx_configured_threads(), 0);
}

static void a_processor_with_tiles_gives_the_bits_of_the_emulation(void **state)
{
    static const int n_rows[] = {1, 16, 33, 64};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(n_rows); i++) {
        for (int q = 0; q <= QUANTIZATION_INT8; q++) {
            float *real = product_of("amx", n_rows[i], (enum quantization)q);
            if (!real)
                skip();
            float *emulated = product_of(AMX_ON_AVX512BF16, n_rows[i], (enum quantization)q);
            assert_same_bits(real, emulated, (size_t)(n_rows[i] * N_OUT) * sizeof(float),
                             q == QUANTIZATION_INT8 ? "int8" : "bf16");
            free(real);
            free(emulated);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(even_and_odd_products_are_summed_apart_before_they_are_added),
        cmocka_unit_test(subnormal_numbers_count_as_zero),
        cmocka_unit_test(a_nan_and_an_infinity_spread_to_their_sums),
        cmocka_unit_test(products_of_bytes_are_exact),
        cmocka_unit_test(no_thread_keeps_its_tiles_after_a_product),
        cmocka_unit_test(a_processor_with_tiles_gives_the_bits_of_the_emulation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
