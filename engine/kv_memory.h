/* kv_memory.h - the memory behind the blocks of kv_cache.h: a pool on the device, and a pool in
 * host memory for sequences that are swapped out. Internal to the engine.
 */
#ifndef QUIRE_KV_MEMORY_H
#define QUIRE_KV_MEMORY_H

#include "engine/scheduler.h"

struct kv_memory {
    struct device *device;
    struct kv_pool pool, host_pool; /* [n_layers, K and V, n_blocks, n_kv_heads, block_size,
                                       head_dim]; host_pool.memory NULL: no block is swapped */
    struct kv_layer *layer;         /* [n_layers] pointers into pool.memory                  */
    int n_layers;
    size_t bytes; /* K (or V) of one block in one layer */
};

/* Takes what the plan says. ERR_RESOURCE when it is not there; free it all the same. */
int kv_memory_init(struct kv_memory *m, struct device *device, const struct memory_plan *plan,
                   int n_layers);
void kv_memory_free(struct kv_memory *m); /* accepts a zeroed one */

/* Enqueues the copies that come before a step. */
void kv_memory_copy(const struct kv_memory *m, const struct schedule *step);

#endif
