// the size of tiles in the forward pass over staged features
#pragma once

#include <algorithm>
#include <cmath>

#include "../dcnv4.h"
#include "device.h"

namespace yolo_dcnv4 {
namespace {

constexpr int kMostWarps = 8;
constexpr int kBlocksAtOnce = 4;  // on a multiprocessor: up to 64 registers a thread
constexpr int kSliceWidth = 16;   // channels
constexpr int kPixelBytes = kSliceWidth * sizeof(float);
constexpr int kSliceAlignment = 128;  // of a staged slice, in bytes
constexpr int kBarrierBytes = 16;
constexpr int kQuad = 4;    // output pixels that a warp gathers for at once
constexpr int kBatch = 12;  // output pixels whose points it prepares at once

struct ForwardTile {
  int h, w;
  int warps;  // of a block; none where nothing fits
  int bytes;  // of shared memory
};

int slice_bytes(int region_h, int region_w) {
  return parts_of(region_h * region_w * kPixelBytes, kSliceAlignment) * kSliceAlignment;
}

// The size that costs least: what blocks prepare, gather and copy, in weights fitted to measured times.
ForwardTile choose_tile(const Problem& p, int reach, int slices, int room_bytes, bool in_bulk) {
  constexpr double kPrepare = 0.4, kGather = 1;
  constexpr double kRounds = 0.07;  // of a warp, squared: what comes late in a block finds others idle
  const double copy = in_bulk ? 0 : 0.012;
  constexpr double kBusyWarps = 16.5;  // a multiprocessor with fewer is slower
  constexpr double kLastWave = 0.23;   // how much an incomplete last wave of blocks counts
  constexpr int kReserved = 1024;      // bytes of a block's shared memory
  constexpr int kSides[] = {7, 8, 10, 12, 14, 16, 20};
  const int processors = std::max(1, attribute(cudaDevAttrMultiProcessorCount));
  const int memory = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const int64_t parts = p.batch * p.groups * (p.group_width / (slices * kSliceWidth));
  ForwardTile best = {};
  double least = 0;
  for (const int most_h : kSides) {
    for (const int most_w : kSides) {
      const int rows = parts_of(p.out_height, most_h), columns = parts_of(p.out_width, most_w);
      ForwardTile tile;
      tile.h = parts_of(p.out_height, rows), tile.w = parts_of(p.out_width, columns);
      const int pixels = tile.h * tile.w, staged = (tile.h + 2 * reach) * (tile.w + 2 * reach);
      const int batches = parts_of(pixels, kBatch);
      const int rounds = parts_of(batches, kMostWarps);
      tile.warps = parts_of(batches, rounds);
      tile.bytes =
          slices * slice_bytes(tile.h + 2 * reach, tile.w + 2 * reach) + kBarrierBytes + tile.warps * room_bytes;
      const int at_once = std::min(memory / (tile.bytes + kReserved), kBlocksAtOnce * kMostWarps / tile.warps);
      if (at_once == 0) continue;
      const double blocks = static_cast<double>(rows) * columns * parts / processors;
      const double load = (1 - kLastWave) * blocks + kLastWave * std::ceil(blocks / at_once) * at_once;
      const double work = kPrepare * batches + slices * (kGather * parts_of(pixels, kQuad) + copy * staged) +
                          kRounds * tile.warps * rounds * rounds;
      const double cost = load * work * std::sqrt(std::max(1., kBusyWarps / (at_once * tile.warps)));
      if (best.warps == 0 || cost < least) best = tile, least = cost;
    }
  }
  return best;
}

}  // namespace
}  // namespace yolo_dcnv4
