// grad_value, tile by tile: sort the corners by the pixel they fall on, then let one thread sum up each pixel
#pragma once

#include <math.h>

#include "../dcnv4.h"
#include "sampling.cuh"
#include "sums.cuh"

namespace yolo_dcnv4 {
namespace {

// A block takes a square of output pixels and one group. Almost all corners of its samples fall into a region around
// the square, 16 x 16 input pixels: their sums leave the block once instead of once a corner. The others go out one by
// one.
constexpr int kRegion = 16;
constexpr int kTargets = kRegion * kRegion;
constexpr int kTileThreads = 128;
constexpr int kTileBlocks = 7;  // on a multiprocessor: about 72 registers a thread
constexpr int kSamplesAThread = 5;
constexpr int kMostSamples = 576;  // 8 x 8 pixels with 9 points
static_assert(kMostSamples <= kTileThreads * kSamplesAThread, "every sample has a thread");
static_assert(kTargets == 2 * kTileThreads, "the scan gives each thread two targets");
static_assert(kTargets <= 256, "a target fits a byte");
constexpr int kMostRowBytes = 512;  // of a group's gradient at one pixel
constexpr int kBuckets = 64;        // of targets with equally many corners, the first one open

struct Corner {
  float weight;
  int pixel;  // output pixel of the tile
};

struct Tiling {
  int side, columns, out_height;
  int groups, group_width;
  int origin_h, origin_w;  // the region's first pixel, relative to side * stride * tile
  int64_t record;          // 3 * K
  Strides grad_output;
  Divider by_groups, by_columns, by_side, by_points;

  // the largest whose corners fall into the region with offsets of up to two pixels
  static int side_for(const Problem& p) {
    constexpr int kOffset = 2;
    const Window& w = p.window;
    const auto fits = [](int side, int stride, int kernel, int dilation) {
      const int64_t centers = int64_t{side - 1} * stride + 1, reach = int64_t{kernel - 1} * dilation;
      return centers + reach + 2 * kOffset <= kRegion;
    };
    for (const int side : {8, 4}) {
      if (fits(side, w.stride_h, w.kernel_h, w.dilation_h) && fits(side, w.stride_w, w.kernel_w, w.dilation_w) &&
          side * side * p.points <= kMostSamples)
        return side;
    }
    return 0;
  }

  explicit Tiling(const Problem& p)
      : side(side_for(p)),
        columns((p.out_width + side - 1) / side),
        out_height(p.out_height),
        groups(p.groups),
        group_width(p.group_width),
        origin_h(origin(p.window.dilation_h, p.window.kernel_h, p.window.pad_h, p.window.stride_h)),
        origin_w(origin(p.window.dilation_w, p.window.kernel_w, p.window.pad_w, p.window.stride_w)),
        record(3 * static_cast<int64_t>(p.points)),
        grad_output(p.grad_output),
        by_groups(p.groups),
        by_columns(columns),
        by_side(side),
        by_points(p.points) {}

  int origin(int dilation, int kernel, int padding, int stride) const {
    const int centers = (side - 1) * stride + 1;
    return Geometry<float>::half(dilation, kernel) - padding - (kRegion - centers) / 2;
  }
  int tiles() const { return columns * ((out_height + side - 1) / side); }
  __host__ __device__ int pixels() const { return side * side; }
  __host__ __device__ int corners(int points) const { return 4 * pixels() * points; }
};

struct CornerWeights {
  bool valid[4];
  float weight[4];

  __device__ __forceinline__ CornerWeights(const Sample<float>& s, float m)
      : valid{s.top && s.left, s.top && s.right, s.bottom && s.left, s.bottom && s.right},
        weight{m * (1 - s.ly) * (1 - s.lx), m * (1 - s.ly) * s.lx, m * s.ly * (1 - s.lx), m * s.ly * s.lx} {}
};

// over the lanes of a warp, each lane's own value included
__device__ __forceinline__ int prefix_sum(int value, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int left = __shfl_up_sync(0xffffffffu, value, step);
    if (lane >= step) value += left;
  }
  return value;
}

template <typename T, int kChannels, typename Sums>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks) sum_tiles(
    const Geometry<float> g, const Tiling t, const T* __restrict__ grad_output, const T* __restrict__ offset_mask,
    const Sums raw_sums) {
  extern __shared__ uint4 shared[];
  __shared__ int first[kTargets + 1];
  __shared__ int warp_totals[kTileThreads / 32];
  __shared__ int bucket_places[kBuckets];
  __shared__ uint8_t order[kTargets];
  Corner* corners = reinterpret_cast<Corner*>(shared);
  T* rows = reinterpret_cast<T*>(corners + t.corners(g.points));

  const int tile = t.by_groups.quotient(blockIdx.x);
  const int group = blockIdx.x - tile * t.groups;
  const int tile_y = t.by_columns.quotient(tile);
  const int tile_x = tile - tile_y * t.columns;
  const int64_t n = blockIdx.y;
  const int region_y = tile_y * t.side * g.stride_h + t.origin_h;
  const int region_x = tile_x * t.side * g.stride_w + t.origin_w;
  const int vectors = t.group_width / kChannels;
  const Sums sums = raw_sums.prepared();
  const int64_t own_image = n * g.height * g.width * sums.row + group * t.group_width;

  const auto output_pixel = [&](int pixel, int& y, int& x) {
    const int row = t.by_side.quotient(pixel);
    y = tile_y * t.side + row;
    x = tile_x * t.side + pixel - row * t.side;
    return y < t.out_height && x < g.out_width;
  };

  for (int i = threadIdx.x; i < kTargets; i += kTileThreads) first[i] = 0;
  if (threadIdx.x < kBuckets) bucket_places[threadIdx.x] = 0;
  const T* grads = grad_output + n * t.grad_output.n + group * t.group_width;
  for (int i = threadIdx.x; i < t.side * t.side * vectors; i += kTileThreads) {
    const int pixel = i / vectors;
    int y, x;
    if (!output_pixel(pixel, y, x)) continue;
    Vector<T, kChannels> v;
    v.load(grads + y * t.grad_output.h + x * t.grad_output.w + (i - pixel * vectors) * kChannels);
    v.store(rows + i * kChannels);
  }
  __syncthreads();

  struct Place {
    int pixel, k;
    bool exists;
    Position<float> at;
    const T* record;
  };
  const auto place_of = [&](int i) {
    const int sample = threadIdx.x + i * kTileThreads;
    const int pixel = t.by_points.quotient(sample);
    int y, x;
    const bool exists = output_pixel(pixel, y, x) && pixel < t.side * t.side;
    const T* record = offset_mask + n * g.offset_n + y * g.offset_h + x * g.offset_w + group * t.record;
    return Place{pixel, sample - pixel * g.points, exists, Position<float>(g, y, x), record};
  };

  // all loads first, so that they are under way together
  float offset_x[kSamplesAThread], offset_y[kSamplesAThread], mask[kSamplesAThread];
#pragma unroll
  for (int i = 0; i < kSamplesAThread; ++i) {
    offset_x[i] = NAN;  // a sample that does not exist lies outside
    const Place p = place_of(i);
    if (!p.exists) continue;
    offset_x[i] = to_opmath(p.record[2 * p.k]);
    offset_y[i] = to_opmath(p.record[2 * p.k + 1]);
    mask[i] = to_opmath(p.record[2 * g.points + p.k]);
  }

  const auto region_target = [&](const Sample<float>& s, int c) {
    const int y = s.y0 + c / 2 - region_y, x = s.x0 + c % 2 - region_x;
    const bool near = static_cast<unsigned>(y) < kRegion && static_cast<unsigned>(x) < kRegion;
    return near ? y * kRegion + x : -1;
  };

  // count the corners of each target; what a sample needs later stays in registers
  constexpr uint32_t kNone = 0xffffffffu;
  uint32_t slots[kSamplesAThread][4];  // rank among the target's corners, and target
  float weights[kSamplesAThread][4];
  bool has_far = false;
#pragma unroll
  for (int i = 0; i < kSamplesAThread; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) slots[i][c] = kNone;
    const Place p = place_of(i);
    const Sample<float> s(g, p.at, p.k, offset_x[i], offset_y[i]);
    if (!s.inside) continue;
    const float m = g.softmax ? Normalizer<float>(g, p.record)(mask[i]) : mask[i];
    const CornerWeights corner(s, m);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      weights[i][c] = corner.weight[c];
      if (!corner.valid[c]) continue;
      const int target = region_target(s, c);
      if (target < 0) {
        has_far = true;
      } else if constexpr (Sums::kOrdered) {
        slots[i][c] = target;
      } else {
        slots[i][c] = static_cast<uint32_t>(atomicAdd(&first[target], 1)) << 8 | target;
      }
    }
  }
  if constexpr (Sums::kOrdered) {
    // ranks in a fixed order: warp by warp, corner by corner, lane by lane
    const unsigned lower_lanes = (1u << (threadIdx.x % 32)) - 1;
#pragma unroll 1
    for (int turn = 0; turn < kTileThreads / 32; ++turn) {
      if (threadIdx.x / 32 == turn) {
#pragma unroll
        for (int i = 0; i < kSamplesAThread; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            // every lane takes the same way, so that reading and writing are apart by a barrier of the whole warp
            const uint32_t target = slots[i][c];
            const bool exists = target != kNone;
            const unsigned peers = __match_any_sync(0xffffffffu, target);
            const int before = exists ? first[target] : 0;
            __syncwarp();
            if (exists && (peers & lower_lanes) == 0) first[target] = before + __popc(peers);
            __syncwarp();
            if (exists) slots[i][c] = static_cast<uint32_t>(before + __popc(peers & lower_lanes)) << 8 | target;
          }
        }
      }
      __syncthreads();
    }
  }
  if (has_far) {
    // seldom: once more from the start, in few instructions instead of little time
#pragma unroll 1
    for (int i = 0; i < kSamplesAThread; ++i) {
      const Place p = place_of(i);
      if (!p.exists) continue;
      const Sample<float> s = sample(g, p.at, p.record, p.k);
      if (!s.inside) continue;
      const CornerWeights corner(s, Normalizer<float>(g, p.record)(to_opmath(p.record[2 * g.points + p.k])));
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (!corner.valid[c] || region_target(s, c) >= 0) continue;
        const int64_t pixel = static_cast<int64_t>(s.y0 + c / 2) * g.width + s.x0 + c % 2;
#pragma unroll 1
        for (int vector = 0; vector < vectors; ++vector) {
          Vector<T, kChannels> v;
          v.copy(rows + (p.pixel * vectors + vector) * kChannels);
          float grad[kChannels];
#pragma unroll
          for (int e = 0; e < kChannels; ++e) grad[e] = v.opmath(e);
          sums.template add<kChannels>(own_image + pixel * sums.row + vector * kChannels, grad, corner.weight[c]);
        }
      }
    }
  }
  __syncthreads();

  // an exclusive prefix sum of the counts tells where each target's corners start; targets are ordered by count,
  // largest first, so that the threads of a warp have equally much to sum up
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int even = first[2 * threadIdx.x], odd = first[2 * threadIdx.x + 1];
  const int even_bucket = kBuckets - 1 - min(even, kBuckets - 1), odd_bucket = kBuckets - 1 - min(odd, kBuckets - 1);
  const int even_rank = atomicAdd(&bucket_places[even_bucket], 1), odd_rank = atomicAdd(&bucket_places[odd_bucket], 1);
  const int through = prefix_sum(even + odd, lane);
  if (lane == 31) warp_totals[warp] = through;
  __syncthreads();
  int running = through;
  for (int w = 0; w < warp; ++w) running += warp_totals[w];
  first[2 * threadIdx.x] = running - even - odd;
  first[2 * threadIdx.x + 1] = running - odd;
  if (threadIdx.x == kTileThreads - 1) first[kTargets] = running;
  if (warp == 0) {
    const int low = bucket_places[2 * lane], high = bucket_places[2 * lane + 1];
    const int end = prefix_sum(low + high, lane);
    bucket_places[2 * lane] = end - low - high;
    bucket_places[2 * lane + 1] = end - high;
  }
  __syncthreads();
  order[bucket_places[even_bucket] + even_rank] = 2 * threadIdx.x;
  order[bucket_places[odd_bucket] + odd_rank] = 2 * threadIdx.x + 1;

#pragma unroll
  for (int i = 0; i < kSamplesAThread; ++i) {
    const int sample = threadIdx.x + i * kTileThreads;
    const int pixel = t.by_points.quotient(sample);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (slots[i][c] == kNone) continue;
      corners[first[slots[i][c] & 0xff] + (slots[i][c] >> 8)] = {weights[i][c], pixel};
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i - lane < kTargets * vectors; i += kTileThreads) {
    const int place = i / vectors, vector = i - place * vectors;
    const int target = i < kTargets * vectors ? order[place] : 0;
    const int begin = first[target], end = i < kTargets * vectors ? first[target + 1] : begin;
    // the targets that follow have no more corners
    if (__all_sync(0xffffffffu, begin == end)) break;
    float sum[kChannels] = {};
#pragma unroll 2
    for (int j = begin; j < end; ++j) {
      const Corner corner = corners[j];
      Vector<T, kChannels> v;
      v.copy(rows + (corner.pixel * vectors + vector) * kChannels);
#pragma unroll
      for (int e = 0; e < kChannels; ++e) sum[e] = fmaf(corner.weight, v.opmath(e), sum[e]);
    }
    const int64_t pixel = static_cast<int64_t>(region_y + target / kRegion) * g.width + region_x + target % kRegion;
    sums.add_whole_warp(own_image + pixel * sums.row + vector * kChannels, sum, begin < end);
  }
}

// whether sum_tiles takes the problem
template <typename T>
bool fits_tiles(const Problem& p) {
  return sizeof(T) <= 4 && Tiling::side_for(p) > 0 && p.group_width * sizeof(T) <= kMostRowBytes;
}

template <typename T, int kChannels, typename Sums>
cudaError_t launch_tiles(
    const Problem& p, const T* grad_output, const T* offset_mask, Sums sums, int64_t images, cudaStream_t stream) {
  const Tiling tiling(p);
  const size_t bytes = tiling.corners(p.points) * sizeof(Corner) + tiling.pixels() * p.group_width * sizeof(T);
  const auto kernel = sum_tiles<T, kChannels, Sums>;
  if (bytes > 48 * 1024) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (status != cudaSuccess) return status;
  }
  const dim3 grid(tiling.tiles() * p.groups, static_cast<unsigned>(images));
  kernel<<<grid, kTileThreads, bytes, stream>>>(Geometry<float>(p), tiling, grad_output, offset_mask, sums);
  return cudaGetLastError();
}

}  // namespace
}  // namespace yolo_dcnv4
