/* amx_keys_impl.h - scores of a few rows with tile registers, of keys where they lie in the cache.
 *
 * A tile of the left side is 16 rows of 64 bytes, and so are 16 keys of a block: with the queries
 * on the right the product is S^T = K Q^T, and no key is turned or copied. A product of tiles sums
 * over k in the same order whichever side a factor is on, so these are the bits of packed keys.
 */
#ifndef QUIRE_CPU_AMX_KEYS_IMPL_H
#define QUIRE_CPU_AMX_KEYS_IMPL_H

#include "kernels/cpu/amx_impl.h"
#include "kernels/cpu/keys_impl.h"

/* Elements of head_dim that a product of tiles sums. */
#define AMX_STEP_DIM (AMX_ROW_BYTES / 2)

_Static_assert(FLASH_KEYS == 4 * AMX_ROWS, "a tile of sums for each 16 keys");

/* Few rows, and 16 keys lie in one block, without a rest of head_dim. */
static bool keys_are_tiles(const struct flash *f)
{
    const struct attention_shape *s = &f->args->shape;
    return f->dtype == DTYPE_BF16 && f->piece.n_rows <= AMX_ROWS && s->block_size % AMX_ROWS == 0 &&
           s->head_dim % AMX_STEP_DIM == 0;
}

/* rows: [n_rows][head_dim], with space for 16. They become [head_dim / 2][16] pairs. */
static void pack_queries_for_keys(const struct flash *f, float *rows)
{
    int d = f->args->shape.head_dim, n_rows = f->piece.n_rows;
    memset(rows + n_rows * d, 0, (size_t)((AMX_ROWS - n_rows) * d) * sizeof(float));
    pack_rows(f->q, rows, (size_t)d, AMX_ROWS, d, DTYPE_BF16);
}

/* The columns of s^T, 16 keys by 16 rows, become parts of the rows of s. */
VEC_INLINE void store_scores(const struct flash *f, int key, float sum[AMX_ROWS][AMX_COLS])
{
    vec block[AMX_ROWS], scores[AMX_ROWS];
    for (int i = 0; i < AMX_ROWS; i++)
        block[i] = vec_load(sum[i]);
    vec_transpose(block);
    spill(scores, block);
    for (int r = 0; r < f->piece.n_rows; r++)
        vec_store(f->s + r * FLASH_KEYS + key, scores[r]);
}

/* s = q k^T for all rows of the piece. What rows of a block behind the last key give is masked
 * later. Asks for every sixteenth row of the next tile meanwhile, from which hardware goes on: that
 * was 7 % faster than asking for all rows, and than for none. */
static void score_tiles_of_keys(const struct flash *f, const struct key_rows *keys,
                                const struct key_rows *next)
{
    static const uint16_t zeros[AMX_STEP_DIM];
    _Alignas(CPU_CACHE_LINE) float sum[4][AMX_ROWS][AMX_COLS];
    const int row_bytes = f->args->shape.head_dim * 2, steps = row_bytes / AMX_ROW_BYTES;
    zero_sums(AMX_TALL);
    for (int step = 0; step < steps; step++) {
        const char *k[4];
        size_t stride[4];
        for (int i = 0; i < 4; i++) {
            bool some = i * AMX_ROWS < keys->n;
            k[i] = some ? keys->k[i * AMX_ROWS] + step * AMX_ROW_BYTES : (const char *)zeros;
            stride[i] = some ? (size_t)row_bytes : 0;
        }
        for (int key = 0; key < FLASH_KEYS; key += AMX_ROWS) {
            __builtin_prefetch(next->k[key] + step * AMX_ROW_BYTES, 0, 2);
            __builtin_prefetch(next->v[key] + step * AMX_ROW_BYTES, 0, 2);
        }
        amx_load(6, f->q + step * AMX_TILE / (int)sizeof(float), AMX_ROW_BYTES);
        amx_load(4, k[0], stride[0]);
        amx_dot_bf16(0, 4, 6);
        amx_load(5, k[1], stride[1]);
        amx_dot_bf16(1, 5, 6);
        amx_load(4, k[2], stride[2]);
        amx_dot_bf16(2, 4, 6);
        amx_load(5, k[3], stride[3]);
        amx_dot_bf16(3, 5, 6);
    }
    amx_store(0, sum[0], AMX_ROW_BYTES);
    amx_store(1, sum[1], AMX_ROW_BYTES);
    amx_store(2, sum[2], AMX_ROW_BYTES);
    amx_store(3, sum[3], AMX_ROW_BYTES);
    for (int i = 0; i < 4; i++)
        store_scores(f, i * AMX_ROWS, sum[i]);
}

#endif
