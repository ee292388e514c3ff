/* arch.c - see arch.h.
 *
 * A supported architecture is one row of `families`; everything else is read from the file's keys
 * with the defaults of the Transformers library. A key that would change the result in a way that
 * the forward pass cannot follow is an error, never ignored.
 */
#include "engine/arch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SHOWN_VALUE 60 /* bytes of a wrong value in a message */

#define DEFAULT_WINDOW       4096 /* Transformers' defaults for absent keys */
#define DEFAULT_WINDOW_FIRST 28
#define DEFAULT_NORM_EPS     1e-6
#define DEFAULT_ROPE_THETA   1e4
#define DEFAULT_INIT_STD     0.02

enum window_rule {
    WINDOW_NONE,  /* sliding_window is not read                                        */
    WINDOW_ALL,   /* sliding_window holds for all layers, null switches it off         */
    WINDOW_UPPER, /* with use_sliding_window: for the layers from max_window_layers on */
};

struct family {
    const char *name;
    int head_dim; /* when the file gives none; 0: hidden_size / num_attention_heads */
    enum window_rule window;
    bool qkv_bias;       /* always there                                           */
    bool attention_bias; /* the key attention_bias adds biases to q, k, v and o    */
    bool mlp_bias;       /* the key mlp_bias adds biases to gate, up and down      */
    bool qk_norm;
};

static const struct family families[] = {
    {.name = "LlamaForCausalLM", .attention_bias = true, .mlp_bias = true},
    {.name = "MistralForCausalLM", .window = WINDOW_ALL},
    {.name = "Qwen2ForCausalLM", .window = WINDOW_UPPER, .qkv_bias = true},
    {.name = "Qwen3ForCausalLM",
     .head_dim = 128,
     .window = WINDOW_UPPER,
     .attention_bias = true,
     .qk_norm = true},
};

/* A JSON object of a file, with what to call it in messages. */
struct object {
    const char *file;
    const char *prefix; /* "" or "rope_scaling." */
    const json_t *json;
};

/* ---- reading values ---- */

/* Absent and null mean the same in config.json: the default. */
static bool is_given(const struct object *o, const char *key)
{
    const json_t *value = json_object_get(o->json, key);
    return value && !json_is_null(value);
}

static int wrong_value(const struct object *o, const char *key, const char *expected)
{
    const json_t *value = json_object_get(o->json, key);
    if (!value)
        return err_set(ERR_DATA, "%s: %s%s is missing; expected %s", o->file, o->prefix, key,
                       expected);
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(12));
    err_set(ERR_DATA, "%s: %s%s is %.*s; expected %s", o->file, o->prefix, key, MAX_SHOWN_VALUE,
            text ? text : "?", expected);
    free(text);
    return -1;
}

static int read_int(int *out, const struct object *o, const char *key, int min, int max)
{
    const json_t *value = json_object_get(o->json, key);
    if (!json_is_integer(value) || json_integer_value(value) < min ||
        json_integer_value(value) > max) {
        char expected[80];
        snprintf(expected, sizeof(expected), "a whole number from %d to %d", min, max);
        return wrong_value(o, key, expected);
    }
    *out = (int)json_integer_value(value);
    return 0;
}

static int read_number(double *out, const struct object *o, const char *key, double min, double max)
{
    const json_t *value = json_object_get(o->json, key);
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number >= min && number <= max)) {
        char expected[80];
        snprintf(expected, sizeof(expected), "a number from %g to %g", min, max);
        return wrong_value(o, key, expected);
    }
    *out = number;
    return 0;
}

static int read_bool(bool *out, const struct object *o, const char *key)
{
    const json_t *value = json_object_get(o->json, key);
    if (!json_is_boolean(value))
        return wrong_value(o, key, "true or false");
    *out = json_is_true(value);
    return 0;
}

/* The optional_ readers leave *out, which holds the default, when the key is not given. */
static int optional_int(int *out, const struct object *o, const char *key, int min, int max)
{
    return is_given(o, key) ? read_int(out, o, key, min, max) : 0;
}

static int optional_number(double *out, const struct object *o, const char *key, double min,
                           double max)
{
    return is_given(o, key) ? read_number(out, o, key, min, max) : 0;
}

static int optional_bool(bool *out, const struct object *o, const char *key)
{
    return is_given(o, key) ? read_bool(out, o, key) : 0;
}

/* ---- architecture and what is not supported ---- */

static int unknown_family(const struct object *config, const char *name)
{
    const char *names[ARRAY_LEN(families)];
    struct str list = {0};
    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        names[i] = families[i].name;
        str_appendf(&list, "%s%s", i > 0 ? ", " : "", names[i]);
    }
    const char *nearest = nearest_name(name, names, ARRAY_LEN(names));
    err_set(ERR_DATA, "%s: the architecture %.*s is not supported; supported: %s%s%s", config->file,
            MAX_SHOWN_VALUE, name, list.data, nearest ? "; the nearest: " : "",
            nearest ? nearest : "");
    str_free(&list);
    return -1;
}

static const struct family *find_family(const struct object *config)
{
    const json_t *list = json_object_get(config->json, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name) {
        wrong_value(config, "architectures", "a list with the name of one architecture");
        return NULL;
    }
    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        if (strcmp(families[i].name, name) == 0)
            return &families[i];
    }
    unknown_family(config, name);
    return NULL;
}

static int refuse_partial_rotary(const struct object *o)
{
    double factor = 1;
    if (optional_number(&factor, o, "partial_rotary_factor", 0, 1) != 0)
        return -1;
    return factor == 1 ? 0
                       : wrong_value(o, "partial_rotary_factor",
                                     "1: partial rotary embedding "
                                     "is not supported");
}

static int refuse_unsupported(const struct object *config)
{
    const json_t *quantization = json_object_get(config->json, "quantization_config");
    const char *method = json_string_value(json_object_get(quantization, "quant_method"));
    if (is_given(config, "quantization_config"))
        return err_set(ERR_DATA,
                       "%s: quantization_config: weights quantised by the method %.*s are not "
                       "supported; expected a bfloat16, float16 or float32 checkpoint",
                       config->file, MAX_SHOWN_VALUE, method ? method : "?");
    const char *act = json_string_value(json_object_get(config->json, "hidden_act"));
    if (is_given(config, "hidden_act") && (!act || strcmp(act, "silu") != 0))
        return wrong_value(config, "hidden_act", "\"silu\"");
    if (is_given(config, "final_logit_softcapping"))
        return wrong_value(config, "final_logit_softcapping",
                           "null: a cap of the logits is not supported");
    return refuse_partial_rotary(config);
}

/* ---- shapes ---- */

static int read_sizes(struct model_arch *arch, const struct object *config)
{
    double eps = DEFAULT_NORM_EPS;
    if (read_int(&arch->n_layers, config, "num_hidden_layers", 1, ARCH_MAX_LAYERS) != 0 ||
        read_int(&arch->hidden, config, "hidden_size", 1, ARCH_MAX_DIM) != 0 ||
        read_int(&arch->ffn, config, "intermediate_size", 1, ARCH_MAX_DIM) != 0 ||
        read_int(&arch->vocab, config, "vocab_size", 1, ARCH_MAX_VOCAB) != 0 ||
        read_int(&arch->max_position, config, "max_position_embeddings", 1, ARCH_MAX_POSITIONS) ||
        optional_number(&eps, config, "rms_norm_eps", 0, 1) != 0 ||
        optional_number(&arch->init_std, config, "initializer_range", 0, 100) != 0 ||
        optional_bool(&arch->tied_embeddings, config, "tie_word_embeddings") != 0)
        return -1;
    arch->norm_eps = (float)eps;
    return 0;
}

static int read_heads(struct model_arch *arch, const struct object *config,
                      const struct family *family)
{
    if (read_int(&arch->n_heads, config, "num_attention_heads", 1, ARCH_MAX_DIM) != 0)
        return -1;
    arch->n_kv_heads = arch->n_heads;
    if (optional_int(&arch->n_kv_heads, config, "num_key_value_heads", 1, arch->n_heads) != 0)
        return -1;
    if (arch->n_heads % arch->n_kv_heads != 0)
        return err_set(ERR_DATA,
                       "%s: num_attention_heads %d is not a multiple of num_key_value_heads %d",
                       config->file, arch->n_heads, arch->n_kv_heads);

    arch->head_dim = family->head_dim;
    if (optional_int(&arch->head_dim, config, "head_dim", 1, ARCH_MAX_HEAD_DIM) != 0)
        return -1;
    if (arch->head_dim == 0) {
        if (arch->hidden % arch->n_heads != 0)
            return err_set(ERR_DATA,
                           "%s: hidden_size %d is not a multiple of num_attention_heads %d, and "
                           "head_dim is not given",
                           config->file, arch->hidden, arch->n_heads);
        arch->head_dim = arch->hidden / arch->n_heads;
    }
    if (arch->head_dim % 2 != 0 || arch->head_dim > ARCH_MAX_HEAD_DIM ||
        arch->n_heads > ARCH_MAX_DIM / arch->head_dim)
        return err_set(ERR_DATA,
                       "%s: %d heads of head_dim %d; expected an even head_dim up to %d and all "
                       "heads together up to %d",
                       config->file, arch->n_heads, arch->head_dim, ARCH_MAX_HEAD_DIM,
                       ARCH_MAX_DIM);
    return 0;
}

static int read_biases(struct model_arch *arch, const struct object *config,
                       const struct family *family)
{
    bool attention_bias = false, mlp_bias = false;
    if (optional_bool(&attention_bias, config, "attention_bias") != 0 ||
        optional_bool(&mlp_bias, config, "mlp_bias") != 0)
        return -1;
    if (attention_bias && !family->attention_bias)
        return wrong_value(config, "attention_bias", "false for this architecture");
    if (mlp_bias && !family->mlp_bias)
        return wrong_value(config, "mlp_bias", "false for this architecture");
    arch->qkv_bias = family->qkv_bias || attention_bias;
    arch->o_bias = attention_bias;
    arch->mlp_bias = mlp_bias;
    arch->qk_norm = family->qk_norm;
    return 0;
}

static int read_softcap(struct model_arch *arch, const struct object *config)
{
    double cap = 0;
    if (optional_number(&cap, config, "attn_logit_softcapping", 1e-3, 1e6) != 0)
        return -1;
    arch->softcap = (float)cap;
    return 0;
}

/* ---- sliding window ---- */

/* layer_types says for each layer what max_window_layers says in one number. It must describe full
 * attention below some layer and the window above it. */
static int read_layer_types(struct model_arch *arch, const struct object *config,
                            const struct family *family)
{
    const json_t *list = json_object_get(config->json, "layer_types");
    if (json_array_size(list) != (size_t)arch->n_layers)
        return wrong_value(config, "layer_types", "a list with one name for each layer");
    int n_full = 0;
    for (int i = 0; i < arch->n_layers; i++) {
        const char *type = json_string_value(json_array_get(list, (size_t)i));
        bool full = type && strcmp(type, "full_attention") == 0;
        if (!full && (!type || strcmp(type, "sliding_attention") != 0))
            return wrong_value(config, "layer_types", "full_attention or sliding_attention");
        if (full && n_full < i)
            return wrong_value(config, "layer_types",
                               "full_attention below some layer and sliding_attention from it on: "
                               "layers that alternate are not supported");
        n_full += full;
    }
    if (n_full < arch->n_layers && arch->window == 0)
        return wrong_value(config, "layer_types", "full_attention, because no window is set");
    if (family->window == WINDOW_ALL && arch->window > 0 && n_full > 0)
        return wrong_value(config, "layer_types", "sliding_attention, because a window is set");
    arch->window_first = n_full;
    return 0;
}

static int read_window(struct model_arch *arch, const struct object *config,
                       const struct family *family)
{
    bool used = family->window == WINDOW_ALL;
    if (family->window == WINDOW_UPPER && optional_bool(&used, config, "use_sliding_window") != 0)
        return -1;
    const json_t *window = json_object_get(config->json, "sliding_window");
    if (used && !json_is_null(window)) {
        arch->window = DEFAULT_WINDOW;
        if (optional_int(&arch->window, config, "sliding_window", 1, ARCH_MAX_POSITIONS) != 0)
            return -1;
    }
    if (arch->window > 0 && family->window == WINDOW_UPPER) {
        arch->window_first = DEFAULT_WINDOW_FIRST;
        if (optional_int(&arch->window_first, config, "max_window_layers", 0, INT32_MAX) != 0)
            return -1;
    }
    if (is_given(config, "layer_types") && read_layer_types(arch, config, family) != 0)
        return -1;
    if (arch->window_first >= arch->n_layers)
        arch->window = 0;
    if (arch->window == 0)
        arch->window_first = 0;
    return 0;
}

/* ---- rotary embedding ---- */

static const char *const rope_kind_names[] = {
    [ROPE_DEFAULT] = "default",
    [ROPE_LINEAR] = "linear",
    [ROPE_LLAMA3] = "llama3",
    [ROPE_YARN] = "yarn",
};

static int read_rope_kind(struct rope_config *rope, const struct object *scaling)
{
    const char *key = is_given(scaling, "rope_type") ? "rope_type" : "type";
    if (!is_given(scaling, key)) {
        rope->kind = ROPE_DEFAULT;
        return 0;
    }
    const char *name = json_string_value(json_object_get(scaling->json, key));
    for (size_t i = 0; name && i < ARRAY_LEN(rope_kind_names); i++) {
        if (strcmp(name, rope_kind_names[i]) == 0) {
            rope->kind = (enum rope_scaling_kind)i;
            return 0;
        }
    }
    return wrong_value(scaling, key, "default, linear, llama3 or yarn");
}

static int read_llama3(struct rope_config *rope, const struct object *scaling)
{
    if (read_number(&rope->low_freq_factor, scaling, "low_freq_factor", 1e-3, 1e6) != 0 ||
        read_number(&rope->high_freq_factor, scaling, "high_freq_factor", 1e-3, 1e6) != 0)
        return -1;
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return wrong_value(scaling, "high_freq_factor", "more than low_freq_factor");
    return 0;
}

static int read_yarn(struct rope_config *rope, const struct object *scaling)
{
    rope->truncate = true;
    if (optional_number(&rope->beta_fast, scaling, "beta_fast", 0, 1e6) != 0 ||
        optional_number(&rope->beta_slow, scaling, "beta_slow", 0, 1e6) != 0 ||
        optional_number(&rope->attention_factor, scaling, "attention_factor", 1e-3, 1e3) != 0 ||
        optional_number(&rope->mscale, scaling, "mscale", 0, 1e3) != 0 ||
        optional_number(&rope->mscale_all_dim, scaling, "mscale_all_dim", 0, 1e3) != 0 ||
        optional_bool(&rope->truncate, scaling, "truncate") != 0)
        return -1;
    /* 0 counts as not given, as in Transformers. */
    rope->beta_fast = rope->beta_fast > 0 ? rope->beta_fast : 32;
    rope->beta_slow = rope->beta_slow > 0 ? rope->beta_slow : 1;
    if (rope->beta_fast < rope->beta_slow)
        return wrong_value(scaling, "beta_fast", "no less than beta_slow");
    return 0;
}

/* Transformers 5 also writes parameters for each type of layer, one inside the other. */
static int refuse_nested(const struct object *scaling)
{
    static const char *const types[] = {"full_attention", "sliding_attention"};
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        if (is_given(scaling, types[i]))
            return wrong_value(scaling, types[i], "the same parameters for all layers");
    }
    return 0;
}

static int read_scaling(struct model_arch *arch, const struct object *config,
                        const struct object *scaling)
{
    struct rope_config *rope = &arch->rope;
    if (refuse_nested(scaling) != 0 || refuse_partial_rotary(scaling) != 0 ||
        read_rope_kind(rope, scaling) != 0 ||
        optional_number(&rope->theta, scaling, "rope_theta", 1.001, 1e15) != 0)
        return -1;
    if (rope->kind == ROPE_DEFAULT)
        return 0;
    if (read_number(&rope->factor, scaling, "factor", 1, 1e6) != 0)
        return -1;
    if (rope->kind == ROPE_LINEAR)
        return 0;

    const struct object *holder =
        is_given(scaling, "original_max_position_embeddings") ? scaling : config;
    rope->original_max_position = arch->max_position;
    if (optional_int(&rope->original_max_position, holder, "original_max_position_embeddings", 1,
                     ARCH_MAX_POSITIONS) != 0)
        return -1;
    return rope->kind == ROPE_LLAMA3 ? read_llama3(rope, scaling) : read_yarn(rope, scaling);
}

/* Transformers 4 writes rope_theta and rope_scaling; Transformers 5 writes rope_parameters. */
static int read_rope(struct model_arch *arch, const struct object *config)
{
    arch->rope.theta = DEFAULT_ROPE_THETA;
    if (optional_number(&arch->rope.theta, config, "rope_theta", 1.001, 1e15) != 0)
        return -1;
    bool older = is_given(config, "rope_scaling");
    const char *key = older ? "rope_scaling" : "rope_parameters";
    if (!is_given(config, key))
        return 0;
    const struct object scaling = {
        .file = config->file,
        .prefix = older ? "rope_scaling." : "rope_parameters.",
        .json = json_object_get(config->json, key),
    };
    if (!json_is_object(scaling.json))
        return wrong_value(config, key, "an object");
    if (read_scaling(arch, config, &scaling) != 0)
        return -1;
    double extended = arch->rope.factor * arch->rope.original_max_position;
    if (arch->rope.kind == ROPE_YARN && extended > arch->max_position)
        arch->max_position = (int)MIN(extended, (double)ARCH_MAX_POSITIONS);
    return 0;
}

/* ---- dtype and special tokens ---- */

static int read_dtype(struct model_arch *arch, const struct object *config)
{
    const char *key = is_given(config, "dtype") ? "dtype" : "torch_dtype";
    arch->dtype = DTYPE_N;
    if (!is_given(config, key))
        return 0;
    const char *name = json_string_value(json_object_get(config->json, key));
    for (int i = 0; name && i < DTYPE_N; i++) {
        if (strcmp(name, dtype_name((enum dtype)i)) == 0)
            arch->dtype = (enum dtype)i;
    }
    return arch->dtype < DTYPE_N ? 0 : wrong_value(config, key, "bfloat16, float16 or float32");
}

/* A token id, or a list of them. */
static int read_eos(struct model_arch *arch, const struct object *o)
{
    static const char expected[] = "token ids below vocab_size, at most 16";
    const json_t *value = json_object_get(o->json, "eos_token_id");
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (n > ARCH_MAX_EOS)
        return wrong_value(o, "eos_token_id", expected);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= arch->vocab)
            return wrong_value(o, "eos_token_id", expected);
        arch->eos[i] = (int)json_integer_value(id);
    }
    arch->n_eos = (int)n;
    return 0;
}

static int read_special_tokens(struct model_arch *arch, const struct object *o)
{
    if (optional_int(&arch->bos, o, "bos_token_id", 0, arch->vocab - 1) != 0)
        return -1;
    return is_given(o, "eos_token_id") ? read_eos(arch, o) : 0;
}

/* ---- files ---- */

static int read_config(struct model_arch *arch, const struct object *config)
{
    const struct family *family = find_family(config);
    if (!family)
        return -1;
    *arch = (struct model_arch){.bos = -1, .init_std = DEFAULT_INIT_STD};
    snprintf(arch->name, sizeof(arch->name), "%s", family->name);
    if (refuse_unsupported(config) != 0 || read_sizes(arch, config) != 0 ||
        read_heads(arch, config, family) != 0 || read_biases(arch, config, family) != 0 ||
        read_softcap(arch, config) != 0 || read_window(arch, config, family) != 0 ||
        read_rope(arch, config) != 0 || read_dtype(arch, config) != 0)
        return -1;
    return read_special_tokens(arch, config);
}

static int read_file(struct model_arch *arch, const char *file,
                     int (*read)(struct model_arch *, const struct object *))
{
    json_t *root = json_read_file(file);
    if (!root)
        return -1;
    int rc = read(arch, &(struct object){.file = file, .prefix = "", .json = root});
    json_decref(root);
    return rc;
}

static int load_dir(struct model_arch *arch, const char *dir)
{
    char *config = path_join(dir, "config.json");
    char *generation = path_join(dir, "generation_config.json");
    int rc = read_file(arch, config, read_config);
    if (rc == 0 && file_exists(generation))
        rc = read_file(arch, generation, read_special_tokens);
    free(generation);
    free(config);
    return rc;
}

int arch_load(struct model_arch *out, const char *path)
{
    size_t len = strlen(path);
    if (len > 5 && strcmp(path + len - 5, ".json") == 0)
        return read_file(out, path, read_config);
    return load_dir(out, path);
}

/* ---- sizes ---- */

size_t arch_n_params(const struct model_arch *arch)
{
    size_t hidden = (size_t)arch->hidden, ffn = (size_t)arch->ffn;
    size_t q = (size_t)arch->n_heads * (size_t)arch->head_dim;
    size_t qkv = q + 2 * (size_t)arch->n_kv_heads * (size_t)arch->head_dim;

    size_t layer = qkv * hidden + q * hidden + 3 * ffn * hidden + 2 * hidden;
    layer += arch->qk_norm ? 2 * (size_t)arch->head_dim : 0;
    layer += arch->qkv_bias ? qkv : 0;
    layer += arch->o_bias ? hidden : 0;
    layer += arch->mlp_bias ? 2 * ffn + hidden : 0;

    size_t vocab_matrices = arch->tied_embeddings ? 1 : 2;
    return (size_t)arch->n_layers * layer + hidden + vocab_matrices * (size_t)arch->vocab * hidden;
}

size_t arch_kv_bytes_per_token(const struct model_arch *arch, enum dtype kv_dtype)
{
    return 2 * (size_t)arch->n_layers * (size_t)arch->n_kv_heads * (size_t)arch->head_dim *
           dtype_bytes(kv_dtype);
}
