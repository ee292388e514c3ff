/* attention.cu - the entry of attention: parameters, scratch, and which kernel runs. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.cuh"
#include "kernels/cuda/tensor_map.cuh"

#include <limits.h>

static_assert(sizeof(struct attention_counters) % 256 == 0, "the scratch after it stays aligned");

/* Of the plan of a batch's decodes, and of what their kernel parks. */
static struct plan_sizes batch_plan_sizes(const struct cuda_device *d,
                                          const struct attention_shape *s, int n_seqs,
                                          int max_kv_len)
{
    int heads_per_kv = s->n_heads / s->n_kv_heads;
    int n_pairs = s->n_kv_heads * row_groups(heads_per_kv);
    return plan_sizes(MIN(d->n_sms, MAX_DECODE_BLOCKS), n_seqs, n_pairs, max_kv_len,
                      group_seqs(heads_per_kv) > 1);
}

size_t cuda_attention_workspace(const struct step_limits *limits)
{
    const struct attention_shape *shape = &limits->shape;
    /* A row of the block table may hold up to a block more than the longest sequence. */
    int max_kv_len = limits->max_kv_len + shape->block_size;
    struct cuda_device d;
    cuda_device_read_limits(&d);
    size_t floats = attention_eager_scratch(&d, max_kv_len), plan_bytes = 0;
    if (attention_has_tiles(shape->head_dim)) {
        struct plan_sizes plan = batch_plan_sizes(&d, shape, limits->max_seqs, max_kv_len);
        floats = MAX(floats, attention_tiles_scratch(&d, shape, plan.n_slots));
        plan_bytes = plan.bytes;
    }
    return sizeof(struct attention_counters) + plan_bytes + floats * sizeof(float);
}

static CUtensorMapSwizzle swizzle_of(int n_columns)
{
    return n_columns == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
           : n_columns == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                             : CU_TENSOR_MAP_SWIZZLE_32B;
}

#define ALL_ROWS ((size_t)1 << 31) /* more than memory has */

void attention_map_boxes(CUtensorMap *map, const void *rows, int head_dim, int n_rows,
                         int n_columns)
{
    const struct tensor_layout layout = {
        .n_dims = 2,
        .size = {(size_t)head_dim, ALL_ROWS},
        .stride_bytes = {(size_t)head_dim * 2},
        .box = {n_columns, n_rows},
        .swizzle = swizzle_of(n_columns),
        .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
    };
    tensor_map_init(map, rows, &layout);
}

void attention_map_rows(CUtensorMap *map, const void *rows, int head_dim, int n_columns)
{
    int n_panels = head_dim / n_columns;
    const struct tensor_layout layout = {
        .n_dims = 3,
        .size = {(size_t)n_columns, ALL_ROWS, (size_t)n_panels},
        .stride_bytes = {(size_t)head_dim * 2, (size_t)n_columns * 2},
        .box = {n_columns, GROUP_KEYS, n_panels},
        .swizzle = swizzle_of(n_columns),
        .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
    };
    tensor_map_init(map, rows, &layout);
}

void attention_map_queries(CUtensorMap *map, const struct attention_params *p, int n_tokens)
{
    size_t n_heads = (size_t)p->n_heads + 2 * (size_t)p->n_kv_heads;
    const struct tensor_layout layout = {
        .n_dims = 3,
        .size = {(size_t)p->head_dim, n_heads, (size_t)p->n_tokens},
        .stride_bytes = {(size_t)p->head_dim * 2, n_heads * p->head_dim * 2},
        .box = {64, p->heads_per_kv, n_tokens},
        .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
        .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
    };
    tensor_map_init(map, p->qkv, &layout);
}

static void place_scratch(struct attention_params *p, const struct cuda_device *d,
                          const struct attention_shape *s)
{
    struct plan_sizes plan = {};
    if (attention_has_tiles(s->head_dim))
        plan = batch_plan_sizes(d, s, p->n_seqs, p->max_blocks * s->block_size);
    p->counters = (struct attention_counters *)d->attention_workspace;
    p->plan = (struct attention_plan *)(p->counters + 1);
    p->max_pieces = plan.n_pieces;
    p->max_slots = plan.n_slots;
    p->scratch = (float *)((char *)p->plan + plan.bytes);
    p->scratch_floats =
        (d->attention_workspace_bytes - sizeof *p->counters - plan.bytes) / sizeof(float);
}

static struct attention_params make_params(const struct cuda_device *d,
                                           const struct attention_args *args)
{
    const struct attention_shape *s = &args->shape;
    const struct batch *b = args->batch;
    struct attention_params p = {};
    p.out = args->out;
    p.qkv = args->qkv;
    p.k = args->kv.k;
    p.v = args->kv.v;
    p.q_start = b->q_start;
    p.kv_len = b->kv_len;
    p.block_table = b->block_table;
    p.n_tokens = b->n_tokens;
    p.n_seqs = b->n_seqs;
    p.max_blocks = b->max_blocks;
    p.n_heads = s->n_heads;
    p.n_kv_heads = s->n_kv_heads;
    p.head_dim = s->head_dim;
    p.block_size = s->block_size;
    p.block_elements = (size_t)s->n_kv_heads * s->block_size * s->head_dim;
    p.heads_per_kv = s->n_heads / s->n_kv_heads;
    p.window = args->window > 0 ? args->window : INT_MAX / 2;
    bool capped = args->softcap > 0;
    p.scale_log2 = (capped ? args->softcap : args->scale) * 1.4426950408889634f; /* log2(e) */
    p.slope = capped ? 2 * args->scale / args->softcap : 0;
    p.act_dtype = d->base.act_dtype;
    p.kv_dtype = s->kv_dtype;
    place_scratch(&p, d, s);
    return p;
}

/* Whether there may be sequences of one token: not when all bring max_q_len. */
static bool may_decode(const struct batch *b)
{
    return b->max_q_len == 1 || b->n_tokens < b->n_seqs * b->max_q_len;
}

/* Whether one of attention_flash_...() runs. */
static bool takes_flash(const struct cuda_device *d, const struct attention_params *p,
                        enum attention_kind kind)
{
    return kind == ATTENTION_FLASH && d->base.info.compute_major >= 8 &&
           p->act_dtype == p->kv_dtype && p->act_dtype != DTYPE_F32 &&
           attention_has_tiles(p->head_dim);
}

void cuda_attention_plan(struct device *device, const struct attention_args *args)
{
    const struct cuda_device *d = cuda_device(device);
    struct attention_params p = make_params(d, args);
    bool shares = takes_flash(d, &p, args->kind) && attention_flash_shares(d, &p);
    if (attention_has_tiles(p.head_dim) && may_decode(args->batch))
        attention_plan(d, &p, shares);
}

void cuda_attention(struct device *device, const struct attention_args *args)
{
    const struct cuda_device *d = cuda_device(device);
    const struct batch *b = args->batch;
    struct attention_params p = make_params(d, args);
    assert(args->scale > 0 && p.n_heads % p.n_kv_heads == 0);
    assert(d->attention_workspace_bytes > sizeof *p.counters);
    assert(p.block_elements <= INT_MAX);
    if (b->n_tokens == 0)
        return;
    bool is_f16 = p.act_dtype == DTYPE_F16 && p.kv_dtype == DTYPE_F16;
    bool prefill = b->max_q_len > 1, decode = may_decode(b);
    bool flash = takes_flash(d, &p, args->kind), has_tiles = attention_has_tiles(p.head_dim);
    if (flash && prefill && attention_hopper(d, &p))
        prefill = false;
    if (args->kind == ATTENTION_EAGER)
        attention_eager(d, &p, b->max_blocks * p.block_size);
    else if (flash && p.act_dtype == DTYPE_BF16)
        attention_flash_bf16(d, &p, prefill, decode);
    else if (flash)
        attention_flash_f16(d, &p, prefill, decode);
    else if (is_f16 && has_tiles && p.head_dim <= TURING_MAX_HEAD_DIM)
        attention_turing_f16(d, &p, prefill, decode);
    else
        attention_generic(d, &p);
}
