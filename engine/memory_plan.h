/* memory_plan.h - every size of an engine, from its options and its model. Internal to the engine;
 * the public part is engine_plan in engine.h.
 */
#ifndef QUIRE_MEMORY_PLAN_H
#define QUIRE_MEMORY_PLAN_H

#include "engine/engine.h"
#include "engine/step_batch.h"

struct engine_layout {
    struct engine_options options; /* defaults filled in; what the engine really uses */
    enum dtype kv_dtype;
    struct memory_plan plan;
    bool host_is_device;             /* a CPU: swapped blocks are part of the same memory */
    struct step_limits limits;       /* of the device's scratch memory and of activations */
    struct step_batch_limits arrays; /* of the batch arrays                               */
};

/* ERR_CONFIG and ERR_RESOURCE as engine_plan. */
int engine_layout_init(struct engine_layout *out, const struct model_info *model,
                       const struct engine_options *options);

#endif
