/* cluster.h - the ranks of a run and the messages between them.
 *
 * A run that srun or mpirun started as several tasks has one rank per task; any other run is alone
 * and starts no MPI at all. Each rank has one thread that does all of its MPI (files
 * runner/cluster_mpi.c, in quire_mpi.so, which is opened at run time), so that nobody ever waits
 * for another rank's generation step, and one that delivers what has come, which may wait for the
 * file system. Messages between two ranks arrive in the order in which they were posted.
 *
 * Every rank sends a sign of life every second, together with its stop level (stop.h), which so
 * becomes that of all ranks. A rank that is silent for CLUSTER_SILENCE_SECONDS in which this one
 * ran is lost: then every rank ends with ERR_STOPPED, and the run can be started again.
 */
#ifndef QUIRE_CLUSTER_H
#define QUIRE_CLUSTER_H

#include "engine/util.h"

#define CLUSTER_SILENCE_SECONDS 15.0
#define CLUSTER_LIBRARY         "quire_mpi.so"

struct cluster;

struct cluster_place {
    int rank, size;
    int local_rank, local_size; /* among the ranks on the same host                     */
    int cpu_rank, cpu_size;     /* among those of them that may use the same processors */
};

/* Joins the other ranks; *out stays NULL when this process is alone. ERR_RESOURCE: started as
 * several tasks, but this build has no MPI; ERR_CONFIG: by a launcher that does not tell the tasks
 * of each other. */
int cluster_open(struct cluster **out);
struct cluster_place cluster_get_place(const struct cluster *c); /* NULL: rank 0 of 1 */

/* The rank that the launcher's variables give this process; 0 when it is alone. */
int cluster_rank_of_environment(void);

/* Called on threads of the cluster, one call at a time. */
struct cluster_events {
    void *user;
    void (*on_message)(void *user, int from, const char *data, size_t n);
    void (*on_idle)(void *user);           /* some ten times a second                      */
    void (*on_lost)(void *user, int rank); /* the last call: the process ends after it     */
};
/* From now on messages are delivered, those that have come already first. With no on_message they
 * are kept, and when it returns no call of the events before is under way. */
void cluster_listen(struct cluster *c, const struct cluster_events *events);

/* Any thread. The data is copied. */
void cluster_post(struct cluster *c, int to, const char *data, size_t n);

struct cluster_traffic {
    int64_t sent_bytes, received_bytes; /* signs of life not counted */
};
struct cluster_traffic cluster_get_traffic(struct cluster *c); /* NULL: none */

/* Sends what was posted, waits for the other ranks to close as well, and leaves MPI. Accepts NULL.
 * No message may be on its way to a rank that closes. */
void cluster_close(struct cluster *c);

/* ---- the transport: what quire_mpi.so provides, used by cluster.c on one thread ---- */
struct cluster_transport {
    /* ERR_RESOURCE. */
    int (*open)(struct cluster_place *out);
    /* Begins to send; the data is copied. */
    void (*send)(int to, const char *data, size_t n);
    /* The next message that has arrived into *out (emptied first), and whose it is. */
    bool (*receive)(int *from, struct str *out);
    void (*close)(void);
    /* Ends all ranks with this exit code. */
    void (*abort)(int code);
};
/* cluster_open with this transport: ERR_RESOURCE when it cannot be opened. It outlives the cluster.
 */
int cluster_start(struct cluster **out, const struct cluster_transport *transport);

#endif
