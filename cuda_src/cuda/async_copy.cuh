// copies from global to shared memory that threads start and await later, from compute capability 8.0 on
#pragma once

#include <stdint.h>

namespace yolo_dcnv4 {
namespace {

// of a pixel outside the image nothing is read, and zeros are written
__device__ __forceinline__ void copy_16_bytes(uint32_t to, const float* from, bool exists) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
#else
  const float4 v = exists ? __ldg(reinterpret_cast<const float4*>(from)) : float4{};
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
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
