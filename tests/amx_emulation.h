/* amx_emulation.h - stands in for kernels/cpu/amx.h, so that the kernels which use tile registers
 * are compiled for, and tested on, processors that have none.
 *
 * The emulation computes what the manual says (Intel SDM, volume 2, TDPBF16PS and TDPBSSD), bit for
 * bit, but for the payload of a NaN. A tile that is used without being configured is a failed
 * assertion, as it is an invalid instruction of the processor.
 */
#ifndef QUIRE_CPU_AMX_H
#define QUIRE_CPU_AMX_H

#include "kernels/backend.h"

#define AMX_ROWS      16
#define AMX_ROW_BYTES 64

void amx_configure(void);
void amx_release(void);
void amx_zero(int tile);
void amx_load(int tile, const void *base, size_t stride);
void amx_store(int tile, void *base, size_t stride);
void amx_dot_bf16(int c, int a, int b);
void amx_dot_int8(int c, int a, int b);

/* Threads that have configured their tiles and not released them. */
int amx_configured_threads(void);

/* The kernels over portable C, and over what every processor with AMX has beside it. */
#define AMX_ON_PLAIN      "amx emulated on plain"
#define AMX_ON_AVX512BF16 "amx emulated on avx512bf16"

struct device *open_emulated_amx(const char *name, int n_threads);

#endif
