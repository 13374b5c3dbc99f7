// the CPU kernels of one instruction set
#include "dcnv4_kernel.h"

#include "backward.h"
#include "forward.h"

namespace yolo_dcnv4 {
namespace DCNV4_ISA {
namespace {

void forward_any(const ForwardArgs& args, int64_t begin, int64_t end) {
  switch (args.problem.dtype) {
    case DType::float64:
      return forward<double>(args, begin, end);
    case DType::float32:
      return forward<float>(args, begin, end);
    case DType::float16:
      return forward<Half>(args, begin, end);
    case DType::bfloat16:
      return forward<BFloat16>(args, begin, end);
  }
}

bool backward_any(const BackwardArgs& args, int64_t begin, int64_t end) {
  switch (args.problem.dtype) {
    case DType::float64:
      return backward<double>(args, begin, end);
    case DType::float32:
      return backward<float>(args, begin, end);
    case DType::float16:
      return backward<Half>(args, begin, end);
    case DType::bfloat16:
      return backward<BFloat16>(args, begin, end);
  }
  return false;
}

}  // namespace

extern const CpuKernels kernels = {forward_any, backward_any};

}  // namespace DCNV4_ISA
}  // namespace yolo_dcnv4
