// all gradients of a tile in one pass, as dense matrix products
#pragma once

#include "dependent_launch.cuh"
#include "sums.cuh"
#include "tile_backward.h"
#include "warp_gradients.cuh"

namespace yolo_dcnv4 {
namespace {

constexpr int kThreadsATile = 128;
constexpr int kWarps = 4;
constexpr int kTileSide = 8;
constexpr int kTilesAtOnce = 4;  // on a multiprocessor: up to 128 registers a thread

struct TileLayout {
  int columns, rows, groups;
  Divider by_groups, by_columns;

  explicit TileLayout(const Problem& p)
      : columns((p.out_width + kTileSide - 1) / kTileSide),
        rows((p.out_height + kTileSide - 1) / kTileSide),
        groups(p.groups),
        by_groups(p.groups),
        by_columns(columns) {}

  int blocks() const { return columns * rows * groups; }
};

// where a block of 8 x 8 output pixels and its warps work
struct TilePlace : WarpPlace {
  int warp;
  int region_y, region_x;  // first input pixel near any warp

  __device__ __forceinline__ TilePlace(const Geometry<float>& g, const TileLayout& tiles, const WarpLayout& layout)
      : warp(threadIdx.x / 32) {
    const int tile = tiles.by_groups.quotient(blockIdx.x);
    const int tile_y = tiles.by_columns.quotient(tile), tile_x = tile - tile_y * tiles.columns;
    static_cast<WarpPlace&>(*this) = WarpPlace(
        g, layout, blockIdx.x - tile * tiles.groups, tile_y * kTileSide + warp / 2 * kBlockSide,
        tile_x * kTileSide + warp % 2 * kBlockSide);
    region_y = tile_y * kTileSide + g.shift_h - kReach;
    region_x = tile_x * kTileSide + g.shift_w - kReach;
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// Sums of weights times gradients over the tile. A warp has four blocks of 4 x 4 targets: (0, 0), (0, 2), (1, 0) and
// (1, 2) of the region's 4 x 4 blocks for the first warp, and their mirror images for the others. Each warp then
// multiplies nine times.
template <typename T, int kSlices, typename Sums>
__device__ __forceinline__ void multiply_weights(
    const Geometry<float>& g, const WarpLayout& layout, const TilePlace& place,
    const WarpRoom<T, kSlices> (&rooms)[kWarps], float unscale, const Sums& sums, int64_t own_image) {
  using M = Matrix<T>;
  const uint32_t row_entries = static_cast<uint32_t>(sums.row);
  const Lane lane;
  const int row = lane.g / kBlockSide, column = lane.g % kBlockSide;
  const bool flipped_y = place.warp / 2, flipped_x = place.warp % 2;
  // a lane's sums are four neighbouring channels, or a channel of each such four where sums are ordered
  const int64_t first_target = own_image + (Sums::kOrdered ? 1 : 4) * lane.t;
  // from the first block of weights to the next ones, in entries
  const int step_y = (flipped_y ? -kBlockSide : kBlockSide) * kNearRow;
  const int step_x = (flipped_x ? -kBlockSide : kBlockSide) * kSide;
  const int first_block =
      (((flipped_y ? 2 * kBlockSide : 0) + row) * kNearSide + (flipped_x ? 2 * kBlockSide : 0) + column) * kSide;
#pragma unroll 1
  for (int slice = 0; slice < kSlices; ++slice) {
    Sum sum[2][2] = {};
#pragma unroll
    for (int pixels_y = 0; pixels_y < 2; ++pixels_y) {
#pragma unroll
      for (int pixels_x = 0; pixels_x < 2; ++pixels_x) {
        const int pixels = 2 * (flipped_y ? 1 - pixels_y : pixels_y) + (flipped_x ? 1 - pixels_x : pixels_x);
        typename M::Columns grads;
        grads.template load_steps<Sums::kOrdered>(rooms[pixels].grads[slice], lane);
        const float* blocks = rooms[pixels].matrix[0] + first_block;
#pragma unroll
        for (int i = pixels_y; i < 2; ++i) {
#pragma unroll
          for (int j = pixels_x; j < 2; ++j) {
            const float* weights = blocks + (i - pixels_y) * step_y + (2 * j - pixels_x) * step_x;
            const typename M::FineRows rows(
                *reinterpret_cast<const float4*>(weights + 4 * lane.t),
                *reinterpret_cast<const float4*>(weights + 2 * kNearRow + 4 * lane.t));
            M::multiply(sum[i][j], rows, grads);
          }
        }
      }
    }

    const int channel = slice * kSide;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int y = place.region_y + (flipped_y ? 3 - i : i) * kBlockSide + row + 2 * half;
        const bool y_inside = static_cast<unsigned>(y) < g.height;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int x = place.region_x + (flipped_x ? 3 - 2 * j : 2 * j) * kBlockSide + column;
          const bool inside = y_inside & static_cast<unsigned>(x) < g.width;
          // a product of 32-bit factors takes one instruction; outside the image it means nothing
          const uint64_t offset = static_cast<uint64_t>(static_cast<uint32_t>(y * g.width + x)) * row_entries;
          const int64_t target = first_target + static_cast<int64_t>(offset) + channel;
          float four[4];
          M::template columns<Sums::kOrdered>(sum[i][j], half, lane, four);
#pragma unroll
          for (int c = 0; c < 4; ++c) four[c] *= unscale;
          if constexpr (Sums::kOrdered) {
            // eight bytes a channel: four lanes take four neighbouring ones, and so one 32-byte sector
            bool wanted[4];
#pragma unroll
            for (int c = 0; c < 4; ++c) wanted[c] = inside & four[c] != 0.f & channel + 4 * c < layout.group_width;
            sums.template add_apart<4>(target, four, wanted);
          } else {
            const uint32_t any = (__float_as_uint(four[0]) | __float_as_uint(four[1]) | __float_as_uint(four[2]) |
                                  __float_as_uint(four[3]))
                                 << 1;
            if (inside & any != 0 & channel + 4 * lane.t < layout.group_width) {
              sums.template add<4>(target, four, 1.f);
            }
          }
        }
      }
    }
  }
}

#endif

template <typename T, int kChannels, int kSlices, typename Sums>
__global__ void __launch_bounds__(kThreadsATile, kTilesAtOnce) tile_gradients(
    const Geometry<float> g, const TileLayout tiles, const WarpLayout layout, const WarpGradients<T> to,
    const Sums raw_sums) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Room = WarpRoom<T, kSlices>;
  extern __shared__ uint4 shared[];
  Room(&rooms)[kWarps] = *reinterpret_cast<Room(*)[kWarps]>(shared);
  let_next_kernel_start();
  const TilePlace place(g, tiles, layout);
  const int64_t n = blockIdx.y;
  const int first_channel = place.group * layout.group_width;
  const T* grads = to.grad_output + n * layout.grad_n + first_channel;
  const T* features = to.value + n * g.value_n + first_channel;
  const T* offset_mask = to.offset_mask + n * g.offset_n + place.group * kRecord;
  const bool needs_records = to.grad_offset_mask != nullptr;

  Room& room = rooms[place.warp];
  // all loads are under way before the first is waited for
  StagedRecords<T> records;
  StagedGradients<T, kChannels, kSlices> staged;
  records.load(g, layout, place, offset_mask);
  staged.load(g, layout, place, grads);
  records.store(room.records[0]);
  const uint32_t largest = records.largest();
  staged.store(room);
  if (threadIdx.x % 32 == 0) room.largest = largest;
  __syncwarp();
  if (needs_records) multiply_features<T, kSlices, 3>(g, layout, place, features, room);
  if constexpr (kScaled<T>) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  const float scale =
      scale_for<T>(max(max(rooms[0].largest, rooms[1].largest), max(rooms[2].largest, rooms[3].largest)));

  const uint32_t missing = near_points(g, place, scale, needs_records, to.needs_value, room);
  const int count = list_far_points(g, place, offset_mask, missing, room);
  // what comes before needs neither sums nor bounds
  wait_for_kernel_before();
  const Sums sums = raw_sums.prepared();
  const int64_t own_image = n * g.height * g.width * sums.row + first_channel;
  if (count != 0) {
    far_points<T, kChannels, kSlices>(
        g, layout, place, grads, features, offset_mask, room, count, needs_records,
        [&](int y, int x, int channel, const float (&grad)[kChannels], float weight) {
          if (!to.needs_value) return;
          const int64_t target = own_image + static_cast<int64_t>(y * g.width + x) * sums.row + channel;
          sums.template add<kChannels>(target, grad, weight);
        });
  }
  if (needs_records) {
    __syncwarp();
    store_records(g, layout, place, room, to.grad_offset_mask + n * g.out_pixels * layout.record_row);
  }

  if (!to.needs_value) return;
  __syncthreads();
  multiply_weights<T, kSlices>(g, layout, place, rooms, 1.f / scale, sums, own_image);
#endif
}

template <typename T, int kSlices, typename Sums>
cudaError_t launch_slices(const CudaBackwardArgs& args, const Sums& sums, cudaStream_t stream) {
  constexpr int kChannels = 16 / static_cast<int>(sizeof(T));
  const Problem& p = args.problem;
  const TileLayout tiles(p);
  const WarpLayout layout(p, args.grad_offset_mask_row);
  const auto kernel = tile_gradients<T, kChannels, kSlices, Sums>;
  const int bytes = sizeof(WarpRoom<T, kSlices>[kWarps]);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  return for_images(p, [&](int64_t first, int64_t images) {
    const WarpGradients<T> to(args, first);
    Sums shifted = sums;
    shifted.sums += first * p.pixels() * sums.row;
    const dim3 grid(tiles.blocks(), static_cast<unsigned>(images));
    return launch_in_chain(
        kernel, grid, kThreadsATile, bytes, stream, to.needs_value, Geometry<float>(p), tiles, layout, to, shifted);
  });
}

}  // namespace

template <typename T>
cudaError_t launch_tile_gradients(const CudaBackwardArgs& args, cudaStream_t stream) {
  return with_sums<float>(args, [&](const auto& sums) {
    switch (slices_of(args.problem)) {
      case 1:
        return launch_slices<T, 1>(args, sums, stream);
      case 2:
        return launch_slices<T, 2>(args, sums, stream);
      default:
        return launch_slices<T, kMostSlices>(args, sums, stream);
    }
  });
}

}  // namespace yolo_dcnv4
