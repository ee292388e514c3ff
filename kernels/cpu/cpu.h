/* cpu.h - inside of the CPU backend: the device, its scratch memory, the kernels of one
 * instruction set.
 *
 * The files device.c, weight.c, linear.c, ops.c, attention.c and sample.c are compiled once: they
 * cut an operation into pieces of work and hand them to threads. What a thread does with its piece
 * is a kernel; kernels live in *_impl.h and are compiled once per instruction set by isa_*.c.
 */
#ifndef QUIRE_CPU_H
#define QUIRE_CPU_H

#include "kernels/backend.h"

#define CPU_MAX_THREADS 1024
#define CPU_CACHE_LINE  64
#define MAX_PANEL       32
#define MAX_HEAD_DIM    256

/* ---- packed weights ------------------------------------------------------------------------
 * Rows (outputs) are cut into panels. A panel holds its rows with k outermost, `group` consecutive
 * k of a row side by side, so that one vector load brings the same k of many outputs:
 *
 *   data[n_out / panel][n_in / group][panel][group]    (both quotients rounded up; zeros beyond)
 *
 * group is 2 where an instruction sums products of pairs (bf16 with AVX-512 BF16), otherwise 1.
 *
 * Quantised to int8, n_in is padded to whole groups of INT8_GROUP columns, and after each of them
 * come its scales:
 *
 *   data[n_out / panel][n_in / INT8_GROUP] {
 *       q[INT8_GROUP / group][panel][group]     int8 + offset
 *       scale[panel]                            bf16
 *   }
 *
 * group is 4 with VNNI, whose products are of unsigned (hence the offset of 128) and signed bytes,
 * and with AMX, which multiplies signed bytes; otherwise 2, for products of pairs of 16 bits.
 *
 * In a gated matrix a panel of gates is followed by the panel of what they gate, so that a pair is
 * read in sequence; each half has its own last panel. */
struct packing {
    int panel, group;
    int offset;
};

/* How a weight is stored: as one of the types of backend.h, or quantised. */
enum weight_format {
    FORMAT_F32 = DTYPE_F32,
    FORMAT_BF16 = DTYPE_BF16,
    FORMAT_F16 = DTYPE_F16,
    FORMAT_INT8 = DTYPE_N,
    FORMAT_N,
};

static inline enum weight_format weight_format(const struct weight *w)
{
    return w->quantization == QUANTIZATION_INT8 ? FORMAT_INT8 : (enum weight_format)w->dtype;
}

/* Columns of a product with the weight. */
static inline int weight_columns(const struct weight *w)
{
    return w->gated ? w->n_out / 2 : w->n_out;
}

/* Panels of a weight, of so many rows each. */
static inline int weight_panels(const struct weight *w, int panel)
{
    return CEIL_DIV(weight_columns(w), panel) * (w->gated ? 2 : 1);
}

/* One row of the matrices that are stacked in a weight, in host memory. */
struct source_row {
    const char *data; /* NULL: zeros */
    enum dtype dtype;
};

/* ---- kernels ------------------------------------------------------------------------------- */

/* Rows x columns of y = x W^T: the columns of one or two panels, some of the k. */
struct gemm_tile {
    const void *x;        /* as pack_x left it                                             */
    const void *w;        /* the first panel                                                  */
    size_t panel_bytes;   /* from this panel to the next                                      */
    int n_rows;           /* 1 .. max_rows of struct tiling                                   */
    int n_cols;           /* 1 .. panel; .. 2 panel when n_rows <= max_rows_of_two            */
    int n_groups;         /* groups of a panel's columns, padding included                    */
    const char *prefetch; /* memory wanted soon; prefetch_step further with each group      */
    size_t prefetch_step;
    float *out; /* [n_rows][out_stride]                                                     */
    size_t out_stride;
    bool accumulate;   /* start from out, which earlier k left there, else from bias or zero */
    const float *bias; /* [n_cols] or NULL                                                  */
};

/* Query rows of one sequence that share a KV head, and keys of a tile; see flash_impl.h. With 64
 * rows, packing a tile is 14 % of a prompt's attention; 128 gain 1 % and halve the pieces. */
#define FLASH_ROWS 64
#define FLASH_KEYS 64

#define SAMPLE_BLOCK 1024 /* weights that are summed before the sum goes on in double */

struct flash_piece {
    int seq, kv_head;
    int first_row, n_rows; /* rows count (token, head of the group), heads fastest */
};

#define CPU_MAX_ROW_UNIT   16
#define CPU_MAX_TILE_ROWS  32  /* max_rows of any tiling */
#define CPU_MAX_BLOCK_ROWS 384 /* block_tiles max_rows of any tiling with 4 bytes a column */

/* How a product of one format is cut. */
struct tiling {
    int row_unit; /* x is packed in units of so many rows, the last filled up with zeros    */
    int max_rows; /* of a gemm_tile; whole units, as are those of all tiles but the last    */
    int max_rows_of_two; /* of a gemm_tile that is two panels wide */
    int block_tiles; /* tiles of x that are packed at once                                     */
    int pass_tiles;  /* of them a panel is multiplied with before its thread takes the next one */
                     /* that is left; 0: with all, before the next one of a run of panels       */
    int ahead_bytes; /* by which a tile that has a panel alone fetches it; 0: the next panel   */
    int x_bytes;     /* of a row of packed x, for INT8_GROUP columns                           */
};

struct cpu_kernels {
    const char *isa;
    struct packing packing[FORMAT_N];
    struct tiling tiling[FORMAT_N];

    /* x: [n_rows][stride] f32 -> [CEIL_DIV(n, group)][n_rows][group], rounded to bf16 for pairs;
     * for int8 as int8_impl.h says, for tile registers as amx_impl.h says. n is the width of x or,
     * where columns are packed in parts one after another, a multiple of INT8_GROUP. */
    void (*pack_x)(void *packed, const float *x, size_t stride, int n_rows, int n,
                   enum weight_format format);
    /* A thread calls gemm between begin_gemm and end_gemm, which set up and release what registers
     * of the processor need that. */
    void (*begin_gemm)(void);
    void (*gemm)(const struct gemm_tile *tile, enum weight_format format);
    void (*end_gemm)(void);
    /* The panel of these rows, of n_in columns each, as packed weights. */
    void (*pack_panel)(void *panel, const struct source_row rows[MAX_PANEL], int n_in,
                       enum weight_format format);
    void (*add_rmsnorm)(float *out, float *residual, const float *delta, const float *gain, int dim,
                        float eps);
    void (*silu_mul)(float *out, const float *gate, const float *up, int dim);
    void (*rope_cache)(const struct rope_cache_args *args, int token);
    void (*attend_eager)(const struct attention_args *args, int seq, int token, int head,
                         float *scores);
    void (*attend_flash)(const struct attention_args *args, const struct flash_piece *piece,
                         float *scratch);
    /* Lowest id of the largest logit; NaN counts as smaller than everything. */
    int (*argmax)(const float *logits, int n);
    /* weight[i] = exp((logits[i] - largest) / temperature), 0 for a NaN; block_sum[b]: the sum of
     * the b-th SAMPLE_BLOCK weights */
    void (*sample_weights)(float *weight, double *block_sum, const float *logits, int n,
                           float largest, float temperature);
    /* Writes the i with floor <= weight[i] < end, ascending, into id[n]; returns their number. */
    int (*sample_collect)(int *id, const float *weight, int n, float floor, float end);
    /* The sum of the weights >= floor. */
    double (*sample_sum)(const float *weight, int n, float floor);
    /* Makes the others 0, and block_sum and the sum, which is returned, those of what is left. */
    double (*sample_prune)(float *weight, double *block_sum, int n, float floor);
};

/* avx512bf16 has VNNI as well: so have all processors with BF16; amx has all of avx512bf16. */
extern const struct cpu_kernels cpu_kernels_plain, cpu_kernels_avx2, cpu_kernels_avx512,
    cpu_kernels_avx512vnni, cpu_kernels_avx512bf16, cpu_kernels_amx;

/* ---- device -------------------------------------------------------------------------------- */

struct cpu_device {
    struct device base; /* first, so that a struct device * is a struct cpu_device * */
    const struct cpu_kernels *kernels;
    int n_threads;
    size_t allocated_bytes;
    /* Scratch of reserve(): one piece that all threads share, one per thread. */
    char *shared;
    size_t shared_bytes;
    char *local; /* [n_threads][local_bytes] */
    size_t local_bytes;
    char fetched[FETCH_SLOTS][FETCH_MAX_BYTES];
    double marked_s[MAX_MARKS]; /* the latest marks, a ring; time_monotonic_s() */
    int64_t n_marks;
};

static inline struct cpu_device *cpu_device(struct device *device)
{
    return (struct cpu_device *)(void *)device;
}

/* Threads for an operation of this many rows and columns. A few rows take less time than waking the
 * threads (1 to 5 us): those run on the caller's thread. */
#define CPU_SERIAL_ELEMENTS (1 << 14)
static inline int cpu_threads(const struct cpu_device *device, int n_rows, int width)
{
    return (size_t)n_rows * (size_t)width <= CPU_SERIAL_ELEMENTS ? 1 : device->n_threads;
}

/* The scratch memory of the calling thread of a parallel region. */
void *cpu_local_scratch(const struct cpu_device *device);

size_t cpu_linear_scratch_bytes(const struct step_limits *limits);
size_t cpu_attention_scratch_bytes(const struct step_limits *limits); /* per thread */
size_t cpu_sample_scratch_bytes(const struct step_limits *limits);    /* per thread */

/* ---- the entries of backend_cpu, beside those of device.c ---------------------------------- */

int cpu_weight_load(struct device *device, struct weight *w, const struct weight_part *parts,
                    int n_parts);
void cpu_weight_free(struct device *device, struct weight *w);
void cpu_embed(struct device *device, void *x, const struct weight *table, const int *token,
               const int *sampled, int n_tokens);
void cpu_add_rmsnorm(struct device *device, void *out, void *residual, const void *delta,
                     const float *gain, int n_rows, int dim, float eps);
void cpu_linear(struct device *device, const struct linear_args *args);
void cpu_linear_add_rmsnorm(struct device *device, void *out, void *residual,
                            const struct linear_args *delta, const float *gain, float eps);
void cpu_rope_cache(struct device *device, const struct rope_cache_args *args);
void cpu_attention_plan(struct device *device, const struct attention_args *args);
void cpu_attention(struct device *device, const struct attention_args *args);
void cpu_gather(struct device *device, void *out, const void *x, const int *row, int n_rows,
                int dim);
void cpu_sample(struct device *device, const struct sample_args *args);
void cpu_sum_words(struct device *device, uint32_t *sum, const void *memory, size_t bytes);

#endif
