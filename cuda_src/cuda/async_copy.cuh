// copies from global to shared memory that threads start and await later, from compute capability 8.0 on
#pragma once

#include <stdint.h>

namespace yolo_dcnv4 {
namespace {

// 16 bytes of which the first `bytes` are read, and the others are zero
__device__ __forceinline__ void copy_16_bytes(uint32_t to, const void* from, int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
#endif
}

// brings a sector to L1; what is copied is not meant to be read, and before 8.0 nothing is
__device__ __forceinline__ void fetch_by_4_bytes(uint32_t to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
#endif
}

__device__ __forceinline__ void await_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace
}  // namespace yolo_dcnv4
