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

struct ColumnOrder {
  uint32_t first, second;  // the parity of the columns, 0 or 1
  float first_magic, second_magic;

  // for the thread's vector of its pixel
  __device__ __forceinline__ explicit ColumnOrder(unsigned vector) {
    const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
    first = (thread - vector) / kOrderPeriod % 2;
    second = first ^ 1;
    first_magic = __uint_as_float(kMagicBits | second), second_magic = __uint_as_float(kMagicBits | first);
  }
};

// a tent whose columns come in an order of the thread's own
struct OrderedTent {
  float first, second;
  uint32_t first_index, second_index;  // kMagicBits + pixel

  __device__ __forceinline__ OrderedTent(const Axis& axis, const ColumnOrder& order, float position) {
    const float clamped = clamp(axis, position);
    // of the pixel and its right neighbour the one of this parity
    first_index = (__float_as_uint(__fadd_rd(clamped, order.first_magic)) & ~1u) | order.first;
    second_index = (__float_as_uint(__fadd_rd(clamped, order.second_magic)) & ~1u) | order.second;
    first = weight(position, first_index);
    second = weight(position, second_index);
  }
  static __device__ __forceinline__ float weight(float position, uint32_t index) {
    return saturating_difference(1.f, fabsf(position - (__uint_as_float(index) - kMagic)));
  }
};

}  // namespace
}  // namespace yolo_dcnv4
