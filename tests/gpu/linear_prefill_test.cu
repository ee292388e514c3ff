/* linear_prefill_test.cu - the products of linear_prefill.cu against their definition, bit for bit.
 *
 *   linear_prefill_test [--small]
 *
 * The definition: a chain of 16-column products of the tensor cores per element and part, and the
 * sum of these, in kernels that do no more than that. Its first rows are compared with double
 * precision, linear_prefill() with it: for every use of the sums, for numbers of rows that take
 * tiles of every size, into memory with a row more than there are, which stays as it is. A row of x
 * is zeros. Prints a line per case; the exit code is 1 when any case fails. --small, for
 * compute-sanitizer: fewer numbers of rows.
 */
#include "kernels/cuda/linear_prefill.cuh"

#include "tests/gpu/attention_device.cuh"
#include "tests/gpu/product_sums.cuh"

#include <stdio.h>
#include <stdlib.h>

#define MAX_ROWS   2305
#define ERROR_ROWS 9    /* that are compared with double precision */
#define MAX_ERROR  1e-5 /* of a sum in f32 against the sum of its magnitudes */
#define ZERO_ROW   5

static const int all_rows[] = {1, 64, 257, 500, 529, 1000, 1057, 1920, MAX_ROWS};
static const int few_rows[] = {65, 300};

/* Widths that do not fill a tile or a pair of tiles, one to many chunks of 64 columns. */
static const struct {
    int n_out, n_in, n_parts;
} cases[] = {{8, 64, 1},     {104, 192, 1},   {1000, 320, 1},  {1024, 2048, 1},
             {6144, 128, 1}, {104, 128, 2},   {520, 1024, 2},  {8, 256, 4},
             {1000, 768, 4}, {1024, 2048, 4}, {1024, 3072, 4}, {2056, 512, 4}};

/* What becomes of the sums. */
enum use { STORED, STORED_F32, GATED };

struct arrays {
    char *x, *w, *y;
    float *chain, *sums, *error; /* chain: [n_parts][n_rows, n_out]; sums: of the parts */
    int *n_wrong;
};

/* Twice, so that one launch follows another without a wait. */
template <typename T, typename Out>
static void check_use(const struct cuda_device *d, const struct arrays *a, int n_rows, size_t c,
                      enum use use)
{
    int n_columns = use == GATED ? cases[c].n_out / 2 : cases[c].n_out;
    size_t n = (size_t)n_rows * (size_t)n_columns, bytes = (n + (size_t)n_columns) * sizeof(Out);
    const struct linear_prefill_args args = {
        .y = a->y,
        .x = a->x,
        .w = a->w,
        .n_rows = n_rows,
        .n_out = cases[c].n_out,
        .n_in = cases[c].n_in,
        .n_parts = cases[c].n_parts,
        .out_dtype = use == STORED_F32 ? DTYPE_F32 : d->base.act_dtype,
        .gated = use == GATED,
    };
    CUDA_CHECK(cudaMemsetAsync(a->y, 0xFF, bytes, d->stream));
    linear_prefill(d, &args);
    linear_prefill(d, &args);
    compare_kernel<T><<<blocks_of(n + (size_t)n_columns), 256, 0, d->stream>>>(
        a->n_wrong, (const Out *)a->y, a->sums, n, n_columns, use == GATED);
    CUDA_CHECK_LAUNCH();
}

/* The largest error of the first rows. */
template <typename T>
static float make_sums(const struct cuda_device *d, const struct arrays *a, int n_rows, size_t c)
{
    int n_out = cases[c].n_out, n_in = cases[c].n_in, n_parts = cases[c].n_parts;
    dim3 grid((unsigned)(n_out / 8), (unsigned)CEIL_DIV(n_rows, 16));
    size_t n = (size_t)MIN(n_rows, ERROR_ROWS) * (size_t)n_out;
    size_t n_all = (size_t)n_rows * (size_t)n_out;
    for (int part = 0, n_k = n_in / n_parts; part < n_parts; part++)
        chain_kernel<<<grid, CUDA_WARP, 0, d->stream>>>(a->chain + (size_t)part * n_all,
                                                        (const T *)a->x, (const T *)a->w, n_rows,
                                                        n_out, n_in, part * n_k, n_k);
    add_parts_kernel<<<blocks_of(n_all), 256, 0, d->stream>>>(a->sums, a->chain, n_parts, n_all);
    error_kernel<<<blocks_of(n), 256, 0, d->stream>>>(a->error, a->sums, (const T *)a->x,
                                                      (const T *)a->w, n_out, n_in, n);
    CUDA_CHECK_LAUNCH();
    return largest_of(d, a->error, n);
}

/* All uses for some rows; the largest error. */
template <typename T>
static float check_rows(const struct cuda_device *d, const struct arrays *a, int n_rows, size_t c)
{
    float error = make_sums<T>(d, a, n_rows, c);
    check_use<T, T>(d, a, n_rows, c, STORED);
    check_use<T, float>(d, a, n_rows, c, STORED_F32);
    check_use<T, T>(d, a, n_rows, c, GATED);
    return error;
}

template <typename T>
static bool check_case(const struct cuda_device *d, size_t c, const int *rows, int n)
{
    int n_out = cases[c].n_out, n_in = cases[c].n_in;
    size_t n_x = MAX_ROWS * (size_t)n_in, n_w = (size_t)n_out * (size_t)n_in;
    size_t n_y = (MAX_ROWS + 1) * (size_t)n_out;
    struct arrays a = {(char *)gpu_alloc(n_x * sizeof(T)),
                       (char *)gpu_alloc(n_w * sizeof(T)),
                       (char *)gpu_alloc(n_y * sizeof(float)),
                       (float *)gpu_alloc((size_t)cases[c].n_parts * n_y * sizeof(float)),
                       (float *)gpu_alloc(n_y * sizeof(float)),
                       (float *)gpu_alloc(ERROR_ROWS * (size_t)n_out * sizeof(float)),
                       (int *)gpu_alloc(sizeof(int))};
    CUDA_CHECK(cudaMemset(a.n_wrong, 0, sizeof(int)));
    fill_kernel<<<blocks_of(n_x), 256, 0, d->stream>>>((T *)a.x, n_x, 1);
    fill_kernel<<<blocks_of(n_w), 256, 0, d->stream>>>((T *)a.w, n_w, 12345);
    CUDA_CHECK(cudaMemsetAsync((T *)a.x + (size_t)ZERO_ROW * (size_t)n_in, 0,
                               (size_t)n_in * sizeof(T), d->stream));
    float error = 0;
    int n_wrong;
    for (int i = 0; i < n; i++)
        error = fmaxf(error, check_rows<T>(d, &a, rows[i], c));
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    CUDA_CHECK(cudaMemcpy(&n_wrong, a.n_wrong, sizeof(int), cudaMemcpyDeviceToHost));
    bool good = n_wrong == 0 && error < MAX_ERROR;
    printf("%-4s %s %dx%d in %d parts: %d bytes differ, error %.1e\n", good ? "ok" : "FAIL",
           dtype_name(d->base.act_dtype), n_out, n_in, cases[c].n_parts, n_wrong, error);
    fflush(stdout);
    void *const memory[] = {a.x, a.w, a.y, a.chain, a.sums, a.error, a.n_wrong};
    for (size_t i = 0; i < ARRAY_LEN(memory); i++)
        gpu_free(memory[i]);
    return good;
}

int main(int argc, char **argv)
{
    bool small = argc > 1 && strcmp(argv[1], "--small") == 0;
    const int *rows = small ? few_rows : all_rows;
    int n = small ? ARRAY_LEN(few_rows) : ARRAY_LEN(all_rows), n_failed = 0;
    struct cuda_device d;
    attention_device_open(&d, DTYPE_BF16);
    if (!linear_prefill_can(&d, 8, 64, 1)) {
        printf("skipped: the GPU is not of compute capability 9.0\n");
        return 0;
    }
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        d.base.act_dtype = DTYPE_BF16;
        n_failed += !check_case<__nv_bfloat16>(&d, c, rows, n);
        d.base.act_dtype = DTYPE_F16;
        n_failed += !check_case<__half>(&d, c, rows, n);
    }
    attention_device_close(&d);
    printf("%d cases failed\n", n_failed);
    return n_failed > 0;
}
