// from a Problem's dtype and alignment to template arguments
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>
#include <type_traits>

#include "../dcnv4.h"
#include "vector.cuh"

namespace yolo_dcnv4 {
namespace {

struct Operand {
  const void* start;
  Strides strides;
};

// elements of the widest vector, up to 16 bytes, that divides the groups and finds every address aligned
inline int vector_width(const Problem& p, int element_bytes, std::initializer_list<Operand> operands) {
  int width = 16 / element_bytes;
  const auto fits = [&] {
    if (p.group_width % width != 0) return false;
    for (const Operand& o : operands) {
      if (reinterpret_cast<uintptr_t>(o.start) % (width * element_bytes) != 0) return false;
      if (o.strides.n % width != 0 || o.strides.h % width != 0 || o.strides.w % width != 0) return false;
    }
    return true;
  };
  while (width > 1 && !fits()) width /= 2;
  return width;
}

template <typename T>
struct Element {
  using type = T;
};

template <typename T, typename Launch>
cudaError_t with_vector(const Problem& p, std::initializer_list<Operand> operands, const Launch& launch) {
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  switch (vector_width(p, sizeof(T), operands)) {
    case 8:
      return launch(Element<T>{}, std::integral_constant < int, kWidest<8 ? kWidest : 8>{});
    case 4:
      return launch(Element<T>{}, std::integral_constant < int, kWidest<4 ? kWidest : 4>{});
    case 2:
      return launch(Element<T>{}, std::integral_constant<int, 2>{});
    default:
      return launch(Element<T>{}, std::integral_constant<int, 1>{});
  }
}

// calls launch(Element<T>{}, channels a thread) for the problem's dtype and the widest vectors its operands allow
template <typename Launch>
cudaError_t dispatch(const Problem& p, std::initializer_list<Operand> operands, const Launch& launch) {
  switch (p.dtype) {
    case DType::float64:
      return with_vector<double>(p, operands, launch);
    case DType::float32:
      return with_vector<float>(p, operands, launch);
    case DType::float16:
      return with_vector<__half>(p, operands, launch);
    case DType::bfloat16:
      return with_vector<__nv_bfloat16>(p, operands, launch);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace yolo_dcnv4
