/* random_rows.h - rows of a matrix that are drawn, not read. Shared by all backends.
 *
 * Element i of a tensor is a function of (stream, i) alone, and a bfloat16 number: a 64-bit hash
 * gives two neighbours, each the sum of four of its bytes, which a table makes a bell from -3.45 to
 * 3.45 standard deviations.
 */
#ifndef QUIRE_RANDOM_ROWS_H
#define QUIRE_RANDOM_ROWS_H

#include "engine/util.h"

#define BYTE_SUMS (4 * 255 + 1) /* that four bytes can have */

struct random_bell {
    uint16_t value[BYTE_SUMS]; /* bfloat16, of each sum */
};

/* A tensor to draw. */
struct random_rows {
    uint64_t stream;
    const struct random_bell *bell;
};

/* The sums for elements 2 pair and 2 pair + 1 of a stream. */
HOST_AND_DEVICE static inline void random_sums(uint32_t sum[2], uint64_t stream, uint64_t pair)
{
    const uint64_t even_bytes = 0x00FF00FF00FF00FFu;
    uint64_t h = mix64(stream + pair);
    uint64_t sums = (h & even_bytes) + (h >> 8 & even_bytes); /* four sums of two bytes */
    sums += sums >> 16;
    sum[0] = sums & 0xFFFF;
    sum[1] = sums >> 32 & 0xFFFF;
}

#endif
