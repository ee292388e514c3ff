/* mark.cu - marks of time: when the GPU came to a place in its stream.
 *
 * CUDA tells the time between two events as a float of milliseconds, which is exact to a nanosecond
 * for some 16 ms only, so a mark is timed from the one that was read before it. The first one is
 * timed by the host, while the stream waits. The clocks of host and GPU drift apart; but the GPU
 * passes a mark after the host has enqueued it and before the host sees that it did, and a time
 * that lies outside of that is moved there.
 */
#include "kernels/cuda/cuda.cuh"

#include <math.h>
#include <stdlib.h>

struct cuda_marks {
    cudaEvent_t event[MAX_MARKS]; /* of the latest marks, a ring                         */
    double enqueued_s[MAX_MARKS]; /* time_monotonic_s()                                  */
    int64_t n;                    /* marks made                                          */
    int64_t known; /* the mark read last, or the first one; it is in the ring still  */
    double known_s;
};

void cuda_marks_open(struct cuda_device *d)
{
    struct cuda_marks *m = (struct cuda_marks *)xcalloc(1, sizeof(*m));
    for (int i = 0; i < MAX_MARKS; i++)
        CUDA_CHECK(cudaEventCreate(&m->event[i]));
    d->marks = m;
}

void cuda_marks_close(struct cuda_device *d)
{
    for (int i = 0; i < MAX_MARKS; i++)
        CUDA_CHECK(cudaEventDestroy(d->marks->event[i]));
    free(d->marks);
}

int64_t cuda_mark(struct device *device)
{
    struct cuda_device *d = cuda_device(device);
    struct cuda_marks *m = d->marks;
    int64_t mark = m->n++;
    assert(mark - m->known < MAX_MARKS);
    cudaEvent_t event = m->event[mark % MAX_MARKS];
    m->enqueued_s[mark % MAX_MARKS] = time_monotonic_s();
    CUDA_CHECK(cudaEventRecord(event, d->stream));
    if (mark == 0) {
        CUDA_CHECK(cudaEventSynchronize(event));
        m->known_s = time_monotonic_s();
    }
    return mark;
}

double cuda_mark_read(struct device *device, int64_t mark)
{
    struct cuda_marks *m = cuda_device(device)->marks;
    cudaEvent_t event = m->event[mark % MAX_MARKS];
    float ms = 0;
    assert(mark >= m->known && mark < m->n);
    CUDA_CHECK(cudaEventSynchronize(event));
    double now_s = time_monotonic_s();
    if (mark != m->known)
        CUDA_CHECK(cudaEventElapsedTime(&ms, m->event[m->known % MAX_MARKS], event));
    double at_s = m->known_s + 1e-3 * (double)ms;
    m->known_s = fmax(m->enqueued_s[mark % MAX_MARKS], fmin(at_s, now_s));
    m->known = mark;
    return m->known_s;
}
