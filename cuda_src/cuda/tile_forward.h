// the forward pass over tiles of 3 x 3 windows whose features are staged in shared memory
#pragma once

#include "launch.h"

namespace yolo_dcnv4 {

// whether it computes this problem, and is the fastest that does; vectors of 16 bytes of `value` must be aligned
bool tile_forward_pays(const ForwardArgs& args);

cudaError_t launch_tile_forward(const ForwardArgs& args, cudaStream_t stream);

}  // namespace yolo_dcnv4
