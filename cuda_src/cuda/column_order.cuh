// The order in which a thread takes two neighbouring columns. Where pixels are an odd multiple of half a cache line
// apart, whether a column is even or odd says in which banks of L1 its pixels lie; each thread starts with the kind
// that is not in the way of the others.
#pragma once

#include "patches.cuh"
#include "window3x3.cuh"

namespace yolo_dcnv4 {
namespace {

constexpr int kOrderPeriod = kLineVectors / 2;  // vectors of a half cache line: slices are a multiple of them

bool column_order_pays(const Problem& p, int element_bytes) {
  constexpr int kLine = kLineVectors * 16;
  return p.width > 1 && p.value.w * element_bytes % kLine == kLine / 2 && p.value.h * element_bytes % kLine == 0;
}

// Adding one of these numbers to a position leaves in the low bits of a float, as kMagic does, its floor or the next
// pixel.
struct ColumnOrder {
  float first, second;  // the last bit is the parity of the other column

  // for the thread's vector of its pixel
  __device__ __forceinline__ explicit ColumnOrder(unsigned vector) {
    const uint32_t parity = (threadIdx.y * blockDim.x + threadIdx.x - vector) / kOrderPeriod % 2;
    first = __uint_as_float(kMagicBits | (parity ^ 1)), second = __uint_as_float(kMagicBits | parity);
    // hides where they come from, or they are computed anew for each point
    asm volatile("" : "+f"(first), "+f"(second));
  }
};

// a tent whose columns come in an order of the thread's own
struct OrderedTent {
  float first, second;
  uint32_t first_index, second_index;  // kMagicBits + pixel

  __device__ __forceinline__ OrderedTent(const Axis& axis, const ColumnOrder& order, float position) {
    const float clamped = clamp(axis, position);
    first_index = column(clamped, order.first, order.second);
    second_index = column(clamped, order.second, order.first);
    first = weight(position, first_index);
    second = weight(position, second_index);
  }
  // of the pixel and its right neighbour the one of this kind
  static __device__ __forceinline__ uint32_t column(float clamped, float own, float other) {
    // all bits but the last, and the last one of the other number
    uint32_t index;
    asm("lop3.b32 %0, %1, %2, %3, 0xe2;"
        : "=r"(index)
        : "r"(__float_as_uint(__fadd_rd(clamped, own))), "r"(~1u), "r"(__float_as_uint(other)));
    return index;
  }
  static __device__ __forceinline__ float weight(float position, uint32_t index) {
    return saturating_difference(1.f, fabsf(position - (__uint_as_float(index) - kMagic)));
  }
};

}  // namespace
}  // namespace yolo_dcnv4
