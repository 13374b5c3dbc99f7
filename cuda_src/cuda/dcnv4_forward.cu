#include <math.h>

#include <algorithm>

#include "async_copy.cuh"
#include "column_order.cuh"
#include "dispatch.cuh"
#include "launch.h"
#include "patches.cuh"
#include "sampling.cuh"
#include "surroundings.cuh"
#include "tile_forward.h"
#include "tuning.h"
#include "unmoved.cuh"
#include "window3x3.cuh"

namespace yolo_dcnv4 {

namespace {

constexpr int kThreads = 128;

template <typename T>
using A = typename Opmath<T>::type;

// one thread computes kChannels channels of one output pixel
template <typename T, int kChannels>
__device__ void aggregate(
    const Geometry<A<T>>& g, const Position<A<T>>& at, const T* image, const T* record, A<T> (&sum)[kChannels]) {
  const Normalizer<A<T>> normalize(g, record);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) sum[c] = 0;
  for (int k = 0; k < g.points; ++k) {
    const Sample<A<T>> s = sample(g, at, record, k);
    if (!s.inside) continue;
    const A<T> m = normalize(to_opmath(record[2 * g.points + k]));
    const T* corner = image + static_cast<int64_t>(s.y0) * g.value_h + static_cast<int64_t>(s.x0) * g.value_w;
    const auto add = [&](bool valid, const T* from, A<T> factor) {
      if (!valid) return;
      Vector<T, kChannels> v;
      v.load(from);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sum[c] += factor * v.opmath(c);
    };
    add(s.top && s.left, corner, m * (1 - s.ly) * (1 - s.lx));
    add(s.top && s.right, corner + g.value_w, m * (1 - s.ly) * s.lx);
    add(s.bottom && s.left, corner + g.value_h, m * s.ly * (1 - s.lx));
    add(s.bottom && s.right, corner + g.value_h + g.value_w, m * s.ly * s.lx);
  }
}

template <typename T, int kChannels>
__device__ __forceinline__ void write(const A<T> (&sum)[kChannels], T* out) {
  Vector<T, kChannels> result;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) result.element[c] = from_opmath<T>(sum[c]);
  result.store(out);
}

struct Layout {
  int units, vectors;
  int64_t row;                   // 3 * K
  Divider by_vectors, by_lanes;  // vectors a pixel, vectors a group
};

template <typename T, int kChannels>
__global__ void __launch_bounds__(kThreads) forward_any_window(
    const Geometry<A<T>> g, const Layout layout, const T* __restrict__ value, const T* __restrict__ offset_mask,
    T* __restrict__ out) {
  const int unit = blockIdx.x * kThreads + threadIdx.x;
  if (unit >= layout.units) return;
  const int pixel = layout.by_vectors.quotient(unit);
  const int vector = unit - pixel * layout.vectors;
  const int group = layout.by_lanes.quotient(vector);
  const int out_y = g.by_out_width.quotient(pixel);
  const int out_x = pixel - out_y * g.out_width;
  const Position<A<T>> at(g, out_y, out_x);
  const T* image = value + blockIdx.y * g.value_n + vector * kChannels;
  const T* record =
      offset_mask + blockIdx.y * g.offset_n + out_y * g.offset_h + out_x * g.offset_w + group * layout.row;
  A<T> sum[kChannels];
  aggregate<T, kChannels>(g, at, image, record, sum);
  write<T, kChannels>(sum, out + (static_cast<int64_t>(blockIdx.y) * layout.units + unit) * kChannels);
}

// a thread computes one vector of channels, or two of a group, half a group apart
template <typename T, int kChannels, int kShare, bool kOrdered>
__global__ void __launch_bounds__(kPatchThreads, kShare == 1 ? kPatchBlocks : kWidePatchBlocks) forward_3x3(
    const Geometry<float> g, const Patches patches, const Surroundings surroundings, const Axes axes,
    const bool on_pixels, const T* __restrict__ value, const T* __restrict__ offset_mask, T* __restrict__ out) {
  const PatchPlace place(patches);
  const T* image = value + blockIdx.z * g.value_n;
  constexpr bool kFetches = sizeof(T) == 2;
  if constexpr (kFetches) surroundings.fetch<T, kChannels, kShare>(g, patches, place, image);
  if (!place.exists(patches)) {
    if constexpr (kFetches) await_copies();
    return;
  }
  const int group = place.group(patches);
  int vector = place.share, more = 0;  // the first vector; elements from there to the second
  if constexpr (kShare == 2) {
    // of groups whose vectors lie in the same banks of L1 every other one starts with its second half
    const bool swapped = group * patches.lanes * 2 / kLineVectors % 2 != 0;
    vector += (group + swapped) * patches.lanes;
    more = (swapped ? -patches.lanes : patches.lanes) * kChannels;
  }
  const int channel = vector * kChannels;
  const Position<float> at(g, place.out_y, place.out_x);
  const T* entries = offset_mask + blockIdx.z * g.offset_n + place.record(patches, group);
  const Record3x3<T> record(entries);

  float weight[9];
#pragma unroll
  for (int k = 0; k < 9; ++k) weight[k] = record[18 + k];
  if (g.softmax) {
    const Normalizer<float> normalize(g, entries);
#pragma unroll
    for (int k = 0; k < 9; ++k) weight[k] = normalize(weight[k]);
  }

  float sum[kShare][kChannels] = {};
  float probe[kShare] = {};
  if (on_pixels && record.unmoved()) {
    const Unmoved window = Unmoved::of<T>(g, place.out_y, place.out_x);
#pragma unroll
    for (int n = 0; n < kShare; ++n) probe[n] = window.add<T, kChannels>(image + channel + n * more, weight, sum[n]);
  } else {
    const Corners<T> corners(axes, image, channel);
    const ColumnOrder order(vector);
    const auto column_of = [&](float position) {
      if constexpr (kOrdered) {
        return OrderedTent(axes.x, order, position);
      } else {
        return Tent(axes.x, position);
      }
    };
    const Lines columns(at.center_x, axes.x.spacing);
    const Lines rows(at.center_y, axes.y.spacing);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const int k = 3 * i + j;
        const auto x = column_of(fmaf(record[2 * k], g.scale, columns.at[i]));
        const Tent y(axes.y, fmaf(record[2 * k + 1], g.scale, rows.at[j]));
        const T* corner[4];
        corners.of(y, x, corner);
        const float top = y.first * weight[k], bottom = y.second * weight[k];
        const float factors[4] = {top * x.first, top * x.second, bottom * x.first, bottom * x.second};
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
          for (int n = 0; n < kShare; ++n) {
            Vector<T, kChannels> v;
            v.load(corner[m] + n * more);
#pragma unroll
            for (int c = 0; c < kChannels; ++c) sum[n][c] = fmaf(factors[m], v.opmath(c), sum[n][c]);
          }
        }
      }
    }
  }

  T* to = out + blockIdx.z * patches.out_n + place.output(patches, vector) * kChannels;
#pragma unroll
  for (int n = 0; n < kShare; ++n) {
    // a zero weight times an infinite or NaN pixel: points outside must not feel it
#pragma unroll
    for (int c = 0; c < kChannels; ++c) probe[n] = fmaf(sum[n][c], 0.f, probe[n]);
    if (probe[n] != 0.f) aggregate<T, kChannels>(g, at, image + channel + n * more, entries, sum[n]);
    write<T, kChannels>(sum[n], to + n * more);
  }
  if constexpr (kFetches) await_copies();
}

template <typename T, int kChannels>
cudaError_t launch(const ForwardArgs& args, cudaStream_t stream) {
  const Problem& p = args.problem;
  if constexpr (sizeof(T) < 8 && kChannels * sizeof(T) == 16) {
    if (staged_features_pay(architecture()) && tile_forward_pays(args)) return launch_tile_forward(args, stream);
  }
  const Geometry<A<T>> g(p);
  // calls start(value, offset_mask, out, images)
  const auto with_pointers = [&](const auto& start) {
    return for_images(p, [&](int64_t first, int64_t images) {
      start(
          static_cast<const T*>(args.value) + first * p.value.n,
          static_cast<const T*>(args.offset_mask) + first * p.offset_mask.n,
          static_cast<T*>(args.out) + first * p.out_pixels() * p.channels(), static_cast<unsigned>(images));
      return cudaGetLastError();
    });
  };
  if constexpr (sizeof(T) < 8 && kChannels * sizeof(T) >= 16) {
    if (fits_3x3(p, sizeof(T))) {
      const int share = sizeof(T) == 2 && two_vectors_pay(p.group_width / kChannels) ? 2 : 1;
      const bool ordered = sizeof(T) == 2 && share == 1 && column_order_pays(p, sizeof(T));
      const Patches patches(p, kChannels, share, ordered ? kOrderPeriod : 1);
      const Surroundings surroundings(p, patches, share);
      const Axes axes(p, sizeof(T));
      auto kernel = forward_3x3<T, kChannels, 1, false>;
      if constexpr (sizeof(T) == 2) {
        if (share == 2) kernel = forward_3x3<T, kChannels, 2, false>;
        if (ordered) kernel = forward_3x3<T, kChannels, 1, true>;
      }
      if (patches.fit(p)) {
        return with_pointers([&](const T* value, const T* offset_mask, T* out, unsigned images) {
          kernel<<<patches.grid(images), patches.block(), 0, stream>>>(
              g, patches, surroundings, axes, lies_on_pixels(p), value, offset_mask, out);
        });
      }
    }
  }
  Layout layout;
  layout.vectors = static_cast<int>(p.channels() / kChannels);
  layout.units = static_cast<int>(p.out_pixels() * layout.vectors);
  layout.row = 3 * static_cast<int64_t>(p.points);
  layout.by_vectors = Divider(layout.vectors);
  layout.by_lanes = Divider(p.group_width / kChannels);
  return with_pointers([&](const T* value, const T* offset_mask, T* out, unsigned images) {
    const dim3 grid((layout.units + kThreads - 1) / kThreads, images);
    forward_any_window<T, kChannels><<<grid, kThreads, 0, stream>>>(g, layout, value, offset_mask, out);
  });
}

}  // namespace

cudaError_t launch_forward(const ForwardArgs& args, cudaStream_t stream) {
  return dispatch(args.problem, {{args.value, args.problem.value}}, [&](auto element, auto channels) {
    return launch<typename decltype(element)::type, decltype(channels)::value>(args, stream);
  });
}

cudaError_t probe_device() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, forward_any_window<float, 1>);
}

}  // namespace yolo_dcnv4
