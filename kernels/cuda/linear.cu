/* linear.cu - y = x W^T + bias by cuBLASLt or linear_decode.cu, with rows whose bits do not depend
 * on how many there are.
 *
 * x: [n_rows, n_in], W: [n_out, n_in], y: [n_rows, n_out], row-major; for the column-major library
 * y^T = W x^T. Accumulation is f32; f32 matrices are multiplied without TF32.
 *
 * Which algorithm a product takes, linear_choose.cu decides once, before the first step. Shapes for
 * which the library has none whose rows do not depend on their number (odd sizes in 16-bit types)
 * take a plain kernel at the end of this file.
 *
 * Gated products are rounded to the type of x before they are gated, which silu_mul.cu does.
 */
#include "kernels/cuda/linear.cuh"

#include <stdlib.h>

/* Rows of a gated product in scratch memory at once: 6144 columns of them, 24 MiB in 16-bit types,
 * fit into the L2 cache of a large GPU. */
#define GATE_ROWS 2048

/* A shape, and a matrix that has it for the self-check (NULL: it is gone). */
struct shape {
    int n_out, n_in;
    bool gated;
    const void *data;
};

struct cuda_linear {
    cublasLtHandle_t handle;
    void *workspace;
    struct plan *plan;
    size_t n_plans, plan_capacity;
    struct shape *shape;
    size_t n_shapes, shape_capacity;
};

void cuda_linear_open(struct cuda_device *d)
{
    struct cuda_linear *l = (struct cuda_linear *)xcalloc(1, sizeof(*l));
    CUBLAS_CHECK(cublasLtCreate(&l->handle));
    CUDA_CHECK(cudaMalloc(&l->workspace, LINEAR_WORKSPACE_BYTES));
    d->linear = l;
}

void cuda_linear_close(struct cuda_device *d)
{
    struct cuda_linear *l = d->linear;
    for (size_t i = 0; i < l->n_plans; i++)
        CUBLAS_CHECK(cublasLtMatmulDescDestroy(l->plan[i].product));
    CUBLAS_CHECK(cublasLtDestroy(l->handle));
    CUDA_CHECK(cudaFree(l->workspace));
    free(l->plan);
    free(l->shape);
    free(l);
}

cublasLtHandle_t linear_library(const struct cuda_device *d)
{
    return d->linear->handle;
}

/* ---- one product ---- */

static cudaDataType_t cuda_type(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_BF16: return CUDA_R_16BF;
    case DTYPE_F16: return CUDA_R_16F;
    default: return CUDA_R_32F;
    }
}

void linear_layouts_init(struct linear_layouts *l, const struct cuda_device *d,
                         const struct plan *p, int n_rows)
{
    cudaDataType_t in = cuda_type(d->base.act_dtype), out = cuda_type(p->out_dtype);
    uint64_t n_in = (uint64_t)p->n_in, n_out = (uint64_t)p->n_out, rows = (uint64_t)n_rows;
    CUBLAS_CHECK(cublasLtMatrixLayoutInit(&l->w, in, n_in, n_out, p->n_in));
    CUBLAS_CHECK(cublasLtMatrixLayoutInit(&l->x, in, n_in, rows, p->n_in));
    CUBLAS_CHECK(cublasLtMatrixLayoutInit(&l->y, out, n_out, rows, p->n_out));
}

cublasStatus_t linear_run(const struct cuda_device *d, const struct plan *p, void *y, const void *x,
                          const void *w, int n_rows, const struct algorithm *algo)
{
    const float one = 1, zero = 0;
    struct linear_layouts l;
    if (algo->tile_rows > 0) {
        const struct linear_decode_args args = {.y = y,
                                                .x = x,
                                                .w = w,
                                                .n_rows = n_rows,
                                                .n_out = p->n_out,
                                                .n_in = p->n_in,
                                                .tile_rows = algo->tile_rows,
                                                .out_dtype = p->out_dtype};
        linear_decode(d, &args);
        return CUBLAS_STATUS_SUCCESS;
    }
    linear_layouts_init(&l, d, p, n_rows);
    return cublasLtMatmul(d->linear->handle, p->product, &one, w, &l.w, x, &l.x, &zero, y, &l.y, y,
                          &l.y, &algo->library, d->linear->workspace, LINEAR_WORKSPACE_BYTES,
                          d->stream);
}

/* ---- plans ---- */

static void plan_init(struct plan *p, int n_out, int n_in, enum dtype out_dtype)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    *p = {};
    p->n_out = n_out;
    p->n_in = n_in;
    p->out_dtype = out_dtype;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA,
                                                &transposed, sizeof(transposed)));
}

static struct plan *find_plan(const struct cuda_linear *l, int n_out, int n_in,
                              enum dtype out_dtype)
{
    for (size_t i = 0; i < l->n_plans; i++) {
        struct plan *p = &l->plan[i];
        if (p->n_out == n_out && p->n_in == n_in && p->out_dtype == out_dtype)
            return p;
    }
    return NULL;
}

/* A plan for up to max_rows rows, made when it is not there. NULL with an error. */
static struct plan *get_plan(struct cuda_device *d, const struct shape *shape, enum dtype out_dtype,
                             int max_rows)
{
    struct cuda_linear *l = d->linear;
    struct plan *p = find_plan(l, shape->n_out, shape->n_in, out_dtype);
    int n_ranges = linear_range_of(max_rows) + 1;
    if (p && p->n_ranges >= n_ranges)
        return p;
    if (!p) {
        array_reserve(&l->plan, &l->plan_capacity, l->n_plans + 1, sizeof(*l->plan));
        p = &l->plan[l->n_plans++];
        plan_init(p, shape->n_out, shape->n_in, out_dtype);
    }
    return linear_choose(p, d, shape->data, n_ranges) == 0 ? p : NULL;
}

static struct shape shape_of(const struct weight *w)
{
    return {w->n_out, w->n_in, w->gated, w->data};
}

static bool same_shape(const struct shape *a, const struct shape *b)
{
    return a->n_out == b->n_out && a->n_in == b->n_in && a->gated == b->gated;
}

void cuda_linear_add_weight(struct cuda_device *d, const struct weight *w)
{
    struct cuda_linear *l = d->linear;
    const struct shape shape = shape_of(w);
    size_t i = 0;
    while (i < l->n_shapes && !same_shape(&l->shape[i], &shape))
        i++;
    if (i == l->n_shapes) {
        array_reserve(&l->shape, &l->shape_capacity, l->n_shapes + 1, sizeof(*l->shape));
        l->n_shapes++;
    }
    l->shape[i] = shape;
}

void cuda_linear_remove_weight(struct cuda_device *d, const struct weight *w)
{
    struct cuda_linear *l = d->linear;
    for (size_t i = 0; i < l->n_shapes; i++) {
        if (l->shape[i].data == w->data)
            l->shape[i].data = NULL;
    }
}

int cuda_linear_reserve(struct cuda_device *d, const struct step_limits *limits)
{
    struct cuda_linear *l = d->linear;
    for (size_t i = 0; i < l->n_shapes; i++) {
        const struct shape *s = &l->shape[i];
        bool logits = s->n_out == limits->vocab && !s->gated;
        int max_rows = s->gated ? MIN(limits->max_tokens, GATE_ROWS) : limits->max_tokens;
        if (s->data && !get_plan(d, s, logits ? DTYPE_F32 : d->base.act_dtype,
                                 logits ? limits->max_rows : max_rows))
            return -1;
    }
    return 0;
}

size_t cuda_gate_workspace_bytes(const struct cuda_device *d, const struct step_limits *limits)
{
    const struct cuda_linear *l = d->linear;
    int n_out = 0;
    for (size_t i = 0; i < l->n_shapes; i++) {
        if (l->shape[i].gated)
            n_out = MAX(n_out, l->shape[i].n_out);
    }
    size_t n_rows = (size_t)MIN(limits->max_tokens, GATE_ROWS);
    return n_rows * (size_t)n_out * dtype_bytes(d->base.act_dtype);
}

/* ---- the plain kernel ---- */

#define TILE 16

/* y = x W^T: a block takes TILE x TILE of y, a thread one element, whose products it adds in order.
 */
template <typename Out, typename T>
static __global__ void plain_kernel(Out *y, const T *x, const T *w, int n_rows, int n_out, int n_in)
{
    __shared__ float x_tile[TILE][TILE + 1], w_tile[TILE][TILE + 1];
    int row = blockIdx.y * TILE + threadIdx.y, w_row = blockIdx.x * TILE + threadIdx.y;
    int column = blockIdx.x * TILE + threadIdx.x;
    float sum = 0;
    for (int first = 0; first < n_in; first += TILE) {
        int k = first + threadIdx.x;
        bool inside = k < n_in;
        x_tile[threadIdx.y][threadIdx.x] =
            inside && row < n_rows ? to_float(x[(size_t)row * n_in + k]) : 0;
        w_tile[threadIdx.y][threadIdx.x] =
            inside && w_row < n_out ? to_float(w[(size_t)w_row * n_in + k]) : 0;
        __syncthreads();
        for (int i = 0; i < TILE; i++)
            sum += x_tile[threadIdx.y][i] * w_tile[threadIdx.x][i];
        __syncthreads();
    }
    if (row < n_rows && column < n_out)
        y[(size_t)row * n_out + column] = from_float<Out>(sum);
}

static void multiply_plain(const struct cuda_device *d, const struct plan *p, void *y,
                           const void *x, const void *w, int n_rows)
{
    dim3 block(TILE, TILE);
    dim3 grid((unsigned)CEIL_DIV(p->n_out, TILE), (unsigned)CEIL_DIV(n_rows, TILE));
    CUDA_DISPATCH(d->base.act_dtype, T, {
        if (p->out_dtype == DTYPE_F32)
            plain_kernel<<<grid, block, 0, d->stream>>>((float *)y, (const T *)x, (const T *)w,
                                                        n_rows, p->n_out, p->n_in);
        else
            plain_kernel<<<grid, block, 0, d->stream>>>((T *)y, (const T *)x, (const T *)w, n_rows,
                                                        p->n_out, p->n_in);
    });
    CUDA_CHECK_LAUNCH();
}

/* ---- the operation ---- */

/* y: [n_rows, n_out] */
template <typename T>
static __global__ void add_bias_kernel(T *y, const float *bias, int n_out, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = from_float<T>(to_float(y[i]) + bias[i % n_out]);
}

/* out = x W^T + bias, of all rows of a gated W as well */
static void multiply_all(struct cuda_device *d, const struct linear_args *args)
{
    const int n_threads = 256;
    const struct weight *w = args->weight;
    const struct shape shape = shape_of(w);
    struct plan *p = get_plan(d, &shape, args->out_dtype, args->n_rows);
    if (!p)
        die("%s", err_get());
    bool aligned = ((size_t)args->x | (size_t)args->out) % LINEAR_ALIGNMENT == 0;
    assert(p->plain || aligned);
    if (p->plain)
        multiply_plain(d, p, args->out, args->x, w->data, args->n_rows);
    else
        CUBLAS_CHECK(linear_run(d, p, args->out, args->x, w->data, args->n_rows,
                                &p->algo[linear_range_of(args->n_rows)]));
    if (!args->bias)
        return;
    size_t n = (size_t)args->n_rows * (size_t)w->n_out;
    CUDA_DISPATCH(
        args->out_dtype, T,
        add_bias_kernel<<<(unsigned)CEIL_DIV(n, (size_t)n_threads), n_threads, 0, d->stream>>>(
            (T *)args->out, args->bias, w->n_out, n));
    CUDA_CHECK_LAUNCH();
}

static void multiply_gated(struct cuda_device *d, const struct linear_args *args)
{
    const struct weight *w = args->weight;
    size_t bytes = dtype_bytes(d->base.act_dtype), x_bytes = (size_t)w->n_in * bytes;
    size_t sum_bytes = (size_t)w->n_out * bytes, out_bytes = sum_bytes / 2;
    struct linear_args part = *args;
    part.out = d->gate_workspace;
    assert(args->out_dtype == d->base.act_dtype);
    assert((size_t)MIN(args->n_rows, GATE_ROWS) * sum_bytes <= d->gate_workspace_bytes);
    for (int row = 0; row < args->n_rows; row += GATE_ROWS) {
        part.n_rows = MIN(args->n_rows - row, GATE_ROWS);
        part.x = (const char *)args->x + (size_t)row * x_bytes;
        multiply_all(d, &part);
        cuda_silu_mul(d, (char *)args->out + (size_t)row * out_bytes, part.out, part.n_rows,
                      w->n_out / 2);
    }
}

void cuda_linear(struct device *device, const struct linear_args *args)
{
    struct cuda_device *d = cuda_device(device);
    if (args->n_rows == 0)
        return;
    if (args->weight->gated)
        multiply_gated(d, args);
    else
        multiply_all(d, args);
}
