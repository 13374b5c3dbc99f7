// the forward pass over tiles of 3 x 3 windows whose features are staged in shared memory
#pragma once

#include <limits>

#include "launch.h"

namespace yolo_dcnv4 {

// Groups must have whole slices of 16 channels; that all vectors of 16 bytes are aligned is the caller's to check.
inline bool fits_tile_forward(const Problem& p) {
  const Window& w = p.window;
  const int64_t records = (p.out_height - 1) * p.offset_mask.h + (p.out_width - 1) * p.offset_mask.w + p.row;
  return w.kernel_h == 3 && w.kernel_w == 3 && !p.remove_center && !p.softmax && w.stride_h == 1 && w.stride_w == 1 &&
         w.dilation_h <= 2 && w.dilation_w <= 2 && p.group_width % 16 == 0 &&
         records <= std::numeric_limits<int32_t>::max();
}

// whether it fits and is the fastest
bool tile_forward_pays(const ForwardArgs& args);

cudaError_t launch_tile_forward(const ForwardArgs& args, cudaStream_t stream);

}  // namespace yolo_dcnv4
