// Which pixels and channels the threads of a block compute: patches of pixels, and channels in slices, so that what one
// thread reads is still in L1 when its neighbours want it.
#pragma once

#include <algorithm>

#include "device.h"
#include "launch.h"
#include "sampling.cuh"

namespace yolo_dcnv4 {
namespace {

constexpr int kPatchThreads = 256;
constexpr int kPatchBlocks = 4;      // on a multiprocessor: up to 64 registers a thread
constexpr int kWidePatchBlocks = 3;  // of threads with two vectors: up to 80
constexpr int kMostSideBits = 2;     // of a patch of 4 x 4 pixels
constexpr int kLineVectors = 8;      // of a cache line
constexpr int kMostSliceVectors = 2 * kLineVectors, kLeastSliceVectors = kLineVectors;

// A strip is a row of patches; its blocks follow each other through them, and the last may reach beyond the edge.
struct Patches {
  int out_height, out_width;
  int shares, pixel_vectors;  // threads' shares of a slice, one or two vectors each; 16-byte vectors of a pixel
  int strip_blocks, strips, slices;
  int row_bits, column_bits;  // log2 of a patch's sides
  unsigned row_mask, column_mask;
  int pixels;                      // of a block
  int64_t out_n;                   // elements of an image of the output
  int record, record_w, record_h;  // elements from a group, pixel and row of records to the next
  int lanes;                       // that share a group
  Divider by_lanes, by_strip_blocks;

  Patches(const Problem& p, int channels, int share, int slice_multiple);
  bool fit(const Problem& p) const;
  dim3 grid(unsigned images) const { return dim3(strip_blocks * strips, slices, images); }
  dim3 block() const { return dim3(shares, pixels); }
};

int rounded_up(int n, int bits) { return parts_of(n, 1 << bits) << bits; }

// log2 of the largest side of a patch that leaves little beyond the edge
int side_bits(int length) {
  int bits = kMostSideBits;
  while (bits > 0 && rounded_up(length, bits) > length * 1.15) --bits;
  return bits;
}

// Shares of a slice, whole groups or whole parts of one: up to two cache lines of them where such a number divides the
// pixel's, else more, else less; a multiple of the given number.
int slice_shares(int shares, int lanes, int share, int multiple) {
  const int most = kMostSliceVectors / share, least = multiple > 1 ? multiple : kLeastSliceVectors / share;
  const auto divides = [&](int n) {
    return shares % n == 0 && (n % lanes == 0 || lanes % n == 0) && n % multiple == 0;
  };
  if (shares <= most) return shares;
  for (int n = most; n >= least; --n) {
    if (divides(n)) return n;
  }
  for (int n = most + 1; n <= kPatchThreads; ++n) {
    if (divides(n)) return n;
  }
  for (int n = least - 1; n > 1; --n) {
    if (divides(n)) return n;
  }
  return 1;
}

Patches::Patches(const Problem& p, int channels, int share, int slice_multiple)
    : out_height(p.out_height), out_width(p.out_width) {
  lanes = p.group_width / (channels * share);
  pixel_vectors = static_cast<int>(p.channels() / channels);
  shares = slice_shares(pixel_vectors / share, lanes, share, slice_multiple);
  slices = pixel_vectors / (shares * share);
  row_bits = side_bits(out_height);
  column_bits = side_bits(out_width);
  row_mask = (1u << row_bits) - 1;
  column_mask = (1u << column_bits) - 1;
  strips = parts_of(out_height, 1 << row_bits);
  const int64_t strip_pixels = int64_t{rounded_up(out_width, column_bits)} << row_bits;
  const int64_t processors = std::max(1, attribute(cudaDevAttrMultiProcessorCount));
  pixels = kPatchThreads / shares;
  const int64_t blocks = parts_of(strip_pixels, pixels) * strips * slices * p.batch;
  // halves leave no multiprocessor without work where there are few blocks
  if (pixels > 1 && blocks < processors * kPatchBlocks) pixels /= 2;
  strip_blocks = static_cast<int>(parts_of(strip_pixels, pixels));
  out_n = p.out_pixels() * p.channels();
  record = 3 * p.points;
  record_w = static_cast<int>(p.offset_mask.w);
  record_h = static_cast<int>(p.offset_mask.h);
  by_lanes = Divider(lanes);
  by_strip_blocks = Divider(strip_blocks);
}

// whether slices can be a dimension of a grid, and places of an image's records are 32-bit numbers
bool Patches::fit(const Problem& p) const {
  const int64_t last = (p.out_height - 1) * p.offset_mask.h + (p.out_width - 1) * p.offset_mask.w;
  return slices <= kMostImages && last + p.groups * int64_t{record} < (int64_t{1} << 31);
}

// Two vectors a thread, with their addresses computed once, pay for groups of four vectors and more; were they
// neighbours, too many sectors would be touched at once.
bool two_vectors_pay(int group_vectors) { return group_vectors % 2 == 0 && group_vectors >= 4 && group_vectors <= 16; }

// a thread's share of one output pixel
struct PatchPlace {
  int strip, first;  // the block's strip, and its first pixel there
  int out_y, out_x;
  int share;  // of the pixel's

  __device__ __forceinline__ explicit PatchPlace(const Patches& patches) {
    strip = patches.by_strip_blocks.quotient(blockIdx.x);
    first = (blockIdx.x - strip * patches.strip_blocks) * patches.pixels;
    const unsigned pixel = first + threadIdx.y;
    const unsigned upper = pixel >> patches.column_bits;
    out_x = ((upper >> patches.row_bits) << patches.column_bits) + (pixel & patches.column_mask);
    out_y = (strip << patches.row_bits) + (upper & patches.row_mask);
    share = threadIdx.x + blockIdx.y * patches.shares;
  }
  __device__ __forceinline__ bool exists(const Patches& patches) const {
    return out_x < patches.out_width && out_y < patches.out_height;
  }
  __device__ __forceinline__ int group(const Patches& patches) const { return patches.by_lanes.quotient(share); }
  // elements from the image's first record
  __device__ __forceinline__ int record(const Patches& patches, int group) const {
    return out_y * patches.record_h + out_x * patches.record_w + group * patches.record;
  }
  // vectors from the image's first to the pixel's given one
  __device__ __forceinline__ int output(const Patches& patches, int vector) const {
    return (out_y * patches.out_width + out_x) * patches.pixel_vectors + vector;
  }
};

}  // namespace
}  // namespace yolo_dcnv4
