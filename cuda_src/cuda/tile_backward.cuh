// all gradients of a tile in one pass, as dense matrix products
#pragma once

#include "offset_gradient.cuh"
#include "sums.cuh"
#include "tile_backward.h"
#include "tile_product.cuh"

namespace yolo_dcnv4 {
namespace {

constexpr int kTilesAtOnce = 4;  // on a multiprocessor: up to 128 registers a thread

template <typename T, int kSlices>
struct BackwardRoom {
  float matrix[kWarps][kNearPixels][kSide];  // of each warp: first dot products, then weights
  T grads[kWarps][kSlices][kSide][kSide];
  T records[kWarps][kSide][kRecordPitch<T>];
  uint16_t far[kWarps][kSide * kPoints];
  uint32_t not_finite[kWarps];  // a bit for each pixel
  uint32_t largest[kWarps];
};

template <typename T>
struct TileGradients {
  const T* grad_output;
  const T* value;
  const T* offset_mask;
  T* grad_offset_mask;  // null where it is not needed
  bool needs_value;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// gradients of the tile's pixels, in the order of products' steps
template <typename T, int kChannels, int kSlices>
__device__ __forceinline__ void stage_gradients(
    const Geometry<float>& g, const TileLayout& layout, const TilePlace& place, const T* grad_output,
    BackwardRoom<T, kSlices>& room) {
  constexpr int kVectors = kSlices * kSide / kChannels;
  constexpr int kPiece = 16 / sizeof(T);
  static_assert(2 * kWarps * kSide == kThreadsATile, "two threads a pixel");
  const int block = threadIdx.x / 32, pixel = threadIdx.x / 2 % kSide, row = step_row(pixel);
  int y, x;
  place.output_pixel(block, pixel, y, x);
  const bool exists = y < layout.out_height && x < g.out_width;
  const T* from = grad_output + static_cast<int64_t>(y) * layout.grad_h + static_cast<int64_t>(x) * layout.grad_w;
  bool finite = true;
#pragma unroll
  for (int vector = threadIdx.x % 2; vector < kVectors; vector += 2) {
    const int channel = vector * kChannels;
    Vector<T, kChannels> v;
    if (exists && channel < layout.group_width) {
      v.load(from + channel);
    } else {
      set_zero(v);
    }
    if (!all_finite(v)) {
      finite = false;
      set_zero(v);
    }
    const int piece = channel % kSide / kPiece ^ Matrix<T>::swizzle(row);
    v.store(&room.grads[block][channel / kSide][row][piece * kPiece + channel % kPiece]);
  }
  // two lanes a pixel: one bit for each pair
  unsigned odd = __ballot_sync(0xffffffffu, !finite);
  if (odd == 0) {
    if (threadIdx.x % 32 == 0) room.not_finite[block] = 0;
    return;
  }
  unsigned pixels = 0;
  for (int i = 0; i < kSide; ++i) pixels |= (odd >> 2 * i & 3) ? 1u << i : 0u;
  if (threadIdx.x % 32 == 0) room.not_finite[block] = pixels;
}

// dot products of the gradients of the warp's pixels with the features of all near ones, which are zero outside the
// image
template <typename T, int kSlices>
__device__ __forceinline__ void multiply_features(
    const Geometry<float>& g, const TileLayout& layout, const TilePlace& place, const T* features,
    const BackwardRoom<T, kSlices>& room, float (&matrix)[kNearPixels][kSide]) {
  using M = Matrix<T>;
  using Part = typename M::Part;
  constexpr int kBlocks = kNearSide / kBlockSide;
  constexpr int kAtOnce = kBlocks;  // whose features are under way together
  const Lane lane;
  const int row = lane.g / kBlockSide, column = lane.g % kBlockSide;
  const int first_y = place.region_y + place.warp / 2 * kBlockSide + row;
  const int first_x = place.region_x + place.warp % 2 * kBlockSide + column;
  const T* from = features + static_cast<int64_t>(first_y) * layout.value_h +
                  static_cast<int64_t>(first_x) * layout.value_w + 4 * lane.t;
  const T* rows[kBlocks][2];
  int64_t columns[kBlocks];
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    rows[block][0] = from + static_cast<int64_t>(block * kBlockSide) * layout.value_h;
    rows[block][1] = rows[block][0] + 2 * static_cast<int64_t>(layout.value_h);
    columns[block] = static_cast<int64_t>(block * kBlockSide) * layout.value_w;
  }
  float* to = &matrix[row * kNearSide + column][4 * lane.t];
  typename M::Columns grads[kSlices];
#pragma unroll
  for (int first = 0; first < kBlocks * kBlocks; first += kAtOnce) {
    Part parts[kAtOnce][kSlices][2];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int block_y = (first + i) / kBlocks * kBlockSide, block_x = (first + i) % kBlocks * kBlockSide;
      const bool x_inside = static_cast<unsigned>(first_x + block_x) < g.width;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int y = block_y + 2 * half;
        const bool inside = x_inside & static_cast<unsigned>(first_y + y) < g.height;
        const T* pixel = rows[(first + i) / kBlocks][half] + columns[(first + i) % kBlocks];
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice) {
          parts[i][slice][half] = Part{};
          if (inside & slice * kSide + 4 * lane.t < layout.group_width) {
            parts[i][slice][half] = __ldg(reinterpret_cast<const Part*>(pixel + slice * kSide));
          }
        }
      }
    }
    if (first == 0) {
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) grads[slice].load(room.grads[place.warp][slice][0], lane);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int block_y = (first + i) / kBlocks * kBlockSide, block_x = (first + i) % kBlocks * kBlockSide;
      Sum sum = {};
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        M::multiply(sum, typename M::Rows(parts[i][slice][0], parts[i][slice][1]), grads[slice]);
      }
      float* entry = to + (block_y * kNearSide + block_x) * kSide;
      *reinterpret_cast<float4*>(entry) = make_float4(sum[0][0], sum[0][1], sum[1][0], sum[1][1]);
      *reinterpret_cast<float4*>(entry + 2 * kNearRow) = make_float4(sum[0][2], sum[0][3], sum[1][2], sum[1][3]);
    }
  }
}

// The points that the products leave out, by the contract: four lanes a point, one a corner.
template <typename T, int kChannels, int kSlices, typename Sums>
__device__ __forceinline__ void far_points(
    const Geometry<float>& g, const TileLayout& layout, const TilePlace& place, const T* grads, const T* features,
    const T* offset_mask, BackwardRoom<T, kSlices>& room, int count, bool needs_records, bool needs_value,
    const Sums& sums, int64_t own_image) {
  const int quad = threadIdx.x % 32 / 4, corner = threadIdx.x % 4;
#pragma unroll 1
  for (int first = 0; first < count; first += 8) {
    const bool active = first + quad < count;
    const int item = room.far[place.warp][active ? first + quad : first];
    const int pixel = item % kSide, k = item / kSide;
    int out_y, out_x;
    place.output_pixel(place.warp, pixel, out_y, out_x);
    const T* record = offset_mask + out_y * g.offset_h + out_x * g.offset_w;
    const Sample<float> s = sample(g, Position<float>(g, out_y, out_x), record, k);
    const float m = to_opmath(record[2 * kPoints + k]);
    const int y = s.y0 + corner / 2, x = s.x0 + corner % 2;
    const bool valid = active && s.inside && (corner / 2 ? s.bottom : s.top) && (corner % 2 ? s.right : s.left);
    const float weight = (corner / 2 ? s.ly : 1 - s.ly) * (corner % 2 ? s.lx : 1 - s.lx);
    const T* grad_row =
        grads + static_cast<int64_t>(out_y) * layout.grad_h + static_cast<int64_t>(out_x) * layout.grad_w;
    const T* feature_row = features + static_cast<int64_t>(y) * g.value_h + static_cast<int64_t>(x) * g.value_w;
    float dot = 0.f;
    if (valid) {
#pragma unroll 1
      for (int channel = 0; channel < layout.group_width; channel += kChannels) {
        float grad[kChannels];
        load_floats<T, kChannels>(grad_row + channel, grad);
        if (needs_records) {
          float feature[kChannels];
          load_floats<T, kChannels>(feature_row + channel, feature);
#pragma unroll
          for (int c = 0; c < kChannels; ++c) dot = fmaf(grad[c], feature[c], dot);
        }
        if (needs_value) {
          const int64_t target = own_image + static_cast<int64_t>(y * g.width + x) * sums.row + channel;
          sums.template add<kChannels>(target, grad, m * weight);
        }
      }
    }
    float dots[4], weights[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      dots[i] = __shfl_sync(0xffffffffu, dot, i, 4);
      // a corner outside the image counts as nothing, whatever its weight
      weights[i] = __shfl_sync(0xffffffffu, valid ? weight : 0.f, i, 4);
    }
    __syncwarp();
    if (!needs_records || !active || corner != 0) continue;
    float grad_m = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) grad_m = fmaf(weights[i], dots[i], grad_m);
    const float factor = m * g.scale;
    const float grad_x = (1 - s.ly) * (dots[1] - dots[0]) + s.ly * (dots[3] - dots[2]);
    const float grad_y = (1 - s.lx) * (dots[2] - dots[0]) + s.lx * (dots[3] - dots[1]);
    T* gradient = room.records[place.warp][pixel];
    gradient[2 * k] = from_opmath<T>(factor * grad_x);
    gradient[2 * k + 1] = from_opmath<T>(factor * grad_y);
    gradient[2 * kPoints + k] = from_opmath<T>(grad_m);
  }
  __syncwarp();
}

// Sums of weights times gradients over the tile. A warp has four blocks of 4 x 4 targets: (0, 0), (0, 2), (1, 0) and
// (1, 2) of the region's 4 x 4 blocks for the first warp, and their mirror images for the others. Each warp then
// multiplies nine times.
template <typename T, int kSlices, typename Sums>
__device__ __forceinline__ void multiply_weights(
    const Geometry<float>& g, const TileLayout& layout, const TilePlace& place, const BackwardRoom<T, kSlices>& room,
    float unscale, const Sums& sums, int64_t own_image) {
  using M = Matrix<T>;
  constexpr int kAtOnce = kSlices < 2 ? kSlices : 2;
  const int row_entries = static_cast<int>(sums.row);
  const Lane lane;
  const int row = lane.g / kBlockSide, column = lane.g % kBlockSide;
  const bool flipped_y = place.warp / 2, flipped_x = place.warp % 2;
  // from the first block of weights to the next ones, in entries
  const int step_y = (flipped_y ? -kBlockSide : kBlockSide) * kNearRow;
  const int step_x = (flipped_x ? -kBlockSide : kBlockSide) * kSide;
  const int first_block =
      (((flipped_y ? 2 * kBlockSide : 0) + row) * kNearSide + (flipped_x ? 2 * kBlockSide : 0) + column) * kSide;
#pragma unroll 1
  for (int first = 0; first < kSlices; first += kAtOnce) {
    Sum sum[2][2][kAtOnce] = {};
#pragma unroll
    for (int pixels_y = 0; pixels_y < 2; ++pixels_y) {
#pragma unroll
      for (int pixels_x = 0; pixels_x < 2; ++pixels_x) {
        const int pixels = 2 * (flipped_y ? 1 - pixels_y : pixels_y) + (flipped_x ? 1 - pixels_x : pixels_x);
        typename M::Columns grads[kAtOnce];
#pragma unroll
        for (int slice = 0; slice < kAtOnce; ++slice) {
          grads[slice].load_steps(room.grads[pixels][first + slice][0], lane);
        }
        const float* blocks = room.matrix[pixels][0] + first_block;
#pragma unroll
        for (int i = pixels_y; i < 2; ++i) {
#pragma unroll
          for (int j = pixels_x; j < 2; ++j) {
            const float* weights = blocks + (i - pixels_y) * step_y + (2 * j - pixels_x) * step_x;
            const typename M::FineRows rows(
                *reinterpret_cast<const float4*>(weights + 4 * lane.t),
                *reinterpret_cast<const float4*>(weights + 2 * kNearRow + 4 * lane.t));
#pragma unroll
            for (int slice = 0; slice < kAtOnce; ++slice) M::multiply(sum[i][j][slice], rows, grads[slice]);
          }
        }
      }
    }

    // neighbouring lanes exchange a pair of channels, so that each has four side by side
    const bool odd = lane.t % 2;
    const int channel = first * kSide + (odd ? 8 : 0) + lane.t / 2 * 4;
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
          const int64_t target = own_image + static_cast<int64_t>(y * g.width + x) * row_entries + channel;
#pragma unroll
          for (int slice = 0; slice < kAtOnce; ++slice) {
            const Sum& own = sum[i][j][slice];
            float got[2];
#pragma unroll
            for (int e = 0; e < 2; ++e)
              got[e] = __shfl_xor_sync(0xffffffffu, odd ? own[0][2 * half + e] : own[1][2 * half + e], 1);
            float four[4];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const float kept = (odd ? own[1][2 * half + e] : own[0][2 * half + e]) * unscale,
                          other = got[e] * unscale;
              four[e] = odd ? other : kept;
              four[2 + e] = odd ? kept : other;
            }
            if constexpr (Sums::kOrdered) {
              // eight bytes a channel: four lanes take four neighbouring ones, and so one 32-byte sector
              float one[4];
              transpose(four, one, lane.t);
#pragma unroll
              for (int block = 0; block < 4; ++block) {
                const int own_channel = (first + slice) * kSide + block % 2 * 8 + block / 2 * 4 + lane.t;
                const float single[1] = {one[block]};
                if (inside & single[0] != 0.f & own_channel < layout.group_width) {
                  sums.template add<1>(target - channel + own_channel, single, 1.f);
                }
              }
            } else {
              const uint32_t any = (__float_as_uint(four[0]) | __float_as_uint(four[1]) | __float_as_uint(four[2]) |
                                    __float_as_uint(four[3]))
                                   << 1;
              if (inside & any != 0 & channel + slice * kSide < layout.group_width) {
                sums.template add<4>(target + slice * kSide, four, 1.f);
              }
            }
          }
        }
      }
    }
  }
}

#endif

template <typename T, int kChannels, int kSlices, typename Sums>
__global__ void __launch_bounds__(kThreadsATile, kTilesAtOnce)
    tile_gradients(const Geometry<float> g, const TileLayout layout, const TileGradients<T> to, const Sums raw_sums) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Room = BackwardRoom<T, kSlices>;
  extern __shared__ uint4 shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  const TilePlace place(g, layout);
  const Sums sums = raw_sums.prepared();
  const int64_t n = blockIdx.y;
  const int first_channel = place.group * layout.group_width;
  const T* grads = to.grad_output + n * layout.grad_n + first_channel;
  const T* features = to.value + n * g.value_n + first_channel;
  const T* offset_mask = to.offset_mask + n * g.offset_n + place.group * kRecord;
  const int64_t own_image = n * g.height * g.width * sums.row + first_channel;
  const bool needs_records = to.grad_offset_mask != nullptr;
  const int lane = threadIdx.x % 32;

  const uint32_t largest = stage_records(g, layout, place, offset_mask, room.records[place.warp][0]);
  stage_gradients<T, kChannels, kSlices>(g, layout, place, grads, room);
  const uint32_t warp_largest = __reduce_max_sync(0xffffffffu, largest);
  if (lane == 0) room.largest[place.warp] = warp_largest;
  __syncwarp();
  float (&matrix)[kNearPixels][kSide] = room.matrix[place.warp];
  if (needs_records) multiply_features<T, kSlices>(g, layout, place, features, room, matrix);
  if constexpr (kScaled<T>) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  const float scale = scale_for<T>(max(max(room.largest[0], room.largest[1]), max(room.largest[2], room.largest[3])));

  const bool usable = place.exists & !(room.not_finite[place.warp] >> place.pixel & 1);
  const NearBounds bounds(g, place, usable);
  const Position<float> at(g, place.out_y, place.out_x);
  T* record = room.records[place.warp][place.pixel];
  const bool left = place.side == 0;
  const float sign = left ? 1.f : -1.f;
  // entry of the pixel (whole_y, whole_x) and this lane's side in the matrix
  const uint32_t first_entry = (place.side - bounds.first_x - Split::kShiftBits) * kSide -
                               (bounds.first_y + Split::kShiftBits) * kNearRow + place.pixel;
  // where nothing is added for points that are not near
  const uint32_t nowhere = place.side * kSide + place.pixel;
  float* own = &matrix[0][0];
  float top_weight[kPoints], bottom_weight[kPoints];
  uint32_t corner[kPoints];
  uint32_t missing = 0;
  float x_at[3], y_at[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) x_at[i] = at.x(g, i, 0.f), y_at[i] = at.y(g, i, 0.f);

#pragma unroll
  for (int pair = 0; pair < kPoints; pair += 2) {
    // the left lane finishes the gradient of the first point of a pair, the right one that of the second
    float down[2], level[2], factor[2], across[2];
    bool near[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int k = pair + e;
      if (k == kPoints) continue;
      const float m = to_opmath(record[2 * kPoints + k]);
      const float x = fmaf(to_opmath(record[2 * k]), g.scale, x_at[k / 3]);
      // a weight that is not finite makes the position NaN, and the point far
      const float y = fmaf(m, 0.f, fmaf(to_opmath(record[2 * k + 1]), g.scale, y_at[k % 3]));
      near[e] = bounds.hold(y, x);
      if (!near[e]) missing |= 1u << k;
      const Split in_y(y), in_x(x);
      const uint32_t entry = in_y.bits * kNearRow + (in_x.bits * kSide + first_entry);
      corner[k] = near[e] ? entry : nowhere;
      across[e] = left ? 1.f - in_x.rest : in_x.rest;
      const float top = own[corner[k]], bottom = own[corner[k] + kNearRow];
      down[e] = bottom - top;
      level[e] = fmaf(in_y.rest, down[e], top);
      factor[e] = m * g.scale;
      const float weight = m * scale * across[e];
      const float below = weight * in_y.rest;
      top_weight[k] = near[e] ? weight - below : 0.f;
      bottom_weight[k] = near[e] ? below : 0.f;
    }
    // both lanes have read what one of them is to write over
    __syncwarp();
    if (pair + 1 < kPoints) {
      const float other_down = __shfl_xor_sync(0xffffffffu, left ? down[1] : down[0], 16);
      const float other_level = __shfl_xor_sync(0xffffffffu, left ? level[1] : level[0], 16);
      const int e = left ? 0 : 1;
      const float own_down = left ? down[0] : down[1], own_level = left ? level[0] : level[1];
      const float own_across = left ? across[0] : across[1], own_factor = left ? factor[0] : factor[1];
      const bool counts = left ? near[0] : near[1];
      const float other_across = 1.f - own_across;
      const float grad_x = own_factor * sign * (other_level - own_level);
      const float grad_y = own_factor * fmaf(own_across, own_down, other_across * other_down);
      const float grad_m = fmaf(own_across, own_level, other_across * other_level);
      if (needs_records) {
        record[2 * (pair + e)] = from_opmath<T>(counts ? grad_x : 0.f);
        record[2 * (pair + e) + 1] = from_opmath<T>(counts ? grad_y : 0.f);
        record[2 * kPoints + pair + e] = from_opmath<T>(counts ? grad_m : 0.f);
      }
    } else {
      const float other_down = __shfl_xor_sync(0xffffffffu, down[0], 16);
      const float other_level = __shfl_xor_sync(0xffffffffu, level[0], 16);
      const float other_across = 1.f - across[0];
      const float grad_x = factor[0] * sign * (other_level - level[0]);
      const float grad_y = factor[0] * fmaf(across[0], down[0], other_across * other_down);
      const float grad_m = fmaf(across[0], level[0], other_across * other_level);
      if (needs_records & left) {
        record[2 * pair] = from_opmath<T>(near[0] ? grad_x : 0.f);
        record[2 * pair + 1] = from_opmath<T>(near[0] ? grad_y : 0.f);
        record[2 * kPoints + pair] = from_opmath<T>(near[0] ? grad_m : 0.f);
      }
    }
  }

  if (to.needs_value) {
    __syncwarp();
#pragma unroll 6
    for (int i = 0; i < kNearPixels * kSide / 4 / 32; ++i) {
      reinterpret_cast<float4*>(own)[lane + 32 * i] = make_float4(0.f, 0.f, 0.f, 0.f);
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kPoints; ++k) {
      const float top = own[corner[k]], bottom = own[corner[k] + kNearRow];
      own[corner[k]] = top + top_weight[k];
      own[corner[k] + kNearRow] = bottom + bottom_weight[k];
      // the lane of the other corners may come to the same pixel next
      __syncwarp();
    }
  }

  uint32_t left_out = __reduce_or_sync(0xffffffffu, place.exists ? missing : 0u);
  if (left_out != 0) {
    // what lies outside the image counts as nothing; the rest is far
    int count = 0;
    const T* original = offset_mask + place.out_y * g.offset_h + place.out_x * g.offset_w;
#pragma unroll 1
    for (; left_out != 0; left_out &= left_out - 1) {
      const int k = __ffs(left_out) - 1;
      bool far = left & place.exists & missing >> k & 1;
      if (far) far = sample(g, at, original, k).inside;
      const unsigned lanes = __ballot_sync(0xffffffffu, far);
      if (far) room.far[place.warp][count + __popc(lanes & ((1u << lane) - 1))] = k * kSide + place.pixel;
      count += __popc(lanes);
    }
    __syncwarp();
    far_points<T, kChannels, kSlices>(
        g, layout, place, grads, features, offset_mask, room, count, needs_records, to.needs_value, sums, own_image);
  }

  if (needs_records) {
    __syncwarp();
    T* row = to.grad_offset_mask + n * g.out_pixels * layout.record_row + place.group * kRecord + lane;
    int first_y, first_x;
    place.output_pixel(place.warp, 0, first_y, first_x);
    row += static_cast<int64_t>(first_y * g.out_width + first_x) * layout.record_row;
    T* to_row = row;
#pragma unroll
    for (int i = 0; i < kBlockSide; ++i) {
      T* to_pixel = to_row;
      const bool row_exists = (first_y + i < layout.out_height) & lane < kRecord;
#pragma unroll
      for (int j = 0; j < kBlockSide; ++j) {
        if (row_exists & first_x + j < g.out_width) {
          *to_pixel = room.records[place.warp][i * kBlockSide + j][lane];
        }
        to_pixel += layout.record_row;
      }
      to_row += static_cast<int64_t>(g.out_width) * layout.record_row;
    }
    // what lies behind the last group is zero
    const int padding = static_cast<int>(layout.entries - static_cast<int64_t>(place.group + 1) * kRecord);
    if (place.group + 1 == layout.groups && padding > 0) {
#pragma unroll 1
      for (int i = 0; i < kSide; ++i) {
        if (first_y + i / kBlockSide >= layout.out_height || first_x + i % kBlockSide >= g.out_width) continue;
        T* pixel_row =
            row + static_cast<int64_t>(i / kBlockSide * g.out_width + i % kBlockSide) * layout.record_row + kRecord;
#pragma unroll 1
        for (int entry = lane; entry < padding; entry += 32) pixel_row[entry - lane] = from_opmath<T>(0);
      }
    }
  }

  if (!to.needs_value) return;
  __syncthreads();
  multiply_weights<T, kSlices>(g, layout, place, room, 1.f / scale, sums, own_image);
#endif
}

template <typename T, int kSlices, typename Sums>
cudaError_t launch_slices(const CudaBackwardArgs& args, const Sums& sums, cudaStream_t stream) {
  constexpr int kChannels = 16 / static_cast<int>(sizeof(T));
  const Problem& p = args.problem;
  const TileLayout layout(p, args.grad_offset_mask_row);
  const auto kernel = tile_gradients<T, kChannels, kSlices, Sums>;
  const int bytes = sizeof(BackwardRoom<T, kSlices>);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  auto* grad_offset_mask = static_cast<T*>(args.grad_offset_mask);
  for (int64_t first = 0; first < p.batch; first += kMostImages) {
    const int64_t images = p.batch - first < kMostImages ? p.batch - first : kMostImages;
    const TileGradients<T> to{
        static_cast<const T*>(args.grad_output) + first * p.grad_output.n,
        static_cast<const T*>(args.value) + first * p.value.n,
        static_cast<const T*>(args.offset_mask) + first * p.offset_mask.n,
        grad_offset_mask ? grad_offset_mask + first * p.out_pixels() * args.grad_offset_mask_row : nullptr,
        args.grad_value != nullptr};
    Sums shifted = sums;
    shifted.sums += first * p.pixels() * sums.row;
    const dim3 grid(layout.blocks(), static_cast<unsigned>(images));
    kernel<<<grid, kThreadsATile, bytes, stream>>>(Geometry<float>(p), layout, to, shifted);
  }
  return cudaGetLastError();
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
