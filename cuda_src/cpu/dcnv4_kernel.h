// the CPU kernels, one copy for each instruction set they are compiled for
#pragma once

#include "../dcnv4.h"

namespace yolo_dcnv4 {

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
