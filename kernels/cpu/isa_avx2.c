/* isa_avx2.c - the kernels in AVX2, FMA and F16C. */
#define ISA_TABLE cpu_kernels_avx2
#define ISA_NAME  "avx2"
#include "kernels/cpu/isa_impl.h"
