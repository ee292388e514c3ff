/* graph.cu - recorded steps: CUDA graphs by stream capture.
 *
 * A decode step is some 250 short kernels; launched one by one the host takes longer than the GPU.
 */
#include "kernels/cuda/cuda.cuh"

#include <stdlib.h>

struct graph {
    cudaGraphExec_t exec;
};

bool cuda_graph_begin(struct device *device)
{
    struct cuda_device *d = cuda_device(device);
    CUDA_CHECK(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
    return true;
}

struct graph *cuda_graph_end(struct device *device)
{
    struct cuda_device *d = cuda_device(device);
    cudaGraph_t recorded = NULL;
    cudaGraphExec_t exec = NULL;
    cudaError_t error = cudaStreamEndCapture(d->stream, &recorded);
    if (error == cudaSuccess)
        error = cudaGraphInstantiate(&exec, recorded, 0);
    if (recorded)
        CUDA_CHECK(cudaGraphDestroy(recorded));
    if (error == cudaSuccess)
        error = cudaGraphUpload(exec, d->stream);
    if (error != cudaSuccess) {
        (void)cudaGetLastError(); /* or the next launch would report it again */
        err_set(ERR_RESOURCE, "recording a step as a CUDA graph: %s", cudaGetErrorString(error));
        return NULL;
    }
    struct graph *graph = (struct graph *)xcalloc(1, sizeof(*graph));
    graph->exec = exec;
    return graph;
}

void cuda_graph_run(struct device *device, struct graph *graph)
{
    CUDA_CHECK(cudaGraphLaunch(graph->exec, cuda_device(device)->stream));
}

void cuda_graph_free(struct device *device, struct graph *graph)
{
    if (!graph)
        return;
    cuda_device(device);
    CUDA_CHECK(cudaGraphExecDestroy(graph->exec));
    free(graph);
}
