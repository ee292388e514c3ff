/* recording.h - decode steps that a device has recorded and runs again with one call.
 *
 * A step in which every sequence computes one token has the same operations each time; only the
 * contents of its arrays change. It is padded to the next size of a short list, recorded at the
 * first use of that size and replayed from then on. Internal to the engine.
 */
#ifndef QUIRE_RECORDING_H
#define QUIRE_RECORDING_H

#include "engine/engine.h"

struct recording {
    struct device *device;
    struct graph **graph; /* [n_sizes] NULL: not recorded yet                     */
    int n_sizes;          /* 0: this device, or this engine, records nothing       */
    int max_seqs;
};

/* enabled: the engine's options allow it. */
void recording_init(struct recording *r, struct device *device, int max_seqs, bool enabled);
void recording_free(struct recording *r); /* accepts a zeroed one */

/* The size that a decode step of n_seqs sequences is padded to; 0: run it as it is. */
int recording_size(const struct recording *r, int n_seqs);

/* Records the operations of a step padded to `size`, which enqueue(user) enqueues, unless that size
 * was recorded before; nothing runs. False: this device does not record, and the step is to be
 * enqueued as it is; after a failure (with a warning) nothing further is recorded. */
bool recording_make(struct recording *r, int size, void (*enqueue)(void *user), void *user);
/* Runs the step that recording_make has recorded. */
void recording_run(const struct recording *r, int size);

#endif
