/* link.h - a worker's way to the desk: function calls on rank 0, messages from any other rank.
 *
 * Calls of a worker never wait for rank 0, but for link_leave. One thread at a time.
 */
#ifndef QUIRE_LINK_H
#define QUIRE_LINK_H

#include "runner/cluster.h"
#include "runner/desk.h"

struct link;

/* desk: of this process, on rank 0; else NULL, and messages go through the cluster. */
struct link *link_open(struct cluster *cluster, struct desk *desk);
void link_close(struct link *link); /* accepts NULL */

void link_greet(struct link *link, const struct greeting *greeting);
/* Asks for samples, or looks whether the answer to the last question has come: true then. See
 * desk_take. */
bool link_take(struct link *link, int group, int room, struct order *out);
void link_begin(struct link *link, const struct opening *opening);
/* err_get() says why. */
void link_refuse(struct link *link, const struct opening *opening);

/* An outcome waits for the next pulse, which sends all of a step together. */
void link_put(struct link *link, const struct outcome *outcome);
void link_pulse(struct link *link, const struct pulse *pulse);
bool link_has_outcomes(const struct link *link);

/* The worker has ended. Returns the exit code of the run, which rank 0 knows when every rank has
 * ended; on rank 0 itself 0 at once. */
int link_leave(struct link *link);

/* ---- rank 0, for the cluster's messages ---- */
/* user: the struct link_server of the run. */
struct link_server {
    struct cluster *cluster;
    struct desk *desk;
};
void link_serve(void *user, int from, const char *data, size_t n);
/* Tells every other rank the exit code, after all have left. */
void link_dismiss(struct cluster *cluster, int exit_code);

#endif
