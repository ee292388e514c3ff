/* decision.h - what a task runs on, and why: device, engine and attention kernel.
 *
 * The ladder: what was asked for, else the next thing that works, with a warning, an event and a
 * reason in the row; or a refusal under --strict, with a `!` after the kernel's name, or when the
 * config's `fallback` forbids the step.
 */
#ifndef QUIRE_DECISION_H
#define QUIRE_DECISION_H

#include "runner/config.h"

#define DECISION_REASON_MAX 512

struct decision {
    enum device_kind device;
    int gpu; /* DEVICE_CUDA: the ordinal of the one that decided */
    enum attention_kind attention;
    bool fast;      /* the paged engine; false: the standard engine */
    bool automatic; /* the kernel was chosen by quire, not asked for */
    bool degraded;
    char reason[DECISION_REASON_MAX];          /* why this kernel                         */
    char degraded_reason[DECISION_REASON_MAX]; /* "" when everything asked for was there  */
};

struct decision_policy {
    bool strict;                /* --strict: refuse instead of falling back */
    bool allow_cpu;             /* fallback.allow_cpu                       */
    bool allow_standard_engine; /* fallback.allow_standard_engine           */
    int gpu;                    /* this process's, by its ordinal; -1: none is left for it */
};

/* The device for these settings: a GPU when there is one that works, unless the CPU is asked for.
 * ERR_RESOURCE when there is none and the policy forbids the CPU. The other choices are still to be
 * made. */
int decision_choose_device(struct decision *out, const struct settings *s,
                           const struct decision_policy *policy);

/* The engine that the settings ask for. */
void decision_choose_engine(struct decision *d, const struct settings *s);

/* Engine and attention kernel on that device. ERR_RESOURCE when the kernel that was asked for does
 * not run there and another one is not allowed. */
int decision_choose_attention(struct decision *d, const struct settings *s,
                              const struct device_info *device,
                              const struct decision_policy *policy);

/* The kernel of `engine.attention: auto`. GPUs by compute capability: from (8, 0) on flash, (7, x)
 * memory_efficient, older ones eager. The CPU: flash. */
enum attention_kind decision_auto_attention(const struct device_info *device);

/* Whether a kernel runs on the device; `why` says what it needs when it does not. */
bool decision_can_attend(const struct device_info *device, enum attention_kind kind,
                         char why[DECISION_REASON_MAX]);

/* The fast engine did not start (err_get() says why): go on with the standard engine, or fail with
 * that error. Warns. */
int decision_use_standard_engine(struct decision *d, const struct decision_policy *policy);

/* The GPU cannot take the model or its engine (err_get() says why, ERR_RESOURCE): go on with the
 * CPU, or -1 with that error. Warns. The attention kernel is to be chosen anew. */
int decision_use_cpu(struct decision *d, const struct decision_policy *policy);

/* Says that this model is being loaded, and for which engine. */
void decision_log_loading(const struct decision *d, const char *model_path);

/* The lines users look for: which kernel on which device, and what was fallen back from; that
 * warning is shown when it differs from warned_of, which is then set to it. */
void decision_log(const struct decision *d, char warned_of[DECISION_REASON_MAX]);

/* The engine options of a task's settings under this decision. */
void decision_engine_options(const struct decision *d, const struct settings *s,
                             struct engine_options *out);

#endif
