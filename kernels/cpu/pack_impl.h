/* pack_impl.h - packing of weights: the rows of a panel become what cpu.h calls packed weights.
 *
 * A block of VEC_N rows and VEC_N words of 32 bits is turned in registers. That takes a tenth of
 * the time of moving units one by one, and leaves packing bound by memory: source and panel pass
 * once, and rows are converted, when they have to be, a chunk at a time in the first-level cache.
 *
 * The includer, isa_impl.h, defines PACKING_SINGLE, PACKING_BF16 and PACKING_INT8. Arguments that
 * are a struct packing are constants after inlining.
 */
#ifndef QUIRE_CPU_PACK_IMPL_H
#define QUIRE_CPU_PACK_IMPL_H

#include "kernels/cpu/gemm_impl.h"

#define PACK_CHUNK INT8_GROUP /* columns; a multiple of every group, in bytes of 4 VEC_N */

_Static_assert(PACK_CHUNK * sizeof(uint16_t) % sizeof(vec) == 0, "a chunk is whole vectors");

typedef uint16_t vec16 __attribute__((vector_size(VEC_N * 2)));

/* Words `word` of VEC_N of the panel's n_rows rows, as one row of its units, or as two when a unit
 * is half a word: the lower halves are the earlier column. */
VEC_INLINE void store_words(char *panel, int word, int first_row, vec words, int n_rows,
                            int unit_bytes)
{
    if (unit_bytes == 4) {
        vec_store((float *)(void *)panel + word * n_rows + first_row, words);
        return;
    }
    uint16_t *to = (uint16_t *)(void *)panel + 2 * word * n_rows + first_row;
    vec16 low = __builtin_convertvector((vecu)words, vec16);
    vec16 high = __builtin_convertvector((vecu)words >> 16, vec16);
    memcpy(to, &low, sizeof(low));
    memcpy(to + n_rows, &high, sizeof(high));
}

/* row: [n_rows], n_words words each; both multiples of VEC_N */
VEC_INLINE void interleave(char *panel, const char *const *row, int n_rows, int n_words,
                           int unit_bytes)
{
    for (int word = 0; word < n_words; word += VEC_N) {
        for (int first = 0; first < n_rows; first += VEC_N) {
            vec block[VEC_N];
            VEC_UNROLL
            for (int i = 0; i < VEC_N; i++)
                memcpy(&block[i], row[first + i] + word * 4, sizeof(vec));
            vec_transpose(block);
            VEC_UNROLL
            for (int i = 0; i < VEC_N; i++)
                store_words(panel, word + i, first, block[i], n_rows, unit_bytes);
        }
    }
}

/* Columns [k, k + n) of a row as the type `to`, zeros up to PACK_CHUNK: where they lie, when that
 * is so already, else in chunk. */
VEC_INLINE const char *load_chunk(char *chunk, enum dtype to, struct source_row row, int k, int n)
{
    const char *from = row.data + (size_t)k * dtype_bytes(row.dtype);
    if (row.data && n == PACK_CHUNK && row.dtype == to)
        return from;
    float aligned[PACK_CHUNK] = {0};
    if (row.data && n < PACK_CHUNK)
        from = memcpy(aligned, from, (size_t)n * dtype_bytes(row.dtype));
    else if (!row.data)
        from = (const char *)aligned;
    if (row.dtype == to)
        return memcpy(chunk, from, PACK_CHUNK * dtype_bytes(to));
    for (size_t i = 0; i < PACK_CHUNK; i += VEC_N)
        vec_store_as(to, chunk, i, vec_load_as(row.dtype, from, i));
    return chunk;
}

/* dtype is a constant after inlining. */
VEC_INLINE void pack_panel_as(char *panel, const struct source_row *rows, int n_in,
                              enum dtype dtype, struct packing packing)
{
    _Alignas(CPU_CACHE_LINE) char chunks[MAX_PANEL][PACK_CHUNK * sizeof(float)];
    const int bytes = dtype == DTYPE_F32 ? 4 : 2, n_words = PACK_CHUNK * bytes / 4;
    const int n_rows = packing.panel, unit_bytes = packing.group * bytes;
    for (int k = 0; k < n_in; k += PACK_CHUNK) {
        const char *row[MAX_PANEL];
        int n = MIN(PACK_CHUNK, n_in - k);
        for (int lane = 0; lane < n_rows; lane++)
            row[lane] = load_chunk(chunks[lane], dtype, rows[lane], k, n);
        if (n == PACK_CHUNK) {
            interleave(panel, row, n_rows, n_words, unit_bytes);
            panel += (size_t)(PACK_CHUNK * n_rows * bytes);
            continue;
        }
        /* Behind the last group another thread's panel begins. */
        char last[PACK_CHUNK * MAX_PANEL * sizeof(float)];
        interleave(last, row, n_rows, n_words, unit_bytes);
        memcpy(panel, last, (size_t)(CEIL_DIV(n, packing.group) * unit_bytes * n_rows));
    }
}

/* Columns [k, k + n) of VEC_N rows as f32, x[i] those of column k + i; zeros up to INT8_GROUP. */
VEC_INLINE void load_columns(vec x[INT8_GROUP], const struct source_row *rows, int k, int n)
{
    char chunk[PACK_CHUNK * sizeof(float)];
    for (int lane = 0; lane < VEC_N; lane++) {
        const char *row = load_chunk(chunk, DTYPE_F32, rows[lane], k, n);
        for (int i = 0; i < INT8_GROUP; i += VEC_N)
            memcpy(&x[i + lane], row + i * (int)sizeof(float), sizeof(vec));
    }
    for (int i = 0; i < INT8_GROUP; i += VEC_N)
        vec_transpose(x + i);
}

/* What quantize() does, of VEC_N rows at once: the scale is rounded up to a bf16 number, so that no
 * |q| exceeds 127. */
VEC_INLINE vec scale_columns(const vec x[INT8_GROUP])
{
    vecu top = {0};
    for (int i = 0; i < INT8_GROUP; i++) {
        vecu magnitude = (vecu)x[i] & 0x7FFFFFFFu, larger = (vecu)(magnitude > top);
        top = (magnitude & larger) | (top & ~larger);
    }
    vec scale = (vec)top / vec_set1(127);
    vecu finite = (vecu)(scale <= vec_set1(FLT_MAX)), tiny = (vecu)(scale < vec_set1(FLT_MIN));
    vecu rounded = ((vecu)scale + 0xFFFFu) & 0xFFFF0000u;
    return (vec)(((rounded & finite) | ((vecu)scale & ~finite)) & ~tiny);
}

/* The rows are quantised from f32, whatever they are stored as. */
VEC_INLINE void pack_panel_int8(char *panel, const struct source_row *rows, int n_in,
                                struct packing packing)
{
    const vec round_magic = vec_set1(0x1.8p23f); /* see quantize() */
    for (int k = 0; k < n_in; k += INT8_GROUP) {
        uint16_t *scales = (uint16_t *)(void *)(panel + packing.panel * INT8_GROUP);
        for (int first = 0; first < packing.panel; first += VEC_N) {
            vec x[INT8_GROUP];
            load_columns(x, rows + first, k, MIN(INT8_GROUP, n_in - k));
            vec scale = scale_columns(x);
            vecu usable = (vecu)(scale > vec_set1(0));
            vec inverse = (vec)((vecu)(vec_set1(1) / scale) & usable);
            for (int i = 0; i < INT8_GROUP; i += 4) {
                vecu word = {0};
                VEC_UNROLL
                for (int j = 0; j < 4; j++) {
                    vecu q = (vecu)vec_fma(x[i + j], inverse, round_magic);
                    word |= ((q + (unsigned)packing.offset) & 0xFFu) << 8 * j;
                }
                store_words(panel, i / 4, first, (vec)word, packing.panel, packing.group);
            }
            vec_store_bf16(scales + first, scale);
        }
        panel = (char *)(scales + packing.panel);
    }
}

static void pack_panel(void *panel, const struct source_row *rows, int n_in,
                       enum weight_format format)
{
    const struct packing single = PACKING_SINGLE, bf16 = PACKING_BF16, int8 = PACKING_INT8;
    switch (format) {
    case FORMAT_BF16: pack_panel_as(panel, rows, n_in, DTYPE_BF16, bf16); break;
    case FORMAT_F16: pack_panel_as(panel, rows, n_in, DTYPE_F16, single); break;
    case FORMAT_INT8: pack_panel_int8(panel, rows, n_in, int8); break;
    default: pack_panel_as(panel, rows, n_in, DTYPE_F32, single);
    }
}

#endif
