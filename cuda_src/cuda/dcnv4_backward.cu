#include <math.h>

#include "launch.h"
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

struct Layout {
  int units;  // pixels * groups * lanes
  int groups, group_width, lanes;
  int64_t row, record;  // R and 3 * K
  Strides grad_output;
  Divider by_pixel, by_lanes;
};

template <typename Accumulator>
struct PointGradient {
  Accumulator weight = 0, x = 0, y = 0;
};

// `lanes` neighbouring threads share one output pixel and group; each takes every lanes-th vector of channels
template <typename T, int kChannels, typename Sums>
__global__ void __launch_bounds__(kThreads) backward(
    const Geometry<A<T>> g, const Layout layout, const T* __restrict__ grad_output, const T* __restrict__ value,
    const T* __restrict__ offset_mask, const Sums raw_sums, const bool needs_value, T* __restrict__ grad_offset_mask) {
  const int unit = blockIdx.x * kThreads + threadIdx.x;
  if (unit >= layout.units) return;
  const int pixel = layout.by_pixel.quotient(unit);
  const int group = layout.by_lanes.quotient(unit - pixel * layout.groups * layout.lanes);
  const int lane = unit & (layout.lanes - 1);
  const int out_y = g.by_out_width.quotient(pixel);
  const int out_x = pixel - out_y * g.out_width;
  const int64_t n = blockIdx.y;
  const int first_channel = group * layout.group_width;
  const int vectors = layout.group_width / kChannels;

  const Position<A<T>> at(g, out_y, out_x);
  const T* record = offset_mask + n * g.offset_n + out_y * g.offset_h + out_x * g.offset_w + group * layout.record;
  const T* grads = grad_output + n * layout.grad_output.n + out_y * layout.grad_output.h +
                   out_x * layout.grad_output.w + first_channel;
  const T* image = value + n * g.value_n + first_channel;
  const int channels = layout.groups * layout.group_width;
  const int64_t own_image = n * g.height * g.width * channels + first_channel;
  const Normalizer<A<T>> normalize(g, record);
  const Sums sums = raw_sums.prepared();

  A<T> grad[kChannels];
  const auto load_grad = [&](int vector) {
    Vector<T, kChannels> v;
    v.load(grads + vector * kChannels);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) grad[c] = to_opmath(v.element[c]);
  };
  // one vector a lane is the common case: it stays in registers
  const bool reload = vectors > layout.lanes;
  if (lane < vectors) load_grad(lane);

  const auto point = [&](int k, bool scatter) {
    PointGradient<A<T>> d;
    const Sample<A<T>> s(g, at, record, k);
    if (s.inside) {
      const A<T> m = normalize(to_opmath(record[2 * g.points + k]));
      const bool valid[4] = {s.top && s.left, s.top && s.right, s.bottom && s.left, s.bottom && s.right};
      const A<T> bilinear[4] = {(1 - s.ly) * (1 - s.lx), (1 - s.ly) * s.lx, s.ly * (1 - s.lx), s.ly * s.lx};
      for (int vector = lane; vector < vectors; vector += layout.lanes) {
        if (reload) load_grad(vector);
        A<T> dot[4] = {0, 0, 0, 0};
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          if (!valid[corner]) continue;
          const int y = s.y0 + corner / 2, x = s.x0 + corner % 2;
          Vector<T, kChannels> v;
          v.load(
              image + static_cast<int64_t>(y) * g.value_h + static_cast<int64_t>(x) * g.value_w + vector * kChannels);
#pragma unroll
          for (int c = 0; c < kChannels; ++c) dot[corner] += grad[c] * to_opmath(v.element[c]);
          if (scatter) {
            const int64_t target = own_image + static_cast<int64_t>(y * g.width + x) * channels + vector * kChannels;
            sums.template add<kChannels>(target, grad, m * bilinear[corner]);
          }
        }
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) d.weight += bilinear[corner] * dot[corner];
        d.x += (1 - s.ly) * (dot[1] - dot[0]) + s.ly * (dot[3] - dot[2]);
        d.y += (1 - s.lx) * (dot[2] - dot[0]) + s.lx * (dot[3] - dot[1]);
      }
      d.x *= m * g.scale;
      d.y *= m * g.scale;
    }
    if (grad_offset_mask) {
      const unsigned first_member = threadIdx.x % 32 & ~(layout.lanes - 1);
      const unsigned members = (0xffffffffu >> (32 - layout.lanes)) << first_member;
      for (int step = layout.lanes / 2; step > 0; step /= 2) {
        d.weight += __shfl_xor_sync(members, d.weight, step);
        d.x += __shfl_xor_sync(members, d.x, step);
        d.y += __shfl_xor_sync(members, d.y, step);
      }
    }
    return d;
  };

  A<T> expected = 0;
  if (g.softmax && grad_offset_mask) {
    for (int k = 0; k < g.points; ++k) {
      expected += normalize(to_opmath(record[2 * g.points + k])) * point(k, false).weight;
    }
  }
  T* grad_record = grad_offset_mask + (n * g.out_pixels + pixel) * layout.row + group * layout.record;
  for (int k = 0; k < g.points; ++k) {
    PointGradient<A<T>> d = point(k, needs_value);
    if (!grad_offset_mask || lane != 0) continue;
    if (g.softmax) d.weight = normalize(to_opmath(record[2 * g.points + k])) * (d.weight - expected);
    grad_record[2 * k] = from_opmath<T>(d.x);
    grad_record[2 * k + 1] = from_opmath<T>(d.y);
    grad_record[2 * g.points + k] = from_opmath<T>(d.weight);
  }
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
  Layout layout;
  layout.groups = p.groups;
  layout.group_width = p.group_width;
  layout.lanes = 1;
  while (layout.lanes < 32 && 2 * layout.lanes <= p.group_width / kChannels) layout.lanes *= 2;
  const int64_t per_pixel = static_cast<int64_t>(p.groups) * layout.lanes;
  layout.units = static_cast<int>(p.out_pixels() * per_pixel);
  layout.row = p.row;
  layout.record = 3 * static_cast<int64_t>(p.points);
  layout.grad_output = p.grad_output;
  layout.by_pixel = Divider(static_cast<uint32_t>(per_pixel));
  layout.by_lanes = Divider(layout.lanes);
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
    const dim3 grid((layout.units + kThreads - 1) / kThreads, static_cast<unsigned>(images));
    backward<T, kChannels, Sums><<<grid, kThreads, 0, stream>>>(
        g, layout, grads, value + first * p.value.n, records, shifted, scatters,
        grad_offset_mask ? grad_offset_mask + first * p.out_pixels() * p.row : nullptr);
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
