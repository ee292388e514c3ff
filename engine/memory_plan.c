/* memory_plan.c - see memory_plan.h and engine_plan in engine.h.
 *
 *   budget = memory_utilization * free memory of the device before the weights were loaded
 *   KV     = budget - weights - activations (- swapped blocks, on a CPU)
 *
 * and no more blocks than max_num_seqs sequences of max_model_len tokens can own. What lies outside
 * the budget is left to other processes and to the device's scratch memory.
 */
#include "engine/memory_plan.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kv_cache.h"
#include "engine/model.h"

#define BLOCK_SIZE_STEP            16 /* kernels read keys in groups of this many */
#define DEFAULT_BLOCK_SIZE         64
#define DEFAULT_NUM_SEQS           256
#define DEFAULT_GPU_TOKENS         8192 /* of a step */
#define DEFAULT_CPU_TOKENS         2048
#define DEFAULT_MEMORY_UTILIZATION 0.9
#define MIN_MODEL_LEN              2 /* one token of prompt, one of output */

/* ---- options ---- */

/* Gives *value its default when it is 0 and checks its range. */
static int resolve_int(int *value, const char *name, int normal, int min, int max)
{
    if (*value == 0)
        *value = normal;
    if (*value < min || *value > max)
        return err_set(ERR_CONFIG, "%s is %d; expected %d to %d", name, *value, min, max);
    return 0;
}

static int resolve_block_size(struct engine_options *o)
{
    if (resolve_int(&o->block_size, "block_size", DEFAULT_BLOCK_SIZE, BLOCK_SIZE_STEP,
                    ARCH_MAX_POSITIONS) < 0)
        return -1;
    if (o->block_size % BLOCK_SIZE_STEP != 0)
        return err_set(ERR_CONFIG, "block_size is %d; expected a multiple of %d", o->block_size,
                       BLOCK_SIZE_STEP);
    return 0;
}

static int resolve_kv_dtype(enum dtype *out, const struct model_info *model, const char *name)
{
    *out = model->dtype;
    if (!name || strcmp(name, "auto") == 0)
        return 0;
    for (int i = 0; i < DTYPE_N; i++) {
        *out = (enum dtype)i;
        if (strcmp(name, dtype_name(*out)) == 0)
            return 0;
    }
    return err_set(ERR_CONFIG, "unknown kv_dtype '%s'; expected auto, bfloat16, float16 or float32",
                   name);
}

/* Tokens of a step where nobody says how many. Longer steps take memory on a CPU (Qwen3-0.6B in
 * bfloat16: 23 MiB of activations for 512 tokens, 65 for 2048, 234 for 8192, beside 1.1 GiB of
 * weights), and a signal waits for the end of a step. They gained nothing that could be seen: 16
 * prompts of 512 tokens took 44.0, 42.9 and 42.5 s of processor time (avx512bf16, 2 threads, one
 * run each, others on the machine). */
static int default_tokens(const struct engine_options *o, const struct model_info *model)
{
    bool on_cpu = model->device.kind == DEVICE_CPU;
    return MAX(on_cpu ? DEFAULT_CPU_TOKENS : DEFAULT_GPU_TOKENS, o->max_num_seqs);
}

static int resolve_options(struct engine_layout *l, const struct model_info *model)
{
    struct engine_options *o = &l->options;
    assert(o->attention < ATTENTION_N && o->policy < SCHEDULING_N);
    if (resolve_block_size(o) < 0 || resolve_kv_dtype(&l->kv_dtype, model, o->kv_dtype) < 0 ||
        resolve_int(&o->max_num_seqs, "max_num_seqs", DEFAULT_NUM_SEQS, 1, ENGINE_MAX_SEQS) < 0 ||
        resolve_int(&o->max_num_batched_tokens, "max_num_batched_tokens", default_tokens(o, model),
                    1, ENGINE_MAX_BATCHED_TOKENS) < 0 ||
        resolve_int(&o->max_model_len, "max_model_len", model->max_position, MIN_MODEL_LEN,
                    model->max_position) < 0 ||
        resolve_int(&o->n_kv_blocks, "n_kv_blocks", 0, 0, KV_MAX_BLOCKS) < 0)
        return -1;
    if (o->memory_utilization == 0)
        o->memory_utilization = DEFAULT_MEMORY_UTILIZATION;
    if (!(o->memory_utilization > 0 && o->memory_utilization <= 1))
        return err_set(ERR_CONFIG, "memory_utilization is %g; expected more than 0, at most 1",
                       o->memory_utilization);
    return 0;
}

/* The standard engine is the fast one with blocks as long as a whole sequence. n_kv_blocks then
 * stands for the same memory cut into such blocks. */
static void make_contiguous(struct engine_options *o)
{
    int whole = CEIL_DIV(o->max_model_len, BLOCK_SIZE_STEP) * BLOCK_SIZE_STEP;
    long n_whole = (long)o->n_kv_blocks * o->block_size / whole;
    o->n_kv_blocks = (int)MIN(n_whole, (long)o->max_num_seqs);
    o->block_size = whole;
    o->prefix_caching = false;
}

/* ---- sizes ---- */

/* A GPU's kernels count the numbers of a block's keys in one layer with an int. */
static int check_block(const struct engine_options *o, const struct model_info *m)
{
    size_t n = (size_t)o->block_size * (size_t)m->n_kv_heads * (size_t)m->head_dim;
    if (n <= INT_MAX)
        return 0;
    return err_set(ERR_CONFIG,
                   "a KV block of %d tokens has %zu numbers in a layer; expected at most %d: a "
                   "smaller %s",
                   o->block_size, n, INT_MAX, o->fast ? "block_size" : "max_model_len");
}

static int blocks_per_seq(const struct engine_options *o)
{
    return CEIL_DIV(o->max_model_len, o->block_size);
}

/* Sizes that follow from the number of sequences in a step. */
static void plan_step(struct engine_layout *l, const struct model_info *m)
{
    const struct engine_options *o = &l->options;
    long max_tokens =
        MIN((long)o->max_num_batched_tokens, (long)o->max_num_seqs * o->max_model_len);
    int max_seqs = (int)MIN((long)o->max_num_seqs, max_tokens);
    l->plan.max_step_tokens = (int)max_tokens;
    l->limits =
        (struct step_limits){.max_tokens = (int)max_tokens,
                             .max_seqs = max_seqs,
                             .max_rows = max_seqs,
                             .max_kv_len = o->max_model_len,
                             .max_width = MAX(MAX(m->hidden, m->ffn), m->n_heads * m->head_dim),
                             .vocab = m->vocab,
                             .shape = {.n_heads = m->n_heads,
                                       .n_kv_heads = m->n_kv_heads,
                                       .head_dim = m->head_dim,
                                       .block_size = o->block_size,
                                       .kv_dtype = l->kv_dtype}};
    l->arrays = (struct step_batch_limits){
        .max_tokens = (int)max_tokens, .max_seqs = max_seqs, .max_blocks = blocks_per_seq(o)};
    l->plan.activation_bytes = activations_bytes(m, (int)max_tokens, max_seqs) +
                               step_batch_bytes(&l->arrays) + (size_t)o->max_num_seqs * sizeof(int);
}

/* On the device, besides the KV pool. */
static size_t bytes_taken(const struct engine_layout *l)
{
    const struct memory_plan *p = &l->plan;
    return p->weight_bytes + p->activation_bytes + (l->host_is_device ? p->host_kv_bytes : 0);
}

static size_t bytes_left(size_t there, const struct engine_layout *l)
{
    size_t taken = bytes_taken(l);
    return there > taken ? there - taken : 0;
}

/* What an error message says of bytes_taken. The caller frees. */
static char *taken_text(const struct engine_layout *l)
{
    const struct memory_plan *p = &l->plan;
    char *text = xasprintf("less %zu for weights and %zu for activations", p->weight_bytes,
                           p->activation_bytes);
    if (bytes_taken(l) == p->weight_bytes + p->activation_bytes)
        return text;
    char *all = xasprintf("%s, and %zu for swapped sequences (swap_space)", text, p->host_kv_bytes);
    free(text);
    return all;
}

static int refuse_length(const struct engine_layout *l, size_t free_bytes, size_t n_fit)
{
    const struct memory_plan *p = &l->plan;
    char *taken = taken_text(l);
    int rc = err_set(ERR_RESOURCE,
                     "one sequence of max_model_len %d needs %zu bytes of KV memory, but %zu are "
                     "there: memory_utilization %g of %zu free bytes is %zu, %s; the largest "
                     "max_model_len that fits is %zu",
                     l->options.max_model_len, (size_t)blocks_per_seq(&l->options) * p->block_bytes,
                     bytes_left(p->budget_bytes, l), l->options.memory_utilization, free_bytes,
                     p->budget_bytes, taken, n_fit);
    free(taken);
    return rc;
}

/* Blocks with which every sequence could run to its end. */
static size_t useful_blocks(const struct engine_options *o)
{
    return MIN((size_t)o->max_num_seqs * (size_t)blocks_per_seq(o),
               (size_t)MIN(KV_MAX_BLOCKS, INT_MAX / o->block_size));
}

/* As many blocks as the budget allows and max_num_seqs sequences can own. */
static int choose_blocks(struct engine_layout *l, const struct model_info *m)
{
    const struct engine_options *o = &l->options;
    struct memory_plan *p = &l->plan;
    int per_seq = blocks_per_seq(o);
    size_t n_fit = bytes_left(p->budget_bytes, l) / p->block_bytes;
    p->n_blocks = (int)MIN(n_fit, useful_blocks(o));
    if (p->n_blocks >= per_seq)
        return 0;
    /* A contiguous block of max_model_len does not fit, but a shorter one may. */
    size_t token_bytes = p->block_bytes / (size_t)o->block_size;
    size_t unit = o->fast ? (size_t)o->block_size : BLOCK_SIZE_STEP;
    size_t n_tokens = bytes_left(p->budget_bytes, l) / token_bytes / unit * unit;
    return refuse_length(l, m->device.free_bytes, n_tokens);
}

/* The number of blocks that the user asked for, when the device has room for them at all. */
static int use_given_blocks(struct engine_layout *l, const struct model_info *m, int n_asked)
{
    const struct engine_options *o = &l->options;
    struct memory_plan *p = &l->plan;
    if (o->n_kv_blocks < blocks_per_seq(o))
        return err_set(ERR_CONFIG,
                       "%d KV blocks are fewer than one sequence of max_model_len %d needs; "
                       "expected more n_kv_blocks or a smaller max_model_len",
                       n_asked, o->max_model_len);
    size_t there = bytes_left(m->device.free_bytes, l);
    if ((size_t)o->n_kv_blocks > there / p->block_bytes) {
        char *taken = taken_text(l);
        int rc = err_set(ERR_RESOURCE,
                         "n_kv_blocks %d needs %zu bytes of KV memory, but %zu are there: %zu free "
                         "bytes, %s",
                         n_asked, (size_t)o->n_kv_blocks * p->block_bytes, there,
                         m->device.free_bytes, taken);
        free(taken);
        return rc;
    }
    p->n_blocks = o->n_kv_blocks;
    return 0;
}

static int plan_blocks(struct engine_layout *l, const struct model_info *m, int n_asked)
{
    return n_asked > 0 ? use_given_blocks(l, m, n_asked) : choose_blocks(l, m);
}

/* Blocks for swapped sequences, where sequences can be preempted at all. */
static void plan_host_blocks(struct engine_layout *l)
{
    const struct engine_options *o = &l->options;
    struct memory_plan *p = &l->plan;
    size_t n_useful = useful_blocks(o);
    if (!o->fast || o->policy == SCHEDULING_MEMORY_AWARE || (size_t)p->n_blocks >= n_useful)
        return;
    p->n_host_blocks = (int)MIN(o->swap_bytes / p->block_bytes, n_useful);
    p->host_kv_bytes = (size_t)p->n_host_blocks * p->block_bytes;
}

/* ---- public ---- */

int engine_layout_init(struct engine_layout *out, const struct model_info *model,
                       const struct engine_options *options)
{
    *out = (struct engine_layout){.options = *options};
    struct engine_options *o = &out->options;
    struct memory_plan *p = &out->plan;
    if (resolve_options(out, model) < 0)
        return -1;
    if (!o->fast)
        make_contiguous(o);
    if (check_block(o, model) < 0)
        return -1;
    size_t token_bytes = 2 * (size_t)model->n_layers * (size_t)model->n_kv_heads *
                         (size_t)model->head_dim * dtype_bytes(out->kv_dtype); /* K and V */
    p->weight_bytes = model->weight_bytes;
    p->block_size = o->block_size;
    p->block_bytes = (size_t)o->block_size * token_bytes;
    p->max_model_len = o->max_model_len;
    p->budget_bytes = (size_t)(o->memory_utilization * (double)model->device.free_bytes);
    plan_step(out, model);
    out->host_is_device = model->device.kind == DEVICE_CPU;
    if (plan_blocks(out, model, options->n_kv_blocks) < 0)
        return -1;
    plan_host_blocks(out);
    if (out->host_is_device && p->n_host_blocks > 0 &&
        plan_blocks(out, model, options->n_kv_blocks) < 0)
        return -1;
    p->max_concurrency = MIN(o->max_num_seqs, p->n_blocks / blocks_per_seq(o));
    p->kv_bytes = (size_t)p->n_blocks * p->block_bytes;
    if (!o->fast && p->max_concurrency < o->max_num_seqs) {
        o->max_num_seqs = p->max_concurrency; /* a lane without a block could never be used */
        plan_step(out, model);
    }
    return 0;
}

int engine_plan(struct memory_plan *out, const struct model_info *model,
                const struct engine_options *options)
{
    struct engine_layout layout;
    if (engine_layout_init(&layout, model, options) < 0)
        return -1;
    *out = layout.plan;
    return 0;
}
