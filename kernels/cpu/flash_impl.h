/* flash_impl.h - attention by tiles with online softmax (Milakov, Gimelshein 2018; Dao 2022).
 *
 * A piece of work is up to FLASH_ROWS query rows of one KV head: the heads of its group, for one or
 * several tokens. They share each tile of FLASH_KEYS keys (keys_impl.h). A bf16 cache stays bf16
 * where pairs can be multiplied; queries and softmax weights are then rounded to bf16. Every other
 * cache is widened to f32.
 *
 * With tile registers both products of a bf16 cache are theirs for any number of rows, because they
 * sum in another order than vectors do.
 *
 * Tiles begin at multiples of FLASH_KEYS positions, and a tile of which a row sees nothing leaves
 * that row as it is: what a row computes does not depend on the rows beside it, on chunks of the
 * prompt or on the block size.
 *
 * Per tile: S = Q K^T, m' = max(m, max S), P = exp(S - m'), l = l e^(m - m') + sum P,
 * O = O e^(m - m') + P V; at the end O / l. Both products sum over their inner index in order.
 * With a soft-cap S = tanh(slope Q K^T) first.
 */
#include "kernels/cpu/keys_impl.h"

#include <math.h>

/* Whether bf16 is multiplied with tile registers. */
#if defined(ISA_TILES) && PAIRS == 2
#include "kernels/cpu/amx_keys_impl.h"
#define FLASH_TILES 1
#else
#define FLASH_TILES 0
#endif

/* ---- rows: (token, head of the group), heads fastest ---- */

static int row_token(const struct flash *f, int row)
{
    int group_heads = f->args->shape.n_heads / f->args->shape.n_kv_heads;
    return f->args->batch->q_start[f->piece.seq] + (f->piece.first_row + row) / group_heads;
}

static int row_head(const struct flash *f, int row)
{
    int group_heads = f->args->shape.n_heads / f->args->shape.n_kv_heads;
    return f->piece.kv_head * group_heads + (f->piece.first_row + row) % group_heads;
}

/* A row sees the positions first_position .. last_position. */
static int last_position(const struct flash *f, int row)
{
    return f->args->batch->position[row_token(f, row)];
}

static int first_position(const struct flash *f, int row)
{
    int window = f->args->window;
    return window > 0 ? MAX(0, last_position(f, row) + 1 - window) : 0;
}

/* Rows are multiplied in tiles of whole units and of equal size, as far as that goes. */
static int n_row_tiles(const struct flash *f)
{
    return CEIL_DIV(f->piece.n_rows, f->tiling.max_rows);
}

static int row_tile_start(const struct flash *f, int tile)
{
    int n_units = CEIL_DIV(f->piece.n_rows, f->tiling.row_unit);
    return MIN(n_units * tile / n_row_tiles(f) * f->tiling.row_unit, f->piece.n_rows);
}

/* Whether the rows are so few that packing keys for them costs more than it saves. */
static bool multiplies_in_place(const struct flash *f)
{
#if FLASH_TILES
    if (f->dtype == DTYPE_BF16)
        return keys_are_tiles(f);
#endif
    return f->piece.n_rows <= DIRECT_MAX_ROWS;
}

/* rows: [n_rows][head_dim] */
static void pack_queries(const struct flash *f, float *rows)
{
    int d = f->args->shape.head_dim;
#if FLASH_TILES
    if (f->in_place && f->dtype == DTYPE_BF16) {
        pack_queries_for_keys(f, rows);
        return;
    }
#endif
    for (int tile = 0; tile < n_row_tiles(f); tile++) {
        int row = row_tile_start(f, tile), n_rows = row_tile_start(f, tile + 1) - row;
        ISA_TABLE.pack_x(f->q + row * f->width, rows + row * d, (size_t)d, n_rows, d,
                         (enum weight_format)f->dtype);
    }
}

static void load_queries(struct flash *f)
{
    const struct attention_shape *s = &f->args->shape;
    size_t d = (size_t)s->head_dim, heads = (size_t)(s->n_heads + 2 * s->n_kv_heads);
    for (int r = 0; r < f->piece.n_rows; r++) { /* o serves as a place for contiguous rows */
        size_t at = ((size_t)row_token(f, r) * heads + (size_t)row_head(f, r)) * d;
        memcpy(f->o + (size_t)r * d, (const float *)f->args->qkv + at, d * sizeof(float));
    }
    pack_queries(f, f->o);
    for (int r = 0; r < f->piece.n_rows; r++) {
        f->max[r] = -INFINITY;
        f->sum[r] = 0;
    }
    memset(f->o, 0, (size_t)(f->piece.n_rows * f->width) * sizeof(float));
}

static void store_outputs(const struct flash *f)
{
    const struct attention_shape *s = &f->args->shape;
    for (int r = 0; r < f->piece.n_rows; r++) {
        size_t head = (size_t)row_token(f, r) * (size_t)s->n_heads + (size_t)row_head(f, r);
        float *to = (float *)f->args->out + head * (size_t)s->head_dim;
        float norm = 1.0f / f->sum[r];
        for (int i = 0; i < s->head_dim; i++)
            to[i] = f->o[r * f->width + i] * norm;
    }
}

/* ---- softmax of a tile of rows; loops over rows are apart, so that rows overlap ---- */

/* The weights as the product will see them, so that their sum is the sum of what is added up. */
VEC_INLINE vec round_weights(enum dtype dtype, vec weight)
{
#ifdef __AVX512BF16__
    if (dtype == DTYPE_BF16) {
        __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(weight));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
#endif
    (void)dtype;
    return weight;
}

/* The soft-cap of n_rows rows, up to its factor, which weigh_row() multiplies with. */
static void cap_rows(const struct flash *f, int n_rows)
{
    for (int i = 0; i < n_rows * FLASH_KEYS; i += VEC_N)
        vec_store(f->s + i, vec_tanh(vec_load(f->s + i) * vec_set1(f->slope)));
}

/* Scores that the row does not see become -infinity. */
static void mask_row(const struct flash *f, float *s, int row, int first_key)
{
    int begin = MIN(MAX(0, first_position(f, row) - first_key), FLASH_KEYS);
    int end = MAX(MIN(FLASH_KEYS, last_position(f, row) + 1 - first_key), begin);
    for (int i = 0; i < begin; i++)
        s[i] = -INFINITY;
    for (int i = end; i < FLASH_KEYS; i++)
        s[i] = -INFINITY;
}

/* The largest score of a row, scaled. */
VEC_INLINE float largest_score(const struct flash *f, const float *s)
{
    vec top = vec_load(s);
    for (int i = VEC_N; i < FLASH_KEYS; i += VEC_N)
        top = vec_max(vec_load(s + i), top);
    return vec_largest(top) * f->scale;
}

/* Scores become weights; returns their sum. */
VEC_INLINE float weigh_row(const struct flash *f, float *s, float largest)
{
    vec total = vec_set1(0), shift = vec_set1(-largest), scale = vec_set1(f->scale);
    VEC_UNROLL
    for (int i = 0; i < FLASH_KEYS; i += VEC_N) {
        vec weight = vec_exp(vec_fma(vec_load(s + i), scale, shift));
        weight = round_weights(f->dtype, weight);
        vec_store(s + i, weight);
        total = total + weight;
    }
    return vec_sum(total);
}

static void rescale_row(const struct flash *f, int row, float factor)
{
    float *o = f->o + row * f->width;
    for (int i = 0; i < f->width; i += VEC_N)
        vec_store(o + i, vec_load(o + i) * vec_set1(factor));
}

/* Turns the scores of rows [row, row + n_rows) into weights and rescales what was summed so far. A
 * row that has seen nothing yet has the largest score -infinity; it is shifted by zero instead. */
static void update_rows(struct flash *f, int row, int n_rows, int first_key, bool whole)
{
    float shift[CPU_MAX_TILE_ROWS] = {0}, factor[CPU_MAX_TILE_ROWS] = {0};
    if (f->slope > 0)
        cap_rows(f, n_rows);
    for (int r = 0; r < n_rows; r++) {
        float *s = f->s + r * FLASH_KEYS;
        if (!whole)
            mask_row(f, s, row + r, first_key);
        float largest = fmaxf(f->max[row + r], largest_score(f, s));
        shift[r] = largest == -INFINITY ? 0 : largest;
        factor[r] = f->max[row + r] - shift[r];
        f->max[row + r] = largest;
    }
    for (int r = 0; r < n_rows; r += VEC_N)
        vec_store(factor + r, vec_exp(vec_load(factor + r)));
    for (int r = 0; r < n_rows; r++)
        f->sum[row + r] =
            f->sum[row + r] * factor[r] + weigh_row(f, f->s + r * FLASH_KEYS, shift[r]);
    for (int r = 0; r < n_rows; r++) {
        if (factor[r] != 1)
            rescale_row(f, row + r, factor[r]);
    }
}

/* Whether every row of [row, end) sees every key of the tile; whether one sees any. */
static bool all_see_all(const struct flash *f, int row, int end, int first_key)
{
    return first_position(f, end - 1) <= first_key &&
           last_position(f, row) >= first_key + FLASH_KEYS - 1;
}

static bool any_sees_any(const struct flash *f, int row, int end, int first_key)
{
    return last_position(f, end - 1) >= first_key &&
           first_position(f, row) < first_key + FLASH_KEYS;
}

/* ---- tiles ---- */

/* All panels of one product of a row tile. */
static void multiply_panels(const struct flash *f, struct gemm_tile *t, int n_cols)
{
    int step = t->n_rows <= f->tiling.max_rows_of_two ? 2 * PANEL : PANEL;
    t->prefetch = t->w;
    for (int col = 0; col < n_cols; col += step) {
        t->n_cols = MIN(step, n_cols - col);
        ISA_TABLE.gemm(t, (enum weight_format)f->dtype);
        t->w = (const char *)t->w + (size_t)(t->n_cols / PANEL) * t->panel_bytes;
        t->out += t->n_cols;
    }
}

static void score_packed(const struct flash *f, int row, int n_rows)
{
    struct gemm_tile scores = {
        .x = f->q + row * f->width,
        .w = f->k,
        .panel_bytes = (size_t)f->n_groups * PANEL * sizeof(float),
        .n_rows = n_rows,
        .n_groups = f->n_groups,
        .out = f->s,
        .out_stride = FLASH_KEYS,
    };
    multiply_panels(f, &scores, FLASH_KEYS);
}

static void add_packed(const struct flash *f, int row, int n_rows, const struct key_rows *keys)
{
    ISA_TABLE.pack_x(f->p, f->s, FLASH_KEYS, n_rows, FLASH_KEYS, (enum weight_format)f->dtype);
    struct gemm_tile values = {
        .x = f->p,
        .w = f->v,
        .panel_bytes = (size_t)(FLASH_KEYS / f->group) * PANEL * sizeof(float),
        .n_rows = n_rows,
        .n_groups = CEIL_DIV(keys->n, f->group),
        .out = f->o + (size_t)(row * f->width),
        .out_stride = (size_t)f->width,
        .accumulate = true,
    };
    multiply_panels(f, &values, f->width);
}

static void attend_packed(struct flash *f, int row, int end, const struct key_rows *keys)
{
    score_packed(f, row, end - row);
    update_rows(f, row, end - row, keys->first, all_see_all(f, row, end, keys->first));
    add_packed(f, row, end - row, keys);
}

static void attend_in_place(struct flash *f, const struct key_rows *keys,
                            const struct key_rows *next)
{
    enum dtype kv_dtype = f->args->shape.kv_dtype;
    int n_rows = f->piece.n_rows;
    bool whole = all_see_all(f, 0, n_rows, keys->first);
#if FLASH_TILES
    if (f->dtype == DTYPE_BF16) {
        score_tiles_of_keys(f, keys, next);
        update_rows(f, 0, n_rows, keys->first, whole);
        pack_values(f, DTYPE_BF16, keys);
        add_packed(f, 0, n_rows, keys);
        return;
    }
#endif
    score_direct[kv_dtype][n_rows - 1](f, keys, next);
    update_rows(f, 0, n_rows, keys->first, whole);
    pack_rows(f->p, f->s, FLASH_KEYS, n_rows, FLASH_KEYS, f->dtype);
    add_direct[kv_dtype][n_rows - 1](f, keys, next);
}

static void attend_tile(struct flash *f, const struct key_rows *keys, const struct key_rows *next)
{
    if (f->in_place) {
        attend_in_place(f, keys, next);
        return;
    }
    pack_tile(f, keys);
    for (int tile = 0; tile < n_row_tiles(f); tile++) {
        int row = row_tile_start(f, tile), end = row_tile_start(f, tile + 1);
        if (any_sees_any(f, row, end, keys->first))
            attend_packed(f, row, end, keys);
    }
}

static void attend_tiles(struct flash *f)
{
    int first = first_position(f, 0) / FLASH_KEYS * FLASH_KEYS;
    int last = last_position(f, f->piece.n_rows - 1);
    int kv_head = f->piece.kv_head, next_head = MIN(kv_head + 1, f->args->shape.n_kv_heads - 1);
    struct key_rows rows[2], *now = &rows[0], *next = &rows[1];
    find_keys(f, now, kv_head, first, last);
    for (int key = first; key <= last; key += FLASH_KEYS) {
        if (key + FLASH_KEYS <= last)
            find_keys(f, next, kv_head, key + FLASH_KEYS, last);
        else /* only fetched: most likely this thread's next piece */
            find_keys(f, next, next_head, first, last);
        attend_tile(f, now, next);
        struct key_rows *done = now;
        now = next;
        next = done;
    }
}

static void attend_flash(const struct attention_args *args, const struct flash_piece *piece,
                         float *scratch)
{
    struct flash f = {.args = args, .piece = *piece};
    f.dtype = PAIRS == 2 && args->shape.kv_dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    f.tiling = ISA_TABLE.tiling[f.dtype];
    f.group = f.dtype == DTYPE_BF16 ? PAIRS : 1;
    f.n_groups = args->shape.head_dim / f.group;
    f.width = CEIL_DIV(args->shape.head_dim, PANEL) * PANEL;
    f.scale = args->softcap > 0 ? args->softcap : args->scale;
    f.slope = args->softcap > 0 ? args->scale / args->softcap : 0;
    f.q = scratch;
    f.k = f.q + FLASH_ROWS * f.width;
    f.v = f.k + FLASH_KEYS * f.width;
    f.o = f.v + FLASH_KEYS * f.width;
    f.s = f.o + FLASH_ROWS * f.width;
    f.p = f.s + f.tiling.max_rows * FLASH_KEYS;
    f.max = f.p + f.tiling.max_rows * FLASH_KEYS;
    f.sum = f.max + FLASH_ROWS;
    f.in_place = multiplies_in_place(&f);
    load_queries(&f);
    attend_tiles(&f);
    store_outputs(&f);
}
