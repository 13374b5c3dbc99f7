// the gradients of some images' groups
#pragma once

#include <stdlib.h>

#include "../dcnv4.h"
#include "lanes.h"
#include "points.h"
#include "sample.h"

namespace yolo_dcnv4 {
namespace DCNV4_ISA {
namespace {

// What a thread keeps of one image and group: its channels as a dense (H, W, D) in the type of computations. In tensors
// they lie apart, in rows that often meet in the same lines of the cache.
template <typename A>
struct Plane {
  static constexpr int kCopyAhead = 8;  // pixels

  int64_t row, pixel;  // strides in elements
  int64_t size;

  explicit Plane(const Problem& p) : pixel(p.group_width) {
    constexpr int64_t kLine = 64 / sizeof(A);
    const int64_t lines = (static_cast<int64_t>(p.width) * p.group_width + kLine - 1) / kLine;
    // of an odd number of lines, neighbouring rows meet late
    row = (lines | 1) * kLine;
    size = row * p.height;
  }

  template <typename T>
  void fill(const Problem& p, const T* value, A* plane) const {
    for (int y = 0; y < p.height; ++y) {
      for (int x = 0; x < p.width; ++x) {
        __builtin_prefetch(value + y * p.value.h + (x + kCopyAhead) * p.value.w);
        convert(value + y * p.value.h + x * p.value.w, p.group_width, plane + y * row + x * pixel);
      }
    }
  }

  template <typename T>
  void store_to(const Problem& p, const A* plane, T* pixels, int64_t pixel_row) const {
    for (int y = 0; y < p.height; ++y) {
      for (int x = 0; x < p.width; ++x, pixels += pixel_row) {
        __builtin_prefetch(pixels + kCopyAhead * pixel_row, 1);
        convert(plane + y * row + x * pixel, p.group_width, pixels);
      }
    }
  }
};

// one image and group: its channels of grad_value belong to no other task, so sums are ordered and final
template <typename T>
struct GroupTask {
  using A = typename Opmath<T>::type;

  const T* records;
  const T* grads;
  const A* pixels;  // plane of value, null where no gradient of records is needed
  A* sums;          // plane of grad_value, null where that is not needed
  T* grad_records;  // null where they are not needed
};

// one point after the other, as the contract says it
template <typename T>
class StrictGradients {
 public:
  using A = typename Opmath<T>::type;

  StrictGradients(const Problem& p, const Plane<A>& plane, const T* record, int out_y, int out_x, const A* grad)
      : p_(p), strides_{0, plane.row, plane.pixel}, points_(p, record, out_y, out_x), grad_(grad) {}

  void add_to(A* sums) const {
    for (int k = 0; k < p_.points; ++k) {
      const Sample<A> s = points_(k, strides_);
      if (!s.inside) continue;
      for (int corner = 0; corner < 4; ++corner) {
        if (s.corner[corner] < 0) continue;
        const A factor = s.weight * s.bilinear[corner];
        A* __restrict__ row = sums + s.corner[corner];
        for (int c = 0; c < p_.group_width; ++c) row[c] += factor * grad_[c];
      }
    }
  }

  // `weights` has room for a number a point
  void write_to(T* grad_record, const A* pixels, A* weights) const {
    const A scale = static_cast<A>(p_.offset_scale);
    A expected = 0;
    for (int k = 0; k < p_.points; ++k) {
      const Sample<A> s = points_(k, strides_);
      A d[4] = {}, x = 0, y = 0;
      weights[k] = 0;
      if (s.inside) {
        for (int corner = 0; corner < 4; ++corner) {
          if (s.corner[corner] >= 0) d[corner] = dot(grad_, pixels + s.corner[corner], p_.group_width);
        }
        x = s.weight * scale * ((1 - s.ly) * (d[1] - d[0]) + s.ly * (d[3] - d[2]));
        y = s.weight * scale * ((1 - s.lx) * (d[2] - d[0]) + s.lx * (d[3] - d[1]));
        weights[k] = s.bilinear[0] * d[0] + s.bilinear[1] * d[1] + s.bilinear[2] * d[2] + s.bilinear[3] * d[3];
        expected += s.weight * weights[k];
      }
      store(x, grad_record + 2 * k);
      store(y, grad_record + 2 * k + 1);
    }
    for (int k = 0; k < p_.points; ++k) {
      const A d = p_.softmax ? points_.weight(k) * (weights[k] - expected) : weights[k];
      store(d, grad_record + 2 * p_.points + k);
    }
  }

 private:
  const Problem& p_;
  const Strides strides_;
  const Points<T, A> points_;
  const A* grad_;
};

// the points of a record, and what their gradients take
template <typename A>
struct PointGradients {
  struct AxisWeights {
    A first[kMostPoints], second[kMostPoints], first_slope[kMostPoints], second_slope[kMostPoints];

    DCNV4_INLINE void put_tent(int k, const Tent<A>& tent, const Axis<A>& axis) {
      put(tent.first, first + k);
      put(tent.second, second + k);
      put(tent.first_slope(), first_slope + k);
      put(tent.second_slope(axis), second_slope + k);
    }
  };

  int32_t first[kMostPoints];  // corner in a plane
  AxisWeights vertical, horizontal;
  A m[kMostPoints];
  A weight[4][kMostPoints];
  A dot[4][kMostPoints];  // of the gradient with each corner
  // the gradient of the record: pairs, then weights
  A record[2 * kMostPoints], weight_record[kMostPoints];
};

template <typename T, typename A>
DCNV4_INLINE void find_points(
    const PointGrid<A>& grid, const Corners<A>& corners, const T* record, int out_y, int out_x, const int points,
    PointGradients<A>& found) {
  using V = typename Tent<A>::V;
  grid.for_each(
      record, out_y, out_x, points,
      [&](int k, const Tent<A>& y, const Tent<A>& x, const V& m) __attribute__((always_inline)) {
        put(corners.first_of(y, x), found.first + k);
        found.vertical.put_tent(k, y, grid.rows);
        found.horizontal.put_tent(k, x, grid.columns);
        put(m, found.m + k);
        put_weights(y, x, m, found.weight, k);
      });
}

// `width` channels of each corner take their part of the gradient
template <int width, typename A>
DCNV4_INLINE void scatter(
    const Corners<A>& corners, const PointGradients<A>& found, const int points, const Lanes<A, width>& grad, A* sums) {
#pragma GCC unroll 1
  for (int k = 0; k < points; ++k) {
    A* corner[4];
    corners.of(sums, found.first[k], corner);
    for (int i = 0; i < 4; ++i) {
      Lanes<A, width> sum;
      sum.load_from(corner[i]);
      sum.add_product(found.weight[i][k], grad);
      sum.store_to(corner[i]);
    }
  }
}

// the dot products of the gradient with four corners, from channel c on
template <int width, typename A>
DCNV4_INLINE typename Vector<A, 4>::type corner_dots(const A* const (&corner)[4], const A* grad, int depth, int c = 0) {
  typename Vector<A, 4>::type dots = {};
  if (c + width <= depth) {
    typename Vector<A, width>::type products[4] = {};
    for (; c + width <= depth; c += width) {
      const auto channels = load_vector<width, A, A>(grad + c);
      for (int i = 0; i < 4; ++i) products[i] += channels * load_vector<width, A, A>(corner[i] + c);
    }
    dots = sums_of<A, width>(products);
  }
  if constexpr (width > 1) {
    if (c < depth) dots += corner_dots<(width > 4 ? width / 2 : 1)>(corner, grad, depth, c);
  }
  return dots;
}

template <typename A>
DCNV4_INLINE void find_dots(
    const Corners<A>& corners, PointGradients<A>& found, const int points, const A* grad, const A* pixels,
    const int depth) {
#pragma GCC unroll 1
  for (int k = 0; k < points; ++k) {
    const A* corner[4];
    corners.of(pixels, found.first[k], corner);
    const auto dots = corner_dots<kRegister<A>>(corner, grad, depth);
    for (int i = 0; i < 4; ++i) found.dot[i][k] = dots[i];
  }
}

// from dot products to the gradient of a record; false where it is not finite
template <typename A>
DCNV4_INLINE bool finish_record(PointGradients<A>& found, const int points, const A scale) {
  constexpr int width = kRegister<A>;
  using V = typename Vector<A, width>::type;
  const auto at = [](const A* from) __attribute__((always_inline)) { return load_vector<width, A, A>(from); };
  const auto &v = found.vertical, &h = found.horizontal;
  Probe<A> probe;
  for (int k = 0; k < points; k += width) {
    const V left = at(h.first + k), right = at(h.second + k), up = at(v.first + k), down = at(v.second + k);
    const V d[4] = {at(found.dot[0] + k), at(found.dot[1] + k), at(found.dot[2] + k), at(found.dot[3] + k)};
    const V top = left * d[0] + right * d[1], bottom = left * d[2] + right * d[3];
    const V factor = at(found.m + k) * scale;
    const V x = factor * (at(h.first_slope + k) * (up * d[0] + down * d[2]) +
                          at(h.second_slope + k) * (up * d[1] + down * d[3]));
    const V y = factor * (at(v.first_slope + k) * top + at(v.second_slope + k) * bottom);
    const V m = up * top + down * bottom;
    put_pairs<A>(x, y, found.record + 2 * k);
    put(m, found.weight_record + k);
    // zero times each number is NaN where one is not finite; behind the last point lie others
    const V zeros = x * 0 + y * 0 + m * 0;
    if (k + width <= points) {
      probe.see(Lanes<A, width>{{zeros}});
    } else {
      for (int lane = 0; lane < points - k; ++lane) probe.see(Lanes<A, 1>{{{zeros[lane]}}});
    }
  }
  return probe.finite();
}

template <typename A>
DCNV4_INLINE void see_all(Probe<A>& probe, const A* numbers, const int count) {
  for_each_chunk<A>(count, [&](auto width, int i) __attribute__((always_inline)) {
    Lanes<A, decltype(width)::value> lanes;
    lanes.load_from(numbers + i);
    probe.see(lanes);
  });
}

// the gradients of one output pixel; false where its points have to be taken one by one; `points` and `depth` are
// constant where the compiler is to unroll for them
template <typename T, typename A>
DCNV4_INLINE bool backward_pixel(
    const PointGrid<A>& grid, const Corners<A>& corners, const GroupTask<T>& task, const T* record, const A* grad,
    int out_y, int out_x, const int points, const int depth, PointGradients<A>& found, T* grad_record) {
  find_points(grid, corners, record, out_y, out_x, points, found);
  // a zero weight times an infinite or NaN number: pixels outside must not feel it
  Probe<A> probe;
  see_all(probe, found.m, points);
  see_all(probe, grad, depth);
  if (!probe.finite()) return false;
  if (grad_record) {
    find_dots(corners, found, points, grad, task.pixels, depth);
    // the same for pixels; before the sums are touched
    if (!finish_record(found, points, grid.scale())) return false;
  }
  if (task.sums) {
    for_each_chunk<A>(depth, [&](auto width, int c) __attribute__((always_inline)) {
      Lanes<A, decltype(width)::value> lanes;
      lanes.load_from(grad + c);
      scatter(corners, found, points, lanes, task.sums + c);
    });
  }
  if (grad_record) {
    convert(found.record, 2 * points, grad_record);
    convert(found.weight_record, points, grad_record + 2 * points);
  }
  return true;
}

// A group's numbers lie so far apart from pixel to pixel that some processors do not see where they will be wanted.
constexpr int kAhead = 4;  // pixels

template <typename T>
DCNV4_INLINE void fetch(const T* from, int count) {
  constexpr int kLine = 64 / static_cast<int>(sizeof(T));
  for (int i = 0; i < count; i += kLine) __builtin_prefetch(from + i);
  __builtin_prefetch(from + count - 1);
}

template <typename T>
void backward_group(
    const BackwardArgs& args, const PointGrid<typename Opmath<T>::type>& grid,
    const Plane<typename Opmath<T>::type>& plane, const GroupTask<T>& task, int64_t zeros,
    typename Opmath<T>::type* room) {
  using A = typename Opmath<T>::type;
  const Problem& p = args.problem;
  const bool at_once = fits_at_once(p, plane.size);
  const Corners<A> corners(p, plane.row, plane.pixel);
  ReadableRecord<T, A> readable(p);
  PointGradients<A> found;
  T* grad_record = task.grad_records;
  for (int out_y = 0; out_y < p.out_height; ++out_y) {
    const T* entries = task.records + out_y * p.offset_mask.h;
    const T* grads = task.grads + out_y * p.grad_output.h;
    for (int out_x = 0; out_x < p.out_width; ++out_x, entries += p.offset_mask.w, grads += p.grad_output.w) {
      fetch(entries + kAhead * p.offset_mask.w, 3 * p.points);
      fetch(grads + kAhead * p.grad_output.w, p.group_width);
      if (grad_record) fetch(grad_record + kAhead * args.grad_offset_mask_row, 3 * p.points);
      const A* grad = in_opmath<T, A>(grads, p.group_width, room);
      bool done = false;
      if (at_once) {
        const T* record = readable.at(entries, out_x);
        if (p.points == 9 && p.group_width == 16) {
          done = backward_pixel(grid, corners, task, record, grad, out_y, out_x, 9, 16, found, grad_record);
        } else {
          done = backward_pixel(
              grid, corners, task, record, grad, out_y, out_x, p.points, p.group_width, found, grad_record);
        }
      }
      if (!done) {
        const StrictGradients<T> strict(p, plane, entries, out_y, out_x, grad);
        if (task.sums) strict.add_to(task.sums);
        if (grad_record) strict.write_to(grad_record, task.pixels, room + p.group_width);
      }
      if (grad_record) {
        for (int64_t i = 0; i < zeros; ++i) store(A{0}, grad_record + int64_t{3} * p.points + i);
        grad_record += args.grad_offset_mask_row;
      }
    }
  }
}

template <typename T>
bool backward(const BackwardArgs& args, int64_t begin, int64_t end) {
  using A = typename Opmath<T>::type;
  const Problem& p = args.problem;
  const Plane<A> plane(p);
  const int64_t planes = (args.grad_value ? 1 : 0) + (args.grad_offset_mask ? 1 : 0);
  constexpr int kLine = 64;
  void* memory = malloc((planes * plane.size + p.group_width + p.points) * sizeof(A) + kLine);
  if (!memory) return false;
  A* room = reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(memory) + kLine - 1) / kLine * kLine);
  A* pixels = args.grad_offset_mask ? room : nullptr;
  A* sums = args.grad_value ? room + (planes - 1) * plane.size : nullptr;
  const PointGrid<A> grid(p);

  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / p.groups;
    const int g = static_cast<int>(i % p.groups);
    const int64_t channel = static_cast<int64_t>(g) * p.group_width, entry = int64_t{3} * p.points * g;
    GroupTask<T> task{
        static_cast<const T*>(args.offset_mask) + n * p.offset_mask.n + entry,
        static_cast<const T*>(args.grad_output) + n * p.grad_output.n + channel, pixels, sums, nullptr};
    if (sums) memset(sums, 0, plane.size * sizeof(A));
    if (pixels) {
      plane.fill(p, static_cast<const T*>(args.value) + n * p.value.n + channel, pixels);
      task.grad_records =
          static_cast<T*>(args.grad_offset_mask) + n * p.out_pixels() * args.grad_offset_mask_row + entry;
    }
    // behind the last group lies padding
    const int64_t zeros = g + 1 == p.groups ? p.row - entry - int64_t{3} * p.points : 0;
    backward_group(args, grid, plane, task, zeros, room + planes * plane.size);
    if (sums) {
      T* grad_value = static_cast<T*>(args.grad_value) + n * p.pixels() * args.grad_value_row + channel;
      plane.store_to(p, sums, grad_value, args.grad_value_row);
    }
  }
  free(memory);
  return true;
}

}  // namespace
}  // namespace DCNV4_ISA
}  // namespace yolo_dcnv4
