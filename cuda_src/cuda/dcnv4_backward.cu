#include <math.h>

#include <algorithm>
#include <atomic>

#include "dependent_launch.cuh"
#include "device.h"
#include "dispatch.cuh"
#include "launch.h"
#include "offset_gradient.cuh"
#include "plane_backward.h"
#include "sampling.cuh"
#include "sums.cuh"
#include "tile_backward.h"
#include "tuning.h"
#include "value_gradient.cuh"

namespace yolo_dcnv4 {

namespace {

constexpr int kThreads = 128;

template <typename T>
using A = typename Opmath<T>::type;

// any window: gradients of offsets and weights, and the corners of grad_value one by one
template <typename T, int kChannels, typename Sums>
__global__ void __launch_bounds__(kGradientThreads) backward_any_window(
    const Geometry<A<T>> g, const GradientLayout layout, const T* __restrict__ grad_output, const T* __restrict__ value,
    const T* __restrict__ offset_mask, const Sums raw_sums, const bool needs_value, T* __restrict__ grad_offset_mask) {
  const int unit = blockIdx.x * kGradientThreads + threadIdx.x;
  if (unit >= layout.units) return;
  const GradientUnit<T> u(g, layout, unit, kChannels, grad_output, value, offset_mask, grad_offset_mask);
  const Sums sums = raw_sums.prepared();
  const int64_t own_image = static_cast<int64_t>(blockIdx.y) * g.height * g.width * sums.row + u.first_channel;
  A<T> grad[kChannels];
  load_floats<T, kChannels>(u.grads + u.lanes.index * kChannels, grad);
  u.zero_padding(layout);
  // single additions of neighbouring lanes lie side by side where each lane's channels are as many apart as there are
  // lanes
  constexpr bool kSpreads = kChannels > 1 && !Sums::template adds_vectors<kChannels>();
  const bool spreads = kSpreads && needs_value && u.lanes.vectors == u.lanes.count;
  A<T> spread[kChannels];
  if (spreads) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) spread[c] = to_opmath(u.grads[c * u.lanes.count + u.lanes.index]);
  }
  record_gradient<T, kChannels>(g, u, grad, [&](int y, int x, int vector, A<T> factor) {
    if (!needs_value) return;
    const int64_t target = own_image + static_cast<int64_t>(y * g.width + x) * sums.row;
    if (spreads) {
      sums.template add_spread<kChannels>(target + u.lanes.index, u.lanes.count, spread, factor);
    } else {
      sums.template add<kChannels>(target + vector * kChannels, grad, factor);
    }
  });
}

// sets the first pieces of each row of an image to zero, and the bounds
template <typename Piece>
__global__ void __launch_bounds__(kThreads) clear(
    Piece* sums, const int pieces, const Divider by_row, const int64_t pitch, const int64_t image, Bounds* bounds) {
  let_next_kernel_start();
  const int row = by_row.divisor;
  Piece* const to = sums + blockIdx.y * image;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < pieces; i += gridDim.x * kThreads) {
    const int pixel = by_row.quotient(i);
    to[pixel * pitch + (i - pixel * row)] = Piece{};
  }
  if (bounds && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *bounds = Bounds{};
}

// what a bound is sought of: the entries of each pixel's row whose index modulo `period` is at least `from`
template <typename T>
struct Rows {
  const T* data;
  Strides strides;
  int entries, period, from;
  int first_pixel, vectors;  // of each image
  Divider by_row, by_period;
};

// bits of a magnitude, which order as integers; those from `infinity` on are not finite
template <typename T>
struct MagnitudeBits {
  using Bits = unsigned;
  static constexpr Bits infinity = 0x7f800000u;

  static __device__ __forceinline__ Bits of(T v) { return __float_as_uint(to_opmath(v)) & 0x7fffffffu; }
};
template <>
struct MagnitudeBits<double> {
  using Bits = unsigned long long;
  static constexpr Bits infinity = 0x7ffull << 52;

  static __device__ __forceinline__ Bits of(double v) { return __double_as_longlong(v) & 0x7fffffffffffffffll; }
};

constexpr int kLoadsAtOnce = 4;  // that a thread of find_bounds has under way together

// the largest magnitude of a block's share, or the largest finite one
template <typename T, int kVector, bool kWhole, bool kFinite>
__device__ __forceinline__ typename MagnitudeBits<T>::Bits largest_of(
    const Rows<T>& rows, int block, int blocks, const Divider& by_out_width) {
  using M = MagnitudeBits<T>;
  const T* image = rows.data + blockIdx.y * rows.strides.n;
  typename M::Bits largest = 0;
  for (int first = block * kThreads * kLoadsAtOnce + threadIdx.x; first < rows.vectors;
       first += blocks * kThreads * kLoadsAtOnce) {
    Vector<T, kVector> v[kLoadsAtOnce];
    int start[kLoadsAtOnce], place[kLoadsAtOnce];
#pragma unroll
    for (int i = 0; i < kLoadsAtOnce; ++i) {
      // what lies behind the end is the last vector once more
      const int vector = min(first + i * kThreads, rows.vectors - 1);
      const int pixel = rows.by_row.quotient(vector);
      const int y = by_out_width.quotient(rows.first_pixel + pixel);
      const int x = rows.first_pixel + pixel - y * static_cast<int>(by_out_width.divisor);
      start[i] = (vector - pixel * static_cast<int>(rows.by_row.divisor)) * kVector;
      place[i] = start[i] - rows.by_period.quotient(start[i]) * rows.period;
      // vectors without an entry that counts are not read
      if (kWhole || place[i] + kVector > rows.from)
        v[i].load(image + y * rows.strides.h + x * rows.strides.w + start[i]);
    }
#pragma unroll
    for (int i = 0; i < kLoadsAtOnce; ++i) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        typename M::Bits bits = M::of(v[i].element[e]);
        if constexpr (!kWhole) {
          bits = (place[i] >= rows.from) & (start[i] + e < rows.entries) ? bits : 0;
          ++place[i];
          place[i] = place[i] == rows.period ? 0 : place[i];
        }
        if constexpr (kFinite) bits = bits < M::infinity ? bits : 0;
        largest = bits > largest ? bits : largest;
      }
    }
  }
  return largest;
}

template <typename T, int kVector, bool kWhole>
__device__ __forceinline__ void raise_bound(
    const Rows<T>& rows, int block, int blocks, const Divider& by_out_width, unsigned long long* bound) {
  using M = MagnitudeBits<T>;
  __shared__ typename M::Bits shared[kThreads / 32];
  typename M::Bits largest = largest_of<T, kVector, kWhole, false>(rows, block, blocks, by_out_width);
  if (largest >= M::infinity) largest = largest_of<T, kVector, kWhole, true>(rows, block, blocks, by_out_width);
  for (int step = 16; step > 0; step /= 2) {
    const typename M::Bits other = __shfl_xor_sync(0xffffffffu, largest, step);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  wait_for_kernel_before();
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) largest = shared[warp] > largest ? shared[warp] : largest;
  atomicMax(bound, static_cast<unsigned long long>(largest));
}

// of the gradients, all of which count, by the first blocks; of the weights by the others
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads) find_bounds(
    const Rows<T> grads, const Rows<T> weights, const int grad_blocks, const Divider by_out_width, Bounds* bounds) {
  let_next_kernel_start();
  const int block = blockIdx.x;
  if (block < grad_blocks) {
    raise_bound<T, kVector, true>(grads, block, grad_blocks, by_out_width, &bounds->grad);
  } else {
    raise_bound<T, kVector, false>(
        weights, block - grad_blocks, gridDim.x - grad_blocks, by_out_width, &bounds->weight);
  }
}

// rounds the sums of an image, which lie without gaps, to grad_value
template <typename T, int kVector, typename Sums>
__global__ void __launch_bounds__(kThreads) finish(
    const Sums raw, const int pixels, const Divider by_row_vectors, const int64_t row, T* __restrict__ grad_value) {
  wait_for_kernel_before();
  const Sums sums = raw.prepared();
  const int row_vectors = by_row_vectors.divisor;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * pixels;
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < pixels * row_vectors; i += gridDim.x * kThreads) {
    A<T> sum[kVector];
    sums.finished((first * row_vectors + i) * kVector, sum);
    Vector<T, kVector> rounded;
#pragma unroll
    for (int e = 0; e < kVector; ++e) rounded.element[e] = from_opmath<T>(sum[e]);
    const int64_t pixel = by_row_vectors.quotient(i);
    rounded.store(grad_value + (first + pixel) * row + (i - pixel * row_vectors) * kVector);
  }
}

int grid_for(int64_t work, int64_t most) { return static_cast<int>(work < most ? (work > 0 ? work : 1) : most); }

template <typename Piece>
cudaError_t launch_clear(
    const Problem& p, void* sums, int64_t row_bytes, int64_t pitch_bytes, Bounds* bounds, cudaStream_t stream) {
  // blocks of much work each, so that the next kernel finds room beside them
  constexpr int kMostBlocks = 2048, kPiecesAThread = 16;
  constexpr int kBytes = sizeof(Piece);
  const int pieces = static_cast<int>(p.pixels() * row_bytes / kBytes);
  const int64_t image = p.pixels() * pitch_bytes / kBytes;
  return for_images(p, [&](int64_t first, int64_t images) {
    const int64_t wanted = parts_of(pieces, kThreads * kPiecesAThread);
    const dim3 grid(grid_for(wanted, std::max<int64_t>(1, kMostBlocks / images)), static_cast<unsigned>(images));
    clear<Piece><<<grid, kThreads, 0, stream>>>(
        static_cast<Piece*>(sums) + first * image, pieces, Divider(static_cast<uint32_t>(row_bytes / kBytes)),
        pitch_bytes / kBytes, image, bounds);
    return cudaGetLastError();
  });
}

template <typename Sums>
cudaError_t clear_sums(const CudaBackwardArgs& args, const Sums& sums, cudaStream_t stream) {
  constexpr int kElement = sizeof(*sums.sums);
  const Problem& p = args.problem;
  const int64_t row_bytes = p.channels() * kElement, pitch_bytes = sums.row * kElement;
  const bool wide = row_bytes % 16 == 0 && pitch_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(sums.sums) % 16 == 0;
  const auto launch = wide ? launch_clear<uint4> : launch_clear<uint32_t>;
  return launch(p, sums.sums, row_bytes, pitch_bytes, static_cast<Bounds*>(args.bounds), stream);
}

template <typename T, typename Sums>
cudaError_t round_sums(const CudaBackwardArgs& args, const Sums& sums, cudaStream_t stream) {
  const Problem& p = args.problem;
  constexpr int kWide = 4;
  const bool wide = p.channels() % kWide == 0 && args.grad_value_row % kWide == 0 &&
                    reinterpret_cast<uintptr_t>(args.grad_value) % (kWide * sizeof(T)) == 0;
  const int row_vectors = static_cast<int>(p.channels() / (wide ? kWide : 1));
  const int pixels = static_cast<int>(p.pixels());
  return for_images(p, [&](int64_t first, int64_t images) {
    const int64_t vectors = p.pixels() * row_vectors;
    const dim3 grid(grid_for((vectors + kThreads - 1) / kThreads, 1 << 16), static_cast<unsigned>(images));
    Sums shifted = sums;
    shifted.sums += first * p.pixels() * p.channels();
    const auto kernel = wide ? finish<T, kWide, Sums> : finish<T, 1, Sums>;
    return launch_in_chain(
        kernel, grid, kThreads, 0, stream, true, shifted, pixels, Divider(row_vectors), args.grad_value_row,
        static_cast<T*>(args.grad_value) + first * p.pixels() * args.grad_value_row);
  });
}

template <typename T, int kChannels, typename Sums>
cudaError_t launch(const CudaBackwardArgs& args, Sums sums, cudaStream_t stream) {
  const Problem& p = args.problem;
  if constexpr (sizeof(T) <= 4 && sizeof(T) * kChannels == 16) {
    if (tile_products_pay(p.dtype, architecture()) && fits_tile_products(args)) {
      return launch_tile_gradients<T>(args, stream);
    }
  }
  const bool tiled = args.grad_value && fits_tiles<T>(p);
  const bool scatters = args.grad_value && !tiled;
  if constexpr (sizeof(T) == 2 && kChannels == 8) {
    // additions of four sums a lane lie side by side, those of eight would leave gaps
    if (scatters) return launch<T, 4>(args, sums, stream);
  }
  const Geometry<A<T>> g(p);
  const GradientLayout layout(p, args.grad_offset_mask_row, kChannels);
  const auto* grad_output = static_cast<const T*>(args.grad_output);
  const auto* value = static_cast<const T*>(args.value);
  const auto* offset_mask = static_cast<const T*>(args.offset_mask);
  auto* grad_offset_mask = static_cast<T*>(args.grad_offset_mask);
  return for_images(p, [&](int64_t first, int64_t images) {
    const T* grads = grad_output + first * p.grad_output.n;
    const T* records = offset_mask + first * p.offset_mask.n;
    Sums shifted = sums;
    shifted.sums += first * p.pixels() * sums.row;
    if constexpr (sizeof(T) <= 4) {
      if (tiled) {
        const cudaError_t status = launch_tiles<T, kChannels>(p, grads, records, shifted, images, stream);
        if (status != cudaSuccess) return status;
      }
    }
    if (!scatters && !grad_offset_mask) return cudaSuccess;
    T* grad_records =
        grad_offset_mask ? grad_offset_mask + first * p.out_pixels() * args.grad_offset_mask_row : nullptr;
    const T* values = value + first * p.value.n;
    const dim3 grid((layout.units + kGradientThreads - 1) / kGradientThreads, static_cast<unsigned>(images));
    if constexpr (sizeof(T) <= 4 && sizeof(T) * kChannels == 16) {
      const auto kernel = offset_gradient_kernel<T, kChannels>(p.group_width);
      if (!scatters && kernel && fits_3x3(p, sizeof(T))) {
        kernel<<<grid, kGradientThreads, 0, stream>>>(
            g, layout, Axes(p, sizeof(T)), grads, values, records, grad_records);
        return cudaGetLastError();
      }
    }
    backward_any_window<T, kChannels, Sums>
        <<<grid, kGradientThreads, 0, stream>>>(g, layout, grads, values, records, shifted, scatters, grad_records);
    return cudaGetLastError();
  });
}

// whether rows can be read in whole vectors, of which the last may reach behind the entries
template <typename T, int kVector>
bool fits_vectors(const void* data, const Strides& strides, int entries, int64_t readable) {
  const auto aligned = [](int64_t elements) { return elements % kVector == 0; };
  return reinterpret_cast<uintptr_t>(data) % (kVector * sizeof(T)) == 0 && aligned(strides.n) && aligned(strides.h) &&
         aligned(strides.w) && (entries + kVector - 1) / kVector * kVector <= readable;
}

template <typename T, int kVector>
cudaError_t launch_bounds(const CudaBackwardArgs& args, Bounds* bounds, cudaStream_t stream) {
  const Problem& p = args.problem;
  const auto rows_of = [](const void* data, const Strides& strides, int entries, int period, int from) {
    Rows<T> rows{static_cast<const T*>(data), strides, entries, period, from};
    rows.by_row = Divider((entries + kVector - 1) / kVector);
    rows.by_period = Divider(period);
    return rows;
  };
  Rows<T> grads = rows_of(args.grad_output, p.grad_output, static_cast<int>(p.channels()), 1, 0);
  Rows<T> weights = rows_of(args.offset_mask, p.offset_mask, 3 * p.groups * p.points, 3 * p.points, 2 * p.points);
  // the kernel counts vectors in 32 bits
  const int64_t longest_row = std::max(grads.by_row.divisor, weights.by_row.divisor);
  const int64_t most_pixels = std::max<int64_t>(1, (1 << 30) / longest_row);
  return for_images(p, [&](int64_t first, int64_t images) {
    grads.data = static_cast<const T*>(args.grad_output) + first * p.grad_output.n;
    weights.data = static_cast<const T*>(args.offset_mask) + first * p.offset_mask.n;
    for (int64_t pixel = 0; pixel < p.out_pixels(); pixel += most_pixels) {
      const int64_t pixels = std::min(p.out_pixels() - pixel, most_pixels);
      int blocks[2] = {};
      const auto count = [&](Rows<T>& rows, int& of_rows) {
        rows.first_pixel = static_cast<int>(pixel);
        rows.vectors = static_cast<int>(pixels * rows.by_row.divisor);
        constexpr int kVectorsABlock = 2 * kThreads * kLoadsAtOnce, kMostBlocks = 2048;
        of_rows = grid_for(parts_of(rows.vectors, kVectorsABlock), kMostBlocks / images + 1);
      };
      count(grads, blocks[0]);
      // softmax keeps weights below one
      if (!p.softmax) count(weights, blocks[1]);
      const dim3 grid(blocks[0] + blocks[1], static_cast<unsigned>(images));
      const cudaError_t status = launch_in_chain(
          find_bounds<T, kVector>, grid, kThreads, 0, stream, true, grads, weights, blocks[0], Divider(p.out_width),
          bounds);
      if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
  });
}

template <typename T>
cudaError_t find_bounds_of(const CudaBackwardArgs& args, Bounds* bounds, cudaStream_t stream) {
  const Problem& p = args.problem;
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  const int channels = static_cast<int>(p.channels());
  const bool wide = fits_vectors<T, kWidest>(args.grad_output, p.grad_output, channels, channels) &&
                    fits_vectors<T, kWidest>(args.offset_mask, p.offset_mask, 3 * p.groups * p.points, p.row);
  const auto launch = wide ? launch_bounds<T, kWidest> : launch_bounds<T, 1>;
  return launch(args, bounds, stream);
}

template <typename T, int kChannels>
cudaError_t launch_width(const CudaBackwardArgs& args, cudaStream_t stream) {
  if constexpr (sizeof(T) <= 4 && sizeof(T) * kChannels == 16) {
    if (args.plane_warps) return launch_plane_gradients<T>(args, stream);
  }
  return with_sums<A<T>>(args, [&](const auto& sums) {
    cudaError_t status = args.grad_value ? clear_sums(args, sums, stream) : cudaSuccess;
    if (status == cudaSuccess && args.bounds) {
      status = find_bounds_of<T>(args, static_cast<Bounds*>(args.bounds), stream);
    }
    if (status != cudaSuccess) return status;
    status = launch<T, kChannels>(args, sums, stream);
    return status == cudaSuccess && args.sums ? round_sums<T>(args, sums, stream) : status;
  });
}

__global__ void empty() {}

}  // namespace

int architecture() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return 0;
  int architecture = known[device].load(std::memory_order_relaxed);
  if (architecture == 0) {
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, empty) != cudaSuccess) return 0;
    architecture = attributes.ptxVersion;
    known[device].store(architecture, std::memory_order_relaxed);
  }
  return architecture;
}

int choose_plane_warps(const CudaBackwardArgs& args) {
  const Problem& p = args.problem;
  const Window& w = p.window;
  if (!args.grad_value || p.dtype == DType::float64 || !is_large(architecture()) || !fits_tile_products(args)) return 0;
  // wider groups need more registers than there are
  if (slices_of(p) > 2) return 0;
  // blocks of the output have to lie on those of the input
  if (w.pad_h != w.dilation_h || w.pad_w != w.dilation_w) return 0;
  const int element_bytes = bytes_of(p.dtype);
  // rows of grad_value are written in 16-byte vectors
  const Operand grad_value{args.grad_value, {0, 0, args.grad_value_row}};
  const int width =
      vector_width(p, element_bytes, {{args.value, p.value}, {args.grad_output, p.grad_output}, grad_value});
  return width * element_bytes == 16 ? plane_warps_that_pay(p, element_bytes, args.deterministic) : 0;
}

cudaError_t launch_backward(const CudaBackwardArgs& args, cudaStream_t stream) {
  const Problem& p = args.problem;
  return dispatch(p, {{args.value, p.value}, {args.grad_output, p.grad_output}}, [&](auto element, auto channels) {
    return launch_width<typename decltype(element)::type, decltype(channels)::value>(args, stream);
  });
}

}  // namespace yolo_dcnv4
