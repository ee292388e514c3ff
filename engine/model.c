/* model.c - see engine.h (model_open and its neighbours) and model.h.
 *
 * The forward pass is at the end of this file. The residual stream is not added up where a block
 * ends: the next add_rmsnorm adds the block's output (`delta`) while it normalises.
 */
#include "engine/model.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/weight_cache.h"
#include "engine/weights.h"

/* Changes when the same files or seed give other weights than before. */
#define FINGERPRINT_VERSION 1

_Static_assert(ARCH_MAX_EOS == ARRAY_LEN(((struct model_info *)0)->eos), "eos lists differ");

/* ---- devices ---- */

static struct device *open_device(enum device_kind kind, const struct device_options *options)
{
    const struct backend *backend = backend_find(kind);
    return backend ? backend->open(options) : NULL;
}

/* The device for a model of this dtype. */
static struct device *open_model_device(const struct model_options *options, enum dtype dtype)
{
    struct device_options device_options = options->device_options;
    device_options.act_dtype = dtype;
    return open_device(options->device, &device_options);
}

int device_describe(struct device_info *out, enum device_kind kind,
                    const struct device_options *options)
{
    struct device *device = open_device(kind, options);
    if (!device)
        return -1;
    *out = device->info;
    device->ops->close(device);
    return 0;
}

/* ---- files ---- */

/* All that is known of a model before any of it is on a device. */
struct model_files {
    struct model_arch arch;
    enum dtype dtype;               /* for the device                 */
    struct safetensors *checkpoint; /* NULL: random initialisation    */
    struct tokenizer *tokenizer;    /* NULL: none                     */
};

static void files_close(struct model_files *files)
{
    safetensors_close(files->checkpoint);
    tokenizer_close(files->tokenizer);
}

static int check_path(const struct model_options *options)
{
    if (dir_exists(options->path))
        return 0;
    if (!file_exists(options->path))
        return err_set(ERR_DATA, "%s: there is no such model", options->path);
    if (!options->random_init)
        return err_set(ERR_CONFIG,
                       "%s: a file gives an architecture without weights; expected a model "
                       "directory, or random initialisation",
                       options->path);
    return 0;
}

/* The dtype of the options; "auto": what config.json says, or else the embedding's. */
static int choose_dtype(enum dtype *out, const struct model_files *files,
                        const struct model_options *options)
{
    const char *name = options->dtype ? options->dtype : "auto";
    for (int i = 0; i < DTYPE_N; i++) {
        if (strcmp(name, dtype_name((enum dtype)i)) == 0) {
            *out = (enum dtype)i;
            return 0;
        }
    }
    if (strcmp(name, "auto") != 0)
        return err_set(ERR_CONFIG,
                       "unknown dtype '%s'; expected auto, bfloat16, float16 or float32", name);
    *out = files->arch.dtype;
    if (*out == DTYPE_N)
        *out = files->checkpoint ? weights_checkpoint_dtype(files->checkpoint) : DTYPE_F32;
    return 0;
}

static int check_quantization(const struct model_options *options)
{
    if (options->quantization == QUANTIZATION_NONE || options->device == DEVICE_CPU)
        return 0;
    return err_set(ERR_CONFIG,
                   "quantization %s is for the CPU, and this model is for %s; expected "
                   "quantization none, or device cpu",
                   quantization_name(options->quantization), device_kind_name(options->device));
}

static int open_tokenizer(struct tokenizer **out, const struct model_options *options)
{
    if (options->tokenizer)
        return tokenizer_open(out, options->tokenizer);
    char *file = path_join(options->path, "tokenizer.json");
    int rc = file_exists(file) ? tokenizer_open(out, options->path) : 0;
    free(file);
    return rc;
}

static int files_open(struct model_files *files, const struct model_options *options)
{
    *files = (struct model_files){0};
    if (check_quantization(options) != 0 || check_path(options) != 0 ||
        arch_load(&files->arch, options->path) != 0)
        return -1;
    if ((!options->random_init && safetensors_open(&files->checkpoint, options->path) != 0) ||
        choose_dtype(&files->dtype, files, options) != 0 ||
        open_tokenizer(&files->tokenizer, options) != 0) {
        files_close(files);
        return -1;
    }
    return 0;
}

/* ---- description ---- */

static void add_arch(struct str *text, const struct model_arch *a)
{
    const struct rope_config *r = &a->rope;
    str_appendf(text, "%s %d %d %d %d %d %d %d %d %.9g %d %d %d %d %d %d %d %.17g", a->name,
                a->n_layers, a->hidden, a->ffn, a->n_heads, a->n_kv_heads, a->head_dim, a->vocab,
                a->max_position, (double)a->norm_eps, a->window, a->window_first,
                a->tied_embeddings, a->qkv_bias, a->o_bias, a->mlp_bias, a->qk_norm, a->init_std);
    str_appendf(text, " rope %d %.17g %.17g %.17g %.17g %.17g %.17g %.17g %.17g %.17g %d %d",
                (int)r->kind, r->theta, r->factor, r->low_freq_factor, r->high_freq_factor,
                r->beta_fast, r->beta_slow, r->attention_factor, r->mscale, r->mscale_all_dim,
                r->original_max_position, r->truncate);
    if (a->softcap > 0) /* models without one keep the fingerprints that results already have */
        str_appendf(text, " softcap %.9g", (double)a->softcap);
    str_appendf(text, " bos %d eos", a->bos);
    for (int i = 0; i < a->n_eos; i++)
        str_appendf(text, " %d", a->eos[i]);
}

static void fingerprint(char hex[SHA256_HEX_LEN + 1], const struct model_files *files,
                        const struct model_options *options)
{
    struct str text = {0};
    str_appendf(&text, "model %d %s ", FINGERPRINT_VERSION, dtype_name(files->dtype));
    if (options->quantization != QUANTIZATION_NONE)
        str_appendf(&text, "%s by %d ", quantization_name(options->quantization), INT8_GROUP);
    add_arch(&text, &files->arch);
    if (files->checkpoint) {
        safetensors_fingerprint(files->checkpoint, hex);
        str_appendf(&text, " weights %s", hex);
    } else {
        str_appendf(&text, " seed %llu", (unsigned long long)options->init_seed);
    }
    if (files->tokenizer)
        str_appendf(&text, " tokenizer %s", tokenizer_fingerprint(files->tokenizer));
    sha256_of(text.data, text.len, hex);
    str_free(&text);
}

static size_t rope_bytes(const struct model_arch *arch)
{
    return (size_t)arch->max_position * (size_t)arch->head_dim * sizeof(float);
}

static void describe(struct model_info *info, const struct model_files *files,
                     const struct model_options *options, const struct device *device)
{
    const struct model_arch *a = &files->arch;
    *info = (struct model_info){
        .dtype = files->dtype,
        .quantization = options->quantization,
        .act_dtype = device->act_dtype,
        .n_layers = a->n_layers,
        .hidden = a->hidden,
        .ffn = a->ffn,
        .n_heads = a->n_heads,
        .n_kv_heads = a->n_kv_heads,
        .head_dim = a->head_dim,
        .vocab = a->vocab,
        .max_position = a->max_position,
        .bos = a->bos,
        .n_eos = a->n_eos,
        .n_params = arch_n_params(a),
        .weight_bytes = weights_bytes(a, files->dtype, options->quantization) + rope_bytes(a),
        .device = device->info,
    };
    memcpy(info->arch, a->name, sizeof(info->arch));
    memcpy(info->eos, a->eos, sizeof(info->eos));
    fingerprint(info->fingerprint, files, options);
}

int model_describe(struct model_info *out, struct tokenizer **tokenizer,
                   const struct model_options *options)
{
    struct model_files files;
    if (files_open(&files, options) != 0)
        return -1;
    struct device *device = open_model_device(options, files.dtype);
    if (!device) {
        files_close(&files);
        return -1;
    }
    describe(out, &files, options, device);
    device->ops->close(device);
    if (tokenizer) {
        *tokenizer = files.tokenizer;
        files.tokenizer = NULL;
    }
    files_close(&files);
    return 0;
}

/* ---- opening ---- */

static int check_memory(const struct model *m, const char *path)
{
    char needed[32], there[32], all[32];
    if (m->info.weight_bytes <= m->info.device.free_bytes)
        return 0;
    return err_set(ERR_RESOURCE,
                   "%s: the weights take %s (%zu bytes) as %s; the device has %s free (%zu bytes) "
                   "of %s",
                   path, format_bytes(needed, (double)m->info.weight_bytes), m->info.weight_bytes,
                   weight_name(m->info.dtype, m->info.quantization),
                   format_bytes(there, (double)m->info.device.free_bytes),
                   m->info.device.free_bytes,
                   format_bytes(all, (double)m->info.device.memory_bytes));
}

static int load_rope(struct model *m)
{
    struct device *device = m->device;
    float *table = arch_rope_table(&m->arch, m->arch.max_position);
    if (!table)
        return -1;
    m->rope = device->ops->alloc(device, rope_bytes(&m->arch));
    if (m->rope)
        device->ops->upload(device, m->rope, table, rope_bytes(&m->arch));
    free(table);
    return m->rope ? 0 : -1;
}

static void log_loading(const struct model *m, const struct model_options *options)
{
    char bytes[32];
    log_info("%s: %s, %.4g M parameters, %s, %s%s; on %s: %s, %s, %d threads", options->path,
             m->arch.name, (double)m->info.n_params / 1e6,
             weight_name(m->info.dtype, m->info.quantization),
             format_bytes(bytes, (double)m->info.weight_bytes),
             options->random_init ? ", random initialisation" : "",
             device_kind_name(m->info.device.kind), m->info.device.name, m->info.device.isa,
             m->info.device.n_threads);
    if (!m->tokenizer)
        log_info("The model has no tokenizer.json: prompts are token ids");
    else if (tokenizer_vocab_size(m->tokenizer) > m->arch.vocab)
        log_warning("The tokenizer has ids up to %d, but the model's vocabulary ends at %d: a "
                    "prompt with a larger id is refused",
                    tokenizer_vocab_size(m->tokenizer) - 1, m->arch.vocab - 1);
}

static int load(struct model *m, const struct model_files *files,
                const struct model_options *options)
{
    m->device = open_model_device(options, files->dtype);
    if (!m->device)
        return -1;
    describe(&m->info, files, options, m->device);
    log_loading(m, options);
    if (check_memory(m, options->path) != 0)
        return -1;
    m->info.weight_bytes = rope_bytes(&m->arch);
    char version[SHA256_HEX_LEN + 1] = "";
    if (files->checkpoint)
        safetensors_version(files->checkpoint, version);
    m->cache = weight_cache_open(options->weight_cache, m->device, m->info.fingerprint, version);
    const struct weight_source source = {files->checkpoint, options->init_seed};
    if (weights_load(m, &source) != 0 || load_rope(m) != 0)
        return -1;
    m->device->ops->sync(m->device);
    return 0;
}

int model_open(struct model **out, const struct model_options *options)
{
    double start_s = time_monotonic_s();
    struct model_files files;
    if (files_open(&files, options) != 0)
        return -1;
    struct model *m = xcalloc(1, sizeof(*m));
    m->arch = files.arch;
    m->tokenizer = files.tokenizer;
    int rc = load(m, &files, options);
    safetensors_close(files.checkpoint);
    if (rc != 0) {
        model_close(m);
        return -1;
    }
    m->info.load_s = time_monotonic_s() - start_s;
    *out = m;
    return 0;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    if (m->device) {
        weights_free(m);
        weight_cache_close(m->cache);
        m->device->ops->free(m->device, m->rope);
        m->device->ops->close(m->device);
    }
    tokenizer_close(m->tokenizer);
    free(m);
}

const struct model_info *model_get_info(const struct model *m)
{
    return &m->info;
}

const struct tokenizer *model_get_tokenizer(const struct model *m)
{
    return m->tokenizer;
}

/* ---- activations ---- */

/* Bytes of the buffers of struct activations; the two of the last rows are of one size. */
struct activation_sizes {
    size_t residual, narrow, wide, last, logits;
};

static struct activation_sizes activation_sizes(const struct model_info *m, int max_tokens,
                                                int max_rows)
{
    size_t q = (size_t)m->n_heads * (size_t)m->head_dim;
    size_t kv = (size_t)m->n_kv_heads * (size_t)m->head_dim;
    size_t hidden = (size_t)m->hidden, ffn = (size_t)m->ffn, rows = (size_t)max_rows;
    size_t token = (size_t)max_tokens * dtype_bytes(m->act_dtype);
    return (struct activation_sizes){
        .residual = token * hidden,
        .narrow = token * MAX(hidden, q),
        .wide = token * MAX(MAX(q + 2 * kv, ffn), hidden),
        .last = rows * hidden * dtype_bytes(m->act_dtype),
        .logits = rows * (size_t)m->vocab * sizeof(float),
    };
}

size_t activations_bytes(const struct model_info *info, int max_tokens, int max_rows)
{
    struct activation_sizes s = activation_sizes(info, max_tokens, max_rows);
    return s.residual + s.narrow + s.wide + 2 * s.last + s.logits;
}

int activations_init(struct activations *a, const struct model *m, int max_tokens, int max_rows)
{
    struct activation_sizes s = activation_sizes(&m->info, max_tokens, max_rows);
    struct device *device = m->device;
    void *(*alloc)(struct device *, size_t) = device->ops->alloc;
    *a = (struct activations){0};
    if (!(a->residual = alloc(device, s.residual)) || !(a->narrow = alloc(device, s.narrow)) ||
        !(a->wide = alloc(device, s.wide)) || !(a->last = alloc(device, s.last)) ||
        !(a->last_normed = alloc(device, s.last)) || !(a->logits = alloc(device, s.logits))) {
        activations_free(a, m);
        return -1;
    }
    return 0;
}

void activations_free(struct activations *a, const struct model *m)
{
    void *const buffers[] = {a->residual, a->narrow, a->wide, a->last, a->last_normed, a->logits};
    for (size_t i = 0; i < ARRAY_LEN(buffers); i++)
        m->device->ops->free(m->device, buffers[i]);
    *a = (struct activations){0};
}

/* ---- forward pass ---- */

/* out = x W^T + bias, or the gated product */
static struct linear_args projection(const struct model *m, void *out, const void *x,
                                     const struct weight *weight, const float *bias, int n_rows)
{
    return (struct linear_args){
        .out = out,
        .x = x,
        .weight = weight,
        .bias = bias,
        .n_rows = n_rows,
        .out_dtype = m->device->act_dtype,
    };
}

/* Attention of layer i: from the queries in a->wide to a->narrow. */
static struct attention_args attention_of(const struct model *m, const struct activations *a,
                                          const struct forward_args *args, int i)
{
    const struct model_arch *arch = &m->arch;
    return (struct attention_args){
        .kind = args->attention,
        .out = a->narrow,
        .qkv = a->wide,
        .kv = args->kv[i],
        .shape =
            {
                .n_heads = arch->n_heads,
                .n_kv_heads = arch->n_kv_heads,
                .head_dim = arch->head_dim,
                .block_size = args->block_size,
                .kv_dtype = args->kv_dtype,
            },
        .scale = 1 / sqrtf((float)arch->head_dim),
        .window = i < arch->window_first ? 0 : arch->window,
        .softcap = arch->softcap,
        .batch = args->batch,
    };
}

/* Projects a->narrow to queries, keys and values of layer i, writes K and V into the cache, and
 * what the queries get into a->narrow. */
static void attend(const struct model *m, struct activations *a, const struct forward_args *args,
                   int i)
{
    const struct model_layer *l = &m->layer[i];
    const struct attention_args attention = attention_of(m, a, args, i);
    const struct linear_args qkv =
        projection(m, a->wide, a->narrow, &l->qkv, l->qkv_bias, args->batch->n_tokens);
    const struct rope_cache_args rope_cache = {
        .product = &qkv,
        .qkv = a->wide,
        .q_gain = l->q_gain,
        .k_gain = l->k_gain,
        .rope = m->rope,
        .norm_eps = m->arch.norm_eps,
        .kv = args->kv[i],
        .shape = attention.shape,
        .batch = args->batch,
    };
    m->device->ops->rope_cache(m->device, &rope_cache);
    m->device->ops->attention(m->device, &attention);
}

static void plan_attention(const struct model *m, const struct activations *a,
                           const struct forward_args *args, int i)
{
    const struct attention_args attention = attention_of(m, a, args, i);
    m->device->ops->attention_plan(m->device, &attention);
}

/* a->logits of the rows that args names. delta: what the last layer ends with, to be done yet. */
static void compute_logits(const struct model *m, struct activations *a,
                           const struct forward_args *args, const struct linear_args *delta)
{
    const struct backend *ops = m->device->ops;
    const float *gain = m->final_gain, eps = m->arch.norm_eps;
    int hidden = m->arch.hidden, n_rows = args->n_rows;
    void *last_delta = a->wide; /* of rows apart: free by then */
    const struct linear_args lm_head = {
        .out = a->logits,
        .x = a->last_normed,
        .weight = m->arch.tied_embeddings ? &m->embed : &m->lm_head,
        .n_rows = n_rows,
        .out_dtype = DTYPE_F32,
    };
    if (args->logits_row) {
        ops->linear(m->device, delta);
        ops->gather(m->device, a->last, a->residual, args->logits_row, n_rows, hidden);
        ops->gather(m->device, last_delta, delta->out, args->logits_row, n_rows, hidden);
        ops->add_rmsnorm(m->device, a->last_normed, a->last, last_delta, gain, n_rows, hidden, eps);
    } else {
        ops->linear_add_rmsnorm(m->device, a->last_normed, a->residual, delta, gain, eps);
    }
    ops->linear(m->device, &lm_head);
}

void model_forward(const struct model *m, struct activations *a, const struct forward_args *args)
{
    const struct backend *ops = m->device->ops;
    const float eps = m->arch.norm_eps;
    const int n = args->batch->n_tokens, hidden = m->arch.hidden;
    struct linear_args down = {0}; /* of the layer before */
    assert(args->n_rows <= n && (args->logits_row || args->n_rows == n));

    ops->embed(m->device, a->residual, &m->embed, args->batch->token, args->sampled, n);
    for (int i = 0; i < m->arch.n_layers; i++) {
        const struct model_layer *l = &m->layer[i];
        if (i == 0 || i == m->arch.window_first)
            plan_attention(m, a, args, i);
        if (i == 0)
            ops->add_rmsnorm(m->device, a->narrow, a->residual, NULL, l->attn_gain, n, hidden, eps);
        else
            ops->linear_add_rmsnorm(m->device, a->narrow, a->residual, &down, l->attn_gain, eps);
        attend(m, a, args, i);
        const struct linear_args o = projection(m, a->wide, a->narrow, &l->o, l->o_bias, n);
        ops->linear_add_rmsnorm(m->device, a->narrow, a->residual, &o, l->mlp_gain, eps);
        const struct linear_args gate_up =
            projection(m, a->wide, a->narrow, &l->gate_up, l->gate_up_bias, n);
        ops->linear(m->device, &gate_up);
        down = projection(m, a->narrow, a->wide, &l->down, l->down_bias, n);
    }
    if (args->n_rows > 0)
        compute_logits(m, a, args, &down);
}
