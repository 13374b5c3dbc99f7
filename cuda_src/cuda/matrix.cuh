// products of 16 x 16 matrices on tensor cores, float32 sums; lane = 4 * g + t as in PTX's fragments of mma.m16n8
#pragma once

#include "vector.cuh"

namespace yolo_dcnv4 {
namespace {

constexpr int kSide = 16;  // of a matrix

// Entry [tile][0..1] of a sum belongs to row g, column 8 * tile + 2t and the next, entry [tile][2..3] to row g + 8. The
// 16 steps of the inner dimension may come in any order that both factors share: lane t takes steps 4t to 4t + 3.
using Sum = float[2][4];

struct Lane {
  int g, t;

  __device__ __forceinline__ Lane() : g(threadIdx.x % 32 / 4), t(threadIdx.x % 4) {}
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

template <typename T>
struct Mma;
template <>
struct Mma<__half> {
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t bits) {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  }
};
template <>
struct Mma<__nv_bfloat16> {
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t bits) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
  }
};

// factors of two bytes an entry
template <typename T>
struct Matrix {
  using M = Mma<T>;

  // the two 16-byte pieces of a row change places in every other four rows, so that eight rows meet no bank twice
  static __device__ __forceinline__ int swizzle(int row) { return row >> 2 & 1; }

  static __device__ __forceinline__ uint32_t address(const T* entry) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(entry));
  }

  // four steps of a row
  using Part = uint2;

  struct Rows {
    uint32_t bits[4];

    // of rows g and g + 8
    __device__ __forceinline__ Rows(const Part& a, const Part& b) : bits{a.x, b.x, a.y, b.y} {}
  };

  // float32 rows as sums of two terms each: what one term of T would round away stays
  struct FineRows {
    uint32_t high[4], low[4];

    __device__ __forceinline__ FineRows(const float4& a, const float4& b) {
      split(0, a.x, a.y), split(1, b.x, b.y), split(2, a.z, a.w), split(3, b.z, b.w);
    }
    __device__ __forceinline__ void split(int i, float x, float y) {
      high[i] = M::pack(x, y);
      const float2 rounded = M::unpack(high[i]);
      low[i] = M::pack(x - rounded.x, y - rounded.y);
    }
  };

  struct Columns {
    uint32_t bits[2][2];

    // from a swizzled matrix whose rows are the columns of this one
    __device__ __forceinline__ void load(const T* matrix, const Lane& lane) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const int row = 8 * tile + lane.g;
        const int piece = lane.t / 2 ^ swizzle(row);
        const Part part = *reinterpret_cast<const Part*>(matrix + row * kSide + 8 * piece + 4 * (lane.t % 2));
        bits[tile][0] = part.x, bits[tile][1] = part.y;
      }
    }
    // from a swizzled matrix, whose row 8 * j + 2 * t + e is step 4 * t + 2 * j + e of the inner dimension
    __device__ __forceinline__ void load_steps(const T* matrix, const Lane&) {
      const int lane = threadIdx.x % 32;
      const int row = lane & 15;
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(bits[0][0]), "=r"(bits[0][1]), "=r"(bits[1][0]), "=r"(bits[1][1])
                   : "r"(address(matrix + row * kSide + 8 * (lane / 16 ^ swizzle(row))))
                   : "memory");
    }
  };

  static __device__ __forceinline__ void multiply(Sum& sum, const Rows& a, const Columns& b) {
    M::multiply(sum[0], a.bits, b.bits[0]);
    M::multiply(sum[1], a.bits, b.bits[1]);
  }
  static __device__ __forceinline__ void multiply(Sum& sum, const FineRows& a, const Columns& b) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      M::multiply(sum[tile], a.low, b.bits[tile]);
      M::multiply(sum[tile], a.high, b.bits[tile]);
    }
  }
};

// The bits of a tf32 term. Products ignore the others, and a compiler that knew would copy the float32 number to where
// a product wants its high term: a move more for each.
__constant__ uint32_t high_term_bits = 0xffffe000u;

// float32 as sums of two tf32 terms; the product of the two small ones is lost in the rounding of float32
template <>
struct Matrix<float> {
  struct Terms {
    uint32_t high[2][4], low[2][4];

    __device__ __forceinline__ void split(int i, int j, float x) {
      high[i][j] = __float_as_uint(x) & high_term_bits;
      low[i][j] = __float_as_uint(x - __uint_as_float(high[i][j])) & 0xffffe000u;
    }
    __device__ __forceinline__ void split(int i, const float4& v) {
      split(i, 0, v.x), split(i, 1, v.y), split(i, 2, v.z), split(i, 3, v.w);
    }
  };

  static __device__ __forceinline__ int swizzle(int row) { return row >> 1 & 3; }

  using Part = float4;

  struct Rows : Terms {
    __device__ __forceinline__ Rows(const Part& a, const Part& b) { split(0, a), split(1, b); }

    using Terms::split;
  };
  using FineRows = Rows;

  struct Columns : Terms {
    __device__ __forceinline__ void load(const float* matrix, const Lane& lane) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const int row = 8 * tile + lane.g;
        split(tile, *reinterpret_cast<const float4*>(matrix + row * kSide + 4 * (lane.t ^ swizzle(row))));
      }
    }
    __device__ __forceinline__ void load_steps(const float* matrix, const Lane& lane) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int row = 8 * (step / 2) + 2 * lane.t + step % 2;
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const int piece = (2 * tile + lane.g / 4) ^ swizzle(row);
          split(tile, step, matrix[row * kSide + 4 * piece + lane.g % 4]);
        }
      }
    }
  };

  static __device__ __forceinline__ void multiply(
      float (&sum)[4], const uint32_t (&a)[2][4], const uint32_t (&b)[4], int step) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0][step]), "r"(a[1][step]), "r"(a[0][step + 1]), "r"(a[1][step + 1]), "r"(b[step]), "r"(b[step + 1]));
  }
  static __device__ __forceinline__ void multiply(Sum& sum, const Rows& a, const Columns& b) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int step = 0; step < 4; step += 2) {
        multiply(sum[tile], a.low, b.high[tile], step);
        multiply(sum[tile], a.high, b.low[tile], step);
        multiply(sum[tile], a.high, b.high[tile], step);
      }
    }
  }
};

#endif

}  // namespace
}  // namespace yolo_dcnv4
