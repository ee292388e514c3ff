/* weights.c - see weights.h. */
#include "engine/weights.h"

#include "engine/weight_cache.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARTS       3
#define MAX_TENSOR_NAME 96

#define EMBED_TENSOR "model.embed_tokens.weight"
#define HEAD_TENSOR  "lm_head.weight"

enum dim { DIM_HIDDEN, DIM_FFN, DIM_VOCAB, DIM_HEAD, DIM_Q, DIM_KV };

enum condition { ALWAYS, IF_UNTIED, IF_QKV_BIAS, IF_O_BIAS, IF_MLP_BIAS, IF_QK_NORM };

/* A matrix is a struct weight, which may be gated; gains and biases are f32 arrays. */
enum binding_kind { MATRIX, GATED, GAIN, BIAS };

/* A tensor of the checkpoint: [rows, columns of the binding], or [rows] for gains and biases. */
struct part {
    const char *name; /* within its layer */
    enum dim rows;
};

/* One field of struct model or struct model_layer and the tensors that are stacked in it. */
struct binding {
    enum binding_kind kind;
    enum condition when;
    size_t field; /* offset in its struct */
    enum dim columns;
    struct part part[MAX_PARTS];
};

#define MODEL(field) offsetof(struct model, field)
#define LAYER(field) offsetof(struct model_layer, field)

/* clang-format off */
static const struct binding model_bindings[] = {
    {MATRIX, ALWAYS,    MODEL(embed),      DIM_HIDDEN, {{EMBED_TENSOR, DIM_VOCAB}}},
    {MATRIX, IF_UNTIED, MODEL(lm_head),    DIM_HIDDEN, {{HEAD_TENSOR, DIM_VOCAB}}},
    {GAIN,   ALWAYS,    MODEL(final_gain), 0,          {{"model.norm.weight", DIM_HIDDEN}}},
};

static const struct binding layer_bindings[] = {
    {MATRIX, ALWAYS, LAYER(qkv), DIM_HIDDEN, {{"self_attn.q_proj.weight", DIM_Q},
                                              {"self_attn.k_proj.weight", DIM_KV},
                                              {"self_attn.v_proj.weight", DIM_KV}}},
    {MATRIX, ALWAYS, LAYER(o), DIM_Q, {{"self_attn.o_proj.weight", DIM_HIDDEN}}},
    {GATED, ALWAYS, LAYER(gate_up), DIM_HIDDEN, {{"mlp.gate_proj.weight", DIM_FFN},
                                                 {"mlp.up_proj.weight", DIM_FFN}}},
    {MATRIX, ALWAYS, LAYER(down), DIM_FFN, {{"mlp.down_proj.weight", DIM_HIDDEN}}},

    {GAIN, ALWAYS,     LAYER(attn_gain), 0, {{"input_layernorm.weight", DIM_HIDDEN}}},
    {GAIN, ALWAYS,     LAYER(mlp_gain),  0, {{"post_attention_layernorm.weight", DIM_HIDDEN}}},
    {GAIN, IF_QK_NORM, LAYER(q_gain),    0, {{"self_attn.q_norm.weight", DIM_HEAD}}},
    {GAIN, IF_QK_NORM, LAYER(k_gain),    0, {{"self_attn.k_norm.weight", DIM_HEAD}}},

    {BIAS, IF_QKV_BIAS, LAYER(qkv_bias), 0, {{"self_attn.q_proj.bias", DIM_Q},
                                             {"self_attn.k_proj.bias", DIM_KV},
                                             {"self_attn.v_proj.bias", DIM_KV}}},
    {BIAS, IF_O_BIAS,   LAYER(o_bias),       0, {{"self_attn.o_proj.bias", DIM_HIDDEN}}},
    {BIAS, IF_MLP_BIAS, LAYER(gate_up_bias), 0, {{"mlp.gate_proj.bias", DIM_FFN},
                                                 {"mlp.up_proj.bias", DIM_FFN}}},
    {BIAS, IF_MLP_BIAS, LAYER(down_bias),    0, {{"mlp.down_proj.bias", DIM_HIDDEN}}},
};
/* clang-format on */

static size_t dim_size(const struct model_arch *arch, enum dim dim)
{
    switch (dim) {
    case DIM_HIDDEN: return (size_t)arch->hidden;
    case DIM_FFN: return (size_t)arch->ffn;
    case DIM_VOCAB: return (size_t)arch->vocab;
    case DIM_HEAD: return (size_t)arch->head_dim;
    case DIM_Q: return (size_t)arch->n_heads * (size_t)arch->head_dim;
    case DIM_KV: return (size_t)arch->n_kv_heads * (size_t)arch->head_dim;
    }
    return 0;
}

static bool applies(const struct model_arch *arch, enum condition when)
{
    switch (when) {
    case ALWAYS: return true;
    case IF_UNTIED: return !arch->tied_embeddings;
    case IF_QKV_BIAS: return arch->qkv_bias;
    case IF_O_BIAS: return arch->o_bias;
    case IF_MLP_BIAS: return arch->mlp_bias;
    case IF_QK_NORM: return arch->qk_norm;
    }
    return false;
}

static bool is_matrix(const struct binding *b)
{
    return b->kind == MATRIX || b->kind == GATED;
}

static int n_parts(const struct binding *b)
{
    int n = 0;
    while (n < MAX_PARTS && b->part[n].name)
        n++;
    return n;
}

static size_t n_rows(const struct model_arch *arch, const struct binding *b)
{
    size_t rows = 0;
    for (int i = 0; i < n_parts(b); i++)
        rows += dim_size(arch, b->part[i].rows);
    return rows;
}

/* ---- random initialisation ---- */

#define BYTE_SUM_MEAN 510
#define BYTE_SUM_STD  147.8 /* sqrt(4 (256^2 - 1) / 12) */

static void bell_init(struct random_bell *bell, double std)
{
    for (int sum = 0; sum < BYTE_SUMS; sum++) {
        float value = (float)((sum - BYTE_SUM_MEAN) * std / BYTE_SUM_STD);
        uint32_t bits;
        memcpy(&bits, &value, sizeof(bits));
        bell->value[sum] = (uint16_t)(bits >> 16); /* as bfloat16, rounded towards 0 */
    }
}

static uint64_t stream_of(uint64_t seed, const char *name)
{
    uint64_t stream = mix64(seed);
    for (const char *c = name; *c; c++)
        stream = mix64(stream ^ (unsigned char)*c);
    return stream;
}

/* ---- loading ---- */

struct loader {
    struct model *m;
    const struct weight_source *source;
    struct random_bell bell;
};

static void tensor_name(char name[MAX_TENSOR_NAME], const struct part *part, int layer)
{
    if (layer < 0)
        snprintf(name, MAX_TENSOR_NAME, "%s", part->name);
    else
        snprintf(name, MAX_TENSOR_NAME, "model.layers.%d.%s", layer, part->name);
}

/* What a part of a matrix was read from. */
struct rows {
    const struct tensor *tensor; /* of the checkpoint, or NULL    */
    void *owned;                 /* memory made for them, or NULL */
};

/* Finds one tensor of a matrix in the checkpoint, or says how it is drawn. free_rows is called in
 * any case. */
static int get_rows(struct weight_part *out, struct rows *rows, const struct loader *loader,
                    const char *name, const size_t dim[2])
{
    *out = (struct weight_part){.n_rows = (int)dim[0]};
    if (!loader->source->checkpoint) {
        uint64_t stream = stream_of(loader->source->init_seed, name);
        out->random = (struct random_rows){stream, &loader->bell};
        return 0;
    }
    const struct tensor *t = safetensors_get(loader->source->checkpoint, name, 2, dim);
    rows->tensor = t;
    if (!t)
        return -1;
    out->rows = t->data;
    out->dtype = t->dtype;
    if ((uintptr_t)t->data % dtype_bytes(t->dtype) == 0)
        return 0;
    /* The format does not promise that data are aligned; the backend needs it. */
    size_t bytes = dim[0] * dim[1] * dtype_bytes(t->dtype);
    char text[32];
    rows->owned = malloc(bytes); /* the model's file decides how much */
    if (!rows->owned)
        return err_set(ERR_RESOURCE, "no host memory for tensor %s (%s)", name,
                       format_bytes(text, (double)bytes));
    out->rows = memcpy(rows->owned, t->data, bytes);
    return 0;
}

static void free_rows(struct rows *rows, const struct loader *loader)
{
    if (rows->tensor)
        safetensors_release(loader->source->checkpoint, rows->tensor);
    free(rows->owned);
}

static int load_matrix(struct loader *loader, const struct binding *b, struct weight *w, int layer)
{
    struct model *m = loader->m;
    struct weight_part parts[MAX_PARTS];
    struct rows rows[MAX_PARTS] = {0};
    *w = (struct weight){.dtype = m->info.dtype,
                         .quantization = m->info.quantization,
                         .gated = b->kind == GATED,
                         .n_in = (int)dim_size(&m->arch, b->columns)};
    if (weight_cache_get(m->cache, w)) {
        m->info.weight_bytes += w->bytes;
        return 0;
    }
    int rc = 0;
    for (int i = 0; rc == 0 && i < n_parts(b); i++) {
        char name[MAX_TENSOR_NAME];
        const size_t dim[] = {dim_size(&m->arch, b->part[i].rows), (size_t)w->n_in};
        tensor_name(name, &b->part[i], layer);
        rc = get_rows(&parts[i], &rows[i], loader, name, dim);
    }
    if (rc == 0)
        rc = m->device->ops->weight_load(m->device, w, parts, n_parts(b));
    for (int i = 0; i < MAX_PARTS; i++)
        free_rows(&rows[i], loader);
    if (rc == 0)
        weight_cache_add(m->cache, w);
    m->info.weight_bytes += w->bytes;
    return rc;
}

/* One gain that is no finite number makes NaN of all that comes after it, and token 0 of every
 * answer. Training that diverges leaves all tensors so; these are the ones that take no time. */
static int check_finite(const float *x, size_t n, const struct tensor *t)
{
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            return err_set(ERR_DATA, "%s: tensor %s: element %zu is %s; expected finite numbers",
                           t->file, t->name, i, isnan(x[i]) ? "NaN" : "infinite");
    }
    return 0;
}

/* Fills out with the gains or biases of one tensor, as f32. */
static int get_vector(float *out, const struct loader *loader, enum binding_kind kind,
                      const char *name, size_t n)
{
    if (!loader->source->checkpoint) {
        for (size_t i = 0; i < n; i++)
            out[i] = kind == GAIN ? 1 : 0;
        return 0;
    }
    const struct tensor *t = safetensors_get(loader->source->checkpoint, name, 1, &n);
    if (!t)
        return -1;
    dtype_to_f32(out, t->data, t->dtype, n);
    return check_finite(out, n, t);
}

static int load_vector(struct loader *loader, const struct binding *b, float **out, int layer)
{
    struct model *m = loader->m;
    struct device *device = m->device;
    size_t n = 0, bytes = n_rows(&m->arch, b) * sizeof(float);
    float *host = xmalloc(bytes);
    int rc = 0;
    for (int i = 0; rc == 0 && i < n_parts(b); i++) {
        char name[MAX_TENSOR_NAME];
        size_t rows = dim_size(&m->arch, b->part[i].rows);
        tensor_name(name, &b->part[i], layer);
        rc = get_vector(host + n, loader, b->kind, name, rows);
        n += rows;
    }
    if (rc == 0) {
        *out = device->ops->alloc(device, bytes);
        rc = *out ? 0 : -1;
    }
    if (rc == 0) {
        device->ops->upload(device, *out, host, bytes);
        m->info.weight_bytes += bytes;
    }
    free(host);
    return rc;
}

static int load_bindings(struct loader *loader, const struct binding *bindings, size_t n,
                         void *fields, int layer)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const struct binding *b = &bindings[i];
        void *field = (char *)fields + b->field;
        if (!applies(&loader->m->arch, b->when))
            continue;
        rc = is_matrix(b) ? load_matrix(loader, b, field, layer)
                          : load_vector(loader, b, field, layer);
    }
    return rc;
}

static bool is_same(const struct tensor *a, const struct tensor *b)
{
    size_t n = 1;
    for (int i = 0; i < a->n_dims; i++)
        n *= a->dim[i];
    return a->dtype == b->dtype && a->n_dims == b->n_dims &&
           memcmp(a->dim, b->dim, (size_t)a->n_dims * sizeof(*a->dim)) == 0 &&
           memcmp(a->data, b->data, n * dtype_bytes(a->dtype)) == 0;
}

/* A checkpoint with tied embeddings may hold a copy of them as lm_head. One that is no copy was
 * trained by itself: Transformers 5 uses it, other programs do not, and the answers differ. */
static int check_tied(const struct model_arch *arch, const struct safetensors *checkpoint)
{
    const struct tensor *head = checkpoint ? safetensors_find(checkpoint, HEAD_TENSOR) : NULL;
    if (!arch->tied_embeddings || !head)
        return 0;
    const size_t dim[] = {(size_t)arch->vocab, (size_t)arch->hidden};
    const struct tensor *embed = safetensors_get(checkpoint, EMBED_TENSOR, 2, dim);
    if (!embed)
        return -1;
    bool same = is_same(embed, head);
    safetensors_release(checkpoint, embed);
    safetensors_release(checkpoint, head);
    return same ? 0
                : err_set(ERR_DATA,
                          "%s: tensor " HEAD_TENSOR " differs from " EMBED_TENSOR
                          ", but config.json "
                          "has tie_word_embeddings true; expected false there, so that it is used, "
                          "or a checkpoint without it",
                          head->file);
}

int weights_load(struct model *m, const struct weight_source *source)
{
    if (check_tied(&m->arch, source->checkpoint) != 0)
        return -1;
    struct loader loader = {.m = m, .source = source};
    bell_init(&loader.bell, m->arch.init_std);
    m->layer = xcalloc((size_t)m->arch.n_layers, sizeof(*m->layer));
    int rc = load_bindings(&loader, model_bindings, ARRAY_LEN(model_bindings), m, -1);
    for (int i = 0; rc == 0 && i < m->arch.n_layers; i++)
        rc = load_bindings(&loader, layer_bindings, ARRAY_LEN(layer_bindings), &m->layer[i], i);
    if (rc == 0)
        weight_cache_complete(m->cache);
    return rc;
}

enum dtype weights_checkpoint_dtype(const struct safetensors *checkpoint)
{
    const struct tensor *embedding = safetensors_find(checkpoint, EMBED_TENSOR);
    return embedding ? embedding->dtype : DTYPE_F32;
}

/* ---- freeing and counting ---- */

static void free_bindings(struct model *m, const struct binding *bindings, size_t n, void *fields)
{
    struct device *device = m->device;
    for (size_t i = 0; i < n; i++) {
        void *field = (char *)fields + bindings[i].field;
        if (!is_matrix(&bindings[i]))
            device->ops->free(device, *(float **)field);
        else if (!weight_cache_owns(m->cache, field))
            device->ops->weight_free(device, field);
    }
}

void weights_free(struct model *m)
{
    if (!m->layer)
        return;
    free_bindings(m, model_bindings, ARRAY_LEN(model_bindings), m);
    for (int i = 0; i < m->arch.n_layers; i++)
        free_bindings(m, layer_bindings, ARRAY_LEN(layer_bindings), &m->layer[i]);
    free(m->layer);
    m->layer = NULL;
}

static size_t bindings_bytes(const struct model_arch *arch, const struct binding *bindings,
                             size_t n, enum dtype dtype, enum quantization quantization)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        const struct binding *b = &bindings[i];
        if (!applies(arch, b->when))
            continue;
        bytes += is_matrix(b) ? weight_bytes(n_rows(arch, b), dim_size(arch, b->columns), dtype,
                                             quantization)
                              : n_rows(arch, b) * sizeof(float);
    }
    return bytes;
}

size_t weights_bytes(const struct model_arch *arch, enum dtype dtype,
                     enum quantization quantization)
{
    return bindings_bytes(arch, model_bindings, ARRAY_LEN(model_bindings), dtype, quantization) +
           (size_t)arch->n_layers *
               bindings_bytes(arch, layer_bindings, ARRAY_LEN(layer_bindings), dtype, quantization);
}
