// what lanes of a warp exchange
#pragma once

namespace yolo_dcnv4 {
namespace {

// to[i] of lane j becomes from[j] of lane i, in groups of kSize neighbouring lanes
template <int kSize, typename Accumulator>
__device__ __forceinline__ void transpose(const Accumulator (&from)[kSize], Accumulator (&to)[kSize], int lane) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) to[i] = from[i];
#pragma unroll
  for (int step = kSize / 2; step > 0; step /= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i & step) continue;
      // the lower lane gives its upper half for the upper lane's lower one
      const Accumulator received = __shfl_xor_sync(0xffffffffu, upper ? to[i] : to[i + step], step);
      (upper ? to[i] : to[i + step]) = received;
    }
  }
}

}  // namespace
}  // namespace yolo_dcnv4
