// a record's points one by one, as the contract says it
#pragma once

#include <math.h>

#include "../dcnv4.h"
#include "numbers.h"

namespace yolo_dcnv4 {
namespace DCNV4_ISA {
namespace {

template <typename A>
struct Sample {
  bool inside;
  A weight;
  A ly, lx;
  // pixel offset of the corners in elements, negative where a corner lies outside
  int64_t corner[4];
  A bilinear[4];
};

// samples of one output pixel and group
template <typename T, typename A>
class Points {
 public:
  Points(const Problem& p, const T* record, int out_y, int out_x) : p_(p), record_(record) {
    const Window& w = p.window;
    scale_ = static_cast<A>(p.offset_scale);
    half_h_ = w.dilation_h * (w.kernel_h - 1) / 2;
    half_w_ = w.dilation_w * (w.kernel_w - 1) / 2;
    center_y_ = static_cast<A>(static_cast<int64_t>(out_y) * w.stride_h + half_h_ - w.pad_h);
    center_x_ = static_cast<A>(static_cast<int64_t>(out_x) * w.stride_w + half_w_ - w.pad_w);
    if (p.softmax) {
      largest_ = load(record[2 * p.points]);
      for (int k = 1; k < p.points; ++k) {
        const A m = load(record[2 * p.points + k]);
        largest_ = m > largest_ ? m : largest_;
      }
      A sum = 0;
      for (int k = 0; k < p.points; ++k) sum += exponential(load(record[2 * p.points + k]) - largest_);
      norm_ = 1 / sum;
    }
  }

  A weight(int k) const {
    const A m = load(record_[2 * p_.points + k]);
    return p_.softmax ? exponential(m - largest_) * norm_ : m;
  }

  Sample<A> operator()(int k, const Strides& strides) const {
    const Window& w = p_.window;
    // the numbering has no hole where the centre is left out
    const int place = p_.remove_center && k >= p_.points / 2 ? k + 1 : k;
    const int i = place / w.kernel_h, j = place % w.kernel_h;
    // in this order little is lost to rounding, and nothing but the last step with scale 1
    const A x = (center_x_ + (i * w.dilation_w - half_w_) * scale_) + load(record_[2 * k]) * scale_;
    const A y = (center_y_ + (j * w.dilation_h - half_h_) * scale_) + load(record_[2 * k + 1]) * scale_;
    Sample<A> s{};
    // false for NaN
    s.inside = y > -1 && y < p_.height && x > -1 && x < p_.width;
    if (!s.inside) return s;
    s.weight = weight(k);
    const A floor_y = floor(y), floor_x = floor(x);
    const int64_t y0 = static_cast<int64_t>(floor_y), x0 = static_cast<int64_t>(floor_x);
    s.ly = y - floor_y;
    s.lx = x - floor_x;
    const bool top = y0 >= 0, bottom = y0 + 1 < p_.height, left = x0 >= 0, right = x0 + 1 < p_.width;
    const int64_t corner = y0 * strides.h + x0 * strides.w;
    s.corner[0] = top && left ? corner : -1;
    s.corner[1] = top && right ? corner + strides.w : -1;
    s.corner[2] = bottom && left ? corner + strides.h : -1;
    s.corner[3] = bottom && right ? corner + strides.h + strides.w : -1;
    s.bilinear[0] = (1 - s.ly) * (1 - s.lx);
    s.bilinear[1] = (1 - s.ly) * s.lx;
    s.bilinear[2] = s.ly * (1 - s.lx);
    s.bilinear[3] = s.ly * s.lx;
    return s;
  }

 private:
  static float exponential(float v) { return expf(v); }
  static double exponential(double v) { return exp(v); }
  static float floor(float v) { return floorf(v); }
  static double floor(double v) { return ::floor(v); }

  const Problem& p_;
  const T* record_;
  int half_h_, half_w_;
  A scale_, center_y_, center_x_;
  A largest_ = 0, norm_ = 1;
};

}  // namespace
}  // namespace DCNV4_ISA
}  // namespace yolo_dcnv4
