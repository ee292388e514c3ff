/* step_batch.h - the arrays of one engine step, in one buffer, so that a step needs one upload.
 *
 * Filled in host memory from a schedule, then copied to the device at once. Internal to the engine.
 */
#ifndef QUIRE_STEP_BATCH_H
#define QUIRE_STEP_BATCH_H

#include "engine/scheduler.h"

struct step_batch_limits {
    int max_tokens, max_seqs;
    int max_blocks; /* of one sequence */
};

/* The rows of logits of a step: who gets the token that is sampled for it, and its lane then. */
struct step_rows {
    struct seq **seq; /* [n] NULL: ended since, and nobody wants the token */
    int *lane;        /* [n] */
    int n;
};

struct step_batch {
    struct device *device;
    int max_blocks;      /* of one sequence                                 */
    char *host, *memory; /* the buffer here and on the device               */
    struct batch batch;
    const int *logits_row;               /* as in struct forward_args                         */
    const struct sample_row *sample_row; /* [n_rows] device                                   */
    struct step_rows *rows;              /* here; of the caller                              */
    int n_padded_rows; /* of logits and samples to compute: n_rows, or a recorded step's size */
};

/* Bytes of the buffer. */
size_t step_batch_bytes(const struct step_batch_limits *limits);

/* ERR_RESOURCE when the device has no memory for it; then nothing needs to be freed. */
int step_batch_init(struct step_batch *b, struct device *device,
                    const struct step_batch_limits *limits);
void step_batch_free(struct step_batch *b); /* accepts a zeroed one */

void step_rows_init(struct step_rows *rows, int max_seqs);
void step_rows_free(struct step_rows *rows); /* accepts a zeroed one */

/* Builds the arrays of a step within the limits and uploads them; fills in *rows. A seq has a row
 * when the step computes the last of its tokens. padded_seqs > 0: a decode step that is padded to
 * so many sequences; where its arrays lie on the device then depends on padded_seqs alone. */
void step_batch_fill(struct step_batch *b, const struct schedule *step, struct step_rows *rows,
                     int block_size, int padded_seqs);

#endif
