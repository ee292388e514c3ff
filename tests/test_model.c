/* Opening a model: what is loaded, described and refused. */
#include "tests/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"
#include "engine/safetensors.h"

static struct model *open_quietly(const struct model_options *options)
{
    log_set_level("warning");
    return test_open_model(options);
}

static struct model *open_random(const char *path, enum dtype dtype, uint64_t seed, int n_threads)
{
    return open_quietly(&(struct model_options){
        .path = path,
        .dtype = dtype_name(dtype),
        .random_init = true,
        .init_seed = seed,
        .device_options = {.n_threads = n_threads},
    });
}

/* All rows of the embedding: [vocab, hidden] f32. The caller frees. */
static float *read_embedding(struct model *m, size_t *n)
{
    struct device *d = m->device;
    int vocab = m->arch.vocab;
    int *token = xcalloc((size_t)vocab, sizeof(*token));
    for (int i = 0; i < vocab; i++)
        token[i] = i;
    *n = (size_t)vocab * (size_t)m->arch.hidden;
    int *tokens = d->ops->alloc(d, (size_t)vocab * sizeof(*tokens));
    float *rows = d->ops->alloc(d, *n * sizeof(float)), *host = xmalloc(*n * sizeof(float));
    d->ops->upload(d, tokens, token, (size_t)vocab * sizeof(*tokens));
    d->ops->embed(d, rows, &m->embed, tokens, NULL, vocab);
    d->ops->download(d, host, rows, *n * sizeof(float));
    d->ops->free(d, rows);
    d->ops->free(d, tokens);
    free(token);
    return host;
}

static void random_weights_are_normal_and_follow_the_seed(void **state)
{
    (void)state;
    static const char path[] = "configs/models/minimal.json";
    struct model *m = open_random(path, DTYPE_F32, 7, 1);
    size_t n, n_again;
    float *x = read_embedding(m, &n);
    double sum = 0, squares = 0, fourth = 0;
    for (size_t i = 0; i < n; i++) {
        sum += x[i];
        squares += (double)x[i] * x[i];
        fourth += pow(x[i], 4);
    }
    double std = sqrt(squares / (double)n);
    assert_float_equal(sum / (double)n, 0, 4 * 0.02 / sqrt((double)n));
    assert_float_equal(std, 0.02, 0.0002);
    /* The sum of four uniform bytes has a kurtosis of 2.7; a normal distribution has 3. */
    assert_float_equal(fourth / (double)n / pow(std, 4), 2.7, 0.05);

    /* The same seed: the same weights with other threads and in every dtype. */
    for (int dtype = 0; dtype < DTYPE_N; dtype++) {
        struct model *same = open_random(path, (enum dtype)dtype, 7, 2);
        float *y = read_embedding(same, &n_again);
        assert_int_equal(n, n_again);
        assert_memory_equal(x, y, n * sizeof(float));
        free(y);
        model_close(same);
    }
    struct model *other = open_random(path, DTYPE_F32, 8, 1);
    float *z = read_embedding(other, &n_again);
    assert_memory_not_equal(x, z, n * sizeof(float));
    assert_string_not_equal(model_get_info(m)->fingerprint, model_get_info(other)->fingerprint);
    free(z);
    free(x);
    model_close(other);
    model_close(m);
}

static void a_description_is_what_opening_gives(void **state)
{
    (void)state;
    static const struct model_options cases[] = {
        {.path = "tests/golden/mistral"},
        {.path = "tests/golden/llama3", .dtype = "auto"},
        {.path = "tests/golden/qwen2", .dtype = "float32"},
        {.path = "configs/models/minimal.json", .random_init = true, .init_seed = 3},
        {.path = "tests/golden/qwen3", .random_init = true, .init_seed = 3},
        {.path = "tests/golden/llama3", .quantization = QUANTIZATION_INT8},
    };
    static const enum dtype dtypes[] = {DTYPE_F32,  DTYPE_BF16, DTYPE_F32,
                                        DTYPE_BF16, DTYPE_F32,  DTYPE_BF16};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_info described;
        struct tokenizer *tokenizer;
        assert_int_equal(model_describe(&described, &tokenizer, &cases[i]), 0);
        struct model *m = open_quietly(&cases[i]);
        const struct model_info *opened = model_get_info(m);
        assert_string_equal(described.fingerprint, opened->fingerprint);
        assert_string_equal(described.arch, opened->arch);
        assert_int_equal(described.dtype, dtypes[i]);
        assert_int_equal(opened->dtype, dtypes[i]);
        assert_int_equal(described.quantization, cases[i].quantization);
        assert_string_equal(weight_name(opened->dtype, opened->quantization),
                            cases[i].quantization ? "int8" : dtype_name(dtypes[i]));
        assert_int_equal(described.n_params, opened->n_params);
        assert_int_equal(described.max_position, opened->max_position);
        assert_true(opened->weight_bytes >= described.weight_bytes);
        assert_true(opened->load_s > 0 && described.load_s == 0);
        assert_null(tokenizer);
        assert_null(model_get_tokenizer(m));
        assert_int_equal(activations_bytes(&described, 16, 4), activations_bytes(opened, 16, 4));
        model_close(m);
    }
}

static void a_fingerprint_follows_weights_and_dtype(void **state)
{
    (void)state;
    static const struct model_options cases[] = {
        {.path = "tests/golden/llama-linear"},
        {.path = "tests/golden/llama-linear", .dtype = "bfloat16"},
        {.path = "tests/golden/llama-linear", .random_init = true},
        {.path = "tests/golden/llama-linear", .random_init = true, .init_seed = 1},
        {.path = "tests/golden/llama-yarn"},
        {.path = "tests/golden/llama-linear", .quantization = QUANTIZATION_INT8},
    };
    struct model_info info[ARRAY_LEN(cases)];
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(model_describe(&info[i], NULL, &cases[i]), 0);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(info[i].fingerprint, info[j].fingerprint);
    }
}

static void what_cannot_be_opened_says_why(void **state)
{
    (void)state;
    static const struct {
        struct model_options options;
        enum err_kind kind;
        const char *error;
    } cases[] = {
        {{.path = "tests/golden/nothing"},
         ERR_DATA,
         "tests/golden/nothing: there is no such model"},
        {{.path = "tests/golden"}, ERR_DATA, "tests/golden/config.json: cannot open"},
        {{.path = "configs/models/minimal.json"}, ERR_CONFIG, "without weights"},
        {{.path = "tests/golden/qwen3", .dtype = "int4"}, ERR_CONFIG, "unknown dtype 'int4'"},
        {{.path = "tests/golden/qwen3", .tokenizer = "tests/golden/qwen3"},
         ERR_DATA,
         "tokenizer.json"},
        {{.path = "tests/golden/qwen3", .device_options = {.isa = "mmx"}}, ERR_CONFIG, "mmx"},
        {{.path = "tests/golden/qwen3", .quantization = QUANTIZATION_INT8, .device = DEVICE_CUDA},
         ERR_CONFIG,
         "quantization int8 is for the CPU"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model *m;
        struct model_info info;
        assert_int_equal(model_open(&m, &cases[i].options), -1);
        assert_error(cases[i].kind, cases[i].error);
        assert_int_equal(model_describe(&info, NULL, &cases[i].options), -1);
        assert_error(cases[i].kind, cases[i].error);
    }
}

static void a_model_larger_than_memory_is_refused_with_both_sizes(void **state)
{
    (void)state;
    char *path = test_write_text(
        "huge.json", "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 65536,"
                     " \"num_hidden_layers\": 512, \"num_attention_heads\": 512,"
                     " \"intermediate_size\": 65536, \"vocab_size\": 1048576,"
                     " \"max_position_embeddings\": 128}");
    struct model *m;
    const struct model_options options = {.path = path, .dtype = "bfloat16", .random_init = true};
    assert_int_equal(model_open(&m, &options), -1);
    /* 512 layers of (4 + 3) x 65536^2, two embeddings of 2^36, 1025 norms and the RoPE table */
    assert_error(ERR_RESOURCE, "31061472247808 bytes");
    assert_contains(err_get(), "the device has");
    free(path);
}

/* Copies a golden file into the test's folder, with one word of its text replaced by another of
 * the same length. */
static void copy_with(const char *from, const char *name, const char *word, const char *other)
{
    size_t n;
    char *text = file_read(from, &n);
    assert_non_null(text);
    if (word) {
        char *at = memmem(text, n, word, strlen(word));
        assert_non_null(at);
        memcpy(at, other, strlen(word));
    }
    free(test_write_file(name, text, n));
    free(text);
}

static void a_missing_or_misshapen_tensor_is_named(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"layers.1.mlp.down_proj", "layers.1.mlp.down_porj",
         "tensor model.layers.1.mlp.down_proj.weight of shape [32, 56] is missing; the nearest "
         "name: model.layers."},
        {"[56,32]", "[28,64]", "of shape [28, 64]; expected F32, BF16 or F16 of shape [56, 32]"},
        {"model.norm.weight", "model.norm.wieght", "tensor model.norm.weight of shape [32]"},
    };
    copy_with("tests/golden/qwen3/config.json", "config.json", NULL, NULL);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model *m;
        const struct model_options options = {.path = test_dir()};
        copy_with("tests/golden/qwen3/model.safetensors", "model.safetensors", cases[i][0],
                  cases[i][1]);
        assert_int_equal(model_open(&m, &options), -1);
        assert_error(ERR_DATA, cases[i][2]);
    }
}

static size_t tensor_bytes(const struct tensor *t)
{
    size_t bytes = dtype_bytes(t->dtype);
    for (int i = 0; i < t->n_dims; i++)
        bytes *= t->dim[i];
    return bytes;
}

/* Writes data[bytes] over the beginning of a tensor in the test's folder. */
static void overwrite(const char *name, const void *data, size_t bytes)
{
    struct safetensors *s;
    size_t n;
    char *path = test_path("model.safetensors"), *file = file_read(path, &n);
    assert_int_equal(safetensors_open(&s, test_dir()), 0);
    const struct tensor *t = safetensors_find(s, name);
    char *at = memmem(file, n, t->data, tensor_bytes(t));
    assert_non_null(at);
    memcpy(at, data, bytes);
    safetensors_close(s);
    free(test_write_file("model.safetensors", file, n));
    free(file);
    free(path);
}

static void copy_embedding_to_head(void)
{
    struct safetensors *s;
    assert_int_equal(safetensors_open(&s, test_dir()), 0);
    const struct tensor *embed = safetensors_find(s, "model.embed_tokens.weight");
    overwrite("lm_head.weight", embed->data, tensor_bytes(embed));
    safetensors_close(s);
}

static void a_head_beside_tied_embeddings_must_be_a_copy_of_them(void **state)
{
    (void)state;
    struct model *m;
    const struct model_options options = {.path = test_dir()};
    copy_with("tests/golden/llama-linear/config.json", "config.json",
              "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true ");
    copy_with("tests/golden/llama-linear/model.safetensors", "model.safetensors", NULL, NULL);
    assert_int_equal(model_open(&m, &options), -1);
    assert_error(ERR_DATA, "model.safetensors: tensor lm_head.weight differs from "
                           "model.embed_tokens.weight, but config.json has tie_word_embeddings");
    copy_embedding_to_head();
    model_close(open_quietly(&options));
}

static void gains_and_biases_must_be_finite(void **state)
{
    (void)state;
    static const struct {
        const char *tensor;
        uint16_t value; /* float16, as the file is */
        const char *error;
    } cases[] = {
        {"model.norm.weight", 0x7E00, "tensor model.norm.weight: element 0 is NaN"},
        {"model.layers.1.self_attn.k_proj.bias", 0xFC00,
         "tensor model.layers.1.self_attn.k_proj.bias: element 0 is infinite"},
    };
    struct model *m;
    const struct model_options options = {.path = test_dir()};
    copy_with("tests/golden/qwen2/config.json", "config.json", NULL, NULL);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        copy_with("tests/golden/qwen2/model.safetensors", "model.safetensors", NULL, NULL);
        overwrite(cases[i].tensor, &cases[i].value, sizeof(cases[i].value));
        assert_int_equal(model_open(&m, &options), -1);
        assert_error(ERR_DATA, cases[i].error);
    }
}

/* The header may have any length, and then no tensor is aligned. */
static void unaligned_tensors_load(void **state)
{
    (void)state;
    size_t n, n_moved;
    char *file = file_read("tests/golden/qwen2/model.safetensors", &n);
    assert_non_null(file);
    struct str moved = {0};
    uint64_t header;
    memcpy(&header, file, sizeof(header));
    header++;
    str_append(&moved, (const char *)&header, sizeof(header));
    str_append(&moved, file + 8, (size_t)header - 1);
    str_append_c(&moved, " ");
    str_append(&moved, file + 8 + header - 1, n - 8 - (size_t)header + 1);
    copy_with("tests/golden/qwen2/config.json", "config.json", NULL, NULL);
    free(test_write_file("model.safetensors", moved.data, moved.len));

    struct model *m = open_quietly(&(struct model_options){.path = "tests/golden/qwen2"});
    struct model *unaligned = open_quietly(&(struct model_options){.path = test_dir()});
    float *x = read_embedding(m, &n), *y = read_embedding(unaligned, &n_moved);
    assert_int_equal(n, n_moved);
    assert_memory_equal(x, y, n * sizeof(float));
    assert_memory_equal(m->final_gain, unaligned->final_gain,
                        (size_t)m->arch.hidden * sizeof(float));
    free(x);
    free(y);
    model_close(m);
    model_close(unaligned);
    str_free(&moved);
    free(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_weights_are_normal_and_follow_the_seed),
        cmocka_unit_test(a_description_is_what_opening_gives),
        cmocka_unit_test(a_fingerprint_follows_weights_and_dtype),
        cmocka_unit_test(what_cannot_be_opened_says_why),
        cmocka_unit_test(a_model_larger_than_memory_is_refused_with_both_sizes),
        cmocka_unit_test(a_missing_or_misshapen_tensor_is_named),
        cmocka_unit_test(a_head_beside_tied_embeddings_must_be_a_copy_of_them),
        cmocka_unit_test(gains_and_biases_must_be_finite),
        cmocka_unit_test(unaligned_tensors_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
