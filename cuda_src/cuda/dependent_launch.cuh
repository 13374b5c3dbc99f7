// Kernels that start while the one before them in the stream still runs (programmatic dependent launch), and wait where
// they need what it wrote. The first of a chain is launched plainly, and so comes after all that was queued before.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "tuning.h"

namespace yolo_dcnv4 {
namespace {

// until the kernel before, and so all kernels before that, have ended and their writes can be seen
__device__ __forceinline__ void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// the next kernel may take what room there is as soon as all blocks have come here
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// of a kernel that waits before it needs what the one before wrote; `early`: the one before is of the same chain
template <typename... Parameters, typename... Arguments>
cudaError_t launch_in_chain(
    void (*kernel)(Parameters...), dim3 grid, int threads, int bytes, cudaStream_t stream, bool early,
    Arguments&&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &attribute;
  // code for older GPUs does not wait
  config.numAttrs = early && architecture() >= 90 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace
}  // namespace yolo_dcnv4
