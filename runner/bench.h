/* bench.h - `quire bench`: what its files share.
 *
 *   bench.c            the command: options, rows to a table and to a database
 *   bench_shapes.c     which shapes are measured: lists and sweeps
 *   bench_time.c       alternating timing, order statistics, memory, the roofline
 *   bench_ceiling.c    what the device can do at most: reading, multiplying
 *   bench_input.c      seeded inputs and what attention must give on them
 *   bench_attention.c  attention through a backend's table
 *   bench_peer.c       rows that other programs measure
 *   bench_engine.c     whole models
 *
 * A row is validated before it is timed: what computes something else has no time. Rows of one
 * group are comparable with each other; the fastest of a group that is right has ratio 1.
 */
#ifndef QUIRE_BENCH_H
#define QUIRE_BENCH_H

#include "engine/engine.h"

#define BENCH_MAX_SHAPES  4096
#define BENCH_MAX_LIST    64  /* values of one comma-separated option       */
#define BENCH_ROUNDS      11  /* timed rounds of a kernel, at most          */
#define BENCH_SAMPLE_ROWS 32  /* rows of an output that are compared        */
#define BENCH_MAX_DIM     256 /* head_dim                                   */
#define BENCH_MAX_REPEATS 101 /* of an engine's cases                       */

/* ---- rows ---- */

/* Order statistics by linear interpolation. */
struct bench_spread {
    double median, p10, p90;
};

/* Of sample[n], n >= 1, which is sorted. */
struct bench_spread bench_spread_of(double *sample, size_t n);

/* The most that the device did in this run; 0: not measured. Products of int8 weights have a rate
 * of their own beside those of the dtypes. */
enum { BENCH_INT8 = DTYPE_N, BENCH_N_RATES };
struct bench_ceiling {
    double read_gbps;
    double tflops[BENCH_N_RATES];
};
/* The place in tflops of matrices that are stored so. */
int bench_rate_of(enum dtype dtype, enum quantization quantization);

enum bench_state {
    BENCH_OK,
    BENCH_WRONG,         /* another result than the reference's: not timed */
    BENCH_FAILED,        /* it did not run                                 */
    BENCH_NOT_AVAILABLE, /* it is not there: no failure, and not ranked    */
};

const char *bench_state_name(enum bench_state state); /* "ok", "wrong", ... */

struct bench_row {
    int group;
    char shape[64], kernel[48];
    enum dtype dtype;
    enum quantization quantization; /* of a model's matrices */
    const char *cache;              /* "warm", "cold", or "" */
    enum bench_state state;
    struct bench_spread latency_s;
    double n_tokens, flops, bytes; /* of one call; 0: does not apply           */
    double roofline_s; /* the least time of a call; 0: that of its flops and bytes              */
    double memory_bytes, error; /* NaN: not known */
    char note[192];             /* why, when it is not ok */
};

struct bench_rows {
    struct bench_row *row; /* [n] */
    size_t n, capacity;
};

/* A new row of the group, not ok yet; borrowed until the next one. */
struct bench_row *bench_rows_add(struct bench_rows *rows, int group, const char *kernel);
void bench_rows_free(struct bench_rows *rows);
/* The least latency of the group's rows that are ok; NaN when there is none. */
double bench_fastest_s(const struct bench_rows *rows, int group);

/* ---- shapes ---- */

/* Attention over sequences of equal lengths, causal, scale 1 / sqrt(head_dim): the last q_len of
 * kv_len tokens are queries. q_len 1 is decode. */
struct bench_shape {
    int batch, n_heads, n_kv_heads, q_len, kv_len, head_dim;
    int block_size; /* of the paged cache                                              */
    enum dtype dtype;
    bool cold; /* keys and values come from memory: calls go round over copies of them */
};

enum bench_noun { BENCH_PREFILL, BENCH_DECODE, BENCH_ATTENTION, BENCH_ENGINE, BENCH_N_NOUNS };

/* Comma-separated texts of the command line; NULL: not given. */
struct bench_sweep {
    const char *batch, *heads, *kv_heads, *seq, *decode, *head_dim, *dtype, *block_size, *cache;
    const char *list; /* names of lists instead */
};

/* Integers of "1,8,32" within [low, high] into out[BENCH_MAX_LIST]. Returns how many, or -1 with
 * ERR_CONFIG that names the option. */
int bench_parse_ints(int out[BENCH_MAX_LIST], const char *option, const char *text, int low,
                     int high);
/* The same for names: out[i] is the name's place in names[n_names]. */
int bench_parse_names(int out[BENCH_MAX_LIST], const char *option, const char *text,
                      const char *const *names, size_t n_names);

/* The shapes of `noun` in *out, which the caller frees: the product of what the sweep names, or the
 * noun's lists. Returns how many, or -1 with ERR_CONFIG. */
int bench_shapes_make(struct bench_shape **out, enum bench_noun noun,
                      const struct bench_sweep *sweep);

/* "B16 H32/8 S64 D64"; decode: "B16 H32/8 ctx256 D128 page16" */
void bench_shape_label(char out[64], const struct bench_shape *s);
/* 4 head_dim operations for each query head and key that it sees, the masked half left out. */
double bench_shape_flops(const struct bench_shape *s);
/* Of all keys and values, once. */
double bench_shape_kv_bytes(const struct bench_shape *s);

/* ---- inputs and their results ---- */

/* Inputs that any program can make: number i of a stream is a multiple of 1/32 in [-2, 2), which
 * every dtype holds exactly. With mix64 of util.h (splitmix64's finaliser):
 *
 *   value(stream, i) = (mix64(stream * 2^40 + i) >> 57) / 32 - 2
 *
 * Streams 1, 2, 3 are q [batch, q_len, n_heads, head_dim], k and v [batch, kv_len, n_kv_heads,
 * head_dim], i counting row-major. */
enum bench_stream { BENCH_Q = 1, BENCH_K = 2, BENCH_V = 3 };
float bench_value(enum bench_stream stream, uint64_t i);

/* Writes such a value as element i of an array. */
void bench_store_value(void *array, size_t i, enum dtype dtype, float value);

/* Some rows of the output in double precision. */
struct bench_expected {
    int n_rows;
    int token[BENCH_SAMPLE_ROWS]; /* seq * q_len + t */
    int head[BENCH_SAMPLE_ROWS];
    double out[BENCH_SAMPLE_ROWS][BENCH_MAX_DIM];
};
void bench_expect(struct bench_expected *out, const struct bench_shape *s);

/* Norm of the difference over norm of the expected rows. got: [n_rows, head_dim]. Infinity for
 * anything that is no number. */
double bench_error(const struct bench_expected *expected, const double *got, int head_dim);
/* The largest error that is right: some roundings of the type. */
double bench_tolerance(enum dtype dtype);

/* ---- time and memory ---- */

/* Something that is called many times: call(context, i) with i = 0, 1, 2, ..., period - 1, 0, ...
 */
struct bench_contestant {
    void (*call)(void *context, int i);
    void *context;
    int period; /* how many inputs the calls go round over */
    struct bench_spread latency_s;
};

/* Times all contestants in alternating rounds, each for about `seconds`, after a warm-up. A device
 * that can record runs the calls of a round as one graph. ERR_RESOURCE: recording failed. */
int bench_time(struct device *device, struct bench_contestant *contestant, int n, double seconds);

/* Memory since the last mark: the CPU's is the largest resident memory of this process; a GPU's is
 * what is taken of it now beyond what was taken at the mark (other processes count, too). */
struct bench_memory {
    enum device_kind kind;
    size_t before_bytes;
};
void bench_memory_mark(struct bench_memory *m, enum device_kind kind);
double bench_memory_used(const struct bench_memory *m);

/* ---- ceilings ---- */

/* Measures reading and products with matrices that are stored so, and keeps the larger values in
 * *ceiling. ERR_RESOURCE. */
int bench_ceiling_measure(struct bench_ceiling *ceiling, struct device *device, enum dtype dtype,
                          enum quantization quantization);

/* The least time of sequences that run together from the first step to the last: n_in[i] prompt
 * tokens and n_out[i] outputs, the first of which is prefill's.
 *
 *   prefill: 2 P' sum(in) / F + sum(2 L Hq d in^2) / F
 *   decode:  sum over steps of max(W / BW, 2 P B_t / F) + k ctx_t / BW
 *
 * P: parameters of the matrix products, P' without those of the logits; W: bytes of P; k: bytes of
 * keys and values of one token. Nothing overlaps. 0 where the ceiling is not measured. */
struct bench_load {
    const int *n_in, *n_out; /* [n] */
    int n;
    double kv_token_bytes;
};
struct bench_roofline {
    double prefill_s, decode_s;
    double decode_flops, decode_bytes; /* of all steps */
    double prefill_flops;
    long n_steps; /* of decode */
};
void bench_roofline_of(struct bench_roofline *out, const struct model_info *model,
                       const struct bench_load *load, const struct bench_ceiling *ceiling);

/* ---- what is measured ---- */

/* Adds the rows of one shape: each kernel of the mask (1 << attention_kind) that the device can
 * run. */
void bench_attention_run(struct bench_rows *rows, int group, struct device *device,
                         const struct bench_shape *shape, unsigned kernels, double seconds);

struct bench_engine_options {
    struct model_options model; /* without dtype and quantization */
    const char *dtypes;         /* comma-separated; NULL: auto                            */
    const char *quantizations;  /* "none,int8"; NULL: none                                */
    const char *batches;        /* of decode; NULL: 1,8,32,64                             */
    const char *workload;       /* a config with synthetic prompts; NULL: prefill and decode */
    int n_prefill, n_prompt, n_output, repeats;
    unsigned kernels;    /* 0: the one that `auto` chooses */
    struct trace *trace; /* of all steps; NULL: none       */
};
int bench_engine_run(struct bench_rows *rows, struct bench_ceiling *ceiling,
                     const struct bench_engine_options *options);

/* ---- peers ----
 * A peer is a command. It reads one JSON object a line, one line a shape, from standard input:
 *
 *   {"id": 0, "batch": 16, "heads": 32, "kv_heads": 8, "q_len": 64, "kv_len": 64, "head_dim": 64,
 *    "dtype": "float16", "causal": true, "scale": 0.125, "cache": "warm", "seconds": 1.0,
 *    "rows": [[0, 0], [17, 3]]}
 *
 * and prints one JSON object a line, as many for a shape as it has kernels:
 *
 *   {"id": 0, "kernel": "torch cudnn", "latency_s": 1e-5, "p10_s": 9e-6, "p90_s": 1.2e-5,
 *    "memory_bytes": 1000, "output": [[...], [...]]}
 *   {"id": 0, "kernel": "torch cudnn", "available": false, "reason": "needs compute capability 9"}
 *   {"id": 0, "kernel": "torch cudnn", "error": "out of memory"}
 *
 * `output` has head_dim numbers (null: not a number) for each pair [token, head] of `rows`, token
 * counting over all sequences. p10_s, p90_s and memory_bytes may be missing. Without `id`, a line
 * stands for all shapes. A command that is not there is a peer that is not available. */
struct bench_measurement {
    int id; /* -1: all shapes */
    enum bench_state state;
    char kernel[48], note[192];
    struct bench_spread latency_s;
    double memory_bytes;
    double *output; /* [n_rows, head_dim] or NULL; the caller frees */
    int n_rows, head_dim;
};

/* One line of a request, with its \n. */
void bench_peer_request(struct str *out, int id, const struct bench_shape *s,
                        const struct bench_expected *e, double seconds);
/* ERR_DATA says what is wrong with the line; nothing is to be freed then. */
int bench_peer_parse(struct bench_measurement *out, const char *line);
/* Adds the peer's rows for all shapes, of which `shape[i]` is group i. */
void bench_peer_run(struct bench_rows *rows, const char *command, const struct bench_shape *shape,
                    int n, double seconds);

#endif
