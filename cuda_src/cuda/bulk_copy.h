// copies of boxes to shared memory by the bulk tensor engine, where a GPU has one
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace yolo_dcnv4 {
namespace {

template <typename T>
constexpr CUtensorMapDataType kEngineType = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
template <>
constexpr CUtensorMapDataType kEngineType<__half> = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
template <>
constexpr CUtensorMapDataType kEngineType<__nv_bfloat16> = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;

// a tensor's dimension, and how much of it a box has; in elements
struct Dimension {
  int64_t size, stride;
  int box;
};

// What the engine needs to know of a tensor with these dimensions, the innermost and dense one first; false where it
// cannot copy from it.
template <typename T>
bool describe(const void* start, const Dimension (&dimensions)[4], CUtensorMap* map) {
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
  cuuint64_t sizes[4], strides[3];
  cuuint32_t sides[4];
  for (int i = 0; i < 4; ++i) {
    const Dimension& d = dimensions[i];
    sizes[i] = static_cast<cuuint64_t>(d.size);
    sides[i] = static_cast<cuuint32_t>(d.box);
    if (i == 0) continue;
    // the stride of a single image, row or pixel may be anything; that of an expanded tensor is zero
    strides[i - 1] = d.size > 1 ? static_cast<cuuint64_t>(d.stride) * sizeof(T) : cuuint64_t{16};
    if (strides[i - 1] == 0) return false;
  }
  const cuuint32_t steps[] = {1, 1, 1, 1};
  return encode(
             map, kEngineType<T>, 4, const_cast<void*>(start), sizes, strides, sides, steps,
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
  // the box that starts at these places of the dimensions; what lies outside the tensor is zero
  __device__ __forceinline__ void copy(uint32_t to, const CUtensorMap& map, int a, int b, int c, int d) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
        "l"(&map), "r"(a), "r"(b), "r"(c), "r"(d), "r"(address)
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
