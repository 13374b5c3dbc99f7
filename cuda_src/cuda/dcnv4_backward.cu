#include <math.h>

#include "launch.h"
#include "offset_gradient.cuh"
#include "sampling.cuh"
#include "sums.cuh"
#include "value_gradient.cuh"

namespace yolo_dcnv4 {

namespace {

constexpr int kThreads = 128;
// the grid's second dimension
constexpr int64_t kMostImages = 65535;

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
  const int channels = layout.groups * layout.group_width;
  const int64_t own_image = static_cast<int64_t>(blockIdx.y) * g.height * g.width * channels + u.first_channel;
  A<T> grad[kChannels];
  load_floats<T, kChannels>(u.grads + u.lanes.index * kChannels, grad);
  record_gradient<T, kChannels>(g, u, grad, [&](int y, int x, int vector, A<T> factor) {
    if (!needs_value) return;
    const int64_t target = own_image + static_cast<int64_t>(y * g.width + x) * channels + vector * kChannels;
    sums.template add<kChannels>(target, grad, factor);
  });
}

// largest finite magnitude of the entries of each row whose index modulo `period` is at least `from`
template <typename T>
__global__ void __launch_bounds__(kThreads) find_bound(
    const T* __restrict__ data, Strides strides, int64_t rows, int out_height, int out_width, int64_t entries,
    int64_t period, int64_t from, unsigned long long* bound) {
  unsigned long long largest = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t x = row % out_width, y = row / out_width % out_height, n = row / out_width / out_height;
    const T* start = data + n * strides.n + y * strides.h + x * strides.w;
    for (int64_t i = threadIdx.x; i < entries; i += kThreads) {
      if (i % period < from) continue;
      const A<T> entry = to_opmath(start[i]);
      const unsigned long long bits = pattern(entry);
      largest = isfinite(entry) && bits > largest ? bits : largest;
    }
  }
  for (int step = 16; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(0xffffffffu, largest, step);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % 32 == 0) atomicMax(bound, largest);
}

template <typename T, typename Sums>
__global__ void __launch_bounds__(kThreads) finish(const Sums raw, int64_t count, T* __restrict__ grad_value) {
  const Sums sums = raw.prepared();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    grad_value[i] = from_opmath<T>(sums.finished(i));
  }
}

int grid_for(int64_t work, int64_t most) { return static_cast<int>(work < most ? (work > 0 ? work : 1) : most); }

template <typename T, int kChannels, typename Sums>
cudaError_t launch(const CudaBackwardArgs& args, Sums sums, cudaStream_t stream) {
  const Problem& p = args.problem;
  const Geometry<A<T>> g(p);
  const GradientLayout layout(p, kChannels);
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
    shifted.sums += first * p.pixels() * p.channels();
    if constexpr (sizeof(T) <= 4) {
      if (tiled) {
        const cudaError_t status = launch_tiles<T, kChannels>(p, grads, records, shifted, images, stream);
        if (status != cudaSuccess) return status;
      }
    }
    if (!scatters && !grad_offset_mask) continue;
    T* grad_records = grad_offset_mask ? grad_offset_mask + first * p.out_pixels() * p.row : nullptr;
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
  if (args.grad_value && args.sums) {
    const int64_t count = p.batch * p.pixels() * p.channels();
    finish<T, Sums><<<grid_for((count + kThreads - 1) / kThreads, 1 << 16), kThreads, 0, stream>>>(
        sums, count, static_cast<T*>(args.grad_value));
  }
  return cudaGetLastError();
}

template <typename T>
void find_bounds(const CudaBackwardArgs& args, Bounds* bounds, cudaStream_t stream) {
  const Problem& p = args.problem;
  const int64_t rows = p.batch * p.out_pixels();
  const int grid = grid_for(rows, 2048);
  const int64_t record = 3 * static_cast<int64_t>(p.points);
  find_bound<T><<<grid, kThreads, 0, stream>>>(
      static_cast<const T*>(args.grad_output), p.grad_output, rows, p.out_height, p.out_width, p.channels(), 1, 0,
      &bounds->grad);
  find_bound<T><<<grid, kThreads, 0, stream>>>(
      static_cast<const T*>(args.offset_mask), p.offset_mask, rows, p.out_height, p.out_width, p.groups * record,
      record, 2 * static_cast<int64_t>(p.points), &bounds->weight);
}

template <typename T, int kChannels>
cudaError_t launch_width(const CudaBackwardArgs& args, cudaStream_t stream) {
  const Problem& p = args.problem;
  if (args.deterministic && args.grad_value) {
    auto* bounds = static_cast<Bounds*>(args.bounds);
    find_bounds<T>(args, bounds, stream);
    const auto samples = static_cast<A<T>>(p.out_pixels()) * p.points;
    return launch<T, kChannels>(
        args, FixedPointSums<A<T>>{static_cast<unsigned long long*>(args.sums), bounds, samples, p.softmax, 0, 1},
        stream);
  }
  void* sums = args.sums ? args.sums : args.grad_value;
  return launch<T, kChannels>(args, FloatSums<A<T>>{static_cast<A<T>*>(sums)}, stream);
}

// the widest vector that divides the groups and finds every address aligned
template <typename T>
int vector_width(const CudaBackwardArgs& args) {
  const Problem& p = args.problem;
  int width = 16 / static_cast<int>(sizeof(T));
  const auto aligned = [&](const void* start, const Strides& s) {
    return reinterpret_cast<uintptr_t>(start) % (width * sizeof(T)) == 0 && s.n % width == 0 && s.h % width == 0 &&
           s.w % width == 0;
  };
  while (width > 1 &&
         !(p.group_width % width == 0 && aligned(args.value, p.value) && aligned(args.grad_output, p.grad_output))) {
    width /= 2;
  }
  return width;
}

template <typename T>
cudaError_t launch_type(const CudaBackwardArgs& args, cudaStream_t stream) {
  switch (vector_width<T>(args)) {
    case 8:
      if constexpr (sizeof(T) == 2) return launch_width<T, 8>(args, stream);
      break;
    case 4:
      if constexpr (sizeof(T) <= 4) return launch_width<T, 4>(args, stream);
      break;
    case 2:
      return launch_width<T, 2>(args, stream);
    default:
      break;
  }
  return launch_width<T, 1>(args, stream);
}

}  // namespace

cudaError_t launch_backward(const CudaBackwardArgs& args, cudaStream_t stream) {
  switch (args.problem.dtype) {
    case DType::float64:
      return launch_type<double>(args, stream);
    case DType::float32:
      return launch_type<float>(args, stream);
    case DType::float16:
      return launch_type<__half>(args, stream);
    case DType::bfloat16:
      return launch_type<__nv_bfloat16>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace yolo_dcnv4
