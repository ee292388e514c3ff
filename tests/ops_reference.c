/* ops_reference.c - see ops_reference.h. */
#include "tests/ops_reference.h"
#include "tests/amx_emulation.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- numbers ---- */

float *random_floats(size_t n, float amplitude, uint64_t seed)
{
    float *x = xmalloc(n * sizeof(*x));
    for (size_t i = 0; i < n; i++) {
        double uniform = (double)(mix64(seed * 0x10001u + i) >> 11) * 0x1p-53;
        x[i] = (float)(amplitude * (2 * uniform - 1));
    }
    return x;
}

/* Significant bits, and the exponent of the smallest step, of each type. */
static const struct {
    int bits, min_exponent;
} formats[DTYPE_N] = {
    [DTYPE_F32] = {24, -149},
    [DTYPE_BF16] = {8, -133},
    [DTYPE_F16] = {11, -24},
};

float reference_round(enum dtype dtype, float x)
{
    int exponent;
    if (x == 0 || !isfinite(x))
        return x;
    frexp(x, &exponent);
    int step = MAX(exponent - formats[dtype].bits, formats[dtype].min_exponent);
    return (float)ldexp(nearbyint(ldexp(x, -step)), step);
}

void reference_round_all(enum dtype dtype, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = reference_round(dtype, x[i]);
}

static uint16_t encode_f16(float x)
{
    int exponent;
    unsigned sign = signbit(x) ? 0x8000u : 0, bits;
    frexp(x, &exponent); /* |x| = m 2^exponent with m in [1/2, 1) */
    if (isnan(x))
        bits = 0x7E00;
    else if (x == 0 || exponent < -13)
        bits = (unsigned)ldexp(fabsf(x), 24);
    else
        bits =
            (unsigned)(exponent + 14) << 10 | ((unsigned)ldexp(fabsf(x), 11 - exponent) & 0x3FFu);
    return (uint16_t)(sign | bits);
}

void *reference_encode(enum dtype dtype, const float *x, size_t n)
{
    char *array = xmalloc(n * dtype_bytes(dtype));
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        uint16_t half = dtype == DTYPE_F16 ? encode_f16(x[i]) : (uint16_t)(bits >> 16);
        if (dtype == DTYPE_F32)
            memcpy(array + 4 * i, &bits, 4);
        else
            memcpy(array + 2 * i, &half, 2);
    }
    return array;
}

float reference_decode(enum dtype dtype, const void *array, size_t i)
{
    if (dtype == DTYPE_F32)
        return ((const float *)array)[i];
    uint16_t half = ((const uint16_t *)array)[i];
    if (dtype == DTYPE_BF16) {
        uint32_t bits = (uint32_t)half << 16;
        float x;
        memcpy(&x, &bits, sizeof(x));
        return x;
    }
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double magnitude = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return (float)(half & 0x8000 ? -magnitude : magnitude);
}

/* ---- operations ---- */

void reference_linear(double *y, double *magnitude, const float *x, const float *w,
                      const float *bias, const int shape[3])
{
    size_t n_out = (size_t)shape[1], n_in = (size_t)shape[2];
    for (size_t m = 0; m < (size_t)shape[0]; m++) {
        for (size_t n = 0; n < n_out; n++) {
            double sum = bias ? bias[n] : 0, absolute = fabs(sum);
            for (size_t k = 0; k < n_in; k++) {
                double product = (double)x[m * n_in + k] * w[n * n_in + k];
                sum += product;
                absolute += fabs(product);
            }
            y[m * n_out + n] = sum;
            magnitude[m * n_out + n] = absolute;
        }
    }
}

void reference_rmsnorm(double *out, const double *x, const float *gain, int dim, double eps)
{
    double sum = 0;
    for (int i = 0; i < dim; i++)
        sum += x[i] * x[i];
    double scale = 1 / sqrt(sum / dim + eps);
    for (int i = 0; i < dim; i++)
        out[i] = x[i] * scale * gain[i];
}

void reference_rope(double *x, int head_dim, int position, double theta)
{
    int half = head_dim / 2;
    for (int j = 0; j < half; j++) {
        double angle = position * pow(theta, -2.0 * j / head_dim), a = x[j], b = x[j + half];
        x[j] = a * cos(angle) - b * sin(angle);
        x[j + half] = b * cos(angle) + a * sin(angle);
    }
}

double reference_silu(double x)
{
    return x / (1 + exp(-x));
}

void reference_attend(double *out, const struct reference_attention *a)
{
    double *score = xcalloc((size_t)a->last + 1, sizeof(*score)), largest = -INFINITY, sum = 0;
    for (int p = a->first; p <= a->last; p++) {
        for (int i = 0; i < a->head_dim; i++)
            score[p] += (double)a->q[i] * a->k[(size_t)p * a->stride + (size_t)i] * a->scale;
        if (a->softcap > 0)
            score[p] = a->softcap * tanh(score[p] / a->softcap);
        largest = fmax(largest, score[p]);
    }
    for (int i = 0; i < a->head_dim; i++)
        out[i] = 0;
    for (int p = a->first; p <= a->last; p++) {
        double weight = exp(score[p] - largest);
        sum += weight;
        for (int i = 0; i < a->head_dim; i++)
            out[i] += weight * a->v[(size_t)p * a->stride + (size_t)i];
    }
    for (int i = 0; i < a->head_dim; i++)
        out[i] /= sum;
    free(score);
}

struct ranked {
    double logit;
    int id;
};

static int compare_ranked(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

void reference_sampling(double *probability, const float *logits, int vocab,
                        const struct sample_row *row)
{
    struct ranked *rank = xcalloc((size_t)vocab, sizeof(*rank));
    for (int i = 0; i < vocab; i++) {
        rank[i] = (struct ranked){isnan(logits[i]) ? -INFINITY : logits[i], i};
        probability[i] = 0;
    }
    qsort(rank, (size_t)vocab, sizeof(*rank), compare_ranked);
    double largest = rank[0].logit, total = 0, kept = 0;
    int n = row->top_k > 0 ? MIN(row->top_k, vocab) : vocab;
    for (int i = 0; i < n; i++)
        total += exp((rank[i].logit - largest) / row->temperature);
    for (int i = 0; i < n; i++) {
        double weight = exp((rank[i].logit - largest) / row->temperature);
        if (i > 0 && ((row->top_p < 1 && kept >= row->top_p * total) || weight < row->min_p))
            break;
        kept += weight;
        probability[rank[i].id] = weight;
    }
    for (int i = 0; i < vocab; i++)
        probability[i] /= kept;
    free(rank);
}

/* ---- devices ---- */

const char *const CPU_ISAS[N_CPU_VARIANTS] = {
    "plain", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx", AMX_ON_PLAIN, AMX_ON_AVX512BF16,
};

struct device *open_cpu(const char *isa, int n_threads)
{
    if (strcmp(isa, AMX_ON_PLAIN) == 0 || strcmp(isa, AMX_ON_AVX512BF16) == 0)
        return open_emulated_amx(isa, n_threads);
    struct device *device =
        backend_cpu.open(&(struct device_options){.isa = isa, .n_threads = n_threads});
    if (!device)
        printf("skipped for %s: %s\n", isa, err_get());
    return device;
}

struct device *open_gpu(enum dtype act_dtype)
{
    const struct backend *backend = backend_find(DEVICE_CUDA);
    struct device *device =
        backend ? backend->open(&(struct device_options){.act_dtype = act_dtype}) : NULL;
    if (!device) {
        print_message("%s\n", err_get());
        skip();
    }
    return device;
}

void *to_device(struct device *device, const void *host, size_t bytes)
{
    void *memory = device->ops->alloc(device, bytes);
    assert_non_null(memory);
    device->ops->upload(device, memory, host, bytes);
    return memory;
}

void *to_device_as(struct device *device, enum dtype dtype, const float *x, size_t n)
{
    void *encoded = reference_encode(dtype, x, n);
    void *memory = to_device(device, encoded, n * dtype_bytes(dtype));
    free(encoded);
    return memory;
}

void *to_host(struct device *device, const void *memory, size_t bytes)
{
    void *host = xmalloc(bytes);
    device->ops->download(device, host, memory, bytes);
    return host;
}

float *to_host_as(struct device *device, enum dtype dtype, const void *memory, size_t n)
{
    void *raw = to_host(device, memory, n * dtype_bytes(dtype));
    float *x = xmalloc(n * sizeof(*x));
    for (size_t i = 0; i < n; i++)
        x[i] = reference_decode(dtype, raw, i);
    free(raw);
    return x;
}

void check_sum_words(struct device *device, size_t n_units)
{
    size_t bytes = n_units * SUM_UNIT, n = bytes / sizeof(uint32_t);
    uint32_t *word = xcalloc(n + 1, sizeof(*word)), expected = 0;
    for (size_t i = 0; i < n; i++)
        expected += word[i] = (uint32_t)mix64(i);
    void *memory = to_device(device, word, bytes);
    uint32_t *sum = device->ops->alloc(device, sizeof(*sum));
    device->ops->sum_words(device, sum, memory, bytes);
    uint32_t *got = to_host(device, sum, sizeof(*sum));
    assert_int_equal(*got, expected);
    device->ops->free(device, memory);
    device->ops->free(device, sum);
    free(got);
    free(word);
}

/* The number for a sum of bytes: another one for each. */
static uint16_t number_of_sum(uint32_t sum)
{
    return (uint16_t)(0x3000 + sum);
}

/* Element i of a stream, by the bytes of its hash. */
static float drawn_element(uint64_t stream, size_t i)
{
    uint64_t h = mix64(stream + i / 2) >> (i % 2 * 32);
    uint32_t sum = 0;
    for (int byte = 0; byte < 4; byte++)
        sum += h >> (byte * 8) & 0xFF;
    uint32_t bits = (uint32_t)number_of_sum(sum) << 16;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

void check_drawn_rows(struct device *device)
{
    enum { FIRST = 3, ROWS = 5, COLUMNS = 7 }; /* odd: rows begin amid a pair of elements */
    static const int rows[ROWS] = {0, 1, 2, 3, 4};
    struct random_bell bell;
    for (uint32_t sum = 0; sum < BYTE_SUMS; sum++)
        bell.value[sum] = number_of_sum(sum);
    const struct weight_part parts[] = {{.n_rows = FIRST, .random = {11, &bell}},
                                        {.n_rows = ROWS - FIRST, .random = {12, &bell}}};
    struct weight w = {.dtype = device->act_dtype, .n_in = COLUMNS};
    int *token = to_device(device, rows, sizeof(rows));
    void *x = device->ops->alloc(device, ROWS * COLUMNS * sizeof(float));
    assert_int_equal(device->ops->weight_load(device, &w, parts, 2), 0);
    device->ops->embed(device, x, &w, token, NULL, ROWS);
    float *got = to_host_as(device, device->act_dtype, x, ROWS * COLUMNS);
    for (size_t i = 0; i < ROWS * COLUMNS; i++) {
        size_t first = FIRST * COLUMNS;
        float expected = i < first ? drawn_element(11, i) : drawn_element(12, i - first);
        assert_same_bits(&got[i], &expected, sizeof(expected), "a drawn element");
    }
    device->ops->weight_free(device, &w);
    device->ops->free(device, token);
    device->ops->free(device, x);
    free(got);
}

/* ---- comparisons ---- */

void assert_near(double got, double expected, double tolerance, const char *what, size_t index)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("%s: element %zu is %.9g, expected %.9g within %.3g", what, index, got, expected,
                 tolerance);
}

void assert_same_bits(const void *a, const void *b, size_t bytes, const char *what)
{
    for (size_t i = 0; i < bytes; i++) {
        if (((const char *)a)[i] != ((const char *)b)[i])
            fail_msg("%s: byte %zu of %zu differs", what, i, bytes);
    }
}

void assert_gated(const float *got, const float *sums, size_t n_rows, size_t n_columns,
                  const double tolerance[2], const char *what)
{
    for (size_t i = 0; i < n_rows * n_columns; i++) {
        const float *gate = sums + i / n_columns * 2 * n_columns + i % n_columns;
        double expected = reference_silu(gate[0]) * gate[n_columns];
        assert_near(got[i], expected, tolerance[0] * fabs(expected) + tolerance[1], what, i);
    }
}

/* ---- copies of blocks ---- */

/* A pool and what it should hold. */
struct pool_case {
    struct kv_pool pool;
    char *expected; /* [n_planes, n_blocks, bytes] */
    size_t total;   /* bytes                       */
};

static void fill_expected(struct pool_case *c, int n_blocks, int n_planes, size_t bytes)
{
    c->pool.n_blocks = n_blocks;
    c->total = (size_t)n_planes * (size_t)n_blocks * bytes;
    c->expected = xmalloc(c->total);
    for (size_t i = 0; i < c->total; i++)
        c->expected[i] = (char)mix64(i + c->total);
}

static void copy_both(struct device *device, struct pool_case *dst, struct pool_case *src,
                      struct copy_blocks_args args)
{
    args.dst = dst->pool;
    args.src = src->pool;
    for (int c = 0; c < args.n_copies; c++) {
        for (int p = 0; p < args.n_planes; p++) {
            int to = p * dst->pool.n_blocks + args.copy[c].dst;
            int from = p * src->pool.n_blocks + args.copy[c].src;
            memcpy(dst->expected + (size_t)to * args.bytes,
                   src->expected + (size_t)from * args.bytes, args.bytes);
        }
    }
    device->ops->copy_blocks(device, &args);
}

void check_copy_blocks(struct device *device, int n_blocks, int n_planes, size_t bytes)
{
    struct pool_case on_device, on_host;
    fill_expected(&on_device, n_blocks, n_planes, bytes);
    fill_expected(&on_host, n_blocks + 1, n_planes, bytes);
    on_device.pool.memory = to_device(device, on_device.expected, on_device.total);
    on_host.pool.memory = device->ops->alloc_host(device, on_host.total);
    assert_non_null(on_host.pool.memory);
    memcpy(on_host.pool.memory, on_host.expected, on_host.total);

    struct kv_copy *copy = xcalloc((size_t)n_blocks, sizeof(*copy));
    struct copy_blocks_args args = {.bytes = bytes, .n_planes = n_planes, .copy = copy};
    for (int i = 0; i < n_blocks - 1; i++)
        copy[args.n_copies++] = (struct kv_copy){.src = i, .dst = n_blocks - i};
    copy_both(device, &on_host, &on_device, args);
    for (int i = 0; i < args.n_copies; i++)
        copy[i] = (struct kv_copy){.src = n_blocks - i, .dst = n_blocks - 1 - i};
    copy_both(device, &on_device, &on_host, args);
    for (int i = 0; i < n_blocks / 2; i++)
        copy[i] = (struct kv_copy){.src = 2 * i, .dst = 2 * i + 1};
    args.n_copies = n_blocks / 2;
    copy_both(device, &on_device, &on_device, args);
    args.n_copies = 0;
    copy_both(device, &on_host, &on_device, args);

    char *got = to_host(device, on_device.pool.memory, on_device.total); /* waits for all */
    assert_same_bits(got, on_device.expected, on_device.total, "blocks on the device");
    assert_same_bits(on_host.pool.memory, on_host.expected, on_host.total, "blocks on the host");
    device->ops->free(device, on_device.pool.memory);
    device->ops->free(device, on_host.pool.memory);
    free(on_device.expected);
    free(on_host.expected);
    free(copy);
    free(got);
}
