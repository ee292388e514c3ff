/* isa_impl.h - the table of kernels for the instruction set that the including file is compiled
 * for. The includer defines ISA_TABLE and ISA_NAME. */
#include "kernels/cpu/eager_impl.h"
#include "kernels/cpu/flash_impl.h"
#include "kernels/cpu/gemm_impl.h"
#include "kernels/cpu/pack_impl.h"
#include "kernels/cpu/rows_impl.h"
#include "kernels/cpu/sample_impl.h"

const struct cpu_kernels ISA_TABLE = {
    .isa = ISA_NAME,
    .packing = {[FORMAT_F32] = {PANEL, 1, 0},
                [FORMAT_BF16] = {PANEL, PAIRS, 0},
                [FORMAT_F16] = {PANEL, 1, 0},
                [FORMAT_INT8] = {PANEL, INT8_UNIT, INT8_OFFSET}},
    .max_rows = GEMM_MAX_ROWS,
    .max_rows_of_two = GEMM_MAX_ROWS_OF_TWO,
    .pack_x = pack_x,
    .gemm = gemm,
    .pack_panel = pack_panel,
    .add_rmsnorm = add_rmsnorm,
    .silu_mul = silu_mul,
    .rope_cache = rope_cache,
    .attend_eager = attend_eager,
    .attend_flash = attend_flash,
    .argmax = argmax,
    .sample_weights = sample_weights,
    .sample_collect = sample_collect,
    .sample_sum = sample_sum,
    .sample_prune = sample_prune,
};
