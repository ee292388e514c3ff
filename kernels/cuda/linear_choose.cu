/* linear_choose.cu - which algorithm a product takes, for each range of numbers of rows.
 *
 * The library's own choice changes with n_rows, and with it the order in which the n_in products of
 * an element are added: it cuts a long sum into parts where there are few tiles. So for each matrix
 * shape one algorithm is chosen for each range of n_rows, once, before the first step: algorithms
 * that cut the sum are left out, and of the others a range takes the fastest whose results equal,
 * bit for bit, those of the shape's standard algorithm, the one of the longest range. Up to 256
 * rows the kernel of linear_decode.cu, with tiles of several sizes, is among them, and for all
 * numbers of rows that of linear_prefill.cu: the library's algorithms turned out to add in their
 * order. A gated product is chosen with its gate, which is a kernel of its own behind the
 * library's. Sums in parts come from linear_prefill.cu alone. What is compared: rows that repeat
 * with an odd period, so that a row is also seen at many places of a tile.
 */
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sum_words.cuh"

#include <limits.h>
#include <math.h>
#include <string.h>

#define MAX_CANDIDATES 12
#define N_RUNS         4 /* of each algorithm that is timed */

/* The self-check: PERIOD different rows, as many as fit in CHECK_BYTES of results. */
#define PERIOD      37
#define CHECK_BYTES ((size_t)64 << 20)

/* What is timed once for all longer ranges. It is over before the card's power limits its clock, as
 * in long steps, and there the library loses less: 8192 rows of 6144x4096 take it 595 us and
 * linear_prefill() 633. So that has to be clearly the faster, as it is with 2048 rows of 4096x1024:
 * 23.2 us instead of 26.4 (H200). */
#define MANY_ROWS   2048
#define CLEAR_RATIO 0.95f

/* The last n_rows of each range; the last range has no end and is tuned for LARGEST. Wider ranges
 * cost: 2048 rows of 1024x2048 take 22 us in a range up to 4096, 13 us in their own (H200). */
static const int range_end[LINEAR_RANGES] = {16, 64, 128, 256, 512, 1024, 2048, 4096, INT_MAX};
#define LARGEST 8192

int linear_range_of(int n_rows)
{
    int range = 0;
    while (n_rows > range_end[range])
        range++;
    return range;
}

/* ---- candidates ---- */

static void set_preference(cublasLtMatmulPreference_t preference,
                           cublasLtMatmulPreferenceAttributes_t attribute, uint64_t value,
                           size_t bytes)
{
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, bytes));
}

static bool cuts_sums(const cublasLtMatmulAlgo_t *algo)
{
    uint32_t parts = 1;
    size_t written;
    CUBLAS_CHECK(cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts,
                                                      sizeof(parts), &written));
    return parts > 1;
}

/* The library's algorithms that do not cut sums, by its estimate the fastest for n_rows first;
 * returns how many. */
static int find_of_library(struct algorithm *out, int most, const struct cuda_device *d,
                           const struct plan *p, int n_rows)
{
    struct linear_layouts l;
    int n_found = 0, n = 0;
    linear_layouts_init(&l, d, &p->shape, n_rows);
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, LINEAR_WORKSPACE_BYTES, 8);
    set_preference(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                   CUBLASLT_REDUCTION_SCHEME_NONE, 4);
    set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, LINEAR_ALIGNMENT, 4);
    set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, LINEAR_ALIGNMENT, 4);
    set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, LINEAR_ALIGNMENT, 4);
    set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, LINEAR_ALIGNMENT, 4);
    cublasLtMatmulHeuristicResult_t found[MAX_CANDIDATES];
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(linear_library(d), p->product, &l.w, &l.x, &l.y, &l.y,
                                       preference, MAX_CANDIDATES, found, &n_found);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (status != CUBLAS_STATUS_SUCCESS)
        n_found = 0;
    for (int i = 0; i < n_found && n < most; i++) {
        if (found[i].state == CUBLAS_STATUS_SUCCESS && !cuts_sums(&found[i].algo))
            out[n++] =
                (struct algorithm){.kind = OF_LIBRARY, .tile_rows = 0, .library = found[i].algo};
    }
    return n;
}

/* Algorithms for any number of rows, the likely ones first: that of linear_prefill() and the
 * library's first, or the other way round, then more of the library's, which has none for sums in
 * parts. Returns how many. */
static int find_candidates(struct algorithm out[MAX_CANDIDATES], const struct cuda_device *d,
                           const struct plan *p, int n_rows)
{
    int n = 0;
    if (linear_prefill_can(d, p->shape.n_out, p->shape.n_in, p->n_parts))
        out[n++] = (struct algorithm){.kind = OF_PREFILL, .tile_rows = 0, .library = {}};
    if (p->n_parts > 1)
        return n;
    int n_own = n;
    n += find_of_library(out + n, MAX_CANDIDATES - n, d, p, n_rows);
    if (p->library_first && n_own > 0 && n > n_own) {
        const struct algorithm own = out[0];
        out[0] = out[1];
        out[1] = own;
    }
    return n;
}

/* ---- the self-check ---- */

static const int decode_tiles[] = LINEAR_DECODE_TILES;
static const char *const kind_name[] = {"library", "decode", "prefill"};

/* Algorithms of a range that are compared with each other. */
#define MAX_CHOICES (LINEAR_RANGES + MAX_CANDIDATES + (int)ARRAY_LEN(decode_tiles))

/* Products of all algorithms of a range are enqueued before the host waits for what they gave. */
struct check {
    const void *w;
    char *memory;     /* of the following                                 */
    char *x;          /* [most_rows, n_in], row i equal to row i % PERIOD */
    char *y;          /* [most_rows, product_columns()]                   */
    char *standard;   /* [PERIOD, ...]: what all algorithms must give     */
    int *differences; /* [MAX_CHOICES]                                    */
    char *other;      /* [other_bytes]: more than the L2 cache holds      */
    size_t other_bytes;
    int n_rows;    /* of a self-check                 */
    int most_rows; /* MANY_ROWS where these are timed */
    cudaEvent_t event[MAX_CHOICES + 1];
};

template <typename T> static __global__ void fill_rows_kernel(T *x, int n_in, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    uint32_t h = (uint32_t)(i / n_in % PERIOD * 0x9E3779B1u + i % n_in * 0x85EBCA77u);
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    x[i] = from_float<T>((float)(int32_t)(h ^ h >> 15) * 0x1p-31f);
}

/* y, standard: 16-bit words, row_words a row */
static __global__ void count_differences_kernel(int *differences, const uint16_t *y,
                                                const uint16_t *standard, int row_words, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && y[i] != standard[i % ((size_t)row_words * PERIOD)])
        atomicAdd(differences, 1);
}

static size_t l2_bytes(void)
{
    int device, bytes;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device));
    return (size_t)bytes;
}

/* Of a row of y. */
static size_t result_bytes(const struct plan *p)
{
    return (size_t)product_columns(&p->shape) * dtype_bytes(p->shape.out_dtype);
}

/* Whether MANY_ROWS are timed. Gates and parts linear_prefill() has in its kernel, and is preferred
 * for them: 8192 rows of 24576x4096, gated, in 2434 us instead of 2487, of 6144x1024 in 162 instead
 * of 183 (H200). */
static bool many_are_timed(const struct cuda_device *d, const struct plan *p)
{
    bool can = linear_prefill_can(d, p->shape.n_out, p->shape.n_in, p->n_parts);
    return can && !p->shape.gated && p->n_parts == 1 &&
           range_end[p->n_ranges - 1] > LINEAR_CHECK_ROWS &&
           MANY_ROWS * result_bytes(p) <= CHECK_BYTES;
}

static int check_open(struct check *c, struct cuda_device *d, const struct plan *p, const void *w)
{
    const int n_threads = 256;
    size_t row_bytes = result_bytes(p);
    *c = {};
    for (size_t i = 0; i < ARRAY_LEN(c->event); i++)
        CUDA_CHECK(cudaEventCreate(&c->event[i]));
    c->w = w;
    c->n_rows = (int)MIN(MAX(CHECK_BYTES / row_bytes, PERIOD), LINEAR_CHECK_ROWS);
    c->most_rows = many_are_timed(d, p) ? MANY_ROWS : c->n_rows;
    c->other_bytes = l2_bytes() / 4 * 5;
    size_t n = (size_t)c->most_rows * (size_t)p->shape.n_in, offset[5];
    const size_t bytes[] = {n * dtype_bytes(d->base.act_dtype), c->most_rows * row_bytes,
                            PERIOD * row_bytes, MAX_CHOICES * sizeof(int), c->other_bytes};
    size_t total = 0;
    for (size_t i = 0; i < ARRAY_LEN(bytes); i++) {
        offset[i] = total;
        total += CEIL_DIV(bytes[i], (size_t)256) * 256;
    }
    c->memory = (char *)cuda_alloc(&d->base, total);
    if (!c->memory)
        return err_prefix("choosing matrix products");
    c->x = c->memory + offset[0];
    c->y = c->memory + offset[1];
    c->standard = c->memory + offset[2];
    c->differences = (int *)(c->memory + offset[3]);
    c->other = c->memory + offset[4];
    CUDA_DISPATCH(
        d->base.act_dtype, T,
        fill_rows_kernel<<<(unsigned)CEIL_DIV(n, (size_t)n_threads), n_threads, 0, d->stream>>>(
            (T *)c->x, p->shape.n_in, n));
    CUDA_CHECK_LAUNCH();
    return 0;
}

static void check_close(struct check *c, struct cuda_device *d)
{
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    cuda_free(&d->base, c->memory);
    for (size_t i = 0; i < ARRAY_LEN(c->event); i++)
        CUDA_CHECK(cudaEventDestroy(c->event[i]));
}

/* The rows of a range's first and largest product, as many as the check has: all ranges beyond it
 * are checked with the same product. */
static int first_rows(const struct check *c, int range)
{
    return MIN(range == 0 ? 1 : range_end[range - 1] + 1, c->n_rows);
}

static int last_rows(const struct check *c, int range)
{
    return MIN(range_end[range], c->n_rows);
}

static void check_clear(const struct check *c, struct cuda_device *d)
{
    CUDA_CHECK(cudaMemsetAsync(c->differences, 0, MAX_CHOICES * sizeof(int), d->stream));
}

static cublasStatus_t check_run(const struct check *c, const struct cuda_device *d,
                                const struct plan *p, const struct algorithm *algo, void *y,
                                int n_rows)
{
    const struct product product = {.y = y, .x = c->x, .w = c->w, .bias = NULL, .n_rows = n_rows};
    return linear_run(d, p, algo, &product);
}

/* Adds to differences[counter] in how many places the algorithm's products at both ends of a range
 * differ from the standard. false: it cannot do them. */
static bool check_range(const struct check *c, struct cuda_device *d, const struct plan *p,
                        const struct algorithm *algo, int range, int counter)
{
    const int n_threads = 256, n_rows[] = {first_rows(c, range), last_rows(c, range)};
    int row_words = (int)(result_bytes(p) / sizeof(uint16_t));
    for (size_t i = n_rows[0] == n_rows[1]; i < ARRAY_LEN(n_rows); i++) {
        if (check_run(c, d, p, algo, c->y, n_rows[i]) != CUBLAS_STATUS_SUCCESS)
            return false;
        size_t n = (size_t)n_rows[i] * (size_t)row_words;
        count_differences_kernel<<<(unsigned)CEIL_DIV(n, (size_t)n_threads), n_threads, 0,
                                   d->stream>>>(c->differences + counter, (const uint16_t *)c->y,
                                                (const uint16_t *)c->standard, row_words, n);
        CUDA_CHECK_LAUNCH();
    }
    return true;
}

/* Waits for the checks since check_clear(). */
static void check_read(const struct check *c, struct cuda_device *d, int differences[MAX_CHOICES])
{
    cuda_download(&d->base, differences, c->differences, MAX_CHOICES * sizeof(int));
}

static int tuned_rows(int range)
{
    return MIN(range_end[range], LARGEST);
}

static bool same_algorithm(const struct algorithm *a, const struct algorithm *b)
{
    return a->kind == b->kind && a->tile_rows == b->tile_rows &&
           memcmp(&a->library, &b->library, sizeof(a->library)) == 0;
}

/* Takes the algorithm as the standard, if its rows do not depend on their number: then it can serve
 * any range. */
static bool try_standard(struct plan *p, struct cuda_device *d, const struct check *c,
                         const struct algorithm *algo)
{
    int differences[MAX_CHOICES];
    if (check_run(c, d, p, algo, c->standard, PERIOD) != CUBLAS_STATUS_SUCCESS)
        return false;
    check_clear(c, d);
    for (int range = 0; range < p->n_ranges; range++) {
        bool repeats = range > 0 && first_rows(c, range - 1) == c->n_rows;
        if (!repeats && !check_range(c, d, p, algo, range, 0))
            return false;
        p->algo[range] = *algo;
    }
    check_read(c, d, differences);
    return differences[0] == 0;
}

/* Algorithms that a range may take, each once. */
struct choices {
    int n;
    struct algorithm algo[MAX_CHOICES];
    float ms[MAX_CHOICES]; /* of a few products; INFINITY: other results, or none */
};

static void choices_add(struct choices *o, const struct algorithm *algo)
{
    for (int i = 0; i < o->n; i++) {
        if (same_algorithm(&o->algo[i], algo))
            return;
    }
    o->algo[o->n++] = *algo;
}

/* Stands for what is ahead of a product in a step: reads so much that nothing of W is left in the
 * L2 cache, and then, as a norm does, takes a while in which a product that starts early reads W.
 * found: where it is noted when a thread's sum is 1, so that the reads are needed. */
static __global__ void __launch_bounds__(SUM_THREADS)
    neighbour_kernel(int *found, const uint4 *memory, size_t n)
{
    const long long n_cycles = 4000; /* 2 us */
    previous_kernel_wait();
    if (sum_share(memory, n) == 1)
        *found = 1;
    next_kernel_start();
    for (long long start = clock64(); clock64() - start < n_cycles;)
        continue;
}

static void run_neighbour(const struct check *c, struct cuda_device *d)
{
    cuda_launch_early(d, neighbour_kernel, dim3((unsigned)(d->n_sms * SUM_BLOCKS_PER_SM)),
                      SUM_THREADS, 0, c->differences, (const uint4 *)c->other,
                      c->other_bytes / sizeof(uint4));
}

/* Times the choices from `first` on that give the right results, with the most rows of the range.
 * The neighbour takes longer than the host to enqueue what follows it, so one more goes ahead. */
static void choices_run(struct choices *o, int first, const struct plan *p, struct cuda_device *d,
                        const struct check *c, int range)
{
    run_neighbour(c, d);
    CUDA_CHECK(cudaEventRecord(c->event[first], d->stream));
    for (int i = first; i < o->n; i++) {
        for (int run = 0; run < N_RUNS && isfinite(o->ms[i]); run++) {
            run_neighbour(c, d);
            CUBLAS_CHECK(check_run(c, d, p, &o->algo[i], c->y, last_rows(c, range)));
        }
        CUDA_CHECK(cudaEventRecord(c->event[i + 1], d->stream));
    }
    CUDA_CHECK(cudaEventSynchronize(c->event[o->n]));
}

/* Checks and times the choices from `first` on. */
static void choices_time(struct choices *o, int first, const struct plan *p, struct cuda_device *d,
                         const struct check *c, int range)
{
    int differences[MAX_CHOICES];
    check_clear(c, d);
    for (int i = first; i < o->n; i++)
        o->ms[i] = check_range(c, d, p, &o->algo[i], range, i) ? 0 : INFINITY;
    check_read(c, d, differences);
    for (int i = first; i < o->n; i++)
        o->ms[i] = differences[i] == 0 ? o->ms[i] : INFINITY;
    choices_run(o, first, p, d, c, range);
    for (int i = first; i < o->n; i++) {
        if (isfinite(o->ms[i]))
            CUDA_CHECK(cudaEventElapsedTime(&o->ms[i], c->event[i], c->event[i + 1]));
    }
}

static int choices_fastest(const struct choices *o)
{
    int best = 0;
    for (int i = 1; i < o->n; i++)
        best = o->ms[i] < o->ms[best] ? i : best;
    return best;
}

/* The tile of a product that goes on with heads, if that is worth it: it saves a launch that takes
 * some 3 us. Its kernel comes in two sizes, of which the larger is for more small tiles than there
 * are blocks at a time: N of h200-engine.md, 29,350 tok/s with small ones, comes to 29,560 with
 * large ones, and to 29,220 without. 256 rows of 6144x4096 take either size 14 us longer than the
 * library, which is not worth it (H200). */
static int choices_heads_tile(const struct choices *o, const struct cuda_device *d,
                              const struct plan *p, int n_rows)
{
    int n_small = CEIL_DIV(n_rows, LINEAR_HEADS_TILE) * CEIL_DIV(p->shape.n_out, LINEAR_HEADS_TILE);
    int tile = n_small <= d->n_sms ? LINEAR_HEADS_TILE : 2 * LINEAR_HEADS_TILE;
    float worth_ms = o->ms[choices_fastest(o)] + 0.003f * N_RUNS;
    for (int i = 0; i < o->n; i++) {
        if (o->algo[i].kind == OF_DECODE && o->algo[i].tile_rows == tile && o->ms[i] < worth_ms)
            return tile;
    }
    return 0;
}

/* Up to 512 rows the library's first choice without split sums is at times ten times slower than
 * another one (H200: 1024x3072, 64 rows: 72 us and 7 us), so it has to beat those of the longer
 * ranges; if neither it nor our kernels do, all candidates are timed. So they are for gates, where
 * the longer ranges have none of the library's. */
static void choose_by_time(struct plan *p, struct cuda_device *d, const struct check *c, int range,
                           const struct algorithm *candidate, int n)
{
    struct choices o = {};
    if (p->n_parts == 1 &&
        linear_decode_can(d, p->shape.n_out, p->shape.n_in, 1, range_end[range])) {
        struct algorithm own = {};
        own.kind = OF_DECODE;
        for (size_t i = 0; i < ARRAY_LEN(decode_tiles); i++) {
            own.tile_rows = decode_tiles[i];
            choices_add(&o, &own);
        }
    }
    bool none_longer = p->shape.gated && p->algo[p->n_ranges - 1].kind == OF_PREFILL;
    int n_likely = none_longer ? n : MIN(n, 2);
    for (int i = 0; i < n_likely; i++)
        choices_add(&o, &candidate[i]);
    int n_first = o.n;
    for (int longer = range + 1; longer < p->n_ranges; longer++)
        choices_add(&o, &p->algo[longer]);
    choices_time(&o, 0, p, d, c, range);
    int n_timed = o.n, best = choices_fastest(&o);
    if (best >= n_first) {
        for (int i = n_likely; i < n; i++)
            choices_add(&o, &candidate[i]);
        if (o.n > n_timed)
            choices_time(&o, n_timed, p, d, c, range);
        best = choices_fastest(&o);
    }
    p->algo[range] = o.algo[best];
    p->heads_tile[range] = choices_heads_tile(&o, d, p, last_rows(c, range));
    log_debug("products of %d to %d rows with [%d, %d]: %s, tiles of %d, %.1f us",
              first_rows(c, range), last_rows(c, range), p->shape.n_out, p->shape.n_in,
              kind_name[o.algo[best].kind], o.algo[best].tile_rows,
              (double)o.ms[best] * 1000 / N_RUNS);
}

/* ms of a few products of MANY_ROWS. */
static float time_many(const struct check *c, struct cuda_device *d, const struct plan *p,
                       const struct algorithm *algo)
{
    float ms;
    for (int run = 0; run <= N_RUNS; run++) {
        if (check_run(c, d, p, algo, c->y, c->most_rows) != CUBLAS_STATUS_SUCCESS)
            return INFINITY;
        if (run == 0) /* which may have to load the kernel */
            CUDA_CHECK(cudaEventRecord(c->event[0], d->stream));
    }
    CUDA_CHECK(cudaEventRecord(c->event[1], d->stream));
    CUDA_CHECK(cudaEventSynchronize(c->event[1]));
    CUDA_CHECK(cudaEventElapsedTime(&ms, c->event[0], c->event[1]));
    return ms;
}

/* Whether the library is to be preferred to linear_prefill() where nothing else is timed. */
static bool prefers_library(const struct check *c, struct cuda_device *d, const struct plan *p)
{
    const struct algorithm own = {.kind = OF_PREFILL, .tile_rows = 0, .library = {}};
    struct algorithm library;
    if (!many_are_timed(d, p) || find_of_library(&library, 1, d, p, c->most_rows) == 0)
        return !p->shape.gated;
    float own_ms = time_many(c, d, p, &own), library_ms = time_many(c, d, p, &library);
    log_debug("products of %d rows with [%d, %d]: prefill %.1f us, library %.1f us", c->most_rows,
              p->shape.n_out, p->shape.n_in, (double)own_ms * 1000 / N_RUNS,
              (double)library_ms * 1000 / N_RUNS);
    return own_ms > CLEAR_RATIO * library_ms;
}

/* Whether a check of this range would repeat one that the algorithm has passed. */
static bool is_checked(const struct plan *p, const struct check *c, const struct algorithm *algo,
                       int range)
{
    if (same_algorithm(algo, &p->algo[p->n_ranges - 1])) /* the standard */
        return true;
    return first_rows(c, range) == c->n_rows && same_algorithm(algo, &p->algo[range + 1]);
}

/* The library's first choice that has the standard's results. */
static void choose_by_estimate(struct plan *p, struct cuda_device *d, const struct check *c,
                               int range, const struct algorithm *candidate, int n)
{
    int differences[MAX_CHOICES];
    for (int i = 0; i < n; i++) {
        bool passes = is_checked(p, c, &candidate[i], range);
        if (!passes) {
            check_clear(c, d);
            passes = check_range(c, d, p, &candidate[i], range, 0);
            check_read(c, d, differences);
            passes = passes && differences[0] == 0;
        }
        if (passes) {
            p->algo[range] = candidate[i];
            return;
        }
    }
}

/* Replaces the standard algorithm in a range by a faster one with the same results. */
static void choose_algorithm(struct plan *p, struct cuda_device *d, const struct check *c,
                             int range)
{
    struct algorithm candidate[MAX_CANDIDATES];
    int n = find_candidates(candidate, d, p, tuned_rows(range));
    if (range_end[range] > c->n_rows)
        choose_by_estimate(p, d, c, range, candidate, n);
    else
        choose_by_time(p, d, c, range, candidate, n);
}

int linear_choose(struct plan *p, struct cuda_device *d, const void *w, int n_ranges)
{
    struct algorithm candidate[MAX_CANDIDATES];
    struct check c;
    int standard = 0;
    p->n_ranges = n_ranges;
    int rc = check_open(&c, d, p, w);
    p->library_first = rc == 0 && prefers_library(&c, d, p);
    int n = find_candidates(candidate, d, p, tuned_rows(n_ranges - 1));
    while (rc == 0 && standard < n && !try_standard(p, d, &c, &candidate[standard]))
        standard++;
    p->plain = standard == n;
    for (int range = n_ranges - 2; rc == 0 && !p->plain && range >= 0; range--)
        choose_algorithm(p, d, &c, range);
    check_close(&c, d);
    if (rc != 0)
        p->n_ranges = 0; /* nothing was chosen: the next call begins anew */
    if (p->plain)
        log_debug("products of [%d, %d] %s matrices take the plain kernel", p->shape.n_out,
                  p->shape.n_in, dtype_name(d->base.act_dtype));
    return rc;
}
