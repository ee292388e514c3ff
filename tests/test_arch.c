/* Architectures from config.json: what is accepted, what is refused and how, RoPE frequencies. */
#include "tests/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arch.h"

static const char base_config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 48, \"num_hidden_layers\": 4,"
    " \"num_attention_heads\": 6, \"num_key_value_heads\": 2, \"intermediate_size\": 40,"
    " \"vocab_size\": 100, \"max_position_embeddings\": 64, \"eos_token_id\": 2}";

/* Loads the base config with the keys of `changes` replaced (JSON text; a key with the value
 * "REMOVE" is taken out). */
static int load_changed(struct model_arch *arch, const char *changes)
{
    json_t *config = json_loads(base_config, 0, NULL), *change = json_loads(changes, 0, NULL);
    assert_non_null(config);
    assert_non_null(change);
    const char *key;
    json_t *value;
    json_object_foreach(change, key, value)
    {
        const char *text = json_string_value(value);
        if (text && strcmp(text, "REMOVE") == 0)
            json_object_del(config, key);
        else
            json_object_set(config, key, value);
    }
    char *text = json_dumps(config, 0);
    char *path = test_write_text("changed.json", text);
    int rc = arch_load(arch, path);
    free(path);
    free(text);
    json_decref(change);
    json_decref(config);
    return rc;
}

static void assert_loads(struct model_arch *arch, const char *changes)
{
    if (load_changed(arch, changes) != 0)
        fail_msg("%s is refused: %s", changes, err_get());
}

static void absent_keys_have_the_library_defaults(void **state)
{
    (void)state;
    struct model_arch arch;
    assert_loads(&arch, "{}");
    assert_string_equal(arch.name, "LlamaForCausalLM");
    assert_int_equal(arch.head_dim, 8);
    assert_float_equal(arch.norm_eps, 1e-6, 1e-12);
    assert_float_equal(arch.rope.theta, 1e4, 0);
    assert_int_equal(arch.rope.kind, ROPE_DEFAULT);
    assert_int_equal(arch.dtype, DTYPE_N);
    assert_false(arch.tied_embeddings || arch.qkv_bias || arch.o_bias || arch.mlp_bias);
    assert_false(arch.qk_norm);
    assert_int_equal(arch.window, 0);
    assert_int_equal(arch.bos, -1);
    assert_int_equal(arch.n_eos, 1);
    assert_float_equal(arch.init_std, 0.02, 0);

    assert_loads(&arch, "{\"num_key_value_heads\": null}");
    assert_int_equal(arch.n_kv_heads, 6);
    assert_loads(&arch, "{\"architectures\": [\"Qwen3ForCausalLM\"]}");
    assert_int_equal(arch.head_dim, 128);
}

static void each_architecture_has_its_biases_and_norms(void **state)
{
    (void)state;
    static const struct {
        const char *changes;
        bool qkv_bias, o_bias, mlp_bias, qk_norm;
    } cases[] = {
        {"{\"attention_bias\": true}", true, true, false, false},
        {"{\"mlp_bias\": true}", false, false, true, false},
        {"{\"architectures\": [\"MistralForCausalLM\"]}", false, false, false, false},
        {"{\"architectures\": [\"Qwen2ForCausalLM\"]}", true, false, false, false},
        {"{\"architectures\": [\"Qwen3ForCausalLM\"]}", false, false, false, true},
        {"{\"architectures\": [\"Qwen3ForCausalLM\"], \"attention_bias\": true}", true, true, false,
         true},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_arch arch;
        assert_loads(&arch, cases[i].changes);
        assert_int_equal(arch.qkv_bias, cases[i].qkv_bias);
        assert_int_equal(arch.o_bias, cases[i].o_bias);
        assert_int_equal(arch.mlp_bias, cases[i].mlp_bias);
        assert_int_equal(arch.qk_norm, cases[i].qk_norm);
    }
}

static void windows_hold_for_the_layers_that_the_file_says(void **state)
{
    (void)state;
#define MISTRAL "\"architectures\": [\"MistralForCausalLM\"]"
#define QWEN2   "\"architectures\": [\"Qwen2ForCausalLM\"]"
    static const struct {
        const char *changes;
        int window, window_first;
    } cases[] = {
        {"{\"sliding_window\": 8}", 0, 0},
        {"{" MISTRAL "}", 4096, 0},
        {"{" MISTRAL ", \"sliding_window\": null}", 0, 0},
        {"{" MISTRAL ", \"sliding_window\": 8}", 8, 0},
        {"{" QWEN2 ", \"sliding_window\": 8}", 0, 0},
        {"{" QWEN2 ", \"sliding_window\": 8, \"use_sliding_window\": true}", 0, 0},
        {"{" QWEN2 ", \"sliding_window\": 8, \"use_sliding_window\": true,"
         " \"max_window_layers\": 3}",
         8, 3},
        {"{" QWEN2 ", \"sliding_window\": 8, \"use_sliding_window\": true, \"layer_types\":"
         " [\"full_attention\", \"sliding_attention\", \"sliding_attention\","
         "  \"sliding_attention\"]}",
         8, 1},
        {"{\"layer_types\": [\"full_attention\", \"full_attention\", \"full_attention\","
         " \"full_attention\"]}",
         0, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_arch arch;
        assert_loads(&arch, cases[i].changes);
        assert_int_equal(arch.window, cases[i].window);
        assert_int_equal(arch.window_first, cases[i].window_first);
    }
}

static void a_softcap_is_read_for_every_architecture(void **state)
{
    (void)state;
    static const struct {
        const char *changes;
        float softcap;
    } cases[] = {
        {"{}", 0},
        {"{\"attn_logit_softcapping\": null, \"final_logit_softcapping\": null}", 0},
        {"{\"attn_logit_softcapping\": 50.0}", 50},
        {"{" QWEN2 ", \"attn_logit_softcapping\": 20}", 20},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_arch arch;
        assert_loads(&arch, cases[i].changes);
        assert_float_equal(arch.softcap, cases[i].softcap, 0);
    }
}

/* Changes to the base config, and what the message says. */
static const char *const refused[][2] = {
    {"{\"architectures\": \"REMOVE\"}", "architectures is missing"},
    {"{\"architectures\": []}", "architectures is []"},
    {"{\"architectures\": [\"GPT2LMHeadModel\"]}",
     "GPT2LMHeadModel is not supported; supported: LlamaForCausalLM, MistralForCausalLM, "
     "Qwen2ForCausalLM, Qwen3ForCausalLM"},
    {"{\"architectures\": [\"LLaMAForCausalLM\"]}", "the nearest: LlamaForCausalLM"},
    {"{\"hidden_size\": \"REMOVE\"}", "hidden_size is missing; expected a whole number"},
    {"{\"hidden_size\": 0}", "hidden_size is 0; expected a whole number from 1 to 65536"},
    {"{\"hidden_size\": -48}", "hidden_size is -48"},
    {"{\"hidden_size\": 48.5}", "hidden_size is 48.5"},
    {"{\"hidden_size\": \"48\"}", "hidden_size is \"48\""},
    {"{\"hidden_size\": 4611686018427387904}", "hidden_size is 4611686018427387904"},
    {"{\"num_hidden_layers\": 513}", "num_hidden_layers is 513"},
    {"{\"vocab_size\": 2000000}", "vocab_size is 2000000"},
    {"{\"max_position_embeddings\": 1e300}", "max_position_embeddings is 1e300"},
    {"{\"rms_norm_eps\": -1e-6}", "rms_norm_eps is -"},
    {"{\"tie_word_embeddings\": 1}", "tie_word_embeddings is 1; expected true or false"},
    {"{\"num_key_value_heads\": 4}", "6 is not a multiple of num_key_value_heads 4"},
    {"{\"num_key_value_heads\": 12}", "num_key_value_heads is 12"},
    {"{\"num_attention_heads\": 5, \"num_key_value_heads\": 5}",
     "hidden_size 48 is not a multiple of num_attention_heads 5"},
    {"{\"head_dim\": 7}", "head_dim 7; expected an even head_dim"},
    {"{\"head_dim\": 512}", "head_dim is 512"},
    {"{\"num_attention_heads\": 60000, \"head_dim\": 64}", "60000 heads of head_dim 64"},
    {"{\"attn_logit_softcapping\": 0}",
     "attn_logit_softcapping is 0; expected a number from 0.001 to 1e+06"},
    {"{\"attn_logit_softcapping\": -50}", "attn_logit_softcapping is -50"},
    {"{\"attn_logit_softcapping\": \"50\"}", "attn_logit_softcapping is \"50\""},
    {"{\"final_logit_softcapping\": 30.0}", "final_logit_softcapping is 30.0; expected null"},
    {"{\"hidden_act\": \"gelu\"}", "hidden_act is \"gelu\"; expected \"silu\""},
    {"{\"quantization_config\": {\"quant_method\": \"gptq\"}}", "method gptq"},
    {"{\"quantization_config\": 8}", "quantization_config"},
    {"{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor is 0.5"},
    {"{\"rope_parameters\": {\"partial_rotary_factor\": 0.5}}",
     "rope_parameters.partial_rotary_factor is 0.5"},
    {"{" QWEN2 ", \"attention_bias\": true}", "attention_bias is true"},
    {"{" MISTRAL ", \"mlp_bias\": true}", "mlp_bias is true"},
    {"{" MISTRAL ", \"sliding_window\": 0}", "sliding_window is 0"},
    {"{\"layer_types\": [\"full_attention\"]}", "one name for each layer"},
    {"{\"layer_types\": [\"full_attention\", \"sliding_attention\", \"full_attention\","
     " \"full_attention\"]}",
     "layers that alternate are not supported"},
    {"{\"layer_types\": [\"chunked_attention\", \"full_attention\", \"full_attention\","
     " \"full_attention\"]}",
     "chunked_attention"},
    {"{" QWEN2 ", \"layer_types\": [\"full_attention\", \"full_attention\","
     " \"full_attention\", \"sliding_attention\"]}",
     "because no window is set"},
    {"{" MISTRAL ", \"layer_types\": [\"full_attention\", \"full_attention\","
     " \"full_attention\", \"full_attention\"]}",
     "because a window is set"},
    {"{\"rope_theta\": 0}", "rope_theta is 0"},
    {"{\"rope_scaling\": 4}", "rope_scaling is 4; expected an object"},
    {"{\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"linear\", \"factor\": 4.0}}}",
     "rope_parameters.full_attention is {\"rope_type\":\"linear\",\"factor\":4.0}; expected the same "
     "parameters for all layers"},
    {"{\"rope_parameters\": {\"sliding_attention\": {\"rope_theta\": 1e4}}}",
     "rope_parameters.sliding_attention"},
    {"{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}}",
     "rope_scaling.type is \"dynamic\"; expected default, linear, llama3 or yarn"},
    {"{\"rope_parameters\": {\"rope_type\": \"longrope\"}}",
     "rope_parameters.rope_type is \"longrope\""},
    {"{\"rope_scaling\": {\"type\": \"linear\"}}", "rope_scaling.factor is missing"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}}", "rope_scaling.factor is 0"},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4,"
     " \"high_freq_factor\": 4}}",
     "rope_scaling.high_freq_factor is 4; expected more than low_freq_factor"},
    {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 8, \"beta_fast\": 0.5}}",
     "rope_scaling.beta_fast is 0.5"},
    {"{\"torch_dtype\": \"float8_e4m3fn\"}", "torch_dtype is \"float8_e4m3fn\""},
    {"{\"eos_token_id\": 100}", "eos_token_id is 100; expected token ids below vocab_size"},
    {"{\"eos_token_id\": [1, \"2\"]}", "eos_token_id is [1,\"2\"]"},
    {"{\"eos_token_id\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}", "at most 16"},
    {"{\"bos_token_id\": 100}", "bos_token_id is 100"},
};

static void what_cannot_be_run_is_refused_with_its_key(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        struct model_arch arch;
        if (load_changed(&arch, refused[i][0]) == 0)
            fail_msg("%s is accepted", refused[i][0]);
        assert_error(ERR_DATA, refused[i][1]);
        assert_contains(err_get(), "changed.json: ");
    }
}

static void a_config_that_is_no_object_is_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "[]", "3", "{\"architectures\": ", "{\"a\": NaN}"};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct model_arch arch;
        char *path = test_write_text("broken.json", texts[i]);
        assert_int_equal(arch_load(&arch, path), -1);
        assert_error(ERR_DATA, "broken.json");
        free(path);
    }
}

static void generation_config_says_which_tokens_end_a_sequence(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int n_eos, eos[2];
    } cases[] = {
        {"{\"eos_token_id\": 7}", 1, {7}},
        {"{\"eos_token_id\": [8, 9], \"bos_token_id\": 5}", 2, {8, 9}},
        {"{\"eos_token_id\": []}", 0, {0}},
        {"{\"eos_token_id\": null}", 1, {2}},
        {"{\"temperature\": 0.6}", 1, {2}},
    };
    free(test_write_text("config.json", base_config));
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_arch arch;
        free(test_write_text("generation_config.json", cases[i].text));
        assert_int_equal(arch_load(&arch, test_dir()), 0);
        assert_int_equal(arch.n_eos, cases[i].n_eos);
        for (int j = 0; j < arch.n_eos; j++)
            assert_int_equal(arch.eos[j], cases[i].eos[j]);
    }
    struct model_arch arch;
    free(test_write_text("generation_config.json", "{\"eos_token_id\": \"</s>\"}"));
    assert_int_equal(arch_load(&arch, test_dir()), -1);
    assert_error(ERR_DATA, "generation_config.json: eos_token_id is \"</s>\"");
}

/* ---- RoPE ---- */

#define SCALING(text) "{\"head_dim\": 16, \"rope_scaling\": {" text "}}"

/* Frequencies and attention factors as Transformers 4.57.1's modeling_rope_utils.py gives them,
 * computed in float64. */
static const struct rope_case {
    const char *changes;
    int head_dim;
    double attention_factor;
    double frequency[8];
} rope_cases[] = {
    {"{\"head_dim\": 16, \"rope_theta\": 10000.0}",
     16,
     1,
     {1, 0.316227766, 0.1, 0.0316227766, 0.01, 0.00316227766, 0.001, 0.000316227766}},
    {SCALING("\"type\": \"linear\", \"factor\": 2.5"),
     16,
     1,
     {0.4, 0.126491106, 0.04, 0.0126491106, 0.004, 0.00126491106, 0.0004, 0.000126491106}},
    {"{\"head_dim\": 16, \"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 500000.0,"
     " \"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
     " \"original_max_position_embeddings\": 8192}}",
     16,
     1,
     {1, 0.193922745, 0.0376060309, 0.00729266474, 0.000524846161, 3.4281022e-05, 6.64786987e-06,
      1.28917317e-06}},
    {"{\"head_dim\": 16, \"rope_theta\": 1000000.0, \"max_position_embeddings\": 40960,"
     " \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0,"
     " \"original_max_position_embeddings\": 32768}}",
     16,
     1.138629436111989,
     {1, 0.177827941, 0.0316227766, 0.00421755994, 0.0005, 4.44569853e-05, 7.90569415e-06,
      1.40585331e-06}},
    {"{\"head_dim\": 16, \"rope_theta\": 1000000.0, \"max_position_embeddings\": 40960,"
     " \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0, \"truncate\": false,"
     " \"beta_fast\": 16.0, \"beta_slow\": 2.0, \"original_max_position_embeddings\": 32768}}",
     16,
     1.138629436111989,
     {1, 0.177827941, 0.0316227766, 0.00562341325, 0.000595679896, 4.44569853e-05, 7.90569415e-06,
      1.40585331e-06}},
    {"{\"head_dim\": 16, \"max_position_embeddings\": 4096, \"rope_scaling\": {\"type\": \"yarn\","
     " \"factor\": 40.0, \"mscale\": 1.0, \"mscale_all_dim\": 0.8, \"attention_factor\": null}}",
     16,
     1.0569662567531275,
     {1, 0.316227766, 0.1, 0.0239147248, 0.005125, 0.000849862121, 2.5e-05, 7.90569415e-06}},
    {"{\"head_dim\": 16, \"max_position_embeddings\": 4096, \"rope_scaling\": {\"type\": \"yarn\","
     " \"factor\": 8.0, \"attention_factor\": 1.5}}",
     16,
     1.5,
     {1, 0.316227766, 0.1, 0.0247052942, 0.005625, 0.00108703295, 0.000125, 3.95284708e-05}},
    {"{\"head_dim\": 12, \"max_position_embeddings\": 131072, \"rope_parameters\": {\"rope_type\":"
     " \"yarn\", \"rope_theta\": 150000.0, \"factor\": 32.0, \"truncate\": false,"
     " \"original_max_position_embeddings\": 4096}}",
     12,
     1.3465735902799727,
     {1, 0.137188631, 0.0137774798, 0.000456483919, 1.10693601e-05, 1.51859036e-06}},
    {"{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2.0,"
     " \"original_max_position_embeddings\": 4}}",
     8,
     1.0693147180559945,
     {1, 0.05, 0.005, 0.0005}},
};

static void rope_tables_have_the_reference_frequencies(void **state)
{
    (void)state;
    enum { N_POSITIONS = 301 };
    for (size_t i = 0; i < ARRAY_LEN(rope_cases); i++) {
        const struct rope_case *c = &rope_cases[i];
        struct model_arch arch;
        assert_loads(&arch, c->changes);
        assert_int_equal(arch.head_dim, c->head_dim);
        float *table = arch_rope_table(&arch, N_POSITIONS);
        assert_non_null(table);
        for (int p = 0; p < N_POSITIONS; p++) {
            const float *row = table + p * c->head_dim;
            for (int j = 0; j < c->head_dim / 2; j++) {
                double angle = p * c->frequency[j], tolerance = 1e-7 + 2e-9 * angle;
                assert_float_equal(row[j], c->attention_factor * cos(angle), 2 * tolerance);
                assert_float_equal(row[c->head_dim / 2 + j], c->attention_factor * sin(angle),
                                   2 * tolerance);
            }
        }
        free(table);
    }
}

static void yarn_extends_the_longest_sequence(void **state)
{
    (void)state;
    struct model_arch arch;
    assert_loads(&arch, rope_cases[3].changes);
    assert_int_equal(arch.max_position, 4 * 32768);
    assert_loads(&arch, rope_cases[7].changes);
    assert_int_equal(arch.max_position, 131072);
    assert_loads(&arch, rope_cases[1].changes);
    assert_int_equal(arch.max_position, 64);
}

static void both_generations_of_keys_mean_the_same(void **state)
{
    (void)state;
    struct model_arch older, newer;
    assert_loads(&older, "{\"rope_theta\": 5e5, \"torch_dtype\": \"float16\", \"rope_scaling\":"
                         " {\"type\": \"linear\", \"factor\": 4}}");
    assert_loads(&newer, "{\"dtype\": \"float16\", \"rope_parameters\": {\"rope_type\": \"linear\","
                         " \"rope_theta\": 5e5, \"factor\": 4}}");
    assert_int_equal(older.dtype, DTYPE_F16);
    assert_int_equal(newer.dtype, DTYPE_F16);
    assert_int_equal(newer.rope.kind, ROPE_LINEAR);
    assert_float_equal(newer.rope.factor, older.rope.factor, 0);
    assert_float_equal(newer.rope.theta, older.rope.theta, 0);
}

/* ---- sizes ---- */

static void shipped_architectures_have_the_published_sizes(void **state)
{
    (void)state;
    /* Parameters: the sum of tensor sizes that the published checkpoints declare. KV: 2 x layers x
     * KV heads x head_dim x 2 bytes. */
    static const struct {
        const char *path;
        size_t n_params, kv_bytes;
    } cases[] = {
        {"configs/models/qwen3-0.6b.json", 596049920, 114688},
        {"configs/models/qwen3-8b.json", 8190735360, 147456},
        {"configs/models/llama-3-8b.json", 8030261248, 131072},
        {"configs/models/minivllm.json", 507665920, 57344},
        {"configs/models/minimal.json", 869440, 768},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_arch arch;
        assert_int_equal(arch_load(&arch, cases[i].path), 0);
        assert_int_equal(arch.dtype, DTYPE_BF16);
        assert_int_equal(arch_n_params(&arch), cases[i].n_params);
        assert_int_equal(arch_kv_bytes_per_token(&arch, DTYPE_BF16), cases[i].kv_bytes);
    }
}

static void biases_count_as_parameters(void **state)
{
    (void)state;
    struct model_arch plain, biased;
    assert_loads(&plain, "{}");
    assert_loads(&biased, "{\"attention_bias\": true, \"mlp_bias\": true}");
    /* q 48, k 16, v 16, o 48; gate 40, up 40, down 48; four layers */
    assert_int_equal(arch_n_params(&biased) - arch_n_params(&plain), 4 * (128 + 128));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absent_keys_have_the_library_defaults),
        cmocka_unit_test(each_architecture_has_its_biases_and_norms),
        cmocka_unit_test(windows_hold_for_the_layers_that_the_file_says),
        cmocka_unit_test(a_softcap_is_read_for_every_architecture),
        cmocka_unit_test(what_cannot_be_run_is_refused_with_its_key),
        cmocka_unit_test(a_config_that_is_no_object_is_refused),
        cmocka_unit_test(generation_config_says_which_tokens_end_a_sequence),
        cmocka_unit_test(rope_tables_have_the_reference_frequencies),
        cmocka_unit_test(yarn_extends_the_longest_sequence),
        cmocka_unit_test(both_generations_of_keys_mean_the_same),
        cmocka_unit_test(shipped_architectures_have_the_published_sizes),
        cmocka_unit_test(biases_count_as_parameters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
