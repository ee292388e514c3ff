/* workload.h - requests of many shapes for tests of the engine, and what became of them.
 *
 * Prompts have odd lengths around the block size 16; every third one begins like the others of its
 * kind, some are equal and a whole number of blocks. Half of the requests are greedy, half sampled.
 * Failing helpers end the running test.
 */
#ifndef QUIRE_TESTS_WORKLOAD_H
#define QUIRE_TESTS_WORKLOAD_H

#include "engine/engine.h"
#include "tests/testing.h"

#define N_REQUESTS    30
#define MAX_PROMPT    80
#define MAX_OUTPUT    40
#define MAX_MODEL_LEN 128

/* What a request became, by its callbacks. */
struct outcome {
    int seen[MAX_OUTPUT], n_seen; /* by on_token */
    int ids[MAX_OUTPUT], n_ids;   /* by on_finish */
    enum finish_reason reason;
    int n_prompt, n_cached, n_preemptions, n_finished;
};

struct workload {
    struct request request[N_REQUESTS];
    int prompt[N_REQUESTS][MAX_PROMPT];
    struct outcome outcome[N_REQUESTS];
};

/* The caller frees. */
struct workload *workload_make(void);

/* Callbacks of a request whose user is a struct outcome. */
void workload_note_token(void *user, int id);
void workload_note_finish(void *user, const struct completion *c);

/* A model on test_device(). */
struct model *workload_open_model(const char *path, int n_threads);
/* An engine for sequences of MAX_MODEL_LEN, with blocks of 16 tokens unless the options say so. */
/* Whether engines are opened with async_scheduling, whatever their options say. */
extern bool workload_async;

struct engine *workload_open_engine(struct model *model, const struct engine_options *options);

void workload_submit(struct engine *engine, const struct request *request, uint64_t *id);
/* Steps until there is nothing left to do. */
void workload_step_all(struct engine *engine);

/* Everything done by one engine; its statistics at the end. */
struct engine_stats workload_run(struct workload *w, struct model *model,
                                 const struct engine_options *options);

/* Fails unless every request of b finished once and as in a. */
void workload_assert_same(const struct workload *a, const struct workload *b, const char *model,
                          const char *setting);

#endif
