// what the current device has, and how work is shared out on it
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace yolo_dcnv4 {

// 0 where it cannot be asked for
inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  const bool known =
      cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, which, device) == cudaSuccess;
  return known ? value : 0;
}

// the last one may be smaller
constexpr int64_t parts_of(int64_t size, int64_t part) { return (size + part - 1) / part; }

}  // namespace yolo_dcnv4
