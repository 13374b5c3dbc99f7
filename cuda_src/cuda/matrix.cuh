// products of 16 x 16 matrices on tensor cores, float32 sums; lane = 4 * g + t as in PTX's fragments of mma.m16n8
#pragma once

#include "lanes.cuh"
#include "vector.cuh"

namespace yolo_dcnv4 {
namespace {

constexpr int kSide = 16;  // of a matrix

// Entry [tile][0..1] of a sum belongs to row g, column 8 * tile + 2t and the next, entry [tile][2..3] to row g + 8. The
// 16 steps of the inner dimension may come in any order that both factors share: lane t takes steps 4t to 4t + 3.
// Columns need not be in order either.
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

  // Where a matrix of gradients has its entries. Columns lie in the order in which a lane's sums of products come to be
  // four neighbouring ones; the two 16-byte pieces of a row change places in every other four rows, so that eight rows
  // meet no bank twice.
  static __device__ __forceinline__ int entry(int row, int column) {
    return row * kSide + 8 * ((column >> 1 ^ row >> 2) & 1) + 2 * (column / 4) + column % 2;
  }
  // columns from a multiple of eight on
  static __device__ __forceinline__ void store(T* matrix, int row, int column, const Vector<T, 8>& v) {
    const uint4& bits = v.piece[0];
    *reinterpret_cast<uint2*>(matrix + entry(row, column)) = make_uint2(bits.x, bits.z);
    *reinterpret_cast<uint2*>(matrix + entry(row, column + 2)) = make_uint2(bits.y, bits.w);
  }

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

    // from a matrix of gradients whose rows are the columns of this one
    __device__ __forceinline__ void load(const T* matrix, const Lane& lane) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          bits[tile][pair] =
              *reinterpret_cast<const uint32_t*>(matrix + entry(8 * tile + lane.g, 4 * lane.t + 2 * pair));
        }
      }
    }
    // from a matrix of gradients, whose row 8 * j + 2 * t + e is step 4 * t + 2 * j + e of the inner dimension
    template <bool kApart>
    __device__ __forceinline__ void load_steps(const T* matrix, const Lane&) {
      const int lane = threadIdx.x % 32;
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(bits[0][0]), "=r"(bits[0][1]), "=r"(bits[1][0]), "=r"(bits[1][1])
                   : "r"(address(matrix + entry(lane & 15, lane / 16 * 2)))
                   : "memory");
    }
  };

  // A lane's sums in row g + 8 * half, of columns that load_steps<kApart> gave: columns 4t to 4t + 3, or with kApart t,
  // t + 4, t + 8 and t + 12.
  template <bool kApart>
  static __device__ __forceinline__ void columns(const Sum& sum, int half, const Lane& lane, float (&to)[4]) {
    const float four[4] = {sum[0][2 * half], sum[0][2 * half + 1], sum[1][2 * half], sum[1][2 * half + 1]};
    if constexpr (kApart) {
      transpose(four, to, lane.t);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c) to[c] = four[c];
    }
  }

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

  // As above. Lanes of one load ask for rows 2t or 2t + 1: each lies in other banks.
  static __device__ __forceinline__ int entry(int row, int column) {
    return (row & ~1) * kSide + kSide * ((row ^ row >> 2) & 1) + (column ^ (row & 2) << 2);
  }
  static __device__ __forceinline__ void store(float* matrix, int row, int column, const Vector<float, 4>& v) {
    v.store(matrix + entry(row, column));
  }

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
        split(tile, *reinterpret_cast<const float4*>(matrix + entry(8 * tile + lane.g, 4 * lane.t)));
      }
    }
    template <bool kApart>
    __device__ __forceinline__ void load_steps(const float* matrix, const Lane& lane) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int row = 8 * (step / 2) + 2 * lane.t + step % 2;
        if constexpr (kApart) {
#pragma unroll
          for (int tile = 0; tile < 2; ++tile) {
            split(tile, step, matrix[entry(row, 8 * tile + 4 * (lane.g % 2) + lane.g / 2)]);
          }
        } else {
          const float2 pair = *reinterpret_cast<const float2*>(matrix + entry(row, 2 * lane.g));
          split(0, step, pair.x), split(1, step, pair.y);
        }
      }
    }
  };

  template <bool kApart>
  static __device__ __forceinline__ void columns(const Sum& sum, int half, const Lane&, float (&to)[4]) {
#pragma unroll
    for (int c = 0; c < 4; ++c) to[c] = kApart ? sum[c / 2][2 * half + c % 2] : sum[c % 2][2 * half + c / 2];
  }

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
