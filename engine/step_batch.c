/* step_batch.c - see step_batch.h. */
#include "engine/step_batch.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define ARRAY_ALIGN 64 /* bytes, as the backend's own allocations */

/* The arrays in host memory. */
struct arrays {
    struct sample_row *sample_row;
    int *token, *position, *slot, *q_start, *kv_len, *block_table, *logits_row;
};

/* The next `count` elements of `bytes` each of a buffer of which *used bytes are taken. */
static void *carve(char *base, size_t *used, size_t count, size_t bytes)
{
    char *array = base ? base + *used : NULL;
    *used += CEIL_DIV(count * bytes, ARRAY_ALIGN) * ARRAY_ALIGN;
    return array;
}

/* Lays the arrays out; returns the bytes that they take. base NULL: only counts them. */
static size_t lay_out(struct arrays *a, char *base, size_t n_tokens, size_t n_seqs,
                      size_t max_blocks)
{
    size_t used = 0;
    a->sample_row = carve(base, &used, n_seqs, sizeof(*a->sample_row));
    a->token = carve(base, &used, n_tokens, sizeof(int));
    a->position = carve(base, &used, n_tokens, sizeof(int));
    a->slot = carve(base, &used, n_tokens, sizeof(int));
    a->q_start = carve(base, &used, n_seqs + 1, sizeof(int));
    a->kv_len = carve(base, &used, n_seqs, sizeof(int));
    a->logits_row = carve(base, &used, n_seqs, sizeof(int));
    a->block_table = carve(base, &used, n_seqs * max_blocks, sizeof(int));
    return used;
}

size_t step_batch_bytes(const struct step_batch_limits *limits)
{
    struct arrays unused;
    return lay_out(&unused, NULL, (size_t)limits->max_tokens, (size_t)limits->max_seqs,
                   (size_t)limits->max_blocks);
}

int step_batch_init(struct step_batch *b, struct device *device,
                    const struct step_batch_limits *limits)
{
    size_t bytes = step_batch_bytes(limits);
    *b = (struct step_batch){.device = device, .max_blocks = limits->max_blocks};
    b->memory = device->ops->alloc(device, bytes);
    if (!b->memory)
        return -1;
    b->host = xcalloc(1, bytes);
    return 0;
}

void step_batch_free(struct step_batch *b)
{
    if (b->device)
        b->device->ops->free(b->device, b->memory);
    free(b->host);
    *b = (struct step_batch){0};
}

void step_rows_init(struct step_rows *rows, int max_seqs)
{
    *rows = (struct step_rows){.seq = xcalloc((size_t)max_seqs, sizeof(struct seq *)),
                               .lane = xcalloc((size_t)max_seqs, sizeof(int))};
}

void step_rows_free(struct step_rows *rows)
{
    free(rows->seq);
    free(rows->lane);
    *rows = (struct step_rows){0};
}

static struct sample_row sample_row_of(const struct seq *seq)
{
    const struct sampling_params *p = &seq->request.sampling;
    return (struct sample_row){.seed = seq->request.seed,
                               .temperature = p->temperature,
                               .top_p = p->top_p > 0 ? p->top_p : 1,
                               .min_p = p->min_p,
                               .top_k = p->top_k,
                               .index = seq->n_tokens,
                               .lane = seq->lane};
}

static void fill_tokens(const struct arrays *a, const struct seq *seq, int at, int block_size)
{
    for (int i = 0; i < seq->n_scheduled; i++) {
        int p = seq->n_computed + i;
        bool in_lane = seq->token_in_lane && p == seq->n_tokens - 1;
        a->token[at + i] = in_lane ? -1 - seq->lane : seq->token[p];
        a->position[at + i] = p;
        a->slot[at + i] = seq->kv.block[p / block_size] * block_size + p % block_size;
    }
}

static void fill_seq(struct step_batch *b, const struct arrays *a, struct seq *seq, int s,
                     int block_size)
{
    int first = a->q_start[s], kv_len = seq->n_computed + seq->n_scheduled;
    int n_blocks = CEIL_DIV(kv_len, block_size);
    fill_tokens(a, seq, first, block_size);
    a->q_start[s + 1] = first + seq->n_scheduled;
    a->kv_len[s] = kv_len;
    memcpy(a->block_table + (size_t)s * (size_t)b->batch.max_blocks, seq->kv.block,
           (size_t)n_blocks * sizeof(int));
    if (kv_len == seq->n_tokens) {
        int row = b->rows->n++;
        a->logits_row[row] = first + seq->n_scheduled - 1;
        a->sample_row[row] = sample_row_of(seq);
        b->rows->seq[row] = seq;
        b->rows->lane[row] = seq->lane;
    }
}

static const void *on_device(const struct step_batch *b, const void *host)
{
    return b->memory + ((const char *)host - b->host);
}

static void point_at_device(struct step_batch *b, const struct arrays *a)
{
    b->batch.token = on_device(b, a->token);
    b->batch.position = on_device(b, a->position);
    b->batch.slot = on_device(b, a->slot);
    b->batch.q_start = on_device(b, a->q_start);
    b->batch.kv_len = on_device(b, a->kv_len);
    b->batch.block_table = on_device(b, a->block_table);
    /* No sequence has two rows: when there are as many as tokens, they are the tokens. */
    b->logits_row = b->n_padded_rows == b->batch.n_tokens ? NULL : on_device(b, a->logits_row);
    b->sample_row = on_device(b, a->sample_row);
}

/* The sizes of the batch, before its arrays are laid out. */
static void measure(struct step_batch *b, const struct schedule *step, int block_size)
{
    b->batch = (struct batch){.n_tokens = step->n_tokens, .n_seqs = step->n_seqs};
    for (int s = 0; s < step->n_seqs; s++) {
        const struct seq *seq = step->seq[s];
        int kv_len = seq->n_computed + seq->n_scheduled;
        b->batch.max_q_len = MAX(b->batch.max_q_len, seq->n_scheduled);
        b->batch.max_kv_len = MAX(b->batch.max_kv_len, kv_len);
    }
    b->batch.max_blocks = CEIL_DIV(b->batch.max_kv_len, block_size);
}

/* The sizes of a recorded decode step: the same for every batch that is padded to it. */
static void measure_padded(struct step_batch *b, int block_size, int padded_seqs)
{
    b->batch = (struct batch){.n_tokens = padded_seqs,
                              .n_seqs = padded_seqs,
                              .max_q_len = 1,
                              .max_kv_len = b->max_blocks * block_size,
                              .max_blocks = b->max_blocks};
}

static void fill_padding(const struct step_batch *b, const struct arrays *a, int s)
{
    int at = a->q_start[s];
    a->token[at] = a->position[at] = 0;
    a->slot[at] = -1;
    a->q_start[s + 1] = at + 1;
    a->kv_len[s] = 0;
    a->logits_row[s] = at;
    a->sample_row[s] = (struct sample_row){.top_p = 1, .lane = -1};
    memset(a->block_table + (size_t)s * (size_t)b->batch.max_blocks, 0,
           (size_t)b->batch.max_blocks * sizeof(int));
}

void step_batch_fill(struct step_batch *b, const struct schedule *step, struct step_rows *rows,
                     int block_size, int padded_seqs)
{
    assert(step->n_seqs > 0);
    assert(padded_seqs == 0 || (step->n_tokens == step->n_seqs && step->n_seqs <= padded_seqs));
    b->rows = rows;
    rows->n = 0;
    if (padded_seqs)
        measure_padded(b, block_size, padded_seqs);
    else
        measure(b, step, block_size);

    struct arrays a;
    size_t bytes = lay_out(&a, b->host, (size_t)b->batch.n_tokens, (size_t)b->batch.n_seqs,
                           (size_t)b->batch.max_blocks);
    a.q_start[0] = 0;
    for (int s = 0; s < step->n_seqs; s++)
        fill_seq(b, &a, step->seq[s], s, block_size);
    b->n_padded_rows = padded_seqs ? padded_seqs : rows->n;
    assert(padded_seqs == 0 || rows->n == step->n_seqs);
    for (int s = step->n_seqs; s < padded_seqs; s++)
        fill_padding(b, &a, s);
    point_at_device(b, &a);
    b->device->ops->upload(b->device, b->memory, b->host, bytes);
}
