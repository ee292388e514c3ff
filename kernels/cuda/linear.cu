/* linear.cu - y = x W^T + bias by cuBLASLt or linear_decode.cu, with rows whose bits do not depend
 * on how many there are.
 *
 * x: [n_rows, n_in], W: [n_out, n_in], y: [n_rows, n_out], row-major; for the column-major library
 * y^T = W x^T. Accumulation is f32; f32 matrices are multiplied without TF32.
 *
 * Which algorithm a product takes, linear_choose.cu decides once, before the first step. Shapes for
 * which there is none whose rows do not depend on their number (odd sizes in 16-bit types) take a
 * plain kernel at the end of this file.
 *
 * In a decode step a product with few rows of W has few tiles, each a long chain of products. On
 * Hopper the sums of such shapes are those of two parts, at every number of rows. Up to 256 rows
 * each part has tiles of its own, and the norm that follows adds the parts up; otherwise the
 * product is that of linear_prefill.cu.
 *
 * Gated products are rounded to the type of x before they are gated, which silu_mul.cu does.
 */
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/rope_cache.cuh"

#include <stdlib.h>

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

int cuda_linear_open(struct cuda_device *d)
{
    void *workspace = cuda_alloc(&d->base, LINEAR_WORKSPACE_BYTES);
    if (!workspace)
        return -1;
    struct cuda_linear *l = (struct cuda_linear *)xcalloc(1, sizeof(*l));
    l->workspace = workspace;
    CUBLAS_CHECK(cublasLtCreate(&l->handle));
    d->linear = l;
    return 0;
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
                         const struct product_shape *shape, int n_rows)
{
    cudaDataType_t in = cuda_type(d->base.act_dtype), out = cuda_type(shape->out_dtype);
    uint64_t n_in = (uint64_t)shape->n_in, n_out = (uint64_t)shape->n_out, rows = (uint64_t)n_rows;
    CUBLAS_CHECK(cublasLtMatrixLayoutInit(&l->w, in, n_in, n_out, shape->n_in));
    CUBLAS_CHECK(cublasLtMatrixLayoutInit(&l->x, in, n_in, rows, shape->n_in));
    CUBLAS_CHECK(cublasLtMatrixLayoutInit(&l->y, out, n_out, rows, shape->n_out));
}

/* ---- plans ---- */

/* 1024x2048 and 1024x3072 are narrow. What other shapes would gain has not been measured. */
#define NARROW_ROWS    1024 /* of W, at most   */
#define NARROW_COLUMNS 2048 /* of W, at least  */

/* Parts of a product's columns: a function of its shape alone. */
static int parts_of(const struct cuda_device *d, const struct product_shape *s)
{
    const int n = CUDA_LINEAR_PARTS;
    bool is_narrow = s->n_out <= NARROW_ROWS && s->n_in >= NARROW_COLUMNS && !s->gated;
    bool can = is_narrow && linear_decode_can(d, s->n_out, s->n_in, n, 1) &&
               linear_prefill_can(d, s->n_out, s->n_in, n);
    return can ? n : 1;
}

static void plan_init(struct plan *p, const struct cuda_device *d,
                      const struct product_shape *shape)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    *p = {};
    p->shape = *shape;
    p->n_parts = parts_of(d, shape);
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA,
                                                &transposed, sizeof(transposed)));
}

static struct plan *find_plan(const struct cuda_linear *l, const struct product_shape *shape)
{
    for (size_t i = 0; i < l->n_plans; i++) {
        const struct product_shape *s = &l->plan[i].shape;
        if (s->n_out == shape->n_out && s->n_in == shape->n_in && s->gated == shape->gated &&
            s->out_dtype == shape->out_dtype)
            return &l->plan[i];
    }
    return NULL;
}

/* A plan for up to max_rows rows, made when it is not there. NULL with an error. */
static struct plan *get_plan(struct cuda_device *d, const struct shape *shape, enum dtype out_dtype,
                             int max_rows)
{
    struct cuda_linear *l = d->linear;
    const struct product_shape s = {shape->n_out, shape->n_in, shape->gated, out_dtype};
    struct plan *p = find_plan(l, &s);
    int n_ranges = linear_range_of(max_rows) + 1;
    if (p && p->n_ranges >= n_ranges)
        return p;
    if (!p) {
        array_reserve(&l->plan, &l->plan_capacity, l->n_plans + 1, sizeof(*l->plan));
        p = &l->plan[l->n_plans++];
        plan_init(p, d, &s);
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
        if (s->data && !get_plan(d, s, logits ? DTYPE_F32 : d->base.act_dtype,
                                 logits ? limits->max_rows : limits->max_tokens))
            return -1;
    }
    return 0;
}

/* Whether gates are a kernel of their own, which reads what the product left in scratch memory. */
static bool leaves_gates(const struct plan *p, const struct algorithm *algo, const float *bias)
{
    return p->shape.gated && (p->plain || algo->kind == OF_LIBRARY || bias);
}

/* Whether gates are left for more rows than a self-check has. */
static bool leaves_many_gates(const struct plan *p)
{
    for (int range = linear_range_of(LINEAR_CHECK_ROWS) + 1; range < p->n_ranges; range++) {
        if (leaves_gates(p, &p->algo[range], NULL))
            return true;
    }
    return false;
}

/* Of a gated product before it is gated. */
static size_t gate_bytes(const struct cuda_device *d, const struct product_shape *s, int n_rows)
{
    return (size_t)n_rows * (size_t)s->n_out * dtype_bytes(d->base.act_dtype);
}

size_t cuda_gate_workspace_bytes(const struct cuda_device *d, const struct step_limits *limits)
{
    const struct cuda_linear *l = d->linear;
    size_t bytes = 0;
    for (size_t i = 0; i < l->n_shapes; i++) {
        const struct product_shape s = {l->shape[i].n_out, l->shape[i].n_in, l->shape[i].gated,
                                        d->base.act_dtype};
        const struct plan *p = find_plan(l, &s);
        int n_rows = LINEAR_CHECK_ROWS;
        if (p && leaves_many_gates(p))
            n_rows = MAX(n_rows, MIN(limits->max_tokens, LINEAR_GATE_ROWS));
        if (s.gated)
            bytes = MAX(bytes, gate_bytes(d, &s, n_rows));
    }
    return bytes;
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

static void multiply_plain(const struct cuda_device *d, const struct product_shape *s, void *y,
                           const struct product *product)
{
    dim3 block(TILE, TILE);
    dim3 grid((unsigned)CEIL_DIV(s->n_out, TILE), (unsigned)CEIL_DIV(product->n_rows, TILE));
    CUDA_DISPATCH(d->base.act_dtype, T, {
        const T *x = (const T *)product->x, *w = (const T *)product->w;
        if (s->out_dtype == DTYPE_F32)
            plain_kernel<<<grid, block, 0, d->stream>>>((float *)y, x, w, product->n_rows, s->n_out,
                                                        s->n_in);
        else
            plain_kernel<<<grid, block, 0, d->stream>>>((T *)y, x, w, product->n_rows, s->n_out,
                                                        s->n_in);
    });
    CUDA_CHECK_LAUNCH();
}

/* ---- one product ---- */

/* y: [n_rows, n_out] */
template <typename T>
static __global__ void add_bias_kernel(T *y, const float *bias, int n_out, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = from_float<T>(to_float(y[i]) + bias[i % n_out]);
}

static void add_bias(const struct cuda_device *d, const struct product_shape *s, void *y,
                     const struct product *product)
{
    const int n_threads = 256;
    size_t n = (size_t)product->n_rows * (size_t)s->n_out;
    CUDA_DISPATCH(
        s->out_dtype, T,
        add_bias_kernel<<<(unsigned)CEIL_DIV(n, (size_t)n_threads), n_threads, 0, d->stream>>>(
            (T *)y, product->bias, s->n_out, n));
    CUDA_CHECK_LAUNCH();
}

static void multiply_many(const struct cuda_device *d, const struct plan *p, void *y,
                          const struct product *product, bool gated)
{
    const struct linear_prefill_args args = {.y = y,
                                             .x = product->x,
                                             .w = product->w,
                                             .n_rows = product->n_rows,
                                             .n_out = p->shape.n_out,
                                             .n_in = p->shape.n_in,
                                             .n_parts = p->n_parts,
                                             .out_dtype = p->shape.out_dtype,
                                             .gated = gated};
    linear_prefill(d, &args);
}

static void multiply_few(const struct cuda_device *d, const struct plan *p, void *y,
                         const struct product *product, const struct algorithm *algo, bool gated)
{
    const struct linear_decode_args args = {.y = y,
                                            .x = product->x,
                                            .w = product->w,
                                            .n_rows = product->n_rows,
                                            .n_out = p->shape.n_out,
                                            .n_in = p->shape.n_in,
                                            .n_parts = 1,
                                            .out_dtype = p->shape.out_dtype,
                                            .gated = gated,
                                            .heads = NULL,
                                            .tile_rows = algo->tile_rows};
    linear_decode(d, &args);
}

static cublasStatus_t multiply_by_library(const struct cuda_device *d, const struct plan *p,
                                          void *y, const struct product *product,
                                          const struct algorithm *algo)
{
    const float one = 1, zero = 0;
    struct linear_layouts l;
    linear_layouts_init(&l, d, &p->shape, product->n_rows);
    return cublasLtMatmul(d->linear->handle, p->product, &one, product->w, &l.w, product->x, &l.x,
                          &zero, y, &l.y, y, &l.y, &algo->library, d->linear->workspace,
                          LINEAR_WORKSPACE_BYTES, d->stream);
}

cublasStatus_t linear_run(const struct cuda_device *d, const struct plan *p,
                          const struct algorithm *algo, const struct product *product)
{
    bool gate_apart = leaves_gates(p, algo, product->bias);
    bool gated = p->shape.gated && !gate_apart;
    void *y = gate_apart ? d->gate_workspace : product->y;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    assert(!gate_apart || gate_bytes(d, &p->shape, product->n_rows) <= d->gate_workspace_bytes);
    if (p->plain)
        multiply_plain(d, &p->shape, y, product);
    else if (algo->kind == OF_DECODE)
        multiply_few(d, p, y, product, algo, gated);
    else if (algo->kind == OF_PREFILL)
        multiply_many(d, p, y, product, gated);
    else
        status = multiply_by_library(d, p, y, product, algo);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (product->bias)
        add_bias(d, &p->shape, y, product);
    if (gate_apart)
        cuda_silu_mul(d, product->y, y, product->n_rows, product_columns(&p->shape));
    return status;
}

/* ---- the operations ---- */

/* The plan for so many rows; there is one. */
static const struct plan *need_plan(struct cuda_device *d, const struct linear_args *args,
                                    int n_rows)
{
    const struct shape shape = shape_of(args->weight);
    const struct plan *p = get_plan(d, &shape, args->out_dtype, n_rows);
    if (!p)
        die("%s", err_get());
    assert(p->plain || ((size_t)args->x | (size_t)args->out) % LINEAR_ALIGNMENT == 0);
    return p;
}

/* The rows that one product can have: where it leaves gates, scratch memory may not hold all. */
static int rows_at_once(const struct cuda_device *d, const struct plan *p,
                        const struct linear_args *args)
{
    const struct algorithm *algo = &p->algo[linear_range_of(args->n_rows)];
    size_t most = SIZE_MAX;
    if (leaves_gates(p, algo, args->bias))
        most = d->gate_workspace_bytes / gate_bytes(d, &p->shape, 1);
    assert(most > 0);
    return (int)MIN((size_t)args->n_rows, most);
}

void cuda_linear(struct device *device, const struct linear_args *args)
{
    struct cuda_device *d = cuda_device(device);
    const struct weight *w = args->weight;
    if (args->n_rows == 0)
        return;
    assert(!w->gated || args->out_dtype == d->base.act_dtype);
    const struct plan *p = need_plan(d, args, args->n_rows);
    size_t x_bytes = (size_t)w->n_in * dtype_bytes(d->base.act_dtype);
    size_t y_bytes = (size_t)product_columns(&p->shape) * dtype_bytes(args->out_dtype);
    for (int row = 0, at_once = rows_at_once(d, p, args); row < args->n_rows; row += at_once) {
        const struct product product = {.y = (char *)args->out + (size_t)row * y_bytes,
                                        .x = (const char *)args->x + (size_t)row * x_bytes,
                                        .w = w->data,
                                        .bias = args->bias,
                                        .n_rows = MIN(args->n_rows - row, at_once)};
        CUBLAS_CHECK(linear_run(d, p, &p->algo[linear_range_of(product.n_rows)], &product));
    }
}

/* A product of linear_decode.cu as the arguments say it, to be filled in with tile_rows. */
static struct linear_decode_args decode_args_of(const struct linear_args *args)
{
    return {.y = args->out,
            .x = args->x,
            .w = args->weight->data,
            .n_rows = args->n_rows,
            .n_out = args->weight->n_out,
            .n_in = args->weight->n_in,
            .n_parts = 1,
            .out_dtype = args->out_dtype,
            .gated = false,
            .heads = NULL,
            .tile_rows = 0};
}

bool cuda_linear_heads(struct cuda_device *d, const struct linear_args *args,
                       const struct rope_params *heads)
{
    const struct plan *p = need_plan(d, args, args->n_rows);
    assert(args->out == heads->qkv && args->n_rows == heads->n_tokens && !args->weight->gated);
    int tile = p->heads_tile[linear_range_of(args->n_rows)];
    if (tile > 0 && !linear_decode_can_heads(heads, tile))
        tile = LINEAR_HEADS_TILE;
    bool can = tile > 0 && linear_decode_can_heads(heads, tile) && p->n_parts == 1;
    if (args->bias || !can)
        return false;
    struct linear_decode_args decode = decode_args_of(args);
    decode.heads = heads;
    decode.tile_rows = tile;
    linear_decode(d, &decode);
    return true;
}

/* Rows of W that a block takes: what decode steps of Qwen3-0.6B's shape were fastest with, though
 * not by much (H200, results/bench/h200-linear.md). */
static int part_tile(int n_rows)
{
    if (n_rows > 128)
        return 64;
    return n_rows > 64 || (n_rows > 4 && n_rows <= 16) ? 48 : 32;
}

const float *cuda_linear_parts(struct cuda_device *d, const struct linear_args *args)
{
    float *sums = (float *)d->linear->workspace;
    if (args->bias || args->n_rows > LINEAR_DECODE_MAX_ROWS || args->n_rows == 0)
        return NULL;
    const struct plan *p = need_plan(d, args, args->n_rows);
    if (p->n_parts == 1 || p->plain)
        return NULL;
    assert((size_t)p->n_parts * LINEAR_DECODE_MAX_ROWS * NARROW_ROWS * sizeof(*sums) <=
           LINEAR_WORKSPACE_BYTES);
    struct linear_decode_args decode = decode_args_of(args);
    decode.y = sums;
    decode.n_parts = p->n_parts;
    decode.tile_rows = part_tile(args->n_rows);
    linear_decode(d, &decode);
    return sums;
}
