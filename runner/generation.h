/* generation.h - generates the samples that the desk hands out for one engine.
 *
 * Samples of several tasks run in the same batches. Each finished sample goes to the desk after the
 * step that finished it; a sample that cannot run (a bad prompt) goes there with its error.
 */
#ifndef QUIRE_GENERATION_H
#define QUIRE_GENERATION_H

#include "runner/link.h"

struct generation {
    const struct engine_group *group;
    int group_index; /* of the work list */
    struct engine *engine;
    const struct tokenizer *tokenizer; /* NULL: token ids only */
    struct link *link;
    int max_num_seqs;
    int max_waiting; /* requests in the engine beyond these, so that it never waits for the desk */
    /* Called after each step, which took step_s, and while there is nothing to do. */
    void (*after_step)(void *user, double step_s);
    void *user;
};

enum generation_result {
    GENERATION_NEXT,    /* *order is for another group                                  */
    GENERATION_END,     /* there is nothing to do any more                              */
    GENERATION_STOPPED, /* stop_get() asked to stop; what fitted was finished           */
    GENERATION_FAILED,  /* the device failed: err_get() says how                        */
};

/* Begins with *order, and asks for more whenever there is room. */
enum generation_result generation_run(struct generation *g, struct order *order);

#endif
