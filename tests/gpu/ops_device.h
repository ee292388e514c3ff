/* ops_device.h - what the tests of the CUDA backend's operations share. */
#ifndef QUIRE_TESTS_OPS_DEVICE_H
#define QUIRE_TESTS_OPS_DEVICE_H

#include "tests/ops_reference.h"

#include <stdlib.h>
#include <string.h>

/* Relative errors: of rounding to the type, and of an f32 sum against the sum of magnitudes. */
static const double rounding[DTYPE_N] = {0x1p-23, 0x1p-8, 0x1p-11};
#define SUM_ERROR     2e-6
#define SMALLEST_STEP 0x1p-24 /* of float16 */

static inline bool has_option(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return true;
    return false;
}

/* Whether main was given --small: the environment is how its tests hear of it. */
static inline bool is_small(void)
{
    return getenv("QUIRE_OPS_TEST_SMALL") != NULL;
}

static inline void reserve(struct device *device, int max_tokens, int max_rows, int vocab)
{
    struct step_limits limits = {
        .max_tokens = max_tokens,
        .max_seqs = 8,
        .max_rows = max_rows,
        .max_kv_len = 64,
        .max_width = 4096,
        .vocab = vocab,
        .shape = {4, 2, 64, 16, DTYPE_BF16},
    };
    assert_int_equal(device->ops->reserve(device, &limits), 0);
}

/* Random numbers that the type holds exactly. */
static inline float *random_of(enum dtype dtype, size_t n, float amplitude, uint64_t seed)
{
    float *x = random_floats(n, amplitude, seed);
    reference_round_all(dtype, x, n);
    return x;
}

/* A matrix [n_out, n_in] of numbers that `source` holds exactly, in two parts. */
static inline struct weight load_weight(struct device *device, const float *w, int n_out, int n_in,
                                        enum dtype source, bool gated)
{
    struct weight weight = {.dtype = device->act_dtype, .gated = gated, .n_in = n_in};
    size_t n = (size_t)n_out * (size_t)n_in;
    char *rows = reference_encode(source, w, n);
    int first = n_out / 3;
    struct weight_part parts[] = {
        {.rows = rows, .dtype = source, .n_rows = first},
        {.rows = rows + (size_t)first * (size_t)n_in * dtype_bytes(source),
         .dtype = source,
         .n_rows = n_out - first}};
    assert_int_equal(device->ops->weight_load(device, &weight, parts, 2), 0);
    assert_int_equal(weight.n_out, n_out);
    free(rows);
    return weight;
}

#endif
