// compiled once for each instruction set, so it includes nothing with shared inline functions: the linker could keep
// the copy with wide instructions for all of them
#include "dcnv4_kernel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#ifndef DCNV4_ISA
#define DCNV4_ISA baseline
#endif

namespace yolo_dcnv4 {
namespace DCNV4_ISA {
namespace {

// channels handled at once: one to four vector registers
constexpr int kChunk = 16;

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

double load(double v) { return v; }
float load(float v) { return v; }
float load(BFloat16 v) { return as_float(static_cast<uint32_t>(v.bits) << 16); }
float load(Half v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7fffu) << 13;
  // 2^112 moves the exponent's bias from 15 to 127 and normalises subnormals on the way
  float value = as_float(magnitude) * as_float(0x77800000u);
  if ((v.bits & 0x7c00u) == 0x7c00u) value = as_float(magnitude | 0x7f800000u);
  return as_float(as_bits(value) | sign);
#endif
}

void store(double v, double* out) { *out = v; }
void store(float v, float* out) { *out = v; }
void store(float v, BFloat16* out) {
  const uint32_t bits = as_bits(v);
  // round to nearest even; NaN keeps a mantissa bit
  out->bits = static_cast<uint16_t>(v != v ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
void store(float v, Half* out) {
#if defined(__F16C__)
  out->bits = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
#else
  const uint32_t bits = as_bits(v);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // adding 0.5 leaves the subnormal's bits, rounded, at the end of the mantissa
    half = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
#endif
}

template <typename T>
struct Opmath {
  using type = float;
};
template <>
struct Opmath<double> {
  using type = double;
};

template <typename T>
struct IsHalf {
  static constexpr bool value = false;
};
template <>
struct IsHalf<Half> {
  static constexpr bool value = true;
};

template <typename T>
struct IsBFloat16 {
  static constexpr bool value = false;
};
template <>
struct IsBFloat16<BFloat16> {
  static constexpr bool value = true;
};

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

// `width` neighbouring channels; the compiler splits it into the registers there are
template <typename A, int width>
struct Lanes {
  typedef A type __attribute__((vector_size(width * sizeof(A))));
};

template <int width, typename T, typename A>
inline void load_lanes(const T* row, typename Lanes<A, width>::type& to) {
  if constexpr (sizeof(T) == sizeof(A)) {
    memcpy(&to, row, sizeof to);
    return;
  } else if constexpr (IsBFloat16<T>::value) {
    typename Lanes<uint16_t, width>::type bits;
    memcpy(&bits, row, sizeof bits);
    const auto words = __builtin_convertvector(bits, typename Lanes<uint32_t, width>::type) << 16;
    memcpy(&to, &words, sizeof to);
    return;
#if defined(__AVX512F__)
  } else if constexpr (width == 16) {
    __m256i bits;
    memcpy(&bits, row, sizeof bits);
    const __m512 values = _mm512_cvtph_ps(bits);
    memcpy(&to, &values, sizeof to);
    return;
#endif
#if defined(__F16C__)
  } else if constexpr (width == 8) {
    __m128i bits;
    memcpy(&bits, row, sizeof bits);
    const __m256 values = _mm256_cvtph_ps(bits);
    memcpy(&to, &values, sizeof to);
    return;
#endif
  }
  for (int c = 0; c < width; ++c) to[c] = load(row[c]);
}

template <int width, typename T, typename A>
inline void store_lanes(const typename Lanes<A, width>::type& from, T* row) {
#if defined(__AVX512F__)
  if constexpr (IsHalf<T>::value && width == 16) {
    __m512 values;
    memcpy(&values, &from, sizeof values);
    const __m256i bits = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
    memcpy(row, &bits, sizeof bits);
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (IsHalf<T>::value && width == 8) {
    __m256 values;
    memcpy(&values, &from, sizeof values);
    const __m128i bits = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
    memcpy(row, &bits, sizeof bits);
    return;
  }
#endif
  for (int c = 0; c < width; ++c) store(from[c], row + c);
}

// `count` entries in the accumulation type: themselves, or copies in `room`
template <typename T, typename A>
inline __attribute__((always_inline)) const A* in_opmath(const T* entries, const int count, A* room) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return entries;
  } else {
    int i = 0;
    for (; i + 8 <= count; i += 8) {
      typename Lanes<A, 8>::type lanes = {};
      load_lanes<8, T, A>(entries + i, lanes);
      memcpy(room + i, &lanes, sizeof lanes);
    }
    for (; i < count; ++i) room[i] = load(entries[i]);
    return room;
  }
}

// The points of a record as two neighbouring rows and columns that always lie inside the image, with tents for weights:
// max(0, 1 - |x - column|), so points at and beyond the border need no case of their own. NaN gives zero weights.
// There is room for several records: their points are found first, and their pixels gathered then, which lets the
// processor do both at once.
template <typename A>
struct Taps {
  static constexpr int kMost = 64;  // points; larger windows take their points one by one
  static constexpr int kStep = 16;  // a record's points begin at a multiple, with a vector of their own

  int y[kMost], x[kMost];
  A weight[4][kMost];
};

template <typename A>
struct Axis {
  A last;           // the last pixel that has a second neighbour
  A second_exists;  // 1, or -1 where the image is one pixel wide

  explicit Axis(int size) : last(static_cast<A>(size > 1 ? size - 2 : 0)), second_exists(size > 1 ? 1 : -1) {}
};

// constant after the first pixel: where the points of the window lie, relative to its centre
template <typename A>
struct Grid {
  A x[Taps<A>::kMost], y[Taps<A>::kMost];

  explicit Grid(const Problem& p) {
    const Window& w = p.window;
    const int half_h = w.dilation_h * (w.kernel_h - 1) / 2, half_w = w.dilation_w * (w.kernel_w - 1) / 2;
    const A scale = static_cast<A>(p.offset_scale);
    // larger windows go without
    for (int k = 0; k < p.points && k < Taps<A>::kMost; ++k) {
      const int place = p.remove_center && k >= p.points / 2 ? k + 1 : k;
      x[k] = (place / w.kernel_h * w.dilation_w - half_w) * scale;
      y[k] = (place % w.kernel_h * w.dilation_h - half_h) * scale;
    }
  }
};

template <typename A>
inline A tent(A exists, A distance) {
  const A weight = exists - (distance < 0 ? -distance : distance);
  return weight > 0 ? weight : 0;
}

// `points` is constant where the compiler is to unroll and vectorise for it
template <typename T, typename A>
inline __attribute__((always_inline)) void find_taps(
    const Problem& p, const Grid<A>& grid, const T* entries, int out_y, int out_x, const int points, Taps<A>& taps,
    const int first) {
  A room[3 * Taps<A>::kMost];
  const A* record = in_opmath(entries, 3 * points, room);
  const Window& w = p.window;
  const A scale = static_cast<A>(p.offset_scale);
  const A center_y =
      static_cast<A>(static_cast<int64_t>(out_y) * w.stride_h + w.dilation_h * (w.kernel_h - 1) / 2 - w.pad_h);
  const A center_x =
      static_cast<A>(static_cast<int64_t>(out_x) * w.stride_w + w.dilation_w * (w.kernel_w - 1) / 2 - w.pad_w);
  const Axis<A> rows(p.height), columns(p.width);
  for (int k = 0; k < points; ++k) {
    // in this order little is lost to rounding, and nothing but the last step with scale 1
    const A x = (center_x + grid.x[k]) + record[2 * k] * scale;
    const A y = (center_y + grid.y[k]) + record[2 * k + 1] * scale;
    // false for NaN, too; conversion rounds towards zero, which is the floor where it matters
    const A inside_x = x > 0 ? x : 0, inside_y = y > 0 ? y : 0;
    const int column = static_cast<int>(inside_x < columns.last ? inside_x : columns.last);
    const int row = static_cast<int>(inside_y < rows.last ? inside_y : rows.last);
    const A dx = x - static_cast<A>(column), dy = y - static_cast<A>(row);
    const A left = tent(A{1}, dx), right = tent(columns.second_exists, dx - 1);
    const A top = tent(A{1}, dy), bottom = tent(rows.second_exists, dy - 1);
    const A m = record[2 * points + k];
    taps.x[first + k] = column;
    taps.y[first + k] = row;
    taps.weight[0][first + k] = m * top * left;
    taps.weight[1][first + k] = m * top * right;
    taps.weight[2][first + k] = m * bottom * left;
    taps.weight[3][first + k] = m * bottom * right;
  }
}

// sums of `width` channels over the points; false where they are not finite
template <int width, typename T, typename A>
inline __attribute__((always_inline)) bool aggregate(
    const Problem& p, const Taps<A>& taps, const int first, const int points, const T* group, T* out) {
  const int64_t right = p.width > 1 ? p.value.w : 0, down = p.height > 1 ? p.value.h : 0;
  // a sum for each corner: additions to one would wait for each other
  typename Lanes<A, width>::type sums[4] = {}, pixel = {};
  for (int k = 0; k < points; ++k) {
    const T* row = group + taps.y[first + k] * p.value.h + taps.x[first + k] * p.value.w;
    load_lanes<width, T, A>(row, pixel);
    sums[0] += taps.weight[0][first + k] * pixel;
    load_lanes<width, T, A>(row + right, pixel);
    sums[1] += taps.weight[1][first + k] * pixel;
    load_lanes<width, T, A>(row + down, pixel);
    sums[2] += taps.weight[2][first + k] * pixel;
    load_lanes<width, T, A>(row + down + right, pixel);
    sums[3] += taps.weight[3][first + k] * pixel;
  }
  const typename Lanes<A, width>::type sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  store_lanes<width, T, A>(sum, out);
  A probe = 0;
  for (int c = 0; c < width; ++c) probe += sum[c] * 0;
  return probe == 0;
}

// as the contract says it, one point after the other
template <typename T>
void aggregate_strictly(const Problem& p, const T* record, int out_y, int out_x, const T* group, T* out) {
  using A = typename Opmath<T>::type;
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

template <typename T, typename A>
inline __attribute__((always_inline)) bool aggregate_group(
    const Problem& p, const Taps<A>& taps, const int first, const int points, const T* group, T* out) {
  bool finite = true;
  int c = 0;
#if !defined(__AVX512F__)
  // eight numbers are the most that one instruction widens
  if constexpr (!IsHalf<T>::value)
#endif
    for (; c + 16 <= p.group_width; c += 16) finite &= aggregate<16, T, A>(p, taps, first, points, group + c, out + c);
  for (; c + 8 <= p.group_width; c += 8) finite &= aggregate<8, T, A>(p, taps, first, points, group + c, out + c);
  for (; c + 4 <= p.group_width; c += 4) finite &= aggregate<4, T, A>(p, taps, first, points, group + c, out + c);
  for (; c < p.group_width; ++c) finite &= aggregate<1, T, A>(p, taps, first, points, group + c, out + c);
  return finite;
}

// the groups of one output pixel; `points` as in find_taps
template <typename T, typename A>
inline __attribute__((always_inline)) void forward_pixel(
    const Problem& p, const Grid<A>& grid, const T* records, const T* value, int out_y, int out_x, const int points,
    Taps<A>& taps, T* out) {
  const int64_t record = 3 * static_cast<int64_t>(p.points);
  const int room = (points + Taps<A>::kStep - 1) / Taps<A>::kStep * Taps<A>::kStep;
  for (int begin = 0, end; begin < p.groups; begin = end) {
    end = p.groups - begin < Taps<A>::kMost / room ? p.groups : begin + Taps<A>::kMost / room;
    for (int g = begin; g < end; ++g) {
      find_taps(p, grid, records + g * record, out_y, out_x, points, taps, (g - begin) * room);
    }
    for (int g = begin; g < end; ++g) {
      const int64_t channel = static_cast<int64_t>(g) * p.group_width;
      // a zero weight times an infinite or NaN pixel: points outside must not feel it
      if (!aggregate_group<T>(p, taps, (g - begin) * room, points, value + channel, out + channel)) {
        aggregate_strictly(p, records + g * record, out_y, out_x, value + channel, out + channel);
      }
    }
  }
}

template <typename T>
void forward(const ForwardArgs& args, int64_t begin, int64_t end) {
  using A = typename Opmath<T>::type;
  const Problem& p = args.problem;
  const bool by_taps = p.points <= Taps<A>::kMost && !p.softmax;
  const Grid<A> grid(p);
  Taps<A> taps;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.out_height;
    const int out_y = static_cast<int>(line % p.out_height);
    const T* value = static_cast<const T*>(args.value) + n * p.value.n;
    const T* records = static_cast<const T*>(args.offset_mask) + n * p.offset_mask.n + out_y * p.offset_mask.h;
    T* out = static_cast<T*>(args.out) + line * p.out_width * p.channels();
    for (int out_x = 0; out_x < p.out_width; ++out_x, records += p.offset_mask.w, out += p.channels()) {
      if (by_taps && p.points == 9) {
        forward_pixel(p, grid, records, value, out_y, out_x, 9, taps, out);
      } else if (by_taps) {
        forward_pixel(p, grid, records, value, out_y, out_x, p.points, taps, out);
      } else {
        for (int g = 0; g < p.groups; ++g) {
          const int64_t channel = static_cast<int64_t>(g) * p.group_width;
          aggregate_strictly(
              p, records + 3 * static_cast<int64_t>(p.points) * g, out_y, out_x, value + channel, out + channel);
        }
      }
    }
  }
}

template <int width, typename T, typename A>
A dot(const A* __restrict__ grad, const T* __restrict__ row) {
  A partial[width];
  for (int c = 0; c < width; ++c) partial[c] = grad[c] * load(row[c]);
  for (int half = width / 2; half > 0; half /= 2) {
    for (int c = 0; c < half; ++c) partial[c] += partial[c + half];
  }
  return partial[0];
}

template <typename A>
struct PointGradient {
  A weight, x, y;
};

template <typename T, typename A>
PointGradient<A> point_gradient(const Sample<A>& s, const A* grad, const T* group, int group_width, A scale) {
  A corner_dot[4] = {};
  for (int corner = 0; corner < 4; ++corner) {
    if (s.corner[corner] < 0) continue;
    const T* row = group + s.corner[corner];
    int c = 0;
    for (; c + kChunk <= group_width; c += kChunk) corner_dot[corner] += dot<kChunk>(grad + c, row + c);
    for (; c < group_width; ++c) corner_dot[corner] += grad[c] * load(row[c]);
  }
  const A(&d)[4] = corner_dot;
  const A factor = s.weight * scale;
  return {
      s.bilinear[0] * d[0] + s.bilinear[1] * d[1] + s.bilinear[2] * d[2] + s.bilinear[3] * d[3],
      factor * ((1 - s.ly) * (d[1] - d[0]) + s.ly * (d[3] - d[2])),
      factor * ((1 - s.lx) * (d[2] - d[0]) + s.lx * (d[3] - d[1]))};
}

// one image and group at a time: its channels of grad_value belong to no other task, so sums are ordered and final
template <typename T>
bool backward(const BackwardArgs& args, int64_t begin, int64_t end) {
  using A = typename Opmath<T>::type;
  const Problem& p = args.problem;
  const int width = p.group_width;
  const A scale = static_cast<A>(p.offset_scale);
  const Strides own{0, static_cast<int64_t>(p.width) * width, width};
  const size_t plane = static_cast<size_t>(p.pixels()) * width;
  const size_t row = static_cast<size_t>(width) + p.points;
  A* grad = static_cast<A*>(malloc((row + (args.grad_value ? plane : 0)) * sizeof(A)));
  if (!grad) return false;
  A* weight_gradients = grad + width;
  A* sums = grad + row;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / p.groups;
    const int g = static_cast<int>(task % p.groups);
    const T* value = static_cast<const T*>(args.value) + n * p.value.n + static_cast<int64_t>(g) * width;
    const T* grads = static_cast<const T*>(args.grad_output) + n * p.grad_output.n + static_cast<int64_t>(g) * width;
    if (args.grad_value) memset(sums, 0, plane * sizeof(A));

    for (int64_t pixel = 0; pixel < p.out_pixels(); ++pixel) {
      const int out_y = static_cast<int>(pixel / p.out_width), out_x = static_cast<int>(pixel % p.out_width);
      const T* grad_row = grads + out_y * p.grad_output.h + out_x * p.grad_output.w;
      for (int c = 0; c < width; ++c) grad[c] = load(grad_row[c]);
      const int64_t first = static_cast<int64_t>(3) * p.points * g;
      const T* record = static_cast<const T*>(args.offset_mask) + n * p.offset_mask.n + out_y * p.offset_mask.h +
                        out_x * p.offset_mask.w + first;
      const Points<T, A> points(p, record, out_y, out_x);
      T* grad_record = args.grad_offset_mask ? static_cast<T*>(args.grad_offset_mask) +
                                                   (n * p.out_pixels() + pixel) * args.grad_offset_mask_row + first
                                             : nullptr;
      A expected = 0;
      for (int k = 0; k < p.points; ++k) {
        const Sample<A> s = points(k, p.value);
        if (grad_record) {
          const PointGradient<A> d =
              s.inside ? point_gradient(s, grad, value, width, scale) : PointGradient<A>{0, 0, 0};
          store(d.x, grad_record + 2 * k);
          store(d.y, grad_record + 2 * k + 1);
          weight_gradients[k] = d.weight;
          if (p.softmax) expected += points.weight(k) * d.weight;
        }
        if (args.grad_value && s.inside) {
          const Sample<A> target = points(k, own);
          for (int corner = 0; corner < 4; ++corner) {
            if (target.corner[corner] < 0) continue;
            const A factor = target.weight * target.bilinear[corner];
            A* __restrict__ row = sums + target.corner[corner];
            for (int c = 0; c < width; ++c) row[c] += factor * grad[c];
          }
        }
      }
      if (grad_record) {
        for (int k = 0; k < p.points; ++k) {
          const A d = p.softmax ? points.weight(k) * (weight_gradients[k] - expected) : weight_gradients[k];
          store(d, grad_record + 2 * p.points + k);
        }
        if (g + 1 == p.groups) {
          for (int64_t i = int64_t{3} * p.points; i < p.row - first; ++i) store(A{0}, grad_record + i);
        }
      }
    }

    if (args.grad_value) {
      T* out =
          static_cast<T*>(args.grad_value) + n * p.pixels() * args.grad_value_row + static_cast<int64_t>(g) * width;
      const A* sum = sums;
      for (int64_t pixel = 0; pixel < p.pixels(); ++pixel, out += args.grad_value_row, sum += width) {
        for (int c = 0; c < width; ++c) store(sum[c], out + c);
      }
    }
  }
  free(grad);
  return true;
}

void forward_any(const ForwardArgs& args, int64_t begin, int64_t end) {
  switch (args.problem.dtype) {
    case DType::float64:
      return forward<double>(args, begin, end);
    case DType::float32:
      return forward<float>(args, begin, end);
    case DType::float16:
      return forward<Half>(args, begin, end);
    case DType::bfloat16:
      return forward<BFloat16>(args, begin, end);
  }
}

bool backward_any(const BackwardArgs& args, int64_t begin, int64_t end) {
  switch (args.problem.dtype) {
    case DType::float64:
      return backward<double>(args, begin, end);
    case DType::float32:
      return backward<float>(args, begin, end);
    case DType::float16:
      return backward<Half>(args, begin, end);
    case DType::bfloat16:
      return backward<BFloat16>(args, begin, end);
  }
  return false;
}

}  // namespace

extern const CpuKernels kernels = {forward_any, backward_any};

}  // namespace DCNV4_ISA
}  // namespace yolo_dcnv4
