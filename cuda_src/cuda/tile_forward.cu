// A block takes a tile of output pixels and some channels of one group. It copies the input pixels of the tile and of a
// rim around it to shared memory, by the bulk tensor engine where there is one; there the corners of a point never meet
// in the same banks. Each warp prepares the points of 12 pixels, a lane a point, and then gathers for 4 pixels at a
// time. The few points that lie outside the staged pixels are added one by one, by the contract.
#include "tile_forward.h"

#include <stddef.h>

#include <algorithm>
#include <cmath>

#include "async_copy.cuh"
#include "bulk_copy.h"
#include "forward_tile.h"
#include "sampling.cuh"
#include "tuning.h"

namespace yolo_dcnv4 {

namespace {

constexpr int kPoints = 9;
constexpr uint32_t kPointBits = (1u << kPoints) - 1;
constexpr int kPixelsARound = 3;  // whose points 27 lanes prepare
constexpr int kRounds = kBatch / kPixelsARound;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr uint32_t kNoPixel = 0xffffffffu;

struct ForwardLayout {
  int tile_h, tile_w, pixels, out_height;
  int region_h, region_w;  // staged pixels
  int reach;               // of them on each side of the tile
  // of them those that points touch where no offset moves them: the first, rows, and 16-byte pieces of a row
  int touched_y, touched_x, touched_h, touched_pieces;
  int copy_threads, copy_rows;      // threads that copy a row, rows that are copied at once
  int columns, parts, channels;     // tiles in a row; blocks a tile
  int slice_bytes, features_bytes;  // staged: a slice, all of them
  bool in_bulk;                     // whether the bulk tensor engine stages them
  int record_h, record_w;           // strides of offset_mask
  Divider by_parts, by_columns, by_parts_a_group, by_tile_w, by_copy_threads, by_touched_pieces;
};

// Points of a warp's pixels, prepared. The lengths of rows keep what four pixels read in different banks. A read takes
// L1 the longer the more bytes each lane gets, even if they are the same for all: hence two places a word.
struct BatchRoom {
  float2 weights[2][kBatch][kPoints];  // of the left and the right corners: top, bottom
  // staged pixels of the top left corners; then the output pixel, or kNoPixel
  uint32_t places[kBatch][kPoints / 2 + 2];
  uint32_t far[kBatch];  // a bit for each point outside the staged pixels
};

// the compiler would rather compute some values anew in every round than keep them
__device__ __forceinline__ void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }
__device__ __forceinline__ void keep(float& v) { asm volatile("" : "+f"(v)); }
template <typename T>
__device__ __forceinline__ void keep(T*& v) {
  asm volatile("" : "+l"(v));
}

// shared memory by its 32-bit addresses
__device__ __forceinline__ uint32_t load_word(uint32_t from) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
  return v;
}
__device__ __forceinline__ uint2 load_words(uint32_t from) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
  return v;
}
__device__ __forceinline__ uint4 load_vector(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ float4 load_floats(uint32_t from) {
  const uint4 v = load_vector(from);
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}
__device__ __forceinline__ void store_half(uint32_t to, uint32_t v) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(to), "h"(static_cast<uint16_t>(v)) : "memory");
}
__device__ __forceinline__ void store(uint32_t to, uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}
__device__ __forceinline__ void store(uint32_t to, float a, float b) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(a), "f"(b) : "memory");
}

// Four pixels: lane 8 * s + 4 * h + j gathers the left (h = 0) or right corners of pixel s's points, channels 4 * j to
// 4 * j + 3 of each slice.
template <int kSlices>
struct QuadSums {
  float sum[kSlices][4];
  uint32_t pixel, side, piece;
  uint32_t features, down, slice_bytes, weights, places;

  __device__ __forceinline__ QuadSums(const ForwardLayout& layout, uint32_t staged, uint32_t room) {
    const uint32_t lane = threadIdx.x % 32;
    pixel = lane / 8, side = lane / 4 % 2, piece = lane % 4;
    features = staged + side * kPixelBytes + piece * 16;
    down = layout.region_w * kPixelBytes;
    slice_bytes = layout.slice_bytes;
    weights = room + offsetof(BatchRoom, weights) + side * sizeof(BatchRoom::weights[0]) +
              pixel * sizeof(BatchRoom::weights[0][0]);
    places = room + offsetof(BatchRoom, places) + pixel * sizeof(BatchRoom::places[0]);
    keep(features), keep(down), keep(weights), keep(places);
  }

  // the results that the lane is left with
  template <typename Do>
  __device__ __forceinline__ void each(const Do& act) {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) act(sum[slice][0]), act(sum[slice][1]);
  }
  __device__ __forceinline__ int first_channel() const { return 4 * piece + 2 * side; }

  static __device__ __forceinline__ void add(float (&sum)[4], float weight, const float4& v) {
    sum[0] = fmaf(weight, v.x, sum[0]);
    sum[1] = fmaf(weight, v.y, sum[1]);
    sum[2] = fmaf(weight, v.z, sum[2]);
    sum[3] = fmaf(weight, v.w, sum[3]);
  }

  // where the first (0) or the second (1) of two places lies, counted from `start` on
  static __device__ __forceinline__ uint32_t address(uint32_t two_places, uint32_t which, uint32_t start) {
    constexpr uint32_t kFirst = kPixelBytes, kSecond = kFirst << 8;
    return __dp2a_lo(two_places, which ? kSecond : kFirst, start);
  }

  // of four of the batch's pixels from `first` on; returns the lane's output pixel
  __device__ __forceinline__ uint32_t gather(int first) {
    clear();
    const uint32_t w = weights + first * sizeof(BatchRoom::weights[0][0]);
    const uint32_t p = places + first * sizeof(BatchRoom::places[0]);
    const uint2 first_four = load_words(p), next_four = load_words(p + 8), last = load_words(p + 16);
    const uint32_t at[] = {first_four.x, first_four.y, next_four.x, next_four.y, last.x};
#pragma unroll
    for (int k = 0; k < kPoints; ++k) {
      const uint2 weight = load_words(w + 8 * k);
      const uint32_t top = address(at[k / 2], k % 2, features), bottom = top + down;
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        add(sum[slice], __uint_as_float(weight.x), load_floats(top + slice * slice_bytes));
        add(sum[slice], __uint_as_float(weight.y), load_floats(bottom + slice * slice_bytes));
      }
    }
    join_sides();
    return last.y;
  }

  // the same where every point lies on a pixel: the sides take turns with the points
  __device__ __forceinline__ uint32_t gather_first_corners(int first) {
    clear();
    const uint32_t w = weights - side * sizeof(BatchRoom::weights[0]) + first * sizeof(BatchRoom::weights[0][0]);
    const uint32_t p = places + first * sizeof(BatchRoom::places[0]);
    const uint2 last = load_words(p + 2 * (kPoints - 1));
    const uint32_t corner = features - side * kPixelBytes;
#pragma unroll
    for (int k = 0; k < kPoints; k += 2) {
      const bool both = k + 1 < kPoints;
      const uint32_t from = both ? address(load_word(p + 2 * k), side, corner) : address(last.x, 0, corner);
      const uint32_t bits = load_word(w + 8 * (both ? k + side : k));
      const float weight = both || side == 0 ? __uint_as_float(bits) : 0.f;
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) add(sum[slice], weight, load_floats(from + slice * slice_bytes));
    }
    join_sides();
    return last.y;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[slice][i] = 0.f;
    }
  }

  // each side keeps two of the four channels
  __device__ __forceinline__ void join_sides() {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      float (&v)[4] = sum[slice];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float other = __shfl_xor_sync(kAllLanes, side ? v[i] : v[2 + i], 4);
        v[i] = (side ? v[2 + i] : v[i]) + other;
      }
    }
  }

  // by the contract
  __device__ __forceinline__ void add(const float* from, float weight) {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      const float2 v = __ldg(reinterpret_cast<const float2*>(from + slice * kSliceWidth + first_channel()));
      sum[slice][0] = fmaf(weight, v.x, sum[slice][0]);
      sum[slice][1] = fmaf(weight, v.y, sum[slice][1]);
    }
  }

  __device__ __forceinline__ void write(float* to) const {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      *reinterpret_cast<float2*>(to + slice * kSliceWidth) = make_float2(sum[slice][0], sum[slice][1]);
    }
  }
};

// of a pixel's points those that are asked for, by the contract
template <typename Sums>
__device__ __forceinline__ void add_points(
    const Geometry<float>& g, uint32_t out_pixel, uint32_t wanted, const float* image, const float* record,
    Sums& sums) {
  const int y = g.by_out_width.quotient(out_pixel), x = out_pixel - y * g.out_width;
  const Position<float> at(g, y, x);
  record += y * g.offset_h + x * g.offset_w;
#pragma unroll 1
  for (; wanted != 0; wanted &= wanted - 1) {
    const int k = __ffs(wanted) - 1;
    const Sample<float> s = sample(g, at, record, k);
    if (!s.inside) continue;
    const float m = record[2 * kPoints + k];
#pragma unroll 1
    for (int corner = 0; corner < 4; ++corner) {
      const bool bottom = corner / 2, right = corner % 2;
      if (!(bottom ? s.bottom : s.top) || !(right ? s.right : s.left)) continue;
      sums.add(
          image + static_cast<int64_t>(s.y0 + bottom) * g.value_h + static_cast<int64_t>(s.x0 + right) * g.value_w,
          m * (bottom ? s.ly : 1 - s.ly) * (right ? s.lx : 1 - s.lx));
    }
  }
}

// features of a tile and its rim, one slice behind another
template <int kSlices>
__device__ __forceinline__ void stage_features(
    const Geometry<float>& g, const ForwardLayout& layout, int start_y, int start_x, const float* image,
    uint32_t staged) {
  constexpr int kPieces = kPixelBytes / 16;  // of a slice
  const int row = layout.by_copy_threads.quotient(threadIdx.x);
  if (row >= layout.copy_rows) return;
  const int row_pieces = layout.region_w * (kPieces * kSlices);
#pragma unroll 1
  for (int i = threadIdx.x - row * layout.copy_threads; i < row_pieces; i += layout.copy_threads) {
    const int column = i / (kPieces * kSlices), piece = i % (kPieces * kSlices);
    const int x = start_x + column;
    const bool column_exists = static_cast<unsigned>(x) < g.width;
    int y = start_y + row;
    const float* from = image + static_cast<int64_t>(y) * g.value_h + static_cast<int64_t>(x) * g.value_w + piece * 4;
    uint32_t to = staged + piece / kPieces * layout.slice_bytes + (row * layout.region_w + column) * kPixelBytes +
                  piece % kPieces * 16;
    const int64_t step = static_cast<int64_t>(layout.copy_rows) * g.value_h;
    const uint32_t to_step = layout.copy_rows * layout.region_w * kPixelBytes;
#pragma unroll 4
    for (int n = row; n < layout.region_h; n += layout.copy_rows) {
      copy_16_bytes(to, from, column_exists & static_cast<unsigned>(y) < g.height);
      y += layout.copy_rows;
      from += step;
      to += to_step;
    }
  }
}

// whether this thread's share is of the staged pixels that points touch where no offset moves them
template <int kSlices>
__device__ __forceinline__ bool all_finite(const ForwardLayout& layout, uint32_t staged) {
  const int pieces = layout.touched_h * layout.touched_pieces;
  staged += (layout.touched_y * layout.region_w + layout.touched_x) * kPixelBytes;
  float probe = 0.f;
  for (int i = threadIdx.x; i < pieces; i += blockDim.x) {
    const int row = layout.by_touched_pieces.quotient(i), piece = i - row * layout.touched_pieces;
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      const float4 v =
          load_floats(staged + slice * layout.slice_bytes + row * layout.region_w * kPixelBytes + piece * 16);
      probe = fmaf(v.x, 0.f, fmaf(v.y, 0.f, fmaf(v.z, 0.f, fmaf(v.w, 0.f, probe))));
    }
  }
  return probe == 0.f;
}

template <int kSlices>
__global__ void __launch_bounds__(32 * kMostWarps, kBlocksAtOnce) tile_forward(
    const Geometry<float> g, const ForwardLayout layout, const __grid_constant__ CUtensorMap features,
    const float* __restrict__ value, const float* __restrict__ offset_mask, float* __restrict__ out) {
  constexpr int kWidth = kSlices * kSliceWidth;
  extern __shared__ __align__(kSliceAlignment) uint4 shared[];
  const int lane = threadIdx.x % 32;
  const int tile = layout.by_parts.quotient(blockIdx.x), part = blockIdx.x - tile * layout.parts;
  const int tile_row = layout.by_columns.quotient(tile);
  const int first_y = tile_row * layout.tile_h, first_x = (tile - tile_row * layout.columns) * layout.tile_w;
  const float* image = value + blockIdx.y * g.value_n + part * kWidth;
  const uint32_t staged = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int start_y = first_y + g.shift_h - layout.reach, start_x = first_x + g.shift_w - layout.reach;
  const CopyBarrier barrier{staged + layout.features_bytes};
  if (layout.in_bulk) {
    if (threadIdx.x == 0) {
      barrier.expect(kSlices * layout.region_h * layout.region_w * kPixelBytes);
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        barrier.copy(
            staged + slice * layout.slice_bytes, features, part * kWidth + slice * kSliceWidth, start_x, start_y,
            blockIdx.y);
      }
    }
  } else {
    stage_features<kSlices>(g, layout, start_y, start_x, image, staged);
  }

  const uint32_t room = barrier.address + kBarrierBytes + threadIdx.x / 32 * sizeof(BatchRoom);
  QuadSums<kSlices> sums(layout, staged, room);

  // a lane a point: 27 lanes prepare three pixels, the others do what lanes before them do
  const int third = min(lane / kPoints, kPixelsARound - 1), k = lane % kPoints, column = k / 3;
  float grid_x = static_cast<float>(column * g.dilation_w - g.half_w) * g.scale + layout.reach;
  float grid_y = static_cast<float>((k - 3 * column) * g.dilation_h - g.half_h) * g.scale + layout.reach;
  float limit_x = static_cast<float>(layout.region_w - 1), limit_y = static_cast<float>(layout.region_h - 1);
  const float* records = offset_mask + blockIdx.y * g.offset_n +
                         layout.by_parts_a_group.quotient(part) * static_cast<int64_t>(3 * kPoints);
  const float* offsets = records + 2 * k;
  const float* masks = records + 2 * kPoints + k;
  uint32_t weights_to = room + offsetof(BatchRoom, weights) + third * sizeof(BatchRoom::weights[0][0]) + 8 * k;
  uint32_t place_to = room + offsetof(BatchRoom, places) + third * sizeof(BatchRoom::places[0]) + 2 * k;
  uint32_t row_pixels = layout.region_w;
  // adding 2^23, rounding down, leaves the floor in the low bits; unsigned arithmetic wraps the others away
  constexpr float kMagic = 8388608.f;
  constexpr uint32_t kMagicBits = 0x4b000000u;
  uint32_t place_shift = 0u - kMagicBits * (row_pixels + 1);
  float* result =
      out + static_cast<int64_t>(blockIdx.y) * g.out_pixels * layout.channels + part * kWidth + sums.first_channel();
  keep(grid_x), keep(grid_y), keep(limit_x), keep(limit_y), keep(weights_to), keep(place_to), keep(row_pixels);
  keep(place_shift), keep(offsets), keep(masks), keep(result);

  const uint32_t first_record = first_y * layout.record_h + first_x * layout.record_w;
  int first_pixel = threadIdx.x / 32 * kBatch;
  bool ready = false, on_grid = false;
#pragma unroll 1
  do {
    // a lane a pixel; one that does not exist has the points of one that does
    const int in_tile = first_pixel + min(lane, kBatch - 1);
    const int tile_y = layout.by_tile_w.quotient(in_tile), tile_x = in_tile - tile_y * layout.tile_w;
    const int out_y = first_y + tile_y, out_x = first_x + tile_x;
    const bool exists = (in_tile < layout.pixels) & (out_y < layout.out_height) & (out_x < g.out_width);
    const uint32_t own_place = exists ? tile_y << 16 | tile_x : 0;
    if (lane < kBatch) {
      store(
          room + offsetof(BatchRoom, places) + (lane + 1) * sizeof(BatchRoom::places[0]) - sizeof(uint32_t),
          exists ? out_y * g.out_width + out_x : kNoPixel);
    }
    float dx[kRounds], dy[kRounds], m[kRounds];
    uint32_t places[kRounds], far[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      places[round] = __shfl_sync(kAllLanes, own_place, round * kPixelsARound + third);
      const uint32_t from =
          first_record + (places[round] >> 16) * layout.record_h + (places[round] & 0xffff) * layout.record_w;
      dx[round] = __ldg(offsets + from);
      dy[round] = __ldg(offsets + from + 1);
      m[round] = __ldg(masks + from);
    }
    // zero where no offset moves a point, and all lie on pixels
    uint32_t off_grid = 0;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      off_grid |= (__float_as_uint(dx[round]) | __float_as_uint(dy[round])) & 0x7fffffffu;
      float x = fmaf(dx[round], g.scale, grid_x + (__uint_as_float(kMagicBits | (places[round] & 0xffff)) - kMagic));
      float y = fmaf(dy[round], g.scale, grid_y + (__uint_as_float(kMagicBits | places[round] >> 16) - kMagic));
      // bit patterns order what is not negative; NaN lies behind
      const bool near =
          (__float_as_uint(x) < __float_as_uint(limit_x)) & (__float_as_uint(y) < __float_as_uint(limit_y));
      far[round] = __ballot_sync(kAllLanes, !near);
      x = near ? x : 0.f, y = near ? y : 0.f;
      const float weight = near ? m[round] : 0.f;
      const float floor_x = __fadd_rd(x, kMagic), floor_y = __fadd_rd(y, kMagic);
      const float right = x - (floor_x - kMagic), bottom = y - (floor_y - kMagic);
      off_grid |= __float_as_uint(right) | __float_as_uint(bottom);
      const float left = 1.f - right, lower = bottom * weight, upper = weight - lower;
      const uint32_t to = weights_to + round * kPixelsARound * static_cast<uint32_t>(sizeof(BatchRoom::weights[0][0]));
      store(to, upper * left, lower * left);
      store(to + sizeof(BatchRoom::weights[0]), upper * right, lower * right);
      store_half(
          place_to + round * kPixelsARound * static_cast<uint32_t>(sizeof(BatchRoom::places[0])),
          __float_as_uint(floor_y) * row_pixels + (__float_as_uint(floor_x) + place_shift));
    }
    static_assert(kRounds == 4, "the rounds are named one by one");
    const bool any_far = (far[0] | far[1] | far[2] | far[3]) != 0;
    if (any_far && lane < kBatch) {
      const int round = lane / kPixelsARound;
      const uint32_t bits = round < 2 ? (round ? far[1] : far[0]) : (round == 2 ? far[2] : far[3]);
      store(room + offsetof(BatchRoom, far) + 4 * lane, bits >> kPoints * (lane % kPixelsARound) & kPointBits);
    }
    if (!ready) {
      if (!layout.in_bulk) await_copies();
      on_grid = __syncthreads_and(off_grid == 0);
      if (layout.in_bulk) barrier.await();
      // corners of weight zero may be left out where nothing is infinite or NaN
      if (on_grid) on_grid = __syncthreads_and(all_finite<kSlices>(layout, staged));
      ready = true;
    } else {
      __syncwarp();
    }
    const bool first_corners = on_grid && !__any_sync(kAllLanes, off_grid != 0);

    const int pixels = min(kBatch, layout.pixels - first_pixel);
#pragma unroll 1
    for (int first = 0; first < pixels; first += kQuad) {
      const uint32_t pixel = first_corners ? sums.gather_first_corners(first) : sums.gather(first);
      // a zero weight times an infinite or NaN feature: points outside must not feel it
      float probe = 0.f;
      sums.each([&](float& v) { probe = fmaf(v, 0.f, probe); });
      const bool found = pixel != kNoPixel, again = found & (probe != 0.f);
      if (__any_sync(kAllLanes, again) | any_far) {
        uint32_t wanted = any_far ? load_word(room + offsetof(BatchRoom, far) + 4 * (first + sums.pixel)) : 0;
        if (again) {
          sums.each([](float& v) { v = 0.f; });
          wanted = kPointBits;
        }
        if (found && wanted) add_points(g, pixel, wanted, image, records, sums);
        __syncwarp();
      }
      if (found) sums.write(result + static_cast<uint64_t>(pixel) * static_cast<uint32_t>(layout.channels));
    }
    // the room is written anew
    __syncwarp();
    first_pixel += blockDim.x / 32 * kBatch;
  } while (first_pixel < layout.pixels);
}

template <int kSlices>
cudaError_t launch(const ForwardArgs& args, cudaStream_t stream) {
  const Problem& p = args.problem;
  // three pixels around the outer points of the window
  const int reach = 3 + std::max(p.window.dilation_h, p.window.dilation_w);
  const bool has_engine = bulk_copies_pay(architecture());
  const ForwardTile tile = choose_tile(p, reach, kSlices, sizeof(BatchRoom), has_engine);
  if (tile.warps == 0) return cudaErrorInvalidConfiguration;
  ForwardLayout t;
  t.tile_h = tile.h;
  t.tile_w = tile.w;
  t.pixels = tile.h * tile.w;
  t.out_height = p.out_height;
  t.region_h = tile.h + 2 * reach;
  t.region_w = tile.w + 2 * reach;
  t.reach = reach;
  // a point's pixel and, with weight zero, the one behind it
  const auto touched = [&](int dilation, int region, int size, int& first, int& count) {
    const int extent = static_cast<int>(std::min(std::abs(p.offset_scale) * dilation, static_cast<double>(reach)));
    first = reach - extent;
    count = std::min(size + 2 * extent + 1, region - first);
  };
  int touched_w;
  touched(p.window.dilation_h, t.region_h, tile.h, t.touched_y, t.touched_h);
  touched(p.window.dilation_w, t.region_w, tile.w, t.touched_x, touched_w);
  t.touched_pieces = touched_w * kPixelBytes / 16;
  t.by_touched_pieces = Divider(t.touched_pieces);
  t.columns = parts_of(p.out_width, tile.w);
  t.channels = static_cast<int>(p.channels());
  const int parts_a_group = p.group_width / (kSlices * kSliceWidth);
  t.parts = p.groups * parts_a_group;
  t.slice_bytes = slice_bytes(t.region_h, t.region_w);
  t.features_bytes = kSlices * t.slice_bytes;
  t.record_h = static_cast<int>(p.offset_mask.h);
  t.record_w = static_cast<int>(p.offset_mask.w);
  const int threads = 32 * tile.warps;
  t.copy_threads = std::min(threads, t.region_w * kSlices * kPixelBytes / 16);
  t.copy_rows = threads / t.copy_threads;
  t.by_parts = Divider(t.parts);
  t.by_columns = Divider(t.columns);
  t.by_parts_a_group = Divider(parts_a_group);
  t.by_tile_w = Divider(t.tile_w);
  t.by_copy_threads = Divider(t.copy_threads);
  const auto kernel = tile_forward<kSlices>;
  // the same for every call, for threads may launch at the same time
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  if (status != cudaSuccess) return status;
  const int tiles = t.columns * parts_of(p.out_height, tile.h);
  for (int64_t first = 0; first < p.batch; first += kMostImages) {
    const int64_t images = std::min(p.batch - first, kMostImages);
    const dim3 grid(tiles * t.parts, static_cast<unsigned>(images));
    const float* value = static_cast<const float*>(args.value) + first * p.value.n;
    CUtensorMap features = {};
    t.in_bulk = has_engine && describe(p, value, images, {kSliceWidth, t.region_w, t.region_h}, &features);
    kernel<<<grid, threads, tile.bytes, stream>>>(
        Geometry<float>(p), t, features, value, static_cast<const float*>(args.offset_mask) + first * p.offset_mask.n,
        static_cast<float*>(args.out) + first * p.out_pixels() * p.channels());
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_tile_forward(const ForwardArgs& args, cudaStream_t stream) {
  return args.problem.group_width / kSliceWidth % 2 == 0 ? launch<2>(args, stream) : launch<1>(args, stream);
}

}  // namespace yolo_dcnv4
