/* flash_impl.h - attention by tiles with online softmax (Milakov, Gimelshein 2018; Dao 2022).
 *
 * A piece of work is up to FLASH_ROWS query rows of one KV head: the heads of its group, for one or
 * several tokens. They share each tile of FLASH_KEYS keys, widened to f32 and turned so that a
 * vector holds the same element of many keys. Tiles begin at multiples of FLASH_KEYS positions, and
 * a tile of which a row sees nothing leaves that row as it is: what a row computes does not depend
 * on the rows beside it, on chunks of the prompt or on the block size.
 *
 * Per tile: S = Q K^T, m' = max(m, max S), P = exp(S - m'), l = l e^(m - m') + sum P,
 * O = O e^(m - m') + P V; at the end O / l. Both products sum over their inner index in order.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#include <math.h>

/* The memory of one thread for one piece of work, cut from its scratch. */
struct flash {
    const struct attention_args *args;
    int seq, kv_head, first_row, n_rows; /* rows count (token, head of the group), heads fastest */
    int stride;                          /* head_dim rounded up to whole vectors                 */
    float *q;                            /* [FLASH_ROWS][stride] multiplied by the scale */
    float *k;                            /* [stride][FLASH_KEYS]                         */
    float *v;                            /* [FLASH_KEYS][stride]                         */
    float *p;                            /* [FLASH_ROWS][FLASH_KEYS] scores, then weights */
    float *o;                            /* [FLASH_ROWS][stride]                         */
    float *max;                          /* [FLASH_ROWS]                                 */
    float *sum;                          /* [FLASH_ROWS]                                 */
};

/* c += a b for a block of rows and vectors whose sizes are constants after inlining.
 * c: [rows][c_stride], a: [rows][a_stride], b: [n][b_stride] */
VEC_INLINE void add_product_block(float *c, int c_stride, const float *a, int a_stride,
                                  const float *b, int b_stride, int n, int rows, int vecs)
{
    vec acc[4][4];
    VEC_UNROLL for (int r = 0; r < rows; r++) VEC_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] =
        vec_load(c + r * c_stride + v * VEC_N);
    for (int i = 0; i < n; i++) {
        VEC_UNROLL for (int v = 0; v < vecs; v++)
        {
            vec column = vec_load(b + i * b_stride + v * VEC_N);
            VEC_UNROLL for (int r = 0; r < rows; r++) acc[r][v] =
                vec_fma(vec_set1(a[r * a_stride + i]), column, acc[r][v]);
        }
    }
    VEC_UNROLL for (int r = 0; r < rows; r++) VEC_UNROLL for (int v = 0; v < vecs; v++)
        vec_store(c + r * c_stride + v * VEC_N, acc[r][v]);
}

struct product {
    float *c;
    const float *a, *b;
    int c_stride, a_stride, b_stride;
    int n_rows, n_cols; /* n_cols: a multiple of VEC_N */
    int n;              /* of the sum                  */
};

VEC_INLINE void add_product_rows(const struct product *p, int row, int rows)
{
    float *c = p->c + row * p->c_stride;
    const float *a = p->a + row * p->a_stride;
    int col = 0;
    for (; col + 4 * VEC_N <= p->n_cols; col += 4 * VEC_N)
        add_product_block(c + col, p->c_stride, a, p->a_stride, p->b + col, p->b_stride, p->n, rows,
                          4);
    for (; col < p->n_cols; col += VEC_N)
        add_product_block(c + col, p->c_stride, a, p->a_stride, p->b + col, p->b_stride, p->n, rows,
                          1);
}

static void add_product(const struct product *p)
{
    int row = 0;
    for (; row + 4 <= p->n_rows; row += 4)
        add_product_rows(p, row, 4);
    if (row + 2 <= p->n_rows) {
        add_product_rows(p, row, 2);
        row += 2;
    }
    if (row < p->n_rows)
        add_product_rows(p, row, 1);
}

/* ---- rows ---- */

static int group_size(const struct attention_shape *s)
{
    return s->n_heads / s->n_kv_heads;
}

static int row_token(const struct flash *f, int row)
{
    return f->args->batch->q_start[f->seq] + (f->first_row + row) / group_size(&f->args->shape);
}

static int row_head(const struct flash *f, int row)
{
    int group = group_size(&f->args->shape);
    return f->kv_head * group + (f->first_row + row) % group;
}

/* Positions that a row sees: [first, last]. */
static int last_position(const struct flash *f, int row)
{
    return f->args->batch->position[row_token(f, row)];
}

static int first_position(const struct flash *f, int row)
{
    int window = f->args->window;
    return window > 0 ? MAX(0, last_position(f, row) + 1 - window) : 0;
}

static void load_queries(struct flash *f)
{
    const struct attention_shape *s = &f->args->shape;
    size_t qkv_heads = (size_t)(s->n_heads + 2 * s->n_kv_heads), d = (size_t)s->head_dim;
    for (int r = 0; r < f->n_rows; r++) {
        size_t head = (size_t)row_token(f, r) * qkv_heads + (size_t)row_head(f, r);
        const float *from = (const float *)f->args->qkv + head * d;
        float *to = f->q + r * f->stride;
        for (int i = 0; i < s->head_dim; i++)
            to[i] = from[i] * f->args->scale;
        f->max[r] = -INFINITY;
        f->sum[r] = 0;
    }
    memset(f->o, 0, (size_t)(f->n_rows * f->stride) * sizeof(float));
}

static void store_outputs(const struct flash *f)
{
    const struct attention_shape *s = &f->args->shape;
    for (int r = 0; r < f->n_rows; r++) {
        size_t head = (size_t)row_token(f, r) * (size_t)s->n_heads + (size_t)row_head(f, r);
        float *to = (float *)f->args->out + head * (size_t)s->head_dim;
        float norm = 1.0f / f->sum[r];
        for (int i = 0; i < s->head_dim; i++)
            to[i] = f->o[r * f->stride + i] * norm;
    }
}

/* ---- keys and values ---- */

/* Widens VEC_N rows of the cache into row[], zeros beyond n_rows and head_dim. */
VEC_INLINE void load_rows(vec row[VEC_N], const struct flash *f, const void *cache, int position,
                          int n_rows, int at)
{
    const struct attention_shape *s = &f->args->shape;
    for (int i = 0; i < VEC_N; i++) {
        row[i] = vec_set1(0);
        if (i < n_rows)
            row[i] =
                load_part(s->kv_dtype, cache,
                          cache_index(f->args, f->seq, f->kv_head, position + i), at, s->head_dim);
    }
}

/* Keys and values of positions [first, first + n_keys), zeros up to FLASH_KEYS. */
static void load_tile(struct flash *f, int first, int n_keys)
{
    for (int i = 0; i < FLASH_KEYS; i += VEC_N) {
        for (int at = 0; at < f->stride; at += VEC_N) {
            vec row[VEC_N];
            load_rows(row, f, f->args->kv.k, first + i, n_keys - i, at);
            vec_transpose(row);
            for (int j = 0; j < VEC_N; j++)
                vec_store(f->k + (at + j) * FLASH_KEYS + i, row[j]);
            load_rows(row, f, f->args->kv.v, first + i, n_keys - i, at);
            for (int j = 0; j < VEC_N; j++)
                vec_store(f->v + (i + j) * f->stride + at, row[j]);
        }
    }
}

/* ---- softmax ---- */

/* Turns the scores of a row into weights and rescales what it has summed so far. */
static void update_row(struct flash *f, int row, int first_key)
{
    float *p = f->p + row * FLASH_KEYS, *o = f->o + row * f->stride;
    int begin = MAX(0, first_position(f, row) - first_key);
    int end = MIN(FLASH_KEYS, last_position(f, row) + 1 - first_key);
    if (begin >= end) { /* it sees nothing here: weights of zero */
        memset(p, 0, FLASH_KEYS * sizeof(*p));
        return;
    }
    for (int i = 0; i < begin; i++)
        p[i] = -INFINITY;
    for (int i = end; i < FLASH_KEYS; i++)
        p[i] = -INFINITY;
    vec top = vec_set1(f->max[row]), total = vec_set1(0);
    for (int i = 0; i < FLASH_KEYS; i += VEC_N)
        top = vec_max(top, vec_load(p + i));
    float largest = vec_largest(top);
    for (int i = 0; i < FLASH_KEYS; i += VEC_N) {
        vec e = vec_exp(vec_load(p + i) - vec_set1(largest));
        vec_store(p + i, e);
        total = total + e;
    }
    float rescale = vec_exp(vec_set1(f->max[row] - largest))[0];
    f->sum[row] = f->sum[row] * rescale + vec_sum(total);
    f->max[row] = largest;
    for (int i = 0; i < f->stride; i += VEC_N)
        vec_store(o + i, vec_load(o + i) * vec_set1(rescale));
}

static void attend_tile(struct flash *f, int first_key)
{
    int n_keys = MIN(FLASH_KEYS, last_position(f, f->n_rows - 1) + 1 - first_key);
    load_tile(f, first_key, n_keys);
    memset(f->p, 0, (size_t)f->n_rows * FLASH_KEYS * sizeof(float));
    add_product(&(struct product){.c = f->p,
                                  .a = f->q,
                                  .b = f->k,
                                  .c_stride = FLASH_KEYS,
                                  .a_stride = f->stride,
                                  .b_stride = FLASH_KEYS,
                                  .n_rows = f->n_rows,
                                  .n_cols = FLASH_KEYS,
                                  .n = f->args->shape.head_dim});
    for (int r = 0; r < f->n_rows; r++)
        update_row(f, r, first_key);
    add_product(&(struct product){.c = f->o,
                                  .a = f->p,
                                  .b = f->v,
                                  .c_stride = f->stride,
                                  .a_stride = FLASH_KEYS,
                                  .b_stride = f->stride,
                                  .n_rows = f->n_rows,
                                  .n_cols = f->stride,
                                  .n = n_keys});
}

static void attend_flash(const struct attention_args *args, const struct flash_piece *piece,
                         float *scratch)
{
    int stride = CEIL_DIV(args->shape.head_dim, VEC_N) * VEC_N;
    struct flash f = {.args = args,
                      .seq = piece->seq,
                      .kv_head = piece->kv_head,
                      .first_row = piece->first_row,
                      .n_rows = piece->n_rows,
                      .stride = stride};
    f.q = scratch;
    f.k = f.q + FLASH_ROWS * stride;
    f.v = f.k + FLASH_KEYS * stride;
    f.p = f.v + FLASH_KEYS * stride;
    f.o = f.p + FLASH_ROWS * FLASH_KEYS;
    f.max = f.o + FLASH_ROWS * stride;
    f.sum = f.max + FLASH_ROWS;
    load_queries(&f);
    int last = last_position(&f, f.n_rows - 1);
    for (int key = first_position(&f, 0) / FLASH_KEYS * FLASH_KEYS; key <= last; key += FLASH_KEYS)
        attend_tile(&f, key);
    store_outputs(&f);
}
