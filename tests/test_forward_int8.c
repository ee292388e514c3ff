/* test_forward_int8.c - what int8 weights change of a model's results, and that its bits depend on
 * nothing else either.
 */
#include "tests/forward.h"
#include "tests/ops_reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The mean negative log-likelihood of a text's tokens. */
static double mean_nll(struct model *m, const json_t *text)
{
    int n, vocab = m->arch.vocab;
    int *ids = read_ids(json_object_get(text, "ids"), &n);
    float *logits = logits_of(m, ATTENTION_FLASH, DTYPE_F32, ids, n, 64);
    double sum = 0;
    for (int t = 0; t + 1 < n; t++)
        sum += nll(logits + (size_t)t * (size_t)vocab, vocab, ids[t + 1]);
    free(logits);
    free(ids);
    return sum / (n - 1);
}

static double mean_of(const json_t *numbers)
{
    double sum = 0;
    for (size_t i = 0; i < json_array_size(numbers); i++)
        sum += number_at(numbers, i);
    return sum / (double)json_array_size(numbers);
}

static void real_texts_are_nearly_as_likely(void **state)
{
    (void)state;
    char *file = test_data_path("reference/tinystories_sample_nll.json");
    if (!file)
        skip();
    json_t *root = read_json(file), *models = json_object_get(root, "models"), *texts;
    const char *name;
    json_object_foreach(models, name, texts)
    {
        char *dir_name = xasprintf("models/%s", name), *dir = test_data_path(dir_name);
        free(dir_name);
        if (!dir)
            skip();
        struct model *m = open_model(dir, INT8);
        double difference = 0, expected = 0;
        size_t n = json_array_size(texts);
        for (size_t i = 0; i < n; i++) {
            const json_t *text = json_array_get(texts, i);
            double of_text = mean_of(json_object_get(text, "token_nll"));
            expected += of_text / (double)n;
            difference += (mean_nll(m, text) - of_text) / (double)n;
        }
        print_message("%s in int8: NLL %.4f, %+.4f\n", name, expected + difference, difference);
        assert_true(fabs(difference) < 0.01); /* measured: 0.0034 of 2.99, 0.0005 of 1.24 */
        model_close(m);
        free(dir);
    }
    json_decref(root);
    free(file);
}

static struct {
    int same, n;
} greedy;

/* Where the reference's first id leads by half a logit, int8 must not change it. */
static bool count_greedy(const json_t *prompt, int step, int expected, const float *logits,
                         int vocab)
{
    const json_t *detail = json_array_get(json_object_get(prompt, "steps"), (size_t)step);
    bool same = argmax(logits, vocab) == expected;
    greedy.n++;
    greedy.same += same;
    assert_true(same || json_number_value(json_object_get(detail, "margin")) < 0.5);
    return true;
}

static void nearly_all_greedy_ids_are_the_reference_s(void **state)
{
    (void)state;
    memset(&greedy, 0, sizeof(greedy));
    follow_trained(INT8, count_greedy);
    print_message("%d of %d greedy ids are the reference's\n", greedy.same, greedy.n);
    assert_true(greedy.same > 0.97 * greedy.n); /* measured: 0.984 */
}

/* Logits of a made-up prompt: [N_IDS, vocab]. The caller frees. */
enum { N_IDS = 40 };
static float *logits_in_chunks(struct model *m, int chunk)
{
    int ids[N_IDS];
    for (int i = 0; i < N_IDS; i++)
        ids[i] = (int)(mix64((uint64_t)i) % (uint64_t)m->arch.vocab);
    return logits_of(m, ATTENTION_FLASH, DTYPE_F32, ids, N_IDS, chunk);
}

/* The tiny models' weights are drawn at random and larger than trained ones, so that errors grow
 * from layer to layer: bf16 weights are 0.010 to 0.025 off. */
static void every_instruction_set_stays_near_the_reference(void **state)
{
    (void)state;
    double largest = 0;
    for (int k = 0; k < N_CPU_ISAS; k++) {
        const struct device_options device = {.n_threads = 1, .isa = CPU_ISAS[k]};
        struct device_info info;
        if (device_describe(&info, DEVICE_CPU, &device) != 0)
            continue;
        for (size_t i = 0; i < N_GOLDEN; i++) {
            struct golden g;
            golden_open_on(&g, GOLDEN_NAMES[i], INT8, device);
            largest = fmax(largest, golden_error(&g, ATTENTION_FLASH, DTYPE_F32, 17));
            golden_close(&g);
        }
    }
    print_message("largest error, relative to the largest logit: %.2g\n", largest);
    assert_true(largest < 0.15); /* measured: 0.11 */
}

static void chunks_and_threads_change_no_bit(void **state)
{
    static const char path[] = "tests/golden/qwen2-window";
    static const struct {
        int chunk, n_threads;
    } cases[] = {{1, 1}, {3, 1}, {16, 2}, {17, 3}, {N_IDS, 2}};
    (void)state;
    for (int k = 0; k < N_CPU_ISAS; k++) {
        struct device_options device = {.n_threads = 1, .isa = CPU_ISAS[k]};
        struct device_info info;
        if (device_describe(&info, DEVICE_CPU, &device) != 0)
            continue;
        struct model *whole = open_model_on(path, INT8, device);
        float *expected = logits_in_chunks(whole, N_IDS);
        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
            device.n_threads = cases[i].n_threads;
            struct model *m = open_model_on(path, INT8, device);
            float *logits = logits_in_chunks(m, cases[i].chunk);
            assert_memory_equal(logits, expected, N_IDS * (size_t)m->arch.vocab * sizeof(float));
            free(logits);
            model_close(m);
        }
        free(expected);
        model_close(whole);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_texts_are_nearly_as_likely),
        cmocka_unit_test(nearly_all_greedy_ids_are_the_reference_s),
        cmocka_unit_test(every_instruction_set_stays_near_the_reference),
        cmocka_unit_test(chunks_and_threads_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
