/* generation.h - generates the pending samples of tasks that share an engine.
 *
 * Samples of several tasks run in the same batches. Each finished sample is handed to the store at
 * once; a sample that cannot run (a bad prompt) becomes a row with its error and the others go on.
 */
#ifndef QUIRE_GENERATION_H
#define QUIRE_GENERATION_H

#include "runner/decision.h"
#include "runner/progress.h"
#include "runner/store.h"
#include "runner/work.h"

struct generation {
    struct work **work; /* [n_work] all with pending samples and an attempt begun */
    int n_work;
    struct engine *engine;
    const struct tokenizer *tokenizer; /* NULL: token ids only */
    struct store *store;
    int64_t run_id;
    struct progress *progress;
    double *first_token_s; /* time_monotonic_s() of the run's first token; 0: none yet   */
    int64_t *n_done;       /* samples of the whole run, counted up here          */
    /* Called when the last sample of a task has finished or failed; -1 ends the generation. */
    int (*finish_task)(void *user, struct work *w);
    void *user;
    double run_began_s; /* time_monotonic_s() at the beginning of the run     */
};

enum generation_result {
    GENERATION_DONE,
    GENERATION_STOPPED, /* a signal asked to stop; finished samples are in the store */
    GENERATION_FAILED,  /* the device or the store failed: err_get() says how        */
};

/* Runs until every pending sample has finished or failed. */
enum generation_result generation_run(struct generation *g);

/* From now on SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 ask the run to stop after its current step; a
 * second one ends the process at once (what was committed stays). */
void generation_catch_signals(void);
/* The signal that asked to stop, or 0. */
int generation_stop_signal(void);

#endif
