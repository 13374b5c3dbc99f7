// A block takes a tile of output pixels and 128 bytes of their channels, or of those of two or four images where a
// pixel has fewer. It stages the records of the tile, and the input around it, in shared memory, by the bulk tensor
// engine where there is one. A thread computes one pixel and all channels of a group, or a good part of them, so that
// few threads find the same points; threads take the 16-byte pieces of their channels in such turns that their reads
// never meet in the same banks. The few points that lie outside the staged pixels are added one by one, by the
// contract.
#include "tile_forward.h"

#include <algorithm>
#include <limits>

#include "staged_tile.cuh"
#include "tuning.h"
#include "unmoved.cuh"
#include "window3x3.cuh"

namespace yolo_dcnv4 {

namespace {

constexpr uint32_t kPointBits = (1u << kPoints) - 1;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kNoPixel = -1;

// faster with fewer registers in bfloat16
template <typename T>
constexpr int kBlocks = kBlocksAtOnce;
template <>
constexpr int kBlocks<__nv_bfloat16> = 4;

// one instruction, where the compiler would select and then add
__device__ __forceinline__ void set_where(bool condition, uint32_t bit, uint32_t& bits) {
  asm("{.reg .pred p; setp.ne.u32 p, %1, 0; @p or.b32 %0, %0, %2;}"
      : "+r"(bits)
      : "r"(static_cast<uint32_t>(condition)), "r"(bit));
}

// what a thread adds up: pieces of a pixel's channels
template <typename T>
struct Sums {
  static constexpr int kVector = 16 / sizeof(T), kPieces = forward_pieces(sizeof(T));
  float sum[kPieces][kVector];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
#pragma unroll
      for (int c = 0; c < kVector; ++c) sum[n][c] = 0.f;
    }
  }
  __device__ __forceinline__ void add(int n, float factor, const Vector<T, kVector>& v) {
#pragma unroll
    for (int c = 0; c < kVector; ++c) sum[n][c] = fmaf(factor, v.opmath(c), sum[n][c]);
  }
  __device__ __forceinline__ void round(Vector<T, kVector> (&result)[kPieces]) const {
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
#pragma unroll
      for (int c = 0; c < kVector; ++c) result[n].element[c] = from_opmath<T>(sum[n][c]);
    }
  }
};

// Threads exchange pieces before they write, for those of a pixel to be written at once.
template <typename T, int kVector, int kPieces>
__device__ __forceinline__ void write(
    const Vector<T, kVector> (&result)[kPieces], int turn, int pixel, int channels, T* to) {
  uint32_t piece[kPieces][4];
#pragma unroll
  for (int m = 0; m < kPieces; ++m) {
    const uint4& v = result[m].piece[0];
    piece[m][0] = v.x, piece[m][1] = v.y, piece[m][2] = v.z, piece[m][3] = v.w;
    // the thread's own piece of the pixel of the thread that is m away
#pragma unroll
    for (int i = 0; i < 4 && m > 0; ++i) piece[m][i] = __shfl_xor_sync(kAllLanes, piece[m][i], m);
  }
#pragma unroll
  for (int bit = 1; bit < kPieces; bit *= 2) {
#pragma unroll
    for (int m = 0; m < kPieces; ++m) {
      if (m & bit) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t a = piece[m][i], b = piece[m | bit][i];
        piece[m][i] = turn & bit ? b : a;
        piece[m | bit][i] = turn & bit ? a : b;
      }
    }
  }
  to += turn * kVector;
#pragma unroll
  for (int m = 0; m < kPieces; ++m) {
    const int there = __shfl_sync(kAllLanes, pixel, m, kPieces);
    if (there == kNoPixel) continue;
    // one instruction for what is not negative
    const uint64_t first = static_cast<uint64_t>(static_cast<uint32_t>(there)) * static_cast<uint32_t>(channels);
    *reinterpret_cast<uint4*>(to + first) = make_uint4(piece[m][0], piece[m][1], piece[m][2], piece[m][3]);
  }
}

// of a pixel's points those that are asked for, by the contract
template <typename T>
__device__ __forceinline__ void add_points(
    const Geometry<float>& g, int out_y, int out_x, uint32_t wanted, const T* image, const StagedRecord<T>& record,
    int turn, Sums<T>& sums) {
  constexpr int kVector = Sums<T>::kVector, kPieces = Sums<T>::kPieces;
  // corners whose features are on their way at once
  constexpr int kCorners = 8 / kPieces;
  const Position<float> at(g, out_y, out_x);
#pragma unroll 1
  for (; wanted != 0; wanted &= wanted - 1) {
    const int k = __ffs(wanted) - 1;
    const Sample<float> s(g, at, k, record[2 * k], record[2 * k + 1]);
    if (!s.inside) continue;
    const float m = record[2 * kPoints + k];
    const T* point = image + static_cast<int64_t>(s.y0) * g.value_h + static_cast<int64_t>(s.x0) * g.value_w;
#pragma unroll 1
    for (int first = 0; first < 4; first += kCorners) {
      Vector<T, kVector> v[kCorners][kPieces];
      float factor[kCorners];
#pragma unroll
      for (int i = 0; i < kCorners; ++i) {
        const bool bottom = (first + i) / 2, right = i % 2;
        const bool exists = (bottom ? s.bottom : s.top) && (right ? s.right : s.left);
        // an infinite weight times nothing is NaN
        factor[i] = exists ? m * (bottom ? s.ly : 1 - s.ly) * (right ? s.lx : 1 - s.lx) : 0.f;
        const T* from = point + (bottom ? g.value_h : 0) + (right ? g.value_w : 0);
#pragma unroll
        for (int n = 0; n < kPieces; ++n) {
          v[i][n].piece[0] = make_uint4(0, 0, 0, 0);
          if (exists) v[i][n].load(from + (n ^ turn) * kVector);
        }
      }
#pragma unroll
      for (int i = 0; i < kCorners; ++i) {
#pragma unroll
        for (int n = 0; n < kPieces; ++n) sums.add(n, factor[i], v[i][n]);
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads, kBlocks<T>) tile_forward(
    const Geometry<float> g, const TileLayout layout, const __grid_constant__ CUtensorMap features,
    const __grid_constant__ CUtensorMap records, const T* __restrict__ value, const T* __restrict__ offset_mask,
    T* __restrict__ out) {
  constexpr int kVector = Sums<T>::kVector, kPieces = Sums<T>::kPieces, kWidth = kPieces * kVector;
  extern __shared__ __align__(kLineBytes) uint4 shared[];
  const ForwardTile& tile = layout.tile;
  const int column = layout.by_lines.quotient(blockIdx.x), line = blockIdx.x - column * tile.lines;
  const int first_y = blockIdx.y * tile.h, first_x = column * tile.w, first_n = blockIdx.z * tile.images;

  const int first_part = line << tile.part_bits;
  const int first_entry = layout.by_parts_a_group.quotient(first_part) * kEntries;
  const int before = first_entry % kVector;  // entries staged before it, for the engine starts with 16 bytes
  const int pixels = tile.h * tile.w;
  const uint32_t staged = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t staged_records = staged + tile.region_h * kRowBytes;
  const uint32_t image_bytes = pixels * tile.record_bytes;
  const CopyBarrier barrier{staged_records + tile.images * image_bytes};
  {
    const int start_y = first_y + g.shift_h - tile.reach, start_x = first_x + g.shift_w - tile.reach;
    const int channel = first_part * kWidth;
    if (layout.in_bulk) {
      if (threadIdx.x == 0) {
        barrier.expect(tile.region_h * kRowBytes + tile.images * image_bytes);
        barrier.copy(staged_records, records, first_entry - before, first_x, first_y, first_n);
        barrier.copy(staged, features, channel, first_n, start_x, start_y);
      }
      __syncthreads();
    } else {
      const int images = min(tile.images, layout.batch - first_n);
      stage_records(
          g, layout, first_y, first_x, offset_mask + first_n * g.offset_n + first_entry - before,
          layout.entries - first_entry + before, images, staged_records);
      stage_features(
          g, layout, start_y, start_x, value + first_n * g.value_n + channel, layout.channels - channel, images,
          staged);
    }
  }

  // Of eight threads, which read at once, kPieces take the same part of neighbouring pixels, each in another turn.
  const int place = threadIdx.x % kLinePieces / kPieces, turn = threadIdx.x % kPieces;
  const int pixel = threadIdx.x / kLinePieces * kPieces + turn;
  const int image = place >> tile.part_bits, n = first_n + image;
  const int part = first_part + (place & ((1 << tile.part_bits) - 1));
  const int y = layout.by_tile_w.quotient(pixel), x = pixel - y * tile.w;
  const int out_y = first_y + y, out_x = first_x + x;
  const int entry = layout.by_parts_a_group.quotient(part) * kEntries;
  uint32_t start = staged + (place * kPieces + turn) * 16;
  StagedRecord<T> record{
      staged_records + image * image_bytes + pixel * tile.record_bytes +
      (entry - first_entry + before) * static_cast<int>(sizeof(T))};
  if (layout.in_bulk) {
    barrier.await();
  } else {
    await_copies();
    __syncthreads();
  }
  keep(start), keep(record.address);
  const bool exists =
      (pixel < pixels) & (out_y < layout.out_height) & (out_x < g.out_width) & (n < layout.batch) & (part < tile.parts);
  Sums<T> sums;
  sums.clear();
  Vector<T, kVector> result[kPieces];
  if (exists) {
    uint32_t wanted = 0;
    Probe<T> probe;
    if (layout.on_pixels && record.unmoved()) {
      const uint32_t at = start + ((y + tile.reach - 1) * kRegionWidth + x + tile.reach - 1) * kLineBytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int m = 0; m < kPieces; ++m) {
            const auto v = load_piece<T>((at ^ m * 16) + i * kLineBytes + j * kRowBytes);
            if (i == 3 || j == 3) {
              probe.add(v);
            } else {
              sums.add(m, record[2 * kPoints + 3 * i + j], v);
            }
          }
        }
      }
    } else {
      const Lines columns(static_cast<float>(x + tile.reach), layout.spacing_x);
      const Lines rows(static_cast<float>(y + tile.reach), layout.spacing_y);
      const uint32_t last_column = __float_as_uint(static_cast<float>(kRegionWidth - 1));
      const uint32_t last_row = __float_as_uint(static_cast<float>(tile.region_h - 1));
      // unsigned arithmetic wraps the magic away
      const uint32_t origin = start - kMagicBits * (kLineBytes + kRowBytes);
#pragma unroll
      for (int i = 0; i < 3; ++i) {
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          const int k = 3 * i + j;
          const float px = fmaf(record[2 * k], g.scale, columns.at[i]);
          const float py = fmaf(record[2 * k + 1], g.scale, rows.at[j]);
          const float floor_x = __fadd_rd(px, kMagic), floor_y = __fadd_rd(py, kMagic);
          uint32_t at = __float_as_uint(floor_y) * kRowBytes + (__float_as_uint(floor_x) * kLineBytes + origin);
          float weight = record[2 * kPoints + k];
          // bit patterns order what is not negative; what is, and NaN, lies behind
          const bool outside = __float_as_uint(px) >= last_column || __float_as_uint(py) >= last_row;
          if (outside) at = start, weight = 0.f;
          set_where(outside, 1u << k, wanted);
          const float right = px - (floor_x - kMagic), below = py - (floor_y - kMagic);
          const float lower = below * weight, upper = weight - lower;
          const float upper_right = upper * right, lower_right = lower * right;
          const float factors[4] = {upper - upper_right, upper_right, lower - lower_right, lower_right};
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
            for (int m = 0; m < kPieces; ++m) {
              const auto v = load_piece<T>((at ^ m * 16) + corner % 2 * kLineBytes + corner / 2 * kRowBytes);
              sums.add(m, factors[corner], v);
            }
          }
        }
      }
    }

    // a zero weight times an infinite or NaN pixel: points outside must not feel it
    sums.round(result);
#pragma unroll
    for (int m = 0; m < kPieces; ++m) probe.add(result[m]);
    if (probe.result() != 0.f) {
      sums.clear();
      wanted = kPointBits;
    }
    if (wanted != 0) {
      add_points(g, out_y, out_x, wanted, value + n * g.value_n + part * kWidth, record, turn, sums);
      sums.round(result);
    }
  }
  write(
      result, turn, exists ? out_y * g.out_width + out_x : kNoPixel, layout.channels,
      out + static_cast<int64_t>(n) * g.out_pixels * layout.channels + part * kWidth);
}

template <typename T>
cudaError_t launch(const ForwardArgs& args, cudaStream_t stream) {
  const Problem& p = args.problem;
  TileLayout t;
  t.tile = choose_tile(p, sizeof(T));
  const ForwardTile& tile = t.tile;
  t.out_height = p.out_height;
  t.channels = static_cast<int>(p.channels());
  t.record_w = static_cast<int>(p.offset_mask.w);
  t.record_h = static_cast<int>(p.offset_mask.h);
  t.entries = p.groups * kEntries;
  t.on_pixels = lies_on_pixels(p);
  const Axes axes(p, sizeof(T));
  t.spacing_x = axes.x.spacing;
  t.spacing_y = axes.y.spacing;
  t.by_lines = Divider(tile.lines);
  t.by_parts_a_group = Divider(p.group_width / (Sums<T>::kPieces * Sums<T>::kVector));
  t.by_tile_w = Divider(tile.w);
  t.by_pixels = Divider(tile.h * tile.w);
  t.by_record_pieces = Divider(tile.record_bytes / 16);
  const auto kernel = tile_forward<T>;
  // the same for every call, for threads may launch at the same time
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  if (status != cudaSuccess) return status;
  const bool has_engine = bulk_copies_pay(architecture());
  return for_images(p, [&](int64_t first, int64_t images) {
    const T* value = static_cast<const T*>(args.value) + first * p.value.n;
    const T* offset_mask = static_cast<const T*>(args.offset_mask) + first * p.offset_mask.n;
    t.batch = static_cast<int>(images);
    CUtensorMap features = {}, records = {};
    t.in_bulk = has_engine &&
                describe<T>(
                    value,
                    {{t.channels, 1, kLineBytes / static_cast<int>(sizeof(T)) / tile.images},
                     {images, p.value.n, tile.images},
                     {p.width, p.value.w, kRegionWidth},
                     {p.height, p.value.h, tile.region_h}},
                    &features) &&
                describe<T>(
                    offset_mask,
                    {{t.entries, 1, tile.record_bytes / static_cast<int>(sizeof(T))},
                     {p.out_width, p.offset_mask.w, tile.w},
                     {p.out_height, p.offset_mask.h, tile.h},
                     {images, p.offset_mask.n, tile.images}},
                    &records);
    const dim3 grid(
        tile.columns * tile.lines, parts_of(p.out_height, tile.h),
        static_cast<unsigned>(parts_of(images, tile.images)));
    kernel<<<grid, tile.threads, tile.bytes, stream>>>(
        Geometry<float>(p), t, features, records, value, offset_mask,
        static_cast<T*>(args.out) + first * p.out_pixels() * p.channels());
    return cudaGetLastError();
  });
}

// Groups must have whole parts of 16 channels, records be aligned, and rows of tiles be a dimension of a grid; that
// values are aligned is the caller's to check.
bool fits(const ForwardArgs& args, int vector) {
  const Problem& p = args.problem;
  const Window& w = p.window;
  const Strides& records = p.offset_mask;
  const int64_t last = (p.out_height - 1) * records.h + (p.out_width - 1) * records.w + p.row;
  return w.kernel_h == 3 && w.kernel_w == 3 && !p.remove_center && !p.softmax && w.stride_h == 1 && w.stride_w == 1 &&
         w.dilation_h <= 2 && w.dilation_w <= 2 && p.group_width % 16 == 0 && p.out_height <= kMostImages &&
         last <= std::numeric_limits<int32_t>::max() && reinterpret_cast<uintptr_t>(args.offset_mask) % 16 == 0 &&
         records.n % vector == 0 && records.h % vector == 0 && records.w % vector == 0;
}

}  // namespace

bool tile_forward_pays(const ForwardArgs& args) {
  const Problem& p = args.problem;
  const int bytes = bytes_of(p.dtype), vector = 16 / bytes;
  if (!fits(args, vector)) return false;
  if (p.dtype == DType::float32) return true;
  // small maps wait longer for what is staged than for what they gather
  const int64_t threads = p.batch * p.out_pixels() * p.channels() / (forward_pieces(bytes) * vector);
  const int64_t at_once = int64_t{kMostThreads} * kBlocksAtOnce * attribute(cudaDevAttrMultiProcessorCount);
  return threads > at_once && fullness(p, bytes, images_in_a_line(p, bytes)) > 0.7;
}

cudaError_t launch_tile_forward(const ForwardArgs& args, cudaStream_t stream) {
  switch (args.problem.dtype) {
    case DType::float16:
      return launch<__half>(args, stream);
    case DType::bfloat16:
      return launch<__nv_bfloat16>(args, stream);
    case DType::float32:
      return launch<float>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace yolo_dcnv4
