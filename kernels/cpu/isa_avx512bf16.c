/* isa_avx512bf16.c - the kernels in AVX-512 with VNNI and BF16 dot products. */
#define ISA_TABLE cpu_kernels_avx512bf16
#define ISA_NAME  "avx512bf16"
#include "kernels/cpu/isa_impl.h"
