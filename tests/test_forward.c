/* The forward pass against other implementations' logits, and that its bits depend on nothing else.
 */
#include "tests/forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- golden logits ---- */

static void f32_logits_are_those_of_the_reference(void **state)
{
    (void)state;
    static const int chunks[] = {1, 3, 17, 4096};
    for (size_t i = 0; i < N_GOLDEN; i++) {
        struct golden g;
        golden_open(&g, GOLDEN_NAMES[i], "float32");
        double error = 0;
        for (int kind = 0; kind < ATTENTION_N; kind++) {
            for (size_t c = 0; c < ARRAY_LEN(chunks); c++)
                error =
                    fmax(error, golden_error(&g, (enum attention_kind)kind, DTYPE_F32, chunks[c]));
        }
        print_message("%s: relative error %.2g\n", GOLDEN_NAMES[i], error);
        assert_true(error < 1e-5);
        golden_close(&g);
    }
}

static void a_softcap_far_above_the_scores_changes_nothing_and_a_low_one_much(void **state)
{
    (void)state;
    struct golden g;
    golden_open(&g, "qwen3", "float32");
    for (int kind = 0; kind < ATTENTION_N; kind++) {
        g.m->arch.softcap = 1e5f;
        assert_true(golden_error(&g, (enum attention_kind)kind, DTYPE_F32, 17) < 1e-5);
        g.m->arch.softcap = 0.1f; /* all keys weigh nearly the same */
        assert_true(golden_error(&g, (enum attention_kind)kind, DTYPE_F32, 17) > 0.1);
    }
    golden_close(&g);
}

/* Rounding a number to bfloat16 changes it by up to 2^-9 of itself, to float16 by up to 2^-12. */
static void short_dtypes_stay_near_the_reference(void **state)
{
    (void)state;
    static const struct {
        enum dtype dtype, kv_dtype;
        double tolerance;
    } cases[] = {
        {DTYPE_BF16, DTYPE_F32, 0.04},
        {DTYPE_BF16, DTYPE_BF16, 0.04},
        {DTYPE_F16, DTYPE_F32, 0.005},
        {DTYPE_F16, DTYPE_F16, 0.005},
    };
    for (size_t i = 0; i < N_GOLDEN; i++) {
        for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
            struct golden g;
            golden_open(&g, GOLDEN_NAMES[i], dtype_name(cases[c].dtype));
            double error = golden_error(&g, ATTENTION_FLASH, cases[c].kv_dtype, 4096);
            print_message("%s in %s, KV in %s: relative error %.2g\n", GOLDEN_NAMES[i],
                          dtype_name(cases[c].dtype), dtype_name(cases[c].kv_dtype), error);
            assert_true(error < cases[c].tolerance);
            golden_close(&g);
        }
    }
}

static void every_instruction_set_gives_the_reference(void **state)
{
    (void)state;
    static const char *const isas[] = {"plain",      "avx2",       "avx512",
                                       "avx512vnni", "avx512bf16", "amx"};
    for (size_t k = 0; k < ARRAY_LEN(isas); k++) {
        const struct device_options device = {.n_threads = 1, .isa = isas[k]};
        struct device_info info;
        if (device_describe(&info, DEVICE_CPU, &device) != 0) {
            print_message("not on this machine: %s\n", err_get());
            continue;
        }
        for (size_t i = 0; i < N_GOLDEN; i++) {
            struct golden f32, bf16;
            golden_open_on(&f32, GOLDEN_NAMES[i], "float32", device);
            golden_open_on(&bf16, GOLDEN_NAMES[i], "bfloat16", device);
            assert_true(golden_error(&f32, ATTENTION_FLASH, DTYPE_F32, 17) < 1e-5);
            assert_true(golden_error(&bf16, ATTENTION_FLASH, DTYPE_BF16, 17) < 0.04);
            golden_close(&f32);
            golden_close(&bf16);
        }
    }
}

/* ---- greedy ids ---- */

static bool id_is_the_reference(const json_t *prompt, int step, int expected, const float *logits,
                                int vocab)
{
    (void)prompt;
    (void)step;
    assert_int_equal(argmax(logits, vocab), expected);
    return true;
}

static void greedy_ids_of_tiny_models_are_those_of_the_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_GOLDEN; i++) {
        struct golden g;
        golden_open(&g, GOLDEN_NAMES[i], "float32");
        for (int kind = 0; kind < ATTENTION_N; kind++)
            follow_reference(g.m, (enum attention_kind)kind, g.prompts, id_is_the_reference);
        golden_close(&g);
    }
}

/* ---- trained models ---- */

/* f32: the id, and the five largest logits. */
static bool step_is_the_reference(const json_t *prompt, int step, int expected, const float *logits,
                                  int vocab)
{
    const json_t *detail = json_array_get(json_object_get(prompt, "steps"), (size_t)step);
    const json_t *top = json_object_get(detail, "top5");
    const json_t *top_logits = json_object_get(detail, "logits5");
    for (size_t i = 0; i < json_array_size(top); i++) {
        int id = (int)json_integer_value(json_array_get(top, i));
        assert_in_range(id, 0, vocab - 1);
        assert_float_equal(logits[id], number_at(top_logits, i), 1e-3);
    }
    assert_int_equal(argmax(logits, vocab), expected);
    return true;
}

/* bf16: the ids up to the first step that hangs on rounding. */
static bool clear_step_is_the_reference(const json_t *prompt, int step, int expected,
                                        const float *logits, int vocab)
{
    const json_t *detail = json_array_get(json_object_get(prompt, "steps"), (size_t)step);
    const json_t *margin = json_object_get(detail, "margin");
    assert_non_null(margin);
    if (json_number_value(margin) < 0.1)
        return false;
    assert_int_equal(argmax(logits, vocab), expected);
    return true;
}

static void trained_models_in_f32_give_every_reference_id(void **state)
{
    (void)state;
    follow_trained("float32", step_is_the_reference);
}

static void trained_models_in_bf16_give_the_clear_reference_ids(void **state)
{
    (void)state;
    follow_trained("bfloat16", clear_step_is_the_reference);
}

static void check_nll(struct model *m, const json_t *text)
{
    int n, vocab = m->arch.vocab;
    int *ids = read_ids(json_object_get(text, "ids"), &n);
    const json_t *expected = json_object_get(text, "token_nll");
    assert_int_equal(json_array_size(expected), n - 1);
    float *logits = logits_of(m, ATTENTION_FLASH, DTYPE_F32, ids, n, 64);
    for (int t = 0; t + 1 < n; t++)
        assert_float_equal(nll(logits + (size_t)t * (size_t)vocab, vocab, ids[t + 1]),
                           number_at(expected, (size_t)t), 1e-3);
    free(logits);
    free(ids);
}

static void real_texts_are_as_likely_as_in_the_reference(void **state)
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
        struct model *m = open_model(dir, "float32");
        for (size_t i = 0; i < json_array_size(texts); i++)
            check_nll(m, json_array_get(texts, i));
        model_close(m);
        free(dir);
    }
    json_decref(root);
    free(file);
}

/* ---- invariance ---- */

static void check_chunks(struct model *m, enum attention_kind attention, enum dtype kv_dtype)
{
    static const int chunks[] = {1, 3, 15, 16, 17};
    enum { N = 40 };
    int ids[N];
    for (int i = 0; i < N; i++)
        ids[i] = (int)(mix64((uint64_t)i) % (uint64_t)m->arch.vocab);
    float *whole = logits_of(m, attention, kv_dtype, ids, N, N);
    for (size_t c = 0; c < ARRAY_LEN(chunks); c++) {
        float *parts = logits_of(m, attention, kv_dtype, ids, N, chunks[c]);
        assert_memory_equal(parts, whole, (size_t)N * (size_t)m->arch.vocab * sizeof(float));
        free(parts);
    }
    free(whole);
}

static void chunks_of_a_prompt_give_the_same_bits_as_the_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_GOLDEN; i++) {
        for (int dtype = 0; dtype < DTYPE_N; dtype++) {
            struct golden g;
            golden_open(&g, GOLDEN_NAMES[i], dtype_name((enum dtype)dtype));
            for (int kind = 0; kind < ATTENTION_N; kind++)
                check_chunks(g.m, (enum attention_kind)kind, (enum dtype)dtype);
            g.m->arch.softcap = 2;
            check_chunks(g.m, ATTENTION_FLASH, (enum dtype)dtype);
            golden_close(&g);
        }
    }
}

static void a_sequence_in_a_batch_gives_the_same_bits_as_alone(void **state)
{
    (void)state;
    enum { N_SEQS = 5, MAX_LEN = 40 };
    static const int lengths[N_SEQS] = {17, 1, 40, 16, 3};
    int ids[N_SEQS][MAX_LEN], n_tokens = 0;
    struct model *m = open_model("tests/golden/mistral", "bfloat16");
    struct world w;
    for (int s = 0; s < N_SEQS; s++)
        n_tokens += lengths[s];
    world_open(&w, m, N_SEQS, n_tokens, MAX_LEN);
    for (int s = 0; s < N_SEQS; s++) {
        for (int i = 0; i < MAX_LEN; i++)
            ids[s][i] = (int)(mix64((uint64_t)(s * MAX_LEN + i)) % 97);
        w.seq[s].ids = ids[s];
        w.seq[s].n_ids = lengths[s];
    }
    float *together = world_step(&w, lengths), *part = together;
    for (int s = 0; s < N_SEQS; s++) {
        float *alone = logits_of(m, ATTENTION_FLASH, DTYPE_F32, ids[s], lengths[s], lengths[s]);
        size_t n = (size_t)lengths[s] * (size_t)m->arch.vocab;
        assert_memory_equal(alone, part, n * sizeof(float));
        part += n;
        free(alone);
    }
    free(together);
    world_close(&w);
    model_close(m);
}

static void the_number_of_threads_changes_no_bit(void **state)
{
    (void)state;
    enum { N = 40 };
    static const char path[] = "tests/golden/qwen2-window";
    int ids[N];
    for (int i = 0; i < N; i++)
        ids[i] = (int)(mix64((uint64_t)i) % 96);
    for (int dtype = 0; dtype < DTYPE_N; dtype++) {
        const char *name = dtype_name((enum dtype)dtype);
        struct model *one = open_model(path, name);
        float *expected = logits_of(one, ATTENTION_FLASH, (enum dtype)dtype, ids, N, 17);
        for (int n_threads = 2; n_threads <= 3; n_threads++) {
            struct model *m =
                open_model_on(path, name, (struct device_options){.n_threads = n_threads});
            float *logits = logits_of(m, ATTENTION_FLASH, (enum dtype)dtype, ids, N, 17);
            assert_memory_equal(logits, expected,
                                (size_t)N * (size_t)m->arch.vocab * sizeof(float));
            free(logits);
            model_close(m);
        }
        free(expected);
        model_close(one);
    }
}

static struct model *open_random(enum device_kind kind, const char *dtype)
{
    const struct model_options options = {.path = "configs/models/qwen3-0.6b.json",
                                          .dtype = dtype,
                                          .random_init = true,
                                          .device = kind};
    return test_open_model(&options);
}

/* The largest difference of two sets of logits, relative to the largest logit. */
static double distance(const float *a, const float *b, size_t n)
{
    double error = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        error = fmax(error, fabs((double)a[i] - b[i]));
        scale = fmax(scale, fabs((double)b[i]));
    }
    return error / scale;
}

static void a_gpu_gives_the_logits_of_the_cpu_on_a_real_shape(void **state)
{
    (void)state;
    enum { N = 40 };
    static const struct {
        enum dtype dtype;
        double tolerance;
    } cases[] = {{DTYPE_F32, 1e-3}, {DTYPE_BF16, 0.05}};
    int ids[N];
    if (test_device() == DEVICE_CPU) {
        print_message("there is no other device to compare with: QUIRE_TEST_DEVICE=cuda\n");
        skip();
    }
    for (int i = 0; i < N; i++)
        ids[i] = (int)(mix64((uint64_t)i) % 10000);
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        const char *name = dtype_name(cases[c].dtype);
        struct model *cpu = open_random(DEVICE_CPU, name), *gpu = open_random(DEVICE_CUDA, name);
        size_t n = (size_t)N * (size_t)cpu->arch.vocab;
        float *expected = logits_of(cpu, ATTENTION_FLASH, cases[c].dtype, ids, N, N);
        float *logits = logits_of(gpu, ATTENTION_FLASH, cases[c].dtype, ids, N, N);
        double error = distance(logits, expected, n);
        print_message("Qwen3-0.6B shape, random weights, %s: relative error %.2g\n", name, error);
        assert_true(error < cases[c].tolerance);
        free(expected);
        free(logits);
        model_close(cpu);
        model_close(gpu);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_logits_are_those_of_the_reference),
        cmocka_unit_test(a_softcap_far_above_the_scores_changes_nothing_and_a_low_one_much),
        cmocka_unit_test(short_dtypes_stay_near_the_reference),
        cmocka_unit_test(every_instruction_set_gives_the_reference),
        cmocka_unit_test(greedy_ids_of_tiny_models_are_those_of_the_reference),
        cmocka_unit_test(trained_models_in_f32_give_every_reference_id),
        cmocka_unit_test(trained_models_in_bf16_give_the_clear_reference_ids),
        cmocka_unit_test(real_texts_are_as_likely_as_in_the_reference),
        cmocka_unit_test(chunks_of_a_prompt_give_the_same_bits_as_the_whole),
        cmocka_unit_test(a_sequence_in_a_batch_gives_the_same_bits_as_alone),
        cmocka_unit_test(the_number_of_threads_changes_no_bit),
        cmocka_unit_test(a_gpu_gives_the_logits_of_the_cpu_on_a_real_shape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
