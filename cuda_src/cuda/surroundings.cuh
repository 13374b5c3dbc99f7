// The input around a block's patches, on its way to L1 before the records have come that say where points lie: most of
// what is gathered later is there already.
#pragma once

#include <algorithm>

#include "async_copy.cuh"
#include "patches.cuh"
#include "tuning.h"

namespace yolo_dcnv4 {
namespace {

constexpr int kMargin = 1;          // pixels around the window's points
constexpr int kMostRows = 8;        // those of a 3 x 3 window with stride and dilation 1; more have not been measured
constexpr int kMostFetching = 128;  // threads, where a slice has up to 32 vectors

struct Surroundings {
  int columns, rows;  // of a block; no columns: nothing is fetched
  int left, top;      // of the first, from the place in the input of the block's first output pixel

  Surroundings(const Problem& p, const Patches& patches, int share) {
    const Window& window = p.window;
    const int block_patches = parts_of(patches.pixels, 1 << (patches.row_bits + patches.column_bits));
    const auto length = [](int outputs, int64_t stride, int64_t dilation, int kernel) {
      return (outputs - 1) * stride + 1 + dilation * (kernel - 1) + 2 * kMargin;
    };
    const int64_t w = length(block_patches << patches.column_bits, window.stride_w, window.dilation_w, window.kernel_w);
    const int64_t h = length(1 << patches.row_bits, window.stride_h, window.dilation_h, window.kernel_h);
    const int64_t thread_rows = share == 1 ? (w + 1) / 2 : w;
    const bool pays =
        fetching_ahead_pays(architecture()) && h <= kMostRows && thread_rows * patches.shares <= kMostFetching;
    columns = pays ? static_cast<int>(w) : 0;
    rows = pays ? static_cast<int>(h) : 0;
    left = -window.pad_w - kMargin;
    top = -window.pad_h - kMargin;
  }

  // A thread takes a 32-byte sector of a column's pixels; where its own share is half of one, it and its neighbour take
  // those of two columns. The fewer threads, the less there is to compute. Copies are to be awaited before a thread
  // ends: none may arrive where another block has its shared memory by then.
  template <typename T, int kChannels, int kShare>
  __device__ __forceinline__ void fetch(
      const Geometry<float>& g, const Patches& patches, const PatchPlace& place, const T* image) const {
    const int odd = kShare == 1 ? threadIdx.x % 2 : 0, column = kShare == 1 ? 2 * threadIdx.y + odd : threadIdx.y;
    if (column >= columns) return;
    const int first_x = (place.first >> (patches.row_bits + patches.column_bits)) << patches.column_bits;
    const int x = min(max(first_x * g.stride_w + left + column, 0), g.width - 1);
    const int y = (place.strip << patches.row_bits) * g.stride_h + top;
    const int begin = max(y, 0), end = min(y + rows, g.height);
    const T* from =
        image + int64_t{begin} * g.value_h + int64_t{x} * g.value_w + (place.share - odd) * kShare * kChannels;
    // each copy has a place of its own, as they may arrive in any order
    __shared__ int unread[kMostRows][kMostFetching];
    uint32_t to =
        static_cast<uint32_t>(__cvta_generic_to_shared(unread[0] + threadIdx.y * patches.shares + threadIdx.x));
    // hides where it comes from, or it is computed anew in each turn
    asm volatile("" : "+r"(to));
#pragma unroll 4
    for (int i = end - begin; i > 0; --i) {
      fetch_by_4_bytes(to, from);
      to += sizeof(unread[0]);
      from += g.value_h;
    }
  }
};

}  // namespace
}  // namespace yolo_dcnv4
