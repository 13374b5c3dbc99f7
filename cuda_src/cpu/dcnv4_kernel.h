// the CPU kernels, one copy for each instruction set they are compiled for
#pragma once

#include "../dcnv4.h"

namespace yolo_dcnv4 {

struct ForwardArgs {
  Problem problem;
  const void* value;
  const void* offset_mask;
  void* out;
};

struct BackwardArgs {
  Problem problem;
  const void* grad_output;
  const void* value;
  const void* offset_mask;
  void* grad_value;        // null where it is not needed; zero-filled, contiguous
  void* grad_offset_mask;  // null where it is not needed; contiguous, padding zero-filled
};

struct CpuKernels {
  // rows [begin, end) of the batch * out_height output rows
  void (*forward)(const ForwardArgs&, int64_t begin, int64_t end);
  // tasks [begin, end) of the batch * groups pairs: a pair owns its channels of grad_value
  // false where the working memory could not be had
  bool (*backward)(const BackwardArgs&, int64_t begin, int64_t end);
};

namespace baseline {
extern const CpuKernels kernels;
}
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}

}  // namespace yolo_dcnv4
