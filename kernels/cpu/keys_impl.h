/* keys_impl.h - a tile of keys and values: finding it in the paged cache, packing it like a weight,
 * and multiplying with it where it lies.
 *
 * Many query rows share a tile that is packed once. For the few rows of a token that is decoded the
 * stores and loads of packing cost more than the products, so those rows multiply each key (value)
 * as it comes from the cache: the same sums in the same order, of one row or many.
 */
#ifndef QUIRE_CPU_KEYS_IMPL_H
#define QUIRE_CPU_KEYS_IMPL_H

#include "kernels/cpu/gemm_impl.h"

/* Rows that multiply without packing: their sums fit in registers beside a transposed block. */
#define DIRECT_MAX_ROWS 4

/* One piece of work; the arrays are cut from the scratch memory of the thread. */
struct flash {
    const struct attention_args *args;
    struct flash_piece piece;
    enum dtype dtype; /* of the products: bf16 in pairs, or f32                        */
    struct tiling tiling;
    bool in_place; /* keys are multiplied where they lie                            */
    int group;     /* keys or elements side by side in packed arrays                */
    int n_groups;  /* of head_dim                                                   */
    int width;     /* head_dim rounded up to whole panels                           */
    float scale;   /* of scores in the softmax; with a soft-cap, which is that, of  */
    float slope;   /* tanh(slope score); 0: no soft-cap                             */
    float *q;      /* tiles of rows, each as pack_x left it, from row * width on    */
    float *k;      /* panels of keys: [n_groups][PANEL][group]                      */
    float *v;      /* panels of head_dim: [FLASH_KEYS / group][PANEL][group]        */
    float *o;      /* [FLASH_ROWS][width] sums of weighted values                   */
    float *s;      /* [max_rows][FLASH_KEYS] scores, then weights, of one tile      */
    float *p;      /* weights as pack_x left them                                   */
    float *max;    /* [FLASH_ROWS] the largest score so far                         */
    float *sum;    /* [FLASH_ROWS] of the weights so far                            */
};

/* Where the keys and values of a tile are in the cache. */
struct key_rows {
    int first, n;                              /* positions [first, first + n)    */
    const char *k[FLASH_KEYS], *v[FLASH_KEYS]; /* zeros for the keys from n on    */
};

static void find_keys(const struct flash *f, struct key_rows *rows, int kv_head, int first,
                      int last)
{
    static const float zeros[MAX_HEAD_DIM];
    const struct attention_shape *s = &f->args->shape;
    const struct batch *b = f->args->batch;
    const int *table = b->block_table + (size_t)f->piece.seq * (size_t)b->max_blocks;
    size_t row_bytes = (size_t)s->head_dim * dtype_bytes(s->kv_dtype);
    int i = 0;
    rows->first = first;
    rows->n = MIN(FLASH_KEYS, last + 1 - first);
    while (i < rows->n) { /* block by block */
        int offset = (first + i) % s->block_size, end = MIN(rows->n, i + s->block_size - offset);
        size_t block = (size_t)table[(first + i) / s->block_size];
        size_t head = block * (size_t)s->n_kv_heads + (size_t)kv_head;
        size_t at = (head * (size_t)s->block_size + (size_t)offset) * row_bytes;
        for (; i < end; i++, at += row_bytes) {
            rows->k[i] = (const char *)f->args->kv.k + at;
            rows->v[i] = (const char *)f->args->kv.v + at;
        }
    }
    for (; i < FLASH_KEYS; i++)
        rows->k[i] = rows->v[i] = (const char *)zeros;
}

/* VEC_N groups of a row of the cache from group g on, zeros behind head_dim: f32, or pairs as they
 * are stored. Constant after inlining: kv_dtype. */
VEC_INLINE vec load_cache(enum dtype kv_dtype, const char *row, int g, int n_groups)
{
    int n = MAX(0, MIN(n_groups - g, VEC_N));
    if (kv_dtype == DTYPE_F32 || (kv_dtype == DTYPE_BF16 && PAIRS == 2))
        return vec_load_n((const float *)(const void *)row + g, n);
    return n == VEC_N ? vec_load_as(kv_dtype, row, (size_t)g)
                      : vec_load_as_n(kv_dtype, row, (size_t)g, n);
}

/* VEC_N keys from `key` on, VEC_N groups of each from g on: key i in lane i, group g + j in
 * block[j]. */
VEC_INLINE void load_keys(vec block[VEC_N], const struct flash *f, enum dtype kv_dtype,
                          const struct key_rows *rows, int key, int g)
{
    VEC_UNROLL
    for (int i = 0; i < VEC_N; i++) {
        block[i] = load_cache(kv_dtype, rows->k[key + i], g, f->n_groups);
    }
    vec_transpose(block);
}

/* Two vectors of values from element d on: of one key, or of a pair of keys side by side. */
VEC_INLINE void load_values(vec *low, vec *high, const struct flash *f, enum dtype kv_dtype,
                            const struct key_rows *rows, int key, int d)
{
#if PAIRS == 2
    if (kv_dtype == DTYPE_BF16) {
        vec even = load_cache(kv_dtype, rows->v[key], d / 2, f->n_groups);
        vec odd = load_cache(kv_dtype, rows->v[key + 1], d / 2, f->n_groups);
        vec_interleave(even, odd, low, high);
        return;
    }
#endif
    *low = load_cache(kv_dtype, rows->v[key], d, f->n_groups);
    *high = load_cache(kv_dtype, rows->v[key], d + VEC_N, f->n_groups);
}

/* A copy that a variable may index: the original can then stay in registers. */
VEC_INLINE void spill(vec copy[VEC_N], const vec block[VEC_N])
{
    VEC_UNROLL
    for (int i = 0; i < VEC_N; i++) {
        copy[i] = block[i];
    }
}

/* ---- packing ---- */

/* Groups of VEC_N keys, as many as are left of a key. */
VEC_INLINE void store_groups(float *to, const vec block[VEC_N], int left)
{
    if (left >= VEC_N) {
        VEC_UNROLL
        for (int i = 0; i < VEC_N; i++) {
            vec_store(to + i * PANEL, block[i]);
        }
    } else {
        vec tail[VEC_N];
        spill(tail, block);
        for (int i = 0; i < left; i++)
            vec_store(to + i * PANEL, tail[i]);
    }
}

VEC_INLINE void pack_keys(const struct flash *f, enum dtype kv_dtype, const struct key_rows *rows)
{
    for (int key = 0; key < FLASH_KEYS; key += VEC_N) {
        float *panel = f->k + key / PANEL * f->n_groups * PANEL + key % PANEL;
        for (int g = 0; g < f->n_groups; g += VEC_N) {
            vec block[VEC_N];
            load_keys(block, f, kv_dtype, rows, key, g);
            store_groups(panel + g * PANEL, block, f->n_groups - g);
        }
    }
}

VEC_INLINE void pack_values(const struct flash *f, enum dtype kv_dtype, const struct key_rows *rows)
{
    int panel_floats = FLASH_KEYS / f->group * PANEL;
    for (int key = 0; key < rows->n; key += f->group) {
        float *to = f->v + key / f->group * PANEL;
        for (int d = 0; d < f->width; d += PANEL, to += panel_floats) {
            vec low, high;
            load_values(&low, &high, f, kv_dtype, rows, key, d);
            vec_store(to, low);
            vec_store(to + VEC_N, high);
        }
    }
}

static void pack_tile(const struct flash *f, const struct key_rows *rows)
{
    switch (f->args->shape.kv_dtype) {
    case DTYPE_BF16:
        pack_keys(f, DTYPE_BF16, rows);
        pack_values(f, DTYPE_BF16, rows);
        break;
    case DTYPE_F16:
        pack_keys(f, DTYPE_F16, rows);
        pack_values(f, DTYPE_F16, rows);
        break;
    default:
        pack_keys(f, DTYPE_F32, rows);
        pack_values(f, DTYPE_F32, rows);
        break;
    }
}

/* ---- multiplying in place: constant after inlining are kv_dtype, n_rows and n_panels ---- */

VEC_INLINE void score_group(vec acc[DIRECT_MAX_ROWS], enum dtype dtype, const char *q, vec keys,
                            int n_rows)
{
    VEC_UNROLL
    for (int r = 0; r < n_rows; r++) {
        acc[r] = multiply_add(dtype, acc[r], q + r * GROUP_BYTES, keys);
    }
}

VEC_INLINE void score_groups(vec acc[DIRECT_MAX_ROWS], enum dtype dtype, const char *q,
                             const vec block[VEC_N], int left, int n_rows)
{
    const int step = n_rows * GROUP_BYTES;
    if (left >= VEC_N) {
        VEC_UNROLL
        for (int i = 0; i < VEC_N; i++) {
            score_group(acc, dtype, q + i * step, block[i], n_rows);
        }
    } else {
        vec tail[VEC_N];
        spill(tail, block);
        for (int i = 0; i < left; i++)
            score_group(acc, dtype, q + i * step, tail[i], n_rows);
    }
}

/* s = q k^T for all rows of the piece. Asks for the keys of the next tile meanwhile, row by row:
 * the cache is a heap of blocks, where no hardware prefetcher foresees the next. */
VEC_INLINE void score_keys(const struct flash *f, enum dtype kv_dtype, int n_rows,
                           const struct key_rows *rows, const struct key_rows *next)
{
    int row_bytes = f->args->shape.head_dim * (kv_dtype == DTYPE_F32 ? 4 : 2);
    int steps = CEIL_DIV(f->n_groups, VEC_N), fetch = CEIL_DIV(VEC_N, steps);
    for (int key = 0; key < FLASH_KEYS; key += VEC_N) {
        vec acc[DIRECT_MAX_ROWS];
        VEC_UNROLL
        for (int r = 0; r < n_rows; r++) {
            acc[r] = vec_set1(0);
        }
        for (int g = 0, ahead = key; g < f->n_groups; g += VEC_N) {
            vec block[VEC_N];
            for (int end = MIN(ahead + fetch, key + VEC_N); ahead < end; ahead++)
                for (int at = 0; at < row_bytes; at += CPU_CACHE_LINE)
                    __builtin_prefetch(next->k[ahead] + at, 0, 2);
            load_keys(block, f, kv_dtype, rows, key, g);
            const char *q = (const char *)(f->q + g * n_rows);
            score_groups(acc, f->dtype, q, block, f->n_groups - g, n_rows);
        }
        VEC_UNROLL
        for (int r = 0; r < n_rows; r++) {
            vec_store(f->s + r * FLASH_KEYS + key, acc[r]);
        }
    }
}

/* o += p v for n_panels panels of head_dim from element d on. */
VEC_INLINE void add_values_at(const struct flash *f, enum dtype kv_dtype, int n_rows, int n_panels,
                              const struct key_rows *rows, const struct key_rows *next, int d)
{
    vec acc[DIRECT_MAX_ROWS][4];
    const int bytes = PANEL * n_panels * (kv_dtype == DTYPE_F32 ? 4 : 2);
    const char *p = (const char *)f->p;
    const int group = kv_dtype == DTYPE_BF16 ? PAIRS : 1;
    VEC_UNROLL
    for (int r = 0; r < n_rows; r++) {
        VEC_UNROLL
        for (int v = 0; v < 2 * n_panels; v++) {
            acc[r][v] = vec_load(f->o + r * f->width + d + v * VEC_N);
        }
    }

    for (int key = 0; key < rows->n; key += group) {
        vec value[4];
        for (int i = 0; i < group; i++)
            for (int at = 0; at < bytes; at += CPU_CACHE_LINE)
                __builtin_prefetch(next->v[key + i] + d * bytes / (PANEL * n_panels) + at, 0, 2);
        VEC_UNROLL
        for (int i = 0; i < n_panels; i++) {
            load_values(&value[2 * i], &value[2 * i + 1], f, kv_dtype, rows, key, d + i * PANEL);
        }
        VEC_UNROLL
        for (int r = 0; r < n_rows; r++) {
            VEC_UNROLL
            for (int v = 0; v < 2 * n_panels; v++) {
                acc[r][v] = multiply_add(f->dtype, acc[r][v], p + r * GROUP_BYTES, value[v]);
            }
        }

        p += n_rows * GROUP_BYTES;
    }
    VEC_UNROLL
    for (int r = 0; r < n_rows; r++) {
        VEC_UNROLL
        for (int v = 0; v < 2 * n_panels; v++) {
            vec_store(f->o + r * f->width + d + v * VEC_N, acc[r][v]);
        }
    }
}

VEC_INLINE void add_values(const struct flash *f, enum dtype kv_dtype, int n_rows,
                           const struct key_rows *rows, const struct key_rows *next)
{
    int d = 0;
    for (; d + 2 * PANEL <= f->width; d += 2 * PANEL)
        add_values_at(f, kv_dtype, n_rows, 2, rows, next, d);
    if (d < f->width)
        add_values_at(f, kv_dtype, n_rows, 1, rows, next, d);
}

typedef void (*direct_product)(const struct flash *f, const struct key_rows *rows,
                               const struct key_rows *next);

#define DEFINE_DIRECT(name, kv_dtype, n_rows)                                                      \
    static void score_##name##_##n_rows(const struct flash *f, const struct key_rows *rows,        \
                                        const struct key_rows *next)                               \
    {                                                                                              \
        score_keys(f, kv_dtype, n_rows, rows, next);                                               \
    }                                                                                              \
    static void add_##name##_##n_rows(const struct flash *f, const struct key_rows *rows,          \
                                      const struct key_rows *next)                                 \
    {                                                                                              \
        add_values(f, kv_dtype, n_rows, rows, next);                                               \
    }
#define DEFINE_DIRECT_ROWS(name, kv_dtype)                                                         \
    DEFINE_DIRECT(name, kv_dtype, 1)                                                               \
    DEFINE_DIRECT(name, kv_dtype, 2)                                                               \
    DEFINE_DIRECT(name, kv_dtype, 3)                                                               \
    DEFINE_DIRECT(name, kv_dtype, 4)
DEFINE_DIRECT_ROWS(f32, DTYPE_F32)
DEFINE_DIRECT_ROWS(bf16, DTYPE_BF16)
DEFINE_DIRECT_ROWS(f16, DTYPE_F16)

#define DIRECT_ROWS(what, name)                                                                    \
    {                                                                                              \
        what##_##name##_1, what##_##name##_2, what##_##name##_3, what##_##name##_4                 \
    }

static const direct_product score_direct[DTYPE_N][DIRECT_MAX_ROWS] = {
    [DTYPE_F32] = DIRECT_ROWS(score, f32),
    [DTYPE_BF16] = DIRECT_ROWS(score, bf16),
    [DTYPE_F16] = DIRECT_ROWS(score, f16),
};

static const direct_product add_direct[DTYPE_N][DIRECT_MAX_ROWS] = {
    [DTYPE_F32] = DIRECT_ROWS(add, f32),
    [DTYPE_BF16] = DIRECT_ROWS(add, bf16),
    [DTYPE_F16] = DIRECT_ROWS(add, f16),
};

#endif
