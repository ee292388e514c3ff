/* isa_plain.c - the kernels in portable C. */
#define ISA_TABLE cpu_kernels_plain
#define ISA_NAME  "plain"
#include "kernels/cpu/isa_impl.h"
