// element types, and vectors of channels read and written in the widest pieces
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace yolo_dcnv4 {
namespace {

template <typename T>
struct Opmath {
  using type = float;
};
template <>
struct Opmath<double> {
  using type = double;
};

__device__ __forceinline__ double to_opmath(double v) { return v; }
__device__ __forceinline__ float to_opmath(float v) { return v; }
__device__ __forceinline__ float to_opmath(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_opmath(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_opmath(typename Opmath<T>::type v);
template <>
__device__ __forceinline__ double from_opmath<double>(double v) {
  return v;
}
template <>
__device__ __forceinline__ float from_opmath<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_opmath<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_opmath<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// one of two neighbours in a word; the compiler knows which
template <typename T>
__device__ __forceinline__ float half_of(uint32_t pair, bool upper);
template <>
__device__ __forceinline__ float half_of<__half>(uint32_t pair, bool upper) {
  const __half2 both = *reinterpret_cast<const __half2*>(&pair);
  return upper ? __high2float(both) : __low2float(both);
}
template <>
__device__ __forceinline__ float half_of<__nv_bfloat16>(uint32_t pair, bool upper) {
  return __uint_as_float(upper ? pair & 0xffff0000u : pair << 16);
}

// the largest power of two up to 16 bytes that divides a vector of `bytes`
__host__ __device__ constexpr int piece_bytes(int bytes) {
  return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : bytes % 4 == 0 ? 4 : 2;
}

template <int bytes>
struct Piece;
template <>
struct Piece<16> {
  using type = uint4;
};
template <>
struct Piece<8> {
  using type = uint2;
};
template <>
struct Piece<4> {
  using type = uint32_t;
};
template <>
struct Piece<2> {
  using type = uint16_t;
};

template <typename T, int size>
union Vector {
  static constexpr int kPiece = piece_bytes(sizeof(T) * size);
  static constexpr int kPieces = static_cast<int>(sizeof(T)) * size / kPiece;
  using Type = typename Piece<kPiece>::type;

  __device__ Vector() {}
  T element[size];
  Type piece[kPieces];

  __device__ __forceinline__ typename Opmath<T>::type opmath(int i) const {
    if constexpr (sizeof(T) == 2 && size % 2 == 0) {
      return half_of<T>(reinterpret_cast<const uint32_t*>(piece)[i / 2], i % 2);
    } else {
      return to_opmath(element[i]);
    }
  }
  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) piece[i] = __ldg(reinterpret_cast<const Type*>(from) + i);
  }
  // from shared memory, or from global memory that the kernel writes too
  __device__ __forceinline__ void copy(const T* from) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) piece[i] = reinterpret_cast<const Type*>(from)[i];
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) reinterpret_cast<Type*>(to)[i] = piece[i];
  }
};

// quotient and remainder by a divisor that is fixed for a launch (Granlund and Montgomery 1994), dividend < 2^31
struct Divider {
  uint32_t divisor, multiplier, shift;

  Divider() = default;
  __host__ explicit Divider(uint32_t d) : divisor(d) {
    shift = 0;
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t n) const { return (__umulhi(n, multiplier) + n) >> shift; }
};

}  // namespace
}  // namespace yolo_dcnv4
