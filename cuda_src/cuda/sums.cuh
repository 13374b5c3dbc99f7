// where grad_value is summed up before it is rounded to its own type
#pragma once

#include <math.h>
#include <stdint.h>

namespace yolo_dcnv4 {
namespace {

// sums of grad_value by floating-point reductions, in no fixed order
template <typename Accumulator>
struct FloatSums {
  static constexpr bool kOrdered = false;

  Accumulator* sums;

  __device__ __forceinline__ FloatSums prepared() const { return *this; }

  template <int kChannels>
  __device__ __forceinline__ void add(int64_t index, const Accumulator (&grad)[kChannels], Accumulator factor) const {
#if __CUDA_ARCH__ >= 900
    if constexpr (sizeof(Accumulator) == 4 && kChannels % 4 == 0) {
#pragma unroll
      for (int c = 0; c < kChannels; c += 4) {
        atomicAdd(
            reinterpret_cast<float4*>(sums + index + c),
            make_float4(factor * grad[c], factor * grad[c + 1], factor * grad[c + 2], factor * grad[c + 3]));
      }
    } else
#endif
    {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) atomicAdd(sums + index + c, factor * grad[c]);
    }
  }

  __device__ __forceinline__ Accumulator finished(int64_t index) const { return sums[index]; }
};

// bit patterns of the largest finite magnitudes: those of non-negative numbers order as integers
struct Bounds {
  unsigned long long grad, weight;
};

__device__ __forceinline__ float number(unsigned long long bits, float) {
  return __uint_as_float(static_cast<uint32_t>(bits));
}
__device__ __forceinline__ double number(unsigned long long bits, double) { return __longlong_as_double(bits); }
__device__ __forceinline__ unsigned long long pattern(float v) { return __float_as_uint(fabsf(v)); }
__device__ __forceinline__ unsigned long long pattern(double v) { return __double_as_longlong(fabs(v)); }

// Sums in 64-bit fixed point: integer addition is associative, so any order gives the same bits. The unit is chosen so
// that the largest possible sum, max|grad_output| * max|weight| * number of samples, stays below 2^60. A contribution
// that is not finite lifts its sum to 2^62, from where the others cannot bring it back below 2^61: it comes out as NaN.
template <typename Accumulator>
struct FixedPointSums {
  static constexpr bool kOrdered = true;  // what is added must not depend on the order of the threads either
  static constexpr long long kNotFinite = 1ll << 62;

  unsigned long long* sums;
  const Bounds* bounds;
  Accumulator samples;
  bool softmax;
  int unit;           // exponent of the fixed point's unit
  Accumulator scale;  // 2^-unit

  __device__ __forceinline__ FixedPointSums prepared() const {
    FixedPointSums ready = *this;
    const Accumulator grad = number(bounds->grad, Accumulator{});
    const Accumulator weight = softmax ? Accumulator{1} : number(bounds->weight, Accumulator{});
    ready.unit = 0;
    if (grad > 0 && weight > 0) {
      const int wanted = ilogb(grad) + ilogb(weight) + ilogb(samples) + 3 - 60;
      // the scale must stay finite
      const int room = sizeof(Accumulator) == 4 ? -126 : -1022;
      ready.unit = wanted > room ? wanted : room;
    }
    ready.scale = scalbn(Accumulator{1}, -ready.unit);
    return ready;
  }

  template <int kChannels>
  __device__ __forceinline__ void add(int64_t index, const Accumulator (&grad)[kChannels], Accumulator factor) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const Accumulator contribution = factor * grad[c];
      if (isfinite(contribution)) {
        atomicAdd(sums + index + c, static_cast<unsigned long long>(llrint(contribution * scale)));
      } else {
        atomicMax(reinterpret_cast<long long*>(sums + index + c), kNotFinite);
      }
    }
  }

  __device__ __forceinline__ Accumulator finished(int64_t index) const {
    const long long sum = static_cast<long long>(sums[index]);
    return sum > kNotFinite / 2 ? static_cast<Accumulator>(NAN) : scalbn(static_cast<Accumulator>(sum), unit);
  }
};

}  // namespace
}  // namespace yolo_dcnv4
