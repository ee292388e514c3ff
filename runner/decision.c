/* decision.c - see decision.h. */
#include "runner/decision.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Compute capability as "7.5", or "none", to see what quire does on another GPU than the one that
 * is there. */
#define PRETEND_VARIABLE "QUIRE_TEST_COMPUTE_CAPABILITY"

#define GIB ((double)((size_t)1 << 30))

/* Adds one step down the ladder to the reason in the row. */
PRINTF_LIKE(2, 3) static void degrade(struct decision *d, const char *format, ...)
{
    size_t n = strlen(d->degraded_reason);
    if (n) {
        snprintf(d->degraded_reason + n, sizeof(d->degraded_reason) - n, "; ");
        n = strlen(d->degraded_reason);
    }
    va_list args;
    va_start(args, format);
    vsnprintf(d->degraded_reason + n, sizeof(d->degraded_reason) - n, format, args);
    va_end(args);
    d->degraded = true;
}

/* ---- device ---- */

/* Opens the GPU *gpu and, where it is there, no other: each that is opened has some of its memory
 * taken until the process ends, and one in exclusive mode admits a single process. A rank without a
 * GPU of its own decides by the first, as others do, and *gpu becomes that: what it lacks is said
 * when it loads a model. */
static int find_gpu(int *gpu)
{
    struct device_info info;
    const char *pretended = getenv(PRETEND_VARIABLE);
    if (pretended && strcmp(pretended, "none") == 0)
        return err_set(ERR_RESOURCE, "no usable GPU: " PRETEND_VARIABLE " is none");
    *gpu = MAX(*gpu, 0);
    if (device_describe(&info, DEVICE_CUDA, &(struct device_options){.index = *gpu}) == 0)
        return 0;
    if (*gpu == 0 || err_get_kind() != ERR_CONFIG) /* it is there */
        return -1;
    *gpu = 0;
    return device_describe(&info, DEVICE_CUDA, &(struct device_options){.index = *gpu});
}

int decision_choose_device(struct decision *out, const struct settings *s,
                           const struct decision_policy *policy)
{
    *out = (struct decision){.device = DEVICE_CPU, .gpu = policy->gpu};
    if (s->engine.device == DEVICE_CHOICE_CPU)
        return 0;
    if (find_gpu(&out->gpu) == 0) {
        out->device = DEVICE_CUDA;
        return 0;
    }
    if (policy->strict || !policy->allow_cpu) {
        const char *asked = s->engine.device == DEVICE_CHOICE_CUDA ? "cuda" : "auto";
        return err_set(ERR_RESOURCE,
                       "%.1000s; engine.device is %s and %s forbids the CPU; drop it, "
                       "or set engine.device: cpu",
                       err_get(), asked, policy->strict ? "--strict" : "fallback.allow_cpu: false");
    }
    degrade(out, "%s; using the CPU", err_get());
    err_clear();
    return 0;
}

/* ---- attention ---- */

enum attention_kind decision_auto_attention(const struct device_info *device)
{
    if (device->kind == DEVICE_CPU || device->compute_major >= 8)
        return ATTENTION_FLASH;
    return device->compute_major == 7 ? ATTENTION_MEMORY_EFFICIENT : ATTENTION_EAGER;
}

bool decision_can_attend(const struct device_info *device, enum attention_kind kind,
                         char why[DECISION_REASON_MAX])
{
    if (kind == ATTENTION_EAGER)
        return true;
    if (device->kind == DEVICE_CPU) {
        snprintf(why, DECISION_REASON_MAX, "memory_efficient attention is for GPUs");
        return kind == ATTENTION_FLASH;
    }
    int needed = kind == ATTENTION_FLASH ? 8 : 7;
    snprintf(why, DECISION_REASON_MAX,
             "%s attention needs GPU compute capability (%d, 0), this one has (%d, %d)",
             attention_name(kind), needed, device->compute_major, device->compute_minor);
    return device->compute_major >= needed;
}

static void describe_choice(struct decision *d, const struct device_info *device, bool automatic)
{
    d->automatic = automatic;
    if (device->kind == DEVICE_CPU)
        snprintf(d->reason, sizeof(d->reason), "%s; CPU with %s, %d thread%s",
                 automatic ? "auto" : "asked for", device->isa, device->n_threads,
                 device->n_threads == 1 ? "" : "s");
    else if (automatic && d->attention != ATTENTION_FLASH)
        snprintf(d->reason, sizeof(d->reason), "GPU compute capability (%d, %d) is below (%d, 0)",
                 device->compute_major, device->compute_minor,
                 d->attention == ATTENTION_MEMORY_EFFICIENT ? 8 : 7);
    else
        snprintf(d->reason, sizeof(d->reason), "%sGPU compute capability: (%d, %d)",
                 automatic ? "" : "asked for; ", device->compute_major, device->compute_minor);
}

/* The device with the capability that a test pretends it has. */
static struct device_info pretended(const struct device_info *device)
{
    struct device_info info = *device;
    const char *text = getenv(PRETEND_VARIABLE);
    int major, minor;
    if (device->kind == DEVICE_CUDA && text && sscanf(text, "%d.%d", &major, &minor) == 2) {
        info.compute_major = major;
        info.compute_minor = minor;
    }
    return info;
}

void decision_choose_engine(struct decision *d, const struct settings *s)
{
    d->fast = s->engine.fast != FAST_OFF;
}

int decision_choose_attention(struct decision *d, const struct settings *s,
                              const struct device_info *device,
                              const struct decision_policy *policy)
{
    static const enum attention_kind kinds[] = {
        [ATTENTION_CHOICE_FLASH] = ATTENTION_FLASH,
        [ATTENTION_CHOICE_MEMORY_EFFICIENT] = ATTENTION_MEMORY_EFFICIENT,
        [ATTENTION_CHOICE_EAGER] = ATTENTION_EAGER,
        [ATTENTION_CHOICE_ONLY_FLASH] = ATTENTION_FLASH,
        [ATTENTION_CHOICE_ONLY_MEMORY_EFFICIENT] = ATTENTION_MEMORY_EFFICIENT,
        [ATTENTION_CHOICE_ONLY_EAGER] = ATTENTION_EAGER,
    };
    struct device_info info = pretended(device);
    char why[DECISION_REASON_MAX];
    decision_choose_engine(d, s);
    d->attention = decision_auto_attention(&info);
    if (s->engine.attention == ATTENTION_CHOICE_AUTO) {
        describe_choice(d, &info, true);
        return 0;
    }
    enum attention_kind asked = kinds[s->engine.attention];
    if (decision_can_attend(&info, asked, why)) {
        d->attention = asked;
        describe_choice(d, &info, false);
        return 0;
    }
    bool only = s->engine.attention >= ATTENTION_CHOICE_ONLY_FLASH;
    if (only || policy->strict)
        return err_set(ERR_RESOURCE, "%s; %s forbids another kernel; use engine.attention: auto",
                       why, only ? "the ! after its name" : "--strict");
    degrade(d, "%s; using %s attention", why, attention_name(d->attention));
    describe_choice(d, &info, true);
    return 0;
}

/* ---- engine ---- */

int decision_use_standard_engine(struct decision *d, const struct decision_policy *policy)
{
    if (!d->fast || policy->strict || !policy->allow_standard_engine)
        return -1;
    log_warning("fast engine failed to initialise: %s", err_get());
    log_info("Falling back to the standard engine");
    degrade(d, "fast engine failed: %s; using the standard engine", err_get());
    d->fast = false;
    return 0;
}

int decision_use_cpu(struct decision *d, const struct decision_policy *policy)
{
    if (d->device == DEVICE_CPU || err_get_kind() != ERR_RESOURCE || policy->strict ||
        !policy->allow_cpu)
        return -1;
    log_warning("the GPU cannot be used: %s", err_get());
    log_info("Falling back to the CPU");
    degrade(d, "%s; using the CPU", err_get());
    d->device = DEVICE_CPU;
    return 0;
}

void decision_log_loading(const struct decision *d, const char *model_path)
{
    log_info("Loading model %s with the %s", model_path,
             d->fast ? "fast engine (paged attention, continuous batching)"
                     : "standard engine (static batches)");
}

void decision_log(const struct decision *d, char warned_of[DECISION_REASON_MAX])
{
    if (d->device == DEVICE_CUDA && d->attention != ATTENTION_FLASH && d->automatic)
        log_info("%s: using %s attention", d->reason, attention_name(d->attention));
    else
        log_info("Using %s attention (%s)", attention_name(d->attention), d->reason);
    if (!d->degraded || strcmp(warned_of, d->degraded_reason) == 0)
        return;
    log_warning("%s", d->degraded_reason);
    snprintf(warned_of, DECISION_REASON_MAX, "%s", d->degraded_reason);
}

void decision_engine_options(const struct decision *d, const struct settings *s,
                             struct engine_options *out)
{
    bool swaps = s->engine.preemption_mode == PREEMPTION_SWAP;
    *out = (struct engine_options){
        .fast = d->fast,
        .attention = d->attention,
        .policy = (enum scheduling_policy)s->engine.policy,
        .prefix_caching = s->engine.enable_prefix_caching,
        .enforce_eager = s->engine.enforce_eager,
        /* The CPU computes a step before it returns: there is nothing to overlap. */
        .async_scheduling = s->engine.async_scheduling && d->device != DEVICE_CPU,
        .block_size = (int)s->engine.block_size,
        .max_num_seqs = (int)s->engine.max_num_seqs,
        .max_num_batched_tokens = config_zero_if_auto(s->engine.max_num_batched_tokens),
        .max_model_len = config_zero_if_auto(s->engine.max_model_len),
        .n_kv_blocks = config_zero_if_auto(s->engine.num_kv_blocks),
        .memory_utilization = s->engine.gpu_memory_utilization,
        .kv_dtype = s->engine.kv_cache_dtype,
        .swap_bytes = swaps ? (size_t)(s->engine.swap_space * GIB) : 0,
    };
}
