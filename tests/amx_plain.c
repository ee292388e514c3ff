/* amx_plain.c - the kernels of AMX over portable C and emulated tiles. */
#include "tests/amx_emulation.h"

#define ISA_TABLE cpu_kernels_amx_plain
#define ISA_NAME  AMX_ON_PLAIN
#define ISA_TILES
#include "kernels/cpu/isa_impl.h"
