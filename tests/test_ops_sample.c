/* test_ops_sample.c - sampling of the CPU backend against a sorting reference
 * in double precision, its distribution, and the random generator's published
 * answers.
 */
#include "kernels/philox.h"
#include "tests/ops_reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NOT_WRITTEN = -7 };

static void reserve(struct device *device, int vocab)
{
    struct step_limits limits = {.max_tokens = 1,
                                 .max_seqs = 1,
                                 .max_rows = 1,
                                 .max_kv_len = 1,
                                 .max_width = 1,
                                 .vocab = vocab,
                                 .shape = {1, 1, 8, 1, DTYPE_F32}};
    assert_int_equal(device->ops->reserve(device, &limits), 0);
}

/* Runs sample on rows that all have the same logits, or [n_rows, vocab] with
 * `each`. The tokens of lanes 0 .. n_rows - 1; the caller frees. */
static int *sample(struct device *device, const float *logits, int vocab, bool each,
                   const struct sample_row *row, int n_rows)
{
    size_t row_bytes = (size_t)vocab * sizeof(float), n = (size_t)n_rows;
    char *rows = xmalloc(n * row_bytes);
    int *sampled = xmalloc(n * sizeof(int));
    for (size_t i = 0; i < n; i++) {
        memcpy(rows + i * row_bytes, logits + (each ? i * (size_t)vocab : 0), row_bytes);
        sampled[i] = NOT_WRITTEN;
    }
    float *device_logits = to_device(device, rows, n * row_bytes);
    struct sample_row *device_row = to_device(device, row, n * sizeof(*row));
    int *device_sampled = to_device(device, sampled, n * sizeof(int));
    struct sample_args args = {device_sampled, device_logits, device_row, n_rows, vocab};
    device->ops->sample(device, &args);
    device->ops->download(device, sampled, device_sampled, n * sizeof(int));
    device->ops->free(device, device_logits);
    device->ops->free(device, device_row);
    device->ops->free(device, device_sampled);
    free(rows);
    return sampled;
}

static int sample_one(struct device *device, const float *logits, int vocab, struct sample_row row)
{
    row.lane = 0;
    int *sampled = sample(device, logits, vocab, false, &row, 1), token = sampled[0];
    free(sampled);
    return token;
}

/* ---- the generator ---- */

/* From the known-answer file of the authors' Random123 distribution. */
static void philox_gives_the_published_answers(void **state)
{
    static const struct {
        uint32_t counter[4], key[2], answer[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        uint32_t counter[4];
        memcpy(counter, known[i].counter, sizeof(counter));
        philox4x32_10(counter, known[i].key[0], known[i].key[1]);
        assert_memory_equal(counter, known[i].answer, sizeof(counter));
    }
}

/* ---- greedy ---- */

static void check_greedy(struct device *device, int vocab)
{
    float *logits = random_floats((size_t)vocab, 5, 1);
    for (int best = 0; best < vocab; best += MAX(1, vocab / 13)) {
        logits[best] = 6;
        logits[vocab - 1] = 6; /* a tie: the lower id wins */
        assert_int_equal(sample_one(device, logits, vocab, (struct sample_row){.top_p = 1}), best);
        logits[best] = best % 2 ? -INFINITY : NAN;
    }
    logits[0] = INFINITY;
    logits[vocab - 1] = NAN;
    assert_int_equal(sample_one(device, logits, vocab, (struct sample_row){.top_p = 1}), 0);
    free(logits);
}

static void greedy_takes_the_lowest_id_of_the_largest_logit_and_never_a_nan(void **state)
{
    static const int vocabs[] = {2, 15, 16, 33, 127, 1000, 151936};
    (void)state;
    for (int isa = 0; isa < N_CPU_ISAS; isa++) {
        struct device *device = open_cpu(CPU_ISAS[isa], 1);
        if (!device)
            continue;
        reserve(device, 151936);
        for (size_t i = 0; i < ARRAY_LEN(vocabs); i++)
            check_greedy(device, vocabs[i]);
        backend_cpu.close(device);
    }
}

/* ---- filters, against the reference ---- */

static const struct sample_row SETTINGS[] = {
    {.temperature = 1, .top_p = 1},
    {.temperature = 0.3f, .top_p = 1},
    {.temperature = 1e-6f, .top_p = 1},
    {.temperature = 100, .top_p = 1},
    {.temperature = 1, .top_p = 1, .top_k = 1},
    {.temperature = 1, .top_p = 1, .top_k = 5},
    {.temperature = 2, .top_p = 1, .top_k = 50},
    {.temperature = 1, .top_p = 1, .top_k = 1 << 20},
    {.temperature = 1, .top_p = 0.9f},
    {.temperature = 0.6f, .top_p = 0.95f},
    {.temperature = 3, .top_p = 0.3f},
    {.temperature = 1, .top_p = 0},
    {.temperature = 1, .top_p = 0.9999f},
    {.temperature = 1, .top_p = 1, .min_p = 0.1f},
    {.temperature = 2, .top_p = 1, .min_p = 1},
    {.temperature = 0.6f, .top_p = 0.95f, .top_k = 20},
    {.temperature = 1.5f, .top_p = 0.8f, .top_k = 40, .min_p = 0.05f},
    {.temperature = 1.5f, .top_p = 0.8f, .min_p = 0.05f},
};

/* Logits of several kinds: smooth, peaked, with ties, with holes. */
static float *make_logits(int vocab, int kind)
{
    float *logits = random_floats((size_t)vocab, 4, 40 + (uint64_t)kind);
    for (int i = 0; i < vocab; i++) {
        if (kind == 1)
            logits[i] *= fabsf(logits[i]);
        if (kind == 2)
            logits[i] = roundf(logits[i]);
        if (kind == 3 && i % 3 == 0)
            logits[i] = i % 2 ? -INFINITY : NAN;
    }
    return logits;
}

/* The drawn id must be the one at which the reference's sum passes the uniform
 * number; only a number within rounding of an id's border may give the
 * neighbour. */
static void check_draw(const double *probability, int vocab, double u, int token)
{
    double before = 0;
    assert_in_range(token, 0, vocab - 1);
    if (!(probability[token] > 0))
        fail_msg("token %d was drawn, which the filters leave out", token);
    for (int i = 0; i < token; i++)
        before += probability[i];
    if (u < before - 1e-5 || u > before + probability[token] + 1e-5)
        fail_msg("token %d covers %.8f to %.8f, the draw was %.8f", token, before,
                 before + probability[token], u);
}

static void check_settings(struct device *device, const float *logits, int vocab, int n_draws)
{
    double *probability = xcalloc((size_t)vocab, sizeof(double));
    for (size_t i = 0; i < ARRAY_LEN(SETTINGS); i++) {
        struct sample_row *row = xcalloc((size_t)n_draws, sizeof(*row));
        for (int d = 0; d < n_draws; d++) {
            row[d] = SETTINGS[i];
            row[d].seed = 0x123456789abcdefu * (uint64_t)(d / 3);
            row[d].index = d;
            row[d].lane = d;
        }
        int *sampled = sample(device, logits, vocab, false, row, n_draws);
        reference_sampling(probability, logits, vocab, &SETTINGS[i]);
        for (int d = 0; d < n_draws; d++)
            check_draw(probability, vocab, philox_uniform(row[d].seed, (uint32_t)d), sampled[d]);
        free(sampled);
        free(row);
    }
    free(probability);
}

static void a_draw_is_the_inverse_of_the_filtered_distribution(void **state)
{
    static const struct {
        int vocab, n_draws;
    } cases[] = {{1, 2}, {2, 20}, {37, 200}, {1024, 100}, {3001, 100}, {151936, 6}};
    (void)state;
    for (int isa = 0; isa < N_CPU_ISAS; isa++) {
        struct device *device = open_cpu(CPU_ISAS[isa], 2);
        if (!device)
            continue;
        reserve(device, 151936);
        for (size_t i = 0; i < ARRAY_LEN(cases) * 4; i++) {
            int vocab = cases[i / 4].vocab;
            float *logits = make_logits(vocab, vocab < 3 ? 0 : (int)(i % 4));
            check_settings(device, logits, vocab, cases[i / 4].n_draws);
            free(logits);
        }
        backend_cpu.close(device);
    }
}

/* Counts of many draws against the exact probabilities. The bound is the mean
 * of the chi-square distribution plus six of its standard deviations. */
static void counts_follow_the_probabilities(void **state)
{
    enum { VOCAB = 60, DRAWS = 40000 };
    static const struct sample_row settings[] = {
        {.temperature = 1, .top_p = 1},
        {.temperature = 0.7f, .top_p = 0.9f, .top_k = 30},
    };
    (void)state;
    struct device *device = open_cpu("plain", 2);
    float *logits = random_floats(VOCAB, 2, 5);
    struct sample_row *row = xcalloc(DRAWS, sizeof(*row));
    reserve(device, VOCAB);
    for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
        double probability[VOCAB], chi = 0, freedom = -1;
        int count[VOCAB] = {0};
        for (int d = 0; d < DRAWS; d++) {
            row[d] = settings[i];
            row[d].seed = 42;
            row[d].index = row[d].lane = d;
        }
        int *sampled = sample(device, logits, VOCAB, false, row, DRAWS);
        for (int d = 0; d < DRAWS; d++)
            count[sampled[d]]++;
        reference_sampling(probability, logits, VOCAB, &settings[i]);
        for (int id = 0; id < VOCAB; id++) {
            double expected = probability[id] * DRAWS;
            if (expected == 0)
                continue;
            chi += (count[id] - expected) * (count[id] - expected) / expected;
            freedom++;
        }
        assert_true(chi < freedom + 6 * sqrt(2 * freedom));
        free(sampled);
    }
    free(row);
    free(logits);
    backend_cpu.close(device);
}

/* ---- batches ---- */

static void a_row_draws_the_same_token_in_any_batch(void **state)
{
    enum { VOCAB = 5000, ROWS = ARRAY_LEN(SETTINGS) };
    (void)state;
    for (int isa = 0; isa < N_CPU_ISAS; isa++) {
        struct device *device = open_cpu(CPU_ISAS[isa], 2);
        if (!device)
            continue;
        struct sample_row row[ROWS];
        float *logits = random_floats(ROWS * VOCAB, 3, 8);
        reserve(device, VOCAB);
        for (int r = 0; r < ROWS; r++) {
            row[r] = SETTINGS[r];
            row[r].seed = 9;
            row[r].index = 7 * r;
            row[r].lane = ROWS - 1 - r;
        }
        int *together = sample(device, logits, VOCAB, true, row, ROWS);
        for (int r = 0; r < ROWS; r++)
            assert_int_equal(sample_one(device, logits + r * VOCAB, VOCAB, row[r]),
                             together[ROWS - 1 - r]);
        free(together);
        free(logits);
        backend_cpu.close(device);
    }
}

static void a_padding_row_writes_nothing(void **state)
{
    const float logits[] = {0, 1, 0, 0};
    const struct sample_row row[] = {{.lane = -1, .top_p = 1}, {.lane = 1, .top_p = 1}};
    (void)state;
    struct device *device = open_cpu("plain", 1);
    reserve(device, 4);
    int *sampled = sample(device, logits, 4, false, row, 2);
    assert_int_equal(sampled[0], NOT_WRITTEN);
    assert_int_equal(sampled[1], 1);
    free(sampled);
    backend_cpu.close(device);
}

static void nothing_but_nan_still_gives_a_token(void **state)
{
    float logits[100];
    (void)state;
    struct device *device = open_cpu("plain", 1);
    reserve(device, 100);
    for (int i = 0; i < 100; i++)
        logits[i] = NAN;
    for (size_t i = 0; i < ARRAY_LEN(SETTINGS); i++)
        assert_int_equal(sample_one(device, logits, 100, SETTINGS[i]), 0);
    backend_cpu.close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_answers),
        cmocka_unit_test(greedy_takes_the_lowest_id_of_the_largest_logit_and_never_a_nan),
        cmocka_unit_test(a_draw_is_the_inverse_of_the_filtered_distribution),
        cmocka_unit_test(counts_follow_the_probabilities),
        cmocka_unit_test(a_row_draws_the_same_token_in_any_batch),
        cmocka_unit_test(a_padding_row_writes_nothing),
        cmocka_unit_test(nothing_but_nan_still_gives_a_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
