/* backend.h - what a device can do: memory, weights, and one operation per step of a transformer.
 *
 * A backend is one table of functions; no entry is optional. The model's forward pass is written
 * once against this table. All pointers named `x`, `out`, `qkv`, ... are device memory.
 *
 * Order. Operations of one device run in the order of the calls, possibly after the call has
 * returned; download() and sync() wait. upload() has read its source when it returns.
 *
 * Failure. open, alloc, alloc_host, reserve and weight_load report failure with
 * err_set(ERR_RESOURCE or ERR_CONFIG); the other operations cannot fail for a reason that a caller
 * could mend.
 *
 * Batch invariance. A row of any result depends on that row's inputs alone: not on how many rows
 * are computed with it, on their order, or on the number of threads. Reductions therefore run in an
 * order that is a function of the shape of one row. Attention cuts keys at absolute positions.
 *
 * Numbers. Activations have the device's act_dtype (CPU: f32; a GPU: the model's dtype). Norm
 * gains, biases and logits are f32. Accumulation is f32.
 */
#ifndef QUIRE_BACKEND_H
#define QUIRE_BACKEND_H

#include "engine/util.h"
#include "kernels/random_rows.h"

/* ---- vocabulary ---------------------------------------------------------------------------- */

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_N };

size_t dtype_bytes(enum dtype dtype);     /* of one element                     */
const char *dtype_name(enum dtype dtype); /* "float32", "bfloat16", "float16"   */

/* Widens n elements in host memory. `in` need not be aligned. */
void dtype_to_f32(float *out, const void *in, enum dtype dtype, size_t n);

/* How the matrices of a model are stored. */
enum quantization {
    QUANTIZATION_NONE, /* as numbers of their dtype                                          */
    QUANTIZATION_INT8, /* w = scale q, |q| <= 127: a scale for every INT8_GROUP columns of a row */
    QUANTIZATION_N,
};

/* Every group of columns costs a product 2 instructions beside its dot products, 16 of them with
 * VNNI. Groups of 32 made prefill slower by a fifth (1.38 instead of 1.69 times bf16), and the
 * error of the logits of Qwen3-0.6B's shape with random weights no more than a tenth smaller (2.9
 * instead of 3.2 % of their root mean square). */
#define INT8_GROUP 64

const char *quantization_name(enum quantization quantization); /* "none", "int8" */

/* What weights are stored as: the dtype's name, or the quantization's where there is one. */
const char *weight_name(enum dtype dtype, enum quantization quantization);

/* Bytes of a matrix [n_out, n_in], without the padding of a device's own layout. */
size_t weight_bytes(size_t n_out, size_t n_in, enum dtype dtype, enum quantization quantization);

enum attention_kind {
    ATTENTION_FLASH,            /* tiled, online softmax, reads the paged cache in place */
    ATTENTION_MEMORY_EFFICIENT, /* the same for GPUs before Ampere (no cp.async, no bf16 mma) */
    ATTENTION_EAGER,            /* scores materialised per query row: the readable one   */
    ATTENTION_N,
};

const char *attention_name(enum attention_kind kind); /* "flash", "memory_efficient", "eager" */

enum device_kind { DEVICE_CPU, DEVICE_CUDA, DEVICE_N_KINDS };

const char *device_kind_name(enum device_kind kind); /* "cpu", "cuda" */

struct device_info {
    enum device_kind kind;
    char name[128];      /* "AMD EPYC 9654"                                            */
    char isa[32];        /* CPU: "plain", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx";
                            GPU: "sm_90" */
    int n_threads;       /* CPU: OpenMP threads used                                   */
    size_t memory_bytes; /* all the memory that this process may use on the device     */
    int compute_major, compute_minor; /* GPU: compute capability; 0, 0 for the CPU          */
    char driver[32], runtime[32];     /* GPU: versions of the driver and of CUDA; else ""   */
    size_t free_bytes; /* the part of it that was free when the device was opened    */
};

struct device_options {
    int index;            /* GPU: ordinal among those that CUDA_VISIBLE_DEVICES leaves  */
    enum dtype act_dtype; /* GPU: of activations, the model's dtype; the CPU's are f32 */
    int n_threads;        /* CPU: threads to use; 0: all that this process may run on         */
    const char *isa;      /* CPU: force an instruction set (QUIRE_CPU_ISA); NULL: the best one */
};

/* ---- data of a step ------------------------------------------------------------------------ */

/* The flat batch of one step: prefill chunks and decodes side by side. Arrays are device memory.
 * A recorded step is padded to its size: a padding token has slot -1 (nothing is stored), a padding
 * sequence has kv_len 0 (its output rows are zeros), a padding row of sample has lane -1. */
struct batch {
    int n_tokens, n_seqs;
    int max_blocks;         /* row length of block_table                                    */
    int max_q_len;          /* the most tokens of one sequence in this batch                 */
    int max_kv_len;         /* the largest kv_len                                            */
    const int *token;       /* [n_tokens] id, or -1 - lane: the token sampled in that lane   */
    const int *position;    /* [n_tokens] position in its sequence                           */
    const int *slot;        /* [n_tokens] where its K and V go: block * block_size + offset  */
    const int *q_start;     /* [n_seqs + 1] prefix sums: tokens of sequence s in the batch   */
    const int *kv_len;      /* [n_seqs] keys to attend to, this step's own included          */
    const int *block_table; /* [n_seqs, max_blocks] block ids in token order                 */
};

/* A copy of one KV block, by block ids. */
struct kv_copy {
    int src, dst;
};

/* Memory for KV blocks, on the device or from alloc_host: [n_planes, n_blocks, bytes]. A plane is
 * the K or the V of one layer. */
struct kv_pool {
    char *memory;
    int n_blocks;
};

/* The key and value memory of one layer. Each: [n_blocks, n_kv_heads, block_size, head_dim]. */
struct kv_layer {
    void *k, *v;
};

struct attention_shape {
    int n_heads, n_kv_heads, head_dim; /* n_heads is a multiple of n_kv_heads */
    int block_size;                    /* tokens per block of the cache       */
    enum dtype kv_dtype;
};

/* A matrix of n_out rows and n_in columns in the backend's own layout: y = W x.
 *
 * Gated, the first half G of its rows are gates and the second half U what they gate, with biases g
 * and u: y = silu(G x + g) * (U x + u), silu(v) = v / (1 + e^-v), which has n_out / 2 elements. */
struct weight {
    enum dtype dtype;               /* of the elements as stored on the device */
    enum quantization quantization; /* INT8: they are stored as such, and dtype says nothing */
    bool gated;
    int n_out, n_in;
    void *data;   /* device memory */
    size_t bytes; /* of data       */
};

/* Rows of a matrix in host memory, row-major, contiguous, or to be drawn. Several parts are
 * stacked: Q, K and V (gate and up) become one matrix. */
struct weight_part {
    const void *rows; /* [n_rows, n_in]; NULL where they are drawn */
    enum dtype dtype; /* of rows                                   */
    int n_rows;
    struct random_rows random;
};

/* What the largest step will be; reserve() takes scratch memory for it. */
struct step_limits {
    int max_tokens, max_seqs;
    int max_rows; /* rows of logits */
    int max_kv_len;
    int max_width; /* the largest n_in of a linear */
    int vocab;
    struct attention_shape shape;
};

/* y = x W^T + bias, or what struct weight says of a gated W */
struct linear_args {
    void *out;     /* [n_rows, n_out] of out_dtype; gated: [n_rows, n_out / 2] */
    const void *x; /* [n_rows, n_in] of act_dtype                              */
    const struct weight *weight;
    const float *bias; /* [n_out] or NULL                                      */
    int n_rows;
    enum dtype out_dtype; /* act_dtype, or DTYPE_F32 for logits; gated: act_dtype */
};

/* Copies whole blocks, in every plane, within a pool or between two of them. No block is written
 * twice, nor read and written. */
struct copy_blocks_args {
    struct kv_pool dst, src;
    size_t bytes; /* of a block in one plane: a multiple of 16 */
    int n_planes;
    const struct kv_copy *copy; /* [n_copies] host memory, free to change after the call */
    int n_copies;
};

/* For each token: RMS-normalise each head of Q and K (when gains are given), rotate them by
 * position, store K and V in the cache at the token's slot. Q stays where it is.
 * Rotation (GPT-NeoX halves, as in Hugging Face): with c, s = table[position][j], j < head_dim / 2:
 *   (x[j], x[j + head_dim/2]) <- (x[j] c - x[j + head_dim/2] s, x[j + head_dim/2] c + x[j] s) */
struct rope_cache_args {
    const struct linear_args *product; /* what gives qkv first, its out; NULL: qkv is there */
    void *qkv; /* [n_tokens, (n_heads + 2 n_kv_heads) head_dim]: Q heads, K heads, V heads;
                  of what a product gave, only Q is there afterwards                        */
    const float *q_gain, *k_gain; /* [head_dim], or NULL: no QK-norm                        */
    const float *rope;            /* [max_position, head_dim]: cosines, then sines          */
    float norm_eps;
    struct kv_layer kv;
    struct attention_shape shape;
    const struct batch *batch;
};

/* out[t, h] = softmax(scale q k^T + mask) v over keys 0..position[t] of t's sequence; with a
 * window w > 0 only over the last w of them. Query head h reads KV head h / (n_heads/n_kv_heads).
 * With a soft-cap c > 0 each score s = scale q k becomes c tanh(s / c) before the mask (as in
 * Gemma 2). */
struct attention_args {
    enum attention_kind kind;
    void *out;       /* [n_tokens, n_heads head_dim]                                        */
    const void *qkv; /* as rope_cache left it; only the Q heads are read                    */
    struct kv_layer kv;
    struct attention_shape shape;
    float scale;
    int window;    /* 0: no sliding window            */
    float softcap; /* of scores, as scaled; 0: none   */
    const struct batch *batch;
};

/* How one row of logits becomes a token: divide by temperature, keep the top_k largest, of those
 * the smallest set whose probability reaches top_p, of those the ones with at least min_p of the
 * largest probability; draw with Philox4x32-10 keyed by (seed, index). Ties go to the lower id. */
struct sample_row {
    uint64_t seed;     /* of the sample                                  */
    float temperature; /* 0: the largest logit                           */
    float top_p;       /* 1: off                                         */
    float min_p;       /* 0: off                                         */
    int top_k;         /* 0: off                                         */
    int index;         /* position of the new token in its sequence      */
    int lane;          /* sampled[lane] receives the token               */
};

struct sample_args {
    int *sampled;                 /* [lanes] device memory, read by the next embed */
    const float *logits;          /* [n_rows, vocab] f32                           */
    const struct sample_row *row; /* [n_rows] device memory                        */
    int n_rows, vocab;
};

#define FETCH_SLOTS     2
#define FETCH_MAX_BYTES 16384 /* a token of each of ENGINE_MAX_SEQS sequences */

#define MAX_MARKS 16

#define SUM_UNIT 64

/* ---- the interface ------------------------------------------------------------------------- */

struct device {
    const struct backend *ops;
    struct device_info info;
    enum dtype act_dtype;
};

struct backend {
    enum device_kind kind;

    /* NULL on failure. The caller closes. */
    struct device *(*open)(const struct device_options *options);
    void (*close)(struct device *device);

    /* Aligned to at least 64 bytes; contents undefined. NULL with ERR_RESOURCE. */
    void *(*alloc)(struct device *device, size_t bytes);
    /* The same in host memory that copy_blocks can reach (a GPU: pinned). */
    void *(*alloc_host)(struct device *device, size_t bytes);
    void (*free)(struct device *device, void *memory); /* of either kind; accepts NULL */
    void (*upload)(struct device *device, void *dst, const void *host, size_t bytes);
    void (*download)(struct device *device, void *host, const void *src, size_t bytes);
    /* A download in two halves, so that more can be enqueued between them: what src holds after the
     * operations before fetch_begin comes into *host at fetch_end, which waits for it. Each slot
     * takes one fetch at a time. slot < FETCH_SLOTS, bytes <= FETCH_MAX_BYTES */
    void (*fetch_begin)(struct device *device, int slot, const void *src, size_t bytes);
    void (*fetch_end)(struct device *device, int slot, void *host, size_t bytes);
    void (*copy_blocks)(struct device *device, const struct copy_blocks_args *args);
    void (*sync)(struct device *device);
    /* Takes scratch memory for steps within these limits, so that no step allocates. May be called
     * again with other limits; the memory only grows. */
    int (*reserve)(struct device *device, const struct step_limits *limits);

    /* Stacks the parts into one matrix of w->dtype and w->quantization (set by the caller, as are
     * gated and n_in), converting and packing in parallel. The parts may be unmapped after it
     * returns. */
    int (*weight_load)(struct device *device, struct weight *w, const struct weight_part *parts,
                       int n_parts);
    void (*weight_free)(struct device *device, struct weight *w); /* accepts an empty one */

    /* x[t] = table[token[t]]. x: [n_tokens, n_in]; the table is not gated. */
    void (*embed)(struct device *device, void *x, const struct weight *table, const int *token,
                  const int *sampled, int n_tokens);
    /* residual += delta (NULL: nothing); out = residual / rms(residual) * gain.
     * out, residual, delta: [n_rows, dim]; out may be delta; gain: [dim] f32 */
    void (*add_rmsnorm)(struct device *device, void *out, void *residual, const void *delta,
                        const float *gain, int n_rows, int dim, float eps);
    void (*linear)(struct device *device, const struct linear_args *args);
    /* The product, then add_rmsnorm with what it gave; delta->out may not hold that afterwards. It
     * is of act_dtype and may be out. */
    void (*linear_add_rmsnorm)(struct device *device, void *out, void *residual,
                               const struct linear_args *delta, const float *gain, float eps);
    void (*rope_cache)(struct device *device, const struct rope_cache_args *args);
    /* What the attention of all layers of a step has in common, worked out once: kind, shape,
     * window and batch. Comes ahead of the rope_cache whose attention is the first with this
     * window, and again when another window follows. */
    void (*attention_plan)(struct device *device, const struct attention_args *args);
    void (*attention)(struct device *device, const struct attention_args *args);
    /* out[i] = x[row[i]]. out: [n_rows, dim]; row: device memory */
    void (*gather)(struct device *device, void *out, const void *x, const int *row, int n_rows,
                   int dim);
    void (*sample)(struct device *device, const struct sample_args *args);
    /* *sum = sum of the 32-bit words of memory, modulo 2^32. What it is for is how long it takes:
     * each byte is read once, as fast as the device can. sum: device memory; bytes: a multiple of
     * SUM_UNIT */
    void (*sum_words)(struct device *device, uint32_t *sum, const void *memory, size_t bytes);

    /* Recording of steps. Between graph_begin and graph_end the operations are recorded and not
     * run; graph_run runs them again with the same pointers and sizes (the contents of the arrays
     * may differ, kv_len included: nothing that depends on array contents is decided on the host).
     * graph_begin returns false on a device that records nothing: then the operations run at once
     * and there is no graph_end. graph_end gives NULL, with an error, when recording failed. */
    bool (*graph_begin)(struct device *device);
    struct graph *(*graph_end)(struct device *device);
    void (*graph_run)(struct device *device, struct graph *graph);
    void (*graph_free)(struct device *device, struct graph *graph); /* accepts NULL */

    /* Marks of time, for traces. mark notes when the device comes to this place among its
     * operations, and returns the number of the mark: 0, 1, 2, ... Not while recording. mark_read
     * waits for that, and returns when it was by time_monotonic_s()'s clock. Marks are read in
     * ascending order, and fewer than MAX_MARKS follow the one that was read last. */
    int64_t (*mark)(struct device *device);
    double (*mark_read)(struct device *device, int64_t mark);
};

extern const struct backend backend_cpu;

/* The backend of this kind. The GPU's is in quire_cuda.so, which the first call opens, so that
 * quire starts on a machine without driver; it is looked for beside the executable, then in
 * ../lib/quire of it. NULL with ERR_RESOURCE and the reason: not built, no driver, no GPU. Any
 * thread. */
const struct backend *backend_find(enum device_kind kind);

#endif
