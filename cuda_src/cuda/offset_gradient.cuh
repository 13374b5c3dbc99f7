// the gradient of offset_mask: dot products of grad_output with the corners of each sample, shared by neighbouring
// lanes
#pragma once

#include "sampling.cuh"
#include "window3x3.cuh"

namespace yolo_dcnv4 {
namespace {

constexpr int kGradientThreads = 128;
constexpr int kGradientBlocks = 5;  // on a multiprocessor: about 100 registers a thread

// neighbouring threads that share one output pixel and group; each takes every count-th vector of channels
struct Lanes {
  int index, count, vectors;

  // of the threads of this warp, those that share the pixel and group
  __device__ __forceinline__ unsigned members() const {
    return (0xffffffffu >> (32 - count)) << (threadIdx.x % 32 & ~(count - 1));
  }
  template <typename A>
  __device__ __forceinline__ A sum(A value) const {
    for (int step = count / 2; step > 0; step /= 2) value += __shfl_xor_sync(members(), value, step);
    return value;
  }
};

struct GradientLayout {
  int units;  // pixels * groups * lanes
  int groups, group_width, lanes;
  int64_t row, record;  // of the gradient, from pixel to pixel; 3 * K
  int64_t entries;      // R
  Strides grad_output;
  Divider by_pixel, by_lanes;

  GradientLayout(const Problem& p, int64_t gradient_row, int channels_a_thread)
      : groups(p.groups),
        group_width(p.group_width),
        lanes(1),
        row(gradient_row),
        record(3 * static_cast<int64_t>(p.points)),
        entries(p.row),
        grad_output(p.grad_output) {
    while (lanes < 32 && 2 * lanes <= p.group_width / channels_a_thread) lanes *= 2;
    units = static_cast<int>(p.out_pixels() * groups * lanes);
    by_pixel = Divider(static_cast<uint32_t>(groups * lanes));
    by_lanes = Divider(lanes);
  }
};

// what a thread works on
template <typename T>
struct GradientUnit {
  using A = typename Opmath<T>::type;
  Position<A> at;
  Lanes lanes;
  int group, first_channel;
  const T* image;
  const T* record;
  const T* grads;
  T* grad_record;  // null where it is not needed

  __device__ __forceinline__ GradientUnit(
      const Geometry<A>& g, const GradientLayout& layout, int unit, int channels_a_thread, const T* grad_output,
      const T* value, const T* offset_mask, T* grad_offset_mask)
      : at(g, 0, 0) {
    const int pixel = layout.by_pixel.quotient(unit);
    group = layout.by_lanes.quotient(unit - pixel * layout.groups * layout.lanes);
    const int out_y = g.by_out_width.quotient(pixel);
    const int out_x = pixel - out_y * g.out_width;
    const int64_t n = blockIdx.y;
    at = Position<A>(g, out_y, out_x);
    lanes = {unit & (layout.lanes - 1), layout.lanes, layout.group_width / channels_a_thread};
    first_channel = group * layout.group_width;
    image = value + n * g.value_n + first_channel;
    record = offset_mask + n * g.offset_n + out_y * g.offset_h + out_x * g.offset_w + group * layout.record;
    grads = grad_output + n * layout.grad_output.n + out_y * layout.grad_output.h + out_x * layout.grad_output.w +
            first_channel;
    grad_record =
        grad_offset_mask ? grad_offset_mask + (n * g.out_pixels + pixel) * layout.row + group * layout.record : nullptr;
  }

  // the rest of the row, behind the last group
  __device__ __forceinline__ void zero_padding(const GradientLayout& layout) const {
    if (!grad_record || group + 1 < layout.groups || lanes.index != 0) return;
    for (int64_t i = layout.record; i < layout.entries - group * layout.record; ++i) grad_record[i] = from_opmath<T>(0);
  }
};

template <typename T, int kChannels>
__device__ __forceinline__ void load_floats(const T* from, typename Opmath<T>::type (&to)[kChannels]) {
  Vector<T, kChannels> v;
  v.load(from);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) to[c] = v.opmath(c);
}

template <typename A>
struct PointGradient {
  A weight = 0, x = 0, y = 0;
};

// One lane's part of a point's gradient, as the contract says it; `at_corner` sees every corner inside the image.
// `grad` holds the lane's vector of grad_output where it has no more than one.
template <typename T, int kChannels, typename AtCorner>
__device__ __forceinline__ PointGradient<typename Opmath<T>::type> point_gradient(
    const Geometry<typename Opmath<T>::type>& g, const GradientUnit<T>& u,
    const Normalizer<typename Opmath<T>::type>& normalize, int k, typename Opmath<T>::type (&grad)[kChannels],
    const AtCorner& at_corner) {
  using A = typename Opmath<T>::type;
  PointGradient<A> d;
  const Sample<A> s = sample(g, u.at, u.record, k);
  if (!s.inside) return d;
  const A m = normalize(to_opmath(u.record[2 * g.points + k]));
  const bool valid[4] = {s.top && s.left, s.top && s.right, s.bottom && s.left, s.bottom && s.right};
  const A bilinear[4] = {(1 - s.ly) * (1 - s.lx), (1 - s.ly) * s.lx, s.ly * (1 - s.lx), s.ly * s.lx};
  for (int vector = u.lanes.index; vector < u.lanes.vectors; vector += u.lanes.count) {
    if (u.lanes.vectors > u.lanes.count) load_floats<T, kChannels>(u.grads + vector * kChannels, grad);
    A dot[4] = {0, 0, 0, 0};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (!valid[corner]) continue;
      const int y = s.y0 + corner / 2, x = s.x0 + corner % 2;
      Vector<T, kChannels> v;
      v.load(u.image + static_cast<int64_t>(y) * g.value_h + static_cast<int64_t>(x) * g.value_w + vector * kChannels);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) dot[corner] += grad[c] * v.opmath(c);
      at_corner(y, x, vector, m * bilinear[corner]);
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) d.weight += bilinear[corner] * dot[corner];
    d.x += (1 - s.ly) * (dot[1] - dot[0]) + s.ly * (dot[3] - dot[2]);
    d.y += (1 - s.lx) * (dot[2] - dot[0]) + s.lx * (dot[3] - dot[1]);
  }
  d.x *= m * g.scale;
  d.y *= m * g.scale;
  return d;
}

// any window; writes the record's gradient where it is needed
template <typename T, int kChannels, typename AtCorner>
__device__ void record_gradient(
    const Geometry<typename Opmath<T>::type>& g, const GradientUnit<T>& u, typename Opmath<T>::type (&grad)[kChannels],
    const AtCorner& at_corner) {
  using A = typename Opmath<T>::type;
  const Normalizer<A> normalize(g, u.record);
  A expected = 0;
  if (g.softmax && u.grad_record) {
    const auto no_corner = [](int, int, int, A) {};
    for (int k = 0; k < g.points; ++k) {
      const A d = u.lanes.sum(point_gradient<T, kChannels>(g, u, normalize, k, grad, no_corner).weight);
      expected += normalize(to_opmath(u.record[2 * g.points + k])) * d;
    }
  }
  for (int k = 0; k < g.points; ++k) {
    PointGradient<A> d = point_gradient<T, kChannels>(g, u, normalize, k, grad, at_corner);
    if (!u.grad_record) continue;
    d = {u.lanes.sum(d.weight), u.lanes.sum(d.x), u.lanes.sum(d.y)};
    if (g.softmax) d.weight = normalize(to_opmath(u.record[2 * g.points + k])) * (d.weight - expected);
    if (u.lanes.index != 0) continue;
    u.grad_record[2 * k] = from_opmath<T>(d.x);
    u.grad_record[2 * k + 1] = from_opmath<T>(d.y);
    u.grad_record[2 * g.points + k] = from_opmath<T>(d.weight);
  }
}

// Lanes::sum for a count that the compiler knows
template <int kLanes>
__device__ __forceinline__ float lane_sum(float value, unsigned members) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(members, value, step);
  return value;
}

// the 27 entries of a record, written by its lanes in turn
__device__ __forceinline__ void write_record(const float (&entry)[27], const Lanes& lanes, float* to) {
#pragma unroll
  for (int i = 0; i < 27; ++i) {
    if ((i & (lanes.count - 1)) == lanes.index) to[i] = entry[i];
  }
}

// two-byte entries go out in aligned words, but for one at the end that has no partner
template <typename T>
__device__ __forceinline__ void write_record(const float (&entry)[27], const Lanes& lanes, T* to) {
  uint32_t word[14];
#pragma unroll
  for (int i = 0; i < 14; ++i) {
    Vector<T, 2> pair;
    pair.element[0] = from_opmath<T>(entry[2 * i]);
    pair.element[1] = from_opmath<T>(i < 13 ? entry[2 * i + 1] : 0.f);
    word[i] = pair.piece[0];
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(to);
  const uint32_t shift = (address & 2) * 8;
  uint32_t* words = reinterpret_cast<uint32_t*>((address + 2) & ~uintptr_t{3});
  if (lanes.index == 0) reinterpret_cast<uint16_t*>(to)[shift ? 0 : 26] = shift ? word[0] & 0xffff : word[13];
#pragma unroll
  for (int i = 0; i < 13; ++i) {
    const uint32_t aligned = __funnelshift_r(word[i], word[i + 1], shift);
    if (lanes.count == 1 || (i & 1) == lanes.index) words[i] = aligned;
  }
}

// a 3 x 3 window, one vector a lane
template <typename T, int kChannels, int kLanes>
__global__ void __launch_bounds__(kGradientThreads, kGradientBlocks) offset_gradient_3x3(
    const Geometry<float> g, const GradientLayout layout, const Axes axes, const T* __restrict__ grad_output,
    const T* __restrict__ value, const T* __restrict__ offset_mask, T* __restrict__ grad_offset_mask) {
  const int unit = blockIdx.x * kGradientThreads + threadIdx.x;
  if (unit >= layout.units) return;
  const GradientUnit<T> u(g, layout, unit, kChannels, grad_output, value, offset_mask, grad_offset_mask);
  u.zero_padding(layout);
  const Record3x3<T> record(u.record);
  float grad[kChannels];
  load_floats<T, kChannels>(u.grads + u.lanes.index * kChannels, grad);

  float weight[9];
#pragma unroll
  for (int k = 0; k < 9; ++k) weight[k] = record[18 + k];
  if (g.softmax) {
    const Normalizer<float> normalize(g, u.record);
#pragma unroll
    for (int k = 0; k < 9; ++k) weight[k] = normalize(weight[k]);
  }

  const Corners<T> corners(axes, u.image - u.first_channel, u.first_channel + u.lanes.index * kChannels);
  const Lines columns(u.at.center_x, axes.x.spacing);
  const Lines rows(u.at.center_y, axes.y.spacing);
  const unsigned members = u.lanes.members();
  float entry[27];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int k = 3 * i + j;
      const Tent x(axes.x, fmaf(record[2 * k], g.scale, columns.at[i]));
      const Tent y(axes.y, fmaf(record[2 * k + 1], g.scale, rows.at[j]));
      const T* corner[4];
      corners.of(y, x, corner);
      float dot[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        Vector<T, kChannels> v;
        v.load(corner[n]);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) dot[n] = fmaf(grad[c], v.opmath(c), dot[n]);
      }
      const Slope slope_x(axes.x, x), slope_y(axes.y, y);
      const float top = x.first * dot[0] + x.second * dot[1], bottom = x.first * dot[2] + x.second * dot[3];
      const float factor = weight[k] * g.scale;
      entry[18 + k] = lane_sum<kLanes>(y.first * top + y.second * bottom, members);
      entry[2 * k + 1] = factor * lane_sum<kLanes>(slope_y.first * top + slope_y.second * bottom, members);
      entry[2 * k] = factor * lane_sum<kLanes>(
                                  y.first * (slope_x.first * dot[0] + slope_x.second * dot[1]) +
                                      y.second * (slope_x.first * dot[2] + slope_x.second * dot[3]),
                                  members);
    }
  }

  // a zero factor times an infinite or NaN pixel: points outside must not feel it
  float probe = 0.f;
#pragma unroll
  for (int i = 0; i < 27; ++i) probe = fmaf(entry[i], 0.f, probe);
  if (probe != 0.f) {
    record_gradient<T, kChannels>(g, u, grad, [](int, int, int, float) {});
    return;
  }
  if (g.softmax) {
    float expected = 0.f;
#pragma unroll
    for (int k = 0; k < 9; ++k) expected = fmaf(weight[k], entry[18 + k], expected);
#pragma unroll
    for (int k = 0; k < 9; ++k) entry[18 + k] = weight[k] * (entry[18 + k] - expected);
  }
  write_record(entry, u.lanes, u.grad_record);
}

// null where the width of the groups has no kernel of its own
template <typename T, int kChannels>
auto offset_gradient_kernel(int group_width) -> decltype(&offset_gradient_3x3<T, kChannels, 1>) {
  switch (group_width % kChannels == 0 ? group_width / kChannels : 0) {
    case 1:
      return offset_gradient_3x3<T, kChannels, 1>;
    case 2:
      return offset_gradient_3x3<T, kChannels, 2>;
    case 4:
      return offset_gradient_3x3<T, kChannels, 4>;
    case 8:
      return offset_gradient_3x3<T, kChannels, 8>;
    case 16:
      return offset_gradient_3x3<T, kChannels, 16>;
    default:
      return nullptr;
  }
}

}  // namespace
}  // namespace yolo_dcnv4
