// A tile's records and the input around it in shared memory: how they come there, and how threads read them.
#pragma once

#include "async_copy.cuh"
#include "bulk_copy.h"
#include "forward_tile.h"
#include "sampling.cuh"
#include "vector.cuh"

namespace yolo_dcnv4 {
namespace {

constexpr int kRowBytes = kRegionWidth * kLineBytes;

struct TileLayout {
  ForwardTile tile;
  int batch, out_height, channels;
  int record_w, record_h, entries;
  bool in_bulk, on_pixels;
  float spacing_x, spacing_y;  // of the window's points
  Divider by_lines, by_parts_a_group, by_tile_w, by_pixels, by_record_pieces;
};

// hides where a value comes from: what is read from shared memory by it is not read before
__device__ __forceinline__ void keep(uint32_t& v) { asm volatile("" : "+r"(v)::"memory"); }

// a staged piece of 16 bytes
template <typename T>
__device__ __forceinline__ Vector<T, 16 / sizeof(T)> load_piece(uint32_t from) {
  Vector<T, 16 / sizeof(T)> v;
  uint4& bits = v.piece[0];
  asm("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "r"(from));
  return v;
}

// a staged record, whose entries are read where they are used
template <typename T>
struct StagedRecord {
  uint32_t address;

  // as many bits as an entry has
  __device__ __forceinline__ uint32_t bits(int i) const {
    uint32_t v;
    if constexpr (sizeof(T) == 4) {
      asm("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address + i * 4));
    } else {
      asm("{.reg .b16 v; ld.shared.b16 v, [%1]; cvt.u32.u16 %0, v;}" : "=r"(v) : "r"(address + i * 2));
    }
    return v;
  }
  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(bits(i));
    } else {
      return half_of<T>(bits(i), false);
    }
  }
  // whether all offsets are zero
  __device__ __forceinline__ bool unmoved() const {
    // all bits but the sign
    constexpr uint32_t kMagnitude = sizeof(T) == 4 ? 0x7fffffffu : 0x7fffu;
    // the first ones tell of most others
    if (((bits(0) | bits(1)) & kMagnitude) != 0) return false;
    StagedRecord again = *this;
    keep(again.address);
    uint32_t any = 0;
#pragma unroll
    for (int i = 2; i < 2 * kPoints; ++i) any |= again.bits(i);
    return (any & kMagnitude) == 0;
  }
};

// The tile's surroundings without the engine; `image` starts with the line's channels of the first image.
template <typename T>
__device__ __forceinline__ void stage_features(
    const Geometry<float>& g, const TileLayout& layout, int start_y, int start_x, const T* image, int channels,
    int images, uint32_t staged) {
  constexpr int kVector = 16 / sizeof(T);
  const int image_pieces = kLinePieces >> layout.tile.image_bits;
#pragma unroll 4
  for (int i = threadIdx.x; i < layout.tile.region_h * kRegionWidth * kLinePieces; i += blockDim.x) {
    const int n = (i % kLinePieces) >> (kLinePieceBits - layout.tile.image_bits), piece = i & (image_pieces - 1);
    const int x = start_x + i / kLinePieces % kRegionWidth, y = start_y + i / (kLinePieces * kRegionWidth);
    const bool exists = (n < images) & (piece * kVector < channels) & (static_cast<unsigned>(x) < g.width) &
                        (static_cast<unsigned>(y) < g.height);
    const T* from = image + n * g.value_n + static_cast<int64_t>(y) * g.value_h + static_cast<int64_t>(x) * g.value_w;
    copy_16_bytes(staged + i * 16, from + piece * kVector, exists ? 16 : 0);
  }
}

// The tile's records without the engine; `records` start with the first entry of the first image.
template <typename T>
__device__ __forceinline__ void stage_records(
    const Geometry<float>& g, const TileLayout& layout, int first_y, int first_x, const T* records, int entries,
    int images, uint32_t staged) {
  const ForwardTile& tile = layout.tile;
  constexpr int kVector = 16 / sizeof(T);
  const int pieces = tile.record_bytes / 16, pixels = tile.h * tile.w;
  for (int i = threadIdx.x; i < images * pixels * pieces; i += blockDim.x) {
    const int row = layout.by_record_pieces.quotient(i), piece = i - row * pieces;
    const int n = layout.by_pixels.quotient(row), pixel = row - n * pixels;
    const int y = layout.by_tile_w.quotient(pixel), x = pixel - y * tile.w;
    const bool exists = (first_y + y < layout.out_height) & (first_x + x < g.out_width);
    const T* from = records + n * g.offset_n + (first_y + y) * layout.record_h + (first_x + x) * layout.record_w;
    const int bytes = (entries - piece * kVector) * static_cast<int>(sizeof(T));
    copy_16_bytes(staged + i * 16, from + piece * kVector, exists ? min(max(bytes, 0), 16) : 0);
  }
}

}  // namespace
}  // namespace yolo_dcnv4
