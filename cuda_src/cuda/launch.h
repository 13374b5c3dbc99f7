// launchers of the CUDA kernels: asynchronous on the given stream, an error instead of an exception
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "../dcnv4.h"

namespace yolo_dcnv4 {

constexpr int64_t kBounds = 2;

struct CudaBackwardArgs : BackwardArgs {
  // room for grad_value before rounding: float32, or int64 fixed point where deterministic;
  // null where grad_value itself has the accumulation type
  void* sums;
  void* bounds;  // room for kBounds of 8 bytes, only where deterministic
  bool deterministic;
  int plane_warps;  // 0, or the warps of a block that sums up a plane of grad_value on its own, without the above
};

cudaError_t launch_forward(const ForwardArgs& args, cudaStream_t stream);
cudaError_t launch_backward(const CudaBackwardArgs& args, cudaStream_t stream);

// what plane_warps should be where these gradients are needed
int choose_plane_warps(const CudaBackwardArgs& args);

// images of one launch: what a grid's second and third dimensions hold
constexpr int64_t kMostImages = 65535;

// Calls launch(first, images) for as many images at once as a grid holds, until one fails.
template <typename Launch>
cudaError_t for_images(const Problem& p, const Launch& launch) {
  cudaError_t status = cudaSuccess;
  for (int64_t first = 0; first < p.batch && status == cudaSuccess; first += kMostImages) {
    status = launch(first, std::min(p.batch - first, kMostImages));
  }
  return status;
}

// whether this library holds code for the current device
cudaError_t probe_device();

}  // namespace yolo_dcnv4
