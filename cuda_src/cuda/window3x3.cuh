// the usual window, 3 x 3 points, in few instructions: records read in words, borders without branches
#pragma once

#include <math.h>

#include "sampling.cuh"

namespace yolo_dcnv4 {
namespace {

// the 27 entries of a 3 x 3 window's record
template <typename T>
struct Record3x3 {
  T element[27];

  __device__ __forceinline__ explicit Record3x3(const T* from) {
#pragma unroll
    for (int i = 0; i < 27; ++i) element[i] = __ldg(from + i);
  }
  __device__ __forceinline__ float operator[](int i) const { return to_opmath(element[i]); }
  // whether all offsets are zero
  __device__ __forceinline__ bool unmoved() const {
    bool zero = true;
#pragma unroll
    for (int i = 0; i < 18; ++i) zero = zero && to_opmath(element[i]) == 0;
    return zero;
  }
};

// two-byte entries come as aligned words, shifted where the record starts in the middle of one
template <typename T>
struct PackedRecord3x3 {
  uint32_t word[14];

  __device__ __forceinline__ explicit PackedRecord3x3(const T* from) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(from);
    const uint32_t shift = (address & 2) * 8;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
#pragma unroll
    for (int i = 0; i < 13; ++i) word[i] = __ldg(words + i);
    // never a byte past the record
    word[13] = shift ? __ldg(words + 13) : __ldg(reinterpret_cast<const unsigned short*>(from) + 26);
#pragma unroll
    for (int i = 0; i < 13; ++i) word[i] = __funnelshift_r(word[i], word[i + 1], shift);
    word[13] >>= shift;
  }
  __device__ __forceinline__ float operator[](int i) const { return half_of<T>(word[i / 2], i % 2); }
  __device__ __forceinline__ bool unmoved() const {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 9; ++i) bits |= word[i];
    return (bits & 0x7fff7fffu) == 0;
  }
};
template <>
struct Record3x3<__half> : PackedRecord3x3<__half> {
  using PackedRecord3x3::PackedRecord3x3;
};
template <>
struct Record3x3<__nv_bfloat16> : PackedRecord3x3<__nv_bfloat16> {
  using PackedRecord3x3::PackedRecord3x3;
};

__device__ __forceinline__ float saturating_difference(float a, float b) {
  float difference;
  asm("sub.sat.f32 %0, %1, %2;" : "=f"(difference) : "f"(a), "f"(b));
  return difference;
}

// where the window's three columns, or rows, lie without offsets: as Position says, but for the spacing's rounding
struct Lines {
  float at[3];

  __device__ __forceinline__ Lines(float center, float spacing) : at{center - spacing, center, center + spacing} {}
};

// Bilinear weights as tents around two neighbouring columns that always lie inside the image: the weight of pixel p is
// max(0, 1 - |x - p|), so points at and beyond the border need no case of their own. NaN gives zero weights.
struct Axis {
  float last;           // largest position whose floor leaves room for the second neighbour
  float second_exists;  // 1, or -1 where the image is one pixel wide
  float second_slope;   // 1, or 0 there
  int64_t step;         // bytes to the second neighbour
  uint32_t bytes;       // from a pixel to the next
  float spacing;        // pixels from a point of the window to the next
};

// both, with what kernels would otherwise compute in every thread
struct Axes {
  Axis y, x;
  uint32_t origin;  // takes kMagicBits out of the bytes to a pixel

  Axes(const Problem& p, int element_bytes);
};

// adding 2^23, rounding down, leaves the floor of a position below 2^22 in the low bits
constexpr float kMagic = 8388608.f;
constexpr uint32_t kMagicBits = 0x4b000000u;

// the order of non-negative numbers is that of their bits, and negative ones have negative bits
__device__ __forceinline__ float clamp(const Axis& axis, float position) {
  return __int_as_float(__vimin_s32_relu(__float_as_int(position), __float_as_int(axis.last)));
}

struct Tent {
  float first, second;
  float distance;  // from the first of the two columns
  uint32_t index;  // kMagicBits + pixel

  __device__ __forceinline__ Tent(const Axis& axis, float position) {
    const float shifted = __fadd_rd(clamp(axis, position), kMagic);
    distance = position - (shifted - kMagic);
    first = saturating_difference(1.f, fabsf(distance));
    second = saturating_difference(axis.second_exists, fabsf(distance - 1.f));
    index = __float_as_uint(shifted);
  }
};

// derivative of a tent's weights; at a pixel it is the one on the right, outside and for NaN it is zero
struct Slope {
  float first, second;

  __device__ __forceinline__ Slope(const Axis& axis, const Tent& tent) {
    constexpr uint32_t kSign = 0x80000000u;
    // the sum turns -0 into 0
    const float d = tent.distance + 0.f;
    const uint32_t right_of_first = ~__float_as_uint(d) & kSign, right_of_second = ~__float_as_uint(d - 1.f) & kSign;
    first = fabsf(d) < 1.f ? __uint_as_float(__float_as_uint(1.f) | right_of_first) : 0.f;
    // bit patterns of [0, 2)
    const bool near_second = __float_as_uint(d) < __float_as_uint(2.f);
    second = near_second ? __uint_as_float(__float_as_uint(axis.second_slope) | right_of_second) : 0.f;
  }
};

// addresses of a sample's corners; its first one lies less than 2^32 bytes from the image's start
template <typename T>
struct Corners {
  const char* image;
  uint32_t row, column, start;
  int64_t down, right;

  __device__ __forceinline__ Corners(const Axes& axes, const T* image, int channel)
      : image(reinterpret_cast<const char*>(image)),
        row(axes.y.bytes),
        column(axes.x.bytes),
        // unsigned arithmetic wraps the magic away
        start(channel * static_cast<uint32_t>(sizeof(T)) + axes.origin),
        down(axes.y.step),
        right(axes.x.step) {}
  __device__ __forceinline__ void of(const Tent& y, const Tent& x, const T* (&corner)[4]) const {
    const char* first = image + (y.index * row + (x.index * column + start));
    corner[0] = reinterpret_cast<const T*>(first);
    corner[1] = reinterpret_cast<const T*>(first + right);
    corner[2] = reinterpret_cast<const T*>(first + down);
    corner[3] = reinterpret_cast<const T*>(first + down + right);
  }
  // the same with two columns that need not be neighbours in this order
  template <typename Columns>
  __device__ __forceinline__ void of(const Tent& y, const Columns& x, const T* (&corner)[4]) const {
    const uint32_t line = y.index * row + start;
    const char* first = image + (x.first_index * column + line);
    const char* second = image + (x.second_index * column + line);
    corner[0] = reinterpret_cast<const T*>(first);
    corner[1] = reinterpret_cast<const T*>(second);
    corner[2] = reinterpret_cast<const T*>(first + down);
    corner[3] = reinterpret_cast<const T*>(second + down);
  }
};

Axis make_axis(int size, int64_t stride_bytes, double spacing) {
  const bool wide = size > 1;
  return {
      wide ? nextafterf(static_cast<float>(size - 1), 0.f) : 0.f,
      wide ? 1.f : -1.f,
      wide ? 1.f : 0.f,
      wide ? stride_bytes : 0,
      static_cast<uint32_t>(stride_bytes),
      static_cast<float>(spacing)};
}

Axes::Axes(const Problem& p, int element_bytes)
    : y(make_axis(p.height, p.value.h * element_bytes, p.window.dilation_h * p.offset_scale)),
      x(make_axis(p.width, p.value.w * element_bytes, p.window.dilation_w * p.offset_scale)),
      origin(0u - kMagicBits * (y.bytes + x.bytes)) {}

bool fits_3x3(const Problem& p, int element_bytes) {
  const int64_t bytes = ((p.height - 1) * p.value.h + (p.width - 1) * p.value.w + p.channels()) * element_bytes;
  return p.window.kernel_h == 3 && p.window.kernel_w == 3 && !p.remove_center && p.height < (1 << 22) &&
         p.width < (1 << 22) && bytes < (int64_t{1} << 32);
}

}  // namespace
}  // namespace yolo_dcnv4
