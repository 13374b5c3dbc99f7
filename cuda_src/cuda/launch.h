// launchers of the CUDA kernels: asynchronous on the given stream, an error instead of an exception
#pragma once

#include <cuda_runtime.h>

#include "../dcnv4.h"

namespace yolo_dcnv4 {

constexpr int64_t kBounds = 2;

struct CudaBackwardArgs : BackwardArgs {
  // grad_value before rounding, zero-filled: float32, or int64 fixed point where deterministic;
  // null where grad_value itself has the accumulation type and is zero-filled
  void* sums;
  void* bounds;  // kBounds zero-filled 8-byte slots, only where deterministic
  bool deterministic;
};

cudaError_t launch_forward(const ForwardArgs& args, cudaStream_t stream);
cudaError_t launch_backward(const CudaBackwardArgs& args, cudaStream_t stream);

// images of one launch: what the grid's second dimension holds
constexpr int64_t kMostImages = 65535;

// whether this library holds code for the current device
cudaError_t probe_device();

}  // namespace yolo_dcnv4
