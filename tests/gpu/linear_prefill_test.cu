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

#include "tests/gpu/product_sums.cuh"

#define MAX_ROWS 2305

static const int all_rows[] = {1, 64, 200, 257, 500, 529, 1000, 1057, 1920, MAX_ROWS};
static const int few_rows[] = {65, 200, 300};

/* Widths that do not fill a tile or a pair of tiles, one to many chunks of 64 columns. */
static const struct product_case cases[] = {
    {8, 64, 1},      {104, 192, 1},   {1000, 320, 1}, {1024, 2048, 1}, {6144, 128, 1},
    {16000, 320, 1}, {104, 128, 2},   {520, 1024, 2}, {8, 256, 4},     {1000, 768, 4},
    {1024, 2048, 4}, {1024, 3072, 4}, {2056, 512, 4}};

/* What becomes of the sums. */
enum use { STORED, STORED_F32, GATED };

/* Twice, so that one launch follows another without a wait. */
template <typename T, typename Out>
static void check_use(const struct cuda_device *d, const struct product_arrays *a, int n_rows,
                      const struct product_case *c, enum use use)
{
    int n_columns = use == GATED ? c->n_out / 2 : c->n_out;
    size_t n = (size_t)n_rows * (size_t)n_columns, bytes = (n + (size_t)n_columns) * sizeof(Out);
    const struct linear_prefill_args args = {
        .y = a->y,
        .x = a->x,
        .w = a->w,
        .n_rows = n_rows,
        .n_out = c->n_out,
        .n_in = c->n_in,
        .n_parts = c->n_parts,
        .out_dtype = use == STORED_F32 ? DTYPE_F32 : d->base.act_dtype,
        .gated = use == GATED,
    };
    CUDA_CHECK(cudaMemsetAsync(a->y, 0xFF, bytes, d->stream));
    linear_prefill(d, &args);
    linear_prefill(d, &args);
    arrays_compare<T, Out>(d, a, total_of(a, c, n_rows), n, n_columns, use == GATED);
}

/* All uses for some rows; the largest error. */
template <typename T>
static float check_rows(const struct cuda_device *d, const struct product_arrays *a, int n_rows,
                        const struct product_case *c)
{
    float error = arrays_sum<T>(d, a, c, n_rows);
    check_use<T, T>(d, a, n_rows, c, STORED);
    check_use<T, float>(d, a, n_rows, c, STORED_F32);
    check_use<T, T>(d, a, n_rows, c, GATED);
    return error;
}

template <typename T>
static bool check_case(const struct cuda_device *d, const struct product_case *c, const int *rows,
                       int n)
{
    struct product_arrays a = arrays_make<T>(d, c, MAX_ROWS);
    float error = 0;
    for (int i = 0; i < n; i++)
        error = fmaxf(error, check_rows<T>(d, &a, rows[i], c));
    return arrays_end(d, &a, c, error);
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
        n_failed += !check_case<__nv_bfloat16>(&d, &cases[c], rows, n);
        d.base.act_dtype = DTYPE_F16;
        n_failed += !check_case<__half>(&d, &cases[c], rows, n);
    }
    attention_device_close(&d);
    printf("%d cases failed\n", n_failed);
    return n_failed > 0;
}
