// where a point samples, written as the contract says it: any window, any position, nothing read outside
#pragma once

#include "../dcnv4.h"
#include "vector.cuh"

namespace yolo_dcnv4 {
namespace {

// the part of a Problem that kernels read, in the types they read it in
template <typename A>
struct Geometry {
  int height, width, out_width, out_pixels;
  int points, center;  // K; the index of the removed centre, or K
  int kernel_h;
  int stride_h, stride_w, dilation_h, dilation_w;
  int shift_h, shift_w;  // half - pad: centre of the first window
  int half_h, half_w;    // from the window's first point to its centre
  A scale;
  int value_h, value_w;
  int64_t value_n, offset_n, offset_h, offset_w;
  bool softmax;
  Divider by_out_width, by_kernel_h;

  __host__ explicit Geometry(const Problem& p)
      : height(p.height),
        width(p.width),
        out_width(p.out_width),
        out_pixels(static_cast<int>(p.out_pixels())),
        points(p.points),
        center(p.remove_center ? p.points / 2 : p.points),
        kernel_h(p.window.kernel_h),
        stride_h(p.window.stride_h),
        stride_w(p.window.stride_w),
        dilation_h(p.window.dilation_h),
        dilation_w(p.window.dilation_w),
        shift_h(half(p.window.dilation_h, p.window.kernel_h) - p.window.pad_h),
        shift_w(half(p.window.dilation_w, p.window.kernel_w) - p.window.pad_w),
        half_h(half(p.window.dilation_h, p.window.kernel_h)),
        half_w(half(p.window.dilation_w, p.window.kernel_w)),
        scale(static_cast<A>(p.offset_scale)),
        value_h(static_cast<int>(p.value.h)),
        value_w(static_cast<int>(p.value.w)),
        value_n(p.value.n),
        offset_n(p.offset_mask.n),
        offset_h(p.offset_mask.h),
        offset_w(p.offset_mask.w),
        softmax(p.softmax),
        by_out_width(p.out_width),
        by_kernel_h(p.window.kernel_h) {}

  static int half(int dilation, int kernel) { return dilation * (kernel - 1) / 2; }
};

// The window's centre over the input; a point lies at (centre + scale * its place in the window) + scale * offset: in
// this order little is lost to rounding, and nothing but the last step with scale 1.
template <typename A>
struct Position {
  A center_x, center_y;

  __device__ __forceinline__ Position(const Geometry<A>& g, int out_y, int out_x)
      : center_x(static_cast<A>(out_x * g.stride_w + g.shift_w)),
        center_y(static_cast<A>(out_y * g.stride_h + g.shift_h)) {}

  // i and j count the window's points from its first one
  __device__ __forceinline__ A x(const Geometry<A>& g, int i, A offset) const {
    return fma(offset, g.scale, fma(static_cast<A>(i * g.dilation_w - g.half_w), g.scale, center_x));
  }
  __device__ __forceinline__ A y(const Geometry<A>& g, int j, A offset) const {
    return fma(offset, g.scale, fma(static_cast<A>(j * g.dilation_h - g.half_h), g.scale, center_y));
  }
};

template <typename A>
struct Sample {
  bool inside;
  int y0, x0;
  A ly, lx;
  bool top, bottom, left, right;

  __device__ __forceinline__ Sample(const Geometry<A>& g, const Position<A>& at, int k, A offset_x, A offset_y) {
    // the numbering has no hole where the centre is left out
    const int place = k >= g.center ? k + 1 : k;
    const int i = g.by_kernel_h.quotient(place), j = place - i * g.kernel_h;
    const A x = at.x(g, i, offset_x), y = at.y(g, j, offset_y);
    // false for NaN
    inside = y > -1 && y < g.height && x > -1 && x < g.width;
    const A floor_y = floor(y), floor_x = floor(x);
    ly = y - floor_y;
    lx = x - floor_x;
    y0 = inside ? static_cast<int>(floor_y) : 0;
    x0 = inside ? static_cast<int>(floor_x) : 0;
    top = y0 >= 0;
    bottom = y0 + 1 < g.height;
    left = x0 >= 0;
    right = x0 + 1 < g.width;
  }
};

template <typename T, typename A>
__device__ __forceinline__ Sample<A> sample(const Geometry<A>& g, const Position<A>& at, const T* record, int k) {
  return Sample<A>(g, at, k, to_opmath(record[2 * k]), to_opmath(record[2 * k + 1]));
}

// softmax over the weights of a record: exp(m - largest) * norm
template <typename A>
struct Normalizer {
  bool active;
  A largest = 0, norm = 1;

  template <typename T>
  __device__ __forceinline__ Normalizer(const Geometry<A>& g, const T* record) : active(g.softmax) {
    if (!active) return;
    const T* weights = record + 2 * g.points;
    largest = to_opmath(weights[0]);
    for (int k = 1; k < g.points; ++k) {
      const A m = to_opmath(weights[k]);
      largest = m > largest ? m : largest;
    }
    A sum = 0;
    for (int k = 0; k < g.points; ++k) sum += exp(to_opmath(weights[k]) - largest);
    norm = 1 / sum;
  }
  __device__ __forceinline__ A operator()(A m) const { return active ? exp(m - largest) * norm : m; }
};

}  // namespace
}  // namespace yolo_dcnv4
