/* amx_avx512bf16.c - the kernels of AMX over the instruction set that they have beside it, with
 * emulated tiles. */
#include "tests/amx_emulation.h"

#define ISA_TABLE cpu_kernels_amx_avx512bf16
#define ISA_NAME  AMX_ON_AVX512BF16
#define ISA_TILES
#include "kernels/cpu/isa_impl.h"
