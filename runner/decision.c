/* decision.c - see decision.h. */
#include "runner/decision.h"

#include <stdio.h>
#include <string.h>

static int choose_device(struct decision *d, const struct settings *s,
                         const struct decision_policy *policy)
{
    d->device = DEVICE_CPU;
    if (s->engine.device == DEVICE_CHOICE_CPU)
        return 0;
    const char *why = "no usable GPU: this build has no CUDA backend";
    if (policy->strict || !policy->allow_cpu)
        return err_set(ERR_RESOURCE,
                       "%s; engine.device is %s and %s forbids the CPU; drop it, or "
                       "set engine.device: cpu",
                       why, s->engine.device == DEVICE_CHOICE_CUDA ? "cuda" : "auto",
                       policy->strict ? "--strict" : "fallback.allow_cpu: false");
    d->degraded = true;
    snprintf(d->degraded_reason, sizeof(d->degraded_reason), "%s; using the CPU", why);
    return 0;
}

int decision_make(struct decision *out, const struct settings *s, const struct device_info *cpu,
                  const struct decision_policy *policy)
{
    *out = (struct decision){.fast = s->engine.fast != FAST_OFF};
    if (choose_device(out, s, policy) != 0)
        return -1;
    bool eager = s->engine.attention == ATTENTION_CHOICE_EAGER;
    out->attention = eager ? ATTENTION_EAGER : ATTENTION_FLASH;
    snprintf(out->reason, sizeof(out->reason), "%s; CPU with %s, %d thread%s",
             s->engine.attention == ATTENTION_CHOICE_AUTO ? "auto" : "asked for", cpu->isa,
             cpu->n_threads, cpu->n_threads == 1 ? "" : "s");
    return 0;
}

int decision_use_standard_engine(struct decision *d, const struct decision_policy *policy)
{
    if (!d->fast || policy->strict || !policy->allow_standard_engine)
        return -1;
    log_warning("fast engine failed to initialise: %s", err_get());
    log_info("Falling back to the standard engine");
    size_t n = strlen(d->degraded_reason);
    snprintf(d->degraded_reason + n, sizeof(d->degraded_reason) - n, "%sfast engine failed: %s",
             n ? "; " : "", err_get());
    d->fast = false;
    d->degraded = true;
    return 0;
}

void decision_log(const struct decision *d, char warned_of[DECISION_REASON_MAX])
{
    log_info("Using %s attention (%s)", attention_name(d->attention), d->reason);
    if (!d->degraded || strcmp(warned_of, d->degraded_reason) == 0)
        return;
    log_warning("%s", d->degraded_reason);
    snprintf(warned_of, DECISION_REASON_MAX, "%s", d->degraded_reason);
}

void decision_engine_options(const struct decision *d, const struct settings *s,
                             struct engine_options *out)
{
    *out = (struct engine_options){
        .fast = d->fast,
        .attention = d->attention,
        .policy = (enum scheduling_policy)s->engine.policy,
        .prefix_caching = s->engine.enable_prefix_caching,
        .block_size = (int)s->engine.block_size,
        .max_num_seqs = (int)s->engine.max_num_seqs,
        .max_num_batched_tokens = (int)s->engine.max_num_batched_tokens,
        .max_model_len = s->engine.max_model_len == SETTING_AUTO ? 0 : (int)s->engine.max_model_len,
        .n_kv_blocks = s->engine.num_kv_blocks == SETTING_AUTO ? 0 : (int)s->engine.num_kv_blocks,
        .memory_utilization = s->engine.gpu_memory_utilization,
        .kv_dtype = s->engine.kv_cache_dtype,
    };
}
