/* isa_amx.c - the kernels in AVX-512 with VNNI and BF16, and AMX for products of bf16 and int8. */
#define ISA_TABLE cpu_kernels_amx
#define ISA_NAME  "amx"
#define ISA_TILES
#include "kernels/cpu/isa_impl.h"
