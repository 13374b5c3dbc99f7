// copies of boxes of pixels to shared memory by the bulk tensor engine, where a GPU has one
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../dcnv4.h"

namespace yolo_dcnv4 {
namespace {

struct Box {
  int channels, w, h;
};

// What the engine needs to know of a float32 tensor (N, H, W, C); false where it cannot copy from it.
inline bool describe(const Problem& p, const void* value, int64_t images, const Box& box, CUtensorMap* map) {
#if CUDART_VERSION >= 12050
  // the same function for all threads and devices
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return status == cudaSuccess && result == cudaDriverEntryPointSuccess
               ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found)
               : nullptr;
  }();
  if (!encode) return false;
  constexpr cuuint64_t kBytes = sizeof(float);
  const cuuint64_t sizes[] = {
      static_cast<cuuint64_t>(p.channels()), static_cast<cuuint64_t>(p.width), static_cast<cuuint64_t>(p.height),
      static_cast<cuuint64_t>(images)};
  // the stride of a single image, row or pixel may be anything
  const auto stride = [](int64_t elements, int64_t size) {
    return size > 1 ? static_cast<cuuint64_t>(elements) * kBytes : cuuint64_t{16};
  };
  const cuuint64_t strides[] = {stride(p.value.w, p.width), stride(p.value.h, p.height), stride(p.value.n, images)};
  const cuuint32_t sides[] = {
      static_cast<cuuint32_t>(box.channels), static_cast<cuuint32_t>(box.w), static_cast<cuuint32_t>(box.h), 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  for (const cuuint64_t bytes : strides) {
    if (bytes == 0) return false;  // an expanded tensor
  }
  return encode(
             map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, const_cast<void*>(value), sizes, strides, sides, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
#else
  return false;
#endif
}

// A barrier in shared memory on which a block waits for its copies, once.
struct CopyBarrier {
  uint32_t address;

  // by one thread, which then starts the copies
  __device__ __forceinline__ void expect(int bytes) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
#endif
  }
  // what lies outside the tensor is zero
  __device__ __forceinline__ void copy(uint32_t to, const CUtensorMap& map, int channel, int x, int y, int n) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
        "l"(&map), "r"(channel), "r"(x), "r"(y), "r"(n), "r"(address)
        : "memory");
#endif
  }
  // by all threads, after a __syncthreads that follows expect
  __device__ __forceinline__ void await() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(address)
        : "memory");
#endif
  }
};

}  // namespace
}  // namespace yolo_dcnv4
