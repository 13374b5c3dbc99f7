// A 3 x 3 window that no offset moves, as a new layer has it: its points lie on pixels, and what else they touch has
// weight zero.
#pragma once

#include "window3x3.cuh"

namespace yolo_dcnv4 {
namespace {

// zero, or NaN once a number came that is not finite
template <typename T>
struct Probe {
  float sum = 0.f;

  template <int size>
  __device__ __forceinline__ void add(const Vector<T, size>& v) {
#pragma unroll
    for (int c = 0; c < size; ++c) sum = fmaf(v.opmath(c), 0.f, sum);
  }
  __device__ __forceinline__ float result() const { return sum; }
};

template <typename T, typename Pair>
struct PairProbe {
  Pair sum;

  __device__ __forceinline__ PairProbe() { reinterpret_cast<uint32_t&>(sum) = 0; }
  template <int size>
  __device__ __forceinline__ void add(const Vector<T, size>& v) {
    Pair zero;
    reinterpret_cast<uint32_t&>(zero) = 0;
    const Pair* pairs = reinterpret_cast<const Pair*>(v.piece);
#pragma unroll
    for (int i = 0; i < size / 2; ++i) sum = __hfma2(pairs[i], zero, sum);
  }
  __device__ __forceinline__ float result() const {
    const uint32_t both = reinterpret_cast<const uint32_t&>(sum);
    return half_of<T>(both, false) + half_of<T>(both, true);
  }
};
template <>
struct Probe<__half> : PairProbe<__half, __half2> {};
// before 8.0 there is no arithmetic in bfloat16
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
struct Probe<__nv_bfloat16> : PairProbe<__nv_bfloat16, __nv_bfloat162> {};
#endif

// whether a window with this geometry lies on neighbouring pixels where nothing moves it
bool lies_on_pixels(const Problem& p) {
  return p.window.dilation_h == 1 && p.window.dilation_w == 1 && p.offset_scale == 1;
}

// The 4 x 4 pixels that the points of a window touch, each its own and those behind it. Some may lie outside the image.
struct Unmoved {
  uint32_t row[4], column[4];  // bytes from the image's start
  bool row_exists[4], column_exists[4];

  template <typename T>
  static __device__ __forceinline__ Unmoved of(const Geometry<float>& g, int out_y, int out_x) {
    Unmoved window;
    const int first_y = out_y * g.stride_h + g.shift_h - 1, first_x = out_x * g.stride_w + g.shift_w - 1;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int y = min(max(first_y + i, 0), g.height - 1), x = min(max(first_x + i, 0), g.width - 1);
      window.row_exists[i] = y == first_y + i;
      window.column_exists[i] = x == first_x + i;
      window.row[i] = y * (g.value_h * static_cast<uint32_t>(sizeof(T)));
      window.column[i] = x * (g.value_w * static_cast<uint32_t>(sizeof(T)));
    }
    return window;
  }

  // Adds up the points; `image` starts with the thread's channels. The result is not zero where a pixel is not finite
  // that a point touches with weight zero.
  template <typename T, int kChannels>
  __device__ __forceinline__ float add(const T* image, const float (&weight)[9], float (&sum)[kChannels]) const {
    Probe<T> probe;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Vector<T, kChannels> v;
        v.load(reinterpret_cast<const T*>(reinterpret_cast<const char*>(image) + (row[j] + column[i])));
        if (i == 3 || j == 3) {
          probe.add(v);
        } else {
          const float factor = row_exists[j] && column_exists[i] ? weight[3 * i + j] : 0.f;
#pragma unroll
          for (int c = 0; c < kChannels; ++c) sum[c] = fmaf(factor, v.opmath(c), sum[c]);
        }
      }
    }
    return probe.result();
  }
};

}  // namespace
}  // namespace yolo_dcnv4
