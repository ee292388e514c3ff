/* ops_reference.h - the operations of backend.h in naive double precision, on host arrays, and what
 * tests of every backend need besides: inputs, number formats, devices, comparisons.
 *
 * Nothing here uses a backend's own code; number formats are made by arithmetic.
 */
#ifndef QUIRE_OPS_REFERENCE_H
#define QUIRE_OPS_REFERENCE_H

#include "kernels/backend.h"
#include "tests/testing.h"

/* ---- numbers ---- */

/* Uniform in [-amplitude, amplitude), a function of seed and index alone. The caller frees. */
float *random_floats(size_t n, float amplitude, uint64_t seed);

/* x rounded to the nearest (even) number of the type. */
float reference_round(enum dtype dtype, float x);
void reference_round_all(enum dtype dtype, float *x, size_t n);

/* An array of the type from numbers that it can hold exactly; the caller frees. And back. */
void *reference_encode(enum dtype dtype, const float *x, size_t n);
float reference_decode(enum dtype dtype, const void *array, size_t i);

/* ---- operations: outputs are double ---- */

/* y: [n_rows, n_out]; magnitude: [n_rows, n_out] sum of |x w|, what rounding errors scale with */
void reference_linear(double *y, double *magnitude, const float *x, const float *w,
                      const float *bias, const int shape[3]); /* {n_rows, n_out, n_in} */
void reference_rmsnorm(double *out, const double *x, const float *gain, int dim, double eps);
/* x: [head_dim] in place; angles of position `position` with base `theta` */
void reference_rope(double *x, int head_dim, int position, double theta);
double reference_silu(double x);

/* One query head over the keys first..last, each `stride` floats after the one before. */
struct reference_attention {
    const float *q, *k, *v; /* of the head: q [head_dim]; k, v [last + 1] rows of stride */
    size_t stride;
    int head_dim, first, last;
    double scale, softcap; /* softcap 0: none */
};
void reference_attend(double *out, const struct reference_attention *a);

/* The probability of each id under struct sample_row's rule. */
void reference_sampling(double *probability, const float *logits, int vocab,
                        const struct sample_row *row);

/* ---- devices ---- */

/* All instruction sets that the CPU backend knows, from the slowest on; then, up to
 * N_CPU_VARIANTS, those of its kernels that run with emulated tile registers (amx_emulation.h). */
#define N_CPU_ISAS     6
#define N_CPU_VARIANTS 8
extern const char *const CPU_ISAS[N_CPU_VARIANTS];

/* NULL, after a printed line, on a machine without this instruction set. */
struct device *open_cpu(const char *isa, int n_threads);

/* Ends the running test, as skipped, where there is no GPU. */
struct device *open_gpu(enum dtype act_dtype);

/* Memory of the device holding a copy of the host's bytes. */
void *to_device(struct device *device, const void *host, size_t bytes);
/* Memory of the device holding numbers that the type can hold exactly, as the type. */
void *to_device_as(struct device *device, enum dtype dtype, const float *x, size_t n);
/* A host copy of device memory; the caller frees. */
void *to_host(struct device *device, const void *memory, size_t bytes);
/* The same of elements of a type, as f32. */
float *to_host_as(struct device *device, enum dtype dtype, const void *memory, size_t n);

/* Copies blocks from a pool of the device to one in its host memory, back, and within the first;
 * fails unless every byte of both is where a plain copy puts it. */
void check_copy_blocks(struct device *device, int n_blocks, int n_planes, size_t bytes);

/* Sums random words of the device's memory; fails unless each is in the sum, once. */
void check_sum_words(struct device *device, size_t n_units);

/* That rows which are drawn hold what random_rows.h says, as f32 or bfloat16. */
void check_drawn_rows(struct device *device);

/* ---- comparisons: `what` names the case in the message of a failure ---- */

void assert_near(double got, double expected, double tolerance, const char *what, size_t index);
void assert_same_bits(const void *a, const void *b, size_t bytes, const char *what);
/* got: [n_rows, n_columns], of a gated product; sums: [n_rows, 2 n_columns], of the same matrix
 * when it is not gated; tolerance: relative, absolute */
void assert_gated(const float *got, const float *sums, size_t n_rows, size_t n_columns,
                  const double tolerance[2], const char *what);

#endif
