#include "plane_backward.cuh"
#include "tile_backward.cuh"

namespace yolo_dcnv4 {

template cudaError_t launch_tile_gradients<__nv_bfloat16>(const CudaBackwardArgs& args, cudaStream_t stream);
template cudaError_t launch_plane_gradients<__nv_bfloat16>(const CudaBackwardArgs& args, cudaStream_t stream);

}  // namespace yolo_dcnv4
