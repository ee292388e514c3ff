/* isa_impl.h - the table of kernels for the instruction set that the including file is compiled
 * for. The includer defines ISA_TABLE, ISA_NAME and, where bf16 and int8 are multiplied with tile
 * registers, ISA_TILES. */
#include "kernels/cpu/cpu.h"

extern const struct cpu_kernels ISA_TABLE; /* attention calls its kernels of products */

#include "kernels/cpu/eager_impl.h"
#include "kernels/cpu/flash_impl.h"
#include "kernels/cpu/gemm_impl.h"
#include "kernels/cpu/rows_impl.h"
#include "kernels/cpu/sample_impl.h"

#ifdef ISA_TILES
#include "kernels/cpu/amx_impl.h"
#define PACKING_BF16                                                                               \
    {                                                                                              \
        AMX_PANEL, 2, 0                                                                            \
    }
#define PACKING_INT8                                                                               \
    {                                                                                              \
        AMX_PANEL, 4, 0                                                                            \
    }
#else
#define PACKING_BF16                                                                               \
    {                                                                                              \
        PANEL, PAIRS, 0                                                                            \
    }
#define PACKING_INT8                                                                               \
    {                                                                                              \
        PANEL, INT8_UNIT, INT8_OFFSET                                                              \
    }
#endif
/* f32 and f16 */
#define PACKING_SINGLE                                                                             \
    {                                                                                              \
        PANEL, 1, 0                                                                                \
    }
#include "kernels/cpu/pack_impl.h"

const struct cpu_kernels ISA_TABLE = {
    .isa = ISA_NAME,
    .packing = {[FORMAT_F32] = PACKING_SINGLE,
                [FORMAT_BF16] = PACKING_BF16,
                [FORMAT_F16] = PACKING_SINGLE,
                [FORMAT_INT8] = PACKING_INT8},
#ifdef ISA_TILES
    .tiling = {[FORMAT_F32] = GEMM_TILING(GEMM_BYTES_OF_GROUPS(1)),
               [FORMAT_BF16] = AMX_TILING(AMX_X_BYTES_BF16),
               [FORMAT_F16] = GEMM_TILING(GEMM_BYTES_OF_GROUPS(1)),
               [FORMAT_INT8] = AMX_TILING(AMX_X_BYTES_INT8)},
    .pack_x = pack_x_for_tiles,
    .begin_gemm = amx_configure,
    .gemm = gemm_with_tiles,
    .end_gemm = amx_release,
#else
    .tiling = {[FORMAT_F32] = GEMM_TILING(GEMM_BYTES_OF_GROUPS(1)),
               [FORMAT_BF16] = GEMM_TILING(GEMM_BYTES_OF_GROUPS(PAIRS)),
               [FORMAT_F16] = GEMM_TILING(GEMM_BYTES_OF_GROUPS(1)),
               [FORMAT_INT8] = GEMM_TILING(GEMM_BYTES_OF_GROUPS(INT8_UNIT) + INT8_ROW_EXTRA)},
    .pack_x = pack_x,
    .begin_gemm = gemm_without_state,
    .gemm = gemm,
    .end_gemm = gemm_without_state,
#endif
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
