// all points of a record at once: bilinear weights as tents around two neighbouring pixels of each axis
#pragma once

#include "../dcnv4.h"
#include "lanes.h"

namespace yolo_dcnv4 {
namespace DCNV4_ISA {
namespace {

constexpr int kMostPoints = 64;  // larger windows take their points one by one

template <typename A>
struct Axis {
  A last;           // the last pixel that has a second neighbour
  A second_exists;  // 1, or -1 where the image is one pixel wide
  A second_slope;   // 1, or 0 there

  explicit Axis(int size)
      : last(static_cast<A>(size > 1 ? size - 2 : 0)), second_exists(size > 1 ? 1 : -1), second_slope(size > 1) {}
};

// Two neighbouring pixels that always lie inside the image, with weights max(0, 1 - |position - pixel|): points at and
// beyond the border need no case of their own. NaN gives zero weights. Lanes are points.
template <typename A>
struct Tent {
  using V = typename Vector<A, kRegister<A>>::type;
  using Pixels = typename Vector<int32_t, kRegister<A>>::type;

  Pixels pixel;  // the first
  V distance;    // from it
  V first, second;

  DCNV4_INLINE Tent(const Axis<A>& axis, V position) {
    const V zero = {}, last = zero + axis.last;
    // false for NaN, too; conversion rounds towards zero, which is the floor where it matters
    const V inside = position > 0 ? position : zero;
    pixel = __builtin_convertvector(inside < last ? inside : last, Pixels);
    distance = position - __builtin_convertvector(pixel, V);
    first = weight(1, distance);
    second = weight(axis.second_exists, distance - 1);
  }

  // derivatives of the weights; at a pixel those on its right, outside and for NaN zero
  DCNV4_INLINE V first_slope() const {
    const V zero = {}, one = zero + 1;
    return distance < 0 ? (distance > -1 ? one : zero) : (distance < 1 ? -one : zero);
  }
  DCNV4_INLINE V second_slope(const Axis<A>& axis) const {
    const V zero = {}, slope = zero + axis.second_slope;
    return distance < 1 ? (distance >= 0 ? slope : zero) : (distance < 2 ? -slope : zero);
  }

 private:
  static DCNV4_INLINE V weight(A exists, V distance) {
    const V zero = {}, weight = exists - (distance < 0 ? -distance : distance);
    return weight > 0 ? weight : zero;
  }
};

// the weights of the four corners of points, from `at` on
template <typename A>
DCNV4_INLINE void put_weights(
    const Tent<A>& y, const Tent<A>& x, const typename Tent<A>::V& m, A (&weight)[4][kMostPoints], int at) {
  put(m * y.first * x.first, weight[0] + at);
  put(m * y.first * x.second, weight[1] + at);
  put(m * y.second * x.first, weight[2] + at);
  put(m * y.second * x.second, weight[3] + at);
}

// Reads of registers go past the end of a record. That is nobody's memory behind the last one, so the last record of
// each row is copied.
template <typename T, typename A>
class ReadableRecord {
 public:
  explicit ReadableRecord(const Problem& p) : points_(p.points), last_(p.out_width - 1) {
    if (p.offset_mask.w < kPast) last_ = 0;
  }

  // valid until the next call
  DCNV4_INLINE const T* at(const T* record, int out_x) {
    if (out_x < last_) return record;
    memcpy(room_, record, 3 * points_ * sizeof(T));
    return room_;
  }

 private:
  static constexpr int kPast = 2 * kRegister<A>;

  int points_, last_;
  T room_[3 * kMostPoints + kPast] = {};
};

// where the points of the window lie, and how to find those of a record
template <typename A>
class PointGrid {
 public:
  using V = typename Vector<A, kRegister<A>>::type;

  Axis<A> rows, columns;

  explicit PointGrid(const Problem& p) : rows(p.height), columns(p.width), window_(p.window) {
    const Window& w = p.window;
    half_h_ = w.dilation_h * (w.kernel_h - 1) / 2;
    half_w_ = w.dilation_w * (w.kernel_w - 1) / 2;
    scale_ = static_cast<A>(p.offset_scale);
    // larger windows go without
    for (int k = 0; k < p.points && k < kMostPoints; ++k) {
      // the numbering has no hole where the centre is left out
      const int place = p.remove_center && k >= p.points / 2 ? k + 1 : k;
      x_[k] = (place / w.kernel_h * w.dilation_w - half_w_) * scale_;
      y_[k] = (place % w.kernel_h * w.dilation_h - half_h_) * scale_;
    }
  }

  A scale() const { return scale_; }

  // calls take(k, tent_y, tent_x, weights) for the points of a record from k on, a register of them at a time, and so
  // for some that are none
  template <typename T, typename Take>
  DCNV4_INLINE void for_each(const T* record, int out_y, int out_x, const int points, const Take& take) const {
    const Window& w = window_;
    const A center_y = static_cast<A>(static_cast<int64_t>(out_y) * w.stride_h + half_h_ - w.pad_h);
    const A center_x = static_cast<A>(static_cast<int64_t>(out_x) * w.stride_w + half_w_ - w.pad_w);
    for (int k = 0; k < points; k += kRegister<A>) {
      V dx, dy;
      load_pairs<T, A>(record + 2 * k, dx, dy);
      const V grid_x = load_vector<kRegister<A>, A, A>(x_ + k), grid_y = load_vector<kRegister<A>, A, A>(y_ + k);
      const V weights = load_vector<kRegister<A>, T, A>(record + 2 * points + k);
      // in this order little is lost to rounding, and nothing but the last step with scale 1
      const V x = (center_x + grid_x) + dx * scale_, y = (center_y + grid_y) + dy * scale_;
      take(k, Tent<A>(rows, y), Tent<A>(columns, x), weights);
    }
  }

 private:
  Window window_;
  int half_h_, half_w_;
  A scale_;
  A x_[kMostPoints] = {}, y_[kMostPoints] = {};
};

// where the corners of a point lie, in elements from the start of an image; missing neighbours repeat, with weight zero
template <typename A>
class Corners {
 public:
  using Offsets = typename Tent<A>::Pixels;

  Corners(const Problem& p, int64_t row, int64_t column)
      : row_(static_cast<int32_t>(row)),
        column_(static_cast<int32_t>(column)),
        down_(p.height > 1 ? row : 0),
        right_(p.width > 1 ? column : 0) {}

  DCNV4_INLINE Offsets first_of(const Tent<A>& y, const Tent<A>& x) const { return y.pixel * row_ + x.pixel * column_; }

  template <typename E>
  DCNV4_INLINE void of(E* image, int32_t first, E* (&corner)[4]) const {
    corner[0] = image + first;
    corner[1] = corner[0] + right_;
    corner[2] = corner[0] + down_;
    corner[3] = corner[2] + right_;
  }

 private:
  int32_t row_, column_;
  int64_t down_, right_;
};

// whether points can be found at once, in an image that spans so many elements: offsets have 32 bits
inline bool fits_at_once(const Problem& p, int64_t span) {
  return p.points <= kMostPoints && !p.softmax && span <= INT32_MAX;
}

}  // namespace
}  // namespace DCNV4_ISA
}  // namespace yolo_dcnv4
