// all gradients of tiles of 3 x 3 windows, on tensor cores: one object file a type, for they take long to compile
#pragma once

#include <cstdint>
#include <limits>

#include "launch.h"

namespace yolo_dcnv4 {

constexpr int kMostGroupWidth = 64;
constexpr int kSliceChannels = 16;
constexpr int kMostSlices = kMostGroupWidth / kSliceChannels;

inline int slices_of(const Problem& p) {
  const int slices = (p.group_width + kSliceChannels - 1) / kSliceChannels;
  return slices <= 2 ? slices : kMostSlices;
}

// Groups must have whole 16-byte vectors of channels, aligned in all tensors.
inline bool fits_tile_products(const CudaBackwardArgs& args) {
  const Problem& p = args.problem;
  const Window& w = p.window;
  const int64_t sums_row = args.sums ? p.channels() : args.grad_value_row;
  for (const int64_t stride :
       {p.value.h, p.value.w, p.offset_mask.h, p.offset_mask.w, p.grad_output.h, p.grad_output.w,
        args.grad_offset_mask_row, sums_row}) {
    if (stride > std::numeric_limits<int32_t>::max()) return false;
  }
  const auto sums = reinterpret_cast<uintptr_t>(args.sums ? args.sums : args.grad_value);
  return w.kernel_h == 3 && w.kernel_w == 3 && !p.remove_center && !p.softmax && w.stride_h == 1 && w.stride_w == 1 &&
         w.dilation_h <= 2 && w.dilation_w <= 2 && p.group_width <= kMostGroupWidth && p.height < (1 << 21) &&
         p.width < (1 << 21) && sums_row % 4 == 0 && sums % 16 == 0;
}

// where they fit; leaves the sums of grad_value where the other kernels do
template <typename T>
cudaError_t launch_tile_gradients(const CudaBackwardArgs& args, cudaStream_t stream);

}  // namespace yolo_dcnv4
