/* worker.h - the loop of one rank: take an order, load its model, open its engine, generate. */
#ifndef QUIRE_WORKER_H
#define QUIRE_WORKER_H

#include "runner/link.h"

struct worker_options {
    const struct work_list *work;
    struct decision_policy policy;
    struct link *link;
    struct cluster *cluster; /* NULL: alone                                              */
    struct desk *desk;       /* to be looked after between steps; NULL: somebody else does */
    double began_s;          /* time_monotonic_s() at the beginning of the run           */
    struct trace *trace;     /* NULL: none                                               */
};

/* Works until nothing is left, or until stop_get() says so. */
void worker_run(const struct worker_options *options);

#endif
