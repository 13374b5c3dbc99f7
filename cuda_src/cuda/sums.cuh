// where grad_value is summed up before it is rounded to its own type
#pragma once

#include <math.h>
#include <stdint.h>

#include "lanes.cuh"
#include "launch.h"
#include "vector.cuh"

namespace yolo_dcnv4 {
namespace {

// sums of grad_value by floating-point reductions, in no fixed order
template <typename Accumulator>
struct FloatSums {
  static constexpr bool kOrdered = false;

  Accumulator* sums;
  int64_t row;  // elements from one pixel to the next

  __device__ __forceinline__ FloatSums prepared() const { return *this; }

  // whether one instruction adds several neighbours
  template <int kChannels>
  static __device__ constexpr bool adds_vectors() {
#if __CUDA_ARCH__ >= 900
    return sizeof(Accumulator) == 4 && kChannels % 4 == 0;
#else
    return false;
#endif
  }

  template <int kChannels>
  __device__ __forceinline__ void add(int64_t index, const Accumulator (&grad)[kChannels], Accumulator factor) const {
    if constexpr (adds_vectors<kChannels>()) {
#pragma unroll
      for (int c = 0; c < kChannels; c += 4) {
        atomicAdd(
            reinterpret_cast<float4*>(sums + index + c),
            make_float4(factor * grad[c], factor * grad[c + 1], factor * grad[c + 2], factor * grad[c + 3]));
      }
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) atomicAdd(sums + index + c, factor * grad[c]);
    }
  }

  // the same for sums `step` apart
  template <int kChannels>
  __device__ __forceinline__ void add_spread(
      int64_t index, int step, const Accumulator (&grad)[kChannels], Accumulator factor) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) atomicAdd(sums + index + c * step, factor * grad[c]);
  }

  // a sum of each lane that has one, by a whole warp
  template <int kChannels>
  __device__ __forceinline__ void add_whole_warp(
      int64_t index, const Accumulator (&sum)[kChannels], bool has_one) const {
    if (has_one) add<kChannels>(index, sum, 1);
  }

  // the sums of kCount neighbours; index is a multiple of kCount
  template <int kCount>
  __device__ __forceinline__ void finished(int64_t index, Accumulator (&to)[kCount]) const {
    Vector<Accumulator, kCount> sum;
    sum.copy(sums + index);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = sum.element[i];
  }
};

// bit patterns of the largest finite magnitudes: those of non-negative numbers order as integers
struct Bounds {
  unsigned long long grad, weight;
};
static_assert(sizeof(Bounds) == 8 * kBounds, "room for them is made by their number");

__device__ __forceinline__ float number(unsigned long long bits, float) {
  return __uint_as_float(static_cast<uint32_t>(bits));
}
__device__ __forceinline__ double number(unsigned long long bits, double) { return __longlong_as_double(bits); }

// Sums in 64-bit fixed point: integer addition is associative, so any order gives the same bits. The unit is chosen so
// that the largest possible sum, max|grad_output| * max|weight| * number of samples, stays below 2^60. A contribution
// that is not finite lifts its sum to 2^62, from where the others cannot bring it back below 2^61: it comes out as NaN.
template <typename Accumulator>
struct FixedPointSums {
  static constexpr bool kOrdered = true;  // what is added must not depend on the order of the threads either
  static constexpr long long kNotFinite = 1ll << 62;

  unsigned long long* sums;
  int64_t row;  // elements from one pixel to the next
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

  __device__ __forceinline__ unsigned long long in_units(Accumulator finite) const {
    return static_cast<unsigned long long>(llrint(finite * scale));
  }

  template <int kChannels>
  __device__ __forceinline__ void add(int64_t index, const Accumulator (&grad)[kChannels], Accumulator factor) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const Accumulator contribution = factor * grad[c];
      if (isfinite(contribution)) {
        atomicAdd(sums + index + c, in_units(contribution));
      } else {
        atomicMax(reinterpret_cast<long long*>(sums + index + c), kNotFinite);
      }
    }
  }

  template <int kChannels>
  static __device__ constexpr bool adds_vectors() {
    return false;
  }

  template <int kChannels>
  __device__ __forceinline__ void add_spread(
      int64_t index, int step, const Accumulator (&grad)[kChannels], Accumulator factor) const {
    bool finite = true;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) finite &= isfinite(factor * grad[c]);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (finite) {
        atomicAdd(sums + index + c * step, in_units(factor * grad[c]));
      } else {
        const Accumulator one[1] = {grad[c]};
        add<1>(index + c * step, one, factor);
      }
    }
  }

  // sums kStep apart, of which some are wanted; where all are finite, as nearly always, they go the short way
  template <int kStep, int kCount>
  __device__ __forceinline__ void add_apart(
      int64_t index, const Accumulator (&sum)[kCount], const bool (&wanted)[kCount]) const {
    bool finite = true;
    unsigned long long fixed[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      finite &= isfinite(sum[i]);
      fixed[i] = in_units(sum[i]);
    }
    if (finite) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (wanted[i]) atomicAdd(sums + index + i * kStep, fixed[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Accumulator one[1] = {sum[i]};
        if (wanted[i]) add<1>(index + i * kStep, one, 1);
      }
    }
  }

  // neighbouring lanes exchange channels, so that each addition of the warp goes to neighbouring addresses
  template <int kChannels>
  __device__ __forceinline__ void add_whole_warp(
      int64_t index, const Accumulator (&sum)[kChannels], bool has_one) const {
    const int lane = threadIdx.x % kChannels;
    Accumulator channel[kChannels];
    transpose(sum, channel, lane);
#pragma unroll
    for (int from = 0; from < kChannels; ++from) {
      const bool exists = __shfl_sync(0xffffffffu, has_one, from, kChannels);
      const int64_t start = __shfl_sync(0xffffffffu, index, from, kChannels);
      const Accumulator one[1] = {channel[from]};
      if (exists) add<1>(start + lane, one, 1);
    }
  }

  template <int kCount>
  __device__ __forceinline__ void finished(int64_t index, Accumulator (&to)[kCount]) const {
    Vector<unsigned long long, kCount> bits;
    bits.copy(sums + index);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const long long sum = static_cast<long long>(bits.element[i]);
      to[i] = sum > kNotFinite / 2 ? static_cast<Accumulator>(NAN) : scalbn(static_cast<Accumulator>(sum), unit);
    }
  }
};

// calls launch(sums) with the sums that args ask for; A is the type of the accumulation
template <typename A, typename Launch>
cudaError_t with_sums(const CudaBackwardArgs& args, const Launch& launch) {
  const Problem& p = args.problem;
  if (args.deterministic && args.grad_value) {
    const auto samples = static_cast<A>(p.out_pixels()) * p.points;
    const auto* bounds = static_cast<const Bounds*>(args.bounds);
    auto* sums = static_cast<unsigned long long*>(args.sums);
    return launch(FixedPointSums<A>{sums, p.channels(), bounds, samples, p.softmax, 0, 1});
  }
  if (args.sums) return launch(FloatSums<A>{static_cast<A*>(args.sums), p.channels()});
  return launch(FloatSums<A>{static_cast<A*>(args.grad_value), args.grad_value_row});
}

}  // namespace
}  // namespace yolo_dcnv4
