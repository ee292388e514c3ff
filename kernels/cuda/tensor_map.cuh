/* tensor_map.cuh - how the tensor copy engine of compute capability 9.0 sees an array. */
#ifndef QUIRE_CUDA_TENSOR_MAP_CUH
#define QUIRE_CUDA_TENSOR_MAP_CUH

#include <cuda.h>
#include <stddef.h>

#define TENSOR_MAP_MAX_DIMS 4

/* An array of 16-bit elements, the fastest dimension first, and the boxes that are copied of it. */
struct tensor_layout {
    int n_dims;
    size_t size[TENSOR_MAP_MAX_DIMS];
    size_t stride_bytes[TENSOR_MAP_MAX_DIMS - 1]; /* of the second dimension on: multiples of 16 */
    int box[TENSOR_MAP_MAX_DIMS];
    CUtensorMapSwizzle swizzle;
    CUtensorMapL2promotion promotion;
};

/* What a box has outside of the array reads as zero. Ends the program when there is no such map. */
void tensor_map_init(CUtensorMap *map, const void *array, const struct tensor_layout *layout);

#endif
