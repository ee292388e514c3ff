/* attempt.h - what is measured while a task runs, and its summary for the store. */
#ifndef QUIRE_ATTEMPT_H
#define QUIRE_ATTEMPT_H

#include "engine/engine.h"
#include "runner/store.h"

struct series {
    double *value;
    size_t n, capacity;
};

/* Zero-initialise; free with attempt_free. Times count from admission to the batch, so that the
 * latency of a sample does not depend on how many samples were queued before it. */
struct attempt {
    int64_t id; /* row id */
    int64_t prompt_tokens, cached_tokens, output_tokens, preemptions;
    int n_samples, n_failed;
    double first_s, last_s; /* time_monotonic_s() of the first admission and the last finish */
    struct series ttft_s, tpot_s, e2e_s;
};

void attempt_add(struct attempt *a, const struct completion *c);
void attempt_free(struct attempt *a);

/* Times of one finished sample, as the store keeps them. NaN for tpot of a single token. */
void attempt_sample_times(struct store_sample *out, const struct completion *c);

/* Fills in the token counts, rates and percentiles of `end`. */
void attempt_summarise(struct attempt *a, struct store_attempt_end *end);

#endif
