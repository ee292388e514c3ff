/* tensor_map.cu - see tensor_map.cuh. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/tensor_map.cuh"

#include <cudaTypedefs.h>

void tensor_map_init(CUtensorMap *map, const void *array, const struct tensor_layout *layout)
{
    static PFN_cuTensorMapEncodeTiled_v12000 encode;
    cudaDriverEntryPointQueryResult found;
    if (!encode)
        CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode,
                                                    12000, cudaEnableDefault, &found));
    cuuint64_t size[TENSOR_MAP_MAX_DIMS], stride[TENSOR_MAP_MAX_DIMS];
    cuuint32_t box[TENSOR_MAP_MAX_DIMS], step[TENSOR_MAP_MAX_DIMS];
    for (int i = 0; i < layout->n_dims; i++) {
        size[i] = layout->size[i];
        stride[i] = i + 1 < layout->n_dims ? layout->stride_bytes[i] : 0;
        box[i] = (cuuint32_t)layout->box[i];
        step[i] = 1;
    }
    CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, (cuuint32_t)layout->n_dims,
                             (void *)array, size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                             layout->swizzle, layout->promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        die("CUDA: cuTensorMapEncodeTiled of rows of %zu: error %d", layout->size[0], (int)result);
}
