/* kv_memory.c - see kv_memory.h. */
#include "engine/kv_memory.h"

#include <stdlib.h>

int kv_memory_init(struct kv_memory *m, struct device *device, const struct memory_plan *plan,
                   int n_layers)
{
    char bytes[32];
    *m = (struct kv_memory){.device = device,
                            .pool = {.n_blocks = plan->n_blocks},
                            .host_pool = {.n_blocks = plan->n_host_blocks},
                            .n_layers = n_layers,
                            .bytes = plan->block_bytes / (size_t)n_layers / 2};
    m->pool.memory = device->ops->alloc(device, plan->kv_bytes);
    if (!m->pool.memory)
        return err_prefix("%d KV blocks of %d tokens", plan->n_blocks, plan->block_size);
    if (plan->n_host_blocks > 0) {
        m->host_pool.memory = device->ops->alloc_host(device, plan->host_kv_bytes);
        if (!m->host_pool.memory)
            return err_prefix("host memory for preempted sequences (swap_space, %s)",
                              format_bytes(bytes, (double)plan->host_kv_bytes));
    }
    size_t plane_bytes = (size_t)plan->n_blocks * m->bytes;
    m->layer = xcalloc((size_t)n_layers, sizeof(*m->layer));
    for (size_t i = 0; i < (size_t)n_layers; i++) {
        m->layer[i].k = m->pool.memory + 2 * i * plane_bytes;
        m->layer[i].v = m->pool.memory + (2 * i + 1) * plane_bytes;
    }
    return 0;
}

void kv_memory_free(struct kv_memory *m)
{
    if (!m->device)
        return;
    m->device->ops->free(m->device, m->pool.memory);
    m->device->ops->free(m->device, m->host_pool.memory);
    free(m->layer);
    *m = (struct kv_memory){0};
}

static void copy_blocks(const struct kv_memory *m, const struct kv_pool *dst,
                        const struct kv_pool *src, const struct kv_copy *copy, int n_copies)
{
    if (n_copies > 0)
        m->device->ops->copy_blocks(m->device,
                                    &(struct copy_blocks_args){.dst = *dst,
                                                               .src = *src,
                                                               .bytes = m->bytes,
                                                               .n_planes = 2 * m->n_layers,
                                                               .copy = copy,
                                                               .n_copies = n_copies});
}

void kv_memory_copy(const struct kv_memory *m, const struct schedule *step)
{
    /* In this order: a block that is swapped out may have another owner already, who writes to it,
     * and a block that comes in may be one that is copied on the device. */
    copy_blocks(m, &m->host_pool, &m->pool, step->swap_out, step->n_swap_out);
    copy_blocks(m, &m->pool, &m->host_pool, step->swap_in, step->n_swap_in);
    copy_blocks(m, &m->pool, &m->pool, step->copy, step->n_copies);
}
