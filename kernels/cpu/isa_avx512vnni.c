/* isa_avx512vnni.c - the kernels in AVX-512 with VNNI: dot products of bytes. */
#define ISA_TABLE cpu_kernels_avx512vnni
#define ISA_NAME  "avx512vnni"
#include "kernels/cpu/isa_impl.h"
