/* decision.h - what a task runs on, and why: device, engine and attention kernel.
 *
 * The ladder: what was asked for, else the next thing that works, with a warning, an event and a
 * reason in the row; or a refusal under --strict or when the config's `fallback` forbids the step.
 */
#ifndef QUIRE_DECISION_H
#define QUIRE_DECISION_H

#include "runner/config.h"

#define DECISION_REASON_MAX 256

struct decision {
    enum device_kind device;
    enum attention_kind attention;
    bool fast; /* the paged engine; false: the standard engine */
    bool degraded;
    char reason[DECISION_REASON_MAX];          /* why this device and kernel                  */
    char degraded_reason[DECISION_REASON_MAX]; /* "" when everything asked for was there      */
};

struct decision_policy {
    bool strict;                /* --strict: refuse instead of falling back */
    bool allow_cpu;             /* fallback.allow_cpu                       */
    bool allow_standard_engine; /* fallback.allow_standard_engine           */
};

/* ERR_RESOURCE when what was asked for is not there and the policy forbids to go on without it. */
int decision_make(struct decision *out, const struct settings *s, const struct device_info *cpu,
                  const struct decision_policy *policy);

/* The fast engine did not start (err_get() says why): go on with the standard engine, or fail with
 * that error. Warns. */
int decision_use_standard_engine(struct decision *d, const struct decision_policy *policy);

/* The lines users look for: which kernel on which device, and what was fallen back from; that
 * warning is shown when it differs from warned_of, which is then set to it. */
void decision_log(const struct decision *d, char warned_of[DECISION_REASON_MAX]);

/* The engine options of a task's settings under this decision. */
void decision_engine_options(const struct decision *d, const struct settings *s,
                             struct engine_options *out);

#endif
