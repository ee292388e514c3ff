/* recording.c - see recording.h. */
#include "engine/recording.h"

#include <assert.h>
#include <stdlib.h>

/* Sizes are 1, 2, 4, 8, then multiples of 16: at most half of a small batch is padding, and a batch
 * of 256 needs 20 recordings. */
#define N_SMALL_SIZES 4
#define SIZE_STEP     16

static int size_index(int n_seqs)
{
    int index = 0;
    for (; index < N_SMALL_SIZES; index++)
        if (n_seqs <= 1 << index)
            return index;
    return N_SMALL_SIZES + CEIL_DIV(n_seqs, SIZE_STEP) - 1;
}

void recording_init(struct recording *r, struct device *device, int max_seqs, bool enabled)
{
    *r = (struct recording){.device = device, .max_seqs = max_seqs};
    if (!enabled || device->info.kind == DEVICE_CPU)
        return;
    r->n_sizes = size_index(max_seqs) + 1;
    r->graph = xcalloc((size_t)r->n_sizes, sizeof(struct graph *));
}

void recording_free(struct recording *r)
{
    for (int i = 0; i < r->n_sizes; i++)
        r->device->ops->graph_free(r->device, r->graph[i]);
    free(r->graph);
    *r = (struct recording){0};
}

int recording_size(const struct recording *r, int n_seqs)
{
    if (r->n_sizes == 0)
        return 0;
    assert(n_seqs >= 1 && n_seqs <= r->max_seqs);
    int index = size_index(n_seqs);
    int size = index < N_SMALL_SIZES ? 1 << index : (index - N_SMALL_SIZES + 1) * SIZE_STEP;
    return MIN(size, r->max_seqs);
}

bool recording_make(struct recording *r, int size, void (*enqueue)(void *user), void *user)
{
    const struct backend *ops = r->device->ops;
    struct graph **graph = &r->graph[size_index(size)];
    if (*graph)
        return true;
    if (!ops->graph_begin(r->device))
        return false;
    enqueue(user);
    *graph = ops->graph_end(r->device);
    if (*graph)
        return true;
    log_warning("decode steps are not recorded: %s", err_get());
    recording_free(r);
    return false;
}

void recording_run(const struct recording *r, int size)
{
    r->device->ops->graph_run(r->device, r->graph[size_index(size)]);
}
