// the numbers that kernels read and write, and the types in which they compute
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// the kernels are compiled once for each instruction set, so they include nothing with shared inline functions: the
// linker could keep the copy with wide instructions for all of them
#ifndef DCNV4_ISA
#define DCNV4_ISA baseline
#endif

namespace yolo_dcnv4 {
namespace DCNV4_ISA {
namespace {

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
#elif defined(__ARM_FP16_FORMAT_IEEE)
  __fp16 half;
  memcpy(&half, &v.bits, sizeof half);
  return half;
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
#elif defined(__ARM_FP16_FORMAT_IEEE)
  const __fp16 half = static_cast<__fp16>(v);
  memcpy(&out->bits, &half, sizeof half);
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

template <typename T, typename U>
constexpr bool kSame = false;
template <typename T>
constexpr bool kSame<T, T> = true;

}  // namespace
}  // namespace DCNV4_ISA
}  // namespace yolo_dcnv4
