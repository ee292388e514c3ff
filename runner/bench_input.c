/* bench_input.c - see bench.h: numbers that every program makes alike, and attention over them in
 * double precision. */
#include "runner/bench.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- numbers ---- */

float bench_value(enum bench_stream stream, uint64_t i)
{
    return (float)(mix64(((uint64_t)stream << 40) + i) >> 57) / 32 - 2;
}

/* Seven significant bits, no subnormals: the upper bits of the float are those of each type. */
void bench_store_value(void *array, size_t i, enum dtype dtype, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if (dtype == DTYPE_F32) {
        memcpy((char *)array + 4 * i, &bits, 4);
        return;
    }
    uint32_t magnitude = bits & 0x7FFFFFFFu;
    uint32_t f16 = (bits >> 16 & 0x8000u) | (magnitude ? (magnitude >> 13) - (112u << 10) : 0);
    uint16_t half = (uint16_t)(dtype == DTYPE_F16 ? f16 : bits >> 16);
    memcpy((char *)array + 2 * i, &half, 2);
}

/* ---- what attention gives ---- */

/* One query row against the keys that it sees. */
static void attend(double *out, const struct bench_shape *s, int token, int head, double *score)
{
    int seq = token / s->q_len, n_keys = s->kv_len - s->q_len + token % s->q_len + 1;
    int kv_head = head / (s->n_heads / s->n_kv_heads), d = s->head_dim;
    uint64_t q = ((uint64_t)token * (uint64_t)s->n_heads + (uint64_t)head) * (uint64_t)d;
    uint64_t step = (uint64_t)s->n_kv_heads * (uint64_t)d;
    uint64_t kv = (uint64_t)seq * (uint64_t)s->kv_len * step + (uint64_t)kv_head * (uint64_t)d;
    double largest = -INFINITY, sum = 0, query[BENCH_MAX_DIM];
    for (int i = 0; i < d; i++)
        query[i] = bench_value(BENCH_Q, q + (uint64_t)i) / sqrt(d);
    for (int key = 0; key < n_keys; key++) {
        score[key] = 0;
        for (int i = 0; i < d; i++)
            score[key] += query[i] * bench_value(BENCH_K, kv + (uint64_t)key * step + (uint64_t)i);
        largest = fmax(largest, score[key]);
    }
    memset(out, 0, (size_t)d * sizeof(*out));
    for (int key = 0; key < n_keys; key++) {
        double weight = exp(score[key] - largest);
        sum += weight;
        for (int i = 0; i < d; i++)
            out[i] += weight * bench_value(BENCH_V, kv + (uint64_t)key * step + (uint64_t)i);
    }
    for (int i = 0; i < d; i++)
        out[i] /= sum;
}

/* One row of each of n_rows equal parts, so that none comes twice; the first and the last of all.
 */
static void choose_rows(struct bench_expected *e, const struct bench_shape *s)
{
    uint64_t all = (uint64_t)s->batch * (uint64_t)s->q_len * (uint64_t)s->n_heads;
    e->n_rows = (int)MIN(all, BENCH_SAMPLE_ROWS);
    uint64_t part = all / (uint64_t)e->n_rows;
    for (int i = 0; i < e->n_rows; i++) {
        uint64_t row = (uint64_t)i * part + mix64((uint64_t)i) % part;
        if (i == 0)
            row = 0;
        else if (i == e->n_rows - 1)
            row = all - 1;
        e->token[i] = (int)(row / (uint64_t)s->n_heads);
        e->head[i] = (int)(row % (uint64_t)s->n_heads);
    }
}

void bench_expect(struct bench_expected *out, const struct bench_shape *s)
{
    assert(s->head_dim <= BENCH_MAX_DIM);
    choose_rows(out, s);
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < out->n_rows; i++) {
        double *score = xcalloc((size_t)s->kv_len, sizeof(*score));
        attend(out->out[i], s, out->token[i], out->head[i], score);
        free(score);
    }
}

double bench_error(const struct bench_expected *expected, const double *got, int head_dim)
{
    double error = 0, norm = 0;
    for (int row = 0; row < expected->n_rows; row++) {
        for (int i = 0; i < head_dim; i++) {
            double want = expected->out[row][i];
            double difference = got[(size_t)row * (size_t)head_dim + (size_t)i] - want;
            error += difference * difference;
            norm += want * want;
        }
    }
    return isfinite(error) ? sqrt(error / norm) : INFINITY;
}

/* Flash attention is off by 2e-3 in bf16, 3e-4 in f16 and 1e-6 in f32; another order of the same
 * roundings stays far below, a key too many or too few far above. */
double bench_tolerance(enum dtype dtype)
{
    static const double tolerance[DTYPE_N] = {
        [DTYPE_F32] = 1e-4,
        [DTYPE_BF16] = 1e-2,
        [DTYPE_F16] = 2e-3,
    };
    return tolerance[dtype];
}
