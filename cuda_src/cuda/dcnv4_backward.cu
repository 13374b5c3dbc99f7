#include <math.h>

#include <algorithm>
#include <atomic>

#include "dispatch.cuh"
#include "launch.h"
#include "offset_gradient.cuh"
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
  record_gradient<T, kChannels>(g, u, grad, [&](int y, int x, int vector, A<T> factor) {
    if (!needs_value) return;
    const int64_t target = own_image + static_cast<int64_t>(y * g.width + x) * sums.row + vector * kChannels;
    sums.template add<kChannels>(target, grad, factor);
  });
}

constexpr int kLoadsAtOnce = 4;  // that a thread of find_bound has under way together

// largest finite magnitude among the entries of each pixel's row whose index modulo `period` is at least `from`
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads) find_bound(
    const T* __restrict__ data, const Strides strides, const int first_pixel, const int vectors, const int out_width,
    const int entries, const int period, const int from, const Divider by_row, const Divider by_out_width,
    const Divider by_period, unsigned long long* bound) {
  const T* image = data + blockIdx.y * strides.n;
  unsigned long long largest = 0;
  for (int first = blockIdx.x * kThreads * kLoadsAtOnce + threadIdx.x; first < vectors;
       first += gridDim.x * kThreads * kLoadsAtOnce) {
    Vector<T, kVector> v[kLoadsAtOnce];
    int start[kLoadsAtOnce];
#pragma unroll
    for (int i = 0; i < kLoadsAtOnce; ++i) {
      // what lies behind the end is the last vector once more
      const int vector = min(first + i * kThreads, vectors - 1);
      const int pixel = by_row.quotient(vector);
      const int y = by_out_width.quotient(first_pixel + pixel), x = first_pixel + pixel - y * out_width;
      start[i] = (vector - pixel * static_cast<int>(by_row.divisor)) * kVector;
      v[i].load(image + y * strides.h + x * strides.w + start[i]);
    }
#pragma unroll
    for (int i = 0; i < kLoadsAtOnce; ++i) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const int entry = start[i] + e, place = entry - by_period.quotient(entry) * period;
        const A<T> number = to_opmath(v[i].element[e]);
        const unsigned long long bits = pattern(number);
        if ((place >= from) & (entry < entries) & isfinite(number) && bits > largest) largest = bits;
      }
    }
  }
  for (int step = 16; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(0xffffffffu, largest, step);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % 32 == 0) atomicMax(bound, largest);
}

// rounds the sums of an image, which lie without gaps, to grad_value
template <typename T, int kVector, typename Sums>
__global__ void __launch_bounds__(kThreads) finish(
    const Sums raw, const int pixels, const Divider by_row_vectors, const int64_t row, T* __restrict__ grad_value) {
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

template <typename T, typename Sums>
cudaError_t round_sums(const CudaBackwardArgs& args, const Sums& sums, cudaStream_t stream) {
  const Problem& p = args.problem;
  constexpr int kWide = 4;
  const bool wide = p.channels() % kWide == 0 && args.grad_value_row % kWide == 0 &&
                    reinterpret_cast<uintptr_t>(args.grad_value) % (kWide * sizeof(T)) == 0;
  const int row_vectors = static_cast<int>(p.channels() / (wide ? kWide : 1));
  const int pixels = static_cast<int>(p.pixels());
  for (int64_t first = 0; first < p.batch; first += kMostImages) {
    const int64_t images = p.batch - first < kMostImages ? p.batch - first : kMostImages;
    const int64_t vectors = p.pixels() * row_vectors;
    const dim3 grid(grid_for((vectors + kThreads - 1) / kThreads, 1 << 16), static_cast<unsigned>(images));
    Sums shifted = sums;
    shifted.sums += first * p.pixels() * p.channels();
    const auto kernel = wide ? finish<T, kWide, Sums> : finish<T, 1, Sums>;
    kernel<<<grid, kThreads, 0, stream>>>(
        shifted, pixels, Divider(row_vectors), args.grad_value_row,
        static_cast<T*>(args.grad_value) + first * p.pixels() * args.grad_value_row);
  }
  return cudaGetLastError();
}

template <typename T, int kChannels, typename Sums>
cudaError_t launch(const CudaBackwardArgs& args, Sums sums, cudaStream_t stream) {
  const Problem& p = args.problem;
  if constexpr (sizeof(T) <= 4 && sizeof(T) * kChannels == 16) {
    if (tile_products_pay(p.dtype, architecture()) && fits_tile_products(args)) {
      return launch_tile_gradients<T>(args, stream);
    }
  }
  const Geometry<A<T>> g(p);
  const GradientLayout layout(p, args.grad_offset_mask_row, kChannels);
  const auto* grad_output = static_cast<const T*>(args.grad_output);
  const auto* value = static_cast<const T*>(args.value);
  const auto* offset_mask = static_cast<const T*>(args.offset_mask);
  auto* grad_offset_mask = static_cast<T*>(args.grad_offset_mask);
  const bool tiled = args.grad_value && fits_tiles<T>(p);
  const bool scatters = args.grad_value && !tiled;
  for (int64_t first = 0; first < p.batch; first += kMostImages) {
    const int64_t images = p.batch - first < kMostImages ? p.batch - first : kMostImages;
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
    if (!scatters && !grad_offset_mask) continue;
    T* grad_records =
        grad_offset_mask ? grad_offset_mask + first * p.out_pixels() * args.grad_offset_mask_row : nullptr;
    const T* values = value + first * p.value.n;
    const dim3 grid((layout.units + kGradientThreads - 1) / kGradientThreads, static_cast<unsigned>(images));
    if constexpr (sizeof(T) <= 4 && sizeof(T) * kChannels == 16) {
      const auto kernel = offset_gradient_kernel<T, kChannels>(p.group_width);
      if (!scatters && kernel && fits_3x3(p, sizeof(T))) {
        kernel<<<grid, kGradientThreads, 0, stream>>>(
            g, layout, make_axis(p.height, p.value.h), make_axis(p.width, p.value.w), grads, values, records,
            grad_records);
        continue;
      }
    }
    backward_any_window<T, kChannels, Sums>
        <<<grid, kGradientThreads, 0, stream>>>(g, layout, grads, values, records, shifted, scatters, grad_records);
  }
  return cudaGetLastError();
}

// period and from choose the entries of a row, of which `whole` may be read
template <typename T>
void find_bound_of(
    const Problem& p, const void* data, const Strides& strides, int entries, int64_t whole, int period, int from,
    unsigned long long* bound, cudaStream_t stream) {
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  const auto aligned = [&](int64_t elements) { return elements % kWidest == 0; };
  const bool wide = reinterpret_cast<uintptr_t>(data) % 16 == 0 && aligned(strides.n) && aligned(strides.h) &&
                    aligned(strides.w) && (entries + kWidest - 1) / kWidest * kWidest <= whole;
  const int row_vectors = wide ? (entries + kWidest - 1) / kWidest : entries;
  // the kernel counts vectors in 32 bits
  const int64_t most_pixels = std::max(1, (1 << 30) / row_vectors);
  const auto kernel = wide ? find_bound<T, kWidest> : find_bound<T, 1>;
  for (int64_t first = 0; first < p.batch; first += kMostImages) {
    const int64_t images = p.batch - first < kMostImages ? p.batch - first : kMostImages;
    for (int64_t pixel = 0; pixel < p.out_pixels(); pixel += most_pixels) {
      const int64_t pixels = p.out_pixels() - pixel < most_pixels ? p.out_pixels() - pixel : most_pixels;
      const int64_t vectors = pixels * row_vectors;
      constexpr int kVectorsABlock = kThreads * kLoadsAtOnce;
      const dim3 grid(
          grid_for((vectors + kVectorsABlock - 1) / kVectorsABlock, 4096 / images + 1), static_cast<unsigned>(images));
      kernel<<<grid, kThreads, 0, stream>>>(
          static_cast<const T*>(data) + first * strides.n, strides, static_cast<int>(pixel), static_cast<int>(vectors),
          p.out_width, entries, period, from, Divider(row_vectors), Divider(p.out_width), Divider(period), bound);
    }
  }
}

template <typename T>
void find_bounds(const CudaBackwardArgs& args, Bounds* bounds, cudaStream_t stream) {
  const Problem& p = args.problem;
  const int channels = static_cast<int>(p.channels());
  find_bound_of<T>(p, args.grad_output, p.grad_output, channels, channels, 1, 0, &bounds->grad, stream);
  if (p.softmax) return;
  find_bound_of<T>(
      p, args.offset_mask, p.offset_mask, 3 * p.groups * p.points, p.row, 3 * p.points, 2 * p.points, &bounds->weight,
      stream);
}

template <typename T, int kChannels>
cudaError_t launch_width(const CudaBackwardArgs& args, cudaStream_t stream) {
  if (args.deterministic && args.grad_value) find_bounds<T>(args, static_cast<Bounds*>(args.bounds), stream);
  return with_sums<A<T>>(args, [&](const auto& sums) {
    const cudaError_t status = launch<T, kChannels>(args, sums, stream);
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

cudaError_t launch_backward(const CudaBackwardArgs& args, cudaStream_t stream) {
  const Problem& p = args.problem;
  return dispatch(p, {{args.value, p.value}, {args.grad_output, p.grad_output}}, [&](auto element, auto channels) {
    return launch_width<typename decltype(element)::type, decltype(channels)::value>(args, stream);
  });
}

}  // namespace yolo_dcnv4
