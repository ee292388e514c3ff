/* cluster_mpi.c - the transport of cluster.h over MPI: point-to-point messages; only the start, in
 * which ranks of a host find each other, is collective.
 *
 * Built into quire_mpi.so, so that quire itself starts without MPI. The only user of mpi.h.
 */
#include "runner/cluster.h"

#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define TAG 0

/* A message that is being sent; its memory is freed when MPI has done with it. */
struct sending {
    MPI_Request request;
    struct sending *next;
    char data[];
};

static struct sending *sendings;

/* A launcher that binds gives each rank a mask of its own; one that does not leaves all of them the
 * same. */
static void compare_masks(struct cluster_place *place, MPI_Comm node)
{
    cpu_set_t own, *mask = xcalloc((size_t)place->local_size, sizeof(*mask));
    CPU_ZERO(&own);
    (void)sched_getaffinity(0, sizeof(own), &own); /* unknown masks are all empty: shared */
    MPI_Allgather(&own, sizeof(own), MPI_BYTE, mask, sizeof(own), MPI_BYTE, node);
    for (int r = 0; r < place->local_size; r++) {
        bool same = CPU_EQUAL(&mask[r], &own);
        place->cpu_size += same;
        place->cpu_rank += same && r < place->local_rank;
    }
    free(mask);
}

static int open_mpi(struct cluster_place *out)
{
    int provided;
    MPI_Comm node;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS ||
        provided < MPI_THREAD_FUNNELED)
        return err_set(ERR_RESOURCE, "MPI cannot be started beside other threads");
    MPI_Comm_rank(MPI_COMM_WORLD, &out->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &out->size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, out->rank, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &out->local_rank);
    MPI_Comm_size(node, &out->local_size);
    compare_masks(out, node);
    MPI_Comm_free(&node);
    return 0;
}

static void free_finished(void)
{
    struct sending **at = &sendings;
    while (*at) {
        struct sending *s = *at;
        int done;
        MPI_Test(&s->request, &done, MPI_STATUS_IGNORE);
        if (done) {
            *at = s->next;
            free(s);
        } else {
            at = &s->next;
        }
    }
}

static void send_message(int to, const char *data, size_t n)
{
    free_finished();
    struct sending *s = xmalloc(sizeof(*s) + n);
    memcpy(s->data, data, n);
    MPI_Isend(s->data, (int)n, MPI_BYTE, to, TAG, MPI_COMM_WORLD, &s->request);
    s->next = sendings;
    sendings = s;
}

static bool receive_message(int *from, struct str *out)
{
    int there, n;
    MPI_Message message;
    MPI_Status status;
    free_finished();
    MPI_Improbe(MPI_ANY_SOURCE, TAG, MPI_COMM_WORLD, &there, &message, &status);
    if (!there)
        return false;
    MPI_Get_count(&status, MPI_BYTE, &n);
    char *data = xmalloc((size_t)n + 1);
    MPI_Mrecv(data, n, MPI_BYTE, &message, &status);
    str_clear(out);
    str_append(out, data, (size_t)n);
    free(data);
    *from = status.MPI_SOURCE;
    return true;
}

static void close_mpi(void)
{
    while (sendings) {
        struct sending *s = sendings;
        sendings = s->next;
        MPI_Wait(&s->request, MPI_STATUS_IGNORE);
        free(s);
    }
    MPI_Finalize();
}

static void abort_mpi(int code)
{
    MPI_Abort(MPI_COMM_WORLD, code);
}

extern const struct cluster_transport cluster_mpi;
const struct cluster_transport cluster_mpi = {
    .open = open_mpi,
    .send = send_message,
    .receive = receive_message,
    .close = close_mpi,
    .abort = abort_mpi,
};
