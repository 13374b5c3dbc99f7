// all gradients of small maps, whose sums of grad_value fit in shared memory: one block a plane, an image's group
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "device.h"
#include "launch.h"
#include "tile_backward.h"

namespace yolo_dcnv4 {

constexpr int kMostPlaneWarps = 16;  // of up to 128 registers a thread

// bytes of what a warp has in shared memory
constexpr int warp_room_bytes(int element_bytes, int slices) {
  const int matrix = 144 * 16 * 4, grads = slices * 16 * 16 * element_bytes;
  const int records = 16 * (element_bytes == 2 ? 28 : 30) * element_bytes, far = 16 * 9 * 2, flags = 16;
  return matrix + grads + records + far + flags;
}

inline int64_t plane_bytes(const Problem& p, int element_bytes, int warps) {
  const int slices = slices_of(p);
  return p.pixels() * slices * kSliceChannels * 4 + int64_t{warps} * warp_room_bytes(element_bytes, slices);
}

// Warps of a plane's block where planes cost less than tiles do, else 0; the costs are fitted to measured times. A
// round of warps takes them as long as a few more of them would, and several blocks fill each other's gaps.
inline int plane_warps_that_pay(const Problem& p, int element_bytes, bool deterministic) {
  constexpr double kRound = 7.5, kWarp = 1, kWarpOfSeveralBlocks = 0.9;
  // of as many tiles as the GPU works on at once, with all that is done for their sums
  const double tiles_cost = deterministic ? 25 : element_bytes == 4 ? 13.5 : 18;
  constexpr int kTilesAtOnce = 4, kReserved = 1024;  // bytes of a block's shared memory
  const int64_t processors = std::max(1, attribute(cudaDevAttrMultiProcessorCount));
  const int64_t memory = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const int64_t planes = p.batch * p.groups, blocks = parts_of(p.height, 4) * parts_of(p.width, 4);
  const int64_t tiles = planes * parts_of(p.height, 8) * parts_of(p.width, 8);
  double least = tiles_cost * parts_of(tiles, kTilesAtOnce * processors);
  int best = 0;
  for (int warps = 1; warps <= std::min<int64_t>(kMostPlaneWarps, blocks); ++warps) {
    const int64_t at_once =
        std::min(int64_t{kMostPlaneWarps} / warps, memory / (plane_bytes(p, element_bytes, warps) + kReserved));
    if (at_once == 0) continue;
    const double round = kRound + at_once * warps * (at_once > 1 ? kWarpOfSeveralBlocks : kWarp);
    const double cost = round * parts_of(blocks, warps) * parts_of(planes, processors * at_once);
    if (cost < least) best = warps, least = cost;
  }
  return best;
}

// where args.plane_warps says so; needs no sums, and gives the same bits in every run
template <typename T>
cudaError_t launch_plane_gradients(const CudaBackwardArgs& args, cudaStream_t stream);

}  // namespace yolo_dcnv4
