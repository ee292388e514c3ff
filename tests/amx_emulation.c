/* amx_emulation.c - see amx_emulation.h. */
#include "tests/amx_emulation.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>

extern const struct cpu_kernels cpu_kernels_amx_plain;
#ifdef __x86_64__
extern const struct cpu_kernels cpu_kernels_amx_avx512bf16;
#endif

enum { N_TILES = 8, LANES = AMX_ROW_BYTES / 4 };

static _Thread_local struct {
    _Alignas(AMX_ROW_BYTES) char tile[N_TILES][AMX_ROWS][AMX_ROW_BYTES];
    bool configured;
} registers;

static atomic_int n_configured;

static void *tile_row(int tile, int row)
{
    assert(registers.configured);
    return registers.tile[tile][row];
}

void amx_configure(void)
{
    assert(!registers.configured);
    memset(registers.tile, 0, sizeof(registers.tile));
    registers.configured = true;
    atomic_fetch_add(&n_configured, 1);
}

void amx_release(void)
{
    assert(registers.configured);
    registers.configured = false;
    atomic_fetch_sub(&n_configured, 1);
}

int amx_configured_threads(void)
{
    return atomic_load(&n_configured);
}

void amx_zero(int tile)
{
    memset(tile_row(tile, 0), 0, sizeof(registers.tile[tile]));
}

void amx_load(int tile, const void *base, size_t stride)
{
    for (int r = 0; r < AMX_ROWS; r++)
        memcpy(tile_row(tile, r), (const char *)base + (size_t)r * stride, AMX_ROW_BYTES);
}

void amx_store(int tile, void *base, size_t stride)
{
    for (int r = 0; r < AMX_ROWS; r++)
        memcpy((char *)base + (size_t)r * stride, tile_row(tile, r), AMX_ROW_BYTES);
}

static float flush(float x)
{
    return fabsf(x) < FLT_MIN ? copysignf(0, x) : x;
}

/* Numbers of one k, and the range of their magnitudes, zeros left out. */
struct lanes {
    float x[LANES], least, most;
};

static void set_lane(struct lanes *lanes, int n, float x)
{
    lanes->x[n] = flush(x);
    float size = fabsf(lanes->x[n]);
    if (size > 0)
        lanes->least = fminf(lanes->least, size);
    lanes->most = isfinite(size) ? fmaxf(lanes->most, size) : INFINITY;
}

/* sum + a b in one rounding. The product of two bf16 has 16 bits, so that only where it leaves the
 * range of f32 is there something to round. */
static void multiply_add(float sum[LANES], float a, const struct lanes *b)
{
    float size = fabsf(a);
    if (size == 0 && b->most <= FLT_MAX)
        return;
    if (size * b->least >= FLT_MIN && size * b->most <= FLT_MAX) {
        for (int n = 0; n < LANES; n++)
            sum[n] = flush(sum[n] + a * b->x[n]);
    } else {
        for (int n = 0; n < LANES; n++)
            sum[n] = flush(fmaf(a, b->x[n], sum[n]));
    }
}

void amx_dot_bf16(int c, int a, int b)
{
    struct lanes weights[2 * LANES];
    for (int k = 0; k < 2 * LANES; k++) {
        const uint16_t *from = tile_row(b, k / 2);
        weights[k].least = INFINITY;
        weights[k].most = 0;
        for (int n = 0; n < LANES; n++)
            set_lane(&weights[k], n, bf16_to_f32(from[2 * n + k % 2]));
    }
    for (int m = 0; m < AMX_ROWS; m++) {
        const uint16_t *x = tile_row(a, m);
        float sum[2][LANES] = {{0}}, *to = tile_row(c, m);
        for (int k = 0; k < 2 * LANES; k++)
            multiply_add(sum[k % 2], flush(bf16_to_f32(x[k])), &weights[k]);
        for (int n = 0; n < LANES; n++)
            to[n] = flush(flush(to[n]) + flush(sum[0][n] + sum[1][n]));
    }
}

void amx_dot_int8(int c, int a, int b)
{
    int32_t weights[4 * LANES][LANES];
    for (int k = 0; k < 4 * LANES; k++) {
        const int8_t *from = tile_row(b, k / 4);
        for (int n = 0; n < LANES; n++)
            weights[k][n] = from[4 * n + k % 4];
    }
    for (int m = 0; m < AMX_ROWS; m++) {
        const int8_t *x = tile_row(a, m);
        int32_t *to = tile_row(c, m);
        for (int k = 0; k < 4 * LANES; k++) {
            for (int n = 0; x[k] != 0 && n < LANES; n++)
                to[n] += x[k] * weights[k][n];
        }
    }
}

/* ---- devices ---- */

/* A device of the instruction set underneath, with the other kernels. */
struct device *open_emulated_amx(const char *name, int n_threads)
{
    const struct cpu_kernels *kernels = &cpu_kernels_amx_plain;
    const char *isa = "plain";
#ifdef __x86_64__
    if (strcmp(name, AMX_ON_AVX512BF16) == 0) {
        kernels = &cpu_kernels_amx_avx512bf16;
        isa = "avx512bf16";
    }
#endif
    struct device *device =
        backend_cpu.open(&(struct device_options){.isa = isa, .n_threads = n_threads});
    if (!device) {
        printf("skipped for %s: %s\n", name, err_get());
        return NULL;
    }
    cpu_device(device)->kernels = kernels;
    snprintf(device->info.isa, sizeof(device->info.isa), "%s", name);
    return device;
}
