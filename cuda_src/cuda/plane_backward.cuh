// all gradients of a plane, an image's group, by one block that sums grad_value up in shared memory
//
// Each target has one owner at a time, and what is added to it comes in a fixed order: no atomics, and the same bits in
// every run.
#pragma once

#include "plane_backward.h"
#include "warp_gradients.cuh"

namespace yolo_dcnv4 {
namespace {

constexpr int kMostThreadsAPlane = 32 * kMostPlaneWarps;

// blocks of 4 x 4 pixels, row by row; those of the input are those of the output
struct PlaneLayout {
  int columns, blocks;
  Divider by_columns, by_vectors;  // by_vectors: of a pixel's channels

  PlaneLayout(const Problem& p, int channels)
      : columns(parts_of(p.width, kBlockSide)),
        blocks(columns * parts_of(p.height, kBlockSide)),
        by_columns(columns),
        by_vectors(p.group_width / channels) {}
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

__device__ __forceinline__ WarpPlace
plane_place(const Geometry<float>& g, const WarpLayout& layout, const PlaneLayout& plane, int block) {
  const int y = plane.by_columns.quotient(block), x = block - y * plane.columns;
  return WarpPlace(g, layout, blockIdx.x, y * kBlockSide, x * kBlockSide);
}

// Adds products of weights and gradients of the blocks from `first` on, as many as there are rooms in use, to the sums.
template <typename T, int kSlices>
__device__ __forceinline__ void add_products(
    const Geometry<float>& g, const PlaneLayout& plane, const WarpRoom<T, kSlices>* rooms, int first, int sources,
    float unscale, float* sums) {
  using M = Matrix<T>;
  constexpr int kAtOnce = kSlices < 2 ? kSlices : 2;
  constexpr int kRow = kSlices * kSide;
  const Lane lane;
  const int row = lane.g / kBlockSide, column = lane.g % kBlockSide;
  const int begin = max(first - plane.columns - 1, 0);
  const int end = min(first + sources + plane.columns + 1, plane.blocks);
#pragma unroll 1
  for (int target = begin + threadIdx.x / 32; target < end; target += blockDim.x / 32) {
    const int target_y = plane.by_columns.quotient(target), target_x = target - target_y * plane.columns;
#pragma unroll 1
    for (int slice = 0; slice < kSlices; slice += kAtOnce) {
      Sum sum[kAtOnce] = {};
#pragma unroll 1
      for (int i = -1; i <= 1; ++i) {
#pragma unroll
        for (int j = -1; j <= 1; ++j) {
          const int source = target + i * plane.columns + j - first;
          if (static_cast<unsigned>(source) >= sources || static_cast<unsigned>(target_x + j) >= plane.columns)
            continue;
          const WarpRoom<T, kSlices>& room = rooms[source];
          const float* weights =
              room.matrix[((1 - i) * kBlockSide + row) * kNearSide + (1 - j) * kBlockSide + column] + 4 * lane.t;
          const typename M::FineRows rows(
              *reinterpret_cast<const float4*>(weights), *reinterpret_cast<const float4*>(weights + 2 * kNearRow));
#pragma unroll
          for (int s = 0; s < kAtOnce; ++s) {
            typename M::Columns grads;
            grads.template load_steps<false>(room.grads[slice + s], lane);
            M::multiply(sum[s], rows, grads);
          }
        }
      }
      const int x = target_x * kBlockSide + column;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int y = target_y * kBlockSide + row + 2 * half;
        float* to = sums + (y * g.width + x) * kRow + slice * kSide + 4 * lane.t;
        if (y >= g.height || x >= g.width) continue;
#pragma unroll
        for (int s = 0; s < kAtOnce; ++s) {
          float own[4];
          M::template columns<false>(sum[s], half, lane, own);
          float4 total = *reinterpret_cast<const float4*>(to + s * kSide);
          total.x = fmaf(own[0], unscale, total.x);
          total.y = fmaf(own[1], unscale, total.y);
          total.z = fmaf(own[2], unscale, total.z);
          total.w = fmaf(own[3], unscale, total.w);
          *reinterpret_cast<float4*>(to + s * kSide) = total;
        }
      }
    }
  }
}

// What far points add to the sums. A row of the plane belongs to a warp, which goes through all lists in their order.
template <typename T, int kSlices>
__device__ __forceinline__ void add_far_points(
    const Geometry<float>& g, const WarpLayout& layout, const PlaneLayout& plane, const WarpRoom<T, kSlices>* rooms,
    int first, int sources, const T* grads, const T* offset_mask, float* sums) {
  constexpr int kRow = kSlices * kSide;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll 1
  for (int source = 0; source < sources; ++source) {
    const WarpRoom<T, kSlices>& room = rooms[source];
    const int count = room.far_count;
    if (count == 0) continue;
    const WarpPlace place = plane_place(g, layout, plane, first + source);
#pragma unroll 1
    for (int begin = 0; begin < count; begin += 32) {
      const bool active = begin + lane < count;
      const FarPoint far = far_point(g, place, offset_mask, room.far[active ? begin + lane : begin]);
      const Sample<float>& s = far.s;
      const bool top = active && s.top && s.y0 % warps == warp;
      const bool bottom = active && s.bottom && (s.y0 + 1) % warps == warp;
      const int own = far.pixel | (top ? kSide : 0) | (bottom ? 2 * kSide : 0);
#pragma unroll 1
      for (unsigned items = __ballot_sync(0xffffffffu, top | bottom); items != 0; items &= items - 1) {
        const int from = __ffs(items) - 1;
        const int given = __shfl_sync(0xffffffffu, own, from);
        const int y = __shfl_sync(0xffffffffu, s.y0, from), left = __shfl_sync(0xffffffffu, s.x0, from);
        const float ly = __shfl_sync(0xffffffffu, s.ly, from), lx = __shfl_sync(0xffffffffu, s.lx, from);
        const float weight = __shfl_sync(0xffffffffu, far.m, from);
        // half a warp a corner
        const int x = left + lane / kSide;
        const float across = lane < kSide ? 1 - lx : lx;
        const int giver = given % kSide, row = step_row(giver);
        int out_y, out_x;
        place.output_pixel(giver, out_y, out_x);
        if (static_cast<unsigned>(x) < g.width) {
#pragma unroll 1
          for (int channel = lane % kSide; channel < layout.group_width; channel += kSide) {
            // gradients that are not finite are not staged
            const T grad = room.not_finite >> giver & 1
                               ? grads
                                     [static_cast<int64_t>(out_y) * layout.grad_h +
                                      static_cast<int64_t>(out_x) * layout.grad_w + channel]
                               : room.grads[channel / kSide][Matrix<T>::entry(row, channel % kSide)];
            float* to = sums + (y * g.width + x) * kRow + channel;
            if (given & kSide) *to = fmaf(weight * ((1 - ly) * across), to_opmath(grad), *to);
            to += g.width * kRow;
            if (given & 2 * kSide) *to = fmaf(weight * (ly * across), to_opmath(grad), *to);
          }
        }
        __syncwarp();
      }
    }
  }
}

#endif

template <typename T, int kChannels, int kSlices>
__global__ void __launch_bounds__(kMostThreadsAPlane, 1) plane_gradients(
    const Geometry<float> g, const WarpLayout layout, const PlaneLayout plane, const WarpGradients<T> to,
    T* __restrict__ grad_value, const int64_t grad_value_row) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Room = WarpRoom<T, kSlices>;
  constexpr int kRow = kSlices * kSide;
  extern __shared__ uint4 shared[];
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
  Room* rooms = reinterpret_cast<Room*>(shared);
  Room& room = rooms[warp];
  float* sums = reinterpret_cast<float*>(rooms + warps);
  const int64_t n = blockIdx.y;
  const int first_channel = blockIdx.x * layout.group_width;
  const T* grads = to.grad_output + n * layout.grad_n + first_channel;
  const T* features = to.value + n * g.value_n + first_channel;
  const T* offset_mask = to.offset_mask + n * g.offset_n + blockIdx.x * kRecord;
  const bool needs_records = to.grad_offset_mask != nullptr;

  WarpPlace place = plane_place(g, layout, plane, warp);
  StagedRecords<T> records;
  StagedGradients<T, kChannels, kSlices> staged;
  records.load(g, layout, place, offset_mask);
  staged.load(g, layout, place, grads);
  for (int i = threadIdx.x; i < g.height * g.width * (kRow / 4); i += blockDim.x) {
    reinterpret_cast<float4*>(sums)[i] = make_float4(0.f, 0.f, 0.f, 0.f);
  }

#pragma unroll 1
  for (int first = 0; first < plane.blocks; first += warps) {
    const int sources = min(warps, plane.blocks - first);
    if constexpr (kScaled<T>) {
      const uint32_t largest = records.largest();
      if (lane == 0) room.largest = largest;
    }
    // no warp needs what was staged before
    __syncthreads();
    float scale = 1.f;
    if constexpr (kScaled<T>) {
      scale = scale_for<T>(__reduce_max_sync(0xffffffffu, rooms[min(lane, sources - 1)].largest));
    }
    int far = 0;
    if (warp < sources) {
      records.store(room.records[0]);
      staged.store(room);
      __syncwarp();
      if (needs_records) multiply_features<T, kSlices, kSlices == 1 ? 9 : 3>(g, layout, place, features, room);
      __syncwarp();
      const uint32_t missing = near_points(g, place, scale, needs_records, true, room);
      far = list_far_points(g, place, offset_mask, missing, room);
      if (far != 0 && needs_records) {
        far_points<T, kChannels, kSlices>(
            g, layout, place, grads, features, offset_mask, room, far, true,
            [](int, int, int, const float (&)[kChannels], float) {});
      }
      if (lane == 0) room.far_count = far;
      if (needs_records) {
        __syncwarp();
        store_records(g, layout, place, room, to.grad_offset_mask + n * g.out_pixels * layout.record_row);
      }
    }
    if (__syncthreads_or(far)) {
      add_far_points<T, kSlices>(g, layout, plane, rooms, first, sources, grads, offset_mask, sums);
      __syncthreads();
    }
    if (first + warps < plane.blocks) {
      place = plane_place(g, layout, plane, min(first + warps + warp, plane.blocks - 1));
      records.load(g, layout, place, offset_mask);
      staged.load(g, layout, place, grads);
    }
    add_products<T, kSlices>(g, plane, rooms, first, sources, 1.f / scale, sums);
  }

  __syncthreads();
  const int vectors = plane.by_vectors.divisor;
  T* image = grad_value + n * g.height * g.width * grad_value_row + first_channel;
  for (int i = threadIdx.x; i < g.height * g.width * vectors; i += blockDim.x) {
    const int pixel = plane.by_vectors.quotient(i), channel = (i - pixel * vectors) * kChannels;
    Vector<float, kChannels> sum;
    sum.copy(sums + pixel * kRow + channel);
    Vector<T, kChannels> rounded;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) rounded.element[c] = from_opmath<T>(sum.element[c]);
    rounded.store(image + pixel * grad_value_row + channel);
  }
#endif
}

template <typename T, int kSlices>
cudaError_t launch_plane_slices(const CudaBackwardArgs& args, cudaStream_t stream) {
  constexpr int kChannels = 16 / static_cast<int>(sizeof(T));
  const Problem& p = args.problem;
  const WarpLayout layout(p, args.grad_offset_mask_row);
  const auto kernel = plane_gradients<T, kChannels, kSlices>;
  const int bytes = static_cast<int>(plane_bytes(p, sizeof(T), args.plane_warps));
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  auto* grad_value = static_cast<T*>(args.grad_value);
  return for_images(p, [&](int64_t first, int64_t images) {
    const WarpGradients<T> to(args, first);
    const dim3 grid(p.groups, static_cast<unsigned>(images));
    kernel<<<grid, 32 * args.plane_warps, bytes, stream>>>(
        Geometry<float>(p), layout, PlaneLayout(p, kChannels), to,
        grad_value + first * p.pixels() * args.grad_value_row, args.grad_value_row);
    return cudaGetLastError();
  });
}

}  // namespace

template <typename T>
cudaError_t launch_plane_gradients(const CudaBackwardArgs& args, cudaStream_t stream) {
  return slices_of(args.problem) == 1 ? launch_plane_slices<T, 1>(args, stream)
                                      : launch_plane_slices<T, 2>(args, stream);
}

}  // namespace yolo_dcnv4
