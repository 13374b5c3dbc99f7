// the forward pass of some output rows
#pragma once

#include "../dcnv4.h"
#include "lanes.h"
#include "points.h"
#include "sample.h"

namespace yolo_dcnv4 {
namespace DCNV4_ISA {
namespace {

// There is room for several records: their points are found first, and their pixels gathered then, which lets the
// processor do both at once.
template <typename A>
struct Taps {
  static constexpr int kStep = 16;  // a record's points begin at a multiple, with a vector of their own

  int32_t first[kMostPoints];  // corner
  A weight[4][kMostPoints];
};

template <typename T, typename A>
DCNV4_INLINE void find_taps(
    const PointGrid<A>& grid, const Corners<A>& corners, const T* record, int out_y, int out_x, const int points,
    Taps<A>& taps, const int first) {
  using V = typename Tent<A>::V;
  grid.for_each(
      record, out_y, out_x, points,
      [&](int k, const Tent<A>& y, const Tent<A>& x, const V& m) __attribute__((always_inline)) {
        put(corners.first_of(y, x), taps.first + first + k);
        put_weights(y, x, m, taps.weight, first + k);
      });
}

// sums of `width` channels over the points
template <int width, typename T, typename A>
DCNV4_INLINE void aggregate(
    const Corners<A>& corners, const Taps<A>& taps, const int first, const int points, const T* group, T* out,
    Probe<A>& probe) {
  // a sum for each corner: additions to one would wait for each other
  Lanes<A, width> sums[4] = {}, pixel;
  for (int k = 0; k < points; ++k) {
    const T* corner[4];
    corners.of(group, taps.first[first + k], corner);
    for (int i = 0; i < 4; ++i) {
      pixel.load_from(corner[i]);
      sums[i].add_product(taps.weight[i][first + k], pixel);
    }
  }
  sums[0].add(sums[1]);
  sums[2].add(sums[3]);
  sums[0].add(sums[2]);
  sums[0].store_to(out);
  probe.see(sums[0]);
}

// as the contract says it, one point after the other
template <typename T>
void aggregate_strictly(const Problem& p, const T* record, int out_y, int out_x, const T* group, T* out) {
  using A = typename Opmath<T>::type;
  constexpr int kChunk = 16;
  const Points<T, A> points(p, record, out_y, out_x);
  for (int first = 0; first < p.group_width; first += kChunk) {
    const int width = p.group_width - first < kChunk ? p.group_width - first : kChunk;
    A sum[kChunk] = {};
    for (int k = 0; k < p.points; ++k) {
      const Sample<A> s = points(k, p.value);
      if (!s.inside) continue;
      for (int corner = 0; corner < 4; ++corner) {
        if (s.corner[corner] < 0) continue;
        const T* row = group + s.corner[corner] + first;
        const A factor = s.weight * s.bilinear[corner];
        for (int c = 0; c < width; ++c) sum[c] += factor * load(row[c]);
      }
    }
    for (int c = 0; c < width; ++c) store(sum[c], out + first + c);
  }
}

template <typename T>
void pixel_strictly(const Problem& p, const T* records, const T* value, int out_y, int out_x, T* out) {
  const int64_t record = 3 * static_cast<int64_t>(p.points);
  for (int g = 0; g < p.groups; ++g) {
    const int64_t channel = static_cast<int64_t>(g) * p.group_width;
    aggregate_strictly(p, records + g * record, out_y, out_x, value + channel, out + channel);
  }
}

// the groups of one output pixel; `points` as in PointGrid
template <typename T, typename A>
DCNV4_INLINE void forward_pixel(
    const Problem& p, const PointGrid<A>& grid, const Corners<A>& corners, const T* records, const T* value, int out_y,
    int out_x, const int points, ReadableRecord<T, A>& readable, Taps<A>& taps, T* out) {
  const int64_t record = 3 * static_cast<int64_t>(p.points);
  const int step = (points + Taps<A>::kStep - 1) / Taps<A>::kStep * Taps<A>::kStep;
  Probe<A> probe;
  for (int begin = 0, end; begin < p.groups; begin = end) {
    end = p.groups - begin < kMostPoints / step ? p.groups : begin + kMostPoints / step;
    for (int g = begin; g < end; ++g) {
      const T* readable_record = readable.at(records + g * record, out_x);
      find_taps(grid, corners, readable_record, out_y, out_x, points, taps, (g - begin) * step);
    }
    for (int g = begin; g < end; ++g) {
      const int64_t channel = static_cast<int64_t>(g) * p.group_width;
      for_each_chunk<A>(p.group_width, [&](auto width, int c) __attribute__((always_inline)) {
        aggregate<decltype(width)::value>(
            corners, taps, (g - begin) * step, points, value + channel + c, out + channel + c, probe);
      });
    }
  }
  // a zero weight times an infinite or NaN pixel: points outside must not feel it
  if (!probe.finite()) pixel_strictly(p, records, value, out_y, out_x, out);
}

template <typename T>
void forward(const ForwardArgs& args, int64_t begin, int64_t end) {
  using A = typename Opmath<T>::type;
  const Problem& p = args.problem;
  const bool at_once = fits_at_once(p, (p.height - 1) * p.value.h + (p.width - 1) * p.value.w + p.channels());
  const PointGrid<A> grid(p);
  const Corners<A> corners(p, p.value.h, p.value.w);
  ReadableRecord<T, A> readable(p);
  Taps<A> taps;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.out_height;
    const int out_y = static_cast<int>(line % p.out_height);
    const T* value = static_cast<const T*>(args.value) + n * p.value.n;
    const T* records = static_cast<const T*>(args.offset_mask) + n * p.offset_mask.n + out_y * p.offset_mask.h;
    T* out = static_cast<T*>(args.out) + line * p.out_width * p.channels();
    for (int out_x = 0; out_x < p.out_width; ++out_x, records += p.offset_mask.w, out += p.channels()) {
      if (at_once && p.points == 9) {
        forward_pixel(p, grid, corners, records, value, out_y, out_x, 9, readable, taps, out);
      } else if (at_once) {
        forward_pixel(p, grid, corners, records, value, out_y, out_x, p.points, readable, taps, out);
      } else {
        pixel_strictly(p, records, value, out_y, out_x, out);
      }
    }
  }
}

}  // namespace
}  // namespace DCNV4_ISA
}  // namespace yolo_dcnv4
