/* amx.h - the tile instructions of AMX (Intel SDM, volume 2: LDTILECFG, TILELOADD, TDPBF16PS, ..).
 *
 * A thread has eight tiles, which amx_configure makes 16 rows of 64 bytes each. Tile numbers are
 * literal digits. Assembler text stands here because the compilers' own functions do not say that
 * loading a tile reads memory, so a store before it could be left out.
 */
#ifndef QUIRE_CPU_AMX_H
#define QUIRE_CPU_AMX_H

#include <stddef.h>
#include <stdint.h>

#define AMX_ROWS      16
#define AMX_ROW_BYTES 64

/* All tiles become zero; none may be used before. */
static inline void amx_configure(void)
{
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {
        .palette = 1,
        .row_bytes = {AMX_ROW_BYTES, AMX_ROW_BYTES, AMX_ROW_BYTES, AMX_ROW_BYTES, AMX_ROW_BYTES,
                      AMX_ROW_BYTES, AMX_ROW_BYTES, AMX_ROW_BYTES},
        .rows = {AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS},
    };
    _Static_assert(sizeof(config) == 64, "what LDTILECFG reads");
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

/* Without it the kernel saves 8 KiB at each switch of threads, and the core never sleeps deeply. */
static inline void amx_release(void)
{
    __asm__ volatile("tilerelease");
}

#define amx_zero(tile) __asm__ volatile("tilezero %%tmm" #tile ::)

/* Rows `stride` bytes apart; with a stride of 0 all rows are the same. */
#define amx_load(tile, base, stride)                                                               \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(base), "r"((ptrdiff_t)(stride))      \
                     : "memory")
#define amx_store(tile, base, stride)                                                              \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(base), "r"((ptrdiff_t)(stride))  \
                     : "memory")

/* c[m][n] += sum over k of a[m][k] b[k][n]: c is 16 x 16 f32, a and b hold pairs of bf16 at [m][k]
 * and [k][n]. Even and odd elements of pairs are summed apart in f32, then added, then added to c;
 * each row of c depends on its row of a alone. Subnormal numbers count as zero. */
#define amx_dot_bf16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

/* The same with c in int32, and four signed bytes at each [m][k] and [k][n]. */
#define amx_dot_int8(c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

#endif
