/* isa_avx512.c - the kernels in AVX-512 F, BW, VL and DQ. */
#define ISA_TABLE cpu_kernels_avx512
#define ISA_NAME  "avx512"
#include "kernels/cpu/isa_impl.h"
