// the gradients of a warp's 4 x 4 output pixels, up to the products that give grad_value
#pragma once

#include "offset_gradient.cuh"
#include "plane_backward.h"
#include "tile_product.cuh"

namespace yolo_dcnv4 {
namespace {

template <typename T, int kSlices>
struct alignas(16) WarpRoom {
  float matrix[kNearPixels][kSide];  // first dot products, then weights
  T grads[kSlices][kSide * kSide];   // entries as Matrix<T>::entry says
  T records[kSide][kRecordPitch<T>];
  uint16_t far[kSide * kPoints];
  uint32_t not_finite;  // a bit for each pixel
  uint32_t largest;     // among the weights
  int far_count;
};
static_assert(
    sizeof(WarpRoom<float, 1>) == warp_room_bytes(4, 1) && sizeof(WarpRoom<__half, 4>) == warp_room_bytes(2, 4),
    "the host knows the size");

template <typename T>
struct WarpGradients {
  const T* grad_output;
  const T* value;
  const T* offset_mask;
  T* grad_offset_mask;  // null where it is not needed
  bool needs_value;

  // of the images from `first` on
  WarpGradients(const CudaBackwardArgs& args, int64_t first)
      : grad_output(static_cast<const T*>(args.grad_output) + first * args.problem.grad_output.n),
        value(static_cast<const T*>(args.value) + first * args.problem.value.n),
        offset_mask(static_cast<const T*>(args.offset_mask) + first * args.problem.offset_mask.n),
        grad_offset_mask(
            args.grad_offset_mask
                ? static_cast<T*>(args.grad_offset_mask) + first * args.problem.out_pixels() * args.grad_offset_mask_row
                : nullptr),
        needs_value(args.grad_value != nullptr) {}
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// gradients of the warp's pixels on their way from global memory, two lanes a pixel
template <typename T, int kChannels, int kSlices>
struct StagedGradients {
  static constexpr int kVectors = kSlices * kSide / kChannels / 2;
  Vector<T, kChannels> vector[kVectors];

  static __device__ __forceinline__ int channel(int i) { return (2 * i + threadIdx.x % 2) * kChannels; }

  __device__ __forceinline__ void load(
      const Geometry<float>& g, const WarpLayout& layout, const WarpPlace& place, const T* grad_output) {
    int y, x;
    place.output_pixel(threadIdx.x / 2 % kSide, y, x);
    const bool exists = y < layout.out_height && x < g.out_width;
    const T* from = grad_output + static_cast<int64_t>(y) * layout.grad_h + static_cast<int64_t>(x) * layout.grad_w;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      set_zero(vector[i]);
      if (exists & channel(i) < layout.group_width) vector[i].load(from + channel(i));
    }
  }
  // in the order of products' steps
  __device__ __forceinline__ void store(WarpRoom<T, kSlices>& room) {
    const int row = step_row(threadIdx.x / 2 % kSide);
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!all_finite(vector[i])) {
        finite = false;
        set_zero(vector[i]);
      }
      Matrix<T>::store(room.grads[channel(i) / kSide], row, channel(i) % kSide, vector[i]);
    }
    // two lanes a pixel: one bit for each pair
    unsigned odd = __ballot_sync(0xffffffffu, !finite);
    if (odd == 0) {
      if (threadIdx.x % 32 == 0) room.not_finite = 0;
      return;
    }
    unsigned pixels = 0;
    for (int i = 0; i < kSide; ++i) pixels |= (odd >> 2 * i & 3) ? 1u << i : 0u;
    if (threadIdx.x % 32 == 0) room.not_finite = pixels;
  }
};

// dot products of the gradients of the warp's pixels with the features of all near ones, which are zero outside the
// image; those of kAtOnce blocks of 4 x 4 are under way together
template <typename T, int kSlices, int kAtOnce>
__device__ __forceinline__ void multiply_features(
    const Geometry<float>& g, const WarpLayout& layout, const WarpPlace& place, const T* features,
    WarpRoom<T, kSlices>& room) {
  using M = Matrix<T>;
  using Part = typename M::Part;
  constexpr int kBlocks = kNearSide / kBlockSide;
  static_assert(kBlocks * kBlocks % kAtOnce == 0, "all blocks have their turn");
  const Lane lane;
  const int row = lane.g / kBlockSide, column = lane.g % kBlockSide;
  const int first_y = place.near_y + row;
  const int first_x = place.near_x + column;
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
  float* to = &room.matrix[row * kNearSide + column][4 * lane.t];
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
      for (int slice = 0; slice < kSlices; ++slice) grads[slice].load(room.grads[slice], lane);
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

// Gradients of near points, in place of their records, and then, in place of the dot products, the matrix of their
// weights times `scale`. Returns the points that are not near, a bit for each.
template <typename T, int kSlices>
__device__ __forceinline__ uint32_t near_points(
    const Geometry<float>& g, const WarpPlace& place, float scale, bool needs_records, bool needs_value,
    WarpRoom<T, kSlices>& room) {
  float (&matrix)[kNearPixels][kSide] = room.matrix;
  const int lane = threadIdx.x % 32;
  const bool usable = place.exists & !(room.not_finite >> place.pixel & 1);
  const NearBounds bounds(g, place, usable);
  const Position<float> at(g, place.out_y, place.out_x);
  T* record = room.records[place.pixel];
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

  if (needs_value) {
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
  return missing;
}

// lists those among the missing points that are far; what lies outside the image counts as nothing
template <typename T, int kSlices>
__device__ __forceinline__ int list_far_points(
    const Geometry<float>& g, const WarpPlace& place, const T* offset_mask, uint32_t missing,
    WarpRoom<T, kSlices>& room) {
  const int lane = threadIdx.x % 32;
  // both lanes of a pixel miss the same points
  uint32_t left_out = place.exists & place.side == 0 ? missing : 0u;
  int count = 0;
  if (!__any_sync(0xffffffffu, left_out != 0)) return count;
  const Position<float> at(g, place.out_y, place.out_x);
  const T* original = offset_mask + place.out_y * g.offset_h + place.out_x * g.offset_w;
#pragma unroll 1
  do {
    const int k = __ffs(left_out) - 1;
    const bool far = left_out != 0 && sample(g, at, original, k).inside;
    left_out &= left_out - 1;
    const unsigned lanes = __ballot_sync(0xffffffffu, far);
    if (far) room.far[count + __popc(lanes & ((1u << lane) - 1))] = k * kSide + place.pixel;
    count += __popc(lanes);
  } while (__any_sync(0xffffffffu, left_out != 0));
  __syncwarp();
  return count;
}

struct FarPoint {
  int pixel, k, out_y, out_x;
  Sample<float> s;
  float m;
};

// an entry of the warp's list
template <typename T>
__device__ __forceinline__ FarPoint
far_point(const Geometry<float>& g, const WarpPlace& place, const T* offset_mask, int item) {
  const int pixel = item % kSide, k = item / kSide;
  int out_y, out_x;
  place.output_pixel(pixel, out_y, out_x);
  const T* record = offset_mask + out_y * g.offset_h + out_x * g.offset_w;
  const Sample<float> s = sample(g, Position<float>(g, out_y, out_x), record, k);
  return {pixel, k, out_y, out_x, s, to_opmath(record[2 * kPoints + k])};
}

// The points that the products leave out, by the contract: four lanes a point, one a corner.
// add(y, x, channel, gradients, weight) takes what a corner contributes to grad_value.
template <typename T, int kChannels, int kSlices, typename Add>
__device__ __forceinline__ void far_points(
    const Geometry<float>& g, const WarpLayout& layout, const WarpPlace& place, const T* grads, const T* features,
    const T* offset_mask, WarpRoom<T, kSlices>& room, int count, bool needs_records, const Add& add) {
  const int quad = threadIdx.x % 32 / 4, corner = threadIdx.x % 4;
#pragma unroll 1
  for (int first = 0; first < count; first += 8) {
    const bool active = first + quad < count;
    const auto [pixel, k, out_y, out_x, s, m] =
        far_point(g, place, offset_mask, room.far[active ? first + quad : first]);
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
        add(y, x, channel, grad, m * weight);
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
    T* gradient = room.records[pixel];
    gradient[2 * k] = from_opmath<T>(factor * grad_x);
    gradient[2 * k + 1] = from_opmath<T>(factor * grad_y);
    gradient[2 * kPoints + k] = from_opmath<T>(grad_m);
  }
  __syncwarp();
}

// the gradients of the records to an image of grad_offset_mask
template <typename T, int kSlices>
__device__ __forceinline__ void store_records(
    const Geometry<float>& g, const WarpLayout& layout, const WarpPlace& place, const WarpRoom<T, kSlices>& room,
    T* grad_offset_mask) {
  const int lane = threadIdx.x % 32;
  T* row = grad_offset_mask + place.group * kRecord + lane;
  row += static_cast<int64_t>(place.first_y * g.out_width + place.first_x) * layout.record_row;
  T* to_row = row;
#pragma unroll
  for (int i = 0; i < kBlockSide; ++i) {
    T* to_pixel = to_row;
    const bool row_exists = (place.first_y + i < layout.out_height) & lane < kRecord;
#pragma unroll
    for (int j = 0; j < kBlockSide; ++j) {
      if (row_exists & place.first_x + j < g.out_width) {
        *to_pixel = room.records[i * kBlockSide + j][lane];
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
      if (place.first_y + i / kBlockSide >= layout.out_height || place.first_x + i % kBlockSide >= g.out_width)
        continue;
      T* pixel_row =
          row + static_cast<int64_t>(i / kBlockSide * g.out_width + i % kBlockSide) * layout.record_row + kRecord;
#pragma unroll 1
      for (int entry = lane; entry < padding; entry += 32) pixel_row[entry - lane] = from_opmath<T>(0);
    }
  }
}

#endif

}  // namespace
}  // namespace yolo_dcnv4
