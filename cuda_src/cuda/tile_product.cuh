// Tiles of 3 x 3 windows as dense matrix products, for tensor cores.
//
// A warp takes 4 x 4 output pixels and one group. Their points nearly all fall among the 12 x 12 input pixels around:
// they are `near`. The bilinear weights of near points then form a matrix of 144 input pixels times 16 output pixels,
// which products with features or gradients turn into sums. The few points farther away are worked on one by one.
#pragma once

#include <math.h>

#include <type_traits>

#include "../dcnv4.h"
#include "matrix.cuh"
#include "sampling.cuh"
#include "tile_backward.h"

namespace yolo_dcnv4 {
namespace {

constexpr int kBlockSide = 4;                       // output pixels of a warp
constexpr int kReach = 4;                           // input pixels around them
constexpr int kNearSide = kBlockSide + 2 * kReach;  // 12
constexpr int kNearPixels = kNearSide * kNearSide;  // 144
constexpr int kPoints = 9;
constexpr int kRecord = 3 * kPoints;

// from (row, column) to (row + 1, column) in a matrix of weights
constexpr int kNearRow = kNearSide * kSide;

template <typename T>
constexpr int kRecordPitch = sizeof(T) == 2 ? 28 : 30;  // keeps 16 neighbouring records in different banks

static_assert(kSide == kSliceChannels, "products take a slice of channels");

// strides within an image fit in 32 bits
struct WarpLayout {
  int out_height, groups, group_width;
  int value_h, value_w, offset_h, offset_w, grad_h, grad_w;
  int record_row;   // of the gradient of offset_mask: entries from pixel to pixel
  int64_t entries;  // R
  int64_t grad_n;

  WarpLayout(const Problem& p, int64_t gradient_row)
      : out_height(p.out_height),
        groups(p.groups),
        group_width(p.group_width),
        value_h(static_cast<int>(p.value.h)),
        value_w(static_cast<int>(p.value.w)),
        offset_h(static_cast<int>(p.offset_mask.h)),
        offset_w(static_cast<int>(p.offset_mask.w)),
        grad_h(static_cast<int>(p.grad_output.h)),
        grad_w(static_cast<int>(p.grad_output.w)),
        record_row(static_cast<int>(gradient_row)),
        entries(p.row),
        grad_n(p.grad_output.n) {}
};

// 4 x 4 output pixels and a group, which a warp works on
struct WarpPlace {
  int group;
  int first_y, first_x;  // of the output pixels
  int near_y, near_x;    // of the near input pixels
  int pixel, side;       // a pair of lanes has an output pixel: one the left corners of its points, one the right
  int out_y, out_x;
  bool exists;

  WarpPlace() = default;
  __device__ __forceinline__
  WarpPlace(const Geometry<float>& g, const WarpLayout& layout, int group, int first_y, int first_x)
      : group(group),
        first_y(first_y),
        first_x(first_x),
        near_y(first_y + g.shift_h - kReach),
        near_x(first_x + g.shift_w - kReach),
        pixel(threadIdx.x % 16),
        side(threadIdx.x / 16 % 2) {
    output_pixel(pixel, out_y, out_x);
    exists = out_y < layout.out_height && out_x < g.out_width;
  }
  __device__ __forceinline__ void output_pixel(int pixel, int& y, int& x) const {
    y = first_y + pixel / kBlockSide;
    x = first_x + pixel % kBlockSide;
  }
};

// row of a pixel in the matrix of its block's gradients: the order in which products take their steps
__device__ __forceinline__ int step_row(int pixel) { return 8 * (pixel / 2 % 2) + 2 * (pixel / 4) + pixel % 2; }

template <typename T, int kChannels>
__device__ __forceinline__ bool all_finite(const Vector<T, kChannels>& v) {
  float probe = 0.f;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) probe = fmaf(v.opmath(c), 0.f, probe);
  return probe == 0.f;
}

template <typename T, int kChannels>
__device__ __forceinline__ void set_zero(Vector<T, kChannels>& v) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) v.element[c] = from_opmath<T>(0);
}

// the warp's records on their way from global memory
template <typename T>
struct StagedRecords {
  T entry[kSide];

  __device__ __forceinline__ void load(
      const Geometry<float>& g, const WarpLayout& layout, const WarpPlace& place, const T* offset_mask) {
    const int lane = threadIdx.x % 32;
    // pixels that do not exist take the record of one that does
    int64_t row[kBlockSide], column[kBlockSide];
#pragma unroll
    for (int i = 0; i < kBlockSide; ++i) {
      row[i] = static_cast<int64_t>(min(place.first_y + i, layout.out_height - 1)) * layout.offset_h;
      column[i] = static_cast<int64_t>(min(place.first_x + i, g.out_width - 1)) * layout.offset_w;
    }
    const T* from = offset_mask + min(lane, kRecord - 1);
#pragma unroll
    for (int pixel = 0; pixel < kSide; ++pixel) {
      entry[pixel] = __ldg(from + (row[pixel / kBlockSide] + column[pixel % kBlockSide]));
    }
  }
  // one behind another
  __device__ __forceinline__ void store(T* records) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int pixel = 0; pixel < kSide; ++pixel) {
      if (lane < kRecord) records[pixel * kRecordPitch<T> + lane] = entry[pixel];
    }
  }
  // bit pattern of the largest magnitude among the warp's weights, where these are to be scaled
  __device__ __forceinline__ uint32_t largest() const {
    if constexpr (std::is_same<T, __half>::value) {
      __half largest = __habs(entry[0]);
#pragma unroll
      for (int pixel = 1; pixel < kSide; ++pixel) largest = __hmax(largest, __habs(entry[pixel]));
      const uint32_t own = threadIdx.x % 32 < 2 * kPoints ? 0 : __half_as_ushort(largest);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
      return __reduce_max_sync(0xffffffffu, own);
#endif
    }
    return 0;
  }
};

// only float16 needs weights to be scaled to its range
template <typename T>
constexpr bool kScaled = std::is_same<T, __half>::value;

// Weights are scaled by a power of two to fit the range of float16: the largest lies near 2^10 then.
template <typename T>
__device__ __forceinline__ float scale_for(uint32_t largest) {
  if constexpr (std::is_same<T, __half>::value) {
    constexpr uint32_t kLargestFinite = 0x7bff;
    const float magnitude = __half2float(__ushort_as_half(static_cast<unsigned short>(min(largest, kLargestFinite))));
    // of a power of two only the exponent is left, and 127 + 10 + 127 less an exponent is that of its counterpart
    return magnitude == 0.f ? 1.f : __uint_as_float((264u << 23) - (__float_as_uint(magnitude) & 0x7f800000u));
  } else {
    return 1.f;
  }
}

// the part of the image in which all four corners of a point lie among the warp's near pixels
struct NearBounds {
  float low_y, high_y, low_x, high_x;
  int first_y, first_x;

  // for a pixel that is not to be used they hold nothing
  __device__ __forceinline__ NearBounds(const Geometry<float>& g, const WarpPlace& place, bool usable)
      : first_y(place.near_y), first_x(place.near_x) {
    // the positions inside the image start behind -1
    constexpr float kFirst = -0.99999994f;
    low_y = fmaxf(static_cast<float>(first_y), kFirst);
    low_x = fmaxf(static_cast<float>(first_x), kFirst);
    high_y = usable ? static_cast<float>(min(first_y + kNearSide - 1, g.height)) : -2.f;
    high_x = static_cast<float>(min(first_x + kNearSide - 1, g.width));
  }
  // false for NaN
  __device__ __forceinline__ bool hold(float y, float x) const {
    return (y >= low_y) & (y < high_y) & (x >= low_x) & (x < high_x);
  }
};

// floor of a position below 2^22, and the rest
struct Split {
  uint32_t bits;  // kShiftBits + floor
  float rest;

  static constexpr uint32_t kShiftBits = 0x4b400000u;

  __device__ __forceinline__ explicit Split(float position) {
    // adding 1.5 * 2^23, rounding down, leaves the floor in the low bits
    constexpr float kShift = 12582912.f;
    const float shifted = __fadd_rd(position, kShift);
    bits = __float_as_uint(shifted);
    rest = position - (shifted - kShift);
  }
};

}  // namespace
}  // namespace yolo_dcnv4
