// the size of tiles in the forward pass over staged features, and what they stage
#pragma once

#include <algorithm>

#include "../dcnv4.h"
#include "device.h"

namespace yolo_dcnv4 {
namespace {

constexpr int kPoints = 9;
constexpr int kEntries = 3 * kPoints;  // of a record
constexpr int kMostThreads = 256;
constexpr int kBlocksAtOnce = 3;  // of kMostThreads on a multiprocessor, and more in bfloat16
constexpr int kFewBlocks = 8;     // for a multiprocessor
constexpr int kLowHeight = 4;     // of tiles where there are few
constexpr int kLineBytes = 128;   // staged of a pixel, or of the same pixel of two or four images
constexpr int kLinePieceBits = 3, kLinePieces = 1 << kLinePieceBits;  // of 16 bytes
constexpr int kRegionWidth = 16;                                      // staged pixels in a row
constexpr int kBarrierBytes = 16;

// of 16 bytes, that a thread computes: 16 channels
constexpr int forward_pieces(int element_bytes) { return element_bytes; }

struct ForwardTile {
  int h, w, columns;  // columns: of tiles in a map
  int images;         // that share a line
  // of a pixel; a part is a thread's
  int parts, lines;
  int image_bits, part_bits;  // log2 of the images in a line, and of an image's parts there
  int record_bytes;           // staged of a pixel's records
  int threads, bytes;
  int reach, region_h;  // staged pixels on each side of the tile, and all rows
};

// how much of the staged lines is used
inline double fullness(const Problem& p, int element_bytes, int images) {
  const int64_t share = kLineBytes / images, bytes = p.channels() * element_bytes;
  return static_cast<double>(bytes) / (parts_of(bytes, share) * share) * p.batch / (parts_of(p.batch, images) * images);
}

inline int images_in_a_line(const Problem& p, int element_bytes) {
  int best = 1;
  for (int images = 2; images <= kLinePieces / forward_pieces(element_bytes); images *= 2) {
    if (fullness(p, element_bytes, images) > fullness(p, element_bytes, best)) best = images;
  }
  return best;
}

// of those that were fastest somewhere the one that covers least, and of such the largest
inline int choose_height(int out_height, int most) {
  int best = 0, least = 0;
  for (const int height : {8, 10, 14}) {
    if (height > most) continue;
    const int covered = parts_of(out_height, height) * height;
    if (best == 0 || covered <= least) best = height, least = covered;
  }
  return std::min(best, out_height);
}

inline ForwardTile choose_tile(const Problem& p, int element_bytes) {
  const int vector = 16 / element_bytes, width = vector * forward_pieces(element_bytes);
  const int line_parts = kLinePieces / forward_pieces(element_bytes);  // of all images
  ForwardTile tile;
  // three pixels around the outer points of the window
  tile.reach = 3 + std::max(p.window.dilation_h, p.window.dilation_w);
  tile.images = images_in_a_line(p, element_bytes);
  tile.image_bits = tile.part_bits = 0;
  while (1 << tile.image_bits < tile.images) ++tile.image_bits;
  while (tile.images << tile.part_bits < line_parts) ++tile.part_bits;
  tile.parts = static_cast<int>(p.channels()) / width;
  const int image_parts = 1 << tile.part_bits;
  tile.lines = parts_of(tile.parts, image_parts);
  tile.columns = parts_of(p.out_width, kRegionWidth - 2 * tile.reach);
  // as equal as can be
  tile.w = parts_of(p.out_width, tile.columns);
  tile.h = choose_height(p.out_height, kMostThreads / line_parts / tile.w);
  // where there are few blocks, smaller ones share out better and start sooner
  const int64_t blocks = parts_of(p.batch, tile.images) * parts_of(p.out_height, tile.h) * tile.columns * tile.lines;
  if (element_bytes == 2 && blocks < int64_t{kFewBlocks} * attribute(cudaDevAttrMultiProcessorCount)) {
    tile.h = std::min(tile.h, kLowHeight);
  }
  tile.region_h = tile.h + 2 * tile.reach;
  tile.threads = parts_of(tile.h * tile.w * line_parts, 32) * 32;
  // the groups of a line, and what lies before them in their first 16 bytes
  const int parts_a_group = p.group_width / width;
  int entries = 0;
  for (int line = 0; line < tile.lines; ++line) {
    const int first = line * image_parts / parts_a_group;
    const int last = std::min(((line + 1) * image_parts - 1) / parts_a_group, p.groups - 1);
    entries = std::max(entries, first * kEntries % vector + (last - first + 1) * kEntries);
  }
  // an odd number of 16 bytes, for threads read records of neighbouring pixels at once
  tile.record_bytes = (parts_of(entries, vector) | 1) * 16;
  tile.bytes =
      tile.region_h * kRegionWidth * kLineBytes + tile.images * tile.h * tile.w * tile.record_bytes + kBarrierBytes;
  return tile;
}

}  // namespace
}  // namespace yolo_dcnv4
