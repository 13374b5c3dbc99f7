// which kernels are the faster ones on which GPUs: all that is tuned to an architecture
#pragma once

#include "../dcnv4.h"

namespace yolo_dcnv4 {

// of the code that runs on the current device, as 10 * major + minor; 0 where there is none
int architecture();

// Dense products need tensor cores, and for float32 such that multiply tf32 quickly.
inline bool tile_products_pay(DType dtype, int architecture) {
  switch (dtype) {
    case DType::float16:
    case DType::bfloat16:
      return architecture >= 80;
    case DType::float32:
      return architecture == 80 || architecture == 90 || architecture == 100 || architecture == 103;
    default:
      return false;
  }
}

}  // namespace yolo_dcnv4
